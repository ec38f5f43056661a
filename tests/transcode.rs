//! The `hls` sink with `transcode`, from outside: what browsers cannot play is played, picture for picture, and what they
//! can play is not touched.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::browser::Browser;
use support::player::PlayerPage;
use support::probe::{assert_decodes, ffprobe, packets, text};
use support::{
    Counts, Engine, Folder, assert_conserved, ffmpeg, get, get_bytes, get_text, material, plan, run_folder, send,
};

fn graph(source: &str, sink: &str) -> Folder {
    Folder::with_graph(&format!(
        "[sources.video]\ntype = \"file\"\n{source}\n\n[sinks.watch]\ntype = \"hls\"\ninputs = [\"video\"]\n{sink}\n"
    ))
}

/// Pictures with B-frames and sound, in a codec that browsers do not know.
fn mpeg4(folder: &Path, name: &str, seconds: u32, group: &str) -> PathBuf {
    let path = folder.join(name);
    let picture = format!("testsrc=size=320x240:rate=25:duration={seconds}");
    let tone = format!("sine=frequency=440:duration={seconds}");
    let inputs = ["-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", &tone];
    let coded = ["-c:v", "mpeg4", "-bf", "2", "-g", group, "-qscale:v", "2", "-pix_fmt", "yuv420p", "-c:a", "aac"];
    ffmpeg(&[&inputs[..], &coded].concat(), &path);
    path
}

/// When each picture of a file is shown, in seconds since the first one.
fn shown(file: &Path) -> Vec<f64> {
    let mut times: Vec<f64> = packets(file, 0, false).iter().map(|packet| packet.pts).collect();
    times.sort_by(f64::total_cmp);
    let first = times[0];
    times.iter().map(|time| time - first).collect()
}

/// How alike the pictures of two videos are, in decibels, over all of them.
fn likeness(one: &str, other: &str) -> f64 {
    let compared = Command::new("ffmpeg")
        .args(["-v", "info", "-nostdin", "-i", one, "-i", other])
        .args([
            "-lavfi",
            "[0:v]settb=AVTB,setpts=PTS-STARTPTS[a];[1:v]format=yuv420p,settb=AVTB,setpts=PTS-STARTPTS[b];[a][b]psnr",
        ])
        .args(["-f", "null", "-"])
        .output()
        .expect("ffmpeg is installed");
    let said = String::from_utf8_lossy(&compared.stderr);
    let average = said.lines().rev().find_map(|line| line.split("average:").nth(1)?.split(' ').next());
    average.unwrap_or_else(|| panic!("{said}")).parse().expect("decibels")
}

/// Fails unless what is played has every picture of the source once, as H.264 that looks alike, with a keyframe at each
/// segment.
fn assert_encoded(source: &Path, url: &str, segment: f64) {
    let probed = ffprobe(&["-select_streams", "v", "-show_streams"], Path::new(url));
    let video = &probed["streams"][0];
    let told = |name: &str| video[name].as_str().unwrap_or_default().to_owned();
    assert_eq!((told("codec_name"), told("pix_fmt")), ("h264".to_owned(), "yuv420p".to_owned()), "{video}");
    let found = packets(Path::new(url), 0, false);
    let (expected, times) = (shown(source), shown(Path::new(url)));
    assert_eq!(found.len(), expected.len(), "{url}: pictures");
    let off = times.iter().zip(&expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f64::max);
    assert!(off < 0.002, "{url}: a picture is {off} s off");
    assert!(found.windows(2).all(|pair| pair[0].pts < pair[1].pts), "{url}: times rise");

    let (status, _, playlist) = get_bytes(url);
    let playlist = String::from_utf8(playlist).expect("text");
    assert!(status == 200 && playlist.ends_with("#EXT-X-ENDLIST\n"), "{playlist}");
    let lengths = playlist.lines().filter_map(|line| line.strip_prefix("#EXTINF:"));
    let lengths: Vec<f64> = lengths.map(|length| length.trim_end_matches(',').parse().expect("seconds")).collect();
    let longest = expected.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    let mut begins = found[0].pts;
    for (place, length) in lengths.iter().enumerate() {
        let is_key = |packet: &&support::probe::Probed| packet.is_key && (packet.pts - begins).abs() < 0.002;
        assert!(found.iter().any(|packet| is_key(&packet)), "{url}: no keyframe at {begins}: {playlist}");
        // The picture that should begin the next segment may come late.
        let is_last = place + 1 == lengths.len();
        let is_cut = (-0.11..longest + 0.002).contains(&(length - segment));
        assert!(is_last || is_cut, "{url}: a segment of {length} s");
        begins += length;
    }
    assert!(playlist.contains("#EXT-X-INDEPENDENT-SEGMENTS\n"), "{playlist}");
    assert_decodes(Path::new(url));
    let alike = likeness(url, text(source));
    assert!(alike > 28.0, "{url}: {alike} dB");
}

fn encoders(graph: &Value) -> Vec<Value> {
    let nodes = graph["nodes"].as_array().expect("nodes");
    let sink = nodes.iter().find(|node| node["name"] == "watch").expect("the sink");
    sink["encoders"].as_array().cloned().unwrap_or_default()
}

/// As H.264 that looks alike; and Chromium with hls.js plays it.
#[test]
fn what_browsers_cannot_play_is_encoded_anew() {
    let Some(material) = material() else { return };
    // Without a browser, all else is looked at.
    let mut viewer = PlayerPage::serve().and_then(|page| Browser::start().map(|browser| (page, browser)));
    let folder = tempfile::tempdir().expect("a folder");
    let cartoon = mpeg4(folder.path(), "cartoon.mp4", 6, "300");
    let stills = folder.path().join("stills.avi");
    // Of an odd size, and with full range.
    let picture = ["-f", "lavfi", "-i", "testsrc=size=161x121:rate=10:duration=3"];
    ffmpeg(&[&picture[..], &["-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj422p"]].concat(), &stills);
    let people = material.join("videos/people_hevc_vfr.mp4");
    let videos = [("cartoon", &cartoon), ("stills", &stills), ("people", &people)];
    let paths = videos.map(|(name, path)| format!("streams.{name} = '{}'\n", path.display())).concat();
    let run = graph(&paths, "segment = \"2s\"\ntranscode = true");
    let planned = plan(&run.graph(), &[]);
    assert_eq!(planned["threads"]["encoders"], 3, "{planned}");
    assert_eq!(planned["sinks"][0]["encoder_threads_per_stream"], 1, "{planned}");

    let mut settings = vec!["--stay"];
    if let Some((page, _)) = &viewer {
        settings.extend(["--allow-origin", &page.origin]);
    }
    let mut engine = run.run(&settings);
    let address = engine.address();
    let ended = engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    for (name, video) in videos {
        let url = format!("{address}/hls/graph/{name}/index.m3u8");
        if name == "stills" {
            // The last column and row are left out, so that there is nothing of the same size to compare with.
            let probed = ffprobe(&["-show_streams"], Path::new(&url));
            assert_eq!(
                (probed["streams"][0]["width"].as_u64(), probed["streams"][0]["height"].as_u64()),
                (Some(160), Some(120))
            );
            assert_eq!(packets(Path::new(&url), 0, false).len(), 30);
            let even = folder.path().join("even.avi");
            ffmpeg(&["-i", text(video), "-vf", "crop=160:120:0:0", "-c:v", "ffv1"], &even);
            let alike = likeness(&url, text(&even));
            assert!(alike > 28.0, "{alike} dB");
        } else {
            assert_encoded(video, &url, 2.0);
        }
        let streams = ended["streams"].as_array().expect("streams");
        let counts = streams.iter().find(|counts| counts["stream"] == name).expect("its counts");
        assert_eq!(counts["read"], counts["delivered"], "{counts}");
        assert_conserved(counts);
    }
    let sound = ffprobe(
        &["-select_streams", "a", "-show_streams"],
        Path::new(&format!("{address}/hls/graph/cartoon/index.m3u8")),
    );
    assert_eq!(sound["streams"][0]["codec_name"], "aac", "{sound}");
    if let Some((page, browser)) = &mut viewer {
        for (stream, width) in [("cartoon", 320), ("people", 768)] {
            browser.open(&page.of(&format!("{address}/hls/graph/{stream}/index.m3u8"), ""));
            browser.wait(&format!("video.videoWidth === {width}"));
            let begun = browser.wait("video.currentTime > 0 && video.currentTime").as_f64().expect("seconds");
            // Beyond its first segment.
            browser.wait(&format!("video.currentTime > {} && !video.paused", begun + 2.5));
            assert_eq!(browser.wait("[window.problems.join(), window.stalls]")[0], "", "{stream}");
        }
    }
    engine.terminate().expect(0);
}

#[test]
fn what_browsers_can_play_is_passed_on_byte_for_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = folder.path().join("door.mp4");
    let picture = ["-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=4"];
    ffmpeg(&[&picture[..], &["-c:v", "libx264", "-g", "25", "-pix_fmt", "yuv420p"]].concat(), &video);
    let published = |sink: &str| {
        let run = graph(&format!("path = '{}'", video.display()), &format!("segment = \"1s\"\n{sink}"));
        let mut engine = run.run(&["--stay"]);
        let address = engine.address();
        let ended = engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
        assert!(encoders(&ended).is_empty(), "{ended}");
        let base = format!("{address}/hls/graph/door");
        let files = ["index.m3u8", "init-0.mp4", "0.m4s", "1.m4s", "2.m4s", "3.m4s"];
        let bytes = files.map(|name| {
            let (status, _, body) = get_bytes(&format!("{base}/{name}"));
            assert_eq!(status, 200, "{name}");
            body
        });
        engine.terminate().expect(0);
        bytes
    };
    assert!(published("") == published("transcode = true"), "other bytes");
}

/// What the samples of H.264 may be that cameras and editors make, browsers do not play all of.
#[test]
fn unusual_samples_are_encoded_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = folder.path().join("fine.mp4");
    let picture = ["-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=4"];
    ffmpeg(&[&picture[..], &["-c:v", "libx264", "-bf", "2", "-pix_fmt", "yuv422p10le"]].concat(), &video);
    let run = graph(
        &format!("path = '{}'", video.display()),
        "segment = \"1s\"\ntranscode = true\nencoder = { threads = 2 }",
    );
    let mut engine = run.run(&["--stay"]);
    let address = engine.address();
    engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    assert_encoded(&video, &format!("{address}/hls/graph/fine/index.m3u8"), 1.0);
    let ended = engine.terminate().expect(0);
    assert_eq!(ended.counts("fine"), Counts::all_delivered(100));
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// More pictures than any machine of these days encodes on one thread: the newest are shown, the others counted, and
/// everybody who looks sees why.
#[test]
fn an_encoder_that_cannot_keep_up_drops_and_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = folder.path().join("huge.mp4");
    let picture = ["-f", "lavfi", "-i", "testsrc=size=3840x2160:rate=100:duration=0.5"];
    ffmpeg(&[&picture[..], &["-c:v", "mpeg4", "-g", "10", "-qscale:v", "8", "-pix_fmt", "yuv420p"]].concat(), &video);
    let source = format!("realtime = true\nstreams.huge = {{ path = '{}', loop = true }}", video.display());
    let run = graph(&source, "segment = \"1s\"\ntranscode = true\nbudget = { items = 32 }");
    let mut engine = run.run(&["--stay"]);
    let address = engine.address();
    let graph = engine.wait_for_graph("an encoder that is named", |graph| graph["culprit"]["kind"] == "encoder");
    let text = graph["culprit"]["text"].as_str().expect("a sentence");
    for part in ["`watch` on stream `huge`: encoding takes", "dropped in front of it", "`encoder.threads`"] {
        assert!(text.contains(part), "{text}");
    }
    let found = encoders(&graph);
    assert_eq!((found.len(), &found[0]["stream"], &found[0]["threads"]), (1, &"huge".into(), &1.into()), "{graph}");
    assert!(number(&found[0]["busy_share"]) > 0.5 && number(&found[0]["rate"]) > 0.0, "{graph}");
    let drops = &graph["streams"][0]["drops"][0];
    assert!(number(&drops["count"]) > 0.0 && drops["node"] == "video -> watch", "{graph}");
    let held = &graph["streams"][0];
    assert!(number(&held["held_items"]) <= 32.0, "{held}");
    let (_, _, metrics) = get_text(&format!("{address}/metrics"));
    let busy = r#"engine_encoder_busy_seconds_total{graph="graph",node="watch",stream="huge"} "#;
    assert!(metrics.lines().any(|line| line.starts_with(busy)), "{metrics}");
    let top = support::command(&["top", "--once", &address]).output().expect("it runs");
    let top = String::from_utf8_lossy(&top.stdout).into_owned();
    assert!(top.contains("encodes `huge` on 1 thread:"), "{top}");

    // What was dropped is a hole in the playlist, and not its end.
    let url = format!("{address}/hls/graph/huge/index.m3u8");
    engine.wait_for("a playlist that goes on behind a hole", |_| {
        let (status, _, body) = get_bytes(&url);
        let text = String::from_utf8(body).expect("text");
        (status == 200 && text.contains("#EXT-X-DISCONTINUITY\n")).then_some(())
    });
    let ended = engine.terminate();
    let counts = ended.counts("huge");
    assert!(counts.delivered > 0 && counts.dropped > 0 && counts.lost == 0, "{counts:?}\n{}", ended.stderr);
}

/// A stream that is stopped is shown to its last picture, and a reload that changes nothing leaves no trace.
#[test]
fn a_reload_and_the_end_flush_the_encoder() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = mpeg4(folder.path(), "door.mp4", 4, "25");
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let put = |comment: &str, segment: &str| {
        let text = format!(
            "{comment}\n[sources.video]\ntype = \"file\"\nrealtime = true\nstreams.door = {{ path = '{}', loop = true }}\n\
             [sinks.watch]\ntype = \"hls\"\ninputs = [\"video\"]\nsegment = \"{segment}\"\nkind = \"event\"\ntranscode = true\n",
            video.display()
        );
        send("PUT", &format!("{address}/graphs/yard"), &[], &text)
    };
    put("", "1s").expect(201);
    let url = format!("{address}/hls/yard/door/index.m3u8");
    let listed = |engine: &mut Engine, segments: usize| {
        engine.wait_for("segments", |_| {
            let (status, _, body) = get_bytes(&url);
            let text = String::from_utf8(body).expect("text");
            (status == 200 && text.matches("#EXTINF").count() >= segments).then_some(text)
        })
    };
    listed(&mut engine, 1);
    put("# nothing but this", "1s").expect(200);
    let after = listed(&mut engine, 3);
    assert!(!after.contains("#EXT-X-DISCONTINUITY\n"), "{after}");
    let changed = put("", "2s").expect(200);
    assert!(changed["lost"].as_u64().unwrap_or(0) == 0, "{changed}");
    engine.wait_for("segments of the new length", |_| {
        let (status, _, body) = get_bytes(&url);
        let text = String::from_utf8(body).expect("text");
        (status == 200 && text.contains("#EXTINF:2.0")).then_some(())
    });
    let (_, stats) = get(&format!("{address}/stats"));
    let stream = &stats["graphs"][0]["streams"][0];
    assert_eq!((stream["lost"].as_u64(), stream["rejected"].as_u64()), (Some(0), Some(0)), "{stream}");
    let ended = engine.terminate().expect(0);
    let counts = ended.counts("door");
    // What came before the first keyframe of the sink that was opened for the reload.
    assert_eq!((counts.lost, counts.rejected, counts.dropped), (0, 0, 0), "{}", ended.stderr);
    assert!(counts.delivered > 100 && counts.filtered < counts.delivered, "{counts:?}");
}
