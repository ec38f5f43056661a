//! `/hls/…`: what `hls` sinks publish, with ranges and conditions. Where latency is low, a request may wait for what comes
//! next.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use operators::clock::{Clock, SystemClock};
use operators::sinks::hls::playlist::Kind;
use operators::sinks::hls::store::{Asked, Found, MOST_WAITING, Playlists, Published, Served};
use tokio::task::JoinHandle;

use super::live::Live;
use super::routes::{Answer, Refusal, empty, nearest};

/// Where the playlist of a stream is, on this server.
pub(super) fn url(graph: &str, stream: &str) -> String {
    format!("/hls/{graph}/{stream}/index.m3u8")
}

/// Where the playlist of a stream is, if it is published and can be.
pub(super) fn published(live: &Live, graph: &str, stream: &str) -> Option<String> {
    let published = playlists(live).find(graph, stream, SystemClock.now())?;
    (!published.is_refused()).then(|| url(graph, stream))
}

fn playlists(live: &Live) -> &Playlists {
    live.graphs.playlists()
}

/// What a file is to those who fetch it.
struct Form {
    media_type: &'static str,
    cache: HeaderValue,
}

impl Form {
    fn new(media_type: &'static str, cache: &'static str) -> Form {
        Form { media_type, cache: HeaderValue::from_static(cache) }
    }

    /// A playlist that somebody has waited for stays what it is, at the address that says for what.
    fn playlist(fresh: Option<Duration>) -> Form {
        let stays = |fresh: Duration| HeaderValue::from_str(&format!("private, max-age={}", fresh.as_secs())).ok();
        let cache = fresh.and_then(stays).unwrap_or(HeaderValue::from_static("no-cache"));
        Form { media_type: PLAYLIST, cache }
    }
}

const PLAYLIST: &str = "application/vnd.apple.mpegurl";
/// What is at an address with a version stays what it is.
const MEDIA: &str = "private, max-age=86400, immutable";
/// A number alone may come to mean something else.
const UNVERSIONED: &str = "no-cache";
/// Bytes of a file on the disk that are read at a time: what each connection holds of it.
const PIECE: u64 = 256 << 10;
/// Characters of a name that an answer repeats.
const MOST_REPEATED: usize = 80;

/// `GET /hls/GRAPH/STREAM/FILE`.
pub(super) async fn get(
    live: &Live,
    (graph, stream, file): (&str, &str, &str),
    request: &Request<Incoming>,
) -> Result<Answer, Refusal> {
    let now = SystemClock.now();
    let missing = |error: String, hint: String| Refusal::new(StatusCode::NOT_FOUND, error, hint);
    let published = playlists(live).find(graph, stream, now).ok_or_else(|| unpublished(live, graph, stream))?;
    // Others do not say that they know what this means, so nobody may mean it.
    let query = request.uri().query().unwrap_or_default();
    let version = version(query);
    let asked = if published.has_parts() { asked(query)? } else { Asked::default() };
    let cache = if version.is_some() { MEDIA } else { UNVERSIONED };
    let asked = Asked { version, ..asked };
    let is_there = || {
        let there = playlists(live).find(graph, stream, SystemClock.now());
        there.is_some_and(|there| Arc::ptr_eq(&there, &published))
    };
    let found = wait_for(playlists(live), &published, (file, &asked), is_there).await?;
    let Some(found) = found else { return Err(unpublished(live, graph, stream)) };
    let (served, form) = match found {
        Found::Playlist(served) => {
            let fresh = asked.sequence.map(|_| published.waiting().1);
            (served, Form::playlist(fresh))
        }
        Found::Init(served) => (served, Form::new("video/mp4", cache)),
        Found::Segment(served) if file.ends_with(".ts") => (served, Form::new("video/mp2t", cache)),
        Found::Segment(served) => (served, Form::new("video/iso.segment", cache)),
        Found::Refused { why, hint } => {
            return Err(missing(format!("stream `{stream}` cannot be published: {why}"), hint));
        }
        Found::NotYet(Kind::Vod) => {
            let hint = "it comes when the stream has ended; `kind = \"event\"` lists what there is so far";
            return Err(missing(format!("stream `{stream}` has no playlist yet"), hint.to_owned()));
        }
        Found::NotYet(Kind::Live | Kind::Event) => {
            let hint = "it comes with the first segment; `/streams/ID` says how the stream is doing";
            return Err(missing(format!("stream `{stream}` has no playlist yet"), hint.to_owned()));
        }
        Found::Over => {
            let hint = format!("the playlist lists it no more; fetch `{}` again", url(graph, stream));
            return Err(missing(format!("`{file}` of stream `{stream}` is kept no longer"), hint));
        }
        Found::Gap => {
            let hint = "the playlist has `EXT-X-GAP` in its place, and the log says why; go on with the next segment";
            return Err(missing(format!("`{file}` of stream `{stream}` is lost"), hint.to_owned()));
        }
        Found::TooFar => {
            let error = format!(
                "stream `{stream}` is nowhere near the segment or the part that `_HLS_msn` and `_HLS_part` name"
            );
            let hint = format!("fetch `{}` without them, and ask for what comes next", url(graph, stream));
            return Err(Refusal::new(StatusCode::BAD_REQUEST, error, hint));
        }
        Found::Coming => {
            let error = format!("what comes next of stream `{stream}` has not come for so long");
            let hint = "ask again; `/streams/ID` says how the stream is doing";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error, hint));
        }
        Found::Unknown => {
            let file = repeated(file);
            let hint = format!("`{}` lists the files", url(graph, stream));
            return Err(missing(format!("stream `{stream}` has no file `{file}`"), hint));
        }
    };
    answer(served, &form, request.headers()).await
}

/// Says that nothing is published of a stream.
fn unpublished(live: &Live, graph: &str, stream: &str) -> Refusal {
    let known = playlists(live).streams(graph, SystemClock.now());
    let hint = match nearest(stream, known.iter().map(|stream| &**stream)) {
        Some(near) => format!("did you mean `{}`?", url(graph, near)),
        None => "give the graph a sink of type `hls`; `/streams/ID` has the `hls_url` of a stream".to_owned(),
    };
    let (graph, stream) = (repeated(graph), repeated(stream));
    Refusal::new(StatusCode::NOT_FOUND, format!("stream `{stream}` of graph `{graph}` is not published"), hint)
}

/// What is at a name, as soon as it is there, but not for ever; `None` where its stream comes to be published no more.
/// Nothing but this future waits: whoever goes away leaves nothing behind.
async fn wait_for(
    playlists: &Playlists,
    published: &Published,
    (file, asked): (&str, &Asked),
    is_there: impl Fn() -> bool,
) -> Result<Option<Found>, Refusal> {
    let mut changes = published.changes();
    let look = || published.file(file, asked, SystemClock.now());
    let first = look();
    if !matches!(first, Found::Coming) {
        return Ok(Some(first));
    }
    let Ok(_place) = playlists.waiting().clone().try_acquire_owned() else {
        let error = format!("{MOST_WAITING} requests wait for what comes next already");
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error, "ask again later, or without `_HLS_msn`"));
    };
    let waiting = async {
        // An error means that nobody writes it any more, which the last look tells.
        while changes.changed().await.is_ok() {
            let found = look();
            if !matches!(found, Found::Coming) {
                return Some(found);
            }
            if !is_there() {
                return None;
            }
        }
        Some(look())
    };
    Ok(tokio::time::timeout(published.waiting().0, waiting).await.unwrap_or(Some(Found::Coming)))
}

/// What somebody wrote, as far as it is worth repeating.
fn repeated(name: &str) -> String {
    let mut text: String = name.chars().take(MOST_REPEATED).flat_map(char::escape_debug).collect();
    if name.chars().nth(MOST_REPEATED).is_some() {
        text.push('…');
    }
    text
}

/// What an address has beside its name.
fn version(query: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "v").map(|(_, version)| version.into_owned())
}

/// What the query of a playlist asks for.
///
/// # Errors
/// What RFC 8216bis forbids.
fn asked(query: &str) -> Result<Asked, Refusal> {
    let wrong = |error: String| {
        let hint = "write `_HLS_msn=NUMBER`, with `_HLS_part=NUMBER` behind it, of a segment and a part that come next";
        Refusal::new(StatusCode::BAD_REQUEST, error, hint)
    };
    let number = |name: &str, value: &str| {
        let is_number = !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit());
        let number = value.parse::<u64>().ok().filter(|_| is_number);
        number.ok_or_else(|| wrong(format!("`{name}` cannot be `{}`", value.escape_debug())))
    };
    let mut asked = Asked::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "_HLS_msn" => asked.sequence = Some(number("_HLS_msn", &value)?),
            "_HLS_part" => asked.part = Some(number("_HLS_part", &value)?),
            // `v2` would leave date ranges out too, of which there are none.
            "_HLS_skip" => asked.skips = matches!(&*value, "YES" | "v2"),
            // Whatever else there is, and comes to be, is no reason to refuse a playlist.
            _ => {}
        }
    }
    if asked.part.is_some() && asked.sequence.is_none() {
        return Err(wrong("`_HLS_part` needs `_HLS_msn`, the number of the segment whose part it is".to_owned()));
    }
    Ok(asked)
}

async fn answer(served: Served, form: &Form, headers: &HeaderMap) -> Result<Answer, Refusal> {
    let tag = format!("\"{}\"", served.tag);
    let length = served.length();
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
    let unavailable = |error: io::Error| {
        let error = format!("the file cannot be read: {error}");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error, "ask again; the log and `/health` may say more")
    };
    let body = if served.is_in_file() {
        Pieces::new(served, range).await.map_err(unavailable)?.boxed_unsync()
    } else {
        Full::from(served.read(range).map_err(unavailable)?).boxed_unsync()
    };
    let mut answer = Response::new(body);
    if let Some((first, last)) = wanted {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        insert(&mut answer, header::CONTENT_RANGE, &format!("bytes {first}-{last}/{length}"));
    }
    Ok(described(answer, &tag, form))
}

/// Bytes of a file on the disk, read as the connection takes them. What is not read yet is there for as long as this is.
struct Pieces {
    served: Served,
    /// What is to be read.
    range: Range<u64>,
    /// What is read, and was not taken yet.
    read: Bytes,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    /// Bytes that were not taken yet.
    left: u64,
}

impl Pieces {
    /// Reads the first piece, so that whoever asks for what cannot be read is told so.
    ///
    /// # Errors
    /// Where it cannot be read.
    async fn new(served: Served, range: Range<u64>) -> io::Result<Pieces> {
        let left = range.end.saturating_sub(range.start);
        let mut pieces = Pieces { served, range, read: Bytes::new(), reading: None, left };
        if let Some(reading) = pieces.next() {
            pieces.read = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        }
        Ok(pieces)
    }

    /// Begins to read the next piece, where there is one.
    fn next(&mut self) -> Option<JoinHandle<io::Result<Bytes>>> {
        let piece = self.range.start..self.range.end.min(self.range.start.saturating_add(PIECE));
        self.range.start = piece.end;
        let served = self.served.clone();
        (!piece.is_empty()).then(|| tokio::task::spawn_blocking(move || served.read(piece)))
    }

    fn taken(&mut self, bytes: Bytes) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.left = self.left.saturating_sub(bytes.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.read.is_empty() {
            let read = std::mem::take(&mut self.read);
            return self.taken(read);
        }
        let reading = match self.reading.take() {
            Some(reading) => Some(reading),
            None => self.next(),
        };
        let Some(mut reading) = reading else { return Poll::Ready(None) };
        let Poll::Ready(read) = Pin::new(&mut reading).poll(context) else {
            self.reading = Some(reading);
            return Poll::Pending;
        };
        match read.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(read) => self.taken(read),
            Err(error) => {
                tracing::warn!(%error, "a segment in a temporary file cannot be read: its answer breaks off");
                // It has fewer bytes than were announced, so the connection is cut, and the player sees that.
                self.range.start = self.range.end;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Says what every answer with such a file says.
fn described(mut answer: Answer, tag: &str, form: &Form) -> Answer {
    insert(&mut answer, header::ETAG, tag);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form.media_type));
    headers.insert(header::CACHE_CONTROL, form.cache.clone());
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
    // A list may be divided among several lines (RFC 9110, 5.3).
    if headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok()).any(is_known) {
        return Wanted::Nothing;
    }
    // A part of another file would not fit to what they have.
    let is_same = text(header::IF_RANGE).is_none_or(|known| known == tag);
    let unit = |range: &str| {
        let (unit, range) = range.trim().split_once('=')?;
        // Names of units are the same in either case (RFC 9110, 14.1).
        unit.eq_ignore_ascii_case("bytes").then(|| range.to_owned())
    };
    let range = text(header::RANGE).filter(|_| is_same).and_then(unit);
    // Of several parts, and of what is no range, all of the file is an answer too.
    let Some((first, last)) =
        range.as_deref().filter(|range| !range.contains(',')).and_then(|range| range.split_once('-'))
    else {
        return Wanted::All;
    };
    match (place(first), place(last)) {
        (Place::Byte(first), Place::Byte(last)) if last < first => Wanted::All,
        (Place::Byte(first), Place::Byte(_) | Place::None) if first >= length => Wanted::Impossible,
        (Place::Byte(first), Place::Byte(last)) => Wanted::Part(first, last.min(length - 1)),
        (Place::Byte(first), Place::None) => Wanted::Part(first, length - 1),
        (Place::None, Place::Byte(count)) if count == 0 || length == 0 => Wanted::Impossible,
        (Place::None, Place::Byte(count)) => Wanted::Part(length.saturating_sub(count), length - 1),
        _ => Wanted::All,
    }
}

/// One end of a range.
enum Place {
    Byte(u64),
    None,
    Wrong,
}

fn place(text: &str) -> Place {
    let text = text.trim();
    if text.is_empty() {
        return Place::None;
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Place::Wrong;
    }
    // What is too long to be a number is behind the end of every file.
    Place::Byte(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    use operators::item::{Content, Origin, SpilledFile, StreamId};
    use operators::media::fragment;
    use operators::sinks::hls::playlist::Window;
    use operators::sinks::hls::store::{NewSegment, Terms};

    fn wants(headers: &[(header::HeaderName, &str)]) -> Wanted {
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
            ("bytes=99999999999999999999-", Wanted::Impossible),
            ("bytes=10-99999999999999999999", Wanted::Part(10, 99)),
            ("bytes=-99999999999999999999", Wanted::Part(0, 99)),
            ("Bytes=10-19", Wanted::Part(10, 19)),
            ("bytes=+1-2", Wanted::All),
            ("bytes", Wanted::All),
            ("bytes=20-10", Wanted::All),
            ("bytes=0-1,5-6", Wanted::All),
            ("bytes=a-b", Wanted::All),
            ("bytes=-", Wanted::All),
            ("lines=0-1", Wanted::All),
        ] {
            assert_eq!(wants(&[(header::RANGE, range)]), expected, "{range}");
        }
        assert_eq!(wants(&[(header::RANGE, "bytes=0-9"), (header::IF_RANGE, "\"a\"")]), Wanted::Part(0, 9));
        assert_eq!(wants(&[(header::RANGE, "bytes=0-9"), (header::IF_RANGE, "\"b\"")]), Wanted::All);
    }

    #[test]
    fn a_query_says_what_somebody_waits_for() {
        let asked_for = |sequence, part, skips| Ok(Asked { version: None, sequence, part, skips });
        assert_eq!(version("_HLS_msn=7&v=0a1b"), Some("0a1b".to_owned()));
        assert_eq!((version(""), version("version=2"), version("v")), (None, None, Some(String::new())));
        assert_eq!(asked(""), asked_for(None, None, false));
        assert_eq!(asked("v=1234&_HLS_report=x"), asked_for(None, None, false));
        assert_eq!(asked("_HLS_msn=7"), asked_for(Some(7), None, false));
        assert_eq!(asked("_HLS_part=2&_HLS_msn=7&_HLS_skip=YES"), asked_for(Some(7), Some(2), true));
        assert_eq!(asked("_HLS_skip=v2"), asked_for(None, None, true));
        for wrong in ["_HLS_part=2", "_HLS_msn=", "_HLS_msn=-1", "_HLS_msn=+1", "_HLS_msn=a", "_HLS_msn=1&_HLS_part=b"]
        {
            assert_eq!(asked(wrong).unwrap_err().status, StatusCode::BAD_REQUEST, "{wrong}");
        }
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
            assert_eq!(wants(&[(header::IF_NONE_MATCH, known)]), expected, "{known}");
        }
        let mut lines = HeaderMap::new();
        for known in ["\"b\"", "\"a\""] {
            lines.append(header::IF_NONE_MATCH, HeaderValue::from_static(known));
        }
        assert_eq!(wanted(&lines, "\"a\"", 100), Wanted::Nothing);
    }

    #[test]
    fn long_names_are_not_repeated() {
        assert_eq!(repeated("7.m4s\n"), "7.m4s\\n");
        assert_eq!(repeated(&"x".repeat(9000)), format!("{}…", "x".repeat(MOST_REPEATED)));
    }

    /// A file on the disk is sent in pieces, none of which is read before the connection takes the one before.
    #[tokio::test]
    async fn a_file_on_the_disk_is_read_as_it_is_taken() {
        let whole: Vec<u8> = (0..PIECE * 3 + 7).map(|place| (place % 251) as u8).collect();
        let mut file = SpilledFile::create().unwrap();
        std::io::Write::write_all(&mut file, &whole).unwrap();
        let shrinks = file.try_clone().unwrap();
        let content = Content::File(SpilledFile::unnamed(file, whole.len() as u64));
        let served = Served::new(content, "a".to_owned(), None);
        for range in [0..whole.len() as u64, 5..PIECE + 5, 3..3, PIECE * 3..whole.len() as u64] {
            let body = Pieces::new(served.clone(), range.clone()).await.unwrap();
            assert_eq!(body.size_hint().exact(), Some(range.end - range.start));
            let read = body.collect().await.unwrap().to_bytes();
            assert!(read == whole[range.start as usize..range.end as usize], "{range:?}");
        }
        let mut body = Pieces::new(served.clone(), 0..whole.len() as u64).await.unwrap();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.len() as u64, PIECE);
        // Nothing was read ahead: what is gone now cannot be sent, and the answer ends too soon.
        shrinks.set_len(PIECE + 1).unwrap();
        assert!(body.frame().await.is_none());
        assert_eq!(body.size_hint().exact(), Some(PIECE * 2 + 7));
        assert!(!body.is_end_stream());
        shrinks.set_len(0).unwrap();
        assert!(Pieces::new(served, 0..10).await.is_err());
    }

    /// At once, and not when patience ends.
    #[tokio::test]
    async fn who_waits_for_what_is_published_no_more_hears_it() {
        let playlists = Playlists::default();
        let shelf = playlists.shelf(&Origin { graph: "yard".into(), node: "watch".into() });
        let terms = Terms {
            kind: Kind::Live,
            form: fragment::Form::Mp4,
            length: 2_000_000,
            part: Some(1_000_000),
            window: Window::Segments(3),
            dated: false,
            memory: 1000,
            disk: 0,
        };
        let now = SystemClock.now();
        let Ok((writing, _)) = playlists.publish(&shelf, &StreamId::new("door").unwrap(), &terms, now) else {
            panic!("taken")
        };
        let part = |completes: bool| NewSegment {
            init: Bytes::new(),
            media: Bytes::from_static(b"media"),
            sha256: None,
            duration: 1_000_000,
            target: Some(2),
            part_target: Some(1_000_000),
            completes,
            is_discontinuous: false,
            is_independent: true,
            has_leading: false,
            time: SystemClock.wall(),
        };
        writing.append(part(false), now).unwrap();
        let number = writing.append(part(true), now).unwrap();
        let published = writing.published().clone();
        let asked = Asked { sequence: Some(number + 1), ..Asked::default() };
        let is_there = || {
            let there = playlists.find("yard", "door", SystemClock.now());
            there.is_some_and(|there| Arc::ptr_eq(&there, &published))
        };
        let waiting = wait_for(&playlists, &published, ("index.m3u8", &asked), is_there);
        let leaving = async {
            // Another version of the sink may go on with it: that alone is no end.
            writing.abandon(now);
            tokio::task::yield_now().await;
            drop(shelf);
        };
        let (found, ()) = tokio::join!(waiting, leaving);
        assert!(matches!(found, Ok(None)));
    }
}
