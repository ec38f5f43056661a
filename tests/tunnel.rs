//! `tunnel` of the `hls` sink, with a program that stands in for Cloudflare's (`tests/support/cloudflared`): what the real
//! one does on the internet is not tested here.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Engine, Folder, ffmpeg, repository, run_folder, send, wait_for};

/// A folder with the stand-in, a video, and what the stand-in writes.
struct StandIn {
    folder: tempfile::TempDir,
}

impl StandIn {
    fn new() -> StandIn {
        let folder = tempfile::tempdir().expect("a folder");
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin).expect("a folder");
        std::fs::create_dir(folder.path().join("started")).expect("a folder");
        std::fs::create_dir(folder.path().join("behind")).expect("a folder");
        std::os::unix::fs::symlink(repository().join("tests/support/cloudflared"), bin.join("cloudflared"))
            .expect("a link");
        let picture = ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=10:duration=2"];
        let coded = ["-c:v", "libx264", "-g", "10", "-pix_fmt", "yuv420p"];
        ffmpeg(&[&picture[..], &coded].concat(), &folder.path().join("door.mp4"));
        StandIn { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn graph(&self) -> String {
        format!(
            "[sources.video]\ntype = \"file\"\nrealtime = true\nstreams.door = {{ path = '{}', loop = true }}\n\
             [sinks.watch]\ntype = \"hls\"\ninputs = [\"video\"]\nsegment = \"1s\"\ntunnel = \"cloudflared\"\n",
            self.path().join("door.mp4").display()
        )
    }

    fn prepare(&self, command: &mut Command) {
        let path = std::env::var("PATH").expect("text");
        command.env("PATH", format!("{}:{path}", self.path().join("bin").display()));
        command.env("STAND_IN", self.path().join("started"));
    }

    /// What the `nth` start was: the process, and its arguments.
    fn started(&self, nth: usize) -> (Pid, Vec<String>) {
        self.told("started", nth)
    }

    /// What the program started itself that was started as the `nth`.
    fn behind(&self, nth: usize) -> Pid {
        self.started(nth);
        self.told("behind", nth).0
    }

    fn told(&self, folder: &str, nth: usize) -> (Pid, Vec<String>) {
        let file: PathBuf = self.path().join(format!("{folder}/start-{nth}"));
        let text = wait_for("the start of the program", || std::fs::read_to_string(&file).ok());
        let mut lines = text.lines().map(str::to_owned);
        let pid = lines.next().and_then(|pid| pid.parse().ok()).expect("a process id");
        (Pid::from_raw(pid), lines.collect())
    }

    fn starts(&self) -> usize {
        std::fs::read_dir(self.path().join("started")).expect("a folder").count()
    }
}

/// Whether a process runs. One that has ended may still be listed, where nobody asks what became of it.
fn runs(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    !matches!(state, None | Some("" | "Z" | "X"))
}

fn wait_until_gone(pid: Pid) {
    wait_for("the end of the program", || (!runs(pid)).then_some(()));
}

fn public_url(engine: &mut Engine, expected: &str) {
    let address = engine.address();
    engine.wait_for("the public address", |_| {
        let (_, told) = support::get(&format!("{address}/streams/door"));
        (told["public_url"] == expected).then_some(())
    });
}

#[test]
fn the_public_address_is_told_and_the_program_is_kept_running() {
    let stand_in = StandIn::new();
    let run = Folder::with_graph(&stand_in.graph());
    let mut engine = run.run_with(&["--stay", "--insecure"], |command| stand_in.prepare(command));
    let address = engine.address();
    public_url(&mut engine, "https://stand-in-number-0.trycloudflare.com/hls/graph/door/index.m3u8");
    engine.wait_for_log("the internet reaches the engine at https://stand-in-number-0.trycloudflare.com");
    let (first, arguments) = stand_in.started(0);
    assert_eq!(arguments, ["tunnel", "--no-autoupdate", "--url", &address]);

    kill(first, Signal::SIGKILL).expect("it runs");
    public_url(&mut engine, "https://stand-in-number-1.trycloudflare.com/hls/graph/door/index.m3u8");
    let said = engine.wait_for_log("the tunnel is down");
    assert!(said.contains("`cloudflared` ended (signal: 9 (SIGKILL))"), "{said}");
    let (second, _) = stand_in.started(1);
    assert_ne!(first, second);
    let ended = engine.terminate().expect(0);
    assert_eq!(ended.counts("door").lost, 0);
    wait_until_gone(second);
    assert_eq!(stand_in.starts(), 2);
}

#[test]
fn the_program_ends_with_its_last_graph_and_with_an_engine_that_is_killed() {
    let stand_in = StandIn::new();
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("graphs")).expect("a folder");
    let mut command = support::command(&["run", "graphs", "--listen", "127.0.0.1:0", "--insecure", "--allow-tunnel"]);
    command.args(["--allow-path", stand_in.path().to_str().expect("text")]).current_dir(folder.path());
    stand_in.prepare(&mut command);
    let mut engine = Engine::start(command);
    let address = engine.address();
    let put = |name: &str, text: &str| send("PUT", &format!("{address}/graphs/{name}"), &[], text);
    put("yard", &stand_in.graph()).expect(201);
    let (first, _) = stand_in.started(0);
    // A second graph needs no second program, and the first may go.
    put("hall", &stand_in.graph().replace("streams.door", "streams.hall")).expect(201);
    put("yard", &format!("# a comment\n{}", stand_in.graph())).expect(200);
    send("DELETE", &format!("{address}/graphs/yard"), &[], "").expect(200);
    assert!(runs(first), "another graph has it");
    send("DELETE", &format!("{address}/graphs/hall"), &[], "").expect(200);
    wait_until_gone(first);
    assert_eq!(stand_in.starts(), 1);

    put("yard", &stand_in.graph()).expect(201);
    let (second, _) = stand_in.started(1);
    engine.signal(Signal::SIGKILL);
    engine.finish();
    wait_until_gone(second);
}

/// The way in must not outlive the graph.
#[test]
fn what_the_program_has_started_ends_with_it() {
    let stand_in = StandIn::new();
    let run = Folder::with_graph(&stand_in.graph());
    let mut engine = run.run_with(&["--stay", "--insecure"], |command| {
        stand_in.prepare(command);
        command.env("STAND_IN_WRAPS", stand_in.path().join("behind"));
    });
    public_url(&mut engine, "https://stand-in-number-0.trycloudflare.com/hls/graph/door/index.m3u8");
    let ((wrapper, _), worker) = (stand_in.started(0), stand_in.behind(0));
    assert!(runs(wrapper) && runs(worker) && wrapper != worker);
    // Its worker goes on and keeps its standard error open.
    kill(wrapper, Signal::SIGKILL).expect("it runs");
    public_url(&mut engine, "https://stand-in-number-1.trycloudflare.com/hls/graph/door/index.m3u8");
    let said = engine.wait_for_log("the tunnel is down");
    assert!(said.contains("`cloudflared` ended (signal: 9 (SIGKILL))"), "{said}");
    // Of the first, nothing is left.
    wait_until_gone(worker);
    let ((wrapper, _), worker) = (stand_in.started(1), stand_in.behind(1));
    assert!(runs(wrapper) && runs(worker));
    engine.terminate().expect(0);
    // Nothing outlives the engine; what was killed goes in its own time.
    wait_until_gone(wrapper);
    wait_until_gone(worker);
}

#[test]
fn what_keeps_a_tunnel_from_being_there_is_said() {
    let stand_in = StandIn::new();
    let run = Folder::with_graph(&stand_in.graph());
    let failed = |arguments: &[&str], prepare: &dyn Fn(&mut Command)| {
        let ended = run.run_with(arguments, |command| prepare(command)).finish();
        assert_eq!(ended.code(), 1, "{}", ended.stderr);
        ended.stderr
    };
    let open = failed(&[], &|command| stand_in.prepare(command));
    for part in ["`watch`", "asks for no keys", "engine key NAME", "--insecure"] {
        assert!(open.contains(part), "{open}");
    }
    let nowhere = stand_in.path().join("started");
    let missing = failed(&["--insecure"], &|command| {
        command.env("PATH", &nowhere);
    });
    for part in ["`watch`", "the program `cloudflared`", "is in no folder of PATH", "remove `tunnel`"] {
        assert!(missing.contains(part), "{missing}");
    }
    assert_eq!(stand_in.starts(), 0);

    // Without the internet: the stream is there all the same, and the reason is told, whatever else could go wrong.
    let text = std::fs::read_to_string(run.graph()).expect("written");
    std::fs::write(run.graph(), format!("{text}storage = \"copies/{{stream}}\"\n")).expect("written");
    let mut engine = run.run_with(&["--stay", "--insecure"], |command| {
        stand_in.prepare(command);
        command.env("STAND_IN_FAILS", "1");
    });
    let said = engine.wait_for_log("the tunnel is down");
    assert!(said.contains("lookup api.trycloudflare.com: no such host"), "{said}");
    let address = engine.address();
    engine.wait_for("its trouble", |_| {
        let (_, health) = support::get(&format!("{address}/health"));
        health.to_string().contains("node `watch` has no tunnel: `cloudflared` ended").then_some(())
    });
    let told = engine.wait_for("a playlist", |_| {
        let (_, told) = support::get(&format!("{address}/streams/door"));
        told["hls_url"].is_string().then_some(told)
    });
    assert!(told.get("public_url").is_none(), "{told}");
    engine.wait_for("another try", |_| (stand_in.starts() >= 2).then_some(()));
    engine.terminate().expect(0);
}

/// A text that comes over HTTP starts no program unless that is allowed.
#[test]
fn what_comes_over_http_makes_no_tunnel() {
    let stand_in = StandIn::new();
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine =
        run_folder(folder.path(), &["--insecure", "--allow-path", stand_in.path().to_str().expect("text")]);
    let address = engine.address();
    let refused = send("PUT", &format!("{address}/graphs/yard"), &[], &stand_in.graph());
    assert_eq!(refused.status, 400, "{}", refused.text);
    for part in ["may not start the program `cloudflared`", "--allow-tunnel"] {
        assert!(refused.text.contains(part), "{}", refused.text);
    }
    let other = stand_in.graph().replace("\"cloudflared\"", "\"/bin/sh\"");
    let refused = send("PUT", &format!("{address}/graphs/yard"), &[], &other);
    assert_eq!(refused.status, 400, "{}", refused.text);
    assert_eq!(stand_in.starts(), 0);
    engine.terminate().expect(0);
}
