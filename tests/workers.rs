//! Work is really spread: timely's own log of its operators shows every node of the plan at work on both workers, and
//! agrees with the engine's counters.

use serde_json::Value;
use support::{Counts, Folder, assert_conserved, plan};

const STREAMS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// Every kind of node: taps with and without sampling, inline and pool operators, sinks.
const GRAPH: &str = r#"
    [sources.scene]
    type = "synthetic"
    realtime = false
    frames = 60
    streams = ["a", "b", "c", "d", "e", "f", "g", "h"]

    [operators.ten_a_second]
    type = "sample"
    inputs = ["scene"]
    fps = 10

    [operators.five_a_second]
    type = "sample"
    inputs = ["ten_a_second"]
    fps = 5

    [operators.shapes]
    type = "detect"
    inputs = ["five_a_second"]
    model = "shapes"

    [operators.sums]
    type = "checksum"
    inputs = ["scene"]

    [sinks.boxes]
    type = "file"
    inputs = ["shapes"]
    path = "boxes.jsonl"

    [sinks.nowhere]
    type = "blackhole"
    inputs = ["sums", "shapes"]
    "#;

#[test]
fn every_node_works_on_both_workers() {
    let folder = Folder::with_graph(GRAPH);
    let log = folder.file("dataflow.jsonl");
    let mut engine = folder.run(&["--workers", "2", "--stay", "--dataflow-log", log.to_str().expect("text")]);
    let report = engine.wait_for_graph("the end of the graph", |graph| graph["state"] == "finished");
    assert_conserved(&report["total"]);
    let ended = engine.terminate().expect(0);
    for stream in STREAMS {
        assert_eq!(ended.counts(stream), Counts::all_delivered(60));
    }
    assert_eq!(folder.records("boxes.jsonl").len(), STREAMS.len() * 10);

    let plan = plan(&folder.graph(), &["--workers", "2"]);
    let names = |list: &str| -> Vec<String> {
        plan[list].as_array().expect("a list").iter().map(|node| text(&node["name"])).collect()
    };
    let nodes = report["nodes"].as_array().expect("a list");
    for name in names("operators").iter().chain(&names("sinks")) {
        assert!(nodes.iter().any(|node| node["name"] == **name), "`{name}` of the plan is counted");
    }
    let taps = nodes.iter().filter(|node| node["role"] == "tap").count();
    assert_eq!(taps, plan["sources"][0]["taps"].as_array().expect("a list").len());
    assert_eq!(nodes.len(), taps + names("operators").len() + names("sinks").len());

    let lines = folder.records("dataflow.jsonl");
    let mut streams_of = [None; 2];
    for node in nodes {
        let (name, is_tap) = (text(&node["name"]), node["role"] == "tap");
        let operator = if is_tap { format!("tap {name}") } else { name.clone() };
        for worker in 0..2_usize {
            let mine: Vec<&Value> =
                lines.iter().filter(|line| line["worker"] == worker && line["operator"] == *operator).collect();
            let [line] = mine[..] else { panic!("`{operator}` stands {} times on worker {worker}", mine.len()) };
            let items = node["items"][worker].as_u64().expect("a count");
            assert!(items > 0, "`{name}` had nothing to do on worker {worker}: {node}");
            // A tap has no input within the dataflow; each of these taps has one listener.
            let events = line[if is_tap { "sent" } else { "received" }].as_u64().expect("a count");
            // Beside items, a node sees each stream open and end, for each of its inputs.
            let inputs = if name == "nowhere" { 2 } else { 1 };
            let streams = (events - items) / (2 * inputs);
            assert_eq!(events, items + 2 * inputs * streams, "`{name}` on worker {worker}: {line}");
            assert_eq!(*streams_of[worker].get_or_insert(streams), streams, "`{name}` on worker {worker}: {line}");
        }
    }
    let [Some(first), Some(second)] = streams_of else { panic!("no nodes") };
    assert_eq!(first + second, STREAMS.len() as u64, "each stream lives on one worker");
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}
