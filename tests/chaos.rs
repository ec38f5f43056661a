//! `[chaos]` from outside: every fault at once, each attributed and nothing lost; the same faults again for the same
//! seed; a connection that is really lost; and no chaos for whoever has not asked for it.

use std::collections::BTreeMap;

use serde_json::Value;
use support::cameras::{Relay, RtspServer, lively_clip, server_is_here};
use support::{Folder, command, ffmpeg, run_folder, send};

const EVERYTHING: &str = r#"
    [sources.scene]
    type = "synthetic"
    width = 64
    height = 48
    fps = 100
    streams = ["a", "b"]

    [sources.clip]
    type = "file"
    path = "clip.mp4"
    loop = true
    realtime = true

    [operators.sum]
    type = "checksum"
    inputs = ["scene", "clip"]

    [operators.tenth]
    type = "sample"
    inputs = ["scene"]
    fps = 10

    [sinks.out]
    type = "file"
    inputs = ["sum"]
    path = "out.jsonl"

    [sinks.nowhere]
    type = "blackhole"
    inputs = ["tenth"]

    [chaos]
    seed = 7

    [chaos.nodes.scene]
    flap = "500ms"
    latency = "4ms"
    loss = 0.1
    pts_jump = { every = "250ms", by = "-10s" }

    [chaos.nodes.clip]
    flap = "500ms"
    latency = "4ms"
    loss = 0.1
    pts_jump = { every = "250ms", by = "1h" }

    [chaos.nodes.sum]
    panic = 0.1
    latency = "1ms"

    [chaos.nodes.tenth]
    panic = 0.2
    latency = "1ms"

    [chaos.nodes.out]
    fail = 0.15
    latency = "3ms"

    [chaos.nodes.nowhere]
    fail = 0.2
    "#;

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no count: {value}"))
}

/// How many items of a stream were dropped by `node` for `reason`; none of a stream that is not there yet.
fn drops(stream: &Value, node: &str, reason: &str) -> u64 {
    let all = stream["drops"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter()
        .filter(|drops| drops["node"] == *node && drops["reason"] == *reason)
        .map(|drops| number(&drops["count"]))
        .sum()
}

/// Where a file of two seconds is made.
fn with_clip(text: &str) -> Folder {
    let folder = Folder::with_graph(text);
    let options =
        ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=50:duration=2", "-c:v", "libx264", "-pix_fmt", "yuv420p"];
    ffmpeg(&options, &folder.file("clip.mp4"));
    folder
}

#[test]
fn every_fault_at_once_is_attributed_and_nothing_is_lost() {
    let folder = with_clip(EVERYTHING);
    let mut engine = folder.run(&["--chaos", "--workers", "2"]);
    engine.wait_for_log("chaos is on in graph `graph`: it disturbs `");
    let graph = engine.wait_for_graph("each fault on each stream", |graph| {
        let streams = graph["streams"].as_array().expect("a list");
        let struck = |stream: &Value| {
            let source = stream["source"].as_str().expect("a name");
            number(&stream["reconnects"]) >= 2
                && drops(stream, source, "chaos: lost on the way") >= 3
                && drops(stream, "out", "chaos: the sink failed") >= 3
                && (source == "clip" || drops(stream, "nowhere", "chaos: the sink failed") >= 1)
                && number(&stream["rejected"]) >= 3
                && stream["repaired"]["chaos: clock jump"].as_u64() >= Some(2)
        };
        let tenth = graph["nodes"].as_array().expect("a list").iter().find(|node| node["name"] == "tenth");
        streams.len() == 3 && streams.iter().all(struck) && tenth.is_some_and(|node| number(&node["errors"]) >= 1)
    });
    assert_eq!(graph["chaos"]["seed"], 7);
    assert_eq!(graph["chaos"]["nodes"].as_array().expect("a list").len(), 6, "{}", graph["chaos"]);
    assert_eq!(engine.get("/graphs/graph").1["chaos"], graph["chaos"]);
    engine.wait_until_conserved();
    for stream in graph["streams"].as_array().expect("a list") {
        assert_eq!(stream["lost"], 0, "{stream}");
        let attributed: u64 = stream["drops"].as_array().expect("a list").iter().map(|one| number(&one["count"])).sum();
        // One picture may be dropped on both of its branches.
        assert!(attributed >= number(&stream["dropped"]), "{stream}");
    }
    let sink = graph["nodes"].as_array().expect("a list").iter().find(|node| node["name"] == "out").expect("a sink");
    assert!(sink["last_error"].as_str().expect("an error").contains("chaos: it failed on"), "{sink}");

    let ended = engine.terminate().expect(0);
    for stream in ["a", "b", "clip"] {
        let counts = ended.counts(stream);
        assert_eq!(counts.lost, 0, "{counts:?}");
    }
    let records = folder.records("out.jsonl");
    let errors: Vec<&str> = records.iter().filter_map(|record| record["message"].as_str()).collect();
    assert!(!errors.is_empty() && errors.iter().all(|error| error.contains("panicked: chaos: a panic")), "{errors:?}");
    let gaps = records.iter().filter(|record| record["reason"] == "chaos: the connection was lost").count();
    assert!(gaps >= 6, "{gaps}");
    let mut last = BTreeMap::<&str, (u64, f64)>::new();
    for record in records.iter().filter(|record| record["kind"] == "checksum") {
        let place = (number(&record["seq"]), record["pts"].as_f64().expect("seconds"));
        let before = last.insert(record["stream"].as_str().expect("a stream"), place);
        assert!(before.is_none_or(|(seq, pts)| seq < place.0 && pts < place.1), "{before:?} and then {record}");
    }
}

/// What the records of a run say of which item, without what differs from run to run.
fn told(folder: &Folder) -> Vec<(String, u64, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told = folder.records("out.jsonl").into_iter().filter(|record| !record["seq"].is_null()).map(|record| {
        let says = text(&record["md5"]) + &text(&record["message"]) + &text(&record["reason"]);
        (text(&record["kind"]), number(&record["seq"]), says)
    });
    told.collect()
}

#[test]
fn the_same_seed_brings_the_same_faults() {
    let text = |seed: u64| {
        format!(
            "[sources.scene]\ntype = 'synthetic'\nwidth = 64\nheight = 48\nrealtime = false\nframes = 400\n\
             [operators.sum]\ntype = 'checksum'\ninputs = ['scene']\n\
             [sinks.out]\ntype = 'file'\ninputs = ['sum']\npath = 'out.jsonl'\n\
             [chaos]\nseed = {seed}\nnodes.scene.loss = 0.1\nnodes.sum.panic = 0.05\nnodes.out.fail = 0.05\n"
        )
    };
    let run = |seed: u64| {
        let folder = Folder::with_graph(&text(seed));
        let ended = folder.run(&["--chaos"]).finish().expect(0);
        let counts = ended.counts("synthetic");
        assert!(counts.read == 400 && counts.dropped > 20 && counts.rejected > 3 && counts.lost == 0, "{counts:?}");
        (counts, told(&folder))
    };
    let first = run(1);
    assert_eq!(first, run(1));
    assert_ne!(first, run(2));
}

#[test]
fn a_file_that_is_interrupted_is_read_on_where_it_was() {
    let graph = "[sources.clip]\ntype = 'file'\npath = 'clip.mp4'\n[operators.sum]\ntype = 'checksum'\ninputs = ['clip']\n\
                 [sinks.out]\ntype = 'file'\ninputs = ['sum']\npath = 'out.jsonl'\n";
    let undisturbed = with_clip(graph);
    undisturbed.run(&[]).finish().expect(0);
    let folder = with_clip(&format!("{graph}[chaos.nodes.clip]\nflap = '300ms'\nlatency = '8ms'\n"));
    let ended = folder.run(&["--chaos"]).finish().expect(0);
    assert_eq!(ended.counts("clip"), support::Counts::all_delivered(100));
    let interrupted = ended.stderr.lines().filter(|line| line.contains("chaos: the connection was lost")).count();
    assert!(interrupted >= 1, "{}", ended.stderr);
    let sums = |folder: &Folder| told(folder).into_iter().filter(|(kind, ..)| kind == "checksum").collect::<Vec<_>>();
    assert_eq!(sums(&folder), sums(&undisturbed));
}

#[test]
fn a_camera_really_loses_its_connection() {
    if !server_is_here() {
        return;
    }
    let media = Folder::with_graph("");
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &[]);
    let server = RtspServer::start(0, &[("camera", &file)], &[]);
    let relay = Relay::start(server.port);
    let folder = Folder::with_graph(&format!(
        "[sources.cameras]\ntype = 'rtsp'\nconnect_timeout = '60s'\nread_timeout = '60s'\nno_frame_for = '60s'\n\
         backoff_first = '50ms'\nbackoff_most = '200ms'\nstreams.door = 'rtsp://127.0.0.1:{}/camera'\n\
         [operators.sum]\ntype = 'checksum'\ninputs = ['cameras']\n\
         [operators.files]\ntype = 'chunk'\ninputs = ['cameras']\nevery = '1s'\n\
         [sinks.out]\ntype = 'file'\ninputs = ['sum']\npath = 'out.jsonl'\n\
         [sinks.nowhere]\ntype = 'blackhole'\ninputs = ['files']\n\
         [chaos]\nseed = 3\nnodes.cameras = {{ flap = '500ms', loss = 0.1, pts_jump = {{ every = '500ms', by = '-1m' }} }}\n\
         nodes.files.panic = 0.05\n",
        relay.port
    ));
    let mut engine = folder.run(&["--chaos"]);
    engine.wait_for_graph("lost connections and panics", |graph| {
        let files = graph["nodes"].as_array().expect("a list").iter().find(|node| node["name"] == "files");
        let stream = &graph["streams"][0];
        number(&stream["reconnects"]) >= 3
            && drops(stream, "cameras", "chaos: lost on the way") > 0
            && files.is_some_and(|node| number(&node["errors"]) >= 1)
    });
    engine.wait_until_conserved();
    assert!(relay.connections() > 3, "each one was made anew: {}", relay.connections());
    let ended = engine.terminate().expect(0);
    assert_eq!(ended.counts("door").lost, 0);
    let records = folder.records("out.jsonl");
    let sums: Vec<&Value> = records.iter().filter(|record| record["kind"] == "checksum").collect();
    for pair in sums.windows(2) {
        assert!(pair[0]["seq"].as_u64() < pair[1]["seq"].as_u64(), "{pair:?}");
        assert!(pair[0]["pts"].as_f64() < pair[1]["pts"].as_f64(), "{pair:?}");
    }
}

#[test]
fn nobody_gets_chaos_without_asking_for_it() {
    let calm =
        "[sources.scene]\ntype = 'synthetic'\nfps = 50\n[sinks.nowhere]\ntype = 'blackhole'\ninputs = ['scene']\n";
    let text = format!("{calm}[chaos.nodes.scene]\nloss = 0.5\n");
    let folder = Folder::with_graph(&text);
    let refused = command(&["run", "graph.toml", "--listen", "127.0.0.1:0"]).current_dir(folder.path()).output();
    let refused = refused.expect("the engine's binary runs");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    for part in ["error[chaos-not-allowed]", "graph.toml:7:2", "hint", "engine run --chaos"] {
        assert!(stderr.contains(part), "{part} is missing: {stderr}");
    }
    let checked = command(&["check", "graph.toml", "--chaos"]).current_dir(folder.path()).output();
    assert!(checked.expect("the engine's binary runs").status.success());

    let graphs = tempfile::tempdir().expect("a folder");
    let mut engine = run_folder(graphs.path(), &[]);
    let address = engine.address();
    let refused = send("PUT", &format!("{address}/graphs/door"), &[], &text);
    assert_eq!(refused.status, 400, "{}", refused.text);
    assert!(
        refused.text.contains("chaos-not-allowed") && refused.text.contains("engine run --chaos"),
        "{}",
        refused.text
    );
    engine.terminate().expect(0);

    let mut engine = run_folder(graphs.path(), &["--chaos"]);
    let address = engine.address();
    let put = |text: &str| send("PUT", &format!("{address}/graphs/door"), &[], text);
    put(calm).expect(201);
    assert_eq!(engine.get("/graphs/door").1.get("chaos"), None);
    let disturbed = put(&text).expect(200);
    assert_eq!(disturbed["nodes"]["kept"], Value::Array(vec!["nowhere".into()]), "{disturbed}");
    assert_eq!(engine.get("/graphs/door").1["chaos"]["nodes"][0], "scene");
    engine.wait_for_graph("losses", |graph| drops(&graph["streams"][0], "scene", "chaos: lost on the way") > 10);
    put(calm).expect(200);
    assert_eq!(engine.get("/graphs/door").1.get("chaos"), None, "chaos has gone with its table");
    engine.wait_for_graph("a running graph", |graph| graph["state"] == "running");
    engine.wait_until_conserved();
    engine.terminate().expect(0);
}

#[test]
fn tests_of_a_graph_run_without_its_chaos() {
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = 'synthetic'\n[operators.sum]\ntype = 'checksum'\ninputs = ['scene']\n\
         [sinks.nowhere]\ntype = 'blackhole'\ninputs = ['sum']\n\
         [chaos]\nnodes.scene.loss = 0.5\nnodes.sum.panic = 0.5\n\
         [[test]]\nname = 'all of them'\nnode = 'sum'\ncount = 50\n\
         input.scene = { type = 'synthetic', width = 64, height = 48, frames = 50 }\n",
    );
    let tested =
        command(&["test", "graph.toml"]).current_dir(folder.path()).output().expect("the engine's binary runs");
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stderr));
}

#[test]
fn chaos_that_means_nothing_is_refused_where_it_stands() {
    let text = "[sources.door]\ntype = 'push'\nstreams.door = {}\n[operators.sum]\ntype = 'checksum'\ninputs = ['door']\n\
                [sinks.nowhere]\ntype = 'blackhole'\ninputs = ['sum']\n\
                [chaos]\nseed = -1\n\
                [chaos.nodes.door]\nflap = '0s'\npanic = 0.1\n\
                [chaos.nodes.sum]\npanic = 2\n\
                [chaos.nodes.nowhere]\nlatency = 5\n";
    let folder = Folder::with_graph(text);
    let check = || {
        let checked = command(&["check", "graph.toml", "--chaos"]).current_dir(folder.path()).output();
        let checked = checked.expect("the engine's binary runs");
        assert_eq!(checked.status.code(), Some(1));
        String::from_utf8(checked.stderr).expect("text")
    };
    let stderr = check();
    // Whatever else is wrong with a node, each of its fields is looked at.
    for place in ["graph.toml:11:8", "graph.toml:13:8", "graph.toml:14:1", "graph.toml:16:9", "graph.toml:18:11"] {
        assert!(stderr.contains(place), "{place} is missing: {stderr}");
    }
    std::fs::write(
        folder.graph(),
        text.replace("seed = -1", "seed = 1").replace("panic = 0.1\n", "").replace("'0s'", "'1s'"),
    )
    .expect("written");
    let text =
        std::fs::read_to_string(folder.graph()).expect("text").replace("panic = 2", "").replace("latency = 5", "");
    std::fs::write(folder.graph(), text).expect("written");
    let stderr = check();
    assert!(stderr.contains("`flap` has no meaning for `sources.door`, which connects to nothing"), "{stderr}");
}

/// What a stateful operator had in hand when it panicked is rejected with the item that it panicked at.
#[test]
fn a_panic_between_two_chunks_loses_nothing() {
    let folder = Folder::with_graph(
        "[sources.clip]\ntype = 'file'\npath = 'clip.mp4'\n\
         [operators.chunks]\ntype = 'chunk'\ninputs = ['clip']\nevery = '500ms'\n\
         [sinks.out]\ntype = 'file'\ninputs = ['chunks']\npath = 'out/{name}'\n\
         [chaos.nodes.chunks]\npanic = 0.02\n",
    );
    let picture = "testsrc=size=64x48:rate=50:duration=2";
    let options = ["-f", "lavfi", "-i", picture, "-c:v", "libx264", "-g", "5", "-pix_fmt", "yuv420p"];
    ffmpeg(&options, &folder.file("clip.mp4"));
    let ended = folder.run(&["--chaos"]).finish();
    let counts = ended.counts("clip");
    assert!(ended.stderr.contains("panicked: chaos: a panic at item"), "{}", ended.stderr);
    assert_eq!((counts.read, counts.lost), (100, 0), "{counts:?}");
    assert!(counts.rejected > 1 && counts.delivered > 0, "{counts:?}");
    ended.expect(0);
}
