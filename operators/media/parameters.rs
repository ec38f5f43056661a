//! What a muxer must know of a track beside its packets: codec, extradata, sizes, how it is turned.

use std::fmt;
use std::sync::Arc;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::ffi;

use super::initialise;

/// The codec parameters of one track, shared and never changed. Two are equal where packets of one can follow packets
/// of the other in one file.
#[derive(Clone)]
pub struct Parameters(Arc<Inner>);

struct Inner {
    codec: ffmpeg::codec::Parameters,
    /// How its pictures are turned, as libav keeps it.
    display_matrix: Option<Vec<u8>>,
    /// Frames a second, as numerator and denominator; zero where the container says nothing.
    frame_rate: (i32, i32),
    /// Width by height of a pixel; zero where the container says nothing.
    pixel: (i32, i32),
}

// SAFETY: the parameters are owned, and nothing changes them after `Parameters` was made, so they may be read from any
// thread.
unsafe impl Sync for Inner {}

impl Parameters {
    /// The parameters of a track of an open input.
    pub(super) fn of(stream: &ffmpeg::Stream<'_>) -> Parameters {
        initialise();
        let matrix = stream.side_data().find(|data| data.kind() == ffmpeg::packet::side_data::Type::DisplayMatrix);
        let rate = stream.avg_frame_rate();
        // SAFETY: the stream is valid for as long as it is borrowed; only a plain field is read.
        let pixel = unsafe { (*stream.as_ptr()).sample_aspect_ratio };
        Parameters(Arc::new(Inner {
            codec: stream.parameters().clone(),
            display_matrix: matrix.map(|matrix| matrix.data().to_vec()),
            frame_rate: (rate.numerator(), rate.denominator()),
            pixel: (pixel.num, pixel.den),
        }))
    }

    /// The same with other parameter sets and, where it is known, another size in pixels.
    pub(super) fn with_extradata(&self, extradata: &[u8], size: Option<(u32, u32)>) -> Parameters {
        let mut codec = self.0.codec.clone();
        // SAFETY: the parameters are owned by `codec` alone; their extradata is allocated by libav's allocator, with
        // the padding that it wants, and what was there is freed by the same.
        unsafe {
            let raw = codec.as_mut_ptr();
            let room = ffi::av_mallocz(extradata.len() + ffi::AV_INPUT_BUFFER_PADDING_SIZE as usize).cast::<u8>();
            if !room.is_null() {
                room.copy_from_nonoverlapping(extradata.as_ptr(), extradata.len());
                ffi::av_freep((&raw mut (*raw).extradata).cast());
                (*raw).extradata = room;
                (*raw).extradata_size = i32::try_from(extradata.len()).unwrap_or(0);
            }
            if let Some((width, height)) = size {
                (*raw).width = i32::try_from(width).unwrap_or(0);
                (*raw).height = i32::try_from(height).unwrap_or(0);
            }
        }
        Parameters(Arc::new(Inner {
            codec,
            display_matrix: self.0.display_matrix.clone(),
            frame_rate: self.0.frame_rate,
            pixel: self.0.pixel,
        }))
    }

    /// The same track, coded in another way.
    pub(super) fn with_codec(&self, codec: ffmpeg::codec::Parameters) -> Parameters {
        let Inner { display_matrix, frame_rate, pixel, .. } = &*self.0;
        let (display_matrix, frame_rate, pixel) = (display_matrix.clone(), *frame_rate, *pixel);
        Parameters(Arc::new(Inner { codec, display_matrix, frame_rate, pixel }))
    }

    /// What a decoder must know.
    pub(super) fn codec(&self) -> ffmpeg::codec::Parameters {
        self.0.codec.clone()
    }

    /// Whether the samples of its pictures are as browsers take them of H.264: eight bits, chroma halved in both
    /// directions. What is not known counts as usual.
    pub(crate) fn is_usual(&self) -> bool {
        /// High 10, High 4:2:2 and High 4:4:4 Predictive, as the standard numbers them.
        const UNUSUAL: [i32; 3] = [110, 122, 244];
        let raw = self.raw();
        let usual = [ffi::AVPixelFormat::AV_PIX_FMT_YUV420P, ffi::AVPixelFormat::AV_PIX_FMT_YUVJ420P];
        let is_usual = raw.format < 0 || usual.iter().any(|usual| *usual as i32 == raw.format);
        is_usual && !UNUSUAL.contains(&raw.profile)
    }

    pub(super) fn raw(&self) -> &ffi::AVCodecParameters {
        // SAFETY: the pointer is valid for as long as `self`, and nothing writes behind it.
        unsafe { &*self.0.codec.as_ptr() }
    }

    pub(super) fn id(&self) -> ffmpeg::codec::Id {
        self.0.codec.id()
    }

    pub(super) fn display_matrix(&self) -> Option<&[u8]> {
        self.0.display_matrix.as_deref()
    }

    pub(super) fn frame_rate(&self) -> (i32, i32) {
        self.0.frame_rate
    }

    pub(super) fn pixel(&self) -> (i32, i32) {
        self.0.pixel
    }

    /// What the codec wants to know before the first packet, such as parameter sets.
    pub(super) fn extradata(&self) -> &[u8] {
        let raw = self.raw();
        let length = usize::try_from(raw.extradata_size).unwrap_or(0);
        if raw.extradata.is_null() || length == 0 {
            return &[];
        }
        // SAFETY: libav keeps `extradata_size` bytes there, and nothing writes them while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(raw.extradata, length) }
    }

    /// How many samples a packet of so many bytes has, of codecs of sound that say it.
    pub(crate) fn samples(&self, bytes: u64) -> Option<i64> {
        let bytes = i32::try_from(bytes).ok()?;
        // SAFETY: the parameters are valid for as long as `self`; libav reads them and no more, whatever its signature
        // says.
        let samples = unsafe { ffi::av_get_audio_frame_duration2(self.0.codec.as_ptr().cast_mut(), bytes) };
        Some(i64::from(samples)).filter(|samples| *samples > 0)
    }

    /// Whether it is known how large its pictures are: without parameter sets it is not.
    pub(crate) fn is_sized(&self) -> bool {
        self.raw().width > 0 && self.raw().height > 0
    }

    /// How many pictures are held back until they can be shown in order.
    pub(crate) fn delay(&self) -> usize {
        usize::try_from(self.raw().video_delay).unwrap_or(0)
    }
}

impl PartialEq for Parameters {
    fn eq(&self, other: &Parameters) -> bool {
        if Arc::ptr_eq(&self.0, &other.0) {
            return true;
        }
        let (one, two) = (self.raw(), other.raw());
        let plain = |raw: &ffi::AVCodecParameters| {
            (raw.codec_id, raw.width, raw.height, raw.sample_rate, raw.ch_layout.nb_channels, raw.block_align)
        };
        plain(one) == plain(two)
            && self.extradata() == other.extradata()
            && self.0.display_matrix == other.0.display_matrix
    }
}

impl fmt::Debug for Parameters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Parameters({}, {} bytes)", self.id().name(), self.extradata().len())
    }
}
