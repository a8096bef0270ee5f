"""A finished run's model folder without the training: an untrained network, and real figures of a few drawn hands."""

from pathlib import Path

import numpy as np
import torch

from dataset_script import HandCrops, SyntheticHands
from modeling_handunet import (
    HandUNetConfig,
    HandUNetDetectorConfig,
    HandUNetDetectorImageProcessor,
    HandUNetForObjectDetection,
    HandUNetForPoseEstimation,
    HandUNetImageProcessor,
    decode_heatmaps,
)
from release.saving import save_model
from training.confidence import calibration
from training.evaluation import load_metric, mean_pose_arrays, normalize, score, score_by_group
from training.figures import draw_figures
from training.report import fitted

BACKGROUNDS = ["green_screen", "hom", "sample", "auto"] * 2


def small_network(seed: int = 0) -> HandUNetForPoseEstimation:
    """A network of random weights that answers with spread, sharp heatmaps."""
    torch.manual_seed(seed)
    model = HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8)))
    with torch.no_grad():
        model(torch.randn(8, 3, 128, 128))
        model.head.weight *= 6
    return model.eval()


def small_detector(seed: int = 0) -> HandUNetForObjectDetection:
    """A detector of random weights that answers with spread, sharp maps: several hands in a picture."""
    torch.manual_seed(seed)
    config = HandUNetDetectorConfig(image_size=64, hidden_sizes=(4, 8, 8), decoder_sizes=(8,))
    model = HandUNetForObjectDetection(config).eval()
    smooth = torch.nn.functional.interpolate(torch.randn(8, 3, 8, 8), size=(64, 64), mode="bilinear")
    with torch.no_grad():
        model.head.weight *= 0.15 / model(smooth).centres.logit().std()
        model.head.weight[2:] *= 0.5
        model.head.bias[:2] = -1.5
    return model


@torch.no_grad()
def small_run(model: HandUNetForPoseEstimation) -> tuple[dict, HandCrops, dict]:
    """Metrics, test split and arrays as at the end of a training, of 8 drawn hands on 4 backgrounds."""
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
    metrics = {
        "dataset": "eight hands",
        "processes": 1,
        "steps": 10,
        "best_epoch": 1,
        "test": test,
        "mean_pose": mean_pose,
        "mean_pose_of": "training",
        "error_over_mean_pose": test["mean_error_percent"] / mean_pose["mean_error_percent"],
        "grouped_by": "background",
        "test_by_group": score_by_group(metric, arrays, BACKGROUNDS),
        "calibration": calibration(arrays, arrays),
        "history": [{"epoch": 1, "step": 10, "train_loss": 0.6, "validation": {"loss": 0.5}}],
    }
    return metrics, hands, arrays


def small_report(model: HandUNetForPoseEstimation, metrics: dict, **changes) -> dict:
    """What a run of synthetic hands reports of itself; `changes` replace parts of it."""
    terms = {"license": "apache-2.0", "license_name": None, "license_link": None, "datasets": [], "citation": ""}
    report = {
        "repo_id": None,
        "output_name": "handunet",
        "model": {"num_parameters": model.num_parameters(), "image_size": 128, "sigma": 3.0},
        "arguments": {
            "batch_size": 8,
            "gradient_accumulation_steps": 2,
            "optimizer": "adamw",
            "learning_rate": 0.0025,
            "schedule": "cosine",
            "ema_decay": 0.998,
            "targets": "continuous",
            "seed": 7,
        },
        "command": "accelerate launch train.py --hidden_sizes 4 8 --seed 7",
        "init": None,
        "loss": {"name": "IoU loss", "sentence": "It is one minus the overlap of two heatmaps."},
        "samples_per_epoch": 2200,
        "source": {
            "type": "synthetic",
            "name": "eight hands",
            "data": "Synthetic hands (easy).",
            "limits": "It has seen drawn hands only.",
            "pictures": "The hands are drawn by the project.",
            "grouped_by": "background",
            "same_validation_and_test": False,
            "terms": {**terms, "text": "The project models, poses and draws the hands itself."},
        },
        "metrics": metrics,
    }
    return report | changes


def save_small_model(folder: Path, seed: int = 0) -> Path:
    """The folder `model` in `folder`, as train.py leaves it."""
    model = small_network(seed)
    metrics, hands, arrays = small_run(model)
    figures = draw_figures(folder / "figures", metrics, arrays, hands)
    temperature, offset = (round(value, 4) for value in fitted(metrics))
    processor = HandUNetImageProcessor(temperature=temperature, score_offset=offset)
    small_detector().save_pretrained(folder / "finder")
    HandUNetDetectorImageProcessor(size=64).save_pretrained(folder / "finder")
    report = small_report(model, metrics, output_name=folder.name)
    save_model(folder / "model", model, processor, report, figures, folder / "finder")
    return folder / "model"
