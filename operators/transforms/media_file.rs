//! Media files that operators make of a stream's packets, from the first packet to the segment that goes on. `chunk` and
//! `clip` differ in where a file begins and ends, and share the rest.
//!
//! A file is paid by a budget of its operator (memory up to [`MOST_IN_MEMORY`], then a temporary file). It is completed
//! elsewhere than on the worker: moving the index of a large file to its front, and hashing it, takes long.

use std::sync::Arc;
use std::time::SystemTime;

use crate::clock::Clock;
use crate::error::{FieldError, ItemError};
use crate::item::{
    Item, Lineage, Origin, Packet, Payload, Played, RecordBody, Segment, StreamId, StreamInfo, Track, WallTime,
};
use crate::lease::{Ack, Budget, Lease, Limits, Verdict};
use crate::made::{FileState, MadeFile, Reading};
use crate::media::mux::{Container, LONGEST_FIRST_FRAGMENT, MuxError, Muxer, ticks_since};
use crate::operator::{Later, Output, Unmade};
use crate::progress::Progress;
use crate::template::{Placeholder, Template, Values};
use crate::time::MediaTime;

/// A file that grows beyond this many bytes goes on in a temporary file.
const MOST_IN_MEMORY: u64 = 16 << 20;
/// Finished files of one stream that may wait for their sink: when as many do, the source's credits are kept back.
const WAITING_FOR_SINK: Limits = Limits { items: 4, bytes: MOST_IN_MEMORY };

/// What the files of one node have in common.
pub(super) struct Maker {
    /// What a file is called, such as `chunk`.
    pub what: &'static str,
    pub container: Container,
    /// The template of their names.
    pub name: Template,
    pub origin: Origin,
    pub clock: Arc<dyn Clock>,
    pub progress: Option<Progress>,
}

/// The files of one stream.
pub(super) struct Files {
    maker: Arc<Maker>,
    stream: StreamId,
    budget: Arc<Budget>,
    /// Behind all that these were given.
    next_index: u64,
    /// Which reading of the stream they are of, since the first one.
    reading: Option<Reading>,
}

/// A file that is being written.
pub(super) struct MediaFile {
    muxer: Muxer,
    pub index: u64,
    /// When its first picture is shown.
    pub start: MediaTime,
    /// When the last of its pictures has been shown.
    pub end: MediaTime,
    /// Whether it begins where the one before ended.
    pub follows: bool,
    acks: Vec<Ack>,
    /// Number of its first picture's packet: unlike its index, it goes on through every reload.
    seq: u64,
    /// When its first picture was read, and its last one.
    read: WallTime,
    fallback: bool,
}

/// The first picture of a file.
pub(super) struct First {
    pub seq: u64,
    pub time: SystemTime,
    /// When it is shown.
    pub start: MediaTime,
    pub follows: bool,
}

/// How a finished file is told of.
pub(super) struct Telling {
    /// What it was made of, where that is remembered.
    pub lineage: Option<Lineage>,
    /// What becomes of it is written into the books of its stream.
    pub is_in_books: bool,
    /// When it was read matters as much as when it is shown.
    pub by_wall: bool,
}

impl Maker {
    /// Upper bound of what it keeps in memory of one stream, with so many files open at once: those, each with a fragment
    /// that is not written yet, and finished ones, one of which may exceed the limit.
    pub fn memory(&self, open: u64) -> u64 {
        let fragment = match self.container {
            Container::FragmentedMp4 => LONGEST_FIRST_FRAGMENT,
            Container::Mp4 | Container::Piece | Container::Transport => 0,
        };
        open * (MOST_IN_MEMORY + fragment) + WAITING_FOR_SINK.bytes + MOST_IN_MEMORY
    }
}

impl Files {
    pub fn new(maker: Arc<Maker>, stream: StreamId) -> Files {
        Files { maker, stream, budget: Budget::new(WAITING_FOR_SINK), next_index: 0, reading: None }
    }

    /// The number of the next file, which begins with the packet of `ack`. It goes on for as long as the stream is read,
    /// however often the node is changed meanwhile; that of a live stream goes on where it was before a restart, too.
    ///
    /// # Errors
    /// Where progress cannot be read.
    pub fn next_index(&mut self, played: &Played, ack: &Ack) -> Result<u64, ItemError> {
        let is_live = *played == Played::Live;
        let mut index = self.next_index;
        if let Some(progress) = self.maker.progress.as_ref().filter(|_| is_live) {
            let next = progress.next_index(&self.stream);
            let next = next.map_err(|error| ItemError::Hindered(format!("{error}; {}", error.hint)))?;
            index = index.max(next.unwrap_or(0));
        }
        if let Some(account) = ack.account() {
            index = account.made.next_index(&self.maker.origin.node, index, is_live, &mut self.reading);
        }
        self.next_index = index + 1;
        Ok(index)
    }

    /// What a file of what is played is made of, where that is remembered.
    pub fn lineage(&self, played: &Played) -> Option<Lineage> {
        self.maker.progress.as_ref()?.lineage(played)
    }

    /// Keeps the credit of `item` back while too many finished files wait.
    pub fn hold_back(&self, item: &Item) {
        if let Some(credit) = &item.lease.credit {
            self.budget.park(credit.clone());
        }
    }

    /// Begins a file with those tracks of the stream that its container holds.
    ///
    /// # Errors
    /// Where libav refuses the parameters of a track.
    pub fn begin(&self, index: u64, first: First, info: &StreamInfo) -> Result<MediaFile, ItemError> {
        let First { seq, time, start, follows } = first;
        let muxer =
            Muxer::new(self.maker.container, &info.tracks, MOST_IN_MEMORY).map_err(|error| explained(&error))?;
        let (read, acks) = (WallTime { start: time, end: time }, Vec::new());
        Ok(MediaFile { muxer, index, start, end: start, follows, acks, seq, read, fallback: false })
    }

    /// Passes a file on that nothing more comes for, as soon as it is complete.
    pub fn finish(&self, file: MediaFile, telling: Telling, out: &mut Output) {
        let MediaFile { mut muxer, index, start, end, follows, acks, seq, read, fallback } = file;
        let Maker { what, container, name, origin, .. } = &*self.maker;
        let name = name.render(&Values { stream: &self.stream, index, ..Values::default() });
        let seconds = |time: MediaTime| time.as_micros() as f64 / 1e6;
        let ack = if telling.is_in_books {
            let file = MadeFile {
                name: name.clone(),
                node: origin.node.clone(),
                index,
                start: seconds(start),
                end: seconds(end),
                bytes: 0,
                state: FileState::Queued,
                place: None,
                error: None,
            };
            Ack::of_file(acks, file)
        } else {
            Ack::merged(acks)
        };
        let lease = Lease { credit: Some(self.budget.overdraw(muxer.memory())), ack };
        let stream = self.stream.clone();
        let item = Unmade { stream, seq, pts: start, time: read.start, fallback, lease };
        let (what, media_type, origin) = (*what, container.media_type(), origin.clone());
        let Telling { lineage, by_wall, .. } = telling;
        let wall = by_wall.then_some(read);
        let make = move || {
            let finished = muxer.finish();
            let (content, sha256) = finished.map_err(|error| {
                let why = |error: String| format!("{what} {index} cannot be completed: {error}");
                match explained(&error) {
                    ItemError::Hindered(error) => ItemError::Hindered(why(error)),
                    error => ItemError::Failed(why(error.to_string())),
                }
            })?;
            let segment =
                Segment { origin, name, index, media_type, start, end, wall, follows, sha256, lineage, content };
            Ok(Payload::Segment(Arc::new(segment)))
        };
        out.emit_later(Later { item, make: Box::new(make) });
    }

    /// An error record in the place of what `ack` speaks for.
    pub fn report(&self, error: &ItemError, seq: u64, pts: MediaTime, ack: Ack, out: &mut Output) {
        let (node, stream) = (&self.maker.origin.node, &self.stream);
        let message = format!("`{node}` failed on stream `{stream}`: {error}");
        tracing::warn!(%node, %stream, "{message}");
        ack.raise(error.verdict());
        let time = self.maker.clock.wall();
        let record = self.maker.origin.signal(stream, Some(seq), time, RecordBody::Error { message });
        out.emit(Item {
            stream: stream.clone(),
            seq,
            pts,
            time,
            fallback: false,
            payload: Payload::Record(Arc::new(record)),
            lease: Lease { credit: Some(self.budget.overdraw(0)), ack },
        });
    }
}

/// A packet on its way into a file.
pub(super) struct Arrived<'a> {
    pub packet: &'a Packet,
    pub pts: MediaTime,
    /// When it was read.
    pub time: SystemTime,
    pub fallback: bool,
    pub ack: &'a Ack,
}

impl MediaFile {
    /// Whether the file has this track of the stream.
    pub fn has(&self, track: usize) -> bool {
        self.muxer.has(track)
    }

    /// Appends a packet. Those of the first track say how long the file is.
    ///
    /// # Errors
    /// See [`MuxError`]: the packet's fate is not that of the file then.
    pub fn append(&mut self, arrived: &Arrived<'_>, info: Option<&StreamInfo>) -> Result<(), MuxError> {
        let Arrived { packet, pts, time, fallback, ack } = *arrived;
        let base = info.and_then(|info| info.tracks.get(packet.track)).map_or(pts.base, |track| track.time_base);
        self.muxer.write(packet, ticks_since(pts, self.start, base), ticks_since(packet.dts, self.start, base))?;
        self.acks.push(ack.clone());
        if packet.track == 0 {
            self.fallback |= fallback;
            self.read.end = self.read.end.max(time);
            let length = packet.duration.map_or(0, |duration| duration.ticks_in(pts.base));
            self.end = self.end.max(MediaTime::new(pts.ticks.saturating_add(length), pts.base));
        }
        Ok(())
    }

    /// Something else asked for the file, and ends as it does.
    pub fn also(&mut self, ack: Ack) {
        self.acks.push(ack);
    }

    /// When its first picture was read.
    pub fn begun(&self) -> SystemTime {
        self.read.start
    }

    /// It is of no use any more, and all that is in it ends with `verdict`.
    pub fn settle(self, verdict: Verdict) {
        self.acks.into_iter().for_each(|ack| ack.settle(verdict));
    }
}

/// Whether packets of these tracks can follow packets of those in one file. A format may be told again in which only what a
/// decoder knows has changed.
pub(super) fn same_tracks(before: &[Track], after: &[Track]) -> bool {
    let format = |track: &Track| (track.time_base, track.parameters.clone());
    before.iter().map(format).eq(after.iter().map(format))
}

/// A failure with what to do next. Where there was no room, there may be some the next time.
pub(super) fn explained(error: &MuxError) -> ItemError {
    match error {
        MuxError::Spill { .. } => ItemError::Hindered(format!(
            "{error}; make room there, name another folder with the variable TMPDIR, or make shorter files"
        )),
        MuxError::Packet(_) | MuxError::Failed(_) => ItemError::Failed(error.to_string()),
    }
}

/// What file names may consist of: VSS takes no others.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.- ".contains(&byte))
}

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
