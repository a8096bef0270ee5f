"""Whole photographs of people whose hands are marked with boxes.

    people = People("people", "train", 448, "cache")
    people[0]["boxes"]                                 # (16, 4), shares of the letterboxed square's side

`annotations.json` is a COCO file.  Its images have `split` ("train", "validation" or "test"), `source` and `marked`: "by
eye" (every hand, from the wrist to the finger tips) or "teacher" (hands that a model found; others are not marked).  Its
annotations have `bbox`, `handedness` ("right", "left" or null), `ignore` and, where known, 21 `keypoints`.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset_script.files import MAX_JSON_BYTES, FileTree, parse_json
from dataset_script.squares import Squares
from modeling_handunet.crops import Crop
from modeling_handunet.hands import BOX_MARGIN
from modeling_handunet.losses import LEFT, RIGHT

PARTS = ("train", "validation", "test")
SIDES = {"right": RIGHT, "left": LEFT}
MARKED = ("by eye", "teacher")
WRIST, MIDDLE_KNUCKLE = 0, 9
# A source counts as often as this many pictures at most, since frames of one source are alike.
SOURCE_PICTURES = 400
BY_EYE = 0.5  # share of the draws that are pictures marked by eye; of 0.65, the network learnt them by heart


def box_of_keypoints(keypoints: Tensor) -> Tensor:
    """Boxes (..., 4), (x_min, y_min, x_max, y_max), of the hands with `keypoints` (..., 21, 2)."""
    low, high = keypoints.amin(-2), keypoints.amax(-2)
    margin = BOX_MARGIN * (high - low).amax(-1, keepdim=True)
    return torch.cat([low - margin, high + margin], -1)


def points_of(hand: dict) -> Tensor:
    """An annotation's keypoints (21, 2), float64."""
    return torch.tensor(hand["keypoints"], dtype=torch.float64).view(21, -1)[:, :2]


def read_people(folder: str | os.PathLike, parts: Sequence[str]) -> list[tuple[dict, list[dict]]]:
    """The rows of `annotations.json` of some parts: each image, with its `path`, and the annotations of its hands.

    A teacher's boxes are tight round the keypoints, and get the margin of those that are drawn by eye.

    Raises `FileNotFoundError` for a missing file and `ValueError` for annotations that are not as the module's docstring
    says, naming them.
    """
    tree = FileTree(Path(folder))
    where = tree.where("annotations.json")
    coco = parse_json(tree.read("annotations.json", MAX_JSON_BYTES), where)
    try:
        hands: dict[int, list] = {}
        for number, hand in enumerate(coco["annotations"]):
            check(hand["handedness"] in (None, *SIDES), f"annotation {number}: handedness is right, left or null")
            check(isinstance(hand["ignore"], (bool, int)), f"annotation {number}: ignore is true or false")
            hand["bbox"] = numbers_of(hand["bbox"], (4,), f"annotation {number}: bbox has 4 finite numbers")
            check(min(hand["bbox"][2:]) >= 0, f"annotation {number}: a bbox is not smaller than 0")
            if hand.get("keypoints"):
                rule = f"annotation {number}: keypoints has 21 times 2 or 3 finite numbers"
                hand["keypoints"] = numbers_of(hand["keypoints"], (42, 63), rule)
            hands.setdefault(hand["image_id"], []).append(hand)
        for number, image in enumerate(coco["images"]):
            check(image["split"] in PARTS, f"image {number}: split is one of {', '.join(PARTS)}")
            check(image["marked"] in MARKED, f"image {number}: marked is one of {', '.join(MARKED)}")
            check(isinstance(image["source"], str), f"image {number}: source is a text")
            rule = f"image {number}: width and height are numbers above 0"
            check(min(numbers_of([image["width"], image["height"]], (2,), rule)) > 0, rule)
            image["path"] = Path(folder) / "images" / image["file_name"]
            for hand in hands.get(image["id"], []) if image["marked"] == "teacher" else []:
                if hand.get("keypoints"):
                    left, top, right, bottom = box_of_keypoints(points_of(hand)).tolist()
                    hand["bbox"] = [left, top, right - left, bottom - top]
        return [(image, hands.get(image["id"], [])) for image in coco["images"] if image["split"] in parts]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{where} is not a COCO file of marked hands: {reason}") from error


def check(condition: bool, rule: str) -> None:
    """Raise `ValueError` with the rule that a file breaks."""
    if not condition:
        raise ValueError(rule)


def numbers_of(values, counts: tuple[int, ...], rule: str) -> list[float]:
    """A list of finite numbers, as many as one of `counts`; raises `ValueError` with the `rule` for something else."""
    check(isinstance(values, list) and len(values) in counts, rule)
    check(all(type(value) in (int, float) and math.isfinite(value) for value in values), rule)
    return [float(value) for value in values]


class People(Dataset):
    """The photographs of one part, letterboxed to squares of `size` pixels; with `marked`, those marked in that way alone.

    Attributes: `boxes` (N, M, 4) as shares of the square's side, `class_labels` (N, M) with 0 right, 1 left, -1 not known,
    `directions` (N, M, 2) unit vectors from the wrist to the middle knuckle or NaN, `ignore` and `present` (N, M) bool,
    `extent` (N, 4) the photograph's own box in its square, `sizes` (N, 2) its height and width in pixels, `by_eye` (N,) bool,
    `weights` (N,) how often to draw each.

    Raises `FileNotFoundError` for a missing file and `ValueError` for annotations that are not as the module's docstring
    says, naming them.
    """

    def __init__(
        self, folder: str | os.PathLike, part: str, size: int, cache_dir: str | os.PathLike, *, marked: str | None = None
    ):
        if part not in PARTS:
            raise ValueError(f"part is {part!r}; choose {', '.join(PARTS)}")
        rows = [(image, hands) for image, hands in read_people(folder, (part,)) if marked in (None, image["marked"])]
        if not rows:
            raise ValueError(f"{folder} has no image of the part {part!r}")
        images = [image for image, _ in rows]
        self.sources = [image["source"] for image in images]
        self.by_eye = torch.tensor([image["marked"] == "by eye" for image in images])
        self._read(images, [hands for _, hands in rows])
        self.squares = Squares([(image["path"], None) for image in images], size, cache_dir)
        self.weights = self._weights()

    def _read(self, images: list[dict], hands: list[list[dict]]) -> None:
        count, most = len(images), max([len(row) for row in hands], default=1) or 1
        self.boxes, self.extent, self.sizes = torch.zeros(count, most, 4), torch.zeros(count, 4), torch.zeros(count, 2)
        self.class_labels = torch.full((count, most), -1)
        self.directions = torch.full((count, most, 2), math.nan)
        self.ignore, self.present = (torch.zeros(count, most, dtype=torch.bool) for _ in range(2))
        for number, (image, marked) in enumerate(zip(images, hands)):
            width, height = image["width"], image["height"]
            left, top, side = Crop.of_image(width, height, 1).square
            corner = np.array([left, top] * 2)
            self.sizes[number] = torch.tensor([height, width])
            self.extent[number] = torch.from_numpy((np.array([0, 0, width, height]) - corner) / side)
            for place, hand in enumerate(marked):
                x, y, box_width, box_height = hand["bbox"]
                box = torch.tensor([x, y, x + box_width, y + box_height], dtype=torch.float64)
                if hand.get("keypoints"):
                    points = points_of(hand)
                    toward = points[MIDDLE_KNUCKLE] - points[WRIST]
                    self.directions[number, place] = toward / toward.norm().clamp_min(1e-6)
                box = ((box - torch.from_numpy(corner)) / side).float()
                limits = self.extent[number]
                self.boxes[number, place] = torch.minimum(torch.maximum(box, limits[:2].repeat(2)), limits[2:].repeat(2))
                self.class_labels[number, place] = SIDES.get(hand["handedness"], -1)
                self.ignore[number, place], self.present[number, place] = bool(hand["ignore"]), True

    def _weights(self) -> Tensor:
        """`BY_EYE` of the draws are pictures marked by eye, and no source counts as more than `SOURCE_PICTURES`."""
        counts = {source: self.sources.count(source) for source in set(self.sources)}
        weights = torch.tensor([min(1.0, SOURCE_PICTURES / counts[source]) for source in self.sources])
        for group, share in ((self.by_eye, BY_EYE), (~self.by_eye, 1 - BY_EYE)):
            weights[group] *= share / weights[group].sum().clamp_min(1e-9)
        return weights / weights.sum()

    def __len__(self) -> int:
        return len(self.sources)

    def labels(self, numbers: Tensor | list[int]) -> dict[str, Tensor]:
        """The padded labels of some pictures, as `modeling_handunet/detection_losses.py` describes them."""
        names = ("boxes", "class_labels", "directions", "ignore", "present")
        return {name: getattr(self, name)[numbers] for name in names}

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """`image` (3, size, size) uint8, the labels of that picture, the photograph's `size` (2,) and its `index`."""
        labels = {name: values[0] for name, values in self.labels([number]).items()}
        image = self.squares.rows([number])["image"][0]
        return {"image": image, **labels, "size": self.sizes[number], "index": torch.tensor(number)}
