//! `clip`: packets and records in, a media file around each thing that was found out, the time before it included.
//! Nothing is decoded or encoded.
//!
//! The packets of a stream wait in a ring until the records are as far: with the record of a picture it is known for
//! all earlier ones whether something was found. So a clip depends on neither how fast the model is nor on how much
//! later its records come, as long as the ring holds what lies between (`memory`); beyond that its oldest packets go.
//! Where something is missing of the stream, or its format changes, a clip ends; what came before waits for its records
//! as ever, and what comes behind waits for its turn.
//!
//! A clip begins with the last keyframe that is `before` or more earlier than what was found, and ends `after` later.
//! What is found before a clip is over makes it longer, up to `most`: then the next keyframe begins another one, which
//! follows it without a hole. What is found so soon that the keyframe before it lies in a clip belongs to that.
//!
//! A packet is delivered when a sink has accepted the clip that it is in, and so is the record that asked for it;
//! whatever is in no clip is filtered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::choice::Choice;
use crate::config::{self, Field, FieldType, OneOrMany, Presence};
use crate::error::{FieldError, ItemError};
use crate::item::{EndReason, Gap, Item, Kind, Packet, Payload, StreamId, StreamInfo};
use crate::lease::{Ack, Verdict};
use crate::media::mux::{Container, MuxError};
use crate::operator::{
    BuildContext, Built, Execution, InlineOperator, Output, Produces, Registration, Role, SinkInput, StreamOperator,
};
use crate::time::MediaTime;

use super::media_file::{Arrived, Files, First, Maker, MediaFile, Telling, explained, name_template, same_tracks};

const DEFAULT_NAME: &str = "{stream}_clip_{index:04}.mp4";
const BEFORE: Duration = Duration::from_secs(5);
const AFTER: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_secs(120);
const MEMORY: u64 = 32 << 20;
/// A packet gets into its clip when the pictures are this much further: by then the sound beside it is there.
const LATE_SOUND: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(3600);

#[derive(Deserialize)]
struct Config {
    before: Option<config::Duration>,
    after: Option<config::Duration>,
    most: Option<config::Duration>,
    labels: Option<OneOrMany<String>>,
    above: Option<f64>,
    memory: Option<config::Size>,
    name: Option<String>,
}

struct Settings {
    before: Duration,
    after: Duration,
    most: Duration,
    choice: Choice,
    memory: u64,
    maker: Arc<Maker>,
}

struct Clip {
    settings: Arc<Settings>,
}

impl InlineOperator for Clip {
    fn start(&self, stream: &StreamId) -> Box<dyn StreamOperator> {
        Box::new(ClipStream {
            settings: self.settings.clone(),
            stream: stream.clone(),
            info: None,
            refusal: None,
            ring: VecDeque::new(),
            later: VecDeque::new(),
            ring_bytes: 0,
            written: 0,
            decoded: MediaTime::ZERO,
            shown: None,
            heard: None,
            passed: None,
            open: None,
            is_short: false,
            missed: 0,
            files: Files::new(self.settings.maker.clone(), stream.clone()),
        })
    }

    /// The ring, the clip that is open, and finished ones.
    fn stream_memory(&self) -> u64 {
        self.settings.memory + self.settings.maker.memory(1)
    }

    fn joins(&self) -> bool {
        true
    }

    fn refuses(&self, inputs: &[SinkInput]) -> Option<(String, String)> {
        let (packets, records): (Vec<&SinkInput>, Vec<&SinkInput>) =
            inputs.iter().partition(|input| input.kind == Kind::Packet);
        let hint = |text: &str| format!("write `inputs = [SOURCE, NODE]`: {text}");
        let [packets] = packets[..] else {
            let why = format!("packets come to it from {} nodes, and one it needs", packets.len());
            return Some((why, hint("the source whose packets it keeps, and the node that finds something in it")));
        };
        if records.is_empty() {
            let why = "nothing tells it when to make a clip".to_owned();
            return Some((why, hint("a node such as `detect` beside the source says when")));
        }
        if let Some(other) = records.iter().find(|input| input.sources != packets.sources) {
            let why =
                format!("the records of `{}` are of other sources than the packets of `{}`", other.node, packets.node);
            return Some((why, hint("a node that looks at the same source, and at that one alone")));
        }
        None
    }
}

/// A packet that is not old enough to be forgotten.
struct Kept {
    seq: u64,
    pts: MediaTime,
    time: SystemTime,
    fallback: bool,
    packet: Arc<Packet>,
    ack: Ack,
}

impl Kept {
    fn begins(&self) -> bool {
        self.packet.track == 0 && self.packet.is_key
    }
}

/// A clip that is being written.
struct Part {
    file: MediaFile,
    /// What is decoded later than this is not in it.
    until: MediaTime,
}

/// Packets of one format of which none is missing.
struct Stretch {
    info: Arc<StreamInfo>,
    ring: VecDeque<Kept>,
}

struct ClipStream {
    settings: Arc<Settings>,
    stream: StreamId,
    /// The format of what is in the ring.
    info: Option<Arc<StreamInfo>>,
    /// Why nothing of the stream can be kept, until it is told.
    refusal: Option<String>,
    /// The stretch that the records are at: in the order in which they came, of all tracks.
    ring: VecDeque<Kept>,
    /// What came behind that, and waits until the records are there. All but the last have packets.
    later: VecDeque<Stretch>,
    /// Of all packets that are kept.
    ring_bytes: u64,
    /// How many packets of the ring have had their turn in the open clip.
    written: usize,
    /// When the last picture of the ring is decoded.
    decoded: MediaTime,
    /// When the last picture of the ring is shown.
    shown: Option<MediaTime>,
    /// The picture that the records are at.
    heard: Option<MediaTime>,
    /// When the last picture of the stretches was shown that are left behind.
    passed: Option<MediaTime>,
    open: Option<Part>,
    /// It was told that the ring is too small.
    is_short: bool,
    /// How often something was found whose packets were not there.
    missed: u64,
    files: Files,
}

fn earlier(time: MediaTime, by: Duration) -> MediaTime {
    MediaTime::from_micros(time.as_micros().saturating_sub(micros(by)))
}

fn later(time: MediaTime, by: Duration) -> MediaTime {
    MediaTime::from_micros(time.as_micros().saturating_add(micros(by)))
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

impl StreamOperator for ClipStream {
    fn open(&mut self, info: &Arc<StreamInfo>, out: &mut Output) {
        let latest = self.later.back_mut().map(|stretch| &mut stretch.info).or(self.info.as_mut());
        if let Some(latest) = latest.filter(|latest| same_tracks(&latest.tracks, &info.tracks)) {
            *latest = info.clone();
            return;
        }
        self.break_off(info, out);
        self.refusal = match info.tracks.first() {
            None => Some("the stream has no tracks".to_owned()),
            Some(video) if !Container::Mp4.holds(video) => Some(format!(
                "MP4 cannot hold {} video; convert the input to H.264 or HEVC first, for example with \
                 `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`",
                video.codec
            )),
            Some(_) => None,
        };
    }

    fn item(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
        match &item.payload {
            Payload::Packet(packet) => self.packet(item, packet, out),
            Payload::Record(record) => {
                let finds = self.settings.choice.finds(record);
                self.record(item, finds, out);
                Ok(())
            }
            _ => Err(ItemError::Failed("it takes packets and records alone".to_owned())),
        }
    }

    fn gap(&mut self, _gap: &Gap, out: &mut Output) {
        let latest = self.later.back().map(|stretch| &stretch.info).or(self.info.as_ref());
        if let Some(info) = latest.cloned() {
            self.break_off(&info, out);
        }
    }

    fn end(&mut self, _reason: &EndReason, out: &mut Output) {
        // All records have come.
        self.leave(out);
        while !(self.ring.is_empty() && self.later.is_empty()) {
            self.leave(out);
        }
        (self.heard, self.passed) = (None, None);
    }
}

impl ClipStream {
    fn packet(&mut self, item: &Item, packet: &Arc<Packet>, out: &mut Output) -> Result<(), ItemError> {
        if let Some(refusal) = self.refusal.take() {
            return Err(ItemError::Failed(refusal));
        }
        let (info, ring) = match self.later.back_mut() {
            Some(Stretch { info, ring }) => (Some(&*info), ring),
            None => (self.info.as_ref(), &mut self.ring),
        };
        let tracks = info.map_or(&[][..], |info| &info.tracks);
        let is_kept = tracks.get(packet.track).is_some_and(|track| Container::Mp4.holds(track));
        // Nothing can be decoded before the first keyframe.
        let is_first = packet.track == 0 && packet.is_key;
        if !is_kept || ring.is_empty() && !is_first {
            out.settle(item, Verdict::Filtered);
            return Ok(());
        }
        self.files.hold_back(item);
        self.ring_bytes += packet.data.len() as u64;
        ring.push_back(Kept {
            seq: item.seq,
            pts: item.pts,
            time: item.time,
            fallback: item.fallback,
            packet: packet.clone(),
            ack: item.lease.ack.clone(),
        });
        if self.later.is_empty() {
            if packet.track == 0 {
                self.decoded = packet.dts;
                self.shown = self.shown.max(Some(item.pts));
            }
            self.write(self.limit(), out);
        }
        self.make_room(out);
        Ok(())
    }

    /// From here on comes another stretch, as `info` says. What is kept of those before waits for its records.
    fn break_off(&mut self, info: &Arc<StreamInfo>, out: &mut Output) {
        let info = info.clone();
        match self.later.back_mut() {
            Some(Stretch { info: latest, ring }) if ring.is_empty() => *latest = info,
            None if self.ring.is_empty() => {
                self.leave(out);
                self.info = Some(info);
            }
            _ => {
                self.later.push_back(Stretch { info, ring: VecDeque::new() });
                self.write(self.limit(), out);
                self.leave_heard(out);
            }
        }
    }

    /// Up to where the pictures of the open clip may be written: all sound beside those has come.
    fn limit(&self) -> MediaTime {
        if self.later.is_empty() { earlier(self.decoded, LATE_SOUND) } else { MediaTime::from_micros(i64::MAX) }
    }

    /// Leaves stretches behind of which no record can change anything: all have come, or all of it is in a clip.
    fn leave_heard(&mut self, out: &mut Output) {
        while !self.later.is_empty() {
            let is_in_clip = self.open.as_ref().is_some_and(|part| Some(part.until) >= self.shown);
            if self.heard < self.shown && !is_in_clip {
                return;
            }
            self.leave(out);
        }
    }

    /// Leaves the stretch behind that the records are at, and goes on with the next one, if there is one.
    fn leave(&mut self, out: &mut Output) {
        self.finish(out);
        self.forget(self.ring.len());
        self.passed = self.passed.max(self.shown.take());
        (self.written, self.decoded) = (0, MediaTime::ZERO);
        if let Some(Stretch { info, ring }) = self.later.pop_front() {
            let pictures = || ring.iter().filter(|kept| kept.packet.track == 0);
            self.decoded = pictures().next_back().map_or(MediaTime::ZERO, |kept| kept.packet.dts);
            self.shown = pictures().map(|kept| kept.pts).max();
            (self.info, self.ring) = (Some(info), ring);
        }
    }

    /// The record of a picture: all that comes from here on are of later ones.
    fn record(&mut self, item: &Item, finds: bool, out: &mut Output) {
        self.heard = self.heard.max(Some(item.pts));
        while !self.later.is_empty() && self.shown < Some(item.pts) {
            self.leave(out);
        }
        self.finish_if_over(out);
        // That of a stretch that was left is in its clip, if it is anywhere.
        if finds && self.passed < Some(item.pts) {
            self.found(item, out);
        } else {
            out.settle(item, Verdict::Filtered);
        }
        self.forget_old();
        self.leave_heard(out);
    }

    /// Something was found in the picture of this record.
    fn found(&mut self, item: &Item, out: &mut Output) {
        let until = later(item.pts, self.settings.after);
        if self.open.is_none() {
            let place = self.first_picture(earlier(item.pts, self.settings.before));
            // A clip that begins later than it would end has nothing of what was found.
            match place.filter(|place| self.ring[*place].pts <= until) {
                Some(place) => self.begin_with_sound(place, out),
                None => self.missed(item.pts),
            }
        }
        match &mut self.open {
            Some(part) => {
                part.until = part.until.max(until);
                part.file.also(item.lease.ack.clone());
                self.write(self.limit(), out);
            }
            None => out.settle(item, Verdict::Filtered),
        }
    }

    /// Tells that there is no clip of what was found at `time`: its packets are not there.
    fn missed(&mut self, time: MediaTime) {
        self.missed += 1;
        if self.missed.is_power_of_two() {
            let (node, stream, missed) = (&self.settings.maker.origin.node, &self.stream, self.missed);
            let seconds = time.as_micros() as f64 / 1e6;
            tracing::warn!(%node, %stream, missed, "`{node}` makes no clip of what was found {seconds:.1} s into stream \
                `{stream}`: none of its packets are kept");
        }
    }

    /// Begins a clip with the keyframe at `place` of the ring, and with the sound beside it.
    fn begin_with_sound(&mut self, place: usize, out: &mut Output) {
        if !self.begin(place, false, out) {
            return;
        }
        // Sound that came before the keyframe and is heard later.
        for before in 0..place {
            let packet = &self.ring[before].packet;
            if packet.track != 0 && self.open.as_ref().is_some_and(|part| packet.dts >= part.file.start) {
                self.append(before, out);
            }
        }
    }

    /// Where in the ring a clip begins that reaches back to `time`: at the last keyframe that is shown then or earlier, or
    /// else at the first there is.
    fn first_picture(&self, time: MediaTime) -> Option<usize> {
        let mut keys = self.ring.iter().enumerate().filter(|(_, kept)| kept.begins()).peekable();
        let first = keys.peek().map(|(place, _)| *place);
        keys.take_while(|(_, kept)| kept.pts <= time).last().map(|(place, _)| place).or(first)
    }

    /// Begins a clip with the keyframe at `place` of the ring; whether that was possible.
    fn begin(&mut self, place: usize, follows: bool, out: &mut Output) -> bool {
        let (Some(info), Some(first)) = (self.info.clone(), self.ring.get(place)) else { return false };
        let (start, seq, time) = (first.pts, first.seq, first.time);
        let first_picture = First { seq, time, start, follows };
        let index = self.files.next_index(&info.played, &first.ack);
        let file = match index.and_then(|index| self.files.begin(index, first_picture, &info)) {
            Ok(file) => file,
            Err(error) => {
                let ack = first.ack.clone();
                self.files.report(&error, seq, start, ack, out);
                return false;
            }
        };
        self.open = Some(Part { file, until: start });
        self.written = place;
        true
    }

    /// Writes what the ring has of the open clip that is decoded at `limit` or earlier.
    fn write(&mut self, limit: MediaTime, out: &mut Output) {
        while let (Some(part), Some(kept)) = (&self.open, self.ring.get(self.written)) {
            let (until, start) = (part.until, kept.pts);
            if kept.packet.dts > until.min(limit) {
                return;
            }
            if kept.begins() && later(part.file.start, self.settings.most) <= start {
                let place = self.written;
                self.complete(|packet| packet.dts < start, out);
                if !self.begin(place, true, out) {
                    return;
                }
                if let Some(part) = &mut self.open {
                    part.until = until;
                }
            }
            let packet = &self.ring[self.written].packet;
            let is_heard_before =
                packet.track != 0 && self.open.as_ref().is_some_and(|part| packet.dts < part.file.start);
            if !is_heard_before {
                self.append(self.written, out);
            }
            self.written += 1;
        }
    }

    /// Writes one packet of the ring into the open clip.
    fn append(&mut self, place: usize, out: &mut Output) {
        let (Some(part), Some(kept)) = (&mut self.open, self.ring.get(place)) else { return };
        let (pts, time, fallback) = (kept.pts, kept.time, kept.fallback);
        let arrived = Arrived { packet: &kept.packet, pts, time, fallback, ack: &kept.ack };
        if let Err(error) = part.file.append(&arrived, self.info.as_deref()) {
            let (seq, ack, why) = (kept.seq, kept.ack.clone(), explained(&error));
            if !matches!(error, MuxError::Packet(_))
                && let Some(part) = self.open.take()
            {
                part.file.settle(why.verdict());
            }
            self.files.report(&why, seq, pts, ack, out);
        }
    }

    /// Ends the open clip where a clip of what is found from here on would begin behind it.
    fn finish_if_over(&mut self, out: &mut Output) {
        let (Some(part), Some(heard)) = (&self.open, self.heard) else { return };
        let wanted = earlier(heard, self.settings.before);
        let next = self.first_picture(wanted).map_or(wanted, |place| self.ring[place].packet.dts);
        if next > part.until {
            self.finish(out);
        }
    }

    /// Ends the open clip with all that the ring has of it.
    fn finish(&mut self, out: &mut Output) {
        let Some(until) = self.open.as_ref().map(|part| part.until) else { return };
        self.write(until, out);
        self.complete(|packet| packet.dts <= until, out);
    }

    /// Ends the open clip with the sound that belongs to it, though it came later than the pictures beside it.
    fn complete(&mut self, belongs: impl Fn(&Packet) -> bool, out: &mut Output) {
        for place in self.written..self.ring.len() {
            let packet = &self.ring[place].packet;
            if packet.track != 0 && belongs(packet) {
                self.append(place, out);
            }
        }
        if let Some(part) = self.open.take() {
            let lineage = self.info.as_ref().and_then(|info| self.files.lineage(&info.played));
            self.files.finish(part.file, Telling { lineage, is_in_books: false, by_wall: false }, out);
        }
    }

    /// Forgets what lies before the last keyframe that a later record may ask for.
    fn forget_old(&mut self) {
        let Some(heard) = self.heard else { return };
        let wanted = earlier(heard, self.settings.before);
        let keys = self.ring.iter().enumerate().filter(|(_, kept)| kept.begins());
        let Some((place, first)) = keys.take_while(|(_, kept)| kept.pts <= wanted).last() else { return };
        let dts = first.packet.dts;
        let sound = self.ring.iter().position(|kept| kept.packet.track != 0 && kept.packet.dts >= dts);
        let mut count = sound.map_or(place, |sound| sound.min(place));
        if self.open.is_some() {
            count = count.min(self.written);
        }
        self.forget(count);
    }

    /// Forgets the oldest pictures up to a keyframe while the ring is too large.
    fn make_room(&mut self, out: &mut Output) {
        while self.ring_bytes > self.settings.memory {
            if self.ring.is_empty() && !self.later.is_empty() {
                self.leave(out);
            }
            let next = self.ring.iter().skip(1).position(Kept::begins).map(|place| place + 1);
            let count = next.unwrap_or(self.ring.len());
            if self.open.is_some() && self.written < count {
                // The records are so late that the clip is cut off at what is known to be in it.
                self.finish(out);
            }
            if !std::mem::replace(&mut self.is_short, true) {
                let (node, stream, memory) = (&self.settings.maker.origin.node, &self.stream, self.settings.memory);
                tracing::warn!(%node, %stream, "`{node}` forgets packets of stream `{stream}` before the records of \
                    their pictures come: they are more than its {memory} bytes; give it a larger `memory`, or make the \
                    records come sooner");
            }
            self.forget(count);
        }
    }

    fn forget(&mut self, count: usize) {
        for kept in self.ring.drain(..count) {
            self.ring_bytes -= kept.packet.data.len() as u64;
            // Where it is in a clip, that speaks for it.
            kept.ack.settle(Verdict::Filtered);
        }
        self.written = self.written.saturating_sub(count);
    }
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let mut mistakes = Vec::new();
    let mut length = |field: &str, given: Option<config::Duration>, default: Duration, least: Duration| {
        let length = given.map_or(default, |length| length.0);
        if length < least || length > LONGEST {
            let shown = humantime::format_duration(length);
            let error = FieldError::new(field, format!("`{field}` cannot be {shown}"));
            mistakes.push(error.hint(format!(
                "write a length of time from {} to 1h, such as \"{}\"",
                humantime::format_duration(least),
                humantime::format_duration(default)
            )));
        }
        length
    };
    let before = length("before", config.before, BEFORE, Duration::ZERO);
    let after = length("after", config.after, AFTER, Duration::ZERO);
    let most = length("most", config.most, MOST, Duration::from_secs(1));
    let memory = config.memory.map_or(MEMORY, |size| size.0);
    if memory == 0 {
        let error = FieldError::new("memory", "without memory there is nothing before what is found");
        mistakes.push(error.hint("write it like \"32MiB\""));
    }
    let name = name_template(config.name.as_deref().unwrap_or(DEFAULT_NAME), DEFAULT_NAME);
    let name = name.map_err(|mut errors| mistakes.append(&mut errors)).ok();
    let labels = config.labels.map(OneOrMany::into_vec).unwrap_or_default();
    let choice = Choice { labels, above: config.above, below: None };
    match name {
        Some(name) if mistakes.is_empty() => {
            let (origin, clock, progress) = (context.origin.clone(), context.clock.clone(), context.progress.clone());
            let maker = Arc::new(Maker { what: "clip", container: Container::Mp4, name, origin, clock, progress });
            let settings = Settings { before, after, most, choice, memory, maker };
            Ok(Built::Inline(Arc::new(Clip { settings: Arc::new(settings) })))
        }
        _ => Err(mistakes),
    }
}

pub static REGISTRATION: Registration = Registration {
    name: "clip",
    role: Role::Operator,
    summary: "Keeps the time around what a model finds as an MP4 file, without encoding anew.",
    execution: Execution::Inline,
    accepts: &[Kind::Packet, Kind::Record],
    produces: Produces::Kinds(&[Kind::Segment]),
    fields: &[
        Field {
            name: "before",
            value: FieldType::Duration,
            presence: Presence::Default("\"5s\""),
            summary: "How much before what was found a clip begins; at the last keyframe before that.",
        },
        Field {
            name: "after",
            value: FieldType::Duration,
            presence: Presence::Default("\"5s\""),
            summary: "How much longer than what was found last a clip goes on.",
        },
        Field {
            name: "most",
            value: FieldType::Duration,
            presence: Presence::Default("\"2m\""),
            summary: "A clip that would be longer goes on in another one from the next keyframe.",
        },
        Field {
            name: "labels",
            value: FieldType::OneOrList(&FieldType::String),
            presence: Presence::Optional,
            summary: "Make clips of these labels alone. Left out: of whatever is found.",
        },
        Field {
            name: "above",
            value: FieldType::Number { minimum: 0.0, maximum: 1.0 },
            presence: Presence::Optional,
            summary: "Make clips of what was found with this score or more.",
        },
        Field {
            name: "memory",
            value: FieldType::Size,
            presence: Presence::Default("\"32MiB\""),
            summary: "How much of each stream is kept until the records of its pictures come, and as the time before.",
        },
        Field {
            name: "name",
            value: FieldType::String,
            presence: Presence::Default("\"{stream}_clip_{index:04}.mp4\""),
            summary: "The name of each file, as in `chunk`.",
        },
    ],
    example: "[operators.clips]\ntype = \"clip\"\ninputs = [\"cameras\", \"people\"]\nlabels = [\"person\"]\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    use crate::item::{Lineage, ModelName, Origin, Played, Prediction, RecordBody, Segment};
    use crate::lease::{Account, Counts};
    use crate::media::demux::Read;
    use crate::progress::{Configuration, Progress, State};
    use crate::sinks::records::tests::context;
    use crate::testing::{item, made_segments, recording};
    use crate::time::TimeBase;

    fn built(fields: &str, progress: Option<Progress>) -> Arc<dyn InlineOperator> {
        let origin = Origin { graph: "door".into(), node: "clips".into() };
        let context = BuildContext { origin, progress, ..context(Path::new(".")) };
        match build(&context, fields.parse().unwrap()) {
            Ok(Built::Inline(operator)) => operator,
            Ok(_) => panic!("not an inline operator"),
            Err(errors) => panic!("{errors:?}"),
        }
    }

    /// A stream of twelve seconds at ten pictures a second, and what a clip makes of it. All times in tenths of a second.
    struct Recording {
        stream: Box<dyn StreamOperator>,
        out: Output,
        info: Arc<StreamInfo>,
        packets: Vec<Packet>,
    }

    impl Recording {
        /// With a keyframe every `group` pictures.
        fn new(operator: &dyn InlineOperator, group: u32, played: Played) -> Recording {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("clip.mp4");
            let pictures = "-f lavfi -i testsrc=size=64x48:rate=10:duration=12";
            let coded = format!("-c:v libx264 -bf 0 -sc_threshold 0 -pix_fmt yuv420p -g {group}");
            let mut demuxer = recording(&path, &format!("{pictures} {coded}"));
            let time_base = demuxer.tracks()[0].time_base;
            let tracks = demuxer.tracks().to_vec();
            let mut packets = Vec::new();
            while let Read::Packet(read) = demuxer.read(&|| false).unwrap() {
                let dts = MediaTime::new(read.dts().unwrap(), time_base);
                let duration = read.duration().map(|ticks| MediaTime::new(ticks, time_base));
                packets.push(Packet { track: 0, is_key: read.is_key(), dts, duration, data: read.data() });
            }
            assert_eq!(packets.len(), 120);
            let info = Arc::new(StreamInfo { tracks, time_base, duration: None, played });
            let stream = operator.start(&StreamId::sanitised("test"));
            let mut recording = Recording { stream, out: Output::default(), info, packets };
            recording.open();
            recording
        }

        fn open(&mut self) {
            self.stream.open(&self.info.clone(), &mut self.out);
        }

        fn gap(&mut self) {
            self.stream.gap(&Gap { reason: "the camera went away".into(), seq: None }, &mut self.out);
        }

        fn packet(&mut self, at: u64) {
            let packet = self.packets[usize::try_from(at).unwrap()].clone();
            // Without pictures that refer to later ones, both times are the same.
            let (item, _) = item(at, packet.dts, Payload::Packet(Arc::new(packet)));
            self.stream.item(&item, &mut self.out).unwrap();
            item.lease.ack.release();
        }

        fn record(&mut self, at: u64, finds: bool) -> Arc<Account> {
            let person = Prediction { label: "person".into(), index: 0, score: 0.9 };
            let predictions = if finds { vec![person] } else { Vec::new() };
            let model = ModelName { name: "people".into(), sha256: "00".into() };
            let body = RecordBody::Classification { model, predictions };
            let origin = Origin { graph: "door".into(), node: "people".into() };
            let record = origin.signal(&StreamId::sanitised("test"), Some(at), SystemTime::UNIX_EPOCH, body);
            let pts = MediaTime::from_micros(i64::try_from(at).unwrap() * 100_000);
            let (item, account) = item(at, pts, Payload::Record(Arc::new(record)));
            self.stream.item(&item, &mut self.out).unwrap();
            item.lease.ack.release();
            account
        }

        fn end(&mut self) -> Vec<Arc<Segment>> {
            self.stream.end(&EndReason::Eof, &mut self.out);
            made_segments(&mut self.out)
        }
    }

    /// When clips begin and end.
    fn times(clips: &[Arc<Segment>]) -> Vec<(i64, i64)> {
        let tenths = |time: MediaTime| time.as_micros() / 100_000;
        clips.iter().map(|clip| (tenths(clip.start), tenths(clip.end))).collect()
    }

    /// Clips of a stream in which something is missing in front of the pictures `gaps`, while each record comes so many
    /// pictures later than its picture: one for every fifth, with something in it where `finds` says so.
    fn clips(fields: &str, gaps: &[u64], late: u64, finds: impl Fn(u64) -> bool) -> Vec<(i64, i64)> {
        let mut recording = Recording::new(&*built(fields, None), 10, Played::Live);
        for step in 0..120 + late {
            if step < 120 {
                if gaps.contains(&step) {
                    recording.gap();
                    recording.open();
                }
                recording.packet(step);
            }
            if let Some(at) = step.checked_sub(late).filter(|at| at % 5 == 0) {
                recording.record(at, finds(at));
            }
        }
        times(&recording.end())
    }

    #[test]
    fn what_is_found_before_a_gap_is_kept_however_late_its_record_comes() {
        for late in [0, 1, 12, 33, 70, 120] {
            let around = "before = \"1s\"\nafter = \"1s\"";
            assert_eq!(clips(around, &[30, 80], late, |_| true), [(0, 30), (30, 80), (80, 120)], "{late} later");
            // Shortly before one, and long before one.
            assert_eq!(clips(around, &[30], late, |at| at == 25), [(10, 30)], "{late} later");
            assert_eq!(clips(around, &[60], late, |at| [25, 90].contains(&at)), [(10, 36), (80, 101)], "{late} later");
            // Two in turn, with next to nothing between them.
            assert_eq!(clips(around, &[30, 31, 40], late, |at| at < 50), [(0, 30), (30, 31), (40, 56)], "{late} later");
        }
    }

    #[test]
    fn another_format_ends_a_clip_and_the_same_one_does_not() {
        for late in [0, 70] {
            let operator = built("before = \"1s\"\nafter = \"1s\"", None);
            let mut recording = Recording::new(&*operator, 10, Played::Live);
            for step in 0..120 + late {
                match step {
                    // As a decoder does that finds another size, some pictures behind the keyframe.
                    43 | 84 => recording.open(),
                    80 => {
                        let mut info = (*recording.info).clone();
                        info.tracks[0].time_base = TimeBase::MICROSECONDS;
                        recording.info = Arc::new(info);
                        recording.open();
                    }
                    _ => {}
                }
                if step < 120 {
                    recording.packet(step);
                }
                if let Some(at) = step.checked_sub(late).filter(|at| at % 5 == 0) {
                    recording.record(at, true);
                }
            }
            assert_eq!(times(&recording.end()), [(0, 80), (80, 120)], "{late} later");
        }
    }

    #[test]
    fn no_clip_is_made_of_packets_that_come_long_after_what_was_found() {
        let operator = built("before = \"0s\"\nafter = \"1s\"\nmemory = \"8KiB\"", None);
        let mut recording = Recording::new(&*operator, 10, Played::Live);
        (0..120).for_each(|at| recording.packet(at));
        // The ring has the end alone.
        let missed = recording.record(20, true);
        assert_eq!(missed.snapshot(), Counts { read: 1, filtered: 1, ..Counts::default() });
        let kept = recording.record(115, true);
        assert_eq!(kept.snapshot().in_flight, 1);
        let made = recording.end();
        assert_eq!(times(&made), [(110, 120)]);
        assert_eq!(kept.snapshot().delivered, 1);
    }

    #[test]
    fn clips_do_not_overlap_where_keyframes_are_rare() {
        let operator = built("before = \"0s\"\nafter = \"0s\"", None);
        let mut recording = Recording::new(&*operator, 40, Played::Live);
        for at in 0..120 {
            recording.packet(at);
            if at % 5 == 0 {
                recording.record(at, at <= 35 || at == 60 || at == 75);
            }
        }
        assert_eq!(times(&recording.end()), [(0, 36), (40, 76)]);
    }

    #[test]
    fn numbers_go_on_over_a_restart_and_what_is_played_again_has_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin { graph: "door".into(), node: "clips".into() };
        let clips = |played: &dyn Fn(&Progress) -> Played| {
            let from = BTreeMap::from([(Arc::from("clips"), Arc::from("as it is"))]);
            let configuration = Configuration { from, ..Configuration::default() };
            let state = Arc::new(State::new(folder.path().to_owned()));
            let progress = Progress::new(state, origin.clone(), configuration);
            progress.open().unwrap();
            let operator = built("before = \"1s\"\nafter = \"1s\"", Some(progress.clone()));
            let mut recording = Recording::new(&*operator, 10, played(&progress));
            (0..120).for_each(|at| recording.packet(at));
            for at in (0..120).step_by(5) {
                recording.record(at, at == 30 || at == 80);
            }
            let made = recording.end();
            // As a sink does that stores them.
            for clip in &made {
                let output = progress.output(&StreamId::sanitised("test"), clip).expect("it is remembered");
                output.begin().unwrap();
                output.done().unwrap();
            }
            made
        };
        let indices = |made: &[Arc<Segment>]| made.iter().map(|clip| clip.index).collect::<Vec<_>>();
        assert_eq!(indices(&clips(&|_| Played::Live)), [0, 1]);
        let again = clips(&|_| Played::Live);
        assert_eq!((indices(&again), again[0].lineage.clone()), (vec![2, 3], Some(Lineage::Live)));
        let version = |progress: &Progress| progress.played("door.mp4".into(), "one".into());
        let (first, second) = (clips(&version), clips(&version));
        assert_eq!((indices(&first), indices(&second)), (vec![0, 1], vec![0, 1]));
        assert!(matches!(first[0].lineage, Some(Lineage::Version { .. })));
        assert_eq!(first[1].sha256, second[1].sha256);
    }
}
