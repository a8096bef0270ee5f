import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[1]
METRIC = CHECKOUT / "metrics" / "hand_keypoints"


@pytest.fixture
def metric(tmp_path):
    import evaluate

    return evaluate.load(str(METRIC), cache_dir=str(tmp_path), keep_in_memory=True)


def sample(offsets: dict[int, tuple[float, float]], *, box_size: float = 64.0, scores=None, **more):
    """A prediction (21, 2) and its reference, in which the keypoints of `offsets` alone are visible and off by them."""
    truth = np.stack([np.arange(21) + 40.0, 90.0 - np.arange(21)], axis=1)
    prediction, visibility = truth.copy(), np.zeros(21, dtype=bool)
    for index, offset in offsets.items():
        prediction[index] += offset
        visibility[index] = True
    reference = {"keypoints": truth, "visibility": visibility, "box_size": box_size, **more}
    if scores is not None:
        reference["scores"] = scores
    return prediction, reference


def compute(metric, *samples, **options):
    predictions, references = zip(*samples)
    return metric.compute(predictions=np.stack(predictions), references=list(references), **options)


def random_samples(count: int, seed: int):
    """Samples over all of a figure's range, some with tied scores; one of them has no visible keypoint."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 128, (count, 21, 2))
    predictions = truth + rng.normal(0, 1, truth.shape) * rng.uniform(0, 12, (count, 1, 1))
    visibility = rng.random((count, 21)) < 0.7
    visibility[3] = False
    box_size = rng.uniform(30, 90, count)
    scores = np.round(rng.random((count, 21)), 1)
    names = ("keypoints", "visibility", "box_size", "scores")
    return predictions, [dict(zip(names, row)) for row in zip(truth, visibility, box_size, scores)]


def test_three_keypoints_worked_out_by_hand(metric):
    # Errors of 5, 0 and 10 px of a crop of 128, in two hands: (5 + 0 + 10) / 3 = 5 px in the mean over keypoints,
    # though the mean over hands would be (2.5 + 10) / 2 = 6.25.
    figures = compute(metric, sample({0: (3, 4), 4: (0, 0)}, box_size=100), sample({4: (-6, 8)}, box_size=50))
    assert (figures["num_hands"], figures["num_keypoints"], figures["num_hands_without_keypoints"]) == (2, 3, 0)
    assert figures["mean_error_percent"] == pytest.approx(5 / 128 * 100, abs=1e-12)
    assert figures["mean_error_px_128"] == pytest.approx(5, abs=1e-12)
    assert figures["mean_error_px_224"] == pytest.approx(8.75, abs=1e-12)
    assert figures["epe"] == pytest.approx(8.75, abs=1e-12)
    per_keypoint = figures["mean_error_percent_per_keypoint"]
    assert per_keypoint[0] == pytest.approx(5 / 1.28, abs=1e-12)
    assert per_keypoint[4] == pytest.approx(5 / 1.28, abs=1e-12)  # the mean of 0 and 10
    assert [value for i, value in enumerate(per_keypoint) if i not in (0, 4)] == [None] * 19
    # Of the box: 0.05, 0 and 0.2.
    assert figures["mean_error_over_box"] == pytest.approx(0.25 / 3, abs=1e-12)
    # An error just at the threshold is within it.
    assert figures["pck@0.05"] == pytest.approx(2 / 3, abs=1e-12)
    assert figures["pck@0.1"] == pytest.approx(2 / 3, abs=1e-12)
    assert figures["pck@0.2"] == 1.0
    # Hands' mean errors: 2.5 px = 1.953 % and 10 px = 7.8125 %.
    assert figures["success_rate@2_percent"] == 0.5
    assert figures["success_rate@5_percent"] == 0.5
    assert figures["success_rate@10_percent"] == 1.0
    curve = dict(zip(figures["success_rate_thresholds_percent"], figures["success_rate"], strict=True))
    assert (curve[0], curve[1.5], curve[2], curve[7.5], curve[8], curve[20]) == (0, 0, 0.5, 0.5, 1, 1)
    # At 224 the errors are 8.75, 0 and 17.5 px: the curve is 1/3 up to 8.5, 2/3 from 9 to 17, 1 from 17.5.  Trapezoids:
    # 8.5 * 1/3 + 0.5 * 1/2 + 8 * 2/3 + 0.5 * 5/6 + 12.5 = 21 1/3 of 30.
    assert figures["auc"] == pytest.approx((21 + 1 / 3) / 30, abs=1e-12)
    assert figures["score_auroc"] is None


def test_a_perfect_prediction_has_an_auc_of_exactly_one(metric):
    figures = compute(metric, sample(dict.fromkeys(range(21), (0, 0))))
    assert figures["auc"] == 1.0 and figures["mean_error_percent"] == 0.0 and figures["pck@0.05"] == 1.0
    assert figures["success_rate"][0] == 0.0  # nothing is below 0 %
    assert figures["success_rate"][1:] == [1.0] * 40
    far = compute(metric, sample(dict.fromkeys(range(21), (30, 0))))
    assert far["auc"] == 0.0 and far["pck@0.2"] == 0.0


def test_the_score_is_judged_by_the_errors_it_finds(metric):
    # With a box of 50 px an error is large above 5 px: keypoints 0 and 1.  Pairs of a large with a small error, by
    # score: 0.2 < 0.9, 0.2 < 0.5, 0.5 < 0.9 and a tie: 3.5 of 4.
    scores = np.full(21, 0.0)
    scores[:4] = 0.2, 0.5, 0.5, 0.9
    errors = {0: (6, 0), 1: (0, 5.5), 2: (5, 0), 3: (1, 1)}
    assert compute(metric, sample(errors, box_size=50, scores=scores))["score_auroc"] == 3.5 / 4
    assert compute(metric, sample(errors, box_size=50, scores=1 - scores))["score_auroc"] == 0.5 / 4
    assert compute(metric, sample(errors, box_size=500, scores=scores))["score_auroc"] is None  # no large error
    assert compute(metric, sample(errors, box_size=1, scores=scores))["score_auroc"] is None  # no small one


def test_an_independent_loop_gives_the_same_figures(metric):
    predictions, references = random_samples(40, seed=1)
    figures = metric.compute(predictions=predictions, references=references, image_size=256)
    errors, boxes, scores, hands = [], [], [], []
    for prediction, reference in zip(predictions, references):
        mine = []
        for i in range(21):
            if reference["visibility"][i]:
                mine.append(math.dist(prediction[i], reference["keypoints"][i]))
                boxes.append(reference["box_size"])
                scores.append(reference["scores"][i])
        errors += mine
        hands += [sum(mine) / len(mine)] if mine else []
    count = len(errors)
    assert figures["num_hands"] == len(hands) == 39 and figures["num_keypoints"] == count
    assert figures["num_hands_without_keypoints"] == 1
    assert figures["mean_error_percent"] == pytest.approx(sum(errors) / count / 2.56, abs=1e-11)
    assert figures["epe"] == pytest.approx(sum(errors) / count * 224 / 256, abs=1e-11)
    for threshold in (0.05, 0.1, 0.2):
        assert figures[f"pck@{threshold}"] == sum(e <= threshold * b for e, b in zip(errors, boxes)) / count
    for threshold in (2, 5, 10):
        assert figures[f"success_rate@{threshold}_percent"] == sum(h < threshold * 2.56 for h in hands) / len(hands)
    curve = [sum(e * 224 / 256 <= t / 2 for e in errors) / count for t in range(61)]
    area = sum(0.5 * (a + b) / 2 for a, b in zip(curve, curve[1:])) / 30
    assert figures["auc"] == pytest.approx(area, abs=1e-12) and 0.2 < area < 0.9
    large = [s for e, b, s in zip(errors, boxes, scores) if e > 0.1 * b]
    small = [s for e, b, s in zip(errors, boxes, scores) if e <= 0.1 * b]
    wins = sum((low < high) + 0.5 * (low == high) for low in large for high in small)
    assert figures["score_auroc"] == pytest.approx(wins / len(large) / len(small), abs=1e-12)


def test_order_and_batches_do_not_change_any_figure(metric):
    predictions, references = random_samples(50, seed=2)
    whole = metric.compute(predictions=predictions, references=references)
    order = np.random.default_rng(3).permutation(50)
    for part in np.array_split(order, 7):
        metric.add_batch(predictions=predictions[part], references=[references[i] for i in part])
    assert metric.compute() == whole
    for i in order:
        metric.add(prediction=predictions[i], reference=references[i])
    assert metric.compute() == whole
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole


def test_the_size_of_the_crop_changes_only_what_is_measured_in_it(metric):
    small = compute(metric, sample({0: (3, 4), 1: (1, 0)}, box_size=40))
    prediction, reference = sample({0: (3, 4), 1: (1, 0)}, box_size=80)
    reference["keypoints"], prediction = reference["keypoints"] * 2, prediction * 2
    assert compute(metric, (prediction, reference), image_size=256) == small


def test_numbers_go_through_storage_without_being_rounded(metric):
    error = 1 + 2**-45  # not a float32
    prediction, reference = sample({7: (0, 0)})
    reference["keypoints"][7] = 0
    prediction[7] = error, 0
    assert compute(metric, (prediction, reference))["mean_error_px_128"] == pytest.approx(error, abs=1e-15)


def test_tensors_lists_and_unknown_places_of_invisible_keypoints_are_taken(metric):
    prediction, reference = sample({2: (3, 4)}, scores=np.linspace(0, 1, 21))
    expected = compute(metric, (prediction, reference))
    reference["keypoints"][0] = np.nan
    as_tensors = {name: torch.as_tensor(value) for name, value in reference.items()}
    assert metric.compute(predictions=torch.as_tensor(prediction)[None], references=[as_tensors]) == expected
    as_lists = {name: np.asarray(value).tolist() for name, value in reference.items()}
    assert metric.compute(predictions=[prediction.tolist()], references=[as_lists]) == expected


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(prediction=np.nan), "Sample 1 has a NaN or infinite keypoint in `predictions`"),
        (dict(keypoints=np.full((21, 2), np.nan)), "Sample 1 has a visible keypoint that is NaN"),
        (dict(keypoints=np.zeros((20, 2))), "`keypoints` of `references`"),
        (dict(visibility=np.full(21, 0.7)), "Sample 1 has a `visibility` other than true and false"),
        (dict(visibility=np.ones(5)), "`visibility` of `references`"),
        (dict(box_size=0.0), "Sample 1 has a `box_size` that is not above 0"),
        (dict(box_size=np.nan), "Sample 1 has a `box_size` that is not above 0"),
        (dict(box_size=None), "Sample 1 has a `box_size` that is not above 0"),
        (dict(box_size="large"), "`box_size` of `references` must be numbers"),
        (dict(scores=np.full(21, np.nan)), "Sample 1 has a NaN or infinite number in `scores`"),
        (dict(scores=None), "Sample 1 lacks `scores`"),
    ],
)
def test_a_bad_sample_is_named_and_nothing_of_its_batch_is_kept(metric, change, message):
    good = sample({0: (3, 4)}, scores=np.zeros(21))
    prediction, reference = sample({0: (3, 4)}, scores=np.zeros(21))
    prediction[5] = change.pop("prediction", 0.0)
    reference.update(change)
    with pytest.raises(ValueError, match=message):
        compute(metric, good, (prediction, reference))
    assert compute(metric, good)["num_hands"] == 1


def test_a_bad_sample_of_a_later_batch_is_named_by_its_place_among_all(metric):
    good = sample({0: (3, 4)})
    metric.add_batch(predictions=[good[0]] * 3, references=[good[1]] * 3)
    with pytest.raises(ValueError, match="Sample 4 has a NaN"):
        metric.add_batch(predictions=[good[0], good[0] * np.nan], references=[good[1]] * 2)
    assert metric.compute()["num_hands"] == 3


def test_what_cannot_be_scored_is_refused_in_words(metric):
    prediction, reference = sample({0: (3, 4)})
    with pytest.raises(ValueError, match="`predictions` is empty"):
        metric.compute(predictions=[], references=[])
    with pytest.raises(ValueError, match="There are no samples"):
        metric.compute()
    with pytest.raises(ValueError, match="There are 1 `predictions` and 2 `references`"):
        metric.compute(predictions=[prediction], references=[reference] * 2)
    with pytest.raises(ValueError, match="must have the shape"):
        metric.compute(predictions=prediction[None, :, :1], references=[reference])
    with pytest.raises(ValueError, match="Sample 0 lacks box_size, visibility in `references`"):
        metric.compute(predictions=[prediction], references=[{"keypoints": prediction}])
    with pytest.raises(ValueError, match="`image_size` must be the side of the crop"):
        metric.compute(predictions=[prediction], references=[reference], image_size=0)
    with pytest.raises(ValueError, match="No keypoint of the 2 hands is visible"):
        compute(metric, sample({}), sample({}))
    metric.add(prediction=prediction, reference=reference)
    with pytest.raises(ValueError, match="Only 1 of 2 samples have `scores`"):
        compute(metric, sample({0: (3, 4)}, scores=np.zeros(21)))
    assert compute(metric, (prediction, reference))["num_hands"] == 1


@pytest.mark.slow
def test_it_loads_offline_from_a_relative_path_in_several_processes_at_once(tmp_path):
    program = """
import json
import evaluate
metric = evaluate.load("metrics/hand_keypoints")
truth = [[0.0, 0.0]] * 21
reference = {"keypoints": truth, "visibility": [True] * 21, "box_size": 50.0}
print(json.dumps(metric.compute(predictions=[[[3.0, 4.0]] * 21], references=[reference])))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        assert json.loads(output)["mean_error_px_128"] == 5.0
