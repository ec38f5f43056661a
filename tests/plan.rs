//! `engine plan` from outside.

use std::path::Path;
use std::process::Command;

fn plan(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_engine"))
        .arg("plan")
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs"))
        .output()
        .expect("the engine's binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_plan_as_text() {
    let (code, stdout, stderr) = plan(&["branches.toml", "--workers", "2", "--pool-threads", "3"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(stdout);
}

#[test]
fn a_parameter_changes_what_a_source_must_deliver() {
    let rate = |set: &str| {
        let (_, stdout, stderr) = plan(&["branches.toml", "--format", "json", "--set", set]);
        let json: serde_json::Value =
            serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("JSON: {stdout}{stderr}"));
        json["sources"][0]["taps"][0]["rate"].clone()
    };
    assert_eq!(rate("rate=5"), "5");
    assert_eq!(rate("rate=\"30000/1001\""), "30000/1001");
}

#[test]
fn a_plan_as_json() {
    let (code, stdout, _) = plan(&["branches.toml", "--workers", "1", "--pool-threads", "2", "--format", "json"]);
    assert_eq!(code, Some(0));
    let json: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let terms = json["memory"]["terms"].as_array().expect("a list");
    let sum: u64 = terms.iter().map(|term| term["bytes"].as_u64().expect("a number")).sum();
    assert_eq!(json["memory"]["total_bytes"].as_u64(), Some(sum), "the total is the sum of its terms");
    insta::assert_json_snapshot!(json);
}

/// What answering `/predict` may take has lines of its own, as far as a model is served.
#[test]
fn a_plan_with_predictions() {
    let flags = ["branches.toml", "--pool-threads", "2", "--predict-model", "shapes", "--predict-max-bytes", "1MiB"];
    let with = |more: &[&str]| {
        let (code, stdout, stderr) = plan(&[&flags, more].concat());
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        stdout
    };
    let json = |text: &str| -> serde_json::Value { serde_json::from_str(text).expect("JSON") };
    let memory = |more: &[&str]| json(&with(&[more, &["--format", "json"]].concat()))["predict_memory"].clone();
    let few = memory(&["--predict-max-pixels", "1000000", "--predict-max-requests", "4"]);
    let terms = few["terms"].as_array().expect("a list");
    let whats: Vec<&str> = terms.iter().map(|term| term["what"].as_str().expect("text")).collect();
    let pool = "pool threads, for the answers of `shapes`";
    assert_eq!(whats, ["bodies of requests", "pictures, decoded or in the pool", pool]);
    let sum: u64 = terms.iter().map(|term| term["bytes"].as_u64().expect("a number")).sum();
    assert_eq!(few["total_bytes"].as_u64(), Some(sum), "the total is the sum of its terms");
    let more = memory(&["--predict-max-pixels", "2000000", "--predict-max-requests", "8"]);
    // Twice the bodies; no more pictures than before, because two threads have places for four, but larger ones.
    assert_eq!(more["terms"][0]["each"], few["terms"][0]["each"]);
    assert_eq!((&more["terms"][0]["count"], &more["terms"][1]["count"]), (&8.into(), &4.into()));
    assert!(more["terms"][1]["each"].as_u64() >= few["terms"][1]["each"].as_u64().map(|each| each + 8_000_000));
    let text = with(&[]);
    assert!(text.contains("  for `/predict` at most ") && text.contains(pool), "{text}");
    let (_, nothing, _) = plan(&["branches.toml", "--format", "json"]);
    assert!(json(&nothing).get("predict_memory").is_none(), "no model is served");
    let (code, _, stderr) = plan(&["branches.toml", "--predict-model", "shaeps"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("there is no model `shaeps`") && stderr.contains("did you mean `shapes`?"), "{stderr}");
}

#[test]
fn a_plan_as_a_drawing() {
    for format in ["dot", "mermaid"] {
        let (code, stdout, stderr) =
            plan(&["branches.toml", "--workers", "1", "--pool-threads", "2", "--format", format]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        insta::assert_snapshot!(format, stdout);
    }
}

#[test]
fn mistakes_are_told_instead() {
    let (code, stdout, stderr) = plan(&["mistakes/cycle/b.toml"]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("error[cycle]"), "{stderr}");
    let (code, _, stderr) = plan(&["no-such.toml"]);
    assert_eq!(code, Some(2), "{stderr}");
}
