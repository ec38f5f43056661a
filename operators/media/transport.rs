//! Pieces of an MPEG transport stream, as HLS serves it to players that know no MP4.
//!
//! One muxer writes all pieces of a stream, so that its counters and its clock go on from piece to piece; each begins with
//! the tables, and so a player may begin with any that a keyframe begins.

use bytes::Bytes;

use super::fragment::{Fragment, LEAD, Sample};
use super::mux::{Container, MuxError, Muxer, TRANSPORT_BASE, Written};
use crate::item::Track;
use crate::time::MediaTime;

/// Makes the pieces of one stream, as long as its format stays the same.
pub struct Transport {
    muxer: Muxer,
    /// When the last packet of each track was decoded, in ticks of [`TRANSPORT_BASE`].
    latest: Vec<i64>,
}

impl Transport {
    /// # Errors
    /// Where libav refuses the parameters of a track.
    pub fn new(tracks: &[Track]) -> Result<Transport, MuxError> {
        let muxer = Muxer::new(Container::Transport, tracks, u64::MAX)?;
        Ok(Transport { muxer, latest: vec![i64::MIN; tracks.len()] })
    }

    /// Makes one piece.
    ///
    /// # Errors
    /// Where no piece comes of it: then none does any more.
    pub fn piece(&mut self, samples: &[Sample]) -> Result<Fragment, MuxError> {
        let mut refused = Vec::new();
        let mut order: Vec<(usize, &Sample)> = samples.iter().enumerate().collect();
        // Players read pictures and sound as they come.
        order.sort_by_key(|(_, sample)| sample.packet.dts.as_micros());
        let ticks = |time: MediaTime| time.ticks_in(TRANSPORT_BASE).saturating_add(LEAD.ticks_in(TRANSPORT_BASE));
        self.muxer.begin_piece()?;
        for (place, sample) in order {
            let Some(latest) = self.latest.get_mut(sample.packet.track) else { continue };
            // Two of a time are one tick apart: a transport stream knows no others.
            let dts = ticks(sample.packet.dts).max(latest.saturating_add(1));
            *latest = dts;
            let written = Written {
                data: &sample.packet.data,
                is_key: sample.packet.is_key,
                pts: ticks(sample.pts).max(dts),
                dts,
                duration: sample.packet.duration.map_or(0, |duration| duration.ticks_in(TRANSPORT_BASE)),
            };
            match self.muxer.write_bare(sample.packet.track, &written) {
                Err(MuxError::Packet(why)) => refused.push((place, why)),
                other => other?,
            }
        }
        let media = self.muxer.take_piece()?;
        Ok(Fragment { init: Bytes::new(), media, refused })
    }
}
