//! Clips from outside: each is a piece of the video, from the keyframe before what was found to where it is over.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::probe::{Probed, assert_all_decode, packets};
use support::{Folder, assert_conserved, command, material};

/// Seconds before and after what was found.
const AROUND: f64 = 1.0;

fn graph(video: &str, clip: &str, chaos: &str) -> Folder {
    Folder::with_graph(&format!(
        r#"
        [sources.video]
        type = "file"
        streams.door = "{video}"

        [operators.seldom]
        type = "sample"
        inputs = ["video"]
        every = "2s"

        [operators.people]
        type = "detect"
        inputs = ["seldom"]
        model = "yolox_nano"
        labels = ["person"]

        [operators.clips]
        type = "clip"
        inputs = ["video", "people"]
        labels = ["person"]
        above = 0.6
        before = "1s"
        after = "1s"
        {clip}

        [sinks.files]
        type = "file"
        inputs = ["clips"]
        path = "out/{{name}}"

        [sinks.told]
        type = "file"
        inputs = ["clips"]
        path = "told.jsonl"

        [sinks.seen]
        type = "file"
        inputs = ["people"]
        path = "seen.jsonl"

        {chaos}
        "#
    ))
}

/// Whether somebody was seen.
fn is_seen(record: &Value) -> bool {
    let detections = record["detections"].as_array().expect("a list");
    detections.iter().any(|found| found["score"].as_f64() >= Some(0.6))
}

/// When somebody was seen, in stretches whose clips would have pictures of `video` in common.
fn stretches(seen: &[Value], video: &[Probed]) -> Vec<(f64, f64)> {
    let begin = |first: f64| video.iter().rfind(|packet| packet.is_key && packet.pts <= first - AROUND);
    let mut stretches: Vec<(f64, f64)> = Vec::new();
    for record in seen.iter().filter(|record| is_seen(record)) {
        let time = record["pts"].as_f64().expect("seconds");
        match stretches.last_mut() {
            Some((_, last)) if begin(time).is_none_or(|key| key.pts <= *last + AROUND) => *last = time,
            _ => stretches.push((time, time)),
        }
    }
    stretches
}

/// Fails unless these packets are the video's from the keyframe before this stretch until after it. Pictures are cut by
/// when they are decoded, so a few that are shown later may be there.
fn assert_piece(video: &[Probed], kept: &[String], first: f64, last: f64) {
    let begin = video.iter().rposition(|packet| packet.is_key && packet.pts <= first - AROUND).unwrap_or(0);
    let all: Vec<&String> = video[begin..].iter().map(|packet| &packet.hash).collect();
    assert!(all.iter().copied().take(kept.len()).eq(kept), "{first} to {last}: other packets");
    let (inside, outside) = video[begin..].split_at(kept.len());
    let shown = inside.iter().map(|packet| packet.pts).fold(0.0, f64::max);
    assert!((-0.2..0.6).contains(&(shown - last - AROUND)), "{first} to {last}: the last picture is shown at {shown}");
    assert!(outside.iter().all(|packet| packet.pts > last + AROUND), "{first} to {last}: a picture is missing");
}

#[test]
fn a_clip_goes_from_before_somebody_is_seen_until_after() {
    let Some(material) = material() else { return };
    let video = material.join("videos/one-by-one-person-detection.mp4");
    // Also where the operator is slow on purpose: that changes nothing but when a clip is there.
    let whole = packets(&video, 0, false);
    for chaos in ["", "[chaos.nodes.clips]\nlatency = \"1ms\""] {
        assert_clips(&whole, &graph(&video.display().to_string(), "", chaos));
    }
}

fn assert_clips(whole: &[Probed], folder: &Folder) {
    let ended = folder.run(&["--workers", "2", "--chaos"]).finish().expect(0);
    let stretches = stretches(&folder.records("seen.jsonl"), whole);
    assert!(stretches.len() >= 5, "{stretches:?}");
    let told = folder.records("told.jsonl");
    assert_eq!(told.len(), stretches.len(), "{told:?}");
    let (mut delivered, mut all) = (0, Vec::new());
    for (record, (first, last)) in told.iter().zip(&stretches) {
        let clip = folder.file("out").join(record["name"].as_str().expect("a name"));
        let kept = packets(&clip, 0, false);
        assert!(kept[0].is_key && kept[0].pts.abs() < 1e-6, "{}", clip.display());
        let hashes: Vec<String> = kept.iter().map(|packet| packet.hash.clone()).collect();
        assert_piece(whole, &hashes, *first, *last);
        let (start, end) = (record["start"].as_f64().expect("seconds"), record["end"].as_f64().expect("seconds"));
        assert!(start <= first - AROUND && end >= last + AROUND, "{record}");
        all.push(clip);
        delivered += hashes.len() as u64;
    }
    assert_all_decode(&all);
    // Packets in clips, and pictures whose records are in a file: everything else is filtered.
    let counts = ended.counts("door");
    let looked_at = folder.records("seen.jsonl").len() as u64;
    assert_eq!((counts.delivered, counts.lost, counts.rejected), (delivered + looked_at, 0, 0), "{counts:?}");
}

#[test]
fn a_long_clip_goes_on_in_another_and_none_is_missing_between_them() {
    let Some(material) = material() else { return };
    let video = material.join("videos/one-by-one-person-detection.mp4");
    let folder = graph(&video.display().to_string(), "most = \"5s\"", "");
    let mut engine = folder.run(&["--stay"]);
    let ended = engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    assert_conserved(&ended["streams"][0]);
    engine.terminate().expect(0);
    let whole = packets(&video, 0, false);
    let stretches = stretches(&folder.records("seen.jsonl"), &whole);
    let told = folder.records("told.jsonl");
    assert!(told.len() > stretches.len(), "{told:?}");
    let mut clips = told.iter().peekable();
    let mut all = Vec::new();
    for (first, last) in stretches {
        let mut hashes = Vec::new();
        while let Some(record) = clips.next_if(|record| record["start"].as_f64() <= Some(last)) {
            let clip = folder.file("out").join(record["name"].as_str().expect("a name"));
            hashes.extend(packets(&clip, 0, false).into_iter().map(|packet| packet.hash));
            all.push(clip);
        }
        assert_piece(&whole, &hashes, first, last);
    }
    assert_all_decode(&all);
}

/// Where the ring is too small for what lies between a picture and its record, that is told. Clips begin later then, or
/// there are none: but none is made in which nothing was found.
#[test]
fn a_ring_that_is_too_small_is_told() {
    let Some(material) = material() else { return };
    let video = material.join("videos/one-by-one-person-detection.mp4");
    let folder = graph(&video.display().to_string(), "memory = \"64KiB\"", "");
    let ended = folder.run(&[]).finish().expect(0);
    assert!(ended.stderr.contains("give it a larger `memory`"), "{}", ended.stderr);
    assert!(ended.stderr.contains("`clips` makes no clip of what was found"), "{}", ended.stderr);
    let counts = ended.counts("door");
    assert_eq!((counts.lost, counts.rejected), (0, 0), "{counts:?}");
    let seen = folder.records("seen.jsonl");
    let found: Vec<f64> = seen.iter().filter(|seen| is_seen(seen)).filter_map(|seen| seen["pts"].as_f64()).collect();
    for record in folder.records("told.jsonl") {
        let (start, end) = (record["start"].as_f64().expect("seconds"), record["end"].as_f64().expect("seconds"));
        assert!(found.iter().any(|time| start - AROUND <= *time && *time <= end), "{record}");
    }
}

/// Each clip is there once, as if nothing had happened, whenever the engine was killed.
#[test]
fn clips_go_on_over_kill_9() {
    let Some(material) = material() else { return };
    let video = material.join("videos/one-by-one-person-detection.mp4").display().to_string();
    let clips = |folder: &Folder| -> BTreeMap<String, Vec<u8>> {
        let Ok(entries) = std::fs::read_dir(folder.file("out")) else { return BTreeMap::new() };
        let entries = entries.filter_map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name()?.to_str()?.to_owned();
            (!name.starts_with('.')).then(|| Some((name, std::fs::read(&path).ok()?)))?
        });
        entries.collect()
    };
    let undisturbed = graph(&video, "", "");
    undisturbed.run(&[]).finish().expect(0);
    let expected = clips(&undisturbed);
    assert!(expected.len() >= 5, "{:?}", expected.keys());

    let folder = graph(&video, "", "");
    let text = std::fs::read_to_string(folder.graph()).expect("written");
    let text =
        text.replace("type = \"file\"\n        streams", "type = \"file\"\n        resume = true\n        streams");
    std::fs::write(folder.graph(), format!("[state]\ndir = \"state\"\n{text}")).expect("written");
    for wanted in [1, 3] {
        let mut engine = folder.run(&[]);
        engine.wait_for("some clips", |_| (clips(&folder).len() >= wanted).then_some(()));
        engine.signal(Signal::SIGKILL);
        engine.finish();
    }
    let finished = folder.run(&[]).finish().expect(0);
    assert!(!finished.stderr.contains("exists already"), "{}", finished.stderr);
    assert!(clips(&folder) == expected, "{:?}", clips(&folder).keys());
    let finished = folder.run(&[]).finish().expect(0);
    assert!(finished.stderr.contains("person-detection.mp4` is finished"), "{}", finished.stderr);
    assert!(clips(&folder) == expected);
}

#[test]
fn inputs_that_do_not_fit_together_are_refused() {
    let graph = |inputs: &str, chaos: &str| {
        format!(
            "[sources.a]\ntype = \"synthetic\"\n[sources.b]\ntype = \"rtsp\"\nurl = \"rtsp://127.0.0.1:1/b\"\n\
             [operators.looks]\ntype = \"checksum\"\ninputs = [\"b\"]\n\
             [operators.others]\ntype = \"checksum\"\ninputs = [\"a\"]\n\
             [operators.clips]\ntype = \"clip\"\ninputs = [{inputs}]\n\
             [sinks.files]\ntype = \"file\"\ninputs = [\"clips\"]\npath = \"{{name}}\"\n\
             [sinks.nowhere]\ntype = \"blackhole\"\ninputs = [\"looks\", \"others\"]\n{chaos}"
        )
    };
    for (inputs, part) in [
        ("\"b\"", "nothing tells it when to make a clip"),
        ("\"looks\"", "packets come to it from 0 nodes, and one it needs"),
        ("\"b\", \"others\"", "the records of `others` are of other sources than the packets of `b`"),
    ] {
        for chaos in ["", "[chaos.nodes.clips]\nlatency = \"1ms\"\n"] {
            let folder = Folder::with_graph(&graph(inputs, chaos));
            let path = folder.graph();
            let checked = command(&["check", "--chaos", path.to_str().expect("text")]).output();
            let output = checked.expect("the engine's binary runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{inputs}: {said}");
            assert!(said.contains("`operators.clips` cannot work with these inputs"), "{inputs}: {said}");
            assert!(said.contains(part) && said.contains("hint: write `inputs = [SOURCE, NODE]`"), "{inputs}: {said}");
        }
    }
}
