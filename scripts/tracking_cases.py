"""Write what the tracking in Python and in the browser page share: the constants, and the recorded cases.

    python -m scripts.tracking_cases    # writes demo/web/src/tracking_rules.json and tests/data/tracking_cases.json

A case is a film of hands as plain numbers, and what the tracking answers: `read` and `detect` say how to play the two
networks.  `tests/test_tracking.py` says of each case in words which ids are right, and the tests of both languages compare
every number.
"""

import json
import math
from pathlib import Path

import numpy as np

from modeling_handunet.hands import FoundHand, keypoints_box
from modeling_handunet.tracking import RULES, HandTracks, detector_box

ROOT = Path(__file__).resolve().parent.parent
RULES_FILE = ROOT / "demo" / "web" / "src" / "tracking_rules.json"
CASES_FILE = ROOT / "tests" / "data" / "tracking_cases.json"
SIZE = (640, 480)

# An open right hand, from its back, fingers up; the longer side of its box is 1 and the middle of the box is at 0.
TEMPLATE = [
    (0.05, 0.50), (-0.12, 0.40), (-0.25, 0.27), (-0.33, 0.15), (-0.40, 0.05), (-0.14, 0.03), (-0.19, -0.15), (-0.21, -0.27),
    (-0.23, -0.38), (0.00, 0.00), (-0.01, -0.22), (-0.01, -0.36), (-0.01, -0.50), (0.13, 0.03), (0.16, -0.17), (0.18, -0.30),
    (0.19, -0.42), (0.25, 0.10), (0.31, -0.04), (0.35, -0.13), (0.40, -0.22),
]  # fmt: skip
# How the cases play the network that reads keypoints: the hand whose middle is nearest to the place's, if it is within this
# share of the place's longer side.  Read as the other side, it is less sure.  Where no hand is, the score is that of nothing.
REACH, WRONG_SIDE, NOTHING = 0.6, 0.6, 0.05


def keypoints_of(hand: dict) -> np.ndarray:
    """Keypoints (21, 2) of a case's hand, a dict with x, y (its middle), size and side."""
    points = np.array(TEMPLATE) * ((1, 1) if hand["side"] == "right" else (-1, 1))
    return points * hand["size"] + (hand["x"], hand["y"])


class PlayedHands:
    """The two networks as a case plays them, for one frame."""

    image_size, box_fill = 128, 0.45
    keypoint_names = [str(index) for index in range(21)]

    def __init__(self):
        self.hands: list[dict] = []
        self.detector_runs, self.places = 0, 0

    def detect(self, photo=None) -> list[FoundHand]:
        self.detector_runs += 1
        found = [
            FoundHand(detector_box(keypoints_of(hand)), hand.get("found_side", hand["side"]), hand["found"], (0.0, -1.0))
            for hand in self.hands
            if hand["found"] > 0
        ]
        return sorted(found, key=lambda hand: -hand.score)

    def read(self, photo, crops):
        answers = [self._read(*crop.square, "left" if crop.mirrored else "right") for crop in crops]
        self.places += len(crops)
        return np.stack([points for points, _ in answers]), np.stack([scores for _, scores in answers])

    def _read(self, left: float, top: float, side: float, hand_side: str):
        x, y, extent = left + side / 2, top + side / 2, side * self.box_fill
        near = [
            (math.hypot(hand["x"] - x, hand["y"] - y), index)
            for index, hand in enumerate(self.hands)
            if hand["read"] > 0 and math.hypot(hand["x"] - x, hand["y"] - y) <= REACH * extent
        ]
        if not near:
            return keypoints_of({"x": x, "y": y, "size": extent, "side": "right"}), np.full(21, NOTHING)
        hand = self.hands[min(near)[1]]
        return keypoints_of(hand), np.full(21, hand["read"] * (1 if hand["side"] == hand_side else WRONG_SIDE))


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
        return [hand(200, 240), *([hand(500, 100, read=0.4, found=0.5)] if 0.4 <= t < 0.5 else [])]

    def false_unread(t):
        return [hand(200, 240, read=0.1, found=0.9)]

    def confused(t):
        wrong = round(t * 25) in (0, 12, 13, 24, 36)
        return [hand(200, 240, side="left", found_side="right" if wrong else "left")]

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
        {"name": "the detector takes a left hand for a right one now and then", "frames": film(2, confused)},
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


def shared_cases() -> dict:
    """What is written to the file of cases."""
    recorded = [{**case, "expected": play(case)} for case in cases()]
    return {"size": SIZE, "template": TEMPLATE, "reach": REACH, "wrong_side": WRONG_SIDE, "nothing": NOTHING, "cases": recorded}


def shared_rules() -> dict:
    """What is written to the page's file of constants."""
    from dataclasses import asdict

    from modeling_handunet.tracking import DETECTION_THRESHOLD

    return {"detection_threshold": DETECTION_THRESHOLD, **asdict(RULES)}


if __name__ == "__main__":
    CASES_FILE.parent.mkdir(exist_ok=True)
    CASES_FILE.write_text(json.dumps(shared_cases(), separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")
    RULES_FILE.write_text(json.dumps(shared_rules(), indent=2) + "\n")
    for path in (CASES_FILE, RULES_FILE):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")
