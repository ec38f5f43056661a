//! Whether decoding starts anew at a packet: neither its picture nor any that is decoded later refers to what came before,
//! and all that came before is shown before it.
//!
//! libav calls more packets keyframes than these: in H.264 also those from which pictures become whole little by little,
//! and in both codecs those before which pictures are shown that refer to what came earlier. So the units of the packet
//! itself are looked at (ITU-T H.264 7.3.1, H.265 7.3.1.2).

use ffmpeg_next as ffmpeg;

use super::demux::Packet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codec {
    H264,
    Hevc,
}

/// How a packet is divided into units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// A start code stands before each.
    StartCodes,
    /// Its length stands before each, in so many bytes.
    Lengths(usize),
}

/// What must be known of a track to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refresh {
    codec: Codec,
    framing: Framing,
}

impl Refresh {
    /// `None` for codecs of which it cannot be told.
    pub fn of(parameters: &ffmpeg::codec::Parameters) -> Option<Refresh> {
        // SAFETY: the parameters are valid for as long as they are borrowed. libav keeps `extradata_size` bytes at
        // `extradata`, which is null where there are none.
        let extradata = unsafe {
            let raw = &*parameters.as_ptr();
            let size = usize::try_from(raw.extradata_size).unwrap_or(0);
            if raw.extradata.is_null() { &[] } else { std::slice::from_raw_parts(raw.extradata, size) }
        };
        match parameters.id() {
            ffmpeg::codec::Id::H264 => Some(Refresh::described(Codec::H264, extradata)),
            ffmpeg::codec::Id::HEVC => Some(Refresh::described(Codec::Hevc, extradata)),
            _ => None,
        }
    }

    /// `description`: what stands in front of the track. That of a container with lengths starts with its version, 1.
    fn described(codec: Codec, description: &[u8]) -> Refresh {
        let place = match codec {
            Codec::H264 => 4,
            Codec::Hevc => 21,
        };
        let framing = match (description.first(), description.get(place)) {
            (Some(1), Some(byte)) => Framing::Lengths(usize::from(byte & 3) + 1),
            _ => Framing::StartCodes,
        };
        Refresh { codec, framing }
    }

    /// Whether decoding starts anew at `packet`.
    pub fn is_at(&self, packet: &Packet) -> bool {
        packet.is_key() && packet.packet.data().is_some_and(|data| self.is_in(data))
    }

    /// Whether the first unit that holds a part of a picture says so.
    fn is_in(&self, data: &[u8]) -> bool {
        let kinds = |unit: &[u8]| match self.codec {
            // Types 1 to 5 hold parts of pictures, 5 those of one that all starts anew at.
            Codec::H264 => Some(unit.first()? & 0x1f).filter(|kind| (1..=5).contains(kind)).map(|kind| kind == 5),
            // Types below 32, and among them 19 and 20.
            Codec::Hevc => {
                Some(unit.first()? >> 1 & 0x3f).filter(|kind| *kind < 32).map(|kind| kind == 19 || kind == 20)
            }
        };
        match self.framing {
            Framing::StartCodes => {
                let starts = data.windows(3).enumerate().filter(|(_, bytes)| *bytes == [0, 0, 1]);
                starts.map(|(at, _)| &data[at + 3..]).find_map(kinds).unwrap_or(false)
            }
            Framing::Lengths(size) => with_lengths(data, size).find_map(kinds).unwrap_or(false),
        }
    }
}

/// The units of a packet with lengths of `size` bytes, up to the first that is not whole.
fn with_lengths(mut data: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_at_checked(size)?;
        let length = length.iter().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
        let (unit, rest) = rest.split_at_checked(length)?;
        data = rest;
        Some(unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A description of a track with lengths of four bytes.
    fn description(length: usize) -> Vec<u8> {
        let mut description = vec![0xff; length];
        description[0] = 1;
        description
    }

    #[test]
    fn the_first_part_of_a_picture_decides() {
        let h264 = Refresh::described(Codec::H264, &[0, 0, 0, 1, 0x67]);
        assert_eq!(h264.framing, Framing::StartCodes);
        // Delimiter, parameters, and a part of a picture at which all starts anew.
        assert!(h264.is_in(&[0, 0, 0, 1, 9, 16, 0, 0, 0, 1, 0x67, 1, 0, 0, 1, 0x65, 3]));
        // A recovery point: a message, and an ordinary part of a picture.
        assert!(!h264.is_in(&[0, 0, 0, 1, 6, 6, 1, 0x80, 0, 0, 1, 0x41, 3, 0, 0, 1, 0x65]));
        let hevc = Refresh::described(Codec::Hevc, &[]);
        assert!(hevc.is_in(&[0, 0, 1, 0x40, 1, 7, 0, 0, 1, 0x26, 1]), "type 19");
        assert!(!hevc.is_in(&[0, 0, 1, 0x40, 1, 7, 0, 0, 1, 0x2a, 1]), "type 21 has pictures before it");
    }

    #[test]
    fn lengths_are_followed_as_far_as_they_lead() {
        let h264 = Refresh::described(Codec::H264, &description(8));
        assert_eq!(h264.framing, Framing::Lengths(4));
        assert!(h264.is_in(&[0, 0, 0, 2, 9, 16, 0, 0, 0, 1, 0x65]));
        assert!(!h264.is_in(&[0, 0, 0, 2, 9, 16, 0, 0, 0, 1, 0x61]));
        for broken in [&[][..], &[0, 0], &[0, 0, 0, 9, 0x65], &[0xff, 0xff, 0xff, 0xff, 0x65], &[0, 0, 0, 0]] {
            assert!(!h264.is_in(broken), "{broken:?}");
        }
        assert_eq!(Refresh::described(Codec::Hevc, &description(23)).framing, Framing::Lengths(4));
        assert_eq!(Refresh::described(Codec::Hevc, &description(8)).framing, Framing::StartCodes, "too short for one");
    }
}
