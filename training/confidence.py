"""What makes a score a probability, and how well scores and a hand classifier separate hands from none.

A keypoint is correct when it lies within 0.1 of the longer side of the hand's box.  Temperature and offset are
fitted on the validation split, whose hands the network was not trained on, and go into `preprocessor_config.json`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from metrics.hand_keypoints.hand_keypoints import area_under_roc
from modeling_handunet.heatmaps import calibrate_scores
from modeling_handunet.image_processing_handunet import MAX_OFFSET, MAX_TEMPERATURE, MIN_TEMPERATURE
from modeling_handunet.losses import LEFT, NO_HAND, RIGHT

CORRECT_WITHIN = 0.1  # of the box's longer side
BINS = 15
TINY = 1e-6
Arrays = dict[str, np.ndarray]


def scores_and_correctness(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Scores (K,) of the visible keypoints in [`training.evaluation.predict`]'s arrays, and whether each is correct (K,)."""
    visible = arrays["visibility"]
    errors = np.linalg.norm(arrays["predictions"] - arrays["keypoints"], axis=2) / arrays["box_size"][:, None]
    return arrays["scores"][visible].astype(np.float64), errors[visible] <= CORRECT_WITHIN


def calibrated(scores: np.ndarray, temperature: float, offset: float) -> np.ndarray:
    """Scores as the image processor gives them."""
    return calibrate_scores(torch.from_numpy(scores), temperature, offset).double().numpy()


def fit_calibration(scores: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """The temperature and the offset with the highest likelihood of `correct` (K,), where each score counts `weights` (K,).

    That is Platt's scaling of the scores' log-odds, whose targets lie a little inside of 0 and 1.  Scores of 0 say nothing
    about it.  Without any correct or any wrong keypoint there is nothing to fit, and (1, 0) is returned.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    scores, correct, weights = (torch.from_numpy(values[scores > 0]) for values in (scores, correct, weights))
    if not correct.any() or correct.all():
        return 1.0, 0.0
    odds, weights = torch.logit(scores.double(), eps=TINY), weights / weights.sum()
    right, wrong = int(correct.sum()), int((~correct).sum())
    targets = torch.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2)).double()
    fit = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # logarithm of the slope, offset
    optimizer = torch.optim.LBFGS([fit], max_iter=200, line_search_fn="strong_wolfe")

    def cost() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(odds * fit[0].exp() + fit[1], targets, weights, reduction="sum")
        loss.backward()
        return loss

    optimizer.step(cost)
    temperature, offset = (-fit[0]).exp(), fit[1]
    return temperature.clamp(MIN_TEMPERATURE, MAX_TEMPERATURE).item(), offset.clamp(-MAX_OFFSET, MAX_OFFSET).item()


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


def calibration(validation: Arrays, test: Arrays, groups: Sequence[str] | None = None) -> dict:
    """The fitted `temperature` and `offset`, the calibration error without and with them, and the reliability on both splits.

    With the `groups` of the validation samples, by their index, each group counts the same in the fit: one large source does
    not say what a score means for all others.
    """
    scores, correct = scores_and_correctness(validation)
    weights = None
    if groups:
        _, group, counts = np.unique(np.asarray(groups)[validation["index"]], return_inverse=True, return_counts=True)
        weights = np.broadcast_to((1 / counts[group])[:, None], validation["visibility"].shape)[validation["visibility"]]
    temperature, offset = fit_calibration(scores, correct, weights)
    result = {"temperature": temperature, "offset": offset, "correct_within": CORRECT_WITHIN}
    for name, arrays in (("validation", validation), ("test", test)):
        scores, correct = scores_and_correctness(arrays)
        fitted = calibrated(scores, temperature, offset)
        result[name] = {
            "expected_calibration_error": expected_calibration_error(fitted, correct),
            "uncalibrated": expected_calibration_error(scores, correct),
            "reliability": reliability(fitted, correct),
        }
    return result


def auroc_of_negatives(hands: Arrays, negatives: dict[str, Arrays], temperature: float, offset: float) -> dict[str, float]:
    """How well the mean score separates hands from each kind of image without a hand (area under the ROC curve).

    Scores are as the image processor gives them, with `temperature` and `offset`: a hand's is the mean over its keypoints.
    """
    scores = calibrated(hands["scores"], temperature, offset).mean(1)
    result = {}
    for name, arrays in negatives.items():
        others = calibrated(arrays["scores"], temperature, offset).mean(1)
        is_hand = np.repeat([True, False], [len(scores), len(others)])
        result[name] = area_under_roc(np.concatenate([scores, others]), is_hand)
    return result


def hand_figures(chances: np.ndarray, hand_classes: np.ndarray) -> dict:
    """How well a hand classifier separates hands from other crops (`auroc`) and right from left (`side_accuracy`, a share).

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
