//! What the command line says of itself, and how it answers mistakes.

mod support;

use support::{command, repository};

fn answer(arguments: &[&str]) -> String {
    let output = command(arguments).current_dir(repository().join("tests/graphs")).output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let code = output.status.code().expect("no signal");
    format!("exit code: {code}\n----- stdout -----\n{}----- stderr -----\n{}", text(output.stdout), text(output.stderr))
}

#[test]
fn help() {
    insta::assert_snapshot!("help", answer(&["--help"]));
    insta::assert_snapshot!("run", answer(&["run", "--help"]));
    insta::assert_snapshot!("check", answer(&["check", "--help"]));
    insta::assert_snapshot!("plan", answer(&["plan", "--help"]));
    insta::assert_snapshot!("models", answer(&["models", "--help"]));
    insta::assert_snapshot!("models-pull", answer(&["models", "pull", "--help"]));
    insta::assert_snapshot!("models-inspect", answer(&["models", "inspect", "--help"]));
}

#[test]
fn usage_errors() {
    let wrong: [(&str, &[&str]); 11] = [
        ("nothing", &[]),
        ("unknown-command", &["rnu", "plain.toml"]),
        ("run-without-file", &["run"]),
        ("unknown-option", &["run", "plain.toml", "--worker", "2"]),
        ("no-such-file", &["run", "no-such.toml"]),
        ("a-folder", &["run", "mistakes"]),
        ("no-time", &["run", "plain.toml", "--for", "soon"]),
        ("no-workers", &["run", "plain.toml", "--workers", "0"]),
        ("no-format", &["run", "plain.toml", "--log-format", "xml"]),
        ("no-value", &["run", "plain.toml", "--set", "rate"]),
        ("check-without-file", &["check"]),
    ];
    for (name, arguments) in wrong {
        let answer = answer(arguments);
        assert!(answer.starts_with("exit code: 2\n"), "{arguments:?}: {answer}");
        insta::assert_snapshot!(name, answer);
    }
}

#[test]
fn mistakes_that_are_none_of_the_command_line() {
    let wrong: [(&str, &[&str]); 3] = [
        ("mistakes-in-the-graph", &["run", "mistakes/unknown-field/a.toml"]),
        ("no-address", &["run", "plain.toml", "--listen", "nowhere"]),
        ("no-log-level", &["run", "plain.toml", "--log", "loud=very"]),
    ];
    for (name, arguments) in wrong {
        let answer = answer(arguments);
        assert!(answer.starts_with("exit code: 1\n"), "{arguments:?}: {answer}");
        insta::assert_snapshot!(name, answer);
    }
}
