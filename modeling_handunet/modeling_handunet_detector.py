"""The hand detector: a U-Net from a whole photograph to the centres, boxes, sides and directions of its hands.

Why this shape.  In photographs of people, half of the hands are smaller than 8 % of the longer side, and some fill the
picture.  Small ones need resolution: the photograph is 320 px wide, and the answers stand on a grid of every fourth pixel,
where a hand of 5 % is four cells wide.  Large ones need sight: six levels, the last of 5 x 5 cells, so that the middle
of a hand that fills 90 % of the picture sees all of it.  Both cost little where they are cheap: the first level folds 2 x 2
pixels into channels, since convolutions at full resolution would take most of the arithmetic; the way up is narrow and
ends at a quarter of the resolution; depth stands where maps are small.  There are no anchors: each hand is one peak
(CenterNet, https://arxiv.org/abs/1904.07850), and a peak that grows with the hand.  It has 1.25 million parameters and
takes 1.45 GFLOP for one look.

The first four levels are those of the pose network `handunet`, so that a training can start from its weights.
"""

from dataclasses import dataclass
from typing import ClassVar

from .versions import MINIMUM_TRANSFORMERS  # noqa: F401  comes first, because it refuses an older transformers

# isort: split
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_handunet_detector import HandUNetDetectorConfig
from .detection_losses import DetectionLoss, pad_labels
from .modeling_handunet import ConvBlock, HandUNetPreTrainedModel

# Of a new network: the chance of a centre in a cell, and a box's side as a share of the picture's.
FIRST_CHANCE = 0.01
FIRST_SIDE = 0.15
# Sides stay between e ** -7 and e ** 1 of the picture's, so that no exponential overflows in half precision.
LOG_SIDES = (-7.0, 1.0)
# `look_twice` looks at photographs of about these sizes, so that all levels divide them: of 320 px at 256 and 384.  At one of
# them alone, boxes would be too small or too large.
LOOKS = (0.8, 1.2)


@dataclass
class HandUNetObjectDetectionOutput(ModelOutput):
    """Output of [`HandUNetForObjectDetection`]; H = W = image_size / stride, or more from `look_twice`.

    loss (`torch.Tensor` of shape `()`): only when `labels` are given.
    centres (`torch.Tensor` of shape `(batch_size, 2, H, W)`): in [0, 1], the chance of a right and of a left hand's centre.
    boxes (`torch.Tensor` of shape `(batch_size, 4, H, W)`): the box of a hand with its centre in the cell, (x_min, y_min,
        x_max, y_max) as shares of the picture's side.
    directions (`torch.Tensor` of shape `(batch_size, 2, H, W)`): unit vectors (x, y) from the wrist to the middle knuckle.
    """

    loss: Tensor | None = None
    centres: Tensor | None = None
    boxes: Tensor | None = None
    directions: Tensor | None = None


class HandUNetForObjectDetection(HandUNetPreTrainedModel):
    """The U-Net with its maps of hands.

        >>> model = HandUNetForObjectDetection(HandUNetDetectorConfig())
        >>> model(torch.rand(1, 3, 320, 320)).centres.shape
        torch.Size([1, 2, 80, 80])
    """

    config_class = HandUNetDetectorConfig
    base_model_prefix = "handunet_detector"
    loss_class: ClassVar[type] = DetectionLoss

    def __init__(self, config: HandUNetDetectorConfig):
        super().__init__(config)
        sizes = config.hidden_sizes
        self.down = nn.ModuleList(ConvBlock(a, b) for a, b in zip((4 * config.num_channels, *sizes), sizes))
        below = (sizes[-1], *config.decoder_sizes)
        self.up = nn.ModuleList(
            ConvBlock(deep + skip, size) for deep, skip, size in zip(below, sizes[-2::-1], config.decoder_sizes)
        )
        self.head = nn.Conv2d(below[-1], 8, 3, padding=1)  # centres 2, log sides 2, offset 2, direction 2
        self.loss = self.loss_class(config.centre_spread)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """As the pose network's; at first hardly any cell is a centre, or their number would drown the hands."""
        super()._init_weights(module)
        if module is self.head:
            chance = torch.tensor(FIRST_CHANCE).logit().item()
            side = torch.tensor(FIRST_SIDE).log().item()
            init.copy_(module.bias, torch.tensor([chance, chance, side, side, 0.0, 0.0, 0.0, 0.0]))

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: list[dict[str, Tensor]] | dict[str, Tensor] | None = None
    ) -> HandUNetObjectDetectionOutput:
        """From normalised photographs to maps of hands.

        Args:
            pixel_values: (B, num_channels, image_size, image_size), as [`HandUNetDetectorImageProcessor`] makes them.
            labels: per picture a dict in DETR's format: `boxes` (N, 4), (centre x, centre y, width, height) as shares of
                the square; `class_labels` (N,), 0 right, 1 left, -1 not known; if known, `directions` (N, 2) unit
                vectors, NaN where not known, and `ignore` (N,) bool.  Or one dict of them padded, as
                `detection_losses.py` describes.

        Raises `ValueError` when the input's shape does not fit the configuration.
        """
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != expected:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch, {str(expected)[1:]}."
            )
        logits, boxes, directions = self._maps(pixel_values)
        loss = None
        if labels is not None:
            labels = pad_labels(labels, logits.device) if isinstance(labels, (list, tuple)) else labels
            loss = self.loss(logits, boxes, directions, labels)
        return HandUNetObjectDetectionOutput(loss=loss, centres=logits.sigmoid(), boxes=boxes, directions=directions)

    def look_twice(self, pixel_values: Tensor) -> HandUNetObjectDetectionOutput:
        """The mean of what the network sees in photographs that are made smaller and larger, without a loss.

        What looks like a hand at one size alone is mostly none; docs/training.md says how much this helps.  The maps have the
        larger photographs' resolution.

        Args:
            pixel_values: as of `forward`.
        """
        looks, multiple = [], self.config.multiple
        for scale in LOOKS:
            size = (round(scale * self.config.image_size / multiple) * multiple,) * 2
            pixels = nn.functional.interpolate(pixel_values, size=size, mode="bilinear", align_corners=False)
            logits, boxes, directions = self._maps(pixels)
            looks.append((logits.sigmoid(), boxes, directions))
        cells = looks[1][0].shape[2:]
        looks[0] = [nn.functional.interpolate(maps, size=cells, mode="bilinear", align_corners=False) for maps in looks[0]]
        centres, boxes, directions = ((one + other) / 2 for one, other in zip(*looks))
        directions = nn.functional.normalize(directions, dim=1)
        return HandUNetObjectDetectionOutput(centres=centres, boxes=boxes, directions=directions)

    def _maps(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centres (B, 2, H, W) as log-odds, boxes (B, 4, H, W) and directions (B, 2, H, W), of photographs of any size that
        all levels divide."""
        features = nn.functional.pixel_unshuffle(pixel_values, 2).contiguous(memory_format=torch.channels_last)
        skips = []
        for level, block in enumerate(self.down):
            if level:
                features = nn.functional.max_pool2d(features, 2)
            features = block(features)  # (B, hidden_sizes[level], image_size / 2 ** (level + 1), the same)
            skips.append(features)
        skips.pop()
        for block in self.up:
            features = nn.functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
            features = block(torch.cat([features, skips.pop()], dim=1))
        logits, sides, offset, direction = self.head(features).float().split(2, dim=1)  # (B, 2, H, W) each
        return logits, self._boxes(sides, offset), nn.functional.normalize(direction, dim=1)

    @staticmethod
    def _boxes(sides: Tensor, offset: Tensor) -> Tensor:
        """Boxes (B, 4, H, W) from the logarithms of their sides, shares of the picture's, and the way from each cell's
        centre to the box's centre, in shares of the box's sides: all (B, 2, H, W), and alike for hands of all sizes."""
        height, width = sides.shape[2:]
        x = (torch.arange(width, device=sides.device, dtype=sides.dtype) + 0.5) / width
        y = (torch.arange(height, device=sides.device, dtype=sides.dtype) + 0.5) / height
        cells = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])  # (2, H, W)
        sides = sides.clamp(*LOG_SIDES).exp()
        centre = cells + offset * sides
        return torch.cat([centre - sides / 2, centre + sides / 2], dim=1)


@torch.no_grad()
def start_from_pose(detector: HandUNetForObjectDetection, pose: PreTrainedModel) -> list[int]:
    """Give the detector the pose network's levels, as many from the first as have the same shape; returns their numbers.

    The first level reads 2 x 2 pixels where the pose network reads one.  Its weights are spread over the four, so that the
    detector begins as the pose network on the photograph at half the size, to the last digit.
    """
    copied = []
    for level, (mine, its) in enumerate(zip(detector.down, pose.down)):
        weights = its.state_dict()
        if level == 0:
            weights = {name: values.clone() for name, values in weights.items()}
            for name in ("0.weight", "0.bias", "0.running_mean", "0.running_var"):
                weights[name] = weights[name].repeat_interleave(4)  # pixel_unshuffle keeps a channel's pixels together
            weights["1.weight"] = weights["1.weight"].repeat_interleave(4, dim=1) / 4
        if any(weights[name].shape != values.shape for name, values in mine.state_dict().items()):
            break
        mine.load_state_dict(weights)
        copied.append(level)
    return copied


__all__ = ["HandUNetForObjectDetection", "HandUNetObjectDetectionOutput", "start_from_pose"]
