"""Augmentation of whole batches on the device; images and keypoints are moved together.

What happens to a sample depends only on (seed, epoch, sample): not on its batch, on the number of processes, or on where a
run was interrupted.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_script import affine
from dataset_script.counter_rng import normal, sample_keys, uniform


def augmentation_keys(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Random keys (B, 2) for the samples `indices` (B,) in `epoch`."""
    return sample_keys(seed, indices + (epoch << 40))


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the augmentation at strength 1.

    Rotation, scale, shift and colour as in the recipes of RTMPose (https://arxiv.org/abs/2303.07399), milder in colour;
    erased squares as in Random Erasing (https://arxiv.org/abs/1708.04896).
    """

    rotation: float = 20.0  # degrees, in both directions
    scale: float = 0.2  # factor e ** (+- scale)
    shift: float = 0.08  # of the image's side, in both directions
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.3
    channel_gain: float = 0.08
    noise: float = 0.03  # largest standard deviation
    blur_probability: float = 0.15
    erase_probability: float = 0.3
    erase_side: float = 0.22  # largest side of an erased square, of the image's side

    def scaled(self, strength: float) -> "Augmentation":
        """All ranges except the rotation, times `strength`."""
        fields = {name: getattr(self, name) * strength for name in self.__dataclass_fields__ if name != "rotation"}
        return Augmentation(rotation=self.rotation, **fields)

    def __call__(self, images: Tensor, keypoints: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: (B, 3, S, S) float in [0, 1].
            keypoints: (B, 21, 2), (x, y) in pixels of the images.
            keys: (B, 2) from :func:`augmentation_keys`.

        Returns:
            images and keypoints of the same shapes; keypoints may end outside the image.
        """
        images, keypoints = self.move(images, keypoints, keys)
        return self.recolor(images, keys), keypoints

    def move(self, images: Tensor, keypoints: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate and scale about the centre, then shift. Outside the image it is black."""
        size = images.shape[-1]
        draws = uniform(keys, "move", (4,)) * 2 - 1  # (B, 4)
        angle = draws[:, 0] * math.radians(self.rotation)
        scale = torch.exp(draws[:, 1] * self.scale)
        shift = draws[:, 2:] * self.shift * size  # (B, 2) px
        forward = affine.rotation(angle) * scale[:, None, None]  # (B, 2, 2)
        center = size / 2
        moved = (keypoints - center) @ forward.mT + center + shift[:, None]
        backward = torch.linalg.inv(forward)  # a new pixel looks up the old one
        offset = -(backward @ (shift / center)[:, :, None])[..., 0]
        return affine.sample(images, backward, offset, size), moved

    def recolor(self, images: Tensor, keys: Tensor) -> Tensor:
        """Change colours, blur, add noise and erase a square. Keypoints stay where they are."""
        size = images.shape[-1]
        draws = uniform(keys, "recolor", (9,))[:, :, None, None]  # (B, 9, 1, 1)
        signed = draws * 2 - 1
        images = images * (1 + signed[:, 0:1] * self.brightness)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (1 + signed[:, 1:2] * self.contrast)
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * (1 + signed[:, 2:3] * self.saturation)
        images = images * (1 + signed[:, 3:6] * self.channel_gain)
        blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        images = torch.where(draws[:, 6:7] < self.blur_probability, blurred, images)
        grain = normal(keys, "grain", (1, size // 2, size // 2))  # at half the size: coarse grain, and cheaper
        grain = F.interpolate(grain, size=(size, size), mode="nearest")
        images = images + grain * draws[:, 7:8] * self.noise
        images = self._erase(images, keys, draws[:, 8, 0, 0] < self.erase_probability)
        return images.clamp(0, 1)

    def _erase(self, images: Tensor, keys: Tensor, chosen: Tensor) -> Tensor:
        size = images.shape[-1]
        place = uniform(keys, "erase", (3,)) * size
        side = place[:, 2:] * self.erase_side
        pixels = torch.arange(size, device=images.device) + 0.5
        within = (pixels - place[:, :2, None]).abs() < side[:, :, None] / 2  # (B, 2, S): columns, rows
        mask = within[:, 1, :, None] & within[:, 0, None, :] & chosen[:, None, None]
        return torch.where(mask[:, None], uniform(keys, "paint", (3,))[:, :, None, None], images)


__all__ = ["Augmentation", "augmentation_keys"]
