"""A HandUNet as one ONNX file that needs neither torch nor transformers.

The graph takes `pixel_values` (batch, 3, image_size, image_size) float32, prepared as the model's image processor does
it.  It gives `heatmaps` (batch, 21, image_size, image_size), `keypoints` (batch, 21, 2), (x, y) in pixels of the input,
decoded as `decode_heatmaps` does by default, and `scores` (batch, 21), corrected with the processor's temperature.  The
metadata entry `handunet` holds as JSON what a caller must know about the processor and the keypoints.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from modeling_handunet import HandUNetForPoseEstimation, HandUNetImageProcessor, decode_heatmaps
from modeling_handunet import heatmaps as heatmaps_module
from modeling_handunet.heatmaps import calibrate_scores
from modeling_handunet.keypoints import keypoint_color
from release.files import written_whole

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
        raise ImportError(f"Exporting needs onnx, onnxruntime and onnxscript ({error}): pip install -e '.[onnx]'") from None
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
    onnx.helper.set_model_props(exported, {METADATA_KEY: json.dumps(settings)})
    with written_whole(output) as partial:
        onnx.save(exported, partial)
        check(graph, partial)


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
