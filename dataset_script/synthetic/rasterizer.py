"""A z-buffered triangle rasteriser in plain torch: batched, on any device, without a loop over samples or triangles.

Triangles that face the viewer are grouped by the size of their bounding boxes. All triangles of a group test all pixels of
their small windows at once, and a `scatter_reduce` minimum over (depth, triangle), packed into one integer, finds the
nearest. A hand has thousands of small triangles that touch a few pixels each, so this does little more work than there are
pixels. Anti-aliasing is left to the caller: draw at twice the size and average.

Points are in pixels, x right, y down, a pixel's centre at +0.5.
"""

import torch
from torch import Tensor

SUBPIXEL = 32.0  # points snap to this fraction of a pixel, so that rounding noise cannot move an edge
WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)  # sides in pixels; larger triangles test the whole image
DEPTH_STEPS = float(1 << 30)
HIT_BITS = 32
EMPTY = torch.iinfo(torch.int64).max


def rasterize(x: Tensor, y: Tensor, depth: Tensor, faces: Tensor, size: int
              ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The triangle seen at each pixel of `size` x `size` images.

    `x`, `y` (B, V) are pixels, `depth` (B, V) is the reciprocal of the distance (linear on the screen), `faces` (F, 3) are
    counter-clockwise seen from outside. Returns for the P pixels that a triangle covers: `pixel` (P,) int64 into the
    flattened (B, size, size); the triangle's three corners, (P,) int64 each, into the flattened (B, V); and their
    barycentric weights, (P,) float32 each, linear on the screen.
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

    corner = (sample * size + low_y.to(torch.int64)) * size + low_x.to(torch.int64)
    room = size - 1 - torch.maximum(low_x, low_y)  # windows that reach beyond the image's edge are cut
    hits = []
    previous = -1
    for window in (*(side for side in WINDOWS if side < size), size):
        chosen = ((extent > previous) & (extent < window)).nonzero(as_tuple=True)[0]
        previous = window - 1
        if not len(chosen):
            continue
        step = torch.arange(window, device=x.device, dtype=torch.float32)
        row, column = step.repeat_interleave(len(step)), step.repeat(len(step))  # (w * w,)
        wb = torch.addcmul(b0[chosen, None] + bx[chosen, None] * column, by[chosen, None], row)  # (n, w * w)
        wc = torch.addcmul(c0[chosen, None] + cx[chosen, None] * column, cy[chosen, None], row)
        inside = torch.minimum(wb, wc) >= 0
        inside &= wb + wc <= 1
        hit = inside.flatten().nonzero(as_tuple=True)[0]
        which, place = hit // len(row), hit % len(row)
        source = chosen[which]
        target = corner[source] + (row * size + column).to(torch.int64)[place]
        outside = (low_x[source] + column[place] >= size) | (low_y[source] + row[place] >= size)
        target = torch.where(outside, count * size * size, target) if bool((room[chosen] < window).any()) else target
        hits.append((source, wb.flatten()[hit], wc.flatten()[hit], target))
    source, wb, wc, target = (torch.cat(part) for part in zip(*hits)) if hits else (pick, xa, xa, pick)

    # The nearest triangle of each pixel: a minimum over depth and, below it, the number of the hit.
    level = (za[source] + wb * zb[source] + wc * zc[source]).clamp_(0, 1)
    packed = ((level * DEPTH_STEPS).to(torch.int64) << HIT_BITS) | torch.arange(len(source), device=x.device)
    buffer = torch.full((count * size * size + 1,), EMPTY, dtype=torch.int64, device=x.device)
    buffer.scatter_reduce_(0, target, packed, "amin")
    pixel = (buffer[:-1] != EMPTY).nonzero(as_tuple=True)[0]
    winner = buffer[pixel] & ((1 << HIT_BITS) - 1)
    source, wb, wc = source[winner], wb[winner], wc[winner]
    face, first = face[source], first[source]
    return pixel, (a[face] + first, b[face] + first, c[face] + first), (1 - wb - wc, wb, wc)
