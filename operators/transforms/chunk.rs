//! `chunk`: packets in, media files out, cut at keyframes. Nothing is decoded or encoded.
//!
//! A chunk begins with a keyframe of the video track, at time zero, and has everything up to the keyframe that begins
//! the next one. Other tracks (sound) are cut where they are heard at that moment: what comes of them waits until the
//! pictures are as far, and a chunk stays open behind its last picture until its sound is there.
//!
//! What is missing of the stream (a gap) closes the chunk, and the next keyframe begins another; so does another format.
//! The source has its credits back as soon as a packet is in its chunk, which this operator pays for
//! ([`super::media_file`]). Only while too many finished chunks wait for their sink are credits kept back. A packet is
//! delivered when a sink has accepted its chunk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::config::{self, Field, FieldType, Presence};
use crate::error::{FieldError, ItemError};
use crate::item::{EndReason, Gap, Item, Kind, Packet, Payload, Played, StreamId, StreamInfo};
use crate::lease::{Ack, Verdict};
use crate::media::mux::{Container, MuxError};
use crate::media::parameters::Parameters;
use crate::operator::{
    BuildContext, Built, Execution, InlineOperator, Output, Produces, Registration, Role, SinkInput, StreamOperator,
};
use crate::time::MediaTime;

use super::media_file::{Arrived, Files, First, Maker, MediaFile, Telling, explained, name_template, same_tracks};

/// Sound of one stream that waits for the pictures beside it, in packets and bytes.
const MOST_WAITING: usize = 512;
const MOST_WAITING_BYTES: u64 = 4 << 20;
/// A chunk waits this long, in the stream's own time, for the sound beside its last pictures.
const LATE_SOUND: Duration = Duration::from_secs(2);
/// Longer chunks would keep the fates of too many packets open.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

#[derive(Deserialize)]
struct Config {
    every: Option<config::Duration>,
    parts: Option<u64>,
    whole_below: Option<config::Duration>,
    clock: Option<ClockConfig>,
    container: Option<ContainerConfig>,
    name: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ClockConfig {
    Media,
    Wall,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ContainerConfig {
    Mp4,
    Fmp4,
}

/// Where chunks end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Behind multiples of this time of the stream.
    Every(Duration),
    /// Where it is read behind a multiple of this time since 1970.
    EveryOfWall(Duration),
    Parts {
        parts: u64,
        whole_below: Duration,
    },
}

struct Settings {
    cut: Cut,
    maker: Arc<Maker>,
}

struct Chunk {
    settings: Arc<Settings>,
}

impl InlineOperator for Chunk {
    fn start(&self, stream: &StreamId) -> Box<dyn StreamOperator> {
        Box::new(ChunkStream::new(&self.settings, stream))
    }

    /// The chunk that is open, the one before that waits for its sound, finished ones, and sound that waits.
    fn stream_memory(&self) -> u64 {
        self.settings.maker.memory(2) + MOST_WAITING_BYTES
    }

    fn refuses(&self, inputs: &[SinkInput]) -> Option<(String, String)> {
        match self.settings.cut {
            Cut::Every(_) => None,
            Cut::EveryOfWall(every) => {
                let node = &inputs.iter().find(|input| !input.is_live)?.node;
                let why = format!(
                    "`clock = \"wall\"` cuts by when packets come, and those of `{node}` come as fast as they are taken"
                );
                let every = humantime::format_duration(every);
                let hint =
                    format!("write `clock = \"media\"`, which cuts every {every} of the video, or read a live source");
                Some((why, hint))
            }
            Cut::Parts { .. } => {
                let node = &inputs.iter().find(|input| input.repeats)?.node;
                let why =
                    format!("`parts` divides what has an end, and `{node}` begins again for ever (`loop = true`)");
                Some((why, "write `every = \"30s\"` in the place of `parts`, or remove `loop`".to_owned()))
            }
        }
    }
}

/// The times at which a stream is cut: multiples of a length since its start.
#[derive(Clone, Copy, Debug)]
struct Grid {
    start: MediaTime,
    /// Microseconds.
    length: i64,
    /// The next multiple.
    next: i64,
    /// How many cuts there may be still.
    left: u64,
}

impl Grid {
    fn is_due(&self, pts: MediaTime) -> bool {
        self.left > 0 && pts.since(self.start.ticks) >= MediaTime::from_micros(self.next.saturating_mul(self.length))
    }

    fn cut_at(&mut self, pts: MediaTime) {
        self.next = pts.since(self.start.ticks).as_micros() / self.length + 1;
        self.left -= 1;
    }
}

/// A chunk that is being written.
struct Part {
    file: MediaFile,
    is_after_gap: bool,
    /// For each track whether all of it that belongs here has come.
    complete: Vec<bool>,
}

/// A packet of a track that is not cut by itself.
struct Waiting {
    seq: u64,
    packet: Arc<Packet>,
    pts: MediaTime,
    time: SystemTime,
    ack: Ack,
}

struct ChunkStream {
    settings: Arc<Settings>,
    stream: StreamId,
    info: Option<Arc<StreamInfo>>,
    /// Why nothing of the stream can be kept; told with the first packet.
    refusal: Option<Refusal>,
    grid: Option<Grid>,
    /// How many parts it has begun.
    begun: u64,
    open: Option<Part>,
    /// The part before, which lacks only sound.
    closing: Option<Part>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: u64,
    /// When the last picture is decoded.
    decoded: Option<MediaTime>,
    /// Whether a part has begun since the last gap.
    is_unbroken: bool,
    /// Whether the next part is the first one behind a gap.
    is_after_gap: bool,
    /// A part could not be written: what comes up to the next keyframe ends as it did.
    broken: Option<Verdict>,
    /// It was told that there is sound without pictures beside it.
    told_lost_sound: bool,
    files: Files,
}

struct Refusal {
    message: String,
    told: bool,
}

impl StreamOperator for ChunkStream {
    fn open(&mut self, info: &Arc<StreamInfo>, out: &mut Output) {
        let is_same = self.info.as_ref().is_some_and(|before| same_tracks(&before.tracks, &info.tracks));
        if !is_same {
            self.finish_all(out);
            self.refusal = self.refusal(info);
            self.warn_of_left_out(info);
        }
        self.info = Some(info.clone());
    }

    fn item(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
        let Payload::Packet(packet) = &item.payload else {
            return Err(ItemError::Failed("it takes packets alone".to_owned()));
        };
        if let Some(refusal) = &mut self.refusal {
            if std::mem::replace(&mut refusal.told, true) {
                out.settle(item, Verdict::Rejected);
                return Ok(());
            }
            return Err(ItemError::Failed(refusal.message.clone()));
        }
        self.files.hold_back(item);
        if packet.track == 0 {
            return self.picture(item, packet, out);
        }
        let is_kept = self.info.as_ref().and_then(|info| info.tracks.get(packet.track));
        if !is_kept.is_some_and(|track| self.settings.maker.container.holds(track)) {
            out.settle(item, Verdict::Filtered);
            return Ok(());
        }
        self.waiting_bytes += packet.data.len() as u64;
        let (seq, pts, time, ack) = (item.seq, item.pts, item.time, item.lease.ack.clone());
        self.waiting.push_back(Waiting { seq, packet: packet.clone(), pts, time, ack });
        self.place_waiting(self.decoded, out);
        Ok(())
    }

    fn gap(&mut self, _gap: &Gap, out: &mut Output) {
        self.finish_all(out);
        (self.is_unbroken, self.is_after_gap) = (false, true);
    }

    fn end(&mut self, _reason: &EndReason, out: &mut Output) {
        self.finish_all(out);
    }
}

/// Whether a part is as long as any may be. A stream that goes on longer than it said (in a loop) has no more cuts in its
/// grid.
fn is_longest(start: MediaTime, pts: MediaTime) -> bool {
    pts.since(start.ticks_in(pts.base)).as_duration() >= LONGEST
}

impl ChunkStream {
    fn new(settings: &Arc<Settings>, stream: &StreamId) -> ChunkStream {
        ChunkStream {
            settings: settings.clone(),
            stream: stream.clone(),
            info: None,
            refusal: None,
            grid: None,
            begun: 0,
            open: None,
            closing: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            decoded: None,
            is_unbroken: false,
            is_after_gap: false,
            broken: None,
            told_lost_sound: false,
            files: Files::new(settings.maker.clone(), stream.clone()),
        }
    }

    /// Why nothing of a stream can be kept.
    fn refusal(&self, info: &StreamInfo) -> Option<Refusal> {
        let told = |message: String| Some(Refusal { message, told: false });
        let Some(video) = info.tracks.first() else {
            return told("the stream has no tracks".to_owned());
        };
        if !self.settings.maker.container.holds(video) {
            let codec = &video.codec;
            return told(format!(
                "MP4 cannot hold {codec} video; convert the input to H.264 or HEVC first, for example with \
                 `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`"
            ));
        }
        if matches!(self.settings.cut, Cut::Parts { .. }) && info.duration.is_none_or(|seconds| seconds <= 0.0) {
            return told(
                "`parts` needs to know how long the stream is, and this one does not say; write `every = \"30s\"`"
                    .to_owned(),
            );
        }
        None
    }

    fn warn_of_left_out(&self, info: &StreamInfo) {
        for track in info.tracks.iter().skip(1).filter(|track| !self.settings.maker.container.holds(track)) {
            let (node, stream) = (&self.settings.maker.origin.node, &self.stream);
            tracing::warn!(%node, %stream, "`{node}` leaves track {} of stream `{stream}` out: MP4 cannot hold {}", track.index, track.codec);
        }
    }

    fn warn_of_lost_sound(&mut self) {
        if std::mem::replace(&mut self.told_lost_sound, true) {
            return;
        }
        let (node, stream) = (&self.settings.maker.origin.node, &self.stream);
        tracing::warn!(%node, %stream, "`{node}` leaves sound of stream `{stream}` out: it comes before the first picture, and only the last {MOST_WAITING} packets of it ({} MiB) are kept", MOST_WAITING_BYTES >> 20);
    }

    fn picture(&mut self, item: &Item, packet: &Packet, out: &mut Output) -> Result<(), ItemError> {
        self.decoded = Some(packet.dts);
        self.place_waiting(self.decoded, out);
        if packet.is_key && self.is_due(item) {
            if let Some(message) = self.unknown_size() {
                self.refusal = Some(Refusal { message: message.clone(), told: true });
                self.broken = Some(Verdict::Rejected);
                self.finish_all(out);
                return Err(ItemError::Failed(message));
            }
            self.begin(item, out).inspect_err(|error| self.broken = Some(error.verdict()))?;
        }
        let Some(part) = &mut self.open else {
            // Nothing can be decoded before the first keyframe; after a failure it goes with what it belongs to.
            out.settle(item, self.broken.unwrap_or(Verdict::Filtered));
            return Ok(());
        };
        let (time, fallback, ack) = (item.time, item.fallback, &item.lease.ack);
        let arrived = Arrived { packet, pts: item.pts, time, fallback, ack };
        if let Err(error) = part.file.append(&arrived, self.info.as_deref()) {
            return Err(self.failed(&error));
        }
        let is_late =
            |part: &Part| packet.dts.since(part.file.end.ticks_in(packet.dts.base)).as_duration() >= LATE_SOUND;
        if self.closing.as_ref().is_some_and(is_late) {
            self.finish_closing(out);
        }
        Ok(())
    }

    /// Whether the keyframe `item` begins a part.
    fn is_due(&self, item: &Item) -> bool {
        let Some(Part { file: open, .. }) = &self.open else {
            // What is left of a part that could not be written this time is lost with it: under an index of its own it would
            // be there twice when the input is read again, and every later index be another one.
            return self.broken != Some(Verdict::Lost) || self.grid.is_none_or(|grid| grid.is_due(item.pts));
        };
        let is_over = match self.settings.cut {
            Cut::EveryOfWall(every) => multiple(item.time, every) != multiple(open.begun(), every),
            Cut::Every(_) | Cut::Parts { .. } => self.grid.is_none_or(|grid| grid.is_due(item.pts)),
        };
        is_over || is_longest(open.start, item.pts)
    }

    /// Why a stream cannot be kept in which a keyframe has come and nothing yet has said how large it is. Whatever says
    /// that opens the stream anew.
    fn unknown_size(&self) -> Option<String> {
        let video = self.info.as_ref()?.tracks.first()?;
        let is_known = video.parameters.as_ref().is_some_and(Parameters::is_sized);
        (!is_known).then(|| {
            format!(
                "no parameter sets came with its {} video, so nothing says how large its pictures are; have the \
                 sender repeat them with each keyframe (x264: `repeat-headers=1`), or record from its beginning on",
                video.codec
            )
        })
    }

    /// A picture could not be written: what it means for the part, and the error of the item.
    fn failed(&mut self, error: &MuxError) -> ItemError {
        let why = explained(error);
        if !matches!(error, MuxError::Packet(_))
            && let Some(part) = self.open.take()
        {
            part.file.settle(why.verdict());
            (self.broken, self.is_unbroken) = (Some(why.verdict()), false);
        }
        why
    }

    /// Begins a part with the keyframe `item`.
    fn begin(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
        self.finish_closing(out);
        self.closing = self.open.take();
        if let Some(closing) = &mut self.closing {
            // Its last picture is shown until this one is, whatever its packet says: where pictures come at no fixed rate,
            // containers tell a length that none of them has.
            closing.file.end = closing.file.start.max(item.pts);
        }
        // Before the first picture that is shown lies what an edit list hides: it is decoded, and hidden here too.
        let start = item.pts.max(MediaTime::new(0, item.pts.base));
        let info = self.info.clone().ok_or_else(|| ItemError::Failed("the stream has not opened".to_owned()))?;
        match &mut self.grid {
            Some(grid) if grid.is_due(item.pts) => grid.cut_at(item.pts),
            Some(_) => {}
            None => self.grid = self.new_grid(start, &info),
        }
        let index = self.files.next_index(&info.played, &item.lease.ack)?;
        let first = First { seq: item.seq, time: item.time, start, follows: self.is_unbroken };
        let file = self.files.begin(index, first, &info)?;
        let complete = (0..info.tracks.len()).map(|track| track == 0 || !file.has(track)).collect();
        self.open = Some(Part { file, is_after_gap: std::mem::take(&mut self.is_after_gap), complete });
        self.begun += 1;
        (self.is_unbroken, self.broken) = (true, None);
        self.finish_closing_if_complete(out);
        Ok(())
    }

    fn new_grid(&self, start: MediaTime, info: &StreamInfo) -> Option<Grid> {
        let (length, left) = match self.settings.cut {
            // Cut by another clock.
            Cut::EveryOfWall(_) => return None,
            Cut::Every(length) => (i64::try_from(length.as_micros()).unwrap_or(i64::MAX), u64::MAX),
            Cut::Parts { parts, whole_below } => {
                let seconds = info.duration.unwrap_or_default();
                let is_whole = seconds < whole_below.as_secs_f64();
                let length = (seconds * 1e6 / parts as f64).ceil() as i64;
                (length, if is_whole { 0 } else { (parts - 1).saturating_sub(self.begun) })
            }
        };
        Some(Grid { start, length: length.max(1), next: 1, left })
    }

    /// Puts waiting sound up to `until` into its part.
    fn place_waiting(&mut self, until: Option<MediaTime>, out: &mut Output) {
        while let Some(first) = self.waiting.front() {
            let is_due = until.is_some_and(|until| first.packet.dts <= until);
            let is_too_much = self.waiting.len() > MOST_WAITING || self.waiting_bytes > MOST_WAITING_BYTES;
            if !(is_too_much || is_due && self.open.is_some()) {
                return;
            }
            self.place_first(out);
        }
    }

    fn place_first(&mut self, out: &mut Output) {
        let Some(Waiting { seq, packet, pts, time, ack }) = self.waiting.pop_front() else { return };
        self.waiting_bytes -= packet.data.len() as u64;
        let Some(open) = &mut self.open else {
            // Sound without any picture beside it.
            ack.settle(self.broken.unwrap_or(Verdict::Filtered));
            if self.broken.is_none() {
                self.warn_of_lost_sound();
            }
            return;
        };
        let belongs_before = packet.dts < open.file.start;
        if belongs_before && open.is_after_gap {
            // The pictures beside it were lost.
            ack.settle(Verdict::Filtered);
            return;
        }
        let part = match &mut self.closing {
            Some(closing) if belongs_before => closing,
            closing => {
                if let Some(complete) = closing.as_mut().and_then(|part| part.complete.get_mut(packet.track)) {
                    *complete = true;
                }
                open
            }
        };
        let arrived = Arrived { packet: &packet, pts, time, fallback: false, ack: &ack };
        match part.file.append(&arrived, self.info.as_deref()) {
            Ok(()) => ack.release(),
            Err(error) => {
                let pts = self.decoded.unwrap_or(MediaTime::ZERO);
                self.files.report(&explained(&error), seq, pts, ack, out);
            }
        }
        self.finish_closing_if_complete(out);
    }

    fn finish_closing_if_complete(&mut self, out: &mut Output) {
        if self.closing.as_ref().is_some_and(|part| part.complete.iter().all(|complete| *complete)) {
            self.finish_closing(out);
        }
    }

    fn finish_closing(&mut self, out: &mut Output) {
        if let Some(part) = self.closing.take() {
            self.finish(part, out);
        }
    }

    /// Nothing more comes for what is open.
    fn finish_all(&mut self, out: &mut Output) {
        while !self.waiting.is_empty() {
            self.place_first(out);
        }
        self.finish_closing(out);
        if let Some(part) = self.open.take() {
            self.finish(part, out);
        }
        (self.grid, self.decoded) = (None, None);
    }

    fn finish(&self, part: Part, out: &mut Output) {
        let played = self.info.as_ref().map(|info| &info.played);
        let by_wall = matches!(self.settings.cut, Cut::EveryOfWall(_));
        // What is cut by when it came is cut elsewhere the next time.
        let remembered = played.filter(|played| !by_wall || **played == Played::Live);
        let lineage = remembered.and_then(|played| self.files.lineage(played));
        self.files.finish(part.file, Telling { lineage, is_in_books: true, by_wall }, out);
    }
}

/// How many whole times `every` since 1970 there were at `time`.
fn multiple(time: SystemTime, every: Duration) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() / every.as_nanos().max(1)
}

const DEFAULT_NAME: &str = "{stream}_chunk_{index:04}.mp4";

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    Ok(Built::Inline(Arc::new(Chunk { settings: Arc::new(read_settings(context, table)?) })))
}

fn read_settings(context: &BuildContext, table: toml::Table) -> Result<Settings, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let mut mistakes = Vec::new();
    let cut = match (config.every, config.parts) {
        (Some(config::Duration(every)), None) => {
            if every.is_zero() || every > LONGEST {
                let every = humantime::format_duration(every);
                mistakes.push(
                    FieldError::new("every", format!("`every` cannot be {every}"))
                        .hint("write a length of time up to 6h, such as \"30s\""),
                );
            }
            if config.whole_below.is_some() {
                let error = FieldError::new("whole_below", "`whole_below` has no meaning beside `every`");
                mistakes.push(error.hint("remove it, or write `parts = 4` in the place of `every`"));
            }
            match config.clock {
                Some(ClockConfig::Wall) => Cut::EveryOfWall(every),
                Some(ClockConfig::Media) | None => Cut::Every(every),
            }
        }
        (None, Some(parts)) => {
            if config.clock.is_some() {
                let error = FieldError::new("clock", "`clock` has no meaning beside `parts`");
                mistakes.push(error.hint("remove it, or write `every = \"30s\"` in the place of `parts`"));
            }
            let whole_below = config.whole_below.map_or(Duration::from_secs(60), |length| length.0);
            Cut::Parts { parts: parts.max(1), whole_below }
        }
        (Some(_), Some(_)) => {
            let error = FieldError::new("parts", "`every` and `parts` both say where to cut");
            return Err(vec![error.hint("keep one of them")]);
        }
        (None, None) => {
            let error = FieldError::new("", "it needs to know where to cut");
            return Err(vec![error.hint("add `every = \"30s\"`, or `parts = 4` for files")]);
        }
    };
    let name = name_template(config.name.as_deref().unwrap_or(DEFAULT_NAME), DEFAULT_NAME);
    let Ok(name) = name.map_err(|mut errors| mistakes.append(&mut errors)) else { return Err(mistakes) };
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let container = match config.container {
        None | Some(ContainerConfig::Mp4) => Container::Mp4,
        Some(ContainerConfig::Fmp4) => Container::FragmentedMp4,
    };
    let (origin, clock, progress) = (context.origin.clone(), context.clock.clone(), context.progress.clone());
    let maker = Maker { what: "chunk", container, name, origin, clock, progress };
    Ok(Settings { cut, maker: Arc::new(maker) })
}

pub static REGISTRATION: Registration = Registration {
    name: "chunk",
    role: Role::Operator,
    summary: "Cuts streams at keyframes into MP4 files, without encoding anew.",
    execution: Execution::Inline,
    accepts: &[Kind::Packet],
    produces: Produces::Kinds(&[Kind::Segment]),
    fields: &[
        Field {
            name: "every",
            value: FieldType::Duration,
            presence: Presence::Optional,
            summary: "Cut at the first keyframe behind each multiple of this time. This or `parts`.",
        },
        Field {
            name: "clock",
            value: FieldType::Choice(&["media", "wall"]),
            presence: Presence::Optional,
            summary: "With `every`: whose time it is. `media`: the stream's own, since its first picture. `wall`, for \
                      live sources: the time of day at which packets come, so \"1m\" cuts at each full minute (UTC). \
                      Left out: `media`.",
        },
        Field {
            name: "parts",
            value: FieldType::Integer { minimum: 1, maximum: 100_000 },
            presence: Presence::Optional,
            summary: "Cut into at most so many parts of about the same length, of streams that say how long they are; \
                      none is longer than 6h. This or `every`.",
        },
        Field {
            name: "whole_below",
            value: FieldType::Duration,
            presence: Presence::Optional,
            summary: "With `parts`: a stream that is shorter is not cut. Left out: 60s.",
        },
        Field {
            name: "container",
            value: FieldType::Choice(&["mp4", "fmp4"]),
            presence: Presence::Default("\"mp4\""),
            summary: "MP4 with its index in front, or MP4 in fragments.",
        },
        Field {
            name: "name",
            value: FieldType::String,
            presence: Presence::Default("\"{stream}_chunk_{index:04}.mp4\""),
            summary: "The name of each file: `{stream}` is the stream's id, `{index}` the chunk's number from 0, \
                      `{index:04}` the same with at least four digits. Letters, digits, spaces and `_ . -`.",
        },
    ],
    example: "[operators.chunks]\ntype = \"chunk\"\ninputs = [\"cameras\"]\nevery = \"30s\"\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use bytes::Bytes;

    use crate::item::{Segment, Track, TrackFormat};
    use crate::lease::Counts;
    use crate::media::demux::{Demuxer, Read};
    use crate::sinks::records::tests::context;
    use crate::testing::{item, made_segments, recording};
    use crate::time::TimeBase;

    fn built(fields: &str) -> Result<Arc<dyn InlineOperator>, String> {
        match build(&context(Path::new(".")), fields.parse().unwrap()) {
            Ok(Built::Inline(operator)) => Ok(operator),
            Ok(_) => panic!("not an inline operator"),
            Err(errors) => {
                let told = |error: &FieldError| format!("{}: {}; {}", error.field, error, error.hint.clone().unwrap());
                Err(errors.iter().map(told).collect::<Vec<_>>().join("\n"))
            }
        }
    }

    #[test]
    fn fields_that_cannot_work_are_refused_with_what_to_do() {
        for (fields, parts) in [
            ("", &["it needs to know where to cut; add `every = \"30s\"`"][..]),
            ("every = \"1s\"\nparts = 2", &["`every` and `parts` both say where to cut; keep one"]),
            ("every = \"0s\"", &["every: `every` cannot be 0s; write a length of time up to 6h"]),
            (
                "every = \"1day\"\nwhole_below = \"1s\"",
                &["cannot be 1day", "whole_below: `whole_below` has no meaning"],
            ),
            ("parts = 2\nname = \"{index}/a.mp4\"", &["name: `/a.mp4` cannot be part of a file's name; use letters"]),
            (
                "parts = 2\nname = \"{index}.mp4\"",
                &["the files of two streams would have the same name; add `{stream}`"],
            ),
            ("parts = 2\nname = \"a.mp4\"", &["all files of a stream would have the same name; add `{index}`"]),
            ("parts = 2\nclock = \"wall\"", &["clock: `clock` has no meaning beside `parts`; remove it"]),
            ("parts = 2\nname = \"{when}.mp4\"", &["nothing is known for `{when}`; there is `{stream}`, `{index}`"]),
        ] {
            let said = built(fields).err().unwrap_or_else(|| panic!("{fields} was taken"));
            assert!(parts.iter().all(|part| said.contains(part)), "{fields}: {said}");
        }
        assert!(built("parts = 4").is_ok());
    }

    fn packet(seq: u64) -> (Item, Arc<crate::lease::Account>) {
        let time = MediaTime::from_micros(i64::try_from(seq).unwrap() * 40_000);
        let data = Bytes::from_static(b"picture");
        let packet = Packet { track: 0, is_key: true, dts: time, duration: None, data };
        item(seq, time, Payload::Packet(Arc::new(packet)))
    }

    #[test]
    fn what_cannot_be_kept_is_told_once_and_rejected() {
        let operator = built("parts = 4").unwrap();
        let mut stream = operator.start(&StreamId::new("door").unwrap());
        let format = TrackFormat::Video { width: 4, height: 4, frame_rate: None, has_b_frames: false };
        let base = TimeBase::MICROSECONDS;
        let track = Track { index: 0, codec: "secret".into(), format, time_base: base, parameters: None };
        let info =
            StreamInfo { tracks: vec![track], time_base: base, duration: None, played: crate::item::Played::Live };
        let mut out = Output::default();
        stream.open(&Arc::new(info), &mut out);
        let accounts: Vec<_> = (0..3)
            .map(|seq| {
                let (item, account) = packet(seq);
                let outcome = stream.item(&item, &mut out);
                match (seq, outcome) {
                    (0, Err(error)) => {
                        assert!(error.to_string().starts_with("MP4 cannot hold secret video; convert"), "{error}");
                        // What the engine does with an error.
                        item.lease.ack.raise(Verdict::Rejected);
                    }
                    (1.., Ok(())) => {}
                    (seq, outcome) => panic!("{seq}: {outcome:?}"),
                }
                item.lease.ack.release();
                account
            })
            .collect();
        for account in accounts {
            assert_eq!(account.snapshot(), Counts { read: 1, rejected: 1, ..Counts::default() });
        }
        stream.end(&EndReason::Eof, &mut out);
        assert_eq!(out.drain().count(), 0);
    }

    /// Twelve seconds at 10 pictures a second, a keyframe each second.
    fn twelve_seconds(folder: &Path) -> Demuxer {
        let path = folder.join("clip.mp4");
        let pictures = "-f lavfi -i testsrc=size=64x48:rate=10:duration=12";
        recording(&path, &format!("{pictures} -c:v libx264 -bf 0 -g 10 -sc_threshold 0 -pix_fmt yuv420p"))
    }

    /// As where its temporary file could not be written: what comes after it has the index that it has in an undisturbed run.
    #[test]
    fn what_is_left_of_a_part_that_could_not_be_written_gets_no_index_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut demuxer = twelve_seconds(folder.path());
        let base = demuxer.tracks()[0].time_base;
        let settings = read_settings(&context(Path::new(".")), "every = \"4s\"".parse().unwrap()).unwrap();
        let mut stream = ChunkStream::new(&Arc::new(settings), &StreamId::new("door").unwrap());
        let tracks = demuxer.tracks().to_vec();
        let info = StreamInfo { tracks, time_base: base, duration: None, played: Played::Live };
        let (mut out, mut seq, mut lost) = (Output::default(), 0, 0);
        stream.open(&Arc::new(info), &mut out);
        while let Read::Packet(read) = demuxer.read(&|| false).unwrap() {
            let time = |ticks: Option<i64>| MediaTime::new(ticks.unwrap(), base);
            let (is_key, dts, data) = (read.is_key(), time(read.dts()), read.data());
            let packet = Packet { track: 0, is_key, dts, duration: None, data };
            let (item, account) = item(seq, time(read.pts()), Payload::Packet(Arc::new(packet)));
            stream.item(&item, &mut out).unwrap();
            item.lease.ack.release();
            lost += account.snapshot().lost;
            seq += 1;
            if seq == 15 {
                let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
                let error = stream.failed(&MuxError::Spill { folder: "/tmp".to_owned(), cause: full });
                assert_eq!(error.verdict(), Verdict::Lost);
            }
        }
        stream.end(&EndReason::Eof, &mut out);
        assert_eq!((seq, lost), (120, 25), "the others of the first part were lost with its file");
        let made: Vec<_> = made_segments(&mut out).iter().map(|chunk| (chunk.index, chunk.start.as_micros())).collect();
        assert_eq!(made, [(1, 4_000_000), (2, 8_000_000)]);
    }

    /// The chunks of a recording whose packets come a tenth of a second after each other; `at` may change the time before one.
    fn chunks_by_wall(start: Duration, at: impl Fn(u64, SystemTime) -> SystemTime) -> Vec<Arc<Segment>> {
        let folder = tempfile::tempdir().unwrap();
        let mut demuxer = twelve_seconds(folder.path());
        let base = demuxer.tracks()[0].time_base;
        let operator = built("every = \"5s\"\nclock = \"wall\"").unwrap();
        let mut stream = operator.start(&StreamId::new("door").unwrap());
        let tracks = demuxer.tracks().to_vec();
        let info = StreamInfo { tracks, time_base: base, duration: None, played: Played::Live };
        let (mut out, mut seq, mut wall) = (Output::default(), 0, UNIX_EPOCH + start);
        stream.open(&Arc::new(info), &mut out);
        while let Read::Packet(read) = demuxer.read(&|| false).unwrap() {
            wall = at(seq, wall);
            let time = |ticks: Option<i64>| MediaTime::new(ticks.unwrap(), base);
            let (is_key, data) = (read.is_key(), read.data());
            let packet = Packet {
                track: 0,
                is_key,
                dts: time(read.dts()),
                duration: read.duration().map(|ticks| time(Some(ticks))),
                data,
            };
            let (mut item, _) = item(seq, time(read.pts()), Payload::Packet(Arc::new(packet)));
            item.time = wall;
            stream.item(&item, &mut out).unwrap();
            item.lease.ack.release();
            (seq, wall) = (seq + 1, wall + Duration::from_millis(100));
        }
        assert_eq!(seq, 120);
        stream.end(&EndReason::Eof, &mut out);
        made_segments(&mut out)
    }

    /// When chunks begin, in tenths of a second of the wall clock and of the stream.
    fn starts(chunks: &[Arc<Segment>]) -> Vec<(u128, i64)> {
        let tenths = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_millis() / 100;
        chunks.iter().map(|chunk| (tenths(chunk.wall.unwrap().start), chunk.start.as_micros() / 100_000)).collect()
    }

    #[test]
    fn by_the_wall_clock_chunks_begin_with_the_first_keyframe_behind_each_multiple() {
        let minute = 60 * 1_000_000;
        let chunks = chunks_by_wall(Duration::from_millis(1000 * minute + 3200), |_, wall| wall);
        let at = |tenths: u128| u128::from(10 * minute) + tenths;
        assert_eq!(starts(&chunks), [(at(32), 0), (at(52), 20), (at(102), 70)]);
        // Both times are told, and no picture is missing.
        let status = serde_json::to_value(chunks[1].status("made")).unwrap();
        assert_eq!((&status["start"], &status["end"]), (&2.0.into(), &7.0.into()));
        let wall = (status["wall_start"].as_str().unwrap(), status["wall_end"].as_str().unwrap());
        assert_eq!(wall, ("1971-11-26T10:40:05.200000Z", "1971-11-26T10:40:10.100000Z"));
        assert!(chunks[1..].iter().all(|chunk| chunk.follows));
    }

    #[test]
    fn a_wall_clock_that_is_set_begins_another_chunk_at_the_next_keyframe() {
        let hour = Duration::from_secs(3600);
        let start = 10 * hour + Duration::from_secs(1);
        for (set, first) in [(11 * hour, (11 * 36_000) + 10 + 20), (9 * hour, (9 * 36_000) + 10 + 20)] {
            // Within the first chunk, two seconds from its beginning.
            let change = move |seq, wall: SystemTime| if seq == 20 { wall - 10 * hour + set } else { wall };
            let starts = starts(&chunks_by_wall(start, change));
            assert_eq!(starts[..2], [(360_010, 0), (first, 20)], "{starts:?}");
        }
    }

    fn input() -> SinkInput {
        SinkInput { node: "video".into(), kind: Kind::Packet, sources: Vec::new(), is_live: false, repeats: false }
    }

    #[test]
    fn what_begins_again_for_ever_has_no_parts() {
        let operator = built("parts = 4").unwrap();
        assert!(operator.refuses(&[input()]).is_none());
        let (why, hint) = operator.refuses(&[SinkInput { repeats: true, ..input() }]).unwrap();
        assert!(
            why.contains("`video` begins again for ever (`loop = true`)") && hint.contains("remove `loop`"),
            "{why}"
        );
        assert!(built("every = \"5s\"").unwrap().refuses(&[SinkInput { repeats: true, ..input() }]).is_none());
    }

    #[test]
    fn by_the_wall_clock_nothing_is_cut_that_comes_as_fast_as_it_is_taken() {
        let operator = built("every = \"5s\"\nclock = \"wall\"").unwrap();
        let input = |is_live| SinkInput { is_live, ..input() };
        assert!(operator.refuses(&[input(true)]).is_none());
        let (why, hint) = operator.refuses(&[input(true), input(false)]).unwrap();
        assert!(why.contains("those of `video` come as fast as they are taken"), "{why}");
        assert!(hint.contains("`clock = \"media\"`, which cuts every 5s"), "{hint}");
        assert!(built("every = \"5s\"").unwrap().refuses(&[input(false)]).is_none());
    }

    #[test]
    fn cuts_lie_behind_multiples_of_the_length() {
        let base = TimeBase::new(1, 30).unwrap();
        let at = |ticks| MediaTime::new(ticks, base);
        let mut grid = Grid { start: at(5), length: 2_000_000, next: 1, left: 2 };
        assert!(!grid.is_due(at(64)) && grid.is_due(at(65)), "exactly two seconds");
        // A keyframe that comes late moves no other.
        grid.cut_at(at(120));
        assert!(!grid.is_due(at(124)) && grid.is_due(at(125)));
        grid.cut_at(at(300));
        assert!(!grid.is_due(at(10_000)), "no more cuts than there may be");
        let six_hours = 6 * 3600 * 30;
        assert!(!is_longest(at(5), at(4 + six_hours)) && is_longest(at(5), at(5 + six_hours)), "but after the longest");
    }
}
