"""What a hand detector takes for hands and is none: elbows, faces, lettering.  As negatives, they teach the network that reads
keypoints to doubt them.

    python -m dataset_script.false_hands --people people --photos backgrounds --detector weights/handunet-detector \\
        --output false_hands

The folder --output gets `images/`, squares of 224 px of which what was found fills 0.3, as `dataset_script/photographs.py` has
hands; and `index.json`, a list of their `file_name`, `source`, `license`, `split` ("train" or "validation") and the detector's
`score`.
People are photographs as `dataset_script/people.py` describes; their part "test" is not read, nor are those that a teacher
marked, since it misses hands.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dataset_script.files import MAX_JSON_BYTES, FileTree, parse_json
from dataset_script.people import read_people
from dataset_script.photographs import FILL, PARTS, SIDE, read_licenses
from dataset_script.squares import Squares
from modeling_handunet import HandUNetDetectorImageProcessor, HandUNetForObjectDetection
from modeling_handunet.crops import Crop
from modeling_handunet.hands import FoundHand
from modeling_handunet.images import load_image
from modeling_handunet.torch_hands import detect_hands

MOST = 8  # of one photograph, the surest ones
LEAST_SCORE = 0.1
LEAST_SIZE = 0.03  # of the photograph's longer side: people did not mark smaller hands
# What was found is no hand if it overlaps none by more than this share of its own area.
MOST_OVERLAP = 0.1
TURN = torch.arange(21) * (2 * torch.pi / 21)


def read_index(folder: str | os.PathLike) -> list[dict]:
    """The entries of `index.json`, checked."""
    tree = FileTree(Path(folder))
    where = tree.where("index.json")
    entries = parse_json(tree.read("index.json", MAX_JSON_BYTES), where)
    try:
        for entry in entries:
            if entry["split"] not in PARTS or not all(
                isinstance(entry[name], str) for name in ("file_name", "source", "license")
            ):
                raise ValueError(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is not an index of squares ({error!r})") from error
    return entries


class PlaceSquares:
    """Squares of what may be a hand, kept in `cache_dir`; 150 kB each.

    `keypoints` (21, 2), in pixels of a square, are none of a hand.  They lie on a circle that touches what is there, so that
    the augmentation moves it as it moves a hand.
    """

    keypoints = SIDE / 2 * (1 + FILL * torch.stack([TURN.cos(), TURN.sin()], 1))

    def __init__(self, folder: str | os.PathLike, entries: Sequence[dict], cache_dir: str | os.PathLike):
        paths = [(Path(folder) / "images" / entry["file_name"], None) for entry in entries]
        self.squares = Squares(paths, SIDE, cache_dir)

    def __len__(self) -> int:
        return len(self.squares)

    def images(self, numbers: Tensor | list[int]) -> Tensor:
        """The squares `numbers` (B,), as (B, 3, 224, 224) uint8."""
        return self.squares.rows([int(number) for number in numbers])["image"]

    def __getitem__(self, number: int) -> dict:
        """One of them as [`HandCrops`] reads hands: `image` (PIL), `uv` (21, 2) and `box`, of what is there."""
        pixels = self.images([number])[0].permute(1, 2, 0).numpy()
        corner, side = SIDE * (1 - FILL) / 2, SIDE * FILL
        return {"image": Image.fromarray(pixels), "uv": self.keypoints.numpy(), "box": (corner, corner, side, side)}


class FalseHands(PlaceSquares):
    """The squares of one part.

    Raises `FileNotFoundError` for missing files and `ValueError` for an index that is not as described above, naming them.
    """

    def __init__(self, folder: str | os.PathLike, part: str, cache_dir: str | os.PathLike):
        entries = read_part(folder, part)
        if any("handedness" in entry for entry in entries):
            raise ValueError(f"{folder} has hands, not false ones")
        super().__init__(folder, entries, cache_dir)


def read_part(folder: str | os.PathLike, part: str) -> list[dict]:
    """The entries of one part; raises `ValueError` if there is none."""
    entries = [entry for entry in read_index(folder) if entry["split"] == part]
    if not entries:
        raise ValueError(f"{folder} has no square of the split {part!r}")
    return entries


def credits_of_squares(folder: str | os.PathLike, what: str) -> tuple[tuple[str, str, str], ...]:
    """The sources of the training squares of a folder, with their licences and the numbers of `what` they are."""
    entries = read_index(folder)
    counts = Counter((entry["source"], entry["license"]) for entry in entries if entry["split"] == "train")
    return tuple((source.replace("+", "/"), terms, f"{count} {what}") for (source, terms), count in sorted(counts.items()))


def write_index(folder: Path, index: list[dict]) -> None:
    """Write `index.json`, and tell the numbers."""
    (folder / "index.json").write_text(json.dumps(index))
    counts = Counter(entry["split"] for entry in index)
    print(f"{folder}: {counts['train']} for training, {counts['validation']} for validation")


def overlap_of_own(box, others: np.ndarray) -> float:
    """The largest share of the area of `box` (4,), as corners, that one of `others` (N, 4) covers."""
    size = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float((size.clip(min=0).prod(1) / np.prod(np.subtract(box[2:], box[:2]))).max(initial=0))


def photographs(people: str | None, photos: str | None) -> Iterator[tuple[Path, np.ndarray, str, str]]:
    """Paths, boxes (N, 4) of all hands as corners, sources and splits."""
    for image, hands in read_people(people, PARTS) if people else ():
        if image["marked"] == "by eye":
            boxes = np.array([hand["bbox"] for hand in hands], float).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            yield image["path"], boxes, image["source"], image["split"]
    if photos:
        tree = FileTree(Path(photos))
        for row in parse_json(tree.read("index.json", MAX_JSON_BYTES), tree.where("index.json")):
            yield Path(photos) / row["file_name"], np.zeros((0, 4)), row["source"], "train"


def find_false_hands(found: Sequence[FoundHand], longer_side: int, boxes: np.ndarray) -> list[FoundHand]:
    """The surest of what was found in a photograph and lies on none of its hands, `boxes` (N, 4) as corners."""
    return [
        hand
        for hand in found
        if hand.score >= LEAST_SCORE
        and max(np.subtract(hand.box[2:], hand.box[:2])) >= LEAST_SIZE * longer_side
        and overlap_of_own(hand.box, boxes) <= MOST_OVERLAP
    ][:MOST]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", help="a folder of photographs with boxes round hands")
    parser.add_argument("--photos", help="a folder of photographs without people, with an index.json")
    parser.add_argument("--detector", required=True, help="a folder or Hub id of a hand detector")
    parser.add_argument("--output", required=True)
    args = parser.parse_args(argv)
    if not args.people and not args.photos:
        parser.error("name --people, --photos or both")
    try:
        collect(args)
    except (OSError, ValueError) as error:
        sys.exit(f"false_hands: {error}")


def collect(args: argparse.Namespace) -> None:
    """What the command line asks for."""
    model = HandUNetForObjectDetection.from_pretrained(args.detector).eval()
    processor = HandUNetDetectorImageProcessor.from_pretrained(args.detector)
    images = Path(args.output, "images")
    images.mkdir(parents=True, exist_ok=True)
    index = []
    licenses = {name: terms for folder in (args.people, args.photos) if folder for name, terms in read_licenses(folder).items()}
    for path, boxes, source, split in tqdm(list(photographs(args.people, args.photos)), unit="photograph"):
        photo = load_image(path)
        (found,) = detect_hands(model, processor, [photo])
        for hand in find_false_hands(found, max(photo.size), boxes):
            left, top, right, bottom = hand.box
            square = Crop.around_box((left, top, right - left, bottom - top), SIDE, FILL).cut(photo)
            name = f"{len(index):05}.webp"
            square.save(images / name, quality=85)
            terms = {"source": source, "license": licenses.get(source, "not stated")}
            index.append({"file_name": name, **terms, "split": split, "score": round(hand.score, 3)})
    write_index(Path(args.output), index)


if __name__ == "__main__":
    main()
