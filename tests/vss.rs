//! Segments into NVIDIA VSS, against a server that speaks its interface (`tests/support/vss_server.py`) and fails as told.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use support::bucket::{clips, with_credentials};
use support::cameras::free_port;
use support::vss::Vss;
use support::{Finished, Folder, ffmpeg, repository, run_graph, send, wait_for};

/// Seconds of the clip, and of a chunk: so many chunks.
const SECONDS: u32 = 6;
const CHUNK: u32 = 2;
const CHUNKS: usize = (SECONDS / CHUNK) as usize;

/// What a server keeps: by name, the contents and ids of all files that are called so.
fn stored(folder: &Path) -> BTreeMap<String, Vec<(String, Vec<u8>)>> {
    let mut files: BTreeMap<String, Vec<(String, Vec<u8>)>> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("the folder of the server") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let about: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
            let content = std::fs::read(path.with_extension("")).expect("a content");
            let name = about["filename"].as_str().expect("a name").to_owned();
            files.entry(name).or_default().push((about["id"].as_str().expect("an id").to_owned(), content));
        }
    }
    files
}

/// A folder with a clip and a graph that uploads its chunks to `url`; `more` is said of the sink.
fn uploading(url: &str, more: &str) -> Folder {
    let text = format!(
        r#"
[sources.archive]
type = "file"
streams.door = "clip.mp4"

[operators.chunks]
type = "chunk"
inputs = ["archive"]
every = "{CHUNK}s"

[sinks.search]
type = "vss"
inputs = ["chunks"]
url = "{url}"
{more}

[sinks.made]
type = "file"
inputs = ["chunks"]
path = "made/{{name}}"
if_exists = "replace"

[sinks.told]
type = "file"
inputs = ["search"]
path = "told.jsonl"
"#
    );
    let folder = Folder::with_graph(&text);
    let source = format!("testsrc=size=160x120:rate=10:duration={SECONDS}");
    ffmpeg(&["-f", "lavfi", "-i", &source, "-c:v", "libx264", "-g", "10"], &folder.file("clip.mp4"));
    folder
}

/// Each chunk is on the server once, as it was made, and its record says under which id.
fn assert_each_once(folder: &Folder, files: &Path) {
    let stored = stored(files);
    assert_eq!(stored.len(), CHUNKS, "{:?}", stored.keys());
    let told = folder.records("told.jsonl");
    assert_eq!(told.len(), CHUNKS, "{told:#?}");
    for (index, record) in told.iter().enumerate() {
        let name = record["name"].as_str().expect("a name");
        assert_eq!((&record["state"], &record["index"]), (&"uploaded".into(), &index.into()), "{record:#}");
        let copies = &stored[name];
        assert_eq!(copies.len(), 1, "{name} is there {} times", copies.len());
        let (id, content) = &copies[0];
        assert_eq!(record["vss_id"], id.as_str(), "{record:#}");
        let made = std::fs::read(folder.file(&format!("made/{name}"))).expect("the chunk");
        assert!(*content == made, "{name} is another one than was made");
    }
}

fn finish(folder: &Folder) -> Finished {
    folder.run(&[]).finish()
}

#[test]
fn each_chunk_is_uploaded_once_and_again_only_where_the_server_forgot_it() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &["--token", "a-secret-token"]);
    let folder =
        uploading(&vss.url(), "state = \"state\"\ntoken = \"a-secret-token\"\nsummarize = { prompt = \"What?\" }");
    let finished = finish(&folder).expect(0);
    let counts = finished.counts("door");
    assert_eq!(counts.delivered, counts.read);
    assert_each_once(&folder, files.path());
    for record in folder.records("told.jsonl") {
        assert_eq!(record["summary"], format!("{}: What?", record["name"].as_str().expect("a name")));
    }
    assert_eq!(vss.posts(), CHUNKS);

    // The same again: everything is there.
    finish(&folder).expect(0);
    assert_each_once(&folder, files.path());
    assert_eq!(vss.posts(), CHUNKS);

    // The server lost one.
    let one = stored(files.path()).into_values().next().expect("a file").remove(0).0;
    let headers = [("authorization", "Bearer a-secret-token")];
    assert_eq!(send("DELETE", &format!("{}/files/{one}", vss.url()), &headers, "").status, 200);
    finish(&folder).expect(0);
    assert_each_once(&folder, files.path());
    assert_eq!(vss.posts(), CHUNKS + 1);
}

/// Answers that never come, or do not say what became of the file: none is there twice in the end, and what others have
/// put there stays.
#[test]
fn what_an_unclear_answer_left_behind_is_found_and_not_repeated() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let settings = "state = \"state\"\ntimeout = \"1s\"\nconcurrency = 1";
    let folder = uploading(&vss.url(), settings);
    vss.fail(&["503", "kept-500", "cut", "kept-cut", "hang", "kept-hang", "500", "ok"]);
    finish(&folder).expect(0);
    assert_each_once(&folder, files.path());

    // Somebody else's copies: without its state the engine cannot know them for its own, and leaves them alone.
    let before = stored(files.path());
    std::fs::remove_dir_all(folder.file("state")).expect("removed");
    vss.fail(&["kept-500"]);
    finish(&folder).expect(0);
    for (name, copies) in stored(files.path()) {
        assert_eq!(copies.len(), 2, "{name}");
        let id = &before[&name][0].0;
        assert!(copies.iter().any(|(other, _)| other == id), "{name}: that of before is gone");
    }
}

#[test]
fn an_id_of_our_own_makes_repeats_harmless() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = uploading(&vss.url(), "api = \"rtvi3\"\ntimeout = \"1s\"\nconcurrency = 1");
    vss.fail(&["kept-500", "cut", "kept-hang"]);
    finish(&folder).expect(0);
    assert_each_once(&folder, files.path());
    assert!(vss.log().iter().all(|line| line.contains(" /v1/")), "{:?}", vss.log());
    // Ids are those of the segments, also without any state.
    let posts = vss.posts();
    vss.fail(&["ok", "ok", "ok"]);
    let again = finish(&folder);
    assert_each_once(&folder, files.path());
    assert_eq!(vss.posts(), posts, "{:?}", again.code());
}

/// Killed while the server works on an upload, as often as there are chunks, and started again on the same state.
#[test]
fn after_kill_9_each_chunk_is_there_once() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = uploading(&vss.url(), "state = \"state\"\ntimeout = \"2s\"\nconcurrency = 1");
    for kill in 0..CHUNKS {
        let posts = vss.posts();
        vss.fail(&["kept-hang", "kept-hang", "kept-hang"]);
        let engine = folder.run(&[]);
        wait_for("an upload that is not answered", || (vss.posts() > posts).then_some(()));
        wait_for("a file that is kept", || (stored(files.path()).len() > kill).then_some(()));
        engine.signal(Signal::SIGKILL);
        engine.finish();
    }
    vss.fail(&[]);
    finish(&folder).expect(0);
    assert_each_once(&folder, files.path());
}

#[test]
fn a_service_that_is_down_for_a_while_gets_everything_later() {
    let files = tempfile::tempdir().expect("a folder");
    // Its port is free again when it is killed.
    let port = Vss::start(files.path(), 0, &[]).port;
    let folder = uploading(&format!("http://127.0.0.1:{port}"), "state = \"state\"");
    let mut engine = folder.run(&[]);
    engine.wait_for_log("`search` cannot upload `door_chunk_0000.mp4` yet: Unreachable");
    let vss = Vss::start(files.path(), port, &[]);
    engine.finish().expect(0);
    assert_each_once(&folder, files.path());
    assert_eq!(vss.posts(), CHUNKS, "none was sent where nobody was");
}

#[test]
fn what_the_server_refuses_is_told_with_its_words_and_holds_up_nothing() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = uploading(&vss.url(), "concurrency = 1");
    vss.fail(&["400"]);
    let finished = finish(&folder);
    let told = folder.records("told.jsonl");
    let states: Vec<&str> = told.iter().map(|record| record["state"].as_str().expect("a state")).collect();
    assert_eq!(states, ["failed", "uploaded", "uploaded"]);
    let refused = &told[0];
    assert_eq!((&refused["code"], &refused["message"]), (&"InvalidFile".into(), &"the file cannot be decoded".into()));
    assert!(refused.get("vss_id").is_none());
    let counts = finished.counts("door");
    assert!(counts.rejected > 0 && counts.rejected + counts.delivered == counts.read, "{counts:?}");
    let stderr = finished.stderr;
    assert!(stderr.contains("VSS did not take `door_chunk_0000.mp4`: InvalidFile"), "{stderr}");

    // A wrong token is final too, and shown nowhere.
    drop(vss);
    let vss = Vss::start(files.path(), 0, &["--token", "right"]);
    let folder = uploading(&vss.url(), "token = \"planted-wrong-token\"");
    let finished = finish(&folder);
    let codes: BTreeSet<String> =
        folder.records("told.jsonl").iter().map(|record| record["code"].as_str().expect("a code").to_owned()).collect();
    assert_eq!(codes, BTreeSet::from(["Unauthorized".to_owned()]));
    assert!(!finished.stderr.contains("planted"), "{}", finished.stderr);
}

#[test]
fn a_service_that_never_comes_ends_in_a_failure_that_says_so() {
    let port = free_port();
    let folder = uploading(&format!("http://127.0.0.1:{port}"), "retry_for = \"1s\"");
    finish(&folder);
    for record in folder.records("told.jsonl") {
        assert_eq!((&record["state"], &record["code"]), (&"failed".into(), &"Unreachable".into()), "{record:#}");
        assert!(record["message"].as_str().expect("text").contains("given up after"), "{record:#}");
    }
}

/// `graphs/s3-to-vss.toml` on two videos of a bucket, killed and started again until it is done.
#[test]
fn videos_of_a_bucket_are_uploaded_once_however_often_the_engine_is_killed() {
    let (root, bucket) = clips();
    std::fs::create_dir(root.path().join("clips/incoming")).expect("a folder");
    let source = format!("testsrc=size=160x120:rate=10:duration={SECONDS}");
    for name in ["door.mp4", "yard.mp4"] {
        let object = root.path().join("clips/incoming").join(name);
        ffmpeg(&["-f", "lavfi", "-i", &source, "-c:v", "libx264", "-g", "10"], &object);
    }
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = Folder::with_graph("");
    let settings = [
        "bucket=clips".to_owned(),
        format!("endpoint={}", bucket.endpoint()),
        format!("vss={}", vss.url()),
        format!("every={CHUNK}s"),
        "timeout=1s".to_owned(),
    ];
    let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting.as_str()]).collect();
    let run = || {
        run_graph(&repository().join("graphs/s3-to-vss.toml"), &arguments, |command| {
            with_credentials(command);
            command.current_dir(folder.path());
        })
    };
    for kill in 1..=5 {
        let engine = run();
        // At another place each time: after so many files have come.
        wait_for("files that are uploaded", || (stored(files.path()).len() >= kill).then_some(()));
        engine.signal(Signal::SIGKILL);
        engine.finish();
    }
    run().finish().expect(0);
    let stored = stored(files.path());
    assert_eq!(stored.len(), 2 * CHUNKS, "{:?}", stored.keys());
    assert!(stored.values().all(|copies| copies.len() == 1), "one is there twice");
    // The same as without any of it.
    let (others, undisturbed) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let other = Vss::start(others.path(), 0, &[]);
    let mut again = arguments.clone();
    let url = format!("vss={}", other.url());
    again.extend(["--set", &url]);
    run_graph(&repository().join("graphs/s3-to-vss.toml"), &again, |command| {
        with_credentials(command);
        command.current_dir(undisturbed.path());
    })
    .finish()
    .expect(0);
    let contents = |files: &BTreeMap<String, Vec<(String, Vec<u8>)>>| -> BTreeMap<String, Vec<u8>> {
        files.iter().map(|(name, copies)| (name.clone(), copies[0].1.clone())).collect()
    };
    assert!(
        contents(&stored) == contents(&self::stored(others.path())),
        "other bytes than those of an undisturbed run"
    );
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    let folder = uploading("vss:8000", "");
    let finished = finish(&folder);
    assert_ne!(finished.code(), 0);
    assert!(finished.stderr.contains("it is no HTTP address"), "{}", finished.stderr);

    let folder = uploading("http://127.0.0.1:1", "state = \"clip.mp4\"");
    let finished = finish(&folder);
    assert_ne!(finished.code(), 0);
    assert!(finished.stderr.contains("clip.mp4"), "{}", finished.stderr);
}
