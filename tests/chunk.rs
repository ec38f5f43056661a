//! Chunks from outside: FFmpeg's own programs agree that nothing is missing, repeated or changed.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::probe::{Probed, assert_all_decode, assert_decodes, best, comparable, ffprobe, packets, text, tracks};
use support::second::assert_agrees;
use support::{Counts, Folder, assert_conserved, ffmpeg, material, soak};

/// Files of a folder, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn chunks(folder: &Folder, stream: &str) -> Vec<PathBuf> {
    let mut files = files(&folder.file("out"));
    files.retain(|file| {
        file.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(&format!("{stream}_chunk_")))
    });
    files
}

fn graph(source: &str, chunk: &str) -> Folder {
    Folder::with_graph(&format!(
        r#"
        [sources.video]
        type = "file"
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
    ))
}

/// Fails unless the chunks, one after the other, have every packet of the source's best tracks once, in order and with
/// the same bytes, each chunk beginning with a keyframe that is shown at zero and showing all up to its last packet; and
/// unless FFmpeg and another demuxer agree on what is in each. Answers how many packets those are.
fn assert_complete(source: &Path, chunks: &[PathBuf]) -> u64 {
    let folder = tempfile::tempdir().expect("a folder");
    let compared = comparable(source, folder.path());
    let expected = tracks(&compared, compared != source);
    assert_all_decode(chunks);
    // What a chunk has, and what of it is shown; FFmpeg looks at two at once.
    let mut seen: Vec<_> = Vec::new();
    for pair in chunks.chunks(2) {
        let look = |chunk: &Path| {
            let all = tracks(chunk, true);
            assert_agrees(chunk, &all);
            (all, tracks(chunk, false))
        };
        std::thread::scope(|scope| {
            let looks: Vec<_> = pair.iter().map(|chunk| scope.spawn(move || look(chunk))).collect();
            seen.extend(looks.into_iter().map(|look| look.join().expect("no panic")));
        });
    }
    let hashes = |packets: &[Probed]| packets.iter().map(|packet| packet.hash.clone()).collect::<Vec<_>>();
    let mut count = 0;
    for (place, track) in best(source).into_iter().enumerate() {
        let expected = hashes(&expected[track]);
        let of = |tracks: &[Vec<Probed>]| tracks.get(place).map_or_else(Vec::new, |packets| hashes(packets));
        let all: Vec<String> = seen.iter().flat_map(|(all, _)| of(all)).collect();
        assert_eq!(all.len(), expected.len(), "{}, track {track}", source.display());
        for ((all, shown), chunk) in seen.iter().zip(chunks) {
            assert_eq!(of(shown).last(), of(all).last(), "{}: the end of track {place} is hidden", chunk.display());
        }
        assert!(all == expected, "{}, track {track}: other packets", source.display());
        count += all.len() as u64;
    }
    for ((_, shown), chunk) in seen.iter().zip(chunks) {
        let first = &shown[0][0];
        assert!(first.is_key, "{}", chunk.display());
        assert!(first.pts.abs() < 1e-6, "{}: begins at {}", chunk.display(), first.pts);
    }
    count
}

#[test]
fn chunks_of_all_videos_are_the_videos() {
    let Some(material) = material() else { return };
    let videos = files(&material.join("videos"));
    assert!(videos.len() >= 7, "{videos:?}");
    let glob = format!("path = '{}/*'", material.join("videos").display());
    // Long videos have chunks enough to cut them less often.
    let (plain, fragmented) = if soak() { ("5s", "4s") } else { ("10s", "15s") };
    for (every, container, workers) in [(plain, "mp4", "1"), (fragmented, "fmp4", "2")] {
        let folder = graph(&glob, &format!("every = {every:?}\ncontainer = {container:?}"));
        let ended = folder.run(&["--workers", workers]).finish().expect(0);
        let told = folder.records("told.jsonl");
        let verify = |video: &Path| {
            let stream = video.file_stem().and_then(|stem| stem.to_str()).expect("text");
            let chunks = chunks(&folder, stream);
            let count = assert_complete(video, &chunks);
            assert_eq!(ended.counts(stream), Counts::all_delivered(count), "{stream}");
            let told: Vec<&Value> = told.iter().filter(|record| record["stream"] == stream).collect();
            assert_eq!(told.len(), chunks.len(), "{stream}");
            let mut end = 0.0;
            for (index, (record, chunk)) in told.iter().zip(&chunks).enumerate() {
                let name = chunk.file_name().and_then(|name| name.to_str()).expect("text");
                assert_eq!((&record["name"], &record["index"]), (&name.into(), &index.into()));
                assert_eq!(record["bytes"], std::fs::metadata(chunk).expect("there").len());
                // Chunks follow each other without a hole.
                assert!((record["start"].as_f64().expect("seconds") - end).abs() < 1e-6, "{record}");
                end = record["end"].as_f64().expect("seconds");
            }
        };
        // Two at a time: other programs do the work.
        let (some, others) = videos.split_at(videos.len() / 2);
        std::thread::scope(|scope| {
            scope.spawn(|| some.iter().for_each(|video| verify(video)));
            others.iter().for_each(|video| verify(video));
        });
    }
}

#[test]
fn sound_without_losses_takes_no_picture_along() {
    let videos = tempfile::tempdir().expect("a folder");
    let video = clip(videos.path(), "music.mkv", 3, &["-c:a", "flac"]);
    let folder = graph(&format!("path = '{}'", video.display()), "every = \"1s\"");
    let ended = folder.run(&[]).finish().expect(0);
    let count = assert_complete(&video, &chunks(&folder, "music"));
    assert_eq!(ended.counts("music"), Counts::all_delivered(count));
}

/// libav looks at the first seconds of a transport stream to see what there is.
#[test]
fn sound_that_nobody_could_find_is_told_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let late = folder.path().join("late.ts");
    let picture = ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=10:duration=14"];
    let sound = ["-itsoffset", "12", "-f", "lavfi", "-i", "sine=frequency=440:duration=2"];
    let coded = ["-c:v", "libx264", "-g", "10", "-pix_fmt", "yuv420p", "-c:a", "aac"];
    ffmpeg(&[&picture[..], &sound, &coded].concat(), &late);
    let run = graph(&format!("path = '{}'", late.display()), "every = \"5s\"");
    let ended = run.run(&[]).finish().expect(0);
    assert_eq!(ended.counts("late"), Counts::all_delivered(140));
    assert!(ended.stderr.contains("(track 1, aac) is left out: none of it came"), "{}", ended.stderr);
}

#[test]
fn two_runs_make_the_same_bytes() {
    let Some(material) = material() else { return };
    let source =
        format!("path = ['{0}/people_bframes_offset.ts', '{0}/nasa_13013.mp4']", material.join("videos").display());
    let run = |workers: &str| {
        let folder = graph(&source, "every = \"3s\"");
        folder.run(&["--workers", workers]).finish().expect(0);
        folder
    };
    let (one, two) = (run("1"), run("2"));
    let (first, second) = (files(&one.file("out")), files(&two.file("out")));
    assert!(first.len() > 5 && first.len() == second.len(), "{first:?}");
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(first.file_name(), second.file_name());
        let bytes = std::fs::read(first).expect("there");
        assert!(bytes == std::fs::read(second).expect("there"), "{}", first.display());
        let sums = one.records("told.jsonl");
        let name = first.file_name().and_then(|name| name.to_str()).expect("text");
        assert!(sums.iter().any(|record| record["name"] == name), "{name}");
    }
}

/// A keyframe each second, with sound.
fn clip(folder: &Path, name: &str, seconds: u32, options: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let picture = format!("testsrc=size=320x240:rate=25:duration={seconds}");
    let tone = format!("sine=frequency=440:duration={seconds}");
    let inputs = ["-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", &tone];
    let coded = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-sc_threshold", "0", "-pix_fmt", "yuv420p"];
    ffmpeg(&[&inputs[..], &coded, options].concat(), &path);
    path
}

#[test]
fn parts_are_at_most_so_many_and_short_videos_stay_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "clip.mp4", 8, &["-bf", "2"]);
    let source = format!("path = '{}'", video.display());
    for (chunk, count) in
        [("parts = 4\nwhole_below = \"5s\"", 4), ("parts = 4", 1), ("parts = 100\nwhole_below = \"1s\"", 8)]
    {
        let run = graph(&source, chunk);
        run.run(&[]).finish().expect(0);
        let chunks = chunks(&run, "clip");
        assert_eq!(chunks.len(), count, "{chunk}");
        assert_complete(&video, &chunks);
    }
}

/// Without a keyframe there is nowhere to cut.
#[test]
fn a_video_without_keyframes_behind_the_first_is_one_chunk() {
    let Some(material) = material() else { return };
    let video = material.join("videos/asl-again.mkv");
    let folder = graph(&format!("path = '{}'", video.display()), "every = \"200ms\"");
    folder.run(&[]).finish().expect(0);
    let chunks = chunks(&folder, "asl-again");
    assert_eq!(chunks.len(), 1);
    assert_eq!(assert_complete(&video, &chunks), 77);
}

#[test]
fn nothing_is_decoded_and_pictures_of_the_same_reading_are_as_without() {
    let Some(material) = material() else { return };
    let video = material.join("videos/people_speech_av.mp4");
    let folder = graph(&format!("path = '{}'", video.display()), "every = \"10s\"");
    let mut engine = folder.run(&["--stay"]);
    let graph = engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    let stream = &graph["streams"][0];
    assert_eq!((&stream["packets"], &stream["decoded"]), (&7930.into(), &0.into()), "{stream}");
    assert_conserved(stream);
    engine.terminate().expect(0);

    // Now with pictures beside the packets.
    let sums = r#"
        [operators.sums]
        type = "checksum"
        inputs = ["video"]

        [sinks.sum_file]
        type = "file"
        inputs = ["sums"]
        path = "sums.jsonl"
        "#;
    let plain = Folder::with_graph(&format!("[sources.video]\ntype = \"file\"\npath = '{}'\n{sums}", video.display()));
    plain.run(&[]).finish().expect(0);
    let text = std::fs::read_to_string(folder.graph()).expect("there");
    let both = Folder::with_graph(&format!("{text}\n{sums}"));
    let ended = both.run(&["--workers", "2"]).finish().expect(0);
    assert_eq!(ended.counts("people_speech_av"), Counts::all_delivered(7930 + 1394));
    let told = |folder: &Folder| {
        let records = folder.records("sums.jsonl");
        records
            .iter()
            .map(|record| (record["seq"].clone(), record["pts"].clone(), record["md5"].clone()))
            .collect::<Vec<_>>()
    };
    assert!(told(&both) == told(&plain), "the pictures are the same");
    let (one, two) = (chunks(&folder, "people_speech_av"), chunks(&both, "people_speech_av"));
    assert_eq!(one.len(), two.len());
    for (one, two) in one.iter().zip(&two) {
        assert!(std::fs::read(one).expect("there") == std::fs::read(two).expect("there"), "{}", one.display());
    }
}

#[test]
fn a_signal_closes_the_last_chunk() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "clip.mp4", 30, &["-bf", "2", "-g", "10"]);
    let run = graph(&format!("path = '{}'\nrealtime = true", video.display()), "every = \"800ms\"");
    let mut engine = run.run(&[]);
    let out = run.file("out");
    engine.wait_for("two chunks", |_| (out.is_dir() && files(&out).len() >= 2).then_some(()));
    engine.signal(Signal::SIGTERM);
    let ended = engine.finish().expect(0);
    let chunks = chunks(&run, "clip");
    assert!(chunks.len() >= 3, "{chunks:?}");
    let mut counts = 0;
    for track in 0..2 {
        let all: Vec<String> =
            chunks.iter().flat_map(|chunk| packets(chunk, track, true)).map(|packet| packet.hash).collect();
        let expected: Vec<String> = packets(&video, track, false).into_iter().map(|packet| packet.hash).collect();
        assert!(all.len() < expected.len() && expected.starts_with(&all), "track {track}: {} packets", all.len());
        counts += all.len() as u64;
    }
    assert_all_decode(&chunks);
    assert_eq!(ended.counts("clip"), Counts::all_delivered(counts));
}

/// Two recordings of different sizes, one behind the other: the clock starts again, and so do the parameter sets.
#[test]
fn another_format_begins_another_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = clip(folder.path(), "small.ts", 4, &["-c:a", "aac"]);
    let large = clip(folder.path(), "large.ts", 4, &["-vf", "scale=640:480", "-c:a", "aac"]);
    let both = folder.path().join("both.ts");
    let bytes = [small, large].map(|part| std::fs::read(part).expect("there")).concat();
    std::fs::write(&both, bytes).expect("written");
    let run = graph(&format!("path = '{}'", both.display()), "every = \"1m\"");
    let ended = run.run(&[]).finish().expect(0);
    let chunks = chunks(&run, "both");
    let width = |chunk: &PathBuf| {
        assert_decodes(chunk);
        ffprobe(&["-select_streams", "v", "-show_streams"], chunk)["streams"][0]["width"].as_u64()
    };
    assert_eq!(chunks.iter().map(width).collect::<Vec<_>>(), [Some(320), Some(640)], "{}", ended.stderr);
    let told = run.records("told.jsonl");
    assert!((told[0]["end"].as_f64().expect("seconds") - 4.0).abs() < 0.1, "{told:?}");
    assert_eq!(told[0]["end"], told[1]["start"], "time goes on");
    let counts = ended.counts("both");
    assert_eq!((counts.lost, counts.rejected, counts.dropped), (0, 0, 0), "{counts:?}");
}

/// Two seconds that are larger than what is kept of a chunk in memory.
fn noise(folder: &Path) -> PathBuf {
    let video = folder.join("noise.mp4");
    let noise = ["-f", "lavfi", "-i", "color=gray:size=640x480:rate=25:duration=2", "-vf", "noise=alls=100:allf=t"];
    ffmpeg(&[&noise[..], &["-c:v", "libx264", "-preset", "ultrafast", "-qp", "4", "-g", "25"]].concat(), &video);
    assert!(std::fs::metadata(&video).expect("there").len() > 20 << 20, "large enough for these tests");
    video
}

#[test]
fn a_chunk_too_large_for_memory_goes_through_a_file_that_is_gone_afterwards() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = noise(folder.path());
    let source = format!("path = '{}'", video.display());
    let temporary = tempfile::tempdir().expect("a folder");
    let run = graph(&source, "every = \"1h\"");
    run.run_with(&[], |command| _ = command.env("TMPDIR", temporary.path())).finish().expect(0);
    assert_complete(&video, &chunks(&run, "noise"));
    assert_eq!(files(temporary.path()), Vec::<PathBuf>::new());

    // And where there is no such folder, the failure says where.
    let run = graph(&format!("{source}\nresume = true"), "every = \"1h\"");
    let text_of = std::fs::read_to_string(run.graph()).expect("written");
    std::fs::write(run.graph(), format!("[state]\ndir = \"state\"\n{text_of}")).expect("written");
    let missing = temporary.path().join("missing");
    let ended = run.run_with(&[], |command| _ = command.env("TMPDIR", &missing)).finish().expect(1);
    for part in ["`chunks` failed on stream `noise`", text(&missing), "TMPDIR"] {
        assert!(ended.stderr.contains(part), "no `{part}`:\n{}", ended.stderr);
    }
    let counts = ended.counts("noise");
    assert_eq!((counts.read, counts.lost), (50, 50), "{counts:?}");
    // It is not the video's fault: the next run, with room, makes the chunk.
    assert!(ended.stderr.contains("it is read again at the next start"), "{}", ended.stderr);
    run.run_with(&[], |command| _ = command.env("TMPDIR", temporary.path())).finish().expect(0);
    assert_complete(&video, &chunks(&run, "noise"));
}

/// What is kept outside of memory has no name, so nothing of it is left by a process that is killed.
#[test]
fn a_kill_in_the_middle_of_a_large_chunk_leaves_no_temporary_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = noise(folder.path());
    let temporary = tempfile::tempdir().expect("a folder");
    let run = graph(&format!("path = '{}'\nloop = true\nrealtime = true", video.display()), "every = \"1h\"");
    let mut engine = run.run_with(&[], |command| _ = command.env("TMPDIR", temporary.path()));
    let open = format!("/proc/{}/fd", engine.id());
    engine.wait_for("a chunk outside of memory", |_| {
        let is_there = |link: PathBuf| {
            let target = std::fs::read_link(&link).ok().filter(|target| target.starts_with(temporary.path()));
            target.is_some() && std::fs::metadata(&link).is_ok_and(|file| file.len() > 16 << 20)
        };
        files(Path::new(&open)).into_iter().any(is_there).then_some(())
    });
    engine.signal(Signal::SIGKILL);
    engine.finish();
    assert_eq!(files(temporary.path()), Vec::<PathBuf>::new());
}

/// The folder for temporary files and the place of the chunks may be of different file systems.
#[test]
fn a_large_chunk_goes_from_one_file_system_to_another() {
    let memory = Path::new("/dev/shm");
    let folder = tempfile::tempdir().expect("a folder");
    let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(path).expect("there"));
    if !memory.is_dir() || device(memory) == device(folder.path()) {
        eprintln!("skipped: there is one file system alone");
        return;
    }
    let video = noise(folder.path());
    let run = graph(&format!("path = '{}'", video.display()), "every = \"1h\"");
    run.run_with(&[], |command| _ = command.env("TMPDIR", memory)).finish().expect(0);
    assert_complete(&video, &chunks(&run, "noise"));
}

/// The largest file that the engine may write stands for a disk that fills up.
#[test]
fn a_full_disk_is_told_and_leaves_nothing_torn() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "clip.mp4", 4, &["-vf", "noise=alls=80:allf=t", "-qp", "18"]);
    let small = clip(folder.path(), "small.mp4", 2, &[]);
    let run = graph(&format!("path = ['{}', '{}']", small.display(), video.display()), "every = \"1h\"");
    let text = std::fs::read_to_string(run.graph()).expect("there");
    let text = text.replace("path = \"out/{name}\"", "path = \"out/{name}\"\nretry_for = \"1s\"");
    std::fs::write(run.graph(), text).expect("written");
    let large = std::fs::metadata(&video).expect("there").len();
    assert!(large > 2 << 20, "{large} bytes");
    let engine = run.run_with(&["--workers", "1"], |command| {
        let mut limited = Command::new("bash");
        limited.args(["-c", "trap '' XFSZ; ulimit -f 1024; exec \"$@\"", "bash"]).arg(command.get_program());
        limited.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        limited.current_dir(command.get_current_dir().expect("a folder"));
        *command = limited;
    });
    let ended = engine.finish().expect(1);
    for part in [
        "sink `files`: an item of stream `clip` is lost",
        "out/clip_chunk_0000.mp4",
        "file too large",
        "hint: make room",
    ] {
        assert!(ended.stderr.contains(part), "no `{part}`:\n{}", ended.stderr);
    }
    let names: Vec<String> = files(&run.file("out"))
        .iter()
        .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
        .collect();
    assert!(names.iter().all(|name| name == "small_chunk_0000.mp4"), "{names:?}");
    assert_ne!(ended.counts("clip").lost, 0);
}

#[test]
fn what_exists_is_not_overwritten_unasked() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "clip.mp4", 2, &[]);
    let run = graph(&format!("path = '{}'", video.display()), "every = \"1h\"");
    run.run(&[]).finish().expect(0);
    let chunk = run.file("out/clip_chunk_0000.mp4");
    std::fs::write(&chunk, b"precious").expect("written");
    let ended = run.run(&[]).finish().expect(1);
    assert!(ended.stderr.contains("`out/clip_chunk_0000.mp4` exists already"), "{}", ended.stderr);
    assert_eq!(std::fs::read(&chunk).expect("there"), b"precious");
    let text = std::fs::read_to_string(run.graph()).expect("there");
    std::fs::write(
        run.graph(),
        text.replace("path = \"out/{name}\"", "path = \"out/{name}\"\nif_exists = \"replace\""),
    )
    .expect("written");
    run.run(&[]).finish().expect(0);
    assert_complete(&video, &chunks(&run, "clip"));
}

/// Old containers say of most pictures only when they are decoded, and raw video says nothing at all.
#[test]
fn pictures_whose_times_are_missing_are_shown_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = folder.path().join("old.avi");
    let picture = ["-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=4"];
    ffmpeg(&[&picture[..], &["-c:v", "mpeg4", "-bf", "2", "-g", "25"]].concat(), &video);
    let raw = folder.path().join("raw.h264");
    ffmpeg(&[&picture[..], &["-c:v", "libx264", "-bf", "0", "-g", "25", "-pix_fmt", "yuv420p"]].concat(), &raw);
    let run = graph(&format!("path = ['{}', '{}']", video.display(), raw.display()), "every = \"1s\"");
    let ended = run.run(&[]).finish().expect(0);
    for (stream, file) in [("old", &video), ("raw", &raw)] {
        let chunks = chunks(&run, stream);
        assert_eq!(chunks.len(), 4, "{stream}");
        let expected = packets(file, 0, false).len();
        assert_eq!(ended.counts(stream), Counts::all_delivered(expected as u64), "{stream}");
        for chunk in &chunks {
            assert_decodes(chunk);
            let mut shown: Vec<f64> = packets(chunk, 0, false).iter().map(|packet| packet.pts).collect();
            shown.sort_by(f64::total_cmp);
            shown.dedup();
            assert_eq!(shown.len(), packets(chunk, 0, true).len(), "{}: each at a time of its own", chunk.display());
        }
    }
}

#[test]
fn a_path_with_placeholders_takes_segments_alone() {
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = \"synthetic\"\n[operators.sums]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
         [sinks.out]\ntype = \"file\"\ninputs = [\"sums\"]\npath = \"{stream}_{index}.json\"\n",
    );
    let output = support::command(&["check", text(&folder.graph())]).output().expect("the engine's binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let expected = "`sinks.out` takes nothing of `sums`: records have no files of their own, as `path` gives them";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn what_mp4_cannot_hold_is_left_out_or_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let sound = clip(folder.path(), "sound.mkv", 2, &["-c:a", "pcm_alaw", "-ar", "8000"]);
    let run = graph(&format!("path = '{}'", sound.display()), "every = \"1h\"");
    let ended = run.run(&[]).finish().expect(0);
    assert!(
        ended.stderr.contains("`chunks` leaves track 1 of stream `sound` out: MP4 cannot hold pcm_alaw"),
        "{}",
        ended.stderr
    );
    let chunk = &chunks(&run, "sound")[0];
    assert_eq!(packets(chunk, 0, true).len(), 50);
    let counts = ended.counts("sound");
    assert_eq!((counts.delivered, counts.filtered + counts.delivered), (50, counts.read), "{counts:?}");

    let video = folder.path().join("old.mkv");
    ffmpeg(&["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=2", "-c:v", "libvpx"], &video);
    let run = graph(&format!("path = '{}'", video.display()), "every = \"1h\"");
    let ended = run.run(&[]).finish().expect(1);
    assert!(
        ended.stderr.contains("`chunks` failed on stream `old`, item 0: MP4 cannot hold vp8 video"),
        "{}",
        ended.stderr
    );
    assert_eq!(ended.counts("old").rejected, 20);
    let told = run.records("told.jsonl");
    assert_eq!(told.len(), 1, "one failure, told once: {told:?}");
}

/// What is shown or heard of a track, with its times; not what an edit list hides.
fn shown(file: &Path, track: usize) -> Vec<(String, f64)> {
    let number = track.to_string();
    let probed = ffprobe(&["-select_streams", &number, "-show_packets", "-show_data_hash", "md5"], file);
    let packets = probed["packets"].as_array().expect("packets").iter();
    let is_shown = |packet: &&Value| !packet["flags"].as_str().expect("flags").contains('D');
    packets
        .filter(is_shown)
        .map(|packet| {
            let time = packet["pts_time"].as_str().expect("a time").parse().expect("seconds");
            (packet["data_hash"].as_str().expect("a hash").to_owned(), time)
        })
        .collect()
}

/// The first picture that is shown is where time begins, whatever has to be decoded before it.
#[test]
fn what_an_edit_list_hides_stays_hidden_and_moves_no_times() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = clip(folder.path(), "whole.mp4", 10, &["-bf", "2", "-g", "50", "-c:a", "aac"]);
    let video = folder.path().join("cut.mp4");
    ffmpeg(&["-ss", "1.3", "-i", text(&whole), "-c", "copy"], &video);
    let hidden = packets(&video, 0, true).len() - shown(&video, 0).len();
    assert!(hidden > 20, "{hidden} pictures are hidden");

    let run = graph(&format!("path = '{}'", video.display()), "every = \"3s\"");
    let text = std::fs::read_to_string(run.graph()).expect("there");
    let sums = "[operators.sums]\ntype = \"checksum\"\ninputs = [\"video\"]\n\
                [sinks.sum_file]\ntype = \"file\"\ninputs = [\"sums\"]\npath = \"sums.jsonl\"\n";
    std::fs::write(run.graph(), format!("{text}\n{sums}")).expect("written");
    run.run(&[]).finish().expect(0);
    let chunks = chunks(&run, "cut");
    let told = run.records("told.jsonl");
    assert_eq!((told.len(), &told[0]["start"]), (chunks.len(), &0.0.into()), "{told:?}");
    assert!(chunks.len() >= 3, "{chunks:?}");
    for track in 0..2 {
        let expected = shown(&video, track);
        let begins = |record: &Value| record["start"].as_f64().expect("seconds");
        let all: Vec<(String, f64)> = chunks
            .iter()
            .zip(&told)
            .flat_map(|(chunk, record)| {
                shown(chunk, track).into_iter().map(|(hash, time)| (hash, time + begins(record)))
            })
            .collect();
        assert_eq!(all.len(), expected.len(), "track {track}");
        for ((hash, time), (other, said)) in all.iter().zip(&expected) {
            assert!(hash == other && (time - said).abs() < 1e-3, "track {track}: at {time}, in the input at {said}");
        }
    }
    // And the pictures that are decoded have the same times.
    let decoded: Vec<f64> =
        run.records("sums.jsonl").iter().map(|record| record["pts"].as_f64().expect("seconds")).collect();
    let mut times: Vec<f64> = shown(&video, 0).into_iter().map(|(_, time)| time).collect();
    times.sort_by(f64::total_cmp);
    assert_eq!(decoded.len(), times.len());
    assert!(decoded.iter().zip(&times).all(|(one, other)| (one - other).abs() < 1e-3), "{decoded:?}");
}

/// Where sound comes so late that nothing has said how long its packets are, they last all the same.
#[test]
fn sound_without_durations_is_heard_to_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = folder.path().join("late.mkv");
    let inputs = ["-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=12", "-itsoffset", "5"];
    let tone = ["-f", "lavfi", "-i", "sine=frequency=440:duration=7", "-c:a", "aac"];
    let coded = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-bf", "2", "-pix_fmt", "yuv420p"];
    ffmpeg(&[&inputs[..], &tone, &coded].concat(), &video);
    let probed = ffprobe(&["-select_streams", "a", "-show_packets"], &video);
    assert_eq!(probed["packets"][0]["duration"], Value::Null, "none is known");
    let run = graph(&format!("path = '{}'", video.display()), "every = \"2s\"");
    run.run(&[]).finish().expect(0);
    let chunks = chunks(&run, "late");
    assert_eq!(chunks.len(), 6);
    assert_complete(&video, &chunks);
    let heard: usize = chunks.iter().map(|chunk| shown(chunk, 1).len()).sum();
    assert_eq!(heard, packets(&video, 1, false).len());
}

/// Sound that begins long before the pictures is left out but for the last of it, and it is said.
#[test]
fn time_begins_with_the_first_picture_however_late_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = clip(folder.path(), "plain.mp4", 4, &["-bf", "2", "-c:a", "aac"]);
    let sound = folder.path().join("sound.m4a");
    ffmpeg(&["-f", "lavfi", "-i", "sine=frequency=440:duration=104", "-c:a", "aac"], &sound);
    // More than may wait for the first picture: there the container says when it comes.
    for (name, late) in [("late.mkv", "20"), ("later.mp4", "100")] {
        let video = folder.path().join(name);
        let shifted = ["-itsoffset", late, "-i", text(&plain), "-i", text(&sound), "-map", "0:v", "-map", "1:a"];
        ffmpeg(&[&shifted[..], &["-c", "copy"]].concat(), &video);
        let run = graph(&format!("path = '{}'", video.display()), "every = \"2s\"");
        let ended = run.run(&[]).finish().expect(0);
        let stream = video.file_stem().and_then(|stem| stem.to_str()).expect("text");
        let said = format!("`chunks` leaves sound of stream `{stream}` out: it comes before the first picture");
        assert_eq!(ended.stderr.matches(&said).count(), 1, "{}", ended.stderr);
        let told = run.records("told.jsonl");
        assert_eq!((&told[0]["start"], &told[1]["start"]), (&0.0.into(), &2.0.into()), "{told:?}");
        let first = &chunks(&run, stream)[0];
        assert!(shown(first, 0)[0].1.abs() < 1e-3, "{:?}", shown(first, 0)[0]);
        // The sound beside the first picture is the one that the input has there.
        let late = shown(&video, 0)[0].1;
        let expected = shown(&video, 1).into_iter().find(|(_, time)| *time >= late).expect("sound");
        let heard = shown(first, 1).into_iter().find(|(hash, _)| *hash == expected.0).expect("the same sound");
        assert!((heard.1 - (expected.1 - late)).abs() < 2e-3, "{heard:?}, {expected:?}");
    }
}

/// Where the boxes of a kind begin in a file.
fn boxes(file: &Path, kind: &[u8; 4]) -> Vec<usize> {
    let bytes = std::fs::read(file).expect("there");
    let (mut at, mut found) = (0, Vec::new());
    while at + 8 <= bytes.len() {
        let length = u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[at + 4..at + 8] == *kind {
            found.push(at);
        }
        at += usize::try_from(length.max(8)).expect("small");
    }
    found
}

/// A group of pictures larger than a fragment may be: it is written before its end, and times stay what they are, also
/// those of sound that comes when the front of the file is written already.
#[test]
fn a_long_group_of_pictures_becomes_several_fragments() {
    let folder = tempfile::tempdir().expect("a folder");
    let silent = folder.path().join("silent.mp4");
    // At no fixed rate, so that lengths that are guessed would show.
    let noise = "noise=alls=100:allf=t,select='lt(mod(t\\,2)\\,1)+not(mod(n\\,5))'";
    let picture = ["-f", "lavfi", "-i", "color=gray:size=400x300:rate=25:duration=10", "-vf", noise, "-vsync", "vfr"];
    let coded = ["-c:v", "libx264", "-preset", "ultrafast", "-qp", "4", "-g", "1000", "-bf", "0"];
    ffmpeg(&[&picture[..], &coded].concat(), &silent);
    let tone = clip(folder.path(), "tone.mp4", 7, &["-c:a", "aac"]);
    for (name, late) in [("beside.mkv", "0"), ("behind.mkv", "7")] {
        let video = folder.path().join(name);
        let inputs = ["-i", text(&silent), "-itsoffset", late, "-i", text(&tone), "-map", "0:v", "-map", "1:a"];
        ffmpeg(&[&inputs[..], &["-c", "copy", "-t", "10"]].concat(), &video);
        let run = graph(&format!("path = '{}'", video.display()), "every = \"1h\"\ncontainer = \"fmp4\"");
        run.run(&[]).finish().expect(0);
        let stream = video.file_stem().and_then(|stem| stem.to_str()).expect("text");
        let chunks = chunks(&run, stream);
        assert_eq!(chunks.len(), 1);
        assert_complete(&video, &chunks);
        let fragments = boxes(&chunks[0], b"moof");
        let length = usize::try_from(std::fs::metadata(&chunks[0]).expect("there").len()).expect("small");
        assert!(length > 24 << 20, "{length} bytes are large enough for this test");
        let ends = fragments.iter().skip(1).chain([&length]);
        let longest = fragments.iter().zip(ends).map(|(start, end)| end - start).max();
        assert!(longest < Some(17 << 20), "{fragments:?} of {length}");
        if late == "0" {
            assert!(longest < Some(6 << 20), "{fragments:?} of {length}");
        }
        let start = shown(&video, 0)[0].1;
        for track in 0..2 {
            let (all, expected) = (shown(&chunks[0], track), shown(&video, track));
            let begin = if track == 0 { 0 } else { expected.len() - all.len() };
            assert!(begin <= 2, "track {track}: {} of {}", all.len(), expected.len());
            for ((hash, time), (other, said)) in all.iter().zip(&expected[begin..]) {
                let is_same = hash == other && (time - (said - start)).abs() < 2e-3;
                assert!(is_same, "{name}, track {track}: {time}, not {said} less {start}");
            }
        }
    }
}

/// Lengths that a container tells are those of no picture where pictures come at no fixed rate.
#[test]
fn chunks_follow_each_other_at_any_rate() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = folder.path().join("varying.mkv");
    let picture = ["-f", "lavfi", "-i", "testsrc=size=320x240:rate=30:duration=20", "-vsync", "vfr"];
    let chosen = ["-vf", "select='lt(mod(t\\,4)\\,0.2)+not(mod(n\\,30))'"];
    let coded = ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-g", "8", "-sc_threshold", "0"];
    ffmpeg(&[&picture[..], &chosen, &coded].concat(), &video);
    let run = graph(&format!("path = '{}'", video.display()), "every = \"2s\"");
    run.run(&[]).finish().expect(0);
    let told = run.records("told.jsonl");
    assert!(told.len() >= 4, "{told:?}");
    for pair in told.windows(2) {
        assert_eq!(pair[0]["end"], pair[1]["start"], "{told:?}");
    }
}

/// A recording that lacks what its decoder needs first.
#[test]
fn a_stream_without_parameter_sets_is_refused_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "bare.ts", 4, &["-an"]);
    let mut bytes = std::fs::read(&video).expect("there");
    // They become filler.
    for at in 0..bytes.len() - 4 {
        if matches!(bytes[at..at + 4], [0, 0, 1, 0x67 | 0x68]) {
            bytes[at + 3] = 0x0c;
        }
    }
    std::fs::write(&video, bytes).expect("written");
    let run = graph(&format!("path = '{}'", video.display()), "every = \"1s\"");
    let ended = run.run(&[]).finish().expect(1);
    let said =
        "no parameter sets came with its h264 video, so nothing says how large its pictures are; have the sender";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
    let told = run.records("told.jsonl");
    assert_eq!(told.len(), 1, "one failure, told once: {told:?}");
    let counts = ended.counts("bare");
    assert_eq!((counts.rejected + counts.filtered, counts.delivered), (counts.read, 0), "{counts:?}");
}
