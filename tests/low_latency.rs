//! HTTP Live Streaming with low latency from outside: parts come before their segment and are its bytes, whoever asks for
//! what comes next waits for it and for no longer, and players are closer to the present by that.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use support::browser::Browser;
use support::cameras::{RtspServer, free_port, server_is_here};
use support::player::{PlayerPage, clip};
use support::probe::{assert_decodes, packets};
use support::{Counts, Engine, Folder, get_bytes, soak, wait_for};

fn graph(source: &str, sink: &str) -> Folder {
    Folder::with_graph(&format!(
        "[sources.video]\ntype = \"file\"\n{source}\n\n[sinks.watch]\ntype = \"hls\"\ninputs = [\"video\"]\n\
         low_latency = true\n{sink}\n"
    ))
}

fn text(url: &str) -> Option<String> {
    let (status, _, body) = get_bytes(url);
    (status == 200).then(|| String::from_utf8(body).expect("text"))
}

/// The name in an address.
fn plain(address: &str) -> &str {
    address.split('?').next().unwrap_or_default()
}

/// A segment as a playlist of low latency has it.
#[derive(Clone, Debug, Default)]
struct Segment {
    /// `None` where there are only parts of it yet.
    duration: Option<f64>,
    /// Seconds, the name, and whether it begins with a keyframe.
    parts: Vec<(f64, String, bool)>,
}

/// A playlist as a player of low latency reads it.
#[derive(Debug)]
struct Playlist {
    text: String,
    target: f64,
    part_target: f64,
    hold_back: f64,
    part_hold_back: f64,
    segments: BTreeMap<u64, Segment>,
    /// The name of the part that comes next.
    hint: Option<String>,
}

/// The value of an attribute in a line.
fn attribute<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(':')?.1.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

impl Playlist {
    /// Fails where it is not what RFC 8216bis allows.
    fn of(text: &str) -> Playlist {
        let line =
            |tag: &str| text.lines().find(|line| line.starts_with(tag)).unwrap_or_else(|| panic!("{tag}: {text}"));
        let value = |tag: &str, name: &str| -> f64 {
            attribute(line(tag), name)
                .and_then(|value| value.parse().ok())
                .unwrap_or_else(|| panic!("{tag} {name}: {text}"))
        };
        let number = |tag: &str| -> u64 { line(tag).strip_prefix(tag).expect("the tag").parse().expect("a number") };
        assert!(text.starts_with("#EXTM3U\n#EXT-X-VERSION:9\n"), "{text}");
        assert_eq!(attribute(line("#EXT-X-SERVER-CONTROL"), "CAN-BLOCK-RELOAD"), Some("YES"));
        let target = number("#EXT-X-TARGETDURATION:") as f64;
        let part_target = value("#EXT-X-PART-INF", "PART-TARGET");
        let part_hold_back = value("#EXT-X-SERVER-CONTROL", "PART-HOLD-BACK");
        let hold_back = value("#EXT-X-SERVER-CONTROL", "HOLD-BACK");
        // Decimals are not exact in binary.
        assert!(part_hold_back > 3.0 * part_target - 1e-9 && hold_back > 3.0 * target - 1e-9, "{text}");
        assert!(value("#EXT-X-SERVER-CONTROL", "CAN-SKIP-UNTIL") >= 6.0 * target, "{text}");
        let mut next = number("#EXT-X-MEDIA-SEQUENCE:");
        let (mut segments, mut segment) = (BTreeMap::new(), Segment::default());
        for line in text.lines() {
            if let Some(length) = line.strip_prefix("#EXTINF:") {
                let length: f64 = length.trim_end_matches(',').parse().expect("seconds");
                assert!(length.round() <= target, "{text}");
                segment.duration = Some(length);
            } else if line.starts_with("#EXT-X-PART:") {
                let duration: f64 = attribute(line, "DURATION").expect("seconds").parse().expect("seconds");
                assert!(duration <= part_target, "{line}: {text}");
                let name = attribute(line, "URI").expect("an address").trim_matches('"').to_owned();
                assert_eq!(plain(&name), format!("{next}.{}.m4s", segment.parts.len()));
                segment.parts.push((duration, name, attribute(line, "INDEPENDENT") == Some("YES")));
            } else if !line.starts_with('#') {
                assert_eq!(plain(line), format!("{next}.m4s"));
                segments.insert(next, std::mem::take(&mut segment));
                next += 1;
            }
        }
        if !segment.parts.is_empty() {
            segments.insert(next, segment);
        }
        let hint = text.lines().find(|line| line.starts_with("#EXT-X-PRELOAD-HINT:TYPE=PART,"));
        let hint = hint.map(|hint| attribute(hint, "URI").expect("an address").trim_matches('"').to_owned());
        let playlist =
            Playlist { text: text.to_owned(), target, part_target, hold_back, part_hold_back, segments, hint };
        playlist.check_parts();
        playlist
    }

    fn check_parts(&self) {
        for segment in self.segments.values().filter(|segment| !segment.parts.is_empty()) {
            let (last, others) = segment.parts.split_last().expect("parts");
            let others_last = if segment.duration.is_some() { others } else { &segment.parts[..] };
            for (duration, name, _) in others_last {
                assert!(*duration >= 0.85 * self.part_target, "{name}: {}", self.text);
            }
            if let Some(duration) = segment.duration {
                let sum = last.0 + others.iter().map(|(duration, ..)| duration).sum::<f64>();
                assert!((sum - duration).abs() < 1e-3, "{sum} {duration}: {}", self.text);
            }
        }
    }

    fn fetch(url: &str) -> Option<Playlist> {
        text(url).map(|text| Playlist::of(&text))
    }

    /// The segment and the part that come next.
    fn next(&self) -> (u64, usize) {
        let hint = self.hint.as_deref().unwrap_or_else(|| panic!("no hint: {}", self.text));
        let (number, part) = plain(hint).trim_end_matches(".m4s").split_once('.').expect("a part");
        (number.parse().expect("a number"), part.parse().expect("a number"))
    }

    /// Whether it lists a part, or what comes after that.
    fn has(&self, (number, part): (u64, usize)) -> bool {
        let (last, segment) = self.segments.last_key_value().expect("a segment");
        *last > number || *last == number && (segment.parts.len() > part || segment.duration.is_some())
    }
}

/// A camera that never ends: a file in real time, over and over.
fn camera(folder: &Path) -> String {
    let video = clip(folder, "door.mp4", 8, &["-c:a", "aac"]);
    format!("realtime = true\nstreams.door = {{ path = '{}', loop = true }}", video.display())
}

fn playlist_url(engine: &mut Engine) -> String {
    let url = format!("{}/hls/graph/door/index.m3u8", engine.address());
    engine.wait_for("a playlist", |_| Playlist::fetch(&url).map(|_| url.clone()))
}

#[test]
fn parts_come_before_their_segment_and_are_its_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = graph(&camera(folder.path()), "segment = \"1s\"\npart = \"250ms\"\nwindow = 10");
    let mut engine = run.run(&[]);
    let url = playlist_url(&mut engine);
    let base = url.strip_suffix("index.m3u8").expect("a playlist");
    let mut playlist = Playlist::fetch(&url).expect("a playlist");
    let promised = (playlist.target, playlist.part_target);
    let mut parts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let begun = playlist.next().0;
    // Segments of which it has every part. A machine that is busy with other things lets a part come before it is asked for.
    let known_whole = |playlist: &Playlist, parts: &BTreeMap<String, Vec<u8>>| {
        let complete = playlist.segments.values().filter(|segment| segment.duration.is_some());
        let is_known = |segment: &&Segment| {
            segment.parts.len() >= 4 && segment.parts.iter().all(|(_, name, _)| parts.contains_key(name))
        };
        complete.filter(is_known).count()
    };
    // A player that asks for what comes next, again and again, and fetches it before it is there.
    while playlist.next().0 < begun + 3 || known_whole(&playlist, &parts) < 2 {
        assert!(playlist.next().0 < begun + 100, "too many parts came before they were asked for: {}", playlist.text);
        let (number, part) = playlist.next();
        assert!(!playlist.has((number, part)), "{}", playlist.text);
        let name = playlist.hint.clone().expect("there is one");
        let hinted = format!("{base}{name}");
        let waiting = std::thread::spawn(move || get_bytes(&hinted));
        let (status, headers, body) = get_bytes(&format!("{url}?_HLS_msn={number}&_HLS_part={part}"));
        assert_eq!(status, 200, "{}", playlist.text);
        let cache = headers["cache-control"].to_str().expect("text");
        assert_eq!(cache, format!("private, max-age={}", 6.0 * promised.0));
        playlist = Playlist::of(&String::from_utf8(body).expect("text"));
        assert!(playlist.has((number, part)), "{number}.{part}: {}", playlist.text);
        assert_eq!((playlist.target, playlist.part_target), promised);
        let (status, headers, body) = waiting.join().expect("it answers");
        assert_eq!(status, 200, "{number}.{part} was told");
        assert!(headers["cache-control"].to_str().expect("text").contains("immutable"));
        assert_eq!(headers["content-type"], "video/iso.segment");
        // Each is a chunk of its own: a box of what is in it, and the media.
        assert_eq!((&body[4..8], body.windows(4).filter(|name| *name == b"moof").count()), (&b"moof"[..], 1));
        parts.insert(name, body);
    }
    let mut whole = 0;
    for (number, segment) in playlist.segments.iter().filter(|(_, segment)| segment.duration.is_some()) {
        let listed = playlist.text.lines().find(|line| plain(line) == format!("{number}.m4s")).expect("listed");
        let (status, _, bytes) = get_bytes(&format!("{base}{listed}"));
        assert_eq!(status, 200);
        let names: Vec<&String> = segment.parts.iter().map(|(_, name, _)| name).collect();
        assert!(segment.parts.first().is_none_or(|(.., is_independent)| *is_independent), "{}", playlist.text);
        let known: Option<Vec<&[u8]>> = names.iter().map(|name| parts.get(*name).map(Vec::as_slice)).collect();
        let Some(known) = known.filter(|known| known.len() >= 4) else { continue };
        assert!(known.concat() == bytes, "segment {number} is not its parts");
        whole += 1;
        // They can be fetched later too.
        for name in names {
            assert!(get_bytes(&format!("{base}{name}")).2 == parts[name], "{name}");
        }
    }
    assert!(whole >= 2, "{}", playlist.text);
    engine.terminate().expect(0);
}

#[test]
fn what_the_protocol_forbids_is_refused_and_the_end_keeps_nobody_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = graph(&camera(folder.path()), "segment = \"2s\"");
    let mut engine = run.run(&["--stay"]);
    let url = playlist_url(&mut engine);
    let next = Playlist::fetch(&url).expect("a playlist").next().0;
    for (query, why) in [
        ("_HLS_part=1".to_owned(), "`_HLS_part` needs `_HLS_msn`"),
        ("_HLS_msn=x".to_owned(), "`_HLS_msn` cannot be `x`"),
        (format!("_HLS_msn={}", next + 1000), "nowhere near"),
        (format!("_HLS_msn={next}&_HLS_part=1000"), "nowhere near"),
    ] {
        let (status, told) = support::get(&format!("{url}?{query}"));
        assert_eq!(status, 400, "{query}: {told}");
        assert!(told["error"].as_str().is_some_and(|error| error.contains(why)), "{query}: {told}");
        assert!(told["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{query}: {told}");
    }
    // Long past: it is there.
    assert!(text(&format!("{url}?_HLS_msn=1&_HLS_part=2")).is_some());
    let asked = format!("{url}?_HLS_msn={}", next + 1);
    let waiting = std::thread::spawn(move || get_bytes(&asked));
    let address = engine.address();
    support::send("DELETE", &format!("{address}/streams/door"), &[], "").expect(200);
    let (status, _, body) = waiting.join().expect("it answers");
    let answered = String::from_utf8(body).expect("text");
    assert_eq!(status, 200, "{answered}");
    let is_over = answered.ends_with("#EXT-X-ENDLIST\n") && !answered.contains("PRELOAD-HINT");
    assert!(is_over || answered.contains(&format!("\n{}.m4s?v=", next + 1)), "{answered}");
    engine.terminate().expect(0);
}

/// Both wait most of the time, so they are done side by side.
#[test]
fn those_who_wait_are_counted_and_none_for_ever() {
    std::thread::scope(|scope| {
        scope.spawn(a_camera_that_is_away_keeps_nobody_waiting_for_ever);
        those_who_wait_are_counted_and_go_when_they_go();
    });
}

/// More may wait than ever do, but not any number; and whoever goes away makes room.
fn those_who_wait_are_counted_and_go_when_they_go() {
    const MOST: usize = 512;
    let folder = tempfile::tempdir().expect("a folder");
    let run = graph(&camera(folder.path()), "segment = \"8s\"");
    let mut engine = run.run(&[]);
    let address = engine.address();
    let url = playlist_url(&mut engine);
    // It is a whole segment away.
    let next = Playlist::fetch(&url).expect("a playlist").next().0 + 1;
    let host = address.strip_prefix("http://").expect("an address").to_owned();
    let ask = || {
        let mut client = TcpStream::connect(&host).expect("it listens");
        let request = format!("GET /hls/graph/door/index.m3u8?_HLS_msn={next} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        client.write_all(request.as_bytes()).expect("written");
        client
    };
    let is_refused = |client: &mut TcpStream| {
        client.set_read_timeout(Some(Duration::from_secs(2))).expect("set");
        let mut head = [0; 12];
        match client.read_exact(&mut head) {
            Ok(()) => {
                assert_eq!(&head, b"HTTP/1.1 503");
                true
            }
            Err(_) => false,
        }
    };
    let waiting: Vec<TcpStream> = (0..MOST).map(|_| ask()).collect();
    wait_for("the limit", || is_refused(&mut ask()).then_some(()));
    drop(waiting);
    wait_for("room", || (!is_refused(&mut ask())).then_some(()));
    assert!(text(&url).is_some(), "others are served all the while");
    engine.terminate().expect(0);
}

/// All of a file at once, so that there is much to skip; and FFmpeg plays every packet of it.
#[test]
fn an_update_says_what_has_changed_and_ffmpeg_plays_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "door.mp4", 30, &["-c:a", "aac"]);
    let run = graph(&format!("path = '{}'", video.display()), "segment = \"1s\"\npart = \"300ms\"\nkind = \"event\"");
    let mut engine = run.run(&["--stay"]);
    let ended = engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    let url = format!("{}/hls/graph/door/index.m3u8", engine.address());
    let whole = text(&url).expect("a playlist");
    let playlist = Playlist::of(&whole);
    assert!(whole.ends_with("#EXT-X-ENDLIST\n") && playlist.hint.is_none(), "{whole}");
    // Those of three target durations are listed, and no older ones.
    let with_parts: Vec<u64> =
        playlist.segments.iter().filter(|(_, segment)| !segment.parts.is_empty()).map(|(number, _)| *number).collect();
    let last = *playlist.segments.last_key_value().expect("segments").0;
    let listed = with_parts.len() as f64;
    assert_eq!(with_parts.last(), Some(&last));
    assert!((3.0..=3.0 * playlist.target + 1.0).contains(&listed), "{whole}");

    let update = text(&format!("{url}?_HLS_skip=YES")).expect("a playlist");
    let (before, after) = update.split_once("#EXT-X-SKIP:SKIPPED-SEGMENTS=").expect("much to skip");
    let (skipped, after) = after.split_once('\n').expect("a number");
    let skipped: usize = skipped.parse().expect("a number");
    assert!(skipped > 10, "{update}");
    assert!(whole.starts_with(before), "{update}");
    let rest = whole.strip_suffix(after).unwrap_or_else(|| panic!("it ends otherwise: {update}"));
    let left_out = rest.strip_prefix(before).expect("it begins so");
    assert_eq!(left_out.matches("#EXTINF:").count(), skipped, "{update}");

    for (place, track) in [(0, 0), (1, 1)] {
        let (expected, found) = (packets(&video, track, false), packets(Path::new(&url), place, false));
        let hashes = |packets: &[support::probe::Probed]| -> Vec<String> {
            packets.iter().map(|packet| packet.hash.clone()).collect()
        };
        assert!(hashes(&found) == hashes(&expected), "track {track}: {} of {}", found.len(), expected.len());
    }
    assert_decodes(Path::new(&url));
    let counts = ended["streams"][0].clone();
    assert_eq!(counts["read"], counts["delivered"], "{counts}");
    let ended = engine.terminate().expect(0);
    assert_eq!(ended.counts("door"), Counts::all_delivered(counts["read"].as_u64().expect("a count")));
}

/// What comes next does not come: whoever waits is told so, and what comes later is behind a discontinuity.
fn a_camera_that_is_away_keeps_nobody_waiting_for_ever() {
    if !server_is_here() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let clip = support::cameras::clip(folder.path(), "camera.mp4", "160x120", &[]);
    let port = free_port();
    let server = RtspServer::start(port, &[("cam", &clip)], &[]);
    let run = Folder::with_graph(&format!(
        "[sources.video]\ntype = \"rtsp\"\nstreams.door = '{}'\n\n[sinks.watch]\ntype = \"hls\"\ninputs = [\"video\"]\n\
         low_latency = true\nsegment = \"1s\"\nwindow = 60\n",
        server.url("cam")
    ));
    let mut engine = run.run(&[]);
    let url = playlist_url(&mut engine);
    server.kill();
    engine.wait_for_graph("the loss", |graph| graph["streams"][0]["state"] == "retrying");
    // The last pictures of before may come first.
    let told = engine.wait_for("an end of waiting", |_| {
        let (number, part) = Playlist::fetch(&url)?.next();
        let (status, _, body) = get_bytes(&format!("{url}?_HLS_msn={number}&_HLS_part={part}"));
        assert!(status == 200 || status == 503, "{status}");
        (status == 503).then(|| serde_json::from_slice::<serde_json::Value>(&body).expect("JSON"))
    });
    assert!(told["error"].as_str().is_some_and(|error| error.contains("has not come for so long")), "{told}");
    let server = RtspServer::start(port, &[("cam", &clip)], &[]);
    engine.wait_for("parts behind the loss", |_| {
        let playlist = Playlist::fetch(&url)?;
        let behind = playlist.text.split("#EXT-X-DISCONTINUITY\n").nth(1)?;
        (behind.matches("#EXT-X-PART:").count() >= 4).then_some(())
    });
    let ended = engine.terminate().expect(0);
    assert_eq!(ended.counts("door").lost, 0, "{}", ended.stderr);
    server.kill();
}

/// Chromium with hls.js plays a camera with low latency; how far behind it is, is printed. `ENGINE_SOAK` plays it without
/// low latency before, to compare.
#[test]
fn a_browser_is_closer_to_the_present() {
    let Some(page) = PlayerPage::serve() else { return };
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "door.mp4", 8, &["-c:a", "aac"]);
    let run = Folder::with_graph(&format!(
        "[sources.video]\ntype = \"file\"\nrealtime = true\nstreams.door = {{ path = '{0}', loop = true }}\n\
         [sinks.low]\ntype = \"hls\"\ninputs = [\"video\"]\nsegment = \"1s\"\nlow_latency = true\n\
         [sources.other]\ntype = \"file\"\nrealtime = true\nstreams.other = {{ path = '{0}', loop = true }}\n\
         [sinks.high]\ntype = \"hls\"\ninputs = [\"other\"]\nsegment = \"1s\"\n",
        video.display()
    ));
    let mut engine = run.run(&["--allow-origin", &page.origin]);
    let url = playlist_url(&mut engine);
    let address = engine.address();
    let playlist = Playlist::fetch(&url).expect("a playlist");
    let mut behind = Vec::new();
    let all = [("other", ""), ("door", "&low=1")];
    for (stream, options) in if soak() { &all[..] } else { &all[1..] } {
        let url = format!("{address}/hls/graph/{stream}/index.m3u8");
        // As many segments as a player wants to have before it begins where it is told to.
        engine.wait_for("segments", |_| text(&url).filter(|text| text.matches("#EXTINF").count() >= 4));
        browser.open(&page.of(&url, options));
        let begun = browser.wait("video.currentTime").as_f64().expect("seconds");
        if *stream == "door" {
            // A player that was held up at first comes closer by playing faster for a while.
            browser.wait(&format!("window.behind() && window.behind() < {}", playlist.hold_back));
        }
        let begun = browser.wait("video.currentTime").as_f64().expect("seconds").max(begun);
        let mut seen = Vec::new();
        for second in 1..5 {
            browser.wait(&format!("video.currentTime > {} && !video.paused", begun + f64::from(second)));
            seen.push(browser.wait("window.behind()").as_f64().expect("seconds"));
        }
        assert_eq!(browser.wait("[window.problems.join(), window.stalls]")[0], "", "{stream}");
        seen.sort_by(f64::total_cmp);
        println!(
            "{stream}: {:.2} s behind when shown, from {:.2} to {:.2}",
            seen[seen.len() / 2],
            seen[0],
            seen[seen.len() - 1]
        );
        behind.push(seen[seen.len() / 2]);
    }
    println!("promised: {} s, by segments {} s", playlist.part_hold_back, playlist.hold_back);
    let low = *behind.last().expect("it was played");
    assert!(low < playlist.hold_back, "{behind:?}: {}", playlist.text);
    let (requests, complaints) = browser.seen();
    assert!(requests.iter().any(|url| url.contains("_HLS_msn=") && url.contains("_HLS_part=")), "{requests:?}");
    let is_part = |url: &&String| plain(url).rsplit('/').next().is_some_and(|name| name.matches('.').count() == 2);
    assert!(requests.iter().filter(is_part).count() > 4, "{requests:?}");
    assert!(complaints.is_empty(), "{complaints:?}");
    engine.terminate().expect(0);
}

/// What cannot work is said before anything runs.
#[test]
fn fields_that_contradict_each_other_are_refused() {
    let check = |fields: &str| -> String {
        let run = graph("path = 'door.mp4'", fields);
        let checked = support::command(&["check"]).arg(run.graph()).output().expect("it runs");
        assert!(!checked.status.success(), "{fields}");
        String::from_utf8_lossy(&checked.stderr).into_owned()
    };
    for (fields, part) in [
        ("part = \"2s\"\nsegment = \"3s\"", "`part` cannot be 2s"),
        ("kind = \"vod\"", "`low_latency` has no meaning where the playlist comes with the end"),
    ] {
        let said = check(fields);
        assert!(said.contains(part), "{said}");
    }
}
