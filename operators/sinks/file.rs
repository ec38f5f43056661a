//! `file`: records as JSON lines, one object a line (`docs/records.md`); or, where its path has placeholders, each segment
//! and each frame as a file of its own ([`super::segments`]).
//!
//! The file of records is truncated when the graph starts, and missing folders on its path are made. A batch is one write, and it
//! is on its way to the disk (handed to the operating system, not synced) before it counts as delivered. A batch that
//! fails leaves no torn line behind: a regular file is cut back to the last whole batch before the next one.
//!
//! In a graph with `[state]` what is in the file stays, and new lines come behind it: an input that is finished is not read
//! again, and its records would be gone. One that was cut short is read from its beginning, so some of its records may be
//! there twice, with the same `id`.
//!
//! It owns the path; two sinks that name one file are a mistake in the graph. Terminals, pipes and devices have no
//! single owner.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tokio::io::{AsyncSeekExt, AsyncWriteExt, SeekFrom};

use crate::config::{self, Field, FieldType, Presence};
use crate::error::{FieldError, SinkError, StartError};
use crate::item::{Event, Kind};
use crate::operator::{BuildContext, Built, Execution, Produces, Registration, Resource, Role, Sink, SinkWriter};
use crate::sinks::joined::{ANNOTATE_FIELD, Annotation, WINDOW_FIELD};
use crate::sinks::records::Records;
use crate::sinks::s3::QUALITY;
use crate::sinks::segments::SegmentFiles;
use crate::storage::IfExists;
use crate::storage::retry::DEFAULT_RETRY_FOR;
use crate::template::{Placeholder, Template};

#[derive(Deserialize)]
struct Config {
    path: String,
    if_exists: Option<IfExists>,
    retry_for: Option<config::Duration>,
    quality: Option<u8>,
    #[serde(flatten)]
    annotation: Annotation,
}

/// What `-` means.
const STANDARD_OUTPUT: &str = "-";

#[derive(Clone)]
enum Target {
    StandardOutput,
    /// As it was written (for messages), and where it is.
    Path {
        written: String,
        absolute: PathBuf,
    },
}

struct FileSink {
    target: Target,
    records: Records,
    /// Whether what an earlier run has written stays.
    goes_on: bool,
}

impl Sink for FileSink {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        let (name, file) = match &self.target {
            // A copy of the descriptor: writes then go past the line buffer of the standard library.
            Target::StandardOutput => {
                let copy = io::stdout().as_fd().try_clone_to_owned();
                let file = copy.map(fs::File::from).map_err(|error| {
                    StartError::new(format!("cannot write to the standard output: {}", reason(&error)))
                        .hint("it is closed: start the engine with an open standard output, or give `path` a file")
                })?;
                ("the standard output".to_owned(), file)
            }
            Target::Path { written, absolute } if self.goes_on && absolute.is_file() => {
                (format!("`{written}`"), reopen(written, absolute)?)
            }
            Target::Path { written, absolute } => (format!("`{written}`"), create(written, absolute)?),
        };
        let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        // A standard output that was redirected to a file begins where the shell left it.
        let accepted = if regular { io::Seek::stream_position(&mut &file).unwrap_or(0) } else { 0 };
        Ok(Box::new(FileWriter {
            name,
            records: self.records.clone(),
            file: tokio::fs::File::from_std(file),
            regular,
            accepted,
            torn: false,
            buffer: Vec::new(),
        }))
    }

    fn refuses(&self, kind: Kind) -> Option<(String, String)> {
        let message = format!("a file of records has no place for {}", kind.plural());
        let hint = match kind {
            Kind::Frame => "for pictures write a path such as \"{stream}/{seq:09}.jpg\"",
            _ => "for files of their own write a path such as \"{stream}_chunk_{index:04}.mp4\"",
        };
        // A segment is told of by a record.
        (!matches!(kind, Kind::Record | Kind::Segment)).then(|| (message, hint.to_owned()))
    }

    fn resources(&self) -> Vec<Resource> {
        match &self.target {
            Target::Path { absolute, .. } if fs::metadata(absolute).map_or(true, |found| found.is_file()) => {
                vec![Resource::Path(identity(absolute))]
            }
            Target::Path { .. } | Target::StandardOutput => Vec::new(),
        }
    }

    fn writes_to_standard_output(&self) -> bool {
        const NAMES: [&str; 3] = ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];
        match &self.target {
            Target::StandardOutput => true,
            Target::Path { absolute, .. } => NAMES.iter().any(|name| absolute == Path::new(name)),
        }
    }
}

/// The path under which two spellings of one file are equal. What does not exist yet will be plain folders, made at
/// start, so `..` behind them leads back to where they are made.
pub(super) fn identity(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut whole = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                whole.pop();
            }
            part => whole.push(part),
        }
        // Each folder before the next `..`: that of a link is where the link leads.
        if let Ok(there) = whole.canonicalize() {
            whole = there;
        }
    }
    whole
}

/// Makes the folders on the way to `path`, which was `written` in the graph.
fn make_folder(written: &str, path: &Path) -> Result<(), StartError> {
    let Some(Err(error)) = path.parent().map(fs::create_dir_all) else { return Ok(()) };
    let message = format!("cannot make the folder of `{written}`: {}", reason(&error));
    Err(StartError::new(message).hint("make the folder yourself, or choose another `path`"))
}

fn create(written: &str, path: &Path) -> Result<fs::File, StartError> {
    make_folder(written, path)?;
    // Opening a named pipe waits for its reader, perhaps for ever; without blocking it fails where there is none.
    let probe = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path);
    if probe.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENXIO)) {
        let error = StartError::new(format!("cannot write to the pipe `{written}`: nobody reads it"));
        return Err(error.hint("start its reader first"));
    }
    // `probe` stays open until the end of this: a reader must not take its closing for the end of everything.
    fs::File::create(path).map_err(|error| unopened("create", written, &error))
}

/// Opens a file of records behind its last whole line: a kill may have torn the one after it.
fn reopen(written: &str, path: &Path) -> Result<fs::File, StartError> {
    let open = || -> io::Result<fs::File> {
        let mut file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        let whole = whole_lines(&file)?;
        file.set_len(whole)?;
        io::Seek::seek(&mut file, SeekFrom::Start(whole))?;
        Ok(file)
    };
    open().map_err(|error| unopened("go on with", written, &error))
}

/// How many bytes of a file are whole lines.
fn whole_lines(file: &fs::File) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let mut end = file.metadata()?.len();
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        block.resize(usize::try_from(end - start).unwrap_or_default(), 0);
        file.read_exact_at(&mut block, start)?;
        if let Some(place) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + place as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn unopened(what: &str, written: &str, error: &io::Error) -> StartError {
    let (why, hint) = match error.kind() {
        ErrorKind::IsADirectory => {
            ("it is a folder".to_owned(), format!("name a file in it, such as `{}`", in_folder(written)))
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            (reason(error), "choose a `path` that this user may write, or change its permissions".to_owned())
        }
        _ => (reason(error), "choose another `path`".to_owned()),
    };
    StartError::new(format!("cannot {what} `{written}`: {why}")).hint(hint)
}

fn in_folder(written: &str) -> String {
    format!("{}/records.jsonl", written.trim_end_matches('/'))
}

/// What the operating system said, without the number that nobody reads.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

struct FileWriter {
    /// For messages.
    name: String,
    records: Records,
    file: tokio::fs::File,
    /// Whether a failed batch can be cut off again.
    regular: bool,
    /// Bytes of whole batches in a regular file.
    accepted: u64,
    /// Whether the last batch failed and may have left a part of itself.
    torn: bool,
    buffer: Vec<u8>,
}

impl FileWriter {
    async fn write_buffer(&mut self) -> io::Result<()> {
        if self.torn && self.regular {
            self.file.set_len(self.accepted).await?;
            self.file.seek(SeekFrom::Start(self.accepted)).await?;
        }
        self.torn = true;
        self.file.write_all(&self.buffer).await?;
        self.file.flush().await?;
        self.torn = false;
        self.accepted += self.buffer.len() as u64;
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> SinkError {
        let name = &self.name;
        let hint = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                "make room on that disk, or give `path` a place on another one"
            }
            ErrorKind::BrokenPipe => "the program that reads it has gone; keep it running, or give `path` a file",
            _ => "look whether the disk is still there and writable, or choose another `path`",
        };
        SinkError { message: format!("cannot write to {name}: {}", reason(error)), hint: Some(hint.to_owned()) }
    }
}

#[async_trait::async_trait]
impl SinkWriter for FileWriter {
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        self.buffer.clear();
        for record in batch.iter().filter_map(|event| self.records.of(event)) {
            serde_json::to_writer(&mut self.buffer, &*record).map_err(|error| SinkError {
                message: format!("cannot write record `{}` as JSON: {error}", record.id),
                hint: None,
            })?;
            self.buffer.push(b'\n');
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.write_buffer().await.map_err(|error| self.failed(&error))
    }
}

/// The sink of segments and frames, where `path` has placeholders.
fn segments(context: &BuildContext, config: &Config) -> Result<Option<SegmentFiles>, Vec<FieldError>> {
    let path = &config.path;
    const EXAMPLE: &str = "{stream}_chunk_{index:04}.mp4";
    let template = Template::parse(path, Placeholder::ALL).map_err(|why| {
        let hint = format!("for segments write it like \"out/{EXAMPLE}\"");
        vec![FieldError::new("path", why).hint(hint)]
    })?;
    let annotate = config.annotation.window().map_err(|error| vec![error])?;
    if template.is_plain() {
        let given = [
            ("if_exists", config.if_exists.is_some(), "a file of records is begun anew, or goes on with `[state]`"),
            ("retry_for", config.retry_for.is_some(), "records are not tried again"),
            ("quality", config.quality.is_some(), "there are no pictures in a file of records"),
            ("annotate", config.annotation.is_given(), "there are no pictures in a file of records"),
        ];
        let mistakes: Vec<FieldError> = given
            .into_iter()
            .filter(|(_, is_given, _)| *is_given)
            .map(|(field, _, why)| {
                let hint = format!("remove it, or write segments to a path such as \"{EXAMPLE}\"");
                FieldError::new(field, why).hint(hint)
            })
            .collect();
        return if mistakes.is_empty() { Ok(None) } else { Err(mistakes) };
    }
    if path.contains('\0') {
        return Err(vec![FieldError::new("path", "a path cannot contain a zero byte").hint("remove it")]);
    }
    let has = |placeholder: Placeholder| template.has(placeholder);
    if !has(Placeholder::Index) && !has(Placeholder::Seq) && !has(Placeholder::Name) {
        let error = FieldError::new("path", "all segments of a stream would have the same path");
        return Err(vec![error.hint(format!("add `{{index}}` or `{{name}}`, as in \"out/{EXAMPLE}\""))]);
    }
    if !has(Placeholder::Stream) && !has(Placeholder::Name) {
        let error = FieldError::new("path", "the segments of two streams would have the same path");
        return Err(vec![error.hint(format!("add `{{stream}}` or `{{name}}`, as in \"out/{EXAMPLE}\""))]);
    }
    let if_exists = config.if_exists.unwrap_or(IfExists::Error);
    let retry_for = config.retry_for.map_or(DEFAULT_RETRY_FOR, |time| time.0);
    let quality = config.quality.unwrap_or(QUALITY);
    Ok(Some(SegmentFiles::new(context, &template, if_exists, retry_for, quality, annotate)))
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    if let Some(files) = segments(context, &config)? {
        return Ok(Built::Sink(Arc::new(files)));
    }
    let path = config.path;
    let target = if path == STANDARD_OUTPUT {
        Target::StandardOutput
    } else if path.is_empty() {
        let error = FieldError::new("path", "`path` is empty");
        return Err(vec![error.hint("name a file, such as \"records.jsonl\", or \"-\" for the standard output")]);
    } else if path.ends_with('/') {
        let error = FieldError::new("path", format!("`{path}` is a folder, not a file"));
        return Err(vec![error.hint(format!("name a file in it, such as \"{}\"", in_folder(&path)))]);
    } else if path.contains('\0') {
        return Err(vec![FieldError::new("path", "a path cannot contain a zero byte").hint("remove it")]);
    } else {
        Target::Path { absolute: context.folder.join(&path), written: path }
    };
    let records = Records::new(context.origin.clone(), context.clock.clone());
    let goes_on = context.progress.is_some();
    Ok(Built::Sink(Arc::new(FileSink { target, records, goes_on })))
}

pub static REGISTRATION: Registration = Registration {
    name: "file",
    role: Role::Sink,
    summary: "Writes records to a file, one JSON object a line; or each segment, or each frame as a JPEG, as a file of its own.",
    execution: Execution::Io,
    accepts: &[Kind::Record, Kind::Segment, Kind::Frame],
    produces: Produces::Nothing,
    fields: &[
        Field {
            name: "path",
            value: FieldType::OutputPath,
            presence: Presence::Required,
            summary: "The file of records; `-` is the standard output. It is truncated at start, or with `[state]` goes \
                      on behind what is there (of an input that was cut short, some records may then be there twice, \
                      with the same `id`). Missing folders are made. With placeholders, the path of each segment: \
                      `{stream}`, `{index}`, `{index:04}` for at least four digits, `{name}` for the name that it has \
                      already, and as in the keys of `s3` `{graph}`, `{node}`, `{seq:09}`, `{time}`, `{date:%Y/%m/%d}`, `{year}` and the like.",
        },
        Field {
            name: "if_exists",
            value: FieldType::Choice(&["error", "overwrite", "replace", "skip"]),
            presence: Presence::Optional,
            summary: "What happens to a segment whose path exists already: it is lost and the error told, it takes the \
                      place of what is there (`replace` means the same), or what is there stays and counts. With \
                      `[state]`, what the graph itself has stored is written over in any case. Left out: `error`.",
        },
        Field {
            name: "retry_for",
            value: FieldType::Duration,
            presence: Presence::Optional,
            summary: "How long a segment or a picture is tried again while the disk is full; what waits slows the graph \
                      down. Then it is lost. Left out: 1h.",
        },
        Field {
            name: "quality",
            value: FieldType::Integer { minimum: 1, maximum: 100 },
            presence: Presence::Optional,
            summary: "Of pictures as JPEG: 1 is the smallest file, 100 the best picture. Left out: 90.",
        },
        ANNOTATE_FIELD,
        WINDOW_FIELD,
    ],
    example: "[sinks.results]\ntype = \"file\"\ninputs = [\"people\"]\npath = \"people.jsonl\"\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::records::tests::{context, gap, result};

    fn sink(folder: &Path, path: &str) -> Result<Arc<dyn Sink>, Vec<FieldError>> {
        let table = toml::Table::from_iter([("path".to_owned(), path.into())]);
        match build(&context(folder), table)? {
            Built::Sink(sink) => Ok(sink),
            _ => panic!("not a sink"),
        }
    }

    fn refusal(folder: &Path, path: &str) -> StartError {
        match sink(folder, path).unwrap().start() {
            Ok(_) => panic!("`{path}` was opened"),
            Err(error) => error,
        }
    }

    fn ids(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "the last line is whole");
        let id =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        text.lines().map(id).collect()
    }

    #[tokio::test]
    async fn writes_a_line_for_each_result_and_gap_and_truncates_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/records.jsonl");
        let sink = sink(folder.path(), "deep/er/records.jsonl").unwrap();
        let mut writer = sink.start().unwrap();
        writer.write(&[result(0), gap()]).await.unwrap();
        assert_eq!(ids(&path), ["door/sums/cam/checksum:0", "door/out/cam/gap:7"], "readable once it is accepted");
        writer.write(&[result(7)]).await.unwrap();
        writer.close().await.unwrap();
        assert_eq!(ids(&path).len(), 3);

        let mut again = sink.start().unwrap();
        again.write(&[result(9)]).await.unwrap();
        assert_eq!(ids(&path), ["door/sums/cam/checksum:9"]);
    }

    #[tokio::test]
    async fn with_a_state_it_goes_on_behind_the_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records.jsonl");
        let state = Arc::new(crate::progress::State::new(folder.path().join("state")));
        let mut context = context(folder.path());
        let origin = context.origin.clone();
        context.progress = Some(crate::progress::Progress::new(state, origin, Default::default()));
        let table: toml::Table = "path = \"records.jsonl\"".parse().unwrap();
        let Ok(Built::Sink(sink)) = build(&context, table) else { panic!("not a sink") };
        let write = async |seq| {
            let mut writer = sink.start().unwrap();
            writer.write(&[result(seq)]).await.unwrap();
            writer.close().await.unwrap();
        };
        write(0).await;
        write(1).await;
        let whole = fs::read(&path).unwrap();
        // What a kill leaves behind, longer than what is looked at once.
        let torn = [&whole[..], b"{\"id\":\"", &vec![b'x'; 100 << 10]].concat();
        fs::write(&path, torn).unwrap();
        write(2).await;
        let expected = ["door/sums/cam/checksum:0", "door/sums/cam/checksum:1", "door/sums/cam/checksum:2"];
        assert_eq!(ids(&path), expected);
        // Nothing in it is a line.
        fs::write(&path, "{\"id\"").unwrap();
        write(3).await;
        assert_eq!(ids(&path), ["door/sums/cam/checksum:3"]);
    }

    #[tokio::test]
    async fn a_full_disk_is_named_and_the_batch_is_not_accepted() {
        let sink = sink(Path::new("/"), "/dev/full").unwrap();
        let error = sink.start().unwrap().write(&[result(0)]).await.unwrap_err();
        assert_eq!(error.message, "cannot write to `/dev/full`: no space left on device");
        assert!(error.hint.unwrap().contains("make room"));
    }

    #[tokio::test]
    async fn a_torn_batch_is_cut_off_before_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records.jsonl");
        let records = {
            let context = context(folder.path());
            Records::new(context.origin, context.clock)
        };
        let mut writer = FileWriter {
            name: "`records.jsonl`".to_owned(),
            records,
            file: tokio::fs::File::create(&path).await.unwrap(),
            regular: true,
            accepted: 0,
            torn: false,
            buffer: Vec::new(),
        };
        writer.write(&[result(0)]).await.unwrap();
        // What a disk that fills up in the middle of a batch leaves behind.
        writer.file.write_all(b"{\"id\":\"door/su").await.unwrap();
        writer.file.flush().await.unwrap();
        writer.torn = true;
        writer.write(&[result(1)]).await.unwrap();
        assert_eq!(ids(&path), ["door/sums/cam/checksum:0", "door/sums/cam/checksum:1"]);
    }

    #[tokio::test]
    async fn a_reader_that_has_gone_is_named() {
        let (reader, pipe) = io::pipe().unwrap();
        drop(reader);
        let context = context(Path::new("."));
        let mut writer = FileWriter {
            name: "the standard output".to_owned(),
            records: Records::new(context.origin, context.clock),
            file: tokio::fs::File::from_std(fs::File::from(std::os::fd::OwnedFd::from(pipe))),
            regular: false,
            accepted: 0,
            torn: false,
            buffer: Vec::new(),
        };
        let error = writer.write(&[result(0)]).await.unwrap_err();
        assert_eq!(error.message, "cannot write to the standard output: broken pipe");
        assert!(error.hint.unwrap().contains("has gone"));
    }

    #[test]
    fn paths_that_cannot_be_files_are_refused_with_their_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("results")).unwrap();
        fs::write(folder.path().join("taken"), "").unwrap();

        let error = refusal(folder.path(), "results");
        assert_eq!(error.message, "cannot create `results`: it is a folder");
        assert_eq!(error.hint.as_deref(), Some("name a file in it, such as `results/records.jsonl`"));
        let error = refusal(folder.path(), "taken/records.jsonl");
        assert!(error.message.contains("`taken/records.jsonl`"), "{error}");
        let error = refusal(folder.path(), "/proc/records.jsonl");
        assert!(error.message.starts_with("cannot create `/proc/records.jsonl`: "), "{error}");

        for wrong in ["", "results/", "a\0b"] {
            let errors = sink(folder.path(), wrong).err().unwrap();
            assert_eq!(errors[0].field, "path");
            assert!(errors[0].hint.is_some(), "{wrong:?}");
        }
    }

    #[test]
    fn a_pipe_that_nobody_reads_does_not_hang_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let error = refusal(folder.path(), "pipe");
        assert_eq!(error.message, "cannot write to the pipe `pipe`: nobody reads it");
        let reader = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&pipe).unwrap();
        assert!(sink(folder.path(), "pipe").unwrap().start().is_ok());
        drop(reader);
    }

    #[test]
    fn two_spellings_of_one_file_are_one_resource() {
        let folder = tempfile::tempdir().unwrap();
        let resources = |path: &str| sink(folder.path(), path).unwrap().resources();
        fs::create_dir(folder.path().join("sub")).unwrap();
        assert_eq!(resources("a.jsonl"), resources("sub/../a.jsonl"));
        assert_eq!(resources("new/a.jsonl"), resources("./new/a.jsonl"));
        assert_eq!(resources("a.jsonl"), resources("not/yet/../../a.jsonl"));
        std::os::unix::fs::symlink("sub", folder.path().join("link")).unwrap();
        assert_eq!(resources("sub/a.jsonl"), resources("link/new/../a.jsonl"));
        assert_ne!(resources("a.jsonl"), resources("b.jsonl"));
        assert_eq!(resources("-"), []);
        assert_eq!(resources("/dev/null"), []);
    }
}
