"""What a score is worth: the temperature that makes it a chance, and how well it tells hands from what is none.

A keypoint is right when it lies within 0.1 of the longer side of the hand's box.  The temperature is fitted on the
validation split, whose hands the network was not trained on, and goes into `preprocessor_config.json`.
"""

import math

import numpy as np
import torch

from modeling_handunet.heatmaps import calibrate_scores
from modeling_handunet.image_processing_handunet import MAX_TEMPERATURE, MIN_TEMPERATURE

RIGHT = 0.1  # of the box's longer side
BINS = 15
TINY = 1e-6


def scores_and_rightness(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (K,) of the visible keypoints in [`training.evaluation.predict`]'s arrays, and whether each is right (K,)."""
    visible = arrays["visibility"]
    errors = np.linalg.norm(arrays["predictions"] - arrays["keypoints"], axis=2) / arrays["box_size"][:, None]
    return arrays["scores"][visible].astype(np.float64), errors[visible] <= RIGHT


def with_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Scores as the image processor gives them."""
    return calibrate_scores(torch.from_numpy(scores), temperature).double().numpy()


def fit_temperature(scores: np.ndarray, right: np.ndarray) -> float:
    """The temperature with the highest likelihood of `right` (K,), by ternary search.

    The likelihood has one maximum over the inverse of the temperature.  Scores of 0 say nothing about it.  Without any
    right or any wrong keypoint there is nothing to fit, and 1 is returned.
    """
    scores, right = scores[scores > 0], right[scores > 0]
    if not len(right) or right.all() or not right.any():
        return 1.0
    clipped = scores.clip(TINY, 1 - TINY)
    odds = np.log(clipped / (1 - clipped)) * np.where(right, 1.0, -1.0)

    def cost(inverse: float) -> float:
        return float(np.logaddexp(0.0, -odds * inverse).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(100):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if cost(a) < cost(b) else (a, high)
    return 2 / (low + high)


def reliability(scores: np.ndarray, right: np.ndarray) -> list[dict]:
    """Per bin of equal width that has scores: their `count`, mean `score` and the `share` that is right."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    rows = []
    for number in sorted(set(bins.tolist())):
        here = bins == number
        rows.append({"count": int(here.sum()), "score": float(scores[here].mean()), "share": float(right[here].mean())})
    return rows


def expected_calibration_error(scores: np.ndarray, right: np.ndarray) -> float:
    """Mean distance between score and share of right keypoints over 15 bins (Guo et al., ICML 2017)."""
    rows = reliability(scores, right)
    return math.fsum(row["count"] * abs(row["score"] - row["share"]) for row in rows) / len(scores)


def calibration(validation: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> dict:
    """The fitted `temperature`, the calibration error without and with it, and the reliability on both splits."""
    scores, right = scores_and_rightness(validation)
    temperature = fit_temperature(scores, right)
    result = {"temperature": temperature, "correct_within": RIGHT}
    for name, arrays in (("validation", validation), ("test", test)):
        scores, right = scores_and_rightness(arrays)
        warm = with_temperature(scores, temperature)
        result[name] = {
            "expected_calibration_error": expected_calibration_error(warm, right),
            "without_temperature": expected_calibration_error(scores, right),
            "reliability": reliability(warm, right),
        }
    return result


def chance_of_higher(scores: np.ndarray, others: np.ndarray) -> float:
    """The chance that one of `scores` is higher than one of `others`, ties counted half: the ROC curve's area."""
    higher, equal = scores[:, None] > others[None], scores[:, None] == others[None]
    return float(higher.mean() + 0.5 * equal.mean())


def told_from_negatives(
    hands: dict[str, np.ndarray], negatives: dict[str, dict[str, np.ndarray]], temperature: float
) -> dict[str, float]:
    """For each kind of negative the chance that a right hand's mean score is higher than such an image's.

    Scores are as the image processor gives them, with the `temperature`: their mean over the keypoints is a hand's.
    """
    scores = with_temperature(hands["scores"], temperature).mean(1)
    return {
        name: chance_of_higher(scores, with_temperature(arrays["scores"], temperature).mean(1))
        for name, arrays in negatives.items()
    }
