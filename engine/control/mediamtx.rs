//! `POST /v1/mediamtx/events/ready` and `/not-ready`: what a MediaMTX server calls when one of its paths begins and ends.
//!
//! A path that the `hooks` of some source know is a stream of that source, added and removed as `/streams` does it;
//! every other path is skipped. Both may come twice.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use operators::clock::{Clock, SystemClock};
use operators::item::StreamId;
use serde::Deserialize;
use serde_json::json;

use super::body;
use super::live::Live;
use super::routes::{Answer, Refusal, json};
use super::streams::{not_added, read};
use crate::graph::references::References;
use crate::runtime::graph_streams::Removal;
use crate::runtime::graphs::{Graphs, Hooked};
use crate::runtime::streams::{PostedStream, StreamError};

const LARGEST_BODY: u64 = 64 << 10;
const HINT: &str = "write it like {\"path\": \"live/door/in\", \"query\": \"\", \"sourceType\": \"rtmpConn\", \
                    \"sourceId\": \"…\"}";
/// How long a stream that was announced again waits for its end from the time before.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(50);

/// What MediaMTX says. The rest of it is of no use here.
#[derive(Deserialize)]
struct Said {
    path: String,
}

/// What became of a path that is ready.
enum Started {
    Now,
    Before,
    /// Something else is called so.
    Taken(String),
    Refused(StreamError),
}

/// A path begins.
pub(super) async fn ready(live: &Live, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    let Some((hooked, id)) = announced(live, request).await? else { return Ok(skipped("no source reads this path")) };
    let (graphs, wanted) = (live.graphs.clone(), id.clone());
    let (graph, source) = (hooked.graph.clone(), hooked.source.clone());
    match live.changes.run(move || start(&graphs, &hooked, &wanted)).await? {
        Started::Now => Ok(done("started", &id, &graph, &source)),
        Started::Before => Ok(done("running", &id, &graph, &source)),
        Started::Taken(message) => {
            let hint = "give the path another id, or the other stream another name";
            Err(Refusal::new(StatusCode::CONFLICT, message, hint))
        }
        Started::Refused(error) => Ok(not_added(&id, error)),
    }
}

fn start(graphs: &Graphs, hooked: &Hooked, id: &StreamId) -> Started {
    let deadline = SystemClock.now() + PATIENCE;
    loop {
        // The graph itself says where its announced streams are read from.
        let references = References::Anything;
        let posted = PostedStream { source: hooked.source.clone(), own: hooked.hooks.url(id).into(), references };
        match graphs.add_stream(&hooked.graph, id, posted) {
            Ok(_) => return Started::Now,
            Err(StreamError::Leaving) => {}
            Err(StreamError::Taken) => match graphs.stream(id) {
                Some((graph, view)) if graph != hooked.graph || *view.report.source != *hooked.source => {
                    let source = view.report.source;
                    return Started::Taken(format!("`{source}` of graph `{graph}` has a stream `{id}` already"));
                }
                Some((_, view)) if view.posted => return Started::Before,
                Some((graph, _)) => {
                    let source = &hooked.source;
                    return Started::Taken(format!("`{source}` of graph `{graph}` declares a stream `{id}` itself"));
                }
                // Somebody else adds it just now.
                None => {}
            },
            Err(error) => return Started::Refused(error),
        }
        // It was announced before, and is about to end.
        if SystemClock.now() >= deadline {
            return Started::Taken(format!("the stream `{id}` of the time before has not ended within {PATIENCE:?}"));
        }
        SystemClock.wait(deadline, LOOK);
    }
}

/// A path ends.
pub(super) async fn not_ready(live: &Live, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    let Some((hooked, id)) = announced(live, request).await? else { return Ok(skipped("no source reads this path")) };
    let Hooked { graph, source, .. } = &hooked;
    match live.graphs.stream(&id) {
        None => return Ok(done("stopped", &id, graph, source)),
        Some((of, view)) if of != *graph || *view.report.source != **source || !view.posted => {
            return Ok(skipped("the stream was not started by such an event"));
        }
        Some(_) => {}
    }
    let (graphs, wanted) = (live.graphs.clone(), id.clone());
    match live.changes.run(move || graphs.remove_stream(&wanted, PATIENCE)).await? {
        Ok(Removal::Done) | Err(StreamError::NoStream) => Ok(done("stopped", &id, graph, source)),
        Ok(Removal::UnderWay) => Ok(done("stopping", &id, graph, source)),
        Err(error) => Err(Refusal::new(StatusCode::CONFLICT, error.to_string(), "try again")),
    }
}

/// The source and the stream that an event is about; `None` where no source knows the path.
async fn announced(live: &Live, request: &mut Request<Incoming>) -> Result<Option<(Hooked, StreamId)>, Refusal> {
    let body = body::read(request.body_mut(), LARGEST_BODY).await?;
    let said: Said = read(&body, HINT)?;
    for hooked in live.graphs.hooked() {
        match hooked.hooks.stream(&said.path) {
            Some(Ok(id)) => return Ok(Some((hooked, id))),
            Some(Err(text)) => {
                let message = format!("`{}` cannot be the id of a stream", text.escape_debug());
                let hint = "use 1 to 128 of the characters A-Z a-z 0-9 _ . -";
                return Err(Refusal::new(StatusCode::BAD_REQUEST, message, hint));
            }
            None => {}
        }
    }
    Ok(None)
}

fn done(result: &str, id: &StreamId, graph: &str, source: &str) -> Answer {
    json(StatusCode::OK, &json!({ "result": result, "stream": id, "graph": graph, "source": source }))
}

fn skipped(reason: &str) -> Answer {
    json(StatusCode::OK, &json!({ "result": "skipped", "reason": reason }))
}
