"""Write what Python and the browser page share in finding and following hands: the constants, and the recorded cases.

    python -m scripts.tracking_cases    # tests/data/tracking_cases.json, and {tracking,finding}_rules.json in demo/web/src

A case is a film of hands as plain numbers, and what the tracking answers: `read` and `detect` say how to play the two
networks.  `tests/test_tracking.py` says of each case in words which ids are right, and the tests of both languages compare
every number.  A photograph is a single frame, for the rules of hands.py, which `tests/test_hands.py` puts into words.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

from modeling_handunet import hands
from modeling_handunet.hands import FoundHand, find_hands, keypoints_box
from modeling_handunet.tracking import RULES, HandTracks, detector_box

ROOT = Path(__file__).resolve().parent.parent
RULES_FILE = ROOT / "demo" / "web" / "src" / "tracking_rules.json"
FINDING_RULES_FILE = RULES_FILE.with_name("finding_rules.json")
CASES_FILE = ROOT / "tests" / "data" / "tracking_cases.json"
SIZE = (640, 480)

# An open right hand, from its back, fingers up; the longer side of its box is 1 and the middle of the box is at 0.
TEMPLATE = [
    (0.05, 0.50), (-0.12, 0.40), (-0.25, 0.27), (-0.33, 0.15), (-0.40, 0.05), (-0.14, 0.03), (-0.19, -0.15), (-0.21, -0.27),
    (-0.23, -0.38), (0.00, 0.00), (-0.01, -0.22), (-0.01, -0.36), (-0.01, -0.50), (0.13, 0.03), (0.16, -0.17), (0.18, -0.30),
    (0.19, -0.42), (0.25, 0.10), (0.31, -0.04), (0.35, -0.13), (0.40, -0.22),
]  # fmt: skip
# How the cases play the network that reads keypoints: the hand whose middle is nearest to the place's, if it is within this
# share of the place's longer side.  Read as the other side than `side`, or than `read_side` if it has one, it is less sure.
# Where no hand is, the score is that of nothing.
# A hand with a `found_box` is read the less surely the worse its crop fits, and shifted by up to this share of its size.
# One with an `angle`, in degrees clockwise, is read the less surely the more its crop is turned away from it.
# Hands with `chances` are read by a network with a hand classifier: those of a hand of the true and of the other side, in a
# crop as it is and in a turned one.  Where no hand is, both are that of nothing.
REACH, WRONG_SIDE, NOTHING, MISFIT, MISTURNED = 0.6, 0.6, 0.05, 0.3, 0.4


def keypoints_of(hand: dict) -> np.ndarray:
    """Keypoints (21, 2) of a case's hand, a dict with x, y (its middle), size and side."""
    points = np.array(TEMPLATE) * ((1, 1) if hand["side"] == "right" else (-1, 1))
    cos, sin = (round(turn(math.radians(hand.get("angle", 0))), 12) for turn in (math.cos, math.sin))
    return points @ np.array([[cos, sin], [-sin, cos]]) * hand["size"] + (hand["x"], hand["y"])


class PlayedHands:
    """The two networks as a case plays them, for one frame."""

    image_size, box_fill = 128, 0.45
    keypoint_names = [str(index) for index in range(21)]

    def __init__(self):
        self.hands: list[dict] = []
        self.detector_runs, self.places = 0, 0

    def detect(self, photo=None, twice: bool = True) -> list[FoundHand]:
        self.detector_runs += 1
        found = [
            FoundHand(
                hand.get("found_box", detector_box(keypoints_of(hand))),
                hand.get("found_side", hand["side"]),
                hand["found"],
                (0.0, -1.0),
            )
            for hand in self.hands
            if hand["found"] > 0
        ]
        return sorted(found, key=lambda hand: -hand.score)

    def read(self, photo, crops):
        answers = [self._read(*crop.square, "left" if crop.mirrored else "right", crop.angle) for crop in crops]
        self.places += len(crops)
        points, scores = (np.stack(values) for values in zip(*answers))
        return points, scores, np.array([self._classify(crop) for crop in crops])

    def _classify(self, crop) -> tuple[float, float]:
        """The chances of a hand of the crop's side, and of one of the other side."""
        left, top, side = crop.square
        hand = self._nearest(left + side / 2, top + side / 2, side * self.box_fill)
        if not any("chances" in each for each in self.hands):
            return math.nan, math.nan  # a network without a hand classifier
        if hand is None:
            return NOTHING, NOTHING
        own, other = hand["chances"][crop.angle != 0]
        return (own, other) if crop.mirrored == (hand["side"] == "left") else (other, own)

    def _nearest(self, x: float, y: float, extent: float) -> dict | None:
        """The hand that is read at a place."""
        near = [
            (math.hypot(hand["x"] - x, hand["y"] - y), index)
            for index, hand in enumerate(self.hands)
            if hand["read"] > 0 and math.hypot(hand["x"] - x, hand["y"] - y) <= REACH * extent
        ]
        return self.hands[min(near)[1]] if near else None

    def _read(self, left: float, top: float, side: float, hand_side: str, angle: float):
        x, y, extent = left + side / 2, top + side / 2, side * self.box_fill
        hand = self._nearest(x, y, extent)
        if hand is None:
            return keypoints_of({"x": x, "y": y, "size": extent, "side": "right"}), np.full(21, NOTHING)
        score = hand["read"] * (1 if hand.get("read_side", hand["side"]) == hand_side else WRONG_SIDE)
        keypoints = keypoints_of(hand)
        if "found_box" in hand:  # a crop that does not fit costs certainty and truth
            fit = min(extent / hand["size"], hand["size"] / extent)
            keypoints, score = keypoints + (MISFIT * (1 - fit) * hand["size"], 0), score * fit
        if "angle" in hand:
            apart = abs((hand["angle"] - angle + 180) % 360 - 180)
            score *= 1 - MISTURNED * apart / 180
        return keypoints, np.full(21, score)


class Frame:
    """A frame of which only the size is asked."""

    def __init__(self, size):
        self.size = tuple(size)


def play(case: dict) -> list[dict]:
    """What the tracking answers in each frame of a case."""
    models = PlayedHands()
    tracks, answers = HandTracks(models, **case.get("options", {})), []
    for frame in case["frames"]:
        models.hands = frame["hands"]
        models.detector_runs = models.places = 0
        hands = tracks(Frame(frame.get("size", SIZE)), frame["time"])
        answer = {"detector": models.detector_runs > 0, "places": models.places, "hands": [_short(hand) for hand in hands]}
        answers.append(answer)
    return answers


def _short(hand: dict) -> dict:
    points = np.array([(point["x"], point["y"]) for point in hand["keypoints"]])
    x_min, y_min, x_max, y_max = keypoints_box(points)
    x, y, size = (x_min + x_max) / 2, (y_min + y_max) / 2, max(x_max - x_min, y_max - y_min)
    return {"id": hand["id"], "side": hand["label"].split()[0], "x": round(x, 2), "y": round(y, 2), "size": round(size, 2)}


def hand(x: float, y: float, size: float = 100, side: str = "right", read: float = 0.9, found: float = 0.8, **more) -> dict:
    """A hand in a frame: its middle and size in pixels, its side; the scores of both networks, 0 where they miss it."""
    return {"x": round(x, 2), "y": round(y, 2), "size": size, "side": side, "read": read, "found": found, **more}


def film(seconds: float, hands_at, rate: float = 25, begin: float = 0.0) -> list[dict]:
    """Frames of hands `hands_at(time)`."""
    times = [round(begin + index / rate, 4) for index in range(round(seconds * rate))]
    return [{"time": time, "hands": hands_at(time)} for time in times]


def cases() -> list[dict]:
    """The films; what must come out is said in tests/test_tracking.py."""
    wobble = np.random.default_rng(0).normal(0, 1, (200, 2))  # px

    def moving(t):
        return [hand(100 + 200 * t, 240)]

    def crossing(t):
        right, left = hand(120 + 200 * t, 240), hand(520 - 200 * t, 250, side="left")
        return [right, left] if abs(right["x"] - left["x"]) > 40 else [{**right, "found": 0}, left]  # the left one is in front

    def meeting(t):  # both of one side
        return [hand(120 + 200 * t, 240), hand(520 - 200 * t, 250)]

    def leaving(t):
        gone = 0.6 <= t < 1.2 or 2.0 <= t < 3.6
        return [] if gone else [hand(520, 240)]

    def occluded(first, last):
        return lambda t: [hand(200 + 60 * t, 240, read=0 if first <= t < last else 0.9, found=0 if first <= t < last else 0.8)]

    def false_once(t):
        return [hand(200, 240), *([hand(500, 100, read=0.7, found=0.5)] if 0.4 <= t < 0.5 else [])]

    def false_unread(t):
        return [hand(200, 240, read=0.1, found=0.9)]

    def false_often(t):  # the detector takes an elbow for a hand all the time
        return [hand(200, 240), hand(500, 100, read=0.25, found=0.6)]

    def found_weakly(t):  # a thing of the background, which reads as a hand; and a hand that turns away after its first second
        return [hand(200, 240, found=0.8 if t < 1 else 0.4), hand(500, 100, found=0.4)]

    def confused(t):  # in the first frames and now and then
        return [hand(200, 240, side="left", found_side="right", **({"read_side": "right"} if t % 0.8 < 0.1 else {}))]

    def still(t):
        return [hand(300 + wobble[round(t * 25)][0], 240 + wobble[round(t * 25)][1], size=150)]

    def overlapping(t):
        return [hand(300, 240, 150), hand(360, 260, 140, "left", found=0.7)]

    def twice(t):  # the detector finds a part of the hand as another one, which reads as the whole
        return [hand(300, 240, 150), *([hand(315, 255, 140, found=0.6)] if t < 0.2 else [])]

    def blurred(t):
        return [hand(100 + 400 * t, 240, read=0.12 if 0.4 <= t < 0.52 else 0.9, found=0 if 0.4 <= t < 0.52 else 0.8)]

    def jumping(t):
        return [hand(100 if t < 0.5 else 450, 240)]

    uneven = [{"time": round(t, 4), "hands": moving(t)} for t in (0, 0.02, 0.04, 0.1, 0.3, 0.33, 0.36, 0.5, 0.51, 0.52, 0.9, 1)]
    resized = film(1, moving)
    for frame in resized[12:]:
        frame["size"] = (1280, 960)
        frame["hands"] = [{**one, **{name: 2 * one[name] for name in ("x", "y", "size")}} for one in frame["hands"]]
    turned = film(1, lambda t: [hand(240, 240)])
    for frame in turned[12:]:
        frame["size"] = (480, 640)
    return [
        {"name": "one hand moves", "frames": film(1.6, moving)},
        {"name": "a hand and its other cross", "frames": film(2, crossing)},
        {"name": "two hands of one side cross", "frames": film(2, meeting)},
        {"name": "a hand leaves for a short and for a long time", "frames": film(4.4, leaving)},
        {"name": "a hand is hidden for a short time", "frames": film(2, occluded(0.6, 1.0))},
        {"name": "a hand is hidden for a long time", "frames": film(3, occluded(0.6, 2.0))},
        {"name": "a hand is blurred in three frames", "frames": film(1, blurred)},
        {"name": "a false detection, once", "frames": film(1.2, false_once)},
        {"name": "a detection that cannot be read", "frames": film(0.6, false_unread)},
        {"name": "an elbow is detected all the time", "frames": film(1.2, false_often)},
        {"name": "a thing is read surely, but found weakly", "frames": film(2, found_weakly)},
        {"name": "a left hand is read as a right one now and then", "frames": film(2, confused)},
        {"name": "all hands are known to be right ones", "frames": film(1, confused), "options": {"handedness": "right"}},
        {"name": "a still hand", "frames": film(2, still)},
        {"name": "a still hand without the filter", "frames": film(1, still), "options": {"smooth": False}},
        {"name": "two hands overlap", "frames": film(1, overlapping)},
        {"name": "one hand is detected twice", "frames": film(1, twice)},
        {"name": "a hand jumps far", "frames": film(1.2, jumping)},
        {"name": "two hands, but one is wanted", "frames": film(0.6, overlapping), "options": {"max_hands": 1}},
        {"name": "10 frames a second", "frames": film(1.6, moving, rate=10)},
        {"name": "60 frames a second", "frames": film(1, moving, rate=60)},
        {"name": "the frame rate changes", "frames": uneven},
        {"name": "the frames become twice as large", "frames": resized},
        {"name": "the camera is turned", "frames": turned},
        {"name": "no hand", "frames": film(0.5, lambda t: [])},
    ]


def play_photograph(case: dict) -> dict:
    """What is found in a photograph, and how many places are read."""
    models = PlayedHands()
    models.hands = case["hands"]
    found = find_hands(models, Frame(SIZE), case.get("boxes"), case.get("handedness"))
    return {"places": models.places, "hands": [_short_found(hand) for hand in found]}


def _short_found(hand: dict) -> dict:
    score = hand["hand_score"]
    box = [round(hand["box"][side], 2) for side in ("xmin", "ymin", "xmax", "ymax")]
    return {**_short({"id": None, **hand}), "box": box, "hand_score": None if score is None else round(score, 4)}


def photographs() -> list[dict]:
    """Single frames, with what find_hands is asked about them."""
    right, left = hand(150, 240), hand(450, 240, side="left", found_side="right", found=0.9)
    wide, beside = [60, 120, 300, 360], [100, 190, 160, 290]  # of hands of 100 px at (180, 240) and (170, 240)
    rng = np.random.default_rng(1)
    crowd = [
        hand(
            rng.uniform(60, 580), rng.uniform(60, 420), int(rng.integers(30, 120)), rng.choice(["right", "left"]).item(),
            round(rng.uniform(0.2, 1), 2), round(rng.uniform(0.1, 1), 2), found_side="right",
        )
        for _ in range(40)
    ]  # fmt: skip
    return [
        {"name": "two hands, the second found as the wrong side", "hands": [right, left]},
        {"name": "all are known to be left", "hands": [right, left], "handedness": "left"},
        {"name": "no hand", "hands": []},
        {"name": "a face, which cannot be read", "hands": [right, hand(450, 100, read=0.2, found=0.95)]},
        {"name": "a weak detection that is read surely", "hands": [hand(150, 240, read=0.95, found=0.28)]},
        {"name": "a detection too weak for a look", "hands": [hand(150, 240, read=1, found=0.19)]},
        {"name": "the reading decides the order", "hands": [hand(150, 240, read=0.7, found=0.9), hand(450, 240, read=0.9)]},
        {"name": "a hand found twice", "hands": [hand(300, 240, 150), hand(315, 255, 140, found=0.7)]},
        {"name": "a box too wide", "hands": [hand(180, 240, found_box=wide)]},
        {"name": "a box beside the hand", "hands": [hand(170, 240, found_box=beside)]},
        {"name": "a given box", "hands": [right], "boxes": [[100, 190, 100, 100]]},
        {
            "name": "a given box, too wide",
            "hands": [hand(180, 240, side="left", found_box=wide)],
            "boxes": [[60, 120, 240, 240]],
        },
        {"name": "a given box without a hand", "hands": [], "boxes": [[100, 190, 100, 100]]},
        {"name": "a hand that hangs down", "hands": [hand(300, 240, angle=180)]},
        {"name": "a left hand on its side", "hands": [hand(300, 240, side="left", angle=-75), right]},
        {"name": "a hand that is nearly upright", "hands": [hand(300, 240, angle=12)]},
        {"name": "a given box of a turned hand", "hands": [hand(150, 240, angle=130)], "boxes": [[100, 190, 100, 100]]},
        {
            "name": "a hand classifier, which is asked about turned crops, too",
            "hands": [
                hand(100, 240, chances=[[0.3, 0.6], [0.8, 0.1]]),  # as it is, it looks like a left hand
                hand(300, 240, side="left", chances=[[0.7, 0.2], [0.1, 0.1]]),  # as it is alone, it would be a hand
                hand(500, 240, chances=[[0.05, 0.04], [0.9, 0.05]]),  # not asked again
            ],
        },
        {
            "name": "a given box, with a hand classifier",
            "hands": [hand(150, 240, chances=[[0.3, 0.6], [0.8, 0.1]])],
            "boxes": [[100, 190, 100, 100]],
        },
        {
            "name": "a given box of a known side, with a hand classifier",
            "hands": [hand(150, 240, chances=[[0.3, 0.6], [0.8, 0.1]])],
            "boxes": [[100, 190, 100, 100]],
            "handedness": "right",
        },
        {"name": "a crowd", "hands": crowd},
        {"name": "a crowd of right hands", "hands": crowd, "handedness": "right"},
    ]


def shared_cases() -> dict:
    """What is written to the file of cases."""
    return {
        "size": SIZE, "template": TEMPLATE, "reach": REACH, "wrong_side": WRONG_SIDE, "nothing": NOTHING, "misfit": MISFIT,
        "misturned": MISTURNED,
        "cases": [{**case, "expected": play(case)} for case in cases()],
        "photographs": [{**case, "expected": play_photograph(case)} for case in photographs()],
    }  # fmt: skip


def shared_rules() -> dict:
    """What is written to the page's file of constants."""
    from dataclasses import asdict

    return asdict(RULES)


def shared_finding_rules() -> dict:
    """What is written to the page's file of constants for finding hands."""
    names = (
        "DETECTION_THRESHOLD", "HAND_THRESHOLD", "DETECTION_WEIGHT", "SCORE_POWER", "SAME_HAND", "SAME_BOX", "LEAST_FILL",
        "MOST_FILL", "OFF_CENTRE", "UPRIGHT", "CLASSIFIER_TURN", "LEAST_CHANCE",
    )  # fmt: skip
    return {name.lower(): getattr(hands, name) for name in names}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    CASES_FILE.parent.mkdir(exist_ok=True)
    CASES_FILE.write_text(json.dumps(shared_cases(), separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")
    RULES_FILE.write_text(json.dumps(shared_rules(), indent=2) + "\n")
    FINDING_RULES_FILE.write_text(json.dumps(shared_finding_rules(), indent=2) + "\n")
    for path in (CASES_FILE, RULES_FILE, FINDING_RULES_FILE):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")
