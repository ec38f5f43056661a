//! What unit tests of sources and operators stand on: an outlet that records, and items with a lease of their own.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use crate::clock::{Clock, SimulatedClock};
use crate::error::{ItemError, SourceError};
use crate::item::{Frame, Gap, Item, Kind, Payload, Segment, StreamId, StreamInfo};
use crate::lease::{Account, Ack, Budget, Lease, Limits, Verdict};
use crate::media::demux::{Demuxer, Tracks};
use crate::operator::{Emitted, Later, Offered, Outlet, Output, SourceState};
use crate::time::MediaTime;
use crate::transforms::sample::Sampler;

/// A frame as the outlet received it.
#[derive(Clone, Debug)]
pub(crate) struct RecordedFrame {
    pub seq: u64,
    pub pts: MediaTime,
    pub frame: Arc<Frame>,
}

type Observer = Box<dyn FnMut(u64, MediaTime, Frame)>;

/// An [`Outlet`] that behaves as one tap does and remembers everything. Without a sampler every picture is wanted.
pub(crate) struct RecordingOutlet {
    clock: Arc<dyn Clock>,
    decoder_threads: usize,
    sampler: Option<Sampler>,
    stop_after: Option<usize>,
    stop_after_states: Option<usize>,
    observer: Option<Observer>,
    pub opens: Vec<StreamInfo>,
    pub gaps: Vec<Gap>,
    pub states: Vec<SourceState>,
    /// Emitted frames; empty where an observer takes them.
    pub frames: Vec<RecordedFrame>,
    /// How many frames were emitted.
    pub emitted: usize,
    /// `seq` and `pts` of every decoded picture that was offered, wanted or not.
    pub offered: Vec<(u64, MediaTime)>,
    pub skipped: u64,
    /// What `make` failed with.
    pub failures: Vec<ItemError>,
    /// What was dropped before it got here: kind, number and reason.
    pub dropped: Vec<(Kind, u64, &'static str)>,
    /// Each repair: what, and its detail.
    pub repaired: Vec<(&'static str, String)>,
}

impl Default for RecordingOutlet {
    fn default() -> Self {
        RecordingOutlet::new(Arc::new(SimulatedClock::default()))
    }
}

impl RecordingOutlet {
    pub fn new(clock: Arc<dyn Clock>) -> RecordingOutlet {
        RecordingOutlet {
            clock,
            decoder_threads: 1,
            sampler: None,
            stop_after: None,
            stop_after_states: None,
            observer: None,
            opens: Vec::new(),
            gaps: Vec::new(),
            states: Vec::new(),
            frames: Vec::new(),
            emitted: 0,
            offered: Vec::new(),
            skipped: 0,
            failures: Vec::new(),
            dropped: Vec::new(),
            repaired: Vec::new(),
        }
    }

    /// Only what `sampler` chooses is wanted, as packets and as pictures.
    pub fn sampling(mut self, sampler: Sampler) -> RecordingOutlet {
        self.sampler = Some(sampler);
        self
    }

    pub fn threads(mut self, threads: usize) -> RecordingOutlet {
        self.decoder_threads = threads;
        self
    }

    /// `stopping` says so once `frames` frames were emitted.
    pub fn stop_after(mut self, frames: usize) -> RecordingOutlet {
        self.stop_after = Some(frames);
        self
    }

    /// `stopping` says so once the source has reported `states` states.
    pub fn stop_after_states(mut self, states: usize) -> RecordingOutlet {
        self.stop_after_states = Some(states);
        self
    }

    /// Hands each emitted frame (`seq`, `pts`, frame) to `observer` instead of keeping it: for long videos.
    pub fn observe(mut self, observer: impl FnMut(u64, MediaTime, Frame) + 'static) -> RecordingOutlet {
        self.observer = Some(Box::new(observer));
        self
    }

    /// How often `what` was repaired.
    pub fn repairs(&self, what: &str) -> usize {
        self.repaired.iter().filter(|(name, _)| *name == what).count()
    }
}

impl Outlet for RecordingOutlet {
    fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    fn stopping(&self) -> bool {
        self.stop_after.is_some_and(|limit| self.emitted >= limit)
            || self.stop_after_states.is_some_and(|limit| self.states.len() >= limit)
    }

    fn decoder_threads(&self) -> usize {
        self.decoder_threads
    }

    fn state(&mut self, state: SourceState) {
        self.states.push(state);
    }

    fn open(&mut self, info: StreamInfo) {
        self.opens.push(info);
    }

    fn gap(&mut self, gap: Gap) {
        self.gaps.push(gap);
    }

    fn wants_packet(&mut self, pts: MediaTime) -> bool {
        self.sampler.as_mut().is_none_or(|sampler| sampler.could_want(pts))
    }

    fn skipped(&mut self, count: u64) {
        self.skipped += count;
    }

    fn frame(
        &mut self,
        seq: u64,
        pts: MediaTime,
        make: &mut dyn FnMut() -> Result<Frame, ItemError>,
    ) -> Result<Offered, SourceError> {
        self.offered.push((seq, pts));
        if self.stopping() {
            return Err(SourceError::Stopped);
        }
        if !self.sampler.as_mut().is_none_or(|sampler| sampler.offer(pts)) {
            return Ok(Offered::NotEmitted);
        }
        match make() {
            Ok(frame) => {
                self.emitted += 1;
                match &mut self.observer {
                    Some(observer) => observer(seq, pts, frame),
                    None => self.frames.push(RecordedFrame { seq, pts, frame: Arc::new(frame) }),
                }
                Ok(Offered::Emitted)
            }
            Err(error) => {
                self.failures.push(error);
                Ok(Offered::NotEmitted)
            }
        }
    }

    fn dropped(&mut self, kind: Kind, seq: u64, reason: &'static str) {
        self.dropped.push((kind, seq, reason));
    }

    fn repaired(&mut self, what: &'static str, detail: &str) {
        self.repaired.push((what, detail.to_owned()));
    }
}

/// An item of stream `test` round `payload`, with a lease out of a budget of its own. The account knows its fate:
/// `read` is 1, and the verdict is counted when the last clone of the item is gone.
pub(crate) fn item(seq: u64, pts: MediaTime, payload: Payload) -> (Item, Arc<Account>) {
    let account = Arc::new(Account::default());
    account.read(1);
    let budget = Budget::new(Limits { items: 1, bytes: 1 });
    let credit = budget.try_acquire(1).expect("a fresh budget has credit");
    let lease = Lease::new(credit, Ack::new(&account, SimulatedClock::default().now()));
    let stream = StreamId::sanitised("test");
    (Item { stream, seq, pts, time: SystemTime::UNIX_EPOCH, fallback: false, payload, lease }, account)
}

/// What `ffmpeg` makes of these arguments at `path`, opened with all its tracks.
pub(crate) fn recording(path: &Path, arguments: &str) -> Demuxer {
    let made = Command::new("ffmpeg")
        .args(["-v", "error"])
        .args(arguments.split_whitespace())
        .arg(path)
        .output()
        .expect("ffmpeg is installed");
    assert!(made.status.success(), "{arguments}: {}", String::from_utf8_lossy(&made.stderr));
    let mut demuxer = Demuxer::open(path, &Tracks::Best, &|| false).unwrap();
    demuxer.read_all(true);
    demuxer
}

/// Makes the segments that an operator has put off, and delivers what they are made of.
pub(crate) fn made_segments(out: &mut Output) -> Vec<Arc<Segment>> {
    let made = out.drain().map(|emitted| match emitted {
        Emitted::Later(Later { item, make }) => {
            item.lease.ack.settle(Verdict::Delivered);
            make().unwrap()
        }
        Emitted::Item(item) => panic!("{item:?}"),
    });
    made.map(|payload| match payload {
        Payload::Segment(segment) => segment,
        other => panic!("{other:?}"),
    })
    .collect()
}
