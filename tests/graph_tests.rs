//! `engine test` from outside: what passes, what fails and how that is told, what is skipped, and mistakes in tests.

use serde_json::Value;
use support::{command, repository};

struct Answer {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn snapshot(&self) -> String {
        format!("exit code: {}\n----- stdout -----\n{}----- stderr -----\n{}", self.code, self.stdout, self.stderr)
    }
}

/// `engine test` in the folder of graphs whose tests are looked at here.
fn test(arguments: &[&str]) -> Answer {
    let folder = repository().join("tests/graphs/tested");
    let models = std::env::join_paths([folder.join("models"), repository().join("models")]).expect("no colons");
    let mut command = command(&["test"]);
    command.args(arguments).current_dir(folder).env("ENGINE_MODELS", models);
    for variable in ["NO_SUCH_FOLDER", "NO_SUCH_CAMERA"] {
        command.env_remove(variable);
    }
    let output = command.output().expect("the engine's binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Answer { code: output.status.code().expect("no signal"), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn json(arguments: &[&str]) -> (i32, Value) {
    let answer = test(&[arguments, &["--format", "json"]].concat());
    let json = serde_json::from_str(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {}", answer.snapshot()));
    (answer.code, json)
}

/// The graph's own source, sinks and policies would make each of these tests fail or write a file.
#[test]
fn tests_that_hold_pass_in_silence() {
    insta::assert_snapshot!(test(&["passes.toml"]).snapshot());
    assert!(!repository().join("tests/graphs/tested/must-not-be-written.jsonl").exists(), "a test has no sinks");
    let (code, json) = json(&["passes.toml"]);
    assert_eq!((code, &json["passed"], &json["failed"], &json["skipped"]), (0, &4.into(), &0.into(), &0.into()));
    let counts: Vec<u64> = json["files"][0]["tests"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|test| {
            assert_eq!(test["outcome"], "passed", "{test}");
            test["records"].as_u64().expect("a count")
        })
        .collect();
    assert_eq!(counts, [4, 10, 4, 4], "what was looked at");
}

#[test]
fn what_differs_is_shown_with_the_records_that_show_it() {
    insta::assert_snapshot!(test(&["fails.toml", "--filter", "checksum"]).snapshot());
    insta::assert_snapshot!(test(&["fails.toml", "--filter", "too many"]).snapshot());
}

#[test]
fn every_wrong_expectation_is_a_difference() {
    let (code, json) = json(&["fails.toml", "--filter", "there are shapes"]);
    assert_eq!((code, &json["failed"]), (1, &1.into()));
    let differences = json["files"][0]["tests"][0]["differences"].as_array().expect("a list");
    let what: Vec<&str> = differences.iter().map(|found| found["what"].as_str().expect("text")).collect();
    assert_eq!(what, ["labels", "only", "none", "has.circle"]);
    assert_eq!(differences[0]["expected"], "hexagon found", "`circle` is found");
    for found in &differences[1..] {
        let records = found["records"].as_array().expect("a list");
        assert!(!records.is_empty(), "{found}");
        assert!(records.iter().all(|record| record["node"] == "shapes"), "{found}");
    }
}

#[test]
fn a_test_that_does_not_end_is_ended() {
    let answer = test(&["fails.toml", "--filter", "no time"]);
    assert_eq!(answer.code, 1, "{}", answer.snapshot());
    assert!(answer.stdout.contains("expected  ends within 1s"), "{}", answer.stdout);
    assert!(answer.stdout.contains("still open: stream `synthetic`"), "{}", answer.stdout);
}

/// Nothing is expected of the records that an empty run would not give.
#[test]
fn a_stream_that_fails_fails_the_test() {
    let answer = test(&["fails.toml", "--filter", "no video"]);
    assert_eq!(answer.code, 1, "{}", answer.snapshot());
    assert!(answer.stdout.contains("expected  every stream ends well, and nothing is lost"), "{}", answer.stdout);
    assert!(answer.stdout.contains("got       stream `fails`: "), "{}", answer.stdout);
}

#[test]
fn mistakes_in_tests_are_underlined() {
    let answer = test(&["mistakes.toml"]);
    insta::assert_snapshot!(answer.snapshot());
    let (code, json) = json(&["mistakes.toml"]);
    assert_eq!((code, &json["mistaken"], &json["unreadable"]), (1, &1.into(), &0.into()));
    let codes: Vec<&str> = json["files"][0]["diagnostics"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|mistake| mistake["code"].as_str().expect("text"))
        .collect();
    assert_eq!(codes, ["unknown-field", "unknown-input", "unknown-input", "out-of-range"]);
}

/// Whoever edits a graph sees them without running its tests.
#[test]
fn check_tells_mistakes_in_tests_too() {
    let output = command(&["check", "tests/graphs/tested/mistakes.toml"]).output().expect("it runs");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    for mistake in ["cuont", "smus", "camrea", "at_least = 9"] {
        assert!(said.contains(mistake), "{mistake}: {said}");
    }
}

#[test]
fn mistakes_in_inputs_fail_their_test_alone() {
    insta::assert_snapshot!(test(&["inputs.toml"]).snapshot());
}

#[test]
fn what_cannot_run_here_is_skipped_with_the_reason() {
    let answer = test(&["skipped.toml"]);
    let lines: Vec<&str> = answer.stdout.lines().collect();
    assert_eq!((answer.code, lines.len()), (0, 3), "{}", answer.snapshot());
    assert_eq!(
        lines[0],
        "skipped  skipped.toml: a folder of videos: the environment variable `NO_SUCH_FOLDER` is not set"
    );
    let weights = "skipped  skipped.toml: weights: model `absent` needs the file `absent.onnx`, which is in none of ";
    assert!(lines[1].starts_with(weights), "{}", lines[1]);
    assert_eq!(lines[2], "2 tests: 0 passed, 2 skipped");
    let strict = test(&["skipped.toml", "--no-skip"]);
    assert_eq!(strict.code, 1, "{}", strict.snapshot());
    assert!(strict.stdout.contains("2 tests: 0 passed, 2 failed\n"), "{}", strict.stdout);
}

#[test]
fn folders_are_searched_and_the_filter_chooses() {
    let (code, json) = json(&["folder"]);
    assert_eq!(code, 0, "{json:#}");
    let files: Vec<&str> =
        json["files"].as_array().expect("a list").iter().map(|file| file["file"].as_str().expect("text")).collect();
    assert_eq!(files, ["folder/another.toml", "folder/deeper/one.toml"]);
    let filtered = test(&["folder", "--filter", "other pictures"]);
    assert_eq!((filtered.code, filtered.stdout.as_str()), (0, "1 test: 1 passed\n"));
    let none = test(&["folder", "--filter", "no such test"]);
    assert_eq!((none.code, none.stdout.as_str()), (1, "no test ran\n"), "a wrong filter is no success");
    assert_eq!(none.stderr, "hint: no test has `no such test` in `FILE: NAME`\n");
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_runs() {
    let files = ["no-such.toml", "folder/another.toml", "../../snapshots"];
    insta::assert_snapshot!(test(&files).snapshot());
    let (code, json) = json(&files);
    assert_eq!((code, &json["passed"], &json["mistaken"], &json["unreadable"]), (2, &1.into(), &0.into(), &2.into()));
}
