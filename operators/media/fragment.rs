//! Pieces of a longer presentation: fragmented MP4 with its initialisation apart, as HLS serves it, or else a transport
//! stream ([`super::transport`]).
//!
//! Each piece of MP4 is made by itself of the packets that are in it, so one that fails takes no other with it. Times go on from
//! piece to piece: all of them are moved by [`LEAD`], so that sound and pictures that are decoded before the first picture
//! is shown have times that MP4 can express.

use std::sync::Arc;

use bytes::Bytes;

use super::adts::{self, AdtsFilter};
use super::mux::{Container, MuxError, Muxer, Written};
use super::transport::Transport;
use crate::item::{Packet, Track};
use crate::time::MediaTime;

/// The time of the stream's first picture in the presentation.
pub const LEAD: MediaTime = MediaTime::from_micros(10_000_000);

/// A packet and when it is shown.
#[derive(Clone, Debug)]
pub struct Sample {
    pub packet: Arc<Packet>,
    pub pts: MediaTime,
}

/// A piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// What a player needs once for all pieces of which it is the same.
    pub init: Bytes,
    pub media: Bytes,
    /// Places of samples that could not be kept, and why.
    pub refused: Vec<(usize, String)>,
}

/// What pieces are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Fragmented MP4, with what players need once apart.
    Mp4,
    /// MPEG transport stream.
    Transport,
}

impl Form {
    /// Whether a track can be a part of pieces, whoever can play it.
    pub fn plays(self, track: &Track) -> bool {
        match self {
            Form::Mp4 => {
                let is_sound = matches!(track.format, crate::item::TrackFormat::Audio { .. });
                Container::Piece.holds(track) && (!is_sound || SOUND.contains(&&*track.codec))
            }
            Form::Transport => Container::Transport.holds(track),
        }
    }

    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Form::Mp4 => "MP4",
            Form::Transport => "an MPEG transport stream",
        }
    }
}

/// Makes the pieces of one stream, as long as its format stays the same.
pub struct Fragmenter {
    form: Form,
    /// The transport stream that goes on from piece to piece, where it is one and has begun.
    transport: Option<Transport>,
    /// Those that can be kept; with what was learnt of them from their packets.
    tracks: Vec<Track>,
    filters: Vec<Option<AdtsFilter>>,
}

impl Fragmenter {
    /// # Errors
    /// Where libav refuses the parameters of a track.
    pub fn new(form: Form, tracks: &[Track]) -> Result<Fragmenter, MuxError> {
        let (mut filters, mut known) = (Vec::new(), tracks.to_vec());
        for track in &mut known {
            let filter = track.parameters.as_ref().map(AdtsFilter::of).transpose().map_err(MuxError::Failed)?.flatten();
            // Sound may come long after the first pictures, and players look only once which tracks there are.
            if filter.is_some()
                && let Some(parameters) = &track.parameters
                && let Some(configuration) = adts::configuration(parameters)
            {
                track.parameters = Some(parameters.with_extradata(&configuration, None));
            }
            filters.push(filter);
        }
        let tracks = if form == Form::Mp4 { known } else { tracks.to_vec() };
        Ok(Fragmenter { form, transport: None, tracks, filters })
    }

    /// Makes one piece. `following` has for each track when the packet behind its last one here is decoded, where that is
    /// known: until then the last one lasts.
    ///
    /// # Errors
    /// Where no piece comes of it.
    pub fn piece(&mut self, samples: &[Sample], following: &[Option<MediaTime>]) -> Result<Fragment, MuxError> {
        match self.form {
            Form::Mp4 => self.fragment(samples, following),
            Form::Transport => {
                let mut transport = match self.transport.take() {
                    Some(transport) => transport,
                    None => Transport::new(&self.tracks)?,
                };
                // One that fails is not gone on with.
                let piece = transport.piece(samples)?;
                self.transport = Some(transport);
                Ok(piece)
            }
        }
    }

    fn fragment(&mut self, samples: &[Sample], following: &[Option<MediaTime>]) -> Result<Fragment, MuxError> {
        let mut refused = Vec::new();
        let mut bare = Vec::with_capacity(samples.len());
        for (place, sample) in samples.iter().enumerate() {
            match self.bare(&sample.packet) {
                Ok(data) => bare.push((place, sample, data)),
                Err(why) => refused.push((place, why)),
            }
        }
        let tracks: Vec<Track> =
            self.tracks.iter().enumerate().map(|(index, track)| self.known(index, track)).collect();
        let mut muxer = Muxer::new(Container::Piece, &tracks, u64::MAX)?;
        let split = muxer.position()?;
        muxer.reserve(bare.iter().map(|(_, _, data)| data.len() + INDEX_ENTRY).sum());
        for (index, track) in tracks.iter().enumerate().filter(|(_, track)| track.parameters.is_some()) {
            let ticks = |time: MediaTime| time.ticks_in(track.time_base).saturating_add(LEAD.ticks_in(track.time_base));
            let own: Vec<_> = bare.iter().filter(|(_, sample, _)| sample.packet.track == index).collect();
            let mut last = i64::MIN;
            // Two of a time are one tick apart: MP4 knows no others.
            let decoded: Vec<i64> = own
                .iter()
                .map(|(_, sample, _)| {
                    last = ticks(sample.packet.dts).max(last.saturating_add(1));
                    last
                })
                .collect();
            let end = following.get(index).copied().flatten().map(ticks);
            for (nth, (place, sample, data)) in own.into_iter().enumerate() {
                let dts = decoded[nth];
                let own = sample.packet.duration.map_or(0, |duration| duration.ticks_in(track.time_base));
                // Where nothing tells, as long as the one before.
                let before = nth.checked_sub(1).map_or(0, |before| dts.saturating_sub(decoded[before]));
                let own = if own > 0 { own } else { before };
                let duration =
                    decoded.get(nth + 1).copied().or(end).map_or(own, |next| next.saturating_sub(dts).max(1));
                // What was moved behind the one before is shown no earlier.
                let pts = ticks(sample.pts).max(dts);
                let written = Written { data, is_key: sample.packet.is_key, pts, dts, duration };
                match muxer.write_bare(index, &written) {
                    Err(MuxError::Packet(why)) => refused.push((*place, why)),
                    other => other?,
                }
            }
        }
        let bytes = muxer.finish_in_memory()?;
        let split = usize::try_from(split).unwrap_or(usize::MAX).min(bytes.len());
        // A copy: the few bytes of it would keep all of the piece alive.
        Ok(Fragment { init: Bytes::copy_from_slice(&bytes[..split]), media: bytes.slice(split..), refused })
    }

    /// What of a packet goes into the file; what it tells of its track is remembered.
    fn bare(&mut self, packet: &Packet) -> Result<Bytes, String> {
        let Some(Some(filter)) = self.filters.get_mut(packet.track) else { return Ok(packet.data.clone()) };
        let bare = filter.strip(&packet.data)?;
        if let (Some(configuration), Some(track)) = (bare.configuration, self.tracks.get_mut(packet.track)) {
            track.parameters = track.parameters.as_ref().map(|known| known.with_extradata(&configuration, None));
        }
        Ok(bare.data)
    }

    /// A track as far as a file can have it: none of which no packet has said yet how it is coded.
    fn known(&self, index: usize, track: &Track) -> Track {
        let filtered = self.filters.get(index).is_some_and(Option::is_some);
        let is_known = track.parameters.as_ref().is_some_and(|known| !filtered || !known.extradata().is_empty());
        let is_kept = is_known && Form::Mp4.plays(track);
        Track { parameters: track.parameters.clone().filter(|_| is_kept), ..track.clone() }
    }
}

/// Bytes of the index for a sample, at most: its duration, size, flags and offset, 4 each (ISO/IEC 14496-12, `trun`).
const INDEX_ENTRY: usize = 16;

/// Codecs of sound that players of HLS know, and of which every piece can say how they are coded. AC-3 is none: libav
/// takes that from packets, and a piece may have none of them.
const SOUND: [&str; 4] = ["aac", "mp3", "flac", "opus"];
/// Codecs of pictures that browsers may know.
const PICTURES: [&str; 4] = ["h264", "hevc", "vp9", "av1"];

/// Whether browsers may play a track of pictures.
pub fn is_common(track: &Track) -> bool {
    PICTURES.contains(&&*track.codec)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::media::demux::{Demuxer, Read, Tracks};
    use crate::testing::recording;

    /// A second of pictures and of sound at 44.1 kHz, as a transport stream.
    fn broadcast(folder: &std::path::Path) -> Demuxer {
        let path = folder.join("clip.ts");
        let pictures = "-f lavfi -i testsrc=size=64x48:rate=10:duration=1";
        let sound = "-f lavfi -i sine=frequency=440:sample_rate=44100:duration=1";
        recording(&path, &format!("{pictures} {sound} -c:v libx264 -bf 0 -pix_fmt yuv420p -c:a aac"))
    }

    #[test]
    fn packets_whose_times_are_one_in_ticks_of_the_file_are_all_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut demuxer = broadcast(folder.path());
        let tracks = demuxer.tracks().to_vec();
        let mut samples: Vec<Sample> = Vec::new();
        while let Read::Packet(read) = demuxer.read(&|| false).unwrap() {
            let base = tracks[read.track()].time_base;
            let time = |ticks: Option<i64>| MediaTime::new(ticks.unwrap(), base);
            let (dts, pts) = (time(read.dts()), time(read.pts()));
            let duration = read.duration().map(|ticks| time(Some(ticks)));
            let packet = Packet { track: read.track(), is_key: read.is_key(), dts, duration, data: read.data() };
            samples.push(Sample { packet: Arc::new(packet), pts });
        }
        let sound: Vec<usize> = (0..samples.len()).filter(|place| samples[*place].packet.track == 1).collect();
        // As after a jump of the clock that was repaired: 1/90000 s apart, and what is heard before that.
        for pair in sound.windows(2).skip(3).step_by(7) {
            let before = samples[pair[0]].packet.dts;
            let moved = MediaTime::new(before.ticks_in(before.base) + 1, before.base);
            let mut packet = (*samples[pair[1]].packet).clone();
            packet.dts = moved;
            samples[pair[1]] = Sample { packet: Arc::new(packet), pts: before };
        }
        for form in [Form::Mp4, Form::Transport] {
            let piece = Fragmenter::new(form, &tracks).unwrap().piece(&samples, &[]).unwrap();
            assert_eq!(piece.refused, [], "{form:?}");
            let path = folder.path().join("piece");
            std::fs::write(&path, [&piece.init[..], &piece.media[..]].concat()).unwrap();
            let mut found = Demuxer::open(&path, &Tracks::Best, &|| false).unwrap();
            found.read_all(true);
            let mut count = 0;
            while let Read::Packet(_) = found.read(&|| false).unwrap() {
                count += 1;
            }
            assert_eq!(count, samples.len(), "{form:?}");
        }
    }
}
