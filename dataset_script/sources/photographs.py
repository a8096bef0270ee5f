"""The source of photographs that a teacher labelled: hands of many people, from places with their own terms."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset_script import counter_rng
from dataset_script.augmentation import augmentation_keys
from dataset_script.boxed_hands import BoxedHands
from dataset_script.false_hands import FalseHands, credits_of_squares
from dataset_script.hand_crops import HandCrops
from dataset_script.photo_augmentation import PhotoAugmentation
from dataset_script.photographs import MAX_DISAGREEMENT, SIDE, Photographs, read_terms
from dataset_script.scenes import load_photos
from dataset_script.sources.base import (
    Description,
    Items,
    NegativeOptions,
    Rule,
    Source,
    Splits,
    Stream,
    Terms,
    negatives_by_default,
    option,
)
from dataset_script.sources.synthetic import draws_on
from modeling_handunet.losses import LEFT, NO_HAND, RIGHT


@dataclass(frozen=True)
class PhotographsOptions(NegativeOptions):
    """Where the photographs are, and which are used."""

    photographs: str | None = option(None, "photographs: a folder of labelled squares, as `dataset_script.photographs` says")
    photographs_share: float | None = option(None, "photographs: mix them with scenes; the share of the samples they get")
    max_disagreement: float = option(MAX_DISAGREEMENT, "photographs: leave out hands if the teacher's looks differ more")
    most_per_source: int = option(400, "photographs: a source counts at most as much as this many pictures")
    upright_share: float = option(0.0, "photographs: the share of hands that are turned until they point up, within 20 degrees")
    false_hands: str | None = option(
        None, "photographs: a folder of what a detector took for hands, as `dataset_script.false_hands` makes it; they are two "
        "thirds of the negatives, left hands the others"
    )  # fmt: skip
    boxed_hands: str | None = option(
        None, "photographs: a folder of hands of which only the box is known, as `dataset_script.boxed_hands` makes it; with "
        "it, all photographs teach the hand classifier"
    )  # fmt: skip
    boxed_share: float = option(
        0.25, "photographs: the share of such hands among those that are no negatives; half are left hands, with empty targets"
    )  # fmt: skip


FALSE_SHARE = 2 / 3  # of the negatives, where there are false hands
# The keypoints of an item that has none.
ABSENT = {"keypoints": torch.full((21, 2), torch.nan), "visibility": torch.zeros(21, dtype=torch.bool)}


class PhotographStream(Stream):
    """`count` photographs an epoch, drawn so that a large source does not outweigh the small ones.

    The share `negatives` of them are left hands or, with `false_hands`, two of three something else than a hand.  The share
    `boxed_share` of the others are `boxed_hands`, of which no keypoint is known.

    Its `__getitems__` gives a batch: `image` (B, 3, 224, 224) uint8, `keypoints` (B, 21, 2) px of it, `visibility`, `is_absent`
    (B,), whether there is no right hand, `index` and, with boxed hands, `hand_classes` (B,), on the device of the photographs.
    """

    def __init__(
        self,
        photographs: Photographs,
        count: int,
        seed: int,
        negatives: float = 0.0,
        false_hands: FalseHands | None = None,
        boxed_hands: BoxedHands | None = None,
        boxed_share: float = 0.0,
    ):
        super().__init__(count)
        self.photographs, self.seed, self.negatives, self.false_hands = photographs, seed, negatives, false_hands
        self.boxed_hands, self.boxed_share = boxed_hands, boxed_share if boxed_hands else 0.0

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The batch of these items."""
        device = self.photographs.keypoints.device
        numbers = torch.tensor(indices, device=device)
        keys = augmentation_keys(self.seed, self.epoch, numbers)
        rows = self.photographs.rows(self.photographs.sample(keys))
        draw = counter_rng.uniform(keys, "negative", (3,))
        is_negative = draw[:, 0] < self.negatives
        is_false = is_negative & (draw[:, 1] < FALSE_SHARE) & (self.false_hands is not None)
        left = is_negative & ~is_false
        rows["image"][left] = rows["image"][left].flip(-1)
        rows["keypoints"][left, :, 0] = SIDE - rows["keypoints"][left, :, 0]
        chosen = is_false.nonzero(as_tuple=True)[0]
        if len(chosen):
            which = (draw[chosen, 2] * len(self.false_hands)).long()
            rows["image"][chosen] = self.false_hands.images(which).to(device)
            rows["keypoints"][chosen] = self.false_hands.keypoints.to(device)
        hand_classes = torch.where(is_false, NO_HAND, torch.where(left, LEFT, RIGHT))
        chosen = (~is_negative & (counter_rng.uniform(keys, "boxed") < self.boxed_share)).nonzero(as_tuple=True)[0]
        if len(chosen):
            images, labels = self.boxed_hands.sample(keys[chosen])
            rows["image"][chosen], hand_classes[chosen] = images.to(device), labels.to(device)
            rows["keypoints"][chosen] = self.boxed_hands.keypoints.to(device)
            rows["visibility"][chosen] = False
        is_absent = (hand_classes == LEFT) | (hand_classes == NO_HAND)  # the network reads right hands
        rows["visibility"] = rows["visibility"] | is_absent[:, None]
        taught = {"hand_classes": hand_classes} if self.boxed_hands else {}
        return {**rows, "is_absent": is_absent, "index": numbers, **taught}


class PhotographsSource(Source):
    """Labelled photographs.  Validation and test have whole sources that are not trained on, each half of them."""

    name = "photographs"
    Options = PhotographsOptions
    defaults = {"train_samples": 10_000, "epochs": 30, "batch_size": 32, "augmentation": 1.0}
    places = ("cache_dir", "photographs", "false_hands", "boxed_hands")

    @classmethod
    def is_named_by(cls, options) -> bool:
        return bool(options.photographs)

    @classmethod
    def check(cls, options) -> None:
        if not options.photographs:
            raise ValueError("--dataset photographs has no --photographs: name the folder of the labelled photographs.")

    @classmethod
    def defaults_for(cls, options, init) -> dict:
        return {**cls.defaults, **negatives_by_default(init)}

    @classmethod
    def rules(cls, args) -> list[Rule]:
        return [
            (("false_hands",), args.negatives != 0, "--negatives says how many"),
            (("boxed_hands",), bool(args.false_hands), "--false_hands has what is no hand"),
            (("boxed_share",), bool(args.boxed_hands), "--boxed_hands has them"),
        ]

    def load(self) -> Splits:
        options = self.options
        if options.boxed_hands and not options.negatives:
            raise ValueError("--boxed_hands needs --negatives above 0: a hand classifier must see what is no hand.")
        device = draws_on(options, self.device)
        read = functools.partial(
            Photographs,
            options.photographs,
            max_disagreement=options.max_disagreement,
            most_per_source=options.most_per_source,
            cache_dir=self.cache,
        )
        held_out = read("validation")
        crops = HandCrops(held_out, self.image_size, box_fill=self.box_fill, cache_dir=self.cache)
        chosen = {name: rows_of(held_out.sources, part) for part, name in enumerate(("validation", "test"))}
        test = spread(chosen["test"], options.test_samples)
        splits = Splits(
            None, None, Items(crops[row] for row in test), [held_out.sources[row] for row in test], "source",
            mean_pose_of="validation",
        )  # fmt: skip
        if self.eval_only:
            return splits
        validation = spread(chosen["validation"], options.validation_samples)
        splits.validation = Items(crops[row] for row in validation)
        splits.validation_groups = [held_out.sources[row] for row in validation]
        splits.test_negatives = self._test_negatives(crops, test)
        splits.boxed_hands = self._test_boxed_hands()
        photographs = read("train")
        photographs = photographs.to(device) if device.type != "cpu" else photographs
        photos = getattr(options, "photos", None)  # of scenes, where both are mixed
        self.augment = PhotoAugmentation(
            self.image_size,
            self.box_fill,
            others=photographs,
            photos=load_photos(photos).to(device) if photos else None,
            upright=options.upright_share,
        )
        false_hands = FalseHands(options.false_hands, "train", self.cache) if options.false_hands else None
        boxed_hands = BoxedHands(options.boxed_hands, "train", self.cache) if options.boxed_hands else None
        splits.train = PhotographStream(
            photographs, options.train_samples, self.seed, options.negatives, false_hands, boxed_hands, options.boxed_share
        )
        return splits

    def _test_negatives(self, crops: HandCrops, test: list[int]) -> dict[str, Items]:
        """The test hands as left ones, and false hands of pictures that are not trained on."""
        kinds = {"left hand": Items({**crops[row], "image": crops[row]["image"].flip(-1), **ABSENT} for row in test)}
        if self.options.false_hands:
            others = FalseHands(self.options.false_hands, "validation", self.cache)
            found = HandCrops(others, self.image_size, box_fill=self.box_fill)
            kinds["false hand"] = Items({**found[row], **ABSENT} for row in range(len(found)))
        return kinds

    def _test_boxed_hands(self) -> Items | None:
        """Hands with boxes of pictures that are not trained on."""
        if not self.options.boxed_hands:
            return None
        hands = BoxedHands(self.options.boxed_hands, "validation", self.cache)
        crops = HandCrops(hands, self.image_size, box_fill=self.box_fill)
        return Items({**crops[row], **ABSENT, "hand_classes": shown} for row, shown in enumerate(hands.hand_classes))

    def make_pictures(self, batch: dict, keys: Tensor) -> tuple[Tensor, Tensor]:
        images, keypoints = self.augment(batch["image"], batch["keypoints"], keys)
        return images, torch.where(batch["is_absent"][:, None, None], torch.nan, keypoints)

    def describe(self) -> Description:
        rows = read_terms(self.options.photographs, self.options.max_disagreement)
        hands, by_eye = (sum(getattr(row, name) for row in rows) for name in ("train", "by_eye"))
        return Description(
            name="photographs",
            data=(
                f"{hands:,} photographs of hands, labelled by a teacher (MediaPipe Hands, Apache-2.0: the median of several "
                f"looks at each hand){f', and {by_eye:,} of them by eye' if by_eye else ''}. Validation and test are hands of "
                "other sources than training, and not of the same ones."
            ),
            limits="Its teacher does not see gloves, grips, blurred and very small hands: expect larger errors there.",
            pictures="The photographs are from the held-out sources.",
            private=True,
            credits=tuple(
                (row.source, row.license or "not stated", f"{row.train} hands for training, {row.validation} held out")
                for row in rows
            )
            + (credits_of_squares(self.options.false_hands, "squares without a hand") if self.options.false_hands else ())
            + (credits_of_squares(self.options.boxed_hands, "hands with boxes") if self.options.boxed_hands else ()),
        )

    def terms(self) -> Terms:
        return Terms("apache-2.0")


def rows_of(sources: list[str], part: int) -> list[int]:
    """The rows of every second source, in the order of their numbers of hands."""
    names, counts = np.unique(sources, return_counts=True)
    mine = set(names[np.argsort(-counts, kind="stable")][part::2].tolist())
    return [row for row, source in enumerate(sources) if source in mine]


def spread(rows: list[int], count: int | None) -> list[int]:
    """`count` of the rows, evenly spread, or all of them."""
    return rows if count is None or count >= len(rows) else [rows[number * len(rows) // count] for number in range(count)]
