//! Bad input through `engine run`: a clear error that names stream or node and cause, an end with the right code, and
//! other streams that go on.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::{Counts, Folder, ffmpeg, repository};

const TEST_PICTURES: [&str; 6] =
    ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=25:duration=2", "-pix_fmt", "yuv420p"];

/// The first `bytes` bytes of a file.
fn cut(from: &Path, bytes: usize, to: &Path) {
    let whole = std::fs::read(from).expect("readable");
    assert!(whole.len() > bytes, "{} has only {} bytes", from.display(), whole.len());
    std::fs::write(to, &whole[..bytes]).expect("written");
}

/// Checksums of the given streams (`name = "file"` or a table), in `out.jsonl`.
fn sums(streams: &str) -> Folder {
    Folder::with_graph(&format!(
        r#"
        [sources.files]
        type = "file"

        [sources.files.streams]
        {streams}

        [operators.sum]
        type = "checksum"
        inputs = ["files"]

        [sinks.out]
        type = "file"
        inputs = ["sum"]
        path = "out.jsonl"
        "#
    ))
}

#[test]
fn files_that_cannot_be_played_are_named_and_others_go_on() {
    let folder = sums(
        r#"
        good = "good.mp4"
        another = "good.mp4"
        truncated = "truncated.mp4"
        cut_off = "cut_off.mkv"
        empty = "empty.mp4"
        noise = "noise.mp4"
        sound = "sound.wav"
        missing_track = { path = "both.mkv", tracks = [7] }
        corrupt = "corrupt.ts"
        "#,
    );
    let file = |name: &str| folder.file(name);
    ffmpeg(&TEST_PICTURES, &file("good.mp4"));
    ffmpeg(&[&TEST_PICTURES[..], &["-g", "10"]].concat(), &file("good.ts"));
    ffmpeg(&["-f", "lavfi", "-i", "sine=duration=1"], &file("sound.wav"));
    let both = [&["-f", "lavfi", "-i", "sine=duration=2"], &TEST_PICTURES[..], &["-c:a", "pcm_s16le"]].concat();
    ffmpeg(&both, &file("both.mkv"));
    cut(&file("good.mp4"), 3000, &file("truncated.mp4"));
    cut(&file("both.mkv"), 100_000, &file("cut_off.mkv"));
    std::fs::write(file("empty.mp4"), "").expect("written");
    let noise: Vec<u8> = (0..40_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(file("noise.mp4"), noise).expect("written");
    let mut corrupt = std::fs::read(file("good.ts")).expect("readable");
    let third = corrupt.len() / 3;
    for byte in &mut corrupt[third..third + 3000] {
        *byte = byte.wrapping_mul(7).wrapping_add(13);
    }
    std::fs::write(file("corrupt.ts"), corrupt).expect("written");

    let ended = folder.run(&[]).finish().expect(1);
    for stream in ["good", "another"] {
        assert_eq!(ended.counts(stream), Counts::all_delivered(50), "other streams are delivered in full");
    }
    let cut_off = ended.counts("cut_off");
    assert!(cut_off.delivered > 0 && cut_off.delivered < 50, "what is there is played: {cut_off:?}");
    let corrupt = ended.counts("corrupt");
    assert!(corrupt.delivered > 25 && corrupt.delivered == corrupt.read, "{corrupt:?}");
    assert!(ended.stderr.contains("stream `corrupt`: 1 repaired (corrupt packet)"), "{}", ended.stderr);

    // The reason stands in the records, in the log and in the summary.
    let mut reasons = BTreeMap::new();
    for record in folder.records("out.jsonl").iter().filter(|record| record["kind"] == "status") {
        assert_eq!(record["state"], "failed", "{record}");
        let (stream, reason) = (text(&record["stream"]), text(&record["reason"]));
        assert!(ended.stderr.contains(&format!("ERROR stream `{stream}` of `files` failed: {reason}")));
        assert!(ended.stderr.contains(&format!("\nstream `{stream}`: {reason}")));
        assert_eq!(ended.counts(&stream), Counts::default());
        assert!(reasons.insert(stream, reason).is_none(), "one record for each");
    }
    insta::assert_json_snapshot!(reasons);
}

#[test]
fn the_smallest_and_the_largest_picture() {
    let folder = Folder::with_graph(
        r#"
        [sources.files]
        type = "file"
        streams.one = "one.mkv"
        streams.large = "large.mkv"

        [operators.sum]
        type = "checksum"
        inputs = ["files"]

        [operators.shapes]
        type = "detect"
        inputs = ["files"]
        model = "shapes"

        [sinks.out]
        type = "file"
        inputs = ["sum", "shapes"]
        path = "out.jsonl"
        "#,
    );
    std::fs::write(folder.file("one.yuv"), [80; 3 * 5]).expect("written");
    let raw = ["-f", "rawvideo", "-pixel_format", "yuv420p", "-video_size", "1x1", "-framerate", "5", "-i"];
    let input = folder.file("one.yuv");
    ffmpeg(&[&raw[..], &[input.to_str().expect("text"), "-c:v", "ffv1"]].concat(), &folder.file("one.mkv"));
    let large = ["-f", "lavfi", "-i", "testsrc=size=7680x4320:rate=1:duration=2", "-c:v", "mjpeg"];
    ffmpeg(&[&large[..], &["-pix_fmt", "yuvj420p"]].concat(), &folder.file("large.mkv"));
    let ended = folder.run(&[]).finish().expect(0);
    assert_eq!(ended.counts("one"), Counts::all_delivered(5));
    assert_eq!(ended.counts("large"), Counts::all_delivered(2));
    let records = folder.records("out.jsonl");
    let of = |stream: &str, kind: &str| -> Vec<Value> {
        records.iter().filter(|record| record["stream"] == stream && record["kind"] == kind).cloned().collect()
    };
    for (stream, count, width, height) in [("one", 5, 1, 1), ("large", 2, 7680, 4320)] {
        for kind in ["checksum", "detection"] {
            let records = of(stream, kind);
            assert_eq!(records.len(), count, "{kind} of {stream}");
            assert!(records.iter().all(|record| record["width"] == width && record["height"] == height));
        }
        for found in of(stream, "detection").iter().flat_map(|record| record["detections"].as_array().expect("a list"))
        {
            let limits = [width, height, width, height].map(f64::from);
            for (value, limit) in found["box"].as_array().expect("a box").iter().zip(limits) {
                assert!((0.0..=limit).contains(&value.as_f64().expect("a number")), "inside the picture: {found}");
            }
        }
    }
}

/// Runs a detector with a manifest made from that of `shapes`, and answers exit code and standard error.
fn with_model(name: &str, change: &dyn Fn(&str) -> String, labels: Option<&str>) -> (i32, String) {
    let folder = Folder::with_graph(&format!(
        "[sources.scene]\ntype = 'synthetic'\nframes = 3\n[operators.shapes]\ntype = 'detect'\ninputs = ['scene']\n\
         model = '{name}'\n[sinks.out]\ntype = 'blackhole'\ninputs = ['shapes']\n"
    ));
    let models = folder.file("models");
    std::fs::create_dir(&models).expect("a folder");
    std::fs::copy(repository().join("models/shapes.onnx"), models.join("shapes.onnx")).expect("copied");
    let manifest = std::fs::read_to_string(repository().join("models/shapes.toml")).expect("the manifest");
    let changed = change(&manifest);
    assert_ne!(changed, manifest);
    std::fs::write(models.join(format!("{name}.toml")), changed).expect("written");
    if let Some(labels) = labels {
        std::fs::write(models.join("labels.txt"), labels).expect("written");
    }
    let only_these = |command: &mut Command| {
        command.env("ENGINE_MODELS", &models);
    };
    let ended = folder.run_with(&[], only_these).finish();
    // The path of the temporary folder, and the times and ports of the log, are different each time.
    let real = folder.path().canonicalize().expect("a folder");
    let stderr = ended.stderr.replace(real.to_str().expect("text"), "FOLDER");
    let stderr = stderr.replace(folder.path().to_str().expect("text"), "FOLDER");
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.contains(" INFO ")).collect();
    (ended.code(), lines.join("\n"))
}

#[test]
fn models_that_are_not_what_their_manifest_says() {
    let (code, stderr) = with_model(
        "wrong_hash",
        &|manifest| {
            let line = manifest.lines().find(|line| line.starts_with("sha256")).expect("a hash");
            manifest.replace(line, &format!("sha256 = \"{}\"", "0".repeat(64)))
        },
        None,
    );
    assert_eq!(code, 1);
    insta::assert_snapshot!("wrong-hash", stderr);

    let (code, stderr) = with_model("wrong_shape", &|manifest| manifest.replace("\nwidth = 320", "\nwidth = 64"), None);
    assert_eq!(code, 1);
    insta::assert_snapshot!("wrong-shape", stderr);

    let from_file =
        |manifest: &str| manifest.replace("names = [\"circle\", \"square\", \"triangle\"]", "file = \"labels.txt\"");
    let (code, stderr) = with_model("few_labels", &from_file, Some("circle\nsquare\n"));
    assert_eq!(code, 1);
    insta::assert_snapshot!("few-labels", stderr);

    let four = |manifest: &str| from_file(manifest).replace("count = 3", "count = 4");
    let (code, stderr) = with_model("many_labels", &four, Some("circle\nsquare\ntriangle\nstar\n"));
    assert_eq!(code, 1);
    insta::assert_snapshot!("many-labels", stderr);
}

#[test]
fn graph_files_that_are_none() {
    let folder = Folder::with_graph("");
    let large = "# a comment\n".repeat(1 << 20);
    assert!(large.len() > 10_000_000);
    for (name, bytes, error) in [
        ("large", large.as_bytes(), "error[file-too-large]"),
        ("latin", &b"# caf\xe9\n"[..], "error[not-utf8]"),
        ("binary", &b"\x7fELF\x00\xff\xfe"[..], "error[not-utf8]"),
        ("empty", &b""[..], "error[no-sources]"),
    ] {
        std::fs::write(folder.graph(), bytes).expect("written");
        let ended = folder.run(&[]).finish().expect(1);
        assert!(ended.stderr.contains(error), "{name}: {}", ended.stderr);
        assert!(ended.stderr.contains("graph.toml"), "{name}: {}", ended.stderr);
        assert!(!ended.stderr.contains("listening"), "nothing was started: {}", ended.stderr);
        assert!(ended.stderr.len() < 4000, "{name}: an answer that can be read");
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}
