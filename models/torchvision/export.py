"""Exports torchvision's MobileNetV3 and Faster R-CNN to ONNX and writes their manifests.

Each exported model is run beside the network that it came from, on a picture of another size than it was exported with;
a difference ends the script. `script/export-models` sets up what this needs and runs it.
"""

import argparse
import hashlib
import pathlib
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large
from torchvision.models.detection import (
    FasterRCNN_MobileNet_V3_Large_320_FPN_Weights,
    fasterrcnn_mobilenet_v3_large_320_fpn,
)

OPSET = 17
SEED = 7
# Which scores random weights give to 91 classes is chance: this lets boxes through.
RANDOM_SCORE = 0.05
# So many of the boxes must be the same: where two scores are all but equal, either box may suppress the other.
SAME_BOXES = 0.95


class Detector(torch.nn.Module):
    """Takes [1, 3, height, width] instead of a list, and gives tensors instead of dictionaries."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        [found] = self.network([image[0]])
        return found["boxes"], found["labels"], found["scores"]


def picture(height, width):
    """A scene of smooth colours and some blocks, 0..1."""
    generator = np.random.default_rng(SEED)
    coarse = generator.random((1, 3, 6, 8), np.float32)
    return torch.nn.functional.interpolate(torch.from_numpy(coarse), (height, width), mode="bilinear")


def run(path, network, image):
    """What the network says, and what the exported model says."""
    with torch.no_grad():
        expected = network(image)
    expected = expected if isinstance(expected, tuple) else (expected,)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    return [one.numpy() for one in expected], found


def compare_scores(path, network, image):
    [[expected], [found]] = run(path, network, image)
    if expected.shape != found.shape or not np.allclose(expected, found, rtol=1e-3, atol=1e-3):
        raise SystemExit(f"{path}: its scores {found.shape} are not those of the network {expected.shape}")
    print(f"{path}: the scores of {len(found)} pictures agree with the network's")


def compare_boxes(path, network, image):
    (boxes, labels, scores), (found_boxes, found_labels, found_scores) = run(path, network, image)

    def has_its_like(box, label, score):
        same = (found_labels == label) & (np.abs(found_scores - score) < 1e-2)
        return bool(np.any(same & (np.abs(found_boxes - box).max(axis=1) < 1.0)))

    same = sum(has_its_like(*one) for one in zip(boxes, labels, scores))
    if len(boxes) == 0 or len(found_boxes) != len(boxes) or same < SAME_BOXES * len(boxes):
        raise SystemExit(f"{path}: {same} of the network's {len(boxes)} boxes are among its {len(found_boxes)}")
    print(f"{path}: {same} of the network's {len(boxes)} boxes are among its {len(found_boxes)}")


def shuffle(network):
    """Random weights that keep the size of what flows: torchvision's own let it fade, and every score would be the same.
    Those that move boxes stay small, so that boxes differ."""
    for name, module in network.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and not name.endswith("bbox_pred"):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def written(folder, name, manifest):
    """Writes the manifest beside the model, with the model's hash."""
    model = folder / f"{name}.onnx"
    onnx.checker.check_model(str(model), full_check=True)
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    text = manifest.replace("@FILE@", model.name).replace("@SHA256@", sha256)
    (folder / f"{name}.toml").write_text(text)
    print(f"{folder / name}.toml: {model.stat().st_size} bytes, sha256 {sha256}")


def strings(names):
    """A list of TOML."""
    quoted = ['"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names]
    return "[\n" + "".join(f"    {name},\n" for name in quoted) + "]"


def numbers(values):
    return "[" + ", ".join(str(value) for value in values) + "]"


def classifier(folder, random):
    weights = MobileNet_V3_Large_Weights.IMAGENET1K_V2
    network = mobilenet_v3_large(weights=None if random else weights).eval()
    if random:
        shuffle(network)
    name = "torchvision_mobilenet_v3_large"
    path = str(folder / f"{name}.onnx")
    torch.onnx.export(
        network,
        picture(224, 224),
        path,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        dynamo=False,
    )
    compare_scores(path, network, torch.cat([picture(224, 224), picture(224, 224).flip(3)]))
    way = weights.transforms()
    origin = "random weights: its answers mean nothing" if random else "weights IMAGENET1K_V2"
    written(
        folder,
        name,
        f"""summary = "Classifies a picture into the 1000 classes of ImageNet ({origin})."
file = "@FILE@"
sha256 = "@SHA256@"
licence = "BSD-3-Clause"
source = "mobilenet_v3_large of torchvision"

[input]
name = "input"
layout = "nchw"
dtype = "f32"
width = {way.crop_size[0]}
height = {way.crop_size[0]}
color = "rgb"
range = "unit"
mean = {numbers(way.mean)}
std = {numbers(way.std)}
resize = "crop"
shorter_side = {way.resize_size[0]}
antialias = true

[output]
decode = "softmax"
name = "logits"

[labels]
count = 1000
names = {strings(weights.meta["categories"])}
""",
    )


def detector(folder, random):
    weights = FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1
    if random:
        network = fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=91, box_score_thresh=RANDOM_SCORE
        )
        shuffle(network)
    else:
        network = fasterrcnn_mobilenet_v3_large_320_fpn(weights=weights)
    network = Detector(network).eval()
    name = "torchvision_fasterrcnn_mobilenet_v3_large_320_fpn"
    path = str(folder / f"{name}.onnx")
    torch.onnx.export(
        network,
        picture(240, 320),
        path,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["boxes", "labels", "scores"],
        dynamic_axes={
            "image": {2: "height", 3: "width"},
            "boxes": {0: "count"},
            "labels": {0: "count"},
            "scores": {0: "count"},
        },
        dynamo=False,
    )
    compare_boxes(path, network, picture(360, 500))
    # The categories of COCO by their numbers; some numbers are not in use.
    used = [(number, name) for number, name in enumerate(weights.meta["categories"]) if name not in ("__background__", "N/A")]
    origin = "random weights: its answers mean nothing" if random else "weights COCO_V1"
    threshold = RANDOM_SCORE if random else 0.5
    written(
        folder,
        name,
        f"""summary = "Finds the 80 classes of COCO in pictures of any size, NMS inside ({origin})."
file = "@FILE@"
sha256 = "@SHA256@"
licence = "BSD-3-Clause"
source = "fasterrcnn_mobilenet_v3_large_320_fpn of torchvision"

# It makes pictures smaller, to 320 pixels of the shorter side, and normalises them by itself.
[input]
name = "image"
layout = "nchw"
dtype = "f32"
largest = [1920, 1080]
color = "rgb"
range = "unit"

[output]
decode = "boxes_labels_scores"
boxes = "boxes"
labels = "labels"
scores = "scores"

[labels]
names = {strings(name for _, name in used)}
ids = {numbers(number for number, _ in used)}

[defaults]
threshold = {threshold}
""",
    )


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=pathlib.Path, help="where models and manifests go")
    arguments.add_argument("--random", action="store_true", help="random weights, so that nothing is downloaded")
    arguments = arguments.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    # Tracing warns of every number that it takes for a constant; whether that matters, the comparison tells.
    warnings.simplefilter("ignore")
    torch.manual_seed(SEED)
    classifier(arguments.folder, arguments.random)
    detector(arguments.folder, arguments.random)


main()
