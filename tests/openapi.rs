//! `/openapi.json` against the engine: schemathesis makes requests out of it, sound and broken ones, and every answer has
//! to be one that the document describes.
//!
//! `script/setup --tests` installs it. Without it the test is skipped with a word, or fails where
//! `ENGINE_REQUIRE_SCHEMATHESIS` is 1.

use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use support::{Engine, PATIENCE, repository, run_folder, send, soak, wait_for};

/// Requests for each route and kind of request: enough to meet each kind of mistake. In a soak they are made anew for so
/// many seconds.
fn effort() -> &'static [&'static str] {
    if soak() { &["--max-examples", "100", "--max-time", "900"] } else { &["--max-examples", "10"] }
}

/// What the requests are made from: the same each time.
const SEED: &str = "20240517";

/// `None`, and a line that says so, where it is missing.
fn schemathesis() -> Option<PathBuf> {
    let program = repository().join(".local/schemathesis/bin/schemathesis");
    if program.exists() {
        return Some(program);
    }
    let missing = format!("there is no {}; run script/setup --tests", program.display());
    let is_required = std::env::var_os("ENGINE_REQUIRE_SCHEMATHESIS").is_some_and(|value| value == "1");
    assert!(!is_required, "{missing}");
    eprintln!("skipped: {missing}");
    None
}

/// A graph in which a source is seen, one is pushed to, and one is announced by MediaMTX.
const GRAPH: &str = "[sources.scene]\ntype = \"synthetic\"\nwidth = 64\nheight = 48\nfps = 10\nstreams = [\"b\"]\n\
                     [sources.pushed]\ntype = \"push\"\nstreams.a = {}\nanswer = \"shapes\"\n\
                     [sources.live]\ntype = \"rtsp\"\nstreams = {}\n\
                     hooks = { path = \"live/{id}/in\", url = \"rtsp://127.0.0.1:9/{id}\" }\n\
                     [operators.sum]\ntype = \"checksum\"\ninputs = [\"scene\", \"live\"]\n\
                     [operators.shapes]\ntype = \"detect\"\ninputs = [\"pushed\"]\nmodel = \"shapes\"\n\
                     [sinks.events]\ntype = \"sse\"\ninputs = [\"sum\", \"shapes\"]\n";

/// The engine with that graph, which answers about pictures too.
fn engine(folder: &std::path::Path, arguments: &[&str]) -> Engine {
    run_folder(folder, &[arguments, &["--predict-model", "shapes"]].concat())
}

/// Sends requests; fails with what it says where an answer is none of those that the document has.
fn fuzz(engine: &mut Engine, key: Option<&str>, folder: &std::path::Path) {
    let Some(program) = schemathesis() else { return };
    let address = engine.address();
    let checks = "status_code_conformance,content_type_conformance,response_schema_conformance,\
                  response_headers_conformance";
    let mut command = Command::new(program);
    command
        .args(["run", &format!("{address}/openapi.json"), "--url", &address, "--checks", checks])
        .args(["--phases", "examples,coverage,fuzzing"])
        .args(effort())
        .args(["--seed", SEED, "--request-timeout", "20", "--no-shrink", "--warnings", "off"])
        // Events do not end; the other tests of the routes hear them.
        .args(["--exclude-path", "/events"])
        .env("NO_COLOR", "1")
        .current_dir(folder);
    if let Some(key) = key {
        command.args(["-H", &format!("X-API-Key: {key}")]);
    }
    let output = command.output().expect("schemathesis runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}\n{}", String::from_utf8_lossy(&output.stderr), engine.stderr());
    assert_eq!(send("GET", &format!("{address}/health/live"), &[], "").status, 200);
}

#[test]
fn every_answer_is_one_that_the_document_describes() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = engine(folder.path(), &[]);
    let address = engine.address();
    send("PUT", &format!("{address}/graphs/door"), &[], GRAPH).expect(201);
    fuzz(&mut engine, None, folder.path());
    engine.terminate();
}

/// What the document says of the answers to a method of a path.
struct Described {
    document: Value,
}

impl Described {
    /// Fails unless an answer has a type and a content that the document has for its status.
    fn check(&self, method: &str, path: &str, status: u16, content_type: &str, body: &[u8]) {
        let place = format!("{method} {path}: {status}");
        let answers = &self.document["paths"][path][method.to_lowercase()]["responses"];
        let mut answer = &answers[status.to_string()];
        if let Some(reference) = answer["$ref"].as_str() {
            answer = self.document.pointer(reference.trim_start_matches('#')).expect("a component");
        }
        assert!(answer.is_object(), "{place} is not described");
        let Some(content) = answer["content"].as_object() else {
            assert!(body.is_empty(), "{place} has a body");
            return;
        };
        let kind = content_type.split(';').next().unwrap_or_default();
        let described = content.get(kind).unwrap_or_else(|| panic!("{place}: `{kind}` is not described"));
        if kind == "application/json" {
            let mut schema = described["schema"].clone();
            schema["components"] = self.document["components"].clone();
            let validator = jsonschema::validator_for(&schema).expect("a schema");
            let body: Value = serde_json::from_slice(body).expect("JSON");
            let mistakes: Vec<String> =
                validator.iter_errors(&body).map(|error| format!("{}: {error}", error.instance_path())).collect();
            assert!(mistakes.is_empty(), "{place}: {mistakes:#?}\n{body}");
        }
    }
}

/// Chance finds mistakes; what works is asked for here.
#[test]
fn so_is_what_works() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = engine(folder.path(), &[]);
    let address = engine.address();
    let described = Described { document: send("GET", &format!("{address}/openapi.json"), &[], "").expect(200) };
    let config =
        ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).timeout_global(Some(PATIENCE));
    let agent = config.build().new_agent();
    let ask = |method: &str, path: &str, at: &str, kind: &str, body: &[u8], status: u16| {
        let request = ureq::http::Request::builder().method(method).uri(format!("{address}{at}"));
        let request = request.header("content-type", kind).header("accept", kind);
        let answered = match body {
            b"" => agent.run(request.body(()).expect("a request")),
            body => agent.run(request.body(body).expect("a request")),
        };
        let mut answer = answered.unwrap_or_else(|error| panic!("{method} {at}: {error}"));
        let got = answer.body_mut().read_to_vec().expect("a body");
        let given = answer.headers().get("content-type").map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(answer.status().as_u16(), status, "{method} {at}: {}", String::from_utf8_lossy(&got));
        described.check(method, path, status, &given.unwrap_or_default(), &got);
        got
    };
    let json = "application/json";
    ask("PUT", "/graphs/{name}", "/graphs/door", "application/toml", GRAPH.as_bytes(), 201);
    ask(
        "PUT",
        "/graphs/{name}",
        "/graphs/door",
        "application/toml",
        GRAPH.replace("fps = 10", "fps = 9").as_bytes(),
        200,
    );
    ask("PUT", "/graphs/{name}", "/graphs/door", "application/toml", b"[sources.a]", 400);
    ask("POST", "/graphs/{name}/check", "/graphs/door/check", "application/toml", GRAPH.as_bytes(), 200);
    for kind in [json, "application/toml"] {
        ask("GET", "/graphs/{name}", "/graphs/door", kind, b"", 200);
    }
    for kind in [json, "text/plain"] {
        ask("GET", "/graphs/{name}/plan", "/graphs/door/plan", kind, b"", 200);
    }
    let mut picture = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(320, 192).write_to(&mut picture, image::ImageFormat::Png).expect("a picture");
    let picture = picture.into_inner();
    wait_for("the models", || {
        let (status, _, _) = support::get_bytes(&format!("{address}/preview?graph=door&stream=b"));
        let (_, stats) = support::get(&format!("{address}/stats"));
        (status == 200 && stats["predict"]["models"]["shapes"] == "ready").then_some(())
    });
    ask("POST", "/predict", "/predict", "image/png", &picture, 200);
    ask("POST", "/streams/{id}/frames", "/streams/a/frames", "image/png", &picture, 202);
    ask("POST", "/streams/{id}/frames", "/streams/a/frames?wait=true", "image/png", &picture, 200);
    ask("POST", "/streams/{id}/frames", "/streams/a/frames?wait=true", "image/png", &picture[..100], 422);
    let batch = serde_json::json!({ "frames": [STANDARD.encode(&picture), "x"] }).to_string();
    ask("POST", "/infer", "/infer", json, batch.as_bytes(), 200);
    let new = br#"{"graph": "door", "source": "scene", "id": "c"}"#;
    ask("POST", "/streams", "/streams", json, new, 201);
    ask("POST", "/streams", "/streams", json, new, 409);
    for path in ["ready", "not-ready"] {
        let path = format!("/v1/mediamtx/events/{path}");
        ask("POST", &path, &path, json, br#"{"path": "live/d/in"}"#, 200);
        ask("POST", &path, &path, json, br#"{"path": "other"}"#, 200);
    }
    ask("POST", "/streams/check", "/streams/check", json, br#"{"url": "rtsp://127.0.0.1:9/x"}"#, 200);
    ask("POST", "/streams/check", "/streams/check", json, br#"{"url": "rtsp://10.9.9.9/x"}"#, 403);
    wait_for("a result", || {
        let (_, stream) = support::get(&format!("{address}/streams/b"));
        stream["last_result"].is_object().then_some(())
    });
    for path in ["/", "/health", "/health/live", "/health/ready", "/stats", "/graphs", "/streams", "/openapi.json"] {
        ask("GET", path, path, json, b"", 200);
    }
    ask("GET", "/streams/{id}", "/streams/b", json, b"", 200);
    for path in ["/", "/docs"] {
        ask("GET", path, path, "text/html", b"", 200);
    }
    ask("GET", "/metrics", "/metrics", json, b"", 200);
    ask("GET", "/preview", "/preview?graph=door&stream=b", json, b"", 200);
    ask("GET", "/hls/{name}/{id}/{file}", "/hls/door/b/index.m3u8", json, b"", 404);
    ask("GET", "/login", "/login", json, b"", 404);
    ask("DELETE", "/streams/{id}", "/streams/c", json, b"", 200);
    ask("DELETE", "/graphs/{name}", "/graphs/door", json, b"", 200);
    ask("DELETE", "/graphs/{name}", "/graphs/door", json, b"", 404);
    engine.terminate().expect(0);
}

#[test]
fn so_is_what_is_said_to_those_who_may_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = support::command(&["key", "reads"]).output().expect("it runs");
    std::fs::write(folder.path().join("engine.toml"), &output.stdout).expect("written");
    let key = String::from_utf8(output.stderr).expect("text").lines().next().expect("the key").to_owned();
    let mut engine = engine(folder.path(), &["--config", "engine.toml", "--rate-limit", "100/s"]);
    let document = send("GET", &format!("{}/openapi.json", engine.address()), &[("x-api-key", &key)], "").expect(200);
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, described) in
            methods.as_object().expect("methods").iter().filter(|(name, _)| *name != "parameters")
        {
            let url = format!("{}{}", engine.address(), path.replace(['{', '}'], ""));
            let role = described["x-role"].as_str().expect("a role");
            let status = |headers: &[(&str, &str)]| match path.as_str() {
                // It does not end.
                "/events" if !headers.is_empty() => 200,
                _ => send(&method.to_uppercase(), &url, headers, if method == "get" { "" } else { "x" }).status,
            };
            let with_key = [("x-api-key", key.as_str())];
            match role {
                "anybody" => assert_ne!(status(&[]), 403, "{method} {path}"),
                "read" => assert!(status(&[]) == 401 && ![401, 403].contains(&status(&with_key)), "{method} {path}"),
                "operate" => assert_eq!((status(&[]), status(&with_key)), (401, 403), "{method} {path}"),
                other => panic!("{method} {path}: {other}"),
            }
            assert!(described["responses"].is_object());
        }
    }
    assert_eq!(document["openapi"], Value::from("3.1.0"));
    engine.terminate().expect(0);
}
