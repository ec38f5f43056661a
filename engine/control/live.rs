//! Graphs and streams that change while everything runs: which route is meant, who may use it, and what every answer of
//! these routes has.
//!
//! Whatever changes something is done on a thread of its own ([`super::work`]): loading a model takes long.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tokio::sync::Semaphore;

use super::events::EventHub;
use super::push::{self, Push, PushLimits};
use super::routes::{Answer, Refusal, empty};
use super::work::Work;
use super::{graphs, hls, mediamtx, streams};
use crate::runtime::graphs::Graphs;

/// Graphs and streams are loaded, added and removed by so many requests at once; most of them wait for each other.
const CHANGES: usize = 16;
/// Inputs that are looked at by `/streams/check` at once.
const LOOKS: usize = 4;

/// Texts of graphs that are received or worked on at once: what they take together is bounded by that.
pub(super) const TEXTS: usize = 2 * CHANGES;

/// What these routes need to answer.
pub(super) struct Live {
    pub graphs: Arc<Graphs>,
    pub hub: Arc<EventHub>,
    pub changes: Work,
    pub looks: Work,
    pub texts: Arc<Semaphore>,
    pub push: Push,
    /// The one origin beside this server whose pages may change anything.
    origin: Option<HeaderValue>,
}

/// What a MediaMTX server calls when a path begins, and when it ends.
pub(super) const READY: &str = "/v1/mediamtx/events/ready";
pub(super) const NOT_READY: &str = "/v1/mediamtx/events/not-ready";

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    Graphs,
    Graph(&'a str),
    Plan(&'a str),
    Check(&'a str),
    Streams,
    Stream(&'a str),
    Frames(&'a str),
    Infer,
    Ready,
    NotReady,
    /// A graph, a stream, and a file of what is published of it.
    Hls(&'a str, &'a str, &'a str),
}

impl<'a> Target<'a> {
    pub fn of(path: &'a str) -> Option<Target<'a>> {
        match path {
            READY => return Some(Target::Ready),
            NOT_READY => return Some(Target::NotReady),
            _ => {}
        }
        let mut parts = path.strip_prefix('/')?.split('/');
        let target = (parts.next()?, parts.next(), parts.next());
        let (fourth, rest) = (parts.next(), parts.next());
        if let (("hls", Some(graph), Some(stream)), Some(file), None) = (target, fourth, rest)
            && ![graph, stream, file].contains(&"")
        {
            return Some(Target::Hls(graph, stream, file));
        }
        if fourth.is_some() {
            return None;
        }
        match target {
            ("graphs", None, None) => Some(Target::Graphs),
            ("graphs", Some(name), None) if !name.is_empty() => Some(Target::Graph(name)),
            ("graphs", Some(name), Some("plan")) => Some(Target::Plan(name)),
            ("graphs", Some(name), Some("check")) => Some(Target::Check(name)),
            ("streams", None, None) => Some(Target::Streams),
            ("streams", Some(id), None) if !id.is_empty() => Some(Target::Stream(id)),
            ("streams", Some(id), Some("frames")) if !id.is_empty() => Some(Target::Frames(id)),
            ("infer", None, None) => Some(Target::Infer),
            _ => None,
        }
    }

    /// As the `Allow` header has them.
    pub fn methods(self) -> &'static str {
        match self {
            Target::Graphs | Target::Plan(_) | Target::Hls(..) => "GET, HEAD, OPTIONS",
            Target::Graph(_) => "GET, HEAD, PUT, DELETE, OPTIONS",
            Target::Check(_) | Target::Frames(_) | Target::Infer | Target::Ready | Target::NotReady => "POST, OPTIONS",
            Target::Streams => "GET, HEAD, POST, OPTIONS",
            Target::Stream("check") => "GET, HEAD, POST, DELETE, OPTIONS",
            Target::Stream(_) => "GET, HEAD, DELETE, OPTIONS",
        }
    }
}

impl Live {
    pub fn new(graphs: Arc<Graphs>, hub: Arc<EventHub>, allow_origin: Option<&HeaderValue>) -> Live {
        let origin = allow_origin.filter(|origin| *origin != "*").cloned();
        let push = Push::new(graphs.inlets(), graphs.clone(), PushLimits::default());
        let (changes, looks) = (Work::new("changes", CHANGES), Work::new("looks", LOOKS));
        Live { graphs, hub, changes, looks, texts: Arc::new(Semaphore::new(TEXTS)), push, origin }
    }

    pub async fn answer(&self, target: Target<'_>, request: &mut Request<Incoming>) -> Answer {
        let answered = self.attempt(target, request).await;
        let mut answer = answered.unwrap_or_else(Refusal::answer);
        if matches!(answer.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }

    async fn attempt(&self, target: Target<'_>, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
        let method = request.method().clone();
        let reads = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS);
        if !reads && let Some(origin) = self.foreign(request.headers()) {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                format!("a page of `{}` may change nothing here", origin.escape_debug()),
                "use a page that this engine serves, or a program that is no browser",
            ));
        }
        match (&method, target) {
            (&Method::OPTIONS, _) => Ok(empty(StatusCode::NO_CONTENT)),
            (&Method::GET | &Method::HEAD, Target::Graphs) => Ok(graphs::list(self)),
            (&Method::GET | &Method::HEAD, Target::Graph(name)) => graphs::get(self, name, request.headers()),
            (&Method::GET | &Method::HEAD, Target::Plan(name)) => graphs::plan(self, name, request.headers()),
            (&Method::PUT, Target::Graph(name)) => graphs::put(self, name, request).await,
            (&Method::DELETE, Target::Graph(name)) => graphs::delete(self, name, request.headers()).await,
            (&Method::POST, Target::Check(name)) => graphs::check(self, name, request).await,
            (&Method::GET | &Method::HEAD, Target::Streams) => streams::list(self, request.uri().query()),
            (&Method::POST, Target::Streams) => streams::add(self, request).await,
            (&Method::POST, Target::Stream("check")) => streams::check(self, request).await,
            (&Method::GET | &Method::HEAD, Target::Stream(id)) => streams::get(self, id),
            (&Method::DELETE, Target::Stream(id)) => streams::remove(self, id).await,
            (&Method::GET | &Method::HEAD, Target::Hls(graph, stream, file)) => {
                hls::get(self, (graph, stream, file), request).await
            }
            (&Method::POST, Target::Frames(id)) => push::frame(&self.push, id, request).await,
            (&Method::POST, Target::Infer) => push::infer(&self.push, request).await,
            (&Method::POST, Target::Ready) => mediamtx::ready(self, request).await,
            (&Method::POST, Target::NotReady) => mediamtx::not_ready(self, request).await,
            _ => Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{method} is not answered here"),
                format!("use one of {}", target.methods()),
            )),
        }
    }

    /// The origin of the page that sends this request, where it is neither this server's own nor the one that may.
    /// Browsers name it with every request that could change something; other programs name none.
    fn foreign(&self, headers: &HeaderMap) -> Option<String> {
        let origin = headers.get(header::ORIGIN)?;
        if self.origin.as_ref() == Some(origin) {
            return None;
        }
        let text = String::from_utf8_lossy(origin.as_bytes()).into_owned();
        let host = headers.get(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
        let is_own = text.split_once("://").is_some_and(|(_, authority)| host.is_some_and(|host| host == authority));
        (!is_own).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_graphs_and_streams() {
        for (path, target) in [
            ("/graphs", Some(Target::Graphs)),
            ("/graphs/", None),
            ("/graphs/door", Some(Target::Graph("door"))),
            ("/graphs/door/plan", Some(Target::Plan("door"))),
            ("/graphs/door/check", Some(Target::Check("door"))),
            ("/graphs/door/plan/x", None),
            ("/graphs/door/x", None),
            ("/streams", Some(Target::Streams)),
            ("/streams/a.b-c", Some(Target::Stream("a.b-c"))),
            ("/streams/a/frames", Some(Target::Frames("a"))),
            ("/streams//frames", None),
            ("/infer", Some(Target::Infer)),
            ("/infer/a", None),
            ("/hls/yard/door/index.m3u8", Some(Target::Hls("yard", "door", "index.m3u8"))),
            ("/hls/yard/door", None),
            ("/hls/yard/door/", None),
            ("/hls/yard//index.m3u8", None),
            ("/hls/yard/door/a/b", None),
            (READY, Some(Target::Ready)),
            (NOT_READY, Some(Target::NotReady)),
            ("/v1/mediamtx/events/other", None),
            ("/graph", None),
            ("/", None),
        ] {
            assert_eq!(Target::of(path), target, "{path}");
        }
    }
}
