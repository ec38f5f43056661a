//! `hls`: packets as HTTP Live Streaming, which browsers and players play. Nothing is decoded or encoded, unless it is asked
//! for.
//!
//! A stream is cut into segments at keyframes ([`segmenter`]), each is made into a piece of fragmented MP4
//! ([`crate::media::fragment`]), and published with a playlist that lists it ([`playlist`], [`store`]); the control plane
//! serves both. What is missing of a stream, and another format, is a discontinuity and never the end. With `low_latency`
//! segments are published in parts, as they come ([`parts`]).
//!
//! A packet is delivered when its segment, or its part, can be fetched. Until then the sink holds it, up to [`MOST_HELD`] a stream, and
//! the source has its credit back.
//!
//! With `transcode` what browsers cannot play is encoded anew in front of all that ([`encoders`], [`transcoder`]).

pub mod cutter;
pub mod early_sound;
pub mod encoders;
pub mod mirror;
pub mod owned_task;
pub mod parts;
pub mod playlist;
pub mod segmenter;
pub mod store;
pub mod transcoder;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::clock::Clock;
use crate::config::{self, Field, FieldType, Presence};
use crate::encoding::Encoding;
use crate::error::{FieldError, SinkError, StartError};
use crate::item::{EndReason, Event, Item, Kind, Origin, Payload, StreamId, StreamInfo};
use crate::lease::{Ack, Verdict};
use crate::media::encode;
use crate::media::fragment::{Form, Fragmenter, is_common};
use crate::operator::{
    BuildContext, Built, Execution, Produces, Registration, Resource, Role, Sink, SinkInput, SinkWriter, Trouble,
};
use crate::storage::retry::{DEFAULT_RETRY_FOR, RETRY_FOR};
use crate::storage::s3::{ANONYMOUS, Access, ENDPOINT, PATH_STYLE, PROFILE, REGION, TIMEOUT};
use crate::tunnel::{CLOUDFLARED, Tunnel};
use cutter::Cutter;
use encoders::{Encoders, EncodingWriter};
use mirror::{Copies, Mirror, Pace, PublishedPart};
use playlist::Window;
use segmenter::{Part, Rules};
use store::{Lost, NewSegment, Playlists, Promise, Refused, Shelf, Terms, Writing};

/// Bytes of packets of one stream that wait for their segment to be complete.
const MOST_HELD: u64 = 16 << 20;
const SEGMENT: Duration = Duration::from_secs(4);
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
const PART: Duration = Duration::from_millis(500);
const SHORTEST_PART: Duration = Duration::from_millis(100);
const WINDOW: usize = 6;
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);
const MEMORY: u64 = 32 << 20;
const DISK: u64 = 8 << 30;
/// What went wrong and was not told yet; more of it is not kept.
const MOST_UNTOLD: usize = 64;
/// How long one batch may take, where nothing is waited for but this machine.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Config {
    segment: Option<config::Duration>,
    #[serde(default)]
    low_latency: bool,
    part: Option<config::Duration>,
    format: Option<FormConfig>,
    window: Option<WindowConfig>,
    kind: Option<playlist::Kind>,
    memory: Option<config::Size>,
    disk: Option<config::Size>,
    #[serde(default)]
    transcode: bool,
    encoder: Option<EncoderConfig>,
    /// The program; there is one.
    tunnel: Option<String>,
    storage: Option<String>,
    retry_for: Option<config::Duration>,
    #[serde(flatten)]
    access: Access,
}

#[derive(Deserialize)]
struct EncoderConfig {
    threads: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WindowConfig {
    Segments(usize),
    Time(config::Duration),
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum FormConfig {
    Fmp4,
    MpegTs,
}

#[derive(Clone)]
struct Settings {
    segment: Duration,
    /// How long the parts of segments are, where latency is to be low.
    part: Option<Duration>,
    form: Form,
    window: Window,
    /// `None`: by whether the source is live.
    kind: Option<playlist::Kind>,
    memory: u64,
    disk: u64,
    /// Threads for each stream that is encoded; `None`: none is.
    encoder_threads: Option<usize>,
    /// Where copies go.
    copies: Option<Copies>,
    origin: Origin,
    clock: Arc<dyn Clock>,
    playlists: Arc<Playlists>,
}

struct Hls {
    settings: Settings,
    /// As long as something is published, where it is asked for.
    tunnel: Option<OnceLock<Arc<Tunnel>>>,
    /// What is published stays as long as the graph has its sinks.
    shelf: Arc<Shelf>,
}

impl Sink for Hls {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        self.start_with(&[])
    }

    fn start_with(&self, inputs: &[SinkInput]) -> Result<Box<dyn SinkWriter>, StartError> {
        let settings = &self.settings;
        let is_live = inputs.iter().any(|input| input.is_live);
        let by_source = if is_live || settings.part.is_some() { playlist::Kind::Live } else { playlist::Kind::Vod };
        let terms = Terms {
            kind: settings.kind.unwrap_or(by_source),
            form: settings.form,
            length: i64::try_from(settings.segment.as_micros()).unwrap_or(i64::MAX),
            part: settings.part.map(|part| i64::try_from(part.as_micros()).unwrap_or(i64::MAX)),
            window: settings.window,
            dated: is_live,
            memory: settings.memory,
            disk: settings.disk,
        };
        let tunnel = match &self.tunnel {
            None => None,
            Some(kept) => {
                let tunnel = settings.playlists.tunnels.open()?;
                Some(kept.get_or_init(|| tunnel).clone())
            }
        };
        let writer = Box::new(HlsWriter {
            mirror: settings
                .copies
                .as_ref()
                .map(|copies| copies.start(Pace { is_live, kind: terms.kind }))
                .transpose()?,
            tunnel,
            settings: settings.clone(),
            terms,
            shelf: self.shelf.clone(),
            streams: BTreeMap::new(),
            failures: VecDeque::new(),
        });
        let Some(threads) = settings.encoder_threads else { return Ok(writer) };
        encode::is_there().map_err(|error| {
            let hint = "install Debian's `libavcodec59` or another build of FFmpeg's libraries with libx264, or remove \
                        `transcode`";
            StartError::new(format!("nothing can be encoded: {error}")).hint(hint)
        })?;
        let rules = transcoder::Rules { length: terms.length, threads };
        let encoders = Encoders { rules, encoding: Encoding::new(threads), clock: settings.clock.clone() };
        Ok(Box::new(EncodingWriter::new(writer, encoders)))
    }

    fn depends_on_inputs(&self) -> bool {
        true
    }

    fn resources(&self) -> Vec<Resource> {
        self.settings.copies.iter().map(Copies::resource).collect()
    }

    fn encoder_threads(&self) -> Option<usize> {
        self.settings.encoder_threads
    }

    /// Its segments, packets that wait, the segment that is made of them, the parts of which that is put together, and the
    /// segment that is being stored elsewhere.
    fn stream_memory(&self) -> u64 {
        let copies = 2 + u64::from(self.settings.part.is_some()) + u64::from(self.settings.copies.is_some());
        self.settings.memory.saturating_add(copies * MOST_HELD)
    }
}

/// One stream, as it is written.
struct Stream {
    info: Arc<StreamInfo>,
    cutter: Cutter,
    fragmenter: Option<Fragmenter>,
    /// `None` where another sink publishes it: what comes of it is rejected.
    published: Option<Writing>,
    /// Whether nothing can be published of it as it is now: what comes is rejected.
    is_refused: bool,
    forced: u64,
}

struct HlsWriter {
    mirror: Option<Mirror>,
    tunnel: Option<Arc<Tunnel>>,
    settings: Settings,
    terms: Terms,
    shelf: Arc<Shelf>,
    streams: BTreeMap<StreamId, Stream>,
    /// What went wrong, until it is told.
    failures: VecDeque<SinkError>,
}

#[async_trait::async_trait]
impl SinkWriter for HlsWriter {
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        for event in batch {
            match event {
                Event::Open { stream, info } => self.open(stream, info).await,
                Event::Item(item) => self.take(item).await,
                Event::Gap { stream, .. } => self.break_off(stream).await,
                Event::End { stream, reason } => self.end(stream, reason).await,
            }
        }
        // What went wrong is told by `work`: the rest of the batch is not lost with it.
        Ok(())
    }

    fn settles(&self) -> bool {
        true
    }

    async fn work(&mut self) -> Result<(), SinkError> {
        match self.failures.pop_front() {
            Some(failure) => Err(failure),
            None => match &mut self.mirror {
                Some(mirror) => Err(mirror.told().await),
                None => std::future::pending().await,
            },
        }
    }

    /// Storing copies has an end of its own.
    fn deadline(&self) -> Option<Duration> {
        Some(WRITE_DEADLINE).filter(|_| self.mirror.is_none())
    }

    fn trouble(&self) -> Option<Trouble> {
        let of_copies = self.settings.copies.as_ref().map(|copies| copies.retry.trouble.clone());
        let of_tunnel = self.tunnel.as_ref().map(|tunnel| tunnel.trouble());
        Trouble::of_all(of_copies.into_iter().chain(of_tunnel))
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        for stream in self.streams.keys().cloned().collect::<Vec<_>>() {
            self.end(&stream, &EndReason::Stopped).await;
        }
        let of_copies = match &mut self.mirror {
            Some(mirror) => mirror.finish().await,
            None => None,
        };
        joined(self.failures.drain(..).chain(of_copies)).map_or(Ok(()), Err)
    }
}

impl HlsWriter {
    async fn open(&mut self, id: &StreamId, info: &Arc<StreamInfo>) {
        let is_same = |stream: &Stream| {
            let formats = |info: &StreamInfo| -> Vec<_> {
                info.tracks.iter().map(|track| (track.time_base, track.parameters.clone())).collect()
            };
            formats(&stream.info) == formats(info)
        };
        if self.streams.get(id).is_some_and(is_same) {
            return;
        }
        self.break_off(id).await;
        let rules = Rules {
            length: self.terms.length,
            promises: self.terms.kind != playlist::Kind::Vod,
            most_bytes: MOST_HELD,
            form: self.terms.form,
        };
        let before = self.streams.remove(id);
        let (mut cutter, published) = match before {
            Some(before) => (before.cutter, before.published),
            None => {
                let now = self.settings.clock.now();
                let published = self.settings.playlists.publish(&self.shelf, id, &self.terms, now);
                let published = published.map_err(|other| {
                    self.fail(
                        id,
                        &format!("`{other}` publishes a stream of this name already, and both would be at one address"),
                        "keep one of the two sinks, or put one of them into a graph of its own",
                    );
                });
                let (published, promised) = published.ok().unzip();
                if let Some(promise) = promised.flatten() {
                    self.warn_of_promise(id, promise);
                }
                (Cutter::new(rules, &self.terms, promised.flatten()), published)
            }
        };
        cutter.open(info);
        let is_refused = !self.is_possible(id, info, published.as_ref());
        let fragmenter = match Fragmenter::new(self.terms.form, &info.tracks) {
            Ok(fragmenter) => Some(fragmenter),
            Err(error) => {
                self.fail(id, &error.to_string(), "look at the input with `ffprobe`");
                None
            }
        };
        let forced = cutter.forced();
        self.streams
            .insert(id.clone(), Stream { info: info.clone(), cutter, fragmenter, published, is_refused, forced });
    }

    /// What players of a stream know already may be less than what is asked for now.
    fn warn_of_promise(&self, id: &StreamId, promise: Promise) {
        let node = &self.settings.origin.node;
        if u64::try_from(self.terms.length).is_ok_and(|length| length > promise.target.saturating_mul(1_000_000)) {
            let (most, segment) = (promise.target, humantime::format_duration(self.settings.segment));
            tracing::warn!(
                %node, stream = %id, most,
                "`{node}` goes on to cut stream `{id}` into segments of at most {most} s: its playlist has promised that, and \
                 may not change it; `segment = \"{segment}\"` counts in full when the graph is taken away and loaded anew"
            );
        }
    }

    /// Whether anything of the stream can be published; says what cannot.
    fn is_possible(&mut self, id: &StreamId, info: &StreamInfo, published: Option<&Writing>) -> bool {
        let node = &self.settings.origin.node;
        let form = self.terms.form;
        let Some(video) = info.tracks.first().filter(|video| form.plays(video)) else {
            let codec = info.tracks.first().map_or("no", |video| &*video.codec);
            let message = format!("{} cannot hold {codec} video", form.name());
            let hint = if form == Form::Transport && info.tracks.first().is_some_and(|video| Form::Mp4.plays(video)) {
                "write `format = \"fmp4\"`, which can"
            } else {
                "write `transcode = true`, or convert the input to H.264 first, for example with \
                 `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`"
            };
            if let Some(published) = published {
                published.refuse(&message, hint);
            }
            // Of many errors of a sink the log has only some, and each such stream is worth its line.
            tracing::warn!(%node, stream = %id, hint, "`{node}` publishes nothing of stream `{id}`: {message}");
            self.fail(id, &message, hint);
            return false;
        };
        if !is_common(video) {
            let codec = &video.codec;
            tracing::warn!(%node, stream = %id, "`{node}` passes stream `{id}` on as {codec}, which browsers do not play; `transcode = true` encodes it anew");
        }
        for track in info.tracks.iter().skip(1).filter(|track| !form.plays(track)) {
            let (index, codec) = (track.index, &track.codec);
            tracing::warn!(%node, stream = %id, "`{node}` leaves track {index} of stream `{id}` out: players of HLS know no {codec} in {}", form.name());
        }
        true
    }

    async fn take(&mut self, item: &Item) {
        let Payload::Packet(packet) = &item.payload else {
            item.lease.ack.raise(Verdict::Rejected);
            return;
        };
        let is_taken = |stream: &&mut Stream| stream.published.is_some() && !stream.is_refused;
        let Some(stream) = self.streams.get_mut(&item.stream).filter(is_taken) else {
            item.lease.ack.raise(Verdict::Rejected);
            return;
        };
        let parts = stream.cutter.take(item, packet);
        let forced = stream.cutter.forced();
        if std::mem::replace(&mut stream.forced, forced) != forced && forced.is_power_of_two() {
            let (node, id) = (&self.settings.origin.node, &item.stream);
            tracing::warn!(
                %node, stream = %id, forced,
                "`{node}` cut stream `{id}` without a keyframe: the next one came later than the playlist promises, or \
                 {} of packets were there before it; let the camera send keyframes more often, or give `segment` the time \
                 between two of them", config::format_size(MOST_HELD / 4 * 3)
            );
        }
        self.publish_all(&item.stream, parts).await;
    }

    /// What comes next of a stream does not go on where it is.
    async fn break_off(&mut self, id: &StreamId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let parts = stream.cutter.gap();
        self.publish_all(id, parts).await;
        if let Some(published) = self.streams.get(id).and_then(|stream| stream.published.as_ref()) {
            published.break_off();
        }
    }

    async fn end(&mut self, id: &StreamId, reason: &EndReason) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let parts = stream.cutter.finish();
        self.publish_all(id, parts).await;
        let now = self.settings.clock.now();
        if let Some(published) = self.streams.remove(id).and_then(|stream| stream.published) {
            match reason {
                EndReason::Reload => published.abandon(now),
                EndReason::Eof | EndReason::Stopped | EndReason::Failed(_) => published.end(now),
            }
        }
        if let Some(mirror) = &mut self.mirror {
            mirror.end(id);
        }
    }

    async fn publish_all(&mut self, id: &StreamId, parts: Vec<Part>) {
        for part in parts {
            self.publish(id, part).await;
        }
    }

    /// Makes a segment of a part, and lists it.
    async fn publish(&mut self, id: &StreamId, part: Part) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let (Some(fragmenter), Some(published)) = (stream.fragmenter.take(), stream.published.clone()) else {
            part.acks.into_iter().for_each(|ack| ack.settle(Verdict::Rejected));
            return;
        };
        let is_segment = part.part_target.is_none();
        let lost = Lost { duration: part.duration, is_discontinuous: part.is_after_gap, time: part.time };
        let clock = self.settings.clock.clone();
        let (for_work, theirs) = (published.clone(), clock.clone());
        let hashes = self.terms.kind == playlist::Kind::Vod;
        // Copies megabytes, may hash them, and may write them into a file.
        let made = tokio::task::spawn_blocking(move || make(fragmenter, part, hashes, &for_work, &*theirs)).await;
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                stream.cutter.lost();
                published.break_off();
                self.fail(id, &format!("making a segment broke off: {error}"), "look into the log");
                return;
            }
        };
        if let Some(stream) = self.streams.get_mut(id) {
            stream.fragmenter = Some(made.fragmenter);
        }
        match made.outcome {
            Ok((number, refused)) => {
                let now = clock.now();
                let places: Vec<usize> = refused.iter().map(|(place, _)| *place).collect();
                let mut kept = Vec::with_capacity(made.acks.len());
                for (place, ack) in made.acks.into_iter().enumerate() {
                    if places.contains(&place) { ack.settle(Verdict::Rejected) } else { kept.push(ack) }
                }
                match &mut self.mirror {
                    Some(mirror) => {
                        let part = PublishedPart { number, acks: kept };
                        mirror.store(id, published.published(), part).await;
                    }
                    None => kept.into_iter().for_each(|ack| ack.deliver(now)),
                }
                if let Some((_, why)) = refused.first() {
                    let count = refused.len();
                    self.fail(
                        id,
                        &format!("{count} packets of a segment are left out: {why}"),
                        "look at the input with `ffprobe`",
                    );
                }
            }
            Err(Failed { is_told, message, hint }) => {
                if is_told {
                    // The playlist has a gap for it already, or belongs to somebody else.
                } else if is_segment {
                    published.lose(&lost, clock.now());
                } else {
                    published.break_off();
                    if let Some(stream) = self.streams.get_mut(id) {
                        stream.cutter.lost();
                    }
                }
                self.fail(id, &format!("lost a segment of {} packets: {message}", made.acks.len()), hint);
            }
        }
    }

    /// Something went wrong with a stream; what comes after that is tried all the same.
    fn fail(&mut self, stream: &StreamId, message: &str, hint: &str) {
        let error = SinkError { message: format!("stream `{stream}`: {message}"), hint: Some(hint.to_owned()) };
        if self.failures.len() < MOST_UNTOLD {
            self.failures.push_back(error);
        }
    }
}

/// What went wrong, where only one thing can be told.
fn joined(errors: impl Iterator<Item = SinkError>) -> Option<SinkError> {
    errors.reduce(|first, next| SinkError {
        message: format!("{}; {}", first.message, next.message),
        hint: first.hint.or(next.hint),
    })
}

/// What came of a part.
struct Made {
    fragmenter: Fragmenter,
    acks: Vec<Ack>,
    /// The number of its segment, places of packets that were left out, and why; or why there is no segment, and what to do.
    outcome: Result<(u64, Vec<(usize, String)>), Failed>,
}

struct Failed {
    /// Whether the playlist knows of it.
    is_told: bool,
    message: String,
    hint: &'static str,
}

/// With `hashes`, what is made is known by its content.
fn make(mut fragmenter: Fragmenter, part: Part, hashes: bool, published: &Writing, clock: &dyn Clock) -> Made {
    let made = fragmenter.piece(&part.samples, &part.following);
    let failed = |error: crate::media::mux::MuxError| Failed {
        is_told: false,
        message: error.to_string(),
        hint: "look at the input with `ffprobe`",
    };
    let outcome = made.map_err(failed).and_then(|fragment| {
        let sha256 = hashes.then(|| hex::encode(Sha256::digest(&fragment.media)));
        let segment = NewSegment {
            init: fragment.init,
            media: fragment.media,
            sha256,
            duration: part.duration,
            target: part.target,
            part_target: part.part_target,
            completes: part.completes,
            is_discontinuous: part.is_after_gap,
            is_independent: part.is_independent,
            has_leading: part.has_leading,
            time: part.time,
        };
        let hint = |refused: &Refused| match refused {
            Refused::Full(_) => "give `disk` more, or cut the stream's history with `kind = \"live\"`",
            Refused::Superseded => "nothing needs to be done: the other version goes on with the next keyframe",
            Refused::Spill { .. } => {
                "make room there, name another folder with the variable TMPDIR, or give `memory` more"
            }
        };
        let listed = published.append(segment, clock.now());
        let failed = |refused: Refused| Failed { is_told: true, message: refused.to_string(), hint: hint(&refused) };
        listed.map(|number| (number, fragment.refused)).map_err(failed)
    });
    Made { fragmenter, acks: part.acks, outcome }
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let mut mistakes = Vec::new();
    let segment = config.segment.map_or(SEGMENT, |segment| segment.0);
    if segment < SHORTEST || segment > LONGEST {
        let mistake =
            FieldError::new("segment", format!("`segment` cannot be {}", humantime::format_duration(segment)));
        mistakes.push(mistake.hint("write a length of time from 1s to 1m, such as \"4s\""));
    }
    let window = match config.window {
        None => Window::Segments(WINDOW),
        Some(WindowConfig::Segments(count)) => Window::Segments(count),
        Some(WindowConfig::Time(config::Duration(time))) => {
            if time.is_zero() || time > LONGEST_WINDOW {
                let time = humantime::format_duration(time);
                let mistake = FieldError::new("window", format!("`window` cannot be {time}"));
                mistakes.push(mistake.hint("write a number of segments such as 6, or a length of time up to 24h"));
            }
            Window::Time(i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
        }
    };
    let part = config.part.map_or(PART.min(segment / 2), |part| part.0);
    if config.part.is_some() && !config.low_latency {
        let mistake = FieldError::new("part", "`part` has no meaning without `low_latency = true`");
        mistakes.push(mistake.hint("remove it, or write `low_latency = true`"));
    } else if part < SHORTEST_PART || part > segment / 2 {
        let (part, most) = (humantime::format_duration(part), humantime::format_duration(segment / 2));
        let mistake = FieldError::new("part", format!("`part` cannot be {part}"));
        mistakes.push(mistake.hint(format!("write a length of time from 100ms to half of `segment`, which is {most}")));
    }
    let form = match config.format {
        None | Some(FormConfig::Fmp4) => Form::Mp4,
        Some(FormConfig::MpegTs) => Form::Transport,
    };
    if config.low_latency && form == Form::Transport {
        let mistake = FieldError::new("format", "`low_latency` needs parts of segments, which are MP4");
        mistakes.push(mistake.hint("remove `format`, or `low_latency`"));
    }
    if config.low_latency && config.kind == Some(playlist::Kind::Vod) {
        let mistake =
            FieldError::new("low_latency", "`low_latency` has no meaning where the playlist comes with the end");
        mistakes.push(mistake.hint("remove it, or write `kind = \"live\"`"));
    }
    if let Some(playlist::Kind::Event | playlist::Kind::Vod) = config.kind
        && config.window.is_some()
    {
        let mistake = FieldError::new("window", "`window` has no meaning where the playlist keeps all segments");
        mistakes.push(mistake.hint("remove it, or write `kind = \"live\"`"));
    }
    if config.encoder.is_some() && !config.transcode {
        let mistake = FieldError::new("encoder", "`encoder` has no meaning where nothing is encoded");
        mistakes.push(mistake.hint("write `transcode = true` as well, or remove it"));
    }
    let storage = (config.storage, config.access, config.retry_for.map_or(DEFAULT_RETRY_FOR, |time| time.0));
    let copies = match storage {
        (Some(place), access, retry_for) => {
            mirror::copies(context, &place, access, retry_for).map_err(|errors| mistakes.extend(errors)).ok()
        }
        (None, ..) => None,
    };
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let settings = Settings {
        segment,
        part: config.low_latency.then_some(part),
        form,
        window,
        kind: config.kind,
        memory: config.memory.map_or(MEMORY, |size| size.0),
        disk: config.disk.map_or(DISK, |size| size.0),
        encoder_threads: config.transcode.then(|| config.encoder.and_then(|encoder| encoder.threads).unwrap_or(1)),
        copies,
        origin: context.origin.clone(),
        clock: context.clock.clone(),
        playlists: context.playlists.clone(),
    };
    let shelf = context.playlists.shelf(&context.origin);
    let tunnel = config.tunnel.map(|_| {
        // One that runs already goes on for a graph whose next text has this sink too.
        context.playlists.tunnels.running().map_or_else(OnceLock::new, OnceLock::from)
    });
    Ok(Built::Sink(Arc::new(Hls { settings, tunnel, shelf })))
}

pub static REGISTRATION: Registration = Registration {
    name: "hls",
    role: Role::Sink,
    summary: "Publishes streams as HTTP Live Streaming at /hls/GRAPH/STREAM/index.m3u8, without encoding anew unless \
              `transcode` says so.",
    execution: Execution::Io,
    accepts: &[Kind::Packet],
    produces: Produces::Nothing,
    fields: &[
        Field {
            name: "segment",
            value: FieldType::Duration,
            presence: Presence::Default("\"4s\""),
            summary: "The first keyframe after this time begins the next segment; 1s to 1m.",
        },
        Field {
            name: "format",
            value: FieldType::Choice(&["fmp4", "mpegts"]),
            presence: Presence::Default("\"fmp4\""),
            summary: "What segments are: `fmp4`, fragmented MP4, or `mpegts`, for players that know no other.",
        },
        Field {
            name: "low_latency",
            value: FieldType::Boolean,
            presence: Presence::Default("false"),
            summary: "Whether segments are published in parts, as they come, so that players are behind by seconds less.",
        },
        Field {
            name: "part",
            value: FieldType::Duration,
            presence: Presence::Default("\"500ms\""),
            summary: "How long a part is at most, with `low_latency`: 100ms to half of `segment`; a little more where pictures \
                      do not divide it.",
        },
        Field {
            name: "kind",
            value: FieldType::Choice(&["live", "event", "vod"]),
            presence: Presence::Optional,
            summary: "`live`: the playlist lists the latest segments; `event`: all so far; `vod`: all, once the stream has \
                      ended. Left out: `live` of sources in real time, else `vod`.",
        },
        Field {
            name: "window",
            value: FieldType::Either(&[FieldType::Integer { minimum: 3, maximum: 10_000 }, FieldType::Duration]),
            presence: Presence::Default("6"),
            summary: "How many segments a live playlist lists, or how long they last; never less than three times its \
                      longest segment.",
        },
        Field {
            name: "memory",
            value: FieldType::Size,
            presence: Presence::Default("\"32MiB\""),
            summary: "Bytes of each stream's segments that are kept in memory; further ones lie in temporary files.",
        },
        Field {
            name: "disk",
            value: FieldType::Size,
            presence: Presence::Default("\"8GiB\""),
            summary: "Bytes of each stream's segments that may lie in temporary files; then segments are lost.",
        },
        Field {
            name: "transcode",
            value: FieldType::Boolean,
            presence: Presence::Default("false"),
            summary: "Encodes pictures that browsers cannot play (HEVC, MPEG-4 part 2, Motion JPEG, …) as H.264, in their \
                      own size, with a keyframe at each segment. What they can play is passed on as it is.",
        },
        Field {
            name: "encoder",
            value: FieldType::Table(&[Field {
                name: "threads",
                value: FieldType::Integer { minimum: 1, maximum: 64 },
                presence: Presence::Default("1"),
                summary: "Threads that encode each stream, and as many that decode it; with 1 one thread does both.",
            }]),
            presence: Presence::Optional,
            summary: "How streams are encoded, where `transcode` says so.",
        },
        Field {
            name: "storage",
            value: FieldType::OutputPath,
            presence: Presence::Optional,
            summary: "A folder, or `s3://BUCKET/PREFIX`, in which everything that is published is stored as well, such as \
                      \"out/{stream}\"; a part with `{stream}` is added where there is none. Packets are delivered when \
                      they lie there too.",
        },
        RETRY_FOR,
        ENDPOINT,
        REGION,
        PROFILE,
        PATH_STYLE,
        ANONYMOUS,
        TIMEOUT,
        Field {
            name: "tunnel",
            value: FieldType::Choice(&[CLOUDFLARED]),
            presence: Presence::Optional,
            summary: "Opens the engine to the internet by this program, which has to be installed, for as long as the graph \
                      is there; `GET /streams/ID` then has the stream's `public_url`. The engine must ask for keys.",
        },
    ],
    example: "[sinks.watch]\ntype = \"hls\"\ninputs = [\"cameras\"]\nsegment = \"4s\"\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use bytes::Bytes;

    use crate::item::{Packet, Played, TrackFormat};
    use crate::lease::Counts;
    use crate::sinks::records::tests::context;
    use crate::testing::item;
    use crate::time::{MediaTime, TimeBase};

    fn built(fields: &str) -> Result<Arc<dyn Sink>, String> {
        match build(&context(Path::new(".")), fields.parse().unwrap()) {
            Ok(Built::Sink(sink)) => Ok(sink),
            Ok(_) => panic!("not a sink"),
            Err(errors) => {
                let told = |error: &FieldError| format!("{}: {}; {}", error.field, error, error.hint.clone().unwrap());
                Err(errors.iter().map(told).collect::<Vec<_>>().join("\n"))
            }
        }
    }

    #[test]
    fn fields_that_cannot_work_are_refused_with_what_to_do() {
        for (fields, parts) in [
            ("segment = \"100ms\"", &["segment: `segment` cannot be 100ms; write a length of time from 1s to 1m"][..]),
            ("part = \"200ms\"", &["part: `part` has no meaning without `low_latency = true`; remove it"]),
            (
                "low_latency = true\npart = \"3s\"",
                &["part: `part` cannot be 3s; write a length of time from 100ms to half of `segment`, which is 2s"],
            ),
            ("low_latency = true\npart = \"50ms\"", &["part: `part` cannot be 50ms"]),
            (
                "low_latency = true\nkind = \"vod\"\nformat = \"mpegts\"",
                &[
                    "format: `low_latency` needs parts of segments, which are MP4",
                    "low_latency: `low_latency` has no meaning",
                ],
            ),
            ("window = \"0s\"", &["window: `window` cannot be 0s; write a number of segments such as 6"]),
            (
                "segment = \"1h\"\nkind = \"vod\"\nwindow = 3",
                &["cannot be 1h", "window: `window` has no meaning where the playlist keeps all segments; remove it"],
            ),
            (
                "encoder = { threads = 2 }",
                &["encoder: `encoder` has no meaning where nothing is encoded; write `transcode = true` as well"],
            ),
        ] {
            let said = built(fields).err().unwrap_or_else(|| panic!("{fields} was taken"));
            assert!(parts.iter().all(|part| said.contains(part)), "{fields}: {said}");
        }
        let sink = built("memory = \"1MiB\"\nwindow = \"1m\"").unwrap();
        assert_eq!((sink.stream_memory(), sink.encoder_threads()), ((1 << 20) + 2 * MOST_HELD, None));
        let sink = built("transcode = true\nencoder = { threads = 3 }").unwrap();
        assert_eq!(sink.encoder_threads(), Some(3));
        let sink = built("memory = \"1MiB\"\nlow_latency = true\npart = \"200ms\"").unwrap();
        assert_eq!(sink.stream_memory(), (1 << 20) + 3 * MOST_HELD);
    }

    #[tokio::test]
    async fn what_cannot_be_published_is_told_once_and_rejected() {
        let context = context(Path::new("."));
        let Ok(Built::Sink(sink)) = build(&context, toml::Table::new()) else { panic!("no sink") };
        let mut writer = sink.start().unwrap();
        let format = TrackFormat::Video { width: 4, height: 4, frame_rate: None, has_b_frames: false };
        let base = TimeBase::MICROSECONDS;
        let track = crate::item::Track { index: 0, codec: "secret".into(), format, time_base: base, parameters: None };
        let info =
            Arc::new(StreamInfo { tracks: vec![track], time_base: base, duration: None, played: Played::default() });
        let stream = StreamId::new("test").unwrap();
        writer.write(&[Event::Open { stream, info }]).await.unwrap();
        let told = writer.work().await.unwrap_err();
        assert_eq!(told.message, "stream `test`: MP4 cannot hold secret video");
        assert!(told.hint.is_some_and(|hint| hint.contains("libx264")));
        let look = || {
            let published = context.playlists.find(&context.origin.graph, "test", context.clock.now());
            let published = published.unwrap_or_else(|| panic!("it is said why there is none"));
            let found = published.file("index.m3u8", &store::Asked::default(), context.clock.now());
            (published.is_refused(), found)
        };
        let is_told = || match look() {
            (is_refused, store::Found::Refused { why, hint }) => {
                is_refused && why == "MP4 cannot hold secret video" && hint.contains("libx264")
            }
            _ => false,
        };
        assert!(is_told());
        for seq in 0..2 {
            let packet =
                Packet { track: 0, is_key: true, dts: MediaTime::ZERO, duration: None, data: Bytes::from_static(b"x") };
            let (item, account) = item(seq, MediaTime::ZERO, Payload::Packet(Arc::new(packet)));
            let batch = [Event::Item(item)];
            writer.write(&batch).await.unwrap();
            // What the engine does for a writer that settles by itself.
            for event in batch {
                if let Event::Item(item) = event {
                    item.lease.ack.release();
                }
            }
            assert_eq!(account.snapshot(), Counts { read: 1, rejected: 1, ..Counts::default() });
        }
        // Nothing will come with the end.
        writer.close().await.unwrap();
        assert!(is_told());
    }
}
