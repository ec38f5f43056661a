//! Pictures that are pushed into running graphs, from outside: `POST /streams/ID/frames` and `POST /infer`.

use std::io::{Cursor, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};
use support::{Counts, Engine, Folder, PATIENCE, StalledPipe, command, material, repository, run_graph, wait_for};

struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    /// Error and hint.
    fn told(&self) -> String {
        format!("{} {}", self.body["error"], self.body["hint"])
    }
}

fn request(method: &str, url: &str, kind: &str, body: &[u8]) -> Answer {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
    let agent = config.allow_non_standard_methods(true).build().new_agent();
    let request = ureq::http::Request::builder().method(method).uri(url).header("content-type", kind);
    let mut answer = agent.run(request.body(body).expect("a request")).unwrap_or_else(|error| panic!("{url}: {error}"));
    let text = answer.body_mut().read_to_string().expect("text");
    let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("JSON") };
    Answer { status: answer.status().as_u16(), headers: answer.headers().clone(), body }
}

fn post(url: &str, kind: &str, body: &[u8]) -> Answer {
    request("POST", url, kind, body)
}

/// Pushes a raw picture.
fn push(address: &str, stream: &str, query: &str, picture: &[u8]) -> Answer {
    post(&format!("{address}/streams/{stream}/frames{query}"), "application/octet-stream", picture)
}

fn infer(address: &str, query: &str, frames: &[String]) -> Answer {
    let body = json!({ "frames": frames }).to_string();
    post(&format!("{address}/infer{query}"), "application/json", body.as_bytes())
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).expect("encoded");
    bytes.into_inner()
}

/// A picture that is told from others by its size.
fn sized(width: u32, height: u32) -> Vec<u8> {
    encoded(&DynamicImage::new_rgb8(width, height), ImageFormat::Png)
}

/// A red circle on grey, as the scene of the `shapes` model has them.
fn circle() -> DynamicImage {
    let circle = RgbImage::from_fn(320, 192, |x, y| {
        let (dx, dy) = (i64::from(x) - 160, i64::from(y) - 96);
        if dx * dx + dy * dy < 1600 { Rgb([220, 40, 40]) } else { Rgb([90, 95, 90]) }
    });
    DynamicImage::from(circle)
}

/// A graph in which every picture of `door` becomes a checksum in `out`.
fn sums(source: &str, sink: &str) -> String {
    format!(
        r#"
        [sources.pictures]
        type = "push"
        streams.door = {{}}
        answer = "sums"
        {source}

        [operators.sums]
        type = "checksum"
        inputs = ["pictures"]

        [sinks.out]
        type = "file"
        inputs = ["sums"]
        {sink}
        "#
    )
}

const INTO_A_FILE: &str = "path = \"out.jsonl\"";

/// Runs a graph, and waits until its stream `door` is pushed to.
fn running(folder: &Folder, arguments: &[&str]) -> (Engine, String) {
    let mut engine = folder.run(arguments);
    engine.wait_for_graph("a stream that runs", |graph| graph["streams"][0]["state"] == "running");
    let address = engine.address();
    (engine, address)
}

#[test]
fn each_of_a_hundred_callers_gets_the_record_of_its_own_picture() {
    let folder = Folder::with_graph(&sums("queue = 100", INTO_A_FILE));
    let (engine, address) = running(&folder, &[]);
    let start = Barrier::new(100);
    std::thread::scope(|scope| {
        for caller in 1..=100 {
            let (address, start) = (&address, &start);
            scope.spawn(move || {
                let picture = sized(caller, 3);
                start.wait();
                let answer = push(address, "door", "?wait=true", &picture);
                assert_eq!(answer.status, 200, "{}", answer.body);
                assert_eq!((&answer.body["width"], &answer.body["height"]), (&caller.into(), &3.into()));
                assert_eq!((&answer.body["node"], &answer.body["kind"]), (&"sums".into(), &"checksum".into()));
            });
        }
    });
    let finished = engine.terminate().expect(0);
    assert_eq!(finished.counts("door"), Counts::all_delivered(100));
    let records = folder.records("out.jsonl");
    let seqs: Vec<u64> = records.iter().map(|record| record["seq"].as_u64().expect("a number")).collect();
    assert_eq!(seqs, (0..100).collect::<Vec<_>>());
    let times: Vec<f64> = records.iter().map(|record| record["pts"].as_f64().expect("a number")).collect();
    assert!(times[0] == 0.0 && times.is_sorted_by(|earlier, later| earlier < later), "{times:?}");
}

#[test]
fn whoever_does_not_wait_is_told_that_the_picture_was_taken() {
    let folder = Folder::with_graph(&sums("", INTO_A_FILE));
    let (engine, address) = running(&folder, &[]);
    let form = |name: &str| {
        let mut body = format!("--limit\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n").into_bytes();
        body.extend_from_slice(&sized(5, 4));
        body.extend_from_slice(b"\r\n--limit--\r\n");
        body
    };
    let url = format!("{address}/streams/door/frames");
    let answer = post(&url, "image/png", &sized(4, 4));
    assert_eq!((answer.status, answer.body), (202, json!({ "stream": "door" })));
    let answer = post(&url, "multipart/form-data; boundary=limit", &form("file"));
    assert_eq!(answer.status, 202, "{}", answer.told());
    let answer = post(&url, "multipart/form-data; boundary=limit", &form("picture"));
    assert!(answer.status == 400 && answer.told().contains("`file`"), "{}", answer.told());
    let finished = engine.terminate().expect(0);
    assert_eq!(finished.counts("door"), Counts::all_delivered(2), "what was taken is delivered at the end");
    let widths: Vec<Value> = folder.records("out.jsonl").iter().map(|record| record["width"].clone()).collect();
    assert_eq!(widths, [4, 5]);
}

#[test]
fn a_broken_picture_is_an_error_record_and_an_answer() {
    let folder = Folder::with_graph(&sums("max_bytes = \"10KiB\"\nmax_pixels = 10000", INTO_A_FILE));
    let (engine, address) = running(&folder, &[]);
    let whole = encoded(&circle(), ImageFormat::Png);
    let answer = push(&address, "door", "?wait=true", &whole[..whole.len() / 2]);
    assert_eq!((answer.status, answer.header("x-verdict")), (422, Some("rejected")), "{}", answer.told());
    assert!(answer.told().contains("the picture cannot be used"), "{}", answer.told());
    let answer = push(&address, "door", "?wait=true", &sized(101, 100));
    assert_eq!(answer.status, 422);
    assert!(answer.told().contains("101 x 100 pixels, more than the 10000"), "{}", answer.told());
    // Nobody waits for this one.
    assert_eq!(push(&address, "door", "", &whole[..200]).status, 202);
    for (picture, status, says) in [
        (&b"GIF89a\x01\0\x01\0"[..], 415, "neither JPEG nor PNG nor WebP"),
        (b"", 415, "empty"),
        (&[0; 11 << 10], 413, "more than 10 KiB"),
    ] {
        let answer = push(&address, "door", "?wait=true", picture);
        assert_eq!(answer.status, status, "{}", answer.told());
        assert!(answer.told().contains(says), "{}", answer.told());
    }
    // One after them is none the worse.
    assert_eq!(push(&address, "door", "?wait=true", &sized(2, 2)).body["seq"], 3);
    let finished = engine.terminate().expect(0);
    assert_eq!(finished.counts("door"), Counts { read: 4, delivered: 1, rejected: 3, ..Counts::default() });
    let kinds: Vec<Value> = folder.records("out.jsonl").iter().map(|record| record["kind"].clone()).collect();
    assert_eq!(kinds, ["error", "error", "error", "checksum"]);
}

#[test]
fn a_picture_without_a_record_has_a_verdict() {
    let text = sums("", INTO_A_FILE).replace("inputs = [\"pictures\"]", "inputs = [\"few\"]");
    let sampled = "[operators.few]\ntype = \"sample\"\ninputs = [\"pictures\"]\nevery = \"1h\"\n";
    let folder = Folder::with_graph(&format!("{text}\n{sampled}"));
    let (engine, address) = running(&folder, &[]);
    assert_eq!(push(&address, "door", "?wait=true", &sized(2, 2)).status, 200);
    let answer = push(&address, "door", "?wait=true", &sized(2, 2));
    assert_eq!((answer.status, answer.header("x-verdict"), &answer.body), (204, Some("filtered"), &Value::Null));
    let finished = engine.terminate().expect(0);
    assert_eq!(finished.counts("door"), Counts { read: 2, delivered: 1, filtered: 1, ..Counts::default() });
}

#[test]
fn without_a_node_that_answers_whoever_waits_hears_that_it_was_delivered() {
    let folder = Folder::with_graph(&sums("", INTO_A_FILE).replace("answer = \"sums\"", ""));
    let (_engine, address) = running(&folder, &[]);
    let answer = push(&address, "door", "?wait=true", &sized(2, 2));
    assert_eq!((answer.status, answer.header("x-verdict")), (204, Some("delivered")));
    let answer = infer(&address, "", &[STANDARD.encode(sized(2, 2))]);
    assert!(answer.status == 409 && answer.told().contains("answer = "), "{}", answer.told());
}

#[test]
fn requests_that_cannot_be_answered_are_told_why() {
    let scene = "[sources.scene]\ntype = \"synthetic\"\nwidth = 16\nheight = 16\n\
                 [sinks.none]\ntype = \"blackhole\"\ninputs = [\"scene\"]\n";
    let folder = Folder::with_graph(&format!("{}\n{scene}", sums("", INTO_A_FILE)));
    let mut engine = folder.run(&[]);
    let address = engine.address();
    engine.wait_for("a stream that is pushed to", |_| {
        (push(&address, "door", "?wait=true", &sized(2, 2)).status == 200).then_some(())
    });
    engine.wait_for_graph("a graph that runs", |graph| graph["state"] == "running");
    for (method, path, status, says) in [
        ("POST", "/streams/dor/frames", 404, "did you mean `door`"),
        ("POST", "/streams/somewhere-else/frames", 404, "these are pushed to: `door`"),
        ("POST", "/streams/synthetic/frames", 409, "not pushed to"),
        ("POST", "/streams/door/frames?wiat=true", 400, "did you mean `wait`"),
        ("POST", "/streams/door/frames?wait=perhaps", 400, "neither true nor false"),
        ("POST", "/streams/door/frames?timeout=1d", 400, "`1d` is no `timeout`"),
        ("POST", "/infer?steam=door", 400, "did you mean `stream`"),
        ("POST", "/infer?stream=dor", 404, "did you mean `door`"),
        ("GET", "/streams/door/frames", 405, "POST"),
        ("GET", "/infer", 405, "POST"),
    ] {
        let answer = request(method, &format!("{address}{path}"), "image/png", &sized(2, 2));
        assert_eq!(answer.status, status, "{path}: {}", answer.told());
        assert!(answer.told().contains(says), "{path}: {}", answer.told());
    }
    let answer = post(&format!("{address}/streams/door/frames"), "image/gif", &sized(2, 2));
    assert_eq!(answer.status, 415, "{}", answer.told());
    engine.terminate().expect(0);
}

#[test]
fn a_graph_without_streams_waits_for_some() {
    let folder = Folder::with_graph(&sums("", INTO_A_FILE).replace("streams.door = {}", ""));
    let mut engine = folder.run(&[]);
    let address = engine.address();
    engine.wait_for_graph("a graph that runs", |graph| graph["state"] == "running");
    let answer = wait_for("an end of the start", || {
        let answer = infer(&address, "", &[]);
        (answer.status != 503).then_some(answer)
    });
    assert!(answer.status == 404 && answer.told().contains("no stream is pushed to"), "{}", answer.told());
    let yard = json!({ "graph": "graph", "source": "pictures", "id": "yard" }).to_string();
    let answer = post(&format!("{address}/streams"), "application/json", yard.as_bytes());
    assert_eq!(answer.status, 201, "{}", answer.told());
    assert_eq!(push(&address, "yard", "?wait=true", &sized(2, 2)).body["stream"], "yard");
    let answer = request("DELETE", &format!("{address}/streams/yard"), "text/plain", b"");
    assert!(answer.status < 300, "{}", answer.told());
    engine
        .wait_for("the end of the stream", |_| (push(&address, "yard", "", &sized(2, 2)).status == 404).then_some(()));
    engine.terminate().expect(0);
}

/// Behind a sink that takes nothing: pictures wait up to the bound, whoever pushes more is told, and nothing that was
/// taken is lost.
#[test]
fn a_full_queue_is_told_and_what_was_taken_is_delivered() {
    let folder = Folder::with_graph("");
    let pipe = StalledPipe::new(folder.file("out.pipe"));
    let sink = format!("path = \"{}\"", pipe.path.display());
    let text = sums("queue = 2\nbudget = { items = 1 }", &sink);
    std::fs::write(folder.graph(), text).expect("written");
    let (mut engine, address) = running(&folder, &[]);
    let mut taken = 0;
    let refused = wait_for("a full queue", || {
        let answer = push(&address, "door", "", &sized(2, 2));
        taken += u64::from(answer.status == 202);
        // It was full for a moment only, unless nothing gets on.
        let stands = push(&address, "door", "?wait=true&timeout=1s", &sized(2, 2));
        taken += u64::from(stands.status == 200 || stands.status == 504);
        (stands.status == 429 && push(&address, "door", "", &sized(2, 2)).status == 429).then_some(stands)
    });
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.told().contains("2 pictures wait already"), "{}", refused.told());
    let lines = pipe.drain();
    engine.wait_for_graph("everything is delivered", |graph| graph["total"]["delivered"].as_u64() >= Some(taken));
    engine.wait_until_conserved();
    let finished = engine.terminate().expect(0);
    let counts = finished.counts("door");
    assert_eq!(counts, Counts::all_delivered(counts.read));
    assert_eq!(lines.join().expect("the pipe was read").len() as u64, counts.read);
}

/// A process that ends with a stuck sink: whoever waits is told that the picture is lost, or that it came too late.
#[test]
fn whoever_waits_while_everything_ends_gets_one_answer() {
    let folder = Folder::with_graph("");
    let pipe = StalledPipe::new(folder.file("out.pipe"));
    let sink = format!("path = \"{}\"", pipe.path.display());
    let text = sums("queue = 2\nbudget = { items = 1 }", &sink);
    std::fs::write(folder.graph(), text).expect("written");
    let (engine, address) = running(&folder, &["--drain-timeout", "1s"]);
    // The pipe takes some; from then on each waits.
    wait_for("a picture that nothing comes of", || {
        (push(&address, "door", "?wait=true&timeout=1s", &sized(2, 2)).status == 504).then_some(())
    });
    let (started, waiting) = crossbeam_channel::bounded(3);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|_| {
                let (address, started) = (&address, started.clone());
                scope.spawn(move || {
                    started.send(()).expect("heard");
                    push(address, "door", "?wait=true&timeout=1m", &sized(2, 2))
                })
            })
            .collect();
        (0..3).for_each(|_| waiting.recv().expect("started"));
        let full = || push(&address, "door", "", &sized(2, 2)).status == 429;
        wait_for("places that are taken", || full().then_some(()));
        engine.signal(nix::sys::signal::Signal::SIGTERM);
        for caller in callers {
            let answer = caller.join().expect("an answer");
            assert!([503, 429].contains(&answer.status), "{} {}", answer.status, answer.body);
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
    });
    let finished = engine.finish();
    assert_eq!(finished.code(), 1, "items were lost");
    finished.counts("door");
    drop(pipe);
}

#[test]
fn a_client_that_is_slow_holds_up_nobody() {
    let folder = Folder::with_graph(&sums("queue = 1", INTO_A_FILE));
    let (engine, address) = running(&folder, &[]);
    let picture = sized(77, 3);
    let mut slow = TcpStream::connect(address.strip_prefix("http://").expect("an address")).expect("connected");
    let head = format!(
        "POST /streams/door/frames?wait=true HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        picture.len()
    );
    slow.write_all(head.as_bytes()).expect("written");
    slow.write_all(&picture[..10]).expect("written");
    for _ in 0..5 {
        assert_eq!(push(&address, "door", "?wait=true", &sized(2, 2)).status, 200);
    }
    slow.write_all(&picture[10..]).expect("written");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"width\":77"), "{answer}");
    let finished = engine.terminate().expect(0);
    assert_eq!(finished.counts("door"), Counts::all_delivered(6));
}

/// `engine run` on an empty folder: graphs are put over HTTP.
fn empty_engine(folder: &Folder) -> (Engine, String) {
    let graphs = folder.file("graphs");
    std::fs::create_dir(&graphs).expect("a folder");
    let mut command = command(&["run", graphs.to_str().expect("text"), "--listen", "127.0.0.1:0"]);
    command.args(support::allowed()).current_dir(folder.path());
    let mut engine = Engine::start(command);
    let address = engine.address();
    engine.wait_for_log("ready: 0 graphs run");
    (engine, address)
}

fn put(address: &str, text: &str) -> Value {
    let answer = request("PUT", &format!("{address}/graphs/pushed"), "application/toml", text.as_bytes());
    assert!(answer.status < 300, "{}", answer.body);
    answer.body
}

/// Says at its end that it is over.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Pictures of many callers while the graph is reloaded again and again: each gets the one answer to its own picture,
/// whichever generation made it.
#[test]
fn a_reload_while_pictures_are_in_flight_loses_no_answer() {
    const RELOADS: usize = 5;
    let folder = Folder::with_graph("");
    let (engine, address) = empty_engine(&folder);
    let text = |reload: usize| {
        // The sampler in front of the node that answers is another one each time, so its records come of a new node.
        let text = sums("queue = 64", INTO_A_FILE).replace("inputs = [\"pictures\"]", "inputs = [\"all\"]");
        let sample = format!("type = \"sample\"\ninputs = [\"pictures\"]\nevery = \"1us\"\nphase = \"{reload}us\"");
        format!("{text}\n[operators.all]\n{sample}\n")
    };
    put(&address, &text(0));
    let answers = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for caller in 1..=4 {
            let (address, answers, is_over) = (&address, &answers, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Acquire) {
                    let answer = push(address, "door", "?wait=true", &sized(caller, 2));
                    assert_eq!(answer.status, 200, "{}", answer.told());
                    assert_eq!(answer.body["width"], caller, "{}", answer.body);
                    answers.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        // Also where an assertion fails: the callers would never end.
        let _over = Over(&is_over);
        for reload in 1..=RELOADS {
            let before = answers.load(Ordering::Acquire);
            wait_for("answers between two reloads", || (answers.load(Ordering::Acquire) > before + 10).then_some(()));
            let told = put(&address, &text(reload));
            assert!(told.to_string().contains("\"rebuilt\":[\"sums\"]"), "{told}");
        }
    });
    let answers = answers.into_inner();
    let finished = engine.terminate().expect(0);
    assert_eq!(finished.counts("door"), Counts::all_delivered(answers));
    let seqs: Vec<Value> = folder.records("out.jsonl").iter().map(|record| record["seq"].clone()).collect();
    assert_eq!(seqs, (0..answers).map(Value::from).collect::<Vec<_>>(), "each once and in order");
}

/// Another node answers after a reload, so the stream is read anew: what was pushed before is delivered.
#[test]
fn a_graph_in_which_another_node_answers_takes_pictures_at_once() {
    let folder = Folder::with_graph("");
    let (engine, address) = empty_engine(&folder);
    let text = sums("", INTO_A_FILE);
    put(&address, &text);
    assert_eq!(push(&address, "door", "?wait=true", &sized(2, 2)).body["node"], "sums");
    assert_eq!(push(&address, "door", "", &sized(3, 2)).status, 202);
    put(&address, &text.replace("sums", "others"));
    let answer = wait_for("a stream that is pushed to", || {
        let answer = push(&address, "door", "?wait=true", &sized(4, 2));
        // It ends, is not there, and is there again.
        assert!([200, 404, 409, 503].contains(&answer.status), "{}", answer.told());
        (answer.status == 200).then_some(answer)
    });
    assert_eq!((&answer.body["node"], &answer.body["seq"]), (&"others".into(), &2.into()), "numbers go on");
    let finished = engine.terminate().expect(0);
    assert_eq!(finished.counts("door"), Counts::all_delivered(3));
}

/// The stream is deleted while its pictures wait for a sink that takes nothing: those callers are not left alone.
#[test]
fn a_stream_that_is_deleted_answers_whoever_waits() {
    let folder = Folder::with_graph("");
    let pipe = StalledPipe::new(folder.file("out.pipe"));
    let sink = format!("path = \"{}\"", pipe.path.display());
    std::fs::write(folder.graph(), sums("queue = 2\nbudget = { items = 1 }", &sink)).expect("written");
    let (engine, address) = running(&folder, &[]);
    wait_for("a picture that nothing comes of", || {
        (push(&address, "door", "?wait=true&timeout=1s", &sized(2, 2)).status == 504).then_some(())
    });
    let removed = request("DELETE", &format!("{address}/streams/door"), "text/plain", b"");
    assert!(removed.status < 300, "{}", removed.told());
    let answer = wait_for("a stream that takes no more", || {
        let answer = push(&address, "door", "?wait=true&timeout=1s", &sized(2, 2));
        (![504, 429].contains(&answer.status)).then_some(answer)
    });
    assert_eq!(answer.status, 503, "{}", answer.told());
    assert!(answer.told().contains("is ending"), "{}", answer.told());
    let lines = pipe.drain();
    let finished = engine.terminate().expect(0);
    let counts = finished.counts("door");
    assert_eq!(counts, Counts::all_delivered(counts.read), "what it had taken is delivered");
    assert_eq!(lines.join().expect("the pipe was read").len() as u64, counts.read);
}

#[test]
fn a_batch_is_answered_in_order_with_what_is_wrong_in_its_place() {
    let mut engine = run_graph(&repository().join("graphs/push.toml"), &[], |_| {});
    let address = engine.address();
    let circle = STANDARD.encode(encoded(&circle(), ImageFormat::Jpeg));
    let nothing = STANDARD.encode(sized(64, 48));
    let broken = STANDARD.encode(&encoded(&self::circle(), ImageFormat::Png)[..300]);
    // Until the model is there it is 503, and then it is 200.
    let answer = engine.wait_for("an answer", |_| {
        let answer = infer(&address, "", &[circle.clone(), "?".to_owned(), broken.clone(), nothing.clone()]);
        assert!([200, 503].contains(&answer.status), "{}", answer.told());
        if answer.status == 503 {
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        (answer.status == 200).then_some(answer)
    });
    let predictions = answer.body["predictions"].as_array().expect("a list");
    let places: Vec<&Value> = predictions.iter().map(|prediction| &prediction["frame_idx"]).collect();
    assert_eq!(places, [0, 1, 2, 3]);
    let found = &predictions[0]["boxes"][0];
    assert_eq!((&found["class_name"], predictions[0].get("error")), (&"circle".into(), None), "{found}");
    let corner = |name: &str| found[name].as_f64().expect("a number");
    let near = |name: &str, wanted: f64| assert!((corner(name) - wanted).abs() < 12.0, "{name}: {found}");
    for (name, wanted) in [("x1", 120.0), ("y1", 56.0), ("x2", 200.0), ("y2", 136.0)] {
        near(name, wanted);
    }
    assert!(corner("confidence") > 0.5 && found["class_id"].is_u64(), "{found}");
    for (at, says) in [(1, "no base64"), (2, "cannot be used")] {
        let error = predictions[at]["error"].as_str().expect("an error");
        assert!(error.contains(says) && predictions[at]["boxes"] == json!([]), "{error}");
    }
    assert_eq!(predictions[3], json!({ "frame_idx": 3, "boxes": [] }));
    engine.terminate().expect(0);
}

#[test]
fn a_batch_is_bounded_and_may_be_longer_than_the_queue() {
    let text = std::fs::read_to_string(repository().join("graphs/push.toml")).expect("the graph");
    let short =
        text.replacen("queue = 8", "queue = 1", 1).replacen("streams.door = {}", "streams = { a = {}, b = {} }", 1);
    assert_ne!(short, text);
    let folder = Folder::with_graph(&short);
    let (engine, address) = running(&folder, &[]);
    let frames: Vec<String> = (1..=33).map(|width| STANDARD.encode(sized(width * 8, 32))).collect();
    let answer = infer(&address, "?stream=a", &frames);
    assert!(answer.status == 413 && answer.told().contains("33 frames"), "{}", answer.told());
    let answer = infer(&address, "", &frames[..1]);
    assert!(answer.status == 400 && answer.told().contains("?stream=ID"), "{}", answer.told());
    std::thread::scope(|scope| {
        for stream in ["a", "b", "a"] {
            let (address, frames) = (&address, &frames[..32]);
            scope.spawn(move || {
                let answer = infer(address, &format!("?stream={stream}"), frames);
                let predictions = answer.body["predictions"].as_array().expect("a list");
                assert_eq!(predictions.len(), 32);
                assert!(predictions.iter().all(|prediction| prediction.get("error").is_none()), "{}", answer.body);
            });
        }
    });
    for body in [&b"{}"[..], b"[]", b"frames"] {
        assert_eq!(post(&format!("{address}/infer?stream=a"), "application/json", body).status, 400);
    }
    let finished = engine.terminate().expect(0);
    assert_eq!(finished.counts("a"), Counts::all_delivered(64));
    assert_eq!(finished.counts("b"), Counts::all_delivered(32));
}

fn references(material: &Path) -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(material.join("reference/images.json")).expect("the reference");
    serde_json::from_str(&text).expect("JSON")
}

/// The intersection of two boxes over their union.
fn overlap(one: [f64; 4], other: [f64; 4]) -> f64 {
    let area = |[x1, y1, x2, y2]: [f64; 4]| (x2 - x1).max(0.0) * (y2 - y1).max(0.0);
    let both = area([one[0].max(other[0]), one[1].max(other[1]), one[2].min(other[2]), one[3].min(other[3])]);
    both / (area(one) + area(other) - both)
}

/// The boxes of the material's pictures, by both routes.
#[test]
fn boxes_agree_with_the_reference_and_with_the_records() {
    let Some(material) = material() else { return };
    let text = std::fs::read_to_string(repository().join("graphs/push.toml")).expect("the graph");
    let detect =
        text.replacen("model = \"shapes\"", "model = \"yolox_nano\"", 1).replacen("circle = 0.5", "person = 0.5", 1);
    assert_ne!(detect, text);
    let folder = Folder::with_graph(&detect);
    let (engine, address) = running(&folder, &[]);
    let references = references(&material);
    let pictures: Vec<Vec<u8>> = references
        .keys()
        .map(|name| std::fs::read(material.join("images").join(name)).expect("a picture of the material"))
        .collect();
    let frames: Vec<String> = pictures.iter().map(|picture| STANDARD.encode(picture)).collect();
    let answer = infer(&address, "", &frames);
    assert_eq!(answer.status, 200, "{}", answer.told());
    for (index, (name, reference)) in references.iter().enumerate() {
        let boxes = answer.body["predictions"][index]["boxes"].as_array().expect("boxes");
        let record = push(&address, "door", "?wait=true", &pictures[index]).body;
        let of_record: Vec<Value> = record["detections"]
            .as_array()
            .expect("detections")
            .iter()
            .map(|found| {
                let [x1, y1, x2, y2] = [0, 1, 2, 3].map(|corner| &found["box"][corner]);
                json!({
                    "x1": x1, "y1": y1, "x2": x2, "y2": y2,
                    "class_id": found["index"], "class_name": found["label"], "confidence": found["score"],
                })
            })
            .collect();
        assert_eq!(*boxes, of_record, "{name}: the same picture by the other route");
        for wanted in reference["yolox_nano"].as_array().expect("a list") {
            let (label, score) = (&wanted["label"], wanted["score"].as_f64().expect("a number"));
            let corners =
                |found: &Value| ["x1", "y1", "x2", "y2"].map(|corner| found[corner].as_f64().expect("a number"));
            let reference = [0, 1, 2, 3].map(|corner| wanted["box"][corner].as_f64().expect("a number"));
            // Of several boxes with almost the same score another one may be the best, by a little other resizing.
            let is_found =
                boxes.iter().any(|found| found["class_name"] == *label && overlap(corners(found), reference) > 0.75);
            assert!(score < 0.5 || is_found, "{name}: {wanted} in {boxes:?}");
        }
    }
    let finished = engine.terminate().expect(0);
    assert_eq!(finished.counts("door"), Counts::all_delivered(2 * pictures.len() as u64));
}
