//! Starts graphs, watches them, drains them and takes them down.
//!
//! Everything that can fail (models, sinks) is made ready before the dataflow is installed, and sources start last. A
//! graph is finished when every stream has ended, every end of its dataflow has seen an empty frontier and every sink
//! has closed: nothing is in flight then, and the books balance.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, bounded, never, select};
use operators::clock::Clock;
use operators::error::{SourceError, StartError};
use operators::inference::pool::{Installed, Pool, panic_text};
use operators::item::{EndReason, Origin, StreamId};
use operators::lease::Budget;
use operators::operator::{Source, StreamSpec};
use operators::transforms::sample::{Sampler, Sampling};

use super::build::{Blueprint, BlueprintOperator, BlueprintSink, BlueprintTap, BlueprintWork};
use super::counters::{GraphCounters, NodeCounters, StreamCounters, lock};
use super::dataflow_log::DataflowLog;
use super::failure::{Notice, Notices};
use super::mailbox::Mailbox;
use super::node::Node;
use super::offload::Offloaded;
use super::process::usage;
use super::sink::{intake, write};
use super::stats::{GraphState, Health, Observe, ProcessReport, Report, StreamState};
use super::tap::{Stop, StreamTap, TapOutlet};
use super::worker::Workers;
use crate::graph::plan::{Input, OnError, Plan, Work};
use crate::graph::substitute::Secrets;

/// How the engine is set up, for all graphs.
pub struct Options {
    pub workers: usize,
    pub pool_threads: usize,
    pub clock: Arc<dyn Clock>,
    /// Where to write timely's own operator log at the end.
    pub dataflow_log: Option<PathBuf>,
}

/// A source without progress for this long is a problem that `/health` names.
const NO_PROGRESS: Duration = Duration::from_secs(10);
/// After the drain deadline: how long sinks may still take to close.
const LAST_CALL: Duration = Duration::from_millis(500);

/// The running engine: threads that graphs share.
pub struct Engine {
    // In the order in which they must end: the workers' dataflows hold pool and sink handles.
    workers: Workers,
    pool: Arc<Pool>,
    io: tokio::runtime::Runtime,
    clock: Arc<dyn Clock>,
    start: Instant,
    graphs: Mutex<Vec<Arc<GraphCounters>>>,
    log: Option<Arc<DataflowLog>>,
}

impl Engine {
    /// Starts workers, pool and io runtime.
    ///
    /// # Errors
    /// Where the system refuses threads.
    pub fn start(options: Options) -> Result<Engine, StartError> {
        let log = options.dataflow_log.map(|path| Arc::new(DataflowLog::new(path)));
        let io = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("io")
            .enable_all()
            .build()
            .map_err(|error| StartError::new(format!("cannot start the io runtime: {error}")))?;
        Ok(Engine {
            workers: Workers::start(options.workers, log.as_ref())?,
            pool: Arc::new(Pool::start(options.pool_threads, &options.clock)?),
            io,
            start: options.clock.now(),
            clock: options.clock,
            graphs: Mutex::default(),
            log,
        })
    }

    /// Makes `plan` ready and starts it. Returns when its sources run.
    ///
    /// # Errors
    /// Where a model does not load or a sink does not open; nothing of the graph is left then.
    pub fn run(&self, plan: Plan) -> Result<RunningGraph<'_>, StartError> {
        let assembly = Assembly::new(self, &plan);
        lock(&self.graphs).push(assembly.counters.clone());
        let counters = assembly.counters.clone();
        let started = assembly.start(&plan).map_err(|error| StartError {
            message: plan.secrets.redact(&error.message),
            hint: error.hint.map(|hint| plan.secrets.redact(&hint)),
        });
        if let Err(error) = &started {
            counters.set_state(GraphState::Failed, Some(error.to_string()));
        }
        started
    }

    /// The pool that all graphs share.
    pub fn pool(&self) -> Arc<Pool> {
        self.pool.clone()
    }

    /// Ends all threads and writes the dataflow log. Call it when every graph has ended.
    ///
    /// # Errors
    /// Where the dataflow log cannot be written.
    pub fn shutdown(self) -> Result<(), StartError> {
        let Engine { workers, pool, io, log, .. } = self;
        drop(workers);
        drop(pool);
        io.shutdown_timeout(LAST_CALL);
        if let Some(log) = log {
            log.write().map_err(|error| StartError::new(format!("cannot write the dataflow log: {error}")))?;
        }
        Ok(())
    }
}

/// A graph on its way to running.
struct Assembly<'e> {
    engine: &'e Engine,
    counters: Arc<GraphCounters>,
    notices: Notices,
    notice_box: Receiver<Notice>,
    frozen: Arc<AtomicBool>,
    tap_names: Vec<Arc<str>>,
    mailboxes: Vec<Vec<Arc<Mailbox>>>,
}

impl<'e> Assembly<'e> {
    fn new(engine: &'e Engine, plan: &Plan) -> Assembly<'e> {
        let workers = engine.workers.count();
        let now = engine.clock.now();
        let streams_and_nodes = plan.sources.iter().map(|source| source.source.streams().len()).sum::<usize>()
            + (plan.operators.len() + plan.sinks.len()) * (workers + 2);
        // Room for everything that can be said of each stream and node: whoever says it must never wait.
        let (sender, notice_box) = bounded(streams_and_nodes + 16);
        let tap_names: Vec<Arc<str>> =
            plan.taps.iter().map(|tap| tap_name(plan, tap.source, tap.sample.as_ref())).collect();
        let mut streams = Vec::new();
        for (index, planned) in plan.sources.iter().enumerate() {
            for spec in planned.source.streams() {
                let budgets =
                    plan.taps.iter().filter(|tap| tap.source == index).map(|tap| Budget::new(tap.limits)).collect();
                let location = plan.secrets.redact(&spec.location);
                let counters = StreamCounters::new(spec.id, planned.name.clone(), location, budgets, now);
                streams.push(Arc::new(counters));
            }
        }
        let node =
            |name: &Arc<str>, type_name, role| Arc::new(NodeCounters::new(name.clone(), type_name, role, workers));
        let mut nodes = Vec::new();
        for (tap, name) in plan.taps.iter().zip(&tap_names) {
            let type_name = if tap.sample.is_some() { "sample" } else { plan.sources[tap.source].type_name };
            nodes.push(node(name, type_name, "tap"));
        }
        for operator in &plan.operators {
            let role = match operator.work {
                Work::Inline(_) => "inline",
                Work::Pool(_) => "pool",
            };
            nodes.push(node(&operator.name, operator.type_name, role));
        }
        for sink in &plan.sinks {
            nodes.push(node(&sink.name, sink.type_name, "sink"));
        }
        Assembly {
            engine,
            counters: Arc::new(GraphCounters::new(plan.graph.clone(), engine.clock.clone(), streams, nodes)),
            notices: Notices(sender),
            notice_box,
            frozen: Arc::default(),
            tap_names,
            mailboxes: plan.taps.iter().map(|_| (0..workers).map(|_| Arc::default()).collect()).collect(),
        }
    }

    fn node(&self, plan: &Plan, name: &Arc<str>, counters: usize, on_error: OnError) -> Node {
        Node {
            origin: Origin { graph: plan.graph.clone(), node: name.clone() },
            counters: self.counters.nodes[counters].clone(),
            on_error,
            notices: self.notices.clone(),
            clock: self.engine.clock.clone(),
            asked_to_stop: Arc::default(),
            secrets: plan.secrets.clone(),
        }
    }

    fn start(self, plan: &Plan) -> Result<RunningGraph<'e>, StartError> {
        let engine = self.engine;
        let mut installed = InstalledOperators { pool: &engine.pool, operators: Vec::new() };
        let mut operators = Vec::new();
        for (index, planned) in plan.operators.iter().enumerate() {
            let work = match &planned.work {
                Work::Inline(operator) => BlueprintWork::Inline(operator.clone()),
                Work::Pool(operator) => {
                    let install = engine.pool.install(operator).map_err(|error| named(&planned.name, error))?;
                    installed.operators.push(install);
                    BlueprintWork::Pool(Offloaded {
                        pool: engine.pool.clone(),
                        operator: install,
                        deadline: operator.deadline(),
                        entry: planned.entry,
                    })
                }
            };
            let reads_it = |inputs: &[Input]| inputs.contains(&Input::Operator(index));
            let is_heard = plan.operators.iter().any(|other| reads_it(&other.inputs))
                || plan.sinks.iter().any(|sink| reads_it(&sink.inputs));
            let node = self.node(plan, &planned.name, plan.taps.len() + index, planned.on_error);
            operators.push(BlueprintOperator { node, work, inputs: planned.inputs.clone(), is_heard });
        }
        let mut sinks = Vec::new();
        let mut writers = Vec::new();
        for (index, planned) in plan.sinks.iter().enumerate() {
            let writer = planned.sink.start().map_err(|error| named(&planned.name, error))?;
            let (intake, receiver) = intake(engine.workers.count(), self.frozen.clone());
            let counters = plan.taps.len() + plan.operators.len() + index;
            let node = self.node(plan, &planned.name, counters, planned.on_error);
            writers.push((writer, receiver, intake.clone(), node.clone()));
            sinks.push(BlueprintSink { node, intake, entry: planned.entry, inputs: planned.inputs.clone() });
        }
        let taps = self.mailboxes.iter().enumerate().map(|(index, mailboxes)| BlueprintTap {
            mailboxes: mailboxes.clone(),
            counters: self.counters.nodes[index].clone(),
        });
        let blueprint = Arc::new(Blueprint {
            graph: plan.graph.clone(),
            clock: engine.clock.clone(),
            start: engine.start,
            taps: taps.collect(),
            operators,
            sinks,
            frozen: self.frozen.clone(),
        });
        let dataflow = engine.workers.install(&blueprint);
        let mut open_sinks = Vec::new();
        let mut writing_sinks = Vec::new();
        for (writer, receiver, intake, node) in writers {
            intake.seal();
            open_sinks.push(node.origin.node.clone());
            let writing = engine.io.spawn(write(writer, receiver, intake.clone(), node.clone()));
            writing_sinks.push(writing.abort_handle());
            engine.io.spawn(async move {
                // One that was given up is named as stuck already.
                if let Err(error) = writing.await
                    && !error.is_cancelled()
                {
                    let message = format!("sink `{}` died: {error}", node.origin.node);
                    node.counters.error(&message, node.clock.now());
                    tracing::error!(node = %node.origin.node, "{message}");
                    node.stop_graph(None, message);
                }
                // Workers that wait for room learn now that there will be none.
                intake.wake_waiting();
                node.notices.send(Notice::SinkClosed { node: node.origin.node.clone() });
            });
        }
        self.counters.set_state(GraphState::Running, None);
        let stop = Arc::new(Stop::default());
        let streams = match self.start_sources(plan, &stop) {
            Ok(streams) => streams,
            Err(error) => {
                stop.abort();
                self.mailboxes.iter().flatten().for_each(|mailbox| mailbox.abandon());
                engine.workers.remove(dataflow);
                return Err(error);
            }
        };
        Ok(RunningGraph {
            engine,
            ends_open: blueprint.ends() * engine.workers.count(),
            counters: self.counters,
            notices: self.notice_box,
            installed: installed.keep(),
            dataflow,
            source_taps: (0..plan.sources.len()).map(|source| mailboxes_of(plan, source, &self.mailboxes)).collect(),
            open_sinks,
            writing_sinks,
            streams,
            stop,
            failed_streams: Vec::new(),
        })
    }

    /// Starts a thread for every stream that somebody listens to.
    fn start_sources(
        &self,
        plan: &Plan,
        stop: &Arc<Stop>,
    ) -> Result<HashMap<(usize, StreamId), JoinHandle<()>>, StartError> {
        let mut threads = HashMap::new();
        let mut counters = self.counters.streams.iter();
        for (index, planned) in plan.sources.iter().enumerate() {
            let specs = planned.source.streams();
            for (position, spec) in specs.iter().enumerate() {
                let Some(stream) = counters.next() else { break };
                let mut budgets = stream.budgets.iter();
                let mut taps = Vec::new();
                for (tap_index, tap) in plan.taps.iter().enumerate().filter(|(_, tap)| tap.source == index) {
                    let Some(budget) = budgets.next() else { break };
                    let sampler = tap
                        .sample
                        .as_ref()
                        .map(|(_, sampling)| sampler(*sampling, planned.source.is_live(), position, specs.len()));
                    let mailboxes = &self.mailboxes[tap_index];
                    taps.push(StreamTap {
                        name: self.tap_names[tap_index].clone(),
                        sampler,
                        budget: budget.clone(),
                        overflow: tap.overflow,
                        mailbox: mailboxes[worker_of(&spec.id, mailboxes.len())].clone(),
                        wants_this: false,
                    });
                }
                if taps.is_empty() {
                    stream.set_state(StreamState::Ended, Some("nothing listens to it".into()), self.engine.clock.now());
                    continue;
                }
                let outlet = TapOutlet {
                    clock: self.engine.clock.clone(),
                    origin: Origin { graph: plan.graph.clone(), node: planned.name.clone() },
                    stream: spec.id.clone(),
                    counters: stream.clone(),
                    stop: stop.clone(),
                    decoder_threads: planned.decoder_threads,
                    taps,
                };
                stream.progress(self.engine.clock.now());
                let thread = start_stream(
                    index,
                    planned.source.clone(),
                    spec,
                    outlet,
                    self.notices.clone(),
                    plan.secrets.clone(),
                )?;
                threads.insert((index, spec.id.clone()), thread);
            }
        }
        // A source without running streams has nothing to wait for.
        for index in 0..plan.sources.len() {
            if !threads.keys().any(|(source, _)| *source == index) {
                mailboxes_of(plan, index, &self.mailboxes).iter().for_each(|mailbox| mailbox.close());
            }
        }
        Ok(threads)
    }
}

fn start_stream(
    source_index: usize,
    source: Arc<dyn Source>,
    spec: &StreamSpec,
    mut outlet: TapOutlet,
    notices: Notices,
    secrets: Arc<Secrets>,
) -> Result<JoinHandle<()>, StartError> {
    let stream = spec.id.clone();
    std::thread::Builder::new()
        .name(format!("source {stream}"))
        .spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| source.run(&stream, &mut outlet)));
            let reason = match outcome {
                Ok(Ok(reason)) => reason,
                Ok(Err(SourceError::Stopped)) => EndReason::Stopped,
                Ok(Err(SourceError::Input { message, hint })) => EndReason::Failed(match hint {
                    Some(hint) => format!("{message}; hint: {hint}"),
                    None => message,
                }),
                Err(panic) => EndReason::Failed(format!("the source panicked: {}", panic_text(&*panic))),
            };
            let reason = match reason {
                EndReason::Failed(text) => EndReason::Failed(secrets.redact(&text)),
                other => other,
            };
            let now = outlet.clock.now();
            let (state, text) = match &reason {
                EndReason::Eof => (StreamState::Ended, None),
                EndReason::Stopped => (StreamState::Stopped, None),
                EndReason::Failed(text) => (StreamState::Failed, Some(text.clone())),
            };
            if let Some(text) = &text {
                tracing::error!(stream = %stream, node = %outlet.origin.node, "stream `{stream}` of `{}` failed: {text}", outlet.origin.node);
            }
            outlet.counters.set_state(state, text, now);
            outlet.end(reason.clone());
            notices.send(Notice::StreamEnded { source: source_index, stream, reason });
        })
        .map_err(|error| StartError::new(format!("cannot start a thread for stream `{}`: {error}", spec.id)))
}

/// Frees the pool's runners of a graph that does not come to run.
struct InstalledOperators<'p> {
    pool: &'p Pool,
    operators: Vec<Installed>,
}

impl InstalledOperators<'_> {
    fn keep(mut self) -> Vec<Installed> {
        std::mem::take(&mut self.operators)
    }
}

impl Drop for InstalledOperators<'_> {
    fn drop(&mut self) {
        for operator in &self.operators {
            self.pool.remove(*operator);
        }
    }
}

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

/// A graph that runs. Somebody must [`RunningGraph::supervise`] it.
pub struct RunningGraph<'e> {
    engine: &'e Engine,
    pub counters: Arc<GraphCounters>,
    notices: Receiver<Notice>,
    installed: Vec<Installed>,
    dataflow: u64,
    /// For each source, the mailboxes of all its taps.
    source_taps: Vec<Vec<Arc<Mailbox>>>,
    ends_open: usize,
    open_sinks: Vec<Arc<str>>,
    /// The tasks of all sinks.
    writing_sinks: Vec<tokio::task::AbortHandle>,
    streams: HashMap<(usize, StreamId), JoinHandle<()>>,
    stop: Arc<Stop>,
    failed_streams: Vec<String>,
}

impl RunningGraph<'_> {
    /// Watches the graph until it has ended. `requests` may ask it to end sooner; from then on it has
    /// `drain_deadline` to deliver what is in flight.
    pub fn supervise(mut self, requests: &Receiver<Request>, drain_deadline: Duration) -> Outcome {
        let mut deadline = never();
        let mut requests = requests.clone();
        let mut stuck = Vec::new();
        let (mut asked, mut draining) = (None, false);
        while !self.is_done() {
            select! {
                recv(self.notices) -> notice => if let Ok(notice) = notice && self.take(notice) && !draining {
                    draining = true;
                    self.drain();
                    deadline = after(drain_deadline);
                },
                recv(requests) -> request => match request {
                    Ok(Request::Drain) => {
                        asked = Some(Request::Drain);
                        if !draining {
                            draining = true;
                            self.drain();
                            deadline = after(drain_deadline);
                        }
                    }
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
        }
        if !self.is_done() {
            self.abort();
        }
        self.finish(stuck, asked)
    }

    fn is_done(&self) -> bool {
        self.streams.is_empty() && self.ends_open == 0 && self.open_sinks.is_empty()
    }

    /// Notes what happened; `true` when the graph has to stop because of it.
    fn take(&mut self, notice: Notice) -> bool {
        match notice {
            Notice::NodeFailed { node, stream, message } => {
                tracing::error!(node = %node, stream = stream.as_deref().unwrap_or("-"), "the graph stops: {message}");
                self.counters.set_state(GraphState::Failed, Some(message));
                return true;
            }
            Notice::StreamEnded { source, stream, reason } => {
                if let EndReason::Failed(text) = reason {
                    self.failed_streams.push(format!("stream `{stream}`: {text}"));
                }
                if let Some(thread) = self.streams.remove(&(source, stream)) {
                    // Its last act was to send this notice; a panic was caught inside.
                    let _ = thread.join();
                }
                if !self.streams.keys().any(|(other, _)| *other == source) {
                    self.source_taps[source].iter().for_each(|mailbox| mailbox.close());
                }
            }
            Notice::SinkClosed { node } => {
                if let Some(index) = self.open_sinks.iter().position(|open| *open == node) {
                    self.open_sinks.swap_remove(index);
                }
            }
            Notice::EndReached => self.ends_open = self.ends_open.saturating_sub(1),
        }
        false
    }

    fn drain(&self) {
        self.counters.set_state(GraphState::Draining, None);
        self.stop.stop();
    }

    fn what_is_open(&self) -> Vec<String> {
        let mut open: Vec<String> = self.streams.keys().map(|(_, stream)| format!("stream `{stream}`")).collect();
        open.sort();
        open.extend(self.open_sinks.iter().map(|sink| format!("sink `{sink}`")));
        let counts = self.counters.report().total;
        open.push(format!("{} items in flight", counts.in_flight));
        open
    }

    /// Lets go of everything that is in flight: it is lost.
    fn abort(&mut self) {
        self.stop.abort();
        self.source_taps.iter().flatten().for_each(|mailbox| mailbox.abandon());
        self.engine.workers.remove(self.dataflow);
        self.ends_open = 0;
        self.last_call(Self::is_done);
        // What a sink that is stuck has in hand would stay in flight for ever.
        self.writing_sinks.iter().for_each(tokio::task::AbortHandle::abort);
        self.last_call(|graph| graph.open_sinks.is_empty());
    }

    /// Waits for `done`, but not for long.
    fn last_call(&mut self, done: impl Fn(&Self) -> bool) {
        let last_call = after(LAST_CALL);
        while !done(self) {
            select! {
                recv(self.notices) -> notice => match notice {
                    Ok(Notice::EndReached) | Err(_) => {}
                    Ok(notice) => {
                        self.take(notice);
                    }
                },
                recv(last_call) -> _ => return,
            }
        }
    }

    fn finish(self, stuck: Vec<String>, asked: Option<Request>) -> Outcome {
        self.engine.workers.remove(self.dataflow);
        for operator in &self.installed {
            self.engine.pool.remove(*operator);
        }
        let (state, reason) = self.counters.state();
        let mut failures = self.failed_streams;
        if state == GraphState::Failed {
            failures.insert(0, reason.unwrap_or_default());
        }
        let total = self.counters.report().total;
        if failures.is_empty() && total.lost > 0 {
            failures.push(format!("{} items were lost", total.lost));
        }
        if failures.is_empty() && total.rejected > 0 {
            if total.delivered == 0 {
                failures.push(format!("every item was rejected ({}); the error records say why", total.rejected));
            } else {
                tracing::warn!("{} items were rejected; their error records say why", total.rejected);
            }
        }
        self.counters.set_state(GraphState::Finished, None);
        Outcome { failures, stuck, asked }
    }
}

impl Observe for Engine {
    fn report(&self) -> Report {
        let usage = usage();
        let uptime = self.clock.now().saturating_duration_since(self.start);
        Report {
            graphs: lock(&self.graphs).iter().map(|graph| graph.report()).collect(),
            process: ProcessReport {
                uptime_seconds: uptime.as_secs_f64(),
                cpu_seconds: usage.cpu_seconds,
                resident_bytes: usage.resident_bytes,
                peak_resident_bytes: usage.peak_resident_bytes,
                threads: usage.threads,
                workers: self.workers.count(),
                pool_threads: self.pool.threads(),
            },
        }
    }

    fn health(&self) -> Health {
        let now = self.clock.now();
        let mut problems = Vec::new();
        let graphs = lock(&self.graphs);
        // The control plane answers before the first graph is there.
        let mut status = if graphs.is_empty() { "starting" } else { "ok" };
        for graph in graphs.iter() {
            let name = &graph.name;
            match graph.state() {
                (GraphState::Starting, _) => status = "starting",
                (GraphState::Draining, _) => status = "draining",
                (GraphState::Failed, reason) => {
                    problems.push(format!("graph `{name}` failed: {}", reason.unwrap_or_default()));
                }
                (GraphState::Running | GraphState::Finished, _) => {}
            }
            for stream in &graph.streams {
                let (state, reason) = stream.state();
                let idle = stream.idle(now);
                if state == StreamState::Failed {
                    problems.push(format!(
                        "graph `{name}`, stream `{}`: {}",
                        stream.stream,
                        reason.unwrap_or_default()
                    ));
                } else if idle > NO_PROGRESS && graph.state().0 != GraphState::Starting {
                    let seconds = idle.as_secs();
                    problems.push(format!("graph `{name}`, stream `{}`: no progress for {seconds} s", stream.stream));
                }
            }
            for node in graph.nodes.iter().filter(|node| node.role == "sink" && node.failed_within(NO_PROGRESS, now)) {
                let error = node.last_error().unwrap_or_default();
                problems.push(format!("graph `{name}`, node `{}`: {error}", node.name));
            }
        }
        if !self.workers.answer(now) {
            problems.push("a dataflow worker does not answer".to_owned());
        }
        // That it starts or drains is said first: whoever routes work here must know it, whatever else is wrong.
        let ok = status == "ok" && problems.is_empty();
        if status == "ok" && !problems.is_empty() {
            status = "failing";
        }
        Health { ok, status, problems }
    }
}

fn named(node: &Arc<str>, error: StartError) -> StartError {
    StartError { message: format!("`{node}` cannot start: {}", error.message), hint: error.hint }
}

fn tap_name(plan: &Plan, source: usize, sample: Option<&(Arc<str>, Sampling)>) -> Arc<str> {
    sample.map_or_else(|| plan.sources[source].name.clone(), |(name, _)| name.clone())
}

fn mailboxes_of(plan: &Plan, source: usize, mailboxes: &[Vec<Arc<Mailbox>>]) -> Vec<Arc<Mailbox>> {
    let taps = plan.taps.iter().zip(mailboxes).filter(|(tap, _)| tap.source == source);
    taps.flat_map(|(_, mailboxes)| mailboxes.iter().cloned()).collect()
}

/// The worker that a stream lives on: the same in every graph and every run.
fn worker_of(stream: &StreamId, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    stream.hash(&mut hasher);
    usize::try_from(hasher.finish() % workers as u64).unwrap_or(0)
}

/// Streams of a live source that are sampled at the same instants would all want the processor at once: their phases
/// are spread over the period.
fn sampler(sampling: Sampling, is_live: bool, position: usize, streams: usize) -> Sampler {
    let phase = sampling.phase.unwrap_or_else(|| {
        if is_live && streams > 1 {
            Duration::from_secs_f64(position as f64 / (streams as f64 * sampling.rate.as_f64()))
        } else {
            Duration::ZERO
        }
    });
    Sampler::new(sampling.rate, phase)
}
