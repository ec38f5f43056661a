//! What a graph with `[state]` remembers over a restart: outputs that are stored are not stored again, inputs that are
//! finished are not read again, and indices go on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::bucket::{Asked, Bucket, Fault, clips, objects, with_credentials};
use support::vss::Vss;
use support::{Dice, Engine, Finished, Folder, allowed, command, ffmpeg, run_folder, send, soak, wait_for};

/// Seconds of the video, and so chunks of it.
const SECONDS: usize = 20;

/// A video with a keyframe every second.
fn video(path: &Path, seconds: usize) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    let source = format!("testsrc=size=160x120:rate=10:duration={seconds}");
    ffmpeg(&["-f", "lavfi", "-i", &source, "-c:v", "libx264", "-g", "10", "-sc_threshold", "0"], path);
}

/// A length of chunks for what is read as slowly as it is shown.
const HALF: &str = "500ms";

/// A video with a keyframe every half second, so with so many chunks of [`HALF`]; ten pictures each.
fn paced_video(path: &Path, chunks: usize) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    let source = format!("testsrc=size=160x120:rate=20:duration={}", chunks as f64 / 2.0);
    ffmpeg(&["-f", "lavfi", "-i", &source, "-c:v", "libx264", "-g", "10", "-sc_threshold", "0"], path);
}

/// A server with a bucket `clips` for videos and a bucket `archive` for chunks.
fn buckets() -> (tempfile::TempDir, Bucket) {
    let (root, bucket) = clips();
    fs::create_dir(root.path().join("archive")).expect("a bucket");
    (root, bucket)
}

/// Chunks of what `source` says, into the bucket `archive`.
fn chunks_to_bucket(bucket: &Bucket, source: &str, every: &str, sink: &str) -> Folder {
    Folder::with_graph(&format!(
        r#"
        [state]
        dir = "state"

        [sources.clips]
        {source}

        [operators.chunks]
        type = "chunk"
        inputs = ["clips"]
        every = "{every}"

        [sinks.archive]
        type = "s3"
        inputs = ["chunks"]
        bucket = "archive"
        key = "{{stream}}/{{name}}"
        endpoint = "{}"
        uploads = 1
        {sink}
        "#,
        bucket.endpoint()
    ))
}

fn from_bucket(bucket: &Bucket, which: &str) -> String {
    format!("type = \"s3\"\nbucket = \"clips\"\n{which}\nendpoint = \"{}\"", bucket.endpoint())
}

fn run(folder: &Folder) -> Engine {
    folder.run_with(&[], with_credentials)
}

fn finish(folder: &Folder) -> Finished {
    run(folder).finish().expect(0)
}

/// What a run makes that nothing disturbs; the bucket is empty behind it.
fn undisturbed(root: &Path, folder: &Folder) -> BTreeMap<String, Vec<u8>> {
    finish(folder);
    let made = objects(root, "archive");
    fs::remove_dir_all(root.join("archive")).expect("removed");
    fs::create_dir(root.join("archive")).expect("a bucket");
    made
}

/// The keys that were stored since request number `from`, in order.
fn stored_since(bucket: &Bucket, from: usize) -> Vec<String> {
    let asked = bucket.asked();
    let puts = asked[from..].iter().filter(|asked| asked.method == "PUT" && asked.status == 200);
    puts.map(|asked| asked.path.clone()).collect()
}

/// How much of videos was read since request number `from`.
fn reads_since(bucket: &Bucket, from: usize) -> usize {
    let is_read = |asked: &&Asked| asked.method == "GET" && asked.range.is_some();
    bucket.asked()[from..].iter().filter(is_read).count()
}

/// Kills the engine again and again while it stores, and lets it finish. Each object is there as without all this, and
/// what was written down as stored was never sent again.
fn assert_survives_kills(
    folder: &Folder,
    root: &Path,
    bucket: &Bucket,
    kills: u64,
    expected: &BTreeMap<String, Vec<u8>>,
) {
    let mut dice = Dice::of(kills);
    let mut certain: BTreeSet<String> = BTreeSet::new();
    bucket.fail_always("PUT", Fault::Slow(Duration::from_millis(20)));
    for kill in 0..=kills {
        let from = bucket.asked().len();
        let mut engine = run(folder);
        if kill < kills {
            let puts = 1 + dice.roll(3) as usize;
            engine.wait_for("some objects", |_| (stored_since(bucket, from).len() >= puts).then_some(()));
            // Anywhere between two requests, or in one.
            dice.pause(Duration::from_millis(30));
            engine.signal(Signal::SIGKILL);
            engine.finish();
        } else {
            engine.finish().expect(0);
        }
        let mut stored = stored_since(bucket, from);
        // One upload at a time: the next begins when the one before is written down.
        let last = stored.pop();
        for key in &stored {
            assert!(!certain.contains(key), "{key} was stored again, in run {kill}");
        }
        certain.extend(stored);
        assert!(last.is_none_or(|last| !certain.contains(&last)), "the last one was stored again, in run {kill}");
    }
    bucket.recover();
    assert!(objects(root, "archive") == *expected, "{:?}", objects(root, "archive").keys());
}

#[test]
fn after_kill_9_every_chunk_is_there_once_as_if_nothing_had_happened() {
    let (root, bucket) = buckets();
    let kills = if soak() { 100 } else { 5 };
    // Of each run, some are stored.
    let seconds = 5 * (kills as usize + 1);
    video(&root.path().join("clips/door.mp4"), seconds);
    let source = from_bucket(&bucket, "key = \"door.mp4\"");
    let expected = undisturbed(root.path(), &chunks_to_bucket(&bucket, &source, "1s", ""));
    assert_eq!(expected.len(), seconds, "{:?}", expected.keys());

    let folder = chunks_to_bucket(&bucket, &from_bucket(&bucket, "key = \"door.mp4\""), "1s", "");
    assert_survives_kills(&folder, root.path(), &bucket, kills, &expected);

    // Everything is stored: the video is not read again, and nothing sent.
    let from = bucket.asked().len();
    let finished = finish(&folder);
    assert!(finished.stderr.contains("`s3://clips/door.mp4` is finished"), "{}", finished.stderr);
    assert_eq!((reads_since(&bucket, from), stored_since(&bucket, from).len()), (0, 0));

    // Another version is read, and another configuration too.
    video(&root.path().join("clips/door.mp4"), SECONDS - 5);
    let from = bucket.asked().len();
    finish(&folder);
    assert_eq!(stored_since(&bucket, from).len(), SECONDS - 5);
    let text = fs::read_to_string(folder.graph()).expect("written").replace("every = \"1s\"", "every = \"5s\"");
    fs::write(folder.graph(), text).expect("written");
    let from = bucket.asked().len();
    finish(&folder);
    assert_eq!(stored_since(&bucket, from).len(), SECONDS / 5 - 1);
}

/// An end in the middle closes a chunk before its time; the whole one takes its place.
#[test]
fn what_was_cut_short_by_an_end_is_stored_anew() {
    const CHUNKS: usize = 8;
    let (root, bucket) = buckets();
    paced_video(&root.path().join("clips/door.mp4"), CHUNKS);
    let source = from_bucket(&bucket, "key = \"door.mp4\"");
    let expected = undisturbed(root.path(), &chunks_to_bucket(&bucket, &source, HALF, ""));

    // As slow as the video, so that an end comes in the middle of a chunk.
    let folder = chunks_to_bucket(&bucket, &format!("{source}\nrealtime = true\noverflow = \"block\""), HALF, "");
    let mut engine = run(&folder);
    engine.wait_for("two chunks", |_| (objects(root.path(), "archive").len() >= 2).then_some(()));
    engine.terminate().expect(0);
    let before = objects(root.path(), "archive");
    let cut: Vec<&String> = before.keys().filter(|key| before[*key] != expected[*key]).collect();
    assert!(cut.len() <= 1 && before.len() < CHUNKS, "{cut:?} of {}", before.len());

    // An end that comes earlier makes a part of what is there already, and takes nothing away.
    let mut engine = run(&folder);
    engine.wait_for_graph("some pictures", |graph| graph["total"]["read"].as_u64() > Some(3));
    engine.terminate().expect(0);
    let later = objects(root.path(), "archive");
    let is_shorter = |key: &&String| later.get(*key).is_none_or(|now| now.len() < before[*key].len());
    assert_eq!(before.keys().find(is_shorter), None, "it was cut short");

    let before = later;
    let cut: Vec<&String> = before.keys().filter(|key| before[*key] != expected[*key]).collect();
    let from = bucket.asked().len();
    finish(&folder);
    assert!(objects(root.path(), "archive") == expected, "{:?}", objects(root.path(), "archive").keys());
    let again = stored_since(&bucket, from);
    let whole = before.len() - cut.len();
    assert_eq!(again.len(), CHUNKS - whole, "{again:?}");
}

/// What the policy of a branch dropped is not stored, so the input is not finished.
#[test]
fn an_input_of_which_something_was_dropped_is_read_again() {
    const CHUNKS: usize = 6;
    let (root, bucket) = buckets();
    paced_video(&root.path().join("clips/door.mp4"), CHUNKS);
    let source = from_bucket(&bucket, "key = \"door.mp4\"");
    let expected = undisturbed(root.path(), &chunks_to_bucket(&bucket, &source, HALF, ""));

    bucket.fail_always("PUT", Fault::Refuse(503, "SlowDown"));
    let little = "realtime = true\nbudget = { items = 15 }";
    let folder = chunks_to_bucket(&bucket, &format!("{source}\n{little}"), HALF, "");
    let mut engine = run(&folder);
    engine.wait_for_graph("drops", |graph| graph["total"]["dropped"].as_u64() > Some(0));
    bucket.recover();
    let finished = engine.finish().expect(0);
    let counts = finished.counts("door");
    assert!(counts.dropped > 0 && counts.lost == 0, "{counts:?}");
    assert!(finished.stderr.contains("door.mp4` is stored: it is read again at the next start"), "{}", finished.stderr);

    // With room for all of it.
    let text = fs::read_to_string(folder.graph()).expect("written");
    fs::write(folder.graph(), text.replace(little, "")).expect("written");
    finish(&folder);
    let now = objects(root.path(), "archive");
    assert!(expected.iter().all(|(key, content)| now.get(key) == Some(content)), "{:?}", now.keys());
}

#[test]
fn objects_of_a_prefix_keep_their_names_and_are_read_once() {
    let (root, bucket) = buckets();
    for key in ["in/a/door.mp4", "in/b/door.mp4"] {
        video(&root.path().join("clips").join(key), 3);
    }
    let folder = chunks_to_bucket(&bucket, &from_bucket(&bucket, "prefix = \"in/\"\nat_once = 1"), "1s", "");
    finish(&folder);
    let first = objects(root.path(), "archive");
    let names = |found: &BTreeMap<String, Vec<u8>>| {
        found.keys().filter_map(|key| Some(key.split_once('/')?.0.to_owned())).collect::<BTreeSet<_>>()
    };
    assert_eq!((first.len(), names(&first)), (6, ["door", "door-2"].map(str::to_owned).into()));
    let from = bucket.asked().len();
    finish(&folder);
    assert_eq!((reads_since(&bucket, from), stored_since(&bucket, from).len()), (0, 0));

    // The one before is gone: the other one keeps its name, and a third gets one of its own.
    fs::remove_file(root.path().join("clips/in/a/door.mp4")).expect("removed");
    video(&root.path().join("clips/in/c/door.mp4"), 2);
    finish(&folder);
    let now = objects(root.path(), "archive");
    assert_eq!((now.len(), names(&now)), (8, ["door", "door-2", "door-3"].map(str::to_owned).into()));
    assert!(first.iter().all(|(key, content)| now[key] == *content));
}

/// Both wait most of the time for the next look at the bucket, so they are done side by side.
#[test]
fn what_could_not_be_read_as_it_was_found_is_read_later() {
    std::thread::scope(|scope| {
        scope.spawn(an_object_that_is_replaced_before_its_turn_is_read_once);
        an_object_that_could_not_be_read_for_a_while_is_read_later();
    });
}

/// Replaced while it waits for its turn, an object is read once, as what it is by then.
fn an_object_that_is_replaced_before_its_turn_is_read_once() {
    let (root, bucket) = buckets();
    // Longer than a look for what is new takes to come.
    paced_video(&root.path().join("clips/in/a.mp4"), 8);
    paced_video(&root.path().join("clips/in/b.mp4"), 2);
    let which = "prefix = \"in/\"\npoll = \"1s\"\nat_once = 1\nrealtime = true\noverflow = \"block\"";
    let folder = chunks_to_bucket(&bucket, &from_bucket(&bucket, which), HALF, "");
    let mut engine = run(&folder);
    engine.wait_for("the first chunk", |_| (!objects(root.path(), "archive").is_empty()).then_some(()));
    paced_video(&root.path().join("clips/in/b.mp4"), 3);
    engine.wait_for("all chunks", |_| (objects(root.path(), "archive").len() >= 11).then_some(()));
    let finished = engine.terminate().expect(0);
    assert!(finished.stderr.contains("b.mp4` was replaced before its turn"), "{}", finished.stderr);
    let mut expected: Vec<String> = (0..8).map(|index| format!("a/a_chunk_{index:04}.mp4")).collect();
    expected.extend((0..3).map(|index| format!("b-2/b-2_chunk_{index:04}.mp4")));
    assert_eq!(objects(root.path(), "archive").into_keys().collect::<Vec<_>>(), expected);
}

/// What cannot be read while the server does not give it out is read when it does again.
fn an_object_that_could_not_be_read_for_a_while_is_read_later() {
    let (root, bucket) = buckets();
    video(&root.path().join("clips/in/a.mp4"), 2);
    bucket.fail_always("HEAD", Fault::Refuse(503, "SlowDown"));
    let which = "prefix = \"in/\"\npoll = \"1s\"\nretry_for = \"100ms\"";
    let folder = chunks_to_bucket(&bucket, &from_bucket(&bucket, which), "1s", "");
    let mut engine = run(&folder);
    engine.wait_for_log("stream `a` is tried again later");
    bucket.recover();
    engine.wait_for("its chunks", |_| (objects(root.path(), "archive").len() == 2).then_some(()));
    // In the end, nothing has failed.
    engine.terminate().expect(0);
}

/// Chunks of a file into a folder, where what exists already is an error.
fn chunks_to_files(source: &str, every: &str, state: &str) -> Folder {
    Folder::with_graph(&format!(
        r#"
        {state}
        [sources.clips]
        type = "file"
        {source}

        [operators.chunks]
        type = "chunk"
        inputs = ["clips"]
        every = "{every}"

        [sinks.files]
        type = "file"
        inputs = ["chunks"]
        path = "out/{{name}}"
        "#
    ))
}

/// The files that were made, each with what tells whether it was written anew.
fn files(folder: &Folder) -> BTreeMap<String, (u64, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(folder.file("out")) else { return BTreeMap::new() };
    let entry = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().expect("text");
        let about = fs::metadata(entry.path()).ok()?;
        (!name.starts_with('.')).then(|| (name, (about.ino(), fs::read(entry.path()).unwrap_or_default())))
    };
    entries.filter_map(|found| entry(found.expect("an entry"))).collect()
}

const STATE: &str = "[state]\ndir = \"state\"\n";

/// Most of the time they wait for videos to be shown, so they are done side by side.
#[test]
fn chunks_and_pictures_of_a_file_that_resumes_are_stored_once() {
    std::thread::scope(|scope| {
        scope.spawn(a_file_resumes_where_it_is_asked_to_and_starts_over_where_it_is_not);
        pictures_of_a_file_that_resumes_are_stored_once_and_finish();
    });
}

fn a_file_resumes_where_it_is_asked_to_and_starts_over_where_it_is_not() {
    let source = "path = \"door.mp4\"\nresume = true\nrealtime = true\noverflow = \"block\"";
    let folder = chunks_to_files(source, HALF, STATE);
    paced_video(&folder.file("door.mp4"), 6);
    let mut engine = folder.run(&[]);
    engine.wait_for("two chunks", |_| (files(&folder).len() >= 2).then_some(()));
    engine.signal(Signal::SIGKILL);
    engine.finish();
    let before = files(&folder);
    let finished = folder.run(&[]).finish().expect(0);
    assert!(!finished.stderr.contains("exists already"), "{}", finished.stderr);
    let after = files(&folder);
    assert_eq!(after.len(), 6, "{:?}", after.keys());
    // Of the last one it may not have been written down that it is there.
    for name in before.keys().take(before.len() - 1) {
        assert_eq!(before[name].0, after[name].0, "{name} was written again");
    }
    // Nothing is left to do.
    let finished = folder.run(&[]).finish().expect(0);
    assert!(finished.stderr.contains("door.mp4` is finished"), "{}", finished.stderr);
    assert_eq!(finished.counts("door").read, 0);
    assert_eq!(files(&folder), after);

    // Without it, everything is made again, and what is there is in the way.
    let text = fs::read_to_string(folder.graph()).expect("written");
    fs::write(folder.graph(), text.replace("resume = true\nrealtime = true\n", "")).expect("written");
    let finished = folder.run(&[]).finish().expect(1);
    assert!(finished.stderr.contains("exists already"), "{}", finished.stderr);
    assert_eq!(files(&folder), after);
}

/// What somebody else has put there is never ours, however often the graph is started.
#[test]
fn what_was_refused_once_is_not_written_over_the_next_time() {
    for (if_exists, code) in [("error", 1), ("skip", 0)] {
        let folder = chunks_to_files("path = \"door.mp4\"\nresume = true", "1s", STATE);
        let text = fs::read_to_string(folder.graph()).expect("written");
        let sink = format!("path = \"out/{{name}}\"\nif_exists = \"{if_exists}\"");
        fs::write(folder.graph(), text.replace("path = \"out/{name}\"", &sink)).expect("written");
        video(&folder.file("door.mp4"), 3);
        let foreign = folder.file("out/door_chunk_0001.mp4");
        fs::create_dir(folder.file("out")).expect("made");
        fs::write(&foreign, "precious").expect("written");
        for round in 1..=3 {
            let finished = folder.run(&[]).finish().expect(code);
            let told = finished.stderr.contains("`out/door_chunk_0001.mp4` exists already");
            assert_eq!(told, code == 1, "{if_exists}, round {round}: {}", finished.stderr);
            assert_eq!(fs::read(&foreign).expect("there"), b"precious", "{if_exists}, round {round}");
            assert_eq!(files(&folder).len(), 3, "{if_exists}, round {round}: what was not there is stored");
        }
        if code == 1 {
            // Out of the way, its place is taken.
            fs::rename(&foreign, folder.file("moved")).expect("moved");
            folder.run(&[]).finish().expect(0);
            assert_eq!(files(&folder).len(), 3);
        }
    }
}

/// The video was recorded anew: chunks of the earlier one are in the way, and stay.
#[test]
fn another_version_does_not_write_over_the_chunks_of_the_one_before() {
    let folder = chunks_to_files("path = \"door.mp4\"\nresume = true", "1s", STATE);
    video(&folder.file("door.mp4"), 3);
    folder.run(&[]).finish().expect(0);
    let before = files(&folder);
    video(&folder.file("door.mp4"), 4);
    for _ in 0..2 {
        let finished = folder.run(&[]).finish().expect(1);
        // Of several that fail at once not each is told of.
        assert!(finished.stderr.contains(".mp4` exists already"), "{}", finished.stderr);
        let now = files(&folder);
        assert!(before.iter().all(|(name, file)| now[name] == *file), "one was written over");
        assert_eq!(now.len(), 4, "what was not there is stored");
    }
}

/// A file of records goes on: an input that is finished is not read again, and its records stay.
#[test]
fn records_of_what_is_finished_stay_in_their_file() {
    let folder = Folder::with_graph(&format!(
        "{STATE}[sources.clips]\ntype = \"file\"\nresume = true\nstreams.a = \"a.mp4\"\nstreams.b = \"b.mp4\"\n\
         [operators.sums]\ntype = \"checksum\"\ninputs = [\"clips\"]\n\
         [sinks.told]\ntype = \"file\"\ninputs = [\"sums\"]\npath = \"told.jsonl\"\n"
    ));
    video(&folder.file("a.mp4"), 2);
    video(&folder.file("b.mp4"), 1);
    folder.run(&[]).finish().expect(0);
    let first = fs::read_to_string(folder.file("told.jsonl")).expect("there");
    assert_eq!(first.lines().count(), 30);
    let finished = folder.run(&[]).finish().expect(0);
    assert!(finished.stderr.contains("b.mp4` is finished"), "{}", finished.stderr);
    assert!(fs::read_to_string(folder.file("told.jsonl")).expect("there") == first);

    // What a kill in the middle of a line leaves is cut off, and a new version's records come behind the others.
    fs::write(folder.file("told.jsonl"), format!("{first}{{\"id\":\"gra")).expect("written");
    video(&folder.file("b.mp4"), 4);
    folder.run(&[]).finish().expect(0);
    let records = folder.records("told.jsonl");
    let of = |stream: &str| records.iter().filter(|record| record["stream"] == stream).count();
    assert_eq!((of("a"), of("b")), (20, 10 + 40));
    assert!(fs::read_to_string(folder.file("told.jsonl")).expect("there").starts_with(&first));
}

fn pictures_of_a_file_that_resumes_are_stored_once_and_finish() {
    let folder = Folder::with_graph(&format!(
        "{STATE}[sources.clips]\ntype = \"file\"\npath = \"door.mp4\"\nresume = true\nrealtime = true\noverflow = \"block\"\n\
         [sinks.files]\ntype = \"file\"\ninputs = [\"clips\"]\npath = \"out/{{name}}\"\n"
    ));
    paced_video(&folder.file("door.mp4"), 6);
    let mut engine = folder.run(&[]);
    engine.wait_for("some pictures", |_| (files(&folder).len() >= 10).then_some(()));
    engine.signal(Signal::SIGKILL);
    engine.finish();
    let before = files(&folder);
    assert!(before.len() < 60, "it was killed too late");
    let finished = folder.run(&[]).finish().expect(0);
    assert!(!finished.stderr.contains("exists already"), "{}", finished.stderr);
    assert_eq!(finished.counts("door").lost, 0);
    let after = files(&folder);
    assert_eq!(after.len(), 60, "{:?}", after.keys());
    let again = before.iter().filter(|(name, file)| after[*name].0 != file.0).count();
    assert!(again <= 4, "{again} pictures were written again; so many are under way at once");
    let finished = folder.run(&[]).finish().expect(0);
    assert!(finished.stderr.contains("door.mp4` is finished"), "{}", finished.stderr);
    assert_eq!(files(&folder), after);
    // Somebody else's are not written over, however fast they come.
    fs::remove_dir_all(folder.file("state")).expect("removed");
    let text = fs::read_to_string(folder.graph()).expect("written");
    fs::write(folder.graph(), text.replace("realtime = true\n", "")).expect("written");
    for _ in 0..2 {
        let finished = folder.run(&[]).finish().expect(1);
        assert!(finished.stderr.contains("exists already"), "{}", finished.stderr);
        assert_eq!(files(&folder), after);
    }
}

/// Most of the time they wait for videos to be shown, so they are done side by side.
#[test]
fn indices_go_on_after_a_restart_and_after_a_reload() {
    std::thread::scope(|scope| {
        scope.spawn(indices_of_a_live_stream_go_on_after_kill_9_and_nothing_is_written_over);
        indices_go_on_when_a_reload_changes_what_makes_them();
    });
}

fn indices_of_a_live_stream_go_on_after_kill_9_and_nothing_is_written_over() {
    let folder = chunks_to_files("streams.door = { path = \"door.mp4\", loop = true, realtime = true }", HALF, STATE);
    paced_video(&folder.file("door.mp4"), 4);
    let mut before = BTreeMap::new();
    for round in 1..=4 {
        let mut engine = folder.run(&[]);
        let wanted = before.len() + 2;
        engine.wait_for("more chunks", |_| (files(&folder).len() >= wanted).then_some(()));
        // Killed and ended in turn.
        let stderr = if round % 2 == 1 {
            engine.signal(Signal::SIGKILL);
            engine.finish().stderr
        } else {
            engine.terminate().expect(0).stderr
        };
        assert!(!stderr.contains("ERROR") && !stderr.contains("exists already"), "{stderr}");
        let now = files(&folder);
        assert!(before.iter().all(|(name, file)| now[name] == *file), "one was written over in round {round}");
        let newest = before.keys().next_back().cloned().unwrap_or_default();
        assert!(now.keys().filter(|name| !before.contains_key(*name)).all(|name| *name > newest), "{:?}", now.keys());
        before = now;
    }
    // Without what was remembered, the indices begin again, and what is there stays.
    fs::remove_dir_all(folder.file("state")).expect("removed");
    let mut engine = folder.run(&[]);
    engine.wait_for_log("exists already");
    engine.terminate();
    assert!(before.iter().all(|(name, file)| files(&folder)[name] == *file));
}

#[test]
fn what_exists_in_a_bucket_is_treated_as_it_is_said() {
    let (root, bucket) = buckets();
    let precious = |keys: usize| {
        fs::create_dir_all(root.path().join("archive/door")).expect("made");
        for index in 0..keys {
            let name = format!("archive/door/door_chunk_{index:04}.mp4");
            fs::write(root.path().join(name), "precious").expect("written");
        }
    };
    let kept = || objects(root.path(), "archive").values().filter(|content| **content == b"precious").count();
    let folder = |if_exists: &str, state: bool| {
        let folder = chunks_to_bucket(
            &bucket,
            "type = \"file\"\npath = \"door.mp4\"",
            "1s",
            &format!("if_exists = \"{if_exists}\""),
        );
        video(&folder.file("door.mp4"), 3);
        if !state {
            let text =
                fs::read_to_string(folder.graph()).expect("written").replace("[state]\n        dir = \"state\"", "");
            fs::write(folder.graph(), text).expect("written");
        }
        folder
    };
    precious(2);
    let refused = run(&folder("error", false)).finish().expect(1);
    let told = "`s3://archive/door/door_chunk_0000.mp4` exists already";
    assert!(refused.stderr.contains(told) && refused.stderr.contains("overwrite"), "{}", refused.stderr);
    assert_eq!((kept(), objects(root.path(), "archive").len()), (2, 3), "what was not there is stored");
    let finished = finish(&folder("skip", false));
    assert_eq!((kept(), finished.counts("door").lost), (2, 0));
    finish(&folder("overwrite", true));
    assert_eq!(kept(), 0);
}

/// `vss` keeps its notes in the state of the graph where it has none of its own.
#[test]
fn uploads_to_vss_are_remembered_with_everything_else() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let graph = |resume: bool| {
        format!(
            "{STATE}[sources.clips]\ntype = \"file\"\npath = \"door.mp4\"\nresume = {resume}\n[operators.chunks]\ntype = \"chunk\"\n\
             inputs = [\"clips\"]\nevery = \"1s\"\n[sinks.search]\ntype = \"vss\"\ninputs = [\"chunks\"]\nurl = \"{}\"\n\
             timeout = \"2s\"\nconcurrency = 1\n",
            vss.url()
        )
    };
    let folder = Folder::with_graph(&graph(true));
    video(&folder.file("door.mp4"), 4);
    vss.fail(&["ok", "kept-hang"]);
    let engine = folder.run(&[]);
    wait_for("an upload that is not answered", || (vss.posts() >= 2).then_some(()));
    engine.signal(Signal::SIGKILL);
    engine.finish();
    vss.fail(&[]);
    folder.run(&[]).finish().expect(0);
    assert_eq!(vss.posts(), 4, "{:?}", vss.log());
    let finished = folder.run(&[]).finish().expect(0);
    assert!(finished.stderr.contains("is finished"), "{}", finished.stderr);
    // Also where the file starts over, what is there is not sent again.
    fs::write(folder.graph(), graph(false)).expect("written");
    folder.run(&[]).finish().expect(0);
    assert_eq!(vss.posts(), 4, "{:?}", vss.log());
}

/// Chunks of `door.mp4`, uploaded one by one.
fn chunks_to_vss(port: u16, source: &str, every: &str, sink: &str) -> Folder {
    Folder::with_graph(&format!(
        "{STATE}[sources.clips]\ntype = \"file\"\npath = \"door.mp4\"\nresume = true\n{source}\n\
         [operators.chunks]\ntype = \"chunk\"\ninputs = [\"clips\"]\nevery = \"{every}\"\n\
         [sinks.search]\ntype = \"vss\"\ninputs = [\"chunks\"]\nurl = \"http://127.0.0.1:{port}\"\ntimeout = \"2s\"\n\
         concurrency = 1\n{sink}\n"
    ))
}

/// What the server has: the sizes of the files of each name.
fn uploaded(files: &Path) -> BTreeMap<String, Vec<u64>> {
    let mut names: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for entry in fs::read_dir(files).expect("the folder of the server") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "json") {
            // The server may delete one while this looks.
            let (Ok(about), Ok(file)) = (fs::read(&path), fs::metadata(path.with_extension(""))) else { continue };
            let about: serde_json::Value = serde_json::from_slice(&about).expect("JSON");
            let name = about["filename"].as_str().expect("a name").to_owned();
            names.entry(name).or_default().push(file.len());
        }
    }
    names
}

/// A service that was down, or somebody between who refused, is no reason to leave anything out the next time. A chunk
/// that the service itself will not have is left out, and the log says so.
#[test]
fn what_a_service_did_not_take_for_a_while_is_uploaded_by_the_next_run() {
    let files = tempfile::tempdir().expect("a folder");
    // Its port is free again when it is killed.
    let port = Vss::start(files.path(), 0, &[]).port;
    let folder = chunks_to_vss(port, "", "1s", "retry_for = \"100ms\"");
    video(&folder.file("door.mp4"), 3);
    let finished = folder.run(&[]).finish().expect(1);
    let counts = finished.counts("door");
    assert_eq!((counts.read, counts.lost, counts.rejected), (30, 30, 0), "{counts:?}");
    assert!(finished.stderr.contains("it is read again at the next start"), "{}", finished.stderr);

    let vss = Vss::start(files.path(), port, &["--token", "right"]);
    let counts = folder.run(&[]).finish().expect(1).counts("door");
    assert_eq!((counts.lost, counts.rejected), (30, 0), "without the token: {counts:?}");
    drop(vss);

    let vss = Vss::start(files.path(), port, &[]);
    vss.fail(&["ok", "400"]);
    let finished = folder.run(&[]).finish().expect(0);
    let counts = finished.counts("door");
    assert_eq!((counts.delivered, counts.rejected), (20, 10), "{counts:?}");
    assert!(finished.stderr.contains("10 of its items were rejected"), "{}", finished.stderr);
    assert_eq!(uploaded(files.path()).len(), 2);
    let finished = folder.run(&[]).finish().expect(0);
    let told = "is finished: it was read and stored before, except 10 items that were rejected";
    assert!(finished.stderr.contains(told), "{}", finished.stderr);
    assert_eq!(vss.posts(), 3, "{:?}", vss.log());
}

/// An end in the middle of a chunk: the whole one takes the place of what was uploaded of it, and files of others stay.
#[test]
fn a_part_of_a_chunk_goes_from_vss_when_all_of_it_is_there() {
    // They wait for the video to be shown, so they are done side by side.
    std::thread::scope(|scope| {
        for api in ["v2", "rtvi3"] {
            scope.spawn(move || assert_part_goes(api));
        }
    });
}

fn assert_part_goes(api: &str) {
    const CHUNKS: usize = 6;
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let api = format!("api = \"{api}\"");
    let folder = chunks_to_vss(vss.port, "realtime = true\noverflow = \"block\"", HALF, &api);
    paced_video(&folder.file("door.mp4"), CHUNKS);
    let engine = folder.run(&[]);
    wait_for("a chunk", || (!uploaded(files.path()).is_empty()).then_some(()));
    engine.terminate().expect(0);
    let before = uploaded(files.path());
    assert!(before.len() < CHUNKS, "it ended too late: {before:?}");
    // What is cut short once more takes the place of nothing that is whole.
    let mut engine = folder.run(&[]);
    engine.wait_for_graph("some packets", |graph| graph["total"]["read"].as_u64() > Some(2));
    engine.terminate().expect(0);
    let first = "door_chunk_0000.mp4";
    assert_eq!(uploaded(files.path())[first], before[first], "{:?}", vss.log());
    // Where the server does not answer for a while, it goes later.
    vss.fail(&["delete-503", "delete-ok"]);
    folder.run(&[]).finish().expect(0);
    // Each is as it was made: as long as without an end.
    let whole = tempfile::tempdir().expect("a folder");
    let other = Vss::start(whole.path(), 0, &[]);
    let undisturbed = chunks_to_vss(other.port, "", HALF, &api);
    fs::copy(folder.file("door.mp4"), undisturbed.file("door.mp4")).expect("copied");
    undisturbed.run(&[]).finish().expect(0);
    let there = uploaded(files.path());
    assert_eq!((there.len(), &there), (CHUNKS, &uploaded(whole.path())), "{:?}", vss.log());
}

/// With the time in its name, what is made again after an end or a kill has the name that it had.
#[test]
fn names_that_tell_a_time_are_those_of_the_first_time() {
    // They wait for the video to be shown, so they are done side by side.
    std::thread::scope(|scope| {
        for if_exists in ["error", "overwrite"] {
            scope.spawn(move || assert_names_stay(if_exists));
        }
    });
}

fn assert_names_stay(if_exists: &str) {
    const CHUNKS: usize = 8;
    let source = "path = \"door.mp4\"\nresume = true\nrealtime = true\noverflow = \"block\"";
    let folder = chunks_to_files(source, HALF, STATE);
    let text = fs::read_to_string(folder.graph()).expect("written");
    let sink = format!("path = \"out/{{time}}_{{name}}\"\nif_exists = \"{if_exists}\"");
    fs::write(folder.graph(), text.replace("path = \"out/{name}\"", &sink)).expect("written");
    paced_video(&folder.file("door.mp4"), CHUNKS);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let before = files(&folder).len();
        let mut engine = folder.run(&[]);
        // The one that was cut short is not new the next time.
        engine.wait_for("more chunks", |_| (files(&folder).len() > before).then_some(()));
        engine.signal(signal);
        engine.finish();
    }
    assert!(files(&folder).len() < CHUNKS, "it was killed too late");
    folder.run(&[]).finish().expect(0);
    let names: Vec<String> = files(&folder).into_keys().collect();
    let ends: Vec<&str> = names.iter().filter_map(|name| Some(name.split_once('_')?.1)).collect();
    let expected: Vec<String> = (0..CHUNKS).map(|index| format!("door_chunk_{index:04}.mp4")).collect();
    assert_eq!(ends, expected, "{names:?}");
}

/// Pairs of a data set, which are named after the time of reading, are there once, and count towards `max`.
#[test]
fn pairs_of_a_data_set_are_stored_once_after_kill_9() {
    let folder = Folder::with_graph(&format!(
        "{STATE}[sources.clips]\ntype = \"file\"\npath = \"door.mp4\"\nresume = true\nrealtime = true\noverflow = \"block\"\n\
         [sinks.training]\ntype = \"dataset\"\ninputs = [\"clips\"]\noutput = \"out\"\nmax = 30\n"
    ));
    video(&folder.file("door.mp4"), 4);
    let pairs = || {
        let found = glob::glob(&format!("{}/**/*.json", folder.file("out").display())).expect("a pattern");
        let found = found.map(|path| path.expect("a path"));
        let seq = |path: &PathBuf| -> u64 {
            let about: serde_json::Value = serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON");
            let picture = path.with_file_name(about["picture"]["file"].as_str().expect("a name"));
            assert!(picture.exists(), "{}", picture.display());
            about["seq"].as_u64().expect("a number")
        };
        let mut numbers: Vec<u64> = found.map(|path| seq(&path)).collect();
        numbers.sort_unstable();
        numbers
    };
    for _ in 0..2 {
        let before = pairs().len();
        let mut engine = folder.run(&[]);
        engine.wait_for("more pairs", |_| (pairs().len() >= before + 5).then_some(()));
        engine.signal(Signal::SIGKILL);
        engine.finish();
    }
    assert!(pairs().len() < 30, "it was killed too late");
    let finished = folder.run(&[]).finish().expect(0);
    assert!(finished.stderr.contains("`training` has all that it wanted"), "{}", finished.stderr);
    assert_eq!(pairs(), (0..30).collect::<Vec<u64>>());
    let pictures = glob::glob(&format!("{}/**/*.jpg", folder.file("out").display())).expect("a pattern").count();
    assert_eq!(pictures, 30);
}

/// Without any state, too: a change of what makes chunks, while their stream is read, writes over none.
fn indices_go_on_when_a_reload_changes_what_makes_them() {
    let folder = tempfile::tempdir().expect("a folder");
    paced_video(&folder.path().join("door.mp4"), 4);
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let graph = |every: &str| {
        format!(
            "[sources.clips]\ntype = \"file\"\npath = \"door.mp4\"\nloop = true\nrealtime = true\n\
             [operators.chunks]\ntype = \"chunk\"\ninputs = [\"clips\"]\nevery = \"{every}\"\n\
             [sinks.files]\ntype = \"file\"\ninputs = [\"chunks\"]\npath = \"out/{{name}}\"\n"
        )
    };
    let made = || -> BTreeMap<String, u64> {
        let entries = fs::read_dir(folder.path().join("out")).into_iter().flatten().filter_map(Result::ok);
        let chunk = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().expect("text");
            Some((name, entry.metadata().ok()?.ino()))
        };
        entries.filter_map(chunk).filter(|(name, _)| name.starts_with("door_chunk")).collect()
    };
    send("PUT", &format!("{address}/graphs/door"), &[], &graph(HALF)).expect(201);
    for every in ["1s", HALF] {
        let enough = made().len() + 2;
        engine.wait_for("two chunks", |_| (made().len() >= enough).then_some(()));
        let before = made();
        let reloaded = send("PUT", &format!("{address}/graphs/door"), &[], &graph(every)).expect(200);
        assert_eq!(reloaded["lost"], 0, "{reloaded}");
        engine.wait_for("another chunk", |_| (made().len() > before.len() + 1).then_some(()));
        let now = made();
        assert!(before.iter().all(|(name, file)| now[name] == *file), "one was written over: {now:?}");
    }
    let finished = engine.terminate().expect(0);
    assert!(!finished.stderr.contains("exists already"), "{}", finished.stderr);
    let indices: Vec<String> = (0..made().len()).map(|index| format!("door_chunk_{index:04}.mp4")).collect();
    assert_eq!(made().into_keys().collect::<Vec<_>>(), indices);
}

fn refused(folder: &Folder) -> String {
    let finished = folder.run(&[]).finish();
    assert_ne!(finished.code(), 0, "{}", finished.stderr);
    finished.stderr
}

#[test]
fn a_state_that_cannot_be_used_is_said_before_anything_runs() {
    let folder = chunks_to_files("path = \"door.mp4\"\nloop = true\nrealtime = true", "1s", STATE);
    video(&folder.file("door.mp4"), 2);
    let mut engine = folder.run(&[]);
    engine.wait_for("a chunk", |_| (!files(&folder).is_empty()).then_some(()));
    let said = refused(&folder);
    assert!(said.contains("another engine keeps its progress in") && said.contains("a `dir` of its own"), "{said}");
    engine.terminate().expect(0);

    fs::write(folder.file("state/progress.redb"), "this is no database").expect("written");
    let said = refused(&folder);
    assert!(said.contains("progress.redb` is damaged") && said.contains("move that file away"), "{said}");

    fs::remove_dir_all(folder.file("state")).expect("removed");
    fs::write(folder.file("state"), "a file").expect("written");
    let said = refused(&folder);
    assert!(said.contains("progress cannot be kept in") && said.contains("hint: give `dir`"), "{said}");

    fs::remove_file(folder.file("state")).expect("removed");
    let finished = folder
        .run_with(&[], |command| {
            let mut limited = Command::new("bash");
            limited.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "bash"]).arg(command.get_program());
            limited.args(command.get_args()).current_dir(folder.path());
            for (name, value) in command.get_envs() {
                match value {
                    Some(value) => limited.env(name, value),
                    None => limited.env_remove(name),
                };
            }
            *command = limited;
        })
        .finish();
    assert_ne!(finished.code(), 0, "{}", finished.stderr);
    assert!(finished.stderr.contains("file too large") && finished.stderr.contains("make room"), "{}", finished.stderr);

    let lost = chunks_to_files("path = \"door.mp4\"\nresume = true", "1s", "");
    video(&lost.file("door.mp4"), 2);
    let said = refused(&lost);
    assert!(said.contains("`resume` needs to know where progress is kept") && said.contains("[state]"), "{said}");
}

/// The check looks at a graph and leaves nothing behind.
#[test]
fn a_graph_that_is_only_checked_makes_no_state() {
    let folder = chunks_to_files("path = \"door.mp4\"\nresume = true", "1s", STATE);
    video(&folder.file("door.mp4"), 2);
    for arguments in [&["check", "graph.toml"][..], &["plan", "graph.toml"]] {
        let output = command(arguments).current_dir(folder.path()).output().expect("the engine's binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(!folder.file("state").exists());
}

/// A graph that comes over HTTP keeps its state where it may; a reload goes on with the same one.
#[test]
fn over_http_the_folder_must_be_allowed_and_a_reload_shares_it() {
    let folder = tempfile::tempdir().expect("a folder");
    paced_video(&folder.path().join("door.mp4"), 4);
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let graph = |dir: &str, every: &str| {
        format!(
            "[state]\ndir = \"{dir}\"\n[sources.clips]\ntype = \"file\"\npath = \"door.mp4\"\nloop = true\nrealtime = true\n\
             [operators.chunks]\ntype = \"chunk\"\ninputs = [\"clips\"]\nevery = \"{every}\"\n\
             [sinks.files]\ntype = \"file\"\ninputs = [\"chunks\"]\npath = \"out/{{name}}\"\n"
        )
    };
    assert!(allowed().contains(&"--allow-path".into()));
    let outside = folder.path().with_extension("outside");
    let refused = send("PUT", &format!("{address}/graphs/door"), &[], &graph(&outside.display().to_string(), HALF));
    let told = refused.expect(400);
    assert!(told.to_string().contains("may not name the path"), "{told}");
    assert!(!outside.exists());

    let made = || {
        let entries = fs::read_dir(folder.path().join("out")).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect::<BTreeSet<_>>()
    };
    let chunk = |made: &BTreeSet<String>| made.iter().filter(|name| name.ends_with(".mp4")).count();
    send("PUT", &format!("{address}/graphs/door"), &[], &graph("state", HALF)).expect(201);
    engine.wait_for("a chunk", |_| (chunk(&made()) >= 1).then_some(()));
    // Chunks are cut elsewhere from here on, and their numbers go on.
    send("PUT", &format!("{address}/graphs/door"), &[], &graph("state", "1s")).expect(200);
    let before = chunk(&made());
    engine.wait_for("another chunk", |_| (chunk(&made()) > before).then_some(()));
    // Another folder is opened anew.
    send("PUT", &format!("{address}/graphs/door"), &[], &graph("other-state", "1s").replace("out/", "other/"))
        .expect(200);
    assert!(folder.path().join("other-state/progress.redb").exists());
    let deleted = send("DELETE", &format!("{address}/graphs/door"), &[], "");
    assert_eq!(deleted.status, 200, "{}", deleted.text);
    // Nobody has it any more: another graph may be the only one that does.
    send("PUT", &format!("{address}/graphs/yard"), &[], &graph("state", HALF).replace("out/", "yard/")).expect(201);
    let finished = engine.terminate().expect(0);
    assert!(!finished.stderr.contains("exists already"), "{}", finished.stderr);
    let indices: Vec<PathBuf> = made().iter().map(PathBuf::from).collect();
    assert!(indices.len() >= 3, "{indices:?}");
}
