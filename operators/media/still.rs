//! Still pictures out of bytes that anybody may have sent: JPEG, PNG and WebP, within limits.

use std::borrow::Cow;
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

/// Upper bound, in bytes, of what [`decode`] takes for a picture of `most_pixels` pixels, its result included: samples
/// of 16 bits and RGB made of them, or a progressive JPEG's coefficients and RGB.
pub const fn memory(most_pixels: u64) -> u64 {
    most_pixels.saturating_mul(BYTES_A_PIXEL + 4).saturating_add(SCRATCH)
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
        Ok(ImageFormat::Jpeg) if !jpeg_is_whole(bytes) => {
            return Err(StillError::Broken("it ends before its end marker".to_owned()));
        }
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP)) => format,
        _ => return Err(StillError::Format),
    };
    let bytes = if format == ImageFormat::Png { without_profile(bytes) } else { Cow::Borrowed(bytes) };
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
    // Turned in its smallest form: that makes a copy.
    let mut picture = DynamicImage::from(DynamicImage::from_decoder(decoder).map_err(broken)?.into_rgb8());
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

/// A PNG without its colour profile, which nobody reads here: it is compressed, and a few bytes of it may unpack to as
/// much as the whole limit, whatever the size of the picture.
fn without_profile(png: &[u8]) -> Cow<'_, [u8]> {
    const SIGNATURE: usize = 8;
    /// Length, type and checksum.
    const AROUND: usize = 12;
    let mut kept: Vec<u8> = Vec::new();
    // Up to where `kept` stands for the beginning of `png`, and where the next chunk begins.
    let (mut taken, mut next) = (0, SIGNATURE);
    while let Some(head) = png.get(next..next + 8) {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let end = next.saturating_add(length).saturating_add(AROUND);
        let kind = &head[4..];
        // Behind the first pixels no profile is looked for; what is cut off, the decoder names.
        if kind == b"IDAT" || end > png.len() {
            break;
        }
        if kind == b"iCCP" {
            kept.extend_from_slice(&png[taken..next]);
            taken = end;
        }
        next = end;
    }
    if taken == 0 {
        return Cow::Borrowed(png);
    }
    kept.extend_from_slice(&png[taken..]);
    Cow::Owned(kept)
}

/// Whether the end marker of a JPEG is there. Its decoder would fill up what is missing, with grey. Behind the marker
/// there may be more: phones put a film there.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    const SCAN: u8 = 0xda;
    // Behind the marker of the start, and then behind each segment, which may hold a small JPEG itself.
    let mut at = 2;
    let mut in_scan = false;
    while let Some(&marker) = bytes.get(at + 1) {
        // Within a scan, 0xff is followed by a zero, or it is a restart marker.
        if bytes[at] != 0xff || (in_scan && (marker == 0 || (0xd0..=0xd7).contains(&marker))) {
            at += 1;
            continue;
        }
        match marker {
            END => return true,
            // Filling.
            0xff => at += 1,
            // Markers without a segment.
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            _ => {
                let Some(length) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
                in_scan = marker == SCAN;
            }
        }
    }
    false
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

    /// A chunk of a PNG; nobody looks at the checksums of those that are left out.
    fn chunk(kind: &[u8], content: &[u8]) -> Vec<u8> {
        [&(content.len() as u32).to_be_bytes(), kind, content, &[0; 4]].concat()
    }

    #[test]
    fn a_colour_profile_is_not_unpacked() {
        let png = encoded(ImageFormat::Png, 5, 3);
        // Behind the signature and the header.
        let (head, rest) = png.split_at(33);
        let profile = chunk(b"iCCP", b"name\0\0and what unpacks to gigabytes");
        let note = chunk(b"tEXt", b"note\0iCCP");
        let with = [head, &profile, &note, &profile, rest].concat();
        assert_eq!(&*without_profile(&with), [head, &note, rest].concat());
        assert!(decode(&[head, &profile, rest].concat(), 15).is_ok());
        // What is no chunk, or only the beginning of one, is left to the decoder.
        for cut in [&png[..3], &png[..8], &png[..40], &[head, &profile[..20]].concat(), &png] {
            assert!(matches!(without_profile(cut), Cow::Borrowed(same) if same == cut));
        }
        let endless = [head, &[255; 4], b"iCCP"].concat();
        assert_eq!(&*without_profile(&endless), &endless);
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
                assert!(matches!(error, Some(StillError::Broken(_))), "{format:?} of {length} bytes: {error:?}");
            }
        }
    }

    #[test]
    fn a_jpeg_ends_with_its_end_marker_wherever_it_stands() {
        let whole = encoded(ImageFormat::Jpeg, 40, 30);
        let end = whole.len() - 2;
        assert_eq!(whole[end..], [0xff, 0xd9]);
        let ends_early = StillError::Broken("it ends before its end marker".to_owned());
        assert_eq!(decode(&whole[..end], 10_000).err(), Some(ends_early.clone()));
        let followed = [&whole, &b"\0\0 a film"[..]].concat();
        assert!(decode(&followed, 10_000).is_ok());
        // A preview in a segment of its own has an end marker too.
        let length = u16::try_from(whole.len() + 2).unwrap().to_be_bytes();
        let with_preview = |end: usize| [&whole[..2], &[0xff, 0xe1], &length, &whole, &whole[2..end]].concat();
        assert!(decode(&with_preview(whole.len()), 10_000).is_ok());
        assert_eq!(decode(&with_preview(end), 10_000).err(), Some(ends_early));
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
