//! `engine models` from outside, and models that a manifest names by an address, from a server of this test's own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use operators::inference::hashes::HashCache;
use serde_json::Value;
use support::{Engine, authority, command, material, repository, run_graph, wait_for};

/// What a server does with a request for the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// Sends what was asked for.
    Send,
    /// Sends half of it and closes the connection.
    Cut,
    /// Sends half of it and nothing more, and keeps the connection open.
    Stall,
    NotFound,
    /// Sends the client to an address that nobody may follow, where it asked over `https`.
    LeadsOn,
}

/// Serves one file on loopback, each request as the list says, the last deed for all further ones.
struct Server {
    url: String,
    /// The `Range` of each request so far.
    ranges: Arc<Mutex<Vec<Option<String>>>>,
}

impl Server {
    fn start(content: Vec<u8>, deeds: &'static [Deed]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://user:hunter2@{}/files/remote.onnx?version=1", listener.local_addr().expect("bound"));
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let seen = ranges.clone();
        // It ends with the process of the test.
        std::thread::spawn(move || {
            let mut stalled = Vec::new();
            for (index, stream) in listener.incoming().enumerate() {
                let mut stream = stream.expect("a connection");
                let range = range(&stream);
                seen.lock().expect("no panic").push(range.clone());
                let deed = deeds[index.min(deeds.len() - 1)];
                // A client that was killed does not take its answer.
                let _ = answer(&mut stream, &content, range.as_deref(), deed);
                if deed == Deed::Stall {
                    stalled.push(stream);
                }
            }
        });
        Server { url, ranges }
    }

    fn ranges(&self) -> Vec<Option<String>> {
        self.ranges.lock().expect("no panic").clone()
    }
}

/// Reads the head of a request.
fn range(stream: &TcpStream) -> Option<String> {
    let lines = BufReader::new(stream.try_clone().expect("cloned")).lines();
    let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: ").map(str::to_owned))
}

fn answer(stream: &mut TcpStream, content: &[u8], range: Option<&str>, deed: Deed) -> std::io::Result<()> {
    if deed == Deed::LeadsOn {
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nlocation: ftp://127.0.0.1/remote.onnx\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    if deed == Deed::NotFound {
        return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0);
    let rest = &content[start..];
    let status = if start > 0 {
        format!("206 Partial Content\r\ncontent-range: bytes {start}-{}/{}", content.len() - 1, content.len())
    } else {
        "200 OK".to_owned()
    };
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", rest.len())?;
    stream.write_all(if deed == Deed::Send { rest } else { &rest[..rest.len() / 2] })
}

/// A folder with the manifest of a model `remote` that comes from `url`, and a cache of its own.
struct Place {
    folder: tempfile::TempDir,
    sha256: String,
}

impl Place {
    fn new(url: &str) -> Place {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("models")).expect("made");
        let manifest = fs::read_to_string(repository().join("models/shapes.toml")).expect("the manifest");
        let manifest = manifest.replace("file = \"shapes.onnx\"", &format!("file = \"{url}\""));
        assert!(manifest.contains(url));
        fs::write(folder.path().join("models/remote.toml"), manifest).expect("written");
        let sha256 = HashCache::default().sha256(&repository().join("models/shapes.onnx")).expect("its hash");
        Place { folder, sha256 }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn set(&self, command: &mut Command) {
        command.env("ENGINE_MODELS", self.path().join("models")).env("ENGINE_CACHE", self.path().join("cache"));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        self.set(&mut command);
        command.current_dir(self.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Said {
        said(&mut self.command(arguments))
    }

    fn cached(&self, ending: &str) -> PathBuf {
        self.path().join("cache/models").join(format!("{}.{ending}", self.sha256))
    }

    fn cache(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path().join("cache/models")).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
    }
}

struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

fn said(command: &mut Command) -> Said {
    let output = command.output().expect("the engine's binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Said { code: output.status.code().expect("no signal"), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn shapes() -> Vec<u8> {
    fs::read(repository().join("models/shapes.onnx")).expect("the model")
}

#[test]
fn a_model_is_pulled_once_and_kept_by_its_hash() {
    let server = Server::start(shapes(), &[Deed::Send]);
    let place = Place::new(&server.url);
    let missing = place.run(&["models", "verify", "remote"]);
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("run `engine models pull remote`"), "{}", missing.stderr);
    for _ in 0..2 {
        let pulled = place.run(&["models", "pull", "remote"]);
        assert_eq!(pulled.code, 0, "{}", pulled.stderr);
        assert_eq!(pulled.stdout, format!("remote: {}\n", place.cached("onnx").display()));
        assert!(!pulled.stderr.contains("hunter2"), "{}", pulled.stderr);
    }
    assert_eq!(server.ranges().len(), 1, "the second time it is there");
    assert_eq!(fs::read(place.cached("onnx")).expect("kept"), shapes());
    let verified = place.run(&["models", "verify", "remote"]);
    assert_eq!((verified.code, &*verified.stdout), (0, "remote: ok, 3 labels\n"), "{}", verified.stderr);
}

#[test]
fn a_download_that_is_cut_goes_on() {
    let server = Server::start(shapes(), &[Deed::Cut, Deed::Cut, Deed::Send]);
    let place = Place::new(&server.url);
    let pulled = place.run(&["models", "pull"]);
    assert_eq!(pulled.code, 0, "{}", pulled.stderr);
    assert_eq!(fs::read(place.cached("onnx")).expect("kept"), shapes());
    let half = shapes().len() / 2;
    let quarter = half + (shapes().len() - half) / 2;
    assert_eq!(server.ranges(), [None, Some(format!("bytes={half}-")), Some(format!("bytes={quarter}-"))]);
}

#[test]
fn a_download_goes_on_after_the_process_was_killed() {
    let server = Server::start(shapes(), &[Deed::Stall, Deed::Send]);
    let place = Place::new(&server.url);
    let half = shapes().len() / 2;
    let engine = Engine::start(place.command(&["models", "pull", "remote"]));
    let part = place.cached("part");
    wait_for("half of the file", || (fs::metadata(&part).ok()?.len() == half as u64).then_some(()));
    engine.signal(Signal::SIGKILL);
    drop(engine);
    let pulled = place.run(&["models", "pull", "remote"]);
    assert_eq!(pulled.code, 0, "{}", pulled.stderr);
    assert_eq!(server.ranges(), [None, Some(format!("bytes={half}-"))]);
    assert_eq!(place.cache(), [format!("{}.onnx", place.sha256)]);
}

#[test]
fn a_file_with_another_hash_is_refused_and_nothing_of_the_users_is_deleted() {
    let mut other = shapes();
    other[1000] ^= 1;
    let server = Server::start(other, &[Deed::Send]);
    let place = Place::new(&server.url);
    let refused = place.run(&["models", "pull", "remote"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("another file than its manifest means"), "{}", refused.stderr);
    assert!(refused.stderr.contains(&place.sha256) && !refused.stderr.contains("hunter2"), "{}", refused.stderr);
    assert_eq!(place.cache(), [""; 0]);

    // A file of the user's own beside the manifest wins over the address, and is refused but left where it is.
    let own = place.path().join("models/remote.onnx");
    fs::write(&own, "mine").expect("written");
    let refused = place.run(&["models", "pull", "remote"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("has the SHA-256"), "{}", refused.stderr);
    assert_eq!(fs::read(&own).expect("still there"), b"mine");
    assert_eq!(server.ranges().len(), 1, "nothing was fetched");
}

/// A limit on the size of files stands in for a full disk: both are errors of writing.
#[test]
fn a_full_disk_is_named_and_what_came_is_kept() {
    let server = Server::start(shapes(), &[Deed::Send]);
    let place = Place::new(&server.url);
    let own = place.path().join("cache/models/own.txt");
    fs::create_dir_all(own.parent().expect("a folder")).expect("made");
    fs::write(&own, "mine").expect("written");
    let engine = place.command(&["models", "pull", "remote"]);
    let mut limited = Command::new("bash");
    // 64 blocks of 1 KiB; the signal that would end the process is ignored, so that writing fails.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "bash"]).arg(engine.get_program());
    limited.args(engine.get_args()).current_dir(place.path());
    for (name, value) in engine.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let full = said(&mut limited);
    assert_eq!(full.code, 1, "{}", full.stderr);
    for part in
        ["model `remote` cannot be kept in", ".part: File too large", "hint: make room there, or set ENGINE_CACHE"]
    {
        assert!(full.stderr.contains(part), "{part}: {}", full.stderr);
    }
    assert_eq!(fs::metadata(place.cached("part")).expect("kept").len(), 64 << 10);
    assert!(!place.cached("onnx").exists());
    assert_eq!(fs::read(&own).expect("still there"), b"mine");
    // With room it goes on from there.
    let pulled = place.run(&["models", "pull", "remote"]);
    assert_eq!(pulled.code, 0, "{}", pulled.stderr);
    assert_eq!(server.ranges(), [None, Some(format!("bytes={}-", 64 << 10))]);
    assert_eq!(fs::read(place.cached("onnx")).expect("kept"), shapes());
}

#[test]
fn a_redirect_to_something_else_than_http_is_refused() {
    let server = Server::start(Vec::new(), &[Deed::LeadsOn]);
    let place = Place::new(&server.url);
    let refused = place.run(&["models", "pull", "remote"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("unknown scheme: ftp"), "{}", refused.stderr);
    assert_eq!(server.ranges().len(), 1, "it is not asked again");
}

/// Serves a folder over HTTPS, with a certificate of an authority that nobody else knows, `ca.pem`; `/away` leads to an
/// address without encryption.
const HTTPS: &str = r#"
import http.server, ssl

class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/away":
            self.send_response(302)
            self.send_header("location", "http://user:hunter2@127.0.0.1:9/remote.onnx")
            self.send_header("content-length", "0")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *arguments):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem", "server.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

struct Https {
    process: std::process::Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Https {
    fn start() -> Https {
        let folder = tempfile::tempdir().expect("a folder");
        fs::copy(repository().join("models/shapes.onnx"), folder.path().join("remote.onnx")).expect("copied");
        authority::found(folder.path());
        authority::certify(folder.path(), "server");
        let mut process = Command::new("python3")
            .args(["-c", HTTPS])
            .current_dir(folder.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let mut line = String::new();
        let output = process.stdout.as_mut().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("a line");
        Https { process, port: line.trim().parse().expect("a port"), folder }
    }
}

impl Drop for Https {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_private_authority_is_trusted_where_it_is_named_and_nobody_leads_away_from_https() {
    let server = Https::start();
    let place = Place::new(&format!("https://127.0.0.1:{}/remote.onnx", server.port));
    let pull = |roots: Option<&Path>| {
        let mut command = place.command(&["models", "pull", "remote"]);
        match roots {
            Some(roots) => command.env("SSL_CERT_FILE", roots),
            None => command.env_remove("SSL_CERT_FILE"),
        };
        said(&mut command)
    };
    let unknown = pull(None);
    assert_eq!(unknown.code, 1);
    for part in ["model `remote` cannot be fetched from https://127.0.0.1", "UnknownIssuer", "hint: set SSL_CERT_FILE"]
    {
        assert!(unknown.stderr.contains(part), "{part}: {}", unknown.stderr);
    }
    for (file, says) in [("names", "there is no certificate in it"), ("gone.pem", "cannot be read: No such file")] {
        let wrong = pull(Some(&server.folder.path().join(file)));
        assert!(wrong.code == 1 && wrong.stderr.contains(says), "{}", wrong.stderr);
        assert!(wrong.stderr.contains(file) && wrong.stderr.contains("SSL_CERT_FILE"), "{}", wrong.stderr);
    }
    let pulled = pull(Some(&server.folder.path().join("ca.pem")));
    assert_eq!(pulled.code, 0, "{}", pulled.stderr);
    assert_eq!(fs::read(place.cached("onnx")).expect("kept"), shapes());

    let place = Place::new(&format!("https://127.0.0.1:{}/away", server.port));
    let mut command = place.command(&["models", "pull", "remote"]);
    let refused = said(command.env("SSL_CERT_FILE", server.folder.path().join("ca.pem")));
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("leads on to http://127.0.0.1:9/remote.onnx"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("hunter2"), "{}", refused.stderr);
}

#[test]
fn an_address_that_has_nothing_is_named() {
    let server = Server::start(Vec::new(), &[Deed::NotFound]);
    let place = Place::new(&server.url);
    let refused = place.run(&["models", "pull", "remote"]);
    assert_eq!(refused.code, 1);
    for part in ["model `remote`", "/files/remote.onnx", "the server answers 404", "hint: correct `file`"] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    let unknown = place.run(&["models", "pull", "remode"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("did you mean `remote`?"), "{}", unknown.stderr);
}

#[test]
fn run_pulls_what_is_missing_and_check_says_how() {
    let server = Server::start(shapes(), &[Deed::Cut, Deed::Send]);
    let place = Place::new(&server.url);
    let graph = place.path().join("graph.toml");
    let text = "[sources.scene]\ntype = 'synthetic'\nwidth = 320\nheight = 192\nframes = 3\n[operators.shapes]\n\
                type = 'detect'\ninputs = ['scene']\nmodel = 'remote'\n[sinks.out]\ntype = 'blackhole'\n\
                inputs = ['shapes']\n";
    fs::write(&graph, text).expect("written");
    let checked = place.run(&["check", "graph.toml"]);
    assert_eq!(checked.code, 1);
    assert!(checked.stderr.contains("run `engine models pull remote`"), "{}", checked.stderr);
    let ended = run_graph(&graph, &[], |command| place.set(command)).finish().expect(0);
    assert!(ended.stderr.contains("fetching model `remote` from http://127.0.0.1"), "{}", ended.stderr);
    assert_eq!(ended.counts("synthetic").delivered, 3);
    assert_eq!(place.run(&["check", "graph.toml"]).code, 0);
}

#[test]
fn the_list_tells_the_state_of_every_model() {
    let server = Server::start(Vec::new(), &[Deed::NotFound]);
    let place = Place::new(&server.url);
    let models = place.path().join("models");
    let manifest = fs::read_to_string(repository().join("models/shapes.toml")).expect("the manifest");
    fs::write(models.join("sound.toml"), &manifest).expect("written");
    fs::copy(repository().join("models/shapes.onnx"), models.join("shapes.onnx")).expect("copied");
    fs::write(models.join("gone.toml"), manifest.replace("shapes.onnx", "gone.onnx")).expect("written");
    fs::write(models.join("changed.toml"), manifest.replace(&place.sha256, &"0".repeat(64))).expect("written");
    fs::write(models.join("broken.toml"), "file = 3").expect("written");
    let listed = place.run(&["models", "list", "--format", "json"]);
    assert_eq!(listed.code, 0, "{}", listed.stderr);
    let rows: Vec<Value> = serde_json::from_str(&listed.stdout).expect("JSON");
    let state = |name: &str| {
        let row = rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name}: {rows:?}"));
        row["state"].as_str().expect("text").to_owned()
    };
    for (name, expected) in [
        ("sound", "ok"),
        ("gone", "missing"),
        ("changed", "wrong hash"),
        ("broken", "broken"),
        ("remote", "not pulled"),
    ] {
        assert_eq!(state(name), expected);
    }
    let table = place.run(&["models", "list"]);
    let line = table.stdout.lines().find(|line| line.starts_with("sound")).expect("a line");
    for part in ["ok", "yolox", "KiB", "models/shapes.onnx"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let verified = place.run(&["models", "verify"]);
    assert_eq!(verified.code, 1);
    assert!(verified.stdout.contains("sound: ok, 3 labels"), "{}", verified.stdout);
}

/// A manifest that `inspect` prints works once its guesses are corrected.
#[test]
fn inspect_tells_what_a_file_takes_and_gives_a_manifest_to_start_from() {
    let place = Place::new("http://127.0.0.1:9/remote.onnx");
    let file = repository().join("models/shapes.onnx");
    let file = file.to_str().expect("text");
    let told = place.run(&["models", "inspect", file]);
    assert_eq!(told.code, 0, "{}", told.stderr);
    for part in [&place.sha256, "opset ", "input `images`: f32 [1, 3, 192, 320]", "output `output`: f32 [1, 240, 8]"] {
        assert!(told.stdout.contains(part), "{part}: {}", told.stdout);
    }
    let manifest = place.run(&["models", "inspect", file, "--manifest"]);
    let table: toml::Table = manifest.stdout.parse().unwrap_or_else(|error| panic!("{error}: {}", manifest.stdout));
    assert_eq!(table["input"]["width"].as_integer(), Some(320));
    let json: Value =
        serde_json::from_str(&place.run(&["models", "inspect", file, "--format", "json"]).stdout).expect("JSON");
    assert_eq!(json["model"]["inputs"][0]["shape"], serde_json::json!([1, 3, 192, 320]));

    fs::write(place.path().join("no.onnx"), "no model").expect("written");
    let refused = place.run(&["models", "inspect", "no.onnx"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("cannot be loaded") && refused.stderr.contains("hint: "), "{}", refused.stderr);
    let refused = place.run(&["models", "inspect", "gone.onnx"]);
    assert!(refused.code == 1 && refused.stderr.contains("there is no file gone.onnx"), "{}", refused.stderr);
}

#[test]
fn models_that_take_no_pictures_are_shown_without_a_manifest() {
    let Some(material) = material() else { return };
    let file = material.join("models/silero_vad.onnx");
    let file = file.to_str().expect("text");
    let told = said(&mut command(&["models", "inspect", file]));
    assert_eq!(told.code, 0, "{}", told.stderr);
    assert!(told.stdout.contains("cannot use it") && told.stdout.contains("input `sr`: "), "{}", told.stdout);
    assert_eq!(said(&mut command(&["models", "inspect", file, "--manifest"])).code, 1);
}

#[test]
fn every_shipped_model_is_sound() {
    let Some(_material) = material() else { return };
    let verified = said(&mut command(&["models", "verify"]));
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    assert!(verified.stdout.lines().count() >= 7, "{}", verified.stdout);
}

#[test]
fn bench_measures_one_thread_and_all() {
    let measured =
        said(&mut command(&["models", "bench", "shapes", "--threads", "2", "--seconds", "200ms", "--format", "json"]));
    assert_eq!(measured.code, 0, "{}", measured.stderr);
    let json: Value = serde_json::from_str(&measured.stdout).expect("JSON");
    assert_eq!((&json["one_thread"]["threads"], &json["all_threads"]["threads"]), (&1.into(), &2.into()));
    assert!(json["one_thread"]["pictures"].as_u64() > Some(0) && json["ratio"].as_f64() > Some(0.0), "{json}");
    let refused = said(&mut command(&["models", "bench", "shapes", "--batch", "2"]));
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("takes one picture at a time"), "{}", refused.stderr);
    if material().is_some() {
        let bench =
            ["models", "bench", "mobilenet_v3_small", "--threads", "1", "--seconds", "50ms", "--format", "json"];
        let measured = said(command(&bench).args(["--batch", "3"]));
        let json: Value = serde_json::from_str(&measured.stdout).expect("JSON");
        assert_eq!(
            (&json["batch"], json["one_thread"]["pictures"].as_u64().map(|count| count % 3)),
            (&3.into(), Some(0))
        );
    }
    let refused = said(&mut command(&["models", "bench", "shapes", "--device", "cuda:0"]));
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("device `cuda:0`"), "{}", refused.stderr);
}

/// A graph that looks for shapes in `streams` scenes, with further fields of the detector.
fn shapes_graph(model: &str, fields: &str) -> String {
    format!(
        "[sources.scene]\ntype = 'synthetic'\nstreams = ['a', 'b', 'c']\nrealtime = false\nframes = 8\n\
         width = 320\nheight = 192\n[operators.shapes]\ntype = 'detect'\ninputs = ['scene']\n\
         model = '{model}'\n{fields}\n[sinks.out]\ntype = 'blackhole'\ninputs = ['shapes']\n"
    )
}

fn check(model: &str, fields: &str) -> Said {
    let folder = support::Folder::with_graph(&shapes_graph(model, fields));
    said(command(&["check", "graph.toml"]).current_dir(folder.path()))
}

/// The library that `script/setup` installs is built for the processor alone.
#[test]
fn check_names_a_device_that_is_missing() {
    for (device, provider) in [
        ("cuda:0", "CUDAExecutionProvider"),
        ("tensorrt", "TensorrtExecutionProvider"),
        ("openvino", "OpenVINOExecutionProvider"),
    ] {
        let checked = check("shapes", &format!("device = '{device}'\nbatch_wait = '5ms'\nbatch = 8"));
        assert_eq!(checked.code, 1);
        let named = format!("device `{device}");
        for part in ["graph.toml:", &format!("device = '{device}'"), &named, provider, "ORT_DYLIB_PATH"] {
            assert!(checked.stderr.contains(part), "{part}: {}", checked.stderr);
        }
    }
    let checked = check("shapes", "device = 'gpu'");
    assert!(checked.code == 1 && checked.stderr.contains("`gpu` is no device"), "{}", checked.stderr);
}

#[test]
fn check_says_which_models_take_no_batches() {
    let refused = |model: &str, fields: &str, says: &[&str]| {
        let checked = check(model, fields);
        assert_eq!(checked.code, 1, "{fields}");
        for part in says {
            assert!(checked.stderr.contains(part), "{part}: {}", checked.stderr);
        }
    };
    let one = ["batch = 4", "model `shapes` takes one picture at a time", "export it with an open batch dimension"];
    refused("shapes", "batch = 4", &one);
    refused("shapes", "batch_wait = '5ms'", &["batch_wait = '5ms'", "write `batch` as well"]);
    refused("shapes", "batch = 0", &["batch = 0"]);
    refused("shapes", "batch = 257", &["batch = 257"]);
    if material().is_none() {
        return;
    }
    refused("person", "batch = 2", &["model `person` takes one picture at a time", "leave `batch` out"]);
    let mut graph = shapes_graph("mobilenet_v3_small", "batch = 4\nbatch_wait = '6s'");
    graph = graph.replace("'detect'", "'classify'");
    let folder = support::Folder::with_graph(&graph);
    let checked = said(command(&["check", "graph.toml"]).current_dir(folder.path()));
    assert!(checked.code == 1 && checked.stderr.contains("waits at most 5s"), "{}", checked.stderr);
}

/// Three streams of one node gather in batches: every record is there, in the order of its stream, and says what it says
/// where each picture runs by itself.
#[test]
fn a_graph_with_batches_gives_the_same_records() {
    let Some(_material) = material() else { return };
    let records = |fields: &str| {
        let graph = shapes_graph("mobilenet_v3_small", fields)
            .replace("'detect'", "'classify'")
            .replace("type = 'blackhole'", "type = 'file'\npath = 'out.jsonl'");
        let folder = support::Folder::with_graph(&graph);
        let ended = folder.run(&["--pool-threads", "2", "--workers", "2"]).finish().expect(0);
        for stream in ["a", "b", "c"] {
            assert_eq!(ended.counts(stream), support::Counts::all_delivered(8));
        }
        let records = folder.records("out.jsonl");
        let mut by_stream: std::collections::BTreeMap<String, Vec<Value>> = std::collections::BTreeMap::new();
        for record in records {
            for stage in ["preprocess", "infer", "decode"] {
                assert!(record["timing_ms"][stage].as_f64().is_some_and(|time| time >= 0.0), "{record}");
            }
            by_stream.entry(record["stream"].as_str().expect("text").to_owned()).or_default().push(record);
        }
        by_stream
    };
    let (alone, together) = (records(""), records("batch = 4\nbatch_wait = '20ms'"));
    assert_eq!(alone.len(), 3);
    for (stream, expected) in alone {
        let found = &together[&stream];
        assert_eq!(found.len(), 8);
        for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
            assert_eq!((&found["seq"], &found["id"]), (&expected["seq"], &expected["id"]));
            assert_eq!(found["seq"], index as u64);
            let (expected, found) = (&expected["predictions"], &found["predictions"]);
            assert_eq!(expected[0]["label"], found[0]["label"]);
            let score = |predictions: &Value| predictions[0]["score"].as_f64().expect("a score");
            assert!((score(expected) - score(found)).abs() < 1e-4, "{expected} {found}");
        }
    }
    let folder =
        support::Folder::with_graph(&shapes_graph("mobilenet_v3_small", "batch = 4").replace("'detect'", "'classify'"));
    let alone = support::Folder::with_graph(&shapes_graph("mobilenet_v3_small", "").replace("'detect'", "'classify'"));
    let term = |folder: &support::Folder| {
        let plan = support::plan(&folder.graph(), &["--pool-threads", "2"]);
        let terms = plan["memory"]["terms"].as_array().expect("a list");
        let term = terms.iter().find(|term| term["what"] == "pool threads, for `shapes`").expect("a term");
        (term["each"].as_u64().expect("bytes"), plan["operators"][0]["batch"].clone())
    };
    let (four, one) = (term(&folder), term(&alone));
    assert_eq!((four.1, one.1), (serde_json::json!({ "items": 4, "wait_ms": 5.0 }), Value::Null));
    // Three more pictures between the layers, and four as one tensor.
    let picture = 224 * 224 * 3 * 4;
    assert_eq!(four.0 - one.0, 3 * 12 * picture + 4 * picture);
}
