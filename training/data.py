"""The three splits that a run reads, from whichever dataset the command line names."""

from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from torch.utils.data import Dataset, Sampler

from dataset_script import CocoHands, FreiHAND, HandCrops, SyntheticHands, counter_rng
from dataset_script.synthetic.backgrounds import KINDS, backgrounds
from training.arguments import Arguments

# Streams of the synthetic validation and test hands: the same for every run, and no training seed that one would choose.
VALIDATION_STREAM, TEST_STREAM = 0x76616C6964, 0x74657374


@dataclass
class Splits:
    """What a run reads: datasets of [`HandCrops`] items, and where they come from."""

    train: Dataset | None
    validation: Dataset | None
    test: Dataset
    source: str
    research_only: bool
    test_backgrounds: list[str] | None = None  # of each test sample, where they are known and differ


class EpochShuffle(Sampler[int]):
    """A random order of the samples that is a function of (seed, epoch); set `epoch` before iterating."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        yield from torch.randperm(self.count, generator=generator).tolist()


class Stream(Dataset):
    """`count` samples an epoch of an endless dataset, new ones in each; set `epoch` before iterating."""

    def __init__(self, endless: HandCrops, count: int):
        self.endless, self.count, self.epoch = endless, count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """The items of a batch, drawn together."""
        return self.endless.__getitems__([self.epoch * self.count + index for index in indices])


def load_splits(args: Arguments) -> Splits:
    """Load and prepare the splits; raises `ValueError` or `OSError` naming what is wrong with the data."""
    cache = Path(args.cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "handunet")
    loaders = {"synthetic": _synthetic, "freihand": _freihand, "coco": _coco}
    return loaders[args.dataset](args, cache)


def _synthetic(args: Arguments, cache: Path) -> Splits:
    def hands(count: int, seed: int) -> SyntheticHands:
        return SyntheticHands(count, seed=seed, difficulty=args.difficulty, hand_mesh=args.hand_mesh)

    train = validation = None
    if not args.eval_only:
        if args.streaming:
            train = Stream(HandCrops(hands(2**40, args.seed)), args.train_samples)
        else:
            train = HandCrops(hands(args.train_samples, args.seed), cache_dir=cache)
        validation = HandCrops(hands(args.validation_samples, VALIDATION_STREAM), cache_dir=cache)
    drawn = hands(args.test_samples, TEST_STREAM)
    test = HandCrops(drawn, cache_dir=cache)
    source = f"synthetic hands ({args.difficulty})"
    return Splits(train, validation, test, source, research_only=False, test_backgrounds=_drawn_backgrounds(drawn))


def _drawn_backgrounds(drawn: SyntheticHands, batch_size: int = 512) -> list[str]:
    """What lies behind each hand; its kind does not depend on the size of the picture, so a small one is drawn."""
    kinds = []
    for first in range(0, len(drawn), batch_size):
        indices = torch.arange(first, min(first + batch_size, len(drawn)))
        keys = counter_rng.sample_keys(drawn.seed, indices)
        kinds += backgrounds(keys, 16, drawn.ranges.backgrounds, torch.zeros(len(indices), 3))[1].tolist()
    return [KINDS[kind] for kind in kinds]


def _freihand(args: Arguments, cache: Path) -> Splits:
    share = args.max_unreadable_share
    builder = FreiHAND(args.data_dir, args.backgrounds, max_unreadable_share=share, cache_dir=args.cache_dir)
    splits = builder.build()

    def part(name: str, count: int | None) -> datasets.Dataset:
        if name not in splits:
            raise ValueError(
                f"{args.data_dir} has no frame of the {name} split (it has {', '.join(splits)}): training needs "
                "FreiHAND's frames 0-25999 (train), 26000-30999 (validation) and 31000-32559 (test); --eval_only needs "
                "those of its --split."
            )
        split = splits[name]
        return split if count is None else split.select(range(min(count, len(split))))

    def crops(name: str, count: int | None) -> HandCrops:
        return HandCrops(part(name, count), cache_dir=cache)

    tested = part(args.split if args.eval_only else "test", args.test_samples)
    test = HandCrops(tested, cache_dir=cache)
    about = {"source": f"FreiHAND ({args.backgrounds})", "research_only": True}
    about["test_backgrounds"] = tested["background"][:] if args.backgrounds == "all" else None
    if args.eval_only:
        return Splits(None, None, test, **about)
    train, validation = crops("train", args.train_samples), crops("validation", args.validation_samples)
    return Splits(train, validation, test, **about)


def _coco(args: Arguments, cache: Path) -> Splits:
    images = args.images or Path(args.annotations).parent / "images"
    options = {"max_unreadable_share": args.max_unreadable_share, "cache_dir": args.cache_dir}
    if args.eval_only:
        (everything,) = CocoHands(args.annotations, images, **options).build().values()
        return Splits(None, None, HandCrops(everything, cache_dir=cache), str(args.annotations), research_only=False)
    splits = CocoHands(args.annotations, images, validation_share=args.validation_share, **options).build()
    train, validation = (HandCrops(splits[name], cache_dir=cache) for name in ("train", "validation"))
    return Splits(train, validation, validation, str(args.annotations), research_only=False)
