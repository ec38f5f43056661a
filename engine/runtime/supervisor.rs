//! The running engine: the threads that all graphs share, and the way from a plan to a graph that runs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use operators::clock::Clock;
use operators::error::StartError;
use operators::inference::pool::Pool;
use operators::lock::lock;

use super::counters::GraphCounters;
use super::dataflow_log::DataflowLog;
use super::inlets::Inlets;
use super::streams;
pub use super::supervision::{Outcome, Request, RunningGraph};
pub use super::watch::Audience;
use super::watch::Watch;
use super::worker::Workers;
use super::workshop::Workshop;
use crate::graph::plan::Plan;

/// How the engine is set up, for all graphs.
pub struct Options {
    pub workers: usize,
    pub pool_threads: usize,
    pub clock: Arc<dyn Clock>,
    /// Where to write timely's own operator log at the end.
    pub dataflow_log: Option<PathBuf>,
}

/// After the drain deadline: how long sinks may still take to close.
pub(super) const LAST_CALL: Duration = Duration::from_millis(500);

/// The running engine: threads that graphs share.
pub struct Engine {
    // In the order in which they must end: the watch holds workers and pool, the workers' dataflows pool and sink handles.
    pub(super) watch: Watch,
    pub(super) workers: Arc<Workers>,
    pub(super) pool: Arc<Pool>,
    pub(super) io: tokio::runtime::Runtime,
    pub(super) workshop: Workshop,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) start: Instant,
    pub(super) graphs: Arc<Mutex<Vec<Arc<GraphCounters>>>>,
    inlets: Arc<Inlets>,
    ids: AtomicU64,
    log: Option<Arc<DataflowLog>>,
}

impl Engine {
    /// Starts workers, pool and io runtime.
    ///
    /// # Errors
    /// Where the system refuses threads, or the dataflow log cannot be made.
    pub fn start(options: Options) -> Result<Arc<Engine>, StartError> {
        let log = options.dataflow_log.as_deref().map(DataflowLog::create).transpose()?.map(Arc::new);
        let io = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("io")
            .enable_all()
            .build()
            .map_err(|error| StartError::new(format!("cannot start the io runtime: {error}")))?;
        let pool = Arc::new(Pool::start(options.pool_threads, &options.clock)?);
        let graphs = Arc::<Mutex<Vec<Arc<GraphCounters>>>>::default();
        let workers = Arc::new(Workers::start(options.workers, log.as_ref())?);
        Ok(Arc::new(Engine {
            workshop: Workshop::new(io.handle().clone()),
            io,
            start: options.clock.now(),
            watch: Watch::start(graphs.clone(), pool.clone(), workers.clone(), options.clock.clone())?,
            workers,
            pool,
            clock: options.clock,
            graphs,
            inlets: Arc::default(),
            ids: AtomicU64::new(0),
            log,
        }))
    }

    /// Makes `plan` ready and starts it. Returns when its sources run.
    ///
    /// # Errors
    /// Where a model does not load or a sink does not open; nothing of the graph is left then.
    pub fn run(self: &Arc<Engine>, plan: Plan) -> Result<RunningGraph, StartError> {
        self.run_after(plan, 0)
    }

    /// As [`Engine::run`]; its generation is the one after `generation`.
    pub(super) fn run_after(self: &Arc<Engine>, plan: Plan, generation: u64) -> Result<RunningGraph, StartError> {
        let counters = Arc::new(GraphCounters::new(plan.graph.clone(), self.clock.clone(), generation));
        streams::list(&plan, &counters);
        lock(&self.graphs).push(counters.clone());
        let secrets = plan.secrets.clone();
        let started = RunningGraph::start(self.clone(), plan, counters.clone())
            .map_err(|error| error.covered(|text| secrets.redact(text)));
        if started.is_err() {
            // Whoever asked for it is told why; there is nothing to watch.
            self.forget(&counters);
        }
        started
    }

    /// Whose subscribers count among what may be slow; the first who is named stays.
    pub fn listen_to(&self, audience: Arc<dyn Audience>) {
        self.watch.listen_to(audience);
    }

    /// Why no dataflow can be changed just now: a worker does not answer.
    pub(super) fn held_up(&self) -> Option<String> {
        self.workers.held_up().first().map(ToString::to_string)
    }

    /// Counts a graph that has ended no more.
    pub(super) fn forget(&self, counters: &Arc<GraphCounters>) {
        lock(&self.graphs).retain(|other| !Arc::ptr_eq(other, counters));
    }

    /// A number that nothing else of this engine has.
    pub(super) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Where pictures are pushed to.
    pub fn inlets(&self) -> Arc<Inlets> {
        self.inlets.clone()
    }

    /// The pool that all graphs share.
    pub fn pool(&self) -> Arc<Pool> {
        self.pool.clone()
    }

    /// Ends all threads and writes the dataflow log. Call it when every graph has ended.
    ///
    /// # Errors
    /// Where a worker does not end, or the dataflow log cannot be written.
    pub fn shutdown(self: Arc<Engine>) -> Result<(), StartError> {
        // Whoever still observes it ends its threads when they let go.
        let Some(engine) = Arc::into_inner(self) else { return Ok(()) };
        let Engine { workers, pool, io, log, watch, .. } = engine;
        // It holds the workers and the pool.
        drop(watch);
        let stopped = workers.stop();
        drop(workers);
        drop(pool);
        io.shutdown_timeout(LAST_CALL);
        if let Some(log) = log {
            log.write().map_err(|error| StartError::new(format!("cannot write the dataflow log: {error}")))?;
        }
        stopped
    }
}
