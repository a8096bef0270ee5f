"""The loss between predicted and target heatmaps: one minus their intersection over union.

Change this file to train on another loss: the model calls nothing else.
"""

import torch
from torch import Tensor, nn


class IoULoss(nn.Module):
    """Intersection over union of soft masks (Rahman and Wang, "Optimizing intersection-over-union in deep neural
    networks for image segmentation", ISVC 2016), with the squared form of the union:

        I = sum(y * t),  U = sum(y * y) + sum(t * t) - sum(y * t),  loss = 1 - (I + eps) / (U + eps)

    per heatmap, then averaged.  On a target of zeros the loss is 1 - eps / (sum(y * y) + eps), whose gradient vanishes
    almost everywhere: it cannot teach that something is absent.
    """

    def __init__(self, eps: float = 1e-6):
        super().__init__()
        self.eps = eps

    def forward(self, heatmaps: Tensor, targets: Tensor, visibility: Tensor | None = None) -> Tensor:
        """Loss (), float32 also under autocast.

        Args:
            heatmaps: predictions (B, N, H, W) in [0, 1].
            targets: heatmaps of the same shape.
            visibility: (B, N) bool, the keypoints that count; all of them by default.  0 where none counts.
        """
        loss = self.per_heatmap(heatmaps, targets)
        if visibility is None:
            return loss.mean()
        if visibility.shape != loss.shape:
            raise ValueError(f"visibility has shape {tuple(visibility.shape)}, expected {tuple(loss.shape)}.")
        counts = visibility.to(loss.dtype)
        return (loss * counts).sum() / counts.sum().clamp_min(1)

    def per_heatmap(self, heatmaps: Tensor, targets: Tensor) -> Tensor:
        """The loss (B, N) of each heatmap, before it is averaged; arguments as above."""
        if heatmaps.shape != targets.shape:
            raise ValueError(
                f"heatmaps have shape {tuple(heatmaps.shape)} but their targets {tuple(targets.shape)}: "
                "render the targets at the model's image_size, one per keypoint."
            )
        with torch.autocast(heatmaps.device.type, enabled=False):
            y, t = heatmaps.float().flatten(2), targets.float().flatten(2)  # (B, N, H * W)
            intersection = torch.linalg.vecdot(y, t)
            union = torch.linalg.vecdot(y, y) + torch.linalg.vecdot(t, t) - intersection
            return 1 - (intersection + self.eps) / (union + self.eps)


__all__ = ["IoULoss"]
