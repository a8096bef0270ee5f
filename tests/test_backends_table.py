"""The table of backends: how an answer is judged, by hand, and what is committed; no test here looks at a clock."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.backends import error_over_box, share_found, table
from modeling_handunet.crops import Crop

ROOT = Path(__file__).resolve().parents[1]


def test_an_error_is_over_the_box_and_of_marked_keypoints_only():
    keypoints = [[10, 10, 2], [20, 10, 1], [0, 0, 0]]
    hand = {"keypoints": np.ravel(keypoints).tolist(), "bbox": [0, 0, 20, 40]}
    crop = Crop((0.0, 0.0, 200.0), 100)  # two pixels of the photograph each
    answer = {"keypoints": np.array([[[5, 5], [10, 9], [70, 70]]], np.float32)}  # (10, 10), (20, 18), any
    assert error_over_box(crop, hand, answer) == pytest.approx((0 + 8) / 2 / 40)


def test_a_hand_is_found_by_a_sure_box_that_overlaps_it_by_half():
    crop = Crop.of_image(200, 100, 50)  # the square begins 50 px above the photograph
    boxes = np.array([[[0.0, 0.25, 0.5, 0.75], [0.5, 0.25, 0.75, 0.75], [0.5, 0.25, 1.0, 0.75]]], np.float32)
    truths = [[0, 0, 100, 100], [100, 0, 100, 100]]
    scores = np.array([[0.9, 0.8, 0.1]], np.float32)
    assert share_found(crop, truths, {"boxes": boxes, "scores": scores}) == 1.0  # the second covers exactly half
    assert share_found(crop, truths, {"boxes": boxes[:, :1], "scores": scores[:, :1]}) == 0.5
    assert share_found(crop, truths, {"boxes": boxes[:, 1:], "scores": np.array([[0.1, 0.9]])}) == 0.5
    assert share_found(crop, truths, {"boxes": boxes[:, :0], "scores": scores[:, :0]}) == 0.0


def test_the_committed_table_of_backends_is_the_committed_figures():
    figures = ROOT / "docs" / "backends.json"
    if not figures.exists():
        pytest.skip("the table of backends was not measured yet: python -m benchmarks.backends")
    results = json.loads(figures.read_text())
    assert table(results) in (ROOT / "docs" / "backends.md").read_text()
