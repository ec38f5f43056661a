//! Watches a graph that runs, drains it and takes it down.
//!
//! A graph is finished when every stream has ended, every end of its dataflow has seen an empty frontier and every sink
//! has closed: nothing is in flight then, and the books balance.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, never, select, unbounded};
use operators::error::StartError;
use operators::item::{EndReason, Played, StreamId, Version};
use operators::lease::{Account, Counts};
use operators::progress::Progress;

use super::amounts::{counted, were};
use super::counters::{GraphCounters, NodeCounters};
use super::discovery::Discovering;
use super::failure::{Heard, Notice, Notices, notices};
use super::feed::Feed;
use super::generation::{Generation, Making, OpenSink};
use super::loading::{Open, Prepared};
use super::stats::{GraphReport, GraphState, StreamState};
use super::streams::{PostedStream, WantedStream};
use super::supervisor::{Engine, LAST_CALL};
use crate::graph::identity::Identity;
use crate::graph::plan::{Plan, PlannedSource};

/// What somebody asks of a running graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Take nothing new, deliver what is in flight, then end.
    Drain,
    /// End now; what is in flight is lost.
    Abort,
}

/// How a graph ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why the graph, or streams of it, failed.
    pub failures: Vec<String>,
    /// What had not ended at the drain deadline, or when it was told to end at once.
    pub stuck: Vec<String>,
    /// The last that was asked of it; `None`: it ended by itself.
    pub asked: Option<Request>,
}

impl Outcome {
    pub fn is_success(&self) -> bool {
        self.failures.is_empty() && self.stuck.is_empty()
    }
}

/// Something to do to a running graph, on the thread that supervises it.
pub type Change = Box<dyn FnOnce(&mut RunningGraph) + Send>;

/// How often it is looked whether streams that ended are through.
const SWEEP: Duration = Duration::from_millis(200);

/// How long a stream that a source found is listed after it has ended.
const LINGER: Duration = Duration::from_secs(10);

/// A stream that is read.
pub(super) struct RunningStream {
    /// The name of the source's node.
    pub source: Arc<str>,
    pub identity: Identity,
    pub feed: Arc<Feed>,
    /// Where it is written down that everything of it is stored.
    pub progress: Option<Progress>,
    /// What became of the items of the stream that were read before.
    pub before: Counts,
}

/// A stream that was read to its end, until nothing of it is in flight.
pub(super) struct Finishing {
    stream: StreamId,
    version: Arc<Version>,
    progress: Progress,
    account: Arc<Account>,
    before: Counts,
}

/// A graph that runs. Somebody must [`RunningGraph::supervise`] it.
pub struct RunningGraph {
    pub(super) engine: Arc<Engine>,
    pub counters: Arc<GraphCounters>,
    pub(super) notices: Notices,
    pub(super) heard: Heard,
    pub(super) generation: Generation,
    pub(super) sinks: Vec<OpenSink>,
    pub(super) streams: HashMap<StreamId, RunningStream>,
    /// Streams that ended by themselves, as what.
    pub(super) ended: HashMap<StreamId, Identity>,
    /// Streams that were added while it ran.
    pub(super) posted: BTreeMap<StreamId, PostedStream>,
    /// Streams that are read anew once their thread has ended.
    pub(super) restarts: HashMap<StreamId, WantedStream>,
    /// Streams that were removed, until nothing of them is in flight.
    pub(super) retired: Vec<StreamId>,
    /// Streams that a source found and that have ended, and when: they are listed a little longer.
    pub(super) lingering: Vec<(StreamId, Instant)>,
    pub(super) finishing: Vec<Finishing>,
    /// Streams that a source found, which are forgotten when they have ended.
    pub(super) passing: Vec<StreamId>,
    /// Sources that look for further streams.
    pub(super) discovering: Vec<Discovering>,
    pub(super) failed_streams: Vec<String>,
    changes: (Sender<Change>, Receiver<Change>),
    /// Goes on without streams, where further ones may come.
    stays: bool,
    pub(super) draining: bool,
    /// A node failed while a change was under way.
    pub(super) must_stop: bool,
}

impl RunningGraph {
    /// Makes `plan` ready and starts its streams.
    pub(super) fn start(
        engine: Arc<Engine>,
        plan: Plan,
        counters: Arc<GraphCounters>,
    ) -> Result<RunningGraph, StartError> {
        let (notices, heard) = notices();
        let number = counters.generation() + 1;
        let making =
            Making { engine: &engine, counters: &counters, notices: &notices, number, sinks: &[], patience: None };
        let ready = Prepared::make(&engine, &plan, &Open::default(), None)?;
        let (generation, sinks) = making.install(Arc::new(plan), ready)?;
        counters.set_state(GraphState::Running, None);
        let mut graph = RunningGraph {
            engine,
            counters,
            notices,
            heard,
            generation,
            sinks,
            streams: HashMap::new(),
            ended: HashMap::new(),
            posted: BTreeMap::new(),
            restarts: HashMap::new(),
            retired: Vec::new(),
            lingering: Vec::new(),
            finishing: Vec::new(),
            passing: Vec::new(),
            discovering: Vec::new(),
            failed_streams: Vec::new(),
            changes: changes(),
            stays: false,
            draining: false,
            must_stop: false,
        };
        for stream in graph.declared() {
            if let Err(error) = graph.read(stream) {
                graph.abort();
                return Err(error);
            }
        }
        if let Err(error) = graph.look_for_streams() {
            graph.abort();
            return Err(error);
        }
        graph.close_finished_sources();
        Ok(graph)
    }

    /// From here on it goes on without streams, where its sources do not end by themselves: until it is told to end.
    pub fn stay(&mut self) {
        self.stays = true;
    }

    /// Where to leave something to do. What is left there and not done when the graph has ended is dropped, and nothing is
    /// taken from then on.
    pub fn changes(&self) -> Sender<Change> {
        self.changes.0.clone()
    }

    /// Watches the graph until it has ended. `requests` may ask it to end sooner; from then on it has
    /// `drain_deadline` to deliver what is in flight.
    pub fn supervise(mut self, requests: &Receiver<Request>, drain_deadline: Duration) -> Outcome {
        let mut deadline = never();
        let mut sweep: Option<Receiver<Instant>> = None;
        let mut requests = requests.clone();
        let mut stuck = Vec::new();
        let mut asked = None;
        while !self.is_done() {
            let mut drain = false;
            if sweep.is_none() && self.has_to_sweep() {
                sweep = Some(after(SWEEP));
            }
            select! {
                recv(sweep.clone().unwrap_or_else(never)) -> _ => {
                    sweep = None;
                    self.sweep();
                }
                recv(self.heard.nodes) -> notice => drain = notice.is_ok_and(|notice| self.take(notice)),
                recv(self.heard.streams) -> notice => drain = notice.is_ok_and(|notice| self.take(notice)),
                recv(self.changes.1) -> change => if let Ok(change) = change {
                    change(&mut self);
                    drain = std::mem::take(&mut self.must_stop);
                },
                recv(requests) -> request => match request {
                    Ok(Request::Drain) => (asked, drain) = (Some(Request::Drain), true),
                    Ok(Request::Abort) => {
                        asked = Some(Request::Abort);
                        stuck = self.what_is_open();
                        break;
                    }
                    // Nobody can ask any more; the graph ends by itself.
                    Err(_) => requests = never(),
                },
                recv(deadline) -> _ => {
                    stuck = self.what_is_open();
                    break;
                }
            }
            if drain && !self.draining {
                self.drain();
                deadline = after(drain_deadline);
            }
        }
        if !self.is_done() {
            self.abort();
        }
        self.finish(stuck, asked)
    }

    fn is_done(&self) -> bool {
        self.streams.is_empty() && self.generation.ends_open == 0 && self.sinks.is_empty()
    }

    /// Notes what happened; `true` when the graph has to stop because of it.
    pub(super) fn take(&mut self, notice: Notice) -> bool {
        match notice {
            Notice::NodeFailed { node, stream, message } => {
                tracing::error!(node = %node, stream = stream.as_deref().unwrap_or("-"), "the graph stops: {message}");
                self.counters.set_state(GraphState::Failed, Some(message));
                return true;
            }
            Notice::StreamEnded { stream, reason } => {
                self.stream_ended(&stream, reason);
                if let Some(wanted) = self.restarts.remove(&stream).filter(|_| !self.draining) {
                    self.start_stream(wanted);
                }
                self.close_finished_sources();
            }
            Notice::SinkComplete { sink } => {
                tracing::info!(node = %sink, "`{sink}` has all that it wanted: the graph ends");
                return true;
            }
            Notice::SinkClosed { sink } => self.sinks.retain(|open| open.id != sink),
            Notice::EndReached { generation } => {
                if generation == self.generation.number {
                    self.generation.ends_open = self.generation.ends_open.saturating_sub(1);
                    if self.generation.ends_open == 0 {
                        // Nothing of the graph writes any more.
                        self.sinks.iter().for_each(|sink| sink.intake.seal());
                    }
                }
            }
        }
        false
    }

    /// Reads a stream of a graph that runs on whether or not that goes well.
    pub(super) fn start_stream(&mut self, stream: WantedStream) {
        let id = stream.spec.id.clone();
        if let Err(error) = self.read(stream) {
            tracing::error!(stream = %id, "{error}");
            self.engine.inlets().close(&self.counters.name, &id, false);
            self.failed_streams.push(error.to_string());
        }
    }

    pub(super) fn stream_ended(&mut self, stream: &StreamId, reason: EndReason) {
        let Some(running) = self.streams.remove(stream) else { return };
        if let Some(position) = self.passing.iter().position(|passing| passing == stream) {
            self.passing.swap_remove(position);
            self.posted.remove(stream);
            // One that failed is listed, so that whoever looks sees why.
            if matches!(reason, EndReason::Failed(_)) {
                if running.feed.may_recover() && self.is_found_again(&running.source, stream) {
                    tracing::info!(%stream, "stream `{stream}` is tried again later");
                }
            } else {
                self.lingering.push((stream.clone(), self.engine.clock.now()));
            }
        }
        if let (EndReason::Eof, Some(Played::Version(version)), Some(progress)) =
            (&reason, running.feed.played(), running.progress.clone())
            && let Some(counters) = self.counters.stream(stream)
        {
            let (stream, account, before) = (stream.clone(), counters.account.clone(), running.before);
            self.finishing.push(Finishing { stream, version, progress, account, before });
        }
        let returns = self.restarts.contains_key(stream) && !self.draining;
        self.engine.inlets().close(&self.counters.name, stream, returns);
        self.unlist_retired();
        // Its last act was to say so.
        running.feed.join();
        match reason {
            EndReason::Failed(text) => self.failed_streams.push(failure_of(stream, &text)),
            EndReason::Eof => {
                self.ended.insert(stream.clone(), running.identity);
            }
            EndReason::Stopped | EndReason::Reload => {}
        }
    }

    fn has_to_sweep(&self) -> bool {
        !(self.finishing.is_empty() && self.lingering.is_empty() && self.retired.is_empty())
    }

    /// Writes down which streams everything is stored of, and lists those no more that have been over for long enough.
    fn sweep(&mut self) {
        self.note_finished();
        let now = self.engine.clock.now();
        let is_over = |(_, since): &(StreamId, Instant)| now.saturating_duration_since(*since) >= LINGER;
        let (over, lingering) = std::mem::take(&mut self.lingering).into_iter().partition(is_over);
        self.lingering = lingering;
        self.retired.extend(Vec::into_iter(over).map(|(stream, _)| stream));
        self.unlist_retired();
    }

    fn note_finished(&mut self) {
        for finishing in std::mem::take(&mut self.finishing) {
            let Finishing { stream, version, progress, account, before } = &finishing;
            let counts = account.snapshot();
            if counts.in_flight > 0 {
                self.finishing.push(finishing);
                continue;
            }
            // What began with other nodes behind it was not made by these alone.
            let plan = &self.generation.plan;
            let is_same = |planned: &PlannedSource| {
                *planned.name == *version.source && planned.progress().is_some_and(|now| now.leads_where(progress))
            };
            let (lost, dropped) = (counts.lost - before.lost, counts.dropped - before.dropped);
            if lost + dropped > 0 || !plan.sources.iter().any(is_same) {
                tracing::warn!(%stream, lost, dropped, "not everything of `{}` is stored: it is read again at the next start", plan.secrets.redact(&version.name));
                continue;
            }
            let rejected = counts.rejected - before.rejected;
            if rejected > 0 {
                tracing::warn!(%stream, rejected, "`{}` is finished, and is not read again: {rejected} of its items were rejected, and would be the next time", plan.secrets.redact(&version.name));
            }
            if let Err(error) = progress.finish(stream, version, rejected) {
                let error = plan.secrets.redact(&format!("{error}; hint: {}", error.hint));
                tracing::error!(%stream, "stream `{stream}` is finished, but is read again at the next start: {error}");
            }
        }
    }

    /// A source without streams has nothing to wait for, unless further ones may come.
    pub(super) fn close_finished_sources(&mut self) {
        let plan = self.generation.plan.clone();
        for (index, planned) in plan.sources.iter().enumerate() {
            let is_read = self.streams.values().any(|stream| stream.source == planned.name);
            let is_open_ended = self.stays && !planned.source.is_finite();
            let may_find = self.looks_for_streams(&planned.name);
            let may_go_on = !self.draining && (is_open_ended || may_find || planned.source.awaits_streams());
            if !is_read && !may_go_on {
                self.generation.close(index);
            }
        }
    }

    fn drain(&mut self) {
        self.draining = true;
        self.discovering.clear();
        self.counters.set_state(GraphState::Draining, None);
        self.streams.values().for_each(|stream| stream.feed.stop());
        self.close_finished_sources();
    }

    fn what_is_open(&self) -> Vec<String> {
        let mut open: Vec<String> = self.streams.keys().map(|stream| format!("stream `{stream}`")).collect();
        open.sort();
        open.extend(self.sinks.iter().map(|sink| format!("sink `{}`", sink.name)));
        let report = self.counters.report();
        // Whoever talks to others may wait for one of them.
        let is_told = |node: &NodeCounters| self.sinks.iter().any(|sink| sink.name == node.name);
        open.extend(
            self.counters.nodes().iter().filter(|node| !is_told(node)).filter_map(|node| what_waits(node, &report)),
        );
        open.push(in_flight(report.total.in_flight));
        open
    }

    /// Lets go of everything that is in flight: it is lost.
    fn abort(&mut self) {
        self.draining = true;
        self.discovering.clear();
        self.streams.values().for_each(|stream| stream.feed.give_up());
        self.generation.abandon();
        self.generation.take_down();
        self.sinks.iter().for_each(|sink| sink.intake.seal());
        self.last_call(Self::is_done);
        // What a sink that is stuck has in hand would stay in flight for ever.
        self.sinks.iter().for_each(|sink| sink.writing.abort());
        self.last_call(|graph| graph.sinks.is_empty());
    }

    /// Waits for `done`, but not for long.
    fn last_call(&mut self, done: impl Fn(&Self) -> bool) {
        let last_call = after(LAST_CALL);
        while !done(self) {
            let notice = select! {
                recv(self.heard.nodes) -> notice => notice,
                recv(self.heard.streams) -> notice => notice,
                recv(last_call) -> _ => return,
            };
            if let Ok(notice) = notice {
                self.take(notice);
            }
        }
    }

    fn finish(mut self, stuck: Vec<String>, asked: Option<Request>) -> Outcome {
        self.generation.take_down();
        self.note_finished();
        self.engine.inlets().close_all(&self.counters.name);
        let (state, reason) = self.counters.state();
        let mut failures = std::mem::take(&mut self.failed_streams);
        if state == GraphState::Failed {
            failures.insert(0, reason.unwrap_or_default());
        }
        let report = self.counters.report();
        let total = report.total;
        if failures.is_empty() && total.lost > 0 {
            failures.push(were(total.lost, "lost"));
        }
        if failures.is_empty() && total.rejected > 0 {
            // Sinks make no records: what they did not take, they have told.
            let told: Vec<&str> = report
                .nodes
                .iter()
                .filter(|node| node.role == "sink")
                .filter_map(|node| node.last_error.as_deref())
                .collect();
            let why = |records: &str| if told.is_empty() { records.to_owned() } else { told.join("; ") };
            if total.delivered == 0 {
                let why = why("the error records say why");
                failures.push(format!("every item was rejected ({}); {why}", total.rejected));
            } else {
                tracing::warn!("{}; {}", were(total.rejected, "rejected"), why("error records say why"));
            }
        }
        self.counters.set_state(GraphState::Finished, None);
        Outcome { failures, stuck, asked }
    }
}

/// Where changes wait for the supervisor.
fn changes() -> (Sender<Change>, Receiver<Change>) {
    #[expect(
        clippy::disallowed_methods,
        reason = "one with a bound keeps what was sent after its receiver has gone, so that whoever waits for the answer waits \
                  for ever; this one drops it. It holds no more than there are threads that ask: each waits for its answer"
    )]
    unbounded()
}

/// What is told of a stream that failed.
pub(super) fn failure_of(stream: &StreamId, text: &str) -> String {
    format!("stream `{stream}`: {text}")
}

/// What a graph has not come to an end with, as far as it is counted: for whoever cannot ask its thread.
pub(super) fn still_open(counters: &GraphCounters) -> Vec<String> {
    let report = counters.report();
    let streams = report
        .streams
        .iter()
        .filter(|stream| !matches!(stream.state, StreamState::Ended | StreamState::Stopped | StreamState::Failed));
    let mut open: Vec<String> = streams.map(|stream| format!("stream `{}`", stream.stream)).collect();
    open.extend(counters.nodes().iter().filter_map(|node| what_waits(node, &report)));
    open.push(in_flight(report.total.in_flight));
    open
}

fn in_flight(items: u64) -> String {
    format!("{} in flight", counted(items))
}

/// What a node has not come to an end with.
fn what_waits(node: &NodeCounters, report: &GraphReport) -> Option<String> {
    if node.role == "tap" {
        return None;
    }
    let name = if node.role == "sink" { format!("sink `{}`", node.name) } else { format!("`{}`", node.name) };
    let queued = report.nodes.iter().find(|told| told.name == *node.name).map_or(0, |told| told.queued);
    let is_busy = || (0..node.workers()).any(|worker| node.stands_since(worker).is_some());
    match queued {
        0 => is_busy().then(|| format!("{name}, which is at work")),
        1 => Some(format!("{name} with an item")),
        items => Some(format!("{name} with {items} items")),
    }
}

#[cfg(test)]
mod tests {
    use operators::clock::{Clock, SimulatedClock};
    use operators::lease::Ack;

    use super::*;
    use crate::runtime::counters::Place;

    #[test]
    fn what_a_graph_has_not_come_to_an_end_with_is_named_without_asking_it() {
        let clock = Arc::new(SimulatedClock::default());
        let graph = GraphCounters::new("yard".into(), clock.clone(), 0);
        let place = Place {
            source: "cameras".into(),
            location: "x".into(),
            patience: Duration::ZERO,
            is_live: true,
            makes_files: false,
        };
        let north = graph.open_stream(&StreamId::new("north").unwrap(), place.clone());
        let south = graph.open_stream(&StreamId::new("south").unwrap(), place);
        south.set_state(StreamState::Stopped, None, clock.now());
        let acks: Vec<Ack> = (0..4).map(|_| Ack::new(&north.account, clock.now())).collect();
        let node = |name: &str, role| graph.node(&name.into(), "any", role, 2);
        let (tap, sum, out, idle) =
            (node("tap", "tap"), node("sum", "inline"), node("out", "sink"), node("idle", "sink"));
        tap.queued(1);
        sum.begin(1, clock.now());
        out.queued(3);
        graph.set_nodes(vec![tap, sum, out, idle], None);
        let open = ["stream `north`", "`sum`, which is at work", "sink `out` with 3 items", "4 items in flight"];
        assert_eq!(still_open(&graph), open);
        drop(acks);
    }
}
