//! What every source and every sink must do, whatever it talks to. A type that is registered and not listed here fails the
//! suite; each has tests of its own beside it.
//!
//! | of a source | of a sink |
//! |---|---|
//! | delivers, and ends with everything accounted for | takes everything, and closes |
//! | ends in every state: connecting, retrying, delivering, held up by a sink that takes nothing | ends while the other side takes nothing |
//! | finds its input again when that comes back, numbers going on | says so when the other side is gone |
//! | holds no more than its budget while a sink takes nothing | |

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use operators::OPERATORS;
use operators::operator::Role;
use serde_json::Value;
use support::bucket::{Bucket, Fault, clips, objects, with_credentials};
use support::cameras::{Mute, RtspServer, free_port, lively_clip, server_is_here};
use support::vss::Vss;
use support::{Engine, Events, Finished, Folder, StalledPipe, ffmpeg};

/// The stream of every source here.
const STREAM: &str = "cam";

/// How a source is looked at.
struct SourceCase {
    type_name: &'static str,
    /// What delivers, for as long as it is held.
    healthy: fn(&Folder) -> Input,
    /// Whether its input can be away: the fields for an input on this port, where nobody listens or nobody answers.
    remote: Option<fn(port: u16) -> String>,
}

/// An input that delivers.
struct Input {
    /// The fields of the node.
    fields: String,
    /// Where its server listens.
    port: u16,
    server: Option<Server>,
    /// Does what others do to bring pictures, given the address of the engine.
    bring: Option<fn(&str) -> Bringer>,
}

impl Input {
    fn of(fields: String) -> Input {
        Input { fields, port: 0, server: None, bring: None }
    }
}

/// Somebody who brings pictures until dropped.
struct Bringer {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Bringer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("whoever brings pictures");
        }
    }
}

fn pictures(address: &str) -> Bringer {
    let over = Arc::<AtomicBool>::default();
    let (theirs, address) = (over.clone(), address.strip_prefix("http://").expect("an address").to_owned());
    let thread = std::thread::spawn(move || {
        let mut picture = std::io::Cursor::new(Vec::new());
        image::DynamicImage::new_rgb8(64, 48).write_to(&mut picture, image::ImageFormat::Png).expect("a picture");
        let picture = picture.into_inner();
        while !theirs.load(Ordering::Acquire) {
            // Refused where there is no room, and when it ends.
            let Ok(mut connection) = TcpStream::connect(&address) else { return };
            let head = format!(
                "POST /streams/{STREAM}/frames HTTP/1.1\r\nhost: engine\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                picture.len()
            );
            let mut answer = Vec::new();
            let sent = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(&picture));
            let _ = sent.and_then(|()| connection.read_to_end(&mut answer));
        }
    });
    Bringer { over, thread: Some(thread) }
}

fn rtsp_fields(port: u16) -> String {
    format!(
        "type = \"rtsp\"\nstreams.{STREAM} = \"rtsp://127.0.0.1:{port}/{STREAM}\"\nbackoff_first = \"200ms\"\n\
         backoff_most = \"500ms\""
    )
}

fn url_fields(port: u16) -> String {
    rtsp_fields(port).replace("type = \"rtsp\"", "type = \"url\"").replace("rtsp://", "http://")
}

/// Serves the clip of a folder on a port; killed when dropped.
enum Server {
    Rtsp(#[expect(dead_code, reason = "held for its end")] RtspServer),
    /// MPEG-TS over HTTP, to one client.
    Http(Child),
    S3(
        #[expect(dead_code, reason = "held for its end")] tempfile::TempDir,
        #[expect(dead_code, reason = "held for its end")] Bucket,
    ),
}

impl Server {
    fn start(type_name: &str, folder: &Folder, port: u16) -> Server {
        let file = folder.file("camera.mp4");
        if type_name == "rtsp" {
            return Server::Rtsp(RtspServer::start(port, &[(STREAM, &file)], &[]));
        }
        let child = Command::new("ffmpeg")
            .args(["-v", "error", "-nostdin", "-re", "-i"])
            .arg(&file)
            .args(["-c", "copy", "-f", "mpegts", "-listen", "1", &format!("http://127.0.0.1:{port}/{STREAM}")])
            .spawn()
            .expect("ffmpeg is installed");
        Server::Http(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Server::Http(child) = self {
            // Both fail only where it has ended and was waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn camera(folder: &Folder, type_name: &str, fields: fn(u16) -> String) -> Input {
    lively_clip(folder.path(), "camera.mp4", "160x120", &[]);
    let port = free_port();
    let server = Server::start(type_name, folder, port);
    Input { fields: fields(port), server: Some(server), port, bring: None }
}

const SOURCES: [SourceCase; 6] = [
    SourceCase {
        type_name: "file",
        healthy: |folder| {
            let source = "testsrc=size=160x120:rate=10:duration=4";
            ffmpeg(&["-f", "lavfi", "-i", source, "-c:v", "libx264", "-g", "10"], &folder.file("clip.mp4"));
            Input::of(format!("type = \"file\"\nstreams.{STREAM} = {{ path = \"clip.mp4\", loop = true }}"))
        },
        remote: None,
    },
    SourceCase {
        type_name: "push",
        healthy: |_| Input {
            fields: format!("type = \"push\"\nstreams.{STREAM} = {{}}"),
            port: 0,
            server: None,
            bring: Some(pictures),
        },
        remote: None,
    },
    SourceCase { type_name: "rtsp", healthy: |folder| camera(folder, "rtsp", rtsp_fields), remote: Some(rtsp_fields) },
    SourceCase {
        type_name: "s3",
        healthy: |_| {
            let (root, bucket) = clips();
            let source = "testsrc=size=160x120:rate=10:duration=4";
            let object = root.path().join("clips/clip.mp4");
            ffmpeg(&["-f", "lavfi", "-i", source, "-c:v", "libx264", "-g", "10"], &object);
            let fields = format!(
                "type = \"s3\"\nbucket = \"clips\"\nstreams.{STREAM} = {{ key = \"clip.mp4\" }}\nloop = true\nendpoint = \"{}\"",
                bucket.endpoint()
            );
            Input { fields, port: 0, server: Some(Server::S3(root, bucket)), bring: None }
        },
        // An object that cannot be read now is tried again inside of a read: see `tests/s3.rs`.
        remote: None,
    },
    SourceCase {
        type_name: "synthetic",
        healthy: |_| {
            Input::of(format!(
                "type = \"synthetic\"\nstreams = [\"{STREAM}\"]\nwidth = 64\nheight = 48\nfps = 30\nrealtime = false"
            ))
        },
        remote: None,
    },
    SourceCase { type_name: "url", healthy: |folder| camera(folder, "url", url_fields), remote: Some(url_fields) },
];

/// How a sink is looked at.
struct SinkCase {
    type_name: &'static str,
    /// What stands behind the source `input`, given where the other side is; for pictures of 64 by 48.
    nodes: fn(place: &str) -> String,
    /// The other side.
    side: fn(&Folder) -> OtherSide,
}

/// What a sink talks to.
enum OtherSide {
    Nobody,
    S3(tempfile::TempDir, Bucket),
    Vss(tempfile::TempDir, Vss),
}

impl OtherSide {
    fn place(&self) -> String {
        match self {
            OtherSide::Nobody => String::new(),
            OtherSide::S3(_, bucket) => bucket.endpoint(),
            OtherSide::Vss(_, vss) => vss.url(),
        }
    }

    /// From here on it takes nothing and says nothing; `false` where it cannot do so.
    fn fall_silent(&self) -> bool {
        match self {
            OtherSide::Nobody => false,
            OtherSide::S3(_, bucket) => {
                bucket.fail_always("PUT", Fault::Hang);
                true
            }
            OtherSide::Vss(_, vss) => {
                vss.fail(&["hang"; 100]);
                true
            }
        }
    }
}

fn sums(sink: &str) -> String {
    format!("[operators.sums]\ntype = \"checksum\"\ninputs = [\"input\"]\n\n[sinks.out]\ninputs = [\"sums\"]\n{sink}\n")
}

const SINKS: [SinkCase; 7] = [
    SinkCase { type_name: "blackhole", nodes: |_| sums("type = \"blackhole\""), side: |_| OtherSide::Nobody },
    SinkCase {
        type_name: "dataset",
        nodes: |_| "[sinks.out]\ntype = \"dataset\"\ninputs = [\"input\"]\noutput = \"set\"\n".to_owned(),
        side: |_| OtherSide::Nobody,
    },
    SinkCase { type_name: "file", nodes: |_| sums(RECORDS), side: |_| OtherSide::Nobody },
    SinkCase {
        type_name: "hls",
        nodes: |_| {
            "[sources.video]\ntype = \"file\"\nstreams.video = \"clip.mp4\"\n\n[sinks.out]\ntype = \"hls\"\n\
             inputs = [\"video\"]\nsegment = \"1s\"\n\n[sinks.nowhere]\ntype = \"blackhole\"\ninputs = [\"input\"]\n"
                .to_owned()
        },
        side: |folder| {
            let source = "testsrc=size=160x120:rate=10:duration=4";
            ffmpeg(&["-f", "lavfi", "-i", source, "-c:v", "libx264", "-g", "10"], &folder.file("clip.mp4"));
            OtherSide::Nobody
        },
    },
    SinkCase {
        type_name: "s3",
        nodes: |place| {
            let key = "key = \"{stream}/{seq}.jsonl\"\nbatch = { items = 5 }";
            sums(&format!("type = \"s3\"\nbucket = \"clips\"\nendpoint = \"{place}\"\n{key}"))
        },
        side: |_| {
            let (root, bucket) = clips();
            OtherSide::S3(root, bucket)
        },
    },
    SinkCase { type_name: "sse", nodes: |_| sums("type = \"sse\""), side: |_| OtherSide::Nobody },
    SinkCase {
        type_name: "vss",
        nodes: |place| {
            format!(
                "[operators.chunks]\ntype = \"chunk\"\ninputs = [\"video\"]\nevery = \"1s\"\n\n[sources.video]\n\
                 type = \"file\"\nstreams.video = \"clip.mp4\"\n\n[sinks.out]\ntype = \"vss\"\ninputs = [\"chunks\"]\n\
                 url = \"{place}\"\n\n[sinks.nowhere]\ntype = \"blackhole\"\ninputs = [\"input\"]\n"
            )
        },
        side: |folder| {
            let source = "testsrc=size=160x120:rate=10:duration=4";
            ffmpeg(&["-f", "lavfi", "-i", source, "-c:v", "libx264", "-g", "10"], &folder.file("clip.mp4"));
            let files = tempfile::tempdir().expect("a folder");
            let vss = Vss::start(files.path(), 0, &[]);
            OtherSide::Vss(files, vss)
        },
    },
];

impl SinkCase {
    fn write(&self, folder: &Folder, source: &str, side: &OtherSide) {
        let text = format!("[sources.input]\n{source}\n\n{}", (self.nodes)(&side.place()));
        std::fs::write(folder.graph(), text).expect("written");
    }
}

fn graph(fields: &str, sink: &str) -> String {
    format!(
        "[sources.input]\n{fields}\n\n[operators.sums]\ntype = \"checksum\"\ninputs = [\"input\"]\n\n\
         [sinks.out]\ninputs = [\"sums\"]\n{sink}\n"
    )
}

/// The engine on one source and one sink.
struct Running {
    engine: Engine,
    bringer: Option<Bringer>,
}

impl Running {
    fn start(folder: &Folder, fields: &str, bring: Option<fn(&str) -> Bringer>, sink: &str) -> Running {
        std::fs::write(folder.graph(), graph(fields, sink)).expect("written");
        let mut engine = folder.run_with(&[], with_credentials);
        let address = engine.address();
        Running { bringer: bring.map(|bring| bring(&address)), engine }
    }

    /// Asks it to end; nothing may be missing from the books.
    fn end(self, what: &str) -> Finished {
        eprintln!("ends: {what}");
        let finished = self.engine.terminate();
        drop(self.bringer);
        let finished = finished.expect(0);
        finished.counts(STREAM);
        finished
    }

    fn wait_for_state(&mut self, state: &str) {
        self.engine.wait_for_graph(state, |graph| graph["streams"][0]["state"] == state);
    }

    fn wait_for_delivery(&mut self, more: u64) {
        let mut start = None;
        self.engine.wait_for_graph("items that are delivered", |graph| {
            let now = graph["total"]["delivered"].as_u64().unwrap_or_default();
            now >= *start.get_or_insert(now) + more
        });
    }
}

/// Looks at every case, all at the same time: what is waited for is mostly the clock of an input, or a timer.
fn at_once<Case: Sync>(cases: &[Case], name: impl Fn(&Case) -> &str, look: impl Fn(&Case) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            // Whoever fails says so with its thread's name; the scope then fails, too.
            let thread = std::thread::Builder::new().name(name(case).to_owned());
            thread.spawn_scoped(scope, || look(case)).expect("a thread");
        }
    });
}

fn every_source(look: impl Fn(&SourceCase) + Sync) {
    at_once(&SOURCES, |case| case.type_name, look);
}

fn every_sink(look: impl Fn(&SinkCase) + Sync) {
    at_once(&SINKS, |case| case.type_name, look);
}

const RECORDS: &str = "type = \"file\"\npath = \"out.jsonl\"";

#[test]
fn every_registered_source_and_sink_is_in_the_suite() {
    let names = |role: Role| -> BTreeSet<&str> {
        OPERATORS.iter().filter(|known| known.role == role).map(|known| known.name).collect()
    };
    assert_eq!(names(Role::Source), SOURCES.iter().map(|case| case.type_name).collect());
    assert_eq!(names(Role::Sink), SINKS.iter().map(|case| case.type_name).collect());
}

#[test]
fn every_source_delivers_and_ends_with_everything_accounted_for() {
    if !server_is_here() {
        return;
    }
    every_source(|case| {
        let folder = Folder::with_graph("");
        let input = (case.healthy)(&folder);
        let mut running = Running::start(&folder, &input.fields, input.bring, RECORDS);
        running.wait_for_delivery(20);
        let finished = running.end(case.type_name);
        let counts = finished.counts(STREAM);
        assert_eq!(counts.lost, 0, "{}: {counts:?}", case.type_name);
        let records = folder.records("out.jsonl");
        let results = records.iter().filter(|record| record["kind"] == "checksum");
        let numbers: Vec<u64> = results.map(|record| record["seq"].as_u64().expect("a number")).collect();
        assert!(numbers.is_sorted_by(|one, next| one < next), "{}: {numbers:?}", case.type_name);
        assert_eq!(numbers.len() as u64, counts.delivered, "{}", case.type_name);
    });
}

/// A sink that takes nothing holds everything up: memory stays within the budget, and what was read is delivered once the
/// sink goes on.
#[test]
fn every_source_is_held_up_within_its_budget_and_loses_nothing_by_it() {
    if !server_is_here() {
        return;
    }
    every_source(|case| {
        let folder = Folder::with_graph("");
        let input = (case.healthy)(&folder);
        let pipe = StalledPipe::new(folder.file("pipe"));
        let fields = format!("{}\nbudget = {{ items = 6 }}", input.fields);
        let sink = "type = \"file\"\npath = \"pipe\"";
        let mut running = Running::start(&folder, &fields, input.bring, sink);
        let in_flight = wait_for_full(&mut running.engine);
        assert!(in_flight <= 7, "{}: {in_flight} in flight, one of them in the source's hand", case.type_name);
        let lines = pipe.drain();
        let finished = running.end(case.type_name);
        let counts = finished.counts(STREAM);
        assert_eq!(counts.lost, 0, "{}: {counts:?}", case.type_name);
        let lines = lines.join().expect("the pipe was read");
        let results = lines.iter().filter(|line| line.contains("\"kind\":\"checksum\"")).count();
        assert_eq!(results as u64, counts.delivered, "{}", case.type_name);
    });
}

/// Waits until nothing more fits: as many are in flight as may be, and look after look none is delivered, while the source
/// waits, or drops what it reads on. How many are in flight.
fn wait_for_full(engine: &mut Engine) -> u64 {
    let count = |graph: &Value, what: &str| graph["total"][what].as_u64().unwrap_or_default();
    let (mut delivered, mut read, mut looks) = (u64::MAX, 0, 0);
    let graph = engine.wait_for_graph("a budget that is spent", |graph| {
        if count(graph, "delivered") != delivered {
            (delivered, read, looks) = (count(graph, "delivered"), count(graph, "read"), 0);
        }
        looks += 1;
        // Also pictures that come all at once are read on for a moment before the first of them can be delivered.
        let goes_on = count(graph, "read") >= read + 12 || graph["streams"][0]["blocked_by"].is_string();
        count(graph, "in_flight") >= 6 && looks > 150 && goes_on
    });
    count(&graph, "in_flight")
}

#[test]
fn every_source_ends_while_a_sink_takes_nothing() {
    if !server_is_here() {
        return;
    }
    every_source(|case| {
        let folder = Folder::with_graph("");
        let input = (case.healthy)(&folder);
        let pipe = StalledPipe::new(folder.file("pipe"));
        let fields = format!("{}\nbudget = {{ items = 6 }}", input.fields);
        std::fs::write(folder.graph(), graph(&fields, "type = \"file\"\npath = \"pipe\"")).expect("written");
        let mut engine = folder.run_with(&["--drain-timeout", "200ms"], with_credentials);
        let address = engine.address();
        let bringer = input.bring.map(|bring| bring(&address));
        wait_for_full(&mut engine);
        let finished = engine.terminate();
        drop(bringer);
        assert_ne!(finished.code(), 0, "{}: it could not drain", case.type_name);
        assert!(finished.stderr.contains("`out`"), "{}: the sink is named: {}", case.type_name, finished.stderr);
        let counts = finished.counts(STREAM);
        assert!(counts.lost > 0, "{}: {counts:?}", case.type_name);
        drop(pipe);
    });
}

#[test]
fn every_remote_source_ends_while_it_connects_and_while_it_waits() {
    every_source(|case| {
        let Some(remote) = case.remote else { return };
        // Nobody listens.
        let folder = Folder::with_graph("");
        let mut running = Running::start(&folder, &remote(free_port()), None, RECORDS);
        running.wait_for_state("retrying");
        running.end(case.type_name);
        // Nobody answers.
        let mute = Mute::start();
        let folder = Folder::with_graph("");
        let running = Running::start(&folder, &remote(mute.port), None, RECORDS);
        mute.wait_for_a_question();
        running.end(case.type_name);
    });
}

#[test]
fn every_remote_source_finds_its_input_again() {
    if !server_is_here() {
        return;
    }
    every_source(|case| {
        if case.remote.is_none() {
            return;
        }
        let folder = Folder::with_graph("");
        let input = (case.healthy)(&folder);
        let mut running = Running::start(&folder, &input.fields, input.bring, RECORDS);
        running.wait_for_delivery(5);
        drop(input.server);
        running.wait_for_state("retrying");
        let _server = Server::start(case.type_name, &folder, input.port);
        running.wait_for_state("running");
        running.wait_for_delivery(5);
        let finished = running.end(case.type_name);
        assert_eq!(finished.counts(STREAM).lost, 0, "{}", case.type_name);
        let records = folder.records("out.jsonl");
        assert!(records.iter().any(|record| record["kind"] == "gap"), "{}: no gap is told", case.type_name);
        let results = records.iter().filter(|record| record["kind"] == "checksum");
        let numbers: Vec<u64> = results.map(|record| record["seq"].as_u64().expect("a number")).collect();
        assert!(numbers.is_sorted_by(|one, next| one < next), "{}: {numbers:?}", case.type_name);
    });
}

const FRAMES: u64 = 60;

fn frames() -> String {
    format!(
        "type = \"synthetic\"\nstreams = [\"{STREAM}\"]\nwidth = 64\nheight = 48\nfps = 30\nrealtime = false\nframes = {FRAMES}"
    )
}

#[test]
fn every_sink_takes_everything_and_closes() {
    every_sink(|case| {
        let folder = Folder::with_graph("");
        let side = (case.side)(&folder);
        let listens = case.type_name == "sse";
        let source = match listens {
            // Paced, so that whoever listens is there before the end.
            true => frames().replace("realtime = false", "realtime = true\noverflow = \"block\""),
            false => frames(),
        };
        case.write(&folder, &source, &side);
        let mut engine = folder.run_with(&[], with_credentials);
        let address = engine.address();
        // What it hears waits in the connection.
        let heard = listens.then(|| Events::listen(&address, "", None));
        let finished = engine.finish().expect(0);
        let counts = finished.counts(STREAM);
        assert_eq!((counts.read, counts.delivered), (FRAMES, FRAMES), "{}: {counts:?}", case.type_name);
        match (&side, heard) {
            (OtherSide::S3(root, _), _) => {
                let lines: usize = objects(root.path(), "clips")
                    .values()
                    .map(|object| object.iter().filter(|byte| **byte == b'\n').count())
                    .sum();
                assert_eq!(lines as u64, FRAMES);
            }
            (OtherSide::Vss(files, _), _) => {
                // Each with what is known of it.
                assert_eq!(std::fs::read_dir(files.path()).expect("a folder").count(), 2 * 4);
                let counts = finished.counts("video");
                assert_eq!(counts.delivered, counts.read, "{counts:?}");
            }
            (OtherSide::Nobody, Some(events)) => {
                let heard = events.filter(|event| event.kind == "checksum").count() as u64;
                assert!(heard <= FRAMES && heard > 0, "{heard}");
            }
            (OtherSide::Nobody, None) if case.type_name == "file" => {
                assert_eq!(folder.records("out.jsonl").len() as u64, FRAMES);
            }
            (OtherSide::Nobody, None) => {}
        }
    });
}

/// What is on the other side of a sink takes and says nothing more: the graph ends all the same, and the sink is named.
#[test]
fn every_sink_ends_while_the_other_side_takes_nothing() {
    every_sink(|case| {
        let folder = Folder::with_graph("");
        let side = (case.side)(&folder);
        if !side.fall_silent() {
            return;
        }
        case.write(&folder, &frames(), &side);
        let mut engine = folder.run_with(&["--drain-timeout", "200ms"], with_credentials);
        engine.wait_for_graph("items that wait for the other side", |graph| {
            let streams = graph["streams"].as_array().expect("a list");
            let waits = |stream: &&Value| stream["in_flight"].as_u64() > Some(0);
            // Packets come to the sink as a file: where there are any, some have to be on their way into one.
            match streams.iter().find(|stream| stream["stream"] == "video") {
                Some(video) => video["read"].as_u64() > Some(20) && waits(&video),
                None => streams.iter().any(|stream| waits(&stream)),
            }
        });
        let finished = engine.terminate();
        assert_ne!(finished.code(), 0, "{}: it could not drain", case.type_name);
        assert!(finished.stderr.contains("`out`"), "{}: the sink is named: {}", case.type_name, finished.stderr);
    });
    // The stalled pipe of `file` is looked at above; somebody who listens and does not read slows nobody down.
    let folder = Folder::with_graph("");
    let endless = frames().replace(&format!("\nframes = {FRAMES}"), "");
    let mut running = Running::start(&folder, &endless, None, "type = \"sse\"");
    let address = running.engine.address();
    let mut silent = TcpStream::connect(address.strip_prefix("http://").expect("an address")).expect("connected");
    silent.write_all(b"GET /events HTTP/1.1\r\nhost: engine\r\n\r\n").expect("written");
    running.wait_for_delivery(2000);
    let finished = running.end("sse");
    assert_eq!(finished.counts(STREAM).lost, 0);
}

#[test]
fn every_sink_says_so_when_the_other_side_is_gone() {
    // A listener who goes is nobody's failure.
    let folder = Folder::with_graph("");
    let mut running =
        Running::start(&folder, &frames().replace(&format!("\nframes = {FRAMES}"), ""), None, "type = \"sse\"");
    let address = running.engine.address();
    drop(Events::listen(&address, "", None));
    running.wait_for_delivery(100);
    running.end("sse");

    // A pipe whose reader goes, and a disk that is full.
    let folder = Folder::with_graph("");
    let pipe = StalledPipe::new(folder.file("pipe"));
    let endless = frames().replace(&format!("\nframes = {FRAMES}"), "");
    std::fs::write(folder.graph(), graph(&endless, "type = \"file\"\npath = \"pipe\"")).expect("written");
    let mut engine = folder.run(&["--stay"]);
    engine.wait_for_stall();
    drop(pipe);
    engine.wait_for_graph("items that are lost", |graph| graph["total"]["lost"].as_u64() > Some(0));
    let finished = engine.terminate();
    assert!(finished.stderr.contains("broken pipe"), "{}", finished.stderr);
    assert_full_disk_is_named();
}

fn assert_full_disk_is_named() {
    let folder = Folder::with_graph("");
    std::fs::write(folder.graph(), graph(&frames(), "type = \"file\"\npath = \"/dev/full\"")).expect("written");
    let finished = folder.run(&[]).finish();
    assert_ne!(finished.code(), 0);
    assert!(finished.stderr.contains("no space left"), "{}", finished.stderr);
}
