"""What an exported graph computes: a network with its decoder, what a caller must know about it, and its check against torch.

[`PoseGraph`] and [`DetectorGraph`] have the same parts, which `handunet/export.py` uses.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from modeling_handunet import (
    HandUNetDetectorImageProcessor,
    HandUNetForObjectDetection,
    HandUNetForPoseEstimation,
    HandUNetImageProcessor,
    decode_heatmaps,
)
from modeling_handunet.detection_decoding import duplicates, peaks
from modeling_handunet.heatmaps import calibrate_scores
from modeling_handunet.keypoints import keypoint_color

HEATMAP_TOLERANCE = 1e-4
KEYPOINT_TOLERANCE = 0.01  # pixels of the input
BOX_TOLERANCE = 1e-3  # pixels of the input
DIRECTION_TOLERANCE = 1e-3
# In a check, names of values to the pair (what the file gave, what torch gives) and the distance that they may have.
Pairs = dict[str, tuple[Tensor, Tensor, float]]


class PoseGraph(nn.Module):
    """The pose network and its decoder, with calibrated scores, and the chances of its hand classifier, if any."""

    kind = "pose"
    inner = ()  # values inside the graph that the check needs too

    def __init__(self, model: HandUNetForPoseEstimation, processor: HandUNetImageProcessor):
        super().__init__()
        self.model = model
        self.temperature, self.score_offset = processor.temperature, processor.score_offset
        self.outputs = ("heatmaps", "keypoints", "scores", *(["chances"] if model.classifier else []))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(pixel_values)
        heatmaps = outputs.heatmaps.contiguous()  # ONNX's memory format, so that nothing is transposed
        return heatmaps, *self.decode(heatmaps), *([side_chances(outputs)] if self.model.classifier else [])

    def decode(self, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoints (B, 21, 2) and scores (B, 21)."""
        keypoints, scores = decode_heatmaps(heatmaps)
        return keypoints, calibrate_scores(scores, self.temperature, self.score_offset)

    @staticmethod
    def settings(model: HandUNetForPoseEstimation, processor: HandUNetImageProcessor) -> dict:
        """`box_fill`, the longer side of the hand's box divided by the side of the square crop; `keypoint_names`, `skeleton`
        and `keypoint_colors` (RGB, 8-bit) by index."""
        count = model.config.num_keypoints
        return {
            "box_fill": processor.box_fill,
            "keypoint_names": [model.config.id2label[index] for index in range(count)],
            "skeleton": [list(bone) for bone in model.config.skeleton],
            "keypoint_colors": [list(keypoint_color(index)) for index in range(count)],
        }

    def compare(self, inputs: Tensor, found: dict[str, Tensor]) -> Pairs:
        """Keypoints are compared with torch's decoder on the file's own heatmaps: if a heatmap of an untrained model has two
        equal peaks, a rounding error may choose the other one."""
        keypoints, scores = self.decode(found["heatmaps"])
        outputs = self.model(inputs)
        chances = {"chances": (found["chances"], side_chances(outputs), HEATMAP_TOLERANCE)} if self.model.classifier else {}
        return {
            "heatmaps": (found["heatmaps"], outputs.heatmaps, HEATMAP_TOLERANCE),
            "keypoints": (found["keypoints"], keypoints, KEYPOINT_TOLERANCE),
            "scores": (found["scores"], scores, HEATMAP_TOLERANCE),
            **chances,
        }


def side_chances(outputs) -> Tensor:
    """The chances (B, 2) of a hand of the side that the network reads, and of one of the other side."""
    return outputs.hand_logits.softmax(1)[:, :2]


class DetectorGraph(nn.Module):
    """The detector and its decoder: peaks that fall by score; a peak that is an earlier hand again has the score 0.

    twice: whether the network looks at each photograph at two sizes.
    """

    kind = "detector"
    outputs = ("scores", "labels", "boxes", "directions")
    inner = ("map_centres", "map_boxes", "map_directions")

    def __init__(self, model: HandUNetForObjectDetection, *, twice: bool = True):
        super().__init__()
        self.model, self.twice = model, twice

    def look(self, pixel_values: Tensor):
        return self.model.look_twice(pixel_values) if self.twice else self.model(pixel_values)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs = self.look(pixel_values)
        maps = [values.contiguous() for values in (outputs.centres, outputs.boxes, outputs.directions)]
        return *self.decode(*maps), *maps

    @staticmethod
    def decode(centres: Tensor, boxes: Tensor, directions: Tensor) -> tuple[Tensor, ...]:
        """Scores (B, K), labels (B, K), boxes (B, K, 4) and directions (B, K, 2) from the maps."""
        scores, labels, boxes, directions = peaks(centres, boxes, directions)
        return torch.where(duplicates(labels, boxes), 0.0, scores), labels, boxes, directions

    @staticmethod
    def settings(model: HandUNetForObjectDetection, processor: HandUNetDetectorImageProcessor) -> dict:
        return {}

    def compare(self, inputs: Tensor, found: dict[str, Tensor]) -> Pairs:
        """The hands are compared with torch's decoder on the file's own maps, since a rounding error may change their order;
        only where there is a hand, because the order of cells without one means nothing.  Of the map of directions, means over
        a sixteenth of the picture are compared: where no hand is, directions of almost no length are made unit vectors."""
        size = inputs.shape[-1]
        outputs = self.look(inputs)
        maps = [found[name] for name in self.inner]
        expected = in_order(dict(zip(self.outputs, self.decode(*maps))))
        found = in_order({name: found[name] for name in self.outputs}) | dict(zip(self.inner, maps))
        hands = (found["scores"] > 0) & (expected["scores"] > 0)
        return {
            "map_centres": (found["map_centres"], outputs.centres, HEATMAP_TOLERANCE),
            "map_boxes": (found["map_boxes"] * size, outputs.boxes * size, BOX_TOLERANCE),
            "map_directions": (
                *(adaptive_avg_pool2d(maps, 4) for maps in (found["map_directions"], outputs.directions)),
                DIRECTION_TOLERANCE,
            ),
            "scores": (found["scores"], expected["scores"], HEATMAP_TOLERANCE),
            "labels": (found["labels"][hands], expected["labels"][hands], 0),
            "boxes": (found["boxes"][hands] * size, expected["boxes"][hands] * size, BOX_TOLERANCE),
            "directions": (found["directions"][hands], expected["directions"][hands], DIRECTION_TOLERANCE),
        }


def in_order(hands: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hands by falling score, those of one score from left to right."""
    order = hands["boxes"][..., 0].argsort(1)
    order = order.gather(1, (-hands["scores"].gather(1, order)).argsort(dim=1, stable=True))
    return {
        name: values.gather(1, order.reshape(order.shape + (1,) * (values.ndim - 2)).expand(values.shape))
        for name, values in hands.items()
    }


Graph = PoseGraph | DetectorGraph


def graph_of(model, processor, *, twice: bool = True) -> Graph:
    """The graph of a pose model or of a detector that looks once or twice, on the CPU in float32."""
    model = model.float().cpu()
    is_detector = isinstance(model, HandUNetForObjectDetection)
    return (DetectorGraph(model, twice=twice) if is_detector else PoseGraph(model, processor)).eval()


def settings_of(model, processor) -> dict:
    """What a caller of the graph must know, as JSON data.

    `kind`, "pose" or "detector"; `image_size`; `rescale_factor`, `image_mean` and `image_std`, applied in this order to
    8-bit RGB; and what the graph's own kind adds.

    Raises `ValueError` if processor and model do not fit each other.
    """
    graph = DetectorGraph if isinstance(model, HandUNetForObjectDetection) else PoseGraph
    size = processor.size["height"]
    if size != model.config.image_size:
        raise ValueError(f"The processor makes crops of {size} pixels, but the model reads {model.config.image_size}.")
    rescale, normalize = (getattr(processor, name, True) is not False for name in ("do_rescale", "do_normalize"))
    return {
        "kind": graph.kind,
        "image_size": size,
        "rescale_factor": processor.rescale_factor if rescale else 1.0,
        "image_mean": list(processor.image_mean) if normalize else [0.0] * 3,
        "image_std": list(processor.image_std) if normalize else [1.0] * 3,
        **graph.settings(model, processor),
    }


@torch.inference_mode()
def check(graph: Graph, run: Callable[[tuple[str, ...], Tensor], dict[str, Tensor]], inputs: Tensor) -> None:
    """Raise `RuntimeError` unless `run(names, inputs)`, the file's answers by name, are what torch gives."""
    found = run(graph.outputs + graph.inner, inputs)
    for name, (value, expected, tolerance) in graph.compare(inputs, found).items():
        distance = float("nan")
        if value.shape == expected.shape:
            distance = (value - expected).abs().max().item() if value.numel() else 0.0
        if not distance <= tolerance:
            raise RuntimeError(
                f"The ONNX graph's {name} for a batch of {len(inputs)}, {tuple(value.shape)}, differ by {distance:.2g} from "
                f"torch's, {tuple(expected.shape)}: at most {tolerance:g} was expected. Try other versions of torch, "
                "onnx and onnxruntime; constraints.txt lists those that were tested."
            )
