//! Packets of a camera or a file that are published, until their segment lies in the place of copies too.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Pace, PublishedPart};
use crate::clock::Clock;
use crate::item::StreamId;
use crate::lease::Ack;
use crate::sinks::hls::playlist::Kind;
use crate::sinks::hls::store::{Asked, Found, Published, Served};

/// Segments of a file that wait to be stored; then the sink waits.
const QUEUE: usize = 256;
/// The same where the playlist is a live one: fewer than it lists, so that none is forgotten meanwhile.
const LIVE_QUEUE: usize = 1;
/// Segments of a camera whose packets wait for their verdict: as many as last for an hour where each has four seconds.
const MOST_HELD: usize = 1024;

/// Packets that are published, and not stored yet.
pub struct Held {
    published: Arc<Published>,
    clock: Arc<dyn Clock>,
    is_live: bool,
    /// Segments that may wait, where the sink can.
    most: usize,
    /// By the number of their segment.
    pub packets: BTreeMap<u64, Vec<Ack>>,
    /// What is being stored.
    storing: Option<u64>,
    /// Segments that were gone before they could be stored, or waited for too long, until it is told.
    pub missed: Option<Missed>,
    /// Whether something came since this was looked at last.
    pub is_fresh: bool,
    /// Whether more may come.
    pub is_open: bool,
}

/// Segments that were not stored when their packets got their verdict.
pub struct Missed {
    /// Whether the copy will lack them; else they may be stored later.
    is_lacking: bool,
    segments: u64,
    packets: usize,
    first: u64,
    last: u64,
}

/// What became of a segment that was published.
pub enum Segment {
    /// The name that it is published under, and its bytes.
    Complete(String, Served),
    Growing,
    /// It could not be kept, or is kept no longer.
    Gone,
}

fn segment(published: &Published, clock: &dyn Clock, number: u64) -> Segment {
    let mut is_gone = false;
    for extension in ["m4s", "ts"] {
        let name = format!("{number}.{extension}");
        match published.file(&name, &Asked::default(), clock.now()) {
            Found::Segment(served) => return Segment::Complete(name, served),
            found => is_gone |= matches!(found, Found::Gap | Found::Over),
        }
    }
    if is_gone { Segment::Gone } else { Segment::Growing }
}

impl Held {
    pub fn new(published: Arc<Published>, clock: Arc<dyn Clock>, pace: Pace) -> Held {
        Held {
            published,
            clock,
            is_live: pace.is_live,
            most: if pace.kind == Kind::Live { LIVE_QUEUE } else { QUEUE },
            packets: BTreeMap::new(),
            storing: None,
            missed: None,
            is_fresh: false,
            is_open: true,
        }
    }

    pub fn segment(&self, number: u64) -> Segment {
        segment(&self.published, &*self.clock, number)
    }

    /// Waits for something, and takes meanwhile what comes.
    pub async fn meanwhile<T>(
        &mut self,
        parts: &mut mpsc::Receiver<PublishedPart>,
        storing: Option<u64>,
        work: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(work);
        self.storing = storing;
        let done = loop {
            tokio::select! {
                biased;
                done = &mut work => break done,
                part = parts.recv(), if self.is_open && (self.is_live || self.packets.len() < self.most) => self.take(part),
            }
        };
        self.storing = None;
        done
    }

    pub fn take(&mut self, part: Option<PublishedPart>) {
        // With the end too, what was refused is tried once more.
        self.is_fresh = true;
        let Some(part) = part else {
            self.is_open = false;
            return;
        };
        self.packets.entry(part.number).or_default().extend(part.acks);
        // Nobody needs to wait for the verdict on what will never be stored; and they may not become ever more.
        while let Some(number) = self.packets.keys().copied().find(|number| Some(*number) != self.storing) {
            let is_gone = matches!(self.segment(number), Segment::Gone);
            if !is_gone && self.packets.len() <= MOST_HELD {
                break;
            }
            self.miss(number, is_gone);
        }
    }

    /// Goes on with packets that another copy of the same stream has left.
    pub fn inherit(&mut self, packets: BTreeMap<u64, Vec<Ack>>) {
        self.is_fresh |= !packets.is_empty();
        for (number, acks) in packets {
            self.packets.entry(number).or_default().extend(acks);
        }
    }

    /// The packets of a segment are lost. `is_lacking`: the copy will not have it later either.
    pub fn miss(&mut self, number: u64, is_lacking: bool) {
        let Some(acks) = self.packets.remove(&number) else { return };
        let none = Missed { is_lacking: true, segments: 0, packets: 0, first: number, last: number };
        let missed = self.missed.get_or_insert(none);
        missed.is_lacking &= is_lacking;
        missed.segments += 1;
        missed.packets += acks.len();
        (missed.first, missed.last) = (missed.first.min(number), missed.last.max(number));
    }

    pub fn deliver(&mut self, number: u64) {
        let now = self.clock.now();
        self.packets.remove(&number).into_iter().flatten().for_each(|ack| ack.deliver(now));
    }
}

impl Missed {
    pub fn text(&self, stream: &StreamId) -> String {
        let Missed { is_lacking, segments, packets, first, last } = self;
        match (segments, is_lacking) {
            (1, true) => format!("the copy lacks segment {first} of stream `{stream}` ({packets} packets)"),
            (1, false) => {
                format!("segment {first} of stream `{stream}` ({packets} packets) was not stored in time")
            }
            (_, true) => format!(
                "the copy lacks {segments} segments of stream `{stream}`, {first} to {last} ({packets} packets)"
            ),
            (_, false) => format!(
                "{segments} segments of stream `{stream}`, {first} to {last} ({packets} packets), were not stored in time"
            ),
        }
    }

    /// Why, where nothing else says so.
    pub fn cause(&self) -> &'static str {
        if self.is_lacking {
            "they were gone before they could be stored"
        } else {
            "too many waited, or they were gone before they could be stored"
        }
    }
}
