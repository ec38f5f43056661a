//! What tests of the built binary share: a process that is watched and never outlives its test, HTTP, named pipes,
//! and the material.
//!
//! Nothing here waits on luck: every wait is for a condition, and fails with what was seen when [`PATIENCE`] is over.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

pub mod authority;
pub mod browser;
pub mod bucket;
pub mod cameras;
pub mod lossy;
pub mod player;
pub mod probe;
pub mod second;
pub mod vss;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use operators::clock::{Clock, SystemClock};
use serde_json::Value;

/// How long a condition may take to come about. Far more than any needs: it only ends what hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);
/// How many looks in turn must show that nothing moves: a second's worth.
const LOOKS: u32 = 100;

/// Waits until `condition` answers something.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = SystemClock.now();
    loop {
        if let Some(answer) = condition() {
            return answer;
        }
        assert!(SystemClock.now() - start < PATIENCE, "this did not come about: {what}");
        pause();
    }
}

/// Lets others work between two looks at a condition.
fn pause() {
    let _ = crossbeam_channel::never::<()>().recv_timeout(POLL);
}

/// The folder of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("this crate is in `tests/support`")
}

/// What Cargo builds into: `target`, and the profile in it, above the running test.
fn target(above: usize) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    test.ancestors().nth(above).expect("tests are in `target/PROFILE/deps`").to_owned()
}

/// The engine's binary, which Cargo builds before the tests that run it.
pub fn engine() -> PathBuf {
    target(2).join("engine")
}

/// The folder of what tests leave behind to be looked at.
pub fn outputs() -> PathBuf {
    let folder = target(3).join("tmp");
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// The folder of videos, models and reference results; `None`, and a line that says so, where it is missing.
pub fn material() -> Option<PathBuf> {
    let folder = std::env::var_os("ENGINE_MATERIAL")
        .map_or_else(|| repository().join("../shared/material"), |path| repository().join(path));
    if folder.is_dir() {
        return Some(folder);
    }
    let missing = format!("there is no {}; set ENGINE_MATERIAL", folder.display());
    assert!(std::env::var_os("ENGINE_REQUIRE_MATERIAL").is_none_or(|value| value != "1"), "{missing}");
    eprintln!("skipped: {missing}");
    None
}

/// Whether the long counts are asked for (`script/soak`).
pub fn soak() -> bool {
    std::env::var_os("ENGINE_SOAK").is_some_and(|value| value == "1")
}

/// Numbers that look random and are the same in every run (Knuth's MMIX).
pub struct Dice(u64);

impl Dice {
    pub fn of(seed: u64) -> Dice {
        Dice(seed)
    }

    /// A number below `most`.
    pub fn roll(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }

    /// Lets some time pass, less than `most`, so that what follows comes at no certain moment.
    pub fn pause(&mut self, most: Duration) {
        let micros = self.roll(u64::try_from(most.as_micros()).expect("short"));
        let _ = crossbeam_channel::never::<()>().recv_timeout(Duration::from_micros(micros));
    }
}

/// The engine's binary with a clean environment, which finds the models of the repository and of the material.
pub fn command(arguments: &[&str]) -> Command {
    let mut models = vec![repository().join("models")];
    let material = std::env::var_os("ENGINE_MATERIAL").map_or_else(|| "../shared/material".into(), PathBuf::from);
    models.push(repository().join(material).join("models"));
    let mut command = Command::new(engine());
    command
        .args(arguments)
        .current_dir(repository())
        .env("ENGINE_MODELS", std::env::join_paths(models).expect("folders without colons"))
        .env("XDG_CACHE_HOME", outputs().join("cache"))
        .env("COLUMNS", "100")
        .env_remove("RUST_LOG")
        .env_remove("ENGINE_REQUIRE_MATERIAL")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    command
}

/// A folder with one graph file, `graph.toml`.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn with_graph(text: &str) -> Folder {
        let folder = Folder(tempfile::tempdir().expect("a folder"));
        std::fs::write(folder.graph(), text).expect("written");
        folder
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn graph(&self) -> PathBuf {
        self.file("graph.toml")
    }

    /// `engine run` on the graph, on a free port.
    pub fn run(&self, arguments: &[&str]) -> Engine {
        self.run_with(arguments, |_| {})
    }

    pub fn run_with(&self, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Engine {
        run_graph(&self.graph(), arguments, prepare)
    }

    /// The records in a file of JSON lines.
    pub fn records(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.file(name)).expect("the sink made its file");
        assert!(text.is_empty() || text.ends_with('\n'), "the last line is whole");
        text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
    }
}

/// `engine run` on a graph file, in its folder and on a free port.
pub fn run_graph(graph: &Path, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Engine {
    run_graph_at("127.0.0.1:0", graph, arguments, prepare)
}

/// `engine run` on a graph file, in its folder, that listens at an address.
pub fn run_graph_at(listen: &str, graph: &Path, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Engine {
    let mut command = command(&["run", graph.to_str().expect("text"), "--listen", listen]);
    command.args(arguments).current_dir(graph.parent().expect("a folder"));
    prepare(&mut command);
    Engine::start(command)
}

/// What `engine plan` says of a graph file.
pub fn plan(graph: &Path, arguments: &[&str]) -> Value {
    let output = command(&["plan", graph.to_str().expect("text"), "--format", "json"]).args(arguments).output();
    let output = output.expect("the engine's binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Lines that a thread collects while a process writes them.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn collect(&self, from: impl Read + Send + 'static) -> JoinHandle<()> {
        let lines = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines() {
                lines.0.lock().expect("no panic").push(line.expect("text"));
            }
        })
    }

    fn now(&self) -> Vec<String> {
        self.0.lock().expect("no panic").clone()
    }
}

/// A running engine; killed when dropped.
pub struct Engine {
    child: Child,
    stdout: Lines,
    stderr: Lines,
    readers: Vec<JoinHandle<()>>,
}

impl Engine {
    pub fn start(mut command: Command) -> Engine {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the engine's binary runs");
        let (stdout, stderr) = (Lines::default(), Lines::default());
        let readers = vec![
            stdout.collect(child.stdout.take().expect("piped")),
            stderr.collect(child.stderr.take().expect("piped")),
        ];
        Engine { child, stdout, stderr, readers }
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn stdout(&self) -> Vec<String> {
        self.stdout.now()
    }

    pub fn stderr(&self) -> String {
        self.stderr.now().join("\n")
    }

    /// Waits until `condition` answers something; fails when the process ends before.
    pub fn wait_for<T>(&mut self, what: &str, mut condition: impl FnMut(&Engine) -> Option<T>) -> T {
        let mut ended = false;
        let start = SystemClock.now();
        loop {
            if let Some(answer) = condition(self) {
                return answer;
            }
            assert!(!ended, "the engine ended before {what}:\n{}", self.stderr());
            // Looked at once more after the end: it may have come about just before.
            ended = self.child.try_wait().expect("a child").is_some();
            if SystemClock.now() - start >= PATIENCE {
                let stats = self.stderr().contains("listening on http").then(|| self.stats());
                panic!(
                    "this did not come about: {what}\nthe statistics are {}\nand the log:\n{}",
                    stats.unwrap_or_default(),
                    self.stderr()
                );
            }
            pause();
        }
    }

    /// Waits for a line on the standard error.
    pub fn wait_for_log(&mut self, text: &str) -> String {
        let found = |engine: &Engine| engine.stderr.now().into_iter().find(|line| line.contains(text));
        self.wait_for(&format!("a line of the log with `{text}`"), found)
    }

    /// `http://…` of the control plane.
    pub fn address(&mut self) -> String {
        let line = self.wait_for_log("listening on http");
        let (before, address) = line.split_once("://").expect("an address");
        let scheme = if before.ends_with("https") { "https" } else { "http" };
        let end = address.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':')).unwrap_or(address.len());
        format!("{scheme}://{}", &address[..end])
    }

    /// Status and JSON of a path of the control plane.
    pub fn get(&mut self, path: &str) -> (u16, Value) {
        get(&format!("{}{path}", self.address()))
    }

    pub fn stats(&mut self) -> Value {
        let (status, stats) = self.get("/stats");
        assert_eq!(status, 200);
        stats
    }

    /// Waits until the statistics of the only graph are as `condition` wants them, and answers these.
    pub fn wait_for_graph(&mut self, what: &str, mut condition: impl FnMut(&Value) -> bool) -> Value {
        let address = self.address();
        self.wait_for(what, |_| {
            let (_, mut stats) = get(&format!("{address}/stats"));
            let graph = stats["graphs"].get_mut(0)?.take();
            condition(&graph).then_some(graph)
        })
    }

    /// Waits until the counts of every stream and of every graph have added up once. While items flow a look may fall
    /// between two counters; what is forgotten is missing in every look.
    pub fn wait_until_conserved(&mut self) {
        let address = self.address();
        let mut seen = BTreeSet::new();
        self.wait_for("books that add up", |_| {
            let (_, stats) = get(&format!("{address}/stats"));
            let graphs = stats["graphs"].as_array()?;
            let totals = graphs.iter().map(|graph| (graph["name"].to_string(), &graph["total"]));
            let streams = graphs.iter().flat_map(|graph| graph["streams"].as_array().into_iter().flatten());
            let all: Vec<_> = totals.chain(streams.map(|stream| (stream["stream"].to_string(), stream))).collect();
            seen.extend(all.iter().filter(|(_, counts)| is_conserved(counts)).map(|(name, _)| name.clone()));
            all.iter().all(|(name, _)| seen.contains(name)).then_some(())
        });
    }

    /// Waits until a stalled sink has stopped everything: each source waits for credit or drops, and look after look
    /// nothing is delivered. The very first batch may be what does not fit into a pipe, so nothing needs to have been.
    pub fn wait_for_stall(&mut self) -> Value {
        let (mut delivered, mut looks) = (0, 0);
        self.wait_for_graph("a stalled sink", |graph| {
            let now = graph["total"]["delivered"].as_u64().unwrap_or_default();
            let streams = graph["streams"].as_array().map_or(&[][..], Vec::as_slice);
            let stands = |stream: &Value| stream["blocked_by"].is_string() || stream["dropped"].as_u64() > Some(0);
            let waits = !streams.is_empty() && streams.iter().all(stands);
            looks = if waits && now == delivered { looks + 1 } else { 0 };
            delivered = now;
            looks == LOOKS
        })
    }

    pub fn signal(&self, signal: Signal) {
        let process = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(process), signal).expect("it has not ended");
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Finished {
        let status = wait_for("the end of the engine", || self.child.try_wait().expect("a child"));
        for reader in self.readers.drain(..) {
            reader.join().expect("its output is text");
        }
        Finished { status, stdout: self.stdout(), stderr: self.stderr() }
    }

    /// Asks it to end and waits for that.
    pub fn terminate(self) -> Finished {
        self.signal(Signal::SIGTERM);
        self.finish()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Both fail only where it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An engine that has ended.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<String>,
    pub stderr: String,
}

impl Finished {
    /// The exit code; fails where a signal killed the process.
    pub fn code(&self) -> i32 {
        assert_eq!(self.status.signal(), None, "{}", self.stderr);
        self.status.code().expect("it ended by itself")
    }

    /// Fails unless it ended with `code`.
    pub fn expect(self, code: i32) -> Finished {
        assert_eq!(self.code(), code, "{}", self.stderr);
        self
    }

    /// The counts of a stream in the summary, which must add up.
    pub fn counts(&self, stream: &str) -> Counts {
        assert!(!self.stderr.contains("do not add up"), "{}", self.stderr);
        let rows = self.stderr.lines().skip_while(|line| !line.starts_with("stream "));
        let row = rows
            .skip(1)
            .take_while(|line| !line.is_empty())
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|words| words[0] == stream);
        let row = row.unwrap_or_else(|| panic!("no line for stream `{stream}`:\n{}", self.stderr));
        let number = |index: usize| row[index].parse::<u64>().expect("a count");
        let counts = Counts {
            read: number(1),
            delivered: number(2),
            filtered: number(3),
            dropped: number(4),
            rejected: number(5),
            lost: number(6),
        };
        assert_eq!(
            counts.read,
            counts.delivered + counts.filtered + counts.dropped + counts.rejected + counts.lost,
            "{counts:?}"
        );
        counts
    }
}

/// The fates of a stream's items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub read: u64,
    pub delivered: u64,
    pub filtered: u64,
    pub dropped: u64,
    pub rejected: u64,
    pub lost: u64,
}

impl Counts {
    /// Everything that was read was delivered.
    pub fn all_delivered(read: u64) -> Counts {
        Counts { read, delivered: read, ..Counts::default() }
    }
}

/// Fails unless the counts of a stream, or their total, in `/stats` add up. Of what still runs, wait for that with
/// [`Engine::wait_until_conserved`].
pub fn assert_conserved(counts: &Value) {
    assert!(is_conserved(counts), "{counts}");
}

/// Whether the counts of a stream, or their total, in `/stats` add up.
pub fn is_conserved(counts: &Value) -> bool {
    let number = |name: &str| counts[name].as_u64().unwrap_or_else(|| panic!("no {name} in {counts}"));
    let fates = ["delivered", "filtered", "dropped", "rejected", "lost", "in_flight"].map(number);
    number("read") == fates.iter().sum::<u64>()
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
    config.build().new_agent()
}

/// Status and JSON of an address.
pub fn get(url: &str) -> (u16, Value) {
    let (status, _, text) = get_text(url);
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{url}: {text}")))
}

/// Status, type and text of an address.
pub fn get_text(url: &str) -> (u16, String, String) {
    let mut answer = agent().get(url).call().unwrap_or_else(|error| panic!("{url}: {error}"));
    let text = answer.body_mut().read_to_string().expect("text");
    let content_type = answer.headers().get("content-type").map(|value| value.to_str().expect("text").to_owned());
    (answer.status().as_u16(), content_type.unwrap_or_default(), text)
}

/// Status, headers and body of an address.
pub fn get_bytes(url: &str) -> (u16, ureq::http::HeaderMap, Vec<u8>) {
    let mut answer = agent().get(url).call().unwrap_or_else(|error| panic!("{url}: {error}"));
    let body = answer.body_mut().read_to_vec().expect("a whole body");
    (answer.status().as_u16(), answer.headers().clone(), body)
}

/// An answer to [`send`].
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    /// The JSON of an answer with this status; fails on any other.
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }
}

/// Sends a request of any method; without a body where it is empty.
pub fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answered = match body {
        "" => agent().run(request.body(()).expect("a request")),
        body => agent().run(request.body(body.to_owned()).expect("a request")),
    };
    let mut answer = answered.unwrap_or_else(|error| panic!("{method} {url}: {error}"));
    let text = answer.body_mut().read_to_string().expect("text");
    Answer { status: answer.status().as_u16(), headers: answer.headers().clone(), text }
}

/// What lets graphs that come over HTTP name the files of the folder in which the engine runs, those of the material, and
/// this machine.
pub fn allowed() -> Vec<std::ffi::OsString> {
    let mut allowed: Vec<std::ffi::OsString> =
        ["--allow-path", ".", "--allow-host", "127.0.0.1"].map(Into::into).into();
    if let Some(material) = material() {
        allowed.extend(["--allow-path".into(), material.into()]);
    }
    allowed
}

/// `engine run` on a folder with graph files, below a folder in which it runs, on a free port. Graphs over HTTP may name
/// what [`allowed`] says.
pub fn run_folder(folder: &Path, arguments: &[&str]) -> Engine {
    std::fs::create_dir_all(folder.join("graphs")).expect("a folder");
    let mut command = command(&["run", "graphs", "--listen", "127.0.0.1:0"]);
    command.args(allowed()).args(arguments).current_dir(folder);
    Engine::start(command)
}

/// Fails unless the records of each stream have every number from 0 on, once and in order. Answers how many each has.
pub fn assert_unbroken(records: &[Value]) -> std::collections::BTreeMap<String, u64> {
    let mut next = std::collections::BTreeMap::new();
    for record in records {
        let stream = record["stream"].as_str().expect("a stream").to_owned();
        let expected = next.entry(stream).or_insert(0);
        assert_eq!(record["seq"].as_u64(), Some(*expected), "{record}");
        *expected += 1;
    }
    next
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub struct SentEvent {
    pub id: String,
    pub kind: String,
    pub data: Value,
}

/// Listens to `/events`: an iterator that ends when the server ends the answer.
pub struct Events(BufReader<Box<dyn Read>>);

impl Events {
    /// `last_id` is sent as `Last-Event-ID`.
    pub fn listen(address: &str, query: &str, last_id: Option<&str>) -> Events {
        let mut request = agent().get(format!("{address}/events{query}"));
        if let Some(id) = last_id {
            request = request.header("Last-Event-ID", id);
        }
        let answer = request.call().expect("an answer");
        assert_eq!(answer.status().as_u16(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Events(BufReader::new(Box::new(answer.into_body().into_reader())))
    }
}

impl Iterator for Events {
    type Item = SentEvent;

    fn next(&mut self) -> Option<SentEvent> {
        let (mut id, mut kind, mut data) = (String::new(), String::new(), Value::Null);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).expect("the server ends its answer properly") == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("id", value)) => value.clone_into(&mut id),
                Some(("event", value)) => value.clone_into(&mut kind),
                Some(("data", value)) => data = serde_json::from_str(value).expect("JSON"),
                _ if line.trim_end().is_empty() && !data.is_null() => return Some(SentEvent { id, kind, data }),
                _ => {}
            }
        }
    }
}

/// A named pipe whose reader has opened it and does not read.
pub struct StalledPipe {
    pub path: PathBuf,
    reader: File,
}

impl StalledPipe {
    pub fn new(path: PathBuf) -> StalledPipe {
        let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo is there");
        assert!(made.success());
        // Without blocking, opening does not wait for the writer.
        let reader = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).expect("opened");
        // As small as a pipe can be: it is full soon.
        nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).expect("a smaller pipe");
        StalledPipe { path, reader }
    }

    /// Begins to read: a thread takes every line until the writer is gone.
    pub fn drain(self) -> JoinHandle<Vec<String>> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&self.reader, FcntlArg::F_SETFL(OFlag::empty())).expect("a pipe may block");
        std::thread::spawn(move || BufReader::new(self.reader).lines().map(|line| line.expect("text")).collect())
    }
}

/// Makes a media file with the `ffmpeg` program.
pub fn ffmpeg(arguments: &[&str], output: &Path) {
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-y"])
        .args(arguments)
        .arg(output)
        .output()
        .expect("ffmpeg is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
