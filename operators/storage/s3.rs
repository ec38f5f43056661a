//! A bucket of S3, or of whatever speaks like it.
//!
//! Credentials come from where every program of AWS finds them: the environment, the profiles of the user, the role of
//! the machine or container. The library's own retries are off: [`super::retry`] tries again for as long as it was told
//! to.

use std::error::Error;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use aws_config::imds::client::error::{ImdsError, TokenError};
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, EncodingType};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use bytes::{Bytes, BytesMut};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tokio::sync::OnceCell;

use crate::config::{self, Field, FieldType, Presence};
use crate::error::FieldError;

use super::error::{Cause, StorageError};
use super::location::wrong_bucket;
use super::retry::Retry;
use super::{Body, Object, Storage, runtime};

/// How a bucket is reached, as a node's table says it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Access {
    endpoint: Option<String>,
    region: Option<String>,
    profile: Option<String>,
    path_style: Option<bool>,
    #[serde(default)]
    anonymous: bool,
    timeout: Option<config::Duration>,
}

const fn optional(name: &'static str, value: FieldType, summary: &'static str) -> Field {
    Field { name, value, presence: Presence::Optional, summary }
}

/// The fields of [`Access`].
pub const ENDPOINT: Field = optional(
    "endpoint",
    FieldType::String,
    "The address of a server that speaks S3, such as `http://minio:9000`. Left out: that of AWS, or what \
     `AWS_ENDPOINT_URL` says.",
);
pub const REGION: Field =
    optional("region", FieldType::String, "The bucket's region. Left out: what the environment or the profile says.");
pub const PROFILE: Field =
    optional("profile", FieldType::String, "The profile in the user's AWS files that credentials are taken from.");
pub const PATH_STYLE: Field = optional(
    "path_style",
    FieldType::Boolean,
    "Whether the bucket is a part of the path and not of the host's name. Left out: true with an `endpoint`.",
);
pub const ANONYMOUS: Field = Field {
    name: "anonymous",
    value: FieldType::Boolean,
    presence: Presence::Default("false"),
    summary: "Ask without credentials, for public buckets.",
};
pub const TIMEOUT: Field = Field {
    name: "timeout",
    value: FieldType::Duration,
    presence: Presence::Default("\"30s\""),
    summary: "How long the server may take for one request, and as long again for each 2 MiB in it.",
};

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// As many bytes as a slow line carries in [`Access::timeout`].
const SLOW_BYTES: u64 = 2 << 20;
const CONNECT: Duration = Duration::from_secs(10);
const NO_CREDENTIALS: &str = "there are no credentials";
/// What to do about a server that was tried again in vain.
const OVERLOADED: &str = "the server is busy or down; with a longer `retry_for` it is waited for longer";
/// Larger objects go up in parts.
const LARGE: u64 = 16 << 20;
/// Bytes of a part: so much of an upload is in memory, and is sent again where the line was cut.
const PART: u64 = 8 << 20;
/// No object has more parts than this.
const MOST_PARTS: u64 = 10_000;
/// Where neither the graph nor the environment names a region.
const REGION_DEFAULT: &str = "us-east-1";

/// One bucket.
pub struct S3 {
    bucket: String,
    access: Access,
    client: OnceCell<Client>,
}

impl S3 {
    /// A bucket that is looked for when it is first needed.
    ///
    /// # Errors
    /// What is wrong with the name of the bucket (at the field `bucket`) or the way to it.
    pub fn new(bucket: &str, bucket_field: &str, access: Access) -> Result<S3, Vec<FieldError>> {
        let mut mistakes = Vec::new();
        if let Some(why) = wrong_bucket(bucket) {
            let hint = "write the name alone, such as `bucket = \"clips\"`";
            mistakes.push(FieldError::new(bucket_field, format!("`{bucket}` {why}")).hint(hint));
        }
        if let Some(endpoint) = &access.endpoint
            && !["http://", "https://"]
                .iter()
                .any(|scheme| endpoint.strip_prefix(scheme).is_some_and(|h| !h.is_empty()))
        {
            let error = FieldError::new("endpoint", format!("`{endpoint}` is no address of a server"));
            mistakes.push(error.hint("write it with its scheme, such as \"http://minio:9000\""));
        }
        if access.anonymous && access.profile.is_some() {
            let error = FieldError::new("profile", "`anonymous` asks without credentials, and `profile` says which");
            mistakes.push(error.hint("keep one of them"));
        }
        if access.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
            mistakes.push(FieldError::new("timeout", "no server answers in no time").hint("write it like \"30s\""));
        }
        if mistakes.is_empty() {
            Ok(S3 { bucket: bucket.to_owned(), access, client: OnceCell::new() })
        } else {
            Err(mistakes)
        }
    }

    /// Looks whether the bucket is there and the credentials are known. What only may not be listed counts as there,
    /// and so does a server that cannot be reached just now: objects are tried again.
    ///
    /// # Errors
    /// What has to be corrected before anything can be stored.
    pub async fn check(&self) -> Result<(), StorageError> {
        let client = self.client().await?;
        let request = client.list_objects_v2().bucket(&self.bucket).max_keys(1);
        let asked = request.encoding_type(EncodingType::Url).send();
        match self.within(0, "", asked).await {
            // Who may store need not be allowed to list.
            Err(error)
                if error.cause == Cause::Final
                    && (error.message.contains(NO_CREDENTIALS) || !error.message.contains("AccessDenied")) =>
            {
                Err(error)
            }
            Err(error) => {
                tracing::debug!(%error, "the bucket could not be looked at");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// What tells this bucket from others of the same name.
    pub fn identity(&self) -> String {
        format!("s3://{}/{}", self.access.endpoint.as_deref().unwrap_or_default(), self.bucket)
    }

    async fn client(&self) -> Result<&Client, StorageError> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Client, StorageError> {
        let access = &self.access;
        // No other cryptography is built in.
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
        let told = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if let Some(region) = &access.region {
            loader = loader.region(Region::new(region.clone()));
        } else if access.endpoint.is_some() && !told("AWS_REGION") && !told("AWS_DEFAULT_REGION") {
            // A server of one's own has none; asking the machine for its region would take seconds where it is none of
            // AWS.
            loader = loader.region(Region::new(REGION_DEFAULT));
        }
        if let Some(profile) = &access.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(endpoint) = &access.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if access.anonymous {
            loader = loader.no_credentials();
        }
        let loaded = loader.load().await;
        let elsewhere = loaded.endpoint_url().is_some() || told("AWS_ENDPOINT_URL_S3");
        let mut config = aws_sdk_s3::config::Builder::from(&loaded)
            .force_path_style(access.path_style.unwrap_or(elsewhere))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
            // The signature covers the content; many servers know no other checksums.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if loaded.region().is_none() {
            config = config.region(Region::new(REGION_DEFAULT));
        }
        Ok(Client::from_conf(config.build()))
    }

    /// Waits for the answer to a request that carries `bytes`, and says in words why there is none.
    async fn within<T, E>(
        &self,
        bytes: u64,
        key: &str,
        request: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, StorageError>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let base = self.access.timeout.map_or(TIMEOUT_DEFAULT, |timeout| timeout.0);
        let limit = base.mul_f64(1.0 + bytes as f64 / SLOW_BYTES as f64);
        match tokio::time::timeout(limit, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failure(key, &error)),
            Err(_) => {
                let message = format!("`{}`: the server gave no answer within {limit:.1?}", self.location(key));
                Err(StorageError::new(Cause::Temporary, message)
                    .hint("look whether it is overloaded, or raise `timeout`"))
            }
        }
    }

    /// What the library's error means.
    fn failure<E>(&self, key: &str, error: &SdkError<E>) -> StorageError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let place = self.location(key);
        let (cause, why, hint) = match error {
            SdkError::ServiceError(answer) => {
                let status = answer.raw().status().as_u16();
                let (code, words) = (answer.err().code(), answer.err().message());
                if (200..300).contains(&status) && code.is_none() {
                    let hint =
                        "look whether `endpoint` leads to a server that speaks S3, and what is between here and it";
                    let why = format!("the answer cannot be understood: {}", innermost(&chain(error)));
                    (Cause::Final, why, Some(hint.to_owned()))
                } else {
                    let (cause, hint) = self.meaning(status, code.unwrap_or_default());
                    (cause, said(status, code, words), hint)
                }
            }
            SdkError::TimeoutError(_) => (Cause::Temporary, "the server gave no answer in time".to_owned(), None),
            SdkError::ResponseError(answer) => {
                let status = answer.raw().status().as_u16();
                let cause = if (400..500).contains(&status) && ![408, 429].contains(&status) {
                    Cause::Final
                } else {
                    Cause::Temporary
                };
                (cause, format!("the answer ({status}) cannot be read: {}", chain(error)), None)
            }
            other => match caused_by::<CredentialsError>(other) {
                Some(error) => without_credentials(error),
                None => self.unsent(&chain(other)),
            },
        };
        let error = StorageError::new(cause, format!("`{place}`: {why}"));
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    /// What it means that a request did not even get to the server. `why`: every cause, from the outside in.
    fn unsent(&self, why: &str) -> (Cause, String, Option<String>) {
        let lower = why.to_lowercase();
        let host = self.access.endpoint.as_deref().unwrap_or("the server of AWS");
        let mentions = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        if mentions(&["peer certificate", "certificate verify", "unknownissuer"]) {
            let hint = "set SSL_CERT_FILE to a file with the root certificates (PEM) of your organisation";
            return (Cause::Final, format!("{host} is not trusted: {}", innermost(why)), Some(hint.to_owned()));
        }
        let hint = "look whether the server runs, and whether `endpoint` is right";
        (Cause::Temporary, format!("{host} cannot be reached: {}", innermost(why)), Some(hint.to_owned()))
    }

    /// What a refusal means, by its status and the server's code.
    fn meaning(&self, status: u16, code: &str) -> (Cause, Option<String>) {
        let bucket = &self.bucket;
        let hint = |text: String| Some(text);
        match code {
            "NoSuchBucket" => (Cause::Final, hint(format!("make the bucket `{bucket}`, or correct its name"))),
            "NoSuchKey" | "NotFound" => (Cause::Missing, hint("check the key".to_owned())),
            "PreconditionFailed" => (Cause::Changed, hint("start the stream again".to_owned())),
            "InvalidAccessKeyId"
            | "NotSignedUp"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
            | "TokenRefreshRequired" => {
                let hint = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the `profile`";
                (Cause::Final, Some(hint.to_owned()))
            }
            // A role's credentials are renewed by themselves.
            "ExpiredToken" => (Cause::Temporary, hint("renew the credentials".to_owned())),
            "RequestTimeTooSkewed" => (Cause::Final, hint("set the clock of this machine".to_owned())),
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" => {
                (Cause::Final, hint(format!("write the `region` that the bucket `{bucket}` is in")))
            }
            "InvalidObjectState" => (Cause::Final, hint("restore the object from its archive first".to_owned())),
            "SlowDown" | "RequestTimeout" | "InternalError" | "ServiceUnavailable" | "OperationAborted" => {
                (Cause::Temporary, hint(OVERLOADED.to_owned()))
            }
            _ => match status {
                301 | 307 => (Cause::Final, hint(format!("write the `region` that the bucket `{bucket}` is in"))),
                401 | 403 => {
                    (Cause::Final, hint(format!("allow these credentials to read or write the bucket `{bucket}`")))
                }
                404 => (Cause::Missing, hint("check the key".to_owned())),
                412 => (Cause::Changed, hint("start the stream again".to_owned())),
                408 | 409 | 425 | 429 | 500.. => (Cause::Temporary, hint(OVERLOADED.to_owned())),
                _ => (Cause::Final, None),
            },
        }
    }

    /// Stores an object with what those who fetch it are told: its type, and how to keep it.
    async fn put_told(&self, key: &str, body: &Body, told: (&str, Option<&str>)) -> Result<(), StorageError> {
        let client = self.client().await?;
        if body.len() > LARGE {
            self.put_in_parts(client, key, body, told, None).await
        } else {
            self.put_whole(client, key, body, told).await
        }
    }

    async fn put_whole(
        &self,
        client: &Client,
        key: &str,
        body: &Body,
        (media_type, cache): (&str, Option<&str>),
    ) -> Result<(), StorageError> {
        let bytes = self.read(key, body, 0..body.len()).await?;
        let request = client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .content_type(media_type)
            .set_cache_control(cache.map(str::to_owned))
            .content_length(i64::try_from(bytes.len()).unwrap_or(i64::MAX))
            .body(ByteStream::from(bytes));
        self.within(body.len(), key, request.send()).await.map(drop)
    }

    /// Stores an object in parts. With `retry`, each part is tried again by itself, and so is the end.
    async fn put_in_parts(
        &self,
        client: &Client,
        key: &str,
        body: &Body,
        (media_type, cache): (&str, Option<&str>),
        retry: Option<&Retry>,
    ) -> Result<(), StorageError> {
        let request = client.create_multipart_upload().bucket(&self.bucket).key(key).content_type(media_type);
        let request = request.set_cache_control(cache.map(str::to_owned));
        let begun = self.within(0, key, request.send()).await?;
        let Some(id) = begun.upload_id() else {
            let message = format!("`{}`: the server begins an upload without an id", self.location(key));
            return Err(StorageError::new(Cause::Final, message));
        };
        let mut unfinished = Unfinished { client: client.clone(), bucket: &self.bucket, key, id, is_whole: false };
        let part_bytes = PART.max(body.len().div_ceil(MOST_PARTS));
        let count = body.len().div_ceil(part_bytes);
        let mut parts = Vec::new();
        let mut start = 0;
        for number in 1.. {
            let end = body.len().min(start + part_bytes);
            let attempt = || async {
                let bytes = self.read(key, body, start..end).await?;
                let request = client.upload_part().bucket(&self.bucket).key(key).upload_id(id).part_number(number);
                let sent = self.within(end - start, key, request.body(ByteStream::from(bytes)).send()).await;
                unless_forgotten(sent)
            };
            let what = format!("cannot store part {number} of {count} of");
            let Some(part) = again(retry, &what, attempt).await? else { return Err(self.forgotten(key)) };
            parts.push(CompletedPart::builder().part_number(number).set_e_tag(part.e_tag).build());
            start = end;
            if start == body.len() {
                break;
            }
        }
        let whole = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let was_asked = AtomicBool::new(false);
        let attempt = || async {
            let was_asked = was_asked.swap(true, Ordering::Relaxed);
            let request = client.complete_multipart_upload().bucket(&self.bucket).key(key).upload_id(id);
            // The server puts the parts together before it answers.
            let asked = self.within(body.len(), key, request.multipart_upload(whole.clone()).send()).await;
            match unless_forgotten(asked)? {
                Some(_) => Ok(true),
                // The answer that it is done was lost on its way.
                None if was_asked => self.is_there_whole(key, body.len(), count).await,
                None => Ok(false),
            }
        };
        if !again(retry, "cannot put the parts together of", attempt).await? {
            return Err(self.forgotten(key));
        }
        unfinished.is_whole = true;
        Ok(())
    }

    /// Whether an object lies under `key` that may have been made of so many parts.
    async fn is_there_whole(&self, key: &str, bytes: u64, parts: u64) -> Result<bool, StorageError> {
        let found = match self.head(key).await {
            Err(error) if error.cause == Cause::Missing => return Ok(false),
            found => found?,
        };
        // "HASH-PARTS" at AWS; other servers may call it as they like.
        let etag = found.etag.as_deref().unwrap_or_default().trim_matches('"');
        let made_of = etag.rsplit_once('-').and_then(|(_, parts)| parts.parse().ok()).unwrap_or(parts);
        Ok(found.bytes == bytes && made_of == parts)
    }

    /// The server knows nothing any more of an upload that is not complete.
    fn forgotten(&self, key: &str) -> StorageError {
        let message = format!("`{}`: the server forgot the upload before it was complete", self.location(key));
        StorageError::new(Cause::Temporary, message).hint("look whether something ends unfinished uploads so soon")
    }

    async fn read(&self, key: &str, body: &Body, range: Range<u64>) -> Result<Bytes, StorageError> {
        body.read(range).await.map_err(|error| {
            let message = format!("what is to be stored as `{}` cannot be read: {error}", self.location(key));
            StorageError::new(Cause::Final, message).hint("look whether the disk for temporary files is healthy")
        })
    }
}

/// An upload in parts, which takes up room at the server until it is ended.
struct Unfinished<'a> {
    client: Client,
    bucket: &'a str,
    key: &'a str,
    id: &'a str,
    is_whole: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.is_whole {
            return;
        }
        let request = self.client.abort_multipart_upload().bucket(self.bucket).key(self.key).upload_id(self.id);
        let key = self.key.to_owned();
        let aborted = runtime::begin(async move {
            if let Err(error) = request.send().await {
                // A rule of the bucket for unfinished uploads removes it some day.
                tracing::debug!(%key, error = %chain(&error), "an unfinished upload could not be ended");
            }
        });
        if let Err(error) = aborted {
            tracing::debug!(%error, "an unfinished upload could not be ended");
        }
    }
}

/// What came of asking about an upload in parts; `None`: the server does not know it any more.
fn unless_forgotten<T>(asked: Result<T, StorageError>) -> Result<Option<T>, StorageError> {
    match asked {
        Err(error) if error.message.contains("NoSuchUpload (") => Ok(None),
        other => other.map(Some),
    }
}

/// Tries as `retry` says, or once.
async fn again<T, F>(retry: Option<&Retry>, what: &str, attempt: impl Fn() -> F + Send) -> Result<T, StorageError>
where
    F: Future<Output = Result<T, StorageError>> + Send,
{
    match retry {
        Some(retry) => retry.run(what, attempt).await,
        None => attempt().await,
    }
}

/// What it means that a request could not be signed.
fn without_credentials(error: &CredentialsError) -> (Cause, String, Option<String>) {
    const HINT: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a `profile`, or write `anonymous = true` \
                        for a public bucket";
    let why = chain(error);
    let (cause, message) = match (error, refused_with(error)) {
        (CredentialsError::CredentialsNotLoaded(_), _) => (Cause::Final, NO_CREDENTIALS.to_owned()),
        (CredentialsError::InvalidConfiguration(_), _) => {
            (Cause::Final, format!("the credentials cannot be read: {}", innermost(&why)))
        }
        (_, Some(status @ (401 | 403 | 404))) => {
            (Cause::Final, format!("{NO_CREDENTIALS}: what gives them out on this machine answers {status}"))
        }
        // Somebody else may give them out: a role that may not be assumed has no status of its own in there.
        _ if ["AccessDenied", "(401)", "(403)", "(404)"].iter().any(|word| why.contains(word)) => (
            Cause::Final,
            format!("{NO_CREDENTIALS}: {}", answered(&why).unwrap_or_else(|| innermost(&why).to_owned())),
        ),
        _ => (Cause::Temporary, format!("the credentials cannot be had: {}", innermost(&why))),
    };
    (cause, message, Some(HINT.to_owned()))
}

/// What a service answered, where the text of an error has the fields of its answer.
fn answered(why: &str) -> Option<String> {
    let field = |name: &str| {
        let (_, rest) = why.rsplit_once(&format!("{name}: \""))?;
        Some(rest.split_once("\", ").or_else(|| rest.split_once("\" }")).map_or(rest, |(field, _)| field))
    };
    let (code, message) = (field("code")?, field("message")?);
    Some(format!("{code}: {message}"))
}

/// The status with which the machine's own service for credentials refuses them.
fn refused_with(error: &CredentialsError) -> Option<u16> {
    let answer = match caused_by::<ImdsError>(error)? {
        ImdsError::ErrorResponse(refused) => refused.response(),
        other => caused_by::<SdkError<TokenError>>(other)?.raw_response()?,
    };
    Some(answer.status().as_u16())
}

/// The cause of an error that is of this type, if there is one.
fn caused_by<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// A key out of a list. With the encoding that is asked for, XML carries each character.
fn decoded(key: &str, encoding: Option<&EncodingType>) -> String {
    if encoding != Some(&EncodingType::Url) {
        return key.to_owned();
    }
    let spaced = key.replace('+', " ");
    match percent_decode_str(&spaced).decode_utf8() {
        Ok(plain) => plain.into_owned(),
        Err(_) => key.to_owned(),
    }
}

/// "the server answers NoSuchBucket (404): The specified bucket does not exist".
fn said(status: u16, code: Option<&str>, words: Option<&str>) -> String {
    let mut text = match code {
        Some(code) => format!("the server answers {code} ({status})"),
        None => format!("the server answers {status}"),
    };
    if let Some(words) = words.map(str::trim).filter(|words| !words.is_empty() && Some(*words) != code) {
        let _ = write!(text, ": {}", words.trim_end_matches('.'));
    }
    text
}

/// An error with all its causes, from the outside in.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = inner.to_string();
        if !text.ends_with(&words) {
            let _ = write!(text, ": {words}");
        }
        source = inner.source();
    }
    text
}

/// The last of several causes, without the number that nobody reads.
fn innermost(chain: &str) -> &str {
    let last = chain.rsplit(": ").next().unwrap_or(chain);
    last.split(" (os error").next().unwrap_or(last)
}

#[async_trait::async_trait]
impl Storage for S3 {
    fn location(&self, key: &str) -> String {
        if key.is_empty() { format!("s3://{}", self.bucket) } else { format!("s3://{}/{key}", self.bucket) }
    }

    async fn put(&self, key: &str, body: &Body, media_type: &str) -> Result<(), StorageError> {
        self.put_told(key, body, (media_type, None)).await
    }

    async fn put_cached(
        &self,
        key: &str,
        body: &Body,
        media_type: &str,
        cache: &'static str,
    ) -> Result<(), StorageError> {
        self.put_told(key, body, (media_type, Some(cache))).await
    }

    async fn put_retried(&self, retry: &Retry, key: &str, body: &Body, media_type: &str) -> Result<(), StorageError> {
        if body.len() <= LARGE {
            return retry.run("cannot store", || self.put(key, body, media_type)).await;
        }
        let attempt = || async {
            let client = self.client().await?;
            self.put_in_parts(client, key, body, (media_type, None), Some(retry)).await
        };
        retry.run("cannot store", attempt).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        let client = self.client().await?;
        let request = client.delete_object().bucket(&self.bucket).key(key);
        match self.within(0, key, request.send()).await {
            Err(error) if error.cause == Cause::Missing => Ok(()),
            other => other.map(drop),
        }
    }

    async fn get(&self, key: &str, range: Range<u64>, etag: Option<&str>) -> Result<Bytes, StorageError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let client = self.client().await?;
        let request = client
            .get_object()
            .bucket(&self.bucket)
            .key(key)
            .range(format!("bytes={}-{}", range.start, range.end - 1))
            .set_if_match(etag.map(str::to_owned));
        let length = range.end - range.start;
        let answer = self.within(0, key, request.send()).await;
        let answer = match answer {
            // There is nothing behind the end.
            Err(error) if error.message.contains("InvalidRange") || error.message.contains("answers 416") => {
                return Ok(Bytes::new());
            }
            Err(error) if error.cause == Cause::Changed => {
                let message = format!("`{}` was changed while it was read", self.location(key));
                return Err(StorageError { message, ..error });
            }
            other => other?,
        };
        let base = self.access.timeout.map_or(TIMEOUT_DEFAULT, |timeout| timeout.0);
        let limit = base.mul_f64(1.0 + length as f64 / SLOW_BYTES as f64);
        let cut = |why: String| {
            let message = format!("`{}`: the answer was cut: {why}", self.location(key));
            StorageError::new(Cause::Temporary, message).hint("look whether the server is overloaded")
        };
        // A server that does not know ranges answers with everything, which may be more than there is room for.
        let too_much = || {
            let message = format!("`{}`: the server does not answer for a part of an object", self.location(key));
            StorageError::new(Cause::Final, message).hint("use a server that knows ranges")
        };
        let expected = answer.content_length().and_then(|length| u64::try_from(length).ok());
        if expected.is_some_and(|expected| expected > length) {
            return Err(too_much());
        }
        let mut body = answer.body;
        let collect = async {
            let mut bytes = BytesMut::new();
            while let Some(part) = body.next().await {
                bytes.extend_from_slice(&part.map_err(|error| cut(innermost(&chain(&error)).to_owned()))?);
                if bytes.len() as u64 > length {
                    return Err(too_much());
                }
            }
            Ok(bytes.freeze())
        };
        let collected = tokio::time::timeout(limit, collect).await;
        let bytes = collected.map_err(|_| cut(format!("it took longer than {limit:.1?}")))??;
        if expected.is_some_and(|expected| expected != bytes.len() as u64) {
            return Err(cut(format!("{} of {} bytes came", bytes.len(), expected.unwrap_or_default())));
        }
        Ok(bytes)
    }

    async fn head(&self, key: &str) -> Result<Object, StorageError> {
        let client = self.client().await?;
        let answer = self.within(0, key, client.head_object().bucket(&self.bucket).key(key).send()).await;
        let answer = match answer {
            // An answer without a body has no code in it: another request tells whether it is the bucket or the
            // credentials.
            Err(error) if !error.is_temporary() => return Err(self.check().await.err().unwrap_or(error)),
            other => other?,
        };
        Ok(Object {
            key: key.to_owned(),
            bytes: answer.content_length().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
            modified: answer.last_modified().and_then(|time| SystemTime::try_from(*time).ok()),
            etag: answer.e_tag,
        })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>, StorageError> {
        let client = self.client().await?;
        let (mut found, mut next) = (Vec::new(), None);
        loop {
            let request = client.list_objects_v2().bucket(&self.bucket).prefix(prefix).set_continuation_token(next);
            // Keys may have characters that XML has not.
            let request = request.encoding_type(EncodingType::Url);
            let page = self.within(0, prefix, request.send()).await?;
            for object in page.contents() {
                let Some(key) = object.key() else { continue };
                found.push(Object {
                    key: decoded(key, page.encoding_type()),
                    bytes: object.size().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
                    etag: object.e_tag().map(str::to_owned),
                    modified: object.last_modified().and_then(|time| SystemTime::try_from(*time).ok()),
                });
            }
            next = page.next_continuation_token;
            if next.is_none() || page.is_truncated == Some(false) {
                break;
            }
        }
        found.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(access: &str) -> Result<S3, Vec<FieldError>> {
        S3::new("clips", "bucket", toml::from_str(access).unwrap())
    }

    #[test]
    fn every_mistake_in_the_way_to_a_bucket_is_named_at_once() {
        let text = "endpoint = \"minio:9000\"\nanonymous = true\nprofile = \"work\"\ntimeout = \"0s\"";
        let fields: Vec<String> = bucket(text).err().unwrap().into_iter().map(|error| error.field).collect();
        assert_eq!(fields, ["endpoint", "profile", "timeout"]);
        assert!(bucket("endpoint = \"http://127.0.0.1:9000\"").is_ok());
        assert_eq!(S3::new("a/b", "bucket", Access::default()).err().unwrap()[0].field, "bucket");
    }

    #[test]
    fn a_refusal_is_told_with_the_server_s_code_and_what_to_do() {
        let s3 = bucket("").unwrap();
        for (status, code, cause, word) in [
            (404, "NoSuchBucket", Cause::Final, "make the bucket `clips`"),
            (404, "NoSuchKey", Cause::Missing, "check the key"),
            (403, "InvalidAccessKeyId", Cause::Final, "AWS_ACCESS_KEY_ID"),
            (403, "SignatureDoesNotMatch", Cause::Final, "AWS_SECRET_ACCESS_KEY"),
            (403, "AccessDenied", Cause::Final, "allow these credentials"),
            (403, "RequestTimeTooSkewed", Cause::Final, "clock"),
            (301, "PermanentRedirect", Cause::Final, "`region`"),
            (412, "PreconditionFailed", Cause::Changed, "again"),
        ] {
            let (found, hint) = s3.meaning(status, code);
            assert_eq!(found, cause, "{code}");
            assert!(hint.is_some_and(|hint| hint.contains(word)), "{code}");
        }
        for (status, code) in [(503, "SlowDown"), (500, "InternalError"), (503, ""), (429, "TooManyRequests")] {
            assert_eq!(s3.meaning(status, code).0, Cause::Temporary, "{status} {code}");
        }
        assert_eq!(
            said(404, Some("NoSuchBucket"), Some("It is gone.")),
            "the server answers NoSuchBucket (404): It is gone"
        );
        assert_eq!(said(503, None, None), "the server answers 503");
    }

    #[test]
    fn a_request_that_was_not_sent_says_why() {
        let s3 = bucket("endpoint = \"http://127.0.0.1:1\"").unwrap();
        let (cause, why, hint) = s3.unsent("dispatch failure: io error: Connection refused (os error 111)");
        assert_eq!(cause, Cause::Temporary);
        assert_eq!(why, "http://127.0.0.1:1 cannot be reached: Connection refused");
        assert!(hint.unwrap().contains("`endpoint`"));
    }

    #[test]
    fn what_is_missing_to_sign_a_request_is_told_and_what_was_refused_is_final() {
        for (error, cause, why) in [
            (CredentialsError::not_loaded("no providers in chain"), Cause::Final, "there are no credentials"),
            (
                CredentialsError::provider_error("failing with StatusCode(403)"),
                Cause::Final,
                "there are no credentials: failing with StatusCode(403)",
            ),
            (
                CredentialsError::provider_error(
                    "service error: unhandled error (AccessDenied): Error { code: \"AccessDenied\", message: \"User: \
                     arn:aws:iam::1:user/x may not assume arn:aws:iam::1:role/y\", aws_request_id: \"7\" }",
                ),
                Cause::Final,
                "there are no credentials: AccessDenied: User: arn:aws:iam::1:user/x may not assume arn:aws:iam::1:role/y",
            ),
            (
                CredentialsError::invalid_configuration("a loop of profiles"),
                Cause::Final,
                "the credentials cannot be read: a loop of profiles",
            ),
            (
                CredentialsError::provider_error("Connection refused (os error 111)"),
                Cause::Temporary,
                "the credentials cannot be had: Connection refused",
            ),
        ] {
            let wrapped: SdkError<std::io::Error> = SdkError::construction_failure(error);
            let (found, told, hint) = without_credentials(caused_by(&wrapped).unwrap());
            assert_eq!((found, told.as_str()), (cause, why));
            assert!(hint.unwrap().contains("anonymous"));
        }
    }

    #[test]
    fn keys_of_a_list_may_have_any_character() {
        let url = Some(&EncodingType::Url);
        for (listed, encoding, key) in [
            ("in/a%01b.mp4", url, "in/a\u{1}b.mp4"),
            ("in/a+b%2Bc%20d%25.mp4", url, "in/a b+c d%.mp4"),
            ("in/k%C3%BCche.mp4", url, "in/k\u{fc}che.mp4"),
            ("in/a+b%2Bc.mp4", None, "in/a+b%2Bc.mp4"),
        ] {
            assert_eq!(decoded(listed, encoding), key);
        }
    }
}
