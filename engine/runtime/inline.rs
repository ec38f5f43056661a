//! Runs an inline operator on a worker: one state for each stream, panics contained.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use operators::error::ItemError;
use operators::inference::pool::panic_text;
use operators::item::{Event, Item, StreamId, StreamInfo};
use operators::operator::{InlineOperator, Output, StreamOperator};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;

use super::node::{Node, is_error};

/// Adds the node to the dataflow.
pub fn inline<'scope>(
    input: StreamVec<'scope, u64, Event>,
    operator: Arc<dyn InlineOperator>,
    node: Node,
) -> StreamVec<'scope, u64, Event> {
    let worker = input.scope().index();
    let name = node.origin.node.to_string();
    let mut states = States { operator, node, streams: HashMap::new(), output: Output::default() };
    input.unary::<CapacityContainerBuilder<Vec<Event>>, _, _, _>(Pipeline, &name, move |_capability, _info| {
        let mut results = Vec::new();
        move |input, output| {
            input.for_each(|time, events| {
                let start = states.node.clock.now();
                let mut items = 0;
                for event in events.drain(..) {
                    items += u64::from(matches!(event, Event::Item(_)));
                    states.handle(event, &mut results);
                }
                output.session(&time).give_container(&mut results);
                results.clear();
                let counters = &states.node.counters;
                counters.items(worker, items);
                counters.busy(states.node.clock.now().saturating_duration_since(start));
            });
        }
    })
}

struct States {
    operator: Arc<dyn InlineOperator>,
    node: Node,
    streams: HashMap<StreamId, Stream>,
    output: Output,
}

struct Stream {
    state: Box<dyn StreamOperator>,
    /// Given again to the state that replaces one lost in a panic.
    info: Option<Arc<StreamInfo>>,
}

impl States {
    fn handle(&mut self, event: Event, results: &mut Vec<Event>) {
        match event {
            Event::Item(item) if is_error(&item) => results.push(Event::Item(item)),
            Event::Item(item) => self.item(item, results),
            signal => self.signal(signal, results),
        }
    }

    fn item(&mut self, item: Item, results: &mut Vec<Event>) {
        let stream = stream_state(&mut self.streams, &*self.operator, &item.stream);
        let output = &mut self.output;
        let outcome = catch_unwind(AssertUnwindSafe(|| stream.state.item(&item, output)));
        results.extend(self.output.drain().map(Event::Item));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => results.push(Event::Item(self.node.reject(&item, &error))),
            Err(panic) => {
                let error = ItemError::Panicked(panic_text(&*panic));
                results.push(Event::Item(self.node.reject(&item, &error)));
                self.discard(&item.stream, item.seq, results);
            }
        }
        item.lease.ack.release();
    }

    /// Signals pass to the operator first, then on, so that what it emits comes before an `end`.
    fn signal(&mut self, signal: Event, results: &mut Vec<Event>) {
        let id = signal.stream().clone();
        let stream = stream_state(&mut self.streams, &*self.operator, &id);
        let output = &mut self.output;
        let outcome = catch_unwind(AssertUnwindSafe(|| match &signal {
            Event::Open { info, .. } => {
                stream.info = Some(info.clone());
                stream.state.open(info, output);
            }
            Event::Gap { gap, .. } => stream.state.gap(gap, output),
            Event::End { reason, .. } => stream.state.end(reason, output),
            Event::Item(_) => {}
        }));
        let ended = matches!(signal, Event::End { .. });
        let opened = matches!(signal, Event::Open { .. });
        // An operator learns of a format before its consumers do; what it emits on opening belongs behind the signal.
        let emitted: Vec<Event> = self.output.drain().map(Event::Item).collect();
        if opened {
            results.push(signal);
            results.extend(emitted);
        } else {
            results.extend(emitted);
            results.push(signal);
        }
        if let Err(panic) = outcome {
            let message =
                format!("`{}` panicked on a signal of stream `{id}`: {}", self.node.origin.node, panic_text(&*panic));
            self.node.counters.error(&message, self.node.clock.now());
            tracing::warn!(node = %self.node.origin.node, stream = %id, "{message}");
            self.streams.remove(&id);
        } else if ended {
            self.streams.remove(&id);
        }
    }

    fn discard(&mut self, id: &StreamId, seq: u64, results: &mut Vec<Event>) {
        let info = self.streams.remove(id).and_then(|stream| stream.info);
        results.push(self.node.gap_after_panic(id, seq));
        if let Some(info) = info {
            let stream = stream_state(&mut self.streams, &*self.operator, id);
            stream.state.open(&info, &mut self.output);
            stream.info = Some(info);
            results.extend(self.output.drain().map(Event::Item));
        }
    }
}

fn stream_state<'a>(
    streams: &'a mut HashMap<StreamId, Stream>,
    operator: &dyn InlineOperator,
    id: &StreamId,
) -> &'a mut Stream {
    if !streams.contains_key(id) {
        streams.insert(id.clone(), Stream { state: operator.start(id), info: None });
    }
    streams.get_mut(id).expect("just inserted")
}
