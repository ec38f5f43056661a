//! Pictures that are pushed into streams: `POST /streams/{id}/frames`, one at a time, and `POST /infer`, up to 32.
//!
//! | answer to a picture | when |
//! |---|---|
//! | 200 | with `wait=true`: the record that the source's `answer` made of it |
//! | 202 | without `wait`: it was taken |
//! | 204, with `x-verdict` | with `wait=true`: it ended, and no record came of it |
//! | 400 | the query or the form cannot be read, or has no `file` |
//! | 404 | there is no such stream |
//! | 408 | the body took too long |
//! | 409 | the stream is not pushed to |
//! | 413 | too many bytes |
//! | 415 | neither JPEG nor PNG nor WebP |
//! | 422, with `x-verdict` | with `wait=true`: it was rejected, and why |
//! | 429, with `Retry-After` | as many pictures wait as the stream's `queue` allows |
//! | 503, with `Retry-After` | the graph does not run yet, or ends; it was lost; or too many bodies are being read |
//! | 504 | with `wait=true`: nothing came of it within `timeout` |

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Request, StatusCode};
use operators::config::{format_size, parse_duration};
use operators::inlet::PushError;
use operators::item::{Record, RecordBody};
use operators::lease::{Verdict, Watch, Watched};
use operators::media::still;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::predict::{Carried, FORM_BYTES, REFUSED_TIME, carried, discard, file};
use super::routes::{Answer, Refusal, empty, json, nearest};
use super::streams::read;
use crate::runtime::inlets::{Inlets, OpenInlet};
use crate::runtime::stats::{GraphState, Observe};

/// What bodies may cost, and how long anybody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushLimits {
    /// Bytes of all bodies that are being read or wait for a place.
    pub max_bodies: u64,
    /// Bytes of one body of `/infer`.
    pub max_infer: u64,
    /// Pictures of one `/infer`.
    pub max_frames: usize,
    /// A body that has not come completely in this time is given up.
    pub body_timeout: Duration,
    /// How long a caller waits for an answer who does not say how long.
    pub wait: Duration,
    /// How long a caller may wait.
    pub longest_wait: Duration,
}

impl Default for PushLimits {
    fn default() -> Self {
        PushLimits {
            max_bodies: 256 << 20,
            max_infer: 64 << 20,
            max_frames: 32,
            body_timeout: Duration::from_secs(30),
            wait: Duration::from_secs(30),
            longest_wait: Duration::from_secs(300),
        }
    }
}

/// The path of the batch form.
pub(super) const INFER: &str = "/infer";
/// The path of the single form, for lists.
pub(super) const FRAMES: &str = "/streams/ID/frames";

const FRAMES_QUERY: [&str; 2] = ["wait", "timeout"];
const INFER_QUERY: [&str; 2] = ["stream", "timeout"];
const VERDICT: &str = "x-verdict";

/// Bodies are counted in units of so many bytes.
const UNIT: u64 = 1024;

/// Both routes, with what bounds them.
pub struct Push {
    inlets: Arc<Inlets>,
    observe: Arc<dyn Observe>,
    limits: PushLimits,
    bodies: Arc<Semaphore>,
}

/// What is heard of a picture.
#[derive(Debug)]
enum Heard {
    Record(Arc<Record>),
    Ended(Verdict),
}

/// Answers once, with what is heard first.
struct Waiter(Mutex<Option<oneshot::Sender<Heard>>>);

impl Waiter {
    fn pair() -> (Watched, oneshot::Receiver<Heard>) {
        let (sender, receiver) = oneshot::channel();
        (Watched::new(Arc::new(Waiter(Mutex::new(Some(sender))))), receiver)
    }

    fn tell(&self, heard: Heard) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Whoever asked may have gone.
        drop(sender.map(|sender| sender.send(heard)));
    }
}

impl Watch for Waiter {
    fn record(&self, record: &Arc<Record>) {
        self.tell(Heard::Record(record.clone()));
    }

    fn ended(&self, verdict: Verdict) {
        self.tell(Heard::Ended(verdict));
    }
}

/// A body that was read, and its share of the memory for bodies.
struct Read {
    bytes: bytes::Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

impl Push {
    pub fn new(inlets: Arc<Inlets>, observe: Arc<dyn Observe>, limits: PushLimits) -> Push {
        let units = usize::try_from(limits.max_bodies / UNIT).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Push { inlets, observe, limits, bodies: Arc::new(Semaphore::new(units)) }
    }

    async fn frame(&self, stream: &str, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
        let (mut wait, mut timeout) = (false, self.limits.wait);
        for (name, value) in form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()) {
            match &*name {
                "wait" => wait = flag(&value)?,
                "timeout" => timeout = self.timeout(&value)?,
                _ => return Err(unknown(FRAMES, &name, &FRAMES_QUERY)),
            }
        }
        let open = self.open(stream)?;
        let carried = carried(request.headers())?;
        let limit = open.inlet.settings.max_bytes;
        let too_large = || {
            let message = format!("the picture has more than {}", format_size(limit));
            refusal(StatusCode::PAYLOAD_TOO_LARGE, message, "make it smaller, or raise `max_bytes` of the source")
        };
        let most = limit + if carried == Carried::Raw { 0 } else { FORM_BYTES };
        let read = self.read(request.body_mut(), most, too_large).await?;
        let picture = match carried {
            Carried::Raw => read.bytes.clone(),
            Carried::Form(boundary) => file(read.bytes.clone(), boundary).await?,
        };
        if picture.len() as u64 > limit {
            return Err(too_large());
        }
        usable(&picture).map_err(|message| {
            refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, message, "send a JPEG, a PNG or a WebP picture")
        })?;
        let place = open.inlet.try_place().map_err(|error| not_taken(&open, error))?;
        let bytes = Vec::from(picture);
        if !wait {
            place.push(bytes, None);
            return Ok(json(StatusCode::ACCEPTED, &serde_json::json!({ "stream": stream })));
        }
        let (watched, heard) = Waiter::pair();
        place.push(bytes, Some(watched));
        // It counts as the stream's from here on.
        drop(read);
        match tokio::time::timeout(timeout, heard).await {
            Err(_) => Err(refusal(
                StatusCode::GATEWAY_TIMEOUT,
                format!("nothing came of the picture within {timeout:?}; it is still on its way"),
                "`/stats` says how the stream is doing; wait longer with `timeout=1m`",
            )),
            Ok(heard) => answered(stream, heard.unwrap_or(Heard::Ended(Verdict::Lost))),
        }
    }

    async fn infer(&self, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
        let (mut stream, mut timeout) = (None, self.limits.wait);
        for (name, value) in form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()) {
            match &*name {
                "stream" => stream = Some(value.into_owned()),
                "timeout" => timeout = self.timeout(&value)?,
                _ => return Err(unknown(INFER, &name, &INFER_QUERY)),
            }
        }
        let open = match &stream {
            Some(stream) => self.open(stream)?,
            None => self.only()?,
        };
        if open.inlet.settings.answer.is_none() {
            let message = format!("no node answers for stream `{}`", open.stream);
            return Err(refusal(StatusCode::CONFLICT, message, "write `answer = \"NODE\"` into its source"));
        }
        let most = self.limits.max_infer;
        let too_large = || {
            let message = format!("the body has more than {}", format_size(most));
            refusal(StatusCode::PAYLOAD_TOO_LARGE, message, "send fewer frames at once")
        };
        let read = self.read(request.body_mut(), most, too_large).await?;
        let bytes = read.bytes.clone();
        let (max_frames, max_bytes) = (self.limits.max_frames, open.inlet.settings.max_bytes);
        // Tens of megabytes take a while, and this thread answers everybody.
        let reading = tokio::task::spawn_blocking(move || pictures(&bytes, max_frames, max_bytes));
        let pictures = reading.await.map_err(|error| {
            let message = format!("the body could not be read: {error}");
            refusal(StatusCode::INTERNAL_SERVER_ERROR, message, "look into the log")
        })??;
        let deadline = Instant::now() + timeout;
        let mut asked = Vec::with_capacity(pictures.len());
        for picture in pictures {
            // One after the other, each when there is room: the stream's thread makes room without our help.
            let asking = async {
                let place = open.inlet.place().await.map_err(|error| error.to_string())?;
                let (watched, heard) = Waiter::pair();
                place.push(picture?, Some(watched));
                Ok(heard)
            };
            let late = || Err(format!("it found no place within {timeout:?}"));
            asked.push(tokio::time::timeout_at(deadline, asking).await.unwrap_or_else(|_| late()));
        }
        drop(read);
        let mut predictions = Vec::with_capacity(asked.len());
        for (frame_idx, asked) in asked.into_iter().enumerate() {
            let boxes = match asked {
                Err(error) => Err(error),
                Ok(heard) => match tokio::time::timeout_at(deadline, heard).await {
                    Err(_) => Err(format!("nothing came of it within {timeout:?}")),
                    Ok(heard) => boxes(&heard.unwrap_or(Heard::Ended(Verdict::Lost))),
                },
            };
            let (boxes, error) = match boxes {
                Ok(boxes) => (boxes, None),
                Err(error) => (Vec::new(), Some(error)),
            };
            predictions.push(Predicted { frame_idx, boxes, error });
        }
        Ok(json(StatusCode::OK, &Inferred { predictions }))
    }

    /// The stream that is called `id`, if it is pushed to.
    fn open(&self, id: &str) -> Result<OpenInlet, Refusal> {
        if let Some(open) = self.inlets.get(id) {
            return Ok(open);
        }
        self.started()?;
        let unavailable = |message: String| refusal(StatusCode::SERVICE_UNAVAILABLE, message, "try again in a second");
        if self.inlets.is_returning(id) {
            return Err(unavailable(format!("stream `{id}` is being started anew: its graph was changed")));
        }
        let report = self.observe.report();
        let graphs = report.graphs.iter();
        let mut streams = graphs.flat_map(|graph| graph.streams.iter().map(move |stream| (graph, stream)));
        if let Some((graph, stream)) = streams.find(|(_, stream)| stream.stream == id) {
            if graph.state == GraphState::Starting {
                return Err(unavailable(format!("graph `{}` of stream `{id}` does not run yet", graph.name)));
            }
            let message =
                format!("stream `{id}` of graph `{}` is {}, and not pushed to", graph.name, stream.state.name());
            let hint = "pictures are pushed to running streams of a source with `type = \"push\"`";
            return Err(refusal(StatusCode::CONFLICT, message, hint));
        }
        let open = self.inlets.list();
        let hint = match nearest(id, open.iter().map(|open| &*open.stream)) {
            Some(near) => format!("did you mean `{near}`?"),
            None if open.is_empty() => "no stream is pushed to; add a source with `type = \"push\"`".to_owned(),
            None => format!("these are pushed to: {}", named(&open)),
        };
        let shown = id.escape_debug();
        Err(refusal(StatusCode::NOT_FOUND, format!("there is no stream `{shown}`"), &hint))
    }

    /// The only stream that is pushed to.
    fn only(&self) -> Result<OpenInlet, Refusal> {
        let open = self.inlets.list();
        match &open[..] {
            [only] => Ok(only.clone()),
            [] => {
                self.started()?;
                let hint = "add a source with `type = \"push\"`, `answer = \"NODE\"` and a stream";
                Err(refusal(StatusCode::NOT_FOUND, "no stream is pushed to".to_owned(), hint))
            }
            several => {
                let message = format!("{} streams are pushed to, and none is named", several.len());
                let hint = format!("write `{INFER}?stream=ID` with one of {}", named(several));
                Err(refusal(StatusCode::BAD_REQUEST, message, &hint))
            }
        }
    }

    /// Before the graphs run nobody knows which streams there will be.
    fn started(&self) -> Result<(), Refusal> {
        match self.observe.health().status {
            "starting" => {
                let message = "the graph does not run yet: its models are being loaded".to_owned();
                Err(refusal(StatusCode::SERVICE_UNAVAILABLE, message, "try again in a second"))
            }
            _ => Ok(()),
        }
    }

    fn timeout(&self, written: &str) -> Result<Duration, Refusal> {
        let longest = self.limits.longest_wait;
        match parse_duration(written) {
            Ok(timeout) if timeout <= longest && !timeout.is_zero() => Ok(timeout),
            _ => {
                let message = format!("`{}` is no `timeout`", written.escape_debug());
                let hint = format!("write a length of time up to {longest:?}, such as `timeout=10s`");
                Err(refusal(StatusCode::BAD_REQUEST, message, &hint))
            }
        }
    }

    /// Reads a body of at most `most` bytes.
    async fn read(&self, body: &mut Incoming, most: u64, too_large: impl Fn() -> Refusal) -> Result<Read, Refusal> {
        if body.size_hint().lower() > most {
            return Err(too_large());
        }
        let reading = async {
            let (mut bytes, mut share) = (BytesMut::new(), None::<OwnedSemaphorePermit>);
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| {
                    let message = format!("the body broke off: {error}");
                    refusal(StatusCode::BAD_REQUEST, message, "send the whole body")
                })?;
                let Ok(data) = frame.into_data() else { continue };
                let length = (bytes.len() + data.len()) as u64;
                if length > most {
                    return Err(too_large());
                }
                let held = share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) as u64;
                // A client that is slow holds what it has sent, and no more.
                let further = u32::try_from(length.div_ceil(UNIT).saturating_sub(held)).unwrap_or(u32::MAX);
                let further = self.bodies.clone().try_acquire_many_owned(further).map_err(|_| {
                    let most = format_size(self.limits.max_bodies);
                    let message = format!("bodies of {most} in all are being read already");
                    refusal(StatusCode::SERVICE_UNAVAILABLE, message, "try again in a second")
                })?;
                match &mut share {
                    Some(share) => share.merge(further),
                    None => share = Some(further),
                }
                bytes.extend_from_slice(&data);
            }
            Ok(Read { bytes: bytes.freeze(), _share: share })
        };
        tokio::time::timeout(self.limits.body_timeout, reading).await.unwrap_or_else(|_| {
            let message = format!("the body did not come within {:?}", self.limits.body_timeout);
            Err(refusal(StatusCode::REQUEST_TIMEOUT, message, "send it faster, or make it smaller"))
        })
    }
}

/// `POST /streams/ID/frames`: a picture goes into a stream; with `wait=true`, its record comes back.
pub(super) async fn frame(push: &Push, stream: &str, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    let answer = push.frame(stream, request).await;
    read_on(request, answer).await
}

/// `POST /infer`: pictures go into a stream, and their boxes come back, in order.
pub(super) async fn infer(push: &Push, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    let answer = push.infer(request).await;
    read_on(request, answer).await
}

/// Whoever is refused writes before they read: cut off at once, they would never see why. One that asks before it writes
/// is told right now, and one that was too slow has had its time.
async fn read_on(request: &mut Request<Incoming>, answer: Result<Answer, Refusal>) -> Result<Answer, Refusal> {
    let is_late = answer.as_ref().is_err_and(|refusal| refusal.status == StatusCode::REQUEST_TIMEOUT);
    let is_read = request.body().is_end_stream();
    if answer.is_err() && !is_read && !is_late && !request.headers().contains_key(header::EXPECT) {
        let _ = tokio::time::timeout(REFUSED_TIME, discard(request.body_mut())).await;
    }
    answer
}

fn refusal(status: StatusCode, error: String, hint: &str) -> Refusal {
    Refusal::new(status, error, hint)
}

fn unknown(path: &str, name: &str, known: &[&str]) -> Refusal {
    let hint = match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("use some of {}", known.join(", ")),
    };
    refusal(StatusCode::BAD_REQUEST, format!("`{path}` has no parameter `{}`", name.escape_debug()), &hint)
}

fn flag(written: &str) -> Result<bool, Refusal> {
    match written {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        other => {
            let message = format!("`{}` is neither true nor false", other.escape_debug());
            Err(refusal(StatusCode::BAD_REQUEST, message, "write `wait=true`, or leave it out"))
        }
    }
}

fn named(open: &[OpenInlet]) -> String {
    open.iter().map(|open| format!("`{}`", open.stream)).collect::<Vec<_>>().join(", ")
}

/// Whether bytes may be a picture, as far as their beginning tells.
fn usable(picture: &[u8]) -> Result<(), String> {
    match picture {
        [] => Err("the picture is empty: 0 bytes".to_owned()),
        bytes if still::is_known(bytes) => Ok(()),
        _ => Err("it is neither JPEG nor PNG nor WebP".to_owned()),
    }
}

fn not_taken(open: &OpenInlet, error: PushError) -> Refusal {
    let OpenInlet { graph, stream, .. } = open;
    let message = format!("graph `{graph}`, stream `{stream}`: {error}");
    match error {
        PushError::Full(_) => {
            let hint = "come back in a second; `/stats` says what the stream waits for";
            refusal(StatusCode::TOO_MANY_REQUESTS, message, hint)
        }
        PushError::Ending => refusal(StatusCode::SERVICE_UNAVAILABLE, message, "try again when it runs again"),
    }
}

/// What a caller who waits is told.
fn answered(stream: &str, heard: Heard) -> Result<Answer, Refusal> {
    match heard {
        Heard::Record(record) => match &record.body {
            RecordBody::Error { message } => Ok(rejected(message.clone())),
            _ => Ok(json(StatusCode::OK, &*record)),
        },
        Heard::Ended(Verdict::Rejected) => {
            Ok(rejected(format!("stream `{stream}`: a node that does not answer rejected the picture")))
        }
        Heard::Ended(Verdict::Lost) => {
            let message = format!("stream `{stream}`: the picture was lost: the stream or its graph ended");
            Err(refusal(StatusCode::SERVICE_UNAVAILABLE, message, "send it again when the stream runs again"))
        }
        Heard::Ended(verdict) => {
            let mut answer = empty(StatusCode::NO_CONTENT);
            answer.headers_mut().insert(VERDICT, HeaderValue::from_static(verdict.name()));
            Ok(answer)
        }
    }
}

fn rejected(message: String) -> Answer {
    let hint = "the error record in the results says the same; `/stats` counts what is rejected";
    let mut answer = refusal(StatusCode::UNPROCESSABLE_ENTITY, message, hint).answer();
    answer.headers_mut().insert(VERDICT, HeaderValue::from_static(Verdict::Rejected.name()));
    answer
}

/// The body of `/infer`.
#[derive(Deserialize)]
struct Batch {
    frames: Vec<String>,
}

/// Each picture of a batch, or what is wrong with it.
fn pictures(body: &[u8], most: usize, max_bytes: u64) -> Result<Vec<Result<Vec<u8>, String>>, Refusal> {
    let batch: Batch = read(body, "send `{\"frames\": [\"…\"]}` with each picture in base64")?;
    let count = batch.frames.len();
    if count > most {
        let message = format!("{count} frames are more than the {most} that are taken at once");
        return Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, message, "send several requests"));
    }
    let decoded = batch.frames.into_iter().map(|text| {
        let picture = STANDARD.decode(text.trim()).map_err(|error| format!("it is no base64: {error}"))?;
        if picture.len() as u64 > max_bytes {
            return Err(format!("it has more than {}", format_size(max_bytes)));
        }
        usable(&picture).map(|()| picture)
    });
    Ok(decoded.collect())
}

/// What is said of a batch.
#[derive(Serialize)]
struct Inferred {
    predictions: Vec<Predicted>,
}

/// What is said of one picture of a batch.
#[derive(Serialize)]
struct Predicted {
    /// Its place in the request.
    frame_idx: usize,
    boxes: Vec<PredictedBox>,
    /// Why there are no boxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Corners in pixels of the picture.
#[derive(Debug, PartialEq, Serialize)]
struct PredictedBox {
    x1: f32,
    y1: f32,
    x2: f32,
    y2: f32,
    class_id: usize,
    class_name: Arc<str>,
    confidence: f32,
}

fn boxes(heard: &Heard) -> Result<Vec<PredictedBox>, String> {
    let record = match heard {
        Heard::Record(record) => record,
        Heard::Ended(Verdict::Lost) => return Err("it was lost: the stream or its graph ended".to_owned()),
        Heard::Ended(verdict) => return Err(format!("no record came of it: it was {}", verdict.name())),
    };
    match &record.body {
        RecordBody::Detection { detections, .. } => Ok(detections
            .iter()
            .map(|found| {
                let [x1, y1, x2, y2] = found.bounds;
                let (class_id, class_name, confidence) = (found.index, found.label.clone(), found.score);
                PredictedBox { x1, y1, x2, y2, class_id, class_name, confidence }
            })
            .collect()),
        RecordBody::Error { message } => Err(message.clone()),
        other => Err(format!("`{}` answers with a {}, which has no boxes", record.node, other.kind())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_frame_by_frame() {
        let png = b"\x89PNG\r\n\x1a\n and so on";
        let body = serde_json::json!({ "frames": [STANDARD.encode(png), "?", STANDARD.encode("GIF89a"), ""] });
        let body = body.to_string();
        let read = pictures(body.as_bytes(), 4, 100).unwrap();
        assert_eq!(read[0].as_deref(), Ok(&png[..]));
        for (at, says) in [(1, "no base64"), (2, "neither JPEG"), (3, "empty")] {
            assert!(read[at].as_ref().unwrap_err().contains(says), "{:?}", read[at]);
        }
        assert!(pictures(body.as_bytes(), 4, 10).unwrap()[0].as_ref().unwrap_err().contains("more than 10 B"));
        let refused = |body: &[u8], most| pictures(body, most, 100).unwrap_err().status;
        assert_eq!(refused(body.as_bytes(), 3), StatusCode::PAYLOAD_TOO_LARGE);
        for wrong in [&b""[..], b"{}", b"[]", b"{\"frames\": 1}", b"{\"frames\": [1]}"] {
            assert_eq!(refused(wrong, 4), StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn a_caller_hears_once() {
        let (watched, mut heard) = Waiter::pair();
        watched.ended(Verdict::Filtered);
        let heard = heard.try_recv().unwrap();
        assert!(boxes(&heard).unwrap_err().contains("filtered"));
        let answer = answered("door", heard).unwrap();
        assert_eq!(
            (answer.status(), &answer.headers()[VERDICT]),
            (StatusCode::NO_CONTENT, &"filtered".parse().unwrap())
        );
        let (watched, mut heard) = Waiter::pair();
        drop(watched);
        let refusal = answered("door", heard.try_recv().unwrap()).unwrap_err();
        assert_eq!(refusal.status, StatusCode::SERVICE_UNAVAILABLE);
    }
}
