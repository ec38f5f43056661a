//! A node that takes long to start holds up nothing but its own graph's change.

use std::sync::{Condvar, Mutex};

use operators::clock::{Clock, SystemClock};
use operators::error::{FieldError, ItemError};
use operators::item::{Item, Kind, Payload, StreamId};
use operators::lock::lock;
use operators::operator::{BuildContext, Built, Execution, IoOperator, IoRunner, Produces, Registration, Role};

use super::super::graphs::{Expected, GraphSettings, GraphText, Graphs, Home, LoadError, Loaded};
use super::super::reload::Patience;
use super::super::streams::PostedStream;
use super::super::supervisor::{Options, Request};
use super::*;
use crate::graph::check::Surroundings;
use crate::graph::planner::PlanOptions;
use crate::graph::references::References;
use crate::graph::testing::surroundings;

/// How often the heavy node began to start, and whether it may.
static STARTS: (Mutex<(usize, bool)>, Condvar) = (Mutex::new((0, false)), Condvar::new());

fn let_it_start(is_open: bool) {
    lock(&STARTS.0).1 = is_open;
    STARTS.1.notify_all();
}

/// Waits until it has begun to start for the `nth` time.
fn await_start(nth: usize) {
    let patience = Duration::from_secs(30);
    let (starts, waited) = STARTS.1.wait_timeout_while(lock(&STARTS.0), patience, |(starts, _)| *starts < nth).unwrap();
    assert!(!waited.timed_out(), "it began {} times", starts.0);
}

/// Passes everything on, once it has started.
struct Heavy;

impl IoOperator for Heavy {
    fn start(&self) -> Result<Arc<dyn IoRunner>, StartError> {
        let mut starts = lock(&STARTS.0);
        starts.0 += 1;
        STARTS.1.notify_all();
        drop(STARTS.1.wait_while(starts, |(_, is_open)| !*is_open).unwrap());
        Ok(Arc::new(Heavy))
    }

    fn concurrency(&self) -> usize {
        1
    }
}

#[async_trait::async_trait]
impl IoRunner for Heavy {
    async fn run(&self, item: &Item) -> Result<Payload, ItemError> {
        Ok(item.payload.clone())
    }
}

fn build(_context: &BuildContext, _table: toml::Table) -> Result<Built, Vec<FieldError>> {
    Ok(Built::Io(Arc::new(Heavy)))
}

static HEAVY: Registration = Registration {
    name: "heavy",
    role: Role::Operator,
    summary: "Takes long to start.",
    execution: Execution::Io,
    accepts: &[Kind::Frame],
    produces: Produces::Kinds(&[Kind::Frame]),
    fields: &[],
    example: "",
    build,
};

static REGISTRY: &[&Registration] =
    &[&HEAVY, &operators::sources::synthetic::REGISTRATION, &operators::sinks::blackhole::REGISTRATION];

fn graphs(engine: Arc<Engine>) -> Arc<Graphs> {
    let surroundings = Surroundings { registry: REGISTRY, clock: Arc::new(SystemClock), ..surroundings() };
    let settings = GraphSettings {
        surroundings,
        settings: Vec::new(),
        references: References::Anything,
        options: PlanOptions { workers: Some(1), pool_threads: Some(1), cores: 2 },
        drain: Duration::from_secs(20),
        patience: Patience::default(),
        stay: true,
        saved: None,
        refuse: Box::new(|_| Ok(())),
        on_models: Box::new(|_| {}),
    };
    Arc::new(Graphs::new(engine, settings))
}

fn text(is_heavy: bool) -> GraphText {
    let (node, reads) =
        if is_heavy { ("[operators.node]\ntype = 'heavy'\ninputs = ['scene']\n", "node") } else { ("", "scene") };
    let text = format!(
        "[sources.scene]\ntype = 'synthetic'\nwidth = 64\nheight = 48\nfps = 50\nstreams = ['a']\n{node}\
         [sinks.hole]\ntype = 'blackhole'\ninputs = ['{reads}']\n"
    );
    GraphText { name: "door".to_owned(), bytes: text.into_bytes(), home: Home::Put }
}

#[test]
fn what_takes_long_to_start_holds_up_neither_streams_nor_the_end() {
    let options = Options { workers: 1, pool_threads: 1, clock: Arc::new(SystemClock), dataflow_log: None };
    let graphs = graphs(Engine::start(options).unwrap());
    let load = |is_heavy: bool| {
        let graphs = graphs.clone();
        std::thread::spawn(move || graphs.load(text(is_heavy), &Expected::Anything))
    };
    assert_eq!(load(false).join().unwrap().unwrap().loaded, Loaded::Started { generation: 1 });

    let reload = load(true);
    await_start(1);
    // As it starts, the graph's own thread has time for others.
    let posted = PostedStream {
        source: "scene".into(),
        own: toml::Value::Table(toml::Table::new()),
        references: References::Anything,
    };
    let added = graphs.add_stream("door", &StreamId::new("b").unwrap(), posted).unwrap();
    assert!(added.posted && !reload.is_finished());
    let delivered = |stream: &str| graphs.stream(stream).unwrap().1.report.counts.delivered;
    let clock = SystemClock;
    let deadline = clock.now() + Duration::from_secs(30);
    while delivered("b") < 5 {
        assert!(clock.now() < deadline, "the stream that was added comes through");
        clock.wait(deadline, Duration::from_millis(5));
    }
    assert_eq!(graphs.get("door").unwrap().generation, 1);
    let_it_start(true);
    let Loaded::Reloaded(reloaded) = reload.join().unwrap().unwrap().loaded else { panic!("it ran already") };
    assert_eq!((reloaded.generation, reloaded.lost), (2, 0));
    assert_eq!(reloaded.streams.kept, ["a", "b"]);

    // Whoever waits for it hears that the graph ends, and the end does not wait for it.
    let_it_start(false);
    let reload = load(true);
    await_start(2);
    graphs.close(Request::Drain);
    let refused = reload.join().unwrap().unwrap_err();
    assert!(matches!(refused, LoadError::Over), "{refused}");
    let ended = graphs.finish(&crossbeam_channel::never());
    let (counters, outcome) = &ended[0];
    assert!(outcome.is_success(), "{outcome:?}");
    assert!(counters.report().total.conserved() && counters.report().total.in_flight == 0);
    let_it_start(true);
}
