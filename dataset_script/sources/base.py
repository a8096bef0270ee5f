"""What a source of training data is: one class in one file of this folder.

A source knows its options on the command line, its splits, the words that describe it, and the terms of weights that are
trained on it.  `train.py` asks nothing else.  A new source is a new file, and a name in `SOURCES` in `__init__.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import datasets
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset_script.augmentation import Augmentation
from dataset_script.caches import default_cache
from modeling_handunet.losses import RIGHT, UNLABELED

RESEARCH_ONLY = "research-only"  # the license_name of weights that may not be used commercially
UNKNOWN = "unknown"
# A rule is: option names, whether they have an effect in this run, and what gives them one.
Rule = tuple[Sequence[str], bool, str]


def option(default, text: str):
    """A field of a dataclass of options, with its line for `--help`."""
    return field(default=default, metadata={"help": text.replace("%", "%%")})


@dataclass(frozen=True)
class SourceOptions:
    """What every source may be told on the command line."""

    train_samples: int | None = option(None, "training samples an epoch; of photographs the first ones")
    validation_samples: int | None = option(None, "validation samples, the first ones")
    test_samples: int | None = option(None, "test samples, the first ones")
    augmentation: float | None = option(None, "strength of the augmentation of whole crops, 0 for none")
    max_rotation: float = option(45.0, "largest rotation of that augmentation, degrees")
    cache_dir: str | None = option(None, "where prepared images are stored (default: the cache of the datasets library)")
    workers: int = option(0, "processes that prepare batches beside the training process, on the CPU")
    credits: str | None = option(None, "for the card: who made the photographs or meshes that you give, and their terms")


@dataclass(frozen=True)
class FileOptions(SourceOptions):
    """What a source that reads photographs may be told."""

    max_unreadable_share: float = option(0.001, "share of the photographs that may be unreadable; they are left out")


@dataclass(frozen=True)
class NegativeOptions(SourceOptions):
    """What a source that can make pictures without a right hand may be told."""

    negatives: float | None = option(
        None, "scenes, photographs: share with no hand, a left hand or a hand far off centre (default: 0.1 with --init, else "
        "0: a training from random weights learns nothing with them)"
    )  # fmt: skip


@dataclass(frozen=True)
class Terms:
    """Under which terms weights may be used that were trained on a source."""

    license: str = "apache-2.0"  # an identifier that the Hub knows
    license_name: str | None = None
    license_link: str | None = None
    datasets: tuple[str, ...] = ()  # names on the Hub
    citation: str = ""  # BibTeX
    text: str = ""  # sentences for the card


@dataclass(frozen=True)
class Description:
    """The words for a source, in the log and on the card."""

    name: str  # "FreiHAND (raw)"
    data: str  # where the data comes from
    limits: str  # what this data cannot teach
    pictures: str  # whose hands the figures show
    private: bool = False  # whether these are photographs that somebody must agree to publish
    # Of pictures that others made: where they are from, under which licence, and how many of what.
    credits: tuple[tuple[str, str, str], ...] = ()


@dataclass
class Splits:
    """What a run reads.

    An item is a dict: `image` (3, S, S) uint8, `keypoints` (21, 2) px of it, `visibility` (21,) bool, `box_size` px (the
    longer side of the hand's box) and `index`, its number in the split.  A source with its own [`Source.make_pictures`] may
    have other training items; an item of the detector's source is one of [`dataset_script.people.People`].  `__getitems__`
    takes a list of numbers and returns their items, or a batch for training.
    """

    train: Dataset | None
    validation: Dataset | None
    test: Dataset
    test_groups: list[str] | None = None  # for each test sample its background or source; None if all have the same
    grouped_by: str = "background"
    validation_groups: list[str] | None = None  # likewise; scores are calibrated so that each counts the same
    test_negatives: dict[str, Dataset] = field(default_factory=dict)  # images without a right hand in the middle
    boxed_hands: Dataset | None = None  # items with `hand_classes` instead of keypoints: they test the hand classifier
    left_out: dict[str, str] = field(default_factory=dict)  # images that cannot be read, with the reasons
    mean_pose_of: str = "training"  # the split whose mean pose is the baseline


class Inputs(NamedTuple):
    """What the network is trained on: a batch of crops with their keypoints."""

    images: Tensor  # (B, 3, S, S) float in [0, 1]
    keypoints: Tensor  # (B, 21, 2) px of the crop; NaN if a keypoint is known to be absent
    visibility: Tensor  # (B, 21) bool, the keypoints that count in the loss
    hand_classes: Tensor | None = None  # (B,) what the crop shows, as `modeling_handunet.losses.hand_loss` says


class Stream(Dataset):
    """`count` samples an epoch of something endless; set `epoch` before you iterate."""

    def __init__(self, count: int):
        self.count, self.epoch = count, 0

    def __len__(self) -> int:
        return self.count


class Items(Dataset):
    """Items in memory; each gets its `index`."""

    def __init__(self, items: Sequence[dict] | Iterator[dict]):
        self.items = [{**item, "index": index} for index, item in enumerate(items)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """The items of a batch."""
        return [self.items[index] for index in indices]


class Source:
    """One source of hands.  Subclasses set the class attributes and write `load` and `describe`."""

    name: ClassVar[str]
    task: ClassVar[str] = "pose"  # what is trained on it, a name in `training.tasks.TASKS`
    Options: ClassVar[type[SourceOptions]] = SourceOptions
    # Values for general options that the command line does not give.
    defaults: ClassVar[dict] = {}
    # Options that are paths on the user's machine: only their last part is published.
    places: ClassVar[tuple[str, ...]] = ("cache_dir",)
    # Whether validation and test are the same photographs; the card then says so.
    same_validation_and_test: ClassVar[bool] = False

    def __init__(
        self,
        options: SourceOptions,
        *,
        image_size: int,
        box_fill: float,
        seed: int = 0,
        eval_only: bool = False,
        device: str | torch.device = "cpu",
    ):
        """
        Args:
            options: an object with the fields of this class's `Options`.
            image_size: side of the crops, pixels.
            box_fill: share of the crop's side that the longer side of the hand's box takes.
            seed: of what is random in the training samples.
            eval_only: only the test split is needed.
            device: of the training; scenes are made and hands are drawn there.
        """
        self.options, self.image_size, self.box_fill, self.seed = options, image_size, box_fill, seed
        self.eval_only, self.device = eval_only, torch.device(device)
        self._splits: Splits | None = None

    # Before a run

    @classmethod
    def is_named_by(cls, options: SourceOptions) -> bool:
        """Whether these options select this source without `--dataset`."""
        return False

    @classmethod
    def drawn_fill(cls, options: SourceOptions) -> float | None:
        """The `box_fill` of hands that are drawn as crops; None for a source whose hands are cut out of images."""
        return None

    @classmethod
    def defaults_for(cls, options: SourceOptions, init: str | None) -> dict:
        """The class's `defaults`; override it if they depend on other options."""
        return cls.defaults

    @classmethod
    def rules(cls, args) -> list[Rule]:
        """Options of this source that have an effect only together with others.  `args` has every option of the run."""
        return []

    @classmethod
    def check(cls, options: SourceOptions) -> None:
        """Raise `ValueError` for options that cannot be used."""

    # The data

    def splits(self) -> Splits:
        """The splits, prepared in the first call.  Raises `ValueError` or `OSError` that names what is wrong."""
        if self._splits is None:
            self._splits = self.load()
        return self._splits

    def load(self) -> Splits:
        """Prepare the splits."""
        raise NotImplementedError

    def summary(self) -> str:
        """What was read of the user's files, and what was left out; "" if there is nothing to say."""
        return ""

    def describe(self) -> Description:
        """The source in words."""
        raise NotImplementedError

    def terms(self) -> Terms:
        """The terms of weights that are trained on it."""
        return Terms()

    # A batch

    def join(self, batches: Sequence[dict]) -> dict:
        """Several batches of the training split as one."""
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    def make_inputs(self, batch: dict, keys: Tensor) -> Inputs:
        """What the network is trained on, from a training batch and random keys (B, 2), on the device of the batch."""
        images, keypoints = self.make_pictures(batch, keys)
        inside = ((keypoints >= 0) & (keypoints < images.shape[-1])).all(-1)
        absent = keypoints.isnan().all(-1)
        hand_classes = batch.get("hand_classes")
        if hand_classes is None:
            hand_classes = torch.where(absent.all(1), UNLABELED, RIGHT)
        return Inputs(images, keypoints, batch["visibility"] & (inside | absent), hand_classes)

    def make_pictures(self, batch: dict, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) float in [0, 1] and keypoints (B, 21, 2) px, augmented by `keys`.

        A keypoint that is known to be absent is NaN.
        """
        images = batch["image"].float() / 255
        if not self.options.augmentation:
            return images, batch["keypoints"]
        augment = Augmentation(rotation=self.options.max_rotation).scaled(self.options.augmentation)
        return augment(images, batch["keypoints"], keys)

    @property
    def cache(self) -> Path:
        """The folder of prepared images."""
        return Path(self.options.cache_dir or default_cache())


def negatives_by_default(init: str | None) -> dict[str, float]:
    """The default of `--negatives`, which depends on the weights that a training starts from."""
    return {"negatives": 0.1 if init else 0.0}


def first_rows(rows: datasets.Dataset, count: int | None) -> datasets.Dataset:
    """The first `count` rows, or all of them."""
    return rows if count is None else rows.select(range(min(count, len(rows))))
