//! A sliding window: what was counted over the last seconds, and not since the start.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What rates and shares are means over.
pub const WINDOW: Duration = Duration::from_secs(5);

/// Readings of some counters, taken now and then, the oldest first.
pub struct Window<T> {
    readings: VecDeque<(Instant, T)>,
}

impl<T> Window<T> {
    /// Begins with `first`, what the counters say at `now`.
    pub fn new(now: Instant, first: T) -> Window<T> {
        Window { readings: VecDeque::from([(now, first)]) }
    }

    /// Keeps a reading, and lets go of those that are not needed any more.
    pub fn note(&mut self, now: Instant, reading: T) {
        self.readings.push_back((now, reading));
        let is_past = |(at, _): &(Instant, T)| now.saturating_duration_since(*at) >= WINDOW;
        // The front is the youngest reading that is at least as old as the window is long.
        while self.readings.get(1).is_some_and(is_past) {
            self.readings.pop_front();
        }
    }

    /// Where the window that ends at `now` begins: the reading there, and how many seconds ago that was.
    pub fn start(&self, now: Instant) -> Option<(&T, f64)> {
        let past = self.readings.iter().rev().find(|(at, _)| now.saturating_duration_since(*at) >= WINDOW);
        let (at, reading) = past.or(self.readings.front())?;
        Some((reading, now.saturating_duration_since(*at).as_secs_f64()))
    }
}

/// `amount` over `seconds`; 0 where no time has passed.
pub fn per_second(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use operators::clock::{Clock, SimulatedClock};

    #[test]
    fn a_window_slides() {
        let clock = SimulatedClock::default();
        let mut window = Window::new(clock.now(), 0);
        assert_eq!(window.start(clock.now()), Some((&0, 0.0)));
        for reading in 1..=20 {
            clock.advance(Duration::from_millis(500));
            window.note(clock.now(), reading);
        }
        // At 10 s, with a reading every half second: the one of 5 s.
        assert_eq!(window.start(clock.now()), Some((&10, 5.0)));
        clock.advance(Duration::from_millis(100));
        assert_eq!(window.start(clock.now()), Some((&10, 5.1)));
        assert!(window.readings.len() <= 11, "{}", window.readings.len());
    }

    #[test]
    fn a_young_window_begins_with_what_it_measures() {
        let clock = SimulatedClock::default();
        let mut window = Window::new(clock.now(), 3);
        clock.advance(Duration::from_secs(2));
        window.note(clock.now(), 9);
        assert_eq!(window.start(clock.now()), Some((&3, 2.0)));
    }

    /// Nobody took a reading for a while: the last one is better than none.
    #[test]
    fn after_a_pause_the_window_is_longer_for_once() {
        let clock = SimulatedClock::default();
        let mut window = Window::new(clock.now(), 0);
        clock.advance(Duration::from_secs(60));
        window.note(clock.now(), 5);
        assert_eq!(window.start(clock.now()), Some((&0, 60.0)));
        clock.advance(Duration::from_secs(5));
        assert_eq!(window.start(clock.now()), Some((&5, 5.0)));
    }
}
