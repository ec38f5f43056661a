//! A server that speaks the interface of NVIDIA VSS and fails as told: `vss_server.py`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{get, repository, send};

/// A server whose files are in a folder, and outlive it.
pub struct Vss {
    process: Child,
    pub port: u16,
}

impl Vss {
    pub fn start(folder: &Path, port: u16, arguments: &[&str]) -> Vss {
        let mut process = Command::new("python3")
            .arg(repository().join("tests/support/vss_server.py"))
            .arg(folder)
            .args(["--port", &port.to_string()])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let port = line.trim().parse().expect("a port");
        Vss { process, port }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn fail(&self, faults: &[&str]) {
        let faults = serde_json::to_string(faults).expect("JSON");
        assert_eq!(send("POST", &format!("{}/faults", self.url()), &[], &faults).status, 200);
    }

    pub fn log(&self) -> Vec<String> {
        let (_, log) = get(&format!("{}/log", self.url()));
        serde_json::from_value(log).expect("lines")
    }

    pub fn posts(&self) -> usize {
        self.log().iter().filter(|line| line.starts_with("POST") && line.ends_with("/files")).count()
    }
}

impl Drop for Vss {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
