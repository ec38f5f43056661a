//! What tests of live inputs share: a real RTSP server, a relay that can freeze, and clips to serve.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{ffmpeg, repository, wait_for};

/// The Python that has Debian's bindings of GStreamer; another one may come first on the path.
const PYTHON: &str = "/usr/bin/python3";

/// Whether the RTSP server can be run here; says so where it cannot, and fails where it must.
pub fn server_is_here() -> bool {
    let looked = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer";
    let found = Command::new(PYTHON).args(["-c", looked]).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    let missing = "there is no RTSP server; script/setup --tests installs it";
    assert!(std::env::var_os("ENGINE_REQUIRE_MATERIAL").is_none_or(|value| value != "1"), "{missing}");
    eprintln!("skipped: {missing}");
    false
}

/// A port that is free just now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Two minutes of a test picture, ten a second, with a keyframe each second, as `name` in `folder`.
pub fn clip(folder: &Path, name: &str, size: &str, options: &[&str]) -> PathBuf {
    picture(folder, name, &format!("testsrc=size={size}:rate=10:duration=120"), options)
}

/// As [`clip`], for whoever waits for so many pictures and not for so many seconds: 40 seconds of thirty pictures a second,
/// with a keyframe three times a second.
pub fn lively_clip(folder: &Path, name: &str, size: &str, options: &[&str]) -> PathBuf {
    picture(folder, name, &format!("testsrc=size={size}:rate=30:duration=40"), options)
}

/// A keyframe in ten pictures.
fn picture(folder: &Path, name: &str, source: &str, options: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let mut arguments = vec!["-f", "lavfi", "-i", source, "-c:v", "libx264", "-preset", "ultrafast", "-g", "10"];
    arguments.extend(["-pix_fmt", "yuv420p"]);
    arguments.extend(options);
    ffmpeg(&arguments, &path);
    path
}

/// GStreamer's RTSP server on loopback; killed when dropped.
pub struct RtspServer {
    child: Child,
    pub port: u16,
}

impl RtspServer {
    /// Serves each file under `/name`. Port 0 takes a free one.
    pub fn start(port: u16, media: &[(&str, &Path)], arguments: &[&str]) -> RtspServer {
        let mut child = Command::new(PYTHON)
            .arg(repository().join("tests/support/rtsp_server.py"))
            .args(["--port", &port.to_string()])
            .args(arguments)
            .args(media.iter().map(|(name, file)| format!("{name}={}", file.display())))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python runs");
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("text");
        let port = line.trim().parse().unwrap_or_else(|_| panic!("the server's port, not {line:?}"));
        RtspServer { child, port }
    }

    pub fn url(&self, name: &str) -> String {
        format!("rtsp://127.0.0.1:{}/{name}", self.port)
    }

    /// Ends it at once, as when the power fails.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for RtspServer {
    fn drop(&mut self) {
        // Both fail only where it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes TCP connections on, until it is told to freeze: then nothing passes, and nothing ends.
pub struct Relay {
    pub port: u16,
    frozen: Arc<AtomicBool>,
    connections: Arc<AtomicU64>,
}

impl Relay {
    /// To `target` on loopback.
    pub fn start(target: u16) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let frozen = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicU64::new(0));
        let (theirs, counted) = (frozen.clone(), connections.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::AcqRel);
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) else { continue };
                pass_on(&client, &server, &theirs);
                pass_on(&server, &client, &theirs);
            }
        });
        Relay { port, frozen, connections }
    }

    /// How many connections came so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Acquire)
    }

    /// What is connected now falls silent for good; `thaw` lets new connections pass.
    pub fn freeze(&self) {
        self.frozen.store(true, Ordering::Release);
    }

    pub fn thaw(&self) {
        self.frozen.store(false, Ordering::Release);
    }
}

fn pass_on(from: &TcpStream, to: &TcpStream, frozen: &Arc<AtomicBool>) {
    let (mut from, mut to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
    let frozen = frozen.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if frozen.load(Ordering::Acquire) {
                // Silent for good, and open: whoever waits on the other side must notice by itself.
                let never = crossbeam_channel::never::<()>();
                let _ = never.recv();
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// Accepts TCP connections and never says a word.
pub struct Mute {
    pub port: u16,
    heard: Arc<AtomicBool>,
}

impl Mute {
    pub fn start() -> Mute {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let heard = Arc::new(AtomicBool::new(false));
        let theirs = heard.clone();
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for mut client in listener.incoming().map_while(Result::ok) {
                let heard = theirs.clone();
                let reader = client.try_clone().expect("a socket");
                open.push(reader);
                std::thread::spawn(move || {
                    let mut buffer = [0; 1024];
                    if let Ok(1..) = client.read(&mut buffer) {
                        heard.store(true, Ordering::Release);
                    }
                });
            }
        });
        Mute { port, heard }
    }

    /// Waits until somebody has asked it something.
    pub fn wait_for_a_question(&self) {
        wait_for("a question to the mute server", || self.heard.load(Ordering::Acquire).then_some(()));
    }
}
