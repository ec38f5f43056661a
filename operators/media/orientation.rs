//! Turns pictures upright: phones store them as the sensor lies and note beside it how to turn them.

use crate::item::{Frame, PictureBuffer, PixelFormat};

/// How far a picture has to be turned, clockwise, to stand upright, and whether it is mirrored first (left and right
/// exchanged).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orientation {
    pub mirrored: bool,
    pub turn: Turn,
}

/// Clockwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turn {
    #[default]
    None,
    Quarter,
    Half,
    ThreeQuarters,
}

impl Orientation {
    pub const UPRIGHT: Orientation = Orientation { mirrored: false, turn: Turn::None };

    /// What the nine numbers of a container's display matrix ask for (ISO/IEC 14496-12: 16.16 fixed point, rows a b u,
    /// c d v, x y w). A matrix that does anything else than turn by quarters and mirror is ignored: such pictures are
    /// shown as they are stored.
    pub fn of_display_matrix(matrix: [i32; 9]) -> Orientation {
        let [a, b, _, c, d, ..] = matrix;
        let sign = |value: i32| value.signum();
        // A point (x, y) goes to (a x + c y, b x + d y), y downwards.
        let (mirrored, turn) = match [a, b, c, d].map(sign) {
            [1, 0, 0, 1] => (false, Turn::None),
            [0, 1, -1, 0] => (false, Turn::Quarter),
            [-1, 0, 0, -1] => (false, Turn::Half),
            [0, -1, 1, 0] => (false, Turn::ThreeQuarters),
            [-1, 0, 0, 1] => (true, Turn::None),
            [0, -1, -1, 0] => (true, Turn::Quarter),
            [1, 0, 0, -1] => (true, Turn::Half),
            [0, 1, 1, 0] => (true, Turn::ThreeQuarters),
            _ => (false, Turn::None),
        };
        Orientation { mirrored, turn }
    }

    /// Whether width and height change places.
    pub const fn is_sideways(self) -> bool {
        matches!(self.turn, Turn::Quarter | Turn::ThreeQuarters)
    }

    /// The size of an upright picture whose stored size is `width` x `height`.
    pub const fn size(self, (width, height): (u32, u32)) -> (u32, u32) {
        if self.is_sideways() { (height, width) } else { (width, height) }
    }

    /// The picture upright: itself where it is, else a copy.
    pub fn apply(self, frame: Frame) -> Frame {
        if self == Orientation::UPRIGHT {
            return frame;
        }
        // Chroma that is halved in one direction only would be halved in the other one after a quarter turn.
        let format = match frame.format {
            PixelFormat::Yuv422p if self.is_sideways() => PixelFormat::Yuv444p,
            format => format,
        };
        let planes = (0..frame.format.planes()).map(|index| self.plane(&frame, index, format)).collect();
        let (width, height) = self.size((frame.width, frame.height));
        let Frame { matrix, range, index, truth, .. } = frame;
        Frame { width, height, format, matrix, range, buffer: Box::new(Planes(planes)), index, truth }
    }

    /// Plane `index` upright, for a picture of `format`.
    fn plane(self, frame: &Frame, index: usize, format: PixelFormat) -> (Vec<u8>, usize) {
        let sample = match frame.format {
            PixelFormat::Rgb24 => 3,
            PixelFormat::Nv12 if index == 1 => 2,
            _ => 1,
        };
        let (row, rows) = frame.format.plane_size(index, frame.width, frame.height);
        let columns = row / sample;
        // Each sample of a plane that grows stands for two of the new one.
        let doubled = format != frame.format && index > 0;
        let across = if doubled { frame.width as usize } else { columns };
        let stored: Vec<&[u8]> = frame.rows(index).collect();
        let (width, height) = if self.is_sideways() { (rows, across) } else { (across, rows) };
        let mut out = Vec::with_capacity(width * height * sample);
        for y in 0..height {
            for x in 0..width {
                // Where the stored sample lies that comes to (x, y).
                let (column, line) = match self.turn {
                    Turn::None => (x, y),
                    Turn::Quarter => (y, rows - 1 - x),
                    Turn::Half => (across - 1 - x, rows - 1 - y),
                    Turn::ThreeQuarters => (across - 1 - y, x),
                };
                let column = if self.mirrored { across - 1 - column } else { column };
                let column = if doubled { column / 2 } else { column };
                out.extend_from_slice(&stored[line][column * sample..][..sample]);
            }
        }
        (out, width * sample)
    }
}

/// Planes without gaps between their rows.
struct Planes(Vec<(Vec<u8>, usize)>);

impl PictureBuffer for Planes {
    fn plane(&self, index: usize) -> &[u8] {
        self.0.get(index).map_or(&[], |(samples, _)| samples)
    }

    fn stride(&self, index: usize) -> usize {
        self.0.get(index).map_or(0, |(_, stride)| *stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transforms::preprocess::pictures::picture;

    fn turned(turn: Turn) -> Orientation {
        Orientation { mirrored: false, turn }
    }

    fn plane(frame: &Frame, index: usize) -> Vec<Vec<u8>> {
        frame.rows(index).map(<[u8]>::to_vec).collect()
    }

    /// 3x2 pixels: 0 1 2 above 10 11 12.
    fn grey() -> Frame {
        picture(PixelFormat::Gray8, 3, 2, 1, |_, x, y| (10 * y + x) as u8)
    }

    #[test]
    fn pictures_are_turned_clockwise_and_mirrored_before() {
        let shown = |orientation: Orientation| plane(&orientation.apply(grey()), 0);
        assert_eq!(shown(Orientation::UPRIGHT), [[0, 1, 2], [10, 11, 12]]);
        assert_eq!(shown(turned(Turn::Quarter)), [[10, 0], [11, 1], [12, 2]]);
        assert_eq!(shown(turned(Turn::Half)), [[12, 11, 10], [2, 1, 0]]);
        assert_eq!(shown(turned(Turn::ThreeQuarters)), [[2, 12], [1, 11], [0, 10]]);
        assert_eq!(shown(Orientation { mirrored: true, turn: Turn::None }), [[2, 1, 0], [12, 11, 10]]);
        assert_eq!(shown(Orientation { mirrored: true, turn: Turn::Quarter }), [[12, 2], [11, 1], [10, 0]]);
    }

    #[test]
    fn every_format_keeps_its_samples_together() {
        let quarter = turned(Turn::Quarter);
        let frame = quarter.apply(picture(PixelFormat::Rgb24, 2, 1, 2, |_, x, _| x as u8));
        assert_eq!((frame.width, frame.height), (1, 2));
        assert_eq!(plane(&frame, 0), [[0, 1, 2], [3, 4, 5]]);
        // Odd sizes: chroma of 2x2 samples for 3x3 pixels.
        let frame = quarter.apply(picture(PixelFormat::Nv12, 3, 3, 0, |plane, x, y| (plane * 100 + 10 * y + x) as u8));
        assert_eq!(plane(&frame, 1), [[110, 111, 100, 101], [112, 113, 102, 103]]);
        let frame =
            quarter.apply(picture(PixelFormat::Yuv420p, 3, 3, 0, |plane, x, y| (plane * 50 + 10 * y + x) as u8));
        assert_eq!(plane(&frame, 2), [[110, 100], [111, 101]]);
        // Chroma that is halved in one direction is spread out first.
        let frame =
            quarter.apply(picture(PixelFormat::Yuv422p, 3, 2, 0, |plane, x, y| (plane * 50 + 10 * y + x) as u8));
        assert_eq!((frame.format, frame.width, frame.height), (PixelFormat::Yuv444p, 2, 3));
        assert_eq!(plane(&frame, 1), [[60, 50], [60, 50], [61, 51]]);
        let frame = turned(Turn::Half).apply(picture(PixelFormat::Yuv422p, 3, 2, 0, |_, x, y| (10 * y + x) as u8));
        assert_eq!(frame.format, PixelFormat::Yuv422p);
    }

    #[test]
    fn a_display_matrix_is_read() {
        const ONE: i32 = 1 << 16;
        let of = |a, b, c, d| Orientation::of_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30]);
        assert_eq!(of(ONE, 0, 0, ONE), Orientation::UPRIGHT);
        assert_eq!(of(0, ONE, -ONE, 0), turned(Turn::Quarter));
        assert_eq!(of(-ONE, 0, 0, -ONE), turned(Turn::Half));
        assert_eq!(of(0, -ONE, ONE, 0), turned(Turn::ThreeQuarters));
        assert_eq!(of(-ONE, 0, 0, ONE), Orientation { mirrored: true, turn: Turn::None });
        // A shear is nothing that this can do.
        assert_eq!(of(ONE, ONE, 0, ONE), Orientation::UPRIGHT);
        assert_eq!(turned(Turn::Quarter).size((1920, 1080)), (1080, 1920));
        assert_eq!(turned(Turn::Half).size((1920, 1080)), (1920, 1080));
    }
}
