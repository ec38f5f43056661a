//! Plays one file into an outlet: demux, pace, loop. What becomes of its packets is [`super::track`]'s affair.

use std::path::Path;

use crate::error::SourceError;
use crate::item::{EndReason, Gap};
use crate::media::decode::DecodeError;
use crate::media::demux::{DemuxError, Demuxer, Read, Tracks};
use crate::operator::Outlet;

use super::track::{Manner, VideoTrack};

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
    /// Decode and offer keyframes alone.
    pub keyframes_only: bool,
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
    track: VideoTrack,
}

impl<'a> Playback<'a> {
    fn open(path: &'a Path, settings: &'a Settings, outlet: &'a mut dyn Outlet) -> Result<Playback<'a>, SourceError> {
        let demuxer = open(path, &settings.tracks, outlet)?;
        let manner = Manner {
            skip: settings.skip,
            keyframes_only: settings.keyframes_only,
            realtime: settings.realtime,
            indexed: true,
            longest_step: None,
        };
        let track =
            VideoTrack::open(&demuxer, manner, outlet.decoder_threads()).map_err(|error| undecodable(path, &error))?;
        Ok(Playback { path, settings, outlet, demuxer, track })
    }

    fn run(mut self) -> Result<EndReason, SourceError> {
        self.outlet.open(self.track.info().clone());
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
        self.track.begin_round();
        let mut failed = None;
        loop {
            if self.outlet.stopping() {
                return Err(SourceError::Stopped);
            }
            let outlet = &*self.outlet;
            match self.demuxer.read(&|| outlet.stopping()) {
                Ok(Read::Packet(packet)) => self.track.packet(packet, self.outlet)?,
                Ok(Read::Unreadable(cause)) => self.track.corrupt(&cause, self.outlet),
                Ok(Read::End) => break,
                Err(DemuxError::Stopped) => return Err(SourceError::Stopped),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        self.track.drain(self.outlet)?;
        if let Some((read, listed)) = self.demuxer.cut_off() {
            self.cut_off(&format!("{read} of its {listed} packets are there"));
        } else if let Some((reached, declared)) = self.demuxer.falls_short() {
            self.cut_off(&format!("it ends after {reached:.1} s of the {declared:.1} s that it declares"));
        }
        if let Some(error) = failed {
            let (path, pictures) = (self.path.display(), self.track.seq());
            let message = format!("`{path}` became unreadable after {pictures} pictures: {error}");
            return Err(SourceError::input_with_hint(message, "check that the file is complete and its disk healthy"));
        }
        if self.track.pictures() == 0 {
            return Err(self.nothing());
        }
        Ok(())
    }

    /// Tells the log and whoever reads the records that the rest of the file is missing.
    fn cut_off(&mut self, how: &str) {
        let reason = format!("`{}` is cut off: {how}", self.path.display());
        self.outlet.repaired("file cut off", &reason);
        self.outlet.gap(Gap { reason, seq: None });
    }

    /// Starts again at the beginning. The file is opened anew: seeking is not exact in every container.
    fn rewind(&mut self) -> Result<(), SourceError> {
        let demuxer = open(self.path, &self.settings.tracks, self.outlet)?;
        if demuxer.time_base() != self.demuxer.time_base() || demuxer.tracks() != self.demuxer.tracks() {
            let message = format!("`{}` was replaced by another file while it was looped", self.path.display());
            return Err(SourceError::input_with_hint(message, "start the stream again"));
        }
        self.demuxer = demuxer;
        self.track.restart();
        Ok(())
    }

    fn nothing(&self) -> SourceError {
        let path = self.path.display();
        let message = match self.track.trouble() {
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
        DemuxError::Format => "name the media file itself; a playlist of the network is played by `type = \"url\"`",
        _ => match std::fs::metadata(path) {
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
