//! From a checked graph to its [`Plan`].

use std::collections::{HashMap, HashSet};

use operators::item::Kind;
use operators::operator::{Built, Role};

use super::chaos::Chaos;
use super::check::Graph;
use super::demand::{self, Node};
use super::identity::Identity;
use super::plan::{Input, Plan, PlannedOperator, PlannedSink, PlannedSource, PlannedTap, Work};

/// How many cores one dataflow worker serves: its work is routing, and most of it waits.
const CORES_A_WORKER: usize = 8;

/// What the machine offers and the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// `None`: one for each eight cores, at least one.
    pub workers: Option<usize>,
    /// `None`: one for each core.
    pub pool_threads: Option<usize>,
    pub cores: usize,
}

impl PlanOptions {
    /// Dataflow workers.
    pub fn worker_count(&self) -> usize {
        self.workers.unwrap_or(self.cores / CORES_A_WORKER).max(1)
    }

    /// Threads of the inference pool.
    pub fn pool_thread_count(&self) -> usize {
        self.pool_threads.unwrap_or(self.cores).max(1)
    }
}

/// Plans a graph: pushes sampling into the sources, gives each edge out of a source its tap, and counts threads.
pub fn build_plan(graph: &Graph, options: PlanOptions) -> Plan {
    let nodes = &graph.nodes;
    let cores = options.cores.max(1);
    let (useful, taps) = (demand::useful(nodes), demand::taps(nodes));
    let read: Vec<bool> = (0..nodes.len()).map(|index| taps.iter().any(|tap| tap.source == index)).collect();
    let running: usize = nodes
        .iter()
        .zip(&read)
        .filter(|(_, read)| **read)
        .filter_map(|(n, _)| n.source())
        .map(|s| s.streams().len())
        .sum();
    let identities = identities(nodes);
    let answering: HashSet<&str> = nodes.iter().filter_map(|node| node.source()?.answer()).collect();
    let decodes = |source: usize| taps.iter().any(|tap| tap.source == source && tap.kind != Kind::Packet);
    let mut sources = Vec::new();
    let mut source_places = HashMap::new();
    for (index, node) in nodes.iter().enumerate().filter(|(index, _)| read[*index]) {
        let Some(source) = node.source() else { continue };
        source_places.insert(index, sources.len());
        sources.push(PlannedSource {
            name: node.name.clone(),
            type_name: node.registration.name,
            decoder_threads: if decodes(index) { source.decoder_threads(cores, running) } else { 0 },
            source: source.clone(),
            identity: identities[index],
            max_streams: node.max_streams,
            planned_streams: node.planned_streams,
            template: Some(node.template.clone()),
        });
    }
    let planned_taps = taps
        .iter()
        .map(|tap| PlannedTap {
            source: source_places[&tap.source],
            reader: nodes[tap.reader].name.clone(),
            kind: tap.kind,
            sample: tap.sample.map(|sampling| (nodes[tap.reader].name.clone(), sampling)),
            overflow: tap.overflow,
            limits: tap.limits,
        })
        .collect();
    let (mut operators, mut sinks) = (Vec::new(), Vec::new());
    let mut operator_places = HashMap::new();
    for (index, node) in nodes.iter().enumerate().filter(|(index, _)| useful[*index]) {
        if demand::pushed_down(nodes, index).is_some() {
            continue;
        }
        let inputs = inputs(graph, index, &taps, &operator_places);
        let (name, type_name) = (node.name.clone(), node.registration.name);
        let (on_error, entry) = (node.on_error, demand::entry(nodes, index));
        let work = match &node.built {
            Some(Built::Inline(operator)) => Work::Inline(operator.clone()),
            Some(Built::Pool(operator)) => Work::Pool(operator.clone()),
            Some(Built::Io(operator)) => Work::Io(operator.clone()),
            Some(Built::Sink(sink)) => {
                // Whatever comes to it, its output goes on, and what its errors mean its writer is told while it runs.
                let mut table = node.template.told();
                let flows = demand::flows(nodes, node);
                if sink.depends_on_inputs() {
                    table.insert("inputs".to_owned(), format!("{flows:?}").into());
                }
                let (sink, identity) = (sink.clone(), kept(node, Identity::of_node(type_name, &table)));
                sinks.push(PlannedSink { name, type_name, sink, inputs, flows, on_error, entry, identity });
                continue;
            }
            _ => continue,
        };
        operator_places.insert(index, operators.len());
        let (identity, answers) = (identities[index], answering.contains(&*name));
        let is_end = nodes[index].registration.role == Role::Sink;
        operators.push(PlannedOperator { name, type_name, work, inputs, on_error, entry, is_end, answers, identity });
    }
    Plan {
        graph: graph.name.clone(),
        sources,
        taps: planned_taps,
        operators,
        sinks,
        workers: options.worker_count(),
        pool_threads: options.pool_thread_count(),
        secrets: graph.secrets.clone(),
        hosts: graph.hosts.clone(),
        chaos: chaos(nodes),
    }
}

/// What is disturbed of a graph, if anything is.
fn chaos(nodes: &[Node]) -> Option<Chaos> {
    let disturbed = nodes.iter().filter_map(|node| Some((node.name.clone(), node.template.chaos.as_ref()?.seed())));
    let (nodes, seeds): (Vec<_>, Vec<_>) = disturbed.unzip();
    seeds.first().map(|seed| Chaos { seed: *seed, nodes })
}

/// For each node what it is, with everything before it.
fn identities(nodes: &[Node]) -> Vec<Identity> {
    let mut identities: Vec<Identity> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let (type_name, table) = (node.registration.name, &node.template.told());
        let alone = match node.registration.role {
            Role::Source => Identity::of_source(type_name, table),
            Role::Operator | Role::Sink => Identity::of_node(type_name, table),
        };
        identities.push(kept(node, alone).behind(node.inputs.iter().map(|edge| &identities[edge.from])));
    }
    identities
}

/// The identity of a node, with the place where its progress is kept: another one is opened with the node.
fn kept(node: &Node, identity: Identity) -> Identity {
    match &node.template.context.progress {
        Some(progress) => Identity::of_texts([identity.to_string().as_str(), &progress.folder().to_string_lossy()]),
        None => identity,
    }
}

fn inputs(graph: &Graph, index: usize, taps: &[demand::Tap], operators: &HashMap<usize, usize>) -> Vec<Input> {
    let mut inputs = Vec::new();
    for edge in &graph.nodes[index].inputs {
        let from_source = graph.nodes[edge.from].registration.role == Role::Source;
        let own = |tap: &demand::Tap| match from_source {
            true => tap.reader == index && tap.source == edge.from,
            // A `sample` that was pushed down: its taps are its consumers' inputs.
            false => tap.reader == edge.from && tap.sample.is_some(),
        };
        inputs.extend(taps.iter().enumerate().filter(|(_, tap)| own(tap)).map(|(tap, _)| Input::Tap(tap)));
        inputs.extend(operators.get(&edge.from).map(|operator| Input::Operator(*operator)));
    }
    inputs
}

/// The kinds that a source must deliver, without repetition.
pub fn demanded_kinds(plan: &Plan, source: usize) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = plan.taps.iter().filter(|tap| tap.source == source).map(|tap| tap.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}
