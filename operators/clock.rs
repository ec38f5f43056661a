//! The injected clock: real time in production, simulated time in tests.

#![expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clocks and sleeps")]

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// What time is it, and wake me later. Everything that waits or stamps asks this, never `std` directly.
pub trait Clock: Send + Sync {
    /// Monotonic time, for ages, deadlines and pacing.
    fn now(&self) -> Instant;
    /// Wall-clock time, for the `time` field of records.
    fn wall(&self) -> SystemTime;
    /// Blocks the calling thread until `deadline`, or for `at_most`, whichever is sooner. Only source threads call
    /// this; operators never block.
    fn wait(&self, deadline: Instant, at_most: Duration);
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn wait(&self, deadline: Instant, at_most: Duration) {
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()).min(at_most));
    }
}

/// A clock that moves only when a test advances it.
#[derive(Clone)]
pub struct SimulatedClock {
    shared: Arc<(Mutex<Duration>, Condvar)>,
    start: Instant,
    wall_start: SystemTime,
}

impl Default for SimulatedClock {
    fn default() -> Self {
        SimulatedClock {
            shared: Arc::default(),
            start: Instant::now(),
            wall_start: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        }
    }
}

impl SimulatedClock {
    /// Moves time on and wakes every waiter whose deadline has come.
    pub fn advance(&self, by: Duration) {
        *self.elapsed() += by;
        self.shared.1.notify_all();
    }

    fn elapsed(&self) -> std::sync::MutexGuard<'_, Duration> {
        self.shared.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Instant {
        self.start + *self.elapsed()
    }

    fn wall(&self) -> SystemTime {
        self.wall_start + *self.elapsed()
    }

    /// Real time bounds the wait too (`at_most`), so that a waiter can look whether it was told to stop.
    fn wait(&self, deadline: Instant, at_most: Duration) {
        let target = deadline.saturating_duration_since(self.start);
        let (lock, condvar) = &*self.shared;
        let guard = lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(condvar.wait_timeout_while(guard, at_most, |elapsed| *elapsed < target));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_time_moves_only_when_told() {
        let clock = SimulatedClock::default();
        let start = clock.now();
        assert_eq!(clock.now(), start);
        clock.advance(Duration::from_secs(3));
        assert_eq!(clock.now() - start, Duration::from_secs(3));
        clock.wait(start + Duration::from_secs(2), Duration::from_secs(60));
    }
}
