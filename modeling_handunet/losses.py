"""The loss between predicted heatmaps and their targets, one minus their intersection over union; and the hand classifier's.

To train on another loss, write a class with the interface of [`HeatmapLoss`] and set it where the model is made:

    HandUNetForPoseEstimation.loss_class = MyLoss

A loss is an `nn.Module` that is made with `(sigma)`.  It has `forward(heatmaps, targets, visibility=None)`,
`per_heatmap(heatmaps, targets)`, and, for the plot and the model card, `name` and `sentence`.  Training, validation, plot
and card all ask `model.loss`.
"""

import math

import torch
from torch import Tensor, nn


class IoULoss(nn.Module):
    """Intersection over union of soft masks (Rahman and Wang, "Optimizing intersection-over-union in deep neural
    networks for image segmentation", ISVC 2016), with the squared form of the union:

        I = sum(y * t),  U = sum(y * y) + sum(t * t) - sum(y * t),  loss = 1 - (I + eps) / (U + eps)

    per heatmap, then averaged.  On a target of zeros the loss is 1 - eps / (sum(y * y) + eps).  Its gradient is almost 0
    almost everywhere, so this loss cannot teach that a keypoint is absent.
    """

    name = "IoU loss"
    sentence = "One minus the intersection over union of each predicted heatmap and its target, averaged over the keypoints."

    def __init__(self, eps: float = 1e-6):
        super().__init__()
        self.eps = eps

    def forward(self, heatmaps: Tensor, targets: Tensor, visibility: Tensor | None = None) -> Tensor:
        """The mean loss (), float32 also under autocast.

        Args:
            heatmaps: predictions (B, N, H, W) in [0, 1].
            targets: heatmaps of the same shape.
            visibility: (B, N) bool, the keypoints that count; by default all.  If none counts, the loss is 0.
        """
        loss = self.per_heatmap(heatmaps, targets)
        if visibility is None:
            return loss.mean()
        if visibility.shape != loss.shape:
            raise ValueError(f"visibility has shape {tuple(visibility.shape)}, expected {tuple(loss.shape)}.")
        counts = visibility.to(loss.dtype)
        return (loss * counts).sum() / counts.sum().clamp_min(1)

    def per_heatmap(self, heatmaps: Tensor, targets: Tensor) -> Tensor:
        """The loss (B, N) of each heatmap."""
        return self.loss_and_energy(heatmaps, targets)[0]

    def loss_and_energy(self, heatmaps: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (B, N) of each heatmap, and its energy sum(y * y) (B, N)."""
        if heatmaps.shape != targets.shape:
            raise ValueError(
                f"heatmaps have shape {tuple(heatmaps.shape)} but their targets {tuple(targets.shape)}: "
                "render the targets at the model's image_size, one per keypoint."
            )
        with torch.autocast(heatmaps.device.type, enabled=False):
            # Use the prediction's memory format for both tensors: mixed formats are several times slower.
            last = heatmaps.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last else torch.contiguous_format
            y, t = (maps.float().contiguous(memory_format=layout) for maps in (heatmaps, targets))
            intersection, energy = (y * t).sum((2, 3)), y.square().sum((2, 3))
            union = energy + t.square().sum((2, 3)) - intersection
            return 1 - (intersection + self.eps) / (union + self.eps), energy


class HeatmapLoss(IoULoss):
    """The model's loss: [`IoULoss`], and squared error where the target is empty.

    An empty target says that the keypoint is absent.  Its loss is the energy of the heatmap over the energy of one
    keypoint's Gaussian, sum(y * y) / (pi * sigma**2): about 1 for one confident false keypoint.  `visibility` leaves out
    keypoints of which nothing is known.
    """

    sentence = IoULoss.sentence[:-1] + ", and squared error on the empty maps of absent keypoints."

    def __init__(self, sigma: float, eps: float = 1e-6):
        super().__init__(eps)
        self.energy = math.pi * sigma**2

    def per_heatmap(self, heatmaps: Tensor, targets: Tensor) -> Tensor:
        """The loss (B, N) of each heatmap."""
        loss, energy = self.loss_and_energy(heatmaps, targets)
        empty = targets.detach().flatten(2).amax(2) <= 0  # (B, N)
        return torch.where(empty, energy / self.energy, loss)


# Classes of what a crop shows, for the hand classifier: a hand of the side that the network reads, one of the other side, no
# hand; and for training a hand of unknown side, or that nothing is known.
RIGHT, LEFT, NO_HAND, SOME_HAND, UNLABELED = 0, 1, 2, -1, -100
# How much the hand classifier's loss counts beside that of the heatmaps.
HAND_LOSS_WEIGHT = 0.3


def hand_loss(hand_logits: Tensor, hand_classes: Tensor) -> Tensor:
    """The cross entropy (B,) of what each crop shows, float32 also under autocast; 0 where that is not known.

    Args:
        hand_logits: (B, 3), of `RIGHT`, `LEFT` and `NO_HAND`.
        hand_classes: (B,), one of these; `SOME_HAND`, for which either side is correct; or `UNLABELED`.
    """
    log_chances = hand_logits.float().log_softmax(1)
    of_class = log_chances.gather(1, hand_classes.clamp_min(0)[:, None])[:, 0]
    of_any_hand = log_chances[:, :NO_HAND].logsumexp(1)
    return -torch.where(hand_classes == SOME_HAND, of_any_hand, of_class) * (hand_classes != UNLABELED)


__all__ = ["HeatmapLoss", "IoULoss", "hand_loss"]
