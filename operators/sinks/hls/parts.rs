//! Where a stream is cut into parts of segments, for low latency: every so often, and where a segment ends.
//!
//! A part is on its way to players as soon as the picture behind it is there, so nothing is cut in hindsight: a segment ends
//! at the first keyframe behind its length, or where the promised length does. The picture that ends a part tells whether
//! the next part begins another segment, so a playlist can always say which part comes next. Sound goes with the pictures
//! beside it as far as it is there by then, and else with the next ones.
//!
//! Only the first segment is held until it is complete: it tells how long segments and parts are at most, which is promised
//! once and for all. Parts are a whole number of pictures, as many as there should be, and what is promised is a little more
//! than that: cameras do not count time exactly.

use std::sync::Arc;
use std::time::SystemTime;

use super::early_sound::EarlySound;
use super::segmenter::{Held, LONGEST_FIRST, Part, Rules, SHORTEST, longest, seconds};
use super::store::Promise;
use crate::item::{Item, Packet, StreamInfo, Track};
use crate::lease::Verdict;
use crate::media::fragment::Sample;
use crate::time::MediaTime;

/// How long a picture is shown where nothing tells it, in microseconds.
const PICTURE: i64 = 40_000;

/// How long parts are, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Length {
    /// A part that has this is complete.
    enough: i64,
    /// None is longer.
    most: i64,
}

impl Length {
    /// Of parts that should be no longer than `wanted`, of pictures that last `picture`.
    fn of(wanted: i64, picture: i64) -> Length {
        let picture = picture.max(1);
        // A part lasts at least 85 % of what is promised, and times are inexact: it aims at 90 to 96 %.
        let fitting = wanted.saturating_mul(96) / 100 / picture * picture;
        if fitting.saturating_mul(10) >= wanted.saturating_mul(9) {
            return Length { enough: fitting - fitting / 50, most: wanted };
        }
        let next = (wanted / picture).max(1).saturating_mul(picture);
        Length { enough: next - next / 50, most: millis(next.saturating_add(next / 10)) }
    }

    /// Of parts of which the longest is promised already.
    fn promised(most: i64) -> Length {
        Length { enough: most.saturating_mul(9) / 10, most }
    }
}

/// Rounded up to a whole millisecond.
fn millis(micros: i64) -> i64 {
    micros.saturating_add(999) / 1000 * 1000
}

/// What there is of the segment that grows, without the parts of it that have gone.
#[derive(Debug)]
struct Open {
    held: Vec<Held>,
    /// When the first picture of the segment is decoded, and the first of the next part, in microseconds.
    segment: i64,
    part: i64,
    /// When the latest picture is decoded, and how long it lasts, in microseconds.
    latest: i64,
    lasts: i64,
    /// Bytes of the whole segment so far.
    bytes: u64,
    /// The latest keyframe, and the longest time between two of them so far, in microseconds.
    key: i64,
    longest_group: i64,
    is_after_gap: bool,
    /// When the first picture of the segment is shown.
    shown: MediaTime,
}

impl Open {
    fn begin(first: &Held, is_after_gap: bool) -> Open {
        let start = first.packet.dts.as_micros();
        Open {
            held: Vec::new(),
            segment: start,
            part: start,
            latest: start,
            lasts: duration(first).unwrap_or(0),
            bytes: 0,
            key: start,
            longest_group: 0,
            is_after_gap,
            shown: first.pts,
        }
    }

    fn picture(&mut self, held: Held) {
        let decoded = held.packet.dts.as_micros();
        if held.packet.is_key && decoded > self.key {
            self.longest_group = self.longest_group.max(decoded - self.key);
            self.key = decoded;
        }
        self.lasts = duration(&held).unwrap_or(decoded - self.latest);
        self.latest = decoded;
        self.push(held);
    }

    fn push(&mut self, held: Held) {
        self.bytes = self.bytes.saturating_add(held.packet.data.len() as u64);
        self.held.push(held);
    }

    /// When the latest picture is over, as far as that is known, in microseconds.
    fn end(&self) -> i64 {
        self.latest.saturating_add(self.lasts)
    }
}

/// How long a packet says that it lasts, in microseconds.
fn duration(held: &Held) -> Option<i64> {
    held.packet.duration.map(MediaTime::as_micros).filter(|duration| *duration > 0)
}

/// Cuts one stream into parts.
pub struct PartCutter {
    rules: Rules,
    /// Microseconds that a part should last at most.
    wanted: i64,
    /// For each track whether it can be kept.
    kept: Vec<bool>,
    open: Option<Open>,
    early: EarlySound,
    /// Of what is held, without early sound.
    bytes: u64,
    is_after_gap: bool,
    has_begun: bool,
    /// The longest segment, in seconds, where that has been promised already.
    target: Option<u64>,
    /// The same, and how long parts are, once both are promised.
    promised: Option<(u64, Length)>,
    /// Segments that no keyframe begins.
    pub forced: u64,
}

impl PartCutter {
    /// `promise` is what the playlist has promised already.
    pub fn new(rules: Rules, wanted: i64, promise: Option<Promise>) -> PartCutter {
        let promised = promise.and_then(|promise| Some((promise.target, Length::promised(promise.part?))));
        PartCutter {
            rules,
            wanted,
            kept: Vec::new(),
            open: None,
            early: EarlySound::default(),
            bytes: 0,
            is_after_gap: false,
            has_begun: false,
            target: promise.map(|promise| promise.target),
            promised,
            forced: 0,
        }
    }

    /// See [`super::segmenter::Segmenter::open`].
    pub fn open(&mut self, info: &StreamInfo) {
        self.kept = info.tracks.iter().map(|track: &Track| self.rules.form.plays(track)).collect();
    }

    /// Something is missing here: what is held is complete.
    pub fn gap(&mut self) -> Vec<Part> {
        let parts = self.finish();
        self.is_after_gap = self.has_begun;
        parts
    }

    /// A part could not be published: what refers to it is of no use either.
    pub fn lost(&mut self) {
        self.open = None;
        self.bytes = 0;
        self.is_after_gap = self.has_begun;
    }

    /// Takes a packet; the parts that are complete by that. What belongs to none is settled.
    pub fn take(&mut self, item: &Item, packet: &Arc<Packet>) -> Vec<Part> {
        let held = Held::of(item, packet);
        let mut out = Vec::new();
        if !self.kept.get(packet.track).copied().unwrap_or(false) {
            held.ack.settle(Verdict::Filtered);
        } else if packet.track == 0 {
            self.picture(held, &mut out);
        } else {
            self.sound(held);
            if self.bytes > self.rules.most_bytes {
                // No picture has come for so long that there is nothing to cut at.
                out.extend(self.gap());
            }
        }
        out
    }

    /// Nothing more comes for what is held.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut out = Vec::new();
        self.promise(None, &mut out);
        self.early.let_go();
        if let Some(open) = &self.open {
            let end = open.end();
            self.cut(end, None, true, &mut out);
        }
        // Sound that is ahead of the last picture goes with it.
        self.open = None;
        self.bytes = 0;
        out
    }

    fn sound(&mut self, held: Held) {
        if let Some(open) = &mut self.open {
            self.bytes += held.packet.data.len() as u64;
            open.push(held);
        } else {
            self.early.push(held, self.rules.most_bytes);
        }
    }

    fn picture(&mut self, held: Held, out: &mut Vec<Part>) {
        if self.open.is_none() {
            if !held.packet.is_key {
                // Nothing can be decoded before the first keyframe.
                held.ack.settle(Verdict::Filtered);
                return;
            }
            self.begin(held);
            return;
        }
        if self.ends_segment(&held) {
            self.end_segment(&held, out);
        } else if self.ends_part(&held) {
            self.cut(held.packet.dts.as_micros(), Some(&held), false, out);
        }
        self.bytes += held.packet.data.len() as u64;
        if let Some(open) = &mut self.open {
            open.picture(held);
        }
    }

    /// Whether a picture begins another segment.
    fn ends_segment(&self, next: &Held) -> bool {
        let Some(open) = &self.open else { return false };
        let decoded = next.packet.dts.as_micros();
        if next.packet.is_key && self.rules.is_due(decoded - open.segment) {
            return true;
        }
        let limit = match self.promised.map(|(target, _)| target).or(self.target) {
            Some(target) => i64::try_from(target).unwrap_or(i64::MAX).saturating_mul(1_000_000),
            None => self.rules.length.saturating_mul(3).max(LONGEST_FIRST),
        };
        let lasts = duration(next).unwrap_or(decoded - open.latest);
        let bytes = open.bytes.saturating_add(next.packet.data.len() as u64);
        // A quarter is left for the sound that comes before the next picture.
        decoded.saturating_add(lasts) - open.segment > limit || bytes > self.rules.most_bytes / 4 * 3
    }

    /// Whether a picture begins another part of the same segment.
    fn ends_part(&self, next: &Held) -> bool {
        let (Some(open), Some((_, length))) = (&self.open, self.promised) else { return false };
        let decoded = next.packet.dts.as_micros();
        let lasts = duration(next).unwrap_or(decoded - open.latest);
        let so_far = decoded - open.part;
        so_far > 0 && (so_far >= length.enough || so_far.saturating_add(lasts) > length.most)
    }

    fn end_segment(&mut self, next: &Held, out: &mut Vec<Part>) {
        let Some(open) = &self.open else { return };
        let decoded = next.packet.dts.as_micros();
        let most = self.promised.map(|(target, _)| target).or(self.target).map_or(LONGEST_FIRST, longest);
        // A hole that nobody has announced.
        let is_hole = decoded - open.latest > most;
        let end = if is_hole { open.end().min(decoded) } else { decoded };
        self.promise(Some((next, end)), out);
        self.forced += u64::from(!next.packet.is_key);
        self.cut(end, Some(next), true, out);
        let held = self.open.take().map(|open| open.held).unwrap_or_default();
        let mut open = Open::begin(next, is_hole);
        held.into_iter().for_each(|sound| open.push(sound));
        self.open = Some(open);
    }

    fn begin(&mut self, first: Held) {
        let mut open = Open::begin(&first, std::mem::take(&mut self.is_after_gap));
        for sound in self.early.beside(&first, self.has_begun) {
            self.bytes += sound.packet.data.len() as u64;
            open.push(sound);
        }
        self.bytes += first.packet.data.len() as u64;
        open.picture(first);
        self.has_begun = true;
        self.open = Some(open);
    }

    /// The first segment is complete, and tells what can be promised; then its parts are cut. `next` is the picture behind
    /// it, and when the segment ends, in microseconds.
    fn promise(&mut self, next: Option<(&Held, i64)>, out: &mut Vec<Part>) {
        if self.promised.is_some() {
            return;
        }
        let Some(mut first) = self.open.take() else { return };
        // All of it is there: sound that came late goes with the pictures beside it.
        first.held.sort_by_key(|held| held.packet.dts.as_micros());
        let end = next.map_or(first.end(), |(_, end)| end);
        let pictures = first.held.iter().filter(|held| held.packet.track == 0);
        let mut decoded: Vec<i64> = pictures.map(|held| held.packet.dts.as_micros()).collect();
        decoded.extend(next.map(|(_, end)| end));
        let mut intervals: Vec<i64> =
            decoded.windows(2).map(|pair| pair[1] - pair[0]).filter(|between| *between > 0).collect();
        intervals.sort_unstable();
        let fallback = if first.lasts > 0 { first.lasts } else { PICTURE };
        let picture = intervals.get(intervals.len() / 2).copied().unwrap_or(fallback);
        let last_group = next.filter(|(next, _)| next.packet.is_key).map_or(0, |_| end - first.key);
        let group = Some(first.longest_group.max(last_group)).filter(|group| *group > 0).unwrap_or(self.rules.length);
        let by_this = seconds(self.rules.length.saturating_add(group).max(end - first.segment));
        let target = self.target.unwrap_or(by_this);
        self.promised = Some((target, Length::of(self.wanted, picture)));
        // What it holds comes once more.
        (self.bytes, self.is_after_gap, self.has_begun) = (0, first.is_after_gap, false);
        let begins = first.held.iter().position(|held| held.packet.track == 0).unwrap_or(0);
        let mut early = Vec::new();
        for (place, held) in first.held.into_iter().enumerate() {
            if place < begins {
                early.push(held);
            } else if held.packet.track != 0 {
                self.sound(held);
            } else if self.open.is_some() {
                self.picture(held, out);
            } else {
                early.drain(..).for_each(|sound| self.sound(sound));
                self.begin(held);
            }
        }
    }

    /// Ends the part that grows at `end`, in microseconds. `next` is the first picture of the one behind it.
    fn cut(&mut self, end: i64, next: Option<&Held>, completes: bool, out: &mut Vec<Part>) {
        let (Some(open), Some((target, length))) = (&mut self.open, self.promised) else { return };
        let mut stays = Vec::new();
        let (mut samples, mut acks) = (Vec::new(), Vec::new());
        let mut first: Option<(MediaTime, SystemTime, bool)> = None;
        let mut has_leading = false;
        for held in std::mem::take(&mut open.held) {
            let is_picture = held.packet.track == 0;
            // Of sound that is ahead of the last picture of all, there is no other place.
            if !is_picture && next.is_some() && held.packet.dts.as_micros() >= end {
                stays.push(held);
                continue;
            }
            has_leading |= is_picture && held.pts < open.shown;
            if is_picture && first.is_none() {
                first = Some((held.pts, held.time, held.packet.is_key));
            }
            self.bytes = self.bytes.saturating_sub(held.packet.data.len() as u64);
            samples.push(Sample { packet: held.packet, pts: held.pts });
            acks.push(held.ack);
        }
        let following = |track: usize| match track {
            0 => next.map(|next| next.packet.dts),
            _ => stays.iter().find(|held| held.packet.track == track).map(|held| held.packet.dts),
        };
        let following: Vec<_> = (0..self.kept.len()).map(following).collect();
        let is_first = open.part == open.segment;
        let duration = (end - open.part).clamp(SHORTEST, length.most);
        open.held = stays;
        open.part = next.map_or(end, |next| next.packet.dts.as_micros());
        let Some((start, time, is_independent)) = first else { return };
        out.push(Part {
            samples,
            acks,
            following,
            start,
            duration,
            is_after_gap: is_first && open.is_after_gap,
            is_independent,
            has_leading,
            time,
            target: Some(target),
            part_target: Some(length.most),
            completes,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use bytes::Bytes;
    use proptest::prelude::*;

    use crate::item::Payload;
    use crate::lease::{Account, Counts};
    use crate::media::fragment::Form;
    use crate::testing::item;

    const SECOND: i64 = 1_000_000;
    const RULES: Rules = Rules { length: 2 * SECOND, promises: true, most_bytes: 1 << 20, form: Form::Mp4 };

    /// A cutter of pictures and sound, into parts of half a second.
    fn cutter(rules: Rules) -> PartCutter {
        PartCutter { kept: vec![true, true], ..PartCutter::new(rules, SECOND / 2, None) }
    }

    /// Gives it a packet and lets go of it, as the engine does.
    fn give(cutter: &mut PartCutter, track: usize, micros: i64, is_key: bool) -> (Vec<Part>, Arc<Account>) {
        let time = MediaTime::from_micros(micros);
        let data = Bytes::from(vec![0; 10]);
        let packet = Arc::new(Packet { track, is_key, dts: time, duration: None, data });
        let (item, account) = item(0, time, Payload::Packet(packet.clone()));
        let parts = cutter.take(&item, &packet);
        item.lease.ack.release();
        (parts, account)
    }

    /// Twenty-five pictures a second, a keyframe each second.
    fn pictures(cutter: &mut PartCutter, numbers: std::ops::Range<i64>) -> Vec<Part> {
        numbers.flat_map(|number| give(cutter, 0, number * 40_000, number % 25 == 0).0).collect()
    }

    #[test]
    fn parts_are_as_long_as_whole_pictures_allow() {
        for (wanted, picture, enough, most) in [
            // Twelve, fourteen and eleven pictures within half a second, and a little to spare.
            (500_000, 40_000, 480_000, 500_000),
            (500_000, 33_333, 466_662, 500_000),
            (500_000, 41_708, 458_788, 500_000),
            // Five of a tenth of a second are all of it: a little more is promised.
            (500_000, 100_000, 500_000, 550_000),
            (500_000, 200_000, 400_000, 440_000),
            // One picture a second.
            (500_000, 1_000_000, 1_000_000, 1_100_000),
        ] {
            let length = Length::of(wanted, picture);
            assert_eq!((length.enough, length.most), (enough - enough / 50, most), "{wanted} {picture}");
            assert!(length.enough * 100 >= length.most * 85, "{length:?}");
        }
    }

    #[test]
    fn the_first_segment_tells_what_is_promised_and_parts_come_at_once_then() {
        let mut cutter = cutter(RULES);
        assert!(pictures(&mut cutter, 0..50).is_empty());
        let first = pictures(&mut cutter, 50..51);
        let durations: Vec<i64> = first.iter().map(|part| part.duration).collect();
        assert_eq!(durations, [480_000, 480_000, 480_000, 480_000, 80_000]);
        assert_eq!(first.iter().map(|part| part.completes).collect::<Vec<_>>(), [false, false, false, false, true]);
        assert_eq!((first[0].target, first[0].part_target), (Some(3), Some(500_000)));
        assert!(first[0].is_independent && !first[1].is_independent);
        assert!(pictures(&mut cutter, 51..62).is_empty());
        let next = pictures(&mut cutter, 62..63);
        assert_eq!((next.len(), next[0].samples.len(), next[0].duration), (1, 12, 480_000));
        assert_eq!(next[0].following[0], Some(MediaTime::from_micros(62 * 40_000)));
        let rest = cutter.finish();
        assert_eq!((rest.len(), rest[0].completes, rest[0].samples.len()), (1, true, 1));
        assert_eq!(cutter.bytes, 0);
    }

    #[test]
    fn sound_goes_with_the_pictures_beside_it_or_with_the_next() {
        let mut cutter = cutter(RULES);
        give(&mut cutter, 1, 0, true);
        pictures(&mut cutter, 0..51);
        // Beside the pictures, and ahead of them.
        give(&mut cutter, 1, 2_100_000, true);
        give(&mut cutter, 1, 2_600_000, true);
        let parts = pictures(&mut cutter, 51..63);
        let heard = |part: &Part| -> Vec<i64> {
            let sound = part.samples.iter().filter(|sample| sample.packet.track == 1);
            sound.map(|sample| sample.packet.dts.as_micros()).collect()
        };
        assert_eq!(heard(&parts[0]), [2_100_000]);
        assert_eq!(parts[0].following[1], Some(MediaTime::from_micros(2_600_000)));
        assert_eq!(heard(&pictures(&mut cutter, 63..75)[0]), [2_600_000]);
        // Long after them.
        give(&mut cutter, 1, 2_700_000, true);
        let ended = pictures(&mut cutter, 75..101);
        assert_eq!(heard(&ended[0]), [2_700_000]);
    }

    #[test]
    fn behind_a_gap_and_behind_a_loss_another_segment_begins_with_a_keyframe() {
        let mut cutter = cutter(RULES);
        pictures(&mut cutter, 0..51);
        let ended = cutter.gap();
        assert!(ended.last().is_some_and(|part| part.completes));
        let (parts, account) = give(&mut cutter, 0, 60 * 40_000, false);
        assert!(parts.is_empty());
        assert_eq!(account.snapshot(), Counts { read: 1, filtered: 1, ..Counts::default() });
        let parts = pictures(&mut cutter, 75..88);
        assert!(parts[0].is_after_gap && parts[0].is_independent);
        cutter.lost();
        let parts = pictures(&mut cutter, 88..113);
        assert!(parts[0].is_after_gap && parts[0].is_independent);
        assert_eq!(parts[0].start, MediaTime::from_micros(100 * 40_000));
    }

    #[test]
    fn a_target_that_players_know_holds_for_other_parts_too() {
        let promise = Promise { target: 2, part: None };
        let mut cutter = PartCutter {
            kept: vec![true, true],
            ..PartCutter::new(Rules { length: 3 * SECOND, ..RULES }, SECOND / 2, Some(promise))
        };
        let mut parts = pictures(&mut cutter, 0..200);
        parts.extend(cutter.finish());
        let mut length = 0;
        for part in &parts {
            assert_eq!((part.target, part.part_target), (Some(2), Some(500_000)));
            length += part.duration;
            assert!(length <= longest(2), "{length}");
            length = if part.completes { 0 } else { length };
        }
        assert!(parts.len() > 12);
    }

    #[test]
    fn without_a_keyframe_in_time_a_segment_begins_in_the_middle() {
        let mut cutter = cutter(RULES);
        let mut parts = pictures(&mut cutter, 0..51);
        parts.extend((51..200).flat_map(|number| give(&mut cutter, 0, number * 40_000, false).0));
        assert!(cutter.forced > 0);
        let mut length = 0;
        for part in &parts {
            length += part.duration;
            assert!(length <= longest(3), "{length}");
            length = if part.completes { 0 } else { length };
        }
    }

    proptest! {
        /// Whatever comes: every packet is in one part, in order, and parts and segments are as long as promised.
        #[test]
        fn every_packet_is_in_one_part(
            picture in 20_000i64..200_000,
            groups in proptest::collection::vec((1i64..80, any::<bool>(), -4i64..40, 0i64..9), 1..30),
            most_bytes in prop_oneof![Just(1u64 << 20), Just(1_000)],
        ) {
            let mut cutter = cutter(Rules { most_bytes, ..RULES });
            let (mut now, mut given, mut parts) = (0i64, 0, Vec::new());
            for (pictures, gap, sound_lag, jitter) in groups {
                if gap {
                    parts.extend(cutter.gap());
                }
                for number in 0..pictures {
                    now += picture + if number % 2 == 0 { jitter * 200 } else { -jitter * 200 };
                    parts.extend(give(&mut cutter, 0, now, number == 0).0);
                    given += 1;
                    let heard = now - sound_lag * 20_000;
                    if heard > 0 {
                        parts.extend(give(&mut cutter, 1, heard, true).0);
                    }
                }
            }
            parts.extend(cutter.finish());
            let shown: Vec<i64> = parts
                .iter()
                .flat_map(|part| &part.samples)
                .filter(|sample| sample.packet.track == 0)
                .map(|sample| sample.pts.as_micros())
                .collect();
            prop_assert_eq!(shown.len(), given);
            prop_assert!(shown.windows(2).all(|pair| pair[0] < pair[1]));
            let promised = (parts[0].target, parts[0].part_target);
            let mut segment = 0;
            for (place, part) in parts.iter().enumerate() {
                prop_assert_eq!((part.target, part.part_target), promised);
                let most = part.part_target.unwrap();
                prop_assert!(part.duration <= most, "{} {most}", part.duration);
                // Pictures of a fifth of a second cannot fill a part as evenly as shorter ones.
                let is_even = picture <= most / 10;
                prop_assert!(part.completes || !is_even || part.duration * 100 >= most * 85, "{} {most}", part.duration);
                prop_assert!(!part.is_after_gap || part.is_independent);
                prop_assert!(place > 0 || part.is_independent);
                prop_assert!(part.acks.len() == part.samples.len());
                segment += part.duration;
                prop_assert!(segment <= longest(part.target.unwrap()), "{segment}");
                segment = if part.completes { 0 } else { segment };
            }
            prop_assert!(parts.last().unwrap().completes);
            prop_assert_eq!(cutter.bytes, 0);
        }
    }
}
