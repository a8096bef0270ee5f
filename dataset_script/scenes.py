"""Scenes: each use of a stored hand turns, scales and colours it and puts it over another background.

Scenes are made in batches on the device, like the augmentation, and a sample depends only on its key. Some scenes are
negatives: they show no hand, a left hand, or a hand far from the centre. Negatives have no right hand to find, so their
keypoints are NaN and the network learns empty heatmaps from them.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dataset_script import affine, counter_rng
from dataset_script.augmentation import Augmentation
from dataset_script.jpeg import compress
from dataset_script.synthetic.backgrounds import cos_sin, enlarge, pixel_grid
from dataset_script.synthetic.compositing import Layer, composite, move_layer
from dataset_script.synthetic.ranges import SCENES, SceneRanges
from modeling_handunet.images import load_image

NEGATIVES = ("no hand", "left hand", "far off centre")
PHOTO_TILE = 256
GREY = (0.299, 0.587, 0.114)
# Compositing already changes exposure, white balance and grain.
MILD = Augmentation(
    brightness=0.12, contrast=0.15, saturation=0.2, channel_gain=0.05, noise=0.015, blur_probability=0.25
)


def load_photos(folder: str | os.PathLike) -> Tensor:
    """Square tiles (N, 3, 256, 256) uint8 of the photographs in a folder: two or more along each one's longer side.

    Raises ValueError if the folder has no photographs, and an error that names the file if one cannot be read.
    """
    known = Image.registered_extensions()
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in known)
    tiles = []
    for path in paths:
        image = load_image(path)
        short = min(image.size)
        count = max(2, round(max(image.size) / short))
        for k in range(count):
            left = (image.width - short) * k / (count - 1)
            top = (image.height - short) * k / (count - 1)
            tile = image.resize((PHOTO_TILE, PHOTO_TILE), box=(left, top, left + short, top + short))
            tiles.append(np.asarray(tile))
    if not tiles:
        raise ValueError(f"{folder} has no photographs: name a folder of backgrounds without hands")
    return torch.from_numpy(np.stack(tiles).transpose(0, 3, 1, 2).copy())


@dataclass(frozen=True)
class Scenes:
    """Ranges of the scenes. Lengths are relative to the image's side, shares are probabilities.

    The longer side of the stretched hand's box is `fill` of the image's `size` pixels, times e ** (+- scale). Its centre is
    up to `shift` away from the image's centre.
    """

    size: int
    fill: float
    negatives: float = 0.0
    kinds: tuple[str, ...] = NEGATIVES
    photos: Tensor | None = None  # (N, 3, S, S) uint8, as load_photos gives them
    ranges: SceneRanges = SCENES
    any_angle: float = 0.6  # share of hands turned by any angle; the others turn by up to `rotation`
    rotation: float = 30.0  # degrees
    stretch: float = 0.16  # up to e ** stretch times as long in one direction, and as much shorter across it
    scale: float = 0.24
    shift: float = 0.05
    off_centre: tuple[float, float] = (0.38, 0.6)
    photo_share: float = 0.5
    framed: float = 0.3  # share whose photograph ends inside the square; beyond it is black
    coarse: float = 0.3  # share of low resolution
    motion: float = 0.15  # share of motion blur
    grey: float = 0.04
    other_hand: float = 0.15  # share with the same person's other hand beside this one or behind it
    lamp: float = 0.35  # how unevenly light falls on the hand, and on the picture
    cast: float = 0.2  # share with the edge of a shadow across the picture
    jpeg: float = 0.6  # share with JPEG artefacts
    quality: tuple[float, float] = (20.0, 95.0)  # of JPEG, worst and best, on libjpeg's scale
    recolor: Augmentation = MILD

    def __post_init__(self):
        for name in self.kinds:
            if name not in NEGATIVES:
                raise ValueError(f"{name!r} is no kind of negative; choose among {', '.join(NEGATIVES)}")

    def __call__(self, layers: Tensor, keypoints: Tensor, skin: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Put hands into scenes.

        Args:
            layers: (B, 4, S, S) uint8 RGBA, colour not multiplied by alpha.
            keypoints: (B, 21, 2), x then y in pixels of the layers.
            skin: (B, 3) in [0, 1].
            keys: (B, 2) from :func:`.augmentation.augmentation_keys`.

        Returns:
            images (B, 3, size, size) float in [0, 1] and their keypoints (B, 21, 2), NaN for negatives.
        """
        draw = counter_rng.uniform(keys, "scene", (16,))
        kinds = torch.tensor([NEGATIVES.index(name) for name in self.kinds], device=keys.device)
        kind = torch.where(draw[:, 0] < self.negatives, kinds[(draw[:, 1] * len(kinds)).long()], -1)
        whole = Layer(self._color(layers.float() / 255, keys), keypoints, skin)
        layer = self._place(whole, draw, kind)
        rgba = layer.rgba * (kind != 0)[:, None, None, None]
        behind, beside = self.photographs(keys), self._other_hand(whole, keys, kind)
        images, _ = composite(keys, Layer(rgba, layer.keypoints, skin), self.ranges, behind, beside)
        images = self.frame_some(images.float() / 255, layer.keypoints, keys)
        images = self.recolor.recolor(self.degrade(self.light(images, keys), keys), keys)
        images = self.compress_some(images, keys)
        return images, torch.where((kind >= 0)[:, None, None], math.nan, layer.keypoints)

    def _color(self, rgba: Tensor, keys: Tensor) -> Tensor:
        """Another skin colour and other light, only for the hand."""
        draw = counter_rng.uniform(keys, "hand color", (6,))[:, :, None, None]
        color = rgba[:, :3].clamp_min(1e-3) ** torch.exp((draw[:, 0:1] - 0.5) * 0.6)
        grey = color.mean(1, keepdim=True)
        color = grey + (color - grey) * (0.55 + 0.6 * draw[:, 1:2])
        color = color * (0.85 + 0.3 * draw[:, 2:3]) * (1 + (draw[:, 3:6] - 0.5) * 0.16)
        color = color * self._lamp(keys, "hand lamp", rgba.shape[-1])
        return torch.cat([color.clamp(0, 1), rgba[:, 3:]], 1)

    def _lamp(self, keys: Tensor, purpose: str, size: int) -> Tensor:
        """Factors (B, 1, size, size) of a light that is stronger on one part of a picture than on another."""
        amount = self.lamp * counter_rng.uniform(keys, f"{purpose} amount")[:, None, None, None]
        grid = counter_rng.uniform(keys, purpose, (1, 4, 4)) * 2 - 1
        return 1 + amount * enlarge(grid, size)

    def light(self, images: Tensor, keys: Tensor) -> Tensor:
        """Uneven light, and for some the edge of a shadow."""
        draw = counter_rng.uniform(keys, "cast", (5,))[:, :, None, None]
        x, y = pixel_grid(self.size, images.device)
        cos, sin = cos_sin(draw[:, 0] * 2 * math.pi)
        across = x * cos + y * sin - (draw[:, 1] - 0.5)
        shade = (across / (0.02 + 0.3 * draw[:, 2])).clamp(-1, 1) * 0.5 + 0.5
        shade = 1 - 0.6 * draw[:, 3] * shade * (draw[:, 4] < self.cast)
        return (images * self._lamp(keys, "lamp", self.size) * shade[:, None]).clamp(0, 1)

    def compress_some(self, images: Tensor, keys: Tensor) -> Tensor:
        """JPEG artefacts, for some."""
        draw = counter_rng.uniform(keys, "jpeg", (2,))
        chosen = (draw[:, 0] < self.jpeg).nonzero(as_tuple=True)[0]
        if len(chosen):
            worst, best = self.quality
            images = images.index_copy(0, chosen, compress(images[chosen], worst + (best - worst) * draw[chosen, 1]))
        return images

    def _other_hand(self, hand: Layer, keys: Tensor, kind: Tensor) -> Tensor:
        """For some scenes with a hand, the same hand mirrored and away from the centre, as RGBA (B, 4, S, S).

        A right hand gets a left one, and a left hand gets a right one.
        """
        draw = counter_rng.uniform(keys, "other hand", (5,))
        chosen = ((draw[:, 0] < self.other_hand) & (kind != 0)).nonzero(as_tuple=True)[0]
        rgba = torch.zeros(len(keys), 4, self.size, self.size, device=keys.device)
        if len(chosen):
            draw = draw[chosen]
            turned = affine.mirror_first(affine.rotation(draw[:, 1] * 2 * math.pi), kind[chosen] != 1)
            points = hand.keypoints[chosen]
            extent = (points.amax(1) - points.amin(1)).amax(1).clamp_min(1.0)
            scale = self.fill * self.size * (0.7 + 0.6 * draw[:, 2]) / extent
            shift = affine.toward(draw[:, 3] * 2 * math.pi, (0.25 + 0.35 * draw[:, 4]) * self.size)
            mine = Layer(hand.rgba[chosen], points, hand.skin[chosen])
            moved = move_layer(mine, turned * scale[:, None, None], shift, self.size)
            rgba = rgba.index_copy(0, chosen, moved.rgba)
        return rgba

    def _place(self, layer: Layer, draw: Tensor, kind: Tensor) -> Layer:
        whole_turn = draw[:, 2] < self.any_angle
        angle = (draw[:, 3] * 2 - 1) * torch.where(whole_turn, math.pi, math.radians(self.rotation))
        turned = affine.mirror_first(affine.rotation(angle), kind == 1)
        stretch = torch.exp((draw[:, 9] * 2 - 1) * self.stretch)
        along = affine.rotation(draw[:, 10] * math.pi)
        longer = torch.diag_embed(torch.stack([stretch, 1 / stretch], 1))
        turned = along @ longer @ along.mT @ turned
        points = affine.apply(turned, layer.keypoints - 0.5 * layer.rgba.shape[-1])
        low, high = points.amin(1), points.amax(1)
        box = self.fill * self.size * torch.exp((draw[:, 4] * 2 - 1) * self.scale)
        scale = box / (high - low).amax(1).clamp_min(1.0)
        shift = (draw[:, 5:7] * 2 - 1) * self.shift * self.size
        far = self.off_centre[0] + (self.off_centre[1] - self.off_centre[0]) * draw[:, 7]
        away = affine.toward(draw[:, 8] * 2 * math.pi, far * self.size)
        shift = torch.where((kind == 2)[:, None], away, shift) - 0.5 * (low + high) * scale[:, None]
        return move_layer(layer, turned * scale[:, None, None], shift, self.size)

    def photographs(self, keys: Tensor) -> tuple[Tensor, Tensor] | None:
        """Parts of photographs, turned (some upside down) and enlarged, and which samples (B,) use them."""
        if self.photos is None:
            return None
        draw = counter_rng.uniform(keys, "photograph", (8,))
        chosen = (draw[:, 0] < self.photo_share).nonzero(as_tuple=True)[0]
        behind = torch.zeros(len(keys), 3, self.size, self.size, device=keys.device)
        if len(chosen):
            draw = draw[chosen]
            which = (draw[:, 1] * len(self.photos)).long()
            photos = self.photos[which.to(self.photos.device)].to(keys.device).float() / 255
            zoom = 0.25 + 0.6 * draw[:, 2]  # share of the tile's side that is seen
            angle = (draw[:, 3] * 2 - 1) * math.radians(20)
            matrix = affine.rotation(angle) * zoom[:, None, None]
            matrix = matrix * torch.where(draw[:, 4] < 0.5, -1.0, 1.0)[:, None, None]
            offset = (draw[:, 5:7] * 2 - 1) * (1 - zoom)[:, None] * 0.9
            behind[chosen] = affine.sample(photos, matrix, offset, self.size, "reflection")
        return behind, torch.zeros(len(keys), dtype=torch.bool, device=keys.device).index_fill(0, chosen, True)

    def frame_some(self, images: Tensor, keypoints: Tensor, keys: Tensor) -> Tensor:
        """Black bars at the edges of some photographs. They never cut through the hand's box."""
        draw = counter_rng.uniform(keys, "frame", (9,))
        low, high = keypoints.amin(1).clamp(0, self.size), keypoints.amax(1).clamp(0, self.size)
        ends = (draw[:, 4:8] < 0.6) & (draw[:, 8:] < self.framed)
        edge = (draw[:, :4] * ends).reshape(-1, 2, 2)  # bar's share of the way from each edge to the box
        first, last = edge[:, 0] * low, self.size - edge[:, 1] * (self.size - high)  # (B, 2) px
        pixels = torch.arange(self.size, device=images.device) + 0.5
        within = (pixels > first[..., None]) & (pixels < last[..., None])  # (B, 2, S): columns, rows
        return images * (within[:, 1, :, None] & within[:, 0, None, :])[:, None]

    def degrade(self, images: Tensor, keys: Tensor) -> Tensor:
        """Low resolution, motion blur and black-and-white, for some."""
        draw = counter_rng.uniform(keys, "degrade", (6,))
        images = images.clone()
        for low, high, factor in ((0.0, 0.5, 2), (0.5, 0.8, 3), (0.8, 1.0, 4)):
            chosen = ((draw[:, 0] >= low * self.coarse) & (draw[:, 0] < high * self.coarse)).nonzero(as_tuple=True)[0]
            if len(chosen):
                small = F.interpolate(images[chosen], size=(self.size // factor,) * 2, mode="area")
                images[chosen] = F.interpolate(small, size=(self.size,) * 2, mode="bilinear", align_corners=False)
        chosen = (draw[:, 1] < self.motion).nonzero(as_tuple=True)[0]
        if len(chosen):
            reach = 0.06 * draw[chosen, 2] * self.size
            direction = draw[chosen, 3] * math.pi
            total = 0
            still = torch.eye(2, device=keys.device).expand(len(chosen), 2, 2)
            for step in (-0.5, -0.25, 0.0, 0.25, 0.5):
                offset = affine.toward(direction, step * reach * 2 / self.size)
                total = total + affine.sample(images[chosen], still, offset, self.size, "border")
            images[chosen] = total / 5
        weights = torch.tensor(GREY, device=keys.device)[:, None, None]
        grey = (images * weights).sum(1, keepdim=True)
        return torch.where((draw[:, 4] < self.grey)[:, None, None, None], grey, images)
