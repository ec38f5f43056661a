//! The server: one thread with its own runtime that accepts connections, bounds them, and stops in time.
//!
//! Bounds: connections, bytes of a request's head, time until that head is complete (the handshake of an encrypted
//! connection has as long), and what one connection may have waiting to be written, and how long. A client beyond the
//! number of connections is told so and cut.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use operators::clock::Clock;
use operators::error::StartError;
use operators::lock::lock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_rustls::TlsAcceptor;

use super::events::EventHub;
use super::guard::{Access, Guard};
use super::live::Live;
use super::predict::Predict;
use super::prompt::Prompt;
use super::routes::Routes;
use super::tls::{Tls, TlsFiles};
use crate::runtime::graphs::Graphs;
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
    /// A connection that does not complete a request's head in this time is cut; so is one that stays idle so long, and
    /// one that reads nothing of its answer for [`UNREAD`] times as long.
    pub header_timeout: Duration,
    /// Bytes of a request's head, and about as many of an answer that wait in a connection; at least 8192.
    pub max_header_bytes: usize,
    pub max_connections: usize,
    /// Connections of one address; behind a proxy all are of its address. `None`: a part of all, and of this machine's
    /// own address as many as there are.
    pub max_connections_each: Option<usize>,
    /// Connections that listen to `/events`; fewer than all, so that `/health` is always answered.
    pub max_subscribers: usize,
    pub access: Access,
    /// What it encrypts with; `None` for not at all.
    pub tls: Option<TlsFiles>,
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
            max_connections_each: None,
            max_subscribers: 1900,
            access: Access::default(),
            tls: None,
        }
    }
}

/// How many times as long as a head may take to come, an answer may wait to be read: a listener may be held up for a
/// moment.
const UNREAD: u32 = 3;
/// Where it is not said otherwise, one address of the network has one of so many parts of all connections.
const PARTS: usize = 4;

/// A running control plane. Dropping it stops it at once.
pub struct ControlHandle {
    address: SocketAddr,
    encrypted: bool,
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

    /// The same as an address to open.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.encrypted { "https" } else { "http" }, self.address)
    }

    /// The same for programs on this machine, also where it listens on all addresses.
    pub fn local_url(&self) -> String {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let address = SocketAddr::new(ip, self.address.port());
        format!("{}://{address}", if self.encrypted { "https" } else { "http" })
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

/// Binds the address and serves on a thread of its own. Without `graphs`, nothing can be changed over it.
pub fn start(
    config: ControlConfig,
    observe: Arc<dyn Observe>,
    hub: Arc<EventHub>,
    predict: Option<Predict>,
    graphs: Option<Arc<Graphs>>,
    clock: Arc<dyn Clock>,
) -> Result<ControlHandle, StartError> {
    let allow_origin = match &config.allow_origin {
        Some(origin) => Some(HeaderValue::from_str(origin).map_err(|_| {
            StartError::new(format!("`{}` cannot be an allowed origin", origin.escape_default()))
                .hint("write it like \"https://example.org\", or \"*\" for any page")
        })?),
        None => None,
    };
    let tls = config.tls.clone().map(|files| Tls::new(files, clock.clone())).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // Previews are encoded here; more at once would take the processor from the streams.
        .max_blocking_threads(2)
        .build()
        .map_err(|error| StartError::new(format!("cannot start the control plane: {error}")))?;
    let listener =
        runtime.block_on(TcpListener::bind(&config.listen)).map_err(|error| cannot_listen(&config.listen, &error))?;
    let address = listener.local_addr().map_err(|error| cannot_listen(&config.listen, &error))?;
    config.access.may_listen(address)?;
    let encrypted = tls.is_some();
    warn(&config.access, address, encrypted);
    let routes = Arc::new(Routes {
        guard: Guard::new(config.access.clone(), clock, address.port(), encrypted),
        observe,
        live: graphs.map(|graphs| Live::new(graphs, hub.clone(), allow_origin.as_ref())),
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
        .spawn(move || runtime.block_on(serve(listener, config, tls, routes, stopped)))
        .map_err(|error| StartError::new(format!("cannot start the control thread: {error}")))?;
    Ok(ControlHandle { address, encrypted, stop: Some(stop), thread: Some(thread) })
}

/// What others in the network can do is said once more than it is written down.
fn warn(access: &Access, address: SocketAddr, encrypted: bool) {
    if address.ip().to_canonical().is_loopback() {
        return;
    }
    if access.keys.is_empty() {
        tracing::warn!("everybody who reaches {address} may do everything (`--insecure`)");
    } else if !encrypted {
        let hint = "give `--tls-cert` and `--tls-key`, or let a proxy on this machine encrypt";
        tracing::warn!(hint, "keys come to {address} unencrypted: others in the network can read them");
    }
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
    tls: Option<Tls>,
    routes: Arc<Routes>,
    mut stopped: oneshot::Receiver<Duration>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(config.max_header_bytes.max(8192));
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(config.max_connections));
    let most = match config.max_connections_each {
        Some(most) => Most::OfEach(most),
        None => Most::OfOthers((config.max_connections / PARTS).max(1)),
    };
    let addresses = Addresses { most, counts: Arc::default() };
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
                Ok((stream, peer)) => match addresses.admit(peer.ip(), &slots) {
                    Some(slot) => {
                        let connection = Connection {
                            http: http.clone(),
                            watcher: graceful.watcher(),
                            routes: routes.clone(),
                            peer: peer.ip(),
                            patience: config.header_timeout * UNREAD,
                        };
                        let handshake = tls.as_ref().map(|tls| (tls.acceptor(), config.header_timeout));
                        tokio::spawn(handle(stream, handshake, connection, slot));
                    }
                    // What is not encrypted would be noise to a client that expects it to be.
                    None if tls.is_some() => {}
                    None => refuse(&stream),
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

type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// How many connections one address may have.
#[derive(Clone, Copy)]
enum Most {
    OfEach(usize),
    /// Of this machine's own addresses there is no bound: a proxy may be what asks.
    OfOthers(usize),
}

/// How many connections each address has, where that is bounded.
struct Addresses {
    most: Most,
    counts: Counts,
}

/// A connection's place among all, and among those of its address. It is free again when this is dropped.
struct Slot {
    _permit: OwnedSemaphorePermit,
    counted: Option<(Counts, IpAddr)>,
}

impl Addresses {
    /// A place for a connection; `None` where there is none left.
    fn admit(&self, address: IpAddr, slots: &Arc<Semaphore>) -> Option<Slot> {
        let permit = slots.clone().try_acquire_owned().ok()?;
        let address = address.to_canonical();
        let most = match self.most {
            Most::OfOthers(_) if address.is_loopback() => return Some(Slot { _permit: permit, counted: None }),
            Most::OfEach(most) | Most::OfOthers(most) => most,
        };
        let mut counts = lock(&self.counts);
        let count = counts.entry(address).or_default();
        // An entry of nobody is not left behind: a connection of its address would have to be there.
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Slot { _permit: permit, counted: Some((self.counts.clone(), address)) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some((counts, address)) = &self.counted else { return };
        let mut counts = lock(counts);
        if let Some(count) = counts.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(address);
            }
        }
    }
}

/// What it takes to answer on a connection.
struct Connection {
    http: http1::Builder,
    watcher: Watcher,
    routes: Arc<Routes>,
    peer: IpAddr,
    /// How long what is written may wait to be read.
    patience: Duration,
}

/// Answers on a connection until it ends; a handshake may take only so long.
async fn handle(stream: TcpStream, handshake: Option<(TlsAcceptor, Duration)>, connection: Connection, slot: Slot) {
    // Events are small and must not wait for company.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot send small packets at once");
    }
    match handshake {
        None => connection.answer(stream).await,
        Some((acceptor, patience)) => match tokio::time::timeout(patience, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => connection.answer(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "a connection could not be encrypted"),
            Err(_) => tracing::debug!(?patience, "a handshake took too long"),
        },
    }
    drop(slot);
}

impl Connection {
    async fn answer(self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let Connection { http, watcher, routes, peer, patience } = self;
        let stream = Prompt::new(stream, patience);
        let answer = service_fn(move |request| {
            let routes = routes.clone();
            async move { Ok::<_, Infallible>(routes.respond(request, peer).await) }
        });
        if let Err(error) = watcher.watch(http.serve_connection(TokioIo::new(stream), answer)).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
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
mod tests;
