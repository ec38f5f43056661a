//! Pictures as files that people and training sets keep: RGB of a frame, or what a model would see of it, as JPEG.

use font8x8::{BASIC_FONTS, UnicodeFonts};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use crate::error::ItemError;
use crate::inference::manifest::{ColorOrder, ElementType, InputSize, InputSpec, LARGEST_SIDE, Layout, Resize};
use crate::item::{Frame, Placement, TensorData};
use crate::transforms::preprocess::kernel::Preprocessor;

/// Width and height of a letter in pixels, before it is made larger for large pictures.
const GLYPH: u32 = 8;
/// Dark enough for bright letters on them, and far from each other.
const COLOURS: [[u8; 3]; 8] = [
    [200, 30, 30],
    [20, 110, 200],
    [20, 130, 50],
    [150, 60, 180],
    [190, 100, 0],
    [0, 125, 130],
    [110, 90, 30],
    [200, 30, 120],
];

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

    /// Draws a box round what lies in `bounds`, `[x1, y1, x2, y2]` in pixels of the frame, with `text` on its upper edge;
    /// what lies outside of the picture is left out. Things of one `kind` have one colour.
    pub fn mark(&mut self, bounds: [f32; 4], text: &str, kind: usize) {
        let colour = COLOURS[kind % COLOURS.len()];
        let [left, top, right, bottom] = self.at(bounds);
        let line = (self.width.max(self.height) / 400).max(1);
        for inset in 0..line {
            let (left, top) = (left + inset, top + inset);
            let (right, bottom) = (right.saturating_sub(inset), bottom.saturating_sub(inset));
            self.fill([left, top, right, top + 1], colour);
            self.fill([left, bottom.saturating_sub(1), right, bottom], colour);
            self.fill([left, top, left + 1, bottom], colour);
            self.fill([right.saturating_sub(1), top, right, bottom], colour);
        }
        let height = GLYPH * self.text_scale();
        self.write(left, if top >= height { top - height } else { top }, text, colour);
    }

    /// Writes `text` into the upper left corner.
    pub fn caption(&mut self, text: &str) {
        self.write(0, 0, text, [0; 3]);
    }

    /// Pixels of the frame as pixels of the picture, within it.
    fn at(&self, bounds: [f32; 4]) -> [u32; 4] {
        let Placement { scale, offset, .. } = self.placement;
        let limits = [self.width as f32, self.height as f32];
        std::array::from_fn(|index| {
            let axis = index % 2;
            (bounds[index] * scale[axis] + offset[axis]).round().clamp(0.0, limits[axis]) as u32
        })
    }

    fn text_scale(&self) -> u32 {
        (self.width.max(self.height) / 640).max(1)
    }

    /// Text in bright letters on `ground`; letters that the font has not are shown as `?`.
    fn write(&mut self, left: u32, top: u32, text: &str, ground: [u8; 3]) {
        let scale = self.text_scale();
        let side = GLYPH * scale;
        for (nth, letter) in (0..).zip(text.chars()) {
            let x = left + nth * side;
            if x >= self.width {
                break;
            }
            self.fill([x, top, x + side, top + side], ground);
            let glyph = BASIC_FONTS.get(letter).or_else(|| BASIC_FONTS.get('?')).unwrap_or_default();
            for (row, bits) in (0..).zip(glyph) {
                for column in (0..GLYPH).filter(|column| bits >> column & 1 == 1) {
                    let (x, y) = (x + column * scale, top + row * scale);
                    self.fill([x, y, x + scale, y + scale], [255; 3]);
                }
            }
        }
    }

    /// Fills a rectangle, as far as it lies in the picture.
    fn fill(&mut self, [left, top, right, bottom]: [u32; 4], colour: [u8; 3]) {
        let (right, bottom) = (right.min(self.width), bottom.min(self.height));
        for y in top..bottom {
            for x in left..right {
                let at = (y as usize * self.width as usize + x as usize) * 3;
                if let Some(pixel) = self.pixels.get_mut(at..at + 3) {
                    pixel.copy_from_slice(&colour);
                }
            }
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
    fn boxes_and_words_lie_where_they_belong_and_never_outside() {
        let white = rgb(100, 60, &[255; 100 * 60 * 3]);
        let mut picture = Picture::of(&white).unwrap();
        let pixel = |picture: &Picture, x: usize, y: usize| {
            let at = (y * 100 + x) * 3;
            [picture.pixels[at], picture.pixels[at + 1], picture.pixels[at + 2]]
        };
        picture.mark([10.0, 20.0, 50.0, 40.0], "", 1);
        for (x, y, is_marked) in
            [(10, 20, true), (49, 39, true), (30, 20, true), (10, 30, true), (30, 30, false), (50, 40, false)]
        {
            assert_eq!(pixel(&picture, x, y) == COLOURS[1], is_marked, "{x}, {y}");
        }
        picture.mark([10.0, 20.0, 50.0, 40.0], "I", 1);
        let letter = (10..18).flat_map(|x| (12..20).map(move |y| (x, y)));
        let bright = letter.filter(|(x, y)| pixel(&picture, *x, *y) == [255; 3]).count();
        assert!((8..48).contains(&bright), "{bright} of 64 pixels are of the letter");
        // Far outside, and text that is longer than the picture.
        picture.mark([-50.0, -20.0, 500.0, 400.0], &"long ü ".repeat(50), 99);
        picture.caption(&"x".repeat(1000));
        assert_eq!(picture.pixels.len(), 100 * 60 * 3);
    }

    #[test]
    fn a_picture_without_pixels_is_refused() {
        assert!(Picture::of(&red(0, 0)).is_err());
    }
}
