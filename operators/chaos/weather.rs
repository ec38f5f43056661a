//! When the connection of a stream is lost, when its clock jumps, and where its pictures and packets lie after that.

use std::time::{Duration, Instant};

use crate::item::{Packet, StreamId};
use crate::packet_times::{PacketTimes, TrackNature};
use crate::time::{MediaTime, TimeBase};
use crate::timestamps::Sanitiser;

use super::{Dice, Disturbance};

/// A step of a live input's clock that is longer is repaired; a shorter one is time that has passed.
const LONGEST_STEP: Duration = Duration::from_secs(10);

/// What is decided of one stream.
pub(super) struct WeatherDice {
    flap: Dice,
    pub again: Dice,
    jump: Dice,
    pub frames: Dice,
    pub packets: Dice,
}

/// What happens to one stream.
pub(super) struct Weather<'a> {
    pub chaos: &'a Disturbance,
    pub stream: &'a StreamId,
    is_live: bool,
    pub dice: WeatherDice,
    /// How often the connection was lost, and when it is next; none while there is no connection.
    pub flaps: u64,
    pub flap_at: Option<Instant>,
    /// The source's own input is what comes: there is a connection to lose.
    pub is_connected: bool,
    /// It was lost, and nothing has come since.
    pub is_interrupted: bool,
    /// How often the clock has jumped, when it does next, and by how many microseconds it is off.
    jumps: u64,
    jump_at: Option<Instant>,
    off: i64,
    pub tracks: Vec<TrackNature>,
    times: Option<(TimeBase, Sanitiser)>,
    pub packet_times: Option<PacketTimes>,
    /// Where the last picture was placed.
    last: Option<MediaTime>,
}

impl<'a> Weather<'a> {
    pub fn new(chaos: &'a Disturbance, stream: &'a StreamId, is_live: bool) -> Weather<'a> {
        let dice = |what| chaos.dice(stream, what);
        Weather {
            chaos,
            stream,
            is_live,
            dice: WeatherDice {
                flap: dice("flap"),
                again: dice("again"),
                jump: dice("jump"),
                frames: dice("loss of frames"),
                packets: dice("loss of packets"),
            },
            flaps: 0,
            flap_at: None,
            is_connected: true,
            is_interrupted: false,
            jumps: 0,
            jump_at: None,
            off: 0,
            tracks: Vec::new(),
            times: None,
            packet_times: None,
            last: None,
        }
    }

    /// Something comes at `now`: whether the connection is lost in front of it.
    pub fn breaks(&mut self, now: Instant) -> bool {
        let Some(mean) = self.chaos.flap.filter(|_| self.is_connected) else { return false };
        let at = *self.flap_at.get_or_insert_with(|| now + self.dice.flap.interval(self.flaps, mean));
        if now < at {
            return false;
        }
        self.flaps += 1;
        self.flap_at = None;
        true
    }

    /// Lets the clock jump where it is time for it; the jump, if it did.
    pub fn jump(&mut self, now: Instant) -> Option<i64> {
        let jump = self.chaos.jump?;
        let next = |weather: &Weather<'_>| now + weather.dice.jump.interval(weather.jumps, jump.every);
        let at = match self.jump_at {
            Some(at) => at,
            None => *self.jump_at.insert(next(self)),
        };
        if now < at {
            return None;
        }
        self.jumps += 1;
        self.off = self.off.saturating_add(jump.by);
        self.jump_at = Some(next(self));
        Some(jump.by)
    }

    /// Ticks of `base` that the clock is off.
    fn off_in(&self, base: TimeBase) -> i64 {
        MediaTime::from_micros(self.off).ticks_in(base)
    }

    /// Where a picture lies that the jumping clock puts elsewhere, and what had to be repaired.
    pub fn place(&mut self, pts: MediaTime) -> (MediaTime, Option<&'static str>) {
        let base = pts.base;
        let raw = pts.ticks.saturating_add(self.off_in(base));
        if self.times.as_ref().is_none_or(|(known, _)| *known != base) {
            let nominal = self.tracks.first().map(|track| MediaTime::new(track.nominal, track.base).ticks_in(base));
            let mut times = Sanitiser::new(base, nominal.unwrap_or(1));
            if self.is_live {
                times = times.longest_step_of(LONGEST_STEP);
            }
            let after = self.last.map(|last| last.ticks_in(base).saturating_add(1));
            times.start_at(after.map_or(pts.ticks, |after| after.max(pts.ticks)));
            self.times = Some((base, times));
        }
        let Some((_, times)) = &mut self.times else { return (pts, None) };
        let stamp = times.sanitise(Some(raw), None);
        let placed = MediaTime::new(stamp.ticks, base);
        self.last = Some(placed);
        (placed, stamp.repair.map(|repair| repair.what()))
    }

    /// The same for a packet: when it is shown, and the packet with its decoding time.
    pub fn place_packet(&mut self, pts: MediaTime, packet: Packet) -> (MediaTime, Packet, Option<&'static str>) {
        let Some(base) = self.tracks.get(packet.track).map(|track| track.base) else { return (pts, packet, None) };
        let off = self.off_in(base);
        let (tracks, is_live, origin) = (&self.tracks, self.is_live, MediaTime::from_micros(self.off));
        let times = self.packet_times.get_or_insert_with(|| {
            let times = PacketTimes::new(tracks, origin);
            if is_live { times.longest_step_of(LONGEST_STEP) } else { times }
        });
        let said = |time: MediaTime| Some(time.ticks_in(base).saturating_add(off));
        let duration = packet.duration.map(|duration| duration.ticks_in(base));
        let stamp = times.stamp(packet.track, said(pts), said(packet.dts), duration);
        let dts = MediaTime::new(stamp.dts, base);
        (MediaTime::new(stamp.pts, base), Packet { dts, ..packet }, stamp.repair.map(|repair| repair.what()))
    }
}
