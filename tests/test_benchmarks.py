"""What the benchmarks compare is the same thing, and the table says what was measured; no test here looks at a clock."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gpu, photographs, step_profile, ways
from benchmarks.__main__ import curve, draw
from benchmarks.measure import MEDIAPIPE, PROGRAMS, rows, summary, table, verdict
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, decode_heatmaps, render_heatmaps

ROOT = Path(__file__).resolve().parents[1]


def test_the_plain_network_computes_what_ours_does(tmp_path):
    model = HandUNetForPoseEstimation(HandUNetConfig()).eval()
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(ways.plain_network(tmp_path)(images), model(images).heatmaps, atol=1e-5, rtol=0)


def test_the_plain_targets_and_decoding_are_ours():
    pytest.importorskip("cv2", reason="opencv is not installed: pip install -e '.[benchmarks]'")
    keypoints = 26 + 76 * torch.rand(21, 2)
    targets = render_heatmaps(keypoints, 128, 3.0, quantize=True)
    np.testing.assert_allclose(ways.blur_targets(keypoints.numpy()), targets, atol=1e-3)
    heatmaps = torch.rand(2, 21, 128, 128)
    torch.testing.assert_close(ways.mean_position(heatmaps), decode_heatmaps(heatmaps, "mean")[0])


@pytest.mark.parametrize("how", ["float32", "reference"])
def test_a_training_step_lowers_the_loss_of_its_batch(how):
    train = ways.trainer(how, whole=how == "float32")
    images, targets = torch.randn(2, 3, 128, 128), render_heatmaps(torch.full((2, 21, 2), 64.0), 128, 3.0)
    losses = [train(images, targets) for _ in range(4)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("bf16", [False, True])
def test_every_row_names_ways_that_exist_and_our_own_precision_first(bf16):
    for row in rows(bf16):
        for way in filter(None, (row.ours, row.against, *row.beside)):
            name, _, rest = way.partition(":")
            assert way == MEDIAPIPE or (rest in PROGRAMS if name == "start" else callable(getattr(ways, name)))
    assert next(row.ours for row in rows(bf16) if row.name == "epoch") == ("epoch:bf16" if bf16 else "epoch:float32")


def test_a_figure_is_the_median_between_quartiles_over_all_turns():
    turns = [{"times": [4.0, 1.0], "peak_mb": 5.0, "own_mb": 2.0}, {"times": [2.0, 3.0, 5.0], "peak_mb": 4.0, "own_mb": 3.0}]
    assert summary(turns) == {"times": [2.0, 3.0, 4.0], "peak_mb": 5.0, "own_mb": 3.0}
    assert summary([{"times": [7.0], "peak_mb": 1.0, "own_mb": 1.0}])["times"] == [7.0, 7.0, 7.0]


def test_a_row_is_reached_missed_or_not_measured():
    row = next(row for row in rows(True) if row.name == "heatmaps")  # at least 50 x
    ours = {"times": [1.0, 2.0, 3.0], "peak_mb": 9}
    missed, reached = (
        verdict(row, {"heatmaps:ours": ours, "heatmaps:reference": {"times": [90.0, time, 110.0], "peak_mb": 9}}, "wall")
        for time in (99.0, 100.0)
    )
    assert (missed["verdict"], missed["lines"][0]["value"]) == ("missed", 49.5)
    assert (reached["verdict"], reached["lines"][0]["value"]) == ("reached", 50)
    unmeasured = verdict(row, {"heatmaps:ours": ours, "heatmaps:reference": {"failed": "no OpenCV"}}, "wall")
    for result, expected in (
        (missed, "| 49.5 x | 50 x | missed |"),
        (reached, "| 50 x | 50 x | reached |"),
        (unmeasured, "|  |  |  | 50 x | not measured here: no OpenCV |"),
        (None, "|  |  |  | 50 x | not measured here |"),
    ):
        text = table({"rows": {"heatmaps": result} if result else {}, "gpu": {}})
        assert f"{expected} `python -m benchmarks --rows heatmaps` |" in text


def test_memory_is_compared_in_megabytes_and_without_its_time():
    row = next(row for row in rows(True) if row.name == "memory_train")  # at most 3000 MB
    for memory, expected in ((3000.0, "reached"), (3000.1, "missed")):
        result = verdict(row, {"epoch:bf16": {"times": [1.0, 1.0, 1.0], "peak_mb": memory}}, "wall")
        assert result["verdict"] == expected
    assert "| `epoch:bf16` |  | 3000 MB | 3000 MB | missed |" in table({"rows": {"memory_train": result}, "gpu": {}})


def test_rows_that_were_measured_elsewhere_or_nowhere_stay_in_the_table():
    text = table({"rows": {}, "gpu": {"rows": [{"what": "inference", "figure": "70 images/s", "verdict": "missed"}]}})
    gpu = "`python -m benchmarks --gpu`"
    assert f"| one GPU, inference |  |  | 70 images/s | 80,000 images/s | missed | {gpu} |" in text
    assert f"|  |  |  | 20,000 images/s | not measured here: needs a GPU | {gpu} |" in text
    assert "| one GPU, from drawn hand to step |  |  |  | 8,000 images/s | not measured here: needs a GPU |" in text
    assert "|  |  |  | 1.5 x | not measured here: `python -m benchmarks.tracking`, then `--tracking` |" in text
    text = table({"rows": {}, "gpu": {}, "tracking": {"ours": 30.0, "MediaPipe": 20.0}})
    assert "| 30 frames/s | 20 frames/s | 1.5 x | 1.5 x | reached |" in text


def test_the_bandwidth_s_limit_counts_every_layer_of_a_small_network():
    """Levels of 2 and 4 channels on 8 x 8 and 4 x 4 pixels, 3 channels of input, 21 keypoints."""
    config = HandUNetConfig(hidden_sizes=(2, 4), image_size=8)
    down = 64 * (3 + 3 + 3 + 2 + 2 + 2 + 2 + 2) + 16 * (2 + 2 + 2 + 4 + 4 + 4 + 4 + 4)
    resized = 2 * (64 + 16) + 4 * (16 + 64) + 64 * (6 + 6)  # pooled, enlarged, joined with the skip
    up = 64 * (6 + 6 + 6 + 2 + 2 + 2 + 2 + 2)
    head = 64 * (2 + 21 + 21 + 21)
    assert gpu.activation_bytes(config, training=False) == 2 * (down + resized + up + head)
    assert gpu.activation_bytes(config, training=True) == 6 * (down + resized + up + head)


def test_the_committed_table_is_the_committed_figures():
    results = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    assert table(results) in (ROOT / "docs" / "benchmarks.md").read_text()
    assert results["rows"].keys() <= {row.name for row in rows(True)}


def test_a_curve_has_a_point_for_each_size_of_each_way(tmp_path):
    def measure(names):
        return {name: {"times": [0.0, 1 / int(name.split(":")[2]), 9.0], "own_mb": 7.0} for name in names}

    batch = curve("batch", measure, tmp_path, 1)
    assert batch["bf16"] == batch["reference"] == [[1, 1], [4, 0.25], [16, 0.0625], [64, 0.015625]]
    dataset = curve("dataset", measure, tmp_path, 1)  # seconds a sample times samples
    assert dataset == {"seconds": [[n, 1] for n in (8000, 32560, 130240)], "mb": [[n, 7] for n in (8000, 32560, 130240)]}
    draw(batch, "batch", tmp_path / "batch.png")
    draw(dataset, "dataset", tmp_path / "dataset.png")


@pytest.mark.slow
def test_the_command_measures_a_row_and_leaves_the_others(tmp_path):
    pytest.importorskip("cv2", reason="opencv is not installed: pip install -e '.[benchmarks]'")
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--folder", tmp_path, "--output", output, "--threads", "1"]
    command += ["--seconds", "0.01", "--turns", "2", "--rows"]
    for name in ("decoding", "heatmaps"):
        result = subprocess.run([*command, name], cwd=ROOT, capture_output=True, text=True, timeout=500)
        assert result.returncode == 0, result.stderr
    figures = json.loads(output.read_text())
    assert list(figures["rows"]) == ["heatmaps", "decoding"]
    (line,) = figures["rows"]["heatmaps"]["lines"]  # no test says how large the ratio of the times is
    assert line["value"] > 0 and line["value"] == pytest.approx(line["its_times"][1] / line["times"][1], rel=0.01)
    assert figures["rows"]["heatmaps"]["machine"]["threads"] == 1
    unknown = subprocess.run([*command, "hands"], cwd=ROOT, capture_output=True, text=True)
    assert unknown.returncode == 2 and "there is no row hands: choose from heatmaps, first_samples" in unknown.stderr


def test_a_profile_has_the_time_of_the_networks_parts():
    spent = step_profile.measure("cpu", 1, compiled=False)
    assert list(spent.values()) == sorted(spent.values(), reverse=True)
    assert {"convolutions", "normalisation", "optimizer"} <= {kind for kind, time in spent.items() if time > 0}


def test_the_keypoints_that_are_found_are_those_of_the_nearest_answer(tmp_path):
    """A hand of 100 px of which 3 keypoints are not labelled: at most 10 px off is found."""
    truth = np.c_[np.linspace(0, 100, 21), np.zeros(21), np.full(21, 2)]
    truth[18:, 2] = 0
    size = truth[17, 0]  # of the labelled ones
    far, near = truth[:, :2] + 500, truth[:, :2].copy()
    near[0, 1], near[1, 1] = 0.101 * size, 0.099 * size
    assert photographs.found_keypoints(truth, [far, near]) == 17
    assert photographs.found_keypoints(truth, [far]) == photographs.found_keypoints(truth, []) == 0
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "images" / "a.png")
    images = [{"id": 1, "file_name": "a.png", "split": "test"}, {"id": 2, "file_name": "b.png", "split": "train"}]
    keypoints = truth.flatten().tolist()
    annotations = [{"image_id": 1, "keypoints": keypoints}, {"image_id": 1}, {"image_id": 2, "keypoints": keypoints}]
    annotations += [{"image_id": 1, "keypoints": keypoints, "ignore": True}]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    hands = photographs.labelled(tmp_path, "test")
    assert {name: len(own) for name, own in hands.items()} == {"a.png": 1}
    assert photographs.score(tmp_path, hands, lambda photo: [near])["share"] == pytest.approx(17 / 18)
