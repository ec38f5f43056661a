//! A track of which only keyframes are decoded. The pictures between them are counted and timed all the same, so that
//! numbers and times are those of a track that is decoded in full.
//!
//! A keyframe refers to no other picture, so each is decoded alone: the decoder is emptied behind it, and nothing waits
//! for the next one. Pictures that are decoded after a keyframe may be shown before it ("leading" ones); its number is
//! known when the first that is shown after it has come, so in a track with reordered pictures it waits for that one.
//! In codecs whose packets hold none or several pictures (VP8, VP9, AV1, MPEG-4), packets are counted in their place.

use crate::error::SourceError;
use crate::item::TrackFormat;
use crate::media::decode::Skippable;
use crate::media::demux::Packet;
use crate::media::ledger::Fate;
use crate::operator::Outlet;
use crate::time::MediaTime;

use super::VideoTrack;

/// Where such a track stands. `P` is what a keyframe's packet is kept as.
#[derive(Debug)]
pub(super) struct Keyframes<P> {
    /// Whether pictures may be shown in another order than they are decoded in.
    reordered: bool,
    /// The last keyframe, with its stamp in native ticks, while it waits for its number.
    held: Option<(P, i64)>,
    /// Keyframes since the track started: what refers to what came before the first cannot be decoded.
    keys: u64,
    /// Stamp and duration, in native ticks, of the earliest and the latest picture that was passed over since the last
    /// keyframe.
    passed: Option<[(i64, Option<i64>); 2]>,
}

impl<P> Keyframes<P> {
    pub fn new(reordered: bool) -> Keyframes<P> {
        Keyframes { reordered, held: None, keys: 0, passed: None }
    }

    /// The track starts again at its beginning.
    pub fn restart(&mut self) {
        (self.held, self.keys, self.passed) = (None, 0, None);
    }

    /// The next keyframe, after the one before it was taken; answered at once where its number is known.
    fn hold(&mut self, packet: P, pts: Option<i64>) -> Option<P> {
        self.keys += 1;
        match pts.filter(|_| self.reordered) {
            Some(pts) => {
                self.held = Some((packet, pts));
                None
            }
            None => Some(packet),
        }
    }

    /// The keyframe that waits, unless what follows it with stamp `pts` is shown before it.
    fn due(&mut self, pts: Option<i64>) -> Option<P> {
        let (_, waiting) = self.held.as_ref()?;
        if pts.is_some_and(|pts| pts < *waiting) { None } else { self.take() }
    }

    /// The keyframe that waits.
    fn take(&mut self) -> Option<P> {
        self.held.take().map(|(packet, _)| packet)
    }

    /// Whether a picture that comes now could be decoded, had anybody asked for it.
    fn decodable(&self) -> bool {
        self.keys > u64::from(self.held.is_some())
    }

    /// A picture is passed over.
    fn pass(&mut self, pts: Option<i64>, duration: Option<i64>) {
        let Some(pts) = pts else { return };
        let [first, last] = self.passed.get_or_insert([(pts, duration); 2]);
        if pts < first.0 {
            *first = (pts, duration);
        }
        if pts > last.0 {
            *last = (pts, duration);
        }
    }
}

impl VideoTrack {
    /// The next packet of a track of which only keyframes are decoded, in decoding order.
    pub(super) fn keyframe_or_not(&mut self, packet: Packet, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        let Some(keyframes) = &mut self.keyframes else { return Ok(()) };
        let is_key = packet.is_key();
        let due = if is_key { keyframes.take() } else { keyframes.due(packet.pts()) };
        if let Some(due) = due {
            self.keyframe(due, outlet)?;
        }
        if !is_key {
            return self.pass_over(&packet, outlet);
        }
        let stamp = packet.pts();
        match self.keyframes.as_mut().and_then(|keyframes| keyframes.hold(packet, stamp)) {
            Some(known) => self.keyframe(known, outlet),
            None => Ok(()),
        }
    }

    /// The track ends: decodes the keyframe that still waits.
    pub(super) fn last_keyframe(&mut self, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        if let Some(held) = self.keyframes.as_mut().and_then(Keyframes::take) {
            self.keyframe(held, outlet)?;
        }
        self.settle_time();
        Ok(())
    }

    /// Decodes a keyframe, where somebody wants it.
    fn keyframe(&mut self, packet: Packet, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        self.settle_time();
        if packet.is_hidden() {
            return Ok(());
        }
        if !self.wants_keyframe(&packet, outlet) {
            self.progress += 1;
            return self.pass_over(&packet, outlet);
        }
        // Nothing that was damaged before touches this one, but a file has a reader who counts.
        if !self.manner.indexed {
            self.skippable = self.skippable_if_clean;
        }
        let (seq, ordinal) = (self.seq, self.ledger.packet(packet.pts(), packet.duration(), Fate::Wanted));
        if let Err(error) = self.decoder.send(packet, ordinal, false) {
            self.corrupt(&error.to_string(), outlet);
        }
        self.empty(outlet)?;
        self.decoder.flush();
        if self.seq > seq {
            self.trouble = None;
        }
        Ok(())
    }

    fn wants_keyframe(&self, packet: &Packet, outlet: &mut dyn Outlet) -> bool {
        let ticks = packet.pts().and_then(|pts| self.sanitiser.predict(pts));
        match ticks {
            // A stamp that will be repaired says nothing yet.
            Some(ticks) if self.skippable != Skippable::Nothing && self.sanitiser.can_follow(ticks) => {
                outlet.wants_packet(MediaTime::new(ticks, self.info.time_base))
            }
            _ => true,
        }
    }

    /// Counts a picture that is not decoded.
    fn pass_over(&mut self, packet: &Packet, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        let Some(keyframes) = &mut self.keyframes else { return Ok(()) };
        if packet.is_hidden() || !keyframes.decodable() {
            return Ok(());
        }
        keyframes.pass(packet.pts(), packet.duration());
        if self.manner.realtime
            && let Some(ticks) = packet.pts().and_then(|pts| self.sanitiser.predict(pts))
            && !self.wait_for(MediaTime::new(ticks.max(0), self.info.time_base), outlet)
        {
            return Err(SourceError::Stopped);
        }
        self.seq += 1;
        self.pictures += 1;
        outlet.skipped(1);
        Ok(())
    }

    /// Time has gone on by what was passed over.
    fn settle_time(&mut self) {
        let Some([first, last]) = self.keyframes.as_mut().and_then(|keyframes| keyframes.passed.take()) else { return };
        if self.sanitiser.predict(first.0).is_none() {
            // The track starts with it, shown or not.
            self.sanitiser.sanitise(Some(first.0), first.1);
        }
        self.sanitiser.pass(last.0, last.1);
    }
}

/// Whether the pictures of a track may be shown in another order than they are decoded in.
pub(super) fn is_reordered(format: Option<&TrackFormat>) -> bool {
    matches!(format, Some(TrackFormat::Video { has_b_frames: true, .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyframe_waits_for_the_first_picture_that_is_shown_after_it() {
        let mut keyframes = Keyframes::new(true);
        assert_eq!(keyframes.hold("first", Some(30)), None);
        // Leading pictures of the first keyframe refer to what is not there.
        assert_eq!(keyframes.due(Some(10)), None);
        assert!(!keyframes.decodable());
        assert_eq!(keyframes.due(Some(60)), Some("first"));
        assert!(keyframes.decodable());
        assert_eq!(keyframes.take(), None);
        assert_eq!(keyframes.hold("second", Some(120)), None);
        assert_eq!(keyframes.due(Some(100)), None);
        assert!(keyframes.decodable(), "they refer to the first keyframe");
        assert_eq!(keyframes.take(), Some("second"), "the track ends, or the next one comes");
    }

    #[test]
    fn a_keyframe_does_not_wait_where_order_is_kept_or_unknown() {
        assert_eq!(Keyframes::new(false).hold("plain", Some(30)), Some("plain"));
        let mut keyframes = Keyframes::new(true);
        assert_eq!(keyframes.hold("without a stamp", None), Some("without a stamp"));
        assert_eq!(keyframes.hold("stamped", Some(30)), None);
        assert_eq!(keyframes.due(None), Some("stamped"));
    }

    #[test]
    fn what_was_passed_over_is_known_by_its_first_and_its_last() {
        let mut keyframes = Keyframes::<()>::new(true);
        for pts in [Some(40), None, Some(20), Some(30)] {
            keyframes.pass(pts, Some(10));
        }
        assert_eq!(keyframes.passed, Some([(20, Some(10)), (40, Some(10))]));
        keyframes.restart();
        assert_eq!(keyframes.passed, None);
        assert!(!keyframes.decodable());
    }
}
