//! Measures a running graph between a warm-up and an end, from outside: it reads the same counters as `/stats`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use operators::clock::Clock;
use operators::error::StartError;
use operators::lease::{Account, Counts};
use serde::Serialize;

use crate::graph::plan::Plan;
use crate::runtime::counters::GraphCounters;
use crate::runtime::process::usage;
use crate::runtime::stats::{GraphState, Quantiles};
use crate::runtime::supervisor::{Engine, Options, Request};

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Items that end before the clock starts.
    pub warm_up: u64,
    /// Measure until so many more have ended …
    pub frames: Option<u64>,
    /// … or so long, whichever is sooner; or until the graph ends.
    pub time: Option<Duration>,
}

/// What a graph did in its window.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub seconds: f64,
    /// Source pictures that ended, a second; skipped and filtered ones included.
    pub throughput_fps: f64,
    /// Results that sinks accepted, a second.
    pub delivered_fps: f64,
    pub counts: WindowCounts,
    /// From decoded to accepted by the sink, of all streams together.
    pub age_ms: Quantiles,
    /// User and system time of the whole process.
    pub cpu_seconds: f64,
    pub cpu_seconds_per_1000_frames: f64,
    /// Of the whole process since it started.
    pub peak_resident_bytes: u64,
    /// Milliseconds of work for each item that was worked on, by node; those whose work is measured.
    pub busy_ms: BTreeMap<String, f64>,
}

/// What became of items in the window: `read` and `in_flight_before` together are all the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WindowCounts {
    pub read: u64,
    pub delivered: u64,
    pub filtered: u64,
    pub dropped: u64,
    pub rejected: u64,
    pub lost: u64,
    /// At the window's start and at its end.
    pub in_flight_before: u64,
    pub in_flight_after: u64,
}

impl WindowCounts {
    fn between(start: &Counts, end: &Counts) -> WindowCounts {
        let less = |end: u64, start: u64| end.saturating_sub(start);
        WindowCounts {
            read: less(end.read, start.read),
            delivered: less(end.delivered, start.delivered),
            filtered: less(end.filtered, start.filtered),
            dropped: less(end.dropped, start.dropped),
            rejected: less(end.rejected, start.rejected),
            lost: less(end.lost, start.lost),
            in_flight_before: start.in_flight,
            in_flight_after: end.in_flight,
        }
    }

    /// Items whose fate was settled.
    pub fn ended(&self) -> u64 {
        self.delivered + self.filtered + self.dropped + self.rejected + self.lost
    }
}

/// The clocks and counters at one moment.
struct Reading {
    at: Instant,
    counts: Counts,
    cpu_seconds: f64,
    busy_ms: BTreeMap<String, (f64, u64)>,
}

impl Reading {
    fn take(counters: &GraphCounters, clock: &dyn Clock) -> Reading {
        // Items flow while their counters are read one after the other: a reading that does not add up is taken again.
        let mut report = counters.report();
        for _ in 0..1000 {
            if report.total.conserved() {
                break;
            }
            report = counters.report();
        }
        let measured = report.nodes.iter().filter(|node| node.busy_ms_each().is_some());
        let busy = measured.map(|node| (node.name.clone(), (node.busy_ms, node.worked())));
        Reading { at: clock.now(), counts: report.total, cpu_seconds: usage().cpu_seconds, busy_ms: busy.collect() }
    }
}

fn ended(counters: &GraphCounters) -> u64 {
    let counts = counters.streams().into_iter().map(|stream| stream.account.snapshot());
    counts.map(|counts| counts.read.saturating_sub(counts.in_flight)).sum()
}

/// Runs `plan` and measures it.
///
/// # Errors
/// Where the graph does not start, fails, or ends before its warm-up.
pub fn measure(plan: Plan, window: Window, clock: &Arc<dyn Clock>) -> Result<Measured, StartError> {
    let engine = Engine::start(Options {
        workers: plan.workers,
        pool_threads: plan.pool_threads,
        clock: clock.clone(),
        dataflow_log: None,
    })?;
    let graph = engine.run(plan)?;
    let counters = graph.counters.clone();
    let (requests, inbox) = bounded(1);
    let (window, outcome) = std::thread::scope(|scope| {
        let supervised = scope.spawn(|| graph.supervise(&inbox, Duration::from_secs(30)));
        let window = watch(&counters, window, &**clock);
        // The graph may have ended already; then nobody listens.
        let _ = requests.send(Request::Drain);
        (window, supervised.join())
    });
    engine.shutdown()?;
    let outcome = outcome.map_err(|_| StartError::new("the supervisor panicked"))?;
    // First of all why it failed: then it may also have ended early.
    if let Some(failure) = outcome.failures.first() {
        return Err(StartError::new(format!("the graph failed: {failure}")));
    }
    let Some((start, end, ages)) = window else {
        return Err(StartError::new("the graph ended before its warm-up did").hint("use a smaller --warmup"));
    };
    Ok(between(&start, &end, ages))
}

type Ages = hdrhistogram::Histogram<u64>;

/// Waits for the window's start and its end.
fn watch(counters: &GraphCounters, window: Window, clock: &dyn Clock) -> Option<(Reading, Reading, Option<Ages>)> {
    let over = || matches!(counters.state().0, GraphState::Finished | GraphState::Failed);
    while ended(counters) < window.warm_up {
        if over() {
            return None;
        }
        tick(clock);
    }
    counters.streams().iter().for_each(|stream| stream.account.reset_ages());
    let first = ended(counters);
    let start = Reading::take(counters, clock);
    let enough = || {
        window.frames.is_some_and(|frames| ended(counters) >= first + frames)
            || window.time.is_some_and(|time| clock.now().saturating_duration_since(start.at) >= time)
            // A finite graph may drain to its end without being taken down yet.
            || over()
    };
    while !enough() {
        tick(clock);
    }
    let end = Reading::take(counters, clock);
    let streams = counters.streams();
    let ages = merged(streams.iter().map(|stream| &*stream.account));
    Some((start, end, ages))
}

fn tick(clock: &dyn Clock) {
    clock.wait(clock.now() + Duration::from_millis(2), Duration::from_millis(2));
}

fn merged<'a>(accounts: impl Iterator<Item = &'a Account>) -> Option<Ages> {
    accounts.map(Account::ages).reduce(|mut all, ages| {
        // All histograms have the same bounds.
        let _ = all.add(ages);
        all
    })
}

fn between(start: &Reading, end: &Reading, ages: Option<Ages>) -> Measured {
    let less = |end: u64, start: u64| end.saturating_sub(start);
    let counts = WindowCounts::between(&start.counts, &end.counts);
    let ended = counts.ended();
    let seconds = end.at.saturating_duration_since(start.at).as_secs_f64();
    let a_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let cpu_seconds = end.cpu_seconds - start.cpu_seconds;
    let busy_ms = end.busy_ms.iter().filter_map(|(name, (busy, items))| {
        let (busy_before, items_before) = start.busy_ms.get(name).copied().unwrap_or_default();
        let items = less(*items, items_before);
        (items > 0).then(|| (name.clone(), (busy - busy_before) / items as f64))
    });
    let age_ms = ages.map_or_else(Quantiles::default, |ages| {
        let milliseconds = |micros: u64| micros as f64 / 1000.0;
        let quantile = |q: f64| milliseconds(ages.value_at_quantile(q));
        Quantiles { p50: quantile(0.5), p90: quantile(0.9), p99: quantile(0.99), max: milliseconds(ages.max()) }
    });
    Measured {
        seconds,
        throughput_fps: a_second(ended),
        delivered_fps: a_second(counts.delivered),
        counts,
        age_ms,
        cpu_seconds,
        cpu_seconds_per_1000_frames: if ended > 0 { cpu_seconds * 1000.0 / ended as f64 } else { 0.0 },
        peak_resident_bytes: usage().peak_resident_bytes,
        busy_ms: busy_ms.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::check::{Surroundings, check};
    use crate::graph::planner::{PlanOptions, build_plan};
    use operators::clock::SystemClock;
    use operators::inference::model::Catalog;

    fn measured(source: &str, window: Window) -> Result<Measured, StartError> {
        let text = format!(
            "[sources.scene]\n{source}\n[operators.sums]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
             [sinks.out]\ntype = \"blackhole\"\ninputs = [\"sums\"]\n"
        );
        let surroundings = Surroundings::of_process(Arc::new(Catalog::default()));
        let graph = check("test", text.as_bytes(), &[], &surroundings).graph.unwrap();
        let plan = build_plan(&graph, PlanOptions { workers: Some(1), pool_threads: Some(1), cores: 2 });
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        measure(plan, window, &clock)
    }

    #[test]
    fn the_counts_of_a_window_add_up() {
        // Enough of them that a worker has come to its end of a turn more than once.
        let window = Window { warm_up: 100, frames: Some(2000), time: None };
        let source = "type = \"synthetic\"\nwidth = 64\nheight = 48\nrealtime = false";
        let measured = measured(source, window).unwrap();
        let counts = measured.counts;
        assert!(counts.ended() >= 2000, "{counts:?}");
        assert_eq!(counts.read + counts.in_flight_before, counts.ended() + counts.in_flight_after);
        assert!(measured.busy_ms["sums"] > 0.0);
        assert!(!measured.busy_ms.contains_key("scene"), "nobody measures how long it draws");
    }

    #[test]
    fn a_stream_that_fails_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("noise.mp4");
        std::fs::write(&path, "no video").unwrap();
        let window = Window { warm_up: 10, frames: None, time: Some(Duration::from_secs(10)) };
        let error = measured(&format!("type = \"file\"\npath = \"{}\"", path.display()), window).unwrap_err();
        assert!(error.message.contains("noise.mp4") && error.message.contains("cannot be played"), "{error}");
    }

    #[test]
    fn what_was_dropped_before_its_turn_takes_no_work() {
        use crate::runtime::counters::NodeCounters;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let node = NodeCounters::new("people".into(), "detect", "pool", 1, clock.now());
        node.items(0, 10);
        for _ in 0..4 {
            node.took(Duration::from_millis(5));
        }
        let counters = GraphCounters::new("test".into(), clock, 0);
        counters.set_nodes(vec![Arc::new(node)], None);
        let report = counters.report();
        assert_eq!((report.nodes[0].worked(), report.nodes[0].busy_ms_each()), (4, Some(5.0)));
    }
}
