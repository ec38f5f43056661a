//! Runs an inline operator on a worker: one state for each stream, panics contained.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use operators::clock::Clock;
use operators::error::ItemError;
use operators::inference::pool::panic_text;
use operators::item::{EndReason, Event, Item, StreamId, StreamInfo};
use operators::lease::Account;
use operators::operator::{InlineOperator, Output, StreamOperator};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;

use super::node::{Node, is_error};
use super::passage::{Cut, Inheritance, Passage};
use crate::graph::plan::OnError;

/// Adds the node to the dataflow. Each of its streams comes by so many `ways` and has ended when all have said so.
pub fn inline<'scope>(
    input: StreamVec<'scope, u64, Passage>,
    operator: Arc<dyn InlineOperator>,
    node: Node,
    ways: usize,
) -> StreamVec<'scope, u64, Passage> {
    let worker = input.scope().index();
    let name = node.origin.node.to_string();
    let mut states =
        States { operator, node, ways, streams: HashMap::new(), ended: HashMap::new(), output: Output::default() };
    input.unary::<CapacityContainerBuilder<Vec<Passage>>, _, _, _>(Pipeline, &name, move |_capability, _info| {
        let mut results = Vec::new();
        move |input, output| {
            input.for_each(|time, passages| {
                let start = states.node.clock.now();
                states.node.counters.begin(worker, start);
                let mut items = 0;
                let mut work = Shares::new(states.node.origin.node.clone(), start);
                for passage in passages.drain(..) {
                    items += u64::from(passage.is_item());
                    work.goes_on_with(&passage, &*states.node.clock);
                    states.handle(passage, &mut results);
                }
                results.iter().for_each(|passage| states.node.tell(passage));
                output.session(&time).give_container(&mut results);
                results.clear();
                let counters = &states.node.counters;
                counters.items(worker, items);
                let end = states.node.clock.now();
                counters.end(worker, end.saturating_duration_since(start), end);
                work.end(end);
            });
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
}

struct Stream {
    state: Box<dyn StreamOperator>,
    /// Given again to the state that replaces one lost in a panic.
    info: Option<Arc<StreamInfo>>,
}

impl States {
    fn handle(&mut self, passage: Passage, results: &mut Vec<Passage>) {
        match passage {
            Passage::Event(Event::Item(item)) if !is_error(&item) => self.item(item, results),
            Passage::Event(Event::Item(_)) => results.push(passage),
            Passage::Event(signal) => self.signal(signal, results),
            Passage::Cut { stream, cut } => self.cut(stream, cut, results),
            Passage::Resume { stream, cut, info } => self.resume(stream, cut, info, results),
        }
    }

    /// Nothing more of the stream comes through this generation: hands its state over, or ends it.
    fn cut(&mut self, stream: StreamId, cut: Arc<Cut>, results: &mut Vec<Passage>) {
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
            results.extend(self.output.drain().map(|item| Passage::Event(Event::Item(item))));
            if let Err(panic) = outcome {
                self.panicked_on_signal(&stream, &panic);
            }
            self.forget(&stream);
        }
        results.push(Passage::Cut { stream, cut });
    }

    /// From here on the stream comes through this generation: goes on with the state of the one before, or anew.
    fn resume(&mut self, stream: StreamId, cut: Arc<Cut>, info: Option<Arc<StreamInfo>>, results: &mut Vec<Passage>) {
        let Some(Inheritance(state)) = cut.take_over(&self.node.origin.node) else { return };
        match (state.and_then(|state| state.downcast::<Stream>().ok()), &info) {
            (Some(state), _) => {
                self.streams.insert(stream.clone(), *state);
                results.push(Passage::Resume { stream, cut, info });
            }
            (None, Some(format)) => {
                let opened = self.guarded(&stream, |state, output| {
                    state.info = Some(format.clone());
                    state.state.open(format, output);
                });
                results.push(Passage::Resume { stream: stream.clone(), cut, info });
                results.extend(self.output.drain().map(|item| Passage::Event(Event::Item(item))));
                if let Err(panic) = opened {
                    self.panicked_on_signal(&stream, &panic);
                    self.discard(&stream, None, results);
                }
            }
            (None, None) => results.push(Passage::Resume { stream, cut, info }),
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

    fn item(&mut self, item: Item, results: &mut Vec<Passage>) {
        let outcome = self.guarded(&item.stream, |stream, output| stream.state.item(&item, output));
        results.extend(self.output.drain().map(|item| Passage::Event(Event::Item(item))));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => results.push(rejected(&self.node, &item, &error)),
            Err(panic) => {
                results.push(rejected(&self.node, &item, &ItemError::Panicked(panic)));
                self.discard(&item.stream, Some(item.seq), results);
            }
        }
        item.lease.ack.release();
    }

    /// Signals pass to the operator first, then on, so that what it emits comes before an `end`.
    fn signal(&mut self, signal: Event, results: &mut Vec<Passage>) {
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
        let emitted: Vec<Passage> = self.output.drain().map(|item| Passage::Event(Event::Item(item))).collect();
        let signal = Passage::Event(signal);
        if opened {
            results.push(signal);
            results.extend(emitted);
        } else {
            results.extend(emitted);
            results.push(signal);
        }
        if let Err(panic) = outcome {
            self.panicked_on_signal(&id, &panic);
            if !ended {
                self.discard(&id, None, results);
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
    fn discard(&mut self, id: &StreamId, seq: Option<u64>, results: &mut Vec<Passage>) {
        let info = self.streams.get(id).and_then(|stream| stream.info.clone());
        self.forget(id);
        results.push(Passage::Event(self.node.gap_after_panic(id, seq)));
        if let Some(info) = info {
            // One that panics again starts anew with the next item.
            let reopened = self.guarded(id, |stream, output| {
                stream.info = Some(info.clone());
                stream.state.open(&info, output);
            });
            results.extend(self.output.drain().map(|item| Passage::Event(Event::Item(item))));
            if reopened.is_err() {
                self.forget(id);
            }
        }
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

fn rejected(node: &Node, item: &Item, error: &ItemError) -> Passage {
    Passage::Event(Event::Item(node.reject(item, error)))
}
