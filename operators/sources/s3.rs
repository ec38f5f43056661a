//! `s3`: decodes videos that lie in a bucket, from their first byte on, without fetching them whole.
//!
//! Owns the configuration; [`super::playback`] plays them as it plays files, and [`crate::storage::ranges`] brings the
//! parts that it wants. An object is read in one version: one that is changed meanwhile ends its stream with an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config::{self, Field, FieldType, OneOrMany, Presence};
use crate::error::{FieldError, SourceError};
use crate::item::{EndReason, Kind, Played, StreamId};
use crate::media::demux::{DemuxError, Demuxer, Tracks};
use crate::operator::{
    BuildContext, Built, Discovery, Execution, FoundStream, ItemSize, Outlet, Produces, Registration, Role, Source,
    StreamSpec, Trouble, Unread,
};
use crate::progress::{FoundStreams, Progress, StateError};
use crate::storage::error::StorageError;
use crate::storage::ranges::{self, Failure, Ranges};
use crate::storage::retry::{BACKOFF, DEFAULT_RETRY_FOR, RETRY_FOR, Retry};
use crate::storage::s3::{ANONYMOUS, Access, ENDPOINT, PATH_STYLE, PROFILE, REGION, S3, TIMEOUT};
use crate::storage::{Object, Storage, runtime};

use super::file::{KEYFRAMES_ONLY, LOOP, MOST_DECODER_THREADS, REALTIME, SKIP, SettingsConfig, TRACKS, unique};
use super::playback::{self, Recording, Settings};
use super::track::dormant;

/// Objects of a prefix that are played at once where nobody says otherwise.
const AT_ONCE: usize = 4;
const SHORTEST_POLL: Duration = Duration::from_secs(1);
/// How long an object that was found, and could not be read for `retry_for`, is left alone.
const AGAIN: Backoff = Backoff { first: Duration::from_secs(5), most: Duration::from_secs(900) };

#[derive(Deserialize)]
struct Config {
    bucket: String,
    key: Option<OneOrMany<String>>,
    prefix: Option<String>,
    poll: Option<config::Duration>,
    at_once: Option<usize>,
    streams: Option<toml::Table>,
    #[serde(default)]
    presets: BTreeMap<String, String>,
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
        key: Option<String>,
        preset: Option<String>,
        version: Option<String>,
        #[serde(flatten)]
        settings: SettingsConfig,
    },
}

#[derive(Debug)]
struct ObjectStream {
    id: StreamId,
    key: String,
    /// The version that is meant, where not any is.
    version: Option<String>,
    settings: Settings,
}

/// Which objects are looked for.
#[derive(Clone, Debug)]
struct Search {
    prefix: String,
    /// How often; `None`: once.
    poll: Option<Duration>,
    /// Whether they play in real time.
    realtime: bool,
    /// Those that are read of each.
    tracks: Tracks,
}

struct S3Source {
    storage: Arc<S3>,
    streams: Vec<ObjectStream>,
    search: Option<Search>,
    at_once: usize,
    retry: Retry,
    progress: Option<Progress>,
    /// All its streams are added while the graph runs.
    awaits_streams: bool,
    /// Streams that are added play in real time.
    is_paced: bool,
}

impl Source for S3Source {
    fn streams(&self) -> Vec<StreamSpec> {
        let spec =
            |stream: &ObjectStream| StreamSpec { id: stream.id.clone(), location: self.storage.location(&stream.key) };
        self.streams.iter().map(spec).collect()
    }

    fn discovery(&self) -> Option<Box<dyn Discovery>> {
        let search = self.search.clone()?;
        // Its trouble is its own: whoever runs it covers what is secret in there.
        let retry = Retry { trouble: Trouble::default(), ..self.retry.clone() };
        Some(Box::new(Finder::new(self.storage.clone(), search, retry, self.progress.clone())))
    }

    fn at_once(&self) -> usize {
        self.at_once
    }

    fn is_live(&self) -> bool {
        let searched = self.search.as_ref().is_some_and(|search| search.realtime);
        searched || self.awaits_streams && self.is_paced || self.streams.iter().any(|stream| stream.settings.realtime)
    }

    fn awaits_streams(&self) -> bool {
        self.awaits_streams
    }

    fn is_finite(&self) -> bool {
        let goes_on = self.search.as_ref().is_some_and(|search| search.poll.is_some());
        !goes_on && self.streams.iter().all(|stream| !stream.settings.repeat)
    }

    fn repeats(&self) -> bool {
        self.streams.iter().any(|stream| stream.settings.repeat)
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
        // Each stream has a trouble of its own; whoever reads it covers what is secret in there.
        let retry = Retry { trouble: Trouble::default(), ..self.retry.clone() };
        outlet.trouble(&retry.trouble);
        let (storage, again, key, id) = (self.storage.clone(), retry.clone(), known.key.clone(), stream.clone());
        let look = async move { again.run_for(&id, "cannot look at", || storage.head(&key)).await };
        let waiting = &*outlet;
        let found = runtime::wait(&|| waiting.stopping(), look).map_err(|error| error.of_source())?;
        let Some(object) = found else { return Ok(EndReason::Stopped) };
        let name = self.storage.location(&object.key);
        match self.is_another(&object, known.version.as_deref(), outlet)? {
            Some(false) => {}
            Some(true) => {
                tracing::info!(%stream, "`{name}` was replaced before its turn: the version that was meant is not there");
                return Ok(EndReason::Eof);
            }
            None => return Ok(EndReason::Stopped),
        }
        let played = self
            .progress
            .as_ref()
            .map_or(Played::Anew, |progress| played(progress, &*self.storage, &object, &known.settings.tracks));
        if let Some(progress) = self.progress.as_ref().filter(|_| !known.settings.repeat)
            && let Some(finished) = progress.finished(stream, &played).map_err(StateError::of_source)?
        {
            tracing::info!(%stream, "`{name}` {finished}");
            return Ok(EndReason::Eof);
        }
        let recording = StoredVideo { source: self, stream, retry, object, played, failure: Failure::default() };
        playback::play_recording(&recording, &known.settings, outlet)
    }
}

impl S3Source {
    /// Whether an object is there in another version than the one that is meant; `None`: it was told to stop.
    fn is_another(
        &self,
        object: &Object,
        meant: Option<&str>,
        outlet: &dyn Outlet,
    ) -> Result<Option<bool>, SourceError> {
        let Some(meant) = meant.filter(|meant| *meant != version(object)) else { return Ok(Some(false)) };
        // Versions are told by lists, and not every server tells them elsewhere in the same words.
        let (storage, retry, key) = (self.storage.clone(), self.retry.clone(), object.key.clone());
        let list = async move { retry.run("cannot list", || storage.list(&key)).await };
        let listed = runtime::wait(&|| outlet.stopping(), list).map_err(|error| error.of_source())?;
        let is_meant = |other: &Object| other.key == object.key && version(other) == meant;
        Ok(listed.map(|listed| !listed.iter().any(is_meant)))
    }
}

/// What tells one version of an object from another.
fn version(object: &Object) -> String {
    match &object.etag {
        Some(etag) => etag.clone(),
        None => format!("{}-{:?}", object.bytes, object.modified),
    }
}

/// What an object is for whoever remembers it.
fn played(progress: &Progress, storage: &dyn Storage, object: &Object, tracks: &Tracks) -> Played {
    progress.played(storage.location(&object.key), format!("{}-{tracks:?}", version(object)))
}

/// Finds objects that were not there before.
struct Finder {
    storage: Arc<dyn Storage>,
    search: Search,
    retry: Retry,
    progress: Option<Progress>,
    /// What was found, and in which version.
    known: BTreeMap<String, String>,
    taken: BTreeSet<StreamId>,
    /// The object of each stream that was found and is still there in that version.
    streams: BTreeMap<StreamId, (String, String)>,
    unread: Unread,
    /// Objects that could not be read for now, by their keys.
    again: BTreeMap<String, Again>,
    /// It has tried to look: before the next time it waits.
    has_tried: bool,
    /// It has seen the prefix once: so it may look there.
    has_looked: bool,
    /// How often in turn it could not look.
    failures: u64,
}

/// An object that could not be read for now.
struct Again {
    stream: StreamId,
    failures: u64,
    /// When it is found again; `None`: it was.
    due: Option<Instant>,
}

impl Finder {
    fn new(storage: Arc<dyn Storage>, search: Search, retry: Retry, progress: Option<Progress>) -> Finder {
        let (known, taken) = (BTreeMap::new(), BTreeSet::new());
        Finder {
            storage,
            search,
            retry,
            progress,
            known,
            taken,
            streams: BTreeMap::new(),
            unread: Unread::default(),
            again: BTreeMap::new(),
            has_tried: false,
            has_looked: false,
            failures: 0,
        }
    }

    /// Looks once; `None`: it was told to stop.
    fn look(&mut self, stop: &dyn Fn() -> bool) -> Result<Option<Vec<FoundStream>>, StorageError> {
        let (storage, retry, prefix) = (self.storage.clone(), self.retry.clone(), self.search.prefix.clone());
        let list = async move { retry.run("cannot list", || storage.list(&prefix)).await };
        let Some(listed) = runtime::wait(stop, list)? else { return Ok(None) };
        let found = self.new_ones(listed).map_err(StateError::of_storage)?;
        self.has_looked = true;
        if std::mem::take(&mut self.failures) > 0 {
            self.retry.trouble.is_over();
            let node = &self.retry.node;
            tracing::info!(%node, "`{node}` looks for new objects again");
        }
        Ok(Some(found))
    }

    /// Whether it looks again after a poll, though it could not this time. What somebody has to change first, such as the
    /// name of the bucket, is told at the start, and then ends it.
    fn goes_on_after(&self, error: &StorageError) -> bool {
        self.search.poll.is_some() && (self.has_looked || error.is_temporary())
    }

    fn tell(&mut self, error: &StorageError) {
        self.failures += 1;
        let (failures, node) = (self.failures, &self.retry.node);
        let hint = error.hint.as_ref().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
        let why = format!("cannot look for new objects and looks again with the next `poll`: {error}{hint}");
        let message = self.retry.trouble.is(&why);
        // A day without a network must not fill the log.
        if failures.is_power_of_two() {
            tracing::warn!(%node, failures, "`{node}` {message}");
        }
    }

    /// What is new in a list of all objects. One in a new version is a new stream. Streams are called as they were before,
    /// where that is remembered, and what is finished is left out.
    fn new_ones(&mut self, listed: Vec<Object>) -> Result<Vec<FoundStream>, StateError> {
        let before = self.progress.as_ref().map_or_else(|| Ok(FoundStreams::default()), Progress::found_streams)?;
        // Taken over when all of it is written down: what fails is new the next time, too.
        let (mut known, mut taken, mut streams) = (self.known.clone(), self.taken.clone(), self.streams.clone());
        taken.extend(before.taken());
        // What is gone may come again.
        let there: BTreeSet<&str> = listed.iter().map(|object| object.key.as_str()).collect();
        known.retain(|key, _| there.contains(key.as_str()));
        self.note_unread();
        let now = self.retry.clock.now();
        let (mut found, mut named) = (Vec::new(), Vec::new());
        for object in listed {
            // What a folder of the console is, and what is not uploaded yet.
            if object.key.ends_with('/') || object.bytes == 0 {
                continue;
            }
            let this = version(&object);
            if known.insert(object.key.clone(), this.clone()).is_some_and(|before| before == this) {
                if let Some(again) = self.again.get_mut(&object.key)
                    && again.due.take_if(|due| *due <= now).is_some()
                {
                    found.push(FoundStream { id: again.stream.clone(), own: self.search.own(&object) });
                }
                continue;
            }
            let what = format!("{this} {}", object.key);
            let id = match before.id(&what) {
                Some(id) => id.clone(),
                None => {
                    let id = unique(Path::new(&object.key), &mut taken);
                    named.push((what, id.clone()));
                    id
                }
            };
            if let Some(progress) = &self.progress
                && let Some(finished) =
                    progress.finished(&id, &played(progress, &*self.storage, &object, &self.search.tracks))?
            {
                tracing::info!(stream = %id, "`{}` {finished}", self.storage.location(&object.key));
                continue;
            }
            streams.insert(id.clone(), (object.key.clone(), this));
            found.push(FoundStream { id, own: self.search.own(&object) });
        }
        if let Some(progress) = &self.progress {
            progress.keep_streams(&before, &named)?;
        }
        streams.retain(|_, (key, version)| known.get(key).is_some_and(|there| there == version));
        let is_there = |again: &Again| streams.contains_key(&again.stream);
        self.again.retain(|_, again| is_there(again));
        (self.known, self.taken, self.streams) = (known, taken, streams);
        Ok(found)
    }

    /// Has the objects found again, some time later, that could not be read for now.
    fn note_unread(&mut self) {
        for stream in self.unread.take() {
            let Some((key, _)) = self.streams.get(&stream) else { continue };
            let again =
                self.again.entry(key.clone()).or_insert(Again { stream: stream.clone(), failures: 0, due: None });
            if again.stream != stream {
                *again = Again { stream, failures: 0, due: None };
            }
            again.failures += 1;
            again.due = Some(self.retry.clock.now() + AGAIN.delay(again.failures));
        }
    }
}

impl Discovery for Finder {
    fn next(&mut self, stop: &dyn Fn() -> bool) -> Result<Option<Vec<FoundStream>>, SourceError> {
        loop {
            if std::mem::replace(&mut self.has_tried, true) {
                let Some(poll) = self.search.poll else { return Ok(None) };
                let clock = self.retry.clock.clone();
                let again = clock.now() + poll;
                while clock.now() < again {
                    if stop() {
                        return Ok(None);
                    }
                    clock.wait(again, Duration::from_millis(50));
                }
            }
            match self.look(stop) {
                Ok(Some(found)) if found.is_empty() => {}
                Ok(found) => return Ok(found),
                Err(error) if self.goes_on_after(&error) => self.tell(&error),
                Err(error) => return Err(error.of_source()),
            }
        }
    }

    fn unread(&self) -> Option<Unread> {
        self.search.poll.map(|_| self.unread.clone())
    }

    fn trouble(&self) -> Option<Trouble> {
        Some(self.retry.trouble.clone())
    }
}

impl Search {
    /// What is to be played of an object that was found. Where a new version of it would be found too, this one alone.
    fn own(&self, object: &Object) -> toml::Value {
        match self.poll {
            None => object.key.clone().into(),
            Some(_) => {
                let fields = [("key", object.key.clone()), ("version", version(object))];
                toml::Value::Table(fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect())
            }
        }
    }
}

/// One version of an object, as something to play.
struct StoredVideo<'a> {
    source: &'a S3Source,
    stream: &'a StreamId,
    /// Says what is wrong with this stream.
    retry: Retry,
    object: Object,
    played: Played,
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
        let (storage, retry): (Arc<dyn Storage>, _) = (self.source.storage.clone(), self.retry.clone());
        let reader = Ranges::new(storage, retry, self.object.clone(), self.stream.clone(), self.failure.clone());
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

    fn played(&self) -> Played {
        self.played.clone()
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
    if config.prefix.is_none() && config.poll.is_some() {
        let error = FieldError::new("poll", "`poll` looks for new objects, and no `prefix` says where");
        mistakes.push(error.hint("add `prefix = \"videos/\"`"));
    }
    if config.poll.is_some_and(|poll| poll.0 < SHORTEST_POLL) {
        mistakes.push(FieldError::new("poll", "each look is a request: once a second is enough").hint("write \"10s\""));
    }
    let search = config.prefix.clone().map(|prefix| Search {
        prefix,
        poll: config.poll.map(|poll| poll.0),
        realtime: config.settings.is_realtime(),
        tracks: SettingsConfig::default()
            .resolve(&config.settings, "tracks")
            .map_or(Tracks::Best, |found| found.tracks),
    });
    let at_once = config.at_once.unwrap_or(AT_ONCE);
    let is_paced = config.settings.is_realtime();
    let names_none = config.streams.as_ref().map_or(!config.presets.is_empty(), toml::Table::is_empty);
    let awaits_streams = names_none && config.key.is_none() && config.prefix.is_none();
    let streams = choose(config, &mut mistakes);
    match storage {
        Some(storage) if mistakes.is_empty() => {
            let progress = context.progress.clone();
            Ok(Built::Source(Arc::new(S3Source {
                storage,
                streams,
                search,
                at_once,
                retry,
                progress,
                awaits_streams,
                is_paced,
            })))
        }
        _ => Err(mistakes),
    }
}

fn retry(context: &BuildContext, retry_for: Duration) -> Retry {
    let clock: Arc<dyn Clock> = context.clock.clone();
    Retry { retry_for, clock, trouble: Trouble::default(), node: context.origin.node.clone(), backoff: BACKOFF }
}

/// The streams of `config`; what is wrong with it goes to `mistakes`.
fn choose(config: Config, mistakes: &mut Vec<FieldError>) -> Vec<ObjectStream> {
    let mut streams = Vec::new();
    let keys = config.key.map(OneOrMany::into_vec).unwrap_or_default();
    for (name, key) in &config.presets {
        mistakes.extend(checked(&format!("presets.{name}"), key).err());
    }
    // Without any, all of them are added while the graph runs.
    let names_none = config.streams.is_some() || !config.presets.is_empty();
    let named_streams = config.streams.unwrap_or_default();
    match (keys.is_empty(), named_streams.is_empty(), config.prefix.is_none()) {
        (true, true, true) if names_none => {}
        (true, true, true) => {
            let error = FieldError::new("", "`s3` needs to know which objects to play");
            let hint =
                "add `key = \"videos/door.mp4\"`, `prefix = \"videos/\"` or `streams.NAME = \"videos/door.mp4\"`";
            mistakes.push(error.hint(hint));
        }
        (false, true, true) | (true, false, true) | (true, true, false) => {}
        _ => {
            let error = FieldError::new("", "more than one of `key`, `prefix` and `streams` say which objects to play");
            mistakes.push(error.hint("keep one of them"));
        }
    }
    // A prefix needs them too, with each object that is found.
    match SettingsConfig::default().resolve(&config.settings, "tracks") {
        Err(mistake) => mistakes.push(mistake),
        Ok(settings) => {
            let mut taken = BTreeSet::new();
            for key in keys {
                match checked("key", &key) {
                    Ok(()) => {
                        let id = unique(Path::new(&key), &mut taken);
                        streams.push(ObjectStream { id, key, version: None, settings: settings.clone() });
                    }
                    Err(mistake) => mistakes.push(mistake),
                }
            }
        }
    }
    for (name, value) in named_streams {
        match named(&config.settings, &config.presets, &name, value) {
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
fn named(
    node: &SettingsConfig,
    presets: &BTreeMap<String, String>,
    name: &str,
    value: toml::Value,
) -> Result<ObjectStream, FieldError> {
    let field = format!("streams.{name}");
    let id = StreamId::new(name).ok_or_else(|| {
        FieldError::new(&field, format!("`{name}` cannot be the name of a stream"))
            .hint("use 1 to 128 of the characters A-Z a-z 0-9 _ . -")
    })?;
    let (key, key_field, version, settings) = match value.try_into() {
        Ok(StreamConfig::Key(key)) => (key, field, None, SettingsConfig::default()),
        Ok(StreamConfig::Table { key: Some(key), preset: None, version, settings }) => {
            (key, format!("{field}.key"), version, settings)
        }
        Ok(StreamConfig::Table { key: None, preset: Some(preset), version, settings }) => {
            let field = format!("{field}.preset");
            (preset_key(presets, &field, &preset)?, field, version, settings)
        }
        Ok(StreamConfig::Table { key: Some(_), preset: Some(_), .. }) => {
            let error = FieldError::new(field, "`key` and `preset` both say which object to play");
            return Err(error.hint("keep one of them"));
        }
        Ok(StreamConfig::Table { key: None, preset: None, .. }) | Err(_) => {
            let hint = format!("write `{field} = \"door.mp4\"` or `{field} = {{ key = \"door.mp4\", loop = true }}`");
            return Err(FieldError::new(field, "a stream is a key, or a table with a `key` or a `preset`").hint(hint));
        }
    };
    checked(&key_field, &key)?;
    let settings = settings.resolve(node, &format!("streams.{name}.tracks"))?;
    Ok(ObjectStream { id, key, version, settings })
}

/// The key that a preset stands for.
fn preset_key(presets: &BTreeMap<String, String>, field: &str, preset: &str) -> Result<String, FieldError> {
    presets.get(preset).cloned().ok_or_else(|| {
        let known: Vec<String> = presets.keys().map(|name| format!("`{name}`")).collect();
        let hint = match known.is_empty() {
            true => "the source has none: add `presets.NAME = \"videos/door.mp4\"` to it".to_owned(),
            false => format!("there is {}", known.join(", ")),
        };
        FieldError::new(field, format!("there is no preset `{}`", preset.escape_debug())).hint(hint)
    })
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
static STREAM_FIELDS: [Field; 8] = [
    Field {
        name: "key",
        value: FieldType::String,
        presence: Presence::Optional,
        summary: "The object of this stream. This or `preset`.",
    },
    Field {
        name: "preset",
        value: FieldType::String,
        presence: Presence::Optional,
        summary: "The name of an object in `presets` of the source.",
    },
    Field {
        name: "version",
        value: FieldType::String,
        presence: Presence::Optional,
        summary: "The ETag of the one version that is meant: where the object is another one by then, the stream ends \
                  without reading it. Left out: whichever is there.",
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
    produces: Produces::Kinds(&[Kind::Frame, Kind::Packet]),
    fields: &[
        Field { name: "bucket", value: FieldType::String, presence: Presence::Required, summary: "The bucket." },
        Field {
            name: "key",
            value: FieldType::OneOrList(&FieldType::String),
            presence: Presence::Optional,
            summary: "An object, or a list of them; each is a stream named after it. This, `prefix` or `streams`.",
        },
        Field {
            name: "prefix",
            value: FieldType::String,
            presence: Presence::Optional,
            summary: "The beginning of keys, such as `videos/`: every object that has it is a stream named after it.",
        },
        Field {
            name: "poll",
            value: FieldType::Duration,
            presence: Presence::Optional,
            summary: "How often to look for new objects under `prefix`; one in a new version is new. Left out: once, \
                      and the source ends with the last of them.",
        },
        Field {
            name: "at_once",
            value: FieldType::Integer { minimum: 1, maximum: 1024 },
            presence: Presence::Default("4"),
            summary: "How many objects of `prefix` are played at once.",
        },
        Field {
            name: "streams",
            value: FieldType::Map(&FieldType::Either(&[FieldType::String, FieldType::Table(&STREAM_FIELDS)])),
            presence: Presence::Optional,
            summary: "Named streams: each a key, or a table with `key` or `preset`, `version` and settings of its own (`loop`, \
                      `realtime`, `tracks`, `skip`, `keyframes_only`). This, `key` or `prefix`; `{}`: all of them \
                      are added while the graph runs.",
        },
        Field {
            name: "presets",
            value: FieldType::Map(&FieldType::String),
            presence: Presence::Optional,
            summary: "Keys of objects by names of your choice, which a stream may name as its `preset`.",
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
    use crate::clock::SimulatedClock;
    use crate::sinks::records::tests::context;
    use crate::storage::error::Cause;

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
    fn an_object_is_found_once_in_each_version() {
        let Ok(Built::Source(source)) = build(
            &context(Path::new(".")),
            toml::from_str("bucket = \"clips\"\nprefix = \"in/\"\npoll = \"10s\"").unwrap(),
        ) else {
            panic!("not a source")
        };
        assert!(source.streams().is_empty() && !source.is_finite() && source.at_once() == 4);
        let storage: Arc<dyn Storage> = Arc::new(crate::storage::folder::Folder::new("x", "x"));
        let search = Search { prefix: "in/".into(), poll: None, realtime: false, tracks: Tracks::Best };
        let retry = retry(&context(Path::new(".")), Duration::ZERO);
        let mut finder = Finder::new(storage, search, retry, None);
        let object = |key: &str, bytes: u64, version: &str| Object {
            key: key.into(),
            bytes,
            etag: Some(version.into()),
            modified: None,
        };
        let mut look = |listed: Vec<Object>| {
            let found = finder.new_ones(listed).unwrap();
            found.into_iter().map(|found| (found.id.to_string(), found.own.to_string())).collect::<Vec<_>>()
        };
        let pair = |id: &str, key: &str| (id.to_owned(), format!("\"{key}\""));
        let first = || vec![object("in/", 0, "0"), object("in/a.mp4", 5, "1"), object("in/b.mp4", 0, "1")];
        assert_eq!(look(first()), [pair("a", "in/a.mp4")]);
        assert_eq!(look(first()), []);
        let mut grown = first();
        grown[2].bytes = 7;
        assert_eq!(look(grown), [pair("b", "in/b.mp4")]);
        assert_eq!(look(vec![object("in/a.mp4", 5, "2")]), [pair("a-2", "in/a.mp4")]);
    }

    /// Answers lists as they were given.
    struct Lists(std::sync::Mutex<std::collections::VecDeque<Result<Vec<Object>, StorageError>>>);

    #[async_trait::async_trait]
    impl Storage for Lists {
        fn location(&self, key: &str) -> String {
            key.to_owned()
        }

        async fn put(&self, _: &str, _: &crate::storage::Body, _: &str) -> Result<(), StorageError> {
            panic!("nothing is stored")
        }

        async fn delete(&self, _: &str) -> Result<(), StorageError> {
            panic!("nothing is removed")
        }

        async fn get(&self, _: &str, _: std::ops::Range<u64>, _: Option<&str>) -> Result<bytes::Bytes, StorageError> {
            panic!("nothing is read")
        }

        async fn head(&self, _: &str) -> Result<Object, StorageError> {
            panic!("nothing is looked at")
        }

        async fn list(&self, _: &str) -> Result<Vec<Object>, StorageError> {
            self.0.lock().unwrap().pop_front().unwrap()
        }
    }

    #[test]
    fn who_polls_looks_again_after_every_failure() {
        let object = |key: &str| Object { key: key.into(), bytes: 5, etag: Some("1".into()), modified: None };
        let failed = |cause: Cause| Err(StorageError::new(cause, "no route").hint("check the network"));
        let clock = SimulatedClock::default();
        let finder = |poll: bool, lists: Vec<Result<Vec<Object>, StorageError>>| {
            let poll = poll.then_some(Duration::from_secs(10));
            let search = Search { prefix: "in/".into(), poll, realtime: false, tracks: Tracks::Best };
            let retry = retry(&context(Path::new(".")), Duration::ZERO);
            let retry = Retry { trouble: Trouble::default(), clock: Arc::new(clock.clone()), ..retry };
            Finder::new(Arc::new(Lists(std::sync::Mutex::new(lists.into()))), search, retry, None)
        };
        let ids = |found: Option<Vec<FoundStream>>| -> Vec<String> {
            found.unwrap().iter().map(|found| found.id.to_string()).collect()
        };
        let lists = vec![
            failed(Cause::Temporary),
            Ok(vec![object("a.mp4")]),
            failed(Cause::Temporary),
            failed(Cause::Final),
            Ok(vec![object("a.mp4"), object("b.mp4")]),
        ];
        let mut polls = finder(true, lists);
        let trouble = polls.trouble().unwrap();
        let told = std::cell::RefCell::new(BTreeSet::new());
        let stop = || {
            told.borrow_mut().extend(trouble.now());
            clock.advance(Duration::from_secs(10));
            false
        };
        assert_eq!(ids(polls.next(&stop).unwrap()), ["a"]);
        assert_eq!(ids(polls.next(&stop).unwrap()), ["b"]);
        let said = told.take().into_iter().collect::<Vec<_>>().join("\n");
        assert!(said.contains("no route; hint: check the network"), "{said}");
        assert_eq!(trouble.now(), None, "it is over");

        // What has no second look ends, and so does what somebody has to change before there was a first one.
        for mut ends in [finder(false, vec![failed(Cause::Temporary)]), finder(true, vec![failed(Cause::Final)])] {
            let error = ends.next(&|| false).err().unwrap();
            assert!(error.to_string().contains("no route"), "{error}");
        }
    }

    #[test]
    fn what_could_not_be_read_for_now_is_found_again_under_its_name() {
        let clock = SimulatedClock::default();
        let storage: Arc<dyn Storage> = Arc::new(crate::storage::folder::Folder::new("x", "x"));
        let poll = Some(Duration::from_secs(1));
        let search = Search { prefix: "in/".into(), poll, realtime: false, tracks: Tracks::Best };
        let retry = retry(&context(Path::new(".")), Duration::ZERO);
        let retry = Retry { clock: Arc::new(clock.clone()), ..retry };
        let mut finder = Finder::new(storage, search, retry, None);
        let unread = finder.unread().unwrap();
        let object =
            |key: &str, version: &str| Object { key: key.into(), bytes: 5, etag: Some(version.into()), modified: None };
        let there = || vec![object("in/a.mp4", "1"), object("in/b.mp4", "1")];
        let mut look = |listed: Vec<Object>| -> Vec<(String, String)> {
            let found = finder.new_ones(listed).unwrap();
            found.iter().map(|found| (found.id.to_string(), found.own["version"].to_string())).collect()
        };
        let pair = |id: &str, version: &str| (id.to_owned(), format!("\"{version}\""));
        assert_eq!(look(there()), [pair("a", "1"), pair("b", "1")]);
        for longest in [5, 10, 20] {
            unread.tell(StreamId::new("b").unwrap());
            unread.tell(StreamId::new("nobody").unwrap());
            assert_eq!(look(there()), [], "not at once");
            clock.advance(Duration::from_secs(longest) / 2 - Duration::from_millis(1));
            assert_eq!(look(there()), [], "each time it waits longer");
            clock.advance(Duration::from_secs(longest));
            assert_eq!(look(there()), [pair("b", "1")]);
            assert_eq!(look(there()), [], "once");
        }
        // What takes its place is a stream of its own, and the one before is not found again.
        unread.tell(StreamId::new("b").unwrap());
        let replaced = || vec![object("in/a.mp4", "1"), object("in/b.mp4", "2")];
        assert_eq!(look(replaced()), [pair("b-2", "2")]);
        clock.advance(Duration::from_secs(3600));
        assert_eq!(look(replaced()), []);
        unread.tell(StreamId::new("b").unwrap());
        assert_eq!(look(replaced()), []);
        clock.advance(Duration::from_secs(3600));
        assert_eq!(look(replaced()), []);
    }

    #[test]
    fn a_stream_may_be_one_of_the_presets() {
        let presets = "bucket = \"clips\"\npresets.Textile = \"videos/textile.mp4\"\npresets.Yard = \"yard.mp4\"\n";
        assert_eq!(built(presets), Ok(Vec::new()), "all of them are added later");
        assert_eq!(built("bucket = \"clips\"\nstreams = {}"), Ok(Vec::new()));
        let one = built(&format!("{presets}streams.a = {{ preset = \"Textile\" }}")).unwrap();
        assert_eq!(one, [("a".to_owned(), "s3://clips/videos/textile.mp4".to_owned())]);
        let table = format!("{presets}streams.a = {{ preset = \"Textil\" }}");
        let errors = build(&context(Path::new(".")), toml::from_str(&table).unwrap()).err().unwrap();
        assert_eq!((&*errors[0].field, &*errors[0].message), ("streams.a.preset", "there is no preset `Textil`"));
        assert_eq!(errors[0].hint.as_deref(), Some("there is `Textile`, `Yard`"));
        assert_eq!(
            built(&format!("{presets}streams.a = {{ preset = \"Yard\", key = \"b\" }}")).unwrap_err(),
            ["streams.a"]
        );
        assert_eq!(built("bucket = \"clips\"\npresets.x = \"in/\"").unwrap_err(), ["presets.x"]);
    }

    #[test]
    fn mistakes_are_named_with_their_fields() {
        let wrong = |table: &str| built(table).unwrap_err();
        assert_eq!(wrong("bucket = \"clips\""), [""]);
        assert_eq!(wrong("bucket = \"\"\nkey = \"a/\""), ["bucket", "key"]);
        assert_eq!(wrong("bucket = \"clips\"\nkey = \"s3://clips/a.mp4\""), ["key"]);
        assert_eq!(wrong("bucket = \"clips\"\nkey = \"a.mp4\"\nstreams.b = \"b.mp4\""), [""]);
        assert_eq!(wrong("bucket = \"clips\"\nkey = \"a.mp4\"\npoll = \"10ms\""), ["poll", "poll"]);
        assert_eq!(wrong("bucket = \"clips\"\nstreams.b = 3"), ["streams.b"]);
        let paced = "bucket = \"clips\"\nstreams.a = { key = \"a\", realtime = true }\nstreams.b = \"b\"";
        assert_eq!(wrong(paced), ["streams"]);
    }
}
