//! What flows: items with their payloads, and the signals between them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::lease::Lease;
use crate::media::parameters::Parameters;
use crate::time::{MediaTime, TimeBase};

/// The id of a stream: 1 to 128 of `A-Z a-z 0-9 _ . -`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(Arc<str>);

impl StreamId {
    pub fn new(id: &str) -> Option<StreamId> {
        is_name(id).then(|| StreamId(id.into()))
    }

    /// The id of a stream that was given only as a path or URL: every other character becomes `_`.
    pub fn sanitised(text: &str) -> StreamId {
        let allowed = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
        let id: String = text.chars().map(allowed).take(128).collect();
        StreamId(if is_name(&id) { id.into() } else { "stream".into() })
    }
}

/// Whether `text` may name a stream, a node or a graph. Names become parts of paths, and `..` would lead out of a folder.
pub fn is_name(text: &str) -> bool {
    let is_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    (1..=128).contains(&text.len()) && is_plain && text.bytes().any(|b| b != b'.')
}

impl Deref for StreamId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, formatter)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Serialize for StreamId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

/// What a port carries. Checked before anything runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Encoded audio or video, as demuxed.
    Packet,
    /// A decoded picture.
    Frame,
    /// Decoded audio.
    Samples,
    /// What a model eats.
    Tensor,
    /// A finished media file.
    Segment,
    /// What people read.
    Record,
}

impl Kind {
    /// The plural that diagnostics use: "`sse` takes records, but `cam` makes frames".
    pub const fn plural(self) -> &'static str {
        match self {
            Kind::Packet => "packets",
            Kind::Frame => "frames",
            Kind::Samples => "samples",
            Kind::Tensor => "tensors",
            Kind::Segment => "segments",
            Kind::Record => "records",
        }
    }
}

/// One thing that flows, with its share of memory and its claim on a fate.
#[derive(Clone, Debug)]
pub struct Item {
    pub stream: StreamId,
    /// The source's count of items of this port for the stream, from 0, before sampling, skipped pictures included.
    pub seq: u64,
    /// Time since the stream's first frame, in the stream's native ticks.
    pub pts: MediaTime,
    /// When the picture was decoded (wall clock).
    pub time: SystemTime,
    /// Whether it was shown in the place of an input that is lost.
    pub fallback: bool,
    pub payload: Payload,
    pub lease: Lease,
}

impl Item {
    /// An item that was derived from this one: same stream, seq and times, the lease of something small.
    pub fn derive(&self, payload: Payload) -> Item {
        self.with(payload, self.lease.derived())
    }

    /// The same item with another payload of about the same size: it keeps the whole lease.
    pub fn replace(&self, payload: Payload) -> Item {
        self.with(payload, self.lease.clone())
    }

    fn with(&self, payload: Payload, lease: Lease) -> Item {
        let Item { stream, seq, pts, time, fallback, .. } = self;
        Item { stream: stream.clone(), seq: *seq, pts: *pts, time: *time, fallback: *fallback, payload, lease }
    }
}

/// What an [`Item`] carries. One enum, so that one edge type serves every graph.
#[derive(Clone, Debug)]
pub enum Payload {
    Packet(Arc<Packet>),
    Frame(Arc<Frame>),
    Tensor(Arc<Tensor>),
    Segment(Arc<Segment>),
    Record(Arc<Record>),
}

impl Payload {
    pub const fn kind(&self) -> Kind {
        match self {
            Payload::Packet(_) => Kind::Packet,
            Payload::Frame(_) => Kind::Frame,
            Payload::Tensor(_) => Kind::Tensor,
            Payload::Segment(_) => Kind::Segment,
            Payload::Record(_) => Kind::Record,
        }
    }

    /// Bytes that it holds in memory; for a record, a generous guess.
    pub fn bytes(&self) -> u64 {
        match self {
            Payload::Packet(packet) => packet.data.len() as u64,
            Payload::Frame(frame) => frame.bytes(),
            Payload::Tensor(tensor) => tensor.bytes(),
            Payload::Segment(segment) => segment.content.memory(),
            Payload::Record(_) => 1024,
        }
    }
}

/// What flows on an edge: items, and the signals between them, in order per stream. Signals need no lease and are
/// never dropped.
#[derive(Clone, Debug)]
pub enum Event {
    /// The stream starts, or goes on in another format.
    Open {
        stream: StreamId,
        info: Arc<StreamInfo>,
    },
    Item(Item),
    /// Something is missing here: an interruption, a discarded state, drops.
    Gap {
        stream: StreamId,
        gap: Gap,
    },
    /// Nothing more will come.
    End {
        stream: StreamId,
        reason: EndReason,
    },
}

impl Event {
    pub fn stream(&self) -> &StreamId {
        match self {
            Event::Item(item) => &item.stream,
            Event::Open { stream, .. } | Event::Gap { stream, .. } | Event::End { stream, .. } => stream,
        }
    }
}

/// Why a stretch of a stream is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// In plain words, for the record.
    pub reason: String,
    /// The next sequence number after the gap, where known.
    pub seq: Option<u64>,
}

/// Why a stream ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EndReason {
    /// The input is finished.
    Eof,
    /// Somebody stopped the stream, the graph or the engine.
    Stopped,
    /// The graph was changed in front of the consumer; the stream may go on in another form.
    Reload,
    /// The source cannot go on; the text says why.
    Failed(String),
}

/// What is known when a stream opens.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamInfo {
    /// The selected tracks; the first one is the video track that is decoded and at whose keyframes packets are cut.
    pub tracks: Vec<Track>,
    /// Length of one tick of the `pts` of the video track's items.
    pub time_base: TimeBase,
    /// Seconds of media, where the container says so.
    pub duration: Option<f64>,
    pub played: Played,
}

/// What a stream plays, as far as it can be told again after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Played {
    /// Time goes on: what was played does not come again.
    #[default]
    Live,
    /// Something with an end, which is played anew each time and of which nothing is remembered.
    Anew,
    /// One version of something with an end: played again, it is the same.
    Version(Arc<Version>),
}

/// What tells an input from every other one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The name of the source's node.
    pub source: Arc<str>,
    /// Such as `s3://bucket/key`.
    pub name: String,
    /// Changes with the content.
    pub version: String,
}

/// What a [`Segment`] was made of, where that is remembered over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lineage {
    /// Of a stream that does not come again.
    Live,
    /// Of this input, by nodes of this configuration.
    Version { version: Arc<Version>, configuration: Arc<str> },
}

/// One selected track of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Track {
    /// The track's index in its container.
    pub index: usize,
    pub codec: String,
    pub format: TrackFormat,
    /// Length of one tick of the times of the track's packets.
    pub time_base: TimeBase,
    /// What a muxer must know of it; absent where its source makes pictures without encoding them. Only `media` looks
    /// into it.
    pub parameters: Option<Parameters>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TrackFormat {
    /// `frame_rate` is the container's claim, frames a second, where it makes one.
    Video {
        width: u32,
        height: u32,
        frame_rate: Option<f64>,
        has_b_frames: bool,
    },
    Audio {
        sample_rate: u32,
        channels: u32,
    },
}

/// How the samples of a picture lie in memory. Chroma planes of subsampled formats have `ceil(size / 2)` samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// Planes Y, U, V; chroma halved in both directions.
    Yuv420p,
    /// Planes Y, U, V; chroma halved horizontally.
    Yuv422p,
    /// Planes Y, U, V; all of full size.
    Yuv444p,
    /// Planes Y and interleaved UV; chroma halved in both directions.
    Nv12,
    /// One plane of luma.
    Gray8,
    /// One plane of interleaved R, G, B.
    Rgb24,
}

impl PixelFormat {
    pub const fn planes(self) -> usize {
        match self {
            PixelFormat::Yuv420p | PixelFormat::Yuv422p | PixelFormat::Yuv444p => 3,
            PixelFormat::Nv12 => 2,
            PixelFormat::Gray8 | PixelFormat::Rgb24 => 1,
        }
    }

    /// Visible bytes a row and rows of plane `index` for a picture of `width` x `height` pixels.
    pub const fn plane_size(self, index: usize, width: u32, height: u32) -> (usize, usize) {
        let (w, h) = (width as usize, height as usize);
        match (self, index) {
            (PixelFormat::Rgb24, _) => (w * 3, h),
            (_, 0) | (PixelFormat::Yuv444p, _) => (w, h),
            (PixelFormat::Yuv420p, _) => (w.div_ceil(2), h.div_ceil(2)),
            (PixelFormat::Yuv422p, _) => (w.div_ceil(2), h),
            (PixelFormat::Nv12, _) => (w.div_ceil(2) * 2, h.div_ceil(2)),
            (PixelFormat::Gray8, _) => (0, 0),
        }
    }

    /// Visible bytes of a whole picture.
    pub fn bytes(self, width: u32, height: u32) -> u64 {
        (0..self.planes())
            .map(|plane| {
                let (row, rows) = self.plane_size(plane, width, height);
                row as u64 * rows as u64
            })
            .sum()
    }
}

/// The matrix of a YUV picture (ITU-R BT.601 or BT.709).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColorMatrix {
    Bt601,
    Bt709,
}

/// Whether luma spans 16..235 or 0..255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColorRange {
    Limited,
    Full,
}

/// Memory of a picture, whoever allocated it.
pub trait PictureBuffer: Send + Sync {
    /// All bytes of a plane, `stride` bytes a row, at least as many rows as the picture needs.
    fn plane(&self, index: usize) -> &[u8];
    /// Bytes from one row to the next.
    fn stride(&self, index: usize) -> usize;
}

/// A decoded picture.
pub struct Frame {
    /// Visible size in pixels, cropping applied.
    pub width: u32,
    pub height: u32,
    pub format: PixelFormat,
    pub matrix: ColorMatrix,
    pub range: ColorRange,
    pub buffer: Box<dyn PictureBuffer>,
    /// The picture's index in presentation order, where the source is finite.
    pub index: Option<u64>,
    /// What is really in the picture, where the source made it itself.
    pub truth: Option<Vec<TrueObject>>,
}

impl Frame {
    /// Bytes that this picture holds in memory, strides included.
    pub fn bytes(&self) -> u64 {
        (0..self.format.planes()).map(|plane| self.buffer.plane(plane).len() as u64).sum()
    }

    /// The visible rows of plane `index`.
    pub fn rows(&self, index: usize) -> impl Iterator<Item = &[u8]> {
        let (row, rows) = self.format.plane_size(index, self.width, self.height);
        let (plane, stride) = (self.buffer.plane(index), self.buffer.stride(index));
        (0..rows).map(move |y| &plane[y * stride..y * stride + row])
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Frame({}x{} {:?}", self.width, self.height, self.format)?;
        match self.index {
            Some(index) => write!(formatter, " #{index})"),
            None => formatter.write_str(")"),
        }
    }
}

/// An object that a synthetic source drew, as ground truth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrueObject {
    pub label: &'static str,
    /// `[x1, y1, x2, y2]` in pixels of the picture, clipped to it.
    #[serde(rename = "box")]
    pub bounds: [f32; 4],
}

/// What a model eats: one picture (batch 1).
#[derive(Debug)]
pub struct Tensor {
    /// Without the batch dimension: `[3, H, W]` or `[H, W, 3]`.
    pub shape: [usize; 3],
    pub data: TensorData,
    /// How the source picture lies in the tensor.
    pub placement: Placement,
    /// The source picture's index in presentation order, where its source is finite.
    pub index: Option<u64>,
}

#[derive(Debug)]
pub enum TensorData {
    F32(Vec<f32>),
    F16(Vec<half::f16>),
    U8(Vec<u8>),
}

impl Tensor {
    pub fn bytes(&self) -> u64 {
        match &self.data {
            TensorData::F32(values) => values.len() as u64 * 4,
            TensorData::F16(values) => values.len() as u64 * 2,
            TensorData::U8(values) => values.len() as u64,
        }
    }
}

/// How a source picture was placed into a model's input:
/// `input = source * scale + offset`, per axis, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    pub source_width: u32,
    pub source_height: u32,
    pub scale: [f32; 2],
    pub offset: [f32; 2],
}

impl Placement {
    /// Maps a box `[x1, y1, x2, y2]` of input pixels back to source pixels, clipped to the picture.
    pub fn to_source(&self, bounds: [f32; 4]) -> [f32; 4] {
        let limits = [self.source_width as f32, self.source_height as f32];
        std::array::from_fn(|i| {
            let axis = i % 2;
            ((bounds[i] - self.offset[axis]) / self.scale[axis]).clamp(0.0, limits[axis])
        })
    }
}

/// Encoded audio or video of one track, as it was demuxed.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Index into the tracks of the stream's [`StreamInfo`].
    pub track: usize,
    /// Whether decoding may start here.
    pub is_key: bool,
    /// When it is to be decoded, since the stream's first picture; never less than that of the track's packet before.
    /// The item has its presentation time.
    pub dts: MediaTime,
    /// How long it is shown or heard, where that is known.
    pub duration: Option<MediaTime>,
    pub data: Bytes,
}

/// A finished media file, and the stretch of its stream that it holds.
#[derive(Debug)]
pub struct Segment {
    /// The graph and the node that made it.
    pub origin: Origin,
    /// Its file name, by the template of the node that made it, such as `door_chunk_0003.mp4`.
    pub name: String,
    /// Counts the segments that the node made of the stream, from 0.
    pub index: u64,
    /// Such as `video/mp4`.
    pub media_type: &'static str,
    /// When its first packet is shown, since the stream's first picture.
    pub start: MediaTime,
    /// When its last packet has been shown.
    pub end: MediaTime,
    /// When what it holds was read, where it was cut by that.
    pub wall: Option<WallTime>,
    /// Whether it begins where the one before ended: nothing is missing between them.
    pub follows: bool,
    /// Hexadecimal SHA-256 of the content.
    pub sha256: String,
    /// What it was made of, where that is remembered.
    pub lineage: Option<Lineage>,
    pub content: Content,
}

/// A stretch of time by the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallTime {
    pub start: SystemTime,
    pub end: SystemTime,
}

/// The bytes of a [`Segment`].
#[derive(Debug)]
pub enum Content {
    Memory(Bytes),
    /// A file that is gone when nobody holds it any more.
    File(SpilledFile),
}

impl Content {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(file) => file.bytes,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that it holds in memory.
    pub fn memory(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(_) => 0,
        }
    }
}

/// A file outside of memory, or a part of one, that belongs to one [`Content`]. The file has no name, so nothing of it is
/// left when the process ends, whatever way that is; it is gone when nobody holds a part of it any more. It stays open, so
/// there may be only a few of them at once.
#[derive(Debug)]
pub struct SpilledFile {
    file: Arc<File>,
    start: u64,
    bytes: u64,
}

impl SpilledFile {
    /// Makes an empty file without a name in the folder for temporary files (`TMPDIR`).
    ///
    /// # Errors
    /// Where there is no such folder, no room or no right.
    pub fn create() -> io::Result<File> {
        tempfile::tempfile()
    }

    /// The first `bytes` of `file`, which has no name, and which nobody writes to any more.
    pub fn unnamed(file: File, bytes: u64) -> SpilledFile {
        SpilledFile::part_of(Arc::new(file), 0, bytes)
    }

    /// The `bytes` behind `start` of `file`, which has no name. Nobody writes to them any more.
    pub fn part_of(file: Arc<File>, start: u64, bytes: u64) -> SpilledFile {
        SpilledFile { file, start, bytes }
    }

    /// The file that it is, or is a part of.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> *const File {
        Arc::as_ptr(&self.file)
    }

    /// Fills `into` with what begins at `position`. May block; several may read at once.
    ///
    /// # Errors
    /// Where it cannot be read, or ends before.
    pub fn read_exact_at(&self, into: &mut [u8], position: u64) -> io::Result<()> {
        if position.saturating_add(into.len() as u64) > self.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(into, self.start + position)
    }

    /// Reads it from its beginning. May block.
    pub fn reader(&self) -> SpilledReader<'_> {
        SpilledReader { spilled: self, position: 0 }
    }
}

/// Reads a [`SpilledFile`] at a place of its own.
pub struct SpilledReader<'a> {
    spilled: &'a SpilledFile,
    position: u64,
}

impl Read for SpilledReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.spilled.bytes.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let count = into.len().min(left);
        self.spilled.read_exact_at(&mut into[..count], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// What people read: one JSON object per result (documented in `docs/record.schema.json`).
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// `graph/node/stream/seq`: the record's identity.
    pub id: String,
    pub graph: Arc<str>,
    pub node: Arc<str>,
    pub stream: StreamId,
    /// Absent where the record stands for no item (a gap or a status of the whole stream).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// Seconds since the stream's first frame, to the microsecond.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pts: Option<f64>,
    /// RFC 3339, UTC: when the picture was decoded.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// Index of the picture in presentation order of a finite source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Whether the picture was shown in the place of an input that is lost. Written only where it is so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fallback: bool,
    #[serde(flatten)]
    pub body: RecordBody,
    /// Milliseconds by stage.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub timing_ms: BTreeMap<&'static str, f64>,
}

/// What a [`Record`] says, by its `kind`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum RecordBody {
    Classification {
        model: ModelName,
        predictions: Vec<Prediction>,
    },
    Detection {
        model: ModelName,
        detections: Vec<Detection>,
        counts: BTreeMap<Arc<str>, u64>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        has: BTreeMap<Arc<str>, bool>,
    },
    Checksum {
        /// Hexadecimal MD5 of the visible planes, in order.
        md5: String,
    },
    /// A media file, and how far it has come.
    Segment(SegmentStatus),
    Gap {
        reason: String,
    },
    Error {
        message: String,
    },
    Status {
        state: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

impl RecordBody {
    pub const fn kind(&self) -> &'static str {
        match self {
            RecordBody::Classification { .. } => "classification",
            RecordBody::Detection { .. } => "detection",
            RecordBody::Checksum { .. } => "checksum",
            RecordBody::Segment(_) => "segment",
            RecordBody::Gap { .. } => "gap",
            RecordBody::Error { .. } => "error",
            RecordBody::Status { .. } => "status",
        }
    }
}

/// What is told of a [`Segment`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentStatus {
    pub name: String,
    pub index: u64,
    pub bytes: u64,
    /// Seconds since the stream's first picture, to the microsecond.
    pub start: f64,
    pub end: f64,
    pub duration: f64,
    /// RFC 3339, UTC: when its first picture was read, and its last one, where it was cut by that.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_rfc3339")]
    pub wall_start: Option<SystemTime>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_rfc3339")]
    pub wall_end: Option<SystemTime>,
    pub media_type: &'static str,
    /// Hexadecimal SHA-256 of the content.
    pub sha256: String,
    /// `made`, then what becomes of it: `stored`, `uploaded`, `failed`.
    pub state: &'static str,
    /// Where it lies now, such as `s3://bucket/key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Its id in VSS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vss_id: Option<String>,
    /// The other side's word for why it failed, and its sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What VSS says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

impl Segment {
    /// What is told of it when it is made.
    pub fn status(&self, state: &'static str) -> SegmentStatus {
        let seconds = |time: MediaTime| time.as_micros() as f64 / 1e6;
        let (start, end) = (seconds(self.start), seconds(self.end));
        SegmentStatus {
            name: self.name.clone(),
            index: self.index,
            bytes: self.content.len(),
            start,
            end,
            duration: (self.end.as_micros() - self.start.as_micros()) as f64 / 1e6,
            wall_start: self.wall.map(|wall| wall.start),
            wall_end: self.wall.map(|wall| wall.end),
            media_type: self.media_type,
            sha256: self.sha256.clone(),
            state,
            location: None,
            vss_id: None,
            code: None,
            message: None,
            summary: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelName {
    pub name: Arc<str>,
    /// Hexadecimal SHA-256 of the model's file.
    pub sha256: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    pub label: Arc<str>,
    pub index: usize,
    pub score: f32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Detection {
    pub label: Arc<str>,
    pub index: usize,
    pub score: f32,
    /// `[x1, y1, x2, y2]` in pixels of the source picture.
    #[serde(rename = "box")]
    pub bounds: [f32; 4],
}

/// A time as everything that is told over HTTP writes it: RFC 3339, UTC, whole microseconds.
pub fn time_text(time: SystemTime) -> String {
    let stamp = jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{stamp:.6}")
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let stamp = jiff::Timestamp::try_from(*time).map_err(serde::ser::Error::custom)?;
    serializer.collect_str(&format_args!("{stamp:.6}"))
}

fn some_rfc3339<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => rfc3339(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// Where a record comes from: the graph and the node that make it.
#[derive(Clone, Debug)]
pub struct Origin {
    pub graph: Arc<str>,
    pub node: Arc<str>,
}

impl Origin {
    /// The record of this node for `item`. Size and frame index are those of the item's picture, where it has one.
    pub fn record(&self, item: &Item, body: RecordBody) -> Record {
        let (frame, width, height) = match &item.payload {
            Payload::Frame(frame) => (frame.index, Some(frame.width), Some(frame.height)),
            Payload::Tensor(tensor) => {
                (tensor.index, Some(tensor.placement.source_width), Some(tensor.placement.source_height))
            }
            Payload::Record(record) => (record.frame, record.width, record.height),
            Payload::Packet(_) | Payload::Segment(_) => (None, None, None),
        };
        Record {
            id: format!("{}/{}/{}/{}", self.graph, self.node, item.stream, item.seq),
            graph: self.graph.clone(),
            node: self.node.clone(),
            stream: item.stream.clone(),
            seq: Some(item.seq),
            pts: Some(item.pts.as_micros() as f64 / 1e6),
            time: item.time,
            frame,
            width,
            height,
            fallback: item.fallback,
            body,
            timing_ms: BTreeMap::new(),
        }
    }

    /// A record of this node about the stream itself; `seq` is the next item's, where known.
    pub fn signal(&self, stream: &StreamId, seq: Option<u64>, time: SystemTime, body: RecordBody) -> Record {
        let number = seq.map_or_else(|| "-".to_owned(), |seq| seq.to_string());
        Record {
            id: format!("{}/{}/{}/{}:{}", self.graph, self.node, stream, body.kind(), number),
            graph: self.graph.clone(),
            node: self.node.clone(),
            stream: stream.clone(),
            seq,
            pts: None,
            time,
            frame: None,
            width: None,
            height: None,
            fallback: false,
            body,
            timing_ms: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_out_of_no_folder() {
        for name in ["a", "..a", ".hidden", "a..b", "A-Z_0.9"] {
            assert!(is_name(name), "{name}");
        }
        for text in ["", ".", "..", "...", "a/b", "a b", &"x".repeat(129)] {
            assert!(!is_name(text) && StreamId::new(text).is_none(), "{text}");
            assert!(is_name(&StreamId::sanitised(text)), "{text}");
        }
    }
}
