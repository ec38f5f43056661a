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

fn checked(answer: c_int) -> Result<(), String> {
    if answer < 0 { Err(ffmpeg::Error::from(answer).to_string()) } else { Ok(()) }
}
