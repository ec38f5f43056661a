//! Runs an inline operator on a worker: one state for each stream, panics contained. What takes long is made elsewhere
//! ([`super::workshop`]), and the stream's order is kept ([`super::outgoing`]).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use operators::clock::Clock;
use operators::error::ItemError;
use operators::inference::pool::panic_text;
use operators::item::{EndReason, Event, Item, StreamId, StreamInfo};
use operators::lease::{Account, rejecting};
use operators::operator::{InlineOperator, Output, StreamOperator};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;

use super::node::{Node, is_error};
use super::offload::Held;
use super::outgoing::Outgoing;
use super::passage::{Cut, Inheritance, Passage};
use super::workshop::Workshop;
use crate::graph::plan::OnError;

/// Adds the node to the dataflow. Each of its streams comes by so many `ways` and has ended when all have said so.
pub fn inline<'scope>(
    input: StreamVec<'scope, u64, Passage>,
    operator: Arc<dyn InlineOperator>,
    node: Node,
    ways: usize,
    workshop: Workshop,
) -> StreamVec<'scope, u64, Passage> {
    let scope = input.scope();
    let worker = scope.index();
    let name = node.origin.node.to_string();
    input.unary::<CapacityContainerBuilder<Vec<Passage>>, _, _, _>(Pipeline, &name, move |_capability, info| {
        let waker = scope.worker().sync_activator_for(info.address.to_vec());
        let outgoing = Outgoing::new(workshop, node.clone(), worker, waker);
        let mut states = States {
            operator,
            node,
            ways,
            streams: HashMap::new(),
            ended: HashMap::new(),
            output: Output::default(),
            outgoing,
            time: 0,
            waiting: 0,
        };
        let mut held = Held::default();
        let mut ready = Vec::new();
        move |input, output| {
            input.for_each(|time, passages| {
                let start = states.node.clock.now();
                states.node.counters.begin(worker, start);
                let mut items = 0;
                states.time = *time.time();
                let mut work = Shares::new(states.node.origin.node.clone(), start);
                for passage in passages.drain(..) {
                    items += u64::from(passage.is_item());
                    work.goes_on_with(&passage, &*states.node.clock);
                    states.handle(passage);
                }
                let results = &mut states.outgoing.direct;
                results.iter().for_each(|passage| states.node.tell(passage));
                output.session(&time).give_container(results);
                results.clear();
                held.retain(&time, std::mem::take(&mut states.waiting));
                let counters = &states.node.counters;
                counters.items(worker, items);
                let end = states.node.clock.now();
                counters.end(worker, end.saturating_duration_since(start), end);
                work.end(end);
            });
            states.outgoing.take_ready(&mut ready);
            for (time, passage) in ready.drain(..) {
                states.node.tell(&passage);
                if let Some(capability) = held.get(time) {
                    output.session(capability).give(passage);
                }
                held.release(time);
            }
        }
    })
}

/// Writes down how much of a batch's time each stream took. The clock is read where another stream follows.
struct Shares {
    node: Arc<str>,
    since: Instant,
    account: Option<Arc<Account>>,
}

impl Shares {
    fn new(node: Arc<str>, now: Instant) -> Shares {
        Shares { node, since: now, account: None }
    }

    fn goes_on_with(&mut self, passage: &Passage, clock: &dyn Clock) {
        let Passage::Event(Event::Item(item)) = passage else { return };
        let Some(next) = item.lease.ack.account() else { return };
        if !self.account.as_ref().is_some_and(|account| Arc::ptr_eq(account, next)) {
            if self.account.is_some() {
                self.end(clock.now());
            }
            self.account = Some(next.clone());
        }
    }

    fn end(&mut self, now: Instant) {
        if let Some(account) = self.account.take() {
            account.worked(&self.node, now.saturating_duration_since(self.since));
        }
        self.since = now;
    }
}

struct States {
    operator: Arc<dyn InlineOperator>,
    node: Node,
    ways: usize,
    streams: HashMap<StreamId, Stream>,
    /// By how many ways streams have ended that others still bring.
    ended: HashMap<StreamId, usize>,
    output: Output,
    outgoing: Outgoing,
    /// The tick of what is worked on.
    time: u64,
    /// How many results of it wait.
    waiting: usize,
}

struct Stream {
    state: Box<dyn StreamOperator>,
    /// Given again to the state that replaces one lost in a panic.
    info: Option<Arc<StreamInfo>>,
}

impl States {
    fn handle(&mut self, passage: Passage) {
        match passage {
            Passage::Event(Event::Item(item)) if !is_error(&item) => self.item(item),
            Passage::Event(Event::Item(_)) => self.pass(passage),
            Passage::Event(signal) => self.signal(signal),
            Passage::Cut { stream, cut } => self.cut(stream, cut),
            Passage::Resume { stream, cut, info } => self.resume(stream, cut, info),
        }
    }

    /// An error record in the place of `item`.
    fn reject(&mut self, item: &Item, error: &ItemError) {
        let record = self.node.reject(item, error);
        self.pass(Passage::Event(Event::Item(record)));
    }

    fn pass(&mut self, passage: Passage) {
        self.waiting += usize::from(self.outgoing.pass(self.time, passage));
    }

    /// Passes on what the operator has put out.
    fn pass_output(&mut self) {
        for emitted in self.output.drain() {
            self.waiting += usize::from(self.outgoing.emit(self.time, emitted));
        }
    }

    /// Nothing more of the stream comes through this generation: hands its state over, or ends it.
    fn cut(&mut self, stream: StreamId, cut: Arc<Cut>) {
        let node = self.node.origin.node.clone();
        if !cut.arrives(&node) {
            return;
        }
        if cut.keeps(&node) {
            if let Some(state) = self.streams.remove(&stream) {
                cut.hand_over(&node, Box::new(state));
            }
        } else if self.streams.contains_key(&stream) {
            let reason = EndReason::Reload;
            let outcome = self.guarded(&stream, |state, output| state.state.end(&reason, output));
            self.pass_output();
            match outcome {
                Ok(()) => self.forget(&stream),
                Err(panic) => {
                    self.panicked_on_signal(&stream, &panic);
                    self.reject_held(&stream);
                }
            }
        }
        self.pass(Passage::Cut { stream, cut });
    }

    /// From here on the stream comes through this generation: goes on with the state of the one before, or anew.
    fn resume(&mut self, stream: StreamId, cut: Arc<Cut>, info: Option<Arc<StreamInfo>>) {
        let Some(Inheritance(state)) = cut.take_over(&self.node.origin.node) else { return };
        match (state.and_then(|state| state.downcast::<Stream>().ok()), &info) {
            (Some(state), _) => {
                self.streams.insert(stream.clone(), *state);
                self.pass(Passage::Resume { stream, cut, info });
            }
            (None, Some(format)) => {
                let opened = self.guarded(&stream, |state, output| {
                    state.info = Some(format.clone());
                    state.state.open(format, output);
                });
                self.pass(Passage::Resume { stream: stream.clone(), cut, info });
                self.pass_output();
                if let Err(panic) = opened {
                    self.panicked_on_signal(&stream, &panic);
                    self.discard(&stream, None);
                }
            }
            (None, None) => self.pass(Passage::Resume { stream, cut, info }),
        }
    }

    fn panicked_on_signal(&self, stream: &StreamId, panic: &str) {
        let message = format!("`{}` panicked on a signal of stream `{stream}`: {panic}", self.node.origin.node);
        self.node.counters.error(&message, self.node.clock.now());
        tracing::warn!(node = %self.node.origin.node, %stream, "{message}");
        if self.node.on_error == OnError::Stop {
            self.node.stop_graph(Some(stream), message);
        }
    }

    fn item(&mut self, item: Item) {
        let outcome = self.guarded(&item.stream, |stream, output| stream.state.item(&item, output));
        self.pass_output();
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.reject(&item, &error),
            Err(panic) => {
                self.reject(&item, &ItemError::Panicked(panic));
                self.discard(&item.stream, Some(item.seq));
            }
        }
        item.lease.ack.release();
    }

    /// Signals pass to the operator first, then on, so that what it emits comes before an `end`.
    fn signal(&mut self, signal: Event) {
        let id = signal.stream().clone();
        if matches!(signal, Event::End { .. }) && !self.ends(&id) {
            return;
        }
        let outcome = self.guarded(&id, |stream, output| match &signal {
            Event::Open { info, .. } => {
                stream.info = Some(info.clone());
                stream.state.open(info, output);
            }
            Event::Gap { gap, .. } => stream.state.gap(gap, output),
            Event::End { reason, .. } => stream.state.end(reason, output),
            Event::Item(_) => {}
        });
        let ended = matches!(signal, Event::End { .. });
        // Consumers must know of a format before they get what the operator emits on opening.
        let opened = matches!(signal, Event::Open { .. });
        let signal = Passage::Event(signal);
        if opened {
            self.pass(signal);
            self.pass_output();
        } else {
            self.pass_output();
            self.pass(signal);
        }
        if let Err(panic) = outcome {
            self.panicked_on_signal(&id, &panic);
            if ended {
                self.reject_held(&id);
            } else {
                self.discard(&id, None);
            }
        }
        if ended {
            self.forget(&id);
        }
    }

    /// One way of a stream ends; whether all have.
    fn ends(&mut self, id: &StreamId) -> bool {
        if self.ways == 1 {
            return true;
        }
        let ended = self.ended.entry(id.clone()).or_default();
        *ended += 1;
        let all = *ended == self.ways;
        if all {
            self.ended.remove(id);
        }
        all
    }

    /// Lets an operator work on its state of a stream; what a panic says, if it does. Making the state may panic too.
    fn guarded<R>(&mut self, id: &StreamId, work: impl FnOnce(&mut Stream, &mut Output) -> R) -> Result<R, String> {
        let States { operator, streams, output, .. } = self;
        let working = AssertUnwindSafe(|| {
            let stream = match streams.entry(id.clone()) {
                Entry::Occupied(stream) => stream.into_mut(),
                Entry::Vacant(place) => place.insert(Stream { state: operator.start(id), info: None }),
            };
            work(stream, output)
        });
        catch_unwind(working).map_err(|panic| panic_text(&*panic))
    }

    /// Throws away the state of a stream, which a panic may have left half-changed, and tells consumers of the gap.
    fn discard(&mut self, id: &StreamId, seq: Option<u64>) {
        let info = self.streams.get(id).and_then(|stream| stream.info.clone());
        self.reject_held(id);
        let gap = self.node.gap_after_panic(id, seq);
        self.pass(Passage::Event(gap));
        if let Some(info) = info {
            // One that panics again starts anew with the next item.
            let reopened = self.guarded(id, |stream, output| {
                stream.info = Some(info.clone());
                stream.state.open(&info, output);
            });
            self.pass_output();
            if reopened.is_err() {
                self.forget(id);
            }
        }
    }

    /// Drops the state of a stream after a panic: the items that it still had in hand are rejected with the one that it
    /// panicked at.
    fn reject_held(&mut self, id: &StreamId) {
        rejecting(|| self.forget(id));
    }

    /// Drops the state of a stream. That runs the operator's code as well.
    fn forget(&mut self, id: &StreamId) {
        if let Some(stream) = self.streams.remove(id)
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(stream)))
        {
            let node = &self.node.origin.node;
            tracing::warn!(node = %node, stream = %id, "`{node}` panicked as its state was dropped: {}", panic_text(&*panic));
        }
    }
}
