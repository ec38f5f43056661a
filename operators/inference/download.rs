//! Fetches files that manifests name by an address, into a cache that is keyed by their SHA-256.
//!
//! What arrives lies in `SHA256.part` until it is whole, and goes on from there after a cut, a full disk or another start
//! of the process. Only a file with the right hash gets its final name, so nothing in the cache is ever half a model.
//!
//! Who serves `https://…` is known by the root certificates that are compiled in, or by those of the file that
//! [`ROOTS_VARIABLE`] names. Redirects are followed, but never from `https` to anything else.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::address::masked;
use crate::clock::Clock;
use crate::config::format_size;
use crate::error::StartError;
use crate::inference::hashes;
use crate::inference::model::without_credentials;
use crate::storage::error::StorageError;
use crate::storage::location::{S3Location, is_s3};
use crate::storage::s3::{Access, S3};
use crate::storage::{Storage, runtime};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

/// The environment variable that names the folder of everything that the engine keeps to save time.
pub const CACHE_VARIABLE: &str = "ENGINE_CACHE";

/// The environment variable that names a file of root certificates (PEM) to trust in the place of those that are
/// compiled in, as other programs know it.
pub const ROOTS_VARIABLE: &str = "SSL_CERT_FILE";

/// Where fetched files are kept.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// The cache of this user: `models` in `$ENGINE_CACHE`, in `engine` of `$XDG_CACHE_HOME`, or in `~/.cache/engine`.
    pub fn of_user() -> Cache {
        Cache { folder: hashes::user_cache().map(|folder| folder.join("models")) }
    }

    /// A cache in a folder of the caller's choice, which need not be there yet.
    pub fn at(folder: impl Into<PathBuf>) -> Cache {
        Cache { folder: Some(folder.into()) }
    }

    /// Where the file with this hash is or would be. `None` where there is no folder, or `sha256` is no hash.
    pub fn path(&self, sha256: &str) -> Option<PathBuf> {
        let is_hash = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.folder.as_ref().filter(|_| is_hash).map(|folder| folder.join(format!("{sha256}.onnx")))
    }
}

/// Brings a file into the cache.
pub trait Fetch: Send + Sync {
    /// Fetches what `url` has for the model `name`, unless it is there; answers where it is. `sha256` is hexadecimal,
    /// in small letters.
    ///
    /// # Errors
    /// Where it cannot be fetched or kept, or has another hash.
    fn fetch(&self, name: &str, url: &str, sha256: &str, cache: &Cache) -> Result<PathBuf, StartError>;
}

/// Is told how a download gets on.
pub trait Progress: Send + Sync {
    /// The file of model `name` comes from `url`; `have` bytes are there, of `total` where that is known. Called again
    /// when a download goes on after a cut.
    fn begin(&self, name: &str, url: &str, have: u64, total: Option<u64>);

    /// Another process fetches the same file for model `name`; it is waited for.
    fn waiting(&self, name: &str);

    /// `bytes` more are there.
    fn advance(&self, bytes: u64);

    /// It is over, well or not.
    fn end(&self);
}

/// Fetches over HTTP, and from buckets of S3 with the credentials that programs of AWS find.
pub struct Download {
    pub progress: Arc<dyn Progress>,
    pub clock: Arc<dyn Clock>,
}

/// So many attempts in a row that bring nothing are the end of it.
const BARREN_ATTEMPTS: u32 = 3;
/// How long to wait before another attempt, times the barren attempts so far.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a server may say nothing.
const SILENCE: Duration = Duration::from_secs(30);
/// Bytes of an object that are asked for at a time.
const RANGE: u64 = 8 << 20;
/// A file that grows beyond this is no model.
const MOST_BYTES: u64 = 64 << 30;

/// Why an attempt ended early.
enum Failure {
    /// Trying again may help.
    Cut(String),
    /// It will not.
    Final(StartError),
}

/// One file on its way.
struct Transfer<'a> {
    name: &'a str,
    url: &'a str,
    /// The address as it may be shown.
    shown: String,
    part: PathBuf,
    file: File,
    server: Server,
}

/// Who has it.
#[derive(Clone)]
enum Server {
    Http(ureq::Agent),
    S3(Arc<S3>, S3Location),
}

impl Fetch for Download {
    fn fetch(&self, name: &str, url: &str, sha256: &str, cache: &Cache) -> Result<PathBuf, StartError> {
        let shown = shown(url);
        if !["https://", "http://", "s3://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(StartError::new(format!("model `{name}`: {shown} is no address that can be fetched"))
                .hint("write `file = \"https://…\"` or `file = \"s3://…\"` in its manifest, or the name of a file"));
        }
        let target = cache.path(sha256).ok_or_else(|| match cache.folder {
            None => StartError::new(format!("model `{name}` cannot be fetched: there is no folder to keep it in"))
                .hint(format!("set {CACHE_VARIABLE} to a folder")),
            Some(_) => StartError::new(format!("model `{name}`: `{sha256}` in its manifest is no SHA-256"))
                .hint("write the 64 hexadecimal digits that the publisher of the file gives"),
        })?;
        let part = target.with_extension("part");
        let waiting = || self.progress.waiting(name);
        let file = open(&part, &waiting).map_err(|error| unkept(name, &part, &error))?;
        if target.is_file() {
            return Ok(target);
        }
        let server = if is_s3(url) {
            let (bucket, place) = stored(name, url, &shown)?;
            Server::S3(bucket, place)
        } else {
            Server::Http(agent(url)?)
        };
        let mut transfer = Transfer { name, url, shown, part, file, server };
        let result = self.transfer(&mut transfer, &target, sha256);
        self.progress.end();
        result
    }
}

impl Download {
    fn transfer(&self, transfer: &mut Transfer<'_>, target: &Path, sha256: &str) -> Result<PathBuf, StartError> {
        let mut barren = 0;
        let mut started_anew = false;
        loop {
            let had = transfer.have()?;
            let attempt = match transfer.server.clone() {
                Server::Http(agent) => self.attempt(transfer, &agent, had),
                Server::S3(bucket, place) => self.attempt_s3(transfer, &bucket, &place.key, had),
            };
            match attempt {
                Ok(()) => {
                    let actual = hashes::hash(&transfer.part).map_err(|error| transfer.unkept(&error))?;
                    if actual == sha256 {
                        let kept = transfer.file.sync_all().and_then(|()| fs::rename(&transfer.part, target));
                        return kept.map(|()| target.to_owned()).map_err(|error| transfer.unkept(&error));
                    }
                    // What was there before may have been of another file.
                    if had == 0 || started_anew {
                        fs::remove_file(&transfer.part).map_err(|error| transfer.unkept(&error))?;
                        let (name, shown) = (transfer.name, &transfer.shown);
                        let message = format!(
                            "model `{name}`: what {shown} has is another file than its manifest means: its SHA-256 is \
                             {actual}, not {sha256}"
                        );
                        return Err(StartError::new(message)
                            .hint("it was not kept; put the new hash into the manifest if the change is meant"));
                    }
                    started_anew = true;
                    transfer.empty()?;
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Cut(why)) => {
                    barren = if transfer.have()? > had { 0 } else { barren + 1 };
                    if barren == BARREN_ATTEMPTS {
                        let (name, shown) = (transfer.name, &transfer.shown);
                        let have = format_size(transfer.have()?);
                        return Err(StartError::new(format!("model `{name}` cannot be fetched from {shown}: {why}"))
                            .hint(format!("{have} of it are kept: `engine models pull {name}` goes on from there")));
                    }
                    tracing::debug!(model = transfer.name, %why, "the download was cut");
                    let pause = PAUSE * barren;
                    self.clock.wait(self.clock.now() + pause, pause);
                }
            }
        }
    }

    /// Appends what is missing behind the `had` bytes that are there.
    fn attempt(&self, transfer: &mut Transfer<'_>, agent: &ureq::Agent, had: u64) -> Result<(), Failure> {
        // Bytes are counted and hashed as they are in the file, so nobody may compress them on the way.
        let mut request = agent.get(transfer.url).header("accept-encoding", "identity");
        if had > 0 {
            request = request.header("range", format!("bytes={had}-"));
        }
        let answer = request.call().map_err(|error| match error {
            ureq::Error::BadUri(why) => Failure::Final(transfer.refused(&why)),
            ureq::Error::RequireHttpsOnly(address) => {
                let why = format!("it leads on to {}, which is not encrypted", self::shown(&address));
                Failure::Final(transfer.refused(&why))
            }
            ureq::Error::TooManyRedirects | ureq::Error::RedirectFailed => {
                Failure::Final(transfer.refused("it leads on and on"))
            }
            error if is_distrust(&error) => Failure::Final(
                StartError::new(format!(
                    "model `{}` cannot be fetched from {}: {error}",
                    transfer.name, transfer.shown
                ))
                .hint(format!("set {ROOTS_VARIABLE} to a file with the root certificates (PEM) of your organisation")),
            ),
            other => Failure::Cut(other.to_string()),
        })?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let start = match answer.status().as_u16() {
            200 => 0,
            206 => content_start(header("content-range")).ok_or_else(|| {
                Failure::Cut("the server does not say which part it sends (no `Content-Range`)".to_owned())
            })?,
            // There is nothing behind what is here: its hash tells whether it is whole.
            416 if had > 0 => return Ok(()),
            status @ (408 | 429 | 500..) => return Err(Failure::Cut(format!("the server answers {status}"))),
            status => return Err(Failure::Final(transfer.refused(&format!("the server answers {status}")))),
        };
        if start != had {
            transfer.empty().map_err(Failure::Final)?;
            if start != 0 {
                return Err(Failure::Cut("the server sends another part than was asked for".to_owned()));
            }
        }
        let length = header("content-length").and_then(|length| length.parse::<u64>().ok());
        self.progress.begin(transfer.name, &transfer.shown, start, length.map(|length| start + length));
        let mut have = start;
        let mut body = answer.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = body.read(&mut buffer).map_err(|error| Failure::Cut(error.to_string()))?;
            if count == 0 {
                break;
            }
            have += count as u64;
            if have > MOST_BYTES {
                return Err(Failure::Final(transfer.refused("the file does not end")));
            }
            transfer.file.write_all(&buffer[..count]).map_err(|error| Failure::Final(transfer.unkept(&error)))?;
            self.progress.advance(count as u64);
        }
        match length {
            Some(length) if have < start + length => {
                Err(Failure::Cut(format!("the connection ended after {have} of {} bytes", start + length)))
            }
            _ => Ok(()),
        }
    }
}

impl Download {
    /// As [`Download::attempt`], from a bucket.
    fn attempt_s3(&self, transfer: &mut Transfer<'_>, bucket: &Arc<S3>, key: &str, had: u64) -> Result<(), Failure> {
        let failed = |transfer: &Transfer<'_>, error: &StorageError| {
            if error.is_temporary() {
                return Failure::Cut(error.message.clone());
            }
            let (name, shown) = (transfer.name, &transfer.shown);
            let message = format!("model `{name}` cannot be fetched from {shown}: {}", error.message);
            Failure::Final(StartError { message, hint: error.hint.clone() })
        };
        let looked = {
            let (bucket, key) = (bucket.clone(), key.to_owned());
            runtime::wait_for(async move { bucket.head(&key).await })
        };
        let object = looked.map_err(|error| failed(transfer, &error))?;
        let mut have = had;
        if have > object.bytes {
            // What is here is of another file.
            transfer.empty().map_err(Failure::Final)?;
            have = 0;
        }
        self.progress.begin(transfer.name, &transfer.shown, have, Some(object.bytes));
        while have < object.bytes {
            let (bucket, object, range) = (bucket.clone(), object.clone(), have..object.bytes.min(have + RANGE));
            let part = runtime::wait_for(async move { bucket.get(&object.key, range, object.etag.as_deref()).await });
            let part = part.map_err(|error| failed(transfer, &error))?;
            if part.is_empty() {
                return Err(Failure::Cut("the object became shorter meanwhile".to_owned()));
            }
            transfer.file.write_all(&part).map_err(|error| Failure::Final(transfer.unkept(&error)))?;
            have += part.len() as u64;
            self.progress.advance(part.len() as u64);
        }
        Ok(())
    }
}

/// The object that `url` names, with the credentials of the environment.
fn stored(name: &str, url: &str, shown: &str) -> Result<(Arc<S3>, S3Location), StartError> {
    let wrong = |why: String| {
        StartError::new(format!("model `{name}`: {shown} {why}"))
            .hint("write `file = \"s3://bucket/folder/model.onnx\"` in its manifest")
    };
    let place = S3Location::parse(url).map_err(wrong)?;
    if place.key.is_empty() || place.key.ends_with('/') {
        return Err(wrong("names no object".to_owned()));
    }
    let bucket = S3::new(&place.bucket, "file", Access::default());
    let bucket = bucket.map_err(|errors| wrong(errors.into_iter().map(|error| error.message).collect()))?;
    Ok((Arc::new(bucket), place))
}

impl Transfer<'_> {
    /// Bytes that are there.
    fn have(&self) -> Result<u64, StartError> {
        self.file.metadata().map(|data| data.len()).map_err(|error| self.unkept(&error))
    }

    fn empty(&self) -> Result<(), StartError> {
        self.file.set_len(0).map_err(|error| self.unkept(&error))
    }

    fn unkept(&self, error: &std::io::Error) -> StartError {
        unkept(self.name, &self.part, error)
    }

    fn refused(&self, why: &str) -> StartError {
        let (name, shown) = (self.name, &self.shown);
        StartError::new(format!("model `{name}` cannot be fetched from {shown}: {why}"))
            .hint("correct `file` in its manifest, or put the file beside the manifest")
    }
}

/// How the other side of `url` is known: by the root certificates that are compiled in, or by those of the file that
/// [`ROOTS_VARIABLE`] names.
///
/// # Errors
/// Where there are no certificates in that file.
pub fn trusted(url: &str) -> Result<TlsConfig, StartError> {
    let roots = std::env::var_os(ROOTS_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    tls_config(url, roots.as_deref())
}

fn tls_config(url: &str, roots: Option<&Path>) -> Result<TlsConfig, StartError> {
    let mut tls = TlsConfig::builder();
    if let Some(path) = roots.filter(|_| url.starts_with("https://")) {
        let wrong = |why: &dyn std::fmt::Display| {
            StartError::new(format!("the root certificates in {}, named by {ROOTS_VARIABLE}, {why}", path.display()))
                .hint(format!("name a file of certificates in PEM, or unset {ROOTS_VARIABLE}"))
        };
        let pem = fs::read(path).map_err(|error| wrong(&format!("cannot be read: {error}")))?;
        let mut certificates = Vec::new();
        for item in parse_pem(&pem) {
            match item {
                Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
                Ok(_) => {}
                Err(error) => return Err(wrong(&format!("cannot be read: {error}"))),
            }
        }
        if certificates.is_empty() {
            return Err(wrong(&"are none: there is no certificate in it"));
        }
        tls = tls.root_certs(RootCerts::from(certificates));
    }
    Ok(tls.build())
}

/// What asks for `url`.
fn agent(url: &str) -> Result<ureq::Agent, StartError> {
    Ok(ureq::Agent::config_builder()
        .http_status_as_error(false)
        .https_only(url.starts_with("https://"))
        .tls_config(trusted(url)?)
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .build()
        .new_agent())
}

/// Whether the other side is not who it should be, which asking again does not change.
fn is_distrust(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => true,
        ureq::Error::Io(error) => {
            error.get_ref().is_some_and(|inner| inner.to_string().contains("invalid peer certificate"))
        }
        _ => false,
    }
}

/// Opens the part of a file for appending; waits, after it said so, while another process fetches the same file.
fn open(part: &Path, waiting: &dyn Fn()) -> std::io::Result<File> {
    if let Some(folder) = part.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = OpenOptions::new().create(true).append(true).read(true).open(part)?;
    // The lock goes with the file, also where this process is killed.
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            waiting();
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    Ok(file)
}

fn unkept(name: &str, part: &Path, error: &std::io::Error) -> StartError {
    StartError::new(format!("model `{name}` cannot be kept in {}: {error}", part.display())).hint(format!(
        "make room there, or set {CACHE_VARIABLE} to a folder that has it; what is there already is not fetched again"
    ))
}

/// Where the part that a server sends begins: `bytes 100-199/1000`.
fn content_start(range: Option<&str>) -> Option<u64> {
    range?.trim().strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

/// An address as it may be shown: without a name and password, and with tokens covered.
fn shown(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => masked(&format!("{scheme}://{}", without_credentials(rest))),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Mutex;
    use std::thread::JoinHandle;

    use crate::clock::SystemClock;
    use sha2::{Digest, Sha256};

    /// What a server says to one request whose `Range` it is told.
    type Script = Vec<fn(&mut TcpStream, Option<&str>)>;

    /// Answers one connection after the other as the script says, and tells the ranges that were asked for.
    fn server(script: Script) -> (String, JoinHandle<Vec<Option<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/models/m.onnx", listener.local_addr().unwrap());
        let serve = move || {
            let answer = |say: fn(&mut TcpStream, Option<&str>)| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut range = None;
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let line = line.unwrap().to_ascii_lowercase();
                    if let Some(value) = line.strip_prefix("range: ") {
                        range = Some(value.to_owned());
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                say(&mut stream, range.as_deref());
                range
            };
            script.into_iter().map(answer).collect()
        };
        (url, std::thread::spawn(serve))
    }

    const CONTENT: &[u8; 16] = b"0123456789abcdef";

    fn hash(bytes: &[u8]) -> String {
        hex::encode(Sha256::digest(bytes))
    }

    fn say(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
        write!(stream, "HTTP/1.1 {status}\r\n{headers}connection: close\r\n\r\n").unwrap();
        stream.write_all(body).unwrap();
    }

    fn whole(stream: &mut TcpStream, _range: Option<&str>) {
        say(stream, "200 OK", "content-length: 16\r\n", CONTENT);
    }

    fn first_ten(stream: &mut TcpStream, _range: Option<&str>) {
        say(stream, "200 OK", "content-length: 16\r\n", &CONTENT[..10]);
    }

    fn rest(stream: &mut TcpStream, range: Option<&str>) {
        assert_eq!(range, Some("bytes=10-"));
        say(stream, "206 Partial Content", "content-range: bytes 10-15/16\r\ncontent-length: 6\r\n", &CONTENT[10..]);
    }

    fn not_found(stream: &mut TcpStream, _range: Option<&str>) {
        say(stream, "404 Not Found", "content-length: 0\r\n", b"");
    }

    fn unavailable(stream: &mut TcpStream, _range: Option<&str>) {
        say(stream, "503 Service Unavailable", "content-length: 0\r\n", b"");
    }

    fn nothing_behind(stream: &mut TcpStream, _range: Option<&str>) {
        say(stream, "416 Range Not Satisfiable", "content-length: 0\r\n", b"");
    }

    /// Remembers what it was told.
    #[derive(Default)]
    struct Told(Mutex<Vec<(u64, Option<u64>)>>, Mutex<u64>);

    impl Progress for Told {
        fn begin(&self, _name: &str, _url: &str, have: u64, total: Option<u64>) {
            self.0.lock().unwrap().push((have, total));
        }

        fn waiting(&self, _name: &str) {}

        fn advance(&self, bytes: u64) {
            *self.1.lock().unwrap() += bytes;
        }

        fn end(&self) {}
    }

    #[test]
    fn who_waits_for_another_process_says_so_first() {
        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join("models/a.part");
        let waited = std::cell::Cell::new(0);
        let first = std::cell::Cell::new(Some(open(&part, &|| panic!("nobody else is there")).unwrap()));
        // The lock goes with the file.
        let waiting = || {
            waited.set(waited.get() + 1);
            drop(first.take());
        };
        open(&part, &waiting).unwrap();
        assert_eq!(waited.get(), 1);
    }

    #[test]
    fn no_token_of_an_address_is_shown() {
        assert_eq!(shown("https://me:pass@h/m.onnx?token=abc&v=1"), "https://h/m.onnx?token=[secret]&v=1");
        assert_eq!(shown("https://me:pa/ss@h/m.onnx"), "https://[secret]@h/m.onnx");
    }

    struct Fetched {
        result: Result<PathBuf, StartError>,
        ranges: Vec<Option<String>>,
        begins: Vec<(u64, Option<u64>)>,
        bytes: u64,
    }

    fn fetch(folder: &Path, sha256: &str, script: Script) -> Fetched {
        let (url, server) = server(script);
        let told = Arc::new(Told::default());
        let download = Download { progress: told.clone(), clock: Arc::new(SystemClock) };
        let result = download.fetch("m", &url, sha256, &Cache::at(folder));
        let (begins, bytes) = (told.0.lock().unwrap().clone(), *told.1.lock().unwrap());
        Fetched { result, ranges: server.join().unwrap(), begins, bytes }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_fetched_once() {
        let folder = tempfile::tempdir().unwrap();
        let fetched = fetch(folder.path(), &hash(CONTENT), vec![whole]);
        let path = fetched.result.unwrap();
        assert_eq!(fs::read(&path).unwrap(), CONTENT);
        assert_eq!((fetched.begins, fetched.bytes), (vec![(0, Some(16))], 16));
        assert_eq!(fetch(folder.path(), &hash(CONTENT), vec![]).result.unwrap(), path);
    }

    #[test]
    fn a_download_goes_on_after_a_cut() {
        let folder = tempfile::tempdir().unwrap();
        let fetched = fetch(folder.path(), &hash(CONTENT), vec![first_ten, unavailable, rest]);
        assert_eq!(fs::read(fetched.result.unwrap()).unwrap(), CONTENT);
        assert_eq!(fetched.ranges, [None, Some("bytes=10-".to_owned()), Some("bytes=10-".to_owned())]);
        assert_eq!((fetched.begins, fetched.bytes), (vec![(0, Some(16)), (10, Some(16))], 16));
        assert_eq!(names(folder.path()), [format!("{}.onnx", hash(CONTENT))]);
    }

    #[test]
    fn a_download_goes_on_in_another_process() {
        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join(format!("{}.part", hash(CONTENT)));
        fs::write(&part, &CONTENT[..10]).unwrap();
        let fetched = fetch(folder.path(), &hash(CONTENT), vec![rest]);
        assert_eq!(fs::read(fetched.result.unwrap()).unwrap(), CONTENT);
        assert_eq!(fetched.bytes, 6);

        // A server that knows no ranges sends everything again; one that has no more says so.
        fs::remove_dir_all(folder.path()).unwrap();
        fs::create_dir(folder.path()).unwrap();
        fs::write(&part, &CONTENT[..10]).unwrap();
        assert!(fetch(folder.path(), &hash(CONTENT), vec![whole]).result.is_ok());
        fs::remove_dir_all(folder.path()).unwrap();
        fs::create_dir(folder.path()).unwrap();
        fs::write(&part, CONTENT).unwrap();
        assert!(fetch(folder.path(), &hash(CONTENT), vec![nothing_behind]).result.is_ok());
    }

    #[test]
    fn another_file_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = hash(b"another");
        let error = fetch(folder.path(), &wanted, vec![whole]).result.unwrap_err();
        for part in [&wanted[..], &hash(CONTENT), "model `m`", "/models/m.onnx"] {
            assert!(error.message.contains(part), "{error}");
        }
        assert_eq!(names(folder.path()), [""; 0]);
        // What an older version left behind is thrown away once, then the file is fetched from its start.
        fs::write(folder.path().join(format!("{}.part", hash(CONTENT))), b"XXXXXXXXXX").unwrap();
        let fetched = fetch(folder.path(), &hash(CONTENT), vec![rest, whole]);
        assert_eq!(fs::read(fetched.result.unwrap()).unwrap(), CONTENT);
    }

    #[test]
    fn what_cannot_be_fetched_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = fetch(folder.path(), &hash(CONTENT), vec![not_found]).result.unwrap_err();
        assert!(error.message.contains("answers 404") && error.hint.unwrap().contains("manifest"));
        let error = fetch(folder.path(), &hash(CONTENT), vec![first_ten, unavailable, unavailable, unavailable]);
        let error = error.result.unwrap_err();
        assert!(error.message.contains("answers 503") && error.hint.unwrap().contains("10 B of it are kept"));

        let download = Download { progress: Arc::new(Told::default()), clock: Arc::new(SystemClock) };
        let refused =
            |url: &str, sha256: &str| download.fetch("m", url, sha256, &Cache::at(folder.path())).unwrap_err().message;
        assert!(refused("ftp://user:secret@host/m.onnx", &hash(b"")).contains("ftp://host/m.onnx is no address"));
        assert!(refused("https://127.0.0.1:1/m.onnx", "../../etc/passwd").contains("no SHA-256"));
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(refused(&format!("http://{closed}/m.onnx"), &hash(b"1")).contains("cannot be fetched from"));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let download = Download { progress: Arc::new(Told::default()), clock: Arc::new(SystemClock) };
        let error =
            download.fetch("m", "http://127.0.0.1:1/m", &hash(b""), &Cache::at(file.join("below"))).unwrap_err();
        assert!(error.message.contains("cannot be kept in") && error.hint.unwrap().contains(CACHE_VARIABLE));
    }
}
