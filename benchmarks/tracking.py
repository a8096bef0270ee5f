"""What the tracking is worth: on films drawn with exact truth, and on a real sequence, beside MediaPipe's tracking.

    python -m benchmarks.tracking --data ../shared/data --model weights/handunet-base --output outputs/tracking.json
    python -m benchmarks.tracking --data ../shared/data --print outputs/tracking.json     # the table; nothing is measured

A film is 3 s of 640x480 at 30 frames a second: cut-out hands of poses that no training saw, moved over a photograph without
people, with noise.  MediaPipe labelled the keypoints of these cut-outs, which favours it; it gives no ids, so its left or
right serves as one.  It runs in an environment of its own (see `dataset_script/teachers.py`), one film at a time in turn with
ours.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIZE, RATE, SECONDS = (640, 480), 30, 3.0
NOISE = 2.5  # standard deviation of a pixel
FOUND = 0.25  # an answer is of a hand whose keypoints it misses by no more than this share of the box, on average
INSIDE = 15  # so many keypoints must lie in the frame for a hand to count
EXPOSURE, PARTS = 1 / 50, 7  # of a blurred film's frame, and how many instants make it
ROWS = ("ours", "ours, no filter", "MediaPipe")
LAGS = np.arange(-0.03, 0.12, 0.001)  # s

# Of each film: the hands' sides, and each one's (x, y, size in px, degrees) at a time.
Motion = Callable[[float], tuple[float, float, float, float]]


def wave(share: float) -> float:
    return math.sin(2 * math.pi * share)


def out_and_back(t: float) -> float:
    """Leaves the frame between 1.0 and 1.9 s."""
    return 400 + 400 * min(max(t - 0.5, 0), 0.9) - 400 * max(t - 1.6, 0) if t < 2.5 else 400.0


FILMS: dict[str, list[tuple[str, Motion]]] = {
    "still": [("right", lambda t: (330, 260, 140, 8))],
    "moving": [("left", lambda t: (320 + 180 * wave(0.6 * t), 250 + 60 * wave(0.9 * t), 130 + 25 * wave(t / 2), 15 * wave(t)))],
    "crossing": [("right", lambda t: (130 + 125 * t, 250, 125, -10)), ("left", lambda t: (510 - 125 * t, 265, 130, 10))],
    "leaving": [("right", lambda t: (out_and_back(t), 260, 130, 0))],
    "blurred": [("right", lambda t: (320 + 190 * wave(1.2 * t), 250, 130, 0))],
}


@dataclass(frozen=True)
class Film:
    """One film: `layers` are RGBA squares with keypoints (21, 2) px, one for each hand of `FILMS[kind]`."""

    kind: str
    layers: list[tuple[np.ndarray, np.ndarray]]
    background: np.ndarray
    seed: int

    @property
    def times(self) -> list[float]:
        return [index / RATE for index in range(round(SECONDS * RATE))]

    def matrix(self, hand: int, t: float) -> np.ndarray:
        """(2, 3), from pixels of the layer to those of the frame."""
        side, path = FILMS[self.kind][hand]
        x, y, size, angle = path(t)
        points = self.layers[hand][1]
        scale = size / np.ptp(points, axis=0).max()
        cos, sin = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
        turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1 if side == "left" else 1, 1])
        return np.column_stack([turn, np.array([x, y]) - turn @ (points.min(0) + points.max(0)) / 2])

    def truth(self, hand: int, t: float) -> np.ndarray:
        """Keypoints (21, 2) in pixels of the frame."""
        matrix = self.matrix(hand, t)
        return self.layers[hand][1] @ matrix[:, :2].T + matrix[:, 2]

    def is_inside(self, hand: int, t: float) -> bool:
        points = self.truth(hand, t)
        return ((points >= 0) & (points < SIZE)).all(1).sum() >= INSIDE

    def frames(self) -> Iterator[np.ndarray]:
        """(480, 640, 3) uint8."""
        rng = np.random.default_rng(self.seed)
        for t in self.times:
            instants = np.linspace(0, EXPOSURE, PARTS) - EXPOSURE / 2 if self.kind == "blurred" else [0.0]
            picture = sum(self._draw(t + shift) for shift in instants) / len(instants)
            noisy = picture + NOISE * rng.standard_normal(picture.shape, np.float32)
            yield noisy.clip(0, 255).round().astype(np.uint8)

    def _draw(self, t: float) -> np.ndarray:
        import cv2

        picture = self.background  # (480, 640, 3)
        for hand in range(len(self.layers)):
            # OpenCV's pixel centres are whole numbers, ours are at +0.5.
            matrix = self.matrix(hand, t)
            matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
            layer = cv2.warpAffine(self.layers[hand][0], matrix, SIZE, flags=cv2.INTER_LINEAR)
            picture = layer[..., :3] + picture * (1 - layer[..., 3:])
        return picture


def films(data: Path, count: int) -> Iterator[Film]:
    """`count` films of each kind."""
    import torch
    from PIL import Image, ImageOps

    from dataset_script.cutouts import Cutouts

    cutouts = Cutouts(data / "cutouts", "held out", image_size=480, variants=1)
    photos = sorted((data / "backgrounds").glob("**/*.jpg"))
    rng = np.random.default_rng(0)
    for number in range(count):
        for kind, hands in FILMS.items():
            made = cutouts.layers(torch.from_numpy(rng.integers(0, len(cutouts), len(hands))))
            rgba = made.rgba.permute(0, 2, 3, 1).numpy()  # (B, S, S, 4)
            rgba[..., :3] *= 255 * rgba[..., 3:]
            photo = ImageOps.fit(Image.open(photos[rng.integers(len(photos))]).convert("RGB"), SIZE)
            layers = list(zip(rgba, made.keypoints.numpy().astype(float)))
            yield Film(kind, layers, np.asarray(photo, np.float32), seed=number)


# An answer: of each frame a list of (id, keypoints (21, 2) px).  Also the seconds of processor time that all frames took,
# which say more than the wall's on a machine with other work.
Answers = tuple[list[list[tuple[object, np.ndarray]]], float]


def follow(tracker, frames: np.ndarray, times: list[float]) -> Answers:
    """What our tracking answers."""
    from PIL import Image

    answers, begin = [], time.process_time()
    for frame, t in zip(frames, times):
        hands = tracker(Image.fromarray(frame), t)
        answers.append([(hand["id"], np.array([(point["x"], point["y"]) for point in hand["keypoints"]])) for hand in hands])
    return answers, time.process_time() - begin


def follow_by_mediapipe(python: str, frames: np.ndarray) -> Answers:
    """What MediaPipe's tracking answers, in a process of its own; without the time of its start."""
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, frames)
        file.flush()
        command = [python, "-W", "ignore", str(Path(__file__).resolve()), "--answer", file.name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    height, width = frames.shape[1:3]
    hands = [[(side, np.array(points) * (width, height)) for side, points in frame] for frame in answer["frames"]]
    return hands, answer["seconds"]


def answer_film(path: str) -> None:
    """MediaPipe on the frames in a file, in its own environment: prints JSON."""
    import mediapipe

    hands = mediapipe.solutions.hands.Hands(model_complexity=1, max_num_hands=2)
    frames, answers = np.load(path), []
    hands.process(np.zeros_like(frames[0]))  # the first frame loads
    begin = time.process_time()
    for frame in frames:
        found = hands.process(frame)
        sides = [side.classification[0].label for side in found.multi_handedness or ()]
        points = [[(point.x, point.y) for point in hand.landmark] for hand in found.multi_hand_landmarks or ()]
        answers.append(list(zip(sides, points)))
    print(json.dumps({"frames": answers, "seconds": time.process_time() - begin}))


def match(truths: list[np.ndarray], hands: list[tuple[object, np.ndarray]]) -> dict[int, tuple[object, np.ndarray, float]]:
    """By the true hand's number, its answer: the id, keypoints and mean error over the box; the nearest first."""
    pairs = []
    for number, truth in enumerate(truths):
        for index, (_, points) in enumerate(hands):
            error = float(np.hypot(*(points - truth).T).mean() / np.ptp(truth, axis=0).max())
            if error <= FOUND:
                pairs.append((error, number, index))
    found: dict[int, tuple[object, np.ndarray, float]] = {}
    used = set()
    for error, number, index in sorted(pairs):
        if number not in found and index not in used:
            found[number] = (*hands[index], error)
            used.add(index)
    return found


def score(film: Film, answers: list[list[tuple[object, np.ndarray]]]) -> dict:
    """Sums and lists over one film, for [`summary`]."""
    hands = range(len(film.layers))
    figures = {"frames": 0, "found": 0, "same_id": 0, "false": 0, "errors": []}
    ids = [Counter() for _ in hands]
    tracks = [[] for _ in hands]
    for t, answer in zip(film.times, answers):
        truths = [film.truth(hand, t) for hand in hands]
        found = match(truths, answer)
        figures["false"] += len(answer) - len(found)
        for hand in hands:
            if not film.is_inside(hand, t):
                continue
            figures["frames"] += 1
            if hand in found:
                name, points, error = found[hand]
                figures["found"] += 1
                figures["errors"].append(error)
                ids[hand][name] += 1
                tracks[hand].append((t, points))
    figures["same_id"] = sum(count.most_common(1)[0][1] for count in ids if count)
    size = [np.ptp(film.truth(hand, 0.0), axis=0).max() for hand in hands]
    if film.kind == "still" and tracks[0]:
        points = np.array([points for t, points in tracks[0] if t >= 0.5])  # (T, 21, 2)
        figures["jitter"] = float(np.sqrt(points.var(0).sum(-1)).mean() / size[0]) if len(points) > 10 else None
    if film.kind in ("moving", "blurred"):
        miss = [np.mean([np.hypot(*(p - film.truth(0, t - lag)).T).mean() for t, p in tracks[0]] or [0]) for lag in LAGS]
        figures["lag"] = float(LAGS[int(np.argmin(miss))]) if len(tracks[0]) > 10 else None
    return figures


def summary(scores: list[dict], seconds: float, frames: int) -> dict:
    """One row of the table."""

    def mean(name):
        values = [one[name] for one in scores if one.get(name) is not None]
        return float(np.mean(values)) if values else None

    total = {name: sum(one[name] for one in scores) for name in ("frames", "found", "same_id", "false")}
    errors = [error for one in scores for error in one["errors"]]
    return {
        "found": total["found"] / total["frames"],
        "same_id": total["same_id"] / max(total["found"], 1),
        "false_per_100_frames": 100 * total["false"] / max(frames, 1),
        "error_over_box": float(np.mean(errors)) if errors else None,
        "jitter_over_box": mean("jitter"),
        "lag_ms": None if mean("lag") is None else 1000 * mean("lag"),
        "frames_per_core_s": frames / seconds,
    }


def read_sequence(data: Path) -> tuple[list, list[float], list[np.ndarray]]:
    """The frames (PIL), times and keypoints of the real sequence of coco_hands; times are in the files' names, in us."""
    from PIL import Image

    coco = json.loads((data / "coco_hands" / "annotations.json").read_text())
    images = sorted((image for image in coco["images"] if image["source"] == "sequence"), key=lambda image: image["file_name"])
    keypoints = {a["image_id"]: np.array(a["keypoints"]).reshape(21, 3)[:, :2] for a in coco["annotations"]}
    frames = [Image.open(data / "coco_hands" / "images" / image["file_name"]).convert("RGB") for image in images]
    times = [int(Path(image["file_name"]).stem.rsplit("_", 1)[1]) / 1e6 for image in images]
    return frames, [t - times[0] for t in times], [keypoints[image["id"]] for image in images]


def measure_sequence(follow_frame: Callable, frames, truths) -> dict:
    """Share found, ids and mean error of one hand in all frames; `follow_frame(index)` answers."""
    found = [match([truth], follow_frame(index)).get(0) for index, truth in enumerate(truths)]
    errors = [one[2] for one in found if one]
    ids = Counter(one[0] for one in found if one)
    return {"found": len(errors), "of": len(frames), "ids": len(ids), "error_over_box": float(np.mean(errors or [math.nan]))}


def measure(make_tracker: Callable[[bool], object], python: str, data: Path, count: int) -> dict:
    """All rows: {"films": {row: {kind: figures}}, "sequence": {row: figures}}."""
    rows: dict[str, dict[str, list]] = {}
    for film in films(data, count):
        frames = np.stack(list(film.frames()))
        for row in ROWS:
            if row == "MediaPipe":
                answers, seconds = follow_by_mediapipe(python, frames)
            else:
                answers, seconds = follow(make_tracker(row == "ours"), frames, film.times)
            rows.setdefault(row, {}).setdefault(film.kind, []).append((score(film, answers), seconds, len(frames)))
            print(row, film.kind, f"{seconds:.1f} s", file=sys.stderr, flush=True)
    result = {"films": {}, "sequence": {}}
    for row, kinds in rows.items():
        kinds = {**kinds, "all": [each for own in kinds.values() for each in own]}
        result["films"][row] = {
            kind: summary([each[0] for each in own], sum(each[1] for each in own), sum(each[2] for each in own))
            for kind, own in kinds.items()
        }
    frames, times, truths = read_sequence(data)
    for smooth in (True, False):
        tracker = make_tracker(smooth)
        answers = [follow(tracker, [np.asarray(frame)], [t])[0][0] for frame, t in zip(frames, times)]
        name = "ours" if smooth else "ours, no filter"
        result["sequence"][name] = measure_sequence(lambda index, answers=answers: answers[index], frames, truths)
    side = max(max(frame.size) for frame in frames)
    same = np.stack([np.asarray(frame.resize((side, side))) for frame in frames])
    answers = follow_by_mediapipe(python, same)[0]
    scaled = [[(name, points * frame.width / side) for name, points in answer] for frame, answer in zip(frames, answers)]
    result["sequence"]["MediaPipe"] = measure_sequence(lambda index: scaled[index], frames, truths)
    return result


def table(result: dict) -> str:
    """The figures as Markdown."""
    names = ("", "film", "found", "ids kept", "false / 100 frames", "error / box", "jitter / box", "lag", "frames/s a core")
    head = "| " + " | ".join(names) + " |\n|" + "---|" * len(names)
    lines = [head]

    def show(value, form="{:.3f}"):
        return "" if value is None else form.format(value)

    for row, kinds in result["films"].items():
        for kind, figures in kinds.items():
            cells = [show(figures["found"]), show(figures["same_id"]), show(figures["false_per_100_frames"], "{:.1f}")]
            cells += [show(figures["error_over_box"]), show(figures["jitter_over_box"], "{:.4f}")]
            cells += [show(figures["lag_ms"], "{:.0f} ms"), show(figures["frames_per_core_s"], "{:.1f}")]
            lines.append(f"| {row} | {kind} | " + " | ".join(cells) + " |")
    for row, figures in result["sequence"].items():
        cells = f"{figures['found']} of {figures['of']} | {figures['ids']} ids | | {figures['error_over_box']:.3f} | | | |"
        lines.append(f"| {row} | real sequence | {cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="has cutouts, backgrounds, coco_hands")
    parser.add_argument("--model", default="weights/handunet-base")
    parser.add_argument("--detector", help="folder of the hand detector (default: the one that the model names)")
    parser.add_argument("--environment", type=Path, default=Path("outputs/mediapipe"), help="MediaPipe's, made if missing")
    parser.add_argument("--count", type=int, default=3, help="films of each kind")
    parser.add_argument("--output", type=Path, default=Path("outputs/tracking.json"))
    parser.add_argument("--print", type=Path, dest="shown", help="print the table of these figures")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        return answer_film(args.answer)
    if args.shown:
        return print(table(json.loads(args.shown.read_text())))
    from dataset_script.teachers import mediapipe_python
    from modeling_handunet import HandTracker, HandUNetForPoseEstimation, HandUNetImageProcessor

    model = HandUNetForPoseEstimation.from_pretrained(args.model).eval()
    processor = HandUNetImageProcessor.from_pretrained(args.model)

    def make_tracker(smooth: bool) -> HandTracker:
        return HandTracker(model, processor, args.detector, smooth=smooth)

    result = measure(make_tracker, mediapipe_python(args.environment), args.data, args.count)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
