//! A network that loses packets, the same ones in every run.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Which packets are lost: one in twenty, by a linear congruential generator that is seeded with a constant.
pub struct Loss(u64);

impl Loss {
    pub fn seeded() -> Loss {
        Loss(7)
    }

    /// Whether the next packet is lost.
    pub fn loses_next(&mut self) -> bool {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33).is_multiple_of(20)
    }
}

/// Passes RTSP on, and the media that it arranges over UDP: each side is told the relay's ports in the place of the other's,
/// and of the datagrams of RTP that the server sends, one in twenty is lost. One track a conversation.
pub struct LossyRelay {
    pub port: u16,
    passed: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
}

impl LossyRelay {
    /// To the RTSP server at port `target` of loopback.
    pub fn start(target: u16) -> LossyRelay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let relay = LossyRelay { port, passed: Arc::default(), lost: Arc::default() };
        let counts = (relay.passed.clone(), relay.lost.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) else { continue };
                converse(&client, &server, &counts);
            }
        });
        relay
    }

    /// Datagrams of RTP that were passed on, and that were lost.
    pub fn counts(&self) -> (u64, u64) {
        (self.passed.load(Ordering::Acquire), self.lost.load(Ordering::Acquire))
    }
}

type Counts = (Arc<AtomicU64>, Arc<AtomicU64>);

fn converse(client: &TcpStream, server: &TcpStream, counts: &Counts) {
    let media = Arc::new(Media::bind());
    let clone = |stream: &TcpStream| stream.try_clone().expect("a socket");
    let (to_server, to_client) = ((clone(client), clone(server)), (clone(server), clone(client)));
    let theirs = media.clone();
    std::thread::spawn(move || pass_on(to_server, |header| theirs.ask(header)));
    let counts = counts.clone();
    std::thread::spawn(move || pass_on(to_client, |header| media.answer(header, &counts)));
}

/// Passes messages on, with their `Transport` header as `rewrite` wants it.
fn pass_on((from, mut to): (TcpStream, TcpStream), rewrite: impl Fn(&str) -> String) {
    let mut from = BufReader::new(from);
    // Until a side hangs up, or says what is no RTSP.
    while let Some(message) = message(&mut from, &rewrite) {
        if to.write_all(&message).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// The next message, headers and body.
fn message(from: &mut impl BufRead, rewrite: &impl Fn(&str) -> String) -> Option<Vec<u8>> {
    let (mut message, mut body) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if name == "content-length" {
            body = line.rsplit(':').next()?.trim().parse().ok()?;
        }
        let ends = line.trim_end().is_empty();
        message += &if name == "transport" { rewrite(&line) } else { line };
        if ends {
            break;
        }
    }
    let mut bytes = message.into_bytes();
    let head = bytes.len();
    bytes.resize(head + body, 0);
    from.read_exact(&mut bytes[head..]).ok()?;
    Some(bytes)
}

/// The relay's two ports of one conversation: for media, and for its control behind it.
struct Media {
    sockets: [UdpSocket; 2],
    port: u16,
    /// The first port of the client.
    client: Mutex<Option<u16>>,
}

impl Media {
    /// On two free ports of which the first is even.
    fn bind() -> Media {
        let pair = (0..1000).find_map(|_| {
            let media = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            let port = media.local_addr().expect("an address").port();
            let control = UdpSocket::bind((Ipv4Addr::LOCALHOST, port.checked_add(1)?));
            Some((media, control.ok()?, port)).filter(|_| port.is_multiple_of(2))
        });
        let (media, control, port) = pair.expect("two free ports");
        Media { sockets: [media, control], port, client: Mutex::default() }
    }

    /// What the server is asked: to send here.
    fn ask(&self, header: &str) -> String {
        let (header, client) = exchange(header, "client_port", self.port);
        *self.client.lock().expect("no panic") = client;
        header
    }

    /// What the client is answered: that it comes from here. From now on it does.
    fn answer(&self, header: &str, counts: &Counts) -> String {
        let client = self.client.lock().expect("no panic").expect("it was asked for media over UDP");
        let (header, _) = exchange(header, "client_port", client);
        let (header, server) = exchange(&header, "server_port", self.port);
        let server = server.expect("the server names its ports");
        for (socket, further) in self.sockets.iter().zip(0..) {
            let socket = socket.try_clone().expect("a socket");
            let counts = counts.clone();
            std::thread::spawn(move || relay(&socket, client + further, server + further, further == 0, &counts));
        }
        header
    }
}

/// Passes datagrams on between two ports, and loses some of those of media.
fn relay(socket: &UdpSocket, client: u16, server: u16, is_media: bool, (passed, lost): &Counts) {
    let (mut loss, mut datagram) = (Loss::seeded(), [0; 65_536]);
    while let Ok((length, from)) = socket.recv_from(&mut datagram) {
        let from_server = from.port() == server;
        if from_server && is_media {
            let is_lost = loss.loses_next();
            if is_lost { lost } else { passed }.fetch_add(1, Ordering::AcqRel);
            if is_lost {
                continue;
            }
        }
        // Whoever has gone is the test's affair.
        let _ = socket.send_to(&datagram[..length], (Ipv4Addr::LOCALHOST, if from_server { client } else { server }));
    }
}

/// Puts the pair of ports that starts with `port` in the place of that which a header calls `name`; answers its first.
fn exchange(header: &str, name: &str, port: u16) -> (String, Option<u16>) {
    let mut found = None;
    let parts: Vec<String> = header
        .split(';')
        .map(|part| {
            let Some(ports) = part.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) else {
                return part.to_owned();
            };
            found = ports.split('-').next().and_then(|first| first.parse().ok());
            let end = if part.ends_with('\n') { "\r\n" } else { "" };
            format!("{name}={port}-{}{end}", port + 1)
        })
        .collect();
    (parts.join(";"), found)
}
