//! `engine probe` from outside: what it says of files and cameras, and that its graph files run.

use std::path::Path;
use std::process::Output;

use support::cameras::{Mute, RtspServer, clip, free_port, server_is_here};
use support::{Folder, command, ffmpeg, run_graph};

fn probe(folder: &Path, arguments: &[&str]) -> Output {
    command(&["probe"]).args(arguments).current_dir(folder).output().expect("it runs")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// Exit code and standard error of a probe that must fail.
fn refusal(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty());
    (output.status.code().expect("no signal"), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_str(&stdout(output)).expect("JSON")
}

/// A clip of three seconds with sound, B-frames, and a keyframe every second.
fn door(folder: &Path) {
    ffmpeg(
        &[
            "-f",
            "lavfi",
            "-i",
            "testsrc=size=160x120:rate=10:duration=3",
            "-f",
            "lavfi",
            "-i",
            "sine=duration=3",
            "-c:v",
            "libx264",
            "-preset",
            "fast",
            "-g",
            "10",
            "-bf",
            "2",
            "-b_strategy",
            "0",
            "-sc_threshold",
            "0",
            "-pix_fmt",
            "yuv420p",
            "-b:v",
            "100k",
            "-c:a",
            "aac",
            "-shortest",
        ],
        &folder.join("front door.mp4"),
    );
}

#[test]
fn a_file_is_described_and_its_graph_runs() {
    let folder = Folder::with_graph("");
    door(folder.path());
    let text = stdout(&probe(folder.path(), &["front door.mp4"]));
    // How long it took, and how well it was compressed, is another thing each time.
    let steady: Vec<&str> =
        text.lines().filter(|line| !line.starts_with("opened in ") && !line.contains("kbit/s")).collect();
    insta::assert_snapshot!("text", steady.join("\n"));
    assert_eq!(text.lines().count(), steady.len() + 2);

    let mut json = json(&probe(folder.path(), &["front door.mp4", "--format", "json"]));
    let graph = json["graph"].as_str().expect("text").to_owned();
    for number in ["opened_ms", "first_picture_ms"] {
        assert!(json[number].as_f64().expect("a number") > 0.0);
        json[number] = "…".into();
    }
    assert!(json["video"]["bits_per_second"].as_u64() > Some(1000));
    json["video"]["bits_per_second"] = "…".into();
    insta::assert_json_snapshot!("json", json);

    std::fs::write(folder.graph(), graph).expect("written");
    let ended = folder.run(&[]).finish().expect(0);
    assert_eq!(ended.stdout.len(), 6, "at 0, 0.5, … 2.5 s");
}

#[test]
fn the_graph_of_a_file_with_an_odd_name_runs() {
    let folder = Folder::with_graph("");
    door(folder.path());
    std::fs::rename(folder.file("front door.mp4"), folder.file("a ${b}.mp4")).expect("renamed");
    let json = json(&probe(folder.path(), &["a ${b}.mp4", "--format", "json"]));
    std::fs::write(folder.graph(), json["graph"].as_str().expect("text")).expect("written");
    assert_eq!(folder.run(&[]).finish().expect(0).stdout.len(), 6);
}

#[test]
fn packets_without_a_picture_are_no_video() {
    let folder = Folder::with_graph("");
    let source = ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=10:duration=3", "-c:v", "libx264", "-g", "1000"];
    // Without its keyframe nothing in it can be decoded.
    let cut = ["-bf", "0", "-sc_threshold", "0", "-pix_fmt", "yuv420p", "-bsf:v", "filter_units=remove_types=5"];
    ffmpeg(&[&source[..], &cut[..]].concat(), &folder.file("no picture.ts"));
    let (code, said) = refusal(&probe(folder.path(), &["no picture.ts"]));
    assert_eq!(code, 1, "{said}");
    assert!(said.starts_with("error: `no picture.ts` was opened, but no picture came out of 29 packets"), "{said}");
    assert!(said.contains("hint: "), "{said}");
}

#[test]
fn a_camera_is_described_its_credentials_are_not_and_its_graph_runs() {
    if !server_is_here() {
        return;
    }
    let folder = Folder::with_graph("");
    let file = clip(folder.path(), "camera.mp4", "160x120", &["-bf", "2"]);
    let server = RtspServer::start(0, &[("camera", &file)], &["--user", "watchman", "--password", "0pen-s3same"]);
    let url = format!("rtsp://watchman:0pen-s3same@127.0.0.1:{}/camera", server.port);
    let output = probe(folder.path(), &[&url, "--timeout", "60s", "--watch", "60s", "--format", "json"]);
    let text = stdout(&output);
    assert!(!text.contains("0pen-s3same") && !text.contains("watchman"), "{text}");
    let json = json(&output);
    assert_eq!(json["input"], format!("rtsp://[secret]@127.0.0.1:{}/camera", server.port));
    assert_eq!((&json["container"], &json["live"]), (&"rtsp".into(), &true.into()));
    assert_eq!(json["tracks"][0]["codec"], "h264");
    assert_eq!((&json["tracks"][0]["width"], &json["tracks"][0]["height"]), (&160.into(), &120.into()));
    assert_eq!(json["video"]["group_of_pictures"], serde_json::json!([10, 10]));
    assert_eq!(json["video"]["clock"], "1/90000");
    assert!(json["first_picture_ms"].is_number(), "{json}");

    std::fs::write(folder.graph(), json["graph"].as_str().expect("text")).expect("written");
    let mut engine = run_graph(&folder.graph(), &[], |command| {
        command.env("CAMERA_URL", &url);
    });
    engine.wait_for_graph("pictures", |graph| graph["total"]["delivered"].as_u64() > Some(2));
    engine.terminate().expect(0);
}

#[test]
fn what_cannot_be_probed_is_named_in_time() {
    let folder = Folder::with_graph("");
    std::fs::write(folder.file("text.mp4"), "no video at all").expect("written");
    let mute = Mute::start();
    let (silent, closed) = (format!("rtsp://u:s3cret@127.0.0.1:{}/x", mute.port), free_port());
    let refused = format!("rtsp://u:s3cret@127.0.0.1:{closed}/x");
    let wrong: [(&[&str], &str, &str); 5] = [
        (&["rtsp://u:s3cret/x@h/x"], "`rtsp://[secret]@h/x`: what follows the host and its `:` is no port", "%2F"),
        (&["gone.mp4"], "`gone.mp4` cannot be opened: No such file", "check the path"),
        (&["text.mp4"], "`text.mp4` cannot be played: ", "check that it is a video file"),
        (&[&refused], ": connection refused", "check host and port"),
        (&[&silent, "--timeout", "500ms"], ": no answer within 500ms", "`--timeout`"),
    ];
    for (arguments, message, hint) in wrong {
        let (code, said) = refusal(&probe(folder.path(), arguments));
        assert_eq!(code, 1, "{said}");
        assert!(said.starts_with("error: ") && said.contains(message) && said.contains(hint), "{said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
    let (code, said) = refusal(&probe(folder.path(), &["text.mp4", "--timeout", "0s"]));
    assert_eq!(code, 2, "{said}");
}
