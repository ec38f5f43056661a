//! The events of a MediaMTX server, from outside: paths become streams and end.

use serde_json::{Value, json};
use support::{Folder, PATIENCE, get};

/// Nobody listens at the address, so the streams stay `retrying`: what is under test is that they come and go.
const GRAPH: &str = r#"
    [sources.live]
    type = "rtsp"
    streams.declared = "rtsp://127.0.0.1:9/declared"

    [sources.live.hooks]
    path = "live/{id}/in"
    url = "rtsp://admin:s3cret@127.0.0.1:9/live/{id}/in"

    [sinks.none]
    type = "blackhole"
    inputs = ["live"]
    "#;

fn event(address: &str, kind: &str, body: &Value) -> (u16, Value) {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
    let request = config.build().new_agent().post(format!("{address}/v1/mediamtx/events/{kind}"));
    let request = request.header("content-type", "application/json");
    let mut answer = request.send(body.to_string()).expect("an answer");
    let text = answer.body_mut().read_to_string().expect("text");
    (answer.status().as_u16(), serde_json::from_str(&text).expect("JSON"))
}

fn path(path: &str) -> Value {
    json!({ "path": path, "query": "user=x", "sourceType": "rtmpConn", "sourceId": "5f2a" })
}

#[test]
fn paths_start_and_stop_streams() {
    let folder = Folder::with_graph(GRAPH);
    let mut engine = folder.run(&[]);
    engine.wait_for_graph("a graph that runs", |graph| graph["state"] == "running");
    let address = engine.address();
    let result = |kind: &str, body: &Value| {
        let (status, answer) = event(&address, kind, body);
        assert_eq!(status, 200, "{answer}");
        assert!(!answer.to_string().contains("s3cret"), "{answer}");
        answer["result"].as_str().expect("a result").to_owned()
    };
    let posted = || {
        let (_, streams) = get(&format!("{address}/streams"));
        assert!(!streams.to_string().contains("s3cret"), "{streams}");
        let posted = streams["posted"].as_array().expect("a list");
        posted.iter().map(|stream| stream["stream"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(result("ready", &path("live/door/in")), "started");
    assert_eq!(result("ready", &path("live/door/in")), "running", "it may be said twice");
    assert_eq!(posted(), ["door"]);
    let (status, door) = get(&format!("{address}/streams/door"));
    assert_eq!((status, &door["source"]), (200, &"live".into()));
    assert!(door["location"].as_str().expect("text").ends_with("@127.0.0.1:9/live/door/in"), "{door}");
    for other in ["live/door/out", "live/a/b/in", "elsewhere"] {
        assert_eq!(result("ready", &path(other)), "skipped", "{other}");
        assert_eq!(result("not-ready", &path(other)), "skipped", "{other}");
    }
    assert_eq!(result("not-ready", &path("live/declared/in")), "skipped", "it was not started so");
    let (status, answer) = event(&address, "ready", &path("live/declared/in"));
    assert!(status == 409 && answer["error"].to_string().contains("declares a stream `declared`"), "{answer}");
    let (status, answer) = event(&address, "ready", &path("live/a b/in"));
    assert!(status == 400 && answer["error"].as_str().is_some_and(|error| error.contains("`a b`")), "{answer}");
    let (status, answer) = event(&address, "ready", &json!({ "paht": "live/door/in" }));
    assert!(status == 400 && answer["hint"].as_str().is_some_and(|hint| hint.contains("sourceId")), "{answer}");
    // It goes, comes again at once, and goes.
    assert_eq!(result("not-ready", &path("live/door/in")), "stopped");
    assert_eq!(posted(), [""; 0]);
    assert_eq!(result("ready", &path("live/door/in")), "started");
    assert_eq!(result("not-ready", &path("live/door/in")), "stopped");
    assert_eq!(result("not-ready", &path("live/door/in")), "stopped", "it may be said twice");
    engine.terminate();
}

/// Without any stream such a graph waits for one.
#[test]
fn a_graph_of_announced_streams_alone_waits() {
    let folder = Folder::with_graph(&GRAPH.replace("streams.declared = \"rtsp://127.0.0.1:9/declared\"", ""));
    let mut engine = folder.run(&[]);
    engine.wait_for_graph("a graph that runs", |graph| graph["state"] == "running");
    let address = engine.address();
    let (status, answer) = event(&address, "ready", &path("live/a.b-c_1/in"));
    assert_eq!((status, &answer["stream"]), (200, &"a.b-c_1".into()), "{answer}");
    engine.terminate();
}
