//! A real S3 server on loopback, with faults in front of it: it refuses, hangs, cuts answers and is slow when told to.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Channel, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub const KEY_ID: &str = "AKIATESTS";
pub const SECRET: &str = "a secret of tests";

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status, with this code of S3.
    Refuse(u16, &'static str),
    /// No answer, as long as the server runs.
    Hang,
    /// The connection ends in the middle of the answer.
    CutAnswer,
    /// It is done, and the connection ends before the answer.
    CutBeforeAnswer,
    /// The answer takes so long.
    Slow(Duration),
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    /// Without the bucket's slash in front: `bucket/key`.
    pub path: String,
    pub query: String,
    pub range: Option<String>,
    /// What it says of caching.
    pub cache: Option<String>,
    pub status: u16,
}

#[derive(Default)]
struct State {
    faults: VecDeque<(String, Fault)>,
    always: Option<(String, Fault)>,
    asked: Vec<Asked>,
}

type Shared = Arc<Mutex<State>>;
type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// The server; it ends when dropped.
pub struct Bucket {
    pub port: u16,
    root: PathBuf,
    with_credentials: bool,
    state: Shared,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Bucket {
    /// Serves the folders in `root` as buckets, to whoever has the credentials [`KEY_ID`] and [`SECRET`].
    pub fn serve(root: &Path) -> Bucket {
        Bucket::start(root, 0, true, Shared::default())
    }

    /// As [`Bucket::serve`], to everybody.
    pub fn serve_everybody(root: &Path) -> Bucket {
        Bucket::start(root, 0, false, Shared::default())
    }

    /// As [`Bucket::serve`], at a port.
    pub fn serve_at(root: &Path, port: u16) -> Bucket {
        Bucket::start(root, port, true, Shared::default())
    }

    fn start(root: &Path, port: u16, with_credentials: bool, state: Shared) -> Bucket {
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, port))).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).expect("a folder"));
        if with_credentials {
            service.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        }
        let (service, shared) = (service.build(), state.clone());
        let thread = std::thread::spawn(move || runtime.block_on(accept(listener, service, shared, stopped)));
        Bucket { port, root: root.to_owned(), with_credentials, state, stop, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it, with all its connections, and answers how to start it again.
    pub fn stop(mut self) -> Stopped {
        self.end();
        let (root, port, with_credentials, state) =
            (self.root.clone(), self.port, self.with_credentials, self.state.clone());
        Stopped { root, port, with_credentials, state }
    }

    /// What goes wrong with the next requests of this method, one by one.
    pub fn fail_next(&self, method: &str, faults: &[Fault]) {
        let mut state = self.state.lock().expect("no panic");
        state.faults.extend(faults.iter().map(|fault| (method.to_owned(), *fault)));
    }

    /// What goes wrong with every request of this method, from here on.
    pub fn fail_always(&self, method: &str, fault: Fault) {
        self.state.lock().expect("no panic").always = Some((method.to_owned(), fault));
    }

    /// Nothing goes wrong any more.
    pub fn recover(&self) {
        let mut state = self.state.lock().expect("no panic");
        state.always = None;
        state.faults.clear();
    }

    /// Every request that was answered, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.lock().expect("no panic").asked.clone()
    }

    /// Whether every fault that was asked for has come.
    pub fn has_failed_enough(&self) -> bool {
        self.state.lock().expect("no panic").faults.is_empty()
    }

    fn end(&mut self) {
        // Fails where it has ended.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it ends without a panic");
        }
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.end();
    }
}

/// A server that has ended.
pub struct Stopped {
    root: PathBuf,
    port: u16,
    with_credentials: bool,
    state: Shared,
}

impl Stopped {
    pub fn again(self) -> Bucket {
        Bucket::start(&self.root, self.port, self.with_credentials, self.state)
    }
}

/// Gives a command the credentials of the server, and keeps it from looking for others.
pub fn with_credentials(command: &mut Command) {
    without_credentials(command);
    command.env("AWS_ACCESS_KEY_ID", KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET);
}

/// Keeps a command from finding any credentials.
pub fn without_credentials(command: &mut Command) {
    command
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env_remove("AWS_PROFILE")
        .env_remove("AWS_REGION")
        .env_remove("AWS_ENDPOINT_URL")
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
}

/// A folder with an empty bucket `clips` in it, and the server of it.
pub fn clips() -> (tempfile::TempDir, Bucket) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("clips")).expect("a bucket");
    let bucket = Bucket::serve(folder.path());
    (folder, bucket)
}

/// Every object of a bucket that a server keeps in `root`, by key.
pub fn objects(root: &Path, bucket: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = root.join(bucket);
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.clone()];
    while let Some(at) = waiting.pop() {
        for entry in std::fs::read_dir(&at).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let key = path.strip_prefix(&folder).expect("below").to_str().expect("text").to_owned();
                found.insert(key, std::fs::read(&path).expect("readable"));
            }
        }
    }
    found
}

async fn accept(listener: TcpListener, service: S3Service, state: Shared, mut stopped: watch::Receiver<bool>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((socket, _)) = accepted else { continue };
                // Small answers would wait for acknowledgements.
                let _ = socket.set_nodelay(true);
                connections.spawn(serve(socket, service.clone(), state.clone()));
            }
            _ = stopped.changed() => break,
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn serve(socket: TcpStream, service: S3Service, state: Shared) {
    let answer = service_fn(move |request| answer(request, service.clone(), state.clone()));
    // A connection that is cut on purpose is an error here too.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await;
}

async fn answer(request: Request<Incoming>, service: S3Service, state: Shared) -> Result<Answer, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let fault = next_fault(&state, &head.method);
    let mut asked = Asked {
        method: head.method.to_string(),
        path: head.uri.path().trim_start_matches('/').to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        range: head.headers.get("range").and_then(|range| range.to_str().ok()).map(str::to_owned),
        cache: head.headers.get("cache-control").and_then(|cache| cache.to_str().ok()).map(str::to_owned),
        status: 0,
    };
    match fault {
        Some(Fault::Refuse(status, code)) => {
            asked.status = status;
            state.lock().expect("no panic").asked.push(asked);
            return Ok(refusal(status, code));
        }
        Some(Fault::Hang) => return std::future::pending().await,
        Some(Fault::Slow(delay)) => tokio::time::sleep(delay).await,
        _ => {}
    }
    if let Some(refused) = precondition(&head, &service).await {
        asked.status = refused.status().as_u16();
        state.lock().expect("no panic").asked.push(asked);
        return Ok(refused);
    }
    let whole = Request::from_parts(head, s3s::Body::from(body));
    let answered = service.call(whole).await.map_err(|error| std::io::Error::other(format!("{error:?}")))?;
    let (head, body) = answered.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    asked.status = head.status.as_u16();
    state.lock().expect("no panic").asked.push(asked);
    match fault {
        Some(Fault::CutBeforeAnswer) => Err(std::io::Error::other("cut, as asked")),
        Some(Fault::CutAnswer) => {
            let (mut sender, channel) = Channel::<Bytes, std::io::Error>::new(1);
            let half = body.slice(..body.len() / 2);
            tokio::spawn(async move {
                // Nobody reads any more where the client has gone.
                let _ = sender.send_data(half).await;
                sender.abort(std::io::Error::other("cut, as asked"));
            });
            Ok(Response::from_parts(head, channel.boxed_unsync()))
        }
        _ => Ok(Response::from_parts(head, whole_body(body))),
    }
}

fn next_fault(state: &Shared, method: &Method) -> Option<Fault> {
    let mut state = state.lock().expect("no panic");
    if let Some(position) = state.faults.iter().position(|(wanted, _)| wanted == method.as_str()) {
        return state.faults.remove(position).map(|(_, fault)| fault);
    }
    state.always.as_ref().filter(|(wanted, _)| wanted == method.as_str()).map(|(_, fault)| *fault)
}

/// What S3 says to `If-Match` where there is another version, which the server behind this does not look at.
async fn precondition(head: &hyper::http::request::Parts, service: &S3Service) -> Option<Answer> {
    let wanted = head.headers.get("if-match").filter(|_| head.method == Method::GET)?;
    let mut looked = Request::builder().method(Method::GET).uri(head.uri.clone());
    for name in head.headers.keys().filter(|name| *name != "if-match") {
        looked = looked.header(name, &head.headers[name]);
    }
    let found = service.call(looked.body(s3s::Body::empty()).ok()?).await.ok()?;
    let etag = found.headers().get("etag")?;
    (etag != wanted).then(|| refusal(412, "PreconditionFailed"))
}

fn refusal(status: u16, code: &str) -> Answer {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>As asked.</Message></Error>");
    let mut answer = Response::new(whole_body(text.into()));
    *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
    answer.headers_mut().insert("content-type", "application/xml".parse().expect("a value"));
    answer
}

fn whole_body(bytes: Bytes) -> UnsyncBoxBody<Bytes, std::io::Error> {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
