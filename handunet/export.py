"""Write a model as one ONNX file that needs neither torch nor transformers: a HandUNet, or a detector of hands.

    handunet export MODEL OUTPUT.onnx
    handunet export MODEL --all FOLDER      pose.onnx, and the detector that belongs to the model as detector.onnx
    handunet export MODEL OUTPUT.onnx --quantize PHOTOGRAPHS    in 8 bits, calibrated on these photographs

MODEL is a folder written by `save_pretrained`, or an id on the Hub.  Exporting needs `pip install 'handunet[torch,onnx]'`.
Using the file needs onnxruntime, an image reader and the README's ten lines, or `handunet photo.jpg --model OUTPUT.onnx`.

The graph takes `pixel_values` (batch, 3, image_size, image_size) float32, prepared as the model's image processor does
it.  A pose model's gives `heatmaps` (batch, 21, image_size, image_size), `keypoints` (batch, 21, 2), (x, y) in pixels of the
input, decoded as `decode_heatmaps` does by default, and `scores` (batch, 21), corrected with the processor's temperature.  A
detector's gives, falling by score before double ones were set to 0, `scores` (batch, 100), `labels` (batch, 100) int64, 0 for a
right hand and 1 for a left one, `boxes` (batch, 100, 4), (x_min, y_min, x_max, y_max) as shares of the letterboxed square, and
`directions` (batch, 100, 2).  It looks at a photograph at two sizes, but in 8 bits, for speed in films, at one.  The metadata
entry `handunet` holds as JSON what a caller must know about the processor and the keypoints.  Before the file gets its name, it
is compared with torch: heatmaps within 1e-4, keypoints within 0.01 px, boxes within 0.001 px.
"""

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

from handunet import graphs
from handunet.files import written_whole
from handunet.quantization import quantize
from modeling_handunet import (
    HandUNetDetectorConfig,
    HandUNetDetectorImageProcessor,
    HandUNetForObjectDetection,
    HandUNetForPoseEstimation,
    HandUNetImageProcessor,
)
from modeling_handunet import heatmaps as heatmaps_module
from modeling_handunet.torch_hands import load_detector

METADATA_KEY = "handunet"
POSE_FILE, DETECTOR_FILE = "pose.onnx", "detector.onnx"
CHECKED_BATCHES = (1, 3)


def load(name: str, revision: str | None = None):
    """The pose model or detector `name`, a folder or an id on the Hub, and its image processor."""
    config = AutoConfig.from_pretrained(name, revision=revision)
    if isinstance(config, HandUNetDetectorConfig):
        classes = HandUNetForObjectDetection, HandUNetDetectorImageProcessor
    else:
        classes = HandUNetForPoseEstimation, HandUNetImageProcessor
    return tuple(kind.from_pretrained(name, revision=revision) for kind in classes)


def export(model, processor, output: Path, *, twice: bool = True) -> None:
    """Write `model` with its decoder and the settings of `processor` to `output`, after a comparison with torch.

    twice: whether a detector looks at each photograph at two sizes.

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
    settings = graphs.settings_of(model, processor)
    graph = graphs.graph_of(model, processor, twice=twice)
    exported = trace(graph, model.config)
    onnx.helper.set_model_props(exported, {METADATA_KEY: json.dumps(settings)})
    with written_whole(output) as partial:
        onnx.save(exported, partial)
        check(graph, partial)


def export_quantized(model, processor, output: Path, photographs: Path) -> None:
    """As [`export`], in 8 bits, and a detector looks once, for speed in films.

    Raises `OSError` or `ValueError` too for a folder of photographs that cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        export(model, processor, Path(folder, "model.onnx"), twice=False)
        quantize(Path(folder, "model.onnx"), output, photographs)


def trace(graph: graphs.Graph, config):
    """The graph as an ONNX model, for any batch."""
    example = smooth_noise(2, config.num_channels, config.image_size)
    # Tracing turns len() of a tensor into the example's own batch, while a shape stays dynamic.
    with mock.patch.object(heatmaps_module, "len", lambda values: values.shape[0], create=True), quiet_exporter():
        exported = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["pixel_values"],
            output_names=graph.outputs + graph.inner,
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
        ).model_proto
    forget_places(exported)
    name_shapes(exported)
    del exported.graph.output[len(graph.outputs) :]  # those inside only need their names, for the check
    return exported


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
            keepdims = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
            there = name if keepdims else f"{name}_there"
            nodes.append(helper.make_node("GatherElements", [source, f"{name}_where"], [there], axis=axis))
            if not keepdims:
                nodes.append(helper.make_node("Squeeze", [there, node.input[1]], [name]))
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


def check(graph: graphs.Graph, path: Path) -> None:
    """Raise `RuntimeError` unless the file gives what torch gives."""
    import onnx
    import onnxruntime

    exported = onnx.load(path)
    exported.graph.output.extend(onnx.ValueInfoProto(name=name) for name in graph.inner)
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(names: tuple[str, ...], inputs: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, map(torch.from_numpy, session.run(names, {"pixel_values": inputs.numpy()}))))

    config = graph.model.config
    for batch in CHECKED_BATCHES:
        graphs.check(graph, run, smooth_noise(batch, config.num_channels, config.image_size))


def main(arguments: list[str] | None = None, program: str = "export_onnx.py") -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder written by save_pretrained, or id on the Hub")
    parser.add_argument("output", type=Path, nargs="?", help="ONNX file to write; an older one is replaced")
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="write the pose model and its detector into this folder")
    parser.add_argument("--detector", help="with --all: another detector, a folder or an id on the Hub")
    parser.add_argument(
        "--quantize",
        type=Path,
        metavar="FOLDER",
        help="write 8 bits, calibrated on the photographs for training in FOLDER: annotations.json (COCO) and images/",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    args = parser.parse_args(arguments)
    if (args.output is None) == (args.all is None):
        parser.error("name either the file to write or --all FOLDER")
    disable_progress_bar()
    try:
        for model, processor, output in models_of(args):
            if args.quantize is None:
                export(model, processor, output)
            else:
                export_quantized(model, processor, output, args.quantize)
            print(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB), compared with torch.")
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


def models_of(args: argparse.Namespace) -> Iterator[tuple]:
    """The models to export, each with its image processor and its file."""
    if args.all is None and args.output.is_dir():
        raise IsADirectoryError(f"{args.output} is a folder: name the file to write, such as model.onnx, or use --all.")
    model, processor = load(args.model, args.revision)
    yield model, processor, args.output or args.all / POSE_FILE
    if args.all is not None:
        yield *load_detector(model, args.detector), args.all / DETECTOR_FILE
