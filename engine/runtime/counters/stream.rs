//! What is counted of one stream in one graph.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use operators::busy::BusyTime;
use operators::clock::Clock;
use operators::item::{StreamId, time_text};
use operators::lease::{Account, Budget, Counts};
use operators::lock::lock;
use operators::made::Indices;
use operators::operator::Trouble;

use crate::runtime::histogram::of_ages;
use crate::runtime::preview::PreviewSlot;
use crate::runtime::stats::{
    BusyReport, Drops, Quantiles, StreamMistake, StreamMoment, StreamReport, StreamState, StreamView, TapReport, Work,
    WorkState,
};
use crate::runtime::window::{Window, per_second};

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

/// Where a stream goes on that comes back.
pub(super) struct Numbers {
    /// Of the next picture.
    picture: u64,
    /// Of the next packet.
    packet: u64,
    files: Indices,
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

    /// It begins with the numbers that an earlier stream of this name has left.
    pub(super) fn go_on_from(&self, Numbers { picture, packet, files }: Numbers) {
        self.next_seq.store(picture, Ordering::Relaxed);
        self.next_packet.store(packet, Ordering::Relaxed);
        self.account.made.go_on_from(files);
        // It begins anew.
        self.account.made.clear();
    }

    /// What a later stream of this name goes on with.
    pub(super) fn numbers(&self) -> Numbers {
        Numbers { picture: self.next_seq(), packet: self.next_packet(), files: self.account.made.indices() }
    }

    /// The stream is read anew, perhaps from elsewhere.
    pub(super) fn start_again(&self, place: Place, now: Instant) {
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

    pub(super) fn take_reading(&self, now: Instant) {
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

    pub(super) fn report(&self, now: Instant) -> StreamReport {
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
