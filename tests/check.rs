//! `engine check` from outside: every kind of diagnostic on two files each, exit codes, secrets, JSON.
//!
//! The files are in `tests/graphs/mistakes/CODE/`; each must bring forth the diagnostic that its folder is called after.

use std::path::{Path, PathBuf};
use std::process::Command;

use engine::graph::diagnostics::Code;

/// Diagnostics that need a file that is not text for people or has no name for them, or a text that comes over HTTP; they have tests of their own, below, beside the checker, and in `live_graphs.rs`.
const ELSEWHERE: [Code; 6] = [
    Code::FileTooLarge,
    Code::NotUtf8,
    Code::UnknownSetting,
    Code::ForbiddenReference,
    Code::CoveredSecret,
    Code::LeftOut,
];

const SECRET: &str = "hunter2-do-not-show";

fn graphs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs")
}

struct Answer {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn snapshot(&self) -> String {
        let code = self.code.map_or_else(|| "killed".to_owned(), |code| code.to_string());
        format!("exit code: {code}\n----- stdout -----\n{}----- stderr -----\n{}", self.stdout, self.stderr)
    }
}

fn engine(folder: &Path, arguments: &[&str]) -> Answer {
    let output = Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(arguments)
        .current_dir(folder)
        // The repository's own too: the binary may have been built outside it.
        .env("ENGINE_MODELS", "../../models:../../../../models")
        .env("SECRET_WORD", SECRET)
        .env_remove("CLIPS")
        .env_remove("RATE")
        .output()
        .expect("the engine's binary runs");
    Answer {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

#[test]
fn every_diagnostic_on_two_files() {
    for code in Code::ALL.iter().filter(|code| !ELSEWHERE.contains(code)) {
        let folder = graphs().join("mistakes").join(code.text());
        let answer = engine(&folder, &["check", "a.toml", "b.toml"]);
        for file in ["a.toml", "b.toml"] {
            let own = engine(&folder, &["check", file]);
            assert!(own.stderr.contains(&format!("[{}]", code.text())), "{code:?} in {file}:\n{}", own.stderr);
            assert!(!own.stderr.contains('\u{1b}'), "colours without a terminal:\n{}", own.stderr);
        }
        insta::assert_snapshot!(code.text(), answer.snapshot());
    }
}

#[test]
fn no_folder_of_mistakes_is_left_over() {
    for entry in std::fs::read_dir(graphs().join("mistakes")).expect("the folder is there") {
        let name = entry.expect("readable").file_name().into_string().expect("text");
        assert!(Code::ALL.iter().any(|code| code.text() == name), "no diagnostic is called {name}");
    }
}

#[test]
fn secrets_never_show() {
    let folder = graphs();
    for arguments in [
        &["check", "secrets.toml"][..],
        &["check", "secrets.toml", "--format", "json"],
        &["plan", "secrets.toml"],
        &["plan", "secrets.toml", "--format", "json"],
    ] {
        let answer = engine(&folder, arguments);
        assert_eq!(answer.code, Some(1), "{}", answer.stderr);
        assert!(!answer.stdout.contains(SECRET) && !answer.stderr.contains(SECRET), "{}", answer.snapshot());
    }
    insta::assert_snapshot!(engine(&folder, &["check", "secrets.toml"]).snapshot());
}

#[test]
fn json_has_the_same_places() {
    let folder = graphs().join("mistakes/unknown-field");
    let answer = engine(&folder, &["check", "b.toml", "--format", "json"]);
    assert_eq!(answer.code, Some(1));
    let json: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON");
    insta::assert_json_snapshot!(json);
}

#[test]
fn many_files_and_one_summary() {
    let answer = engine(&graphs(), &["check", "plain.toml", "mistakes/cycle/b.toml", "no-such.toml", "mistakes"]);
    insta::assert_snapshot!(answer.snapshot());
    assert_eq!(answer.code, Some(2));
}

#[test]
fn a_good_graph_passes_in_silence() {
    insta::assert_snapshot!(engine(&graphs(), &["check", "plain.toml"]).snapshot());
}

#[test]
fn settings_are_checked_against_the_parameters() {
    let unknown = engine(&graphs(), &["check", "branches.toml", "--set", "rat=3"]);
    insta::assert_snapshot!("unknown-setting", unknown.snapshot());
    let none = engine(&graphs(), &["check", "plain.toml", "--set", "rate=3"]);
    insta::assert_snapshot!("unknown-setting-without-params", none.snapshot());
    let wrong = engine(&graphs(), &["check", "branches.toml", "--set", "rate=often"]);
    assert!(wrong.stderr.contains("error[bad-rate]"), "{}", wrong.stderr);
    let usage = engine(&graphs(), &["check", "branches.toml", "--set", "rate"]);
    assert_eq!(usage.code, Some(2));
}

#[test]
fn what_is_no_graph_file_is_refused_quickly() {
    let folder = tempfile::tempdir().expect("a folder");
    let large = "# a comment\n".repeat(10 << 20 >> 3);
    std::fs::write(folder.path().join("large.toml"), &large).expect("written");
    std::fs::write(folder.path().join("binary.toml"), b"\x7fELF\xff\xfe\0\0").expect("written");
    std::fs::write(folder.path().join("latin1.toml"), b"# caf\xe9\n[sources.a]\n").expect("written");
    std::fs::write(folder.path().join("deep.toml"), format!("a = {}\n", "[".repeat(100_000))).expect("written");
    std::fs::write(folder.path().join("front door.toml"), "").expect("written");
    for (file, code) in [
        ("large.toml", Code::FileTooLarge),
        ("/dev/zero", Code::FileTooLarge),
        ("binary.toml", Code::NotUtf8),
        ("latin1.toml", Code::NotUtf8),
        ("deep.toml", Code::Syntax),
        ("front door.toml", Code::BadName),
    ] {
        let answer = engine(folder.path(), &["check", file]);
        assert_eq!(answer.code, Some(1), "{file}: {}", answer.stderr);
        assert!(answer.stderr.contains(&format!("error[{}]", code.text())), "{file}: {}", answer.stderr);
        if code == Code::FileTooLarge || code == Code::NotUtf8 {
            insta::assert_snapshot!(
                format!("{}-{}", code.text(), file.trim_matches('/').replace('/', "-")),
                answer.snapshot()
            );
        }
    }
}

#[test]
fn help_has_examples() {
    for command in ["check", "plan"] {
        let answer = engine(&graphs(), &[command, "--help"]);
        assert_eq!(answer.code, Some(0));
        assert!(answer.stdout.contains("Examples:"), "{}", answer.stdout);
    }
    let version = engine(&graphs(), &["--version"]);
    assert_eq!(version.stdout, format!("engine {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(engine(&graphs(), &["check"]).code, Some(2));
}
