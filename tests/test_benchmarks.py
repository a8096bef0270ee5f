"""What the benchmarks compare is the same thing, and the table says what was measured; no test here looks at a clock."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import ours, reference, report
from benchmarks.measure import quartiles
from benchmarks.rows import groups, rows, verdict
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, IoULoss, decode_heatmaps, render_heatmaps

ROOT = Path(__file__).resolve().parents[1]


def test_the_plain_network_computes_what_ours_does(tmp_path):
    model = HandUNetForPoseEstimation(HandUNetConfig()).eval()
    model.save_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(reference.load_network(tmp_path)(images), model(images).heatmaps, atol=1e-5, rtol=0)


def test_the_plain_targets_loss_and_decoding_are_ours():
    pytest.importorskip("cv2", reason="opencv is not installed: pip install -e '.[benchmarks]'")
    keypoints = 26 + 76 * torch.rand(21, 2)
    targets = render_heatmaps(keypoints, 128, 3.0, quantize=True)
    np.testing.assert_allclose(reference.blur_targets(keypoints.numpy()), targets, atol=1e-3)
    heatmaps = torch.rand(2, 21, 128, 128)
    pair = targets.expand(2, -1, -1, -1)
    torch.testing.assert_close(reference.iou_loss(heatmaps, pair), IoULoss()(heatmaps, pair))
    torch.testing.assert_close(reference.mean_position(heatmaps), decode_heatmaps(heatmaps, "mean")[0])


@pytest.mark.parametrize("bf16", [False, True])
def test_every_row_names_ways_of_its_group_that_exist(bf16):
    for row in rows(bf16):
        ways = groups(bf16)[row.group].ways
        assert {row.ours, *row.beside} <= set(ways) and row.against in (None, *ways)
        for way in ways:
            module, _, function = way.partition(".")
            assert way == "mediapipe" or hasattr({"ours": ours, "reference": reference}[module], function.split(":")[0])


def test_a_figure_is_a_median_between_its_quartiles():
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == [2.0, 3.0, 4.0]
    assert quartiles([7.0]) == [7.0, 7.0, 7.0]


def test_a_row_is_reached_missed_or_not_measured():
    row = next(row for row in rows(True) if row.name == "heatmaps")  # at least 50 x
    figures = {
        "ours.heatmaps": {"wall": [1.0, 2.0, 3.0], "processor": [1.0, 1.0, 1.0], "peak_mb": 9},
        "reference.heatmaps": {"wall": [90.0, 99.0, 110.0], "processor": [50.0, 50.0, 50.0], "peak_mb": 9},
    }
    missed, reached = (verdict(row, figures, clock) for clock in ("wall", "processor"))
    assert (missed["verdict"], missed["lines"][0]["value"]) == ("missed", 49.5)
    assert (reached["verdict"], reached["lines"][0]["value"]) == ("reached", 50)
    unmeasured = verdict(row, {**figures, "reference.heatmaps": {"failed": "no OpenCV"}}, "wall")
    assert unmeasured["verdict"] == "not measured: no OpenCV" and not unmeasured["lines"]
    table = report.table({"rows": {"a": missed, "b": reached, "c": unmeasured}})
    assert "| 49.5 x | 50 x | missed |" in table and "| 50 x | 50 x | reached |" in table and "not measured" in table


def test_the_committed_table_is_the_committed_figures():
    results = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    assert report.table(results) in (ROOT / "docs" / "benchmarks.md").read_text()
    assert results["rows"].keys() == {row.name for row in rows(True)}


@pytest.mark.slow
def test_the_command_measures_a_row_and_leaves_the_others(tmp_path):
    pytest.importorskip("cv2", reason="opencv is not installed: pip install -e '.[benchmarks]'")
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--folder", tmp_path, "--output", output, "--threads", "1"]
    command += ["--seconds", "0", "--turns", "2", "--rows"]
    for name in ("decoding", "heatmaps"):
        result = subprocess.run([*command, name], cwd=ROOT, capture_output=True, text=True, timeout=500)
        assert result.returncode == 0, result.stderr
    figures = json.loads(output.read_text())
    assert list(figures["rows"]) == ["heatmaps", "decoding"]
    assert figures["rows"]["heatmaps"]["machine"]["threads"] == 1


def test_rows_of_a_gpu_that_were_not_measured_stay_in_the_table():
    text = report.table({"rows": {}, "gpu": {}})
    assert "| one GPU, inference | | | | 80,000 images/s | not measured: `--gpu` |" in text
    assert "one GPU" not in report.table({"rows": {}, "gpu": {"rows": []}})
    rows = [{"what": "inference", "figure": "5 images/s", "target": "80,000 images/s", "verdict": "missed"}, {"what": "copying", "figure": "3 GB/s"}]
    text = report.table({"rows": {}, "gpu": {"rows": rows}})
    assert "| one GPU, inference | | | 5 images/s | 80,000 images/s | missed |" in text and "| one GPU, copying | | | 3 GB/s |  |  |" in text
