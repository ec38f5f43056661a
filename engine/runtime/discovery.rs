//! Sources that find their streams while the graph runs: a thread for each looks, and the graph's own thread adds what
//! was found, a bounded number at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use operators::clock::Clock;
use operators::error::{SourceError, StartError};
use operators::item::StreamId;
use operators::lock::lock;
use operators::operator::{Discovery, FoundStream, Unread};

use super::counters::GraphCounters;
use super::graphs::ask;
use super::stats::GraphState;
use super::streams::{PostedStream, StreamError};
use super::supervision::{Change, RunningGraph, failure_of};
use crate::graph::identity::Identity;
use crate::graph::references::References;

/// How often a stream that was found looks whether there is room for it by now.
const LOOK: Duration = Duration::from_millis(100);

/// A source that looks for streams; it stops looking when this is dropped.
pub(super) struct Discovering {
    pub source: Arc<str>,
    pub identity: Identity,
    stopping: Arc<AtomicBool>,
    counters: Arc<GraphCounters>,
    /// Where it hears of streams that could not be read for now.
    unread: Option<Unread>,
    _thread: JoinHandle<()>,
}

impl Drop for Discovering {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        self.counters.set_looking(&self.source, None);
    }
}

impl Discovering {
    /// Begins to look, for the graph that takes `changes`; what keeps it from that is told in `counters`.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn start(
        source: Arc<str>,
        identity: Identity,
        discovery: Box<dyn Discovery>,
        changes: Sender<Change>,
        counters: Arc<GraphCounters>,
    ) -> Result<Discovering, StartError> {
        let stopping = Arc::<AtomicBool>::default();
        let (name, stop, clock) = (source.clone(), stopping.clone(), counters.clock.clone());
        counters.set_looking(&source, discovery.trouble());
        let unread = discovery.unread();
        let thread = std::thread::Builder::new()
            .name(format!("look {source}"))
            .spawn(move || look(&name, discovery, &changes, &*clock, &stop))
            .map_err(|error| StartError::new(format!("cannot start a thread for `{source}`: {error}")))?;
        Ok(Discovering { source, identity, stopping, counters, unread, _thread: thread })
    }
}

fn look(
    source: &Arc<str>,
    mut discovery: Box<dyn Discovery>,
    changes: &Sender<Change>,
    clock: &dyn Clock,
    stopping: &AtomicBool,
) {
    let stop = || stopping.load(Ordering::Acquire);
    loop {
        let found = discovery.next(&stop);
        if stop() {
            return;
        }
        let found = match found {
            Ok(Some(found)) => found,
            Ok(None) => {
                let source = source.clone();
                ask(changes, move |graph| graph.found_all(&source, None));
                return;
            }
            Err(error) => {
                let (source, why) = (source.clone(), told(&error));
                ask(changes, move |graph| graph.found_all(&source, Some(why)));
                return;
            }
        };
        for stream in found {
            while !stop() {
                let (source, stream) = (source.clone(), stream.clone());
                match ask(changes, move |graph| graph.found(&source, &stream)) {
                    // The graph has ended.
                    None => return,
                    Some(true) => break,
                    Some(false) => clock.wait(clock.now() + LOOK, LOOK),
                }
            }
        }
    }
}

fn told(error: &SourceError) -> String {
    match error {
        SourceError::Input { message, hint: Some(hint), .. } => format!("{message}; hint: {hint}"),
        other => other.to_string(),
    }
}

impl RunningGraph {
    /// Has every source look that finds its streams by itself, and does not do so yet.
    pub(super) fn look_for_streams(&mut self) -> Result<(), StartError> {
        let plan = self.generation.plan.clone();
        self.discovering.retain(|looking| {
            plan.sources.iter().any(|source| source.name == looking.source && source.identity == looking.identity)
        });
        for planned in &plan.sources {
            if self.discovering.iter().any(|looking| looking.source == planned.name) {
                continue;
            }
            if let Some(discovery) = planned.source.discovery() {
                if let Some(trouble) = discovery.trouble() {
                    let secrets = plan.secrets.clone();
                    trouble.cover_with(move |text| secrets.redact(text));
                }
                let (source, identity, changes) = (planned.name.clone(), planned.identity, self.changes());
                let counters = self.counters.clone();
                self.discovering.push(Discovering::start(source, identity, discovery, changes, counters)?);
            }
        }
        Ok(())
    }

    /// A stream that `source` found has failed, for a reason that may be over later: whether it will be found again.
    pub(super) fn is_found_again(&self, source: &str, stream: &StreamId) -> bool {
        let looking = self.discovering.iter().find(|looking| &*looking.source == source);
        let unread = looking.and_then(|looking| looking.unread.as_ref());
        unread.is_some_and(|unread| {
            unread.tell(stream.clone());
            true
        })
    }

    /// Whether a source still looks for streams.
    pub(super) fn looks_for_streams(&self, source: &str) -> bool {
        self.discovering.iter().any(|looking| &*looking.source == source)
    }

    /// Reads a stream that a source found; `false`: there is no room for it yet.
    fn found(&mut self, source: &Arc<str>, found: &FoundStream) -> bool {
        if self.draining || !self.looks_for_streams(source) {
            return true;
        }
        let Some(index) = self.generation.source(source) else { return true };
        let at_once = self.generation.plan.sources[index].source.at_once();
        let running = self.streams.values().filter(|stream| stream.source == *source).count();
        if running >= at_once {
            return false;
        }
        if let Some(owner) = self.owner_elsewhere(&found.id) {
            let id = &found.id;
            let message = format!(
                "`{source}` found stream `{id}`, which is not read: the graph `{owner}` has a stream of this name; hint: give \
                 that one another id, or delete it and start this graph again"
            );
            tracing::error!(stream = %id, "{message}");
            self.failed_streams.push(message);
            return true;
        }
        // What the graph names, whoever put it was allowed to name.
        let references = References::Anything;
        let posted = PostedStream { source: source.clone(), own: found.own.clone(), references };
        match self.add_stream(&found.id, posted) {
            Ok(()) => {
                self.passing.push(found.id.clone());
                // It may have failed before, for a reason that may be over.
                let before = failure_of(&found.id, "");
                self.failed_streams.retain(|failure| !failure.starts_with(&before));
            }
            Err(StreamError::Ending) => {}
            Err(error) => {
                let message = format!("`{source}` found stream `{}`, which cannot be read: {error}", found.id);
                let message = self.generation.plan.secrets.redact(&message);
                tracing::error!(stream = %found.id, "{message}");
                self.failed_streams.push(message);
            }
        }
        true
    }

    /// The graph that has a stream of this name beside this one.
    fn owner_elsewhere(&self, id: &StreamId) -> Option<Arc<str>> {
        let graphs = lock(&self.engine.graphs).clone();
        let has = |other: &&Arc<GraphCounters>| {
            let is_over = matches!(other.state().0, GraphState::Finished | GraphState::Failed);
            !Arc::ptr_eq(other, &self.counters) && !is_over && other.stream(id).is_some()
        };
        graphs.iter().find(has).map(|other| other.name.clone())
    }

    /// A source will find nothing more, by itself or because of an error.
    fn found_all(&mut self, source: &Arc<str>, error: Option<String>) {
        if let Some(error) = error {
            let message = self.generation.plan.secrets.redact(&format!("`{source}` cannot look for streams: {error}"));
            tracing::error!(node = %source, "{message}");
            self.failed_streams.push(message);
        }
        self.discovering.retain(|looking| looking.source != *source);
        self.close_finished_sources();
    }
}
