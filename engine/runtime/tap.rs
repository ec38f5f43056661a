//! Taps: where a source's thread hands items to the dataflow.
//!
//! [`StreamTap`] is one stream's way into one tap: it takes leases and applies the overflow policy. The other end,
//! [`tap`], is the dataflow operator that drains the mailboxes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use operators::clock::Clock;
use operators::item::{Event, Gap, Item, Kind, Packet, StreamId};
use operators::lease::{Ack, Budget, Credit, Lease, NoCredit, Verdict};
use operators::transforms::sample::{Sampler, Sampling};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::generic::source;
use timely::dataflow::{Scope, StreamVec};

use super::counters::{NodeCounters, StreamCounters};
use super::mailbox::{Mailbox, Remaining};
use super::passage::Passage;
use crate::graph::plan::Overflow;

/// One stream's way into one tap.
pub struct StreamTap {
    pub end: Arc<TapEnd>,
    /// What flows out of it.
    pub kind: Kind,
    /// The sampling that was pushed down into the source's thread, and how far it is.
    pub sampler: Option<(Sampling, Sampler)>,
}

/// What a source's thread writes to, and what a reload lets go of.
pub struct TapEnd {
    /// What drops here are counted under, and what a source that waits says: `SOURCE -> READER`.
    pub name: Arc<str>,
    /// The node that reads the tap; of one source, no two taps have the same.
    pub reader: Arc<str>,
    pub budget: Arc<Budget>,
    pub overflow: Overflow,
    pub mailbox: Arc<Mailbox>,
    /// Nobody will make room any more: what waits for credit is lost.
    pub given_up: AtomicBool,
    /// Something waited for credit and was given up.
    pub has_lost: AtomicBool,
    /// Pictures that an error record stands for.
    pub rejected: AtomicU64,
    /// Video packets are dropped until the next keyframe.
    pub awaits_keyframe: AtomicBool,
}

/// Why a tap drops.
const QUEUE_FULL: &str = "queue full";
/// Why a tap drops packets behind one that it has dropped.
const NO_KEYFRAME: &str = "no keyframe yet";

/// Between two looks at whether to give up waiting for credit.
const PATIENCE: Duration = Duration::from_millis(50);

/// Why an item was not taken.
pub enum Refusal {
    Full,
    TooLarge,
    /// It waited until there was no more use in it.
    GivenUp,
}

impl TapEnd {
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    /// Credit for `bytes` of `stream`, by the tap's policy.
    fn credit(&self, stream: &StreamId, bytes: u64, counters: &StreamCounters) -> Result<Credit, Refusal> {
        match self.overflow {
            Overflow::Block => {
                let mut blocked = false;
                let credit = loop {
                    let patience = if blocked { PATIENCE } else { Duration::ZERO };
                    match self.budget.acquire_within(bytes, patience) {
                        Ok(credit) => break Ok(credit),
                        Err(NoCredit::TooLarge) => break Err(Refusal::TooLarge),
                        Err(NoCredit::Exhausted) if self.given_up.load(Ordering::Acquire) => {
                            break Err(Refusal::GivenUp);
                        }
                        Err(NoCredit::Exhausted) => {}
                    }
                    if !blocked {
                        blocked = true;
                        counters.blocked(&self.name, &self.reader);
                    }
                };
                if blocked {
                    counters.unblocked(&self.reader);
                }
                credit
            }
            // What is dropped is what comes: what waits already may be referred to.
            Overflow::DropGop => self.budget.try_acquire(bytes).map_err(|refusal| match refusal {
                NoCredit::Exhausted => Refusal::Full,
                NoCredit::TooLarge => Refusal::TooLarge,
            }),
            Overflow::DropOldest => loop {
                match self.budget.try_acquire(bytes) {
                    Ok(credit) => return Ok(credit),
                    Err(NoCredit::TooLarge) => return Err(Refusal::TooLarge),
                    Err(NoCredit::Exhausted) => match self.mailbox.evict(stream) {
                        Some(oldest) => oldest.lease.ack.drop_at(&self.name, QUEUE_FULL),
                        None => return Err(Refusal::Full),
                    },
                }
            },
        }
    }

    /// As [`TapEnd::emit`], for a packet. Where a full tap drops one, it drops video up to the next keyframe, and tells
    /// of one gap; sound goes on as there is room.
    pub fn emit_packet(
        &self,
        stream: &StreamId,
        packet: &Packet,
        ack: &Ack,
        counters: &StreamCounters,
        make: impl FnOnce(Lease, bool) -> Item,
    ) -> bool {
        let is_video = packet.track == 0;
        if is_video && !packet.is_key && self.awaits_keyframe.load(Ordering::Acquire) {
            ack.clone().drop_at(&self.name, NO_KEYFRAME);
            return false;
        }
        let bytes = packet.data.len() as u64;
        let is_taken = self.emit(stream, bytes, ack, counters, make);
        if is_taken && is_video {
            self.awaits_keyframe.store(false, Ordering::Release);
        } else if !is_taken {
            self.await_keyframe(stream, &format!("`{}` was full: video is dropped until the next keyframe", self.name));
        }
        is_taken
    }

    /// Something is missing of the packets of `stream`, for `reason`: video goes on at the next keyframe.
    pub fn await_keyframe(&self, stream: &StreamId, reason: &str) {
        if !self.awaits_keyframe.swap(true, Ordering::AcqRel) {
            let gap = Gap { reason: reason.to_owned(), seq: None };
            self.mailbox.push(Passage::Event(Event::Gap { stream: stream.clone(), gap }));
        }
    }

    /// Emits what `make` makes of the credit for `bytes`: of `None` where so much never fits and what it makes stands
    /// in its place. Whether it was taken; if not, `ack` has its verdict.
    pub fn emit(
        &self,
        stream: &StreamId,
        bytes: u64,
        ack: &Ack,
        counters: &StreamCounters,
        make: impl FnOnce(Lease, bool) -> Item,
    ) -> bool {
        let credit = match self.credit(stream, bytes, counters) {
            Err(Refusal::TooLarge) => self.credit(stream, 0, counters).map(|credit| (credit, true)),
            other => other.map(|credit| (credit, false)),
        };
        match credit {
            Ok((credit, too_large)) => {
                let item = make(Lease::new(credit, ack.clone()), too_large);
                self.mailbox.push(Passage::Event(Event::Item(item)));
                true
            }
            Err(Refusal::Full | Refusal::TooLarge) => {
                ack.clone().drop_at(&self.name, QUEUE_FULL);
                false
            }
            Err(Refusal::GivenUp) => {
                self.has_lost.store(true, Ordering::Release);
                ack.raise(Verdict::Lost);
                false
            }
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
) -> StreamVec<'scope, u64, Passage> {
    let worker = scope.index();
    let name = format!("tap {}", counters.name);
    source::<_, CapacityContainerBuilder<Vec<Passage>>, _, _>(scope, &name, move |capability, info| {
        counters.drains(worker, &mailbox);
        mailbox.wake_by(scope.worker().sync_activator_for(info.address.to_vec()));
        let again = scope.activator_for(info.address.clone());
        let mut capability = Some(capability);
        let mut passages = Vec::with_capacity(64);
        // Something may have come before the waker was set.
        again.activate();
        move |output| {
            let Some(held) = capability.as_mut() else { return };
            // Bounded, so that one busy tap does not starve its neighbours.
            let remaining = mailbox.drain(64, &mut passages);
            let elapsed = clock.now().saturating_duration_since(start);
            let tick = u64::try_from(elapsed.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX);
            if tick > *held.time() {
                held.downgrade(&tick);
            }
            if !passages.is_empty() {
                let items = passages.iter().filter(|passage| passage.is_item()).count();
                counters.items(worker, items as u64);
                output.session(held).give_container(&mut passages);
                passages.clear();
            }
            match remaining {
                Remaining::More => again.activate(),
                Remaining::Empty => {}
                Remaining::Closed => capability = None,
            }
        }
    })
}
