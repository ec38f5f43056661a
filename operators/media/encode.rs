//! Encodes decoded pictures as H.264, with libx264: fast, without delay, and with keyframes where they are asked for.

use bytes::Bytes;
use ffmpeg_next as ffmpeg;
use ffmpeg_next::software::scaling;

use super::decode::Picture;
use super::initialise;
use super::parameters::Parameters;
use super::scale;
use crate::time::TimeBase;

/// The encoder's name in libavcodec.
const NAME: &str = "libx264";
/// Pictures from keyframe to keyframe, at most, where none are asked for.
const LONGEST_GROUP: u32 = 3600;
/// Frames a second that are assumed where an input claims none, or something impossible. The rate control looks at it.
const USUAL_RATE: (i32, i32) = (25, 1);

/// Why a picture was not encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("libavcodec has no encoder `{0}` on this machine")]
    NoEncoder(&'static str),
    /// libav's words.
    #[error("{0}")]
    Failed(String),
}

impl From<ffmpeg::Error> for EncodeError {
    fn from(error: ffmpeg::Error) -> EncodeError {
        EncodeError::Failed(error.to_string())
    }
}

/// Looks whether pictures can be encoded at all.
///
/// # Errors
/// Where libavcodec was built without the encoder.
pub fn is_there() -> Result<(), EncodeError> {
    find(NAME).map(|_| ())
}

fn find(name: &'static str) -> Result<ffmpeg::Codec, EncodeError> {
    initialise();
    ffmpeg::encoder::find_by_name(name).ok_or(EncodeError::NoEncoder(name))
}

/// A picture as H.264.
pub struct Encoded {
    pub data: Bytes,
    pub is_key: bool,
}

/// What of pictures must stay the same for one encoder to take them.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Form {
    /// Even: H.264 with halved chroma knows no others.
    width: u32,
    height: u32,
    pixel: (i32, i32),
    space: ffmpeg::color::Space,
    range: ffmpeg::color::Range,
    primaries: ffmpeg::color::Primaries,
    transfer: ffmpeg::color::TransferCharacteristic,
}

impl Form {
    fn of(video: &ffmpeg::frame::Video) -> Form {
        use ffmpeg::color::{Range, Space};
        let aspect = video.aspect_ratio();
        // What RGB becomes on the way, and what is full by the name of its format ([`scale::to_yuv420p`]).
        let (space, range) = match (video.color_space(), video.color_range()) {
            (Space::RGB, _) => (Space::BT470BG, Range::MPEG),
            (space, _) if scale::is_full_by_name(video.format()) => (space, Range::MPEG),
            other => other,
        };
        Form {
            width: video.width() & !1,
            height: video.height() & !1,
            pixel: (aspect.numerator(), aspect.denominator()),
            space,
            range,
            primaries: video.color_primaries(),
            transfer: video.color_transfer_characteristic(),
        }
    }
}

/// An encoder for pictures of one form. What is sent comes out at once and in the same order.
pub struct Encoder {
    encoder: ffmpeg::encoder::video::Encoder,
    form: Form,
    /// For pictures of other formats; made with the first one.
    scaler: Option<scaling::Context>,
}

impl Encoder {
    /// Opens an encoder for pictures such as `picture`, whose times are ticks of `base`. `like` says what is known of
    /// their track.
    ///
    /// # Errors
    /// Where there is no encoder, or it refuses the picture's size.
    pub fn open(picture: &Picture, base: TimeBase, like: &Parameters, threads: usize) -> Result<Encoder, EncodeError> {
        let codec = find(NAME)?;
        let form = Form::of(&picture.video);
        let mut video = ffmpeg::codec::Context::new_with_codec(codec).encoder().video()?;
        video.set_width(form.width);
        video.set_height(form.height);
        video.set_format(ffmpeg::format::Pixel::YUV420P);
        video.set_aspect_ratio(form.pixel);
        video.set_colorspace(form.space);
        video.set_color_range(form.range);
        video.set_color_primaries(form.primaries);
        video.set_color_transfer_characteristic(form.transfer);
        let part = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        video.set_time_base((part(base.numerator()), part(base.denominator())));
        let (numerator, denominator) = like.frame_rate();
        let is_possible = numerator > 0 && denominator > 0 && numerator / denominator <= 1000;
        video.set_frame_rate(Some(if is_possible { (numerator, denominator) } else { USUAL_RATE }));
        video.set_gop(LONGEST_GROUP);
        // Parameter sets beside the packets, as MP4 wants them.
        video.set_flags(ffmpeg::codec::Flags::GLOBAL_HEADER);
        let mut options = ffmpeg::Dictionary::new();
        options.set("preset", "ultrafast");
        options.set("tune", "zerolatency");
        options.set("forced-idr", "1");
        options.set("threads", &threads.max(1).to_string());
        let encoder = video.open_as_with(codec, options)?;
        Ok(Encoder { encoder, form, scaler: None })
    }

    /// Whether it takes this picture.
    pub fn fits(&self, picture: &Picture) -> bool {
        Form::of(&picture.video) == self.form
    }

    /// What a muxer must know of what comes out, turned and shown as `like` is.
    pub fn parameters(&self, like: &Parameters) -> Parameters {
        like.with_codec(ffmpeg::codec::Parameters::from(&self.encoder))
    }

    /// Width and height in pixels of what comes out.
    pub fn size(&self) -> (u32, u32) {
        (self.form.width, self.form.height)
    }

    /// Sends a picture that is shown at `pts`, which is later than that of the one before. `is_key`: decoding may begin
    /// with it.
    ///
    /// # Errors
    /// Where it cannot be converted, or libx264 refuses it.
    pub fn send(&mut self, picture: Picture, pts: i64, is_key: bool) -> Result<(), EncodeError> {
        let mut video = scale::to_yuv420p(picture.video, &mut self.scaler).map_err(EncodeError::Failed)?;
        // The last column or row of an odd size is left out.
        video.set_width(self.form.width);
        video.set_height(self.form.height);
        video.set_pts(Some(pts));
        use ffmpeg::picture::Type;
        video.set_kind(if is_key { Type::I } else { Type::None });
        Ok(self.encoder.send_frame(&video)?)
    }

    /// Nothing more comes: what is still inside comes out.
    ///
    /// # Errors
    /// libav's.
    pub fn send_end(&mut self) -> Result<(), EncodeError> {
        Ok(self.encoder.send_eof()?)
    }

    /// The next picture that is encoded; `None` where there is none.
    ///
    /// # Errors
    /// libav's.
    pub fn receive(&mut self) -> Result<Option<Encoded>, EncodeError> {
        let mut packet = ffmpeg::Packet::empty();
        match self.encoder.receive_packet(&mut packet) {
            Ok(()) => {
                let data = Bytes::copy_from_slice(packet.data().unwrap_or_default());
                Ok(Some(Encoded { data, is_key: packet.is_key() }))
            }
            Err(ffmpeg::Error::Eof | ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoder_that_is_not_there_is_named() {
        assert_eq!(is_there(), Ok(()), "Debian's libavcodec has it");
        let error = find("libx999").err();
        assert_eq!(
            error.as_ref().map(ToString::to_string).as_deref(),
            Some("libavcodec has no encoder `libx999` on this machine")
        );
    }
}
