"""Draws hands over photographs: one colour per finger, fainter where the score is low."""

import numpy as np
from PIL import Image, ImageDraw

from .keypoints import NUM_KEYPOINTS, SKELETON, keypoint_color

# Lines are drawn on a canvas this many times as large, then reduced, because ImageDraw does not smooth them.
SUPERSAMPLING = 3
# Beyond this many pixels a side the canvas is not enlarged, to bound memory.
MAX_CANVAS = 6144


def draw_hand(image: Image.Image, keypoints, scores=None, *, skeleton=None, width: float | None = None) -> Image.Image:
    """A copy of an RGB `image` with one hand drawn over it.

    Args:
        keypoints: (21, 2), (x, y) in pixels of `image`, or (K, 2) of a model with other keypoints.  NaN is not drawn.
        scores: (21,) in [0, 1]; a keypoint and the bones that end in it fade with its score.  By default all are opaque.
        skeleton: pairs of keypoints that a bone joins; by default `SKELETON` for 21 keypoints, and no bones otherwise.
        width: of the bones, in pixels; by default in proportion to the hand.
    """
    keypoints = np.asarray(keypoints, dtype=np.float64)
    if skeleton is None:
        skeleton = SKELETON if len(keypoints) == NUM_KEYPOINTS else ()
    scores = np.ones(len(keypoints)) if scores is None else np.nan_to_num(np.asarray(scores, dtype=np.float64))
    present = np.isfinite(keypoints).all(1)
    if not present.any():
        return image.convert("RGB")
    if width is None:
        extent = np.ptp(keypoints[present], axis=0).max()
        width = float(np.clip(extent / 45, 1.0, max(image.size) / 60 + 1))
    result = image.convert("RGB")  # always a copy
    margin = 2 * width + 1
    low = np.clip(np.floor(keypoints[present].min(0) - margin), 0, image.size).astype(int)
    high = np.clip(np.ceil(keypoints[present].max(0) + margin), 0, image.size).astype(int)
    if not (low < high).all():
        return result
    scale = SUPERSAMPLING if (high - low).max() * SUPERSAMPLING <= MAX_CANVAS else 1
    layer = Image.new("RGBA", tuple((high - low) * scale), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    points = (keypoints - low) * scale - 0.5  # ImageDraw counts from the centre of the first pixel
    line, dot = max(1, round(width * scale)), width * scale * 0.95

    def color(index: int) -> tuple[int, int, int, int]:
        return (*keypoint_color(index), int(70 + 185 * float(np.clip(scores[index], 0, 1))))

    for parent, child in skeleton:
        if present[parent] and present[child]:
            draw.line([tuple(points[parent]), tuple(points[child])], fill=color(child), width=line)
    for index in np.flatnonzero(present):
        x, y = points[index]
        draw.ellipse([x - dot, y - dot, x + dot, y + dot], fill=color(index), outline=(20, 20, 20, color(index)[3]))
    layer = layer.resize(tuple(high - low), Image.Resampling.BOX)
    background = result.crop((*low, *high)).convert("RGBA")
    result.paste(Image.alpha_composite(background, layer).convert("RGB"), tuple(low))
    return result


__all__ = ["draw_hand"]
