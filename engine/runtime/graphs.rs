//! The graphs of a process, by name: started, reloaded, looked at and ended while the others run.
//!
//! Each graph has a thread that supervises it. What is asked of a graph while it runs is done there, so nothing here
//! waits for a lock that a stuck graph holds: a caller waits for an answer, with a deadline that the graph keeps.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};
use operators::error::StartError;
use operators::item::{StreamId, is_name};
use operators::operator::Resource;
use serde::Serialize;

use super::counters::{GraphCounters, lock};
use super::reload::{Patience, Reloaded};
use super::stats::GraphState;
use super::streams::{PostedStream, StreamError};
use super::supervision::{Change, Outcome, Request, RunningGraph};
use super::supervisor::Engine;
use crate::graph::check::{self, Surroundings};
use crate::graph::diagnostics::Diagnostic;
use crate::graph::plan::Plan;
use crate::graph::planner::{PlanOptions, build_plan};
use crate::graph::substitute::Setting;

/// Where a graph's text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// A file that people edit: it is not changed over HTTP.
    File(PathBuf),
    /// It was put here over HTTP.
    Put,
}

/// A text that is to become a graph.
#[derive(Clone, Debug)]
pub struct GraphText {
    pub name: String,
    pub bytes: Vec<u8>,
    pub home: Home,
}

/// How graphs are checked, planned and ended.
pub struct GraphSettings {
    pub surroundings: Surroundings,
    /// What `--set` says, for graphs that come from files.
    pub settings: Vec<Setting>,
    pub options: PlanOptions,
    /// How long a graph that is told to end may deliver what is in flight.
    pub drain: Duration,
    pub patience: Patience,
    /// Graphs go on without streams, where further ones may come.
    pub stay: bool,
}

/// What came of loading a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loaded {
    Started { generation: u64 },
    Reloaded(Reloaded),
}

/// Why a text did not become a graph. What ran before runs on.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("`{0}` cannot name a graph: write 1 to 128 of A-Z a-z 0-9 _ . -")]
    Name(String),
    /// Everything that is wrong with the text.
    #[error("the graph has mistakes")]
    Mistakes { text: Vec<u8>, diagnostics: Vec<Diagnostic> },
    /// Somebody else has changed it since: `now` is its generation, 0 where there is none.
    #[error("the graph is at generation {now}")]
    Outdated { now: u64 },
    /// Another graph has what this one needs.
    #[error("{0}")]
    Taken(String),
    /// It comes from a file.
    #[error("the graph comes from `{}`", .0.display())]
    Watched(PathBuf),
    #[error("{0}")]
    Start(StartError),
}

/// What a graph is just now.
#[derive(Clone, Debug)]
pub struct GraphView {
    pub name: Arc<str>,
    pub text: Vec<u8>,
    pub home: Home,
    pub generation: u64,
    pub state: GraphState,
    pub reason: Option<String>,
    /// When its last text was loaded, and what that did.
    pub loaded: (SystemTime, Loaded),
    /// What was refused since, if anything: when, and why.
    pub refused: Option<(SystemTime, String)>,
}

struct Entry {
    counters: Arc<GraphCounters>,
    changes: Sender<Change>,
    requests: Sender<Request>,
    /// Answers once, when the graph has ended.
    ended: Receiver<Outcome>,
    thread: Option<JoinHandle<()>>,
    text: GraphText,
    resources: Vec<(Arc<str>, Resource)>,
    loaded: (SystemTime, Loaded),
    refused: Option<(SystemTime, String)>,
}

/// The graphs of a process.
pub struct Graphs {
    engine: Arc<Engine>,
    settings: GraphSettings,
    graphs: Mutex<BTreeMap<String, Entry>>,
    /// One load at a time: what one takes, the next must see.
    loading: Mutex<()>,
}

impl Graphs {
    pub fn new(engine: Arc<Engine>, settings: GraphSettings) -> Graphs {
        Graphs { engine, settings, graphs: Mutex::default(), loading: Mutex::default() }
    }

    /// Checks a text and plans it, changing nothing.
    ///
    /// # Errors
    /// [`LoadError::Name`] and [`LoadError::Mistakes`].
    pub fn check(&self, text: &GraphText) -> Result<(Plan, Vec<Diagnostic>), LoadError> {
        if !is_name(&text.name) {
            return Err(LoadError::Name(text.name.clone()));
        }
        let file = match &text.home {
            Home::File(path) => Some(path.clone()),
            Home::Put => None,
        };
        let surroundings = Surroundings { file, ..self.settings.surroundings.clone() };
        let settings: &[Setting] = if text.home == Home::Put { &[] } else { &self.settings.settings };
        let checked = check::check(&text.name, &text.bytes, settings, &surroundings);
        match checked.graph {
            Some(graph) => Ok((build_plan(&graph, self.settings.options), checked.diagnostics)),
            None => Err(LoadError::Mistakes { text: text.bytes.clone(), diagnostics: checked.diagnostics }),
        }
    }

    /// Starts a graph, or puts a new text in the place of the one that runs under its name. Takes as long as its models
    /// take to load, and at most [`Patience`] more. `expected`, where given, is the generation that the caller knows;
    /// 0 for none.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub fn load(&self, text: GraphText, expected: Option<u64>) -> Result<Loaded, LoadError> {
        let _one_at_a_time = lock(&self.loading);
        self.bury(&text.name);
        let loaded = self.load_alone(&text, expected);
        let mut graphs = lock(&self.graphs);
        if let Some(entry) = graphs.get_mut(&text.name) {
            let now = self.engine.clock.wall();
            match &loaded {
                Ok(loaded) => (entry.loaded, entry.refused, entry.text) = ((now, loaded.clone()), None, text),
                Err(error) => entry.refused = Some((now, error.to_string())),
            }
        }
        loaded
    }

    fn load_alone(&self, text: &GraphText, expected: Option<u64>) -> Result<Loaded, LoadError> {
        let running = {
            let graphs = lock(&self.graphs);
            let running = graphs.get(&text.name);
            if let (Some(Entry { text: GraphText { home: Home::File(path), .. }, .. }), Home::Put) =
                (running, &text.home)
            {
                return Err(LoadError::Watched(path.clone()));
            }
            let now = running.map_or(0, |entry| entry.counters.generation());
            if expected.is_some_and(|expected| expected != now) {
                return Err(LoadError::Outdated { now });
            }
            running.map(|entry| entry.changes.clone())
        };
        let (plan, _warnings) = self.check(text)?;
        self.refuse_taken(&text.name, &plan)?;
        let resources = resources(&plan);
        let loaded = match running {
            Some(changes) => Loaded::Reloaded(self.reload(&changes, plan)?),
            None => self.start(text, plan)?,
        };
        if let Some(entry) = lock(&self.graphs).get_mut(&text.name) {
            entry.resources = resources;
        }
        Ok(loaded)
    }

    /// Forgets a graph that has ended: another may take its name.
    fn bury(&self, name: &str) {
        let mut graphs = lock(&self.graphs);
        if graphs.get(name).is_some_and(|entry| !entry.ended.is_empty())
            && let Some(mut entry) = graphs.remove(name)
        {
            self.engine.forget(&entry.counters);
            // It has sent its outcome, which is the last it does.
            drop(entry.thread.take().map(JoinHandle::join));
        }
    }

    fn reload(&self, changes: &Sender<Change>, plan: Plan) -> Result<Reloaded, LoadError> {
        let patience = self.settings.patience;
        let answer = ask(changes, move |graph| graph.reload(plan, patience));
        answer
            .unwrap_or_else(|| Err(StartError::new("the graph ended meanwhile").hint("start it again")))
            .map_err(LoadError::Start)
    }

    fn start(&self, text: &GraphText, plan: Plan) -> Result<Loaded, LoadError> {
        let (requests, inbox) = bounded(4);
        let (tell, ended) = bounded(1);
        let (started, starts) = bounded(1);
        let (engine, drain, stay) = (self.engine.clone(), self.settings.drain, self.settings.stay);
        let thread = std::thread::Builder::new()
            .name(format!("graph {}", text.name))
            .spawn(move || {
                let mut graph = match engine.run(plan) {
                    Ok(graph) => graph,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                if stay {
                    graph.stay();
                }
                let _ = started.send(Ok((graph.counters.clone(), graph.changes())));
                drop(engine);
                let outcome = graph.supervise(&inbox, drain);
                let _ = tell.send(outcome);
            })
            .map_err(|error| LoadError::Start(StartError::new(format!("cannot start a thread: {error}"))))?;
        let answer =
            starts.recv().unwrap_or_else(|_| Err(StartError::new("the graph's thread panicked as it started")));
        let (counters, changes) = answer.map_err(LoadError::Start)?;
        let loaded = Loaded::Started { generation: counters.generation() };
        let entry = Entry {
            counters,
            changes,
            requests,
            ended,
            thread: Some(thread),
            text: text.clone(),
            resources: Vec::new(),
            loaded: (self.engine.clock.wall(), loaded.clone()),
            refused: None,
        };
        lock(&self.graphs).insert(text.name.clone(), entry);
        Ok(loaded)
    }

    /// What one graph owns, no other may: the files of its sinks, the ids of its streams.
    fn refuse_taken(&self, name: &str, plan: &Plan) -> Result<(), LoadError> {
        let wanted = resources(plan);
        let graphs = lock(&self.graphs);
        for (other, entry) in graphs.iter().filter(|(other, entry)| *other != name && entry.ended.is_empty()) {
            for (node, resource) in &wanted {
                if let Some((owner, Resource::Path(path))) = entry.resources.iter().find(|(_, owned)| owned == resource)
                {
                    let path = path.display();
                    let text =
                        format!("`{node}` would write `{path}`, which `{owner}` of the graph `{other}` has open");
                    return Err(LoadError::Taken(text));
                }
            }
            let streams = plan.sources.iter().flat_map(|source| source.source.streams());
            for stream in streams {
                if entry.counters.stream(&stream.id).is_some() {
                    let text = format!("the graph `{other}` has a stream `{}` already", stream.id);
                    return Err(LoadError::Taken(text));
                }
            }
        }
        Ok(())
    }

    /// Names and looks of all graphs.
    pub fn list(&self) -> Vec<GraphView> {
        lock(&self.graphs).values().map(view).collect()
    }

    pub fn get(&self, name: &str) -> Option<GraphView> {
        lock(&self.graphs).get(name).map(view)
    }

    /// Lets a graph deliver what is in flight, ends it, and forgets it. `None` where there is no such graph.
    ///
    /// # Errors
    /// [`LoadError::Watched`] where it comes from a file.
    pub fn delete(&self, name: &str) -> Result<Option<Outcome>, LoadError> {
        let _one_at_a_time = lock(&self.loading);
        let (requests, ended) = {
            let graphs = lock(&self.graphs);
            let Some(entry) = graphs.get(name) else { return Ok(None) };
            if let Home::File(path) = &entry.text.home {
                return Err(LoadError::Watched(path.clone()));
            }
            (entry.requests.clone(), entry.ended.clone())
        };
        Ok(Some(self.end(name, &requests, &ended)))
    }

    /// Ends a graph whose file is gone.
    pub fn remove(&self, name: &str) -> Option<Outcome> {
        let _one_at_a_time = lock(&self.loading);
        let (requests, ended) = {
            let graphs = lock(&self.graphs);
            let entry = graphs.get(name)?;
            (entry.requests.clone(), entry.ended.clone())
        };
        Some(self.end(name, &requests, &ended))
    }

    fn end(&self, name: &str, requests: &Sender<Request>, ended: &Receiver<Outcome>) -> Outcome {
        // A full channel says the same already.
        let _ = requests.try_send(Request::Drain);
        let outcome = ended.recv();
        if let Some(mut entry) = lock(&self.graphs).remove(name) {
            self.engine.forget(&entry.counters);
            drop(entry.thread.take().map(JoinHandle::join));
        }
        outcome.unwrap_or_else(|_| Outcome {
            failures: vec!["the graph's thread panicked".to_owned()],
            stuck: Vec::new(),
            asked: Some(Request::Drain),
        })
    }

    /// Tells every graph the same, without waiting.
    pub fn request(&self, request: Request) {
        for entry in lock(&self.graphs).values() {
            // A full channel says as much already.
            let _ = entry.requests.try_send(request);
        }
    }

    /// What hears when the graph has ended, and keeps the outcome until somebody takes it.
    pub fn ended(&self, name: &str) -> Option<Receiver<Outcome>> {
        lock(&self.graphs).get(name).map(|entry| entry.ended.clone())
    }

    /// Adds a stream to a source of a graph. `None` where there is no such graph, or it has ended.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn add_stream(&self, graph: &str, id: &StreamId, posted: PostedStream) -> Option<Result<(), StreamError>> {
        let changes = {
            let graphs = lock(&self.graphs);
            if graphs.iter().any(|(name, entry)| name != graph && entry.counters.stream(id).is_some()) {
                return Some(Err(StreamError::Taken));
            }
            graphs.get(graph)?.changes.clone()
        };
        let id = id.clone();
        ask(&changes, move |graph| graph.add_stream(&id, posted))
    }

    /// Stops a stream of whichever graph has it. `None` where there is none.
    pub fn remove_stream(&self, id: &StreamId) -> Option<Result<(), StreamError>> {
        let changes = {
            let graphs = lock(&self.graphs);
            graphs.values().find(|entry| entry.counters.stream(id).is_some())?.changes.clone()
        };
        let id = id.clone();
        ask(&changes, move |graph| graph.remove_stream(&id))
    }
}

/// Has something done by the thread of a graph, and waits for the answer. `None` where the graph has ended.
fn ask<R: Send + 'static>(
    changes: &Sender<Change>,
    what: impl FnOnce(&mut RunningGraph) -> R + Send + 'static,
) -> Option<R> {
    let (tell, answer) = bounded(1);
    let change: Change = Box::new(move |graph| {
        // Nobody waits any more where the caller has gone.
        let _ = tell.send(what(graph));
    });
    changes.send(change).ok()?;
    answer.recv().ok()
}

fn view(entry: &Entry) -> GraphView {
    let (state, reason) = entry.counters.state();
    GraphView {
        name: entry.counters.name.clone(),
        text: entry.text.bytes.clone(),
        home: entry.text.home.clone(),
        generation: entry.counters.generation(),
        state,
        reason,
        loaded: entry.loaded.clone(),
        refused: entry.refused.clone(),
    }
}

fn resources(plan: &Plan) -> Vec<(Arc<str>, Resource)> {
    let sinks = plan.sinks.iter();
    sinks.flat_map(|sink| sink.sink.resources().into_iter().map(|resource| (sink.name.clone(), resource))).collect()
}
