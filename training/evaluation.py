"""Scoring a model on a split, with all processes.  The figures do not depend on the number of processes."""

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
    """Predictions for all samples of a prepared `loader`, in float32, gathered on every process and ordered by sample.

    Returns arrays over the N samples: `predictions` and `keypoints` (N, 21, 2) px of the crop, `scores` (N, 21),
    `visibility` (N, 21), `box_size` (N,) px, `loss` (N,), the model's own loss of each sample, `index` (N,) and, of a model
    with a hand classifier, `hand_chances` (N, 3).
    """
    model.eval()
    parts = []
    for batch in loader:
        inputs = Inputs(batch["image"].float() / 255, batch["keypoints"], batch["visibility"])
        outputs = model(normalize(inputs.images))
        heatmaps = outputs.heatmaps
        losses = model.loss.per_heatmap(heatmaps, make_targets(inputs)) * inputs.visibility  # (B, 21)
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
        if outputs.hand_logits is not None:
            part["hand_chances"] = outputs.hand_logits.softmax(1)
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
    """The figures of [`score`] for each group; `groups[index]` is the group of the sample with that index."""
    names = np.asarray(groups)[arrays["index"]]
    results = {}
    for name in sorted(set(names.tolist())):
        chosen = {key: values[names == name] for key, values in arrays.items()}
        if chosen["visibility"].any():
            results[name] = score(metric, chosen, image_size)
    return results


def mean_over(parts: dict[str, dict]) -> dict[str, float]:
    """Each figure's mean over the parts; every part counts the same.  Only figures that are floats in all parts."""
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
    return max(errors.values()) / max(errors["green_screen"], 1e-9)  # the divisor is 0 if all predictions are correct


def figures_of_groups(parts: dict[str, dict], grouped_by: str) -> dict:
    """What the figures of groups, as of [`score_by_group`], add to those of the whole split; nothing without groups."""
    if not parts:
        return {}
    shown = {name: {k: v for k, v in part.items() if not isinstance(v, list)} for name, part in parts.items()}
    figures = {f"by_{grouped_by}": shown, f"mean_over_{grouped_by}s": mean_over(parts)}
    if (ratio := worst_over_green_screen(parts)) is not None:
        figures["worst_over_green_screen"] = ratio
    return figures


COLUMNS = {  # of the table: figures, and how they are written
    "num_hands": (" hands", "d"),
    "mean_error_over_box": ("error / box", ".3f"),
    "mean_error_percent": ("error, % of side", ".2f"),
    "pck@0.1": ("PCK@0.1", ".3f"),
    "pck@0.2": ("PCK@0.2", ".3f"),
    "auc": ("  AUC", ".3f"),
    "score_auroc": ("AUROC of scores", ".3f"),
    "loss": ("  loss", ".4f"),
}


def table(figures: dict, parts: dict[str, dict], grouped_by: str) -> str:
    """Figures of a model on a split, and those of its groups, as a table for people."""
    rows = {"all": figures, **parts}
    if parts:
        rows[f"mean over {grouped_by}s"] = figures[f"mean_over_{grouped_by}s"]
    width = max(map(len, rows))
    lines = [f"{figures['model']} on {figures['dataset']}: {figures['num_hands']} hands"]
    lines.append("  ".join(["".ljust(width), *(title for title, _ in COLUMNS.values())]))
    for name, row in rows.items():
        cells = [
            (format(row[key], form) if row.get(key) is not None else "-").rjust(len(title))
            for key, (title, form) in COLUMNS.items()
        ]
        lines.append("  ".join([name.ljust(width), *cells]))
    if "worst_over_green_screen" in figures:
        lines.append(f"The worst background has {figures['worst_over_green_screen']:.2f} times the green screen's error.")
    return "\n".join(lines)


def mean_pose_arrays(train: Dataset, arrays: dict[str, np.ndarray], most: int = 2000) -> dict[str, np.ndarray]:
    """`arrays`, with the mean pose of (up to `most`) training samples as every prediction, and all scores 1."""
    indices = list(range(0, len(train), max(1, len(train) // most)))
    batches = [train.__getitems__(indices[first : first + 32]) for first in range(0, len(indices), 32)]  # drawn together
    hands = [(item["keypoints"], item["visibility"]) for batch in batches for item in batch]
    keypoints = np.stack([points.numpy() for points, _ in hands]).astype(np.float64)  # (N, 21, 2)
    weights = np.stack([visible.numpy() for _, visible in hands])[..., None].astype(np.float64)
    pose = (keypoints * weights).sum(0) / np.maximum(weights.sum(0), 1)  # (21, 2)
    predictions = np.broadcast_to(pose, arrays["predictions"].shape)
    return {**arrays, "predictions": predictions, "scores": np.ones(predictions.shape[:2])}
