"""Hands of which only the box and perhaps the side is known: they teach a pose network's hand classifier.

    python -m dataset_script.boxed_hands --people people --output boxed_hands

The folder --output gets `images/`, squares of 224 px of which the hand's box fills 0.3, as `dataset_script/photographs.py` has
hands; and `index.json`, a list of their `file_name`, `source`, `license`, `split` ("train" or "validation"), `side` ("right",
"left" or null) and `marked` ("by eye" or "teacher").
People are photographs as `dataset_script/people.py` describes; their part "test" is not read, nor are hands that are to be
ignored or too small.
"""

import argparse
import json
import os
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dataset_script import counter_rng
from dataset_script.false_hands import LEAST_SIZE, Places, read_index, read_part
from dataset_script.people import SIDES, read_people
from dataset_script.photographs import FILL, PARTS, SIDE, read_licenses
from modeling_handunet.crops import Crop
from modeling_handunet.images import load_image
from modeling_handunet.losses import LEFT, RIGHT, SOME_HAND

# Of the samples, the share of hands that were marked by eye: they are few, and a teacher sees the easy ones alone.
BY_EYE_SHARE = 0.7


class BoxedHands(Places):
    """The squares of one part, and `labels` (N,), as `modeling_handunet.losses.hand_loss` has them.

    Raises `FileNotFoundError` for missing files and `ValueError` for an index that is not as described above, naming them.
    """

    def __init__(self, folder: str | os.PathLike, part: str, cache_dir: str | os.PathLike):
        entries = read_part(folder, part)
        sides = SIDES | {None: SOME_HAND}
        try:
            self.labels = torch.tensor([sides[entry["side"]] for entry in entries])
            by_eye = torch.tensor([entry["marked"] == "by eye" for entry in entries])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{Path(folder) / 'index.json'} is not an index of hands with boxes ({error!r})") from error
        self.kinds = [numbers.nonzero(as_tuple=True)[0] for numbers in (by_eye, ~by_eye)]
        super().__init__(folder, entries, cache_dir)

    def sample(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Squares (B, 3, 224, 224) uint8 and their labels (B,), half of them mirrored, drawn by `keys` (B, 2)."""
        draw = counter_rng.uniform(keys, "boxed hand", (3,)).cpu().double()
        by_eye, others = self.kinds
        is_by_eye = ((draw[:, 0] < BY_EYE_SHARE) | (len(others) == 0)) & (len(by_eye) > 0)
        kinds = [by_eye if chosen else others for chosen in is_by_eye.tolist()]
        numbers = torch.stack([kind[int(place * len(kind))] for kind, place in zip(kinds, draw[:, 1].tolist())])
        images, labels = self.images(numbers), self.labels[numbers]
        mirrored = draw[:, 2] < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        other = torch.where(labels == RIGHT, LEFT, torch.where(labels == LEFT, RIGHT, labels))
        return images, torch.where(mirrored, other, labels)


def boxed_hand_credits(folder: str | os.PathLike) -> tuple[tuple[str, str, str], ...]:
    """The sources of the training hands of a folder, with their licences and numbers."""
    counts = Counter((entry["source"], entry["license"]) for entry in read_index(folder) if entry["split"] == "train")
    return tuple(
        (source.replace("+", "/"), terms, f"{count} hands with boxes") for (source, terms), count in sorted(counts.items())
    )


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", required=True, help="a folder of photographs with boxes round hands")
    parser.add_argument("--output", required=True)
    args = parser.parse_args(argv)
    licenses = read_licenses(args.people)
    images = Path(args.output, "images")
    images.mkdir(parents=True, exist_ok=True)
    index = []
    for row, hands in tqdm(read_people(args.people, PARTS), unit="photograph"):
        photo = load_image(row["path"])
        for hand in hands:
            if hand["ignore"] or max(hand["bbox"][2:]) < LEAST_SIZE * max(photo.size):
                continue
            name = f"{len(index):05}.webp"
            Crop.around_box(hand["bbox"], SIDE, FILL).cut(photo).save(images / name, quality=85)
            known = {"source": row["source"], "license": licenses.get(row["source"], "not stated")}
            known |= {"split": row["split"], "side": hand["handedness"], "marked": row["marked"]}
            index.append({"file_name": name, **known})
    Path(args.output, "index.json").write_text(json.dumps(index))
    counts = {part: sum(entry["split"] == part for entry in index) for part in PARTS}
    print(f"{args.output}: {counts['train']} for training, {counts['validation']} for validation")


if __name__ == "__main__":
    main()
