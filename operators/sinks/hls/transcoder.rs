//! One stream that browsers cannot play, decoded and encoded anew: packets in, packets out.
//!
//! Each picture is encoded at once and keeps the number, the times and the claim of the packet that it was decoded from;
//! keyframes come where segments should be cut. Sound goes by untouched. What browsers can play goes by as it is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::error::SinkError;
use crate::item::{EndReason, Event, Gap, Item, Packet, Payload, StreamId, StreamInfo, Track, TrackFormat};
use crate::lease::{Ack, Lease, Verdict};
use crate::media::decode::{Decoder, Picture};
use crate::media::encode::Encoder;
use crate::media::parameters::Parameters;
use crate::time::{MediaTime, TimeBase};

/// Packets that the decoder has not answered with a picture. Codecs reorder sixteen at most: what is further behind is none.
const MOST_PENDING: usize = 64;
/// Packets of sound that wait for the first picture.
const MOST_WAITING: usize = 512;
/// What of pictures browsers decode.
const PLAYED: [&str; 3] = ["h264", "vp9", "av1"];

/// Whether browsers play a track of pictures as it is.
pub fn plays(track: &Track) -> bool {
    let is_usual = track.parameters.as_ref().is_none_or(Parameters::is_usual);
    PLAYED.contains(&&*track.codec) && (track.codec != "h264" || is_usual)
}

/// What comes out.
#[derive(Debug)]
pub enum Step {
    Event(Event),
    /// Something went wrong; what comes after that is tried all the same.
    Failed(SinkError),
}

/// How streams are encoded.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Microseconds from keyframe to keyframe.
    pub length: i64,
    /// Threads that encode, and as many that decode; with one both is done on the caller's.
    pub threads: usize,
}

/// One stream.
pub struct Transcoder {
    rules: Rules,
    stream: StreamId,
    mode: Mode,
    out: Vec<Step>,
    /// Pictures that were encoded since they were asked for.
    encoded: u64,
}

enum Mode {
    /// What browsers can play.
    Pass,
    Encode(Box<Recoder>),
    /// What nobody can decode.
    Refuse,
}

/// What is left of an item while its picture is in decoder or encoder. Its credit is back: what is inside is bounded by
/// the codecs.
struct Shell {
    seq: u64,
    pts: MediaTime,
    time: SystemTime,
    fallback: bool,
    duration: Option<MediaTime>,
    ack: Ack,
}

impl Shell {
    fn of(item: Item, packet: &Packet) -> Shell {
        let Item { seq, pts, time, fallback, lease, .. } = item;
        Shell { seq, pts, time, fallback, duration: packet.duration, ack: lease.ack }
    }
}

struct Recoder {
    info: Arc<StreamInfo>,
    parameters: Parameters,
    base: TimeBase,
    decoder: Decoder,
    encoder: Option<Encoder>,
    /// By the ordinal that went into the decoder.
    pending: BTreeMap<i64, Shell>,
    next_ordinal: i64,
    /// In the encoder, in order.
    under_way: VecDeque<Shell>,
    /// Sound that came before the first picture was encoded.
    waiting: VecDeque<Item>,
    /// Whether a keyframe came: before, nothing can be decoded.
    has_begun: bool,
    /// When the latest keyframe is shown, in microseconds; `None`: the next picture is one.
    key: Option<i64>,
    /// Ticks at which the latest picture is shown.
    latest: i64,
}

impl Transcoder {
    pub fn new(stream: StreamId, rules: Rules) -> Transcoder {
        Transcoder { rules, stream, mode: Mode::Pass, out: Vec::new(), encoded: 0 }
    }

    /// Takes what comes next of the stream. The claim on an item goes on with what comes out, or is settled here.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Open { stream, info } => self.open(stream, info),
            Event::Item(item) => self.item(item),
            Event::Gap { stream, gap } => self.gap(stream, gap),
            Event::End { stream, reason } => self.end(stream, reason),
        }
    }

    /// What came out since this was asked, and how many pictures were encoded for it.
    pub fn drain(&mut self) -> (Vec<Step>, u64) {
        (std::mem::take(&mut self.out), std::mem::take(&mut self.encoded))
    }

    fn open(&mut self, stream: StreamId, info: Arc<StreamInfo>) {
        self.finish();
        let Some(track) = info.tracks.first().filter(|track| !plays(track)) else {
            self.mode = Mode::Pass;
            self.out.push(Step::Event(Event::Open { stream, info }));
            return;
        };
        let decoder = match &track.parameters {
            Some(parameters) => Decoder::of_track(parameters, track.time_base, self.rules.threads)
                .map(|decoder| (decoder, parameters.clone()))
                .map_err(|error| error.to_string()),
            None => Err("nothing is known of how it is coded".to_owned()),
        };
        self.mode = match decoder {
            Ok((decoder, parameters)) => Mode::Encode(Box::new(Recoder {
                base: track.time_base,
                info,
                parameters,
                decoder,
                encoder: None,
                pending: BTreeMap::new(),
                next_ordinal: 0,
                under_way: VecDeque::new(),
                waiting: VecDeque::new(),
                has_begun: false,
                key: None,
                latest: i64::MIN,
            })),
            Err(why) => {
                let message = format!("its {} video cannot be decoded: {why}", track.codec);
                self.fail(&message);
                Mode::Refuse
            }
        };
    }

    fn item(&mut self, item: Item) {
        let Payload::Packet(packet) = &item.payload else {
            item.lease.ack.settle(Verdict::Rejected);
            return;
        };
        let packet = packet.clone();
        match &mut self.mode {
            Mode::Pass => self.out.push(Step::Event(Event::Item(item))),
            Mode::Refuse => item.lease.ack.settle(Verdict::Rejected),
            Mode::Encode(recoder) if packet.track != 0 => {
                if recoder.encoder.is_some() {
                    self.out.push(Step::Event(Event::Item(item)));
                    return;
                }
                // Without its credit: a source that waits for the room would never bring the picture.
                let Item { stream, seq, pts, time, fallback, payload, lease } = item;
                let lease = Lease { credit: None, ack: lease.ack };
                recoder.waiting.push_back(Item { stream, seq, pts, time, fallback, payload, lease });
                if recoder.waiting.len() > MOST_WAITING
                    && let Some(oldest) = recoder.waiting.pop_front()
                {
                    oldest.lease.ack.settle(Verdict::Filtered);
                }
            }
            Mode::Encode(recoder) => {
                if !recoder.has_begun && !packet.is_key {
                    item.lease.ack.settle(Verdict::Filtered);
                    return;
                }
                recoder.has_begun = true;
                let ordinal = recoder.next_ordinal;
                recoder.next_ordinal += 1;
                let pts = item.pts;
                if let Err(error) = recoder.decoder.send_bytes(&packet.data, packet.is_key, ordinal) {
                    item.lease.ack.settle(Verdict::Rejected);
                    self.fail(&format!("the packet at {pts} cannot be decoded: {error}"));
                } else {
                    recoder.pending.insert(ordinal, Shell::of(item, &packet));
                    while recoder.pending.len() > MOST_PENDING
                        && let Some((_, shell)) = recoder.pending.pop_first()
                    {
                        shell.ack.settle(Verdict::Filtered);
                    }
                }
                self.encode();
            }
        }
    }

    fn gap(&mut self, stream: StreamId, gap: Gap) {
        self.empty();
        if let Mode::Encode(recoder) = &mut self.mode {
            recoder.decoder.flush();
            (recoder.has_begun, recoder.key) = (false, None);
        }
        self.out.push(Step::Event(Event::Gap { stream, gap }));
    }

    fn end(&mut self, stream: StreamId, reason: EndReason) {
        self.finish();
        self.out.push(Step::Event(Event::End { stream, reason }));
    }

    /// The format is over: everything comes out.
    fn finish(&mut self) {
        self.empty();
        if let Mode::Encode(recoder) = std::mem::replace(&mut self.mode, Mode::Pass) {
            recoder.waiting.into_iter().for_each(|item| item.lease.ack.settle(Verdict::Filtered));
        }
    }

    /// Gets the pictures out of decoder and encoder.
    fn empty(&mut self) {
        let Mode::Encode(recoder) = &mut self.mode else { return };
        if let Err(error) = recoder.decoder.send_end() {
            self.fail(&format!("the last pictures cannot be decoded: {error}"));
        }
        self.encode();
        self.empty_encoder();
        if let Mode::Encode(recoder) = &mut self.mode {
            std::mem::take(&mut recoder.pending).into_values().for_each(|shell| shell.ack.settle(Verdict::Filtered));
        }
    }

    /// Encodes every picture that the decoder has ready.
    fn encode(&mut self) {
        while let Mode::Encode(recoder) = &mut self.mode {
            match recoder.decoder.receive() {
                Ok(Some(picture)) => self.picture(picture),
                Ok(None) => return,
                Err(error) => {
                    self.fail(&format!("a picture cannot be decoded: {error}"));
                    return;
                }
            }
        }
    }

    fn picture(&mut self, picture: Picture) {
        let Mode::Encode(recoder) = &mut self.mode else { return };
        let Some(ordinal) = picture.ordinal() else { return };
        let Some(shell) = recoder.pending.remove(&ordinal) else { return };
        if recoder.encoder.as_ref().is_none_or(|encoder| !encoder.fits(&picture)) && !self.open_encoder(&picture) {
            shell.ack.settle(Verdict::Rejected);
            return;
        }
        let Mode::Encode(recoder) = &mut self.mode else { return };
        let ticks = shell.pts.ticks_in(recoder.base).max(recoder.latest.saturating_add(1));
        recoder.latest = ticks;
        let pts = MediaTime::new(ticks, recoder.base);
        let is_key = recoder.is_due(pts, shell.duration, self.rules.length);
        if is_key {
            recoder.key = Some(pts.as_micros());
        }
        let sent = match &mut recoder.encoder {
            Some(encoder) => encoder.send(picture, ticks, is_key).map_err(|error| error.to_string()),
            None => Err("there is no encoder".to_owned()),
        };
        match sent {
            Ok(()) => recoder.under_way.push_back(Shell { pts, ..shell }),
            Err(why) => {
                shell.ack.settle(Verdict::Rejected);
                self.fail(&format!("the picture at {pts} cannot be encoded: {why}"));
            }
        }
        self.collect();
    }

    /// Opens an encoder for this picture and those behind it; whether there is one.
    fn open_encoder(&mut self, picture: &Picture) -> bool {
        self.empty_encoder();
        let Mode::Encode(recoder) = &mut self.mode else { return false };
        let encoder = match Encoder::open(picture, recoder.base, &recoder.parameters, self.rules.threads) {
            Ok(encoder) => encoder,
            Err(error) => {
                let (width, height) = picture.size();
                self.fail(&format!("pictures of {width}x{height} pixels cannot be encoded: {error}"));
                return false;
            }
        };
        let (width, height) = encoder.size();
        let mut info = StreamInfo::clone(&recoder.info);
        if let Some(track) = info.tracks.first_mut() {
            track.codec = "h264".to_owned();
            track.parameters = Some(encoder.parameters(&recoder.parameters));
            if let TrackFormat::Video { width: of_track, height: height_of_track, has_b_frames, .. } = &mut track.format
            {
                (*of_track, *height_of_track, *has_b_frames) = (width, height, false);
            }
        }
        (recoder.encoder, recoder.key) = (Some(encoder), None);
        self.out.push(Step::Event(Event::Open { stream: self.stream.clone(), info: Arc::new(info) }));
        let waiting = std::mem::take(&mut recoder.waiting);
        self.out.extend(waiting.into_iter().map(|item| Step::Event(Event::Item(item))));
        true
    }

    /// Gets the last pictures out of the encoder. It takes no others afterwards, so where some were left it is let go of.
    fn empty_encoder(&mut self) {
        let Mode::Encode(recoder) = &mut self.mode else { return };
        if recoder.under_way.is_empty() {
            return;
        }
        let ended = recoder.encoder.as_mut().map(Encoder::send_end);
        if let Some(Err(error)) = ended {
            self.fail(&format!("the last pictures cannot be encoded: {error}"));
        }
        self.collect();
        if let Mode::Encode(recoder) = &mut self.mode {
            recoder.encoder = None;
            recoder.under_way.drain(..).for_each(|shell| shell.ack.settle(Verdict::Rejected));
        }
    }

    /// Passes on what the encoder has ready.
    fn collect(&mut self) {
        let Mode::Encode(recoder) = &mut self.mode else { return };
        let Some(encoder) = &mut recoder.encoder else { return };
        let failure = loop {
            match encoder.receive() {
                Ok(Some(encoded)) => {
                    let Some(shell) = recoder.under_way.pop_front() else { continue };
                    self.out.push(Step::Event(Event::Item(item(&self.stream, shell, encoded.data, encoded.is_key))));
                    self.encoded += 1;
                }
                Ok(None) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        if let Some(why) = failure {
            self.fail(&format!("a picture cannot be encoded: {why}"));
        }
    }

    fn fail(&mut self, what: &str) {
        let message = format!("stream `{}`: {what}", self.stream);
        self.out.push(Step::Failed(SinkError { message, hint: Some("look at the input with `ffprobe`".to_owned()) }));
    }
}

impl Recoder {
    /// Whether a keyframe is due with the picture that is shown at `pts`: it is the one nearest to where the segment
    /// should end. Not much earlier, or the segment would not end there.
    fn is_due(&self, pts: MediaTime, duration: Option<MediaTime>, length: i64) -> bool {
        let half = duration.map_or(0, MediaTime::as_micros) / 2;
        let early = half.clamp(0, length / 50);
        self.key.is_none_or(|key| pts.as_micros().saturating_sub(key) >= length - early)
    }
}

/// An encoded picture in the place of the packet that it was decoded from.
fn item(stream: &StreamId, shell: Shell, data: Bytes, is_key: bool) -> Item {
    let Shell { seq, pts, time, fallback, duration, ack } = shell;
    // Nothing is reordered: pictures are decoded in the order in which they are shown.
    let packet = Packet { track: 0, is_key, dts: pts, duration, data };
    let lease = Lease { credit: None, ack };
    Item { stream: stream.clone(), seq, pts, time, fallback, payload: Payload::Packet(Arc::new(packet)), lease }
}
