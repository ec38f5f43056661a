//! Counts of durations by upper bound, as `/metrics` gives them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many durations were at most so long, in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Upper bound in seconds, and how many lie above the bound before and not above this one; the last is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// Of all durations, in seconds.
    pub sum: f64,
}

impl Histogram {
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

/// Upper bounds of result ages, in microseconds: a picture's time at 60 a second, up to what a stalled sink makes.
const AGES: [u64; 14] = [
    1_000, 2_500, 5_000, 10_000, 16_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000,
    60_000_000,
];

/// Ages in microseconds by [`AGES`]. The source keeps two significant digits, so a value within a hundredth of a bound
/// may be counted on its other side, and the sum is as exact.
pub fn of_ages(ages: &hdrhistogram::Histogram<u64>) -> Histogram {
    let mut buckets: Vec<(f64, u64)> = AGES.iter().map(|bound| (*bound as f64 / 1e6, 0)).collect();
    buckets.push((f64::INFINITY, 0));
    let mut micros = 0.0;
    for value in ages.iter_recorded() {
        let (at, count) = (ages.median_equivalent(value.value_iterated_to()), value.count_at_value());
        buckets[AGES.partition_point(|bound| *bound < at)].1 += count;
        micros += at as f64 * count as f64;
    }
    Histogram { buckets, sum: micros / 1e6 }
}

/// Upper bounds of turns of work, in microseconds: from a counter to a large model.
const TURNS: [u64; 14] = [10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000];

/// Counts turns of work while they happen; for one, two additions.
#[derive(Default)]
pub struct Turns {
    counts: [AtomicU64; TURNS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Turns {
    pub fn record(&self, time: Duration) {
        let bucket = TURNS.partition_point(|bound| Duration::from_micros(*bound) < time);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn report(&self) -> Histogram {
        let bounds = TURNS.iter().map(|bound| *bound as f64 / 1e6).chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        Histogram { buckets: bounds.zip(counts).collect(), sum: self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(histogram: &Histogram) -> Vec<(f64, u64)> {
        histogram.buckets.iter().copied().filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn a_turn_is_counted_under_the_first_bound_that_is_not_shorter() {
        let turns = Turns::default();
        for micros in [10, 11, 2_500_000, 2_500_001] {
            turns.record(Duration::from_micros(micros));
        }
        let report = turns.report();
        assert_eq!(filled(&report), [(0.000_01, 1), (0.000_025, 1), (2.5, 1), (f64::INFINITY, 1)]);
        assert_eq!(report.count(), 4);
        assert!((report.sum - 5.000_022).abs() < 1e-9);
    }

    #[test]
    fn ages_keep_their_number_and_nearly_their_sum() {
        let mut ages = hdrhistogram::Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 2).unwrap();
        for micros in [1, 700, 30_000, 30_000, 3_000_000, 120_000_000] {
            ages.record(micros).unwrap();
        }
        let histogram = of_ages(&ages);
        assert_eq!(filled(&histogram), [(0.001, 2), (0.05, 2), (10.0, 1), (f64::INFINITY, 1)]);
        assert_eq!(histogram.count(), 6);
        assert!((histogram.sum - 123.060_701).abs() < 1.3, "{}", histogram.sum);
    }
}
