//! One video track on its way to an outlet: decode, number, repair stamps, pace. Files and live inputs share it; where
//! its packets come from is their own affair.
//!
//! What nobody asked for is left undecoded where that changes no other picture: each packet that no subscriber wants
//! goes into the decoder marked as spare. That rests on two things, a clean track and a codec in which a packet is a
//! picture; at the first sign that one does not hold, the rest is decoded in full (of a live input, the rest until the
//! next keyframe). Damage that shows only in what was left out, or that is concealed by what was, remains: there,
//! pictures and numbers may differ.
//!
//! Where wanted pictures are rare, whole stretches are left out ([`dormant`]). Where only keyframes are asked for,
//! [`keyframes`] decides instead.

pub(super) mod dormant;
mod keyframes;
pub(crate) mod packets;

use std::time::{Duration, Instant};

use crate::error::{ItemError, SourceError};
use crate::item::{Played, StreamInfo, TrackFormat};
use crate::media::decode::{DecodeError, Decoder, Picture, Skippable};
use crate::media::demux::{Demuxer, Packet};
use crate::media::ledger::{Fate, Ledger, LeftOut};
use crate::media::orientation::Orientation;
use crate::media::picture;
use crate::media::refresh::Refresh;
use crate::operator::{Outlet, wait_until};
use crate::time::MediaTime;
use crate::timestamps::{Continuity, PacketOrder, Repair, Sanitiser};

use dormant::Dormant;
use keyframes::Keyframes;

/// Ticks from picture to picture where an input claims no rate: those of 25 pictures a second.
const FALLBACK_RATE: u32 = 25;
/// A decoder that fails this often while it is emptied is given up.
const MOST_FAILURES_WHILE_DRAINING: u32 = 1000;

/// How a track is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    /// Leave undecoded what nobody asked for.
    pub skip: bool,
    /// Decode and offer keyframes alone.
    pub keyframes_only: bool,
    /// Emit each picture when it is due; otherwise as soon as it is there.
    pub realtime: bool,
    /// Pictures carry their index: the input is finite.
    pub indexed: bool,
    /// A stamp that lies further than this after the one before it is a broken clock. `None`: only an absurd one is.
    pub longest_step: Option<Duration>,
}

/// The state of one track.
pub(super) struct VideoTrack {
    decoder: Decoder,
    ledger: Ledger,
    sanitiser: Sanitiser,
    order: PacketOrder,
    info: StreamInfo,
    orientation: Orientation,
    manner: Manner,
    /// Where only keyframes are decoded.
    keyframes: Option<Keyframes<Packet>>,
    /// What is held back, where that is possible.
    dormant: Option<Dormant>,
    /// Number of the next picture.
    seq: u64,
    /// What may be left undecoded from here on.
    skippable: Skippable,
    /// What may be left undecoded while the track is clean.
    skippable_if_clean: Skippable,
    /// When the first picture was emitted, for pacing.
    started: Option<Instant>,
    /// Pictures that came out since [`VideoTrack::begin_round`].
    pictures: u64,
    /// Pictures that came out and packets that were left out on purpose.
    progress: u64,
    /// The last thing that could not be decoded.
    trouble: Option<String>,
}

impl VideoTrack {
    /// The decoded track of `demuxer`.
    pub fn open(demuxer: &Demuxer, manner: Manner, threads: usize) -> Result<VideoTrack, DecodeError> {
        let base = demuxer.time_base();
        // Keyframes are decoded one by one: further threads would have nothing to do.
        let threads = if manner.keyframes_only { 1 } else { threads };
        let decoder = Decoder::open(demuxer.parameters(), base, threads)?;
        let orientation = demuxer.orientation();
        let mut info = StreamInfo {
            tracks: demuxer.tracks().to_vec(),
            time_base: base,
            duration: demuxer.duration(),
            played: Played::Live,
        };
        if let Some(TrackFormat::Video { width, height, .. }) = info.tracks.first_mut().map(|track| &mut track.format) {
            (*width, *height) = orientation.size((*width, *height));
        }
        let fallback = i64::from(base.denominator()) / i64::from(base.numerator()) / i64::from(FALLBACK_RATE);
        let mut sanitiser = Sanitiser::new(base, demuxer.nominal_duration().unwrap_or(fallback));
        if let Some(longest) = manner.longest_step {
            sanitiser = sanitiser.longest_step_of(longest);
        }
        // Where every picture stands alone, each is a keyframe.
        let keyframes_only = manner.keyframes_only && decoder.skippable() != Skippable::Everything;
        let reordered = keyframes::is_reordered(info.tracks.first().map(|track| &track.format));
        let skippable = match (manner.skip, keyframes_only) {
            (false, _) => Skippable::Nothing,
            (true, true) => Skippable::Everything,
            (true, false) => decoder.skippable(),
        };
        // A paced file is decoded as it is due, and not in bursts.
        let may_sleep = skippable == Skippable::NonReference && !manner.realtime;
        let refresh = Refresh::of(&demuxer.parameters()).filter(|_| may_sleep);
        Ok(VideoTrack {
            decoder,
            ledger: Ledger::default(),
            sanitiser,
            order: PacketOrder::default(),
            info,
            orientation,
            manner,
            keyframes: keyframes_only.then(|| Keyframes::new(reordered)),
            dormant: refresh.map(Dormant::new),
            seq: 0,
            skippable,
            skippable_if_clean: skippable,
            started: None,
            pictures: 0,
            progress: 0,
            trouble: None,
        })
    }

    pub fn info(&self) -> &StreamInfo {
        &self.info
    }

    pub fn info_mut(&mut self) -> &mut StreamInfo {
        &mut self.info
    }

    /// What the input says of the stream's first picture; `None` before there was one.
    pub fn origin(&self) -> Option<MediaTime> {
        let ticks = self.sanitiser.origin()?;
        Some(MediaTime::new(ticks, self.info.time_base))
    }

    /// The first picture that comes is number `seq` and lies at `ticks` of the stream: those before it went by.
    pub fn start_at(&mut self, seq: u64, ticks: i64) {
        self.seq = seq;
        self.sanitiser.start_at(ticks);
    }

    /// What the pictures' size turned out to be, in pixels as they are coded, before the first one is out.
    pub fn expect_size(&mut self, coded: (u32, u32)) {
        let (now_width, now_height) = self.orientation.size(coded);
        if let Some(TrackFormat::Video { width, height, .. }) =
            self.info.tracks.first_mut().map(|track| &mut track.format)
        {
            (*width, *height) = (now_width, now_height);
        }
    }

    /// Number of the next picture.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Grows whenever the track gets on: with each picture that comes out, and each packet that nobody wanted.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// Pictures that came out since [`VideoTrack::begin_round`].
    pub fn pictures(&self) -> u64 {
        self.pictures
    }

    /// The last thing that could not be decoded, or what may keep pictures away.
    pub fn trouble(&self) -> Option<&str> {
        let no_keyframe = "no keyframe came, and only these are decoded (`keyframes_only`)";
        self.trouble.as_deref().or(self.keyframes.as_ref().map(|_| no_keyframe))
    }

    /// Counts the pictures of one pass anew.
    pub fn begin_round(&mut self) {
        self.pictures = 0;
    }

    /// The track starts again at its beginning: numbers and time go on.
    pub fn restart(&mut self) {
        self.decoder.flush();
        self.sanitiser.restart();
        self.order = PacketOrder::default();
        if let Some(keyframes) = &mut self.keyframes {
            keyframes.restart();
        }
        if let Some(dormant) = &mut self.dormant {
            dormant.restart();
        }
    }

    /// The next packet, in decoding order. Emits the pictures that it pushes out.
    pub fn packet(&mut self, packet: Packet, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        if packet.is_corrupt() {
            self.corrupt("the container marks it so", outlet);
        }
        if self.keyframes.is_some() {
            return self.keyframe_or_not(packet, outlet);
        }
        let fate = self.fate(&packet, outlet);
        self.prepare(&packet, fate, outlet)?;
        let ordinal = self.ledger.packet(packet.pts(), packet.duration(), fate);
        let spare = fate != Fate::Wanted && self.skippable != Skippable::Nothing;
        self.progress += u64::from(spare);
        if spare && self.skippable == Skippable::Everything {
            return Ok(());
        }
        self.decode_or_hold(packet, ordinal, fate, outlet)
    }

    /// Decodes a packet and emits the pictures that it pushes out.
    fn decode(
        &mut self,
        packet: Packet,
        ordinal: i64,
        spare: bool,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SourceError> {
        if let Err(error) = self.decoder.send(packet, ordinal, spare) {
            self.corrupt(&error.to_string(), outlet);
        }
        loop {
            match self.decoder.receive() {
                Ok(Some(picture)) => self.picture(picture, outlet)?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.corrupt(&error.to_string(), outlet);
                    return Ok(());
                }
            }
        }
    }

    fn fate(&mut self, packet: &Packet, outlet: &mut dyn Outlet) -> Fate {
        if packet.is_hidden() {
            return Fate::Hidden;
        }
        // A live input that is damaged now and then would be decoded in full for ever. Behind a keyframe nothing refers to
        // what was damaged; that numbers may be out by what was lost, no reader of a live input can tell.
        if self.skippable == Skippable::Nothing && !self.manner.indexed && packet.is_key() && self.seq > 0 {
            self.skippable = self.skippable_if_clean;
            self.order = PacketOrder::default();
        }
        if self.skippable == Skippable::Nothing {
            return Fate::Wanted;
        }
        if packet.pts().is_none() && self.starts() {
            return Fate::Wanted;
        }
        let continuity = self.order.next(packet.pts(), packet.dts(), packet.is_key());
        // Until the first picture is out, nobody knows where a packet lies in time.
        let ticks = packet.pts().and_then(|pts| self.sanitiser.predict(pts));
        // Before time zero lie the leading pictures of a recording's start; they cannot be decoded.
        let impossible =
            self.pictures > 0 && ticks.is_some_and(|ticks| ticks >= 0 && !self.sanitiser.can_follow(ticks));
        if continuity == Continuity::Broken || impossible {
            self.ledger.break_off();
        }
        if continuity != Continuity::Good || impossible {
            self.skippable = Skippable::Nothing;
            return Fate::Wanted;
        }
        match ticks {
            Some(ticks) if ticks >= 0 && !outlet.wants_packet(MediaTime::new(ticks, self.info.time_base)) => {
                Fate::Spare
            }
            _ => Fate::Wanted,
        }
    }

    /// Whether a live input has shown nothing yet: RTP tells no time before its second picture, which harms nothing.
    fn starts(&self) -> bool {
        !self.manner.indexed && self.seq == 0
    }

    /// Gets the last pictures out of the decoder.
    pub fn drain(&mut self, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        if self.keyframes.is_some() {
            return self.last_keyframe(outlet);
        }
        self.empty(outlet)?;
        let left_out = self.ledger.drained();
        self.left_out(left_out, outlet);
        Ok(())
    }

    /// Gets everything out of the decoder, which takes no packet afterwards until it is flushed.
    fn empty(&mut self, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        if let Err(error) = self.decoder.send_end() {
            self.corrupt(&error.to_string(), outlet);
        }
        let mut failures = 0;
        while failures < MOST_FAILURES_WHILE_DRAINING {
            match self.decoder.receive() {
                Ok(Some(picture)) => self.picture(picture, outlet)?,
                Ok(None) => break,
                Err(error) => {
                    failures += 1;
                    self.corrupt(&error.to_string(), outlet);
                }
            }
        }
        Ok(())
    }

    fn picture(&mut self, picture: Picture, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        let entry = self.ledger.picture(picture.ordinal(), picture.dts());
        self.left_out(entry.left_out, outlet);
        let stamp = self.sanitiser.sanitise(entry.pts.or(picture.dts()), entry.duration);
        let pts = MediaTime::new(stamp.ticks, self.info.time_base);
        let repair = stamp.repair.filter(|repair| *repair != Repair::Missing || !self.starts());
        if let Some(repair) = repair {
            outlet.repaired(repair.what(), &format!("at {pts}, picture {}", self.seq));
        }
        if picture.is_damaged() {
            outlet.repaired("damaged picture", &format!("at {pts}, picture {}", self.seq));
        }
        // Packets before the first picture may lack what they refer to: that is how recordings start.
        let surprising = entry.surprising && self.seq > 0;
        // A field may be a packet, and refer to the other one. Keyframes refer to nothing.
        let in_fields = picture.is_interlaced() && self.keyframes.is_none();
        if in_fields {
            self.skippable_if_clean = Skippable::Nothing;
        }
        if repair.is_some() || surprising || picture.is_damaged() || in_fields {
            self.skippable = Skippable::Nothing;
        }
        self.note_size(self.orientation.size(picture.size()), outlet);
        if self.manner.realtime && !self.wait_for(pts, outlet) {
            return Err(SourceError::Stopped);
        }
        let seq = self.seq;
        self.seq += 1;
        self.pictures += 1;
        self.progress += 1;
        let index = self.manner.indexed.then_some(seq);
        let mut picture = Some(picture);
        let orientation = self.orientation;
        outlet.frame(seq, pts, &mut || match picture.take() {
            Some(picture) => picture::into_frame(picture, index).map(|frame| orientation.apply(frame)),
            None => Err(ItemError::Failed("a picture was asked for twice".to_owned())),
        })?;
        Ok(())
    }

    fn left_out(&mut self, left_out: LeftOut, outlet: &mut dyn Outlet) {
        if left_out.count > 0 {
            self.seq += left_out.count;
            self.pictures += left_out.count;
            outlet.skipped(left_out.count);
        }
        if let Some((pts, duration)) = left_out.last {
            self.sanitiser.pass(pts, duration);
        }
    }

    /// A picture of another size is a new format.
    fn note_size(&mut self, (now_width, now_height): (u32, u32), outlet: &mut dyn Outlet) {
        if let Some(TrackFormat::Video { width, height, .. }) =
            self.info.tracks.first_mut().map(|track| &mut track.format)
            && (*width, *height) != (now_width, now_height)
        {
            (*width, *height) = (now_width, now_height);
            outlet.open(self.info.clone());
        }
    }

    /// Waits until the picture at `pts` is due; `false` when stopped meanwhile.
    fn wait_for(&mut self, pts: MediaTime, outlet: &dyn Outlet) -> bool {
        let now = outlet.clock().now();
        // The first picture is due at once, whatever was left out before it.
        let started = *self.started.get_or_insert_with(|| now.checked_sub(pts.as_duration()).unwrap_or(now));
        started.checked_add(pts.as_duration()).is_none_or(|due| wait_until(outlet, due))
    }

    /// Something of the track could not be read or decoded.
    pub fn corrupt(&mut self, cause: &str, outlet: &mut dyn Outlet) {
        outlet.repaired("corrupt packet", cause);
        // Until a picture is out, nothing was left out, and packets may lack what they refer to.
        if self.seq > 0 {
            self.skippable = Skippable::Nothing;
        }
        self.trouble = Some(cause.to_owned());
    }
}
