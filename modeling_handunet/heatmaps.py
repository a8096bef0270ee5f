"""Keypoints to heatmaps and back.

The convention of the whole project, written here once: sizes are (height, width), points are (x, y) with x to the
right and y down, coordinates are continuous and the centre of a pixel lies at +0.5, so that the top left pixel's
centre is (0.5, 0.5) and an image of width W covers 0 <= x < W.
"""

import torch
from torch import Tensor

# The local decoder's window reaches this far from the peak; its weights have this standard deviation.  Heatmap pixels.
LOCAL_RADIUS = 7
LOCAL_SIGMA = 3.0
LOCAL_STEPS = 3

DECODING_METHODS = ("local", "argmax", "mean")


def _pixel_centers(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device, dtype=like.dtype) + 0.5


def render_heatmaps(keypoints: Tensor, size: int | tuple[int, int], sigma: float, *, quantize: bool = False) -> Tensor:
    """Draw each keypoint as a Gaussian with a peak of 1.

    A Gaussian is separable, so an (H, W) map is the outer product of two vectors: H + W exponentials instead of H * W.

    Args:
        keypoints: (..., 2) points (x, y) in pixels of the heatmap, on any device; the result is on the same one.
        size: side, or (height, width), of the heatmaps.
        sigma: standard deviation of the Gaussian in pixels.
        quantize: move each keypoint to the centre of its pixel.  The first implementations of this network do the same:
            they set that pixel to one, blur with a Gaussian and divide by the maximum.

    Returns:
        (..., H, W) heatmaps in [0, 1].  A keypoint outside the image, or NaN, gives a map of zeros.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if keypoints.shape[-1:] != (2,):
        raise ValueError(f"keypoints has shape {tuple(keypoints.shape)}: its last dimension must be 2 (x, y).")
    if not sigma > 0:
        raise ValueError(f"sigma={sigma}: give a number of pixels above 0.")
    if keypoints.dtype != torch.float64:
        keypoints = keypoints.float()  # float16 and bfloat16 cannot hold pixel centres above 128 exactly
    limits = torch.tensor([width, height], device=keypoints.device)
    inside = ((keypoints >= 0) & (keypoints < limits)).all(-1)  # (...), False for NaN
    if quantize:
        keypoints = keypoints.floor() + 0.5
    x, y = torch.where(inside[..., None], keypoints, torch.inf).unbind(-1)  # infinitely far from every pixel
    columns = (_pixel_centers(width, x) - x[..., None]).square_().mul_(-0.5 / sigma**2).exp_()  # (..., W)
    rows = (_pixel_centers(height, y) - y[..., None]).square_().mul_(-0.5 / sigma**2).exp_()  # (..., H)
    return rows[..., :, None] * columns[..., None, :]  # (..., H, W)


def decode_heatmaps(heatmaps: Tensor, method: str = "local") -> tuple[Tensor, Tensor]:
    """Read one keypoint and its score off each heatmap.

    Args:
        heatmaps: (..., H, W), values of at least 0.
        method: `"local"`, with sub-pixel accuracy: mean shift (Comaniciu and Meer, PAMI 2002) with a Gaussian window,
            from the highest pixel.  A pixel counts only if its mirror image about the estimate is inside the heatmap, so
            that the border does not pull the estimate inwards.  `"argmax"`: the centre of the highest pixel.  `"mean"`:
            the average position over the whole heatmap, which faint background pulls towards the centre.

    Returns:
        keypoints (..., 2), (x, y) in pixels of the heatmap, float32; scores (...,), the heatmap's peak.  A map
        without a value above 0, or with NaN, gives the heatmap's centre with score 0, never NaN.
    """
    if method not in DECODING_METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(map(repr, DECODING_METHODS))}.")
    if heatmaps.ndim < 2 or 0 in heatmaps.shape[-2:]:
        raise ValueError(f"heatmaps has shape {tuple(heatmaps.shape)}: expected (..., height, width), not empty.")
    height, width = heatmaps.shape[-2:]
    if not heatmaps.is_floating_point() or heatmaps.dtype == torch.float64:
        heatmaps = heatmaps.float()
    scores, peaks = _highest_pixels(heatmaps)
    if method == "mean":
        rows, columns = (heatmaps.sum(axis, dtype=torch.float32) for axis in (-1, -2))  # (..., H), (..., W)
        total = rows.sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        x = columns @ _pixel_centers(width, columns) / total
        y = rows @ _pixel_centers(height, rows) / total
        keypoints = torch.stack([x, y], -1)
    else:
        keypoints = _refine(heatmaps, peaks) if method == "local" else peaks + 0.5
    center = torch.tensor([width / 2, height / 2], device=heatmaps.device)
    found = scores > 0  # False for NaN
    return torch.where(found[..., None], keypoints, center), torch.where(found, scores, 0.0)


def _highest_pixels(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """The peaks (...,), float32, of `heatmaps` (..., H, W) and the pixels (..., 2), x then y, where they are.

    Take the maximum per row, then over rows: much faster than `argmax` over the flattened map when rows are contiguous.
    In channels-last memory, columns take the place of rows.
    """
    height, width = heatmaps.shape[-2:]
    if heatmaps.ndim == 4 and heatmaps.is_contiguous(memory_format=torch.channels_last):
        column_peaks = heatmaps.permute(0, 2, 3, 1).amax(1).permute(0, 2, 1)  # (B, N, W)
        column = column_peaks.argmax(-1, keepdim=True)  # (B, N, 1)
        row = heatmaps.gather(-1, column[..., None].expand(*column.shape[:-1], height, 1)).argmax(-2)
        return column_peaks.amax(-1).float(), torch.cat([column, row], -1)
    row_peaks = heatmaps.amax(-1)  # (..., H)
    row = row_peaks.argmax(-1, keepdim=True)  # (..., 1)
    column = heatmaps.gather(-2, row[..., None].expand(*row.shape, width)).argmax(-1)
    return row_peaks.amax(-1).float(), torch.cat([column, row], -1)


def calibrate_scores(scores: Tensor, temperature: float, offset: float = 0.0) -> Tensor:
    """Scores (...) in [0, 1] whose log-odds are divided by `temperature` and raised by `offset`, float32; 0 stays 0.

    The peaks of heatmaps are no probabilities.  These two numbers, fitted on hands that were not trained on, correct most of
    that, and do not change the order of scores (Platt, "Probabilistic outputs for support vector machines", 1999).
    """
    if temperature == 1 and offset == 0:
        return scores
    odds = torch.logit(scores.float(), eps=1e-6) / temperature + offset
    return torch.where(scores > 0, torch.sigmoid(odds), 0.0)


def _refine(heatmaps: Tensor, peaks: Tensor) -> Tensor:
    """Mean shift from the pixels `peaks` (..., 2), x then y, in windows cut out of `heatmaps` (..., H, W)."""
    height, width = heatmaps.shape[-2:]
    offsets = torch.arange(-LOCAL_RADIUS, LOCAL_RADIUS + 1, device=heatmaps.device)
    last = torch.tensor([[width - 1], [height - 1]], device=heatmaps.device)
    places = peaks[..., None] + offsets  # (..., 2, D): columns, rows
    inside = places.clamp(last * 0, last)
    within = inside == places
    columns, rows = inside.unbind(-2)  # (..., D)
    pixels = (rows[..., :, None] * width + columns[..., None, :]).flatten(-2)  # (..., D * D)
    window = heatmaps.flatten(-2).gather(-1, pixels).float()
    window = window.unflatten(-1, (len(offsets), len(offsets)))  # (..., D, D): rows, columns
    window = window * (within[..., 1, :, None] & within[..., 0, None, :])

    # From here on in pixels from the peak's centre, for both axes at once.  For a Gaussian as wide as the weights, a plain
    # step halves the distance to its centre.  So each step goes twice as far: exact for that width, convergent for others.
    low, high = -(peaks + 0.5)[..., None], last - peaks[..., None] + 0.5  # (..., 2, 1), the image's borders
    shift = torch.zeros_like(low)
    for _ in range(LOCAL_STEPS):
        distance = offsets - shift  # (..., 2, D)
        mirrored = shift - distance
        weights = torch.exp(-(distance**2) / (2 * LOCAL_SIGMA**2)) * ((mirrored > low) & (mirrored < high))
        by_column = (window * weights[..., 1, :, None]).sum(-2)  # (..., D)
        by_row = (window * weights[..., 0, None, :]).sum(-1)
        mass = torch.stack([by_column, by_row], -2) * weights  # (..., 2, D)
        total = mass.sum(-1, keepdim=True)
        moved = total > 0
        mean = (mass * offsets).sum(-1, keepdim=True) / torch.where(moved, total, 1.0)
        shift = torch.where(moved, 2 * mean - shift, shift)
    return peaks + 0.5 + shift.squeeze(-1)


__all__ = ["DECODING_METHODS", "calibrate_scores", "decode_heatmaps", "render_heatmaps"]
