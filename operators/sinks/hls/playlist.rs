//! The text of a playlist (RFC 8216, and for low latency its second edition, RFC 8216bis): what it lists, and what has
//! left it.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;

use crate::item::time_text;
use crate::media::fragment::Form;

/// What kind of a playlist a stream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The latest segments; older ones leave it.
    Live,
    /// All segments so far.
    Event,
    /// All segments, once the stream has ended.
    Vod,
}

/// How much a live playlist lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    Segments(usize),
    /// Microseconds.
    Time(i64),
}

/// A part of a segment as it is listed, where latency is to be low.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedPart {
    /// Microseconds.
    pub duration: i64,
    /// Whether it begins with a keyframe.
    pub is_independent: bool,
}

/// A segment as it is listed.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub number: u64,
    /// Microseconds.
    pub duration: i64,
    /// The number of its initialisation, and what is in the address of that, like `version`.
    pub map: u64,
    pub map_version: Option<Arc<str>>,
    pub is_discontinuous: bool,
    /// Whether it is lost: its time is listed, and nobody can fetch it.
    pub is_gap: bool,
    /// When its first picture was taken, where that is known.
    pub time: Option<SystemTime>,
    /// What of its content is in its address; `None` for what the whole playlist has there.
    pub version: Option<Arc<str>>,
    /// What it consists of, where latency is to be low.
    pub parts: Vec<ListedPart>,
}

/// What a playlist lists.
#[derive(Clone, Debug)]
pub struct Playlist {
    pub kind: Kind,
    pub form: Form,
    pub window: Window,
    /// What is in the address of each file, so that it never comes to mean something else.
    pub version: Arc<str>,
    /// Seconds; no segment is longer, as rounded.
    pub target: u64,
    /// Microseconds; no part is longer. `None` where segments have no parts.
    pub part_target: Option<i64>,
    pub segments: VecDeque<Listed>,
    /// The segment of which there are only some parts yet.
    pub open: Option<Listed>,
    /// Discontinuities that have left it.
    pub discontinuities: u64,
    /// Whether every segment that there was can be decoded by itself, from its first picture to its last.
    pub is_independent: bool,
    pub is_over: bool,
    /// The longest that it has been, in microseconds.
    pub longest: i64,
}

/// A live playlist lists at least so many times its target duration.
const LEAST_TARGETS: i64 = 3;
/// Target durations behind the end of a playlist: where players begin, and how long parts are listed.
const HOLD_BACK: i64 = 3;
/// Parts behind the end of a playlist where players of low latency begin.
const PART_HOLD_BACK: i64 = 3;
/// Target durations behind the end of a playlist that an update of it always lists.
const SKIP_UNTIL: i64 = 6;
/// How far beyond the last part somebody may ask for one: so many seconds of parts, at least so many.
const ADVANCE: i64 = 3;

/// Whether a playlist has what somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Listed,
    NotYet,
    /// So far ahead that nobody who reads the playlist would ask for it.
    TooFar,
}

impl Playlist {
    pub fn new(kind: Kind, form: Form, window: Window, target: u64) -> Playlist {
        Playlist {
            kind,
            form,
            window,
            version: Arc::default(),
            target,
            part_target: None,
            segments: VecDeque::new(),
            open: None,
            discontinuities: 0,
            is_independent: true,
            is_over: false,
            longest: 0,
        }
    }

    fn duration(&self) -> i64 {
        self.segments.iter().map(|segment| segment.duration).sum()
    }

    /// Lists another segment; those that leave for it.
    pub fn push(&mut self, segment: Listed) -> Vec<Listed> {
        self.segments.push_back(segment);
        let mut left = Vec::new();
        let mut duration = self.duration();
        if self.kind == Kind::Live {
            let least = i64::try_from(self.target).unwrap_or(i64::MAX).saturating_mul(LEAST_TARGETS * 1_000_000);
            while let Some(first) = self.segments.front() {
                let without = duration - first.duration;
                let is_outside = match self.window {
                    Window::Segments(most) => self.segments.len() > most,
                    Window::Time(most) => without >= most,
                };
                if !is_outside || without < least {
                    break;
                }
                duration = without;
                left.extend(self.leave());
            }
        }
        self.longest = self.longest.max(duration);
        left
    }

    /// The oldest segment leaves.
    pub fn leave(&mut self) -> Option<Listed> {
        let first = self.segments.pop_front()?;
        self.discontinuities += u64::from(first.is_discontinuous);
        Some(first)
    }

    /// The longest segment, in microseconds.
    fn target_micros(&self) -> i64 {
        i64::try_from(self.target).unwrap_or(i64::MAX).saturating_mul(1_000_000)
    }

    /// The number of the next complete segment.
    fn next(&self) -> Option<u64> {
        let open = self.open.as_ref().map(|open| open.number);
        open.or_else(|| self.segments.back().map(|last| last.number + 1))
    }

    /// The segment and the part of it that come next, where parts are listed and more will come.
    pub fn hint(&self) -> Option<(u64, u64)> {
        self.part_target.filter(|_| !self.is_over)?;
        let begun = self.open.as_ref().map_or(0, |open| open.parts.len() as u64);
        self.next().map(|number| (number, begun))
    }

    /// Whether it lists a segment, or with `part` that part of it, or what comes after that.
    pub fn progress(&self, number: u64, part: Option<u64>) -> Progress {
        let (Some(next), Some(part_target)) = (self.next(), self.part_target) else { return Progress::Listed };
        if self.is_over {
            return Progress::Listed;
        }
        let begun = self.open.as_ref().map_or(0, |open| open.parts.len() as u64);
        // Behind the last part of a segment comes the first one of the next.
        let last = self.segments.back().filter(|last| last.number == number && last.number + 1 == next);
        let (number, part) = match (last, part) {
            (Some(last), Some(part)) if part >= last.parts.len() as u64 => (next, Some(0)),
            (_, part) => (number, part),
        };
        let advance = if (1..1_000_000).contains(&part_target) {
            (ADVANCE * 1_000_000 + part_target - 1) / part_target
        } else {
            ADVANCE
        };
        let advance = u64::try_from(advance).unwrap_or(0);
        let most = if number > next { advance } else { begun.saturating_add(advance) };
        match part {
            _ if number < next => Progress::Listed,
            _ if number > next.saturating_add(1) => Progress::TooFar,
            Some(part) if part >= most => Progress::TooFar,
            Some(part) if number == next && part < begun => Progress::Listed,
            _ => Progress::NotYet,
        }
    }

    /// The playlist as it is served.
    pub fn text(&self) -> String {
        self.without(0)
    }

    /// The playlist for somebody who has one that is not older than half of what is skipped lasts: its oldest segments are
    /// left out, where that makes a difference.
    pub fn update(&self) -> String {
        let kept = self.target_micros().saturating_mul(SKIP_UNTIL);
        let mut behind = self.behind();
        let skipped = self.segments.iter().take_while(|segment| {
            behind -= segment.duration;
            behind >= kept
        });
        self.without(skipped.count())
    }

    /// Microseconds from its beginning to its end.
    fn behind(&self) -> i64 {
        let parts = self.open.iter().flat_map(|open| &open.parts);
        self.duration() + parts.map(|part| part.duration).sum::<i64>()
    }

    fn without(&self, skipped: usize) -> String {
        let mut text = String::from("#EXTM3U\n");
        // Writing into a string never fails.
        let version = match self.form {
            _ if self.part_target.is_some() => 9,
            Form::Mp4 => 7,
            Form::Transport => 3,
        };
        let _ = writeln!(text, "#EXT-X-VERSION:{version}");
        let _ = writeln!(text, "#EXT-X-TARGETDURATION:{}", self.target);
        if let Some(part_target) = self.part_target {
            let target = self.target_micros();
            let _ = writeln!(
                text,
                "#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,CAN-SKIP-UNTIL={},HOLD-BACK={},PART-HOLD-BACK={}",
                seconds(target.saturating_mul(SKIP_UNTIL)),
                seconds(target.saturating_mul(HOLD_BACK)),
                seconds(part_target.saturating_mul(PART_HOLD_BACK))
            );
            let _ = writeln!(text, "#EXT-X-PART-INF:PART-TARGET={}", seconds(part_target));
        }
        let first = self.segments.front().or(self.open.as_ref()).map_or(0, |segment| segment.number);
        let _ = writeln!(text, "#EXT-X-MEDIA-SEQUENCE:{first}");
        match self.kind {
            Kind::Live => {
                let _ = writeln!(text, "#EXT-X-DISCONTINUITY-SEQUENCE:{}", self.discontinuities);
            }
            Kind::Event => text.push_str("#EXT-X-PLAYLIST-TYPE:EVENT\n"),
            Kind::Vod => text.push_str("#EXT-X-PLAYLIST-TYPE:VOD\n"),
        }
        if self.is_independent {
            text.push_str("#EXT-X-INDEPENDENT-SEGMENTS\n");
        }
        if skipped > 0 {
            let _ = writeln!(text, "#EXT-X-SKIP:SKIPPED-SEGMENTS={skipped}");
        }
        let with_parts = self.target_micros().saturating_mul(HOLD_BACK);
        let (mut map, mut behind) = (None, self.behind());
        for (place, segment) in self.segments.iter().enumerate() {
            behind -= segment.duration;
            if place >= skipped {
                self.head(&mut text, segment, map);
                if behind < with_parts {
                    self.parts(&mut text, segment);
                }
                self.segment(&mut text, segment);
            }
            map = Some(segment.map);
        }
        if let Some(open) = &self.open {
            self.head(&mut text, open, map);
            self.parts(&mut text, open);
        }
        if let Some((number, part)) = self.hint() {
            let _ = writeln!(text, "#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"{number}.{part}.m4s{}\"", self.version(None));
        }
        if self.is_over {
            text.push_str("#EXT-X-ENDLIST\n");
        }
        text
    }

    /// What stands before a segment and its parts; `map` is that of the segment before.
    fn head(&self, text: &mut String, segment: &Listed, map: Option<u64>) {
        if segment.is_discontinuous {
            text.push_str("#EXT-X-DISCONTINUITY\n");
        }
        if self.form == Form::Mp4 && (segment.is_discontinuous || map != Some(segment.map)) {
            let version = self.version(segment.map_version.as_deref());
            let _ = writeln!(text, "#EXT-X-MAP:URI=\"init-{}.mp4{version}\"", segment.map);
        }
        if let Some(time) = segment.time {
            let _ = writeln!(text, "#EXT-X-PROGRAM-DATE-TIME:{}", time_text(time));
        }
    }

    fn parts(&self, text: &mut String, segment: &Listed) {
        for (place, part) in segment.parts.iter().enumerate() {
            let independent = if part.is_independent { ",INDEPENDENT=YES" } else { "" };
            let (number, duration) = (segment.number, seconds(part.duration));
            let version = self.version(segment.version.as_deref());
            let _ =
                writeln!(text, "#EXT-X-PART:DURATION={duration},URI=\"{number}.{place}.m4s{version}\"{independent}");
        }
    }

    fn segment(&self, text: &mut String, segment: &Listed) {
        if segment.is_gap {
            text.push_str("#EXT-X-GAP\n");
        }
        let (length, version) = (seconds(segment.duration), self.version(segment.version.as_deref()));
        let _ = writeln!(text, "#EXTINF:{length},\n{}.{}{version}", segment.number, extension(self.form));
    }

    /// What stands behind a name.
    fn version(&self, own: Option<&str>) -> String {
        let version = own.unwrap_or(&self.version);
        if version.is_empty() { String::new() } else { format!("?v={version}") }
    }
}

/// How the names of segments end.
pub const fn extension(form: Form) -> &'static str {
    match form {
        Form::Mp4 => "m4s",
        Form::Transport => "ts",
    }
}

/// Microseconds as playlists have them.
fn seconds(micros: i64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    fn segment(number: u64, duration: i64, is_discontinuous: bool) -> Listed {
        let time = Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000 + number * 4));
        let map = u64::from(number > 2);
        let (version, map_version) = (None, None);
        Listed { number, duration, map, map_version, is_discontinuous, is_gap: false, time, version, parts: Vec::new() }
    }

    #[test]
    fn a_live_playlist_lists_the_latest_segments() {
        let mut playlist = Playlist::new(Kind::Live, Form::Mp4, Window::Segments(3), 4);
        for number in 0..3 {
            playlist.push(segment(number, 4_000_000, false));
        }
        playlist.push(segment(3, 3_960_000, true));
        insta::assert_snapshot!(playlist.text());
        playlist.push(segment(4, 4_040_000, false));
        playlist.push(segment(5, 4_000_000, false));
        let left = playlist.push(segment(6, 4_000_000, false));
        assert_eq!((left[0].number, playlist.discontinuities), (3, 1));
        playlist.is_over = true;
        playlist.is_independent = false;
        insta::assert_snapshot!(playlist.text());
    }

    #[test]
    fn a_finished_playlist_lists_all() {
        let mut playlist = Playlist::new(Kind::Vod, Form::Mp4, Window::Segments(3), 4);
        for number in 0..5 {
            let version = Some(format!("{number:08x}").into());
            let map_version = Some(format!("{:08x}", 256 + u64::from(number > 2)).into());
            let segment = Listed { time: None, version, map_version, ..segment(number, 2_500_000, number == 3) };
            assert!(playlist.push(segment).is_empty());
        }
        playlist.is_over = true;
        insta::assert_snapshot!(playlist.text());
    }

    #[test]
    fn parts_are_listed_as_they_come() {
        let mut playlist = Playlist::new(Kind::Live, Form::Mp4, Window::Segments(12), 2);
        playlist.version = "0a1b2c3d".into();
        playlist.part_target = Some(500_000);
        let part = |place: usize| ListedPart { duration: 480_000, is_independent: place == 0 };
        for number in 0..11 {
            let parts: Vec<_> = (0..4).map(part).collect();
            let segment = Listed { parts, is_gap: number == 9, ..segment(number, 1_920_000, number == 8) };
            let parts = if segment.is_gap { Vec::new() } else { segment.parts.clone() };
            playlist.push(Listed { parts, ..segment });
        }
        playlist.open = Some(Listed { parts: vec![part(0), part(1)], ..segment(11, 960_000, false) });
        insta::assert_snapshot!(playlist.text());
        insta::assert_snapshot!(playlist.update());
        assert_eq!(playlist.hint(), Some((11, 2)));
        playlist.is_over = true;
        assert_eq!(playlist.hint(), None);
    }

    #[test]
    fn a_transport_stream_has_no_initialisation() {
        let mut playlist = Playlist::new(Kind::Live, Form::Transport, Window::Segments(3), 4);
        for number in 0..3 {
            playlist.push(segment(number, 4_000_000, number == 2));
        }
        insta::assert_snapshot!(playlist.text());
    }

    proptest! {
        /// What a player that reads every version of a live playlist concludes of a segment never changes.
        #[test]
        fn numbers_stay_what_they_are(
            segments in proptest::collection::vec((500_000i64..4_400_000, any::<bool>()), 1..60),
            window in prop_oneof![(3usize..8).prop_map(Window::Segments), (1i64..40).prop_map(|s| Window::Time(s * 1_000_000))],
        ) {
            let mut playlist = Playlist::new(Kind::Live, Form::Mp4, window, 4);
            let mut discontinuities = 0;
            let mut known = Vec::new();
            for (number, (duration, is_discontinuous)) in segments.into_iter().enumerate() {
                let before = playlist.duration();
                let left = playlist.push(segment(number as u64, duration, is_discontinuous));
                discontinuities += u64::from(is_discontinuous);
                known.push((duration, discontinuities));
                prop_assert!(left.is_empty() || playlist.duration() >= 12_000_000, "{before}");
                let text = playlist.text();
                let value = |tag: &str| {
                    text.lines().find_map(|line| line.strip_prefix(tag)).map(|value| value.parse::<u64>().unwrap()).unwrap()
                };
                let mut sequence = value("#EXT-X-MEDIA-SEQUENCE:");
                let mut discontinuity = value("#EXT-X-DISCONTINUITY-SEQUENCE:");
                let mut length = 0.0f64;
                for line in text.lines() {
                    if line == "#EXT-X-DISCONTINUITY" {
                        discontinuity += 1;
                    } else if let Some(info) = line.strip_prefix("#EXTINF:") {
                        length = info.trim_end_matches(',').parse().unwrap();
                        prop_assert!(length.round() <= 4.0);
                    } else if let Some(name) = line.strip_suffix(".m4s") {
                        prop_assert_eq!(name, sequence.to_string());
                        let (duration, before) = known[usize::try_from(sequence).unwrap()];
                        prop_assert_eq!(discontinuity, before);
                        prop_assert!((length * 1e6 - duration as f64).abs() < 0.5);
                        sequence += 1;
                    }
                }
                prop_assert_eq!(sequence, number as u64 + 1);
            }
        }
    }
}
