//! The pool: threads that run CPU jobs for [`PoolOperator`]s, one job at a time each.
//!
//! Every thread makes its own [`Runner`] for every installed operator (its own session), because on a CPU one session
//! a core with one thread each is the fastest arrangement. The job queue is bounded; what does not fit stays with
//! whoever submits. Order is the submitter's business: jobs finish in any order.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select_biased};

use crate::clock::Clock;
use crate::error::{ItemError, StartError};
use crate::inference::session::Sessions;
use crate::item::{Item, Payload};
use crate::operator::{PoolOperator, Runner};

/// Names an operator that was installed in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Installed(u64);

/// One piece of work.
pub struct Job {
    pub operator: Installed,
    /// The submitter's own number for it.
    pub ticket: u64,
    pub item: Item,
    pub completion: Arc<dyn Completion>,
}

/// Takes the results of jobs, on the pool's threads; must not block.
pub trait Completion: Send + Sync {
    /// `busy` is how long the job ran. The job's copy of the item is gone by then.
    fn complete(&self, ticket: u64, result: Result<Payload, ItemError>, busy: Duration);
}

enum Control {
    Install { operator: Installed, work: Arc<dyn PoolOperator>, ready: Sender<Result<(), StartError>> },
    Remove(Installed),
}

/// Threads with sessions. Dropping it lets the jobs that are queued finish first.
pub struct Pool {
    jobs: Sender<Job>,
    controls: Vec<Sender<Control>>,
    threads: Vec<JoinHandle<()>>,
    next: AtomicU64,
}

impl Pool {
    /// Starts `threads` threads (at least one).
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn start(threads: usize, clock: &Arc<dyn Clock>) -> Result<Pool, StartError> {
        let threads = threads.max(1);
        // Deep enough that a thread that finishes always finds the next job, shallow enough that queues in front of
        // the pool, where policies apply, are where items wait.
        let (jobs, queue) = bounded(threads * 4);
        let mut pool = Pool { jobs, controls: Vec::new(), threads: Vec::new(), next: AtomicU64::new(0) };
        for index in 0..threads {
            let (control, controls) = bounded(64);
            let (queue, clock) = (queue.clone(), clock.clone());
            let thread = std::thread::Builder::new()
                .name(format!("pool-{index}"))
                .spawn(move || {
                    PoolThread { clock, operators: HashMap::new(), sessions: Sessions::default() }
                        .serve(&controls, &queue)
                })
                .map_err(|error| StartError::new(format!("cannot start a pool thread: {error}")))?;
            pool.controls.push(control);
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Makes and warms up `work`'s runner on every thread; returns when all are ready.
    ///
    /// # Errors
    /// The first thread's error; then nothing stays installed.
    pub fn install(&self, work: &Arc<dyn PoolOperator>) -> Result<Installed, StartError> {
        let operator = Installed(self.next.fetch_add(1, Ordering::Relaxed));
        let (ready, answers) = bounded(self.controls.len());
        for control in &self.controls {
            let message = Control::Install { operator, work: work.clone(), ready: ready.clone() };
            control.send(message).map_err(|_| StartError::new("the inference pool has stopped"))?;
        }
        drop(ready);
        let mut outcome = Ok(operator);
        for _ in &self.controls {
            match answers.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => outcome = outcome.and(Err(error)),
                Err(_) => outcome = outcome.and(Err(StartError::new("a pool thread died while it made a session"))),
            }
        }
        if outcome.is_err() {
            self.remove(operator);
        }
        outcome
    }

    /// Frees the runners of `operator`. Jobs of it that are still queued fail.
    pub fn remove(&self, operator: Installed) {
        for control in &self.controls {
            // A thread that is gone has freed them already.
            let _ = control.send(Control::Remove(operator));
        }
    }

    /// Queues a job, or gives it back when the queue is full.
    ///
    /// # Errors
    /// The job itself.
    pub fn submit(&self, job: Job) -> Result<(), Box<Job>> {
        match self.jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => Err(Box::new(job)),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.controls.clear();
        // Closing the queue lets each thread finish what is in it.
        self.jobs = bounded(0).0;
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to wait for.
            let _ = thread.join();
        }
    }
}

struct PoolThread {
    clock: Arc<dyn Clock>,
    operators: HashMap<Installed, ThreadOperator>,
    sessions: Sessions,
}

/// One operator on one thread.
struct ThreadOperator {
    work: Arc<dyn PoolOperator>,
    /// Missing after a panic: it is made anew for the next job.
    runner: Option<Box<dyn Runner>>,
}

impl PoolThread {
    fn serve(mut self, controls: &Receiver<Control>, jobs: &Receiver<Job>) {
        let mut controls_open = true;
        loop {
            if !controls_open {
                let Ok(job) = jobs.recv() else { return };
                self.run(job);
                continue;
            }
            select_biased! {
                recv(controls) -> control => match control {
                    Ok(control) => self.control(control),
                    Err(_) => controls_open = false,
                },
                recv(jobs) -> job => match job {
                    Ok(job) => self.run(job),
                    Err(_) => return,
                },
            }
        }
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Install { operator, work, ready } => {
                let made = self.make(&work);
                let answer = match made {
                    Ok(runner) => {
                        self.operators.insert(operator, ThreadOperator { work, runner: Some(runner) });
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                // Nobody waits any more if the graph was given up meanwhile.
                let _ = ready.send(answer);
            }
            Control::Remove(operator) => {
                self.operators.remove(&operator);
            }
        }
    }

    fn make(&mut self, work: &Arc<dyn PoolOperator>) -> Result<Box<dyn Runner>, StartError> {
        catch_unwind(AssertUnwindSafe(|| work.runner(&mut self.sessions)))
            .unwrap_or_else(|panic| Err(StartError::new(format!("panicked while starting: {}", panic_text(&*panic)))))
    }

    fn run(&mut self, job: Job) {
        let start = self.clock.now();
        let result = self.result(&job);
        let busy = self.clock.now().saturating_duration_since(start);
        let Job { ticket, item, completion, .. } = job;
        // Before the answer: a graph may end with it, and nothing is in flight then.
        let_go(item);
        completion.complete(ticket, result, busy);
    }

    fn result(&mut self, job: &Job) -> Result<Payload, ItemError> {
        let Some(operator) = self.operators.get_mut(&job.operator) else {
            return Err(ItemError::Failed("the graph was stopped before this item's turn".into()));
        };
        let mut runner = match operator.runner.take() {
            Some(runner) => runner,
            None => {
                let work = operator.work.clone();
                self.make(&work).map_err(|error| ItemError::Failed(error.to_string()))?
            }
        };
        match catch_unwind(AssertUnwindSafe(|| runner.run(&job.item))) {
            Ok(result) => {
                if let Some(operator) = self.operators.get_mut(&job.operator) {
                    operator.runner = Some(runner);
                }
                result
            }
            Err(panic) => Err(ItemError::Panicked(panic_text(&*panic))),
        }
    }
}

/// Lets go of a job's copy of its item. The submitter speaks for the item's fate; this one only kept it in memory.
fn let_go(item: Item) {
    item.lease.ack.release();
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::clock::SystemClock;
    use crate::item::{Placement, Tensor, TensorData};
    use crate::lease::Account;
    use crate::testing::item;
    use crate::time::MediaTime;

    struct Passes;

    impl PoolOperator for Passes {
        fn runner(&self, _sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
            Ok(Box::new(Passes))
        }

        fn memory(&self) -> u64 {
            0
        }
    }

    impl Runner for Passes {
        fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
            Ok(item.payload.clone())
        }
    }

    /// Sends on what was in flight when the answer came.
    struct InFlight(Arc<Account>, Sender<u64>);

    impl Completion for InFlight {
        fn complete(&self, _ticket: u64, _result: Result<Payload, ItemError>, _busy: Duration) {
            self.1.send(self.0.snapshot().in_flight).unwrap();
        }
    }

    #[test]
    fn nothing_of_a_job_is_in_flight_when_its_answer_comes() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let pool = Pool::start(1, &clock).unwrap();
        let work: Arc<dyn PoolOperator> = Arc::new(Passes);
        let operator = pool.install(&work).unwrap();
        let placement = Placement { source_width: 1, source_height: 1, scale: [1.0; 2], offset: [0.0; 2] };
        let tensor = Tensor { shape: [1, 1, 1], data: TensorData::U8(vec![0]), placement, index: None };
        let (item, account) = item(0, MediaTime::from_micros(0), Payload::Tensor(Arc::new(tensor)));
        let (sender, answers) = bounded(1);
        let completion = Arc::new(InFlight(account.clone(), sender));
        // The job has the only copy, so it alone keeps the item in flight.
        let Ok(()) = pool.submit(Job { operator, ticket: 0, item, completion }) else { panic!("the pool is full") };
        assert_eq!(answers.recv().unwrap(), 0);
        drop(pool);
        assert!(account.snapshot().conserved());
    }
}
