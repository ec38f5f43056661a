//! `/streams`: lists, shows, adds and removes streams while everything runs, and looks at inputs that may become some.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use operators::address::{Address, masked};
use operators::clock::{Clock, SystemClock};
use operators::config::parse_duration;
use operators::error::{FieldError, StartError};
use operators::item::StreamId;
use operators::media::gate;
use operators::sources::probe::{Look, Probe, ProbedFormat, probe};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::live::Live;
use super::routes::{Answer, Refusal, json, nearest};
use super::{body, hls};
use crate::graph::permission::forbidden_address;
use crate::graph::references::References;
use crate::runtime::graph_streams::Removal;
use crate::runtime::stats::StreamView;
use crate::runtime::streams::{PostedStream, StreamError};

/// Bytes of a request that describes a stream.
const LARGEST_BODY: u64 = 64 << 10;
/// How long a stream that is removed may take to end before the answer says that it still does.
const REMOVAL: Duration = Duration::from_secs(5);
/// How long an input may take to be opened, and to show a picture, where a check does not say it.
const LOOK: Duration = Duration::from_secs(10);
const LONGEST_LOOK: Duration = Duration::from_secs(60);

/// What `POST /streams` takes. Everything else in it is what `streams.ID` of the source's table would say.
#[derive(Debug, Deserialize)]
struct Wanted {
    graph: String,
    source: String,
    id: String,
    #[serde(flatten)]
    own: Map<String, Value>,
}

/// What `POST /streams/check` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    url: String,
    /// How RTSP carries media: `tcp` or `udp`.
    transport: Option<String>,
    timeout: Option<String>,
}

/// `GET /streams`: all streams, those apart that were added while their graph ran. `?graph=` names one graph.
pub(super) fn list(live: &Live, query: Option<&str>) -> Result<Answer, Refusal> {
    let wanted = wanted_graph(query.unwrap_or_default())?;
    let (mut declared, mut posted) = (Vec::new(), Vec::new());
    for (graph, view) in live.graphs.streams() {
        if wanted.as_ref().is_some_and(|wanted| **wanted != *graph) {
            continue;
        }
        let report = &view.report;
        let line = json!({
            "stream": report.stream,
            "graph": graph,
            "source": report.source,
            "location": report.location,
            "state": report.state,
            "since": view.history.last().map(|moment| &moment.since),
            "reason": report.reason,
            "read": report.counts.read,
            "delivered": report.counts.delivered,
        });
        if view.posted { posted.push(line) } else { declared.push(line) }
    }
    Ok(json(StatusCode::OK, &json!({ "declared": declared, "posted": posted })))
}

/// `GET /streams/ID`: everything about one stream.
pub(super) fn get(live: &Live, id: &str) -> Result<Answer, Refusal> {
    let (graph, view) = live.graphs.stream(id).ok_or_else(|| unknown(live, id))?;
    let mut body = described(&graph, &view);
    body.insert("last_result".to_owned(), json!(live.hub.latest_result(&graph, id)));
    if let Some(url) = hls::published(live, &graph, id) {
        if let Some(public) = live.graphs.playlists().tunnels.url() {
            body.insert("public_url".to_owned(), format!("{public}{url}").into());
        }
        body.insert("hls_url".to_owned(), url.into());
    }
    Ok(json(StatusCode::OK, &body))
}

/// `POST /streams`: adds a stream to a source of a running graph.
pub(super) async fn add(live: &Live, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    let body = body::read(request.body_mut(), LARGEST_BODY).await?;
    let wanted: Wanted = read(
        &body,
        "write it like {\"graph\": \"door\", \"source\": \"cameras\", \"id\": \"yard\", \"url\": \"rtsp://10.0.0.8/main\"}",
    )?;
    let id = StreamId::new(&wanted.id).ok_or_else(|| {
        let message = format!("`{}` cannot be the name of a stream", wanted.id.escape_debug());
        Refusal::new(StatusCode::BAD_REQUEST, message, "use 1 to 128 of `A-Z a-z 0-9 _ . -`")
    })?;
    let own = own(wanted.own)?;
    let references = live.graphs.references().clone();
    let posted = PostedStream { source: wanted.source.into(), own, references };
    let (graphs, graph, name) = (live.graphs.clone(), wanted.graph.clone(), id.clone());
    let added = live.changes.run(move || graphs.add_stream(&graph, &name, posted)).await?;
    match added {
        Ok(view) => Ok(json(StatusCode::CREATED, &described(&wanted.graph, &view))),
        Err(error) => Ok(not_added(&id, error)),
    }
}

/// `DELETE /streams/ID`: stops a stream, in whatever state it is.
pub(super) async fn remove(live: &Live, id: &str) -> Result<Answer, Refusal> {
    let (graphs, wanted) = (live.graphs.clone(), id.to_owned());
    match live.changes.run(move || graphs.remove_stream(&wanted, REMOVAL)).await? {
        Ok(Removal::Done) => Ok(json(StatusCode::OK, &json!({ "stream": id, "state": "stopped" }))),
        Ok(Removal::UnderWay) => {
            let hint = "it ends when what it has in hand is taken; `GET` says how it stands";
            Ok(json(StatusCode::ACCEPTED, &json!({ "stream": id, "state": "stopping", "hint": hint })))
        }
        Err(StreamError::NoStream) => Err(unknown(live, id)),
        Err(error) => Err(Refusal::new(StatusCode::CONFLICT, error.to_string(), "try again")),
    }
}

/// `POST /streams/check`: whether an input shows a picture, and how soon.
pub(super) async fn check(live: &Live, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    let body = body::read(request.body_mut(), LARGEST_BODY).await?;
    let asked: Asked = read(&body, "write it like {\"url\": \"rtsp://10.0.0.8/main\", \"timeout\": \"5s\"}")?;
    let look = look(asked, live.graphs.references())?;
    let hosts = live.graphs.references().hosts();
    let shown = masked(&look.input);
    let (found, took) = live
        .looks
        .run(move || {
            gate::enter(hosts);
            let begun = SystemClock.now();
            let found = probe(&look, &SystemClock);
            (found, SystemClock.now().saturating_duration_since(begun))
        })
        .await?;
    Ok(json(StatusCode::OK, &seen(&shown, took, found.as_ref())))
}

fn look(asked: Asked, references: &References) -> Result<Look, Refusal> {
    let bad = |error: String, hint: &str| Refusal::new(StatusCode::BAD_REQUEST, error, hint);
    let address = Address::parse(&asked.url).filter(|address| !address.scheme.eq_ignore_ascii_case("file"));
    let Some(address) = address else {
        return Err(bad("`url` is no URL with a host".to_owned(), "write it like \"rtsp://10.0.0.8/main\""));
    };
    if asked.url.contains(|c: char| c.is_whitespace() || c.is_control()) {
        // Where a URL ends that has such a thing in it, and with it its credentials, nobody knows.
        let hint = "write a space as `%20`; in a password too";
        return Err(bad("`url` has white space in it".to_owned(), hint));
    }
    if let Some((message, hint)) = forbidden_address(&address, &asked.url, references) {
        return Err(Refusal::new(StatusCode::FORBIDDEN, message, hint));
    }
    let timeout = match asked.timeout.as_deref().map(parse_duration).transpose() {
        Ok(timeout) => timeout.unwrap_or(LOOK),
        Err(error) => return Err(bad(error, "write a time up to a minute, such as \"5s\"")),
    };
    if timeout.is_zero() || timeout > LONGEST_LOOK {
        return Err(bad("`timeout` is out of range".to_owned(), "write a time up to a minute, such as \"5s\""));
    }
    let udp = match asked.transport.as_deref() {
        None | Some("tcp") => false,
        Some("udp") => true,
        Some(_) => return Err(bad("`transport` is `tcp` or `udp`".to_owned(), "leave it out for `tcp`")),
    };
    Ok(Look { input: asked.url, udp, timeout, watch: timeout, one_picture: true })
}

/// What was seen of an input.
fn seen(url: &str, took: Duration, found: Result<&Probe, &StartError>) -> Value {
    let milliseconds = took.as_secs_f64() * 1000.0;
    match found {
        Ok(found) => {
            let size = found.tracks.iter().find_map(|track| match track.format {
                ProbedFormat::Video { width, height, .. } if track.index == found.video.track => Some((width, height)),
                _ => None,
            });
            let (width, height) = size.unzip();
            json!({ "ok": true, "url": url, "width": width, "height": height, "milliseconds": milliseconds })
        }
        Err(StartError { message, hint }) => {
            json!({ "ok": false, "url": url, "error": message, "hint": hint, "milliseconds": milliseconds })
        }
    }
}

fn described(graph: &str, view: &StreamView) -> Map<String, Value> {
    let mut body = match serde_json::to_value(view) {
        Ok(Value::Object(body)) => body,
        _ => Map::new(),
    };
    body.insert("graph".to_owned(), graph.into());
    body
}

/// A body of JSON.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8], hint: &str) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("the body is not understood: {error}"), hint.to_owned())
    })
}

/// What a stream says for itself, as a graph file would write it.
fn own(mut own: Map<String, Value>) -> Result<toml::Value, Refusal> {
    let bad = |error: String, hint: &str| Refusal::new(StatusCode::BAD_REQUEST, error, hint);
    if let Some(name) = own.iter().find(|(_, value)| has_reference(value)).map(|(name, _)| name) {
        let message = format!("`{name}` has a reference in it, and references are only resolved in graphs");
        return Err(bad(message, "write the value itself, or declare the stream in the graph"));
    }
    if own.len() == 1
        && let Some(only) = own.remove("url").or_else(|| own.remove("path"))
    {
        // As short as it would be written in a file: the same stream reads the same.
        return toml::Value::try_from(only).map_err(|error| bad(error.to_string(), "write a text"));
    }
    toml::Value::try_from(own)
        .map_err(|error| bad(format!("the settings are not understood: {error}"), "leave out what is `null`"))
}

fn has_reference(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("${"),
        Value::Array(values) => values.iter().any(has_reference),
        Value::Object(values) => values.values().any(has_reference),
        _ => false,
    }
}

pub(super) fn not_added(id: &StreamId, error: StreamError) -> Answer {
    let (status, hint) = match &error {
        StreamError::NoGraph { .. } => (StatusCode::NOT_FOUND, "`/graphs` lists the graphs"),
        StreamError::NoSource { .. } => (StatusCode::NOT_FOUND, "name a source of the graph"),
        StreamError::NoStream => (StatusCode::NOT_FOUND, "`/streams` lists the streams"),
        StreamError::Taken => (StatusCode::CONFLICT, "give it another `id`, or delete the other stream first"),
        StreamError::Leaving => (StatusCode::CONFLICT, "try again when it has ended, or give this one another `id`"),
        StreamError::TooMany { .. } => {
            (StatusCode::TOO_MANY_REQUESTS, "delete streams that are over, or raise `max_streams` of the source")
        }
        StreamError::Mistaken(_) => (StatusCode::BAD_REQUEST, "correct the settings"),
        StreamError::Ending => {
            (StatusCode::CONFLICT, "start the graph again; one of a file waits for streams only with `--stay`")
        }
        StreamError::Refused(_) => (StatusCode::SERVICE_UNAVAILABLE, "look into the log"),
    };
    let message = format!("stream `{id}` is not added: {}", masked(&error.to_string()));
    let mut body = json!({ "error": message, "hint": hint });
    if let StreamError::Mistaken(mistakes) = &error {
        let mistake = |mistake: &FieldError| {
            json!({
                "field": mistake.field,
                "message": masked(&mistake.message),
                "hint": mistake.hint.as_deref().map(masked),
            })
        };
        body["mistakes"] = mistakes.iter().map(mistake).collect();
        if let Some(hint) = mistakes.iter().find_map(|mistake| mistake.hint.as_deref()) {
            body["hint"] = masked(hint).into();
        }
    }
    json(status, &body)
}

fn unknown(live: &Live, id: &str) -> Refusal {
    let known: Vec<String> = live.graphs.streams().into_iter().map(|(_, view)| view.report.stream).collect();
    let hint = match nearest(id, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`/streams` lists what there is".to_owned(),
    };
    Refusal::new(StatusCode::NOT_FOUND, format!("there is no stream `{}`", id.escape_debug()), hint)
}

/// The graph that `?graph=` names.
fn wanted_graph(query: &str) -> Result<Option<String>, Refusal> {
    let mut graph = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name != "graph" {
            let message = format!("`/streams` has no filter `{}`", name.escape_debug());
            return Err(Refusal::new(StatusCode::BAD_REQUEST, message, "write `/streams?graph=GRAPH`"));
        }
        graph = Some(value.into_owned());
    }
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use super::*;
    use operators::reach::Hosts;

    fn settings(text: &str) -> Result<toml::Value, Refusal> {
        own(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn a_stream_says_for_itself_what_a_file_would() {
        assert_eq!(settings(r#"{"url": "rtsp://h/x"}"#).unwrap(), toml::Value::from("rtsp://h/x"));
        assert_eq!(settings(r#"{"path": "a.mp4"}"#).unwrap(), toml::Value::from("a.mp4"));
        assert_eq!(settings("{}").unwrap(), toml::Value::Table(toml::Table::new()));
        let table: toml::Table = "path = \"a.mp4\"\nloop = true\ntracks = [1]\n".parse().unwrap();
        let read = settings(r#"{"path": "a.mp4", "loop": true, "tracks": [1]}"#).unwrap();
        assert_eq!(read, toml::Value::Table(table));
    }

    #[test]
    fn references_are_not_taken_for_values() {
        for text in [r#"{"url": "rtsp://${env.USER}@h/x"}"#, r#"{"path": "a", "deep": [{"x": "${file.a}"}]}"#] {
            assert_eq!(settings(text).unwrap_err().status, StatusCode::BAD_REQUEST, "{text}");
        }
        assert!(settings(r#"{"path": null}"#).is_err());
    }

    #[test]
    fn a_look_has_an_address_and_a_deadline() {
        let asked = |url: &str, timeout: Option<&str>, transport: Option<&str>| {
            let [timeout, transport] = [timeout, transport].map(|text| text.map(str::to_owned));
            let references = References::Only {
                variables: Vec::new(),
                paths: Vec::new(),
                except: Vec::new(),
                hosts: Hosts::Only(vec!["h".parse().unwrap()]),
                tunnel: false,
            };
            look(Asked { url: url.to_owned(), transport, timeout }, &references)
        };
        assert_eq!(asked("rtsp://other/x", None, None).unwrap_err().status, StatusCode::FORBIDDEN);
        let look = asked("rtsp://h/x", Some("3s"), Some("udp")).unwrap();
        assert_eq!((look.timeout, look.watch, look.udp), (Duration::from_secs(3), Duration::from_secs(3), true));
        assert!(asked("rtsp://h/x", None, None).is_ok());
        for (url, timeout, transport) in [
            ("video.mp4", None, None),
            ("file:///etc/passwd", None, None),
            ("file://h/etc/passwd", None, None),
            ("rtsp://h/x", Some("0s"), None),
            ("rtsp://h/x", Some("1h"), None),
            ("rtsp://h/x", Some("soon"), None),
            ("rtsp://h/x", None, Some("pigeon")),
            ("rtsp://admin:top secret@h/x", None, None),
            ("rtsp://h/x\ny", None, None),
        ] {
            assert!(asked(url, timeout, transport).is_err(), "{url} {timeout:?} {transport:?}");
        }
    }

    #[test]
    fn streams_are_listed_of_one_graph() {
        assert_eq!(wanted_graph("").unwrap(), None);
        assert_eq!(wanted_graph("graph=door").unwrap().as_deref(), Some("door"));
        assert_eq!(wanted_graph("grpah=door").unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
