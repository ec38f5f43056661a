//! `POST /predict`: what a model says of one picture.
//!
//! | answer | when |
//! |---|---|
//! | 200 | `{"predictions": [{"label", "score"}], "has_person": bool or null}` |
//! | 400 | the query or the form cannot be read, or has no `file` |
//! | 404 | no such model is served |
//! | 405 | another method than POST |
//! | 408 | the body took too long |
//! | 413 | too many bytes, or too many pixels |
//! | 415 | neither JPEG nor PNG nor WebP |
//! | 422 | a picture of one of these kinds that is broken |
//! | 500 | the model failed on it |
//! | 503, with `Retry-After` | the model is being loaded, or too many requests are being answered |
//! | 504 | the model took too long |

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use operators::media::still::{self, StillError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::routes::{Answer, Refusal, empty, json, nearest};
use crate::graph::memory::Memory;
use crate::runtime::predict::{PredictError, PredictReport, Predictor, Wishes, places};

/// What a picture may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PredictLimits {
    /// Bytes of a picture.
    pub max_bytes: u64,
    /// Pixels of a picture: decoding takes about four bytes for each.
    pub max_pixels: u64,
    /// Requests that are being answered at once; those beyond are told to come back.
    pub max_requests: usize,
    /// A body that has not come completely in this time is given up.
    pub body_timeout: Duration,
    /// A body of which nothing has come for this time is given up: whoever is silent takes a request from the others.
    pub body_silence: Duration,
}

impl Default for PredictLimits {
    fn default() -> Self {
        PredictLimits {
            max_bytes: 20 << 20,
            max_pixels: 50_000_000,
            max_requests: 16,
            body_timeout: Duration::from_secs(30),
            body_silence: Duration::from_secs(5),
        }
    }
}

impl PredictLimits {
    /// The worst case of answering: bodies, and pictures that are decoded or in the pool.
    pub fn memory(&self, pool_threads: usize) -> Memory {
        let mut memory = Memory::default();
        let body = self.max_bytes.saturating_add(FORM_BYTES).saturating_mul(COPIES_OF_A_BODY);
        memory.add("bodies of requests".to_owned(), self.max_requests as u64, body);
        let places = places(pool_threads).min(self.max_requests) as u64;
        memory.add("pictures, decoded or in the pool".to_owned(), places, still::memory(self.max_pixels));
        memory
    }
}

/// A buffer that grows holds its content twice for a moment, and the field of a form is taken out of the form.
const COPIES_OF_A_BODY: u64 = 3;
/// What a form needs beside the picture in it.
pub(super) const FORM_BYTES: u64 = 64 << 10;
/// Bytes of a body that is refused that are read all the same, so that its sender gets to reading the answer.
const REFUSED_BYTES: u64 = 256 << 20;
/// How long that may take.
pub(super) const REFUSED_TIME: Duration = Duration::from_secs(5);

pub(super) const METHODS: &str = "POST, OPTIONS";
const QUERY: [&str; 3] = ["model", "threshold", "top_k"];

/// The route, with what bounds it.
pub struct Predict {
    predictor: Arc<Predictor>,
    limits: PredictLimits,
    requests: Arc<Semaphore>,
}

/// How a body carries its picture.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Carried {
    Raw,
    /// The boundary between its fields.
    Form(String),
}

impl Predict {
    pub fn new(predictor: Arc<Predictor>, limits: PredictLimits) -> Predict {
        Predict { predictor, limits, requests: Arc::new(Semaphore::new(limits.max_requests)) }
    }

    pub fn report(&self) -> PredictReport {
        self.predictor.report()
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Answer {
        if request.method() == Method::OPTIONS {
            return empty(StatusCode::NO_CONTENT);
        }
        let (head, mut body) = request.into_parts();
        let result = self.predict(&head, &mut body).await;
        result.unwrap_or_else(|refusal| {
            let busy = refusal.status == StatusCode::SERVICE_UNAVAILABLE;
            let mut answer = refusal.answer();
            if busy {
                answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            answer
        })
    }

    async fn predict(&self, head: &hyper::http::request::Parts, body: &mut Incoming) -> Result<Answer, Refusal> {
        let (wishes, carried, chosen, _slot) = match self.begin(head, body) {
            Ok(begun) => begun,
            Err(refusal) => {
                // Its sender writes before it reads; cut off at once, it would never see why. One that asks before it
                // writes is told right now.
                if !head.headers.contains_key(header::EXPECT) {
                    let _ = tokio::time::timeout(REFUSED_TIME, discard(body)).await;
                }
                return Err(refusal);
            }
        };
        let bytes = self.read(body).await?;
        let picture = match carried {
            Carried::Raw => bytes,
            Carried::Form(boundary) => file(bytes, boundary).await?,
        };
        if picture.len() as u64 > self.limits.max_bytes {
            return Err(self.too_large());
        }
        if picture.is_empty() {
            return Err(refusal(StatusCode::UNPROCESSABLE_ENTITY, "the picture is empty: 0 bytes", "send a picture"));
        }
        let place = self.predictor.place().await.map_err(failed)?;
        let most = self.limits.max_pixels;
        let decoding = tokio::task::spawn_blocking(move || (still::decode(&picture, most), place));
        let (decoded, place) = decoding.await.map_err(|error| {
            let message = format!("the picture could not be decoded: {error}");
            refusal(StatusCode::INTERNAL_SERVER_ERROR, &message, "look into the log")
        })?;
        let frame = decoded.map_err(unusable)?;
        let answer = self.predictor.predict(&chosen, frame, place, wishes).await.map_err(failed)?;
        Ok(json(StatusCode::OK, &answer))
    }

    /// Everything that is known before the body is read.
    fn begin(
        &self,
        head: &hyper::http::request::Parts,
        body: &Incoming,
    ) -> Result<(Wishes, Carried, crate::runtime::predict::Chosen, OwnedSemaphorePermit), Refusal> {
        if head.method != Method::POST {
            let message = format!("{} is not answered here", head.method);
            return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, &message, "POST a picture"));
        }
        let (model, wishes) = wishes(head.uri.query().unwrap_or_default())?;
        let chosen = self.predictor.choose(model.as_deref()).map_err(failed)?;
        let carried = carried(&head.headers)?;
        let most = self.limits.max_bytes + if carried == Carried::Raw { 0 } else { FORM_BYTES };
        if body.size_hint().lower() > most {
            return Err(self.too_large());
        }
        let slot = self.requests.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{} requests are being answered already", self.limits.max_requests);
            refusal(StatusCode::SERVICE_UNAVAILABLE, &message, "try again in a second")
        })?;
        Ok((wishes, carried, chosen, slot))
    }

    async fn read(&self, body: &mut Incoming) -> Result<Bytes, Refusal> {
        let most = self.limits.max_bytes + FORM_BYTES;
        let late =
            |message: String| refusal(StatusCode::REQUEST_TIMEOUT, &message, "send it faster, or make it smaller");
        let reading = async {
            let mut bytes = BytesMut::new();
            let silence = self.limits.body_silence;
            while let Some(frame) = tokio::time::timeout(silence, body.frame())
                .await
                .map_err(|_| late(format!("no more of the body came within {silence:?}")))?
            {
                let frame = frame.map_err(|error| {
                    let message = format!("the body broke off: {error}");
                    refusal(StatusCode::BAD_REQUEST, &message, "send the whole picture")
                })?;
                if let Ok(data) = frame.into_data() {
                    if (bytes.len() + data.len()) as u64 > most {
                        return Err(self.too_large());
                    }
                    bytes.extend_from_slice(&data);
                }
            }
            Ok(bytes.freeze())
        };
        match tokio::time::timeout(self.limits.body_timeout, reading).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(refusal)) => {
                if refusal.status != StatusCode::REQUEST_TIMEOUT {
                    let _ = tokio::time::timeout(REFUSED_TIME, discard(body)).await;
                }
                Err(refusal)
            }
            Err(_) => Err(late(format!("the body did not come within {:?}", self.limits.body_timeout))),
        }
    }

    fn too_large(&self) -> Refusal {
        let message = format!("the picture has more than {} bytes", self.limits.max_bytes);
        refusal(StatusCode::PAYLOAD_TOO_LARGE, &message, "make it smaller, or raise `--predict-max-bytes`")
    }
}

fn refusal(status: StatusCode, error: &str, hint: &str) -> Refusal {
    Refusal { status, error: error.to_owned(), hint: hint.to_owned() }
}

fn failed(error: PredictError) -> Refusal {
    let status = match error {
        PredictError::NoModel | PredictError::Unknown { .. } => StatusCode::NOT_FOUND,
        PredictError::Unnamed { .. } => StatusCode::BAD_REQUEST,
        PredictError::Warming { .. } | PredictError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        PredictError::Broken { .. } | PredictError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        PredictError::Late(_) => StatusCode::GATEWAY_TIMEOUT,
    };
    refusal(status, &error.to_string(), &error.hint())
}

fn unusable(error: StillError) -> Refusal {
    let (status, hint) = match error {
        StillError::Format => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "send a JPEG, PNG or WebP picture"),
        StillError::Pixels { .. } | StillError::Memory => {
            (StatusCode::PAYLOAD_TOO_LARGE, "make it smaller, or raise `--predict-max-pixels`")
        }
        StillError::Broken(_) => (StatusCode::UNPROCESSABLE_ENTITY, "check that it was sent completely"),
    };
    refusal(status, &format!("the picture cannot be used: {error}"), hint)
}

/// The model and the wishes of a query.
fn wishes(query: &str) -> Result<(Option<String>, Wishes), Refusal> {
    let bad = |message: &str, hint: &str| refusal(StatusCode::BAD_REQUEST, message, hint);
    let (mut model, mut wishes) = (None, Wishes::default());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "model" => model = Some(value.into_owned()),
            "top_k" => match value.parse() {
                Ok(count @ 1..=1000) => wishes.top_k = Some(count),
                _ => return Err(bad(&format!("`{value}` is no `top_k`"), "write a whole number from 1 to 1000")),
            },
            "threshold" => match value.parse() {
                Ok(score) if (0.0..=1.0).contains(&score) => wishes.threshold = Some(score),
                _ => return Err(bad(&format!("`{value}` is no `threshold`"), "write a score from 0 to 1")),
            },
            _ => {
                let hint = match nearest(&name, QUERY.into_iter()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("use some of {}", QUERY.join(", ")),
                };
                return Err(bad(&format!("`/predict` has no parameter `{name}`"), &hint));
            }
        }
    }
    Ok((model, wishes))
}

/// How the body carries the picture, by its type. What kind of picture it is, its first bytes tell.
pub(super) fn carried(headers: &HeaderMap) -> Result<Carried, Refusal> {
    let Some(written) = headers.get(header::CONTENT_TYPE) else { return Ok(Carried::Raw) };
    let written = String::from_utf8_lossy(written.as_bytes());
    let kind = written.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "multipart/form-data" => multer::parse_boundary(&*written).map(Carried::Form).map_err(|error| {
            refusal(StatusCode::BAD_REQUEST, &format!("the form cannot be read: {error}"), "name its boundary")
        }),
        "image/jpeg" | "image/jpg" | "image/png" | "image/webp" | "application/octet-stream" => Ok(Carried::Raw),
        // What `curl --data-binary` says of everything.
        "application/x-www-form-urlencoded" => Ok(Carried::Raw),
        _ => {
            let message = format!("`{kind}` is no kind of picture that can be read");
            let hint =
                "send image/jpeg, image/png or image/webp, or a form (multipart/form-data) with the field `file`";
            Err(refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, &message, hint))
        }
    }
}

/// The field `file` of a form.
pub(super) async fn file(form: Bytes, boundary: String) -> Result<Bytes, Refusal> {
    let unreadable = |error: multer::Error| {
        refusal(StatusCode::BAD_REQUEST, &format!("the form cannot be read: {error}"), "send it as browsers do")
    };
    let mut fields = Vec::new();
    let mut form = multer::Multipart::new(Full::<Bytes>::from(form).into_data_stream(), boundary);
    while let Some(field) = form.next_field().await.map_err(unreadable)? {
        if field.name() == Some("file") {
            return field.bytes().await.map_err(unreadable);
        }
        fields.push(format!("`{}`", field.name().unwrap_or_default().escape_debug()));
    }
    let message = match fields.is_empty() {
        true => "the form has no field `file`: it has none at all".to_owned(),
        false => format!("the form has no field `file`, only {}", fields.join(", ")),
    };
    Err(refusal(StatusCode::BAD_REQUEST, &message, "send the picture as the field `file`"))
}

/// Reads on and keeps nothing.
pub(super) async fn discard(body: &mut Incoming) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
        if bytes > REFUSED_BYTES {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_and_mistakes_are_named() {
        let (model, found) = wishes("model=a%20b&threshold=0.5&top_k=3").unwrap();
        assert_eq!(model.as_deref(), Some("a b"));
        assert_eq!(found, Wishes { top_k: Some(3), threshold: Some(0.5) });
        assert_eq!(wishes("").unwrap(), (None, Wishes::default()));
        for (query, says) in [
            ("modle=a", "did you mean `model`?"),
            ("colour=red", "use some of model"),
            ("top_k=0", "1 to 1000"),
            ("top_k=x", "1 to 1000"),
            ("threshold=1.5", "0 to 1"),
            ("threshold=NaN", "0 to 1"),
        ] {
            let refusal = wishes(query).unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
            assert!(refusal.hint.contains(says), "{query}: {}", refusal.hint);
        }
    }

    fn typed(kind: &'static str) -> Result<Carried, StatusCode> {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
        carried(&headers).map_err(|refusal| refusal.status)
    }

    #[test]
    fn the_type_says_how_a_picture_is_carried() {
        assert_eq!(carried(&HeaderMap::new()).unwrap(), Carried::Raw);
        assert_eq!(typed("image/PNG; charset=binary"), Ok(Carried::Raw));
        assert_eq!(typed("multipart/form-data; boundary=\"a b\""), Ok(Carried::Form("a b".into())));
        assert_eq!(typed("multipart/form-data"), Err(StatusCode::BAD_REQUEST));
        assert_eq!(typed("text/html"), Err(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        assert_eq!(typed("image/gif"), Err(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }

    #[tokio::test]
    async fn the_field_of_a_form_is_found() {
        let form = |name: &str| {
            format!(
                "--b\r\ncontent-disposition: form-data; name=\"note\"\r\n\r\nhello\r\n--b\r\n\
                 content-disposition: form-data; name=\"{name}\"; filename=\"a.png\"\r\n\r\nPICTURE\r\n--b--\r\n"
            )
        };
        assert_eq!(file(form("file").into(), "b".into()).await.unwrap(), "PICTURE");
        let refusal = file(form("image").into(), "b".into()).await.unwrap_err();
        assert!(refusal.error.ends_with("only `note`, `image`"), "{}", refusal.error);
        for broken in ["", "--b\r\n", &form("file")[..120]] {
            let refusal = file(broken.to_owned().into(), "b".into()).await.unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{broken}");
        }
    }
}
