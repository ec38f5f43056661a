//! From a plan to a dataflow: every worker builds the same operators in the same order.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use operators::clock::Clock;
use operators::item::Event;
use operators::lease::Verdict;
use operators::operator::InlineOperator;
use timely::dataflow::operators::Concatenate;
use timely::dataflow::operators::vec::Filter;
use timely::dataflow::{Scope, StreamVec};
use timely::worker::Worker;

use super::counters::NodeCounters;
use super::inline::inline;
use super::mailbox::Mailbox;
use super::node::Node;
use super::offload::{Offloaded, offload};
use super::passage::Passage;
use super::sink::{SinkEnd, sink, unheard};
use super::tap::tap;
use super::workshop::Workshop;
use crate::graph::plan::Input;

/// What the workers need to build one generation of a graph.
pub struct Blueprint {
    pub graph: Arc<str>,
    pub generation: u64,
    pub clock: Arc<dyn Clock>,
    /// When the engine started: tick zero.
    pub start: Instant,
    pub taps: Vec<BlueprintTap>,
    pub operators: Vec<BlueprintOperator>,
    pub sinks: Vec<BlueprintSink>,
    /// Where inline operators have made what takes long.
    pub workshop: Workshop,
    /// Set when the generation is being torn down.
    pub frozen: Arc<AtomicBool>,
}

pub struct BlueprintTap {
    /// One for each worker.
    pub mailboxes: Vec<Arc<Mailbox>>,
    pub counters: Arc<NodeCounters>,
}

pub struct BlueprintOperator {
    pub node: Node,
    pub work: BlueprintWork,
    pub inputs: Vec<Input>,
    pub is_heard: bool,
    /// It is a sink as well.
    pub is_end: bool,
}

pub enum BlueprintWork {
    Inline(Arc<dyn InlineOperator>),
    Offloaded(Offloaded),
}

pub struct BlueprintSink {
    pub end: SinkEnd,
    pub inputs: Vec<Input>,
}

impl Blueprint {
    /// How many ends the dataflow has on each worker: each reports once that it will see nothing more.
    pub fn ends(&self) -> usize {
        self.sinks.len() + self.operators.iter().filter(|operator| !operator.is_heard).count()
    }

    /// Installs the dataflow on this worker and answers its index.
    pub fn install(&self, worker: &mut Worker) -> usize {
        let index = worker.next_dataflow_index();
        worker.dataflow_named::<u64, _, _>(&self.graph, |scope| self.build(scope));
        index
    }

    /// The names that a node's inputs go by.
    fn names(&self, inputs: &[Input]) -> Vec<Arc<str>> {
        let name = |input: &Input| match input {
            Input::Tap(index) => self.taps[*index].counters.name.clone(),
            Input::Operator(index) => self.operators[*index].node.origin.node.clone(),
        };
        inputs.iter().map(name).collect()
    }

    fn build<'scope>(&self, scope: Scope<'scope, u64>) {
        let mut built = Streams { taps: Vec::new(), operators: Vec::new() };
        for planned in &self.taps {
            let mailbox = planned.mailboxes[scope.index()].clone();
            built.taps.push(tap(scope, mailbox, planned.counters.clone(), self.clock.clone(), self.start));
        }
        for planned in &self.operators {
            let is_joined = matches!(&planned.work, BlueprintWork::Inline(operator) if operator.joins());
            let input = built.gather(scope, &planned.inputs, is_joined);
            let node = planned.node.clone();
            node.counters.set_inputs(self.names(&planned.inputs));
            let output = match &planned.work {
                BlueprintWork::Inline(operator) => {
                    let ways = if is_joined { planned.inputs.len() } else { 1 };
                    inline(input, operator.clone(), node, ways, self.workshop.clone())
                }
                BlueprintWork::Offloaded(offloaded) => offload(input, offloaded.clone(), node),
            };
            if !planned.is_heard {
                let verdict = if planned.is_end { Verdict::Delivered } else { Verdict::Filtered };
                unheard(output.clone(), self.frozen.clone(), planned.node.clone(), self.generation, verdict);
            }
            built.operators.push(output);
        }
        for planned in &self.sinks {
            let input = built.gather(scope, &planned.inputs, false);
            planned.end.node.counters.set_inputs(self.names(&planned.inputs));
            sink(input, planned.end.clone());
        }
    }
}

struct Streams<'scope> {
    taps: Vec<StreamVec<'scope, u64, Passage>>,
    operators: Vec<StreamVec<'scope, u64, Passage>>,
}

impl<'scope> Streams<'scope> {
    /// All of a node's inputs. Where they are `joined`, formats and gaps come from the sources alone: other ways tell of
    /// the same ones, later.
    fn gather(&self, scope: Scope<'scope, u64>, inputs: &[Input], joined: bool) -> StreamVec<'scope, u64, Passage> {
        let is_told_again =
            |passage: &Passage| matches!(passage, Passage::Event(Event::Open { .. } | Event::Gap { .. }));
        let stream = |input: &Input| match input {
            Input::Tap(index) => self.taps[*index].clone(),
            Input::Operator(index) if joined => {
                self.operators[*index].clone().filter(move |passage| !is_told_again(passage))
            }
            Input::Operator(index) => self.operators[*index].clone(),
        };
        match inputs {
            [only] => stream(only),
            several => scope.concatenate(several.iter().map(stream)),
        }
    }
}
