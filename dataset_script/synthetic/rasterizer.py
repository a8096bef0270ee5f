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
FACE_BITS = 24
EMPTY = torch.iinfo(torch.int64).max


def rasterize(x: Tensor, y: Tensor, depth: Tensor, faces: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is seen at each pixel of `size` x `size` images.

    `x`, `y` (B, V) pixels, `depth` (B, V) the reciprocal of the distance (linear on the screen), `faces` (F, 3)
    counter-clockwise seen from outside.  Returns, for the P pixels that any triangle covers: `pixel` (P,) int64 into
    the flattened (B, size, size); `corners` (P, 3) int64 into the flattened (B, V); and the corners' barycentric
    weights (P, 3) float32, linear on the screen.
    """
    count, vertices = x.shape
    x, y = ((a * SUBPIXEL).round().to(torch.float32) / SUBPIXEL for a in (x, y))
    nearest, farthest = depth.amax(1, keepdim=True), depth.amin(1, keepdim=True)
    order = ((nearest - depth) / (nearest - farthest).clamp_min(1e-12)).to(torch.float32)  # 0 near, 1 far

    a, b, c = faces.T.contiguous()
    xa, xb, xc = (x.index_select(1, corner) for corner in (a, b, c))  # (B, F)
    ya, yb, yc = (y.index_select(1, corner) for corner in (a, b, c))
    area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
    low_x = torch.minimum(torch.minimum(xa, xb), xc).sub_(0.5).ceil_().clamp_(0, size)
    low_y = torch.minimum(torch.minimum(ya, yb), yc).sub_(0.5).ceil_().clamp_(0, size)
    high_x = torch.maximum(torch.maximum(xa, xb), xc).sub_(0.5).floor_().clamp_(-1, size - 1)
    high_y = torch.maximum(torch.maximum(ya, yb), yc).sub_(0.5).floor_().clamp_(-1, size - 1)
    # y points down: a triangle that is counter-clockwise to the viewer has a negative area.
    seen = (area < 0) & (high_x >= low_x) & (high_y >= low_y)
    pick = seen.flatten().nonzero(as_tuple=True)[0]  # (N,) triangles that may cover a pixel
    sample, face = pick // len(faces), pick % len(faces)
    low_x, low_y, high_x, high_y = (t.flatten()[pick] for t in (low_x, low_y, high_x, high_y))
    xa, xb, xc, ya, yb, yc = (t.flatten()[pick] for t in (xa, xb, xc, ya, yb, yc))
    inverse = 1.0 / area.flatten()[pick]
    extent = torch.maximum(high_x - low_x, high_y - low_y)
    # The weights of b and c are linear on the screen: w = w0 + wx * column + wy * row from the window's corner.
    bx, by, cx, cy = (yc - ya) * inverse, (xa - xc) * inverse, (ya - yb) * inverse, (xb - xa) * inverse
    px, py = low_x + 0.5 - xa, low_y + 0.5 - ya
    b0, c0 = px * bx + py * by, px * cx + py * cy
    first = sample * vertices
    flat = order.flatten()
    za = flat[first + a[face]]
    zb, zc = flat[first + b[face]] - za, flat[first + c[face]] - za

    buffer = torch.full((count * size * size,), EMPTY, dtype=torch.int64, device=x.device)
    corner = (sample * size + low_y.to(torch.int64)) * size + low_x.to(torch.int64)
    previous = -1
    for window in WINDOWS:
        chosen = ((extent > previous) & (extent < window)).nonzero(as_tuple=True)[0]
        previous = window - 1
        if not len(chosen):
            continue
        step = torch.arange(min(window, size), device=x.device, dtype=torch.float32)
        row, column = step.repeat_interleave(len(step)), step.repeat(len(step))  # (w * w,)
        wb = torch.addcmul(b0[chosen, None] + bx[chosen, None] * column, by[chosen, None], row)  # (n, w * w)
        wc = torch.addcmul(c0[chosen, None] + cx[chosen, None] * column, cy[chosen, None], row)
        inside = torch.minimum(torch.minimum(wb, wc), 1 - wb - wc) >= 0
        inside &= (low_x[chosen, None] + column < size) & (low_y[chosen, None] + row < size)
        hit = inside.flatten().nonzero(as_tuple=True)[0]
        which, place = hit // len(row), hit % len(row)
        source = chosen[which]
        level = za[source] + wb.flatten()[hit] * zb[source] + wc.flatten()[hit] * zc[source]
        packed = ((level.clamp_(0, 1) * DEPTH_STEPS).to(torch.int64) << FACE_BITS) | face[source]
        target = corner[source] + (row * size + column).to(torch.int64)[place]
        buffer.scatter_reduce_(0, target, packed, "amin")

    pixel = (buffer != EMPTY).nonzero(as_tuple=True)[0]
    packed = buffer[pixel]
    face, sample = packed & ((1 << FACE_BITS) - 1), pixel // (size * size)
    corners = faces[face] + (sample * vertices)[:, None]
    x, y = x.flatten(), y.flatten()
    xa, ya = x[corners[:, 0]], y[corners[:, 0]]
    ux, uy = x[corners[:, 1]] - xa, y[corners[:, 1]] - ya
    vx, vy = x[corners[:, 2]] - xa, y[corners[:, 2]] - ya
    px, py = (pixel % size) + 0.5 - xa, (pixel // size % size) + 0.5 - ya
    inverse = 1.0 / (ux * vy - vx * uy)
    wb, wc = (px * vy - py * vx) * inverse, (py * ux - px * uy) * inverse
    return pixel, corners, torch.stack([1 - wb - wc, wb, wc], 1)
