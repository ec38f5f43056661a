//! Who is slow: a running engine names what limits it, in `/stats` and in `/metrics`.

use serde_json::Value;
use support::{Folder, StalledPipe, get, get_text, material, run_folder, send};

fn node<'g>(graph: &'g Value, name: &str, role: &str) -> &'g Value {
    let nodes = graph["nodes"].as_array().expect("a list");
    nodes.iter().find(|node| node["name"] == name && node["role"] == role).expect("the node")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// A pipe that nobody reads: the sink is named, how long its item waits, and how long the source does. Once somebody
/// reads, it is named no more. A graph beside it is fine all the while and says so.
#[test]
fn a_slow_sink_is_named_and_what_waits_for_it_and_a_graph_that_is_fine_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let graphs = folder.path().join("graphs");
    std::fs::create_dir(&graphs).expect("made");
    std::fs::write(
        graphs.join("fine.toml"),
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
    )
    .expect("written");
    std::fs::write(
        graphs.join("stalled.toml"),
        r#"
        [sources.camera]
        type = "synthetic"
        width = 64
        height = 48
        fps = 200
        streams = ["door"]

        [operators.sum]
        type = "checksum"
        inputs = ["camera"]
        overflow = "block"

        [sinks.out]
        type = "file"
        inputs = ["sum"]
        path = "out.jsonl"
        "#,
    )
    .expect("written");
    let pipe = StalledPipe::new(folder.path().join("out.jsonl"));
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let look = |name: &str| {
        let (_, stats) = get(&format!("{address}/stats"));
        stats["graphs"].as_array()?.iter().find(|graph| graph["name"] == *name).cloned()
    };

    let graph = engine.wait_for("a judgement", |_| look("fine").filter(|graph| graph["culprit"]["kind"] == "nothing"));
    let text = graph["culprit"]["text"].as_str().expect("a sentence");
    assert!(text.starts_with("nothing is slow; the source gives ") && text.ends_with(" fps"), "{text}");
    assert_eq!(graph["culprit"]["streams"], serde_json::json!(["synthetic"]));
    let stream = &graph["streams"][0];
    assert_eq!((stream["live"].as_bool(), stream.get("culprit")), (Some(true), None), "{stream}");
    assert!(number(&stream["rate_in"]) > 0.0);
    assert!(number(&node(&graph, "sum", "pool")["rate"]) > 0.0);
    assert_eq!(node(&graph, "sum", "pool")["inputs"], serde_json::json!(["camera -> sum"]));
    let (_, _, metrics) = get_text(&format!("{address}/metrics"));
    let wanted = r#"engine_culprit{graph="fine",kind="nothing",node=""} 1"#;
    assert!(metrics.lines().any(|line| line == wanted), "{metrics}");

    let stalled =
        |graph: &Value| graph["culprit"]["kind"] == "sink" && number(&graph["streams"][0]["blocked_share"]) > 0.9;
    let graph = engine.wait_for("a sink that is named", |_| look("stalled").filter(stalled));
    let culprit = &graph["culprit"];
    assert_eq!((&culprit["node"], &culprit["streams"]), (&"out".into(), &serde_json::json!(["door"])));
    let text = culprit["text"].as_str().expect("a sentence");
    assert!(text.starts_with("`out` on stream `door`: writing "), "{text}");
    let out = node(&graph, "out", "sink");
    assert!(number(&out["busy_share"]) > 0.5 && number(&out["queued"]) > 0.0, "{out}");
    assert!(number(&out["oldest_ms"]) > 0.0, "{out}");
    let tap = &graph["streams"][0]["taps"][0];
    assert_eq!((&tap["tap"], &tap["reader"]), (&"camera -> sum".into(), &"sum".into()));
    assert!(number(&tap["blocked_share"]) > 0.9 && tap["held_items"] == tap["held_items_limit"], "{tap}");

    // With nobody who reads, what is oldest gets older.
    let age = number(&out["oldest_ms"]);
    engine.wait_for("an older item", |_| {
        look("stalled").filter(|graph| number(&node(graph, "out", "sink")["oldest_ms"]) > age + 500.0)
    });
    let (_, _, metrics) = get_text(&format!("{address}/metrics"));
    assert!(metrics.contains(r#"engine_culprit{graph="stalled",kind="sink",node="out"} 1"#), "{metrics}");
    let of_stalled = r#"engine_stream_blocked_seconds_total{graph="stalled","#;
    let blocked = metrics.lines().find(|line| line.starts_with(of_stalled));
    let blocked = blocked.expect("the time that the source waited");
    assert!(blocked.contains(r#"node="sum""#), "{blocked}");
    assert!(blocked.rsplit(' ').next().expect("a value").parse::<f64>().expect("seconds") > 1.0, "{blocked}");

    let reader = pipe.drain();
    engine.wait_for("nothing that is slow", |_| look("stalled").filter(|graph| graph["culprit"]["kind"] != "sink"));
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
        // The first window may be one in which it had hardly begun.
        let has = culprit["has_cores"].as_f64();
        culprit["kind"] == "pool" && has >= Some(0.7) && culprit["needs_cores"].as_f64() > has
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

/// Two graphs share one thread: the one whose small jobs wait for the other's model names that one, and the other itself.
#[test]
fn a_graph_that_waits_for_another_one_names_it() {
    if material().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = run_folder(folder.path(), &["--pool-threads", "1"]);
    let address = engine.address();
    let source = |stream: &str, fps: u32| {
        format!(
            "[sources.camera]\ntype = \"synthetic\"\nwidth = 320\nheight = 192\nfps = {fps}\nstreams = [\"{stream}\"]\n\
             [sinks.out]\ntype = \"blackhole\"\ninputs = [\"node\"]\n"
        )
    };
    let model = "[operators.node]\ntype = \"detect\"\ninputs = [\"camera\"]\nmodel = \"yolox_nano\"\n";
    let sums = "[operators.node]\ntype = \"checksum\"\ninputs = [\"camera\"]\n";
    let put = |name: &str, text: String| send("PUT", &format!("{address}/graphs/{name}"), &[], &text).expect(201);
    put("yard", source("yard", 400) + model);
    put("door", source("door", 900) + sums);
    let culprit = |graph: &str| -> Option<Value> {
        let (_, stats) = get(&format!("{address}/stats"));
        let graphs = stats["graphs"].as_array()?.clone();
        Some(graphs.iter().find(|one| one["name"] == *graph)?["culprit"].clone())
    };
    let named = engine.wait_for("the other graph", |_| culprit("door").filter(|culprit| culprit["graph"] == "yard"));
    assert_eq!(
        (&named["kind"], &named["node"], &named["streams"]),
        (&"pool".into(), &"node".into(), &serde_json::json!(["door"]))
    );
    let text = named["text"].as_str().expect("a sentence");
    let expected = "`node` on stream `door`: the pool is full of `node` of graph `yard`: inference ";
    assert!(text.starts_with(expected) && text.ends_with(" of 1 core"), "{text}");
    let (_, _, metrics) = get_text(&format!("{address}/metrics"));
    assert!(metrics.contains(r#"engine_culprit{graph="door",kind="pool",node="yard/node"} 1"#), "{metrics}");
    let own = engine.wait_for("its own", |_| culprit("yard").filter(|culprit| culprit["kind"] == "pool"));
    assert_eq!((&own["node"], own.get("graph")), (&"node".into(), None), "{own}");
    engine.terminate();
}

/// Of two cameras behind one model, one gives nearly all of the pictures: that one is what the model is busy with.
#[test]
fn the_stream_that_a_node_is_busy_with_is_told() {
    let folder = Folder::with_graph(
        r#"
        [sources.fast]
        type = "synthetic"
        width = 320
        height = 192
        fps = 100
        streams = ["door"]

        [sources.slow]
        type = "synthetic"
        width = 320
        height = 192
        fps = 5
        streams = ["yard"]

        [operators.sum]
        type = "checksum"
        inputs = ["fast", "slow"]

        [sinks.out]
        type = "file"
        inputs = ["sum"]
        path = "out.jsonl"
        "#,
    );
    let mut engine = folder.run(&[]);
    let share = |graph: &Value, stream: &str, node: &str| {
        let streams = graph["streams"].as_array().expect("a list");
        let stream = streams.iter().find(|one| one["stream"] == *stream).expect("the stream");
        let busy = stream["busy"].as_array().expect("a list").iter().find(|busy| busy["node"] == *node);
        busy.map_or(0.0, |busy| number(&busy["busy_share"]))
    };
    let graph = engine.wait_for_graph("work for both, for long enough to tell them apart", |graph| {
        let streams = graph["streams"].as_array().expect("a list");
        let delivered = |name: &str| {
            streams.iter().find(|one| one["stream"] == *name).and_then(|one| one["delivered"].as_u64()).unwrap_or(0)
        };
        let is_enough = delivered("yard") >= 5 && delivered("door") >= 50;
        is_enough
            && ["sum", "out"].iter().all(|node| share(graph, "yard", node) > 0.0 && share(graph, "door", node) > 0.0)
    });
    // Twenty times the pictures, and the same work for each.
    assert!(share(&graph, "door", "sum") > share(&graph, "yard", "sum"), "{graph}");
    let all = number(&node(&graph, "sum", "pool")["busy_share"]);
    let sum = share(&graph, "door", "sum") + share(&graph, "yard", "sum");
    assert!(sum <= all * 1.5 + 0.05, "what streams have is part of what the node has: {sum} of {all}");
    let (_, view) = engine.get("/streams/door");
    assert!(view["busy"].as_array().is_some_and(|busy| busy.iter().any(|busy| busy["node"] == "sum")), "{view}");
    let (_, _, metrics) = get_text(&format!("{}/metrics", engine.address()));
    let labels = r#"engine_stream_busy_seconds_total{graph="graph",source="fast",stream="door",node="sum"} "#;
    assert!(metrics.contains(labels), "{metrics}");
    engine.terminate().expect(0);
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
