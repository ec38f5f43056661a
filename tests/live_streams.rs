//! Streams that are added, looked at and removed while the engine runs.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use serde_json::{Value, json};
use support::{Answer, Engine, StalledPipe, assert_unbroken, ffmpeg, get, run_folder, send};

/// A graph of paced streams that lose nothing, with their sums in a file.
fn sums(streams: &str, file: &str, more: &str) -> String {
    format!(
        "[sources.scene]\ntype = \"synthetic\"\nwidth = 64\nheight = 48\nfps = 100\nstreams = [{streams}]\n\
         overflow = \"block\"\n{more}\n\
         [operators.sum]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
         [sinks.out]\ntype = \"file\"\ninputs = [\"sum\"]\npath = \"{file}\"\n\
         [sinks.events]\ntype = \"sse\"\ninputs = [\"sum\"]\n"
    )
}

/// A graph of cameras, each as `streams` says.
fn cameras(streams: &str) -> String {
    format!(
        "[sources.cameras]\ntype = \"rtsp\"\nconnect_timeout = \"1h\"\n{streams}\n\
         [operators.sum]\ntype = \"checksum\"\ninputs = [\"cameras\"]\n\
         [sinks.events]\ntype = \"sse\"\ninputs = [\"sum\"]\n"
    )
}

fn put(address: &str, name: &str, text: &str) -> Answer {
    send("PUT", &format!("{address}/graphs/{name}"), &[], text)
}

fn post(address: &str, body: &Value) -> Answer {
    send("POST", &format!("{address}/streams"), &[], &body.to_string())
}

fn delete(address: &str, id: &str) -> Answer {
    send("DELETE", &format!("{address}/streams/{id}"), &[], "")
}

fn records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the sink made its file");
    text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

/// Waits until a stream is as `is_so` wants it.
fn wait_for_stream(engine: &mut Engine, id: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let address = engine.address();
    engine.wait_for(what, |_| {
        let (status, stream) = get(&format!("{address}/streams/{id}"));
        (status == 200 && is_so(&stream)).then_some(stream)
    })
}

/// Waits until a stream has delivered `more` items beyond what it has.
fn wait_for_items(engine: &mut Engine, id: &str, more: u64) {
    let delivered = |stream: &Value| stream["delivered"].as_u64().expect("a count");
    let before = wait_for_stream(engine, id, "the stream", |_| true);
    wait_for_stream(engine, id, "further items", |now| delivered(now) >= delivered(&before) + more);
}

fn names(list: &Value) -> Vec<&str> {
    let streams = list.as_array().expect("a list").iter();
    streams.map(|stream| stream["stream"].as_str().expect("a name")).collect()
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn streams_come_and_go_without_a_gap_in_the_others() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    put(&address, "yard", &sums("\"a\"", "out.jsonl", "")).expect(201);
    wait_for_items(&mut engine, "a", 10);
    for id in ["b", "c"] {
        let added = post(&address, &json!({ "graph": "yard", "source": "scene", "id": id })).expect(201);
        assert_eq!((&added["stream"], &added["posted"]), (&id.into(), &true.into()), "{added}");
        wait_for_items(&mut engine, id, 10);
    }
    let (_, list) = engine.get("/streams?graph=yard");
    assert_eq!((names(&list["declared"]), names(&list["posted"])), (vec!["a"], vec!["b", "c"]));
    assert_eq!(names(&engine.get("/streams?graph=other").1["declared"]), [""; 0]);

    // What was added survives a reload, and is still told apart.
    let more = "[operators.second]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
                [sinks.hole]\ntype = \"blackhole\"\ninputs = [\"second\"]\n";
    let reloaded = put(&address, "yard", &sums("\"a\"", "out.jsonl", more)).expect(200);
    assert_eq!(reloaded["streams"]["kept"], json!(["a", "b", "c"]), "{reloaded}");
    let (_, list) = engine.get("/streams");
    assert_eq!((names(&list["declared"]), names(&list["posted"])), (vec!["a"], vec!["b", "c"]));
    for id in ["a", "b", "c"] {
        wait_for_items(&mut engine, id, 10);
    }

    assert_eq!(delete(&address, "b").expect(200), json!({ "stream": "b", "state": "stopped" }));
    engine.wait_for("its end", |_| (get(&format!("{address}/streams/b")).0 == 404).then_some(()));
    assert_eq!(delete(&address, "b").status, 404);
    wait_for_items(&mut engine, "a", 10);
    // Its name is free again, and its numbers begin anew.
    post(&address, &json!({ "graph": "yard", "source": "scene", "id": "d" })).expect(201);
    wait_for_items(&mut engine, "d", 5);
    // A graph that declares what was added takes it over.
    let reloaded = put(&address, "yard", &sums("\"a\", \"d\"", "out.jsonl", more)).expect(200);
    assert!(reloaded["refused"][0].as_str().is_some_and(|text| text.contains("`d` is declared")), "{reloaded}");
    let (_, list) = engine.get("/streams");
    assert_eq!((names(&list["declared"]), names(&list["posted"])), (vec!["a", "d"], vec!["c"]));
    engine.wait_until_conserved();
    send("DELETE", &format!("{address}/graphs/yard"), &[], "").expect(200);
    let counts = assert_unbroken(&records(&folder.path().join("out.jsonl")));
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    engine.terminate().expect(0);
}

#[test]
fn a_removed_stream_is_listed_until_the_last_of_it_has_ended_and_no_longer() {
    let folder = temporary();
    let pipe = StalledPipe::new(folder.path().join("out.jsonl"));
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    put(&address, "yard", &sums("\"a\"", "out.jsonl", "")).expect(201);
    post(&address, &json!({ "graph": "yard", "source": "scene", "id": "b" })).expect(201);
    engine.wait_for_stall();
    let answer = delete(&address, "b");
    assert!(answer.status < 300, "{}", answer.text);
    // What is in flight cannot end, and counts.
    let (status, stream) = get(&format!("{address}/streams/b"));
    assert!(status == 200 && stream["in_flight"].as_u64() > Some(0), "{stream}");
    let reader = pipe.drain();
    // No other stream comes or goes from here on.
    engine.wait_for("its end", |_| (get(&format!("{address}/streams/b")).0 == 404).then_some(()));
    let ended = engine.terminate().expect(0);
    let lines = reader.join().expect("its lines");
    let of_a = lines.iter().filter(|line| line.contains("\"stream\":\"a\"")).count() as u64;
    assert_eq!(ended.counts("a"), support::Counts::all_delivered(of_a));
    assert!((of_a as usize) < lines.len(), "and some were of the other");
}

#[test]
fn a_declared_stream_that_is_deleted_stays_stopped_until_the_next_text() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let text = sums("\"a\", \"b\"", "out.jsonl", "");
    put(&address, "yard", &text).expect(201);
    wait_for_items(&mut engine, "a", 5);
    delete(&address, "a").expect(200);
    let stopped = wait_for_stream(&mut engine, "a", "its end", |stream| stream["state"] == "stopped");
    assert_eq!(stopped["in_flight"], 0, "{stopped}");
    assert_eq!(delete(&address, "a").expect(200)["state"], "stopped", "once more does no harm");
    let taken = post(&address, &json!({ "graph": "yard", "source": "scene", "id": "a" }));
    assert_eq!(taken.status, 409, "{}", taken.text);
    wait_for_items(&mut engine, "b", 20);
    assert_eq!(get(&format!("{address}/streams/a")).1["delivered"], stopped["delivered"]);
    put(&address, "yard", &text).expect(200);
    wait_for_stream(&mut engine, "a", "its return", |stream| stream["state"] == "running");
    wait_for_items(&mut engine, "a", 5);
    // All of them deleted, the graph waits for others.
    for id in ["a", "b"] {
        delete(&address, id).expect(200);
    }
    post(&address, &json!({ "graph": "yard", "source": "scene", "id": "c" })).expect(201);
    wait_for_items(&mut engine, "c", 5);
    send("DELETE", &format!("{address}/graphs/yard"), &[], "").expect(200);
    assert_unbroken(&records(&folder.path().join("out.jsonl")));
    engine.terminate().expect(0);
}

#[test]
fn a_stream_that_cannot_be_added_says_why() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &["--allow-host", "*"]);
    let address = engine.address();
    put(&address, "yard", &sums("\"a\"", "out.jsonl", "max_streams = 2")).expect(201);
    put(&address, "door", &cameras("streams.first = \"rtsp://127.0.0.1:9/x\"")).expect(201);
    let scene = |id: &str| json!({ "graph": "yard", "source": "scene", "id": id });
    let camera = |own: Value| {
        let mut body = json!({ "graph": "door", "source": "cameras", "id": "new" });
        body.as_object_mut().expect("a table").extend(own.as_object().expect("a table").clone());
        body
    };
    for (body, status, part) in [
        (json!({ "graph": "yrad", "source": "scene", "id": "x" }), 404, "no such graph that runs; there is door, yard"),
        (json!({ "graph": "yard", "source": "scen", "id": "x" }), 404, "no such source that something listens to"),
        (scene("a"), 409, "there already"),
        (scene("a b"), 400, "cannot be the name of a stream"),
        (json!({ "graph": "yard", "id": "x" }), 400, "there is no `source`"),
        (camera(json!({ "url": "http://h/x" })), 400, "this is no RTSP URL"),
        (camera(json!({ "url": "rtsp://h/x", "colour": "red" })), 400, "colour"),
        (camera(json!({ "url": "rtsp://${env.USER}@h/x" })), 400, "references are only resolved in graphs"),
        (camera(json!({})), 400, "needs the field `url`"),
        (
            json!({ "graph": "door", "source": "cameras", "id": "a", "url": "rtsp://127.0.0.1:9/x" }),
            409,
            "there already",
        ),
    ] {
        let refused = post(&address, &body).expect(status);
        assert!(refused["error"].as_str().is_some_and(|error| error.contains(part)), "{part}: {refused}");
        assert!(refused["hint"].is_string(), "{refused}");
    }
    assert_eq!(send("POST", &format!("{address}/streams"), &[], "{").status, 400);
    // A list of the same values in some order is nothing that anybody should count on.
    for (path, body) in [
        ("streams", "[\"yard\", \"cameras\", \"door\"]"),
        ("streams", "[]"),
        ("streams/check", " [\"rtsp://127.0.0.1:9/x\", \"tcp\", \"1s\"]"),
        ("streams/check", "null"),
    ] {
        let refused = send("POST", &format!("{address}/{path}"), &[], body).expect(400);
        assert_eq!(refused["error"], "the body is not understood: it is no JSON object", "{body}: {refused}");
        assert!(refused["hint"].as_str().is_some_and(|hint| hint.contains("write it like {")), "{refused}");
    }
    let large = format!("{{\"graph\": \"{}\"}}", "x".repeat(70_000));
    assert_eq!(send("POST", &format!("{address}/streams"), &[], &large).status, 413);

    post(&address, &scene("b")).expect(201);
    let many = post(&address, &scene("c"));
    assert_eq!((many.status, many.header("retry-after")), (429, Some("1")), "{}", many.text);
    delete(&address, "b").expect(200);
    post(&address, &scene("c")).expect(201);
    let refused = put(&address, "yard", &sums("\"a\", \"b\", \"d\"", "out.jsonl", "max_streams = 2")).expect(400);
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("declares 3 streams")), "{refused}");
    assert_eq!(get(&format!("{address}/streams/nowhere")).0, 404);
    assert_eq!(get(&format!("{address}/streams?colour=red")).0, 400);
    engine.terminate().expect(0);
}

#[test]
fn a_stream_is_removed_while_it_connects() {
    // It accepts, by the system's own queue, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    put(&address, "door", &cameras(&format!("streams.door = \"rtsp://127.0.0.1:{port}/a\""))).expect(201);
    let url = format!("rtsp://admin:planted@127.0.0.1:{port}/b");
    let added = post(&address, &json!({ "graph": "door", "source": "cameras", "id": "yard", "url": url })).expect(201);
    assert_eq!(added["location"], format!("rtsp://[secret]@127.0.0.1:{port}/b"));
    for id in ["door", "yard"] {
        // It would wait for an hour.
        wait_for_stream(&mut engine, id, "connecting", |stream| stream["state"] == "connecting");
        assert_eq!(delete(&address, id).expect(200)["state"], "stopped", "{id}");
    }
    let (_, list) = engine.get("/streams");
    assert_eq!((names(&list["declared"]), names(&list["posted"])), (vec!["door"], vec![]));
    let deleted = send("DELETE", &format!("{address}/graphs/door"), &[], "").expect(200);
    assert_eq!(deleted["stuck"], json!([]));
    let ended = engine.terminate().expect(0);
    assert!(!ended.stderr.contains("planted"), "{}", ended.stderr);
}

#[test]
fn a_stream_tells_what_it_has_been_through() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    put(&address, "yard", &sums("\"a\"", "out.jsonl", "")).expect(201);
    let port = {
        let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
        closed.local_addr().expect("an address").port()
    };
    // It is tried again so late that nobody sees that.
    let camera = format!("backoff_first = \"1h\"\nbackoff_most = \"1h\"\nstreams.door = \"rtsp://127.0.0.1:{port}/a\"");
    put(&address, "door", &cameras(&camera)).expect(201);
    let lost = wait_for_stream(&mut engine, "door", "a retry", |stream| stream["state"] == "retrying");
    assert!(lost["last_error"]["message"].as_str().is_some_and(|text| text.contains("refused")), "{lost}");
    let states: Vec<&str> =
        lost["history"].as_array().expect("a list").iter().filter_map(|moment| moment["state"].as_str()).collect();
    assert_eq!(states, ["connecting", "retrying"]);
    assert!(lost["history"][1]["since"].as_str().is_some_and(|time| time.ends_with('Z')), "{lost}");
    assert_eq!(lost["last_result"], Value::Null);

    let seen = wait_for_stream(&mut engine, "a", "a result", |stream| stream["last_result"].is_object());
    assert_eq!((&seen["graph"], &seen["last_result"]["stream"]), (&"yard".into(), &"a".into()), "{seen}");
    assert_eq!(seen["last_result"]["kind"], "checksum");
    engine.terminate();
}

/// Serves a file over HTTP to whoever asks, until the test ends.
fn serve(file: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.expect("a connection");
            let mut request = [0; 4096];
            let _ = client.read(&mut request);
            let head = format!("HTTP/1.0 200 OK\r\ncontent-type: video/mp2t\r\ncontent-length: {}\r\n\r\n", file.len());
            // The client may have seen enough.
            let _ = client.write_all(head.as_bytes()).and_then(|()| client.write_all(&file));
        }
    });
    port
}

#[test]
fn an_input_is_looked_at_before_it_becomes_a_stream() {
    let folder = temporary();
    let clip = folder.path().join("clip.ts");
    ffmpeg(
        &["-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=2", "-c:v", "mpeg2video", "-f", "mpegts"],
        &clip,
    );
    let port = serve(std::fs::read(&clip).expect("the clip"));
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let quiet = silent.local_addr().expect("an address").port();
    let mut engine = run_folder(folder.path(), &["--allow-host", "*"]);
    let address = engine.address();
    let check = |body: Value| send("POST", &format!("{address}/streams/check"), &[], &body.to_string());
    let good = check(json!({ "url": format!("http://127.0.0.1:{port}/clip.ts") })).expect(200);
    assert_eq!((&good["ok"], &good["width"], &good["height"]), (&true.into(), &320.into(), &240.into()), "{good}");
    assert!(good["milliseconds"].as_f64().is_some_and(|took| took > 0.0), "{good}");

    let bad = check(json!({ "url": format!("rtsp://u:planted@127.0.0.1:{quiet}/x"), "timeout": "300ms" })).expect(200);
    assert_eq!(bad["ok"], false, "{bad}");
    assert!(bad["error"].as_str().is_some_and(|error| error.contains("no answer within 300ms")), "{bad}");
    assert!(bad["hint"].is_string() && bad["milliseconds"].is_number(), "{bad}");
    assert!(!bad.to_string().contains("planted"), "{bad}");
    for wrong in [
        json!({ "url": "clip.ts" }),
        json!({ "url": "file:///etc/passwd" }),
        json!({ "url": "rtsp://h/x", "timeout": "1h" }),
        json!({ "address": "rtsp://h/x" }),
    ] {
        assert_eq!(check(wrong.clone()).status, 400, "{wrong}");
    }
    engine.terminate().expect(0);
}

#[test]
fn all_mistakes_of_a_stream_are_answered_at_once() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let text = "[sources.cameras]\ntype = \"rtsp\"\nstreams = {}\n\
                [operators.sum]\ntype = \"checksum\"\ninputs = [\"cameras\"]\n\
                [sinks.hole]\ntype = \"blackhole\"\ninputs = [\"sum\"]\n";
    put(&address, "door", text).expect(201);
    let refused = |path: &str, body: Value| {
        let refused = send("POST", &format!("{address}{path}"), &[], &body.to_string()).expect(400);
        let mistakes = refused["mistakes"].as_array().expect("a list").clone();
        for mistake in &mistakes {
            assert!(mistake["message"].is_string() && mistake["hint"].is_string(), "{mistake}");
            let said = mistake["message"].as_str().expect("text");
            assert!(refused["error"].as_str().is_some_and(|error| error.contains(said)), "{refused}");
        }
        let mut fields: Vec<String> =
            mistakes.iter().map(|mistake| mistake["field"].as_str().expect("a path").to_owned()).collect();
        fields.sort();
        fields
    };
    let body = json!({
        "graph": "door", "source": "cameras", "id": "yard", "url": "http://127.0.0.1:9/x",
        "transport": "pigeon", "connect_timeout": "soon", "colour": "red", "no_frame_for": 7,
    });
    let expected = ["colour", "connect_timeout", "no_frame_for", "transport", "url"];
    assert_eq!(refused("/streams", body), expected.map(|field| format!("streams.yard.{field}")));
    // What is wrong beside the settings is told with them.
    let body =
        json!({ "graph": "door", "source": "cameras", "id": "a b", "url": "rtsp://127.0.0.1:9/x", "skip": "no" });
    assert_eq!(refused("/streams", body), ["id", "streams.ID.skip"]);
    let body = json!({ "graph": "nobody", "source": "cameras", "id": "a b", "url": "${env.X}" });
    assert_eq!(refused("/streams", body), ["graph", "id", "url"]);
    let body = json!({ "graph": "door", "source": "cameras", "id": "yard", "url": "${env.X}", "skip": "no" });
    assert_eq!(refused("/streams", body), ["streams.yard.skip", "url"], "the input is there");
    assert_eq!(refused("/streams", json!({ "id": "yard" })), ["graph", "source"]);
    let body = json!({ "url": "clip.mp4", "timeout": "an hour", "transport": "pigeon", "colour": "red" });
    assert_eq!(refused("/streams/check", body), ["colour", "timeout", "transport", "url"]);
    assert_eq!(engine.get("/streams").1["posted"], json!([]));
    engine.terminate().expect(0);
}
