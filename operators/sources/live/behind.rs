//! Looks for a camera while its fallback is played: a thread of its own, because opening blocks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::item::StreamId;
use crate::media::gate;
use crate::operator::{Demand, SourceState};

use super::Settings;
use super::connection::{Connection, Loss, NotConnected, connect};

/// Between two looks at whether to give up.
const PATIENCE: Duration = Duration::from_millis(50);

/// The search. It ends with the first connection, and when this is dropped.
pub(super) struct Behind {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    cancelled: AtomicBool,
    state: Mutex<State>,
}

struct State {
    found: Option<Connection>,
    failures: u64,
    /// Why the last attempt failed, until somebody asked.
    news: Option<Loss>,
}

impl Behind {
    /// Starts searching, after `failures` failures in a row: first it waits, as after every failure.
    pub fn start(
        stream: &StreamId,
        settings: &Settings,
        demand: Demand,
        failures: u64,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Behind> {
        let shared = Arc::new(Shared {
            cancelled: AtomicBool::new(false),
            state: Mutex::new(State { found: None, failures, news: None }),
        });
        // What the stream may reach, its search may, and nothing else.
        let (theirs, settings, hosts) = (shared.clone(), settings.clone(), gate::current());
        let thread = std::thread::Builder::new().name(format!("search {stream}")).spawn(move || {
            gate::enter(hosts);
            search(&theirs, &settings, demand, &*clock);
        })?;
        Ok(Behind { shared, thread: Some(thread) })
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The state to show, where an attempt has failed since the last question.
    pub fn news(&self) -> Option<SourceState> {
        let mut state = lock(&self.shared.state);
        let loss = state.news.take()?;
        Some(SourceState::Fallback { reason: loss.to_string(), attempts: state.failures })
    }

    /// Failures in a row by now.
    pub fn failures(&self) -> u64 {
        lock(&self.shared.state).failures
    }

    /// Ends the search; answers what it found.
    pub fn finish(mut self) -> Option<Connection> {
        self.end();
        lock(&self.shared.state).found.take()
    }

    fn end(&mut self) {
        self.shared.cancelled.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the search for a camera panicked; it goes on without the fallback");
        }
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.end();
    }
}

fn search(shared: &Shared, settings: &Settings, demand: Demand, clock: &dyn Clock) {
    let cancelled = || shared.cancelled.load(Ordering::Acquire);
    loop {
        let failures = lock(&shared.state).failures;
        let again = clock.now() + settings.backoff.delay(failures);
        while clock.now() < again {
            if cancelled() {
                return;
            }
            clock.wait(again, PATIENCE);
        }
        match connect(settings, demand, clock, &cancelled) {
            Ok(connection) => {
                lock(&shared.state).found = Some(connection);
                return;
            }
            Err(NotConnected::Stopped) => return,
            Err(NotConnected::Lost(loss)) => {
                let mut state = lock(&shared.state);
                state.failures += 1;
                state.news = Some(loss);
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Nothing panics while it holds this lock.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
