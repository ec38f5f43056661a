//! Takes readings of everything that is counted, a few times a second, so that rates and shares are of the last seconds
//! whoever asks for them, and when.

use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use operators::clock::Clock;
use operators::error::StartError;
use operators::inference::pool::Pool;
use operators::lock::lock;

use super::counters::GraphCounters;
use super::pulse::holder;
use super::window::{Window, per_second};
use super::worker::Workers;

/// Between two readings. Ten of them make a window.
const EVERY: Duration = Duration::from_millis(500);

/// Subscribers, as far as the runtime knows them.
pub trait Audience: Send + Sync {
    /// Events that subscribers lost because they read too slowly, since the process started.
    fn missed(&self) -> u64;
}

/// What belongs to no graph.
struct Reading {
    pool: Duration,
    missed: u64,
}

/// What graphs share, over the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shared {
    /// Threads of the pool that worked at once, on average.
    pub pool_busy: f64,
    /// The same as time, since the start.
    pub pool_busy_seconds: f64,
    /// Events a second that slow subscribers lost.
    pub missed: f64,
}

/// The thread that takes readings. Dropping it ends the thread.
pub struct Watch {
    shared: Arc<SharedWindow>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct SharedWindow {
    pool: Arc<Pool>,
    audience: OnceLock<Arc<dyn Audience>>,
    window: Mutex<Window<Reading>>,
}

impl SharedWindow {
    fn reading(&self, now: Instant) -> Reading {
        let missed = self.audience.get().map_or(0, |audience| audience.missed());
        Reading { pool: self.pool.busy(now), missed }
    }
}

impl Watch {
    /// Begins to take readings of `graphs` and `pool`, and to look whether `workers` answer.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn start(
        graphs: Arc<Mutex<Vec<Arc<GraphCounters>>>>,
        pool: Arc<Pool>,
        workers: Arc<Workers>,
        clock: Arc<dyn Clock>,
    ) -> Result<Watch, StartError> {
        let first = Reading { pool: Duration::ZERO, missed: 0 };
        let window = Mutex::new(Window::new(clock.now(), first));
        let shared = Arc::new(SharedWindow { pool, audience: OnceLock::new(), window });
        let (stop, stopped) = bounded::<()>(0);
        let watched = shared.clone();
        let look = move || {
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let now = clock.now();
                let running = lock(&graphs).clone();
                running.iter().for_each(|graph| graph.take_readings(now));
                let reading = watched.reading(now);
                lock(&watched.window).note(now, reading);
                workers.look(|worker| holder(&running, worker));
            }
        };
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(look)
            .map_err(|error| StartError::new(format!("cannot start the thread that takes readings: {error}")))?;
        Ok(Watch { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Whose subscribers are watched, from here on; the first who is named stays.
    pub fn listen_to(&self, audience: Arc<dyn Audience>) {
        // Set once, as the process starts.
        let _ = self.shared.audience.set(audience);
    }

    /// What graphs share, over the window that ends at `now`.
    pub fn shared(&self, now: Instant) -> Shared {
        let reading = self.shared.reading(now);
        let window = lock(&self.shared.window);
        let Some((before, seconds)) = window.start(now) else { return Shared::default() };
        Shared {
            pool_busy: per_second(reading.pool.saturating_sub(before.pool).as_secs_f64(), seconds),
            pool_busy_seconds: reading.pool.as_secs_f64(),
            missed: per_second(reading.missed.saturating_sub(before.missed) as f64, seconds),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread that takes readings panicked");
        }
    }
}
