"""Crops of hands and of what is none, each with what it shows: what a pose network's hand classifier is taught.

    for look in Looks("train", detect, people="people", photographs="photographs", cache_dir="cache"): ...

The crops are those by which a network reads hands: the box takes `box_fill` of the side, and half of them are mirrored, so the
class says what the mirrored crop shows.  They are from

- `people`: hands that were marked, by eye or by a teacher, and what a detector finds in the photographs marked by eye;
- `photographs`: close hands (dataset_script/photographs.py);
- `false_hands`: what another detector found and is none (dataset_script/false_hands.py);
- `scenes`: drawn and cut-out hands, whose side is exact (dataset_script/sources/scenes.py).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dataset_script.augmentation import augmentation_keys
from dataset_script.false_hands import LEAST_SIZE, FalseHands, read_index
from dataset_script.people import SIDES, box_of_keypoints, read_people
from dataset_script.photographs import FILL, SIDE, Photographs
from dataset_script.sources.base import Source
from modeling_handunet.crops import Crop
from modeling_handunet.hands import FoundHand, overlap
from modeling_handunet.images import load_image
from modeling_handunet.losses import LEFT, NO_HAND, RIGHT, SOME_HAND

# Of what a detector finds: what overlaps a hand's box by this IoU is that hand, and by less than the second share no hand.
HAND_IOU, NO_HAND_IOU = 0.4, 0.15
LEAST_SCORE = 0.15
# For each kind how many crops are made of one place, and how much a crop counts.
KINDS = {
    "marked by eye": (8, 3.0),
    "marked by a teacher": (2, 1.0),
    "found, a hand": (1, 3.0),
    "found, no hand": (2, 2.0),
    "found before, no hand": (1, 1.0),
    "close": (1, 0.5),
    "in a scene": (1, 0.5),
}
SCENES_AT_ONCE = 64

Detect = Callable[[Image.Image], list[FoundHand]]


@dataclass(frozen=True)
class Look:
    """A crop (size, size, 3) uint8, its class, the `kind` of place (see `KINDS`), and the place's source."""

    pixels: np.ndarray
    shows: int
    kind: str
    source: str


class Looks:
    """An iterator over crops of one part, "train" or "validation", of `size` pixels; the latter as they are, once each.

    Training crops are moved, scaled, turned, recoloured and blurred.  The samples of `scenes`, a source of right hands, are for
    training and stay as they are.  The same arguments give the same crops.
    Raises as [`Photographs`], [`FalseHands`] and `dataset_script.people.People` do for their folders.
    """

    def __init__(
        self,
        part: str,
        detect: Detect,
        *,
        people: str | os.PathLike | None = None,
        photographs: str | os.PathLike | None = None,
        false_hands: str | os.PathLike | None = None,
        scenes: Source | None = None,
        cache_dir: str | os.PathLike,
        size: int = 128,
        box_fill: float = 0.45,
        seed: int = 0,
    ):
        self.part, self.detect, self.size, self.box_fill = part, detect, size, box_fill
        self.people, self.photographs, self.false_hands, self.cache_dir = people, photographs, false_hands, cache_dir
        self.scenes, self.seed = scenes, seed
        self.random = np.random.default_rng([seed, len(part)])

    def __iter__(self) -> Iterator[Look]:
        if self.people:
            yield from self._of_people()
        if self.photographs:
            yield from self._of_photographs()
        if self.false_hands:
            yield from self._of_false_hands()
        if self.scenes and self.part == "train":
            yield from self._of_scenes()

    def _of_people(self) -> Iterator[Look]:
        for path, hands, by_eye, source in tqdm(marked_photographs(self.people, self.part), unit="photograph", leave=False):
            photo = load_image(path)
            for hand in hands:
                size = max(np.subtract(hand.box[2:], hand.box[:2]))
                if not hand.ignore and size >= LEAST_SIZE * max(photo.size):
                    kind = "marked by eye" if by_eye else "marked by a teacher"
                    yield from self._looks(photo, hand.box, hand.shows, kind, source)
            for found in self.detect(photo) if by_eye else ():
                shows = what_it_is(found, hands)
                if shows is not None and found.score >= LEAST_SCORE:
                    kind = "found, no hand" if shows == NO_HAND else "found, a hand"
                    yield from self._looks(photo, found.box, shows, kind, source)

    def _of_photographs(self) -> Iterator[Look]:
        hands = Photographs(self.photographs, self.part, cache_dir=self.cache_dir)
        for number in range(len(hands)):
            hand = hands[number]
            box = box_of_keypoints(torch.from_numpy(hand["uv"])).tolist()
            yield from self._looks(hand["image"], box, SIDES[hand["handedness"]], "close", hand["source"])

    def _of_false_hands(self) -> Iterator[Look]:
        squares = FalseHands(self.false_hands, self.part, self.cache_dir)
        sources = [entry["source"] for entry in read_index(self.false_hands) if entry["split"] == self.part]
        low, high = SIDE * (1 - FILL) / 2, SIDE * (1 + FILL) / 2
        for number, source in enumerate(sources):
            image = squares[number]["image"]
            yield from self._looks(image, (low, low, high, high), NO_HAND, "found before, no hand", source)

    def _of_scenes(self) -> Iterator[Look]:
        stream = self.scenes.splits().train
        for first in range(0, len(stream), SCENES_AT_ONCE):
            batch = stream.__getitems__(list(range(first, min(first + SCENES_AT_ONCE, len(stream)))))
            images = self.scenes.make_inputs(batch, augmentation_keys(self.seed, 0, batch["index"])).images
            for pixels in (images * 255).round().byte().permute(0, 2, 3, 1).numpy():
                mirrored = bool(self.random.random() < 0.5)
                pixels = np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels
                yield Look(pixels, LEFT if mirrored else RIGHT, "in a scene", "scenes")

    def _looks(self, photo: Image.Image, box: Sequence[float], shows: int, kind: str, source: str) -> Iterator[Look]:
        is_training = self.part == "train"
        for _ in range(KINDS[kind][0] if is_training else 1):
            left, top, right, bottom = box
            side, angle = max(right - left, bottom - top), 0.0
            middle = np.array([left + right, top + bottom]) / 2
            mirrored = bool(self.random.random() < 0.5)
            if is_training:
                middle = middle + self.random.normal(0, 0.08, 2) * side
                side, angle = side * 2 ** self.random.normal(0, 0.25), self.random.normal(0, 25)
            square = (*(middle - side / 2), side, side)
            crop = Crop.around_box(square, self.size, self.box_fill, mirrored=mirrored, angle=angle)
            pixels = np.asarray(crop.cut(photo))
            shown = 1 - shows if mirrored and shows in (RIGHT, LEFT) else shows
            yield Look(self._disturbed(pixels) if is_training else pixels, shown, kind, source)

    def _disturbed(self, pixels: np.ndarray) -> np.ndarray:
        """Other light and colours, and for some a lower resolution or noise."""
        draw = self.random
        if draw.random() < 0.3:
            image, side = Image.fromarray(pixels), int(draw.uniform(0.25, 0.6) * self.size)
            pixels = np.asarray(image.resize((side, side), Image.BILINEAR).resize((self.size, self.size), Image.BILINEAR))
        values = pixels.astype(np.float32) * np.float32(draw.uniform(0.7, 1.4) * draw.uniform(0.92, 1.08, 3))
        if draw.random() < 0.3:
            values += draw.normal(0, draw.uniform(2, 12), values.shape)
        return values.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class MarkedHand:
    """A hand of a photograph of people: corners of its box in pixels, its class, and whether nothing is asked there."""

    box: tuple[float, float, float, float]
    shows: int
    ignore: bool


def marked_photographs(folder: str | os.PathLike, part: str) -> list[tuple[Path, list[MarkedHand], bool, str]]:
    """The photographs of one part as `dataset_script/people.py` describes them: path, hands, whether marked by eye, source."""
    found = []
    for image, rows in read_people(folder, (part,)):
        hands = []
        for row in rows:
            x, y, width, height = row["bbox"]
            shows = SIDES.get(row["handedness"], SOME_HAND)
            hands.append(MarkedHand((x, y, x + width, y + height), shows, bool(row["ignore"])))
        found.append((image["path"], hands, image["marked"] == "by eye", image["source"]))
    return found


def what_it_is(found: FoundHand, hands: Sequence[MarkedHand]) -> int | None:
    """The class of what a detector found in a photograph with these hands; None if that cannot be told."""
    overlaps = [overlap(found.box, hand.box) for hand in hands]
    best = max(range(len(hands)), key=overlaps.__getitem__, default=None)
    if best is None or overlaps[best] < NO_HAND_IOU:
        is_doubtful = any(hand.ignore and share > 0 for hand, share in zip(hands, overlaps))
        return None if is_doubtful else NO_HAND
    return hands[best].shows if overlaps[best] >= HAND_IOU and not hands[best].ignore else None


__all__ = ["KINDS", "Look", "Looks", "MarkedHand", "what_it_is"]
