//! Turns packets of one video track into pictures.

use ffmpeg_next as ffmpeg;
use ffmpeg_next::ffi;

use super::demux::Packet;
use super::initialise;
use super::parameters::Parameters;
use crate::time::TimeBase;

/// Larger pictures are refused: 16384 x 16384 in memory is 400 MB, and such sizes come from damaged headers.
const MOST_PIXELS: u64 = 16_384 * 16_384;

/// Why a decoder could not be made, or a packet not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("there is no decoder for {0}")]
    NoDecoder(&'static str),
    /// libav's words.
    #[error("{0}")]
    Failed(String),
}

impl From<ffmpeg::Error> for DecodeError {
    fn from(error: ffmpeg::Error) -> DecodeError {
        DecodeError::Failed(error.to_string())
    }
}

/// What may be left undecoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skippable {
    Nothing,
    /// Pictures that no other refers to; the decoder itself knows which.
    NonReference,
    /// Every picture stands alone: packets need not even be sent.
    Everything,
}

/// A decoded picture, with what is known of its packet.
pub struct Picture {
    pub(super) video: ffmpeg::frame::Video,
}

impl Picture {
    /// The ordinal of its packet, as given to [`Decoder::send`].
    pub fn ordinal(&self) -> Option<i64> {
        self.video.pts()
    }

    /// Decoding time of the packet that pushed it out, in native ticks: its place in time where its own stamp is
    /// missing.
    pub fn dts(&self) -> Option<i64> {
        Some(self.video.packet().dts).filter(|dts| *dts != ffi::AV_NOPTS_VALUE)
    }

    /// Visible size in pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.video.width(), self.video.height())
    }

    /// Whether it is made of two fields.
    pub fn is_interlaced(&self) -> bool {
        self.video.is_interlaced()
    }

    /// Whether parts of it could not be decoded and were concealed.
    pub fn is_damaged(&self) -> bool {
        self.video.is_corrupt() || self.video.has_decode_errors()
    }
}

/// A video decoder. Send a packet, then receive until there is nothing more, then send the next one: so each packet
/// is decoded under its own `spare`.
pub struct Decoder {
    decoder: ffmpeg::decoder::Opened,
    id: ffmpeg::codec::Id,
}

impl Decoder {
    /// Opens the decoder for `parameters`. With one thread nothing is delayed but by the reordering of the codec;
    /// each further thread delays by one picture.
    pub fn open(parameters: ffmpeg::codec::Parameters, base: TimeBase, threads: usize) -> Result<Decoder, DecodeError> {
        initialise();
        let id = parameters.id();
        let codec = ffmpeg::decoder::find(id).ok_or(DecodeError::NoDecoder(id.name()))?;
        let mut context = ffmpeg::codec::Context::from_parameters(parameters)?.decoder();
        let part = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        context.set_packet_time_base(ffmpeg::Rational(part(base.numerator()), part(base.denominator())));
        let mut options = ffmpeg::Dictionary::new();
        options.set("threads", &threads.max(1).to_string());
        options.set("thread_type", "frame+slice");
        options.set("max_pixels", &MOST_PIXELS.to_string());
        // Cropping to the pixel, not only to what keeps planes aligned: nothing here needs alignment.
        options.set("flags", "+unaligned");
        // `open_with` cannot find the codec of a context that was made from parameters.
        let decoder = context.open_as_with(codec, options)?;
        Ok(Decoder { decoder, id })
    }

    /// Opens the decoder of a track that was demuxed elsewhere.
    ///
    /// # Errors
    /// As [`Decoder::open`].
    pub fn of_track(parameters: &Parameters, base: TimeBase, threads: usize) -> Result<Decoder, DecodeError> {
        Decoder::open(parameters.codec(), base, threads)
    }

    /// Which packets may be left undecoded without changing another picture. Where packets may hold hidden or several
    /// pictures, what was left out could not be counted, so everything is decoded.
    pub fn skippable(&self) -> Skippable {
        use ffmpeg::codec::Id;
        // SAFETY: the context is valid and owned; only plain fields are read.
        let (order, format) = unsafe { ((*self.decoder.as_ptr()).field_order, (*self.decoder.as_ptr()).pix_fmt) };
        if !matches!(order, ffi::AVFieldOrder::AV_FIELD_PROGRESSIVE | ffi::AVFieldOrder::AV_FIELD_UNKNOWN) {
            return Skippable::Nothing;
        }
        match self.id {
            Id::H264 | Id::HEVC | Id::MPEG1VIDEO | Id::MPEG2VIDEO => Skippable::NonReference,
            // A palette stays valid for later packets.
            Id::RAWVIDEO if format == ffi::AVPixelFormat::AV_PIX_FMT_PAL8 => Skippable::Nothing,
            Id::RAWVIDEO | Id::MJPEG | Id::PRORES | Id::DNXHD | Id::DVVIDEO | Id::PNG => Skippable::Everything,
            _ => Skippable::Nothing,
        }
    }

    /// Sends one packet. `ordinal` comes back with its picture. `spare`: leave its picture out if no other needs it.
    pub fn send(&mut self, mut packet: Packet, ordinal: i64, spare: bool) -> Result<(), DecodeError> {
        // libav copies `skip_frame` to the thread that decodes the packet, so it holds for this packet alone.
        self.decoder.skip_frame(if spare { ffmpeg::Discard::NonReference } else { ffmpeg::Discard::Default });
        // The decoder hands stamps through and does not interpret them: the ordinal travels in their place.
        packet.packet.set_pts(Some(ordinal));
        Ok(self.decoder.send_packet(&packet.packet)?)
    }

    /// Sends the bytes of one packet that was demuxed elsewhere. `ordinal` comes back with its picture.
    pub fn send_bytes(&mut self, bytes: &[u8], is_key: bool, ordinal: i64) -> Result<(), DecodeError> {
        // A copy: libav wants to read a little beyond the end.
        let mut packet = ffmpeg::Packet::copy(bytes);
        packet.set_pts(Some(ordinal));
        if is_key {
            packet.set_flags(ffmpeg::packet::Flags::KEY);
        }
        Ok(self.decoder.send_packet(&packet)?)
    }

    /// Nothing more comes: what is still inside comes out.
    pub fn send_end(&mut self) -> Result<(), DecodeError> {
        self.decoder.skip_frame(ffmpeg::Discard::Default);
        Ok(self.decoder.send_eof()?)
    }

    /// The next picture in presentation order; `None` when it needs more packets, or has no more.
    pub fn receive(&mut self) -> Result<Option<Picture>, DecodeError> {
        let mut video = ffmpeg::frame::Video::empty();
        match self.decoder.receive_frame(&mut video) {
            Ok(()) => Ok(Some(Picture { video })),
            Err(ffmpeg::Error::Eof) => Ok(None),
            Err(ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets everything that was sent, so that another pass over the track can start.
    pub fn flush(&mut self) {
        self.decoder.flush();
    }
}
