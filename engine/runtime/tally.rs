//! How much waits in one place in front of a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::counters::NodeCounters;

/// What waits in one place, as part of what its node counts. What is left of it when the place is gone waits no more.
pub struct Tally {
    counters: Arc<NodeCounters>,
    count: AtomicI64,
}

impl Tally {
    pub fn new(counters: &Arc<NodeCounters>) -> Tally {
        Tally { counters: counters.clone(), count: AtomicI64::new(0) }
    }

    /// Adds to, or takes from, what waits.
    pub fn add(&self, change: i64) {
        if change != 0 {
            self.count.fetch_add(change, Ordering::Relaxed);
            self.counters.queued(change);
        }
    }

    /// Nothing of it waits any more.
    pub fn clear(&self) {
        self.counters.queued(-self.count.swap(0, Ordering::Relaxed));
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use operators::clock::{Clock, SimulatedClock};

    use super::*;

    #[test]
    fn what_is_left_when_a_place_is_gone_waits_no_more() {
        let clock = SimulatedClock::default();
        let node = Arc::new(NodeCounters::new("out".into(), "file", "sink", 1, clock.now()));
        let queued = || node.report(clock.now()).queued;
        let (here, there) = (Tally::new(&node), Tally::new(&node));
        here.add(3);
        there.add(2);
        here.add(-1);
        assert_eq!(queued(), 4);
        drop(here);
        assert_eq!(queued(), 2);
        there.clear();
        assert_eq!(queued(), 0);
        drop(there);
        assert_eq!(queued(), 0);
    }

    #[test]
    fn what_is_taken_before_it_is_counted_is_not_less_than_nothing() {
        let clock = SimulatedClock::default();
        let node = Arc::new(NodeCounters::new("out".into(), "file", "sink", 1, clock.now()));
        let tally = Tally::new(&node);
        tally.add(-1);
        assert_eq!(node.report(clock.now()).queued, 0);
        tally.add(3);
        assert_eq!(node.report(clock.now()).queued, 2);
    }
}
