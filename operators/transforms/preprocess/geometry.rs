//! Where a picture lands in a tensor.

use crate::inference::manifest::{Anchor, InputSize, InputSpec, Resize};
use crate::item::Placement;

/// The source's part that is shown, and the place in the tensor where it is shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Left, top, width, height in source pixels; never outside the picture.
    pub source: [f64; 4],
    /// Width and height of the tensor.
    pub tensor: [u32; 2],
    /// Left and top of the picture in the tensor.
    pub at: [u32; 2],
    /// Width and height of the picture in the tensor; the rest is padding.
    pub inner: [u32; 2],
    /// Sample of the padding, 0..255.
    pub pad: u8,
    pub placement: Placement,
}

impl Geometry {
    /// For a picture of `width` x `height` pixels, both at least 1.
    pub fn new(spec: &InputSpec, width: u32, height: u32) -> Geometry {
        let (w, h) = (f64::from(width), f64::from(height));
        let whole = [0.0, 0.0, w, h];
        let placement = |scale: [f64; 2], offset: [f64; 2]| Placement {
            source_width: width,
            source_height: height,
            scale: scale.map(|value| value as f32),
            offset: offset.map(|value| value as f32),
        };
        let stretched = |target: [u32; 2]| Geometry {
            source: whole,
            tensor: target,
            at: [0, 0],
            inner: target,
            pad: 0,
            placement: placement([f64::from(target[0]) / w, f64::from(target[1]) / h], [0.0, 0.0]),
        };
        let target = match spec.size {
            InputSize::Source { width: most_width, height: most_height } => {
                if width <= most_width && height <= most_height {
                    return stretched([width, height]);
                }
                return stretched(fitted([w, h], [most_width, most_height]).0);
            }
            InputSize::Fixed { width, height } => [width, height],
        };
        match spec.resize {
            Resize::Stretch => stretched(target),
            Resize::Letterbox { anchor, pad } => {
                let (inner, ratio) = fitted([w, h], target);
                let at: [u32; 2] = match anchor {
                    Anchor::TopLeft => [0, 0],
                    Anchor::Centre => std::array::from_fn(|axis| (target[axis] - inner[axis]) / 2),
                };
                // The ratio itself, not the one that rounding to whole pixels left: what detectors are trained with.
                let placement = placement([ratio, ratio], at.map(f64::from));
                Geometry { source: whole, tensor: target, at, inner, pad, placement }
            }
            Resize::Crop { shorter_side } => {
                let shorter = width.min(height);
                // Whole pixels, rounded down, as torchvision's `Resize` has it.
                let side = |length: u32| (u64::from(shorter_side) * u64::from(length) / u64::from(shorter)) as f64;
                let resized = [side(width), side(height)];
                let offset: [f64; 2] =
                    std::array::from_fn(|axis| ((resized[axis] - f64::from(target[axis])) / 2.0).round_ties_even());
                let step = [w / resized[0], h / resized[1]];
                let left = offset[0] * step[0];
                let top = offset[1] * step[1];
                let crop_width = (f64::from(target[0]) * step[0]).min(w - left);
                let crop_height = (f64::from(target[1]) * step[1]).min(h - top);
                Geometry {
                    source: [left, top, crop_width, crop_height],
                    tensor: target,
                    at: [0, 0],
                    inner: target,
                    pad: 0,
                    placement: placement([resized[0] / w, resized[1] / h], [-offset[0], -offset[1]]),
                }
            }
        }
    }
}

/// The largest size inside `target` that keeps the aspect of `size`, at least 1x1, and the ratio to it.
fn fitted(size: [f64; 2], target: [u32; 2]) -> ([u32; 2], f64) {
    let ratio = (f64::from(target[0]) / size[0]).min(f64::from(target[1]) / size[1]);
    let inner = std::array::from_fn(|axis| ((size[axis] * ratio) as u32).clamp(1, target[axis]));
    (inner, ratio)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::manifest::InputFields;
    use proptest::prelude::*;

    fn spec(text: &str) -> InputSpec {
        toml::from_str::<InputFields>(text).unwrap().resolve().unwrap()
    }

    const CROP: &str = "width = 224\nheight = 224\nresize = \"crop\"\nshorter_side = 256";
    const TOP_LEFT: &str = "width = 416\nheight = 416\nresize = \"letterbox\"\nanchor = \"top_left\"";
    const CENTRE: &str = "width = 416\nheight = 416\nresize = \"letterbox\"";
    const STRETCH: &str = "width = 64\nheight = 32";
    const ANY: &str = "largest = [640, 360]";

    #[test]
    fn a_crop_is_cut_from_the_resized_picture() {
        // 1280x720 becomes 455x256; the crop starts at round(115.5) = 116 (ties to even) and 16.
        let geometry = Geometry::new(&spec(CROP), 1280, 720);
        let step = 1280.0 / 455.0;
        assert_eq!(geometry.source, [116.0 * step, 16.0 * 720.0 / 256.0, 224.0 * step, 224.0 * 720.0 / 256.0]);
        assert_eq!(geometry.placement.offset, [-116.0, -16.0]);
    }

    #[test]
    fn a_letterbox_keeps_the_aspect() {
        let geometry = Geometry::new(&spec(TOP_LEFT), 1280, 720);
        assert_eq!((geometry.inner, geometry.at), ([416, 234], [0, 0]));
        let geometry = Geometry::new(&spec(CENTRE), 720, 1280);
        assert_eq!((geometry.inner, geometry.at), ([234, 416], [91, 0]));
        assert_eq!(geometry.placement.offset, [91.0, 0.0]);
    }

    #[test]
    fn an_input_of_any_size_is_bounded() {
        assert_eq!(Geometry::new(&spec(ANY), 320, 200).inner, [320, 200]);
        assert_eq!(Geometry::new(&spec(ANY), 7680, 4320).inner, [640, 360]);
        assert_eq!(Geometry::new(&spec(ANY), 20_000, 1).inner, [640, 1]);
    }

    proptest! {
        /// Whatever the picture, the shown part lies in it, the shown place in the tensor, and a box that is mapped
        /// to the tensor and back is where it was.
        #[test]
        fn geometry_is_sound(width in 1u32..9000, height in 1u32..9000, which in 0usize..5, x in 0f32..1.0, y in 0f32..1.0) {
            let spec = spec([CROP, TOP_LEFT, CENTRE, STRETCH, ANY][which]);
            let geometry = Geometry::new(&spec, width, height);
            let [left, top, w, h] = geometry.source;
            prop_assert!(left >= 0.0 && top >= 0.0 && w > 0.0 && h > 0.0);
            prop_assert!(left + w <= f64::from(width) && top + h <= f64::from(height));
            for axis in 0..2 {
                prop_assert!(geometry.inner[axis] >= 1);
                prop_assert!(geometry.at[axis] + geometry.inner[axis] <= geometry.tensor[axis]);
            }
            let placement = geometry.placement;
            let point = [x * width as f32, y * height as f32];
            let mapped: [f32; 2] = std::array::from_fn(|axis| point[axis] * placement.scale[axis] + placement.offset[axis]);
            let back = placement.to_source([mapped[0], mapped[1], mapped[0], mapped[1]]);
            let slack = 1e-4 * width.max(height) as f32 * (1.0 + 1.0 / placement.scale[0].min(placement.scale[1]));
            prop_assert!((back[0] - point[0]).abs() <= slack && (back[1] - point[1]).abs() <= slack);
        }
    }
}
