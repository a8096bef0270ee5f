"""The detector's targets and loss.

Boxes are (x_min, y_min, x_max, y_max) as shares of the square picture's side.  Labels are padded: `boxes` (B, N, 4),
`class_labels` (B, N) with 0 for a right hand, 1 for a left hand, -1 where that is not known, `directions` (B, N, 2) unit
vectors from the wrist to the middle knuckle or NaN where not known, `ignore` (B, N) bool for boxes in which nothing is
asked, and `present` (B, N) bool, False for padding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# In cells; below it a Gaussian falls between the cells' centres.
MIN_SPREAD = 0.7
# A cell learns the box of a hand if it lies this high on its Gaussian; on a hand of one cell, that is the cell itself.
REGRESSION_HEIGHT = 0.3


def pad_labels(labels: list[dict[str, Tensor]], device: torch.device | str) -> dict[str, Tensor]:
    """Labels in DETR's format as the padded tensors described above.

    Each picture's dict has `boxes` (N, 4), (centre x, centre y, width, height) as shares of the picture, `class_labels`
    (N,) and, if known, `directions` (N, 2) and `ignore` (N,).
    """
    count = max((len(label["boxes"]) for label in labels), default=0)
    padded = empty_labels(len(labels), max(count, 1), device)
    for row, label in enumerate(labels):
        hands = len(label["boxes"])
        centre, size = label["boxes"].to(device, torch.float32).reshape(-1, 4).split(2, 1)
        padded["boxes"][row, :hands] = torch.cat([centre - size / 2, centre + size / 2], 1)
        padded["present"][row, :hands] = True
        for name in ("class_labels", "directions", "ignore"):
            if label.get(name) is not None and hands:
                padded[name][row, :hands] = label[name].to(padded[name])
    return padded


def empty_labels(batch: int, count: int, device: torch.device | str) -> dict[str, Tensor]:
    """Padded labels of `batch` pictures with room for `count` hands, none of them present."""
    return {
        "boxes": torch.zeros(batch, count, 4, device=device),
        "class_labels": torch.full((batch, count), -1, device=device),
        "directions": torch.full((batch, count, 2), torch.nan, device=device),
        "ignore": torch.zeros(batch, count, dtype=torch.bool, device=device),
        "present": torch.zeros(batch, count, dtype=torch.bool, device=device),
    }


def centre_gaussians(boxes: Tensor, height: int, width: int, spread: float) -> Tensor:
    """A Gaussian (B, N, height, width) of peak 1 round the centre of each of `boxes` (B, N, 4).

    Its standard deviations are `spread` of the box's sides, so the peak grows with the hand: the middle of a large hand
    is a region, not a cell, and all of it may answer.
    """
    scale = torch.tensor([width, height], device=boxes.device)
    low, high = (boxes * torch.cat([scale, scale])).split(2, -1)
    centre, deviation = (low + high) / 2, ((high - low) * spread).clamp_min(MIN_SPREAD)  # (B, N, 2) cells
    lines = []
    for axis, count in enumerate((width, height)):
        place = torch.arange(count, device=boxes.device) + 0.5
        lines.append(((place - centre[..., axis, None]) / deviation[..., axis, None]).square_().mul_(-0.5).exp_())
    return lines[1][..., :, None] * lines[0][..., None, :]


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """GIoU (...) of boxes (..., 4), from -1 to 1 (Rezatofighi et al., https://arxiv.org/abs/1902.09630)."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    both = (high - low).clamp_min(0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1) for box in (first, second)]
    union = (areas[0] + areas[1] - both).clamp_min(1e-9)
    low, high = torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:])
    hull = (high - low).clamp_min(0).prod(-1).clamp_min(1e-9)
    return both / union - (hull - union) / hull


class DetectionLoss(nn.Module):
    """Centres, boxes and directions of hands, each hand counting alike whatever its size.

    Centres: the focal loss of CornerNet (https://arxiv.org/abs/1808.01244), as in CenterNet
    (https://arxiv.org/abs/1904.07850).  The cell of a hand's centre is a positive; near it the negatives count less, by
    the fourth power of one minus the Gaussian.  An intersection over union of whole maps, as the pose network's loss,
    would count a hand by its area, and small hands are most of the hands in photographs.  A hand of unknown side trains
    the larger of the two maps, and no map is punished near it.  Nothing is asked inside an ignored box.

    Boxes: 1 - GIoU and the distance of the corners over the box's sides, in all cells in the middle of a hand, weighted by
    its Gaussian, as in TTFNet (https://arxiv.org/abs/1909.00700), which so needs fewer samples.  Directions: 1 - cosine,
    in the same cells.
    """

    name = "detection loss"
    sentence = (
        "The loss is the focal loss of the hands' centres plus one minus the generalised intersection over union of their "
        "boxes and one minus the cosine of their directions."
    )
    box_weight, corner_weight, direction_weight = 2.0, 1.0, 0.5

    def __init__(self, spread: float):
        super().__init__()
        self.spread = spread

    def forward(self, logits: Tensor, boxes: Tensor, directions: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """Loss (), float32 also under autocast.

        Args:
            logits: (B, 2, H, W), of a right and of a left hand's centre in each cell.
            boxes: (B, 4, H, W), each cell's box.
            directions: (B, 2, H, W), each cell's unit vector.
            labels: padded, as the module's docstring describes.
        """
        return sum(self.parts(logits, boxes, directions, labels).values())

    def parts(self, logits: Tensor, boxes: Tensor, directions: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms of the loss by name, each ()."""
        with torch.autocast(logits.device.type, enabled=False):
            logits, boxes, directions = (values.float().contiguous() for values in (logits, boxes, directions))
            height, width = logits.shape[2:]
            wanted = labels["present"] & ~labels["ignore"]  # (B, N)
            gaussians = centre_gaussians(labels["boxes"], height, width, self.spread) * wanted[..., None, None]
            count = wanted.sum().clamp_min(1)
            centres = self._centres(logits, gaussians, wanted, labels) / count
            weights, owner = self._cells(gaussians)
            target = labels["boxes"].gather(1, owner.flatten(1)[..., None].expand(-1, -1, 4))  # (B, H * W, 4)
            mine = boxes.flatten(2).mT
            sides = (target[..., 2:] - target[..., :2]).clamp_min(1e-6).repeat(1, 1, 2)
            overlap = ((1 - generalized_iou(mine, target)) * weights).sum() / count
            corners = (((mine - target) / sides).abs().mean(-1) * weights).sum() / count
            toward = labels["directions"].float().gather(1, owner.flatten(1)[..., None].expand(-1, -1, 2))
            known = ~toward.isnan().any(-1)
            cosine = (directions.flatten(2).mT * toward.nan_to_num()).sum(-1)
            turned = ((1 - cosine) * weights * known).sum() / (weights * known).sum().clamp_min(1)
            return {
                "centres": centres,
                "boxes": self.box_weight * overlap + self.corner_weight * corners,
                "directions": self.direction_weight * turned,
            }

    def _cells(self, gaussians: Tensor) -> tuple[Tensor, Tensor]:
        """Which hand's box each cell learns (B, H, W), and how much (B, H * W): the weights of a hand sum to 1."""
        highest, owner = gaussians.max(1)
        chosen = highest * (highest >= REGRESSION_HEIGHT)  # (B, H, W)
        total = torch.zeros(gaussians.shape[:2], device=gaussians.device)
        total = total.scatter_add(1, owner.flatten(1), chosen.flatten(1))
        return chosen.flatten(1) / total.gather(1, owner.flatten(1)).clamp_min(1e-6), owner

    def _centres(self, logits: Tensor, gaussians: Tensor, wanted: Tensor, labels: dict[str, Tensor]) -> Tensor:
        height, width = logits.shape[2:]
        label = labels["class_labels"]
        target = torch.stack([(gaussians * (label != 1 - side)[..., None, None]).amax(1) for side in (0, 1)], 1)
        low, high = labels["boxes"].split(2, -1)
        centre = (low + high) / 2 * torch.tensor([width, height], device=logits.device)
        column, row = centre[..., 0].long().clamp(0, width - 1), centre[..., 1].long().clamp(0, height - 1)
        cell = row * width + column  # (B, N)

        # Positives: each hand's cell, in the map of its side, or in the larger one.
        at = logits.flatten(2).gather(2, cell[:, None].expand(-1, 2, -1))  # (B, 2, N)
        own = torch.where(label == 0, at[:, 0], torch.where(label == 1, at[:, 1], at.amax(1)))
        positive = -(F.logsigmoid(own) * torch.sigmoid(-own).square() * wanted).sum()

        # Negatives: every other cell, less near a centre, and none inside an ignored box.
        mask = torch.zeros_like(logits).flatten(2)
        for side in (0, 1):
            mask[:, side].scatter_reduce_(1, cell, (wanted & (label != 1 - side)).float(), "amax")
        mask = (mask.view_as(logits) < 0.5) & ~self._ignored(labels, height, width)[:, None]
        negative = -F.logsigmoid(-logits) * torch.sigmoid(logits).square() * (1 - target) ** 4
        return positive + (negative * mask).sum()

    @staticmethod
    def _ignored(labels: dict[str, Tensor], height: int, width: int) -> Tensor:
        """The cells (B, H, W) that an ignored box covers or touches."""
        low, high = labels["boxes"].split(2, -1)
        skipped = (labels["present"] & labels["ignore"])[..., None]
        lines = []
        for axis, count in enumerate((width, height)):
            place = torch.arange(count, device=low.device)
            lines.append((place + 1 > low[..., axis, None] * count) & (place < high[..., axis, None] * count) & skipped)
        return (lines[1][..., :, None] & lines[0][..., None, :]).any(1)


__all__ = ["DetectionLoss", "centre_gaussians", "empty_labels", "generalized_iou", "pad_labels"]
