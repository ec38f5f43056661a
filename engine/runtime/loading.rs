//! What takes long of a plan, made ready beside the graph that runs: sessions of models, conversations, open sinks. The
//! graph's own thread goes on meanwhile, so its streams may come and end, and it may be told to end itself.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, after, bounded, select};
use operators::error::StartError;
use operators::inference::pool::Installed;
use operators::operator::{IoRunner, SinkWriter};
use operators::progress::StateError;

use super::counters::GraphCounters;
use super::ending::Ending;
use super::generation::HELD_UP;
use super::stats::GraphState;
use super::supervisor::Engine;
use crate::graph::identity::Identity;
use crate::graph::plan::{Plan, PlannedSink, PlannedSource, Work};

/// A sink that is open already, by its name and what it is.
pub type Open = HashSet<(Arc<str>, Identity)>;

/// What of a plan is ready. Dropped unused, it frees what it has.
pub struct Prepared {
    installed: InstalledOperators,
    /// By the number of the operator in the plan.
    conversations: HashMap<usize, Arc<dyn IoRunner>>,
    /// By the number of the sink in the plan.
    writers: HashMap<usize, Box<dyn SinkWriter>>,
}

/// Frees the pool's runners of a generation that does not come to run.
struct InstalledOperators {
    engine: Arc<Engine>,
    operators: HashMap<usize, Installed>,
}

impl Drop for InstalledOperators {
    fn drop(&mut self) {
        for operator in self.operators.values() {
            self.engine.pool.remove(*operator);
        }
    }
}

impl Prepared {
    /// Makes everything ready that takes long, except the sinks that are `open`. `patience`: how long a sink may take to
    /// open, where somebody waits who has more to do.
    ///
    /// # Errors
    /// Where a worker does not answer, progress cannot be kept, a model does not load or a sink does not open; nothing is left then.
    pub fn make(
        engine: &Arc<Engine>,
        plan: &Plan,
        open: &Open,
        patience: Option<Duration>,
    ) -> Result<Prepared, StartError> {
        // Nothing is opened and no model loaded for what could not be put in place.
        engine.held_up().map_or(Ok(()), |held_up| Err(StartError::new(held_up).hint(HELD_UP)))?;
        if let Some(progress) = plan.sources.iter().find_map(PlannedSource::progress) {
            progress.open().map_err(StateError::at_start)?;
        }
        let installed = InstalledOperators { engine: engine.clone(), operators: HashMap::new() };
        let mut prepared = Prepared { installed, conversations: HashMap::new(), writers: HashMap::new() };
        for (index, planned) in plan.operators.iter().enumerate() {
            match &planned.work {
                Work::Inline(_) => {}
                Work::Pool(operator) => {
                    let install = engine.pool.install(operator).map_err(|error| named(&planned.name, error))?;
                    prepared.installed.operators.insert(index, install);
                }
                Work::Io(operator) => {
                    let runner = operator.start().map_err(|error| named(&planned.name, error))?;
                    prepared.conversations.insert(index, runner);
                }
            }
        }
        for (index, planned) in plan.sinks.iter().enumerate() {
            if !open.contains(&(planned.name.clone(), planned.identity)) {
                prepared.writers.insert(index, opened(planned, patience)?);
            }
        }
        Ok(prepared)
    }

    /// The runners of a pool operator of the plan. They are the caller's to free only with [`Prepared::keep`].
    pub fn installed(&self, operator: usize) -> Option<Installed> {
        self.installed.operators.get(&operator).copied()
    }

    pub fn conversation(&mut self, operator: usize) -> Option<Arc<dyn IoRunner>> {
        self.conversations.remove(&operator)
    }

    /// The writer of a sink of the plan.
    ///
    /// # Errors
    /// Where it was open when all was made ready, is no more, and does not open again within `patience`.
    pub fn writer(
        &mut self,
        index: usize,
        planned: &PlannedSink,
        patience: Option<Duration>,
    ) -> Result<Box<dyn SinkWriter>, StartError> {
        self.writers.remove(&index).map_or_else(|| opened(planned, patience), Ok)
    }

    /// From here on the caller frees the runners in the pool.
    pub fn keep(mut self) -> Vec<Installed> {
        std::mem::take(&mut self.installed.operators).into_values().collect()
    }
}

/// Opens a sink. One that takes too long goes on with it by itself, and is closed when it is open.
fn opened(planned: &PlannedSink, patience: Option<Duration>) -> Result<Box<dyn SinkWriter>, StartError> {
    let Some(patience) = patience else {
        return planned.sink.start_with(&planned.flows).map_err(|error| named(&planned.name, error));
    };
    let (sink, flows) = (planned.sink.clone(), planned.flows.clone());
    let (tell, opened) = bounded(1);
    std::thread::Builder::new()
        .name("open".to_owned())
        // Nobody waits for it any more where it took too long.
        .spawn(move || drop(tell.send(sink.start_with(&flows))))
        .map_err(|error| StartError::new(format!("the system gives no thread: {error}")))?;
    let opened = opened.recv_timeout(patience).unwrap_or_else(|error| {
        Err(match error {
            RecvTimeoutError::Timeout => {
                StartError::new(format!("it did not open within {} s", patience.as_secs_f64()))
                    .hint("see that what it writes to is there and answers, then try again")
            }
            RecvTimeoutError::Disconnected => StartError::new("it panicked as it opened"),
        })
    });
    opened.map_err(|error| named(&planned.name, error))
}

fn named(node: &Arc<str>, error: StartError) -> StartError {
    StartError { message: format!("`{node}` cannot start: {}", error.message), hint: error.hint }
}

/// Looks in turn whether the graph was told to end are at most this far apart.
const LOOK: Duration = Duration::from_millis(100);

/// Makes a plan ready on a thread of its own, beside the graph of `counters` that runs until `ending`. What is not ready
/// when that ends, or in the time that there is, is freed as soon as it is.
///
/// # Errors
/// As [`Prepared::make`]; that it took too long; that the graph ends.
pub fn prepare_beside(
    engine: &Arc<Engine>,
    plan: &Arc<Plan>,
    open: Open,
    patience: super::reload::Patience,
    (counters, ending): (&GraphCounters, &Ending),
) -> Result<Prepared, StartError> {
    let (tell, ready) = bounded(1);
    let (theirs, wanted) = (engine.clone(), plan.clone());
    std::thread::Builder::new()
        .name(format!("load {}", plan.graph))
        // Nobody waits for it any more where it took too long, or where the graph has ended.
        .spawn(move || drop(tell.send(Prepared::make(&theirs, &wanted, &open, Some(patience.open)))))
        .map_err(|error| StartError::new(format!("the system gives no thread: {error}")))?;
    await_ready(&ready, patience.load, counters, ending)
}

fn await_ready(
    ready: &Receiver<Result<Prepared, StartError>>,
    patience: Duration,
    counters: &GraphCounters,
    ending: &Ending,
) -> Result<Prepared, StartError> {
    let late = after(patience);
    loop {
        select! {
            recv(ready) -> prepared => {
                return prepared.unwrap_or_else(|_| Err(StartError::new("a node panicked as it started")));
            }
            recv(late) -> _ => {
                let message = format!("its models did not load within {} s", patience.as_secs_f64());
                return Err(StartError::new(message).hint("what runs, runs on; look into the log, then try again"));
            }
            recv(ending.over()) -> _ => return Err(ended()),
            default(LOOK) => {
                if counters.state().0 != GraphState::Running {
                    return Err(ended());
                }
            }
        }
    }
}

/// Why a change of a graph comes to nothing that ends by itself or was told to.
pub fn ended() -> StartError {
    StartError::new("the graph ended meanwhile").hint("start it again")
}

#[cfg(test)]
mod tests;
