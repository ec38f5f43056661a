//! The control plane over real sockets.

use super::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream as Client;

use crate::control::events::tests::detection;
use crate::control::events::{EventLimits, EventReport};
use crate::runtime::preview::PreviewSlot;
use crate::runtime::stats::{Health, ProcessReport, Report};
use operators::clock::{Clock, SimulatedClock, SystemClock};
use operators::item::{Origin, Record, RecordBody, StreamId};
use operators::operator::Publisher;
use serde_json::Value;

/// Every wait of these tests ends after this.
const PATIENCE: Duration = Duration::from_secs(20);

struct Engine(Mutex<Health>, Arc<PreviewSlot>);

impl Observe for Engine {
    fn report(&self) -> Report {
        let process = ProcessReport {
            uptime_seconds: 1.5,
            cpu_seconds: 0.5,
            resident_bytes: 1,
            peak_resident_bytes: 2,
            threads: 3,
            workers: 1,
            pool_threads: 2,
            pool_busy: 0.0,
            pool_busy_seconds: 0.0,
        };
        Report { graphs: Vec::new(), process }
    }

    fn preview(&self, graph: &str, stream: &str) -> Option<Arc<PreviewSlot>> {
        (graph == "yard" && stream == "cam").then(|| self.1.clone())
    }

    fn health(&self) -> Health {
        self.0.lock().unwrap().clone()
    }
}

struct Plane {
    engine: Arc<Engine>,
    hub: Arc<EventHub>,
    handle: ControlHandle,
}

fn local() -> ControlConfig {
    ControlConfig { listen: "127.0.0.1:0".to_owned(), ..ControlConfig::default() }
}

fn plane_with(config: ControlConfig, limits: EventLimits) -> Plane {
    let engine = Arc::new(Engine(Mutex::new(Health { ok: true, status: "ok", problems: Vec::new() }), Arc::default()));
    let hub = EventHub::new(&SimulatedClock::default(), limits);
    let handle = start(config, engine.clone(), hub.clone(), None, None, Arc::new(SystemClock)).unwrap();
    Plane { engine, hub, handle }
}

fn plane() -> Plane {
    plane_with(local(), EventLimits::default())
}

impl Plane {
    fn connect(&self) -> Client {
        let client = Client::connect(self.handle.address()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// The status, the headers and the body of a whole answer.
    fn ask(&self, method: &str, path: &str) -> (u16, String, String) {
        let mut client = self.connect();
        write!(client, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let (line, headers) = head.split_once("\r\n").unwrap();
        (line.split(' ').nth(1).unwrap().parse().unwrap(), headers.to_owned(), body.to_owned())
    }

    fn json(&self, path: &str) -> (u16, Value) {
        let (status, headers, body) = self.ask("GET", path);
        assert!(headers.contains("content-type: application/json"), "{headers}");
        (status, serde_json::from_str(&body).unwrap())
    }

    fn listen(&self, query: &str, headers: &str) -> Listener {
        let mut listener = Listener::request(self.connect(), query, headers);
        listener.begin();
        listener
    }

    fn wait_for(&self, what: impl Fn(EventReport) -> bool) {
        let deadline = SystemClock.now() + PATIENCE;
        while !what(self.hub.report()) {
            assert!(SystemClock.now() < deadline, "gave up at {:?}", self.hub.report());
            SystemClock.wait(deadline, Duration::from_millis(2));
        }
    }
}

/// Reads server-sent events as a browser would.
struct Listener {
    lines: BufReader<Client>,
    last_id: String,
}

#[derive(Debug)]
struct Heard {
    name: String,
    data: Value,
}

impl Listener {
    fn request(mut client: Client, query: &str, headers: &str) -> Listener {
        // HTTP/1.0: the body is not chunked, so that lines can be read as they are.
        write!(client, "GET /events{query} HTTP/1.0\r\nhost: x\r\n{headers}\r\n").unwrap();
        Listener { lines: BufReader::new(client), last_id: String::new() }
    }

    /// Reads the head, and the first block: then the subscription stands.
    fn begin(&mut self) {
        assert!(self.line().ends_with("200 OK"));
        let mut event_stream = false;
        loop {
            let line = self.line();
            event_stream |= line == "content-type: text/event-stream";
            if line.is_empty() {
                break;
            }
        }
        assert!(event_stream);
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the connection was closed");
        line.trim_end().to_owned()
    }

    /// The next event; comments and blocks without data are skipped, as the standard says.
    fn next(&mut self) -> Heard {
        let (mut name, mut data) = (String::new(), None);
        loop {
            let line = self.line();
            match line.split_once(": ") {
                Some(("id", id)) => id.clone_into(&mut self.last_id),
                Some(("event", event)) => event.clone_into(&mut name),
                Some(("data", json)) => data = Some(serde_json::from_str(json).unwrap()),
                _ => {}
            }
            if line.is_empty()
                && let Some(data) = data.take()
            {
                return Heard { name, data };
            }
        }
    }

    fn seqs(&mut self, count: usize) -> Vec<u64> {
        (0..count).map(|_| self.next().data["seq"].as_u64().unwrap()).collect()
    }
}

/// A record that takes about 10 kB on the wire.
fn large(seq: u64) -> Arc<Record> {
    let origin = Origin { graph: "yard".into(), node: "sums".into() };
    let body = RecordBody::Checksum { md5: "0".repeat(10_000) };
    Arc::new(origin.signal(&StreamId::new("cam").unwrap(), Some(seq), SimulatedClock::default().wall(), body))
}

#[test]
fn health_tells_the_truth() {
    let plane = plane();
    assert_eq!(plane.json("/health"), (200, serde_json::json!({ "ok": true, "status": "ok" })));
    let problem = "stream `door`: no picture for 12 s".to_owned();
    *plane.engine.0.lock().unwrap() = Health { ok: false, status: "failing", problems: vec![problem.clone()] };
    let (status, health) = plane.json("/health");
    assert_eq!((status, &health["problems"][0]), (503, &problem.into()));
    assert_eq!(plane.json("/health/live").0, 200);
    assert_eq!(plane.json("/health/ready").0, 200, "a camera that is gone does not make the engine unready");
    for status in ["starting", "draining"] {
        *plane.engine.0.lock().unwrap() = Health { ok: false, status, problems: Vec::new() };
        assert_eq!(plane.json("/health/ready").0, 503);
        assert_eq!(plane.json("/health/live").0, 200);
    }
}

#[test]
fn statistics_have_the_engine_and_the_hub() {
    let plane = plane();
    plane.hub.publish(&detection("cam", 0, "circle"));
    let (status, stats) = plane.json("/stats");
    assert_eq!(status, 200);
    assert_eq!(stats["process"]["threads"], 3);
    assert_eq!(stats["graphs"], serde_json::json!([]));
    assert_eq!((&stats["events"]["published"], &stats["events"]["subscribers"]), (&1.into(), &0.into()));
}

#[test]
fn mistakes_are_answered_with_an_error_and_a_hint() {
    let plane = plane();
    assert!(plane.json("/").1["routes"]["/health/ready"].is_string());
    let (status, error) = plane.json("/stat");
    assert_eq!((status, &error["hint"]), (404, &"did you mean `/stats`?".into()));
    assert_eq!(plane.json("/events?steam=a").0, 400);
    let (status, headers, body) = plane.ask("POST", "/stats");
    assert_eq!(status, 405);
    assert!(headers.contains("allow: GET, HEAD, OPTIONS"), "{headers}");
    assert!(body.contains("POST"), "{body}");
}

#[test]
fn head_is_get_without_the_body_and_pages_may_read() {
    let plane = plane();
    let (_, _, body) = plane.ask("GET", "/health");
    let (status, headers, nothing) = plane.ask("HEAD", "/health");
    assert_eq!((status, nothing.as_str()), (200, ""));
    assert!(headers.contains(&format!("content-length: {}", body.len())), "{headers}");
    assert!(headers.contains("access-control-allow-origin: *"), "{headers}");
    let (status, headers, _) = plane.ask("HEAD", "/events");
    assert!(status == 200 && headers.contains("content-type: text/event-stream"), "{headers}");
    assert_eq!(plane.hub.report().subscribers, 0);
    let (status, headers, _) = plane.ask("OPTIONS", "/events");
    assert!(status == 204 && headers.contains("access-control-allow-headers: last-event-id"), "{headers}");
}

#[test]
fn previews_are_refused_with_a_reason() {
    let plane = plane();
    assert_eq!(plane.json("/preview").0, 400);
    let (status, error) = plane.json("/preview?graph=yard&stream=other");
    assert_eq!((status, &error["error"]), (404, &"there is no stream `other` in a graph `yard`".into()));
    plane.engine.1.set_over(true);
    let (_, headers, _) = plane.ask("GET", "/preview?graph=yard&stream=cam");
    assert!(!headers.contains("access-control-allow-origin"), "no other page sees what a camera sees: {headers}");
    let (status, error) = plane.json("/preview?graph=yard&stream=cam");
    assert_eq!(status, 503);
    assert_eq!(error["error"], "graph `yard`, stream `cam`: there is no picture yet");
}

#[test]
fn browsers_get_a_page_that_may_talk_to_nobody_else() {
    let plane = plane();
    let mut client = plane.connect();
    write!(client, "GET / HTTP/1.0\r\nhost: x\r\naccept: text/html\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") && answer.contains("<!doctype html>"), "{answer}");
    assert!(answer.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{answer}");
    for (path, content_type) in [("/page.js", "text/javascript"), ("/page.css", "text/css")] {
        let (status, headers, _) = plane.ask("GET", path);
        assert!(status == 200 && headers.contains(&format!("content-type: {content_type}")), "{headers}");
        assert!(headers.contains("cache-control: no-cache") && headers.contains("etag: "), "{headers}");
    }
}

#[test]
fn events_are_filtered_by_what_the_query_says() {
    let plane = plane();
    let mut all = plane.listen("", "");
    let mut circles = plane.listen("?stream=a,b&label=circle", "");
    plane.hub.publish(&detection("a", 0, "square"));
    plane.hub.publish(&detection("b", 1, "circle"));
    plane.hub.publish(&detection("c", 2, "circle"));
    plane.hub.publish(&detection("a", 3, "circle"));
    assert_eq!(all.seqs(4), [0, 1, 2, 3]);
    let first = circles.next();
    assert_eq!((first.name.as_str(), &first.data["stream"]), ("detection", &"b".into()));
    assert_eq!(circles.seqs(1), [3]);
}

/// The other tests read HTTP/1.0, which is not chunked.
#[test]
fn a_common_client_reads_events() {
    let plane = plane();
    let url = format!("http://{}/events?last_event_id=1f.0", plane.handle.address());
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
    plane.hub.publish(&detection("a", 0, "square"));
    let mut answer = agent.get(url).call().unwrap();
    let lines = BufReader::new(answer.body_mut().as_reader()).lines().map(Result::unwrap);
    let events: Vec<_> = lines.filter(|line| line.starts_with("event: ")).take(2).collect();
    assert_eq!(events, ["event: gap", "event: detection"]);
}

#[test]
fn a_listener_that_comes_back_resumes_where_it_was() {
    let plane = plane_with(local(), EventLimits { events: 4, ..EventLimits::default() });
    let mut listener = plane.listen("", "");
    plane.hub.publish(&detection("cam", 0, "circle"));
    plane.hub.publish(&detection("cam", 1, "circle"));
    assert_eq!(listener.seqs(2), [0, 1]);
    let id = listener.last_id.clone();
    drop(listener);
    for seq in 2..5 {
        plane.hub.publish(&detection("cam", seq, "circle"));
    }
    let mut by_header = plane.listen("", &format!("last-event-id: {id}\r\n"));
    assert_eq!(by_header.seqs(3), [2, 3, 4]);
    for seq in 5..8 {
        plane.hub.publish(&detection("cam", seq, "circle"));
    }
    let mut by_query = plane.listen(&format!("?last_event_id={id}"), "");
    let gap = by_query.next();
    assert_eq!((gap.name.as_str(), &gap.data["lost"]), ("gap", &2.into()));
    assert_eq!(by_query.seqs(4), [4, 5, 6, 7]);
    let mut foreign = plane.listen("?last_event_id=1f.2", "");
    assert_eq!(foreign.next().data["lost"], Value::Null);
    // An empty id is none: what was published before is not played again.
    let mut fresh = [plane.listen("", "last-event-id: \r\n"), plane.listen("?last_event_id=", "")];
    plane.hub.publish(&detection("cam", 8, "circle"));
    for listener in &mut fresh {
        assert_eq!(listener.seqs(1), [8]);
    }
    let mut by_query = plane.listen(&format!("?last_event_id={id}"), "last-event-id: \r\n");
    assert_eq!(by_query.next().name, "gap", "an empty header takes nothing from the query");
}

#[test]
fn a_stalled_listener_hears_what_it_lost_and_slows_nobody() {
    let plane = plane_with(local(), EventLimits { events: 64, bytes: 64 << 20 });
    let stalled = {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let socket = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            socket.connect(plane.handle.address()).await.unwrap().into_std().unwrap()
        });
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Listener::request(socket, "", "")
    };
    plane.wait_for(|report| report.subscribers == 1);
    let mut fast = plane.listen("", "");
    // 30 MB: more than any socket buffer takes.
    let total = 3000;
    for seq in 0..total {
        plane.hub.publish(&large(seq));
        if seq % 16 == 15 {
            assert_eq!(fast.seqs(16), (seq - 15..=seq).collect::<Vec<_>>());
        }
    }
    let rest = usize::try_from(total % 16).unwrap();
    fast.seqs(rest);
    let mut stalled = stalled;
    stalled.begin();
    let (mut next, mut lost) = (0, 0);
    while next < total {
        let event = stalled.next();
        if event.name == "gap" {
            lost += event.data["lost"].as_u64().unwrap();
            next += event.data["lost"].as_u64().unwrap();
        } else {
            assert_eq!(event.data["seq"], next);
            next += 1;
        }
    }
    assert!(lost > 0, "the stalled listener lost nothing: the test published too little");
}

#[test]
fn a_quiet_connection_hears_a_heartbeat() {
    let plane = plane_with(ControlConfig { heartbeat: Duration::from_millis(20), ..local() }, EventLimits::default());
    let mut listener = plane.listen("?stream=other", "");
    plane.hub.publish(&detection("cam", 0, "circle"));
    let mut lines = std::iter::repeat_with(|| listener.line());
    // As many as come while this thread stands still.
    assert!(lines.by_ref().take(2000).any(|line| line == ": heartbeat"));
    assert!(lines.take(2000).any(|line| line.starts_with("id: ") && line.ends_with(".1")));
}

#[test]
fn a_listener_that_has_gone_is_forgotten() {
    let plane = plane();
    let listener = plane.listen("", "");
    plane.wait_for(|report| report.subscribers == 1);
    drop(listener);
    plane.wait_for(|report| report.subscribers == 0);
}

#[test]
fn a_head_that_is_never_finished_is_cut() {
    // Long beside what this thread may stand still between two lines.
    let timeout = Duration::from_secs(1);
    let plane = plane_with(ControlConfig { header_timeout: timeout, ..local() }, EventLimits::default());
    for part in ["", "GET /health HT", "GET /health HTTP/1.1\r\nhost: x\r\nx: "] {
        let mut client = plane.connect();
        // It may be cut before everything is written.
        let _ = client.write_all(part.as_bytes());
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{part:?}");
    }
    let mut idle = plane.connect();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    idle.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "answered, and then cut because nothing more came: {answer}");
}

#[test]
fn an_answer_that_nobody_reads_is_cut() {
    let config = ControlConfig { header_timeout: Duration::from_secs(1), max_connections: 1, ..local() };
    let plane = plane_with(config, EventLimits::default());
    let _listener = plane.listen("", "");
    plane.wait_for(|report| report.subscribers == 1);
    // More than any buffer of the system holds, so that something waits to be written.
    let deadline = SystemClock.now() + PATIENCE;
    let mut seq = 0;
    while plane.hub.report().subscribers > 0 {
        assert!(SystemClock.now() < deadline, "a listener that reads nothing keeps its place");
        for _ in 0..100 {
            plane.hub.publish(&large(seq));
            seq += 1;
        }
        SystemClock.wait(deadline, Duration::from_millis(5));
    }
}

#[test]
fn one_address_of_the_network_takes_a_part_of_all() {
    let slots = Arc::new(Semaphore::new(10));
    let addresses = Addresses { most: Most::OfOthers(2), counts: Arc::default() };
    let [own, other]: [IpAddr; 2] = ["::ffff:127.0.0.1", "192.0.2.7"].map(|address| address.parse().unwrap());
    let of_own: Vec<_> = (0..3).filter_map(|_| addresses.admit(own, &slots)).collect();
    let of_other: Vec<_> = (0..3).filter_map(|_| addresses.admit(other, &slots)).collect();
    assert_eq!((of_own.len(), of_other.len()), (3, 2));
    drop(of_other);
    assert!(addresses.admit(other, &slots).is_some());
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let plane = plane();
    let mut client = plane.connect();
    let filler = "a".repeat(64 << 10);
    // The server may cut the connection before everything is written.
    let _ = write!(client, "GET /health HTTP/1.1\r\nhost: x\r\nx: {filler}\r\n\r\n");
    let mut answer = [0; 12];
    let refused = client.read_exact(&mut answer).map_or(true, |()| &answer == b"HTTP/1.1 431");
    assert!(refused, "{}", String::from_utf8_lossy(&answer));
    assert_eq!(plane.json("/health").0, 200);
}

#[test]
fn connections_and_listeners_are_bounded() {
    let config = ControlConfig { max_connections: 3, max_subscribers: 1, ..local() };
    let plane = plane_with(config, EventLimits::default());
    let listener = plane.listen("", "");
    assert_eq!(plane.json("/events").0, 503);
    let mut idle = plane.connect();
    idle.write_all(b"GET").unwrap();
    let mut another = plane.connect();
    another.write_all(b"GET").unwrap();
    let mut answer = String::new();
    // Accepted in order, so the other two have their slots by now.
    plane.connect().read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("too many connections"), "{answer}");
    drop((listener, idle, another));
    plane.wait_for(|report| report.subscribers == 0);
}

#[test]
fn one_address_leaves_connections_to_others() {
    let plane = plane_with(ControlConfig { max_connections_each: Some(2), ..local() }, EventLimits::default());
    let (first, second) = (plane.listen("", ""), plane.listen("", ""));
    let mut answer = String::new();
    plane.connect().read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("too many connections"), "{answer}");
    drop(first);
    plane.wait_for(|report| report.subscribers == 1);
    let deadline = SystemClock.now() + PATIENCE;
    let free = || {
        let mut client = plane.connect();
        let _ = client.write_all(b"GET /health/live HTTP/1.0\r\n\r\n");
        let mut answer = String::new();
        let _ = client.read_to_string(&mut answer);
        answer.starts_with("HTTP/1.0 200")
    };
    while !free() {
        assert!(SystemClock.now() < deadline, "a place that is free is given again");
        SystemClock.wait(deadline, Duration::from_millis(2));
    }
    drop(second);
}

#[test]
fn two_hundred_listeners_hear_everything() {
    let plane = plane();
    let mut listeners: Vec<_> = (0..200).map(|_| plane.listen("", "")).collect();
    plane.wait_for(|report| report.subscribers == 200);
    for seq in 0..50 {
        plane.hub.publish(&detection("cam", seq, "circle"));
    }
    for listener in &mut listeners {
        assert_eq!(listener.seqs(50), (0..50).collect::<Vec<_>>());
    }
    drop(listeners);
    plane.wait_for(|report| report.subscribers == 0);
}

#[test]
fn stopping_ends_event_streams_and_frees_the_address() {
    let plane = plane();
    let mut listener = plane.listen("", "");
    plane.hub.publish(&detection("cam", 0, "circle"));
    assert_eq!(listener.seqs(1), [0]);
    let address = plane.handle.address();
    plane.handle.shutdown(PATIENCE);
    let mut rest = String::new();
    listener.lines.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.trim(), "", "the stream ends as a stream does, without an error");
    std::net::TcpListener::bind(address).unwrap();
}

#[test]
fn stopping_does_not_wait_for_ever_for_a_client_that_does_not_read() {
    let plane = plane();
    let listener = Listener::request(plane.connect(), "", "");
    plane.wait_for(|report| report.subscribers == 1);
    for seq in 0..3000 {
        plane.hub.publish(&large(seq));
    }
    let begin = SystemClock.now();
    plane.handle.shutdown(Duration::from_millis(50));
    assert!(SystemClock.now() - begin < PATIENCE);
    drop(listener);
}

#[test]
fn an_address_that_is_taken_is_named() {
    let plane = plane();
    let listen = plane.handle.address().to_string();
    let error = start(
        ControlConfig { listen: listen.clone(), ..local() },
        plane.engine,
        plane.hub,
        None,
        None,
        Arc::new(SystemClock),
    )
    .unwrap_err();
    assert_eq!(error.message, format!("cannot listen on `{listen}`: another program listens there already"));
    assert!(error.hint.unwrap().contains("--listen"));
}

#[test]
fn addresses_that_are_none_are_named() {
    for wrong in ["", "nonsense", "127.0.0.1:99999", "192.0.2.1:0"] {
        let plane = plane();
        let config = ControlConfig { listen: wrong.to_owned(), ..local() };
        let error = start(config, plane.engine, plane.hub, None, None, Arc::new(SystemClock)).unwrap_err();
        assert!(error.message.starts_with(&format!("cannot listen on `{wrong}`: ")), "{error}");
        assert!(error.hint.is_some());
    }
}
