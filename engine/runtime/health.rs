//! Answers how the engine is doing: everything that is counted, and what does not work.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use operators::item::StreamId;
use operators::lock::lock;

use super::counters::{GraphCounters, NodeCounters, StreamCounters};
use super::culprit::{self, Machine};
use super::graphs::{Graphs, Home, Refused};
use super::preview::PreviewSlot;
use super::process::usage;
use super::pulse::HeldUp;
use super::stats::{GraphReport, GraphState, Health, Observe, ProcessReport, Report, StreamState};
use super::supervisor::Engine;

/// A source without progress for this long is a problem that `/health` names.
pub(super) const NO_PROGRESS: Duration = Duration::from_secs(10);

impl Observe for Engine {
    fn report(&self) -> Report {
        let usage = usage();
        let now = self.clock.now();
        let uptime = now.saturating_duration_since(self.start);
        let graphs = lock(&self.graphs).clone();
        let mut graphs: Vec<GraphReport> = graphs.iter().map(|graph| graph.report()).collect();
        let shared = self.watch.shared(now);
        let machine = Machine::of(&graphs, self.workers.count(), self.pool.threads(), &shared);
        graphs.iter_mut().for_each(|graph| culprit::name(graph, &machine));
        Report {
            graphs,
            process: ProcessReport {
                uptime_seconds: uptime.as_secs_f64(),
                cpu_seconds: usage.cpu_seconds,
                resident_bytes: usage.resident_bytes,
                peak_resident_bytes: usage.peak_resident_bytes,
                threads: usage.threads,
                workers: self.workers.count(),
                pool_threads: self.pool.threads(),
                pool_busy: shared.pool_busy,
                pool_busy_seconds: shared.pool_busy_seconds,
            },
        }
    }

    fn preview(&self, graph: &str, stream: &str) -> Option<Arc<PreviewSlot>> {
        // A later graph of the same name has taken the earlier one's place.
        let graphs = lock(&self.graphs);
        let graph = graphs.iter().rev().find(|running| &*running.name == graph)?;
        graph.stream(stream).map(|counters| counters.preview.clone())
    }

    fn health(&self) -> Health {
        let states: Vec<GraphState> = lock(&self.graphs).iter().map(|graph| graph.state().0).collect();
        // It answers before the first graph is there.
        let starts = states.is_empty() || states.contains(&GraphState::Starting);
        let status = match starts {
            _ if states.contains(&GraphState::Draining) => "draining",
            true => "starting",
            false => "ok",
        };
        Health::new(status, self.problems())
    }
}

/// How the engine is doing, and what should be a graph and is none. Whether it is ready does not depend on single graphs:
/// one that is loaded or deleted while the others run keeps no work away from these.
impl Observe for Graphs {
    fn report(&self) -> Report {
        self.engine.report()
    }

    fn preview(&self, graph: &str, stream: &str) -> Option<Arc<PreviewSlot>> {
        self.engine.preview(graph, stream)
    }

    fn health(&self) -> Health {
        let mut problems = self.engine.problems();
        for (name, refused) in self.refused() {
            let file = self.file_of(&name, &refused.home).map_or_else(String::new, |path| of_file(&path));
            problems.push(format!("graph `{name}` does not run: {}{file}", refused.why));
        }
        for graph in self.list() {
            // Whoever sends a text over HTTP is told; nobody waits for an answer about a file.
            if let Some(Refused { home: Home::File(path), why, .. }) = &graph.refused {
                let (name, file) = (&graph.name, of_file(path));
                problems.push(match graph.home {
                    Home::File(_) => {
                        format!("graph `{name}` runs on as it was before its file was changed: {why}{file}")
                    }
                    Home::Put => format!("a file is left out beside the graph `{name}`: {why}"),
                });
            }
        }
        let status = match (self.is_closing(), self.is_settled()) {
            (true, _) => "draining",
            (false, false) => "starting",
            (false, true) => "ok",
        };
        Health::new(status, problems)
    }
}

fn of_file(path: &Path) -> String {
    format!(" (`{}`)", path.display())
}

impl Health {
    fn new(status: &'static str, problems: Vec<String>) -> Health {
        // That it starts or drains is said first: whoever routes work here must know it, whatever else is wrong.
        let ok = status == "ok" && problems.is_empty();
        Health { ok, status: if status == "ok" && !ok { "failing" } else { status }, problems }
    }
}

/// The streams that run into a node and are not through yet.
fn streams_into(graph: &GraphCounters, node: &NodeCounters) -> Vec<StreamId> {
    let mut names: BTreeSet<Arc<str>> = node.inputs().into_iter().collect();
    // Every node stands behind its inputs, so one pass reaches all.
    for before in graph.nodes().iter().rev().filter(|before| before.role != "tap") {
        if names.contains(&before.name) {
            names.extend(before.inputs());
        }
    }
    let waits = |stream: &Arc<StreamCounters>| {
        stream.account.snapshot().in_flight > 0 && stream.taps().iter().any(|tap| names.contains(tap))
    };
    graph.streams().into_iter().filter(waits).map(|stream| stream.stream.clone()).collect()
}

/// Some streams, behind what is wrong with them.
fn told(streams: &[StreamId]) -> String {
    match streams {
        [] => String::new(),
        [one] => format!(" (stream `{one}`)"),
        [one, others @ ..] => format!(" (stream `{one}` and {} more)", others.len()),
    }
}

impl Engine {
    /// One line for each thing that is wrong.
    fn problems(&self) -> Vec<String> {
        let now = self.clock.now();
        let mut problems = Vec::new();
        let graphs = lock(&self.graphs).clone();
        for graph in &graphs {
            let name = &graph.name;
            if let (GraphState::Failed, reason) = graph.state() {
                problems.push(format!("graph `{name}` failed: {}", reason.unwrap_or_default()));
            }
            for stream in graph.streams() {
                let (state, reason) = stream.state();
                let idle = stream.idle(now);
                let reason = reason.unwrap_or_default();
                if state == StreamState::Failed {
                    problems.push(format!("graph `{name}`, stream `{}`: {reason}", stream.stream));
                } else if state == StreamState::Retrying {
                    problems.push(format!("graph `{name}`, stream `{}` is lost: {reason}", stream.stream));
                } else if state == StreamState::Fallback {
                    problems.push(format!("graph `{name}`, stream `{}` shows its fallback: {reason}", stream.stream));
                } else if let Some(trouble) = stream.trouble() {
                    problems.push(format!("graph `{name}`, stream `{}`: {trouble}", stream.stream));
                } else if idle > stream.place().patience && graph.state().0 != GraphState::Starting {
                    let seconds = idle.as_secs();
                    problems.push(format!("graph `{name}`, stream `{}`: no progress for {seconds} s", stream.stream));
                }
            }
            for node in graph.nodes() {
                if let Some(trouble) = node.trouble() {
                    problems.push(format!("graph `{name}`, node `{}` {trouble}", node.name));
                }
                // What a graph that is over has left behind takes nothing more.
                let stands = node.stands(now).filter(|_| graph.state().0 != GraphState::Finished);
                if let Some(stands) = stands.filter(|stands| *stands > NO_PROGRESS) {
                    let (seconds, streams) = (stands.as_secs(), told(&streams_into(graph, &node)));
                    problems
                        .push(format!("graph `{name}`, node `{}`: takes nothing for {seconds} s{streams}", node.name));
                }
            }
            for (source, trouble) in graph.blind() {
                problems.push(format!("graph `{name}`, node `{source}` {trouble}"));
            }
            let failed = |node: &Arc<NodeCounters>| node.role == "sink" && node.failed_within(NO_PROGRESS, now);
            for node in graph.nodes().into_iter().filter(failed) {
                let error = node.last_error().unwrap_or_default();
                problems.push(format!("graph `{name}`, node `{}`: {error}", node.name));
            }
        }
        for job in self.pool.overdue(now) {
            let others = match job.others {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            problems.push(format!(
                "thread {} of the pool hangs: it has been busy for {} s with item {} of stream `{}`{others} for {}, which may take {} s",
                job.thread,
                job.busy.as_secs(),
                job.seq,
                job.stream,
                job.who,
                job.deadline.as_secs()
            ));
        }
        problems.extend(self.workers.held_up().iter().map(HeldUp::to_string));
        problems
    }
}
