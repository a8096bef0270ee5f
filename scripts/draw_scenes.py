"""Draws what a run on scenes would see: each picture as it is, and below it the same with its keypoints.

    python -m scripts.draw_scenes OUTPUT.jpg [--count 40] [any option of train.py about data]

Negatives (no hand, a left one, one far off the centre) have no keypoints.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from modeling_handunet import draw_hand
from training.arguments import parse_arguments
from training.augmentation import augmentation_keys
from training.data import load_splits

COLUMNS = 10
ZOOM = 2


def draw(path: Path, count: int, options: list[str]) -> None:
    """Write a sheet of `count` training scenes, two rows for ten of them."""
    args = parse_arguments(["--difficulty", "scenes", "--streaming", "--validation_samples", "1", "--test_samples", "1", *options])
    splits = load_splits(args)
    batch = default_collate(splits.train.__getitems__(list(range(count))))
    keys = augmentation_keys(args.seed, 0, batch["index"])
    images, keypoints = splits.scenes(batch["image"], batch["keypoints"], batch["skin"], keys)
    pictures = (images * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    rows = []
    for first in range(0, count, COLUMNS):
        plain, drawn = [], []
        for picture, points in zip(pictures[first : first + COLUMNS], keypoints[first : first + COLUMNS].numpy()):
            image = Image.fromarray(picture)
            image = image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.BICUBIC)
            plain.append(np.asarray(image))
            drawn.append(np.asarray(draw_hand(image, points * ZOOM)))
        missing = [np.zeros_like(plain[0])] * (COLUMNS - len(plain))
        rows += [np.concatenate(plain + missing, 1), np.concatenate(drawn + missing, 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path, quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="picture to write")
    parser.add_argument("--count", type=int, default=40, help="scenes to draw (default: 40)")
    known, options = parser.parse_known_args()
    draw(known.output, known.count, options)


if __name__ == "__main__":
    main()
