//! Each segment, and each frame as a JPEG, as a file of its own: what `file` does where its path has placeholders.
//!
//! A file is there as a whole or not at all, and is on the disk when its item counts as delivered. While the disk is full,
//! what does not fit is tried again, and sources that may wait do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::StartError;
use crate::item::Kind;
use crate::operator::{BuildContext, Resource, Sink, SinkInput, SinkWriter};
use crate::storage::IfExists;
use crate::storage::folder::Folder;
use crate::template::Template;

use super::file::identity;
use super::objects::Objects;

/// Files that are written at once: each waits for the disk.
const AT_ONCE: usize = 4;

/// Where segments and frames go.
pub(super) struct SegmentFiles {
    folder: Arc<Folder>,
    root: PathBuf,
    objects: Objects,
}

impl SegmentFiles {
    /// Relative paths are relative to the folder of the graph.
    pub fn new(
        context: &BuildContext,
        path: &Template,
        if_exists: IfExists,
        retry_for: Duration,
        quality: u8,
        annotate: Option<u64>,
    ) -> SegmentFiles {
        let (written, key) = path.split_folder();
        let root = context.folder.join(&written);
        let folder = Arc::new(Folder::new(written, &root));
        let objects = Objects {
            storage: folder.clone(),
            key,
            origin: context.origin.clone(),
            clock: context.clock.clone(),
            retry_for,
            uploads: AT_ONCE,
            quality,
            // No records come here.
            batching: None,
            annotate,
            if_exists,
            progress: context.progress.clone(),
        };
        SegmentFiles { folder, root, objects }
    }
}

impl Sink for SegmentFiles {
    /// Finds out early whether files can be made, where it is known in which folder.
    fn start_with(&self, inputs: &[SinkInput]) -> Result<Box<dyn SinkWriter>, StartError> {
        self.folder.prepare().map_err(|error| error.at_start("files cannot be written into"))?;
        self.objects.writer(inputs)
    }

    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        self.start_with(&[])
    }

    fn shares_with_successor(&self) -> bool {
        true
    }

    fn depends_on_inputs(&self) -> bool {
        self.objects.annotate.is_some()
    }

    fn stream_memory(&self) -> u64 {
        self.objects.stream_memory()
    }

    fn refuses(&self, kind: Kind) -> Option<(String, String)> {
        if self.objects.annotate.is_some() {
            return self.objects.refuses(kind);
        }
        let message = format!("{} have no files of their own, as `path` gives them", kind.plural());
        let hint = "for records name one file, such as \"records.jsonl\"; to draw what they say into pictures, add `annotate = true`".to_owned();
        (kind == Kind::Record).then_some((message, hint))
    }

    fn resources(&self) -> Vec<Resource> {
        vec![Resource::Path(identity(&self.root.join(self.objects.name())))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use std::io::Write as _;

    use bytes::Bytes;

    use crate::error::SinkError;
    use crate::item::{Content, EndReason, Event, Payload, Segment, SpilledFile, StreamId};
    use crate::lease::Counts;
    use crate::operator::Built;
    use crate::sinks::file::REGISTRATION;
    use crate::sinks::records::tests::{context, gap};
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
            wall: None,
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

    /// Writes a batch as the engine does, which lets go of what was taken over, and closes the writer.
    async fn store(sink: &dyn Sink, batch: Vec<Event>) -> Result<(), SinkError> {
        let mut writer = sink.start().unwrap();
        assert!(writer.settles());
        writer.write(&batch).await.unwrap();
        for event in batch {
            if let Event::Item(item) = event {
                item.lease.ack.release();
            }
        }
        writer.close().await
    }

    #[tokio::test]
    async fn each_segment_is_a_file_and_signals_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let sink = sink(folder.path(), r#"path = "deep/{stream}_{index:04}.mp4""#);
        let mut spilled = SpilledFile::create().unwrap();
        spilled.write_all(b"from the disk").unwrap();
        let (first, account) = segment(0, memory(b"from memory"));
        let (second, _) = segment(1, Content::File(SpilledFile::unnamed(spilled, 13)));
        let end = Event::End { stream: StreamId::new("test").unwrap(), reason: EndReason::Eof };
        store(&*sink, vec![first, gap(), second, end]).await.unwrap();
        assert_eq!(names(&folder.path().join("deep")), ["test_0000.mp4", "test_0001.mp4"]);
        assert_eq!(fs::read(folder.path().join("deep/test_0000.mp4")).unwrap(), b"from memory");
        assert_eq!(fs::read(folder.path().join("deep/test_0001.mp4")).unwrap(), b"from the disk");
        let readable = fs::metadata(folder.path().join("deep/test_0000.mp4")).unwrap().permissions().mode() & 0o400;
        assert_ne!(readable, 0);
        assert_eq!(account.snapshot(), Counts { read: 1, delivered: 1, ..Counts::default() });
    }

    #[tokio::test]
    async fn each_frame_is_a_jpeg() {
        let folder = tempfile::tempdir().unwrap();
        let sink = sink(folder.path(), r#"path = "{stream}/{seq:04}.jpg""#);
        let frame = Arc::new(crate::transforms::preprocess::pictures::rgb(64, 48, &vec![128; 64 * 48 * 3]));
        let (item, account) = crate::testing::item(7, MediaTime::ZERO, Payload::Frame(frame));
        store(&*sink, vec![Event::Item(item)]).await.unwrap();
        let bytes = fs::read(folder.path().join("test/0007.jpg")).unwrap();
        assert!(bytes.starts_with(&[0xff, 0xd8]));
        assert_eq!(account.snapshot(), Counts { read: 1, delivered: 1, ..Counts::default() });
    }

    #[test]
    fn whoever_annotates_needs_pictures_and_records_and_takes_no_segments() {
        let folder = tempfile::tempdir().unwrap();
        let sink = sink(folder.path(), "path = \"{name}\"\nannotate = true");
        let input = |kind: Kind| SinkInput {
            node: kind.plural().into(),
            kind,
            sources: vec!["cameras".into()],
            is_live: true,
            repeats: false,
        };
        let refused = |kinds: &[Kind]| {
            let inputs: Vec<SinkInput> = kinds.iter().map(|kind| input(*kind)).collect();
            sink.start_with(&inputs).err().map(|error| error.message)
        };
        assert_eq!(refused(&[Kind::Frame, Kind::Record]), None);
        assert!(refused(&[Kind::Frame]).unwrap().ends_with("into pictures, and no records flow into it"));
        assert!(refused(&[Kind::Record]).unwrap().ends_with("into pictures, and no pictures flow into it"));
        assert!(sink.refuses(Kind::Segment).is_some() && sink.refuses(Kind::Record).is_none());
        let kept = "path = \"{name}\"\nannotate = true\nwindow = \"1MiB\"";
        assert_eq!(super::tests::sink(folder.path(), kept).stream_memory(), 1 << 20);
        assert!(refusal("path = \"{name}\"\nwindow = \"1MiB\"").contains("`annotate = true` alone"));
        assert!(refusal("path = \"out.jsonl\"\nannotate = true").contains("no pictures in a file of records"));
    }

    #[tokio::test]
    async fn what_exists_is_kept_unless_asked_otherwise_and_costs_no_other() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x0.mp4"), b"precious").unwrap();
        let both = || {
            let ((first, lost), (second, kept)) = (segment(0, memory(b"new")), segment(1, memory(b"other")));
            (vec![first, second], lost, kept)
        };
        let (batch, lost, kept) = both();
        let error = store(&*sink(folder.path(), r#"path = "{name}""#), batch).await.unwrap_err();
        assert_eq!(error.message, "an item of stream `test` is lost: `x0.mp4` exists already");
        assert!(error.hint.unwrap().contains("if_exists = \"overwrite\""));
        assert_eq!((lost.snapshot().lost, kept.snapshot().delivered), (1, 1));
        assert_eq!(fs::read(folder.path().join("x0.mp4")).unwrap(), b"precious");
        assert_eq!(names(folder.path()), ["x0.mp4", "x1.mp4"], "nothing is left beside them");
        store(&*sink(folder.path(), "path = \"{name}\"\nif_exists = \"skip\""), both().0).await.unwrap();
        assert_eq!(fs::read(folder.path().join("x0.mp4")).unwrap(), b"precious");
        store(&*sink(folder.path(), "path = \"{name}\"\nif_exists = \"overwrite\""), both().0).await.unwrap();
        assert_eq!(fs::read(folder.path().join("x0.mp4")).unwrap(), b"new");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named_at_start() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("plain"), b"").unwrap();
        let Err(error) = sink(folder.path(), r#"path = "plain/{name}""#).start() else { panic!("it started") };
        assert!(error.message.starts_with("files cannot be written into `plain`: "), "{error}");
    }

    #[test]
    fn paths_that_cannot_work_are_refused() {
        assert!(refusal(r#"path = "{strem}.mp4""#).contains("nothing is known for `{strem}`"));
        assert!(refusal(r#"path = "{stream}.mp4""#).contains("the same path; add `{index}`"));
        assert!(refusal(r#"path = "{index}.mp4""#).contains("the same path; add `{stream}`"));
        assert!(refusal("path = \"a.jsonl\"\nquality = 80").contains("no pictures in a file of records; remove it"));
        assert!(
            refusal("path = \"a.jsonl\"\nif_exists = \"replace\"").contains("or goes on with `[state]`; remove it")
        );
    }
}
