//! `/hls/…`: what `hls` sinks publish, with ranges and conditions.

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use operators::clock::{Clock, SystemClock};
use operators::sinks::hls::playlist::Kind;
use operators::sinks::hls::store::{Found, Playlists, Served};

use super::live::Live;
use super::routes::{Answer, Refusal, empty, nearest};

/// Where the playlist of a stream is, on this server.
pub(super) fn url(graph: &str, stream: &str) -> String {
    format!("/hls/{graph}/{stream}/index.m3u8")
}

/// Where the playlist of a stream is, if it is published.
pub(super) fn published(live: &Live, graph: &str, stream: &str) -> Option<String> {
    playlists(live).find(graph, stream, SystemClock.now()).map(|_| url(graph, stream))
}

fn playlists(live: &Live) -> &Playlists {
    live.graphs.playlists()
}

/// What a file is to those who fetch it.
struct Form {
    media_type: &'static str,
    cache: &'static str,
}

const PLAYLIST: Form = Form { media_type: "application/vnd.apple.mpegurl", cache: "no-cache" };
/// What is at an address stays what it is: numbers never come back, and those of VOD have a part of their content beside
/// them.
const MEDIA: &str = "private, max-age=86400, immutable";
const INIT: Form = Form { media_type: "video/mp4", cache: MEDIA };
const SEGMENT: Form = Form { media_type: "video/iso.segment", cache: MEDIA };

/// `GET /hls/GRAPH/STREAM/FILE`.
pub(super) async fn get(
    live: &Live,
    (graph, stream, file): (&str, &str, &str),
    request: &Request<Incoming>,
) -> Result<Answer, Refusal> {
    let now = SystemClock.now();
    let missing = |error: String, hint: String| Refusal::new(StatusCode::NOT_FOUND, error, hint);
    let published = playlists(live).find(graph, stream, now).ok_or_else(|| {
        let known = playlists(live).streams(graph, now);
        let hint = match nearest(stream, known.iter().map(|stream| &**stream)) {
            Some(near) => format!("did you mean `{}`?", url(graph, near)),
            None => "give the graph a sink of type `hls`; `/streams/ID` has the `hls_url` of a stream".to_owned(),
        };
        let (graph, stream) = (graph.escape_debug(), stream.escape_debug());
        missing(format!("stream `{stream}` of graph `{graph}` is not published"), hint)
    })?;
    let (served, form) = match published.file(file, now) {
        Found::Playlist(served) => (served, PLAYLIST),
        Found::Init(served) => (served, INIT),
        Found::Segment(served) => (served, SEGMENT),
        Found::NotYet(Kind::Vod) => {
            let hint = "it comes when the stream has ended; `kind = \"event\"` lists what there is so far";
            return Err(missing(format!("stream `{stream}` has no playlist yet"), hint.to_owned()));
        }
        Found::NotYet(Kind::Live | Kind::Event) => {
            let hint = "it comes with the first segment; `/streams/ID` says how the stream is doing";
            return Err(missing(format!("stream `{stream}` has no playlist yet"), hint.to_owned()));
        }
        Found::Over => {
            let hint = format!("it has left the playlist long ago; fetch `{}` again", url(graph, stream));
            return Err(missing(format!("`{file}` of stream `{stream}` is kept no longer"), hint));
        }
        Found::Unknown => {
            let file = file.escape_debug();
            let hint = format!("`{}` lists the files", url(graph, stream));
            return Err(missing(format!("stream `{stream}` has no file `{file}`"), hint));
        }
    };
    answer(served, &form, request.headers()).await
}

async fn answer(served: Served, form: &Form, headers: &HeaderMap) -> Result<Answer, Refusal> {
    let tag = format!("\"{}\"", served.tag);
    let length = served.content.len();
    let wanted = match wanted(headers, &tag, length) {
        Wanted::Nothing => return Ok(described(empty(StatusCode::NOT_MODIFIED), &tag, form)),
        Wanted::Impossible => {
            let error = format!("it has {length} bytes, and none of those that are asked for");
            let mut answer = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, error, "ask without `Range`").answer();
            insert(&mut answer, header::CONTENT_RANGE, &format!("bytes */{length}"));
            return Ok(answer);
        }
        Wanted::All => None,
        Wanted::Part(first, last) => Some((first, last)),
    };
    let range = wanted.map_or(0..length, |(first, last)| first..last + 1);
    let reading = tokio::task::spawn_blocking(move || served.read(range)).await;
    let unavailable = |error: String| {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error, "ask again; the log and `/health` may say more")
    };
    let bytes = reading
        .map_err(|_| unavailable("the engine is stopping".to_owned()))?
        .map_err(|error| unavailable(format!("the file cannot be read: {error}")))?;
    let mut answer = Response::new(Full::from(bytes).boxed_unsync());
    if let Some((first, last)) = wanted {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        insert(&mut answer, header::CONTENT_RANGE, &format!("bytes {first}-{last}/{length}"));
    }
    Ok(described(answer, &tag, form))
}

/// Says what every answer with such a file says.
fn described(mut answer: Answer, tag: &str, form: &Form) -> Answer {
    insert(&mut answer, header::ETAG, tag);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form.media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(form.cache));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let told = HeaderValue::from_static("content-length, content-range, etag");
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, told);
    answer
}

fn insert(answer: &mut Answer, name: header::HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => drop(answer.headers_mut().insert(name, value)),
        Err(error) => tracing::error!(%error, "a header cannot be written"),
    }
}

/// What of a file somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// The first byte and the last.
    Part(u64, u64),
    /// They have it.
    Nothing,
    Impossible,
}

fn wanted(headers: &HeaderMap, tag: &str, length: u64) -> Wanted {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let is_known = |list: &str| {
        list.split(',').map(str::trim).any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
    };
    if text(header::IF_NONE_MATCH).is_some_and(is_known) {
        return Wanted::Nothing;
    }
    // A part of another file would not fit to what they have.
    let is_same = text(header::IF_RANGE).is_none_or(|known| known == tag);
    let range = text(header::RANGE).filter(|_| is_same).and_then(|range| range.trim().strip_prefix("bytes="));
    // Of several parts, and of what is no range, all of the file is an answer too.
    let Some((first, last)) = range.filter(|range| !range.contains(',')).and_then(|range| range.split_once('-')) else {
        return Wanted::All;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if last < first => Wanted::All,
        (Ok(first), _) if first >= length => Wanted::Impossible,
        (Ok(first), Ok(last)) => Wanted::Part(first, last.min(length - 1)),
        (Ok(first), Err(_)) if last.trim().is_empty() => Wanted::Part(first, length - 1),
        (Err(_), Ok(0)) if first.trim().is_empty() => Wanted::Impossible,
        (Err(_), Ok(_)) if first.trim().is_empty() && length == 0 => Wanted::Impossible,
        (Err(_), Ok(count)) if first.trim().is_empty() => Wanted::Part(length.saturating_sub(count), length - 1),
        _ => Wanted::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(headers: &[(header::HeaderName, &str)]) -> Wanted {
        let map = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect();
        wanted(&map, "\"a\"", 100)
    }

    #[test]
    fn ranges_are_those_of_the_standard() {
        for (range, expected) in [
            ("bytes=0-", Wanted::Part(0, 99)),
            ("bytes=10-19", Wanted::Part(10, 19)),
            ("bytes=90-1000", Wanted::Part(90, 99)),
            ("bytes=-10", Wanted::Part(90, 99)),
            ("bytes=-1000", Wanted::Part(0, 99)),
            ("bytes=-0", Wanted::Impossible),
            ("bytes=100-", Wanted::Impossible),
            ("bytes=20-10", Wanted::All),
            ("bytes=0-1,5-6", Wanted::All),
            ("bytes=a-b", Wanted::All),
            ("bytes=-", Wanted::All),
            ("lines=0-1", Wanted::All),
        ] {
            assert_eq!(asked(&[(header::RANGE, range)]), expected, "{range}");
        }
        assert_eq!(asked(&[(header::RANGE, "bytes=0-9"), (header::IF_RANGE, "\"a\"")]), Wanted::Part(0, 9));
        assert_eq!(asked(&[(header::RANGE, "bytes=0-9"), (header::IF_RANGE, "\"b\"")]), Wanted::All);
    }

    #[test]
    fn what_is_known_is_not_sent_again() {
        for (known, expected) in [
            ("\"a\"", Wanted::Nothing),
            ("W/\"a\"", Wanted::Nothing),
            ("\"b\", \"a\"", Wanted::Nothing),
            ("*", Wanted::Nothing),
            ("\"b\"", Wanted::All),
        ] {
            assert_eq!(asked(&[(header::IF_NONE_MATCH, known)]), expected, "{known}");
        }
    }
}
