//! Writes small ONNX models for tests (onnx.proto3), field by field.

/// Types of elements, as `TensorProto.DataType` numbers them.
pub(crate) const FLOAT: u64 = 1;
pub(crate) const INT64: u64 = 7;
pub(crate) const FLOAT16: u64 = 10;

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 127 {
        bytes.push((value & 127) as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field with a number.
fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field with bytes: text, or a message.
fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

/// An input or output; `None` leaves a dimension open.
fn value(name: &str, element: u64, shape: &[Option<u64>]) -> Vec<u8> {
    let length = |length: &Option<u64>| match length {
        Some(length) => bytes(1, &number(1, *length)),
        None => bytes(1, &bytes(2, b"open")),
    };
    let lengths: Vec<u8> = shape.iter().flat_map(length).collect();
    let tensor = [number(1, element), bytes(2, &lengths)].concat();
    [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &tensor))].concat()
}

fn node(kind: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut node: Vec<u8> = inputs.iter().flat_map(|input| bytes(1, input.as_bytes())).collect();
    node.extend([bytes(2, output.as_bytes()), bytes(4, kind.as_bytes())].concat());
    node.extend(attributes.iter().flat_map(|attribute| bytes(5, attribute)));
    bytes(1, &node)
}

/// A node that always gives these elements, little-endian.
fn constant(output: &str, element: u64, shape: &[u64], elements: &[u8]) -> Vec<u8> {
    const TENSOR: u64 = 4;
    let lengths: Vec<u8> = shape.iter().flat_map(|length| number(1, *length)).collect();
    let tensor = [lengths, number(2, element), bytes(9, elements)].concat();
    node("Constant", &[], output, &[[bytes(1, b"value"), bytes(5, &tensor), number(20, TENSOR)].concat()])
}

/// A model of these nodes, inputs and outputs.
fn model(nodes: &[Vec<u8>], inputs: &[Vec<u8>], outputs: &[Vec<u8>]) -> Vec<u8> {
    let mut graph: Vec<u8> = nodes.concat();
    graph.extend(bytes(2, b"graph"));
    graph.extend(inputs.iter().flat_map(|input| bytes(11, input)));
    graph.extend(outputs.iter().flat_map(|output| bytes(12, output)));
    [number(1, 8), bytes(7, &graph), bytes(8, &number(2, 13))].concat()
}

/// A classifier whose three `scores` are the means of the three channels of `pixels` (8 x 8), all of the type `element`;
/// `batch` is the first dimension.
pub(crate) fn means(element: u64, batch: Option<u64>) -> Vec<u8> {
    let nodes = [node("GlobalAveragePool", &["pixels"], "means", &[]), node("Flatten", &["means"], "scores", &[])];
    let pixels = value("pixels", element, &[batch, Some(3), Some(8), Some(8)]);
    model(&nodes, &[pixels], &[value("scores", element, &[batch, Some(3)])])
}

/// A detector with the interface of torchvision's Faster R-CNN: `image` of any size in; `boxes`, `labels` and `scores`
/// out. It always gives these boxes (x1, y1, x2, y2) and labels; the score of each of the three is the mean of a channel.
pub(crate) fn three_boxes(corners: [[f32; 4]; 3], labels: [i64; 3]) -> Vec<u8> {
    const INT: u64 = 2;
    const INTS: u64 = 7;
    let axes: Vec<u8> = [0, 2, 3].iter().flat_map(|axis| number(8, *axis)).collect();
    let over_pixels = [bytes(1, b"axes"), axes, number(20, INTS)].concat();
    let without_them = [bytes(1, b"keepdims"), number(3, 0), number(20, INT)].concat();
    let corners: Vec<u8> = corners.as_flattened().iter().flat_map(|side| side.to_le_bytes()).collect();
    let numbers: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
    let nodes = [
        node("ReduceMean", &["image"], "scores", &[over_pixels, without_them]),
        constant("boxes", FLOAT, &[3, 4], &corners),
        constant("labels", INT64, &[3], &numbers),
    ];
    let image = value("image", FLOAT, &[Some(1), Some(3), None, None]);
    let outputs =
        [value("boxes", FLOAT, &[None, Some(4)]), value("labels", INT64, &[None]), value("scores", FLOAT, &[None])];
    model(&nodes, &[image], &outputs)
}
