"""Your own photographs with a COCO keypoint file, as a `datasets` builder: to fine-tune on and to score on.

    from dataset_script import CocoHands
    hands = CocoHands("annotations.json", "images").build()["train"]
    hands[0]      # image, uv (21, 2) px, visibility (21,), box, handedness, image_id, annotation_id, source

The file is COCO's keypoint format (https://cocodataset.org/#format-data): `images` with `id` and `file_name`,
`annotations` with `id`, `image_id`, 21 `keypoints` as x, y, v and optionally `bbox` (x, y, width, height) and
`handedness` ("right", the default, or "left"). Coordinates are in pixels of the photograph as viewers show it, so turned
upright by its EXIF orientation.
"""

import hashlib
import math
import os
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import datasets
import numpy as np
from datasets.builder import Key

from dataset_script.builder import HandRowsBuilder
from dataset_script.files import MAX_JSON_BYTES, FileTree, UnreadableImages, digest, image_size, parse_json, shorten
from modeling_handunet.crops import check_box
from modeling_handunet.keypoints import KEYPOINT_NAMES, NUM_KEYPOINTS

HANDS_PER_SHARD = 500
HANDEDNESS = ("right", "left")
MAX_OUTSIDE = 1.0  # how far outside the photograph a keypoint may lie, relative to the longer side
MAX_TEXT = 4096  # characters of an id, a file name or a source


@dataclass
class CocoHandsConfig(datasets.BuilderConfig):
    """Options of [`CocoHands`]. Every field changes the rows and is part of the cache's key."""

    annotations: str = ""
    images: str = ""
    split: str = "train"
    validation_share: float = 0.0
    max_unreadable_share: float = 0.001
    source_digest: str = ""


class CocoHands(HandRowsBuilder):
    """A COCO keypoint file, one row for each annotated hand.

    `CocoHands(annotations, images, split="train", validation_share=0.0, max_unreadable_share=0.001, cache_dir=None)`

    `annotations` is the JSON file, `images` the folder that its `file_name`s are in. All hands are in the split `split`.
    With `validation_share`, this share of the photographs (chosen by the hash of their names) is in "validation" instead;
    hands of one photograph stay together. Frames of one video look alike: put them in separate files for separate splits.

    Rows: `image`, the whole photograph (its path is stored, not a copy); `uv` (21, 2) float32, x then y in its pixels;
    `visibility` (21,) bool, v > 0; `box` (4,) float32 as x, y, width, height, which is `bbox` or the box of the visible
    keypoints; `handedness`; `image_id`; `annotation_id`; `source`, the image's `source` or "".

    Every photograph is decoded once while building. Up to `max_unreadable_share` of them may be unreadable: a warning names
    them, and their hands are left out.

    Raises `FileNotFoundError` for missing files, and `ValueError` for annotations that are incomplete, malformed or
    duplicated, or do not fit their photograph. The errors name the file and the annotations.
    """

    VERSION = datasets.Version("1.1.0")  # 1.1.0: held out by the hash of the path below the folder
    BUILDER_CONFIG_CLASS = CocoHandsConfig
    BUILDER_CONFIGS: ClassVar = [CocoHandsConfig(name="default", version=VERSION)]

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        split: str = "train",
        *,
        validation_share: float = 0.0,
        max_unreadable_share: float = 0.001,
        cache_dir: str | os.PathLike | None = None,
        **kwargs,
    ):
        annotations, images = (Path(path).expanduser().resolve() for path in (annotations, images))
        if not annotations.is_file():
            raise FileNotFoundError(f"{annotations} does not exist: annotations must be a COCO file")
        if not images.is_dir():
            raise FileNotFoundError(f"{images} is not a folder: images must be the folder of the photographs")
        if not 0.0 <= validation_share < 1.0:
            raise ValueError(f"validation_share must be at least 0 and below 1, got {validation_share}")
        if validation_share and split == "validation":
            raise ValueError('validation_share makes a split "validation": choose another name for split')
        file = FileTree(annotations.parent)
        super().__init__(
            cache_dir=cache_dir,
            annotations=str(annotations),
            images=str(images),
            split=split,
            validation_share=validation_share,
            max_unreadable_share=max_unreadable_share,
            source_digest=digest(file.stamp(annotations.name), FileTree(images).stamp("")),
            **kwargs,
        )

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            features=datasets.Features(
                {
                    "image": datasets.Image(),
                    "uv": datasets.Array2D((NUM_KEYPOINTS, 2), "float32"),
                    "visibility": datasets.List(datasets.Value("bool"), length=NUM_KEYPOINTS),
                    "box": datasets.List(datasets.Value("float32"), length=4),
                    "handedness": datasets.Value("string"),
                    "image_id": datasets.Value("string"),
                    "annotation_id": datasets.Value("string"),
                    "source": datasets.Value("string"),
                }
            )
        )

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        self._forget_earlier_splits()
        path = Path(self.config.annotations)
        hands = read_coco_hands(path, Path(self.config.images))
        names = {hand["image"] for hand in hands}
        held_out = _hold_out(names, Path(self.config.images), self.config.validation_share)
        splits = {self.config.split: names - held_out, "validation": held_out}
        generators = []
        for split, members in splits.items():
            rows = [hand for hand in hands if hand["image"] in members]
            shards = [rows[start : start + HANDS_PER_SHARD] for start in range(0, len(rows), HANDS_PER_SHARD)]
            if shards:
                generators.append(datasets.SplitGenerator(split, gen_kwargs={"shards": shards}))
        return generators

    def _generate_examples(self, shards: list[list[dict]]) -> Iterator[tuple[Key, dict]]:
        photographs = {hand["image"] for hands in shards for hand in hands}
        self.unreadable = unreadable = UnreadableImages(len(photographs), self.config.max_unreadable_share)
        sizes: dict[str, tuple[int, int] | None] = {}
        for shard, hands in enumerate(shards):
            for index, hand in enumerate(hands):
                path = hand["image"]
                if path not in sizes:
                    try:
                        sizes[path] = image_size(path)
                    except ValueError as error:
                        sizes[path] = None
                        unreadable.add(path, error)
                if sizes[path] is not None:
                    _check_fits(self.config.annotations, hand, sizes[path])
                    row = {name: hand[name] for name in self.info.features}
                    row["uv"], row["box"] = row["uv"].astype(np.float32), row["box"].astype(np.float32)
                    yield Key(shard, index), row


def _hold_out(photographs: set[str], folder: Path, share: float) -> set[str]:
    """`share` of the photographs (at least one if the share is not 0): those whose names in `folder` have the lowest hashes."""

    def place(photograph: str) -> tuple[bytes, str]:
        name = Path(photograph).relative_to(folder).as_posix()
        return hashlib.sha256(name.encode()).digest(), name

    return set(sorted(photographs, key=place)[: max(1, round(share * len(photographs)))] if share else [])


def read_coco_hands(path: Path, images: Path) -> list[dict]:
    """The hands of a COCO keypoint file: rows of [`CocoHands`] with `image` a path, and `size` as the file states it.

    Raises ValueError or FileNotFoundError, naming `path` and the images or annotations, for every mistake that can be found
    without opening the photographs.
    """
    coco = parse_json(FileTree(path.parent).read(path.name, MAX_JSON_BYTES), str(path))
    for key in ("images", "annotations"):
        entries = coco.get(key) if isinstance(coco, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path} is not a COCO file: it must have a list of objects `{key}`")
    if not coco["annotations"]:
        raise ValueError(f"{path} has no annotations")
    _check_names(path, coco.get("categories"))
    _check_ids(path, "image", coco["images"])
    _check_ids(path, "annotation", coco["annotations"])
    photographs = {entry["id"]: _photograph(path, entry, images) for entry in coco["images"]}
    hands = [_hand(path, entry, photographs) for entry in coco["annotations"]]
    missing = sorted({hand["image"] for hand in hands if not os.path.isfile(hand["image"])})
    if missing:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len({hand['image'] for hand in hands})} annotated images are missing "
            f"({shorten(missing, 3)}): is {images} the folder that the file names are in?"
        )
    return hands


def _check_names(path: Path, categories: object) -> None:
    """Refuse keypoints in another order than the project's, if the file gives them the project's names."""
    for category in categories if isinstance(categories, list) else []:
        names = category.get("keypoints") if isinstance(category, dict) else None
        known = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if known and set(names) == set(KEYPOINT_NAMES) and names != [*KEYPOINT_NAMES]:
            raise ValueError(f"{path} has its keypoints in another order than {', '.join(KEYPOINT_NAMES)}: reorder them")


def _check_ids(path: Path, what: str, entries: list[dict]) -> None:
    seen = set()
    for index, entry in enumerate(entries):
        key = entry.get("id")
        if not isinstance(key, int) and not _is_text(key):
            raise ValueError(f"{path}: {what} number {index} has no `id` that is a number or a short text")
        if key in seen:
            raise ValueError(f"{path}: {what} id {key} appears twice")
        seen.add(key)


def _photograph(path: Path, entry: dict, images: Path) -> dict:
    name = entry.get("file_name")
    if not name or not _is_text(name) or "\0" in name:
        raise ValueError(f"{path}: image {entry['id']} has no `file_name`, but {reprlib.repr(name)}")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts:
        raise ValueError(f"{path}: image {entry['id']} has the file name {name!r}, which is not inside {images}")
    size = entry.get("width"), entry.get("height")
    if not all(side is None or type(side) in (int, float) for side in size):
        raise ValueError(f"{path}: image {entry['id']} has the width and height {reprlib.repr(size)}, expected numbers")
    source = "" if entry.get("source") is None else entry["source"]
    if not _is_text(source):
        raise ValueError(f"{path}: image {entry['id']} has the source {reprlib.repr(source)}, expected a short text")
    return {
        "image": str(images / name),
        "size": size if None not in size else None,
        "source": source,
        "image_id": str(entry["id"]),
    }


def _hand(path: Path, entry: dict, photographs: dict) -> dict:
    where = f"{path}: annotation {entry['id']}"
    key = entry.get("image_id")
    if not isinstance(key, (int, str)) or key not in photographs:
        raise ValueError(f"{where} has image_id {reprlib.repr(key)}, which is not the id of an image")
    keypoints = _numbers(entry.get("keypoints"))
    if keypoints is None or len(keypoints) != 3 * NUM_KEYPOINTS:
        count = f"{len(keypoints)}" if keypoints is not None else "no list of"
        raise ValueError(f"{where} has {count} numbers as keypoints, expected {3 * NUM_KEYPOINTS}: x, y, v of each")
    keypoints = keypoints.reshape(NUM_KEYPOINTS, 3)
    if not np.isfinite(keypoints).all():
        raise ValueError(f"{where} has keypoints that are not finite")
    visibility = keypoints[:, 2] > 0
    if not visibility.any():
        raise ValueError(f"{where} has no visible keypoint (v > 0): remove it")
    if entry.get("bbox") is None:
        low, high = keypoints[visibility, :2].min(0), keypoints[visibility, :2].max(0)
        box = np.concatenate([low, high - low])
    else:
        box = _numbers(entry["bbox"])
    if box is None or box.shape != (4,) or not np.isfinite(box).all() or not (box[2:] > 0).all():
        raise ValueError(
            f"{where} has the box {reprlib.repr(entry.get('bbox'))}: expected x, y, width, height, finite, with positive sides"
            + ("" if entry.get("bbox") is not None else " (or keypoints that span one)")
        )
    handedness = entry.get("handedness", "right")
    if handedness not in HANDEDNESS:
        raise ValueError(f"{where} has handedness {reprlib.repr(handedness)}, expected 'right' or 'left'")
    return {
        **photographs[key],
        "uv": keypoints[:, :2],
        "visibility": visibility,
        "box": box,
        "handedness": handedness,
        "annotation_id": str(entry["id"]),
    }


def _is_text(value: object) -> bool:
    """Whether `value` is a string that can be stored and shown: not long, and without halves of a surrogate pair."""
    return isinstance(value, str) and len(value) <= MAX_TEXT and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _numbers(values: object) -> np.ndarray | None:
    """A flat list of numbers as an array; None for anything else."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return None
    try:
        return np.asarray(values, np.float64)
    except OverflowError:  # an integer larger than any float
        return np.full(len(values), math.inf)


def _check_fits(annotations: str, hand: dict, size: tuple[int, int]) -> None:
    """Raise ValueError if the photograph's size, the box and the keypoints do not fit together."""
    where = f"{annotations}: annotation {hand['annotation_id']}"
    stated = hand["size"]
    if stated is not None and tuple(stated) != size:
        turned = " (its EXIF orientation is applied)" if tuple(stated) == size[::-1] else ""
        raise ValueError(
            f"{where}: {hand['image']} is {size[0]} x {size[1]} pixels{turned}, the file says "
            f"{stated[0]} x {stated[1]}: the annotations must be in pixels of the photograph as it is shown"
        )
    margin = MAX_OUTSIDE * max(size)
    if (hand["uv"] < -margin).any() or (hand["uv"] > np.array(size) + margin).any():
        raise ValueError(f"{where} has keypoints far outside {hand['image']}, {size[0]} x {size[1]} pixels")
    try:
        check_box(hand["box"], *size)
    except ValueError as error:
        raise ValueError(f"{where}, {hand['image']}: {error}") from None
