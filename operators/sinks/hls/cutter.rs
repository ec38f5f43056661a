//! How a stream is cut: into whole segments, or for low latency into parts of them.

use std::sync::Arc;

use super::parts::PartCutter;
use super::segmenter::{Part, Rules, Segmenter};
use super::store::{Promise, Terms};
use crate::item::{Item, Packet, StreamInfo};

pub enum Cutter {
    Segments(Segmenter),
    Parts(PartCutter),
}

impl Cutter {
    /// `promise` is what the playlist has promised already.
    pub fn new(rules: Rules, terms: &Terms, promise: Option<Promise>) -> Cutter {
        match terms.part {
            Some(part) => Cutter::Parts(PartCutter::new(rules, part, promise)),
            None => Cutter::Segments(Segmenter::new(rules, promise.map(|promise| promise.target))),
        }
    }

    /// The stream opens, or goes on in another format: nothing of it may be held then ([`Cutter::finish`]).
    pub fn open(&mut self, info: &StreamInfo) {
        match self {
            Cutter::Segments(segmenter) => segmenter.open(info),
            Cutter::Parts(cutter) => cutter.open(info),
        }
    }

    /// Something is missing here: what is held is complete.
    pub fn gap(&mut self) -> Vec<Part> {
        match self {
            Cutter::Segments(segmenter) => segmenter.gap(),
            Cutter::Parts(cutter) => cutter.gap(),
        }
    }

    /// What was cut last could not be published: what refers to it is of no use either.
    pub fn lost(&mut self) {
        match self {
            // Whole segments refer to nothing but themselves.
            Cutter::Segments(_) => {}
            Cutter::Parts(cutter) => cutter.lost(),
        }
    }

    /// Takes a packet; what is complete by that. What belongs to nothing is settled.
    pub fn take(&mut self, item: &Item, packet: &Arc<Packet>) -> Vec<Part> {
        match self {
            Cutter::Segments(segmenter) => segmenter.take(item, packet),
            Cutter::Parts(cutter) => cutter.take(item, packet),
        }
    }

    /// Nothing more comes for what is held.
    pub fn finish(&mut self) -> Vec<Part> {
        match self {
            Cutter::Segments(segmenter) => segmenter.finish(),
            Cutter::Parts(cutter) => cutter.finish(),
        }
    }

    /// Segments that no keyframe begins, so far.
    pub fn forced(&self) -> u64 {
        match self {
            Cutter::Segments(segmenter) => segmenter.forced,
            Cutter::Parts(cutter) => cutter.forced,
        }
    }
}
