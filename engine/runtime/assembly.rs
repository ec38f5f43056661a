//! Makes a graph ready and starts it.
//!
//! Everything that can fail (models, sinks) is made ready before the dataflow is installed, and sources start last.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use operators::address::masked;
use operators::error::{SourceError, StartError};
use operators::inference::pool::{Installed, Pool, panic_text};
use operators::item::{EndReason, Origin, StreamId};
use operators::lease::Budget;
use operators::operator::{Source, StreamSpec};
use operators::transforms::sample::{Sampler, Sampling};

use super::build::{Blueprint, BlueprintOperator, BlueprintSink, BlueprintTap, BlueprintWork};
use super::counters::{GraphCounters, NodeCounters, StreamCounters};
use super::failure::{Notice, Notices};
use super::health::NO_PROGRESS;
use super::mailbox::Mailbox;
use super::node::Node;
use super::offload::Offloaded;
use super::sink::{intake, write};
use super::stats::{GraphState, StreamState};
use super::supervision::RunningGraph;
use super::supervisor::Engine;
use super::tap::{Stop, StreamTap, TapOutlet};
use crate::graph::plan::{Input, OnError, Plan, Work};
use crate::graph::substitute::Secrets;

/// A graph on its way to running.
pub struct Assembly<'e> {
    engine: &'e Engine,
    pub counters: Arc<GraphCounters>,
    notices: Notices,
    notice_box: Receiver<Notice>,
    frozen: Arc<AtomicBool>,
    tap_names: Vec<Arc<str>>,
    mailboxes: Vec<Vec<Arc<Mailbox>>>,
}

impl<'e> Assembly<'e> {
    pub fn new(engine: &'e Engine, plan: &Plan) -> Assembly<'e> {
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
                // Secrets first: one that is a whole URL is not found any more once a part of it is covered.
                let location = masked(&plan.secrets.redact(&spec.location));
                let patience = planned.source.silence().map_or(NO_PROGRESS, |silence| silence.max(NO_PROGRESS));
                let counters = StreamCounters::new(spec.id, planned.name.clone(), location, patience, budgets, now);
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

    pub fn start(self, plan: &Plan) -> Result<RunningGraph<'e>, StartError> {
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
                    fallback: false,
                    secrets: plan.secrets.clone(),
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
                EndReason::Failed(text) => EndReason::Failed(masked(&secrets.redact(&text))),
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
