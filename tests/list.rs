//! `engine list` from outside. What it prints of all types is `docs/reference.md`, which has a test of its own.

use serde_json::Value;
use support::command;

fn list(arguments: &[&str]) -> (i32, String, String) {
    let output = command(&["list"]).args(arguments).output().expect("the engine's binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
}

#[test]
fn every_type_of_the_registry_is_listed() {
    let (code, text, _) = list(&[]);
    assert_eq!(code, 0);
    let (_, json, _) = list(&["--format", "json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    for registration in operators::OPERATORS {
        assert!(text.contains(&format!("  {}", registration.name)) && text.contains(registration.summary), "{text}");
        let of_role = json[registration.role.table()].as_array().expect("a list");
        let entry = of_role.iter().find(|entry| entry["name"] == registration.name).expect("it is listed");
        assert_eq!(entry["fields"].as_array().expect("a list").len(), registration.fields.len());
    }
}

#[test]
fn one_type_with_everything_about_it() {
    let (code, text, stderr) = list(&["sample"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    insta::assert_snapshot!(text);
}

#[test]
fn a_name_that_is_a_source_and_a_sink_shows_both() {
    let (code, text, _) = list(&["file"]);
    assert_eq!(code, 0);
    assert!(text.contains("file (source)\n") && text.contains("file (sink)\n"), "{text}");
    let (_, json, _) = list(&["file", "--format", "json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(2));
}

#[test]
fn unknown_names_have_a_hint() {
    let (code, stdout, stderr) = list(&["detct"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert_eq!(stderr, "error: there is no source, operator or sink of type `detct`\nhint: did you mean `detect`?\n");
    let (code, _, stderr) = list(&["detect", "--format", "json-schema"]);
    assert_eq!(code, 2, "{stderr}");
}
