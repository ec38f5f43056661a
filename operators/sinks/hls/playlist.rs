//! The text of a playlist (RFC 8216): what it lists, and what has left it.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::SystemTime;

use serde::Deserialize;

use crate::item::time_text;

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

/// A segment as it is listed.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub number: u64,
    /// Microseconds.
    pub duration: i64,
    /// The number of its initialisation.
    pub map: u64,
    pub is_discontinuous: bool,
    /// When its first picture was taken, where that is known.
    pub time: Option<SystemTime>,
    /// What of its content is in its address, where the number alone may come to mean something else.
    pub version: Option<String>,
}

/// What a playlist lists.
#[derive(Clone, Debug)]
pub struct Playlist {
    pub kind: Kind,
    pub window: Window,
    /// Seconds; no segment is longer, as rounded.
    pub target: u64,
    pub segments: VecDeque<Listed>,
    /// Discontinuities that have left it.
    pub discontinuities: u64,
    /// Whether decoding may begin with every segment that there was.
    pub is_independent: bool,
    pub is_over: bool,
    /// The longest that it has been, in microseconds.
    pub longest: i64,
}

/// A live playlist lists at least so many times its target duration.
const LEAST_TARGETS: i64 = 3;

impl Playlist {
    pub fn new(kind: Kind, window: Window, target: u64) -> Playlist {
        Playlist {
            kind,
            window,
            target,
            segments: VecDeque::new(),
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

    /// The playlist as it is served.
    pub fn text(&self) -> String {
        let mut text = String::from("#EXTM3U\n#EXT-X-VERSION:7\n");
        // Writing into a string never fails.
        let _ = writeln!(text, "#EXT-X-TARGETDURATION:{}", self.target);
        let first = self.segments.front().map_or(0, |segment| segment.number);
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
        let mut map = None;
        for segment in &self.segments {
            if segment.is_discontinuous {
                text.push_str("#EXT-X-DISCONTINUITY\n");
            }
            let version = segment.version.as_ref().map(|version| format!("?v={version}")).unwrap_or_default();
            if segment.is_discontinuous || map != Some(segment.map) {
                map = Some(segment.map);
                let _ = writeln!(text, "#EXT-X-MAP:URI=\"init-{}.mp4{version}\"", segment.map);
            }
            if let Some(time) = segment.time {
                let _ = writeln!(text, "#EXT-X-PROGRAM-DATE-TIME:{}", time_text(time));
            }
            let (whole, fraction) = (segment.duration / 1_000_000, segment.duration % 1_000_000);
            let _ = writeln!(text, "#EXTINF:{whole}.{fraction:06},\n{}.m4s{version}", segment.number);
        }
        if self.is_over {
            text.push_str("#EXT-X-ENDLIST\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    fn segment(number: u64, duration: i64, is_discontinuous: bool) -> Listed {
        let time = Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000 + number * 4));
        let map = u64::from(number > 2);
        Listed { number, duration, map, is_discontinuous, time, version: None }
    }

    #[test]
    fn a_live_playlist_lists_the_latest_segments() {
        let mut playlist = Playlist::new(Kind::Live, Window::Segments(3), 4);
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
        let mut playlist = Playlist::new(Kind::Vod, Window::Segments(3), 4);
        for number in 0..5 {
            let version = Some(format!("{number:08x}"));
            let segment = Listed { time: None, version, ..segment(number, 2_500_000, number == 3) };
            assert!(playlist.push(segment).is_empty());
        }
        playlist.is_over = true;
        insta::assert_snapshot!(playlist.text());
    }

    proptest! {
        /// What a player that reads every version of a live playlist concludes of a segment never changes.
        #[test]
        fn numbers_stay_what_they_are(
            segments in proptest::collection::vec((500_000i64..4_400_000, any::<bool>()), 1..60),
            window in prop_oneof![(3usize..8).prop_map(Window::Segments), (1i64..40).prop_map(|s| Window::Time(s * 1_000_000))],
        ) {
            let mut playlist = Playlist::new(Kind::Live, window, 4);
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
