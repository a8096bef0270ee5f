"""The three splits that a run reads, from whichever dataset the command line names."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, default_collate

from dataset_script import CocoHands, FreiHAND, HandCrops, SyntheticHands, counter_rng
from dataset_script.caches import DeviceRows
from dataset_script.cutouts import Cutouts
from dataset_script.layers import HandLayers, LayerSource, layer_rows, layers_on_device
from dataset_script.synthetic.backgrounds import KINDS, backgrounds
from dataset_script.hand_crops import BOX_FILL, IMAGE_SIZE
from modeling_handunet import HandUNetConfig
from training.arguments import Arguments
from dataset_script.augmentation import augmentation_keys
from dataset_script.scenes import NEGATIVES, Scenes, load_photos

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
    test_groups: list[str] | None = None  # of each test sample, where they are known and differ: its background or source
    grouped_by: str = "background"
    test_negatives: dict[str, Dataset] = field(default_factory=dict)  # images without a right hand in their middle
    left_out: dict[str, str] = field(default_factory=dict)  # images that cannot be read, with the reasons
    scenes: Scenes | None = None  # what makes images of the training samples, where these are layers


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


class LayerStream(Dataset):
    """`count` layers an epoch, drawn from several sources, each with its share; set `epoch` before iterating.

    Its `__getitems__` gives a batch: `image` (B, 4, S, S) uint8 RGBA, `keypoints` (B, 21, 2) px of it, `visibility`
    (B, 21), `skin` (B, 3) and `index` (B,), on `device`; a loader of it collates by `as_it_is`.
    """

    def __init__(
        self,
        sources: Sequence[HandLayers | DeviceRows | SyntheticHands],
        shares: Sequence[float],
        count: int,
        seed: int,
        device: str | torch.device = "cpu",
    ):
        self.sources, self.count, self.seed, self.epoch = list(sources), count, seed, 0
        self.device = device  # of the batches; hands that are not kept are drawn there, too
        self.limits = np.cumsum(shares) / np.sum(shares)

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """The batch of these items; those that have to be drawn are drawn together."""
        keys = augmentation_keys(self.seed, self.epoch, torch.tensor(indices))
        draws = counter_rng.uniform(keys, "layer", (2,)).double().numpy()
        chosen = np.searchsorted(self.limits, draws[:, 0], side="right").clip(max=len(self.sources) - 1)
        parts, order = [], []
        for number, source in enumerate(self.sources):
            places = np.flatnonzero(chosen == number)
            if not len(places):
                continue
            order.append(places)
            if isinstance(source, SyntheticHands):
                fresh = torch.tensor([self.epoch * self.count + indices[place] for place in places])
                parts.append(layer_rows(source.layers(fresh, self.device)))
            else:
                parts.append(source.rows([int(draws[place, 1] * len(source)) for place in places]))
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        rows = {name: torch.cat([part[name].to(self.device) for part in parts])[back] for name in parts[0]}
        return {
            "image": rows["rgba"],
            "keypoints": rows["keypoints"],
            "visibility": torch.ones(rows["keypoints"].shape[:2], dtype=torch.bool, device=self.device),
            "skin": rows["skin"],
            "index": torch.tensor(indices, device=self.device),
        }


class Items(Dataset):
    """Items in memory, numbered through."""

    def __init__(self, items: Iterable[dict]):
        self.items = [{**item, "index": index} for index, item in enumerate(items)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """The items of a batch."""
        return [self.items[index] for index in indices]


class Resident(DeviceRows, Dataset):
    """All items of `dataset` on one device, where a batch is one indexing of each tensor.

    Its `__getitems__` gives the batch that collating its items would give; a loader of it collates by `as_it_is`.
    """

    def __init__(self, dataset: Dataset, device: str | torch.device, batch_size: int = 1024):
        numbers = torch.arange(len(dataset)).split(batch_size)
        super().__init__(len(dataset), device, (default_collate(dataset.__getitems__(part.tolist())) for part in numbers))

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """The batch of these items, on the device."""
        return self.rows(indices)


def as_it_is(batch: dict) -> dict:
    """Collates what is a batch already."""
    return batch


def gpu_has_room(device: torch.device, needed: int) -> bool:
    """Whether `device` is a GPU whose free memory `needed` bytes fill by no more than half."""
    return device.type == "cuda" and 2 * needed < torch.cuda.mem_get_info(device)[0]


def resident_where_it_fits(dataset: Dataset, device: torch.device) -> Dataset:
    """`dataset`, held by a GPU that has room for its crops; otherwise as it was."""
    if not isinstance(dataset, HandCrops) or dataset.cache is None:
        return dataset
    return Resident(dataset, device) if gpu_has_room(device, len(dataset) * 3 * dataset.image_size**2) else dataset


def scene_crops(
    layers: HandLayers, scenes: Scenes, stream: int, device: torch.device, batch_size: int = 64
) -> Iterator[dict]:
    """Scenes that never change, one of each layer, as [`HandCrops`] items: to validate and to test on.

    They are made on `device`, but for rounding as on any other.
    """
    for first in range(0, len(layers), batch_size):
        numbers = torch.arange(first, min(first + batch_size, len(layers)))
        rows = {name: values.to(device) for name, values in layers.rows(numbers).items()}
        keys = augmentation_keys(stream, 0, numbers).to(device)
        images, keypoints = scenes(rows["rgba"], rows["keypoints"], rows["skin"], keys)
        images, keypoints = (images * 255 + 0.5).to(torch.uint8).cpu(), keypoints.cpu()
        inside = ((keypoints >= 0) & (keypoints < scenes.size)).all(-1)
        sizes = (keypoints.amax(1) - keypoints.amin(1)).amax(1)
        for image, points, visible, size in zip(images, keypoints, inside, sizes):
            yield {"image": image, "keypoints": points, "visibility": visible, "box_size": float(size)}


def load_splits(args: Arguments, device: str | torch.device = "cpu") -> Splits:
    """Load and prepare the splits for a training on `device`, where scenes are made and hands drawn that are not kept.

    Raises `ValueError` or `OSError` naming what is wrong with the data.
    """
    args.take_from_model(IMAGE_SIZE, BOX_FILL, HandUNetConfig().sigma)  # where nothing else was said
    cache = Path(args.cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "handunet")
    if args.dataset == "synthetic":
        return _scenes(args, cache, device) if args.difficulty == "scenes" else _synthetic(args, cache, device)
    return {"freihand": _freihand, "coco": _coco}[args.dataset](args, cache)


def drawn_on(args: Arguments, device: str | torch.device) -> str | torch.device:
    """Where batches of drawn hands come from: the training's device, unless workers make them, which cannot share a GPU."""
    return "cpu" if args.workers else device


def _synthetic(args: Arguments, cache: Path, device: str | torch.device) -> Splits:
    def hands(count: int, seed: int) -> SyntheticHands:
        return SyntheticHands(
            count, seed=seed, image_size=args.image_size, difficulty=args.difficulty, hand_mesh=args.hand_mesh
        )

    train = validation = None
    if not args.eval_only:
        if args.streaming:
            endless = HandCrops(hands(2**40, args.seed), args.image_size, device=drawn_on(args, device))
            train = Stream(endless, args.train_samples)
        else:
            train = HandCrops(hands(args.train_samples, args.seed), args.image_size, cache_dir=cache)
        validation = HandCrops(hands(args.validation_samples, VALIDATION_STREAM), args.image_size, cache_dir=cache)
    drawn = hands(args.test_samples, TEST_STREAM)
    test = HandCrops(drawn, args.image_size, cache_dir=cache)
    source = f"synthetic hands ({args.difficulty})"
    return Splits(train, validation, test, source, research_only=False, test_groups=_drawn_backgrounds(drawn))


# Side of the layers for crops of 128 px: the hand as large as there, and room for the arm around it.
LAYER_SIZE = 160


def _scenes(args: Arguments, cache: Path, device: str | torch.device) -> Splits:
    """Drawn hands of one or two bodies and cut-outs in ever new scenes; validated and tested on others than trained on."""
    meshes = [None, args.hand_mesh] if args.hand_mesh else [None]

    def drawn(count: int, seed: int, mesh: str | None) -> SyntheticHands:
        return SyntheticHands(count, seed=seed, image_size=LAYER_SIZE, difficulty="layers", hand_mesh=mesh)

    def kept(source: LayerSource) -> HandLayers:
        return HandLayers(source, cache)

    def at_hand(source: SyntheticHands | HandLayers) -> HandLayers | DeviceRows:
        """Held by the GPU that makes the batches, if it has room, which draws faster than a disk reads; else kept."""
        if gpu_has_room(batches_from, len(source) * 4 * LAYER_SIZE**2):
            return layers_on_device(source, batches_from)
        return source if isinstance(source, HandLayers) else kept(source)

    device, batches_from = torch.device(device), torch.device(drawn_on(args, device))
    photos = load_photos(args.photos).to(device) if args.photos else None
    scenes = Scenes(args.image_size, args.box_fill, negatives=args.negatives, photos=photos)

    def fixed(stream: int, count: int, **changes) -> tuple[Dataset, list[str]]:
        maker = dataclasses.replace(scenes, **{"negatives": 0.0, **changes})
        unseen = [("drawn", kept(drawn(count, stream, mesh))) for mesh in meshes]
        if args.cutouts:
            unseen.append(("cut-outs", kept(Cutouts(args.cutouts, "held out", variants=1))))
        items = (item for _, layers in unseen for item in scene_crops(layers, maker, stream, device))
        return Items(items), [name for name, layers in unseen for _ in range(len(layers))]

    test, kinds = fixed(TEST_STREAM, args.test_samples)
    source = " and ".join(["synthetic hands", *(["cut-out photographs"] if args.cutouts else [])]) + " (scenes)"
    splits = Splits(None, None, test, source, research_only=False, test_groups=kinds, grouped_by="source", scenes=scenes)
    if not args.eval_only:
        for kind in NEGATIVES:
            splits.test_negatives[kind], _ = fixed(TEST_STREAM, args.test_samples, negatives=1.0, kinds=(kind,))
        counts = [args.layers, *[round(0.6 * args.layers)] * (len(meshes) - 1)]
        sources = [drawn(count, args.seed, mesh) for count, mesh in zip(counts, meshes)]
        sources = sources if args.streaming else [at_hand(source) for source in sources]
        shares = [count / sum(counts) for count in counts]
        if args.cutouts:
            sources.append(at_hand(kept(Cutouts(args.cutouts, "train"))))
            shares = [share * (1 - args.cutouts_share) for share in shares] + [args.cutouts_share]
        splits.train = LayerStream(sources, shares, args.train_samples, args.seed, batches_from)
        splits.validation, _ = fixed(VALIDATION_STREAM, args.validation_samples)
    return splits


def _drawn_backgrounds(drawn: SyntheticHands, batch_size: int = 512) -> list[str]:
    """What lies behind each hand; its kind does not depend on the size of the picture, so a small one is drawn."""
    kinds = []
    for first in range(0, len(drawn), batch_size):
        indices = torch.arange(first, min(first + batch_size, len(drawn)))
        keys = counter_rng.sample_keys(drawn.seed, indices)
        kinds += backgrounds(keys, 16, drawn.ranges.backgrounds, torch.zeros(len(indices), 3))[1].tolist()
    return [KINDS[kind] for kind in kinds]


def first_rows(rows: datasets.Dataset, count: int | None) -> datasets.Dataset:
    """The first `count` rows, or all of them."""
    return rows if count is None else rows.select(range(min(count, len(rows))))


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
        return first_rows(splits[name], count)

    def crops(name: str, count: int | None) -> HandCrops:
        return HandCrops(part(name, count), args.image_size, box_fill=args.box_fill, cache_dir=cache)

    tested = part(args.split if args.eval_only else "test", args.test_samples)
    test = HandCrops(tested, args.image_size, box_fill=args.box_fill, cache_dir=cache)
    about = {"source": f"FreiHAND ({args.backgrounds})", "research_only": True, "left_out": builder.left_out()}
    about["test_groups"] = tested["background"][:] if args.backgrounds == "all" else None
    if args.eval_only:
        return Splits(None, None, test, **about)
    train, validation = crops("train", args.train_samples), crops("validation", args.validation_samples)
    return Splits(train, validation, test, **about)


def _coco(args: Arguments, cache: Path) -> Splits:
    images = args.images or Path(args.annotations).parent / "images"
    options = {"max_unreadable_share": args.max_unreadable_share, "cache_dir": args.cache_dir}

    def crops(rows: datasets.Dataset) -> HandCrops:
        return HandCrops(rows, args.image_size, box_fill=args.box_fill, cache_dir=cache)

    share = 0.0 if args.eval_only else args.validation_share
    builder = CocoHands(args.annotations, images, validation_share=share, **options)
    splits = builder.build()
    about = {"source": Path(args.annotations).name, "research_only": False, "left_out": builder.left_out()}
    if args.eval_only:
        (everything,) = splits.values()
        everything = first_rows(everything, args.test_samples)
        sources = everything["source"][:]
        about |= {"test_groups": sources if len(set(sources)) > 1 else None, "grouped_by": "source"}
        return Splits(None, None, crops(everything), **about)
    if missing := {"train", "validation"} - splits.keys():
        raise ValueError(
            f"{args.annotations} leaves no photograph for {' and '.join(sorted(missing))} when --validation_share "
            f"{share:g} of them is held out: annotate two or more, or give another share."
        )
    wanted = (("train", args.train_samples), ("validation", args.validation_samples), ("validation", args.test_samples))
    return Splits(*(crops(first_rows(splits[name], count)) for name, count in wanted), **about)
