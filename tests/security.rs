//! Who may use the control plane, what may be named over it, and what it tells nobody, from outside.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::cameras::{RtspServer, clip, server_is_here};
use support::{Answer, Engine, authority, command, ffmpeg, run_folder, send, wait_for};

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// Makes a key with `engine key`, and writes its lines into `engine.toml`. Answers the key.
fn add_key(folder: &Path, name: &str, role: &str, more: &str) -> String {
    let output = command(&["key", name, "--role", role]).output().expect("it runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let key = text(&output.stderr).lines().next().expect("the key").to_owned();
    let lines = text(&output.stdout);
    assert!(!lines.contains(&key) && lines.contains(&format!("role = \"{role}\"")), "{lines}");
    let mut file = std::fs::File::options().create(true).append(true).open(folder.join("engine.toml")).expect("a file");
    write!(file, "{lines}{more}").expect("written");
    key
}

/// Streams with results that subscribers hear.
const SCENE: &str = "[sources.scene]\ntype = \"synthetic\"\nwidth = 64\nheight = 48\nfps = 20\nstreams = [\"a\"]\n\
                     [operators.sum]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
                     [sinks.events]\ntype = \"sse\"\ninputs = [\"sum\"]\n";

/// An engine that runs a folder of graphs and asks for keys: one of each role.
struct Guarded {
    engine: Engine,
    address: String,
    reads: String,
    works: String,
    folder: tempfile::TempDir,
}

impl Guarded {
    fn start(arguments: &[&str]) -> Guarded {
        let folder = temporary();
        let reads = add_key(folder.path(), "reads", "read", "");
        let works = add_key(folder.path(), "works", "operate", "");
        let mut engine = run_folder(folder.path(), &[&["--config", "engine.toml"], arguments].concat());
        let address = engine.address();
        Guarded { engine, address, reads, works, folder }
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        send(method, &format!("{}{path}", self.address), headers, body)
    }
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

#[test]
fn keys_let_in_and_roles_say_how_far() {
    let guarded = Guarded::start(&[]);
    let (reads, works) = (bearer(&guarded.reads), bearer(&guarded.works));
    for (method, path) in [
        ("GET", "/stats"),
        ("GET", "/metrics"),
        ("GET", "/health"),
        ("GET", "/graphs"),
        ("GET", "/streams"),
        ("GET", "/events"),
        ("GET", "/preview?graph=a&stream=b"),
        ("GET", "/hls/a/b/index.m3u8"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/nothing"),
        ("PUT", "/graphs/door"),
        ("DELETE", "/graphs/door"),
        ("POST", "/streams"),
        ("POST", "/streams/check"),
        ("POST", "/predict"),
    ] {
        let body = if method == "GET" { "" } else { "x" };
        // Fewer wrong keys than make their sender wait.
        let wrong = if method == "GET" { ("x-api-key", "engine_0") } else { ("authorization", "Basic YTpi") };
        for headers in [&[][..], &[wrong]] {
            let refused = guarded.ask(method, path, headers, body);
            assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer realm=\"engine\"")));
            let said = refused.json();
            assert!(
                said["hint"].as_str().expect("a hint").contains("Authorization: Bearer"),
                "{method} {path}: {said}"
            );
        }
        if method != "GET" {
            let refused = guarded.ask(method, path, &[("authorization", &reads)], body).expect(403);
            assert!(refused["error"].as_str().expect("an error").contains("`reads`"), "{refused}");
        } else if path != "/events" {
            assert_ne!(guarded.ask(method, path, &[("authorization", &reads)], "").status, 401, "{path}");
        }
    }
    for path in ["/health/live", "/health/ready", "/page.css", "/login"] {
        assert_eq!(guarded.ask("GET", path, &[], "").status, 200, "{path}");
    }
    guarded.ask("GET", "/stats", &[("x-api-key", &guarded.reads)], "").expect(200);
    guarded.ask("PUT", "/graphs/door", &[("authorization", &works)], SCENE).expect(201);
    guarded.ask("GET", "/graphs/door", &[("authorization", &works)], "").expect(200);
    let large = "x".repeat(200_000);
    assert_eq!(guarded.ask("PUT", "/graphs/door", &[], &large).status, 401, "also who writes before they read");
    let asked = guarded.ask("OPTIONS", "/graphs/door", &[("origin", "https://example.org")], "");
    let allowed = asked.header("access-control-allow-headers").expect("a header");
    assert!(asked.status == 204 && allowed.contains("authorization") && allowed.contains("x-api-key"), "{allowed}");

    let top = |key: Option<&str>| -> Output {
        let mut command = command(&["top", &guarded.address, "--once"]);
        key.map(|key| command.env("ENGINE_KEY", key));
        command.output().expect("it runs")
    };
    assert!(text(&top(None).stderr).contains("asks for a key"));
    assert!(text(&top(Some("engine_1")).stderr).contains("does not know this key"));
    assert!(text(&top(Some(&guarded.reads)).stdout).contains("graph `door`"));
    let ended = guarded.engine.terminate().expect(0);
    for key in [&guarded.reads, &guarded.works] {
        assert!(!ended.stderr.contains(key.as_str()), "{}", ended.stderr);
    }
    assert!(ended.stderr.contains("a request with a wrong key is refused"), "{}", ended.stderr);
}

#[test]
fn a_browser_shows_its_key_once_and_hears_events() {
    let guarded = Guarded::start(&[]);
    let browser = ("accept", "text/html");
    let form = guarded.ask("GET", "/", &[browser], "");
    assert_eq!((form.status, form.header("content-type")), (401, Some("text/html; charset=utf-8")));
    assert!(form.text.contains("name=\"key\"") && !form.text.contains("NOTICE"), "{}", form.text);
    let urlencoded = ("content-type", "application/x-www-form-urlencoded");
    let wrong = guarded.ask("POST", "/login", &[browser, urlencoded], "key=engine_1");
    assert!(wrong.status == 401 && wrong.text.contains("this key is not known here"), "{}", wrong.text);
    assert_eq!(guarded.ask("POST", "/login", &[urlencoded], "k=1").status, 400);

    // Without following where it leads: the cookie is in this answer.
    let mut client = TcpStream::connect(guarded.address.trim_start_matches("http://")).expect("connected");
    let body = format!("key={}", guarded.reads);
    write!(
        client,
        "POST /login HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("sent");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 303"), "{answer}");
    let line = answer.lines().find(|line| line.starts_with("set-cookie: ")).expect("a cookie");
    assert!(line.contains("; HttpOnly; SameSite=Strict") && !line.contains(&guarded.reads), "{line}");
    let cookie = line["set-cookie: ".len()..].split(';').next().expect("its value");

    let page = guarded.ask("GET", "/", &[browser, ("cookie", cookie)], "");
    assert!(page.status == 200 && page.text.contains("page.js"), "{}", page.text);
    assert_eq!(guarded.ask("PUT", "/graphs/a", &[("cookie", cookie)], SCENE).status, 403, "it reads");
    guarded.ask("PUT", "/graphs/door", &[("x-api-key", &guarded.works)], SCENE).expect(201);
    let config = ureq::Agent::config_builder().timeout_global(Some(support::PATIENCE));
    let events = config.build().new_agent().get(format!("{}/events", guarded.address)).header("cookie", cookie).call();
    let lines = BufReader::new(events.expect("an answer").into_body().into_reader()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.starts_with("data: ")));
    assert_eq!(guarded.ask("GET", "/stats", &[("cookie", "engine_session_1=x")], "").status, 401);
    send("POST", &format!("{}/logout", guarded.address), &[("cookie", cookie), browser], "");
    assert_eq!(guarded.ask("GET", "/stats", &[("cookie", cookie)], "").status, 401, "it was forgotten");
    guarded.engine.terminate().expect(0);
}

#[test]
fn nobody_listens_to_the_network_without_a_key() {
    let folder = temporary();
    std::fs::create_dir(folder.path().join("graphs")).expect("a folder");
    for address in ["0.0.0.0:0", "[::]:0"] {
        let mut command = command(&["run", "graphs", "--listen", address]);
        let refused = Engine::start({
            command.current_dir(folder.path());
            command
        })
        .finish()
        .expect(1);
        assert!(refused.stderr.contains("the engine has no keys, so it does not listen on"), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("hint: make a key with `engine key NAME >> engine.toml`"),
            "{}",
            refused.stderr
        );
        assert!(!refused.stderr.contains("listening on http"), "{}", refused.stderr);
    }
    std::fs::write(folder.path().join("engine.toml"), "[[key]]\nname = \"a\"\n").expect("written");
    let mut command = command(&["run", "graphs", "--config", "engine.toml"]);
    command.current_dir(folder.path());
    let refused = Engine::start(command).finish().expect(1);
    assert!(
        refused.stderr.contains("`engine.toml` is not understood") && refused.stderr.contains("unknown field `key`")
    );
}

#[test]
fn a_page_of_another_name_is_not_taken_for_the_engines_own() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let asked = send("GET", &format!("{address}/stats"), &[("host", "evil.example:8000")], "");
    assert_eq!(asked.status, 421, "{}", asked.text);
    assert!(asked.json()["hint"].as_str().expect("a hint").contains("--insecure"));
    assert_eq!(send("GET", &format!("{address}/stats"), &[("host", "localhost:8000")], "").status, 200);
    engine.terminate().expect(0);
}

#[test]
fn rates_are_told_and_kept() {
    let guarded = Guarded::start(&["--rate-limit", "3/h"]);
    let number = |answer: &Answer, name: &str| answer.header(name).and_then(|value| value.parse::<u64>().ok());
    let ask = |key: &str| guarded.ask("GET", "/stats", &[("x-api-key", key)], "");
    for remaining in [2, 1, 0] {
        let answer = ask(&guarded.reads);
        assert_eq!((answer.status, number(&answer, "x-ratelimit-limit")), (200, Some(3)));
        assert_eq!(number(&answer, "x-ratelimit-remaining"), Some(remaining));
        assert!(number(&answer, "x-ratelimit-reset").is_some_and(|seconds| (1..=3600).contains(&seconds)));
        assert_eq!(answer.header("retry-after"), None);
    }
    let refused = ask(&guarded.reads);
    assert!(number(&refused, "retry-after").is_some_and(|seconds| (1..=1200).contains(&seconds)));
    assert_eq!(number(&refused, "x-ratelimit-remaining"), Some(0));
    assert!(refused.expect(429)["error"].as_str().expect("an error").contains("3/h"));
    assert_eq!(ask(&guarded.works).status, 200, "each key has its own");
    assert_eq!(guarded.ask("GET", "/health/live", &[("x-api-key", &guarded.reads)], "").status, 200);
    guarded.engine.terminate().expect(0);
}

#[test]
fn it_serves_https_and_reads_its_certificate_anew() {
    let authorities = temporary();
    let at = |name: &str| authorities.path().join(name);
    authority::found(authorities.path());
    authority::certify(authorities.path(), "server");
    authority::certify(authorities.path(), "renewed");
    let (certificate, key) = (at("server.pem"), at("server.key"));
    let guarded =
        Guarded::start(&["--tls-cert", certificate.to_str().expect("text"), "--tls-key", key.to_str().expect("text")]);
    assert!(guarded.address.starts_with("https://127.0.0.1:"), "{}", guarded.address);
    let top = |roots: &str, key: &str| {
        let mut command = command(&["top", &guarded.address, "--once"]);
        command.env("SSL_CERT_FILE", at(roots)).env("ENGINE_KEY", key).output().expect("it runs")
    };
    let seen = top("ca.pem", &guarded.reads);
    assert!(text(&seen.stdout).starts_with("engine at https://"), "{}", text(&seen.stderr));
    std::fs::copy(at("ca.pem"), at("first-ca.pem")).expect("copied");
    let port = guarded.address.rsplit(':').next().expect("a port").to_owned();
    let shown = || {
        let output = std::process::Command::new("openssl")
            .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-alpn", "h2,http/1.1"])
            .stdin(std::process::Stdio::null())
            .output()
            .expect("openssl is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let first = shown();
    assert!(first.contains("CN = server") && first.contains("ALPN protocol: http/1.1"), "{first}");

    // Not encrypted: no answer that a client could take for one.
    let mut plain = TcpStream::connect(("127.0.0.1", port.parse::<u16>().expect("a port"))).expect("connected");
    plain.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&answer));

    // What does not fit together leaves the certificate from before.
    std::fs::copy(at("renewed.pem"), &certificate).expect("copied");
    wait_for("a word in the log", || {
        assert!(shown().contains("CN = server"));
        guarded.engine.stderr().contains("the certificate from before stays").then_some(())
    });
    std::fs::copy(at("renewed.key"), &key).expect("copied");
    wait_for("the new certificate", || shown().contains("CN = renewed").then_some(()));
    assert!(text(&top("ca.pem", &guarded.reads).stdout).starts_with("engine at https://"));
    guarded.engine.terminate().expect(0);
}

/// The code of the first thing that is wrong with a text.
fn code(refused: &Value) -> Option<&str> {
    refused["files"][0]["diagnostics"][0]["code"].as_str()
}

#[test]
fn texts_over_http_name_only_allowed_files_and_hosts() {
    let folder = temporary();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("in")).expect("a folder");
    std::fs::create_dir_all(at("graphs")).expect("a folder");
    ffmpeg(&["-f", "lavfi", "-i", "testsrc=size=64x48:rate=5:duration=2"], &at("in/clip.mp4"));
    std::fs::copy(at("in/clip.mp4"), at("secret.mp4")).expect("copied");
    std::os::unix::fs::symlink(at("secret.mp4"), at("in/link.mp4")).expect("linked");
    std::os::unix::fs::symlink(at("new.jsonl"), at("in/nowhere.jsonl")).expect("linked");
    std::fs::write(at("engine.toml"), "").expect("written");
    std::os::unix::fs::symlink(at("engine.toml"), at("in/config")).expect("linked");
    let run = |arguments: &[&str]| {
        let mut command = command(&["run", "graphs", "--listen", "127.0.0.1:0", "--config", "engine.toml"]);
        command.args(arguments).current_dir(folder.path());
        Engine::start(command)
    };
    let graph = |source: &str, sink: &str| {
        format!(
            "[sources.s]\n{source}\n[operators.sum]\ntype = \"checksum\"\ninputs = [\"s\"]\n[sinks.out]\n{sink}\ninputs = [\"sum\"]\n"
        )
    };
    let hole = "type = \"blackhole\"";
    let put = |address: &str, text: &str| send("PUT", &format!("{address}/graphs/door"), &[], text);
    let file = |path: &str| graph(&format!("type = \"file\"\npath = \"{path}\""), hole);
    let camera = |url: &str| graph(&format!("type = \"rtsp\"\nurl = \"{url}\""), hole);
    let scene = |path: &str| {
        let source = "type = \"synthetic\"\nframes = 3\nwidth = 64\nheight = 48";
        graph(source, &format!("type = \"file\"\npath = \"{path}\""))
    };

    let mut engine = run(&[]);
    let address = engine.address();
    for text in [file("in/clip.mp4"), camera("rtsp://127.0.0.1:9/x"), scene("out.jsonl")] {
        assert_eq!(code(&put(&address, &text).expect(400)), Some("forbidden-reference"), "{text}");
    }
    put(&address, &graph("type = \"synthetic\"\nframes = 3", hole)).expect(201);
    engine.terminate().expect(0);

    let mut engine = run(&["--allow-path", "in", "--allow-host", "127.0.0.1"]);
    let address = engine.address();
    let absolute = at("secret.mp4").to_str().expect("text").to_owned();
    for text in [
        file("secret.mp4"),
        file(&absolute),
        file("in/../secret.mp4"),
        file("in/link.mp4"),
        file("in/*.mp4"),
        file("*.mp4"),
        file("/etc/*"),
        file("/etc/shadow"),
        file("/no/such/file.mp4"),
        camera("rtsp://10.9.9.9/x"),
        camera("rtsp://127.0.0.1@evil.example/x"),
        camera("rtsp://169.254.169.254/latest"),
        graph("type = \"url\"\nurl = \"in/../x.sdp\"", hole),
        graph("type = \"url\"\nurl = \"udp://@:5000\"", hole),
        graph("type = \"rtsp\"\nurl = \"rtsp://127.0.0.1:9/x\"\nfallback = \"secret.mp4\"", hole),
        scene("out.jsonl"),
        scene("in/../out.jsonl"),
        scene("in/nowhere.jsonl"),
        scene("/dev/stdout"),
        scene("graphs/new.toml"),
        scene("engine.toml"),
        scene("in/config"),
    ] {
        let refused = put(&address, &text).expect(400);
        assert_eq!(code(&refused), Some("forbidden-reference"), "{text}\n{refused}");
        let said = refused.to_string();
        for word in ["there is no file", "no such file", "is a folder", "did you mean", "no file matches"] {
            assert!(!said.contains(word), "nobody learns what is there: {said}");
        }
        assert_eq!(send("POST", &format!("{address}/graphs/door/check"), &[], &text).status, 400);
    }
    assert!(!at("new.jsonl").exists() && !at("out.jsonl").exists() && !at("graphs/new.toml").exists());
    assert_eq!(std::fs::read_to_string(at("engine.toml")).expect("still there"), "");
    put(&address, &file("in/clip.mp4")).expect(201);
    // Reloaded, or started anew where the clip has ended meanwhile.
    let taken = |answer: Answer| assert!([200, 201].contains(&answer.status), "{}", answer.text);
    taken(put(&address, &scene("in/results/out.jsonl")));

    // Streams that are added, and those that are only looked at.
    taken(put(&address, &graph("type = \"rtsp\"\nstreams.one = \"rtsp://127.0.0.1:9/x\"", hole)));
    let post = |body: Value| send("POST", &format!("{address}/streams"), &[], &body.to_string());
    let refused = post(json!({ "graph": "door", "source": "s", "id": "two", "url": "rtsp://10.9.9.9/x" })).expect(400);
    assert_eq!(refused["mistakes"][0]["field"], "streams.two");
    assert!(refused["hint"].as_str().expect("a hint").contains("--allow-host 10.9.9.9"), "{refused}");
    let fallback =
        json!({ "graph": "door", "source": "s", "id": "two", "url": "rtsp://127.0.0.1:9/y", "fallback": "secret.mp4" });
    assert!(post(fallback).expect(400)["hint"].as_str().expect("a hint").contains("--allow-path"));
    post(json!({ "graph": "door", "source": "s", "id": "two", "url": "rtsp://127.0.0.1:9/y" })).expect(201);
    let look = |url: &str| send("POST", &format!("{address}/streams/check"), &[], &json!({ "url": url }).to_string());
    assert_eq!(look("http://169.254.169.254/latest").status, 403);
    assert_eq!(look("rtsp://127.0.0.1:9/x").expect(200)["ok"], false);
    engine.terminate().expect(0);

    // What was saved is bound by what is allowed now, and not by what was allowed then.
    let mut engine = run(&["--allow-path", "in", "--save", "saved"]);
    put(&engine.address(), &file("in/clip.mp4")).expect(201);
    let own = graph("type = \"file\"\npath = \"saved/door.toml\"", hole);
    let inside = send("PUT", &format!("{}/graphs/other", engine.address()), &[], &own).expect(400);
    assert_eq!(code(&inside), Some("forbidden-reference"), "{inside}");
    engine.terminate().expect(0);
    let mut engine = run(&["--save", "saved"]);
    engine.wait_for_log("ready: ");
    let (status, health) = engine.get("/health");
    let problems = health["problems"].to_string();
    assert!(status == 503 && problems.contains("door") && problems.contains("may not name the path"), "{health}");
    engine.terminate();

    // The files of the process itself name what they like, and further streams of theirs do not.
    std::fs::write(at("graphs/own.toml"), file("secret.mp4").replace("path =", "loop = true\nstreams.own ="))
        .expect("written");
    let mut engine = run(&[]);
    engine.wait_for_graph("it runs", |graph| graph["state"] == "running");
    let body = json!({ "graph": "own", "source": "s", "id": "two", "path": "secret.mp4" }).to_string();
    send("POST", &format!("{}/streams", engine.address()), &[], &body).expect(400);
    engine.terminate().expect(0);
}

/// Everything that was planted, and has to be nowhere.
const PLANTED: [&str; 9] = [
    "planted-env",
    "planted-file",
    "planted-user",
    "planted-pass",
    "planted-query",
    "planted-param",
    "planted-request",
    "planted-late",
    "planted-look",
];

/// A graph with a secret of every kind, and streams that fail with their addresses at hand.
fn secretive(sink: &str) -> String {
    format!(
        "[params]\ndoor_password = \"planted-param\"\n\
         [sources.scene]\ntype = \"synthetic\"\nwidth = 64\nheight = 48\nfps = 10\nstreams = [\"a\"]\n\
         [sources.cameras]\ntype = \"rtsp\"\nbackoff_first = \"50ms\"\nbackoff_most = \"100ms\"\n\
         streams.env = \"rtsp://admin:${{env.PLANTED}}@127.0.0.1:9/env\"\n\
         streams.file = \"rtsp://${{file.planted}}@127.0.0.1:9/file\"\n\
         streams.own = \"rtsp://planted-user:planted-pass@127.0.0.1:9/own?token=planted-query\"\n\
         streams.param = \"rtsp://admin:${{door_password}}@127.0.0.1:9/param\"\n\
         [operators.sum]\ntype = \"checksum\"\ninputs = [\"scene\", \"cameras\"]\n\
         [sinks.out]\n{sink}\ninputs = [\"sum\"]\n\
         [sinks.events]\ntype = \"sse\"\ninputs = [\"sum\"]\n"
    )
}

/// Asks the engine for everything that it tells, with secrets in what is asked. Answers what it said, by what was asked.
fn everything_told(engine: &mut Engine, key: &str) -> Vec<(String, String)> {
    let address = engine.address();
    let with_key = [("x-api-key", key)];
    let mut told = Vec::new();
    let mut ask = |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        let headers = [&with_key[..], headers].concat();
        let answer = send(method, &format!("{address}{path}"), &headers, body);
        told.push((
            format!("{method} {path} {headers:?}").replace(key, "KEY"),
            format!("{} {:?}", answer.text, answer.headers),
        ));
        answer.status
    };
    let graph = secretive("type = \"blackhole\"").replace("[\"a\"]", "[\"b\"]").replace("streams.", "streams.put-");
    assert_eq!(ask("PUT", "/graphs/put", &[], &graph), 201);
    let posted = |id: &str| {
        json!({ "graph": "put", "source": "cameras", "id": id, "url": "rtsp://u:planted-late@127.0.0.1:9/late" })
            .to_string()
    };
    assert_eq!(ask("POST", "/streams", &[], &posted("late")), 201);
    assert_eq!(ask("POST", "/streams", &[], &posted("late")), 409);
    for mistaken in [
        graph.replace("type = \"rtsp\"", "type = \"rtps\""),
        graph.replace("/own?", ":x/own?"),
        graph.replace("127.0.0.1:9/env", "evil.example/env"),
        graph.replace("backoff_first", "backof_first"),
        graph.replace("rtsp://admin:${env", "admin:${env"),
        graph.replace("[operators.sum]", "[operators.sum"),
    ] {
        assert_eq!(ask("PUT", "/graphs/put", &[], &mistaken), 400);
        assert_eq!(ask("POST", "/graphs/put/check", &[], &mistaken), 400);
    }
    ask("POST", "/graphs/put/check", &[], &graph);
    for url in ["rtsp://u:planted-look@127.0.0.1:9/x", "rtsp://u:planted-look@127.0.0.1:x/x", "u:planted-look@h"] {
        ask("POST", "/streams/check", &[], &json!({ "url": url, "timeout": "2s" }).to_string());
    }
    for stream in ["env", "file", "own", "param", "put-env", "late"] {
        wait_for("a failure", || {
            let seen = send("GET", &format!("{address}/streams/{stream}"), &with_key, "").json();
            seen["last_error"].is_object().then_some(())
        });
        ask("GET", &format!("/streams/{stream}"), &[], "");
    }
    for path in [
        "/",
        "/health",
        "/stats",
        "/stats?key=planted-request",
        "/metrics",
        "/graphs",
        "/graphs/put",
        "/graphs/put/plan",
        "/streams",
    ] {
        ask("GET", path, &[], "");
    }
    for (path, kind) in [("/graphs/put", "application/toml"), ("/graphs/put/plan", "text/plain"), ("/", "text/html")] {
        ask("GET", path, &[("accept", kind)], "");
    }
    ask("GET", "/preview?graph=put&stream=late&key=planted-request", &[], "");
    ask("GET", "/events?key=planted-request", &[], "");
    for refused in [
        &[("x-api-key", "planted-request")][..],
        &[("authorization", "Bearer planted-request")],
        &[("cookie", "planted-request")],
    ] {
        let answer = send("GET", &format!("{address}/stats?key=planted-request"), refused, "");
        assert_eq!(answer.status, 401);
        told.push(("refused".to_owned(), answer.text));
    }
    let config = ureq::Agent::config_builder().timeout_global(Some(support::PATIENCE));
    let events =
        config.build().new_agent().get(format!("{address}/events?last_event_id=0.0")).header("x-api-key", key).call();
    let lines = BufReader::new(events.expect("an answer").into_body().into_reader()).lines();
    told.push(("events".to_owned(), lines.map_while(Result::ok).take(60).collect::<Vec<_>>().join("\n")));
    let top = command(&["top", &address, "--once"]).env("ENGINE_KEY", key).output().expect("it runs");
    assert!(top.status.success(), "{}", text(&top.stderr));
    told.push(("top".to_owned(), text(&top.stdout).to_owned()));
    let answer = send("DELETE", &format!("{address}/graphs/put"), &with_key, "");
    told.push(("DELETE".to_owned(), answer.text));
    told
}

#[test]
fn secrets_are_told_nowhere() {
    for log in ["text", "json"] {
        let folder = temporary();
        let at = |name: &str| folder.path().join(name);
        let key = add_key(folder.path(), "all", "operate", "");
        std::fs::write(at("planted"), "planted-file:x").expect("written");
        std::fs::write(at("own.toml"), secretive("type = \"file\"\npath = \"out.jsonl\"")).expect("written");
        let prepared = |arguments: &[&str]| {
            let mut command = command(arguments);
            command.current_dir(folder.path()).env("PLANTED", "planted-env");
            command
        };
        let run =
            ["run", "own.toml", "--stay", "--listen", "127.0.0.1:0", "--config", "engine.toml", "--log-format", log];
        let allow = ["--allow-env", "PLANTED", "--allow-path", "planted", "--allow-host", "127.0.0.1"];
        let more = ["--log", "debug", "--metrics", "emf", "--metrics-interval", "200ms"];
        let mut engine = Engine::start(prepared(&[&run[..], &allow, &more].concat()));
        let mut told = everything_told(&mut engine, &key);
        for arguments in [
            &["plan", "own.toml"][..],
            &["plan", "own.toml", "--format", "json"],
            &["plan", "own.toml", "--format", "dot"],
            &["check", "own.toml"],
            &["check", "own.toml", "--format", "json"],
        ] {
            let output = prepared(arguments).output().expect("it runs");
            told.push((arguments.join(" "), format!("{}{}", text(&output.stdout), text(&output.stderr))));
        }
        assert!(engine.stdout().iter().any(|line| line.contains("CloudWatchMetrics")), "there are metrics");
        let ended = engine.terminate();
        told.push(("the log".to_owned(), ended.stderr));
        told.push(("the standard output".to_owned(), ended.stdout.join("\n")));
        told.push((
            "the records".to_owned(),
            std::fs::read_to_string(at("out.jsonl")).expect("the sink made its file"),
        ));
        for (place, said) in &told {
            for secret in PLANTED.iter().copied().chain([key.as_str()]) {
                let found = said.lines().find(|line| line.contains(secret));
                assert_eq!(found, None, "`{secret}` in {place}, with a log as {log}");
            }
        }
        let of = |place: &str| &told.iter().find(|(name, _)| name == place).expect("it was told").1;
        assert!(of("the log").contains("cameras") && of("events").contains("data: ") && of("top").contains("put-env"));
    }
}

/// Serves texts by their paths on loopback, and notes who asks. A text that starts with `-> ` is where it leads on.
struct Texts {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Texts {
    fn serve(texts: impl Fn(u16) -> Vec<(&'static str, String)>) -> Texts {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (texts, asked) = (texts(port), Arc::new(Mutex::new(Vec::new())));
        let seen = asked.clone();
        // It ends with the process of the test.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut lines = BufReader::new(client.try_clone().expect("cloned")).lines().map_while(Result::ok);
                let Some(first) = lines.next() else { continue };
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
                let text = texts.iter().find(|(known, _)| *known == path).map(|(_, text)| text.as_str());
                seen.lock().expect("no panic").push(path);
                let (status, header, body) = match text {
                    None => ("404 Not Found", String::new(), ""),
                    Some(text) => match text.strip_prefix("-> ") {
                        Some(place) => ("302 Found", format!("location: {place}\r\n"), ""),
                        None => ("200 OK", String::new(), text),
                    },
                };
                let head =
                    format!("HTTP/1.1 {status}\r\n{header}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
                // Who asks may have gone.
                let _ = (&client).write_all(format!("{head}{body}").as_bytes());
            }
        });
        Texts { port, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

const PLAYLIST: &str = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:2,\n";

#[test]
fn playlists_and_scripts_lead_to_no_file_of_this_machine() {
    let folder = temporary();
    let at = |name: &str| folder.path().join(name);
    ffmpeg(&["-f", "lavfi", "-i", "testsrc=size=64x48:rate=5:duration=2", "-c:v", "libx264"], &at("clip.ts"));
    let clip = at("clip.ts").to_str().expect("text").to_owned();
    std::fs::write(at("list.m3u8"), format!("{PLAYLIST}{clip}\n#EXT-X-ENDLIST\n")).expect("written");
    std::fs::write(at("list.ffconcat"), "ffconcat version 1.0\nfile clip.ts\n").expect("written");
    std::fs::write(at("list.mp4"), "ffconcat version 1.0\nfile clip.ts\n").expect("written");
    let probe = |input: &str| -> Output {
        command(&["probe", input, "--timeout", "5s"]).current_dir(folder.path()).output().expect("it runs")
    };
    assert!(probe("clip.ts").status.success(), "the clip itself is played: {}", text(&probe("clip.ts").stderr));
    for list in ["list.m3u8", "list.ffconcat", "list.mp4"] {
        let refused = probe(list);
        assert_eq!(refused.status.code(), Some(1), "{list}: {}", text(&refused.stdout));
        let said = text(&refused.stderr);
        assert!(said.contains("its format is not played here") && said.contains("hint: "), "{list}: {said}");
    }
    let server = Texts::serve(|_| {
        let list = |place: &str| format!("{PLAYLIST}{place}\n#EXT-X-ENDLIST\n");
        vec![
            ("/file.m3u8", list(&format!("file://{clip}"))),
            ("/path.m3u8", list(&clip)),
            ("/concat.m3u8", list(&format!("concat:{clip}|{clip}"))),
            ("/subfile.m3u8", list(&format!("subfile,,start,0,end,0,,:{clip}"))),
            ("/script.ffconcat", format!("ffconcat version 1.0\nfile '{clip}'\n")),
        ]
    });
    for path in ["/file.m3u8", "/path.m3u8", "/concat.m3u8", "/subfile.m3u8", "/script.ffconcat"] {
        let refused = probe(&format!("http://127.0.0.1:{}{path}", server.port));
        assert_eq!(refused.status.code(), Some(1), "{path}: {}", text(&refused.stdout));
        assert!(server.asked().contains(&path.to_owned()), "{path} was read");
    }
}

#[test]
fn inputs_lead_on_to_allowed_hosts_alone() {
    let folder = temporary();
    let server = Texts::serve(|port| {
        let away = format!("http://localhost:{port}");
        vec![
            ("/redirect", format!("-> {away}/inner-redirect")),
            ("/list.m3u8", format!("{PLAYLIST}{away}/inner-segment.ts\n#EXT-X-ENDLIST\n")),
            (
                "/key.m3u8",
                PLAYLIST.replace("#EXTINF", &format!("#EXT-X-KEY:METHOD=AES-128,URI=\"{away}/inner-key\"\n#EXTINF"))
                    + "a.ts\n#EXT-X-ENDLIST\n",
            ),
            ("/a.ts", "no video".to_owned()),
            ("/inner-redirect", "what nobody outside may read".to_owned()),
        ]
    });
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let look = |path: &str| {
        let body = json!({ "url": format!("http://127.0.0.1:{}{path}", server.port), "timeout": "5s" });
        send("POST", &format!("{address}/streams/check"), &[], &body.to_string()).expect(200)
    };
    let refused = look("/redirect");
    let said = refused["error"].as_str().expect("an error");
    assert!(said.contains("it leads on to the host `localhost`, which is not allowed"), "{refused}");
    assert!(refused["hint"].as_str().expect("a hint").contains("--allow-host"), "{refused}");
    for path in ["/list.m3u8", "/key.m3u8"] {
        assert_eq!(look(path)["ok"], false);
    }
    let graph = format!(
        "[sources.s]\ntype = \"url\"\nbackoff_first = \"50ms\"\nbackoff_most = \"100ms\"\n\
         streams.put = \"http://127.0.0.1:{0}/redirect\"\nstreams.list = \"http://127.0.0.1:{0}/list.m3u8\"\n\
         [operators.sum]\ntype = \"checksum\"\ninputs = [\"s\"]\n[sinks.out]\ntype = \"blackhole\"\ninputs = [\"sum\"]\n",
        server.port
    );
    send("PUT", &format!("{address}/graphs/away"), &[], &graph).expect(201);
    let posted = json!({ "graph": "away", "source": "s", "id": "late", "url": format!("http://127.0.0.1:{}/redirect", server.port) });
    send("POST", &format!("{address}/streams"), &[], &posted.to_string()).expect(201);
    for stream in ["put", "late"] {
        engine.wait_for("a refusal", |_| {
            let seen = support::get(&format!("{address}/streams/{stream}")).1;
            seen["reason"].as_str()?.contains("leads on to the host `localhost`").then_some(())
        });
    }
    engine.wait_for("a failure", |_| {
        support::get(&format!("{address}/streams/list")).1["last_error"].is_object().then_some(())
    });
    let ended = engine.terminate();
    assert!(ended.stderr.contains("an input leads on to a host that is not allowed"), "{}", ended.stderr);
    let asked = server.asked();
    assert!(!asked.iter().any(|path| ["/inner-segment.ts", "/inner-key"].contains(&path.as_str())), "{asked:?}");

    // Of a graph file, inputs lead where they like.
    std::fs::write(folder.path().join("own.toml"), &graph).expect("written");
    let mut command = command(&["run", "own.toml", "--stay", "--listen", "127.0.0.1:0"]);
    command.current_dir(folder.path());
    let mut engine = Engine::start(command);
    engine.wait_for("the segment", |_| server.asked().contains(&"/inner-segment.ts".to_owned()).then_some(()));
    engine.terminate();
}

/// Answers every request on loopback by leading on to an address. It ends with the process of the test.
fn leads_on(place: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(client.try_clone().expect("cloned")).lines().map_while(Result::ok);
            while let Some(first) = lines.next() {
                let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
                let number = head.iter().find(|line| line.starts_with("CSeq")).cloned().unwrap_or_default();
                let rest = match first.split(' ').next() {
                    Some("OPTIONS") => "200 OK\r\nPublic: OPTIONS, DESCRIBE".to_owned(),
                    _ => format!("302 Found\r\nLocation: {place}"),
                };
                let (status, more) = rest.split_once("\r\n").expect("two parts");
                // Who asks may have gone.
                let _ = (&client).write_all(format!("RTSP/1.0 {status}\r\n{number}\r\n{more}\r\n\r\n").as_bytes());
            }
        }
    });
    port
}

#[test]
fn cameras_lead_on_to_allowed_hosts_alone() {
    if !server_is_here() {
        return;
    }
    let folder = temporary();
    let file = clip(folder.path(), "camera.mp4", "160x120", &[]);
    let server = RtspServer::start(0, &[("camera", &file)], &[]);
    let port = leads_on(server.url("camera").replace("127.0.0.1", "localhost"));
    for (allowed, is_shown) in [("127.0.0.1", false), ("127.0.0.1,localhost", true)] {
        let mut command = command(&["run", "graphs", "--listen", "127.0.0.1:0", "--allow-host", allowed]);
        std::fs::create_dir_all(folder.path().join("graphs")).expect("a folder");
        command.current_dir(folder.path());
        let mut engine = Engine::start(command);
        let body = json!({ "url": format!("rtsp://127.0.0.1:{port}/door"), "timeout": "30s" }).to_string();
        let seen = send("POST", &format!("{}/streams/check", engine.address()), &[], &body).expect(200);
        assert_eq!(seen["ok"], is_shown, "{seen}");
        if !is_shown {
            let said = seen["error"].as_str().expect("an error");
            assert!(said.contains("it leads on to the host `localhost`, which is not allowed"), "{said}");
        }
        engine.terminate();
    }
}

#[test]
fn the_process_ends_in_time_though_clients_hold_on() {
    let guarded = Guarded::start(&[]);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut client = TcpStream::connect(guarded.address.trim_start_matches("http://")).expect("connected");
        client.write_all(b"PUT /graphs/a HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nabc").expect("sent");
        held.push(client);
    }
    guarded.engine.signal(Signal::SIGTERM);
    guarded.engine.finish().expect(0);
    drop((held, guarded.folder));
}
