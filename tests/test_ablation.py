"""Each row of the ablation changes what it says, and nothing else; how well it trains is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ablation import BASE, LOSSES, ROWS, centre_of_mass, options_of, table
from modeling_handunet import render_heatmaps
from modeling_handunet.losses import HeatmapLoss
from training.arguments import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
COMMON = ["--hand_mesh", "right.glb", "--cutouts", "cutouts", "--photos", "photos", "--mixed_precision", "bf16"]


def test_every_row_changes_the_base():
    base = parse_arguments([*BASE, *COMMON])
    for name, row in ROWS.items():
        differences = base.differences(parse_arguments([*BASE, *options_of(row, COMMON)]).to_dict())
        places = [option for option in row.without if option not in options_of(row, COMMON)]
        assert bool(differences or places or row.loss or row.plain_scenes) == (name != "base"), name
        assert len(differences) <= 1, differences
        assert row.seeds[0] == 0


def test_every_row_that_is_kept_without_further_options_can_be_trained():
    kept = [row for row in ROWS.values() if not row.needs and not row.without]
    assert {row.what for row in ROWS.values()} - {row.what for row in kept} == {
        ROWS[name].what for name in ("cutouts_0", "cutouts_70", "one_body", "no_photos")
    }
    for row in kept:
        parse_arguments([*BASE, *options_of(row, [])])


def test_a_row_goes_without_an_option_and_its_value():
    without = options_of(ROWS["one_body"], COMMON)
    assert without == COMMON[2:]


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


def test_the_centre_of_mass_of_a_gaussian_is_its_keypoint():
    keypoints = torch.tensor([[[12.25, 20.5], [16.0, 11.0]]])
    torch.testing.assert_close(centre_of_mass(render_heatmaps(keypoints, 32, 2.0)), keypoints, atol=1e-2, rtol=0)


def test_the_table_has_the_mean_over_seeds_and_their_range():
    def figures(error: float) -> dict:
        numbers = {"mean_error_over_box": error, "pck@0.1": 0.5, "pck@0.2": 0.75}
        return {"local": {**numbers, "by_source": {"drawn": numbers, "cut-outs": numbers}}, "argmax": numbers, "mean": numbers}

    lines = table({"base-0": figures(0.1), "base-1": figures(0.2), "wider-0": figures(0.125)}).splitlines()
    assert lines[2].endswith("| 2 | 0.150 (0.100-0.200) | 0.500 | 0.150 | 0.150 |")
    assert lines[3] == f"| {ROWS['wider'].what} | 1 | 0.125 | 0.500 | 0.125 | 0.125 |"
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| the base's heatmaps read by `argmax`", "| the base's heatmaps read by `mean`"]


@pytest.mark.slow
def test_rows_are_trained_and_scored_on_the_same_scenes(tmp_path):
    tiny = "--train_samples 16 --epochs 1 --layers 8 --validation_samples 4 --test_samples 4 --hidden_sizes 4 8".split()
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ablation", "--folder", str(tmp_path)]
    command += ["--rows", "coordinates", "plain_scenes", "--seeds", "1", "--", *tiny, "--cache_dir", str(tmp_path / "cache")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    results = json.loads((tmp_path / "ablation.json").read_text())
    assert set(results) == {"coordinates-0", "plain_scenes-0"}
    assert all(0 < run["local"]["mean_error_over_box"] < 2 for run in results.values())
    assert results["coordinates-0"] != results["plain_scenes-0"]
    command = command[: command.index("--")]  # the folder keeps the options
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # reads what is done
    assert again.stdout.splitlines()[-2:] == result.stdout.splitlines()[-2:]
    other = subprocess.run([*command, "--", "--layers", "9"], cwd=ROOT, capture_output=True, text=True)
    assert other.returncode == 1 and "was begun with the options --train_samples 16" in other.stderr
