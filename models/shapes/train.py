"""Trains the `shapes` detector on the engine's own synthetic scene and writes it as ONNX.

The pictures come from `synthetic_frames` (an example of the `operators` crate), are placed into the model's input as
the engine does it (letterbox at the top left, padded with 114, RGB in 0..1), and never touch a disk.
README.md beside this file says how to run it.
"""

import argparse
import functools
import hashlib
import json
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax
from onnx import TensorProto, helper, numpy_helper

LABELS = ["circle", "square", "triangle"]
WIDTH, HEIGHT, STRIDE = 320, 192, 16
COLUMNS, ROWS = WIDTH // STRIDE, HEIGHT // STRIDE
PADDING = 114
MOST_OBJECTS = 6
HELD_OUT_FIRST = 1_000_000

# Name, input channels, output channels, kernel, stride, residual. Each is followed by normalisation and ReLU.
LAYERS = [
    ("stem", 3, 16, 4, 4, False),
    ("fine", 16, 32, 3, 2, False),
    ("coarse", 32, 64, 3, 2, False),
    ("wide1", 64, 64, 3, 1, True),
    ("wide2", 64, 64, 3, 1, True),
    ("mix", 64, 64, 1, 1, False),
]
OUTPUTS = 5 + len(LABELS)


# --- pictures ---------------------------------------------------------------------------------------------------


def read_pictures(command, first, seeds, width, height, frames):
    """Yields (planes Y, U, V; objects) of `seeds` scenes."""
    arguments = [command, first, seeds, width, height, *frames]
    with subprocess.Popen([str(argument) for argument in arguments], stdout=subprocess.PIPE) as process:
        while line := process.stdout.readline():
            head = json.loads(line)
            sizes = [(height, width)] + [((height + 1) // 2, (width + 1) // 2)] * 2
            planes = [np.frombuffer(process.stdout.read(h * w), np.uint8).reshape(h, w) for h, w in sizes]
            yield planes, head["objects"]
    if process.returncode != 0:
        raise SystemExit(f"{command} failed: build it with `cargo build --release --workspace --examples`")


@functools.lru_cache
def resampling(source, target):
    """The matrix of a bilinear resize with antialiasing from `source` samples to `target`."""
    scale = source / target
    support = max(scale, 1.0)
    centers = (np.arange(target) + 0.5) * scale
    distance = (np.arange(source)[None, :] + 0.5 - centers[:, None]) / support
    weights = np.maximum(0.0, 1.0 - np.abs(distance))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def to_input(planes):
    """Places a picture into the model's input: u8 [HEIGHT, WIDTH, 3] RGB. Returns it and the scale."""
    height, width = planes[0].shape
    scale = min(WIDTH / width, HEIGHT / height)
    inner_width, inner_height = int(width * scale), int(height * scale)
    y, u, v = [
        resampling(plane.shape[0], inner_height) @ plane.astype(np.float32) @ resampling(plane.shape[1], inner_width).T
        for plane in planes
    ]
    # ITU-R BT.601, limited range.
    y, u, v = (y - 16) * (255 / 219), (u - 128) * (255 / 224), (v - 128) * (255 / 224)
    rgb = np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], -1)
    picture = np.full((HEIGHT, WIDTH, 3), PADDING, np.uint8)
    picture[:inner_height, :inner_width] = np.clip(np.rint(rgb), 0, 255)
    return picture, scale


def load(command, first, seeds, sizes, frames):
    """Pictures [N, H, W, 3] u8, boxes [N, MOST_OBJECTS, 4] in input pixels, classes [N, MOST_OBJECTS] (-1: none)."""
    pictures, boxes, classes = [], [], []
    for index, (width, height) in enumerate(sizes):
        share = [seeds * (index + step) // len(sizes) for step in (0, 1)]
        for planes, objects in read_pictures(command, first + share[0], share[1] - share[0], width, height, frames):
            picture, scale = to_input(planes)
            box, label = np.zeros((MOST_OBJECTS, 4), np.float32), np.full(MOST_OBJECTS, -1, np.int32)
            for slot, thing in enumerate(objects):
                box[slot], label[slot] = np.array(thing["box"]) * scale, LABELS.index(thing["label"])
            pictures.append(picture)
            boxes.append(box)
            classes.append(label)
    return np.stack(pictures), np.stack(boxes), np.stack(classes)


def augment(random, pictures, boxes, classes):
    """Mirrors, shifts by whole pixels and swaps channels, the same for a whole batch; chooses gains and offsets."""
    if random.random() < 0.5:
        pictures, boxes = pictures[:, :, ::-1], boxes.copy()
        boxes[..., [0, 2]] = WIDTH - boxes[..., [2, 0]]
    down, right = random.integers(0, STRIDE, 2)
    shifted = np.full_like(pictures, PADDING)
    shifted[:, down:, right:] = pictures[:, : HEIGHT - down, : WIDTH - right]
    limits = np.array([WIDTH, HEIGHT] * 2, np.float32)
    moved = np.minimum(boxes + np.array([right, down] * 2, np.float32), limits)
    area = lambda box: (box[..., 2:] - box[..., :2]).prod(-1)
    classes = np.where(area(moved) < 0.4 * area(boxes), -1, classes)
    if random.random() < 0.3:
        shifted = shifted[..., random.permutation(3)]
    gain = random.uniform(0.8, 1.2, (len(pictures), 1, 1, 1)).astype(np.float32)
    offset = random.uniform(-20, 20, (len(pictures), 1, 1, 3)).astype(np.float32)
    return shifted, gain, offset, moved, classes


# --- model ------------------------------------------------------------------------------------------------------


def initial(key):
    parameters, statistics = {}, {}
    for name, inputs, outputs, kernel, _, _ in LAYERS:
        key, one = jax.random.split(key)
        deviation = (2 / (inputs * kernel * kernel)) ** 0.5
        parameters[name] = {
            "weight": jax.random.normal(one, (outputs, inputs, kernel, kernel)) * deviation,
            "scale": jnp.ones(outputs),
            "shift": jnp.zeros(outputs),
        }
        statistics[name] = {"mean": jnp.zeros(outputs), "variance": jnp.ones(outputs)}
    inputs = LAYERS[-1][2]
    # Few cells hold an object, so objectness starts low; boxes start at three cells a side.
    bias = jnp.array([0.5, 0.5, 0.7, 0.7, -4.0] + [-1.0] * len(LABELS))
    parameters["head"] = {"weight": jax.random.normal(key, (OUTPUTS, inputs, 1, 1)) * 0.01, "bias": bias}
    return parameters, statistics


def convolve(x, weight, stride):
    pad = 0 if weight.shape[-1] == stride else weight.shape[-1] // 2
    # Channels last: much faster than NCHW in XLA on a CPU.
    return jax.lax.conv_general_dilated(
        x, weight.transpose(2, 3, 1, 0), (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def forward(parameters, statistics, pictures, training):
    """Raw outputs [N, ROWS * COLUMNS, OUTPUTS] (tx, ty, tw, th, then logits), and the new statistics."""
    x, updated = pictures, {}
    for name, _, _, _, stride, residual in LAYERS:
        layer, known = parameters[name], statistics[name]
        y = convolve(x, layer["weight"], stride)
        if training:
            mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
            updated[name] = {
                "mean": 0.97 * known["mean"] + 0.03 * mean,
                "variance": 0.97 * known["variance"] + 0.03 * variance,
            }
        else:
            mean, variance = known["mean"], known["variance"]
        y = (y - mean) * jax.lax.rsqrt(variance + 1e-5) * layer["scale"] + layer["shift"]
        x = jax.nn.relu(y + x if residual else y)
    head = parameters["head"]
    x = convolve(x, head["weight"], 1) + head["bias"]
    return x.reshape(x.shape[0], ROWS * COLUMNS, OUTPUTS), updated


GRID = np.stack([np.tile(np.arange(COLUMNS), ROWS), np.repeat(np.arange(ROWS), COLUMNS)], -1).astype(np.float32)


def to_boxes(raw):
    """Boxes [.., 4] as x1, y1, x2, y2 in input pixels, from tx, ty, tw, th."""
    center = (raw[..., :2] + GRID) * STRIDE
    half = jnp.exp(jnp.clip(raw[..., 2:4], -4, 4)) * (STRIDE / 2)
    return jnp.concatenate([center - half, center + half], -1)


def overlap(a, b):
    """Intersection over union of boxes."""
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    common = jnp.prod(jnp.maximum(high - low, 0), -1)
    area = lambda box: jnp.prod(jnp.maximum(box[..., 2:] - box[..., :2], 0), -1)
    return common / (area(a) + area(b) - common + 1e-6)


def targets(boxes, classes):
    """For each cell: whether it answers for an object, and for which. The one to four cells nearest to its centre do."""
    center = (boxes[..., :2] + boxes[..., 2:]) / (2 * STRIDE)
    distance = jnp.abs(GRID[None, :, None, :] + 0.5 - center[:, None]).max(-1)
    distance = jnp.where(classes[:, None] >= 0, distance, jnp.inf)
    nearest = distance.argmin(-1)
    return distance.min(-1) < 0.75, nearest


def loss(parameters, statistics, pictures, boxes, classes):
    raw, updated = forward(parameters, statistics, pictures, True)
    positive, nearest = targets(boxes, classes)
    box = jnp.take_along_axis(boxes, nearest[..., None], 1)
    label = jnp.take_along_axis(classes, nearest, 1)
    wanted_center = (box[..., :2] + box[..., 2:]) / (2 * STRIDE) - GRID
    wanted_size = jnp.log(jnp.maximum(box[..., 2:] - box[..., :2], 2.0) / STRIDE)
    iou = overlap(to_boxes(raw), box)
    count = jnp.maximum(positive.sum(), 1)
    mean = lambda values: jnp.where(positive, values, 0).sum() / count
    wanted = jnp.concatenate([wanted_center, wanted_size], -1)
    regression = mean(jnp.abs(raw[..., :4] - wanted).sum(-1)) + 2 * mean(1 - iou)
    # Objectness learns how good the cell's box is, so that the best of an object's cells wins.
    quality = jnp.where(positive, jax.lax.stop_gradient(jnp.clip(iou, 0.3, 1)), 0.0)
    objectness = optax.sigmoid_binary_cross_entropy(raw[..., 4], quality).sum() / count
    one_hot = jax.nn.one_hot(label, len(LABELS))
    classification = mean(optax.sigmoid_binary_cross_entropy(raw[..., 5:], one_hot).sum(-1))
    return regression + objectness + classification, updated


# --- evaluation -------------------------------------------------------------------------------------------------


def detections(output, threshold=0.01, iou_limit=0.45):
    """Class, score and box of what one picture's output [cells, OUTPUTS] (probabilities) says, after NMS per class."""
    boxes, scores = np.asarray(to_boxes(output)), output[:, 4:5] * output[:, 5:]
    best, kept = scores.argmax(1), []
    for cell in np.argsort(-scores.max(1)):
        score = scores[cell].max()
        if score < threshold:
            break
        same = [box for label, _, box in kept if label == best[cell]]
        if not same or np.asarray(overlap(boxes[cell], np.stack(same))).max() <= iou_limit:
            kept.append((best[cell], score, boxes[cell]))
    return kept


def mean_average_precision(found, boxes, classes):
    """mAP at IoU 0.5: the area under the interpolated precision curve (all points), mean over the labels."""
    average = []
    for label in range(len(LABELS)):
        ranked = sorted(
            ((score, picture, box) for picture, things in enumerate(found) for which, score, box in things if which == label),
            key=lambda entry: -entry[0],
        )
        truth = [boxes[picture][classes[picture] == label] for picture in range(len(found))]
        used = [np.zeros(len(things), bool) for things in truth]
        hits = []
        for _, picture, box in ranked:
            iou = np.asarray(overlap(box, truth[picture])) if len(truth[picture]) else np.zeros(0)
            best = int(iou.argmax()) if len(iou) else -1
            hit = best >= 0 and iou[best] >= 0.5 and not used[picture][best]
            if hit:
                used[picture][best] = True
            hits.append(hit)
        true = np.cumsum(hits)
        recall = true / max(sum(map(len, truth)), 1)
        precision = np.maximum.accumulate((true / np.arange(1, len(hits) + 1))[::-1])[::-1]
        average.append(float(np.sum(np.diff(recall, prepend=0) * precision)))
    return float(np.mean(average)), average


# --- export -----------------------------------------------------------------------------------------------------


def export(parameters, statistics, path):
    """Writes the ONNX graph, normalisation folded into the convolutions."""
    nodes, weights = [], []

    def constant(name, value, kind=np.float32):
        weights.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def add(operator, inputs, output, **attributes):
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    x = "images"
    for name, _, _, kernel, stride, residual in LAYERS:
        layer, known = parameters[name], statistics[name]
        factor = np.asarray(layer["scale"]) / np.sqrt(np.asarray(known["variance"]) + 1e-5)
        weight = constant(f"{name}.weight", np.asarray(layer["weight"]) * factor[:, None, None, None])
        bias = constant(f"{name}.bias", np.asarray(layer["shift"]) - np.asarray(known["mean"]) * factor)
        pad = 0 if kernel == stride else kernel // 2
        y = add("Conv", [x, weight, bias], f"{name}.conv", kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
        x = add("Relu", [add("Add", [y, x], f"{name}.sum") if residual else y], f"{name}.relu")
    head = parameters["head"]
    x = add("Conv", [x, constant("head.weight", head["weight"]), constant("head.bias", head["bias"])], "head.conv")
    x = add("Transpose", [x], "rows", perm=[0, 2, 3, 1])
    x = add("Reshape", [x, constant("shape", [1, ROWS * COLUMNS, OUTPUTS], np.int64)], "raw")
    box, rest = "box", "logits"
    split = constant("parts", [4, OUTPUTS - 4], np.int64)
    nodes.append(helper.make_node("Split", [x, split], [box, rest], name="split", axis=2))
    add("Concat", [box, add("Sigmoid", [rest], "probabilities")], "output", axis=2)
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    inputs = [value("images", [1, 3, HEIGHT, WIDTH])]
    outputs = [value("output", [1, ROWS * COLUMNS, OUTPUTS])]
    graph = helper.make_graph(nodes, "shapes", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="shapes")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def verify(path, parameters, statistics, pictures):
    """The largest difference between the written model (in ONNX's reference evaluator) and the trained one."""
    from onnx.reference import ReferenceEvaluator

    evaluator, worst = ReferenceEvaluator(str(path)), 0.0
    for picture in pictures:
        x = picture.astype(np.float32)[None] / 255
        raw, _ = forward(parameters, statistics, x, False)
        expected = np.concatenate([raw[..., :4], jax.nn.sigmoid(raw[..., 4:])], -1)
        (actual,) = evaluator.run(None, {"images": x.transpose(0, 3, 1, 2)})
        worst = max(worst, float(np.abs(actual - expected).max()))
    return worst


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--frames", default="target/release/examples/synthetic_frames", help="the built example")
    arguments.add_argument("--output", default="models/shapes.onnx")
    arguments.add_argument("--seeds", type=int, default=2000, help="training scenes, two pictures each")
    arguments.add_argument("--held-out", type=int, default=300, help="scenes to measure on, one picture each")
    arguments.add_argument("--steps", type=int, default=6000)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--minutes", type=float, default=60, help="be done with training after this long")
    options = arguments.parse_args()

    random = np.random.default_rng(1)
    started = time.monotonic()
    sizes = [(640, 360), (320, 180), (480, 360), (800, 450)]
    train = load(options.frames, 0, options.seeds, sizes, [0, 600])
    held_out = load(options.frames, HELD_OUT_FIRST, options.held_out, [(640, 360)], [0])
    print(f"{len(train[0])} training pictures in {time.monotonic() - started:.0f} s", flush=True)

    parameters, statistics = initial(jax.random.key(1))
    print(sum(value.size for value in jax.tree.leaves(parameters)), "parameters", flush=True)
    smoothed = parameters
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 20, 1000, 1e-5)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam(), optax.add_decayed_weights(1e-4))
    state = optimizer.init(parameters)

    @jax.jit
    def step(parameters, statistics, smoothed, state, rate, pictures, gain, offset, boxes, classes):
        pictures = jnp.clip(pictures * gain + offset, 0, 255) / 255
        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(
            parameters, statistics, pictures, boxes, classes
        )
        updates, state = optimizer.update(gradient, state, parameters)
        parameters = jax.tree.map(lambda value, update: value - rate * update, parameters, updates)
        smoothed = optax.incremental_update(parameters, smoothed, 0.01)
        return parameters, statistics, smoothed, state, value

    predict = jax.jit(lambda parameters, statistics, pictures: forward(parameters, statistics, pictures, False)[0])

    def measure():
        found = []
        for picture in held_out[0]:
            raw = np.array(predict(smoothed, statistics, picture[None].astype(np.float32) / 255))[0]
            raw[:, 4:] = 1 / (1 + np.exp(-raw[:, 4:]))
            found.append(detections(raw))
        return mean_average_precision(found, held_out[1], held_out[2])

    order, began = np.zeros(0, int), time.monotonic()
    for number in range(options.steps):
        if len(order) < options.batch:
            order = random.permutation(len(train[0]))
        chosen, order = order[: options.batch], order[options.batch :]
        batch = augment(random, *(values[chosen] for values in train))
        # On a busy machine the time is over before the steps are: the learning rate falls in time all the same.
        elapsed = time.monotonic() - began
        progress = max(number / options.steps, elapsed / (60 * options.minutes))
        if progress >= 1:
            break
        pace = rate(1000 * progress)
        parameters, statistics, smoothed, state, value = step(parameters, statistics, smoothed, state, pace, *batch)
        if (number + 1) % 100 == 0:
            print(f"step {number + 1}: loss {float(value):.3f}, {elapsed:.0f} s", flush=True)
        if (number + 1) % 1000 == 0:
            print("held out so far:", measure(), flush=True)
            export(smoothed, statistics, options.output)

    export(smoothed, statistics, options.output)
    print("ONNX differs from JAX by at most", verify(options.output, smoothed, statistics, held_out[0][:4]))
    total, each = measure()
    print(f"mAP at IoU 0.5 on seeds {HELD_OUT_FIRST}..{HELD_OUT_FIRST + options.held_out}: {total:.4f}", each)
    with open(options.output, "rb") as file:
        print("sha256", hashlib.sha256(file.read()).hexdigest())


if __name__ == "__main__":
    main()
