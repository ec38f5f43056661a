//! The `s3` sink and source, and the storage below them, against a real S3 server on loopback that can be made to fail.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use operators::clock::SystemClock;
use operators::item::{Content, Segment, SpilledFile};
use operators::operator::Trouble;
use operators::storage::error::Cause;
use operators::storage::retry::{BACKOFF, Retry};
use operators::storage::s3::S3;
use operators::storage::{Body, Storage, runtime};
use operators::time::MediaTime;
use serde_json::Value;
use support::bucket::{Bucket, Fault, SECRET, clips, objects, with_credentials, without_credentials};
use support::cameras::free_port;
use support::{Counts, Folder, command, ffmpeg, get, material, repository, send, wait_for};

/// Checksums of a scene's pictures, as objects of ten records.
fn records_graph(endpoint: &str, frames: u64, more: &str) -> Folder {
    Folder::with_graph(&format!(
        "[sources.scene]\ntype = \"synthetic\"\nwidth = 64\nheight = 36\nrealtime = false\nframes = {frames}\n\
         [operators.sums]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
         [sinks.archive]\ntype = \"s3\"\ninputs = [\"sums\"]\nbucket = \"clips\"\nendpoint = \"{endpoint}\"\n\
         key = \"{{graph}}/{{stream}}/{{seq:06}}.jsonl\"\nbatch = {{ items = 10 }}\n{more}\n"
    ))
}

fn lines(object: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(object).expect("text");
    assert!(text.ends_with('\n'), "the last line is whole");
    text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

/// Fails unless the objects have every number of the stream once and in order, ten to an object.
fn assert_records(found: &BTreeMap<String, Vec<u8>>, frames: u64) {
    let keys: Vec<String> = (0..frames).step_by(10).map(|seq| format!("graph/synthetic/{seq:06}.jsonl")).collect();
    assert_eq!(found.keys().cloned().collect::<Vec<_>>(), keys);
    let numbers: Vec<u64> =
        found.values().flat_map(|object| lines(object)).map(|line| line["seq"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (0..frames).collect::<Vec<_>>());
}

#[test]
fn records_are_gathered_into_objects_whose_keys_depend_on_the_records_alone() {
    let (root, bucket) = clips();
    let folder = records_graph(&bucket.endpoint(), 35, "");
    let finished = folder.run_with(&[], with_credentials).finish().expect(0);
    assert_eq!(finished.counts("synthetic"), Counts::all_delivered(35));
    let first = objects(root.path(), "clips");
    assert_records(&first, 35);
    // A repeat overwrites itself.
    folder.run_with(&[], with_credentials).finish().expect(0);
    let second = objects(root.path(), "clips");
    assert_records(&second, 35);
    let sums = |found: &BTreeMap<String, Vec<u8>>| {
        found.values().flat_map(|object| lines(object)).map(|line| line["md5"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(sums(&first), sums(&second));
}

#[test]
fn an_object_that_is_not_full_is_stored_in_time_and_grows_under_its_key() {
    let (root, bucket) = clips();
    let more = "batch.every = \"100ms\"";
    let folder = records_graph(&bucket.endpoint(), 1, "");
    let text = std::fs::read_to_string(folder.graph()).expect("written");
    let text = text.replace("realtime = false\nframes = 1\n", "fps = 20\n").replace("batch = { items = 10 }", more);
    std::fs::write(folder.graph(), text).expect("written");
    let mut engine = folder.run_with(&[], with_credentials);
    let stored = |at_least: usize| {
        let found = objects(root.path(), "clips");
        let object = found.get("graph/synthetic/000000.jsonl")?;
        let count = std::str::from_utf8(object).ok()?.lines().count();
        (count >= at_least).then_some(count)
    };
    let first = engine.wait_for("a first part of the object", |_| stored(1));
    engine.wait_for("the object to grow", |_| stored(first + 3));
    let finished = engine.terminate().expect(0);
    let counts = finished.counts("synthetic");
    assert_eq!(counts.lost + counts.rejected, 0, "{counts:?}");
    let found = objects(root.path(), "clips");
    assert_eq!(found.len(), 1);
    let numbers: Vec<u64> =
        lines(&found["graph/synthetic/000000.jsonl"]).iter().map(|line| line["seq"].as_u64().expect("seq")).collect();
    assert_eq!(numbers.len() as u64, counts.delivered);
    assert!(numbers.is_sorted());
}

#[test]
fn frames_become_pictures() {
    let (root, bucket) = clips();
    let folder = Folder::with_graph(&format!(
        "[sources.scene]\ntype = \"synthetic\"\nwidth = 160\nheight = 90\nrealtime = false\nframes = 7\n\
         [sinks.pictures]\ntype = \"s3\"\ninputs = [\"scene\"]\nbucket = \"clips\"\nendpoint = \"{}\"\n\
         key = \"{{date:%Y/%m}}/{{name}}\"\n",
        bucket.endpoint()
    ));
    let finished = folder.run_with(&[], with_credentials).finish().expect(0);
    assert_eq!(finished.counts("synthetic"), Counts::all_delivered(7));
    let found = objects(root.path(), "clips");
    assert_eq!(found.len(), 7);
    for (key, object) in found {
        let (month, name) = key.rsplit_once('/').expect("a folder");
        assert!(month.len() == 7 && name.starts_with("synthetic-00000000"), "{key}");
        let picture = image::load_from_memory_with_format(&object, image::ImageFormat::Jpeg).expect("a picture");
        assert_eq!((picture.width(), picture.height()), (160, 90));
    }
}

/// How many pixels of two pictures differ by more than JPEG alone explains, outside of `boxes` grown by a margin.
fn differences(one: &[u8], other: &[u8], boxes: &[[f64; 4]]) -> (usize, usize) {
    let decoded =
        |bytes| image::load_from_memory_with_format(bytes, image::ImageFormat::Jpeg).expect("a picture").into_rgb8();
    let (one, other) = (decoded(one), decoded(other));
    let (mut inside, mut outside) = (0, 0);
    for ((x, y, a), b) in one.enumerate_pixels().zip(other.pixels()) {
        if a.0.iter().zip(b.0).all(|(a, b)| a.abs_diff(b) < 60) {
            continue;
        }
        let (x, y) = (f64::from(x), f64::from(y));
        // A label stands beside its box, and JPEG spreads an edge over 16 pixels.
        let near = |[left, top, right, bottom]: &[f64; 4]| {
            (left - 24.0..right + 160.0).contains(&x) && (top - 32.0..bottom + 32.0).contains(&y)
        };
        *if boxes.iter().any(near) { &mut inside } else { &mut outside } += 1;
    }
    (inside, outside)
}

#[test]
fn pictures_show_what_was_found_in_them() {
    let (root, bucket) = clips();
    let sink = |name: &str, inputs: &str, more: &str| {
        format!(
            "[sinks.{name}]\ntype = \"s3\"\ninputs = {inputs}\nbucket = \"clips\"\nendpoint = \"{}\"\n\
             key = \"{name}/{{name}}\"\n{more}",
            bucket.endpoint()
        )
    };
    let folder = Folder::with_graph(&format!(
        "[sources.scene]\ntype = \"synthetic\"\nseed = 3\nrealtime = false\nframes = 60\n\
         [operators.some]\ntype = \"sample\"\ninputs = [\"scene\"]\nfps = 5\n\
         [operators.shapes]\ntype = \"detect\"\ninputs = [\"some\"]\nmodel = \"shapes\"\n\
         [sinks.told]\ntype = \"file\"\ninputs = [\"shapes\"]\npath = \"told.jsonl\"\n{}{}",
        sink("plain", "[\"some\"]", "quality = 100\n"),
        sink("marked", "[\"some\", \"shapes\"]", "quality = 100\nannotate = true\n")
    ));
    let finished = folder.run_with(&[], with_credentials).finish().expect(0);
    let counts = finished.counts("synthetic");
    assert_eq!((counts.read, counts.lost, counts.rejected), (counts.delivered + counts.filtered, 0, 0), "{counts:?}");
    let found = objects(root.path(), "clips");
    let told = folder.records("told.jsonl");
    assert_eq!((told.len(), found.len()), (10, 20));
    let mut shapes = 0;
    for record in told {
        let name = format!("synthetic-{:09}.jpg", record["seq"].as_u64().expect("a number"));
        let boxes: Vec<[f64; 4]> = record["detections"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|found| serde_json::from_value(found["box"].clone()).expect("four numbers"))
            .collect();
        shapes += boxes.len();
        let (inside, outside) =
            differences(&found[&format!("plain/{name}")], &found[&format!("marked/{name}")], &boxes);
        assert_eq!(outside, 0, "{name}: nothing but boxes and labels is drawn");
        assert!(inside >= 40 * boxes.len(), "{name}: {inside} pixels are drawn for {}", boxes.len());
    }
    assert!(shapes > 10, "{shapes} shapes");
}

#[test]
fn a_server_that_is_down_loses_nothing() {
    let root = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(root.path().join("clips")).expect("a bucket");
    let port = free_port();
    let folder = records_graph(&format!("http://127.0.0.1:{port}"), 400, "");
    let mut engine = folder.run_with(&[], with_credentials);
    engine.wait_for_log("cannot be reached");
    // What is buffered is not delivered, and somebody who asks is told.
    let stats = engine.wait_for_graph("items in flight", |graph| graph["total"]["in_flight"].as_u64() > Some(0));
    assert_eq!(stats["total"]["delivered"], 0);
    let (status, health) = engine.get("/health");
    assert_eq!(status, 503, "{health}");
    assert!(health.to_string().contains("`archive` cannot store"), "{health}");
    // Up, and down again in the middle, and up for good.
    let server = Bucket::serve_at(root.path(), port);
    wait_for("some objects", || (!server.asked().is_empty()).then_some(()));
    let stopped = server.stop();
    let server = stopped.again();
    let finished = engine.finish().expect(0);
    assert_eq!(finished.counts("synthetic"), Counts::all_delivered(400));
    assert!(finished.stderr.contains("`archive` goes on"), "{}", finished.stderr);
    assert_records(&objects(root.path(), "clips"), 400);
    drop(server);
}

#[test]
fn a_server_that_refuses_hangs_and_cuts_loses_nothing() {
    let (root, bucket) = clips();
    bucket.fail_next(
        "PUT",
        &[
            Fault::Refuse(503, "SlowDown"),
            Fault::Hang,
            Fault::CutBeforeAnswer,
            Fault::Refuse(500, "InternalError"),
            Fault::Slow(Duration::from_millis(300)),
        ],
    );
    let folder = records_graph(&bucket.endpoint(), 100, "timeout = \"1s\"");
    let finished = folder.run_with(&[], with_credentials).finish().expect(0);
    assert!(bucket.has_failed_enough());
    assert_eq!(finished.counts("synthetic"), Counts::all_delivered(100));
    assert_records(&objects(root.path(), "clips"), 100);
    let refused = finished.stderr.lines().any(|line| line.contains("SlowDown (503)") && line.contains("tried again"));
    assert!(refused, "{}", finished.stderr);
}

#[test]
fn what_is_given_up_is_lost_and_named() {
    let (_root, bucket) = clips();
    bucket.fail_always("PUT", Fault::Refuse(503, "SlowDown"));
    let folder = records_graph(&bucket.endpoint(), 25, "retry_for = \"0s\"");
    let finished = folder.run_with(&[], with_credentials).finish().expect(1);
    assert_eq!(finished.counts("synthetic"), Counts { read: 25, lost: 25, ..Counts::default() });
    // The three objects are stored at once, and the log has the first failure of a sink, whichever that is.
    let told = [(10, "000000"), (10, "000010"), (5, "000020")].map(|(count, first)| {
        format!(
            "sink `archive`: {count} items of stream `synthetic` are lost: `s3://clips/graph/synthetic/{first}.jsonl`: \
             the server answers SlowDown (503): As asked"
        )
    });
    assert!(told.iter().any(|told| finished.stderr.contains(told)), "{}", finished.stderr);
}

#[test]
fn what_has_to_be_corrected_is_said_before_anything_runs() {
    let (_root, bucket) = clips();
    let refused = |folder: &Folder, prepare: &dyn Fn(&mut Command)| {
        let finished = folder.run_with(&[], |command| prepare(command)).finish();
        assert_ne!(finished.code(), 0);
        finished.stderr
    };
    let folder = records_graph(&bucket.endpoint(), 5, "");
    let wrong_id = refused(&folder, &|command| {
        with_credentials(command);
        command.env("AWS_ACCESS_KEY_ID", "AKIASOMEBODY");
    });
    assert!(wrong_id.contains("`archive` cannot start") && wrong_id.contains("AWS_ACCESS_KEY_ID"), "{wrong_id}");
    let wrong_secret = refused(&folder, &|command| {
        with_credentials(command);
        command.env("AWS_SECRET_ACCESS_KEY", "something else");
    });
    assert!(wrong_secret.contains("SignatureDoesNotMatch (403)"), "{wrong_secret}");
    let none = refused(&folder, &|command| without_credentials(command));
    assert!(none.contains("there are no credentials") && none.contains("anonymous = true"), "{none}");
    // The machine gives out credentials, and not to us.
    let machine = Bucket::serve(tempfile::tempdir().expect("a folder").path());
    machine.fail_always("PUT", Fault::Refuse(403, "AccessDenied"));
    let from_machine = |command: &mut Command| {
        without_credentials(command);
        command.env_remove("AWS_EC2_METADATA_DISABLED");
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", machine.endpoint());
    };
    let source = sums_graph(&from_bucket(&bucket, "a.mp4", ""));
    for (graph, who) in [(&folder, "`archive` cannot start"), (&source, "stream `a` of `videos` failed")] {
        let none = refused(graph, &from_machine);
        for part in
            [who, "there are no credentials: what gives them out on this machine answers 403", "anonymous = true"]
        {
            assert!(none.contains(part), "{none}");
        }
        assert!(!none.contains("ProviderError"), "{none}");
    }

    let text = std::fs::read_to_string(folder.graph()).expect("written").replace("\"clips\"", "\"clops\"");
    let no_bucket = refused(&Folder::with_graph(&text), &|command| with_credentials(command));
    assert!(no_bucket.contains("NoSuchBucket (404)") && no_bucket.contains("make the bucket `clops`"), "{no_bucket}");

    bucket.fail_always("GET", Fault::Refuse(403, "RequestTimeTooSkewed"));
    let skewed = refused(&folder, &|command| with_credentials(command));
    assert!(skewed.contains("RequestTimeTooSkewed (403)") && skewed.contains("set the clock"), "{skewed}");
}

fn storage(bucket: &Bucket) -> Arc<S3> {
    storage_at(&bucket.endpoint())
}

fn storage_at(endpoint: &str) -> Arc<S3> {
    let access = format!("endpoint = \"{endpoint}\"\nanonymous = true\ntimeout = \"5s\"");
    let access = toml::from_str(&access).expect("fields");
    Arc::new(S3::new("clips", "bucket", access).unwrap_or_else(|errors| panic!("{errors:?}")))
}

fn everybody() -> (tempfile::TempDir, Bucket) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("clips")).expect("a bucket");
    let bucket = Bucket::serve_everybody(folder.path());
    (folder, bucket)
}

/// Bytes of which each part is another.
fn pattern(length: u32) -> Vec<u8> {
    (0..length).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn large_objects_go_up_in_parts_from_memory_and_from_files() {
    let (root, bucket) = everybody();
    let content = pattern(20 << 20);
    let mut file = SpilledFile::create().expect("a file");
    std::io::Write::write_all(&mut file, &content).expect("written");
    let segment = Segment {
        origin: operators::item::Origin { graph: "archive".into(), node: "chunks".into() },
        name: "cam_chunk_0000.mp4".to_owned(),
        index: 0,
        media_type: "video/mp4",
        start: MediaTime::from_micros(0),
        end: MediaTime::from_micros(1),
        wall: None,
        follows: false,
        sha256: String::new(),
        lineage: None,
        content: Content::File(SpilledFile::unnamed(file, content.len() as u64)),
    };
    for (key, body) in
        [("memory.mp4", Body::Bytes(Bytes::from(content.clone()))), ("spilled.mp4", Body::Segment(Arc::new(segment)))]
    {
        let storage = storage(&bucket);
        runtime::wait_for(async move { storage.put(key, &body, "video/mp4").await }).expect("stored");
        assert!(objects(root.path(), "clips")[key] == content, "{key} is what was put");
    }
    let parts = bucket.asked().iter().filter(|asked| asked.query.contains("partNumber")).count();
    assert_eq!(parts, 6, "three parts each: {:?}", bucket.asked());
}

#[test]
fn an_upload_in_parts_that_fails_leaves_nothing_at_the_server() {
    let (root, bucket) = everybody();
    // The first part goes up, the second does not.
    bucket.fail_next("PUT", &[Fault::Slow(Duration::ZERO), Fault::Refuse(403, "AccessDenied")]);
    let body = Body::Bytes(Bytes::from(pattern(20 << 20)));
    let storage = storage(&bucket);
    let error = runtime::wait_for(async move { storage.put("a.mp4", &body, "video/mp4").await }).expect_err("refused");
    assert_eq!(error.cause, Cause::Final);
    wait_for("the upload to be given up at the server", || {
        bucket.asked().iter().any(|asked| asked.method == "DELETE" && asked.query.contains("uploadId")).then_some(())
    });
    assert!(objects(root.path(), "clips").is_empty());
}

/// A server on loopback, for as long as the test runs, that answers the head of each request as it likes.
fn server(answer: impl Fn(&str, &mut TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for client in listener.incoming() {
            let mut client = client.expect("a connection");
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|count| count > 0) {
                head.extend(byte);
            }
            answer(&String::from_utf8_lossy(&head), &mut client);
            open.push(client);
        }
    });
    format!("http://127.0.0.1:{port}")
}

#[test]
fn a_large_upload_goes_on_with_the_part_that_failed() {
    let (root, bucket) = everybody();
    let content = pattern(20 << 20);
    let put = |key: &'static str| {
        let (storage, body) = (storage(&bucket), Body::Bytes(Bytes::from(content.clone())));
        let trouble = Trouble::default();
        let retry = Retry {
            retry_for: Duration::from_secs(3600),
            clock: Arc::new(SystemClock),
            trouble: trouble.clone(),
            node: "archive".into(),
            backoff: BACKOFF,
        };
        let stored = async move { storage.put_retried(&retry, key, &body, "video/mp4").await };
        runtime::wait_for(stored).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(trouble.now(), None);
        assert!(objects(root.path(), "clips")[key] == content, "{key} is what was put");
    };
    let asked = |key: &str, what: &str| {
        let path = format!("clips/{key}");
        bucket.asked().iter().filter(|asked| asked.path == path && asked.query.contains(what)).count()
    };
    // The second of three parts is refused, and then done without an answer.
    bucket.fail_next("PUT", &[Fault::Slow(Duration::ZERO), Fault::Refuse(503, "SlowDown"), Fault::CutBeforeAnswer]);
    // So is the end.
    bucket.fail_next("POST", &[Fault::Slow(Duration::ZERO), Fault::Refuse(500, "InternalError")]);
    put("a.mp4");
    assert_eq!((asked("a.mp4", "uploads"), asked("a.mp4", "partNumber")), (1, 5), "{:?}", bucket.asked());

    // All is put together, and only the answer is lost: the server does not know the upload any more.
    let lost = [Fault::Slow(Duration::ZERO), Fault::CutBeforeAnswer, Fault::Refuse(404, "NoSuchUpload")];
    bucket.fail_next("POST", &lost);
    put("b.mp4");
    assert_eq!((asked("b.mp4", "uploads"), asked("b.mp4", "partNumber")), (1, 3), "{:?}", bucket.asked());

    // What the server forgot half way is begun anew.
    bucket.fail_next("PUT", &[Fault::Slow(Duration::ZERO), Fault::Refuse(404, "NoSuchUpload")]);
    put("c.mp4");
    assert_eq!((asked("c.mp4", "uploads"), asked("c.mp4", "partNumber")), (2, 5), "{:?}", bucket.asked());
    assert!(bucket.has_failed_enough());
}

/// An object may be larger than the memory of the machine.
#[test]
fn a_server_without_ranges_is_not_read() {
    let announced = server(|_, client| {
        client.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1099511627776\r\n\r\n").expect("written");
    });
    let endless = server(|_, client| {
        client.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").expect("written");
        let chunk = [b"3e8\r\n".as_slice(), &[7; 1000], b"\r\n"].concat();
        while client.write_all(&chunk).is_ok() {}
    });
    for endpoint in [announced, endless] {
        let storage = storage_at(&endpoint);
        let error = runtime::wait_for(async move { storage.get("a.mp4", 0..1000, None).await }).expect_err("all of it");
        assert_eq!(error.cause, Cause::Final, "{error}");
        assert!(error.message.ends_with("the server does not answer for a part of an object"), "{error}");
    }
}

#[test]
fn keys_that_xml_cannot_carry_are_listed_and_what_is_no_list_is_told_as_such() {
    let list = |key: &'static str| {
        let endpoint = server(move |head, client| {
            assert!(head.contains("encoding-type=url"), "{head}");
            let list = format!(
                "<?xml version=\"1.0\"?><ListBucketResult><EncodingType>url</EncodingType>\
                 <IsTruncated>false</IsTruncated><Contents><Key>{key}</Key><Size>3</Size></Contents></ListBucketResult>"
            );
            write!(client, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{list}", list.len()).expect("written");
        });
        let storage = storage_at(&endpoint);
        runtime::wait_for(async move { storage.list("in/").await })
    };
    let listed = list("in/a%01b+c%2Bd.mp4").expect("a list");
    assert_eq!(listed[0].key, "in/a\u{1}b c+d.mp4");
    // One that does not know the encoding.
    let error = list("in/a\u{1}b.mp4").expect_err("no XML");
    assert!(error.message.starts_with("`s3://clips/in/`: the answer cannot be understood: "), "{error}");
    assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("`endpoint`")), "{error:?}");
}

#[test]
fn a_video_whose_server_is_away_says_so_until_it_is_back() {
    let (root, port) = (tempfile::tempdir().expect("a folder"), free_port());
    std::fs::create_dir(root.path().join("clips")).expect("a bucket");
    let video = root.path().join("clips/door.mp4");
    ffmpeg(&["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=1"], &video);
    let folder = sums_graph(&format!(
        "type = \"s3\"\nbucket = \"clips\"\nkey = \"door.mp4\"\nendpoint = \"http://127.0.0.1:{port}\""
    ));
    let mut engine = folder.run_with(&[], with_credentials);
    let told = |engine: &mut support::Engine, what: &str, cause: &str| {
        let address = engine.address();
        let reason = engine.wait_for("the reason of the stream", |_| {
            let reason = support::get(&format!("{address}/streams/door")).1["reason"].as_str()?.to_owned();
            reason.contains(what).then_some(reason)
        });
        for part in ["`s3://clips/door.mp4`", cause, "it is tried again"] {
            assert!(reason.contains(part), "{reason}");
        }
        let health = engine.wait_for("its trouble", |_| {
            let (status, health) = support::get(&format!("{address}/health"));
            (status == 503 && health.to_string().contains(what)).then(|| health.to_string())
        });
        assert!(health.contains("stream `door`: ") && health.contains(cause), "{health}");
        let log = engine.wait_for_log(&format!("stream `door` of `videos` {what}"));
        assert!(log.contains(cause), "{log}");
    };
    told(&mut engine, "cannot look at", "cannot be reached: Connection refused");
    let bucket = Bucket::serve_at(root.path(), port);
    bucket.fail_always("GET", Fault::Refuse(503, "SlowDown"));
    told(&mut engine, "cannot read", "the server answers SlowDown (503)");
    bucket.recover();
    let finished = engine.finish().expect(0);
    assert_eq!(finished.counts("door"), Counts::all_delivered(10));
    assert!(finished.stderr.contains("stream `door` of `videos` goes on"), "{}", finished.stderr);
}

#[test]
fn objects_are_read_by_ranges_listed_and_pinned_to_a_version() {
    let (root, bucket) = everybody();
    let content = pattern(3000);
    std::fs::create_dir_all(root.path().join("clips/a/b")).expect("made");
    std::fs::write(root.path().join("clips/a/one.mp4"), &content).expect("written");
    std::fs::write(root.path().join("clips/a/b/two.mp4"), "two").expect("written");
    std::fs::write(root.path().join("clips/other.mp4"), "other").expect("written");
    let storage = storage(&bucket);
    let keys = {
        let storage = storage.clone();
        let listed = runtime::wait_for(async move { storage.list("a/").await }).expect("listed");
        listed.into_iter().map(|object| (object.key, object.bytes)).collect::<Vec<_>>()
    };
    assert_eq!(keys, [("a/b/two.mp4".to_owned(), 3), ("a/one.mp4".to_owned(), 3000)]);
    let get = |range: std::ops::Range<u64>, etag: Option<String>| {
        let storage = storage.clone();
        runtime::wait_for(async move { storage.get("a/one.mp4", range, etag.as_deref()).await })
    };
    assert_eq!(get(10..20, None).expect("read"), content[10..20]);
    assert_eq!(get(2990..4000, None).expect("read"), content[2990..]);
    assert_eq!(get(5000..6000, None).expect("nothing is there"), "");
    let head = |key: &'static str| {
        let storage = storage.clone();
        runtime::wait_for(async move { storage.head(key).await })
    };
    let etag = head("a/one.mp4").expect("there").etag;
    assert!(etag.is_some());
    assert_eq!(get(0..4, etag.clone()).expect("unchanged"), content[..4]);
    std::fs::write(root.path().join("clips/a/one.mp4"), "changed").expect("written");
    let changed = get(0..4, etag).expect_err("another version");
    assert_eq!(changed.cause, Cause::Changed);
    assert!(changed.message.contains("`s3://clips/a/one.mp4` was changed while it was read"), "{changed}");
    assert_eq!(head("a/none.mp4").expect_err("nothing").cause, Cause::Missing);
    // An answer that is cut is none, and may be asked for again.
    bucket.fail_next("GET", &[Fault::CutAnswer]);
    let cut = get(0..7, None).expect_err("cut");
    assert!(cut.is_temporary(), "{cut}");
    assert_eq!(get(0..7, None).expect("read"), "changed");
}

/// Checksums of all pictures of a source, into a file.
fn sums_graph(source: &str) -> Folder {
    Folder::with_graph(&format!(
        "[sources.videos]\n{source}\n\
         [operators.sums]\ntype = \"checksum\"\ninputs = [\"videos\"]\n\
         [sinks.out]\ntype = \"file\"\ninputs = [\"sums\"]\npath = \"sums.jsonl\"\n"
    ))
}

fn sums(folder: &Folder) -> Vec<(Value, Value, Value)> {
    let records = folder.records("sums.jsonl");
    records.iter().map(|record| (record["seq"].clone(), record["pts"].clone(), record["md5"].clone())).collect()
}

fn from_bucket(bucket: &Bucket, key: &str, more: &str) -> String {
    format!("type = \"s3\"\nbucket = \"clips\"\nkey = \"{key}\"\nendpoint = \"{}\"\n{more}", bucket.endpoint())
}

/// Copies a video of the material into the bucket.
fn upload(root: &Path, video: &Path, key: &str) -> u64 {
    let target = root.join("clips").join(key);
    std::fs::create_dir_all(target.parent().expect("a folder")).expect("made");
    // In one piece, as a server does it.
    let (copy, bytes) = (root.join("copy"), std::fs::metadata(video).expect("there").len());
    std::fs::copy(video, &copy).expect("copied");
    std::fs::rename(copy, target).expect("renamed");
    bytes
}

/// Bytes that were asked for in ranges of one object.
fn bytes_asked(bucket: &Bucket, key: &str) -> u64 {
    let of_range = |range: &str| {
        let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some(end.parse::<u64>().ok()? - start.parse::<u64>().ok()? + 1)
    };
    let asked = bucket.asked();
    let of_key = asked.iter().filter(|asked| asked.path == format!("clips/{key}"));
    of_key.filter_map(|asked| of_range(asked.range.as_deref()?)).sum()
}

#[test]
fn a_video_in_a_bucket_is_the_same_as_the_file_although_the_server_stumbles() {
    let Some(material) = material() else { return };
    let (root, bucket) = clips();
    for name in ["asl-again.mkv", "car-detection.mp4"] {
        let video = material.join("videos").join(name);
        let bytes = upload(root.path(), &video, &format!("videos/{name}"));
        bucket.fail_next("GET", &[Fault::Refuse(503, "SlowDown"), Fault::CutAnswer, Fault::CutBeforeAnswer]);
        let local = sums_graph(&format!("type = \"file\"\npath = \"{}\"", video.display()));
        local.run(&[]).finish().expect(0);
        let remote = sums_graph(&from_bucket(&bucket, &format!("videos/{name}"), ""));
        let finished = remote.run_with(&[], with_credentials).finish().expect(0);
        assert!(bucket.has_failed_enough());
        let expected = sums(&local);
        assert!(expected.len() > 70 && sums(&remote) == expected, "{name}");
        let stream = name.split('.').next().expect("a stem");
        assert_eq!(finished.counts(stream), Counts::all_delivered(expected.len() as u64));
        let asked = bytes_asked(&bucket, &format!("videos/{name}"));
        // Three answers came to nothing, and the index of an MP4 lies at its end.
        assert!(asked < 3 * bytes + (4 << 20), "{asked} bytes were asked for of {bytes}");
    }
}

#[test]
fn pictures_come_before_the_whole_video_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = folder.path().join("long.mp4");
    let noise = "color=gray:size=640x480:rate=25:duration=4,noise=alls=100:allf=t";
    ffmpeg(&["-f", "lavfi", "-i", noise, "-c:v", "libx264", "-preset", "ultrafast", "-qp", "4", "-g", "25"], &video);
    let (root, bucket) = clips();
    let bytes = upload(root.path(), &video, "long.mp4");
    assert!(bytes > 32 << 20, "the video has {bytes} bytes");
    let graph = format!(
        "[sources.videos]\n{}\n[sinks.training]\ntype = \"dataset\"\ninputs = [\"videos\"]\noutput = \"out\"\nmax = 3\n",
        from_bucket(&bucket, "long.mp4", "")
    );
    Folder::with_graph(&graph).run_with(&[], with_credentials).finish().expect(0);
    let asked = bytes_asked(&bucket, "long.mp4");
    assert!(asked < bytes / 2, "{asked} of {bytes} bytes were asked for");
}

#[test]
fn an_object_that_is_changed_while_it_is_read_says_so() {
    let Some(material) = material() else { return };
    let (root, bucket) = clips();
    upload(root.path(), &material.join("videos/car-detection.mp4"), "video.mp4");
    let folder = sums_graph(&from_bucket(&bucket, "video.mp4", "loop = true"));
    let mut engine = folder.run_with(&[], with_credentials);
    engine.wait_for_graph("pictures", |graph| graph["total"]["delivered"].as_u64() > Some(10));
    upload(root.path(), &material.join("videos/asl-again.mkv"), "video.mp4");
    let finished = engine.finish().expect(1);
    assert!(finished.stderr.contains("`s3://clips/video.mp4` was changed while it was read"), "{}", finished.stderr);
    assert_eq!(finished.counts("video").lost, 0);
}

/// Every object under a prefix is a stream, those that come later too, and each once.
#[test]
fn objects_under_a_prefix_are_found_as_they_come() {
    let Some(material) = material() else { return };
    let (root, bucket) = clips();
    let video = material.join("videos/asl-again.mkv");
    for name in ["in/a.mkv", "in/b.mkv", "other/c.mkv"] {
        upload(root.path(), &video, name);
    }
    bucket.fail_next("GET", &[Fault::Refuse(503, "SlowDown")]);
    let source = |more: &str| {
        let endpoint = bucket.endpoint();
        format!("type = \"s3\"\nbucket = \"clips\"\nprefix = \"in/\"\nat_once = 1\nendpoint = \"{endpoint}\"\n{more}")
    };
    let once = sums_graph(&source(""));
    once.run_with(&[], with_credentials).finish().expect(0);
    let of = |folder: &Folder| {
        let mut counts = BTreeMap::new();
        for record in folder.records("sums.jsonl") {
            *counts.entry(record["stream"].as_str().expect("text").to_owned()).or_insert(0) += 1;
        }
        counts
    };
    assert_eq!(of(&once), BTreeMap::from([("a".to_owned(), 77), ("b".to_owned(), 77)]));

    let polled = sums_graph(&source("poll = \"1s\""));
    let mut engine = polled.run_with(&[], with_credentials);
    let delivered = |graph: &Value, count: u64| graph["total"]["delivered"].as_u64() == Some(count);
    engine.wait_for_graph("the objects that are there", |graph| delivered(graph, 154));
    upload(root.path(), &video, "in/later.mkv");
    engine.wait_for_graph("a later object", |graph| delivered(graph, 231));
    // Those that have ended are listed no more once the next one comes.
    let listed = |graph: &Value| graph["streams"].as_array().is_some_and(|streams| streams.len() <= 1);
    let graph = engine.wait_for_graph("that those before it are forgotten", listed);
    assert_eq!(graph["total"]["lost"], 0);
    let finished = engine.terminate().expect(0);
    assert!(!finished.stderr.contains("ERROR"), "{}", finished.stderr);
    let counts = of(&polled);
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["a", "b", "later"]);
    assert!(counts.values().all(|count| *count == 77), "{counts:?}");
}

/// A server that is away for longer than anything is tried again: who looks for new objects goes on when it is back.
#[test]
fn a_preset_is_started_by_its_name() {
    let (root, bucket) = clips();
    let video = root.path().join("textile.mp4");
    ffmpeg(&["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=1", "-pix_fmt", "yuv420p"], &video);
    upload(root.path(), &video, "videos/textile.mp4");
    let source = "type = \"s3\"\nbucket = \"clips\"\npresets = { TextileFactory = \"videos/textile.mp4\" }";
    let folder = sums_graph(&format!("{source}\nendpoint = \"{}\"", bucket.endpoint()));
    let mut engine = folder.run_with(&["--stay"], with_credentials);
    let address = engine.address();
    let post = |body: &str| send("POST", &format!("{address}/streams"), &[], body);
    let started = post(r#"{"source": "videos", "preset": "TextileFactory"}"#).expect(201);
    assert_eq!((&started["stream"], &started["graph"]), (&"TextileFactory".into(), &"graph".into()), "{started}");
    engine.wait_for("its pictures", |_| {
        let (_, stream) = get(&format!("{address}/streams/TextileFactory"));
        (stream["delivered"] == 10 && stream["state"] == "ended").then_some(())
    });
    let refused = post(r#"{"source": "videos", "preset": "NoFactory"}"#).expect(400);
    assert!(refused.to_string().contains("TextileFactory"), "{refused}");
    engine.terminate().expect(0);
}

#[test]
fn a_poll_outlasts_every_outage() {
    let (root, bucket) = clips();
    let video = root.path().join("clips/in/a.mp4");
    std::fs::create_dir(root.path().join("clips/in")).expect("made");
    ffmpeg(&["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=1"], &video);
    let endpoint = bucket.endpoint();
    let folder = sums_graph(&format!(
        "type = \"s3\"\nbucket = \"clips\"\nprefix = \"in/\"\npoll = \"1s\"\nretry_for = \"500ms\"\nendpoint = \"{endpoint}\""
    ));
    let text = std::fs::read_to_string(folder.graph()).expect("written");
    std::fs::write(folder.graph(), format!("[state]\ndir = \"state\"\n{text}")).expect("written");
    let mut engine = folder.run_with(&[], with_credentials);
    let delivered = |graph: &Value, count: u64| graph["total"]["delivered"].as_u64() == Some(count);
    engine.wait_for_graph("the object that is there", |graph| delivered(graph, 10));
    let stopped = bucket.stop();
    let log = engine.wait_for_log("looks again with the next `poll`");
    assert!(log.contains("cannot look for new objects") && log.contains("cannot be reached"), "{log}");
    let (status, health) = engine.get("/health");
    assert_eq!(status, 503, "{health}");
    assert!(health.to_string().contains("node `videos` cannot"), "{health}");
    std::fs::copy(&video, root.path().join("clips/in/later.mp4")).expect("copied");
    let bucket = stopped.again();
    engine.wait_for_graph("an object that came meanwhile", |graph| delivered(graph, 20));
    wait_for("that all is well again", || (engine.get("/health").0 == 200).then_some(()));
    let finished = engine.terminate().expect(0);
    assert!(finished.stderr.contains("looks for new objects again"), "{}", finished.stderr);
    drop(bucket);
}

/// What somebody has to change first is told at the start.
#[test]
fn a_poll_of_a_bucket_that_is_not_there_ends_with_what_to_do() {
    let (_root, bucket) = clips();
    let endpoint = bucket.endpoint();
    let source =
        format!("type = \"s3\"\nbucket = \"none\"\nprefix = \"in/\"\npoll = \"1s\"\nendpoint = \"{endpoint}\"");
    let finished = sums_graph(&source).run_with(&[], with_credentials).finish().expect(1);
    assert!(
        finished.stderr.contains("cannot look for streams") && finished.stderr.contains("none"),
        "{}",
        finished.stderr
    );
}

#[test]
fn a_video_that_cannot_be_had_says_why() {
    let (root, bucket) = clips();
    std::fs::write(root.path().join("clips/empty.mp4"), "").expect("written");
    std::fs::write(root.path().join("clips/text.mp4"), "no video at all").expect("written");
    let said = |key: &str, prepare: &dyn Fn(&mut Command)| {
        let folder = sums_graph(&from_bucket(&bucket, key, ""));
        let finished = folder.run_with(&[], |command| prepare(command)).finish();
        assert_eq!(finished.code(), 1, "{}", finished.stderr);
        finished.stderr
    };
    let known = |command: &mut Command| with_credentials(command);
    let none = said("none.mp4", &known);
    assert!(none.contains("`s3://clips/none.mp4`: the server answers") && none.contains("check the key"), "{none}");
    assert!(said("empty.mp4", &known).contains("`s3://clips/empty.mp4` is empty (0 bytes)"));
    assert!(said("text.mp4", &known).contains("`s3://clips/text.mp4` cannot be played"));
    // Whoever can write an object cannot name files of this machine with it, whatever it is called.
    let secret = root.path().join("secret.mp4");
    ffmpeg(&["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=1"], &secret);
    let name = secret.display();
    let playlist = format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{name}\n#EXT-X-ENDLIST\n");
    for (key, text) in [
        ("list.m3u8", playlist.clone()),
        ("list.mp4", playlist),
        ("concat.txt", format!("ffconcat version 1.0\nfile '{name}'\n")),
    ] {
        std::fs::write(root.path().join("clips").join(key), text).expect("written");
        let refused = said(key, &known);
        assert!(refused.contains(&format!("`s3://clips/{key}` cannot be played")), "{refused}");
    }
    let wrong = said("text.mp4", &|command| {
        with_credentials(command);
        command.env("AWS_SECRET_ACCESS_KEY", "something else");
    });
    assert!(wrong.contains("SignatureDoesNotMatch (403)"), "{wrong}");
}

#[test]
fn a_model_is_fetched_from_a_bucket() {
    let (root, bucket) = clips();
    std::fs::create_dir(root.path().join("clips/models")).expect("made");
    std::fs::copy(repository().join("models/shapes.onnx"), root.path().join("clips/models/a.onnx")).expect("copied");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("models")).expect("made");
    let manifest = std::fs::read_to_string(repository().join("models/shapes.toml")).expect("the manifest");
    let manifest = manifest.replace("file = \"shapes.onnx\"", "file = \"s3://clips/models/a.onnx\"");
    std::fs::write(folder.path().join("models/remote.toml"), manifest).expect("written");
    let pull = |secret: &str| {
        let mut command = command(&["models", "pull", "remote"]);
        with_credentials(&mut command);
        command
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env("AWS_ENDPOINT_URL", bucket.endpoint())
            .env("ENGINE_MODELS", folder.path().join("models"))
            .env("ENGINE_CACHE", folder.path().join("cache"));
        let output = command.output().expect("the engine's binary runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = pull("something else");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("model `remote` cannot be fetched from s3://clips/models/a.onnx"), "{said}");
    assert!(said.contains("SignatureDoesNotMatch (403)"), "{said}");
    bucket.fail_next("GET", &[Fault::Refuse(503, "SlowDown"), Fault::CutAnswer]);
    let (code, said) = pull(SECRET);
    assert_eq!(code, Some(0), "{said}");
    let kept: Vec<_> = std::fs::read_dir(folder.path().join("cache/models")).expect("a cache").collect();
    assert_eq!(kept.len(), 1);
    let kept = kept.into_iter().next().expect("one").expect("an entry").path();
    assert_eq!(
        std::fs::read(kept).expect("kept"),
        std::fs::read(repository().join("models/shapes.onnx")).expect("there")
    );
}
