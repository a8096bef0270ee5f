import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from modeling_handunet.crops import Crop
from modeling_handunet.hands import (
    UPRIGHT,
    FoundHand,
    Reading,
    box_crop,
    degrees_from_upright,
    find_hands,
    is_same_hand,
    keypoints_box,
    least_detection,
    second_crop,
    sureness,
)
from modeling_handunet.keypoints import KEYPOINT_NAMES

UP = (0.0, -1.0)
# A hand in shares of its box: the wrist below, each finger a column of four points from left to right.
HAND = np.array([[0.5, 1.0], *([finger / 4, 0.75 - joint / 4] for finger in range(5) for joint in range(4))])


class DrawnHands:
    """Networks that know the truth: hands of given boxes, and how sure a reading as the true and as the other side is."""

    image_size, box_fill, keypoint_names = 128, 0.45, list(KEYPOINT_NAMES)

    def __init__(self, found=(), hands=()):
        self.found, self.hands, self.read_counts = list(found), list(hands), []

    def detect(self, photo, twice=True):
        return self.found

    def read(self, photo, crops: list[Crop]):
        self.read_counts.append(len(crops))
        keypoints, scores = [], []
        for crop in crops:
            left, top, side = crop.square
            middle = np.array([left + side / 2, top + side / 2])
            # The hand nearest to the crop's middle.
            distance, box, true_side = min(
                (np.hypot(*(middle - np.add(box[:2], box[2:]) / 2)), box, true_side) for box, true_side in self.hands
            )
            if distance >= side / 4:  # noise in the middle of the crop
                box = (*(middle - self.box_fill * side / 2), *(middle + self.box_fill * side / 2))
            keypoints.append(np.array(box[:2]) + HAND * np.subtract(box[2:], box[:2]))
            is_right_way = crop.mirrored == (true_side == "left")
            scores.append(np.full(21, (0.9 if is_right_way else 0.6) if distance < side / 4 else 0.1))
        return np.array(keypoints), np.array(scores), np.full((len(crops), 2), np.nan)


PHOTO = Image.new("RGB", (400, 300))
ONE, TWO = (40.0, 60.0, 120.0, 160.0), (250.0, 100.0, 330.0, 200.0)


def test_hands_are_found_without_boxes():
    models = DrawnHands(
        [FoundHand(ONE, "left", 0.9, UP), FoundHand(TWO, "right", 0.5, UP), FoundHand((40, 60, 125, 150), "right", 0.15, UP)],
        [(ONE, "left"), (TWO, "right")],
    )
    first, second = find_hands(models, PHOTO)
    assert (first["label"], first["hand_score"]) == ("left hand", pytest.approx(math.sqrt(0.9 * 0.9**1.5)))
    assert first["score"] == pytest.approx(0.9)
    assert first["box"] == {"xmin": 40.0, "ymin": 60.0, "xmax": 120.0, "ymax": 160.0}
    assert first["keypoints"][0] == {"name": "wrist", "x": 80.0, "y": 160.0, "score": pytest.approx(0.9)}
    assert second["label"] == "right hand" and second["hand_score"] == pytest.approx(math.sqrt(0.5 * 0.9**1.5))
    assert models.read_counts == [4]  # two hands both ways; the third detection is not worth a look
    assert hand_scores(models, detection_threshold=0.8) == [0.88]
    assert hand_scores(models, detection_threshold=0.1) == [0.88, 0.65]  # the third is the first hand again


def hand_scores(models, **options) -> list[float]:
    return [round(hand["hand_score"], 2) for hand in find_hands(models, PHOTO, **options)]


def test_what_the_network_sees_no_hand_in_is_none():
    face = FoundHand((0.0, 200.0, 60.0, 280.0), "right", 0.95, UP)  # far from every hand: read with a score of 0.1
    models = DrawnHands([face, FoundHand(TWO, "right", 0.4, UP)], [(ONE, "left"), (TWO, "right")])
    assert hand_scores(models) == [0.58]  # of 0.4 and 0.9 ** 1.5; the face has 0.17


def test_a_photograph_without_a_hand_has_an_empty_list():
    assert find_hands(DrawnHands(), PHOTO) == []
    assert find_hands(DrawnHands(), PHOTO, boxes=[]) == []
    assert find_hands(DrawnHands([FoundHand(ONE, "left", 0.1, UP)]), PHOTO) == []


def test_two_detections_of_one_hand_are_one():
    shifted = (45.0, 62.0, 125.0, 164.0)
    found = [FoundHand(ONE, "left", 0.9, UP), FoundHand(shifted, "right", 0.8, UP), FoundHand(TWO, "right", 0.5, UP)]
    models = DrawnHands(found, [(ONE, "left"), (TWO, "right")])
    assert hand_scores(models) == [0.88, 0.65]
    # Boxes that the caller gave are hands of their own.
    assert len(find_hands(models, PHOTO, boxes=[[40, 60, 80, 100], [45, 62, 80, 102]])) == 2


def test_one_hand_read_as_two_sides_is_one_if_the_boxes_coincide():
    points = np.random.default_rng(0).uniform(0, 100, (21, 2))
    mirrored = np.stack([100 - points[:, 0], points[:, 1]], 1)  # far from the others, in the same box
    right, left, beside = (
        Reading(Crop((0, 0, 100), 128, mirrored=side == "left"), values, np.ones(21))
        for side, values in (("right", points), ("left", mirrored), ("left", mirrored + 70))
    )
    assert is_same_hand(right, left) and not is_same_hand(right, beside)


def test_at_most_max_hands_are_answered_and_doubles_do_not_count():
    shifted = (45.0, 62.0, 125.0, 164.0)
    found = [FoundHand(ONE, "left", 0.9, UP), FoundHand(shifted, "right", 0.8, UP), FoundHand(TWO, "right", 0.5, UP)]
    models = DrawnHands(found, [(ONE, "left"), (TWO, "right")])
    assert hand_scores(models, max_hands=1) == hand_scores(models, max_hands=np.int64(1)) == [0.88]
    assert hand_scores(models, max_hands=2) == hand_scores(models, max_hands=3) == [0.88, 0.65]


def test_the_surer_reading_tells_the_side_of_a_given_box():
    models = DrawnHands(hands=[(ONE, "left"), (TWO, "right")])
    hands = find_hands(models, PHOTO, boxes=[[40, 60, 80, 100], [250, 100, 80, 100]])
    assert [hand["label"] for hand in hands] == ["left hand", "right hand"]
    assert models.read_counts == [4]  # both ways, in one batch
    assert [hand["hand_score"] for hand in hands] == [None, None]
    (hand,) = find_hands(models, PHOTO, boxes=[[40, 60, 80, 100]], handedness="right")
    assert hand["label"] == "right hand" and hand["score"] == pytest.approx(0.6)


def test_a_reading_that_fills_its_crop_badly_is_looked_at_again():
    truth = (40.0, 60.0, 120.0, 160.0)  # 80 x 100 px
    models = DrawnHands(hands=[(truth, "left")])
    (hand,) = find_hands(models, PHOTO, boxes=[[40, 60, 80, 100]], handedness="left")
    assert models.read_counts == [1]
    # A box of 180 px around the same middle: the hand fills it by 0.56, and a second crop is made from what was read.
    (hand,) = find_hands(models, PHOTO, boxes=[[-10, 20, 180, 180]], handedness="left")
    assert models.read_counts == [1, 1, 1]
    assert hand["box"] == {"xmin": -10.0, "ymin": 20.0, "xmax": 170.0, "ymax": 200.0}  # the box that was given
    find_hands(models, PHOTO, boxes=[[-10, 20, 180, 180]], handedness="left", look_again=False)
    find_hands(models, PHOTO, boxes="image", handedness="left")  # as it is
    assert models.read_counts == [1, 1, 1, 1, 1]
    assert second_crop(reading(truth, (40, 60, 80, 100)), 0.45) is None
    for box in ((-10, 20, 180, 180), (60, 85, 40, 50), (70, 60, 80, 100)):  # too large, too small, beside it by 30 px
        crop = second_crop(reading(truth, box), 0.45)
        assert crop.square == pytest.approx((80 - 50 / 0.45, 110 - 50 / 0.45, 100 / 0.45)) and crop.mirrored
    nothing = Reading(Crop((0, 0, 100), 128), np.zeros((21, 2)), np.zeros(21))  # all keypoints in one place
    assert second_crop(nothing, 0.45) is None
    line = Reading(Crop((0.0, 0.0, 100.0), 128), np.array([[50.0, 4.0 * index] for index in range(21)]), np.ones(21))
    assert second_crop(line, 0.45) is None


def test_what_no_reading_can_make_a_hand_is_not_read():
    for threshold in (0.01, 0.1, 0.3, 0.5, 0.9, 1.0):
        least = least_detection(threshold)
        assert sureness(least, 1.0) >= threshold - 1e-9
        assert least <= 0.2 or sureness(least - 0.01, 1.0) < threshold
    assert least_detection(0.0) == 0.0


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_hand_that_is_not_upright_is_looked_at_again_in_a_crop_where_it_is(mirrored):
    hand = np.stack([np.tile([30.0, 0.0, 10.0], 7), np.linspace(100, 0, 21)], 1)  # fills its crop as it should
    hand[0], hand[9] = (20, 100), (20, 50)  # wrist and middle knuckle: it points up
    for angle in (0.0, 19.0, 21.0, -90.0, 180.0):
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        points = (hand - 50) @ np.array([[cos, sin], [-sin, cos]]) + (200, 150)  # clockwise
        assert degrees_from_upright(points) == pytest.approx(angle)
        box = keypoints_box(points)
        first = Reading(box_crop(box, "left" if mirrored else "right", 128, 0.45), points, np.ones(21))
        assert second_crop(first, 0.45) is None
        crop = second_crop(first, 0.45, UPRIGHT)
        assert (crop is None) == (abs(angle) < 20)
        if crop:
            assert degrees_from_upright(crop.to(points)) == pytest.approx(0, abs=1e-6) and crop.mirrored == mirrored


def test_a_hand_classifier_tells_hands_and_sides_by_what_it_says_of_both_readings():
    class Classified(DrawnHands):
        """What is said of ONE is (right, left) of the crop as it is, and of the mirrored one (left, right); of TWO as well."""

        said = {ONE: ((0.6, 0.4), (0.9, 0.1)), TWO: ((0.9, 0.05), (0.9, 0.05))}

        def read(self, photo, crops):
            keypoints, scores, _ = super().read(photo, crops)
            boxes = [ONE if crop.square[0] + crop.square[2] / 2 < 200 else TWO for crop in crops]
            return keypoints, scores, np.array([self.said[box][crop.mirrored] for box, crop in zip(boxes, crops)])

    found = [FoundHand(ONE, "right", 0.64, UP), FoundHand(TWO, "right", 0.64, UP)]
    models = Classified(found, [(ONE, "right"), (TWO, "right")])
    # ONE: right (0.6 + 0.1) / 2, left (0.4 + 0.9) / 2. TWO looks like a hand of its side in both crops: each is half as likely.
    one, two = sorted(find_hands(models, PHOTO, detection_threshold=0.2), key=lambda hand: hand["box"]["xmin"])
    assert one["label"] == "left hand" and one["hand_score"] == pytest.approx(0.8 * 0.65**0.5)
    assert one["score"] == pytest.approx(0.6)  # the heatmaps alone would call it a right hand, with 0.9
    assert two["hand_score"] == pytest.approx(0.8 * 0.475**0.5)
    assert [hand["label"] for hand in find_hands(models, PHOTO, detection_threshold=0.6)] == ["left hand"]
    # With a known side there is one reading, whose word counts.
    known = find_hands(models, PHOTO, handedness="right", detection_threshold=0.2)
    assert sorted(hand["hand_score"] for hand in known) == pytest.approx([0.8 * 0.6**0.5, 0.8 * 0.9**0.5])


def test_a_hand_classifier_is_asked_about_turned_crops_where_there_may_be_a_hand():
    class Classified(DrawnHands):
        """A crop of ONE shows a left hand as it is, and a right one if it is turned; at TWO a hand is hardly seen."""

        def read(self, photo, crops):
            self.crops = [*getattr(self, "crops", []), *crops]
            keypoints, scores, _ = super().read(photo, crops)
            chances = []
            for crop in crops:
                right, left = ((0.9, 0.1) if crop.angle else (0.3, 0.6)) if crop.square[0] < 150 else (0.05, 0.04)
                chances.append((left, right) if crop.mirrored else (right, left))
            return keypoints, scores, np.array(chances)

    found = [FoundHand(ONE, "left", 0.64, UP), FoundHand(TWO, "right", 1.0, UP)]
    models = Classified(found, [(ONE, "right"), (TWO, "right")])
    one, two = find_hands(models, PHOTO, detection_threshold=0.2)
    assert one["label"] == "right hand" and one["hand_score"] == pytest.approx(0.8 * (0.3 / 3 + 0.9 * 2 / 3) ** 0.5)
    assert two["hand_score"] == pytest.approx(0.05**0.5)
    assert models.read_counts == [4, 4]  # both places as both sides; then ONE as both sides, turned both ways
    squares = [crop.square for crop in models.crops[:2]]
    assert [(crop.square, crop.angle) for crop in models.crops[4:]] == [
        (square, angle) for square in squares for angle in (-20, 20)
    ]


def test_the_surer_look_counts():
    class Unsure(DrawnHands):
        def read(self, photo, crops):
            keypoints, scores, chances = super().read(photo, crops)
            return keypoints, scores * (1 if len(self.read_counts) == 1 else 0.5), chances

    models = Unsure(hands=[(ONE, "left")])
    (hand,) = find_hands(models, PHOTO, boxes=[[-10, 20, 180, 180]], handedness="left")
    assert models.read_counts == [1, 1] and hand["score"] == pytest.approx(0.9)


def reading(hand, box) -> Reading:
    """A left hand in the box `hand`, read in the crop around `box` (x, y, width, height)."""
    crop = Crop.around_box(box, 128, 0.45, mirrored=True)
    return Reading(crop, np.array(hand[:2]) + HAND * np.subtract(hand[2:], hand[:2]), np.full(21, 0.9))


def test_a_whole_photograph_can_be_the_crop():
    models = DrawnHands(hands=[((150.0, 100.0, 250.0, 200.0), "left")])
    (hand,) = find_hands(models, PHOTO, boxes="image")
    assert hand["box"] == {"xmin": 0.0, "ymin": 0.0, "xmax": 400.0, "ymax": 300.0}
    assert hand["label"] == "left hand"


def test_a_known_side_holds_for_every_found_hand():
    models = DrawnHands([FoundHand(ONE, "left", 0.9, UP)], [(ONE, "left")])
    (hand,) = find_hands(models, PHOTO, handedness="right")
    assert hand["label"] == "right hand"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": "photo"}, "boxes='photo': give one list of boxes"),
        ({"boxes": 7}, "boxes=7"),
        ({"boxes": [[500, 0, 10, 10]]}, "outside the image"),
        ({"boxes": [[0, 0, 10, 10]], "handedness": "up"}, "'right' or 'left'"),
        ({"boxes": [[0, 0, 10, 10]], "handedness": ["left", "left"]}, "Got handedness for 2 images, but 1"),
        ({"handedness": [["left"]]}, "has no boxes: give 'right' or 'left' for all"),
        ({"detection_threshold": 2}, "detection_threshold=2"),
        ({"max_hands": 0}, "max_hands=0"),
        ({"max_hands": 2.0}, "max_hands=2.0"),
    ],
)
def test_what_cannot_be_used_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_hands(DrawnHands(), PHOTO, **arguments)


def test_the_rules_need_neither_torch_nor_transformers():
    program = (
        "import sys; from handunet.backends import leave_out_torch; leave_out_torch(); import modeling_handunet.hands; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
