//! Plays one file into an outlet: demux, decode, number, repair stamps, pace, loop.
//!
//! What nobody asked for is left undecoded where that changes no other picture: each packet that no subscriber wants
//! goes into the decoder marked as spare. That rests on two things, a clean track and a codec in which a packet is a
//! picture; at the first sign that one does not hold, the rest of the file is decoded in full. Damage that shows only
//! in what was left out, or that is concealed by what was, remains: there, pictures and numbers may differ.

use std::path::Path;
use std::time::Instant;

use crate::error::SourceError;
use crate::item::{EndReason, StreamInfo, TrackFormat};
use crate::media::decode::{DecodeError, Decoder, Picture, Skippable};
use crate::media::demux::{DemuxError, Demuxer, Packet, Read, Tracks};
use crate::media::ledger::{Fate, Ledger, LeftOut};
use crate::media::orientation::Orientation;
use crate::media::picture;
use crate::operator::{Outlet, wait_until};
use crate::time::MediaTime;
use crate::timestamps::{Continuity, PacketOrder, Sanitiser};

/// Ticks from picture to picture where a file claims no rate: those of 25 pictures a second.
const FALLBACK_RATE: u32 = 25;
/// A decoder that fails this often while it is emptied is given up.
const MOST_FAILURES_WHILE_DRAINING: u32 = 1000;

/// How a file is played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub tracks: Tracks,
    /// Start again at the end, for ever.
    pub repeat: bool,
    /// Emit each picture when it is due.
    pub realtime: bool,
    /// Leave undecoded what nobody asked for.
    pub skip: bool,
}

/// Plays the file at `path` until it ends or the outlet stops.
pub(super) fn play(path: &Path, settings: &Settings, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
    match Playback::open(path, settings, outlet).and_then(Playback::run) {
        Err(SourceError::Stopped) => Ok(EndReason::Stopped),
        result => result,
    }
}

struct Playback<'a> {
    path: &'a Path,
    settings: &'a Settings,
    outlet: &'a mut dyn Outlet,
    demuxer: Demuxer,
    decoder: Decoder,
    ledger: Ledger,
    sanitiser: Sanitiser,
    order: PacketOrder,
    info: StreamInfo,
    orientation: Orientation,
    /// Number of the next picture.
    seq: u64,
    /// What may be left undecoded from here on.
    skippable: Skippable,
    /// When the first picture was emitted, for pacing.
    started: Option<Instant>,
    /// Pictures that came out in this round of the loop.
    pictures: u64,
    /// The last thing that could not be decoded.
    trouble: Option<String>,
}

impl<'a> Playback<'a> {
    fn open(path: &'a Path, settings: &'a Settings, outlet: &'a mut dyn Outlet) -> Result<Playback<'a>, SourceError> {
        let demuxer = open(path, &settings.tracks, outlet)?;
        let base = demuxer.time_base();
        let decoder = Decoder::open(demuxer.parameters(), base, outlet.decoder_threads())
            .map_err(|error| undecodable(path, &error))?;
        let mut info = StreamInfo { tracks: demuxer.tracks().to_vec(), time_base: base, duration: demuxer.duration() };
        let orientation = demuxer.orientation();
        if let Some(TrackFormat::Video { width, height, .. }) = info.tracks.first_mut().map(|track| &mut track.format) {
            (*width, *height) = orientation.size((*width, *height));
        }
        let fallback = i64::from(base.denominator()) / i64::from(base.numerator()) / i64::from(FALLBACK_RATE);
        let sanitiser = Sanitiser::new(base, demuxer.nominal_duration().unwrap_or(fallback));
        let skippable = if settings.skip { decoder.skippable() } else { Skippable::Nothing };
        Ok(Playback {
            path,
            settings,
            outlet,
            demuxer,
            decoder,
            ledger: Ledger::default(),
            sanitiser,
            order: PacketOrder::default(),
            info,
            orientation,
            seq: 0,
            skippable,
            started: None,
            pictures: 0,
            trouble: None,
        })
    }

    fn run(mut self) -> Result<EndReason, SourceError> {
        self.outlet.open(self.info.clone());
        loop {
            self.round()?;
            if !self.settings.repeat {
                return Ok(EndReason::Eof);
            }
            self.rewind()?;
        }
    }

    /// Plays the file once.
    fn round(&mut self) -> Result<(), SourceError> {
        self.pictures = 0;
        let mut failed = None;
        loop {
            if self.outlet.stopping() {
                return Err(SourceError::Stopped);
            }
            let outlet = &*self.outlet;
            match self.demuxer.read(&|| outlet.stopping()) {
                Ok(Read::Packet(packet)) => self.packet(packet)?,
                Ok(Read::Unreadable(cause)) => self.corrupt(&cause),
                Ok(Read::End) => break,
                Err(DemuxError::Stopped) => return Err(SourceError::Stopped),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        self.drain()?;
        if let Some((read, listed)) = self.demuxer.cut_off() {
            let detail = format!("`{}` is cut off: {read} of its {listed} packets are there", self.path.display());
            self.outlet.repaired("truncated file", &detail);
        } else if let Some((reached, declared)) = self.demuxer.falls_short() {
            let detail =
                format!("`{}` ends after {reached:.1} s of the {declared:.1} s that it declares", self.path.display());
            self.outlet.repaired("truncated file", &detail);
        }
        if let Some(error) = failed {
            let message = format!("`{}` became unreadable after {} pictures: {error}", self.path.display(), self.seq);
            return Err(SourceError::input_with_hint(message, "check that the file is complete and its disk healthy"));
        }
        if self.pictures == 0 {
            return Err(self.nothing());
        }
        Ok(())
    }

    fn packet(&mut self, packet: Packet) -> Result<(), SourceError> {
        if packet.is_corrupt() {
            self.corrupt("the container marks it so");
        }
        let fate = self.fate(&packet);
        let ordinal = self.ledger.packet(packet.pts(), packet.duration(), fate);
        let spare = fate != Fate::Wanted && self.skippable != Skippable::Nothing;
        if spare && self.skippable == Skippable::Everything {
            return Ok(());
        }
        if let Err(error) = self.decoder.send(packet, ordinal, spare) {
            self.corrupt(&error.to_string());
        }
        loop {
            match self.decoder.receive() {
                Ok(Some(picture)) => self.picture(picture)?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.corrupt(&error.to_string());
                    return Ok(());
                }
            }
        }
    }

    fn fate(&mut self, packet: &Packet) -> Fate {
        if packet.is_hidden() {
            return Fate::Hidden;
        }
        if self.skippable == Skippable::Nothing {
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
            Some(ticks) if ticks >= 0 && !self.outlet.wants_packet(MediaTime::new(ticks, self.info.time_base)) => {
                Fate::Spare
            }
            _ => Fate::Wanted,
        }
    }

    /// Gets the last pictures out of the decoder.
    fn drain(&mut self) -> Result<(), SourceError> {
        if let Err(error) = self.decoder.send_end() {
            self.corrupt(&error.to_string());
        }
        let mut failures = 0;
        while failures < MOST_FAILURES_WHILE_DRAINING {
            match self.decoder.receive() {
                Ok(Some(picture)) => self.picture(picture)?,
                Ok(None) => break,
                Err(error) => {
                    failures += 1;
                    self.corrupt(&error.to_string());
                }
            }
        }
        let left_out = self.ledger.drained();
        self.left_out(left_out);
        Ok(())
    }

    fn picture(&mut self, picture: Picture) -> Result<(), SourceError> {
        let entry = self.ledger.picture(picture.ordinal(), picture.dts());
        self.left_out(entry.left_out);
        let stamp = self.sanitiser.sanitise(entry.pts.or(picture.dts()), entry.duration);
        let pts = MediaTime::new(stamp.ticks, self.info.time_base);
        if let Some(repair) = stamp.repair {
            self.outlet.repaired(repair.what(), &format!("at {pts}, picture {}", self.seq));
        }
        if picture.is_damaged() {
            self.outlet.repaired("damaged picture", &format!("at {pts}, picture {}", self.seq));
        }
        // Packets before the first picture may lack what they refer to: that is how recordings start.
        let surprising = entry.surprising && self.seq > 0;
        if stamp.repair.is_some() || surprising || picture.is_damaged() || picture.is_interlaced() {
            self.skippable = Skippable::Nothing;
        }
        self.note_size(self.orientation.size(picture.size()));
        if self.settings.realtime && !self.wait_for(pts) {
            return Err(SourceError::Stopped);
        }
        let seq = self.seq;
        self.seq += 1;
        self.pictures += 1;
        let mut picture = Some(picture);
        let orientation = self.orientation;
        self.outlet.frame(seq, pts, &mut || match picture.take() {
            Some(picture) => picture::into_frame(picture, Some(seq)).map(|frame| orientation.apply(frame)),
            None => Err(crate::error::ItemError::Failed("a picture was asked for twice".to_owned())),
        })?;
        Ok(())
    }

    fn left_out(&mut self, left_out: LeftOut) {
        if left_out.count > 0 {
            self.seq += left_out.count;
            self.pictures += left_out.count;
            self.outlet.skipped(left_out.count);
        }
        if let Some((pts, duration)) = left_out.last {
            self.sanitiser.pass(pts, duration);
        }
    }

    /// A picture of another size is a new format.
    fn note_size(&mut self, (now_width, now_height): (u32, u32)) {
        if let Some(TrackFormat::Video { width, height, .. }) =
            self.info.tracks.first_mut().map(|track| &mut track.format)
            && (*width, *height) != (now_width, now_height)
        {
            (*width, *height) = (now_width, now_height);
            self.outlet.open(self.info.clone());
        }
    }

    /// Waits until the picture at `pts` is due; `false` when stopped meanwhile.
    fn wait_for(&mut self, pts: MediaTime) -> bool {
        let now = self.outlet.clock().now();
        // The first picture is due at once, whatever was left out before it.
        let started = *self.started.get_or_insert_with(|| now.checked_sub(pts.as_duration()).unwrap_or(now));
        started.checked_add(pts.as_duration()).is_none_or(|due| wait_until(&*self.outlet, due))
    }

    fn corrupt(&mut self, cause: &str) {
        self.outlet.repaired("corrupt packet", cause);
        // Until a picture is out, nothing was left out, and packets may lack what they refer to.
        if self.seq > 0 {
            self.skippable = Skippable::Nothing;
        }
        self.trouble = Some(cause.to_owned());
    }

    /// Starts again at the beginning. The file is opened anew: seeking is not exact in every container.
    fn rewind(&mut self) -> Result<(), SourceError> {
        let demuxer = open(self.path, &self.settings.tracks, self.outlet)?;
        if demuxer.time_base() != self.demuxer.time_base() || demuxer.tracks() != self.demuxer.tracks() {
            let message = format!("`{}` was replaced by another file while it was looped", self.path.display());
            return Err(SourceError::input_with_hint(message, "start the stream again"));
        }
        self.demuxer = demuxer;
        self.decoder.flush();
        self.sanitiser.restart();
        self.order = PacketOrder::default();
        Ok(())
    }

    fn nothing(&self) -> SourceError {
        let path = self.path.display();
        let message = match &self.trouble {
            Some(cause) => format!("not one picture of `{path}` could be decoded: {cause}"),
            None => format!("the video track of `{path}` holds no picture"),
        };
        SourceError::input_with_hint(message, "the file is damaged or incomplete: copy or record it again")
    }
}

fn open(path: &Path, tracks: &Tracks, outlet: &dyn Outlet) -> Result<Demuxer, SourceError> {
    Demuxer::open(path, tracks, &|| outlet.stopping()).map_err(|error| unreadable(path, &error))
}

/// The error of a file that cannot be opened.
pub(super) fn unreadable(path: &Path, error: &DemuxError) -> SourceError {
    let name = path.display();
    let message = format!("`{name}` cannot be played: {error}");
    let hint = match error {
        DemuxError::Stopped => return SourceError::Stopped,
        DemuxError::NoVideo(_) => "name a file with a video track",
        DemuxError::NoTrack { .. } => "write indices out of that list, or `tracks = \"best\"`",
        DemuxError::Path => "rename the file",
        DemuxError::Empty | DemuxError::Failed(_) => match std::fs::metadata(path) {
            Err(cause) => {
                return SourceError::input_with_hint(
                    format!("`{name}` cannot be opened: {cause}"),
                    "check the path and the permissions",
                );
            }
            Ok(data) if data.len() == 0 => {
                return SourceError::input_with_hint(
                    format!("`{name}` is empty (0 bytes)"),
                    "check that it was recorded and copied completely",
                );
            }
            Ok(_) => {
                "check that it is a video file and that it is complete: an MP4 whose recording was cut off has \
                      no index and cannot be played"
            }
        },
    };
    SourceError::input_with_hint(message, hint)
}

fn undecodable(path: &Path, error: &DecodeError) -> SourceError {
    SourceError::input_with_hint(
        format!("the video track of `{}` cannot be decoded: {error}", path.display()),
        "convert it first, for example with `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`",
    )
}

#[cfg(test)]
mod tests;
