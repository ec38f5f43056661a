//! What the engine adds to an item's own work: source thread, lease, mailbox, eight operators that only pass on, sink.
//!
//! Run saturated, so that the time of an item is the busiest thread's; the budget is as large as an operator would
//! ever be given.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_channel::bounded;
use engine::graph::identity::Identity;
use engine::graph::plan::{
    Input, OnError, Overflow, Plan, PlannedOperator, PlannedSink, PlannedSource, PlannedTap, Work,
};
use engine::runtime::supervisor::{Engine, Options};
use operators::clock::{Clock, SystemClock};
use operators::error::{ItemError, SinkError, SourceError, StartError};
use operators::item::{
    ColorMatrix, ColorRange, EndReason, Event, Frame, Item, Kind, PictureBuffer, PixelFormat, StreamId, StreamInfo,
};
use operators::lease::Limits;
use operators::operator::{
    InlineOperator, ItemSize, Outlet, Output, Sink, SinkWriter, Source, StreamOperator, StreamSpec,
};
use operators::reach::Hosts;
use operators::time::{MediaTime, TimeBase};

const OPERATORS: usize = 8;

struct Pixel;

impl PictureBuffer for Pixel {
    fn plane(&self, _index: usize) -> &[u8] {
        &[0]
    }

    fn stride(&self, _index: usize) -> usize {
        1
    }
}

/// One-pixel pictures, as fast as they are taken.
struct Pixels(u64);

impl Source for Pixels {
    fn streams(&self) -> Vec<StreamSpec> {
        vec![StreamSpec { id: StreamId::sanitised("pixels"), location: "memory".into() }]
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

    fn run(&self, _stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
        let base = TimeBase::MICROSECONDS;
        outlet.open(StreamInfo {
            tracks: Vec::new(),
            time_base: base,
            duration: None,
            played: operators::item::Played::Live,
        });
        for seq in 0..self.0 {
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
        }
        Ok(EndReason::Eof)
    }
}

#[derive(Clone)]
struct Pass;

impl InlineOperator for Pass {
    fn start(&self, _stream: &StreamId) -> Box<dyn StreamOperator> {
        Box::new(Pass)
    }
}

impl StreamOperator for Pass {
    fn item(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
        out.emit(item.clone());
        Ok(())
    }
}

struct Nowhere;

impl Sink for Nowhere {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        Ok(Box::new(Nowhere))
    }
}

#[async_trait::async_trait]
impl SinkWriter for Nowhere {
    async fn write(&mut self, _batch: &[Event]) -> Result<(), SinkError> {
        Ok(())
    }
}

fn plan(operators: usize, items: u64, workers: usize) -> Plan {
    let operator = |index: usize| PlannedOperator {
        name: format!("pass{index}").into(),
        type_name: "pass",
        work: Work::Inline(Arc::new(Pass)),
        inputs: vec![if index == 0 { Input::Tap(0) } else { Input::Operator(index - 1) }],
        on_error: OnError::Reject,
        entry: None,
        is_end: false,
        answers: false,
        identity: Identity::default(),
    };
    Plan {
        graph: "overhead".into(),
        sources: vec![PlannedSource {
            name: "pixels".into(),
            type_name: "pixels",
            source: Arc::new(Pixels(items)),
            decoder_threads: 0,
            identity: Identity::default(),
            max_streams: 1024,
            planned_streams: 1,
            template: None,
        }],
        taps: vec![PlannedTap {
            source: 0,
            reader: "reader".into(),
            kind: Kind::Frame,
            sample: None,
            overflow: Overflow::Block,
            limits: Limits { items: 256, bytes: 1 << 20 },
        }],
        operators: (0..operators).map(operator).collect(),
        sinks: vec![PlannedSink {
            name: "nowhere".into(),
            type_name: "nowhere",
            sink: Arc::new(Nowhere),
            inputs: vec![if operators == 0 { Input::Tap(0) } else { Input::Operator(operators - 1) }],
            flows: Vec::new(),
            on_error: OnError::Reject,
            entry: None,
            identity: Identity::default(),
        }],
        workers,
        pool_threads: 1,
        secrets: Arc::default(),
        hosts: Hosts::Anything,
        chaos: None,
    }
}

/// From the first item to the end of the graph.
fn run(operators: usize, items: u64, workers: usize) -> Duration {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let engine = Engine::start(Options { workers, pool_threads: 1, clock: clock.clone(), dataflow_log: None })
        .expect("threads can be started");
    let (_requests, inbox) = bounded(1);
    let start: Instant = clock.now();
    let graph = engine.run(plan(operators, items, workers)).expect("nothing in it can fail to start");
    let counters = graph.counters.clone();
    let outcome = graph.supervise(&inbox, Duration::from_secs(60));
    let elapsed = clock.now() - start;
    assert!(outcome.is_success() && counters.report().total.delivered == items, "{outcome:?}");
    engine.shutdown().expect("no log to write");
    elapsed
}

fn dataflow(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dataflow");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    for (operators, workers) in [(0, 1), (OPERATORS, 1), (OPERATORS, 2)] {
        let name = BenchmarkId::new(format!("{operators} operators"), format!("{workers} workers"));
        group.bench_function(name, |bencher| {
            // At least so many that starting and ending the graph is small beside them.
            bencher.iter_custom(|items| {
                let run_items = items.max(50_000);
                run(operators, run_items, workers).mul_f64(items as f64 / run_items as f64)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, dataflow);
criterion_main!(benches);
