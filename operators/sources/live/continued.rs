//! One stream out of many inputs in turn: the camera, its fallback, the camera again. Each input counts from zero;
//! what comes out goes on.

use std::sync::Arc;
use std::time::Instant;

use crate::clock::Clock;
use crate::error::{ItemError, SourceError};
use crate::item::{Frame, Gap, Kind, Packet, Played, StreamInfo};
use crate::lease::Watched;
use crate::operator::{Demand, Offered, Outlet, SourceState, Trouble};
use crate::time::{MediaTime, TimeBase};

use super::behind::Behind;

/// Where the stream stands.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Number of the next picture.
    pub seq: u64,
    /// Number of the next packet.
    packet_seq: u64,
    /// What was announced last.
    info: Option<StreamInfo>,
    /// The last that came: the latest place in time, and when.
    last: Option<(MediaTime, Instant)>,
    /// Whether pictures came since the last gap.
    unbroken: bool,
}

impl Line {
    /// The stream breaks off here; `None` where it had not gone on since it broke off last.
    pub fn break_off(&mut self, reason: &str) -> Option<Gap> {
        let gap = Gap { reason: reason.to_owned(), seq: Some(self.seq) };
        std::mem::take(&mut self.unbroken).then_some(gap)
    }

    /// Something came that lies at `pts`; packets come in another order than pictures.
    fn came(&mut self, pts: MediaTime, now: Instant) {
        let latest = self.last.map_or(pts, |(last, _)| last.max(pts));
        self.last = Some((latest, now));
    }

    /// Ticks of `base` at which the next input starts: as much later than the last picture as time has passed.
    fn resume(&self, base: TimeBase, now: Instant) -> i64 {
        let Some((pts, at)) = self.last else { return 0 };
        let passed = now.saturating_duration_since(at).as_micros().max(1);
        let micros = i128::from(pts.as_micros()) + i128::try_from(passed).unwrap_or(i128::from(i64::MAX));
        let (ticks, second) = (i128::from(base.denominator()), i128::from(base.numerator()) * 1_000_000);
        i64::try_from((micros * ticks + second - 1).div_euclid(second)).unwrap_or(i64::MAX)
    }
}

/// What one input writes to.
pub(crate) struct Continued<'a> {
    outlet: &'a mut dyn Outlet,
    line: &'a mut Line,
    /// Number of the input's first picture.
    first: u64,
    /// Number of the input's first packet.
    first_packet: u64,
    /// Where it starts; `None` until it opened.
    start: Option<MediaTime>,
    /// Who looks for the camera meanwhile: this input ends when it is found.
    behind: Option<&'a Behind>,
}

impl<'a> Continued<'a> {
    /// Of an input that nobody looks for meanwhile.
    pub(crate) fn alone(outlet: &'a mut dyn Outlet, line: &'a mut Line) -> Continued<'a> {
        Continued::new(outlet, line, None)
    }

    pub(super) fn new(outlet: &'a mut dyn Outlet, line: &'a mut Line, behind: Option<&'a Behind>) -> Continued<'a> {
        let (first, first_packet) = (line.seq, line.packet_seq);
        Continued { outlet, line, first, first_packet, start: None, behind }
    }

    fn shifted(&self, pts: MediaTime) -> MediaTime {
        let start = self.start.map_or(0, |start| start.ticks_in(pts.base));
        MediaTime::new(pts.ticks.saturating_add(start), pts.base)
    }

    /// Tells whether the camera is still looked for, where somebody does.
    fn tell_news(&mut self) {
        if let Some(state) = self.behind.and_then(Behind::news) {
            self.outlet.state(state);
        }
    }
}

impl Outlet for Continued<'_> {
    fn clock(&self) -> &Arc<dyn Clock> {
        self.outlet.clock()
    }

    fn stopping(&self) -> bool {
        self.outlet.stopping() || self.behind.is_some_and(Behind::is_over)
    }

    /// An input that is looked for makes no progress, whatever is shown meanwhile.
    fn pacing(&self) {
        if self.behind.is_none() {
            self.outlet.pacing();
        }
    }

    fn decoder_threads(&self) -> usize {
        self.outlet.decoder_threads()
    }

    fn demand(&self) -> Demand {
        self.outlet.demand()
    }

    fn state(&mut self, state: SourceState) {
        self.outlet.state(state);
    }

    /// Says it on only where it is news.
    fn open(&mut self, info: StreamInfo) {
        // However long the file of a fallback is, the stream has no end.
        let info = StreamInfo { duration: None, played: Played::Live, ..info };
        if self.start.is_none() {
            let ticks = self.line.resume(info.time_base, self.outlet.clock().now());
            self.start = Some(MediaTime::new(ticks, info.time_base));
        }
        if self.line.info.as_ref() != Some(&info) {
            self.line.info = Some(info.clone());
            self.outlet.open(info);
        }
    }

    fn gap(&mut self, gap: Gap) {
        self.outlet.gap(gap);
    }

    fn wants_packet(&mut self, pts: MediaTime) -> bool {
        let pts = self.shifted(pts);
        self.outlet.wants_packet(pts)
    }

    fn skipped(&mut self, count: u64) {
        self.line.seq += count;
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
        self.tell_news();
        let (seq, pts) = (self.first + seq, self.shifted(pts));
        self.line.seq = seq + 1;
        self.line.unbroken = true;
        let offered = self.outlet.frame(seq, pts, &mut || make().map(|frame| Frame { index: None, ..frame }));
        self.line.came(pts, self.outlet.clock().now());
        offered
    }

    fn packet(&mut self, seq: u64, pts: MediaTime, packet: Packet) -> Result<Offered, SourceError> {
        self.tell_news();
        let (seq, pts, dts) = (self.first_packet + seq, self.shifted(pts), self.shifted(packet.dts));
        self.line.packet_seq = seq + 1;
        self.line.unbroken = true;
        let offered = self.outlet.packet(seq, pts, Packet { dts, ..packet });
        self.line.came(pts, self.outlet.clock().now());
        offered
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
    use std::time::Duration;

    use super::*;
    use crate::clock::SimulatedClock;
    use crate::item::{ColorMatrix, ColorRange, PictureBuffer, PixelFormat};
    use crate::testing::RecordingOutlet;

    struct Grey;

    impl PictureBuffer for Grey {
        fn plane(&self, _index: usize) -> &[u8] {
            &[128]
        }

        fn stride(&self, _index: usize) -> usize {
            1
        }
    }

    fn frame() -> Result<Frame, ItemError> {
        Ok(Frame {
            width: 1,
            height: 1,
            format: PixelFormat::Gray8,
            matrix: ColorMatrix::Bt601,
            range: ColorRange::Full,
            buffer: Box::new(Grey),
            index: Some(7),
            truth: None,
        })
    }

    fn info(denominator: u32, duration: Option<f64>) -> StreamInfo {
        StreamInfo {
            tracks: Vec::new(),
            time_base: TimeBase::new(1, denominator).unwrap(),
            duration,
            played: Played::Live,
        }
    }

    #[test]
    fn numbers_and_time_go_on_over_inputs_of_different_clocks() {
        let clock = SimulatedClock::default();
        let mut outlet = RecordingOutlet::new(Arc::new(clock.clone()));
        let mut line = Line::default();
        let time = |ticks, denominator| MediaTime::new(ticks, TimeBase::new(1, denominator).unwrap());
        {
            let mut camera = Continued::new(&mut outlet, &mut line, None);
            camera.open(info(90_000, None));
            camera.frame(0, time(0, 90_000), &mut frame).unwrap();
            camera.skipped(2);
            camera.frame(3, time(9000, 90_000), &mut frame).unwrap();
        }
        assert_eq!(line.break_off("lost"), Some(Gap { reason: "lost".into(), seq: Some(4) }));
        assert_eq!(line.break_off("lost"), None, "it has not gone on");
        clock.advance(Duration::from_millis(1500));
        {
            let mut file = Continued::new(&mut outlet, &mut line, None);
            file.open(info(1000, Some(5.0)));
            file.frame(0, time(0, 1000), &mut frame).unwrap();
            file.frame(1, time(40, 1000), &mut frame).unwrap();
        }
        {
            // It comes back at once: time must still go on.
            let mut camera = Continued::new(&mut outlet, &mut line, None);
            camera.open(info(90_000, None));
            camera.open(info(90_000, None));
            camera.frame(0, time(0, 90_000), &mut frame).unwrap();
        }
        let expected = [(0, 0), (3, 100_000), (4, 1_600_000), (5, 1_640_000), (6, 1_640_011)];
        assert_eq!(outlet.offered.iter().map(|(seq, pts)| (*seq, pts.as_micros())).collect::<Vec<_>>(), expected);
        assert_eq!(outlet.opens, [info(90_000, None), info(1000, None), info(90_000, None)]);
        assert!(outlet.frames.iter().all(|frame| frame.frame.index.is_none()), "a live stream has no index");
    }
}
