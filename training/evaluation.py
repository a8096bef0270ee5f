"""Scoring: a model over a split on all processes, and the same numbers whatever their count."""

from collections.abc import Sequence
from pathlib import Path

import evaluate
import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from modeling_handunet import decode_heatmaps
from training.inputs import Inputs, MakeHeatmaps, normalize

METRICS = Path(__file__).resolve().parent.parent / "metrics"


def load_metric(name: str = "hand_keypoints") -> evaluate.Metric:
    """A metric of the project's, for one process: predictions are gathered before they are scored."""
    return evaluate.load(str(METRICS / name), keep_in_memory=True)


@torch.no_grad()
def predict(
    accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader, make_targets: MakeHeatmaps, decoding: str = "local"
) -> dict[str, np.ndarray]:
    """Predictions for all samples of a prepared `loader`, gathered on every process and ordered by sample.

    Returns arrays over the N samples: `predictions` and `keypoints` (N, 21, 2) px of the crop, `scores` (N, 21),
    `visibility` (N, 21), `box_size` (N,) px, `loss` (N,), the model's own loss of each sample, and `index` (N,).
    """
    model.eval()
    loss_of = accelerator.unwrap_model(model).loss
    parts = []
    for batch in loader:
        inputs = Inputs(batch["image"].float() / 255, batch["keypoints"], batch["visibility"])
        with accelerator.autocast():
            heatmaps = model(normalize(inputs.images)).heatmaps
        heatmaps = heatmaps.float()
        losses = loss_of.per_heatmap(heatmaps, make_targets(inputs)) * inputs.visibility  # (B, 21)
        predictions, scores = decode_heatmaps(heatmaps, decoding)
        part = {
            "predictions": predictions,
            "keypoints": inputs.keypoints,
            "scores": scores,
            "visibility": inputs.visibility,
            "box_size": batch["box_size"],
            "loss": losses.sum(1) / inputs.visibility.sum(1).clamp_min(1),
            "index": batch["index"],
        }
        parts.append({name: value.cpu().numpy() for name, value in accelerator.gather_for_metrics(part).items()})
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(arrays["index"], kind="stable")
    return {name: values[order] for name, values in arrays.items()}


def score(metric: evaluate.Metric, arrays: dict[str, np.ndarray], image_size: int = 128) -> dict:
    """The metric's figures for what [`predict`] returned, and the mean `loss`."""
    seen = arrays["visibility"].any(1)
    columns = ("keypoints", "visibility", "box_size", "scores")
    references = [dict(zip(columns, row)) for row in zip(*(arrays[name] for name in columns))]
    figures = metric.compute(predictions=arrays["predictions"], references=references, image_size=image_size)
    return {"loss": float(arrays["loss"][seen].astype(np.float64).mean()), **figures}


def score_by_group(
    metric: evaluate.Metric, arrays: dict[str, np.ndarray], groups: Sequence[str], image_size: int = 128
) -> dict:
    """[`score`]'s figures for each group; `groups` has that of every sample of the split, by its index."""
    names = np.asarray(groups)[arrays["index"]]
    results = {}
    for name in sorted(set(names.tolist())):
        chosen = {key: values[names == name] for key, values in arrays.items()}
        if chosen["visibility"].any():
            results[name] = score(metric, chosen, image_size)
    return results


def mean_over(parts: dict[str, dict]) -> dict[str, float]:
    """The mean over parts, each weighing the same, of the figures that are numbers in all of them."""
    names = set.intersection(*(set(part) for part in parts.values()))
    numbers = [name for name in next(iter(parts.values())) if name in names]
    return {
        name: float(np.mean([part[name] for part in parts.values()]))
        for name in numbers
        if all(isinstance(part[name], float) for part in parts.values())
    }


def worst_over_green_screen(parts: dict[str, dict]) -> float | None:
    """Error on the worst of FreiHAND's backgrounds over that on its green screen; None without other backgrounds."""
    if "green_screen" not in parts or len(parts) == 1:
        return None
    errors = {name: part["mean_error_percent"] for name, part in parts.items()}
    return max(errors.values()) / max(errors["green_screen"], 1e-9)  # 0 where all predictions are correct


def mean_pose_arrays(train: Dataset, arrays: dict[str, np.ndarray], most: int = 2000) -> dict[str, np.ndarray]:
    """`arrays` as they were if every answer were the mean pose of (up to `most`) training samples, without scores."""
    indices = list(range(0, len(train), max(1, len(train) // most)))
    batches = [train.__getitems__(indices[first : first + 32]) for first in range(0, len(indices), 32)]  # drawn together
    hands = [(item["keypoints"], item["visibility"]) for batch in batches for item in batch]
    keypoints = np.stack([points.numpy() for points, _ in hands]).astype(np.float64)  # (N, 21, 2)
    weights = np.stack([visible.numpy() for _, visible in hands])[..., None].astype(np.float64)
    pose = (keypoints * weights).sum(0) / np.maximum(weights.sum(0), 1)  # (21, 2)
    predictions = np.broadcast_to(pose, arrays["predictions"].shape)
    return {**arrays, "predictions": predictions, "scores": np.ones(predictions.shape[:2])}
