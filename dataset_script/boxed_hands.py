"""Hands of which only the box and perhaps the handedness is known: they teach a pose network's hand classifier.

    python -m dataset_script.boxed_hands --people people --output boxed_hands
    accelerate launch train.py --photographs photographs --false_hands false_hands --boxed_hands boxed_hands --init ...

The folder --output gets `images/`, squares of 224 px of which the hand's box fills 0.3, as `dataset_script/photographs.py` has
hands; and `index.json`, a list of their `file_name`, `source`, `license`, `split` ("train" or "validation"), `handedness`
("right", "left" or null) and `marked` ("by eye" or "teacher").
People are photographs as `dataset_script/people.py` describes; their part "test" is not read, nor are hands that are to be
ignored or too small.
"""

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dataset_script import counter_rng
from dataset_script.false_hands import LEAST_SIZE, PlaceSquares, read_part, write_index
from dataset_script.people import MARKED, SIDES, read_people
from dataset_script.photographs import FILL, PARTS, SIDE, read_licenses
from modeling_handunet.crops import Crop
from modeling_handunet.images import load_image
from modeling_handunet.losses import LEFT, RIGHT, SOME_HAND

# Of the samples, the share of hands that were marked by eye: they are few, and a teacher sees the easy ones alone.
BY_EYE_SHARE = 0.7


class BoxedHands(PlaceSquares):
    """The squares of one part, and their `hand_classes` (N,), as `modeling_handunet.losses.hand_loss` has them.

    Raises `FileNotFoundError` for missing files and `ValueError` for an index that is not as described above, naming them.
    """

    def __init__(self, folder: str | os.PathLike, part: str, cache_dir: str | os.PathLike):
        entries, classes = read_part(folder, part), SIDES | {None: SOME_HAND}
        for entry in entries:
            if entry.get("handedness", "") not in classes or entry.get("marked") not in MARKED:
                raise ValueError(
                    f"{Path(folder) / 'index.json'} is not an index of hands with boxes: {entry['file_name']} needs a "
                    f"handedness, right, left or null, and marked, one of {', '.join(MARKED)}"
                )
        self.hand_classes = torch.tensor([classes[entry["handedness"]] for entry in entries])
        is_by_eye = torch.tensor([entry["marked"] == "by eye" for entry in entries])
        self.by_eye, self.others = (mask.nonzero(as_tuple=True)[0] for mask in (is_by_eye, ~is_by_eye))
        super().__init__(folder, entries, cache_dir)

    def sample(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Squares (B, 3, 224, 224) uint8 and their classes (B,), half of them mirrored, drawn by `keys` (B, 2)."""
        draw = counter_rng.uniform(keys, "boxed hand", (3,)).cpu().double()
        is_by_eye = ((draw[:, 0] < BY_EYE_SHARE) | (len(self.others) == 0)) & (len(self.by_eye) > 0)
        groups = [self.by_eye if by_eye else self.others for by_eye in is_by_eye.tolist()]
        rows = torch.stack([group[int(place * len(group))] for group, place in zip(groups, draw[:, 1].tolist())])
        images, classes = self.images(rows), self.hand_classes[rows]
        is_mirrored = draw[:, 2] < 0.5
        images = torch.where(is_mirrored[:, None, None, None], images.flip(-1), images)
        return images, torch.where(is_mirrored & (classes != SOME_HAND), RIGHT + LEFT - classes, classes)


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
            known |= {"split": row["split"], "handedness": hand["handedness"], "marked": row["marked"]}
            index.append({"file_name": name, **known})
    write_index(Path(args.output), index)


if __name__ == "__main__":
    main()
