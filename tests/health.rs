//! `/health` tells the truth: what fails is named while it fails, and readiness comes after the start.

use nix::sys::signal::Signal;
use support::{Folder, StalledPipe, get};

const CAMERA: &str = r#"
    [sources.camera]
    type = "synthetic"
    width = 64
    height = 48

    [operators.sum]
    type = "checksum"
    inputs = ["camera"]
    "#;

#[test]
fn a_failed_stream_is_named() {
    let folder = Folder::with_graph(&format!(
        "{CAMERA}
        [sources.files]
        type = \"file\"
        streams.broken = \"broken.mp4\"
        [operators.other]
        type = \"checksum\"
        inputs = [\"files\"]
        [sinks.out]
        type = \"blackhole\"
        inputs = [\"sum\", \"other\"]
        "
    ));
    std::fs::write(folder.file("broken.mp4"), "no video at all").expect("written");
    let mut engine = folder.run(&[]);
    let address = engine.address();
    let health = engine.wait_for("a failing health", |_| {
        let (status, health) = get(&format!("{address}/health"));
        (status == 503 && health["status"] == "failing").then_some(health)
    });
    assert_eq!(health["ok"], false);
    let problems = health["problems"].as_array().expect("a list");
    let [problem] = &problems[..] else { panic!("one problem: {health}") };
    let problem = problem.as_str().expect("text");
    assert!(problem.starts_with("graph `graph`, stream `broken`: ") && problem.contains("broken.mp4"), "{problem}");

    // The other stream goes on, so the process is alive and ready.
    assert_eq!(engine.get("/health/live").0, 200);
    assert_eq!(engine.get("/health/ready").0, 200);
    engine.wait_for_graph("the camera goes on", |graph| graph["total"]["delivered"].as_u64() > Some(10));
    let ended = engine.terminate().expect(1);
    assert!(ended.stderr.contains("stream `broken`: "), "{}", ended.stderr);
    let counts = ended.counts("synthetic");
    // A live source drops where the machine stands still.
    assert_eq!(counts.read, counts.delivered + counts.dropped);
}

#[test]
fn a_sink_on_a_full_disk_is_named() {
    let folder = Folder::with_graph(&format!(
        "{CAMERA}
        [sinks.out]
        type = \"file\"
        inputs = [\"sum\"]
        path = \"/dev/full\"
        "
    ));
    let mut engine = folder.run(&[]);
    let address = engine.address();
    let health = engine.wait_for("a failing health", |_| {
        let (status, health) = get(&format!("{address}/health"));
        (status == 503 && health["status"] == "failing").then_some(health)
    });
    let problem = health["problems"][0].as_str().expect("text");
    for part in ["graph `graph`, node `out`: ", "stream `synthetic`", "/dev/full", "no space left on device"] {
        assert!(problem.contains(part), "{part} is missing: {problem}");
    }
    engine.terminate().expect(1);
}

#[test]
fn a_finished_graph_with_a_failed_stream_stays_to_be_looked_at() {
    let folder = Folder::with_graph(
        "[sources.files]\ntype = 'file'\npath = 'broken.mp4'\n[operators.sum]\ntype = 'checksum'\n\
         inputs = ['files']\n[sinks.out]\ntype = 'blackhole'\ninputs = ['sum']\n",
    );
    std::fs::write(folder.file("broken.mp4"), "no video at all").expect("written");
    let mut engine = folder.run(&["--stay"]);
    engine.wait_for_log("has ended");
    let (status, health) = engine.get("/health");
    assert_eq!((status, &health["status"]), (503, &"failing".into()), "{health}");
    engine.terminate().expect(1);
}

#[test]
fn starting_comes_before_ready_and_draining_after() {
    let folder = Folder::with_graph(
        r#"
        [sources.camera]
        type = "synthetic"
        width = 320
        height = 192
        fps = 200

        [operators.shapes]
        type = "detect"
        inputs = ["camera"]
        model = "shapes"

        [sinks.out]
        type = "file"
        inputs = ["shapes"]
        path = "out.jsonl"
        "#,
    );
    let pipe = StalledPipe::new(folder.file("out.jsonl"));
    let mut engine = folder.run(&[]);
    let address = engine.address();
    // However late this looks, it sees only what may be: starting for a while, then ready for good.
    engine.wait_for("readiness", |engine| {
        let (status, ready) = get(&format!("{address}/health/ready"));
        match (status, ready["status"].as_str()) {
            (200, Some("ok")) => Some(()),
            (503, Some("starting")) => None,
            _ => panic!("{status} {ready}\n{}", engine.stderr()),
        }
    });
    assert_eq!(engine.get("/health").0, 200);
    engine.wait_for_graph("a running graph", |graph| graph["state"] == "running");
    engine.wait_for_stall();
    engine.signal(Signal::SIGTERM);
    engine.wait_for_graph("draining", |graph| graph["state"] == "draining");
    assert_eq!(engine.get("/health/live").0, 200);
    let (status, ready) = engine.get("/health/ready");
    assert_eq!((status, &ready["ok"], &ready["status"]), (503, &false.into(), &"draining".into()));
    let reader = pipe.drain();
    let ended = engine.finish().expect(0);
    let counts = ended.counts("synthetic");
    assert_eq!(counts.delivered, reader.join().expect("its lines").len() as u64);
}

/// A sink that takes nothing is named, though nothing fails: what a live source brings meanwhile is dropped.
#[test]
fn a_sink_that_takes_nothing_is_named() {
    let folder = Folder::with_graph(&format!(
        "{CAMERA}
        [sinks.hangs]
        type = \"sse\"
        inputs = [\"sum\"]
        [sinks.well]
        type = \"blackhole\"
        inputs = [\"sum\"]
        [chaos.nodes.hangs]
        latency = \"1h\"
        "
    ));
    let mut engine = folder.run(&["--chaos", "--drain-timeout", "1s"]);
    let address = engine.address();
    let health = engine.wait_for("a failing health", |_| {
        let (status, health) = get(&format!("{address}/health"));
        (status == 503 && health["status"] == "failing").then_some(health)
    });
    let problems = health["problems"].as_array().expect("a list");
    let [problem] = &problems[..] else { panic!("one problem: {health}") };
    let problem = problem.as_str().expect("text");
    assert!(problem.starts_with("graph `graph`, node `hangs`: takes nothing for "), "{problem}");
    assert!(problem.ends_with(" s (stream `synthetic`)"), "{problem}");
    engine.terminate().expect(1);
}
