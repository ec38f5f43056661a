//! Streams of a bucket over HTTP: started by presets, looked at while their chunks are made and uploaded, and listed no
//! more when they are over.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use support::bucket::{Bucket, Fault, clips, objects, with_credentials};
use support::vss::Vss;
use support::{Engine, Folder, command, ffmpeg, get, send, wait_for};

/// Seconds of a video, with a keyframe every second.
const SECONDS: usize = 6;

fn video(path: &Path) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    let source = format!("testsrc=size=160x120:rate=10:duration={SECONDS}");
    ffmpeg(&["-f", "lavfi", "-i", &source, "-c:v", "libx264", "-g", "10", "-sc_threshold", "0"], path);
}

fn buckets() -> (tempfile::TempDir, Bucket) {
    let (root, bucket) = clips();
    fs::create_dir(root.path().join("archive")).expect("a bucket");
    (root, bucket)
}

fn graph(bucket: &Bucket, source: &str, sink: &str) -> String {
    format!(
        "[sources.clips]\ntype = \"s3\"\nbucket = \"clips\"\nendpoint = \"{}\"\n{source}\n\
         [operators.chunks]\ntype = \"chunk\"\ninputs = [\"clips\"]\nevery = \"1s\"\n\
         [sinks.out]\ninputs = [\"chunks\"]\n{sink}\n",
        bucket.endpoint()
    )
}

fn to_bucket(bucket: &Bucket) -> String {
    format!(
        "type = \"s3\"\nbucket = \"archive\"\nkey = \"{{stream}}/{{name}}\"\nendpoint = \"{}\"\nuploads = 1\nretry_for = \"0s\"",
        bucket.endpoint()
    )
}

/// What `GET /streams/ID` says of the files that are made of a stream, once it is as `wanted` wants it.
fn work(engine: &mut Engine, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let address = engine.address();
    engine.wait_for(what, |_| {
        let (status, stream) = get(&format!("{address}/streams/{id}"));
        (status == 200 && wanted(&stream["work"])).then(|| stream["work"].clone())
    })
}

#[test]
fn a_preset_is_started_over_http_and_followed_until_all_of_it_is_uploaded() {
    let (root, bucket) = buckets();
    video(&root.path().join("clips/videos/textile.mp4"));
    let presets = "presets.TextileFactory = \"videos/textile.mp4\"\npresets.Yard = \"videos/yard.mp4\"";
    let folder = Folder::with_graph(&graph(&bucket, presets, &to_bucket(&bucket)));
    let mut engine = folder.run_with(&[], with_credentials);
    let address = engine.address();
    let (_, none) = engine.get("/streams");
    assert_eq!(none, json!({ "declared": [], "posted": [] }));
    let post = |preset: &str, id: &str| {
        let body = json!({ "graph": "graph", "source": "clips", "id": id, "preset": preset });
        wait_for("the graph", || {
            let answer = send("POST", &format!("{address}/streams"), &[], &body.to_string());
            (answer.status != 404).then_some(answer)
        })
    };
    let unknown = post("Textile", "a").expect(400);
    assert!(unknown.to_string().contains("there is no preset `Textile`"), "{unknown}");
    assert_eq!(unknown["hint"], "there is `TextileFactory`, `Yard`");

    // The third upload does not come to an end before it is told to.
    bucket.fail_next("PUT", &[Fault::Slow(Duration::ZERO), Fault::Slow(Duration::ZERO), Fault::Hang]);
    let added = post("TextileFactory", "textile").expect(201);
    assert_eq!(added["location"], "s3://clips/videos/textile.mp4");
    let uploading =
        work(&mut engine, "textile", "an upload that hangs", |work| work["chunks"][2]["state"] == "uploading");
    let states: Vec<&str> = uploading["chunks"]
        .as_array()
        .expect("chunks")
        .iter()
        .map(|chunk| chunk["state"].as_str().expect("a state"))
        .collect();
    assert_eq!(states[..3], ["uploaded", "uploaded", "uploading"]);
    assert!(states[3..].iter().all(|state| *state == "queued"), "{states:?}");
    assert_eq!(uploading["chunks"][0]["place"], "s3://archive/textile/textile_chunk_0000.mp4");
    assert_eq!((&uploading["uploaded"], uploading.get("ended")), (&2.into(), None), "{uploading}");
    let percent = uploading["percent"].as_f64().expect("a length is known");
    assert!((30.0..40.0).contains(&percent), "{uploading}");
    let uploading = work(&mut engine, "textile", "the end of the video", |work| work["state"] == "uploading");
    assert_eq!(uploading["made"], SECONDS, "{uploading}");
    // The upload that hangs would be waited for.
    drop(engine);
}

#[test]
fn what_is_through_is_completed_and_what_fails_says_why() {
    let (root, bucket) = buckets();
    for name in ["door", "yard"] {
        video(&root.path().join(format!("clips/{name}.mp4")));
    }
    fs::write(root.path().join("clips/text.mp4"), "no video").expect("written");
    let folder = Folder::with_graph(&graph(&bucket, "streams = {}", &to_bucket(&bucket)));
    let mut engine = folder.run_with(&[], with_credentials);
    let address = engine.address();
    let post = |id: &str| {
        let body = json!({ "graph": "graph", "source": "clips", "id": id, "key": format!("{id}.mp4") }).to_string();
        wait_for("the graph", || (send("POST", &format!("{address}/streams"), &[], &body).status == 201).then_some(()));
    };
    post("door");
    let done = work(&mut engine, "door", "the end", |work| work["state"] == "completed");
    assert_eq!((&done["made"], &done["uploaded"], &done["percent"]), (&SECONDS.into(), &SECONDS.into(), &100.0.into()));
    let (started, ended) = (done["started"].as_str().expect("a time"), done["ended"].as_str().expect("a time"));
    assert!(started < ended, "{done}");
    assert_eq!(objects(root.path(), "archive").len(), SECONDS);

    bucket.fail_next("PUT", &[Fault::Refuse(403, "AccessDenied")]);
    post("yard");
    let failed = work(&mut engine, "yard", "the end", |work| work["state"] == "error");
    assert_eq!((&failed["uploaded"], &failed["failed"]), (&(SECONDS - 1).into(), &1.into()), "{failed}");
    let chunk = &failed["chunks"][0];
    assert_eq!(chunk["state"], "failed");
    assert!(chunk["error"].as_str().is_some_and(|error| error.contains("AccessDenied")), "{chunk}");

    post("text");
    let unreadable = work(&mut engine, "text", "the end", |work| work["state"] == "error");
    assert_eq!((&unreadable["made"], &unreadable["chunks"]), (&0.into(), &json!([])), "{unreadable}");
    engine.terminate();
}

#[test]
fn uploads_to_vss_are_followed_with_their_ids() {
    let (root, bucket) = buckets();
    video(&root.path().join("clips/door.mp4"));
    let files = tempfile::tempdir().expect("a folder");
    let vss = Vss::start(files.path(), 0, &[]);
    vss.fail(&["400"]);
    let sink = format!("type = \"vss\"\nurl = \"{}\"\nconcurrency = 1", vss.url());
    let folder = Folder::with_graph(&graph(&bucket, "key = \"door.mp4\"", &sink));
    let mut engine = folder.run_with(&["--stay"], with_credentials);
    let work = work(&mut engine, "door", "the end", |work| work["state"] == "error");
    let chunks = work["chunks"].as_array().expect("chunks");
    assert_eq!(chunks[0]["error"], "InvalidFile: the file cannot be decoded", "{work}");
    assert!(chunks[1..].iter().all(|chunk| chunk["state"] == "uploaded" && chunk["place"].is_string()), "{work}");
    engine.terminate();
}

/// Streams that were found are listed for a while after they ended, also where no other one comes.
#[test]
fn a_stream_that_was_found_leaves_the_list_and_a_name_of_another_graph_is_not_taken() {
    let (root, bucket) = buckets();
    for name in ["in/door.mp4", "in/yard.mp4"] {
        video(&root.path().join("clips").join(name));
    }
    let graphs = tempfile::tempdir().expect("a folder");
    let camera = "[sources.cameras]\ntype = \"synthetic\"\nstreams = [\"yard\"]\n\
                  [sinks.nowhere]\ntype = \"blackhole\"\ninputs = [\"cameras\"]\n";
    fs::write(graphs.path().join("a.toml"), camera).expect("written");
    let found = graph(&bucket, "prefix = \"in/\"\npoll = \"1s\"", &to_bucket(&bucket));
    fs::write(graphs.path().join("b.toml"), found).expect("written");
    let mut command = command(&["run", graphs.path().to_str().expect("text"), "--listen", "127.0.0.1:0"]);
    with_credentials(&mut command);
    let mut engine = Engine::start(command);
    let told = engine.wait_for_log("found stream `yard`, which is not read");
    assert!(told.contains("the graph `a` has a stream of this name") && told.contains("another id"), "{told}");
    let address = engine.address();
    let streams = |list: &Value| -> Vec<String> {
        let named =
            |one: &Value| format!("{}/{}", one["graph"].as_str().expect("text"), one["stream"].as_str().expect("text"));
        let lists = ["declared", "posted"].map(|kind| list[kind].as_array().expect("a list").clone());
        lists.concat().iter().map(named).collect()
    };
    work(&mut engine, "door", "the end", |work| work["state"] == "completed");
    assert_eq!(objects(root.path(), "archive").len(), SECONDS);
    engine.wait_for("an end of the list", |_| {
        let (_, list) = get(&format!("{address}/streams"));
        (streams(&list) == ["a/yard"]).then_some(())
    });
    engine.terminate();
}

/// All streams of a camera source may come later.
#[test]
fn cameras_may_all_be_added_later_and_the_plan_counts_with_them() {
    let text = "[sources.cameras]\ntype = \"rtsp\"\nstreams = {}\nmax_streams = 5\n\
                [operators.sums]\ntype = \"checksum\"\ninputs = [\"cameras\"]\n\
                [sinks.nowhere]\ntype = \"blackhole\"\ninputs = [\"sums\"]\n";
    let folder = Folder::with_graph(text);
    let plan = support::plan(&folder.graph(), &[]);
    let terms = plan["memory"]["terms"].as_array().expect("terms");
    let tap = terms.iter().find(|term| term["what"].as_str().is_some_and(|what| what.contains("behind the tap")));
    assert_eq!(tap.expect("a tap")["count"], 5, "{terms:?}");
    let mut engine = folder.run(&["--allow-host", "127.0.0.1"]);
    let address = engine.address();
    // Nobody is there: it is tried again, which is how a camera begins.
    let port = support::cameras::free_port();
    let body =
        json!({ "graph": "graph", "source": "cameras", "id": "door", "url": format!("rtsp://127.0.0.1:{port}/x") });
    wait_for("the graph", || {
        let answer = send("POST", &format!("{address}/streams"), &[], &body.to_string());
        (answer.status == 201).then_some(())
    });
    let graph = engine.wait_for_graph("a retry", |graph| graph["streams"][0]["state"] == "retrying");
    assert_eq!(graph["streams"][0]["stream"], "door");
    assert!(get(&format!("{address}/streams/door")).1.get("work").is_none(), "no files are made of it");
    engine.terminate();
}
