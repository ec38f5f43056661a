//! `hls`: packets as HTTP Live Streaming, which browsers and players play. Nothing is decoded or encoded, unless it is asked
//! for.
//!
//! A stream is cut into segments at keyframes ([`segmenter`]), each is made into a piece of fragmented MP4
//! ([`crate::media::fragment`]), and published with a playlist that lists it ([`playlist`], [`store`]); the control plane
//! serves both. What is missing of a stream, and another format, is a discontinuity and never the end.
//!
//! A packet is delivered when its segment can be fetched. Until then the sink holds it, up to [`MOST_HELD`] a stream, and
//! the source has its credit back.
//!
//! With `transcode` what browsers cannot play is encoded anew in front of all that ([`encoders`], [`transcoder`]).

pub mod encoders;
pub mod mirror;
pub mod playlist;
pub mod segmenter;
pub mod store;
pub mod transcoder;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Deserialize;

use crate::clock::Clock;
use crate::config::{self, Field, FieldType, Presence};
use crate::encoding::Encoding;
use crate::error::{FieldError, SinkError, StartError};
use crate::item::{EndReason, Event, Item, Kind, Origin, Payload, StreamId, StreamInfo};
use crate::lease::{Ack, Verdict};
use crate::media::encode;
use crate::media::fragment::{Fragmenter, is_common, is_playable};
use crate::operator::{
    BuildContext, Built, Execution, Produces, Registration, Resource, Role, Sink, SinkInput, SinkWriter, Trouble,
};
use crate::storage::retry::{DEFAULT_RETRY_FOR, RETRY_FOR};
use crate::storage::s3::{ANONYMOUS, Access, ENDPOINT, PATH_STYLE, PROFILE, REGION, TIMEOUT};
use crate::tunnel::{CLOUDFLARED, Tunnel};
use encoders::{Encoders, EncodingWriter};
use mirror::{Copies, Mirror};
use playlist::Window;
use segmenter::{Part, Rules, Segmenter};
use store::{NewSegment, Playlists, Refused, Shelf, Terms, Writing};

/// Bytes of packets of one stream that wait for their segment to be complete.
const MOST_HELD: u64 = 16 << 20;
const SEGMENT: Duration = Duration::from_secs(4);
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
const WINDOW: usize = 6;
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);
const MEMORY: u64 = 32 << 20;
const DISK: u64 = 8 << 30;
/// How long one batch may take, where nothing is waited for but this machine.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Config {
    segment: Option<config::Duration>,
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

#[derive(Clone)]
struct Settings {
    segment: Duration,
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
        let by_source = if is_live { playlist::Kind::Live } else { playlist::Kind::Vod };
        let terms = Terms {
            kind: settings.kind.unwrap_or(by_source),
            length: i64::try_from(settings.segment.as_micros()).unwrap_or(i64::MAX),
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
            mirror: settings.copies.as_ref().map(Copies::start).transpose()?,
            tunnel,
            settings: settings.clone(),
            terms,
            shelf: self.shelf.clone(),
            streams: BTreeMap::new(),
            failure: None,
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

    /// Its segments, packets that wait, and the segment that is made of them.
    fn stream_memory(&self) -> u64 {
        self.settings.memory.saturating_add(2 * MOST_HELD)
    }
}

/// One stream, as it is written.
struct Stream {
    info: Arc<StreamInfo>,
    segmenter: Segmenter,
    fragmenter: Option<Fragmenter>,
    /// `None` where it cannot be published: what comes of it is rejected.
    published: Option<Writing>,
    forced: u64,
}

struct HlsWriter {
    mirror: Option<Mirror>,
    tunnel: Option<Arc<Tunnel>>,
    settings: Settings,
    terms: Terms,
    shelf: Arc<Shelf>,
    streams: BTreeMap<StreamId, Stream>,
    /// What went wrong first, until it is told.
    failure: Option<SinkError>,
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
        match self.failure.take() {
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
        of_copies.or(self.tunnel.as_ref().map(|tunnel| tunnel.trouble()))
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        for stream in self.streams.keys().cloned().collect::<Vec<_>>() {
            self.end(&stream, &EndReason::Stopped).await;
        }
        let of_copies = match &mut self.mirror {
            Some(mirror) => mirror.finish().await,
            None => None,
        };
        self.failure.take().or(of_copies).map_or(Ok(()), Err)
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
        };
        let before = self.streams.remove(id);
        let (mut segmenter, published) = match before {
            Some(before) => (before.segmenter, before.published),
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
                (Segmenter::new(rules, promised.flatten()), published)
            }
        };
        segmenter.open(info);
        let published = published.filter(|_| self.is_possible(id, info));
        let fragmenter = match Fragmenter::new(&info.tracks) {
            Ok(fragmenter) => Some(fragmenter),
            Err(error) => {
                self.fail(id, &error.to_string(), "look at the input with `ffprobe`");
                None
            }
        };
        let forced = segmenter.forced;
        self.streams.insert(id.clone(), Stream { info: info.clone(), segmenter, fragmenter, published, forced });
    }

    /// Whether anything of the stream can be published; says what cannot.
    fn is_possible(&mut self, id: &StreamId, info: &StreamInfo) -> bool {
        let node = &self.settings.origin.node;
        let Some(video) = info.tracks.first().filter(|video| is_playable(video)) else {
            let codec = info.tracks.first().map_or("no", |video| &*video.codec);
            let message = format!("MP4 cannot hold {codec} video");
            let hint = "write `transcode = true`, or convert the input to H.264 first, for example with \
                        `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`";
            self.fail(id, &message, hint);
            return false;
        };
        if !is_common(video) {
            let codec = &video.codec;
            tracing::warn!(%node, stream = %id, "`{node}` passes stream `{id}` on as {codec}, which browsers do not play; `transcode = true` encodes it anew");
        }
        for track in info.tracks.iter().skip(1).filter(|track| !is_playable(track)) {
            let (index, codec) = (track.index, &track.codec);
            tracing::warn!(%node, stream = %id, "`{node}` leaves track {index} of stream `{id}` out: players of HLS know no {codec}");
        }
        true
    }

    async fn take(&mut self, item: &Item) {
        let Payload::Packet(packet) = &item.payload else {
            item.lease.ack.raise(Verdict::Rejected);
            return;
        };
        let Some(stream) = self.streams.get_mut(&item.stream).filter(|stream| stream.published.is_some()) else {
            item.lease.ack.raise(Verdict::Rejected);
            return;
        };
        let parts = stream.segmenter.take(item, packet);
        let forced = stream.segmenter.forced;
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
        let parts = stream.segmenter.gap();
        self.publish_all(id, parts).await;
        if let Some(published) = self.streams.get(id).and_then(|stream| stream.published.as_ref()) {
            published.break_off();
        }
    }

    async fn end(&mut self, id: &StreamId, reason: &EndReason) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let parts = stream.segmenter.finish();
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
        let clock = self.settings.clock.clone();
        let (for_work, theirs) = (published.clone(), clock.clone());
        // Copies and hashes megabytes, and may write them into a file.
        let made = tokio::task::spawn_blocking(move || make(fragmenter, part, &for_work, &*theirs)).await;
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                published.break_off();
                self.fail(id, &format!("making a segment broke off: {error}"), "look into the log");
                return;
            }
        };
        if let Some(stream) = self.streams.get_mut(id) {
            stream.fragmenter = Some(made.fragmenter);
        }
        match made.outcome {
            Ok(refused) => {
                let now = clock.now();
                let places: Vec<usize> = refused.iter().map(|(place, _)| *place).collect();
                let mut kept = Vec::with_capacity(made.acks.len());
                for (place, ack) in made.acks.into_iter().enumerate() {
                    if places.contains(&place) { ack.settle(Verdict::Rejected) } else { kept.push(ack) }
                }
                match &mut self.mirror {
                    Some(mirror) => mirror.store(id, published.published(), kept).await,
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
            Err((message, hint)) => {
                published.break_off();
                self.fail(id, &format!("lost a segment of {} packets: {message}", made.acks.len()), hint);
            }
        }
    }

    /// Something went wrong with a stream; what comes after that is tried all the same.
    fn fail(&mut self, stream: &StreamId, message: &str, hint: &str) {
        let error = SinkError { message: format!("stream `{stream}`: {message}"), hint: Some(hint.to_owned()) };
        self.failure.get_or_insert(error);
    }
}

/// What came of a part.
struct Made {
    fragmenter: Fragmenter,
    acks: Vec<Ack>,
    /// Places of packets that were left out, and why; or why there is no segment, and what to do.
    outcome: Result<Vec<(usize, String)>, (String, &'static str)>,
}

fn make(mut fragmenter: Fragmenter, part: Part, published: &Writing, clock: &dyn Clock) -> Made {
    let made = fragmenter.piece(&part.samples, &part.following);
    let outcome = made.map_err(|error| (error.to_string(), "look at the input with `ffprobe`")).and_then(|fragment| {
        let segment = NewSegment {
            init: fragment.init,
            media: fragment.media,
            sha256: fragment.sha256,
            duration: part.duration,
            target: part.target,
            is_discontinuous: part.is_after_gap,
            is_independent: part.is_independent,
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
        listed.map(|()| fragment.refused).map_err(|refused| (refused.to_string(), hint(&refused)))
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
    }

    #[tokio::test]
    async fn what_cannot_be_published_is_told_once_and_rejected() {
        let sink = built("").unwrap();
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
        writer.close().await.unwrap();
    }
}
