//! Stretches of a track that nobody wants, where wanted pictures are rarer than those at which decoding starts anew.
//!
//! What nobody wants is held back instead of decoded. When a wanted packet follows, all of it is decoded first, as it would
//! have been; when decoding starts anew before one does, it is thrown away. So whole groups of pictures are never decoded,
//! and those that are come out the same. What it costs is that a wanted picture may wait for those before it in its group,
//! which is why nothing is held back of a track that is looked at in every group.

use crate::error::SourceError;
use crate::media::decode::Skippable;
use crate::media::demux::Packet;
use crate::media::ledger::Fate;
use crate::media::refresh::Refresh;
use crate::operator::Outlet;

use super::VideoTrack;

/// Most bytes that a track holds back.
pub(in crate::sources) const MOST_BYTES: u64 = 2 << 20;
/// Most packets that a track holds back: so many are decoded at once when they are needed after all.
const MOST_PACKETS: usize = 256;
/// Groups after which older ones count half.
const GROUPS: u32 = 16;

struct Held {
    packet: Packet,
    ordinal: i64,
    spare: bool,
}

/// What is held back of a track.
pub(super) struct Dormant {
    refresh: Refresh,
    held: Vec<Held>,
    bytes: u64,
    /// Whether this group has turned out too long to be held back.
    too_long: bool,
    /// How often decoding has started anew, and wanted packets, of late.
    groups: u32,
    wanted: u32,
}

impl Dormant {
    pub fn new(refresh: Refresh) -> Dormant {
        Dormant { refresh, held: Vec::new(), bytes: 0, too_long: false, groups: 0, wanted: 0 }
    }

    /// The track starts again at its beginning.
    pub fn restart(&mut self) {
        self.discard();
    }

    fn discard(&mut self) {
        self.held.clear();
        self.bytes = 0;
    }

    /// Decoding starts anew.
    fn begin_group(&mut self) {
        self.too_long = false;
        self.groups += 1;
        if self.groups > GROUPS {
            (self.groups, self.wanted) = (self.groups / 2, self.wanted / 2);
        }
    }

    fn is_seldom_wanted(&self) -> bool {
        self.groups >= 2 && self.wanted < self.groups
    }

    fn has_room(&self, packet: &Packet) -> bool {
        self.held.len() < MOST_PACKETS && self.bytes + packet.bytes() <= MOST_BYTES
    }
}

impl VideoTrack {
    /// Takes note of a packet before it is entered: where decoding starts anew, what was held back is thrown away.
    pub(super) fn prepare(&mut self, packet: &Packet, fate: Fate, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        let Some(dormant) = &mut self.dormant else { return Ok(()) };
        // Where everything has to be decoded, nobody was asked.
        let is_wanted = fate == Fate::Wanted && self.skippable != Skippable::Nothing;
        dormant.wanted = dormant.wanted.saturating_add(u32::from(is_wanted));
        if !dormant.refresh.is_at(packet) {
            return Ok(());
        }
        dormant.begin_group();
        if dormant.held.is_empty() {
            return Ok(());
        }
        dormant.discard();
        self.empty(outlet)?;
        self.decoder.flush();
        let left_out = self.ledger.drained();
        self.left_out(left_out, outlet);
        Ok(())
    }

    /// Decodes a packet that was entered as `ordinal`, or holds it back.
    pub(super) fn decode_or_hold(
        &mut self,
        packet: Packet,
        ordinal: i64,
        fate: Fate,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SourceError> {
        let spare = fate != Fate::Wanted && self.skippable != Skippable::Nothing;
        let near =
            packet.pts().and_then(|pts| self.sanitiser.predict(pts)).is_some_and(|ticks| self.sanitiser.is_near(ticks));
        if let Some(dormant) = &mut self.dormant {
            let begun = !dormant.held.is_empty();
            let may = fate != Fate::Wanted
                && self.skippable == Skippable::NonReference
                && near
                && dormant.has_room(&packet)
                // What is wanted and still inside the decoder is pushed out by what follows.
                && (begun || dormant.is_seldom_wanted() && !dormant.too_long && !self.ledger.owes());
            if may {
                dormant.bytes += packet.bytes();
                dormant.held.push(Held { packet, ordinal, spare });
                return Ok(());
            }
            dormant.too_long |= begun && fate != Fate::Wanted;
            let held = std::mem::take(&mut dormant.held);
            dormant.bytes = 0;
            for Held { packet, ordinal, spare } in held {
                self.decode(packet, ordinal, spare, outlet)?;
            }
        }
        self.decode(packet, ordinal, spare, outlet)
    }
}
