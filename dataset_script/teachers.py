"""Teachers, which find hands in a picture: MediaPipe Hands, and a model of our own.

A teacher is a callable from an RGB picture to a list of `Look`s, one for each hand that it finds.  `crops` says at which
further crops round a hand that it has found it looks (box fill, degrees, mirrored), `box_crops` at which round a given box.

MediaPipe needs an older protobuf than tensorboard does, so it runs in an environment of its own, which runs this file as a
program.  So only the standard library and numpy are imported at the top.
"""

import importlib.util
import json
import struct
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import numpy as np

MEDIAPIPE_VERSION = "0.10.14"
ENVIRONMENT = Path("outputs/mediapipe")


class Look(NamedTuple):
    """One hand in a picture."""

    keypoints: np.ndarray  # (21, 2) px of the picture
    right: float  # probability that the picture shows a right hand


class MediaPipe:
    """MediaPipe Hands in a process of its own, at most 4 hands a picture."""

    sentence = f"MediaPipe Hands {MEDIAPIPE_VERSION} (Apache-2.0)"
    crops = ((0.5, 0.0, False), (0.42, 15.0, True), (0.6, -11.0, False))
    # It finds hands that hang down, hold something or rest more often in one of these.
    box_crops = crops + (
        (0.5, 90.0, False), (0.5, 180.0, False), (0.5, -90.0, False), (0.35, 20.0, True), (0.35, 180.0, False),
        (0.42, 135.0, False), (0.42, -135.0, True),
    )  # fmt: skip
    detects = True  # answers nothing for a picture without a hand

    def __init__(self, environment: Path = ENVIRONMENT):
        command = [mediapipe_python(environment), "-P", "-W", "ignore", Path(__file__).resolve()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def __call__(self, picture) -> list[Look]:
        try:
            self.process.stdin.write(struct.pack("<II", *picture.size) + picture.tobytes())
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            reason = f"ended with status {self.process.wait()}: does `{self.process.args[0]} -c 'import mediapipe'` work?"
            raise OSError(f"MediaPipe's process {reason}") from None
        return [Look(np.array(points) * picture.size, right) for points, right in answer]

    def close(self) -> None:
        self.process.communicate()


def mediapipe_python(environment: Path) -> str:
    """The Python that has MediaPipe: this one, or that of `environment`, which is made if it is missing (300 MB)."""
    if importlib.util.find_spec("mediapipe"):
        return sys.executable
    python = environment.resolve() / "bin" / "python"
    if not (environment / "installed").exists():
        venv.create(environment, with_pip=True)
        command = [python, "-m", "pip", "install", "--quiet", f"mediapipe=={MEDIAPIPE_VERSION}"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
        except subprocess.CalledProcessError as error:
            raise OSError(f"{environment}: MediaPipe could not be installed: {error.stderr.strip()[-300:]}") from None
        (environment / "installed").touch()
    return str(python)


def answer_pictures() -> None:
    """Read pictures (width, height, pixels) and write a line of JSON for each: keypoints in shares of the sides, `right`."""
    import mediapipe

    hands = mediapipe.solutions.hands.Hands(
        static_image_mode=True, model_complexity=1, max_num_hands=4, min_detection_confidence=0.3
    )
    while header := sys.stdin.buffer.read(8):
        width, height = struct.unpack("<II", header)
        pixels = np.frombuffer(sys.stdin.buffer.read(width * height * 3), np.uint8).reshape(height, width, 3)
        found = hands.process(pixels)
        answer = []
        for points, side in zip(found.multi_hand_landmarks or (), found.multi_handedness or ()):
            left = side.classification[0].label == "Left"  # said of a right hand: it expects mirrored pictures
            right = side.classification[0].score if left else 1 - side.classification[0].score
            answer.append(([(point.x, point.y) for point in points.landmark], right))
        print(json.dumps(answer), flush=True)


class HandUNet:
    """A model of our own, averaged over turned crops.  It takes any picture for one hand, so it needs to be shown where."""

    crops = tuple((None, angle, False) for angle in (0.0, 20.0, -20.0, 40.0, -40.0))
    detects = False

    def __init__(self, model: str):
        from modeling_handunet import HandUNetForPoseEstimation, HandUNetImageProcessor

        self.sentence = f"the HandUNet {Path(model).name}, averaged over turned crops"
        self.model = HandUNetForPoseEstimation.from_pretrained(model)
        self.processor = HandUNetImageProcessor.from_pretrained(model)
        self.crops = self.box_crops = tuple((self.processor.box_fill, angle, mirrored) for _, angle, mirrored in self.crops)

    def __call__(self, picture, side: str | None = None) -> list[Look]:
        """The likelier of a right and a left hand, if the `side` is not known: the network knows right hands, so it has larger
        scores for them."""
        import torch

        sides = (side,) if side else ("right", "left")
        inputs = self.processor([picture] * len(sides), handedness=sides)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        sizes = [picture.size[::-1]] * len(sides)
        hands = self.processor.post_process_pose_estimation(outputs, target_sizes=sizes, handedness=sides)
        scores = {name: hand["scores"].mean().item() for name, (hand,) in zip(sides, hands)}
        right = scores.get("right", 0.0) / max(sum(scores.values()), 1e-9)
        (surest,) = hands[sides.index(max(sides, key=scores.get))]
        return [Look(surest["keypoints"].numpy(), right)]


if __name__ == "__main__":
    answer_pictures()
