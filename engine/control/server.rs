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
use super::live::Live;
use super::predict::Predict;
use super::routes::Routes;
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

/// Binds the address and serves on a thread of its own. Without `graphs`, nothing can be changed over it.
pub fn start(
    config: ControlConfig,
    observe: Arc<dyn Observe>,
    hub: Arc<EventHub>,
    predict: Option<Predict>,
    graphs: Option<Arc<Graphs>>,
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
        // Previews are encoded here; more at once would take the processor from the streams.
        .max_blocking_threads(2)
        .build()
        .map_err(|error| StartError::new(format!("cannot start the control plane: {error}")))?;
    let listener =
        runtime.block_on(TcpListener::bind(&config.listen)).map_err(|error| cannot_listen(&config.listen, &error))?;
    let address = listener.local_addr().map_err(|error| cannot_listen(&config.listen, &error))?;
    let routes = Arc::new(Routes {
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
mod tests;
