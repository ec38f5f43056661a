//! The timestamp sanitiser: whatever stamps a demuxer and a decoder report for one track, strictly increasing media
//! time comes out, relative to the track's first picture.
//!
//! It repairs and never fails. A clean track passes through unchanged but for the subtraction of its first stamp:
//! forward jumps of files with gaps are real time and stay. What is repaired is told to the caller, who counts it.

use std::time::Duration;

use crate::time::TimeBase;

/// Ticks after which MPEG clocks of 90 kHz start again at zero (ISO/IEC 13818-1, 33 bits).
const WRAP: i128 = 1 << 33;
const WRAP_BASE: TimeBase = match TimeBase::new(1, 90_000) {
    Some(base) => base,
    None => TimeBase::MICROSECONDS,
};

/// A forward jump of more than 30 days is a broken clock, not a gap.
const ABSURD_SECONDS: i128 = 30 * 24 * 3600;
/// In no time base is a step larger than this: a thousand such steps still fit in 64 bits.
const ABSURD_TICKS: i128 = 1 << 53;

/// What was wrong with a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It lay before the previous one: time goes on from there.
    Backward,
    /// It equalled the previous one.
    Duplicate,
    /// There was none.
    Missing,
    /// The 33-bit clock started again.
    Wrap,
    /// It lay more than 30 days after the previous one.
    Absurd,
}

impl Repair {
    /// The name under which it is counted.
    pub const fn what(self) -> &'static str {
        match self {
            Repair::Backward => "backward timestamp",
            Repair::Duplicate => "duplicate timestamp",
            Repair::Missing => "missing timestamp",
            Repair::Wrap => "timestamp wrap",
            Repair::Absurd => "absurd timestamp",
        }
    }
}

/// A sanitised stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Native ticks since the track's first picture; larger than all before.
    pub ticks: i64,
    pub repair: Option<Repair>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    /// What the input said, where it said something.
    raw: Option<i64>,
    ticks: i64,
    /// Ticks until the next picture is due.
    duration: i64,
}

/// Whether the stamps of packets, in decoding order, say where their pictures lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuity {
    Good,
    /// There is no stamp, or one that contradicts the decoding order.
    Doubtful,
    /// Decoding starts anew at an earlier time: another recording follows.
    Broken,
}

/// Watches the stamps of one track's packets. Give it each packet in decoding order.
#[derive(Clone, Debug, Default)]
pub struct PacketOrder {
    decoded: Option<i64>,
    latest: Option<i64>,
}

impl PacketOrder {
    /// The next packet: its stamp, its decoding time, and whether decoding can start there.
    pub fn next(&mut self, pts: Option<i64>, dts: Option<i64>, is_key: bool) -> Continuity {
        let repeated = dts.is_some_and(|dts| self.decoded.replace(dts).is_some_and(|before| dts <= before));
        let Some(pts) = pts else { return Continuity::Doubtful };
        let latest = self.latest.unwrap_or(i64::MIN).max(pts);
        // Nothing that is decoded before such a packet is shown after it.
        let restarted = is_key && self.latest.is_some_and(|latest| pts <= latest);
        self.latest = Some(latest);
        match (restarted, repeated) {
            (true, _) => Continuity::Broken,
            (false, true) => Continuity::Doubtful,
            (false, false) => Continuity::Good,
        }
    }
}

/// The state of one track. Give it the stamps of its pictures in presentation order.
#[derive(Clone, Debug)]
pub struct Sanitiser {
    base: TimeBase,
    nominal: i64,
    /// Ticks; a step that is longer is a broken clock.
    longest: i128,
    /// What is added to the input's stamps; `None` until there was one.
    offset: Option<i128>,
    first: Option<i64>,
    last: Option<Last>,
}

impl Sanitiser {
    /// `nominal`: ticks from one picture to the next where nothing else is known (at least one is assumed).
    pub fn new(base: TimeBase, nominal: i64) -> Sanitiser {
        let nominal = nominal.max(1);
        let ticks = ABSURD_SECONDS * i128::from(base.denominator()) / i128::from(base.numerator());
        let longest = ticks.clamp(i128::from(nominal), ABSURD_TICKS.max(i128::from(nominal)));
        Sanitiser { base, nominal, longest, offset: None, first: None, last: None }
    }

    /// A stamp that lies further than `longest` after the one before it is a broken clock: an input that is watched
    /// cannot pause that long. Never longer than without.
    #[must_use]
    pub fn longest_step_of(mut self, longest: Duration) -> Sanitiser {
        let micros = i128::try_from(longest.as_micros()).unwrap_or(i128::MAX >> 64);
        let ticks = micros * i128::from(self.base.denominator()) / (i128::from(self.base.numerator()) * 1_000_000);
        self.longest = ticks.clamp(i128::from(self.nominal), self.longest);
        self
    }

    /// The input starts again from its beginning (a loop): its first stamp follows the last one directly.
    pub fn restart(&mut self) {
        if let (Some(first), Some(_)) = (self.first, self.last) {
            self.offset = Some(self.next() - i128::from(first));
            // Stamps of the last round say nothing about those of this one.
            self.last = self.last.map(|last| Last { raw: None, ..last });
        }
    }

    /// The first picture that comes lies at `ticks`, whatever the input says of it.
    pub fn start_at(&mut self, ticks: i64) {
        self.last = Some(Last { raw: None, ticks: ticks.saturating_sub(self.nominal), duration: self.nominal });
    }

    /// What the input says of the time that lies at zero; `None` before the first picture.
    pub fn origin(&self) -> Option<i64> {
        i64::try_from(-self.offset?).ok()
    }

    /// Where a stamp of the input lies if nothing needs repair; `None` before the first picture.
    pub fn predict(&self, raw: i64) -> Option<i64> {
        i64::try_from(i128::from(raw) + self.offset?).ok()
    }

    /// Whether a picture at `ticks`, as predicted, can still come: it lies neither in the past nor absurdly far ahead.
    pub fn can_follow(&self, ticks: i64) -> bool {
        self.last.is_none_or(|last| {
            let step = i128::from(ticks) - i128::from(last.ticks);
            0 < step && step <= self.longest
        })
    }

    /// Whether a picture at `ticks`, as predicted, lies so near that others may be waited for before it is placed.
    pub fn is_near(&self, ticks: i64) -> bool {
        self.last.is_some_and(|last| i128::from(ticks) - i128::from(last.ticks) <= self.longest / 2)
    }

    /// A picture that would have needed no repair was left out: what comes next follows it.
    pub fn pass(&mut self, raw: i64, duration: Option<i64>) {
        if let Some(ticks) = self.predict(raw)
            && self.can_follow(ticks)
        {
            self.sanitise(Some(raw), duration);
        }
    }

    /// The next picture's stamp and, where the input knows it, its duration in ticks.
    pub fn sanitise(&mut self, raw: Option<i64>, duration: Option<i64>) -> Stamp {
        let (ticks, repair) = match raw {
            None => (self.next(), Some(Repair::Missing)),
            Some(raw) => self.place(raw),
        };
        // Steps are bounded by ABSURD_TICKS, so this saturates only after a thousand of the largest ones.
        let ticks = i64::try_from(ticks).unwrap_or(i64::MAX);
        let longest = i64::try_from(self.longest).unwrap_or(i64::MAX);
        let duration = duration.filter(|ticks| (1..=longest).contains(ticks)).unwrap_or(self.nominal);
        if self.first.is_none() {
            self.first = raw;
        }
        self.last = Some(Last { raw, ticks, duration });
        Stamp { ticks, repair }
    }

    fn place(&mut self, raw: i64) -> (i128, Option<Repair>) {
        let wide = i128::from(raw);
        let (Some(offset), Some(last)) = (self.offset, self.last) else {
            let ticks = self.next();
            self.offset = Some(ticks - wide);
            return (ticks, None);
        };
        let previous = i128::from(last.ticks);
        let ticks = wide + offset;
        if previous < ticks && ticks - previous <= self.longest {
            return (ticks, None);
        }
        let step = last.raw.map(|before| wide - i128::from(before) + WRAP);
        if self.base == WRAP_BASE
            && let Some(step) = step
            && (1..WRAP / 2).contains(&step)
            && step <= self.longest
        {
            self.offset = Some(offset + WRAP);
            return ((wide + offset + WRAP).max(previous + 1), Some(Repair::Wrap));
        }
        if ticks == previous && last.duration > 1 {
            return (previous + 1, Some(Repair::Duplicate));
        }
        let repair = match ticks.cmp(&previous) {
            std::cmp::Ordering::Less => Repair::Backward,
            std::cmp::Ordering::Equal => Repair::Duplicate,
            std::cmp::Ordering::Greater => Repair::Absurd,
        };
        let next = self.next();
        self.offset = Some(next - wide);
        (next, Some(repair))
    }

    /// Where the next picture is due.
    fn next(&self) -> i128 {
        self.last.map_or(0, |last| i128::from(last.ticks) + i128::from(last.duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mpeg() -> Sanitiser {
        Sanitiser::new(WRAP_BASE, 3000)
    }

    fn run(sanitiser: &mut Sanitiser, stamps: &[Option<i64>]) -> (Vec<i64>, Vec<Repair>) {
        let stamps: Vec<Stamp> = stamps.iter().map(|raw| sanitiser.sanitise(*raw, None)).collect();
        (stamps.iter().map(|stamp| stamp.ticks).collect(), stamps.iter().filter_map(|stamp| stamp.repair).collect())
    }

    #[test]
    fn gaps_of_seconds_are_real_time() {
        let stamps = [Some(900), Some(3900), Some(90_000 * 3600), Some(90_000 * 3600 + 1)];
        let (ticks, repairs) = run(&mut mpeg(), &stamps);
        assert_eq!(ticks, [0, 3000, 90_000 * 3600 - 900, 90_000 * 3600 - 899]);
        assert_eq!(repairs, []);
    }

    #[test]
    fn a_watched_input_cannot_pause_longer_than_it_is_watched() {
        let mut sanitiser = mpeg().longest_step_of(Duration::from_secs(10));
        let stamps = [Some(0), Some(900_000), Some(1_800_001), Some(1_803_001)];
        let (ticks, repairs) = run(&mut sanitiser, &stamps);
        assert_eq!(ticks, [0, 900_000, 903_000, 906_000]);
        assert_eq!(repairs, [Repair::Absurd]);
        let (_, repairs) = run(&mut mpeg().longest_step_of(Duration::MAX), &stamps);
        assert_eq!(repairs, [], "never shorter than what is asked for, never longer than without");
        assert!(sanitiser.is_near(906_000 + 450_000) && !sanitiser.is_near(906_000 + 450_001));
    }

    #[test]
    fn after_a_jump_back_time_goes_on() {
        let (ticks, repairs) = run(&mut mpeg(), &[Some(90_000), Some(93_000), Some(0), Some(3000)]);
        assert_eq!(ticks, [0, 3000, 6000, 9000]);
        assert_eq!(repairs, [Repair::Backward]);
    }

    #[test]
    fn a_duplicate_moves_alone() {
        let (ticks, repairs) = run(&mut mpeg(), &[Some(0), Some(3000), Some(3000), Some(6000)]);
        assert_eq!(ticks, [0, 3000, 3001, 6000]);
        assert_eq!(repairs, [Repair::Duplicate]);
    }

    #[test]
    fn missing_stamps_follow_at_the_nominal_rate() {
        let (ticks, repairs) = run(&mut mpeg(), &[None, None, Some(500), None, Some(6500)]);
        assert_eq!(ticks, [0, 3000, 6000, 9000, 12_000]);
        assert_eq!(repairs, [Repair::Missing, Repair::Missing, Repair::Missing]);
    }

    #[test]
    fn a_clock_of_33_bits_wraps() {
        let end = 1i64 << 33;
        let (ticks, repairs) = run(&mut mpeg(), &[Some(end - 6000), Some(end - 3000), Some(0), Some(3000)]);
        assert_eq!(ticks, [0, 3000, 6000, 9000]);
        assert_eq!(repairs, [Repair::Wrap]);
    }

    #[test]
    fn a_broken_clock_does_not_carry_the_stream_away() {
        let (ticks, repairs) = run(&mut mpeg(), &[Some(0), Some(1 << 50), Some((1 << 50) + 3000)]);
        assert_eq!(ticks, [0, 3000, 6000]);
        assert_eq!(repairs, [Repair::Absurd]);
    }

    #[test]
    fn what_was_left_out_counts_as_the_last_picture() {
        let mut sanitiser = mpeg();
        sanitiser.sanitise(Some(900), Some(3000));
        sanitiser.pass(3900, Some(3000));
        // Neither earlier than what came already nor absurd.
        sanitiser.pass(900, Some(3000));
        sanitiser.pass(1 << 50, Some(3000));
        sanitiser.restart();
        assert_eq!(sanitiser.sanitise(Some(900), Some(3000)), Stamp { ticks: 6000, repair: None });
        assert!(sanitiser.can_follow(6001) && !sanitiser.can_follow(6000) && !sanitiser.can_follow(1 << 50));
    }

    #[test]
    fn packets_tell_where_time_breaks_off() {
        use Continuity::{Broken, Doubtful, Good};
        let packets = [
            (Some(10), Some(-10), true, Good),
            (Some(40), Some(0), false, Good),
            (Some(20), Some(10), false, Good),
            (None, Some(20), false, Doubtful),
            (Some(50), None, false, Good),
            (Some(60), Some(20), false, Doubtful),
            // A recovery point with pictures that are shown before it.
            (Some(90), Some(30), true, Good),
            (Some(70), Some(40), false, Good),
            (Some(10), Some(-10), true, Broken),
        ];
        let mut order = PacketOrder::default();
        for (pts, dts, is_key, expected) in packets {
            assert_eq!(order.next(pts, dts, is_key), expected, "{pts:?}");
        }
    }

    proptest! {
        #[test]
        fn any_input_comes_out_strictly_increasing(
            input in proptest::collection::vec((any::<Option<i64>>(), any::<Option<i64>>(), any::<bool>()), 1..200),
            near in proptest::collection::vec(proptest::option::of(-10_000i64..10_000), 1..200),
            numerator in 1u32.., denominator in 1u32.., nominal in 0i64..1_000_000,
        ) {
            let base = TimeBase::new(numerator, denominator).unwrap();
            let mut sanitiser = Sanitiser::new(base, nominal);
            let mut last = -1;
            let near = near.into_iter().map(|raw| (raw, None, false));
            for (raw, duration, restart) in input.into_iter().chain(near) {
                if restart {
                    sanitiser.restart();
                }
                let stamp = sanitiser.sanitise(raw, duration);
                prop_assert!(stamp.ticks > last, "{} after {last}", stamp.ticks);
                last = stamp.ticks;
            }
        }

        #[test]
        fn clean_input_is_untouched_and_predicted(
            first in -(1i64 << 40)..(1 << 40),
            steps in proptest::collection::vec(1i64..10_000_000, 1..200),
        ) {
            let mut sanitiser = mpeg();
            let mut raw = first;
            prop_assert_eq!(sanitiser.sanitise(Some(raw), None), Stamp { ticks: 0, repair: None });
            for step in steps {
                raw += step;
                prop_assert_eq!(sanitiser.predict(raw), Some(raw - first));
                prop_assert_eq!(sanitiser.sanitise(Some(raw), None), Stamp { ticks: raw - first, repair: None });
            }
        }

        #[test]
        fn a_loop_goes_on_as_if_the_file_were_longer(
            first in -(1i64 << 40)..(1 << 40),
            steps in proptest::collection::vec(1i64..10_000_000, 1..100),
            duration in 1i64..100_000,
        ) {
            let stamps: Vec<i64> = std::iter::once(first)
                .chain(steps.iter().scan(first, |raw, step| { *raw += step; Some(*raw) })).collect();
            let mut sanitiser = mpeg();
            let mut round = |start: i64| -> Result<i64, TestCaseError> {
                for raw in &stamps {
                    let stamp = sanitiser.sanitise(Some(*raw), Some(duration));
                    prop_assert_eq!(stamp, Stamp { ticks: raw - first + start, repair: None });
                }
                sanitiser.restart();
                Ok(start + stamps.last().unwrap() - first + duration)
            };
            let second = round(0)?;
            let third = round(second)?;
            round(third)?;
        }
    }
}
