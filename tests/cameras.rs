//! Live inputs from outside: a real RTSP server that is killed, restarted, frozen, refused and asked wrongly, and that
//! the engine plays whenever it can be played. What is read is accounted for in every one of them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use support::cameras::{Mute, Relay, RtspServer, free_port, lively_clip, server_is_here};
use support::lossy::{Loss, LossyRelay};
use support::{Engine, Folder, command, get, soak};

/// Patient where a busy machine may need it, quick to try again.
const SETTINGS: &str = "connect_timeout = '60s'\nread_timeout = '60s'\nno_frame_for = '60s'\n\
                        backoff_first = '50ms'\nbackoff_most = '200ms'\n";

/// A graph that writes a checksum of each picture of the source's table into `out.jsonl`.
fn graph(source: &str) -> String {
    format!(
        "[sources.cameras]\n{source}\n[operators.sum]\ntype = 'checksum'\ninputs = ['cameras']\n\
         [sinks.out]\ntype = 'file'\ninputs = ['sum']\npath = 'out.jsonl'\n"
    )
}

fn rtsp(url: &str) -> String {
    graph(&format!("type = 'rtsp'\n{SETTINGS}streams.door = '{url}'"))
}

fn delivered(stream: &Value) -> u64 {
    stream["delivered"].as_u64().expect("a count")
}

/// Waits until the only stream is as `condition` wants it.
fn wait_for_stream(engine: &mut Engine, what: &str, mut condition: impl FnMut(&Value) -> bool) -> Value {
    let graph = engine.wait_for_graph(what, |graph| condition(&graph["streams"][0]));
    engine.wait_until_conserved();
    graph["streams"][0].clone()
}

fn wait_for_pictures(engine: &mut Engine, count: u64) -> Value {
    wait_for_stream(engine, "pictures", |stream| stream["state"] == "running" && delivered(stream) >= count)
}

/// Waits until the only stream is being tried again, and answers why.
fn wait_for_loss(engine: &mut Engine, part: &str) -> String {
    let why = |stream: &Value| stream["reason"].as_str().unwrap_or_default().to_owned();
    let stream = wait_for_stream(engine, part, |stream| stream["state"] == "retrying" && why(stream).contains(part));
    why(&stream)
}

/// Ends the engine; everything is accounted for, and what was written has numbers and times that only go on.
fn end(engine: Engine, folder: &Folder) -> Vec<Value> {
    let ended = engine.terminate().expect(0);
    let counts = ended.counts("door");
    assert_eq!(counts.lost + counts.rejected, 0, "{counts:?}");
    let records = folder.records("out.jsonl");
    let sums: Vec<&Value> = records.iter().filter(|record| record["kind"] == "checksum").collect();
    assert_eq!(sums.len() as u64, counts.delivered);
    for pair in sums.windows(2) {
        assert!(pair[0]["seq"].as_u64() < pair[1]["seq"].as_u64(), "{pair:?}");
        assert!(pair[0]["pts"].as_f64() < pair[1]["pts"].as_f64(), "{pair:?}");
    }
    records
}

/// The problems that `/health` names; empty where there are none.
fn problems(engine: &mut Engine) -> Vec<String> {
    let (status, health) = engine.get("/health");
    let problems = health["problems"].as_array().cloned().unwrap_or_default();
    assert_eq!(status == 200, problems.is_empty(), "{health}");
    problems.iter().map(|problem| problem.as_str().expect("text").to_owned()).collect()
}

#[test]
fn a_camera_with_b_frames_plays_over_both_transports() {
    if !server_is_here() {
        return;
    }
    let media = Folder::with_graph("");
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &["-bf", "2"]);
    let server = RtspServer::start(0, &[("camera", &file)], &[]);
    for transport in ["tcp", "udp"] {
        let source =
            format!("type = 'rtsp'\ntransport = '{transport}'\n{SETTINGS}streams.door = '{}'", server.url("camera"));
        let folder = Folder::with_graph(&graph(&source));
        let mut engine = folder.run(&[]);
        let stream = wait_for_pictures(&mut engine, 30);
        assert_eq!(problems(&mut engine), [""; 0]);
        assert_eq!(stream["reconnects"], 0);
        let records = end(engine, &folder);
        assert!(records.iter().all(|record| record["kind"] == "checksum" && record["width"] == 160), "{transport}");
        assert!(records.iter().all(|record| record.get("fallback").is_none() && record.get("frame").is_none()));
    }
}

#[test]
fn a_camera_that_is_killed_is_played_again_with_whatever_it_shows_then() {
    if !server_is_here() {
        return;
    }
    let media = Folder::with_graph("");
    let small = lively_clip(media.path(), "small.mp4", "160x120", &[]);
    let large = lively_clip(media.path(), "large.mp4", "320x240", &[]);
    let server = RtspServer::start(0, &[("camera", &small)], &[]);
    let port = server.port;
    let folder = Folder::with_graph(&rtsp(&server.url("camera")));
    let mut engine = folder.run(&[]);
    wait_for_pictures(&mut engine, 10);

    server.kill();
    wait_for_loss(&mut engine, "connection refused");
    let [problem] = &problems(&mut engine)[..] else { panic!("one problem") };
    assert!(problem.starts_with("graph `graph`, stream `door` is lost: connection refused"), "{problem}");
    // It is alive and ready all the same: nobody is helped by a restart.
    assert_eq!(engine.get("/health/live").0, 200);
    assert_eq!(engine.get("/health/ready").0, 200);

    let _server = RtspServer::start(port, &[("camera", &large)], &[]);
    let before = wait_for_stream(&mut engine, "a reconnect", |stream| stream["reconnects"] == 1);
    let enough = delivered(&before) + 10;
    wait_for_pictures(&mut engine, enough);
    engine.wait_for_log("stream `door` of `cameras` is back");
    assert_eq!(problems(&mut engine), [""; 0]);
    let records = end(engine, &folder);
    let gap = records.iter().position(|record| record["kind"] == "gap").expect("a gap");
    let seq = |index: usize| records[index]["seq"].as_u64().expect("a number");
    // Of the pictures that come at once on connecting, the oldest may be dropped.
    assert!(seq(gap - 1) < seq(gap) && seq(gap) <= seq(gap + 1), "numbers go on behind it");
    assert!(records[..gap].iter().all(|record| record["width"] == 160));
    assert!(records[gap + 1..].iter().all(|record| record["width"] == 320));
}

#[test]
fn a_camera_that_freezes_is_lost_and_played_again() {
    if !server_is_here() {
        return;
    }
    let media = Folder::with_graph("");
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &[]);
    let server = RtspServer::start(0, &[("camera", &file)], &[]);
    let relay = Relay::start(server.port);
    let folder = Folder::with_graph(&graph(&format!(
        "type = 'rtsp'\nconnect_timeout = '3s'\nread_timeout = '1s'\nbackoff_first = '300ms'\nbackoff_most = '300ms'\n\
         streams.door = 'rtsp://127.0.0.1:{}/camera'",
        relay.port
    )));
    let mut engine = folder.run(&[]);
    wait_for_pictures(&mut engine, 10);
    relay.freeze();
    wait_for_loss(&mut engine, "no answer within 3s");
    relay.thaw();
    let before = wait_for_stream(&mut engine, "a reconnect", |stream| stream["reconnects"].as_u64() >= Some(1));
    wait_for_pictures(&mut engine, delivered(&before) + 10);
    let records = end(engine, &folder);
    let gap = records.iter().find(|record| record["kind"] == "gap").expect("a gap");
    assert_eq!(gap["reason"], "nothing was received for 1s");
}

#[test]
fn a_server_that_says_nothing_is_named_and_does_not_keep_the_engine() {
    let mute = Mute::start();
    let source = |timeout: &str| {
        let url = format!("rtsp://127.0.0.1:{}/camera", mute.port);
        graph(&format!("type = 'rtsp'\nconnect_timeout = '{timeout}'\nbackoff_first = '1ms'\nstreams.door = '{url}'"))
    };
    let folder = Folder::with_graph(&source("300ms"));
    let mut engine = folder.run(&[]);
    let reason = wait_for_loss(&mut engine, "no answer within 300ms");
    assert!(reason.contains("hint: ") && reason.contains("`connect_timeout`"), "{reason}");
    end(engine, &folder);

    // It stops in the middle of connecting, however long that might take.
    let folder = Folder::with_graph(&source("1h"));
    let mut engine = folder.run(&["--drain-timeout", "1h"]);
    mute.wait_for_a_question();
    let stream = wait_for_stream(&mut engine, "connecting", |stream| stream["state"] == "connecting");
    assert_eq!(delivered(&stream), 0);
    end(engine, &folder);
}

#[test]
fn stopping_does_not_wait_for_the_next_attempt() {
    let source = format!(
        "type = 'rtsp'\nbackoff_first = '1h'\nbackoff_most = '1h'\nstreams.door = 'rtsp://127.0.0.1:{}/x'",
        free_port()
    );
    let folder = Folder::with_graph(&graph(&source));
    let mut engine = folder.run(&["--drain-timeout", "1h"]);
    let reason = wait_for_loss(&mut engine, "connection refused");
    assert!(reason.contains("hint: check host and port"), "{reason}");
    end(engine, &folder);
}

#[test]
fn wrong_paths_and_credentials_are_named_and_credentials_are_shown_nowhere() {
    if !server_is_here() {
        return;
    }
    let media = Folder::with_graph("");
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &[]);
    let server = RtspServer::start(0, &[("camera", &file)], &["--user", "watchman", "--password", "0pen-s3same"]);
    let host = format!("127.0.0.1:{}", server.port);
    for (url, part, hint) in [
        (format!("rtsp://watchman:wr0ng-w0rd@{host}/camera"), "(401)", "check user and password"),
        (format!("rtsp://{host}/camera"), "(401)", "check user and password"),
        (format!("rtsp://watchman:0pen-s3same@{host}/garage"), "(404)", "check the path"),
    ] {
        let folder = Folder::with_graph(&rtsp(&url));
        let mut engine = folder.run(&[]);
        let reason = wait_for_loss(&mut engine, part);
        assert!(reason.contains(hint), "{reason}");
        end(engine, &folder);
    }
    // Written down, and out of the environment.
    let literal = rtsp(&format!("rtsp://watchman:0pen-s3same@{host}/camera"));
    let referred = rtsp(&format!("rtsp://${{env.CAMERA_USER}}:${{env.CAMERA_PASSWORD}}@{host}/camera"));
    for text in [literal, referred] {
        let folder = Folder::with_graph(&text);
        let environment = [("CAMERA_USER", "watchman"), ("CAMERA_PASSWORD", "0pen-s3same")];
        let graph = folder.graph();
        let graph = graph.to_str().expect("text");
        let mut said = String::new();
        for arguments in [vec!["plan", graph], vec!["plan", graph, "--format", "json"], vec!["check", graph]] {
            let output = command(&arguments).envs(environment).output().expect("it runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            said += &String::from_utf8_lossy(&output.stdout);
            said += &String::from_utf8_lossy(&output.stderr);
        }
        let mut engine = folder.run_with(&["--log", "trace"], |command| {
            command.envs(environment);
        });
        wait_for_pictures(&mut engine, 5);
        said += &engine.stats().to_string();
        said += &engine.get("/health").1.to_string();
        let ended = engine.terminate().expect(0);
        said += &ended.stderr;
        said += &std::fs::read_to_string(folder.file("out.jsonl")).expect("records");
        assert!(said.contains(&format!("@{host}/camera")), "the rest of the URL is shown");
        for secret in ["watchman", "0pen-s3same"] {
            assert!(!said.contains(secret), "`{secret}` is shown: {said}");
        }
    }
    // A mistake in the same line shows the line, and not what is secret in it.
    let folder = Folder::with_graph(&literal_mistake(&host));
    let output = command(&["check", folder.graph().to_str().expect("text")]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("transprot") && !said.contains("0pen-s3same"), "{said}");
}

fn literal_mistake(host: &str) -> String {
    let source = format!(
        "type = 'rtsp'\nstreams.door = {{ url = 'rtsp://watchman:0pen-s3same@{host}/camera', transprot = 'udp' }}"
    );
    graph(&source)
}

#[test]
fn a_fallback_is_shown_and_marked_while_the_camera_is_away() {
    if !server_is_here() {
        return;
    }
    let media = Folder::with_graph("");
    let camera = lively_clip(media.path(), "camera.mp4", "160x120", &[]);
    let fallback = lively_clip(media.path(), "fallback.mp4", "64x48", &["-t", "0.7"]);
    let port = free_port();
    let folder = Folder::with_graph(&graph(&format!(
        "type = 'rtsp'\n{SETTINGS}fallback = '{}'\nfallback_after = 2\nstreams.door = 'rtsp://127.0.0.1:{port}/camera'",
        fallback.display()
    )));
    let mut engine = folder.run(&[]);
    // More than one round of it.
    wait_for_stream(&mut engine, "the fallback", |stream| stream["state"] == "fallback" && delivered(stream) > 25);
    let [problem] = &problems(&mut engine)[..] else { panic!("one problem") };
    assert!(problem.starts_with("graph `graph`, stream `door` shows its fallback: connection refused"), "{problem}");

    let _server = RtspServer::start(port, &[("camera", &camera)], &[]);
    let back = wait_for_stream(&mut engine, "the camera", |stream| stream["reconnects"] == 1);
    wait_for_pictures(&mut engine, delivered(&back) + 10);
    assert_eq!(problems(&mut engine), [""; 0]);
    let records = end(engine, &folder);
    let sums: Vec<&Value> = records.iter().filter(|record| record["kind"] == "checksum").collect();
    let first = sums.iter().position(|record| record.get("fallback").is_none()).expect("the camera");
    assert!(first > 25);
    assert!(sums[..first].iter().all(|record| record["fallback"] == true && record["width"] == 64));
    assert!(sums[first..].iter().all(|record| record.get("fallback").is_none() && record["width"] == 160));
}

#[test]
fn sixteen_cameras_at_once() {
    if !server_is_here() {
        return;
    }
    let media = Folder::with_graph("");
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &[]);
    let names: Vec<String> = (1..=16).map(|n| format!("c{n:02}")).collect();
    let served: Vec<(&str, &Path)> = names.iter().map(|name| (name.as_str(), file.as_path())).collect();
    let server = RtspServer::start(0, &served, &[]);
    let streams: String = names.iter().map(|name| format!("streams.{name} = '{}'\n", server.url(name))).collect();
    let folder = Folder::with_graph(&graph(&format!("type = 'rtsp'\n{SETTINGS}{streams}")));
    let mut engine = folder.run(&[]);
    engine.wait_for_graph("pictures of all", |graph| {
        let streams = graph["streams"].as_array().expect("a list");
        assert_eq!(streams.len(), 16);
        streams.iter().all(|stream| stream["state"] == "running" && delivered(stream) >= 20)
    });
    engine.wait_until_conserved();
    assert_eq!(problems(&mut engine), [""; 0]);
    let ended = engine.terminate().expect(0);
    for name in &names {
        let counts = ended.counts(name);
        assert_eq!((counts.lost, counts.rejected), (0, 0), "{name}: {counts:?}");
    }
}

/// A camera that no reload touches: it is connected once, however often the rest of its graph changes, and other cameras
/// come and go beside it.
#[test]
fn a_camera_that_no_reload_touches_stays_connected() {
    if !server_is_here() {
        return;
    }
    let media = Folder::with_graph("");
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &[]);
    let server = RtspServer::start(0, &[("camera", &file)], &[]);
    let (door, yard) = (Relay::start(server.port), Relay::start(server.port));
    let url = |relay: &Relay| format!("rtsp://127.0.0.1:{}/camera", relay.port);
    let text = |streams: &str, operator: &str, more: &str| {
        format!(
            "[sources.cameras]\ntype = 'rtsp'\n{SETTINGS}{streams}overflow = 'block'\n\
             [operators.{operator}]\ntype = 'checksum'\ninputs = ['cameras']\n\
             [sinks.out]\ntype = 'file'\ninputs = ['{operator}']\npath = 'out.jsonl'\n{more}"
        )
    };
    let one = format!("streams.door = '{}'\n", url(&door));
    let two = format!("{one}streams.yard = '{}'\n", url(&yard));
    let branch = "[operators.half]\ntype = 'sample'\ninputs = ['cameras']\nfps = 5\n\
                  [sinks.nowhere]\ntype = 'blackhole'\ninputs = ['half']\n";
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = support::run_folder(folder.path(), &[]);
    let address = engine.address();
    let put = |text: &str| support::send("PUT", &format!("{address}/graphs/door"), &[], text);
    put(&text(&one, "sum", "")).expect(201);
    let rounds = if soak() { 50 } else { 4 };
    let mut yards = 0;
    let mut enough = 0;
    for round in 0..rounds {
        for text in
            [text(&two, "sum", ""), text(&two, "total", branch), text(&one, "total", ""), text(&one, "sum", branch)]
        {
            enough += 8;
            engine.wait_for_graph("pictures of the door", |graph| {
                let streams = graph["streams"].as_array().expect("a list");
                let door = streams.iter().find(|stream| stream["stream"] == "door").expect("it is there");
                delivered(door) >= enough
            });
            let reloaded = put(&text).expect(200);
            assert_eq!(reloaded["lost"], 0, "{reloaded}");
            let kept = reloaded["streams"]["kept"].as_array().expect("a list");
            assert!(kept.contains(&"door".into()), "round {round}: {reloaded}");
            assert_eq!(door.connections(), 1, "round {round}: {reloaded}");
        }
        yards = yard.connections();
        assert!(yards <= round + 1, "the other camera is connected at most once for each time that it comes");
    }
    assert!(yards > 0, "the other camera came, too");
    engine.wait_for_graph("a running graph", |graph| graph["state"] == "running");
    engine.wait_until_conserved();
    engine.terminate().expect(0);
    assert_eq!(door.connections(), 1);
    let text = std::fs::read_to_string(folder.path().join("out.jsonl")).expect("the sink made its file");
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
    let doors: Vec<Value> = records.into_iter().filter(|record| record["stream"] == "door").collect();
    assert!(doors.iter().all(|record| record["kind"] == "checksum"), "no gap, no error");
    support::assert_unbroken(&doors);
}

/// Open files, threads, and bytes of memory of a process.
fn size_of(process: u32, stats: &Value) -> (usize, usize, u64) {
    let entries = |what: &str| std::fs::read_dir(format!("/proc/{process}/{what}")).expect("it runs").count();
    (entries("fd"), entries("task"), stats["process"]["resident_bytes"].as_u64().expect("bytes"))
}

#[test]
fn failed_attempts_leave_nothing_behind() {
    // One port where nobody is, and one where whoever connects is sent away in the middle of the conversation.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let rude = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut question = [0; 1024];
            let _ = client.read(&mut question);
            let _ = client.write_all(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n");
        }
    });
    let folder = Folder::with_graph(&graph(&format!(
        "type = 'rtsp'\nbackoff_first = '1ms'\nbackoff_most = '1ms'\n\
         streams.absent = 'rtsp://127.0.0.1:{}/x'\nstreams.rude = 'rtsp://127.0.0.1:{rude}/x'",
        free_port()
    )));
    let mut engine = folder.run(&[]);
    let after = |engine: &mut Engine, attempts: u64| {
        engine.wait_for_graph("failed attempts", |graph| {
            let streams = graph["streams"].as_array().expect("a list");
            streams.iter().all(|stream| stream["attempts"].as_u64() >= Some(attempts))
        });
        let stats = engine.stats();
        size_of(engine.id(), &stats)
    };
    let (files, threads, bytes) = after(&mut engine, 100);
    let attempts = if soak() { 10_000 } else { 1000 };
    let (files_then, threads_then, bytes_then) = after(&mut engine, attempts);
    // A look falls between the opening and the closing of a connection, for each of the two.
    assert!(files_then <= files + 2, "{files} open files, and {files_then} after {attempts} attempts");
    assert!(threads_then <= threads, "{threads} threads, and {threads_then} after {attempts} attempts");
    assert!(bytes_then < bytes + (8 << 20), "{bytes} bytes, and {bytes_then} after {attempts} attempts");
    let ended = engine.terminate().expect(0);
    for name in ["absent", "rude"] {
        assert_eq!(ended.counts(name), support::Counts::default());
    }
    // The log tells of it, and is not full of it.
    let lines = ended.stderr.lines().filter(|line| line.contains("is lost and tried again")).count();
    assert!((2..100).contains(&lines), "{lines} lines");
}

#[test]
fn one_packet_in_twenty_is_lost_and_the_stream_goes_on() {
    let media = Folder::with_graph("");
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &[]);
    let port = {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        socket.local_addr().expect("an address").port()
    };
    let relay = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let relayed = relay.local_addr().expect("an address").port();
    let lossy = relay.try_clone().expect("a socket");
    std::thread::spawn(move || {
        let mut loss = Loss::seeded();
        let mut packet = [0; 2048];
        while let Ok(length) = lossy.recv(&mut packet) {
            if !loss.loses_next() {
                let _ = lossy.send_to(&packet[..length], (Ipv4Addr::LOCALHOST, port));
            }
        }
    });
    let source = format!("type = 'url'\n{SETTINGS}streams.door = 'udp://127.0.0.1:{port}'");
    let folder = Folder::with_graph(&graph(&source));
    let mut engine = folder.run(&[]);
    let _sender = send(&file, &["-f", "mpegts", &format!("udp://127.0.0.1:{relayed}?pkt_size=1316")]);
    let stream = wait_for_stream(&mut engine, "damage, and pictures all the same", |stream| {
        damaged(stream) && delivered(stream) >= 50
    });
    assert_eq!((&stream["state"], &stream["reconnects"]), (&"running".into(), &0.into()), "{stream}");
    end(engine, &folder);
}

/// Whether something of a stream could not be decoded.
fn damaged(stream: &Value) -> bool {
    let repaired = stream["repaired"].as_object();
    repaired
        .is_some_and(|repaired| ["corrupt packet", "damaged picture"].iter().any(|what| repaired.contains_key(*what)))
}

#[test]
fn one_datagram_of_a_camera_in_twenty_is_lost_and_the_stream_goes_on() {
    if !server_is_here() {
        return;
    }
    let media = Folder::with_graph("");
    // Each picture takes several datagrams, so that parts of pictures are lost and not only whole ones.
    let noise = ["-vf", "noise=alls=20:allf=t", "-b:v", "3M", "-g", "5", "-t", "25"];
    let file = lively_clip(media.path(), "camera.mp4", "320x240", &noise);
    let server = RtspServer::start(0, &[("camera", &file)], &[]);
    let relay = LossyRelay::start(server.port);
    let url = format!("rtsp://127.0.0.1:{}/camera", relay.port);
    let source = format!("type = 'rtsp'\ntransport = 'udp'\n{SETTINGS}streams.door = '{url}'");
    let folder = Folder::with_graph(&graph(&source));
    let mut engine = folder.run(&[]);
    let stream = wait_for_stream(&mut engine, "damage, and pictures all the same", |stream| {
        damaged(stream) && delivered(stream) >= 50 && relay.counts().1 >= 10
    });
    assert_eq!((&stream["state"], &stream["reconnects"]), (&"running".into(), &0.into()), "{stream}");
    let (passed, lost) = relay.counts();
    assert!(lost * 10 < passed, "{lost} lost and {passed} passed");
    end(engine, &folder);
}

/// Another program that sends; killed when dropped.
struct Sender(Child);

impl Drop for Sender {
    fn drop(&mut self) {
        // Both fail only where it has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// FFmpeg sends a clip in real time, again and again.
fn send(file: &Path, to: &[&str]) -> Sender {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "quiet", "-nostdin", "-re", "-stream_loop", "-1", "-i"]).arg(file).args(["-c", "copy"]);
    Sender(command.args(to).stdin(Stdio::null()).spawn().expect("ffmpeg is installed"))
}

#[test]
fn rtp_by_a_session_description_plays() {
    let media = Folder::with_graph("");
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &[]);
    let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a port").port();
    let folder = Folder::with_graph(&graph(&format!("type = 'url'\n{SETTINGS}streams.door = 'camera.sdp'")));
    let description = folder.file("camera.sdp");
    let text = description.to_str().expect("text");
    let _sender = send(&file, &["-f", "rtp", "-sdp_file", text, &format!("rtp://127.0.0.1:{port}")]);
    support::wait_for("the description", || {
        std::fs::read_to_string(&description).ok().filter(|text| text.contains("m=video"))
    });
    let mut engine = folder.run(&[]);
    wait_for_pictures(&mut engine, 20);
    end(engine, &folder);
}

#[test]
fn srt_plays() {
    let media = Folder::with_graph("");
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &[]);
    let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a port").port();
    let _sender = send(&file, &["-f", "mpegts", &format!("srt://127.0.0.1:{port}?mode=listener")]);
    let source = format!("type = 'url'\n{SETTINGS}streams.door = 'srt://127.0.0.1:{port}'");
    let folder = Folder::with_graph(&graph(&source));
    let mut engine = folder.run(&[]);
    wait_for_pictures(&mut engine, 20);
    end(engine, &folder);
}

#[test]
fn rtmp_plays() {
    let media = Folder::with_graph("");
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &[]);
    let port = free_port();
    let url = format!("rtmp://127.0.0.1:{port}/live/camera");
    let _sender = send(&file, &["-f", "flv", "-listen", "1", &url]);
    let folder = Folder::with_graph(&graph(&format!("type = 'url'\n{SETTINGS}streams.door = '{url}'")));
    let mut engine = folder.run(&[]);
    wait_for_pictures(&mut engine, 20);
    end(engine, &folder);
}

#[test]
fn of_a_camera_keyframes_alone_may_be_decoded() {
    if !server_is_here() {
        return;
    }
    let media = Folder::with_graph("");
    // A keyframe in ten pictures.
    let file =
        lively_clip(media.path(), "camera.mp4", "160x120", &["-preset", "fast", "-bf", "2", "-sc_threshold", "0"]);
    let server = RtspServer::start(0, &[("camera", &file)], &[]);
    let url = server.url("camera");
    let folder =
        Folder::with_graph(&graph(&format!("type = 'rtsp'\nkeyframes_only = true\n{SETTINGS}streams.door = '{url}'")));
    let mut engine = folder.run(&[]);
    let stream = wait_for_pictures(&mut engine, 5);
    assert!(stream["skipped"].as_u64() >= Some(36), "{stream}");
    assert_eq!(stream["repaired"].as_object().map_or(0, serde_json::Map::len), 0, "{stream}");
    let alone = end(engine, &folder);
    // The same pictures as of the file that is decoded in full.
    let source = format!("type = 'file'\npath = '{}'", file.display());
    let whole = Folder::with_graph(&graph(&source));
    whole.run(&[]).finish().expect(0);
    let all = whole.records("out.jsonl");
    let sum = |record: &Value| record["md5"].as_str().expect("a checksum").to_owned();
    let first = all.iter().position(|record| sum(record) == sum(&alone[0])).expect("it is in the file");
    assert_eq!(first % 10, 0, "a keyframe");
    let seq = |record: &Value| usize::try_from(record["seq"].as_u64().expect("a number")).expect("small");
    for record in &alone {
        assert_eq!(seq(record) % 10, 0, "{record}");
        assert_eq!(sum(record), sum(&all[first + seq(record) - seq(&alone[0])]), "{record}");
    }
}

#[test]
fn a_camera_that_is_looked_at_seldom_is_decoded_seldom() {
    if !server_is_here() {
        return;
    }
    let media = Folder::with_graph("");
    // Every picture is one that the next refers to; decoding starts anew three times a second.
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &["-bf", "0", "-sc_threshold", "0"]);
    let server = RtspServer::start(0, &[("camera", &file)], &[]);
    let folder = Folder::with_graph(&format!(
        "[sources.cameras]\ntype = 'rtsp'\n{SETTINGS}streams.door = '{}'\n\
         [operators.seldom]\ntype = 'sample'\ninputs = ['cameras']\nevery = '1s'\n\
         [operators.sum]\ntype = 'checksum'\ninputs = ['seldom']\n\
         [sinks.out]\ntype = 'file'\ninputs = ['sum']\npath = 'out.jsonl'\n",
        server.url("camera")
    ));
    let mut engine = folder.run(&[]);
    wait_for_stream(&mut engine, "pictures, and others left out", |stream| {
        delivered(stream) >= 4 && stream["skipped"].as_u64() >= Some(20)
    });
    assert_eq!(problems(&mut engine), [""; 0]);
    let looked_at = end(engine, &folder);
    // The same pictures as of the file that is decoded in full.
    let whole = Folder::with_graph(&graph(&format!("type = 'file'\npath = '{}'", file.display())));
    whole.run(&[]).finish().expect(0);
    let all = whole.records("out.jsonl");
    let number = |record: &Value| usize::try_from(record["seq"].as_u64().expect("a number")).expect("small");
    let first = all.iter().position(|record| record["md5"] == looked_at[0]["md5"]).expect("it is in the file");
    for record in &looked_at {
        let of_file = &all[first + number(record) - number(&looked_at[0])];
        assert_eq!(record["md5"], of_file["md5"], "{record}");
    }
}

#[test]
fn hls_plays() {
    let media = Folder::with_graph("");
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &[]);
    let playlist = media.file("live.m3u8");
    let _sender = send(
        &file,
        &[
            "-f",
            "hls",
            "-hls_time",
            "0.3",
            "-hls_list_size",
            "20",
            "-hls_flags",
            "delete_segments",
            playlist.to_str().expect("text"),
        ],
    );
    let mut server = Command::new("python3")
        .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
        .arg(media.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("Python runs");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("piped")).read_line(&mut line).expect("text");
    let _server = Sender(server);
    // "Serving HTTP on 127.0.0.1 port 40817 (http://127.0.0.1:40817/) ..."
    let port = line.split_whitespace().skip_while(|word| *word != "port").nth(1).expect("a port");
    // Until there is a playlist, this is a camera that does not answer yet.
    let url = format!("http://127.0.0.1:{port}/live.m3u8");
    let folder = Folder::with_graph(&graph(&format!("type = 'url'\n{SETTINGS}streams.door = '{url}'")));
    let mut engine = folder.run(&[]);
    wait_for_pictures(&mut engine, 30);
    end(engine, &folder);
}

#[test]
fn a_sampled_camera_is_not_decoded_in_full_and_phases_are_spread() {
    if !server_is_here() {
        return;
    }
    let media = Folder::with_graph("");
    // Every other picture is one that no other refers to.
    let file = lively_clip(media.path(), "camera.mp4", "160x120", &["-preset", "fast", "-bf", "2", "-b_strategy", "0"]);
    let server = RtspServer::start(0, &[("a", &file), ("b", &file)], &[]);
    let folder = Folder::with_graph(&format!(
        "[sources.cameras]\ntype = 'rtsp'\n{SETTINGS}streams.a = '{}'\nstreams.b = '{}'\n\
         [operators.slow]\ntype = 'sample'\ninputs = ['cameras']\nfps = 2\n\
         [operators.sum]\ntype = 'checksum'\ninputs = ['slow']\n\
         [sinks.out]\ntype = 'file'\ninputs = ['sum']\npath = 'out.jsonl'\n",
        server.url("a"),
        server.url("b")
    ));
    let mut engine = folder.run(&[]);
    let address = engine.address();
    engine.wait_for_graph("pictures left out", |graph| {
        let streams = graph["streams"].as_array().expect("a list");
        streams.iter().all(|stream| delivered(stream) >= 4 && stream["skipped"].as_u64() > Some(10))
    });
    engine.wait_until_conserved();
    assert_eq!(get(&format!("{address}/health")).0, 200);
    engine.terminate().expect(0);
    let phases = |name: &str| -> Vec<f64> {
        let records = folder.records("out.jsonl");
        let own = records.iter().filter(|record| record["stream"] == name && record["kind"] == "checksum");
        own.map(|record| record["pts"].as_f64().expect("seconds") % 0.5).collect()
    };
    assert!(phases("a").iter().all(|phase| *phase < 0.225), "{:?}", phases("a"));
    assert!(phases("b").iter().all(|phase| (0.225..0.475).contains(phase)), "{:?}", phases("b"));
}
