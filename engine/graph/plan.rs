//! The physical plan: what runs where, and what each source must deliver.
//!
//! A *tap* is one edge out of a source: it has its own sampler, bounded queue, budget and overflow policy, so a branch
//! that drops never slows another. A `sample` right behind a source has no node of its own: it is part of its taps and
//! runs on the source's thread.

use std::sync::Arc;

use operators::item::Kind;
use operators::lease::Limits;
use operators::operator::{InlineOperator, IoOperator, PoolOperator, Sink, SinkInput, Source};
use operators::progress::Progress;
use operators::reach::Hosts;
use operators::transforms::sample::Sampling;
use serde::Serialize;

use super::chaos::Chaos;
use super::identity::{Identity, Template};
use super::substitute::Secrets;

/// A graph, ready to run.
pub struct Plan {
    pub graph: Arc<str>,
    pub sources: Vec<PlannedSource>,
    pub taps: Vec<PlannedTap>,
    /// Every operator stands behind its inputs.
    pub operators: Vec<PlannedOperator>,
    pub sinks: Vec<PlannedSink>,
    pub workers: usize,
    pub pool_threads: usize,
    /// What nothing that the graph tells at run time may show.
    pub secrets: Arc<Secrets>,
    /// The hosts that its inputs may lead on to.
    pub hosts: Hosts,
    /// What is disturbed on purpose.
    pub chaos: Option<Chaos>,
}

pub struct PlannedSource {
    pub name: Arc<str>,
    pub type_name: &'static str,
    pub source: Arc<dyn Source>,
    /// Decoder threads that one stream uses.
    pub decoder_threads: usize,
    /// See [`super::identity`].
    pub identity: Identity,
    /// How many streams it may have, those included that are added while the graph runs.
    pub max_streams: u32,
    /// With how many of them the plan counts.
    pub planned_streams: u32,
    /// What further streams are made from while the graph runs.
    pub template: Option<Template>,
}

impl Plan {
    /// Whether files are made of the streams of a source, and taken somewhere.
    pub fn makes_files(&self, source: &str) -> bool {
        let mut flows = self.sinks.iter().flat_map(|sink| &sink.flows);
        let to_sink =
            |flow: &SinkInput| flow.kind == Kind::Segment && flow.sources.iter().any(|name| **name == *source);
        let to_end = |operator: &PlannedOperator| {
            operator.is_end && self.roots(&operator.inputs).iter().any(|root| *self.sources[*root].name == *source)
        };
        flows.any(to_sink) || self.operators.iter().any(to_end)
    }
}

impl PlannedSource {
    /// What is remembered of its streams over a restart.
    pub fn progress(&self) -> Option<&Progress> {
        self.template.as_ref()?.context.progress.as_ref()
    }
}

pub struct PlannedTap {
    /// Index into [`Plan::sources`].
    pub source: usize,
    /// The node that reads it: a consumer, or the `sample` that was pushed down.
    pub reader: Arc<str>,
    /// What flows out of it.
    pub kind: Kind,
    /// The `sample` node that was pushed down, with its name.
    pub sample: Option<(Arc<str>, Sampling)>,
    pub overflow: Overflow,
    /// What one stream may have in memory behind this tap.
    pub limits: Limits,
}

pub struct PlannedOperator {
    pub name: Arc<str>,
    pub type_name: &'static str,
    pub work: Work,
    pub inputs: Vec<Input>,
    pub on_error: OnError,
    /// A bound of its own in front of this node; only for nodes in the middle of a graph.
    pub entry: Option<Entry>,
    /// It is a sink as well: what comes out of it and nothing listens to has come to its end.
    pub is_end: bool,
    /// A source names it as the node whose records answer whoever pushes.
    pub answers: bool,
    /// Of the node and of everything before it: what its state depends on.
    pub identity: Identity,
}

pub struct PlannedSink {
    pub name: Arc<str>,
    pub type_name: &'static str,
    pub sink: Arc<dyn Sink>,
    pub inputs: Vec<Input>,
    /// What its inputs are, as the graph names them.
    pub flows: Vec<SinkInput>,
    pub on_error: OnError,
    pub entry: Option<Entry>,
    /// Of the node alone: what its output depends on.
    pub identity: Identity,
}

/// What runs a node's work.
#[derive(Clone)]
pub enum Work {
    Inline(Arc<dyn InlineOperator>),
    Pool(Arc<dyn PoolOperator>),
    Io(Arc<dyn IoOperator>),
}

/// Where a node's items come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Index into [`Plan::taps`].
    Tap(usize),
    /// Index into [`Plan::operators`].
    Operator(usize),
}

/// A dropping branch in the middle of a graph: it returns the source's credit at its entry and pays from its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub overflow: Overflow,
    pub limits: Limits,
}

/// What happens to items when a queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The producer waits.
    Block,
    /// The oldest waiting item is dropped.
    DropOldest,
    /// Arriving video is dropped until the next keyframe.
    DropGop,
}

/// What an operator's error means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The item is rejected, an error record takes its place.
    Reject,
    /// The graph stops, with a failure.
    Stop,
}
