//! What waits for a thread of the pool: lanes that take turns, and jobs that gather until they run as one.
//!
//! Bookkeeping alone: it is told what time it is, and knows neither threads nor clocks.
//!
//! Every submitter has a bounded [`Lane`], and lanes take turns. Jobs of an operator that asks for
//! [`Batching`] gather instead, whatever lane they come from: they are due when so many are there as run as one, when
//! the oldest has waited for its time, or when no others can come. No thread is held while they gather. What gathers
//! takes turns with the lanes.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::inference::pool::{Installed, Job, Lane};
use crate::operator::Batching;

/// Everything that waits.
#[derive(Default)]
pub(super) struct Waiting {
    /// Lanes that have jobs. A lane that runs empty is forgotten.
    lanes: HashMap<Lane, VecDeque<Job>>,
    /// For each operator that asks for batches, also while none of its jobs waits.
    gatherings: HashMap<Installed, Gathering>,
    /// Whose turn it is: every lane and every gathering with jobs, once.
    turns: VecDeque<Turn>,
    /// Nothing more will come.
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Lane(Lane),
    Gathering(Installed),
}

/// Jobs of one operator that will run as one, the oldest first.
struct Gathering {
    batching: Batching,
    jobs: VecDeque<(Instant, Job)>,
    /// The operator is gone: nothing more comes.
    removed: bool,
}

impl Gathering {
    /// When its jobs run at the latest; `None` where they may run at once.
    fn due(&self, closed: bool) -> Option<Instant> {
        let complete = closed || self.removed || self.jobs.len() >= self.batching.items;
        self.jobs.front().filter(|_| !complete).map(|(since, _)| *since + self.batching.wait)
    }
}

/// What a thread does next.
pub(super) enum Next {
    /// Jobs of one operator that run as one; one at least.
    Run(Vec<Job>),
    /// Nothing before this moment, unless something comes.
    NotBefore(Instant),
    Nothing,
}

impl Waiting {
    /// From here on jobs of `operator` gather.
    pub fn gather(&mut self, operator: Installed, batching: Batching) {
        self.gatherings.insert(operator, Gathering { batching, jobs: VecDeque::new(), removed: false });
    }

    /// Jobs of `operator` wait for no others any more.
    pub fn remove(&mut self, operator: Installed) {
        if let Some(gathering) = self.gatherings.get_mut(&operator) {
            gathering.removed = true;
        }
        self.gatherings.retain(|_, gathering| !gathering.removed || !gathering.jobs.is_empty());
    }

    /// Nothing more will come: no job waits for others.
    pub fn close(&mut self) {
        self.closed = true;
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether some jobs wait for others, so that somebody has to look at the time.
    pub fn gathers(&self) -> bool {
        self.turns.iter().any(|turn| matches!(turn, Turn::Gathering(_)))
    }

    /// Queues a job at the time `now`, or gives it back when its lane is full for `threads` threads: so many jobs that
    /// a thread that finishes always finds the next ones, so few that items wait in front of the pool, where policies
    /// apply.
    pub fn submit(&mut self, job: Job, threads: usize, now: Instant) -> Result<(), Box<Job>> {
        let lane = job.lane;
        match self.gatherings.get_mut(&job.operator) {
            Some(gathering) => {
                let waiting = gathering.jobs.iter().filter(|(_, job)| job.lane == lane).count();
                if waiting >= threads.max(gathering.batching.items) * 2 {
                    return Err(Box::new(job));
                }
                if gathering.jobs.is_empty() {
                    self.turns.push_back(Turn::Gathering(job.operator));
                }
                gathering.jobs.push_back((now, job));
            }
            None => {
                let jobs = self.lanes.entry(lane).or_default();
                if jobs.len() >= threads * 2 {
                    return Err(Box::new(job));
                }
                jobs.push_back(job);
                if jobs.len() == 1 {
                    self.turns.push_back(Turn::Lane(lane));
                }
            }
        }
        Ok(())
    }

    /// What runs at the time `now`.
    pub fn next(&mut self, now: Instant) -> Next {
        let mut earliest: Option<Instant> = None;
        for _ in 0..self.turns.len() {
            let Some(turn) = self.turns.pop_front() else { break };
            let (jobs, more) = match turn {
                Turn::Lane(lane) => self.take_from_lane(lane),
                Turn::Gathering(operator) => {
                    let due = self.gatherings.get(&operator).and_then(|gathering| gathering.due(self.closed));
                    if let Some(due) = due.filter(|due| *due > now) {
                        earliest = Some(earliest.map_or(due, |earliest| earliest.min(due)));
                        (Vec::new(), true)
                    } else {
                        self.take_from_gathering(operator)
                    }
                }
            };
            if more {
                self.turns.push_back(turn);
            }
            if !jobs.is_empty() {
                return Next::Run(jobs);
            }
        }
        earliest.map_or(Next::Nothing, Next::NotBefore)
    }

    /// The next job of a lane, and whether it has more.
    fn take_from_lane(&mut self, lane: Lane) -> (Vec<Job>, bool) {
        let Some(jobs) = self.lanes.get_mut(&lane) else { return (Vec::new(), false) };
        let job = jobs.pop_front();
        let more = !jobs.is_empty();
        if !more {
            self.lanes.remove(&lane);
        }
        (job.into_iter().collect(), more)
    }

    /// As many jobs as run as one, and whether there are more.
    fn take_from_gathering(&mut self, operator: Installed) -> (Vec<Job>, bool) {
        let Some(gathering) = self.gatherings.get_mut(&operator) else { return (Vec::new(), false) };
        let count = gathering.jobs.len().min(gathering.batching.items);
        let jobs = gathering.jobs.drain(..count).map(|(_, job)| job).collect();
        let more = !gathering.jobs.is_empty();
        if !more && gathering.removed {
            self.gatherings.remove(&operator);
        }
        (jobs, more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;
    use std::time::Duration;

    use crate::clock::{Clock, SimulatedClock};
    use crate::error::ItemError;
    use crate::inference::pool::Completion;
    use crate::item::{Payload, Placement, Tensor, TensorData};
    use crate::testing::item;
    use crate::time::MediaTime;
    use proptest::prelude::*;

    struct Nobody;

    impl Completion for Nobody {
        fn name(&self) -> String {
            "nobody".to_owned()
        }

        fn complete(&self, _ticket: u64, _result: Result<Payload, ItemError>, _busy: Duration) {}
    }

    fn job(operator: u64, lane: u64, ticket: u64) -> Job {
        let placement = Placement { source_width: 1, source_height: 1, scale: [1.0; 2], offset: [0.0; 2] };
        let tensor = Tensor { shape: [1, 1, 1], data: TensorData::U8(vec![0]), placement, index: None };
        let (item, _account) = item(0, MediaTime::from_micros(0), Payload::Tensor(Arc::new(tensor)));
        Job { operator: Installed(operator), lane: Lane(lane), ticket, item, completion: Arc::new(Nobody) }
    }

    /// The tickets that run as one; `Err`: when to look again, where there is anything to wait for.
    fn next(waiting: &mut Waiting, now: Instant) -> Result<Vec<u64>, Option<Instant>> {
        match waiting.next(now) {
            Next::Run(jobs) => Ok(jobs.iter().map(|job| job.ticket).collect()),
            Next::NotBefore(due) => Err(Some(due)),
            Next::Nothing => Err(None),
        }
    }

    const WAIT: Duration = Duration::from_millis(5);
    const BATCHED: u64 = 9;

    fn gathering(items: usize) -> Waiting {
        let mut waiting = Waiting::default();
        waiting.gather(Installed(BATCHED), Batching { items, wait: WAIT });
        waiting
    }

    /// A lane that is always full, and one with a job now and then: they take turns.
    #[test]
    fn lanes_take_turns() {
        let now = SimulatedClock::default().now();
        let mut waiting = Waiting::default();
        for (ticket, lane) in [0, 0, 0, 0, 1, 0].into_iter().enumerate() {
            assert!(waiting.submit(job(0, lane, ticket as u64), 8, now).is_ok());
        }
        let tickets: Vec<u64> = std::iter::from_fn(|| next(&mut waiting, now).ok()).flatten().collect();
        assert_eq!(tickets, [0, 4, 1, 2, 3, 5]);
        assert!(waiting.lanes.is_empty() && waiting.turns.is_empty());
    }

    #[test]
    fn a_batch_runs_when_it_is_full_or_when_its_first_job_has_waited() {
        let clock = SimulatedClock::default();
        let mut waiting = gathering(3);
        let start = clock.now();
        // Jobs of different lanes gather in one batch; a fourth one begins the next.
        for ticket in 0..4 {
            if ticket < 3 {
                assert_eq!(next(&mut waiting, clock.now()), Err((ticket > 0).then(|| start + WAIT)));
            }
            assert!(waiting.submit(job(BATCHED, ticket % 2, ticket), 2, clock.now()).is_ok());
            if ticket == 0 {
                clock.advance(WAIT / 5);
            }
        }
        assert_eq!(next(&mut waiting, clock.now()), Ok(vec![0, 1, 2]));
        // The fourth one came a millisecond later, and waits from then on.
        assert_eq!(next(&mut waiting, clock.now()), Err(Some(start + WAIT / 5 + WAIT)));
        clock.advance(WAIT - Duration::from_nanos(1));
        assert!(next(&mut waiting, clock.now()).is_err());
        clock.advance(Duration::from_nanos(1));
        assert_eq!(next(&mut waiting, clock.now()), Ok(vec![3]));
        assert_eq!(next(&mut waiting, clock.now()), Err(None));
        assert!(!waiting.gathers());
    }

    #[test]
    fn jobs_that_gather_hold_nobody_up_and_take_turns_when_they_are_due() {
        let clock = SimulatedClock::default();
        let mut waiting = gathering(2);
        assert!(waiting.submit(job(BATCHED, 0, 0), 4, clock.now()).is_ok());
        for ticket in 10..13 {
            assert!(waiting.submit(job(0, 1, ticket), 4, clock.now()).is_ok());
        }
        assert_eq!(next(&mut waiting, clock.now()), Ok(vec![10]), "what can run goes before what waits");
        assert!(waiting.gathers());
        for ticket in 1..4 {
            assert!(waiting.submit(job(BATCHED, 0, ticket), 4, clock.now()).is_ok());
        }
        let order: Vec<Vec<u64>> = std::iter::from_fn(|| next(&mut waiting, clock.now()).ok()).collect();
        assert_eq!(order, [vec![0, 1], vec![11], vec![2, 3], vec![12]]);
    }

    #[test]
    fn each_lane_has_its_own_bound_in_a_batch() {
        let now = SimulatedClock::default().now();
        let mut waiting = gathering(4);
        for ticket in 0..8 {
            assert!(waiting.submit(job(BATCHED, 0, ticket), 1, now).is_ok(), "two batches of its own");
        }
        assert_eq!(waiting.submit(job(BATCHED, 0, 8), 1, now).err().map(|job| job.ticket), Some(8));
        assert!(waiting.submit(job(BATCHED, 1, 9), 1, now).is_ok(), "another lane has room");
        assert_eq!(next(&mut waiting, now), Ok(vec![0, 1, 2, 3]));
        assert!(waiting.submit(job(BATCHED, 0, 8), 1, now).is_ok());
    }

    #[test]
    fn nothing_waits_for_jobs_that_cannot_come() {
        let now = SimulatedClock::default().now();
        let mut waiting = gathering(4);
        assert!(waiting.submit(job(BATCHED, 0, 0), 1, now).is_ok());
        waiting.remove(Installed(BATCHED));
        // What still comes is due as well; later it waits in its lane, like any job.
        assert!(waiting.submit(job(BATCHED, 0, 1), 1, now).is_ok());
        assert_eq!(next(&mut waiting, now), Ok(vec![0, 1]));
        assert!(waiting.gatherings.is_empty() && waiting.turns.is_empty());
        assert!(waiting.submit(job(BATCHED, 0, 2), 1, now).is_ok());
        assert_eq!(next(&mut waiting, now), Ok(vec![2]));

        let mut waiting = gathering(4);
        assert!(waiting.submit(job(BATCHED, 0, 0), 1, now).is_ok());
        waiting.close();
        assert_eq!(next(&mut waiting, now), Ok(vec![0]));
        waiting.remove(Installed(BATCHED));
        assert!(waiting.gatherings.is_empty());
    }

    /// What somebody does to the queue.
    #[derive(Clone, Copy, Debug)]
    enum Deed {
        Submit { operator: u64, lane: u64 },
        Take,
        Wait(u64),
        Remove,
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            6 => (prop_oneof![Just(0), Just(BATCHED)], 0..3u64)
                .prop_map(|(operator, lane)| Deed::Submit { operator, lane }),
            4 => Just(Deed::Take),
            2 => (0..8u64).prop_map(Deed::Wait),
            1 => Just(Deed::Remove),
        ]
    }

    proptest! {
        /// Whatever happens: what was taken in comes out once, that of one operator and lane in its order, no more of it
        /// at once than may run as one, and nothing stays behind.
        #[test]
        fn every_job_comes_out_once_and_in_order(items in 2..5usize, deeds in prop::collection::vec(deed(), 0..120)) {
            let clock = SimulatedClock::default();
            let mut waiting = gathering(items);
            let (mut accepted, mut out) = (Vec::new(), Vec::new());
            let mut take = |jobs: Vec<Job>| {
                let operators: Vec<Installed> = jobs.iter().map(|job| job.operator).collect();
                assert!(operators.iter().all(|operator| *operator == operators[0]));
                assert!(jobs.len() <= if operators[0] == Installed(BATCHED) { items } else { 1 });
                out.extend(jobs.into_iter().map(|job| (job.operator.0, job.lane.0, job.ticket)));
            };
            let mut removed = false;
            for (ticket, deed) in (0..).zip(deeds) {
                match deed {
                    Deed::Submit { operator, lane } => {
                        // The jobs of a lane are those of one node.
                        let lane = lane + 10 * operator;
                        if waiting.submit(job(operator, lane, ticket), 2, clock.now()).is_ok() {
                            accepted.push((operator, lane, ticket));
                        }
                    }
                    Deed::Take => {
                        if let Next::Run(jobs) = waiting.next(clock.now()) {
                            take(jobs);
                        }
                    }
                    Deed::Wait(milliseconds) => clock.advance(Duration::from_millis(milliseconds)),
                    Deed::Remove if removed => {}
                    Deed::Remove => {
                        removed = true;
                        waiting.remove(Installed(BATCHED));
                    }
                }
            }
            waiting.close();
            while let Next::Run(jobs) = waiting.next(clock.now()) {
                take(jobs);
            }
            prop_assert!(matches!(waiting.next(clock.now()), Next::Nothing));
            prop_assert!(waiting.turns.is_empty() && waiting.lanes.is_empty());
            for key in accepted.iter().map(|(operator, lane, _)| (*operator, *lane)).collect::<std::collections::BTreeSet<_>>() {
                let of_lane = |all: &[(u64, u64, u64)]| -> Vec<u64> {
                    all.iter().filter(|(operator, lane, _)| (*operator, *lane) == key).map(|(_, _, ticket)| *ticket).collect()
                };
                prop_assert_eq!(of_lane(&accepted), of_lane(&out));
            }
            prop_assert_eq!(accepted.len(), out.len());
        }
    }
}
