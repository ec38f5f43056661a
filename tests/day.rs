//! A day of twenty-four simulated hours in seconds: graphs are reloaded, streams come and go, connections flap, operators
//! panic and sinks are slow. At its end the engine is as large as it was after the first hour, and every picture is
//! accounted for.
//!
//! The only test of its binary: it counts the threads and descriptors of its own process.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::bounded;
use engine::graph::check::Surroundings;
use engine::graph::planner::PlanOptions;
use engine::graph::references::References;
use engine::runtime::graphs::{Expected, GraphSettings, GraphText, Graphs, Home};
use engine::runtime::reload::Patience;
use engine::runtime::stats::{Observe, Report, StreamState};
use engine::runtime::streams::PostedStream;
use engine::runtime::supervisor::{Engine, Options, Request};
use operators::clock::{Clock, SystemClock};
use operators::inference::model::Catalog;
use operators::item::StreamId;
use operators::lease::Counts;

const HOUR: Duration = Duration::from_secs(3600);

/// A clock that stands until everybody who could do something waits for it, and then jumps to what comes next.
struct DayClock {
    start: Instant,
    wall_start: SystemTime,
    state: Mutex<DayState>,
    changed: Condvar,
}

#[derive(Default)]
struct DayState {
    elapsed: Duration,
    /// What time each waiting thread waits for.
    waiting: BTreeMap<u64, Duration>,
    next: u64,
}

impl DayClock {
    fn new() -> Arc<DayClock> {
        let start = SystemClock.now();
        let wall_start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Arc::new(DayClock { start, wall_start, state: Mutex::default(), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, DayState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed(&self) -> Duration {
        self.state().elapsed
    }

    /// Waits in real time, and not for long, until `count` threads wait for a time that has not come.
    fn settle(&self, count: usize, at_most: Duration) {
        let is_busy = |state: &mut DayState| {
            let now = state.elapsed;
            state.waiting.values().filter(|target| **target > now).count() < count
        };
        drop(self.changed.wait_timeout_while(self.state(), at_most, is_busy));
    }

    /// Jumps to what somebody waits for, but not beyond `goal`.
    fn jump(&self, goal: Duration) {
        let mut state = self.state();
        let now = state.elapsed;
        let next = state.waiting.values().filter(|target| **target > now).min().copied();
        state.elapsed = next.unwrap_or(now + Duration::from_secs(1)).min(goal);
        self.changed.notify_all();
    }
}

impl Clock for DayClock {
    fn now(&self) -> Instant {
        self.start + self.elapsed()
    }

    fn wall(&self) -> SystemTime {
        self.wall_start + self.elapsed()
    }

    fn wait(&self, deadline: Instant, at_most: Duration) {
        let target = deadline.saturating_duration_since(self.start);
        let mut state = self.state();
        let ticket = state.next;
        state.next += 1;
        state.waiting.insert(ticket, target);
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(state, at_most, |state| state.elapsed < target);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.waiting.remove(&ticket);
    }
}

struct Day {
    clock: Arc<DayClock>,
    graphs: Arc<Graphs>,
    reloads: u64,
}

impl Day {
    fn load(&mut self, name: &str, text: &str) {
        let text = GraphText { name: name.to_owned(), bytes: text.as_bytes().to_vec(), home: Home::Put };
        self.graphs.load(text, &Expected::Anything).unwrap_or_else(|error| panic!("{name}: {error}"));
        self.reloads += 1;
    }

    fn report(&self) -> Report {
        self.graphs.report()
    }

    /// Lets simulated time pass, as fast as the engine goes along.
    fn pass(&self, time: Duration) {
        let goal = self.clock.elapsed() + time;
        while self.clock.elapsed() < goal {
            let report = self.report();
            let is_read = |state: StreamState| {
                matches!(state, StreamState::Connecting | StreamState::Running | StreamState::Retrying)
            };
            let read = report.graphs.iter().flat_map(|graph| &graph.streams).filter(|stream| is_read(stream.state));
            // It goes on as soon as all of them wait: a machine that stands still is given time.
            self.clock.settle(read.count(), Duration::from_millis(200));
            // What is in flight is given a moment: else every job would be late.
            let never = bounded::<()>(0).1;
            for _ in 0..5 {
                if self.report().graphs.iter().all(|graph| graph.total.in_flight == 0) {
                    break;
                }
                let _ = never.recv_timeout(Duration::from_micros(500));
            }
            self.clock.jump(goal);
        }
    }

    /// Waits in real time until nothing is in flight, for which slow sinks need simulated time.
    fn come_to_rest(&self) -> Report {
        let deadline = SystemClock.now() + Duration::from_secs(60);
        loop {
            let report = self.report();
            if report.graphs.iter().all(|graph| graph.total.in_flight == 0) {
                return report;
            }
            assert!(SystemClock.now() < deadline, "something stays in flight: {report:#?}");
            self.pass(Duration::from_secs(1));
        }
    }
}

impl Day {
    /// What is held when nothing has changed for half a second of real time: threads take a moment to go.
    fn settled_size(&self) -> Size {
        let never = bounded::<()>(0).1;
        let (mut last, mut same) = (size(&self.report()), 0);
        while same < 50 {
            let _ = never.recv_timeout(Duration::from_millis(10));
            let now = size(&self.report());
            (same, last) = if now == last { (same + 1, last) } else { (0, now) };
        }
        last
    }
}

/// What the process holds: threads, descriptors, and bytes that leases pay for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    threads: usize,
    descriptors: usize,
    held_bytes: u64,
}

fn size(report: &Report) -> Size {
    let entries = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).expect("it is Linux").count();
    let held = report.graphs.iter().flat_map(|graph| &graph.streams).map(|stream| stream.held_bytes);
    Size { threads: entries("task"), descriptors: entries("fd"), held_bytes: held.sum() }
}

/// Cameras that flap, lose pictures and have clocks that jump, an operator that panics and a sink that fails; in two
/// versions that differ in an operator's name and in a branch; and a guest, who has another name each time.
fn cameras(hour: u32) -> String {
    let (operator, branch) = match hour % 2 {
        0 => ("sum", ""),
        _ => (
            "total",
            "[operators.seldom]\ntype = 'sample'\ninputs = ['cameras']\nfps = '1/300'\n\
             [sinks.hole]\ntype = 'blackhole'\ninputs = ['seldom']\n",
        ),
    };
    format!(
        "[sources.cameras]\ntype = 'synthetic'\nwidth = 16\nheight = 16\nfps = '1/15'\nstreams = ['north', 'south', 'west', 'guest-{hour}']\n\
         [operators.{operator}]\ntype = 'checksum'\ninputs = ['cameras']\n\
         [sinks.events]\ntype = 'sse'\ninputs = ['{operator}']\n{branch}\
         [chaos]\nseed = 3\n\
         nodes.cameras = {{ flap = '1h', loss = 0.02, pts_jump = {{ every = '3h', by = '-20m' }} }}\n\
         nodes.{operator}.panic = 0.01\nnodes.events.fail = 0.01\n"
    )
}

/// A door that is seen every ten minutes, and a sink that takes seconds for each picture.
const DOOR: &str = "[sources.doors]\ntype = 'synthetic'\nwidth = 16\nheight = 16\nfps = '1/600'\nstreams = ['door']\n\
     [operators.sum]\ntype = 'checksum'\ninputs = ['doors']\n\
     [sinks.slow]\ntype = 'blackhole'\ninputs = ['sum']\n\
     [chaos]\nseed = 4\nnodes.slow.latency = '20s'\n";

#[test]
fn a_day_leaves_the_engine_as_it_was_after_the_first_hour() {
    let clock = DayClock::new();
    let options = Options { workers: 2, pool_threads: 2, clock: clock.clone(), dataflow_log: None };
    let engine = Engine::start(options).expect("it starts");
    let surroundings =
        Surroundings { clock: clock.clone(), chaos: true, ..Surroundings::of_process(Arc::new(Catalog::default())) };
    let settings = GraphSettings {
        surroundings,
        settings: Vec::new(),
        references: References::Anything,
        options: PlanOptions { workers: Some(2), pool_threads: Some(2), cores: 2 },
        drain: Duration::from_secs(30),
        patience: Patience::default(),
        stay: true,
        saved: None,
        refuse: Box::new(|_| Ok(())),
        on_models: Box::new(|_| {}),
    };
    let graphs = Arc::new(Graphs::new(engine.clone(), settings));
    let mut day = Day { clock: clock.clone(), graphs: graphs.clone(), reloads: 0 };
    day.load("yard", &cameras(0));
    day.load("door", DOOR);
    let mut first = None;
    for hour in 1..=24 {
        day.pass(HOUR / 4);
        // A visitor: a stream that is there for half an hour.
        let visitor = StreamId::new(&format!("visitor-{hour}")).expect("a name");
        let own = toml::Value::Table(toml::Table::new());
        let posted = PostedStream { source: "cameras".into(), own, references: References::Anything };
        graphs.add_stream("yard", &visitor, posted).unwrap_or_else(|error| panic!("hour {hour}: {error}"));
        day.pass(HOUR / 2);
        graphs.remove_stream(&visitor, Duration::from_secs(30)).unwrap_or_else(|error| panic!("hour {hour}: {error}"));
        day.load("yard", &cameras(hour));
        day.pass(HOUR / 4);
        let report = day.come_to_rest();
        for graph in &report.graphs {
            assert!(graph.total.conserved(), "hour {hour}: {graph:#?}");
            assert_eq!(graph.total.lost, 0, "hour {hour}: {graph:#?}");
        }
        // The same version of the graph as after the first hour.
        if hour == 1 {
            first = Some(day.settled_size());
        }
        if hour == 23 {
            assert_eq!(Some(day.settled_size()), first, "after {hour} hours, and after the first");
        }
    }
    assert_eq!(day.reloads, 26);
    let (_requests, inbox) = bounded(1);
    graphs.close(Request::Drain);
    // Slow sinks need time to end.
    let ended = std::thread::scope(|scope| {
        let finishing = scope.spawn(|| graphs.finish(&inbox));
        while !finishing.is_finished() {
            day.clock.settle(1, Duration::from_millis(2));
            day.clock.jump(day.clock.elapsed() + Duration::from_secs(1));
        }
        finishing.join().expect("no panic")
    });
    let mut total = Counts::default();
    for (counters, outcome) in &ended {
        assert!(outcome.is_success(), "{}: {outcome:?}", counters.name);
        let report = counters.report();
        assert!(report.total.conserved() && report.total.in_flight == 0, "{report:#?}");
        total = total.plus(report.total);
    }
    // Three cameras and a guest, 5760 pictures a day each where nothing is lost, and the visitors.
    assert!((23_500..28_000).contains(&total.read), "{total:?}");
    assert!(total.rejected > 50 && total.dropped > 200, "panics and losses: {total:?}");
    let reconnects: u64 = ended.iter().flat_map(|(counters, _)| counters.report().streams).map(|s| s.reconnects).sum();
    assert!(reconnects > 10, "flaps: {reconnects}");
    drop((day, graphs));
    engine.shutdown().expect("it ends");
}
