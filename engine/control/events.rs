//! The hub of server-sent events: takes records from sinks, keeps the last ones, and hands them to subscribers.
//!
//! Publishing costs the same however many listen: the record is serialised once and put into a bounded ring. The
//! control thread ([`EventHub::dispatch`]) hands new events to the queues of the subscribers that want them; a queue
//! is bounded too, so a subscriber that reads slowly loses its own oldest events, hears how many, and slows nobody.
//! Queues share the ring's events, they do not copy them.
//!
//! Ids are `boot.counter`: `boot` tells one run of the process from another, `counter` counts its events from 1. The
//! wire format is that of the [HTML standard](https://html.spec.whatwg.org/multipage/server-sent-events.html). How the
//! bytes reach a socket is the server's business.

mod filter;
mod queue;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use operators::clock::Clock;
use operators::item::{Record, RecordBody};
use operators::lock::lock;
use operators::operator::Publisher;
use serde::Serialize;
use tokio::sync::Notify;

pub use filter::Filter;
use queue::{Lost, Queue, Waiting};

use crate::runtime::supervisor::Audience;

/// How many events, and how many bytes of them, the ring keeps; the queue of each subscriber is bounded alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLimits {
    pub events: usize,
    pub bytes: usize,
}

impl Default for EventLimits {
    fn default() -> Self {
        EventLimits { events: 4096, bytes: 4 << 20 }
    }
}

/// Events that the control thread takes from the ring before it lets other work run.
const DISPATCH_BATCH: usize = 64;
/// Bytes after which a subscriber's next events go into another chunk.
const CHUNK: usize = 16 << 10;

/// One record, serialised for everybody.
struct Published {
    counter: u64,
    record: Arc<Record>,
    /// The event without its id line.
    wire: Box<str>,
}

impl Published {
    /// Bytes that it holds, roughly: the record beside its text takes about as much again.
    fn bytes(&self) -> usize {
        self.wire.len() * 2
    }
}

/// Events in order, the oldest discarded when a limit is reached.
struct Ring {
    events: VecDeque<Arc<Published>>,
    bytes: usize,
    /// The counter of the latest event; 0 before the first.
    latest: u64,
    /// The counter of the latest event that was handed to subscribers.
    dispatched: u64,
}

impl Ring {
    /// Events after `counter`, and how many of them are no longer kept.
    fn after(&self, counter: u64) -> (u64, impl Iterator<Item = &Arc<Published>>) {
        let oldest = self.events.front().map_or(self.latest + 1, |event| event.counter);
        let missing = (oldest - 1).saturating_sub(counter);
        let skip = usize::try_from((counter + 1).saturating_sub(oldest)).unwrap_or(usize::MAX);
        (missing, self.events.range(skip.min(self.events.len())..))
    }
}

/// Takes records and fans them out; see the module's documentation.
pub struct EventHub {
    boot: String,
    limits: EventLimits,
    ring: Mutex<Ring>,
    published: Notify,
    subscribers: Mutex<Subscribers>,
    /// Events that subscribers lost because they read too slowly.
    missed: AtomicU64,
}

#[derive(Default)]
struct Subscribers {
    next_key: u64,
    queues: BTreeMap<u64, Arc<Queue>>,
    closed: bool,
}

impl EventHub {
    /// A hub whose ids start with the present time of `clock`.
    pub fn new(clock: &dyn Clock, limits: EventLimits) -> Arc<EventHub> {
        let micros = clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        Arc::new(EventHub {
            boot: format!("{micros:x}"),
            limits,
            ring: Mutex::new(Ring { events: VecDeque::new(), bytes: 0, latest: 0, dispatched: 0 }),
            published: Notify::new(),
            subscribers: Mutex::default(),
            missed: AtomicU64::new(0),
        })
    }

    /// Counts of the hub, for `/stats`.
    pub fn report(&self) -> EventReport {
        let subscribers = lock(&self.subscribers).queues.len();
        let ring = lock(&self.ring);
        let missed = self.missed.load(Ordering::Relaxed);
        EventReport { subscribers, published: ring.latest, missed, kept: ring.events.len(), kept_bytes: ring.bytes }
    }

    /// The latest result of a stream in a graph, of whichever node, where it is still kept.
    pub fn latest_result(&self, graph: &str, stream: &str) -> Option<Arc<Record>> {
        // Publishers wait for the ring's lock, so nothing is compared under it.
        let kept: Vec<_> = lock(&self.ring).events.iter().cloned().collect();
        let is_result = |record: &Record| {
            !matches!(record.body, RecordBody::Gap { .. } | RecordBody::Error { .. } | RecordBody::Status { .. })
        };
        let mut latest = kept.iter().rev().map(|event| &event.record);
        latest.find(|record| *record.graph == *graph && *record.stream == *stream && is_result(record)).map(Arc::clone)
    }

    /// Begins to listen: to what comes from now on, or to everything after the event `last_id` (an id that this or
    /// another process gave). `None` after [`EventHub::close`].
    pub fn subscribe(self: &Arc<Self>, filter: Filter, last_id: Option<&str>) -> Option<Subscription> {
        let mut subscribers = lock(&self.subscribers);
        if subscribers.closed {
            return None;
        }
        // Publishers wait for the ring's lock, so nothing is filtered under it.
        let (latest, missed) = {
            let ring = lock(&self.ring);
            let missed = last_id.map(|last_id| {
                let known = self.counter_of(last_id).filter(|counter| *counter <= ring.latest);
                let (missing, events) = ring.after(known.unwrap_or(0));
                let lost = match known {
                    Some(_) => (missing > 0).then_some(Lost::Counted { events: missing, filtered: false }),
                    None => Some(Lost::Unknown),
                };
                (lost, events.cloned().collect::<Vec<_>>())
            });
            (ring.latest, missed)
        };
        let mut waiting = Waiting { position: latest, ..Waiting::default() };
        if let Some((lost, events)) = missed {
            waiting.lost = lost;
            for event in events.iter().filter(|event| filter.wants(&event.record)) {
                waiting.push(event, self.limits);
            }
        }
        let queue = Arc::new(Queue { filter, after: latest, waiting: Mutex::new(waiting) });
        let key = subscribers.next_key;
        subscribers.next_key += 1;
        subscribers.queues.insert(key, queue.clone());
        Some(Subscription { hub: self.clone(), key, queue })
    }

    fn counter_of(&self, id: &str) -> Option<u64> {
        let (boot, counter) = id.trim().split_once('.')?;
        if boot == self.boot { counter.parse().ok() } else { None }
    }

    /// Hands published events to subscribers, for ever. One task of the control thread runs this.
    pub async fn dispatch(&self) {
        loop {
            self.published.notified().await;
            while self.dispatch_batch() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Whether there is more to hand out.
    fn dispatch_batch(&self) -> bool {
        // Subscribers first, as in `subscribe`: nobody joins between the reading of a batch and its handing out.
        let subscribers = lock(&self.subscribers);
        let (missed, batch, latest, more) = {
            let mut ring = lock(&self.ring);
            let (missed, events) = ring.after(ring.dispatched);
            let batch: Vec<_> = events.take(DISPATCH_BATCH).cloned().collect();
            let latest = batch.last().map_or(ring.latest, |event| event.counter);
            ring.dispatched = latest;
            (missed, batch, latest, latest < ring.latest)
        };
        for queue in subscribers.queues.values() {
            let lost = queue.offer(missed, &batch, latest, self.limits);
            self.missed.fetch_add(lost, Ordering::Relaxed);
        }
        more
    }

    /// Hands out what was published so far, ends every subscription once it has been read, and lets nobody join any
    /// more.
    pub fn close(&self) {
        while self.dispatch_batch() {}
        let mut subscribers = lock(&self.subscribers);
        subscribers.closed = true;
        for queue in subscribers.queues.values() {
            let mut waiting = lock(&queue.waiting);
            waiting.closed = true;
            waiting.wake();
        }
    }
}

impl Audience for EventHub {
    fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

impl Publisher for EventHub {
    fn publish(&self, record: &Arc<Record>) {
        let mut wire = format!("event: {}\ndata: ", record.body.kind());
        // JSON has no raw line breaks, so one `data:` line holds it.
        match serde_json::to_string(&**record) {
            Ok(json) => wire.push_str(&json),
            Err(error) => {
                tracing::error!(record = record.id, %error, "a record cannot be written as JSON; nobody will see it");
                return;
            }
        }
        wire.push_str("\n\n");
        {
            let mut ring = lock(&self.ring);
            ring.latest += 1;
            let event = Published { counter: ring.latest, record: record.clone(), wire: wire.into_boxed_str() };
            ring.bytes += event.bytes();
            ring.events.push_back(Arc::new(event));
            while ring.events.len() > self.limits.events || (ring.bytes > self.limits.bytes && ring.events.len() > 1) {
                if let Some(oldest) = ring.events.pop_front() {
                    ring.bytes -= oldest.bytes();
                }
            }
        }
        self.published.notify_one();
    }
}

/// What the hub says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EventReport {
    pub subscribers: usize,
    /// Events since the process started.
    pub published: u64,
    /// Events that subscribers lost because they read too slowly, added up over all that there were.
    pub missed: u64,
    /// Events that a subscriber can still resume from, and the memory that they take.
    pub kept: usize,
    pub kept_bytes: usize,
}

/// The reading end of a subscription. Dropping it ends the subscription.
pub struct Subscription {
    hub: Arc<EventHub>,
    key: u64,
    queue: Arc<Queue>,
}

impl Subscription {
    /// The next bytes for the subscriber: one or more whole events. `None` when the hub was closed.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut waiting = lock(&self.queue.waiting);
        let mut chunk = String::new();
        while chunk.len() < CHUNK
            && let Some((before, event)) = waiting.events.pop_front()
        {
            waiting.bytes -= event.bytes();
            chunk.extend(before.map(Lost::wire));
            // Writing to a string does not fail.
            let _ = write!(chunk, "id: {}.{}\n{}", self.hub.boot, event.counter, event.wire);
        }
        if waiting.events.is_empty() {
            chunk.extend(waiting.lost.take().map(Lost::wire));
        }
        if !chunk.is_empty() {
            return Poll::Ready(Some(chunk.into()));
        }
        if waiting.closed {
            return Poll::Ready(None);
        }
        waiting.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// A comment that keeps the connection alive. Where nothing waits it also moves the subscriber's last event id on,
    /// so that one who filters much resumes from where it really is (an id without data dispatches no event).
    pub fn heartbeat(&self) -> Bytes {
        let waiting = lock(&self.queue.waiting);
        if waiting.events.is_empty() && waiting.lost.is_none() && waiting.position > 0 {
            format!(": heartbeat\nid: {}.{}\n\n", self.hub.boot, waiting.position).into()
        } else {
            Bytes::from_static(b": heartbeat\n\n")
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        lock(&self.hub.subscribers).queues.remove(&self.key);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use operators::clock::SimulatedClock;
    use operators::item::{Detection, ModelName, Origin, Prediction, StreamId};
    use proptest::prelude::*;
    use std::task::Waker;

    const LIMITS: EventLimits = EventLimits { events: 8, bytes: 1 << 20 };

    pub(crate) fn model() -> ModelName {
        ModelName { name: "shapes".into(), sha256: "ab".repeat(32).into() }
    }

    pub(crate) fn detection(stream: &str, seq: u64, label: &str) -> Arc<Record> {
        let origin = Origin { graph: "yard".into(), node: "shapes".into() };
        let body = RecordBody::Detection {
            model: model(),
            detections: vec![Detection { label: label.into(), index: 1, score: 0.5, bounds: [1.0, 2.0, 3.5, 4.0] }],
            counts: BTreeMap::from([(label.into(), 1)]),
            has: BTreeMap::new(),
        };
        let time = SimulatedClock::default().wall();
        Arc::new(origin.signal(&StreamId::new(stream).unwrap(), Some(seq), time, body))
    }

    fn hub(limits: EventLimits) -> Arc<EventHub> {
        EventHub::new(&SimulatedClock::default(), limits)
    }

    /// Hands out everything and reads what is there: `seq` of each event, or what a gap says.
    fn read(hub: &EventHub, subscription: &mut Subscription) -> Vec<String> {
        while hub.dispatch_batch() {}
        let mut text = String::new();
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(bytes)) = subscription.poll_next(&mut context) {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        let seq = |data: &str| {
            let event: serde_json::Value = serde_json::from_str(data).unwrap();
            match event.get("lost") {
                Some(lost) => format!("lost {lost}"),
                None => event["seq"].to_string(),
            }
        };
        text.lines().filter_map(|line| line.strip_prefix("data: ")).map(seq).collect()
    }

    #[test]
    fn the_wire_format_is_that_of_the_standard() {
        let hub = hub(LIMITS);
        let mut subscription = hub.subscribe(Filter::default(), None).unwrap();
        hub.publish(&detection("cam", 4, "circle"));
        assert!(!hub.dispatch_batch());
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(bytes)) = subscription.poll_next(&mut context) else { panic!("nothing came") };
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let lines: Vec<_> = text.split('\n').collect();
        assert_eq!(lines[0], format!("id: {}.1", hub.boot));
        assert_eq!(lines[1], "event: detection");
        let json: serde_json::Value = serde_json::from_str(lines[2].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(json["detections"][0]["box"], serde_json::json!([1.0, 2.0, 3.5, 4.0]));
        assert_eq!(lines[3..], ["", ""]);
    }

    #[test]
    fn who_joins_hears_what_comes_from_then_on() {
        let hub = hub(LIMITS);
        hub.publish(&detection("cam", 0, "circle"));
        let mut subscription = hub.subscribe(Filter::default(), None).unwrap();
        hub.publish(&detection("cam", 1, "circle"));
        assert_eq!(read(&hub, &mut subscription), ["1"]);
    }

    #[test]
    fn each_filter_must_match() {
        let hub = hub(EventLimits { events: 100, ..LIMITS });
        let filter = |graph: &str, node: &str, stream: &str, label: &str| {
            let list = |text: &str| text.split_terminator(',').map(str::to_owned).collect();
            Filter { graphs: list(graph), nodes: list(node), streams: list(stream), labels: list(label) }
        };
        let cases = [
            (filter("", "", "", ""), vec!["0", "1", "2", "null"]),
            (filter("yard", "shapes", "", ""), vec!["0", "1", "2"]),
            (filter("street", "", "", ""), vec![]),
            (filter("", "sink", "", ""), vec!["null"]),
            (filter("", "", "a", ""), vec!["0", "null"]),
            (filter("", "", "a,c", ""), vec!["0", "2", "null"]),
            (filter("", "", "", "circle"), vec!["0", "2"]),
            (filter("", "", "a,b", "circle,triangle"), vec!["0"]),
        ];
        let mut subscriptions: Vec<_> =
            cases.iter().map(|(filter, _)| hub.subscribe(filter.clone(), None).unwrap()).collect();
        hub.publish(&detection("a", 0, "circle"));
        hub.publish(&detection("b", 1, "square"));
        hub.publish(&detection("c", 2, "circle"));
        let origin = Origin { graph: "yard".into(), node: "sink".into() };
        let gap = RecordBody::Gap { reason: "gone".to_owned() };
        let time = SimulatedClock::default().wall();
        hub.publish(&Arc::new(origin.signal(&StreamId::new("a").unwrap(), None, time, gap)));
        for ((filter, expected), subscription) in cases.iter().zip(&mut subscriptions) {
            assert_eq!(read(&hub, subscription), *expected, "{filter:?}");
        }
    }

    #[test]
    fn a_label_filter_matches_any_prediction() {
        let origin = Origin { graph: "yard".into(), node: "what".into() };
        let guess = |label: &str| Prediction { label: label.into(), index: 0, score: 0.5 };
        let body =
            RecordBody::Classification { model: model(), predictions: vec![guess("tabby cat"), guess("Egyptian cat")] };
        let time = SimulatedClock::default().wall();
        let record = origin.signal(&StreamId::new("a").unwrap(), Some(0), time, body);
        let wants = |label: &str| Filter { labels: vec![label.to_owned()], ..Filter::default() }.wants(&record);
        assert!(wants("Egyptian cat"));
        assert!(!wants("Egyptian"));
    }

    #[test]
    fn resumes_after_the_last_event_id() {
        let hub = hub(LIMITS);
        for seq in 0..6 {
            hub.publish(&detection("cam", seq, "circle"));
        }
        let resume = |id: String| {
            let mut subscription = hub.subscribe(Filter::default(), Some(&id)).unwrap();
            read(&hub, &mut subscription)
        };
        // Counters are from 1, so the event with counter 4 has seq 3.
        assert_eq!(resume(format!("{}.4", hub.boot)), ["4", "5"]);
        assert_eq!(resume(format!("{}.6", hub.boot)), [""; 0]);
        assert_eq!(resume(format!("{}.0", hub.boot)), ["0", "1", "2", "3", "4", "5"]);
        for unknown in [format!("{}.7", hub.boot), "5f0.3".to_owned(), "nonsense".to_owned(), String::new()] {
            assert_eq!(resume(unknown), ["lost null", "0", "1", "2", "3", "4", "5"]);
        }
    }

    #[test]
    fn resuming_from_an_event_that_is_gone_says_how_many_are_missing() {
        let hub = hub(LIMITS);
        for seq in 0..20 {
            hub.publish(&detection("cam", seq, "circle"));
        }
        let mut subscription = hub.subscribe(Filter::default(), Some(&format!("{}.5", hub.boot))).unwrap();
        // Seq 0..=4 were read, 12..=19 are kept.
        let expected: Vec<_> = std::iter::once("lost 7".to_owned()).chain((12..20).map(|n| n.to_string())).collect();
        assert_eq!(read(&hub, &mut subscription), expected);
    }

    #[test]
    fn a_slow_subscriber_loses_its_own_oldest_and_hears_how_many() {
        let hub = hub(LIMITS);
        let filter = Filter { labels: vec!["circle".to_owned()], ..Filter::default() };
        let mut slow = hub.subscribe(filter, None).unwrap();
        let mut fast = hub.subscribe(Filter::default(), None).unwrap();
        for seq in 0..20 {
            hub.publish(&detection("cam", seq, if seq % 2 == 0 { "circle" } else { "square" }));
            assert_eq!(read(&hub, &mut fast), [seq.to_string()]);
        }
        // Ten circles, of which its queue holds eight.
        assert_eq!(read(&hub, &mut slow), ["lost 2", "4", "6", "8", "10", "12", "14", "16", "18"]);
        hub.publish(&detection("cam", 20, "circle"));
        assert_eq!(read(&hub, &mut slow), ["20"]);
    }

    #[test]
    fn events_that_go_by_before_the_control_thread_looks_are_counted() {
        let hub = hub(LIMITS);
        let mut early = hub.subscribe(Filter::default(), None).unwrap();
        for seq in 0..10 {
            hub.publish(&detection("cam", seq, "circle"));
        }
        let mut late = hub.subscribe(Filter::default(), None).unwrap();
        hub.publish(&detection("cam", 10, "circle"));
        let expected: Vec<_> = std::iter::once("lost 3".to_owned()).chain((3..11).map(|n| n.to_string())).collect();
        assert_eq!(read(&hub, &mut early), expected);
        assert_eq!(read(&hub, &mut late), ["10"]);
    }

    #[test]
    fn bytes_are_bounded_and_one_large_event_still_passes() {
        let one = {
            let hub = hub(LIMITS);
            hub.publish(&detection("cam", 0, "circle"));
            hub.report().kept_bytes
        };
        let hub = hub(EventLimits { events: 1000, bytes: one * 3 });
        for _ in 0..50 {
            hub.publish(&detection("cam", 0, "circle"));
        }
        assert_eq!(
            hub.report(),
            EventReport { subscribers: 0, published: 50, missed: 0, kept: 3, kept_bytes: one * 3 }
        );
        let small = EventHub::new(&SimulatedClock::default(), EventLimits { events: 10, bytes: 1 });
        let mut subscription = small.subscribe(Filter::default(), None).unwrap();
        small.publish(&detection("cam", 7, "circle"));
        assert_eq!(read(&small, &mut subscription), ["7"]);
    }

    #[test]
    fn a_heartbeat_moves_the_last_id_past_events_that_were_not_wanted() {
        let hub = hub(LIMITS);
        let filter = Filter { streams: vec!["other".to_owned()], ..Filter::default() };
        let mut subscription = hub.subscribe(filter, None).unwrap();
        assert_eq!(subscription.heartbeat(), ": heartbeat\n\n");
        hub.publish(&detection("cam", 0, "circle"));
        assert_eq!(read(&hub, &mut subscription), [""; 0]);
        assert_eq!(subscription.heartbeat(), format!(": heartbeat\nid: {}.1\n\n", hub.boot));
    }

    #[test]
    fn closing_ends_subscriptions_after_what_they_have_still_to_read() {
        let hub = hub(LIMITS);
        let mut subscription = hub.subscribe(Filter::default(), None).unwrap();
        hub.publish(&detection("cam", 0, "circle"));
        hub.close();
        assert_eq!(read(&hub, &mut subscription), ["0"]);
        assert!(matches!(subscription.poll_next(&mut Context::from_waker(Waker::noop())), Poll::Ready(None)));
        assert!(hub.subscribe(Filter::default(), None).is_none());
        assert_eq!(hub.report().subscribers, 1);
        drop(subscription);
        assert_eq!(hub.report().subscribers, 0);
    }

    proptest! {
        /// However publishing, handing out and reading interleave, a subscriber sees every event or is told of it.
        #[test]
        fn what_is_not_read_is_counted(steps in proptest::collection::vec((1u64..12, any::<bool>(), any::<bool>()), 1..40)) {
            let hub = hub(LIMITS);
            let mut subscription = hub.subscribe(Filter::default(), None).unwrap();
            let (mut published, mut expected) = (0, 0);
            let mut check = |seen: Vec<String>| {
                for text in seen {
                    match text.strip_prefix("lost ") {
                        Some(lost) => expected += lost.parse::<u64>().unwrap(),
                        None => { assert_eq!(text, expected.to_string()); expected += 1; }
                    }
                }
                expected
            };
            for (count, hand_out, look) in steps {
                for _ in 0..count {
                    hub.publish(&detection("cam", published, "circle"));
                    published += 1;
                }
                if hand_out { while hub.dispatch_batch() {} }
                if look { check(read(&hub, &mut subscription)); }
            }
            prop_assert_eq!(check(read(&hub, &mut subscription)), published);
        }
    }
}
