//! What consumers demand of their sources: taps, push-down, budgets and overflow policies. Owns the defaults.
//!
//! Each edge from a source to a consumer is one tap. A `sample` all of whose inputs are sources is pushed down: it is
//! one tap of each of its sources, and its consumers share that. `budget` and `overflow` of the node that reads a tap
//! are that tap's; what it leaves out comes from the source's node, and then from the defaults. Deeper in the graph a
//! dropping `overflow` becomes the node's own entry.

use std::sync::Arc;

use operators::item::Kind;
use operators::lease::Limits;
use operators::operator::{Built, Registration, Role, SinkInput, Source};
use operators::transforms::sample::Sampling;

use super::identity::Template;
use super::nodes::PartialBudget;
use super::plan::{Entry, OnError, Overflow};

/// Items of one stream behind a tap of a source that waits for its consumers.
const ITEMS_WAITING: u32 = 8;
/// Items of one stream behind a tap of a live source: few, so that they are young.
const ITEMS_LIVE: u32 = 4;
/// Packets of one stream behind a tap: some seconds of video with sound.
const ITEMS_OF_PACKETS: u32 = 256;
/// Bytes of one stream behind a tap.
const BYTES: u64 = 64 << 20;

/// A checked node and its place in the graph.
pub struct Node {
    pub name: Arc<str>,
    pub registration: &'static Registration,
    /// Absent only where its table has mistakes; then the graph does not run.
    pub built: Option<Built>,
    pub inputs: Vec<Edge>,
    pub budget: PartialBudget,
    pub overflow: Option<Overflow>,
    pub on_error: OnError,
    /// How many streams a source may have.
    pub max_streams: u32,
    /// How many of them count in the plan; the others take as much each.
    pub planned_streams: u32,
    /// What it was built from, every reference replaced.
    pub template: Template,
}

impl Node {
    pub fn source(&self) -> Option<&Arc<dyn Source>> {
        match &self.built {
            Some(Built::Source(source)) => Some(source),
            _ => None,
        }
    }

    fn drops(&self) -> bool {
        self.overflow.is_some_and(|overflow| overflow != Overflow::Block)
    }
}

/// Where a node's items come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Index of the node that makes them; always a smaller one.
    pub from: usize,
    pub kind: Kind,
}

/// One edge out of a source.
#[derive(Clone, Debug, PartialEq)]
pub struct Tap {
    /// Index of the source's node.
    pub source: usize,
    /// Index of the node that reads it: a consumer, or a `sample` that was pushed down.
    pub reader: usize,
    pub sample: Option<Sampling>,
    pub kind: Kind,
    pub overflow: Overflow,
    pub limits: Limits,
}

/// For each node whether what it makes reaches a sink. Others do not run.
pub fn useful(nodes: &[Node]) -> Vec<bool> {
    let mut useful: Vec<bool> = nodes.iter().map(|node| node.registration.role == Role::Sink).collect();
    for (index, node) in nodes.iter().enumerate().rev() {
        if useful[index] {
            node.inputs.iter().for_each(|edge| useful[edge.from] = true);
        }
    }
    useful
}

/// The sampling of a node that runs on its sources' threads; `None` for every other node.
pub fn pushed_down(nodes: &[Node], index: usize) -> Option<Sampling> {
    let node = &nodes[index];
    let behind_sources = node.inputs.iter().all(|edge| nodes[edge.from].registration.role == Role::Source);
    match &node.built {
        Some(Built::Inline(operator)) if behind_sources && !node.inputs.is_empty() => operator.sampling(),
        _ => None,
    }
}

/// All taps that useful nodes read, in the order of their readers.
pub fn taps(nodes: &[Node]) -> Vec<Tap> {
    let useful = useful(nodes);
    let mut taps = Vec::new();
    for (index, node) in nodes.iter().enumerate().filter(|(index, _)| useful[*index]) {
        let sample = pushed_down(nodes, index);
        for edge in &node.inputs {
            let Some(source) = nodes[edge.from].source() else { continue };
            let (overflow, limits) = policy(&nodes[edge.from], source.is_live(), node, edge.kind);
            taps.push(Tap { source: edge.from, reader: index, sample, kind: edge.kind, overflow, limits });
        }
    }
    taps
}

fn policy(source: &Node, live: bool, reader: &Node, kind: Kind) -> (Overflow, Limits) {
    let default = match (live, kind) {
        (false, _) => Overflow::Block,
        (true, Kind::Packet) => Overflow::DropGop,
        (true, _) => Overflow::DropOldest,
    };
    let items = match (live, kind) {
        (_, Kind::Packet) => ITEMS_OF_PACKETS,
        (true, _) => ITEMS_LIVE,
        (false, _) => ITEMS_WAITING,
    };
    let limits = Limits {
        items: reader.budget.items.or(source.budget.items).unwrap_or(items),
        bytes: reader.budget.bytes.or(source.budget.bytes).unwrap_or(BYTES),
    };
    (reader.overflow.or(source.overflow).unwrap_or(default), limits)
}

/// A dropping bound of its own in front of a node that reads other nodes.
pub fn entry(nodes: &[Node], index: usize) -> Option<Entry> {
    let node = &nodes[index];
    let overflow = node.overflow.filter(|_| node.drops() && reads_operators(nodes, index))?;
    let limits = Limits { items: node.budget.items.unwrap_or(ITEMS_LIVE), bytes: node.budget.bytes.unwrap_or(BYTES) };
    Some(Entry { overflow, limits })
}

/// Whether some of its items come from an operator, pushed down or not.
pub fn reads_operators(nodes: &[Node], index: usize) -> bool {
    nodes[index].inputs.iter().any(|edge| nodes[edge.from].registration.role != Role::Source)
}

/// Whether `budget` and `overflow` of a node bound anything.
pub fn has_bound(nodes: &[Node], index: usize) -> bool {
    let node = &nodes[index];
    let reads_source = node.inputs.iter().any(|edge| nodes[edge.from].registration.role == Role::Source);
    node.registration.role == Role::Source || reads_source || node.drops()
}

/// What flows into a node from each of its inputs.
pub fn flows(nodes: &[Node], node: &Node) -> Vec<SinkInput> {
    let flow = |edge: &Edge| {
        let roots = roots(nodes, edge.from);
        let any = |is: fn(&dyn Source) -> bool| {
            roots.iter().any(|root| nodes[*root].source().is_some_and(|source| is(&**source)))
        };
        let (is_live, repeats) = (any(|source| source.is_live()), any(|source| source.repeats()));
        let sources = roots.into_iter().map(|root| nodes[root].name.clone()).collect();
        SinkInput { node: nodes[edge.from].name.clone(), kind: edge.kind, sources, is_live, repeats }
    };
    node.inputs.iter().map(flow).collect()
}

/// The sources that a node's items come from, as indices of nodes in ascending order.
pub fn roots(nodes: &[Node], index: usize) -> Vec<usize> {
    let (mut waiting, mut seen, mut sources) = (vec![index], vec![false; nodes.len()], Vec::new());
    while let Some(at) = waiting.pop() {
        if std::mem::replace(&mut seen[at], true) {
            continue;
        }
        if nodes[at].registration.role == Role::Source {
            sources.push(at);
        }
        waiting.extend(nodes[at].inputs.iter().map(|edge| edge.from));
    }
    sources.sort_unstable();
    sources
}
