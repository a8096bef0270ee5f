"""Synthetic hands as a source: whole pictures that the project draws itself, nothing to download."""

from dataclasses import dataclass
from typing import Literal

import torch

from dataset_script import counter_rng
from dataset_script.hand_crops import HandCrops
from dataset_script.sources.base import UNKNOWN, Description, Rule, Source, SourceOptions, Splits, Stream, Terms, option
from dataset_script.synthetic import SyntheticHands
from dataset_script.synthetic.backgrounds import KINDS, backgrounds
from dataset_script.synthetic.ranges import EASY, FULL

# Seeds of the validation and test hands: the same for every run, and no training seed that one would choose.
VALIDATION_SEED, TEST_SEED = 0x76616C6964, 0x74657374
# Longer side of a hand's box, of the crop's side: these hands are drawn as crops.
DRAWN_FILL = {"easy": sum(EASY.fill) / 2, "full": sum(FULL.fill) / 2}
ENDLESS = 2**40


@dataclass(frozen=True)
class DrawnOptions(SourceOptions):
    """What every source of drawn hands may be told."""

    streaming: bool = option(False, "drawn hands: new ones in every epoch, drawn as they are needed")
    hand_mesh: str | None = option(
        None, "drawn hands: a rigged glTF hand with WebXR joint names, instead of the modelled one or (scenes) beside it"
    )


@dataclass(frozen=True)
class SyntheticOptions(DrawnOptions):
    """How hard the drawn hands are."""

    difficulty: Literal["easy", "full"] = option("easy", "synthetic: upright open hands, or all poses, views and surroundings")


def draws_on(options: DrawnOptions, device: torch.device) -> torch.device:
    """Where batches of drawn hands are made: on the training's device, unless workers make them, which cannot share a GPU."""
    return torch.device("cpu") if options.workers else device


class HandStream(Stream):
    """`count` new hands in every epoch."""

    def __init__(self, hands: HandCrops, count: int):
        super().__init__(count)
        self.hands = hands

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """The items of a batch, drawn together."""
        return self.hands.__getitems__([self.epoch * self.count + index for index in indices])


class DrawnSource(Source):
    """What sources of drawn hands share."""

    places = ("cache_dir", "hand_mesh")

    def foreign(self) -> list[str]:
        """The options that brought somebody else's data into this source."""
        return [f"--{name}" for name in self.places if name != "cache_dir" and getattr(self.options, name)]

    @classmethod
    def rules(cls, args) -> list[Rule]:
        foreign = any(getattr(args, name) for name in cls.places if name != "cache_dir")
        return [(("credits",), foreign, "drawn hands need no credits; the card says what they are")]

    def provenance(self) -> str:
        """Sentences about who made the hands."""
        text = "The synthetic hands are modelled, posed and drawn by the project itself."
        if not self.foreign():
            return f"{text} No photograph and no third party's data is in it."
        if self.options.credits:
            return f"{text} {self.options.credits}"
        return f"{text} What {', '.join(self.foreign())} gave is the trainer's own; no terms are stated."

    def terms(self) -> Terms:
        return Terms(UNKNOWN if self.foreign() and not self.options.credits else "apache-2.0")


class SyntheticSource(DrawnSource):
    """Drawn hands as they are: varied enough to be learnt from without augmentation.

    The defaults are sized for minutes on two CPU cores.
    """

    name = "synthetic"
    Options = SyntheticOptions
    defaults = {
        "train_samples": 2200,
        "validation_samples": 150,
        "test_samples": 300,
        "epochs": 2,
        "batch_size": 8,
        "augmentation": 0.0,
    }

    @classmethod
    def drawn_fill(cls, options) -> float:
        return DRAWN_FILL[options.difficulty]

    @classmethod
    def rules(cls, args) -> list[Rule]:
        fill = args.box_fill == DRAWN_FILL[args.difficulty]
        return [*super().rules(args), (("box_fill",), fill, "these hands are drawn as crops, none is cut out")]

    def load(self) -> Splits:
        options = self.options

        def hands(count: int, seed: int) -> SyntheticHands:
            return SyntheticHands(
                count, seed=seed, image_size=self.image_size, difficulty=options.difficulty, hand_mesh=options.hand_mesh
            )

        drawn = hands(options.test_samples, TEST_SEED)
        splits = Splits(None, None, HandCrops(drawn, self.image_size, cache_dir=self.cache), background_names(drawn))
        if self.eval_only:
            return splits
        if options.streaming:
            endless = HandCrops(hands(ENDLESS, self.seed), self.image_size, device=draws_on(options, self.device))
            splits.train = HandStream(endless, options.train_samples)
        else:
            splits.train = HandCrops(hands(options.train_samples, self.seed), self.image_size, cache_dir=self.cache)
        validation = hands(options.validation_samples, VALIDATION_SEED)
        splits.validation = HandCrops(validation, self.image_size, cache_dir=self.cache)
        return splits

    def describe(self) -> Description:
        name = f"synthetic hands ({self.options.difficulty})"
        return Description(
            name=name,
            data=f"{name[0].upper()}{name[1:]}. {self.provenance()}",
            limits="It has seen drawn hands only: expect larger errors on photographs.",
            pictures="The hands are drawn by the project.",
        )


def background_names(drawn: SyntheticHands, batch_size: int = 512) -> list[str]:
    """What lies behind each hand.  Its kind does not depend on the size of the picture, so a small one is drawn."""
    kinds = []
    for first in range(0, len(drawn), batch_size):
        indices = torch.arange(first, min(first + batch_size, len(drawn)))
        keys = counter_rng.sample_keys(drawn.seed, indices)
        kinds += backgrounds(keys, 16, drawn.ranges.backgrounds, torch.zeros(len(indices), 3))[1].tolist()
    return [KINDS[kind] for kind in kinds]
