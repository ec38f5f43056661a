//! HTTP Live Streaming from outside: FFmpeg's own programs find every packet of the source once, in files and live, and
//! nothing that a playlist lists is ever missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use support::browser::Browser;
use support::cameras::{RtspServer, free_port, server_is_here};
use support::player::{PlayerPage, clip};
use support::probe::{Probed, assert_decodes, best, comparable, ffprobe, packets, tracks};
use support::{
    Answer, Counts, Engine, Folder, assert_conserved, ffmpeg, get_bytes, material, repository, run_folder, run_graph,
    send, wait_for,
};

fn graph(source: &str, sink: &str) -> Folder {
    Folder::with_graph(&format!(
        "[sources.video]\ntype = \"file\"\n{source}\n\n[sinks.watch]\ntype = \"hls\"\ninputs = [\"video\"]\n{sink}\n"
    ))
}

/// The address of the playlist of a stream, as the engine tells it.
fn hls_url(engine: &mut Engine, stream: &str) -> String {
    let address = engine.address();
    let (status, told) = engine.get(&format!("/streams/{stream}"));
    assert_eq!(status, 200, "{told}");
    let url = told["hls_url"].as_str().unwrap_or_else(|| panic!("no hls_url: {told}"));
    format!("{address}{url}")
}

fn hashes(packets: &[Probed]) -> Vec<&str> {
    packets.iter().map(|packet| &*packet.hash).collect()
}

/// Fails unless a file or an address has every packet of the source's best tracks once, in order and with the same bytes.
/// Answers how many packets those are.
fn assert_same(source: &Path, played: &Path) -> u64 {
    assert_same_tracks(source, &best(source), played)
}

/// As [`assert_same`], where the best tracks are known.
fn assert_same_tracks(source: &Path, best: &[usize], played: &Path) -> u64 {
    let folder = tempfile::tempdir().expect("a folder");
    let compared = comparable(source, folder.path());
    let (all_expected, all_found) = (tracks(&compared, compared != source), tracks(played, false));
    let mut count = 0;
    for (place, track) in best.iter().enumerate() {
        let (expected, found) = (&all_expected[*track], &all_found[place]);
        assert_eq!(found.len(), expected.len(), "{}, track {track}", source.display());
        assert!(hashes(found) == hashes(expected), "{}, track {track}: other packets", source.display());
        assert!(place > 0 || found[0].is_key, "{}", source.display());
        count += found.len() as u64;
    }
    count
}

/// A playlist as a player reads it.
#[derive(Debug)]
struct Playlist {
    text: String,
    target: u64,
    sequence: u64,
    /// Seconds, and the names of the segment and of its initialisation.
    segments: Vec<(f64, String, String)>,
    /// Names of segments that are lost.
    gaps: Vec<String>,
}

impl Playlist {
    /// Fails where it is not what RFC 8216 allows.
    fn of(text: &str) -> Playlist {
        let value = |tag: &str| {
            let value =
                text.lines().find_map(|line| line.strip_prefix(tag)).unwrap_or_else(|| panic!("no {tag}: {text}"));
            value.parse().unwrap_or_else(|_| panic!("{tag}{value}"))
        };
        assert!(text.starts_with("#EXTM3U\n#EXT-X-VERSION:7\n"), "{text}");
        let (target, sequence) = (value("#EXT-X-TARGETDURATION:"), value("#EXT-X-MEDIA-SEQUENCE:"));
        let (mut duration, mut map, mut segments) = (f64::NAN, String::new(), Vec::new());
        let (mut is_gap, mut gaps) = (false, Vec::new());
        for line in text.lines() {
            if let Some(length) = line.strip_prefix("#EXTINF:") {
                duration = length.trim_end_matches(',').parse().expect("seconds");
                assert!(duration.round() <= target as f64, "{text}");
            } else if let Some(address) = line.strip_prefix("#EXT-X-MAP:URI=\"") {
                map = address.trim_end_matches('"').to_owned();
            } else if line == "#EXT-X-GAP" {
                is_gap = true;
            } else if !line.starts_with('#') {
                if std::mem::take(&mut is_gap) {
                    gaps.push(line.to_owned());
                }
                segments.push((duration, line.to_owned(), map.clone()));
            }
        }
        assert!(segments.iter().all(|(duration, _, map)| duration.is_finite() && !map.is_empty()), "{text}");
        Playlist { text: text.to_owned(), target, sequence, segments, gaps }
    }

    fn fetch(url: &str) -> Option<Playlist> {
        let (status, _, body) = get_bytes(url);
        assert!(status == 200 || status == 404, "{status}");
        (status == 200).then(|| Playlist::of(&String::from_utf8(body).expect("text")))
    }

    fn is_over(&self) -> bool {
        self.text.ends_with("#EXT-X-ENDLIST\n")
    }

    fn duration(&self) -> f64 {
        self.segments.iter().map(|(duration, ..)| duration).sum()
    }
}

/// Seconds that a track of a video lasts.
fn duration(file: &Path, track: usize) -> f64 {
    let video = packets(file, track, false);
    let (first, last) =
        video.iter().fold((f64::MAX, f64::MIN), |(first, last), packet| (first.min(packet.pts), last.max(packet.pts)));
    last - first
}

/// Checks one after the other, two at a time: programs that are asked take their time.
fn in_two_threads<T: Sync>(all: &[T], check: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            check(one);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
}

#[test]
fn all_videos_are_played_as_they_are() {
    let Some(material) = material() else { return };
    let mut videos: Vec<PathBuf> = std::fs::read_dir(material.join("videos"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    videos.sort();
    assert!(videos.len() >= 7, "{videos:?}");
    let glob = format!("path = '{}/*'", material.join("videos").display());
    // Most of what is kept lies in files.
    let folder = graph(&glob, "segment = \"2s\"\nmemory = \"1MiB\"");
    let mut engine = folder.run(&["--stay", "--workers", "2"]);
    let ended = engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    let urls: Vec<(&PathBuf, &str, String)> = videos
        .iter()
        .map(|video| {
            let stream = video.file_stem().and_then(|stem| stem.to_str()).expect("text");
            (video, stream, hls_url(&mut engine, stream))
        })
        .collect();
    let check = |(video, stream, url): &(&PathBuf, &str, String)| {
        let best = best(video);
        let count = assert_same_tracks(video, &best, Path::new(url));
        let counts = ended["streams"].as_array().expect("a list").iter().find(|counts| counts["stream"] == *stream);
        let counts = counts.expect("its counts");
        assert_eq!((&counts["read"], &counts["delivered"]), (&count.into(), &count.into()), "{stream}");
        assert_conserved(counts);
        assert_eq!(counts["decoded"], 0, "{stream}");

        let playlist = Playlist::fetch(url).expect("a playlist");
        assert!(playlist.is_over() && playlist.text.contains("#EXT-X-PLAYLIST-TYPE:VOD\n"), "{}", playlist.text);
        assert!(!playlist.text.contains("PROGRAM-DATE-TIME") && !playlist.text.contains("DISCONTINUITY"), "{stream}");
        let off = playlist.duration() - duration(video, best[0]);
        assert!((-0.001..0.5).contains(&off), "{stream}: off by {off} s");
        assert_decodes(Path::new(url));
    };
    in_two_threads(&urls, check);
    engine.terminate().expect(0);
}

/// Whatever the sound is, it takes no picture along: it is kept, or left out with a word.
#[test]
fn every_kind_of_sound_is_kept_or_left_out_with_a_word() {
    const KINDS: [(&str, &str, bool, bool); 7] = [
        // The encoder, its options, whether MP4 keeps it, and a transport stream.
        ("aac", "aac", true, true),
        ("mp3", "libmp3lame", true, true),
        ("flac", "flac", true, false),
        ("opus", "libopus", true, false),
        ("ac3", "ac3", false, true),
        ("eac3", "eac3", false, true),
        ("vorbis", "libvorbis", false, false),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    in_two_threads(&KINDS, |(name, encoder, ..)| {
        let inputs = ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=10:duration=3"];
        let sound = ["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000:duration=3"];
        let coded = ["-c:v", "libx264", "-g", "10", "-pix_fmt", "yuv420p", "-c:a", encoder, "-ac", "2"];
        ffmpeg(&[&inputs[..], &sound, &coded].concat(), &folder.path().join(format!("{name}.mkv")));
    });
    for format in ["fmp4", "mpegts"] {
        let source = format!("path = '{}/*.mkv'", folder.path().display());
        let run = graph(&source, &format!("segment = \"1s\"\nformat = \"{format}\""));
        let mut engine = run.run(&["--stay"]);
        engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
        let urls = KINDS.map(|kind| (kind, hls_url(&mut engine, kind.0)));
        in_two_threads(&urls, |((name, _, in_mp4, in_transport), url)| {
            let probed = ffprobe(&["-show_streams", "-show_packets"], Path::new(url));
            let pictures = probed["packets"].as_array().expect("packets").iter();
            let pictures = pictures.filter(|packet| packet["stream_index"] == 0).count();
            let is_kept = if format == "fmp4" { *in_mp4 } else { *in_transport };
            assert_eq!(pictures, 30, "{name} in {format}");
            assert_eq!(
                probed["streams"].as_array().map(Vec::len),
                Some(1 + usize::from(is_kept)),
                "{name} in {format}"
            );
            assert_decodes(Path::new(url));
        });
        let ended = engine.terminate().expect(0);
        let is_told =
            |name: &&str| ended.stderr.lines().any(|line| line.contains("leaves track 1") && line.contains(*name));
        let kept = |kind: &(&str, &str, bool, bool)| if format == "fmp4" { kind.2 } else { kind.3 };
        let missing: Vec<&str> = KINDS.iter().filter(|kind| !kept(kind)).map(|kind| kind.0).collect();
        assert!(missing.iter().all(is_told), "{format}: {missing:?}: {}", ended.stderr);
    }
}

/// The name in an address.
fn plain(address: &str) -> &str {
    address.split('?').next().unwrap_or_default()
}

/// What a player fetches that looks at every version of a playlist.
#[derive(Default)]
struct Watched {
    /// By number.
    segments: BTreeMap<u64, Vec<u8>>,
    durations: BTreeMap<u64, f64>,
    maps: BTreeMap<String, Vec<u8>>,
    target: Option<u64>,
    sequence: u64,
}

impl Watched {
    /// Fetches everything that is listed; fails where something of it is not there, or what was known has changed.
    fn look(&mut self, url: &str, playlist: &Playlist) {
        let base = url.strip_suffix("index.m3u8").expect("a playlist");
        assert_eq!(*self.target.get_or_insert(playlist.target), playlist.target, "it was promised");
        assert!(playlist.sequence >= self.sequence, "{}", playlist.text);
        self.sequence = playlist.sequence;
        for (place, (duration, name, map)) in playlist.segments.iter().enumerate() {
            let number = playlist.sequence + place as u64;
            assert_eq!(plain(name), format!("{number}.m4s"));
            let known = *self.durations.entry(number).or_insert(*duration);
            assert!((known - duration).abs() < 1e-9, "segment {number} lasts {duration} s now, and lasted {known} s");
            if !self.maps.contains_key(map) {
                let (status, _, body) = get_bytes(&format!("{base}{map}"));
                assert_eq!(status, 200, "{map} is listed: {}", playlist.text);
                self.maps.insert(map.clone(), body);
            }
            // What is about to leave is the first to be gone.
            if place > 0 && self.segments.contains_key(&number) {
                continue;
            }
            let (status, headers, body) = get_bytes(&format!("{base}{name}"));
            if status == 404 && self.segments.contains_key(&number) {
                // Whoever stands still after fetching the playlist may ask for what has left it since.
                let now = Playlist::fetch(url).expect("a playlist");
                assert!(now.sequence > number, "{name} is listed: {}", now.text);
                continue;
            }
            assert_eq!(status, 200, "{name} is listed: {}", playlist.text);
            assert!(headers["cache-control"].to_str().expect("text").contains("immutable"));
            let before = self.segments.entry(number).or_insert_with(|| body.clone());
            assert!(*before == body, "segment {number} has changed");
        }
    }
}

/// The copy of a live stream, as somebody finds it who looks into its folder now and then.
struct Copied {
    place: PathBuf,
    /// Names of files that were listed.
    seen: BTreeSet<String>,
    playlists: BTreeSet<String>,
}

impl Copied {
    /// Fails where something that is listed is not there. Whether the first segment has been deleted.
    fn look(&mut self) -> bool {
        let Ok(text) = std::fs::read_to_string(self.place.join("index.m3u8")) else { return false };
        let names = addresses(&Playlist::of(&text));
        for name in names.iter().filter(|name| !self.place.join(name).exists()) {
            // Whoever stands still between two looks may find it deleted: then it is not listed any more.
            let now = std::fs::read_to_string(self.place.join("index.m3u8")).expect("it stays");
            assert!(!addresses(&Playlist::of(&now)).contains(name), "{name} is listed: {now}");
        }
        assert!(text.contains("#EXT-X-PROGRAM-DATE-TIME:") && names.len() <= 8, "{text}");
        self.seen.extend(names);
        self.playlists.insert(text);
        let first = self.seen.iter().find(|name| name.ends_with(".m4s"));
        first.is_some_and(|first| !self.place.join(first).exists())
    }
}

/// Most of the time they wait for videos to be shown, so they are done side by side.
#[test]
fn what_is_published_goes_on_and_nothing_of_it_is_missing() {
    std::thread::scope(|scope| {
        scope.spawn(a_reload_that_changes_nothing_leaves_no_trace);
        scope.spawn(a_finished_stream_is_there_until_another_one_is_finished);
        a_live_playlist_moves_on_and_nothing_that_it_lists_is_missing();
    });
}

/// Both that is served and, of another stream, its copy in a folder.
fn a_live_playlist_moves_on_and_nothing_that_it_lists_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "door.mp4", 14, &["-c:a", "aac"]);
    let yard = clip(folder.path(), "yard.mp4", 4, &["-c:a", "aac"]);
    let run = graph(
        &format!("path = '{}'\nrealtime = true", video.display()),
        // Without a place for the stream in `storage`, each has a folder.
        &format!(
            "segment = \"1s\"\nwindow = 8\n\n[sources.on_and_on]\ntype = \"file\"\nrealtime = true\n\
             streams.yard = {{ path = '{}', loop = true }}\n\n[sinks.copy]\ntype = \"hls\"\n\
             inputs = [\"on_and_on\"]\nsegment = \"1s\"\nwindow = 3\nstorage = \"out\"\n",
            yard.display()
        ),
    );
    let mut engine = run.run(&["--stay"]);
    let address = engine.address();
    let url = engine.wait_for("the stream", |_| {
        let (_, told) = support::get(&format!("{address}/streams/door"));
        told["hls_url"].as_str().map(|path| format!("{address}{path}"))
    });
    let (status, early) = support::get(&format!("{address}/hls/graph/door/nothing.m3u8"));
    assert_eq!(status, 404, "{early}");
    let first = engine.wait_for("a playlist", |_| Playlist::fetch(&url));
    assert!(!first.is_over());
    // A player that reads along, from the beginning.
    let player = Command::new("ffprobe")
        .args([
            "-v",
            "warning",
            "-of",
            "json",
            "-live_start_index",
            "0",
            "-show_packets",
            "-show_data_hash",
            "sha256",
            &url,
        ])
        // A pipe that nobody reads would hold it up.
        .stdout(std::fs::File::create(run.file("played.json")).expect("a file"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("ffprobe is installed");
    let mut watched = Watched::default();
    let mut copied = Copied { place: run.file("out/yard"), seen: BTreeSet::default(), playlists: BTreeSet::default() };
    let last = engine.wait_for("the end of the playlist", |_| {
        copied.look();
        let playlist = Playlist::fetch(&url)?;
        watched.look(&url, &playlist);
        assert!(playlist.segments.len() <= 13, "{}", playlist.text);
        assert!(playlist.text.contains("#EXT-X-INDEPENDENT-SEGMENTS\n"), "{}", playlist.text);
        assert!(playlist.text.contains("#EXT-X-PROGRAM-DATE-TIME:"), "{}", playlist.text);
        playlist.is_over().then_some(playlist)
    });
    assert_eq!(last.target, 2, "a second, and a group of pictures of a second");
    let numbers: Vec<u64> = watched.segments.keys().copied().collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
    assert!(last.sequence > 0, "{first:?} {last:?}");
    let whole = run.file("whole.mp4");
    assert_eq!(watched.maps.len(), 1);
    let pieces = watched.maps.values().chain(watched.segments.values());
    std::fs::write(&whole, pieces.flatten().copied().collect::<Vec<u8>>()).expect("written");
    let count = assert_same(&video, &whole);
    assert_decodes(&whole);

    let played = player.wait_with_output().expect("it ends");
    let complaints = String::from_utf8_lossy(&played.stderr);
    let packets_played = std::fs::read(run.file("played.json")).expect("written");
    let played: Value = serde_json::from_slice(&packets_played).expect("JSON");
    let played = played["packets"].as_array().expect("packets");
    for (place, track) in best(&video).into_iter().enumerate() {
        let of_track = played.iter().filter(|packet| packet["stream_index"] == place);
        let found: Vec<&str> = of_track.map(|packet| packet["data_hash"].as_str().expect("a hash")).collect();
        let expected = packets(&video, track, false);
        assert!(
            found == hashes(&expected),
            "track {track}: {} packets, not {}: {complaints}",
            found.len(),
            expected.len()
        );
    }
    engine.wait_for("a segment of the copy that is deleted", |_| copied.look().then_some(()));
    assert!(copied.playlists.len() > 1, "{:?}", copied.playlists);
    let ended = engine.terminate().expect(0);
    assert_eq!(ended.counts("door"), Counts::all_delivered(count));
    let counts = ended.counts("yard");
    assert_eq!((counts.lost, counts.rejected, counts.dropped), (0, 0, 0), "{}", ended.stderr);
    let last = std::fs::read_to_string(copied.place.join("index.m3u8")).expect("a playlist");
    assert!(last.ends_with("#EXT-X-ENDLIST\n"), "{last}");
    assert_decodes(&copied.place.join("index.m3u8"));
}

fn ask(method: &str, url: &str, headers: &[(&str, &str)]) -> (u16, ureq::http::HeaderMap, Vec<u8>) {
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut answer = config.new_agent().run(request.body(()).expect("a request")).expect("an answer");
    let body = answer.body_mut().read_to_vec().expect("a whole body");
    (answer.status().as_u16(), answer.headers().clone(), body)
}

#[test]
fn files_are_served_in_parts_and_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "door.mp4", 4, &["-c:a", "aac"]);
    let run = graph(&format!("path = '{}'", video.display()), "segment = \"1s\"");
    let origin = "http://player.example";
    let mut engine = run.run(&["--stay", "--allow-origin", origin]);
    engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    let url = hls_url(&mut engine, "door");
    let base = url.strip_suffix("index.m3u8").expect("a playlist").to_owned();
    let playlist = Playlist::fetch(&url).expect("a playlist");
    assert_eq!(playlist.segments.len(), 4, "{}", playlist.text);
    let (_, name, map) = &playlist.segments[1];
    for (name, media_type, cache) in [
        ("index.m3u8", "application/vnd.apple.mpegurl", "no-cache"),
        (&**map, "video/mp4", "immutable"),
        (&**name, "video/iso.segment", "immutable"),
    ] {
        let url = format!("{base}{name}");
        let (status, headers, whole) = ask("GET", &url, &[("origin", origin)]);
        let header = |name: &str| headers.get(name).map(|value| value.to_str().expect("text")).unwrap_or_default();
        assert_eq!((status, header("content-type")), (200, media_type), "{name}");
        assert!(header("cache-control").contains(cache) && header("accept-ranges") == "bytes", "{name}: {headers:?}");
        assert_eq!(header("access-control-allow-origin"), origin, "{name}");
        let tag = header("etag");
        let (status, head, nothing) = ask("HEAD", &url, &[]);
        assert!(status == 200 && nothing.is_empty(), "{name}: {status}");
        assert_eq!(head["content-length"].to_str().expect("text"), whole.len().to_string(), "{name}");
        let (status, same, nothing) = ask("GET", &url, &[("if-none-match", tag)]);
        assert!(
            status == 304 && nothing.is_empty() && same["etag"].to_str().expect("text") == tag,
            "{name}: {status} {same:?}"
        );
        let (status, part, bytes) = ask("GET", &url, &[("range", "bytes=10-19")]);
        assert_eq!((status, &bytes[..]), (206, &whole[10..20]), "{name}");
        assert_eq!(part["content-range"].to_str().expect("text"), format!("bytes 10-19/{}", whole.len()), "{name}");
        let (status, _, bytes) = ask("GET", &url, &[("range", "bytes=-5"), ("if-range", tag)]);
        assert_eq!((status, &bytes[..]), (206, &whole[whole.len() - 5..]), "{name}");
        let (status, _, bytes) = ask("GET", &url, &[("range", "bytes=0-1"), ("if-range", "\"other\"")]);
        assert_eq!((status, bytes.len()), (200, whole.len()), "{name}");
        let (status, beyond, _) = ask("GET", &url, &[("range", "bytes=100000000-")]);
        assert_eq!(status, 416, "{name}");
        assert_eq!(ask("GET", &url, &[("range", "bytes=99999999999999999999-")]).0, 416, "{name}");
        let (status, _, bytes) = ask("GET", &url, &[("range", "Bytes=10-19")]);
        assert_eq!((status, &bytes[..]), (206, &whole[10..20]), "{name}");
        assert_eq!(ask("GET", &url, &[("if-none-match", "\"other\""), ("if-none-match", tag)]).0, 304, "{name}");
        assert_eq!(beyond["content-range"].to_str().expect("text"), format!("bytes */{}", whole.len()), "{name}");
    }
    for (path, hint) in [
        ("/hls/graph/dor/index.m3u8", "did you mean `/hls/graph/door/index.m3u8`?"),
        ("/hls/other/door/index.m3u8", "sink of type `hls`"),
        ("/hls/graph/door/99.m4s", "`/hls/graph/door/index.m3u8` lists the files"),
        ("/hls/graph/door/..", "lists the files"),
    ] {
        let (status, told) = engine.get(path);
        assert!(
            status == 404 && told["hint"].as_str().is_some_and(|told| told.contains(hint)),
            "{path}: {status} {told}"
        );
    }
    // Without its version an address may come to mean something else, and with another one it is that of something else.
    for name in [map, name] {
        let (status, headers, _) = ask("GET", &format!("{base}{}", plain(name)), &[]);
        assert_eq!((status, headers["cache-control"].to_str().expect("text")), (200, "no-cache"), "{name}");
        let (status, told) = support::get(&format!("{base}{}?v=dead", plain(name)));
        assert!(status == 404 && told["hint"].as_str().is_some_and(|hint| hint.contains("index.m3u8")), "{told}");
    }
    let (status, told) = support::get(&format!("{base}{}", "x".repeat(9000)));
    assert!(status == 404 && told.to_string().len() < 500, "{told}");
    let address = engine.address();
    let refused = send("POST", &format!("{address}/hls/graph/door/index.m3u8"), &[], "");
    assert_eq!(refused.header("allow"), Some("GET, HEAD, OPTIONS"));
    refused.expect(405);
    let asked: Answer = send("OPTIONS", &url, &[("origin", origin)], "");
    let allowed = asked.header("access-control-allow-headers").unwrap_or_default();
    assert!(allowed.split(", ").any(|name| name == "range"), "{allowed}");
    engine.terminate().expect(0);
}

/// ADTS headers are taken off, and what they say goes where players look for it.
#[test]
fn broadcasts_are_played_with_their_sound() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "door.ts", 6, &["-c:a", "aac"]);
    let run = graph(&format!("path = '{}'", video.display()), "segment = \"2s\"");
    let mut engine = run.run(&["--stay"]);
    engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    let url = hls_url(&mut engine, "door");
    let playlist = Playlist::fetch(&url).expect("a playlist");
    assert_eq!(playlist.segments.len(), 3, "{}", playlist.text);
    assert_same(&video, Path::new(&url));
    assert_decodes(Path::new(&url));
    let seen = ffprobe(&["-show_streams"], Path::new(&url));
    let kinds: Vec<&str> = seen["streams"]
        .as_array()
        .expect("streams")
        .iter()
        .filter_map(|stream| stream["codec_name"].as_str())
        .collect();
    assert_eq!(kinds, ["h264", "aac"]);
    engine.terminate().expect(0);
}

/// Players look only once which tracks there are: sound that begins late is announced from the beginning.
#[test]
fn sound_that_begins_late_is_there_from_the_beginning() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = folder.path().join("door.ts");
    let inputs = ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=25:duration=8", "-itsoffset", "4", "-f", "lavfi"];
    let sound = ["-i", "sine=frequency=440:duration=4"];
    let coded = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-pix_fmt", "yuv420p", "-c:a", "aac"];
    ffmpeg(&[&inputs[..], &sound, &coded].concat(), &video);
    let run = graph(&format!("path = '{}'", video.display()), "segment = \"1s\"");
    let mut engine = run.run(&["--stay"]);
    engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    let url = hls_url(&mut engine, "door");
    let playlist = Playlist::fetch(&url).expect("a playlist");
    let mut maps: Vec<&str> = playlist.segments.iter().map(|(_, _, map)| &**map).collect();
    maps.dedup();
    assert!(maps.len() == 1 && !playlist.text.contains("DISCONTINUITY"), "{}", playlist.text);
    assert_same(&video, Path::new(&url));
    assert_decodes(Path::new(&url));
    engine.terminate().expect(0);
}

/// The header of each packet of a transport stream: its number, whether it has a payload, and its counter.
fn transport_packets(bytes: &[u8]) -> Vec<(u16, bool, u8)> {
    assert_eq!(bytes.len() % 188, 0);
    let header = |packet: &[u8]| {
        assert_eq!(packet[0], 0x47);
        (u16::from_be_bytes([packet[1], packet[2]]) & 0x1fff, packet[3] & 0x10 != 0, packet[3] & 0x0f)
    };
    bytes.chunks(188).map(header).collect()
}

/// What FFmpeg makes of the same file is what players get, cut where keyframes are; each piece can be begun with.
#[test]
fn transport_streams_are_played_as_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "door.mp4", 6, &["-c:a", "aac"]);
    let reference = folder.path().join("reference.ts");
    let whole = ["-copyinkf", "-copypriorss", "1", "-c", "copy"];
    ffmpeg(&[&["-i", video.to_str().expect("text")][..], &whole].concat(), &reference);
    let run = graph(&format!("path = '{}'", video.display()), "segment = \"2s\"\nformat = \"mpegts\"");
    let mut engine = run.run(&["--stay"]);
    let ended = engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    let url = hls_url(&mut engine, "door");
    let (_, _, text) = get_bytes(&url);
    let text = String::from_utf8(text).expect("text");
    assert!(!text.contains("EXT-X-MAP") && text.contains("#EXT-X-INDEPENDENT-SEGMENTS\n"), "{text}");
    let names: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(names.len() == 3 && names.iter().all(|name| name.contains(".ts?v=")), "{text}");
    let base = url.strip_suffix("index.m3u8").expect("a playlist");
    let mut whole = Vec::new();
    for name in names {
        let (status, headers, bytes) = get_bytes(&format!("{base}{name}"));
        assert_eq!((status, headers["content-type"].to_str().expect("text")), (200, "video/mp2t"), "{name}");
        let first: Vec<u16> = transport_packets(&bytes).iter().take(3).map(|(number, ..)| *number).collect();
        assert!(first.contains(&0) && first.contains(&0x1000), "{name} begins without its tables: {first:?}");
        let piece = folder.path().join("piece.ts");
        std::fs::write(&piece, &bytes).expect("written");
        assert!(packets(&piece, 0, false)[0].is_key, "{name}");
        assert_decodes(&piece);
        whole.extend(bytes);
    }
    let mut counters: BTreeMap<u16, u8> = BTreeMap::new();
    for (number, has_payload, counter) in transport_packets(&whole) {
        if let Some(before) = counters.insert(number, counter).filter(|_| has_payload) {
            assert_eq!(counter, (before + 1) % 16, "packets of {number:#x} are missing");
        }
    }
    for track in 0..2 {
        let (expected, found) = (packets(&reference, track, false), packets(Path::new(&url), track, false));
        assert!(hashes(&found) == hashes(&expected), "track {track}: {} of {}", found.len(), expected.len());
        let off = found[0].pts - expected[0].pts;
        assert!(found.iter().zip(&expected).all(|(found, expected)| (found.pts - expected.pts - off).abs() < 1e-4));
    }
    assert_decodes(Path::new(&url));
    let counts = &ended["streams"][0];
    assert_eq!(counts["read"], counts["delivered"], "{counts}");
    engine.terminate().expect(0);
}

#[test]
fn what_a_transport_stream_cannot_hold_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = folder.path().join("door.mp4");
    let picture = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=2", "-pix_fmt", "yuv420p"];
    ffmpeg(&[&picture[..], &["-c:v", "libvpx-vp9", "-deadline", "realtime"]].concat(), &video);
    let run = graph(&format!("path = '{}'", video.display()), "format = \"mpegts\"");
    let ended = run.run(&[]).finish();
    for part in
        ["stream `door`", "an MPEG transport stream cannot hold vp9 video", "write `format = \"fmp4\"`, which can"]
    {
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
    let run = graph("path = 'door.mp4'", "format = \"mpegts\"\nlow_latency = true");
    let checked = support::command(&["check"]).arg(run.graph()).output().expect("it runs");
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(
        !checked.status.success() && said.contains("`low_latency` needs parts of segments, which are MP4"),
        "{said}"
    );
}

/// Two recordings of different sizes, one behind the other.
#[test]
fn another_format_is_a_discontinuity() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = clip(folder.path(), "small.ts", 4, &["-c:a", "aac"]);
    let large = clip(folder.path(), "large.ts", 4, &["-vf", "scale=640:480", "-c:a", "aac"]);
    let both = folder.path().join("both.ts");
    let bytes = [small, large].map(|part| std::fs::read(part).expect("there")).concat();
    std::fs::write(&both, bytes).expect("written");
    let run = graph(&format!("path = '{}'", both.display()), "segment = \"2s\"\nkind = \"event\"");
    let mut engine = run.run(&["--stay"]);
    engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    let url = hls_url(&mut engine, "both");
    let playlist = Playlist::fetch(&url).expect("a playlist");
    assert!(playlist.is_over() && playlist.text.contains("#EXT-X-PLAYLIST-TYPE:EVENT\n"), "{}", playlist.text);
    assert_eq!(playlist.text.matches("#EXT-X-DISCONTINUITY\n").count(), 1, "{}", playlist.text);
    let [first, last] = [playlist.segments.first(), playlist.segments.last()]
        .map(|segment| segment.map(|(_, _, map)| &**map).expect("a segment"));
    assert_eq!((plain(first), plain(last)), ("init-0.mp4", "init-1.mp4"), "{}", playlist.text);
    let widths = [first, last].map(|init| {
        let file = folder.path().join("piece.mp4");
        let base = url.strip_suffix("index.m3u8").expect("a playlist");
        let (_, segment, _) = playlist.segments.iter().find(|(_, _, map)| map == init).expect("a segment");
        let pieces = [init, segment].map(|name| get_bytes(&format!("{base}{name}")).2);
        std::fs::write(&file, pieces.concat()).expect("written");
        ffprobe(&["-select_streams", "v", "-show_streams"], &file)["streams"][0]["width"].as_u64()
    });
    assert_eq!(widths, [Some(320), Some(640)]);
    engine.terminate().expect(0);
}

/// The sink goes on where it is the same, and its playlist with it.
fn a_reload_that_changes_nothing_leaves_no_trace() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "door.mp4", 8, &["-c:a", "aac"]);
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let text = |comment: &str, sink: &str| {
        format!(
            "{comment}\n[sources.video]\ntype = \"file\"\nrealtime = true\nstreams.door = {{ path = '{}', loop = true }}\n\
             [sinks.watch]\ntype = \"hls\"\ninputs = [\"video\"]\nwindow = 100\n{sink}\n",
            video.display()
        )
    };
    let put = |comment: &str, sink: &str| send("PUT", &format!("{address}/graphs/yard"), &[], &text(comment, sink));
    put("", "segment = \"1s\"").expect(201);
    let url = format!("{address}/hls/yard/door/index.m3u8");
    let listed = |engine: &mut Engine, what: &str, condition: &dyn Fn(&Playlist) -> bool| {
        engine.wait_for(what, |_| Playlist::fetch(&url).filter(condition))
    };
    let before = listed(&mut engine, "segments", &|playlist| !playlist.segments.is_empty());
    put("# nothing but this", "segment = \"1s\"").expect(200);
    let after = listed(&mut engine, "more segments", &|playlist| playlist.segments.len() >= 3);
    assert_eq!((after.sequence, after.target), (before.sequence, before.target));
    assert!(!after.text.contains("#EXT-X-DISCONTINUITY\n") && !after.is_over(), "{}", after.text);

    // Another one goes on behind it, and keeps what players know: no segment is longer.
    put("", "segment = \"4s\"").expect(200);
    let changed = listed(&mut engine, "segments of another sink", &|playlist| {
        playlist.text.split("#EXT-X-DISCONTINUITY\n").nth(1).is_some_and(|behind| behind.contains("#EXTINF:"))
    });
    assert_eq!((changed.sequence, changed.target), (before.sequence, before.target), "{}", changed.text);
    assert!(changed.text.starts_with(after.text.trim_end()) && !changed.is_over(), "{}", changed.text);
    let behind = changed.text.split("#EXT-X-DISCONTINUITY\n").nth(1).expect("it is there");
    assert!(behind.contains("#EXTINF:2.0"), "as long as they may be: {}", changed.text);
    let warned = engine.wait_for_log("its playlist has promised that");
    assert!(warned.contains("at most 2 s") && warned.contains("`door`"), "{warned}");

    // Another kind lists other segments, and those of before are kept.
    put("", "segment = \"4s\"\nformat = \"mpegts\"").expect(200);
    let transport = engine.wait_for("another form", |_| {
        let (_, _, text) = get_bytes(&url);
        String::from_utf8(text).ok().filter(|text| text.contains(".ts?v="))
    });
    assert!(transport.contains(&format!("#EXT-X-TARGETDURATION:{}\n", before.target)), "{transport}");
    let (_, kept, _) = &after.segments[2];
    assert_eq!(get_bytes(&url.replace("index.m3u8", kept)).0, 200, "players may still want it");

    send("DELETE", &format!("{address}/graphs/yard"), &[], "").expect(200);
    wait_for("the end of what was published", || (get_bytes(&url).0 == 404).then_some(()));
    engine.terminate().expect(0);
}

/// Addresses in a playlist: those of segments, and of what they are initialised by.
fn addresses(playlist: &Playlist) -> Vec<String> {
    let segments = playlist.segments.iter().flat_map(|(_, name, map)| [map.clone(), name.clone()]);
    let mut addresses: Vec<String> = segments.collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// Caches keep what was at an address for a day.
#[test]
fn an_address_never_comes_to_mean_something_else_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = clip(folder.path(), "one.mp4", 6, &["-c:a", "aac"]);
    let other = clip(folder.path(), "other.mp4", 6, &["-vf", "scale=160:120", "-c:a", "aac"]);
    for kind in ["event", "live", "vod"] {
        let mut known: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut names = Vec::new();
        for video in [&one, &other] {
            let source = format!("streams.door = '{}'", video.display());
            let run = graph(&source, &format!("segment = \"1s\"\nkind = \"{kind}\""));
            let mut engine = run.run(&["--stay"]);
            engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
            let url = hls_url(&mut engine, "door");
            let base = url.strip_suffix("index.m3u8").expect("a playlist");
            for (address, before) in &known {
                let (status, _, body) = get_bytes(&format!("{base}{address}"));
                assert!(status == 404 || body == *before, "{kind} {address}: {status}");
            }
            let playlist = Playlist::fetch(&url).expect("a playlist");
            for address in addresses(&playlist) {
                names.push(plain(&address).to_owned());
                let (status, _, body) = get_bytes(&format!("{base}{address}"));
                assert_eq!(status, 200, "{address}: {}", playlist.text);
                assert!(known.insert(address.clone(), body).is_none(), "{kind} {address}");
            }
            engine.terminate().expect(0);
        }
        // By names alone nothing would tell them apart.
        let count = names.len();
        names.sort();
        names.dedup();
        assert!(names.len() < count, "{kind} {names:?}");
    }
}

fn a_finished_stream_is_there_until_another_one_is_finished() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = clip(folder.path(), "one.mp4", 4, &["-c:a", "aac"]);
    let other = clip(folder.path(), "other.mp4", 3, &["-vf", "scale=160:120", "-c:a", "aac"]);
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let put = |source: &str| {
        let text = format!(
            "[sources.video]\ntype = \"file\"\n{source}\n[sinks.watch]\ntype = \"hls\"\ninputs = [\"video\"]\nsegment = \"1s\"\n\
             kind = \"vod\"\n"
        );
        send("PUT", &format!("{address}/graphs/yard"), &[], &text)
    };
    put(&format!("streams.door = '{}'", one.display())).expect(201);
    let url = format!("{address}/hls/yard/door/index.m3u8");
    let base = url.strip_suffix("index.m3u8").expect("a playlist").to_owned();
    let before = engine.wait_for("a playlist", |_| Playlist::fetch(&url));
    let fetch = |playlist: &Playlist| -> Vec<(u16, Vec<u8>)> {
        let answers = addresses(playlist).into_iter().map(|name| get_bytes(&format!("{base}{name}")));
        answers.map(|(status, _, body)| (status, body)).collect()
    };
    let content = fetch(&before);
    assert!(content.iter().all(|(status, _)| *status == 200), "{}", before.text);
    // So slow that somebody can look while it is made.
    put(&format!("realtime = true\nstreams.door = '{}'", other.display())).expect(201);
    let mut looked = 0;
    let after = engine.wait_for("the other playlist", |_| {
        let playlist = Playlist::fetch(&url).expect("there is one all the time");
        assert!(fetch(&before) == content, "what was listed has changed");
        looked += 1;
        (playlist.text != before.text).then_some(playlist)
    });
    assert!(looked > 1 && after.is_over(), "{}", after.text);
    assert!((after.duration() - 3.0).abs() < 0.1, "{}", after.text);
    assert!(fetch(&after).iter().all(|(status, _)| *status == 200), "{}", after.text);
    assert!(addresses(&after).iter().all(|address| !addresses(&before).contains(address)), "{}", after.text);
    assert!(fetch(&before) == content, "players may still want it");
    assert_decodes(Path::new(&url));
    engine.terminate().expect(0);
}

/// Pictures that are shown before the keyframe of their group need those of the group before.
#[test]
fn segments_of_open_groups_are_not_said_to_be_independent() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = ["-x264-params", "open-gop=1:keyint=26:min-keyint=26:scenecut=0:bframes=3:b-adapt=0"];
    for (name, options, is_independent) in [("closed.mp4", &[][..], true), ("open.mp4", &open[..], false)] {
        let video = clip(folder.path(), name, 6, &[options, &["-c:a", "aac"]].concat());
        for low_latency in [false, true] {
            let sink = format!("segment = \"1s\"\nkind = \"event\"\nlow_latency = {low_latency}");
            let run = graph(&format!("streams.door = '{}'", video.display()), &sink);
            let mut engine = run.run(&["--stay"]);
            engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
            let url = hls_url(&mut engine, "door");
            let text = String::from_utf8(get_bytes(&url).2).expect("text");
            assert!(text.matches("#EXTINF:").count() >= 5, "{text}");
            let claims = text.contains("#EXT-X-INDEPENDENT-SEGMENTS\n");
            assert_eq!(claims, is_independent, "{name}, low latency {low_latency}: {text}");
            assert_decodes(Path::new(&url));
            engine.terminate().expect(0);
        }
    }
}

/// What nobody can fetch is said where it is asked for, and at the end.
#[test]
fn what_no_segment_can_hold_is_said_wherever_somebody_looks() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = folder.path().join("door.webm");
    let picture = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=2", "-pix_fmt", "yuv420p"];
    ffmpeg(&[&picture[..], &["-c:v", "libvpx", "-deadline", "realtime"]].concat(), &video);
    for (source, kind, expected) in [
        (format!("streams.door = '{}'", video.display()), "vod", 1),
        (format!("realtime = true\nstreams.door = {{ path = '{}', loop = true }}", video.display()), "live", 1),
    ] {
        let run = graph(&source, &format!("kind = \"{kind}\""));
        let mut engine = run.run(&["--stay"]);
        engine.wait_for_graph("rejected packets", |graph| graph["streams"][0]["rejected"].as_u64() > Some(5));
        if kind == "vod" {
            engine.wait_for_graph("the end", |graph| graph["state"] == "finished" || graph["state"] == "failed");
        }
        let (_, told) = engine.get("/streams/door");
        assert!(told["hls_url"].is_null(), "{told}");
        let (status, told) = engine.get("/hls/graph/door/index.m3u8");
        assert_eq!(
            (status, &told["error"]),
            (404, &"stream `door` cannot be published: MP4 cannot hold vp8 video".into())
        );
        assert!(told["hint"].as_str().is_some_and(|hint| hint.contains("libx264")), "{told}");
        let ended = engine.terminate().expect(expected);
        for part in ["every item was rejected", "sink `watch`: stream `door`: MP4 cannot hold vp8 video"] {
            assert!(ended.stderr.contains(part), "{}", ended.stderr);
        }
        assert!(!ended.stderr.contains("error records"), "{}", ended.stderr);
    }
}

#[test]
fn two_sinks_cannot_publish_at_one_address() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "door.mp4", 3, &["-c:a", "aac"]);
    let run = graph(&format!("path = '{}'", video.display()), "\n[sinks.again]\ntype = \"hls\"\ninputs = [\"video\"]");
    let ended = run.run(&[]).finish();
    for part in ["stream `door`", "publishes a stream of this name already", "keep one of the two sinks"] {
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
}

/// What does not fit is refused with a word, and what is listed is there all the same.
#[test]
fn a_full_disk_is_said_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "door.mp4", 8, &["-c:a", "aac"]);
    let run = graph(&format!("path = '{}'", video.display()), "segment = \"1s\"\nmemory = 40000\ndisk = 40000");
    let mut engine = run.run(&["--stay"]);
    let ended = engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    let stream = &ended["streams"][0];
    assert_conserved(stream);
    assert!(stream["lost"].as_u64() > Some(0) && stream["delivered"].as_u64() > Some(0), "{stream}");
    let url = hls_url(&mut engine, "door");
    let playlist = Playlist::fetch(&url).expect("a playlist");
    let base = url.strip_suffix("index.m3u8").expect("a playlist");
    for (_, name, _) in &playlist.segments {
        let status = if playlist.gaps.contains(name) { 404 } else { 200 };
        assert_eq!(get_bytes(&format!("{base}{name}")).0, status, "{name}: {}", playlist.text);
    }
    // What was lost keeps its time.
    assert!(!playlist.gaps.is_empty() && !playlist.text.contains("DISCONTINUITY"), "{}", playlist.text);
    assert!((playlist.duration() - 8.0).abs() < 0.1, "{}", playlist.text);
    let (_, told) = support::get(&format!("{base}{}", playlist.gaps[0]));
    assert!(told["error"].as_str().is_some_and(|error| error.ends_with("is lost")), "{told}");
    let said = engine.terminate().stderr;
    for part in ["`watch`", "stream `door`", "which is all that `disk` allows", "give `disk` more"] {
        assert!(said.contains(part), "{said}");
    }
}

/// Chromium with hls.js plays a file to its end, also where pictures become larger in the middle, and a live stream on
/// and on.
#[test]
fn a_browser_plays_it() {
    let Some(page) = PlayerPage::serve() else { return };
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let video = clip(folder.path(), "door.mp4", 2, &["-c:a", "aac"]);
    let small = clip(folder.path(), "small.ts", 2, &["-c:a", "aac"]);
    let large = clip(folder.path(), "large.ts", 2, &["-vf", "scale=640:480", "-c:a", "aac"]);
    let both = folder.path().join("both.ts");
    let bytes = [small, large].map(|part| std::fs::read(part).expect("there")).concat();
    std::fs::write(&both, bytes).expect("written");
    let run = Folder::with_graph(&format!(
        "[sources.video]\ntype = \"file\"\nstreams.door = '{0}'\nstreams.both = '{1}'\n\
         [sinks.watch]\ntype = \"hls\"\ninputs = [\"video\"]\n\
         segment = \"1s\"\n[sources.paced]\ntype = \"file\"\nrealtime = true\nstreams.live = {{ path = '{0}', loop = true }}\n\
         [sinks.live]\ntype = \"hls\"\ninputs = [\"paced\"]\nsegment = \"1s\"\n\
         [sources.broadcast]\ntype = \"file\"\nstreams.transport = '{0}'\n\
         [sinks.transport]\ntype = \"hls\"\ninputs = [\"broadcast\"]\nsegment = \"1s\"\nformat = \"mpegts\"\n",
        video.display(),
        both.display()
    ));
    let mut engine = run.run(&["--stay", "--allow-origin", &page.origin]);
    for stream in ["door", "transport", "both", "live"] {
        let address = engine.address();
        let url = format!("{address}/hls/graph/{stream}/index.m3u8");
        engine.wait_for("a playlist", |_| (get_bytes(&url).0 == 200).then_some(()));
        browser.open(&page.of(&url, ""));
        browser.wait("video.videoWidth === 320 && video.videoHeight === 240");
        match stream {
            "both" => {
                assert!(Playlist::fetch(&url).expect("a playlist").text.contains("#EXT-X-DISCONTINUITY\n"));
                browser.wait("video.videoWidth === 640 && video.videoHeight === 480 && video.currentTime > 2");
                browser.wait("video.ended && video.currentTime > 3.5");
            }
            "live" => {
                // Through more than one repetition.
                let begun = browser.wait("video.currentTime").as_f64().expect("seconds");
                browser.wait(&format!("video.currentTime > {} && !video.paused", begun + 2.5));
            }
            _ => {
                browser.wait("video.ended && video.currentTime > 1.5");
            }
        }
        assert_eq!(browser.wait("[window.problems.join(), window.stalls]")[0], "", "{stream}");
    }
    let (_, complaints) = browser.seen();
    assert!(complaints.is_empty(), "{complaints:?}");
    engine.terminate().expect(0);
}

/// The camera is away and comes back: the playlist goes on behind a discontinuity, and so do players; also one that has
/// played all there was.
#[test]
fn a_camera_that_comes_back_is_a_discontinuity_and_not_the_end() {
    if !server_is_here() {
        return;
    }
    // Without a browser, all else is looked at.
    let mut viewer = PlayerPage::serve().and_then(|page| Browser::start().map(|browser| (page, browser)));
    let folder = tempfile::tempdir().expect("a folder");
    let clip = support::cameras::clip(folder.path(), "camera.mp4", "160x120", &[]);
    let port = free_port();
    let server = RtspServer::start(port, &[("cam", &clip)], &[]);
    let graph = repository().join("graphs/camera-to-hls.toml");
    let mut settings = vec!["--set", "segment=1s", "--set", "window=60"];
    if let Some((page, _)) = &viewer {
        settings.extend(["--allow-origin", &page.origin]);
    }
    let mut engine = run_graph(&graph, &settings, |command| {
        command.env("CAMERA_URL", server.url("cam"));
    });
    let url = format!("{}/hls/camera-to-hls/camera/index.m3u8", engine.address());
    let mut watched = Watched::default();
    let mut listed = |engine: &mut Engine, what: &str, condition: &dyn Fn(&Playlist) -> bool| {
        engine.wait_for(what, |_| {
            let playlist = Playlist::fetch(&url)?;
            watched.look(&url, &playlist);
            condition(&playlist).then_some(playlist)
        })
    };
    let before = listed(&mut engine, "segments", &|playlist| playlist.segments.len() >= 3);
    assert!(!before.text.contains("DISCONTINUITY\n"), "{}", before.text);
    if let Some((page, browser)) = &mut viewer {
        browser.open(&page.of(&url, ""));
        browser.wait("video.videoWidth === 160 && video.currentTime > 1");
    }
    server.kill();
    engine.wait_for_graph("the loss", |graph| graph["streams"][0]["state"] == "retrying");
    let server = RtspServer::start(port, &[("cam", &clip)], &[]);
    let behind = |playlist: &Playlist| playlist.text.split("#EXT-X-DISCONTINUITY\n").nth(1).map(str::to_owned);
    let is_back = |playlist: &Playlist| behind(playlist).is_some_and(|behind| behind.matches("#EXTINF").count() >= 3);
    let after = listed(&mut engine, "segments behind the loss", &is_back);
    assert!(!after.is_over() && after.sequence == before.sequence, "{}", after.text);
    // A player goes through it.
    let played = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-live_start_index", "0", "-i", &url, "-t", "5", "-f", "null", "-"])
        .output()
        .expect("ffmpeg is installed");
    assert!(played.status.success(), "{}", String::from_utf8_lossy(&played.stderr));
    if let Some((_, browser)) = &mut viewer {
        let behind = behind(&after).expect("it is there");
        let date = behind.lines().find_map(|line| line.strip_prefix("#EXT-X-PROGRAM-DATE-TIME:")).expect("a date");
        let back = date.parse::<jiff::Timestamp>().expect("a date").as_millisecond();
        browser.wait(&format!("window.shown() > {}", back + 1000));
        let shown = browser.wait("video.currentTime").as_f64().expect("seconds");
        browser.wait(&format!("video.currentTime > {} && !video.paused", shown + 1.0));
        assert_eq!(browser.wait("[window.problems.join(), window.stalls]")[0], "");
    }
    let ended = engine.terminate().expect(0);
    assert_eq!(ended.counts("camera").lost, 0, "{}", ended.stderr);
    server.kill();
}
