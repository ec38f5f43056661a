//! Taps: where a source's thread hands items to the dataflow.
//!
//! [`TapOutlet`] is what a source writes to: it samples, takes leases, applies overflow policies and counts. Its other
//! end, [`tap`], is the dataflow operator that drains the mailboxes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use operators::address::masked;
use operators::clock::Clock;
use operators::error::{ItemError, SourceError};
use operators::item::{EndReason, Event, Frame, Gap, Item, Origin, Payload, RecordBody, StreamId, StreamInfo};
use operators::lease::{Ack, Budget, Credit, Lease, NoCredit, Verdict};
use operators::operator::{Offered, Outlet, SourceState};
use operators::time::MediaTime;
use operators::transforms::sample::Sampler;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::generic::source;
use timely::dataflow::{Scope, StreamVec};

use super::counters::{NodeCounters, StreamCounters, worth_logging};
use super::mailbox::{Mailbox, Remaining};
use super::stats::StreamState;
use crate::graph::plan::Overflow;
use crate::graph::substitute::Secrets;

/// How a stream is told to end.
#[derive(Default)]
pub struct Stop {
    /// Finish what is in hand and return.
    stopping: AtomicBool,
    /// The drain deadline has passed: let go of everything.
    aborted: AtomicBool,
}

impl Stop {
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    pub fn abort(&self) {
        self.stop();
        self.aborted.store(true, Ordering::Release);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }
}

/// One stream's way into one tap.
pub struct StreamTap {
    pub name: Arc<str>,
    pub sampler: Option<Sampler>,
    pub budget: Arc<Budget>,
    pub overflow: Overflow,
    pub mailbox: Arc<Mailbox>,
    /// Whether the picture in hand goes here.
    pub wants_this: bool,
}

/// What the thread of one stream writes to.
pub struct TapOutlet {
    pub clock: Arc<dyn Clock>,
    /// Names the source node in records of errors.
    pub origin: Origin,
    pub stream: StreamId,
    pub counters: Arc<StreamCounters>,
    pub stop: Arc<Stop>,
    pub decoder_threads: usize,
    /// Whether what is emitted stands in the place of an input that is lost.
    pub fallback: bool,
    /// Texts that are covered wherever a message of the source is shown.
    pub secrets: Arc<Secrets>,
    pub taps: Vec<StreamTap>,
}

/// Why a tap drops.
const QUEUE_FULL: &str = "queue full";

/// Between two looks at whether to give up waiting for credit.
const PATIENCE: Duration = Duration::from_millis(50);

impl TapOutlet {
    /// A source's message as everybody may see it.
    fn covered(&self, text: &str) -> String {
        masked(&self.secrets.redact(text))
    }

    fn to_all(&self, event: &Event) {
        for tap in &self.taps {
            tap.mailbox.push(event.clone());
        }
    }

    /// The stream ends.
    pub fn end(&self, reason: EndReason) {
        self.to_all(&Event::End { stream: self.stream.clone(), reason });
    }

    /// Credit for `bytes` in `tap`, by its policy; `None`: this item is not to be emitted there, and its verdict is
    /// the answer's second half.
    fn credit(&self, tap: &StreamTap, bytes: u64) -> Result<Credit, Refusal> {
        match tap.overflow {
            Overflow::Block => {
                let mut blocked = false;
                let credit = loop {
                    let patience = if blocked { PATIENCE } else { Duration::ZERO };
                    match tap.budget.acquire_within(bytes, patience) {
                        Ok(credit) => break Ok(credit),
                        Err(NoCredit::TooLarge) => break Err(Refusal::TooLarge),
                        Err(NoCredit::Exhausted) if self.stop.is_aborted() => break Err(Refusal::Aborted),
                        Err(NoCredit::Exhausted) => {}
                    }
                    if !blocked {
                        blocked = true;
                        self.counters.blocked_by(Some(&tap.name));
                    }
                };
                if blocked {
                    self.counters.blocked_by(None);
                }
                credit
            }
            Overflow::DropOldest | Overflow::DropGop => loop {
                match tap.budget.try_acquire(bytes) {
                    Ok(credit) => return Ok(credit),
                    Err(NoCredit::TooLarge) => return Err(Refusal::TooLarge),
                    Err(NoCredit::Exhausted) => match tap.mailbox.evict(&self.stream) {
                        Some(oldest) => oldest.lease.ack.drop_at(&tap.name, QUEUE_FULL),
                        None => return Err(Refusal::Full),
                    },
                }
            },
        }
    }

    /// An error record in the place of a frame. It needs a count of credit, like anything that flows.
    fn error_item(&self, seq: u64, pts: MediaTime, ack: &Ack, credit: Credit, message: String) -> Item {
        let ack = ack.clone();
        ack.raise(Verdict::Rejected);
        let time = self.clock.wall();
        let body = RecordBody::Error { message };
        let mut record = self.origin.signal(&self.stream, Some(seq), time, body);
        record.id = format!("{}/{}/{}/{}", record.graph, record.node, record.stream, seq);
        record.pts = Some(pts.as_micros() as f64 / 1e6);
        let lease = Lease::new(credit, ack);
        record.fallback = self.fallback;
        let payload = Payload::Record(Arc::new(record));
        Item { stream: self.stream.clone(), seq, pts, time, fallback: self.fallback, payload, lease }
    }

    fn emit(
        &self,
        tap: &StreamTap,
        seq: u64,
        pts: MediaTime,
        frame: &Result<Arc<Frame>, ItemError>,
        ack: &Ack,
    ) -> bool {
        let (payload, message) = match frame {
            Ok(frame) => (Some(frame), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let bytes = payload.map_or(0, |frame| frame.bytes());
        let time = self.clock.wall();
        let (credit, too_large) = match self.credit(tap, bytes) {
            Ok(credit) => (credit, false),
            Err(Refusal::TooLarge) => match self.credit(tap, 0) {
                Ok(credit) => (credit, true),
                Err(refusal) => return self.refuse(tap, refusal, ack),
            },
            Err(refusal) => return self.refuse(tap, refusal, ack),
        };
        let item = match (payload, message) {
            (Some(frame), _) if !too_large => Item {
                stream: self.stream.clone(),
                seq,
                pts,
                time,
                fallback: self.fallback,
                payload: Payload::Frame(frame.clone()),
                lease: Lease::new(credit, ack.clone()),
            },
            (_, message) => {
                let message = message.unwrap_or_else(|| {
                    let limit = operators::config::format_size(tap.budget.limits().bytes);
                    let size = operators::config::format_size(bytes);
                    format!("one picture takes {size}, more than the whole budget of {limit}; raise `budget.bytes`")
                });
                tracing::warn!(stream = %self.stream, node = %self.origin.node, seq, "{message}");
                self.error_item(seq, pts, ack, credit, message)
            }
        };
        tap.mailbox.push(Event::Item(item));
        true
    }

    fn refuse(&self, tap: &StreamTap, refusal: Refusal, ack: &Ack) -> bool {
        match refusal {
            Refusal::Full | Refusal::TooLarge => ack.clone().drop_at(&tap.name, QUEUE_FULL),
            Refusal::Aborted => ack.raise(Verdict::Lost),
        }
        false
    }
}

enum Refusal {
    Full,
    TooLarge,
    Aborted,
}

impl Outlet for TapOutlet {
    fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    fn stopping(&self) -> bool {
        self.stop.is_stopping()
    }

    fn decoder_threads(&self) -> usize {
        self.decoder_threads
    }

    fn state(&mut self, state: SourceState) {
        let (stream, node) = (&self.stream, &self.origin.node);
        self.fallback = matches!(state, SourceState::Fallback { .. });
        let (next, reason, attempts) = match state {
            SourceState::Running => {
                let (before, _) = self.counters.state();
                self.counters.connected(self.clock.now());
                if matches!(before, StreamState::Retrying | StreamState::Fallback) {
                    tracing::info!(%stream, %node, "stream `{stream}` of `{node}` is back");
                }
                return;
            }
            SourceState::Retrying { reason, attempts } => (StreamState::Retrying, reason, attempts),
            SourceState::Fallback { reason, attempts } => (StreamState::Fallback, reason, attempts),
        };
        let reason = self.covered(&reason);
        let before = self.counters.lost(next, reason.clone(), attempts);
        let doing = if next == StreamState::Fallback { "shows its fallback" } else { "is lost and tried again" };
        // A camera that is off for a week must not fill the log.
        if before != next || worth_logging(attempts) {
            tracing::warn!(%stream, %node, attempts, "stream `{stream}` of `{node}` {doing}: {reason}");
        }
    }

    fn open(&mut self, info: StreamInfo) {
        // A fallback opens too, and the input is no less lost for that.
        if !self.fallback {
            self.counters.connected(self.clock.now());
        }
        self.to_all(&Event::Open { stream: self.stream.clone(), info: Arc::new(info) });
    }

    fn gap(&mut self, gap: Gap) {
        // The pictures of packets that were asked about before will not come.
        self.taps.iter_mut().filter_map(|tap| tap.sampler.as_mut()).for_each(Sampler::forget_packets);
        let gap = Gap { reason: self.covered(&gap.reason), seq: gap.seq };
        self.to_all(&Event::Gap { stream: self.stream.clone(), gap });
    }

    fn wants_packet(&mut self, pts: MediaTime) -> bool {
        // Every sampler must see every packet, so no short cut at the first that wants it.
        let mut wanted = false;
        for tap in &mut self.taps {
            wanted |= tap.sampler.as_mut().is_none_or(|sampler| sampler.could_want(pts));
        }
        wanted
    }

    fn skipped(&mut self, count: u64) {
        self.counters.account.read(count);
        self.counters.account.settle(Verdict::Filtered, count);
        self.counters.skipped.fetch_add(count, Ordering::Relaxed);
        self.counters.progress(self.clock.now());
    }

    fn frame(
        &mut self,
        seq: u64,
        pts: MediaTime,
        make: &mut dyn FnMut() -> Result<Frame, ItemError>,
    ) -> Result<Offered, SourceError> {
        let born = self.clock.now();
        self.counters.account.read(1);
        self.counters.decoded.fetch_add(1, Ordering::Relaxed);
        self.counters.progress(born);
        let mut anybody = false;
        for tap in &mut self.taps {
            tap.wants_this = tap.sampler.as_mut().is_none_or(|sampler| sampler.offer(pts));
            anybody |= tap.wants_this;
        }
        if !anybody {
            self.counters.account.settle(Verdict::Filtered, 1);
            return Ok(Offered::NotEmitted);
        }
        let ack = Ack::new(&self.counters.account, born);
        let frame = make().map(Arc::new);
        self.counters.converted.fetch_add(1, Ordering::Relaxed);
        if let Ok(frame) = &frame {
            self.counters.preview.offer(seq, frame, born);
        }
        let mut emitted = false;
        for tap in self.taps.iter().filter(|tap| tap.wants_this) {
            emitted |= self.emit(tap, seq, pts, &frame, &ack);
        }
        ack.release();
        Ok(if emitted { Offered::Emitted } else { Offered::NotEmitted })
    }

    fn repaired(&mut self, what: &'static str, detail: &str) {
        if self.counters.repaired(what) {
            let detail = self.covered(detail);
            tracing::warn!(stream = %self.stream, node = %self.origin.node, "repaired {what}: {detail} (further ones are only counted)");
        }
    }
}

/// timely's timestamp: the ingest tick since the engine started.
pub const TICK: Duration = Duration::from_millis(100);

/// The dataflow end of a tap on one worker.
pub fn tap<'scope>(
    scope: Scope<'scope, u64>,
    mailbox: Arc<Mailbox>,
    counters: Arc<NodeCounters>,
    clock: Arc<dyn Clock>,
    start: Instant,
) -> StreamVec<'scope, u64, Event> {
    let worker = scope.index();
    let name = format!("tap {}", counters.name);
    source::<_, CapacityContainerBuilder<Vec<Event>>, _, _>(scope, &name, move |capability, info| {
        mailbox.wake_by(scope.worker().sync_activator_for(info.address.to_vec()));
        let again = scope.activator_for(info.address.clone());
        let mut capability = Some(capability);
        let mut events = Vec::with_capacity(64);
        // Events may have come before the waker was set.
        again.activate();
        move |output| {
            let Some(held) = capability.as_mut() else { return };
            // Bounded, so that one busy tap does not starve its neighbours.
            let remaining = mailbox.drain(64, &mut events);
            let elapsed = clock.now().saturating_duration_since(start);
            let tick = u64::try_from(elapsed.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX);
            if tick > *held.time() {
                held.downgrade(&tick);
            }
            if !events.is_empty() {
                let items = events.iter().filter(|event| matches!(event, Event::Item(_))).count();
                counters.items(worker, items as u64);
                output.session(held).give_container(&mut events);
                events.clear();
            }
            match remaining {
                Remaining::More => again.activate(),
                Remaining::Empty => {}
                Remaining::Closed => capability = None,
            }
        }
    })
}
