//! Sees where the parameter sets of a track change on the way: another resolution, another encoder.
//!
//! Containers such as MP4 announce it beside a packet; in MPEG-TS and RTP the sets travel inside of keyframes, from
//! where libav's `extract_extradata` gets them.

use std::ptr;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::codec::Id;
use ffmpeg_next::ffi;
use ffmpeg_next::packet::{Mut, Ref};

use super::demux::Packet;
use super::initialise;
use super::parameters::Parameters;

/// Watches one track.
pub struct ParameterSets {
    parameters: Parameters,
    /// Where sets travel inside of keyframes.
    inside: Option<Extractor>,
}

impl ParameterSets {
    /// Watches the track with these parameters.
    pub fn new(parameters: &Parameters) -> ParameterSets {
        initialise();
        let has_start_codes = matches!(parameters.extradata(), [] | [0, 0, 1, ..] | [0, 0, 0, 1, ..]);
        let may_travel = matches!(parameters.id(), Id::H264 | Id::HEVC) && has_start_codes;
        let inside = if may_travel { Extractor::new(parameters) } else { None };
        ParameterSets { parameters: parameters.clone(), inside }
    }

    /// The parameters that hold from this packet on, where they are others than before it.
    pub fn changed_by(&mut self, packet: &Packet) -> Option<Parameters> {
        let found = match (&mut self.inside, packet.new_extradata()) {
            (_, Some(announced)) => Some(announced.to_vec()),
            (Some(extractor), None) if packet.is_key() => extractor.extract(packet),
            _ => None,
        };
        let found = found.filter(|found| found != self.parameters.extradata())?;
        let changed = self.parameters.with_extradata(&found, None);
        let size = picture_size(&changed, packet);
        self.parameters = if size.is_some() { changed.with_extradata(&found, size) } else { changed };
        Some(self.parameters.clone())
    }
}

/// libav's filter that copies parameter sets out of packets.
struct Extractor(*mut ffi::AVBSFContext);

// SAFETY: the context has one owner, and libav keeps nothing of it in thread-local memory.
unsafe impl Send for Extractor {}

impl Extractor {
    fn new(parameters: &Parameters) -> Option<Extractor> {
        // SAFETY: the name is a valid C string; the context is allocated by libav and freed when `extractor` is
        // dropped; the parameters are copied.
        unsafe {
            let filter = ffi::av_bsf_get_by_name(c"extract_extradata".as_ptr());
            let mut context = ptr::null_mut();
            if filter.is_null() || ffi::av_bsf_alloc(filter, &raw mut context) < 0 {
                return None;
            }
            let extractor = Extractor(context);
            let copied = ffi::avcodec_parameters_copy((*context).par_in, parameters.raw());
            (copied >= 0 && ffi::av_bsf_init(context) >= 0).then_some(extractor)
        }
    }

    /// The parameter sets in a packet, if it has any.
    fn extract(&mut self, packet: &Packet) -> Option<Vec<u8>> {
        let mut through = packet.clone();
        let mut found = None;
        // SAFETY: context and packets are valid. What is sent is moved out of `through`, what is received into it, and
        // it frees what it holds when it is dropped.
        unsafe {
            if ffi::av_bsf_send_packet(self.0, through.packet.as_mut_ptr()) < 0 {
                return None;
            }
            while ffi::av_bsf_receive_packet(self.0, through.packet.as_mut_ptr()) >= 0 {
                found = through.new_extradata().map(<[u8]>::to_vec).or(found);
                ffi::av_packet_unref(through.packet.as_mut_ptr());
            }
        }
        found
    }
}

impl Drop for Extractor {
    fn drop(&mut self) {
        // SAFETY: the context was allocated by `av_bsf_alloc` and is freed once.
        unsafe { ffi::av_bsf_free(&raw mut self.0) };
    }
}

/// Width and height in pixels of the picture in a keyframe, as libav's parser reads them out of its parameter sets:
/// nothing is decoded.
fn picture_size(parameters: &Parameters, packet: &Packet) -> Option<(u32, u32)> {
    let mut context = ffmpeg::codec::Context::new();
    let mut size = (0, 0);
    // SAFETY: the context and the parser are valid until they are freed; the parser reads `data`, which has libav's
    // padding behind it as packets have, and answers a pointer into it that is not used.
    unsafe {
        if ffi::avcodec_parameters_to_context(context.as_mut_ptr(), parameters.raw()) < 0 {
            return None;
        }
        let parser = ffi::av_parser_init(parameters.raw().codec_id as i32);
        if parser.is_null() {
            return None;
        }
        (*parser).flags |= ffi::PARSER_FLAG_COMPLETE_FRAMES;
        let (mut out, mut length) = (ptr::null_mut(), 0);
        let raw = packet.packet.as_ptr();
        ffi::av_parser_parse2(
            parser,
            context.as_mut_ptr(),
            &raw mut out,
            &raw mut length,
            (*raw).data,
            (*raw).size,
            ffi::AV_NOPTS_VALUE,
            ffi::AV_NOPTS_VALUE,
            0,
        );
        if (*parser).width > 0 && (*parser).height > 0 {
            size = ((*parser).width, (*parser).height);
        }
        ffi::av_parser_close(parser);
    }
    let (width, height) = (u32::try_from(size.0).ok()?, u32::try_from(size.1).ok()?);
    (width > 0 && height > 0).then_some((width, height))
}
