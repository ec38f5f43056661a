//! Runs an operator whose work is done elsewhere: jobs go to the inference pool or to the io runtime, results come back
//! in stream order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use operators::error::ItemError;
use operators::inference::pool::{Completion, Installed, Job, Lane, Pool};
use operators::item::{Event, Item, Kind, Payload, StreamId};
use operators::lease::Credit;
use operators::lock::lock;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::{Capability, InputCapability};
use timely::scheduling::Activator;
use timely::scheduling::activate::SyncActivator;

use super::conversations::{Conversations, Submitted};
use super::entry::{Admission, Entry};
use super::node::{Node, is_error};
use super::passage::Passage;
use super::tally::Tally;
use crate::graph::plan;

/// How a node's work is done.
#[derive(Clone)]
pub struct Offloaded {
    pub executor: Executor,
    pub entry: Option<plan::Entry>,
}

/// Who does the work.
#[derive(Clone)]
pub enum Executor {
    Pool {
        pool: Arc<Pool>,
        operator: Installed,
        /// Longest time from submission to answer.
        deadline: Duration,
    },
    Io(Conversations),
}

/// One worker's way to whoever does the work.
enum Way {
    Pool { pool: Arc<Pool>, operator: Installed, lane: Lane, deadline: Duration },
    Io(Conversations, Submitted),
}

impl Way {
    fn to(executor: Executor) -> Way {
        match executor {
            Executor::Pool { pool, operator, deadline } => Way::Pool { lane: pool.lane(), pool, operator, deadline },
            Executor::Io(conversations) => Way::Io(conversations, Submitted::default()),
        }
    }

    /// Longest time from submission to answer, where there is one.
    fn deadline(&self) -> Option<Duration> {
        match self {
            Way::Pool { deadline, .. } => Some(*deadline),
            Way::Io(..) => None,
        }
    }

    /// Hands a job over; `false` where there is no room for it: then one of those that were handed over will complete.
    fn submit(&self, ticket: u64, item: Item, completion: Arc<Completions>) -> bool {
        let refused = match self {
            Way::Pool { pool, operator, lane, .. } => {
                let job = Job { operator: *operator, lane: *lane, ticket, item, completion };
                pool.submit(job).err().map(|job| job.item)
            }
            Way::Io(conversations, submitted) => {
                conversations.submit(submitted, ticket, item, completion).err().map(|item| *item)
            }
        };
        match refused {
            Some(item) => {
                item.lease.ack.release();
                false
            }
            None => true,
        }
    }
}

/// Adds the node to the dataflow.
pub fn offload<'scope>(
    input: StreamVec<'scope, u64, Passage>,
    offloaded: Offloaded,
    node: Node,
) -> StreamVec<'scope, u64, Passage> {
    let scope = input.scope();
    let worker = scope.index();
    let name = node.origin.node.to_string();
    input.unary::<CapacityContainerBuilder<Vec<Passage>>, _, _, _>(Pipeline, &name, move |_capability, info| {
        let completions = Arc::new(Completions {
            node: node.clone(),
            done: Mutex::default(),
            waker: scope.worker().sync_activator_for(info.address.to_vec()),
        });
        let mut jobs = Jobs {
            worker,
            entry: Entry::new(offloaded.entry),
            way: Way::to(offloaded.executor),
            waiting: Tally::new(&node.counters),
            node,
            completions,
            timer: scope.activator_for(info.address),
            next_ticket: 0,
            lines: HashMap::new(),
            places: HashMap::new(),
            unsubmitted: VecDeque::new(),
            due: VecDeque::new(),
            unanswered: VecDeque::new(),
            wakes_at: None,
            touched: Vec::new(),
        };
        let mut held = Held::default();
        let mut ready = Vec::new();
        move |input, output| {
            input.for_each(|time, passages| {
                held.retain(&time, passages.len());
                jobs.arrive(*time.time(), passages);
            });
            jobs.collect();
            jobs.submit();
            jobs.expire();
            jobs.tell_oldest();
            jobs.take_ready(&mut ready);
            for slot in ready.drain(..) {
                let time = slot.time;
                if let SlotState::Ready(passage, _) = &slot.state {
                    jobs.node.tell(passage);
                }
                if let Some(capability) = held.get(time) {
                    output.session(capability).give_iterator(slot.passages());
                }
                held.release(time);
            }
        }
    })
}

/// Results on their way back to the worker. Bounded by the leases of the items under way.
struct Completions {
    node: Node,
    done: Mutex<Vec<Done>>,
    waker: SyncActivator,
}

struct Done {
    ticket: u64,
    result: Result<Payload, ItemError>,
    busy: Duration,
}

impl Completion for Completions {
    fn name(&self) -> String {
        format!("`{}` of graph `{}`", self.node.origin.node, self.node.origin.graph)
    }

    fn started(&self, now: Instant) {
        self.node.counters.begin(0, now);
    }

    fn ended(&self, now: Instant) {
        self.node.counters.rest(0, now);
    }

    fn complete(&self, ticket: u64, result: Result<Payload, ItemError>, busy: Duration) {
        self.node.counters.took(busy);
        let first = {
            let mut done = lock(&self.done);
            done.push(Done { ticket, result, busy });
            done.len() == 1
        };
        if first {
            // Fails only when the worker is gone; the results are discarded with it.
            let _ = self.waker.activate();
        }
    }
}

/// Capabilities of the ticks that still have something under way.
#[derive(Default)]
pub(super) struct Held(BTreeMap<u64, (Capability<u64>, usize)>);

impl Held {
    pub(super) fn retain(&mut self, time: &InputCapability<u64>, count: usize) {
        if count > 0 {
            self.0.entry(*time.time()).or_insert_with(|| (time.retain(0), 0)).1 += count;
        }
    }

    pub(super) fn get(&self, time: u64) -> Option<&Capability<u64>> {
        self.0.get(&time).map(|(capability, _)| capability)
    }

    pub(super) fn release(&mut self, time: u64) {
        if let Some((_, count)) = self.0.get_mut(&time) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&time);
            }
        }
    }
}

/// One place in a stream's order.
struct Slot {
    /// The tick that it arrived at.
    time: u64,
    state: SlotState,
}

enum SlotState {
    /// What goes on from here, and a gap behind it where state was lost.
    Ready(Passage, Option<Event>),
    /// A job that has no answer yet.
    Waiting(Item),
    /// Dropped by the entry's policy, or nothing that others need to know.
    Vacant,
}

impl Slot {
    fn passages(self) -> impl Iterator<Item = Passage> {
        let (first, second) = match self.state {
            SlotState::Ready(passage, gap) => (Some(passage), gap.map(Passage::Event)),
            SlotState::Waiting(_) | SlotState::Vacant => (None, None),
        };
        first.into_iter().chain(second)
    }
}

/// What is under way of one stream, in order.
#[derive(Default)]
struct Line {
    slots: VecDeque<Slot>,
    /// How many slots have left at the front: the position of the first one that is here.
    gone: u64,
}

impl Line {
    fn push(&mut self, slot: Slot) -> u64 {
        self.slots.push_back(slot);
        self.gone + self.slots.len() as u64 - 1
    }

    fn at(&mut self, position: u64) -> Option<&mut Slot> {
        let index = usize::try_from(position.checked_sub(self.gone)?).ok()?;
        self.slots.get_mut(index)
    }
}

struct Jobs {
    worker: usize,
    way: Way,
    /// Items that have no answer yet.
    waiting: Tally,
    entry: Option<Entry>,
    node: Node,
    completions: Arc<Completions>,
    timer: Activator,
    next_ticket: u64,
    lines: HashMap<StreamId, Line>,
    /// Where each unanswered ticket stands. A ticket that is not here was given up.
    places: HashMap<u64, (StreamId, u64)>,
    /// Tickets that the pool has not taken yet, oldest first.
    unsubmitted: VecDeque<u64>,
    /// When each submitted ticket is late, in order.
    due: VecDeque<(Instant, u64)>,
    /// Every ticket that may have no answer yet, with when its picture was decoded; in order, so the first is the oldest.
    unanswered: VecDeque<(u64, Option<Instant>)>,
    /// When the timer looks for late jobs next.
    wakes_at: Option<Instant>,
    /// Streams whose line may have something ready at its front.
    touched: Vec<StreamId>,
}

impl Jobs {
    fn arrive(&mut self, time: u64, passages: &mut Vec<Passage>) {
        let mut items = 0;
        for passage in passages.drain(..) {
            let passage = match passage {
                Passage::Event(Event::Item(item)) if !is_error(&item) => {
                    items += 1;
                    self.admit(time, item);
                    continue;
                }
                other => other,
            };
            let stream = passage.stream().clone();
            let node = &self.node.origin.node;
            // A mark goes on once: when all inputs have brought it, or when the first one has.
            let goes_on = match &passage {
                Passage::Event(_) => true,
                Passage::Cut { cut, .. } => cut.arrives(node),
                Passage::Resume { cut, .. } => cut.take_over(node).is_some(),
            };
            let state = if goes_on { SlotState::Ready(passage, None) } else { SlotState::Vacant };
            self.lines.entry(stream.clone()).or_default().push(Slot { time, state });
            self.touched.push(stream);
        }
        self.node.counters.items(self.worker, items);
    }

    fn admit(&mut self, time: u64, mut item: Item) {
        let stream = item.stream.clone();
        if self.entry.is_none() && item.lease.credit.as_ref().is_some_and(Credit::is_last) {
            // Without this the tap would have to drop the next picture, though an older one only waits here.
            self.evict(&stream);
        }
        while let Some(entry) = &mut self.entry {
            let answer = match entry.admit(&mut item) {
                Admission::Admitted => break,
                Admission::Full if self.evict(&stream) => continue,
                Admission::Full => {
                    self.node.drop_item(item);
                    SlotState::Vacant
                }
                Admission::TooLarge(error) => outcome(&self.node, item, Err(error)),
            };
            self.lines.entry(stream.clone()).or_default().push(Slot { time, state: answer });
            self.touched.push(stream);
            return;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.unanswered.push_back((ticket, item.lease.ack.born()));
        let line = self.lines.entry(stream.clone()).or_default();
        let position = line.push(Slot { time, state: SlotState::Waiting(item) });
        self.places.insert(ticket, (stream, position));
        self.unsubmitted.push_back(ticket);
        self.waiting.add(1);
    }

    /// Drops the stream's oldest item that the pool has not taken yet; `false` where there is none.
    fn evict(&mut self, stream: &StreamId) -> bool {
        let of_stream = |ticket: &u64| self.places.get(ticket).is_some_and(|(owner, _)| owner == stream);
        let Some(index) = self.unsubmitted.iter().position(of_stream) else { return false };
        let Some(ticket) = self.unsubmitted.remove(index) else { return false };
        self.answer(ticket, |node, item| {
            node.drop_item(item);
            SlotState::Vacant
        })
    }

    /// Ends the wait of `ticket` with what `fate` makes of its item; `false` where it was given up before.
    fn answer(&mut self, ticket: u64, fate: impl FnOnce(&Node, Item) -> SlotState) -> bool {
        let Some((stream, position)) = self.places.remove(&ticket) else { return false };
        self.waiting.add(-1);
        let Some(slot) = self.lines.get_mut(&stream).and_then(|line| line.at(position)) else { return false };
        self.touched.push(stream);
        match std::mem::replace(&mut slot.state, SlotState::Vacant) {
            SlotState::Waiting(item) => slot.state = fate(&self.node, item),
            settled @ (SlotState::Ready(..) | SlotState::Vacant) => slot.state = settled,
        }
        true
    }

    /// Puts what is finished into its places.
    fn collect(&mut self) {
        let done = std::mem::take(&mut *lock(&self.completions.done));
        for Done { ticket, result, busy } in done {
            self.answer(ticket, |node, item| {
                if let Some(account) = item.lease.ack.account() {
                    account.worked(&node.origin.node, busy);
                }
                outcome(node, item, result)
            });
        }
    }

    /// Says how old the oldest item is that has no answer.
    fn tell_oldest(&mut self) {
        while self.unanswered.front().is_some_and(|(ticket, _)| !self.places.contains_key(ticket)) {
            self.unanswered.pop_front();
        }
        self.node.counters.set_oldest(self.worker, self.unanswered.front().and_then(|(_, born)| *born));
    }

    /// Gives up on jobs that are late, and asks to be woken when the next one would be.
    fn expire(&mut self) {
        let now = self.node.clock.now();
        while let Some((deadline, ticket)) = self.due.front().copied() {
            if self.places.contains_key(&ticket) && deadline > now {
                if self.wakes_at.is_none_or(|at| at <= now) {
                    // A little later, because the dataflow system's clock is not this one.
                    self.timer.activate_after(deadline - now + Duration::from_millis(1));
                    self.wakes_at = Some(deadline);
                }
                return;
            }
            self.due.pop_front();
            let late = ItemError::Late(self.way.deadline().unwrap_or_default());
            self.answer(ticket, |node, item| outcome(node, item, Err(late)));
        }
    }

    /// Hands over as much as is taken.
    fn submit(&mut self) {
        while let Some(ticket) = self.unsubmitted.pop_front() {
            let item = self.places.get(&ticket).and_then(|(stream, position)| {
                match &self.lines.get_mut(stream)?.at(*position)?.state {
                    SlotState::Waiting(item) => Some(item.clone()),
                    SlotState::Ready(..) | SlotState::Vacant => None,
                }
            });
            let Some(item) = item else { continue };
            if !self.way.submit(ticket, item, self.completions.clone()) {
                self.unsubmitted.push_front(ticket);
                // Full of this node's own jobs: the next answer brings it back here.
                return;
            }
            if let Some(deadline) = self.way.deadline() {
                self.due.push_back((self.node.clock.now() + deadline, ticket));
            }
        }
    }

    /// Takes everything off the fronts of the lines that needs no more waiting.
    fn take_ready(&mut self, ready: &mut Vec<Slot>) {
        for stream in self.touched.drain(..) {
            let Some(line) = self.lines.get_mut(&stream) else { continue };
            while line.slots.front().is_some_and(|slot| !matches!(slot.state, SlotState::Waiting(_))) {
                let Some(slot) = line.slots.pop_front() else { break };
                line.gone += 1;
                let over =
                    matches!(slot.state, SlotState::Ready(Passage::Event(Event::End { .. }) | Passage::Cut { .. }, _));
                ready.push(slot);
                if over && line.slots.is_empty() {
                    self.lines.remove(&stream);
                    break;
                }
            }
        }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        // What is left is gone with the dataflow.
        self.node.counters.set_oldest(self.worker, None);
    }
}

/// What takes the place of a job: its result, or the error record.
fn outcome(node: &Node, item: Item, result: Result<Payload, ItemError>) -> SlotState {
    let panicked = matches!(result, Err(ItemError::Panicked(_)));
    let answer = match result {
        Ok(payload) if payload.kind() == Kind::Record => item.derive(payload),
        Ok(payload) => item.replace(payload),
        Err(error) => {
            let record = node.reject(&item, &error);
            match error {
                ItemError::Told { payload, .. } => {
                    record.lease.ack.release();
                    item.derive(*payload)
                }
                ItemError::Failed(_) | ItemError::Hindered(_) | ItemError::Panicked(_) | ItemError::Late(_) => record,
            }
        }
    };
    let gap = panicked.then(|| node.gap_after_panic(&item.stream, Some(item.seq)));
    item.lease.ack.release();
    SlotState::Ready(Passage::Event(Event::Item(answer)), gap)
}
