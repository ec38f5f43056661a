//! Every graph under `graphs/` runs: a reader may copy any of them.

use std::collections::BTreeSet;

use support::cameras::{RtspServer, server_is_here};
use support::{Finished, Folder, command, ffmpeg, material, repository, run_graph};

const VIDEO: &str = "videos/asl-again.mkv";

fn run(name: &str, arguments: &[&str]) -> Option<Finished> {
    let material = material()?;
    let video = material.join(VIDEO);
    let set = format!("video={}", video.display());
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--set", &set]).collect();
    Some(run_graph(&repository().join("graphs").join(name), &arguments, |_| {}).finish().expect(0))
}

#[test]
fn no_graph_is_left_out_here() {
    let names: BTreeSet<String> = std::fs::read_dir(repository().join("graphs"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    // The quick start, the capture, the upload and the pictures that are pushed have test files of their own.
    let tested = [
        "annotated-people.toml",
        "camera-to-hls.toml",
        "camera.toml",
        "capture.toml",
        "chunk-files.toml",
        "clips-on-person.toml",
        "people.toml",
        "push.toml",
        "quickstart.toml",
        "s3-to-vss.toml",
        "what-is-it.toml",
    ];
    let tested = tested.map(str::to_owned);
    assert_eq!(names, BTreeSet::from(tested));
}

/// `engine test graphs`: what a user runs, with the videos of the material where they are.
#[test]
fn every_graph_passes_its_own_tests() {
    let mut command = command(&["test", "graphs", "--format", "json"]);
    match material() {
        Some(material) => command.env("ENGINE_MATERIAL", material).arg("--no-skip"),
        None => command.env_remove("ENGINE_MATERIAL"),
    };
    let output = command.output().expect("the engine's binary runs");
    let said = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let files = report["files"].as_array().expect("a list");
    assert_eq!(files.len(), std::fs::read_dir(repository().join("graphs")).expect("a folder").count());
    for file in files {
        // What nothing but a player looks at has its test in `tests/hls.rs`.
        let has_records = file["file"].as_str().is_none_or(|name| !name.ends_with("camera-to-hls.toml"));
        let has_tests = file["tests"].as_array().is_some_and(|tests| !tests.is_empty());
        assert!(has_tests == has_records, "a graph without a test: {file}");
    }
    let reasons = files.iter().flat_map(|file| file["tests"].as_array().into_iter().flatten());
    for test in reasons.filter(|test| test["outcome"] == "skipped") {
        eprintln!("skipped: {}: {}", test["name"], test["reason"]);
    }
}

/// One person signs, in all of its 2.6 seconds.
#[test]
fn people_are_found_twice_a_second() {
    let Some(finished) = run("people.toml", &[]) else { return };
    let records: Vec<serde_json::Value> =
        finished.stdout.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(records.len(), 6, "at 0, 0.5, … 2.5 s");
    assert!(records.iter().all(|record| record["has"]["person"] == true), "{records:?}");
}

#[test]
fn people_have_boxes_in_pictures_once_a_second() {
    let folder = Folder::with_graph("");
    let out = folder.file("seen");
    let Some(finished) = run("annotated-people.toml", &["--set", &format!("out={}", out.display())]) else { return };
    assert_eq!(finished.counts("asl-again").delivered, 3, "at 0, 1 and 2 s");
    let pictures: Vec<_> = std::fs::read_dir(out.join("asl-again")).expect("a folder").collect();
    assert_eq!(pictures.len(), 3);
}

#[test]
fn people_are_found_by_a_camera() {
    let Some(material) = material() else { return };
    if !server_is_here() {
        return;
    }
    let folder = Folder::with_graph("");
    let (video, file) = (material.join(VIDEO), folder.file("camera.mp4"));
    // The same person signs for a minute.
    let again = ["-stream_loop", "20", "-i", video.to_str().expect("text")];
    ffmpeg(&[&again[..], &["-an", "-c:v", "libx264", "-preset", "ultrafast", "-g", "30"]].concat(), &file);
    let server = RtspServer::start(0, &[("camera", &file)], &[]);
    let mut engine = run_graph(&repository().join("graphs/camera.toml"), &[], |command| {
        command.env("CAMERA_URL", server.url("camera"));
    });
    engine.wait_for_graph("answers", |graph| graph["total"]["delivered"].as_u64() > Some(8));
    let finished = engine.terminate().expect(0);
    let counts = finished.counts("camera");
    assert_eq!(counts.lost + counts.rejected, 0, "{counts:?}");
    let records: Vec<serde_json::Value> =
        finished.stdout.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(records.iter().any(|record| record["has"]["person"] == true), "{records:?}");
}

#[test]
fn a_video_is_cut_into_files() {
    let folder = Folder::with_graph("");
    let set = format!("out={}", folder.file("chunks").display());
    let Some(finished) = run("chunk-files.toml", &["--set", &set, "--set", "every=1s"]) else { return };
    assert_eq!(finished.stdout.len(), 1);
    let record: serde_json::Value = serde_json::from_str(&finished.stdout[0]).expect("JSON");
    assert_eq!((&record["kind"], &record["node"]), (&"segment".into(), &"chunks".into()));
    let chunk = folder.file("chunks/asl-again_chunk_0000.mp4");
    assert_eq!(record["bytes"], std::fs::metadata(chunk).expect("the file is there").len());
}

#[test]
fn every_picture_is_classified_into_a_file() {
    let folder = Folder::with_graph("");
    let set = format!("out={}", folder.file("out.jsonl").display());
    if run("what-is-it.toml", &["--set", &set]).is_none() {
        return;
    }
    let records = folder.records("out.jsonl");
    assert_eq!(records.len(), 77);
    assert!(records.iter().all(|record| record["predictions"].as_array().is_some_and(|list| list.len() == 5)));
}
