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
use crate::graph::diagnostics::listed;
use crate::graph::identity::INPUTS;
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

/// What `POST /streams` takes, beside what `streams.ID` of the source's table would say.
#[derive(Debug)]
struct Wanted {
    graph: String,
    source: String,
    id: StreamId,
    own: toml::Value,
}

/// What `POST /streams/check` takes.
const OF_A_LOOK: [&str; 3] = ["url", "transport", "timeout"];

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
    let settings: Map<String, Value> = read(
        &body,
        "write it like {\"graph\": \"door\", \"source\": \"cameras\", \"id\": \"yard\", \"url\": \"rtsp://10.0.0.8/main\"}",
    )?;
    let references = live.graphs.references().clone();
    let wanted = match wanted(settings, |source| live.graphs.with_source(source)) {
        Ok(wanted) => wanted,
        Err(Unreadable { mut mistakes, rest }) => {
            if let Some(rest) = rest {
                let Wanted { graph, source, id, own } = *rest;
                let (graphs, posted) = (live.graphs.clone(), PostedStream { source: source.into(), own, references });
                let whole = format!("streams.{id}");
                let further = live.changes.run(move || graphs.stream_mistakes(&graph, &id, posted)).await?;
                // An input that cannot be read is not missing on top.
                let has_input = mistakes.iter().any(|mistake| INPUTS.contains(&&*mistake.field));
                mistakes.extend(further.into_iter().filter(|found| !has_input || found.field != whole));
            }
            return Ok(mistaken("the stream is not added", &mistakes));
        }
    };
    let Wanted { graph, source, id, own } = wanted;
    let posted = PostedStream { source: source.into(), own, references };
    let (graphs, of, name) = (live.graphs.clone(), graph.clone(), id.clone());
    let added = live.changes.run(move || graphs.add_stream(&of, &name, posted)).await?;
    match added {
        Ok(view) => Ok(json(StatusCode::CREATED, &described(&graph, &view))),
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
    let asked = read(&body, "write it like {\"url\": \"rtsp://10.0.0.8/main\", \"timeout\": \"5s\"}")?;
    let look = match look(&asked, live.graphs.references()) {
        Ok(look) => look,
        Err(NoLook::Mistaken(mistakes)) => return Ok(mistaken("nothing is opened", &mistakes)),
        Err(NoLook::Forbidden(refusal)) => return Err(refusal),
    };
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

/// Why an input is not looked at.
#[derive(Debug)]
enum NoLook {
    Mistaken(Vec<FieldError>),
    Forbidden(Refusal),
}

fn look(asked: &Map<String, Value>, references: &References) -> Result<Look, NoLook> {
    let mut mistakes = unknown_fields(asked.keys(), &OF_A_LOOK);
    let mut text = |name: &str, example: &str| match asked.get(name) {
        Some(Value::String(text)) => Some(text.as_str()),
        None | Some(Value::Null) => None,
        Some(_) => {
            mistakes
                .push(FieldError::new(name, format!("`{name}` is no text")).hint(format!("write it like {example}")));
            None
        }
    };
    let (url, timeout, transport) =
        (text("url", "\"rtsp://10.0.0.8/main\""), text("timeout", "\"5s\""), text("transport", "\"tcp\""));
    let bad = |field: &str, message: &str, hint: &str| FieldError::new(field, message).hint(hint);
    let address = url.and_then(Address::parse).filter(|address| !address.scheme.eq_ignore_ascii_case("file"));
    match (url, &address) {
        (None, _) if asked.get("url").is_some_and(|url| !url.is_null()) => {}
        (None, _) => mistakes.push(bad("url", "there is no `url`", "name what to look at: \"rtsp://10.0.0.8/main\"")),
        (Some(_), None) => {
            mistakes.push(bad("url", "`url` is no URL with a host", "write it like \"rtsp://10.0.0.8/main\""));
        }
        // Where a URL ends that has such a thing in it, and with it its credentials, nobody knows.
        (Some(url), Some(_)) if url.contains(|c: char| c.is_whitespace() || c.is_control()) => {
            mistakes.push(bad("url", "`url` has white space in it", "write a space as `%20`; in a password too"));
        }
        (Some(_), Some(_)) => {}
    }
    let in_time = "write a time up to a minute, such as \"5s\"";
    let timeout = match timeout.map_or(Ok(LOOK), parse_duration) {
        Ok(timeout) if timeout.is_zero() || timeout > LONGEST_LOOK => {
            mistakes.push(bad("timeout", "`timeout` is out of range", in_time));
            LOOK
        }
        Ok(timeout) => timeout,
        Err(error) => {
            mistakes.push(bad("timeout", &error, in_time));
            LOOK
        }
    };
    if transport.is_some_and(|transport| !["tcp", "udp"].contains(&transport)) {
        mistakes.push(bad("transport", "`transport` is `tcp` or `udp`", "leave it out for `tcp`"));
    }
    let (Some(url), Some(address), true) = (url, address, mistakes.is_empty()) else {
        return Err(NoLook::Mistaken(mistakes));
    };
    if let Some((message, hint)) = forbidden_address(&address, url, references) {
        return Err(NoLook::Forbidden(Refusal::new(StatusCode::FORBIDDEN, message, hint)));
    }
    let udp = transport == Some("udp");
    Ok(Look { input: url.to_owned(), udp, timeout, watch: timeout, one_picture: true })
}

fn unknown_fields<'a>(names: impl Iterator<Item = &'a String>, known: &[&str]) -> Vec<FieldError> {
    let unknown = names.filter(|name| !known.contains(&name.as_str()));
    let mistake = |name: &String| {
        let message = format!("there is no field `{}`", name.escape_debug());
        let hint = match nearest(name, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the fields are `{}`", known.join("`, `")),
        };
        FieldError::new(name.escape_debug().to_string(), message).hint(hint)
    };
    unknown.map(mistake).collect()
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

/// A body that is a JSON object.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8], hint: &str) -> Result<T, Refusal> {
    // Where nothing is named, a list of values in some order would do as well.
    if body.trim_ascii_start().first() != Some(&b'{') {
        let message = "the body is not understood: it is no JSON object";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message, hint.to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("the body is not understood: {error}"), hint.to_owned())
    })
}

/// A body in which something is wrong.
#[derive(Debug)]
struct Unreadable {
    mistakes: Vec<FieldError>,
    /// What can be judged all the same, where it is known of which source.
    rest: Option<Box<Wanted>>,
}

/// Reads what `POST /streams` takes; all of its mistakes come at once. `graphs` says which ones have a source of a name:
/// where one does, it need not be named. Where a preset is asked for, the stream is called as that is unless it has an `id`.
fn wanted(mut settings: Map<String, Value>, graphs: impl Fn(&str) -> Vec<String>) -> Result<Wanted, Unreadable> {
    let mut mistakes = Vec::new();
    let preset = settings.get("preset").and_then(Value::as_str).map(str::to_owned);
    let mut name = |field: &str, what: &str, otherwise: Option<String>| match settings.remove(field) {
        Some(Value::String(name)) => Some(name),
        None if otherwise.is_some() => otherwise,
        given => {
            let message =
                if given.is_some() { format!("`{field}` is no text") } else { format!("there is no `{field}`") };
            mistakes.push(FieldError::new(field, message).hint(format!("add `{field}`: {what}")));
            None
        }
    };
    let source = name("source", "the name of one of its sources", None);
    let found = source.as_deref().map(&graphs);
    let only = found.as_ref().filter(|found| found.len() == 1).and_then(|found| found.first().cloned());
    let what = match (&source, found.as_deref()) {
        (Some(source), Some([])) => format!("the name of a graph that runs; none of them has a source `{source}`"),
        (Some(source), Some(found)) => {
            format!("{} have a source `{source}`", listed(&found.iter().map(String::as_str).collect::<Vec<_>>()))
        }
        _ => "the name of a graph that runs".to_owned(),
    };
    let graph = name("graph", &what, only);
    let id = name("id", "what the stream is to be called", preset).and_then(|id| {
        let read = StreamId::new(&id);
        if read.is_none() {
            let message = format!("`{}` cannot be the name of a stream", id.escape_debug());
            mistakes.push(FieldError::new("id", message).hint("use 1 to 128 of `A-Z a-z 0-9 _ . -`"));
        }
        read
    });
    if settings.get("preset").is_some_and(|preset| !preset.is_string()) {
        mistakes.push(
            FieldError::new("preset", "`preset` is no text").hint("write the name of one of the source's presets"),
        );
    }
    let (own, unfit) = own(settings);
    mistakes.extend(unfit);
    match (graph, source, id) {
        (Some(graph), Some(source), Some(id)) if mistakes.is_empty() => Ok(Wanted { graph, source, id, own }),
        (Some(graph), Some(source), id) => {
            // Its settings are judged under some name.
            let id = id.unwrap_or_else(|| StreamId::sanitised("ID"));
            Err(Unreadable { mistakes, rest: Some(Box::new(Wanted { graph, source, id, own })) })
        }
        _ => Err(Unreadable { mistakes, rest: None }),
    }
}

/// What a stream says for itself, as a graph file would write it; and what cannot be written there.
fn own(mut own: Map<String, Value>) -> (toml::Value, Vec<FieldError>) {
    let mut mistakes = Vec::new();
    own.retain(|name, value| {
        let place = name.escape_debug().to_string();
        let mistake = if has_reference(value) {
            let message = format!("`{place}` has a reference in it, and references are only resolved in graphs");
            FieldError::new(place, message).hint("write the value itself, or declare the stream in the graph")
        } else if let Err(error) = toml::Value::try_from(&*value) {
            let message = format!("`{place}` is not understood: {error}");
            FieldError::new(place, message).hint("leave out what is `null`")
        } else {
            return true;
        };
        mistakes.push(mistake);
        false
    });
    // As short as it would be written in a file: the same stream reads the same.
    let only = if own.len() == 1 { own.get("url").or_else(|| own.get("path")) } else { None };
    let short = only.and_then(|only| toml::Value::try_from(only).ok());
    let whole = || toml::Value::try_from(&own).unwrap_or_else(|_| toml::Value::Table(toml::Table::new()));
    (short.unwrap_or_else(whole), mistakes)
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
        StreamError::Taken => (
            StatusCode::CONFLICT,
            "give it another `id`, or delete the other stream first; one that its graph declares and that was deleted comes again with the next PUT of the graph",
        ),
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
    let what = format!("stream `{id}` is not added");
    match error {
        StreamError::Mistaken(mistakes) => mistaken(&what, &mistakes),
        other => {
            let message = format!("{what}: {}", masked(&other.to_string()));
            json(status, &json!({ "error": message, "hint": hint }))
        }
    }
}

/// All that is wrong with what was sent, each thing by its field.
fn mistaken(what: &str, mistakes: &[FieldError]) -> Answer {
    let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    let mistake = |mistake: &FieldError| {
        json!({
            "field": mistake.field,
            "message": masked(&mistake.message),
            "hint": mistake.hint.as_deref().map(masked),
        })
    };
    let hint = mistakes.iter().find_map(|mistake| mistake.hint.as_deref()).unwrap_or("correct the settings");
    let body = json!({
        "error": format!("{what}: {}", masked(&told.join("; "))),
        "hint": masked(hint),
        "mistakes": mistakes.iter().map(mistake).collect::<Vec<_>>(),
    });
    json(StatusCode::BAD_REQUEST, &body)
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

    fn settings(text: &str) -> Result<toml::Value, Vec<FieldError>> {
        let (own, mistakes) = own(serde_json::from_str(text).unwrap());
        if mistakes.is_empty() { Ok(own) } else { Err(mistakes) }
    }

    fn fields(mistakes: &[FieldError]) -> Vec<&str> {
        mistakes.iter().map(|mistake| mistake.field.as_str()).collect()
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
            assert_eq!(settings(text).unwrap_err().len(), 1, "{text}");
        }
        assert!(settings(r#"{"path": null}"#).is_err());
    }

    #[test]
    fn all_that_is_wrong_with_a_body_is_told_at_once() {
        let wanted = |text: &str| wanted(serde_json::from_str(text).unwrap(), |_| Vec::new());
        let Unreadable { mistakes, rest } =
            wanted(r#"{"graph": "door", "source": "s", "id": "a b", "url": "${env.X}", "loop": null}"#).err().unwrap();
        assert_eq!(fields(&mistakes), ["id", "loop", "url"]);
        let rest = *rest.unwrap();
        assert_eq!((&*rest.graph, &*rest.source, rest.own), ("door", "s", toml::Value::Table(toml::Table::new())));
        let Unreadable { mistakes, rest } = wanted(r#"{"source": 7}"#).err().unwrap();
        assert_eq!(fields(&mistakes), ["source", "graph", "id"]);
        assert!(rest.is_none(), "nobody knows what its settings should be");
        assert_eq!(&*wanted(r#"{"graph": "door", "source": "s", "id": "yard"}"#).ok().unwrap().id, "yard");
    }

    #[test]
    fn the_only_graph_with_a_source_need_not_be_named_nor_a_stream_of_a_preset() {
        let graphs = |source: &str| match source {
            "clips" => vec!["shop".to_owned()],
            "cameras" => vec!["door".to_owned(), "yard".to_owned()],
            _ => Vec::new(),
        };
        let wanted = |text: &str| wanted(serde_json::from_str(text).unwrap(), graphs);
        let found = wanted(r#"{"source": "clips", "preset": "textile"}"#).ok().unwrap();
        assert_eq!((&*found.graph, &*found.id), ("shop", "textile"));
        let found = wanted(r#"{"source": "clips", "preset": "textile", "id": "one", "graph": "door"}"#).ok().unwrap();
        assert_eq!((&*found.graph, &*found.id), ("door", "one"));
        for (text, missing) in [
            (r#"{"source": "cameras", "preset": "textile"}"#, "graph"),
            (r#"{"source": "doors", "preset": "textile"}"#, "graph"),
            (r#"{"source": "clips", "key": "a.mp4"}"#, "id"),
            (r#"{"source": "clips", "preset": "a/b"}"#, "id"),
        ] {
            assert_eq!(fields(&wanted(text).err().unwrap().mistakes), [missing], "{text}");
        }
    }

    #[test]
    fn a_look_has_an_address_and_a_deadline() {
        let asked = |url: &str, timeout: Option<&str>, transport: Option<&str>| {
            let references = References::Only {
                variables: Vec::new(),
                paths: Vec::new(),
                except: Vec::new(),
                hosts: Hosts::Only(vec!["h".parse().unwrap()]),
                tunnel: false,
            };
            let body = json!({ "url": url, "transport": transport, "timeout": timeout });
            look(body.as_object().unwrap(), &references)
        };
        assert!(matches!(asked("rtsp://other/x", None, None), Err(NoLook::Forbidden(_))));
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
            let wrong = asked(url, timeout, transport);
            assert!(matches!(wrong, Err(NoLook::Mistaken(_))), "{url} {timeout:?} {transport:?}: {wrong:?}");
        }
        let Err(NoLook::Mistaken(mistakes)) = asked("video.mp4", Some("soon"), Some("pigeon")) else { panic!() };
        assert_eq!(fields(&mistakes), ["url", "timeout", "transport"]);
        let nothing = json!({ "URL": "rtsp://h/x", "timeout": 5 });
        let Err(NoLook::Mistaken(mistakes)) = super::look(nothing.as_object().unwrap(), &References::Anything) else {
            panic!()
        };
        assert_eq!(fields(&mistakes), ["URL", "timeout", "url"]);
    }

    #[test]
    fn streams_are_listed_of_one_graph() {
        assert_eq!(wanted_graph("").unwrap(), None);
        assert_eq!(wanted_graph("graph=door").unwrap().as_deref(), Some("door"));
        assert_eq!(wanted_graph("grpah=door").unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
