//! A real browser, Chromium, for what pages do with what the engine serves.
//!
//! `script/setup --tests` installs what this needs. Without it these tests are skipped with a word, or fail where
//! `ENGINE_REQUIRE_BROWSER` is 1.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use super::{outputs, repository};

const CHROMIUM: &str = "/usr/bin/chromium";

/// Chromium, driven by `tests/support/page/page.mjs`.
pub struct Browser {
    driver: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None`, and a line that says so, where there is no browser.
    pub fn start() -> Option<Browser> {
        let modules = repository().join(".local/page");
        for needed in [Path::new(CHROMIUM), &modules.join("node_modules/playwright-core")] {
            if !needed.exists() {
                let missing = format!("there is no {}; run script/setup --tests", needed.display());
                let is_required = std::env::var_os("ENGINE_REQUIRE_BROWSER").is_some_and(|value| value == "1");
                assert!(!is_required, "{missing}");
                eprintln!("skipped: {missing}");
                return None;
            }
        }
        let profile = tempfile::tempdir().expect("a folder");
        let mut driver = Command::new("node")
            .arg(repository().join("tests/support/page/page.mjs"))
            .args([&modules, Path::new(CHROMIUM), profile.path()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is installed");
        let commands = driver.stdin.take();
        let answers = BufReader::new(driver.stdout.take().expect("piped"));
        Some(Browser { driver, commands, answers, _profile: profile })
    }

    pub fn command(&mut self, command: &Value) -> Value {
        let commands = self.commands.as_mut().expect("open");
        writeln!(commands, "{command}").expect("the driver listens");
        let mut line = String::new();
        assert_ne!(self.answers.read_line(&mut line).expect("text"), 0, "the driver ended at {command}");
        let mut answer: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        assert!(answer.get("error").is_none(), "{command}: {}", answer["error"]);
        answer["value"].take()
    }

    pub fn open(&mut self, address: &str) {
        assert_eq!(self.command(&json!({ "open": address })), 200);
    }

    /// Waits until an expression is true in the page, and answers its value.
    pub fn wait(&mut self, expression: &str) -> Value {
        self.command(&json!({ "wait": expression }))
    }

    pub fn press(&mut self, key: &str) {
        self.command(&json!({ "press": key }));
    }

    /// Takes a screenshot, to be looked at, into the folder of test outputs.
    pub fn look(&mut self, name: &str, width: u32, height: u32, scheme: &str) -> PathBuf {
        let path = outputs().join(format!("{name}.png"));
        self.command(&json!({ "look": { "width": width, "height": height, "scheme": scheme, "path": path } }));
        path
    }

    /// Everything that was asked of anybody, and every complaint, so far.
    pub fn seen(&mut self) -> (Vec<String>, Vec<String>) {
        let mut seen = self.command(&json!({ "seen": true }));
        let mut list = |name: &str| serde_json::from_value(seen[name].take()).expect("texts");
        (list("requests"), list("complaints"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver closes the browser when its input ends.
        self.commands = None;
        if std::thread::panicking() {
            let _ = self.driver.kill();
        }
        let _ = self.driver.wait();
    }
}
