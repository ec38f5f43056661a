//! What happens around a graph that must not take it down: a panic on each worker, subscribers that die, fall asleep and
//! are very many, a disk that fills and has room again, and the power that fails.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use serde_json::Value;
use support::probe::assert_all_decode;
use support::second::counts;
use support::{Engine, Folder, command, ffmpeg, get, wait_for};

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no count: {value}"))
}

fn stream<'g>(graph: &'g Value, name: &str) -> &'g Value {
    let streams = graph["streams"].as_array().expect("a list");
    streams.iter().find(|stream| stream["stream"] == *name).unwrap_or_else(|| panic!("no stream `{name}`: {graph}"))
}

#[test]
fn panics_on_each_worker_take_nothing_else_along() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let folder = Folder::with_graph(&format!(
        "[sources.scene]\ntype = 'synthetic'\nwidth = 16\nheight = 16\nrealtime = false\nframes = 300\nstreams = {names:?}\n\
         [operators.every]\ntype = 'sample'\ninputs = ['scene']\nfps = 30\n\
         [operators.sum]\ntype = 'checksum'\ninputs = ['every']\n\
         [sinks.out]\ntype = 'file'\ninputs = ['sum']\npath = 'out.jsonl'\n\
         [chaos.nodes.every]\npanic = 0.1\n"
    ));
    let mut engine = folder.run(&["--chaos", "--workers", "4", "--stay"]);
    let graph = engine.wait_for_graph("the end of the graph", |graph| graph["state"] == "finished");
    let every = graph["nodes"].as_array().expect("a list").iter().find(|node| node["name"] == "every");
    let items = every.expect("the operator runs on the workers")["items"].as_array().expect("a list").clone();
    assert!(items.len() == 4 && items.iter().all(|items| number(items) > 0), "each worker has some streams: {items:?}");
    let ended = engine.terminate().expect(0);
    let mut records = BTreeMap::<String, Vec<Value>>::new();
    for record in folder.records("out.jsonl") {
        records.entry(record["stream"].as_str().expect("a stream").to_owned()).or_default().push(record);
    }
    for name in names {
        let counts = ended.counts(name);
        assert_eq!((counts.read, counts.delivered + counts.rejected), (300, 300), "{name}: {counts:?}");
        assert!((10..60).contains(&counts.rejected), "{name}: a tenth panics: {counts:?}");
        let of = |kind: &str| records[name].iter().filter(|record| record["kind"] == *kind).count() as u64;
        assert_eq!((of("checksum"), of("error"), of("gap")), (counts.delivered, counts.rejected, counts.rejected));
        let numbers =
            records[name].iter().filter(|record| record["kind"] != "gap").map(|record| number(&record["seq"]));
        assert!(numbers.eq(0..300), "{name}: each once, in order, results and errors alike");
    }
}

/// Two streams for subscribers: one that shows something rarely, and one that would fill any buffer.
const LISTENED_TO: &str = "[sources.calm]\ntype = 'synthetic'\nwidth = 16\nheight = 16\nfps = 10\nstreams = ['calm']\n\
     overflow = 'block'\n\
     [sources.busy]\ntype = 'synthetic'\nwidth = 16\nheight = 16\nfps = 1000\nstreams = ['busy']\noverflow = 'block'\n\
     [operators.sum]\ntype = 'checksum'\ninputs = ['calm', 'busy']\n\
     [sinks.events]\ntype = 'sse'\ninputs = ['sum']\n";

/// A subscriber that costs a socket, and no thread.
struct Subscriber {
    socket: TcpStream,
    /// What came and is no whole line yet.
    rest: Vec<u8>,
    last: Option<u64>,
    count: u64,
    /// What it was told of events that it has lost.
    told: Option<Value>,
}

impl Subscriber {
    fn listen(address: &str, stream: &str) -> Subscriber {
        let host = address.strip_prefix("http://").expect("an address");
        let mut socket = TcpStream::connect(host).expect("a connection");
        // An answer of HTTP/1.0 has no chunks, so lines are lines.
        write!(socket, "GET /events?stream={stream} HTTP/1.0\r\nHost: {host}\r\n\r\n").expect("written");
        socket.set_nonblocking(true).expect("a socket");
        Subscriber { socket, rest: Vec::new(), last: None, count: 0, told: None }
    }

    /// Reads what is there; each event that comes must follow the one before.
    fn read(&mut self) {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => panic!("the server ended an answer after {} events", self.count),
                Ok(count) => self.rest.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("after {} events: {error}", self.count),
            }
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                self.line(std::str::from_utf8(&line).expect("text").trim_end());
            }
        }
    }

    fn line(&mut self, line: &str) {
        let Some(data) = line.strip_prefix("data: ") else { return };
        let event: Value = serde_json::from_str(data).expect("JSON");
        if event["kind"] == "gap" && event["seq"].is_null() {
            self.told = Some(event);
            self.last = None;
            return;
        }
        let seq = number(&event["seq"]);
        assert!(self.last.is_none_or(|last| seq == last + 1), "{seq} behind {:?}", self.last);
        self.last = Some(seq);
        self.count += 1;
    }
}

/// As many descriptors as this process may have.
fn raise_descriptors() -> u64 {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("it may be raised that far");
    most
}

#[test]
fn a_thousand_subscribers_and_those_who_sleep_or_die_harm_nobody() {
    assert!(raise_descriptors() >= 1500, "this machine allows too few open sockets");
    let folder = Folder::with_graph(LISTENED_TO);
    // Whoever reads nothing for three times this is cut off, and here they are to sleep on.
    std::fs::write(folder.file("engine.toml"), "[limits]\nheader_time = \"10m\"\n").expect("written");
    let mut engine = folder.run(&["--config", "engine.toml"]);
    let address = engine.address();
    let mut awake: Vec<Subscriber> = (0..990).map(|_| Subscriber::listen(&address, "calm")).collect();
    let mut asleep: Vec<Subscriber> = (0..10).map(|_| Subscriber::listen(&address, "busy")).collect();
    let dying: Vec<Subscriber> = (0..10).map(|_| Subscriber::listen(&address, "busy")).collect();
    wait_for("all subscribers", || {
        awake.iter_mut().for_each(Subscriber::read);
        (get(&format!("{address}/stats")).1["events"]["subscribers"] == 1010).then_some(())
    });
    drop(dying);
    let mut missed = None;
    let before = awake.iter().map(|one| one.count).min().unwrap_or_default();
    let stats = wait_for("events for everybody, and too many for those who sleep", || {
        awake.iter_mut().for_each(Subscriber::read);
        let stats = get(&format!("{address}/stats")).1;
        let heard = awake.iter().all(|one| one.count >= before + 30);
        let events = &stats["events"];
        if events["subscribers"] != 1000 {
            return None;
        }
        // What those who died have missed is nothing that a sleeper hears of.
        let earlier = *missed.get_or_insert(number(&events["missed"]));
        (heard && number(&events["missed"]) > earlier).then_some(stats)
    });
    let graph = &stats["graphs"][0];
    engine.wait_until_conserved();
    let calm = stream(graph, "calm");
    assert_eq!((number(&calm["dropped"]), number(&calm["lost"]), number(&calm["rejected"])), (0, 0, 0), "{calm}");
    for one in &awake {
        assert_eq!(one.told, None, "who listens misses nothing");
    }
    // Whoever wakes up hears how much has gone by, and then what is new. Not all need have missed something yet: how much
    // their sockets hold differs.
    let told = wait_for("what a sleeper has lost", || {
        asleep.iter_mut().for_each(Subscriber::read);
        asleep.iter().find_map(|one| one.told.clone().filter(|_| one.last.is_some()))
    });
    assert!(number(&told["lost"]) > 0, "{told}");
    assert_eq!(told["reason"], "this subscriber read too slowly");

    let ended = engine.terminate().expect(0);
    assert_eq!(ended.counts("calm").delivered, ended.counts("calm").read);
    assert_eq!(ended.counts("busy").lost, 0);
}

/// The engine on a graph, as a process in which a file that is too large is an error of the write and not the end.
fn run_with_limited_files(folder: &Folder) -> Engine {
    let plain = command(&["run", "graph.toml", "--listen", "127.0.0.1:0"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.current_dir(folder.path());
    Engine::start(shell)
}

/// From here on no file of the process may be larger than so many bytes, or than any.
fn limit_files(engine: &Engine, bytes: &str) {
    let limited = Command::new("prlimit")
        .args(["--pid", &engine.id().to_string(), &format!("--fsize={bytes}:unlimited")])
        .status()
        .expect("prlimit is there");
    assert!(limited.success());
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).expect("the sink made its file").len()
}

#[test]
fn a_disk_that_fills_tears_no_record_and_goes_on_when_there_is_room() {
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = 'synthetic'\nwidth = 16\nheight = 16\nfps = 200\n\
         [operators.sum]\ntype = 'checksum'\ninputs = ['scene']\n\
         [sinks.out]\ntype = 'file'\ninputs = ['sum']\npath = 'out.jsonl'\n",
    );
    let mut engine = run_with_limited_files(&folder);
    let address = engine.address();
    let enough = |graph: &Value, more: u64| number(&graph["total"]["delivered"]) >= more;
    engine.wait_for_graph("records", |graph| enough(graph, 50));
    // In the middle of a record.
    limit_files(&engine, &(length(&folder.file("out.jsonl")) + 1000).to_string());
    let health = engine.wait_for("a failing health", |_| {
        let (status, health) = get(&format!("{address}/health"));
        (status == 503 && health["status"] == "failing").then_some(health)
    });
    let problem = health["problems"][0].as_str().expect("text");
    for part in ["node `out`: ", "stream `synthetic`", "out.jsonl", "file too large", "make room on that disk"] {
        assert!(problem.contains(part), "{part} is missing: {problem}");
    }
    let graph = engine.wait_for_graph("losses", |graph| number(&graph["total"]["lost"]) >= 20);
    engine.wait_until_conserved();
    limit_files(&engine, "unlimited");
    let so_far = number(&graph["total"]["delivered"]);
    engine.wait_for_graph("records again", |graph| enough(graph, so_far + 100));
    let ended = engine.terminate().expect(1);
    let counts = ended.counts("synthetic");
    assert!(counts.lost >= 20, "{counts:?}");
    let numbers: Vec<u64> = folder.records("out.jsonl").iter().map(|record| number(&record["seq"])).collect();
    assert_eq!(numbers.len() as u64, counts.delivered, "what counts as delivered is in the file");
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "each once, in order");
    assert!(numbers.windows(2).any(|pair| pair[0] + 1 < pair[1]), "and what was lost is not");
}

#[test]
fn a_kill_tears_at_most_the_last_record() {
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = 'synthetic'\nwidth = 16\nheight = 16\nrealtime = false\nstreams = ['a', 'b']\n\
         [operators.sum]\ntype = 'checksum'\ninputs = ['scene']\n\
         [sinks.out]\ntype = 'file'\ninputs = ['sum']\npath = 'out.jsonl'\n",
    );
    for round in 1..=5 {
        let mut engine = folder.run(&[]);
        let graph = engine.wait_for_graph("records", |graph| number(&graph["total"]["delivered"]) > round * 300);
        engine.signal(Signal::SIGKILL);
        engine.finish();
        let text = std::fs::read_to_string(folder.file("out.jsonl")).expect("its output");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let records: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
        let counts = support::assert_unbroken(&records);
        for name in ["a", "b"] {
            // One of them may not have begun.
            let written = counts.get(name).copied().unwrap_or_default();
            let delivered = number(&stream(&graph, name)["delivered"]);
            assert!(written >= delivered, "{name}: {delivered} were delivered, {written} are there");
        }
    }
}

#[test]
fn a_kill_leaves_whole_segments_alone_under_their_names() {
    let folder = Folder::with_graph(
        "[sources.camera]\ntype = 'file'\npath = 'camera.mp4'\nloop = true\n\
         [operators.chunks]\ntype = 'chunk'\ninputs = ['camera']\nevery = '1s'\n\
         [sinks.out]\ntype = 'file'\ninputs = ['chunks']\npath = 'out/{stream}_{index:04}.mp4'\nif_exists = 'replace'\n",
    );
    let picture = "testsrc=size=160x120:rate=10:duration=10";
    let options = ["-f", "lavfi", "-i", picture, "-c:v", "libx264", "-g", "10", "-pix_fmt", "yuv420p"];
    ffmpeg(&options, &folder.file("camera.mp4"));
    for round in 1..=3 {
        let mut engine = folder.run(&[]);
        let segments = |folder: &Folder| -> Vec<std::path::PathBuf> {
            let Ok(entries) = std::fs::read_dir(folder.file("out")) else { return Vec::new() };
            let paths = entries.map(|entry| entry.expect("readable").path());
            paths.filter(|path| path.extension().is_some_and(|extension| extension == "mp4")).collect()
        };
        engine.wait_for_graph("segments", |graph| number(&graph["total"]["delivered"]) >= round * 137);
        engine.signal(Signal::SIGKILL);
        engine.finish();
        let all = segments(&folder);
        assert_all_decode(&all);
        for path in &all {
            assert_eq!(counts(path), [10], "{} is whole", path.display());
        }
        assert!(all.len() as u64 >= round * 137 / 10, "round {round}: {} segments", all.len());
    }
}
