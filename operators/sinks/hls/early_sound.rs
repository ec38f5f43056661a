//! Sound that comes before the first keyframe: what of it is heard beside the first pictures.

use std::collections::VecDeque;

use super::segmenter::Held;
use crate::lease::Verdict;

/// Sound before the first picture that is kept, at the start of the stream.
const EARLY_SOUND: i64 = 1_000_000;
/// Packets of sound that wait for the first keyframe.
const MOST_EARLY: usize = 512;

#[derive(Debug, Default)]
pub struct EarlySound {
    held: VecDeque<Held>,
    bytes: u64,
}

impl EarlySound {
    /// Keeps another packet of sound, and lets the oldest ones go where they become more than `most_bytes`.
    pub(super) fn push(&mut self, sound: Held, most_bytes: u64) {
        self.bytes += sound.packet.data.len() as u64;
        self.held.push_back(sound);
        while self.held.len() > MOST_EARLY || self.bytes > most_bytes {
            let Some(oldest) = self.held.pop_front() else { break };
            self.bytes = self.bytes.saturating_sub(oldest.packet.data.len() as u64);
            oldest.ack.settle(Verdict::Filtered);
        }
    }

    /// What is heard beside the pictures from `first` on; where the stream begins with it, a little before it too.
    pub(super) fn beside(&mut self, first: &Held, has_begun: bool) -> Vec<Held> {
        let earliest = first.pts.as_micros() - if has_begun { 0 } else { EARLY_SOUND };
        let (beside, before): (Vec<Held>, Vec<Held>) =
            self.held.drain(..).partition(|sound| sound.packet.dts.as_micros() >= earliest);
        self.bytes = 0;
        // What was heard beside pictures that are not there.
        before.into_iter().for_each(|sound| sound.ack.settle(Verdict::Filtered));
        beside
    }

    /// No picture comes for it.
    pub fn let_go(&mut self) {
        self.held.drain(..).for_each(|sound| sound.ack.settle(Verdict::Filtered));
        self.bytes = 0;
    }
}
