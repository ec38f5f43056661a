//! A feed: the thread that reads one stream, and those who listen to it.
//!
//! Listeners come and go while it runs. They are looked up for each picture, so a change of listeners falls between two
//! pictures: what the old ones got before, and the new ones get from there on, is the whole stream, once. Where they
//! take packets, it falls in front of a keyframe.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use operators::address::masked;
use operators::clock::Clock;
use operators::config::format_size;
use operators::error::{ItemError, SourceError, StartError};
use operators::inference::pool::panic_text;
use operators::inlet::Inlet;
use operators::item::{
    EndReason, Event, Frame, Gap, Item, Kind, Origin, Packet, Payload, Played, RecordBody, StreamId, StreamInfo,
};
use operators::lease::{Ack, Lease, Verdict, Watched};
use operators::lock::lock;
use operators::media::gate;
use operators::operator::{Demand, Offered, Outlet, Source, SourceState, Trouble};
use operators::reach::Hosts;
use operators::time::MediaTime;
use operators::transforms::sample::Sampler;

use super::counters::{StreamCounters, worth_logging};
use super::failure::{Notice, Notices};
use super::passage::Passage;
use super::stats::StreamState;
use super::tap::{StreamTap, TapEnd};
use crate::graph::substitute::Secrets;

/// A graph that listens to a stream.
pub struct Listener {
    /// Names the source node in records of errors.
    pub origin: Origin,
    pub counters: Arc<StreamCounters>,
    /// Texts that are covered wherever a message of the source is shown.
    pub secrets: Arc<Secrets>,
    pub notices: Notices,
    /// Added to the number of each picture, so that numbers go on where another feed of the stream ended.
    pub first_seq: u64,
    /// The same for packets.
    pub first_packet: u64,
    pub taps: Vec<StreamTap>,
}

impl Listener {
    /// A source's message as everybody may see it.
    fn covered(&self, text: &str) -> String {
        masked(&self.secrets.redact(text))
    }

    /// Whoever looks at the stream sees from here on what keeps its source from reading it.
    fn hears_of(&self, trouble: &Trouble) {
        let secrets = self.secrets.clone();
        trouble.cover_with(move |text| masked(&secrets.redact(text)));
        self.counters.set_trouble(Some(trouble.clone()));
    }

    fn to_all(&self, event: &Event) {
        for tap in &self.taps {
            tap.end.mailbox.push(Passage::Event(event.clone()));
        }
    }
}

/// What reads one stream.
pub struct Feed {
    pub stream: StreamId,
    /// Where pictures are pushed to, for a source that is pushed to.
    pub inlet: Option<Arc<Inlet>>,
    clock: Arc<dyn Clock>,
    decoder_threads: usize,
    /// Finish what is in hand and return.
    stopping: AtomicBool,
    /// It failed for a reason that may be over later.
    may_recover: AtomicBool,
    state: Mutex<State>,
    /// A picture is not in hand any more, or the listener has been changed.
    emitted: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    listener: Option<Listener>,
    /// The format that was announced last.
    info: Option<Arc<StreamInfo>>,
    /// Where the source says what keeps it from reading on.
    trouble: Option<Trouble>,
    /// Whether what is emitted stands in the place of an input that is lost.
    fallback: bool,
    /// A picture is on its way into the taps that its listener had when it came.
    in_hand: bool,
    /// Somebody waits to change the listener.
    change: Change,
    /// The thread stands in front of a keyframe until the listener was changed.
    at_keyframe: bool,
    /// The thread has said that the stream ended.
    ended: bool,
}

/// Where the listener is to be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Change {
    #[default]
    Nowhere,
    /// In front of the next keyframe: until then everything goes on.
    AtKeyframe,
    /// No further picture or packet sets out before that.
    Here,
}

impl State {
    fn takes(&self, kind: Kind) -> bool {
        self.listener.as_ref().is_some_and(|listener| listener.takes(kind))
    }
}

impl Feed {
    /// Starts to read `stream` of `source` for `listener`; what it opens may lead on to `hosts`.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn start(
        source: Arc<dyn Source>,
        stream: StreamId,
        decoder_threads: usize,
        clock: Arc<dyn Clock>,
        hosts: Hosts,
        listener: Listener,
    ) -> Result<Arc<Feed>, StartError> {
        listener.counters.progress(clock.now());
        let feed = Arc::new(Feed {
            inlet: source.inlet(&stream),
            stream,
            clock,
            decoder_threads,
            stopping: AtomicBool::new(false),
            may_recover: AtomicBool::new(false),
            state: Mutex::new(State { listener: Some(listener), ..State::default() }),
            emitted: Condvar::new(),
            thread: Mutex::default(),
        });
        let running = feed.clone();
        let thread = std::thread::Builder::new()
            .name(format!("source {}", feed.stream))
            .spawn(move || {
                gate::enter(hosts);
                running.run(&*source);
            })
            .map_err(|error| StartError::new(format!("cannot start a thread for stream `{}`: {error}", feed.stream)))?;
        *lock(&feed.thread) = Some(thread);
        Ok(feed)
    }

    fn run(self: &Arc<Feed>, source: &dyn Source) {
        let mut outlet = FeedOutlet { feed: self.clone(), targets: Vec::new(), watched: None };
        let outcome = catch_unwind(AssertUnwindSafe(|| source.run(&self.stream, &mut outlet)));
        let reason = match outcome {
            Ok(Ok(reason)) => reason,
            Ok(Err(SourceError::Stopped)) => EndReason::Stopped,
            Ok(Err(SourceError::Input { message, hint, is_temporary })) => {
                self.may_recover.store(is_temporary, Ordering::Release);
                EndReason::Failed(match hint {
                    Some(hint) => format!("{message}; hint: {hint}"),
                    None => message,
                })
            }
            Ok(Err(SourceError::Interrupted(reason))) => EndReason::Failed(reason),
            Err(panic) => EndReason::Failed(format!("the source panicked: {}", panic_text(&*panic))),
        };
        let mut state = lock(&self.state);
        state.ended = true;
        state.in_hand = false;
        self.emitted.notify_all();
        // Whoever left has said goodbye to its taps already.
        if let Some(listener) = state.listener.take() {
            listener.ended(&self.stream, reason, self.clock.now());
        }
    }

    /// Whether it failed for a reason that may be over later.
    pub fn may_recover(&self) -> bool {
        self.may_recover.load(Ordering::Acquire)
    }

    /// What it plays, as far as it has opened.
    pub fn played(&self) -> Option<Played> {
        lock(&self.state).info.as_ref().map(|info| info.played.clone())
    }

    /// Tells the thread to end; it says [`Notice::StreamEnded`] when it has.
    pub fn stop(&self) {
        // The thread may wait for room just now, and whoever pushes need not.
        if let Some(inlet) = &self.inlet {
            inlet.close();
        }
        self.stopping.store(true, Ordering::Release);
    }

    /// Lets what waits for room go: it is lost.
    pub fn give_up(&self) {
        self.stop();
        if let Some(listener) = &lock(&self.state).listener {
            listener.taps.iter().for_each(|tap| tap.end.give_up());
        }
    }

    /// Waits for the thread, which must have been told to end.
    pub fn join(&self) {
        let thread = lock(&self.thread).take();
        // A panic was caught inside, and said.
        drop(thread.map(JoinHandle::join));
    }

    /// Changes the listener between two pictures; where it takes packets, in front of a keyframe, which is waited for up
    /// to `patience`. A picture that is still on its way into a full tap is waited for as long; then that tap gives it
    /// up. `change` gets the listener, the format that was announced last, and whether a keyframe follows; it is not
    /// called where the stream has ended.
    pub fn between_pictures<R>(
        &self,
        patience: Duration,
        change: impl FnOnce(&mut Listener, Option<Arc<StreamInfo>>, bool) -> R,
    ) -> Option<R> {
        let mut state = lock(&self.state);
        if state.takes(Kind::Packet) && state.info.is_some() {
            state.change = Change::AtKeyframe;
            let waited = self.emitted.wait_timeout_while(state, patience, |state| !state.at_keyframe && !state.ended);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.change = Change::Here;
        if state.in_hand {
            let waited = self.emitted.wait_timeout_while(state, patience, |state| state.in_hand);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.in_hand {
            if let Some(listener) = &state.listener {
                listener.taps.iter().for_each(|tap| tap.end.give_up());
            }
            state = self.emitted.wait_while(state, |state| state.in_hand).unwrap_or_else(PoisonError::into_inner);
        }
        state.change = Change::Nowhere;
        let at_keyframe = std::mem::take(&mut state.at_keyframe);
        let info = state.info.clone();
        let changed = state.listener.as_mut().map(|listener| change(listener, info, at_keyframe));
        if let State { listener: Some(listener), trouble: Some(trouble), .. } = &*state {
            listener.hears_of(trouble);
        }
        drop(state);
        self.emitted.notify_all();
        changed
    }

    /// Waits until the listener may be used, which is to be looked up for a picture, or a packet before it is a keyframe
    /// or not.
    fn when_settled(&self, is_keyframe: bool) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        if is_keyframe && state.change == Change::AtKeyframe {
            state.at_keyframe = true;
            self.emitted.notify_all();
        }
        let state = self.emitted.wait_while(state, |state| {
            state.change == Change::Here || state.at_keyframe && state.change != Change::Nowhere
        });
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn listening<R>(&self, what: impl FnOnce(&mut Listener, &mut bool) -> R) -> Option<R> {
        let mut state = lock(&self.state);
        let State { listener, fallback, .. } = &mut *state;
        listener.as_mut().map(|listener| what(listener, fallback))
    }
}

impl Listener {
    /// The stream ends.
    fn ended(self, stream: &StreamId, reason: EndReason, now: Instant) {
        let node = &self.origin.node;
        let reason = match reason {
            EndReason::Failed(text) => EndReason::Failed(self.covered(&text)),
            other => other,
        };
        let (state, text) = match &reason {
            EndReason::Eof => (StreamState::Ended, None),
            EndReason::Stopped | EndReason::Reload => (StreamState::Stopped, None),
            EndReason::Failed(text) => (StreamState::Failed, Some(text.clone())),
        };
        if let Some(text) = &text {
            tracing::error!(%stream, %node, "stream `{stream}` of `{node}` failed: {text}");
        }
        self.counters.set_trouble(None);
        self.counters.set_state(state, text, now);
        self.to_all(&Event::End { stream: stream.clone(), reason: reason.clone() });
        self.notices.stream(Notice::StreamEnded { stream: stream.clone(), reason });
    }
}

/// What a source's thread writes to.
struct FeedOutlet {
    feed: Arc<Feed>,
    /// Where the picture in hand goes; kept from picture to picture for its memory.
    targets: Vec<Arc<TapEnd>>,
    /// Who hears of the next picture.
    watched: Option<Watched>,
}

/// A picture on its way, and what its error record would say.
struct Picture<'a> {
    stream: &'a StreamId,
    seq: u64,
    pts: MediaTime,
    /// When it was decoded.
    time: SystemTime,
    fallback: bool,
    frame: Result<Arc<Frame>, ItemError>,
}

impl FeedOutlet {
    fn emit(
        &self,
        target: &TapEnd,
        picture: &Picture<'_>,
        ack: &Ack,
        origin: &Origin,
        counters: &StreamCounters,
    ) -> bool {
        let Picture { stream, seq, pts, time, fallback, frame } = picture;
        let bytes = frame.as_ref().map_or(0, |frame| frame.bytes());
        target.emit(stream, bytes, ack, counters, |lease, too_large| {
            let message = match frame {
                Ok(frame) if !too_large => {
                    let payload = Payload::Frame(frame.clone());
                    let stream = (*stream).clone();
                    return Item { stream, seq: *seq, pts: *pts, time: *time, fallback: *fallback, payload, lease };
                }
                Ok(_) => {
                    let limit = format_size(target.budget.limits().bytes);
                    let size = format_size(bytes);
                    format!("one picture takes {size}, more than the whole budget of {limit}; raise `budget.bytes`")
                }
                Err(error) => error.to_string(),
            };
            target.log_rejected(stream, *seq, &message);
            // The reader, not the source: two branches of one picture are two records.
            let origin = Origin { graph: origin.graph.clone(), node: target.reader.clone() };
            error_item(picture, &origin, lease, message)
        })
    }
}

/// An error record in the place of a frame. It needs a count of credit, like anything that flows.
fn error_item(picture: &Picture<'_>, origin: &Origin, lease: Lease, message: String) -> Item {
    let Picture { stream, seq, pts, time, fallback, .. } = picture;
    lease.ack.raise(Verdict::Rejected);
    let mut record = origin.signal(stream, Some(*seq), *time, RecordBody::Error { message });
    record.id = format!("{}/{}/{}/{}", record.graph, record.node, record.stream, seq);
    record.pts = Some(pts.as_micros() as f64 / 1e6);
    record.fallback = *fallback;
    let record = Arc::new(record);
    if picture.frame.is_err() {
        // Every branch gets the same.
        lease.ack.tell(&record);
    }
    let payload = Payload::Record(record);
    Item { stream: (*stream).clone(), seq: *seq, pts: *pts, time: *time, fallback: *fallback, payload, lease }
}

impl Outlet for FeedOutlet {
    fn clock(&self) -> &Arc<dyn Clock> {
        &self.feed.clock
    }

    fn stopping(&self) -> bool {
        self.feed.stopping.load(Ordering::Acquire)
    }

    fn pacing(&self) {
        let now = self.feed.clock.now();
        self.feed.listening(|listener, _| listener.counters.progress(now));
    }

    fn decoder_threads(&self) -> usize {
        self.feed.decoder_threads.max(1)
    }

    fn demand(&self) -> Demand {
        let state = lock(&self.feed.state);
        Demand { frames: state.takes(Kind::Frame), packets: state.takes(Kind::Packet) }
    }

    fn state(&mut self, state: SourceState) {
        let stream = &self.feed.stream;
        let now = self.feed.clock.now();
        self.feed.listening(|listener, fallback| {
            let node = &listener.origin.node;
            *fallback = matches!(state, SourceState::Fallback { .. });
            let (next, reason, attempts) = match &state {
                SourceState::Running => {
                    let (before, _) = listener.counters.state();
                    listener.counters.connected(now);
                    if matches!(before, StreamState::Retrying | StreamState::Fallback) {
                        tracing::info!(%stream, %node, "stream `{stream}` of `{node}` is back");
                    }
                    return;
                }
                SourceState::Retrying { reason, attempts } => (StreamState::Retrying, reason, *attempts),
                SourceState::Fallback { reason, attempts } => (StreamState::Fallback, reason, *attempts),
            };
            let reason = listener.covered(reason);
            let before = listener.counters.lost(next, reason.clone(), attempts);
            let doing = if next == StreamState::Fallback { "shows its fallback" } else { "is lost and tried again" };
            // A camera that is off for a week must not fill the log.
            if before != next || worth_logging(attempts) {
                tracing::warn!(%stream, %node, attempts, "stream `{stream}` of `{node}` {doing}: {reason}");
            }
        });
    }

    fn open(&mut self, info: StreamInfo) {
        let info = Arc::new(info);
        let mut state = lock(&self.feed.state);
        state.info = Some(info.clone());
        let State { listener, fallback, .. } = &mut *state;
        let Some(listener) = listener else { return };
        // A fallback opens too, and the input is no less lost for that.
        if !*fallback {
            listener.counters.connected(self.feed.clock.now());
        }
        listener.counters.set_duration(info.duration);
        listener.to_all(&Event::Open { stream: self.feed.stream.clone(), info });
    }

    fn gap(&mut self, gap: Gap) {
        self.feed.listening(|listener, _| {
            // The pictures of packets that were asked about before will not come.
            listener.samplers().for_each(Sampler::forget_packets);
            let seq = gap.seq.map(|seq| seq + listener.first_seq);
            let gap = Gap { reason: listener.covered(&gap.reason), seq };
            listener.to_all(&Event::Gap { stream: self.feed.stream.clone(), gap });
        });
    }

    fn wants_packet(&mut self, pts: MediaTime) -> bool {
        let now = self.feed.clock.now();
        let wanted = self.feed.listening(|listener, _| {
            // Pictures that nobody wants are counted when the next one comes, which may take long.
            listener.counters.progress(now);
            // Every sampler must see every packet, so no short cut at the first that wants it.
            let mut wanted = false;
            for tap in listener.taps.iter_mut().filter(|tap| tap.kind == Kind::Frame) {
                wanted |= tap.sampler.as_mut().is_none_or(|(_, sampler)| sampler.could_want(pts));
            }
            wanted
        });
        wanted.unwrap_or(false)
    }

    fn skipped(&mut self, count: u64) {
        let now = self.feed.clock.now();
        self.feed.listening(|listener, _| {
            listener.counters.account.read(count);
            listener.counters.account.settle(Verdict::Filtered, count);
            listener.counters.skipped.fetch_add(count, Ordering::Relaxed);
            listener.counters.progress(now);
        });
    }

    fn trouble(&mut self, trouble: &Trouble) {
        let mut state = lock(&self.feed.state);
        state.trouble = Some(trouble.clone());
        if let Some(listener) = &state.listener {
            listener.hears_of(trouble);
        }
    }

    fn watch(&mut self, watched: Watched) {
        self.watched = Some(watched);
    }

    fn frame(
        &mut self,
        seq: u64,
        pts: MediaTime,
        make: &mut dyn FnMut() -> Result<Frame, ItemError>,
    ) -> Result<Offered, SourceError> {
        let feed = self.feed.clone();
        let watched = self.watched.take();
        let (born, time) = (feed.clock.now(), feed.clock.wall());
        let (counters, origin, seq, fallback, ack) = {
            let mut state = feed.when_settled(false);
            let State { listener, fallback, in_hand, .. } = &mut *state;
            let Some(listener) = listener else { return Err(SourceError::Stopped) };
            let seq = seq + listener.first_seq;
            let counters = listener.counters.clone();
            counters.account.read(1);
            counters.decoded.fetch_add(1, Ordering::Relaxed);
            counters.came(seq, born);
            self.targets.clear();
            for tap in listener.taps.iter_mut().filter(|tap| tap.kind == Kind::Frame) {
                if tap.sampler.as_mut().is_none_or(|(_, sampler)| sampler.offer(pts)) {
                    self.targets.push(tap.end.clone());
                }
            }
            if self.targets.is_empty() {
                counters.account.settle(Verdict::Filtered, 1);
                if let Some(watched) = watched {
                    watched.ended(Verdict::Filtered);
                }
                return Ok(Offered::NotEmitted);
            }
            *in_hand = true;
            let ack = Ack::watched(&counters.account, born, watched);
            (counters, listener.origin.clone(), seq, *fallback, ack)
        };
        // From here on no lock is held: making a picture takes time, and a full tap may take long.
        let in_hand = InHand(&feed);
        let frame = make().map(Arc::new);
        counters.converted.fetch_add(1, Ordering::Relaxed);
        if let Ok(frame) = &frame {
            counters.preview.offer(seq, frame, born);
        }
        let picture = Picture { stream: &feed.stream, seq, pts, time, fallback, frame };
        let mut emitted = false;
        for target in &self.targets {
            emitted |= self.emit(target, &picture, &ack, &origin, &counters);
        }
        ack.release();
        drop(in_hand);
        Ok(if emitted { Offered::Emitted } else { Offered::NotEmitted })
    }

    fn packet(&mut self, seq: u64, pts: MediaTime, packet: Packet) -> Result<Offered, SourceError> {
        let feed = self.feed.clone();
        let (born, time) = (feed.clock.now(), feed.clock.wall());
        let (counters, origin, seq, fallback, ack) = {
            let mut state = feed.when_settled(packet.is_key && packet.track == 0);
            let State { listener, fallback, in_hand, .. } = &mut *state;
            let Some(listener) = listener else { return Err(SourceError::Stopped) };
            let seq = seq + listener.first_packet;
            let counters = listener.counters.clone();
            self.targets.clear();
            let takers = listener.taps.iter().filter(|tap| tap.kind == Kind::Packet);
            self.targets.extend(takers.map(|tap| tap.end.clone()));
            if self.targets.is_empty() {
                return Ok(Offered::NotEmitted);
            }
            counters.account.read(1);
            counters.packet_came(seq, born);
            *in_hand = true;
            let ack = Ack::new(&counters.account, born);
            (counters, listener.origin.clone(), seq, *fallback, ack)
        };
        let in_hand = InHand(&feed);
        let packet = Arc::new(packet);
        let bytes = packet.data.len() as u64;
        let mut emitted = false;
        for target in &self.targets {
            emitted |= target.emit_packet(&feed.stream, &packet, &ack, &counters, |lease, too_large| {
                let item = Item {
                    stream: feed.stream.clone(),
                    seq,
                    pts,
                    time,
                    fallback,
                    payload: Payload::Packet(packet.clone()),
                    lease,
                };
                if too_large { target.too_large(item, bytes, "packet", &origin) } else { item }
            });
        }
        ack.release();
        drop(in_hand);
        Ok(if emitted { Offered::Emitted } else { Offered::NotEmitted })
    }

    fn dropped(&mut self, kind: Kind, seq: u64, reason: &'static str) {
        let now = self.feed.clock.now();
        let watched = self.watched.take();
        drop(self.feed.when_settled(false));
        self.feed.listening(|listener, _| {
            if kind == Kind::Packet && !listener.takes(Kind::Packet) {
                return;
            }
            let counters = &listener.counters;
            counters.account.read(1);
            if kind == Kind::Packet {
                counters.packet_came(seq + listener.first_packet, now);
            } else {
                counters.decoded.fetch_add(1, Ordering::Relaxed);
                counters.came(seq + listener.first_seq, now);
            }
            counters.account.dropped_by(&listener.origin.node, reason);
            counters.account.settle(Verdict::Dropped, 1);
        });
        if let Some(watched) = watched {
            watched.ended(Verdict::Dropped);
        }
    }

    fn repaired(&mut self, what: &'static str, detail: &str) {
        let stream = &self.feed.stream;
        self.feed.listening(|listener, _| {
            if listener.counters.repaired(what) {
                let detail = listener.covered(detail);
                tracing::warn!(%stream, node = %listener.origin.node, "repaired {what}: {detail} (further ones are only counted)");
            }
        });
    }
}

impl TapEnd {
    /// The error record in the place of an item that is larger than the whole budget.
    fn too_large(&self, item: Item, bytes: u64, what: &str, origin: &Origin) -> Item {
        let limit = format_size(self.budget.limits().bytes);
        let size = format_size(bytes);
        let message = format!("one {what} takes {size}, more than the whole budget of {limit}; raise `budget.bytes`");
        let origin = Origin { graph: origin.graph.clone(), node: self.reader.clone() };
        self.log_rejected(&item.stream, item.seq, &message);
        item.lease.ack.raise(Verdict::Rejected);
        let record = origin.record(&item, RecordBody::Error { message });
        Item { payload: Payload::Record(Arc::new(record)), ..item }
    }

    fn log_rejected(&self, stream: &StreamId, seq: u64, message: &str) {
        let rejected = self.rejected.fetch_add(1, Ordering::Relaxed) + 1;
        if worth_logging(rejected) {
            tracing::warn!(%stream, node = %self.name, seq, rejected, "`{}` on stream `{stream}`, item {seq}: {message}", self.name);
        }
    }
}

impl Listener {
    /// Whether one of its taps takes items of `kind`.
    fn takes(&self, kind: Kind) -> bool {
        self.taps.iter().any(|tap| tap.kind == kind)
    }

    fn samplers(&mut self) -> impl Iterator<Item = &mut Sampler> {
        self.taps.iter_mut().filter_map(|tap| tap.sampler.as_mut().map(|(_, sampler)| sampler))
    }
}

/// A picture is on its way; also where making it panics.
struct InHand<'f>(&'f Feed);

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).in_hand = false;
        self.0.emitted.notify_all();
    }
}
