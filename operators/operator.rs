//! The contract between the engine and everything that makes, changes or takes items.
//!
//! A node of a graph is built once, from its configuration, by its [`Registration`]. What it becomes says how it runs:
//!
//! | built | state | runs on | for |
//! |---|---|---|---|
//! | [`Source`] | per stream | its own thread, may block | cameras, files |
//! | [`InlineOperator`] | per stream | a dataflow worker, must not block | cheap work, well under a millisecond |
//! | [`PoolOperator`] | per pool thread | the inference pool | CPU jobs: one item in, one payload out |
//! | [`IoOperator`] | per node | the io runtime | conversations with others: one item in, one payload out |
//! | [`Sink`] | per node | the io runtime | files, networks, subscribers |
//!
//! The engine, not the operator, keeps order per stream, deadlines, panics, error records and leases.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::clock::Clock;
use crate::config::Field;
use crate::encoding::Encoding;
use crate::error::{FieldError, ItemError, SinkError, SourceError, StartError};
use crate::hooks::Hooks;
use crate::inference::manifest::InputSpec;
use crate::inference::model::Catalog;
use crate::inference::session::Sessions;
use crate::inlet::Inlet;
use crate::item::{EndReason, Event, Frame, Gap, Item, Kind, Origin, Packet, Payload, Record, StreamId, StreamInfo};
use crate::lease::{Lease, Verdict, Watched};
use crate::progress::Progress;
use crate::sinks::hls::store::Playlists;
use crate::time::MediaTime;

/// What part a registered type plays in a graph; the table that it is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Source,
    Operator,
    Sink,
}

impl Role {
    /// The top-level table of the graph file: `sources`, `operators` or `sinks`.
    pub const fn table(self) -> &'static str {
        match self {
            Role::Source => "sources",
            Role::Operator => "operators",
            Role::Sink => "sinks",
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Role::Source => "source",
            Role::Operator => "operator",
            Role::Sink => "sink",
        }
    }
}

/// What comes out of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Produces {
    Nothing,
    /// One of these; the consumer's demand chooses.
    Kinds(&'static [Kind]),
    /// Whatever came in.
    SameAsInput,
}

/// Where a node's work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// A thread for each stream (sources).
    Thread,
    /// On the dataflow worker.
    Inline,
    /// In the inference pool.
    Pool,
    /// On the io runtime (sinks).
    Io,
}

/// One line of the registry: everything that `check`, `list` and the reference need to know of a type.
pub struct Registration {
    /// What a graph file writes as `type`.
    pub name: &'static str,
    pub role: Role,
    /// One sentence for lists.
    pub summary: &'static str,
    pub execution: Execution,
    pub accepts: &'static [Kind],
    pub produces: Produces,
    /// The fields of the node's table, beside those that every node takes (`type`, `inputs`, `budget`, …).
    pub fields: &'static [Field],
    /// A complete node table that builds, for the reference.
    pub example: &'static str,
    /// Builds the node from its table, in which every value has been substituted and checked against `fields`.
    pub build: fn(&BuildContext, toml::Table) -> Result<Built, Vec<FieldError>>,
}

/// What a node may know of its surroundings.
#[derive(Clone)]
pub struct BuildContext {
    pub origin: Origin,
    /// Relative paths in the graph are relative to this folder (the working directory of the process).
    pub folder: PathBuf,
    pub models: Arc<Catalog>,
    pub clock: Arc<dyn Clock>,
    /// Where the `sse` sink publishes.
    pub publisher: Arc<dyn Publisher>,
    /// What it remembers over a restart; `None`: nothing.
    pub progress: Option<Progress>,
    /// Where the `hls` sink publishes.
    pub playlists: Arc<Playlists>,
}

/// Takes records for subscribers. The control plane implements it; without one, records go nowhere.
pub trait Publisher: Send + Sync {
    /// Must not block: a slow subscriber loses its own oldest events.
    fn publish(&self, record: &Arc<Record>);
}

/// A publisher without subscribers.
pub struct NoPublisher;

impl Publisher for NoPublisher {
    fn publish(&self, _record: &Arc<Record>) {}
}

/// A node, ready to be planned.
#[derive(Clone)]
pub enum Built {
    Source(Arc<dyn Source>),
    /// Does its work inline and may be pushed into a source's own thread (see [`crate::transforms::sample`]).
    Inline(Arc<dyn InlineOperator>),
    Pool(Arc<dyn PoolOperator>),
    Io(Arc<dyn IoOperator>),
    Sink(Arc<dyn Sink>),
}

impl Built {
    /// What it owns alone.
    pub fn resources(&self) -> Vec<Resource> {
        match self {
            Built::Sink(sink) => sink.resources(),
            Built::Io(operator) => operator.resources(),
            Built::Source(_) | Built::Inline(_) | Built::Pool(_) => Vec::new(),
        }
    }
}

/// Something that a node owns alone, such as a file that it writes. Two owners of one are a mistake in the graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    Path(PathBuf),
    /// An object in a storage that is no folder of this machine, by its address.
    Object(String),
}

impl fmt::Display for Resource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::Path(path) => path.display().fmt(formatter),
            Resource::Object(address) => formatter.write_str(address),
        }
    }
}

/// A stream that a source's configuration declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    pub id: StreamId,
    /// Where it comes from, for people. The engine covers what is secret in it.
    pub location: String,
}

/// How much a picture of this source takes, where that is known before it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemSize {
    /// Bytes of one item; none takes more.
    Known(u64),
    /// Bytes of one item by what the inputs declare of themselves. The pictures of one may grow later on.
    Declared(u64),
    Unknown,
}

/// A stream that a source found while the graph runs.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundStream {
    pub id: StreamId,
    /// What `streams.ID` of the source's table would say of it.
    pub own: toml::Value,
}

/// Streams that a source found and that could not be read, for a reason that may be over later: the engine tells of them,
/// and whoever looks for streams finds them again.
#[derive(Clone, Default)]
pub struct Unread(Arc<Mutex<Vec<StreamId>>>);

impl Unread {
    pub fn tell(&self, stream: StreamId) {
        self.streams().push(stream);
    }

    /// Those that were told of since the last time.
    pub fn take(&self) -> Vec<StreamId> {
        std::mem::take(&mut *self.streams())
    }

    fn streams(&self) -> MutexGuard<'_, Vec<StreamId>> {
        // Ids are whole at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks for streams that a source's configuration does not name one by one. Has a thread of its own.
pub trait Discovery: Send {
    /// Waits until something was found; `None`: nothing more will be. While it waits, `stop` is polled; when that says
    /// so, what it answers does not matter.
    ///
    /// # Errors
    /// Where it can look no longer.
    fn next(&mut self, stop: &dyn Fn() -> bool) -> Result<Option<Vec<FoundStream>>, SourceError>;

    /// Where it wants to be told of streams of its own that could not be read for now.
    fn unread(&self) -> Option<Unread> {
        None
    }

    /// Where it says what keeps it from looking, for as long as something does.
    fn trouble(&self) -> Option<Trouble> {
        None
    }
}

/// Makes items of streams. Blocking calls are allowed, each with a deadline: every stream has a thread of its own.
pub trait Source: Send + Sync {
    /// The streams that the configuration declares, in order.
    fn streams(&self) -> Vec<StreamSpec>;

    /// The files that it reads: no sink of the graph may write them.
    fn reads(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// What looks for further streams while the graph runs, where it has some way to.
    fn discovery(&self) -> Option<Box<dyn Discovery>> {
        None
    }

    /// How many streams that were found are read at once; the others wait.
    fn at_once(&self) -> usize {
        usize::MAX
    }

    /// Whether time passes while it is read (a camera, a file paced by its timestamps): then the default is to drop
    /// rather than to block.
    fn is_live(&self) -> bool;

    /// Whether its streams end by themselves.
    fn is_finite(&self) -> bool;

    /// Whether one of its streams begins again where it has ended.
    fn repeats(&self) -> bool {
        false
    }

    /// Bytes of one frame, for the memory bound; of the stream with the largest ones, where streams differ.
    fn frame_size(&self) -> ItemSize;

    /// Bytes that each stream keeps for itself as long as it runs, for the memory bound. Default: 0.
    fn stream_memory(&self) -> u64 {
        0
    }

    /// Decoder threads that one stream uses, for the plan; `running` streams share the machine.
    fn decoder_threads(&self, cores: usize, running: usize) -> usize;

    /// Whether it may make no progress for longer than other sources before it counts as stuck; how long.
    fn silence(&self) -> Option<Duration> {
        None
    }

    /// Whether it waits for streams that are added while the graph runs: the graph goes on where it has none.
    fn awaits_streams(&self) -> bool {
        false
    }

    /// Whether it has something that it connects to, which may be lost.
    fn has_connection(&self) -> bool {
        true
    }

    /// The streams that another server announces.
    fn hooks(&self) -> Option<&Hooks> {
        None
    }

    /// The node whose records answer whoever pushed a picture.
    fn answer(&self) -> Option<&str> {
        None
    }

    /// Where pictures of `stream` are pushed to, for sources that are pushed to. Called before [`Source::run`], once
    /// for each time that the stream is run.
    fn inlet(&self, _stream: &StreamId) -> Option<Arc<Inlet>> {
        None
    }

    /// Reads `stream` until it ends or [`Outlet::stopping`] says so. Runs on the stream's own thread.
    fn run(&self, stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError>;
}

/// How a live source stands with its input; shown in `/stats`, in `/health` and on the terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// Pictures come from the input.
    Running,
    /// The input is lost and will be tried again; `attempts` in a row have shown no picture.
    Retrying { reason: String, attempts: u64 },
    /// As `Retrying`, and another picture is shown meanwhile: all items from here on are marked as such.
    Fallback { reason: String, attempts: u64 },
}

/// What became of a frame that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// At least one subscriber got it.
    Emitted,
    /// Nobody wanted it, or policy dropped it.
    NotEmitted,
}

/// What is asked of a source just now. It changes where the graph does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Somebody takes pictures: what is skipped of them is asked for each ([`Outlet::wants_packet`]).
    pub frames: bool,
    /// Somebody takes packets, of all tracks.
    pub packets: bool,
}

impl Demand {
    /// Pictures alone.
    pub const FRAMES: Demand = Demand { frames: true, packets: false };
}

/// What a source writes to. Implemented by the engine's taps, and by the harness of the unit tests.
pub trait Outlet {
    fn clock(&self) -> &Arc<dyn Clock>;

    /// Whether the source should return [`EndReason::Stopped`] soon. Look at least ten times a second.
    fn stopping(&self) -> bool;

    /// The source waits for a picture's own time, which is no lack of progress.
    fn pacing(&self) {}

    /// How many decoder threads this stream may use.
    fn decoder_threads(&self) -> usize;

    /// What is asked for. Sources that make pictures alone need not look.
    fn demand(&self) -> Demand {
        Demand::FRAMES
    }

    /// The source stands differently with its input. Sources that do not reconnect never say so: they run from
    /// `open` on.
    fn state(&mut self, state: SourceState);

    /// The stream starts, or goes on in another format.
    fn open(&mut self, info: StreamInfo);

    /// Something is missing here.
    fn gap(&mut self, gap: Gap);

    /// Called for each video packet in decoding order, `pts` relative to the first frame: could any subscriber want
    /// this packet's picture? `false` means: may be left undecoded if no other picture needs it.
    fn wants_packet(&mut self, pts: MediaTime) -> bool;

    /// `count` pictures were read and left undecoded because nobody wanted them.
    fn skipped(&mut self, count: u64);

    /// The source says in `trouble` what keeps it from reading the stream, for as long as something does: where it tries
    /// again inside of a read, and the stream goes on.
    fn trouble(&mut self, _trouble: &Trouble) {}

    /// The next picture that is given to [`Outlet::frame`] is watched.
    fn watch(&mut self, _watched: Watched) {}

    /// A picture was decoded: called in presentation order, `pts` relative to the first frame, `seq` the picture's
    /// number with skipped ones counted. Where somebody wants it, `make` is called once to convert it into a frame;
    /// this may block until there is credit. `Err(Stopped)` when the stream was stopped meanwhile; `make`'s error is
    /// reported in the frame's place.
    fn frame(
        &mut self,
        seq: u64,
        pts: MediaTime,
        make: &mut dyn FnMut() -> Result<Frame, ItemError>,
    ) -> Result<Offered, SourceError>;

    /// A packet was demuxed: called in the order of the container for all tracks, where [`Outlet::demand`] asks for
    /// packets. `seq` counts them, `pts` is relative to the first picture. May block until there is credit.
    /// `Err(Stopped)` when the stream was stopped meanwhile.
    fn packet(&mut self, _seq: u64, _pts: MediaTime, _packet: Packet) -> Result<Offered, SourceError> {
        Ok(Offered::NotEmitted)
    }

    /// Item `seq` came, and is dropped here for `reason` instead of being given to [`Outlet::frame`] or
    /// [`Outlet::packet`].
    fn dropped(&mut self, _kind: Kind, _seq: u64, _reason: &'static str) {}

    /// Something in the input was repaired or is corrupt, and the stream goes on: counted by `what`, and logged once.
    fn repaired(&mut self, what: &'static str, detail: &str);
}

/// Waits on the outlet's clock until a picture is due, or until the stream is told to stop; `false` in the latter case.
pub fn wait_until(outlet: &dyn Outlet, deadline: Instant) -> bool {
    while outlet.clock().now() < deadline {
        if outlet.stopping() {
            return false;
        }
        outlet.pacing();
        outlet.clock().wait(deadline, Duration::from_millis(50));
    }
    !outlet.stopping()
}

/// An operator that works on the dataflow worker. Holds configuration; the state is per stream.
pub trait InlineOperator: Send + Sync {
    /// The state of one stream.
    fn start(&self, stream: &StreamId) -> Box<dyn StreamOperator>;

    /// Upper bound, in bytes, of what it keeps of each stream beside what its inputs pay for. Default: 0.
    fn stream_memory(&self) -> u64 {
        0
    }

    /// Whether what comes of a stream by its several inputs is one stream to it, as packets and the records of their
    /// pictures are: then it hears of formats and gaps from the inputs alone that are sources, and of the end when
    /// all inputs have brought it. Otherwise each stream comes by one input.
    fn joins(&self) -> bool {
        false
    }

    /// Why it cannot work with what flows into it, and what to do.
    fn refuses(&self, _inputs: &[SinkInput]) -> Option<(String, String)> {
        None
    }

    /// The sampling that this operator does, if that is all it does: the planner pushes it into the source.
    fn sampling(&self) -> Option<crate::transforms::sample::Sampling> {
        None
    }
}

/// One stream's state in an inline operator. It may be handed to another generation of the graph.
pub trait StreamOperator: Any + Send {
    fn open(&mut self, _info: &Arc<StreamInfo>, _out: &mut Output) {}

    /// Works on one item. The engine keeps its own claim on the item until this returns: an error or a panic rejects
    /// it, `Ok` lets go of it. So an operator emits, holds a clone, or settles a verdict ([`Output::settle`]);
    /// doing none of these loses the item.
    fn item(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError>;

    fn gap(&mut self, _gap: &Gap, _out: &mut Output) {}

    fn end(&mut self, _reason: &EndReason, _out: &mut Output) {}
}

/// Where an inline operator puts what it makes.
#[derive(Default)]
pub struct Output {
    made: Vec<Emitted>,
}

/// What an inline operator puts out.
pub enum Emitted {
    Item(Item),
    Later(Later),
}

/// An item whose payload takes longer to make than a worker may be held up, and needs nothing of the operator's state. It
/// is made elsewhere, and takes its place in the order of its stream; what comes behind it waits for it.
pub struct Later {
    pub item: Unmade,
    pub make: Make,
}

/// Makes the payload of a [`Later`]; may block. An error rejects the item.
pub type Make = Box<dyn FnOnce() -> Result<Payload, ItemError> + Send>;

/// An [`Item`] without its payload.
pub struct Unmade {
    pub stream: StreamId,
    pub seq: u64,
    pub pts: MediaTime,
    pub time: SystemTime,
    pub fallback: bool,
    /// Its credit pays for what is kept until the payload is there, and for the payload.
    pub lease: Lease,
}

impl Unmade {
    /// The item with its payload.
    pub fn with(self, payload: Payload) -> Item {
        let Unmade { stream, seq, pts, time, fallback, lease } = self;
        Item { stream, seq, pts, time, fallback, payload, lease }
    }
}

impl Output {
    /// Passes `item` on. Emit a clone of the input, or something derived from it.
    pub fn emit(&mut self, item: Item) {
        self.made.push(Emitted::Item(item));
    }

    /// Passes an item on whose payload is made elsewhere.
    pub fn emit_later(&mut self, later: Later) {
        self.made.push(Emitted::Later(later));
    }

    /// The input ends here, with `verdict`.
    pub fn settle(&mut self, item: &Item, verdict: Verdict) {
        item.lease.ack.raise(verdict);
    }

    /// Takes what was emitted so far.
    pub fn drain(&mut self) -> impl Iterator<Item = Emitted> {
        self.made.drain(..)
    }
}

/// An operator whose work is a CPU job: one payload for each item, in any order; the engine puts results back in
/// stream order.
pub trait PoolOperator: Send + Sync {
    /// Makes what one pool thread needs (a session, scratch memory) and warms it up. Called on that thread, before
    /// the graph counts as running. Sessions are shared between the nodes of one thread through `sessions`.
    fn runner(&self, sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError>;

    /// A job that takes longer is given up: an error record takes its place.
    fn deadline(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// How jobs are put together, of whatever streams and workers; `None`: each one runs by itself.
    fn batching(&self) -> Option<Batching> {
        None
    }

    /// Upper bound, in bytes, of what one pool thread allocates for this node, for the plan.
    fn memory(&self) -> u64;

    /// The tensors that it takes, where it takes only some.
    fn takes(&self) -> Option<&InputSpec> {
        None
    }

    /// The tensors that it makes.
    fn makes(&self) -> Option<&InputSpec> {
        None
    }

    /// The model that it runs, for the plan and for statistics.
    fn model(&self) -> Option<Arc<str>> {
        None
    }
}

/// How the pool puts the jobs of one operator together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// The most jobs that run as one; more than one.
    pub items: usize,
    /// How long the first of them waits for others.
    pub wait: Duration,
}

/// One pool thread's part of a [`PoolOperator`]. Not `Send`: it lives and dies on its thread.
pub trait Runner {
    fn run(&mut self, item: &Item) -> Result<Payload, ItemError>;

    /// Runs several jobs as one: one result for each item, in their order. An error of one is that one's alone. Called
    /// where the operator asks for [`PoolOperator::batching`], with at most so many items.
    fn run_batch(&mut self, items: &[&Item]) -> Vec<Result<Payload, ItemError>> {
        items.iter().map(|item| self.run(item)).collect()
    }
}

/// An operator whose work is to wait for others: one payload for each item, in any order; the engine puts results back
/// in stream order. It has no deadline of its own beyond what it was told, and gives up where it is dropped.
pub trait IoOperator: Send + Sync {
    /// Makes it ready. Called once for each generation of the graph, before that counts as running.
    ///
    /// # Errors
    /// The graph does not start then.
    fn start(&self) -> Result<Arc<dyn IoRunner>, StartError>;

    /// The most items that are worked on at once, of all streams; at least one.
    fn concurrency(&self) -> usize;

    /// What it owns alone.
    fn resources(&self) -> Vec<Resource> {
        Vec::new()
    }
}

/// A started [`IoOperator`]. It may be dropped at any await: then the item has no answer.
#[async_trait::async_trait]
pub trait IoRunner: Send + Sync {
    async fn run(&self, item: &Item) -> Result<Payload, ItemError>;

    /// Where it says what keeps it from getting on, for as long as something does.
    fn trouble(&self) -> Option<Trouble> {
        None
    }
}

/// What flows into a sink from one of its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkInput {
    /// The node that makes it.
    pub node: Arc<str>,
    pub kind: Kind,
    /// The sources that its items come from.
    pub sources: Vec<Arc<str>>,
    /// Whether time passes while one of them is read.
    pub is_live: bool,
    /// Whether a stream of one of them begins again where it has ended.
    pub repeats: bool,
}

/// What keeps a node from getting on just now, such as a server that is down. Shared between whoever tries again and the
/// engine that tells about it.
#[derive(Clone, Default)]
pub struct Trouble(Arc<Mutex<TroubleState>>);

#[derive(Default)]
struct TroubleState {
    now: Option<String>,
    /// What is wrong with several things at once, by the number of each.
    each: BTreeMap<u64, String>,
    /// The number of the next of them.
    next: u64,
    /// What is told of beside all that.
    beside: Vec<Trouble>,
    cover: Option<Cover>,
}

/// Covers what is secret in a text.
type Cover = Arc<dyn Fn(&str) -> String + Send + Sync>;

impl Trouble {
    /// From here on, `cover` is what every text goes through before anybody sees it.
    pub fn cover_with(&self, cover: impl Fn(&str) -> String + Send + Sync + 'static) {
        let cover: Cover = Arc::new(cover);
        self.cover(&cover);
    }

    fn cover(&self, cover: &Cover) {
        let mut state = self.state();
        state.beside.iter().for_each(|other| other.cover(cover));
        state.cover = Some(cover.clone());
    }

    /// All of these as one: what is wrong with any of them is wrong with it. `None`: there are none.
    pub fn of_all(troubles: impl IntoIterator<Item = Trouble>) -> Option<Trouble> {
        let mut troubles: Vec<Trouble> = troubles.into_iter().collect();
        match troubles.len() {
            0 | 1 => troubles.pop(),
            _ => Some(Trouble(Arc::new(Mutex::new(TroubleState { beside: troubles, ..TroubleState::default() })))),
        }
    }

    /// Whether this is the same, and not only of the same words.
    pub fn is_same(&self, other: &Trouble) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// This is wrong, in plain words. Answers them as they may be shown.
    pub fn is(&self, what: &str) -> String {
        let mut state = self.state();
        let covered = state.covered(what);
        state.now = Some(covered.clone());
        covered
    }

    /// What [`Trouble::is`] said is wrong no more.
    pub fn is_over(&self) {
        self.state().now = None;
    }

    /// For one of several things that are done at once: what is wrong with it, beside what is wrong with the others.
    pub fn of_one(&self) -> TroubleOfOne {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        TroubleOfOne { all: self.clone(), number }
    }

    /// What is wrong now. Of several things the one that began first is told, and how many others there are.
    pub fn now(&self) -> Option<String> {
        let state = self.state();
        let beside = state.beside.iter().filter_map(Trouble::now);
        let mut all = state.now.iter().chain(state.each.values()).cloned().chain(beside);
        let first = all.next()?;
        let others: BTreeSet<String> = all.filter(|other| *other != first).collect();
        Some(match others.len() {
            0 => first,
            others => format!("{first} (and {others} more)"),
        })
    }

    fn state(&self) -> MutexGuard<'_, TroubleState> {
        // Texts are whole at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TroubleState {
    fn covered(&self, text: &str) -> String {
        self.cover.as_ref().map_or_else(|| text.to_owned(), |cover| cover(text))
    }
}

/// What is wrong with one of several things that are done at once; nothing any more when this is dropped.
pub struct TroubleOfOne {
    all: Trouble,
    number: u64,
}

impl TroubleOfOne {
    /// As [`Trouble::is`], for this one.
    pub fn is(&self, what: &str) -> String {
        let mut state = self.all.state();
        let covered = state.covered(what);
        state.each.insert(self.number, covered.clone());
        covered
    }
}

impl Drop for TroubleOfOne {
    fn drop(&mut self) {
        self.all.state().each.remove(&self.number);
    }
}

/// Takes what comes out of a graph.
pub trait Sink: Send + Sync {
    /// Opens it (creates the file, connects). Called once, before the graph counts as running.
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError>;

    /// Why it takes no items of this kind, configured as it is, though others of its type do; and what to do.
    fn refuses(&self, _kind: Kind) -> Option<(String, String)> {
        None
    }

    /// As [`Sink::start`], told what flows into it. Called in its place by the engine.
    fn start_with(&self, _inputs: &[SinkInput]) -> Result<Box<dyn SinkWriter>, StartError> {
        self.start()
    }

    /// Whether another one of its name, configured otherwise, may open what it has open while it ends: each thing that it
    /// stores is stored as a whole, so neither tears what the other writes.
    fn shares_with_successor(&self) -> bool {
        false
    }

    /// Whether its writer depends on what flows into it: then it is opened anew when its inputs change.
    fn depends_on_inputs(&self) -> bool {
        false
    }

    /// What it owns alone.
    fn resources(&self) -> Vec<Resource> {
        Vec::new()
    }

    /// Bytes that it keeps for each stream beside what leases pay for, for the memory bound. Default: 0.
    fn stream_memory(&self) -> u64 {
        0
    }

    /// How many threads encode each stream that it encodes, where it may encode any.
    fn encoder_threads(&self) -> Option<usize> {
        None
    }

    /// Whether it writes to the standard output of the process: then nothing else may.
    fn writes_to_standard_output(&self) -> bool {
        false
    }
}

/// How long a writer may take for one batch, and for closing, where it does not say otherwise.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// The open end of a [`Sink`]; one for each node, fed by all workers, in order per stream.
#[async_trait::async_trait]
pub trait SinkWriter: Send {
    /// Takes a batch, signals included. `Ok`: all of it is accepted, and the engine acknowledges its items as
    /// delivered. `Err`: none of it counts as accepted, and its items are lost; of a writer that settles items by
    /// itself, those alone that it does not hold.
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError>;

    /// Whether it acknowledges items by itself, perhaps long after [`SinkWriter::write`] took them: what is only
    /// buffered is not delivered. Then `Ok` means nothing but that it has taken over: for each item it holds a clone
    /// of the ack, or has given its verdict; doing neither loses the item. `Err` means the same, and tells besides what
    /// went wrong with some of them: what it holds it goes on with.
    fn settles(&self) -> bool {
        false
    }

    /// The most events of one batch; at least one. Default: as many as there are.
    fn most_at_once(&self) -> usize {
        usize::MAX
    }

    /// Goes on with what was taken over: waits until something of it has ended, for ever where there is nothing.
    /// Called again and again while no batch comes, and given up when one does: nothing may be lost by that.
    async fn work(&mut self) -> Result<(), SinkError> {
        std::future::pending().await
    }

    /// Nothing more comes: flush what is buffered.
    async fn close(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// The longest that one batch may take, and that closing may take. `None`: it bounds that by itself.
    fn deadline(&self) -> Option<Duration> {
        Some(WRITE_DEADLINE)
    }

    /// Where it says what keeps it from getting on, for as long as something does.
    fn trouble(&self) -> Option<Trouble> {
        None
    }

    /// What its encoders count, where it has some.
    fn encoding(&self) -> Option<Arc<Encoding>> {
        None
    }

    /// Whether it has all that it wanted: the graph then ends.
    fn is_complete(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_wrong_is_told_until_all_of_it_is_over() {
        assert!(Trouble::of_all([]).is_none());
        let (copies, tunnel) = (Trouble::default(), Trouble::default());
        let all = Trouble::of_all([copies.clone(), tunnel.clone()]).unwrap();
        all.cover_with(|text| text.replace("hunter2", "[secret]"));
        assert_eq!(all.now(), None);
        tunnel.is("has no tunnel for hunter2");
        assert_eq!(all.now().as_deref(), Some("has no tunnel for [secret]"));
        let (one, other) = (copies.of_one(), copies.of_one());
        one.is("cannot store a");
        other.is("cannot store a");
        assert_eq!(all.now().as_deref(), Some("cannot store a (and 1 more)"));
        assert_eq!(copies.now().as_deref(), Some("cannot store a"));
        drop(one);
        tunnel.is_over();
        assert_eq!(all.now().as_deref(), Some("cannot store a"));
        drop(other);
        assert_eq!(all.now(), None);
    }
}
