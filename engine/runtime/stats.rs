//! What a running engine says of itself: the types behind `/stats`, `/health`, the live view and the summary.

use std::collections::BTreeMap;
use std::sync::Arc;

use operators::lease::Counts;
use operators::made::MadeFile;
use serde::Serialize;

use super::culprit::Culprit;
use super::histogram::Histogram;
use super::preview::PreviewSlot;
use crate::graph::chaos::Chaos;

/// Everything, at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub graphs: Vec<GraphReport>,
    pub process: ProcessReport,
}

#[derive(Clone, Debug, Serialize)]
pub struct ProcessReport {
    pub uptime_seconds: f64,
    /// User and system time of the whole process.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub peak_resident_bytes: u64,
    pub threads: u64,
    pub workers: usize,
    pub pool_threads: usize,
    /// Threads of the pool that worked at once, on average over the last seconds, for graphs and for `/predict`.
    pub pool_busy: f64,
    /// The time that the pool's threads have worked, together.
    #[serde(skip)]
    pub pool_busy_seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GraphState {
    /// Models load and warm up, sinks open.
    Starting,
    Running,
    /// Told to stop: what is in flight is still delivered.
    Draining,
    Finished,
    Failed,
}

impl GraphState {
    pub const ALL: [GraphState; 5] =
        [GraphState::Starting, GraphState::Running, GraphState::Draining, GraphState::Finished, GraphState::Failed];

    /// As `/stats` writes it. A new state belongs into [`GraphState::ALL`] too.
    pub const fn name(self) -> &'static str {
        match self {
            GraphState::Starting => "starting",
            GraphState::Running => "running",
            GraphState::Draining => "draining",
            GraphState::Finished => "finished",
            GraphState::Failed => "failed",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct GraphReport {
    pub name: String,
    pub state: GraphState,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is disturbed on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chaos: Option<Chaos>,
    pub running_seconds: f64,
    /// How often it was loaded: 1 until the first reload.
    pub generation: u64,
    pub streams: Vec<StreamReport>,
    pub nodes: Vec<NodeReport>,
    pub total: Counts,
    /// What limits it just now; none before it runs, and until there is something to measure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub culprit: Option<Culprit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamState {
    Connecting,
    Running,
    /// The input is lost and will be tried again.
    Retrying,
    /// As `Retrying`, and another picture is shown meanwhile.
    Fallback,
    Ended,
    Stopped,
    Failed,
}

impl StreamState {
    pub const ALL: [StreamState; 7] = [
        StreamState::Connecting,
        StreamState::Running,
        StreamState::Retrying,
        StreamState::Fallback,
        StreamState::Ended,
        StreamState::Stopped,
        StreamState::Failed,
    ];

    /// As `/stats` writes it. A new state belongs into [`StreamState::ALL`] too.
    pub const fn name(self) -> &'static str {
        match self {
            StreamState::Connecting => "connecting",
            StreamState::Running => "running",
            StreamState::Retrying => "retrying",
            StreamState::Fallback => "fallback",
            StreamState::Ended => "ended",
            StreamState::Stopped => "stopped",
            StreamState::Failed => "failed",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct StreamReport {
    pub stream: String,
    pub source: String,
    pub location: String,
    /// Whether time passes while it is read: a camera, or a file that is paced by its timestamps.
    pub live: bool,
    pub state: StreamState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Attempts in a row that showed no picture, while the input is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u64>,
    /// How often pictures came again after the input was lost.
    pub reconnects: u64,
    #[serde(flatten)]
    pub counts: Counts,
    /// Pictures that came out of the decoder, that were converted for somebody, and that were never decoded.
    pub decoded: u64,
    pub converted: u64,
    pub skipped: u64,
    /// Packets that were passed on as they are.
    #[serde(skip_serializing_if = "is_zero")]
    pub packets: u64,
    /// Repairs by what was wrong (timestamps, corrupt packets).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub repaired: BTreeMap<&'static str, u64>,
    /// Means since the stream started, of pictures read and of items delivered.
    pub fps_in: f64,
    pub fps_delivered: f64,
    /// Items a second over the last seconds.
    pub rate_in: f64,
    pub rate_delivered: f64,
    pub rate_dropped: f64,
    /// From decoded to accepted by the sink.
    pub age_ms: Quantiles,
    /// The same ages as counts, for `/metrics`.
    #[serde(skip)]
    pub ages: Histogram,
    /// Milliseconds since the source last made progress.
    pub idle_ms: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drops: Vec<Drops>,
    /// Tap whose full budget keeps this source waiting just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_by: Option<String>,
    /// The part of the last seconds that the source waited for room, 0 to 1.
    pub blocked_share: f64,
    /// The edges out of the source, each to one consumer.
    pub taps: Vec<TapReport>,
    /// What its items cost the nodes that they run through, in the order of their names.
    pub busy: Vec<BusyReport>,
    /// What limits this stream just now, where it is something else than what limits its graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub culprit: Option<Culprit>,
    /// Items and bytes in memory behind this stream's taps, now and at most.
    pub held_items: u64,
    pub held_bytes: u64,
    pub held_bytes_peak: u64,
    pub held_bytes_limit: u64,
}

/// A stream, with what it has been through.
#[derive(Clone, Debug, Serialize)]
pub struct StreamView {
    #[serde(flatten)]
    pub report: StreamReport,
    /// It was added while the graph ran.
    pub posted: bool,
    /// Its latest states, the oldest first.
    pub history: Vec<StreamMoment>,
    /// What went wrong last, also where it has been well since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<StreamMistake>,
    /// How far the files are that are made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
}

/// Where a stream stands whose input becomes files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkState {
    /// Its input is opened and read, and no file is made yet.
    Downloading,
    /// Files are made; those that are finished are on their way meanwhile.
    Chunking,
    /// All of its input is read, and not every file is at its place.
    Uploading,
    Completed,
    /// Its input cannot be read, or a file did not come to its place.
    Error,
    /// Somebody stopped it.
    Stopped,
}

/// How far the files are that are made of a stream.
#[derive(Clone, Debug, Serialize)]
pub struct Work {
    pub state: WorkState,
    /// Of the input's length: what lies at its place. Absent where the input does not say how long it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// RFC 3339.
    pub started: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Seconds of the input, where it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<f64>,
    /// Files since it was started.
    pub made: u64,
    pub uploaded: u64,
    pub failed: u64,
    /// The latest of them, the oldest first.
    pub chunks: Vec<MadeFile>,
}

/// A state that a stream came into.
#[derive(Clone, Debug, Serialize)]
pub struct StreamMoment {
    pub state: StreamState,
    /// RFC 3339.
    pub since: String,
    /// The latest reason for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Something that went wrong with a stream.
#[derive(Clone, Debug, Serialize)]
pub struct StreamMistake {
    /// RFC 3339.
    pub time: String,
    pub message: String,
}

/// One stream's way into one tap.
#[derive(Clone, Debug, Serialize)]
pub struct TapReport {
    /// `SOURCE -> READER`.
    pub tap: String,
    /// The node that reads it.
    pub reader: String,
    /// The part of the last seconds that the source waited for room here, 0 to 1.
    pub blocked_share: f64,
    /// The same since the stream began.
    pub blocked_seconds: f64,
    /// What is in memory behind it, and how much may be.
    pub held_items: u64,
    pub held_items_limit: u64,
    pub held_bytes: u64,
    pub held_bytes_peak: u64,
    pub held_bytes_limit: u64,
}

/// What one stream's items cost one node.
#[derive(Clone, Debug, Serialize)]
pub struct BusyReport {
    pub node: String,
    /// How many cores they kept busy over the last seconds: the stream's part of the node's `busy_share`.
    pub busy_share: f64,
    /// The same in seconds, since the stream began or the node came.
    pub busy_seconds: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Drops {
    pub node: String,
    pub reason: &'static str,
    pub count: u64,
    /// Drops a second over the last seconds.
    pub rate: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct NodeReport {
    pub name: String,
    #[serde(rename = "type")]
    pub type_name: String,
    /// `tap`, `inline`, `pool`, `io` or `sink`.
    pub role: &'static str,
    /// What it reads: nodes, and taps by their names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// Items that came in, by worker.
    pub items: Vec<u64>,
    /// Items a second that came in over the last seconds.
    pub rate: f64,
    pub errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What keeps it from getting on just now, such as a server that is down; as `/health` says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Time spent working, summed over threads.
    pub busy_ms: f64,
    /// The same in seconds, turns that are not over included, for `/metrics`.
    #[serde(skip)]
    pub busy_seconds: f64,
    /// How many cores it kept busy over the last seconds: 1 is one thread that works all the time.
    pub busy_share: f64,
    /// The same by worker; only what runs on workers is told apart.
    #[serde(skip)]
    pub busy_by_worker: Vec<f64>,
    /// What the workshop does of it.
    #[serde(skip)]
    pub making_share: f64,
    /// How long its turns of work took (a job of the pool, a batch of an inline node or of a sink), for `/metrics`.
    #[serde(skip)]
    pub stages: Histogram,
    /// Items that came in and are not done: they wait, or are worked on.
    pub queued: u64,
    /// How long ago the oldest of them was decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_ms: Option<f64>,
    /// What encodes streams in it, beside its own work.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub encoders: Vec<EncoderReport>,
}

/// What encodes one stream in a node.
#[derive(Clone, Debug, Serialize)]
pub struct EncoderReport {
    pub stream: String,
    /// Threads that it may use.
    pub threads: usize,
    /// Pictures that it encoded.
    pub pictures: u64,
    /// The same a second, over the last seconds.
    pub rate: f64,
    /// The share of the last seconds that it decoded and encoded, 0 to 1; then the stream is all that it can take.
    pub busy_share: f64,
    /// The time that it did, for `/metrics`.
    #[serde(skip)]
    pub busy_seconds: f64,
    /// Packets that wait for it.
    pub queued: u64,
}

impl NodeReport {
    /// Items that were worked on: of those that came to a node of the pool, some may have been dropped before.
    pub fn worked(&self) -> u64 {
        if self.role == "pool" { self.stages.count() } else { self.items.iter().sum() }
    }

    /// Milliseconds of work for each item that was worked on; `None` where no work was measured.
    pub fn busy_ms_each(&self) -> Option<f64> {
        let worked = self.worked();
        (worked > 0 && self.stages.count() > 0).then(|| self.busy_ms / worked as f64)
    }
}

/// Whether it works, and if not, what does not.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    pub ok: bool,
    /// `starting`, `ok`, `failing` or `draining`.
    pub status: &'static str,
    /// One line for each thing that is wrong, naming graph, stream or node, and cause.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Something that can be asked how it is doing. The control plane and the live view know the engine only by this.
pub trait Observe: Send + Sync {
    fn report(&self) -> Report;
    fn health(&self) -> Health;
    /// The place for small pictures of a stream; `None` where there is no such stream.
    fn preview(&self, graph: &str, stream: &str) -> Option<Arc<PreviewSlot>>;
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}
