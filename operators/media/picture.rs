//! A decoded picture as a frame: the same memory, held alive by a reference to libav's buffers.

use ffmpeg_next as ffmpeg;
use ffmpeg_next::ffi;

use super::decode::Picture;
use super::scale;
use crate::error::ItemError;
use crate::item::{ColorMatrix, ColorRange, Frame, PictureBuffer, PixelFormat};

/// Planes of a picture that libav owns.
struct AvPicture {
    video: ffmpeg::frame::Video,
    /// Length in bytes and bytes a row; a plane that does not exist has none.
    planes: [(usize, usize); 3],
}

impl PictureBuffer for AvPicture {
    fn plane(&self, index: usize) -> &[u8] {
        match self.planes.get(index) {
            None | Some((0, _)) => &[],
            Some((length, _)) => {
                // SAFETY: `measure` checked that these bytes lie inside the buffer that `video` holds a reference
                // to; a decoder does not write to a picture that it has given out.
                unsafe { std::slice::from_raw_parts((*self.video.as_ptr()).data[index], *length) }
            }
        }
    }

    fn stride(&self, index: usize) -> usize {
        self.planes.get(index).map_or(0, |(_, stride)| *stride)
    }
}

/// The picture as a frame with presentation index `index`. Formats that [`PixelFormat`] has not are converted: to RGB
/// what is RGB or has a palette, to the nearest YUV with eight bits what is YUV.
pub fn into_frame(picture: Picture, index: Option<u64>) -> Result<Frame, ItemError> {
    let video = picture.video;
    let (matrix, range) = colour(&video);
    if let Some(format) = native(video.format())
        && let Some(planes) = measure(&video, format)
    {
        return Ok(frame(AvPicture { video, planes }, format, matrix, range, index));
    }
    let (video, format) = scale::convert(&video)?;
    let planes = measure(&video, format)
        .ok_or_else(|| ItemError::Failed("libav converted a picture into an unusable layout".to_owned()))?;
    let range = if format == PixelFormat::Rgb24 { ColorRange::Full } else { range };
    Ok(frame(AvPicture { video, planes }, format, matrix, range, index))
}

fn frame(buffer: AvPicture, format: PixelFormat, matrix: ColorMatrix, range: ColorRange, index: Option<u64>) -> Frame {
    let (width, height) = (buffer.video.width(), buffer.video.height());
    Frame { width, height, format, matrix, range, buffer: Box::new(buffer), index, truth: None }
}

/// The format of ours that is laid out in the same way.
fn native(pixel: ffmpeg::format::Pixel) -> Option<PixelFormat> {
    use ffmpeg::format::Pixel;
    Some(match pixel {
        Pixel::YUV420P | Pixel::YUVJ420P => PixelFormat::Yuv420p,
        Pixel::YUV422P | Pixel::YUVJ422P => PixelFormat::Yuv422p,
        Pixel::YUV444P | Pixel::YUVJ444P => PixelFormat::Yuv444p,
        Pixel::NV12 => PixelFormat::Nv12,
        Pixel::GRAY8 => PixelFormat::Gray8,
        Pixel::RGB24 => PixelFormat::Rgb24,
        _ => return None,
    })
}

/// Matrix and range, where the stream says nothing as swscale assumes: BT.601; limited for YUV, full for grey.
fn colour(video: &ffmpeg::frame::Video) -> (ColorMatrix, ColorRange) {
    use ffmpeg::color::{Range, Space};
    use ffmpeg::format::Pixel;
    let matrix = match video.color_space() {
        // BT.2020 and SMPTE 240M lie nearer to BT.709 than to BT.601.
        Space::BT709 | Space::BT2020NCL | Space::BT2020CL | Space::SMPTE240M => ColorMatrix::Bt709,
        _ => ColorMatrix::Bt601,
    };
    let full_by_format = matches!(
        video.format(),
        Pixel::YUVJ420P
            | Pixel::YUVJ422P
            | Pixel::YUVJ444P
            | Pixel::YUVJ440P
            | Pixel::YUVJ411P
            | Pixel::RGB24
            | Pixel::GRAY8
            | Pixel::GRAY10LE
            | Pixel::GRAY12LE
            | Pixel::GRAY16LE
            | Pixel::GRAY16BE
    );
    let range = match video.color_range() {
        Range::JPEG => ColorRange::Full,
        Range::MPEG => ColorRange::Limited,
        Range::Unspecified if full_by_format => ColorRange::Full,
        Range::Unspecified => ColorRange::Limited,
    };
    (matrix, range)
}

/// Length and stride of each plane of `format`; `None` where the picture is not laid out forwards in memory, or
/// smaller than its size claims.
fn measure(video: &ffmpeg::frame::Video, format: PixelFormat) -> Option<[(usize, usize); 3]> {
    let mut planes = [(0, 0); 3];
    for (index, plane) in planes.iter_mut().enumerate().take(format.planes()) {
        let (row, rows) = format.plane_size(index, video.width(), video.height());
        // SAFETY: `video` is a valid frame; `av_frame_get_plane_buffer` only looks up which buffer holds the plane.
        let (start, stride, buffer) = unsafe {
            let raw = video.as_ptr();
            let buffer = ffi::av_frame_get_plane_buffer(raw.cast_mut(), i32::try_from(index).ok()?);
            ((*raw).data[index], usize::try_from((*raw).linesize[index]).ok()?, buffer.as_ref()?)
        };
        let size = buffer.size;
        let offset = (start as usize).checked_sub(buffer.data as usize)?;
        let available = size.checked_sub(offset)?;
        let needed = stride.checked_mul(rows.checked_sub(1)?)?.checked_add(row)?;
        if row > stride || needed > available {
            return None;
        }
        *plane = ((stride * rows).min(available), stride);
    }
    Some(planes)
}

/// Bytes of a picture in memory, by what is known before the first is decoded; `None` where nothing is. Rounded up
/// as decoders pad their rows, so that a picture never takes more.
pub fn expected_bytes(parameters: &ffmpeg::codec::Parameters) -> Option<u64> {
    // SAFETY: the parameters are valid for as long as `parameters`; only plain fields are read.
    let raw = unsafe { &*parameters.as_ptr() };
    let (width, height) = (u32::try_from(raw.width).ok()?, u32::try_from(raw.height).ok()?);
    if width == 0 || height == 0 {
        return None;
    }
    // Rows of planes of half the width are padded to a multiple of 64 bytes too, hence 128 for the whole width.
    let padded = width.checked_add(64)?.checked_next_multiple_of(128)?;
    let format = match raw.format {
        value if value == ffi::AVPixelFormat::AV_PIX_FMT_YUV420P as i32 => PixelFormat::Yuv420p,
        value if value == ffi::AVPixelFormat::AV_PIX_FMT_YUVJ420P as i32 => PixelFormat::Yuv420p,
        value if value == ffi::AVPixelFormat::AV_PIX_FMT_NV12 as i32 => PixelFormat::Nv12,
        value if value == ffi::AVPixelFormat::AV_PIX_FMT_YUV422P as i32 => PixelFormat::Yuv422p,
        value if value == ffi::AVPixelFormat::AV_PIX_FMT_YUVJ422P as i32 => PixelFormat::Yuv422p,
        value if value == ffi::AVPixelFormat::AV_PIX_FMT_GRAY8 as i32 => PixelFormat::Gray8,
        // Everything else has, or is converted to, at most three bytes a pixel.
        _ => PixelFormat::Yuv444p,
    };
    Some(format.bytes(padded, height))
}
