//! The graphs of a process, by name: started, reloaded, looked at and ended while the others run.
//!
//! Each graph has a thread that supervises it. What is asked of a graph while it runs is done there, so nothing here
//! waits for a lock that a stuck graph holds: a caller waits for an answer, with a deadline that the graph keeps.

mod ends;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Sender, bounded};
use operators::error::StartError;
use operators::hooks::Hooks;
use operators::item::{StreamId, is_name};
use operators::lock::lock;
use operators::operator::{Resource, Sink};
use operators::sinks::hls::store::Playlists;

pub use self::ends::GRACE;
use super::counters::GraphCounters;
use super::ending::{Ending, ending};
use super::graph_streams::Coming;
use super::inlets::Inlets;
pub use super::load::{Expected, LoadError, Loaded, LoadedText};
use super::loading::{ended, prepare_beside};
use super::predict::models;
use super::reload::{Patience, Reloaded};
use super::saved::{Prepared, Saved};
use super::stats::{GraphState, StreamState};
use super::supervision::{Change, Outcome, Request, RunningGraph};
use super::supervisor::Engine;
use crate::graph::chaos::Chaos;
use crate::graph::check::{self, Surroundings};
use crate::graph::cover::stars;
use crate::graph::diagnostics::{Code, Diagnostic};
use crate::graph::explain::{Explanation, explain};
use crate::graph::plan::{Plan, PlannedSource, Work};
use crate::graph::planner::{PlanOptions, build_plan};
use crate::graph::references::References;
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

/// Says why a plan cannot run.
pub type Refuse = Box<dyn Fn(&Plan) -> Result<(), StartError> + Send + Sync>;

/// How graphs are checked, planned and ended.
pub struct GraphSettings {
    pub surroundings: Surroundings,
    /// What `--set` says, for graphs that come from files.
    pub settings: Vec<Setting>,
    /// What texts that come over HTTP may refer to.
    pub references: References,
    pub options: PlanOptions,
    /// How long a graph that is told to end may deliver what is in flight.
    pub drain: Duration,
    pub patience: Patience,
    /// Graphs that come from files go on without streams, where further ones may come. Those that were put always do.
    pub stay: bool,
    /// Where texts that were put are kept.
    pub saved: Option<Saved>,
    /// Why a plan cannot run in this process, whatever else runs.
    pub refuse: Refuse,
    /// Hears which models all graphs run, when one was started, reloaded or deleted.
    pub on_models: Box<dyn Fn(BTreeSet<Arc<str>>) + Send + Sync>,
}

/// What was refused, and when.
#[derive(Clone, Debug)]
pub struct Refused {
    pub home: Home,
    pub time: SystemTime,
    pub why: String,
}

impl Refused {
    /// Remembers a refusal. One that is tried again and refused for the same is as old as the first time.
    fn note(known: &mut Option<Refused>, text: GraphText, time: SystemTime, error: &LoadError) {
        let GraphText { bytes, home, .. } = text;
        let why = error.told(&bytes);
        if !known.as_ref().is_some_and(|known| known.home == home && known.why == why) {
            *known = Some(Refused { home, time, why });
        }
    }
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
    /// What is disturbed on purpose.
    pub chaos: Option<Chaos>,
    /// When its last text was loaded, and what that did.
    pub loaded: (SystemTime, Loaded),
    /// What was refused since, if anything.
    pub refused: Option<Refused>,
    /// Streams by state.
    pub streams: BTreeMap<&'static str, usize>,
}

pub(super) struct Entry {
    pub(super) counters: Arc<GraphCounters>,
    pub(super) changes: Sender<Change>,
    requests: Sender<Request>,
    pub(super) ending: Ending,
    /// Somebody deletes it.
    pub(super) is_deleted: bool,
    thread: JoinHandle<()>,
    text: GraphText,
    /// The generation that this text is: what a caller names who has seen the text. The counters are ahead of it while
    /// the next one is put in its place.
    generation: u64,
    resources: Vec<(Arc<str>, Resource)>,
    hooks: Vec<Hooked>,
    models: Vec<Arc<str>>,
    pub(super) explanation: Arc<Explanation>,
    loaded: (SystemTime, Loaded),
    refused: Option<Refused>,
    /// As planned: what they have published is there for as long as they are.
    sinks: Vec<Arc<dyn Sink>>,
}

/// A source whose streams another server announces.
#[derive(Clone, Debug)]
pub struct Hooked {
    pub graph: Arc<str>,
    pub source: Arc<str>,
    pub hooks: Hooks,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) graphs: BTreeMap<String, Entry>,
    /// Texts of files and saved texts that should be graphs and are none.
    refused: BTreeMap<String, Refused>,
    /// Ids of streams that are about to be there, with their graph, and how many bring them.
    pub(super) coming: BTreeMap<StreamId, (String, usize)>,
    /// What graphs are about to own: the graph, its node and what that is.
    pub(super) coming_resources: Vec<(String, Arc<str>, Resource)>,
    /// Graphs that are being loaded or deleted just now.
    changing: BTreeSet<String>,
    /// Everything is told this.
    closing: Option<Request>,
    /// It was said what is left behind.
    is_late_told: bool,
}

/// Looks in turn whether a change is over are at most this far apart.
const LOOK: Duration = Duration::from_millis(100);

/// The graphs of a process.
pub struct Graphs {
    pub(super) engine: Arc<Engine>,
    settings: GraphSettings,
    pub(super) state: Mutex<State>,
    /// Told when a graph is not being changed any more, and when everything is told to end.
    changed: Condvar,
    /// The models of all graphs are told one after the other, so that the last word is the latest.
    telling: Mutex<()>,
    /// What should be there at the start is there, or has failed.
    settled: AtomicBool,
}

impl Graphs {
    pub fn new(engine: Arc<Engine>, settings: GraphSettings) -> Graphs {
        Graphs {
            engine,
            settings,
            state: Mutex::default(),
            changed: Condvar::new(),
            telling: Mutex::default(),
            settled: AtomicBool::new(false),
        }
    }

    /// What comes over HTTP may name.
    pub fn references(&self) -> &References {
        &self.settings.references
    }

    /// What `hls` sinks publish.
    pub fn playlists(&self) -> &Playlists {
        &self.settings.surroundings.playlists
    }

    /// Where the text of a graph is, or would be.
    pub(super) fn file_of(&self, name: &str, home: &Home) -> Option<PathBuf> {
        match home {
            Home::File(path) => Some(path.clone()),
            Home::Put => self.settings.saved.as_ref().map(|saved| saved.folder().join(format!("{name}.toml"))),
        }
    }

    /// Where pictures are pushed to.
    pub fn inlets(&self) -> Arc<Inlets> {
        self.engine.inlets()
    }

    /// What should be there at the start is there: from here on the process is ready.
    pub fn settle(&self) {
        self.settled.store(true, Ordering::Release);
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    pub fn is_closing(&self) -> bool {
        lock(&self.state).closing.is_some()
    }

    /// Checks a text and plans it, changing nothing. Answers warnings and notes too.
    ///
    /// # Errors
    /// [`LoadError::Name`], [`LoadError::Mistakes`], and [`LoadError::Taken`] where it could not run beside the others.
    pub fn check(&self, text: &GraphText) -> Result<(Plan, Vec<Diagnostic>), LoadError> {
        let (plan, diagnostics) = self.plan(text)?;
        self.refuse_taken(&text.name, &plan)?;
        Ok((plan, diagnostics))
    }

    fn plan(&self, text: &GraphText) -> Result<(Plan, Vec<Diagnostic>), LoadError> {
        if !is_name(&text.name) {
            return Err(LoadError::Name(text.name.clone()));
        }
        let (file, settings, references) = match &text.home {
            Home::File(path) => (Some(path.clone()), &self.settings.settings[..], References::Anything),
            Home::Put => (None, &[][..], self.settings.references.clone()),
        };
        let surroundings = Surroundings { file, references, ..self.settings.surroundings.clone() };
        let checked = check::check(&text.name, &text.bytes, settings, &surroundings);
        let mut diagnostics = checked.diagnostics;
        let was_shown = text.home == Home::Put && {
            let stars = covered_credential(&text.bytes);
            diagnostics.splice(0..0, stars.clone());
            stars.is_some()
        };
        match checked.graph.filter(|_| !was_shown) {
            Some(graph) => Ok((build_plan(&graph, self.settings.options), diagnostics)),
            None => Err(LoadError::Mistakes(diagnostics)),
        }
    }

    /// Starts a graph, or puts a new text in the place of the one that runs under its name. Takes as long as its models
    /// take to load, and at most [`Patience`] more.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub fn load(&self, text: GraphText, expected: &Expected) -> Result<LoadedText, LoadError> {
        let is_wanted = matches!(text.home, Home::File(_));
        self.load_text(text, expected, is_wanted)
    }

    /// Loads what was saved, as far as it is no graph yet. What fails is said in the log and by `/health`.
    pub fn load_saved(&self) {
        let Some(saved) = &self.settings.saved else { return };
        let texts = match saved.list() {
            Ok(texts) => texts,
            Err(error) => {
                let folder = saved.folder().display();
                tracing::error!("the saved graphs in `{folder}` cannot be read: {error}");
                return;
            }
        };
        for (name, path) in texts {
            if self.is_closing() {
                return;
            }
            let read = std::fs::read(&path).map_err(|error| LoadError::Start(StartError::new(error.to_string())));
            let expected = Expected::Nothing;
            let loaded = read.and_then(|bytes| {
                let text = GraphText { name: name.clone(), bytes, home: Home::Put };
                self.load_text(text, &expected, true)
            });
            match loaded {
                Ok(_) => tracing::info!(graph = %name, "graph `{name}` runs, as it was saved"),
                Err(LoadError::Outdated { .. }) => {
                    let path = path.display();
                    tracing::warn!(graph = %name, "`{path}` is left alone: another graph `{name}` runs");
                }
                Err(error) => {
                    let (path, hint) = (path.display(), error.hint());
                    tracing::error!(graph = %name, hint, "the saved graph `{path}` cannot run: {error}");
                }
            }
        }
    }

    /// `is_wanted`: where it does not become a graph, something is missing.
    fn load_text(&self, text: GraphText, expected: &Expected, is_wanted: bool) -> Result<LoadedText, LoadError> {
        let patience = match text.home {
            // Nobody would come back with it.
            Home::File(_) => None,
            Home::Put => Some(self.settings.drain),
        };
        let _only_one = self.claim(&text.name, patience)?;
        let loaded = self.admit(&text, expected).and_then(|()| self.plan(&text)).and_then(|(plan, diagnostics)| {
            let (loaded, unsaved) = self.put(&text, plan)?;
            Ok(LoadedText { loaded, diagnostics, unsaved })
        });
        self.note(text, loaded.as_ref().map(|text| &text.loaded), is_wanted);
        loaded
    }

    /// Starts a graph that was checked and planned before.
    ///
    /// # Errors
    /// Why it does not run.
    pub fn start_planned(&self, text: GraphText, plan: Plan) -> Result<Loaded, LoadError> {
        let _only_one = self.claim(&text.name, None)?;
        let loaded = self.admit(&text, &Expected::Nothing).and_then(|()| self.put(&text, plan));
        let loaded = loaded.map(|(loaded, _)| loaded);
        self.note(text, loaded.as_ref(), true);
        loaded
    }

    /// Remembers what became of a text.
    fn note(&self, text: GraphText, loaded: Result<&Loaded, &LoadError>, is_wanted: bool) {
        let time = self.engine.clock.wall();
        let mut state = lock(&self.state);
        let State { graphs, refused, .. } = &mut *state;
        let entry = graphs.get_mut(&text.name);
        match (loaded, entry) {
            (Ok(loaded), entry) => {
                refused.remove(&text.name);
                if let Some(entry) = entry {
                    entry.generation = loaded.generation();
                    (entry.loaded, entry.refused, entry.text) = ((time, loaded.clone()), None, text);
                }
            }
            (Err(error), _) if !error.is_about_the_text() => {}
            (Err(error), Some(entry)) => Refused::note(&mut entry.refused, text, time, error),
            (Err(error), None) if is_wanted => {
                let name = text.name.clone();
                let mut known = refused.remove(&name);
                Refused::note(&mut known, text, time, error);
                refused.extend(known.map(|refused| (name, refused)));
            }
            (Err(_), None) => {}
        }
    }

    /// Whether what is in a file is not what runs under its name, or ran: because something was in its way, as far as is
    /// known.
    pub fn is_left_out(&self, name: &str, path: &Path, text: &[u8]) -> bool {
        let state = lock(&self.state);
        let is_of_file = |home: &Home| matches!(home, Home::File(of) if of == path);
        state.graphs.get(name).is_none_or(|entry| {
            let was_refused = entry.refused.as_ref().is_some_and(|refused| is_of_file(&refused.home));
            was_refused || entry.is_deleted || !is_of_file(&entry.text.home) || entry.text.bytes != text
        })
    }

    /// Remembers that the file of a graph cannot be read.
    pub fn note_unreadable(&self, name: &str, path: &Path, why: &str) {
        let refused =
            Refused { home: Home::File(path.to_owned()), time: self.engine.clock.wall(), why: why.to_owned() };
        let mut state = lock(&self.state);
        match state.graphs.get_mut(name) {
            Some(entry) => entry.refused = Some(refused),
            None => drop(state.refused.insert(name.to_owned(), refused)),
        }
    }

    /// Whether a text may be loaded under its name at all.
    fn admit(&self, text: &GraphText, expected: &Expected) -> Result<(), LoadError> {
        if !is_name(&text.name) {
            return Err(LoadError::Name(text.name.clone()));
        }
        let state = lock(&self.state);
        if state.closing.is_some() {
            return Err(LoadError::Closing);
        }
        let entry = state.graphs.get(&text.name);
        let home = entry.map(|entry| &entry.text.home);
        let home = home.or_else(|| state.refused.get(&text.name).map(|refused| &refused.home));
        match (home, &text.home) {
            (Some(Home::File(path)), Home::Put) => return Err(LoadError::Watched(path.clone())),
            (Some(Home::Put), Home::File(path)) => {
                let message = format!("`{}`: a graph of this name was put over HTTP", path.display());
                return Err(LoadError::Taken(message));
            }
            _ => {}
        }
        if entry.is_some_and(|entry| entry.is_deleted) {
            return Err(LoadError::Ending);
        }
        let now = entry.map_or(0, |entry| entry.generation);
        if !expected.allows(now) {
            return Err(LoadError::Outdated { now });
        }
        Ok(())
    }

    /// Has a graph for oneself, to change it: whoever comes meanwhile waits, at most `patience`. Graphs of other names
    /// are changed beside it, however long this one takes.
    fn claim(&self, name: &str, patience: Option<Duration>) -> Result<Claim<'_>, LoadError> {
        let deadline = patience.map(|patience| self.engine.clock.now() + patience);
        let mut state = lock(&self.state);
        while state.changing.contains(name) {
            if state.closing.is_some() {
                return Err(LoadError::Closing);
            }
            let left = deadline.map_or(LOOK, |deadline| deadline.saturating_duration_since(self.engine.clock.now()));
            if left.is_zero() {
                return Err(LoadError::Busy);
            }
            let waited = self.changed.wait_timeout(state, left.min(LOOK));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.changing.insert(name.to_owned());
        Ok(Claim { graphs: self, name: name.to_owned() })
    }

    /// Starts or reloads a graph. Answers why its text is not kept, where it should be.
    fn put(&self, text: &GraphText, plan: Plan) -> Result<(Loaded, Option<String>), LoadError> {
        self.engine.held_up().map_or(Ok(()), |held_up| Err(LoadError::HeldUp(held_up)))?;
        self.refuse_taken(&text.name, &plan)?;
        let _coming = Coming::reserve(self, &text.name, streams(&plan), resources(&plan))?;
        let prepared = self.prepare(text)?;
        let (resources, hooks, models) = (resources(&plan), hooks(&plan), models(&plan));
        let sinks = plan.sinks.iter().map(|planned| planned.sink.clone()).collect();
        let explanation = Arc::new(explain(&plan, &plan.secrets));
        let before = {
            let state = lock(&self.state);
            let entry = state.graphs.get(&text.name);
            entry.map(|entry| (entry.changes.clone(), entry.ending.clone(), entry.counters.clone()))
        };
        if let Some((_, ending, counters)) = &before
            && matches!(counters.state().0, GraphState::Finished | GraphState::Failed)
        {
            // It says so a moment before its thread is done, and is not to be changed any more.
            let _ = ending.over().recv_timeout(GRACE);
        }
        let loaded = match before {
            Some((changes, ending, counters)) if !ending.is_over() => {
                let reloaded = self.reload(&changes, plan, &counters, &ending);
                // Whatever else is said of a graph that ends says nothing of the text.
                let is_running = !ending.is_over() && counters.state().0 == GraphState::Running;
                let refused = |error| if is_running { error } else { LoadError::Over };
                Loaded::Reloaded(Box::new(reloaded.map_err(refused)?))
            }
            Some((_, _, counters)) => self.start(text, plan, explanation.clone(), counters.generation())?,
            None => self.start(text, plan, explanation.clone(), 0)?,
        };
        if let Some(entry) = lock(&self.state).graphs.get_mut(&text.name) {
            (entry.resources, entry.hooks, entry.explanation) = (resources, hooks, explanation);
            (entry.models, entry.sinks) = (models, sinks);
        }
        self.tell_models();
        let unsaved = prepared.and_then(|prepared| prepared.commit().err()).map(|error| error.to_string());
        if let Some(why) = &unsaved {
            tracing::error!(graph = %text.name, "graph `{}` runs, but its text is not saved: {why}", text.name);
        }
        Ok((loaded, unsaved))
    }

    fn prepare(&self, text: &GraphText) -> Result<Option<Prepared<'_>>, LoadError> {
        let Some(saved) = self.settings.saved.as_ref().filter(|_| text.home == Home::Put) else { return Ok(None) };
        let unsaved =
            |error: std::io::Error| LoadError::Unsaved { folder: saved.folder().to_owned(), why: error.to_string() };
        saved.prepare(&text.name, &text.bytes).map(Some).map_err(unsaved)
    }

    /// What takes long is made ready beside the graph; its own thread is asked for the rest.
    fn reload(
        &self,
        changes: &Sender<Change>,
        plan: Plan,
        counters: &GraphCounters,
        ending: &Ending,
    ) -> Result<Reloaded, LoadError> {
        let (patience, secrets, plan) = (self.settings.patience, plan.secrets.clone(), Arc::new(plan));
        let covered = |error: StartError| self.not_started(error.covered(|text| secrets.redact(text)));
        let wanted = plan.clone();
        let open = ask(changes, move |graph| graph.open_for(&wanted));
        let open = open.unwrap_or_else(|| Err(ended())).map_err(covered)?;
        let ready = prepare_beside(&self.engine, &plan, open, patience, (counters, ending)).map_err(covered)?;
        let answer = ask(changes, move |graph| {
            let reloaded = graph.exchange(plan, ready, patience);
            graph.mark_posted();
            reloaded
        });
        answer.unwrap_or_else(|| Err(ended())).map_err(|error| self.not_started(error))
    }

    /// Starts a graph in the place of one that has ended at `generation`, if any.
    fn start(
        &self,
        text: &GraphText,
        plan: Plan,
        explanation: Arc<Explanation>,
        generation: u64,
    ) -> Result<Loaded, LoadError> {
        let (resources, hooks) = (resources(&plan), hooks(&plan));
        let (requests, inbox) = bounded(4);
        let (teller, ending) = ending();
        let (started, starts) = bounded(1);
        let (engine, drain) = (self.engine.clone(), self.settings.drain);
        let stay = self.settings.stay || text.home == Home::Put;
        let name = text.name.clone();
        let supervise = move || {
            let mut graph = match engine.run_after(plan, generation) {
                Ok(graph) => graph,
                Err(error) => {
                    drop(engine);
                    let _ = started.send(Err(error));
                    return;
                }
            };
            drop(engine);
            if stay {
                graph.stay();
            }
            let _ = started.send(Ok((graph.counters.clone(), graph.changes())));
            let outcome = graph.supervise(&inbox, drain);
            log_outcome(&name, &outcome, stay);
            teller.tell(outcome);
        };
        let thread = std::thread::Builder::new()
            .name(format!("graph {}", text.name))
            .spawn(supervise)
            .map_err(|error| LoadError::Start(StartError::new(format!("cannot start a thread: {error}"))))?;
        let answer =
            starts.recv().unwrap_or_else(|_| Err(StartError::new("the graph's thread panicked as it started")));
        let (counters, changes) = answer.map_err(|error| self.not_started(error))?;
        // Whoever sees that it runs may count on all that belongs to it.
        let loaded = Loaded::Started { generation: counters.generation() };
        let entry = Entry {
            counters,
            changes,
            requests,
            ending,
            is_deleted: false,
            thread,
            text: text.clone(),
            generation: loaded.generation(),
            resources,
            hooks,
            models: Vec::new(),
            sinks: Vec::new(),
            explanation,
            loaded: (self.engine.clock.wall(), loaded.clone()),
            refused: None,
        };
        let before = {
            let mut state = lock(&self.state);
            if let Some(request) = state.closing {
                // Everybody else was told while it started.
                let _ = entry.requests.try_send(request);
            }
            state.graphs.insert(text.name.clone(), entry)
        };
        if let Some(before) = before {
            self.bury(before);
        }
        Ok(loaded)
    }

    /// Tells what is wrong with a graph from a worker that does not answer to anybody.
    fn not_started(&self, error: StartError) -> LoadError {
        match self.engine.held_up() {
            Some(held_up) if held_up == error.message => LoadError::HeldUp(held_up),
            _ => LoadError::Start(error),
        }
    }

    /// Lets `/predict` know which models graphs have.
    fn tell_models(&self) {
        let _in_order = lock(&self.telling);
        let models = lock(&self.state).graphs.values().flat_map(|entry| entry.models.iter().cloned()).collect();
        (self.settings.on_models)(models);
    }

    /// Forgets a graph that has ended.
    fn bury(&self, entry: Entry) {
        self.engine.forget(&entry.counters);
        // It has told its outcome, which is the last it does. A panic was told too.
        let _ = entry.thread.join();
    }

    /// What one graph owns, no other may: the files of its sinks, the ids of its streams.
    fn refuse_taken(&self, name: &str, plan: &Plan) -> Result<(), LoadError> {
        (self.settings.refuse)(plan).map_err(LoadError::Start)?;
        let state = lock(&self.state);
        state.refuse_owned(name, &streams(plan), &resources(plan))
    }

    /// The sources of running graphs whose streams another server announces.
    pub fn hooked(&self) -> Vec<Hooked> {
        let state = lock(&self.state);
        let running = state.graphs.values().filter(|entry| !entry.ending.is_over() && !entry.is_deleted);
        running.flat_map(|entry| entry.hooks.iter().cloned()).collect()
    }

    /// Names and looks of all graphs.
    pub fn list(&self) -> Vec<GraphView> {
        lock(&self.state).graphs.values().map(view).collect()
    }

    pub fn get(&self, name: &str) -> Option<GraphView> {
        lock(&self.state).graphs.get(name).map(view)
    }

    /// Texts that should be graphs and are none, by name.
    pub fn refused(&self) -> BTreeMap<String, Refused> {
        lock(&self.state).refused.clone()
    }

    /// How a graph runs.
    pub fn explanation(&self, name: &str) -> Option<Arc<Explanation>> {
        lock(&self.state).graphs.get(name).map(|entry| entry.explanation.clone())
    }
}

/// A graph that nobody else changes until this is dropped.
struct Claim<'a> {
    graphs: &'a Graphs,
    name: String,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.graphs.state).changing.remove(&self.name);
        self.graphs.changed.notify_all();
    }
}

impl State {
    /// What one graph owns, or is about to, no other may: the files of its sinks, the ids of its streams.
    pub(super) fn refuse_owned(
        &self,
        graph: &str,
        ids: &[StreamId],
        wanted: &[(Arc<str>, Resource)],
    ) -> Result<(), LoadError> {
        for (other, entry) in self.graphs.iter().filter(|(other, entry)| *other != graph && !entry.ending.is_over()) {
            for (node, resource) in wanted {
                if let Some((owner, _)) = entry.resources.iter().find(|(_, owned)| owned == resource) {
                    let text =
                        format!("`{node}` would write `{resource}`, which `{owner}` of the graph `{other}` has open");
                    return Err(LoadError::Taken(text));
                }
            }
            if let Some(id) = ids.iter().find(|id| entry.counters.stream(id).is_some()) {
                return Err(LoadError::Taken(format!("the graph `{other}` has a stream `{id}` already")));
            }
        }
        for (other, owner, owned) in self.coming_resources.iter().filter(|(other, ..)| other != graph) {
            if let Some((node, resource)) = wanted.iter().find(|(_, resource)| resource == owned) {
                let text =
                    format!("`{node}` would write `{resource}`, which `{owner}` of the graph `{other}` is opening");
                return Err(LoadError::Taken(text));
            }
        }
        Ok(())
    }
}

/// Has something done by the thread of a graph, and waits for the answer. `None` where the graph has ended.
pub(super) fn ask<R: Send + 'static>(
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
    let mut streams = BTreeMap::new();
    for stream in entry.counters.streams() {
        let (state, _): (StreamState, _) = stream.state();
        *streams.entry(state.name()).or_default() += 1;
    }
    GraphView {
        name: entry.counters.name.clone(),
        text: entry.text.bytes.clone(),
        home: entry.text.home.clone(),
        generation: entry.generation,
        state,
        reason,
        chaos: entry.counters.chaos(),
        loaded: entry.loaded.clone(),
        refused: entry.refused.clone(),
        streams,
    }
}

fn resources(plan: &Plan) -> Vec<(Arc<str>, Resource)> {
    let sinks = plan.sinks.iter().map(|sink| (&sink.name, sink.sink.resources()));
    let operators = plan.operators.iter().filter_map(|operator| match &operator.work {
        Work::Io(work) => Some((&operator.name, work.resources())),
        Work::Inline(_) | Work::Pool(_) => None,
    });
    let all = sinks.chain(operators);
    all.flat_map(|(name, owned)| owned.into_iter().map(|resource| (name.clone(), resource))).collect()
}

fn hooks(plan: &Plan) -> Vec<Hooked> {
    let hooked = |source: &PlannedSource| {
        let (graph, name) = (plan.graph.clone(), source.name.clone());
        source.source.hooks().map(|hooks| Hooked { graph, source: name, hooks: hooks.clone() })
    };
    plan.sources.iter().filter_map(hooked).collect()
}

fn streams(plan: &Plan) -> Vec<StreamId> {
    plan.sources.iter().flat_map(|source| source.source.streams()).map(|stream| stream.id).collect()
}

/// Stars where credentials should be: the text was shown to somebody, and they sent it back.
fn covered_credential(bytes: &[u8]) -> Option<Diagnostic> {
    let span = stars(std::str::from_utf8(bytes).ok()?)?;
    let message = "there are stars where credentials were: answers do not show them";
    let hint = "write them again, or better refer to them: `rtsp://${env.USER}:${env.PASSWORD}@…` with `--allow-env`";
    Some(Diagnostic::new(Code::CoveredSecret, span, message).hint(hint))
}

fn log_outcome(graph: &str, outcome: &Outcome, stay: bool) {
    for failure in &outcome.failures {
        tracing::error!(graph, "{failure}");
    }
    if !outcome.stuck.is_empty() {
        let why = match outcome.asked {
            Some(Request::Abort) => "told to end at once",
            Some(Request::Drain) | None => "the time to drain is over",
        };
        tracing::error!(graph, "{why}; still open: {}", outcome.stuck.join(", "));
    }
    if stay && outcome.asked.is_none() {
        tracing::info!(graph, "graph `{graph}` has ended; Ctrl-C ends the engine");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_was_shown_is_not_taken_back() {
        let found = covered_credential(b"url = \"rtsp://*****:*****@h/x\"").unwrap();
        assert_eq!((found.code, found.span), (Code::CoveredSecret, Some(14..25)));
        assert_eq!(covered_credential(b"url = \"rtsp://a:b@h/x\""), None);
        assert_eq!(covered_credential(b"\xff"), None);
    }
}
