"""From a photograph to the square crop that the network reads, and back.

This file fixes how a hand's box becomes a square, and how points move between the photograph and the crop.  Points are
continuous (x, y) with pixel centres at +0.5, as everywhere; a square is (left, top, side) in pixels of the photograph and
may reach outside it, where it is black.
"""

import math

import numpy as np
from PIL import Image

# A square of more pixels a side than this is reduced by a whole factor before it is cut out, to bound memory.
MAX_CROP_SIDE = 4096


def box_to_square(box, box_fill: float) -> tuple[float, float, float]:
    """The square (left, top, side) with the centre of `box` (x, y, width, height), in which the box's longer side
    takes the share `box_fill`.  Raises as `parse_box`."""
    x, y, width, height = parse_box(box)
    side = max(width, height) / box_fill
    return x + width / 2 - side / 2, y + height / 2 - side / 2, side


def image_to_square(width: int, height: int) -> tuple[float, float, float]:
    """The smallest square (left, top, side) centred on an image of this size that contains all of it."""
    side = max(width, height)
    return (width - side) / 2, (height - side) / 2, float(side)


def parse_box(box) -> tuple[float, float, float, float]:
    """`box` as floats (x, y, width, height); `ValueError` unless it is four finite numbers, the last two above 0."""
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"A box is four numbers (x, y, width, height), got {box!r}.") from None
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise ValueError(
            f"The box {(x, y, width, height)} is not a box: width and height must be above 0, all of it finite."
        )
    return x, y, width, height


def check_box(box, width: int, height: int) -> None:
    """Raise `ValueError` unless `box` is (x, y, w, h), finite, not empty, and touches an image of this size."""
    x, y, w, h = parse_box(box)
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise ValueError(
            f"The box {(x, y, w, h)} lies outside the image of {width}x{height} pixels: give (x, y, width, height) in "
            "pixels of the upright image."
        )
    if max(w, h) > 100 * max(width, height):
        raise ValueError(f"The box {(x, y, w, h)} is over 100 times as large as the image of {width}x{height} pixels.")


def crop_square(image: Image.Image, square: tuple[float, float, float], size: int) -> Image.Image:
    """Cut `square` out of an RGB image, black where it reaches outside, and resize it to `size` (PIL bilinear)."""
    left, top, side = square
    factor = math.ceil(side / MAX_CROP_SIDE)
    if factor > 1:
        image = image.reduce(factor)
        left, top, side = left / factor, top / factor, side / factor
    x, y = math.floor(left), math.floor(top)
    corners = (x, y, max(math.ceil(left + side), x + 1), max(math.ceil(top + side), y + 1))
    window = image if corners == (0, 0, *image.size) else image.crop(corners)
    box = (left - x, top - y, min(left - x + side, window.width), min(top - y + side, window.height))
    return window.resize((size, size), Image.Resampling.BILINEAR, box=box)


def normalize_crops(pixels: np.ndarray, factor: float, mean, std) -> np.ndarray:
    """8-bit crops (B, H, W, 3) to the network's input (B, 3, H, W): float32, times `factor`, minus `mean`, over `std`."""
    count, height, width, channels = pixels.shape
    values = pixels.reshape(count, height, width * channels).astype(np.float32)  # rows as they lie in memory: faster
    values *= np.float32(factor)
    values -= np.tile(np.asarray(mean, np.float32), width)
    values /= np.tile(np.asarray(std, np.float32), width)
    return np.ascontiguousarray(values.reshape(pixels.shape).transpose(0, 3, 1, 2))


def to_crop(points, square: tuple[float, float, float], size: int):
    """Points (..., 2) of the photograph in pixels of the crop; an array or a tensor."""
    left, top, side = square
    return (points - _like(points, (left, top))) * (size / side)


def from_crop(points, square: tuple[float, float, float], size: int):
    """Points (..., 2) of the crop in pixels of the photograph; an array or a tensor."""
    left, top, side = square
    return points * (side / size) + _like(points, (left, top))


def _like(points, offset: tuple[float, float]):
    return np.asarray(offset) if isinstance(points, np.ndarray) else points.new_tensor(offset)


__all__ = [
    "box_to_square",
    "check_box",
    "crop_square",
    "from_crop",
    "image_to_square",
    "normalize_crops",
    "parse_box",
    "to_crop",
]
