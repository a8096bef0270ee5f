"""Photographs of real hands that a teacher labelled: small squares, one hand in the middle of each.

    from dataset_script.photographs import Photographs
    hands = Photographs("photographs", "train")          # annotations.json and images/
    numbers = hands.sample(sample_keys(seed, torch.arange(32)))
    hands.rows(numbers)                                  # image (32, 3, 224, 224) uint8, keypoints (32, 21, 2) px, ...

`annotations.json` is a COCO keypoint file as `CocoHands` reads it.  Its images are squares of 224 px in `images/`, of
which the hand's box fills 0.3, so that augmentation can turn and move the hand without reaching the edge.  An image also
has `source` (who took it), `split` ("train" or "validation"; whole sources are one or the other) and `picture` (images cut
from one picture share it).  An annotation can have `disagreement`: how far several looks of the teacher were from their
median, over the hand's box; and `label`: "annotated" for a hand that a person labelled, not a teacher.
"""

import copy
import math
import os
import reprlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset_script import counter_rng
from dataset_script.caches import open_arrays, worker_count, write_arrays, written_once
from dataset_script.files import IMAGE_ERRORS, MAX_JSON_BYTES, FileTree, digest, parse_json
from dataset_script.hand_annotations import fill_boxes, read_hands, stamps
from modeling_handunet.images import load_image

PARTS = ("train", "validation")
SIDE = 224  # px of a square
MAX_DISAGREEMENT = 0.03  # of the teacher's looks, of the hand's box: others are not trained on, unless asked for
FILL = 0.3  # longer side of the hand's box, of the square
# Raise when the same files make other rows, so that caches on disk are made anew.
VERSION = 1
BATCH = 64


class Photographs:
    """The hands of one part of a folder, all as right hands, in memory or in a memory map.

    The squares take 150 kB a hand: of memory, or of the disk where `cache_dir` is given.  Hands with a larger
    `disagreement` than `max_disagreement` are left out.

    As a dataset, item i is the row that `HandCrops` reads, with the photograph as it was taken, so that
    `HandCrops(Photographs(folder, "validation"))` gives crops as the image processor cuts them.  `sources[i]` is the
    source of hand i, `pictures[i]` the picture it was cut from.

    Raises `FileNotFoundError` for missing files and `ValueError` for annotations or images that are not as described
    above, naming them.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        part: str = "train",
        *,
        max_disagreement: float = MAX_DISAGREEMENT,
        most_per_source: int = 400,
        cache_dir: str | os.PathLike | None = None,
    ):
        if part not in PARTS:
            raise ValueError(f"part is {part!r}; choose {' or '.join(PARTS)}")
        self.folder, self.part = Path(folder), part
        tree = FileTree(self.folder)
        hands = read_photographs(self.folder)
        pictures = sorted({hand["image"] for hand in hands})
        stamp = [entry[1:] for entry in (*tree.stamp("annotations.json"), *stamps(pictures))]
        self.fingerprint = digest(VERSION, stamp, part, max_disagreement)
        self.hands = [hand for hand in hands if hand["split"] == part and hand["disagreement"] <= max_disagreement]
        if not self.hands:
            raise ValueError(
                f"{self.folder} has no hand of the split {part!r} with a disagreement of at most {max_disagreement}"
            )
        self.sources = [hand["source"] for hand in self.hands]
        self.pictures = [hand["picture"] for hand in self.hands]
        self.weights = torch.from_numpy(sampling_weights(self.sources, self.pictures, most_per_source))  # (N,)
        self._ends = self.weights.cumsum(0)
        keypoints = np.stack([hand["uv"] for hand in self.hands])
        visibility = np.stack([hand["visibility"] for hand in self.hands])
        seen = np.where(visibility[..., None], keypoints, np.nan)
        middle = (np.nanmin(seen, 1, keepdims=True) + np.nanmax(seen, 1, keepdims=True)) / 2
        keypoints = np.where(visibility[..., None], keypoints, middle)  # so that the others alone span the hand's box
        left = np.array([hand["handedness"] == "left" for hand in self.hands])
        keypoints[left, :, 0] = SIDE - keypoints[left, :, 0]
        self.keypoints = torch.from_numpy(keypoints.astype(np.float32))  # (N, 21, 2) px of the squares
        self.visibility = torch.from_numpy(visibility)  # (N, 21)
        self._images: Tensor | None = None
        self.cache: Path | None = None
        if cache_dir is not None:
            self.cache = written_once(Path(cache_dir), f"photographs-{self.fingerprint}", self._write)
        else:
            with ThreadPoolExecutor(max(worker_count(), 1)) as threads:
                squares = list(threads.map(self._read, range(len(self))))
            self._images = torch.from_numpy(np.stack(squares))

    def __getstate__(self) -> dict:
        return self.__dict__ if self.cache is None else {**self.__dict__, "_images": None}

    def __len__(self) -> int:
        return len(self.hands)

    def __getitem__(self, index: int) -> dict:
        """The hand as it was taken, left or right: `image` (PIL), `uv` (21, 2), `visibility`, `box`, `handedness`, `source`."""
        hand = self.hands[index]
        pixels = self.images[index].cpu().numpy().transpose(1, 2, 0)
        pixels = pixels[:, ::-1] if hand["handedness"] == "left" else pixels
        names = ("uv", "visibility", "box", "handedness", "source")
        return {"image": Image.fromarray(np.ascontiguousarray(pixels)), **{name: hand[name] for name in names}}

    @property
    def images(self) -> Tensor:
        """All squares (N, 3, 224, 224) uint8, of right hands."""
        if self._images is None:
            # Copy on write: torch warns of arrays that cannot be written.
            self._images = torch.from_numpy(open_arrays(self.cache, ("image",), "c")["image"])
        return self._images

    def rows(self, numbers: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """The rows `numbers` (B,), as right hands, on the device where the photographs are.

        `image` (B, 3, 224, 224) uint8; `keypoints` (B, 21, 2) float32, x then y in pixels of the squares; `visibility`
        (B, 21) bool.
        """
        numbers = torch.as_tensor(numbers, device=self.keypoints.device)
        return {
            "image": self.images[numbers],
            "keypoints": self.keypoints[numbers],
            "visibility": self.visibility[numbers],
        }

    def sample(self, keys: Tensor, purpose: str = "photograph") -> Tensor:
        """Rows (B,) drawn by `weights`, each a function of its key of `keys` (B, 2) and of `purpose` alone."""
        return self.draw(counter_rng.uniform(keys, purpose))

    def draw(self, numbers: Tensor) -> Tensor:
        """Rows (B,) by `weights`, from `numbers` (B,) that are uniform in [0, 1)."""
        return torch.searchsorted(self._ends, numbers.double() * self._ends[-1], right=True).clamp(max=len(self) - 1)

    def to(self, device: str | torch.device) -> "Photographs":
        """The same photographs in the memory of a device."""
        moved = copy.copy(self)
        moved.cache, moved._images = None, self.images.to(device)
        for name in ("keypoints", "visibility", "weights", "_ends"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def _write(self, folder: Path) -> None:
        shapes = {"image": ((len(self), 3, SIDE, SIDE), np.uint8)}
        write_arrays(folder, shapes, self._squares, BATCH)

    def _squares(self, numbers: range) -> dict[str, np.ndarray]:
        return {"image": np.stack([self._read(number) for number in numbers])}

    def _read(self, index: int) -> np.ndarray:
        """The square (3, 224, 224) of a hand, mirrored where it is a left one."""
        hand = self.hands[index]
        try:
            image = load_image(hand["image"])
        except (*IMAGE_ERRORS, ValueError) as error:
            raise ValueError(f"{hand['image']} cannot be read ({error}): copy it again") from error
        if image.size != (SIDE, SIDE):
            raise ValueError(f"{hand['image']} is {image.width} x {image.height} pixels, expected {SIDE} x {SIDE}")
        pixels = np.asarray(image)
        return (pixels[:, ::-1] if hand["handedness"] == "left" else pixels).transpose(2, 0, 1)


def read_photographs(folder: Path) -> list[dict]:
    """The hands of a folder, checked: `read_hands`'s fields, `split`, `picture`, `disagreement` and `by_eye`."""
    path = folder / "annotations.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no annotations.json: name the folder of the labelled photographs")
    hands, report = read_hands(path, folder / "images")
    if report.left_out:
        raise ValueError(f"{path} has annotations that cannot be used: {report.what_is_left_out()}")
    fill_boxes(hands)
    coco = parse_json(FileTree(folder).read(path.name, MAX_JSON_BYTES), str(path))
    images = {entry["id"]: entry for entry in coco["images"]}
    annotations = {str(entry["id"]): entry for entry in coco["annotations"]}
    for hand in hands:
        entry = annotations[hand["annotation_id"]]
        image = images[entry["image_id"]]
        split, disagreement = image.get("split"), entry.get("disagreement", 0.0)
        if split not in PARTS:
            raise ValueError(
                f"{path}: image {image['id']} has the split {reprlib.repr(split)}, expected {' or '.join(PARTS)}"
            )
        if type(disagreement) not in (int, float) or not math.isfinite(disagreement):
            raise ValueError(
                f"{path}: annotation {entry['id']} has the disagreement {reprlib.repr(disagreement)}, expected a number"
            )
        hand |= {"split": split, "disagreement": disagreement, "picture": str(image.get("picture", image["file_name"]))}
        hand["by_eye"] = entry.get("label") == "annotated"
    return hands


def sampling_weights(sources: Sequence[str], pictures: Sequence[str], most_per_source: int) -> np.ndarray:
    """How often each hand is drawn, relative to the others, float64.

    The hands of one picture share the weight of one hand.  A source with more than `most_per_source` pictures has the
    weight of so many: its frames are alike.
    """
    of_picture = Counter(zip(sources, pictures))
    pictures_of = Counter(source for source, _ in of_picture)
    return np.array([
        min(1.0, most_per_source / pictures_of[source]) / of_picture[source, picture]
        for source, picture in zip(sources, pictures)
    ])  # fmt: skip


@dataclass(frozen=True)
class SourceTerms:
    """One source of the photographs, for the card of weights that were trained on it."""

    source: str
    license: str | None  # as the source states it; None where no list of sources names it
    train: int  # hands
    validation: int
    by_eye: int  # hands of `train` that a person labelled


def read_licenses(folder: str | os.PathLike) -> dict[str, str]:
    """The licence of each source ("owner+name") that the table of SOURCES.md states, in `folder` or beside it.

    The table's first column names the source ("github:owner/name @ commit"), the second its licence.
    """
    folder, licenses = Path(folder), {}
    for path in (folder.parent / "SOURCES.md", folder / "SOURCES.md"):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for cells in (line.split("|") for line in lines if line.startswith("|") and line.count("|") > 2):
            name = cells[1].split("@")[0].strip().removeprefix("github:")
            licenses[name.replace("/", "+").replace(":", "+")] = cells[2].strip()
    return licenses


def read_terms(folder: str | os.PathLike, max_disagreement: float = math.inf) -> list[SourceTerms]:
    """The sources of a folder with their licences and numbers of hands, in the order of their names.

    Licences are those of [`read_licenses`].  Hands with a larger `disagreement` do not count.
    """
    folder = Path(folder)
    licenses = read_licenses(folder)
    used = [hand for hand in read_photographs(folder) if hand["disagreement"] <= max_disagreement]
    hands = Counter((hand["source"], hand["split"]) for hand in used)
    by_eye = Counter(hand["source"] for hand in used if hand["by_eye"] and hand["split"] == "train")
    return [
        SourceTerms(
            source.replace("+", "/"), licenses.get(source), hands[source, "train"], hands[source, "validation"], by_eye[source]
        )
        for source in sorted({source for source, _ in hands}, key=str.lower)
    ]


__all__ = ["Photographs", "SourceTerms", "read_licenses", "read_terms"]
