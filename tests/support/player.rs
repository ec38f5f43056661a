//! A player in a browser: hls.js, on a page of its own.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use super::{ffmpeg, repository};

/// A keyframe each second, with sound.
pub fn clip(folder: &Path, name: &str, seconds: u32, options: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let picture = format!("testsrc=size=320x240:rate=25:duration={seconds}");
    let tone = format!("sine=frequency=440:duration={seconds}");
    let inputs = ["-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", &tone];
    let coded = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-sc_threshold", "0", "-pix_fmt", "yuv420p"];
    ffmpeg(&[&inputs[..], &coded, &["-bf", "2"], options].concat(), &path);
    path
}

/// A page with hls.js at an origin of its own.
pub struct PlayerPage {
    pub origin: String,
}

impl PlayerPage {
    /// `None` where hls.js is not installed.
    pub fn serve() -> Option<PlayerPage> {
        let script = repository().join(".local/page/node_modules/hls.js/dist/hls.min.js");
        let Ok(script) = std::fs::read(&script) else {
            let missing = format!("there is no {}; run script/setup --tests", script.display());
            let is_required = std::env::var_os("ENGINE_REQUIRE_BROWSER").is_some_and(|value| value == "1");
            assert!(!is_required, "{missing}");
            eprintln!("skipped: {missing}");
            return None;
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let origin = format!("http://{}", listener.local_addr().expect("an address"));
        std::thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                let mut line = String::new();
                let read = BufReader::new(&client).read_line(&mut line);
                let (media_type, body) = match line.split(' ').nth(1) {
                    Some("/hls.js") => ("text/javascript", &script[..]),
                    Some("/favicon.ico") => ("image/x-icon", &b""[..]),
                    _ => ("text/html", PLAYER.as_bytes()),
                };
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                // A browser that has gone needs no answer.
                let _ = read.and_then(|_| client.write_all(head.as_bytes())).and_then(|()| client.write_all(body));
            }
        });
        Some(PlayerPage { origin })
    }

    /// The page that plays what is at an address. `options` are those of the page: `&low=1` for low latency.
    pub fn of(&self, url: &str, options: &str) -> String {
        format!("{}/?url={url}{options}", self.origin)
    }
}

const PLAYER: &str = r#"<!doctype html><title>player</title><video id="video" muted playsinline></video>
<script src="/hls.js"></script>
<script>
  const video = document.getElementById("video");
  window.problems = [];
  window.stalls = 0;
  const options = new URLSearchParams(location.search);
  const isLow = options.get("low") === "1";
  const hls = new Hls({ lowLatencyMode: isLow, maxLiveSyncPlaybackRate: isLow ? 1.5 : 1 });
  hls.on(Hls.Events.ERROR, (_, data) => {
    if (data.fatal) window.problems.push(data.type + " " + data.details);
    if (data.details === "bufferStalledError") window.stalls += 1;
  });
  hls.on(Hls.Events.MANIFEST_PARSED, () => video.play());
  hls.loadSource(options.get("url"));
  hls.attachMedia(video);
  // When the picture that is shown now was read, in milliseconds since 1970; a number only once that is known.
  window.shown = () => hls.playingDate && hls.playingDate.getTime();
  // Seconds from when the picture that is shown now was read until now; a number only once that is known.
  window.behind = () => hls.playingDate && (Date.now() - window.shown()) / 1000;
</script>"#;
