"""The detector's metric, against numbers worked out by hand."""

from pathlib import Path

import evaluate
import pytest

SIZE = (100, 100)
HAND = [10, 10, 30, 30]
OTHER = [60, 60, 80, 80]


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(Path(__file__).parents[1] / "metrics" / "hand_detection"), keep_in_memory=True)


def found(*boxes, scores=None, labels=None, **more):
    return {"boxes": list(boxes), "scores": scores or [0.9] * len(boxes), "labels": labels or [0] * len(boxes), **more}


def marked(*boxes, labels=None, **more):
    return {"boxes": list(boxes), "labels": labels or [0] * len(boxes), "size": SIZE, **more}


def test_a_perfect_detector_has_every_figure_at_its_best(metric):
    figures = metric.compute(
        predictions=[found(HAND, OTHER, labels=[0, 1], directions=[[1, 0], [0, 1]]), found()],
        references=[marked(HAND, OTHER, labels=[0, 1], directions=[[1, 0], [0, 1]]), marked()],
    )
    assert figures == {
        "num_pictures": 2, "num_hands": 2, "ap@0.5:0.95": 1.0, "ap@0.5": 1.0, "ap@0.4": 1.0, "recall@1_false": 1.0,
        "recall@0.1_false": 1.0, "recall": 1.0, "false_per_picture": 0.0, "quiet_without_hands": 1.0,
        "side_accuracy": 1.0, "direction_error_degrees": 0.0,
    }  # fmt: skip


def test_average_precision_counts_false_hands_by_their_rank(metric):
    false = [0, 80, 20, 100]
    figures = metric.compute(
        predictions=[found(HAND, false, OTHER, scores=[0.9, 0.8, 0.7])], references=[marked(HAND, OTHER)]
    )
    # Precision is 1 up to a recall of 1/2 and 2/3 up to 1.
    assert figures["ap@0.4"] == pytest.approx((1 + 2 / 3) / 2)
    # COCO reads precision at the 101 recalls 0, 0.01, ..., 1: at 51 of them it is 1, at 50 it is 2/3.
    assert figures["ap@0.5"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert figures["recall@1_false"] == 1.0 and figures["recall@0.1_false"] == 0.5
    assert figures["recall"] == 1.0 and figures["false_per_picture"] == 1.0


def test_a_box_counts_from_the_stated_overlap_on(metric):
    shifted = [16, 10, 36, 30]  # 14 of 26 columns in common: IoU 0.538
    figures = metric.compute(predictions=[found(shifted)], references=[marked(HAND)])
    assert figures["ap@0.4"] == 1.0 and figures["ap@0.5"] == pytest.approx(1.0)
    assert figures["ap@0.5:0.95"] == pytest.approx(0.1)
    shifted = [18, 10, 38, 30]  # 12 of 28: 0.429
    figures = metric.compute(predictions=[found(shifted)], references=[marked(HAND)])
    assert figures["ap@0.4"] == 1.0 and figures["ap@0.5"] == 0.0
    shifted = [19, 10, 39, 30]  # 11 of 29: 0.379
    assert metric.compute(predictions=[found(shifted)], references=[marked(HAND)])["ap@0.4"] == 0.0


def test_a_hand_that_is_found_twice_is_right_once(metric):
    figures = metric.compute(predictions=[found(HAND, HAND, scores=[0.9, 0.8])], references=[marked(HAND)])
    assert figures["recall"] == 1.0 and figures["false_per_picture"] == 1.0 and figures["ap@0.4"] == 1.0


def test_small_and_ignored_hands_are_spared(metric):
    small, ignored = [50, 10, 54, 14], [40, 60, 100, 100]
    figures = metric.compute(
        predictions=[found(HAND, small, [45, 65, 65, 85])],  # the third lies in the ignored one
        references=[marked(HAND, small, ignored, ignore=[False, False, True])],
    )
    assert figures["num_hands"] == 1 and figures["false_per_picture"] == 0 and figures["ap@0.4"] == 1.0
    assert figures["ap@0.5"] == pytest.approx(1.0)
    assert metric.compute(predictions=[found()], references=[marked(HAND, small)], min_size=0.04)["num_hands"] == 2


def test_sides_and_directions_count_where_they_are_known(metric):
    third = [10, 60, 30, 80]
    figures = metric.compute(
        predictions=[found(HAND, OTHER, third, labels=[0, 0, 1], directions=[[1, 0], [0, 1], [0.6, 0.8]])],
        references=[marked(HAND, OTHER, third, labels=[0, 1, -1], directions=[[0, 1], [0, 1], [float("nan")] * 2])],
    )
    assert figures["side_accuracy"] == 0.5  # one of two
    assert figures["direction_error_degrees"] == pytest.approx(45.0)  # 90 and 0


def test_the_threshold_decides_what_is_found_but_not_the_curve(metric):
    pictures = [found(HAND, scores=[0.3]), found(OTHER, scores=[0.4]), found()]
    references = [marked(HAND), marked(), marked()]
    figures = metric.compute(predictions=pictures, references=references, threshold=0.35)
    assert figures["recall"] == 0.0 and figures["false_per_picture"] == pytest.approx(1 / 3)
    assert figures["quiet_without_hands"] == 0.5 and figures["ap@0.4"] == 0.5
    assert figures["recall@1_false"] == 1.0 and figures["recall@0.1_false"] == 0.0
    assert figures["side_accuracy"] is None and figures["direction_error_degrees"] is None


def test_it_agrees_with_the_protocol_that_scores_any_detector(metric, tmp_path):
    """`average_precision` of a list of 7 detections on 5 hands, by the definition: hits at ranks 1, 2, 4, 7."""
    boxes = [[20 * k, 0, 20 * k + 15, 15] for k in range(5)]
    wrong = [[20 * k, 60, 20 * k + 15, 75] for k in range(3)]
    order = [boxes[0], boxes[1], wrong[0], boxes[2], wrong[1], wrong[2], boxes[3]]
    figures = metric.compute(
        predictions=[found(*order, scores=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])], references=[marked(*boxes)]
    )
    assert figures["ap@0.4"] == pytest.approx((1 + 1 + 3 / 4 + 4 / 7) / 5)


@pytest.mark.parametrize(
    "prediction, reference, message",
    [
        (found([1, 2, 3]), marked(HAND), r"shape \(1, 3\)"),
        (found(HAND, scores=[0.1, 0.2]), marked(HAND), "give one each a hand"),
        (found([0, 0, float("nan"), 1]), marked(HAND), "NaN or infinite"),
        (found(HAND), marked(HAND, ignore=[True, False]), "`ignore` for each box"),
        (found(HAND), marked(), "nothing to find"),
    ],
)
def test_bad_samples_are_named(metric, prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=[prediction], references=[reference])
