//! The packets of all tracks of an input on their way to an outlet, as they are: nothing is decoded. Times are
//! repaired, and where parameter sets change the stream opens anew.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::SourceError;
use crate::item::{self, StreamInfo, Track, TrackFormat};
use crate::media::demux::Packet;
use crate::media::parameter_sets::ParameterSets;
use crate::operator::{Outlet, wait_until};
use crate::packet_times::{PacketTimes, TrackNature};
use crate::time::{MediaTime, TimeBase};

/// What comes before the first picture that is shown waits for it, because that is where time begins; no more than this.
const MOST_WAITING: usize = 4096;
const MOST_WAITING_BYTES: u64 = 8 << 20;
/// A picture whose time is missing waits for the next one that is shown behind it; behind no more packets than these.
const MOST_HELD: usize = 64;
/// The first picture that is shown is among so many that are decoded first: no codec holds back more.
const MOST_REORDERED: usize = 16;
/// A container that says that its pictures start longer than this after its sound is not believed: a day.
const LATEST_START: MediaTime = MediaTime::from_micros(24 * 3600 * 1_000_000);
/// Packets a second where a container says nothing.
const FALLBACK_RATE: i64 = 25;

/// The state of one input's packets.
pub(in crate::sources) struct PacketTracks {
    tracks: Vec<Track>,
    sets: Vec<Option<ParameterSets>>,
    /// `None` until it is known what the input says of the first picture.
    times: Option<PacketTimes>,
    longest_step: Option<Duration>,
    /// When the container says that the first picture is shown.
    declared: Option<MediaTime>,
    waiting: VecDeque<Packet>,
    waiting_bytes: u64,
    /// A picture that others are shown before, and of which only the decoding time is known; and what came behind it.
    held: VecDeque<Packet>,
    /// Number of the next packet.
    seq: u64,
    realtime: bool,
    /// When the first packet was emitted, for pacing.
    started: Option<Instant>,
    /// Packets of the video track since [`PacketTracks::begin_round`].
    pictures: u64,
    /// Packets of the video track so far.
    progress: u64,
}

impl PacketTracks {
    /// The tracks of `info`, whose next packet has the number `seq`. `origin` is what the input says of the stream's
    /// first picture, where that is known already.
    pub fn new(
        info: &StreamInfo,
        seq: u64,
        origin: Option<MediaTime>,
        longest_step: Option<Duration>,
        realtime: bool,
    ) -> PacketTracks {
        let sets = info.tracks.iter().map(|track| {
            let is_video = matches!(track.format, TrackFormat::Video { .. });
            track.parameters.as_ref().filter(|_| is_video).map(ParameterSets::new)
        });
        let mut packets = PacketTracks {
            tracks: info.tracks.clone(),
            sets: sets.collect(),
            times: None,
            longest_step,
            declared: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            held: VecDeque::new(),
            seq,
            realtime,
            started: None,
            pictures: 0,
            progress: 0,
        };
        if let Some(origin) = origin {
            packets.begin_at(origin);
        }
        packets
    }

    /// When the container says that the first picture is shown; it counts where that one does not come in time.
    #[must_use]
    pub fn declared(self, start: Option<MediaTime>) -> PacketTracks {
        PacketTracks { declared: start, ..self }
    }

    /// Number of the next packet.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Packets of the video track since [`PacketTracks::begin_round`].
    pub fn pictures(&self) -> u64 {
        self.pictures
    }

    /// Grows with each packet of the video track.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// Where a stamp of the video track lies, in ticks since the stream's first picture.
    pub fn placed(&self, said: i64) -> Option<i64> {
        self.times.as_ref().map(|times| times.placed(0, said))
    }

    pub fn begin_round(&mut self) {
        self.pictures = 0;
    }

    /// The input starts again at its beginning: numbers and time go on.
    pub fn restart(&mut self) {
        if let Some(times) = &mut self.times {
            times.restart();
        }
    }

    /// The next packet. Where it has other parameter sets, `info` changes, and the stream opens anew before it.
    pub fn packet(
        &mut self,
        packet: &Packet,
        info: &mut StreamInfo,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SourceError> {
        if packet.bytes() == 0 {
            return Ok(());
        }
        if let Some(changed) =
            self.sets.get_mut(packet.track()).and_then(Option::as_mut).and_then(|sets| sets.changed_by(packet))
            && let Some(track) = info.tracks.get_mut(packet.track())
        {
            track.parameters = Some(changed);
            self.release(packet.dts(), outlet)?;
            outlet.open(info.clone());
        }
        if self.times.is_none() {
            let Some(origin) = self.origin(packet) else {
                self.waiting_bytes += packet.bytes();
                self.waiting.push_back(packet.clone());
                return Ok(());
            };
            self.begin_at(origin);
            self.emit_waiting(outlet)?;
        }
        self.emit_or_hold(packet, outlet)
    }

    /// Old containers (AVI, program streams) do not say when pictures are shown that others are shown before: it is when
    /// the next of them is decoded.
    fn emit_or_hold(&mut self, packet: &Packet, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        let is_reordered = self.tracks.first().is_some_and(|track| nature(track).delay > 0);
        let is_later = match (packet.pts(), packet.dts()) {
            (None, Some(_)) => true,
            (Some(pts), Some(dts)) => pts > dts,
            (_, None) => false,
        };
        if is_reordered && packet.is_video() && is_later {
            self.release(packet.dts(), outlet)?;
            if packet.pts().is_none() {
                self.held.push_back(packet.clone());
                return Ok(());
            }
        }
        if self.held.is_empty() {
            return self.emit(packet, packet.pts(), outlet);
        }
        self.held.push_back(packet.clone());
        if self.held.len() > MOST_HELD { self.release(None, outlet) } else { Ok(()) }
    }

    /// Emits what is held; its first picture is shown at `shown`.
    fn release(&mut self, shown: Option<i64>, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        let mut shown = shown;
        std::mem::take(&mut self.held).iter().try_for_each(|packet| {
            let pts = packet.pts().or(shown.take());
            self.emit(packet, pts, outlet)
        })
    }

    /// The input is over: what waits for a time that never came begins at the earliest one there is, or at zero, if there
    /// is a picture among it.
    pub fn drain(&mut self, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        if self.times.is_none() && self.waiting.iter().any(|packet| packet.is_video() && packet.is_key()) {
            self.begin_at(self.first_shown(None).map_or(MediaTime::ZERO, |(origin, _)| origin));
            self.emit_waiting(outlet)?;
        }
        self.waiting.clear();
        let nominal = self.tracks.first().map_or(0, |track| nature(track).nominal);
        let last = self.held.iter().filter(|packet| packet.is_video()).filter_map(Packet::dts).max();
        self.release(last.map(|dts| dts.saturating_add(nominal)), outlet)
    }

    fn emit_waiting(&mut self, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiting).iter().try_for_each(|packet| self.emit_or_hold(packet, outlet))
    }

    /// What the input says of the first picture that is shown, once that is certain or too much waits for it.
    fn origin(&self, packet: &Packet) -> Option<MediaTime> {
        if packet.is_video()
            && let Some((origin, true)) = self.first_shown(Some(packet))
        {
            return Some(origin);
        }
        if self.waiting.len() < MOST_WAITING && self.waiting_bytes < MOST_WAITING_BYTES {
            return None;
        }
        // Without any stamp time begins at zero.
        let front = self.waiting.front().and_then(|first| self.said(first)).unwrap_or(MediaTime::ZERO);
        let plausible = |start: &MediaTime| front <= *start && start.since(front.ticks_in(start.base)) <= LATEST_START;
        let declared = self.declared.filter(plausible);
        Some(declared.or(self.first_shown(Some(packet)).map(|(origin, _)| origin)).unwrap_or(front))
    }

    /// What the input says of the first picture that is shown, of those that wait and of `packet`, and whether no other
    /// can come before it. Where an edit list hides the start, that is none of the first that are decoded.
    fn first_shown(&self, packet: Option<&Packet>) -> Option<(MediaTime, bool)> {
        let pictures = self.waiting.iter().chain(packet).filter(|one| one.is_video());
        let mut decodable = pictures.skip_while(|one| !one.is_key()).peekable();
        let starts_hidden = decodable.peek()?.is_hidden();
        let shown: Vec<&Packet> = decodable.skip_while(|one| one.is_hidden()).collect();
        if !starts_hidden {
            // What is shown before it refers to what is not there. RTP tells no time before its second picture.
            let (earlier, said) = shown.iter().enumerate().find_map(|(place, one)| Some((place, self.said(one)?)))?;
            let nominal = self.tracks.first().map_or(0, |track| nature(track).nominal);
            let earlier = nominal.saturating_mul(i64::try_from(earlier).unwrap_or(0));
            return Some((said.since(earlier), true));
        }
        let first = shown.iter().filter(|one| !one.is_hidden()).filter_map(|one| self.said(one)).min()?;
        // What is decoded later is shown later.
        let is_behind = shown.last().and_then(|last| last.dts()).is_some_and(|dts| dts >= first.ticks);
        Some((first, is_behind || shown.len() > MOST_REORDERED))
    }

    /// When the input says that a packet is shown.
    fn said(&self, packet: &Packet) -> Option<MediaTime> {
        let base = self.tracks.get(packet.track())?.time_base;
        packet.pts().or(packet.dts()).map(|ticks| MediaTime::new(ticks, base))
    }

    fn begin_at(&mut self, origin: MediaTime) {
        let natures: Vec<TrackNature> = self.tracks.iter().map(nature).collect();
        let times = PacketTimes::new(&natures, origin);
        self.times = Some(match self.longest_step {
            Some(longest) => times.longest_step_of(longest),
            None => times,
        });
    }

    fn emit(&mut self, packet: &Packet, said: Option<i64>, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        let (Some(times), Some(track)) = (&mut self.times, self.tracks.get(packet.track())) else { return Ok(()) };
        let stamp = times.stamp(packet.track(), said, packet.dts(), packet.duration());
        let base = track.time_base;
        let (pts, dts) = (MediaTime::new(stamp.pts, base), MediaTime::new(stamp.dts, base));
        let duration = match packet.duration() {
            Some(ticks) => MediaTime::new(ticks, base),
            None => usual_duration(track, packet.bytes()),
        };
        if let Some(repair) = stamp.repair {
            let detail = format!("at {dts}, packet {} of track {}", self.seq, track.index);
            outlet.repaired(repair.what(), &detail);
        }
        if self.realtime && !self.wait_for(dts, outlet) {
            return Err(SourceError::Stopped);
        }
        let demuxed = item::Packet {
            track: packet.track(),
            is_key: packet.is_key(),
            dts,
            duration: Some(duration),
            data: packet.data(),
        };
        let seq = self.seq;
        self.seq += 1;
        self.pictures += u64::from(packet.is_video());
        self.progress += u64::from(packet.is_video());
        outlet.packet(seq, pts, demuxed)?;
        Ok(())
    }

    /// Waits until the packet at `dts` is due; `false` when stopped meanwhile.
    fn wait_for(&mut self, dts: MediaTime, outlet: &dyn Outlet) -> bool {
        let now = outlet.clock().now();
        let started = *self.started.get_or_insert_with(|| now.checked_sub(dts.as_duration()).unwrap_or(now));
        started.checked_add(dts.as_duration()).is_none_or(|due| wait_until(outlet, due))
    }
}

/// How long a packet of so many bytes lasts where the container does not say it (Matroska): what has no length is not
/// shown at the end of a file.
fn usual_duration(track: &Track, bytes: u64) -> MediaTime {
    let samples = match track.format {
        TrackFormat::Audio { sample_rate, .. } => {
            let samples = track.parameters.as_ref().and_then(|parameters| parameters.samples(bytes));
            samples.zip(TimeBase::new(1, sample_rate))
        }
        TrackFormat::Video { .. } => None,
    };
    match samples {
        Some((samples, base)) => MediaTime::new(samples, base),
        None => MediaTime::new(nature(track).nominal, track.time_base),
    }
}

/// What is known of a track beside its packets.
pub(crate) fn nature(track: &Track) -> TrackNature {
    let base = track.time_base;
    let second = i64::from(base.denominator()) / i64::from(base.numerator());
    let nominal = match track.format {
        TrackFormat::Video { frame_rate: Some(rate), .. } if rate > 0.0 => (second as f64 / rate).round() as i64,
        // What AAC has in a packet; it matters only where stamps are missing.
        TrackFormat::Audio { sample_rate: rate @ 1.., .. } => second * 1024 / i64::from(rate),
        TrackFormat::Video { .. } | TrackFormat::Audio { .. } => second / FALLBACK_RATE,
    };
    let delay = track.parameters.as_ref().map_or(0, crate::media::parameters::Parameters::delay);
    TrackNature { base, nominal: nominal.max(1), delay }
}
