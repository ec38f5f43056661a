//! Looks at an input without running anything: what is in it, how it is coded, how long it takes to show a picture.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::address::{Address, masked};
use crate::clock::Clock;
use crate::error::StartError;
use crate::item::{Track, TrackFormat};
use crate::media::decode::Decoder;
use crate::media::demux::{DemuxError, Demuxer, Packet, Read, Tracks};
use crate::time::{MediaTime, TimeBase};

use super::live::connection::{Loss, options};
use super::live::lookup::look_up;
use super::live::settings::{Protocol, Transport, is_description, port_mistake};
use super::playback::unreadable;

/// How to look.
#[derive(Clone, Debug)]
pub struct Look {
    /// A path, or a URL of libav.
    pub input: String,
    /// RTSP by datagrams instead of inside the connection.
    pub udp: bool,
    /// How long the other side may take to answer.
    pub timeout: Duration,
    /// How long to watch packets at most; less where two whole groups of pictures have been seen.
    pub watch: Duration,
    /// Whether one picture is enough.
    pub one_picture: bool,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// The input, with credentials covered.
    pub input: String,
    /// Whether it is played by a live source.
    pub live: bool,
    /// libav's name of the container or protocol.
    pub container: String,
    /// Seconds of media, where the container says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Milliseconds until it was open.
    pub opened_ms: f64,
    /// Milliseconds from then on until a picture was decoded.
    pub first_picture_ms: f64,
    /// Why it was watched no longer, where that was not its own end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broke_off: Option<String>,
    pub tracks: Vec<ProbedTrack>,
    pub video: ProbedVideo,
}

#[derive(Clone, Debug, Serialize)]
pub struct ProbedTrack {
    pub index: usize,
    pub codec: String,
    #[serde(flatten)]
    pub format: ProbedFormat,
}

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ProbedFormat {
    Video {
        /// Pixels; zero where nobody says so before decoding.
        width: u32,
        height: u32,
        /// What the container claims, pictures a second.
        #[serde(skip_serializing_if = "Option::is_none")]
        frame_rate: Option<f64>,
    },
    Audio {
        /// Samples a second of each channel.
        sample_rate: u32,
        channels: u32,
    },
}

/// The video track that a source would decode, as its packets show it.
#[derive(Clone, Debug, Serialize)]
pub struct ProbedVideo {
    pub track: usize,
    /// Seconds of one tick of its clock, as a ratio.
    pub clock: String,
    /// Packets that were seen, and seconds of media between the first and the last of them.
    pub packets: u64,
    pub seconds: f64,
    /// Pictures a second, counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_rate: Option<f64>,
    /// Bits a second, counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_second: Option<u64>,
    pub keyframes: u64,
    /// Packets from one keyframe to the next, the fewest and the most; absent where fewer than two were seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_of_pictures: Option<[u64; 2]>,
    /// Whether pictures are coded in another order than they are shown.
    pub b_frames: bool,
}

/// Opens the input and watches it for a while. Blocks; every wait has a deadline.
///
/// # Errors
/// Where it cannot be opened, is no video, or shows no picture.
pub fn probe(look: &Look, clock: &dyn Clock) -> Result<Probe, StartError> {
    let started = clock.now();
    let deadline = started + look.timeout;
    let stop = || clock.now() >= deadline;
    let address = Address::parse(&look.input).filter(|address| !address.scheme.eq_ignore_ascii_case("file"));
    let live = address.is_some() || is_description(&look.input);
    let opened = if live {
        if let Some((message, hint)) = address.as_ref().and_then(port_mistake) {
            return Err(StartError::new(format!("`{}`: {message}", masked(&look.input))).hint(hint));
        }
        look_up(&look.input, &stop).map_err(|failure| told(look, &Loss::not_found(&failure, look.timeout)))?;
        let scheme = address.map(|address| address.scheme.to_ascii_lowercase()).unwrap_or_default();
        // libav knows schemes in lower case only.
        let url = format!("{scheme}{}", &look.input[scheme.len()..]);
        let protocol = match look.udp {
            _ if !scheme.starts_with("rtsp") => Protocol::Other,
            true => Protocol::Rtsp(Transport::Udp),
            false => Protocol::Rtsp(Transport::Tcp),
        };
        let options = options(protocol, address.is_none(), look.timeout);
        Demuxer::open_url(&url, &options, &Tracks::Best, &stop)
    } else {
        let path = look.input.strip_prefix("file://").unwrap_or(&look.input);
        Demuxer::open(Path::new(path), &Tracks::Best, &stop)
    };
    let mut demuxer = opened.map_err(|error| refused(look, live, &error))?;
    let opened = clock.now();
    let mut seen = Seen::default();
    let watched = watch(&mut demuxer, look, clock, &mut seen);
    let no_picture = |message: String, hint: &'static str| {
        StartError::new(format!("`{}` was opened, but {message}", masked(&look.input))).hint(hint)
    };
    if seen.packets == 0 {
        let loss = Loss::no_packet(look.watch);
        return Err(match &watched.broke_off {
            Some(why) => no_picture(format!("there was no packet of video: {why}"), "check that it sends video"),
            None => no_picture(loss.reason().to_owned(), loss.hint().unwrap_or("check that the camera sends video")),
        });
    }
    let Some(first_picture) = watched.first_picture else {
        let packets = if seen.packets == 1 { "1 packet".to_owned() } else { format!("{} packets", seen.packets) };
        let why = watched.trouble.or(watched.broke_off).map(|why| format!(": {why}")).unwrap_or_default();
        let hint = "check that it was recorded or is sent completely; one with rare keyframes needs a longer `--watch`";
        return Err(no_picture(format!("no picture came out of {packets}{why}"), hint));
    };
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let video = demuxer.tracks().first().map_or(0, |track| track.index);
    Ok(Probe {
        input: masked(&look.input),
        live,
        container: demuxer.container(),
        seconds: demuxer.duration(),
        opened_ms: milliseconds(opened.saturating_duration_since(started)),
        first_picture_ms: milliseconds(first_picture),
        broke_off: watched.broke_off,
        tracks: demuxer.every_track().into_iter().map(probed).collect(),
        video: seen.video(video, demuxer.time_base()),
    })
}

/// A loss of a live input as this command tells it.
fn told(look: &Look, loss: &Loss) -> StartError {
    let error = StartError::new(format!("`{}`: {}", masked(&look.input), loss.reason()));
    match loss.hint() {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn refused(look: &Look, live: bool, error: &DemuxError) -> StartError {
    let input = masked(&look.input);
    if !live {
        let path = look.input.strip_prefix("file://").unwrap_or(&look.input);
        return match unreadable(Path::new(path), error) {
            crate::error::SourceError::Input { message, hint, .. } => StartError { message, hint },
            crate::error::SourceError::Interrupted(message) => StartError::new(message),
            crate::error::SourceError::Stopped => StartError::new(format!("`{input}` did not open in time")),
        };
    }
    let loss = match error {
        DemuxError::Stopped => Loss::no_answer(look.timeout),
        error => Loss::of(error),
    };
    let hint = match error {
        DemuxError::Failed(_) => Some("check the URL, and the network between"),
        DemuxError::Stopped => Some("check that it is reachable; a slow one needs a longer `--timeout`"),
        _ => loss.hint(),
    };
    match hint {
        Some(hint) => StartError::new(format!("`{input}`: {}", loss.reason())).hint(hint),
        None => told(look, &loss),
    }
}

/// What became of watching.
#[derive(Default)]
struct Watched {
    /// How long the first picture took.
    first_picture: Option<Duration>,
    /// The decoder's last words about packets before the first picture.
    trouble: Option<String>,
    /// Why it was watched no longer, where that was neither the time nor the end.
    broke_off: Option<String>,
}

/// Watches packets until two groups of pictures are whole and a picture was seen, or the time is over.
fn watch(demuxer: &mut Demuxer, look: &Look, clock: &dyn Clock, seen: &mut Seen) -> Watched {
    let opened = clock.now();
    let deadline = opened + look.watch;
    let mut watched = Watched::default();
    let mut decoder = match Decoder::open(demuxer.parameters(), demuxer.time_base(), 1) {
        Ok(decoder) => Some(decoder),
        Err(error) => {
            watched.trouble = Some(error.to_string());
            None
        }
    };
    while clock.now() < deadline
        && !(watched.first_picture.is_some() && seen.is_enough(demuxer.time_base(), look.watch))
    {
        let packet = match demuxer.read(&|| clock.now() >= deadline) {
            Ok(Read::Packet(packet)) => Some(packet),
            Ok(Read::Unreadable(cause)) => {
                watched.trouble = Some(cause);
                continue;
            }
            // What the decoder still has comes out.
            Ok(Read::End) => None,
            Err(DemuxError::Stopped) => break,
            Err(error) => {
                watched.broke_off = Some(error.to_string());
                break;
            }
        };
        let is_end = packet.is_none();
        if let Some(packet) = &packet {
            seen.packet(packet);
        }
        if watched.first_picture.is_none()
            && let Some(decoder) = &mut decoder
        {
            let sent = match packet {
                Some(packet) => decoder.send(packet, 0, false),
                None => decoder.send_end(),
            };
            match sent.and_then(|()| decoder.receive()) {
                Ok(Some(_)) => {
                    watched.first_picture = Some(clock.now().saturating_duration_since(opened));
                    if look.one_picture {
                        break;
                    }
                }
                Ok(None) => {}
                Err(error) => watched.trouble = Some(error.to_string()),
            }
        }
        if is_end {
            break;
        }
    }
    watched
}

fn probed(track: Track) -> ProbedTrack {
    let format = match track.format {
        TrackFormat::Video { width, height, frame_rate, .. } => ProbedFormat::Video { width, height, frame_rate },
        TrackFormat::Audio { sample_rate, channels } => ProbedFormat::Audio { sample_rate, channels },
    };
    ProbedTrack { index: track.index, codec: track.codec, format }
}

/// What packets have shown so far.
#[derive(Debug, Default)]
struct Seen {
    packets: u64,
    /// Those that say when they are shown: the first of a camera may not.
    stamped: u64,
    bytes: u64,
    keyframes: u64,
    since_keyframe: u64,
    groups: Option<[u64; 2]>,
    /// Native ticks of the earliest and the latest stamp.
    span: Option<(i64, i64)>,
    reordered: bool,
}

impl Seen {
    fn packet(&mut self, packet: &Packet) {
        self.one(packet.is_key(), packet.bytes(), packet.pts());
    }

    fn one(&mut self, is_key: bool, bytes: u64, pts: Option<i64>) {
        if is_key {
            if self.keyframes > 0 {
                let length = self.since_keyframe;
                let [fewest, most] = self.groups.unwrap_or([length, length]);
                self.groups = Some([fewest.min(length), most.max(length)]);
            }
            self.keyframes += 1;
            self.since_keyframe = 0;
        }
        self.since_keyframe += 1;
        self.packets += 1;
        self.bytes += bytes;
        if let Some(pts) = pts {
            self.stamped += 1;
            let (earliest, latest) = self.span.unwrap_or((pts, pts));
            self.reordered |= pts < latest;
            self.span = Some((earliest.min(pts), latest.max(pts)));
        }
    }

    fn seconds(&self, base: TimeBase) -> f64 {
        self.span.map_or(0.0, |(earliest, latest)| MediaTime::new(latest, base).since(earliest).as_seconds())
    }

    fn is_enough(&self, base: TimeBase, watch: Duration) -> bool {
        let seconds = self.seconds(base);
        (self.keyframes >= 3 && seconds >= 1.0) || seconds >= watch.as_secs_f64()
    }

    fn video(&self, track: usize, base: TimeBase) -> ProbedVideo {
        let seconds = self.seconds(base);
        // Between n stamps lie n - 1 pictures.
        let rate = (seconds > 0.0 && self.stamped > 1).then(|| (self.stamped - 1) as f64 / seconds);
        ProbedVideo {
            track,
            clock: format!("{}/{}", base.numerator(), base.denominator()),
            packets: self.packets,
            seconds,
            measured_rate: rate,
            bits_per_second: rate.map(|rate| (self.bytes as f64 * 8.0 / self.packets as f64 * rate) as u64),
            keyframes: self.keyframes,
            group_of_pictures: self.groups,
            b_frames: self.reordered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_without_a_stamp_do_not_count_for_the_rate() {
        let mut seen = Seen::default();
        seen.one(true, 1000, None);
        for number in 0..11 {
            seen.one(number == 9, 1000, Some(number * 9000));
        }
        let base = TimeBase::new(1, 90_000).unwrap();
        let video = seen.video(0, base);
        assert_eq!((video.packets, video.keyframes, video.seconds), (12, 2, 1.0));
        assert_eq!((video.measured_rate, video.bits_per_second), (Some(10.0), Some(80_000)));
        assert_eq!(video.group_of_pictures, Some([10, 10]));
    }
}
