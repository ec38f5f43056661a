//! The runtime against sources, operators and sinks that misbehave on purpose.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use operators::clock::{Clock, SystemClock};
use operators::error::{ItemError, SinkError, SourceError, StartError};
use operators::inference::session::Sessions;
use operators::item::{
    ColorMatrix, ColorRange, EndReason, Event, Frame, Item, Kind, Payload, PictureBuffer, PixelFormat, RecordBody,
    StreamId, StreamInfo,
};
use operators::lease::{Counts, Limits, Verdict};
use operators::lock::lock;
use operators::operator::{
    Batching, InlineOperator, ItemSize, Later, Outlet, Output, PoolOperator, Runner, Sink, SinkWriter, Source,
    StreamOperator, StreamSpec, Trouble, Unmade,
};
use operators::reach::Hosts;
use operators::time::{MediaTime, TimeBase};

use super::stats::{GraphReport, Observe, StreamState};
use super::supervisor::{Engine, Options, Outcome, Request};
use crate::graph::identity::Identity;
use crate::graph::plan::{
    Entry, Input, OnError, Overflow, Plan, PlannedOperator, PlannedSink, PlannedSource, PlannedTap, Work,
};

mod given_up;

const DRAIN: Duration = Duration::from_secs(20);

struct Pixels(Vec<u8>);

impl PictureBuffer for Pixels {
    fn plane(&self, _index: usize) -> &[u8] {
        &self.0
    }

    fn stride(&self, _index: usize) -> usize {
        self.0.len()
    }
}

/// Makes `count` tiny pictures on each stream, as fast as they are taken.
struct Counting {
    streams: Vec<StreamId>,
    count: u64,
    bytes: usize,
    live: bool,
    /// Where there is one, each picture waits for a word.
    pace: Option<Receiver<()>>,
}

impl Source for Counting {
    fn streams(&self) -> Vec<StreamSpec> {
        self.streams.iter().map(|id| StreamSpec { id: id.clone(), location: "memory".into() }).collect()
    }

    fn is_live(&self) -> bool {
        self.live
    }

    fn is_finite(&self) -> bool {
        true
    }

    fn frame_size(&self) -> ItemSize {
        ItemSize::Known(self.bytes as u64)
    }

    fn decoder_threads(&self, _cores: usize, _running: usize) -> usize {
        0
    }

    fn run(&self, _stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
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
            if let Some(pace) = &self.pace {
                pace.recv().unwrap();
            }
            outlet.frame(seq, MediaTime::new(seq as i64, base), &mut || {
                Ok(Frame {
                    width: self.bytes as u32,
                    height: 1,
                    format: PixelFormat::Gray8,
                    matrix: ColorMatrix::Bt601,
                    range: ColorRange::Full,
                    buffer: Box::new(Pixels(vec![0; self.bytes])),
                    index: Some(seq),
                    truth: None,
                })
            })?;
        }
        Ok(EndReason::Eof)
    }
}

type Reaction = fn(&Item) -> Reacts;

enum Reacts {
    Pass,
    Filter,
    Forget,
    Fail,
    Panic,
}

/// Does to each item what a function says.
struct Reacting(Reaction);

impl InlineOperator for Reacting {
    fn start(&self, _stream: &StreamId) -> Box<dyn StreamOperator> {
        Box::new(Reacting(self.0))
    }
}

impl StreamOperator for Reacting {
    fn item(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
        match (self.0)(item) {
            Reacts::Pass => out.emit(item.clone()),
            Reacts::Filter => out.settle(item, Verdict::Filtered),
            Reacts::Forget => {}
            Reacts::Fail => return Err(ItemError::Failed("as told".into())),
            Reacts::Panic => panic!("as told"),
        }
        Ok(())
    }
}

impl PoolOperator for Reacting {
    fn runner(&self, _sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
        Ok(Box::new(Reacting(self.0)))
    }

    fn memory(&self) -> u64 {
        0
    }
}

impl Runner for Reacting {
    fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
        // Uneven work, so that jobs finish out of order.
        for _ in 0..(item.seq * 7919 % 13) * 300 {
            std::hint::spin_loop();
        }
        match (self.0)(item) {
            Reacts::Pass | Reacts::Filter | Reacts::Forget => Ok(item.payload.clone()),
            Reacts::Fail => Err(ItemError::Failed("as told".into())),
            Reacts::Panic => panic!("as told"),
        }
    }
}

/// A gate that a test opens.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        *lock(&self.open) = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let guard = lock(&self.open);
        drop(self.changed.wait_while(guard, |open| !*open).unwrap());
    }
}

/// Keeps what it is given; may fail, or wait for a gate.
#[derive(Clone, Default)]
struct Collecting {
    events: Arc<Mutex<Vec<Event>>>,
    batches: Arc<AtomicUsize>,
    fails: bool,
    panics: bool,
    gate: Option<Arc<Gate>>,
    trouble: Option<Trouble>,
}

impl Sink for Collecting {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl SinkWriter for Collecting {
    fn trouble(&self) -> Option<Trouble> {
        self.trouble.clone()
    }

    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        self.batches.fetch_add(1, Ordering::Relaxed);
        if let Some(gate) = self.gate.clone() {
            tokio::task::spawn_blocking(move || gate.pass()).await.unwrap();
        }
        assert!(!self.panics, "as told");
        if self.fails {
            return Err(SinkError { message: "the disk is full".into(), hint: None });
        }
        // Without leases: what is kept must not keep items in flight.
        let kept = batch.iter().map(|event| match event {
            Event::Item(item) => {
                let mut item = item.clone();
                std::mem::replace(&mut item.lease.ack, operators::lease::Ack::new(&Arc::default(), SystemClock.now()))
                    .release();
                item.lease.credit = None;
                Event::Item(item)
            }
            other => other.clone(),
        });
        lock(&self.events).extend(kept);
        Ok(())
    }
}

impl Collecting {
    /// `seq` of what arrived on `stream`, with whether it was an error.
    fn items(&self, stream: &str) -> Vec<(u64, bool)> {
        let is_error = |item: &Item| matches!(&item.payload, Payload::Record(record) if matches!(record.body, RecordBody::Error { .. }));
        lock(&self.events)
            .iter()
            .filter_map(|event| match event {
                Event::Item(item) if &*item.stream == stream => Some((item.seq, is_error(item))),
                _ => None,
            })
            .collect()
    }
}

fn ids(names: &[&str]) -> Vec<StreamId> {
    names.iter().map(|name| StreamId::new(name).unwrap()).collect()
}

fn tap(overflow: Overflow, items: u32) -> PlannedTap {
    let limits = Limits { items, bytes: 1 << 20 };
    PlannedTap { source: 0, reader: "reader".into(), kind: Kind::Frame, sample: None, overflow, limits }
}

fn inline(name: &str, reaction: Reaction, input: Input) -> PlannedOperator {
    operator(name, Work::Inline(Arc::new(Reacting(reaction))), input)
}

fn pooled(name: &str, reaction: Reaction, input: Input) -> PlannedOperator {
    operator(name, Work::Pool(Arc::new(Reacting(reaction))), input)
}

fn operator(name: &str, work: Work, input: Input) -> PlannedOperator {
    PlannedOperator {
        is_end: false,
        name: name.into(),
        type_name: "test",
        work,
        inputs: vec![input],
        on_error: OnError::Reject,
        entry: None,
        answers: false,
        identity: Identity::default(),
    }
}

fn sink(name: &str, sink: &Collecting, inputs: &[Input]) -> PlannedSink {
    PlannedSink {
        name: name.into(),
        type_name: "test",
        sink: Arc::new(sink.clone()),
        inputs: inputs.to_vec(),
        flows: Vec::new(),
        on_error: OnError::Reject,
        entry: None,
        identity: Identity::default(),
    }
}

fn plan(source: Counting, taps: Vec<PlannedTap>, operators: Vec<PlannedOperator>, sinks: Vec<PlannedSink>) -> Plan {
    let source = PlannedSource {
        name: "numbers".into(),
        type_name: "test",
        source: Arc::new(source),
        decoder_threads: 0,
        identity: Identity::default(),
        max_streams: 1024,
        planned_streams: 1,
        template: None,
    };
    let secrets = Arc::default();
    Plan {
        graph: "test".into(),
        sources: vec![source],
        taps,
        operators,
        sinks,
        workers: 1,
        pool_threads: 1,
        secrets,
        hosts: Hosts::Anything,
        chaos: None,
    }
}

fn source(streams: &[&str], count: u64) -> Counting {
    Counting { streams: ids(streams), count, bytes: 16, live: false, pace: None }
}

/// Runs a plan to its end.
fn run(workers: usize, plan: Plan) -> (Outcome, GraphReport) {
    let engine = start(workers);
    let (_requests, inbox) = bounded(1);
    let graph = engine.run(plan).unwrap();
    let counters = graph.counters.clone();
    let outcome = graph.supervise(&inbox, DRAIN);
    let report = counters.report();
    engine.shutdown().unwrap();
    assert!(report.total.conserved(), "{report:#?}");
    assert_eq!(report.total.in_flight, 0, "{report:#?}");
    (outcome, report)
}

fn start(workers: usize) -> Arc<Engine> {
    Engine::start(Options { workers, pool_threads: 3, clock: Arc::new(SystemClock), dataflow_log: None }).unwrap()
}

/// Runs a plan on a thread of its own, so that a test can talk to it.
fn run_aside(plan: Plan, drain: Duration) -> (Sender<Request>, JoinHandle<(Outcome, Counts)>) {
    let (requests, inbox) = bounded(1);
    let thread = std::thread::spawn(move || {
        let engine = start(2);
        let graph = engine.run(plan).unwrap();
        let counters = graph.counters.clone();
        let outcome = graph.supervise(&inbox, drain);
        let health = engine.health();
        assert!(health.problems.is_empty() || !health.ok);
        // A job that came too late holds its item until its thread is done with it.
        engine.shutdown().unwrap();
        (outcome, counters.report().total)
    });
    (requests, thread)
}

const STREAMS: [&str; 5] = ["a", "b", "c", "d", "e"];

fn all_in_order(collected: &Collecting, count: u64) {
    for stream in STREAMS {
        let expected: Vec<u64> = (0..count).collect();
        let got: Vec<u64> = collected.items(stream).into_iter().map(|(seq, _)| seq).collect();
        assert_eq!(got, expected, "stream {stream}");
    }
}

#[test]
fn every_item_arrives_once_and_in_order_on_any_number_of_workers() {
    for workers in [1, 2, 4] {
        let collected = Collecting::default();
        let operators = vec![
            inline("pass", |_| Reacts::Pass, Input::Tap(0)),
            pooled("work", |_| Reacts::Pass, Input::Operator(0)),
            inline("more", |_| Reacts::Pass, Input::Operator(1)),
        ];
        let sinks = vec![sink("out", &collected, &[Input::Operator(2)])];
        let (outcome, report) =
            run(workers, plan(source(&STREAMS, 500), vec![tap(Overflow::Block, 8)], operators, sinks));
        assert!(outcome.is_success(), "{outcome:?}");
        assert_eq!(report.total, Counts { read: 2500, delivered: 2500, ..Counts::default() });
        all_in_order(&collected, 500);
        for node in &report.nodes {
            assert_eq!(node.items.iter().sum::<u64>(), 2500, "{}", node.name);
            assert_eq!(node.queued, 0, "{}", node.name);
        }
        let ends = lock(&collected.events).iter().filter(|event| matches!(event, Event::End { .. })).count();
        assert_eq!(ends, STREAMS.len());
    }
}

#[test]
fn over_several_branches_the_worst_verdict_counts() {
    let (first, second) = (Collecting::default(), Collecting::default());
    let operators = vec![
        inline("odd", |item| if item.seq % 2 == 1 { Reacts::Pass } else { Reacts::Filter }, Input::Tap(0)),
        inline("never", |_| Reacts::Filter, Input::Tap(0)),
        pooled("fails_on_three", |item| if item.seq == 3 { Reacts::Fail } else { Reacts::Pass }, Input::Operator(0)),
    ];
    let sinks = vec![sink("one", &first, &[Input::Operator(2)]), sink("two", &second, &[Input::Operator(1)])];
    let (_, report) = run(2, plan(source(&["a"], 10), vec![tap(Overflow::Block, 4)], operators, sinks));
    assert_eq!(report.total, Counts { read: 10, delivered: 4, filtered: 5, rejected: 1, ..Counts::default() });
    assert_eq!(first.items("a"), [(1, false), (3, true), (5, false), (7, false), (9, false)]);
}

#[test]
fn an_operator_that_forgets_an_item_loses_it_and_the_run_fails() {
    let collected = Collecting::default();
    let operators =
        vec![inline("forgets", |item| if item.seq == 4 { Reacts::Forget } else { Reacts::Pass }, Input::Tap(0))];
    let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
    let (outcome, report) = run(1, plan(source(&["a"], 10), vec![tap(Overflow::Block, 4)], operators, sinks));
    assert_eq!(report.total, Counts { read: 10, delivered: 9, lost: 1, ..Counts::default() });
    assert!(!outcome.is_success());
}

/// Inline and in the pool, on each of the workers.
#[test]
fn panics_reject_one_item_and_leave_a_gap() {
    for work in [inline as fn(&str, Reaction, Input) -> PlannedOperator, pooled] {
        for workers in [1, 2, 4] {
            let collected = Collecting::default();
            let operators =
                vec![work("fragile", |item| if item.seq == 5 { Reacts::Panic } else { Reacts::Pass }, Input::Tap(0))];
            let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
            let (outcome, report) =
                run(workers, plan(source(&STREAMS, 20), vec![tap(Overflow::Block, 4)], operators, sinks));
            assert!(outcome.is_success(), "{outcome:?}");
            assert_eq!(report.total, Counts { read: 100, delivered: 95, rejected: 5, ..Counts::default() });
            all_in_order(&collected, 20);
            for stream in STREAMS {
                assert!(collected.items(stream)[5].1);
                let events = lock(&collected.events);
                let gaps: Vec<Option<u64>> = events
                    .iter()
                    .filter_map(|event| match event {
                        Event::Gap { stream: of, gap } if &**of == stream => Some(gap.seq),
                        _ => None,
                    })
                    .collect();
                assert_eq!(gaps, [Some(6)]);
            }
        }
    }
}

#[test]
fn an_error_stops_the_graph_where_asked_to() {
    let collected = Collecting::default();
    let mut fails = inline("fails", |item| if item.seq == 5 { Reacts::Fail } else { Reacts::Pass }, Input::Tap(0));
    fails.on_error = OnError::Stop;
    let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
    let endless = source(&["a"], u64::MAX);
    let (outcome, _) = run(1, plan(endless, vec![tap(Overflow::Block, 4)], vec![fails], sinks));
    assert_eq!(outcome.failures, ["`fails` failed on stream `a`, item 5: as told"]);
}

#[test]
fn a_failing_sink_loses_what_it_was_given_and_says_so() {
    let broken = Collecting { fails: true, ..Collecting::default() };
    let sinks = vec![sink("disk", &broken, &[Input::Tap(0)])];
    let (outcome, report) = run(2, plan(source(&["a"], 10), vec![tap(Overflow::Block, 4)], Vec::new(), sinks));
    assert_eq!(report.total, Counts { read: 10, lost: 10, ..Counts::default() });
    let error = report.nodes[1].last_error.as_deref().unwrap();
    // The last batch may have had signals alone.
    assert!(error.starts_with("sink `disk`") && error.ends_with(": the disk is full"), "{error}");
    assert!(!outcome.is_success());
}

/// A writer that settles by itself goes on with what it holds of a batch, and loses the rest.
#[test]
fn a_writer_that_tells_of_an_error_keeps_what_it_has_taken() {
    #[derive(Clone, Default)]
    struct Picky(Vec<operators::lease::Ack>);

    impl Sink for Picky {
        fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
            Ok(Box::new(self.clone()))
        }
    }

    #[async_trait::async_trait]
    impl SinkWriter for Picky {
        async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
            let items = batch.iter().filter_map(|event| match event {
                Event::Item(item) if item.seq % 5 != 0 => Some(item.lease.ack.clone()),
                _ => None,
            });
            self.0.extend(items);
            Err(SinkError { message: "every fifth is not to my taste".into(), hint: None })
        }

        fn settles(&self) -> bool {
            true
        }

        async fn close(&mut self) -> Result<(), SinkError> {
            self.0.drain(..).for_each(|ack| ack.deliver(SystemClock.now()));
            Ok(())
        }
    }

    let mut planned = sink("picky", &Collecting::default(), &[Input::Tap(0)]);
    planned.sink = Arc::new(Picky::default());
    let (outcome, report) = run(2, plan(source(&["a"], 20), vec![tap(Overflow::Block, 32)], Vec::new(), vec![planned]));
    assert_eq!(report.total, Counts { read: 20, delivered: 16, lost: 4, ..Counts::default() });
    assert_eq!(report.nodes[1].last_error.as_deref(), Some("sink `picky`: every fifth is not to my taste"));
    assert!(!outcome.is_success());
}

/// Has the items of one stream made elsewhere, where each waits for a gate, and may fail there.
struct Making {
    slow: StreamId,
    gate: Arc<Gate>,
    reaction: Reaction,
}

struct MakingStream {
    is_slow: bool,
    gate: Arc<Gate>,
    reaction: Reaction,
}

impl InlineOperator for Making {
    fn start(&self, stream: &StreamId) -> Box<dyn StreamOperator> {
        let (gate, reaction) = (self.gate.clone(), self.reaction);
        Box::new(MakingStream { is_slow: *stream == self.slow, gate, reaction })
    }
}

impl StreamOperator for MakingStream {
    fn item(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
        // Every other one, so that some wait behind it that are there already.
        if !self.is_slow || !item.seq.is_multiple_of(2) {
            out.emit(item.clone());
            return Ok(());
        }
        let Item { stream, seq, pts, time, fallback, payload, lease } = item.clone();
        let (gate, reacts) = (self.gate.clone(), (self.reaction)(item));
        let make = move || {
            gate.pass();
            match reacts {
                Reacts::Fail => Err(ItemError::Failed("as told".into())),
                Reacts::Panic => panic!("as told"),
                Reacts::Pass | Reacts::Filter | Reacts::Forget => Ok(payload),
            }
        };
        out.emit_later(Later { item: Unmade { stream, seq, pts, time, fallback, lease }, make: Box::new(make) });
        Ok(())
    }
}

fn making(gate: &Arc<Gate>, reaction: Reaction) -> PlannedOperator {
    let making = Making { slow: StreamId::new("a").unwrap(), gate: gate.clone(), reaction };
    operator("making", Work::Inline(Arc::new(making)), Input::Tap(0))
}

#[test]
fn what_is_made_elsewhere_holds_up_its_own_stream_alone_and_keeps_its_order() {
    let gate = Arc::new(Gate::default());
    let collected = Collecting::default();
    let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
    // One worker has all streams.
    let engine = start(1);
    let (_requests, inbox) = bounded(1);
    let operators = vec![making(&gate, |_| Reacts::Pass)];
    let graph = engine.run(plan(source(&STREAMS, 50), vec![tap(Overflow::Block, 8)], operators, sinks)).unwrap();
    let counters = graph.counters.clone();
    std::thread::scope(|scope| {
        let supervised = scope.spawn(|| graph.supervise(&inbox, DRAIN));
        let making = || counters.report().nodes.into_iter().find(|node| node.name == "making").unwrap();
        eventually(|| {
            let (node, others) = (making(), &STREAMS[1..]);
            let waits = node.queued > 0 && node.oldest_ms.is_some();
            waits && others.iter().all(|stream| collected.items(stream).len() == 50)
        });
        assert!(collected.items("a").is_empty(), "the first is not made, and the others wait for it");
        let before = making().busy_seconds;
        eventually(|| making().busy_seconds > before);
        gate.open();
        let outcome = supervised.join().unwrap();
        assert!(outcome.is_success(), "{outcome:?}");
    });
    let report = counters.report();
    engine.shutdown().unwrap();
    assert_eq!(report.total, Counts { read: 250, delivered: 250, ..Counts::default() });
    all_in_order(&collected, 50);
    assert!(report.nodes.iter().all(|node| node.queued == 0), "{report:#?}");
    let ends = lock(&collected.events).iter().filter(|event| matches!(event, Event::End { .. })).count();
    assert_eq!(ends, STREAMS.len());
}

#[test]
fn what_cannot_be_made_elsewhere_is_an_error_in_its_place() {
    for reaction in [(|item| if item.seq == 4 { Reacts::Fail } else { Reacts::Pass }) as Reaction, |item| {
        if item.seq == 4 { Reacts::Panic } else { Reacts::Pass }
    }] {
        let gate = Arc::new(Gate::default());
        gate.open();
        let collected = Collecting::default();
        let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
        let operators = vec![making(&gate, reaction)];
        let (outcome, report) = run(2, plan(source(&["a"], 20), vec![tap(Overflow::Block, 4)], operators, sinks));
        assert!(outcome.is_success(), "{outcome:?}");
        assert_eq!(report.total, Counts { read: 20, delivered: 19, rejected: 1, ..Counts::default() });
        let items = collected.items("a");
        assert_eq!(items, (0..20).map(|seq| (seq, seq == 4)).collect::<Vec<_>>());
        assert!(report.nodes[1].last_error.as_deref().unwrap().contains("as told"));
    }
}

/// At the end of a drain nobody waits any more for what hangs.
#[test]
fn what_hangs_elsewhere_is_lost_at_the_drain_deadline() {
    let gate = Arc::new(Gate::default());
    let collected = Collecting::default();
    let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
    let operators = vec![making(&gate, |_| Reacts::Pass)];
    let engine = start(1);
    let (requests, inbox) = bounded(1);
    let graph = engine.run(plan(source(&["a"], 10), vec![tap(Overflow::Block, 4)], operators, sinks)).unwrap();
    let counters = graph.counters.clone();
    let outcome = std::thread::scope(|scope| {
        let supervised = scope.spawn(|| graph.supervise(&inbox, Duration::from_millis(100)));
        eventually(|| counters.report().nodes[1].queued > 0);
        requests.send(Request::Drain).unwrap();
        supervised.join().unwrap()
    });
    // The thread that makes it ends before the engine does.
    gate.open();
    engine.shutdown().unwrap();
    let counts = counters.report().total;
    assert!(!outcome.is_success(), "{outcome:?}");
    assert!(counts.lost > 0 && counts.delivered == 0 && counts.conserved(), "{counts:?}");
}

#[test]
fn a_stalled_sink_stops_its_source_within_the_budget() {
    let gate = Arc::new(Gate::default());
    let stalled = Collecting { gate: Some(gate.clone()), ..Collecting::default() };
    let operators = vec![pooled("work", |_| Reacts::Pass, Input::Tap(0))];
    let sinks = vec![sink("slow", &stalled, &[Input::Operator(0)])];
    let engine = start(2);
    let (_requests, inbox) = bounded(1);
    let graph = engine.run(plan(source(&["a"], 1000), vec![tap(Overflow::Block, 6)], operators, sinks)).unwrap();
    let counters = graph.counters.clone();
    let blocked = || {
        let report = &counters.report().streams[0];
        report.blocked_by.is_some() && report.counts.read == 7
    };
    std::thread::scope(|scope| {
        let supervised = scope.spawn(|| graph.supervise(&inbox, DRAIN));
        eventually(blocked);
        let report = counters.report();
        // Six have credit, the seventh was read and waits for it.
        assert_eq!(report.total, Counts { read: 7, in_flight: 7, ..Counts::default() });
        assert_eq!((report.streams[0].held_items, report.streams[0].held_bytes_peak), (6, 6 * 16));
        gate.open();
        assert!(supervised.join().unwrap().is_success());
    });
    assert_eq!(counters.report().total, Counts { read: 1000, delivered: 1000, ..Counts::default() });
}

#[test]
fn a_full_live_tap_drops_and_counts_and_never_waits() {
    let gate = Arc::new(Gate::default());
    let stalled = Collecting { gate: Some(gate.clone()), ..Collecting::default() };
    let sinks = vec![sink("slow", &stalled, &[Input::Tap(0)])];
    let live = Counting { live: true, ..source(&["a"], 100) };
    let (requests, running) = run_aside(plan(live, vec![tap(Overflow::DropOldest, 4)], Vec::new(), sinks), DRAIN);
    eventually(|| stalled.batches.load(Ordering::Relaxed) > 0);
    requests.send(Request::Drain).unwrap();
    gate.open();
    let (outcome, counts) = running.join().unwrap();
    assert!(outcome.is_success(), "{outcome:?}");
    assert!(counts.conserved() && counts.in_flight == 0 && counts.lost == 0, "{counts:?}");
    assert_eq!(counts.delivered + counts.dropped, counts.read);
}

/// However long the pool is busy with the oldest, the newest picture has its place when there is time for it.
#[test]
fn the_newest_picture_of_a_live_stream_wins() {
    struct Busy(Arc<Gate>);
    impl PoolOperator for Busy {
        fn runner(&self, _sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
            Ok(Box::new(Busy(self.0.clone())))
        }
        fn memory(&self) -> u64 {
            0
        }
    }
    impl Runner for Busy {
        fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
            self.0.pass();
            Ok(item.payload.clone())
        }
    }
    let gate = Arc::new(Gate::default());
    let collected = Collecting::default();
    let operators = vec![operator("busy", Work::Pool(Arc::new(Busy(gate.clone()))), Input::Tap(0))];
    let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
    let (go_on, pace) = bounded(1);
    let live = Counting { live: true, pace: Some(pace), ..source(&["a"], 100) };
    // More than the pool takes up at once: the rest waits in front of it.
    let plan = plan(live, vec![tap(Overflow::DropOldest, 16)], operators, sinks);
    let engine = start(1);
    let (_requests, inbox) = bounded(1);
    let graph = engine.run(plan).unwrap();
    let counters = graph.counters.clone();
    std::thread::scope(|scope| {
        let supervised = scope.spawn(|| graph.supervise(&inbox, DRAIN));
        for read in 1..=100 {
            go_on.send(()).unwrap();
            // There is room again before the next one comes.
            eventually(|| {
                let total = counters.report().total;
                total.read == read && total.in_flight < 16
            });
        }
        gate.open();
        assert!(supervised.join().unwrap().is_success());
    });
    engine.shutdown().unwrap();
    let total = counters.report().total;
    assert!(total.conserved() && total.lost == 0 && total.dropped > 0, "{total:?}");
    assert_eq!(collected.items("a").last(), Some(&(99, false)), "the newest came through");
}

#[test]
fn a_dropping_branch_never_slows_its_sibling() {
    let gate = Arc::new(Gate::default());
    let stalled = Collecting { gate: Some(gate.clone()), ..Collecting::default() };
    let quick = Collecting::default();
    let entry = Entry { overflow: Overflow::DropOldest, limits: Limits { items: 2, bytes: 1 << 20 } };
    let operators = vec![inline("pass", |_| Reacts::Pass, Input::Tap(0))];
    let mut slow = sink("slow", &stalled, &[Input::Operator(0)]);
    slow.entry = Some(entry);
    let sinks = vec![slow, sink("quick", &quick, &[Input::Operator(0)])];
    let (_requests, running) =
        run_aside(plan(source(&["a"], 200), vec![tap(Overflow::Block, 4)], operators, sinks), DRAIN);
    eventually(|| quick.items("a").len() == 200);
    gate.open();
    let (outcome, counts) = running.join().unwrap();
    assert!(outcome.is_success(), "{outcome:?}");
    assert!(counts.conserved() && counts.in_flight == 0 && counts.lost == 0, "{counts:?}");
    assert!(counts.dropped >= 190, "the slow branch had room for two: {counts:?}");
}

#[test]
fn a_drain_delivers_what_is_in_flight() {
    let collected = Collecting::default();
    let operators = vec![pooled("work", |_| Reacts::Pass, Input::Tap(0))];
    let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
    let endless = source(&["a", "b"], u64::MAX);
    let (requests, running) = run_aside(plan(endless, vec![tap(Overflow::Block, 8)], operators, sinks), DRAIN);
    eventually(|| collected.items("b").len() > 20);
    requests.send(Request::Drain).unwrap();
    let (outcome, counts) = running.join().unwrap();
    assert!(outcome.is_success(), "{outcome:?}");
    assert_eq!(counts, Counts { read: counts.read, delivered: counts.read, ..Counts::default() });
}

#[test]
fn at_the_drain_deadline_the_rest_is_lost_and_named() {
    let gate = Arc::new(Gate::default());
    let stuck = Collecting { gate: Some(gate.clone()), ..Collecting::default() };
    let sinks = vec![sink("stuck", &stuck, &[Input::Tap(0)])];
    let endless = source(&["a"], u64::MAX);
    let (requests, running) =
        run_aside(plan(endless, vec![tap(Overflow::Block, 8)], Vec::new(), sinks), Duration::from_millis(100));
    eventually(|| stuck.batches.load(Ordering::Relaxed) > 0);
    requests.send(Request::Drain).unwrap();
    let (outcome, counts) = running.join().unwrap();
    gate.open();
    assert!(outcome.stuck.iter().any(|what| what == "sink `stuck`"), "{outcome:?} {counts:?}");
    assert!(counts.conserved() && counts.lost > 0, "{counts:?}");
}

/// More waits for the sink than its queue and its batch hold when the sources end: nothing of it may be lost.
#[test]
fn what_waits_for_a_slow_sink_outlives_the_end_of_its_sources() {
    let gate = Arc::new(Gate::default());
    let stalled = Collecting { gate: Some(gate.clone()), ..Collecting::default() };
    let names: Vec<String> = (0..120).map(|index| format!("s{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let sinks = vec![sink("slow", &stalled, &[Input::Tap(0)])];
    let engine = start(2);
    let (_requests, inbox) = bounded(1);
    let graph = engine.run(plan(source(&names, 8), vec![tap(Overflow::Block, 8)], Vec::new(), sinks)).unwrap();
    let counters = graph.counters.clone();
    std::thread::scope(|scope| {
        let supervised = scope.spawn(|| graph.supervise(&inbox, DRAIN));
        eventually(|| counters.report().streams.iter().all(|stream| stream.state == StreamState::Ended));
        gate.open();
        assert!(supervised.join().unwrap().is_success());
    });
    assert_eq!(counters.report().total, Counts { read: 960, delivered: 960, ..Counts::default() });
}

/// Both workers wait for room in its queue when it dies: they must hear that there will be none.
#[test]
fn a_sink_that_panics_ends_the_graph_and_keeps_nobody_waiting() {
    let gate = Arc::new(Gate::default());
    let dying = Collecting { gate: Some(gate.clone()), panics: true, ..Collecting::default() };
    let names: Vec<String> = (0..120).map(|index| format!("s{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let plan = plan(
        source(&names, 8),
        vec![tap(Overflow::Block, 8)],
        Vec::new(),
        vec![sink("dying", &dying, &[Input::Tap(0)])],
    );
    // Longer than any test may take: who waits for the deadline fails.
    let (_requests, running) = run_aside(plan, Duration::from_secs(3600));
    eventually(|| dying.batches.load(Ordering::Relaxed) == 1);
    gate.open();
    eventually(|| running.is_finished());
    let (outcome, counts) = running.join().unwrap();
    assert!(outcome.failures.iter().any(|failure| failure.contains("sink `dying`")), "{outcome:?}");
    assert!(counts.conserved() && counts.lost > 0 && counts.delivered == 0, "{counts:?}");
}

/// Both as they start and as they open again after a panic.
#[test]
fn an_operator_that_cannot_start_rejects_items_and_harms_nobody_else() {
    struct Unstartable;
    impl InlineOperator for Unstartable {
        fn start(&self, stream: &StreamId) -> Box<dyn StreamOperator> {
            assert!(&**stream != "b", "as told");
            Box::new(Reacting(|_| Reacts::Pass))
        }
    }
    let collected = Collecting::default();
    let operators = vec![operator("unstartable", Work::Inline(Arc::new(Unstartable)), Input::Tap(0))];
    let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
    let (_, report) = run(2, plan(source(&["a", "b"], 5), vec![tap(Overflow::Block, 4)], operators, sinks));
    assert_eq!(report.total, Counts { read: 10, delivered: 5, rejected: 5, ..Counts::default() });
}

#[test]
fn an_item_larger_than_a_branch_is_rejected_and_empties_nothing() {
    let collected = Collecting::default();
    let mut small = sink("small", &collected, &[Input::Operator(0)]);
    small.entry = Some(Entry { overflow: Overflow::DropOldest, limits: Limits { items: 4, bytes: 8 } });
    let operators = vec![inline("pass", |_| Reacts::Pass, Input::Tap(0))];
    let (outcome, report) = run(1, plan(source(&["a"], 3), vec![tap(Overflow::Block, 4)], operators, vec![small]));
    assert_eq!(report.total, Counts { read: 3, rejected: 3, ..Counts::default() });
    let why = "`small` failed on stream `a`, item 2: it takes 16 B, more than this branch's whole budget of 8 B; raise \
               `budget.bytes`";
    assert_eq!(outcome.failures, [format!("every item was rejected (3); {why}")]);
}

/// Two late jobs, the second submitted while the first is already waited for.
#[test]
fn a_late_job_leaves_an_error_in_its_place_and_order_goes_on() {
    struct Sticking(Arc<Gate>);
    impl PoolOperator for Sticking {
        fn runner(&self, _sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
            Ok(Box::new(Sticking(self.0.clone())))
        }
        fn memory(&self) -> u64 {
            0
        }
        fn deadline(&self) -> Duration {
            // Long beside what a busy machine may hold up a job that does nothing.
            Duration::from_secs(8)
        }
    }
    impl Runner for Sticking {
        fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
            if item.seq == 3 || item.seq == 5 {
                self.0.pass();
            }
            Ok(item.payload.clone())
        }
    }
    let gate = Arc::new(Gate::default());
    let collected = Collecting::default();
    let operators = vec![operator("sticks", Work::Pool(Arc::new(Sticking(gate.clone()))), Input::Tap(0))];
    let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
    let (_requests, running) =
        run_aside(plan(source(&["a"], 8), vec![tap(Overflow::Block, 4)], operators, sinks), DRAIN);
    eventually(|| collected.items("a").len() == 8);
    gate.open();
    let (outcome, counts) = running.join().unwrap();
    assert!(outcome.is_success(), "{outcome:?}");
    assert_eq!(counts, Counts { read: 8, delivered: 6, rejected: 2, ..Counts::default() });
    let failed: Vec<u64> = collected.items("a").into_iter().filter(|(_, error)| *error).map(|(seq, _)| seq).collect();
    assert_eq!(failed, [3, 5]);
    all_seq(&collected.items("a"));
}

/// One of up to four jobs that run as one hangs: those are late, each with an error in its own place, and no others.
#[test]
fn jobs_that_run_as_one_are_late_together_and_order_goes_on() {
    struct Sticking(Arc<Gate>);
    impl PoolOperator for Sticking {
        fn runner(&self, _sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
            Ok(Box::new(Sticking(self.0.clone())))
        }
        fn memory(&self) -> u64 {
            0
        }
        fn deadline(&self) -> Duration {
            Duration::from_secs(8)
        }
        fn batching(&self) -> Option<Batching> {
            Some(Batching { items: 4, wait: Duration::from_millis(5) })
        }
    }
    impl Runner for Sticking {
        fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
            if item.seq == 3 && &*item.stream == "a" {
                self.0.pass();
            }
            Ok(item.payload.clone())
        }
    }
    let gate = Arc::new(Gate::default());
    let collected = Collecting::default();
    let operators = vec![operator("sticks", Work::Pool(Arc::new(Sticking(gate.clone()))), Input::Tap(0))];
    let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
    // Twice what runs as one: jobs that hang hold their items, and others of their stream go on beside them.
    let taps = vec![tap(Overflow::Block, 8)];
    let (_requests, running) = run_aside(plan(source(&["a", "b"], 10), taps, operators, sinks), DRAIN);
    eventually(|| collected.items("a").len() == 10 && collected.items("b").len() == 10);
    gate.open();
    let (outcome, counts) = running.join().unwrap();
    assert!(outcome.is_success(), "{outcome:?}");
    assert!((1..=4).contains(&counts.rejected), "{counts:?}");
    assert_eq!(
        counts,
        Counts { read: 20, delivered: 20 - counts.rejected, rejected: counts.rejected, ..Counts::default() }
    );
    assert!(collected.items("a").contains(&(3, true)), "{:?}", collected.items("a"));
    for stream in ["a", "b"] {
        all_seq(&collected.items(stream));
    }
}

#[test]
fn a_thread_that_hangs_in_a_job_is_named_until_it_comes_back() {
    struct Hanging(Arc<Gate>);
    impl PoolOperator for Hanging {
        fn runner(&self, _sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
            Ok(Box::new(Hanging(self.0.clone())))
        }
        fn memory(&self) -> u64 {
            0
        }
        fn deadline(&self) -> Duration {
            Duration::from_millis(1)
        }
    }
    impl Runner for Hanging {
        fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
            self.0.pass();
            Ok(item.payload.clone())
        }
    }
    let gate = Arc::new(Gate::default());
    let collected = Collecting::default();
    let operators = vec![operator("hangs", Work::Pool(Arc::new(Hanging(gate.clone()))), Input::Tap(0))];
    let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
    let engine = start(1);
    // The graph goes on until the second picture: a job whose graph is gone would not begin at all.
    let (go_on, pace) = bounded(2);
    go_on.send(()).unwrap();
    let numbers = Counting { pace: Some(pace), ..source(&["a"], 2) };
    let graph = engine.run(plan(numbers, vec![tap(Overflow::Block, 4)], operators, sinks)).unwrap();
    let (_requests, inbox) = bounded(1);
    let running = std::thread::spawn(move || graph.supervise(&inbox, DRAIN));
    let hangs = || engine.health().problems.into_iter().find(|problem| problem.contains("of the pool hangs"));
    eventually(|| hangs().is_some());
    let problem = hangs().unwrap();
    go_on.send(()).unwrap();
    // Its item was given up, its graph may be gone: the thread hangs on.
    eventually(|| collected.items("a").len() == 2);
    for part in ["with item 0 of stream `a`", "for `hangs` of graph `"] {
        assert!(problem.contains(part), "{part} is missing: {problem}");
    }
    assert!(hangs().is_some() && !engine.health().ok);
    gate.open();
    running.join().unwrap();
    eventually(|| hangs().is_none());
    engine.shutdown().unwrap();
}

fn all_seq(items: &[(u64, bool)]) {
    assert!(items.iter().map(|(seq, _)| *seq).eq(0..items.len() as u64), "{items:?}");
}

#[test]
fn a_picture_larger_than_its_budget_is_rejected_by_name() {
    let collected = Collecting::default();
    let sinks = vec![sink("out", &collected, &[Input::Tap(0)])];
    let large = Counting { bytes: 2 << 20, ..source(&["a"], 3) };
    let (_, report) = run(1, plan(large, vec![tap(Overflow::Block, 4)], Vec::new(), sinks));
    assert_eq!(report.total, Counts { read: 3, rejected: 3, ..Counts::default() });
    let events = lock(&collected.events);
    let message = events.iter().find_map(|event| match event {
        Event::Item(Item { payload: Payload::Record(record), .. }) => match &record.body {
            RecordBody::Error { message } => Some(message.clone()),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(
        message.unwrap(),
        "one picture takes 2.0 MiB, more than the whole budget of 1.0 MiB; raise `budget.bytes`"
    );
}

#[test]
fn a_source_that_panics_fails_its_stream_alone() {
    struct Panicking(Counting);
    impl Source for Panicking {
        fn streams(&self) -> Vec<StreamSpec> {
            self.0.streams()
        }
        fn is_live(&self) -> bool {
            false
        }
        fn is_finite(&self) -> bool {
            true
        }
        fn frame_size(&self) -> ItemSize {
            ItemSize::Unknown
        }
        fn decoder_threads(&self, _cores: usize, _running: usize) -> usize {
            0
        }
        fn run(&self, stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
            assert!(&**stream != "b", "as told");
            self.0.run(stream, outlet)
        }
    }
    let collected = Collecting::default();
    let sinks = vec![sink("out", &collected, &[Input::Tap(0)])];
    let mut plan = plan(source(&["a", "b"], 10), vec![tap(Overflow::Block, 4)], Vec::new(), sinks);
    plan.sources[0].source = Arc::new(Panicking(source(&["a", "b"], 10)));
    let (outcome, report) = run(2, plan);
    assert_eq!(outcome.failures, ["stream `b`: the source panicked: as told"]);
    assert_eq!(report.streams[1].state, StreamState::Failed);
    assert_eq!(collected.items("a").len(), 10);
}

#[test]
fn what_nobody_listens_to_is_filtered() {
    let collected = Collecting::default();
    let operators = vec![pooled("unheard", |_| Reacts::Pass, Input::Tap(0))];
    let sinks = vec![sink("out", &collected, &[Input::Tap(1)])];
    let mut odd = tap(Overflow::Block, 4);
    odd.sample = None;
    let (outcome, report) = run(2, plan(source(&["a"], 50), vec![tap(Overflow::Block, 4), odd], operators, sinks));
    assert!(outcome.is_success(), "{outcome:?}");
    assert_eq!(report.total, Counts { read: 50, delivered: 50, ..Counts::default() });
}

/// Waits for a condition, with a deadline.
fn eventually(condition: impl Fn() -> bool) {
    let clock = SystemClock;
    let deadline = clock.now() + Duration::from_secs(30);
    while !condition() {
        assert!(clock.now() < deadline, "the condition did not come true within 30 s");
        clock.wait(deadline, Duration::from_millis(1));
    }
}
