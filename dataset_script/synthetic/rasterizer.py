"""A z-buffered triangle rasteriser in plain torch: batched, on any device, without a loop over samples or triangles.

Triangles that face the viewer are sorted by the size of their bounding boxes; all triangles of one size test all the
pixels of their little windows at once, and a `scatter_reduce` minimum over (depth, triangle) packed into one integer
keeps the nearest.  A mesh of thousands of small triangles, as a hand has, touches only a few pixels each, so this does
little more work than there are pixels.  Anti-aliasing is the caller's: draw at twice the size and average.

Points are in pixels, x right, y down, a pixel's centre at +0.5.
"""

import torch
from torch import Tensor

SUBPIXEL = 32.0  # points snap to this fraction of a pixel, so that rounding noise cannot move an edge
WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 512)
DEPTH_STEPS = float(1 << 30)
EMPTY = torch.iinfo(torch.int64).max


def rasterize(points: Tensor, depth: Tensor, faces: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is seen at each pixel of `size` x `size` images.

    `points` (B, V, 2) pixels, `depth` (B, V) the reciprocal of the distance (linear on the screen), `faces` (F, 3)
    counter-clockwise seen from outside.  Returns, for the P pixels that any triangle covers, `pixel` (P,) int64 into
    the flattened (B, size, size), `face` (P,) int64, and `barycentric` (P, 3) float32 weights of its corners.
    """
    count = len(points)
    points = (points * SUBPIXEL).round().to(torch.float32) / SUBPIXEL
    nearest, farthest = depth.amax(1, keepdim=True), depth.amin(1, keepdim=True)
    order = ((nearest - depth) / (nearest - farthest).clamp_min(1e-12)).to(torch.float32)  # 0 near, 1 far

    x, y = points[..., 0][:, faces], points[..., 1][:, faces]  # (B, F, 3)
    area = (x[..., 1] - x[..., 0]) * (y[..., 2] - y[..., 0]) - (x[..., 2] - x[..., 0]) * (y[..., 1] - y[..., 0])
    low_x, high_x = (x.amin(-1) - 0.5).ceil().clamp(0, size), (x.amax(-1) - 0.5).floor().clamp(-1, size - 1)
    low_y, high_y = (y.amin(-1) - 0.5).ceil().clamp(0, size), (y.amax(-1) - 0.5).floor().clamp(-1, size - 1)
    # y points down: a triangle that is counter-clockwise to the viewer has a negative area.
    seen = (area < 0) & (high_x >= low_x) & (high_y >= low_y)
    sample, face = seen.nonzero(as_tuple=True)
    pick = sample * len(faces) + face
    x, y = x.flatten(0, 1)[pick], y.flatten(0, 1)[pick]  # (N, 3)
    inverse = 1.0 / area.flatten()[pick]
    low_x, low_y = low_x.flatten()[pick], low_y.flatten()[pick]
    extent = torch.maximum(high_x.flatten()[pick] - low_x, high_y.flatten()[pick] - low_y).to(torch.int64) + 1
    z = order.flatten()[(sample[:, None] * order.shape[1] + faces[face])]  # (N, 3)

    buffer = torch.full((count * size * size,), EMPTY, dtype=torch.int64, device=points.device)
    previous = 0
    for window in WINDOWS:
        chosen = ((extent > previous) & (extent <= window)).nonzero(as_tuple=True)[0]
        previous = window
        if not len(chosen):
            continue
        offset = torch.arange(min(window, size), device=points.device, dtype=torch.float32)
        row, column = low_y[chosen, None] + offset, low_x[chosen, None] + offset  # (n, w)
        xs, ys, scale = x[chosen], y[chosen], inverse[chosen, None]
        px, py = (column + 0.5 - xs[:, :1]), (row + 0.5 - ys[:, :1])
        dx1, dx2 = xs[:, 1:2] - xs[:, :1], xs[:, 2:] - xs[:, :1]
        dy1, dy2 = ys[:, 1:2] - ys[:, :1], ys[:, 2:] - ys[:, :1]
        w1 = (px * (dy2 * scale))[:, None, :] - (py * (dx2 * scale))[:, :, None]  # (n, w, w)
        w2 = (py * (dx1 * scale))[:, :, None] - (px * (dy1 * scale))[:, None, :]
        inside = (w1 >= 0) & (w2 >= 0) & (w1 + w2 <= 1)
        inside &= (row < size)[:, :, None] & (column < size)[:, None, :]
        which, i, j = inside.nonzero(as_tuple=True)
        source = chosen[which]
        a, b = w1[which, i, j], w2[which, i, j]
        corner = z[source]
        level = corner[:, 0] + a * (corner[:, 1] - corner[:, 0]) + b * (corner[:, 2] - corner[:, 0])
        packed = ((level.clamp(0, 1) * DEPTH_STEPS).to(torch.int64) << 24) | face[source]
        target = (sample[source] * size + row[which, i].to(torch.int64)) * size + column[which, j].to(torch.int64)
        buffer.scatter_reduce_(0, target, packed, "amin")

    pixel = (buffer != EMPTY).nonzero(as_tuple=True)[0]
    face = buffer[pixel] & ((1 << 24) - 1)
    owner = pixel // (size * size)
    corners = points.flatten(0, 1)[owner[:, None] * points.shape[1] + faces[face]]  # (P, 3, 2)
    centre_x, centre_y = (pixel % size) + 0.5, (pixel // size % size) + 0.5
    px, py = centre_x - corners[:, 0, 0], centre_y - corners[:, 0, 1]
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    inverse = 1.0 / (one[:, 0] * two[:, 1] - two[:, 0] * one[:, 1])
    b1 = (px * two[:, 1] - py * two[:, 0]) * inverse
    b2 = (py * one[:, 0] - px * one[:, 1]) * inverse
    return pixel, face, torch.stack([1 - b1 - b2, b1, b2], 1)
