"""A finished training's folder without the training: an untrained network, real figures of a few drawn hands."""

from pathlib import Path

import numpy as np
import torch

from dataset_script import HandCrops, SyntheticHands
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, decode_heatmaps
from training.arguments import Arguments
from training.data import Splits
from training.confidence import calibration
from training.evaluation import load_metric, mean_pose_arrays, normalize, score, score_by_group
from training.figures import draw_figures
from training.publishing import save_model

BACKGROUNDS = ["green_screen", "hom", "sample", "auto"]


def small_network(seed: int = 0) -> HandUNetForPoseEstimation:
    """A network of random weights that answers with spread, sharp heatmaps."""
    torch.manual_seed(seed)
    model = HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8)))
    with torch.no_grad():
        model(torch.randn(8, 3, 128, 128))
        model.head.weight *= 6
    return model.eval()


def arguments(output_dir: Path, **settings) -> Arguments:
    return Arguments(output_dir=str(output_dir), hidden_sizes=(4, 8), **settings)


@torch.no_grad()
def small_run(model: HandUNetForPoseEstimation, *, research_only: bool = False) -> tuple[dict, Splits, dict]:
    """Metrics, splits and arrays as at the end of a training, of 8 drawn hands on 4 backgrounds."""
    hands = HandCrops(SyntheticHands(8, seed=5))
    items = hands.__getitems__(list(range(8)))
    images = torch.stack([item["image"] for item in items])
    predictions, scores = decode_heatmaps(model(normalize(images)).heatmaps)
    arrays = {
        "predictions": predictions.numpy(),
        "scores": scores.numpy(),
        "keypoints": torch.stack([item["keypoints"] for item in items]).numpy(),
        "visibility": torch.stack([item["visibility"] for item in items]).numpy(),
        "box_size": np.array([item["box_size"] for item in items]),
        "loss": np.full(8, 0.5),
        "index": np.arange(8),
    }
    metric = load_metric()
    test = score(metric, arrays)
    mean_pose = score(metric, mean_pose_arrays(hands, arrays))
    splits = Splits(hands, hands, hands, "eight hands", research_only, BACKGROUNDS * 2)
    metrics = {
        "dataset": "eight hands",
        "processes": 1,
        "steps": 10,
        "best_epoch": 1,
        "test": test,
        "mean_pose": mean_pose,
        "mean_pose_of": "training",
        "error_over_mean_pose": test["mean_error_percent"] / mean_pose["mean_error_percent"],
        "grouped_by": splits.grouped_by,
        "test_by_group": score_by_group(metric, arrays, splits.test_groups),
        "calibration": calibration(arrays, arrays),
        "history": [{"epoch": 1, "step": 10, "train_loss": 0.6, "validation": {"loss": 0.5}}],
    }
    return metrics, splits, arrays


def save_small_model(folder: Path, seed: int = 0, **settings) -> Path:
    """The folder `model` in `folder`, as train.py leaves it."""
    model = small_network(seed)
    args = arguments(folder, **settings)
    metrics, splits, arrays = small_run(model, research_only=args.dataset == "freihand")
    figures = draw_figures(folder / "figures", metrics, arrays, splits.test)
    save_model(folder / "model", model, args, metrics, splits, figures)
    return folder / "model"
