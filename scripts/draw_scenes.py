"""Draws what a run on scenes would see: each picture as it is, and below it the same with its keypoints.

    python -m scripts.draw_scenes OUTPUT.jpg [--count 40] [--beside hands.json] [any option of train.py about data]

Negatives (no hand, a left one, one far off the centre) have no keypoints.  With --beside, real hands of a COCO keypoint
file (whose photographs are in images/ next to it) follow below, cut out alike, to be judged by.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from dataset_script import CocoHands, HandCrops
from dataset_script.augmentation import augmentation_keys
from dataset_script.sources import make_source
from modeling_handunet import draw_hand
from training.arguments import parse_arguments

COLUMNS = 10
ZOOM = 2


def draw(path: Path, count: int, options: list[str], beside: Path | None = None) -> None:
    """Write a sheet of `count` training scenes, two rows for ten of them, and of as many real hands below."""
    args = parse_arguments(["--dataset", "scenes", "--streaming", "--validation_samples", "1", "--test_samples", "1", *options])
    settings = {"image_size": args.model.image_size, "box_fill": args.model.box_fill, "seed": args.optimisation.seed}
    source = make_source(args.data.dataset, args.data.shares, args.data, **settings)
    batch = source.splits().train.__getitems__(list(range(count)))
    inputs = source.make_inputs(batch, augmentation_keys(args.optimisation.seed, 0, batch["index"]))
    rows = rows_of((inputs.images * 255 + 0.5).to(torch.uint8), inputs.keypoints)
    if beside is not None:
        hands = CocoHands(beside, beside.parent / "images", cache_dir=args.data.cache_dir).build()["train"]
        crops = HandCrops(hands, args.model.image_size, box_fill=args.model.box_fill)
        real = default_collate(crops.__getitems__(list(range(min(count, len(crops))))))
        points = torch.where(real["visibility"][..., None], real["keypoints"], torch.nan)
        rows += [np.full_like(rows[0][: 4 * ZOOM], 255), *rows_of(real["image"], points)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path, quality=85)


def rows_of(images: torch.Tensor, keypoints: torch.Tensor) -> list[np.ndarray]:
    """Rows of 8-bit pictures (B, 3, S, S), each followed by the same with their keypoints (B, 21, 2) drawn."""
    pictures, rows = images.permute(0, 2, 3, 1).contiguous().numpy(), []
    for first in range(0, len(pictures), COLUMNS):
        plain, drawn = [], []
        for picture, points in zip(pictures[first : first + COLUMNS], keypoints[first : first + COLUMNS].numpy()):
            image = Image.fromarray(picture)
            image = image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.BICUBIC)
            plain.append(np.asarray(image))
            drawn.append(np.asarray(draw_hand(image, points * ZOOM)))
        missing = [np.zeros_like(plain[0])] * (COLUMNS - len(plain))
        rows += [np.concatenate(plain + missing, 1), np.concatenate(drawn + missing, 1)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="picture to write")
    parser.add_argument("--count", type=int, default=40, help="scenes to draw (default: 40)")
    parser.add_argument("--beside", type=Path, metavar="HANDS.json", help="a COCO keypoint file of real hands to show below")
    known, options = parser.parse_known_args()
    draw(known.output, known.count, options, known.beside)


if __name__ == "__main__":
    main()
