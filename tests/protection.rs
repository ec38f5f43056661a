//! What a graph must not destroy, and what it must not tell, from outside.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use operators::clock::{Clock, SystemClock};

const SECRET: &str = "hunter2-not-for-your-eyes";

const LONG: Duration = Duration::from_secs(60);

fn engine(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(arguments)
        .current_dir(folder)
        .env("ENGINE_MODELS", folder.join("models"))
        .env("SECRET_FOLDER", folder.join(SECRET))
        .env("SECRET_GLOB", folder.join("hunter2-*/*.mp4"))
        .output()
        .expect("the engine's binary runs")
}

#[test]
fn a_sink_never_overwrites_what_its_graph_reads_or_is_made_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::create_dir(folder.join("models")).expect("made");
    for name in ["clip.mp4", "key", "models/mine.toml"] {
        fs::write(folder.join(name), name).expect("written");
    }
    fs::hard_link(folder.join("clip.mp4"), folder.join("same.mp4")).expect("linked");
    std::os::unix::fs::symlink("clip.mp4", folder.join("link.mp4")).expect("linked");
    let graph = |path: &str| {
        format!(
            "[sources.door]\ntype = \"file\"\npath = \"clip.mp4\"\nbudget = {{ bytes = \"${{file.key}}MiB\" }}\n\
             [operators.sums]\ntype = \"checksum\"\ninputs = [\"door\"]\n\
             [sinks.out]\ntype = \"file\"\ninputs = [\"sums\"]\npath = \"{path}\"\n"
        )
    };
    fs::write(folder.join("key"), "64").expect("written");
    for path in ["clip.mp4", "new/../clip.mp4", "same.mp4", "link.mp4", "door.toml", "key", "models/mine.toml"] {
        let text = graph(path);
        fs::write(folder.join("door.toml"), &text).expect("written");
        let before = fs::read(folder.join(path.trim_start_matches("new/../"))).expect("readable");
        let output = engine(folder, &["run", "door.toml", "--listen", "127.0.0.1:0"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{path}: {stderr}");
        assert!(stderr.contains("error[overwrites-input]"), "{path}: {stderr}");
        let after = fs::read(folder.join(path.trim_start_matches("new/../"))).expect("still there");
        assert_eq!(before, after, "{path} was changed");
    }
}

#[test]
fn two_sinks_cannot_write_one_file_under_two_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::write(folder.join("one.jsonl"), "kept\n").expect("written");
    fs::hard_link(folder.join("one.jsonl"), folder.join("two.jsonl")).expect("linked");
    let graph = "[sources.scene]\ntype = \"synthetic\"\nrealtime = false\nframes = 5\n\
                 [operators.sums]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
                 [sinks.one]\ntype = \"file\"\ninputs = [\"sums\"]\npath = \"one.jsonl\"\n\
                 [sinks.two]\ntype = \"file\"\ninputs = [\"sums\"]\npath = \"two.jsonl\"\n";
    fs::write(folder.join("door.toml"), graph).expect("written");
    let output = engine(folder, &["run", "door.toml", "--listen", "127.0.0.1:0"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error[shared-resource]: `sinks.one` and `sinks.two`"), "{stderr}");
    assert_eq!(fs::read_to_string(folder.join("one.jsonl")).expect("still there"), "kept\n");
}

#[test]
fn the_dataflow_log_replaces_no_file_and_says_so_before_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let graph = "[sources.scene]\ntype = \"synthetic\"\nframes = 5\n[sinks.out]\ntype = \"file\"\npath = \"out.jsonl\"\n\
                 inputs = [\"sums\"]\n[operators.sums]\ntype = \"checksum\"\ninputs = [\"scene\"]\n";
    fs::write(folder.join("door.toml"), graph).expect("written");
    for path in ["door.toml", "no/such/folder.jsonl"] {
        let output = engine(folder, &["run", "door.toml", "--listen", "127.0.0.1:0", "--dataflow-log", path]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&format!("cannot create the dataflow log `{path}`")), "{stderr}");
        assert!(!folder.join("out.jsonl").exists(), "the graph has not started");
    }
    assert_eq!(fs::read_to_string(folder.join("door.toml")).expect("still there"), graph);
}

/// The body of an answer, whatever its status.
fn get(url: &str) -> String {
    let config = ureq::Agent::config_builder().timeout_global(Some(LONG)).http_status_as_error(false);
    let answer = config.build().new_agent().get(url).call().and_then(|mut answer| answer.body_mut().read_to_string());
    answer.unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// Runs `graph.toml` until its stream `bad` has failed: what it told, wherever it told it.
fn everything_told(folder: &Path) -> Vec<(&'static str, String)> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(["run", "graph.toml", "--listen", "127.0.0.1:0", "--log-format", "json"])
        .current_dir(folder)
        .env("SECRET_FOLDER", folder.join(SECRET))
        .env("SECRET_GLOB", folder.join("hunter2-*/*.mp4"))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the engine's binary runs");
    let mut errors = BufReader::new(child.stderr.take().expect("it is piped"));
    let mut log = String::new();
    let address = loop {
        let start = log.len();
        assert_ne!(errors.read_line(&mut log).expect("text"), 0, "it ended too soon:\n{log}");
        if let Some((_, rest)) = log[start..].split_once("listening on ") {
            break rest.split(['"', '\n']).next().unwrap_or_default().trim().to_owned();
        }
    };
    let (rest, output) = (std::thread::spawn(move || rest_of(errors)), child.stdout.take().expect("it is piped"));
    let output = std::thread::spawn(move || rest_of(output));
    let deadline = SystemClock.now() + LONG;
    let stats = loop {
        let stats = get(&format!("{address}/stats"));
        if stats.contains("\"failed\"") {
            break stats;
        }
        assert!(SystemClock.now() < deadline, "the bad file does not fail: {stats}");
        std::thread::yield_now();
    };
    let health = get(&format!("{address}/health"));
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a process id")), Signal::SIGTERM).expect("it takes signals");
    log += &rest.join().expect("the log");
    let output = output.join().expect("the output");
    child.wait().expect("its exit status");
    vec![("/stats", stats), ("/health", health), ("the standard error", log), ("the standard output", output)]
}

fn rest_of(mut from: impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).expect("text");
    text
}

#[test]
fn a_secret_folder_shows_nowhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::create_dir(folder.join(SECRET)).expect("made");
    fs::write(folder.join(SECRET).join("bad.mp4"), "this is no video").expect("written");
    for path in [
        "path = \"${env.SECRET_FOLDER}/*.mp4\"",
        "path = \"${env.SECRET_GLOB}\"",
        "streams.bad = \"${env.SECRET_FOLDER}/bad.mp4\"",
    ] {
        let text = format!(
            "[sources.clips]\ntype = \"file\"\n{path}\n[sources.scene]\ntype = \"synthetic\"\n\
             [operators.sums]\ntype = \"checksum\"\ninputs = [\"clips\", \"scene\"]\n\
             [sinks.out]\ntype = \"file\"\ninputs = [\"sums\"]\npath = \"-\"\n"
        );
        fs::write(folder.join("graph.toml"), &text).expect("written");
        let mut told = everything_told(folder);
        for arguments in
            [&["plan", "graph.toml"][..], &["plan", "graph.toml", "--format", "json"], &["check", "graph.toml"]]
        {
            let output = engine(folder, arguments);
            assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
            told.push(("the plan", String::from_utf8_lossy(&output.stdout).into_owned()));
            told.push(("what a check says", String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        assert!(told[0].1.contains("[secret]") && told[1].1.contains("bad"), "{told:?}");
        for (place, text) in &told {
            assert!(!text.contains(SECRET), "{path}: {place} shows the folder:\n{text}");
        }
        let warned = told.iter().any(|(_, text)| text.contains("warning[secret-name]"));
        assert_eq!(warned, path.contains("SECRET_GLOB"), "{told:?}");
    }
}

#[test]
fn a_sink_that_cannot_start_keeps_its_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join(SECRET)).expect("made");
    let text = "[sources.scene]\ntype = \"synthetic\"\n[operators.sums]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
                [sinks.out]\ntype = \"file\"\ninputs = [\"sums\"]\npath = \"${env.SECRET_FOLDER}\"\n";
    fs::write(folder.path().join("graph.toml"), text).expect("written");
    let output = engine(folder.path(), &["run", "graph.toml", "--listen", "127.0.0.1:0"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot create `[secret]`") && !stderr.contains(SECRET), "{stderr}");
}
