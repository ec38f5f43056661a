//! Reloads under load: every item of every stream arrives once and in order, whatever is changed around it.

mod journal;
mod random;
mod shape;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use operators::clock::{Clock, SystemClock};
use operators::error::{ItemError, SinkError, SourceError, StartError};
use operators::inference::session::Sessions;
use operators::item::{
    ColorMatrix, ColorRange, EndReason, Event, Frame, Item, Kind, Payload, PictureBuffer, PixelFormat, StreamId,
    StreamInfo,
};
use operators::lease::Limits;
use operators::lock::lock;
use operators::operator::{
    InlineOperator, ItemSize, Outlet, Output, PoolOperator, Resource, Runner, Sink, SinkWriter, Source, StreamOperator,
    StreamSpec,
};
use operators::reach::Hosts;
use operators::time::{MediaTime, TimeBase};

use super::super::counters::GraphCounters;
use super::super::supervision::{Change, RunningGraph};
use super::super::supervisor::{Engine, Options, Outcome, Request};
use super::*;
use crate::graph::plan::{Input, OnError, Overflow, PlannedOperator, PlannedSource, PlannedTap, Work};

const PATIENCE: Patience = Patience {
    load: Duration::from_secs(60),
    open: Duration::from_secs(20),
    cut: Duration::from_secs(5),
    drain: Duration::from_secs(20),
};

struct Pixel;

impl PictureBuffer for Pixel {
    fn plane(&self, _index: usize) -> &[u8] {
        &[0]
    }

    fn stride(&self, _index: usize) -> usize {
        1
    }
}

/// What a test sees of everything in its graphs.
#[derive(Default)]
struct Seen {
    /// How often each stream was opened by a source.
    opened: Mutex<BTreeMap<String, u64>>,
    /// How many pictures each stream has made.
    made: Mutex<BTreeMap<String, u64>>,
    /// `seq` of what each sink got of each stream.
    delivered: Mutex<HashMap<(String, String), Vec<u64>>>,
    /// How often each sink was started.
    started: Mutex<BTreeMap<String, u64>>,
    /// For each tally and stream, the counts that it gave, in order.
    tallied: Mutex<HashMap<(String, String), Vec<u64>>>,
    /// For each tally, how it was told that streams end.
    ends: Mutex<Vec<(String, EndReason)>>,
    /// Sinks wait here.
    gate: Gate,
}

#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, closed: bool) {
        *lock(&self.closed) = closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let guard = lock(&self.closed);
        drop(self.changed.wait_while(guard, |closed| *closed).unwrap());
    }
}

/// Makes tiny pictures until it is stopped, or until each stream has made `count`.
struct Numbers {
    seen: Arc<Seen>,
    streams: Vec<String>,
    count: u64,
}

impl Source for Numbers {
    fn streams(&self) -> Vec<StreamSpec> {
        let spec = |id: &String| StreamSpec { id: StreamId::new(id).unwrap(), location: "memory".into() };
        self.streams.iter().map(spec).collect()
    }

    fn is_live(&self) -> bool {
        false
    }

    fn is_finite(&self) -> bool {
        true
    }

    fn frame_size(&self) -> ItemSize {
        ItemSize::Known(1)
    }

    fn decoder_threads(&self, _cores: usize, _running: usize) -> usize {
        0
    }

    fn run(&self, stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
        *lock(&self.seen.opened).entry(stream.to_string()).or_default() += 1;
        let base = TimeBase::new(1, 30).unwrap();
        outlet.open(StreamInfo {
            tracks: Vec::new(),
            time_base: base,
            duration: None,
            played: operators::item::Played::Live,
        });
        for seq in 0..self.count {
            if outlet.stopping() {
                return Ok(EndReason::Stopped);
            }
            outlet.frame(seq, MediaTime::new(seq as i64, base), &mut || {
                Ok(Frame {
                    width: 1,
                    height: 1,
                    format: PixelFormat::Gray8,
                    matrix: ColorMatrix::Bt601,
                    range: ColorRange::Full,
                    buffer: Box::new(Pixel),
                    index: Some(seq),
                    truth: None,
                })
            })?;
            *lock(&self.seen.made).entry(stream.to_string()).or_default() += 1;
        }
        Ok(EndReason::Eof)
    }
}

/// Counts the items of each stream: a state that shows every seam.
struct Tally {
    seen: Arc<Seen>,
    name: String,
}

struct TallyStream {
    seen: Arc<Seen>,
    name: String,
    stream: String,
    count: u64,
}

impl InlineOperator for Tally {
    fn start(&self, stream: &StreamId) -> Box<dyn StreamOperator> {
        let (seen, name) = (self.seen.clone(), self.name.clone());
        Box::new(TallyStream { seen, name, stream: stream.to_string(), count: 0 })
    }
}

impl StreamOperator for TallyStream {
    fn item(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
        let place = (self.name.clone(), self.stream.clone());
        lock(&self.seen.tallied).entry(place).or_default().push(self.count);
        self.count += 1;
        out.emit(item.clone());
        Ok(())
    }

    fn end(&mut self, reason: &EndReason, _out: &mut Output) {
        lock(&self.seen.ends).push((self.name.clone(), reason.clone()));
    }
}

/// Takes uneven time in the pool.
struct Dawdle;

impl PoolOperator for Dawdle {
    fn runner(&self, _sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
        Ok(Box::new(Dawdle))
    }

    fn memory(&self) -> u64 {
        0
    }
}

impl Runner for Dawdle {
    fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
        for _ in 0..(item.seq * 7919 % 13) * 100 {
            std::hint::spin_loop();
        }
        Ok(item.payload.clone())
    }
}

#[derive(Clone)]
struct Notes {
    seen: Arc<Seen>,
    name: String,
    refuses: bool,
    path: Option<&'static str>,
}

impl Sink for Notes {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        if self.refuses {
            return Err(StartError::new("as told"));
        }
        if self.name.starts_with("slow") {
            self.seen.gate.pass();
        }
        *lock(&self.seen.started).entry(self.name.clone()).or_default() += 1;
        Ok(Box::new(self.clone()))
    }

    fn resources(&self) -> Vec<Resource> {
        self.path.iter().map(|path| Resource::Path(path.into())).collect()
    }
}

#[async_trait::async_trait]
impl SinkWriter for Notes {
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        let seen = self.seen.clone();
        tokio::task::spawn_blocking(move || seen.gate.pass()).await.unwrap();
        let mut delivered = lock(&self.seen.delivered);
        for event in batch {
            if let Event::Item(item) = event {
                delivered.entry((self.name.clone(), item.stream.to_string())).or_default().push(item.seq);
            }
        }
        Ok(())
    }
}

/// A graph as a test writes it: a source, a chain of operators, and sinks behind its end.
#[derive(Clone, Debug)]
struct Sketch {
    streams: Vec<&'static str>,
    /// Pictures of each stream; the source's configuration.
    count: u64,
    /// Name, and what it is: `tally` with a configuration, or `pool`.
    chain: Vec<(&'static str, Step)>,
    sinks: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Tally(u32),
    Pool,
}

const ENDLESS: u64 = u64::MAX;

impl Sketch {
    fn new() -> Sketch {
        Sketch {
            streams: vec!["a", "b", "c"],
            count: ENDLESS,
            chain: vec![("tally", Step::Tally(0)), ("dawdle", Step::Pool)],
            sinks: vec!["out"],
        }
    }

    fn plan(&self, seen: &Arc<Seen>) -> Plan {
        let text = |what: String| toml::Table::from_iter([("what".to_owned(), toml::Value::String(what))]);
        let numbers = Numbers {
            seen: seen.clone(),
            streams: self.streams.iter().map(ToString::to_string).collect(),
            count: self.count,
        };
        let mut behind = Identity::of_node("numbers", &text(self.count.to_string()));
        let source = PlannedSource {
            name: "numbers".into(),
            type_name: "test",
            source: Arc::new(numbers),
            decoder_threads: 0,
            identity: behind,
            max_streams: 1024,
            planned_streams: 1,
            template: None,
        };
        let mut operators = Vec::new();
        for (index, (name, step)) in self.chain.iter().enumerate() {
            let work = match step {
                Step::Tally(_) => Work::Inline(Arc::new(Tally { seen: seen.clone(), name: (*name).to_owned() })),
                Step::Pool => Work::Pool(Arc::new(Dawdle)),
            };
            behind = Identity::of_node("step", &text(format!("{step:?}"))).behind([&behind].into_iter());
            operators.push(PlannedOperator {
                is_end: false,
                name: (*name).into(),
                type_name: "test",
                work,
                inputs: vec![if index == 0 { Input::Tap(0) } else { Input::Operator(index - 1) }],
                on_error: OnError::Reject,
                entry: None,
                answers: false,
                identity: behind,
            });
        }
        let last = if operators.is_empty() { Input::Tap(0) } else { Input::Operator(operators.len() - 1) };
        let sink = |name: &&str| {
            let (refuses, path) = (name.starts_with("refuses"), name.starts_with("file").then_some("results.jsonl"));
            PlannedSink {
                name: (*name).into(),
                type_name: "test",
                sink: Arc::new(Notes { seen: seen.clone(), name: (*name).to_string(), refuses, path }),
                inputs: vec![last],
                flows: Vec::new(),
                on_error: OnError::Reject,
                entry: None,
                identity: Identity::of_node("notes", &text((*name).to_string())),
            }
        };
        let reader = self.chain.first().map_or("out", |(name, _)| name);
        Plan {
            graph: "test".into(),
            sources: vec![source],
            taps: vec![PlannedTap {
                source: 0,
                reader: reader.into(),
                kind: Kind::Frame,
                sample: None,
                overflow: Overflow::Block,
                limits: Limits { items: 6, bytes: 1 << 20 },
            }],
            operators,
            sinks: self.sinks.iter().map(sink).collect(),
            workers: 1,
            pool_threads: 1,
            secrets: Arc::default(),
            hosts: Hosts::Anything,
            chaos: None,
        }
    }
}

/// A graph under test.
struct Running {
    seen: Arc<Seen>,
    counters: Arc<GraphCounters>,
    requests: Sender<Request>,
    changes: Sender<Change>,
    thread: JoinHandle<Outcome>,
}

impl Running {
    fn start(workers: usize, sketch: &Sketch) -> Running {
        Running::start_with(Arc::default(), workers, sketch)
    }

    fn start_with(seen: Arc<Seen>, workers: usize, sketch: &Sketch) -> Running {
        let plan = sketch.plan(&seen);
        Running::of(seen, workers, plan)
    }

    fn of(seen: Arc<Seen>, workers: usize, plan: Plan) -> Running {
        let (requests, inbox) = bounded(2);
        let (tell, started) = bounded(1);
        let thread = std::thread::spawn(move || {
            let options = Options { workers, pool_threads: 2, clock: Arc::new(SystemClock), dataflow_log: None };
            let engine = Engine::start(options).unwrap();
            let graph = engine.run(plan).unwrap();
            tell.send((graph.counters.clone(), graph.changes())).unwrap();
            let outcome = graph.supervise(&inbox, Duration::from_secs(20));
            engine.shutdown().unwrap();
            outcome
        });
        let (counters, changes) = started.recv().unwrap();
        Running { seen, counters, requests, changes, thread }
    }

    fn change<R: Send + 'static>(&self, what: impl FnOnce(&mut RunningGraph) -> R + Send + 'static) -> R {
        let (tell, answer) = bounded(1);
        let change: Change = Box::new(move |graph| drop(tell.send(what(graph))));
        self.changes.send(change).unwrap();
        answer.recv().unwrap()
    }

    fn reload_within(&self, sketch: &Sketch, patience: Patience) -> Result<Reloaded, StartError> {
        let plan = sketch.plan(&self.seen);
        self.change(move |graph| graph.reload(plan, patience))
    }

    fn reload(&self, sketch: &Sketch) -> Reloaded {
        let reloaded = self.reload_within(sketch, PATIENCE).unwrap();
        assert!(reloaded.stuck.is_empty() && reloaded.lost == 0, "{reloaded:?}");
        reloaded
    }

    /// Waits until `sink` has got `more` further items of each of `streams`.
    fn progress(&self, sink: &str, streams: &[&str], more: usize) {
        let count =
            |stream: &str| lock(&self.seen.delivered).get(&(sink.to_owned(), stream.to_owned())).map_or(0, Vec::len);
        let before: Vec<usize> = streams.iter().map(|stream| count(stream)).collect();
        eventually(|| streams.iter().zip(&before).all(|(stream, before)| count(stream) >= before + more));
    }

    /// Ends the graph, and answers what `sink` got of each stream.
    fn end(self) -> (Outcome, Arc<Seen>, Arc<GraphCounters>) {
        let _ = self.requests.send(Request::Drain);
        let outcome = self.thread.join().unwrap();
        let report = self.counters.report();
        assert!(report.total.conserved() && report.total.in_flight == 0, "{report:#?}");
        (outcome, self.seen, self.counters)
    }
}

fn eventually(condition: impl Fn() -> bool) {
    let clock = SystemClock;
    let deadline = clock.now() + Duration::from_secs(30);
    while !condition() {
        assert!(clock.now() < deadline, "it does not come to it");
        clock.wait(clock.now() + Duration::from_millis(1), Duration::from_millis(1));
    }
}

/// Every number once, in order, from 0 on.
#[track_caller]
fn assert_whole(seen: &Seen, sink: &str, stream: &str, made: u64) {
    let delivered = lock(&seen.delivered);
    let got = &delivered[&(sink.to_owned(), stream.to_owned())];
    let wrong = got.iter().zip(0..).position(|(got, expected)| *got != expected);
    assert_eq!(wrong, None, "{stream}: {:?}", wrong.map(|at| &got[at.saturating_sub(3)..(at + 3).min(got.len())]));
    assert_eq!(got.len() as u64, made, "{stream}");
}

#[test]
fn a_reload_of_the_same_graph_leaves_no_trace() {
    for workers in [1, 2, 4] {
        let sketch = Sketch::new();
        let running = Running::start(workers, &sketch);
        for generation in 2..12 {
            running.progress("out", &sketch.streams, 20);
            let reloaded = running.reload(&sketch);
            assert_eq!(reloaded.generation, generation);
            assert_eq!(reloaded.nodes.kept, ["dawdle", "numbers", "out", "tally"]);
            assert_eq!(reloaded.streams.kept, ["a", "b", "c"]);
        }
        let (outcome, seen, _) = running.end();
        assert!(outcome.is_success(), "{outcome:?}");
        let made = lock(&seen.made).clone();
        for (stream, made) in &made {
            assert_whole(&seen, "out", stream, *made);
            let tallied = lock(&seen.tallied)[&("tally".to_owned(), stream.clone())].clone();
            assert!(tallied.iter().copied().eq(0..*made), "the state of `{stream}` has a seam");
        }
        assert!(lock(&seen.opened).values().all(|times| *times == 1), "a stream was opened again");
        assert_eq!(lock(&seen.started)["out"], 1);
        assert!(lock(&seen.ends).iter().all(|(_, reason)| *reason == EndReason::Stopped));
    }
}

#[test]
fn a_changed_node_starts_anew_and_the_rest_goes_on() {
    let mut sketch = Sketch::new();
    sketch.chain = vec![("first", Step::Tally(0)), ("second", Step::Tally(0)), ("dawdle", Step::Pool)];
    let running = Running::start(2, &sketch);
    running.progress("out", &sketch.streams, 20);
    sketch.chain[1].1 = Step::Tally(1);
    let reloaded = running.reload(&sketch);
    assert_eq!(reloaded.nodes.kept, ["first", "numbers", "out"]);
    assert_eq!(reloaded.nodes.rebuilt, ["dawdle", "second"]);
    running.progress("out", &sketch.streams, 20);
    let (_, seen, _) = running.end();
    for (stream, made) in lock(&seen.made).clone() {
        assert_whole(&seen, "out", &stream, made);
        let tallied = |name: &str| lock(&seen.tallied)[&(name.to_owned(), stream.clone())].clone();
        assert!(tallied("first").into_iter().eq(0..made));
        let second = tallied("second");
        let seam = 1 + second[1..].iter().position(|count| *count == 0).expect("it started anew");
        assert!(second[..seam].iter().copied().eq(0..seam as u64));
        assert!(second[seam..].iter().copied().eq(0..made - seam as u64));
    }
    let reloads = lock(&seen.ends).iter().filter(|(_, reason)| *reason == EndReason::Reload).count();
    assert_eq!(reloads, 3, "each stream ended once in the node that was changed");
}

#[test]
fn streams_that_are_added_and_removed_touch_no_other() {
    let mut sketch = Sketch::new();
    let running = Running::start(2, &sketch);
    running.progress("out", &sketch.streams, 20);
    sketch.streams = vec!["a", "c", "d"];
    let reloaded = running.reload(&sketch);
    assert_eq!(reloaded.streams.kept, ["a", "c"]);
    assert_eq!((reloaded.streams.added, reloaded.streams.removed), (vec!["d".into()], vec!["b".into()]));
    running.progress("out", &sketch.streams, 20);
    // Back again: its numbers go on.
    sketch.streams = vec!["a", "b", "c", "d"];
    running.reload(&sketch);
    running.progress("out", &["b"], 20);
    let (outcome, seen, _) = running.end();
    assert!(outcome.is_success(), "{outcome:?}");
    for (stream, made) in lock(&seen.made).clone() {
        assert_whole(&seen, "out", &stream, made);
    }
    let opened: Vec<(String, u64)> = lock(&seen.opened).clone().into_iter().collect();
    assert_eq!(opened, [("a".into(), 1), ("b".into(), 2), ("c".into(), 1), ("d".into(), 1)]);
}

#[test]
fn a_changed_source_is_read_anew_and_its_numbers_go_on() {
    let mut sketch = Sketch::new();
    let running = Running::start(2, &sketch);
    running.progress("out", &sketch.streams, 20);
    sketch.count = ENDLESS - 1;
    let reloaded = running.reload(&sketch);
    assert_eq!(reloaded.streams.rebuilt, ["a", "b", "c"]);
    running.progress("out", &sketch.streams, 20);
    let (outcome, seen, _) = running.end();
    assert!(outcome.is_success(), "{outcome:?}");
    for (stream, made) in lock(&seen.made).clone() {
        assert_whole(&seen, "out", &stream, made);
    }
}

#[test]
fn a_finite_stream_that_has_ended_is_not_read_again() {
    // Its streams have ended, and the graph has not.
    let (sketch, running) = with_a_sink_that_is_held_up();
    let streams = |running: &Running| running.counters.report().streams;
    eventually(|| streams(&running).iter().all(|stream| stream.state == super::super::stats::StreamState::Ended));
    running.reload(&sketch);
    running.seen.gate.set(false);
    let (outcome, seen, _) = running.end();
    assert!(outcome.is_success(), "{outcome:?}");
    assert!(lock(&seen.opened).values().all(|times| *times == 1));
}

/// All that was read before is in the hands of the sink, which nobody else was to write to any more.
#[test]
fn what_a_reload_adds_behind_the_end_of_everything_is_delivered_by_the_same_sink() {
    let (mut sketch, running) = with_a_sink_that_is_held_up();
    let streams = |running: &Running| running.counters.report().streams;
    eventually(|| streams(&running).iter().all(|stream| stream.state == super::super::stats::StreamState::Ended));
    for (round, stream) in ["d", "e"].into_iter().enumerate() {
        sketch.streams.push(stream);
        running.reload(&sketch);
        let read = |running: &Running| running.counters.report().total.read;
        eventually(|| read(&running) == 4 * (4 + round as u64));
    }
    running.seen.gate.set(false);
    let (outcome, seen, _) = running.end();
    assert!(outcome.is_success(), "{outcome:?}");
    for stream in sketch.streams {
        assert_whole(&seen, "out", stream, 4);
    }
    assert_eq!(lock(&seen.started)["out"], 1);
}

#[test]
fn sinks_come_and_go_and_those_that_stay_are_not_opened_again() {
    let mut sketch = Sketch::new();
    let running = Running::start(2, &sketch);
    running.progress("out", &sketch.streams, 20);
    sketch.sinks = vec!["out", "more"];
    running.reload(&sketch);
    running.progress("more", &sketch.streams, 20);
    sketch.sinks = vec!["more"];
    running.reload(&sketch);
    let of_out = lock(&running.seen.delivered)[&("out".to_owned(), "a".to_owned())].len();
    running.progress("more", &sketch.streams, 20);
    assert_eq!(lock(&running.seen.delivered)[&("out".to_owned(), "a".to_owned())].len(), of_out);
    let (outcome, seen, _) = running.end();
    assert!(outcome.is_success(), "{outcome:?}");
    assert_eq!(*lock(&seen.started), BTreeMap::from([("more".into(), 1), ("out".into(), 1)]));
    for (stream, made) in lock(&seen.made).clone() {
        let delivered = lock(&seen.delivered);
        let [out, more] = ["out", "more"].map(|sink| delivered[&(sink.to_owned(), stream.clone())].clone());
        assert!(out.iter().copied().eq(0..out.len() as u64), "{stream}");
        assert!(more.windows(2).all(|pair| pair[0] + 1 == pair[1]) && more.last() == Some(&(made - 1)), "{stream}");
        assert!(more[0] <= out.len() as u64, "nothing was missed between the two");
    }
}

#[test]
fn a_graph_that_cannot_start_leaves_the_old_one_as_it_was() {
    let mut sketch = Sketch::new();
    let running = Running::start(2, &sketch);
    running.progress("out", &sketch.streams, 20);
    sketch.sinks.push("refuses");
    let error = running.reload_within(&sketch, PATIENCE).unwrap_err();
    assert_eq!(error.to_string(), "`refuses` cannot start: as told");
    assert_eq!(running.counters.generation(), 1);
    running.progress("out", &sketch.streams, 20);
    let (outcome, seen, _) = running.end();
    assert!(outcome.is_success(), "{outcome:?}");
    for (stream, made) in lock(&seen.made).clone() {
        assert_whole(&seen, "out", &stream, made);
    }
}

#[test]
fn a_new_sink_may_not_write_what_an_old_one_has_open() {
    let mut sketch = Sketch { sinks: vec!["file"], ..Sketch::new() };
    let running = Running::start(1, &sketch);
    sketch.sinks = vec!["file-of-another-name"];
    let error = running.reload_within(&sketch, PATIENCE).unwrap_err();
    assert!(error.to_string().contains("which `file` of the running graph has open"), "{error}");
    assert!(running.end().0.is_success());
}

#[test]
fn behind_a_sink_that_is_stuck_a_reload_ends_in_time_and_names_what_was_lost() {
    let sketch = Sketch::new();
    let running = Running::start(2, &sketch);
    running.progress("out", &sketch.streams, 20);
    running.seen.gate.set(true);
    let blocked = |running: &Running| running.counters.report().streams.iter().all(|s| s.blocked_by.is_some());
    eventually(|| blocked(&running));
    let mut changed = sketch.clone();
    changed.chain[0].1 = Step::Tally(7);
    changed.sinks = vec!["other"];
    let short = Patience { cut: Duration::from_millis(50), drain: Duration::from_millis(200), ..PATIENCE };
    let reloaded = running.reload_within(&changed, short).unwrap();
    assert!(reloaded.stuck.contains(&"sink `out`".to_owned()), "{reloaded:?}");
    for stream in &sketch.streams {
        let given_up = format!("stream `{stream}`, of which an item found no room in `");
        assert!(reloaded.stuck.iter().any(|stuck| stuck.starts_with(&given_up)), "{reloaded:?}");
    }
    running.seen.gate.set(false);
    running.progress("other", &changed.streams, 20);
    let (_, seen, counters) = running.end();
    let total = counters.report().total;
    assert!(total.lost >= reloaded.lost && reloaded.lost > 0, "{total:?} {reloaded:?}");
    for stream in changed.streams {
        let other = lock(&seen.delivered)[&("other".to_owned(), stream.to_owned())].clone();
        assert!(other.windows(2).all(|pair| pair[0] + 1 == pair[1]), "what came after the cut is whole");
    }
}

/// A graph whose sink has got everything that its streams make, and does not get on with it.
fn with_a_sink_that_is_held_up() -> (Sketch, Running) {
    let sketch = Sketch { count: 4, ..Sketch::new() };
    let seen = Arc::new(Seen::default());
    seen.gate.set(true);
    let running = Running::start_with(seen, 2, &sketch);
    let came = |running: &Running| {
        let nodes = running.counters.report().nodes;
        nodes.iter().find(|node| node.name == "out").map_or(0, |node| node.items.iter().sum::<u64>())
    };
    eventually(|| came(&running) == 12);
    (sketch, running)
}

#[test]
fn a_sink_that_is_slow_loses_nothing_as_long_as_there_is_time() {
    let (mut sketch, running) = with_a_sink_that_is_held_up();
    let seen = running.seen.clone();
    let later = std::thread::spawn(move || {
        let clock = SystemClock;
        clock.wait(clock.now() + 3 * LAST_CALL, 3 * LAST_CALL);
        seen.gate.set(false);
    });
    sketch.sinks = vec!["other"];
    // Asserts that nothing is lost.
    running.reload(&sketch);
    later.join().unwrap();
    let (outcome, seen, _) = running.end();
    assert!(outcome.is_success(), "{outcome:?}");
    for stream in sketch.streams {
        assert_whole(&seen, "out", stream, 4);
    }
}

#[test]
fn what_a_stuck_sink_has_in_hand_is_counted_in_the_answer() {
    let (mut sketch, running) = with_a_sink_that_is_held_up();
    sketch.sinks = vec!["other"];
    let short = Patience { drain: Duration::from_millis(50), ..PATIENCE };
    let reloaded = running.reload_within(&sketch, short).unwrap();
    // Where the machine is slow, more than that has not come to an end.
    assert!(reloaded.lost == 12 && reloaded.stuck.contains(&"sink `out`".to_owned()), "{reloaded:?}");
    running.seen.gate.set(false);
    let (.., counters) = running.end();
    assert_eq!(counters.report().total.lost, 12);
}

#[test]
fn a_sink_that_does_not_open_holds_the_graph_up_for_a_while_only() {
    let mut sketch = Sketch { sinks: Vec::new(), ..Sketch::new() };
    let running = Running::start(1, &sketch);
    running.seen.gate.set(true);
    sketch.sinks = vec!["slow"];
    let error = running.reload_within(&sketch, Patience { open: Duration::from_millis(50), ..PATIENCE }).unwrap_err();
    running.seen.gate.set(false);
    assert_eq!(error.to_string(), "`slow` cannot start: it did not open within 0.05 s");
    assert_eq!(running.counters.generation(), 1);
    assert!(running.end().0.is_success());
}

#[test]
fn a_reload_that_fails_forgets_no_stream_that_is_to_be_read_anew() {
    let mut sketch = Sketch::new();
    let running = Running::start(1, &sketch);
    sketch.sinks.push("refuses");
    let plan = sketch.plan(&running.seen);
    let restarts = running.change(move |graph| {
        graph.restarts = graph.declared().into_iter().map(|stream| (stream.spec.id.clone(), stream)).collect();
        graph.reload(plan, PATIENCE).unwrap_err();
        // They run all the same.
        std::mem::take(&mut graph.restarts).len()
    });
    assert_eq!(restarts, 3);
    assert!(running.end().0.is_success());
}

#[test]
fn a_stop_during_a_reload_is_heard_after_it() {
    let sketch = Sketch::new();
    let running = Running::start(2, &sketch);
    running.progress("out", &sketch.streams, 20);
    let plan = sketch.plan(&running.seen);
    let done = Arc::new(AtomicBool::new(false));
    let flag = done.clone();
    let change: Change = Box::new(move |graph| {
        graph.reload(plan, PATIENCE).unwrap();
        flag.store(true, Ordering::Release);
    });
    running.changes.send(change).unwrap();
    let (outcome, ..) = running.end();
    assert!(outcome.is_success(), "{outcome:?}");
    assert!(done.load(Ordering::Acquire) || outcome.asked == Some(Request::Drain));
}

/// A small generator: the numbers of a failing run are in its message.
struct Dice(AtomicU64);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        // splitmix64, <https://prng.di.unimi.it/splitmix64.c>
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}
