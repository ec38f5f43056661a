//! Playing real, odd and broken files. The clips are made by the ffmpeg command, which is also the second opinion.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::clock::{Clock, SimulatedClock};
use crate::config::Rate;
use crate::item::{ColorRange, PixelFormat, TrackFormat};
use crate::media::picture;
use crate::testing::RecordingOutlet;
use crate::transforms::checksum::md5;
use crate::transforms::sample::Sampler;

fn plain() -> Settings {
    Settings { tracks: Tracks::Best, repeat: false, realtime: false, skip: true, keyframes_only: false }
}

fn twice_a_second() -> Sampler {
    Sampler::new(Rate { numerator: 2, denominator: 1 }, Duration::ZERO)
}

/// The folder of reference material; `None` where it is not there and need not be.
fn material() -> Option<PathBuf> {
    let folder = std::env::var_os("ENGINE_MATERIAL")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/material"), PathBuf::from);
    if folder.join("reference/videos.json").is_file() {
        return Some(folder);
    }
    assert!(std::env::var_os("ENGINE_REQUIRE_MATERIAL").is_none_or(|value| value != "1"), "no {folder:?}");
    eprintln!("skipped: there is no reference material in {}", folder.display());
    None
}

/// One sampled picture: number, microseconds, checksum.
type Sampled = (u64, i64, String);

fn sampled(path: &Path, settings: &Settings, threads: usize) -> (Vec<Sampled>, RecordingOutlet) {
    sampled_by(twice_a_second(), path, settings, threads)
}

fn sampled_by(sampler: Sampler, path: &Path, settings: &Settings, threads: usize) -> (Vec<Sampled>, RecordingOutlet) {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let sink = seen.clone();
    let mut outlet = RecordingOutlet::default().threads(threads).sampling(sampler).observe(move |seq, pts, frame| {
        assert_eq!(frame.index, Some(seq));
        sink.borrow_mut().push((seq, pts.as_micros(), md5(&frame)));
    });
    assert_eq!(play(path, settings, &mut outlet).unwrap(), EndReason::Eof, "{}", path.display());
    (seen.take(), outlet)
}

#[test]
fn sampled_pictures_equal_the_reference_with_and_without_skipping() {
    let Some(material) = material() else { return };
    let text = std::fs::read_to_string(material.join("reference/videos.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut skipped_somewhere = 0;
    for (name, video) in reference.as_object().unwrap() {
        let expected: Vec<(u64, f64, &str)> = video["samples"]
            .as_array()
            .unwrap()
            .iter()
            .map(|sample| {
                let md5 = sample["md5_yuv420p"].as_str().unwrap();
                (sample["frame_index"].as_u64().unwrap(), sample["pts_s"].as_f64().unwrap(), md5)
            })
            .collect();
        let path = material.join("videos").join(name);
        for (skip, threads) in [(true, 1), (true, 4), (false, 1), (false, 4)] {
            let label = format!("{name}, skip {skip}, {threads} threads");
            let (got, outlet) = sampled(&path, &Settings { skip, ..plain() }, threads);
            assert_eq!(got.len(), expected.len(), "{label}");
            for ((seq, micros, md5), (index, seconds, reference)) in got.iter().zip(&expected) {
                assert_eq!((*seq, md5.as_str()), (*index, *reference), "{label} at {seconds} s");
                assert!((*micros as f64 / 1e6 - seconds).abs() < 2e-6, "{label}: {micros} µs, {seconds} s");
            }
            let total = video["frames_decoded"].as_u64().unwrap();
            assert_eq!(outlet.offered.len() as u64 + outlet.skipped, total, "{label}");
            assert_eq!(outlet.repaired, [], "{label}");
            assert_eq!(outlet.opens.len(), 1, "{label}");
            assert_eq!(outlet.opens[0].tracks[0].index as u64, video["video_stream_index"].as_u64().unwrap());
            if skip {
                eprintln!("{label}: {} of {total} left undecoded", outlet.skipped);
                skipped_somewhere += outlet.skipped;
            } else {
                assert_eq!(outlet.skipped, 0, "{label}");
            }
        }
    }
    assert!(skipped_somewhere > 1000, "only {skipped_somewhere} pictures were left undecoded");
}

#[test]
fn a_loop_shows_the_same_pictures_again_and_time_goes_on() {
    let Some(material) = material() else { return };
    for name in ["asl-again.mkv", "people_bframes_offset.ts", "people_hevc_vfr.mp4"] {
        let path = material.join("videos").join(name);
        let seen = Rc::new(RefCell::new(Vec::new()));
        let sink = seen.clone();
        let mut outlet = RecordingOutlet::default()
            .threads(4)
            .observe(move |seq, pts, frame| sink.borrow_mut().push((seq, pts, md5(&frame))));
        play(&path, &plain(), &mut outlet).unwrap();
        let once = seen.take();
        let sink = seen.clone();
        let mut outlet = RecordingOutlet::default()
            .threads(4)
            .stop_after(once.len() * 2 + 10)
            .observe(move |seq, pts, frame| sink.borrow_mut().push((seq, pts, md5(&frame))));
        let settings = Settings { repeat: true, ..plain() };
        assert_eq!(play(&path, &settings, &mut outlet).unwrap(), EndReason::Stopped);
        let looped = seen.take();
        for (index, (seq, pts, md5)) in looped.iter().enumerate() {
            assert_eq!((*seq, md5), (index as u64, &once[index % once.len()].2), "{name}");
            assert!(index == 0 || *pts > looped[index - 1].1, "{name} at {index}");
        }
        let round = once.len();
        let step = looped[round].1.as_micros() - looped[round - 1].1.as_micros();
        assert!((20_000..=1_000_000).contains(&step), "{name}: the second round starts {step} µs after the first");
        assert_eq!(outlet.repaired, [], "{name}");
    }
}

/// Runs ffmpeg with `arguments`, in `folder`.
fn ffmpeg(folder: &Path, arguments: &str) {
    let command = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-y"])
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .expect("ffmpeg is installed");
    assert!(command.status.success(), "{arguments}: {}", String::from_utf8_lossy(&command.stderr));
}

const CLIP: &str = "-f lavfi -i testsrc2=size=96x64:rate=25:duration=2 -c:v libx264 -bf 2 -g 25 -pix_fmt yuv420p";

fn played(path: &Path) -> (Result<EndReason, SourceError>, RecordingOutlet) {
    let mut outlet = RecordingOutlet::default();
    let result = play(path, &plain(), &mut outlet);
    (result, outlet)
}

/// Message and hint of a file that cannot be played.
fn failure(path: &Path) -> (String, String) {
    match played(path).0 {
        Err(SourceError::Input { message, hint: Some(hint), .. }) => {
            assert!(message.contains(path.to_str().unwrap()), "{message}");
            (message, hint)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_that_cannot_be_played_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    ffmpeg(folder.path(), "-f lavfi -i sine=duration=1 audio.wav");
    ffmpeg(folder.path(), &format!("{CLIP} whole.mp4"));
    let whole = std::fs::read(at("whole.mp4")).unwrap();
    std::fs::write(at("cut.mp4"), &whole[..whole.len() * 2 / 3]).unwrap();
    std::fs::write(at("empty.mp4"), b"").unwrap();
    std::fs::write(at("text.mp4"), "not a video\n".repeat(100)).unwrap();

    let (message, _) = failure(&at("audio.wav"));
    assert!(message.contains("no video track; its tracks are: 0 audio (pcm_s16le)"), "{message}");
    let (_, hint) = failure(&at("cut.mp4"));
    assert!(hint.contains("has no index"), "{hint}");
    let (message, _) = failure(&at("empty.mp4"));
    assert!(message.contains("is empty"), "{message}");
    failure(&at("text.mp4"));
    let (message, hint) = failure(&at("nowhere.mp4"));
    assert!(message.contains("No such file") && hint.contains("path"), "{message}: {hint}");
    failure(folder.path());

    let settings = Settings { tracks: Tracks::Indices(vec![4]), ..plain() };
    let error = play(&at("whole.mp4"), &settings, &mut RecordingOutlet::default()).unwrap_err();
    assert!(error.to_string().contains("no track 4; its tracks are: 0 video (h264)"), "{error}");
}

#[test]
fn what_is_left_of_a_damaged_file_is_played() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    ffmpeg(folder.path(), &format!("{CLIP} -movflags +faststart whole.mp4"));
    ffmpeg(folder.path(), &format!("{CLIP} whole.ts"));
    ffmpeg(folder.path(), &format!("{CLIP} whole.mkv"));
    for name in ["whole.mp4", "whole.ts", "whole.mkv"] {
        let whole = std::fs::read(at(name)).unwrap();
        std::fs::write(at("cut"), &whole[..whole.len() * 2 / 3]).unwrap();
        let (result, outlet) = played(&at("cut"));
        assert!((10..50).contains(&outlet.emitted), "{name}: {result:?} after {} pictures", outlet.emitted);
        if let Err(error) = result {
            assert!(error.to_string().contains("unreadable"), "{name}: {error}");
        }
        if name.ends_with("mp4") {
            assert_eq!(outlet.repairs("file cut off"), 1, "{:?}", outlet.repaired);
        }
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 3000].iter_mut().for_each(|byte| *byte ^= 0x5a);
        std::fs::write(at("damaged"), &damaged).unwrap();
        let (result, outlet) = played(&at("damaged"));
        assert!(outlet.emitted >= 20, "{name}: {result:?} after {} pictures", outlet.emitted);
        // The reader of Matroska passes over damage without a word.
        assert!(!outlet.repaired.is_empty() || name.ends_with("mkv"), "{name}");
        let increasing = outlet.offered.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(increasing, "{name}: {:?}", outlet.offered);
    }
}

#[test]
fn a_file_that_ends_before_its_declared_duration_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let video = CLIP.replace("duration=2", "duration=6");
    // The second counts from zero, not from its first picture.
    for (name, declared) in [("whole.mkv", "of the 6.0 s"), ("whole.flv", "of the 6.1 s")] {
        ffmpeg(folder.path(), &format!("{video} {name}"));
        let (result, outlet) = played(&at(name));
        assert_eq!((result.unwrap(), outlet.repairs("file cut off")), (EndReason::Eof, 0), "{name}");
        let whole = std::fs::read(at(name)).unwrap();
        std::fs::write(at("cut"), &whole[..whole.len() * 2 / 3]).unwrap();
        let (_, outlet) = played(&at("cut"));
        assert_eq!(outlet.repairs("file cut off"), 1, "{name}: {:?}", outlet.repaired);
        assert!(outlet.repaired.iter().any(|(_, detail)| detail.contains(declared)), "{:?}", outlet.repaired);
        let [gap] = &outlet.gaps[..] else { panic!("{:?}", outlet.gaps) };
        assert!(gap.reason.contains("is cut off: it ends after"), "{gap:?}");
    }
    // A short clip, of which a few pictures are missing.
    ffmpeg(folder.path(), &format!("{CLIP} short.mkv"));
    assert_eq!(played(&at("short.mkv")).1.gaps, []);
    let short = std::fs::read(at("short.mkv")).unwrap();
    std::fs::write(at("cut"), &short[..short.len() * 4 / 5]).unwrap();
    let outlet = played(&at("cut")).1;
    assert!((25..50).contains(&outlet.emitted), "{} pictures", outlet.emitted);
    assert_eq!((outlet.repairs("file cut off"), outlet.gaps.len()), (1, 1), "{:?}", outlet.repaired);
    // A longer audio track says nothing about the video track.
    let audio = "-f lavfi -i sine=duration=20";
    ffmpeg(folder.path(), &format!("{audio} {video} -c:a aac longer.mkv"));
    assert_eq!(played(&at("longer.mkv")).1.repaired, []);
}

#[test]
fn after_the_first_damage_everything_is_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    ffmpeg(folder.path(), &format!("{} whole.ts", CLIP.replace("duration=2", "duration=8")));
    let mut damaged = std::fs::read(at("whole.ts")).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 3000].iter_mut().for_each(|byte| *byte ^= 0x5a);
    std::fs::write(at("damaged.ts"), &damaged).unwrap();
    let mostly = |name: &str| {
        let (_, outlet) = sampled(&at(name), &plain(), 1);
        let tail: Vec<u64> = outlet.offered.iter().map(|(seq, _)| *seq).filter(|seq| *seq >= 130).collect();
        (tail.len() as u64 == tail[tail.len() - 1] - 129, outlet)
    };
    let (full, outlet) = mostly("whole.ts");
    assert!(!full && outlet.repaired.is_empty(), "{:?}", outlet.repaired);
    let (full, outlet) = mostly("damaged.ts");
    assert!(full && !outlet.repaired.is_empty(), "{:?}: {:?}", outlet.repaired, outlet.offered);
    assert!(outlet.skipped > 0);
}

#[test]
fn the_smallest_and_the_largest_pictures_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    ffmpeg(
        folder.path(),
        "-f lavfi -i color=c=red:size=2x2:rate=5:duration=1,format=yuv444p,crop=1:1 -c:v ffv1 -pix_fmt yuv420p tiny.mkv",
    );
    ffmpeg(folder.path(), "-f lavfi -i color=c=red:size=7680x4320 -frames:v 1 -c:v mjpeg large.mkv");
    let (result, outlet) = played(&folder.path().join("tiny.mkv"));
    assert_eq!(result.unwrap(), EndReason::Eof);
    assert_eq!(outlet.emitted, 5);
    let frame = &outlet.frames[0].frame;
    assert_eq!((frame.width, frame.height, frame.rows(0).count(), frame.rows(2).count()), (1, 1, 1, 1));
    let (result, outlet) = played(&folder.path().join("large.mkv"));
    assert_eq!(result.unwrap(), EndReason::Eof);
    let frame = &outlet.frames[0].frame;
    assert_eq!((frame.width, frame.height), (7680, 4320));
    assert_eq!(frame.rows(0).map(<[u8]>::len).sum::<usize>(), 7680 * 4320);
    let parameters = Demuxer::open(&folder.path().join("large.mkv"), &Tracks::Best, &|| false).unwrap().parameters();
    assert!(picture::expected_bytes(&parameters).unwrap() >= frame.bytes());
}

#[test]
fn a_change_of_size_opens_the_stream_again() {
    let folder = tempfile::tempdir().unwrap();
    ffmpeg(folder.path(), &format!("{CLIP} first.ts"));
    ffmpeg(folder.path(), &format!("{} second.ts", CLIP.replace("96x64", "128x80")));
    let mut both = std::fs::read(folder.path().join("first.ts")).unwrap();
    both.extend(std::fs::read(folder.path().join("second.ts")).unwrap());
    std::fs::write(folder.path().join("both.ts"), both).unwrap();
    let (result, outlet) = played(&folder.path().join("both.ts"));
    assert_eq!(result.unwrap(), EndReason::Eof);
    let sizes: Vec<_> = outlet
        .opens
        .iter()
        .map(|info| match info.tracks[0].format {
            TrackFormat::Video { width, height, .. } => (width, height),
            TrackFormat::Audio { .. } => (0, 0),
        })
        .collect();
    assert_eq!(sizes, [(96, 64), (128, 80)]);
    assert_eq!(outlet.emitted, 100);
    assert_eq!((outlet.frames[49].frame.width, outlet.frames[50].frame.width), (96, 128));
    assert_eq!(outlet.repairs("backward timestamp"), 1, "{:?}", outlet.repaired);
    assert_eq!(outlet.frames[99].seq, 99);
    let seconds = outlet.frames[99].pts.as_seconds();
    assert!((3.9..4.1).contains(&seconds), "{seconds}");
}

/// Each format holds the same red, whatever it is stored as.
#[test]
fn every_pixel_format_becomes_one_of_ours() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("yuv420p", PixelFormat::Yuv420p),
        ("yuv422p", PixelFormat::Yuv422p),
        ("yuv444p", PixelFormat::Yuv444p),
        ("yuv420p10le", PixelFormat::Yuv420p),
        ("yuv422p12le", PixelFormat::Yuv422p),
        ("yuv444p16le", PixelFormat::Yuv444p),
        ("yuva420p", PixelFormat::Yuv420p),
        ("yuv410p", PixelFormat::Yuv444p),
        ("yuv440p", PixelFormat::Yuv444p),
        ("bgr0", PixelFormat::Rgb24),
        ("bgra", PixelFormat::Rgb24),
        ("gbrp", PixelFormat::Rgb24),
        ("gbrp10le", PixelFormat::Rgb24),
        ("gray", PixelFormat::Gray8),
        ("gray16le", PixelFormat::Gray8),
    ];
    for (pixel, expected) in cases {
        let codec = if pixel.starts_with("gray16") || pixel == "yuv440p" { "rawvideo" } else { "ffv1" };
        let source = "-f lavfi -i color=c=red:size=50x38:rate=5 -frames:v 1";
        ffmpeg(folder.path(), &format!("{source} -pix_fmt {pixel} -c:v {codec} {pixel}.nut"));
        let (result, outlet) = played(&folder.path().join(format!("{pixel}.nut")));
        assert_eq!(result.unwrap(), EndReason::Eof, "{pixel}");
        assert_eq!(outlet.failures.len(), 0, "{pixel}: {:?}", outlet.failures);
        let frame = &outlet.frames[0].frame;
        assert_eq!(frame.format, expected, "{pixel}");
        // Red in limited BT.601 is Y 81, U 90, V 240 (BT.601); as full-range grey 76.
        let wanted: &[&[u8]] = match expected {
            PixelFormat::Rgb24 => &[&[253, 0, 0]],
            PixelFormat::Gray8 => &[&[76]],
            _ => &[&[81], &[90], &[240]],
        };
        for (plane, samples) in wanted.iter().enumerate() {
            for row in frame.rows(plane) {
                for (got, wanted) in row.iter().zip(samples.iter().cycle()) {
                    assert!(got.abs_diff(*wanted) <= 2, "{pixel}, plane {plane}: {got} for {wanted}");
                }
            }
        }
        let full = matches!(expected, PixelFormat::Rgb24 | PixelFormat::Gray8);
        assert_eq!(frame.range == ColorRange::Full, full, "{pixel}");
    }
}

#[test]
fn cropping_is_exact_to_the_pixel() {
    let folder = tempfile::tempdir().unwrap();
    ffmpeg(folder.path(), &format!("{CLIP} -qp 0 -profile:v high444 whole.mkv"));
    let crop = "h264_metadata=crop_left=6:crop_right=10:crop_top=4:crop_bottom=2";
    ffmpeg(folder.path(), &format!("-i whole.mkv -c copy -bsf:v {crop} cropped.mkv"));
    let (_, whole) = played(&folder.path().join("whole.mkv"));
    let (_, cropped) = played(&folder.path().join("cropped.mkv"));
    let (whole, cropped) = (&whole.frames[30].frame, &cropped.frames[30].frame);
    assert_eq!((cropped.width, cropped.height), (80, 58));
    for (row, reference) in cropped.rows(0).zip(whole.rows(0).skip(4)) {
        assert_eq!(row, &reference[6..86]);
    }
    for (row, reference) in cropped.rows(1).zip(whole.rows(1).skip(2)) {
        assert_eq!(row, &reference[3..43]);
    }
}

/// A clock on which waiting takes no time.
struct Impatient {
    now: Mutex<Instant>,
}

impl Clock for Impatient {
    fn now(&self) -> Instant {
        *self.now.lock().unwrap()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn wait(&self, deadline: Instant, at_most: Duration) {
        let mut now = self.now.lock().unwrap();
        *now = deadline.min(*now + at_most).max(*now);
    }
}

#[test]
fn in_realtime_each_picture_comes_when_it_is_due() {
    let folder = tempfile::tempdir().unwrap();
    ffmpeg(folder.path(), &format!("{CLIP} clip.mp4"));
    let start = SimulatedClock::default().now();
    let clock = Arc::new(Impatient { now: Mutex::new(start) });
    let seen = Rc::new(RefCell::new(Vec::new()));
    let (sink, watch) = (seen.clone(), clock.clone());
    let mut outlet = RecordingOutlet::new(clock)
        .stop_after(120)
        .observe(move |_, pts, _| sink.borrow_mut().push((pts.as_duration(), watch.now() - start)));
    let settings = Settings { realtime: true, repeat: true, ..plain() };
    assert_eq!(play(&folder.path().join("clip.mp4"), &settings, &mut outlet).unwrap(), EndReason::Stopped);
    let seen = seen.take();
    assert_eq!(seen.len(), 120);
    for (index, (pts, at)) in seen.iter().enumerate() {
        assert_eq!((*pts, *at), (Duration::from_millis(40 * index as u64), *pts));
    }
}

#[test]
fn a_stopped_stream_is_not_even_opened() {
    let folder = tempfile::tempdir().unwrap();
    ffmpeg(folder.path(), &format!("{CLIP} clip.mp4"));
    let path = folder.path().join("clip.mp4");
    assert_eq!(Demuxer::open(&path, &Tracks::Best, &|| true).err(), Some(DemuxError::Stopped));
    let mut outlet = RecordingOutlet::default().stop_after(0);
    assert_eq!(play(&path, &plain(), &mut outlet).unwrap(), EndReason::Stopped);
    assert_eq!(outlet.offered, []);
}

/// Checksums of all pictures of a file, by the ffmpeg command.
fn by_the_command(path: &Path) -> Vec<String> {
    let output = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-i"])
        .arg(path)
        .args(["-an", "-fps_mode", "passthrough", "-f", "framemd5", "-"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit(',').next().unwrap().trim().to_owned()).collect()
}

#[test]
fn leaving_pictures_out_changes_no_other_and_no_number() {
    let folder = tempfile::tempdir().unwrap();
    let source = "-f lavfi -i testsrc2=size=96x64:rate=25:duration=4";
    let x264 = "-c:v libx264 -pix_fmt yuv420p -g 20";
    let x265 = "-c:v libx265 -pix_fmt yuv420p -g 20 -bf 4 -x265-params log-level=none";
    // Codec and container, and whether pictures can be left out of it.
    let cases = [
        (format!("{x264} -bf 3 -x264-params b-pyramid=normal:open-gop=1 open.ts"), true),
        (format!("{x264} -bf 7 -x264-params b-adapt=0:b-pyramid=strict deep.mkv"), true),
        (format!("{x264} -bf 2 -flags +ildct -x264-params tff=1 interlaced.mp4"), false),
        (format!("{x264} -bf 2 without_stamps.avi"), false),
        (format!("{x265}:open-gop=1 open.mkv"), true),
        (format!("{x265}:open-gop=0:temporal-layers=3 layers.mp4"), true),
        ("-c:v mpeg2video -bf 2 -g 12 old.ts".to_owned(), true),
        ("-c:v mpeg4 -bf 2 -g 12 old.avi".to_owned(), false),
        ("-c:v mjpeg -q:v 3 -pix_fmt yuvj420p stills.mkv".to_owned(), true),
        ("-c:v prores -pix_fmt yuv422p10le stills.mov".to_owned(), true),
        ("-c:v libvpx-vp9 -auto-alt-ref 1 -lag-in-frames 16 -g 40 hidden.webm".to_owned(), false),
        ("-c:v libvpx -auto-alt-ref 1 -lag-in-frames 16 -g 40 hidden8.webm".to_owned(), false),
    ];
    let mut files: Vec<(String, bool)> = Vec::new();
    for (arguments, skips) in cases {
        ffmpeg(folder.path(), &format!("{source} {arguments}"));
        files.push((arguments.rsplit(' ').next().unwrap().to_owned(), skips));
    }
    // Starts in the middle of a GOP: pictures before the cut are decoded and hidden.
    ffmpeg(folder.path(), &format!("{source} {x264} -bf 3 plain.mp4"));
    ffmpeg(folder.path(), "-ss 0.5 -i plain.mp4 -c copy edited.mp4");
    files.push(("edited.mp4".to_owned(), true));
    for (name, skips) in files {
        let path = folder.path().join(&name);
        let reference = by_the_command(&path);
        assert!(reference.len() >= 85, "{name}: {}", reference.len());
        let settings = |skip| Settings { skip, ..plain() };
        let (baseline, _) = sampled(&path, &settings(false), 1);
        assert!(baseline.len() >= 6, "{name}: {baseline:?}");
        for (skip, threads) in [(false, 4), (true, 1), (true, 4)] {
            let label = format!("{name}, skip {skip}, {threads} threads");
            let (got, outlet) = sampled(&path, &settings(skip), threads);
            assert_eq!(got, baseline, "{label}");
            assert_eq!(outlet.offered.len() as u64 + outlet.skipped, reference.len() as u64, "{label}");
            // The command's sums are of ten bits.
            let reference = if name == "stills.mov" { &[] } else { &reference[..] };
            for (seq, _, md5) in got.iter().filter(|_| !reference.is_empty()) {
                assert_eq!(*md5, reference[*seq as usize], "{label}: picture {seq}");
            }
            assert_eq!(outlet.skipped > 0, skip && skips, "{label}: {} left undecoded", outlet.skipped);
        }
    }
}

/// Skipping and not, on one thread and on four: the same numbers, times and totals, and the same pictures where the
/// file is whole.
fn assert_skipping_changes_nothing(path: &Path, fps: u32, whole: bool) {
    let sampler = || Sampler::new(Rate { numerator: fps.into(), denominator: 1 }, Duration::ZERO);
    let (baseline, plainly) = sampled_by(sampler(), path, &Settings { skip: false, ..plain() }, 1);
    assert!(baseline.len() >= 6, "{baseline:?}");
    for threads in [1, 4] {
        let label = format!("{} at {fps}, {threads} threads", path.display());
        let (got, outlet) = sampled_by(sampler(), path, &plain(), threads);
        let places = |sampled: &[Sampled]| sampled.iter().map(|(seq, micros, _)| (*seq, *micros)).collect::<Vec<_>>();
        assert_eq!(places(&got), places(&baseline), "{label}");
        assert!(!whole || got == baseline, "{label}: {got:?} for {baseline:?}");
        assert_eq!(outlet.offered.len() as u64 + outlet.skipped, plainly.offered.len() as u64, "{label}");
    }
}

/// Once in `seconds`, and the first picture.
fn seldom(seconds: u64) -> Sampler {
    Sampler::new(Rate { numerator: 1, denominator: seconds }, Duration::ZERO)
}

#[test]
fn groups_without_a_wanted_picture_are_not_decoded_and_nothing_else_changes() {
    let folder = tempfile::tempdir().unwrap();
    let source = "-f lavfi -i testsrc2=size=96x64:rate=25:duration=40";
    let x264 = "-c:v libx264 -pix_fmt yuv420p -g 20 -sc_threshold 0";
    let x265 = "-c:v libx265 -pix_fmt yuv420p -g 20 -bf 4 -x265-params log-level=none:scenecut=0";
    // Whether decoding starts anew in each group, with nothing before it needed.
    let cases = [
        (format!("{x264} -bf 0 plain.ts"), true),
        (format!("{x264} -bf 3 -x264-params b-pyramid=normal b_frames.mp4"), true),
        (format!("{x264} -bf 3 -x264-params b-pyramid=normal b_frames.flv"), true),
        (format!("{x264} -bf 3 -x264-params open-gop=1 open.ts"), false),
        (format!("{x264} -bf 0 -x264-params intra-refresh=1 little_by_little.ts"), false),
        (format!("{x265}:open-gop=0 closed.mkv"), true),
        (format!("{x265}:open-gop=1 open.mkv"), false),
    ];
    for (arguments, is_closed) in cases {
        ffmpeg(folder.path(), &format!("{source} {arguments}"));
        let name = arguments.rsplit(' ').next().unwrap();
        let path = folder.path().join(name);
        let (baseline, plainly) = sampled_by(seldom(5), &path, &Settings { skip: false, ..plain() }, 1);
        assert_eq!((baseline.len(), plainly.offered.len()), (8, 1000), "{name}");
        for threads in [1, 4] {
            let (got, outlet) = sampled_by(seldom(5), &path, &plain(), threads);
            assert_eq!(got, baseline, "{name}, {threads} threads");
            assert_eq!(outlet.offered.len() as u64 + outlet.skipped, 1000, "{name}, {threads} threads");
            assert_eq!(outlet.repaired, [], "{name}, {threads} threads");
            let few = outlet.offered.len() < 333;
            assert_eq!(few, is_closed, "{name}, {threads} threads: {} decoded", outlet.offered.len());
        }
    }
}

#[test]
fn groups_that_are_left_out_keep_the_numbers_where_time_jumps_back_and_in_a_loop() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = "-f lavfi -i testsrc2=size=96x64:rate=25:duration=20";
    ffmpeg(folder.path(), &format!("{source} -c:v libx264 -pix_fmt yuv420p -g 20 -sc_threshold 0 -bf 2 once.ts"));
    let once = std::fs::read(at("once.ts")).unwrap();
    std::fs::write(at("twice.ts"), [&once[..], &once].concat()).unwrap();
    let (baseline, _) = sampled_by(seldom(3), &at("twice.ts"), &Settings { skip: false, ..plain() }, 1);
    for threads in [1, 4] {
        let (got, outlet) = sampled_by(seldom(3), &at("twice.ts"), &plain(), threads);
        assert_eq!(got, baseline, "{threads} threads");
        assert_eq!(outlet.offered.len() as u64 + outlet.skipped, 1000, "{threads} threads");
    }
    let looped = |skip| {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let sink = seen.clone();
        let mut outlet = RecordingOutlet::default()
            .sampling(seldom(3))
            .stop_after(20)
            .observe(move |seq, pts, frame| sink.borrow_mut().push((seq, pts, md5(&frame))));
        let settings = Settings { repeat: true, skip, ..plain() };
        assert_eq!(play(&at("once.ts"), &settings, &mut outlet).unwrap(), EndReason::Stopped);
        assert_eq!(outlet.offered.len() < 700, skip, "{}", outlet.offered.len());
        seen.take()
    };
    assert_eq!(looped(true), looped(false));
}

/// In a program stream, most of what other pictures refer to has no stamp.
#[test]
fn leaving_pictures_out_keeps_the_numbers_where_stamps_are_missing() {
    let folder = tempfile::tempdir().unwrap();
    for (name, seconds, fps) in [("stream.vob", 2, 5), ("stream.mpg", 9, 8), ("stream.mpg", 9, 3)] {
        let source = format!("-f lavfi -i testsrc2=size=160x120:rate=25:duration={seconds}");
        ffmpeg(folder.path(), &format!("{source} -c:v mpeg2video -bf 2 {name}"));
        assert_skipping_changes_nothing(&folder.path().join(name), fps, true);
    }
}

#[test]
fn leaving_pictures_out_keeps_the_numbers_where_time_jumps_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = "-f lavfi -i testsrc2=size=160x120:rate=25:duration=2";
    for codec in ["libx264 -bf 3", "libx264 -bf 3 -x264-params open-gop=1:keyint=10", "mpeg2video -bf 2"] {
        ffmpeg(folder.path(), &format!("{source} -c:v {codec} once.ts"));
        // The second one starts a little before the end of the first.
        ffmpeg(folder.path(), "-i once.ts -c copy -output_ts_offset 1.9 later.ts");
        let once = std::fs::read(at("once.ts")).unwrap();
        let later = std::fs::read(at("later.ts")).unwrap();
        std::fs::write(at("twice.ts"), [&once[..], &once].concat()).unwrap();
        std::fs::write(at("overlapping.ts"), [&once[..], &later].concat()).unwrap();
        std::fs::write(at("cut.ts"), [&once[..once.len() / 188 * 2 / 3 * 188], &once].concat()).unwrap();
        for fps in [2, 5, 8] {
            assert_skipping_changes_nothing(&at("twice.ts"), fps, true);
            assert_skipping_changes_nothing(&at("overlapping.ts"), fps, true);
            assert_skipping_changes_nothing(&at("cut.ts"), fps, false);
        }
    }
}

#[test]
fn leaving_pictures_out_keeps_the_time_of_a_loop() {
    let folder = tempfile::tempdir().unwrap();
    let source = "-f lavfi -i testsrc2=size=96x64:rate=25:duration=2";
    ffmpeg(folder.path(), &format!("{source} -c:v mjpeg -pix_fmt yuvj420p stills.mkv"));
    let looped = |skip| {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let sink = seen.clone();
        let mut outlet = RecordingOutlet::default()
            .sampling(Sampler::new(Rate { numerator: 3, denominator: 1 }, Duration::ZERO))
            .stop_after(15)
            .observe(move |seq, pts, _| sink.borrow_mut().push((seq, pts)));
        let settings = Settings { repeat: true, skip, ..plain() };
        assert_eq!(play(&folder.path().join("stills.mkv"), &settings, &mut outlet).unwrap(), EndReason::Stopped);
        assert_eq!(outlet.skipped > 0, skip);
        seen.take()
    };
    assert_eq!(looped(true), looped(false));
}

/// The numbers of a file's keyframes among all its pictures, by the ffprobe command.
fn keyframes_by_the_command(path: &Path) -> Vec<u64> {
    let output = Command::new("ffprobe")
        .args(["-loglevel", "error", "-select_streams", "v", "-show_entries", "frame=key_frame", "-of", "flat"])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let flags = text.lines().filter(|line| line.contains(".key_frame="));
    (0..).zip(flags).filter(|(_, flag)| flag.ends_with("=1")).map(|(number, _)| number).collect()
}

/// Number, microseconds and checksum of every picture that is decoded.
fn every_picture(path: &Path, settings: &Settings) -> (Vec<Sampled>, RecordingOutlet) {
    // Far more often than there are pictures.
    sampled_by(Sampler::new(Rate { numerator: 1000, denominator: 1 }, Duration::ZERO), path, settings, 4)
}

fn keyframes_only() -> Settings {
    Settings { keyframes_only: true, ..plain() }
}

#[test]
fn keyframes_alone_have_the_pictures_numbers_and_times_of_a_full_decode() {
    let folder = tempfile::tempdir().unwrap();
    let source = "-f lavfi -i testsrc2=size=96x64:rate=25:duration=4";
    let x264 = "-c:v libx264 -pix_fmt yuv420p -g 20 -sc_threshold 0";
    let x265 = "-c:v libx265 -pix_fmt yuv420p -g 20 -bf 4 -x265-params log-level=none:scenecut=0";
    let cases = [
        format!("{x264} -bf 0 plain.ts"),
        format!("{x264} -bf 3 -x264-params b-pyramid=normal:open-gop=1 open.ts"),
        format!("{x264} -bf 7 -x264-params b-adapt=0:b-pyramid=strict deep.mkv"),
        format!("{x264} -bf 2 -flags +ildct -x264-params tff=1 interlaced.mp4"),
        format!("{x265}:open-gop=1 open.mkv"),
        format!("{x265}:open-gop=0:temporal-layers=3 layers.mp4"),
        "-c:v mpeg2video -bf 2 -g 12 open_gop.ts".to_owned(),
        "-c:v mjpeg -q:v 3 -pix_fmt yuvj420p stills.mkv".to_owned(),
    ];
    let mut files: Vec<String> = Vec::new();
    for arguments in cases {
        ffmpeg(folder.path(), &format!("{source} {arguments}"));
        files.push(arguments.rsplit(' ').next().unwrap().to_owned());
    }
    // Starts in the middle of a GOP: its first keyframe is decoded and hidden, and the pictures behind it are shown.
    ffmpeg(folder.path(), &format!("{source} {x264} -bf 3 whole.mp4"));
    ffmpeg(folder.path(), "-ss 0.5 -i whole.mp4 -c copy edited.mp4");
    files.push("edited.mp4".to_owned());
    for name in files {
        let path = folder.path().join(&name);
        let (all, plainly) = every_picture(&path, &Settings { skip: false, ..plain() });
        let (alone, outlet) = every_picture(&path, &keyframes_only());
        for (seq, micros, md5) in &alone {
            assert_eq!(Some(&(*seq, *micros, md5.clone())), all.get(*seq as usize), "{name}, picture {seq}");
        }
        let numbers: Vec<u64> = alone.iter().map(|(seq, ..)| *seq).collect();
        assert_eq!(numbers, keyframes_by_the_command(&path), "{name}");
        assert!(alone.len() >= 4, "{name}: {alone:?}");
        assert_eq!(outlet.offered.len() as u64 + outlet.skipped, plainly.offered.len() as u64, "{name}");
        assert_eq!(outlet.skipped == 0, name == "stills.mkv", "{name}: {}", outlet.skipped);
        assert_eq!(outlet.repaired, [], "{name}");
        // Of keyframes that nobody wants, not one is decoded.
        let slow = || Sampler::new(Rate { numerator: 1, denominator: 2 }, Duration::ZERO);
        let (few, sampling) = sampled_by(slow(), &path, &keyframes_only(), 4);
        let (same, _) = sampled_by(slow(), &path, &Settings { skip: false, ..keyframes_only() }, 4);
        assert_eq!(few, same, "{name}");
        assert_eq!((few.len(), sampling.offered.len()), (2, 2), "{name}");
    }
}

#[test]
fn keyframes_alone_keep_the_numbers_and_the_time_of_a_loop() {
    let folder = tempfile::tempdir().unwrap();
    let source = "-f lavfi -i testsrc2=size=96x64:rate=25:duration=2";
    ffmpeg(folder.path(), &format!("{source} -c:v libx264 -pix_fmt yuv420p -g 20 -sc_threshold 0 -bf 2 clip.mp4"));
    let seen = Rc::new(RefCell::new(Vec::new()));
    let sink = seen.clone();
    let mut outlet = RecordingOutlet::default()
        .stop_after(8)
        .observe(move |seq, pts, _| sink.borrow_mut().push((seq, pts.as_micros())));
    let settings = Settings { repeat: true, ..keyframes_only() };
    assert_eq!(play(&folder.path().join("clip.mp4"), &settings, &mut outlet).unwrap(), EndReason::Stopped);
    let expected = [0, 20, 40, 50, 70, 90, 100, 120].map(|seq| (seq, seq as i64 * 40_000));
    assert_eq!(seen.take(), expected);
    assert_eq!(outlet.repaired, []);
}

#[test]
fn keyframes_alone_in_realtime_are_due_when_they_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let source = "-f lavfi -i testsrc2=size=96x64:rate=25:duration=2";
    ffmpeg(folder.path(), &format!("{source} -c:v libx264 -pix_fmt yuv420p -g 20 -sc_threshold 0 -bf 2 clip.mp4"));
    let start = SimulatedClock::default().now();
    let clock = Arc::new(Impatient { now: Mutex::new(start) });
    let seen = Rc::new(RefCell::new(Vec::new()));
    let (sink, watch) = (seen.clone(), clock.clone());
    let mut outlet = RecordingOutlet::new(clock.clone())
        .observe(move |_, pts, _| sink.borrow_mut().push((pts.as_duration(), watch.now() - start)));
    let settings = Settings { realtime: true, ..keyframes_only() };
    assert_eq!(play(&folder.path().join("clip.mp4"), &settings, &mut outlet).unwrap(), EndReason::Eof);
    // A keyframe may wait for the picture behind it.
    for (pts, at) in seen.take() {
        assert!(
            (Duration::ZERO..=Duration::from_millis(200)).contains(&(at.saturating_sub(pts))) && at >= pts,
            "{pts:?} {at:?}"
        );
    }
    assert_eq!((outlet.emitted, outlet.skipped), (3, 47));
    assert!(clock.now() - start >= Duration::from_millis(1900), "what is passed over takes its time too");
}

#[test]
fn a_damaged_keyframe_costs_itself_alone() {
    let folder = tempfile::tempdir().unwrap();
    let source = "-f lavfi -i testsrc2=size=96x64:rate=25:duration=4";
    ffmpeg(folder.path(), &format!("{source} -c:v libx264 -pix_fmt yuv420p -g 20 -sc_threshold 0 -bf 2 whole.ts"));
    let whole = std::fs::read(folder.path().join("whole.ts")).unwrap();
    let (undamaged, _) = every_picture(&folder.path().join("whole.ts"), &keyframes_only());
    assert_eq!(undamaged.len(), 5);
    let mut damaged = whole.clone();
    let middle = whole.len() / 188 / 2 * 188;
    damaged[middle..middle + 40 * 188].iter_mut().for_each(|byte| *byte ^= 0x5a);
    std::fs::write(folder.path().join("damaged.ts"), damaged).unwrap();
    let (left, outlet) = every_picture(&folder.path().join("damaged.ts"), &keyframes_only());
    assert!(!outlet.repaired.is_empty());
    let same = left.iter().filter(|(_, _, md5)| undamaged.iter().any(|(_, _, other)| other == md5)).count();
    assert!(same >= 3, "{left:?} of {undamaged:?}");
    assert!(left.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1), "{left:?}");
}

#[test]
fn a_file_without_a_keyframe_says_that_only_these_are_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let source = "-f lavfi -i testsrc2=size=96x64:rate=25:duration=4";
    ffmpeg(folder.path(), &format!("{source} -c:v mpeg2video -g 50 -bf 0 whole.ts"));
    // From behind the first keyframe to before the second.
    let whole = std::fs::read(folder.path().join("whole.ts")).unwrap();
    let part =
        |from: usize, to: usize| &whole[whole.len() * from / 100 / 188 * 188..whole.len() * to / 100 / 188 * 188];
    std::fs::write(folder.path().join("part.ts"), part(15, 45)).unwrap();
    let result = play(&folder.path().join("part.ts"), &keyframes_only(), &mut RecordingOutlet::default());
    let message = result.unwrap_err().to_string();
    assert!(message.contains("no keyframe came, and only these are decoded (`keyframes_only`)"), "{message}");
}

/// Small clips in several containers and codecs, made once.
fn seeds() -> &'static [Vec<u8>] {
    static SEEDS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    SEEDS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = "-f lavfi -i testsrc2=size=48x32:rate=10:duration=1";
        let variants = [
            "-c:v libx264 -pix_fmt yuv420p -movflags +faststart seed.mp4",
            "-c:v libx264 -pix_fmt yuv420p seed.ts",
            "-c:v libvpx-vp9 -pix_fmt yuv420p seed.webm",
            "-c:v mpeg4 -bf 2 seed.avi",
            "-c:v libx265 -x265-params log-level=none -pix_fmt yuv420p seed.mkv",
            "-c:v flv seed.flv",
            "-c:v gif seed.gif",
        ];
        let bytes = variants.iter().map(|variant| {
            ffmpeg(folder.path(), &format!("{source} {variant}"));
            let name = variant.rsplit(' ').next().unwrap();
            std::fs::read(folder.path().join(name)).unwrap()
        });
        bytes.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever a file holds, playing it ends, with an answer.
    #[test]
    fn no_file_panics_or_hangs(
        seed in any::<prop::sample::Index>(),
        kept in 0usize..=100,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
        noise in proptest::option::weighted(0.2, proptest::collection::vec(any::<u8>(), 0..4000)),
        threads in 1usize..4,
    ) {
        let mut bytes = noise.unwrap_or_else(|| seed.get(seeds()).clone());
        bytes.truncate(bytes.len() * kept / 100);
        for (at, value) in damage {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let mut outlet = RecordingOutlet::default().threads(threads).sampling(twice_a_second());
        match play(file.path(), &plain(), &mut outlet) {
            Ok(reason) => prop_assert_eq!(reason, EndReason::Eof),
            Err(error) => prop_assert!(error.to_string().contains(file.path().to_str().unwrap()), "{}", error),
        }
        prop_assert!(outlet.offered.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", outlet.offered);
        prop_assert!(outlet.failures.is_empty(), "{:?}", outlet.failures);
    }
}

/// The first picture as the ffmpeg command shows it: turned upright, planes of 8 bits one after the other.
fn shown(path: &Path) -> Vec<u8> {
    let output = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-i"])
        .arg(path)
        .args(["-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "rawvideo", "-"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn samples(frame: &crate::item::Frame) -> Vec<u8> {
    (0..frame.format.planes()).flat_map(|plane| frame.rows(plane).flatten().copied().collect::<Vec<u8>>()).collect()
}

#[test]
fn pictures_that_are_stored_turned_stand_upright() {
    let folder = tempfile::tempdir().unwrap();
    ffmpeg(folder.path(), "-f lavfi -i testsrc2=size=96x64:rate=5 -frames:v 3 -c:v libx264 -pix_fmt yuv420p plain.mp4");
    for (degrees, size) in [(0, (96, 64)), (90, (64, 96)), (180, (96, 64)), (270, (64, 96))] {
        let name = format!("turned-{degrees}.mp4");
        ffmpeg(folder.path(), &format!("-i plain.mp4 -c copy -metadata:s:v:0 rotate={degrees} {name}"));
        let path = folder.path().join(&name);
        let (result, outlet) = played(&path);
        assert_eq!(result.unwrap(), EndReason::Eof);
        let sizes: Vec<_> = outlet
            .opens
            .iter()
            .map(|info| match info.tracks[0].format {
                TrackFormat::Video { width, height, .. } => (width, height),
                TrackFormat::Audio { .. } => (0, 0),
            })
            .collect();
        assert_eq!(sizes, [size], "{name}: a turned stream opens once, upright");
        let frame = &outlet.frames[0].frame;
        assert_eq!((frame.width, frame.height), size, "{name}");
        assert!(samples(frame) == shown(&path), "{name} looks different than in ffmpeg");
    }
}

#[test]
fn ten_bits_become_the_nearest_eight() {
    let folder = tempfile::tempdir().unwrap();
    for (codec, name) in [("libx264", "h264.mp4"), ("libx265 -x265-params log-level=none", "hevc.mp4")] {
        let source = "-f lavfi -i testsrc2=size=96x64:rate=5 -frames:v 3";
        ffmpeg(folder.path(), &format!("{source} -pix_fmt yuv420p10le -c:v {codec} {name}"));
        let path = folder.path().join(name);
        let (result, outlet) = played(&path);
        assert_eq!(result.unwrap(), EndReason::Eof);
        let frame = &outlet.frames[0].frame;
        assert_eq!((frame.format, outlet.frames.len()), (PixelFormat::Yuv420p, 3));
        let (ours, theirs) = (samples(frame), shown(&path));
        assert_eq!(ours.len(), theirs.len());
        // Both round or dither the two bits that go.
        let worst = ours.iter().zip(&theirs).map(|(ours, theirs)| ours.abs_diff(*theirs)).max();
        assert!(worst <= Some(1), "{name}: {worst:?}");
    }
}
