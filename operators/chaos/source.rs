//! Sources whose connections get lost, whose pictures come late or not at all, and whose clocks jump.
//!
//! What a source passes on goes through [`Weather`] before the engine sees it. A source that connects again by itself is
//! told that its input is lost ([`SourceError::Interrupted`]); every other one is run anew, after the delays that live
//! sources keep, and goes on where it was: one that ends by itself at the same picture, any other in number and time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::error::{ItemError, SourceError};
use crate::hooks::Hooks;
use crate::inlet::Inlet;
use crate::item::{EndReason, Frame, Gap, Kind, Packet, StreamId, StreamInfo};
use crate::lease::Watched;
use crate::operator::{
    Demand, Discovery, ItemSize, Offered, Outlet, Source, SourceState, StreamSpec, Trouble, wait_until,
};
use crate::packet_times::TrackNature;
use crate::sources::live::continued::{Continued, Line};
use crate::sources::track::packets::nature;
use crate::time::MediaTime;

use super::Disturbance;
use super::resumed::{Place, Resumed};
use super::weather::Weather;

/// The delays of live sources that say nothing of them.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(30) };

const LOST: &str = "chaos: lost on the way";
const INTERRUPTED: &str = "chaos: the connection was lost";

pub(super) struct Disturbed {
    inner: Arc<dyn Source>,
    chaos: Disturbance,
}

impl Disturbed {
    pub fn new(inner: Arc<dyn Source>, chaos: Disturbance) -> Disturbed {
        Disturbed { inner, chaos }
    }
}

impl Source for Disturbed {
    fn streams(&self) -> Vec<StreamSpec> {
        self.inner.streams()
    }

    fn reads(&self) -> Vec<PathBuf> {
        self.inner.reads()
    }

    fn discovery(&self) -> Option<Box<dyn Discovery>> {
        self.inner.discovery()
    }

    fn at_once(&self) -> usize {
        self.inner.at_once()
    }

    fn is_live(&self) -> bool {
        self.inner.is_live()
    }

    fn is_finite(&self) -> bool {
        self.inner.is_finite()
    }

    fn repeats(&self) -> bool {
        self.inner.repeats()
    }

    fn frame_size(&self) -> ItemSize {
        self.inner.frame_size()
    }

    fn stream_memory(&self) -> u64 {
        self.inner.stream_memory()
    }

    fn decoder_threads(&self, cores: usize, running: usize) -> usize {
        self.inner.decoder_threads(cores, running)
    }

    fn silence(&self) -> Option<Duration> {
        self.inner.silence()
    }

    fn awaits_streams(&self) -> bool {
        self.inner.awaits_streams()
    }

    fn hooks(&self) -> Option<&Hooks> {
        self.inner.hooks()
    }

    fn answer(&self) -> Option<&str> {
        self.inner.answer()
    }

    fn inlet(&self, stream: &StreamId) -> Option<Arc<Inlet>> {
        self.inner.inlet(stream)
    }

    fn has_connection(&self) -> bool {
        self.inner.has_connection()
    }

    fn run(&self, stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
        let mut weather = Weather::new(&self.chaos, stream, self.inner.is_live());
        let (mut line, mut place) = (Line::default(), Place::default());
        loop {
            let mut disturbed = DisturbedOutlet { outlet, weather: &mut weather };
            let ended = if self.inner.is_finite() {
                self.inner.run(stream, &mut Resumed { outlet: &mut disturbed, place: &mut place, seen: 0 })
            } else {
                self.inner.run(stream, &mut Continued::alone(&mut disturbed, &mut line))
            };
            let Err(SourceError::Interrupted(reason)) = ended else { return ended };
            outlet.gap(Gap { reason: reason.clone(), seq: None });
            outlet.state(SourceState::Retrying { reason, attempts: 1 });
            weather.is_interrupted = true;
            let again = outlet.clock().now() + BACKOFF.scaled(1, weather.dice.again.roll(weather.flaps));
            if !wait_until(outlet, again) {
                return Ok(EndReason::Stopped);
            }
        }
    }
}

/// What a disturbed source writes to.
struct DisturbedOutlet<'o, 'w, 'a> {
    outlet: &'o mut dyn Outlet,
    weather: &'w mut Weather<'a>,
}

impl DisturbedOutlet<'_, '_, '_> {
    /// Item `seq` comes: what becomes of it and of the connection, before it is passed on.
    fn comes(&mut self, kind: Kind, seq: u64) -> Result<Comes, SourceError> {
        let now = self.outlet.clock().now();
        if std::mem::take(&mut self.weather.is_interrupted) {
            self.outlet.state(SourceState::Running);
        }
        if self.weather.breaks(now) {
            return Err(SourceError::Interrupted(INTERRUPTED.to_owned()));
        }
        if let Some(by) = self.weather.jump(now) {
            self.outlet.repaired("chaos: clock jump", &format!("chaos: the clock jumps by {} s", by as f64 / 1e6));
        }
        let chaos = self.weather.chaos;
        let dice = if kind == Kind::Packet { self.weather.dice.packets } else { self.weather.dice.frames };
        if dice.hits(seq, chaos.loss) {
            self.outlet.dropped(kind, seq, LOST);
            return Ok(Comes::Never);
        }
        let delay = chaos.delay(self.weather.stream, seq);
        if !delay.is_zero() && !wait_until(self.outlet, now + delay) {
            return Err(SourceError::Stopped);
        }
        Ok(Comes::Now)
    }

    fn tell(&mut self, repair: Option<&'static str>) {
        if let Some(what) = repair {
            self.outlet.repaired(what, "chaos: the clock has jumped");
        }
    }
}

/// Whether an item is passed on.
#[derive(PartialEq, Eq)]
enum Comes {
    Now,
    Never,
}

impl Outlet for DisturbedOutlet<'_, '_, '_> {
    fn clock(&self) -> &Arc<dyn Clock> {
        self.outlet.clock()
    }

    fn stopping(&self) -> bool {
        self.outlet.stopping()
    }

    fn pacing(&self) {
        self.outlet.pacing();
    }

    fn decoder_threads(&self) -> usize {
        self.outlet.decoder_threads()
    }

    fn demand(&self) -> Demand {
        self.outlet.demand()
    }

    fn state(&mut self, state: SourceState) {
        self.weather.is_connected = state == SourceState::Running;
        if !self.weather.is_connected {
            self.weather.flap_at = None;
        }
        self.outlet.state(state);
    }

    fn open(&mut self, info: StreamInfo) {
        let tracks: Vec<TrackNature> = info.tracks.iter().map(nature).collect();
        if tracks != self.weather.tracks {
            self.weather.tracks = tracks;
            self.weather.packet_times = None;
        }
        self.outlet.open(info);
    }

    fn gap(&mut self, gap: Gap) {
        self.outlet.gap(gap);
    }

    /// Where the clock jumps, nobody knows before which pictures will be wanted.
    fn wants_packet(&mut self, pts: MediaTime) -> bool {
        self.outlet.wants_packet(pts) || self.weather.chaos.jump.is_some()
    }

    fn skipped(&mut self, count: u64) {
        self.outlet.skipped(count);
    }

    fn trouble(&mut self, trouble: &Trouble) {
        self.outlet.trouble(trouble);
    }

    fn watch(&mut self, watched: Watched) {
        self.outlet.watch(watched);
    }

    fn frame(
        &mut self,
        seq: u64,
        pts: MediaTime,
        make: &mut dyn FnMut() -> Result<Frame, ItemError>,
    ) -> Result<Offered, SourceError> {
        if self.comes(Kind::Frame, seq)? == Comes::Never {
            return Ok(Offered::NotEmitted);
        }
        let pts = match self.weather.chaos.jump {
            Some(_) => {
                let (pts, repair) = self.weather.place(pts);
                self.tell(repair);
                pts
            }
            None => pts,
        };
        self.outlet.frame(seq, pts, make)
    }

    fn packet(&mut self, seq: u64, pts: MediaTime, packet: Packet) -> Result<Offered, SourceError> {
        if self.comes(Kind::Packet, seq)? == Comes::Never {
            return Ok(Offered::NotEmitted);
        }
        let (pts, packet) = match self.weather.chaos.jump {
            Some(_) => {
                let (pts, packet, repair) = self.weather.place_packet(pts, packet);
                self.tell(repair);
                (pts, packet)
            }
            None => (pts, packet),
        };
        self.outlet.packet(seq, pts, packet)
    }

    fn dropped(&mut self, kind: Kind, seq: u64, reason: &'static str) {
        self.outlet.dropped(kind, seq, reason);
    }

    fn repaired(&mut self, what: &'static str, detail: &str) {
        self.outlet.repaired(what, detail);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::{Instant, SystemTime};

    use super::*;
    use crate::clock::SimulatedClock;
    use crate::inference::model::Catalog;
    use crate::item::{Origin, Played};
    use crate::operator::{BuildContext, Built, NoPublisher};
    use crate::sources::synthetic;
    use crate::testing::RecordingOutlet;
    use crate::time::TimeBase;

    /// A clock on which a wait takes no time: whoever waits finds the deadline come.
    struct PatientClock(SimulatedClock);

    impl Clock for PatientClock {
        fn now(&self) -> Instant {
            self.0.now()
        }

        fn wall(&self) -> SystemTime {
            self.0.wall()
        }

        fn wait(&self, deadline: Instant, _at_most: Duration) {
            self.0.advance(deadline.saturating_duration_since(self.now()));
        }
    }

    fn scene(text: &str) -> Arc<dyn Source> {
        let context = BuildContext {
            origin: Origin { graph: "test".into(), node: "scene".into() },
            folder: ".".into(),
            models: Arc::new(Catalog::default()),
            clock: Arc::new(SimulatedClock::default()),
            publisher: Arc::new(NoPublisher),
            progress: None,
            playlists: Arc::default(),
        };
        let table = format!("width = 16\nheight = 16\nfps = 10\n{text}").parse().unwrap();
        match (synthetic::REGISTRATION.build)(&context, table).unwrap() {
            Built::Source(source) => source,
            _ => panic!("not a source"),
        }
    }

    /// What came of a source under chaos: numbers and times in milliseconds, states, gaps, drops and repairs.
    struct Seen {
        offered: Vec<(u64, i64)>,
        outlet: RecordingOutlet,
    }

    fn run(source: Arc<dyn Source>, chaos: &str, stop_after: usize) -> Seen {
        let chaos = Disturbance::read(11, "scene", chaos.parse().unwrap()).unwrap();
        let source = Disturbed::new(source, chaos);
        let clock = Arc::new(PatientClock(SimulatedClock::default()));
        let mut outlet = RecordingOutlet::new(clock).stop_after(stop_after);
        source.run(&source.streams()[0].id, &mut outlet).unwrap();
        let offered = outlet.offered.iter().map(|(seq, pts)| (*seq, pts.as_micros() / 1000)).collect();
        Seen { offered, outlet }
    }

    #[test]
    fn a_lost_connection_comes_back_and_numbers_and_time_go_on() {
        let seen = run(scene(""), "flap = \"5s\"", 1000);
        let flaps = seen.outlet.gaps.len();
        assert!((10..35).contains(&flaps), "a hundred seconds and more, five between two on average: {flaps}");
        assert!(seen.outlet.gaps.iter().all(|gap| gap.reason.starts_with("chaos: ")));
        let retries = seen.outlet.states.iter().filter(|state| matches!(state, SourceState::Retrying { .. })).count();
        let back = seen.outlet.states.iter().filter(|state| **state == SourceState::Running).count();
        assert!(retries == flaps && (flaps - 1..=flaps).contains(&back), "{retries} lost, {back} back");
        for pair in seen.offered.windows(2) {
            assert!(pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1, "{pair:?}");
        }
        let longest = seen.offered.windows(2).map(|pair| pair[1].1 - pair[0].1).max().unwrap();
        assert!((500..=1200).contains(&longest), "time passes while there is no connection: {longest} ms");
        assert_eq!(seen.offered, run(scene(""), "flap = \"5s\"", 1000).offered, "the same seed, the same run");
    }

    #[test]
    fn a_stream_that_ends_by_itself_is_read_on_where_it_was() {
        let seen = run(scene("frames = 300"), "flap = \"3s\"", usize::MAX);
        assert!(seen.outlet.gaps.len() >= 3, "{:?}", seen.outlet.gaps);
        let expected: Vec<(u64, i64)> = (0..300).map(|n| (n, n as i64 * 100)).collect();
        assert_eq!(seen.offered, expected, "each picture once, in order, at its time");
        assert_eq!(seen.outlet.opens.len(), 1);
        let indices: Vec<_> = seen.outlet.frames.iter().map(|frame| frame.frame.index).collect();
        assert_eq!(indices, (0..300).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn losses_are_told_and_the_rest_comes() {
        let seen = run(scene("frames = 1000\nrealtime = false"), "loss = 0.1", usize::MAX);
        let lost: Vec<u64> = seen.outlet.dropped.iter().map(|(_, seq, _)| *seq).collect();
        assert!((70..130).contains(&lost.len()), "{}", lost.len());
        assert!(
            seen.outlet.dropped.iter().all(|(kind, _, reason)| *kind == Kind::Frame && reason.starts_with("chaos: "))
        );
        let mut all: Vec<u64> = seen.offered.iter().map(|(seq, _)| *seq).chain(lost).collect();
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_clock_that_jumps_is_repaired() {
        let back = run(scene(""), "pts_jump = { every = \"10s\", by = \"-30s\" }", 1000);
        let jumps = back.outlet.repairs("chaos: clock jump");
        assert!((4..20).contains(&jumps), "{jumps}");
        assert_eq!(back.outlet.repairs("backward timestamp"), jumps);
        for pair in back.offered.windows(2) {
            assert_eq!((pair[1].0 - pair[0].0, pair[1].1 - pair[0].1), (1, 100), "{pair:?}");
        }
        let ahead = run(scene(""), "pts_jump = { every = \"10s\", by = \"1h\" }", 1000);
        assert_eq!(ahead.outlet.repairs("absurd timestamp"), ahead.outlet.repairs("chaos: clock jump"));
        assert_eq!(ahead.offered.last(), Some(&(999, 99_900)), "a live input cannot pause for an hour");
    }

    #[test]
    fn packets_keep_their_order_over_jumps_and_interruptions() {
        /// Ten packets a second of two tracks.
        struct Packets;

        impl Source for Packets {
            fn streams(&self) -> Vec<StreamSpec> {
                vec![StreamSpec { id: StreamId::sanitised("p"), location: "memory".into() }]
            }

            fn is_live(&self) -> bool {
                true
            }

            fn is_finite(&self) -> bool {
                false
            }

            fn frame_size(&self) -> ItemSize {
                ItemSize::Unknown
            }

            fn decoder_threads(&self, _cores: usize, _running: usize) -> usize {
                0
            }

            fn run(&self, _stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
                let track = |index, denominator, format| crate::item::Track {
                    index,
                    codec: "test".into(),
                    format,
                    time_base: TimeBase::new(1, denominator).unwrap(),
                    parameters: None,
                };
                let video = crate::item::TrackFormat::Video {
                    width: 16,
                    height: 16,
                    frame_rate: Some(10.0),
                    has_b_frames: false,
                };
                let audio = crate::item::TrackFormat::Audio { sample_rate: 8000, channels: 1 };
                let tracks = vec![track(0, 90_000, video), track(1, 8000, audio)];
                let bases: Vec<TimeBase> = tracks.iter().map(|track| track.time_base).collect();
                outlet.open(StreamInfo { tracks, time_base: bases[0], duration: None, played: Played::default() });
                let start = outlet.clock().now();
                for n in 0_u64.. {
                    if !wait_until(outlet, start + Duration::from_millis(n * 50)) {
                        return Ok(EndReason::Stopped);
                    }
                    let track = (n % 2) as usize;
                    let ticks = MediaTime::from_micros(n as i64 * 50_000).ticks_in(bases[track]);
                    let pts = MediaTime::new(ticks, bases[track]);
                    let data = bytes::Bytes::from_static(b"x");
                    outlet.packet(n, pts, Packet { track, is_key: true, dts: pts, duration: None, data })?;
                }
                Ok(EndReason::Eof)
            }
        }

        /// Keeps decoding times by track.
        struct Keeping {
            inner: RecordingOutlet,
            came: Mutex<Vec<(usize, u64, i64)>>,
        }

        impl Outlet for Keeping {
            fn clock(&self) -> &Arc<dyn Clock> {
                self.inner.clock()
            }

            fn stopping(&self) -> bool {
                self.came.lock().unwrap().len() >= 2000
            }

            fn decoder_threads(&self) -> usize {
                1
            }

            fn state(&mut self, state: SourceState) {
                self.inner.state(state);
            }

            fn open(&mut self, info: StreamInfo) {
                self.inner.open(info);
            }

            fn gap(&mut self, gap: Gap) {
                self.inner.gap(gap);
            }

            fn wants_packet(&mut self, _pts: MediaTime) -> bool {
                true
            }

            fn skipped(&mut self, _count: u64) {}

            fn frame(
                &mut self,
                _seq: u64,
                _pts: MediaTime,
                _make: &mut dyn FnMut() -> Result<Frame, ItemError>,
            ) -> Result<Offered, SourceError> {
                Ok(Offered::NotEmitted)
            }

            fn packet(&mut self, seq: u64, _pts: MediaTime, packet: Packet) -> Result<Offered, SourceError> {
                self.came.lock().unwrap().push((packet.track, seq, packet.dts.as_micros()));
                Ok(Offered::Emitted)
            }

            fn repaired(&mut self, what: &'static str, detail: &str) {
                self.inner.repaired(what, detail);
            }
        }

        let text = "flap = \"20s\"\nloss = 0.05\npts_jump = { every = \"15s\", by = \"-100s\" }";
        let chaos = Disturbance::read(2, "p", text.parse().unwrap()).unwrap();
        let source = Disturbed::new(Arc::new(Packets), chaos);
        let clock = Arc::new(PatientClock(SimulatedClock::default()));
        let mut outlet = Keeping { inner: RecordingOutlet::new(clock), came: Mutex::default() };
        source.run(&StreamId::sanitised("p"), &mut outlet).unwrap();
        assert!(outlet.inner.gaps.len() > 1 && outlet.inner.repairs("chaos: clock jump") > 2);
        let came = outlet.came.into_inner().unwrap();
        for track in 0..2 {
            let own: Vec<_> = came.iter().filter(|(of, ..)| *of == track).collect();
            for pair in own.windows(2) {
                assert!(pair[0].1 < pair[1].1 && pair[0].2 < pair[1].2, "track {track}: {pair:?}");
            }
        }
        let last = came.iter().map(|(.., dts)| *dts).max().unwrap();
        assert!((100_000_000..140_000_000).contains(&last), "no jump is left in it: {last}");
    }
}
