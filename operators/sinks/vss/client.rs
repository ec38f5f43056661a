//! The REST interface of NVIDIA's Video Search and Summarization service, as far as uploads need it, in its two
//! generations: `v2` (the via-server, VSS 2.x) and `rtvi3` (RT-VLM of VSS 3.x, everything below `/v1`).
//!
//! No call of `v2` may be repeated blindly: each `POST /files` makes a file with an id of its own. So a failure says
//! whether the other side may have taken what was sent.

use std::io::{Cursor, Read};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::http::StatusCode;
use ureq::{SendBody, Timeout};

use crate::item::{Content, time_text};

/// Answers are short: one that is longer, in bytes, is no answer of this service.
const LONGEST_ANSWER: u64 = 16 << 20;
/// Of an answer that is none of this service, so many characters are shown.
const SHOWN: usize = 200;

/// Which generation the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    V2,
    Rtvi3,
}

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing was sent.
    Unreachable(String),
    /// Nobody knows whether it was taken: no answer came, or one that does not say.
    Unknown(String),
    /// It was not taken, and may be later.
    Busy { code: String, message: String, after: Option<Duration> },
    /// It was not taken, and never will be.
    Refused { code: String, message: String },
}

/// A file as the service lists it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StoredFile {
    pub id: String,
    #[serde(default)]
    pub filename: String,
    #[serde(default)]
    pub bytes: u64,
}

/// What is sent.
pub struct Upload<'a> {
    /// Of `A-Z a-z 0-9 _ . -` and spaces.
    pub name: &'a str,
    pub media_type: &'static str,
    pub content: &'a Content,
    /// For `rtvi3`: the id that the file shall have (a UUID), and which sensor filmed it when.
    pub identified: Option<(&'a str, &'a str, SystemTime)>,
}

/// One server. All calls block.
pub struct Client {
    agent: ureq::Agent,
    base: String,
    token: Option<String>,
}

#[derive(Deserialize)]
struct ErrorBody {
    code: String,
    message: String,
}

#[derive(Deserialize)]
struct List<T> {
    data: Vec<T>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

impl Client {
    /// `url` may have a path; `timeout` is for each call as a whole.
    pub fn new(url: &str, api: Api, token: Option<String>, timeout: Duration) -> Client {
        let root = url.trim_end_matches('/');
        let base = match api {
            Api::V2 => root.to_owned(),
            Api::Rtvi3 => format!("{}/v1", root.strip_suffix("/v1").unwrap_or(root)),
        };
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(timeout))
            .build()
            .new_agent();
        Client { agent, base, token }
    }

    /// Uploads a file and answers its id.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn upload(&self, upload: &Upload<'_>) -> Result<String, Failure> {
        let boundary = format!("engine-{:016x}-{}", upload.content.len(), upload.name.len());
        let mut head = String::new();
        let mut field = |name: &str, value: &str| {
            head += &format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        };
        field("purpose", "vision");
        field("media_type", "video");
        if let Some((id, sensor, time)) = upload.identified {
            field("id", id);
            field("creation_time", &creation_time(time));
            field("sensor_name", sensor);
        }
        head += &format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{}\"\r\nContent-Type: {}\r\n\r\n",
            upload.name, upload.media_type
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        let length = head.len() as u64 + upload.content.len() + tail.len() as u64;
        let content: Box<dyn Read + Send> = match upload.content {
            Content::Memory(bytes) => Box::new(Cursor::new(bytes.clone())),
            Content::File(file) => {
                let opened = std::fs::File::open(&file.path);
                Box::new(opened.map_err(|error| Failure::Refused {
                    code: "Unreadable".to_owned(),
                    message: format!("`{}`, which holds the segment, cannot be read: {error}", file.path.display()),
                })?)
            }
        };
        let mut body = Cursor::new(head).chain(content).chain(Cursor::new(tail));
        let request = self
            .authorised(self.agent.post(format!("{}/files", self.base)))
            .header("content-type", format!("multipart/form-data; boundary={boundary}"))
            .header("content-length", length.to_string());
        let stored: StoredFile = answer(request.send(SendBody::from_reader(&mut body)))?;
        Ok(stored.id)
    }

    /// All files.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn files(&self) -> Result<Vec<StoredFile>, Failure> {
        let list: List<StoredFile> = answer(self.get("/files?purpose=vision").call())?;
        Ok(list.data)
    }

    /// One file; `None` where the server has none of this id.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn file(&self, id: &str) -> Result<Option<StoredFile>, Failure> {
        match answer(self.get(&format!("/files/{id}")).call()) {
            Ok(file) => Ok(Some(file)),
            Err(Failure::Refused { .. }) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// # Errors
    /// See [`Failure`].
    pub fn delete(&self, id: &str) -> Result<(), Failure> {
        let request = self.authorised(self.agent.delete(format!("{}/files/{id}", self.base)));
        answer::<Value>(request.call()).map(drop)
    }

    /// What the server's one model says of a file.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn summary(&self, id: &str, prompt: &str) -> Result<String, Failure> {
        const FAILED: &str = "Summarization failed";
        let models: List<Model> = answer(self.get("/models").call())?;
        let Some(model) = models.data.first() else {
            return Err(Failure::Refused { code: "NoModel".to_owned(), message: "the server has no model".to_owned() });
        };
        let request = self.authorised(self.agent.post(format!("{}/summarize", self.base)));
        let asked = json!({ "id": id, "model": model.id, "prompt": prompt }).to_string();
        let said: Value = answer(request.header("content-type", "application/json").send(asked))?;
        let content = said["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        // A failure may come as a success.
        if content.is_empty() || content.starts_with(FAILED) {
            let message = if content.is_empty() { "the summary is empty" } else { content };
            return Err(Failure::Refused { code: "SummaryFailed".to_owned(), message: message.to_owned() });
        }
        Ok(content.to_owned())
    }

    fn get(&self, path: &str) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
        self.authorised(self.agent.get(format!("{}{path}", self.base)))
    }

    fn authorised<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }
}

/// RFC 3339 with milliseconds and `Z`: 24 characters.
fn creation_time(time: SystemTime) -> String {
    let text = time_text(time);
    let (seconds, fraction) = text.trim_end_matches('Z').split_once('.').unwrap_or((text.trim_end_matches('Z'), ""));
    format!("{seconds}.{:0<3.3}Z", fraction)
}

fn answer<T: DeserializeOwned>(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<T, Failure> {
    let mut answer = answer.map_err(failure)?;
    let status = answer.status();
    let after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    let text = answer.body_mut().with_config().limit(LONGEST_ANSWER).read_to_string();
    let text = text.map_err(|error| Failure::Unknown(format!("the answer broke off: {error}")))?;
    if status.is_success() {
        return serde_json::from_str(&text).map_err(|error| {
            Failure::Unknown(format!("the answer is none of this service ({error}): {}", shown(&text)))
        });
    }
    let ErrorBody { code, message } = serde_json::from_str(&text)
        .unwrap_or_else(|_| ErrorBody { code: format!("Http{}", status.as_u16()), message: shown(&text) });
    Err(match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Failure::Busy { code, message, after: after.map(Duration::from_secs) }
        }
        status if status.is_server_error() => {
            Failure::Unknown(format!("the server answered {}: {code}: {message}", status.as_u16()))
        }
        _ => Failure::Refused { code, message },
    })
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect::<String>().escape_debug().to_string()
}

fn failure(error: ureq::Error) -> Failure {
    use std::io::ErrorKind;
    let before_anything = match &error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => true,
        ureq::Error::Io(error) => matches!(
            error.kind(),
            ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
        ),
        ureq::Error::BadUri(_) | ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
        _ => false,
    };
    if before_anything { Failure::Unreachable(error.to_string()) } else { Failure::Unknown(error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_24_characters() {
        let at = |micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        assert_eq!(creation_time(at(1_767_225_600_250_999)), "2026-01-01T00:00:00.250Z");
        assert_eq!(creation_time(at(1_767_225_600_000_000)), "2026-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_base_may_have_a_path_and_a_version() {
        let base = |url: &str, api| Client::new(url, api, None, Duration::from_secs(1)).base;
        assert_eq!(base("http://vss:8000/", Api::V2), "http://vss:8000");
        assert_eq!(base("http://vss:8000/v1", Api::V2), "http://vss:8000/v1");
        assert_eq!(base("http://vss:8000", Api::Rtvi3), "http://vss:8000/v1");
        assert_eq!(base("http://vss:8000/v1/", Api::Rtvi3), "http://vss:8000/v1");
    }
}
