//! Looks into an ONNX file that has no manifest yet: what goes in and out, and a manifest to start from.

use std::fmt::Write as _;
use std::path::Path;

use ort::session::Session;
use ort::value::{Outlet, TensorElementType};
use serde::Serialize;

use crate::error::StartError;
use crate::inference::decode::{fastestdet, yolo, yolox};
use crate::inference::runtime;

/// What an ONNX file says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// Version of the standard operators that it uses.
    pub opset: Option<u32>,
    /// The program that wrote it.
    pub producer: Option<String>,
    /// What its makers wrote about it.
    pub description: Option<String>,
}

/// One input or output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Port {
    pub name: String,
    /// Type of its elements, such as `f32`; `None` where it is no tensor.
    pub element: Option<String>,
    /// Lengths of its dimensions; `None` where the model leaves one open.
    pub shape: Vec<Option<usize>>,
}

impl Port {
    fn of(outlet: &Outlet) -> Port {
        let length = |length: &i64| usize::try_from(*length).ok();
        Port {
            name: outlet.name().to_owned(),
            element: outlet.dtype().tensor_type().map(|element| element.to_string()),
            shape: outlet.dtype().tensor_shape().map(|shape| shape.iter().map(length).collect()).unwrap_or_default(),
        }
    }

    /// `f32 [1, 3, ?, ?]`
    pub fn described(&self) -> String {
        let lengths: Vec<String> = self
            .shape
            .iter()
            .map(|length| length.map_or_else(|| "?".to_owned(), |length| length.to_string()))
            .collect();
        match &self.element {
            Some(element) => format!("{element} [{}]", lengths.join(", ")),
            None => "no tensor".to_owned(),
        }
    }

    fn is(&self, element: TensorElementType) -> bool {
        self.element.as_deref() == Some(element.to_string().as_str())
    }

    fn is_float(&self) -> bool {
        self.is(TensorElementType::Float32) || self.is(TensorElementType::Float16)
    }
}

/// Loads the ONNX file at `path` and looks at it.
///
/// # Errors
/// Where ONNX Runtime is missing, or the file is no model that it knows.
pub fn inspect(path: &Path) -> Result<Inspection, StartError> {
    let environment = runtime::environment()?;
    let load = || -> ort::Result<Session> {
        Session::builder(environment)?.with_intra_threads(1)?.with_inter_threads(1)?.commit_from_file(path)
    };
    let session = load().map_err(|error| {
        StartError::new(format!("{} cannot be loaded: {error}", path.display()))
            .hint("the file must be an ONNX model that this version of ONNX Runtime knows")
    })?;
    let metadata = session.metadata().ok();
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(Inspection {
        inputs: session.inputs().iter().map(Port::of).collect(),
        outputs: session.outputs().iter().map(Port::of).collect(),
        opset: session.opset_for_domain(""),
        producer: metadata.as_ref().and_then(|metadata| text(metadata.producer())),
        description: metadata.as_ref().and_then(|metadata| text(metadata.description())),
    })
}

/// How a model's pictures go in, as far as shapes tell.
struct Picture<'a> {
    name: &'a str,
    layout: &'static str,
    dtype: &'static str,
    /// Width and height; `None`: any.
    size: Option<[usize; 2]>,
}

fn picture(input: &Port) -> Option<Picture<'_>> {
    let dtype = match () {
        () if input.is(TensorElementType::Float32) => "f32",
        () if input.is(TensorElementType::Float16) => "f16",
        () if input.is(TensorElementType::Uint8) => "u8",
        () => return None,
    };
    let (layout, width, height) = match input.shape[..] {
        [_, Some(3), height, width] => ("nchw", width, height),
        [_, height, width, Some(3)] => ("nhwc", width, height),
        _ => return None,
    };
    Some(Picture { name: &input.name, layout, dtype, size: width.zip(height).map(|(width, height)| [width, height]) })
}

/// The `[output]` table that the shapes suggest, and how many classes it has.
fn output(outputs: &[Port], size: Option<[usize; 2]>) -> Option<(String, Option<usize>)> {
    let cells = |stride: usize| size.map_or(0, |[width, height]| (width / stride) * (height / stride));
    let rows = cells(8) + cells(16) + cells(32);
    let named = |decode: &str, port: &Port| format!("decode = \"{decode}\"\nname = {}\n", quoted(&port.name));
    if let Some(boxes) = outputs.iter().find(|port| port.is_float() && matches!(port.shape[..], [_, Some(4)]))
        && let Some(labels) = outputs.iter().find(|port| port.is(TensorElementType::Int64) && port.shape.len() == 1)
        && let Some(scores) = outputs.iter().find(|port| port.is_float() && port.shape.len() == 1)
    {
        let [boxes, labels, scores] = [boxes, labels, scores].map(|port| quoted(&port.name));
        let text = format!("decode = \"boxes_labels_scores\"\nboxes = {boxes}\nlabels = {labels}\nscores = {scores}\n");
        return Some((text, None));
    }
    let pair = |boxes: &Port, scores: &Port| matches!((&boxes.shape[..], &scores.shape[..]), ([_, a, Some(4)], [_, b, Some(_)]) if a == b);
    if let [first, second] = outputs
        && let Some((boxes, scores)) = [(first, second), (second, first)].into_iter().find(|(a, b)| pair(a, b))
    {
        let text = format!(
            "decode = \"ssd\"\nboxes = {}\nscores = {}\n\
             # The anchors, which the file does not tell: for each layer its cells, and the sizes of a cell in pixels.\n\
             layers = [{{ grid = [19, 19], sizes = [[60, 60]] }}]\n",
            quoted(&boxes.name),
            quoted(&scores.name)
        );
        return Some((text, scores.shape[2].map(|columns| columns.saturating_sub(1))));
    }
    let [only] = outputs else { return None };
    if !only.is_float() {
        return None;
    }
    match only.shape[..] {
        [_, Some(classes)] => Some((
            format!("# `none` instead where the scores add up to 1 already.\n{}", named("softmax", only)),
            Some(classes),
        )),
        [_, Some(planes), Some(down), Some(across)]
            if size.is_some_and(|[width, height]| {
                let stride = Some(fastestdet::STRIDE as usize);
                height.checked_div(down) == stride && width.checked_div(across) == stride
            }) =>
        {
            Some((named("fastestdet", only), planes.checked_sub(fastestdet::BOX_PLANES)))
        }
        [_, Some(count), Some(columns)] if count == rows && rows > 0 => {
            Some((format!("{}strides = [8, 16, 32]\n", named("yolox", only)), columns.checked_sub(yolox::BOX_COLUMNS)))
        }
        [_, Some(planes), Some(boxes)] if planes < boxes => {
            Some((named("yolov8", only), planes.checked_sub(yolo::V8_PLANES)))
        }
        [_, _, Some(columns)] => Some((named("yolov5", only), columns.checked_sub(yolo::V5_COLUMNS))),
        _ => None,
    }
}

/// A manifest to start from: what the shapes tell is filled in, and what only its makers know is said to be a guess.
/// `None` where no operator can use the model: its input is no picture.
pub fn manifest(inspection: &Inspection, file: &str, sha256: &str) -> Option<String> {
    let [input] = &inspection.inputs[..] else { return None };
    let Picture { name, layout, dtype, size } = picture(input)?;
    let (output, classes) = output(&inspection.outputs, size).unwrap_or_else(|| {
        let names: Vec<String> =
            inspection.outputs.iter().map(|port| format!("{} {}", port.name, port.described())).collect();
        let text = format!(
            "# None of the ways to decode fits these outputs: {}.\ndecode = \"softmax\"\nname = \"\"\n",
            names.join(", ")
        );
        (text, None)
    });
    let batch = match input.shape.first() {
        Some(Some(count @ 2..)) => format!("batch = {count}\n"),
        _ => String::new(),
    };
    let detects = !output.contains("softmax");
    let mut text = format!(
        "summary = \"\"\nfile = {}\nsha256 = \"{sha256}\"\nlicence = \"\"  # of the weights, as an SPDX expression\n\n\
         [input]\nname = {}\n{batch}layout = \"{layout}\"\ndtype = \"{dtype}\"\n",
        quoted(file),
        quoted(name)
    );
    match size {
        Some([width, height]) => {
            let _ = writeln!(text, "width = {width}\nheight = {height}");
            text.push_str("# From here on a guess: how its makers prepared pictures is not in the file.\n");
            let resize = if output.contains("fastestdet") || output.contains("\"ssd\"") {
                "resize = \"stretch\"\n".to_owned()
            } else if detects {
                "resize = \"letterbox\"\n".to_owned()
            } else {
                format!("resize = \"crop\"\nshorter_side = {}\n", width.max(height).min(7168) * 8 / 7)
            };
            text.push_str(&resize);
        }
        None => {
            text.push_str("largest = [1920, 1080]\n");
            text.push_str("# From here on a guess: how its makers prepared pictures is not in the file.\n");
        }
    }
    text.push_str("color = \"rgb\"\n");
    if dtype != "u8" {
        text.push_str("range = \"unit\"\n");
        if !detects {
            text.push_str("mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n");
        }
    }
    let _ = write!(text, "\n[output]\n{output}\n[labels]\nfile = \"labels.txt\"  # one class a line\n");
    if let Some(classes) = classes {
        let _ = writeln!(text, "count = {classes}");
    }
    if detects {
        text.push_str("\n[defaults]\nthreshold = 0.3\n");
        if !output.contains("boxes_labels_scores") {
            text.push_str("nms = 0.45\n");
        }
    }
    Some(text)
}

/// As a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::manifest::{Manifest, OutputSpec};
    use crate::transforms::reference::{context, material};

    fn port(name: &str, element: &str, shape: &[Option<usize>]) -> Port {
        Port { name: name.into(), element: Some(element.into()), shape: shape.to_vec() }
    }

    fn started(input: Port, outputs: Vec<Port>) -> Manifest {
        let inspection = Inspection { inputs: vec![input], outputs, opset: None, producer: None, description: None };
        let text = manifest(&inspection, "m.onnx", &"0".repeat(64)).unwrap();
        let manifest: Manifest = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        manifest.input.resolve().unwrap_or_else(|mistakes| panic!("{mistakes:?}\n{text}"));
        manifest
    }

    /// What is suggested for models that have a manifest is what their manifest says.
    #[test]
    fn known_models_are_recognised() {
        let Some(material) = material() else { return };
        let models = context(&material).models;
        for name in ["mobilenet_v3_small", "yolox_nano", "person", "fastestdet", "shapes"] {
            let model = models.get(name).unwrap();
            let inspection = inspect(&model.path).unwrap();
            assert!(inspection.opset.is_some_and(|opset| (11..30).contains(&opset)), "{inspection:?}");
            let text = manifest(&inspection, "m.onnx", &model.name.sha256).unwrap();
            let suggested: Manifest = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(suggested.input.name.as_deref(), Some(&*model.input_name), "{name}");
            let input = suggested.input.resolve().unwrap();
            assert_eq!(
                (input.size, input.layout, input.dtype),
                (model.input.size, model.input.layout, model.input.dtype)
            );
            // Strides of its own are nothing that shapes tell.
            if name != "shapes" {
                assert_eq!(suggested.output, model.output, "{name}");
            }
            if let Some(count) = suggested.labels.count.filter(|_| name != "shapes") {
                assert_eq!(count, model.labels.len(), "{name}");
            }
        }
    }

    #[test]
    fn shapes_suggest_how_to_decode() {
        let (one, some) = (Some(1), |length: usize| Some(length));
        let input = || port("images", "f32", &[one, some(3), some(640), some(640)]);
        let v8 = started(input(), vec![port("out", "f32", &[one, some(84), some(8400)])]);
        let v8_batch = v8.input.batch;
        assert_eq!((v8.output, v8.labels.count), (OutputSpec::Yolov8 { name: "out".into() }, some(80)));
        let v5 = started(input(), vec![port("out", "f16", &[one, some(25200), some(85)])]);
        assert_eq!((v5.output, v5.labels.count), (OutputSpec::Yolov5 { name: "out".into() }, some(80)));
        let ssd = [port("s", "f32", &[one, some(1917), some(91)]), port("b", "f32", &[one, some(1917), some(4)])];
        let ssd = started(port("x", "u8", &[one, some(300), some(300), some(3)]), ssd.to_vec());
        assert!(matches!(ssd.output, OutputSpec::Ssd { boxes, scores, .. } if boxes == "b" && scores == "s"));
        assert_eq!(ssd.labels.count, some(90));
        let four = Some(4);
        let eight =
            started(port("x", "f32", &[Some(8), some(3), four, four]), vec![port("y", "f32", &[Some(8), four])]);
        assert_eq!((eight.input.batch, v8_batch), (Some(8), None));
        let wide = || port("input", "f32", &[one, some(3), some(192), some(320)]);
        let cells = |down: usize, across: usize| vec![port("out", "f32", &[one, some(85), some(down), some(across)])];
        let fastestdet = started(wide(), cells(12, 20));
        assert_eq!(fastestdet.output, OutputSpec::Fastestdet { name: "out".into() });
        assert_eq!((fastestdet.input.width, fastestdet.input.height), (Some(320), Some(192)));
        for (down, across) in [(20, 12), (0, 0), (12, 0)] {
            let inspection = Inspection {
                inputs: vec![wide()],
                outputs: cells(down, across),
                opset: None,
                producer: None,
                description: None,
            };
            let text = manifest(&inspection, "m.onnx", "").unwrap();
            assert!(!text.contains("fastestdet") && text.contains("None of the ways to decode"), "{text}");
        }
        let odd = started(port("a \"b\"", "f32", &[None, some(3), None, None]), vec![port("y", "f32", &[one])]);
        assert_eq!(odd.input.name.as_deref(), Some("a \"b\""));
    }

    #[test]
    fn what_eats_no_pictures_gets_no_manifest() {
        let sound = Inspection {
            inputs: vec![port("input", "f32", &[Some(1), Some(576)])],
            outputs: Vec::new(),
            opset: None,
            producer: None,
            description: None,
        };
        assert_eq!(manifest(&sound, "m.onnx", ""), None);
    }
}
