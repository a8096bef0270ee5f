"""What the ways read: drawn photographs in FreiHAND's layout, a model and its ONNX export, all made in one folder."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPHS = 96


def prepare(folder: Path) -> None:
    """Make what is missing in `folder`."""
    if not (folder / "freihand" / "training_K.json").exists():
        write_photographs(folder / "freihand", PHOTOGRAPHS)
    if not (folder / "model.onnx").exists():
        from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor

        torch.manual_seed(0)
        HandUNetForPoseEstimation(HandUNetConfig()).save_pretrained(folder / "model")
        HandUNetImageProcessor().save_pretrained(folder / "model")
        command = [sys.executable, "-m", "scripts.export_onnx", folder / "model", folder / "model.onnx"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def write_photographs(folder: Path, count: int) -> None:
    """`count` drawn hands of 224x224 as jpgs, with their annotations."""
    from dataset_script import SyntheticHands

    hands = SyntheticHands(count, image_size=224)
    rgb = folder / "training" / "rgb"
    rgb.mkdir(parents=True, exist_ok=True)
    annotations = {"xyz": [], "K": []}
    for index in range(count):
        row = hands[index]
        file = io.BytesIO()
        row["image"].save(file, "JPEG", quality=95)
        (rgb / f"{index:08d}.jpg").write_bytes(file.getvalue())
        for name, values in annotations.items():
            values.append(np.asarray(row[name], np.float64).tolist())
    for name, values in annotations.items():
        (folder / f"training_{name}.json").write_text(json.dumps(values))
