//! The live counters behind [`super::stats`]: raised where things happen, read when somebody asks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use operators::busy::BusyTime;
use operators::clock::Clock;
use operators::encoding::{EncoderReading, Encoding};
use operators::item::{StreamId, time_text};
use operators::lease::{Account, Budget, Counts};
use operators::made::Indices;
use operators::operator::Trouble;

use super::histogram::{Turns, of_ages};
use super::mailbox::Mailbox;
use super::preview::PreviewSlot;
use super::stats::{
    BusyReport, Drops, EncoderReport, GraphReport, GraphState, NodeReport, Quantiles, StreamMistake, StreamMoment,
    StreamReport, StreamState, StreamView, TapReport, Work, WorkState,
};
use super::window::{Window, per_second};
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

/// Where a stream goes on that comes back.
struct Numbers {
    /// Of the next picture.
    picture: u64,
    /// Of the next packet.
    packet: u64,
    files: Indices,
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
        if let Some(Numbers { picture, packet, files }) = lock(&self.numbers).remove(id) {
            counters.next_seq.store(picture, Ordering::Relaxed);
            counters.next_packet.store(packet, Ordering::Relaxed);
            counters.account.made.go_on_from(files);
            // It begins anew.
            counters.account.made.clear();
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
            let (picture, packet) = (stream.next_seq(), stream.next_packet());
            numbers.insert(id.clone(), Numbers { picture, packet, files: stream.account.made.indices() });
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

/// Where a stream comes from.
#[derive(Clone, Debug)]
pub struct Place {
    /// The name of the source's node.
    pub source: Arc<str>,
    /// For people, with its secrets covered.
    pub location: String,
    /// Without progress for this long, the source counts as stuck.
    pub patience: Duration,
    /// Whether time passes while it is read.
    pub is_live: bool,
    /// Whether files are made of it, and taken somewhere.
    pub makes_files: bool,
}

/// A stream's way into one tap.
pub struct TapCounters {
    /// `SOURCE -> READER`: what drops there are counted under.
    pub name: Arc<str>,
    /// The node that reads the tap.
    pub reader: Arc<str>,
    pub budget: Arc<Budget>,
}

/// What a stream's counters said at one moment.
struct StreamReading {
    counts: Counts,
    drops: Vec<(Arc<str>, &'static str, u64)>,
    /// By the node that reads the tap.
    blocked: BTreeMap<Arc<str>, Duration>,
    /// By the node that worked.
    work: Vec<(Arc<str>, Duration)>,
}

/// How many changes of its state a stream remembers.
const REMEMBERED: usize = 16;

/// The counters of one stream in one graph.
pub struct StreamCounters {
    pub stream: StreamId,
    clock: Arc<dyn Clock>,
    /// It was added while the graph ran.
    posted: AtomicBool,
    place: Mutex<Place>,
    pub account: Arc<Account>,
    pub decoded: AtomicU64,
    pub converted: AtomicU64,
    pub skipped: AtomicU64,
    packets: AtomicU64,
    /// The number of the next picture.
    next_seq: AtomicU64,
    /// The number of the next packet.
    next_packet: AtomicU64,
    /// One for each tap of the source, in the order of the plan.
    taps: Mutex<Vec<TapCounters>>,
    /// How long the source has waited for room in a tap, by the node that reads it.
    blocked: Mutex<BTreeMap<Arc<str>, BusyTime>>,
    window: Mutex<Window<StreamReading>>,
    /// Where somebody who looks at the stream gets its pictures.
    pub preview: Arc<PreviewSlot>,
    repaired: Mutex<BTreeMap<&'static str, u64>>,
    /// Seconds of media, where its input says so.
    duration: Mutex<Option<f64>>,
    /// Where its source says what keeps it from reading on.
    trouble: Mutex<Option<Trouble>>,
    status: Mutex<StreamStatus>,
}

struct StreamStatus {
    state: StreamState,
    reason: Option<String>,
    attempts: Option<u64>,
    reconnects: u64,
    /// When it began to be read, this time.
    begun: Instant,
    started: Instant,
    /// What was counted before: of a stream that is read anew the counts go on.
    before: Counts,
    progress: Instant,
    ended: Option<Instant>,
    blocked_by: Option<Arc<str>>,
    /// The latest states, the oldest first. Attempts in a row are one.
    history: VecDeque<Moment>,
    last_error: Option<(Instant, String)>,
}

/// A state that a stream came into.
#[derive(Clone, Debug)]
struct Moment {
    state: StreamState,
    reason: Option<String>,
    since: Instant,
}

impl StreamStatus {
    /// The stream is in another state, or in the same for another reason.
    fn remember(&mut self, now: Instant) {
        if let Some(reason) = self.reason.as_ref().filter(|_| self.state != StreamState::Ended) {
            self.last_error = Some((now, reason.clone()));
        }
        match self.history.back_mut() {
            Some(last) if last.state == self.state => last.reason = self.reason.clone(),
            _ => {
                let moment = Moment { state: self.state, reason: self.reason.clone(), since: now };
                self.history.push_back(moment);
                if self.history.len() > REMEMBERED {
                    self.history.pop_front();
                }
            }
        }
    }
}

impl StreamCounters {
    pub fn new(stream: StreamId, place: Place, clock: Arc<dyn Clock>) -> StreamCounters {
        let now = clock.now();
        let mut status = StreamStatus {
            state: StreamState::Connecting,
            reason: None,
            attempts: None,
            reconnects: 0,
            begun: now,
            started: now,
            before: Counts::default(),
            progress: now,
            ended: None,
            blocked_by: None,
            history: VecDeque::new(),
            last_error: None,
        };
        status.remember(now);
        let first =
            StreamReading { counts: Counts::default(), drops: Vec::new(), blocked: BTreeMap::new(), work: Vec::new() };
        StreamCounters {
            stream,
            clock,
            posted: AtomicBool::new(false),
            place: Mutex::new(place),
            account: Arc::default(),
            decoded: AtomicU64::new(0),
            converted: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            packets: AtomicU64::new(0),
            next_seq: AtomicU64::new(0),
            next_packet: AtomicU64::new(0),
            taps: Mutex::default(),
            blocked: Mutex::default(),
            window: Mutex::new(Window::new(now, first)),
            preview: Arc::default(),
            repaired: Mutex::default(),
            duration: Mutex::default(),
            trouble: Mutex::default(),
            status: Mutex::new(status),
        }
    }

    /// The stream is read anew, perhaps from elsewhere.
    fn start_again(&self, place: Place, now: Instant) {
        *lock(&self.place) = place;
        self.preview.set_over(false);
        let mut status = lock(&self.status);
        (status.state, status.reason, status.attempts) = (StreamState::Connecting, None, None);
        (status.begun, status.progress, status.ended) = (now, now, None);
        (status.started, status.before) = (now, self.account.snapshot());
        self.account.made.clear();
        *lock(&self.duration) = None;
        status.remember(now);
    }

    /// Whether it was added while the graph ran.
    pub fn is_posted(&self) -> bool {
        self.posted.load(Ordering::Relaxed)
    }

    pub fn set_posted(&self, posted: bool) {
        self.posted.store(posted, Ordering::Relaxed);
    }

    pub fn place(&self) -> Place {
        lock(&self.place).clone()
    }

    /// The names of the taps that it goes through.
    pub fn taps(&self) -> Vec<Arc<str>> {
        lock(&self.taps).iter().map(|tap| tap.name.clone()).collect()
    }

    /// The same input is read behind another node's name, or for another graph's files.
    pub fn set_place(&self, place: Place) {
        *lock(&self.place) = place;
    }

    pub fn set_budgets(&self, taps: Vec<TapCounters>) {
        *lock(&self.taps) = taps;
    }

    /// A picture came, with the number `seq`.
    pub fn came(&self, seq: u64, now: Instant) {
        self.next_seq.fetch_max(seq + 1, Ordering::Relaxed);
        self.progress(now);
    }

    /// A packet came, with the number `seq`.
    pub fn packet_came(&self, seq: u64, now: Instant) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.next_packet.fetch_max(seq + 1, Ordering::Relaxed);
        self.progress(now);
    }

    /// The number of the next packet, also where something else reads the stream.
    pub fn next_packet(&self) -> u64 {
        self.next_packet.load(Ordering::Relaxed)
    }

    /// The number of the next picture, also where something else reads the stream.
    pub fn next_seq(&self) -> u64 {
        self.next_seq.load(Ordering::Relaxed)
    }

    pub fn state(&self) -> (StreamState, Option<String>) {
        let status = lock(&self.status);
        (status.state, status.reason.clone())
    }

    pub fn set_state(&self, state: StreamState, reason: Option<String>, now: Instant) {
        let is_over = matches!(state, StreamState::Ended | StreamState::Stopped | StreamState::Failed);
        self.preview.set_over(is_over);
        let mut status = lock(&self.status);
        if status.state == StreamState::Connecting && state == StreamState::Running {
            (status.started, status.before) = (now, self.account.snapshot());
        }
        if is_over {
            status.ended = Some(now);
        }
        status.state = state;
        status.reason = reason;
        status.attempts = None;
        status.progress = now;
        status.remember(now);
    }

    /// The input is there: pictures come, for the first time or again.
    pub fn connected(&self, now: Instant) {
        self.preview.set_over(false);
        let mut status = lock(&self.status);
        match status.state {
            StreamState::Connecting => (status.started, status.before) = (now, self.account.snapshot()),
            StreamState::Retrying | StreamState::Fallback => status.reconnects += 1,
            _ => {}
        }
        status.state = StreamState::Running;
        (status.reason, status.attempts) = (None, None);
        status.progress = now;
        status.remember(now);
    }

    /// The input is lost, which is no progress. Answers the state before.
    pub fn lost(&self, state: StreamState, reason: String, attempts: u64) -> StreamState {
        // Who looks at a camera that is away sees its last picture at once. Its fallback has pictures.
        self.preview.set_over(state == StreamState::Retrying);
        let mut status = lock(&self.status);
        (status.reason, status.attempts) = (Some(reason), Some(attempts));
        let before = std::mem::replace(&mut status.state, state);
        status.remember(self.clock.now());
        before
    }

    /// Where its source says from here on what keeps it from reading on.
    pub fn set_trouble(&self, trouble: Option<Trouble>) {
        *lock(&self.trouble) = trouble;
    }

    /// What keeps its source from reading on just now.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.trouble).as_ref().and_then(Trouble::now)
    }

    /// How long its input is, in seconds, where that says so.
    pub fn set_duration(&self, duration: Option<f64>) {
        *lock(&self.duration) = duration;
    }

    /// How far the files are that are made of it, where some are.
    fn work(&self, status: &StreamStatus, time: impl Fn(Instant) -> String) -> Option<Work> {
        if !lock(&self.place).makes_files {
            return None;
        }
        let (files, counts) = (self.account.made.files(), self.account.snapshot());
        let duration = *lock(&self.duration);
        let state = match status.state {
            StreamState::Failed => WorkState::Error,
            StreamState::Ended | StreamState::Stopped if counts.in_flight > 0 => WorkState::Uploading,
            StreamState::Ended if files.failed > 0 => WorkState::Error,
            StreamState::Ended => WorkState::Completed,
            StreamState::Stopped => WorkState::Stopped,
            _ if files.made == 0 => WorkState::Downloading,
            _ => WorkState::Chunking,
        };
        let is_over = matches!(state, WorkState::Error | WorkState::Completed | WorkState::Stopped);
        let ended = status.ended.filter(|_| is_over).max(files.last.filter(|_| is_over));
        let percent = match (state, duration) {
            (WorkState::Completed, _) => Some(100.0),
            (_, Some(seconds)) if seconds > 0.0 => Some((files.seconds / seconds * 1000.0).round().min(1000.0) / 10.0),
            _ => None,
        };
        Some(Work {
            state,
            percent,
            started: time(status.begun),
            ended: ended.map(time),
            duration,
            made: files.made,
            uploaded: files.uploaded,
            failed: files.failed,
            chunks: files.latest,
        })
    }

    /// Everything that is known of the stream.
    pub fn view(&self) -> StreamView {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let time = |at: Instant| wall.checked_sub(now.saturating_duration_since(at)).map(time_text).unwrap_or_default();
        let report = self.report(now);
        let status = lock(&self.status);
        let moment = |moment: &Moment| StreamMoment {
            state: moment.state,
            since: time(moment.since),
            reason: moment.reason.clone(),
        };
        let last_error = status.last_error.as_ref();
        StreamView {
            posted: self.is_posted(),
            history: status.history.iter().map(moment).collect(),
            work: self.work(&status, time),
            last_error: last_error.map(|(at, text)| StreamMistake { time: time(*at), message: text.clone() }),
            report,
        }
    }

    pub fn progress(&self, now: Instant) {
        lock(&self.status).progress = now;
    }

    /// The source begins to wait for room in the tap `name` that `reader` reads.
    pub fn blocked(&self, name: &Arc<str>, reader: &Arc<str>) {
        lock(&self.blocked).entry(reader.clone()).or_default().begin(self.clock.now());
        lock(&self.status).blocked_by = Some(name.clone());
    }

    /// The source waits no more.
    pub fn unblocked(&self, reader: &Arc<str>) {
        if let Some(blocked) = lock(&self.blocked).get(reader) {
            blocked.end(self.clock.now());
        }
        lock(&self.status).blocked_by = None;
    }

    fn reading(&self, now: Instant) -> StreamReading {
        let blocked = lock(&self.blocked).iter().map(|(reader, time)| (reader.clone(), time.total(now))).collect();
        let (counts, drops, work) = (self.account.snapshot(), self.account.drops(), self.account.work());
        StreamReading { counts, drops, blocked, work }
    }

    fn take_reading(&self, now: Instant) {
        let reading = self.reading(now);
        lock(&self.window).note(now, reading);
    }

    /// Counts a repair; the first of its kind answers `true`.
    pub fn repaired(&self, what: &'static str) -> bool {
        let mut repaired = lock(&self.repaired);
        let count = repaired.entry(what).or_default();
        *count += 1;
        *count == 1
    }

    /// How long the source has made no progress, unless it has ended.
    pub fn idle(&self, now: Instant) -> Duration {
        let status = lock(&self.status);
        if status.ended.is_some() { Duration::ZERO } else { now.saturating_duration_since(status.progress) }
    }

    fn report(&self, now: Instant) -> StreamReport {
        let reading = self.reading(now);
        let counts = reading.counts;
        let ages = self.account.ages();
        let milliseconds = |micros: u64| micros as f64 / 1000.0;
        let quantile = |q: f64| milliseconds(ages.value_at_quantile(q));
        let idle = self.idle(now);
        let recent = self.recent(&reading, now);
        let status = lock(&self.status);
        let seconds = status.ended.unwrap_or(now).saturating_duration_since(status.started).as_secs_f64();
        let a_second = |count: u64, before: u64| per_second(count.saturating_sub(before) as f64, seconds);
        let before = status.before;
        let place = self.place();
        StreamReport {
            stream: self.stream.to_string(),
            source: place.source.to_string(),
            location: place.location,
            live: place.is_live,
            state: status.state,
            reason: status.reason.clone().or_else(|| self.trouble()),
            attempts: status.attempts,
            reconnects: status.reconnects,
            counts,
            decoded: self.decoded.load(Ordering::Relaxed),
            converted: self.converted.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
            packets: self.packets.load(Ordering::Relaxed),
            repaired: lock(&self.repaired).clone(),
            fps_in: a_second(counts.read, before.read),
            fps_delivered: a_second(counts.delivered, before.delivered),
            rate_in: recent.read,
            rate_delivered: recent.delivered,
            rate_dropped: recent.dropped,
            age_ms: Quantiles {
                p50: quantile(0.5),
                p90: quantile(0.9),
                p99: quantile(0.99),
                max: milliseconds(ages.max()),
            },
            ages: of_ages(&ages),
            idle_ms: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX),
            drops: recent.drops,
            blocked_by: status.blocked_by.as_ref().map(ToString::to_string),
            blocked_share: recent.taps.iter().map(|tap| tap.blocked_share).sum::<f64>().min(1.0),
            held_items: recent.taps.iter().map(|tap| tap.held_items).sum(),
            held_bytes: recent.taps.iter().map(|tap| tap.held_bytes).sum(),
            held_bytes_peak: recent.taps.iter().map(|tap| tap.held_bytes_peak).sum(),
            held_bytes_limit: recent.taps.iter().map(|tap| tap.held_bytes_limit).sum(),
            taps: recent.taps,
            busy: recent.busy,
            culprit: None,
        }
    }

    /// What happened in the window that ends now.
    fn recent(&self, reading: &StreamReading, now: Instant) -> Recent {
        let window = lock(&self.window);
        let start = window.start(now);
        let seconds = start.map_or(0.0, |(_, seconds)| seconds);
        let before = start.map(|(reading, _)| reading);
        let rate = |count: fn(&Counts) -> u64| {
            let earlier = before.map_or(0, |before| count(&before.counts));
            per_second(count(&reading.counts).saturating_sub(earlier) as f64, seconds)
        };
        let drops = reading.drops.iter().map(|(node, reason, count)| {
            let mut earlier = before.into_iter().flat_map(|before| &before.drops);
            let earlier =
                earlier.find(|(other, why, _)| other == node && why == reason).map_or(0, |(.., count)| *count);
            let rate = per_second(count.saturating_sub(earlier) as f64, seconds);
            Drops { node: node.to_string(), reason, count: *count, rate }
        });
        let taps = lock(&self.taps);
        let taps = taps.iter().map(|tap| {
            let total = reading.blocked.get(&tap.reader).copied().unwrap_or_default();
            let earlier = before.and_then(|before| before.blocked.get(&tap.reader)).copied().unwrap_or_default();
            let (items, bytes, peak) = tap.budget.used();
            let limits = tap.budget.limits();
            TapReport {
                tap: tap.name.to_string(),
                reader: tap.reader.to_string(),
                blocked_share: per_second(total.saturating_sub(earlier).as_secs_f64(), seconds).min(1.0),
                blocked_seconds: total.as_secs_f64(),
                held_items: u64::from(items),
                held_items_limit: u64::from(limits.items),
                held_bytes: bytes,
                held_bytes_peak: peak,
                held_bytes_limit: limits.bytes,
            }
        });
        let busy = reading.work.iter().map(|(node, total)| {
            let mut earlier = before.into_iter().flat_map(|before| &before.work);
            let earlier = earlier.find(|(other, _)| other == node).map_or(Duration::ZERO, |(_, total)| *total);
            BusyReport {
                node: node.to_string(),
                busy_share: per_second(total.saturating_sub(earlier).as_secs_f64(), seconds),
                busy_seconds: total.as_secs_f64(),
            }
        });
        Recent {
            busy: busy.collect(),
            read: rate(|counts| counts.read),
            delivered: rate(|counts| counts.delivered),
            dropped: rate(|counts| counts.dropped),
            drops: drops.collect(),
            taps: taps.collect(),
        }
    }
}

/// What a stream did over the window.
struct Recent {
    read: f64,
    delivered: f64,
    dropped: f64,
    drops: Vec<Drops>,
    taps: Vec<TapReport>,
    busy: Vec<BusyReport>,
}

/// The counters of one node.
pub struct NodeCounters {
    pub name: Arc<str>,
    pub type_name: &'static str,
    pub role: &'static str,
    items: Vec<AtomicU64>,
    turns: Turns,
    /// For each worker, and behind them for the workshop; what else works elsewhere counts under the first.
    busy: Vec<BusyTime>,
    queued: AtomicU64,
    /// For each worker: when its oldest unfinished item was decoded, in microseconds since `made`, plus one; 0: none.
    oldest: Vec<AtomicU64>,
    made: Instant,
    inputs: Mutex<Vec<Arc<str>>>,
    /// What a tap drains, by worker.
    mailboxes: Mutex<BTreeMap<usize, Weak<Mailbox>>>,
    window: Mutex<Window<NodeReading>>,
    errors: AtomicU64,
    last_error: Mutex<Option<(String, Instant)>>,
    /// Where a sink says what keeps it from getting on.
    trouble: Mutex<Option<Trouble>>,
    /// It does not say so, and what it is given it takes without delay.
    must_get_on: AtomicBool,
    /// What its encoders count.
    encoding: Mutex<Option<Arc<Encoding>>>,
}

/// What a node's counters said at one moment.
struct NodeReading {
    items: u64,
    /// By worker, and behind them in the workshop.
    busy: Vec<Duration>,
    encoders: Vec<EncoderReading>,
}

impl NodeCounters {
    pub fn new(
        name: Arc<str>,
        type_name: &'static str,
        role: &'static str,
        workers: usize,
        now: Instant,
    ) -> NodeCounters {
        let zeros = || (0..workers).map(|_| AtomicU64::new(0)).collect();
        NodeCounters {
            name,
            type_name,
            role,
            items: zeros(),
            turns: Turns::default(),
            busy: (0..=workers).map(|_| BusyTime::default()).collect(),
            queued: AtomicU64::new(0),
            oldest: zeros(),
            made: now,
            inputs: Mutex::default(),
            mailboxes: Mutex::default(),
            window: Mutex::new(Window::new(
                now,
                NodeReading { items: 0, busy: vec![Duration::ZERO; workers + 1], encoders: Vec::new() },
            )),
            errors: AtomicU64::new(0),
            last_error: Mutex::default(),
            trouble: Mutex::default(),
            must_get_on: AtomicBool::new(false),
            encoding: Mutex::default(),
        }
    }

    pub fn items(&self, worker: usize, count: u64) {
        if let Some(items) = self.items.get(worker) {
            items.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// A turn of work begins on a worker; what works elsewhere counts under worker 0.
    pub fn begin(&self, worker: usize, now: Instant) {
        if let Some(busy) = self.busy.get(worker) {
            busy.begin(now);
        }
    }

    /// A turn of work that took `time` is over.
    pub fn end(&self, worker: usize, time: Duration, now: Instant) {
        self.rest(worker, now);
        self.took(time);
    }

    /// The workshop begins to make something for this node.
    pub fn begin_making(&self, now: Instant) {
        if let Some(busy) = self.busy.last() {
            busy.begin(now);
        }
    }

    /// The workshop has made what it began with [`Self::begin_making`], which took `time`.
    pub fn end_making(&self, time: Duration, now: Instant) {
        if let Some(busy) = self.busy.last() {
            busy.end(now);
        }
        self.took(time);
    }

    /// What began with [`Self::begin`] is over; how long each of its items took is said by [`Self::took`].
    pub fn rest(&self, worker: usize, now: Instant) {
        if let Some(busy) = self.busy.get(worker) {
            busy.end(now);
        }
    }

    /// How many workers it may be at work on.
    pub fn workers(&self) -> usize {
        self.busy.len()
    }

    /// Since when it works on a worker without coming to an end of anything.
    pub fn stands_since(&self, worker: usize) -> Option<Instant> {
        self.busy.get(worker).and_then(BusyTime::stands_since)
    }

    /// Whether a turn that does not come to an end is a problem: not where the node says itself what holds it up.
    pub fn set_must_get_on(&self, must: bool) {
        self.must_get_on.store(must, Ordering::Relaxed);
    }

    /// How long it has taken nothing of what it was given, where that is a problem.
    pub fn stands(&self, now: Instant) -> Option<Duration> {
        let since = self.stands_since(0).filter(|_| self.must_get_on.load(Ordering::Relaxed))?;
        Some(now.saturating_duration_since(since))
    }

    /// What the node reads.
    pub fn inputs(&self) -> Vec<Arc<str>> {
        lock(&self.inputs).clone()
    }

    /// An item took `time`.
    pub fn took(&self, time: Duration) {
        self.turns.record(time);
    }

    /// Says when the oldest item that waits, or is worked on, was decoded; `None` where there is none.
    pub fn set_oldest(&self, worker: usize, born: Option<Instant>) {
        let mark = born.map_or(0, |born| {
            let micros = born.saturating_duration_since(self.made).as_micros();
            u64::try_from(micros).unwrap_or(u64::MAX - 1) + 1
        });
        if let Some(oldest) = self.oldest.get(worker) {
            oldest.store(mark, Ordering::Relaxed);
        }
    }

    /// Says what the node reads.
    pub fn set_inputs(&self, inputs: Vec<Arc<str>>) {
        *lock(&self.inputs) = inputs;
    }

    /// A tap drains this mailbox on a worker, from here on.
    pub fn drains(&self, worker: usize, mailbox: &Arc<Mailbox>) {
        lock(&self.mailboxes).insert(worker, Arc::downgrade(mailbox));
    }

    fn take_reading(&self, now: Instant) {
        let reading = self.reading(now);
        lock(&self.window).note(now, reading);
    }

    fn reading(&self, now: Instant) -> NodeReading {
        NodeReading {
            items: self.items.iter().map(|items| items.load(Ordering::Relaxed)).sum(),
            busy: self.busy.iter().map(|busy| busy.total(now)).collect(),
            encoders: lock(&self.encoding).as_ref().map_or_else(Vec::new, |encoding| encoding.readings(now)),
        }
    }

    /// What encoders did, with what of it was done since `before`, which is so many seconds ago.
    fn encoders(&self, readings: &[EncoderReading], before: Option<(&NodeReading, f64)>) -> Vec<EncoderReport> {
        let threads = lock(&self.encoding).as_ref().map_or(0, |encoding| encoding.threads());
        let report = |reading: &EncoderReading| {
            let earlier =
                before.and_then(|(before, _)| before.encoders.iter().find(|old| old.stream == reading.stream));
            // One that was opened anew since then counts from zero.
            let earlier =
                earlier.filter(|earlier| earlier.busy <= reading.busy && earlier.pictures <= reading.pictures);
            let (busy, pictures) = earlier.map_or((Duration::ZERO, 0), |earlier| (earlier.busy, earlier.pictures));
            let seconds = before.map_or(0.0, |(_, seconds)| seconds);
            EncoderReport {
                stream: reading.stream.to_string(),
                threads,
                pictures: reading.pictures,
                rate: per_second((reading.pictures - pictures) as f64, seconds),
                busy_share: per_second((reading.busy - busy).as_secs_f64(), seconds).min(1.0),
                busy_seconds: reading.busy.as_secs_f64(),
                queued: reading.waiting,
            }
        };
        readings.iter().map(report).collect()
    }

    /// How many items wait, and how old the oldest is.
    fn waiting(&self, now: Instant) -> (u64, Option<Duration>) {
        let mailboxes: Vec<_> = lock(&self.mailboxes).values().filter_map(Weak::upgrade).collect();
        let (mut count, mut ages) = (self.queued.load(Ordering::Relaxed), Vec::new());
        for mailbox in mailboxes {
            let (items, born) = mailbox.waiting();
            count += items;
            ages.extend(born.map(|born| now.saturating_duration_since(born)));
        }
        let marks = self.oldest.iter().map(|oldest| oldest.load(Ordering::Relaxed)).filter(|mark| *mark > 0);
        let born = marks.map(|mark| self.made + Duration::from_micros(mark - 1));
        ages.extend(born.map(|born| now.saturating_duration_since(born)));
        (count, ages.into_iter().max())
    }

    /// Adds to, or takes from, what waits in front of the node.
    pub fn queued(&self, change: i64) {
        self.queued.fetch_add(change.cast_unsigned(), Ordering::Relaxed);
    }

    /// Counts an error and keeps its text; answers how many there have been.
    pub fn error(&self, text: &str, now: Instant) -> u64 {
        *lock(&self.last_error) = Some((text.to_owned(), now));
        self.errors.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Where the node says from here on what keeps it from getting on.
    pub fn set_trouble(&self, trouble: Option<Trouble>) {
        *lock(&self.trouble) = trouble;
    }

    /// Its encoders are these from here on.
    pub fn set_encoding(&self, encoding: &Arc<Encoding>) {
        *lock(&self.encoding) = Some(encoding.clone());
    }

    /// These encoders are not there any more. A writer that was opened in the meantime has others.
    pub fn end_encoding(&self, encoding: &Arc<Encoding>) {
        let mut known = lock(&self.encoding);
        if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, encoding)) {
            *known = None;
        }
    }

    /// What keeps it from getting on just now.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.trouble).as_ref().and_then(Trouble::now)
    }

    pub fn last_error(&self) -> Option<String> {
        lock(&self.last_error).as_ref().map(|(text, _)| text.clone())
    }

    /// Whether its last error is younger than `within`.
    pub fn failed_within(&self, within: Duration, now: Instant) -> bool {
        lock(&self.last_error).as_ref().is_some_and(|(_, at)| now.saturating_duration_since(*at) < within)
    }

    fn report(&self, now: Instant) -> NodeReport {
        let stages = self.turns.report();
        let reading = self.reading(now);
        let (queued, oldest) = self.waiting(now);
        let (rate, mut busy_by_worker, encoders): (f64, Vec<f64>, _) = {
            let window = lock(&self.window);
            let start = window.start(now);
            let encoders = self.encoders(&reading.encoders, start);
            match start {
                Some((before, seconds)) => {
                    let shares = reading
                        .busy
                        .iter()
                        .zip(&before.busy)
                        .map(|(now, before)| per_second(now.saturating_sub(*before).as_secs_f64(), seconds));
                    let rate = per_second(reading.items.saturating_sub(before.items) as f64, seconds);
                    (rate, shares.collect(), encoders)
                }
                None => (0.0, Vec::new(), encoders),
            }
        };
        let busy_share = busy_by_worker.iter().sum();
        let making_share = busy_by_worker.pop().unwrap_or_default();
        NodeReport {
            name: self.name.to_string(),
            type_name: self.type_name.to_owned(),
            role: self.role,
            inputs: lock(&self.inputs).iter().map(ToString::to_string).collect(),
            items: self.items.iter().map(|items| items.load(Ordering::Relaxed)).collect(),
            rate,
            errors: self.errors(),
            last_error: self.last_error(),
            busy_ms: stages.sum * 1000.0,
            busy_seconds: reading.busy.iter().sum::<Duration>().as_secs_f64(),
            busy_share,
            busy_by_worker,
            making_share,
            stages,
            queued,
            oldest_ms: oldest.map(|age| age.as_secs_f64() * 1000.0),
            encoders,
        }
    }
}

/// Whether the `n`th error of a kind is worth a line in the log: the first, and then at every power of two.
pub fn worth_logging(nth: u64) -> bool {
    nth.is_power_of_two()
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks, and what they guard is valid at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
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
