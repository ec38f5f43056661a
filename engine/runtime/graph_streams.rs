//! The streams of all graphs of a process: looked at, added and removed. An id names one stream, whatever its graph.

use std::sync::Arc;
use std::time::Duration;

use operators::error::FieldError;
use operators::item::StreamId;
use operators::lock::lock;
use operators::operator::Resource;

use super::counters::GraphCounters;
use super::graphs::{Entry, Graphs, State, ask};
use super::load::LoadError;
use super::stats::StreamView;
use super::streams::{PostedStream, StreamError};

/// What became of a stream that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Nothing reads it any more.
    Done,
    /// It was told to stop, and what it has in hand is not delivered yet.
    UnderWay,
}

/// Looks in turn whether a stream has stopped are this far apart.
const LOOK: Duration = Duration::from_millis(20);

impl Graphs {
    /// All streams, each with the name of its graph.
    pub fn streams(&self) -> Vec<(Arc<str>, StreamView)> {
        let counters: Vec<_> = lock(&self.state).graphs.values().map(|entry| entry.counters.clone()).collect();
        let of_graph = |graph: &Arc<GraphCounters>| {
            let name = graph.name.clone();
            graph.streams().into_iter().map(move |stream| (name.clone(), stream.view()))
        };
        counters.iter().flat_map(of_graph).collect()
    }

    /// A stream, with the name of its graph.
    pub fn stream(&self, id: &str) -> Option<(Arc<str>, StreamView)> {
        let state = lock(&self.state);
        let entry = state.with_stream(id)?;
        Some((entry.counters.name.clone(), entry.counters.stream(id)?.view()))
    }

    /// Adds a stream to a source of a graph.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn add_stream(&self, graph: &str, id: &StreamId, posted: PostedStream) -> Result<StreamView, StreamError> {
        let (changes, counters) = {
            let state = lock(&self.state);
            let runs = |entry: &&Entry| !entry.ending.is_over() && !entry.is_deleted;
            let Some(entry) = state.graphs.get(graph).filter(runs) else {
                let running = state.graphs.iter().filter(|(_, entry)| runs(entry));
                return Err(StreamError::NoGraph { known: running.map(|(name, _)| name.clone()).collect() });
            };
            (entry.changes.clone(), entry.counters.clone())
        };
        let _coming = Coming::reserve(self, graph, vec![id.clone()], Vec::new()).map_err(|_| StreamError::Taken)?;
        let wanted = id.clone();
        ask(&changes, move |graph| graph.add_stream(&wanted, posted)).unwrap_or(Err(StreamError::Ending))?;
        counters.stream(id).map(|stream| stream.view()).ok_or(StreamError::Ending)
    }

    /// The graphs that run and have a source of this name.
    pub fn with_source(&self, source: &str) -> Vec<String> {
        let state = lock(&self.state);
        let runs = |entry: &Entry| !entry.ending.is_over() && !entry.is_deleted && entry.explanation.has_source(source);
        state.graphs.iter().filter(|(_, entry)| runs(entry)).map(|(name, _)| name.clone()).collect()
    }

    /// What is wrong with a stream that is not to be added.
    pub fn stream_mistakes(&self, graph: &str, id: &StreamId, posted: PostedStream) -> Vec<FieldError> {
        let changes = {
            let state = lock(&self.state);
            let runs = |entry: &&Entry| !entry.ending.is_over() && !entry.is_deleted;
            state.graphs.get(graph).filter(runs).map(|entry| entry.changes.clone())
        };
        let Some(changes) = changes else {
            let error = FieldError::new("graph", "there is no such graph that runs");
            return vec![error.hint("`/graphs` lists the graphs")];
        };
        let wanted = id.clone();
        match ask(&changes, move |graph| graph.built(&wanted, &posted).err()).flatten() {
            Some(StreamError::Mistaken(mistakes)) => mistakes,
            Some(error) => vec![FieldError::new("source", error.to_string()).hint("name a source of the graph")],
            None => Vec::new(),
        }
    }

    /// Stops a stream of whichever graph has it, and waits up to `patience` until it has.
    ///
    /// # Errors
    /// [`StreamError::NoStream`].
    pub fn remove_stream(&self, id: &str, patience: Duration) -> Result<Removal, StreamError> {
        let changes = {
            let state = lock(&self.state);
            let entry = state.with_stream(id).ok_or(StreamError::NoStream)?;
            entry.changes.clone()
        };
        let id = StreamId::new(id).ok_or(StreamError::NoStream)?;
        let wanted = id.clone();
        let deadline = self.engine.clock.now() + patience;
        // A graph that has ended reads nothing any more.
        let Some(removed) = ask(&changes, move |graph| graph.remove_stream(&wanted)) else { return Ok(Removal::Done) };
        removed?;
        loop {
            let wanted = id.clone();
            if !ask(&changes, move |graph| graph.is_read(&wanted)).unwrap_or(false) {
                return Ok(Removal::Done);
            }
            if self.engine.clock.now() >= deadline {
                return Ok(Removal::UnderWay);
            }
            self.engine.clock.wait(deadline, LOOK);
        }
    }
}

impl State {
    /// The graph that has a stream; one that runs before one that has ended.
    fn with_stream(&self, id: &str) -> Option<&Entry> {
        let mut with = self.graphs.values().filter(|entry| entry.counters.stream(id).is_some());
        let first = with.next()?;
        if first.ending.is_over() { with.find(|entry| !entry.ending.is_over()).or(Some(first)) } else { Some(first) }
    }
}

/// Keeps ids of streams that are about to be there, and what a graph is about to own, from everybody else.
pub(super) struct Coming<'a> {
    graphs: &'a Graphs,
    graph: String,
    ids: Vec<StreamId>,
    resources: bool,
}

impl<'a> Coming<'a> {
    pub fn reserve(
        graphs: &'a Graphs,
        graph: &str,
        ids: Vec<StreamId>,
        resources: Vec<(Arc<str>, Resource)>,
    ) -> Result<Coming<'a>, LoadError> {
        let mut state = lock(&graphs.state);
        state.refuse_owned(graph, &ids, &resources)?;
        // What is asked of one graph is done there one after the other: the later one learns what the earlier made.
        let is_of_another = |id: &&StreamId| state.coming.get(*id).is_some_and(|(other, _)| other != graph);
        if let Some(id) = ids.iter().find(is_of_another) {
            return Err(LoadError::Taken(format!("a stream `{id}` is being added just now")));
        }
        for id in &ids {
            state.coming.entry(id.clone()).or_insert_with(|| (graph.to_owned(), 0)).1 += 1;
        }
        let has_resources = !resources.is_empty();
        let owned = resources.into_iter().map(|(node, resource)| (graph.to_owned(), node, resource));
        state.coming_resources.extend(owned);
        drop(state);
        Ok(Coming { graphs, graph: graph.to_owned(), ids, resources: has_resources })
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.graphs.state);
        for id in &self.ids {
            let Some((_, count)) = state.coming.get_mut(id) else { continue };
            *count -= 1;
            if *count == 0 {
                state.coming.remove(id);
            }
        }
        if self.resources {
            // Whoever changes a graph is alone with it.
            state.coming_resources.retain(|(graph, ..)| *graph != self.graph);
        }
    }
}
