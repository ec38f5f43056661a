//! Graphs of any shape, as data that can be edited at random, and what each of them would deliver.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use operators::config::Rate;
use operators::item::Kind;
use operators::lease::Limits;
use operators::reach::Hosts;
use operators::transforms::sample::Sampling;

use super::journal::{Count, Courier, Journal, Notebook, Numbered, Only, Stamp};
use super::{Dice, ENDLESS};
use crate::graph::identity::Identity;
use crate::graph::plan::{
    Input, OnError, Overflow, Plan, PlannedOperator, PlannedSink, PlannedSource, PlannedTap, Work,
};

/// The stream, the node and the sink that every graph has, and that no edit touches: they must see no seam.
pub const LASTING: (&str, &str, &str) = ("z", "stays", "out");

/// All other streams.
const STREAMS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
/// Ways that one stream may take through a graph, so that a test stays small.
const MOST_WAYS: usize = 32;
const MOST_NODES: usize = 7;
/// Of three pictures at 30 a second, one is sampled at this rate.
pub const SAMPLED: u64 = 3;
const RATE: Rate = Rate { numerator: 10, denominator: 1 };

#[derive(Clone, Debug)]
pub struct Shape {
    pub sources: Vec<SourceShape>,
    /// Each stands behind its inputs.
    pub nodes: Vec<NodeShape>,
    pub sinks: Vec<SinkShape>,
    /// The number of the next new name, or version.
    next: u64,
}

#[derive(Clone, Debug)]
pub struct SourceShape {
    pub name: String,
    pub streams: Vec<&'static str>,
    /// Pictures of each stream.
    pub count: u64,
    /// It drops where others wait.
    pub live: bool,
    version: u64,
}

#[derive(Clone, Debug)]
pub struct NodeShape {
    pub name: String,
    pub does: Does,
    version: u64,
    pub inputs: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Does {
    /// Counts, in the dataflow.
    Count,
    /// The same, of what comes of one stream by two ways: a source, and a node behind it.
    Join,
    /// Takes uneven time in the pool.
    Pool,
    /// The same on the io runtime.
    Io,
    /// Passes these streams on alone.
    Only(Vec<&'static str>),
    /// Samples; runs on the source's thread.
    Sample,
}

#[derive(Clone, Debug)]
pub struct SinkShape {
    pub name: String,
    version: u64,
    pub inputs: Vec<String>,
}

impl SinkShape {
    /// Names its writer: one of another version is another.
    pub fn label(&self) -> String {
        format!("{}#{}", self.name, self.version)
    }
}

/// The ways by which a stream comes to a place, as the nodes write them into what they pass on; and whether it is
/// sampled on the way.
pub type Ways = BTreeMap<String, bool>;

/// What a node writes into what it passes on: another version, or another node before it, reads otherwise.
fn element(name: &str, identity: &Identity) -> String {
    format!("{name}:{}", &identity.to_string()[..6])
}

fn identity(what: &str, told: String) -> Identity {
    Identity::of_node(what, &toml::Table::from_iter([("told".to_owned(), toml::Value::String(told))]))
}

impl Shape {
    /// A lasting part, with a little beside it.
    pub fn new() -> Shape {
        let (stream, node, sink) = LASTING;
        Shape {
            sources: vec![SourceShape {
                name: "numbers".to_owned(),
                streams: vec![stream, "a", "b"],
                count: ENDLESS,
                live: false,
                version: 0,
            }],
            nodes: vec![NodeShape {
                name: node.to_owned(),
                does: Does::Count,
                version: 0,
                inputs: vec!["numbers".to_owned()],
            }],
            sinks: vec![SinkShape { name: sink.to_owned(), version: 0, inputs: vec![node.to_owned()] }],
            next: 1,
        }
    }

    fn all_inputs(&self) -> impl Iterator<Item = &String> {
        self.nodes.iter().map(|node| &node.inputs).chain(self.sinks.iter().map(|sink| &sink.inputs)).flatten()
    }

    /// Whether something takes what comes out of a node or source. A sample that nobody reads is no part of a plan, and it
    /// reads sources alone.
    fn is_read(&self, name: &str) -> bool {
        let takes = |inputs: &Vec<String>, name: &str| inputs.iter().any(|input| input == name);
        let at_once = |name: &str| {
            let mut nodes = self.nodes.iter().filter(|node| node.does != Does::Sample);
            nodes.any(|node| takes(&node.inputs, name)) || self.sinks.iter().any(|sink| takes(&sink.inputs, name))
        };
        let mut samples = self.nodes.iter().filter(|node| node.does == Does::Sample && takes(&node.inputs, name));
        at_once(name) || samples.any(|sample| at_once(&sample.name))
    }

    /// The source that reads a stream, if something listens to it.
    pub fn source_of(&self, stream: &str) -> Option<&SourceShape> {
        self.sources.iter().find(|source| source.streams.contains(&stream) && self.is_read(&source.name))
    }

    /// What makes a stream the same in two shapes.
    pub fn identity_of(&self, stream: &str) -> Option<(u64, bool, u64)> {
        self.source_of(stream).map(|source| (source.count, source.live, source.version))
    }

    fn identities(&self) -> BTreeMap<&str, Identity> {
        let mut known = BTreeMap::new();
        for source in &self.sources {
            let told = format!("{} {} {}", source.count, source.live, source.version);
            known.insert(&*source.name, identity("source", told));
        }
        for node in &self.nodes {
            let alone = identity("node", format!("{:?} {}", node.does, node.version));
            let before: Vec<Identity> = node.inputs.iter().map(|input| known[&**input]).collect();
            known.insert(&*node.name, alone.behind(before.iter()));
        }
        known
    }

    /// What each node that counts writes, with the node.
    pub fn elements(&self) -> BTreeMap<String, &NodeShape> {
        let identities = self.identities();
        self.nodes.iter().map(|node| (element(&node.name, &identities[&*node.name]), node)).collect()
    }

    /// By which ways a stream comes to each node and sink; nodes and sources by what comes out of them, sinks by their
    /// labels.
    pub fn ways(&self, stream: &str) -> BTreeMap<String, Ways> {
        let identities = self.identities();
        let mut out: BTreeMap<String, Ways> = BTreeMap::new();
        for source in self.sources.iter().filter(|source| source.streams.contains(&stream)) {
            out.insert(source.name.clone(), Ways::from([(".".to_owned(), false)]));
        }
        let gather = |out: &BTreeMap<String, Ways>, inputs: &[String]| -> Ways {
            inputs.iter().filter_map(|input| out.get(input)).flatten().map(|(way, is)| (way.clone(), *is)).collect()
        };
        for node in &self.nodes {
            let into = gather(&out, &node.inputs);
            let stamp = element(&node.name, &identities[&*node.name]);
            let passed = match &node.does {
                Does::Sample => into.into_keys().map(|way| (way, true)).collect(),
                Does::Only(streams) if !streams.contains(&stream) => Ways::new(),
                _ => into.into_iter().map(|(way, is)| (format!("{way}/{stamp}"), is)).collect(),
            };
            out.insert(node.name.clone(), passed);
        }
        for sink in &self.sinks {
            let into = gather(&out, &sink.inputs);
            out.insert(sink.label(), into);
        }
        out
    }

    /// By how many ways a stream's signals come to a node: also where its items are held back on one.
    pub fn branches(&self, stream: &str, node: &str) -> usize {
        if self.sources.iter().any(|source| source.name == node) {
            return usize::from(self.sources.iter().any(|s| s.name == node && s.streams.contains(&stream)));
        }
        let Some(shape) = self.nodes.iter().find(|shape| shape.name == node) else { return 0 };
        let into: usize = shape.inputs.iter().map(|input| self.branches(stream, input)).sum();
        // Tells of the end once.
        if shape.does == Does::Join { into.min(1) } else { into }
    }

    /// The same in front of a node or sink.
    pub fn branches_into(&self, stream: &str, inputs: &[String]) -> usize {
        inputs.iter().map(|input| self.branches(stream, input)).sum()
    }

    pub fn streams(&self) -> Vec<&'static str> {
        self.sources.iter().flat_map(|source| source.streams.iter().copied()).collect()
    }

    /// The sources before a node.
    fn roots(&self, name: &str) -> BTreeSet<&str> {
        if let Some(source) = self.sources.iter().find(|source| source.name == name) {
            return BTreeSet::from([&*source.name]);
        }
        let node = self.nodes.iter().find(|node| node.name == name);
        node.into_iter().flat_map(|node| &node.inputs).flat_map(|input| self.roots(input)).collect()
    }

    fn is_source(&self, name: &str) -> bool {
        self.sources.iter().any(|source| source.name == name)
    }

    fn does(&self, name: &str) -> Option<&Does> {
        self.nodes.iter().find(|node| node.name == name).map(|node| &node.does)
    }

    /// Whether a graph file could say so.
    fn is_valid(&self) -> bool {
        let (stream, node, sink) = LASTING;
        let mut known: BTreeSet<&str> = self.sources.iter().map(|source| &*source.name).collect();
        let names = known.len() + self.nodes.len() + self.sinks.len();
        let mut all: BTreeSet<&str> = known.clone();
        all.extend(self.nodes.iter().map(|node| &*node.name).chain(self.sinks.iter().map(|sink| &*sink.name)));
        if all.len() != names || self.sources.iter().any(|source| source.streams.is_empty()) {
            return false;
        }
        for shape in &self.nodes {
            // What stands before it was looked at: there is no circle.
            if !self.reads_once(&shape.inputs) || !shape.inputs.iter().all(|input| known.contains(&**input)) {
                return false;
            }
            let fits = match shape.does {
                Does::Sample => shape.inputs.len() == 1 && self.is_source(&shape.inputs[0]),
                Does::Join => match &shape.inputs[..] {
                    [source, behind] => {
                        self.is_source(source)
                            && !self.is_source(behind)
                            && self.does(behind) != Some(&Does::Sample)
                            && self.roots(behind) == BTreeSet::from([&**source])
                            // A node that is read twice tells of the end twice.
                            && self.streams().iter().all(|stream| self.branches(stream, behind) <= 1)
                    }
                    _ => false,
                },
                _ => true,
            };
            if !fits {
                return false;
            }
            known.insert(&shape.name);
        }
        let sinks = self
            .sinks
            .iter()
            .all(|sink| self.reads_once(&sink.inputs) && sink.inputs.iter().all(|input| known.contains(&**input)));
        let lasting = self.source_of(stream).is_some_and(|source| source.count == ENDLESS && !source.live)
            && self.nodes.iter().any(|shape| shape.name == node)
            && self.sinks.iter().any(|shape| shape.name == sink && shape.inputs.iter().any(|input| input == node));
        let ways = |stream: &&str| self.ways(stream).values().map(Ways::len).sum::<usize>() <= MOST_WAYS;
        sinks && lasting && self.nodes.len() <= MOST_NODES && self.streams().iter().all(ways)
    }

    /// Whether what comes by one of `inputs` can be told from what comes by another.
    fn reads_once(&self, inputs: &[String]) -> bool {
        let origin = |input: &String| match self.nodes.iter().find(|node| node.name == *input) {
            Some(node) if node.does == Does::Sample => node.inputs[0].clone(),
            _ => input.clone(),
        };
        let origins: BTreeSet<String> = inputs.iter().map(origin).collect();
        !inputs.is_empty() && inputs.len() <= 3 && origins.len() == inputs.len()
    }

    /// Changes something at random.
    pub fn edit(&mut self, dice: &Dice) {
        for _ in 0..100 {
            let mut other = self.clone();
            other.next += 1;
            other.change(dice);
            other.prune();
            if other.is_valid() {
                *self = other;
                return;
            }
        }
    }

    fn change(&mut self, dice: &Dice) {
        let at = |length: usize| usize::try_from(dice.roll(length as u64)).unwrap();
        let fresh = self.next;
        let of_lasting = self.sources.iter().position(|source| source.streams.contains(&LASTING.0)).unwrap();
        let source = at(self.sources.len());
        let (node, sink) = (at(self.nodes.len()), at(self.sinks.len()));
        let free: Vec<&str> = STREAMS.into_iter().filter(|stream| !self.streams().contains(stream)).collect();
        match dice.roll(18) {
            0 if !free.is_empty() => self.sources[source].streams.push(free[at(free.len())]),
            1 => {
                let streams = &mut self.sources[source].streams;
                let gone = at(streams.len());
                if streams[gone] != LASTING.0 {
                    streams.remove(gone);
                }
            }
            2 => {
                let streams = &mut self.sources[source].streams;
                let moved = at(streams.len());
                if streams[moved] != LASTING.0 {
                    let stream = streams.remove(moved);
                    let to = at(self.sources.len());
                    self.sources[to].streams.push(stream);
                }
            }
            3 | 4 if !free.is_empty() => {
                let name = format!("source{fresh}");
                let live = dice.roll(3) == 0;
                let count = if !live && dice.roll(2) == 0 { 1 + dice.roll(200) } else { ENDLESS };
                // As another: then its streams alone tell them apart.
                let version = if dice.roll(2) == 0 { 0 } else { fresh };
                let streams = free.into_iter().take(1 + at(2)).collect();
                self.sources.push(SourceShape { name: name.clone(), streams, count, live, version });
                self.input_of_some(dice).push(name);
            }
            5 if source != of_lasting => drop(self.sources.remove(source)),
            6 => {
                let name = self.sources[source].name.clone();
                self.rename(&name, &format!("source{fresh}"));
            }
            7 if source != of_lasting => self.sources[source].version = fresh,
            8 | 9 => {
                let name = format!("node{fresh}");
                let place = at(self.nodes.len() + 1);
                let does = match dice.roll(6) {
                    0 => Does::Pool,
                    1 => Does::Io,
                    2 => Does::Only(STREAMS.into_iter().filter(|_| dice.roll(2) == 0).collect()),
                    3 => Does::Sample,
                    4 => Does::Join,
                    _ => Does::Count,
                };
                let inputs = self.some_inputs(place, dice);
                self.nodes.insert(place, NodeShape { name: name.clone(), does, version: 0, inputs });
                // In front of somebody, in the place of one of its inputs or beside them.
                let inputs = self.input_of_some(dice);
                let replaced = at(inputs.len() + 1);
                if replaced < inputs.len() {
                    inputs[replaced] = name;
                } else {
                    inputs.push(name);
                }
            }
            10 => {
                let gone = self.nodes.remove(node);
                for inputs in self.consumers() {
                    if let Some(position) = inputs.iter().position(|input| *input == gone.name) {
                        inputs.splice(position..=position, gone.inputs.iter().cloned());
                        let mut seen = BTreeSet::new();
                        inputs.retain(|input| seen.insert(input.clone()));
                    }
                }
            }
            11 if self.nodes[node].name != LASTING.1 => {
                let name = self.nodes[node].name.clone();
                self.rename(&name, &format!("node{fresh}"));
            }
            12 if self.nodes[node].name != LASTING.1 => self.nodes[node].version = fresh,
            13 if self.nodes[node].name != LASTING.1 => self.nodes[node].inputs = self.some_inputs(node, dice),
            14 => {
                let inputs = self.some_inputs(self.nodes.len(), dice);
                self.sinks.push(SinkShape { name: format!("sink{fresh}"), version: 0, inputs });
            }
            15 if self.sinks[sink].name != LASTING.2 => drop(self.sinks.remove(sink)),
            16 if self.sinks[sink].name != LASTING.2 => self.sinks[sink].version = fresh,
            _ => {
                let mut inputs = self.some_inputs(self.nodes.len(), dice);
                let lasting = LASTING.1.to_owned();
                if self.sinks[sink].name == LASTING.2 && !inputs.contains(&lasting) {
                    inputs.push(lasting);
                }
                self.sinks[sink].inputs = inputs;
            }
        }
    }

    fn consumers(&mut self) -> impl Iterator<Item = &mut Vec<String>> {
        let of_nodes = self.nodes.iter_mut().map(|node| &mut node.inputs);
        of_nodes.chain(self.sinks.iter_mut().map(|sink| &mut sink.inputs))
    }

    /// The inputs of a node or sink that may be changed.
    fn input_of_some(&mut self, dice: &Dice) -> &mut Vec<String> {
        let nodes = self.nodes.iter_mut().filter(|node| node.name != LASTING.1).map(|node| &mut node.inputs);
        let mut all: Vec<&mut Vec<String>> = nodes.chain(self.sinks.iter_mut().map(|sink| &mut sink.inputs)).collect();
        let chosen = dice.roll(all.len() as u64);
        all.swap_remove(usize::try_from(chosen).unwrap())
    }

    /// One or two of what stands before place `before` among the nodes.
    fn some_inputs(&self, before: usize, dice: &Dice) -> Vec<String> {
        let sources = self.sources.iter().map(|source| &source.name);
        let all: Vec<&String> = sources.chain(self.nodes[..before].iter().map(|node| &node.name)).collect();
        let roll = || all[usize::try_from(dice.roll(all.len() as u64)).unwrap()].clone();
        let first = roll();
        let second = Some(roll()).filter(|second| dice.roll(2) == 0 && *second != first);
        std::iter::once(first).chain(second).collect()
    }

    fn rename(&mut self, from: &str, to: &str) {
        for source in self.sources.iter_mut().filter(|source| source.name == from) {
            to.clone_into(&mut source.name);
        }
        for node in self.nodes.iter_mut().filter(|node| node.name == from) {
            to.clone_into(&mut node.name);
        }
        for input in self.consumers().flatten().filter(|input| *input == from) {
            to.clone_into(input);
        }
    }

    /// Takes away what reads something that is gone.
    fn prune(&mut self) {
        self.sources.retain(|source| !source.streams.is_empty());
        loop {
            let names: BTreeSet<String> = self
                .sources
                .iter()
                .map(|source| source.name.clone())
                .chain(self.nodes.iter().map(|node| node.name.clone()))
                .collect();
            let before = self.all_inputs().count() + self.nodes.len() + self.sinks.len();
            self.consumers().for_each(|inputs| inputs.retain(|input| names.contains(input)));
            self.nodes.retain(|node| !node.inputs.is_empty());
            self.sinks.retain(|sink| !sink.inputs.is_empty());
            if self.all_inputs().count() + self.nodes.len() + self.sinks.len() == before {
                return;
            }
        }
    }

    /// The plan that a planner would make of it; `refuses`: with a sink that does not open.
    pub fn plan(&self, journal: &Arc<Journal>, refuses: bool) -> Plan {
        let identities = self.identities();
        let (mut sources, mut taps, mut operators) = (Vec::new(), Vec::new(), Vec::new());
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for source in self.sources.iter().filter(|source| self.is_read(&source.name)) {
            places.insert(&source.name, sources.len());
            sources.push(PlannedSource {
                name: source.name.as_str().into(),
                type_name: "test",
                source: Arc::new(Numbered::new(journal.clone(), &source.streams, source.count, source.live)),
                decoder_threads: 0,
                identity: identities[&*source.name],
                max_streams: 1024,
                planned_streams: 1,
                template: None,
            });
        }
        let mut out: BTreeMap<&str, Input> = BTreeMap::new();
        let mut tap = |of: &str, reader: &str, sample: Option<Sampling>| {
            let live = self.sources.iter().any(|source| source.name == of && source.live);
            taps.push(PlannedTap {
                source: places[of],
                reader: reader.into(),
                kind: Kind::Frame,
                sample: sample.map(|sampling| (reader.into(), sampling)),
                overflow: if live { Overflow::DropOldest } else { Overflow::Block },
                limits: Limits { items: 6, bytes: 1 << 20 },
            });
            Input::Tap(taps.len() - 1)
        };
        for node in &self.nodes {
            if node.does == Does::Sample {
                if self.is_read(&node.name) {
                    let sampling = Sampling { rate: RATE, phase: Some(Duration::ZERO) };
                    out.insert(&node.name, tap(&node.inputs[0], &node.name, Some(sampling)));
                }
                continue;
            }
            let stamp = element(&node.name, &identities[&*node.name]);
            let joins = node.does == Does::Join;
            let work = match &node.does {
                Does::Count | Does::Join => {
                    let streams = self.streams();
                    let told_once = |stream: &&str| self.branches_into(stream, &node.inputs) <= 1;
                    let is_plain = joins || streams.iter().all(told_once);
                    Work::Inline(Arc::new(Count::new(journal.clone(), stamp, joins, is_plain)))
                }
                Does::Only(streams) => Work::Inline(Arc::new(Only::new(stamp, streams))),
                Does::Pool => Work::Pool(Arc::new(Stamp(stamp))),
                Does::Io => Work::Io(Arc::new(Courier(Stamp(stamp)))),
                Does::Sample => unreachable!("it runs on the source's thread"),
            };
            let mut input = |input: &String| {
                if self.is_source(input) { tap(input, &node.name, None) } else { out[&**input] }
            };
            let inputs = node.inputs.iter().map(&mut input).collect();
            out.insert(&node.name, Input::Operator(operators.len()));
            operators.push(PlannedOperator {
                is_end: false,
                name: node.name.as_str().into(),
                type_name: "test",
                work,
                inputs,
                on_error: OnError::Reject,
                entry: None,
                answers: false,
                identity: identities[&*node.name],
            });
        }
        let refusing = SinkShape { name: "refuses".to_owned(), version: 0, inputs: vec![LASTING.1.to_owned()] };
        let mut sinks = Vec::new();
        for sink in self.sinks.iter().chain(refuses.then_some(&refusing)) {
            let mut input = |input: &String| {
                if self.is_source(input) { tap(input, &sink.name, None) } else { out[&**input] }
            };
            sinks.push(PlannedSink {
                name: sink.name.as_str().into(),
                type_name: "test",
                sink: Arc::new(Notebook::new(journal.clone(), sink.label(), sink.name == "refuses")),
                inputs: sink.inputs.iter().map(&mut input).collect(),
                flows: Vec::new(),
                on_error: OnError::Reject,
                entry: None,
                identity: identity("sink", sink.label()),
            });
        }
        Plan {
            graph: "test".into(),
            sources,
            taps,
            operators,
            sinks,
            workers: 1,
            pool_threads: 1,
            secrets: Arc::default(),
            hosts: Hosts::Anything,
            chaos: None,
        }
    }
}
