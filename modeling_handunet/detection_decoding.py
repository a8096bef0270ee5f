"""From the detector's maps to a list of hands: peaks, and the rule that two detections of one hand are one.

Tensor operations alone, without a loop over detections, so that it can be exported with the network.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_DETECTIONS = 100
# Two detections are one hand if their boxes overlap by this IoU, of one side and of two: hands that are folded share most
# of their boxes, but only one hand looks like a right one.
SAME_SIDE_IOU = 0.45
OTHER_SIDE_IOU = 0.7
# Or if one lies in the other by this share of its area and is not much smaller: fingers found beside the whole hand.
# A small hand before a large one is another hand.
INSIDE = 0.85
LEAST_AREA = 0.2


def peaks(centres: Tensor, boxes: Tensor, directions: Tensor, count: int = MAX_DETECTIONS) -> tuple[Tensor, ...]:
    """The `count` highest cells of each picture that are no lower than their eight neighbours in the map of their side,
    which is the one that is higher in the cell.

    A hand of unsure side has its chance split over both maps, so the score is the sum of both, at most 1.

    Args:
        centres: (B, 2, H, W) in [0, 1], of right and of left hands.
        boxes: (B, 4, H, W).
        directions: (B, 2, H, W).

    Returns:
        scores (B, K) in [0, 1], 0 beyond the last peak; labels (B, K); boxes (B, K, 4); directions (B, K, 2); falling by
        score.
    """
    highest = torch.maximum(F.max_pool2d(centres, 3, stride=1, padding=1), centres.amax(1, keepdim=True))
    chance = centres.sum(1, keepdim=True).clamp_max(1)
    rank = torch.where(centres >= highest, chance, 0.0).flatten(1)  # (B, 2 * H * W)
    scores, order = rank.topk(min(count, rank.shape[1]))
    cells = centres.shape[2] * centres.shape[3]
    label, cell = order // cells, order % cells
    picked = [values.flatten(2).gather(2, cell[:, None].expand(-1, values.shape[1], -1)).mT for values in (boxes, directions)]
    return scores, label, *picked


def duplicates(labels: Tensor, boxes: Tensor) -> Tensor:
    """Which detections (B, K) are another, earlier one of the same hand; `labels` (B, K) and `boxes` (B, K, 4) fall by
    score."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    both = (high - low).clamp_min(0).prod(-1)  # (B, K, K)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)  # (B, K)
    smaller = torch.minimum(area[:, :, None], area[:, None]).clamp_min(1e-9)
    larger = torch.maximum(area[:, :, None], area[:, None]).clamp_min(1e-9)
    limit = torch.where(labels[:, :, None] == labels[:, None], SAME_SIDE_IOU, OTHER_SIDE_IOU)
    same = (both / (smaller + larger - both) >= limit) | ((both >= INSIDE * smaller) & (smaller >= LEAST_AREA * larger))
    earlier = torch.ones_like(same).tril(-1)  # (B, K, K): column before row
    return (same & earlier).any(-1)


__all__ = ["MAX_DETECTIONS", "duplicates", "peaks"]
