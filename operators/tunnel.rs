//! A tunnel through which the internet reaches the engine: a program that others wrote, run for as long as somebody needs
//! it, watched, and started again when it ends.
//!
//! One tunnel serves a process, however many sinks ask for it. Through it strangers reach the whole control plane, so there
//! is none where anybody may use that.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, after, bounded, tick};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::backoff::Backoff;
use crate::error::StartError;
use crate::lock::lock;
use crate::operator::Trouble;

/// The program, as it is found in `PATH`.
pub const CLOUDFLARED: &str = "cloudflared";
/// Of util-linux: has a process get a signal when whoever started it is gone, also where that was killed.
const SETPRIV: &str = "setpriv";
/// What the addresses end in that the program makes.
const DOMAIN: &str = ".trycloudflare.com";
/// Cloudflare's own address under that domain, which is named in errors.
const SERVICE: &str = "https://api";

/// What the tunnels of a process share.
#[derive(Default)]
pub struct Tunnels {
    served: Mutex<Option<Served>>,
    running: Mutex<Weak<Tunnel>>,
}

/// What a tunnel leads to.
#[derive(Clone, Debug)]
pub struct Served {
    /// The address of the control plane on this machine, such as `http://127.0.0.1:8000`.
    pub url: String,
    /// Whether it answers only those who show a key, or somebody said that all may do everything.
    pub is_guarded: bool,
}

/// A tunnel that runs, or tries to, until this is dropped.
pub struct Tunnel {
    state: Arc<State>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    /// Where the internet finds it, while it does.
    url: Mutex<Option<String>>,
    trouble: Trouble,
}

impl Tunnels {
    /// The control plane listens: tunnels may lead to it from here on.
    pub fn serve(&self, served: Served) {
        *lock(&self.served) = Some(served);
    }

    /// The tunnel of the process, which is started where there is none. It runs as long as somebody holds it.
    ///
    /// # Errors
    /// Where the control plane is open to everybody or is not there, and where the program is missing.
    pub fn open(&self) -> Result<Arc<Tunnel>, StartError> {
        let mut running = lock(&self.running);
        if let Some(tunnel) = running.upgrade() {
            return Ok(tunnel);
        }
        let Some(served) = lock(&self.served).clone() else {
            return Err(StartError::new("a tunnel has nothing to lead to: nothing is served here")
                .hint("run the graph with `engine run`"));
        };
        if !served.is_guarded {
            let message = "a tunnel would let everybody on the internet use the engine, which asks for no keys";
            let hint =
                "make a key with `engine key NAME` and start with `--config engine.toml`, or start with `--insecure`";
            return Err(StartError::new(message).hint(hint));
        }
        let Some(program) = found(CLOUDFLARED) else {
            let message = format!("the program `{CLOUDFLARED}`, which makes the tunnel, is in no folder of PATH");
            let hint = "install it (Cloudflare has packages for Debian and others, and single files, at \
                        https://github.com/cloudflare/cloudflared), or remove `tunnel`";
            return Err(StartError::new(message).hint(hint));
        };
        let state = Arc::new(State { url: Mutex::default(), trouble: Trouble::default() });
        let (stop, stopped) = bounded(1);
        let (setpriv, patience) = (found(SETPRIV), PATIENCE);
        let keeper = Keeper { program, setpriv, served, state: state.clone(), stopped, patience };
        let thread = std::thread::Builder::new().name("tunnel".to_owned()).spawn(move || keeper.run());
        let thread = thread.map_err(|error| StartError::new(format!("the system gives no thread: {error}")))?;
        let tunnel = Arc::new(Tunnel { state, stop: Some(stop), thread: Some(thread) });
        *running = Arc::downgrade(&tunnel);
        Ok(tunnel)
    }

    /// The tunnel of the process, where there is one.
    pub fn running(&self) -> Option<Arc<Tunnel>> {
        lock(&self.running).upgrade()
    }

    /// Where the internet finds the engine just now, such as `https://some-words.trycloudflare.com`.
    pub fn url(&self) -> Option<String> {
        self.running()?.url()
    }
}

impl Tunnel {
    /// Where the internet finds it just now.
    pub fn url(&self) -> Option<String> {
        lock(&self.state.url).clone()
    }

    /// What keeps it from being found.
    pub fn trouble(&self) -> Trouble {
        self.state.trouble.clone()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of it has been told.
            let _ = thread.join();
        }
    }
}

/// A program in the folders of `PATH`.
fn found(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(is_program)
}

/// The public address in a line that the program wrote.
fn address(line: &str) -> Option<&str> {
    let start = line.find("https://")?;
    let address = line[start..].split(|c: char| c.is_whitespace() || c == '"' || c == '|').next()?;
    let address = address.trim_end_matches('/');
    (address.ends_with(DOMAIN) && !address.starts_with(SERVICE)).then_some(address)
}

/// How long to wait before the program is started again.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(60) };

/// A program that says nothing more is ended after so many looks whether it has, and killed after as many more.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(100);
/// How often it is looked whether the program still runs.
const TICK: Duration = Duration::from_millis(500);
/// How long the program may take until it says an address.
const PATIENCE: Duration = Duration::from_secs(30);

/// Keeps the program running.
struct Keeper {
    program: PathBuf,
    setpriv: Option<PathBuf>,
    served: Served,
    state: Arc<State>,
    /// Hangs up when it is time to end.
    stopped: Receiver<()>,
    /// How long the program may take until it says an address.
    patience: Duration,
}

impl Keeper {
    fn run(self) {
        let mut failures = 0;
        loop {
            let (why, was_there) = match self.start() {
                Ok(mut child) => {
                    let watched = self.watch(&mut child);
                    lock(&self.state.url).take();
                    if matches!(watched, Watched::Ended { .. }) {
                        self.let_end(&mut child);
                    }
                    let status = end(&mut child);
                    match watched {
                        Watched::Stopped => return,
                        Watched::Ended { last, was_there } => {
                            (format!("`{CLOUDFLARED}` ended ({status}){}", in_its_words(last.as_deref())), was_there)
                        }
                    }
                }
                Err(error) => (format!("`{}` cannot be started: {error}", self.program.display()), false),
            };
            failures = if was_there { 1 } else { failures + 1 };
            let delay = BACKOFF.delay(failures);
            let told = self.state.trouble.is(&format!("has no tunnel: {why}"));
            tracing::warn!("the tunnel is down and started again in {:.1} s: it {told}", delay.as_secs_f64());
            // Nobody sends anything: this waits until it is time to end, or to try again.
            if self.stopped.recv_timeout(delay) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// Waits for a moment, so that what ends by itself can say how.
    fn let_end(&self, child: &mut Child) {
        for _ in 0..LOOKS {
            let runs = matches!(child.try_wait(), Ok(None));
            if !runs || self.stopped.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    fn start(&self) -> std::io::Result<Child> {
        let mut command = match &self.setpriv {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "TERM", "--"]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.args(["tunnel", "--no-autoupdate", "--url", &self.served.url]);
        if self.served.url.starts_with("https:") {
            // The certificate is of the public name, and the way to it does not leave this machine.
            command.arg("--no-tls-verify");
        }
        // A group of its own: Ctrl-C on the terminal is for the engine, which ends it when it is time, with all that it
        // started itself.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
    }

    /// Reads what the program says until it ends, or until it is time to. What it has started may hold its standard error
    /// open for longer.
    fn watch(&self, child: &mut Child) -> Watched {
        let Some(said) = child.stderr.take() else { return Watched::Ended { last: None, was_there: false } };
        let (sender, lines) = bounded(16);
        let reader = std::thread::Builder::new().name("tunnel".to_owned()).spawn(move || read(said, &sender));
        if let Err(error) = reader {
            return Watched::Ended { last: Some(format!("the system gives no thread: {error}")), was_there: false };
        }
        let (mut last, mut was_there, mut has_ended) = (None, false, false);
        let (ticks, late) = (tick(TICK), after(self.patience));
        loop {
            crossbeam_channel::select! {
                recv(lines) -> line => match line {
                    Ok(line) => {
                        tracing::debug!("{CLOUDFLARED}: {line}");
                        if let Some(address) = address(&line) {
                            tracing::info!("the internet reaches the engine at {address}");
                            *lock(&self.state.url) = Some(address.to_owned());
                            self.state.trouble.is_over();
                            was_there = true;
                        }
                        // What is no line of its log is what it ends with.
                        if !line.is_empty() && ![" DBG ", " INF ", " WRN "].iter().any(|level| line.contains(level)) {
                            last = Some(line);
                        }
                    }
                    Err(_) => return Watched::Ended { last, was_there },
                },
                recv(ticks) -> _ => {
                    // By the tick after the one that saw it end, all that it said is read.
                    if has_ended {
                        return Watched::Ended { last, was_there };
                    }
                    has_ended = !matches!(child.try_wait(), Ok(None));
                }
                recv(late) -> _ => if !was_there {
                    let said = in_its_words(last.as_deref());
                    let seconds = self.patience.as_secs();
                    let told = self.state.trouble.is(&format!(
                        "has no tunnel: `{CLOUDFLARED}` runs and has said no address for {seconds} s{said}; hint: look \
                         whether this machine reaches Cloudflare"
                    ));
                    tracing::warn!("the tunnel is not there yet: it {told}");
                },
                recv(self.stopped) -> _ => return Watched::Stopped,
            }
        }
    }
}

fn in_its_words(last: Option<&str>) -> String {
    last.map(|last| format!("; it said: {last}")).unwrap_or_default()
}

/// Ends the program and all that it has started: asked to first, and killed where that does not help. Answers how the
/// program itself ended.
fn end(child: &mut Child) -> String {
    // The group is called as the program is.
    let group = i32::try_from(child.id()).ok().map(Pid::from_raw);
    let signal = |signal: Option<Signal>| group.is_some_and(|group| killpg(group, signal).is_ok());
    if signal(Some(Signal::SIGTERM)) {
        for _ in 0..LOOKS {
            // One that has ended stays in its group until somebody asks how.
            let has_ended = !matches!(child.try_wait(), Ok(None));
            if has_ended && !signal(None) {
                break;
            }
            let _ = after(LOOK).recv();
        }
        signal(Some(Signal::SIGKILL));
    }
    // It may have left its group.
    let _ = child.kill();
    child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// How watching the program came to its end.
enum Watched {
    Stopped,
    Ended {
        /// The last mistake that it told of.
        last: Option<String>,
        /// Whether there was a tunnel.
        was_there: bool,
    },
}

/// The longest line that is kept of what the program says, in bytes.
const LONGEST_LINE: u64 = 4096;

fn read(said: impl Read, lines: &Sender<String>) {
    let mut said = BufReader::new(said);
    loop {
        let mut line = Vec::new();
        match said.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(1..) if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_ok() => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_what_the_program_says() {
        for (line, expected) in [
            (
                "2026-01-02T03:04:05Z INF |  https://seasonal-deck-organisms-sf.trycloudflare.com                   |",
                Some("https://seasonal-deck-organisms-sf.trycloudflare.com"),
            ),
            ("INF https://a-b.trycloudflare.com/", Some("https://a-b.trycloudflare.com")),
            ("INF Requesting new quick Tunnel on trycloudflare.com...", None),
            ("ERR Post \"https://api.trycloudflare.com/tunnel\": dial tcp: no such host", None),
            ("INF see https://developers.cloudflare.com/cloudflare-one and https://evil.example", None),
            ("INF https://trycloudflare.com.evil.example |", None),
        ] {
            assert_eq!(address(line), expected, "{line}");
        }
    }

    #[test]
    fn there_is_no_tunnel_to_what_is_open_to_all_or_not_there() {
        let tunnels = Tunnels::default();
        let refused = |tunnels: &Tunnels| tunnels.open().map(|_| ()).unwrap_err();
        assert!(refused(&tunnels).message.contains("nothing is served here"));
        tunnels.serve(Served { url: "http://127.0.0.1:8000".to_owned(), is_guarded: false });
        let open = refused(&tunnels);
        assert!(open.message.contains("asks for no keys"), "{open}");
        assert!(open.hint.is_some_and(|hint| hint.contains("engine key") && hint.contains("--insecure")));
        assert_eq!(tunnels.url(), None);
    }

    /// What is wrong with a tunnel that a shell with these commands makes, which says no address.
    fn trouble_of(patience: Duration, commands: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("cloudflared");
        std::fs::write(&program, format!("#!/bin/sh\n{commands}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let state = Arc::new(State { url: Mutex::default(), trouble: Trouble::default() });
        let (stop, stopped) = bounded(1);
        let served = Served { url: "http://127.0.0.1:8000".to_owned(), is_guarded: true };
        let keeper = Keeper { program, setpriv: None, served, state: state.clone(), stopped, patience };
        let thread = std::thread::spawn(move || keeper.run());
        let trouble = loop {
            match state.trouble.now().filter(|trouble| !trouble.contains("cannot be started")) {
                Some(trouble) => break trouble,
                None => drop(after(LOOK).recv()),
            }
        };
        drop(stop);
        thread.join().unwrap();
        trouble
    }

    #[test]
    fn a_program_that_says_no_address_is_told_of() {
        // Long beside what a busy machine needs to start a program.
        let silent = trouble_of(Duration::from_secs(5), "echo 'looking for a way' >&2\nexec sleep 1000");
        for part in ["has no tunnel: `cloudflared` runs", "no address for 5 s; it said: looking for a way; hint: "] {
            assert!(silent.contains(part), "{silent}");
        }
        let ended = trouble_of(Duration::from_secs(60), "echo 'no such host' >&2\necho >&2\nexit 3");
        assert_eq!(ended, "has no tunnel: `cloudflared` ended (exit status: 3); it said: no such host");
    }

    #[test]
    fn lines_without_an_end_are_cut() {
        let (sender, lines) = bounded(16);
        read(&vec![b'x'; 10_000][..], &sender);
        drop(sender);
        let lengths: Vec<usize> = lines.iter().map(|line| line.len()).collect();
        assert_eq!(lengths, [4096, 4096, 1808]);
    }
}
