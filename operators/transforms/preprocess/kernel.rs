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

use crate::error::ItemError;
use crate::inference::manifest::{ColorOrder, ElementType, InputSize, InputSpec, Layout};
use crate::item::{ColorMatrix, ColorRange, Frame, PixelFormat, TensorData};
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
}

impl Preprocessor {
    pub fn new(spec: InputSpec) -> Preprocessor {
        Preprocessor {
            spec,
            resizer: Resizer::new(),
            planes: [const { Vec::new() }; 3],
            packed: Vec::new(),
            row: [const { Vec::new() }; 3],
        }
    }

    pub fn spec(&self) -> &InputSpec {
        &self.spec
    }

    /// An empty tensor of the right type.
    pub fn buffer(&self) -> TensorData {
        match self.spec.dtype {
            ElementType::F32 => TensorData::F32(Vec::new()),
            ElementType::U8 => TensorData::U8(Vec::new()),
        }
    }

    /// Bytes that are allocated for pictures up to 4096 pixels wide, the tensor included.
    pub fn memory(spec: &InputSpec) -> u64 {
        let (InputSize::Fixed { height, .. } | InputSize::Source { height, .. }) = spec.size;
        // The tensor, the resized planes, and what the resizer keeps between its two passes.
        spec.bytes() + spec.bytes() / spec.dtype.bytes() + 4096 * 3 * u64::from(height)
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
            (TensorData::F32(_), ElementType::F32) | (TensorData::U8(_), ElementType::U8)
        ) {
            *tensor = self.buffer();
        }
        match tensor {
            TensorData::F32(values) => {
                values.resize(length, 0.0);
                self.write_f32(frame, &geometry, values);
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
