//! Plays live inputs: connects, watches, waits, connects again, until it is told to stop.
//!
//! ```text
//! connecting ──▶ running ──▶ retrying (reason, attempts) ──▶ running
//!      └────────────────────────▲   └──▶ fallback ──▶ running
//! ```
//! An input that cannot be opened, that falls silent, that shows no picture, or that ends is lost; all are treated
//! alike: a `gap` downstream, then another attempt after a delay that grows. Numbers and time go on
//! ([`continued`]). After enough failures in a row a file is played in the camera's place, while it is looked for
//! ([`behind`]).

mod behind;
pub(super) mod connection;
pub(crate) mod continued;
pub(super) mod lookup;
pub(super) mod settings;

use std::time::{Duration, Instant};

use crate::error::SourceError;
use crate::item::{EndReason, StreamId};
use crate::media::demux::{DemuxError, Demuxer, Read, Tracks};
use crate::operator::{Outlet, SourceState, wait_until};

use super::input::Input;
use super::playback;
use super::track::Manner;
use behind::Behind;
use connection::{Connection, Loss, NotConnected, close, connect};
use continued::{Continued, Line};
pub(super) use settings::{Fallback, Protocol, Settings, Transport};

/// Plays the input of `settings` for ever, as stream `stream`.
pub(super) fn run(stream: &StreamId, settings: &Settings, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
    let mut live = Live { stream, settings, line: Line::default(), failures: 0 };
    match live.run(outlet) {
        Err(SourceError::Stopped) => Ok(EndReason::Stopped),
        result => result,
    }
}

struct Live<'a> {
    stream: &'a StreamId,
    settings: &'a Settings,
    line: Line,
    /// Attempts in a row that showed no picture, or pictures for less than `no_frame_for`.
    failures: u64,
}

impl Live<'_> {
    /// Never ends by itself.
    fn run(&mut self, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
        let mut found = None;
        loop {
            let connected = match found.take() {
                Some(connection) => Ok(connection),
                None => {
                    let clock = outlet.clock().clone();
                    connect(self.settings, outlet.demand(), &*clock, &|| outlet.stopping())
                }
            };
            let loss = match connected {
                Ok(connection) => self.play(connection, outlet)?,
                Err(NotConnected::Stopped) => return Err(SourceError::Stopped),
                Err(NotConnected::Lost(loss)) => loss,
            };
            self.failures += 1;
            if let Some(gap) = self.line.break_off(loss.reason()) {
                outlet.gap(gap);
            }
            found = match &self.settings.fallback {
                Some(fallback) if self.failures >= fallback.after => self.fall_back(fallback, &loss, outlet)?,
                _ => {
                    self.retry(&loss, outlet)?;
                    None
                }
            };
        }
    }

    /// Waits until it is time for another attempt.
    fn retry(&self, loss: &Loss, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        outlet.state(SourceState::Retrying { reason: loss.to_string(), attempts: self.failures });
        let again = outlet.clock().now() + self.settings.backoff.delay(self.failures);
        if wait_until(outlet, again) { Ok(()) } else { Err(SourceError::Stopped) }
    }

    /// Plays a connection until it is lost.
    fn play(&mut self, connection: Connection, outlet: &mut dyn Outlet) -> Result<Loss, SourceError> {
        let Connection { mut demuxer, waiting, size } = connection;
        outlet.state(SourceState::Running);
        let shown_from = outlet.clock().now();
        let manner = Manner {
            skip: self.settings.skip,
            keyframes_only: self.settings.keyframes_only,
            realtime: false,
            indexed: false,
            longest_step: Some(self.settings.no_frame_for.max(self.settings.read_timeout)),
        };
        let played = match Input::open(&mut demuxer, manner, outlet.demand(), outlet.decoder_threads()) {
            Ok(mut input) => {
                if let Some(size) = size {
                    input.expect_size(size);
                }
                let mut outlet = Continued::new(outlet, &mut self.line, None);
                outlet.open(input.info().clone());
                let taken = waiting.into_iter().try_for_each(|packet| input.packet(packet, &demuxer, &mut outlet));
                taken.and_then(|()| watch(&mut demuxer, &mut input, self.settings, &mut outlet))
            }
            Err(error) => {
                let loss = Loss::new(error.to_string(), "set the camera to a codec of FFmpeg, such as H.264");
                Ok((loss, shown_from))
            }
        };
        close(demuxer, &**outlet.clock());
        let (loss, shown_until) = match played {
            Err(SourceError::Interrupted(reason)) => (Loss::interrupted(reason), outlet.clock().now()),
            played => played?,
        };
        self.failures = failures_before(self.failures, shown_until - shown_from, self.settings);
        Ok(loss)
    }

    /// Plays the fallback until the camera is found; `None` where the search itself has failed.
    fn fall_back(
        &mut self,
        fallback: &Fallback,
        loss: &Loss,
        outlet: &mut dyn Outlet,
    ) -> Result<Option<Connection>, SourceError> {
        let clock = outlet.clock().clone();
        let behind = match Behind::start(self.stream, self.settings, outlet.demand(), self.failures, clock) {
            Ok(behind) => behind,
            Err(error) => {
                outlet.repaired("fallback", &format!("no thread to look for the camera: {error}"));
                self.retry(loss, outlet)?;
                return Ok(None);
            }
        };
        outlet.state(SourceState::Fallback { reason: loss.to_string(), attempts: self.failures });
        let manner = playback::Settings {
            tracks: Tracks::Best,
            repeat: true,
            realtime: true,
            skip: self.settings.skip,
            keyframes_only: self.settings.keyframes_only,
        };
        let played =
            playback::play(&fallback.path, &manner, &mut Continued::new(outlet, &mut self.line, Some(&behind)));
        if let Err(error) = played {
            outlet.repaired("fallback", &error.to_string());
            let reason = format!("{loss}; and the fallback: {error}");
            outlet.state(SourceState::Retrying { reason, attempts: self.failures });
            // The search goes on without it.
            while !behind.is_over() && !outlet.stopping() {
                let now = outlet.clock().now();
                if let Some(SourceState::Fallback { reason, attempts }) = behind.news() {
                    let reason = format!("{reason}; and the fallback: {error}");
                    outlet.state(SourceState::Retrying { reason, attempts });
                }
                outlet.clock().wait(now + PATIENCE, PATIENCE);
            }
        }
        self.failures = behind.failures();
        let found = behind.finish();
        if outlet.stopping() {
            return Err(SourceError::Stopped);
        }
        if let Some(gap) = self.line.break_off("the camera is back, and the fallback ends") {
            outlet.gap(gap);
        }
        Ok(found)
    }
}

/// Failures in a row that count when a connection is lost which showed pictures for `shown`. An input that shows one
/// and ends, again and again, is to wait longer each time and to reach its fallback like one that shows none.
fn failures_before(failures: u64, shown: Duration, settings: &Settings) -> u64 {
    if shown >= settings.no_frame_for { 0 } else { failures }
}

/// Between two looks at the search for the camera.
const PATIENCE: Duration = Duration::from_millis(50);

/// Reads until the input is lost, and decodes what is asked for; answers when it made its last progress, too.
fn watch(
    demuxer: &mut Demuxer,
    input: &mut Input,
    settings: &Settings,
    outlet: &mut Continued<'_>,
) -> Result<(Loss, Instant), SourceError> {
    let clock = outlet.clock().clone();
    let (mut progress, mut progressed) = (input.progress(), clock.now());
    let loss = loop {
        if outlet.stopping() {
            return Err(SourceError::Stopped);
        }
        let frame_by = progressed + settings.no_frame_for;
        let read_by = clock.now() + settings.read_timeout;
        input.attend(demuxer, outlet);
        let given_up = || outlet.stopping() || clock.now() >= frame_by.min(read_by);
        match demuxer.read(&given_up) {
            Ok(Read::Packet(packet)) => input.packet(packet, demuxer, outlet)?,
            Ok(Read::Unreadable(cause)) => input.corrupt(&cause, outlet),
            Ok(Read::End) => break Loss::ended(),
            Err(DemuxError::Stopped) if outlet.stopping() => return Err(SourceError::Stopped),
            Err(DemuxError::Stopped) if clock.now() >= frame_by => {
                break Loss::no_frame(settings.no_frame_for, input.trouble());
            }
            Err(DemuxError::Stopped) => break Loss::no_packet(settings.read_timeout),
            Err(error) => break Loss::of(&error),
        }
        if input.progress() != progress {
            // Taken now, after whoever made the source wait: its time is not the camera's.
            (progress, progressed) = (input.progress(), clock.now());
        } else if clock.now() >= frame_by {
            break Loss::no_frame(settings.no_frame_for, input.trouble());
        }
    };
    input.drain(outlet)?;
    Ok((loss, progressed))
}

#[cfg(test)]
mod tests;
