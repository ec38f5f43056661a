//! Plays one file into an outlet: demux, decode, number, repair stamps, pace, loop.
//!
//! What nobody asked for is left undecoded where that changes no other picture: each packet that no subscriber wants
//! goes into the decoder marked as spare. That rests on two things, a clean track and a codec in which a packet is a
//! picture; at the first sign that one does not hold, the rest of the file is decoded in full.

use std::path::Path;
use std::time::Instant;

use crate::error::SourceError;
use crate::item::{EndReason, StreamInfo, TrackFormat};
use crate::media::decode::{DecodeError, Decoder, Picture, Skippable};
use crate::media::demux::{DemuxError, Demuxer, Packet, Read, Tracks};
use crate::media::ledger::{Fate, Ledger};
use crate::media::picture;
use crate::operator::{Outlet, wait_until};
use crate::time::MediaTime;
use crate::timestamps::Sanitiser;

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
    info: StreamInfo,
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
        let info = StreamInfo { tracks: demuxer.tracks().to_vec(), time_base: base, duration: demuxer.duration() };
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
            info,
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
        // Until the first picture is out, nobody knows where a packet lies in time.
        match packet.pts().and_then(|pts| self.sanitiser.predict(pts)) {
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
        let skipped = self.ledger.drained();
        self.left_out(skipped);
        Ok(())
    }

    fn picture(&mut self, picture: Picture) -> Result<(), SourceError> {
        let entry = self.ledger.picture(picture.ordinal());
        let stamp = self.sanitiser.sanitise(entry.pts.or(picture.dts()), entry.duration);
        let pts = MediaTime::new(stamp.ticks, self.info.time_base);
        self.left_out(entry.skipped);
        if let Some(repair) = stamp.repair {
            self.outlet.repaired(repair.what(), &format!("at {pts}, picture {}", self.seq));
        }
        if picture.is_damaged() {
            self.outlet.repaired("damaged picture", &format!("at {pts}, picture {}", self.seq));
        }
        // Packets before the first picture may lack what they refer to: that is how recordings start.
        let surprising = entry.surprising && self.seq > 0;
        if stamp.repair.is_some() || surprising || picture.is_interlaced() {
            self.skippable = Skippable::Nothing;
        }
        self.note_size(picture.size());
        if self.settings.realtime && !self.wait_for(pts) {
            return Err(SourceError::Stopped);
        }
        let seq = self.seq;
        self.seq += 1;
        self.pictures += 1;
        let mut picture = Some(picture);
        self.outlet.frame(seq, pts, &mut || match picture.take() {
            Some(picture) => picture::into_frame(picture, Some(seq)),
            None => Err(crate::error::ItemError::Failed("a picture was asked for twice".to_owned())),
        })?;
        Ok(())
    }

    fn left_out(&mut self, count: u64) {
        if count > 0 {
            self.seq += count;
            self.pictures += count;
            self.outlet.skipped(count);
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
mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;
    use std::process::Command;
    use std::rc::Rc;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Clock, SimulatedClock};
    use crate::config::Rate;
    use crate::item::{ColorRange, PixelFormat};
    use crate::testing::RecordingOutlet;
    use crate::transforms::checksum::md5;
    use crate::transforms::sample::Sampler;

    fn plain() -> Settings {
        Settings { tracks: Tracks::Best, repeat: false, realtime: false, skip: true }
    }

    fn twice_a_second() -> Sampler {
        Sampler::new(Rate { numerator: 2, denominator: 1 }, Duration::ZERO)
    }

    /// The folder of reference material; `None` where it is not there and need not be.
    fn material() -> Option<PathBuf> {
        let folder = std::env::var_os("ENGINE_MATERIAL")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/material"), PathBuf::from);
        if folder.join("reference/videos.json").is_file() {
            return Some(folder);
        }
        assert!(std::env::var_os("ENGINE_REQUIRE_MATERIAL").is_none_or(|value| value != "1"), "no {folder:?}");
        eprintln!("skipped: there is no reference material in {}", folder.display());
        None
    }

    /// One sampled picture: number, microseconds, checksum.
    type Sampled = (u64, i64, String);

    fn sampled(path: &Path, settings: &Settings, threads: usize) -> (Vec<Sampled>, RecordingOutlet) {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let sink = seen.clone();
        let mut outlet =
            RecordingOutlet::default().threads(threads).sampling(twice_a_second()).observe(move |seq, pts, frame| {
                assert_eq!(frame.index, Some(seq));
                sink.borrow_mut().push((seq, pts.as_micros(), md5(&frame)));
            });
        assert_eq!(play(path, settings, &mut outlet).unwrap(), EndReason::Eof, "{}", path.display());
        (seen.take(), outlet)
    }

    #[test]
    fn sampled_pictures_equal_the_reference_with_and_without_skipping() {
        let Some(material) = material() else { return };
        let text = std::fs::read_to_string(material.join("reference/videos.json")).unwrap();
        let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut skipped_somewhere = 0;
        for (name, video) in reference.as_object().unwrap() {
            let expected: Vec<(u64, f64, &str)> = video["samples"]
                .as_array()
                .unwrap()
                .iter()
                .map(|sample| {
                    let md5 = sample["md5_yuv420p"].as_str().unwrap();
                    (sample["frame_index"].as_u64().unwrap(), sample["pts_s"].as_f64().unwrap(), md5)
                })
                .collect();
            let path = material.join("videos").join(name);
            for (skip, threads) in [(true, 1), (true, 4), (false, 1), (false, 4)] {
                let label = format!("{name}, skip {skip}, {threads} threads");
                let (got, outlet) = sampled(&path, &Settings { skip, ..plain() }, threads);
                assert_eq!(got.len(), expected.len(), "{label}");
                for ((seq, micros, md5), (index, seconds, reference)) in got.iter().zip(&expected) {
                    assert_eq!((*seq, md5.as_str()), (*index, *reference), "{label} at {seconds} s");
                    assert!((*micros as f64 / 1e6 - seconds).abs() < 2e-6, "{label}: {micros} µs, {seconds} s");
                }
                let total = video["frames_decoded"].as_u64().unwrap();
                assert_eq!(outlet.offered.len() as u64 + outlet.skipped, total, "{label}");
                assert_eq!(outlet.repaired, [], "{label}");
                assert_eq!(outlet.opens.len(), 1, "{label}");
                assert_eq!(outlet.opens[0].tracks[0].index as u64, video["video_stream_index"].as_u64().unwrap());
                if skip {
                    eprintln!("{label}: {} of {total} left undecoded", outlet.skipped);
                    skipped_somewhere += outlet.skipped;
                } else {
                    assert_eq!(outlet.skipped, 0, "{label}");
                }
            }
        }
        assert!(skipped_somewhere > 1000, "only {skipped_somewhere} pictures were left undecoded");
    }

    #[test]
    fn a_loop_shows_the_same_pictures_again_and_time_goes_on() {
        let Some(material) = material() else { return };
        for name in ["asl-again.mkv", "people_bframes_offset.ts", "people_hevc_vfr.mp4"] {
            let path = material.join("videos").join(name);
            let seen = Rc::new(RefCell::new(Vec::new()));
            let sink = seen.clone();
            let mut outlet = RecordingOutlet::default()
                .threads(4)
                .observe(move |seq, pts, frame| sink.borrow_mut().push((seq, pts, md5(&frame))));
            play(&path, &plain(), &mut outlet).unwrap();
            let once = seen.take();
            let sink = seen.clone();
            let mut outlet = RecordingOutlet::default()
                .threads(4)
                .stop_after(once.len() * 2 + 10)
                .observe(move |seq, pts, frame| sink.borrow_mut().push((seq, pts, md5(&frame))));
            let settings = Settings { repeat: true, ..plain() };
            assert_eq!(play(&path, &settings, &mut outlet).unwrap(), EndReason::Stopped);
            let looped = seen.take();
            for (index, (seq, pts, md5)) in looped.iter().enumerate() {
                assert_eq!((*seq, md5), (index as u64, &once[index % once.len()].2), "{name}");
                assert!(index == 0 || *pts > looped[index - 1].1, "{name} at {index}");
            }
            let round = once.len();
            let step = looped[round].1.as_micros() - looped[round - 1].1.as_micros();
            assert!((20_000..=1_000_000).contains(&step), "{name}: the second round starts {step} µs after the first");
            assert_eq!(outlet.repaired, [], "{name}");
        }
    }

    /// Runs ffmpeg with `arguments`, in `folder`.
    fn ffmpeg(folder: &Path, arguments: &str) {
        let command = Command::new("ffmpeg")
            .args(["-hide_banner", "-loglevel", "error", "-y"])
            .args(arguments.split_whitespace())
            .current_dir(folder)
            .output()
            .expect("ffmpeg is installed");
        assert!(command.status.success(), "{arguments}: {}", String::from_utf8_lossy(&command.stderr));
    }

    const CLIP: &str = "-f lavfi -i testsrc2=size=96x64:rate=25:duration=2 -c:v libx264 -bf 2 -g 25 -pix_fmt yuv420p";

    fn played(path: &Path) -> (Result<EndReason, SourceError>, RecordingOutlet) {
        let mut outlet = RecordingOutlet::default();
        let result = play(path, &plain(), &mut outlet);
        (result, outlet)
    }

    /// Message and hint of a file that cannot be played.
    fn failure(path: &Path) -> (String, String) {
        match played(path).0 {
            Err(SourceError::Input { message, hint: Some(hint) }) => {
                assert!(message.contains(path.to_str().unwrap()), "{message}");
                (message, hint)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_that_cannot_be_played_say_why() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        ffmpeg(folder.path(), "-f lavfi -i sine=duration=1 audio.wav");
        ffmpeg(folder.path(), &format!("{CLIP} whole.mp4"));
        let whole = std::fs::read(at("whole.mp4")).unwrap();
        std::fs::write(at("cut.mp4"), &whole[..whole.len() * 2 / 3]).unwrap();
        std::fs::write(at("empty.mp4"), b"").unwrap();
        std::fs::write(at("text.mp4"), "not a video\n".repeat(100)).unwrap();

        let (message, _) = failure(&at("audio.wav"));
        assert!(message.contains("no video track; its tracks are: 0 audio (pcm_s16le)"), "{message}");
        let (_, hint) = failure(&at("cut.mp4"));
        assert!(hint.contains("has no index"), "{hint}");
        let (message, _) = failure(&at("empty.mp4"));
        assert!(message.contains("is empty"), "{message}");
        failure(&at("text.mp4"));
        let (message, hint) = failure(&at("nowhere.mp4"));
        assert!(message.contains("No such file") && hint.contains("path"), "{message}: {hint}");
        failure(folder.path());

        let settings = Settings { tracks: Tracks::Indices(vec![4]), ..plain() };
        let error = play(&at("whole.mp4"), &settings, &mut RecordingOutlet::default()).unwrap_err();
        assert!(error.to_string().contains("no track 4; its tracks are: 0 video (h264)"), "{error}");
    }

    #[test]
    fn what_is_left_of_a_damaged_file_is_played() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        ffmpeg(folder.path(), &format!("{CLIP} -movflags +faststart whole.mp4"));
        ffmpeg(folder.path(), &format!("{CLIP} whole.ts"));
        ffmpeg(folder.path(), &format!("{CLIP} whole.mkv"));
        for name in ["whole.mp4", "whole.ts", "whole.mkv"] {
            let whole = std::fs::read(at(name)).unwrap();
            std::fs::write(at("cut"), &whole[..whole.len() * 2 / 3]).unwrap();
            let (result, outlet) = played(&at("cut"));
            assert!((10..50).contains(&outlet.emitted), "{name}: {result:?} after {} pictures", outlet.emitted);
            if let Err(error) = result {
                assert!(error.to_string().contains("unreadable"), "{name}: {error}");
            }
            if name.ends_with("mp4") {
                assert_eq!(outlet.repairs("truncated file"), 1, "{:?}", outlet.repaired);
            }
            let mut damaged = whole.clone();
            let middle = damaged.len() / 2;
            damaged[middle..middle + 3000].iter_mut().for_each(|byte| *byte ^= 0x5a);
            std::fs::write(at("damaged"), &damaged).unwrap();
            let (result, outlet) = played(&at("damaged"));
            assert!(outlet.emitted >= 20, "{name}: {result:?} after {} pictures", outlet.emitted);
            // The reader of Matroska passes over damage without a word.
            assert!(!outlet.repaired.is_empty() || name.ends_with("mkv"), "{name}");
            let increasing = outlet.offered.windows(2).all(|pair| pair[0] < pair[1]);
            assert!(increasing, "{name}: {:?}", outlet.offered);
        }
    }

    #[test]
    fn the_smallest_and_the_largest_pictures_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        ffmpeg(
            folder.path(),
            "-f lavfi -i color=c=red:size=2x2:rate=5:duration=1,format=yuv444p,crop=1:1 -c:v ffv1 -pix_fmt yuv420p tiny.mkv",
        );
        ffmpeg(folder.path(), "-f lavfi -i color=c=red:size=7680x4320 -frames:v 1 -c:v mjpeg large.mkv");
        let (result, outlet) = played(&folder.path().join("tiny.mkv"));
        assert_eq!(result.unwrap(), EndReason::Eof);
        assert_eq!(outlet.emitted, 5);
        let frame = &outlet.frames[0].frame;
        assert_eq!((frame.width, frame.height, frame.rows(0).count(), frame.rows(2).count()), (1, 1, 1, 1));
        let (result, outlet) = played(&folder.path().join("large.mkv"));
        assert_eq!(result.unwrap(), EndReason::Eof);
        let frame = &outlet.frames[0].frame;
        assert_eq!((frame.width, frame.height), (7680, 4320));
        assert_eq!(frame.rows(0).map(<[u8]>::len).sum::<usize>(), 7680 * 4320);
        let parameters =
            Demuxer::open(&folder.path().join("large.mkv"), &Tracks::Best, &|| false).unwrap().parameters();
        assert!(picture::expected_bytes(&parameters).unwrap() >= frame.bytes());
    }

    #[test]
    fn a_change_of_size_opens_the_stream_again() {
        let folder = tempfile::tempdir().unwrap();
        ffmpeg(folder.path(), &format!("{CLIP} first.ts"));
        ffmpeg(folder.path(), &format!("{} second.ts", CLIP.replace("96x64", "128x80")));
        let mut both = std::fs::read(folder.path().join("first.ts")).unwrap();
        both.extend(std::fs::read(folder.path().join("second.ts")).unwrap());
        std::fs::write(folder.path().join("both.ts"), both).unwrap();
        let (result, outlet) = played(&folder.path().join("both.ts"));
        assert_eq!(result.unwrap(), EndReason::Eof);
        let sizes: Vec<_> = outlet
            .opens
            .iter()
            .map(|info| match info.tracks[0].format {
                TrackFormat::Video { width, height, .. } => (width, height),
                TrackFormat::Audio { .. } => (0, 0),
            })
            .collect();
        assert_eq!(sizes, [(96, 64), (128, 80)]);
        assert_eq!(outlet.emitted, 100);
        assert_eq!((outlet.frames[49].frame.width, outlet.frames[50].frame.width), (96, 128));
        assert_eq!(outlet.repairs("backward timestamp"), 1, "{:?}", outlet.repaired);
        assert_eq!(outlet.frames[99].seq, 99);
        let seconds = outlet.frames[99].pts.as_seconds();
        assert!((3.9..4.1).contains(&seconds), "{seconds}");
    }

    /// Each format holds the same red, whatever it is stored as.
    #[test]
    fn every_pixel_format_becomes_one_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let cases = [
            ("yuv420p", PixelFormat::Yuv420p),
            ("yuv422p", PixelFormat::Yuv422p),
            ("yuv444p", PixelFormat::Yuv444p),
            ("yuv420p10le", PixelFormat::Yuv420p),
            ("yuv422p12le", PixelFormat::Yuv422p),
            ("yuv444p16le", PixelFormat::Yuv444p),
            ("yuva420p", PixelFormat::Yuv420p),
            ("yuv410p", PixelFormat::Yuv444p),
            ("yuv440p", PixelFormat::Yuv444p),
            ("bgr0", PixelFormat::Rgb24),
            ("bgra", PixelFormat::Rgb24),
            ("gbrp", PixelFormat::Rgb24),
            ("gbrp10le", PixelFormat::Rgb24),
            ("gray", PixelFormat::Gray8),
            ("gray16le", PixelFormat::Gray8),
        ];
        for (pixel, expected) in cases {
            let codec = if pixel.starts_with("gray16") || pixel == "yuv440p" { "rawvideo" } else { "ffv1" };
            let source = "-f lavfi -i color=c=red:size=50x38:rate=5 -frames:v 1";
            ffmpeg(folder.path(), &format!("{source} -pix_fmt {pixel} -c:v {codec} {pixel}.nut"));
            let (result, outlet) = played(&folder.path().join(format!("{pixel}.nut")));
            assert_eq!(result.unwrap(), EndReason::Eof, "{pixel}");
            assert_eq!(outlet.failures.len(), 0, "{pixel}: {:?}", outlet.failures);
            let frame = &outlet.frames[0].frame;
            assert_eq!(frame.format, expected, "{pixel}");
            // Red in limited BT.601 is Y 81, U 90, V 240 (BT.601); as full-range grey 76.
            let wanted: &[&[u8]] = match expected {
                PixelFormat::Rgb24 => &[&[253, 0, 0]],
                PixelFormat::Gray8 => &[&[76]],
                _ => &[&[81], &[90], &[240]],
            };
            for (plane, samples) in wanted.iter().enumerate() {
                for row in frame.rows(plane) {
                    for (got, wanted) in row.iter().zip(samples.iter().cycle()) {
                        assert!(got.abs_diff(*wanted) <= 2, "{pixel}, plane {plane}: {got} for {wanted}");
                    }
                }
            }
            let full = matches!(expected, PixelFormat::Rgb24 | PixelFormat::Gray8);
            assert_eq!(frame.range == ColorRange::Full, full, "{pixel}");
        }
    }

    #[test]
    fn cropping_is_exact_to_the_pixel() {
        let folder = tempfile::tempdir().unwrap();
        ffmpeg(folder.path(), &format!("{CLIP} -qp 0 -profile:v high444 whole.mkv"));
        let crop = "h264_metadata=crop_left=6:crop_right=10:crop_top=4:crop_bottom=2";
        ffmpeg(folder.path(), &format!("-i whole.mkv -c copy -bsf:v {crop} cropped.mkv"));
        let (_, whole) = played(&folder.path().join("whole.mkv"));
        let (_, cropped) = played(&folder.path().join("cropped.mkv"));
        let (whole, cropped) = (&whole.frames[30].frame, &cropped.frames[30].frame);
        assert_eq!((cropped.width, cropped.height), (80, 58));
        for (row, reference) in cropped.rows(0).zip(whole.rows(0).skip(4)) {
            assert_eq!(row, &reference[6..86]);
        }
        for (row, reference) in cropped.rows(1).zip(whole.rows(1).skip(2)) {
            assert_eq!(row, &reference[3..43]);
        }
    }

    /// A clock on which waiting takes no time.
    struct Impatient {
        now: Mutex<Instant>,
    }

    impl Clock for Impatient {
        fn now(&self) -> Instant {
            *self.now.lock().unwrap()
        }

        fn wall(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn wait(&self, deadline: Instant, at_most: Duration) {
            let mut now = self.now.lock().unwrap();
            *now = deadline.min(*now + at_most).max(*now);
        }
    }

    #[test]
    fn in_realtime_each_picture_comes_when_it_is_due() {
        let folder = tempfile::tempdir().unwrap();
        ffmpeg(folder.path(), &format!("{CLIP} clip.mp4"));
        let start = SimulatedClock::default().now();
        let clock = Arc::new(Impatient { now: Mutex::new(start) });
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (sink, watch) = (seen.clone(), clock.clone());
        let mut outlet = RecordingOutlet::new(clock)
            .stop_after(120)
            .observe(move |_, pts, _| sink.borrow_mut().push((pts.as_duration(), watch.now() - start)));
        let settings = Settings { realtime: true, repeat: true, ..plain() };
        assert_eq!(play(&folder.path().join("clip.mp4"), &settings, &mut outlet).unwrap(), EndReason::Stopped);
        let seen = seen.take();
        assert_eq!(seen.len(), 120);
        for (index, (pts, at)) in seen.iter().enumerate() {
            assert_eq!((*pts, *at), (Duration::from_millis(40 * index as u64), *pts));
        }
    }

    #[test]
    fn a_stopped_stream_is_not_even_opened() {
        let folder = tempfile::tempdir().unwrap();
        ffmpeg(folder.path(), &format!("{CLIP} clip.mp4"));
        let path = folder.path().join("clip.mp4");
        assert_eq!(Demuxer::open(&path, &Tracks::Best, &|| true).err(), Some(DemuxError::Stopped));
        let mut outlet = RecordingOutlet::default().stop_after(0);
        assert_eq!(play(&path, &plain(), &mut outlet).unwrap(), EndReason::Stopped);
        assert_eq!(outlet.offered, []);
    }

    /// Checksums of all pictures of a file, by the ffmpeg command.
    fn by_the_command(path: &Path) -> Vec<String> {
        let output = Command::new("ffmpeg")
            .args(["-hide_banner", "-loglevel", "error", "-i"])
            .arg(path)
            .args(["-an", "-fps_mode", "passthrough", "-f", "framemd5", "-"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.rsplit(',').next().unwrap().trim().to_owned()).collect()
    }

    #[test]
    fn leaving_pictures_out_changes_no_other_and_no_number() {
        let folder = tempfile::tempdir().unwrap();
        let source = "-f lavfi -i testsrc2=size=96x64:rate=25:duration=4";
        let x264 = "-c:v libx264 -pix_fmt yuv420p -g 20";
        let x265 = "-c:v libx265 -pix_fmt yuv420p -g 20 -bf 4 -x265-params log-level=none";
        // Codec and container, and whether pictures can be left out of it.
        let cases = [
            (format!("{x264} -bf 3 -x264-params b-pyramid=normal:open-gop=1 open.ts"), true),
            (format!("{x264} -bf 7 -x264-params b-adapt=0:b-pyramid=strict deep.mkv"), true),
            (format!("{x264} -bf 2 -flags +ildct -x264-params tff=1 interlaced.mp4"), false),
            (format!("{x264} -bf 2 without_stamps.avi"), false),
            (format!("{x265}:open-gop=1 open.mkv"), true),
            (format!("{x265}:open-gop=0:temporal-layers=3 layers.mp4"), true),
            ("-c:v mpeg2video -bf 2 -g 12 old.ts".to_owned(), true),
            ("-c:v mpeg4 -bf 2 -g 12 old.avi".to_owned(), false),
            ("-c:v mjpeg -q:v 3 -pix_fmt yuvj420p stills.mkv".to_owned(), true),
            ("-c:v prores -pix_fmt yuv422p10le stills.mov".to_owned(), true),
            ("-c:v libvpx-vp9 -auto-alt-ref 1 -lag-in-frames 16 -g 40 hidden.webm".to_owned(), false),
            ("-c:v libvpx -auto-alt-ref 1 -lag-in-frames 16 -g 40 hidden8.webm".to_owned(), false),
        ];
        let mut files: Vec<(String, bool)> = Vec::new();
        for (arguments, skips) in cases {
            ffmpeg(folder.path(), &format!("{source} {arguments}"));
            files.push((arguments.rsplit(' ').next().unwrap().to_owned(), skips));
        }
        // Starts in the middle of a GOP: pictures before the cut are decoded and hidden.
        ffmpeg(folder.path(), &format!("{source} {x264} -bf 3 plain.mp4"));
        ffmpeg(folder.path(), "-ss 0.5 -i plain.mp4 -c copy edited.mp4");
        files.push(("edited.mp4".to_owned(), true));
        for (name, skips) in files {
            let path = folder.path().join(&name);
            let reference = by_the_command(&path);
            assert!(reference.len() >= 85, "{name}: {}", reference.len());
            let settings = |skip| Settings { skip, ..plain() };
            let (baseline, _) = sampled(&path, &settings(false), 1);
            assert!(baseline.len() >= 6, "{name}: {baseline:?}");
            for (skip, threads) in [(false, 4), (true, 1), (true, 4)] {
                let label = format!("{name}, skip {skip}, {threads} threads");
                let (got, outlet) = sampled(&path, &settings(skip), threads);
                assert_eq!(got, baseline, "{label}");
                assert_eq!(outlet.offered.len() as u64 + outlet.skipped, reference.len() as u64, "{label}");
                // The command's sums are of ten bits.
                let reference = if name == "stills.mov" { &[] } else { &reference[..] };
                for (seq, _, md5) in got.iter().filter(|_| !reference.is_empty()) {
                    assert_eq!(*md5, reference[*seq as usize], "{label}: picture {seq}");
                }
                assert_eq!(outlet.skipped > 0, skip && skips, "{label}: {} left undecoded", outlet.skipped);
            }
        }
    }

    /// Small clips in several containers and codecs, made once.
    fn seeds() -> &'static [Vec<u8>] {
        static SEEDS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
        SEEDS.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let source = "-f lavfi -i testsrc2=size=48x32:rate=10:duration=1";
            let variants = [
                "-c:v libx264 -pix_fmt yuv420p -movflags +faststart seed.mp4",
                "-c:v libx264 -pix_fmt yuv420p seed.ts",
                "-c:v libvpx-vp9 -pix_fmt yuv420p seed.webm",
                "-c:v mpeg4 -bf 2 seed.avi",
                "-c:v libx265 -x265-params log-level=none -pix_fmt yuv420p seed.mkv",
                "-c:v flv seed.flv",
                "-c:v gif seed.gif",
            ];
            let bytes = variants.iter().map(|variant| {
                ffmpeg(folder.path(), &format!("{source} {variant}"));
                let name = variant.rsplit(' ').next().unwrap();
                std::fs::read(folder.path().join(name)).unwrap()
            });
            bytes.collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// Whatever a file holds, playing it ends, with an answer.
        #[test]
        fn no_file_panics_or_hangs(
            seed in any::<prop::sample::Index>(),
            kept in 0usize..=100,
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
            noise in proptest::option::weighted(0.2, proptest::collection::vec(any::<u8>(), 0..4000)),
            threads in 1usize..4,
        ) {
            let mut bytes = noise.unwrap_or_else(|| seed.get(seeds()).clone());
            bytes.truncate(bytes.len() * kept / 100);
            for (at, value) in damage {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = value;
                }
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            let mut outlet = RecordingOutlet::default().threads(threads).sampling(twice_a_second());
            match play(file.path(), &plain(), &mut outlet) {
                Ok(reason) => prop_assert_eq!(reason, EndReason::Eof),
                Err(error) => prop_assert!(error.to_string().contains(file.path().to_str().unwrap()), "{}", error),
            }
            prop_assert!(outlet.offered.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", outlet.offered);
            prop_assert!(outlet.failures.is_empty(), "{:?}", outlet.failures);
        }
    }
}
