"""The losses of JPEG compression, for batches on any device. The lossless coding that follows them is left out.

Colours become luma and chroma, and chroma is halved in size. The cosine transform of each 8 x 8 block is rounded to
multiples of the tables in Annex K of the standard (ITU-T T.81), which the quality scales as in libjpeg.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 8
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4,
)  # fmt: skip
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """`images` (B, 3, S, S) in [0, 1] after compression with `quality` (B,), from 1 to 100."""
    size = images.shape[-1]
    beyond = -size % (2 * BLOCK)  # the edge is repeated to fill the last blocks
    images = F.pad(images, (0, beyond, 0, beyond), mode="replicate")
    matrix, inverse, waves, luma_steps, chroma_steps = _constants(images.device)
    ycc = torch.einsum("ij,bjhw->bihw", matrix, images) * 255
    ycc[:, :1] -= 128
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None] / 100
    luma = _round_blocks(ycc[:, :1], luma_steps * scale, waves)
    chroma = _round_blocks(F.avg_pool2d(ycc[:, 1:], 2), chroma_steps * scale, waves)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = torch.einsum("ij,bjhw->bihw", inverse, torch.cat([luma + 128, chroma], 1))
    return (rgb[..., :size, :size] / 255).clamp(0, 1)


@functools.lru_cache(maxsize=8)
def _constants(device: torch.device) -> tuple[Tensor, ...]:
    """The matrices (3, 3) from RGB to luma and chroma and back, the orthonormal cosine transform (8, 8) with one row a
    frequency, and the tables (8, 8) of luma and chroma."""
    matrix = torch.tensor(TO_YCC)
    number = torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos(math.pi * (2 * number[None] + 1) * number[:, None] / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    waves[0] /= math.sqrt(2)
    constants = matrix, torch.linalg.inv(matrix), waves.float(), torch.tensor(LUMA), torch.tensor(CHROMA)
    return tuple(constant.to(device) for constant in constants)


def _round_blocks(planes: Tensor, steps: Tensor, waves: Tensor) -> Tensor:
    """`planes` (B, C, S, S) after rounding the frequencies of their blocks to multiples of the rounded `steps` (B, 8, 8)."""
    blocks = planes.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)  # (B, C, rows, columns, 8, 8)
    table = (steps + 0.5).floor().clamp(1, 255)[:, None, None, None]
    frequencies = torch.round(waves @ blocks @ waves.T / table) * table
    return (waves.T @ frequencies @ waves).transpose(3, 4).flatten(4).flatten(2, 3)
