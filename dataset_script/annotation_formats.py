"""Reads the files that annotation tools export, as one COCO object.

COCO files (CVAT, Roboflow, COCO-Annotator) pass as they are. Label Studio's JSON and labelme's files have single named points,
which become hands here: those of one group, of one rectangle, or all of the photograph. Points that nobody set are not labelled
(v = 0). What stands in them is checked later, with everything else.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from dataset_script.files import MAX_JSON_BYTES, FileTree, parse_json
from dataset_script.hand_words import hand_in, read_keypoint_names, split_words, stated_hands
from modeling_handunet.keypoints import NUM_KEYPOINTS

ROBOFLOW_FILE = "_annotations.coco.json"
SEVERAL_HANDS = "the points of several hands in one, which no group or rectangle tells apart"


def annotation_files(path: Path) -> list[Path]:
    """The files to read: `path` itself, or the JSON files of a folder (labelme writes one for each photograph)."""
    if not path.is_dir():
        return [path]
    if (path / ROBOFLOW_FILE).is_file():
        return [path / ROBOFLOW_FILE]
    return sorted(file for file in path.rglob("*.json") if file.is_file())


def read_annotations(path: Path) -> tuple[dict, dict[str, list[str]]]:
    """A COCO object with the lists `images` and `annotations`, and what had to be left out: reasons with names.

    Raises `ValueError` naming `path` for files of another kind, with the export to choose instead.
    """
    files = annotation_files(path)
    values = [_read_json(file) for file in files]
    if path.is_dir() and (len(values) != 1 or _is_labelme(values[0])):
        pages = [(file.relative_to(path).as_posix(), page) for file, page in zip(files, values) if _is_labelme(page)]
        if not pages:
            raise ValueError(f"{path} has no labelme files: name the COCO file itself, or a folder of labelme's JSON files")
        return _as_coco(path, [draft for name, page in pages for draft in _labelme_hands(name, page)], _labelme_images(pages))
    (value,) = values
    if _is_labelme(value):
        return _as_coco(path, _labelme_hands(path.name, value), _labelme_images([(path.name, value)]))
    if isinstance(value, list) and value and all(isinstance(task, dict) for task in value):
        if any(isinstance(task.get("annotations", task.get("completions")), list) for task in value):
            return _label_studio(path, value)
        if any("keypointlabels" in str(task)[:10_000] for task in value[:100]):
            raise ValueError(f"{path} is Label Studio's JSON-MIN, which does not say which points are one hand: export JSON")
    for key in ("images", "annotations"):
        entries = value.get(key) if isinstance(value, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(
                f"{path} is not a COCO file, Label Studio's JSON or labelme's: a COCO file must have a list of objects `{key}`"
            )
    return value, {}


def _read_json(path: Path) -> object:
    data = FileTree(path.parent).read(path.name, MAX_JSON_BYTES)
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<"):
        raise ValueError(f"{path} is XML, not JSON: export COCO Keypoints 1.0 in CVAT, or a COCO keypoint file elsewhere")
    if start.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path} is a zip: unpack it, and name the JSON file in it")
    return parse_json(data.removeprefix(b"\xef\xbb\xbf"), str(path))


@dataclass
class Draft:
    """One hand of named points."""

    name: str  # for messages
    image: str
    points: list[tuple[str, float, float]] = field(default_factory=list)  # (label, x, y) in px
    box: list[float] | None = None
    category: str = "hand"  # the label of the box
    attributes: dict = field(default_factory=dict)


def _as_coco(path: Path, drafts: list[Draft], images: list[dict]) -> tuple[dict, dict[str, list[str]]]:
    """COCO's lists of hands whose points are named."""
    labels = list(dict.fromkeys(_without_hand(label) for draft in drafts for label, _, _ in draft.points))
    if not labels:
        return {"images": images, "annotations": []}, {}
    try:
        indices, _ = read_keypoint_names(labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    index = dict(zip(labels, indices))
    annotations, left_out = [], {}
    categories = {name: number for number, name in enumerate(dict.fromkeys(draft.category for draft in drafts))}
    for draft in drafts:
        hands = {}
        for label, x, y in draft.points:
            hands.setdefault(hand_in(_hand_words(label)), []).append((index[_without_hand(label)], x, y))
        if len(hands) > 1 and None in hands and len(hands) == 2:  # "wrist" beside "left_thumb_1"
            nameless = hands.pop(None)
            next(iter(hands.values())).extend(nameless)
        for hand, points in (hands or {None: []}).items():
            name = draft.name if len(hands) < 2 else f"{draft.name} {hand or ''}".strip()
            if len({number for number, _, _ in points}) < len(points):
                left_out.setdefault(SEVERAL_HANDS, []).append(name)
                continue
            keypoints = [0.0] * (3 * NUM_KEYPOINTS)
            for number, x, y in points:
                keypoints[3 * number : 3 * number + 3] = [x, y, 2]
            annotations.append({
                **{"id": name, "image_id": draft.image, "category_id": categories[draft.category]},
                **{"keypoints": keypoints if points else None, "attributes": draft.attributes},
                **({"bbox": draft.box} if draft.box and len(hands) < 2 else {}),
                **({"handedness": hand} if hand else {}),
            })  # fmt: skip
    named = [{"id": number, "name": name} for name, number in categories.items()]
    return {"images": images, "annotations": annotations, "categories": named}, left_out


def _hand_words(label: str) -> str:
    """The words of a keypoint's name that say left or right."""
    return " ".join(word for word in split_words(label) if hand_in(word))


def _without_hand(label: str) -> str:
    words = [word for word in split_words(label) if not hand_in(word)]
    return " ".join(words) or label


# labelme: one file for each photograph; a shape has a label, points and perhaps a group_id


def _is_labelme(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def _labelme_images(pages: list[tuple[str, dict]]) -> list[dict]:
    return [
        {
            **{"id": name, "file_name": page["imagePath"], "width": page.get("imageWidth"), "height": page.get("imageHeight")},
            "handedness": _flagged_hand(page.get("flags")),
        }
        for name, page in pages
    ]


def _flagged_hand(flags: object) -> str | None:
    """The hand that the flags of a whole photograph name; None if they name none or both, as for two hands."""
    flags = flags.items() if isinstance(flags, dict) else ()
    hands = {hand for _, hand in stated_hands({name: flag for name, flag in flags if type(flag) is bool and hand_in(name)})}
    return hands.pop() if len(hands) == 1 else None


def _labelme_hands(name: str, page: dict) -> list[Draft]:
    groups: dict[object, Draft] = {}
    for shape in page["shapes"]:
        points = shape.get("points") if isinstance(shape, dict) else None
        if not (isinstance(points, list) and all(map(_is_pair, points)) and isinstance(shape.get("label"), str)):
            continue
        group = shape.get("group_id")
        key = group if isinstance(group, (int, float, str)) else None  # 1.0 is 1
        draft = groups.setdefault(key, Draft(name if key is None else f"{name} group {key}", name))
        draft.attributes |= shape["flags"] if isinstance(shape.get("flags"), dict) else {}
        if shape.get("shape_type") == "point" and len(points) == 1:
            draft.points.append((shape["label"], *points[0]))
        elif shape.get("shape_type") == "rectangle" and len(points) == 2:
            (left, top), (right, bottom) = map(min, *points), map(max, *points)
            draft.box, draft.category = [left, top, right - left, bottom - top], shape["label"]
    return [draft for draft in groups.values() if draft.points or draft.box]


def _is_pair(point: object) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(type(value) in (int, float) for value in point)


# Label Studio: a list of tasks; places are in percent of the photograph's sides


def _label_studio(path: Path, tasks: list[dict]) -> tuple[dict, dict[str, list[str]]]:
    images, drafts, unfinished, turned = [], [], [], []
    for number, task in enumerate(tasks):
        name = f"task {task.get('id', number)}"
        answers = task.get("annotations", task.get("completions"))
        answers = [answer for answer in answers if isinstance(answer, dict)] if isinstance(answers, list) else []
        answers = [answer for answer in answers if isinstance(answer.get("result"), list) and not answer.get("was_cancelled")]
        if not answers:
            unfinished.append(name)
            continue
        regions = [region for region in answers[-1]["result"] if isinstance(region, dict)]
        if any(region.get("image_rotation") for region in regions):
            turned.append(name)
            continue
        size = next(((r["original_width"], r["original_height"]) for r in regions if _has_size(r)), (None, None))
        images.append({"id": name, "file_name": _task_file(task), "width": size[0], "height": size[1]})
        drafts += _task_hands(name, regions)
    coco, left_out = _as_coco(path, drafts, images)
    left_out |= {"no annotation that was submitted": unfinished} if unfinished else {}
    left_out |= {"photographs that were turned in Label Studio": turned} if turned else {}
    return coco, left_out


def _has_size(region: dict) -> bool:
    return all(_is_coordinate(region.get(name)) and region[name] > 0 for name in ("original_width", "original_height"))


def _is_coordinate(value: object) -> bool:
    """Whether a value is a number that can be multiplied: not one of 400 digits, not NaN."""
    return type(value) in (int, float) and abs(value) < 1e9


def _task_file(task: dict) -> str | None:
    data = task.get("data") if isinstance(task.get("data"), dict) else {}
    texts = [data.get("image"), data.get("img"), *data.values(), task.get("file_upload")]
    texts = [text for text in texts if isinstance(text, str)]
    return next((text for text in texts if re.search(r"\.\w{2,5}($|\?)", text)), texts[0] if texts else None)


def _task_hands(name: str, regions: list[dict]) -> list[Draft]:
    boxes: dict[object, Draft] = {}
    loose = Draft(name, name)
    points = []
    for region in regions:
        value = region.get("value") if isinstance(region.get("value"), dict) else {}
        numbers = [value.get(key) for key in ("x", "y", "width", "height")]
        if not _has_size(region) or not all(map(_is_coordinate, numbers[:2])):
            continue
        sides = (region["original_width"] / 100, region["original_height"] / 100)
        if (label := _label_of(value, "rectanglelabels")) and all(map(_is_coordinate, numbers)):
            box = _upright([number * sides[axis % 2] for axis, number in enumerate(numbers)], value.get("rotation"))
            boxes[str(region.get("id"))] = Draft(f"{name} box {len(boxes) + 1}", name, box=box, category=label)
        elif label := _label_of(value, "keypointlabels"):
            points.append((region.get("parentID"), (label, numbers[0] * sides[0], numbers[1] * sides[1])))
    for region in regions:  # a choice for one region has its id, one for the whole photograph has an id of its own
        value = region.get("value") if isinstance(region.get("value"), dict) else {}
        if choice := _label_of(value, "choices"):
            for draft in [boxes[str(region.get("id"))]] if str(region.get("id")) in boxes else [*boxes.values(), loose]:
                draft.attributes[str(region.get("from_name"))] = choice
                if hand_in(choice):
                    draft.attributes["label"] = choice
    for parent, point in points:
        around = [draft for draft in boxes.values() if _is_inside(point, draft.box)]
        (boxes.get(str(parent)) or (around[0] if len(around) == 1 else loose)).points.append(point)
    return [*boxes.values(), *([loose] if loose.points else [])]


def _upright(box: list[float], degrees: object) -> list[float]:
    """The upright box round one that is turned clockwise round its upper left corner."""
    if not _is_coordinate(degrees) or not degrees:
        return box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    xs = [x * cos - y * sin for x in (0, box[2]) for y in (0, box[3])]
    ys = [x * sin + y * cos for x in (0, box[2]) for y in (0, box[3])]
    return [box[0] + min(xs), box[1] + min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _label_of(value: dict, kind: str) -> str | None:
    labels = value.get(kind)
    return labels[0] if isinstance(labels, list) and labels and isinstance(labels[0], str) else None


def _is_inside(point: tuple[str, float, float], box: list[float]) -> bool:
    return box[0] <= point[1] <= box[0] + box[2] and box[1] <= point[2] <= box[1] + box[3]
