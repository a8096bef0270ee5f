"""Pictures made of tiles, each with one close photograph of a hand: many people's real hands for the detector.

The squares are those of `dataset_script/photographs.py`, which tell the side and the direction of every hand.  What a
picture is, is a function of its key alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_script import counter_rng
from dataset_script.affine import apply, rotation
from dataset_script.caches import DeviceRows
from dataset_script.detection_scenes import cut_boxes, halved, look_up, photo_parts
from dataset_script.people import MIDDLE_KNUCKLE, WRIST, box_of_keypoints
from dataset_script.photographs import SIDE, Photographs
from dataset_script.squares import Squares
from modeling_handunet.detection_losses import empty_labels


@dataclass(frozen=True)
class HandTiles:
    """Grids of photographs; some tiles are parts of photographs without people, so that a tile's edge says nothing."""

    hands: Photographs
    photos: Squares | DeviceRows | None
    grids: tuple[float, ...] = (0.2, 0.35, 0.25, 0.2)  # chance of 1, 2, ... tiles a side
    fill: tuple[float, float] = (0.4, 0.95)  # longer side of the hand's box, of the tile's side
    empty: float = 0.25  # chance of a tile without a hand
    angle: float = 25.0  # degrees, either way
    off_centre: float = 0.6  # of the way that the hand's box may go in its tile

    @torch.no_grad()
    def __call__(self, keys: Tensor, size: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures (B, 3, size, size) in [0, 1] for `keys` (B, 2), and padded labels with room for all their tiles."""
        limits = torch.tensor(self.grids, device=keys.device).cumsum(0)[:-1] / sum(self.grids)
        grid = torch.bucketize(counter_rng.uniform(keys, "grid"), limits, right=True)  # (B,), tiles a side less one
        images = torch.empty(len(keys), 3, size, size, device=keys.device)
        labels = empty_labels(len(keys), len(self.grids) ** 2, keys.device)
        for count in range(1, len(self.grids) + 1):
            chosen = (grid == count - 1).nonzero(as_tuple=True)[0]
            if len(chosen):
                images[chosen], made = self._grid(keys[chosen], size, count)
                for name, values in made.items():
                    labels[name][chosen, : count**2] = values
        return images, labels

    def _grid(self, keys: Tensor, size: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures with `count` x `count` tiles.  The last row and column may be a little smaller."""
        tiles = count**2
        draw = counter_rng.uniform(keys, "tiles", (tiles, 8)).flatten(0, 1)  # (B * tiles, 8)
        numbers = self.hands.draw(draw[:, 0])
        rows = self.hands.rows(numbers)
        points = rows["keypoints"].to(keys.device) / SIDE
        box = box_of_keypoints(points)
        low, high = map(math.log, self.fill)
        fill = torch.exp(low + (high - low) * draw[:, 1])
        view = (box[:, 2:] - box[:, :2]).amax(1) / fill  # side of what is seen, of the square's
        shift = (draw[:, 2:4] - 0.5) * (self.off_centre * (1 - fill) * view)[:, None]
        middle = (box[:, :2] + box[:, 2:]) / 2 + shift
        left = draw[:, 4] < 0.5
        angle = (draw[:, 5] * 2 - 1) * math.radians(self.angle)
        mirror = torch.diag_embed(torch.stack([torch.where(left, -1.0, 1.0), torch.ones_like(view)], 1))
        tile = math.ceil(size / count)
        source = rows["image"].to(keys.device).float()
        back = mirror @ rotation(-angle) * view[:, None, None]
        pixels = look_up(source, back, middle, tile) if count < 3 else look_up(halved(source), back, middle, tile)
        pixels = pixels.mul_(1 / 255)
        moved = apply(rotation(angle) @ mirror / view[:, None, None], points - middle[:, None]) + 0.5  # of the tile
        bare = draw[:, 6] < (self.empty if self.photos is not None and count > 1 else 0.0)
        if bare.any():
            other = counter_rng.uniform(keys, "bare tiles", (tiles, 6)).flatten(0, 1)[bare]
            pixels[bare] = photo_parts(self.photos, other, tile)
        return self._joined(pixels, count, size), self._labels(moved, left, ~bare, count, tile / size)

    @staticmethod
    def _joined(pixels: Tensor, count: int, size: int) -> Tensor:
        tile = pixels.shape[-1]
        rows = pixels.view(-1, count, count, 3, tile, tile).permute(0, 3, 1, 4, 2, 5)
        return rows.reshape(-1, 3, count * tile, count * tile)[..., :size, :size]

    @staticmethod
    def _labels(keypoints: Tensor, left: Tensor, present: Tensor, count: int, share: float) -> dict[str, Tensor]:
        """Labels from keypoints (B * tiles, 21, 2), shares of a tile's side, which is a `share` of the picture's."""
        boxes = cut_boxes(box_of_keypoints(keypoints))[0].view(-1, count**2, 4)
        place = torch.arange(count, device=boxes.device) * share
        corner = torch.stack([place.repeat(count), place.repeat_interleave(count)], 1)
        present = present.view(-1, count**2)
        toward = F.normalize(keypoints[:, MIDDLE_KNUCKLE] - keypoints[:, WRIST], dim=-1).view(-1, count**2, 2)
        boxes = (boxes * share + corner.repeat(1, 2)).clamp(0, 1)
        return {
            "boxes": boxes * present[..., None],
            "class_labels": torch.where(present, left.view(-1, count**2).long(), -1),
            "directions": torch.where(present[..., None], toward, math.nan),
            "present": present,
        }
