use super::*;
use std::path::Path;

use crate::clock::SimulatedClock;
use crate::inference::model::Catalog;
use crate::item::{Detection, ModelName, RecordBody};
use crate::lease::{Account, Ack, Budget, Counts, Lease, Limits};
use crate::operator::NoPublisher;
use crate::time::MediaTime;
use crate::transforms::preprocess::pictures::rgb;

fn context(folder: &Path) -> BuildContext {
    BuildContext {
        origin: Origin { graph: "door".into(), node: "training".into() },
        folder: folder.to_owned(),
        models: Arc::new(Catalog::default()),
        clock: Arc::new(SimulatedClock::default()),
        publisher: Arc::new(NoPublisher),
        progress: None,
        playlists: Arc::default(),
    }
}

fn built(folder: &Path, table: &str) -> Result<Arc<dyn Sink>, Vec<FieldError>> {
    match build(&context(folder), toml::from_str(table).unwrap())? {
        Built::Sink(sink) => Ok(sink),
        _ => panic!("not a sink"),
    }
}

fn inputs(kinds: &[Kind]) -> Vec<SinkInput> {
    let of = |kind: &Kind| SinkInput {
        node: kind.plural().into(),
        kind: *kind,
        sources: vec!["cameras".into()],
        is_live: true,
        repeats: false,
    };
    kinds.iter().map(of).collect()
}

/// One stream: its account, and items of it.
struct Stream {
    account: Arc<Account>,
    budget: Arc<Budget>,
    origin: Origin,
}

impl Default for Stream {
    fn default() -> Stream {
        let origin = Origin { graph: "door".into(), node: "people".into() };
        let budget = Budget::new(Limits { items: 100, bytes: 1 << 30 });
        Stream { account: Arc::default(), budget, origin }
    }
}

impl Stream {
    fn frame(&self, seq: u64) -> Item {
        let samples: Vec<u8> = (0..64 * 32).flat_map(|_| [200, 20, 30]).collect();
        self.item(seq, Payload::Frame(Arc::new(rgb(64, 32, &samples))))
    }

    fn item(&self, seq: u64, payload: Payload) -> Item {
        self.account.read(1);
        let clock = SimulatedClock::default();
        let lease = Lease::new(self.budget.try_acquire(1).unwrap(), Ack::new(&self.account, clock.now()));
        let stream = StreamId::new("cam").unwrap();
        let pts = MediaTime::from_micros(i64::try_from(seq).unwrap() * 40_000);
        Item { stream, seq, pts, time: clock.wall() + Duration::from_millis(40 * seq), fallback: false, payload, lease }
    }

    /// What was found in a frame: a person with this score, or nothing.
    fn record(&self, frame: &Item, score: Option<f32>) -> Event {
        let detection = |score| Detection { label: "person".into(), index: 0, score, bounds: [1.0, 2.0, 30.0, 31.0] };
        let body = RecordBody::Detection {
            model: ModelName { name: "m".into(), sha256: "0".into() },
            detections: score.map(detection).into_iter().collect(),
            counts: BTreeMap::new(),
            has: BTreeMap::new(),
        };
        let record = self.origin.record(frame, body);
        Event::Item(frame.derive(Payload::Record(Arc::new(record))))
    }
}

/// What the engine does: the writer settles, the engine lets go.
async fn write(writer: &mut dyn SinkWriter, events: Vec<Event>) {
    writer.write(&events).await.unwrap();
    for event in events {
        if let Event::Item(item) = event {
            item.lease.ack.release();
        }
    }
}

/// Every file below a folder, by its path in it.
fn files(folder: &Path) -> Vec<String> {
    let pattern = format!("{}/**/*", folder.display());
    let paths = glob::glob(&pattern).unwrap().map(Result::unwrap).filter(|path| path.is_file());
    paths.map(|path| path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned()).collect()
}

fn described(folder: &Path) -> Vec<serde_json::Value> {
    let names = files(folder).into_iter().filter(|name| name.ends_with(".json"));
    names.map(|name| serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()).collect()
}

fn numbers(folder: &Path) -> Vec<u64> {
    described(folder).iter().map(|entry| entry["seq"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn frames_alone_make_a_capture_of_every_nth_and_at_most_so_many() {
    let folder = tempfile::tempdir().unwrap();
    let sink = built(folder.path(), "output = \"out\"\nevery = 3\nmax = 2").unwrap();
    let mut writer = sink.start_with(&inputs(&[Kind::Frame])).unwrap();
    let stream = Stream::default();
    for seq in 0..12 {
        assert!(seq < 4 || writer.is_complete() || seq < 12);
        write(&mut *writer, vec![Event::Item(stream.frame(seq))]).await;
    }
    writer.close().await.unwrap();
    assert!(writer.is_complete());
    let out = folder.path().join("out");
    assert_eq!(numbers(&out), [0, 3]);
    let counts = Counts { read: 12, delivered: 2, filtered: 10, ..Counts::default() };
    assert_eq!(stream.account.snapshot(), counts);
    let names = files(&out);
    assert_eq!(names.len(), 4);
    // 2023-11-14 22:13:20 UTC is when the simulated clock starts.
    assert!(names[0].starts_with("2023/11/14/20231114T221320.000000Z_"), "{names:?}");
    let (jpg, json) = (names[0].strip_suffix(".jpg").unwrap(), names[1].strip_suffix(".json").unwrap());
    assert_eq!(jpg, json);
    let entry = &described(&out)[0];
    assert_eq!(entry["picture"]["file"], names[0].rsplit('/').next().unwrap());
    assert_eq!((&entry["stream"], &entry["width"], &entry["records"]), (&"cam".into(), &64.into(), &json!([])));
    let picture = image::open(out.join(&names[0])).unwrap();
    assert_eq!((picture.width(), picture.height()), (64, 32));
}

#[tokio::test]
async fn a_picture_waits_for_its_record_and_passes_on_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let sink = built(folder.path(), "output = \"out\"").unwrap();
    let mut writer = sink.start_with(&inputs(&[Kind::Frame, Kind::Record])).unwrap();
    let stream = Stream::default();
    let frames: Vec<Item> = (0..6).map(|seq| stream.frame(seq)).collect();
    let records: Vec<Event> = [2, 4].map(|seq: usize| stream.record(&frames[seq], Some(0.5))).into();
    let mut events: Vec<Event> = frames.into_iter().map(Event::Item).collect();
    // One record comes before its picture.
    let [second, fourth] = records.try_into().unwrap_or_else(|_| panic!("two"));
    events.insert(4, fourth);
    events.push(second);
    write(&mut *writer, events).await;
    assert_eq!(stream.budget.used().0, 0, "no picture keeps the source from bringing its record");
    writer.close().await.unwrap();
    let out = folder.path().join("out");
    assert_eq!(numbers(&out), [4], "the picture of a record that comes later than the one behind it has gone");
    let entry = &described(&out)[0];
    assert_eq!(entry["records"][0]["id"], "door/people/cam/4");
    assert_eq!(entry["records"][0]["detections"][0]["label"], "person");
    assert_eq!(stream.account.snapshot().in_flight, 0);
    assert_eq!(stream.account.snapshot().lost, 0);
}

#[tokio::test]
async fn labels_and_scores_choose_and_two_nodes_speak_of_one_picture() {
    let folder = tempfile::tempdir().unwrap();
    let table = "output = \"out\"\nlabels = \"person\"\nabove = 0.3\nbelow = 0.6";
    let sink = built(folder.path(), table).unwrap();
    let mut writer = sink.start_with(&inputs(&[Kind::Frame, Kind::Record, Kind::Record])).unwrap();
    let stream = Stream::default();
    for (seq, score) in [Some(0.2), Some(0.3), Some(0.59), Some(0.6), None].into_iter().enumerate() {
        let frame = stream.frame(seq as u64);
        let both = [stream.record(&frame, score), stream.record(&frame, None)];
        let [one, other] = both;
        write(&mut *writer, vec![Event::Item(frame), one, other]).await;
    }
    writer.close().await.unwrap();
    let out = folder.path().join("out");
    assert_eq!(numbers(&out), [1, 2]);
    assert_eq!(described(&out)[0]["records"].as_array().unwrap().len(), 2);
    assert_eq!(stream.account.snapshot(), Counts { read: 5, delivered: 2, filtered: 3, ..Counts::default() });
}

#[tokio::test]
async fn annotated_pictures_show_what_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let colours = async |table: &str| {
        let sink = built(folder.path(), table).unwrap();
        let mut writer = sink.start_with(&inputs(&[Kind::Frame, Kind::Record])).unwrap();
        let stream = Stream::default();
        let frame = stream.frame(0);
        let record = stream.record(&frame, Some(0.9));
        write(&mut *writer, vec![Event::Item(frame), record]).await;
        writer.close().await.unwrap();
        let out = folder.path().join(table.split('"').nth(1).unwrap());
        let name = files(&out).into_iter().find(|name| name.ends_with(".jpg")).unwrap();
        let picture = image::open(out.join(name)).unwrap().into_rgb8();
        // Within the letters of the label, which begin at the box's corner.
        let bright = picture.pixels().filter(|pixel| pixel.0.iter().all(|sample| *sample > 180)).count();
        bright > 10
    };
    assert!(!colours("output = \"plain\"\nquality = 100").await);
    assert!(colours("output = \"marked\"\nquality = 100\nannotate = true").await);
}

#[tokio::test]
async fn a_full_window_drops_the_oldest_and_says_so_in_the_books() {
    let folder = tempfile::tempdir().unwrap();
    // Each picture takes 6 KiB.
    let sink = built(folder.path(), "output = \"out\"\nwindow = \"20KiB\"").unwrap();
    let mut writer = sink.start_with(&inputs(&[Kind::Frame, Kind::Record])).unwrap();
    let stream = Stream::default();
    let frames = (0..10).map(|seq| Event::Item(stream.frame(seq))).collect();
    write(&mut *writer, frames).await;
    let counts = stream.account.snapshot();
    assert_eq!((counts.dropped, counts.in_flight), (7, 3));
    assert_eq!(stream.account.drops(), [("training".into(), "no record in time", 7)]);
    writer.close().await.unwrap();
    assert_eq!(stream.account.snapshot().filtered, 3);
    assert_eq!(files(&folder.path().join("out")), Vec::<String>::new());
}

#[tokio::test]
async fn records_alone_are_kept_without_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let sink = built(folder.path(), "output = \"out\"\nabove = 0.5").unwrap();
    let mut writer = sink.start_with(&inputs(&[Kind::Record])).unwrap();
    let stream = Stream::default();
    for (seq, score) in [(0, Some(0.9)), (1, Some(0.1))] {
        let frame = stream.frame(seq);
        let record = stream.record(&frame, score);
        frame.lease.ack.release();
        write(&mut *writer, vec![record]).await;
    }
    writer.close().await.unwrap();
    let out = folder.path().join("out");
    assert_eq!((numbers(&out), files(&out).len()), (vec![0], 1));
    assert_eq!(described(&out)[0].get("picture"), None);
}

#[tokio::test]
async fn records_may_come_after_the_end_of_their_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let sink = built(folder.path(), "output = \"out\"").unwrap();
    let mut writer = sink.start_with(&inputs(&[Kind::Frame, Kind::Record])).unwrap();
    let stream = Stream::default();
    let frames = [stream.frame(0), stream.frame(1)];
    let [one, other] = [0, 1].map(|seq: usize| stream.record(&frames[seq], None));
    let end = || Event::End { stream: StreamId::new("cam").unwrap(), reason: EndReason::Eof };
    let [first, second] = frames;
    write(&mut *writer, vec![Event::Item(first), Event::Item(second), end()]).await;
    write(&mut *writer, vec![one, other, end()]).await;
    writer.close().await.unwrap();
    assert_eq!(numbers(&folder.path().join("out")), [0, 1]);
}

#[test]
fn sources_whose_pictures_and_records_come_differently_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let sink = built(folder.path(), "output = \"out\"").unwrap();
    let input = |kind: Kind, sources: &[&str]| SinkInput {
        node: "n".into(),
        kind,
        sources: sources.iter().map(|source| (*source).into()).collect(),
        is_live: false,
        repeats: false,
    };
    let why = |inputs: &[SinkInput]| sink.start_with(inputs).err().map(|error| error.message);
    assert_eq!(why(&[input(Kind::Frame, &["a", "b"]), input(Kind::Record, &["a", "b"])]), None);
    assert_eq!(why(&[input(Kind::Frame, &["a"]), input(Kind::Frame, &["b"]), input(Kind::Record, &["a", "b"])]), None);
    let twice = why(&[input(Kind::Frame, &["a"]), input(Kind::Frame, &["a"])]).unwrap();
    assert!(twice.contains("the pictures of `a` come to it by 2"), "{twice}");
    let differ = why(&[input(Kind::Frame, &["a", "b"]), input(Kind::Record, &["a"])]).unwrap();
    assert!(differ.contains("of `a` come 1 and 1 pictures and records"), "{differ}");
}

#[test]
fn mistakes_say_what_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = |table: &str| {
        let errors = built(folder.path(), table).err().unwrap();
        errors.iter().map(|error| error.field.clone()).collect::<Vec<_>>()
    };
    assert_eq!(wrong("output = \"\""), ["output"]);
    assert_eq!(wrong("output = \"ftp://host/x\""), ["output"]);
    assert_eq!(wrong("output = \"s3://\"\nabove = 0.5\nbelow = 0.5"), ["output", "below"]);
    assert_eq!(wrong("output = \"out\"\npicture = \"model_input\""), ["picture"]);
    assert_eq!(wrong("output = \"out\"\nmodel = \"yolox_nano\""), ["model"]);
    assert_eq!(wrong("output = \"s3://b\"\nendpoint = \"minio\""), ["endpoint"]);
    let sink = built(folder.path(), "output = \"out\"\nlabels = [\"person\"]").unwrap();
    let error = sink.start_with(&inputs(&[Kind::Frame])).err().unwrap();
    assert!(error.message.contains("no records flow into it"), "{error}");
    std::fs::write(folder.path().join("taken"), "").unwrap();
    let sink = built(folder.path(), "output = \"taken\"").unwrap();
    let error = sink.start_with(&inputs(&[Kind::Frame])).err().unwrap();
    assert!(error.message.starts_with("files cannot be stored: `taken`: "), "{error}");
}

#[test]
fn the_same_picture_has_the_same_name() {
    let folder = tempfile::tempdir().unwrap();
    let name = |seq: u64| {
        let stream = Stream::default();
        let sink = built(folder.path(), "output = \"out\"").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut writer = sink.start_with(&inputs(&[Kind::Frame])).unwrap();
            write(&mut *writer, vec![Event::Item(stream.frame(seq))]).await;
            writer.close().await.unwrap();
        });
    };
    [0, 0, 1].into_iter().for_each(name);
    assert_eq!(files(&folder.path().join("out")).len(), 4);
}
