//! The live counters behind [`super::stats`]: raised where things happen, read when somebody asks.

mod node;
mod stream;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use operators::clock::Clock;
use operators::item::StreamId;
use operators::lease::Counts;
use operators::lock::lock;
use operators::operator::Trouble;

pub use node::NodeCounters;
use stream::Numbers;
pub use stream::{Place, StreamCounters, TapCounters};

use super::stats::{GraphReport, GraphState, StreamReport};
use crate::graph::chaos::Chaos;

/// Everything that is counted in one graph.
pub struct GraphCounters {
    pub name: Arc<str>,
    pub clock: Arc<dyn Clock>,
    streams: Mutex<Vec<Arc<StreamCounters>>>,
    nodes: Mutex<Vec<Arc<NodeCounters>>>,
    /// Where sources that look for streams say what keeps them from it.
    looking: Mutex<BTreeMap<Arc<str>, Trouble>>,
    /// What streams counted that are not listed any more.
    gone: Mutex<Counts>,
    /// Those that each of them would go on with: ids of records and names of files are made of them. At most
    /// [`MOST_REMEMBERED`].
    numbers: Mutex<BTreeMap<StreamId, Numbers>>,
    /// How often the graph was loaded.
    generation: AtomicU64,
    /// What is disturbed on purpose.
    chaos: Mutex<Option<Chaos>>,
    status: Mutex<GraphStatus>,
}

struct GraphStatus {
    state: GraphState,
    reason: Option<String>,
    running_since: Option<Instant>,
    ended: Option<Instant>,
}

/// Streams that are not listed any more whose numbers are remembered.
const MOST_REMEMBERED: usize = 10_000;

impl GraphCounters {
    /// Of a graph whose generation before was `generation`.
    pub fn new(name: Arc<str>, clock: Arc<dyn Clock>, generation: u64) -> GraphCounters {
        let status = GraphStatus { state: GraphState::Starting, reason: None, running_since: None, ended: None };
        GraphCounters {
            name,
            clock,
            streams: Mutex::default(),
            nodes: Mutex::default(),
            looking: Mutex::default(),
            gone: Mutex::default(),
            numbers: Mutex::default(),
            generation: AtomicU64::new(generation),
            chaos: Mutex::default(),
            status: Mutex::new(status),
        }
    }

    pub fn streams(&self) -> Vec<Arc<StreamCounters>> {
        lock(&self.streams).clone()
    }

    pub fn stream(&self, id: &str) -> Option<Arc<StreamCounters>> {
        lock(&self.streams).iter().find(|stream| &*stream.stream == id).cloned()
    }

    /// The counters of a stream: those that it had before, or new ones.
    pub fn open_stream(&self, id: &StreamId, place: Place) -> Arc<StreamCounters> {
        let now = self.clock.now();
        let mut streams = lock(&self.streams);
        if let Some(known) = streams.iter().find(|stream| stream.stream == *id) {
            known.start_again(place, now);
            return known.clone();
        }
        let counters = Arc::new(StreamCounters::new(id.clone(), place, self.clock.clone()));
        if let Some(numbers) = lock(&self.numbers).remove(id) {
            counters.go_on_from(numbers);
        }
        streams.push(counters.clone());
        counters
    }

    /// Lists a stream no more. What it counted stays in the total.
    pub fn close_stream(&self, id: &StreamId) {
        let mut streams = lock(&self.streams);
        if let Some(position) = streams.iter().position(|stream| stream.stream == *id) {
            let stream = streams.remove(position);
            let mut gone = lock(&self.gone);
            *gone = gone.plus(stream.account.snapshot());
            let mut numbers = lock(&self.numbers);
            if numbers.len() >= MOST_REMEMBERED {
                numbers.pop_first();
            }
            numbers.insert(id.clone(), stream.numbers());
        }
    }

    pub fn nodes(&self) -> Vec<Arc<NodeCounters>> {
        lock(&self.nodes).clone()
    }

    /// A source looks for streams, and says in `trouble` what keeps it from that; `None`: it looks no more.
    pub fn set_looking(&self, source: &Arc<str>, trouble: Option<Trouble>) {
        let mut looking = lock(&self.looking);
        match trouble {
            Some(trouble) => looking.insert(source.clone(), trouble),
            None => looking.remove(source),
        };
    }

    /// Which sources cannot look for streams just now, and why.
    pub fn blind(&self) -> Vec<(Arc<str>, String)> {
        let looking = lock(&self.looking);
        looking.iter().filter_map(|(source, trouble)| Some((source.clone(), trouble.now()?))).collect()
    }

    /// The counters of a node: those of the generation before, or new ones, which count from [`Self::set_nodes`] on.
    pub fn node(
        &self,
        name: &Arc<str>,
        type_name: &'static str,
        role: &'static str,
        workers: usize,
    ) -> Arc<NodeCounters> {
        let same = |node: &&Arc<NodeCounters>| node.name == *name && node.type_name == type_name && node.role == role;
        let known = lock(&self.nodes).iter().find(same).cloned();
        let now = self.clock.now();
        known.unwrap_or_else(|| Arc::new(NodeCounters::new(name.clone(), type_name, role, workers, now)))
    }

    /// What is disturbed on purpose, if anything is.
    pub fn chaos(&self) -> Option<Chaos> {
        lock(&self.chaos).clone()
    }

    /// A generation with these nodes is there, in which `chaos` disturbs some.
    pub fn set_nodes(&self, nodes: Vec<Arc<NodeCounters>>, chaos: Option<Chaos>) {
        for stream in self.streams() {
            stream.account.keep_work(|name| nodes.iter().any(|node| *node.name == *name));
        }
        *lock(&self.nodes) = nodes;
        *lock(&self.chaos) = chaos;
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// How often the graph was loaded; 0 before it is there.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn state(&self) -> (GraphState, Option<String>) {
        let status = lock(&self.status);
        (status.state, status.reason.clone())
    }

    /// Moves to another state. A failure keeps its first reason and is final.
    pub fn set_state(&self, state: GraphState, reason: Option<String>) {
        let now = self.clock.now();
        let mut status = lock(&self.status);
        if status.state == GraphState::Failed {
            status.ended.get_or_insert(now);
            return;
        }
        match state {
            GraphState::Running => {
                status.running_since.get_or_insert(now);
            }
            GraphState::Finished | GraphState::Failed => {
                status.ended.get_or_insert(now);
            }
            GraphState::Starting | GraphState::Draining => {}
        }
        status.state = state;
        if reason.is_some() {
            status.reason = reason;
        }
    }

    /// Takes the readings that rates and shares of the last seconds are made of. To be called a few times a second.
    pub fn take_readings(&self, now: Instant) {
        self.streams().iter().for_each(|stream| stream.take_reading(now));
        self.nodes().iter().for_each(|node| node.take_reading(now));
    }

    pub fn report(&self) -> GraphReport {
        let now = self.clock.now();
        let (state, reason, running) = {
            let status = lock(&self.status);
            let end = status.ended.unwrap_or(now);
            let running = status.running_since.map_or(Duration::ZERO, |since| end.saturating_duration_since(since));
            (status.state, status.reason.clone(), running)
        };
        let streams: Vec<StreamReport> = self.streams().iter().map(|stream| stream.report(now)).collect();
        let gone = *lock(&self.gone);
        let total = streams.iter().fold(gone, |sum, stream| sum.plus(stream.counts));
        GraphReport {
            name: self.name.to_string(),
            generation: self.generation(),
            state,
            reason,
            chaos: self.chaos(),
            running_seconds: running.as_secs_f64(),
            streams,
            nodes: self.nodes().iter().map(|node| node.report(now)).collect(),
            total,
            culprit: None,
        }
    }
}

/// Whether the `n`th error of a kind is worth a line in the log: the first, and then at every power of two.
pub fn worth_logging(nth: u64) -> bool {
    nth.is_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::stats::StreamState;
    use operators::clock::SimulatedClock;

    #[test]
    fn the_rate_of_a_stream_that_is_read_anew_is_of_what_came_since() {
        let clock = Arc::new(SimulatedClock::default());
        let graph = GraphCounters::new("yard".into(), clock.clone(), 0);
        let (id, now) = (StreamId::new("cam").unwrap(), || clock.now());
        let place = Place {
            source: "cams".into(),
            location: "x".into(),
            patience: Duration::ZERO,
            is_live: true,
            makes_files: false,
        };
        let stream = graph.open_stream(&id, place.clone());
        stream.connected(now());
        stream.account.read(1000);
        clock.advance(Duration::from_secs(100));
        assert_eq!(stream.report(now()).fps_in.round(), 10.0);
        stream.set_state(StreamState::Stopped, None, now());
        graph.open_stream(&id, place);
        clock.advance(Duration::from_secs(5));
        assert_eq!(stream.report(now()).fps_in, 0.0, "it connects");
        stream.connected(now());
        stream.account.read(20);
        clock.advance(Duration::from_secs(2));
        let report = stream.report(now());
        assert_eq!((report.fps_in.round(), report.counts.read), (10.0, 1020));
    }
}
