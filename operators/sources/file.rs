//! `file`: decodes video files, as fast as consumers take the pictures or paced by their timestamps.
//!
//! Owns the configuration and the choice of files; [`super::playback`] plays one.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use serde::Deserialize;

use crate::config::{self, Field, FieldType, OneOrMany, Presence};
use crate::error::{FieldError, SourceError};
use crate::item::{EndReason, Kind, Played, StreamId};
use crate::media::demux::{Demuxer, Tracks};
use crate::media::picture;
use crate::operator::{
    BuildContext, Built, Execution, ItemSize, Outlet, Produces, Registration, Role, Source, StreamSpec,
};
use crate::progress::{Progress, StateError};

use super::playback::{self, Settings};
use super::track::dormant;

/// More frame threads than this only cost memory.
pub(super) const MOST_DECODER_THREADS: usize = 16;

#[derive(Deserialize)]
struct Config {
    path: Option<OneOrMany<String>>,
    streams: Option<toml::Table>,
    resume: Option<bool>,
    #[serde(flatten)]
    settings: SettingsConfig,
}

/// What a node says for all its streams, and a stream for itself.
#[derive(Clone, Default, Deserialize)]
pub(super) struct SettingsConfig {
    #[serde(rename = "loop")]
    repeat: Option<bool>,
    realtime: Option<bool>,
    tracks: Option<TracksConfig>,
    skip: Option<bool>,
    keyframes_only: Option<bool>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum TracksConfig {
    Word(String),
    Indices(Vec<usize>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum StreamConfig {
    Path(String),
    Table {
        path: String,
        resume: Option<bool>,
        #[serde(flatten)]
        settings: SettingsConfig,
    },
}

impl SettingsConfig {
    /// Whether it asks for pictures when they are due.
    pub(super) fn is_realtime(&self) -> bool {
        self.realtime.unwrap_or(false)
    }

    /// These settings, with those of the node where they say nothing.
    pub(super) fn resolve(&self, node: &SettingsConfig, field: &str) -> Result<Settings, FieldError> {
        let tracks = match self.tracks.as_ref().or(node.tracks.as_ref()) {
            None => Tracks::Best,
            Some(TracksConfig::Word(word)) if word == "best" => Tracks::Best,
            Some(TracksConfig::Word(word)) => {
                let error = FieldError::new(field, format!("`{word}` is no choice of tracks"));
                return Err(error.hint("write `tracks = \"best\"`, or a list of indices such as `tracks = [0, 1]`"));
            }
            Some(TracksConfig::Indices(indices)) if indices.is_empty() => {
                return Err(FieldError::new(field, "an empty list chooses no track").hint("write `tracks = \"best\"`"));
            }
            Some(TracksConfig::Indices(indices)) => Tracks::Indices(indices.clone()),
        };
        Ok(Settings {
            tracks,
            repeat: self.repeat.or(node.repeat).unwrap_or(false),
            realtime: self.realtime.or(node.realtime).unwrap_or(false),
            skip: self.skip.or(node.skip).unwrap_or(true),
            keyframes_only: self.keyframes_only.or(node.keyframes_only).unwrap_or(false),
        })
    }
}

#[derive(Debug)]
struct FileStream {
    id: StreamId,
    path: PathBuf,
    settings: Settings,
    /// Whether it goes on over a restart where it was.
    resume: bool,
}

struct FileSource {
    streams: Vec<FileStream>,
    /// Streams that are added play in real time.
    is_paced: bool,
    progress: Option<Progress>,
    size: OnceLock<ItemSize>,
}

impl Source for FileSource {
    fn streams(&self) -> Vec<StreamSpec> {
        let spec =
            |stream: &FileStream| StreamSpec { id: stream.id.clone(), location: stream.path.display().to_string() };
        self.streams.iter().map(spec).collect()
    }

    fn reads(&self) -> Vec<PathBuf> {
        self.streams.iter().map(|stream| stream.path.clone()).collect()
    }

    fn is_live(&self) -> bool {
        let paced = |stream: &FileStream| stream.settings.realtime;
        if self.streams.is_empty() { self.is_paced } else { self.streams.iter().any(paced) }
    }

    fn awaits_streams(&self) -> bool {
        self.streams.is_empty()
    }

    fn is_finite(&self) -> bool {
        self.streams.iter().all(|stream| !stream.settings.repeat)
    }

    fn repeats(&self) -> bool {
        self.streams.iter().any(|stream| stream.settings.repeat)
    }

    /// Looks into every file, once. One that cannot be opened says so when it is played.
    fn frame_size(&self) -> ItemSize {
        *self.size.get_or_init(|| {
            let probe = |stream: &FileStream| {
                let demuxer = Demuxer::open(&stream.path, &stream.settings.tracks, &|| false).ok()?;
                let stored = picture::expected_bytes(&demuxer.parameters())?;
                // Turned by a quarter, a picture whose chroma is halved in one direction has more of it.
                Some(if demuxer.orientation().is_sideways() { stored / 2 * 3 } else { stored })
            };
            self.streams.iter().filter_map(probe).max().map_or(ItemSize::Unknown, ItemSize::Declared)
        })
    }

    fn stream_memory(&self) -> u64 {
        let holds_back = |settings: &Settings| settings.skip && !settings.keyframes_only && !settings.realtime;
        let any = self.streams.iter().any(|stream| holds_back(&stream.settings));
        if any { dormant::MOST_BYTES } else { 0 }
    }

    fn decoder_threads(&self, cores: usize, running: usize) -> usize {
        if self.is_live() || self.streams.iter().all(|stream| stream.settings.keyframes_only) {
            // Each further thread would delay by a picture; and keyframes alone are decoded one by one.
            return 1;
        }
        (2 * cores / running.max(1)).clamp(1, MOST_DECODER_THREADS)
    }

    fn run(&self, stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
        let known = self.streams.iter().find(|known| known.id == *stream);
        let known = known.ok_or_else(|| SourceError::input(format!("this source has no stream `{stream}`")))?;
        let Some(progress) = self.progress.as_ref().filter(|_| known.resume) else {
            return playback::play(&known.path, &known.settings, outlet);
        };
        let played = version(progress, known)?;
        if let Some(finished) = progress.finished(stream, &played).map_err(StateError::of_source)? {
            tracing::info!(%stream, "`{}` {finished}", known.path.display());
            return Ok(EndReason::Eof);
        }
        playback::play_as(&known.path, played, &known.settings, outlet)
    }
}

/// What a file is: itself, as long as nobody writes it.
fn version(progress: &Progress, stream: &FileStream) -> Result<Played, SourceError> {
    let (path, tracks) = (&stream.path, &stream.settings.tracks);
    let unknown = |error: std::io::Error| {
        let message = format!("`{}` cannot be opened: {error}", path.display());
        SourceError::input_with_hint(message, "check the path and the permissions")
    };
    let whole = path.canonicalize().map_err(unknown)?;
    let data = std::fs::metadata(path).map_err(unknown)?;
    let changed = data.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let version = format!("{}-{:?}-{tracks:?}", data.len(), changed.unwrap_or_default());
    Ok(progress.played(whole.display().to_string(), version))
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let is_paced = config.settings.is_realtime();
    let streams = choose(&context.folder, config)?;
    let progress = context.progress.clone();
    if let Some(stream) = streams.iter().find(|stream| stream.resume) {
        let field = if streams.len() == 1 { "resume".to_owned() } else { format!("streams.{}", stream.id) };
        if progress.is_none() {
            let error = FieldError::new("resume", "`resume` needs to know where progress is kept");
            return Err(vec![error.hint("add `[state]` with `dir = \"state\"` to the graph")]);
        }
        if streams.iter().any(|stream| stream.resume && stream.settings.repeat) {
            let error = FieldError::new(field, "a file that is played again and again has no end to resume towards");
            return Err(vec![error.hint("remove `resume` or `loop`; indices of chunks go on in any case")]);
        }
    }
    Ok(Built::Source(Arc::new(FileSource { streams, is_paced, progress, size: OnceLock::new() })))
}

/// The streams of `config`, or every mistake in it. Relative paths are relative to `folder`.
fn choose(folder: &Path, config: Config) -> Result<Vec<FileStream>, Vec<FieldError>> {
    let mut streams: Vec<FileStream> = Vec::new();
    let mut mistakes = Vec::new();
    let paths = match (config.path, config.streams.is_none()) {
        // All of them are added while the graph runs.
        (None, false) if config.streams.as_ref().is_some_and(toml::Table::is_empty) => return Ok(Vec::new()),
        (None, true) => {
            let error = FieldError::new("", "`file` needs to know which files to play");
            return Err(vec![error.hint("add `path = \"video.mp4\"` or `streams.NAME = \"video.mp4\"`")]);
        }
        (Some(_), false) => {
            let error = FieldError::new("streams", "`path` and `streams` both say which files to play");
            return Err(vec![error.hint("keep one of them")]);
        }
        (paths, _) => paths.map(OneOrMany::into_vec).unwrap_or_default(),
    };
    let (node, resume) = (&config.settings, config.resume.unwrap_or(false));
    match SettingsConfig::default().resolve(node, "tracks") {
        Err(mistake) => mistakes.push(mistake),
        Ok(settings) => {
            let mut taken = BTreeSet::new();
            for text in &paths {
                match expand(folder, "path", text) {
                    Ok(files) => streams.extend(files.into_iter().map(|path| FileStream {
                        id: unique(&path, &mut taken),
                        path,
                        settings: settings.clone(),
                        resume,
                    })),
                    Err(mistake) => mistakes.push(mistake),
                }
            }
        }
    }
    for (name, value) in config.streams.unwrap_or_default() {
        match named(folder, node, resume, &name, value) {
            Ok(stream) => streams.push(stream),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    // Whether streams drop or wait is decided for the whole source, so paced streams would make the others drop.
    if let Some(paced) = streams.iter().find(|stream| stream.settings.realtime)
        && let Some(other) = streams.iter().find(|stream| !stream.settings.realtime)
    {
        let message = format!("stream `{}` is paced and stream `{}` is not, in one source", paced.id, other.id);
        mistakes
            .push(FieldError::new("streams", message).hint(
                "write two sources, one with `realtime = true` and one without; nodes may take both as `inputs`",
            ));
    }
    if mistakes.is_empty() && streams.is_empty() {
        mistakes.push(FieldError::new("path", "an empty list names no file").hint("name at least one file"));
    }
    if mistakes.is_empty() { Ok(streams) } else { Err(mistakes) }
}

/// One entry of `streams`.
fn named(
    folder: &Path,
    node: &SettingsConfig,
    resume: bool,
    name: &str,
    value: toml::Value,
) -> Result<FileStream, FieldError> {
    let field = format!("streams.{name}");
    let id = StreamId::new(name).ok_or_else(|| {
        FieldError::new(&field, format!("`{name}` cannot be the name of a stream"))
            .hint("use 1 to 128 of the characters A-Z a-z 0-9 _ . -")
    })?;
    let (path, field, own, settings) = match value.try_into() {
        Ok(StreamConfig::Path(path)) => (path, field, None, SettingsConfig::default()),
        Ok(StreamConfig::Table { path, resume, settings }) => (path, format!("{field}.path"), resume, settings),
        Err(_) => {
            let hint =
                format!("write `{field} = \"video.mp4\"` or `{field} = {{ path = \"video.mp4\", loop = true }}`");
            return Err(FieldError::new(field, "a stream is a path, or a table with a `path`").hint(hint));
        }
    };
    let path = folder.join(path);
    check(&path, &field)?;
    let settings = settings.resolve(node, &format!("streams.{name}.tracks"))?;
    Ok(FileStream { id, path, settings, resume: own.unwrap_or(resume) })
}

/// The files that `text` names: itself, or what matches it as a glob, sorted.
fn expand(folder: &Path, field: &str, text: &str) -> Result<Vec<PathBuf>, FieldError> {
    let path = folder.join(text);
    let is_glob = text.contains(['*', '?', '[']);
    // A file whose name looks like a glob is meant itself.
    if !is_glob || path.exists() {
        check(&path, field)?;
        return Ok(vec![path]);
    }
    // What stands before the pattern is a plain path, whatever characters it has.
    let pattern = format!("{}/{text}", glob::Pattern::escape(&folder.to_string_lossy()));
    let pattern = if Path::new(text).is_absolute() || folder.as_os_str().is_empty() { text } else { &pattern };
    let matches = glob::glob(pattern).map_err(|error| {
        FieldError::new(field, format!("`{text}` is not a valid glob: {error}"))
            .hint("write it like \"videos/*.mp4\"; ** stands for any folders")
    })?;
    let files: Vec<PathBuf> = matches.filter_map(Result::ok).filter(|path| path.is_file()).collect();
    if files.is_empty() {
        let error = FieldError::new(field, format!("no file matches `{text}`"));
        return Err(error.hint(format!("it is looked for in `{}`; check folder and ending", folder.display())));
    }
    files.iter().try_for_each(|file| check(file, field))?;
    Ok(files)
}

/// Whether `path` is a file that can be read.
fn check(path: &Path, field: &str) -> Result<(), FieldError> {
    let name = path.display();
    if path.to_str().is_none() {
        return Err(FieldError::new(field, format!("the path `{name}` is not valid UTF-8")).hint("rename the file"));
    }
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let hint = match nearest(path) {
                Some(similar) => format!("did you mean `{similar}`?"),
                None => "relative paths start at the working directory of the process".to_owned(),
            };
            return Err(FieldError::new(field, format!("there is no file `{name}`")).hint(hint));
        }
        Err(error) => {
            let error = FieldError::new(field, format!("`{name}` cannot be opened: {error}"));
            return Err(error.hint("check the path and its permissions"));
        }
        Ok(data) if data.is_dir() => {
            let error = FieldError::new(field, format!("`{name}` is a folder"));
            return Err(error.hint(format!("for all its files write \"{}/*\"", name.to_string().trim_end_matches('/'))));
        }
        Ok(data) if !data.is_file() => {
            let error = FieldError::new(field, format!("`{name}` is not a regular file"));
            return Err(error.hint("pipes and devices cannot be played: name a file"));
        }
        Ok(_) => {}
    }
    File::open(path).map(drop).map_err(|error| {
        FieldError::new(field, format!("`{name}` cannot be opened: {error}")).hint("check its permissions")
    })
}

/// The name in the same folder that differs only in case or ending.
fn nearest(path: &Path) -> Option<String> {
    let stem = path.file_stem()?.to_str()?.to_lowercase();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut similar: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        // A link that leads nowhere is there and still missing.
        .filter(|other| other.is_file())
        .filter(|other| other.file_stem().is_some_and(|other| other.to_string_lossy().to_lowercase() == stem))
        .collect();
    similar.sort();
    Some(similar.first()?.display().to_string())
}

/// The id of a file without a name of its own: its stem; further files of the same stem get `-2`, `-3`.
pub(super) fn unique(path: &Path, taken: &mut BTreeSet<StreamId>) -> StreamId {
    let stem = StreamId::sanitised(&path.file_stem().unwrap_or_default().to_string_lossy());
    let mut id = stem.clone();
    let mut number = 1u64;
    while !taken.insert(id.clone()) {
        number += 1;
        let suffix = format!("-{number}");
        let kept: String = stem.chars().take(128 - suffix.len()).collect();
        id = StreamId::sanitised(&format!("{kept}{suffix}"));
    }
    id
}

pub(super) const LOOP: Field = Field {
    name: "loop",
    value: FieldType::Boolean,
    presence: Presence::Default("false"),
    summary: "Start again at the end of the file; time and numbers go on.",
};

pub(super) const REALTIME: Field = Field {
    name: "realtime",
    value: FieldType::Boolean,
    presence: Presence::Default("false"),
    summary: "Emit each picture when it is due, as a camera would. The same for all streams of a source.",
};

pub(super) const TRACKS: Field = Field {
    name: "tracks",
    value: FieldType::Either(&[
        FieldType::Choice(&["best"]),
        FieldType::List(&FieldType::Integer { minimum: 0, maximum: 65_535 }),
    ]),
    presence: Presence::Default("\"best\""),
    summary: "The best video and audio track, or a list of track indices; the first video track among them is decoded.",
};

pub(super) const SKIP: Field = Field {
    name: "skip",
    value: FieldType::Boolean,
    presence: Presence::Default("true"),
    summary: "Leave undecoded what nobody asked for, where that changes no other picture of an undamaged stream.",
};

pub(super) const KEYFRAMES_ONLY: Field = Field {
    name: "keyframes_only",
    value: FieldType::Boolean,
    presence: Presence::Default("false"),
    summary: "Decode keyframes alone and pass no other picture on; `seq` counts the others too.",
};

const RESUME: Field = Field {
    name: "resume",
    value: FieldType::Boolean,
    presence: Presence::Default("false"),
    summary: "After a restart, skip what was stored before, and a file that was finished. Needs the table `[state]`.",
};

/// The table of one stream. What it leaves out, its node says.
static STREAM_FIELDS: [Field; 7] = [
    Field {
        name: "path",
        value: FieldType::InputPath,
        presence: Presence::Required,
        summary: "The file of this stream.",
    },
    LOOP.of_one_stream(),
    REALTIME.of_one_stream(),
    TRACKS.of_one_stream(),
    SKIP.of_one_stream(),
    KEYFRAMES_ONLY.of_one_stream(),
    RESUME.of_one_stream(),
];

pub static REGISTRATION: Registration = Registration {
    name: "file",
    role: Role::Source,
    summary: "Decodes video files, as fast as they are consumed or paced by their timestamps.",
    execution: Execution::Thread,
    accepts: &[],
    produces: Produces::Kinds(&[Kind::Frame, Kind::Packet]),
    fields: &[
        Field {
            name: "path",
            value: FieldType::OneOrList(&FieldType::InputPath),
            presence: Presence::Optional,
            summary: "A file, a glob, or a list of them; each file is a stream named after it. This or `streams`.",
        },
        Field {
            name: "streams",
            value: FieldType::Map(&FieldType::Either(&[FieldType::InputPath, FieldType::Table(&STREAM_FIELDS)])),
            presence: Presence::Optional,
            summary: "Named streams: each a path, or a table with `path` and settings of its own (`loop`, \
                      `realtime`, `tracks`, `skip`, `keyframes_only`, `resume`). This or `path`; `{}`: all of \
                      them are added while the graph runs.",
        },
        LOOP,
        REALTIME,
        TRACKS,
        SKIP,
        KEYFRAMES_ONLY,
        RESUME,
    ],
    example: "[sources.clips]\ntype = \"file\"\npath = \"videos/*.mp4\"\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("night")).unwrap();
        for name in ["b.mp4", "a.mp4", "a.mkv", "night/a.mp4", "odd name!.ts"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        folder
    }

    fn chosen(folder: &Path, text: &str) -> Result<Vec<FileStream>, Vec<FieldError>> {
        choose(folder, config::read(toml::from_str(text).unwrap())?)
    }

    fn ids(folder: &Path, text: &str) -> Vec<String> {
        chosen(folder, text).unwrap().iter().map(|stream| stream.id.to_string()).collect()
    }

    /// Field, message and hint of the only mistake.
    fn mistake(folder: &Path, text: &str) -> (String, String, String) {
        let mistakes = chosen(folder, text).unwrap_err();
        let [mistake] = &mistakes[..] else { panic!("{mistakes:?}") };
        (mistake.field.clone(), mistake.message.clone(), mistake.hint.clone().unwrap())
    }

    #[test]
    fn streams_are_named_after_their_files() {
        let folder = folder();
        assert_eq!(ids(folder.path(), "path = 'b.mp4'"), ["b"]);
        assert_eq!(ids(folder.path(), "path = '*.mp4'"), ["a", "b"]);
        assert_eq!(ids(folder.path(), "path = ['b.mp4', '**/a.m*']"), ["b", "a", "a-2", "a-3"]);
        assert_eq!(ids(folder.path(), "path = 'odd name!.ts'"), ["odd_name_"]);
        let absolute = format!("path = '{}/night/*'", folder.path().display());
        assert_eq!(ids(Path::new("/"), &absolute), ["a"]);
    }

    #[test]
    fn a_stream_may_have_settings_of_its_own() {
        let folder = folder();
        let text = "loop = true\nstreams.day = 'a.mp4'\n\
                    streams.night = { path = 'night/a.mp4', loop = false, tracks = [2], keyframes_only = true }";
        let streams = chosen(folder.path(), text).unwrap();
        assert_eq!(
            (&*streams[0].id, streams[0].settings.repeat, &streams[0].settings.tracks),
            ("day", true, &Tracks::Best)
        );
        let night = &streams[1].settings;
        assert_eq!((&*streams[1].id, night.repeat, &night.tracks), ("night", false, &Tracks::Indices(vec![2])));
        assert!(night.skip && !night.realtime && night.keyframes_only && !streams[0].settings.keyframes_only);
    }

    #[test]
    fn every_mistake_names_its_field_and_a_way_out() {
        let folder = folder();
        let root = folder.path();
        let (field, message, hint) = mistake(root, "path = 'a.mov'");
        assert_eq!(field, "path");
        assert!(message.contains("no file") && hint.contains("a.mkv"), "{message}: {hint}");
        let (_, message, hint) = mistake(root, "path = 'night'");
        assert!(message.contains("is a folder") && hint.contains("night/*"), "{message}: {hint}");
        let (_, message, _) = mistake(root, "path = 'c*.mp4'");
        assert!(message.contains("no file matches `c*.mp4`"), "{message}");
        let (_, message, _) = mistake(root, "path = 'a***b'");
        assert!(message.contains("not a valid glob"), "{message}");
        let (field, _, _) = mistake(root, "streams.door = { path = 'gone.mp4' }");
        assert_eq!(field, "streams.door.path");
        let (field, _, hint) = mistake(root, "streams.door = 7");
        assert_eq!(field, "streams.door");
        assert!(hint.contains("streams.door = "), "{hint}");
        let (field, _, _) = mistake(root, "path = 'a.mp4'\ntracks = 'all'");
        assert_eq!(field, "tracks");
        let (field, _, _) = mistake(root, "path = 'a.mp4'\nstreams.b = 'b.mp4'");
        assert_eq!(field, "streams");
        let (field, message, hint) =
            mistake(root, "streams.door = { path = 'a.mp4', realtime = true }\nstreams.yard = 'b.mp4'");
        assert_eq!(field, "streams");
        assert!(message.contains("`door`") && message.contains("`yard`"), "{message}");
        assert!(hint.contains("two sources"), "{hint}");
        mistake(root, "");
        mistake(root, "path = []");
        let (_, message, _) = mistake(root, "path = \"a\\u0000b.mp4\"");
        assert!(message.contains("cannot be opened"), "{message}");
        assert_eq!(chosen(root, "path = ['x', 'y', 'a.mp4']").unwrap_err().len(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_without_permission_is_a_mistake() {
        use std::os::unix::fs::PermissionsExt;
        let folder = folder();
        let path = folder.path().join("a.mp4");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
        if File::open(&path).is_ok() {
            eprintln!("skipped: this user may read every file");
            return;
        }
        let (field, message, hint) = mistake(folder.path(), "path = 'a.mp4'");
        assert_eq!(field, "path");
        assert!(message.contains("cannot be opened") && hint.contains("permissions"), "{message}: {hint}");
    }

    #[test]
    fn threads_are_shared_and_pacing_takes_one() {
        let folder = folder();
        let source = |text: &str| {
            let streams = chosen(folder.path(), text).unwrap();
            FileSource { streams, is_paced: false, progress: None, size: OnceLock::new() }
        };
        let fast = source("path = 'a.mp4'");
        assert_eq!([1, 2, 8].map(|running| fast.decoder_threads(2, running)), [4, 2, 1]);
        assert!(!fast.is_live() && fast.is_finite());
        assert_eq!(fast.stream_memory(), dormant::MOST_BYTES);
        for nothing in ["realtime = true", "skip = false", "keyframes_only = true"] {
            assert_eq!(source(&format!("path = 'a.mp4'\n{nothing}")).stream_memory(), 0, "{nothing}");
        }
        assert_eq!(source("path = 'a.mp4'\nkeyframes_only = true").decoder_threads(8, 1), 1);
        let paced = source("path = 'a.mp4'\nrealtime = true\nloop = true");
        assert_eq!(paced.decoder_threads(8, 1), 1);
        assert!(paced.is_live() && !paced.is_finite());
        assert_eq!(fast.frame_size(), ItemSize::Unknown, "the file is no video");
    }
}
