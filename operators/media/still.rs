//! Still pictures out of bytes that anybody may have sent: JPEG, PNG and WebP, within limits.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::item::{ColorMatrix, ColorRange, Frame, PictureBuffer, PixelFormat};

/// Why bytes are no picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StillError {
    #[error("it is neither JPEG nor PNG nor WebP")]
    Format,
    #[error("it has {width} x {height} pixels, more than the {most} that are allowed")]
    Pixels { width: u32, height: u32, most: u64 },
    #[error("it takes more memory than is allowed")]
    Memory,
    /// The decoder's words.
    #[error("it is broken: {0}")]
    Broken(String),
}

/// What a decoder may allocate beside the picture itself, in bytes.
const SCRATCH: u64 = 64 << 20;
/// The most bytes that one pixel takes while it is decoded: four samples of 16 bits.
const BYTES_A_PIXEL: u64 = 8;

/// The most bytes that decoding a picture of `pixels` pixels takes at once: as it is stored, and as RGB.
pub const fn most_memory(pixels: u64) -> u64 {
    pixels.saturating_mul(BYTES_A_PIXEL + 3).saturating_add(SCRATCH)
}

/// Whether the first bytes are those of a kind of picture that [`decode`] knows.
pub fn is_known(bytes: &[u8]) -> bool {
    matches!(image::guess_format(bytes), Ok(ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP))
}

/// Width and height that [`decode`] would make of a picture, in pixels. Reads its head only.
///
/// # Errors
/// As [`decode`], as far as the head tells.
pub fn size(bytes: &[u8], most_pixels: u64) -> Result<(u32, u32), StillError> {
    let (decoder, orientation) = opened(bytes, most_pixels)?;
    let (width, height) = decoder.dimensions();
    let is_turned = matches!(
        orientation,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    );
    Ok(if is_turned { (height, width) } else { (width, height) })
}

fn broken(error: ImageError) -> StillError {
    match error {
        ImageError::Limits(_) => StillError::Memory,
        error => StillError::Broken(error.to_string()),
    }
}

/// A decoder that has read the head of a picture, and how the picture lies.
fn opened(bytes: &[u8], most_pixels: u64) -> Result<(impl ImageDecoder, Orientation), StillError> {
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP)) => format,
        _ => return Err(StillError::Format),
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(most_pixels.saturating_mul(BYTES_A_PIXEL).saturating_add(SCRATCH));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > most_pixels {
        return Err(StillError::Pixels { width, height, most: most_pixels });
    }
    // A picture whose EXIF cannot be read is shown as it is stored.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, orientation))
}

/// Decodes a picture of at most `most_pixels` pixels into RGB, upright as its EXIF says. Of an animation that is its
/// first picture; what is transparent keeps its colour.
///
/// # Errors
/// Nothing is allocated for a picture that claims to be larger than allowed.
pub fn decode(bytes: &[u8], most_pixels: u64) -> Result<Frame, StillError> {
    let (decoder, orientation) = opened(bytes, most_pixels)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
    picture.apply_orientation(orientation);
    let picture = picture.into_rgb8();
    let (width, height) = picture.dimensions();
    Ok(Frame {
        width,
        height,
        format: PixelFormat::Rgb24,
        matrix: ColorMatrix::Bt601,
        range: ColorRange::Full,
        buffer: Box::new(Rgb { samples: picture.into_raw(), stride: width as usize * 3 }),
        index: None,
        truth: None,
    })
}

struct Rgb {
    samples: Vec<u8>,
    stride: usize,
}

impl PictureBuffer for Rgb {
    fn plane(&self, index: usize) -> &[u8] {
        if index == 0 { &self.samples } else { &[] }
    }

    fn stride(&self, index: usize) -> usize {
        if index == 0 { self.stride } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageEncoder, Rgb as Pixel, RgbImage};

    fn encoded(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
        let picture = RgbImage::from_fn(width, height, |x, y| Pixel([(x * 9) as u8, (y * 9) as u8, 200]));
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    const FORMATS: [ImageFormat; 3] = [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP];

    #[test]
    fn every_format_becomes_rgb() {
        for format in FORMATS {
            let frame = decode(&encoded(format, 5, 3), 15).unwrap();
            assert_eq!((frame.width, frame.height, frame.format), (5, 3, PixelFormat::Rgb24));
            let pixel = &frame.rows(0).nth(2).unwrap()[12..];
            let close = pixel.iter().zip([36, 18, 200]).all(|(sample, expected)| sample.abs_diff(expected) <= 12);
            assert!(close, "{format:?}: {pixel:?}");
        }
    }

    #[test]
    fn a_picture_of_too_many_pixels_is_refused_before_it_is_decoded() {
        for format in FORMATS {
            let error = decode(&encoded(format, 5, 3), 14).err().unwrap();
            assert_eq!(error, StillError::Pixels { width: 5, height: 3, most: 14 }, "{format:?}");
            assert_eq!(size(&encoded(format, 5, 3), 14), Err(error));
            assert_eq!(size(&encoded(format, 5, 3), 15), Ok((5, 3)));
        }
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for bytes in [&b""[..], b"hello", b"GIF89a\x01\0\x01\0", b"%PDF-1.4"] {
            assert_eq!(decode(bytes, 100).err(), Some(StillError::Format));
            assert!(!is_known(bytes));
        }
        for format in FORMATS {
            let whole = encoded(format, 40, 30);
            for length in [whole.len() / 2, 20] {
                let error = decode(&whole[..length], 10_000).err();
                // A JPEG decoder may fill up what is missing; then there is a picture.
                let sound = matches!(error, Some(StillError::Broken(_))) || (error.is_none() && length > 20);
                assert!(sound, "{format:?} of {length} bytes: {error:?}");
            }
        }
    }

    #[test]
    fn exif_turns_a_picture_upright() {
        let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
        let mut bytes = Vec::new();
        let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
        encoder.set_exif_metadata(std::mem::take(&mut exif)).unwrap();
        encoder.write_image(&[1, 2, 3, 4, 5, 6], 2, 1, image::ExtendedColorType::Rgb8).unwrap();
        let frame = decode(&bytes, 100).unwrap();
        assert_eq!((frame.width, frame.height), (1, 2));
        assert_eq!(size(&bytes, 100), Ok((1, 2)), "as it will be decoded");
        assert_eq!(frame.rows(0).map(<[u8]>::to_vec).collect::<Vec<_>>(), [[1, 2, 3], [4, 5, 6]]);
    }

    #[test]
    fn any_bytes_are_survived() {
        let seeds: Vec<Vec<u8>> = FORMATS.iter().map(|format| encoded(*format, 8, 8)).collect();
        bolero::check!().with_type::<(u8, Vec<(u16, u8)>, u16)>().for_each(|(which, changes, length)| {
            let mut bytes = seeds[usize::from(*which) % seeds.len()].clone();
            for (at, value) in changes {
                let at = usize::from(*at) % bytes.len();
                bytes[at] = *value;
            }
            bytes.truncate(usize::from(*length).max(4));
            if let Ok(frame) = decode(&bytes, 4096) {
                assert!(u64::from(frame.width) * u64::from(frame.height) <= 4096);
            }
        });
    }
}
