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
    /// Since when something is under way and nothing of it has come to an end.
    waits_since: Option<Instant>,
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
        if turns.under_way == 0 {
            turns.waits_since = Some(now);
        }
        turns.under_way += 1;
    }

    /// A turn that began is over.
    pub fn end(&self, now: Instant) {
        let mut turns = self.lock();
        turns.settle(now);
        turns.under_way = turns.under_way.saturating_sub(1);
        turns.waits_since = (turns.under_way > 0).then_some(now);
    }

    /// Since when work is under way of which nothing has come to an end; `None` where nothing is.
    pub fn stands_since(&self) -> Option<Instant> {
        self.lock().waits_since
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

    #[test]
    fn work_stands_from_its_beginning_or_from_what_ended_last() {
        let clock = SimulatedClock::default();
        let second = || {
            clock.advance(Duration::from_secs(1));
            clock.now()
        };
        let busy = BusyTime::default();
        assert_eq!(busy.stands_since(), None);
        let first = second();
        busy.begin(first);
        busy.begin(second());
        assert_eq!(busy.stands_since(), Some(first), "another turn is no progress");
        let ended = second();
        busy.end(ended);
        assert_eq!(busy.stands_since(), Some(ended));
        busy.end(second());
        assert_eq!(busy.stands_since(), None);
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
