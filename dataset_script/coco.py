"""Your own photographs with a COCO keypoint file, as a `datasets` builder: to fine-tune on and to score on.

    from dataset_script import CocoHands
    hands = CocoHands("annotations.json", "images").build()["train"]
    hands[0]      # image, uv (21, 2) px, visibility (21,), box, handedness, image_id, annotation_id, source

The file is COCO's keypoint format (https://cocodataset.org/#format-data): `images` with `id` and `file_name`,
`annotations` with `id`, `image_id`, 21 `keypoints` as x, y, v and optionally `bbox` (x, y, width, height) and
`handedness` ("right", the default, or "left"). Coordinates are in pixels of the photograph as viewers show it, so turned
upright by its EXIF orientation. What annotation tools export is read too: docs/own_data.md.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import datasets
import numpy as np
from datasets.builder import Key

from dataset_script.annotation_formats import annotation_files
from dataset_script.builder import HandRowsBuilder
from dataset_script.files import UnreadableImages, digest, image_size
from dataset_script.hand_annotations import Report, fit_to_photographs, read_hands, stamps
from dataset_script.photograph_folder import default_folder
from modeling_handunet.keypoints import NUM_KEYPOINTS

HANDS_PER_SHARD = 500
REPORT_FILE = "report.json"


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

    `CocoHands(annotations, images=None, split="train", validation_share=0.0, max_unreadable_share=0.001, cache_dir=None)`

    `annotations` is the JSON file (or a folder of labelme's files), `images` the folder of the photographs: without it, the one
    where the annotation tools put them. All hands are in the split `split`.
    With `validation_share`, this share of the photographs (chosen by the hash of their names) is in "validation" instead;
    hands of one photograph stay together. Frames of one video look alike: put them in separate files for separate splits.

    Rows: `image`, the whole photograph (its path is stored, not a copy); `uv` (21, 2) float32, x then y in its pixels;
    `visibility` (21,) bool, v > 0; `box` (4,) float32 as x, y, width, height, which is `bbox` or the box of the visible
    keypoints; `handedness`; `image_id`; `annotation_id`; `source`, the image's `source` or "".

    Every photograph is decoded once while building. Up to `max_unreadable_share` of them may be unreadable: a warning names
    them, and their hands are left out. [`report`] tells what was used and what was left out.

    The cache's key covers the options, and the path, size and time of the annotations and of every photograph: rows and
    crops are made anew when one of them changed.

    Raises `FileNotFoundError` for missing files, and `ValueError` for annotations that are malformed or duplicated,
    contradict themselves, or do not fit their photograph. The errors name the file and all such annotations.
    """

    VERSION = datasets.Version("1.3.0")  # 1.3.0: other tools' exports; the keypoints' names give their order
    BUILDER_CONFIG_CLASS = CocoHandsConfig
    BUILDER_CONFIGS: ClassVar = [CocoHandsConfig(name="default", version=VERSION)]

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike | None = None,
        split: str = "train",
        *,
        validation_share: float = 0.0,
        max_unreadable_share: float = 0.001,
        cache_dir: str | os.PathLike | None = None,
        **kwargs,
    ):
        annotations = Path(annotations).expanduser().resolve()
        if not annotations.exists():
            raise FileNotFoundError(f"{annotations} does not exist: annotations must be a COCO file")
        images = default_folder(annotations) if images is None else Path(images).expanduser().resolve()
        if not images.is_dir():
            raise FileNotFoundError(f"{images} is not a folder: images must be the folder of the photographs")
        if not 0.0 <= validation_share < 1.0:
            raise ValueError(f"validation_share must be at least 0 and below 1, got {validation_share}")
        if validation_share and split == "validation":
            raise ValueError('validation_share makes a split "validation": choose another name for split')
        # Read here already: the photographs that it names are part of the cache's key.
        self._hands, self._report = read_hands(annotations, images)
        photographs = sorted({hand["image"] for hand in self._hands})
        super().__init__(
            cache_dir=cache_dir,
            annotations=str(annotations),
            images=str(images),
            split=split,
            validation_share=validation_share,
            max_unreadable_share=max_unreadable_share,
            source_digest=digest(stamps(annotation_files(annotations)), stamps(photographs)),
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

    def report(self) -> Report:
        """What was used and what was left out, when the rows were built. They may have been built by an earlier run."""
        return Report(**json.loads((Path(self.cache_dir) / REPORT_FILE).read_text()))

    def left_out(self) -> dict[str, str]:
        return self.report().unreadable

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        self._forget_earlier_splits()
        path, folder = Path(self.config.annotations), Path(self.config.images)
        hands, report = (self._hands, self._report) if self._hands else read_hands(path, folder)
        self._hands = self._report = None  # so that processes that write rows do not get a copy each
        hands = self._fitted(path, hands, report)
        (Path(self._output_dir) / REPORT_FILE).write_text(json.dumps(asdict(report)))
        names = {hand["image"] for hand in hands}
        held_out = _hold_out(names, folder, self.config.validation_share)
        splits = {self.config.split: names - held_out, "validation": held_out}
        generators = []
        for split, members in splits.items():
            rows = [hand for hand in hands if hand["image"] in members]
            shards = [rows[start : start + HANDS_PER_SHARD] for start in range(0, len(rows), HANDS_PER_SHARD)]
            if shards:
                generators.append(datasets.SplitGenerator(split, gen_kwargs={"shards": shards}))
        return generators

    def _fitted(self, path: Path, hands: list[dict], report: Report) -> list[dict]:
        """The hands whose photographs can be read, in pixels of these."""
        photographs = list(dict.fromkeys(hand["image"] for hand in hands))
        unreadable = UnreadableImages(len(photographs), self.config.max_unreadable_share)
        sizes = {}
        for photograph in photographs:
            try:
                sizes[photograph] = image_size(photograph)
            except ValueError as error:
                unreadable.add(photograph, error)
        report.unreadable = unreadable.reasons
        for hand in hands:
            if hand["image"] not in sizes:
                report.leave_out("in photographs that cannot be read", hand["annotation_id"])
        return fit_to_photographs(path, [hand for hand in hands if hand["image"] in sizes], sizes, report)

    def _generate_examples(self, shards: list[list[dict]]) -> Iterator[tuple[Key, dict]]:
        for shard, hands in enumerate(shards):
            for index, hand in enumerate(hands):
                row = {name: hand[name] for name in self.info.features}
                row["uv"], row["box"] = row["uv"].astype(np.float32), row["box"].astype(np.float32)
                yield Key(shard, index), row


def _hold_out(photographs: set[str], folder: Path, share: float) -> set[str]:
    """`share` of the photographs (at least one if the share is not 0): those whose names in `folder` have the lowest hashes."""

    def place(photograph: str) -> tuple[bytes, str]:
        name = Path(photograph).relative_to(folder).as_posix()
        return hashlib.sha256(name.encode()).digest(), name

    return set(sorted(photographs, key=place)[: max(1, round(share * len(photographs)))] if share else [])
