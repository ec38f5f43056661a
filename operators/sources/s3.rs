//! `s3`: decodes videos that lie in a bucket, from their first byte on, without fetching them whole.
//!
//! Owns the configuration; [`super::playback`] plays them as it plays files, and [`crate::storage::ranges`] brings the
//! parts that it wants. An object is read in one version: one that is changed meanwhile ends its stream with an error.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::clock::Clock;
use crate::config::{self, Field, FieldType, OneOrMany, Presence};
use crate::error::{FieldError, SourceError};
use crate::item::{EndReason, Kind, StreamId};
use crate::media::demux::{DemuxError, Demuxer, Tracks};
use crate::operator::{
    BuildContext, Built, Execution, ItemSize, Outlet, Produces, Registration, Role, Source, StreamSpec, Trouble,
};
use crate::storage::ranges::{self, Failure, Ranges};
use crate::storage::retry::{BACKOFF, DEFAULT_RETRY_FOR, RETRY_FOR, Retry};
use crate::storage::s3::{ANONYMOUS, Access, ENDPOINT, PATH_STYLE, PROFILE, REGION, S3, TIMEOUT};
use crate::storage::{Object, Storage, runtime};

use super::file::{KEYFRAMES_ONLY, LOOP, MOST_DECODER_THREADS, REALTIME, SKIP, SettingsConfig, TRACKS, unique};
use super::playback::{self, Recording, Settings};
use super::track::dormant;

#[derive(Deserialize)]
struct Config {
    bucket: String,
    key: Option<OneOrMany<String>>,
    #[serde(default)]
    streams: toml::Table,
    retry_for: Option<config::Duration>,
    #[serde(flatten)]
    settings: SettingsConfig,
    #[serde(flatten)]
    access: Access,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum StreamConfig {
    Key(String),
    Table {
        key: String,
        #[serde(flatten)]
        settings: SettingsConfig,
    },
}

#[derive(Debug)]
struct ObjectStream {
    id: StreamId,
    key: String,
    settings: Settings,
}

struct S3Source {
    storage: Arc<S3>,
    streams: Vec<ObjectStream>,
    retry: Retry,
}

impl Source for S3Source {
    fn streams(&self) -> Vec<StreamSpec> {
        let spec =
            |stream: &ObjectStream| StreamSpec { id: stream.id.clone(), location: self.storage.location(&stream.key) };
        self.streams.iter().map(spec).collect()
    }

    fn is_live(&self) -> bool {
        self.streams.iter().any(|stream| stream.settings.realtime)
    }

    fn is_finite(&self) -> bool {
        self.streams.iter().all(|stream| !stream.settings.repeat)
    }

    fn frame_size(&self) -> ItemSize {
        // A check must not ask the network.
        ItemSize::Unknown
    }

    fn stream_memory(&self) -> u64 {
        let holds_back = |settings: &Settings| settings.skip && !settings.keyframes_only && !settings.realtime;
        let any = self.streams.iter().any(|stream| holds_back(&stream.settings));
        ranges::MOST_BYTES + if any { dormant::MOST_BYTES } else { 0 }
    }

    fn decoder_threads(&self, cores: usize, running: usize) -> usize {
        if self.is_live() || self.streams.iter().all(|stream| stream.settings.keyframes_only) {
            return 1;
        }
        (2 * cores / running.max(1)).clamp(1, MOST_DECODER_THREADS)
    }

    fn run(&self, stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
        let known = self.streams.iter().find(|known| known.id == *stream);
        let known = known.ok_or_else(|| SourceError::input(format!("this source has no stream `{stream}`")))?;
        let (storage, retry, key) = (self.storage.clone(), self.retry.clone(), known.key.clone());
        let look = async move { retry.run("cannot look at", || storage.head(&key)).await };
        let waiting = &*outlet;
        let found = runtime::wait(&|| waiting.stopping(), look).map_err(|error| error.of_source())?;
        let Some(object) = found else { return Ok(EndReason::Stopped) };
        let recording = StoredVideo { source: self, object, failure: Failure::default() };
        playback::play_recording(&recording, &known.settings, outlet)
    }
}

/// One version of an object, as something to play.
struct StoredVideo<'a> {
    source: &'a S3Source,
    object: Object,
    failure: Failure,
}

impl Recording for StoredVideo<'_> {
    fn name(&self) -> String {
        self.source.storage.location(&self.object.key)
    }

    fn open(&self, tracks: &Tracks, stop: &dyn Fn() -> bool) -> Result<Demuxer, SourceError> {
        let name = self.name();
        if self.object.bytes == 0 {
            let message = format!("`{name}` is empty (0 bytes)");
            return Err(SourceError::input_with_hint(message, "check that it was recorded and uploaded completely"));
        }
        let (storage, retry): (Arc<dyn Storage>, _) = (self.source.storage.clone(), self.source.retry.clone());
        let reader = Ranges::new(storage, retry, self.object.clone(), self.failure.clone());
        Demuxer::open_reader(reader, &self.object.key, tracks, stop).map_err(|error| {
            if error == DemuxError::Stopped {
                return SourceError::Stopped;
            }
            let hint = match &error {
                DemuxError::NoVideo(_) => "name an object with a video track",
                DemuxError::NoTrack { .. } => "write indices out of that list, or `tracks = \"best\"`",
                _ => "check that it is a video and that it was uploaded completely",
            };
            let unplayable = || SourceError::input_with_hint(format!("`{name}` cannot be played: {error}"), hint);
            self.failure().unwrap_or_else(unplayable)
        })
    }

    fn failure(&self) -> Option<SourceError> {
        self.failure.first().map(|error| error.of_source())
    }
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let mut mistakes = Vec::new();
    let storage = match S3::new(&config.bucket, "bucket", config.access.clone()) {
        Ok(storage) => Some(Arc::new(storage)),
        Err(errors) => {
            mistakes.extend(errors);
            None
        }
    };
    let retry = retry(context, config.retry_for.map_or(DEFAULT_RETRY_FOR, |time| time.0));
    let streams = choose(config, &mut mistakes);
    match storage {
        Some(storage) if mistakes.is_empty() => Ok(Built::Source(Arc::new(S3Source { storage, streams, retry }))),
        _ => Err(mistakes),
    }
}

fn retry(context: &BuildContext, retry_for: Duration) -> Retry {
    let trouble = Trouble::default();
    // Names of objects may be secret, and this goes to the log before anybody could cover them.
    trouble.cover_with(|_| "cannot read an object for now; it is tried again".to_owned());
    let clock: Arc<dyn Clock> = context.clock.clone();
    Retry { retry_for, clock, trouble, node: context.origin.node.clone(), backoff: BACKOFF }
}

/// The streams of `config`; what is wrong with it goes to `mistakes`.
fn choose(config: Config, mistakes: &mut Vec<FieldError>) -> Vec<ObjectStream> {
    let mut streams = Vec::new();
    let keys = config.key.map(OneOrMany::into_vec).unwrap_or_default();
    match (keys.is_empty(), config.streams.is_empty()) {
        (true, true) => {
            let error = FieldError::new("", "`s3` needs to know which objects to play");
            mistakes.push(error.hint("add `key = \"videos/door.mp4\"` or `streams.NAME = \"videos/door.mp4\"`"));
        }
        (false, false) => {
            let error = FieldError::new("streams", "`key` and `streams` both say which objects to play");
            mistakes.push(error.hint("keep one of them"));
        }
        _ => {}
    }
    match SettingsConfig::default().resolve(&config.settings, "tracks") {
        Err(mistake) => mistakes.push(mistake),
        Ok(settings) => {
            let mut taken = BTreeSet::new();
            for key in keys {
                match checked("key", &key) {
                    Ok(()) => {
                        let id = unique(Path::new(&key), &mut taken);
                        streams.push(ObjectStream { id, key, settings: settings.clone() });
                    }
                    Err(mistake) => mistakes.push(mistake),
                }
            }
        }
    }
    for (name, value) in config.streams {
        match named(&config.settings, &name, value) {
            Ok(stream) => streams.push(stream),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    // Whether streams drop or wait is decided for the whole source, so paced streams would make the others drop.
    if let Some(paced) = streams.iter().find(|stream| stream.settings.realtime)
        && let Some(other) = streams.iter().find(|stream| !stream.settings.realtime)
    {
        let message = format!("stream `{}` is paced and stream `{}` is not, in one source", paced.id, other.id);
        let hint = "write two sources, one with `realtime = true` and one without; nodes may take both as `inputs`";
        mistakes.push(FieldError::new("streams", message).hint(hint));
    }
    streams
}

/// One entry of `streams`.
fn named(node: &SettingsConfig, name: &str, value: toml::Value) -> Result<ObjectStream, FieldError> {
    let field = format!("streams.{name}");
    let id = StreamId::new(name).ok_or_else(|| {
        FieldError::new(&field, format!("`{name}` cannot be the name of a stream"))
            .hint("use 1 to 128 of the characters A-Z a-z 0-9 _ . -")
    })?;
    let (key, key_field, settings) = match value.try_into() {
        Ok(StreamConfig::Key(key)) => (key, field, SettingsConfig::default()),
        Ok(StreamConfig::Table { key, settings }) => (key, format!("{field}.key"), settings),
        Err(_) => {
            let hint = format!("write `{field} = \"door.mp4\"` or `{field} = {{ key = \"door.mp4\", loop = true }}`");
            return Err(FieldError::new(field, "a stream is a key, or a table with a `key`").hint(hint));
        }
    };
    checked(&key_field, &key)?;
    let settings = settings.resolve(node, &format!("streams.{name}.tracks"))?;
    Ok(ObjectStream { id, key, settings })
}

fn checked(field: &str, key: &str) -> Result<(), FieldError> {
    if key.is_empty() || key.ends_with('/') {
        let error = FieldError::new(field, format!("`{key}` is no key of an object"));
        return Err(error.hint("write it without the bucket, such as \"videos/door.mp4\""));
    }
    if key.starts_with("s3://") {
        let error = FieldError::new(field, format!("`{key}` is more than a key: the bucket has a field of its own"));
        return Err(error.hint("write the part behind the bucket, such as \"videos/door.mp4\""));
    }
    Ok(())
}

/// The table of one stream. What it leaves out, its node says.
static STREAM_FIELDS: [Field; 6] = [
    Field {
        name: "key",
        value: FieldType::String,
        presence: Presence::Required,
        summary: "The object of this stream.",
    },
    LOOP.of_one_stream(),
    REALTIME.of_one_stream(),
    TRACKS.of_one_stream(),
    SKIP.of_one_stream(),
    KEYFRAMES_ONLY.of_one_stream(),
];

pub static REGISTRATION: Registration = Registration {
    name: "s3",
    role: Role::Source,
    summary: "Decodes videos in a bucket of S3 by reading only the parts that it needs.",
    execution: Execution::Thread,
    accepts: &[],
    produces: Produces::Kinds(&[Kind::Frame]),
    fields: &[
        Field {
            name: "bucket",
            value: FieldType::String,
            presence: Presence::Required,
            summary: "The bucket.",
        },
        Field {
            name: "key",
            value: FieldType::OneOrList(&FieldType::String),
            presence: Presence::Optional,
            summary: "An object, or a list of them; each is a stream named after it. This or `streams`.",
        },
        Field {
            name: "streams",
            value: FieldType::Map(&FieldType::Either(&[FieldType::String, FieldType::Table(&STREAM_FIELDS)])),
            presence: Presence::Optional,
            summary: "Named streams: each a key, or a table with `key` and settings of its own (`loop`, `realtime`, \
                      `tracks`, `skip`, `keyframes_only`). This or `key`.",
        },
        LOOP,
        REALTIME,
        TRACKS,
        SKIP,
        KEYFRAMES_ONLY,
        ENDPOINT,
        REGION,
        PATH_STYLE,
        ANONYMOUS,
        PROFILE,
        TIMEOUT,
        RETRY_FOR,
    ],
    example: "[sources.clips]\ntype = \"s3\"\nbucket = \"clips\"\nkey = [\"door/monday.mp4\", \"door/tuesday.mp4\"]\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::records::tests::context;

    fn built(table: &str) -> Result<Vec<(String, String)>, Vec<String>> {
        match build(&context(Path::new(".")), toml::from_str(table).unwrap()) {
            Ok(Built::Source(source)) => {
                Ok(source.streams().into_iter().map(|spec| (spec.id.to_string(), spec.location)).collect())
            }
            Ok(_) => panic!("not a source"),
            Err(errors) => Err(errors.into_iter().map(|error| error.field).collect()),
        }
    }

    #[test]
    fn each_object_is_a_stream_named_after_it_or_by_the_user() {
        let pair = |id: &str, location: &str| (id.to_owned(), location.to_owned());
        assert_eq!(
            built("bucket = \"clips\"\nkey = [\"a/door.mp4\", \"b/door.mp4\"]"),
            Ok(vec![pair("door", "s3://clips/a/door.mp4"), pair("door-2", "s3://clips/b/door.mp4")])
        );
        assert_eq!(
            built("bucket = \"clips\"\nstreams.yard = { key = \"b.mp4\", loop = true }"),
            Ok(vec![pair("yard", "s3://clips/b.mp4")])
        );
    }

    #[test]
    fn mistakes_are_named_with_their_fields() {
        let wrong = |table: &str| built(table).unwrap_err();
        assert_eq!(wrong("bucket = \"clips\""), [""]);
        assert_eq!(wrong("bucket = \"\"\nkey = \"a/\""), ["bucket", "key"]);
        assert_eq!(wrong("bucket = \"clips\"\nkey = \"s3://clips/a.mp4\""), ["key"]);
        assert_eq!(wrong("bucket = \"clips\"\nkey = \"a.mp4\"\nstreams.b = \"b.mp4\""), ["streams"]);
        assert_eq!(wrong("bucket = \"clips\"\nstreams.b = 3"), ["streams.b"]);
        let paced = "bucket = \"clips\"\nstreams.a = { key = \"a\", realtime = true }\nstreams.b = \"b\"";
        assert_eq!(wrong(paced), ["streams"]);
    }
}
