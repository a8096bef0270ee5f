"""Whole photographs to keypoints, beside MediaPipe Hands: which share of the labelled keypoints each finds.

    python -m benchmarks.photographs --people people --split test --environment outputs/mediapipe

`people` is laid out as `dataset_script/people.py` says.  Only hands with keypoints count; a teacher, MediaPipe Hands, labelled
them by several looks, which favours MediaPipe.  A keypoint is found if the answer that is nearest to its hand has it within 0.1
of the hand's box; keypoints of hands that nothing was found at are missed.  `handunet-base` runs in torch, `handunet` in
onnxruntime, both as `handunet photo.jpg` runs them.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from handunet.backends import CLONE_MODEL, choose, load
from modeling_handunet.hands import find_hands

WITHIN = 0.1


def labelled(folder: Path, split: str) -> dict[str, list[np.ndarray]]:
    """By photograph the keypoints (21, 3) of its hands, x and y in pixels and whether they are labelled."""
    coco = json.loads((folder / "annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in coco["images"] if image["split"] == split}
    hands: dict[str, list[np.ndarray]] = {}
    for hand in coco["annotations"]:
        if hand["image_id"] in names and hand.get("keypoints") and not hand.get("ignore"):
            hands.setdefault(names[hand["image_id"]], []).append(np.reshape(hand["keypoints"], (21, 3)).astype(float))
    return hands


def found_keypoints(truth: np.ndarray, answers: list[np.ndarray]) -> int:
    """How many labelled keypoints of a hand (21, 3) the nearest of the answers (21, 2) has within 0.1 of the box."""
    seen = truth[:, 2] > 0
    size = np.ptp(truth[seen, :2], axis=0).max()
    errors = [np.linalg.norm(answer[seen] - truth[seen, :2], axis=1) / size for answer in answers]
    return int((min(errors, key=np.mean) <= WITHIN).sum()) if errors else 0


def score(folder: Path, hands: dict[str, list[np.ndarray]], answer: Callable) -> dict[str, float]:
    """`share` of the keypoints that are found, and the median `seconds` a photograph."""
    right = total = 0
    seconds = []
    for name, truths in hands.items():
        photo = Image.open(folder / "images" / name).convert("RGB")
        begin = time.perf_counter()
        answers = answer(photo)
        seconds.append(time.perf_counter() - begin)
        right += sum(found_keypoints(truth, answers) for truth in truths)
        total += sum(int((truth[:, 2] > 0).sum()) for truth in truths)
    return {"share": right / total, "seconds": float(np.median(seconds))}


def ours(model: str, backend: str) -> Callable:
    """What answers a photograph with the keypoints (21, 2) of each hand."""
    models = load(model, backend)

    def answer(photo) -> list[np.ndarray]:
        hands = find_hands(models, photo)
        return [np.array([(point["x"], point["y"]) for point in hand["keypoints"]]) for hand in hands]

    return answer


def main() -> None:
    from dataset_script.teachers import ENVIRONMENT, MediaPipe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="MediaPipe's")
    args = parser.parse_args()
    hands = labelled(args.people, args.split)
    mediapipe = MediaPipe(args.environment)
    ways = {
        "handunet-base": ours(str(CLONE_MODEL), "torch"),
        "handunet": ours(choose(None, "onnx")[1], "onnx"),
        "MediaPipe": lambda photo: [look.keypoints for look in mediapipe(photo)],
    }
    print(f"{sum(map(len, hands.values()))} hands in {len(hands)} photographs\n")
    print("| | keypoints found | a photograph |\n|---|---|---|")
    for name, answer in ways.items():
        found = score(args.people, hands, answer)
        print(f"| {name} | {found['share']:.3f} | {1000 * found['seconds']:.0f} ms |", flush=True)
    mediapipe.close()


if __name__ == "__main__":
    main()
