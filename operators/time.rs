//! Media time: ticks of a rational time base, compared exactly.
//!
//! Containers count time in ticks of their own (1/90000 s, 1/12800 s, 1/1000 s). Turning ticks into floating-point
//! seconds loses the answer to "is this picture at or after k / fps", so every comparison here cross-multiplies in
//! 128 bits. Seconds as `f64` are for people only.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

/// Length of one tick in seconds, as `numerator / denominator`; both are positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimeBase {
    numerator: u32,
    denominator: u32,
}

impl TimeBase {
    /// One tick a microsecond.
    pub const MICROSECONDS: TimeBase = TimeBase { numerator: 1, denominator: 1_000_000 };

    /// A tick of `numerator / denominator` seconds; `None` where either is zero.
    pub const fn new(numerator: u32, denominator: u32) -> Option<TimeBase> {
        if numerator == 0 || denominator == 0 { None } else { Some(TimeBase { numerator, denominator }) }
    }

    pub const fn numerator(self) -> u32 {
        self.numerator
    }

    pub const fn denominator(self) -> u32 {
        self.denominator
    }
}

/// A point (or a length) of media time: `ticks` of `base`. Equality and order are those of the rational numbers, so
/// 1 tick of 1/1000 s equals 90 ticks of 1/90000 s.
#[derive(Clone, Copy, Debug)]
pub struct MediaTime {
    pub ticks: i64,
    pub base: TimeBase,
}

impl MediaTime {
    pub const ZERO: MediaTime = MediaTime { ticks: 0, base: TimeBase::MICROSECONDS };

    pub const fn new(ticks: i64, base: TimeBase) -> MediaTime {
        MediaTime { ticks, base }
    }

    pub const fn from_micros(micros: i64) -> MediaTime {
        MediaTime { ticks: micros, base: TimeBase::MICROSECONDS }
    }

    /// Whole microseconds, rounded down.
    pub fn as_micros(self) -> i64 {
        let micros = i128::from(self.ticks) * i128::from(self.base.numerator) * 1_000_000;
        saturate(micros.div_euclid(i128::from(self.base.denominator)))
    }

    /// Seconds, for people and JSON; never compare these.
    pub fn as_seconds(self) -> f64 {
        self.ticks as f64 * f64::from(self.base.numerator) / f64::from(self.base.denominator)
    }

    /// The same as a `Duration`; negative times are zero.
    pub fn as_duration(self) -> Duration {
        Duration::from_micros(u64::try_from(self.as_micros()).unwrap_or(0))
    }

    /// The ticks of `base` that are nearest to this time.
    pub fn ticks_in(self, base: TimeBase) -> i64 {
        if base == self.base {
            return self.ticks;
        }
        // 63 + 32 + 32 bits and one more for the half: never overflows 128.
        let dividend = i128::from(self.ticks) * i128::from(self.base.numerator) * i128::from(base.denominator);
        let divisor = i128::from(self.base.denominator) * i128::from(base.numerator);
        saturate((dividend + divisor / 2).div_euclid(divisor))
    }

    /// This time less `origin` ticks of the same base.
    pub fn since(self, origin: i64) -> MediaTime {
        MediaTime { ticks: self.ticks.saturating_sub(origin), base: self.base }
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl PartialEq for MediaTime {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for MediaTime {}

impl PartialOrd for MediaTime {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MediaTime {
    fn cmp(&self, other: &Self) -> Ordering {
        // 64 + 32 + 32 bits: never overflows 128.
        let left = i128::from(self.ticks) * i128::from(self.base.numerator) * i128::from(other.base.denominator);
        let right = i128::from(other.ticks) * i128::from(other.base.numerator) * i128::from(self.base.denominator);
        left.cmp(&right)
    }
}

impl fmt::Display for MediaTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.3} s", self.as_seconds())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn base() -> impl Strategy<Value = TimeBase> {
        (1u32.., 1u32..).prop_map(|(numerator, denominator)| TimeBase { numerator, denominator })
    }

    #[test]
    fn times_of_different_bases_compare_as_rationals() {
        let milli = TimeBase::new(1, 1000).unwrap();
        let mpeg = TimeBase::new(1, 90_000).unwrap();
        assert_eq!(MediaTime::new(1, milli), MediaTime::new(90, mpeg));
        assert!(MediaTime::new(1, milli) < MediaTime::new(91, mpeg));
        assert_eq!(MediaTime::new(-1, milli).as_micros(), -1000);
    }

    proptest! {
        #[test]
        fn order_is_total_and_survives_any_ticks(left: i64, right: i64, a in base(), b in base()) {
            let (x, y) = (MediaTime::new(left, a), MediaTime::new(right, b));
            prop_assert_eq!(x.cmp(&y), y.cmp(&x).reverse());
            prop_assert_eq!(x.cmp(&x), Ordering::Equal);
        }

        #[test]
        fn the_nearest_tick_is_at_most_half_a_tick_away(ticks in -1_000_000_000i64..1_000_000_000, a in 1u32..100_000, b in 1u32..100_000) {
            let (from, to) = (TimeBase { numerator: 1, denominator: a }, TimeBase { numerator: 1, denominator: b });
            let nearest = MediaTime::new(ticks, from).ticks_in(to);
            let half = TimeBase { numerator: 1, denominator: 2 * b };
            prop_assert!(MediaTime::new(2 * nearest - 1, half) <= MediaTime::new(ticks, from));
            prop_assert!(MediaTime::new(ticks, from) <= MediaTime::new(2 * nearest + 1, half));
            prop_assert_eq!(MediaTime::new(ticks, from).ticks_in(from), ticks);
        }

        #[test]
        fn microseconds_never_round_up(ticks in -1_000_000_000_000i64..1_000_000_000_000, b in base()) {
            let time = MediaTime::new(ticks, b);
            let micros = time.as_micros();
            if micros > i64::MIN && micros < i64::MAX {
                prop_assert!(MediaTime::from_micros(micros) <= time);
                prop_assert!(MediaTime::from_micros(micros + 1) > time);
            }
        }
    }
}
