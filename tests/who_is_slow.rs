//! Who is slow: a running engine names what limits it, in `/stats` and in `/metrics`.

use serde_json::Value;
use support::{Folder, StalledPipe, get_text, material};

fn node<'g>(graph: &'g Value, name: &str, role: &str) -> &'g Value {
    let nodes = graph["nodes"].as_array().expect("a list");
    nodes.iter().find(|node| node["name"] == name && node["role"] == role).expect("the node")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn a_graph_that_is_fine_says_so() {
    let folder = Folder::with_graph(
        r#"
        [sources.camera]
        type = "synthetic"
        width = 64
        height = 48
        fps = 10

        [operators.sum]
        type = "checksum"
        inputs = ["camera"]

        [sinks.out]
        type = "blackhole"
        inputs = ["sum"]
        "#,
    );
    let mut engine = folder.run(&[]);
    let graph = engine.wait_for_graph("a judgement", |graph| graph["culprit"]["kind"] == "nothing");
    let text = graph["culprit"]["text"].as_str().expect("a sentence");
    assert!(text.starts_with("nothing is slow; the source gives ") && text.ends_with(" fps"), "{text}");
    assert_eq!(graph["culprit"]["streams"], serde_json::json!(["synthetic"]));
    let stream = &graph["streams"][0];
    assert_eq!((stream["live"].as_bool(), stream.get("culprit")), (Some(true), None), "{stream}");
    assert!(number(&stream["rate_in"]) > 0.0);
    assert!(number(&node(&graph, "sum", "pool")["rate"]) > 0.0);
    assert_eq!(node(&graph, "sum", "pool")["inputs"], serde_json::json!(["camera -> sum"]));
    let (_, _, metrics) = get_text(&format!("{}/metrics", engine.address()));
    let wanted = r#"engine_culprit{graph="graph",kind="nothing",node=""} 1"#;
    assert!(metrics.lines().any(|line| line == wanted), "{metrics}");
    engine.terminate().expect(0);
}

/// A pipe that nobody reads: the sink is named, how long its item waits, and how long the source does. Once somebody
/// reads, it is named no more.
#[test]
fn a_slow_sink_is_named_and_what_waits_for_it() {
    let folder = Folder::with_graph(
        r#"
        [sources.camera]
        type = "synthetic"
        width = 64
        height = 48
        fps = 200

        [operators.sum]
        type = "checksum"
        inputs = ["camera"]
        overflow = "block"

        [sinks.out]
        type = "file"
        inputs = ["sum"]
        path = "out.jsonl"
        "#,
    );
    let pipe = StalledPipe::new(folder.file("out.jsonl"));
    let mut engine = folder.run(&[]);
    let stalled =
        |graph: &Value| graph["culprit"]["kind"] == "sink" && number(&graph["streams"][0]["blocked_share"]) > 0.9;
    let graph = engine.wait_for_graph("a sink that is named", stalled);
    let culprit = &graph["culprit"];
    assert_eq!((&culprit["node"], &culprit["streams"]), (&"out".into(), &serde_json::json!(["synthetic"])));
    let text = culprit["text"].as_str().expect("a sentence");
    assert!(text.starts_with("`out` on stream `synthetic`: writing "), "{text}");
    let out = node(&graph, "out", "sink");
    assert!(number(&out["busy_share"]) > 0.5 && number(&out["queued"]) > 0.0, "{out}");
    assert!(number(&out["oldest_ms"]) > 0.0, "{out}");
    let tap = &graph["streams"][0]["taps"][0];
    assert_eq!((&tap["tap"], &tap["reader"]), (&"camera -> sum".into(), &"sum".into()));
    assert!(number(&tap["blocked_share"]) > 0.9 && tap["held_items"] == tap["held_items_limit"], "{tap}");

    // With nobody who reads, what is oldest gets older.
    let age = number(&out["oldest_ms"]);
    engine.wait_for_graph("an older item", |graph| number(&node(graph, "out", "sink")["oldest_ms"]) > age + 500.0);
    let (_, _, metrics) = get_text(&format!("{}/metrics", engine.address()));
    assert!(metrics.contains(r#"engine_culprit{graph="graph",kind="sink",node="out"} 1"#), "{metrics}");
    let blocked = metrics.lines().find(|line| line.starts_with("engine_stream_blocked_seconds_total{"));
    let blocked = blocked.expect("the time that the source waited");
    assert!(blocked.contains(r#"node="sum""#), "{blocked}");
    assert!(blocked.rsplit(' ').next().expect("a value").parse::<f64>().expect("seconds") > 1.0, "{blocked}");

    let reader = pipe.drain();
    engine.wait_for_graph("nothing that is slow", |graph| graph["culprit"]["kind"] != "sink");
    engine.terminate().expect(0);
    reader.join().expect("its lines");
}

/// More pictures than one thread's model can look at: the model is named, with what it costs and needs.
#[test]
fn a_model_that_cannot_keep_up_is_named_with_what_it_needs() {
    if material().is_none() {
        return;
    }
    let folder = Folder::with_graph(
        r#"
        [sources.camera]
        type = "synthetic"
        width = 320
        height = 192
        fps = 400

        [operators.people]
        type = "detect"
        inputs = ["camera"]
        model = "yolox_nano"

        [sinks.out]
        type = "blackhole"
        inputs = ["people"]
        "#,
    );
    let mut engine = folder.run(&["--pool-threads", "1"]);
    let needs_more = |graph: &Value| {
        let culprit = &graph["culprit"];
        culprit["kind"] == "pool" && culprit["needs_cores"].as_f64() > culprit["has_cores"].as_f64()
    };
    let graph = engine.wait_for_graph("a model that is named", needs_more);
    let culprit = &graph["culprit"];
    assert_eq!(culprit["node"], "people");
    let text = culprit["text"].as_str().expect("a sentence");
    assert!(text.starts_with("`people` on stream `synthetic`: inference ") && text.contains("cores, has "), "{text}");
    let has = number(&culprit["has_cores"]);
    assert!((0.7..=1.01).contains(&has), "one thread: {has}");
    // What it costs and how many come is what it needs.
    let needs = number(&culprit["cost_ms"]) * number(&culprit["rate"]) / 1000.0;
    assert!((needs - number(&culprit["needs_cores"])).abs() < 1e-6, "{culprit}");
    let people = node(&graph, "people", "pool");
    assert!(number(&people["rate"]) < number(&culprit["rate"]), "what is dropped comes too: {people}");
    assert!(number(&graph["streams"][0]["rate_dropped"]) > 0.0);
    engine.terminate();
}

/// Pictures that take longer to make than to throw away.
#[test]
fn a_source_that_is_the_limit_itself_is_named() {
    let folder = Folder::with_graph(
        r#"
        [sources.scene]
        type = "synthetic"
        width = 1920
        height = 1080
        realtime = false

        [sinks.out]
        type = "blackhole"
        inputs = ["scene"]
        # A machine that is busy with other things lets pictures wait for a moment; that must not stop the source.
        budget = { items = 64, bytes = "256MiB" }
        "#,
    );
    let mut engine = folder.run(&[]);
    let graph = engine.wait_for_graph("a source that is named", |graph| graph["culprit"]["kind"] == "source");
    let culprit = &graph["culprit"];
    assert_eq!(culprit["node"], "scene");
    let text = culprit["text"].as_str().expect("a sentence");
    assert!(text.starts_with("`scene` on stream `synthetic`: reading and decoding is the limit, "), "{text}");
    assert!(number(&culprit["rate"]) > 0.0);
    engine.terminate().expect(0);
}
