//! How graphs end: one that is deleted, one whose file is gone, and all of them with the process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, after, never, select};
use operators::lock::lock;

use super::{Entry, GraphText, Graphs, Home, LOOK, State};
use crate::runtime::counters::GraphCounters;
use crate::runtime::ending::Ending;
use crate::runtime::load::{Expected, LoadError};
use crate::runtime::supervision::{Outcome, Request, still_open};

/// How long a graph may take to end beside the time that it has to deliver what is in flight: its sinks close in it, and a
/// worker that does not answer is known as such.
pub const GRACE: Duration = Duration::from_secs(4);
/// As long as nothing is told to end, there is nothing to look for.
const LONG: Duration = Duration::from_secs(60);

impl Graphs {
    /// Lets a graph deliver what is in flight, ends it, and forgets it and its saved text. `None` where there is no such
    /// graph. A file of its name that was refused because of it is looked at again.
    ///
    /// # Errors
    /// Why it runs on: [`LoadError::Watched`] where it comes from a file.
    pub fn delete(&self, name: &str, expected: &Expected) -> Result<Option<Outcome>, LoadError> {
        let is_running = {
            let _only_one = self.claim(name, Some(self.settings.drain))?;
            let mut state = lock(&self.state);
            let State { graphs, refused, .. } = &mut *state;
            let home = graphs.get(name).map(|entry| &entry.text.home);
            match home.or_else(|| refused.get(name).map(|refused| &refused.home)) {
                None => return Ok(None),
                Some(Home::File(path)) => return Err(LoadError::Watched(path.clone())),
                Some(Home::Put) => {}
            }
            let now = graphs.get(name).map_or(0, |entry| entry.generation);
            if graphs.get(name).is_some_and(|entry| entry.is_deleted) {
                return Err(LoadError::Ending);
            }
            if !expected.allows(now) {
                return Err(LoadError::Outdated { now });
            }
            if let Some(saved) = &self.settings.saved {
                let unsaved = |error: std::io::Error| LoadError::Unsaved {
                    folder: saved.folder().to_owned(),
                    why: error.to_string(),
                };
                saved.remove(name).map_err(unsaved)?;
            }
            refused.remove(name);
            graphs.get_mut(name).map(|entry| entry.is_deleted = true).is_some()
        };
        if !is_running {
            return Ok(Some(Outcome { failures: Vec::new(), stuck: Vec::new(), asked: None }));
        }
        let outcome = self.end(name);
        self.look_again(name);
        Ok(outcome)
    }

    /// Loads the file that was refused as long as another graph had its name.
    fn look_again(&self, name: &str) {
        let home = lock(&self.state).refused.get(name).map(|refused| refused.home.clone());
        let Some(Home::File(path)) = home else { return };
        let shown = path.display();
        match std::fs::read(&path) {
            Err(error) => {
                let why = format!("cannot read `{shown}`: {error}");
                tracing::error!(graph = %name, "{why}");
                self.note_unreadable(name, &path, &why);
            }
            Ok(bytes) => {
                let text = GraphText { name: name.to_owned(), bytes, home: Home::File(path.clone()) };
                match self.load(text, &Expected::Nothing) {
                    Ok(_) => tracing::info!(graph = %name, "graph `{name}` runs, from `{shown}`"),
                    // Somebody was faster.
                    Err(LoadError::Outdated { .. } | LoadError::Closing) => {}
                    Err(error) => {
                        let hint = error.hint();
                        tracing::error!(graph = %name, hint, "`{shown}` is left out; what runs, runs on: {error}");
                    }
                }
            }
        }
    }

    /// Ends a graph whose file is gone. `None` where no graph of this file runs; one of the same name that came from
    /// elsewhere runs on.
    pub fn remove(&self, name: &str, path: &Path) -> Option<Outcome> {
        let is_of_file = |home: &Home| matches!(home, Home::File(of) if of == path);
        {
            let _only_one = self.claim(name, None).ok()?;
            let mut state = lock(&self.state);
            if state.refused.get(name).is_some_and(|refused| is_of_file(&refused.home)) {
                state.refused.remove(name);
            }
            let entry = state.graphs.get_mut(name)?;
            if !is_of_file(&entry.text.home) {
                entry.refused.take_if(|refused| is_of_file(&refused.home));
                return None;
            }
            if std::mem::replace(&mut entry.is_deleted, true) {
                return None;
            }
        }
        self.end(name)
    }

    /// Ends a graph that is marked as deleted.
    fn end(&self, name: &str) -> Option<Outcome> {
        let ending = {
            let state = lock(&self.state);
            let entry = state.graphs.get(name)?;
            // A full channel says as much already.
            let _ = entry.requests.try_send(Request::Drain);
            entry.ending.clone()
        };
        let outcome = ending.wait();
        let entry = {
            let mut state = lock(&self.state);
            let mut entry = state.graphs.remove(name);
            // What keeps a file out is gone, and the file is still none that runs.
            let of_file = entry.as_mut().and_then(|entry| {
                let home = entry.text.home.clone();
                entry.refused.take_if(|refused| home == Home::Put && refused.home != Home::Put)
            });
            if let Some(refused) = of_file {
                state.refused.insert(name.to_owned(), refused);
            }
            entry
        };
        if let Some(entry) = entry {
            self.bury(entry);
            self.tell_models();
        }
        Some(outcome)
    }

    /// Tells every graph to end, without waiting, and takes no further ones.
    pub fn close(&self, request: Request) {
        let mut state = lock(&self.state);
        state.closing = Some(request);
        for entry in state.graphs.values() {
            // A full channel says as much already.
            let _ = entry.requests.try_send(request);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What hears when a graph has ended.
    pub fn ending(&self, name: &str) -> Option<Ending> {
        lock(&self.state).graphs.get(name).map(|entry| entry.ending.clone())
    }

    /// Waits until every graph has ended, once they were told to by [`Graphs::close`]; what comes from `requests`
    /// meanwhile, they are told as well. Those that are held up beyond their time to end are left behind, with what
    /// holds them up. Answers how each ended, by name.
    pub fn finish(&self, requests: &Receiver<Request>) -> Vec<(Arc<GraphCounters>, Outcome)> {
        let mut requests = requests.clone();
        let (mut asked, mut late) = (None, never());
        loop {
            let running = {
                let state = lock(&self.state);
                let mut endings = state.graphs.values().map(|entry| &entry.ending);
                let running = endings.find(|ending| !ending.is_over()).cloned();
                // What was left behind is not waited for again.
                if state.is_late_told || running.is_none() && state.changing.is_empty() {
                    return state.outcomes();
                }
                // A wait like those of the graphs themselves: what it is for happens outside, whatever the clock says.
                if state.closing != asked {
                    asked = state.closing;
                    late = match asked {
                        Some(Request::Drain) => after(self.settings.drain + GRACE),
                        Some(Request::Abort) => after(GRACE),
                        None => never(),
                    };
                }
                running
            };
            // A graph that is about to start is told when it is there.
            let over = running.as_ref().map_or_else(never, |ending| ending.over().clone());
            let look = if running.is_none() { LOOK } else { LONG };
            select! {
                recv(over) -> _ => {}
                recv(after(look)) -> _ => {}
                recv(late) -> _ => {
                    if let Some(held_up) = self.engine.held_up() {
                        tracing::error!("{held_up}");
                    }
                    let mut state = lock(&self.state);
                    state.tell_late();
                    return state.outcomes();
                }
                recv(requests) -> request => match request {
                    Ok(request) => self.close(request),
                    Err(_) => requests = never(),
                },
            }
        }
    }
}

impl State {
    /// Says, once, what is left behind at the end.
    fn tell_late(&mut self) {
        if std::mem::replace(&mut self.is_late_told, true) {
            return;
        }
        for name in &self.changing {
            tracing::error!(graph = %name, "graph `{name}` is left behind: a change of it does not come to an end");
        }
        for entry in self.graphs.values().filter(|entry| !entry.ending.is_over()) {
            let (name, open) = (&entry.counters.name, still_open(&entry.counters).join(", "));
            tracing::error!(graph = %name, "{}; still open: {open}", late(name));
        }
    }

    /// How each graph ended, as far as it has.
    fn outcomes(&self) -> Vec<(Arc<GraphCounters>, Outcome)> {
        let outcome = |entry: &Entry| {
            if entry.ending.is_over() {
                return entry.ending.wait();
            }
            let asked = self.closing;
            Outcome { failures: vec![late(&entry.counters.name)], stuck: still_open(&entry.counters), asked }
        };
        self.graphs.values().map(|entry| (entry.counters.clone(), outcome(entry))).collect()
    }
}

fn late(graph: &str) -> String {
    format!("graph `{graph}` has not ended in time: something does not let go of its thread")
}
