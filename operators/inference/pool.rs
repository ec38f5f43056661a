//! The pool: threads that run CPU jobs for [`PoolOperator`]s, one job at a time each, or one batch of jobs.
//!
//! Every thread makes its own [`Runner`] for every installed operator (its own session), because on a CPU one session
//! a core with one thread each is the fastest arrangement. Each submitter has a bounded [`Lane`] of its own, and lanes
//! take turns: a graph that could keep the pool busy alone does not starve a camera. Jobs of an operator that asks for
//! batches gather first (see [`crate::inference::queue`]). Order is the submitter's business: jobs finish in any order.

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
use crate::inference::queue::{Next, Waiting};
use crate::inference::session::Sessions;
use crate::item::{Item, Payload, StreamId};
use crate::operator::{PoolOperator, Runner};

/// Names an operator that was installed in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Installed(pub(super) u64);

/// Names a submitter's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lane(pub(super) u64);

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

    /// A thread has begun with a job, or with several that run as one: then only the first of them hears it.
    fn started(&self, _now: Instant) {}

    /// The thread is done with what it began with; comes before the answers.
    fn ended(&self, _now: Instant) {}

    /// `busy` is how long the job ran; of a batch, its share. The job's copy of the item is gone by then.
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
    others: usize,
    completion: Arc<dyn Completion>,
}

/// A thread that is busy with one job, or with several as one, for longer than that job may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// Which of the pool's threads, from 0.
    pub thread: usize,
    /// Who waits for the job, or has given it up.
    pub who: String,
    pub stream: StreamId,
    pub seq: u64,
    /// How many more items it has in hand, as one with this.
    pub others: usize,
    /// How long the thread has been busy with it.
    pub busy: Duration,
    pub deadline: Duration,
}

impl Hands {
    fn of(&self, thread: usize) -> Option<MutexGuard<'_, Option<InHand>>> {
        self.jobs.get(thread).map(|job| job.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the threads share.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// For each thread; they go before jobs.
    controls: Vec<VecDeque<Control>>,
    waiting: Waiting,
}

impl State {
    /// Tells every thread.
    fn tell(&mut self, message: impl Fn() -> Control) {
        self.controls.iter_mut().for_each(|controls| controls.push_back(message()));
    }
}

/// What a thread does next.
enum Task {
    Control(Control),
    /// Jobs of one operator, one at least.
    Jobs(Vec<Job>),
}

/// How long a thread sleeps at most while jobs gather: the clock says when they are due, and it may be a test's.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do; `None` when the pool is closed and nothing is left.
    fn next(&self, thread: usize, clock: &dyn Clock) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if let Some(control) = state.controls.get_mut(thread).and_then(VecDeque::pop_front) {
                self.leave_watch(&state);
                return Some(Task::Control(control));
            }
            let now = clock.now();
            state = match state.waiting.next(now) {
                Next::Run(jobs) => {
                    self.leave_watch(&state);
                    return Some(Task::Jobs(jobs));
                }
                Next::NotBefore(due) => {
                    let sleep = due.saturating_duration_since(now).min(LONGEST_SLEEP);
                    self.changed.wait_timeout(state, sleep).unwrap_or_else(PoisonError::into_inner).0
                }
                Next::Nothing if state.waiting.is_closed() => return None,
                Next::Nothing => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// A thread that goes to work may have been the one that looked at the time for jobs that gather: another one
    /// takes over.
    fn leave_watch(&self, state: &State) {
        if state.waiting.gathers() {
            self.changed.notify_one();
        }
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
                others: job.others,
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
        self.queue.lock().tell(|| Control::Install { operator, work: work.clone(), ready: ready.clone() });
        self.queue.changed.notify_all();
        drop(ready);
        let mut outcome = Ok(operator);
        for _ in &self.threads {
            match answers.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => outcome = outcome.and(Err(error)),
                Err(_) => outcome = outcome.and(Err(StartError::new("a pool thread died while it made a session"))),
            }
        }
        match (&outcome, work.batching()) {
            (Err(_), _) => self.remove(operator),
            (Ok(_), Some(batching)) => self.queue.lock().waiting.gather(operator, batching),
            (Ok(_), None) => {}
        }
        outcome
    }

    /// Frees the runners of `operator`. Jobs of it that are still queued fail.
    pub fn remove(&self, operator: Installed) {
        let mut state = self.queue.lock();
        state.waiting.remove(operator);
        state.tell(|| Control::Remove(operator));
        drop(state);
        self.queue.changed.notify_all();
    }

    /// Queues a job, or gives it back when its lane is full: then a completion of the lane's own jobs will come. A lane
    /// takes two jobs for each thread at least.
    ///
    /// # Errors
    /// The job itself.
    pub fn submit(&self, job: Job) -> Result<(), Box<Job>> {
        self.queue.lock().waiting.submit(job, self.threads.len(), self.clock.now())?;
        self.queue.changed.notify_one();
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.lock().waiting.close();
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
        while let Some(task) = queue.next(self.index, &*self.clock) {
            match task {
                Task::Control(control) => self.control(control),
                Task::Jobs(jobs) => self.run(jobs),
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

    fn run(&mut self, jobs: Vec<Job>) {
        let start = self.clock.now();
        self.take_up(&jobs, start);
        let results = match &jobs[..] {
            [job] => vec![self.result(job)],
            jobs => self.results(jobs),
        };
        let end = self.clock.now();
        self.put_down(&jobs, end);
        let together = u32::try_from(jobs.len()).unwrap_or(u32::MAX).max(1);
        let busy = end.saturating_duration_since(start) / together;
        for (Job { ticket, item, completion, .. }, result) in jobs.into_iter().zip(results) {
            // Before the answer: a graph may end with it, and nothing is in flight then.
            let_go(item);
            completion.complete(ticket, result, busy);
        }
    }

    fn take_up(&self, jobs: &[Job], now: Instant) {
        let Some(job) = jobs.first() else { return };
        self.hands.busy.begin(now);
        job.completion.started(now);
        let Some(mut in_hand) = self.hands.of(self.index) else { return };
        *in_hand = self.operators.get(&job.operator).map(|operator| InHand {
            since: now,
            deadline: operator.work.deadline(),
            stream: job.item.stream.clone(),
            seq: job.item.seq,
            others: jobs.len() - 1,
            completion: job.completion.clone(),
        });
    }

    fn put_down(&self, jobs: &[Job], now: Instant) {
        let Some(job) = jobs.first() else { return };
        self.hands.busy.end(now);
        job.completion.ended(now);
        if let Some(mut in_hand) = self.hands.of(self.index) {
            *in_hand = None;
        }
    }

    fn result(&mut self, job: &Job) -> Result<Payload, ItemError> {
        self.with_runner(job.operator, |runner| runner.run(&job.item)).flatten()
    }

    /// The results of jobs of one operator that run as one, in their order.
    fn results(&mut self, jobs: &[Job]) -> Vec<Result<Payload, ItemError>> {
        let Some(operator) = jobs.first().map(|job| job.operator) else { return Vec::new() };
        let items: Vec<&Item> = jobs.iter().map(|job| &job.item).collect();
        let all = |error: &ItemError| jobs.iter().map(|_| Err(error.clone())).collect();
        match self.with_runner(operator, |runner| runner.run_batch(&items)) {
            Ok(results) if results.len() == jobs.len() => results,
            Ok(results) => {
                let message = format!("{} results came of {} items that ran as one", results.len(), jobs.len());
                all(&ItemError::Failed(message))
            }
            // Which of them it was is not known: each one by itself, only that one is rejected.
            Err(ItemError::Panicked(_)) => jobs.iter().map(|job| self.result(job)).collect(),
            Err(error) => all(&error),
        }
    }

    /// What `run` does with the runner of `operator`, which is made anew where a panic took it.
    fn with_runner<R>(&mut self, operator: Installed, run: impl FnOnce(&mut dyn Runner) -> R) -> Result<R, ItemError> {
        let Some(held) = self.operators.get_mut(&operator) else {
            return Err(ItemError::Failed("the graph was stopped before this item's turn".into()));
        };
        let mut runner = match held.runner.take() {
            Some(runner) => runner,
            None => {
                let work = held.work.clone();
                self.make(&work).map_err(|error| ItemError::Failed(error.to_string()))?
            }
        };
        match catch_unwind(AssertUnwindSafe(|| run(&mut *runner))) {
            Ok(result) => {
                if let Some(held) = self.operators.get_mut(&operator) {
                    held.runner = Some(runner);
                }
                Ok(result)
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
    use crate::operator::Batching;
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

    /// A pool thread's part that notes how many ran as one, and fails or panics where a picture says so.
    struct Noting {
        sizes: Sender<usize>,
    }

    const BAD: u8 = 1;
    const PANICS: u8 = 2;

    fn mark(item: &Item) -> u8 {
        match &item.payload {
            Payload::Tensor(tensor) => match &tensor.data {
                TensorData::U8(values) => values[0],
                _ => panic!("bytes"),
            },
            _ => panic!("a tensor"),
        }
    }

    struct Batched {
        sizes: Sender<usize>,
        batching: Batching,
    }

    impl PoolOperator for Batched {
        fn runner(&self, _sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
            Ok(Box::new(Noting { sizes: self.sizes.clone() }))
        }

        fn memory(&self) -> u64 {
            0
        }

        fn batching(&self) -> Option<Batching> {
            Some(self.batching)
        }
    }

    impl Runner for Noting {
        fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
            assert!(mark(item) != PANICS, "this one panics");
            if mark(item) == BAD { Err(ItemError::Failed("bad".into())) } else { Ok(item.payload.clone()) }
        }

        fn run_batch(&mut self, items: &[&Item]) -> Vec<Result<Payload, ItemError>> {
            self.sizes.send(items.len()).unwrap();
            items.iter().map(|item| self.run(item)).collect()
        }
    }

    /// Sends on each ticket with what became of it.
    struct Answers(Sender<(u64, Result<(), String>)>);

    impl Completion for Answers {
        fn name(&self) -> String {
            "a test".to_owned()
        }

        fn complete(&self, ticket: u64, result: Result<Payload, ItemError>, _busy: Duration) {
            self.0.send((ticket, result.map(|_| ()).map_err(|error| error.to_string()))).unwrap();
        }
    }

    /// A pool with a batched operator, and what it tells.
    struct Gathered {
        pool: Pool,
        operator: Installed,
        lanes: [Lane; 2],
        sizes: crossbeam_channel::Receiver<usize>,
        answers: crossbeam_channel::Receiver<(u64, Result<(), String>)>,
        completion: Arc<Answers>,
        accounts: Vec<Arc<Account>>,
    }

    impl Gathered {
        fn new(threads: usize, items: usize, clock: &Arc<dyn Clock>) -> Gathered {
            let pool = Pool::start(threads, clock).unwrap();
            let (noted, sizes) = bounded(100);
            let (sender, answers) = bounded(100);
            let batching = Batching { items, wait: Duration::from_millis(5) };
            let work: Arc<dyn PoolOperator> = Arc::new(Batched { sizes: noted, batching });
            let operator = pool.install(&work).unwrap();
            let lanes = [pool.lane(), pool.lane()];
            Gathered { pool, operator, lanes, sizes, answers, completion: Arc::new(Answers(sender)), accounts: vec![] }
        }

        fn submit(&mut self, ticket: u64, mark: u8) {
            let placement = Placement { source_width: 1, source_height: 1, scale: [1.0; 2], offset: [0.0; 2] };
            let tensor = Tensor { shape: [1, 1, 1], data: TensorData::U8(vec![mark]), placement, index: None };
            let (item, account) = item(0, MediaTime::from_micros(0), Payload::Tensor(Arc::new(tensor)));
            self.accounts.push(account);
            let lane = self.lanes[ticket as usize % 2];
            let job = Job { operator: self.operator, lane, ticket, item, completion: self.completion.clone() };
            assert!(self.pool.submit(job).is_ok());
        }

        fn answers(&self, count: usize) -> Vec<(u64, Result<(), String>)> {
            let mut answers: Vec<_> = (0..count).map(|_| self.answers.recv().unwrap()).collect();
            answers.sort();
            answers
        }
    }

    #[test]
    fn jobs_of_several_lanes_run_as_one_and_only_the_bad_one_is_rejected() {
        let clock: Arc<dyn Clock> = Arc::new(crate::clock::SimulatedClock::default());
        let mut gathered = Gathered::new(2, 4, &clock);
        for (ticket, mark) in [0, BAD, 0, 0].into_iter().enumerate() {
            gathered.submit(ticket as u64, mark);
        }
        assert_eq!(gathered.answers(4), [(0, Ok(())), (1, Err("bad".into())), (2, Ok(())), (3, Ok(()))]);
        assert_eq!(gathered.sizes.try_iter().collect::<Vec<_>>(), [4]);
        // A panic takes the runner and hides whose it was: then each runs by itself, on a runner that is made anew.
        for (ticket, mark) in [0, 0, PANICS, BAD].into_iter().enumerate() {
            gathered.submit(ticket as u64, mark);
        }
        let panicked = Err("panicked: this one panics".to_owned());
        assert_eq!(gathered.answers(4), [(0, Ok(())), (1, Ok(())), (2, panicked), (3, Err("bad".into()))]);
        assert!(gathered.accounts.iter().all(|account| account.snapshot().in_flight == 0));
    }

    #[test]
    fn the_clock_says_when_too_few_jobs_run_all_the_same() {
        let clock = crate::clock::SimulatedClock::default();
        let mut gathered = Gathered::new(2, 4, &(Arc::new(clock.clone()) as Arc<dyn Clock>));
        gathered.submit(0, 0);
        gathered.submit(1, 0);
        // Time stands still, so nothing runs, however long that takes.
        assert!(gathered.answers.recv_timeout(Duration::from_millis(100)).is_err());
        clock.advance(Duration::from_millis(5));
        assert_eq!(gathered.answers(2), [(0, Ok(())), (1, Ok(()))]);
        assert_eq!(gathered.sizes.try_iter().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn what_gathers_is_answered_when_the_operator_or_the_pool_goes() {
        let clock: Arc<dyn Clock> = Arc::new(crate::clock::SimulatedClock::default());
        let mut gathered = Gathered::new(2, 4, &clock);
        gathered.submit(0, 0);
        gathered.submit(1, 0);
        gathered.pool.remove(gathered.operator);
        let stopped = Err("the graph was stopped before this item's turn".to_owned());
        assert_eq!(gathered.answers(2), [(0, stopped.clone()), (1, stopped)]);

        let mut gathered = Gathered::new(2, 4, &clock);
        gathered.submit(0, 0);
        let Gathered { pool, answers, accounts, .. } = gathered;
        drop(pool);
        assert_eq!(answers.recv().unwrap(), (0, Ok(())));
        assert!(accounts.iter().all(|account| account.snapshot().in_flight == 0));
    }
}
