"""Write a HandUNet as one ONNX file that needs neither torch nor transformers.

    handunet export MODEL OUTPUT.onnx

MODEL is a folder written by `save_pretrained`, or an id on the Hub.  Exporting needs `pip install 'handunet[torch,onnx]'`.
Using the file needs onnxruntime, an image reader and the README's ten lines, or `handunet photo.jpg --model OUTPUT.onnx`.

The graph takes `pixel_values` (batch, 3, image_size, image_size) float32, prepared as the model's image processor does
it.  It gives `heatmaps` (batch, 21, image_size, image_size), `keypoints` (batch, 21, 2), (x, y) in pixels of the input,
decoded as `decode_heatmaps` does by default, and `scores` (batch, 21), corrected with the processor's temperature.  The
metadata entry `handunet` holds as JSON what a caller must know about the processor and the keypoints.  Before the file
gets its name, it is compared with torch: heatmaps within 1e-4, keypoints within 0.01 px.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from handunet.files import written_whole
from modeling_handunet import HandUNetForPoseEstimation, HandUNetImageProcessor, decode_heatmaps
from modeling_handunet import heatmaps as heatmaps_module
from modeling_handunet.heatmaps import calibrate_scores
from modeling_handunet.keypoints import keypoint_color

METADATA_KEY = "handunet"
OUTPUT_NAMES = ("heatmaps", "keypoints", "scores")
HEATMAP_TOLERANCE = 1e-4
KEYPOINT_TOLERANCE = 0.01  # pixels of the input
CHECKED_BATCHES = (1, 3)


class HandUNetWithDecoder(nn.Module):
    """The network and its decoder as one graph, with the temperature of the scores."""

    def __init__(self, model: HandUNetForPoseEstimation, temperature: float = 1.0):
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heatmaps = self.model(pixel_values).heatmaps.contiguous()  # ONNX's memory format, so that nothing is transposed
        keypoints, scores = decode_heatmaps(heatmaps)
        return heatmaps, keypoints, calibrate_scores(scores, self.temperature)


def settings_of(model: HandUNetForPoseEstimation, processor: HandUNetImageProcessor) -> dict:
    """What a caller of the graph must know, as JSON data.

    `image_size`; `rescale_factor`, `image_mean` and `image_std`, applied in this order to 8-bit RGB; `box_fill`, the
    longer side of the hand's box divided by the side of the square crop; `keypoint_names`, `skeleton` and
    `keypoint_colors` (RGB, 8-bit) by index.

    Raises `ValueError` if processor and model do not fit each other.
    """
    size = processor.size["height"]
    if size != model.config.image_size:
        raise ValueError(f"The processor makes crops of {size} pixels, but the model reads {model.config.image_size}.")
    count = model.config.num_keypoints
    normalize = processor.do_normalize
    return {
        "image_size": size,
        "rescale_factor": processor.rescale_factor if processor.do_rescale else 1.0,
        "image_mean": list(processor.image_mean) if normalize else [0.0] * 3,
        "image_std": list(processor.image_std) if normalize else [1.0] * 3,
        "box_fill": processor.box_fill,
        "keypoint_names": [model.config.id2label[index] for index in range(count)],
        "skeleton": [list(bone) for bone in model.config.skeleton],
        "keypoint_colors": [list(keypoint_color(index)) for index in range(count)],
    }


def export(model: HandUNetForPoseEstimation, processor: HandUNetImageProcessor, output: Path) -> None:
    """Write `model` with its decoder and the settings of `processor` to `output`, after a comparison with torch.

    The file appears whole or not at all.  Raises `ImportError` without onnx, onnxruntime and onnxscript, `ValueError` if
    model and processor do not fit each other, and `RuntimeError` if the graph does not give what torch gives.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401  for the check
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ImportError(
            f"Exporting needs onnx, onnxruntime and onnxscript ({error}): pip install 'handunet[torch,onnx]'"
        ) from None
    settings = settings_of(model, processor)
    graph = HandUNetWithDecoder(model.float().cpu(), processor.temperature).eval()
    example = smooth_noise(2, model.config.num_channels, model.config.image_size)
    # Tracing turns len() of a tensor into the example's own batch, while a shape stays dynamic.
    with mock.patch.object(heatmaps_module, "len", lambda values: values.shape[0], create=True), quiet_exporter():
        exported = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["pixel_values"],
            output_names=OUTPUT_NAMES,
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
        ).model_proto
    forget_places(exported)
    name_shapes(exported)
    onnx.helper.set_model_props(exported, {METADATA_KEY: json.dumps(settings)})
    with written_whole(output) as partial:
        onnx.save(exported, partial)
        check(graph, partial)


def forget_places(exported) -> None:
    """Remove the exporter's notes, which hold paths of this machine."""
    graph = exported.graph
    for part in (exported, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


def name_shapes(exported) -> None:
    """Write two operators of the graph so that onnxruntime's `quant_pre_process` can follow the shapes through them.

    Its symbolic shape inference takes a Resize's factor 1 for the batch as another batch, and does not know ReduceMax with
    axes as an input.  The results are the same.
    """
    from onnx import helper, numpy_helper

    graph = exported.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = {info.name: [size.dim_value for size in info.type.tensor_type.shape.dim] for info in graph.value_info}
    nodes = [helper.make_node("Shape", ["pixel_values"], ["batch_size"], start=0, end=1)]
    for node in graph.node:
        name = node.output[0]
        if node.op_type == "Resize":
            graph.initializer.append(numpy_helper.from_array(np.array(shapes[name][1:]), f"{name}_shape"))
            nodes.append(helper.make_node("Concat", ["batch_size", f"{name}_shape"], [f"{name}_sizes"], axis=0))
            node.input[2:] = ["", f"{name}_sizes"]
        if node.op_type == "ReduceMax":
            source, (axis,) = node.input[0], constants[node.input[1]].ravel().tolist()
            nodes.append(helper.make_node("ArgMax", [source], [f"{name}_where"], axis=axis, keepdims=1))
            nodes.append(helper.make_node("GatherElements", [source, f"{name}_where"], [f"{name}_there"], axis=axis))
            nodes.append(helper.make_node("Squeeze", [f"{name}_there", node.input[1]], [name]))
        else:
            nodes.append(type(node).FromString(node.SerializeToString()))  # `graph.node` is emptied below
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    initializers = [type(tensor).FromString(tensor.SerializeToString()) for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hide the messages of torch's exporter about torchvision, which is not needed, and about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def smooth_noise(batch: int, channels: int, size: int) -> Tensor:
    """Repeatable inputs (batch, channels, size, size) that vary slowly, as photographs do."""
    coarse = torch.randn(batch, channels, 9, 9, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")


def check(graph: HandUNetWithDecoder, path: Path) -> None:
    """Raise `RuntimeError` unless the file gives what torch gives: heatmaps within 1e-4, keypoints within 0.01 px.

    Keypoints are compared with torch's decoder on the file's own heatmaps: if a heatmap of an untrained model has two
    equal peaks, a rounding error may choose the other one.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    config = graph.model.config
    for batch in CHECKED_BATCHES:
        inputs = smooth_noise(batch, config.num_channels, config.image_size)
        heatmaps, keypoints, scores = map(torch.from_numpy, session.run(OUTPUT_NAMES, {"pixel_values": inputs.numpy()}))
        with torch.inference_mode():
            expected_heatmaps = graph.model(inputs).heatmaps
        expected_keypoints, peaks = decode_heatmaps(heatmaps)
        expected_scores = calibrate_scores(peaks, graph.temperature)
        for name, value, expected, tolerance in (
            ("heatmaps", heatmaps, expected_heatmaps, HEATMAP_TOLERANCE),
            ("keypoints", keypoints, expected_keypoints, KEYPOINT_TOLERANCE),
            ("scores", scores, expected_scores, HEATMAP_TOLERANCE),
        ):
            distance = (value - expected).abs().max().item() if value.shape == expected.shape else float("nan")
            if not distance <= tolerance:
                raise RuntimeError(
                    f"The ONNX graph's {name} for a batch of {batch}, {tuple(value.shape)}, differ by {distance:.2g} from "
                    f"torch's, {tuple(expected.shape)}: at most {tolerance:g} was expected. Try other versions of torch, "
                    "onnx and onnxruntime; constraints.txt lists those that were tested."
                )


def main(arguments: list[str] | None = None, program: str = "export_onnx.py") -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder written by save_pretrained, or id on the Hub")
    parser.add_argument("output", type=Path, help="ONNX file to write; an older one is replaced")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    args = parser.parse_args(arguments)
    disable_progress_bar()
    try:
        if args.output.is_dir():
            raise IsADirectoryError(f"{args.output} is a folder: name the file to write, such as model.onnx.")
        model = HandUNetForPoseEstimation.from_pretrained(args.model, revision=args.revision)
        processor = HandUNetImageProcessor.from_pretrained(args.model, revision=args.revision)
        export(model, processor, args.output)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"Wrote {args.output} ({args.output.stat().st_size / 1e6:.1f} MB), compared with torch.")
