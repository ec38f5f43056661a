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
