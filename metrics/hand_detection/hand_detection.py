"""The figures by which a hand detector is judged, as an `evaluate` metric and as plain numpy.

    metric = evaluate.load("metrics/hand_detection", keep_in_memory=True)
    figures = metric.compute(predictions=..., references=...)

Every sample is one picture.  README.md beside this file defines each figure.

`evaluate` copies this file away before it imports it and scans it for imports line by line: it stands alone, with one
import a line, and the `evaluate` package is imported whole because the first metric class found in here is the one
that is loaded.
"""

import contextlib
import io
import math

import datasets
import evaluate
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

LOOSE_IOU = 0.4  # boxes drawn by eye and boxes round keypoints differ by a finger's width
SPARED_SHARE = 0.5  # a detection of which so much lies in a spared hand is no false one
MIN_SIZE = 0.05  # of the picture's longer side: smaller hands are spared
FALSE_RATES = (1.0, 0.1)  # false hands a picture at which recall is read

DESCRIPTION = """
Average precision of hand boxes, recall at a rate of false hands, share of hands whose side is told correctly, and mean
error of the direction from the wrist to the middle knuckle.
"""

INPUTS_DESCRIPTION = """
    predictions: N dictionaries, one a picture, of
        boxes (K, 4): x_min, y_min, x_max, y_max in px;
        scores (K,): higher is surer;
        labels (K,): 0 right hand, 1 left hand;
        directions (K, 2), optional: unit vectors from the wrist to the middle knuckle.
    references: N dictionaries of
        boxes (M, 4): as above;
        labels (M,): 0 right hand, 1 left hand, -1 not known;
        ignore (M,), optional: hands that are neither demanded nor punished;
        directions (M, 2), optional: as above, NaN where not known;
        size (2,): height and width of the picture in px.
    threshold, given to `compute`, 0 by default: what counts as found, but for the curves of precision and recall.
    min_size, given to `compute`, 0.05 by default: longer side of the smallest hand that is demanded, as a share of the
        picture's longer side.
"""

CITATION = """
@inproceedings{lin2014coco,
  title = {Microsoft COCO: Common Objects in Context},
  author = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and Perona, Pietro and Ramanan, Deva and
            Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  booktitle = {ECCV},
  year = {2014}
}
"""


def areas(boxes: np.ndarray) -> np.ndarray:
    """Areas (...) of boxes (..., 4)."""
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def intersections(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Areas (K, M) that boxes (K, 4) and (M, 4) have in common."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=-1)


def match_picture(boxes: np.ndarray, wanted: np.ndarray, spared: np.ndarray) -> list[int | None]:
    """What each of `boxes` (K, 4), falling by score, found: the number of a hand of `wanted` (M, 4), -1 for a false one,
    None where it lies on a hand of `spared` (S, 4).

    A box takes the hand that it overlaps most among those that no surer box has taken, if their IoU is at least 0.4.
    """
    common = intersections(boxes, wanted)
    overlap = common / np.maximum(areas(boxes)[:, None] + areas(wanted)[None] - common, 1e-9)
    covered = intersections(boxes, spared)
    near = covered / np.maximum(areas(boxes)[:, None] + areas(spared)[None] - covered, 1e-9) >= LOOSE_IOU
    near |= covered >= SPARED_SHARE * np.maximum(areas(boxes), 1e-9)[:, None]
    found: list[int | None] = []
    free = np.ones(len(wanted), dtype=bool)
    for row, is_near in zip(overlap, near):
        values = np.where(free, row, -1.0)
        best = int(values.argmax()) if len(values) else -1
        if best >= 0 and values[best] >= LOOSE_IOU:
            free[best] = False
            found.append(best)
        else:
            found.append(None if is_near.any() else -1)
    return found


def average_precision(hits: np.ndarray, demanded: int) -> float:
    """Area under precision against recall, all points, of detections `hits` (K,) bool falling by score."""
    true = np.cumsum(hits)
    precision = true / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return math.fsum(envelope[hits]) / demanded


def coco_average_precision(predictions: list[dict], references: list[dict]) -> tuple[float, float]:
    """AP at IoU 0.5 to 0.95 and at 0.5, as COCO's own code computes them for one class; spared hands are its crowds."""
    images = [{"id": number} for number in range(len(references))]
    truth, found = [], []
    for number, (prediction, reference) in enumerate(zip(predictions, references)):
        for box, crowd in zip(reference["boxes"], reference["spared"]):
            truth.append({"bbox": box, "iscrowd": int(crowd), "image_id": number})
        for box, score in zip(prediction["boxes"], prediction["scores"]):
            found.append({"bbox": box, "iscrowd": 0, "image_id": number, "score": float(score)})
    tables = []
    with contextlib.redirect_stdout(io.StringIO()):
        for rows in (truth, found):
            for number, row in enumerate(rows):
                x, y, right, bottom = map(float, row["bbox"])
                row.update(id=number + 1, category_id=1, bbox=[x, y, right - x, bottom - y], area=(right - x) * (bottom - y))
            table = COCO()
            table.dataset = {"images": images, "annotations": rows, "categories": [{"id": 1}]}
            table.createIndex()
            tables.append(table)
        evaluation = COCOeval(*tables, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, -1]  # (IoU, recall): one class, all areas, 100 a picture
    return float(precision.mean()), float(precision[0].mean())


def hand_detection_figures(
    predictions: list[dict], references: list[dict], threshold: float = 0.0, min_size: float = MIN_SIZE
) -> dict:
    """All figures of the metric, as numbers that JSON can hold; None stands for an undefined one.

    Raises:
        ValueError: if no hand is demanded.
    """
    predictions, references = [dict(row) for row in predictions], [dict(row) for row in references]
    scores, hits, quiet, sides, turned = [], [], [], [], []
    sure_hits = sure_false = demanded = 0
    for prediction, reference in zip(predictions, references):
        order = np.argsort(-np.asarray(prediction["scores"], dtype=np.float64), kind="stable")
        boxes = np.asarray(prediction["boxes"], dtype=np.float64).reshape(-1, 4)[order]
        surety = np.asarray(prediction["scores"], dtype=np.float64)[order]
        prediction.update(boxes=boxes, scores=surety)
        truth = np.asarray(reference["boxes"], dtype=np.float64).reshape(-1, 4)
        ignore = np.asarray(reference.get("ignore") or [False] * len(truth), dtype=bool)
        small = (truth[:, 2:] - truth[:, :2]).max(axis=1, initial=0) < min_size * max(reference["size"])
        spared = ignore | small
        reference.update(boxes=truth, spared=spared)
        wanted = np.flatnonzero(~spared)
        demanded += len(wanted)
        if not len(truth):
            quiet.append(not (surety >= threshold).any())
        for number, found in zip(range(len(order)), match_picture(boxes, truth[wanted], truth[spared])):
            if found is None:
                continue
            scores.append(surety[number])
            hits.append(found >= 0)
            if surety[number] < threshold:
                continue
            sure_hits += found >= 0
            sure_false += found < 0
            if found < 0:
                continue
            hand, mine = wanted[found], order[number]
            if reference["labels"][hand] >= 0:
                sides.append(prediction["labels"][mine] == reference["labels"][hand])
            if prediction.get("directions") and reference.get("directions"):
                cosine = float(np.dot(prediction["directions"][mine], reference["directions"][hand]))
                if not math.isnan(cosine):
                    turned.append(math.degrees(math.acos(min(1.0, max(-1.0, cosine)))))
    if not demanded:
        raise ValueError(
            f"None of the {len(references)} pictures has a hand that is demanded, so there is nothing to find: check `ignore` "
            "and `min_size`."
        )
    order = np.argsort(-np.asarray(scores), kind="stable")
    hits = np.asarray(hits, dtype=bool)[order]
    recall, false = np.cumsum(hits) / demanded, np.cumsum(~hits)
    strict, half = coco_average_precision(predictions, references)
    figures = {
        "num_pictures": len(references),
        "num_hands": demanded,
        "ap@0.5:0.95": strict,
        "ap@0.5": half,
        "ap@0.4": average_precision(hits, demanded),
    }
    for rate in FALSE_RATES:
        figures[f"recall@{rate:g}_false"] = float(recall[false <= rate * len(references)].max(initial=0))
    figures["recall"] = sure_hits / demanded
    figures["false_per_picture"] = sure_false / len(references)
    figures["quiet_without_hands"] = float(np.mean(quiet)) if quiet else None
    figures["side_accuracy"] = float(np.mean(sides)) if sides else None
    figures["direction_error_degrees"] = math.fsum(turned) / len(turned) if turned else None
    return figures


def _numbers(picture: int, name: str, values, shape: tuple[int, ...]) -> list:
    """`values` as a list of shape (K, *shape), or a ValueError that names the picture."""
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        array = array.reshape(0, *shape)
    if array.shape[1:] != shape or array.ndim != 1 + len(shape):
        wanted = f"(K, {', '.join(map(str, shape))})" if shape else "(K,)"
        raise ValueError(f"Picture {picture} has `{name}` of shape {array.shape}, expected {wanted}.")
    return array.tolist()


class HandDetection(evaluate.Metric):
    """Boxes, sides and directions of hands: see the module.  Samples are checked when they are added."""

    def _info(self) -> evaluate.MetricInfo:
        pairs = datasets.List(datasets.List(datasets.Value("float64")))
        prediction = {
            "boxes": pairs,
            "scores": datasets.List(datasets.Value("float64")),
            "labels": datasets.List(datasets.Value("int64")),
            "directions": pairs,
        }
        reference = {
            "boxes": pairs,
            "labels": datasets.List(datasets.Value("int64")),
            "ignore": datasets.List(datasets.Value("bool")),
            "directions": pairs,
            "size": datasets.List(datasets.Value("float64")),
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": prediction, "references": reference}),
        )

    def add_batch(self, *, predictions, references) -> None:
        """Add N pictures, as dictionaries of arrays, lists or CPU tensors.

        Raises:
            ValueError: for no picture, a wrong shape, lengths that do not fit, or a box or score that is not finite; the
                picture is named by its index among all that this metric was given.
        """
        if len(predictions) == 0 or len(predictions) != len(references):
            raise ValueError(
                f"There are {len(predictions)} `predictions` and {len(references)} `references`: give as many, at least one."
            )
        rows = []
        for number, (prediction, reference) in enumerate(zip(predictions, references), len(self)):
            sides = []
            for given, names in (
                (prediction, {"boxes": (4,), "scores": (), "labels": ()}),
                (reference, {"boxes": (4,), "labels": ()}),
            ):
                row = {name: _numbers(number, name, given[name], shape) for name, shape in names.items()}
                row["directions"] = _numbers(number, "directions", given.get("directions", []), (2,))
                lengths = {len(values) for name, values in row.items() if name != "directions" or values}
                if len(lengths) > 1:
                    raise ValueError(f"Picture {number} has {sorted(lengths)} boxes, labels or others: give one each a hand.")
                if not np.isfinite(row["boxes"]).all() or not np.isfinite(row.get("scores", [])).all():
                    raise ValueError(f"Picture {number} has a NaN or infinite box or score.")
                row["labels"] = [int(label) for label in row["labels"]]
                sides.append(row)
            found, truth = sides
            truth["ignore"] = [bool(value) for value in reference.get("ignore", [])] or [False] * len(truth["boxes"])
            if len(truth["ignore"]) != len(truth["boxes"]) or len(reference["size"]) != 2:
                raise ValueError(
                    f"Picture {number} needs an `ignore` for each box, or none, and its height and width as `size`."
                )
            truth["size"] = [float(length) for length in reference["size"]]
            rows.append((found, truth))
        super().add_batch(predictions=[row[0] for row in rows], references=[row[1] for row in rows])

    def add(self, *, prediction, reference) -> None:
        """Add one picture."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(self, *, predictions=None, references=None, threshold: float = 0.0, min_size: float = MIN_SIZE) -> dict | None:
        """The figures of all pictures added since the last call and of those given here; README.md defines them.

        Raises:
            ValueError: as :meth:`add_batch`, or if there is no picture or no hand that is demanded.
        """
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.writer is None:
            raise ValueError("There are no pictures: give them to `add_batch` or to `compute`.")
        return super().compute(threshold=threshold, min_size=min_size)

    def _compute(self, predictions, references, threshold, min_size) -> dict:
        return hand_detection_figures(predictions, references, threshold, min_size)
