//! The kernel: a decoded picture to the numbers of a tensor.
//!
//! Each plane of a YUV picture is resized on its own (SIMD), straight to the place and size that the tensor needs, and
//! one loop over the small result does matrix, colour order and normalisation. So a picture is never converted at its
//! full size. Resizing and the matrix are both linear, so their order does not matter but for rounding.
//!
//! Chroma is taken as sited in the middle of its luma samples (as in JPEG and as FFmpeg's scaler has it by default);
//! for left-sited chroma that is off by a quarter of a luma pixel.

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::{InnerPixel, U8, U8x2, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use half::slice::HalfFloatSliceExt;

use crate::error::ItemError;
use crate::inference::manifest::{ColorOrder, ElementType, InputSize, InputSpec, Layout};
use crate::item::{ColorMatrix, ColorRange, Frame, PixelFormat, Tensor, TensorData};
use crate::transforms::preprocess::geometry::Geometry;

/// Turns pictures into tensors of one specification. Its memory is reused from picture to picture.
pub struct Preprocessor {
    spec: InputSpec,
    resizer: Resizer,
    /// Resized planes, tightly packed: Y or RGB, U, V.
    planes: [Vec<u8>; 3],
    /// A plane without the gaps between its rows, or interleaved chroma.
    packed: Vec<u8>,
    /// One row of R, G and B, where the tensor's memory cannot take it as it is.
    row: [Vec<f32>; 3],
    /// The tensor before it is rounded to half precision, where that is asked for.
    floats: Vec<f32>,
}

impl Preprocessor {
    pub fn new(spec: InputSpec) -> Preprocessor {
        Preprocessor {
            spec,
            resizer: Resizer::new(),
            planes: [const { Vec::new() }; 3],
            packed: Vec::new(),
            row: [const { Vec::new() }; 3],
            floats: Vec::new(),
        }
    }

    pub fn spec(&self) -> &InputSpec {
        &self.spec
    }

    /// An empty tensor of the right type.
    pub fn buffer(&self) -> TensorData {
        match self.spec.dtype {
            ElementType::F32 => TensorData::F32(Vec::new()),
            ElementType::F16 => TensorData::F16(Vec::new()),
            ElementType::U8 => TensorData::U8(Vec::new()),
        }
    }

    /// Bytes that are allocated for pictures up to 4096 pixels wide, the tensor included.
    pub fn memory(spec: &InputSpec) -> u64 {
        let (InputSize::Fixed { height, .. } | InputSize::Source { height, .. }) = spec.size;
        let values = spec.bytes() / spec.dtype.bytes();
        let floats = if spec.dtype == ElementType::F16 { 4 * values } else { 0 };
        // The tensor, the resized planes, and what the resizer keeps between its two passes.
        spec.bytes() + floats + values + 4096 * 3 * u64::from(height)
    }

    /// The tensor of `frame`, in memory of its own.
    pub fn tensor(&mut self, frame: &Frame) -> Result<Tensor, ItemError> {
        let mut data = self.buffer();
        let geometry = self.run(frame, &mut data)?;
        let [width, height] = geometry.tensor;
        let shape = self.spec.shape(width, height);
        Ok(Tensor { shape, data, placement: geometry.placement, index: frame.index })
    }

    /// Writes `frame` into `tensor`, which takes the type and length that the specification asks for.
    pub fn run(&mut self, frame: &Frame, tensor: &mut TensorData) -> Result<Geometry, ItemError> {
        if frame.width == 0 || frame.height == 0 {
            return Err(ItemError::Failed("the picture has no pixels".into()));
        }
        let geometry = Geometry::new(&self.spec, frame.width, frame.height);
        self.resize(frame, &geometry)?;
        let length = geometry.tensor[0] as usize * geometry.tensor[1] as usize * 3;
        if !matches!(
            (&*tensor, self.spec.dtype),
            (TensorData::F32(_), ElementType::F32)
                | (TensorData::F16(_), ElementType::F16)
                | (TensorData::U8(_), ElementType::U8)
        ) {
            *tensor = self.buffer();
        }
        match tensor {
            TensorData::F32(values) => {
                values.resize(length, 0.0);
                self.write_f32(frame, &geometry, values);
            }
            TensorData::F16(values) => {
                let mut floats = std::mem::take(&mut self.floats);
                floats.resize(length, 0.0);
                self.write_f32(frame, &geometry, &mut floats);
                values.resize(length, half::f16::ZERO);
                values.convert_from_f32_slice(&floats);
                self.floats = floats;
            }
            TensorData::U8(values) => {
                values.resize(length, 0);
                self.write_u8(frame, &geometry, values);
            }
        }
        Ok(geometry)
    }

    /// Resizes every plane to the picture's size in the tensor.
    fn resize(&mut self, frame: &Frame, geometry: &Geometry) -> Result<(), ItemError> {
        let Preprocessor { spec, resizer, planes, packed, .. } = self;
        let algorithm = if spec.antialias {
            ResizeAlg::Convolution(FilterType::Bilinear)
        } else {
            ResizeAlg::Interpolation(FilterType::Bilinear)
        };
        let [left, top, width, height] = geometry.source;
        let mut scale = Scale { resizer, packed, algorithm, size: geometry.inner };
        // Pixels of a chroma plane are so many luma pixels wide and high.
        let (across, down) = match frame.format {
            PixelFormat::Yuv420p | PixelFormat::Nv12 => (2.0, 2.0),
            PixelFormat::Yuv422p => (2.0, 1.0),
            PixelFormat::Yuv444p | PixelFormat::Gray8 | PixelFormat::Rgb24 => (1.0, 1.0),
        };
        let chroma = [left / across, top / down, width / across, height / down];
        match frame.format {
            PixelFormat::Rgb24 => scale.plane::<U8x3>(frame, 0, geometry.source, &mut planes[0]),
            PixelFormat::Gray8 => scale.plane::<U8>(frame, 0, geometry.source, &mut planes[0]),
            PixelFormat::Yuv420p | PixelFormat::Yuv422p | PixelFormat::Yuv444p => {
                scale.plane::<U8>(frame, 0, geometry.source, &mut planes[0])?;
                scale.plane::<U8>(frame, 1, chroma, &mut planes[1])?;
                scale.plane::<U8>(frame, 2, chroma, &mut planes[2])
            }
            PixelFormat::Nv12 => {
                scale.plane::<U8>(frame, 0, geometry.source, &mut planes[0])?;
                let [_, u, v] = planes;
                scale.plane::<U8x2>(frame, 1, chroma, v)?;
                let count = v.len() / 2;
                u.clear();
                u.extend(v.chunks_exact(2).map(|pair| pair[0]));
                for index in 0..count {
                    v[index] = v[2 * index + 1];
                }
                v.truncate(count);
                Ok(())
            }
        }
    }

    fn write_f32(&mut self, frame: &Frame, geometry: &Geometry, values: &mut [f32]) {
        let Preprocessor { spec, planes, row, .. } = self;
        let [tensor_width, tensor_height] = geometry.tensor.map(|side| side as usize);
        let [width, height] = geometry.inner.map(|side| side as usize);
        let [left, top] = geometry.at.map(|side| side as usize);
        let pad: [f32; 3] =
            std::array::from_fn(|channel| f32::from(geometry.pad) * spec.scale[channel] + spec.bias[channel]);
        let colors = Colors::new(frame, spec.color, spec.scale, spec.bias);
        let padded = geometry.inner != geometry.tensor;
        match spec.layout {
            Layout::Nchw => {
                let mut channels = channels_of(values, tensor_width * tensor_height);
                if padded {
                    for (channel, pad) in channels.iter_mut().zip(pad) {
                        fill_around(channel, pad, tensor_width, [left, top], [width, height]);
                    }
                }
                for y in 0..height {
                    let start = (top + y) * tensor_width + left;
                    let [first, second, third] = &mut channels;
                    let out = [first, second, third].map(|channel| &mut channel[start..start + width]);
                    colors.row(planes, y, width, out);
                }
            }
            Layout::Nhwc => {
                if padded {
                    for pixel in values.as_chunks_mut::<3>().0 {
                        *pixel = pad;
                    }
                }
                for y in 0..height {
                    let [first, second, third] = colors.row_of(planes, y, width, row);
                    let start = ((top + y) * tensor_width + left) * 3;
                    let out = values[start..start + width * 3].as_chunks_mut::<3>().0;
                    for (((pixel, a), b), c) in out.iter_mut().zip(first).zip(second).zip(third) {
                        *pixel = [*a, *b, *c];
                    }
                }
            }
        }
        debug_assert_eq!(tensor_height * tensor_width * 3, values.len());
    }

    fn write_u8(&mut self, frame: &Frame, geometry: &Geometry, values: &mut [u8]) {
        let Preprocessor { spec, planes, row, .. } = self;
        let [tensor_width, tensor_height] = geometry.tensor.map(|side| side as usize);
        let [width, height] = geometry.inner.map(|side| side as usize);
        let [left, top] = geometry.at.map(|side| side as usize);
        let colors = Colors::new(frame, spec.color, spec.scale, spec.bias);
        if geometry.inner != geometry.tensor {
            values.fill(geometry.pad);
        }
        // Samples are 0..255 and not negative: adding a half and cutting off rounds.
        let rounded = |value: f32| (value + 0.5) as u8;
        for y in 0..height {
            let channels = colors.row_of(planes, y, width, row);
            match spec.layout {
                Layout::Nchw => {
                    for (channel, samples) in channels.iter().enumerate() {
                        let start = (channel * tensor_height + top + y) * tensor_width + left;
                        for (out, value) in values[start..start + width].iter_mut().zip(*samples) {
                            *out = rounded(*value);
                        }
                    }
                }
                Layout::Nhwc => {
                    let start = ((top + y) * tensor_width + left) * 3;
                    let [first, second, third] = channels;
                    let out = values[start..start + width * 3].as_chunks_mut::<3>().0;
                    for (((pixel, a), b), c) in out.iter_mut().zip(first).zip(second).zip(third) {
                        *pixel = [rounded(*a), rounded(*b), rounded(*c)];
                    }
                }
            }
        }
    }
}

/// The three planes of an NCHW tensor.
fn channels_of(values: &mut [f32], plane: usize) -> [&mut [f32]; 3] {
    let (first, rest) = values.split_at_mut(plane);
    let (second, third) = rest.split_at_mut(plane);
    [first, second, third]
}

/// Fills what lies outside the picture.
fn fill_around(channel: &mut [f32], value: f32, stride: usize, [left, top]: [usize; 2], [width, height]: [usize; 2]) {
    for (y, row) in channel.chunks_exact_mut(stride).enumerate() {
        if (top..top + height).contains(&y) {
            row[..left].fill(value);
            row[left + width..].fill(value);
        } else {
            row.fill(value);
        }
    }
}

/// Resizes planes to one size.
struct Scale<'a> {
    resizer: &'a mut Resizer,
    packed: &'a mut Vec<u8>,
    algorithm: ResizeAlg,
    size: [u32; 2],
}

impl Scale<'_> {
    /// Resizes the part `crop` (left, top, width, height) of a plane into `out`.
    fn plane<P: PixelTrait + InnerPixel>(
        &mut self,
        frame: &Frame,
        index: usize,
        crop: [f64; 4],
        out: &mut Vec<u8>,
    ) -> Result<(), ItemError> {
        let pixel = size_of::<P>();
        let (row, rows) = frame.format.plane_size(index, frame.width, frame.height);
        let (data, stride) = (frame.buffer.plane(index), frame.buffer.stride(index));
        if stride < row || data.len() < stride * (rows - 1) + row {
            return Err(ItemError::Failed(format!(
                "plane {index} of the picture has {} bytes, too few for {rows} rows of {row}",
                data.len()
            )));
        }
        // The resizer takes rows of whole pixels, the last one of full length too.
        let (data, stride) = if stride % pixel == 0 && data.len() >= stride * rows {
            (&data[..stride * rows], stride)
        } else {
            self.packed.clear();
            for line in frame.rows(index) {
                self.packed.extend_from_slice(line);
            }
            (self.packed.as_slice(), row)
        };
        let failed =
            |error: &dyn std::fmt::Display| ItemError::Failed(format!("the picture cannot be resized: {error}"));
        let [width, height] = [row / pixel, rows].map(|side| side as u32);
        let whole = TypedImageRef::<P>::from_buffer((stride / pixel) as u32, height, data).map_err(|e| failed(&e))?;
        let visible = TypedCroppedImage::new(whole, 0, 0, width, height).map_err(|e| failed(&e))?;
        out.resize(self.size[0] as usize * self.size[1] as usize * pixel, 0);
        let mut target =
            TypedImage::<P>::from_buffer(self.size[0], self.size[1], out.as_mut_slice()).map_err(|e| failed(&e))?;
        let [left, top, crop_width, crop_height] = crop;
        let options =
            ResizeOptions::new().resize_alg(self.algorithm).crop(left, top, crop_width, crop_height).use_alpha(false);
        self.resizer.resize_typed(&visible, &mut target, &options).map_err(|e| failed(&e))
    }
}

/// How resized samples become values of the tensor.
struct Colors {
    format: PixelFormat,
    order: ColorOrder,
    /// R, G, B of 0..255 become `x * scale + bias`.
    scale: [f32; 3],
    bias: [f32; 3],
    matrix: Matrix,
}

/// Y, U, V to R, G, B of 0..255 (ITU-R BT.601-7 section 2.5, BT.709-6 section 3):
/// R = y + red_v v, G = y + green_u u + green_v v, B = y + blue_u u, with y = (Y - black) luma, u = U - 128, v = V - 128.
struct Matrix {
    black: f32,
    luma: f32,
    red_v: f32,
    green_u: f32,
    green_v: f32,
    blue_u: f32,
}

impl Matrix {
    fn new(matrix: ColorMatrix, range: ColorRange) -> Matrix {
        let (red, blue) = match matrix {
            ColorMatrix::Bt601 => (0.299, 0.114),
            ColorMatrix::Bt709 => (0.2126, 0.0722),
        };
        let green = 1.0 - red - blue;
        let (black, luma, chroma) = match range {
            ColorRange::Limited => (16.0, 255.0 / 219.0, 255.0 / 224.0),
            ColorRange::Full => (0.0, 1.0, 1.0),
        };
        let (red_v, blue_u) = (2.0 * (1.0 - red) * chroma, 2.0 * (1.0 - blue) * chroma);
        Matrix { black, luma, red_v, green_u: -blue_u * blue / green, green_v: -red_v * red / green, blue_u }
    }
}

impl Colors {
    fn new(frame: &Frame, order: ColorOrder, scale: [f32; 3], bias: [f32; 3]) -> Colors {
        // The specification counts channels in the tensor's order, this loop as R, G, B.
        let in_order = |values: [f32; 3]| match order {
            ColorOrder::Rgb => values,
            ColorOrder::Bgr => [values[2], values[1], values[0]],
        };
        let matrix = Matrix::new(frame.matrix, frame.range);
        Colors { format: frame.format, order, scale: in_order(scale), bias: in_order(bias), matrix }
    }

    /// Row `y` of the picture, by channel in the tensor's order, in memory of its own.
    fn row_of<'a>(&self, planes: &[Vec<u8>; 3], y: usize, width: usize, row: &'a mut [Vec<f32>; 3]) -> [&'a [f32]; 3] {
        for channel in row.iter_mut() {
            channel.resize(width, 0.0);
        }
        let [first, second, third] = row;
        self.row(planes, y, width, [&mut *first, &mut *second, &mut *third]);
        [first, second, third]
    }

    /// Writes row `y` of the picture into one slice a channel, in the tensor's order.
    fn row(&self, planes: &[Vec<u8>; 3], y: usize, width: usize, out: [&mut [f32]; 3]) {
        let [first, green, third] = out;
        let (red, blue) = match self.order {
            ColorOrder::Rgb => (first, third),
            ColorOrder::Bgr => (third, first),
        };
        let row = y * width..(y + 1) * width;
        match self.format {
            PixelFormat::Rgb24 => {
                let pixels = planes[0][row.start * 3..row.end * 3].as_chunks::<3>().0;
                for (channel, out) in [red, green, blue].into_iter().enumerate() {
                    let (scale, bias) = (self.scale[channel], self.bias[channel]);
                    for (out, pixel) in out.iter_mut().zip(pixels) {
                        *out = f32::from(pixel[channel]) * scale + bias;
                    }
                }
            }
            PixelFormat::Gray8 => {
                let Matrix { black, luma, .. } = self.matrix;
                let samples = &planes[0][row];
                for (channel, out) in [red, green, blue].into_iter().enumerate() {
                    let (scale, bias) = (self.scale[channel], self.bias[channel]);
                    for (out, sample) in out.iter_mut().zip(samples) {
                        *out = ((f32::from(*sample) - black) * luma).clamp(0.0, 255.0) * scale + bias;
                    }
                }
            }
            PixelFormat::Yuv420p | PixelFormat::Yuv422p | PixelFormat::Yuv444p | PixelFormat::Nv12 => {
                let [y, u, v] = planes;
                self.yuv_row([&y[row.clone()], &u[row.clone()], &v[row]], [red, green, blue]);
            }
        }
    }

    /// The loop that counts: slices of one length, no branches, so that it becomes vector instructions.
    fn yuv_row(&self, [y, u, v]: [&[u8]; 3], [red, green, blue]: [&mut [f32]; 3]) {
        let count = y.len();
        let (u, v) = (&u[..count], &v[..count]);
        let (red, green, blue) = (&mut red[..count], &mut green[..count], &mut blue[..count]);
        let Matrix { black, luma, red_v, green_u, green_v, blue_u } = self.matrix;
        let ([red_scale, green_scale, blue_scale], [red_bias, green_bias, blue_bias]) = (self.scale, self.bias);
        for index in 0..count {
            let luma = (f32::from(y[index]) - black) * luma;
            let u = f32::from(u[index]) - 128.0;
            let v = f32::from(v[index]) - 128.0;
            red[index] = (luma + red_v * v).clamp(0.0, 255.0) * red_scale + red_bias;
            green[index] = (luma + green_u * u + green_v * v).clamp(0.0, 255.0) * green_scale + green_bias;
            blue[index] = (luma + blue_u * u).clamp(0.0, 255.0) * blue_scale + blue_bias;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::manifest::InputFields;
    use crate::transforms::preprocess::pictures::{picture, rgb};
    use proptest::prelude::*;

    fn spec(text: &str) -> InputSpec {
        toml::from_str::<InputFields>(text).unwrap().resolve().unwrap()
    }

    fn tensor(spec: &InputSpec, frame: &Frame) -> (Geometry, TensorData) {
        let mut preprocessor = Preprocessor::new(spec.clone());
        let mut data = preprocessor.buffer();
        let geometry = preprocessor.run(frame, &mut data).unwrap();
        (geometry, data)
    }

    fn floats(spec: &InputSpec, frame: &Frame) -> Vec<f32> {
        match tensor(spec, frame).1 {
            TensorData::F32(values) => values,
            _ => panic!("asked for f32"),
        }
    }

    /// One value of a plane, resized: the triangle filter at the centre of output pixel (x, y), in f64.
    fn resampled(
        sample: &dyn Fn(i64, i64) -> f64,
        size: [i64; 2],
        crop: [f64; 4],
        inner: [u32; 2],
        antialias: bool,
        at: [u32; 2],
    ) -> f64 {
        let weights: [Vec<(i64, f64)>; 2] = std::array::from_fn(|axis| {
            let step = crop[2 + axis] / f64::from(inner[axis]);
            let radius = if antialias { step.max(1.0) } else { 1.0 };
            let centre = crop[axis] + (f64::from(at[axis]) + 0.5) * step;
            let weight = |index: i64| (1.0 - ((index as f64 + 0.5 - centre) / radius).abs()).max(0.0);
            let weighed: Vec<(i64, f64)> =
                (0..size[axis]).map(|index| (index, weight(index))).filter(|(_, w)| *w > 0.0).collect();
            let sum: f64 = weighed.iter().map(|(_, weight)| weight).sum();
            weighed.into_iter().map(|(index, weight)| (index, weight / sum)).collect()
        });
        let mut value = 0.0;
        for (y, down) in &weights[1] {
            for (x, across) in &weights[0] {
                value += sample(*x, *y) * down * across;
            }
        }
        value
    }

    /// R, G, B of 0..255 at a pixel of the tensor, by the definition.
    fn reference(spec: &InputSpec, frame: &Frame, geometry: &Geometry, at: [u32; 2]) -> [f64; 3] {
        let (w, h) = (i64::from(frame.width), i64::from(frame.height));
        let byte = |plane: usize, x: i64, y: i64| {
            f64::from(frame.buffer.plane(plane)[y as usize * frame.buffer.stride(plane) + x as usize])
        };
        let resized = |plane: usize, step: i64, first: i64, across: i64, down: i64| {
            let size = [(w + across - 1) / across, (h + down - 1) / down];
            let [left, top, width, height] = geometry.source;
            let crop = [left / across as f64, top / down as f64, width / across as f64, height / down as f64];
            resampled(&|x, y| byte(plane, x * step + first, y), size, crop, geometry.inner, spec.antialias, at)
        };
        let [luma, u, v] = match frame.format {
            PixelFormat::Rgb24 => return std::array::from_fn(|channel| resized(0, 3, channel as i64, 1, 1)),
            PixelFormat::Gray8 => [resized(0, 1, 0, 1, 1), 128.0, 128.0],
            PixelFormat::Yuv420p => [resized(0, 1, 0, 1, 1), resized(1, 1, 0, 2, 2), resized(2, 1, 0, 2, 2)],
            PixelFormat::Yuv422p => [resized(0, 1, 0, 1, 1), resized(1, 1, 0, 2, 1), resized(2, 1, 0, 2, 1)],
            PixelFormat::Yuv444p => [resized(0, 1, 0, 1, 1), resized(1, 1, 0, 1, 1), resized(2, 1, 0, 1, 1)],
            PixelFormat::Nv12 => [resized(0, 1, 0, 1, 1), resized(1, 2, 0, 2, 2), resized(1, 2, 1, 2, 2)],
        };
        // The definition of the standards: E'Y = Kr R + Kg G + Kb B, Cb = (B - E'Y) / (2 (1 - Kb)), Cr likewise.
        let (kr, kb) = match frame.matrix {
            ColorMatrix::Bt601 => (0.299, 0.114),
            ColorMatrix::Bt709 => (0.2126, 0.0722),
        };
        let (y, cb, cr) = match frame.range {
            ColorRange::Limited => ((luma - 16.0) / 219.0, (u - 128.0) / 224.0, (v - 128.0) / 224.0),
            ColorRange::Full => (luma / 255.0, (u - 128.0) / 255.0, (v - 128.0) / 255.0),
        };
        let red = y + 2.0 * (1.0 - kr) * cr;
        let blue = y + 2.0 * (1.0 - kb) * cb;
        let green = (y - kr * red - kb * blue) / (1.0 - kr - kb);
        [red, green, blue].map(|value| (value * 255.0).clamp(0.0, 255.0))
    }

    const FORMATS: [PixelFormat; 6] = [
        PixelFormat::Yuv420p,
        PixelFormat::Yuv422p,
        PixelFormat::Yuv444p,
        PixelFormat::Nv12,
        PixelFormat::Gray8,
        PixelFormat::Rgb24,
    ];

    /// Smooth structure with some noise, so that a wrong place, plane or stride shows.
    fn scene(format: PixelFormat, width: u32, height: u32, gap: usize, seed: u32) -> Frame {
        picture(format, width, height, gap, |plane, x, y| {
            let wave =
                (x as f64 * 0.11 + f64::from(seed)).sin() * 60.0 + (y as f64 * 0.07 * (plane + 1) as f64).cos() * 50.0;
            let noise = (x as u32).wrapping_mul(2_654_435_761).wrapping_add(y as u32).wrapping_mul(seed | 1) >> 28;
            (120.0 + wave + f64::from(noise)) as u8
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// Every format, layout, matrix, range and way to resize against the definition in f64. The resizer rounds each
        /// plane to whole samples after each of its two passes, and the matrix multiplies that by 2.02 at most.
        #[test]
        fn equals_the_definition(
            format in prop::sample::select(FORMATS.to_vec()),
            matrix in prop::sample::select(vec![ColorMatrix::Bt601, ColorMatrix::Bt709]),
            range in prop::sample::select(vec![ColorRange::Limited, ColorRange::Full]),
            (width, height) in (1u32..200, 1u32..200),
            gap in 0usize..5,
            seed in 0u32..1000,
            antialias: bool,
            layout in prop::sample::select(vec!["nchw", "nhwc"]),
            color in prop::sample::select(vec!["rgb", "bgr"]),
            resize in prop::sample::select(vec![
                "stretch\"", "letterbox\"\npad = 7", "letterbox\"\nanchor = \"top_left\"", "crop\"\nshorter_side = 50",
            ]),
        ) {
            let mut frame = scene(format, width, height, gap, seed);
            (frame.matrix, frame.range) = (matrix, range);
            let text = format!(
                "width = 40\nheight = 32\nlayout = \"{layout}\"\ncolor = \"{color}\"\nresize = \"{resize}\n\
                 antialias = {antialias}\nmean = [0.1, 0.2, 0.3]\nstd = [0.5, 0.25, 2.0]"
            );
            let float = spec(&text);
            let (geometry, data) = tensor(&float, &frame);
            let TensorData::F32(values) = data else { panic!("asked for f32") };
            let bytes = spec(&text.replace("mean = [0.1, 0.2, 0.3]\nstd = [0.5, 0.25, 2.0]", "dtype = \"u8\""));
            let TensorData::U8(samples) = tensor(&bytes, &frame).1 else { panic!("asked for u8") };
            let [w, h] = geometry.tensor;
            let mut error = 0.0;
            let mut count = 0.0;
            for y in 0..h {
                for x in 0..w {
                    let inside = (geometry.at[0]..geometry.at[0] + geometry.inner[0]).contains(&x)
                        && (geometry.at[1]..geometry.at[1] + geometry.inner[1]).contains(&y);
                    let expected = if inside {
                        reference(&float, &frame, &geometry, [x - geometry.at[0], y - geometry.at[1]])
                    } else {
                        [f64::from(geometry.pad); 3]
                    };
                    for channel in 0..3 {
                        let index = match float.layout {
                            Layout::Nchw => ((channel * h as usize) + y as usize) * w as usize + x as usize,
                            Layout::Nhwc => (y as usize * w as usize + x as usize) * 3 + channel,
                        };
                        let expected = expected[if color == "rgb" { channel } else { 2 - channel }];
                        let mean = [0.1, 0.2, 0.3][channel];
                        let std = [0.5, 0.25, 2.0][channel];
                        let value = (f64::from(values[index]) * std + mean) * 255.0;
                        let slack = if inside { 4.0 } else { 0.001 };
                        prop_assert!((value - expected).abs() <= slack, "{value} for {expected} at {x}, {y}, {channel}");
                        prop_assert!((f64::from(samples[index]) - value).abs() <= 0.501);
                        error += (value - expected).abs();
                        count += 1.0;
                    }
                }
            }
            prop_assert!(error / count < 1.0, "mean error {}", error / count);
        }
    }

    #[test]
    fn half_precision_is_the_same_rounded() {
        let frame = scene(PixelFormat::Nv12, 64, 48, 2, 3);
        for resize in ["stretch", "letterbox"] {
            let text = format!("width = 32\nheight = 32\nresize = \"{resize}\"\nmean = [0.1, 0.2, 0.3]");
            let values = floats(&spec(&text), &frame);
            let TensorData::F16(halves) = tensor(&spec(&format!("{text}\ndtype = \"f16\"")), &frame).1 else {
                panic!("asked for f16")
            };
            let rounded: Vec<half::f16> = values.into_iter().map(half::f16::from_f32).collect();
            assert_eq!(halves, rounded);
        }
    }

    /// One pixel of known colour: studio-range BT.709 red (ITU-R BT.709-6 table 4.6: Y 63, Cb 102, Cr 240).
    #[test]
    fn red_is_red() {
        let mut frame = picture(PixelFormat::Yuv444p, 1, 1, 0, |plane, _, _| [63, 102, 240][plane]);
        frame.matrix = ColorMatrix::Bt709;
        let values = floats(&spec("width = 1\nheight = 1\nrange = \"byte\""), &frame);
        for (value, expected) in values.iter().zip([255.0, 0.0, 0.0]) {
            assert!((value - expected).abs() < 1.5, "{values:?}");
        }
    }

    #[test]
    fn tiny_and_huge_pictures_are_resized() {
        for (width, height) in [(1, 1), (1, 5000), (5000, 1), (7680, 4320), (3, 2)] {
            for format in [PixelFormat::Yuv420p, PixelFormat::Rgb24] {
                let frame = picture(format, width, height, 0, |_, _, _| 128);
                for resize in ["stretch", "letterbox", "crop"] {
                    let values = floats(&spec(&format!("width = 32\nheight = 32\nresize = \"{resize}\"")), &frame);
                    assert_eq!(values.len(), 32 * 32 * 3);
                }
            }
        }
    }

    #[test]
    fn memory_is_reused_and_leaves_no_trace() {
        let spec = spec("width = 32\nheight = 32\nresize = \"letterbox\"");
        let mut preprocessor = Preprocessor::new(spec.clone());
        let mut data = preprocessor.buffer();
        let wide = scene(PixelFormat::Yuv420p, 64, 32, 3, 1);
        let tall = scene(PixelFormat::Nv12, 32, 64, 0, 2);
        for frame in [&wide, &tall, &wide] {
            preprocessor.run(frame, &mut data).unwrap();
            let TensorData::F32(values) = &data else { panic!("asked for f32") };
            assert_eq!(*values, floats(&spec, frame));
        }
    }

    #[test]
    fn a_picture_that_is_too_short_is_an_error() {
        struct Short;
        impl crate::item::PictureBuffer for Short {
            fn plane(&self, _index: usize) -> &[u8] {
                &[0; 10]
            }
            fn stride(&self, _index: usize) -> usize {
                12
            }
        }
        let mut frame = rgb(4, 4, &[0; 48]);
        frame.buffer = Box::new(Short);
        let mut preprocessor = Preprocessor::new(spec("width = 8\nheight = 8"));
        let mut data = preprocessor.buffer();
        assert!(preprocessor.run(&frame, &mut data).unwrap_err().to_string().contains("too few"));
        frame.width = 0;
        assert!(preprocessor.run(&frame, &mut data).is_err());
    }
}
