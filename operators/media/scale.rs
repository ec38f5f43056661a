//! Converts pictures whose pixel format is none of [`PixelFormat`], at their own size, with swscale.

use ffmpeg_next as ffmpeg;
use ffmpeg_next::ffi;
use ffmpeg_next::software::scaling;

use crate::error::ItemError;
use crate::item::PixelFormat;

/// The picture in the nearest of our formats. Matrix and range stay what they are.
pub(super) fn convert(video: &ffmpeg::frame::Video) -> Result<(ffmpeg::frame::Video, PixelFormat), ItemError> {
    let source = video.format();
    let (pixel, format) = target(source);
    let (width, height) = (video.width(), video.height());
    let failed = |error: ffmpeg::Error| {
        let name = source.descriptor().map_or("unknown", |descriptor| descriptor.name());
        ItemError::Failed(format!("a picture of {width}x{height} pixels cannot be converted from {name}: {error}"))
    };
    // A context is not `Send`, so it is made where it is used; formats that need it are rare.
    let flags = scaling::Flags::BILINEAR | scaling::Flags::ACCURATE_RND;
    let mut context = scaling::Context::get(source, width, height, pixel, width, height, flags).map_err(failed)?;
    // Allocated here: the wrapper would not notice that there is no memory.
    let mut converted = ffmpeg::frame::Video::empty();
    converted.set_format(pixel);
    converted.set_width(width);
    converted.set_height(height);
    // SAFETY: the frame is empty but for format and size, as `av_frame_get_buffer` asks for; its answer is checked.
    let allocated = unsafe { ffi::av_frame_get_buffer(converted.as_mut_ptr(), 0) };
    if allocated < 0 {
        return Err(failed(ffmpeg::Error::from(allocated)));
    }
    context.run(video, &mut converted).map_err(failed)?;
    Ok((converted, format))
}

/// What `source` is converted to: RGB stays RGB (a palette too), YUV keeps its subsampling where we have it.
fn target(source: ffmpeg::format::Pixel) -> (ffmpeg::format::Pixel, PixelFormat) {
    use ffmpeg::format::Pixel;
    let rgb = (Pixel::RGB24, PixelFormat::Rgb24);
    let Some(descriptor) = source.descriptor() else { return rgb };
    // SAFETY: descriptors are static tables of libavutil; only plain fields are read.
    let (flags, components) = unsafe { ((*descriptor.as_ptr()).flags, (*descriptor.as_ptr()).nb_components) };
    let is = |flag: i32| flags & u64::from(flag.unsigned_abs()) != 0;
    if is(ffi::AV_PIX_FMT_FLAG_RGB) || is(ffi::AV_PIX_FMT_FLAG_PAL) || is(ffi::AV_PIX_FMT_FLAG_BAYER) {
        return rgb;
    }
    if components < 3 {
        return (Pixel::GRAY8, PixelFormat::Gray8);
    }
    match (descriptor.log2_chroma_w(), descriptor.log2_chroma_h()) {
        // swscale takes their full range from the format's name, and would compress it for a name without J.
        _ if matches!(source, Pixel::YUVJ440P | Pixel::YUVJ411P) => (Pixel::YUVJ444P, PixelFormat::Yuv444p),
        (1, 1) => (Pixel::YUV420P, PixelFormat::Yuv420p),
        (1, 0) => (Pixel::YUV422P, PixelFormat::Yuv422p),
        _ => (Pixel::YUV444P, PixelFormat::Yuv444p),
    }
}
