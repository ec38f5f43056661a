//! Chunks while the graph around them moves: sinks that stall, reloads, cameras that go away.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::cameras::{RtspServer, lively_clip, server_is_here};
use support::probe::{self, assert_all_decode, assert_decodes};
use support::second;
use support::{Engine, Folder, StalledPipe, ffmpeg, run_folder, send, soak};

fn graph(source: &str, chunk: &str) -> String {
    format!(
        r#"
        [sources.video]
        {source}

        [operators.chunks]
        type = "chunk"
        inputs = ["video"]
        {chunk}

        [sinks.files]
        type = "file"
        inputs = ["chunks"]
        path = "out/{{name}}"

        [sinks.told]
        type = "file"
        inputs = ["chunks"]
        path = "told.jsonl"
        "#
    )
}

/// A keyframe every fifth of a second, with sound.
fn dense(folder: &Path, seconds: u32) -> PathBuf {
    let path = folder.join("clip.mp4");
    let picture = format!("testsrc=size=320x240:rate=25:duration={seconds}");
    let tone = format!("sine=frequency=440:duration={seconds}");
    let inputs = ["-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", &tone];
    let coded = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "5", "-pix_fmt", "yuv420p"];
    ffmpeg(&[&inputs[..], &coded].concat(), &path);
    path
}

/// The hashes of all packets of the two tracks, also of those that an edit list hides.
fn packets(file: &Path) -> [Vec<String>; 2] {
    let tracks = probe::tracks(file, true).into_iter();
    let hashes: Vec<Vec<String>> = tracks.map(|track| track.into_iter().map(|packet| packet.hash).collect()).collect();
    hashes.try_into().expect("two tracks")
}

/// The same of chunks, one behind the other. They are many: a demuxer in this process looks at each, and FFmpeg at the first
/// and the last of them, beside decoding them all.
fn packets_of_all(chunks: &[PathBuf]) -> [Vec<String>; 2] {
    assert_all_decode(chunks);
    for chunk in chunks.first().into_iter().chain(chunks.last()) {
        second::assert_agrees(chunk, &probe::tracks(chunk, true));
    }
    let mut all = [Vec::new(), Vec::new()];
    for chunk in chunks {
        let hashes = second::hashes(chunk);
        assert!(hashes.len() <= all.len(), "{}: {} tracks", chunk.display(), hashes.len());
        for (all, more) in all.iter_mut().zip(hashes) {
            all.extend(more);
        }
    }
    all
}

/// The files of chunks by when they begin, as the records tell.
fn told(folder: &Path, records: &[Value]) -> Vec<PathBuf> {
    let mut chunks: Vec<(f64, PathBuf)> = records
        .iter()
        .filter(|record| record["kind"] == "segment")
        .map(|record| {
            let name = record["name"].as_str().expect("a name");
            (record["start"].as_f64().expect("seconds"), folder.join("out").join(name))
        })
        .collect();
    chunks.sort_by(|one, other| one.0.total_cmp(&other.0));
    chunks.into_iter().map(|(_, path)| path).collect()
}

fn parsed(lines: &[String]) -> Vec<Value> {
    lines.iter().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

/// The chunks together are a beginning of the video, or all of it.
fn assert_begins(video: &Path, chunks: &[PathBuf]) -> usize {
    let all = packets_of_all(chunks);
    for (track, (all, expected)) in all.iter().zip(packets(video)).enumerate() {
        assert!(expected.starts_with(all), "track {track}: {} of {} packets", all.len(), expected.len());
    }
    all.iter().map(Vec::len).sum()
}

#[test]
fn a_stalled_sink_stops_the_source_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = dense(folder.path(), 30);
    let run = Folder::with_graph(&graph(&format!("type = 'file'\npath = '{}'", video.display()), "every = '200ms'"));
    let pipe = StalledPipe::new(run.file("told.jsonl"));
    let mut engine = run.run(&[]);
    let stalled = engine.wait_for_stall();
    let stream = &stalled["streams"][0];
    assert_eq!(stream["blocked_by"], "video -> chunks", "{stream}");
    // What may be behind the tap, in finished chunks, and in those that are open: not the whole video.
    let in_flight = stream["in_flight"].as_u64().expect("a count");
    assert!(in_flight < 500, "{stream}");
    assert!(stream["read"].as_u64() < Some(1500), "{stream}");
    let reader = pipe.drain();
    let ended = engine.finish().expect(0);
    let lines = reader.join().expect("text");
    let chunks = told(run.path(), &parsed(&lines));
    assert_eq!(chunks.len(), 150);
    let count = assert_begins(&video, &chunks);
    let counts = ended.counts("clip");
    assert_eq!((counts.delivered, counts.read), (count as u64, count as u64));
}

#[test]
fn a_live_source_drops_whole_groups_of_pictures_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = dense(folder.path(), 20);
    let source = format!("type = 'file'\npath = '{}'\nloop = true\noverflow = 'drop_gop'", video.display());
    let run = Folder::with_graph(&graph(&source, "every = '200ms'"));
    let pipe = StalledPipe::new(run.file("told.jsonl"));
    let mut engine = run.run(&[]);
    let graph = engine.wait_for_graph("drops", |graph| graph["total"]["dropped"].as_u64() > Some(1000));
    let drops = graph["streams"][0]["drops"].as_array().expect("drops").clone();
    assert!(drops.iter().all(|drop| drop["node"] == "video -> chunks"), "{drops:?}");
    assert!(drops.iter().any(|drop| drop["reason"] == "no keyframe yet"), "{drops:?}");
    let reader = pipe.drain();
    let before = graph["total"]["delivered"].as_u64().expect("a count");
    engine.wait_for_graph("chunks that are delivered again", |graph| {
        graph["total"]["delivered"].as_u64() > Some(before + 500)
    });
    let ended = engine.terminate().expect(0);
    let counts = ended.counts("clip");
    assert_eq!((counts.lost, counts.rejected), (0, 0), "{counts:?}");
    let records = parsed(&reader.join().expect("text"));
    let gap = records.iter().position(|record| record["kind"] == "gap").expect("a gap");
    assert!(records[gap]["reason"].as_str().is_some_and(|reason| reason.contains("until the next keyframe")));
    assert!(records[gap..].iter().any(|record| record["kind"] == "segment"), "the output goes on");
    let chunks = told(run.path(), &records);
    let stored: usize = packets_of_all(&chunks).iter().map(Vec::len).sum();
    assert_eq!(stored as u64, counts.delivered);
}

/// Waits until so many chunks are told of.
fn wait_for_chunks(engine: &mut Engine, file: &Path, count: usize) {
    engine.wait_for("chunks", |_| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        (text.lines().count() >= count).then_some(())
    });
}

#[test]
fn a_reload_cuts_in_front_of_a_keyframe_and_misses_no_packet() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = dense(folder.path(), 40);
    let mut engine = run_folder(folder.path(), &["--workers", "2"]);
    engine.wait_for_log("ready: 0 graphs run");
    let address = engine.address();
    let source = format!("type = 'file'\npath = '{}'\nrealtime = true\noverflow = 'block'", video.display());
    let more = "[operators.sums]\ntype = 'checksum'\ninputs = ['video']\n[sinks.nowhere]\ntype = 'blackhole'\ninputs = ['sums']\n";
    let (one, other) =
        ("every = '400ms'\nname = 'a_{stream}_{index:04}.mp4'", "every = '600ms'\nname = 'b_{stream}_{index:04}.mp4'");
    // Another branch; chunks that are cut elsewhere; and both back again.
    let texts = [
        graph(&source, one),
        format!("{}{more}", graph(&source, one)),
        format!("{}{more}", graph(&source, other)),
        graph(&source, other),
    ];
    for (round, text) in texts.iter().enumerate() {
        let answer = send("PUT", &format!("{address}/graphs/door"), &[], text);
        let told = answer.expect(if round == 0 { 201 } else { 200 });
        assert_eq!(told["lost"].as_u64().unwrap_or(0), 0, "{told}");
        let told = folder.path().join("told.jsonl");
        let now = std::fs::read_to_string(&told).unwrap_or_default().lines().count();
        wait_for_chunks(&mut engine, &told, now + 3);
    }
    engine.wait_until_conserved();
    let (_, stats) = engine.get("/stats");
    assert_ne!(stats["graphs"][0]["streams"][0]["decoded"], 0, "pictures were taken for a while");
    send("DELETE", &format!("{address}/graphs/door"), &[], "").expect(200);
    engine.terminate().expect(0);
    let text = std::fs::read_to_string(folder.path().join("told.jsonl")).expect("records");
    let records = parsed(&text.lines().map(str::to_owned).collect::<Vec<_>>());
    assert!(records.iter().all(|record| record["kind"] == "segment"), "no gap: {records:?}");
    let chunks = told(folder.path(), &records);
    assert!(chunks.len() >= 12, "{chunks:?}");
    assert!(assert_begins(&video, &chunks) > 0);
}

/// A file that begins again and again, whose times go on: ten hours of it, or a hundred in a soak. Nothing is missing, no
/// chunk differs from another, and neither memory nor the disk is used up.
#[test]
fn hours_of_a_looped_file_are_chunks_without_a_seam_in_bounded_memory() {
    const MEBIBYTE: u64 = 1 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let temporary = tempfile::tempdir().expect("a folder");
    let video = folder.path().join("clip.mp4");
    let picture = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=30"];
    let coded = ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "0", "-g", "10", "-sc_threshold", "0"];
    ffmpeg(&[&picture[..], &coded].concat(), &video);
    let run = Folder::with_graph(&format!(
        r#"
        [sources.video]
        type = "file"
        path = '{}'
        loop = true

        [operators.chunks]
        type = "chunk"
        inputs = ["video"]
        every = "1m"

        [sinks.nowhere]
        type = "blackhole"
        inputs = ["chunks"]

        [sinks.told]
        type = "file"
        inputs = ["chunks"]
        path = "told.jsonl"
        "#,
        video.display()
    ));
    let mut engine = run.run_with(&[], |command| _ = command.env("TMPDIR", temporary.path()));
    let hours = if soak() { 100 } else { 10 };
    let mut resident = Vec::new();
    for hour in 1..=hours {
        wait_for_chunks(&mut engine, &run.file("told.jsonl"), hour * 60);
        resident.push(engine.stats()["process"]["resident_bytes"].as_u64().expect("bytes") / MEBIBYTE);
        let left = std::fs::read_dir(temporary.path()).expect("a folder").count();
        assert_eq!(left, 0, "after {hour} hours");
    }
    let ended = engine.terminate().expect(0);
    let first = resident[0];
    assert!(resident.iter().all(|now| *now <= first + 24), "MiB after each hour: {resident:?}");
    let counts = ended.counts("clip");
    assert_eq!((counts.lost, counts.dropped, counts.rejected), (0, 0, 0), "{counts:?}");
    let told = run.records("told.jsonl");
    let (_, whole) = told.split_last().expect("chunks");
    for (index, (chunk, next)) in whole.iter().zip(&told[1..]).enumerate() {
        assert_eq!((&chunk["index"], &chunk["end"]), (&index.into(), &next["start"]), "{chunk}");
        assert_eq!((&chunk["sha256"], &chunk["duration"]), (&whole[0]["sha256"], &60.0.into()), "{chunk}");
    }
    assert!(whole.len() >= hours * 60 - 1, "{} chunks", whole.len());
}

#[test]
fn a_camera_is_cut_without_decoding_and_goes_on_after_it_was_away() {
    if !server_is_here() {
        return;
    }
    let media = tempfile::tempdir().expect("a folder");
    let small = lively_clip(media.path(), "small.mp4", "160x120", &["-bf", "0"]);
    let large = lively_clip(media.path(), "large.mp4", "320x240", &["-bf", "0"]);
    let server = RtspServer::start(0, &[("camera", &small)], &[]);
    let port = server.port;
    let patient = "connect_timeout = '60s'\nread_timeout = '60s'\nno_frame_for = '60s'\nbackoff_first = '50ms'\nbackoff_most = '200ms'";
    let source = format!("type = 'rtsp'\n{patient}\nstreams.door = '{}'", server.url("camera"));
    let run = Folder::with_graph(&graph(&source, "every = '700ms'"));
    let mut engine = run.run(&[]);
    wait_for_chunks(&mut engine, &run.file("told.jsonl"), 2);
    server.kill();
    engine.wait_for_graph("a loss", |graph| graph["streams"][0]["state"] == "retrying");
    let _server = RtspServer::start(port, &[("camera", &large)], &[]);
    engine.wait_for_graph("a reconnect", |graph| graph["streams"][0]["reconnects"] == 1);
    let now = std::fs::read_to_string(run.file("told.jsonl")).expect("records").lines().count();
    wait_for_chunks(&mut engine, &run.file("told.jsonl"), now + 2);
    let stats = engine.stats();
    assert_eq!(stats["graphs"][0]["streams"][0]["decoded"], 0, "nobody asked for pictures");
    let ended = engine.terminate().expect(0);
    let counts = ended.counts("door");
    assert_eq!((counts.lost, counts.rejected), (0, 0), "{counts:?}");
    let records = run.records("told.jsonl");
    let gap = records.iter().position(|record| record["kind"] == "gap").expect("a gap");
    let width = |record: &Value| {
        let chunk = run.file("out").join(record["name"].as_str().expect("a name"));
        assert_decodes(&chunk);
        let arguments = ["-v", "error", "-show_entries", "stream=width", "-of", "csv=p=0"];
        let output = Command::new("ffprobe").args(arguments).arg(&chunk).output().expect("ffprobe is installed");
        String::from_utf8(output.stdout).expect("text").trim().trim_end_matches(',').to_owned()
    };
    let segments =
        |records: &[Value]| records.iter().filter(|one| one["kind"] == "segment").map(width).collect::<Vec<_>>();
    let (before, after) = (segments(&records[..gap]), segments(&records[gap..]));
    assert!(before.len() >= 2 && before.iter().all(|width| width == "160"), "{before:?}");
    assert!(after.len() >= 2 && after.iter().all(|width| width == "320"), "{after:?}");
    let starts: Vec<f64> = records.iter().filter_map(|record| record["start"].as_f64()).collect();
    assert!(starts.is_sorted(), "time goes on: {starts:?}");
}
