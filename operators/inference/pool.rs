//! The pool: threads that run CPU jobs for [`PoolOperator`]s, one job at a time each.
//!
//! Every thread makes its own [`Runner`] for every installed operator (its own session), because on a CPU one session
//! a core with one thread each is the fastest arrangement. Each submitter has a bounded [`Lane`] of its own, and lanes
//! take turns: a graph that could keep the pool busy alone does not starve a camera. Order is the submitter's business:
//! jobs finish in any order.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use crate::busy::BusyTime;
use crate::clock::Clock;
use crate::error::{ItemError, StartError};
use crate::inference::session::Sessions;
use crate::item::{Item, Payload, StreamId};
use crate::operator::{PoolOperator, Runner};

/// Names an operator that was installed in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Installed(u64);

/// Names a submitter's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lane(u64);

/// One piece of work.
pub struct Job {
    pub operator: Installed,
    pub lane: Lane,
    /// The submitter's own number for it.
    pub ticket: u64,
    pub item: Item,
    pub completion: Arc<dyn Completion>,
}

/// Takes the results of jobs, on the pool's threads; must not block.
pub trait Completion: Send + Sync {
    /// Who waits for the job, for people.
    fn name(&self) -> String;

    /// A thread has begun with a job.
    fn started(&self, _now: Instant) {}

    /// `busy` is how long the job ran. The job's copy of the item is gone by then.
    fn complete(&self, ticket: u64, result: Result<Payload, ItemError>, busy: Duration);
}

enum Control {
    Install { operator: Installed, work: Arc<dyn PoolOperator>, ready: Sender<Result<(), StartError>> },
    Remove(Installed),
}

/// Threads with sessions. Dropping it lets the jobs that are queued finish first, but waits no longer than
/// [`Pool::PATIENCE`] for a thread.
pub struct Pool {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    hands: Arc<Hands>,
    clock: Arc<dyn Clock>,
    next: AtomicU64,
    next_lane: AtomicU64,
}

/// What the threads have in hand.
struct Hands {
    busy: BusyTime,
    /// One for each thread.
    jobs: Vec<Mutex<Option<InHand>>>,
}

struct InHand {
    since: Instant,
    deadline: Duration,
    stream: StreamId,
    seq: u64,
    completion: Arc<dyn Completion>,
}

/// A thread that is busy with one job for longer than that job may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// Which of the pool's threads, from 0.
    pub thread: usize,
    /// Who waits for the job, or has given it up.
    pub who: String,
    pub stream: StreamId,
    pub seq: u64,
    /// How long the thread has been busy with it.
    pub busy: Duration,
    pub deadline: Duration,
}

impl Hands {
    fn of(&self, thread: usize) -> Option<MutexGuard<'_, Option<InHand>>> {
        self.jobs.get(thread).map(|job| job.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What waits for a thread.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// For each thread; they go before jobs.
    controls: Vec<VecDeque<Control>>,
    /// Lanes that have jobs. A lane that runs empty is forgotten.
    lanes: HashMap<Lane, VecDeque<Job>>,
    /// Whose turn it is: every lane with jobs, once.
    turns: VecDeque<Lane>,
    closed: bool,
}

/// What a thread does next.
enum Task {
    Control(Control),
    Job(Job),
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it holds the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do; `None` when the pool is closed and nothing is left.
    fn next(&self, thread: usize) -> Option<Task> {
        let mut waiting = self.lock();
        loop {
            if let Some(control) = waiting.controls.get_mut(thread).and_then(VecDeque::pop_front) {
                return Some(Task::Control(control));
            }
            if let Some(job) = waiting.next_job() {
                return Some(Task::Job(job));
            }
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Waiting {
    fn next_job(&mut self) -> Option<Job> {
        let lane = self.turns.pop_front()?;
        let jobs = self.lanes.get_mut(&lane)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.lanes.remove(&lane);
        } else {
            self.turns.push_back(lane);
        }
        job
    }
}

impl Pool {
    /// How long dropping a pool waits for a thread that has something in hand.
    pub const PATIENCE: Duration = Duration::from_secs(2);

    /// Starts `threads` threads (at least one).
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn start(threads: usize, clock: &Arc<dyn Clock>) -> Result<Pool, StartError> {
        let threads = threads.max(1);
        let queue = Arc::new(Queue::default());
        queue.lock().controls.resize_with(threads, VecDeque::new);
        let jobs = (0..threads).map(|_| Mutex::default()).collect();
        let mut pool = Pool {
            queue,
            threads: Vec::new(),
            hands: Arc::new(Hands { busy: BusyTime::default(), jobs }),
            clock: clock.clone(),
            next: AtomicU64::new(0),
            next_lane: AtomicU64::new(0),
        };
        for index in 0..threads {
            let (queue, clock, hands) = (pool.queue.clone(), clock.clone(), pool.hands.clone());
            let serve = move || {
                let (operators, sessions) = (HashMap::new(), Sessions::default());
                PoolThread { index, clock, hands, operators, sessions }.serve(&queue);
            };
            let thread = std::thread::Builder::new()
                .name(format!("pool-{index}"))
                .spawn(serve)
                .map_err(|error| StartError::new(format!("cannot start a pool thread: {error}")))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// How long the threads have worked on jobs, together.
    pub fn busy(&self, now: Instant) -> Duration {
        self.hands.busy.total(now)
    }

    /// Threads that have been busy with one job for longer than it may take.
    pub fn overdue(&self, now: Instant) -> Vec<Overdue> {
        let look = |thread| {
            let in_hand = self.hands.of(thread)?;
            let job = in_hand.as_ref()?;
            let busy = now.saturating_duration_since(job.since);
            (busy > job.deadline).then(|| Overdue {
                thread,
                who: job.completion.name(),
                stream: job.stream.clone(),
                seq: job.seq,
                busy,
                deadline: job.deadline,
            })
        };
        (0..self.threads()).filter_map(look).collect()
    }

    /// A queue for one more submitter.
    pub fn lane(&self) -> Lane {
        Lane(self.next_lane.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes and warms up `work`'s runner on every thread; returns when all are ready.
    ///
    /// # Errors
    /// The first thread's error; then nothing stays installed.
    pub fn install(&self, work: &Arc<dyn PoolOperator>) -> Result<Installed, StartError> {
        let operator = Installed(self.next.fetch_add(1, Ordering::Relaxed));
        let (ready, answers) = bounded(self.threads.len());
        self.control(|| Control::Install { operator, work: work.clone(), ready: ready.clone() });
        drop(ready);
        let mut outcome = Ok(operator);
        for _ in &self.threads {
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
        self.control(|| Control::Remove(operator));
    }

    fn control(&self, message: impl Fn() -> Control) {
        self.queue.lock().controls.iter_mut().for_each(|controls| controls.push_back(message()));
        self.queue.changed.notify_all();
    }

    /// How many jobs a lane holds: so many that a thread that finishes always finds the next one, so few that items
    /// wait in front of the pool, where policies apply.
    fn lane_capacity(&self) -> usize {
        self.threads.len() * 2
    }

    /// Queues a job, or gives it back when its lane is full: then a completion of the lane's own jobs will come.
    ///
    /// # Errors
    /// The job itself.
    pub fn submit(&self, job: Job) -> Result<(), Box<Job>> {
        let mut waiting = self.queue.lock();
        let lane = job.lane;
        let jobs = waiting.lanes.entry(lane).or_default();
        if jobs.len() >= self.lane_capacity() {
            return Err(Box::new(job));
        }
        jobs.push_back(job);
        if jobs.len() == 1 {
            waiting.turns.push_back(lane);
        }
        drop(waiting);
        self.queue.changed.notify_one();
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_all();
        let deadline = self.clock.now() + Self::PATIENCE;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && self.clock.now() < deadline {
                self.clock.wait(deadline, Duration::from_millis(2));
            }
            if thread.is_finished() {
                // A thread that panicked has nothing left to wait for.
                let _ = thread.join();
            } else {
                tracing::error!("a pool thread does not come back from its job; it is left behind");
            }
        }
    }
}

struct PoolThread {
    index: usize,
    clock: Arc<dyn Clock>,
    hands: Arc<Hands>,
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
    fn serve(mut self, queue: &Queue) {
        while let Some(task) = queue.next(self.index) {
            match task {
                Task::Control(control) => self.control(control),
                Task::Job(job) => self.run(job),
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
        self.take_up(&job, start);
        let result = self.result(&job);
        let end = self.clock.now();
        self.put_down(end);
        let busy = end.saturating_duration_since(start);
        let Job { ticket, item, completion, .. } = job;
        // Before the answer: a graph may end with it, and nothing is in flight then.
        let_go(item);
        completion.complete(ticket, result, busy);
    }

    fn take_up(&self, job: &Job, now: Instant) {
        self.hands.busy.begin(now);
        job.completion.started(now);
        let Some(mut in_hand) = self.hands.of(self.index) else { return };
        *in_hand = self.operators.get(&job.operator).map(|operator| InHand {
            since: now,
            deadline: operator.work.deadline(),
            stream: job.item.stream.clone(),
            seq: job.item.seq,
            completion: job.completion.clone(),
        });
    }

    fn put_down(&self, now: Instant) {
        self.hands.busy.end(now);
        if let Some(mut in_hand) = self.hands.of(self.index) {
            *in_hand = None;
        }
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
        fn name(&self) -> String {
            "a test".to_owned()
        }

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
        let lane = pool.lane();
        let Ok(()) = pool.submit(Job { operator, lane, ticket: 0, item, completion }) else {
            panic!("the pool is full")
        };
        assert_eq!(answers.recv().unwrap(), 0);
        drop(pool);
        assert!(account.snapshot().conserved());
    }

    /// Waits until it is told to go on, and says that it has begun.
    struct Hangs(Sender<()>, crossbeam_channel::Receiver<()>);

    impl PoolOperator for Hangs {
        fn runner(&self, _sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
            Ok(Box::new(Hangs(self.0.clone(), self.1.clone())))
        }

        fn memory(&self) -> u64 {
            0
        }
    }

    impl Runner for Hangs {
        fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
            Ok(item.payload.clone())
        }
    }

    #[test]
    fn a_thread_that_hangs_in_a_job_is_named_until_it_comes_back() {
        let clock = crate::clock::SimulatedClock::default();
        let injected: Arc<dyn Clock> = Arc::new(clock.clone());
        let pool = Pool::start(2, &injected).unwrap();
        let (began, begins) = bounded(1);
        let (go_on, goes_on) = bounded(1);
        let work: Arc<dyn PoolOperator> = Arc::new(Hangs(began, goes_on));
        let operator = pool.install(&work).unwrap();
        let placement = Placement { source_width: 1, source_height: 1, scale: [1.0; 2], offset: [0.0; 2] };
        let tensor = Tensor { shape: [1, 1, 1], data: TensorData::U8(vec![0]), placement, index: None };
        let (item, account) = item(7, MediaTime::from_micros(0), Payload::Tensor(Arc::new(tensor)));
        let (stream, seq) = (item.stream.clone(), item.seq);
        let (sender, answers) = bounded(1);
        let completion = Arc::new(InFlight(account, sender));
        let job = Job { operator, lane: pool.lane(), ticket: 0, item, completion };
        assert!(pool.submit(job).is_ok());
        begins.recv().unwrap();
        clock.advance(work.deadline());
        assert_eq!(pool.overdue(clock.now()), [], "it still has time");
        clock.advance(Duration::from_secs(1));
        let overdue = pool.overdue(clock.now());
        let [overdue] = &overdue[..] else { panic!("{overdue:?}") };
        assert_eq!((&overdue.stream, overdue.seq, &*overdue.who), (&stream, seq, "a test"));
        assert_eq!((overdue.busy, overdue.deadline), (Duration::from_secs(31), Duration::from_secs(30)));
        assert_eq!(pool.busy(clock.now()), Duration::from_secs(31));
        go_on.send(()).unwrap();
        answers.recv().unwrap();
        assert_eq!(pool.overdue(clock.now()), []);
    }

    /// A lane that is always full, and one with a job now and then: they take turns.
    #[test]
    fn lanes_take_turns() {
        let (busy, quiet) = (Lane(0), Lane(1));
        let mut waiting = Waiting::default();
        for (ticket, lane) in [busy, busy, busy, busy, quiet, busy].into_iter().enumerate() {
            let placement = Placement { source_width: 1, source_height: 1, scale: [1.0; 2], offset: [0.0; 2] };
            let tensor = Tensor { shape: [1, 1, 1], data: TensorData::U8(vec![0]), placement, index: None };
            let (item, account) = item(0, MediaTime::from_micros(0), Payload::Tensor(Arc::new(tensor)));
            let completion = Arc::new(InFlight(account, bounded(1).0));
            let job = Job { operator: Installed(0), lane, ticket: ticket as u64, item, completion };
            let jobs = waiting.lanes.entry(lane).or_default();
            jobs.push_back(job);
            if jobs.len() == 1 {
                waiting.turns.push_back(lane);
            }
        }
        let tickets: Vec<u64> = std::iter::from_fn(|| waiting.next_job().map(|job| job.ticket)).collect();
        assert_eq!(tickets, [0, 4, 1, 2, 3, 5]);
        assert!(waiting.lanes.is_empty() && waiting.turns.is_empty());
    }
}
