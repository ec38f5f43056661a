//! Runs the built engine on a graph file until every stream has ended, and asks it what it did.
//!
//! What holds for every run is asserted here: the exit code, the record schema, identities and order of records, and
//! that every picture that was read is accounted for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;

use crate::material::Material;

/// Only a hang takes so long.
const DEADLINE: Duration = Duration::from_secs(300);

/// The graph's name in every run.
const GRAPH: &str = "reference";

/// The sink that every graph ends in.
const RECORDS: &str = "records.jsonl";

/// One stream in `/stats`.
#[derive(Debug, Deserialize)]
pub struct Stream {
    pub stream: String,
    pub state: String,
    pub read: u64,
    pub delivered: u64,
    pub filtered: u64,
    pub dropped: u64,
    pub rejected: u64,
    pub lost: u64,
    pub in_flight: u64,
    pub decoded: u64,
    pub converted: u64,
    pub skipped: u64,
}

#[derive(Deserialize)]
struct Stats {
    graphs: Vec<Graph>,
}

#[derive(Deserialize)]
struct Graph {
    name: String,
    state: String,
    streams: Vec<Stream>,
}

/// A run that has ended.
pub struct Run {
    pub streams: BTreeMap<String, Stream>,
    /// By node and stream, in the order in which they were written.
    records: BTreeMap<(String, String), Vec<Value>>,
}

impl Run {
    /// Runs the graph of `nodes`, whose results are those of the operators `results`.
    pub fn of(material: &Material, nodes: &str, results: &[&str], workers: usize) -> Run {
        let folder = tempfile::tempdir().expect("a folder");
        let sink = format!("\n[sinks.records]\ntype = \"file\"\ninputs = {results:?}\npath = {RECORDS:?}\n");
        std::fs::write(folder.path().join(format!("{GRAPH}.toml")), nodes.to_owned() + &sink).expect("written");

        let engine = Engine::start(material, folder.path(), workers);
        let address = engine.wait_for("the address", |log| {
            let (_, rest) = log.split_once("listening on ")?;
            rest.split_once('\n').map(|(address, _)| address.trim().to_owned())
        });
        engine.wait_for("the end of the graph", |log| log.contains("has ended; Ctrl-C").then_some(()));
        let stats = get(&format!("{address}/stats"));
        let (status, log) = engine.terminate();
        assert!(status.success(), "{status}\n{log}");

        let stats: Stats = serde_json::from_str(&stats).unwrap_or_else(|error| panic!("/stats: {error}\n{stats}"));
        let [graph] = <[Graph; 1]>::try_from(stats.graphs).unwrap_or_else(|graphs| panic!("{} graphs", graphs.len()));
        assert_eq!((graph.name.as_str(), graph.state.as_str()), (GRAPH, "finished"), "{log}");
        let run = Run {
            streams: graph.streams.into_iter().map(|stream| (stream.stream.clone(), stream)).collect(),
            records: read(&folder.path().join(RECORDS)),
        };
        run.conserves();
        run.has_sound_records(results);
        run
    }

    /// The records of `node` for `stream`.
    pub fn records(&self, node: &str, stream: &str) -> &[Value] {
        self.records
            .get(&(node.to_owned(), stream.to_owned()))
            .unwrap_or_else(|| panic!("no record of {node} for {stream}"))
    }

    /// Every picture that was read has one fate, and a file that nobody disturbs loses none.
    fn conserves(&self) {
        for stream in self.streams.values() {
            let &Stream { read, delivered, filtered, dropped, rejected, lost, in_flight, .. } = stream;
            assert_eq!(read, delivered + filtered + dropped + rejected + lost + in_flight, "{stream:#?}");
            assert_eq!((dropped, rejected, lost, in_flight), (0, 0, 0, 0), "{stream:#?}");
            assert_eq!(read, stream.decoded + stream.skipped, "{stream:#?}");
            assert!(stream.converted <= stream.decoded && stream.converted >= delivered, "{stream:#?}");
            assert_eq!(stream.state, "ended");
        }
    }

    /// Records follow the schema, say who they are, come in order, and are as many as pictures were delivered: no
    /// `gap`, `error` or `status` is among them, and each node has answered for each picture.
    fn has_sound_records(&self, nodes: &[&str]) {
        assert_eq!(self.records.len(), nodes.len() * self.streams.len(), "{:?}", self.records.keys());
        for ((node, stream), records) in &self.records {
            assert_eq!(records.len() as u64, self.streams[stream].delivered, "records of {node} for {stream}");
            let mut last = None;
            for record in records {
                let mistakes: Vec<String> = SCHEMA.iter_errors(record).map(|error| error.to_string()).collect();
                assert!(mistakes.is_empty(), "{mistakes:?}\n{record:#}");
                let seq = record["seq"].as_u64();
                assert!(seq.is_some() && seq > last, "after {last:?}: {record:#}");
                last = seq;
                let id = format!("{GRAPH}/{node}/{stream}/{}", seq.unwrap_or_default());
                assert_eq!((&record["id"], &record["graph"]), (&id.into(), &GRAPH.into()));
                // The file was played once, from its start, so its pictures and those read are counted alike.
                assert_eq!(record["frame"], record["seq"], "{record:#}");
            }
        }
    }
}

static SCHEMA: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
    let schema = include_str!("../../docs/record.schema.json");
    let schema: Value = serde_json::from_str(schema).expect("JSON");
    jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema")
});

fn read(path: &Path) -> BTreeMap<(String, String), Vec<Value>> {
    let mut records: BTreeMap<_, Vec<Value>> = BTreeMap::new();
    for line in std::fs::read_to_string(path).expect("the sink's file").lines() {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let name = |field: &str| record[field].as_str().unwrap_or_else(|| panic!("no `{field}`: {line}")).to_owned();
        records.entry((name("node"), name("stream"))).or_default().push(record);
    }
    records
}

fn get(url: &str) -> String {
    let agent = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(30))).build().new_agent();
    let answer = agent.get(url).call().and_then(|mut answer| answer.body_mut().read_to_string());
    answer.unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// A running engine, which does not outlive this value.
struct Engine {
    child: Child,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    text: Mutex<Text>,
    changed: Condvar,
}

#[derive(Default)]
struct Text {
    text: String,
    /// Nothing more comes: the process has ended.
    closed: bool,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Text)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl Engine {
    fn start(material: &Material, folder: &Path, workers: usize) -> Engine {
        let models = [Path::new(env!("CARGO_MANIFEST_DIR")).join("models"), material.folder.join("models")];
        let mut child = Command::new(env!("CARGO_BIN_EXE_engine"))
            .args(["run", &format!("{GRAPH}.toml"), "--stay", "--listen", "127.0.0.1:0", "--workers"])
            .arg(workers.to_string())
            .current_dir(folder)
            .env("ENGINE_MODELS", std::env::join_paths(models).expect("a path list"))
            // Hashes of models are remembered there, and the log is to have what is waited for.
            .env("XDG_CACHE_HOME", folder.join("cache"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the engine's binary runs");
        let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let log = Arc::<Log>::default();
        let written = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                written.change(|log| log.text += &(line + "\n"));
            }
            written.change(|log| log.closed = true);
        });
        Engine { child, log }
    }

    /// Waits until `find` finds something in the log.
    fn wait_for<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let missing = |log: &mut Text| !log.closed && find(&log.text).is_none();
        let waited = self.log.changed.wait_timeout_while(self.log.lock(), DEADLINE, missing);
        let (log, _) = waited.unwrap_or_else(PoisonError::into_inner);
        find(&log.text).unwrap_or_else(|| panic!("waited in vain for {what}; the log:\n{}", log.text))
    }

    /// Asks it to end, and waits until it has.
    fn terminate(mut self) -> (ExitStatus, String) {
        let id = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(id), Signal::SIGTERM).expect("it takes signals");
        let waited = self.log.changed.wait_timeout_while(self.log.lock(), DEADLINE, |log| !log.closed);
        let (log, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let text = log.text.clone();
        assert!(log.closed, "it does not end; the log:\n{text}");
        drop(log);
        (self.child.wait().expect("its exit status"), text)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
