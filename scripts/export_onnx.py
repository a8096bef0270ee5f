"""Writes a HandUNet as one ONNX file that needs neither torch nor transformers.

    python -m scripts.export_onnx MODEL OUTPUT.onnx

MODEL is a folder written by `save_pretrained`, or an id on the Hub.  The graph takes `pixel_values`
(batch, 3, image_size, image_size) float32, prepared as the model's image processor does, and gives `heatmaps`
(batch, 21, image_size, image_size), `keypoints` (batch, 21, 2), (x, y) in pixels of the input, decoded as
`decode_heatmaps` does by default, and `scores` (batch, 21), with the processor's temperature.
The metadata entry `handunet` holds, as JSON, what a caller must know of the processor and the keypoints.  Before the file gets its name it is run against torch: heatmaps within
1e-4, keypoints within 0.01 px.

Exporting needs `pip install -e '.[onnx]'`; using the file needs onnxruntime, an image reader and the README's ten lines,
or `python predict.py photo.jpg --backend onnx --model OUTPUT.onnx`.
"""

import argparse
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from a checkout, too

from modeling_handunet import HandUNetForPoseEstimation, HandUNetImageProcessor, decode_heatmaps  # noqa: E402
from modeling_handunet.heatmaps import calibrate_scores  # noqa: E402
from modeling_handunet import heatmaps as heatmaps_module  # noqa: E402
from modeling_handunet.keypoints import keypoint_color  # noqa: E402

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
        heatmaps = self.model(pixel_values).heatmaps.contiguous()  # as ONNX has them, so that nothing is transposed
        keypoints, scores = decode_heatmaps(heatmaps)
        return heatmaps, keypoints, calibrate_scores(scores, self.temperature)


def settings_of(model: HandUNetForPoseEstimation, processor: HandUNetImageProcessor) -> dict:
    """What a caller of the graph must know, all of it JSON.

    `image_size`; `rescale_factor`, `image_mean` and `image_std`, applied in this order to 8-bit RGB; `box_fill`, the
    share of the square crop that the longer side of the hand's box takes; `keypoint_names`, `skeleton` and
    `keypoint_colors` (RGB, 8-bit) by index.

    Raises `ValueError` when processor and model do not fit each other.
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
    """Write `model` with its decoder and the settings of `processor` to `output`, which appears whole or not at all.

    Raises `ImportError` without onnx, onnxruntime and onnxscript, `ValueError` when model and processor do not fit, and
    `RuntimeError` when the graph does not give what torch gives.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401  for the check
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ImportError(f"Exporting needs onnx, onnxruntime and onnxscript ({error}): pip install -e '.[onnx]'") from None
    settings = settings_of(model, processor)
    graph = HandUNetWithDecoder(model.float().cpu(), processor.temperature).eval()
    example = smooth_noise(2, model.config.num_channels, model.config.image_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        # Tracing turns len() of a tensor into the example's own batch, while a shape stays dynamic.
        with mock.patch.object(heatmaps_module, "len", lambda values: values.shape[0], create=True), quiet():
            exported = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=["pixel_values"],
                output_names=OUTPUT_NAMES,
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            ).model_proto
        onnx.helper.set_model_props(exported, {METADATA_KEY: json.dumps(settings)})
        onnx.save(exported, partial)
        check(graph, partial)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


class quiet(warnings.catch_warnings):
    """Silences what torch's exporter says about torchvision, which is not needed, and about its own insides."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")
        self.logger = logging.getLogger("torch.onnx")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *exception):
        self.logger.setLevel(self.level)
        super().__exit__(*exception)


def smooth_noise(batch: int, channels: int, size: int) -> Tensor:
    """(batch, channels, size, size) repeatable inputs that vary slowly, as photographs do."""
    coarse = torch.randn(batch, channels, 9, 9, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")


def check(graph: HandUNetWithDecoder, path: Path) -> None:
    """Raise `RuntimeError` unless the file gives what torch gives.

    Keypoints are held against torch's decoder on the file's own heatmaps: where an untrained model's heatmap has two
    equal peaks, a rounding error may choose the other.
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
            if value.shape != expected.shape or not (value - expected).abs().max() <= tolerance:
                apart = np.nan if value.shape != expected.shape else (value - expected).abs().max().item()
                raise RuntimeError(
                    f"The ONNX graph's {name} of a batch of {batch}, {tuple(value.shape)}, are {apart:.2g} from torch's, "
                    f"{tuple(expected.shape)}: at most {tolerance:g} was expected. Try other versions of torch, onnx and "
                    "onnxruntime; constraints.txt lists those that were tested."
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder written by save_pretrained, or id on the Hub")
    parser.add_argument("output", type=Path, help="ONNX file to write; an older one is replaced")
    parser.add_argument("--revision", help="branch, tag or commit, of a model on the Hub")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    try:
        if arguments.output.is_dir():
            raise IsADirectoryError(f"{arguments.output} is a folder: name the file to write, as model.onnx.")
        model = HandUNetForPoseEstimation.from_pretrained(arguments.model, revision=arguments.revision)
        processor = HandUNetImageProcessor.from_pretrained(arguments.model, revision=arguments.revision)
        export(model, processor, arguments.output)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"Wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB), checked against torch.")


if __name__ == "__main__":
    main()
