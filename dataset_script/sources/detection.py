"""Whole photographs of people, mixed with scenes of drawn and cut-out hands, as the hand detector's source."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dataset_script.augmentation import augmentation_keys
from dataset_script.caches import DeviceRows
from dataset_script.detection import DetectionSamples, PeopleViews
from dataset_script.detection_scenes import DetectionScenes
from dataset_script.hand_tiles import HandTiles
from dataset_script.layers import layer_rows
from dataset_script.people import People
from dataset_script.photographs import MAX_DISAGREEMENT, Photographs, read_licenses, read_terms
from dataset_script.sources.base import Description, Items, Rule, Splits, Stream, option
from dataset_script.sources.photographs import rows_of, spread
from dataset_script.sources.scenes import ScenesOptions, background_credits, gpu_has_room, hands_for_scenes
from dataset_script.sources.synthetic import ENDLESS, DrawnSource, draws_on
from dataset_script.squares import Squares, background_squares, squares_on_device
from dataset_script.synthetic import SyntheticHands

# Photographs of people are stored larger than the network sees them, since parts of them are enlarged.
STORED_SIDE = 1.4
LAYER_SIDE = 0.8  # of a hand's layer, of the picture's side


@dataclass(frozen=True)
class PeopleOptions(ScenesOptions):
    """Where the photographs of people are; the scenes' options say which hands are put into pictures."""

    people: str | None = option(None, "people: a folder of photographs with boxes round hands, as `dataset_script.people` says")
    hand_tiles: str | None = option(None, "people: a folder as --photographs names, of close hands laid side by side")


class DetectionInputs(NamedTuple):
    """What the detector is trained on: pictures, and padded labels as `modeling_handunet/detection_losses.py` says."""

    images: Tensor  # (B, 3, S, S) float in [0, 1]
    boxes: Tensor  # (B, N, 4) shares of the picture's side
    class_labels: Tensor  # (B, N) 0 right, 1 left, -1 not known
    directions: Tensor  # (B, N, 2) unit vectors, NaN where not known
    ignore: Tensor  # (B, N) bool
    present: Tensor  # (B, N) bool

    @classmethod
    def of_batch(cls, batch: dict) -> "DetectionInputs":
        """The inputs of a batch whose `image` is uint8."""
        return cls(batch["image"].float() / 255, *(batch[name] for name in cls._fields[1:]))


def stored_side(share: float, size: int) -> int:
    """A share of a picture's side in steps of 4 px, since what is stored may be halved twice."""
    return 4 * round(share * size / 4)


class NewLayers:
    """Drawn hands that are not stored: a row is drawn when it is read."""

    def __init__(self, hands: SyntheticHands, device: torch.device):
        self.hands, self.device = hands, device

    def __len__(self) -> int:
        return ENDLESS

    def rows(self, numbers: list[int]) -> dict[str, Tensor]:
        """The layers `numbers` (B), as tensors (B, ...)."""
        return layer_rows(self.hands.layers(torch.tensor(numbers), self.device))


class DetectionStream(Stream):
    """`count` new pictures an epoch.  Its `__getitems__` gives a batch: `image` (B, 3, S, S) uint8, labels, and `index`."""

    def __init__(self, samples: DetectionSamples, count: int, seed: int, device: torch.device):
        super().__init__(count)
        self.samples, self.seed, self.device = samples, seed, device

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The batch of these items, on the stream's device."""
        numbers = torch.tensor(indices)
        return {**self.samples(augmentation_keys(self.seed, self.epoch, numbers).to(self.device)), "index": numbers}


class PeopleSource(DrawnSource):
    """Photographs of people in ever new parts and sizes, and scenes.  Validation and test are photographs of whole other
    sources, half of them each, marked by eye; the part "test" of the file is not read."""

    name = "people"
    task = "detection"
    Options = PeopleOptions
    defaults = {"layers": 4000, "train_samples": 10_000, "epochs": 30, "batch_size": 32, "augmentation": 0.0}
    places = ("cache_dir", "people", "hand_tiles", "hand_mesh", "cutouts", "photos")

    @classmethod
    def is_named_by(cls, options) -> bool:
        return bool(options.people)

    @classmethod
    def check(cls, options) -> None:
        if not options.people:
            raise ValueError("--task detection has no --people: name the folder of photographs with boxes round hands.")

    @classmethod
    def rules(cls, args) -> list[Rule]:
        return [
            *super().rules(args),
            (("layers",), not args.streaming, "with --streaming no hand is stored"),
            (("cutouts_share",), bool(args.cutouts), "--cutouts has it"),
            (("negatives",), False, "a share of the pictures has no hand"),
            (("augmentation", "max_rotation"), False, "photographs and scenes are changed at every use"),
        ]

    def load(self) -> Splits:
        options, size = self.options, self.image_size
        held_out = People(options.people, "validation", size, self.cache, marked="by eye")
        chosen = [rows_of(held_out.sources, part) for part in (0, 1)]
        if not all(chosen):
            raise ValueError(
                f"--people {options.people}: the part 'validation' has pictures marked by eye of one source only. Give it two, "
                "one to validate on and one to test on."
            )
        counts = options.validation_samples, options.test_samples
        validation, test = (spread(rows, count) for rows, count in zip(chosen, counts))
        splits = Splits(
            None, None, Items(held_out[row] for row in test), [held_out.sources[row] for row in test], "source"
        )  # fmt: skip
        if self.eval_only:
            return splits
        splits.validation = Items(held_out[row] for row in validation)
        splits.train = DetectionStream(self._samples(), options.train_samples, self.seed, draws_on(options, self.device))
        return splits

    def _samples(self) -> DetectionSamples:
        options, size, device = self.options, self.image_size, draws_on(self.options, self.device)

        def fastest(squares: Squares) -> Squares | DeviceRows:
            """In the memory of a GPU that has room for them."""
            room = gpu_has_room(device, len(squares) * 3 * squares.size**2)
            return squares_on_device(squares, device) if room else squares

        people = People(options.people, "train", stored_side(STORED_SIDE, size), self.cache)
        photos = fastest(background_squares(options.photos, size, self.cache)) if options.photos else None
        hands, shares = hands_for_scenes(options, stored_side(LAYER_SIDE, size), self.seed, self.cache, device, variants=1)
        hands = [NewLayers(one, device) if isinstance(one, SyntheticHands) else one for one in hands]
        scenes = DetectionScenes(size, hands, photos, tuple(shares))
        tiles = None
        if options.hand_tiles:
            photographs = Photographs(options.hand_tiles, "train", cache_dir=self.cache)
            tiles = HandTiles(photographs.to(device) if device.type != "cpu" else photographs, photos)
        return DetectionSamples(size, PeopleViews(people, photos, fastest(people.squares)), scenes, tiles)

    def make_inputs(self, batch: dict, keys: Tensor) -> DetectionInputs:
        """A training batch's pictures and labels; the stream has drawn them by such keys."""
        return DetectionInputs.of_batch(batch)

    def _credits(self, people: People | None) -> tuple[tuple[str, str, str], ...]:
        """The sources of what is trained on, with their licences and numbers."""
        options, licenses = self.options, read_licenses(self.options.people)
        counts = Counter(people.sources) if people else {}
        rows = [(name, licenses.get(name, "not stated"), f"{count} photographs of people") for name, count in counts.items()]
        if options.hand_tiles:
            terms = read_terms(options.hand_tiles, MAX_DISAGREEMENT)
            rows += [(row.source, row.license or "not stated", f"{row.train} close hands") for row in terms if row.train]
        rows += background_credits(options.photos) if options.photos else ()
        return tuple(sorted((name.replace("+", "/"), terms, what) for name, terms, what in rows))

    def describe(self) -> Description:
        people = self.splits().train.samples.people.people if not self.eval_only else None
        counted = f"{len(people):,} photographs of people, {int(people.by_eye.sum()):,} of them" if people else "Photographs"
        drawn = "drawn hands and cut-out photographs" if self.options.cutouts else "drawn hands"
        tiles = self.splits().train.samples.tiles if people else None
        close = f"{len(tiles.hands):,} close photographs of hands, and " if tiles else ""
        return Description(
            name="people",
            data=(
                f"{counted} marked by eye, {close}scenes of {drawn}. {self.provenance()} Validation and test are photographs "
                "of whole other sources, and not the same ones."
            ),
            credits=self._credits(people),
            limits="Small, blurred, gloved and half hidden hands are rare in its data: expect it to miss more of them.",
            pictures="The photographs are from the held-out sources.",
            private=True,
        )
