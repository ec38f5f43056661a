//! What leaves an inline operator, in the order of each stream: items whose payloads are still being made, and what waits
//! behind them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use operators::error::ItemError;
use operators::item::{Event, Item, Payload, RecordBody, StreamId};
use operators::lock::lock;
use operators::operator::{Emitted, Later, Unmade};
use timely::scheduling::activate::SyncActivator;

use super::node::Node;
use super::passage::Passage;
use super::tally::Tally;
use super::workshop::{Customer, Workshop};

/// One worker's part of an inline node.
pub struct Outgoing {
    workshop: Workshop,
    /// Items that are not made.
    waiting: Tally,
    node: Node,
    worker: usize,
    answers: Arc<Answers>,
    /// What goes on at once: nothing of its stream waits.
    pub direct: Vec<Passage>,
    /// The streams of which something waits, in order.
    lines: HashMap<StreamId, VecDeque<Slot>>,
    /// Which stream waits for a ticket.
    tickets: HashMap<u64, StreamId>,
    next_ticket: u64,
}

/// One place in the order of a stream.
struct Slot {
    /// The tick that it belongs to.
    time: u64,
    what: What,
}

enum What {
    Ready(Passage),
    /// With its ticket, until it is made.
    Waiting(u64, Unmade),
    Made(Unmade, Box<Result<Payload, ItemError>>),
}

/// Payloads that are made, on their way back to the worker. Bounded by the leases of their items.
struct Answers {
    node: Node,
    made: Mutex<Vec<(u64, Result<Payload, ItemError>)>>,
    waker: SyncActivator,
}

impl Customer for Answers {
    fn begun(&self) -> Instant {
        let now = self.node.clock.now();
        self.node.counters.begin_making(now);
        now
    }

    fn made(&self, ticket: u64, begun: Instant, result: Result<Payload, ItemError>) {
        let now = self.node.clock.now();
        self.node.counters.end_making(now.saturating_duration_since(begun), now);
        lock(&self.made).push((ticket, result));
        // Fails only when the worker is gone; what was made is discarded with it.
        let _ = self.waker.activate();
    }
}

impl Outgoing {
    pub fn new(workshop: Workshop, node: Node, worker: usize, waker: SyncActivator) -> Outgoing {
        let answers = Arc::new(Answers { node: node.clone(), made: Mutex::default(), waker });
        Outgoing {
            workshop,
            waiting: Tally::new(&node.counters),
            node,
            worker,
            answers,
            direct: Vec::new(),
            lines: HashMap::new(),
            tickets: HashMap::new(),
            next_ticket: 0,
        }
    }

    /// `passage` goes on, behind everything of its stream. Answers whether it has to wait.
    pub fn pass(&mut self, time: u64, passage: Passage) -> bool {
        match self.lines.get_mut(passage.stream()) {
            Some(line) => {
                line.push_back(Slot { time, what: What::Ready(passage) });
                true
            }
            None => {
                self.direct.push(passage);
                false
            }
        }
    }

    /// As [`Outgoing::pass`], for what an operator has put out.
    pub fn emit(&mut self, time: u64, emitted: Emitted) -> bool {
        let Later { item, make } = match emitted {
            Emitted::Item(item) => return self.pass(time, Passage::Event(Event::Item(item))),
            Emitted::Later(later) => later,
        };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let stream = item.stream.clone();
        self.lines.entry(stream.clone()).or_default().push_back(Slot { time, what: What::Waiting(ticket, item) });
        self.tickets.insert(ticket, stream);
        self.waiting.add(1);
        self.workshop.order(ticket, make, self.answers.clone());
        self.tell_oldest();
        true
    }

    /// Takes what waits no longer, each with the tick that it belongs to.
    pub fn take_ready(&mut self, ready: &mut Vec<(u64, Passage)>) {
        let made = std::mem::take(&mut *lock(&self.answers.made));
        if made.is_empty() {
            return;
        }
        for (ticket, result) in made {
            let Some(stream) = self.tickets.remove(&ticket) else { continue };
            self.waiting.add(-1);
            let Some(line) = self.lines.get_mut(&stream) else { continue };
            let is_it = |slot: &Slot| matches!(slot.what, What::Waiting(own, _) if own == ticket);
            let place = line.iter().position(is_it);
            if let Some((place, Slot { time, what: What::Waiting(_, item) })) =
                place.and_then(|place| Some((place, line.remove(place)?)))
            {
                line.insert(place, Slot { time, what: What::Made(item, Box::new(result)) });
            }
            while let Some(slot) = line.pop_front_if(|slot| !matches!(slot.what, What::Waiting(..))) {
                let passage = match slot.what {
                    What::Ready(passage) => passage,
                    What::Made(item, result) => Passage::Event(Event::Item(outcome(&self.node, item, *result))),
                    What::Waiting(..) => continue,
                };
                ready.push((slot.time, passage));
            }
            if line.is_empty() {
                self.lines.remove(&stream);
            }
        }
        self.tell_oldest();
    }

    /// Says how old the oldest item is that is not made.
    fn tell_oldest(&self) {
        let waiting = self.lines.values().flatten().filter_map(|slot| match &slot.what {
            What::Waiting(_, item) => item.lease.ack.born(),
            What::Ready(_) | What::Made(..) => None,
        });
        self.node.counters.set_oldest(self.worker, waiting.min());
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // What is left is gone with the dataflow.
        self.node.counters.set_oldest(self.worker, None);
    }
}

/// What was made, or the error record in its place.
fn outcome(node: &Node, item: Unmade, result: Result<Payload, ItemError>) -> Item {
    match result {
        Ok(payload) => {
            if let Payload::Segment(segment) = &payload {
                item.lease.ack.sized(segment.content.len());
            }
            item.with(payload)
        }
        Err(error) => {
            let body = RecordBody::Error { message: error.to_string() };
            let failure = node.origin.signal(&item.stream, Some(item.seq), item.time, body);
            let failed = item.with(Payload::Record(Arc::new(failure)));
            let record = node.reject(&failed, &error);
            failed.lease.ack.release();
            record
        }
    }
}
