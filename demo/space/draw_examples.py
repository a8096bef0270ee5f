"""Draw the Space's example pictures, which also go with every published model: hands modelled by the project itself.

    python demo/space/draw_examples.py
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a checkout

from dataset_script.synthetic import SyntheticHands

FOLDER = Path(__file__).resolve().parent / "examples"
SIZE = 448
SEED = 20260
# Name, title, difficulty, sample, whether it is mirrored into a left hand.
EXAMPLES = (
    ("open", "an open right hand", "easy", 7, False),
    ("pointing", "a pointing right hand", "easy", 17, False),
    ("left", "an open left hand", "easy", 18, True),
    ("three", "thumb and two fingers of a right hand", "easy", 12, False),
)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    described = []
    for name, title, difficulty, sample, mirrored in EXAMPLES:
        row = SyntheticHands(sample + 1, seed=SEED, image_size=SIZE, difficulty=difficulty)[sample]
        image, uv = row["image"], np.array(row["uv"], np.float64)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            uv[:, 0] = SIZE - uv[:, 0]
        low, high = uv.min(0) - 6, uv.max(0) + 6  # the flesh round the joints
        image.save(FOLDER / f"{name}.jpg", quality=88)
        box = [round(float(value)) for value in (*low, *(high - low))]
        side = "left" if mirrored else "right"
        described.append({"file": f"{name}.jpg", "title": title, "handedness": side, "box": box})
    (FOLDER / "examples.json").write_text(json.dumps(described, indent=2) + "\n")


if __name__ == "__main__":
    main()
