//! The server: one thread with its own runtime that accepts connections, bounds them, and stops in time.
//!
//! Bounds: connections, bytes of a request's head, time until that head is complete, and what one connection may have
//! waiting to be written. A client beyond the number of connections is told so and cut.

use std::convert::Infallible;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use operators::error::StartError;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::events::EventHub;
use super::predict::Predict;
use super::routes::Routes;
use crate::runtime::stats::Observe;

/// How the control plane listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlConfig {
    /// `host:port`; port 0 takes a free one.
    pub listen: String,
    /// What `Access-Control-Allow-Origin` says; `None` leaves it out.
    pub allow_origin: Option<String>,
    /// A comment is sent to a subscriber that heard nothing for so long.
    pub heartbeat: Duration,
    /// A connection that does not complete a request's head in this time is cut; so is one that stays idle so long.
    pub header_timeout: Duration,
    /// Bytes of a request's head, and about as many of an answer that wait in a connection; at least 8192.
    pub max_header_bytes: usize,
    pub max_connections: usize,
    /// Connections that listen to `/events`; fewer than all, so that `/health` is always answered.
    pub max_subscribers: usize,
}

impl Default for ControlConfig {
    fn default() -> Self {
        ControlConfig {
            listen: "127.0.0.1:8000".to_owned(),
            allow_origin: Some("*".to_owned()),
            heartbeat: Duration::from_secs(15),
            header_timeout: Duration::from_secs(10),
            max_header_bytes: 16 << 10,
            max_connections: 2048,
            max_subscribers: 1900,
        }
    }
}

/// A running control plane. Dropping it stops it at once.
pub struct ControlHandle {
    address: SocketAddr,
    stop: Option<oneshot::Sender<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for ControlHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ControlHandle({})", self.address)
    }
}

impl ControlHandle {
    /// Where it listens; with the real port where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more, ends event streams once what waits is written, lets running answers finish, and cuts what
    /// is left after `deadline`.
    pub fn shutdown(mut self, deadline: Duration) {
        self.stop(deadline);
    }

    fn stop(&mut self, deadline: Duration) {
        if let Some(stop) = self.stop.take() {
            // An error means that the thread has ended already.
            let _ = stop.send(deadline);
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
    }
}

impl Drop for ControlHandle {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// Binds the address and serves on a thread of its own.
pub fn start(
    config: ControlConfig,
    observe: Arc<dyn Observe>,
    hub: Arc<EventHub>,
    predict: Option<Predict>,
) -> Result<ControlHandle, StartError> {
    let allow_origin = match &config.allow_origin {
        Some(origin) => Some(HeaderValue::from_str(origin).map_err(|_| {
            StartError::new(format!("`{}` cannot be an allowed origin", origin.escape_default()))
                .hint("write it like \"https://example.org\", or \"*\" for any page")
        })?),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| StartError::new(format!("cannot start the control plane: {error}")))?;
    let listener =
        runtime.block_on(TcpListener::bind(&config.listen)).map_err(|error| cannot_listen(&config.listen, &error))?;
    let address = listener.local_addr().map_err(|error| cannot_listen(&config.listen, &error))?;
    let routes = Arc::new(Routes {
        observe,
        hub,
        predict,
        heartbeat: config.heartbeat,
        max_subscribers: config.max_subscribers,
        allow_origin,
    });
    allow_descriptors(config.max_connections);
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || runtime.block_on(serve(listener, config, routes, stopped)))
        .map_err(|error| StartError::new(format!("cannot start the control thread: {error}")))?;
    Ok(ControlHandle { address, stop: Some(stop), thread: Some(thread) })
}

/// Every connection takes a file descriptor, and the usual soft limit of a process is 1024 where the hard one is half a
/// million: raises the soft limit where connections need it.
fn allow_descriptors(connections: usize) {
    /// What files, cameras and the engine itself may take beside connections.
    const OTHERS: u64 = 2048;
    let needed = connections as u64 + OTHERS;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| match needed.min(hard) {
        wanted if soft < wanted => setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).map(|()| wanted),
        _ => Ok(soft),
    });
    match raised {
        Ok(limit) if limit < needed => {
            tracing::warn!(limit, needed, "few file descriptors are allowed: many connections may be refused");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot learn how many file descriptors are allowed"),
    }
}

fn cannot_listen(listen: &str, error: &io::Error) -> StartError {
    let (why, hint) = match error.kind() {
        ErrorKind::AddrInUse => (
            "another program listens there already".to_owned(),
            "stop it, or choose another address with `--listen`, such as `--listen 127.0.0.1:0` for any free port",
        ),
        ErrorKind::PermissionDenied => {
            ("this user may not".to_owned(), "choose a port above 1023 with `--listen`, such as 127.0.0.1:8000")
        }
        ErrorKind::AddrNotAvailable => {
            ("this machine has no such address".to_owned(), "`--listen 0.0.0.0:8000` listens on all that it has")
        }
        _ => (error.to_string(), "write the address as HOST:PORT, such as `--listen 127.0.0.1:8000`"),
    };
    StartError::new(format!("cannot listen on `{listen}`: {why}")).hint(hint)
}

async fn serve(
    listener: TcpListener,
    config: ControlConfig,
    routes: Arc<Routes>,
    mut stopped: oneshot::Receiver<Duration>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(config.max_header_bytes.max(8192));
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(config.max_connections));
    let hub = routes.hub.clone();
    let dispatching = tokio::spawn({
        let hub = hub.clone();
        async move { hub.dispatch().await }
    });
    // A handle that was dropped without a word stops the server too.
    let deadline = loop {
        tokio::select! {
            deadline = &mut stopped => break deadline.unwrap_or_default(),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match slots.clone().try_acquire_owned() {
                    Ok(slot) => handle(stream, slot, &http, &graceful, &routes),
                    Err(_) => refuse(&stream),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Without descriptors it fails at once, again and again, until some are closed.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    };
    drop(listener);
    hub.close();
    if tokio::time::timeout(deadline, graceful.shutdown()).await.is_err() && !deadline.is_zero() {
        tracing::warn!(?deadline, "connections that did not end in time were cut");
    }
    dispatching.abort();
}

fn handle(
    stream: TcpStream,
    slot: OwnedSemaphorePermit,
    http: &http1::Builder,
    graceful: &GracefulShutdown,
    routes: &Arc<Routes>,
) {
    // Events are small and must not wait for company.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot send small packets at once");
    }
    let routes = routes.clone();
    let answer = service_fn(move |request| {
        let routes = routes.clone();
        async move { Ok::<_, Infallible>(routes.respond(request).await) }
    });
    let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), answer));
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(slot);
    });
}

/// Tells a client beyond the limit, as far as that goes without waiting for it.
fn refuse(stream: &TcpStream) {
    const BODY: &str = "{\"error\":\"too many connections\",\"hint\":\"try again later\"}\n";
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         retry-after: 1\r\nconnection: close\r\n\r\n{BODY}",
        BODY.len()
    );
    // A fresh connection has room for this; one that has not is cut without a word.
    let _ = stream.try_write(answer.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream as Client;
    use std::sync::Mutex;

    use crate::control::events::tests::detection;
    use crate::control::events::{EventLimits, EventReport};
    use crate::runtime::stats::{Health, ProcessReport, Report};
    use operators::clock::{Clock, SimulatedClock, SystemClock};
    use operators::item::{Origin, Record, RecordBody, StreamId};
    use operators::operator::Publisher;
    use serde_json::Value;

    /// Every wait of these tests ends after this.
    const PATIENCE: Duration = Duration::from_secs(20);

    struct Engine(Mutex<Health>);

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
            };
            Report { graphs: Vec::new(), process }
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
        let engine = Arc::new(Engine(Mutex::new(Health { ok: true, status: "ok", problems: Vec::new() })));
        let hub = EventHub::new(&SimulatedClock::default(), limits);
        let handle = start(config, engine.clone(), hub.clone(), None).unwrap();
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
        let plane =
            plane_with(ControlConfig { heartbeat: Duration::from_millis(20), ..local() }, EventLimits::default());
        let mut listener = plane.listen("?stream=other", "");
        plane.hub.publish(&detection("cam", 0, "circle"));
        let mut lines = std::iter::repeat_with(|| listener.line());
        assert!(lines.by_ref().take(20).any(|line| line == ": heartbeat"));
        assert!(lines.take(20).any(|line| line.starts_with("id: ") && line.ends_with(".1")));
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
        let timeout = Duration::from_millis(100);
        let plane = plane_with(ControlConfig { header_timeout: timeout, ..local() }, EventLimits::default());
        for part in ["", "GET /health HT", "GET /health HTTP/1.1\r\nhost: x\r\nx: "] {
            let mut client = plane.connect();
            client.write_all(part.as_bytes()).unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            assert!(!answer.starts_with(b"HTTP/1.1 200"), "{part:?}");
        }
        let mut idle = plane.connect();
        idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        idle.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "answered, and then cut because nothing more came: {answer}");
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
        let error =
            start(ControlConfig { listen: listen.clone(), ..local() }, plane.engine, plane.hub, None).unwrap_err();
        assert_eq!(error.message, format!("cannot listen on `{listen}`: another program listens there already"));
        assert!(error.hint.unwrap().contains("--listen"));
    }

    #[test]
    fn addresses_that_are_none_are_named() {
        for wrong in ["", "nonsense", "127.0.0.1:99999", "192.0.2.1:0"] {
            let plane = plane();
            let config = ControlConfig { listen: wrong.to_owned(), ..local() };
            let error = start(config, plane.engine, plane.hub, None).unwrap_err();
            assert!(error.message.starts_with(&format!("cannot listen on `{wrong}`: ")), "{error}");
            assert!(error.hint.is_some());
        }
    }
}
