import numpy as np
import pytest

from training.confidence import (
    auroc_of_negatives,
    calibration,
    expected_calibration_error,
    fit_temperature,
    reliability,
    with_temperature,
)


def sample(temperature: float, count: int = 40000) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a network that is `temperature` times too sure in its log-odds, and which of its answers are correct."""
    random = np.random.default_rng(0)
    chance = random.uniform(0.05, 0.95, count)
    odds = np.log(chance / (1 - chance)) * temperature
    return 1 / (1 + np.exp(-odds)), random.uniform(size=count) < chance


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_an_overconfident_network_is_found(temperature):
    scores, correct = sample(temperature)
    fitted = fit_temperature(scores, correct)
    assert fitted == pytest.approx(temperature, rel=0.04)
    assert expected_calibration_error(with_temperature(scores, fitted), correct) < 0.015
    if temperature == 3.0:
        assert expected_calibration_error(scores, correct) > 0.1


def test_the_calibration_error_is_worked_out_by_hand():
    scores = np.array([0.9, 0.9, 0.9, 0.9, 0.2, 0.2])
    correct = np.array([True, True, True, False, False, False])
    # Two bins: |0.9 - 0.75| of 4 scores and |0.2 - 0| of 2.
    assert expected_calibration_error(scores, correct) == pytest.approx((4 * 0.15 + 2 * 0.2) / 6)
    assert [row["count"] for row in reliability(scores, correct)] == [2, 4]
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0.0


def test_without_anything_to_fit_scores_do_not_change():
    assert fit_temperature(np.array([0.3, 0.8]), np.array([True, True])) == 1.0
    assert fit_temperature(np.array([]), np.array([], bool)) == 1.0
    assert fit_temperature(np.zeros(3), np.array([True, False, False])) == 1.0


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
    assert result["test"]["expected_calibration_error"] < 0.02 < result["test"]["without_temperature"]


def test_a_negative_is_separated_by_its_mean_score():
    hands = {"scores": np.array([[0.9, 0.7], [0.25, 0.25]])}  # means 0.8 and 0.25
    others = {"no hand": {"scores": np.array([[0.125, 0.125], [0.25, 0.25]])}}
    # Of the four pairs three are won, and one is a tie: (3 + 0.5) / 4.
    assert auroc_of_negatives(hands, others, 1.0) == {"no hand": pytest.approx(3.5 / 4)}
    hands, others = {"scores": np.array([[0.999, 0.2]])}, {"no hand": {"scores": np.array([[0.58, 0.58]])}}
    assert auroc_of_negatives(hands, others, 1.0) == {"no hand": 1.0}
    assert auroc_of_negatives(hands, others, 0.2) == {"no hand": 0.0}  # a score is what the processor makes of it
