"""An exported file in 8 bits, by onnxruntime's own quantiser: faster where the processor multiplies 8-bit integers (VNNI, AMX,
Arm's dot product).

The quantiser alone gains nothing on these networks, so the graph is made ready first:

- Batch normalisation stands before zero-padded convolutions.  Its scale goes into their weights and its shift into their bias.
  At the border, where the padding is, a part of the shift is missing; that part is added as a map of its own.
- The channels of each activation are scaled to one range, which the next weights take back.  So one 8-bit scale fits all of
  them, and what is concatenated has the same one.
- Concatenating works on the 8-bit values; the decoder follows one dequantisation.  Enlarging works on floats in between, since
  onnxruntime enlarges 8-bit values several times as slowly.
- A pose model's last convolution gives log-odds.  Those below `LEAST_LOGIT` are all the same to the decoder, so the 8 bits are
  spent on the others.  The detector's last convolution, whose channels mean different things, stays in float.

It needs onnx and onnxruntime, not torch.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from handunet.backends import kind_of, leave_out_torch, normalization_of
from handunet.files import written_whole

LEAST_LOGIT = -6.0  # a heatmap's value of 0.0025
CALIBRATION_IMAGES = 128
BATCH = 4
# Shares of the calibration's range of an activation.  8 bits reach up to the first one: finer steps are worth more than the
# few highest values.  A convolution's result is kept down to minus the second one: so much the border's map can lift it.
HIGHEST = 0.9
LOWEST = 0.5
# A channel that is hardly ever active is taken for one with this share of the highest channel's range.  Batch normalisation
# gives such channels the largest weights, and a larger share would let them set the steps of all weights.
LEAST_SHARE = 0.002
# Of keypoints that are clear (this score) in both files: their mean distance, in pixels of the input, is at most this.
CLEAR, KEYPOINT_TOLERANCE = 0.5, 1.5
# Mean difference of the scores of the surest hand.
SCORE_TOLERANCE = 0.05


def quantize(source: Path, output: Path, folder: Path) -> None:
    """Write the exported file `source` in 8 bits to `output`, calibrated on the photographs in `folder`.

    Raises `OSError` or `ValueError` for a folder without photographs, and `RuntimeError` if the answers differ too much.
    """
    import onnx

    model = onnx.load(source)
    settings = json.loads({entry.key: entry.value for entry in model.metadata_props}["handunet"])
    inputs = calibration_inputs(folder, settings)
    with written_whole(output) as partial:
        graph = Graph(model)
        graph.fold()
        graph.equalize(inputs)
        graph.write(partial, inputs, settings)
        check(source, partial, inputs, kind_of(settings))


def calibration_inputs(folder: Path, settings: dict) -> list[np.ndarray]:
    """Batches of the network's input from a folder with COCO `annotations.json` and `images/`: of a detector whole
    photographs, of a pose model crops round the hands' boxes.  Where photographs have a `split`, those for training."""
    chosen = photographs(folder, settings, "train")
    if not chosen:
        raise ValueError(f"{folder} has no photographs for training: give a folder with annotations.json and images.")
    pixels = []
    for index in np.random.default_rng(0).permutation(len(chosen))[:CALIBRATION_IMAGES]:
        image, hand = chosen[index]
        pixels.append(cut(folder, image, hand, settings)[1])
    return [normalized(pixels[first : first + BATCH], settings) for first in range(0, len(pixels), BATCH)]


def photographs(folder: Path, settings: dict, split: str) -> list[tuple[dict, dict | None]]:
    """What a model reads of a folder with COCO `annotations.json`: of a detector each photograph and None, of a pose model
    each hand with its photograph.  A photograph without a `split` belongs to "train"."""
    coco = json.loads((folder / "annotations.json").read_text())
    images = {image["id"]: image for image in coco["images"] if image.get("split", "train") == split}
    if kind_of(settings) == "detector":
        return [(image, None) for image in images.values()]
    return [(images[hand["image_id"]], hand) for hand in coco["annotations"] if hand["image_id"] in images]


def cut(folder: Path, image: dict, hand: dict | None, settings: dict):
    """The [`Crop`] that a model reads of a photograph in `folder`, and its pixels (size, size, 3)."""
    leave_out_torch()
    from modeling_handunet.crops import Crop

    size = settings["image_size"]
    with Image.open(folder / "images" / image["file_name"]) as file:
        photo = file.convert("RGB")
    if hand is None:
        crop = Crop.of_image(*photo.size, size)
    else:
        crop = Crop.around_box(hand["bbox"], size, settings["box_fill"], mirrored=hand.get("handedness") == "left")
    return crop, np.asarray(crop.cut(photo))


def normalized(pixels: list[np.ndarray], settings: dict) -> np.ndarray:
    """Pixels (B, size, size, 3) as the network's input."""
    from modeling_handunet.crops import normalize_crops

    return normalize_crops(np.stack(pixels), *normalization_of(settings))


def session(model, names=()):
    """A session of a file, or of a model whose tensors `names` become outputs too."""
    import onnx
    import onnxruntime

    if not isinstance(model, str):
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        present = {output.name for output in copy.graph.output}
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
        model = copy.SerializeToString()
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


class Graph:
    """An exported graph on its way to 8 bits.

    ranges: of tensors, the lowest and the highest value that 8 bits hold.
    """

    def __init__(self, model):
        from onnx import numpy_helper

        self.model = model
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.ranges: dict[str, tuple[float, float]] = {}
        self._find()

    def _find(self) -> None:
        """Who makes and who takes each tensor."""
        nodes = self.model.graph.node
        self.maker = {name: node for node in nodes for name in node.output}
        self.takers = defaultdict(list)
        for node in nodes:
            for name in node.input:
                self.takers[name].append(node)

    def _set_nodes(self, nodes) -> None:
        """Take these nodes, those of them that lead to the outputs, with the values that they need."""
        from onnx import numpy_helper

        graph, needed, kept = self.model.graph, {output.name for output in self.model.graph.output}, []
        for node in reversed(nodes):
            if needed.intersection(node.output):
                node.name = node.name or node.output[0]
                kept.append(type(node).FromString(node.SerializeToString()))
                needed.update(node.input)
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(reversed(kept))
        self.values = {name: value for name, value in self.values.items() if name in needed}
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in self.values.items())
        self._find()

    def fold(self) -> None:
        """Fold batch normalisation into the convolution behind it, exactly: the bias holds the shift as seen inside, and
        the map in an Add what of it is missing at the border."""
        from onnx import helper

        shapes = {info.name: info.type.tensor_type.shape.dim for info in self.model.graph.value_info}
        nodes = []
        for node in self.model.graph.node:
            normalization = self.maker.get(node.input[0]) if node.op_type == "Conv" else None
            if normalization is not None and normalization.op_type == "BatchNormalization":
                name = node.output[0]
                scale, shift = scale_and_shift([self.values[part] for part in normalization.input[1:5]], normalization)
                weight = self.values[node.input[1]].astype(np.float64)  # (O, I, 3, 3)
                shifts = np.einsum("oikl,i->okl", weight, shift)
                self.values[f"{name}_weight"] = (weight * scale[:, None, None]).astype(np.float32)
                self.values[f"{name}_bias"] = shifts.sum((1, 2)).astype(np.float32)
                self.values[f"{name}_border"] = border_map(shifts, *(size.dim_value for size in shapes[name][2:]))
                inputs = [normalization.input[0], f"{name}_weight", f"{name}_bias"]
                nodes.append(helper.make_node("Conv", inputs, [f"{name}_inside"], kernel_shape=[3, 3], pads=[1] * 4))
                nodes.append(helper.make_node("Add", [f"{name}_inside", f"{name}_border"], [name]))
            elif node.op_type == "Resize":
                self.values["twice"] = np.array([1, 1, 2, 2], np.float32)
                options = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
                nodes.append(helper.make_node("Resize", [node.input[0], "", "twice"], node.output, **options))
            else:
                nodes.append(node)
        self._set_nodes(nodes)

    def equalize(self, inputs: list[np.ndarray]) -> None:
        """Scale every channel behind a ReLU to the range from 0 to 1 on the calibration's `inputs`."""
        activations = [
            node.output[0]
            for node in self.model.graph.node
            if node.op_type == "Relu" and self.maker[node.input[0]].op_type == "Add"  # a convolution with its border
        ]
        highest = dict.fromkeys(activations, 0)
        run = session(self.model, activations)
        for batch in inputs:
            for name, value in zip(activations, run.run(activations, {"pixel_values": batch})):
                highest[name] = np.maximum(highest[name], value.max((0, 2, 3)))
        factors = {name: channel_factors(value) for name, value in highest.items()}
        for node in self.model.graph.node:
            if node.op_type != "Conv":
                continue
            weight = self.values[node.input[1]].astype(np.float64)
            if (source := self._factors(node.input[0], factors)) is not None:
                weight = weight / source[:, None, None]
            (taker,) = self.takers[node.output[0]]
            if taker.op_type == "Add":
                factor = factors[self.takers[taker.output[0]][0].output[0]]
                weight = weight * factor[:, None, None, None]
                for name, shape in ((node.input[2], (-1,)), (taker.input[1], (1, -1, 1, 1))):
                    self.values[name] = (self.values[name] * factor.reshape(shape)).astype(np.float32)
            self.values[node.input[1]] = weight.astype(np.float32)
        self._set_nodes(self._unscaled_for_classifier(factors))
        for name in self.maker:
            if self._factors(name, factors) is not None:
                self.ranges[name] = (0.0, HIGHEST)

    def _unscaled_for_classifier(self, factors: dict[str, np.ndarray]) -> list:
        """All nodes, and those that give a hand classifier, which stays in float, its features as they were."""
        from onnx import helper

        nodes = []
        for node in self.model.graph.node:
            nodes.append(node)
            name = node.output[0]
            others = [taker for taker in self.takers[name] if taker.op_type not in ("Conv", "Concat", "MaxPool", "Resize")]
            if name in factors and others:
                self.values[f"{name}_factors"] = (1 / factors[name]).reshape(1, -1, 1, 1).astype(np.float32)
                nodes.append(helper.make_node("Mul", [name, f"{name}_factors"], [f"{name}_unscaled"]))
                for taker in others:
                    taker.input[:] = [f"{name}_unscaled" if own == name else own for own in taker.input]
        return nodes

    def _factors(self, name: str, factors: dict[str, np.ndarray]) -> np.ndarray | None:
        """The factors of the channels of a tensor that only pooling, enlarging and concatenating part from a ReLU."""
        node = self.maker.get(name)
        if name in factors or node is None:
            return factors.get(name)
        if node.op_type in ("MaxPool", "Resize"):
            return self._factors(node.input[0], factors)
        if node.op_type != "Concat":
            return None
        parts = [self._factors(part, factors) for part in node.input]
        return None if any(part is None for part in parts) else np.concatenate(parts)

    def write(self, path: Path, inputs: list[np.ndarray], settings: dict) -> None:
        """Quantise and write, with ranges from the calibration's `inputs`."""
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        convolutions = [node for node in self.model.graph.node if node.op_type == "Conv"]
        (head,) = [node for node in convolutions if self.takers[node.output[0]][0].op_type != "Add"]
        borders = [(node.output[0], self.takers[node.output[0]][0]) for node in convolutions if node is not head]
        self._range_inside(borders, inputs)
        for name, add in borders:
            # A map that lifts further would lift what 8 bits have cut off too.  What is below -1 gives 0 behind the ReLU.
            self.values[add.input[1]] = self.values[add.input[1]].clip(-1, -self.ranges[name][0])
        self._set_nodes(list(self.model.graph.node))
        (first,) = {node.input[0] for node in convolutions} - self.ranges.keys()
        limits = (np.array([[0.0], [255 * settings["rescale_factor"]]]) - settings["image_mean"]) / settings["image_std"]
        self.ranges[first] = (limits.min(), limits.max())
        quantized = [node for node in self.model.graph.node if self.ranges.keys() & node.output]
        quantized += [taker for _, taker in borders]
        if kind_of(settings) == "pose":
            run = session(self.model, [head.output[0]])
            highest = max(run.run(head.output, {"pixel_values": batch})[0].max() for batch in inputs)
            self.ranges[head.output[0]] = (LEAST_LOGIT, float(highest) + 1)
            quantized.append(head)
        folded = path.with_name(f"{path.name}.folded")
        onnx.save(self.model, folded)
        root_level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it recommends a preparation that these graphs do not need
        try:
            quantize_static(
                folded,
                path,
                Reader(inputs[:1]),  # all ranges are known
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=[node.name for node in quantized],
                op_types_to_quantize=["Add", "Concat", "Conv", "MaxPool", "Relu", "Resize"],
                extra_options={
                    "ActivationSymmetric": False,
                    "WeightSymmetric": True,
                    "TensorQuantOverrides": {name: [eight_bits(*limits)] for name, limits in self.ranges.items()},
                },
            )
        finally:
            logging.root.setLevel(root_level)
            folded.unlink()
        finished = Graph(onnx.load(path))
        finished.pack_borders()
        del finished.model.metadata_props[:]
        finished.model.metadata_props.extend(self.model.metadata_props)
        onnx.save(finished.model, path)

    def _range_inside(self, borders, inputs: list[np.ndarray]) -> None:
        """The range of each convolution's result before its border's map: what is below, no map lifts above 0."""
        names = [name for name, _ in borders]
        lowest = dict.fromkeys(names, 0.0)
        run = session(self.model, names)
        for batch in inputs:
            for (name, add), value in zip(borders, run.run(names, {"pixel_values": batch})):
                border = self.values[add.input[1]]
                lifted = np.where((border != 0) & (value + border > 0), value, 0)
                lowest[name] = min(lowest[name], float(lifted.min()))
        for name in names:
            self.ranges[name] = (max(lowest[name], -LOWEST), HIGHEST)

    def pack_borders(self) -> None:
        """Store of each border's map the first, the last and one inner row and column; onnxruntime unpacks it on loading."""
        from onnx import helper

        nodes = []
        for name, value in list(self.values.items()):
            if not name.endswith("_border_quantized") or min(value.shape[2:]) <= 3:
                continue
            self.values[f"{name}_packed"] = value[:, :, [0, 1, -1]][:, :, :, [0, 1, -1]]
            del self.values[name]
            source = f"{name}_packed"
            for axis, target in ((2, f"{name}_rows"), (3, name)):
                size = value.shape[axis]
                self.values[f"unpack_{size}"] = np.array([0, *[1] * (size - 2), 2])
                nodes.append(helper.make_node("Gather", [source, f"unpack_{size}"], [target], axis=axis))
                source = target
        self._set_nodes(nodes + list(self.model.graph.node))


def channel_factors(highest: np.ndarray) -> np.ndarray:
    """What takes each channel's highest value (C,) to 1; less for a channel that is hardly ever active."""
    return 1 / np.maximum(highest, max(LEAST_SHARE * highest.max(), 1e-6))


def scale_and_shift(parts: list[np.ndarray], normalization) -> tuple[np.ndarray, np.ndarray]:
    """Batch normalisation as a factor and a summand of each channel, from its weight, bias, mean and variance."""
    weight, bias, mean, variance = (part.astype(np.float64) for part in parts)
    (epsilon,) = [attribute.f for attribute in normalization.attribute if attribute.name == "epsilon"]
    scale = weight / np.sqrt(variance + epsilon)
    return scale, bias - mean * scale


def border_map(shifts: np.ndarray, height: int, width: int) -> np.ndarray:
    """What is missing at each pixel (1, O, height, width) of the sum of `shifts` (O, 3, 3): those that lie in the padding."""
    rows, columns = (np.arange(size)[:, None] + [-1, 0, 1] for size in (height, width))  # (size, 3)
    inside = [(places >= 0) & (places < len(places)) for places in (rows, columns)]
    present = np.einsum("okl,yk,xl->oyx", shifts, *(mask.astype(np.float64) for mask in inside))
    missing = present - shifts.sum((1, 2))[:, None, None]
    missing[:, 1:-1, 1:-1] = 0  # to the last bit
    return missing[None].astype(np.float32)


def eight_bits(low: float, high: float) -> dict:
    """Scale and zero point with which 0 to 255 hold `low` to `high`, and 0 exactly."""
    from onnxruntime.quantization import QuantType

    scale = (high - low) / 255
    zero_point = np.array(round(-low / scale), np.uint8)
    return {"scale": np.array(scale, np.float32), "zero_point": zero_point, "quant_type": QuantType.QUInt8}


class Reader:
    """Batches as onnxruntime's calibration reads them."""

    def __init__(self, inputs: list[np.ndarray]):
        self.batches: Iterator[np.ndarray] = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pixel_values": batch}


def check(source: Path, path: Path, inputs: list[np.ndarray], kind: str) -> None:
    """Raise `RuntimeError` if the file in 8 bits answers the calibration's inputs too differently."""
    names = ["keypoints", "scores"] if kind == "pose" else ["boxes", "scores"]
    answers = []
    for file in (source, path):
        run = session(str(file))
        parts = [run.run(names, {"pixel_values": batch}) for batch in inputs[:8]]
        answers.append([np.concatenate(values) for values in zip(*parts)])
    (points, scores), (quantized_points, quantized_scores) = answers
    if kind == "pose":
        clear = (scores >= CLEAR) & (quantized_scores >= CLEAR)
        distances = np.linalg.norm(points - quantized_points, axis=-1)[clear]
        distance, limit, what = distances.mean() if len(distances) else 0.0, KEYPOINT_TOLERANCE, "px, keypoints that are clear"
    else:
        distance, limit = np.abs(scores.max(1) - quantized_scores.max(1)).mean(), SCORE_TOLERANCE
        what = "scores of the surest hand"
    if not distance <= limit:
        raise RuntimeError(
            f"In 8 bits the mean difference of {what} is {distance:.3g}, at most {limit:g} was expected: use the file without "
            "--quantize, or photographs that are more like yours."
        )
