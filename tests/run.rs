//! The life of `engine run`: how it ends by itself and by signals, what it says then, and what it leaves behind.

use std::collections::BTreeMap;
use std::net::TcpListener;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{Counts, Events, Folder, StalledPipe, assert_conserved, command};

/// Small pictures as fast as they are consumed, their checksums in `out.jsonl`.
fn sums(source: &str) -> Folder {
    Folder::with_graph(&format!(
        r#"
        [sources.scene]
        type = "synthetic"
        width = 64
        height = 48
        realtime = false
        {source}

        [operators.sum]
        type = "checksum"
        inputs = ["scene"]

        [sinks.out]
        type = "file"
        inputs = ["sum"]
        path = "out.jsonl"
        "#
    ))
}

/// The `seq` of each stream's records, in the order of the file.
fn numbers(records: &[Value]) -> BTreeMap<String, Vec<u64>> {
    let mut streams = BTreeMap::<String, Vec<u64>>::new();
    for record in records {
        let stream = record["stream"].as_str().expect("a stream").to_owned();
        streams.entry(stream).or_default().push(record["seq"].as_u64().expect("a number"));
    }
    streams
}

#[test]
fn a_finite_graph_ends_by_itself_on_any_number_of_workers() {
    for workers in ["1", "2", "4"] {
        let folder = sums(
            r#"frames = 200
            streams = ["a", "b", "c", "d", "e"]"#,
        );
        let ended = folder.run(&["--workers", workers]).finish().expect(0);
        assert!(ended.stderr.contains("graph `graph` finished after"), "{}", ended.stderr);
        let expected: Vec<u64> = (0..200).collect();
        let numbers = numbers(&folder.records("out.jsonl"));
        assert_eq!(numbers.keys().collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
        for (stream, numbers) in numbers {
            assert_eq!(numbers, expected, "stream {stream} with {workers} workers: each once, in order");
            assert_eq!(ended.counts(&stream), Counts::all_delivered(200), "stream {stream} with {workers} workers");
        }
    }
}

#[test]
fn a_signal_under_load_delivers_everything_that_was_read() {
    for (signal, workers) in [(Signal::SIGTERM, "1"), (Signal::SIGINT, "1"), (Signal::SIGTERM, "2")] {
        let folder = sums(r#"streams = ["a", "b", "c"]"#);
        let mut engine = folder.run(&["--workers", workers]);
        engine.wait_for_graph("records of every stream", |graph| {
            let streams = graph["streams"].as_array().expect("a list");
            streams.iter().all(|stream| stream["delivered"].as_u64() > Some(300))
        });
        engine.signal(signal);
        let ended = engine.finish().expect(0);
        let numbers = numbers(&folder.records("out.jsonl"));
        for stream in ["a", "b", "c"] {
            let count = numbers[stream].len() as u64;
            assert_eq!(numbers[stream], (0..count).collect::<Vec<_>>(), "each once, in order");
            assert_eq!(ended.counts(stream), Counts::all_delivered(count), "{signal} with {workers} workers");
        }
    }
}

/// An engine whose only sink has stalled, and the pipe that nobody reads.
fn stalled(arguments: &[&str]) -> (Folder, support::Engine, StalledPipe) {
    let folder = sums("");
    let pipe = StalledPipe::new(folder.file("out.jsonl"));
    let mut engine = folder.run(arguments);
    let graph = engine.wait_for_stall();
    assert_eq!(graph["streams"][0]["blocked_by"], "scene -> sum", "the source says what it waits for: {graph}");
    (folder, engine, pipe)
}

#[test]
fn a_second_signal_ends_at_once_and_names_what_is_stuck() {
    let (_folder, mut engine, _pipe) = stalled(&[]);
    engine.signal(Signal::SIGTERM);
    engine.wait_for_graph("draining", |graph| graph["state"] == "draining");
    let (status, ready) = engine.get("/health/ready");
    assert_eq!((status, &ready["status"]), (503, &"draining".into()));
    engine.signal(Signal::SIGINT);
    let ended = engine.finish().expect(1);
    let line = ended.stderr.lines().find(|line| line.contains("still open")).expect("what is stuck").to_owned();
    assert!(line.contains("told to end at once; still open: stream `synthetic`, sink `out`, "), "{line}");
    assert!(line.contains(" in flight"), "{line}");
    assert!(ended.counts("synthetic").lost > 0, "{}", ended.stderr);
}

#[test]
fn the_drain_deadline_names_what_is_stuck() {
    let (_folder, engine, _pipe) = stalled(&["--drain-timeout", "1s"]);
    let ended = engine.terminate().expect(1);
    let line = ended.stderr.lines().find(|line| line.contains("still open")).expect("what is stuck").to_owned();
    assert!(line.contains("the time to drain is over; still open: stream `synthetic`, sink `out`, "), "{line}");
    assert!(ended.counts("synthetic").lost > 0, "{}", ended.stderr);
}

#[test]
fn a_stalled_sink_that_goes_on_in_time_loses_nothing() {
    let (_folder, mut engine, pipe) = stalled(&[]);
    engine.signal(Signal::SIGTERM);
    engine.wait_for_graph("draining", |graph| graph["state"] == "draining");
    let reader = pipe.drain();
    let ended = engine.finish().expect(0);
    let lines = reader.join().expect("its lines");
    assert_eq!(ended.counts("synthetic"), Counts::all_delivered(lines.len() as u64));
}

#[test]
fn a_killed_engine_starts_again_from_nothing() {
    let folder = sums("frames = 100000");
    let mut engine = folder.run(&[]);
    engine.wait_for_graph("records", |graph| graph["total"]["delivered"].as_u64() > Some(1000));
    engine.signal(Signal::SIGKILL);
    engine.finish();
    assert!(std::fs::metadata(folder.file("out.jsonl")).expect("its output").len() > 0);

    let text = std::fs::read_to_string(folder.graph()).expect("the graph");
    std::fs::write(folder.graph(), text.replace("frames = 100000", "frames = 50")).expect("written");
    let ended = folder.run(&[]).finish().expect(0);
    assert_eq!(ended.counts("synthetic"), Counts::all_delivered(50));
    assert_eq!(numbers(&folder.records("out.jsonl"))["synthetic"], (0..50).collect::<Vec<_>>(), "no record is left");
    let mut left: Vec<_> = std::fs::read_dir(folder.path())
        .expect("the folder")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["graph.toml", "out.jsonl"]);
}

/// Two files, and a budget that the pictures of the second do not fit into from its middle on, where they grow.
#[test]
fn what_is_rejected_leaves_error_records_and_the_rest_goes_on() {
    let folder = Folder::with_graph(
        r#"
        [sources.files]
        type = "file"
        streams.a = "small.mkv"
        streams.b = "grows.ts"
        budget = { bytes = "256KiB" }

        [operators.sum]
        type = "checksum"
        inputs = ["files"]

        [sinks.out]
        type = "file"
        inputs = ["sum"]
        path = "out.jsonl"
        "#,
    );
    for (name, size, codec, start) in [
        ("small.mkv", "64x48", "ffv1", "0"),
        ("small.ts", "64x48", "mpeg2video", "0"),
        ("large.ts", "1280x720", "mpeg2video", "1"),
    ] {
        let pictures = format!("testsrc=size={size}:rate=10:duration=1");
        let arguments = ["-f", "lavfi", "-i", &pictures, "-c:v", codec, "-bf", "0", "-output_ts_offset", start];
        support::ffmpeg(&arguments, &folder.file(name));
    }
    let parts = ["small.ts", "large.ts"].map(|name| std::fs::read(folder.file(name)).expect("it was made"));
    std::fs::write(folder.file("grows.ts"), parts.concat()).expect("written");
    let ended = folder.run(&[]).finish().expect(0);
    assert!(ended.stderr.contains("10 items were rejected"), "{}", ended.stderr);
    assert_eq!(ended.counts("a"), Counts::all_delivered(10));
    let grows = ended.counts("b");
    // What stands at the joint may be damaged.
    assert!((8..=10).contains(&grows.delivered), "{grows:?}");
    assert_eq!(grows, Counts { read: grows.delivered + 10, rejected: 10, ..Counts::all_delivered(grows.delivered) });
    let records = folder.records("out.jsonl");
    let is_error = |record: &&Value| record["stream"] == "b" && record["kind"] == "error";
    let errors: Vec<_> = records.iter().filter(is_error).collect();
    assert_eq!(errors.len(), 10, "an error record in the place of each");
    for record in errors {
        assert_eq!((&record["kind"], &record["node"]), (&"error".into(), &"sum".into()));
        assert!(record["message"].as_str().is_some_and(|text| text.contains("raise `budget.bytes`")), "{record}");
    }

    std::fs::rename(folder.file("large.ts"), folder.file("small.mkv")).expect("renamed");
    let ended = folder.run(&[]).finish();
    assert_ne!(ended.code(), 0, "a budget smaller than the first picture is a mistake in the graph");
}

#[test]
fn exit_codes() {
    sums("frames = 1").run(&[]).finish().expect(0);
    let ended = sums("frames = -1").run(&[]).finish().expect(1);
    assert!(ended.stderr.contains("error["), "{}", ended.stderr);
    let output = command(&["run", "no-such-graph.toml"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    let ended = sums("frames = 1").run(&["--no-such-option"]).finish().expect(2);
    assert!(ended.stderr.contains("--no-such-option"), "{}", ended.stderr);
}

#[test]
fn an_address_in_use_is_a_clear_error() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let folder = sums("");
    let graph = folder.graph();
    let output = command(&["run", graph.to_str().expect("text"), "--listen", &address])
        .current_dir(folder.path())
        .output()
        .expect("it runs");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains(&address)
            && stderr.contains("another program listens there already")
            && stderr.contains("hint: "),
        "{stderr}"
    );
    assert!(!folder.file("out.jsonl").exists(), "nothing was started");
}

#[test]
fn a_full_disk_is_named() {
    let folder = sums("frames = 500");
    let text = std::fs::read_to_string(folder.graph()).expect("the graph");
    std::fs::write(folder.graph(), text.replace("out.jsonl", "/dev/full")).expect("written");
    let ended = folder.run(&[]).finish().expect(1);
    let line = ended.stderr.lines().find(|line| line.contains("ERROR")).expect("an error").to_owned();
    for part in ["sink `out`", "stream `synthetic`", "/dev/full", "no space left on device", "hint: make room"] {
        assert!(line.contains(part), "{part} is missing: {line}");
    }
    assert_eq!(ended.counts("synthetic"), Counts { read: 500, lost: 500, ..Counts::default() });
}

#[test]
fn the_control_plane_may_stay_after_the_end() {
    let folder = sums("frames = 20");
    let mut engine = folder.run(&["--stay"]);
    engine.wait_for_log("has ended");
    let stats = engine.stats();
    assert_eq!(stats["graphs"][0]["state"], "finished");
    assert_conserved(&stats["graphs"][0]["total"]);
    assert_eq!(stats["graphs"][0]["total"]["delivered"], 20);
    assert_eq!(engine.get("/health").0, 200);
    engine.terminate().expect(0);
}

#[test]
fn the_control_plane_ends_with_the_engine() {
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = 'synthetic'\nwidth = 64\nheight = 48\n\
         [operators.sum]\ntype = 'checksum'\ninputs = ['scene']\n[sinks.events]\ntype = 'sse'\ninputs = ['sum']\n",
    );
    let mut engine = folder.run(&[]);
    let address = engine.address();
    let mut events = Events::listen(&address, "", None);
    events.next().expect("an event");
    engine.terminate().expect(0);
    assert_eq!(events.filter(|event| event.kind != "checksum").count(), 0, "the answer ends, and ends properly");
    let port = address.rsplit_once(':').expect("a port").1.parse::<u16>().expect("a number");
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody listens any more");
}

#[test]
fn logs_are_plain_in_a_pipe_and_json_on_demand() {
    let ended = sums("frames = 5").run(&[]).finish().expect(0);
    assert!(!ended.stderr.contains('\u{1b}') && !ended.stderr.contains('\r'), "{:?}", ended.stderr);
    assert!(ended.stdout.is_empty());

    let json = |stderr: &str| -> Vec<Value> {
        let line = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let lines: Vec<Value> = stderr.lines().map(line).collect();
        for line in &lines {
            assert!(
                line["timestamp"].is_string() && line["level"].is_string() && line["message"].is_string(),
                "{line}"
            );
        }
        lines
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let folder = sums("frames = 5");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(["run", "--log-format", "json", "--listen", &address])
        .arg(folder.graph())
        .output()
        .expect("the engine's binary runs");
    assert_eq!(output.status.code(), Some(1));
    let lines = json(&String::from_utf8(output.stderr).expect("text"));
    let error = lines.iter().find(|line| line["level"] == "ERROR").expect("why it has not started");
    assert!(error["message"].as_str().is_some_and(|message| message.contains(&address)), "{error}");
    assert!(error["hint"].is_string(), "{error}");

    // What there is to say of the graph is a line of the log as well.
    let two_taps = sums("frames = 5");
    let text = std::fs::read_to_string(two_taps.graph()).expect("readable");
    let screen = "\n[sinks.screen]\ntype = \"blackhole\"\ninputs = [\"scene\"]\n";
    std::fs::write(two_taps.graph(), format!("{text}{screen}")).expect("written");
    let lines = json(&two_taps.run(&["--log-format", "json"]).finish().expect(0).stderr);
    let note = lines.iter().find(|line| line["code"] == "shared-fate").expect("a note");
    assert!(note["level"] == "INFO" && note["line"].is_u64() && note["column"].is_u64(), "{note}");
    assert!(note["file"].is_string() && note["hint"].is_string(), "{note}");
    std::fs::write(two_taps.graph(), format!("{text}{screen}treshold = 1\n")).expect("written");
    let lines = json(&two_taps.run(&["--log-format", "json"]).finish().expect(1).stderr);
    assert!(lines.iter().any(|line| line["level"] == "ERROR" && line["code"] == "unknown-field"), "{lines:?}");

    let ended = sums("frames = 5").run(&["--log-format", "json"]).finish().expect(0);
    let lines = json(&ended.stderr);
    let summary = lines.iter().find(|line| line["message"] == "summary").expect("a summary");
    let report: Value = serde_json::from_str(summary["report"].as_str().expect("text")).expect("JSON");
    assert_eq!(report["total"]["delivered"], 5);
    assert_conserved(&report["total"]);
}
