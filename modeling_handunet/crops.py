"""From a photograph to the square crop that the network reads, and back.

[`Crop`] moves the image and its points together; no other file mirrors, scales or turns a photograph for the network.
Points are continuous (x, y) with pixel centres at +0.5, as everywhere.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .images import load_image  # noqa: F401  where it was until version 0.1

# A square of more pixels a side is first reduced by a whole factor, to bound memory.
MAX_CROP_SIDE = 4096


@dataclass(frozen=True)
class Crop:
    """A square part of a photograph, resized for the network; and the way of points into it and back.

        >>> crop = Crop.around_box((120, 80, 200, 180), size=128, box_fill=0.45, mirrored=True)
        >>> crop.cut(photo).size, crop.back(crop.to(points))  # (128, 128), `points` again

    square: (left, top, side) in pixels of the photograph.  It may reach outside, where the crop is black.
    size: side of the crop in pixels.
    mirrored: whether left and right are swapped, as for a left hand.
    angle: degrees by which the square is turned clockwise, as seen, about its own centre.
    """

    square: tuple[float, float, float]
    size: int
    mirrored: bool = False
    angle: float = 0.0

    @classmethod
    def around_box(cls, box, size: int, box_fill: float, *, mirrored: bool = False, angle: float = 0.0) -> "Crop":
        """The square with the centre of `box` (x, y, width, height), whose longer side takes the share `box_fill`.

        Raises as `parse_box`.
        """
        x, y, width, height = parse_box(box)
        side = max(width, height) / box_fill
        return cls((x + width / 2 - side / 2, y + height / 2 - side / 2, side), size, mirrored, angle)

    @classmethod
    def around_points(cls, points: np.ndarray, size: int, box_fill: float, *, mirrored: bool, angle: float) -> "Crop":
        """The square turned by `angle` with the centre of the points' box as seen in it; its longer side takes `box_fill`."""
        cos, sin = _cos_sin(angle)
        turn = np.array([[cos, sin], [-sin, cos]])  # clockwise as seen, of rows
        seen = np.asarray(points, np.float64) @ turn.T
        low, high = seen.min(0), seen.max(0)
        side = float((high - low).max()) / box_fill
        x, y = ((low + high) / 2 @ turn).tolist()
        return cls((x - side / 2, y - side / 2, side), size, mirrored, angle)

    @classmethod
    def of_image(cls, width: int, height: int, size: int, *, mirrored: bool = False) -> "Crop":
        """The smallest square that holds a whole image, with the same centre."""
        side = max(width, height)
        return cls(((width - side) / 2, (height - side) / 2, float(side)), size, mirrored)

    @classmethod
    def around_hand(
        cls, box, image_size: tuple[int, int] | None, size: int, box_fill: float, *, mirrored: bool = False
    ) -> tuple["Crop", tuple[float, float, float, float]]:
        """The crop by which the hand in `box` (x, y, width, height) is read, and its corners (x_min, y_min, x_max, y_max).

        With None for the box, the whole image, whose (width, height) is then needed, is the crop of one hand.
        """
        if box is None:
            return cls.of_image(*image_size, size, mirrored=mirrored), (0.0, 0.0, *map(float, image_size))
        x, y, width, height = parse_box(box)
        return cls.around_box(box, size, box_fill, mirrored=mirrored), (x, y, x + width, y + height)

    def cut(self, image: Image.Image) -> Image.Image:
        """The crop of an RGB image, `size` x `size`, resized with PIL's bilinear filter."""
        crop = self._cut_turned(image) if self.angle else self._cut_upright(image)
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else crop

    def to(self, points):
        """Points (..., 2) of the photograph in pixels of the crop; an array or a tensor of floats."""
        left, top, side = self.square
        points = (points - _like(points, (left, top))) * (self.size / side)
        return self._mirror(self._turn(points, -self.angle))

    def back(self, points):
        """Points (..., 2) of the crop in pixels of the photograph; an array or a tensor of floats."""
        left, top, side = self.square
        points = self._turn(self._mirror(points), self.angle)
        return points * (side / self.size) + _like(points, (left, top))

    def _mirror(self, points):
        return points * _like(points, (-1, 1)) + _like(points, (self.size, 0)) if self.mirrored else points

    def _turn(self, points, angle: float):
        """Points turned clockwise about the crop's centre."""
        if not angle:
            return points
        cos, sin = _cos_sin(angle)
        return (points - self.size / 2) @ _like(points, ((cos, sin), (-sin, cos))) + self.size / 2

    def _cut_upright(self, image: Image.Image) -> Image.Image:
        left, top, side = self.square
        factor = math.ceil(side / MAX_CROP_SIDE)
        if factor > 1:
            image = image.reduce(factor)
            left, top, side = left / factor, top / factor, side / factor
        x, y = math.floor(left), math.floor(top)
        corners = (x, y, max(math.ceil(left + side), x + 1), max(math.ceil(top + side), y + 1))
        window = image if corners == (0, 0, *image.size) else image.crop(corners)
        box = (left - x, top - y, min(left - x + side, window.width), min(top - y + side, window.height))
        return window.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)

    def _cut_turned(self, image: Image.Image) -> Image.Image:
        """Cut the upright square around the turned one at the crop's scale, which smooths as it reduces; then turn."""
        cos, sin = _cos_sin(self.angle)
        left, top, side = self.square
        margin = math.ceil(self.size * (abs(cos) + abs(sin) - 1) / 2) + 1  # px of the crop; 1 more for the filter
        around = self.size + 2 * margin
        border = margin * side / self.size
        upright = Crop((left - border, top - border, side + 2 * border), around).cut(image)
        # PIL asks where in `upright` each pixel (x, y) of the result lies: (a x + b y + c, d x + e y + f).
        middle, half = around / 2, self.size / 2
        rows = (cos, -sin, middle - half * (cos - sin), sin, cos, middle - half * (sin + cos))
        return upright.transform((self.size, self.size), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)


def _cos_sin(angle: float) -> tuple[float, float]:
    radians = math.radians(angle)
    return round(math.cos(radians), 15), round(math.sin(radians), 15)  # so that turns by 90 degrees are exact


def _like(points, values):
    return np.asarray(values) if isinstance(points, np.ndarray) else points.new_tensor(values)


def parse_box(box) -> tuple[float, float, float, float]:
    """`box` as floats (x, y, width, height); `ValueError` unless it is four finite numbers, the last two above 0."""
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"A box is four numbers (x, y, width, height), got {box!r}.") from None
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise ValueError(f"The box {(x, y, width, height)} is not a box: width and height must be above 0, all of it finite.")
    return x, y, width, height


def check_box(box, width: int, height: int) -> None:
    """Raise `ValueError` unless `box` (x, y, w, h) is a box that touches an image of this size."""
    x, y, w, h = parse_box(box)
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise ValueError(
            f"The box {(x, y, w, h)} lies outside the image of {width}x{height} pixels: give (x, y, width, height) in "
            "pixels of the upright image."
        )
    if max(w, h) > 100 * max(width, height):
        raise ValueError(f"The box {(x, y, w, h)} is over 100 times as large as the image of {width}x{height} pixels.")


def normalize_crops(pixels: np.ndarray, factor: float, mean, std) -> np.ndarray:
    """8-bit crops (B, H, W, 3) to the network's input (B, 3, H, W): float32, times `factor`, minus `mean`, over `std`."""
    count, height, width, channels = pixels.shape
    values = pixels.reshape(count, height, width * channels).astype(np.float32)  # whole rows: faster than by channel
    values *= np.float32(factor)
    values -= np.tile(np.asarray(mean, np.float32), width)
    values /= np.tile(np.asarray(std, np.float32), width)
    return np.ascontiguousarray(values.reshape(pixels.shape).transpose(0, 3, 1, 2))


__all__ = ["Crop", "check_box", "normalize_crops", "parse_box"]
