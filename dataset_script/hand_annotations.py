"""The hands of an annotation file: what can be used, what is left out, and what contradicts itself.

`read_hands` reads the file, `fit_to_photographs` compares the hands with their photographs. Neither stops at the first mistake:
what says itself that it is no usable hand is left out and counted in a [`Report`], and all contradictions stand in one error.
"""

import math
import os
import reprlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataset_script.annotation_formats import read_annotations
from dataset_script.files import shorten
from dataset_script.hand_words import (
    KNOWN_NAMES,
    UNKNOWN,
    hand_in,
    is_hand,
    is_other_thing,
    read_keypoint_names,
    stated_hands,
)
from dataset_script.photograph_folder import PhotographFolder
from modeling_handunet.crops import check_box
from modeling_handunet.keypoints import NUM_KEYPOINTS

MAX_OUTSIDE = 1.0  # how far outside the photograph a keypoint may lie, relative to the longer side
MAX_TEXT = 4096  # characters of an id, a file name or a source
# Keypoints that are all within so many pixels of the corner are not in pixels: they are relative to the photograph's sides.
MAX_RELATIVE = 2.0
# The share of the visible keypoints that must lie in the box; and the one if the box, read in another way, holds all of them.
MIN_INSIDE, MIN_INSIDE_OR_ELSE = 0.5, 0.75
BOX_MARGIN = 0.1  # of the box's sides; a box may be drawn tightly
CORNERS_ARE_SMALLER = 2.0  # a box is taken for corners if it is so many times longer than the one they span
# In a whole file, less is enough to tell: at least so many boxes, of which all would be corners and are so many times longer.
MIN_CORNER_BOXES, ALL_CORNERS_ARE_SMALLER = 3, 1.25
# Coordinates are taken for percent if those of so many photographs are all at most 100, and the photographs far larger.
MIN_PERCENT_PHOTOGRAPHS, MIN_SIDE_OF_PERCENT = 5, 400


@dataclass
class Report:
    """What was read of a file of hands, and what was left out. Plain data."""

    file: str
    left: int = 0
    right: int = 0
    photographs: int = 0
    taken_as_right: int = 0  # hands of which the file does not say which hand they are
    notes: list[str] = field(default_factory=list)  # sentences about what was read in another way than it stands there
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason: annotations, tasks or photographs
    unreadable: dict[str, str] = field(default_factory=dict)  # photographs that cannot be read, with the reasons

    def leave_out(self, reason: str, name: object) -> None:
        """Count something that is not used."""
        self.left_out.setdefault(reason, []).append(str(name))

    def what_is_left_out(self) -> str:
        """The reasons with their counts and names; empty if nothing is left out."""
        return "; ".join(f"{len(names)} {reason} ({shorten(names, 5)})" for reason, names in self.left_out.items())

    def sentence(self) -> str:
        """All of it, to be read before a training."""
        hands = self.left + self.right
        text = f"{self.file}: {hands} hands ({self.left} left, {self.right} right) in {self.photographs} photographs"
        if self.taken_as_right:
            which = "it does" if self.taken_as_right == hands else f"{self.taken_as_right} of them do"
            text += f"; {which} not say which hand, so they are taken as right hands"
        text += "".join(f"; {note}" for note in self.notes)
        return f"{text}; left out: {self.what_is_left_out() or 'nothing'}."


def read_hands(path: Path, folder: Path) -> tuple[list[dict], Report]:
    """The hands of an annotation file whose photographs are in `folder`.

    A hand has `image` (path), `uv` (21, 2) px, `visibility` (21,), `box` or None, `handedness`, `image_id`, `annotation_id`,
    `source` and `size`, the photograph's size as the file says it. `fit_to_photographs` must follow.

    Raises ValueError or FileNotFoundError, naming `path` and all images or annotations that cannot be understood.
    """
    coco, left_out = read_annotations(path)
    report = Report(path.name, left_out={reason: list(names) for reason, names in left_out.items()})
    if not coco["annotations"] and not left_out:
        raise ValueError(f"{path} has no annotations")
    problems: list[str] = []
    categories = _Categories(coco.get("categories"))
    photographs = _photographs(coco["images"], PhotographFolder(folder), problems)
    _check_ids("annotation", coco["annotations"], problems)
    hands, reordered, nowhere = [], 0, 0
    for entry in coco["annotations"] if not problems else []:
        try:
            hand = _hand(entry, photographs, categories, report)
        except ValueError as error:
            problems.append(f"annotation {_key(entry['id'])} {error}")
            continue
        if hand is not None:
            reordered += hand.pop("reordered")
            nowhere += hand.pop("nowhere")
            hands.append(hand)
    if problems:
        raise ValueError(f"{path}: {_listed(problems)}")
    if not hands:
        raise ValueError(
            f"{path} has no hand that can be used. Left out: {report.what_is_left_out()}. A hand needs {NUM_KEYPOINTS} "
            f"keypoints of which one or more are labelled (v > 0); {KNOWN_NAMES}"
        )
    missing = sorted({hand["name"] for hand in hands if hand["image"] is None})
    if missing:
        total = len({hand["image_id"] for hand in hands})
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {total} annotated images are missing ({shorten(missing, 3)}): is {folder} the folder "
            "that the file names are in? (backslashes, URL quotes and folders before the name were looked through)"
        )
    if reordered:
        report.notes.append(f"the keypoints of {reordered} were put into this project's order by their names")
    if nowhere:
        report.notes.append(f"{nowhere} keypoints at (0, 0) or (-1, -1) are taken as not labelled, whatever their v is")
    return hands, report


def _listed(problems: list[str], count: int = 5) -> str:
    more = f"; and {len(problems) - count} more" if len(problems) > count else ""
    return "; ".join(problems[:count]) + more


def _key(value: object) -> str | None:
    """An id as text: 1, 1.0 and "1" are one. None for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if _is_text(value) else None


def _check_ids(what: str, entries: list[dict], problems: list[str]) -> None:
    seen = set()
    for index, entry in enumerate(entries):
        key = _key(entry.get("id"))
        if key is None:
            problems.append(f"{what} number {index} has no `id` that is a number or a short text")
        elif key in seen:
            problems.append(f"{what} id {key} appears twice")
        seen.add(key)


def _photographs(entries: list[dict], folder: PhotographFolder, problems: list[str]) -> dict[str, dict]:
    """What the file says of its photographs, by id. `image` is None if it is not in the folder."""
    _check_ids("image", entries, problems)
    photographs = {}
    for entry in entries:
        key, name = _key(entry.get("id")), entry.get("file_name")
        size = entry.get("width"), entry.get("height")
        source = "" if entry.get("source") is None else entry["source"]
        if not name or not _is_text(name) or "\0" in name:
            problems.append(f"image {key} has no `file_name`, but {reprlib.repr(name)}")
        elif not all(side is None or type(side) in (int, float) for side in size):
            problems.append(f"image {key} has the width and height {reprlib.repr(size)}, expected numbers")
        elif not _is_text(source):
            problems.append(f"image {key} has the source {reprlib.repr(source)}, expected a short text")
        elif key is not None:
            photographs[key] = {
                "image": folder.find(name),
                "name": name,
                "size": size if all(size) else None,
                "source": source,
                "image_id": key,
                "stated": entry,
            }
    names: dict[str, set[str]] = {}
    for photograph in photographs.values():
        names.setdefault(photograph["image"], set()).add(photograph["name"])
    for photograph in photographs.values():  # a/1.jpg and b/1.jpg are not both 1.jpg
        path = photograph["image"]
        if path is not None and len(names[path]) > 1 and not folder.is_exact(photograph["name"], path):
            photograph["image"] = None
    return photographs


class _Categories:
    """What the categories say of their hands: the order of the keypoints, and left or right."""

    def __init__(self, entries: object):
        entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        self._by_id = {key: entry for entry in entries if (key := _key(entry.get("id"))) is not None}
        self._single = entries[0] if len(entries) == 1 else None
        self.some_are_hands = any(is_hand(entry.get("name")) for entry in entries)
        self._read: dict[int, tuple[list[int] | None, str | None]] = {}
        named = [entry for entry in entries if len(_keypoint_names(entry)) == NUM_KEYPOINTS]
        # Annotations without a category are read by the only order that there is.
        self.only = named[0] if named and all(_keypoint_names(entry) == _keypoint_names(named[0]) for entry in named) else None
        self.several_orders = bool(named) and self.only is None

    def of(self, entry: dict) -> dict | None:
        """The category that an annotation names. If it names none, the only one in the file."""
        if entry.get("category_id") is None:
            return self._single
        return self._by_id.get(_key(entry["category_id"]))

    def that_orders(self, entry: dict) -> dict | None:
        """The category by whose names the keypoints of an annotation are ordered."""
        category = self.of(entry) if entry.get("category_id") is not None else None
        if category is None and self.several_orders:
            raise ValueError(
                f"has the category_id {reprlib.repr(entry.get('category_id'))}, and the categories order their keypoints "
                "differently"
            )
        return category if category is not None else self.only

    def order(self, category: dict) -> tuple[list[int] | None, str | None]:
        """The project's keypoint for each place of the category's, or None if the names say nothing; and their hand."""
        if id(category) not in self._read:
            names = _keypoint_names(category)
            indices, hand = read_keypoint_names(names) if names else (None, None)
            self._read[id(category)] = (None if indices == [*range(NUM_KEYPOINTS)] else indices, hand)
        return self._read[id(category)]


def _keypoint_names(category: dict) -> list[str]:
    names = category.get("keypoints")
    return [name if isinstance(name, str) else repr(name) for name in names] if isinstance(names, list) else []


def _hand(entry: dict, photographs: Mapping[str, dict], categories: _Categories, report: Report) -> dict | None:
    """The hand of an annotation; None if it is left out. Raises ValueError with what "annotation 7 ..." does wrong."""
    key = _key(entry["id"])
    image_id = entry.get("image_id")
    if _key(image_id) not in photographs:
        raise ValueError(f"has image_id {reprlib.repr(image_id)}, which is not the id of an image")
    photograph = photographs[_key(image_id)]
    keypoints = _read_keypoints(entry.get("keypoints"))
    count = len(keypoints) // 3
    if not count:
        return report.leave_out("without keypoints", key)
    own = categories.of(entry)
    if own is not None and categories.some_are_hands and is_other_thing(own.get("name")):
        return report.leave_out(f"of the category {own['name']!r}", key)
    if len(keypoints) != 3 * NUM_KEYPOINTS:
        if len(keypoints) % 3:
            raise ValueError(f"has {len(keypoints)} numbers as keypoints, expected {3 * NUM_KEYPOINTS}: x, y, v of each")
        return report.leave_out(f"with {count} keypoints, not {NUM_KEYPOINTS}", key)
    category = categories.that_orders(entry)
    order, named_hand = None, None
    if category is not None:
        names = _keypoint_names(category)
        if names and len(names) != NUM_KEYPOINTS:
            raise ValueError(f"has {NUM_KEYPOINTS} keypoints, but its category names {len(names)}; {KNOWN_NAMES}")
        try:
            order, named_hand = categories.order(category)
        except ValueError as error:
            if categories.some_are_hands and not is_hand(category.get("name")):
                name = str(category.get("name"))[:40]
                return report.leave_out(f"of the category {name!r}, whose keypoints are not a hand's", key)
            raise ValueError(f"cannot be put in order: {error}") from None
    keypoints = keypoints.reshape(NUM_KEYPOINTS, 3)
    if order is not None:
        placed = np.empty_like(keypoints)
        placed[order] = keypoints
        keypoints = placed
    nowhere = (keypoints[:, 2] > 0) & ((keypoints[:, :2] == 0).all(1) | (keypoints[:, :2] == -1).all(1))
    visibility = (keypoints[:, 2] > 0) & ~nowhere
    depths = [value for value in keypoints[:, 2] if math.isfinite(value) and value % 1 and not 0 < value < 1]
    if depths:
        raise ValueError(
            f"has {depths[0]:g} in the place of v, which is 0, 1, 2 or a confidence from 0 to 1: is it a depth? Write x, y, v"
        )
    if not visibility.any():
        return report.leave_out("without a visible keypoint (v > 0)", key)
    if not np.isfinite(keypoints[visibility]).all():
        raise ValueError("has keypoints that are not finite")
    handedness = _handedness(entry, photograph, own, category, named_hand)
    if handedness == UNKNOWN:
        return report.leave_out("of an unknown hand", key)
    return {
        **{name: value for name, value in photograph.items() if name != "stated"},
        "uv": keypoints[:, :2],
        "visibility": visibility,
        "box": _read_box(entry.get("bbox")),
        "handedness": handedness or "right",
        "handedness_is_stated": handedness is not None,
        "annotation_id": key,
        "reordered": order is not None,
        "nowhere": int(nowhere.sum()),
    }


def _handedness(entry: dict, photograph: dict, own: dict | None, category: dict | None, named_hand: str | None) -> str | None:
    """ "left", "right", `UNKNOWN`, or None if nothing says it. Raises ValueError for a contradiction."""
    try:
        said = stated_hands(entry)
        if not said:  # a file may say it once for a photograph
            said = [(f"its photograph's {name}", hand) for name, hand in stated_hands(photograph["stated"], of_photograph=True)]
    except ValueError as error:
        raise ValueError(f"has {error}") from None
    for name in (own.get("name"), own.get("supercategory")) if own is not None else ():
        if hand := hand_in(name):
            said.append((f"the category {name!r}", hand))
            break
    if named_hand and category is not None:
        said.append(("the keypoints' names", named_hand))
    known = {hand for _, hand in said} - {UNKNOWN}
    if len(known) > 1:
        both = ", ".join(f"{hand} by {field}" for field, hand in said)
        raise ValueError(f"is said to be both hands: {both}")
    return next(iter(known), None) or next((hand for _, hand in said), None)


def _read_keypoints(values: object) -> np.ndarray:
    """Keypoints as flat numbers; also nested ones, (x, y, v) or (x, y), and 42 numbers x, y, ... if they are no 14 times
    x, y, v. Coordinates where v is 0 may be anything.

    Raises ValueError for what is no list of numbers.
    """
    if values is None:
        return np.zeros(0)
    wrong = ValueError(f"has no list of numbers as keypoints, expected {3 * NUM_KEYPOINTS}: x, y, v of each")
    if not isinstance(values, list):
        raise wrong
    if len(values) == 2 * NUM_KEYPOINTS and all(map(_is_number, values)) and not set(values[2::3]) <= {0, 1, 2}:
        values = [list(point) for point in zip(values[::2], values[1::2])]
    if values and all(isinstance(point, list) and len(point) in (2, 3) for point in values):
        values = [value for point in values for value in (*point, 2)[:3]]
    values = list(values)
    for start in range(0, len(values) - 2, 3):
        if values[start + 2] is None or (_is_number(values[start + 2]) and not values[start + 2] > 0):
            values[start : start + 3] = [value if _is_number(value) else 0 for value in values[start : start + 3]]
    if not all(map(_is_number, values)):
        raise wrong
    return _to_array(values)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _to_array(values: list) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except OverflowError:  # an integer larger than any float
        return np.array([math.inf if abs(value) > 1e300 else value for value in values])


def _read_box(value: object) -> np.ndarray | None:
    """`bbox`; None for one that is not there or has no size. Raises ValueError for what is no box."""
    if value is None or value == []:
        return None
    box = _to_array(value) if isinstance(value, list) and all(map(_is_number, value)) else np.zeros(0)
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] < 0).any():
        raise ValueError(
            f"has the box {reprlib.repr(value)}: expected x, y, width, height, finite, with positive sides, or no bbox"
        )
    return box if (box[2:] > 0).all() else None


def _is_text(value: object) -> bool:
    """Whether `value` is a string that can be stored and shown: not long, and without halves of a surrogate pair."""
    return isinstance(value, str) and len(value) <= MAX_TEXT and not any("\ud800" <= letter <= "\udfff" for letter in value)


def fit_to_photographs(path: Path, hands: list[dict], sizes: Mapping[str, tuple[int, int]], report: Report) -> list[dict]:
    """The hands in pixels of their photographs, each with a box, and the report's counts of them.

    `sizes` are the photographs' (width, height). Raises ValueError naming all hands that contradict their photograph.
    """
    problems, fitted, scaled, boxes, as_corners = [], [], 0, 0, []
    for hand in hands:
        size = sizes[hand["image"]]
        try:
            was_scaled = _scale(hand, size)
            _check_place(hand, size)
            box_is_given = hand["box"] is not None
            if not box_is_given:
                hand["box"] = _box_of_keypoints(hand)
                if not (hand["box"][2:] > 0).all():
                    report.leave_out("without a box, with keypoints that span none", hand["annotation_id"])
                    continue
            check_box(hand["box"], *size)
            if box_is_given:
                as_corners.append(_check_box_holds(hand, size))
        except ValueError as error:
            problems.append(f"annotation {hand['annotation_id']}, {hand['image']}: {error}")
            continue
        scaled, boxes = scaled + was_scaled, boxes + (not box_is_given)
        fitted.append(hand)
    if problems:
        raise ValueError(f"{path}: {_listed(problems)}")
    if len(as_corners) >= MIN_CORNER_BOXES and min(as_corners) > ALL_CORNERS_ARE_SMALLER:
        raise ValueError(
            f"{path}: all of its {len(as_corners)} boxes would hold their keypoints more tightly if they were two corners: "
            "expected x, y, width, height; correct bbox"
        )
    if _seem_percent(fitted, sizes):
        raise ValueError(
            f"{path}: all keypoints lie within 100 px of the upper left corners of their photographs: they seem to be percent, "
            "expected pixels"
        )
    if not fitted:
        raise ValueError(f"{path} has no hand that can be used. Left out: {report.what_is_left_out()}")
    hand_counts = Counter(hand["handedness"] for hand in fitted)
    report.left, report.right = hand_counts["left"], hand_counts["right"]
    report.photographs = len({hand["image"] for hand in fitted})
    report.taken_as_right = sum(not hand["handedness_is_stated"] for hand in fitted)
    if boxes:
        report.notes.append(f"{boxes} have no box, so it is that of their keypoints")
    if scaled:
        report.notes.append(f"the coordinates of {scaled} are relative to the photograph's sides, and were scaled")
    return fitted


def _scale(hand: dict, size: tuple[int, int]) -> bool:
    """Put coordinates that are relative to the photograph's sides into pixels. Returns whether they were."""
    sides = np.array(size, np.float64)
    visible = hand["uv"][hand["visibility"]]
    box = hand["box"]
    small_points = np.abs(visible).max() <= MAX_RELATIVE < min(size)
    small_box = box is not None and np.abs(box).max() <= MAX_RELATIVE < min(size)
    if small_points and box is not None and not small_box:  # a box in pixels tells which they are
        small_points = _share_inside(visible * sides, box) > _share_inside(visible, box)
    if small_points:
        hand["uv"] = hand["uv"] * sides
    if small_box:
        hand["box"] = box * np.tile(sides, 2)
    return bool(small_points or small_box)


def _seem_percent(hands: list[dict], sizes: Mapping[str, tuple[int, int]]) -> bool:
    """Whether the keypoints seem to be in percent of the photographs' sides."""
    photographs = {hand["image"] for hand in hands}
    if len(photographs) < MIN_PERCENT_PHOTOGRAPHS or min(min(sizes[name]) for name in photographs) < MIN_SIDE_OF_PERCENT:
        return False
    return all((hand["uv"][hand["visibility"]] <= 100).all() for hand in hands)


def _check_place(hand: dict, size: tuple[int, int]) -> None:
    """Raise ValueError if the photograph's size or the keypoints' places are not those of this photograph."""
    stated = hand["size"]
    if stated is not None and tuple(stated) != size:
        turned = " (its EXIF orientation is applied)" if tuple(stated) == size[::-1] else ""
        raise ValueError(
            f"the photograph is {size[0]} x {size[1]} pixels{turned}, the file says {stated[0]} x {stated[1]}: the annotations "
            "must be in pixels of the photograph as it is shown"
        )
    margin = MAX_OUTSIDE * max(size)
    outside = ~((hand["uv"] >= -margin) & (hand["uv"] <= np.array(size) + margin)).all(1)  # (21,), also NaN
    if (outside & hand["visibility"]).any():
        raise ValueError(f"keypoints lie far outside the photograph of {size[0]} x {size[1]} pixels")
    visible = hand["uv"][hand["visibility"]]
    if not ((visible >= 0) & (visible <= size)).all(1).any():
        raise ValueError(f"all visible keypoints lie outside the photograph of {size[0]} x {size[1]} pixels")
    hand["uv"] = np.where(outside[:, None], 0.0, hand["uv"])  # of keypoints that are not labelled


def _share_inside(points: np.ndarray, box: np.ndarray) -> float:
    """The share of the points (N, 2) in a box with a margin."""
    margin = BOX_MARGIN * box[2:]
    return float(((points >= box[:2] - margin) & (points <= box[:2] + box[2:] + margin)).all(1).mean())


def _check_box_holds(hand: dict, size: tuple[int, int]) -> float:
    """Raise ValueError if the box does not hold the hand's own visible keypoints, or seems to be written in another way.

    Returns how many times the box is longer than the one that it would be as two corners; 0 if that would not hold them.
    """
    visible, box = hand["uv"][hand["visibility"]], hand["box"]
    share = _share_inside(visible, box)
    first, second = box[:2], box[2:]
    readings = {
        "the box's centre, width, height": np.concatenate([first - second / 2, second]),
        "two corners": np.concatenate([first, second - first]),
        "y, x, height, width": box[[1, 0, 3, 2]],
    }
    fitting = [name for name, other in readings.items() if (other[2:] > 0).all() and _share_inside(visible, other) == 1]
    hint = f" (all would, if it is {fitting[0]})" if fitting else ""
    if share < MIN_INSIDE or (share < MIN_INSIDE_OR_ELSE and fitting):
        count = round(share * len(visible))
        raise ValueError(
            f"{count} of its {len(visible)} visible keypoints lie in its box {_shown(box)}{hint}: expected x, y, width, height "
            "in pixels; correct bbox or leave it out"
        )
    corners = readings["two corners"]
    leaves = (first + second > np.array(size) * (1 + BOX_MARGIN)).any()
    times = max(second) / max(corners[2:]) if "two corners" in fitting else 0.0
    if leaves and times > CORNERS_ARE_SMALLER:
        raise ValueError(f"its box {_shown(box)} seems to be two corners: expected x, y, width, height; correct bbox")
    return times


def _shown(box: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


def fill_boxes(hands: list[dict]) -> None:
    """Give the hands without a box that of their visible keypoints."""
    for hand in hands:
        if hand["box"] is None:
            hand["box"] = _box_of_keypoints(hand)


def _box_of_keypoints(hand: dict) -> np.ndarray:
    visible = hand["uv"][hand["visibility"]]
    return np.concatenate([visible.min(0), np.ptp(visible, 0)])


def stamps(paths: list[str | os.PathLike]) -> list[tuple[str, int, int]]:
    """(path, size, mtime in ns) of files, so that a changed one is noticed."""
    return [(str(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
