//! Opening a live input, and what may be wrong with it. Every wait has a deadline, and ends when the stream is stopped.

use std::fmt;
use std::time::Duration;

use crate::clock::Clock;
use crate::media::decode::Decoder;
use crate::media::demux::{DemuxError, Demuxer, Packet, Read, Tracks};
use crate::media::formats;
use crate::operator::Demand;

use super::lookup::{NotFound, look_up};
use super::{Protocol, Settings, Transport};

/// libav's own deadlines lie so much later than ours: they only end what ours did not reach.
const MARGIN: Duration = Duration::from_secs(1);

/// An input that is there: it has shown a picture, or a keyframe where nobody wants pictures.
pub(super) struct Connection {
    pub demuxer: Demuxer,
    /// What was read to see the first picture, to be decoded again in earnest; nothing where that was too much.
    pub waiting: Vec<Packet>,
    /// Width and height of the first picture in pixels, where it was decoded.
    pub size: Option<(u32, u32)>,
}

/// Why there is no input, or none any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sources) struct Loss {
    reason: String,
    hint: Option<&'static str>,
}

impl Loss {
    pub fn new(reason: impl Into<String>, hint: &'static str) -> Loss {
        Loss { reason: reason.into(), hint: Some(hint) }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<&'static str> {
        self.hint
    }

    /// Why alone, without what to do.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub fn of(error: &DemuxError) -> Loss {
        let hint = match error {
            DemuxError::Unauthorized | DemuxError::Forbidden => {
                "check user and password in the URL; characters such as @ or / in them are written %40 and %2F"
            }
            DemuxError::LeadsAway(_) => {
                "start the engine with `--allow-host` for that host, or write the stream into a graph file"
            }
            DemuxError::NotFound => "check the path in the URL; the camera's manual names it",
            DemuxError::Refused => "check host and port, and whether the camera is on",
            DemuxError::Unreachable(_) => "check the host and the network between",
            DemuxError::NoVideo(_) | DemuxError::Empty => "check that the camera sends video under this URL",
            _ => "check the URL with `engine probe`, and the network between",
        };
        Loss::new(error.to_string(), hint)
    }

    pub fn no_answer(within: Duration) -> Loss {
        let within = humantime::format_duration(within);
        Loss::new(
            format!("no answer within {within}"),
            "check that the camera is reachable; a slow one needs a longer `connect_timeout`",
        )
    }

    /// Where the host's name leads nowhere, or did not within `within`.
    pub fn not_found(failure: &NotFound, within: Duration) -> Loss {
        match failure {
            NotFound::Unknown { host, why } => Loss::new(
                format!("the host name `{host}` is not known: {why}"),
                "check the name, and the name server of this machine",
            ),
            NotFound::GivenUp { host } => Loss::new(
                format!("the system did not find the host name `{host}` within {}", humantime::format_duration(within)),
                "check the name server of this machine, or write the host's number",
            ),
        }
    }

    pub fn no_packet(within: Duration) -> Loss {
        Loss {
            reason: format!("nothing was received for {}", humantime::format_duration(within)),
            hint: Some("check the camera and the network; one that sends rarely needs a longer `read_timeout`"),
        }
    }

    pub fn no_frame(within: Duration, trouble: Option<&str>) -> Loss {
        let within = humantime::format_duration(within);
        let reason = match trouble {
            Some(trouble) => format!("no picture for {within}: {trouble}"),
            None => format!("no picture for {within}"),
        };
        Loss::new(reason, "check the camera; one that shows a picture rarely needs a longer `no_frame_for`")
    }

    /// Somebody says that it is lost.
    pub fn interrupted(reason: String) -> Loss {
        Loss { reason, hint: None }
    }

    pub fn ended() -> Loss {
        Loss { reason: "the other side ended the stream".to_owned(), hint: None }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)?;
        self.hint.map_or(Ok(()), |hint| write!(formatter, "; hint: {hint}"))
    }
}

/// Why [`connect`] did not.
#[derive(Debug)]
pub(super) enum NotConnected {
    /// The stream is to stop.
    Stopped,
    Lost(Loss),
}

/// Opens the input for `demand` and reads until it has shown a picture. `stopping` is asked at least ten times a second.
pub(super) fn connect(
    settings: &Settings,
    demand: Demand,
    clock: &dyn Clock,
    stopping: &dyn Fn() -> bool,
) -> Result<Connection, NotConnected> {
    let deadline = clock.now() + settings.connect_timeout;
    let given_up = || stopping() || clock.now() >= deadline;
    match look_up(&settings.url, &given_up) {
        Ok(()) => {}
        Err(NotFound::GivenUp { .. }) if stopping() => return Err(NotConnected::Stopped),
        Err(failure) => return Err(NotConnected::Lost(Loss::not_found(&failure, settings.connect_timeout))),
    }
    let patience = settings.connect_timeout.max(settings.read_timeout);
    let mut options = options(settings.protocol, settings.is_description(), patience);
    if matches!(settings.protocol, Protocol::Rtsp(_)) && !demand.packets {
        // Nobody takes sound, so it is not asked for.
        options.push(("allowed_media_types", "video".to_owned()));
    }
    let opened = Demuxer::open_url(&settings.url, &options, &Tracks::Best, &given_up);
    let mut demuxer = match opened {
        Ok(demuxer) => demuxer,
        Err(DemuxError::Stopped) if stopping() => return Err(NotConnected::Stopped),
        Err(DemuxError::Stopped) => return Err(NotConnected::Lost(Loss::no_answer(settings.connect_timeout))),
        // libav reports a socket that timed out by whatever was asked of it then.
        Err(_) if clock.now() >= deadline => {
            return Err(NotConnected::Lost(Loss::no_answer(settings.connect_timeout)));
        }
        Err(error) => return Err(NotConnected::Lost(Loss::of(&error))),
    };
    demuxer.read_all(demand.packets);
    match first_picture(&mut demuxer, settings, demand, clock, stopping) {
        Ok((waiting, size)) => Ok(Connection { demuxer, waiting, size }),
        Err(failure) => {
            close(demuxer, clock);
            Err(failure)
        }
    }
}

/// Takes leave of the other side, briefly.
pub(super) fn close(demuxer: Demuxer, clock: &dyn Clock) {
    const GOODBYE: Duration = Duration::from_millis(500);
    let deadline = clock.now() + GOODBYE;
    demuxer.close(&|| clock.now() >= deadline);
}

/// Packets since the last keyframe, as few as the memory of one stream must bear: an input may send for as long as it
/// likes and never show a picture.
#[derive(Default)]
struct Waiting {
    packets: Vec<Packet>,
    bytes: u64,
    /// Whether a keyframe has come, and what followed it is all there.
    collects: bool,
}

impl Waiting {
    const MOST_PACKETS: usize = 1024;
    const MOST_BYTES: u64 = 16 << 20;

    fn push(&mut self, packet: &Packet) {
        // A decoder starts anew at a keyframe, so what came before it is of no use.
        if packet.is_key() && packet.is_video() {
            *self = Waiting { collects: true, ..Waiting::default() };
        }
        if !self.collects {
            return;
        }
        self.bytes += packet.bytes();
        if self.packets.len() >= Waiting::MOST_PACKETS || self.bytes > Waiting::MOST_BYTES {
            *self = Waiting::default();
        } else {
            self.packets.push(packet.clone());
        }
    }
}

/// What was read to see that an input is there, and the size of its first picture where that was decoded.
type Begun = (Vec<Packet>, Option<(u32, u32)>);

/// Reads until a picture comes out of a decoder; answers the packets since the last keyframe, and the picture's size.
/// Where nobody wants pictures, nothing is decoded: the first keyframe is enough.
fn first_picture(
    demuxer: &mut Demuxer,
    settings: &Settings,
    demand: Demand,
    clock: &dyn Clock,
    stopping: &dyn Fn() -> bool,
) -> Result<Begun, NotConnected> {
    let lost = |loss| Err(NotConnected::Lost(loss));
    let decoder = demand.frames.then(|| Decoder::open(demuxer.parameters(), demuxer.time_base(), 1));
    let mut decoder = match decoder.transpose() {
        Ok(decoder) => decoder,
        Err(error) => {
            return lost(Loss::new(error.to_string(), "set the camera to a codec of FFmpeg, such as H.264"));
        }
    };
    let deadline = clock.now() + settings.no_frame_for;
    let mut waiting = Waiting::default();
    let mut trouble = None;
    loop {
        let read_by = clock.now() + settings.read_timeout;
        let packet = match demuxer.read(&|| stopping() || clock.now() >= deadline.min(read_by)) {
            Ok(Read::Packet(packet)) => packet,
            Ok(Read::Unreadable(cause)) => {
                trouble = Some(cause);
                continue;
            }
            Ok(Read::End) => return lost(Loss::ended()),
            Err(DemuxError::Stopped) if stopping() => return Err(NotConnected::Stopped),
            Err(DemuxError::Stopped) if clock.now() >= deadline => {
                return lost(Loss::no_frame(settings.no_frame_for, trouble.as_deref()));
            }
            Err(DemuxError::Stopped) => return lost(Loss::no_packet(settings.read_timeout)),
            Err(error) => return lost(Loss::of(&error)),
        };
        waiting.push(&packet);
        if let Some(decoder) = decoder.as_mut().filter(|_| packet.is_video()) {
            if let Err(error) = decoder.send(packet, 0, false) {
                trouble = Some(error.to_string());
            }
            match decoder.receive() {
                Ok(Some(picture)) => return Ok((waiting.packets, Some(picture.size()))),
                Ok(None) => {}
                Err(error) => trouble = Some(error.to_string()),
            }
        } else if !demand.frames && packet.is_video() && packet.is_key() {
            return Ok((waiting.packets, None));
        }
        if clock.now() >= deadline {
            return lost(Loss::no_frame(settings.no_frame_for, trouble.as_deref()));
        }
        if stopping() {
            return Err(NotConnected::Stopped);
        }
    }
}

/// libav's options for an input whose other side may be silent for `patience`.
pub(in crate::sources) fn options(
    protocol: Protocol,
    is_description: bool,
    patience: Duration,
) -> Vec<(&'static str, String)> {
    let timeout = (patience + MARGIN).as_micros().to_string();
    match protocol {
        Protocol::Rtsp(transport) => {
            let transport = match transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            };
            vec![
                ("rtsp_transport", transport.to_owned()),
                ("timeout", timeout),
                // The description says what there is; half a second shows the rate.
                ("analyzeduration", "500000".to_owned()),
                ("protocol_whitelist", formats::PROTOCOLS_OF_NETWORK.to_owned()),
                ("format_whitelist", formats::OF_NETWORK.to_owned()),
            ]
        }
        Protocol::Other => {
            let (protocols, formats) = match is_description {
                true => (formats::PROTOCOLS_OF_DESCRIPTIONS, formats::OF_DESCRIPTIONS),
                false => (formats::PROTOCOLS_OF_NETWORK, formats::OF_NETWORK),
            };
            vec![
                ("rw_timeout", timeout),
                ("protocol_whitelist", protocols.to_owned()),
                ("format_whitelist", formats.to_owned()),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::demux::Demuxer;

    /// The packets of a clip with one keyframe, its first picture.
    fn packets(folder: &std::path::Path, options: &[&str]) -> Vec<Packet> {
        let path = super::super::tests::clip(folder, "long.mp4", 12, "160x120", options);
        let mut demuxer = Demuxer::open(&path, &Tracks::Best, &|| false).unwrap();
        let mut packets = Vec::new();
        while let Read::Packet(packet) = demuxer.read(&|| false).unwrap() {
            packets.push(packet);
        }
        packets
    }

    #[test]
    fn what_waits_for_a_picture_starts_at_a_keyframe_and_has_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let clip = packets(folder.path(), &["-g", "1000", "-bf", "0", "-sc_threshold", "0"]);
        assert!(clip[0].is_key() && clip.len() > 100 && !clip[1..].iter().any(Packet::is_key));
        let mut waiting = Waiting::default();
        for packet in &clip[1..] {
            waiting.push(packet);
        }
        assert_eq!(waiting.packets.len(), 0, "nothing can be decoded before a keyframe");
        for packet in clip.iter().chain(clip[1..].iter().cycle().take(Waiting::MOST_PACKETS - clip.len())) {
            waiting.push(packet);
        }
        assert_eq!(waiting.packets.len(), Waiting::MOST_PACKETS);
        waiting.push(&clip[1]);
        waiting.push(&clip[1]);
        assert_eq!((waiting.packets.len(), waiting.bytes), (0, 0), "too many");
        waiting.push(&clip[0]);
        waiting.push(&clip[1]);
        assert_eq!(waiting.packets.len(), 2, "from the next keyframe on it collects again");
        waiting.bytes = Waiting::MOST_BYTES;
        waiting.push(&clip[1]);
        assert_eq!((waiting.packets.len(), waiting.bytes), (0, 0), "too large");
    }
}
