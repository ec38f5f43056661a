//! Plays one file into an outlet: demux, loop. What becomes of its packets is [`super::input`]'s affair.

use std::path::Path;

use crate::error::SourceError;
use crate::item::{EndReason, Gap, Played, Track, TrackFormat};
use crate::media::decode::DecodeError;
use crate::media::demux::{DemuxError, Demuxer, Read, Tracks};
use crate::operator::Outlet;

use super::input::Input;
use super::track::Manner;

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

/// Something with an end that can be played, wherever it lies.
pub(super) trait Recording {
    /// Its name, for messages.
    fn name(&self) -> String;

    /// Opens it at its beginning. While that works, `stop` is polled.
    fn open(&self, tracks: &Tracks, stop: &dyn Fn() -> bool) -> Result<Demuxer, SourceError>;

    /// What it is, as far as that is remembered over a restart.
    fn played(&self) -> Played {
        Played::Anew
    }

    /// Why it became unreadable, where it knows better than libav.
    fn failure(&self) -> Option<SourceError> {
        None
    }
}

/// A file of this machine.
struct LocalFile<'a> {
    path: &'a Path,
    played: Played,
}

impl Recording for LocalFile<'_> {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn open(&self, tracks: &Tracks, stop: &dyn Fn() -> bool) -> Result<Demuxer, SourceError> {
        Demuxer::open(self.path, tracks, stop).map_err(|error| unreadable(self.path, &error))
    }

    fn played(&self) -> Played {
        self.played.clone()
    }
}

/// Plays the file at `path` until it ends or the outlet stops.
pub(super) fn play(path: &Path, settings: &Settings, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
    play_as(path, Played::Anew, settings, outlet)
}

/// As [`play`]; `played` is what the file is where it has an end.
pub(super) fn play_as(
    path: &Path,
    played: Played,
    settings: &Settings,
    outlet: &mut dyn Outlet,
) -> Result<EndReason, SourceError> {
    play_recording(&LocalFile { path, played }, settings, outlet)
}

/// Plays a recording until it ends or the outlet stops.
pub(super) fn play_recording(
    recording: &dyn Recording,
    settings: &Settings,
    outlet: &mut dyn Outlet,
) -> Result<EndReason, SourceError> {
    match Playback::open(recording, settings, outlet).and_then(Playback::run) {
        Err(SourceError::Stopped) => Ok(EndReason::Stopped),
        result => result,
    }
}

struct Playback<'a> {
    recording: &'a dyn Recording,
    settings: &'a Settings,
    outlet: &'a mut dyn Outlet,
    demuxer: Demuxer,
    input: Input,
}

/// Warns of sound that nobody will hear: libav ranks no track of which nothing came while it looked what there is.
fn tell_unheard(name: &str, demuxer: &Demuxer) {
    let is_sound = |track: &Track| matches!(track.format, TrackFormat::Audio { .. });
    if demuxer.tracks().iter().any(is_sound) {
        return;
    }
    if let Some(Track { index, codec, .. }) = demuxer.every_track().into_iter().find(is_sound) {
        tracing::warn!(
            input = name,
            "the sound of `{name}` (track {index}, {codec}) is left out: none of it came in its first seconds; `ffmpeg -i IN \
             -c copy OUT.mkv` makes a file in which it is kept"
        );
    }
}

impl<'a> Playback<'a> {
    fn open(
        recording: &'a dyn Recording,
        settings: &'a Settings,
        outlet: &'a mut dyn Outlet,
    ) -> Result<Playback<'a>, SourceError> {
        let mut demuxer = recording.open(&settings.tracks, &|| outlet.stopping())?;
        let manner = Manner {
            skip: settings.skip,
            keyframes_only: settings.keyframes_only,
            realtime: settings.realtime,
            indexed: true,
            longest_step: None,
        };
        let input = Input::open(&mut demuxer, manner, outlet.demand(), outlet.decoder_threads());
        let mut input = input.map_err(|error| undecodable(recording, &error))?;
        // What has no end does not come again, whatever it is made of.
        input.set_played(&if settings.repeat { Played::Live } else { recording.played() });
        if outlet.demand().packets && settings.tracks == Tracks::Best {
            tell_unheard(&recording.name(), &demuxer);
        }
        Ok(Playback { recording, settings, outlet, demuxer, input })
    }

    fn run(mut self) -> Result<EndReason, SourceError> {
        self.outlet.open(self.input.info().clone());
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
        self.input.begin_round();
        let mut failed = None;
        loop {
            if self.outlet.stopping() {
                return Err(SourceError::Stopped);
            }
            let outlet = &*self.outlet;
            self.input.attend(&mut self.demuxer, outlet);
            match self.demuxer.read(&|| outlet.stopping()) {
                Ok(Read::Packet(packet)) => self.input.packet(packet, &self.demuxer, self.outlet)?,
                Ok(Read::Unreadable(cause)) => self.input.corrupt(&cause, self.outlet),
                Ok(Read::End) => break,
                Err(DemuxError::Stopped) => return Err(SourceError::Stopped),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        self.input.drain(self.outlet)?;
        if let Some((read, listed)) = self.demuxer.cut_off() {
            self.cut_off(&format!("{read} of its {listed} packets are there"));
        } else if let Some((reached, declared)) = self.demuxer.falls_short() {
            self.cut_off(&format!("it ends after {reached:.1} s of the {declared:.1} s that it declares"));
        }
        if let Some(error) = failed {
            if let Some(failure) = self.recording.failure() {
                return Err(failure);
            }
            let (name, pictures) = (self.recording.name(), self.input.pictures());
            let message = format!("`{name}` became unreadable after {pictures} pictures: {error}");
            return Err(SourceError::input_with_hint(message, "check that the file is complete and its disk healthy"));
        }
        if self.input.pictures() == 0 {
            return Err(self.nothing());
        }
        Ok(())
    }

    /// Tells the log and whoever reads the records that the rest of the file is missing.
    fn cut_off(&mut self, how: &str) {
        let reason = format!("`{}` is cut off: {how}", self.recording.name());
        self.outlet.repaired("file cut off", &reason);
        self.outlet.gap(Gap { reason, seq: None });
    }

    /// Starts again at the beginning. The file is opened anew: seeking is not exact in every container.
    fn rewind(&mut self) -> Result<(), SourceError> {
        let outlet = &*self.outlet;
        let demuxer = self.recording.open(&self.settings.tracks, &|| outlet.stopping())?;
        if demuxer.time_base() != self.demuxer.time_base() || demuxer.tracks() != self.demuxer.tracks() {
            let message = format!("`{}` was replaced by another file while it was looped", self.recording.name());
            return Err(SourceError::input_with_hint(message, "start the stream again"));
        }
        self.demuxer = demuxer;
        self.input.restart(&mut self.demuxer);
        Ok(())
    }

    fn nothing(&self) -> SourceError {
        let name = self.recording.name();
        let message = match self.input.trouble() {
            Some(cause) => format!("not one picture of `{name}` could be decoded: {cause}"),
            None => format!("the video track of `{name}` holds no picture"),
        };
        SourceError::input_with_hint(message, "the file is damaged or incomplete: copy or record it again")
    }
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

fn undecodable(recording: &dyn Recording, error: &DecodeError) -> SourceError {
    SourceError::input_with_hint(
        format!("the video track of `{}` cannot be decoded: {error}", recording.name()),
        "convert it first, for example with `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`",
    )
}

#[cfg(test)]
mod tests;
