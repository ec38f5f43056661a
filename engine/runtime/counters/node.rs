//! What is counted of one node, on all workers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use operators::busy::BusyTime;
use operators::encoding::{EncoderReading, Encoding};
use operators::lock::lock;
use operators::operator::Trouble;

use crate::runtime::histogram::Turns;
use crate::runtime::mailbox::Mailbox;
use crate::runtime::stats::{EncoderReport, NodeReport};
use crate::runtime::window::{Window, per_second};

/// The counters of one node.
pub struct NodeCounters {
    pub name: Arc<str>,
    pub type_name: &'static str,
    pub role: &'static str,
    items: Vec<AtomicU64>,
    turns: Turns,
    /// For each worker, and behind them for the workshop; what else works elsewhere counts under the first.
    busy: Vec<BusyTime>,
    queued: AtomicI64,
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
            queued: AtomicI64::new(0),
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

    pub(super) fn take_reading(&self, now: Instant) {
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
        // Whoever takes something away may be counted before who brought it.
        let queued = self.queued.load(Ordering::Relaxed).max(0).cast_unsigned();
        let (mut count, mut ages) = (queued, Vec::new());
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
        self.queued.fetch_add(change, Ordering::Relaxed);
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

    /// This is not told any more. What a writer tells that was opened in the meantime stays.
    pub fn end_trouble(&self, trouble: &Trouble) {
        lock(&self.trouble).take_if(|told| told.is_same(trouble));
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

    pub(in crate::runtime) fn report(&self, now: Instant) -> NodeReport {
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
            trouble: self.trouble(),
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
