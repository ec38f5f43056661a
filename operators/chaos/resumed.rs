//! A stream that ends by itself and was interrupted, read on where it was.

use std::sync::Arc;

use crate::clock::Clock;
use crate::error::{ItemError, SourceError};
use crate::item::{Frame, Gap, Kind, Packet, StreamInfo};
use crate::lease::Watched;
use crate::operator::{Demand, Offered, Outlet, SourceState, Trouble};
use crate::time::MediaTime;

/// How far a stream was read that ends by itself.
#[derive(Default)]
pub(super) struct Place {
    /// Number of the next picture, and where the one before lies.
    next: u64,
    reached: Option<MediaTime>,
    next_packet: u64,
    info: Option<StreamInfo>,
}

/// A stream that ends by itself, read once more from its beginning: what was passed on before is passed over.
pub(super) struct Resumed<'o> {
    pub outlet: &'o mut dyn Outlet,
    pub place: &'o mut Place,
    /// Pictures that this reading has come to.
    pub seen: u64,
}

impl Outlet for Resumed<'_> {
    fn clock(&self) -> &Arc<dyn Clock> {
        self.outlet.clock()
    }

    fn stopping(&self) -> bool {
        self.outlet.stopping()
    }

    fn pacing(&self) {
        self.outlet.pacing();
    }

    fn decoder_threads(&self) -> usize {
        self.outlet.decoder_threads()
    }

    fn demand(&self) -> Demand {
        self.outlet.demand()
    }

    fn state(&mut self, state: SourceState) {
        self.outlet.state(state);
    }

    fn open(&mut self, info: StreamInfo) {
        if self.place.info.as_ref() != Some(&info) {
            self.place.info = Some(info.clone());
            self.outlet.open(info);
        }
    }

    fn gap(&mut self, gap: Gap) {
        self.outlet.gap(gap);
    }

    fn wants_packet(&mut self, pts: MediaTime) -> bool {
        if self.place.reached.is_some_and(|reached| pts <= reached) {
            self.outlet.pacing();
            return false;
        }
        self.outlet.wants_packet(pts)
    }

    fn skipped(&mut self, count: u64) {
        self.seen += count;
        let further = self.seen.saturating_sub(self.place.next);
        if further > 0 {
            self.place.next = self.seen;
            self.outlet.skipped(further.min(count));
        }
    }

    fn trouble(&mut self, trouble: &Trouble) {
        self.outlet.trouble(trouble);
    }

    fn watch(&mut self, watched: Watched) {
        self.outlet.watch(watched);
    }

    fn frame(
        &mut self,
        seq: u64,
        pts: MediaTime,
        make: &mut dyn FnMut() -> Result<Frame, ItemError>,
    ) -> Result<Offered, SourceError> {
        self.seen = self.seen.max(seq + 1);
        if seq < self.place.next {
            self.outlet.pacing();
            return if self.outlet.stopping() { Err(SourceError::Stopped) } else { Ok(Offered::NotEmitted) };
        }
        let offered = self.outlet.frame(seq, pts, make)?;
        (self.place.next, self.place.reached) = (seq + 1, Some(pts));
        Ok(offered)
    }

    fn packet(&mut self, seq: u64, pts: MediaTime, packet: Packet) -> Result<Offered, SourceError> {
        if seq < self.place.next_packet {
            self.outlet.pacing();
            return if self.outlet.stopping() { Err(SourceError::Stopped) } else { Ok(Offered::NotEmitted) };
        }
        let offered = self.outlet.packet(seq, pts, packet)?;
        self.place.next_packet = seq + 1;
        Ok(offered)
    }

    fn dropped(&mut self, kind: Kind, seq: u64, reason: &'static str) {
        self.outlet.dropped(kind, seq, reason);
    }

    fn repaired(&mut self, what: &'static str, detail: &str) {
        self.outlet.repaired(what, detail);
    }
}
