"""What the tracking is worth: on films drawn with exact truth, and on a real sequence, beside MediaPipe's tracking.

    python -m benchmarks.tracking --data ../shared/data        # outputs/tracking.json, and the tables in docs/tracking.md
    python -m benchmarks.tracking --print outputs/tracking.json      # the tables; nothing is measured
    python -m benchmarks.tracking --speed_only                       # measures only the last table, and keeps the others

A film is 3 s of 640x480 at 30 frames a second: cut-out hands of poses that no training saw, moved over a photograph without
people, with noise.  MediaPipe labelled the keypoints of these cut-outs, which favours it; it gives no ids, so its left or
right serves as one.  It runs in an environment of its own (see `dataset_script/teachers.py`).  Each way answers in a process
of its own; for the speeds, the ways take turns on a film of two hands.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIZE, RATE, SECONDS = (640, 480), 30, 3.0
NOISE = 2.5  # standard deviation of a pixel
FOUND = 0.25  # an answer is of a hand whose keypoints it misses by no more than this share of the box, on average
INSIDE = 15  # so many keypoints must lie in the frame for a hand to count
EXPOSURE, PARTS = 1 / 50, 7  # of a blurred film's frame, and how many instants make it
ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "tracking.md"
MEDIAPIPE = "MediaPipe"
SPEED_FRAMES = 60
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
    "meeting": [("right", lambda t: (130 + 125 * t, 240, 125, -10)), ("right", lambda t: (510 - 125 * t, 270, 130, 10))],
    "leaving": [("right", lambda t: (out_and_back(t), 260, 130, 0))],
    "blurred": [("right", lambda t: (320 + 190 * wave(1.2 * t), 250, 130, 0))],
    "two": [
        ("left", lambda t: (170 + 40 * wave(0.6 * t), 240, 140, 10 * wave(t))),
        ("right", lambda t: (470, 250 + 40 * wave(0.5 * t), 140, 0)),
    ],
}
SPEED_FILM = "two"


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


@dataclass(frozen=True)
class Answers:
    """What one way answers of one film.

    frames: of each frame a list of (id, keypoints (21, 2) px, the same before the filter).
    seconds, processor: of a frame, on the clock and of all cores, the first frame left out.
    first: seconds from the start of the program to the first answer.
    """

    frames: list[list[tuple[object, np.ndarray, np.ndarray]]]
    seconds: float
    processor: float
    first: float


def ask(command: list[str], films: Sequence[tuple[np.ndarray, list[float]]]) -> list[Answers]:
    """What the way that `command` starts answers of films, each given as frames (T, H, W, 3) and times, in one process."""
    with tempfile.TemporaryDirectory() as folder:
        job = []
        for number, (frames, times) in enumerate(films):
            np.save(Path(folder) / f"{number}.npy", frames)
            job.append({"frames": f"{folder}/{number}.npy", "times": list(times)})
        (Path(folder) / "job.json").write_text(json.dumps(job))
        begin = time.time()
        command = [command[0], "-W", "ignore", __file__, "--answer", f"{folder}/job.json", *command[1:]]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    answers = []
    for answer in json.loads(done.stdout.splitlines()[-1]):
        frames = [[(name, np.array(points), np.array(read)) for name, points, read in frame] for frame in answer["frames"]]
        answers.append(Answers(frames, answer["seconds"], answer["processor"], answer["first"] - begin))
    return answers


def answer_films(job: str, model: str | None, backend: str | None, detector: str | None) -> None:
    """Answer the films of a job, with our networks or, without a model, with MediaPipe: prints JSON."""
    start = start_ours(model, backend, detector) if model else start_mediapipe
    answers = []
    for film in json.loads(Path(job).read_text()):
        follow, frames, found, first = start(), np.load(film["frames"], mmap_mode="r"), [], None
        for frame, t in zip(frames, film["times"]):
            found.append(follow(np.asarray(frame), t))
            if first is None:
                first, clock, processor = time.time(), time.perf_counter(), time.process_time()
        count = max(len(frames) - 1, 1)
        seconds, processor = (time.perf_counter() - clock) / count, (time.process_time() - processor) / count
        answers.append({"frames": found, "seconds": seconds, "processor": processor, "first": first})
    print(json.dumps(answers))


def start_ours(model: str, backend: str, detector: str | None) -> Callable:
    """What begins to follow hands in a film with our networks."""
    from PIL import Image

    from handunet.backends import load

    models = load(model, backend, detector)
    from modeling_handunet.tracking import HandTracks

    def start():
        tracker = HandTracks(models)

        def follow(frame, t):
            hands = tracker(Image.fromarray(frame), t)
            read = {track.id: track.keypoints.tolist() for track in tracker.tracks}
            return [(hand["id"], [(point["x"], point["y"]) for point in hand["keypoints"]], read[hand["id"]]) for hand in hands]

        return follow

    return start


def start_mediapipe() -> Callable:
    """The same of MediaPipe, in its own environment."""
    import mediapipe

    hands = mediapipe.solutions.hands.Hands(model_complexity=1, max_num_hands=2)

    def follow(frame, t):
        found = hands.process(frame)
        height, width = frame.shape[:2]
        sides = [side.classification[0].label for side in found.multi_handedness or ()]
        points = [[(point.x * width, point.y * height) for point in hand.landmark] for hand in found.multi_hand_landmarks or ()]
        return [(side, own, own) for side, own in zip(sides, points)]

    return follow


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


def summary(scores: list[dict], frames: int) -> dict:
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
    }


def read_sequence(data: Path) -> tuple[np.ndarray, list[float], list[np.ndarray]]:
    """The frames, times and keypoints of the real sequence of coco_hands, whose square frames are scaled to the largest one.
    Times are in the files' names, in us."""
    from PIL import Image

    coco = json.loads((data / "coco_hands" / "annotations.json").read_text())
    images = sorted((image for image in coco["images"] if image["source"] == "sequence"), key=lambda image: image["file_name"])
    keypoints = {a["image_id"]: np.array(a["keypoints"]).reshape(21, 3)[:, :2] for a in coco["annotations"]}
    frames = [Image.open(data / "coco_hands" / "images" / image["file_name"]).convert("RGB") for image in images]
    times = [int(Path(image["file_name"]).stem.rsplit("_", 1)[1]) / 1e6 for image in images]
    side = max(frame.width for frame in frames)
    truths = [keypoints[image["id"]] * side / frame.width for image, frame in zip(images, frames)]
    same = [np.asarray(frame.resize((side, side), Image.Resampling.BILINEAR)) for frame in frames]
    return np.stack(same), [t - times[0] for t in times], truths


def score_sequence(answers: Answers, truths: list[np.ndarray], steady: bool) -> dict:
    """Share found, ids and mean error of one hand in all frames."""
    found = [match([truth], shown(answer, steady)).get(0) for truth, answer in zip(truths, answers.frames)]
    errors = [one[2] for one in found if one]
    ids = Counter(one[0] for one in found if one)
    return {"found": len(errors), "of": len(truths), "ids": len(ids), "error_over_box": float(np.mean(errors or [math.nan]))}


def shown(answer, steady: bool) -> list[tuple[object, np.ndarray]]:
    """A frame's ids and keypoints, after or before the filter."""
    return [(name, points if steady else read) for name, points, read in answer]


def measure(ways: dict[str, list[str]], data: Path, count: int) -> dict:
    """The quality of all ways: {"films": {row: {kind: figures}}, "sequence": {row: figures}}."""
    made = list(films(data, count))
    asked = [(np.stack(list(film.frames())), film.times) for film in made]
    sequence, times, truths = read_sequence(data)
    asked.append((sequence, times))
    result = {"films": {}, "sequence": {}}
    for way, command in ways.items():
        say(f"{way}: {len(asked)} films")
        *answers, of_sequence = ask(command, asked)
        for steady in (True, False):
            if way == MEDIAPIPE and not steady:
                continue
            row = way if steady or way == MEDIAPIPE else f"{way}, no filter"
            rows: dict[str, list] = {}
            for film, answer in zip(made, answers):
                own = score(film, [shown(frame, steady) for frame in answer.frames])
                for kind in (film.kind, "all"):
                    rows.setdefault(kind, []).append((own, len(film.times)))
            result["films"][row] = {
                kind: summary([one for one, _ in own], sum(frames for _, frames in own)) for kind, own in rows.items()
            }
            result["sequence"][row] = score_sequence(of_sequence, truths, steady)
    return result


def measure_speed(ways: dict[str, list[str]], data: Path, rounds: int) -> dict:
    """{way: {name: one value a round}} on a film of two hands, the ways taking turns."""
    film = next(film for film in films(data, 1) if film.kind == SPEED_FILM)
    frames = np.stack([frame for frame, _ in zip(film.frames(), range(SPEED_FRAMES))])
    speeds: dict[str, dict[str, list]] = {way: {} for way in ways}
    for number in range(rounds):
        for way, command in ways.items():
            (answers,) = ask(command, [(frames, film.times[:SPEED_FRAMES])])
            hands = float(np.mean([len(frame) for frame in answers.frames]))
            values = {"seconds": answers.seconds, "processor": answers.processor, "first": answers.first, "hands": hands}
            for name, value in values.items():
                speeds[way].setdefault(name, []).append(value)
            say(f"round {number + 1}, {way}: {1 / answers.seconds:.1f} frames/s")
    return speeds


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(result: dict) -> str:
    """The figures as Markdown."""
    return "\n\n".join(make(result) for name, make in (("films", film_table), ("speed", speed_table)) if name in result)


def film_table(result: dict) -> str:
    """A line for each way and kind of film, and one for each way on the real sequence."""
    names = ("", "film", "found", "ids kept", "false / 100 frames", "error / box", "jitter / box", "lag")
    lines = ["| " + " | ".join(names) + " |\n|" + "---|" * len(names)]

    def show(value, form="{:.3f}"):
        return "" if value is None else form.format(value)

    for row, kinds in result["films"].items():
        for kind, figures in kinds.items():
            cells = [show(figures["found"]), show(figures["same_id"]), show(figures["false_per_100_frames"], "{:.1f}")]
            cells += [show(figures["error_over_box"]), show(figures["jitter_over_box"], "{:.4f}")]
            cells += [show(figures["lag_ms"], "{:.0f} ms")]
            lines.append(f"| {row} | {kind} | " + " | ".join(cells) + " |")
    for row, figures in result["sequence"].items():
        cells = f"{figures['found']} of {figures['of']} | {figures['ids']} ids | | {figures['error_over_box']:.3f} | | |"
        lines.append(f"| {row} | real sequence | {cells}")
    return "\n".join(lines)


def speed_table(result: dict) -> str:
    """A line for each way: medians over the rounds, and how they compare with MediaPipe's of the same round."""
    names = ("two hands, 640x480", "hands", "frames/s", "of MediaPipe's", "processor time a frame", "first answer")
    lines = ["| " + " | ".join(names) + " |\n|" + "---|" * len(names)]
    peer = result["speed"][MEDIAPIPE]
    for way, own in result["speed"].items():
        median = {name: float(np.median(values)) for name, values in own.items()}
        ratio = float(np.median([other / mine for mine, other in zip(own["seconds"], peer["seconds"])]))
        cells = f"{median['hands']:.1f} | {1 / median['seconds']:.1f} | {ratio:.2f} x | {1000 * median['processor']:.1f} ms"
        lines.append(f"| {way} | {cells} | {median['first']:.2f} s |")
    return "\n".join(lines)


def write_docs(path: Path, result: dict) -> None:
    """Put the tables between the marks of a document."""
    from release.card import fill_block

    path.write_text(fill_block(path.read_text(), "figures", table(result)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="has cutouts, backgrounds, coco_hands")
    parser.add_argument("--base", default="weights/handunet-base", help="runs in torch")
    parser.add_argument("--small", default="handunet/models/int8/pose.onnx", help="runs in onnxruntime")
    parser.add_argument("--more", nargs="*", default=[], metavar="FILE", help="more ONNX files, such as one of 8-bit weights")
    parser.add_argument("--environment", type=Path, default=Path("outputs/mediapipe"), help="MediaPipe's, made if missing")
    parser.add_argument("--count", type=int, default=3, help="films of each kind")
    parser.add_argument("--rounds", type=int, default=5, help="of the speeds")
    parser.add_argument("--speed_only", action="store_true", help="measure the speeds, and keep the other figures")
    parser.add_argument("--output", type=Path, default=Path("outputs/tracking.json"))
    parser.add_argument("--docs", type=Path, default=DOCS, help="the document that gets the tables")
    parser.add_argument("--print", type=Path, dest="shown", help="print the tables of these figures")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    for name in ("model", "backend", "detector"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        return answer_films(args.answer, args.model, args.backend, args.detector)
    if args.shown:
        return print(table(json.loads(args.shown.read_text())))
    from dataset_script.teachers import mediapipe_python

    ways = {
        "base, torch": [sys.executable, "--model", args.base, "--backend", "torch"],
        "small, onnxruntime": [sys.executable, "--model", args.small, "--backend", "onnx"],
        **{f"{Path(file).stem}, onnxruntime": [sys.executable, "--model", file, "--backend", "onnx"] for file in args.more},
        MEDIAPIPE: [mediapipe_python(args.environment)],
    }
    result = json.loads(args.output.read_text()) if args.speed_only and args.output.exists() else {}
    if not args.speed_only:
        result |= measure(ways, args.data, args.count)
    if args.rounds:
        result["speed"] = measure_speed(ways, args.data, args.rounds)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    write_docs(args.docs, result)
    print(table(result))


if __name__ == "__main__":
    main()
