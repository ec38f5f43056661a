//! The streams of a running graph: those that its sources declare, and those that come and go while it runs.

use std::collections::HashMap;
use std::sync::Arc;

use operators::address::masked;
use operators::error::{FieldError, StartError};
use operators::item::{Origin, StreamId};
use operators::operator::{Source, StreamSpec};
use operators::reach::Hosts;

use super::counters::{GraphCounters, Place, TapCounters};
use super::feed::{Feed, Listener};
use super::health::NO_PROGRESS;
use super::stats::StreamState;
use super::supervision::{RunningGraph, RunningStream};
use super::tap::StreamTap;
use crate::graph::identity::Identity;
use crate::graph::plan::{Plan, PlannedSource};
use crate::graph::references::References;

/// A stream that was added while the graph ran.
#[derive(Clone)]
pub struct PostedStream {
    /// The name of the source's node.
    pub source: Arc<str>,
    /// What `streams.ID` of the source's table would have said.
    pub own: toml::Value,
    /// What it may name; the source's own table is not its affair.
    pub references: References,
}

/// A stream that is to be read.
#[derive(Clone)]
pub(super) struct WantedStream {
    /// The number of the source's node in the plan.
    pub source_index: usize,
    pub source: Arc<dyn Source>,
    pub spec: StreamSpec,
    pub identity: Identity,
    /// Where in its period it is sampled, 0..1.
    pub spread: f64,
    /// The hosts that it may lead on to, where it was added while the graph ran; else those of its graph.
    pub hosts: Option<Hosts>,
}

/// Why a stream was not added or removed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("there is no such graph that runs; there is {}", or_none(known))]
    NoGraph { known: Vec<String> },
    #[error("there is no such source that something listens to; there is {}", or_none(known))]
    NoSource { known: Vec<String> },
    #[error("a stream of this name is there already")]
    Taken,
    #[error("there is no such stream")]
    NoStream,
    #[error("the source has {most} streams, and its `max_streams` are {most}")]
    TooMany { most: u32 },
    /// The source cannot be built with it.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Mistaken(Vec<FieldError>),
    /// It was removed, and has not ended yet.
    #[error("the stream that was called so is being removed, and has not ended yet")]
    Leaving,
    #[error("the graph is ending, or its source has ended")]
    Ending,
    #[error("{0}")]
    Refused(String),
}

fn or_none(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Successive multiples of the golden ratio are far from each other, however many there are.
const GOLDEN: f64 = 0.618_033_988_749_895;

impl RunningGraph {
    /// The streams that the sources of the generation declare.
    pub(super) fn declared(&self) -> Vec<WantedStream> {
        let mut wanted = Vec::new();
        for (source_index, planned) in self.generation.plan.sources.iter().enumerate() {
            let specs = planned.source.streams();
            let count = specs.len();
            for (position, spec) in specs.into_iter().enumerate() {
                let spread = position as f64 / count as f64;
                wanted.push(planned.wanted(source_index, planned.source.clone(), spec, spread));
            }
        }
        wanted
    }

    /// The stream that was posted as `id`, as the source of the generation would read it.
    pub(super) fn built(&self, id: &StreamId, posted: &PostedStream) -> Result<WantedStream, StreamError> {
        let sources = &self.generation.plan.sources;
        let no_source =
            || StreamError::NoSource { known: sources.iter().map(|source| source.name.to_string()).collect() };
        let source_index = self.generation.source(&posted.source).ok_or_else(no_source)?;
        let planned = &sources[source_index];
        let template = planned.template.as_ref().ok_or_else(no_source)?;
        let source = template.one_stream(id, &posted.own, &posted.references).map_err(StreamError::Mistaken)?;
        let spec = source.streams().into_iter().find(|spec| spec.id == *id);
        let spec = spec.ok_or_else(|| StreamError::Refused(format!("`{}` makes no stream of it", planned.name)))?;
        let position = self.posted.keys().position(|other| other == id).unwrap_or(self.posted.len());
        let spread = (GOLDEN * (position + 1) as f64).fract();
        let mut wanted = planned.wanted(source_index, source, spec, spread);
        wanted.identity = planned.identity.of_stream(&wanted.spec, Some(&posted.own));
        // One that its graph announces itself may reach what its graph may.
        wanted.hosts = (posted.references != References::Anything).then(|| posted.references.hosts());
        Ok(wanted)
    }

    /// Starts to read a stream.
    pub(super) fn read(&mut self, wanted: WantedStream) -> Result<(), StartError> {
        let WantedStream { source_index, source, spec, identity, spread, hosts } = wanted;
        let plan = self.generation.plan.clone();
        let hosts = hosts.unwrap_or_else(|| plan.hosts.clone());
        let planned = &plan.sources[source_index];
        let counters = self.counters.open_stream(&spec.id, place(&plan, planned, &*source, &spec));
        let secrets = plan.secrets.clone();
        counters.account.made.cover_with(move |text| masked(&secrets.redact(text)));
        let taps = self.generation.stream_taps(source_index, &spec.id, spread, &mut Vec::new());
        if taps.is_empty() {
            counters.set_state(StreamState::Ended, Some("nothing listens to it".into()), self.engine.clock.now());
            return Ok(());
        }
        counters.set_budgets(budgets(&taps));
        let before = counters.account.snapshot();
        let listener = Listener {
            origin: Origin { graph: plan.graph.clone(), node: planned.name.clone() },
            first_seq: counters.next_seq(),
            first_packet: counters.next_packet(),
            counters,
            secrets: plan.secrets.clone(),
            notices: self.notices.clone(),
            taps,
        };
        let clock = self.engine.clock.clone();
        let feed = Feed::start(source, spec.id.clone(), planned.decoder_threads, clock, hosts, listener)?;
        if let Some(inlet) = &feed.inlet {
            self.engine.inlets().open(&plan.graph, &spec.id, inlet.clone());
        }
        self.ended.remove(&spec.id);
        let (source, progress) = (planned.name.clone(), planned.progress().cloned());
        let running = RunningStream { source, identity, feed, progress, before };
        self.streams.insert(spec.id, running);
        Ok(())
    }

    /// Adds a stream to a source of the running graph.
    ///
    /// # Errors
    /// Where the source is not there, the id is taken, or the source refuses it.
    pub fn add_stream(&mut self, id: &StreamId, posted: PostedStream) -> Result<(), StreamError> {
        if self.draining {
            return Err(StreamError::Ending);
        }
        self.unlist_retired();
        let is_declared = |stream: &WantedStream| stream.spec.id == *id;
        if self.posted.contains_key(id) || self.declared().iter().any(is_declared) {
            return Err(StreamError::Taken);
        }
        if self.streams.contains_key(id) {
            return Err(StreamError::Leaving);
        }
        let wanted = self.built(id, &posted)?;
        if self.generation.is_closed(wanted.source_index) {
            return Err(StreamError::Ending);
        }
        let planned = &self.generation.plan.sources[wanted.source_index];
        if self.streams_of(&planned.name) >= planned.max_streams as usize {
            return Err(StreamError::TooMany { most: planned.max_streams });
        }
        self.read(wanted).map_err(|error| StreamError::Refused(error.to_string()))?;
        self.posted.insert(id.clone(), posted);
        self.mark_posted();
        Ok(())
    }

    /// How many streams a source has: those that are read, and those that were added and failed.
    fn streams_of(&self, source: &Arc<str>) -> usize {
        let read = self.streams.iter().filter(|(_, stream)| stream.source == *source).count();
        let over = self.posted.iter().filter(|(id, posted)| posted.source == *source && !self.is_read(id)).count();
        read + over
    }

    /// Whether the stream is being read, if only until its thread has ended.
    pub fn is_read(&self, id: &StreamId) -> bool {
        self.streams.contains_key(id)
    }

    /// Tells the counters which streams were added while the graph ran.
    pub(super) fn mark_posted(&self) {
        for stream in self.counters.streams() {
            stream.set_posted(self.posted.contains_key(&stream.stream));
        }
    }

    /// Stops a stream: what is in flight is delivered. One that was added is listed no more.
    ///
    /// # Errors
    /// Where there is none.
    pub fn remove_stream(&mut self, id: &StreamId) -> Result<(), StreamError> {
        let was_posted = self.posted.remove(id).is_some();
        // It may be about to be read anew.
        self.restarts.remove(id);
        match self.streams.get(id) {
            Some(running) => running.feed.stop(),
            // One that is over is listed until the next reload, and stays as it is.
            None if was_posted || self.counters.stream(id).is_some() => {}
            None => return Err(StreamError::NoStream),
        }
        if was_posted {
            self.retired.push(id.clone());
        }
        self.unlist_retired();
        Ok(())
    }

    /// Streams that are not `wanted` are removed: listed no more once they are through, and forgotten. Those that a source
    /// found are listed for as long as others that it found.
    pub(super) fn retire_others(&mut self, wanted: &HashMap<StreamId, WantedStream>) {
        self.retired.retain(|id| !wanted.contains_key(id));
        self.ended.retain(|id, _| wanted.contains_key(id));
        for stream in self.counters.streams() {
            let id = &stream.stream;
            let was_found = self.passing.contains(id) || self.lingering.iter().any(|(lingering, _)| lingering == id);
            if !was_found && !wanted.contains_key(id) && !self.retired.contains(id) {
                self.retired.push(id.clone());
            }
        }
    }

    /// Lists streams that were removed no more, once their counts are final.
    pub(super) fn unlist_retired(&mut self) {
        let mut retired = std::mem::take(&mut self.retired);
        retired.retain(|id| {
            let Some(counters) = self.counters.stream(id).filter(|_| !self.posted.contains_key(id)) else {
                return false;
            };
            let is_over = !self.streams.contains_key(id) && counters.account.snapshot().in_flight == 0;
            if is_over {
                self.counters.close_stream(id);
            }
            !is_over
        });
        self.retired = retired;
    }
}

impl PlannedSource {
    fn wanted(&self, source_index: usize, source: Arc<dyn Source>, spec: StreamSpec, spread: f64) -> WantedStream {
        let own = self.template.as_ref().and_then(|template| template.own(&spec.id));
        let identity = self.identity.of_stream(&spec, own);
        WantedStream { source_index, source, spec, identity, spread, hosts: None }
    }
}

/// Lists the streams of a graph that is about to be made ready: whoever looks finds them from the beginning.
pub(super) fn list(plan: &Plan, counters: &GraphCounters) {
    for planned in &plan.sources {
        for spec in planned.source.streams() {
            counters.open_stream(&spec.id, place(plan, planned, &*planned.source, &spec));
        }
    }
}

pub(super) fn place(plan: &Plan, planned: &PlannedSource, source: &dyn Source, spec: &StreamSpec) -> Place {
    // Secrets first: one that is a whole URL is not found any more once a part of it is covered.
    let location = masked(&plan.secrets.redact(&spec.location));
    let patience = source.silence().map_or(NO_PROGRESS, |silence| silence.max(NO_PROGRESS));
    let makes_files = plan.makes_files(&planned.name);
    Place { source: planned.name.clone(), location, patience, is_live: source.is_live(), makes_files }
}

/// What is counted of one stream in each of its taps, and what bounds it there.
pub(super) fn budgets(taps: &[StreamTap]) -> Vec<TapCounters> {
    let counters = taps.iter().map(|tap| TapCounters {
        name: tap.end.name.clone(),
        reader: tap.end.reader.clone(),
        budget: tap.end.budget.clone(),
    });
    counters.collect()
}
