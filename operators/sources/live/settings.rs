//! The configuration that `rtsp` and `url` share: which inputs, and how patient to be with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::address::Address;
use crate::backoff::Backoff;
use crate::config::{self, Field, FieldType, Presence};
use crate::error::{FieldError, SourceError};
use crate::hooks::Hooks;
use crate::item::{EndReason, StreamId};
use crate::operator::{BuildContext, ItemSize, Outlet, Source, StreamSpec};
use crate::sources::track::dormant;

/// No wait is longer: a camera that is silent for a day is lost.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// How RTSP carries media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sources) enum Transport {
    Tcp,
    Udp,
}

/// How libav is told to open the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sources) enum Protocol {
    Rtsp(Transport),
    /// Whatever the URL says.
    Other,
}

/// What is shown in a camera's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sources) struct Fallback {
    pub path: PathBuf,
    /// Failures in a row until it is shown.
    pub after: u64,
}

/// One live input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sources) struct Settings {
    pub url: String,
    pub protocol: Protocol,
    pub connect_timeout: Duration,
    pub read_timeout: Duration,
    pub no_frame_for: Duration,
    pub(super) backoff: Backoff,
    pub fallback: Option<Fallback>,
    pub skip: bool,
    pub keyframes_only: bool,
}

impl Settings {
    /// Whether `url` is the path of a session description.
    pub fn is_description(&self) -> bool {
        is_description(&self.url)
    }
}

/// Whether `url` is the path of a session description.
pub(in crate::sources) fn is_description(url: &str) -> bool {
    !url.contains("://") && Path::new(url).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("sdp"))
}

/// What a node says for all its streams, and a stream for itself.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsConfig {
    transport: Option<TransportConfig>,
    connect_timeout: Option<config::Duration>,
    read_timeout: Option<config::Duration>,
    no_frame_for: Option<config::Duration>,
    backoff_first: Option<config::Duration>,
    backoff_most: Option<config::Duration>,
    fallback: Option<String>,
    fallback_after: Option<u64>,
    skip: Option<bool>,
    keyframes_only: Option<bool>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TransportConfig {
    Tcp,
    Udp,
}

/// Which URLs a type takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sources) enum Takes {
    Rtsp,
    Anything,
}

impl SettingsConfig {
    /// What is wrong with these lengths of time, wherever they are of use. `field` is the table they stand in, with a
    /// dot behind it, or empty.
    fn wrong_lengths(&self, field: &str) -> Vec<FieldError> {
        let lengths = [
            ("connect_timeout", self.connect_timeout),
            ("read_timeout", self.read_timeout),
            ("no_frame_for", self.no_frame_for),
            ("backoff_first", self.backoff_first),
            ("backoff_most", self.backoff_most),
        ];
        let wrong = |length: Duration| length.is_zero() || length > LONGEST_WAIT;
        let lengths = lengths.into_iter().filter_map(|(name, length)| Some((name, length?.0)));
        lengths
            .filter(|(_, length)| wrong(*length))
            .map(|(name, length)| {
                let length = humantime::format_duration(length);
                FieldError::new(format!("{field}{name}"), format!("`{name}` cannot be {length}"))
                    .hint("write a length of time up to a day, such as \"10s\"")
            })
            .collect()
    }

    /// These settings, with those of the node where they say nothing; the lengths of both are right.
    fn resolve(
        &self,
        node: &SettingsConfig,
        field: &str,
        folder: &Path,
        takes: Takes,
        url: String,
    ) -> Result<Settings, FieldError> {
        let wait = |own: Option<config::Duration>, node: Option<config::Duration>, default: u64| {
            own.or(node).map_or(Duration::from_secs(default), |duration| duration.0)
        };
        let transport = match self.transport.or(node.transport) {
            None | Some(TransportConfig::Tcp) => Transport::Tcp,
            Some(TransportConfig::Udp) => Transport::Udp,
        };
        let connect_timeout = wait(self.connect_timeout, node.connect_timeout, 10);
        let read_timeout = wait(self.read_timeout, node.read_timeout, 10);
        let no_frame_for = wait(self.no_frame_for, node.no_frame_for, 10);
        let first = wait(self.backoff_first, node.backoff_first, 1);
        let most = wait(self.backoff_most, node.backoff_most, 30);
        if first > most {
            let (first, most) = (humantime::format_duration(first), humantime::format_duration(most));
            let message = format!("the first delay, {first}, is longer than the longest, {most}");
            return Err(FieldError::new(format!("{field}backoff_first"), message)
                .hint("write `backoff_most` at least as long as `backoff_first`"));
        }
        let after = self.fallback_after.or(node.fallback_after);
        let path = self.fallback.as_ref().or(node.fallback.as_ref());
        if let (Some(_), None) = (after, path) {
            let error = FieldError::new(format!("{field}fallback_after"), "there is no fallback to show");
            return Err(error.hint("add `fallback = \"video.mp4\"`, or remove `fallback_after`"));
        }
        let fallback = path.map(|path| {
            let path = folder.join(path);
            if !path.is_file() {
                let message = format!("there is no file `{}`", path.display());
                return Err(FieldError::new(format!("{field}fallback"), message)
                    .hint("relative paths start at the working directory of the process"));
            }
            Ok(Fallback { path, after: after.unwrap_or(3).max(1) })
        });
        Ok(Settings {
            url,
            protocol: match takes {
                Takes::Rtsp => Protocol::Rtsp(transport),
                Takes::Anything => Protocol::Other,
            },
            connect_timeout,
            read_timeout,
            no_frame_for,
            backoff: Backoff { first, most },
            fallback: fallback.transpose()?,
            skip: self.skip.or(node.skip).unwrap_or(true),
            keyframes_only: self.keyframes_only.or(node.keyframes_only).unwrap_or(false),
        })
    }
}

/// A source of live inputs.
#[derive(Debug)]
pub(in crate::sources) struct LiveSource {
    streams: Vec<(StreamId, Settings)>,
    hooks: Option<Hooks>,
}

/// The field `hooks`.
#[derive(Deserialize)]
struct HooksConfig {
    path: String,
    url: String,
}

impl LiveSource {
    /// Reads a node's table, or answers every mistake in it.
    pub fn build(context: &BuildContext, takes: Takes, mut table: toml::Table) -> Result<LiveSource, Vec<FieldError>> {
        let folder = &context.folder;
        let (url, streams) = (table.remove("url"), table.remove("streams"));
        let hooks = table.remove("hooks");
        let node: SettingsConfig = config::read(table)?;
        let hooks = hooks.map(|hooks| hooked(hooks, takes, folder)).transpose().map_err(|mistake| vec![mistake])?;
        let mut found = Vec::new();
        let mut mistakes = node.wrong_lengths("");
        let mut take =
            |id: Result<StreamId, FieldError>, settings: Result<Settings, Vec<FieldError>>| match (id, settings) {
                (Ok(id), Ok(settings)) => found.push((id, settings)),
                (id, settings) => mistakes.extend(id.err().into_iter().chain(settings.err().unwrap_or_default())),
            };
        match (url, streams) {
            (Some(toml::Value::String(url)), None) => {
                let checked = check(takes, "url", &url, folder);
                let id = name_of(&url);
                let settings = checked.and_then(|url| SettingsConfig::default().resolve(&node, "", folder, takes, url));
                take(Ok(id), settings.map_err(|mistake| vec![mistake]));
            }
            // Where there are none, all of them are added while the graph runs.
            (None, Some(toml::Value::Table(streams))) => {
                for (name, value) in streams {
                    take(identify(&name), stream(&name, value, &node, takes, folder));
                }
            }
            // All of them are announced.
            (None, _) if hooks.is_some() => {}
            (Some(_), Some(_)) => {
                let error = FieldError::new("streams", "`url` and `streams` both say what to play");
                return Err(vec![error.hint("keep one of them")]);
            }
            _ => {
                let error = FieldError::new("", "it needs to know which input to play");
                let example = takes.example();
                return Err(vec![error.hint(format!("add `url = \"{example}\"` or `streams.NAME = \"{example}\"`"))]);
            }
        }
        if mistakes.is_empty() { Ok(LiveSource { streams: found, hooks }) } else { Err(mistakes) }
    }
}

impl Takes {
    const fn example(self) -> &'static str {
        match self {
            Takes::Rtsp => "rtsp://10.0.0.7/main",
            Takes::Anything => "https://example.org/live.m3u8",
        }
    }
}

/// One entry of `streams`.
fn stream(
    name: &str,
    value: toml::Value,
    node: &SettingsConfig,
    takes: Takes,
    folder: &Path,
) -> Result<Settings, Vec<FieldError>> {
    let field = format!("streams.{name}");
    let wrong = |message: String| {
        let example = takes.example();
        let hint = format!("write `{field} = \"{example}\"` or `{field} = {{ url = \"{example}\", skip = false }}`");
        FieldError::new(&field, message).hint(hint)
    };
    let (url, own, at) = match value {
        toml::Value::String(url) => (url, SettingsConfig::default(), field.clone()),
        toml::Value::Table(mut table) => {
            let Some(toml::Value::String(url)) = table.remove("url") else {
                return Err(vec![wrong("the table of a stream needs a `url`".to_owned())]);
            };
            let own = SettingsConfig::deserialize(table).map_err(|error| vec![wrong(error.message().to_owned())])?;
            (url, own, format!("{field}.url"))
        }
        _ => return Err(vec![wrong("a stream is a URL, or a table with a `url`".to_owned())]),
    };
    let mut mistakes = own.wrong_lengths(&format!("{field}."));
    match check(takes, &at, &url, folder).and_then(|url| own.resolve(node, &format!("{field}."), folder, takes, url)) {
        Ok(settings) if mistakes.is_empty() => return Ok(settings),
        Ok(_) => {}
        Err(mistake) => mistakes.push(mistake),
    }
    Err(mistakes)
}

/// The streams that another server announces.
fn hooked(written: toml::Value, takes: Takes, folder: &Path) -> Result<Hooks, FieldError> {
    let config = HooksConfig::deserialize(written).map_err(|error| FieldError::new("hooks", error.message()))?;
    let hooks = Hooks::new(&config.path, &config.url)?;
    // The URL of any stream tells whether all of them can be played.
    check(takes, "hooks.url", &hooks.url(&StreamId::sanitised("stream")), folder)?;
    Ok(hooks)
}

fn identify(name: &str) -> Result<StreamId, FieldError> {
    StreamId::new(name).ok_or_else(|| {
        let message = format!("`{name}` cannot be the name of a stream");
        FieldError::new(format!("streams.{name}"), message).hint("use 1 to 128 of the characters A-Z a-z 0-9 _ . -")
    })
}

/// The name of a stream without one: its host, its port where it names no host, or the stem of its description.
fn name_of(url: &str) -> StreamId {
    match Address::parse(url) {
        Some(Address { scheme, host: "", port: Some(port) }) => StreamId::sanitised(&format!("{scheme}_{port}")),
        Some(address) => StreamId::sanitised(address.host),
        None => StreamId::sanitised(&Path::new(url).file_stem().unwrap_or_default().to_string_lossy()),
    }
}

/// What is wrong with what follows the host's `:`, and what to do. Says nothing of what is in it: there may be a
/// password.
pub(in crate::sources) fn port_mistake(address: &Address<'_>) -> Option<(&'static str, &'static str)> {
    address.port.filter(|port| port.parse::<u16>().is_err()).map(|_| {
        (
            "what follows the host and its `:` is no port",
            "a port is a number up to 65535; in user and password write `/` as %2F, `?` as %3F, `#` as %23 and `@` as %40",
        )
    })
}

/// The URL as libav takes it. Says nothing of what is in it: there may be credentials.
fn check(takes: Takes, field: &str, url: &str, folder: &Path) -> Result<String, FieldError> {
    let wrong = |message: &str, hint: String| Err(FieldError::new(field, message).hint(hint));
    if is_description(url) && takes == Takes::Anything {
        let path = folder.join(url);
        return match path.to_str() {
            Some(text) if path.is_file() => Ok(text.to_owned()),
            _ => wrong("there is no such file", "relative paths start at the working directory of the process".into()),
        };
    }
    let example = takes.example();
    // Only who waits for others to connect, or for datagrams, names no host.
    let address = Address::parse(url).filter(|address| takes == Takes::Anything || !address.host.is_empty());
    let Some(address) = address else {
        let local = folder.join(url).exists() || url.starts_with("file:");
        let hint = if local {
            "a file is played by `type = \"file\"`".to_owned()
        } else {
            format!("write it like \"{example}\"")
        };
        return wrong("this is no URL with a host", hint);
    };
    if url.contains(char::is_whitespace) {
        return wrong("there is white space in this URL", "write a space as %20".to_owned());
    }
    if let Some((message, hint)) = port_mistake(&address) {
        return wrong(message, hint.to_owned());
    }
    // libav knows schemes in lower case only.
    let scheme = address.scheme.to_ascii_lowercase();
    let is_rtsp = ["rtsp", "rtsps"].contains(&scheme.as_str());
    match takes {
        Takes::Rtsp if !is_rtsp => wrong(
            "this is no RTSP URL",
            format!("write it like \"{example}\"; other live inputs are played by `type = \"url\"`"),
        ),
        Takes::Anything if is_rtsp => {
            wrong("`rtsp` plays this URL better", "write `type = \"rtsp\"`: it has a choice of transport".into())
        }
        Takes::Anything if scheme == "file" => {
            wrong("this is a file and not live", "a file is played by `type = \"file\"`".into())
        }
        _ => Ok(scheme + &url[address.scheme.len()..]),
    }
}

impl Source for LiveSource {
    fn streams(&self) -> Vec<StreamSpec> {
        self.streams
            .iter()
            .map(|(id, settings)| StreamSpec { id: id.clone(), location: settings.url.clone() })
            .collect()
    }

    fn reads(&self) -> Vec<PathBuf> {
        let descriptions = self.streams.iter().filter(|(_, settings)| settings.is_description());
        let descriptions = descriptions.map(|(_, settings)| PathBuf::from(&settings.url));
        let fallbacks = self.streams.iter().filter_map(|(_, settings)| Some(settings.fallback.as_ref()?.path.clone()));
        descriptions.chain(fallbacks).collect()
    }

    fn is_live(&self) -> bool {
        true
    }

    fn is_finite(&self) -> bool {
        false
    }

    fn awaits_streams(&self) -> bool {
        self.hooks.is_some() || self.streams.is_empty()
    }

    fn hooks(&self) -> Option<&Hooks> {
        self.hooks.as_ref()
    }

    /// Nobody connects to a camera to plan a graph.
    fn frame_size(&self) -> ItemSize {
        ItemSize::Unknown
    }

    fn stream_memory(&self) -> u64 {
        let holds_back = |settings: &Settings| settings.skip && !settings.keyframes_only;
        if self.streams.iter().any(|(_, settings)| holds_back(settings)) { dormant::MOST_BYTES } else { 0 }
    }

    /// Each further thread would delay by a picture.
    fn decoder_threads(&self, _cores: usize, _running: usize) -> usize {
        1
    }

    fn silence(&self) -> Option<Duration> {
        // What shows a picture this rarely is not stuck. Between two pictures lies at most one such wait.
        self.streams.iter().map(|(_, settings)| settings.no_frame_for.max(settings.connect_timeout)).max()
    }

    fn run(&self, stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
        let known = self.streams.iter().find(|(id, _)| id == stream);
        let (_, settings) = known.ok_or_else(|| SourceError::input(format!("this source has no stream `{stream}`")))?;
        super::run(stream, settings, outlet)
    }
}

/// A source as the registry wants it.
pub(in crate::sources) fn built(source: LiveSource) -> crate::operator::Built {
    crate::operator::Built::Source(Arc::new(source))
}

const fn optional(name: &'static str, value: FieldType, summary: &'static str) -> Field {
    Field { name, value, presence: Presence::Optional, summary }
}

const fn with_default(name: &'static str, value: FieldType, default: &'static str, summary: &'static str) -> Field {
    Field { name, value, presence: Presence::Default(default), summary }
}

const fn streams(each: &'static FieldType) -> Field {
    let summary = "Named streams: each a URL, or a table with `url` and settings of its own. This or `url`.";
    optional("streams", FieldType::Map(each), summary)
}

pub(in crate::sources) const URL: Field = optional(
    "url",
    FieldType::Url,
    "The input; its stream is named after the host. This or `streams`. Credentials in it are shown nowhere.",
);
pub(in crate::sources) const RTSP_STREAMS: Field =
    streams(&FieldType::Either(&[FieldType::Url, FieldType::Table(&RTSP_STREAM)]));
pub(in crate::sources) const URL_STREAMS: Field =
    streams(&FieldType::Either(&[FieldType::Url, FieldType::Table(&URL_STREAM)]));
pub(in crate::sources) const HOOKS: Field = optional(
    "hooks",
    FieldType::Table(&[
        Field {
            name: "path",
            value: FieldType::String,
            presence: Presence::Required,
            summary: "The paths that are streams, such as `live/{id}/in`; `{id}` stands for the stream's id.",
        },
        Field {
            name: "url",
            value: FieldType::Url,
            presence: Presence::Required,
            summary: "Where such a stream is read from, such as `rtsp://10.0.0.9/live/{id}/in`.",
        },
    ]),
    "Streams that a MediaMTX server announces: it POSTs to `/v1/mediamtx/events/ready` and `/not-ready` when one of its \
     paths begins and ends.",
);
pub(in crate::sources) const TRANSPORT: Field = with_default(
    "transport",
    FieldType::Choice(&["tcp", "udp"]),
    "\"tcp\"",
    "How media comes: inside the RTSP connection, or as datagrams beside it.",
);
pub(in crate::sources) const CONNECT_TIMEOUT: Field =
    with_default("connect_timeout", FieldType::Duration, "\"10s\"", "How long the other side may take to answer.");
pub(in crate::sources) const READ_TIMEOUT: Field = with_default(
    "read_timeout",
    FieldType::Duration,
    "\"10s\"",
    "Without a packet of video for this long, the input is lost.",
);
pub(in crate::sources) const NO_FRAME_FOR: Field = with_default(
    "no_frame_for",
    FieldType::Duration,
    "\"10s\"",
    "Without a picture for this long, whatever else is received, the input is lost.",
);
pub(in crate::sources) const BACKOFF_FIRST: Field = with_default(
    "backoff_first",
    FieldType::Duration,
    "\"1s\"",
    "How long to wait, at most, before the first further attempt; the wait doubles with each, and is shortened by up \
     to a half at random.",
);
pub(in crate::sources) const BACKOFF_MOST: Field =
    with_default("backoff_most", FieldType::Duration, "\"30s\"", "How long to wait, at most, however often it fails.");
pub(in crate::sources) const FALLBACK: Field = optional(
    "fallback",
    FieldType::InputPath,
    "A video that is played again and again while the input is lost; its records are marked `fallback`.",
);
pub(in crate::sources) const FALLBACK_AFTER: Field = optional(
    "fallback_after",
    FieldType::Integer { minimum: 1, maximum: 1_000_000 },
    "Failures in a row after which the fallback is played; 3 where nothing is written. An input that is lost before it \
     has shown pictures for `no_frame_for` has failed too.",
);
pub(in crate::sources) const SKIP: Field = with_default(
    "skip",
    FieldType::Boolean,
    "true",
    "Leave undecoded what nobody asked for, where that changes no other picture of an undamaged stream.",
);
pub(in crate::sources) const KEYFRAMES_ONLY: Field = with_default(
    "keyframes_only",
    FieldType::Boolean,
    "false",
    "Decode keyframes alone and pass no other picture on; `seq` counts the others too. An input whose keyframes lie \
     further apart than `no_frame_for` is lost again and again.",
);

/// The input in the table of one stream.
const STREAM_URL: Field = Field {
    name: "url",
    value: FieldType::Url,
    presence: Presence::Required,
    summary: "The input of this stream. Credentials in it are shown nowhere.",
};

/// The table of one stream of `url`. What it leaves out, its node says.
const URL_STREAM: [Field; 10] = [
    STREAM_URL,
    CONNECT_TIMEOUT.of_one_stream(),
    READ_TIMEOUT.of_one_stream(),
    NO_FRAME_FOR.of_one_stream(),
    BACKOFF_FIRST.of_one_stream(),
    BACKOFF_MOST.of_one_stream(),
    FALLBACK,
    FALLBACK_AFTER,
    SKIP.of_one_stream(),
    KEYFRAMES_ONLY.of_one_stream(),
];

/// The table of one stream of `rtsp`.
const RTSP_STREAM: [Field; 11] = [
    STREAM_URL,
    TRANSPORT.of_one_stream(),
    CONNECT_TIMEOUT.of_one_stream(),
    READ_TIMEOUT.of_one_stream(),
    NO_FRAME_FOR.of_one_stream(),
    BACKOFF_FIRST.of_one_stream(),
    BACKOFF_MOST.of_one_stream(),
    FALLBACK,
    FALLBACK_AFTER,
    SKIP.of_one_stream(),
    KEYFRAMES_ONLY.of_one_stream(),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::model::Catalog;
    use crate::item::Origin;
    use crate::operator::NoPublisher;

    fn built(folder: &Path, takes: Takes, text: &str) -> Result<LiveSource, Vec<FieldError>> {
        let context = BuildContext {
            origin: Origin { graph: "test".into(), node: "cameras".into() },
            folder: folder.to_owned(),
            models: Arc::new(Catalog::default()),
            clock: Arc::new(crate::clock::SimulatedClock::default()),
            publisher: Arc::new(NoPublisher),
            progress: None,
            playlists: Arc::default(),
        };
        LiveSource::build(&context, takes, toml::from_str(text).unwrap())
    }

    fn here(text: &str) -> Vec<(StreamId, Settings)> {
        built(Path::new("."), Takes::Rtsp, text).unwrap().streams
    }

    #[test]
    fn a_stream_without_a_name_is_called_after_its_host() {
        let name = |takes, url: &str| {
            let streams = built(Path::new("."), takes, &format!("url = '{url}'")).unwrap().streams;
            streams[0].0.to_string()
        };
        assert_eq!(name(Takes::Rtsp, "rtsp://u:p@10.0.0.7:554/main"), "10.0.0.7");
        assert_eq!(name(Takes::Anything, "srt://[fe80::1]:9000"), "fe80__1");
        assert_eq!(name(Takes::Anything, "srt://:9000?mode=listener"), "srt_9000");
        assert_eq!(name(Takes::Anything, "udp://@:5000"), "udp_5000");
    }

    #[test]
    fn libav_gets_schemes_in_lower_case() {
        assert_eq!(here("url = 'RTSP://Door/Main'")[0].1.url, "rtsp://Door/Main");
        let streams = built(Path::new("."), Takes::Anything, "url = 'HTTP://a/B.m3u8'").unwrap().streams;
        assert_eq!(streams[0].1.url, "http://a/B.m3u8");
    }

    #[test]
    fn a_stream_has_the_settings_of_its_node_but_for_its_own() {
        let streams = here(
            "transport = 'udp'\nread_timeout = '3s'\n\
             streams.door = 'rtsp://a/1'\n\
             streams.yard = { url = 'rtsp://b/1', transport = 'tcp', no_frame_for = '1m', skip = false, \
             keyframes_only = true }",
        );
        let [(door, of_door), (yard, of_yard)] = &streams[..] else { panic!("{streams:?}") };
        assert_eq!((&**door, &**yard), ("door", "yard"));
        assert_eq!(of_door.protocol, Protocol::Rtsp(Transport::Udp));
        assert_eq!((of_door.read_timeout, of_door.no_frame_for), (Duration::from_secs(3), Duration::from_secs(10)));
        assert_eq!(of_yard.protocol, Protocol::Rtsp(Transport::Tcp));
        assert_eq!((of_yard.read_timeout, of_yard.no_frame_for), (Duration::from_secs(3), Duration::from_secs(60)));
        assert!(of_door.skip && !of_yard.skip);
        assert!(!of_door.keyframes_only && of_yard.keyframes_only);
    }

    #[test]
    fn every_mistake_names_its_field_and_a_way_out_and_no_credentials() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.mp4"), "x").unwrap();
        let mistake = |takes, text: &str| {
            let mistakes = built(folder.path(), takes, text).unwrap_err();
            let [mistake] = &mistakes[..] else { panic!("{mistakes:?}") };
            let hint = mistake.hint.clone().unwrap_or_default();
            assert!(!mistake.message.contains("s3cret") && !hint.contains("s3cret"), "{mistake} {hint}");
            assert!(!hint.is_empty(), "{mistake}");
            (mistake.field.clone(), mistake.message.clone(), hint)
        };
        let rtsp = |text: &str| mistake(Takes::Rtsp, text);
        let url = |text: &str| mistake(Takes::Anything, text);
        assert_eq!(rtsp("").0, "");
        assert_eq!(rtsp("url = 'rtsp://a'\nstreams.b = 'rtsp://b'").0, "streams");
        assert!(rtsp("url = 'http://u:s3cret@a/live.m3u8'").2.contains("type = \"url\""));
        assert!(url("url = 'rtsp://u:s3cret@a/live'").2.contains("type = \"rtsp\""));
        assert!(url("url = 'a.mp4'").2.contains("type = \"file\""));
        assert!(url("url = 'file:///etc/passwd'").2.contains("type = \"file\""));
        assert!(url("url = 'gone.sdp'").1.contains("no such file"));
        for broken in ["rtsp://127.0.0.1:99999/x", "rtsp://u:s3cret/x@h/x", "rtsp://u:s3cret#x@h", "rtsp://h:rtsp/x"] {
            let (field, message, hint) = rtsp(&format!("url = '{broken}'"));
            assert_eq!((field.as_str(), message.as_str()), ("url", "what follows the host and its `:` is no port"));
            assert!(hint.contains("%2F"), "{hint}");
        }
        assert!(url("url = 'http://u:s3cret s3cret@h/x'").2.contains("%20"));
        assert!(rtsp("url = 'rtsp://:554/x'").1.contains("no URL with a host"));
        assert!(url("url = 'tcp:///x'").1.contains("no URL with a host"));
        assert_eq!(rtsp("streams.door = 7").0, "streams.door");
        assert_eq!(rtsp("streams.door = { path = 'x' }").0, "streams.door");
        let (field, message, _) = rtsp("streams.door = { url = 'rtsp://u:s3cret@a', transprot = 'udp' }");
        assert_eq!(field, "streams.door");
        assert!(message.contains("transprot"), "{message}");
        assert_eq!(rtsp("streams.door = { url = 'u:s3cret@a' }").0, "streams.door.url");
        assert_eq!(rtsp("url = 'rtsp://a'\nno_frame_for = '0s'").0, "no_frame_for");
        assert_eq!(rtsp("streams.b = { url = 'rtsp://a', read_timeout = '2d' }").0, "streams.b.read_timeout");
        assert_eq!(rtsp("streams.a = 'rtsp://a'\nstreams.b = 'rtsp://b'\nread_timeout = '0s'").0, "read_timeout");
        let several = "streams.b = { url = 'rtsp://a:rtsp/x', read_timeout = '2d', no_frame_for = '0s' }";
        let several = built(folder.path(), Takes::Rtsp, several).unwrap_err();
        let fields: Vec<&str> = several.iter().map(|mistake| mistake.field.as_str()).collect();
        assert_eq!(fields, ["streams.b.read_timeout", "streams.b.no_frame_for", "streams.b.url"]);
        assert_eq!(rtsp("url = 'rtsp://a'\nbackoff_first = '1m'").0, "backoff_first");
        assert_eq!(rtsp("url = 'rtsp://a'\nfallback_after = 2").0, "fallback_after");
        assert_eq!(rtsp("url = 'rtsp://a'\nfallback = 'gone.mp4'").0, "fallback");
        assert_eq!(built(folder.path(), Takes::Rtsp, "streams.a = 'x'\nstreams.b = 'y'").unwrap_err().len(), 2);
    }

    #[test]
    fn the_examples_of_the_reference_build() {
        for (registration, takes) in
            [(&crate::sources::rtsp::REGISTRATION, Takes::Rtsp), (&crate::sources::url::REGISTRATION, Takes::Anything)]
        {
            let example: toml::Table = toml::from_str(registration.example).unwrap();
            let (_, node) = example["sources"].as_table().unwrap().iter().next().unwrap();
            let mut node = node.as_table().unwrap().clone();
            assert_eq!(node.remove("type").unwrap().as_str(), Some(registration.name));
            assert!(built(Path::new("."), takes, &node.to_string()).is_ok());
        }
    }

    #[test]
    fn streams_that_are_announced_or_added_need_not_be_there_yet() {
        for takes in [Takes::Rtsp, Takes::Anything] {
            let source = built(Path::new("."), takes, "streams = {}").unwrap();
            assert!(source.streams.is_empty() && source.awaits_streams() && source.is_live());
        }
        let hooks = "hooks = { path = 'live/{id}/in', url = 'rtsp://h/live/{id}/in' }";
        let source = built(Path::new("."), Takes::Rtsp, hooks).unwrap();
        assert!(source.streams.is_empty() && source.awaits_streams());
        let door = StreamId::new("door").unwrap();
        assert_eq!(source.hooks().unwrap().url(&door), "rtsp://h/live/door/in");
        let both = format!("{hooks}\nstreams.yard = 'rtsp://h/yard'");
        assert_eq!(built(Path::new("."), Takes::Rtsp, &both).unwrap().streams.len(), 1);
        for (text, field) in [
            ("hooks = { path = 'live/in', url = 'rtsp://h/{id}' }", "hooks.path"),
            ("hooks = { path = '{id}', url = 'rtsp://h/in' }", "hooks.url"),
            ("hooks = { path = '{id}', url = 'http://h/{id}' }", "hooks.url"),
            ("hooks = { path = '{id}' }", "hooks"),
        ] {
            let mistakes = built(Path::new("."), Takes::Rtsp, text).unwrap_err();
            assert_eq!((mistakes.len(), mistakes[0].field.as_str()), (1, field), "{mistakes:?}");
        }
    }

    #[test]
    fn what_it_reads_no_sink_may_write() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.mp4"), "x").unwrap();
        std::fs::write(folder.path().join("b.sdp"), "x").unwrap();
        let text = "streams.a = { url = 'b.sdp', fallback = 'a.mp4' }";
        let source = built(folder.path(), Takes::Anything, text).unwrap();
        assert_eq!(source.reads(), [folder.path().join("b.sdp"), folder.path().join("a.mp4")]);
        assert_eq!(source.streams[0].1.fallback.as_ref().unwrap().after, 3);
        assert!(source.is_live() && !source.is_finite());
        assert_eq!(source.stream_memory(), dormant::MOST_BYTES);
    }
}
