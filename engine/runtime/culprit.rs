//! Who is slow: names the one thing that limits a graph, out of its report.
//!
//! A stream is under pressure where its source waits for room, where policy drops its items, or where it has ended and
//! is not through yet. Something that it runs through must be at its limit then: the sink whose one writer works all the
//! time, the pool or the workshop whose threads do, the worker that does, or, where none of them is, a sink that something
//! keeps from getting on, or the budget. Without pressure such a sink is named too; else a source that is read as fast as
//! it can be is the limit itself, and else nothing is slow.
//!
//! The pool and the workers are shared by all graphs: where a node of another graph has more of them than all nodes of this
//! one, that node is named, and not the one that waits for it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

pub use self::machine::{Machine, User};
use super::stats::{EncoderReport, GraphReport, GraphState, NodeReport, Report, StreamReport, StreamState};
use super::window::WINDOW;
use super::workshop;

mod machine;

/// What kind of thing limits a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CulpritKind {
    /// Everything keeps up.
    Nothing,
    /// Reading and decoding; what is behind it keeps up.
    Source,
    /// Somebody who listens to `/events` loses events. That slows nobody.
    Subscriber,
    /// So little may be under way that the nodes cannot be kept busy.
    Budget,
    /// The dataflow worker that the node runs on.
    Worker,
    /// The threads of the inference pool.
    Pool,
    /// The threads that complete files.
    Workshop,
    /// What encodes the stream in a sink.
    Encoder,
    /// The sink's writer, or what it writes to.
    Sink,
}

impl CulpritKind {
    /// As `/stats` writes it.
    pub const fn name(self) -> &'static str {
        match self {
            CulpritKind::Nothing => "nothing",
            CulpritKind::Source => "source",
            CulpritKind::Subscriber => "subscriber",
            CulpritKind::Budget => "budget",
            CulpritKind::Worker => "worker",
            CulpritKind::Pool => "pool",
            CulpritKind::Workshop => "workshop",
            CulpritKind::Encoder => "encoder",
            CulpritKind::Sink => "sink",
        }
    }
}

/// What limits a graph or a stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Culprit {
    pub kind: CulpritKind,
    /// The node that limits; the source, where that is the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The graph of that node, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graph: Option<String>,
    /// The stream that most of the node's time goes into, where several share it and that one has far more than others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costliest: Option<String>,
    /// The streams that it limits; those that run, where nothing is slow.
    pub streams: Vec<String>,
    /// Milliseconds of its work for one item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_ms: Option<f64>,
    /// Items a second that come, those that are dropped before it included. Missing where sources wait instead: then
    /// as many come as are taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// How many cores all of them would take, and how many there are for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs_cores: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub has_cores: Option<f64>,
    /// The same as a sentence.
    pub text: String,
}

/// A graph that has run for less is not judged yet: while it started, nothing worked.
const TOO_YOUNG: Duration = WINDOW;
/// The share of its time that a source waits from which on it counts as held up.
const BLOCKED: f64 = 0.1;
/// The share of its items that a stream drops from which on it counts as held up.
const DROPPED: f64 = 0.02;
/// The share of its time from which on something counts as being at its limit.
const SATURATED: f64 = 0.75;

/// Writes into `graph` what limits it, and into its streams what limits them where that is something else.
pub fn name(graph: &mut GraphReport, machine: &Machine) {
    let found = find(graph, machine);
    let Some(((first, culprit), others)) = found.split_first() else { return };
    graph.culprit = Some(culprit.clone());
    debug_assert!(!first.is_empty(), "a culprit limits some stream");
    for (streams, culprit) in others {
        for index in streams {
            let of_stream = Culprit { streams: vec![graph.streams[*index].stream.clone()], ..culprit.clone() };
            graph.streams[*index].culprit = Some(of_stream);
        }
    }
}

/// What limits how many streams (by their number in the report): what limits the graph first.
fn find(graph: &GraphReport, machine: &Machine) -> Vec<(Vec<usize>, Culprit)> {
    let runs = matches!(graph.state, GraphState::Running | GraphState::Draining);
    if !runs || graph.running_seconds < TOO_YOUNG.as_secs_f64() {
        return Vec::new();
    }
    let mut groups: Vec<(Finding<'_>, Vec<usize>)> = Vec::new();
    for (index, stream) in graph.streams.iter().enumerate() {
        let Some(finding) = of_stream(graph, stream, machine) else { continue };
        match groups.iter_mut().find(|(other, _)| other.is_same(&finding)) {
            Some((_, streams)) => streams.push(index),
            None => groups.push((finding, vec![index])),
        }
    }
    let serves_events = graph.nodes.iter().any(|node| node.type_name == "sse");
    let limits = |(finding, _): &(Finding<'_>, Vec<usize>)| finding.kind > CulpritKind::Subscriber;
    if machine.missed > 0.0 && serves_events && !groups.iter().any(limits) && !groups.is_empty() {
        let all = groups.drain(..).flat_map(|(_, streams)| streams).collect();
        let finding = Finding { kind: CulpritKind::Subscriber, node: None, other: None, source: "", load: 1.0 };
        groups.push((finding, all));
    }
    // Something that limits comes before what does not; then what limits the most streams; then the busiest.
    groups.sort_by(|(a, of_a), (b, of_b)| {
        let is_limit = |finding: &Finding<'_>| finding.kind > CulpritKind::Nothing;
        let (rank_a, rank_b) = ((is_limit(a), of_a.len()), (is_limit(b), of_b.len()));
        rank_b.cmp(&rank_a).then(b.load.total_cmp(&a.load))
    });
    let tell = |(finding, streams): (Finding<'_>, Vec<usize>)| {
        let limited: Vec<&StreamReport> = streams.iter().map(|index| &graph.streams[*index]).collect();
        let culprit = finding.culprit(graph, &limited, machine);
        (streams, culprit)
    };
    groups.into_iter().map(tell).collect()
}

/// What limits one stream.
struct Finding<'g> {
    kind: CulpritKind,
    node: Option<&'g NodeReport>,
    /// The node of another graph that has what `node` needs.
    other: Option<&'g User>,
    /// The name of the source, or of the budget's reader, where no node limits.
    source: &'g str,
    /// How close to its limit it is, 0 to 1.
    load: f64,
}

fn of_stream<'g>(graph: &'g GraphReport, stream: &'g StreamReport, machine: &'g Machine) -> Option<Finding<'g>> {
    let runs = matches!(stream.state, StreamState::Running | StreamState::Fallback);
    let drains = matches!(stream.state, StreamState::Ended | StreamState::Stopped) && stream.counts.in_flight > 0;
    if !runs && !drains {
        return None;
    }
    let dropped: f64 = stream.drops.iter().map(|drops| drops.rate).sum();
    let drops = dropped > 0.0 && dropped >= DROPPED * (stream.rate_delivered + dropped);
    let is_pressed = drains || stream.blocked_share >= BLOCKED || drops;
    let nodes = behind(graph, stream);
    // What is wrong with one that gets on all the same, such as a tunnel that is down, slows nothing.
    let hindered = nodes.iter().find(|node| node.trouble.is_some() && node.queued > 0);
    let hindered = hindered.map(|node| Finding::node(CulpritKind::Sink, node, 1.0));
    if !is_pressed && hindered.is_some() {
        // What it holds back does not show in front of it yet.
        return hindered;
    }
    if !is_pressed {
        let kind = if stream.live { CulpritKind::Nothing } else { CulpritKind::Source };
        return Some(Finding { kind, node: None, other: None, source: &stream.source, load: 0.0 });
    }
    let sinks = nodes.iter().filter(|node| node.role == "sink");
    let sink = sinks.clone().map(|node| Finding::node(CulpritKind::Sink, node, node.busy_share));
    let encoder = sinks.filter_map(|node| {
        let encoder = node.encoders.iter().find(|encoder| encoder.stream == stream.stream)?;
        Some(Finding::node(CulpritKind::Encoder, node, encoder.busy_share))
    });
    let busiest = |role: &str| {
        let of_role = nodes.iter().filter(|node| node.role == role && node.busy_share > 0.0);
        of_role.max_by(|a, b| a.busy_share.total_cmp(&b.busy_share)).copied()
    };
    let pool = busiest("pool").or_else(|| waiting(&nodes, "pool")).map(|node| {
        let other = machine.other_in_pool(&graph.name);
        Finding { other, ..Finding::node(CulpritKind::Pool, node, machine.pool_load()) }
    });
    let worker = busiest("inline").map(|node| {
        let other = machine.other_on_worker(&graph.name, node);
        Finding { other, ..Finding::node(CulpritKind::Worker, node, machine.worker_load(node)) }
    });
    let makes = nodes.iter().filter(|node| node.making_share > 0.0);
    let workshop = makes.max_by(|a, b| a.making_share.total_cmp(&b.making_share));
    let workshop_load = machine.workshop_busy / workshop::AT_ONCE as f64;
    let workshop = workshop.map(|node| Finding::node(CulpritKind::Workshop, node, workshop_load));
    // What comes last wins among equals: a stalled sink lets everything before it wait.
    let candidates = pool.into_iter().chain(worker).chain(workshop).chain(encoder).chain(sink);
    let at_limit = candidates.filter(|finding| finding.load >= SATURATED).max_by(|a, b| a.load.total_cmp(&b.load));
    at_limit.or(hindered).or_else(|| {
        let fullest = stream.taps.iter().max_by(|a, b| a.blocked_share.total_cmp(&b.blocked_share))?;
        let dropping = stream.drops.iter().max_by(|a, b| a.rate.total_cmp(&b.rate)).filter(|_| drops);
        let waits = stream.blocked_share >= BLOCKED;
        let at = if waits { &fullest.reader } else { &dropping?.node };
        Some(Finding { kind: CulpritKind::Budget, node: None, other: None, source: at, load: stream.blocked_share })
    })
}

/// The node with the most items that wait for it: where it gets no turn, it is not busy either.
fn waiting<'g>(nodes: &[&'g NodeReport], role: &str) -> Option<&'g NodeReport> {
    let of_role = nodes.iter().filter(|node| node.role == role && node.queued > 0);
    of_role.max_by_key(|node| node.queued).copied()
}

/// The nodes that a stream runs through.
fn behind<'g>(graph: &'g GraphReport, stream: &'g StreamReport) -> Vec<&'g NodeReport> {
    let mut names: BTreeSet<&str> = stream.taps.iter().map(|tap| &*tap.tap).collect();
    let mut nodes: Vec<&NodeReport> = Vec::new();
    // Every node stands behind its inputs, so one pass reaches all.
    for node in graph.nodes.iter().filter(|node| node.role != "tap") {
        if node.inputs.iter().any(|input| names.contains(&**input)) {
            names.insert(&node.name);
            nodes.push(node);
        }
    }
    nodes
}

/// The names of everything in front of a node, and its own.
fn before<'g>(graph: &'g GraphReport, node: &'g NodeReport) -> BTreeSet<&'g str> {
    let mut names = BTreeSet::from([&*node.name]);
    for other in graph.nodes.iter().rev().filter(|other| other.role != "tap") {
        if names.contains(&*other.name) {
            names.extend(other.inputs.iter().map(|input| &**input));
        }
    }
    names
}

impl<'g> Finding<'g> {
    fn node(kind: CulpritKind, node: &'g NodeReport, load: f64) -> Finding<'g> {
        Finding { kind, node: Some(node), other: None, source: "", load }
    }

    fn is_same(&self, other: &Finding<'_>) -> bool {
        let name = |finding: &Finding<'_>| finding.node.map(|node| node.name.clone());
        // Sources that are not slow need not be told apart.
        let place = self.kind == CulpritKind::Nothing || self.source == other.source;
        self.kind == other.kind && place && name(self) == name(other) && self.other == other.other
    }

    fn culprit(&self, graph: &GraphReport, streams: &[&StreamReport], machine: &Machine) -> Culprit {
        let names: Vec<String> = streams.iter().map(|stream| stream.stream.clone()).collect();
        let mut culprit = Culprit {
            kind: self.kind,
            node: self.node.map(|node| node.name.clone()),
            graph: None,
            costliest: None,
            streams: names,
            cost_ms: None,
            rate: None,
            needs_cores: None,
            has_cores: None,
            text: String::new(),
        };
        let read: f64 = streams.iter().map(|stream| stream.rate_in).sum();
        let waits = streams.iter().map(|stream| stream.blocked_share).fold(0.0, f64::max);
        let on = on_streams(streams);
        match (self.kind, self.node) {
            (CulpritKind::Pool | CulpritKind::Worker, Some(node)) if self.other.is_some() => {
                culprit.of_other(self.other, node, machine, &on);
            }
            (CulpritKind::Sink, Some(NodeReport { name, trouble: Some(trouble), .. })) => {
                culprit.text = format!("`{name}`{on} {trouble}");
            }
            (CulpritKind::Sink | CulpritKind::Pool | CulpritKind::Workshop | CulpritKind::Worker, Some(node)) => {
                culprit.measure(graph, node, streams, machine, waits);
                culprit.text = culprit.of_node(node, &on, waits);
                if let Some((stream, share)) = costliest(graph, node) {
                    culprit.text += &format!("; {} of that is for stream `{stream}`", percent(share));
                    culprit.costliest = Some(stream.to_owned());
                }
            }
            (CulpritKind::Encoder, Some(node)) => culprit.encode(graph, node, streams, &on, waits),
            (CulpritKind::Source, _) => {
                culprit.node = Some(self.source.to_owned());
                culprit.rate = Some(read);
                // One thread reads a stream, so its share of the time is one for each.
                let cost = (read > 0.0).then(|| streams.len() as f64 * 1000.0 / read);
                culprit.cost_ms = cost;
                culprit.text = match cost {
                    Some(cost) => format!(
                        "`{}`{on}: reading and decoding is the limit, {} ms a frame, {} fps; nothing behind it is slow",
                        self.source,
                        number(cost),
                        number(read)
                    ),
                    None => format!("`{}`{on}: it gives nothing just now; nothing behind it is slow", self.source),
                };
            }
            (CulpritKind::Budget, _) => {
                culprit.node = Some(self.source.to_owned());
                let drops: f64 = streams.iter().flat_map(|stream| &stream.drops).map(|drops| drops.rate).sum();
                let what = if waits >= BLOCKED {
                    format!("its source waits {} of the time for room", percent(waits))
                } else {
                    format!("{} items a second are dropped", number(drops))
                };
                culprit.text = format!(
                    "`{}`{on}: no node is at its limit, but so little may be under way that {what}; raise `budget`",
                    self.source
                );
            }
            (CulpritKind::Subscriber, _) => {
                culprit.rate = Some(machine.missed);
                culprit.text = format!(
                    "a subscriber of `/events` reads too slowly and loses {} events a second; that slows nobody else",
                    number(machine.missed)
                );
            }
            _ => {
                culprit.rate = Some(read);
                let source = if streams.len() == 1 {
                    "the source gives".to_owned()
                } else {
                    format!("{} streams give", streams.len())
                };
                culprit.text = format!("nothing is slow; {source} {} fps", number(read));
            }
        }
        culprit
    }
}

impl Culprit {
    /// What an item costs the node, how many come, and what that takes.
    fn measure(
        &mut self,
        graph: &GraphReport,
        node: &NodeReport,
        streams: &[&StreamReport],
        machine: &Machine,
        waits: f64,
    ) {
        let busy = self.busy(node);
        self.cost_ms = (node.rate > 0.0).then(|| busy * 1000.0 / node.rate);
        let others = match self.kind {
            CulpritKind::Pool => machine.pool_busy - busy,
            CulpritKind::Worker => machine.worker_load(node) - busy,
            CulpritKind::Workshop => machine.workshop_busy - busy,
            _ => 0.0,
        };
        let all = match self.kind {
            CulpritKind::Pool => machine.pool_threads as f64,
            CulpritKind::Workshop => workshop::AT_ONCE as f64,
            _ => 1.0,
        };
        if self.kind != CulpritKind::Sink {
            // What it got it has, whatever else was measured.
            self.has_cores = Some((all - others.max(0.0)).max(busy.min(all)));
        }
        let ends = streams.iter().all(|stream| stream.state != StreamState::Running);
        if waits < BLOCKED && !ends {
            let upstream = before(graph, node);
            let drops = graph.streams.iter().flat_map(|stream| &stream.drops);
            let dropped: f64 = drops.filter(|drops| upstream.contains(&*drops.node)).map(|drops| drops.rate).sum();
            self.rate = Some(node.rate + dropped);
        }
        if let (Some(cost), Some(rate), Some(_)) = (self.cost_ms, self.rate, self.has_cores) {
            self.needs_cores = Some(cost * rate / 1000.0);
        }
    }

    /// How busy the node keeps what limits it.
    fn busy(&self, node: &NodeReport) -> f64 {
        match self.kind {
            CulpritKind::Workshop => node.making_share,
            CulpritKind::Worker => node.busy_share - node.making_share,
            _ => node.busy_share,
        }
    }

    /// What it says where `other`, of another graph, has what `node` needs.
    fn of_other(&mut self, other: Option<&User>, node: &NodeReport, machine: &Machine, on: &str) {
        let Some(user) = other else { return };
        self.node = Some(user.node.clone());
        self.graph = Some(user.graph.clone()).filter(|graph| !graph.is_empty());
        self.cost_ms = user.cost_ms();
        let (place, all) = match self.kind {
            CulpritKind::Pool => ("the pool", machine.pool_threads as f64),
            _ => ("its worker", 1.0),
        };
        let has = match self.kind {
            CulpritKind::Pool => user.busy_share,
            _ => machine
                .busiest_worker(node)
                .and_then(|(worker, _)| user.busy_by_worker.get(worker).copied())
                .unwrap_or(0.0),
        };
        let cost = self.cost_ms.map_or(String::new(), |cost| {
            let what = work_of(self.kind, &user.type_name);
            format!("{what} {} ms a frame, ", number(cost))
        });
        let cores = if all > 1.0 { "cores" } else { "core" };
        let whose = self.graph.as_ref().map_or(String::new(), |graph| format!(" of graph `{graph}`"));
        let (waits, most, has) = (&node.name, &user.node, number(has.min(all)));
        self.text = format!("`{waits}`{on}: {place} is full of `{most}`{whose}: {cost}{has} of {all} {cores}");
    }

    /// What a picture costs the encoders of some streams, and how many come.
    fn encode(&mut self, graph: &GraphReport, node: &NodeReport, streams: &[&StreamReport], on: &str, waits: f64) {
        let is_theirs = |encoder: &&EncoderReport| streams.iter().any(|stream| stream.stream == encoder.stream);
        let encoders: Vec<&EncoderReport> = node.encoders.iter().filter(is_theirs).collect();
        let rate: f64 = encoders.iter().map(|encoder| encoder.rate).sum();
        let busy: f64 = encoders.iter().map(|encoder| encoder.busy_share).sum();
        let threads = encoders.first().map_or(1, |encoder| encoder.threads);
        let name = &node.name;
        let more = "give `encoder.threads` more, or the source fewer or smaller pictures";
        if rate <= 0.0 {
            self.text = format!("`{name}`{on}: encoding does not get on; {more}");
            return;
        }
        let cost = busy * 1000.0 / rate;
        self.cost_ms = Some(cost);
        let on_threads = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
        let work = format!("`{name}`{on}: encoding takes {} ms a picture on {on_threads}", number(cost));
        if waits >= BLOCKED {
            self.text = format!(
                "{work}, {} fps is all that it takes; its source waits {} of the time; {more}",
                number(rate),
                percent(waits)
            );
            return;
        }
        let before = before(graph, node);
        let drops = streams.iter().flat_map(|stream| &stream.drops).filter(|drops| before.contains(&*drops.node));
        let dropped: f64 = drops.map(|drops| drops.rate).sum();
        self.rate = Some(rate + dropped);
        let lost = if dropped > 0.0 {
            format!("{} packets a second are dropped in front of it", number(dropped))
        } else {
            "it is not through yet".to_owned()
        };
        self.text = format!("{work}, {} fps is all that it takes; {lost}; {more}", number(rate));
    }

    fn of_node(&self, node: &NodeReport, on: &str, waits: f64) -> String {
        let name = &node.name;
        let what = work_of(self.kind, &node.type_name);
        let Some(cost) = self.cost_ms else {
            let oldest = node.oldest_ms.map_or(String::new(), |age| {
                format!(", and what it has in hand was decoded {} s ago", number(age / 1000.0))
            });
            return format!("`{name}`{on}: {what} does not get on{oldest}");
        };
        let work = format!("`{name}`{on}: {what} {} ms a frame", number(cost));
        let has = self.has_cores.unwrap_or(1.0);
        match (self.rate, self.needs_cores) {
            (Some(rate), Some(needs)) if needs > has => {
                let (needs, has) = apart(needs, has);
                format!("{work} at {} fps; needs {needs} cores, has {has}", number(rate))
            }
            (Some(rate), _) => {
                format!("{work} at {} fps; it is busy {} of the time", number(rate), percent(self.busy(node) / has))
            }
            (None, _) if waits >= BLOCKED => format!(
                "{work}, {} fps is all that it takes; its source waits {} of the time",
                number(node.rate),
                percent(waits)
            ),
            (None, _) => format!("{work}, {} fps is all that it takes", number(node.rate)),
        }
    }
}

/// What people call the work of a node.
fn work_of(kind: CulpritKind, type_name: &str) -> &str {
    match (kind, type_name) {
        (CulpritKind::Sink, _) => "writing",
        (CulpritKind::Workshop, _) => "completing files",
        (CulpritKind::Pool, "detect" | "classify") => "inference",
        (_, type_name) => type_name,
    }
}

/// A stream stands out with this many times its fair share of a node's time.
const FAR_MORE: f64 = 1.5;

/// The stream that most of a node's time goes into, and how much of it, where that is far more than its fair share.
fn costliest<'g>(graph: &'g GraphReport, node: &NodeReport) -> Option<(&'g str, f64)> {
    let share = |stream: &StreamReport| {
        stream.busy.iter().filter(|busy| busy.node == node.name).map(|busy| busy.busy_share).sum::<f64>()
    };
    let shares: Vec<(&str, f64)> =
        graph.streams.iter().map(|stream| (&*stream.stream, share(stream))).filter(|(_, share)| *share > 0.0).collect();
    let all: f64 = shares.iter().map(|(_, share)| share).sum();
    let (stream, most) = shares.iter().max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    let stands_out = shares.len() > 1 && most / all >= (FAR_MORE / shares.len() as f64).min(0.9);
    stands_out.then_some((*stream, most / all))
}

/// Which streams, after the name of a node.
fn on_streams(streams: &[&StreamReport]) -> String {
    match streams {
        [] => String::new(),
        [one] => format!(" on stream `{}`", one.stream),
        [one, two] => format!(" on streams `{}` and `{}`", one.stream, two.stream),
        many => format!(" on {} streams", many.len()),
    }
}

/// As people write it: three digits or so, without zeros that say nothing.
fn number(value: f64) -> String {
    let text = match value {
        value if value >= 10.0 => return format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn percent(share: f64) -> String {
    format!("{:.0} %", (share * 100.0).min(100.0))
}

/// Two numbers of cores, with so many digits that they differ.
fn apart(needs: f64, has: f64) -> (String, String) {
    let text = |value: f64, digits: usize| {
        let text = format!("{value:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    let digits = (1..4).find(|digits| text(needs, *digits) != text(has, *digits)).unwrap_or(1);
    (text(needs, digits), text(has, digits))
}

impl Report {
    /// The sentences about the graphs, each with its graph's name.
    pub fn culprits(&self) -> impl Iterator<Item = (&str, &Culprit)> {
        self.graphs.iter().filter_map(|graph| graph.culprit.as_ref().map(|culprit| (&*graph.name, culprit)))
    }
}

#[cfg(test)]
mod tests;
