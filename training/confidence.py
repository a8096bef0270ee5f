"""The temperature that makes a score a probability, and how well scores and a hand classifier separate hands from none.

A keypoint is correct when it lies within 0.1 of the longer side of the hand's box.  The temperature is fitted on the
validation split, whose hands the network was not trained on, and goes into `preprocessor_config.json`.
"""

import math

import numpy as np
import torch

from metrics.hand_keypoints.hand_keypoints import area_under_roc
from modeling_handunet.heatmaps import calibrate_scores
from modeling_handunet.image_processing_handunet import MAX_TEMPERATURE, MIN_TEMPERATURE
from modeling_handunet.losses import LEFT, NO_HAND, RIGHT

CORRECT_WITHIN = 0.1  # of the box's longer side
BINS = 15
TINY = 1e-6


def scores_and_correctness(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (K,) of the visible keypoints in [`training.evaluation.predict`]'s arrays, and whether each is correct (K,)."""
    visible = arrays["visibility"]
    errors = np.linalg.norm(arrays["predictions"] - arrays["keypoints"], axis=2) / arrays["box_size"][:, None]
    return arrays["scores"][visible].astype(np.float64), errors[visible] <= CORRECT_WITHIN


def with_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Scores as the image processor gives them."""
    return calibrate_scores(torch.from_numpy(scores), temperature).double().numpy()


def fit_temperature(scores: np.ndarray, correct: np.ndarray) -> float:
    """The temperature with the highest likelihood of `correct` (K,), by ternary search.

    The likelihood has one maximum over the inverse of the temperature.  Scores of 0 say nothing about it.  Without any
    correct or any wrong keypoint there is nothing to fit, and 1 is returned.
    """
    scores, correct = scores[scores > 0], correct[scores > 0]
    if not len(correct) or correct.all() or not correct.any():
        return 1.0
    clipped = scores.clip(TINY, 1 - TINY)
    odds = np.log(clipped / (1 - clipped)) * np.where(correct, 1.0, -1.0)

    def cost(inverse: float) -> float:
        return float(np.logaddexp(0.0, -odds * inverse).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(100):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if cost(a) < cost(b) else (a, high)
    return 2 / (low + high)


def reliability(scores: np.ndarray, correct: np.ndarray) -> list[dict]:
    """Per bin of equal width that has scores: their `count`, mean `score` and the `share` that is correct."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    rows = []
    for number in sorted(set(bins.tolist())):
        here = bins == number
        rows.append({"count": int(here.sum()), "score": float(scores[here].mean()), "share": float(correct[here].mean())})
    return rows


def expected_calibration_error(scores: np.ndarray, correct: np.ndarray) -> float:
    """Mean distance between score and share of correct keypoints over 15 bins (Guo et al., ICML 2017)."""
    rows = reliability(scores, correct)
    return math.fsum(row["count"] * abs(row["score"] - row["share"]) for row in rows) / len(scores)


def calibration(validation: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> dict:
    """The fitted `temperature`, the calibration error without and with it, and the reliability on both splits."""
    scores, correct = scores_and_correctness(validation)
    temperature = fit_temperature(scores, correct)
    result = {"temperature": temperature, "correct_within": CORRECT_WITHIN}
    for name, arrays in (("validation", validation), ("test", test)):
        scores, correct = scores_and_correctness(arrays)
        calibrated = with_temperature(scores, temperature)
        result[name] = {
            "expected_calibration_error": expected_calibration_error(calibrated, correct),
            "without_temperature": expected_calibration_error(scores, correct),
            "reliability": reliability(calibrated, correct),
        }
    return result


def auroc_of_negatives(
    hands: dict[str, np.ndarray], negatives: dict[str, dict[str, np.ndarray]], temperature: float
) -> dict[str, float]:
    """How well the mean score separates hands from each kind of image without a hand (area under the ROC curve).

    Scores are as the image processor gives them, with the `temperature`: a hand's is the mean over its keypoints.
    """
    scores = with_temperature(hands["scores"], temperature).mean(1)
    result = {}
    for name, arrays in negatives.items():
        others = with_temperature(arrays["scores"], temperature).mean(1)
        is_hand = np.repeat([True, False], [len(scores), len(others)])
        result[name] = area_under_roc(np.concatenate([scores, others]), is_hand)
    return result


def hand_figures(chances: np.ndarray, hand_classes: np.ndarray) -> dict:
    """How well a hand classifier tells hands from what is none (`auroc`) and right from left (`side_accuracy`, a share).

    Of its `chances` (N, 3) for crops of `hand_classes` (N,), as `modeling_handunet.losses.hand_loss` has them.  A figure that
    these crops do not give is left out.
    """
    chances, is_hand = chances.astype(np.float64), hand_classes != NO_HAND
    sided = (hand_classes == RIGHT) | (hand_classes == LEFT)
    figures = {"crops": len(chances)}
    if is_hand.any() and not is_hand.all():
        figures["auroc"] = area_under_roc(1 - chances[:, NO_HAND], is_hand)
    if sided.any():
        figures["side_accuracy"] = float((chances[sided][:, [RIGHT, LEFT]].argmax(1) == hand_classes[sided]).mean())
    return figures
