//! `clip`: packets and records in, a media file around each thing that was found out, the time before it included.
//! Nothing is decoded or encoded.
//!
//! The packets of a stream wait in a ring until the records are as far: with the record of a picture it is known for
//! all earlier ones whether something was found. So a clip depends on neither how fast the model is nor on how much
//! later its records come, as long as the ring holds what lies between (`memory`); beyond that its oldest packets go.
//!
//! A clip begins with the last keyframe that is `before` or more earlier than what was found, and ends `after` later.
//! What is found before a clip is over makes it longer, up to `most`: then the next keyframe begins another one, which
//! follows it without a hole. What is found so soon that the time before it reaches back into a clip belongs to that.
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

use super::media_file::{Arrived, Files, First, Maker, MediaFile, Telling, name_template};

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
            ring_bytes: 0,
            written: 0,
            decoded: MediaTime::ZERO,
            heard: None,
            open: None,
            next_index: 0,
            is_short: false,
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

struct ClipStream {
    settings: Arc<Settings>,
    stream: StreamId,
    info: Option<Arc<StreamInfo>>,
    /// Why nothing of the stream can be kept, until it is told.
    refusal: Option<String>,
    /// In the order in which they came, of all tracks.
    ring: VecDeque<Kept>,
    ring_bytes: u64,
    /// How many packets of the ring have had their turn in the open clip.
    written: usize,
    /// When the last picture is decoded.
    decoded: MediaTime,
    /// The picture that the records are at.
    heard: Option<MediaTime>,
    open: Option<Part>,
    next_index: u64,
    /// It was told that the ring is too small.
    is_short: bool,
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
        self.forget_all(out);
        self.refusal = match info.tracks.first() {
            None => Some("the stream has no tracks".to_owned()),
            Some(video) if !Container::Mp4.holds(video) => Some(format!(
                "MP4 cannot hold {} video; convert the input to H.264 or HEVC first, for example with \
                 `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`",
                video.codec
            )),
            Some(_) => None,
        };
        self.info = Some(info.clone());
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
        self.forget_all(out);
    }

    fn end(&mut self, _reason: &EndReason, out: &mut Output) {
        self.forget_all(out);
    }
}

impl ClipStream {
    fn packet(&mut self, item: &Item, packet: &Arc<Packet>, out: &mut Output) -> Result<(), ItemError> {
        if let Some(refusal) = self.refusal.take() {
            return Err(ItemError::Failed(refusal));
        }
        let tracks = self.info.as_deref().map_or(&[][..], |info| &info.tracks);
        let is_kept = tracks.get(packet.track).is_some_and(|track| Container::Mp4.holds(track));
        // Nothing can be decoded before the first keyframe.
        let is_first = packet.track == 0 && packet.is_key;
        if !is_kept || self.ring.is_empty() && !is_first {
            out.settle(item, Verdict::Filtered);
            return Ok(());
        }
        self.files.hold_back(item);
        if packet.track == 0 {
            self.decoded = packet.dts;
        }
        self.ring_bytes += packet.data.len() as u64;
        self.ring.push_back(Kept {
            seq: item.seq,
            pts: item.pts,
            time: item.time,
            fallback: item.fallback,
            packet: packet.clone(),
            ack: item.lease.ack.clone(),
        });
        self.write(earlier(self.decoded, LATE_SOUND), out);
        self.make_room(out);
        Ok(())
    }

    /// The record of a picture: all that comes from here on are of later ones.
    fn record(&mut self, item: &Item, finds: bool, out: &mut Output) {
        self.heard = self.heard.max(Some(item.pts));
        self.finish_if_over(out);
        if !finds {
            out.settle(item, Verdict::Filtered);
            self.forget_old();
            return;
        }
        let until = later(item.pts, self.settings.after);
        if self.open.is_none() {
            self.begin_at(earlier(item.pts, self.settings.before), out);
        }
        match &mut self.open {
            Some(part) => {
                part.until = part.until.max(until);
                part.file.also(item.lease.ack.clone());
                self.write(earlier(self.decoded, LATE_SOUND), out);
            }
            None => out.settle(item, Verdict::Filtered),
        }
        self.forget_old();
    }

    /// Begins a clip with the last keyframe that is shown at `time` or earlier, or else with the first there is.
    fn begin_at(&mut self, time: MediaTime, out: &mut Output) {
        let keys = self.ring.iter().enumerate().filter(|(_, kept)| kept.begins());
        let place = keys.clone().take_while(|(_, kept)| kept.pts <= time).last().or_else(|| keys.clone().next());
        let Some((place, _)) = place else { return };
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

    /// Begins a clip with the keyframe at `place` of the ring; whether that was possible.
    fn begin(&mut self, place: usize, follows: bool, out: &mut Output) -> bool {
        let (Some(info), Some(first)) = (self.info.clone(), self.ring.get(place)) else { return false };
        let (start, seq, time) = (first.pts, first.seq, first.time);
        let file = match self.files.begin(self.next_index, First { seq, time, start, follows }, &info) {
            Ok(file) => file,
            Err(error) => {
                let ack = first.ack.clone();
                self.files.report(&error, seq, start, ack, out);
                return false;
            }
        };
        self.open = Some(Part { file, until: start });
        self.next_index += 1;
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
            let (seq, ack) = (kept.seq, kept.ack.clone());
            if !matches!(error, MuxError::Packet(_))
                && let Some(part) = self.open.take()
            {
                part.file.reject();
            }
            self.files.report(&error, seq, pts, ack, out);
        }
    }

    /// Ends the open clip where nothing that is found from here on can make it longer.
    fn finish_if_over(&mut self, out: &mut Output) {
        let (Some(part), Some(heard)) = (&self.open, self.heard) else { return };
        if earlier(heard, self.settings.before) > part.until {
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
            // Which pictures are in it depends on the model too: it is no output of the input's version alone.
            let telling = Telling { lineage: None, is_in_books: false, by_wall: false };
            self.files.finish(part.file, telling, out);
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

    /// The stream ends here, or something is missing of it.
    fn forget_all(&mut self, out: &mut Output) {
        self.finish(out);
        self.forget(self.ring.len());
        self.heard = None;
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
            let (origin, clock) = (context.origin.clone(), context.clock.clone());
            let maker = Arc::new(Maker { what: "clip", container: Container::Mp4, name, origin, clock });
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
