//! Segments into NVIDIA VSS, against a server that speaks its interface (`tests/support/vss_server.py`) and fails as told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use support::bucket::{clips, with_credentials};
use support::cameras::free_port;
use support::vss::Vss;
use support::{Dice, Finished, Folder, ffmpeg, repository, run_graph, send, soak, wait_for};

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
            // The server may delete one while this looks.
            let (Ok(about), Ok(content)) = (std::fs::read(&path), std::fs::read(path.with_extension(""))) else {
                continue;
            };
            let about: Value = serde_json::from_slice(&about).expect("JSON");
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
    ffmpeg(
        &["-f", "lavfi", "-i", &source, "-c:v", "libx264", "-preset", "ultrafast", "-g", "10"],
        &folder.file("clip.mp4"),
    );
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
    let settings = "state = \"state\"\ntimeout = \"500ms\"\nconcurrency = 1";
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
    let folder = uploading(&vss.url(), "api = \"rtvi3\"\ntimeout = \"500ms\"\nconcurrency = 1");
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
    let folder = uploading(&vss.url(), "state = \"state\"\ntimeout = \"500ms\"\nconcurrency = 1");
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
    let told =
        format!("cannot upload `door_chunk_0000.mp4` of stream `door` to `http://127.0.0.1:{port}`: Unreachable: ");
    let log = engine.wait_for_log(&format!("`search` {told}"));
    assert!(log.contains("it is tried again; hint: look whether the service runs"), "{log}");
    let (status, health) = engine.get("/health");
    assert!(status == 503 && health.to_string().contains(&format!("node `search` {told}")), "{health}");
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
    // Of each run some are uploaded, and some are left for the next.
    let kills = if soak() { 100 } else { 5 };
    let chunks = 8 * kills;
    let source = format!("testsrc=size=160x120:rate=10:duration={}", chunks * CHUNK as usize);
    for name in ["door.mp4", "yard.mp4"] {
        let object = root.path().join("clips/incoming").join(name);
        ffmpeg(&["-f", "lavfi", "-i", &source, "-c:v", "libx264", "-preset", "ultrafast", "-g", "10"], &object);
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
    let mut dice = Dice::of(kills as u64);
    for kill in 0..kills {
        let engine = run();
        // At another place each time: so many more files have come, and one is on its way or not.
        let wanted = stored(files.path()).len() + usize::from(kill > 0 && dice.roll(4) > 0);
        wait_for("files that are uploaded", || (stored(files.path()).len() >= wanted.max(1)).then_some(()));
        dice.pause(Duration::from_millis(30));
        engine.signal(Signal::SIGKILL);
        engine.finish();
    }
    assert!(stored(files.path()).len() < 2 * chunks, "all was there before the last kill");
    run().finish().expect(0);
    let stored = stored(files.path());
    assert_eq!(stored.len(), 2 * chunks, "{:?}", stored.keys());
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

/// How often each chunk is on the server.
fn copies(files: &Path) -> Vec<usize> {
    stored(files).values().map(Vec::len).collect()
}

/// What the records say became of the chunks, in their order.
fn states(folder: &Folder) -> Vec<String> {
    let state = |record: &Value| record["state"].as_str().expect("a state").to_owned();
    folder.records("told.jsonl").iter().map(state).collect()
}

fn requests(vss: &Vss, beginning: &str) -> usize {
    vss.log().iter().filter(|line| line.starts_with(beginning)).count()
}

/// Somebody between the engine and the service says no, or the service says that it has no such file while its list has it:
/// nothing is uploaded again.
#[test]
fn only_a_server_without_the_file_gets_it_again() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = uploading(&vss.url(), "state = \"state\"\ntimeout = \"1s\"\nconcurrency = 1");
    finish(&folder).expect(0);
    assert_each_once(&folder, files.path());

    vss.fail(&["get-403", "get-missing", "get-500"]);
    finish(&folder);
    assert_eq!(states(&folder), ["failed", "uploaded", "uploaded"]);
    assert_eq!(folder.records("told.jsonl")[0]["code"], "Gateway");
    vss.fail(&["get-404"]);
    finish(&folder);
    assert_eq!(states(&folder), ["failed", "uploaded", "uploaded"]);
    finish(&folder).expect(0);
    assert_each_once(&folder, files.path());
    assert_eq!(vss.posts(), CHUNKS);
}

/// A file that the server finishes when its repeat is answered already, and a list and a delete that fail then.
#[test]
fn a_surplus_copy_is_deleted_however_late_it_comes_and_whatever_fails() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = uploading(&vss.url(), "state = \"state\"\ntimeout = \"1s\"\nconcurrency = 1");
    // The list is looked at before each first upload, before the repeat, and at the end.
    let mut faults = vec!["late", "ok", "list-ok", "list-ok", "list-503", "delete-500"];
    if soak() {
        // Each failure in turn doubles the time until the next attempt.
        faults.extend(["list-500", "delete-503"]);
    }
    vss.fail(&faults);
    finish(&folder).expect(0);
    assert_eq!(vss.posts(), CHUNKS + 1);
    let deletes = faults.iter().filter(|fault| fault.starts_with("delete-")).count() + 1;
    assert!(requests(&vss, "DELETE") >= deletes, "{:?}", vss.log());
    assert_each_once(&folder, files.path());
}

#[test]
fn a_surplus_copy_is_deleted_by_whoever_comes_after_kill_9() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = uploading(&vss.url(), "state = \"state\"\ntimeout = \"1s\"\nconcurrency = 1");
    vss.fail(&["late", "ok", "delete-hang"]);
    let engine = folder.run(&[]);
    wait_for("a copy that is about to be deleted", || (requests(&vss, "DELETE") > 0).then_some(()));
    assert_eq!(copies(files.path()), [2], "it is there twice");
    engine.signal(Signal::SIGKILL);
    engine.finish();
    finish(&folder).expect(0);
    assert_each_once(&folder, files.path());
}

/// Two sinks for the same chunks, whose first requests leave a file and no answer: each finds its own.
#[test]
fn two_who_upload_the_same_never_claim_the_file_of_the_other() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = uploading(&vss.url(), "state = \"state\"\ntimeout = \"1s\"");
    let graph = std::fs::read_to_string(folder.graph()).expect("text");
    let second = format!(
        r#"
[sinks.second]
type = "vss"
inputs = ["chunks"]
url = "{}"
state = "other"
timeout = "1s"
"#,
        vss.url()
    );
    let graph = graph.replace("inputs = [\"search\"]", "inputs = [\"search\", \"second\"]") + &second;
    std::fs::write(folder.graph(), graph).expect("written");
    vss.fail(&["kept-500"; 2 * CHUNKS]);
    finish(&folder).expect(0);
    let told = folder.records("told.jsonl");
    let claimed: BTreeSet<&str> = told.iter().map(|record| record["vss_id"].as_str().expect("an id")).collect();
    let there: BTreeSet<String> = stored(files.path()).into_values().flatten().map(|(id, _)| id).collect();
    assert_eq!(told.len(), 2 * CHUNKS, "{told:#?}");
    assert_eq!(claimed, there.iter().map(String::as_str).collect(), "one each, and no more");
    assert_eq!(there.len(), 2 * CHUNKS);
}

#[test]
fn a_folder_of_uploads_is_used_by_one_sink_of_one_process() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = uploading(&vss.url(), "state = \"state\"");
    vss.fail(&["hang"]);
    let engine = folder.run(&[]);
    wait_for("an upload that is not answered", || (vss.posts() > 0).then_some(()));
    let second = finish(&folder);
    assert_ne!(second.code(), 0);
    let who = format!("which process {} uses", engine.id());
    assert!(second.stderr.contains(&who) && second.stderr.contains("another folder"), "{}", second.stderr);
    engine.signal(Signal::SIGKILL);
    engine.finish();

    // Two spellings of one folder.
    let graph = std::fs::read_to_string(folder.graph()).expect("text");
    let second = r#"
[sinks.second]
type = "vss"
inputs = ["chunks"]
url = "http://127.0.0.1:1"
state = "made/../state/."
"#;
    std::fs::write(folder.graph(), graph + second).expect("written");
    let finished = finish(&folder);
    assert_ne!(finished.code(), 0);
    assert!(finished.stderr.contains("would both write"), "{}", finished.stderr);
}

/// The id is ours: a repeat that is refused because the file is there has found it.
#[test]
fn a_refusal_of_what_is_there_already_is_a_success() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = uploading(&vss.url(), "api = \"rtvi3\"\ntimeout = \"1s\"\nconcurrency = 1");
    vss.fail(&["conflict", "ok", "400"]);
    finish(&folder);
    assert_eq!(states(&folder), ["uploaded", "uploaded", "failed"]);
    assert_eq!(folder.records("told.jsonl")[2]["code"], "InvalidFile");
    assert_eq!(copies(files.path()), [1, 1]);
}

#[test]
fn nothing_that_a_server_says_is_believed_blindly() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = uploading(&vss.url(), "concurrency = 1\nsummarize = { prompt = \"What?\" }");
    vss.fail(&["bad-id", "bad-size", "redirect"]);
    finish(&folder);
    assert_eq!(states(&folder), ["failed", "failed", "failed"]);
    let told = folder.records("told.jsonl");
    let codes: Vec<&str> = told.iter().map(|record| record["code"].as_str().expect("a code")).collect();
    assert_eq!(codes, ["BadId", "WrongSize", "Http307"]);
    let message = told[2]["message"].as_str().expect("a message");
    assert!(message.contains(&format!("`https://127.0.0.1:{}`: write this as `url`", vss.port)), "{message}");
    assert!(vss.log().iter().all(|line| !line.contains("..")), "{:?}", vss.log());
}

/// However long a server asks to be left alone, it is asked a last time when the time is over.
#[test]
fn a_server_that_asks_for_more_time_than_there_is_gets_what_there_is() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = uploading(&vss.url(), "retry_for = \"1s\"\nconcurrency = 1");
    vss.fail(&["after-300", "ok", "after-18446744073709551615", "after-300", "ok"]);
    finish(&folder);
    assert_eq!(states(&folder), ["uploaded", "failed", "uploaded"]);
    let message = folder.records("told.jsonl")[1]["message"].clone();
    let message = message.as_str().expect("a message");
    assert!(message.contains("for 300 s") && message.contains("given up after 2 attempts"), "{message}");
}

#[test]
fn a_summary_is_asked_for_once() {
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    let folder = uploading(&vss.url(), "state = \"state\"\nsummarize = { prompt = \"What?\" }");
    for _ in 0..2 {
        finish(&folder).expect(0);
        for record in folder.records("told.jsonl") {
            assert_eq!(record["summary"], format!("{}: What?", record["name"].as_str().expect("a name")));
        }
        assert_eq!(requests(&vss, "POST /summarize"), CHUNKS);
    }
    // Something else is another question.
    let graph = std::fs::read_to_string(folder.graph()).expect("text");
    std::fs::write(folder.graph(), graph.replace("What?", "Who?")).expect("written");
    finish(&folder).expect(0);
    assert_eq!(requests(&vss, "POST /summarize"), 2 * CHUNKS);
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
