//! Segments as files of a local folder.
//!
//! Each file is written beside its place under another name, flushed to the disk, and renamed: whoever finds it finds all
//! of it. A segment counts as delivered when its name is on the disk too.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{SinkError, StartError};
use crate::item::{Content, Event, Item, Kind, Origin, Payload, RecordBody, Segment};
use crate::operator::{BuildContext, Resource, Sink, SinkWriter};
use crate::progress::{Progress, StateError};
use crate::storage::IfExists;
use crate::template::{Template, Values};

use super::file::{identity, make_folder, reason};

/// Where segments go.
#[derive(Clone)]
pub(super) struct SegmentFiles {
    folder: PathBuf,
    origin: Origin,
    /// As it stands in the graph.
    written: String,
    path: Template,
    if_exists: IfExists,
    progress: Option<Progress>,
}

impl SegmentFiles {
    /// Relative paths are relative to the folder of the graph.
    pub fn new(context: &BuildContext, written: String, path: Template, if_exists: IfExists) -> SegmentFiles {
        let (folder, origin) = (context.folder.clone(), context.origin.clone());
        SegmentFiles { folder, origin, written, path, if_exists, progress: context.progress.clone() }
    }

    fn store(&self, item: &Item, segment: &Segment) -> Result<(), SinkError> {
        let output = self.progress.as_ref().and_then(|progress| progress.output(&item.stream, segment));
        let mut if_exists = self.if_exists;
        if let Some(output) = &output {
            if output.is_done().map_err(StateError::of_sink)? {
                return Ok(());
            }
            // What was begun before, and perhaps stored, is ours; of a live stream, its index must not come again.
            if (output.is_live() || if_exists != IfExists::Overwrite) && output.begin().map_err(StateError::of_sink)? {
                if_exists = IfExists::Overwrite;
            }
        }
        let values = Values {
            graph: &self.origin.graph,
            node: &self.origin.node,
            stream: &item.stream,
            name: &segment.name,
            index: segment.index,
            seq: item.seq,
            time: item.time,
        };
        let written = self.path.render(&values);
        let path = self.folder.join(&written);
        make_folder(&written, &path).map_err(|error| SinkError { message: error.message, hint: error.hint })?;
        write(&path, &segment.content, if_exists).map_err(|error| failed(&written, &error))?;
        item.lease.ack.placed(&written);
        output.map_or(Ok(()), |output| output.done().map_err(StateError::of_sink))
    }
}

impl Sink for SegmentFiles {
    /// Finds out early whether files can be made, where it is known in which folder.
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        let before = self.written.split('{').next().unwrap_or_default();
        let path = self.folder.join(format!("{before}x"));
        make_folder(&self.written, &path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        tempfile::tempfile_in(folder).map_err(|error| {
            let message = format!("cannot write into the folder of `{}`: {}", self.written, reason(&error));
            StartError::new(message).hint("choose a `path` that this user may write, or change its permissions")
        })?;
        Ok(Box::new(SegmentWriter { files: self.clone() }))
    }

    fn refuses(&self, kind: Kind) -> Option<(String, String)> {
        let message = format!("{} have no files of their own, as `path` gives them", kind.plural());
        let hint = "for records name one file, such as \"records.jsonl\"".to_owned();
        (kind != Kind::Segment).then_some((message, hint))
    }

    fn resources(&self) -> Vec<Resource> {
        let path = self.path.of_node(&self.origin.graph, &self.origin.node);
        vec![Resource::Path(identity(&self.folder.join(path)))]
    }
}

struct SegmentWriter {
    files: SegmentFiles,
}

#[async_trait::async_trait]
impl SinkWriter for SegmentWriter {
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        for event in batch {
            let Event::Item(item) = event else { continue };
            match &item.payload {
                Payload::Segment(segment) => {
                    let (files, item, segment) = (self.files.clone(), item.clone(), segment.clone());
                    // Flushing waits for the disk.
                    let stored = tokio::task::spawn_blocking(move || {
                        item.lease.ack.begun();
                        let stored = files.store(&item, &segment);
                        if let Err(error) = &stored {
                            item.lease.ack.failed(&error.message);
                        }
                        // The engine's own claim on the item speaks for it.
                        item.lease.ack.release();
                        stored
                    });
                    stored.await.map_err(|error| SinkError {
                        message: format!("writing a segment broke off: {error}"),
                        hint: None,
                    })??;
                }
                // The error of an item that became no segment.
                Payload::Record(record) if matches!(record.body, RecordBody::Error { .. }) => {}
                other => {
                    return Err(SinkError {
                        message: format!("{} have no files of their own", other.kind().plural()),
                        hint: Some("for records name one file, such as \"records.jsonl\"".to_owned()),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Writes a file that is there as a whole or not at all.
fn write(path: &Path, content: &Content, if_exists: IfExists) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match if_exists {
        IfExists::Error if path.symlink_metadata().is_ok() => return Err(ErrorKind::AlreadyExists.into()),
        IfExists::Skip if path.symlink_metadata().is_ok() => return Ok(()),
        IfExists::Error | IfExists::Overwrite | IfExists::Skip => {}
    }
    // What everybody may do with a new file; the process's mask takes away from it.
    let permissions = Permissions::from_mode(0o666);
    let mut beside = tempfile::Builder::new().prefix(".part-").permissions(permissions).tempfile_in(folder)?;
    match content {
        Content::Memory(bytes) => beside.write_all(bytes)?,
        Content::File(spilled) => drop(io::copy(&mut File::open(&spilled.path)?, &mut beside)?),
    }
    beside.as_file().sync_all()?;
    let placed = match if_exists {
        IfExists::Error | IfExists::Skip => beside.persist_noclobber(path),
        IfExists::Overwrite => beside.persist(path),
    };
    placed.map_err(|error| error.error)?;
    // The name itself lies in the folder.
    fs::File::open(folder)?.sync_all()
}

fn failed(written: &str, error: &io::Error) -> SinkError {
    let (why, hint) = match error.kind() {
        ErrorKind::AlreadyExists => (
            "it exists already".to_owned(),
            "move it away, choose another `path`, or write `if_exists = \"overwrite\"` to write over it",
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            (reason(error), "make room on that disk, or give `path` a place on another one")
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            (reason(error), "choose a `path` that this user may write, or change its permissions")
        }
        ErrorKind::IsADirectory => ("it is a folder".to_owned(), "choose another `path`"),
        _ => (reason(error), "look whether the disk is still there and writable, or choose another `path`"),
    };
    SinkError { message: format!("cannot write the segment `{written}`: {why}"), hint: Some(hint.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use bytes::Bytes;

    use crate::item::{EndReason, SpilledFile, StreamId};
    use crate::lease::Counts;
    use crate::operator::Built;
    use crate::sinks::file::REGISTRATION;
    use crate::sinks::records::tests::{context, gap, result};
    use crate::time::MediaTime;

    fn sink(folder: &Path, fields: &str) -> Arc<dyn Sink> {
        match (REGISTRATION.build)(&context(folder), fields.parse().unwrap()) {
            Ok(Built::Sink(sink)) => sink,
            Ok(_) => panic!("not a sink"),
            Err(errors) => panic!("{errors:?}"),
        }
    }

    fn refusal(fields: &str) -> String {
        match (REGISTRATION.build)(&context(Path::new(".")), fields.parse().unwrap()) {
            Ok(_) => panic!("{fields} was taken"),
            Err(errors) => format!("{}; {}", errors[0], errors[0].hint.clone().unwrap_or_default()),
        }
    }

    fn segment(index: u64, content: Content) -> (Event, Arc<crate::lease::Account>) {
        let segment = Segment {
            origin: context(Path::new(".")).origin,
            name: format!("x{index}.mp4"),
            index,
            media_type: "video/mp4",
            start: MediaTime::ZERO,
            end: MediaTime::ZERO,
            follows: false,
            sha256: String::new(),
            lineage: None,
            content,
        };
        let (item, account) = crate::testing::item(index, MediaTime::ZERO, Payload::Segment(Arc::new(segment)));
        (Event::Item(item), account)
    }

    fn memory(bytes: &'static [u8]) -> Content {
        Content::Memory(Bytes::from_static(bytes))
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn let_go(event: Event) {
        if let Event::Item(item) = event {
            item.lease.ack.settle(crate::lease::Verdict::Delivered);
        }
    }

    #[tokio::test]
    async fn each_segment_is_a_file_and_signals_and_errors_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let sink = sink(folder.path(), r#"path = "deep/{stream}_{index:04}.mp4""#);
        let mut writer = sink.start().unwrap();
        let spilled = folder.path().join("spilled");
        fs::write(&spilled, b"from the disk").unwrap();
        let (first, account) = segment(0, memory(b"from memory"));
        let (second, _) = segment(1, Content::File(SpilledFile { path: spilled.clone(), bytes: 13 }));
        let end = Event::End { stream: StreamId::new("test").unwrap(), reason: EndReason::Eof };
        let batch = [first, gap(), second, end];
        writer.write(&batch).await.unwrap();
        assert_eq!(names(&folder.path().join("deep")), ["test_0000.mp4", "test_0001.mp4"]);
        assert_eq!(fs::read(folder.path().join("deep/test_0000.mp4")).unwrap(), b"from memory");
        assert_eq!(fs::read(folder.path().join("deep/test_0001.mp4")).unwrap(), b"from the disk");
        let readable = fs::metadata(folder.path().join("deep/test_0000.mp4")).unwrap().permissions().mode() & 0o400;
        assert_ne!(readable, 0);
        assert_eq!(account.snapshot(), Counts { read: 1, in_flight: 1, ..Counts::default() }, "the engine settles it");
        batch.into_iter().for_each(let_go);
        assert_eq!(account.snapshot(), Counts { read: 1, delivered: 1, ..Counts::default() });
        assert!(!spilled.exists(), "nobody needs it any more");
    }

    #[tokio::test]
    async fn what_exists_is_kept_unless_asked_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x0.mp4"), b"precious").unwrap();
        let (event, account) = segment(0, memory(b"new"));
        let mut careful = sink(folder.path(), r#"path = "{name}""#).start().unwrap();
        let error = careful.write(std::slice::from_ref(&event)).await.unwrap_err();
        assert_eq!(error.message, "cannot write the segment `x0.mp4`: it exists already");
        assert!(error.hint.unwrap().contains("if_exists = \"overwrite\""));
        assert_eq!(fs::read(folder.path().join("x0.mp4")).unwrap(), b"precious");
        assert_eq!(names(folder.path()), ["x0.mp4"], "nothing is left beside it");
        let fields = "path = \"{name}\"\nif_exists = \"skip\"";
        sink(folder.path(), fields).start().unwrap().write(std::slice::from_ref(&event)).await.unwrap();
        assert_eq!(fs::read(folder.path().join("x0.mp4")).unwrap(), b"precious");
        let fields = "path = \"{name}\"\nif_exists = \"overwrite\"";
        sink(folder.path(), fields).start().unwrap().write(std::slice::from_ref(&event)).await.unwrap();
        assert_eq!(fs::read(folder.path().join("x0.mp4")).unwrap(), b"new");
        drop(event);
        assert_eq!(account.snapshot().lost, 1, "no verdict was given");
    }

    #[tokio::test]
    async fn records_have_no_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = sink(folder.path(), r#"path = "{stream}/{index}.mp4""#).start().unwrap();
        let record = result(0);
        let error = writer.write(std::slice::from_ref(&record)).await.unwrap_err();
        assert_eq!(error.message, "records have no files of their own");
        let_go(record);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named_at_start() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("plain"), b"").unwrap();
        let Err(error) = sink(folder.path(), r#"path = "plain/{name}""#).start() else { panic!("it started") };
        assert!(error.message.starts_with("cannot make the folder of `plain/{name}`: "), "{error}");
    }

    #[test]
    fn paths_that_cannot_work_are_refused() {
        assert!(refusal(r#"path = "{strem}.mp4""#).contains("nothing is known for `{strem}`"));
        assert!(refusal(r#"path = "{stream}.mp4""#).contains("the same path; add `{index}`"));
        assert!(refusal("path = \"a.jsonl\"\nif_exists = \"replace\"").contains("always begun anew; remove it"));
    }
}
