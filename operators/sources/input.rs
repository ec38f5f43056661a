//! What becomes of an open input: its video track is decoded where pictures are asked for, and the packets of all its
//! tracks are passed on where packets are, from one reading of it. Files and live inputs share it; where the packets
//! come from is their own affair.
//!
//! What is asked for changes while it runs. Who begins to take pictures gets them from the next keyframe on; where
//! nobody does, nothing is decoded.

use crate::error::SourceError;
use crate::item::{Played, StreamInfo, TrackFormat};
use crate::media::decode::DecodeError;
use crate::media::demux::{Demuxer, Packet};
use crate::operator::{Demand, Outlet};

use super::track::packets::PacketTracks;
use super::track::{Manner, VideoTrack};

/// The state of one input.
pub(super) struct Input {
    info: StreamInfo,
    manner: Manner,
    threads: usize,
    frames: Option<VideoTrack>,
    packets: Option<PacketTracks>,
    /// Numbers of the next picture and of the next packet, where nobody takes them.
    next: (u64, u64),
    /// Pictures of this round that were seen by tracks that nobody listens to any more.
    pictures: u64,
    trouble: Option<String>,
}

impl Input {
    /// The chosen tracks of `demuxer`, of which `demand` is asked for at first.
    ///
    /// # Errors
    /// Where pictures are asked for and there is no decoder for them.
    pub fn open(demuxer: &mut Demuxer, manner: Manner, demand: Demand, threads: usize) -> Result<Input, DecodeError> {
        let mut info = StreamInfo {
            tracks: demuxer.tracks().to_vec(),
            time_base: demuxer.time_base(),
            duration: demuxer.duration(),
            played: Played::Live,
        };
        if let Some(TrackFormat::Video { width, height, .. }) = info.tracks.first_mut().map(|track| &mut track.format) {
            (*width, *height) = demuxer.orientation().size((*width, *height));
        }
        let frames = if demand.frames { Some(VideoTrack::open(demuxer, manner, threads)?) } else { None };
        let longest = manner.longest_step;
        let start = demuxer.start();
        let packets =
            demand.packets.then(|| PacketTracks::new(&info, 0, None, longest, manner.realtime).declared(start));
        demuxer.read_all(demand.packets);
        Ok(Input { info, manner, threads, frames, packets, next: (0, 0), pictures: 0, trouble: None })
    }

    /// What it plays, which nothing in it tells.
    pub fn set_played(&mut self, played: &Played) {
        self.info.played = played.clone();
        if let Some(frames) = &mut self.frames {
            frames.info_mut().played = played.clone();
        }
    }

    pub fn info(&self) -> &StreamInfo {
        self.frames.as_ref().map_or(&self.info, VideoTrack::info)
    }

    /// What the pictures' size turned out to be, in pixels as they are coded, before the first one is out.
    pub fn expect_size(&mut self, coded: (u32, u32)) {
        if let Some(frames) = &mut self.frames {
            frames.expect_size(coded);
        }
    }

    /// Changes whenever the input gets on: with each picture that comes out or that nobody wanted, or else with each
    /// packet of its video track that is passed on.
    pub fn progress(&self) -> u64 {
        match (&self.frames, &self.packets) {
            (Some(frames), _) => frames.progress(),
            (None, Some(packets)) => packets.progress(),
            (None, None) => 0,
        }
    }

    /// Pictures that came, decoded or not, since [`Input::begin_round`].
    pub fn pictures(&self) -> u64 {
        let frames = self.frames.as_ref().map_or(0, VideoTrack::pictures);
        let packets = self.packets.as_ref().map_or(0, PacketTracks::pictures);
        self.pictures + frames.max(packets)
    }

    /// The last thing that could not be decoded, or what may keep pictures away.
    pub fn trouble(&self) -> Option<&str> {
        self.frames.as_ref().and_then(VideoTrack::trouble).or(self.trouble.as_deref())
    }

    /// Counts the pictures of one pass anew.
    pub fn begin_round(&mut self) {
        self.pictures = 0;
        if let Some(frames) = &mut self.frames {
            frames.begin_round();
        }
        if let Some(packets) = &mut self.packets {
            packets.begin_round();
        }
    }

    /// The input starts again at its beginning: numbers and time go on.
    pub fn restart(&mut self, demuxer: &mut Demuxer) {
        if let Some(frames) = &mut self.frames {
            frames.restart();
        }
        if let Some(packets) = &mut self.packets {
            packets.restart();
        }
        demuxer.read_all(self.packets.is_some());
    }

    /// Looks at what is asked for; to be called before each reading.
    pub fn attend(&mut self, demuxer: &mut Demuxer, outlet: &dyn Outlet) {
        let demand = outlet.demand();
        if demand.packets != self.packets.is_some() {
            match self.packets.take() {
                None => {
                    let origin = self.frames.as_ref().and_then(VideoTrack::origin);
                    let longest = self.manner.longest_step;
                    let info = self.info().clone();
                    let packets = PacketTracks::new(&info, self.next.1, origin, longest, self.manner.realtime);
                    self.packets = Some(packets);
                }
                Some(packets) => {
                    self.next.1 = packets.seq();
                    self.pictures = self.pictures.max(packets.pictures());
                }
            }
            demuxer.read_all(demand.packets);
        }
        if !demand.frames
            && let Some(frames) = self.frames.take()
        {
            self.info = frames.info().clone();
            self.next.0 = frames.seq();
            self.pictures = self.pictures.max(frames.pictures());
        }
    }

    /// The next packet, in the order of the input: passed on, decoded, or both.
    pub fn packet(&mut self, packet: Packet, demuxer: &Demuxer, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        if let Some(packets) = &mut self.packets {
            let info = self.frames.as_mut().map_or(&mut self.info, VideoTrack::info_mut);
            packets.packet(&packet, info, outlet)?;
        }
        if !packet.is_video() {
            return Ok(());
        }
        if self.frames.is_none() && packet.is_key() && outlet.demand().frames {
            self.begin_to_decode(&packet, demuxer, outlet);
        }
        match &mut self.frames {
            Some(frames) => frames.packet(packet, outlet),
            None => Ok(()),
        }
    }

    /// Somebody takes pictures now.
    fn begin_to_decode(&mut self, packet: &Packet, demuxer: &Demuxer, outlet: &mut dyn Outlet) {
        // How many pictures there were before, nobody has counted.
        let manner = Manner { indexed: false, ..self.manner };
        match VideoTrack::open(demuxer, manner, self.threads) {
            Ok(mut frames) => {
                *frames.info_mut() = self.info.clone();
                let stamp = packet.pts().or(packet.dts());
                let at = self.packets.as_ref().zip(stamp).and_then(|(packets, stamp)| packets.placed(stamp));
                frames.start_at(self.next.0, at.unwrap_or(0));
                self.frames = Some(frames);
            }
            Err(error) => {
                let error = error.to_string();
                outlet.repaired("undecodable track", &error);
                self.trouble = Some(error);
            }
        }
    }

    /// Gets the last pictures out of the decoder.
    pub fn drain(&mut self, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        if let Some(packets) = &mut self.packets {
            packets.drain(outlet)?;
        }
        self.frames.as_mut().map_or(Ok(()), |frames| frames.drain(outlet))
    }

    /// Something of the input could not be read.
    pub fn corrupt(&mut self, cause: &str, outlet: &mut dyn Outlet) {
        match &mut self.frames {
            Some(frames) => frames.corrupt(cause, outlet),
            None => {
                outlet.repaired("corrupt packet", cause);
                self.trouble = Some(cause.to_owned());
            }
        }
    }
}
