//! How long to wait before something is tried again: longer each time, never the same for two who wait.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Exponential, with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// However often it fails.
    pub most: Duration,
}

impl Backoff {
    /// How long to wait after `failures` failures in a row: between a half and the whole of `first`, doubled with each
    /// further failure, at most `most`. What was lost together does not come back together.
    pub fn delay(&self, failures: u64) -> Duration {
        // Seeded by the system for each one that is made.
        let random = RandomState::new().build_hasher().finish();
        self.scaled(failures, random as f64 / u64::MAX as f64)
    }

    /// `jitter`: from 0 to 1.
    pub(crate) fn scaled(&self, failures: u64, jitter: f64) -> Duration {
        let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX).min(31);
        let whole = self.first.saturating_mul(1 << doublings).min(self.most);
        whole.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(30) };
        let seconds = |failures, jitter| backoff.scaled(failures, jitter).as_secs_f64();
        assert_eq!([1, 2, 3, 5, 6, 1000, u64::MAX].map(|n| seconds(n, 1.0)), [1.0, 2.0, 4.0, 16.0, 30.0, 30.0, 30.0]);
        assert_eq!([1, 3, 9].map(|n| seconds(n, 0.0)), [0.5, 2.0, 15.0]);
    }

    #[test]
    fn no_two_wait_equally_long() {
        let backoff = Backoff { first: Duration::from_secs(10), most: Duration::from_secs(10) };
        let delays: std::collections::BTreeSet<Duration> = (0..100).map(|_| backoff.delay(1)).collect();
        assert!(delays.len() > 90, "{delays:?}");
        assert!(delays.iter().all(|delay| (5.0..=10.0).contains(&delay.as_secs_f64())), "{delays:?}");
    }
}
