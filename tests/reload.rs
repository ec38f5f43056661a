//! Random edits of a running graph, put over HTTP: whatever is changed beside them, each stream comes to a file once and in
//! order, chunks follow one another without a seam, and a camera is connected to once.
//!
//! A run is told by its seed; `ENGINE_SEED=7` repeats the edits of the one that failed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use support::cameras::{Relay, RtspServer, clip, server_is_here};
use support::{Engine, assert_unbroken, ffmpeg, get, run_folder, send, soak};

/// A small generator of numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // splitmix64, <https://prng.di.unimi.it/splitmix64.c>
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn one_of<'a>(&mut self, names: &[&'a str]) -> &'a str {
        names[usize::try_from(self.roll(names.len() as u64)).expect("an index")]
    }
}

/// What changes of the graph; around it stands what never does.
#[derive(Clone, Debug, Default)]
struct Edits {
    /// Streams of `scene`, beside `a`.
    more: BTreeSet<&'static str>,
    /// Pictures a second of a second source, where there is one.
    other: Option<u64>,
    /// Further operators: what each reads.
    twins: BTreeMap<String, Vec<&'static str>>,
    /// Those of them that go to `out` beside `sum`; the others have a file of their own.
    joined: BTreeSet<String>,
    /// A second chunk operator beside the one that stays.
    chunks: bool,
    next: u64,
}

const SOURCES: [&str; 3] = ["scene", "slow", "other"];

impl Edits {
    fn change(&mut self, dice: &mut Dice) {
        self.next += 1;
        let some_twin = |dice: &mut Dice, twins: &BTreeMap<String, Vec<&str>>| {
            let names: Vec<&str> = twins.keys().map(String::as_str).collect();
            if names.is_empty() { None } else { Some(dice.one_of(&names).to_owned()) }
        };
        match dice.roll(8) {
            0 | 1 => {
                let stream = dice.one_of(&["b", "c", "d"]);
                if !self.more.remove(stream) {
                    self.more.insert(stream);
                }
            }
            2 => self.other = if self.other.is_some() { None } else { Some(40 + dice.roll(3)) },
            3 => self.other = self.other.map(|fps| fps + 1),
            4 if self.twins.len() < 4 => {
                let name = format!("twin{}", self.next);
                let reads = vec![dice.one_of(&SOURCES)];
                if dice.roll(2) == 0 {
                    self.joined.insert(name.clone());
                }
                self.twins.insert(name, reads);
            }
            4 | 5 => {
                if let Some(name) = some_twin(dice, &self.twins) {
                    self.twins.remove(&name);
                    self.joined.remove(&name);
                }
            }
            6 => {
                // Its results go elsewhere from here on.
                if let Some(name) = some_twin(dice, &self.twins)
                    && !self.joined.remove(&name)
                {
                    self.joined.insert(name);
                }
            }
            _ => self.chunks = !self.chunks,
        }
        if self.other.is_none() {
            self.twins.retain(|_, reads| !reads.contains(&"other"));
        }
        self.joined.retain(|name| self.twins.contains_key(name));
    }

    fn text(&self, camera: Option<&str>) -> String {
        use std::fmt::Write as _;
        let streams: Vec<String> = std::iter::once(&"a").chain(&self.more).map(|id| format!("\"{id}\"")).collect();
        let mut outs = vec!["\"sum\"".to_owned()];
        outs.extend(self.joined.iter().map(|name| format!("\"{name}\"")));
        let mut text = format!(
            "[sources.scene]\ntype = \"synthetic\"\nwidth = 64\nheight = 48\nfps = 60\nstreams = [{}]\noverflow = \"block\"\n\
             [operators.sum]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
             [sinks.out]\ntype = \"file\"\ninputs = [{}]\npath = \"out.jsonl\"\n\
             [sources.video]\ntype = \"file\"\nstreams.clip = \"clip.mp4\"\nrealtime = true\noverflow = \"block\"\n\
             [operators.parts]\ntype = \"chunk\"\ninputs = [\"video\"]\nevery = \"1s\"\n\
             [sinks.told]\ntype = \"file\"\ninputs = [\"parts\"]\npath = \"told.jsonl\"\n",
            streams.join(", "),
            outs.join(", "),
        );
        if let Some(url) = camera {
            write!(
                text,
                "[sources.cameras]\ntype = \"rtsp\"\nstreams.yard = \"{url}\"\n\
                 [operators.filmed]\ntype = \"chunk\"\ninputs = [\"cameras\"]\nevery = \"1s\"\n\
                 [sinks.seen]\ntype = \"file\"\ninputs = [\"filmed\"]\npath = \"seen.jsonl\"\n"
            )
            .expect("written");
        }
        if let Some(fps) = self.other {
            write!(
                text,
                "[sources.other]\ntype = \"synthetic\"\nwidth = 64\nheight = 48\nfps = {fps}\nstreams = [\"x\", \"y\"]\n\
                 overflow = \"block\"\n[sinks.rest]\ntype = \"blackhole\"\ninputs = [\"other\"]\n"
            )
            .expect("written");
        }
        if self.twins.values().flatten().any(|reads| *reads == "slow") {
            text.push_str("[operators.slow]\ntype = \"sample\"\ninputs = [\"scene\"]\nfps = 20\n");
        }
        for (name, reads) in &self.twins {
            write!(text, "[operators.{name}]\ntype = \"checksum\"\ninputs = [\"{}\"]\n", reads.join("\", \""))
                .expect("written");
            if !self.joined.contains(name) {
                write!(text, "[sinks.of_{name}]\ntype = \"file\"\ninputs = [\"{name}\"]\npath = \"{name}.jsonl\"\n")
                    .expect("written");
            }
        }
        if self.chunks {
            text.push_str(
                "[operators.further]\ntype = \"chunk\"\ninputs = [\"video\"]\nevery = \"2s\"\n\
                 [sinks.hole]\ntype = \"blackhole\"\ninputs = [\"further\"]\n",
            );
        }
        text
    }
}

fn records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the sink made its file");
    text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

/// Chunks of one stream are told in order, and of nothing between them.
fn assert_numbered(told: &[Value]) {
    assert!(told.len() > 1, "{} chunks", told.len());
    for (index, record) in told.iter().enumerate() {
        assert_eq!((&record["kind"], record["index"].as_u64()), (&"segment".into(), Some(index as u64)), "{record}");
    }
}

fn wait_for_items(engine: &mut Engine, more: u64) {
    let delivered = |engine: &mut Engine| {
        let graph = engine.wait_for_graph("the graph", |graph| graph["state"] == "running");
        let streams = graph["streams"].as_array().expect("a list").clone();
        streams.iter().find(|stream| stream["stream"] == "a").expect("it stays")["delivered"].as_u64().expect("a count")
    };
    let before = delivered(engine);
    let address = engine.address();
    engine.wait_for("further items", |_| {
        let (_, stats) = get(&format!("{address}/stats"));
        let streams = stats["graphs"][0]["streams"].as_array()?.clone();
        let stream = streams.iter().find(|stream| stream["stream"] == "a")?;
        (stream["delivered"].as_u64()? >= before + more).then_some(())
    });
}

/// What random edits left behind is what an undisturbed run would have.
fn run(seed: u64, reloads: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| folder.path().join(name);
    // Longer than the test, with a keyframe twice a second.
    ffmpeg(
        &[
            "-f",
            "lavfi",
            "-i",
            "testsrc=size=128x96:rate=20:duration=600",
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
            "-g",
            "10",
            "-bf",
            "0",
        ],
        &place("clip.mp4"),
    );
    let server = server_is_here().then(|| {
        let film = clip(folder.path(), "film.mp4", "160x120", &["-g", "10"]);
        let server = RtspServer::start(0, &[("yard", &film)], &[]);
        let relay = Relay::start(server.port);
        (server, relay)
    });
    let camera = server.as_ref().map(|(_, relay)| format!("rtsp://127.0.0.1:{}/yard", relay.port));
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let put = |edits: &Edits| send("PUT", &format!("{address}/graphs/door"), &[], &edits.text(camera.as_deref()));
    let (mut dice, mut edits) = (Dice(seed), Edits::default());
    put(&edits).expect(201);
    for reload in 0..reloads {
        let before = edits.clone();
        for _ in 0..=dice.roll(2) {
            edits.change(&mut dice);
        }
        let reloaded = put(&edits).expect(200);
        assert_eq!((&reloaded["lost"], reloaded.get("stuck")), (&0.into(), None), "reload {reload}: {reloaded}");
        let kept = |what: &str, name: &str| {
            let kept = reloaded[what]["kept"].as_array().expect("a list");
            assert!(kept.contains(&name.into()), "reload {reload} left {name} alone: {reloaded}");
        };
        ["sum", "out", "parts", "told"].into_iter().for_each(|name| kept("nodes", name));
        ["a", "clip"].into_iter().for_each(|name| kept("streams", name));
        before.more.intersection(&edits.more).for_each(|name| kept("streams", name));
        if dice.roll(2) == 0 {
            wait_for_items(&mut engine, 10);
        }
    }
    wait_for_items(&mut engine, 10);
    engine.wait_until_conserved();
    let ended = send("DELETE", &format!("{address}/graphs/door"), &[], "").expect(200);
    assert_eq!((&ended["stuck"], &ended["failures"]), (&Value::Array(vec![]), &Value::Array(vec![])), "{ended}");

    let all = records(&place("out.jsonl"));
    let (sums, twins): (Vec<Value>, Vec<Value>) = all.into_iter().partition(|record| record["node"] == "sum");
    let counts = assert_unbroken(&sums);
    assert!(counts["a"] >= 10 && counts.len() >= 2, "{counts:?}");
    assert_ordered(&twins);
    let own = std::fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    for file in own.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("twin")) {
        assert_ordered(&records(&place(&file)));
    }
    let told = records(&place("told.jsonl"));
    assert_numbered(&told);
    for pair in told.windows(2) {
        assert_eq!(pair[1]["start"], pair[0]["end"], "a chunk begins where the one before ended");
    }
    if let Some((_server, relay)) = &server {
        assert_eq!(relay.connections(), 1, "the camera was left alone");
        let mut seen = records(&place("seen.jsonl"));
        // A machine that is busy with other things may drop of a camera, and says so.
        seen.retain(|record| record["kind"] == "segment");
        assert_numbered(&seen);
    }
    engine.terminate().expect(0);
}

/// What each node says of each stream comes in order, and nothing twice.
fn assert_ordered(records: &[Value]) {
    let mut last: BTreeMap<(String, String), u64> = BTreeMap::new();
    for record in records {
        let name = |field: &str| record[field].as_str().expect("a name").to_owned();
        let seq = record["seq"].as_u64().expect("a number");
        let before = last.insert((name("node"), name("stream")), seq);
        assert!(before.is_none_or(|before| before < seq), "{record} behind {before:?}");
    }
}

/// More pictures than a decoder holds back to put them in order.
const IN_THE_DECODER: usize = 16;

/// A reader that wants all pictures comes beside one that wants some: it gets the pictures of a full decode, from where it
/// came on, in the middle of a group of pictures.
#[test]
fn more_pictures_come_at_once_and_are_those_of_a_full_decode() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| folder.path().join(name);
    // One group of pictures.
    let picture = "testsrc=size=128x96:rate=25:duration=60";
    ffmpeg(
        &["-f", "lavfi", "-i", picture, "-c:v", "libx264", "-g", "9999", "-bf", "3", "-sc_threshold", "0"],
        &place("clip.mp4"),
    );
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let graph = |source: &str, more: &str| {
        format!(
            "[sources.video]\ntype = \"file\"\n{source}\noverflow = \"block\"\n\
             [operators.some]\ntype = \"sample\"\ninputs = [\"video\"]\nfps = 1\n\
             [sinks.hole]\ntype = \"blackhole\"\ninputs = [\"some\"]\n{more}"
        )
    };
    let all = |name: &str| {
        format!(
            "[operators.sum]\ntype = \"checksum\"\ninputs = [\"video\"]\n\
             [sinks.out]\ntype = \"file\"\ninputs = [\"sum\"]\npath = \"{name}.jsonl\"\n"
        )
    };
    let put = |name: &str, text: &str| send("PUT", &format!("{address}/graphs/{name}"), &[], text);
    put("whole", &graph("streams.whole = \"clip.mp4\"", &all("whole"))).expect(201);
    let lines = |name: &str| Some(std::fs::read_to_string(place(name)).ok()?.lines().count());
    engine.wait_for("the whole decode", |_| (lines("whole.jsonl")? == 1500).then_some(()));
    let paced = "streams.paced = \"clip.mp4\"\nrealtime = true";
    put("door", &graph(paced, "")).expect(201);
    let stream = || get(&format!("{address}/streams/paced")).1;
    engine.wait_for("some pictures", |_| (stream()["filtered"].as_u64()? > 10).then_some(()));
    put("door", &graph(paced, &all("more"))).expect(200);
    engine.wait_for("more pictures", |_| (lines("more.jsonl")? > 50).then_some(()));
    send("DELETE", &format!("{address}/graphs/door"), &[], "").expect(200);
    let sums = |name: &str| -> Vec<(u64, String)> {
        let sum = |record: &Value| {
            (record["seq"].as_u64().expect("a number"), record["md5"].as_str().expect("a sum").to_owned())
        };
        records(&place(name)).iter().map(sum).collect()
    };
    let (whole, more) = (sums("whole.jsonl"), sums("more.jsonl"));
    let first = usize::try_from(more[0].0).expect("an index");
    assert!((10..1400).contains(&first), "in the middle: {first}");
    for (seq, sum) in &more {
        let expected = &whole[usize::try_from(*seq).expect("an index")];
        assert_eq!((seq, sum), (&expected.0, &expected.1));
    }
    // Of the packets that were read before, and whose pictures had not come yet, some may have been left out.
    let (_, after) = more.split_at(IN_THE_DECODER);
    assert!(after.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "{after:?}");
    assert!(more[IN_THE_DECODER].0 <= more[0].0 + 2 * IN_THE_DECODER as u64, "it did not wait for anything");
    engine.terminate().expect(0);
}

#[test]
fn random_edits_leave_alone_what_they_do_not_touch() {
    let seed = std::env::var("ENGINE_SEED").ok().and_then(|seed| seed.parse().ok());
    let (runs, edits) = if soak() { (10, 20) } else { (1, 10) };
    let seeds = seed.map_or_else(|| (1..=runs).collect::<Vec<u64>>(), |seed| vec![seed]);
    for seed in seeds {
        println!("ENGINE_SEED={seed}");
        run(seed, edits);
    }
}
