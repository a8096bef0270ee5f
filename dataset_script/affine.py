"""Images under affine maps: how augmentation and scenes turn, scale, mirror and shift whole batches.

Matrices (B, 2, 2) act on (x, y) with y down. Offsets of :func:`sample` are in grid_sample's units: half an image is 1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def sample(images: Tensor, matrix: Tensor, offset: Tensor, size: int, padding: str = "zeros") -> Tensor:
    """New images (B, C, size, size): a pixel at p from the centre shows `images` (B, C, H, W) at `matrix` p + `offset`.

    `matrix` is (B, 2, 2), `offset` (B, 2), p in half images. `padding` says what lies outside, as for `F.grid_sample`.
    """
    theta = torch.cat([matrix, offset[..., None]], 2)  # (B, 2, 3)
    grid = F.affine_grid(theta, [*images.shape[:2], size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def rotation(angle: Tensor) -> Tensor:
    """Matrices (B, 2, 2) that turn by `angle` (B,) radians, clockwise as seen."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def mirror_first(matrix: Tensor, chosen: Tensor) -> Tensor:
    """`matrix` (B, 2, 2), and where `chosen` (B,) left and right are swapped before it."""
    return torch.stack([torch.where(chosen[:, None], -matrix[..., 0], matrix[..., 0]), matrix[..., 1]], -1)


def apply(matrix: Tensor, points: Tensor) -> Tensor:
    """`matrix` (B, 2, 2) times each of `points` (B, N, 2)."""
    return (points[:, :, None, :] * matrix[:, None]).sum(-1)


def toward(direction: Tensor, distance: Tensor) -> Tensor:
    """Vectors (B, 2) of length `distance` (B,) in `direction` (B,), radians from x towards y."""
    return torch.stack([direction.cos(), direction.sin()], 1) * distance[:, None]
