//! How long something has worked, turns that are not over yet included.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Adds up turns of work, which may overlap: two that last a second each are two seconds.
#[derive(Debug, Default)]
pub struct BusyTime(Mutex<Turns>);

#[derive(Debug, Default)]
struct Turns {
    /// Up to `settled`.
    worked: Duration,
    under_way: u32,
    settled: Option<Instant>,
}

impl Turns {
    fn settle(&mut self, now: Instant) {
        let last = self.settled.map_or(now, |settled| settled.max(now));
        let since = self.settled.map_or(Duration::ZERO, |settled| last.saturating_duration_since(settled));
        self.worked += since * self.under_way;
        self.settled = Some(last);
    }
}

impl BusyTime {
    /// A turn begins.
    pub fn begin(&self, now: Instant) {
        let mut turns = self.lock();
        turns.settle(now);
        turns.under_way += 1;
    }

    /// A turn that began is over.
    pub fn end(&self, now: Instant) {
        let mut turns = self.lock();
        turns.settle(now);
        turns.under_way = turns.under_way.saturating_sub(1);
    }

    /// All work up to `now`. It never gets less.
    pub fn total(&self, now: Instant) -> Duration {
        let mut turns = self.lock();
        turns.settle(now);
        turns.worked
    }

    fn lock(&self) -> MutexGuard<'_, Turns> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SimulatedClock};

    #[test]
    fn turns_that_overlap_add_up_and_one_that_is_not_over_counts() {
        let clock = SimulatedClock::default();
        let second = || clock.advance(Duration::from_secs(1));
        let busy = BusyTime::default();
        second();
        busy.begin(clock.now());
        second();
        busy.begin(clock.now());
        second();
        assert_eq!(busy.total(clock.now()), Duration::from_secs(3));
        busy.end(clock.now());
        second();
        busy.end(clock.now());
        second();
        assert_eq!(busy.total(clock.now()), Duration::from_secs(4));
    }

    /// Threads read the clock before they get the lock.
    #[test]
    fn a_time_before_the_last_one_takes_nothing_back() {
        let clock = SimulatedClock::default();
        let early = clock.now();
        clock.advance(Duration::from_secs(2));
        let busy = BusyTime::default();
        busy.begin(early);
        assert_eq!(busy.total(clock.now()), Duration::from_secs(2));
        assert_eq!(busy.total(early), Duration::from_secs(2));
        busy.end(early);
        assert_eq!(busy.total(clock.now()), Duration::from_secs(2));
    }
}
