//! Pictures as files that people and training sets keep: RGB of a frame, or what a model would see of it, as JPEG.

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use crate::error::ItemError;
use crate::inference::manifest::{ColorOrder, ElementType, InputSize, InputSpec, LARGEST_SIDE, Layout, Resize};
use crate::item::{Frame, Placement, TensorData};
use crate::transforms::preprocess::kernel::Preprocessor;

/// A picture as RGB.
pub struct Picture {
    pub width: u32,
    pub height: u32,
    /// How the frame lies in it.
    pub placement: Placement,
    /// R, G and B of each pixel, row by row.
    pixels: Vec<u8>,
}

impl Picture {
    /// All pixels of `frame`. Sides of more than 8192 pixels are made smaller.
    ///
    /// # Errors
    /// Where the picture has no pixels, or fewer bytes than its size needs.
    pub fn of(frame: &Frame) -> Result<Picture, ItemError> {
        Picture::within(frame, LARGEST_SIDE)
    }

    /// `frame` with sides of at most `side` pixels, aspect kept.
    ///
    /// # Errors
    /// As [`Picture::of`].
    pub fn within(frame: &Frame, side: u32) -> Result<Picture, ItemError> {
        Picture::made(
            frame,
            InputSpec {
                layout: Layout::Nhwc,
                dtype: ElementType::U8,
                size: InputSize::Source { width: side, height: side },
                color: ColorOrder::Rgb,
                scale: [1.0; 3],
                bias: [0.0; 3],
                resize: Resize::Stretch,
                antialias: true,
            },
        )
    }

    /// What a model with this input sees of `frame`: cut, scaled and padded as it wants it, before its numbers are
    /// normalised.
    ///
    /// # Errors
    /// As [`Picture::of`].
    pub fn as_seen(frame: &Frame, input: &InputSpec) -> Result<Picture, ItemError> {
        let (layout, dtype, color) = (Layout::Nhwc, ElementType::U8, ColorOrder::Rgb);
        Picture::made(frame, InputSpec { layout, dtype, color, scale: [1.0; 3], bias: [0.0; 3], ..input.clone() })
    }

    fn made(frame: &Frame, spec: InputSpec) -> Result<Picture, ItemError> {
        // What makes tensors does matrices, ranges and every pixel format already.
        let mut preprocessor = Preprocessor::new(spec);
        let mut tensor = preprocessor.buffer();
        let geometry = preprocessor.run(frame, &mut tensor)?;
        let ([width, height], placement) = (geometry.tensor, geometry.placement);
        match tensor {
            TensorData::U8(pixels) => Ok(Picture { width, height, placement, pixels }),
            TensorData::F32(_) | TensorData::F16(_) => Err(ItemError::Failed("a picture is made of bytes".into())),
        }
    }

    /// The picture as a JPEG file; `quality`: 1 to 100. Some milliseconds for each million pixels.
    ///
    /// # Errors
    /// Where it cannot be encoded.
    pub fn jpeg(&self, quality: u8) -> Result<Vec<u8>, ItemError> {
        let mut file = Vec::new();
        JpegEncoder::new_with_quality(&mut file, quality)
            .encode(&self.pixels, self.width, self.height, ExtendedColorType::Rgb8)
            .map_err(|error| ItemError::Failed(format!("the picture cannot be encoded: {error}")))?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::manifest::Anchor;
    use crate::transforms::preprocess::pictures::rgb;

    fn red(width: u32, height: u32) -> Frame {
        let samples: Vec<u8> = (0..width * height).flat_map(|_| [200, 20, 30]).collect();
        rgb(width, height, &samples)
    }

    fn decoded(picture: &Picture) -> image::RgbImage {
        let file = picture.jpeg(90).unwrap();
        image::load_from_memory_with_format(&file, image::ImageFormat::Jpeg).unwrap().into_rgb8()
    }

    #[test]
    fn a_picture_keeps_its_size_and_colours() {
        let picture = decoded(&Picture::of(&red(1283, 721)).unwrap());
        assert_eq!(picture.dimensions(), (1283, 721));
        let pixel = picture.get_pixel(1282, 720).0;
        assert!(pixel.iter().zip([200, 20, 30]).all(|(is, should)| is.abs_diff(should) <= 8), "{pixel:?}");
    }

    #[test]
    fn a_model_sees_a_picture_with_its_padding_and_not_its_numbers() {
        let input = InputSpec {
            layout: Layout::Nchw,
            dtype: ElementType::F32,
            size: InputSize::Fixed { width: 64, height: 64 },
            color: ColorOrder::Bgr,
            scale: [0.01; 3],
            bias: [-1.0; 3],
            resize: Resize::Letterbox { anchor: Anchor::TopLeft, pad: 114 },
            antialias: true,
        };
        let picture = decoded(&Picture::as_seen(&red(128, 64), &input).unwrap());
        assert_eq!(picture.dimensions(), (64, 64));
        let close = |x, y, colour: [u8; 3]| {
            let pixel = picture.get_pixel(x, y).0;
            assert!(pixel.iter().zip(colour).all(|(is, should)| is.abs_diff(should) <= 10), "{pixel:?} at {x}, {y}");
        };
        close(8, 8, [200, 20, 30]);
        close(8, 56, [114, 114, 114]);
    }

    #[test]
    fn a_picture_without_pixels_is_refused() {
        assert!(Picture::of(&red(0, 0)).is_err());
    }
}
