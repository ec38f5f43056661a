//! AAC as broadcasts carry it, with an ADTS header before each frame, made into AAC as MP4 keeps it: frames without
//! headers, and their configuration once.

use std::ffi::c_int;
use std::ptr;

use bytes::Bytes;
use ffmpeg_next as ffmpeg;
use ffmpeg_next::codec::Id;
use ffmpeg_next::ffi;

use super::initialise;
use super::parameters::Parameters;

/// libav's filter for one track.
pub(super) struct AdtsFilter {
    context: *mut ffi::AVBSFContext,
}

// SAFETY: the context is owned by the filter and used by one thread at a time.
unsafe impl Send for AdtsFilter {}

/// A frame without its header.
pub(super) struct Bare {
    pub data: Bytes,
    /// What the header said, where this is the first frame.
    pub configuration: Option<Vec<u8>>,
}

impl AdtsFilter {
    /// A filter for a track with these parameters; `None` where its frames have no headers: containers that say how the
    /// sound is coded put none before the frames.
    ///
    /// # Errors
    /// In libav's words.
    pub fn of(parameters: &Parameters) -> Result<Option<AdtsFilter>, String> {
        initialise();
        if parameters.id() != Id::AAC || !parameters.extradata().is_empty() {
            return Ok(None);
        }
        let mut filter = AdtsFilter { context: ptr::null_mut() };
        // SAFETY: the name is a valid C string, and what comes back a constant of libav, which is looked at before it is
        // used; the context is allocated here, gets a copy of the parameters, and is freed when `filter` is dropped.
        unsafe {
            let kind = ffi::av_bsf_get_by_name(c"aac_adtstoasc".as_ptr());
            if kind.is_null() {
                return Err("this FFmpeg is built without `aac_adtstoasc`".to_owned());
            }
            checked(ffi::av_bsf_alloc(kind, &raw mut filter.context))?;
            checked(ffi::avcodec_parameters_copy((*filter.context).par_in, parameters.raw()))?;
            (*filter.context).time_base_in = ffi::AVRational { num: 1, den: 1000 };
            checked(ffi::av_bsf_init(filter.context))?;
        }
        Ok(Some(filter))
    }

    /// Takes the header off.
    ///
    /// # Errors
    /// In libav's words, where there is none or it is broken.
    pub fn strip(&mut self, data: &Bytes) -> Result<Bare, String> {
        use ffmpeg::packet::Mut;
        let mut packet = ffmpeg::Packet::copy(data);
        // SAFETY: the packet owns its bytes; the filter takes them over and hands them back in the same packet, whose
        // side data lives as long as the packet and is as long as libav says.
        unsafe {
            let raw = packet.as_mut_ptr();
            checked(ffi::av_bsf_send_packet(self.context, raw))?;
            checked(ffi::av_bsf_receive_packet(self.context, raw))?;
            let mut length = 0;
            let kind = ffi::AVPacketSideDataType::AV_PKT_DATA_NEW_EXTRADATA;
            let found = ffi::av_packet_get_side_data(raw, kind, &raw mut length);
            let configuration =
                (!found.is_null() && length > 0).then(|| std::slice::from_raw_parts(found, length).to_vec());
            Ok(Bare { data: Bytes::copy_from_slice(packet.data().unwrap_or_default()), configuration })
        }
    }
}

impl Drop for AdtsFilter {
    fn drop(&mut self) {
        // SAFETY: the context is null or was allocated in `of`, and is freed once.
        unsafe { ffi::av_bsf_free(&raw mut self.context) };
    }
}

/// The configuration that the headers of a track's frames will give (ISO/IEC 14496-3, 1.6.2.1), as far as its parameters tell
/// it: of plain profiles, of which the header and the decoder say the same.
pub(super) fn configuration(parameters: &Parameters) -> Option<[u8; 2]> {
    let raw = parameters.raw();
    configured(raw.profile, raw.sample_rate, raw.ch_layout.nb_channels)
}

fn configured(profile: c_int, rate: c_int, channels: c_int) -> Option<[u8; 2]> {
    // Main, LC, SSR and LTP; of others the header tells less than the decoder has found out.
    let kind = u16::try_from(profile).ok().filter(|profile| *profile <= 3)? + 1;
    let rate = u16::try_from(RATES.iter().position(|known| *known == rate)?).ok()?;
    let channels = match channels {
        1..=6 => u16::try_from(channels).ok()?,
        8 => 7,
        _ => return None,
    };
    Some((kind << 11 | rate << 7 | channels << 3).to_be_bytes())
}

/// Sample rates by their index in headers.
const RATES: [c_int; 13] =
    [96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8000, 7350];

fn checked(answer: c_int) -> Result<(), String> {
    if answer < 0 { Err(ffmpeg::Error::from(answer).to_string()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As FFmpeg's own filter writes them.
    #[test]
    fn plain_profiles_are_known_before_the_first_frame() {
        for (profile, rate, channels, expected) in [
            (1, 44_100, 1, Some([0x12, 0x08])),
            (1, 48_000, 2, Some([0x11, 0x90])),
            (0, 8000, 6, Some([0x0d, 0xb0])),
            (1, 96_000, 8, Some([0x10, 0x38])),
            // HE-AAC, nothing known, no such rate, and more channels than there are names for.
            (4, 48_000, 2, None),
            (-99, 48_000, 2, None),
            (1, 47_000, 2, None),
            (1, 48_000, 7, None),
            (1, 0, 0, None),
        ] {
            assert_eq!(configured(profile, rate, channels), expected, "{profile} {rate} {channels}");
        }
    }
}
