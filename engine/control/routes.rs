//! What the control plane answers: each path, its methods, and its JSON.
//!
//! | path | answer |
//! |---|---|
//! | `GET /` | the page for browsers; the routes, as JSON, for everybody else |
//! | `GET /health` | 200 or 503, with every problem named |
//! | `GET /health/live` | 200 while the process answers |
//! | `GET /health/ready` | 200 once graphs run and until they drain, whether or not a stream fails just now |
//! | `GET /stats` | everything that is counted |
//! | `GET /metrics` | the same for Prometheus |
//! | `GET /preview` | a JPEG picture of the stream that `graph` and `stream` name |
//! | `GET /events` | server-sent events; `graph`, `node`, `stream` and `label` filter, `last_event_id` resumes |
//! | `POST /predict` | what a model says of one picture ([`super::predict`]) |
//! | `GET /openapi.json`, `GET /docs` | these routes, for programs and for people |
//! | `/login`, `/logout` | a browser shows a key, and forgets it ([`super::guard`]) |
//! | `/graphs…` | graphs, as they change ([`super::graphs`]) |
//! | `/streams…` | streams, as they come and go ([`super::streams`]) |
//! | `/hls/…` | streams as HTTP Live Streaming ([`super::hls`]) |
//! | `POST /v1/mediamtx/events/…` | streams that a MediaMTX server announces ([`super::mediamtx`]) |
//! | `POST /streams/{id}/frames`, `POST /infer` | pictures that are pushed into streams ([`super::push`]) |
//!
//! `HEAD` is answered wherever `GET` is. A mistake is answered with `{"error": …, "hint": …}`.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;

use super::body;
use super::events::{EventHub, EventReport, Filter, Subscription};
use super::guard::{Admission, Guard};
use super::live::{Live, NOT_READY, READY, Target};
use super::predict::{self, Predict};
use super::push;
use super::{metrics, page};
use crate::runtime::predict::PredictReport;
use crate::runtime::stats::{Observe, Report};

pub type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What the routes need to answer.
pub(super) struct Routes {
    pub guard: Guard,
    pub observe: Arc<dyn Observe>,
    pub hub: Arc<EventHub>,
    /// `None` where nothing can be changed.
    pub live: Option<Live>,
    /// `None` where no pictures are answered.
    pub predict: Option<Predict>,
    pub heartbeat: Duration,
    pub max_subscribers: usize,
    /// Origins whose pages may read the answers; `None` for none.
    pub allow_origin: Option<HeaderValue>,
}

const PREDICT: &str = "/predict";
const PREVIEW: &str = "/preview";
const OPENAPI: &str = "/openapi.json";
const LOGIN: &str = "/login";
const LOGOUT: &str = "/logout";

/// What [`OPENAPI`] answers; beside the other documents, for those who read them without an engine.
const DOCUMENT: &str = include_str!("../../docs/openapi.json");

const PATHS: [(&str, &str); 25] = [
    ("/", "this list; in a browser, a page with streams, pictures and results"),
    ("/health", "200 while everything works, else 503, with every problem named"),
    ("/health/live", "200 while the process answers"),
    ("/health/ready", "200 once the graphs run and until they drain"),
    ("/stats", "counts of every graph, stream and node"),
    ("/metrics", "the same counts for Prometheus"),
    (PREVIEW, "a JPEG picture of a stream, by graph and stream"),
    ("/events", "records as server-sent events; filter with graph, node, stream, label; resume with last_event_id"),
    (PREDICT, "POST a picture: what a model says of it"),
    ("/graphs", "the graphs, their generations and states"),
    ("/graphs/NAME", "a graph: GET it, PUT a text in its place, DELETE it"),
    ("/graphs/NAME/plan", "how a graph runs"),
    ("/graphs/NAME/check", "POST a text: what is wrong with it"),
    ("/streams", "the streams; POST adds one to a source of a graph"),
    ("/streams/ID", "a stream: its states, counts and last result; DELETE stops it"),
    ("/streams/check", "POST a URL: whether it shows a picture"),
    (push::FRAMES, "POST a picture into a stream; with wait=true, its record"),
    (READY, "POST by MediaMTX: a path begins, so its stream starts"),
    (NOT_READY, "POST by MediaMTX: a path ends, and its stream"),
    (push::INFER, "POST frames in base64: the boxes of each"),
    ("/hls/NAME/ID/FILE", "a stream as HTTP Live Streaming: index.m3u8 of a graph and a stream, and what it lists"),
    (OPENAPI, "these routes for programs: what they take and answer"),
    ("/docs", "the same, to read"),
    (LOGIN, "for browsers: POST a key, and get a cookie"),
    (LOGOUT, "for browsers: POST to forget the key"),
];

/// How long a request waits for a picture of a stream that gives none; then it gets the last one.
const PREVIEW_PATIENCE: Duration = Duration::from_millis(1500);

const FILTERS: [&str; 5] = ["graph", "node", "stream", "label", "last_event_id"];

/// Methods that every path takes, as the `Allow` header has them.
const METHODS: &str = "GET, HEAD, OPTIONS";

/// The form of [`LOGIN`] has a key in it and little else.
const LARGEST_LOGIN: u64 = 4 << 10;

#[derive(Serialize)]
struct Stats {
    #[serde(flatten)]
    report: Report,
    events: EventReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    predict: Option<PredictReport>,
}

/// A request that cannot be answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub error: String,
    pub hint: String,
}

impl Refusal {
    pub fn new(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Refusal {
        Refusal { status, error: error.into(), hint: hint.into() }
    }
}

impl Routes {
    /// Answers one request of somebody at `peer`.
    pub async fn respond(&self, mut request: Request<Incoming>, peer: IpAddr) -> Answer {
        let path = request.uri().path();
        let Admission { result, standing } = self.guard.admit(request.method(), path, request.headers(), peer);
        let mut answer = match result {
            Ok(()) => self.route(request, peer).await,
            Err(refusal) => {
                let answer = self.refused(refusal, &request);
                body::throw_away(&mut request).await;
                self.finish(answer, false, METHODS)
            }
        };
        if let Some(standing) = standing {
            standing.stamp(&mut answer);
        }
        answer
    }

    /// What is said to whoever may not ask: a browser without a key gets the form for it.
    fn refused(&self, refusal: Refusal, request: &Request<Incoming>) -> Answer {
        let is_unknown = refusal.status == StatusCode::UNAUTHORIZED;
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let mut answer = if is_unknown && reads && page::is_wanted(request.headers()) {
            page::login(refusal.status, None)
        } else {
            refusal.answer()
        };
        if is_unknown {
            let scheme = HeaderValue::from_static("Bearer realm=\"engine\"");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if request.method() == Method::HEAD {
            without_body(&mut answer);
        }
        answer
    }

    async fn route(&self, mut request: Request<Incoming>, peer: IpAddr) -> Answer {
        let path = request.uri().path().to_owned();
        if let LOGIN | LOGOUT = &*path {
            let is_options = request.method() == Method::OPTIONS;
            let methods = if path == LOGIN { "GET, HEAD, POST, OPTIONS" } else { "POST, OPTIONS" };
            let answer = self.sign(&path, &mut request, peer, methods).await;
            return self.finish(answer, is_options, methods);
        }
        if let (Some(live), Some(target)) = (&self.live, Target::of(&path)) {
            let mut answer = live.answer(target, &mut request).await;
            if request.method() == Method::HEAD {
                without_body(&mut answer);
            }
            let answer = self.finish(answer, request.method() == Method::OPTIONS, target.methods());
            return self.private(answer);
        }
        match &self.predict {
            Some(predict) if request.uri().path() == PREDICT => {
                let is_options = request.method() == Method::OPTIONS;
                let answer = predict.answer(request).await;
                self.finish(answer, is_options, predict::METHODS)
            }
            _ => self.answer(&request).await,
        }
    }

    /// A browser shows a key, or forgets it.
    async fn sign(&self, path: &str, request: &mut Request<Incoming>, peer: IpAddr, methods: &str) -> Answer {
        let method = request.method().clone();
        if !self.guard.has_keys() && method != Method::OPTIONS {
            let hint = "nothing is to be shown; `engine key` makes a key";
            return Refusal::new(StatusCode::NOT_FOUND, "this engine asks for no key", hint).answer();
        }
        let to_the_page = |cookie: Option<HeaderValue>| {
            let mut answer = empty(StatusCode::SEE_OTHER);
            // Relative, so that it leads to the page behind a proxy too.
            answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static("./"));
            answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            if let Some(cookie) = cookie {
                answer.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            answer
        };
        match (path, method) {
            (_, Method::OPTIONS) => empty(StatusCode::NO_CONTENT),
            (LOGIN, Method::GET) => page::login(StatusCode::OK, None),
            (LOGIN, Method::HEAD) => {
                let mut answer = page::login(StatusCode::OK, None);
                without_body(&mut answer);
                answer
            }
            (LOGIN, Method::POST) => {
                let form = match body::read(request.body_mut(), LARGEST_LOGIN).await {
                    Ok(form) => form,
                    Err(refusal) => return refusal.answer(),
                };
                let Some((_, key)) = form_urlencoded::parse(&form).find(|(name, _)| name == "key") else {
                    let hint = "send a form with `key=KEY`; programs send `Authorization: Bearer KEY` instead";
                    return Refusal::new(StatusCode::BAD_REQUEST, "the form has no `key`", hint).answer();
                };
                match self.guard.login(&key, peer) {
                    Ok(cookie) => to_the_page(Some(cookie)),
                    Err(Admission { result, standing }) => {
                        let Err(refusal) = result else { return to_the_page(None) };
                        let mut answer = match page::is_wanted(request.headers()) {
                            true => page::login(refusal.status, Some(&refusal.error)),
                            false => refusal.answer(),
                        };
                        if let Some(standing) = standing {
                            standing.stamp(&mut answer);
                        }
                        answer
                    }
                }
            }
            (LOGOUT, Method::POST) => to_the_page(self.guard.logout(request.headers())),
            (_, method) => Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{method} is not answered here"),
                format!("use one of {methods}"),
            )
            .answer(),
        }
    }

    /// Answers one request; what it carries as a body is not read.
    async fn answer<B: Sync>(&self, request: &Request<B>) -> Answer {
        let mut answer = match *request.method() {
            Method::GET | Method::HEAD => self.get(request).await,
            Method::OPTIONS => Ok(empty(StatusCode::NO_CONTENT)),
            _ => Err(Refusal {
                status: StatusCode::METHOD_NOT_ALLOWED,
                error: format!("{} is not answered here", request.method()),
                hint: format!("use one of {METHODS}"),
            }),
        }
        .unwrap_or_else(Refusal::answer);

        if request.method() == Method::HEAD {
            without_body(&mut answer);
        }
        let answer = self.finish(answer, request.method() == Method::OPTIONS, METHODS);
        if request.uri().path() == PREVIEW { self.private(answer) } else { answer }
    }

    /// Any page may read counts where `*` is allowed, but what a camera sees, and how graphs are configured, only a page
    /// that is named.
    fn private(&self, mut answer: Answer) -> Answer {
        if self.allow_origin.as_ref().is_some_and(|origin| origin == "*") {
            answer.headers_mut().remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        }
        answer
    }

    /// What every answer of a path with these methods tells.
    fn finish(&self, mut answer: Answer, is_options: bool, methods: &'static str) -> Answer {
        let status = answer.status();
        let headers = answer.headers_mut();
        if status == StatusCode::METHOD_NOT_ALLOWED || is_options {
            headers.insert(header::ALLOW, HeaderValue::from_static(methods));
        }
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(origin) = &self.allow_origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            if is_options {
                headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
                let allowed = HeaderValue::from_static(
                    "last-event-id, content-type, if-match, if-none-match, if-range, range, authorization, x-api-key",
                );
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
            }
        }
        answer
    }

    async fn get<B: Sync>(&self, request: &Request<B>) -> Result<Answer, Refusal> {
        let path = request.uri().path();
        match path {
            "/" if !page::is_wanted(request.headers()) => {
                let routes: serde_json::Map<_, _> =
                    PATHS.iter().map(|(path, about)| ((*path).to_owned(), (*about).into())).collect();
                let mut answer = json(StatusCode::OK, &serde_json::json!({ "name": "engine", "routes": routes }));
                answer.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
                Ok(answer)
            }
            "/health" => {
                let health = self.observe.health();
                Ok(json(if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &health))
            }
            "/health/live" => Ok(json(StatusCode::OK, &serde_json::json!({ "ok": true, "status": "live" }))),
            "/health/ready" => {
                let status = self.observe.health().status;
                let ready = !matches!(status, "starting" | "draining");
                let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                Ok(json(code, &serde_json::json!({ "ok": ready, "status": status })))
            }
            "/stats" => {
                let (report, events) = (self.observe.report(), self.hub.report());
                let predict = self.predict.as_ref().map(Predict::report);
                Ok(json(StatusCode::OK, &Stats { report, events, predict }))
            }
            "/metrics" => self.metrics(),
            OPENAPI => {
                let mut answer = Response::new(Full::from(DOCUMENT).boxed_unsync());
                let headers = answer.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
                Ok(answer)
            }
            "/events" => self.events(request),
            PREVIEW => self.preview(request.uri().query().unwrap_or_default()).await,
            _ => page::file(path, request.headers()).ok_or_else(|| Refusal {
                status: StatusCode::NOT_FOUND,
                error: format!("nothing is at `{path}`"),
                hint: match nearest(path, PATHS.iter().map(|(path, _)| *path)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "`/` lists what there is".to_owned(),
                },
            }),
        }
    }

    fn metrics(&self) -> Result<Answer, Refusal> {
        let page = metrics::page(self.observe.report(), self.hub.report(), self.predict.as_ref().map(Predict::report))
            .map_err(|error| Refusal {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                error: format!("the metrics cannot be written: {error}"),
                hint: "`/stats` has the same counts".to_owned(),
            })?;
        let mut answer = Response::new(Full::from(page).boxed_unsync());
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(answer)
    }

    /// The next picture of a stream, encoded on a thread that may block.
    async fn preview(&self, query: &str) -> Result<Answer, Refusal> {
        let (graph, stream) = looked_at(query)?;
        let slot = self.observe.preview(&graph, &stream).ok_or_else(|| Refusal {
            status: StatusCode::NOT_FOUND,
            error: format!("there is no stream `{stream}` in a graph `{graph}`"),
            hint: "`/stats` names the graphs and their streams".to_owned(),
        })?;
        let unavailable = |error: String, hint: &str| Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            error: format!("graph `{graph}`, stream `{stream}`: {error}"),
            hint: hint.to_owned(),
        };
        let preview = slot.next(PREVIEW_PATIENCE).await.ok_or_else(|| {
            unavailable("there is no picture yet".to_owned(), "ask again; `/stats` says how the stream is doing")
        })?;
        let encoding = {
            let preview = preview.clone();
            tokio::task::spawn_blocking(move || preview.jpeg())
        };
        let file = encoding
            .await
            .map_err(|_| unavailable("the engine is stopping".to_owned(), "ask again when it runs"))?
            .map_err(|error| unavailable(error, "the stream itself goes on; only its preview is missing"))?;
        let mut answer = Response::new(Full::from(file).boxed_unsync());
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("image/jpeg"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
        headers.insert("x-picture-seq", preview.seq.into());
        headers.insert("x-picture-width", preview.width.into());
        headers.insert("x-picture-height", preview.height.into());
        let told = HeaderValue::from_static("x-picture-seq, x-picture-width, x-picture-height");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, told);
        Ok(answer)
    }

    fn events<B>(&self, request: &Request<B>) -> Result<Answer, Refusal> {
        let (filter, last_id) = listening(request.uri().query().unwrap_or_default(), request.headers())?;
        let mut answer = if request.method() == Method::HEAD {
            empty(StatusCode::OK)
        } else {
            if self.hub.report().subscribers >= self.max_subscribers {
                return Err(Refusal {
                    status: StatusCode::SERVICE_UNAVAILABLE,
                    error: format!("{} subscribers listen already", self.max_subscribers),
                    hint: "close one of them, or try again later".to_owned(),
                });
            }
            let subscription = self.hub.subscribe(filter, last_id.as_deref()).ok_or_else(|| Refusal {
                status: StatusCode::SERVICE_UNAVAILABLE,
                error: "the engine is stopping".to_owned(),
                hint: "connect again once it has been started again".to_owned(),
            })?;
            Response::new(Events::new(subscription, self.heartbeat).boxed_unsync())
        };
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // nginx would collect events in its buffer.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        Ok(answer)
    }
}

/// What a subscriber asks for, from its query and headers. The header wins: a browser that reconnects sends it, with
/// the query that it was opened with.
fn listening(query: &str, headers: &HeaderMap) -> Result<(Filter, Option<String>), Refusal> {
    let mut filter = Filter::default();
    let mut last_id = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let wanted = match &*name {
            "graph" => &mut filter.graphs,
            "node" => &mut filter.nodes,
            "stream" => &mut filter.streams,
            "label" => &mut filter.labels,
            "last_event_id" => {
                last_id = Some(value.into_owned()).filter(|id| !id.trim().is_empty());
                continue;
            }
            _ => {
                return Err(Refusal {
                    status: StatusCode::BAD_REQUEST,
                    error: format!("`/events` has no filter `{name}`"),
                    hint: match nearest(&name, FILTERS.into_iter()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("use some of {}", FILTERS.join(", ")),
                    },
                });
            }
        };
        wanted.extend(value.split(',').map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned));
    }
    if let Some(id) = headers.get("last-event-id") {
        // An empty one says that nothing was heard yet.
        let id = String::from_utf8_lossy(id.as_bytes()).trim().to_owned();
        last_id = Some(id).filter(|id| !id.is_empty()).or(last_id);
    }
    Ok((filter, last_id))
}

/// The graph and the stream that a query for a preview names.
fn looked_at(query: &str) -> Result<(String, String), Refusal> {
    let (mut graph, mut stream) = (None, None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "graph" => graph = Some(value.into_owned()),
            "stream" => stream = Some(value.into_owned()),
            _ => {
                return Err(Refusal {
                    status: StatusCode::BAD_REQUEST,
                    error: format!("`/preview` has no parameter `{name}`"),
                    hint: "write `/preview?graph=GRAPH&stream=STREAM`".to_owned(),
                });
            }
        }
    }
    graph.zip(stream).ok_or_else(|| Refusal {
        status: StatusCode::BAD_REQUEST,
        error: "`/preview` needs a graph and a stream".to_owned(),
        hint: "write `/preview?graph=GRAPH&stream=STREAM`; `/stats` names them".to_owned(),
    })
}

/// The candidate that somebody who wrote `text` may have meant.
pub(super) fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(text, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

impl Refusal {
    pub fn answer(self) -> Answer {
        json(self.status, &serde_json::json!({ "error": self.error, "hint": self.hint }))
    }
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let (status, mut text) = match serde_json::to_string(value) {
        Ok(text) => (status, text),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            let text = r#"{"error":"the answer cannot be written as JSON","hint":"look into the log"}"#;
            (StatusCode::INTERNAL_SERVER_ERROR, text.to_owned())
        }
    };
    text.push('\n');
    let mut answer = Response::new(Full::from(text).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// What `HEAD` gets of an answer to `GET`.
fn without_body(answer: &mut Answer) {
    let length = hyper::body::Body::size_hint(answer.body()).exact();
    *answer.body_mut() = Empty::new().boxed_unsync();
    if let Some(length) = length {
        answer.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
}

pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Empty::new().boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// The body of `/events`: what a subscription yields, and heartbeats while it yields nothing.
struct Events {
    subscription: Subscription,
    heartbeat: Pin<Box<tokio::time::Sleep>>,
    every: Duration,
    started: bool,
}

impl Events {
    fn new(subscription: Subscription, every: Duration) -> Events {
        Events { subscription, heartbeat: Box::pin(tokio::time::sleep(every)), every, started: false }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.subscription.poll_next(context) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(bytes)) => bytes,
            // At once, so that the subscriber knows that it is listened to.
            Poll::Pending if !self.started => Bytes::from_static(b": listening\n\n"),
            Poll::Pending => match self.heartbeat.as_mut().poll(context) {
                Poll::Ready(()) => self.subscription.heartbeat(),
                Poll::Pending => return Poll::Pending,
            },
        };
        self.started = true;
        let next = tokio::time::Instant::now() + self.every;
        self.heartbeat.as_mut().reset(next);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_every_path_and_no_other() {
        let page = include_str!("../../docs/http.md");
        let documented = page.lines().filter_map(|line| {
            // Of several methods, the last one stands with the path.
            let (method, path) = line.strip_prefix("| `")?.split_once("` |")?.0.rsplit('`').next()?.split_once(' ')?;
            method.chars().all(|letter| letter.is_ascii_uppercase()).then_some(path)
        });
        let documented: Vec<&str> = documented.collect();
        assert_eq!(documented, PATHS.map(|(path, _)| path));
    }

    #[test]
    fn the_document_for_programs_has_every_path_and_no_other() {
        let document: serde_json::Value = serde_json::from_str(DOCUMENT).unwrap();
        let described: std::collections::BTreeSet<&str> =
            document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let known: Vec<String> = PATHS
            .iter()
            .map(|(path, _)| path.replace("NAME", "{name}").replace("ID", "{id}").replace("FILE", "{file}"))
            .collect();
        assert_eq!(described, known.iter().map(String::as_str).collect());
    }

    #[test]
    fn filters_are_lists_or_repeated() {
        let (filter, last_id) =
            listening("graph=yard&stream=a,b&stream=c&label=traffic%20light&last_event_id=5f.7", &HeaderMap::new())
                .unwrap();
        assert_eq!(filter.graphs, ["yard"]);
        assert_eq!(filter.streams, ["a", "b", "c"]);
        assert_eq!(filter.labels, ["traffic light"]);
        assert_eq!(filter.nodes, [""; 0]);
        assert_eq!(last_id.as_deref(), Some("5f.7"));
    }

    #[test]
    fn the_header_of_a_reconnecting_browser_wins() {
        let headers = HeaderMap::from_iter([(
            header::HeaderName::from_static("last-event-id"),
            HeaderValue::from_static("5f.9"),
        )]);
        assert_eq!(listening("last_event_id=5f.7", &headers).unwrap().1.as_deref(), Some("5f.9"));
    }

    #[test]
    fn a_preview_names_a_graph_and_a_stream() {
        assert_eq!(looked_at("stream=a&graph=yard").unwrap(), ("yard".to_owned(), "a".to_owned()));
        for wrong in ["", "graph=yard", "stream=a", "graph=yard&stream=a&size=2"] {
            assert_eq!(looked_at(wrong).unwrap_err().status, StatusCode::BAD_REQUEST, "{wrong}");
        }
    }

    #[test]
    fn an_unknown_filter_is_refused_with_the_one_that_was_meant() {
        let refusal = listening("steam=a", &HeaderMap::new()).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        assert_eq!(refusal.hint, "did you mean `stream`?");
        let refusal = listening("colour=red", &HeaderMap::new()).unwrap_err();
        assert!(refusal.hint.starts_with("use some of graph, node"), "{}", refusal.hint);
    }
}
