//! `vss`: segments into NVIDIA's Video Search and Summarization service, each once.
//!
//! `POST /files` of VSS 2.x is not idempotent: a request whose answer is lost may have made a file. So what is meant to be
//! uploaded is written down before ([`journal`]), and after a failure that leaves the question open the server's list is
//! looked at, once its own time for the request is over: a file of our name and size that was not there before, and that
//! belongs to nobody else here, is ours. Where that takes more than one request, the list is looked at once more as long
//! after the last: further files of ours are deleted, and only then the segment counts as uploaded. VSS 3.x takes an id of
//! the client's choice, which a repeat finds again.
//!
//! A segment counts as delivered when the server has answered with an id; what becomes of it is a record.

pub mod client;
pub mod journal;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::address::{Address, masked};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config::{self, Field, FieldType, Presence};
use crate::error::{FieldError, ItemError, StartError};
use crate::item::{Item, Kind, Origin, Payload, RecordBody, Segment, SegmentStatus, StreamId};
use crate::lease::Verdict;
use crate::operator::{
    BuildContext, Built, Execution, IoOperator, IoRunner, Produces, Registration, Resource, Role, Trouble,
};
use crate::progress::{Output, Progress};

use client::{Api, Client, Failure, Upload};
use journal::{Intent, Journal, Place, Summary};

use super::file::identity;

/// Between two attempts, unless the server says how long it wants to be left alone.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), most: Duration::from_secs(30) };
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
const DEFAULT_RETRY_FOR: Duration = Duration::from_secs(3600);
const DEFAULT_CONCURRENCY: usize = 2;
/// That an upload was met again is written down once in so long.
const SEEN_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

pub static REGISTRATION: Registration = Registration {
    name: "vss",
    role: Role::Sink,
    summary: "Uploads segments to NVIDIA VSS, each once, and says what became of each.",
    execution: Execution::Io,
    accepts: &[Kind::Segment],
    produces: Produces::Kinds(&[Kind::Record]),
    fields: &[
        Field {
            name: "url",
            value: FieldType::String,
            presence: Presence::Required,
            summary: "The service, such as `http://vss:8000`; it may have a path.",
        },
        Field {
            name: "api",
            value: FieldType::Choice(&["v2", "rtvi3"]),
            presence: Presence::Default("\"v2\""),
            summary: "Which generation it speaks: `v2` of VSS 2.x, or `rtvi3` of VSS 3.x.",
        },
        Field {
            name: "token",
            value: FieldType::String,
            presence: Presence::Optional,
            summary: "Sent as `Authorization: Bearer`. Take it from the environment: `\"${env.VSS_TOKEN}\"`.",
        },
        Field {
            name: "state",
            value: FieldType::OutputPath,
            presence: Presence::Optional,
            summary: "A folder that remembers what was uploaded, so that a restart repeats nothing. Left out: the graph's \
                      `[state]` does; without one, each run uploads anew what it makes anew.",
        },
        Field {
            name: "concurrency",
            value: FieldType::Integer { minimum: 1, maximum: 64 },
            presence: Presence::Default("2"),
            summary: "Uploads at once.",
        },
        Field {
            name: "timeout",
            value: FieldType::Duration,
            presence: Presence::Default("\"2m\""),
            summary: "How long one request may take; after one that got no answer, as long is waited before it is \
                      looked up what came of it.",
        },
        Field {
            name: "retry_for",
            value: FieldType::Duration,
            presence: Presence::Default("\"1h\""),
            summary: "How long an upload is tried again while the service is down or busy; what waits slows the graph \
                      down. Then it has failed.",
        },
        Field {
            name: "summarize",
            value: FieldType::Table(&[Field {
                name: "prompt",
                value: FieldType::String,
                presence: Presence::Required,
                summary: "What the service's model is asked about each segment.",
            }]),
            presence: Presence::Optional,
            summary: "Asks for a summary of each segment once it is uploaded; it is in the record.",
        },
    ],
    example: "[sinks.search]\ntype = \"vss\"\ninputs = [\"chunks\"]\nurl = \"http://vss:8000\"\nstate = \"vss-state\"\n",
    build,
};

#[derive(Deserialize)]
struct Config {
    url: String,
    #[serde(default = "newest_api")]
    api: Api,
    token: Option<String>,
    state: Option<PathBuf>,
    concurrency: Option<usize>,
    timeout: Option<config::Duration>,
    retry_for: Option<config::Duration>,
    summarize: Option<Summarize>,
}

const fn newest_api() -> Api {
    Api::V2
}

#[derive(Clone, Deserialize)]
struct Summarize {
    prompt: String,
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let scheme = Address::parse(&config.url).map(|address| address.scheme.to_owned());
    if !scheme.is_some_and(|scheme| ["http", "https"].contains(&scheme.as_str())) {
        let mistake = FieldError::new("url", "it is no HTTP address").hint("write it like \"http://vss:8000\"");
        return Err(vec![mistake]);
    }
    Ok(Built::Io(Arc::new(Vss {
        url: config.url,
        api: config.api,
        token: config.token,
        state: config.state.map(|path| context.folder.join(path)),
        concurrency: config.concurrency.unwrap_or(DEFAULT_CONCURRENCY),
        timeout: config.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.0),
        retry_for: config.retry_for.map_or(DEFAULT_RETRY_FOR, |time| time.0),
        summarize: config.summarize,
        origin: context.origin.clone(),
        clock: context.clock.clone(),
        progress: context.progress.clone(),
    })))
}

struct Vss {
    url: String,
    api: Api,
    token: Option<String>,
    state: Option<PathBuf>,
    concurrency: usize,
    timeout: Duration,
    retry_for: Duration,
    summarize: Option<Summarize>,
    origin: Origin,
    clock: Arc<dyn Clock>,
    progress: Option<Progress>,
}

impl IoOperator for Vss {
    fn start(&self) -> Result<Arc<dyn IoRunner>, StartError> {
        let place = match (&self.state, &self.progress) {
            (Some(folder), _) => Place::Folder(folder.clone()),
            (None, Some(progress)) => Place::Progress(progress.clone()),
            (None, None) => Place::Nowhere,
        };
        let journal = Journal::open(place, now_ms(&*self.clock))?;
        let client = Client::new(&self.url, self.api, self.token.clone(), self.timeout);
        Ok(Arc::new(Uploader {
            service: Arc::new(Service {
                client,
                api: self.api,
                timeout: self.timeout,
                journal,
                clock: self.clock.clone(),
            }),
            retry_for: self.retry_for,
            prompt: self.summarize.as_ref().map(|summarize| summarize.prompt.clone()),
            origin: self.origin.clone(),
            clock: self.clock.clone(),
            progress: self.progress.clone(),
            trouble: Trouble::default(),
        }))
    }

    fn concurrency(&self) -> usize {
        self.concurrency
    }

    fn resources(&self) -> Vec<Resource> {
        self.state.iter().map(|path| Resource::Path(identity(path))).collect()
    }
}

struct Uploader {
    service: Arc<Service>,
    retry_for: Duration,
    prompt: Option<String>,
    origin: Origin,
    clock: Arc<dyn Clock>,
    progress: Option<Progress>,
    trouble: Trouble,
}

#[async_trait::async_trait]
impl IoRunner for Uploader {
    async fn run(&self, item: &Item) -> Result<Payload, ItemError> {
        let Payload::Segment(segment) = &item.payload else {
            return Err(ItemError::Failed(format!("VSS takes segments, not {}", item.payload.kind().plural())));
        };
        let (stream, time, ack) = (item.stream.clone(), item.time, &item.lease.ack);
        ack.begun();
        let intent = match self.uploaded(&stream, segment, time).await {
            Ok(intent) => intent,
            Err(NotUploaded { code, message, verdict }) => {
                // Without a place on a disk it would stay for as long as the process.
                self.service.journal.close(&Intent::of(&stream, segment, Vec::new()));
                ack.failed(&format!("{code}: {message}"));
                let told = format!("VSS did not take `{}`: {code}: {message}", segment.name);
                let status = SegmentStatus { code: Some(code), message: Some(message), ..segment.status("failed") };
                return Err(ItemError::Told { message: told, payload: Box::new(self.record(item, status)), verdict });
            }
        };
        ack.placed(intent.id.as_deref().unwrap_or_default());
        let mut status = SegmentStatus { vss_id: intent.id.clone(), ..segment.status("uploaded") };
        if intent.sha256 != segment.sha256 {
            // What is told is what is there.
            (status.bytes, status.sha256) = (intent.bytes, intent.sha256.clone());
            status.message = Some("an end has cut it short this time: all of it is there from before".to_owned());
        }
        let (service, prompt) = (self.service.clone(), self.prompt.clone());
        match blocking(move || service.finish(intent, prompt.as_deref())).await {
            Ok(summary) => status.summary = summary,
            Err(failure) => {
                let (code, message) = described(failure);
                (status.code, status.message) = (Some(code), Some(message));
            }
        }
        Ok(self.record(item, status))
    }

    fn trouble(&self) -> Option<Trouble> {
        Some(self.trouble.clone())
    }
}

impl Uploader {
    fn record(&self, item: &Item, status: SegmentStatus) -> Payload {
        Payload::Record(Arc::new(self.origin.record(item, RecordBody::Segment(status))))
    }

    /// Uploads a segment until it is there, once: or why it will not be.
    async fn uploaded(
        &self,
        stream: &StreamId,
        segment: &Arc<Segment>,
        time: SystemTime,
    ) -> Result<Intent, NotUploaded> {
        // Of two that the server's list cannot tell apart, each would take the other's file for its own.
        let turn = Arc::new(journal::turn(self.service.client.base(), segment).await);
        let start = self.clock.now();
        // Others may fail beside it.
        let trouble = self.trouble.of_one();
        let (place, owner) = (masked(self.service.client.base()), stream.clone());
        let mut failures = 0;
        let output = self.progress.as_ref().and_then(|progress| progress.output(stream, segment));
        loop {
            let output = output.clone();
            let (service, stream, segment) = (self.service.clone(), stream.clone(), segment.clone());
            let name = segment.name.clone();
            // A request that nobody waits for any more is still under way.
            let turn = turn.clone();
            let attempt = move || {
                let answer = service.attempt(&stream, &segment, time, output.as_ref());
                drop(turn);
                Ok(answer)
            };
            let failure = match blocking(attempt).await {
                Ok(Ok(Attempt::Uploaded(intent))) => return Ok(*intent),
                Ok(Ok(Attempt::Refused(failure))) => {
                    let (code, message) = described(failure);
                    return Err(NotUploaded { code, message, verdict: Verdict::Rejected });
                }
                // Whether the last request went well will be known by then.
                Ok(Ok(Attempt::TooEarly(wait))) => {
                    tokio::time::sleep(wait).await;
                    continue;
                }
                Ok(Err(failure)) | Err(failure) => failure,
            };
            failures += 1;
            let delay = match &failure {
                Failure::Refused { .. } => {
                    let (code, message) = described(failure);
                    return Err(NotUploaded { code, message, verdict: Verdict::Lost });
                }
                Failure::Busy { after: Some(after), .. } => BACKOFF.delay(failures).max(*after),
                Failure::Busy { .. } | Failure::Unreachable(_) | Failure::Unknown(_) => BACKOFF.delay(failures),
            };
            let hint = failure.hint();
            let (code, message) = described(failure);
            let left = self.retry_for.saturating_sub(self.clock.now().saturating_duration_since(start));
            if left.is_zero() {
                let message = format!("{message} (given up after {failures} attempts)");
                return Err(NotUploaded { code, message, verdict: Verdict::Lost });
            }
            // However long that is, there is a last attempt when the time is over.
            let delay = delay.min(left);
            let told = trouble.is(&format!(
                "cannot upload `{name}` of stream `{owner}` to `{place}`: {code}: {message}; it is tried again; hint: {hint}"
            ));
            // An hour without the service must not fill the log.
            if failures.is_power_of_two() {
                let node = &self.origin.node;
                tracing::warn!(%node, stream = %owner, failures, "`{node}` {told}");
            }
            tokio::time::sleep(delay).await;
        }
    }
}

/// Why a segment is not uploaded.
struct NotUploaded {
    code: String,
    message: String,
    /// Rejected where the service will not have it; lost where it may the next time.
    verdict: Verdict,
}

/// The words of a failure: a code, and a sentence.
fn described(failure: Failure) -> (String, String) {
    match failure {
        Failure::Unreachable(message) => ("Unreachable".to_owned(), message),
        Failure::Unknown(message) => ("Unknown".to_owned(), message),
        Failure::Busy { code, message, after: Some(after) } => {
            (code, format!("{message} (it asks not to be asked again for {} s)", after.as_secs()))
        }
        Failure::Busy { code, message, after: None } | Failure::Refused { code, message, .. } => (code, message),
    }
}

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let panicked = |error| Failure::wrong("Panicked", format!("the upload broke off: {error}"));
    tokio::task::spawn_blocking(call).await.unwrap_or_else(|error| Err(panicked(error)))
}

/// What came of looking after a segment.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    /// It is there, once, under the id of this.
    Uploaded(Box<Intent>),
    /// The service has looked at it, and will not have it.
    Refused(Failure),
    /// A request of before may still be under way.
    TooEarly(Duration),
}

/// What an intent with another content has left on the server.
enum LeftBehind {
    Files(Vec<String>),
    /// A request of before may still be under way.
    TooEarly(Duration),
}

struct Service {
    client: Client,
    api: Api,
    timeout: Duration,
    journal: Arc<Journal>,
    clock: Arc<dyn Clock>,
}

impl Service {
    /// Makes sure of what is there, and uploads the segment where it is not. Blocks.
    fn attempt(
        &self,
        stream: &StreamId,
        segment: &Segment,
        time: SystemTime,
        output: Option<&Output>,
    ) -> Result<Attempt, Failure> {
        if let Some(output) = output.filter(|output| output.is_live()) {
            // Its index must not come again.
            output.begin().map_err(|error| unwritten(&format!("{error}; {}", error.hint)))?;
        }
        let found = self.journal.find(stream, segment).map_err(|error| unreadable(&error))?;
        let output = output.and_then(Output::identity);
        let meant = |before: Vec<String>, replaces: Vec<String>| Intent {
            output: output.map(str::to_owned),
            replaces,
            ..Intent::of(stream, segment, before)
        };
        let mut intent = match found {
            // Another recording may have the same name: that stays.
            Some(earlier) if !earlier.is_of(segment) => {
                let is_same_output = output.is_some() && earlier.output.as_deref() == output;
                if is_same_output && self.is_part(segment, &earlier)? {
                    return Ok(Attempt::Uploaded(Box::new(earlier)));
                }
                let replaces = match is_same_output {
                    true => match self.left_by(stream, &earlier)? {
                        LeftBehind::Files(files) => files,
                        LeftBehind::TooEarly(wait) => return Ok(Attempt::TooEarly(wait)),
                    },
                    false => Vec::new(),
                };
                meant(self.copies(segment)?, replaces)
            }
            Some(intent) => match &intent.id {
                Some(id) if self.is_there(id, segment)? => return self.reconciled(segment, intent),
                // One of several is gone: another may be there.
                Some(_) if intent.may_be_there_twice() => Intent { id: None, ..intent },
                // The server was emptied meanwhile.
                Some(_) => meant(self.copies(segment)?, intent.replaces),
                // What was there before is another list by now.
                None if intent.attempts == 0 => meant(self.copies(segment)?, intent.replaces),
                None => intent,
            },
            None => meant(self.copies(segment)?, Vec::new()),
        };
        if let Some(wait) = self.under_way(&intent) {
            return Ok(Attempt::TooEarly(wait));
        }
        let chosen = (self.api == Api::Rtvi3).then(|| chosen_id(stream, &segment.name, &segment.sha256));
        // An id of our own is looked for in any case: what made it may have been forgotten here.
        if (intent.attempts > 0 || chosen.is_some())
            && let Some(id) = self.found(segment, &intent, chosen.as_deref())?
        {
            intent.id = Some(id);
            self.keep(&intent)?;
            return self.reconciled(segment, intent);
        }
        let earlier = (intent.attempts, intent.attempted_ms);
        intent.attempts += 1;
        intent.attempted_ms = self.now_ms();
        self.keep(&intent)?;
        let identified = chosen.as_deref().map(|id| (id, &**stream, time));
        let upload = Upload {
            name: &segment.name,
            media_type: segment.media_type,
            content: &segment.content,
            sha256: &segment.sha256,
            identified,
        };
        let failure = match self.client.upload(&upload) {
            Ok(id) => return self.answered(segment, intent, id),
            Err(failure) => failure,
        };
        // An id of ours that is refused is one that is there, where a request of before was slower than this one.
        if let (Failure::Refused { .. }, Some(_)) = (&failure, &chosen) {
            match self.found(segment, &intent, chosen.as_deref()) {
                Ok(Some(id)) => return self.answered(segment, intent, id),
                Ok(None) | Err(Failure::Refused { .. }) => {}
                Err(unclear) => return Err(unclear),
            }
        }
        if let Failure::Busy { .. } | Failure::Unreachable(_) | Failure::Refused { status: Some(_), .. } = &failure {
            // That attempt left nothing behind: there is nothing to wait for.
            (intent.attempts, intent.attempted_ms) = earlier;
            self.keep(&intent)?;
        }
        if failure.is_about_content() { Ok(Attempt::Refused(failure)) } else { Err(failure) }
    }

    /// The last attempt succeeded.
    fn answered(&self, segment: &Segment, mut intent: Intent, id: String) -> Result<Attempt, Failure> {
        intent.id = Some(id);
        if intent.attempts > 1 {
            // Those before may still be at work: they have as long again.
            intent.attempted_ms = self.now_ms();
        }
        self.keep(&intent)?;
        self.reconciled(segment, intent)
    }

    /// How long a request of before may still be at work in the server.
    fn under_way(&self, intent: &Intent) -> Option<Duration> {
        let until = intent.attempted_ms.saturating_add(millis(self.timeout));
        let left = Duration::from_millis(until.saturating_sub(self.now_ms()));
        // A clock that was set back must not stop anything for longer than that.
        (!left.is_zero() && intent.attempted_ms > 0).then_some(left.min(self.timeout))
    }

    /// The file that an earlier attempt made.
    fn found(&self, segment: &Segment, intent: &Intent, chosen: Option<&str>) -> Result<Option<String>, Failure> {
        match chosen {
            Some(id) => match self.client.file(id)? {
                Some(file) => Ok(Some(file.checked(&segment.name, segment.content.len())?.id)),
                None => Ok(None),
            },
            None => Ok(self.ours(segment, intent)?.into_iter().next()),
        }
    }

    /// Sees to it that the segment, which is there, is there once. Whoever comes here in the middle begins again.
    fn reconciled(&self, segment: &Segment, mut intent: Intent) -> Result<Attempt, Failure> {
        if intent.may_be_there_twice() && self.api == Api::V2 {
            if let Some(wait) = self.under_way(&intent) {
                return Ok(Attempt::TooEarly(wait));
            }
            for surplus in self.ours(segment, &intent)?.into_iter().filter(|other| Some(other) != intent.id.as_ref()) {
                match self.client.delete(&surplus) {
                    Ok(()) => {}
                    // One that is in use, or gone by now, is no reason to say that the segment is not there.
                    Err(failure @ Failure::Refused { .. }) => {
                        let (code, message) = described(failure);
                        tracing::warn!("VSS keeps a second `{}` ({surplus}): {code}: {message}", segment.name);
                    }
                    Err(failure) => return Err(failure),
                }
            }
            intent.is_reconciled = true;
            intent.seen_ms = self.now_ms();
            self.keep(&intent)?;
        }
        if !intent.replaces.is_empty() {
            self.remove_replaced(segment, &intent)?;
            intent.replaces.clear();
            self.keep(&intent)?;
        }
        let now = self.now_ms();
        // What is met in each run is not forgotten.
        if now.saturating_sub(intent.seen_ms.max(intent.attempted_ms)) > millis(SEEN_EVERY) {
            intent.seen_ms = now;
            self.keep(&intent)?;
        }
        Ok(Attempt::Uploaded(Box::new(intent)))
    }

    /// Whether the segment was cut short, and the server has all of it: `whole`, of the same output.
    fn is_part(&self, segment: &Segment, whole: &Intent) -> Result<bool, Failure> {
        // Where something was dropped the time before, the same index may begin elsewhere.
        let begins_alike = whole.start_us.is_none_or(|start| start == segment.start.as_micros());
        let is_longer = whole.bytes > segment.content.len();
        let Some(id) = whole.id.as_ref().filter(|_| begins_alike && is_longer) else { return Ok(false) };
        let Some(file) = self.client.file(id)? else { return Ok(false) };
        file.checked(&whole.name, whole.bytes).map(|_| true)
    }

    /// The files that an intent has left on the server.
    fn left_by(&self, stream: &StreamId, intent: &Intent) -> Result<LeftBehind, Failure> {
        let mut files = intent.replaces.clone();
        files.extend(intent.id.clone());
        // An attempt without an answer may have made one, and several may have made several.
        let is_unclear = intent.attempts > 0 && (intent.id.is_none() || intent.may_be_there_twice());
        if is_unclear {
            if let Some(wait) = self.under_way(intent) {
                return Ok(LeftBehind::TooEarly(wait));
            }
            match self.api {
                Api::V2 => {
                    let there = self.client.files(&intent.name, intent.bytes)?;
                    let is_ours = |id: &String| !intent.before.contains(id) && !self.journal.is_of_another(intent, id);
                    files.extend(there.into_iter().filter(is_ours));
                }
                Api::Rtvi3 => files.push(chosen_id(stream, &intent.name, &intent.sha256)),
            }
        }
        files.sort_unstable();
        files.dedup();
        Ok(LeftBehind::Files(files))
    }

    /// Deletes what the segment, which is there, takes the place of.
    fn remove_replaced(&self, segment: &Segment, intent: &Intent) -> Result<(), Failure> {
        let is_over = |id: &&String| Some(*id) != intent.id.as_ref() && !self.journal.is_of_another(intent, id);
        for id in intent.replaces.iter().filter(is_over) {
            match self.client.file(id) {
                Ok(None) => continue,
                // Whether it may be deleted is said next.
                Ok(Some(_)) | Err(Failure::Refused { .. }) => {}
                Err(failure) => return Err(failure),
            }
            match self.client.delete(id) {
                Ok(()) => tracing::info!("VSS has all of `{}`; the part of it ({id}) is deleted", segment.name),
                Err(failure @ Failure::Refused { .. }) => {
                    let (code, message) = described(failure);
                    tracing::warn!("VSS keeps a part of `{}` ({id}): {code}: {message}", segment.name);
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Whether the server has the file that an upload of before has made. Blocks.
    fn is_there(&self, id: &str, segment: &Segment) -> Result<bool, Failure> {
        match self.client.file(id)? {
            Some(file) => file.checked(&segment.name, segment.content.len()).map(|_| true),
            // To upload it again is final: the list has to say the same.
            None => Ok(self.copies(segment)?.iter().any(|other| other == id)),
        }
    }

    /// Asks for a summary, unless that was answered before, and is done with an intent. Blocks.
    fn finish(&self, mut intent: Intent, prompt: Option<&str>) -> Result<Option<String>, Failure> {
        let answer = self.summary(&mut intent, prompt);
        self.journal.close(&intent);
        answer
    }

    fn summary(&self, intent: &mut Intent, prompt: Option<&str>) -> Result<Option<String>, Failure> {
        let (Some(prompt), Some(id)) = (prompt, &intent.id) else { return Ok(None) };
        if let Some(summary) = intent.summary.as_ref().filter(|summary| summary.prompt == prompt) {
            return Ok(Some(summary.text.clone()));
        }
        let text = self.client.summary(id, prompt)?;
        intent.summary = Some(Summary { prompt: prompt.to_owned(), text: text.clone() });
        if let Err(error) = self.journal.keep(intent, self.now_ms()) {
            tracing::warn!("the summary of `{}` cannot be written down, and is asked for again: {error}", intent.name);
        }
        Ok(Some(text))
    }

    /// Files of the segment's name and size.
    fn copies(&self, segment: &Segment) -> Result<Vec<String>, Failure> {
        match self.api {
            Api::V2 => self.client.files(&segment.name, segment.content.len()),
            Api::Rtvi3 => Ok(Vec::new()),
        }
    }

    /// Those of them that were not there before, and that nobody else here has uploaded.
    fn ours(&self, segment: &Segment, intent: &Intent) -> Result<Vec<String>, Failure> {
        let is_ours = |id: &String| !intent.before.contains(id) && !self.journal.is_of_another(intent, id);
        Ok(self.copies(segment)?.into_iter().filter(is_ours).collect())
    }

    fn keep(&self, intent: &Intent) -> Result<(), Failure> {
        self.journal.keep(intent, self.now_ms()).map_err(|error| match error.kind() {
            // That does not change.
            std::io::ErrorKind::InvalidFilename => Failure::wrong(
                "State",
                format!("what is uploaded cannot be written down: {error}: give `state` a shorter path"),
            ),
            _ => unwritten(&error),
        })
    }

    fn now_ms(&self) -> u64 {
        now_ms(&*self.clock)
    }
}

fn now_ms(clock: &dyn Clock) -> u64 {
    millis(clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// What was uploaded cannot be read; a disk may come back.
fn unreadable(why: &dyn std::fmt::Display) -> Failure {
    let message = format!("what was uploaded before cannot be read: {why}");
    Failure::Busy { code: "State".to_owned(), message, after: None }
}

/// What is uploaded cannot be written down; a full disk may have room again.
fn unwritten(why: &dyn std::fmt::Display) -> Failure {
    let message = format!("what is uploaded cannot be written down: {why}");
    Failure::Busy { code: "State".to_owned(), message, after: None }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The UUID (version 8, RFC 9562) of a segment, out of what it is: the same one however often it is sent.
fn chosen_id(stream: &StreamId, name: &str, sha256: &str) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for part in [&**stream, name, sha256] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut bytes = hash.finalize();
    bytes[6] = 0x80 | bytes[6] & 0x0f;
    bytes[8] = 0x80 | bytes[8] & 0x3f;
    let text = hex::encode(&bytes[..16]);
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}
