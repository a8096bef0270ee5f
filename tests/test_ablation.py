"""Each row of the ablation changes what it says, and nothing else; how well it trains is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ablation import LOSSES, SCENES, STUDIES, table
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, render_heatmaps
from modeling_handunet.losses import HeatmapLoss

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_row_changes_one_option_or_the_loss(study):
    base = dict(option.split(" ", 1) for option in study.base.removeprefix("--").split(" --"))
    for name, (_, options) in study.rows.items():
        changes = [change.split(" ", 1) for change in options.split("--")[1:]]
        assert len(changes) + (name in LOSSES) == (name != "base"), name
        assert all(base.get(option) != value.strip() for option, value in changes), name


@pytest.mark.parametrize("name", LOSSES)
def test_an_auxiliary_loss_adds_what_is_wrong_and_nothing_where_nothing_is(name):
    keypoints = 4 + 24 * torch.rand(2, 3, 2)
    targets = render_heatmaps(keypoints, 32, 3.0)
    alone, loss = HeatmapLoss(3.0), LOSSES[name](3.0)
    torch.testing.assert_close(loss(targets, targets), alone(targets, targets))
    shifted = render_heatmaps(keypoints + 2, 32, 3.0).requires_grad_()
    assert loss(shifted, targets) > alone(shifted, targets)
    loss(shifted, targets).backward()
    assert shifted.grad.isfinite().all()
    assert loss(torch.zeros_like(targets), targets).isfinite()


def test_the_coordinate_loss_counts_the_distance_in_tenths_of_the_side():
    targets, moved = (render_heatmaps(torch.tensor([[[x, 16.0]]]), 32, 2.0) for x in (14.4, 17.6))  # a tenth of 32 px apart
    added = LOSSES["coordinates"](2.0).per_heatmap(moved, targets) - HeatmapLoss(2.0).per_heatmap(moved, targets)
    torch.testing.assert_close(added, torch.ones(1, 1), atol=1e-2, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_model_trains_on_the_loss_that_is_set(name, monkeypatch):
    monkeypatch.setattr(HandUNetForPoseEstimation, "loss_class", LOSSES[name])
    assert isinstance(HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8))).loss, LOSSES[name])


def test_the_table_has_the_mean_over_seeds_and_their_range():
    def run(error: float) -> dict:
        parts = {"drawn": {"mean_error_over_box": error + 1}, "cut-outs": {"mean_error_over_box": error + 2}}
        validation = {"mean_error_over_box": error, "pck@0.1": 0.5}
        return {"validation": validation, "test": {"mean_error_percent": 6.25}, "test_by_group": parts}

    alone = {key: value for key, value in run(0.125).items() if key != "test_by_group"}
    lines = table(SCENES, {"base": [run(0.1), run(0.2)], "wider": [alone]}).splitlines()
    assert lines[2].endswith("| 2 | 0.150 (0.100-0.200) | 0.500 | 1.150 (1.100-1.200) | 2.150 (2.100-2.200) | 6.250 |")
    assert lines[3] == f"| {SCENES.rows['wider'][0]} | 1 | 0.125 | 0.500 |  |  | 6.250 |"


@pytest.mark.slow
def test_rows_are_trained_and_read(tmp_path):
    tiny = "--train_samples 16 --epochs 1 --layers 8 --validation_samples 4 --test_samples 4 --hidden_sizes 4 8".split()
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ablation", "--folder", str(tmp_path)]
    options = ["--", *tiny, "--cache_dir", str(tmp_path / "cache")]
    rows = ["--rows", "coordinates", "quantized"]
    result = subprocess.run([*command, *rows, *options], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    for name in ("coordinates-0", "quantized-0"):
        assert 0 < json.loads((tmp_path / name / "metrics.json").read_text())["validation"]["mean_error_over_box"] < 2
    again = subprocess.run([*command, "--print"], cwd=ROOT, capture_output=True, text=True)  # reads what is done
    assert again.stdout.splitlines() == result.stdout.splitlines()[2:]
    other = subprocess.run([*command, "--", "--layers", "9"], cwd=ROOT, capture_output=True, text=True)
    assert other.returncode == 2 and "was begun with --dataset scenes" in other.stderr
