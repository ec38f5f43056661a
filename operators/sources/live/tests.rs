//! Live inputs that behave badly: small servers on loopback that send MPEG-TS over TCP, or do not.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::*;
use crate::backoff::Backoff;
use crate::clock::{Clock, SystemClock};
use crate::item::{StreamInfo, TrackFormat};
use crate::testing::RecordingOutlet;

/// Makes a clip of `seconds` with the `ffmpeg` program.
pub(super) fn clip(folder: &Path, name: &str, seconds: u32, size: &str, options: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i"])
        .arg(format!("testsrc=size={size}:rate=10:duration={seconds}"))
        .args(["-c:v", "libx264", "-preset", "ultrafast", "-g", "5", "-pix_fmt", "yuv420p"])
        .args(options)
        .arg(&path)
        .output()
        .expect("ffmpeg is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    path
}

/// What becomes of a connection.
enum Serve {
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// These bytes, then nothing more; the connection stays open.
    Freeze(Vec<u8>),
    /// These bytes little by little, as long as somebody listens.
    Trickle(Vec<u8>),
}

/// Between two pieces of what comes little by little.
const PACE: Duration = Duration::from_millis(10);

/// Serves one connection after the other, and then no more: connecting is refused.
fn serve(each: Vec<Serve>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut frozen: Vec<TcpStream> = Vec::new();
        for serve in each {
            let (mut stream, _) = listener.accept().unwrap();
            match serve {
                // A client that has gone is the test's affair.
                Serve::Bytes(bytes) => {
                    let _ = stream.write_all(&bytes).and_then(|()| stream.shutdown(Shutdown::Write));
                }
                Serve::Freeze(bytes) => {
                    let _ = stream.write_all(&bytes);
                    frozen.push(stream);
                }
                Serve::Trickle(bytes) => {
                    for few in bytes.chunks(7 * 188) {
                        if stream.write_all(few).is_err() {
                            break;
                        }
                        SystemClock.wait(SystemClock.now() + PACE, PACE);
                    }
                }
            }
        }
    });
    (address, thread)
}

fn settings(address: SocketAddr) -> Settings {
    Settings {
        url: format!("tcp://{address}"),
        protocol: Protocol::Other,
        connect_timeout: Duration::from_secs(20),
        read_timeout: Duration::from_secs(20),
        no_frame_for: Duration::from_secs(20),
        backoff: Backoff { first: Duration::from_millis(10), most: Duration::from_millis(20) },
        fallback: None,
        skip: true,
        keyframes_only: false,
    }
}

fn outlet() -> RecordingOutlet {
    RecordingOutlet::new(Arc::new(SystemClock))
}

fn play(settings: &Settings, outlet: &mut RecordingOutlet) {
    let stream = StreamId::sanitised("door");
    assert_eq!(run(&stream, settings, outlet).unwrap(), EndReason::Stopped);
}

fn size(info: &StreamInfo) -> (u32, u32) {
    match info.tracks[0].format {
        TrackFormat::Video { width, height, .. } => (width, height),
        TrackFormat::Audio { .. } => panic!("no video"),
    }
}

/// Numbers without a hole and time that only goes on.
fn assert_continuous(outlet: &RecordingOutlet) {
    for (n, pair) in outlet.offered.windows(2).enumerate() {
        let [(before, earlier), (after, later)] = pair else { unreachable!() };
        assert_eq!(before + 1, *after, "picture {n}");
        assert!(earlier < later, "picture {n}: {earlier} and then {later}");
    }
}

fn reasons(outlet: &RecordingOutlet) -> Vec<String> {
    outlet
        .states
        .iter()
        .map(|state| match state {
            SourceState::Running => "running".to_owned(),
            SourceState::Retrying { reason, attempts } => format!("retrying {attempts}: {reason}"),
            SourceState::Fallback { reason, attempts } => format!("fallback {attempts}: {reason}"),
        })
        .collect()
}

#[test]
fn an_input_that_ends_is_opened_again_and_numbers_and_time_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let small = std::fs::read(clip(folder.path(), "small.ts", 2, "160x120", &["-bf", "2"])).unwrap();
    let large = std::fs::read(clip(folder.path(), "large.ts", 2, "320x240", &[])).unwrap();
    let other = std::fs::read(clip(folder.path(), "other.ts", 2, "320x240", &["-c:v", "libx265"])).unwrap();
    let connections = [small.clone(), small, large, other];
    let (address, thread) = serve(connections.into_iter().map(Serve::Bytes).collect());
    let mut outlet = outlet().stop_after(70);
    play(&settings(address), &mut outlet);
    thread.join().unwrap();
    assert_continuous(&outlet);
    assert_eq!(outlet.offered.len(), 70);
    // 20 pictures of the small clip, 20 more, 20 of the large one, then of the other codec.
    let format = |info: &StreamInfo| (size(info), info.tracks[0].codec.clone());
    let formats = [((160, 120), "h264"), ((320, 240), "h264"), ((320, 240), "hevc")];
    let formats = formats.map(|(size, codec)| (size, codec.to_owned()));
    assert_eq!(outlet.opens.iter().map(format).collect::<Vec<_>>(), formats, "the same is no news");
    assert_eq!(outlet.gaps.iter().map(|gap| gap.seq).collect::<Vec<_>>(), [Some(20), Some(40), Some(60)]);
    // Two seconds of pictures, in an instant: each end is another failure in a row.
    let ended = |times: u64| format!("retrying {times}: the other side ended the stream");
    let running = || "running".to_owned();
    let expected = [running(), ended(1), running(), ended(2), running(), ended(3), running()];
    assert_eq!(reasons(&outlet), expected);
}

#[test]
fn after_damage_pictures_are_left_out_again_from_the_next_keyframe_on() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["-preset", "fast", "-bf", "2", "-b_strategy", "0", "-sc_threshold", "0", "-b:v", "2M"];
    let mut bytes = std::fs::read(clip(folder.path(), "a.ts", 20, "320x240", &options)).unwrap();
    // Some packets of 188 bytes in the second tenth of the clip are wiped out.
    let packets = bytes.len() / 188;
    for packet in (packets / 10..packets / 5).step_by(7) {
        bytes[packet * 188 + 4..(packet + 1) * 188].fill(0xa5);
    }
    let (address, thread) = serve(vec![Serve::Bytes(bytes)]);
    let rate = crate::config::Rate { numerator: 1, denominator: 2 };
    let sampler = crate::transforms::sample::Sampler::new(rate, Duration::ZERO);
    let mut outlet = outlet().sampling(sampler).stop_after(9);
    play(&settings(address), &mut outlet);
    thread.join().unwrap();
    assert!(outlet.repairs("corrupt packet") + outlet.repairs("damaged picture") > 0, "{:?}", outlet.repaired);
    // Before the damage there are some 20 pictures, of which some are wanted: further ones were left out behind it.
    assert!(outlet.skipped > 20, "{} of {}", outlet.skipped, outlet.offered.len());
}

#[test]
fn keyframes_alone_keep_the_numbers_of_all_pictures_over_connections() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(clip(folder.path(), "a.ts", 2, "160x120", &["-bf", "2", "-sc_threshold", "0"])).unwrap();
    let (address, thread) = serve(vec![Serve::Bytes(bytes.clone()), Serve::Bytes(bytes)]);
    let mut outlet = outlet().stop_after(8);
    play(&Settings { keyframes_only: true, ..settings(address) }, &mut outlet);
    thread.join().unwrap();
    let numbers: Vec<u64> = outlet.offered.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(numbers, [0, 5, 10, 15, 20, 25, 30, 35]);
    assert!(outlet.offered.windows(2).all(|pair| pair[0].1 < pair[1].1), "{:?}", outlet.offered);
    assert_eq!(outlet.gaps.iter().map(|gap| gap.seq).collect::<Vec<_>>(), [Some(20)]);
    // All of the first connection, and what comes before the last keyframe of the second.
    assert!((16 + 12..=16 + 16).contains(&outlet.skipped), "{}", outlet.skipped);
    assert_eq!(outlet.repaired, []);
}

#[test]
fn an_input_without_keyframes_is_lost_where_only_these_are_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["-g", "10000", "-sc_threshold", "0", "-b:v", "1M", "-vf", "noise=alls=20:allf=t"];
    let bytes = std::fs::read(clip(folder.path(), "a.ts", 60, "160x120", &options)).unwrap();
    let (address, thread) = serve(vec![Serve::Trickle(bytes)]);
    let mut outlet = outlet().stop_after_states(2);
    let short = Duration::from_secs(2);
    play(&Settings { keyframes_only: true, no_frame_for: short, ..settings(address) }, &mut outlet);
    thread.join().unwrap();
    let reasons = reasons(&outlet);
    assert_eq!(reasons[0], "running");
    let expected = "retrying 1: no picture for 2s: no keyframe came, and only these are decoded (`keyframes_only`)";
    assert!(reasons[1].starts_with(expected), "{reasons:?}");
    assert_eq!((outlet.emitted, outlet.offered[0].0), (1, 0));
    assert!(outlet.skipped > 0);
}

#[test]
fn silence_is_a_loss_whenever_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(clip(folder.path(), "a.ts", 8, "160x120", &[])).unwrap();
    let half = bytes[..bytes.len() / 2].to_vec();
    let (address, thread) = serve(vec![Serve::Freeze(Vec::new()), Serve::Freeze(half), Serve::Bytes(bytes)]);
    let mut outlet = outlet().stop_after_states(4);
    // Long beside what a busy machine needs to open a stream.
    let short = Duration::from_secs(3);
    play(&Settings { connect_timeout: short, read_timeout: short, ..settings(address) }, &mut outlet);
    thread.join().unwrap();
    let reasons = reasons(&outlet);
    let starts = ["retrying 1: no answer within 3s", "running", "retrying 2: nothing was received for 3s", "running"];
    assert_eq!(reasons.len(), starts.len(), "{reasons:?}");
    for (reason, start) in reasons.iter().zip(starts) {
        assert!(reason.starts_with(start), "{reason}");
    }
    assert_continuous(&outlet);
    // Nothing was missing before the first picture.
    assert_eq!(outlet.gaps.len(), 1, "{:?}", outlet.gaps);
}

#[test]
fn packets_without_pictures_are_no_progress() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(clip(folder.path(), "a.ts", 2, "160x120", &[])).unwrap();
    // Only sound goes on: nothing to look at is ever received.
    let sound = folder.path().join("sound.ts");
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", "sine=duration=2", "-c:a", "aac"])
        .arg(&sound)
        .status();
    assert!(made.unwrap().success());
    let (address, thread) = serve(vec![Serve::Bytes(std::fs::read(sound).unwrap()), Serve::Bytes(bytes)]);
    let mut outlet = outlet().stop_after(5);
    play(&settings(address), &mut outlet);
    thread.join().unwrap();
    let reasons = reasons(&outlet);
    assert!(reasons[0].starts_with("retrying 1: it has no video track"), "{reasons:?}");
    assert_eq!(reasons[1], "running");
}

#[test]
fn a_clock_that_jumps_is_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let early = clip(folder.path(), "early.ts", 2, "160x120", &[]);
    let late = clip(folder.path(), "late.ts", 2, "160x120", &["-output_ts_offset", "3600"]);
    let bytes =
        [std::fs::read(&early).unwrap(), std::fs::read(&late).unwrap(), std::fs::read(&early).unwrap()].concat();
    let (address, thread) = serve(vec![Serve::Bytes(bytes)]);
    let mut outlet = outlet().stop_after(55);
    play(&settings(address), &mut outlet);
    thread.join().unwrap();
    assert_continuous(&outlet);
    let last = outlet.offered.last().unwrap().1.as_seconds();
    assert!(last < 60.0, "an hour that did not pass: {last}");
    assert_eq!(
        (outlet.repairs("absurd timestamp"), outlet.repairs("backward timestamp")),
        (1, 1),
        "{:?}",
        outlet.repaired
    );
}

#[test]
fn an_input_that_shows_little_and_ends_reaches_its_fallback() {
    let folder = tempfile::tempdir().unwrap();
    let fallback = clip(folder.path(), "fallback.mp4", 1, "64x48", &[]);
    let short = std::fs::read(clip(folder.path(), "short.ts", 1, "160x120", &[])).unwrap();
    let (address, thread) = serve((0..3).map(|_| Serve::Bytes(short.clone())).collect());
    let mut outlet = outlet().stop_after(33);
    play(&Settings { fallback: Some(Fallback { path: fallback, after: 3 }), ..settings(address) }, &mut outlet);
    thread.join().unwrap();
    let reasons = reasons(&outlet);
    let starts = ["running", "retrying 1: ", "running", "retrying 2: ", "running", "fallback 3: "];
    assert!(reasons.iter().zip(starts).all(|(reason, start)| reason.starts_with(start)), "{reasons:?}");
    assert_eq!(outlet.opens.iter().map(size).collect::<Vec<_>>(), [(160, 120), (64, 48)]);
    let long = Duration::from_secs(20);
    assert_eq!(failures_before(2, long, &settings(address)), 0);
    assert_eq!(failures_before(2, long - Duration::from_millis(1), &settings(address)), 2);
}

#[test]
fn the_fallback_is_shown_until_the_camera_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let fallback = clip(folder.path(), "fallback.mp4", 1, "64x48", &[]);
    let camera = std::fs::read(clip(folder.path(), "camera.ts", 10, "160x120", &[])).unwrap();
    // The camera comes back when two rounds of the fallback have been shown; nobody else is given a port of this address.
    let listener = TcpListener::bind("127.0.77.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut count = 0;
    let sizes = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let seen = sizes.clone();
    // The camera may be found eight seconds later.
    let mut outlet = outlet().stop_after(115).observe(move |_, _, frame| {
        count += 1;
        seen.borrow_mut().push(frame.width);
        if count == 15 {
            let listener = TcpListener::bind(address).unwrap();
            let bytes = camera.clone();
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.write_all(&bytes).and_then(|()| stream.shutdown(Shutdown::Write));
            });
        }
    });
    let fallback = Some(Fallback { path: fallback, after: 2 });
    play(&Settings { fallback, ..settings(address) }, &mut outlet);
    assert_continuous(&outlet);
    let reasons = reasons(&outlet);
    assert!(reasons[0].starts_with("retrying 1: connection refused"), "{reasons:?}");
    assert!(reasons[1].starts_with("fallback 2: connection refused"), "{reasons:?}");
    let back = reasons.iter().position(|state| state == "running").expect("the camera is back");
    assert!(reasons[1..back].iter().all(|state| state.starts_with("fallback ")), "{reasons:?}");
    assert_eq!(outlet.opens.iter().map(size).collect::<Vec<_>>()[..2], [(64, 48), (160, 120)]);
    let sizes = sizes.borrow();
    let shown = sizes.iter().take_while(|width| **width == 64).count();
    assert!(shown >= 15, "{sizes:?}");
    assert_eq!(sizes[shown..shown + 20], [160; 20], "the camera is taken from its first picture on");
    assert_eq!(outlet.gaps[0].seq, Some(shown as u64));
}

#[test]
fn a_fallback_that_cannot_be_played_does_not_keep_the_camera_away() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.mp4");
    std::fs::write(&broken, "no video at all").unwrap();
    let camera = std::fs::read(clip(folder.path(), "camera.ts", 2, "160x120", &[])).unwrap();
    let failures = (0..10).map(|_| Serve::Bytes(Vec::new()));
    let (address, thread) = serve(failures.chain([Serve::Bytes(camera)]).collect());
    let mut outlet = outlet().stop_after(10);
    play(&Settings { fallback: Some(Fallback { path: broken, after: 1 }), ..settings(address) }, &mut outlet);
    thread.join().unwrap();
    assert_eq!(outlet.repairs("fallback"), 1, "{:?}", outlet.repaired);
    let reasons = reasons(&outlet);
    // What is wrong with it is told until the camera is back, however the search goes on.
    let (last, before) = reasons[1..].split_last().unwrap();
    assert!(
        !before.is_empty()
            && before.iter().all(|state| state.contains("and the fallback: ") && state.contains("broken.mp4")),
        "{reasons:?}"
    );
    assert_eq!(last, "running");
    assert_eq!(outlet.emitted, 10);
}
