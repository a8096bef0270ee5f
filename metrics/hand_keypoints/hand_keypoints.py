"""The figures by which a hand pose model is judged, as an `evaluate` metric and as plain numpy.

    metric = evaluate.load("metrics/hand_keypoints", keep_in_memory=True)
    figures = metric.compute(predictions=..., references=..., image_size=128)

Every sample is one hand in one square crop.  The error of a keypoint is its Euclidean distance from the truth; only
visible keypoints count, and every figure is computed from the errors of single keypoints, so it depends neither on
batches nor on the order in which processes hand in their samples.  README.md beside this file defines each figure.

`evaluate` copies this file away before it imports it and scans it for imports line by line: it stands alone, with one
import a line, and the `evaluate` package is imported whole because the first metric class found in here is the one
that is loaded.
"""

import math

import datasets
import evaluate
import numpy as np

NUM_KEYPOINTS = 21
REFERENCE_SHAPES = {
    "keypoints": (NUM_KEYPOINTS, 2),
    "visibility": (NUM_KEYPOINTS,),
    "box_size": (),
    "scores": (NUM_KEYPOINTS,),
}
PCK_THRESHOLDS = (0.05, 0.1, 0.2)  # of the longer side of the hand's box
SUCCESS_THRESHOLDS = tuple(step / 2 for step in range(41))  # 0 to 20 % of the image's side
NAMED_SUCCESS_THRESHOLDS = (2, 5, 10)  # % of the image's side
AUC_RANGE = 30.0  # px of an image of 224, as mmpose's AUC on FreiHAND
AUC_STEP = 0.5
LARGE_ERROR = 0.1  # of the longer side of the hand's box: what a good score should warn of

DESCRIPTION = """
Errors of 2D hand keypoints: mean error in percent of the image's side and in pixels at 128 and 224, per keypoint too,
success rate by threshold, EPE, PCK of the hand's box, AUC of PCK, and how well the scores find large errors.
"""

INPUTS_DESCRIPTION = """
    predictions (N, 21, 2): predicted keypoints, x then y, in px of the crop.
    references: N dictionaries of
        keypoints (21, 2): true keypoints in px of the crop; anything where a keypoint is not visible, even NaN;
        visibility (21,): whether a keypoint counts;
        box_size: longer side of the hand's box, in px of the crop;
        scores (21,), optional: the model's confidence in each predicted keypoint, higher is surer.
    image_size, given to `compute`, 128 by default: side of the crop in px.
"""

CITATION = """
@inproceedings{zimmermann2019freihand,
  title = {FreiHAND: A Dataset for Markerless Capture of Hand Pose and Shape from Single RGB Images},
  author = {Zimmermann, Christian and Ceylan, Duygu and Yang, Jimei and Russell, Bryan and Argus, Max and Brox, Thomas},
  booktitle = {ICCV},
  year = {2019}
}
"""


def keypoint_errors(predictions: np.ndarray, references: np.ndarray, visibility: np.ndarray) -> np.ndarray:
    """Distances (N, 21) in px between `predictions` and `references` (N, 21, 2); NaN where not visible (N, 21)."""
    offsets = np.asarray(predictions, dtype=np.float64) - np.asarray(references, dtype=np.float64)
    return np.where(visibility, np.hypot(offsets[..., 0], offsets[..., 1]), np.nan)


def mean(values: np.ndarray) -> float:
    """Mean of the numbers in `values` that are not NaN, the same to the last bit in any order; NaN without any."""
    values = values[~np.isnan(values)]
    return math.fsum(values) / values.size if values.size else math.nan


def share_within(errors: np.ndarray, limits: np.ndarray) -> float:
    """Share of the `errors` that are not NaN and at most `limits` (broadcast to them)."""
    return float(np.count_nonzero(errors <= limits) / np.count_nonzero(~np.isnan(errors)))


def area_under_pck(errors: np.ndarray, limit: float = AUC_RANGE, step: float = AUC_STEP) -> float:
    """Area under the share of `errors` at most t, for t from 0 to `limit`, over `limit`: 1.0 where all errors are 0.

    The trapezoid rule on thresholds `step` apart.
    """
    thresholds = np.arange(round(limit / step) + 1) * step
    curve = np.array([share_within(errors, threshold) for threshold in thresholds])
    return math.fsum((curve[1:] + curve[:-1]) / 2) / (len(curve) - 1)


def area_under_roc(values: np.ndarray, positive: np.ndarray) -> float | None:
    """Probability that `values` (M,) is higher at a random positive than at a random negative, ties counted half.

    `positive` (M,) is bool.  None where there are no positives or no negatives.  This is Mann and Whitney's U over
    its maximum, from ranks that are averaged over ties.
    """
    positives = int(np.count_nonzero(positive))
    negatives = positive.size - positives
    if positives == 0 or negatives == 0:
        return None
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]  # of 1 to M
    return float((math.fsum(ranks[positive]) - positives * (positives + 1) / 2) / (positives * negatives))


def hand_keypoint_figures(
    errors: np.ndarray, box_size: np.ndarray, image_size: float, scores: np.ndarray | None = None
) -> dict:
    """All figures of the metric, as numbers and lists that JSON can hold; None stands for an undefined one.

    Args:
        errors: (N, 21) px of the crop, NaN where a keypoint is not visible.
        box_size: (N,) longer side of each hand's box, px of the crop.
        image_size: side of the crop in px.
        scores: (N, 21) confidence of each keypoint.

    Raises:
        ValueError: if no keypoint is visible.
    """
    visible = ~np.isnan(errors)  # (N, 21)
    if not visible.any():
        raise ValueError(
            f"No keypoint of the {len(errors)} hands is visible, so there is no error to speak of: "
            "check `visibility`, which is true where a keypoint counts."
        )
    percent = errors * (100 / image_size)
    at_224 = errors * (224 / image_size)
    relative = errors / box_size[:, None]  # of the hand's box
    hands = visible.any(axis=1)
    hand_percent = np.array([mean(row) for row in percent[hands]])

    mean_error = mean(errors)
    figures = {
        "num_hands": int(np.count_nonzero(hands)),
        "num_hands_without_keypoints": int(np.count_nonzero(~hands)),
        "num_keypoints": int(np.count_nonzero(visible)),
        "mean_error_percent": mean_error * (100 / image_size),
        "mean_error_px_128": mean_error * (128 / image_size),
        "mean_error_px_224": mean_error * (224 / image_size),
        "mean_error_percent_per_keypoint": [
            mean(column) if seen else None for column, seen in zip(percent.T, visible.any(axis=0))
        ],
        "epe": mean_error * (224 / image_size),
        "mean_error_over_box": mean(relative),
        "auc": area_under_pck(at_224),
    }
    for threshold in PCK_THRESHOLDS:
        figures[f"pck@{threshold}"] = share_within(relative, threshold)
    for threshold in NAMED_SUCCESS_THRESHOLDS:
        figures[f"success_rate@{threshold}_percent"] = float(np.mean(hand_percent < threshold))
    figures["success_rate_thresholds_percent"] = list(SUCCESS_THRESHOLDS)
    figures["success_rate"] = [float(np.mean(hand_percent < threshold)) for threshold in SUCCESS_THRESHOLDS]
    figures["score_auroc"] = (
        None if scores is None else area_under_roc(1 - scores[visible], relative[visible] > LARGE_ERROR)
    )
    return figures


def _numbers(name: str, values, shape: tuple[int, ...]) -> np.ndarray:
    """`values` as float64 of shape (N, *shape), or a ValueError that names them."""
    wanted = f"(N, {', '.join(map(str, shape))})" if shape else "(N,)"
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers of shape {wanted} over the N samples: {error}") from None
    if array.ndim != 1 + len(shape) or array.shape[1:] != shape:
        raise ValueError(f"{name} must have the shape {wanted} over the N samples, but has {array.shape}.")
    return array


def _refuse(bad: np.ndarray, first: int, problem: str) -> None:
    """Raise a ValueError with `problem` for the first sample where `bad` (N, ...) is true; they count from `first`."""
    samples = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    if samples.size:
        raise ValueError(f"Sample {first + samples[0]} {problem}")


class HandKeypoints(evaluate.Metric):
    """2D hand keypoints: see the module.  Samples are checked when they are added, before any is stored."""

    def _info(self) -> evaluate.MetricInfo:
        keypoints = datasets.List(datasets.List(datasets.Value("float64")))
        reference = {
            "keypoints": keypoints,
            "visibility": datasets.List(datasets.Value("bool")),
            "box_size": datasets.Value("float64"),
            "scores": datasets.List(datasets.Value("float64")),  # empty where none were given
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": keypoints, "references": reference}),
        )

    def add_batch(self, *, predictions, references) -> None:
        """Add N samples, as arrays, lists or CPU tensors.

        Raises:
            ValueError: for no sample, a wrong shape, a prediction or score that is not finite, a visible keypoint of a
                reference that is not finite, or a box that is not longer than 0 px; the sample is named by its index
                among all that this metric was given.
        """
        if len(predictions) == 0:
            raise ValueError("`predictions` is empty: there must be at least one sample to score.")
        if len(predictions) != len(references):
            raise ValueError(f"There are {len(predictions)} `predictions` and {len(references)} `references`.")
        first = len(self)
        for index, reference in enumerate(references):
            missing = {"keypoints", "visibility", "box_size"} - set(reference)
            if missing:
                raise ValueError(f"Sample {first + index} lacks {', '.join(sorted(missing))} in `references`.")
        scored = [reference.get("scores") is not None for reference in references]
        if any(scored) != all(scored):
            raise ValueError(f"Sample {first + scored.index(False)} lacks `scores`: give them for all samples or none.")

        predictions = _numbers("`predictions`", predictions, (NUM_KEYPOINTS, 2))
        columns = {
            name: _numbers(f"`{name}` of `references`", [reference[name] for reference in references], shape)
            for name, shape in REFERENCE_SHAPES.items()
            if name != "scores" or scored[0]
        }
        keypoints, visibility, box_size = columns["keypoints"], columns["visibility"], columns["box_size"]
        _refuse(~np.isfinite(predictions), first, "has a NaN or infinite keypoint in `predictions`.")
        _refuse((visibility != 0) & (visibility != 1), first, "has a `visibility` other than true and false.")
        visible = visibility.astype(bool)
        _refuse(visible[..., None] & ~np.isfinite(keypoints), first, "has a visible keypoint that is NaN or infinite.")
        _refuse(
            visible.any(axis=1) & ~((box_size > 0) & np.isfinite(box_size)),
            first,
            "has a `box_size` that is not above 0: it is the longer side of the hand's box in px of the crop.",
        )
        if scored[0]:
            _refuse(~np.isfinite(columns["scores"]), first, "has a NaN or infinite number in `scores`.")
        rows = zip(keypoints, visible, box_size, columns["scores"] if scored[0] else [[]] * len(predictions))
        super().add_batch(predictions=predictions, references=[dict(zip(REFERENCE_SHAPES, row)) for row in rows])

    def add(self, *, prediction, reference) -> None:
        """Add one sample: `prediction` (21, 2) and its `reference`."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(self, *, predictions=None, references=None, image_size: float = 128) -> dict | None:
        """The figures of all samples added since the last call and of those given here; README.md defines them.

        Raises:
            ValueError: as :meth:`add_batch`, if there is no sample or no visible keypoint, or if only some samples
                have scores.
        """
        if not 0 < image_size < math.inf:
            raise ValueError(f"`image_size` must be the side of the crop in px, above 0, but is {image_size}.")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.writer is None:
            raise ValueError("There are no samples: give them to `add_batch` or to `compute`.")
        return super().compute(image_size=image_size)

    def _compute(self, predictions, references, image_size) -> dict:
        columns = {name: [reference[name] for reference in references] for name in REFERENCE_SHAPES}
        scored = sum(len(scores) > 0 for scores in columns["scores"])
        if scored not in (0, len(references)):
            raise ValueError(f"Only {scored} of {len(references)} samples have `scores`: give them for all or none.")
        errors = keypoint_errors(predictions, columns["keypoints"], columns["visibility"])
        scores = np.array(columns["scores"]) if scored else None
        return hand_keypoint_figures(errors, np.array(columns["box_size"]), image_size, scores)
