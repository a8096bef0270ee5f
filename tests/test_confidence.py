import numpy as np
import pytest

from training.confidence import (
    auroc_of_negatives,
    calibrated,
    calibration,
    expected_calibration_error,
    fit_calibration,
    reliability,
)


def sample(temperature: float, offset: float = 0.0, count: int = 40000) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose log-odds, divided by `temperature` and raised by `offset`, are those of the answers that are correct."""
    random = np.random.default_rng(0)
    chance = random.uniform(0.05, 0.95, count)
    odds = (np.log(chance / (1 - chance)) - offset) * temperature
    return 1 / (1 + np.exp(-odds)), random.uniform(size=count) < chance


@pytest.mark.parametrize("temperature, offset", [(0.5, 0.0), (1.0, 1.0), (3.0, 0.0), (0.7, -1.5)])
def test_what_makes_scores_probabilities_is_found(temperature, offset):
    scores, correct = sample(temperature, offset)
    fitted = fit_calibration(scores, correct)
    assert fitted == pytest.approx((temperature, offset), rel=0.04, abs=0.04)
    assert expected_calibration_error(calibrated(scores, *fitted), correct) < 0.015
    if (temperature, offset) != (1.0, 0.0):
        assert expected_calibration_error(scores, correct) > 0.05


def test_each_group_of_the_validation_split_counts_the_same():
    """One source of 900 hands whose low scores are right, and one of 100 whose low scores are wrong."""
    random = np.random.default_rng(1)
    scores, is_small = np.full((1000, 21), 0.4), np.arange(1000) >= 900
    correct = random.uniform(size=(1000, 21)) < np.where(is_small, 0.3, 0.9)[:, None]
    scores[::2] = 0.6
    order = random.permutation(1000)
    arrays = {
        "predictions": np.stack([np.where(correct, 0.0, 100.0)] * 2, -1)[order], "keypoints": np.zeros((1000, 21, 2)),
        "box_size": np.full(1000, 10.0), "scores": scores[order], "visibility": np.ones((1000, 21), bool), "index": order,
    }  # fmt: skip
    shares = {}
    for groups in (None, np.where(is_small, "small", "large").tolist()):
        fit = calibration(arrays, arrays, groups)
        shares[groups is None] = calibrated(np.array([0.4, 0.6]), fit["temperature"], fit["offset"]).mean()
    assert shares[True] == pytest.approx(0.84, abs=0.01)  # of 0.9 and 0.3, nine to one
    assert shares[False] == pytest.approx(0.6, abs=0.01)


def test_the_calibration_error_is_worked_out_by_hand():
    scores = np.array([0.9, 0.9, 0.9, 0.9, 0.2, 0.2])
    correct = np.array([True, True, True, False, False, False])
    # Two bins: |0.9 - 0.75| of 4 scores and |0.2 - 0| of 2.
    assert expected_calibration_error(scores, correct) == pytest.approx((4 * 0.15 + 2 * 0.2) / 6)
    assert [row["count"] for row in reliability(scores, correct)] == [2, 4]
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0.0


def test_without_anything_to_fit_scores_do_not_change():
    assert fit_calibration(np.array([0.3, 0.8]), np.array([True, True])) == (1.0, 0.0)
    assert fit_calibration(np.array([]), np.array([], bool)) == (1.0, 0.0)
    assert fit_calibration(np.zeros(3), np.array([True, False, False])) == (1.0, 0.0)


def test_only_visible_keypoints_are_judged_and_each_against_its_own_box():
    keypoints = np.zeros((2, 21, 2))
    predictions = keypoints.copy()
    predictions[0, :, 0], predictions[1, :, 0] = 5.0, 5.0  # 0.05 of the first box, 0.5 of the second
    arrays = {
        "predictions": predictions, "keypoints": keypoints, "box_size": np.array([100.0, 10.0]),
        "scores": np.stack([np.full(21, 0.9), np.full(21, 0.1)]), "visibility": np.ones((2, 21), bool),
    }  # fmt: skip
    arrays["visibility"][:, 5:] = False
    result = calibration(arrays, arrays)
    rows = result["test"]["reliability"]
    assert [(row["count"], row["share"]) for row in rows] == [(5, 0.0), (5, 1.0)]
    # 1 of 7 are held to be wrong, where 0 of 5 are.
    assert result["test"]["expected_calibration_error"] == pytest.approx(1 / 7, abs=1e-3)


def test_a_negative_is_separated_by_its_mean_score():
    hands = {"scores": np.array([[0.9, 0.7], [0.25, 0.25]])}  # means 0.8 and 0.25
    others = {"no hand": {"scores": np.array([[0.125, 0.125], [0.25, 0.25]])}}
    # Of the four pairs three are won, and one is a tie: (3 + 0.5) / 4.
    assert auroc_of_negatives(hands, others, 1.0, 0.0) == {"no hand": pytest.approx(3.5 / 4)}
    hands, others = {"scores": np.array([[0.999, 0.2]])}, {"no hand": {"scores": np.array([[0.58, 0.58]])}}
    assert auroc_of_negatives(hands, others, 1.0, 0.0) == {"no hand": 1.0}
    assert auroc_of_negatives(hands, others, 0.2, 0.0) == {"no hand": 0.0}  # a score is what the processor makes of it
