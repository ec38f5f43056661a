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
    let mut context = context(source, pixel, (width, height)).map_err(failed)?;
    let converted = run(&mut context, video, pixel).map_err(failed)?;
    Ok((converted, format))
}

/// The picture as encoders and browsers like it, of the same size: eight bits, halved chroma, and limited where its
/// format's name says that it is full. What is so already is not copied. `kept` is for further pictures of the format.
pub(super) fn to_yuv420p(
    video: ffmpeg::frame::Video,
    kept: &mut Option<scaling::Context>,
) -> Result<ffmpeg::frame::Video, String> {
    let pixel = ffmpeg::format::Pixel::YUV420P;
    let (source, size) = (video.format(), (video.width(), video.height()));
    if source == pixel {
        return Ok(video);
    }
    let failed = |error: ffmpeg::Error| {
        let name = source.descriptor().map_or("unknown", |descriptor| descriptor.name());
        format!("a picture of {}x{} pixels cannot be converted from {name}: {error}", size.0, size.1)
    };
    let fits = |context: &scaling::Context| {
        let input = context.input();
        (input.format, (input.width, input.height)) == (source, size)
    };
    let mut scaler = match kept.take().filter(fits) {
        Some(scaler) => scaler,
        None => context(source, pixel, size).map_err(failed)?,
    };
    let converted = run(&mut scaler, &video, pixel).map_err(failed)?;
    *kept = Some(scaler);
    Ok(converted)
}

/// Whether pictures of a format have full range by its name, which swscale takes into account.
pub(super) fn is_full_by_name(pixel: ffmpeg::format::Pixel) -> bool {
    use ffmpeg::format::Pixel;
    matches!(pixel, Pixel::YUVJ420P | Pixel::YUVJ422P | Pixel::YUVJ444P | Pixel::YUVJ440P | Pixel::YUVJ411P)
}

fn context(
    source: ffmpeg::format::Pixel,
    pixel: ffmpeg::format::Pixel,
    (width, height): (u32, u32),
) -> Result<scaling::Context, ffmpeg::Error> {
    let flags = scaling::Flags::BILINEAR | scaling::Flags::ACCURATE_RND;
    scaling::Context::get(source, width, height, pixel, width, height, flags)
}

fn run(
    context: &mut scaling::Context,
    video: &ffmpeg::frame::Video,
    pixel: ffmpeg::format::Pixel,
) -> Result<ffmpeg::frame::Video, ffmpeg::Error> {
    // Allocated here: the wrapper would not notice that there is no memory.
    let mut converted = ffmpeg::frame::Video::empty();
    converted.set_format(pixel);
    converted.set_width(video.width());
    converted.set_height(video.height());
    // SAFETY: the frame is empty but for format and size, as `av_frame_get_buffer` asks for; its answer is checked.
    let allocated = unsafe { ffi::av_frame_get_buffer(converted.as_mut_ptr(), 0) };
    if allocated < 0 {
        return Err(ffmpeg::Error::from(allocated));
    }
    context.run(video, &mut converted)?;
    Ok(converted)
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
