//! Runs the jobs of an [`IoOperator`](operators::operator::IoOperator): futures on the io runtime, so many at once.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use operators::clock::Clock;
use operators::error::ItemError;
use operators::inference::pool::{Completion, panic_text};
use operators::item::Item;
use operators::lock::lock;
use operators::operator::IoRunner;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The jobs of one node in one generation of its graph. When the last clone is gone, those that still run are given up.
#[derive(Clone)]
pub struct Conversations(Arc<Shared>);

struct Shared {
    runner: Arc<dyn IoRunner>,
    runtime: Handle,
    clock: Arc<dyn Clock>,
    /// Jobs that may run at once, of all workers.
    concurrency: usize,
    room: Arc<Semaphore>,
    tasks: Mutex<JoinSet<()>>,
}

/// One worker's jobs: waiting and running.
#[derive(Clone, Default)]
pub struct Submitted(Arc<AtomicUsize>);

/// A job under way; it is over when this is dropped, also where it is given up.
struct Turn {
    completion: Arc<dyn Completion>,
    clock: Arc<dyn Clock>,
}

impl Turn {
    fn begin(completion: &Arc<dyn Completion>, clock: Arc<dyn Clock>) -> Turn {
        completion.started(clock.now());
        Turn { completion: completion.clone(), clock }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.completion.ended(self.clock.now());
    }
}

impl Conversations {
    pub fn new(runner: Arc<dyn IoRunner>, concurrency: usize, runtime: Handle, clock: Arc<dyn Clock>) -> Conversations {
        let concurrency = concurrency.max(1);
        let room = Arc::new(Semaphore::new(concurrency));
        Conversations(Arc::new(Shared { runner, runtime, clock, concurrency, room, tasks: Mutex::default() }))
    }

    /// Starts a job, or gives its item back when the worker has as many under way as may run at once: then one of those
    /// will complete.
    ///
    /// # Errors
    /// The item itself.
    pub fn submit(
        &self,
        submitted: &Submitted,
        ticket: u64,
        item: Item,
        completion: Arc<dyn Completion>,
    ) -> Result<(), Box<Item>> {
        let Shared { runner, runtime, clock, concurrency, room, tasks } = &*self.0;
        if submitted.0.load(Ordering::Acquire) >= *concurrency {
            return Err(Box::new(item));
        }
        submitted.0.fetch_add(1, Ordering::AcqRel);
        let (runner, clock, room, submitted) = (runner.clone(), clock.clone(), room.clone(), submitted.clone());
        let mut tasks = lock(tasks);
        // Those that are done are forgotten here: there are never more than fit at once.
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(
            async move {
                // Nobody closes the semaphore.
                let permit = room.acquire().await;
                let turn = Turn::begin(&completion, clock);
                let result = AssertUnwindSafe(runner.run(&item)).catch_unwind().await;
                drop(permit);
                drop(turn);
                item.lease.ack.release();
                submitted.0.fetch_sub(1, Ordering::AcqRel);
                let result = result.unwrap_or_else(|panic| Err(ItemError::Panicked(panic_text(&*panic))));
                // Waiting for others keeps no core busy.
                completion.complete(ticket, result, Duration::ZERO);
            },
            runtime,
        );
        Ok(())
    }
}
