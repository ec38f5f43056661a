//! One generation of a graph: a plan that was made ready, installed on every worker, and not yet taken down.
//!
//! Everything that can fail or takes long (models, sinks) is made ready before, see [`super::loading`]. A sink of the
//! generation before goes on where it is the same.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use operators::address::masked;
use operators::error::StartError;
use operators::inference::pool::Installed;
use operators::item::{Origin, StreamId};
use operators::lease::Budget;
use operators::operator::SinkWriter;
use operators::transforms::sample::{Sampler, Sampling};
use tokio::sync::mpsc::Receiver;

use super::build::{Blueprint, BlueprintOperator, BlueprintSink, BlueprintTap, BlueprintWork};
use super::conversations::Conversations;
use super::counters::{GraphCounters, NodeCounters};
use super::failure::{Notice, Notices};
use super::loading::Prepared;
use super::mailbox::Mailbox;
use super::node::Node;
use super::offload::{Executor, Offloaded};
use super::passage::Course;
use super::sink::{Intake, SinkEnd, intake, write};
use super::supervisor::Engine;
use super::tap::{StreamTap, TapEnd};
use crate::graph::identity::Identity;
use crate::graph::plan::{Input, OnError, Overflow, Plan, PlannedTap, Work};

/// What to do where no dataflow can be changed.
pub(super) const HELD_UP: &str =
    "wait until that gets on, or start the engine again; what runs on other workers, runs on";

/// A sink whose writer is open.
pub struct OpenSink {
    /// Unlike its name, never used twice in the graph.
    pub id: u64,
    pub name: Arc<str>,
    pub identity: Identity,
    pub intake: Arc<Intake>,
    pub writing: tokio::task::AbortHandle,
    /// The running generation does not write to it any more.
    pub is_closing: bool,
}

/// A plan that runs.
pub struct Generation {
    pub number: u64,
    pub plan: Arc<Plan>,
    engine: Arc<Engine>,
    /// The index of its dataflow on the workers.
    dataflow: u64,
    installed: Vec<Installed>,
    /// For each tap and worker.
    mailboxes: Vec<Vec<Arc<Mailbox>>>,
    /// Ends of the dataflow, on all workers, that may still see something.
    pub ends_open: usize,
    /// For each source whether no stream of it will come any more.
    closed: Vec<bool>,
    is_down: bool,
}

/// What a generation is made with.
pub struct Making<'a> {
    pub engine: &'a Arc<Engine>,
    pub counters: &'a GraphCounters,
    pub notices: &'a Notices,
    pub number: u64,
    /// Sinks that are open already.
    pub sinks: &'a [OpenSink],
    /// How long a sink may take to open, where somebody waits who has more to do.
    pub patience: Option<Duration>,
}

/// A sink that was opened and has no writer task yet.
struct FreshSink {
    writer: Box<dyn SinkWriter>,
    receiver: Receiver<operators::item::Event>,
    open: OpenSinkParts,
}

struct OpenSinkParts {
    intake: Arc<Intake>,
    node: Node,
    identity: Identity,
}

impl Making<'_> {
    fn node(&self, plan: &Plan, name: &Arc<str>, counters: Arc<NodeCounters>, on_error: OnError) -> Node {
        Node {
            origin: Origin { graph: plan.graph.clone(), node: name.clone() },
            counters,
            on_error,
            notices: self.notices.clone(),
            clock: self.engine.clock.clone(),
            asked_to_stop: Arc::default(),
            secrets: plan.secrets.clone(),
            answers: false,
        }
    }

    /// Installs `plan`, of which that is ready which takes long. Answers the generation and the sinks that were opened for
    /// it.
    ///
    /// # Errors
    /// Where a worker does not answer, or a sink that was open meanwhile closed and does not open again; nothing of the generation is left then.
    pub fn install(&self, plan: Arc<Plan>, mut ready: Prepared) -> Result<(Generation, Vec<OpenSink>), StartError> {
        let engine = self.engine;
        let workers = engine.workers.count();
        let mut nodes = Vec::new();
        let mut counters = |name: &Arc<str>, type_name, role| {
            let node = self.counters.node(name, type_name, role, workers);
            nodes.push(node.clone());
            node
        };
        let tap_counters: Vec<Arc<NodeCounters>> = plan
            .taps
            .iter()
            .map(|tap| {
                let type_name = if tap.sample.is_some() { "sample" } else { plan.sources[tap.source].type_name };
                counters(&tap_name(&plan, tap), type_name, "tap")
            })
            .collect();
        let (mut operators, mut troubles) = (Vec::new(), Vec::new());
        for (index, planned) in plan.operators.iter().enumerate() {
            let mut trouble = None;
            let (work, role) = match &planned.work {
                Work::Inline(operator) => (BlueprintWork::Inline(operator.clone()), "inline"),
                Work::Pool(operator) => {
                    let install = ready.installed(index).ok_or_else(|| unready(&planned.name))?;
                    let (pool, deadline) = (engine.pool.clone(), operator.deadline());
                    let executor = Executor::Pool { pool, operator: install, deadline };
                    (BlueprintWork::Offloaded(Offloaded { executor, entry: planned.entry }), "pool")
                }
                Work::Io(operator) => {
                    let runner = ready.conversation(index).ok_or_else(|| unready(&planned.name))?;
                    trouble = runner.trouble();
                    let conversations = {
                        let (runtime, clock) = (engine.io.handle().clone(), engine.clock.clone());
                        Conversations::new(runner, operator.concurrency(), runtime, clock)
                    };
                    let executor = Executor::Io(conversations);
                    let role = if planned.is_end { "sink" } else { "io" };
                    (BlueprintWork::Offloaded(Offloaded { executor, entry: planned.entry }), role)
                }
            };
            let is_heard = reads(&plan, Input::Operator(index));
            let counters = counters(&planned.name, planned.type_name, role);
            if let Some(trouble) = &trouble {
                let secrets = plan.secrets.clone();
                trouble.cover_with(move |text| masked(&secrets.redact(text)));
            }
            troubles.push((counters.clone(), trouble));
            let answers = planned.answers;
            let node = Node { answers, ..self.node(&plan, &planned.name, counters, planned.on_error) };
            let (inputs, is_end) = (planned.inputs.clone(), planned.is_end);
            operators.push(BlueprintOperator { node, work, inputs, is_heard, is_end });
        }
        let frozen = Arc::<AtomicBool>::default();
        let (mut sinks, mut fresh) = (Vec::new(), Vec::new());
        for (index, planned) in plan.sinks.iter().enumerate() {
            let counters = counters(&planned.name, planned.type_name, "sink");
            let node = self.node(&plan, &planned.name, counters, planned.on_error);
            let is_same =
                |open: &&OpenSink| open.name == planned.name && open.identity == planned.identity && !open.is_closing;
            // Where all of the generation before has come to its end, the writer is about to close: not if it is written to
            // again before it does.
            let open = self.sinks.iter().find(is_same).filter(|open| open.intake.reopen());
            let intake = match open {
                Some(open) => open.intake.clone(),
                None => {
                    let writer = ready.writer(index, planned, self.patience)?;
                    let (intake, receiver) = intake(workers, &node.counters);
                    let (node, identity) = (node.clone(), planned.identity);
                    fresh.push(FreshSink {
                        writer,
                        receiver,
                        open: OpenSinkParts { intake: intake.clone(), node, identity },
                    });
                    intake
                }
            };
            let end = SinkEnd {
                node,
                intake,
                entry: planned.entry,
                generation: self.number,
                is_new: open.is_none(),
                frozen: frozen.clone(),
            };
            sinks.push(BlueprintSink { end, inputs: planned.inputs.clone() });
        }
        let mailboxes: Vec<Vec<Arc<Mailbox>>> =
            plan.taps.iter().map(|_| (0..workers).map(|_| Arc::default()).collect()).collect();
        let taps = mailboxes
            .iter()
            .zip(tap_counters)
            .map(|(mailboxes, counters)| BlueprintTap { mailboxes: mailboxes.clone(), counters });
        let blueprint = Arc::new(Blueprint {
            graph: plan.graph.clone(),
            generation: self.number,
            clock: engine.clock.clone(),
            start: engine.start,
            taps: taps.collect(),
            operators,
            sinks,
            workshop: engine.workshop.clone(),
            frozen,
        });
        let dataflow = engine.workers.install(&blueprint).ok_or_else(|| {
            let held_up = engine.held_up().unwrap_or_else(|| "a dataflow worker does not answer".to_owned());
            StartError::new(held_up).hint(HELD_UP)
        })?;
        // Nodes of the generation before have the same counters: what runs on tells its own.
        for (counters, trouble) in troubles {
            counters.set_trouble(trouble);
        }
        for BlueprintSink { end, .. } in &blueprint.sinks {
            end.intake.set_on_error(end.node.on_error);
        }
        let opened = fresh.into_iter().map(|sink| self.serve(sink)).collect();
        if let Some(chaos) = &plan.chaos {
            let disturbed = chaos.nodes.join("`, `");
            let graph = &plan.graph;
            tracing::warn!(%graph, seed = chaos.seed, "chaos is on in graph `{graph}`: it disturbs `{disturbed}` on purpose");
        }
        self.counters.set_nodes(nodes, plan.chaos.clone());
        let generation = Generation {
            number: self.number,
            ends_open: blueprint.ends() * workers,
            closed: vec![false; plan.sources.len()],
            plan,
            engine: engine.clone(),
            dataflow,
            installed: ready.keep(),
            mailboxes,
            is_down: false,
        };
        Ok((generation, opened))
    }

    /// Gives an open sink its task.
    fn serve(&self, sink: FreshSink) -> OpenSink {
        let FreshSink { writer, receiver, open: OpenSinkParts { intake, node, identity } } = sink;
        let id = self.engine.next_id();
        let name = node.origin.node.clone();
        let writing = self.engine.io.spawn(write(writer, receiver, intake.clone(), node.clone()));
        let abort = writing.abort_handle();
        let waking = intake.clone();
        self.engine.io.spawn(async move {
            // One that was given up is named as stuck already.
            if let Err(error) = writing.await
                && !error.is_cancelled()
            {
                let message = format!("sink `{}` died: {error}", node.origin.node);
                node.counters.error(&message, node.clock.now());
                tracing::error!(node = %node.origin.node, "{message}");
                node.stop_graph(None, message);
            }
            // What it had not taken waits no more.
            waking.waiting.clear();
            // Workers that wait for room learn now that there will be none.
            waking.wake_waiting();
            node.notices.send(Notice::SinkClosed { sink: id });
        });
        OpenSink { id, name, identity, intake, writing: abort, is_closing: false }
    }
}

impl Generation {
    /// The taps of source number `source`, for one stream of it. `spread`, in 0..1, is where in its period a live stream
    /// is sampled. Taps of the same name go on with the budgets and samplers of `before`.
    pub fn stream_taps(
        &self,
        source: usize,
        stream: &StreamId,
        spread: f64,
        before: &mut Vec<StreamTap>,
    ) -> Vec<StreamTap> {
        let is_live = self.plan.sources[source].source.is_live();
        let mut taps = Vec::new();
        for (tap, mailboxes) in self.plan.taps.iter().zip(&self.mailboxes).filter(|(tap, _)| tap.source == source) {
            let earlier = before.iter().position(|before| before.end.reader == tap.reader);
            let earlier = earlier.map(|position| before.swap_remove(position));
            let same = earlier.as_ref().map(|earlier| &earlier.end).filter(|earlier| earlier.overflow == tap.overflow);
            let budget = same.map(|earlier| &earlier.budget).filter(|budget| budget.limits() == tap.limits).cloned();
            let sampler = tap.sample.as_ref().map(|(_, sampling)| {
                let goes_on = earlier.and_then(|earlier| earlier.sampler).filter(|(before, _)| before == sampling);
                goes_on.unwrap_or_else(|| (*sampling, sampler(*sampling, is_live, spread)))
            });
            let end = TapEnd {
                name: tap_name(&self.plan, tap),
                reader: tap.reader.clone(),
                budget: budget.unwrap_or_else(|| match tap.overflow {
                    Overflow::Block | Overflow::DropGop => Budget::new(tap.limits),
                    Overflow::DropOldest => Budget::of_newest(tap.limits),
                }),
                overflow: tap.overflow,
                mailbox: mailboxes[worker_of(stream, mailboxes.len())].clone(),
                given_up: AtomicBool::new(false),
                has_lost: AtomicBool::new(false),
                rejected: AtomicU64::new(0),
                awaits_keyframe: AtomicBool::new(false),
            };
            taps.push(StreamTap { end: Arc::new(end), kind: tap.kind, sampler });
        }
        taps
    }

    /// The number of the source that is called `name`.
    pub fn source(&self, name: &str) -> Option<usize> {
        self.plan.sources.iter().position(|source| &*source.name == name)
    }

    /// How the streams of source number `source` run through the dataflow.
    pub fn course(&self, source: usize) -> Course {
        let plan = &self.plan;
        let mut course = Course::default();
        let mut reached = vec![false; plan.operators.len()];
        let brings = |input: &Input, reached: &[bool]| match input {
            Input::Tap(tap) => plan.taps[*tap].source == source,
            Input::Operator(operator) => reached[*operator],
        };
        for (index, operator) in plan.operators.iter().enumerate() {
            let inputs = operator.inputs.iter().filter(|input| brings(input, &reached)).count();
            if inputs > 0 {
                reached[index] = true;
                course.inputs.insert(operator.name.clone(), inputs);
                course.ends += usize::from(!reads(plan, Input::Operator(index)));
            }
        }
        for sink in &plan.sinks {
            let inputs = sink.inputs.iter().filter(|input| brings(input, &reached)).count();
            if inputs > 0 {
                course.inputs.insert(sink.name.clone(), inputs);
                course.ends += 1;
            }
        }
        course
    }

    fn of_source(&self, source: usize) -> impl Iterator<Item = &Arc<Mailbox>> {
        let taps = self.plan.taps.iter().zip(&self.mailboxes).filter(move |(tap, _)| tap.source == source);
        taps.flat_map(|(_, mailboxes)| mailboxes)
    }

    fn of_stream(&self, source: usize, stream: &StreamId) -> impl Iterator<Item = &Arc<Mailbox>> {
        let taps = self.plan.taps.iter().zip(&self.mailboxes).filter(move |(tap, _)| tap.source == source);
        taps.map(move |(_, mailboxes)| &mailboxes[worker_of(stream, mailboxes.len())])
    }

    /// The mailboxes that a stream of source number `source` goes through.
    pub fn mailboxes(&self, source: usize, stream: &StreamId) -> Vec<Arc<Mailbox>> {
        self.of_stream(source, stream).cloned().collect()
    }

    /// No stream of source number `source` will come any more.
    pub fn close(&mut self, source: usize) {
        if !std::mem::replace(&mut self.closed[source], true) {
            self.of_source(source).for_each(|mailbox| mailbox.close());
        }
    }

    pub fn is_closed(&self, source: usize) -> bool {
        self.closed[source]
    }

    /// Nothing at all will come any more.
    pub fn close_all(&self) {
        self.mailboxes.iter().flatten().for_each(|mailbox| mailbox.close());
    }

    /// Throws away what waits; it is lost.
    pub fn abandon(&self) {
        self.mailboxes.iter().flatten().for_each(|mailbox| mailbox.abandon());
    }

    /// Takes it down, with whatever is still in it: that is lost. The second time does nothing.
    pub fn take_down(&mut self) {
        if !std::mem::replace(&mut self.is_down, true) {
            self.ends_open = 0;
            self.engine.workers.remove(self.dataflow);
            for operator in &self.installed {
                self.engine.pool.remove(*operator);
            }
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.take_down();
    }
}

/// `SOURCE -> READER`: which of a source's branches it is.
fn tap_name(plan: &Plan, tap: &PlannedTap) -> Arc<str> {
    format!("{} -> {}", plan.sources[tap.source].name, tap.reader).into()
}

/// Whether somebody reads `input`.
fn reads(plan: &Plan, input: Input) -> bool {
    let operators = plan.operators.iter().map(|operator| &operator.inputs);
    operators.chain(plan.sinks.iter().map(|sink| &sink.inputs)).any(|inputs| inputs.contains(&input))
}

/// Everything that takes long was made ready of the same plan, so nobody hears this.
fn unready(node: &Arc<str>) -> StartError {
    StartError::new(format!("`{node}` was not made ready"))
}

/// The worker that a stream lives on: the same in every graph and every run.
fn worker_of(stream: &StreamId, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    stream.hash(&mut hasher);
    usize::try_from(hasher.finish() % workers as u64).unwrap_or(0)
}

/// Streams of a live source that are sampled at the same instants would all want the processor at once: their phases
/// are spread over the period.
fn sampler(sampling: Sampling, is_live: bool, spread: f64) -> Sampler {
    let phase = sampling.phase.unwrap_or_else(|| {
        if is_live { Duration::from_secs_f64(spread / sampling.rate.as_f64()) } else { Duration::ZERO }
    });
    Sampler::new(sampling.rate, phase)
}
