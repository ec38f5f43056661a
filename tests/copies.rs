//! `storage` of the `hls` sink: what is published lies in a folder or a bucket as well, and what its playlist lists is
//! there whenever somebody looks. That of a live stream is in `tests/hls.rs`, beside the playlist that is served.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use support::bucket::{Fault, clips, objects, with_credentials};
use support::probe::{assert_decodes, packets};
use support::{Counts, Folder, ffmpeg, wait_for};

/// A keyframe each second, with sound.
fn clip(folder: &Path, seconds: u32) -> PathBuf {
    let path = folder.join("door.mp4");
    let picture = format!("testsrc=size=320x240:rate=25:duration={seconds}");
    let tone = format!("sine=frequency=440:duration={seconds}");
    let inputs = ["-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", &tone];
    let coded = ["-c:v", "libx264", "-g", "25", "-sc_threshold", "0", "-pix_fmt", "yuv420p", "-c:a", "aac"];
    ffmpeg(&[&inputs[..], &coded].concat(), &path);
    path
}

fn graph(source: &str, sink: &str) -> Folder {
    Folder::with_graph(&format!(
        "[sources.video]\ntype = \"file\"\n{source}\n\n[sinks.watch]\ntype = \"hls\"\ninputs = [\"video\"]\n\
         segment = \"1s\"\n{sink}\n"
    ))
}

/// Fails unless a playlist in a folder has every packet of the source once.
fn assert_same(source: &Path, playlist: &Path) -> u64 {
    let mut count = 0;
    for track in [0, 1] {
        let (expected, found) = (packets(source, track, false), packets(playlist, track, false));
        let hashes = |packets: &[support::probe::Probed]| -> Vec<String> {
            packets.iter().map(|packet| packet.hash.clone()).collect()
        };
        assert!(hashes(&expected) == hashes(&found), "track {track}: {} and {}", expected.len(), found.len());
        count += found.len() as u64;
    }
    assert_decodes(playlist);
    count
}

/// The files that a playlist lists.
fn listed(playlist: &str) -> BTreeSet<String> {
    let maps = playlist.lines().filter_map(|line| line.strip_prefix("#EXT-X-MAP:URI=\"")?.strip_suffix('"'));
    let segments = playlist.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    maps.chain(segments).map(str::to_owned).collect()
}

#[test]
fn a_file_lies_in_a_folder_as_a_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), 5);
    let run = graph(&format!("path = '{}'", video.display()), "storage = \"out/{stream}\"\nmemory = 50000");
    for _ in 0..2 {
        let ended = run.run(&[]).finish().expect(0);
        let count = assert_same(&video, &run.file("out/door/index.m3u8"));
        assert_eq!(ended.counts("door"), Counts::all_delivered(count));
    }
    let playlist = std::fs::read_to_string(run.file("out/door/index.m3u8")).expect("a playlist");
    assert!(playlist.ends_with("#EXT-X-ENDLIST\n") && !playlist.contains('?'), "{playlist}");
    let mut names: BTreeSet<String> = listed(&playlist);
    names.insert("index.m3u8".to_owned());
    let there = std::fs::read_dir(run.file("out/door")).expect("a folder");
    let there: BTreeSet<String> =
        there.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    assert_eq!(there, names, "a repeat overwrites itself");
}

#[test]
fn a_copy_in_s3_outlives_refusals_and_has_its_playlist_last() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), 5);
    let (root, bucket) = clips();
    let sink = format!("storage = \"s3://clips/hls\"\nendpoint = \"{}\"", bucket.endpoint());
    let run = graph(&format!("path = '{}'", video.display()), &sink);
    bucket.fail_next(
        "PUT",
        &[Fault::Refuse(503, "SlowDown"), Fault::CutBeforeAnswer, Fault::Refuse(500, "InternalError")],
    );
    let ended = run.run_with(&[], with_credentials).finish().expect(0);
    let found: BTreeMap<String, Vec<u8>> = objects(root.path(), "clips");
    let playlist = String::from_utf8(found["hls/door/index.m3u8"].clone()).expect("text");
    let names = listed(&playlist);
    assert_eq!(found.len(), names.len() + 1, "{:?}", found.keys());
    let copy = tempfile::tempdir().expect("a folder");
    for (key, bytes) in &found {
        let name = key.strip_prefix("hls/door/").expect("in the folder of the stream");
        std::fs::write(copy.path().join(name), bytes).expect("written");
    }
    let count = assert_same(&video, &copy.path().join("index.m3u8"));
    assert_eq!(ended.counts("door"), Counts::all_delivered(count));
    let asked = bucket.asked();
    let puts: Vec<_> = asked.iter().filter(|asked| asked.method == "PUT" && asked.status == 200).collect();
    let (last, before) = puts.split_last().expect("some");
    assert!(last.path.ends_with("hls/door/index.m3u8") && last.cache.as_deref() == Some("no-cache"), "{last:?}");
    for put in before {
        assert!(put.path.ends_with(".m4s") || put.path.ends_with(".mp4"), "{put:?}");
        assert!(put.cache.as_deref().is_some_and(|cache| cache.contains("immutable")), "{put:?}");
    }
}

/// What cannot be stored is lost, and said; and what is published is there all the same.
#[test]
fn a_place_that_refuses_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), 3);
    let (_root, bucket) = clips();
    let sink = format!("storage = \"s3://clips/hls\"\nendpoint = \"{}\"\nretry_for = \"1s\"", bucket.endpoint());
    let run = graph(&format!("path = '{}'", video.display()), &sink);
    let mut engine = {
        bucket.fail_always("PUT", Fault::Refuse(403, "AccessDenied"));
        run.run_with(&["--stay"], with_credentials)
    };
    engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    let address = engine.address();
    wait_for("a playlist", || {
        let (status, ..) = support::get_bytes(&format!("{address}/hls/graph/door/index.m3u8"));
        (status == 200).then_some(())
    });
    let ended = engine.terminate();
    let counts = ended.counts("door");
    assert!(counts.lost > 0 && counts.delivered == 0, "{counts:?}");
    for part in ["`watch`", "the copy lacks", "stream `door`", "AccessDenied"] {
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }

    for (storage, says) in [("ftp://there", "is no place for files"), ("out/{seq}", "storage")] {
        let run = graph(&format!("path = '{}'", video.display()), &format!("storage = \"{storage}\""));
        let refused = support::command(&["check", run.graph().to_str().expect("text")]).output().expect("it runs");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
        assert!(!refused.status.success() && said.contains(says), "{storage}: {said}");
    }
}

/// What a place that is down keeps waiting at the drain deadline is lost, with and without encoders in front.
#[test]
fn copies_end_with_their_engine() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), 4);
    let source = format!("realtime = true\nstreams.door = {{ path = '{}', loop = true }}", video.display());
    for transcode in [false, true] {
        let (_root, bucket) = clips();
        let sink =
            format!("storage = \"s3://clips/hls\"\nendpoint = \"{}\"\ntranscode = {transcode}", bucket.endpoint());
        let run = graph(&source, &sink);
        bucket.fail_always("PUT", Fault::Refuse(503, "SlowDown"));
        let mut engine = run.run_with(&["--drain-timeout", "1s"], with_credentials);
        engine.wait_for("a segment that is not stored", |_| {
            let is_asked = |asked: &support::bucket::Asked| asked.method == "PUT" && asked.path.contains("hls/door/");
            bucket.asked().iter().any(is_asked).then_some(())
        });
        let ended = engine.terminate().expect(1);
        let counts = ended.counts("door");
        assert!(counts.lost > 0 && counts.delivered == 0, "{counts:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("still open: sink `watch`"), "{}", ended.stderr);
    }
}
