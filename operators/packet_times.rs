//! Repairs the times of packets, of all tracks of a stream together.
//!
//! A muxer wants decoding times that rise in each track. Presentation times stay as the input says but for one offset
//! for the whole stream: the input's clock is moved so that the first picture is shown at zero, and moved again where it
//! jumps. Tracks reach such a place one after the other, so each takes the new offset over when its own packets do.
//! A stamp that is wrong alone is moved alone.

use crate::time::{MediaTime, TimeBase};
use crate::timestamps::Repair;

/// One turn of the 33-bit clock of MPEG-TS, and the base in which it counts.
const WRAP: i64 = 1 << 33;
const WRAP_BASE: (u32, u32) = (1, 90_000);
/// A stamp that lies further back than this is a clock that was set back; one that lies nearer is wrong alone.
const SET_BACK_SECONDS: i64 = 1;
/// A step forward that is longer is a broken clock: 30 days.
const ABSURD_SECONDS: i64 = 30 * 24 * 3600;
/// No clock counts that far; a stamp that does says nothing.
const MOST_TICKS: i64 = 1 << 60;
/// No codec holds back more pictures.
const MOST_DELAY: usize = 16;

/// What is known of a track beside its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackNature {
    pub base: TimeBase,
    /// Ticks from packet to packet where nothing else is known; at least one.
    pub nominal: i64,
    /// How many pictures are held back until they can be shown in order.
    pub delay: usize,
}

/// Repaired times of a packet, in ticks of its track since the stream's first picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketStamp {
    pub pts: i64,
    /// Larger than that of the track's packet before, and never larger than `pts`.
    pub dts: i64,
    pub repair: Option<Repair>,
}

/// The times of one stream.
#[derive(Clone, Debug)]
pub struct PacketTimes {
    tracks: Vec<TrackTimes>,
    /// What is added to the input's stamps.
    offset: MediaTime,
    /// How often the offset has changed.
    epoch: u64,
    /// What the input says of the first picture.
    origin: MediaTime,
    longest_seconds: i64,
}

#[derive(Clone, Debug)]
struct TrackTimes {
    nature: TrackNature,
    /// In the track's own ticks, rounded once.
    offset: i64,
    epoch: u64,
    /// The decoding time before, and how long its packet lasts.
    last: Option<(i64, i64)>,
    /// Where the last packet to be shown ends.
    end: i64,
    /// The presentation times that may still be the next decoding time, as the input says them.
    window: Vec<i64>,
}

impl PacketTimes {
    /// `origin` is what the input says of the first picture.
    pub fn new(tracks: &[TrackNature], origin: MediaTime) -> PacketTimes {
        let offset = MediaTime::new(origin.ticks.saturating_neg(), origin.base);
        let track = |nature: &TrackNature| TrackTimes {
            nature: TrackNature { nominal: nature.nominal.max(1), ..*nature },
            offset: offset.ticks_in(nature.base),
            epoch: 0,
            last: None,
            end: 0,
            window: Vec::new(),
        };
        let tracks = tracks.iter().map(track).collect();
        PacketTimes { tracks, offset, epoch: 0, origin, longest_seconds: ABSURD_SECONDS }
    }

    /// A stamp that lies further than this after the one before it is a broken clock: an input that is watched cannot
    /// pause that long.
    #[must_use]
    pub fn longest_step_of(self, longest: std::time::Duration) -> PacketTimes {
        let seconds = i64::try_from(longest.as_secs()).unwrap_or(ABSURD_SECONDS).clamp(1, ABSURD_SECONDS);
        PacketTimes { longest_seconds: seconds, ..self }
    }

    /// The input starts again from its beginning: its first picture follows when all of the round before was shown.
    pub fn restart(&mut self) {
        let ends = self.tracks.iter().map(|track| MediaTime::new(track.end, track.nature.base));
        let end = ends.max().unwrap_or(MediaTime::ZERO);
        let ticks = end.ticks_in(self.origin.base).saturating_sub(self.origin.ticks);
        self.move_to(MediaTime::new(ticks, self.origin.base));
        let (offset, epoch) = (self.offset, self.epoch);
        for track in &mut self.tracks {
            (track.offset, track.epoch) = (offset.ticks_in(track.nature.base), epoch);
            track.window.clear();
        }
    }

    /// Where a stamp of `track` lies if nothing needs repair.
    pub fn placed(&self, track: usize, said: i64) -> i64 {
        self.tracks.get(track).map_or(said, |track| said.saturating_add(track.offset))
    }

    fn move_to(&mut self, offset: MediaTime) {
        self.offset = offset;
        self.epoch += 1;
    }

    /// The times of the next packet of `track` in decoding order, from what the input says of it in native ticks.
    pub fn stamp(&mut self, track: usize, pts: Option<i64>, dts: Option<i64>, duration: Option<i64>) -> PacketStamp {
        let (offset, epoch, longest) = (self.offset, self.epoch, self.longest_seconds);
        let believable = |ticks: &i64| (-MOST_TICKS..MOST_TICKS).contains(ticks);
        let (pts, dts) = (pts.filter(believable), dts.filter(believable));
        let Some(times) = self.tracks.get_mut(track) else { return PacketStamp { pts: 0, dts: 0, repair: None } };
        // Nothing is shown for longer than a clock may step.
        let longest_shown = times.nature.ticks(ABSURD_SECONDS);
        let step = duration.filter(|ticks| (1..=longest_shown).contains(ticks)).unwrap_or(times.nature.nominal);
        let said = times.decoding_time(pts, dts, step);
        let next = times.last.map(|(last, step)| last.saturating_add(step));
        let Some(said) = said else {
            let dts = next.unwrap_or(0);
            return times.settle(dts, dts, step, Some(Repair::Missing));
        };
        let missing = pts.is_none().then_some(Repair::Missing);
        let shown = |offset: i64, dts: i64| pts.map_or(dts, |pts| pts.saturating_add(offset));
        let Some((last, _)) = times.last else {
            (times.offset, times.epoch) = (offset.ticks_in(times.nature.base), epoch);
            let dts = said.saturating_add(times.offset);
            return times.settle(shown(times.offset, dts), dts, step, missing);
        };
        let follows = |offset: i64| {
            let dts = said.saturating_add(offset);
            (last < dts && dts.saturating_sub(last) <= times.nature.ticks(longest)).then_some(dts)
        };
        if let Some(dts) = follows(times.offset) {
            return times.settle(shown(times.offset, dts), dts, step, missing);
        }
        // Another track was there first, and said how the clock has jumped.
        let adopted = offset.ticks_in(times.nature.base);
        if times.epoch < epoch
            && let Some(dts) = follows(adopted)
        {
            (times.offset, times.epoch) = (adopted, epoch);
            return times.settle(shown(adopted, dts), dts, step, missing);
        }
        let placed = said.saturating_add(times.offset);
        let back = last.saturating_sub(placed);
        if (0..times.nature.ticks(SET_BACK_SECONDS)).contains(&back) {
            let repair = if back == 0 { Repair::Duplicate } else { Repair::Backward };
            let dts = last.saturating_add(1);
            let pts = shown(times.offset, dts).max(dts);
            return times.settle(pts, dts, step, Some(repair));
        }
        let base = times.nature.base;
        let wrapped = times.offset.saturating_add(WRAP);
        let (moved, repair) = match follows(wrapped) {
            Some(dts) if (base.numerator(), base.denominator()) == WRAP_BASE && dts - last < WRAP / 2 => {
                (wrapped, Repair::Wrap)
            }
            _ => {
                let repair = if back > 0 { Repair::Backward } else { Repair::Absurd };
                (next.unwrap_or(0).saturating_sub(said), repair)
            }
        };
        let dts = said.saturating_add(moved).max(last.saturating_add(1));
        (times.offset, times.epoch) = (moved, epoch + 1);
        let stamp = times.settle(shown(moved, dts).max(dts), dts, step, Some(repair));
        self.move_to(MediaTime::new(moved, base));
        stamp
    }
}

impl TrackNature {
    fn ticks(&self, seconds: i64) -> i64 {
        let ticks = i128::from(seconds) * i128::from(self.base.denominator()) / i128::from(self.base.numerator());
        i64::try_from(ticks).unwrap_or(i64::MAX).max(1)
    }
}

impl TrackTimes {
    /// When the packet is decoded, as the input says or as the presentation times around it allow: of those that are
    /// still to come, the first one is decoded no later than it is shown.
    fn decoding_time(&mut self, pts: Option<i64>, dts: Option<i64>, step: i64) -> Option<i64> {
        let delay = self.nature.delay.min(MOST_DELAY);
        if let Some(pts) = pts {
            if self.window.is_empty() {
                let before = (1..=delay).rev().map(|count| pts.saturating_sub(step.saturating_mul(count as i64)));
                self.window.extend(before);
            }
            let place = self.window.partition_point(|other| *other <= pts);
            self.window.insert(place, pts);
            let first = self.window.remove(0);
            return dts.or(Some(first));
        }
        dts
    }

    fn settle(&mut self, pts: i64, dts: i64, step: i64, repair: Option<Repair>) -> PacketStamp {
        // Decoded after it is shown: the decoding time is what nobody sees.
        let lowest = self.last.map_or(i64::MIN, |(last, _)| last.saturating_add(1));
        let (dts, repair) =
            if dts <= pts { (dts, repair) } else { (pts.max(lowest), repair.or(Some(Repair::Backward))) };
        let pts = pts.max(dts);
        self.last = Some((dts, step));
        self.end = self.end.max(pts.saturating_add(step));
        PacketStamp { pts, dts, repair }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn base(denominator: u32) -> TimeBase {
        TimeBase::new(1, denominator).unwrap()
    }

    fn video(delay: usize) -> TrackNature {
        TrackNature { base: base(90_000), nominal: 3000, delay }
    }

    fn sound() -> TrackNature {
        TrackNature { base: base(48_000), nominal: 1024, delay: 0 }
    }

    fn stamps(times: &mut PacketTimes, track: usize, packets: &[(Option<i64>, Option<i64>)]) -> Vec<(i64, i64)> {
        let stamp = |(pts, dts): &(Option<i64>, Option<i64>)| {
            let stamp = times.stamp(track, *pts, *dts, None);
            (stamp.pts, stamp.dts)
        };
        packets.iter().map(stamp).collect()
    }

    #[test]
    fn the_first_picture_is_at_zero_and_sound_keeps_its_distance() {
        let mut times = PacketTimes::new(&[video(2), sound()], MediaTime::new(9_126_000, base(90_000)));
        let shown = [(9_126_000, 9_108_000), (9_144_000, 9_117_000), (9_135_000, 9_126_000)];
        let shown = shown.map(|(pts, dts)| (Some(pts), Some(dts)));
        assert_eq!(stamps(&mut times, 0, &shown), [(0, -18_000), (18_000, -9000), (9000, 0)]);
        // 1920 ticks of 1/90000 s before the first picture are 1024 samples.
        let heard = 9_124_080 * 48_000 / 90_000;
        assert_eq!(stamps(&mut times, 1, &[(Some(heard), Some(heard))]), [(-1024, -1024)]);
    }

    #[test]
    fn decoding_times_that_are_missing_follow_from_the_order() {
        // I P B B P B B, shown at 0 3 1 2 6 4 5, of which the first two lack a decoding time.
        let shown = [0, 3, 1, 2, 6, 4, 5].map(|at| at * 3000);
        let said = [None, None, Some(0), Some(3000), Some(6000), Some(9000), Some(12_000)];
        let packets: Vec<_> = shown.iter().map(|pts| Some(*pts)).zip(said).collect();
        let mut times = PacketTimes::new(&[video(2)], MediaTime::new(0, base(90_000)));
        let stamps = stamps(&mut times, 0, &packets);
        assert_eq!(stamps.iter().map(|(pts, _)| *pts).collect::<Vec<_>>(), shown);
        assert_eq!(stamps.iter().map(|(_, dts)| *dts / 3000).collect::<Vec<_>>(), [-2, -1, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_jump_of_the_clock_moves_all_tracks_by_the_same() {
        let mut times = PacketTimes::new(&[video(0), sound()], MediaTime::new(0, base(90_000)));
        assert_eq!(stamps(&mut times, 0, &[(Some(0), None), (Some(3000), None)]), [(0, 0), (3000, 3000)]);
        assert_eq!(stamps(&mut times, 1, &[(Some(0), None), (Some(1024), None)]), [(0, 0), (1024, 1024)]);
        // The clock is set back to 1000 s before; the sound gets there later, and lies as before beside the pictures.
        let stamp = times.stamp(0, Some(-90_000_000), None, None);
        assert_eq!((stamp.pts, stamp.repair), (6000, Some(Repair::Backward)));
        assert_eq!(times.stamp(1, Some(2048), None, None), PacketStamp { pts: 2048, dts: 2048, repair: None });
        // 6000 ticks are 3200 samples, and the sound lies 1024 behind that.
        let stamp = times.stamp(1, Some(-48_000_000 + 1024), None, None);
        assert_eq!((stamp.pts, stamp.repair), (4224, None));
    }

    #[test]
    fn a_wrong_stamp_is_moved_alone() {
        let mut times = PacketTimes::new(&[video(0)], MediaTime::new(0, base(90_000)));
        let packets = [0, 3000, 3000, 2000, 6000].map(|pts| (Some(pts), Some(pts)));
        assert_eq!(stamps(&mut times, 0, &packets), [(0, 0), (3000, 3000), (3001, 3001), (3002, 3002), (6000, 6000)]);
        assert_eq!(times.stamp(0, None, None, None).repair, Some(Repair::Missing));
    }

    #[test]
    fn a_clock_of_33_bits_wraps_for_all_tracks() {
        let end = 1i64 << 33;
        let mut times = PacketTimes::new(&[video(0), video(0)], MediaTime::new(end - 3000, base(90_000)));
        times.stamp(0, Some(end - 3000), None, None);
        times.stamp(1, Some(end - 3000), None, None);
        let wrapped = times.stamp(0, Some(0), None, None);
        assert_eq!((wrapped.pts, wrapped.repair), (3000, Some(Repair::Wrap)));
        assert_eq!(times.stamp(1, Some(1500), None, None), PacketStamp { pts: 4500, dts: 4500, repair: None });
    }

    #[test]
    fn a_loop_goes_on_behind_the_longest_track() {
        let mut times = PacketTimes::new(&[video(1), sound()], MediaTime::new(500, base(90_000)));
        for _ in 0..2 {
            let start = times.stamp(0, Some(500), Some(-2500), None);
            assert_eq!(start.pts - start.dts, 3000);
            times.stamp(0, Some(3500), Some(500), None);
            let heard = times.stamp(1, Some(267), None, Some(9600));
            assert_eq!(heard.repair, None);
            times.restart();
        }
        // 9600 samples are 18000 ticks, longer than two pictures.
        assert_eq!(times.stamp(0, Some(500), Some(-2500), None).pts, 36_000);
    }

    #[test]
    fn a_length_that_no_packet_has_is_not_believed() {
        let mut times = PacketTimes::new(&[video(16)], MediaTime::new(0, base(90_000)));
        let stamp = times.stamp(0, Some(0), None, Some(1 << 59));
        assert_eq!((stamp.pts, stamp.dts), (0, -16 * 3000));
    }

    proptest! {
        #[test]
        fn whatever_comes_decoding_times_rise_and_are_no_later_than_shown(
            packets in proptest::collection::vec(
                (0usize..2, any::<Option<i64>>(), proptest::option::of(-10_000i64..10_000), any::<Option<i64>>(), any::<u8>()),
                1..200,
            ),
            delay in 0usize..20,
        ) {
            let mut times = PacketTimes::new(&[video(delay), sound()], MediaTime::new(7, base(1000)));
            let mut last = [i64::MIN; 2];
            for (track, far, near, duration, what) in packets {
                if what == 0 {
                    times.restart();
                }
                let (pts, dts) = if what % 2 == 0 { (near, far) } else { (near.or(far), near) };
                let stamp = times.stamp(track, pts, dts, duration);
                prop_assert!(last[track] < stamp.dts || last[track] == i64::MAX, "{} after {}", stamp.dts, last[track]);
                prop_assert!(stamp.dts <= stamp.pts);
                last[track] = stamp.dts;
            }
        }

        #[test]
        fn clean_times_are_moved_by_the_start_alone(
            start in -(1i64 << 40)..(1 << 40),
            steps in proptest::collection::vec((1i64..1_000_000, 0i64..100_000), 1..100),
        ) {
            let mut times = PacketTimes::new(&[video(0)], MediaTime::new(start, base(90_000)));
            let mut dts = start;
            for (step, ahead) in steps {
                let stamp = times.stamp(0, Some(dts + ahead), Some(dts), Some(step));
                prop_assert_eq!(stamp, PacketStamp { pts: dts + ahead - start, dts: dts - start, repair: None });
                dts += step;
            }
        }
    }
}
