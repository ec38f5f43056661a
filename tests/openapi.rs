//! `/openapi.json` against the engine: schemathesis makes requests out of it, sound and broken ones, and every answer has
//! to be one that the document describes.
//!
//! `script/setup --tests` installs it. Without it the test is skipped with a word, or fails where
//! `ENGINE_REQUIRE_SCHEMATHESIS` is 1.

mod support;

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use support::{Engine, repository, run_folder, send};

/// Requests for each route and kind of request, and seconds for all of it: enough to meet each kind of mistake.
const EXAMPLES: &str = "10";
const SECONDS: &str = "45";
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

const GRAPH: &str = "[sources.scene]\ntype = \"synthetic\"\nwidth = 64\nheight = 48\nfps = 10\nstreams = [\"a\"]\n\
                     [operators.sum]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
                     [sinks.events]\ntype = \"sse\"\ninputs = [\"sum\"]\n";

/// Sends requests; fails with what it says where an answer is none of those that the document has.
fn fuzz(engine: &mut Engine, key: Option<&str>, folder: &std::path::Path) {
    let Some(program) = schemathesis() else { return };
    let address = engine.address();
    let checks = "status_code_conformance,content_type_conformance,response_schema_conformance,\
                  response_headers_conformance";
    let mut command = Command::new(program);
    command
        .args(["run", &format!("{address}/openapi.json"), "--url", &address, "--checks", checks])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--max-time", SECONDS])
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
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    send("PUT", &format!("{address}/graphs/door"), &[], GRAPH).expect(201);
    fuzz(&mut engine, None, folder.path());
    engine.terminate();
}

#[test]
fn so_is_what_is_said_to_those_who_may_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = support::command(&["key", "reads"]).output().expect("it runs");
    std::fs::write(folder.path().join("engine.toml"), &output.stdout).expect("written");
    let key = String::from_utf8(output.stderr).expect("text").lines().next().expect("the key").to_owned();
    let mut engine = run_folder(folder.path(), &["--config", "engine.toml", "--rate-limit", "100/s"]);
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
