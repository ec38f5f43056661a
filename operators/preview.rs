//! Small pictures for people: what is shown of a stream to whoever looks at it.

use crate::error::ItemError;
use crate::item::Frame;
use crate::picture::Picture;

/// A preview is at most so many pixels wide and high; smaller pictures keep their size.
pub const LARGEST_SIDE: u32 = 640;
/// Of JPEG, 1..100: artefacts do not show at this size, and a busy street takes about 60 KB.
const QUALITY: u8 = 80;

/// A picture of at most [`LARGEST_SIDE`] pixels a side, as RGB: at most 1.2 MB.
pub struct SmallPicture(Picture);

impl SmallPicture {
    /// Makes `frame` small, aspect kept. About a millisecond for 1080p.
    ///
    /// # Errors
    /// Where the picture has no pixels, or fewer bytes than its size needs.
    pub fn of(frame: &Frame) -> Result<SmallPicture, ItemError> {
        Picture::within(frame, LARGEST_SIDE).map(SmallPicture)
    }

    /// The picture as a JPEG file. Some milliseconds.
    ///
    /// # Errors
    /// Where it cannot be encoded.
    pub fn jpeg(&self) -> Result<Vec<u8>, ItemError> {
        self.0.jpeg(QUALITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::PixelFormat;
    use crate::transforms::preprocess::pictures::{picture, rgb};

    /// Left half red, right half blue.
    fn halves(width: u32, height: u32) -> Frame {
        let samples: Vec<u8> = (0..width * height)
            .flat_map(|index| if index % width < width / 2 { [200, 20, 30] } else { [20, 30, 200] })
            .collect();
        rgb(width, height, &samples)
    }

    fn decoded(small: &SmallPicture) -> image::RgbImage {
        let file = small.jpeg().unwrap();
        image::load_from_memory_with_format(&file, image::ImageFormat::Jpeg).unwrap().into_rgb8()
    }

    #[test]
    fn a_large_picture_becomes_small_and_keeps_its_aspect_and_colours() {
        let small = SmallPicture::of(&halves(1280, 720)).unwrap();
        assert_eq!((small.0.width, small.0.height), (640, 360));
        let picture = decoded(&small);
        assert_eq!(picture.dimensions(), (640, 360));
        for (x, expected) in [(80, [200, 20, 30]), (560, [20, 30, 200])] {
            let pixel = picture.get_pixel(x, 180).0;
            let close = pixel.iter().zip(expected).all(|(is, should)| is.abs_diff(should) <= 8);
            assert!(close, "{pixel:?} at {x} is not {expected:?}");
        }
    }

    #[test]
    fn a_tall_picture_is_bounded_too_and_a_small_one_stays() {
        let tall = SmallPicture::of(&halves(720, 1280)).unwrap();
        assert_eq!((tall.0.width, tall.0.height), (360, 640));
        let tiny = SmallPicture::of(&halves(34, 17)).unwrap();
        assert_eq!(decoded(&tiny).dimensions(), (34, 17));
    }

    #[test]
    fn video_of_limited_range_becomes_full_range() {
        // Luma 235 without colour is white, 16 is black.
        let frame = picture(PixelFormat::Yuv420p, 64, 32, 3, |plane, x, _| match plane {
            0 if x < 32 => 235,
            0 => 16,
            _ => 128,
        });
        let picture = decoded(&SmallPicture::of(&frame).unwrap());
        assert!(picture.get_pixel(8, 16).0.iter().all(|sample| *sample > 250), "{:?}", picture.get_pixel(8, 16));
        assert!(picture.get_pixel(56, 16).0.iter().all(|sample| *sample < 5), "{:?}", picture.get_pixel(56, 16));
    }

    #[test]
    fn a_picture_without_pixels_is_refused() {
        assert!(SmallPicture::of(&halves(0, 0)).is_err());
    }
}
