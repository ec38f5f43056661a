use super::*;

use bytes::Bytes;

use crate::item::Content;
use crate::time::MediaTime;

fn progress(folder: &Path, node: &str, configuration: Configuration) -> Progress {
    let origin = Origin { graph: "door".into(), node: node.into() };
    let progress = Progress::new(Arc::new(State::new(folder.to_owned())), origin, configuration);
    progress.open().unwrap();
    progress
}

/// The source, the operator and the sink of a graph; `every` is how the operator is configured.
fn nodes(folder: &Path, every: &str) -> [Progress; 3] {
    let from = BTreeMap::from([(Arc::from("clips"), Arc::from(every))]);
    let source = Configuration { downstream: every.to_owned(), ..Configuration::default() };
    [
        progress(folder, "clips", source),
        progress(folder, "chunks", Configuration { from, ..Configuration::default() }),
        progress(folder, "archive", Configuration { own: "s3".to_owned(), ..Configuration::default() }),
    ]
}

fn door() -> StreamId {
    StreamId::new("door").unwrap()
}

fn segment(index: u64, sha256: &str, lineage: Option<Lineage>) -> Segment {
    segment_of(index, sha256, (0, b"ftyp"), lineage)
}

/// One that begins at a second, and holds this.
fn segment_of(index: u64, sha256: &str, (start, content): (i64, &'static [u8]), lineage: Option<Lineage>) -> Segment {
    Segment {
        origin: Origin { graph: "door".into(), node: "chunks".into() },
        name: format!("door_chunk_{index:04}.mp4"),
        index,
        media_type: "video/mp4",
        start: MediaTime::from_micros(start * 1_000_000),
        end: MediaTime::ZERO,
        wall: None,
        follows: false,
        sha256: sha256.to_owned(),
        lineage,
        content: Content::Memory(Bytes::from_static(content)),
    }
}

/// An end cuts an output short, in one run more than in the other.
#[test]
fn what_is_there_as_a_whole_is_not_replaced_by_a_part_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let [clips, chunks, sink] = nodes(folder.path(), "1s");
    let played = clips.played("door.mp4".into(), "one".into());
    let output = |sha256, start, content: &'static [u8]| {
        let segment = segment_of(0, sha256, (start, content), chunks.lineage(&played));
        sink.output(&door(), &segment).unwrap()
    };
    let (part, whole) = (output("aa", 0, b"ftyp"), output("bb", 0, b"ftypmoov"));
    part.begin().unwrap();
    whole.begin().unwrap();
    assert!(!whole.is_done().unwrap() && !part.is_done().unwrap());
    part.done().unwrap();
    assert!(!whole.is_done().unwrap(), "it is longer than what is there");
    whole.done().unwrap();
    assert!(whole.is_done().unwrap() && part.is_done().unwrap());
    assert!(!output("cc", 0, b"FTYPMOOV").is_done().unwrap(), "another content of the same length");
    assert!(!output("dd", 1, b"ftyp").is_done().unwrap(), "what begins elsewhere is no part of it");
}

#[test]
fn an_output_is_done_for_its_content_its_input_and_its_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("deep/state");
    let output = |every: &str, version: &str, index: u64, sha256: &str| {
        let [source, chunks, sink] = nodes(&place, every);
        let played = source.played("s3://clips/door.mp4".into(), version.into());
        sink.output(&door(), &segment(index, sha256, chunks.lineage(&played))).unwrap()
    };
    let first = output("2s", "one", 3, "aa");
    assert!(!first.is_live() && !first.is_done().unwrap());
    assert!(!first.is_begun().unwrap() && !first.is_begun().unwrap(), "to ask begins nothing");
    first.begin().unwrap();
    assert!(!first.is_done().unwrap() && first.is_begun().unwrap(), "begun and not done: what is there is ours");
    first.done().unwrap();
    assert!(output("2s", "one", 3, "aa").is_done().unwrap());
    for other in [
        output("2s", "one", 3, "bb"),
        output("2s", "one", 4, "aa"),
        output("2s", "two", 3, "aa"),
        output("3s", "one", 3, "aa"),
    ] {
        assert!(!other.is_done().unwrap(), "{other:?}");
    }
    assert!(output("2s", "one", 3, "bb").is_begun().unwrap(), "another content in its place is ours too");
    assert!(!output("2s", "one", 4, "aa").is_begun().unwrap());
}

#[test]
fn an_output_keeps_the_time_in_its_name_whatever_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let [source, chunks, sink] = nodes(folder.path(), "2s");
    let played = source.played("s3://clips/door.mp4".into(), "one".into());
    let output = |sha256| sink.output(&door(), &segment(0, sha256, chunks.lineage(&played))).unwrap();
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    assert_eq!(output("aa").named_at().unwrap(), None);
    output("aa").begin_at(at(7)).unwrap();
    output("aa").done().unwrap();
    assert!(output("aa").is_done().unwrap());
    // An end had cut it short: the whole one comes later, under the same name.
    assert_eq!(output("bb").named_at().unwrap(), Some(at(7)));
    output("bb").begin_at(at(9)).unwrap();
    assert_eq!(output("bb").named_at().unwrap(), Some(at(7)));
    assert!(output("aa").is_done().unwrap() && !output("bb").is_done().unwrap());
    output("bb").done().unwrap();
    assert_eq!((output("bb").named_at().unwrap(), output("bb").is_done().unwrap()), (Some(at(7)), true));
    assert_eq!(output("aa").identity(), output("bb").identity());
    let live = sink.output(&door(), &segment(0, "aa", chunks.lineage(&Played::Live))).unwrap();
    live.begin_at(at(7)).unwrap();
    assert_eq!((live.named_at().unwrap(), live.identity()), (None, None));
}

#[test]
fn a_finished_input_is_remembered_and_its_outputs_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let [source, chunks, sink] = nodes(folder.path(), "2s");
    let played = source.played("s3://clips/door.mp4".into(), "one".into());
    let Played::Version(version) = &played else { panic!("a version") };
    let output = sink.output(&door(), &segment(0, "aa", chunks.lineage(&played))).unwrap();
    output.done().unwrap();
    assert_eq!(source.finished(&door(), &played).unwrap(), None);
    source.finish(&door(), version, 3).unwrap();
    let finished = source.finished(&door(), &played).unwrap().unwrap();
    assert_eq!(finished.to_string(), "is finished: it was read and stored before, except 3 items that were rejected");
    assert!(!output.is_done().unwrap());
    let [changed, ..] = nodes(folder.path(), "3s");
    assert_eq!(changed.finished(&door(), &played).unwrap(), None, "what is made of it is another");
    let other = source.played("s3://clips/door.mp4".into(), "two".into());
    assert_eq!(source.finished(&door(), &other).unwrap(), None);
    assert_eq!(source.finished(&door(), &Played::Live).unwrap(), None);
}

#[test]
fn indices_of_a_live_stream_go_on_behind_what_was_begun() {
    let folder = tempfile::tempdir().unwrap();
    {
        let [_, chunks, sink] = nodes(folder.path(), "2s");
        let next = || chunks.next_index(&door()).unwrap().unwrap();
        assert_eq!([next(), next(), next()], [0, 1, 2]);
        let lineage = chunks.lineage(&Played::Live);
        for index in [1, 0] {
            let output = sink.output(&door(), &segment(index, "aa", lineage.clone())).unwrap();
            output.begin().unwrap();
            assert!(output.is_live() && !output.is_begun().unwrap() && !output.is_done().unwrap());
            output.done().unwrap();
        }
        // Another node of the same process counts on.
        let [_, again, _] = nodes(folder.path(), "3s");
        assert_eq!(again.next_index(&door()).unwrap(), Some(3));
    }
    let [_, chunks, _] = nodes(folder.path(), "2s");
    assert_eq!(chunks.next_index(&door()).unwrap(), Some(2), "2 was never begun by a sink");
    assert_eq!(chunks.next_index(&StreamId::new("yard").unwrap()).unwrap(), Some(0));
    assert_eq!(chunks.lineage(&Played::Anew), None);
}

#[test]
fn what_streams_are_called_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let [source, ..] = nodes(folder.path(), "2s");
    let found = source.found_streams().unwrap();
    assert_eq!(found.id("one in/a.mp4"), None);
    source.keep_streams(&found, &[("one in/a.mp4".to_owned(), door())]).unwrap();
    let found = source.found_streams().unwrap();
    assert_eq!((found.id("one in/a.mp4"), found.id("two in/a.mp4")), (Some(&door()), None));
    assert_eq!(found.taken(), BTreeSet::from([door()]));
    let other = progress(folder.path(), "others", Configuration::default());
    assert!(other.found_streams().unwrap().taken().is_empty(), "of another source");
}

#[test]
fn notes_belong_to_their_node() {
    let folder = tempfile::tempdir().unwrap();
    let [source, _, sink] = nodes(folder.path(), "2s");
    sink.set_note("a", b"note").unwrap();
    assert_eq!(sink.note("a").unwrap().as_deref(), Some(&b"note"[..]));
    assert_eq!((sink.note("b").unwrap(), source.note("a").unwrap()), (None, None));

    sink.set_note("b", b"other").unwrap();
    let key = sink.note_key("a");
    sink.retain_notes(|other, note| key != other || note != b"note").unwrap();
    assert_eq!(sink.note("a").unwrap(), None);
    assert_eq!(sink.note("b").unwrap().as_deref(), Some(&b"other"[..]));
}

#[test]
fn nothing_is_remembered_where_nobody_opened_it() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("state");
    let origin = Origin { graph: "door".into(), node: "clips".into() };
    let closed = Progress::new(Arc::new(State::new(place.clone())), origin, Configuration::default());
    assert_eq!(closed.next_index(&door()).unwrap(), None);
    assert!(closed.output(&door(), &segment(0, "aa", Some(Lineage::Live))).is_none());
    assert!(!place.exists(), "a graph that is only checked leaves nothing behind");
}

#[test]
fn a_folder_that_cannot_be_used_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |place: PathBuf| State::new(place).open().unwrap_err();
    std::fs::write(folder.path().join("plain"), "x").unwrap();
    let error = refused(folder.path().join("plain/state"));
    assert!(error.message.contains("plain/state") && error.hint.contains("`dir` of `[state]`"), "{error:?}");

    for damage in [&b"this is no database"[..], &[0; 4096], &[0xff; 100_000]] {
        let place = folder.path().join(format!("damaged-{}", damage.len()));
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("progress.redb"), damage).unwrap();
        let error = refused(place);
        assert!(error.message.contains("progress.redb") && error.message.contains("damaged"), "{error:?}");
        assert!(error.hint.contains("move that file away"), "{error:?}");
    }
}

#[test]
fn bytes_that_were_changed_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    {
        let [_, chunks, sink] = nodes(folder.path(), "2s");
        for index in 0..50 {
            sink.output(&door(), &segment(index, "aa", chunks.lineage(&Played::Live))).unwrap().begin().unwrap();
        }
    }
    let file = folder.path().join("progress.redb");
    let whole = std::fs::read(&file).unwrap();
    for at in (4096..whole.len().min(64 << 10)).step_by(997) {
        let mut damaged = whole.clone();
        for byte in &mut damaged[at..(at + 64).min(whole.len())] {
            *byte = !*byte;
        }
        std::fs::write(&file, damaged).unwrap();
        let state = State::new(folder.path().to_owned());
        // Pages that nothing is on may be anything.
        match state.open() {
            Err(error) => assert!(error.message.contains("damaged"), "{error:?}"),
            Ok(()) => {
                let origin = Origin { graph: "door".into(), node: "chunks".into() };
                let chunks = Progress::new(Arc::new(state), origin, Configuration::default());
                assert_eq!(chunks.next_index(&door()).unwrap(), Some(50), "at {at}");
            }
        }
    }
}

#[test]
fn one_process_shares_it_and_lets_it_go() {
    let folder = tempfile::tempdir().unwrap();
    let one = State::new(folder.path().to_owned());
    let other = State::new(folder.path().join("."));
    one.open().unwrap();
    other.open().unwrap();
    drop(one);
    other.open().unwrap();
    drop(other);
    // Only now somebody else may have it.
    let database = redb::Database::open(folder.path().join("progress.redb")).unwrap();
    let error = State::new(folder.path().to_owned()).open().unwrap_err();
    assert!(error.message.contains("another engine keeps its progress in"), "{error:?}");
    drop(database);
    State::new(folder.path().to_owned()).open().unwrap();
}
