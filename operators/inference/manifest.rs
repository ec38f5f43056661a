//! The manifest of a model, `models/NAME.toml`: what its file is, what it eats, and what its outputs mean.
//!
//! This module owns the text format alone; [`crate::inference::model`] finds files and verifies them.
//!
//! ```toml
//! file = "yolox_nano.onnx"      # beside the manifest, or in any folder of the search path; or https://…, s3://…
//! sha256 = "d39bee73…"
//! licence = "Apache-2.0"
//!
//! [input]                       # see `InputFields`
//! name = "images"
//! width = 416
//! height = 416
//! color = "bgr"
//! range = "byte"
//! resize = "letterbox"
//! anchor = "top_left"
//! antialias = false
//!
//! [output]                      # see `OutputSpec`
//! decode = "yolox"
//! name = "output"
//! strides = [8, 16, 32]
//!
//! [labels]
//! file = "coco_labels_80.txt"
//! count = 80
//!
//! [defaults]
//! threshold = 0.3
//! nms = 0.45
//! ```

use serde::Deserialize;

use crate::inference::decode::ssd;

/// A manifest as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Name of the ONNX file, or the `https://`, `http://` or `s3://` address that `engine models pull` fetches it from.
    pub file: String,
    /// Hexadecimal SHA-256 of that file.
    pub sha256: String,
    /// SPDX expression of the weights' licence.
    pub licence: String,
    /// Where the weights come from, for people.
    pub source: Option<String>,
    /// What the model does, for people.
    pub summary: Option<String>,
    /// The recipe that made the weights, a path relative to the manifest.
    pub recipe: Option<String>,
    pub input: InputFields,
    pub output: OutputSpec,
    pub labels: LabelSource,
    #[serde(default)]
    pub defaults: Defaults,
    /// How `/predict` answers, where a model is there for one question alone.
    pub predict: Option<Question>,
    /// What was measured with these weights, and on what; free form, for people and for the test that repeats it.
    pub evaluation: Option<toml::Table>,
}

/// What stands in for the fields of `classify` and `detect` that a graph leaves out.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Boxes below this score are not reported.
    pub threshold: Option<f32>,
    /// Boxes of one class that overlap a better one by more than this IoU are not reported.
    pub nms: Option<f32>,
}

/// The one question that a detector answers on `/predict`: is there a thing of this label?
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub label: String,
    /// Yes from this score on, 0..1.
    pub threshold: f32,
}

/// Where the names of the classes come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelSource {
    /// A text file with one class a line, found like the model's file. Only the part before the first comma counts.
    pub file: Option<String>,
    /// The classes themselves.
    pub names: Option<Vec<String>>,
    /// How many there must be.
    pub count: Option<usize>,
    /// The model's own number of each class, in the order of the names, where it is not simply the position.
    pub ids: Option<Vec<i64>>,
}

/// What the outputs mean.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "decode", rename_all = "snake_case", deny_unknown_fields)]
pub enum OutputSpec {
    /// Logits `[1, classes]`; scores are their softmax.
    Softmax { name: String },
    /// Scores `[1, classes]`, ready to use.
    None { name: String },
    /// Rows `[1, cells, 5 + classes]` of the YOLOX head: for each stride, row-major over its grid, the columns
    /// tx, ty, tw, th, objectness, class scores (sigmoid applied).
    Yolox { name: String, strides: Vec<u32> },
    /// Planes `[1, 5 + classes, rows, columns]` of the FastestDet head, one cell for 16 x 16 pixels: objectness, tx, ty,
    /// tw, th, class scores (softmax applied).
    Fastestdet { name: String },
    /// Rows `[1, boxes, 5 + classes]` of an exported YOLOv5: cx, cy, w, h in pixels of the input, objectness, class
    /// scores (sigmoid applied).
    Yolov5 { name: String },
    /// Planes `[1, 4 + classes, boxes]` of an exported YOLOv8: cx, cy, w, h in pixels of the input, class scores
    /// (sigmoid applied).
    Yolov8 { name: String },
    /// The raw heads of SSD: offsets `[1, anchors, 4]` and scores `[1, anchors, classes]`, one class more with a
    /// background, which is the first.
    Ssd {
        boxes: String,
        scores: String,
        /// The anchors, layer after layer.
        layers: Vec<ssd::Layer>,
        #[serde(default)]
        offsets: ssd::Offsets,
        #[serde(default = "variances")]
        variances: [f32; 4],
        #[serde(default)]
        activation: ssd::Activation,
        #[serde(default = "yes")]
        background: bool,
    },
    /// The interface of Faster R-CNN and SSD with NMS in the graph: boxes `[n, 4]` as x1 y1 x2 y2 in pixels of the
    /// input, labels `[n]` as int64, scores `[n]`.
    BoxesLabelsScores { boxes: String, labels: String, scores: String },
}

/// Those of the SSD paper.
const fn variances() -> [f32; 4] {
    [0.1, 0.1, 0.2, 0.2]
}

const fn yes() -> bool {
    true
}

impl OutputSpec {
    /// What a manifest writes as `decode`.
    pub const fn name(&self) -> &'static str {
        match self {
            OutputSpec::Softmax { .. } => "softmax",
            OutputSpec::None { .. } => "none",
            OutputSpec::Yolox { .. } => "yolox",
            OutputSpec::Fastestdet { .. } => "fastestdet",
            OutputSpec::Yolov5 { .. } => "yolov5",
            OutputSpec::Yolov8 { .. } => "yolov8",
            OutputSpec::Ssd { .. } => "ssd",
            OutputSpec::BoxesLabelsScores { .. } => "boxes_labels_scores",
        }
    }

    pub const fn is_classifier(&self) -> bool {
        matches!(self, OutputSpec::Softmax { .. } | OutputSpec::None { .. })
    }
}

/// Order of a tensor's dimensions, the batch in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `[1, 3, height, width]`
    Nchw,
    /// `[1, height, width, 3]`
    Nhwc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    F32,
    F16,
    U8,
}

impl ElementType {
    pub const fn bytes(self) -> u64 {
        match self {
            ElementType::F32 => 4,
            ElementType::F16 => 2,
            ElementType::U8 => 1,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            ElementType::F32 => "f32",
            ElementType::F16 => "f16",
            ElementType::U8 => "u8",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColorOrder {
    Rgb,
    Bgr,
}

/// What a sample of 0..255 becomes before mean and standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueRange {
    /// 0..1
    Unit,
    /// 0..255
    Byte,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResizeMode {
    /// Both sides to the input's, whatever the aspect.
    Stretch,
    /// The whole picture inside the input, the rest padded.
    Letterbox,
    /// The shorter side to `shorter_side`, then the centre.
    Crop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    #[serde(alias = "center")]
    Centre,
    TopLeft,
}

/// How a picture becomes a tensor, as a manifest's `[input]` and the fields of a `preprocess` node write it. What is
/// left out takes the default that [`InputFields::resolve`] names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFields {
    /// Name of the model's input; manifests only.
    pub name: Option<String>,
    /// How many pictures the file takes at once, where that is fixed and not 1; manifests only.
    pub batch: Option<u32>,
    pub layout: Option<Layout>,
    pub dtype: Option<ElementType>,
    pub width: Option<u32>,
    pub height: Option<u32>,
    /// `[width, height]`: for a model that takes any size, pictures larger than this are made smaller first.
    pub largest: Option<[u32; 2]>,
    pub color: Option<ColorOrder>,
    pub range: Option<ValueRange>,
    /// Subtracted from each channel, in the tensor's order of channels and in the unit that `range` names.
    pub mean: Option<[f32; 3]>,
    /// What is left is divided by this.
    pub std: Option<[f32; 3]>,
    pub resize: Option<ResizeMode>,
    pub shorter_side: Option<u32>,
    pub anchor: Option<Anchor>,
    /// Sample of the padding, 0..255.
    pub pad: Option<u8>,
    pub antialias: Option<bool>,
}

/// The largest side of a tensor.
pub const LARGEST_SIDE: u32 = 8192;
/// The most pictures that go in at once.
pub const LARGEST_BATCH: u32 = 256;

/// How a picture becomes a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    pub layout: Layout,
    pub dtype: ElementType,
    pub size: InputSize,
    pub color: ColorOrder,
    /// A sample `x` of 0..255 becomes `x * scale + bias`, for each channel in the tensor's order.
    pub scale: [f32; 3],
    pub bias: [f32; 3],
    pub resize: Resize,
    /// Whether every source pixel counts when a picture is made smaller (a triangle filter as wide as the step), or
    /// only the four nearest (as OpenCV does by default).
    pub antialias: bool,
}

/// Why a model with this input and output takes one picture at a time, whatever its file says.
pub const fn takes_one_at_a_time(input: &InputSpec, output: &OutputSpec) -> Option<&'static str> {
    match (input.size, output) {
        (_, OutputSpec::BoxesLabelsScores { .. }) => Some("its boxes do not say which of several pictures they are of"),
        (InputSize::Source { .. }, _) => Some("pictures of any size do not fit into one tensor"),
        (InputSize::Fixed { .. }, _) => None,
    }
}

/// Width and height of a tensor in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputSize {
    Fixed {
        width: u32,
        height: u32,
    },
    /// The picture's own size, made smaller (aspect kept) where it is larger than this.
    Source {
        width: u32,
        height: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    Stretch,
    Letterbox { anchor: Anchor, pad: u8 },
    Crop { shorter_side: u32 },
}

impl InputSpec {
    /// Most bytes of one tensor.
    pub fn bytes(&self) -> u64 {
        let (InputSize::Fixed { width, height } | InputSize::Source { width, height }) = self.size;
        u64::from(width) * u64::from(height) * 3 * self.dtype.bytes()
    }

    /// Whether tensors made as `made` says fit, as far as that is known before there is a picture.
    pub fn takes(&self, made: &InputSpec) -> bool {
        let size_fits = match (self.size, made.size) {
            (InputSize::Fixed { .. }, InputSize::Fixed { .. }) => self.size == made.size,
            (InputSize::Source { .. }, _) | (_, InputSize::Source { .. }) => true,
        };
        size_fits && self.layout == made.layout && self.dtype == made.dtype
    }

    /// `[3, 224, 224] of f32`, for messages.
    pub fn described(&self) -> String {
        let shape = match (self.size, self.layout) {
            (InputSize::Fixed { width, height }, _) => format!("{:?}", self.shape(width, height)),
            (InputSize::Source { .. }, Layout::Nchw) => "[3, height, width]".to_owned(),
            (InputSize::Source { .. }, Layout::Nhwc) => "[height, width, 3]".to_owned(),
        };
        format!("{shape} of {}", self.dtype.name())
    }

    /// Shape without the batch dimension, for an input of `width` x `height`.
    pub fn shape(&self, width: u32, height: u32) -> [usize; 3] {
        match self.layout {
            Layout::Nchw => [3, height as usize, width as usize],
            Layout::Nhwc => [height as usize, width as usize, 3],
        }
    }
}

/// A field of an input that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputMistake {
    pub field: &'static str,
    pub message: String,
}

impl InputFields {
    /// These fields, and `base`'s where they are left out and `base`'s make sense beside them: what is for another
    /// way of resizing, another kind of size or another type of numbers than the node's is not taken over.
    #[must_use]
    pub fn over(self, base: &InputFields) -> InputFields {
        let own_sides = self.width.is_some() || self.height.is_some();
        let own_largest = self.largest.is_some();
        let (width, height) = if own_largest && !own_sides {
            (None, None)
        } else {
            (self.width.or(base.width), self.height.or(base.height))
        };
        // Without a width and a height there is nothing to fit into or to cut out of.
        let resize = self.resize.or(base.resize.filter(|_| width.is_some() || height.is_some()));
        let is = |mode: ResizeMode| resize == Some(mode);
        let larger = width.max(height).unwrap_or(1);
        let whole_numbers = self.dtype == Some(ElementType::U8);
        InputFields {
            name: self.name.or_else(|| base.name.clone()),
            batch: self.batch.or(base.batch),
            layout: self.layout.or(base.layout),
            dtype: self.dtype.or(base.dtype),
            width,
            height,
            largest: self.largest.or(base.largest.filter(|_| !own_sides)),
            color: self.color.or(base.color),
            range: self.range.or(base.range.filter(|_| !whole_numbers)),
            mean: self.mean.or(base.mean.filter(|_| !whole_numbers)),
            std: self.std.or(base.std.filter(|_| !whole_numbers)),
            resize,
            shorter_side: self
                .shorter_side
                .or(base.shorter_side.filter(|side| is(ResizeMode::Crop) && *side >= larger)),
            anchor: self.anchor.or(base.anchor.filter(|_| is(ResizeMode::Letterbox))),
            pad: self.pad.or(base.pad.filter(|_| is(ResizeMode::Letterbox))),
            antialias: self.antialias.or(base.antialias),
        }
    }

    /// Checks the fields against each other and fills in the defaults: NCHW, f32, RGB, 0..1, mean 0, standard
    /// deviation 1, stretched, antialiased; a letterbox is centred and padded with 114; any size up to 1920x1080
    /// where neither width nor height is given.
    pub fn resolve(&self) -> Result<InputSpec, Vec<InputMistake>> {
        let mut mistakes = Vec::new();
        let mut wrong = |field: &'static str, message: String| mistakes.push(InputMistake { field, message });

        if let Some(batch) = self.batch.filter(|batch| !(1..=LARGEST_BATCH).contains(batch)) {
            wrong("batch", format!("`batch` is {batch}, but must be 1 to {LARGEST_BATCH}"));
        }
        let side = 1..=LARGEST_SIDE;
        let size = match (self.width, self.height) {
            (Some(width), Some(height)) => {
                for (field, value) in [("width", width), ("height", height)] {
                    if !side.contains(&value) {
                        wrong(field, format!("`{field}` is {value}, but must be 1 to {LARGEST_SIDE}"));
                    }
                }
                if self.largest.is_some() {
                    wrong("largest", "`largest` is for inputs of any size; this one has a width and a height".into());
                }
                InputSize::Fixed { width, height }
            }
            (None, None) => {
                let [width, height] = self.largest.unwrap_or([1920, 1080]);
                if !side.contains(&width) || !side.contains(&height) {
                    wrong("largest", format!("both sides of `largest` must be 1 to {LARGEST_SIDE}"));
                }
                if self.resize.is_some_and(|mode| mode != ResizeMode::Stretch) {
                    wrong("resize", "a letterbox and a crop need `width` and `height`".into());
                }
                InputSize::Source { width, height }
            }
            (Some(_), None) => {
                wrong("width", "`width` is given without `height`".into());
                InputSize::Source { width: 1, height: 1 }
            }
            (None, Some(_)) => {
                wrong("height", "`height` is given without `width`".into());
                InputSize::Source { width: 1, height: 1 }
            }
        };

        let mode = self.resize.unwrap_or(ResizeMode::Stretch);
        if mode != ResizeMode::Letterbox {
            for (field, given) in [("anchor", self.anchor.is_some()), ("pad", self.pad.is_some())] {
                if given {
                    wrong(field, format!("`{field}` is for `resize = \"letterbox\"` only"));
                }
            }
        }
        if mode != ResizeMode::Crop && self.shorter_side.is_some() {
            wrong("shorter_side", "`shorter_side` is for `resize = \"crop\"` only".into());
        }
        let resize = match mode {
            ResizeMode::Stretch => Resize::Stretch,
            ResizeMode::Letterbox => {
                Resize::Letterbox { anchor: self.anchor.unwrap_or(Anchor::Centre), pad: self.pad.unwrap_or(114) }
            }
            ResizeMode::Crop => {
                let larger = self.width.unwrap_or(1).max(self.height.unwrap_or(1));
                let shorter_side = self.shorter_side.unwrap_or(larger);
                if !(larger..=LARGEST_SIDE).contains(&shorter_side) {
                    let message = format!(
                        "`shorter_side` is {shorter_side}, but the crop of {larger} pixels must fit into it (at most \
                         {LARGEST_SIDE})"
                    );
                    wrong("shorter_side", message);
                }
                Resize::Crop { shorter_side }
            }
        };

        let dtype = self.dtype.unwrap_or(ElementType::F32);
        let mean = self.mean.unwrap_or([0.0; 3]);
        let std = self.std.unwrap_or([1.0; 3]);
        if mean.iter().any(|value| !value.is_finite()) {
            wrong("mean", "every mean must be a finite number".into());
        }
        if std.iter().any(|value| !value.is_normal() || *value < 0.0) {
            wrong("std", "every standard deviation must be a positive number".into());
        }
        let range = self.range.unwrap_or(match dtype {
            ElementType::F32 | ElementType::F16 => ValueRange::Unit,
            ElementType::U8 => ValueRange::Byte,
        });
        if dtype == ElementType::U8 {
            if range == ValueRange::Unit {
                wrong("range", "whole numbers (`dtype = \"u8\"`) span 0..255: write `range = \"byte\"`".into());
            }
            for (field, given) in [("mean", self.mean.is_some()), ("std", self.std.is_some())] {
                if given {
                    wrong(field, format!("`{field}` needs `dtype = \"f32\"` or \"f16\""));
                }
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let unit = match range {
            ValueRange::Unit => 1.0 / 255.0,
            ValueRange::Byte => 1.0,
        };
        Ok(InputSpec {
            layout: self.layout.unwrap_or(Layout::Nchw),
            dtype,
            size,
            color: self.color.unwrap_or(ColorOrder::Rgb),
            scale: std.map(|std| unit / std),
            bias: std::array::from_fn(|channel| -mean[channel] / std[channel]),
            resize,
            antialias: self.antialias.unwrap_or(true),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> InputFields {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn what_is_left_out_takes_its_default() {
        let spec = fields("width = 224\nheight = 200").resolve().unwrap();
        assert_eq!(spec.size, InputSize::Fixed { width: 224, height: 200 });
        assert_eq!((spec.layout, spec.dtype, spec.color), (Layout::Nchw, ElementType::F32, ColorOrder::Rgb));
        assert_eq!((spec.scale, spec.bias), ([1.0 / 255.0; 3], [0.0; 3]));
        assert_eq!((spec.resize, spec.antialias), (Resize::Stretch, true));
        assert_eq!(spec.shape(224, 200), [3, 200, 224]);
        assert_eq!(spec.bytes(), 224 * 200 * 3 * 4);
    }

    #[test]
    fn mean_and_deviation_become_one_multiplication_and_one_addition() {
        let spec = fields("width = 8\nheight = 8\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]")
            .resolve()
            .unwrap();
        let value = 200.0 * spec.scale[1] + spec.bias[1];
        assert!((value - (200.0 / 255.0 - 0.456) / 0.224).abs() < 1e-5);
    }

    #[test]
    fn fields_that_contradict_each_other_are_named() {
        for (text, field) in [
            ("width = 8", "width"),
            ("height = 8", "height"),
            ("width = 0\nheight = 8", "width"),
            ("width = 8\nheight = 8\nbatch = 0", "batch"),
            ("width = 8\nheight = 8\nbatch = 257", "batch"),
            ("width = 8\nheight = 100000", "height"),
            ("width = 8\nheight = 8\nlargest = [9, 9]", "largest"),
            ("resize = \"letterbox\"", "resize"),
            ("width = 8\nheight = 8\npad = 3", "pad"),
            ("width = 8\nheight = 8\nanchor = \"centre\"", "anchor"),
            ("width = 8\nheight = 8\nshorter_side = 9", "shorter_side"),
            ("width = 8\nheight = 8\nresize = \"crop\"\nshorter_side = 7", "shorter_side"),
            ("width = 8\nheight = 8\nstd = [1, 0, 1]", "std"),
            ("width = 8\nheight = 8\nmean = [1, nan, 1]", "mean"),
            ("width = 8\nheight = 8\ndtype = \"u8\"\nrange = \"unit\"", "range"),
            ("width = 8\nheight = 8\ndtype = \"u8\"\nmean = [1, 1, 1]", "mean"),
        ] {
            let mistakes = fields(text).resolve().unwrap_err();
            assert_eq!(mistakes.iter().map(|mistake| mistake.field).collect::<Vec<_>>(), [field], "{text}");
        }
    }

    #[test]
    fn a_field_of_a_node_wins_over_the_manifest() {
        let base = fields("width = 8\nheight = 8\ncolor = \"bgr\"\nresize = \"letterbox\"\npad = 1");
        let spec = fields("width = 16\nheight = 16\npad = 2").over(&base).resolve().unwrap();
        assert_eq!(spec.size, InputSize::Fixed { width: 16, height: 16 });
        assert_eq!(spec.color, ColorOrder::Bgr);
        assert_eq!(spec.resize, Resize::Letterbox { anchor: Anchor::Centre, pad: 2 });
    }

    #[test]
    fn what_a_node_writes_needs_no_more_to_undo_the_manifest() {
        let letterbox = fields("width = 8\nheight = 8\nresize = \"letterbox\"\nanchor = \"top_left\"\npad = 1");
        let spec = |node: &str, base: &InputFields| fields(node).over(base).resolve().unwrap();
        assert_eq!(spec("resize = \"stretch\"", &letterbox).resize, Resize::Stretch);
        assert_eq!(spec("resize = \"crop\"", &letterbox).resize, Resize::Crop { shorter_side: 8 });
        let any = spec("largest = [64, 48]", &letterbox);
        assert_eq!((any.size, any.resize), (InputSize::Source { width: 64, height: 48 }, Resize::Stretch));

        let largest = fields("largest = [640, 480]");
        assert_eq!(spec("width = 320\nheight = 240", &largest).size, InputSize::Fixed { width: 320, height: 240 });
        assert_eq!(spec("color = \"bgr\"", &largest).size, InputSize::Source { width: 640, height: 480 });

        let crop = fields(
            "width = 8\nheight = 8\nresize = \"crop\"\nshorter_side = 9\nrange = \"unit\"\nmean = [0.5, 0.5, 0.5]\n\
             std = [0.2, 0.2, 0.2]",
        );
        let whole = spec("dtype = \"u8\"", &crop);
        assert_eq!((whole.scale, whole.bias, whole.resize), ([1.0; 3], [-0.0; 3], Resize::Crop { shorter_side: 9 }));
        assert_eq!(spec("width = 16\nheight = 16", &crop).resize, Resize::Crop { shorter_side: 16 });
        assert_eq!(spec("width = 6\nheight = 6", &crop).resize, Resize::Crop { shorter_side: 9 });
        assert_eq!(
            spec("resize = \"letterbox\"", &crop).resize,
            Resize::Letterbox { anchor: Anchor::Centre, pad: 114 }
        );
    }

    #[test]
    fn what_a_node_writes_itself_is_still_checked() {
        let base = fields("width = 8\nheight = 8\nresize = \"letterbox\"");
        for (text, field) in [
            ("resize = \"stretch\"\npad = 3", "pad"),
            ("largest = [9, 9]\nwidth = 8", "largest"),
            ("largest = [9, 9]\nresize = \"crop\"", "resize"),
            ("dtype = \"u8\"\nmean = [1, 1, 1]", "mean"),
        ] {
            let mistakes = fields(text).over(&base).resolve().unwrap_err();
            assert_eq!(mistakes.iter().map(|mistake| mistake.field).collect::<Vec<_>>(), [field], "{text}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(toml::from_str::<InputFields>("witdh = 8").unwrap_err().to_string().contains("witdh"));
        let output = "decode = \"yolox\"\nname = \"output\"\nstrides = [8]\nanchors = 3";
        assert!(toml::from_str::<OutputSpec>(output).is_err());
    }
}
