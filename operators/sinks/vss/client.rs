//! The REST interface of NVIDIA's Video Search and Summarization service, as far as uploads need it, in its two
//! generations: `v2` (the via-server, VSS 2.x) and `rtvi3` (RT-VLM of VSS 3.x, everything below `/v1`).
//!
//! No call of `v2` may be repeated blindly: each `POST /files` makes a file with an id of its own. So a failure says
//! whether the other side may have taken what was sent.

use std::fmt;
use std::io::{BufReader, Cursor, Read};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};
use ureq::http::StatusCode;
use ureq::{SendBody, Timeout};

use crate::item::{Content, time_text};

/// Answers are short: one that is longer, in bytes, is no answer of this service.
const LONGEST_ANSWER: u64 = 16 << 20;
/// The list of all files may be long, and is read through without being kept: in bytes, those of a million files.
const LONGEST_LIST: u64 = 256 << 20;
/// No id is longer.
const LONGEST_ID: usize = 128;
/// Of an answer that is none of this service, so many characters are shown.
const SHOWN: usize = 200;
/// How the codes begin that stand for an answer without one.
const NO_CODE: &str = "Http";

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
    /// It will never do. With a status, it was not taken either; without one, what came back cannot be made use of.
    Refused { status: Option<StatusCode>, code: String, message: String },
}

impl Failure {
    /// What the server has, or says, is not what it should be.
    pub fn wrong(code: &str, message: String) -> Failure {
        Failure::Refused { status: None, code: code.to_owned(), message }
    }

    /// Whether this answer to an upload is the service's own word on what was sent: it would say the same the next time.
    /// Whoever else refuses something, or for another reason (a token, an address), may have changed their mind by then.
    pub fn is_about_content(&self) -> bool {
        const ABOUT_CONTENT: [StatusCode; 5] = [
            StatusCode::BAD_REQUEST,
            StatusCode::CONFLICT,
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            StatusCode::UNPROCESSABLE_ENTITY,
        ];
        matches!(self, Failure::Refused { status: Some(status), code, .. }
            if !code.starts_with(NO_CODE) && ABOUT_CONTENT.contains(status))
    }

    /// What to do next, in one sentence.
    pub fn hint(&self) -> &'static str {
        match self {
            Failure::Unreachable(_) => "look whether the service runs, and whether `url` is right",
            Failure::Unknown(_) => "look into the log of the service, and whether `timeout` is long enough",
            Failure::Busy { .. } => "wait until the service has less to do",
            Failure::Refused { .. } => "do what the service asks for",
        }
    }
}

/// A file as the service lists it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StoredFile {
    pub id: String,
    #[serde(default)]
    pub filename: String,
    #[serde(default)]
    pub bytes: Option<u64>,
}

impl StoredFile {
    /// What a server says goes into addresses and journals: an id is taken only as one, and a size as what was sent.
    ///
    /// # Errors
    /// Where it is none, or the size another.
    pub fn checked(self, name: &str, bytes: u64) -> Result<StoredFile, Failure> {
        path_of(&self.id)?;
        match self.bytes {
            Some(there) if there != bytes => Err(Failure::wrong(
                "WrongSize",
                format!(
                    "the server has {there} bytes of `{name}` as {}, which has {bytes}: delete that file there, and run \
                     the graph again",
                    self.id
                ),
            )),
            _ => Ok(self),
        }
    }
}

/// Where a file is, below the base: an id leads nowhere else.
fn path_of(id: &str) -> Result<String, Failure> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(is_plain) {
        return Ok(format!("/files/{id}"));
    }
    let message =
        format!("the server said that `{}` is the id of a file, which is none: is `url` that of VSS?", shown(id));
    Err(Failure::wrong("BadId", message))
}

/// What is sent.
pub struct Upload<'a> {
    /// Of `A-Z a-z 0-9 _ . -` and spaces.
    pub name: &'a str,
    pub media_type: &'static str,
    pub content: &'a Content,
    /// Hexadecimal SHA-256 of the content.
    pub sha256: &'a str,
    /// For `rtvi3`: the id that the file shall have (a UUID), and which sensor filmed it when.
    pub identified: Option<(&'a str, &'a str, SystemTime)>,
}

/// One server. All calls block.
pub struct Client {
    agent: ureq::Agent,
    api: Api,
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
        Client { agent, api, base, token }
    }

    /// Where the server is.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Uploads a file and answers its id.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn upload(&self, upload: &Upload<'_>) -> Result<String, Failure> {
        let Form { boundary, head, tail } = form(upload);
        let length = head.len() as u64 + upload.content.len() + tail.len() as u64;
        let content: Box<dyn Read + Send + '_> = match upload.content {
            Content::Memory(bytes) => Box::new(Cursor::new(bytes.clone())),
            Content::File(file) => Box::new(file.reader()),
        };
        let mut body = Cursor::new(head).chain(content).chain(Cursor::new(tail));
        let path = "/files";
        let request = self
            .authorised(self.agent.post(format!("{}{path}", self.base)))
            .header("content-type", format!("multipart/form-data; boundary={boundary}"))
            .header("content-length", length.to_string());
        let stored: StoredFile = self.answer(path, request.send(SendBody::from_reader(&mut body)))?;
        Ok(stored.checked(upload.name, upload.content.len())?.id)
    }

    /// The ids of all files of a name and size.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn files(&self, name: &str, bytes: u64) -> Result<Vec<String>, Failure> {
        let path = "/files?purpose=vision";
        let mut answer = self.succeeded(path, self.get(path).call())?;
        let reader = BufReader::new(answer.body_mut().with_config().limit(LONGEST_LIST).reader());
        matching(reader, name, bytes)?.into_iter().map(|file| Ok(file.checked(name, bytes)?.id)).collect()
    }

    /// One file; `None` where the server has none of this id.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn file(&self, id: &str) -> Result<Option<StoredFile>, Failure> {
        let path = path_of(id)?;
        match self.answer(&path, self.get(&path).call()) {
            Ok(file) => Ok(Some(file)),
            // Whatever else stands between says no for reasons of its own, and the file may be there.
            Err(Failure::Refused { status: Some(status), code, .. }) if self.is_unknown_id(status, &code) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Whether the service says that it knows no such id. One that is sent to `rtvi3` again does no harm.
    fn is_unknown_id(&self, status: StatusCode, code: &str) -> bool {
        let is_words_of_the_service = !code.starts_with(NO_CODE);
        status == StatusCode::BAD_REQUEST && code == "BadParameter"
            || self.api == Api::Rtvi3 && status == StatusCode::NOT_FOUND && is_words_of_the_service
    }

    /// # Errors
    /// See [`Failure`].
    pub fn delete(&self, id: &str) -> Result<(), Failure> {
        let path = path_of(id)?;
        let request = self.authorised(self.agent.delete(format!("{}{path}", self.base)));
        self.answer::<Value>(&path, request.call()).map(drop)
    }

    /// What the server's one model says of a file.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn summary(&self, id: &str, prompt: &str) -> Result<String, Failure> {
        const FAILED: &str = "Summarization failed";
        let models: List<Model> = self.answer("/models", self.get("/models").call())?;
        let Some(model) = models.data.first() else {
            return Err(Failure::wrong("NoModel", "the server has no model".to_owned()));
        };
        let path = "/summarize";
        let request = self.authorised(self.agent.post(format!("{}{path}", self.base)));
        let asked = json!({ "id": id, "model": model.id, "prompt": prompt }).to_string();
        let said: Value = self.answer(path, request.header("content-type", "application/json").send(asked))?;
        let content = said["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        // A failure may come as a success.
        if content.is_empty() || content.starts_with(FAILED) {
            let message = if content.is_empty() { "the summary is empty" } else { content };
            return Err(Failure::wrong("SummaryFailed", message.to_owned()));
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

type Answer = ureq::http::Response<ureq::Body>;

impl Client {
    /// What was asked for below the base.
    fn answer<T: DeserializeOwned>(&self, path: &str, answer: Result<Answer, ureq::Error>) -> Result<T, Failure> {
        let text = text(&mut self.succeeded(path, answer)?)?;
        serde_json::from_str(&text).map_err(|error| {
            Failure::Unknown(format!("the answer is none of this service ({error}): {}", shown(&text)))
        })
    }

    fn succeeded(&self, path: &str, answer: Result<Answer, ureq::Error>) -> Result<Answer, Failure> {
        let mut answer = answer.map_err(failure)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        if let (true, Some(location)) = (status.is_redirection(), header("location")) {
            let place = shown(&self.moved(path, location));
            return Err(Failure::Refused {
                status: Some(status),
                code: format!("{NO_CODE}{}", status.as_u16()),
                message: format!("the server sends every request on to `{place}`: write this as `url`"),
            });
        }
        let after = header("retry-after").and_then(|value| value.parse().ok()).map(Duration::from_secs);
        let text = text(&mut answer)?;
        let ErrorBody { code, message } = serde_json::from_str(&text).unwrap_or_else(|_| ErrorBody {
            code: format!("{NO_CODE}{}", status.as_u16()),
            message: match shown(&text) {
                nothing if nothing.trim().is_empty() => {
                    format!("{}, without a word", status.canonical_reason().unwrap_or("an answer of its own"))
                }
                text => text,
            },
        });
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Failure::Busy { code, message, after },
            status if status.is_server_error() => {
                Failure::Unknown(format!("the server answered {}: {code}: {message}", status.as_u16()))
            }
            status => Failure::Refused { status: Some(status), code, message },
        })
    }

    /// The base that requests for `path` are sent on to; without a query, a name or a password.
    fn moved(&self, path: &str, location: &str) -> String {
        let whole = if location.contains("://") {
            location.to_owned()
        } else {
            let host = self.base.find("://").map_or(0, |at| at + "://".len());
            let root = self.base[host..].find('/').map_or(self.base.len(), |at| host + at);
            format!("{}/{}", &self.base[..root], location.trim_start_matches('/'))
        };
        let plain = |text: &str| text.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/').to_owned();
        let (whole, asked) = (plain(&whole), plain(path));
        let base = whole.strip_suffix(&asked).unwrap_or(&whole);
        let Some((scheme, rest)) = base.split_once("://") else { return base.to_owned() };
        let host = rest.find('/').unwrap_or(rest.len());
        format!("{scheme}://{}", &rest[rest[..host].rfind('@').map_or(0, |at| at + 1)..])
    }
}

fn text(answer: &mut Answer) -> Result<String, Failure> {
    let text = answer.body_mut().with_config().limit(LONGEST_ANSWER).read_to_string();
    text.map_err(|error| Failure::Unknown(format!("the answer broke off: {error}")))
}

/// Reads a list of files through, of which only those of a name and size are kept.
fn matching(reader: impl Read, name: &str, bytes: u64) -> Result<Vec<StoredFile>, Failure> {
    let mut files = serde_json::Deserializer::from_reader(reader);
    let found = Files { name, bytes }.deserialize(&mut files).and_then(|found| files.end().map(|()| found));
    found.map_err(|error| {
        if !error.is_io() {
            return Failure::Unknown(format!("the list of files is none of this service ({error})"));
        }
        let error = std::io::Error::from(error);
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<ureq::Error>());
        if let Some(ureq::Error::BodyExceedsLimit(limit)) = cause {
            let message = format!("the list of its files has more than {limit} bytes: delete files on the server");
            return Failure::wrong("LongList", message);
        }
        Failure::Unknown(format!("the list of files broke off: {error}"))
    })
}

#[derive(Clone, Copy)]
struct Files<'a> {
    name: &'a str,
    bytes: u64,
}

impl<'de> DeserializeSeed<'de> for Files<'_> {
    type Value = Vec<StoredFile>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<StoredFile>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// The object that a list is, and the array that is its `data`.
impl<'de> Visitor<'de> for Files<'_> {
    type Value = Vec<StoredFile>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of files")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<StoredFile>, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == "data" {
                found = Some(map.next_value_seed(self)?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        found.ok_or_else(|| serde::de::Error::missing_field("data"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut files: A) -> Result<Vec<StoredFile>, A::Error> {
        let mut found = Vec::new();
        while let Some(file) = files.next_element::<StoredFile>()? {
            if file.filename == self.name && file.bytes == Some(self.bytes) {
                found.push(file);
            }
        }
        Ok(found)
    }
}

/// What stands around a file that is sent.
struct Form {
    boundary: String,
    head: String,
    tail: String,
}

fn form(upload: &Upload<'_>) -> Form {
    // Whoever makes a video could put a boundary into it that they can compute; nothing contains its own hash.
    let boundary = upload.sha256.to_owned();
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
    Form { boundary, head, tail }
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

    #[test]
    fn no_content_can_have_the_boundary_of_its_form() {
        let text = hex::encode([7; 32]);
        let content = Content::Memory(bytes::Bytes::from_static(b"video"));
        let name = "door_chunk_0000.mp4";
        let upload = Upload { name, media_type: "video/mp4", content: &content, sha256: &text, identified: None };
        let Form { boundary, head, tail } = form(&upload);
        assert!(boundary.contains(&text), "it is not known before the content is: {boundary}");
        assert!(boundary.len() <= 70, "{boundary}: RFC 2046 allows no more");
        assert!(head.starts_with(&format!("--{boundary}\r\n")) && tail == format!("\r\n--{boundary}--\r\n"));
    }

    #[test]
    fn a_list_of_any_length_gives_the_files_that_are_meant() {
        let entry = |id: usize, name: &str, bytes: u64| {
            let id = id.to_string();
            json!({ "id": id, "filename": name, "bytes": bytes, "purpose": "vision", "new": [1, {}] })
        };
        let mut files: Vec<Value> = (0..100_000).map(|id| entry(id, "yard_chunk_0000.mp4", 5)).collect();
        files.extend([entry(100_000, "door.mp4", 5), entry(100_001, "door.mp4", 6), json!({ "id": "no-size" })]);
        let list = json!({ "object": "list", "data": files }).to_string();
        let found = matching(list.as_bytes(), "door.mp4", 5).unwrap();
        assert_eq!(found.into_iter().map(|file| file.id).collect::<Vec<_>>(), ["100000"]);
        for wrong in ["{}", "[1]", "<html>", "{\"data\": [", "{\"data\": []} more"] {
            let failure = matching(wrong.as_bytes(), "door.mp4", 5).unwrap_err();
            assert!(matches!(failure, Failure::Unknown(_)), "{wrong}: {failure:?}");
        }
    }

    #[test]
    fn what_a_server_says_of_a_file_is_looked_at() {
        let file = |id: &str, bytes| StoredFile { id: id.to_owned(), filename: String::new(), bytes };
        assert!(file("7c1f_a-0", None).checked("door.mp4", 5).is_ok());
        let code = |file: StoredFile| match file.checked("door.mp4", 5).unwrap_err() {
            Failure::Refused { status: None, code, .. } => code,
            other => format!("{other:?}"),
        };
        for id in ["", "../../x?y", "a b", "a/b", "ä", &"a".repeat(129)] {
            assert_eq!(code(file(id, Some(5))), "BadId", "{id}");
        }
        assert_eq!(code(file("a", Some(4))), "WrongSize");
    }

    #[test]
    fn only_the_services_own_words_mean_that_a_file_is_not_there() {
        let client = |api| Client::new("http://vss:8000", api, None, Duration::from_secs(1));
        let (v2, rtvi3) = (client(Api::V2), client(Api::Rtvi3));
        let (bad, missing) = (StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND);
        assert!(v2.is_unknown_id(bad, "BadParameter") && rtvi3.is_unknown_id(bad, "BadParameter"));
        assert!(!v2.is_unknown_id(bad, "InvalidFile") && !v2.is_unknown_id(missing, "NotFound"));
        assert!(!v2.is_unknown_id(StatusCode::FORBIDDEN, "BadParameter"));
        assert!(rtvi3.is_unknown_id(missing, "NotFound") && !rtvi3.is_unknown_id(missing, "Http404"));
    }

    #[test]
    fn the_address_that_a_server_sends_us_on_to_is_one_for_url() {
        let moved = |base: &str, path: &str, location: &str| {
            Client::new(base, Api::V2, None, Duration::from_secs(1)).moved(path, location)
        };
        assert_eq!(moved("http://vss", "/files", "https://vss:8443/files"), "https://vss:8443");
        assert_eq!(
            moved("http://vss/v1", "/files?purpose=vision", "https://vss/v1/files?purpose=vision"),
            "https://vss/v1"
        );
        assert_eq!(moved("http://vss:80/a", "/files", "/b/files/"), "http://vss:80/b");
        assert_eq!(moved("http://vss", "/files", "https://login/?token=secret"), "https://login");
        assert_eq!(moved("http://user:secret@vss", "/files", "/v1/files"), "http://vss/v1");
    }
}
