"""From a photograph to its hands: detect, crop, read, look again, and two answers of one hand become one.

These are rules on numbers, without torch and transformers.  Whatever runs the two networks ([`HandModels`]: `TorchHands` in
torch_hands.py, or onnxruntime) follows them by [`find_hands`], and the pipeline for many photographs at a time by [`steps`].

Boxes here are (x_min, y_min, x_max, y_max) in pixels of the upright photograph, but (x, y, width, height) where callers give
them.  Sides are "right" and "left".
"""

import math
from collections.abc import Callable, Container, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Integral
from typing import Protocol

import numpy as np
from PIL import Image

from .crops import Crop, check_box
from .keypoints import describe_hand
from .nesting import HANDEDNESS, WHOLE_IMAGE, boxes_by_image, count_hands, handedness_by_image

# A box round keypoints lies within the hand.  This share of its longer side, added at each edge, makes it the box that people
# draw and the detector gives: the median over the hands that have both.
BOX_MARGIN = 0.07
# Detections of a lower score are not worth a look.
DETECTION_THRESHOLD = 0.2
# Found hands of which both networks together are less sure are none.
HAND_THRESHOLD = 0.45
# The detector's weight in that, see [`hand_score`].
DETECTION_WEIGHT = 0.5
# Without a hand classifier, the mean score of a hand's keypoints to this power says how sure the network is of the hand: a
# quarter of what a detector wrongly found has a mean of 0.29 and more with handunet.  On the 91 photographs of [`sureness`],
# the average precision of handunet is 0.65 for 1, 0.67 for 1.5 and 2, and 0.62 for 3.
SCORE_POWER = 1.5
# Two found hands are one if their keypoints lie, on average, within this share of the larger one's size.  Of pairs of different
# hands in photographs of people, 1 in 100 come closer than 0.8; of wrong and right sides of one hand, most lie within 0.3.
SAME_HAND = 0.35
# Or if they were read as two sides, and the boxes of their keypoints overlap by this IoU.
SAME_BOX = 0.5
# Look again if the first reading fills its crop by less or more than these shares of what a hand's box should, or if its
# middle lies off the crop's by more than this share of the hand.
LEAST_FILL, MOST_FILL = 0.75, 1.35
OFF_CENTRE = 0.2
# In photographs, look again also if the first reading points more degrees away from upright; the second crop is turned.
UPRIGHT = 20.0
# A hand classifier is asked again with the crop turned by so many degrees, both ways: the mean of all three counts.  It is not
# where, of neither side's crop, it gives hands together this chance.
CLASSIFIER_TURN, LEAST_CHANCE = 20.0, 0.3
UNKNOWN = (math.nan, math.nan)  # chances of hands, without a hand classifier


@dataclass(frozen=True)
class FoundHand:
    """What a detector says of one hand.

    box: (x_min, y_min, x_max, y_max) in pixels of the photograph.
    side: "right" or "left".
    score: in [0, 1].
    direction: unit vector (x, y) from the wrist to the middle knuckle.
    """

    box: tuple[float, float, float, float]
    side: str
    score: float
    direction: tuple[float, float]


def found_hands(scores: Iterable, labels: Iterable, boxes: Iterable, directions: Iterable) -> list[FoundHand]:
    """What a detector says, from lists of each hand's score, label (0 right, 1 left), corners and direction; not those of no
    score or no size."""
    return [
        FoundHand(tuple(box), HANDEDNESS[label], score, tuple(direction))
        for score, label, box, direction in zip(scores, labels, boxes, directions)
        if score > 0 and box[0] < box[2] and box[1] < box[3]
    ]


class HandModels(Protocol):
    """The two networks, and what must be known of the one that reads keypoints."""

    image_size: int  # side of a crop in pixels
    box_fill: float  # share of a crop's side that a hand's box takes
    keypoint_names: list[str]

    def detect(self, photo: Image.Image, twice: bool = True) -> list[FoundHand]:
        """The hands of an RGB photograph, falling by score, which is above 0.  Raises `ValueError` without a detector.

        twice: look at it at two sizes, which finds more; a frame of a film is looked at once, for speed.
        """

    def read(self, photo: Image.Image, crops: list[Crop]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of N crops of a photograph: keypoints (N, 21, 2) in its pixels, scores (N, 21) in [0, 1], and the chances (N, 2) that
        there is a hand of the crop's side, and one of the other side; NaN of a network without a hand classifier."""


@dataclass(frozen=True)
class Reading:
    """What the network reads in one crop: keypoints (21, 2) in pixels of the photograph, and scores (21,).

    chances: that there is a hand of the crop's side, and one of the other side; NaN without a hand classifier.
    rival: the `hand_score` of the same place read as the other side, if it was.
    """

    crop: Crop
    keypoints: np.ndarray
    scores: np.ndarray
    chances: tuple[float, float] = UNKNOWN
    rival: float | None = None

    @property
    def side(self) -> str:
        """The hand that the network took it for."""
        return "left" if self.crop.mirrored else "right"

    @property
    def score(self) -> float:
        """The mean score of the keypoints."""
        return float(self.scores.mean())

    @property
    def hand_score(self) -> float:
        """How sure the network is that there is a hand of this side: its classifier's chance, or else by the mean score."""
        return self.score**SCORE_POWER if math.isnan(self.chances[0]) else self.chances[0]


@dataclass(frozen=True)
class Place:
    """Where a hand is: its box, the crops to read it by (two if its side is not known), and the detector's score or None."""

    box: tuple[float, float, float, float]
    crops: list[Crop]
    detection_score: float | None = None


def find_hands(
    models: HandModels,
    photo: Image.Image,
    boxes=None,
    handedness=None,
    *,
    detection_threshold: float = HAND_THRESHOLD,
    max_hands: int | None = None,
    look_again: bool = True,
) -> list[dict]:
    """The hands of one RGB photograph, as `describe_hand` describes them.

    Args:
        boxes: a list of (x, y, width, height) in pixels, one per hand, whose order the answer has; None: the detector finds
            the hands, and the answer falls by their `hand_score`; "image": the whole photograph is the crop of one hand.
        handedness: "right" or "left" for all hands, or a list with one per box; None: not known.  Then each is read both ways,
            and the surer reading counts.
        detection_threshold: leave out found hands with a lower `hand_score`.
        max_hands: the surest of the found hands, at most so many; all by default.
        look_again: whether a hand that fills its crop badly or is not upright is read a second time, see [`second_crop`]; a
            whole photograph is always read as it is.

    Raises `ValueError` for boxes, handedness and options that cannot be used.
    """
    asking = steps(
        photo.size, models.image_size, models.box_fill, models.keypoint_names, boxes, handedness,
        detection_threshold=detection_threshold, max_hands=max_hands, look_again=look_again,
    )  # fmt: skip
    return answered(asking, lambda crops: models.detect(photo) if crops is None else models.read(photo, crops))


def answered(asking: Generator, answer: Callable):
    """What a generator of steps returns, if all that it asks for is answered by `answer`."""
    told = None
    while True:
        try:
            wanted = asking.send(told)
        except StopIteration as end:
            return end.value
        told = answer(wanted)


def check_limits(detection_threshold: float, max_hands: int | None) -> None:
    """Raise `ValueError` unless the threshold is from 0 to 1, and the number of hands is whole and above 0, or None."""
    if not 0 <= detection_threshold <= 1:
        raise ValueError(f"detection_threshold={detection_threshold!r}: give a number from 0 to 1.")
    if max_hands is not None and (not isinstance(max_hands, Integral) or max_hands < 1):
        raise ValueError(f"max_hands={max_hands!r}: give a whole number from 1 on, or None for all.")


def steps(
    photo_size: tuple[int, int],
    image_size: int,
    box_fill: float,
    keypoint_names: Sequence[str],
    boxes=None,
    handedness=None,
    *,
    detection_threshold: float = HAND_THRESHOLD,
    max_hands: int | None = None,
    look_again: bool = True,
) -> Generator[list[Crop] | None, list[FoundHand] | tuple[np.ndarray, ...], list[dict]]:
    """[`find_hands`] as a generator that asks for what the networks say, so that a caller can ask them for many photographs
    at a time.

    It yields None to ask for `HandModels.detect` of the photograph, or crops to ask for `HandModels.read` of them, wants
    the answer sent, and returns the hands.
    """
    check_limits(detection_threshold, max_hands)
    (boxes,) = boxes_by_image(boxes, 1)
    (handedness,) = handedness_by_image(handedness, [count_hands(boxes)])
    if boxes is None:
        least = least_detection(detection_threshold)
        found = [hand for hand in (yield None) if hand.score >= least]
        places = [found_place(hand, image_size, box_fill, handedness[0]) for hand in found]
    else:
        places = given_places(photo_size, boxes, handedness, image_size, box_fill)
    if not places:
        return []
    again = range(len(places)) if look_again and boxes != WHOLE_IMAGE else ()
    readings = yield from read_places(places, box_fill, again, UPRIGHT)
    hands = list(zip(places, readings))
    if boxes is None:
        hands = choose_hands(hands, detection_threshold)[:max_hands]
    return [_describe(place, reading, keypoint_names) for place, reading in hands]


def choose_hands(found: list[tuple[Place, Reading]], threshold: float) -> list[tuple[Place, Reading]]:
    """The hands among what was detected and read, falling by [`hand_score`]: each once, and none below the threshold."""
    hands: list[tuple[Place, Reading]] = []
    for place, reading in sorted(found, key=lambda hand: -hand_score(*hand)):
        is_known = any(is_same_hand(reading, other) for _, other in hands)
        if not is_known and hand_score(place, reading) >= threshold:
            hands.append((place, reading))
    return hands


def hand_score(place: Place, reading: Reading) -> float | None:
    """How sure both networks are that there is a hand, see [`sureness`]; None for given boxes."""
    return None if place.detection_score is None else sureness(place.detection_score, reading.hand_score)


def sureness(detection_score: float, reading_score: float) -> float:
    """How sure both networks are that there is a hand, in [0, 1]: a weighted geometric mean of what each says.

    A detector takes faces and elbows for hands, in which the other network sees no keypoints.  On 91 photographs of people
    marked by eye, with handunet-base, the average precision is 0.38 by the detector's score alone, and 0.74 by this one; by the
    mean of the keypoints' scores in place of the hand classifier's chance, it is 0.69.
    """
    return detection_score**DETECTION_WEIGHT * reading_score ** (1 - DETECTION_WEIGHT)


def least_detection(threshold: float) -> float:
    """The least score of a detection that is worth a look: with less, no reading reaches a `hand_score` of `threshold`."""
    return max(min(DETECTION_THRESHOLD, threshold), threshold ** (1 / DETECTION_WEIGHT))


def read_places(
    places: list[Place], box_fill: float, again: Container[int], upright: float = math.inf, *, classified: bool = True
):
    """The reading of each place, the surest of all looks at it; those of the numbers `again` may get a second look, see
    [`second_crop`].  Unless `classified`, what a hand classifier says is left aside.

    A generator that asks for readings as [`steps`].
    """
    looks = yield from _read([place.crops for place in places])
    if classified:
        looks = yield from _classified_again(places, looks)
    else:
        looks = [[replace(reading, chances=UNKNOWN) for reading in own] for own in looks]
    best = [_surest(own) for own in looks]
    crops = {index: second_crop(reading, box_fill, upright) for index, reading in enumerate(best) if index in again}
    crops = {index: crop for index, crop in crops.items() if crop}
    second = yield from _read([[crop] for crop in crops.values()])
    for index, (reading,) in zip(crops, second):
        if reading.score > best[index].score:  # of the hand itself both looks of the first time know more than this one
            best[index] = replace(reading, chances=best[index].chances, rival=best[index].rival)
    return best


def _classified_again(places: list[Place], looks: list[list[Reading]]):
    """The readings of each place, with what a hand classifier says of their crops and of the same, turned both ways.

    This matters most for the side: a thumb that one view hides may be seen in another.  A given box of a known side is not
    asked about: nothing depends on the answer.
    """
    again = [
        index
        for index, (place, own) in enumerate(zip(places, looks))
        if (place.detection_score is not None or len(own) > 1) and any(sum(one.chances) >= LEAST_CHANCE for one in own)
    ]
    turns = (-CLASSIFIER_TURN, CLASSIFIER_TURN)
    crops = [[replace(one.crop, angle=one.crop.angle + turn) for one in looks[index] for turn in turns] for index in again]
    turned = yield from _read(crops)
    looks = list(looks)
    for index, views in zip(again, turned):
        looks[index] = [
            replace(own, chances=tuple(np.mean([own.chances, one.chances, other.chances], 0).tolist()))
            for own, one, other in zip(looks[index], views[::2], views[1::2])
        ]
    return looks


def _surest(readings: list[Reading]) -> Reading:
    """The surest reading of a place that was read as one side or as both; of equal ones the first."""
    if len(readings) == 2:
        readings = agreed(*readings)
    best = max(readings, key=lambda reading: reading.hand_score)
    return replace(best, rival=max((other.hand_score for other in readings if other is not best), default=None))


def agreed(one: Reading, other: Reading) -> list[Reading]:
    """Two readings of a place, as the one side and as the other: what both say of each side is averaged.

    This matters: what looks like a hand in one of both crops alone is mostly none.
    """
    own, rival = ((a + b) / 2 for a, b in zip(one.chances, reversed(other.chances)))
    return [replace(one, chances=(own, rival)), replace(other, chances=(rival, own))]


def _read(crops: list[list[Crop]]):
    """The readings of all crops, grouped as they are."""
    if not crops:
        return []
    keypoints, scores, chances = yield [crop for own in crops for crop in own]
    readings = map(Reading, (crop for own in crops for crop in own), keypoints, scores, map(tuple, chances.tolist()))
    return [list(islice(readings, len(own))) for own in crops]


def _describe(place: Place, reading: Reading, names: Sequence[str]) -> dict:
    points = np.asarray(reading.keypoints, np.float32).tolist()
    scores = np.asarray(reading.scores, np.float32).tolist()
    return describe_hand(reading.side, place.box, names, points, scores, hand_score(place, reading))


def found_place(hand: FoundHand, image_size: int, box_fill: float, handedness: str | None = None) -> Place:
    """Where a found hand is read, both ways unless the caller knows its side."""
    possible = HANDEDNESS if handedness is None else (handedness,)
    crops = [box_crop(hand.box, side, image_size, box_fill) for side in possible]
    return Place(tuple(map(float, hand.box)), crops, hand.score)


def given_places(photo_size: tuple[int, int], boxes, handedness, image_size: int, box_fill: float) -> list[Place]:
    """Where the hands are that the caller gave by boxes (x, y, width, height) or by "image", with each one's handedness."""
    places = []
    for box, hand in zip([None] if boxes == WHOLE_IMAGE else boxes, handedness, strict=True):
        if box is not None:
            check_box(box, *photo_size)
        looks = [
            Crop.around_hand(box, photo_size, image_size, box_fill, mirrored=side == "left")
            for side in (HANDEDNESS if hand is None else (hand,))
        ]
        places.append(Place(looks[0][1], [crop for crop, _ in looks]))
    return places


def box_crop(box, side: str, image_size: int, box_fill: float) -> Crop:
    """The crop by which a hand of a side is read, from its box (x_min, y_min, x_max, y_max)."""
    left, top, right, bottom = map(float, box)
    return Crop.around_box((left, top, right - left, bottom - top), image_size, box_fill, mirrored=side == "left")


def second_crop(reading: Reading, box_fill: float, upright: float = math.inf) -> Crop | None:
    """The crop for a second look, around the first reading's keypoints, if they fill their crop badly or point more than
    `upright` degrees away from upright; None if they do not.

    So a box that is too large, too small or beside the hand costs less.  With `upright` the crop is turned so that the hand
    points up, as most hands do in photographs: read both ways by handunet-base, the surer reading errs less.
    """
    left, top, side = reading.crop.square
    box, size = keypoints_box(reading.keypoints), hand_size(reading.keypoints)
    middle = (box[0] + box[2]) / 2 - (left + side / 2), (box[1] + box[3]) / 2 - (top + side / 2)
    fill, angle = size / (side * box_fill), degrees_from_upright(reading.keypoints)
    is_upright = abs(angle) <= upright
    if LEAST_FILL <= fill <= MOST_FILL and math.hypot(*middle) <= OFF_CENTRE * size and is_upright:
        return None
    if not (box[0] < box[2] and box[1] < box[3]):  # keypoints may lie in a line
        return None
    if is_upright:
        return box_crop(box, reading.side, reading.crop.size, box_fill)
    return Crop.around_points(reading.keypoints, reading.crop.size, box_fill, mirrored=reading.crop.mirrored, angle=angle)


def degrees_from_upright(keypoints: np.ndarray) -> float:
    """The direction from the wrist to the middle knuckle of keypoints (21, 2): clockwise degrees from up, in (-180, 180]."""
    x, y = (keypoints[9] - keypoints[0]).tolist()
    return math.degrees(math.atan2(x, -y))


def keypoints_box(keypoints: np.ndarray) -> tuple[float, float, float, float]:
    """The box (x_min, y_min, x_max, y_max) of keypoints (21, 2)."""
    return (*keypoints.min(0).tolist(), *keypoints.max(0).tolist())


def hand_size(keypoints: np.ndarray) -> float:
    """The longer side of the box of keypoints (21, 2)."""
    return float(np.ptp(keypoints, axis=0).max())


def overlap(one, other) -> float:
    """Intersection over union of two boxes."""
    width, height = (min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1))
    both = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / max(areas - both, 1e-9)


def keypoint_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean distance of two hands' keypoints (21, 2) in pixels."""
    return float(np.hypot(*(one - other).T).mean())


def is_same_hand(one, other, same_hand: float = SAME_HAND, same_box: float = SAME_BOX) -> bool:
    """Whether two readings, which have `keypoints` and `side`, are of one hand: their keypoints coincide or, if they were
    read as two sides, their boxes."""
    largest = max(hand_size(one.keypoints), hand_size(other.keypoints))
    if keypoint_distance(one.keypoints, other.keypoints) <= same_hand * largest:
        return True
    return one.side != other.side and overlap(keypoints_box(one.keypoints), keypoints_box(other.keypoints)) >= same_box


__all__ = [
    "BOX_MARGIN",
    "HAND_THRESHOLD",
    "FoundHand",
    "HandModels",
    "Place",
    "Reading",
    "answered",
    "box_crop",
    "check_limits",
    "choose_hands",
    "find_hands",
    "found_hands",
    "hand_score",
    "hand_size",
    "is_same_hand",
    "keypoint_distance",
    "keypoints_box",
    "least_detection",
    "read_places",
    "steps",
    "sureness",
]
