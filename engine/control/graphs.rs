//! `/graphs`: lists, shows, checks, puts and deletes graphs while the others run.

use std::collections::BTreeMap;

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use operators::item::time_text;
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::body;
use super::live::{Live, TEXTS};
use super::routes::{Answer, Refusal, json, nearest};
use crate::graph::cover;
use crate::graph::diagnostics::{Diagnostic, Severity, listed_json, told_json};
use crate::graph::parse::LARGEST_FILE;
use crate::runtime::graphs::{Expected, GraphText, GraphView, Home, LoadError, Loaded, LoadedText, Refused};

const TOML: &str = "application/toml";

/// `GET /graphs`: what runs, and what should run and does not.
pub(super) fn list(live: &Live) -> Answer {
    let graphs: Vec<Value> = live.graphs.list().iter().map(|view| Value::Object(summary(view))).collect();
    let refused: Vec<Value> = live.graphs.refused().iter().map(|(name, refused)| not_running(name, refused)).collect();
    json(StatusCode::OK, &json!({ "graphs": graphs, "refused": refused }))
}

/// `GET /graphs/NAME`: how a graph is configured, and what became of its last change.
pub(super) fn get(live: &Live, name: &str, headers: &HeaderMap) -> Result<Answer, Refusal> {
    let Some(view) = live.graphs.get(name) else {
        let refused = live.graphs.refused();
        let refused = refused.get(name).ok_or_else(|| unknown(live, name))?;
        return Ok(json(StatusCode::OK, &not_running(name, refused)));
    };
    let text = shown(&view.text);
    let mut answer = if wants(headers, TOML) {
        let mut answer = Response::new(Full::from(text).boxed_unsync());
        let content_type = HeaderValue::from_static("application/toml; charset=utf-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, content_type);
        answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    } else {
        let mut described = summary(&view);
        // The text was read before, and stars change no structure.
        let config: Option<toml::Table> = text.parse().ok();
        described.insert("config".to_owned(), json!(config));
        described.insert("text".to_owned(), text.into());
        json(StatusCode::OK, &described)
    };
    answer.headers_mut().insert(header::ETAG, tag(view.generation));
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(answer)
}

/// `GET /graphs/NAME/plan`: how a graph runs.
pub(super) fn plan(live: &Live, name: &str, headers: &HeaderMap) -> Result<Answer, Refusal> {
    let explanation = live.graphs.explanation(name).ok_or_else(|| unknown(live, name))?;
    let mut answer = if wants(headers, "text/plain") {
        let mut answer = Response::new(Full::from(explanation.text()).boxed_unsync());
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    } else {
        json(StatusCode::OK, &*explanation)
    };
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(answer)
}

/// `PUT /graphs/NAME`: starts a graph, or puts a text in the place of the one that runs.
pub(super) async fn put(live: &Live, name: &str, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    let expected = expected(request.headers())?;
    let text = text(live, name, request).await?;
    let graphs = live.graphs.clone();
    // What is said of a text may be long, so it is written where others do not wait for it.
    live.changes
        .run(move || {
            let (name, bytes) = (text.0.name.clone(), text.0.bytes.clone());
            let loaded = graphs.load(text.0, &expected);
            put_answer(&name, &shown(&bytes), loaded)
        })
        .await
}

fn put_answer(name: &str, shown: &str, loaded: Result<LoadedText, LoadError>) -> Answer {
    let LoadedText { loaded, diagnostics, unsaved } = match loaded {
        Err(error) => return refused(name, shown, error),
        Ok(loaded) => loaded,
    };
    let mut body = match serde_json::to_value(&loaded) {
        Ok(Value::Object(body)) => body,
        _ => Map::new(),
    };
    body.insert("graph".to_owned(), name.into());
    body.insert("diagnostics".to_owned(), told_json(shown, &diagnostics).0.into());
    if let Some(why) = unsaved {
        body.insert("unsaved".to_owned(), why.into());
    }
    let status = match loaded {
        Loaded::Started { .. } => StatusCode::CREATED,
        Loaded::Reloaded(_) => StatusCode::OK,
    };
    let mut answer = json(status, &body);
    answer.headers_mut().insert(header::ETAG, tag(loaded.generation()));
    if status == StatusCode::CREATED
        && let Ok(place) = HeaderValue::from_str(&format!("/graphs/{name}"))
    {
        answer.headers_mut().insert(header::LOCATION, place);
    }
    answer
}

/// `POST /graphs/NAME/check`: what would be said of a text that is put; changes nothing.
pub(super) async fn check(live: &Live, name: &str, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    let text = text(live, name, request).await?;
    let graphs = live.graphs.clone();
    live.changes
        .run(move || {
            let (name, shown) = (&text.0.name, shown(&text.0.bytes));
            match graphs.check(&text.0) {
                Err(error) => refused(name, &shown, error),
                Ok((_, diagnostics)) => json(StatusCode::OK, &found(name, &shown, &diagnostics)),
            }
        })
        .await
}

fn shown(bytes: &[u8]) -> String {
    cover::shown(&String::from_utf8_lossy(bytes))
}

/// `DELETE /graphs/NAME`: delivers what is in flight, then ends the graph.
pub(super) async fn delete(live: &Live, name: &str, headers: &HeaderMap) -> Result<Answer, Refusal> {
    let expected = expected(headers)?;
    let (graphs, wanted) = (live.graphs.clone(), name.to_owned());
    match live.changes.run(move || graphs.delete(&wanted, &expected)).await? {
        Err(error) => Ok(refused(name, "", error)),
        Ok(None) => Err(unknown(live, name)),
        Ok(Some(outcome)) => {
            let body = json!({ "graph": name, "stuck": outcome.stuck, "failures": outcome.failures });
            Ok(json(StatusCode::OK, &body))
        }
    }
}

/// A text that was sent, with its place among those that are in hand at once.
async fn text(
    live: &Live,
    name: &str,
    request: &mut Request<Incoming>,
) -> Result<(GraphText, OwnedSemaphorePermit), Refusal> {
    let Ok(place) = live.texts.clone().try_acquire_owned() else {
        body::throw_away(request).await;
        let message = format!("{TEXTS} texts of graphs are being sent or worked on already");
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message, "try again in a second"));
    };
    let bytes = body::read(request.body_mut(), LARGEST_FILE as u64).await?;
    Ok((GraphText { name: name.to_owned(), bytes: bytes.to_vec(), home: Home::Put }, place))
}

fn summary(view: &GraphView) -> Map<String, Value> {
    let (time, loaded) = &view.loaded;
    let mut last = match serde_json::to_value(loaded) {
        Ok(Value::Object(last)) => last,
        _ => Map::new(),
    };
    last.insert("time".to_owned(), time_text(*time).into());
    let streams: &BTreeMap<_, _> = &view.streams;
    let mut summary = Map::new();
    let mut add = |name: &str, value: Value| drop(summary.insert(name.to_owned(), value));
    add("graph", json!(view.name));
    add("state", json!(view.state));
    if let Some(reason) = &view.reason {
        add("reason", json!(reason));
    }
    if let Some(chaos) = &view.chaos {
        add("chaos", json!(chaos));
    }
    add("generation", json!(view.generation));
    add("streams", json!(streams));
    describe_home(&view.home, &mut add);
    add("loaded", Value::Object(last));
    if let Some(refused) = &view.refused {
        add("refused", json!({ "time": time_text(refused.time), "error": refused.why }));
    }
    summary
}

fn not_running(name: &str, refused: &Refused) -> Value {
    let mut described = Map::new();
    let mut add = |name: &str, value: Value| drop(described.insert(name.to_owned(), value));
    add("graph", json!(name));
    add("state", json!("refused"));
    describe_home(&refused.home, &mut add);
    add("refused", json!({ "time": time_text(refused.time), "error": refused.why }));
    Value::Object(described)
}

fn describe_home(home: &Home, add: &mut impl FnMut(&str, Value)) {
    match home {
        Home::File(path) => {
            add("from", json!("file"));
            add("file", json!(path.to_string_lossy()));
        }
        Home::Put => add("from", json!("http")),
    }
}

/// The same that `engine check --format json` says.
fn found(name: &str, shown: &str, diagnostics: &[Diagnostic]) -> Value {
    let count = |severity| diagnostics.iter().filter(|found| found.severity() == severity).count();
    json!({
        "files": [listed_json(&format!("{name}.toml"), shown, diagnostics)],
        "errors": count(Severity::Error),
        "warnings": count(Severity::Warning),
        "notes": count(Severity::Note),
    })
}

fn refused(name: &str, shown: &str, error: LoadError) -> Answer {
    let status = match &error {
        LoadError::Name(_) | LoadError::Mistakes(_) => StatusCode::BAD_REQUEST,
        LoadError::Outdated { .. } => StatusCode::PRECONDITION_FAILED,
        LoadError::Taken(_) | LoadError::Watched(_) | LoadError::Ending | LoadError::Over | LoadError::Busy => {
            StatusCode::CONFLICT
        }
        LoadError::Closing | LoadError::HeldUp(_) => StatusCode::SERVICE_UNAVAILABLE,
        LoadError::Unsaved { .. } => StatusCode::INSUFFICIENT_STORAGE,
        LoadError::Start(_) => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let mut body = match &error {
        LoadError::Mistakes(diagnostics) => found(name, shown, diagnostics),
        _ => json!({}),
    };
    body["error"] = error.to_string().into();
    body["hint"] = error.hint().into();
    let mut answer = json(status, &body);
    if let LoadError::Outdated { now: now @ 1.. } = error {
        answer.headers_mut().insert(header::ETAG, tag(now));
    }
    answer
}

fn unknown(live: &Live, name: &str) -> Refusal {
    let known: Vec<String> = live.graphs.list().iter().map(|view| view.name.to_string()).collect();
    let hint = match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`/graphs` lists what there is".to_owned(),
    };
    Refusal::new(StatusCode::NOT_FOUND, format!("there is no graph `{}`", name.escape_debug()), hint)
}

/// The generation as an entity tag.
fn tag(generation: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{generation}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// Whether an `Accept` header names this type.
fn wants(headers: &HeaderMap, content_type: &str) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut kinds = accepted.flat_map(|value| value.split(','));
    kinds.any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(content_type)))
}

/// What `If-Match` and `If-None-Match` ask for.
fn expected(headers: &HeaderMap) -> Result<Expected, Refusal> {
    let read = |name: header::HeaderName| -> Option<String> {
        let values: Vec<_> =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
        (!values.is_empty()).then(|| values.join(","))
    };
    let bad = |error: String, hint: &str| Err(Refusal::new(StatusCode::BAD_REQUEST, error, hint));
    match (read(header::IF_MATCH), read(header::IF_NONE_MATCH)) {
        (None, None) => Ok(Expected::Anything),
        (Some(_), Some(_)) => bad("`If-Match` and `If-None-Match` exclude each other".to_owned(), "send one of them"),
        (None, Some(none)) if none.trim() == "*" => Ok(Expected::Nothing),
        (None, Some(none)) => bad(
            format!("`If-None-Match: {}` is not understood", none.escape_debug()),
            "only `If-None-Match: *` is: it creates a graph and replaces none",
        ),
        (Some(tags), None) if tags.trim() == "*" => Ok(Expected::Something),
        (Some(tags), None) => {
            let mut generations = Vec::new();
            for written in tags.split(',').map(str::trim).filter(|written| !written.is_empty()) {
                let inner = written.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
                let Some(Ok(generation)) = inner.map(str::parse) else {
                    let hint = "write the generation in quotes, as the `ETag` of `GET` has it: `If-Match: \"3\"`";
                    return bad(format!("`{}` is no generation", written.escape_debug()), hint);
                };
                generations.push(generation);
            }
            Ok(Expected::OneOf(generations))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn conditions_name_generations() {
        for (written, generations) in [("\"3\"", vec![3]), ("\"3\", \"4\"", vec![3, 4]), (" \"0\" ", vec![0])] {
            let read = expected(&headers(&[(header::IF_MATCH, written)])).unwrap();
            assert_eq!(read, Expected::OneOf(generations), "{written}");
        }
        assert_eq!(expected(&headers(&[(header::IF_MATCH, "*")])).unwrap(), Expected::Something);
        assert_eq!(expected(&headers(&[(header::IF_NONE_MATCH, "*")])).unwrap(), Expected::Nothing);
        assert_eq!(expected(&HeaderMap::new()).unwrap(), Expected::Anything);
    }

    #[test]
    fn conditions_that_are_not_understood_are_refused() {
        for wrong in [
            &[(header::IF_MATCH, "3")][..],
            &[(header::IF_MATCH, "W/\"3\"")],
            &[(header::IF_MATCH, "\"three\"")],
            &[(header::IF_NONE_MATCH, "\"3\"")],
            &[(header::IF_MATCH, "\"3\""), (header::IF_NONE_MATCH, "*")],
        ] {
            assert_eq!(expected(&headers(wrong)).unwrap_err().status, StatusCode::BAD_REQUEST, "{wrong:?}");
        }
    }

    #[test]
    fn a_type_is_wanted_where_it_is_named() {
        let accept = |value| headers(&[(header::ACCEPT, value)]);
        assert!(wants(&accept("application/toml"), TOML));
        assert!(wants(&accept("text/html, Application/TOML;q=0.9"), TOML));
        assert!(!wants(&accept("*/*"), TOML) && !wants(&HeaderMap::new(), TOML));
    }
}
