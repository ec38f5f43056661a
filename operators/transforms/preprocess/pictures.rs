//! Pictures for unit tests, in memory of their own.

use crate::item::{ColorMatrix, ColorRange, Frame, PictureBuffer, PixelFormat};

/// Planes with gaps of `gap` bytes between their rows; the last row is as short as it may be.
struct Planes {
    planes: Vec<(Vec<u8>, usize)>,
}

impl PictureBuffer for Planes {
    fn plane(&self, index: usize) -> &[u8] {
        &self.planes[index].0
    }

    fn stride(&self, index: usize) -> usize {
        self.planes[index].1
    }
}

/// A picture whose samples are `sample(plane, x, y)`, with `x` in bytes.
pub(crate) fn picture(
    format: PixelFormat,
    width: u32,
    height: u32,
    gap: usize,
    mut sample: impl FnMut(usize, usize, usize) -> u8,
) -> Frame {
    let planes = (0..format.planes()).map(|plane| {
        let (row, rows) = format.plane_size(plane, width, height);
        let stride = row + gap;
        // The gaps hold a value that would show if it were read.
        let mut data = vec![255; stride * (rows - 1) + row];
        for y in 0..rows {
            for x in 0..row {
                data[y * stride + x] = sample(plane, x, y);
            }
        }
        (data, stride)
    });
    Frame {
        width,
        height,
        format,
        matrix: ColorMatrix::Bt601,
        range: ColorRange::Limited,
        buffer: Box::new(Planes { planes: planes.collect() }),
        index: Some(0),
        truth: None,
    }
}

/// A picture of interleaved R, G, B.
pub(crate) fn rgb(width: u32, height: u32, samples: &[u8]) -> Frame {
    picture(PixelFormat::Rgb24, width, height, 0, |_, x, y| samples[y * width as usize * 3 + x])
}
