"""Each row of the ablation changes what it says, and nothing else; how well it trains is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import ablation
from benchmarks.ablation import CHANGES, LOSSES, SCENES, STUDIES, table, upright
from dataset_script.augmentation import augmentation_keys
from dataset_script.photo_augmentation import PhotoAugmentation
from dataset_script.sources import Inputs, photographs
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, render_heatmaps
from modeling_handunet.losses import HeatmapLoss

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_row_changes_one_thing(study):
    base = dict(option.split(" ", 1) for option in study.base.removeprefix("--").split(" --"))
    for name, (_, options) in study.rows.items():
        changes = [change.split(" ", 1) for change in options.split("--")[1:]]
        assert len(changes) + (name in CHANGES) == (name != "base"), name
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


@pytest.mark.parametrize("name", [name for name in CHANGES if name.startswith("no_")])
def test_parts_of_the_augmentation_can_be_left_out(name, monkeypatch):
    plain = photographs.PhotoAugmentation(64, 0.45)
    monkeypatch.setattr(photographs, "PhotoAugmentation", PhotoAugmentation)
    CHANGES[name]()
    changed = photographs.PhotoAugmentation(64, 0.45)
    names = CHANGES[name].args
    assert names and all(getattr(plain, part) > 0 and getattr(changed, part) == 0 for part in names)
    squares, keypoints = torch.randint(60, 200, (8, 3, 224, 224), dtype=torch.uint8), 78 + 60 * torch.rand(8, 21, 2)
    images, _ = changed(squares, keypoints, augmentation_keys(0, 0, torch.arange(8)))
    assert images.shape == (8, 3, 64, 64) and 0 <= images.min() and images.max() <= 1


def test_a_crop_is_turned_with_its_keypoints_until_the_hand_points_up():
    keypoints = 16 + 32 * torch.rand(40, 21, 2)
    images = render_heatmaps(keypoints[:, [0, 9, 4]], 64, 1.5)  # in red the wrist, in green the middle knuckle
    keypoints[0] = torch.nan  # no hand: as it is
    turned = upright(Inputs(images, keypoints, torch.ones(40, 21, dtype=torch.bool)), torch.zeros(40))
    direction = turned.keypoints[1:, 9] - turned.keypoints[1:, 0]
    torch.testing.assert_close(direction, torch.stack([torch.zeros(39), -direction.norm(dim=1)], 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(turned.images[0], images[0])
    inside = ((turned.keypoints > 4) & (turned.keypoints < 60)).all(-1)
    for channel, point in enumerate((0, 9, 4)):
        found = ablation.decode_heatmaps(turned.images[:, [channel]])[0][:, 0]
        away = (found - turned.keypoints[:, point]).norm(dim=1)[inside[:, point]]
        assert len(away) > 20 and away.max() < 0.5
    aside = upright(Inputs(images, keypoints, turned.visibility), torch.full((40,), 0.3))
    direction = aside.keypoints[1:, 9] - aside.keypoints[1:, 0]
    torch.testing.assert_close(torch.atan2(direction[:, 0], -direction[:, 1]), torch.full((39,), 0.3), atol=1e-4, rtol=0)


def test_soft_targets_are_half_of_what_the_teacher_draws_where_a_hand_is(monkeypatch, tmp_path):
    teacher = HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8), image_size=32, sigma=2.0)).eval()
    teacher.save_pretrained(tmp_path)
    monkeypatch.setattr(ablation, "TEACHER", str(tmp_path))
    monkeypatch.setattr(ablation, "bf16_is_fast", lambda: False)
    usual = {"labels": torch.zeros(2, 21, 32, 32), "more": 1}
    monkeypatch.setattr(ablation.PoseTask, "make_targets", lambda task, inputs: usual)
    CHANGES["soft"]()
    keypoints = 32 * torch.rand(2, 21, 2)
    keypoints[1] = torch.nan
    inputs = Inputs(torch.rand(2, 3, 32, 32), keypoints, torch.ones(2, 21, dtype=torch.bool))
    made = ablation.PoseTask.make_targets(None, inputs)
    drawn = teacher(ablation.normalize(inputs.images)).heatmaps.detach()
    torch.testing.assert_close(made["labels"][0], drawn[0] / 2)
    assert made["more"] == 1 and not made["labels"][1].any()


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
