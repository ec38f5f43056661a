//! An engine that is never left alone, for as many minutes as `ENGINE_SOAK_MINUTES` says (`script/soak MINUTES`): its graph
//! is reloaded, its cameras come and go and lose their server, subscribers come and go. What it holds then must not grow.
//!
//! Without that variable it does each of these things a few times, so that it is known to work.

use std::time::{Duration, Instant};

use operators::clock::{Clock, SystemClock};
use serde_json::{Value, json};
use support::cameras::{RtspServer, clip, server_is_here};
use support::{Engine, Events, run_folder, send};

/// How much what the process holds may grow over the whole measurement, by the straight line through it. A leak grows
/// without end, so the longer the run the stricter this is.
const MOST_MEBIBYTES: f64 = 24.0;
const MOST_DESCRIPTORS: f64 = 8.0;
const MOST_THREADS: f64 = 4.0;

/// Reloads until another measurement is taken.
const BETWEEN: u64 = 5;

/// What the process holds at a moment.
#[derive(Clone, Copy)]
struct Sample {
    hours: f64,
    mebibytes: f64,
    descriptors: f64,
    threads: f64,
}

/// One of the numbers of a sample.
type Measure = fn(&Sample) -> f64;

fn sample(engine: &mut Engine, start: Instant) -> Sample {
    let process = engine.id();
    let entries = |what: &str| std::fs::read_dir(format!("/proc/{process}/{what}")).expect("it runs").count() as f64;
    let (descriptors, threads) = (entries("fd"), entries("task"));
    let bytes = engine.stats()["process"]["resident_bytes"].as_f64().expect("bytes");
    let hours = (SystemClock.now() - start).as_secs_f64() / 3600.0;
    Sample { hours, mebibytes: bytes / f64::from(1 << 20), descriptors, threads }
}

/// The slope of the straight line with the least squares, in units an hour.
fn slope(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: &dyn Fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (time, middle) = (mean(&|one| one.hours), mean(&|one| value(one)));
    let covariance: f64 = samples.iter().map(|one| (one.hours - time) * (value(one) - middle)).sum();
    let variance: f64 = samples.iter().map(|one| (one.hours - time).powi(2)).sum();
    if variance > 0.0 { covariance / variance } else { 0.0 }
}

#[test]
fn slopes_are_those_of_the_line() {
    let sample = |hours: f64| Sample { hours, mebibytes: 100.0 + 5.0 * hours, descriptors: 7.0, threads: 9.0 - hours };
    let samples: Vec<Sample> = (0..10).map(|n| sample(f64::from(n) / 10.0)).collect();
    let close = |slope: f64, expected: f64| (slope - expected).abs() < 1e-9;
    assert!(close(slope(&samples, |one| one.mebibytes), 5.0));
    assert!(close(slope(&samples, |one| one.descriptors), 0.0));
    assert!(close(slope(&samples, |one| one.threads), -1.0));
}

/// The graph in one of its versions: another operator's name, another branch and a stream of another name, so that each
/// reload builds and takes down.
fn text(round: u64, camera: &str) -> String {
    let (operator, branch) = match round % 3 {
        0 => ("sum", ""),
        1 => (
            "total",
            "[operators.shapes]\ntype = 'detect'\ninputs = ['scene']\nmodel = 'shapes'\n\
             [sinks.boxes]\ntype = 'sse'\ninputs = ['shapes']\n",
        ),
        _ => (
            "sum",
            "[operators.chunks]\ntype = 'chunk'\ninputs = ['cameras']\nevery = '1s'\n\
             [sinks.hole]\ntype = 'blackhole'\ninputs = ['chunks']\n",
        ),
    };
    format!(
        "[sources.cameras]\ntype = 'rtsp'\nbackoff_first = '100ms'\nbackoff_most = '1s'\n\
         streams.north = '{camera}'\nstreams.south = '{camera}'\n\
         [sources.scene]\ntype = 'synthetic'\nwidth = 320\nheight = 180\nfps = 20\n\
         streams = ['synthetic', 'guest-{round}']\n\
         [operators.{operator}]\ntype = 'checksum'\ninputs = ['cameras', 'scene']\n\
         [sinks.events]\ntype = 'sse'\ninputs = ['{operator}']\n\
         [sinks.out]\ntype = 'file'\ninputs = ['{operator}']\npath = '/dev/null'\n{branch}"
    )
}

/// One round of disturbances.
struct Unrest {
    address: String,
    camera: String,
    media: tempfile::TempDir,
    server: Option<RtspServer>,
    port: u16,
    lost: u64,
    flaps: u64,
}

impl Unrest {
    fn serve(&self) -> RtspServer {
        RtspServer::start(self.port, &[("camera", &self.media.path().join("camera.mp4"))], &[])
    }

    fn round(&mut self, engine: &mut Engine, round: u64) {
        // Subscribers come, hear something and go; some hear nothing.
        let mut subscribers: Vec<Events> =
            (0..10).map(|_| Events::listen(&self.address, "?stream=synthetic", None)).collect();
        for subscriber in subscribers.iter_mut().take(5) {
            subscriber.next().expect("a record");
        }
        let reloaded =
            send("PUT", &format!("{}/graphs/door", self.address), &[], &text(round, &self.camera)).expect(200);
        self.lost += reloaded["lost"].as_u64().expect("a count");
        drop(subscribers);
        // A camera comes and goes.
        let id = format!("visitor-{round}");
        let visitor = json!({ "graph": "door", "source": "cameras", "id": id, "url": self.camera }).to_string();
        let json = [("content-type", "application/json")];
        let posted = send("POST", &format!("{}/streams", self.address), &json, &visitor);
        assert!(posted.status < 300, "{}", posted.text);
        // Every other reload the cameras lose their server, or get it back.
        if round.is_multiple_of(2) {
            match self.server.take() {
                Some(server) => server.kill(),
                None => self.server = Some(self.serve()),
            }
            self.flaps += 1;
        }
        let all = |graph: &Value| graph["streams"].as_array().expect("a list").clone();
        let is_there = self.server.is_some();
        engine.wait_for_graph("cameras that are there or are not", |graph| {
            let cameras = all(graph).into_iter().filter(|stream| stream["source"] == "cameras").collect::<Vec<_>>();
            let expected = if is_there { &["running"][..] } else { &["retrying", "connecting"][..] };
            cameras.len() == 3
                && cameras.iter().all(|stream| expected.contains(&stream["state"].as_str().unwrap_or("")))
        });
        let removed = send("DELETE", &format!("{}/streams/{id}", self.address), &[], "");
        assert!(removed.status < 300, "{}", removed.text);
        engine.wait_for_graph("the end of a stream", |graph| all(graph).iter().all(|stream| stream["stream"] != *id));
    }
}

#[test]
fn nothing_grows_while_everything_changes() {
    if !server_is_here() {
        return;
    }
    let minutes = std::env::var("ENGINE_SOAK_MINUTES").ok().map(|minutes| {
        minutes.parse::<f64>().unwrap_or_else(|_| panic!("ENGINE_SOAK_MINUTES is a number of minutes, not {minutes}"))
    });
    let media = tempfile::tempdir().expect("a folder");
    clip(media.path(), "camera.mp4", "160x120", &[]);
    let port = support::cameras::free_port();
    let camera = format!("rtsp://127.0.0.1:{port}/camera");
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = run_folder(folder.path(), &["--allow-path", "/dev/null"]);
    let address = engine.address();
    let mut unrest = Unrest { address, camera, media, server: None, port, lost: 0, flaps: 0 };
    unrest.server = Some(unrest.serve());
    send("PUT", &format!("{}/graphs/door", unrest.address), &[], &text(0, &unrest.camera)).expect(201);

    let start = SystemClock.now();
    let wanted = Duration::from_secs_f64(minutes.unwrap_or_default() * 60.0);
    let (mut samples, mut round) = (Vec::new(), 0);
    let at_least = 2 * BETWEEN;
    while round < at_least || SystemClock.now() - start < wanted {
        round += 1;
        unrest.round(&mut engine, round);
        // Always in the same version of the graph, and with the same cameras.
        if round % BETWEEN == 0 {
            let (operator, server) = (round.next_multiple_of(3), unrest.server.is_some());
            send("PUT", &format!("{}/graphs/door", unrest.address), &[], &text(operator, &unrest.camera)).expect(200);
            if !server {
                unrest.server = Some(unrest.serve());
            }
            engine.wait_for_graph("all cameras, and nothing of what was there before", |graph| {
                let streams = graph["streams"].as_array().expect("a list");
                streams.len() == 4 && streams.iter().all(|stream| stream["state"] == "running")
            });
            engine.wait_until_conserved();
            let one = sample(&mut engine, start);
            println!(
                "{:7.1} s  {:6} reloads  {:7.1} MiB  {:4} descriptors  {:4} threads",
                one.hours * 3600.0,
                round,
                one.mebibytes,
                one.descriptors,
                one.threads
            );
            samples.push(one);
        }
    }
    let ended = engine.terminate().expect(0);
    assert!(!ended.stderr.contains("do not add up"), "{}", ended.stderr);
    assert_eq!(unrest.lost, 0, "no reload lost anything");
    if minutes.is_none() {
        return;
    }
    // What is loaded and made once belongs to the first fifth.
    let measured = &samples[samples.len() / 5..];
    let hours = measured.last().map_or(0.0, |last| last.hours) - measured.first().map_or(0.0, |first| first.hours);
    println!(
        "{round} reloads, {} flaps of the server, {} measurements over {:.1} min:",
        unrest.flaps,
        measured.len(),
        hours * 60.0
    );
    let values: [(&str, f64, Measure); 3] = [
        ("MiB", MOST_MEBIBYTES, |one| one.mebibytes),
        ("descriptors", MOST_DESCRIPTORS, |one| one.descriptors),
        ("threads", MOST_THREADS, |one| one.threads),
    ];
    let mut grown = Vec::new();
    for (what, most, value) in values {
        let slope = slope(measured, value);
        let growth = slope * hours;
        println!("  {slope:+9.2} {what} an hour, {growth:+.2} in this run, at most {most}");
        if growth > most {
            grown.push(format!("{growth:.2} {what}"));
        }
    }
    assert!(grown.is_empty(), "it grows: {grown:?}");
}
