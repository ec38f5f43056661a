//! `chunk`: packets in, media files out, cut at keyframes. Nothing is decoded or encoded.
//!
//! A chunk begins with a keyframe of the video track, at time zero, and has everything up to the keyframe that begins
//! the next one. Other tracks (sound) are cut where they are heard at that moment: what comes of them waits until the
//! pictures are as far, and a chunk stays open behind its last picture until its sound is there.
//!
//! What is missing of the stream (a gap) closes the chunk, and the next keyframe begins another; so does another format.
//! The source has its credits back as soon as a packet is in its chunk: the chunk is paid by a budget of this operator
//! (memory up to [`MOST_IN_MEMORY`], then a temporary file). Only while too many finished chunks wait for their sink are
//! credits kept back. A packet is delivered when a sink has accepted its chunk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::clock::Clock;
use crate::config::{self, Field, FieldType, Presence};
use crate::error::{FieldError, ItemError};
use crate::item::{
    EndReason, Gap, Item, Kind, Origin, Packet, Payload, Played, RecordBody, Segment, StreamId, StreamInfo, Track,
};
use crate::lease::{Ack, Budget, Lease, Limits, Verdict};
use crate::made::{FileState, MadeFile};
use crate::media::mux::{Container, LONGEST_FIRST_FRAGMENT, MuxError, Muxer, ticks_since};
use crate::media::parameters::Parameters;
use crate::operator::{
    BuildContext, Built, Execution, InlineOperator, Output, Produces, Registration, Role, StreamOperator,
};
use crate::progress::Progress;
use crate::template::{Placeholder, Template, Values};
use crate::time::MediaTime;

/// A chunk that grows beyond this many bytes goes on in a temporary file.
pub(super) const MOST_IN_MEMORY: u64 = 16 << 20;
/// Finished chunks of one stream that may wait for their sink: when as many do, the source's credits are kept back.
const WAITING_FOR_SINK: Limits = Limits { items: 4, bytes: MOST_IN_MEMORY };
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
    container: Option<ContainerConfig>,
    name: Option<String>,
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
    Every(Duration),
    Parts { parts: u64, whole_below: Duration },
}

struct Settings {
    cut: Cut,
    container: Container,
    name: Template,
    origin: Origin,
    clock: Arc<dyn Clock>,
    progress: Option<Progress>,
}

struct Chunk {
    settings: Arc<Settings>,
}

impl InlineOperator for Chunk {
    fn start(&self, stream: &StreamId) -> Box<dyn StreamOperator> {
        Box::new(ChunkStream {
            settings: self.settings.clone(),
            stream: stream.clone(),
            info: None,
            refusal: None,
            grid: None,
            next_index: 0,
            begun: 0,
            open: None,
            closing: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            decoded: None,
            is_unbroken: false,
            is_after_gap: false,
            is_broken: false,
            told_lost_sound: false,
            budget: Budget::new(WAITING_FOR_SINK),
        })
    }

    /// The chunk that is open, the one before that waits for its sound, each with a fragment that is not written yet,
    /// finished ones (one may exceed the limit), and sound that waits.
    fn stream_memory(&self) -> u64 {
        let fragment = match self.settings.container {
            Container::FragmentedMp4 => LONGEST_FIRST_FRAGMENT,
            Container::Mp4 | Container::Piece | Container::Transport => 0,
        };
        2 * (MOST_IN_MEMORY + fragment) + WAITING_FOR_SINK.bytes + MOST_IN_MEMORY + MOST_WAITING_BYTES
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

/// A file that is being written.
struct Part {
    muxer: Muxer,
    index: u64,
    start: MediaTime,
    /// When the last of its pictures has been shown.
    end: MediaTime,
    follows: bool,
    is_after_gap: bool,
    acks: Vec<Ack>,
    /// Number of its first picture's packet: unlike its index, it goes on through every reload.
    seq: u64,
    /// When that was read.
    time: SystemTime,
    fallback: bool,
    /// For each track whether all of it that belongs here has come.
    complete: Vec<bool>,
}

/// A packet of a track that is not cut by itself.
struct Waiting {
    seq: u64,
    packet: Arc<Packet>,
    pts: MediaTime,
    ack: Ack,
}

struct ChunkStream {
    settings: Arc<Settings>,
    stream: StreamId,
    info: Option<Arc<StreamInfo>>,
    /// Why nothing of the stream can be kept; told with the first packet.
    refusal: Option<Refusal>,
    grid: Option<Grid>,
    /// Where nothing is remembered of the stream.
    next_index: u64,
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
    /// A part could not be written: what comes up to the next keyframe is rejected with it.
    is_broken: bool,
    /// It was told that there is sound without pictures beside it.
    told_lost_sound: bool,
    budget: Arc<Budget>,
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
        if let Some(credit) = &item.lease.credit {
            self.budget.park(credit.clone());
        }
        if packet.track == 0 {
            return self.picture(item, packet, out);
        }
        let is_kept = self.info.as_ref().and_then(|info| info.tracks.get(packet.track));
        if !is_kept.is_some_and(|track| self.settings.container.holds(track)) {
            out.settle(item, Verdict::Filtered);
            return Ok(());
        }
        self.waiting_bytes += packet.data.len() as u64;
        let (seq, pts, ack) = (item.seq, item.pts, item.lease.ack.clone());
        self.waiting.push_back(Waiting { seq, packet: packet.clone(), pts, ack });
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

fn same_tracks(before: &[Track], after: &[Track]) -> bool {
    let format = |track: &Track| (track.time_base, track.parameters.clone());
    before.iter().map(format).eq(after.iter().map(format))
}

impl ChunkStream {
    /// Why nothing of a stream can be kept.
    fn refusal(&self, info: &StreamInfo) -> Option<Refusal> {
        let told = |message: String| Some(Refusal { message, told: false });
        let Some(video) = info.tracks.first() else {
            return told("the stream has no tracks".to_owned());
        };
        if !self.settings.container.holds(video) {
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
        for track in info.tracks.iter().skip(1).filter(|track| !self.settings.container.holds(track)) {
            let (node, stream) = (&self.settings.origin.node, &self.stream);
            tracing::warn!(%node, %stream, "`{node}` leaves track {} of stream `{stream}` out: MP4 cannot hold {}", track.index, track.codec);
        }
    }

    fn warn_of_lost_sound(&mut self) {
        if std::mem::replace(&mut self.told_lost_sound, true) {
            return;
        }
        let (node, stream) = (&self.settings.origin.node, &self.stream);
        tracing::warn!(%node, %stream, "`{node}` leaves sound of stream `{stream}` out: it comes before the first picture, and only the last {MOST_WAITING} packets of it ({} MiB) are kept", MOST_WAITING_BYTES >> 20);
    }

    fn picture(&mut self, item: &Item, packet: &Packet, out: &mut Output) -> Result<(), ItemError> {
        self.decoded = Some(packet.dts);
        self.place_waiting(self.decoded, out);
        if packet.is_key && self.is_due(item.pts) {
            if let Some(message) = self.unknown_size() {
                (self.refusal, self.is_broken) = (Some(Refusal { message: message.clone(), told: true }), true);
                self.finish_all(out);
                return Err(ItemError::Failed(message));
            }
            self.begin(item, out)?;
        }
        let Some(part) = &mut self.open else {
            // Nothing can be decoded before the first keyframe; after a failure it goes with what it belongs to.
            out.settle(item, if self.is_broken { Verdict::Rejected } else { Verdict::Filtered });
            return Ok(());
        };
        match append(part, packet, item.pts, self.info.as_deref()) {
            Ok(()) => {
                part.acks.push(item.lease.ack.clone());
                part.fallback |= item.fallback;
                let length = packet.duration.map_or(0, |duration| duration.ticks_in(item.pts.base));
                let end = MediaTime::new(item.pts.ticks.saturating_add(length), item.pts.base);
                part.end = part.end.max(end);
            }
            Err(error) => return Err(self.failed(error)),
        }
        let is_late = |part: &Part| packet.dts.since(part.end.ticks_in(packet.dts.base)).as_duration() >= LATE_SOUND;
        if self.closing.as_ref().is_some_and(is_late) {
            self.finish_closing(out);
        }
        Ok(())
    }

    /// Whether a keyframe at `pts` begins a part.
    fn is_due(&self, pts: MediaTime) -> bool {
        let Some(open) = &self.open else { return true };
        self.grid.is_none_or(|grid| grid.is_due(pts)) || is_longest(open.start, pts)
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
    fn failed(&mut self, error: MuxError) -> ItemError {
        if !matches!(error, MuxError::Packet(_))
            && let Some(part) = self.open.take()
        {
            part.acks.iter().for_each(|ack| ack.raise(Verdict::Rejected));
            part.acks.into_iter().for_each(Ack::release);
            (self.is_broken, self.is_unbroken) = (true, false);
        }
        ItemError::Failed(explained(&error))
    }

    /// Begins a part with the keyframe `item`.
    fn begin(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
        self.finish_closing(out);
        self.closing = self.open.take();
        if let Some(closing) = &mut self.closing {
            // Its last picture is shown until this one is, whatever its packet says: where pictures come at no fixed rate,
            // containers tell a length that none of them has.
            closing.end = closing.start.max(item.pts);
        }
        self.is_broken = true;
        // Before the first picture that is shown lies what an edit list hides: it is decoded, and hidden here too.
        let start = item.pts.max(MediaTime::new(0, item.pts.base));
        let info = self.info.clone().ok_or_else(|| ItemError::Failed("the stream has not opened".to_owned()))?;
        match &mut self.grid {
            Some(grid) if grid.is_due(item.pts) => grid.cut_at(item.pts),
            Some(_) => {}
            None => self.grid = self.new_grid(start, &info),
        }
        let index = self.index(&info)?;
        let muxer = Muxer::new(self.settings.container, &info.tracks, MOST_IN_MEMORY);
        let muxer = muxer.map_err(|error| ItemError::Failed(explained(&error)))?;
        let complete = (0..info.tracks.len()).map(|track| track == 0 || !muxer.has(track)).collect();
        self.open = Some(Part {
            muxer,
            index,
            start,
            end: start,
            follows: self.is_unbroken,
            is_after_gap: std::mem::take(&mut self.is_after_gap),
            acks: Vec::new(),
            seq: item.seq,
            time: item.time,
            fallback: false,
            complete,
        });
        self.begun += 1;
        (self.is_unbroken, self.is_broken) = (true, false);
        self.finish_closing_if_complete(out);
        Ok(())
    }

    /// The number of the next part. Those of a live stream go on where they were before a restart.
    fn index(&mut self, info: &StreamInfo) -> Result<u64, ItemError> {
        if let Some(progress) = self.settings.progress.as_ref().filter(|_| info.played == Played::Live) {
            let next = progress.next_index(&self.stream);
            let next = next.map_err(|error| ItemError::Failed(format!("{error}; {}", error.hint)))?;
            if let Some(next) = next {
                return Ok(next);
            }
        }
        let index = self.next_index;
        self.next_index += 1;
        Ok(index)
    }

    fn new_grid(&self, start: MediaTime, info: &StreamInfo) -> Option<Grid> {
        let (length, left) = match self.settings.cut {
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
        let Some(Waiting { seq, packet, pts, ack }) = self.waiting.pop_front() else { return };
        self.waiting_bytes -= packet.data.len() as u64;
        let Some(open) = &mut self.open else {
            // Sound without any picture beside it.
            ack.settle(if self.is_broken { Verdict::Rejected } else { Verdict::Filtered });
            if !self.is_broken {
                self.warn_of_lost_sound();
            }
            return;
        };
        let belongs_before = packet.dts < open.start;
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
        match append(part, &packet, pts, self.info.as_deref()) {
            Ok(()) => part.acks.push(ack),
            Err(error) => self.report(&explained(&error), seq, ack, out),
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
        let Part { muxer, index, start, end, follows, acks, seq, time, fallback, .. } = part;
        let (content, sha256) = match muxer.finish() {
            Ok(finished) => finished,
            Err(error) => {
                let ack = Ack::merged(acks);
                let message = format!("chunk {index} cannot be completed: {}", explained(&error));
                self.report(&message, seq, ack, out);
                return;
            }
        };
        let name = self.settings.name.render(&Values { stream: &self.stream, index, ..Values::default() });
        let seconds = |time: MediaTime| time.as_micros() as f64 / 1e6;
        let file = MadeFile {
            name: name.clone(),
            node: self.settings.origin.node.clone(),
            index,
            start: seconds(start),
            end: seconds(end),
            bytes: content.len(),
            state: FileState::Queued,
            place: None,
            error: None,
        };
        let ack = Ack::of_file(acks, file);
        let lease = Lease { credit: Some(self.budget.overdraw(content.memory())), ack };
        let media_type = self.settings.container.media_type();
        let origin = self.settings.origin.clone();
        let played = self.info.as_ref().map(|info| &info.played);
        let lineage =
            self.settings.progress.as_ref().zip(played).and_then(|(progress, played)| progress.lineage(played));
        let segment = Segment { origin, name, index, media_type, start, end, follows, sha256, lineage, content };
        let payload = Payload::Segment(Arc::new(segment));
        let stream = self.stream.clone();
        out.emit(Item { stream, seq, pts: start, time, fallback, payload, lease });
    }

    /// An error record in the place of what `ack` speaks for.
    fn report(&self, message: &str, seq: u64, ack: Ack, out: &mut Output) {
        let (node, stream) = (&self.settings.origin.node, &self.stream);
        let message = format!("`{node}` failed on stream `{stream}`: {message}");
        tracing::warn!(%node, %stream, "{message}");
        ack.raise(Verdict::Rejected);
        let time = self.settings.clock.wall();
        let record = self.settings.origin.signal(stream, Some(seq), time, RecordBody::Error { message });
        out.emit(Item {
            stream: stream.clone(),
            seq,
            pts: self.decoded.unwrap_or(MediaTime::ZERO),
            time,
            fallback: false,
            payload: Payload::Record(Arc::new(record)),
            lease: Lease { credit: Some(self.budget.overdraw(0)), ack },
        });
    }
}

fn append(part: &mut Part, packet: &Packet, pts: MediaTime, info: Option<&StreamInfo>) -> Result<(), MuxError> {
    let base = info.and_then(|info| info.tracks.get(packet.track)).map_or(pts.base, |track| track.time_base);
    part.muxer.write(packet, ticks_since(pts, part.start, base), ticks_since(packet.dts, part.start, base))
}

/// A failure with what to do next.
pub(super) fn explained(error: &MuxError) -> String {
    match error {
        MuxError::Spill { .. } => {
            format!("{error}; make room there, name another folder with the variable TMPDIR, or cut shorter chunks")
        }
        MuxError::Packet(_) | MuxError::Failed(_) => error.to_string(),
    }
}

/// What file names of chunks may consist of: VSS takes no others.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.- ".contains(&byte))
}

const DEFAULT_NAME: &str = "{stream}_chunk_{index:04}.mp4";

/// The template of the `name` of files that are made of a stream; `example` is one that works.
///
/// # Errors
/// Where two files would have the same name, or something else than VSS takes would be in it.
pub(super) fn name_template(name: &str, example: &str) -> Result<Template, Vec<FieldError>> {
    let template = Template::parse(name, &[Placeholder::Stream, Placeholder::Index])
        .map_err(|why| vec![FieldError::new("name", why).hint(format!("write it like \"{example}\""))])?;
    let mut mistakes = Vec::new();
    if let Some(text) = template.text().find(|text| !is_plain(text)) {
        let error = FieldError::new("name", format!("`{text}` cannot be part of a file's name"));
        mistakes.push(error.hint("use letters, digits, spaces and `_ . -`; folders belong into the sink's `path`"));
    }
    if !template.has(Placeholder::Index) {
        let error = FieldError::new("name", "all files of a stream would have the same name");
        mistakes.push(error.hint(format!("add `{{index}}`, as in \"{example}\"")));
    }
    if !template.has(Placeholder::Stream) {
        let error = FieldError::new("name", "the files of two streams would have the same name");
        mistakes.push(error.hint(format!("add `{{stream}}`, as in \"{example}\"")));
    }
    if mistakes.is_empty() { Ok(template) } else { Err(mistakes) }
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
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
            Cut::Every(every)
        }
        (None, Some(parts)) => {
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
    let Ok(template) = name.map_err(|mut errors| mistakes.append(&mut errors)) else { return Err(mistakes) };
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let container = match config.container {
        None | Some(ContainerConfig::Mp4) => Container::Mp4,
        Some(ContainerConfig::Fmp4) => Container::FragmentedMp4,
    };
    let (origin, clock, progress) = (context.origin.clone(), context.clock.clone(), context.progress.clone());
    let settings = Settings { cut, container, name: template, origin, clock, progress };
    Ok(Built::Inline(Arc::new(Chunk { settings: Arc::new(settings) })))
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
            summary: "Cut at the first keyframe behind each multiple of this time of the stream. This or `parts`.",
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

    use crate::item::TrackFormat;
    use crate::lease::Counts;
    use crate::sinks::records::tests::context;
    use crate::testing::item;
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
