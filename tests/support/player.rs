//! A page that plays what the `hls` sink publishes, with hls.js.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};

use super::repository;

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
}

const PLAYER: &str = r#"<!doctype html><title>player</title><video id="video" muted playsinline></video>
<script src="/hls.js"></script>
<script>
  const video = document.getElementById("video");
  window.problems = [];
  window.stalls = 0;
  const hls = new Hls({ lowLatencyMode: false });
  hls.on(Hls.Events.ERROR, (_, data) => {
    if (data.fatal) window.problems.push(data.type + " " + data.details);
    if (data.details === "bufferStalledError") window.stalls += 1;
  });
  hls.on(Hls.Events.MANIFEST_PARSED, () => video.play());
  hls.loadSource(new URLSearchParams(location.search).get("url"));
  hls.attachMedia(video);
</script>"#;
