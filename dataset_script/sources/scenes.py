"""Scenes as a source: drawn hands and cut-out photographs, put into a new scene at every use."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset_script import counter_rng
from dataset_script.augmentation import augmentation_keys
from dataset_script.caches import DeviceRows
from dataset_script.cutouts import Cutouts
from dataset_script.layers import HandLayers, layer_rows, layers_on_device
from dataset_script.photographs import read_licenses
from dataset_script.scenes import NEGATIVES, Scenes, load_photos
from dataset_script.sources.base import Description, Items, NegativeOptions, Rule, Splits, Stream, negatives_by_default, option
from dataset_script.sources.synthetic import TEST_SEED, VALIDATION_SEED, DrawnOptions, DrawnSource, draws_on
from dataset_script.synthetic import SyntheticHands

# Side of a layer in px.  The hand is as large as in a crop of 128 px, and there is room for the arm around it.
LAYER_SIZE = 160
SECOND_BODY = 0.6  # layers of a second body for each one of the first


@dataclass(frozen=True)
class ScenesOptions(DrawnOptions, NegativeOptions):
    """What the scenes are made of."""

    layers: int | None = option(
        None, "scenes: drawn hands that are stored for new scenes; with --streaming none is stored (default: scenes: 20000, "
        "people: 4000)"
    )  # fmt: skip
    cutouts: str | None = option(None, "scenes: a folder of cut-out photographs of hands with keypoints")
    cutouts_share: float = option(0.35, "scenes: share of the samples that are cut-outs")
    photos: str | None = option(None, "scenes: a folder of photographs without hands, as backgrounds")


def hands_for_scenes(options, size: int, seed: int, cache: Path, device: torch.device, **more) -> tuple[list, list[float]]:
    """Drawn hands of each body and cut-outs, as layers of `size` pixels, and the share of the samples that each gets.

    Hands that are not streamed are stored in the memory of `device` if it is a GPU that has room, which is faster; else on
    the disk.  `more` is given to [`Cutouts`].
    """

    def stored(hands: SyntheticHands | Cutouts) -> HandLayers | DeviceRows:
        if not gpu_has_room(device, len(hands) * 4 * size**2):
            return HandLayers(hands, cache)
        return layers_on_device(hands if isinstance(hands, SyntheticHands) else HandLayers(hands, cache), device)

    meshes = bodies(options)
    counts = [options.layers, *[round(SECOND_BODY * options.layers)] * (len(meshes) - 1)]
    hands = [drawn_layers(count, seed, mesh, size) for count, mesh in zip(counts, meshes)]
    hands = hands if options.streaming else [stored(one) for one in hands]
    shares = [count / sum(counts) for count in counts]
    if options.cutouts:
        hands.append(stored(Cutouts(options.cutouts, "train", image_size=size, **more)))
        shares = [share * (1 - options.cutouts_share) for share in shares] + [options.cutouts_share]
    return hands, shares


def bodies(options) -> list[str | None]:
    """The modelled hand, None, and the mesh that is drawn beside it."""
    return [None, options.hand_mesh] if options.hand_mesh else [None]


def drawn_layers(count: int, seed: int, mesh: str | None, size: int = LAYER_SIZE) -> SyntheticHands:
    """Drawn hands without a background, in squares of `size` pixels."""
    return SyntheticHands(count, seed=seed, image_size=size, difficulty="layers", hand_mesh=mesh)


class LayerStream(Stream):
    """`count` layers an epoch, drawn from several kinds of hands by share.

    Its `__getitems__` gives a batch: `image` (B, 4, S, S) uint8 RGBA, `keypoints` (B, 21, 2) px of it, `visibility`
    (B, 21), `skin` (B, 3) and `index` (B,), on `device`.
    """

    def __init__(
        self,
        hands: Sequence[HandLayers | DeviceRows | SyntheticHands],
        shares: Sequence[float],
        count: int,
        seed: int,
        device: str | torch.device = "cpu",
    ):
        super().__init__(count)
        self.hands, self.seed, self.device = list(hands), seed, device
        self.limits = np.cumsum(shares) / np.sum(shares)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The batch of these items.  Hands that are not stored are drawn together."""
        keys = augmentation_keys(self.seed, self.epoch, torch.tensor(indices))
        draws = counter_rng.uniform(keys, "layer", (2,)).double().numpy()
        chosen = np.searchsorted(self.limits, draws[:, 0], side="right").clip(max=len(self.hands) - 1)
        parts, order = [], []
        for number, hands in enumerate(self.hands):
            places = np.flatnonzero(chosen == number)
            if not len(places):
                continue
            order.append(places)
            if isinstance(hands, SyntheticHands):
                fresh = torch.tensor([self.epoch * self.count + indices[place] for place in places])
                parts.append(layer_rows(hands.layers(fresh, self.device)))
            else:
                parts.append(hands.rows([int(draws[place, 1] * len(hands)) for place in places]))
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        rows = {name: torch.cat([part[name].to(self.device) for part in parts])[back] for name in parts[0]}
        return {
            "image": rows["rgba"],
            "keypoints": rows["keypoints"],
            "visibility": torch.ones(rows["keypoints"].shape[:2], dtype=torch.bool, device=self.device),
            "skin": rows["skin"],
            "index": torch.tensor(indices, device=self.device),
        }


def scene_crops(layers: HandLayers, scenes: Scenes, seed: int, device: torch.device, batch_size: int = 64) -> Iterator[dict]:
    """Fixed scenes, one of each layer, as [`HandCrops`] items: for validation and test.

    They are made on `device`.  Another device makes the same scenes, with other rounding.
    """
    for first in range(0, len(layers), batch_size):
        numbers = torch.arange(first, min(first + batch_size, len(layers)))
        rows = {name: values.to(device) for name, values in layers.rows(numbers).items()}
        keys = augmentation_keys(seed, 0, numbers).to(device)
        images, keypoints = scenes(rows["rgba"], rows["keypoints"], rows["skin"], keys)
        images, keypoints = (images * 255 + 0.5).to(torch.uint8).cpu(), keypoints.cpu()
        inside = ((keypoints >= 0) & (keypoints < scenes.size)).all(-1)
        extents = (keypoints.amax(1) - keypoints.amin(1)).amax(1)
        for image, points, visible, extent in zip(images, keypoints, inside, extents):
            yield {"image": image, "keypoints": points, "visibility": visible, "box_size": float(extent)}


class ScenesSource(DrawnSource):
    """Drawn hands of one or two bodies, and cut-outs.  Each time a hand is used, it is in another scene.

    Validation and test have other drawn hands and other cut-outs than the training.
    """

    name = "scenes"
    Options = ScenesOptions
    defaults = {
        "layers": 20_000,
        "train_samples": 10_000,
        "validation_samples": 300,
        "test_samples": 300,
        "epochs": 15,
        "batch_size": 16,
        "augmentation": 0.0,
    }
    places = ("cache_dir", "hand_mesh", "cutouts", "photos")

    @classmethod
    def is_named_by(cls, options) -> bool:
        return bool(options.cutouts or options.photos)

    @classmethod
    def defaults_for(cls, options, init) -> dict:
        return {**cls.defaults, **negatives_by_default(init)}

    @classmethod
    def rules(cls, args) -> list[Rule]:
        themselves = "scenes turn and colour every hand themselves"
        return [
            *super().rules(args),
            (("layers",), not args.streaming, "with --streaming no hand is stored"),
            (("cutouts_share",), bool(args.cutouts), "--cutouts has it"),
        ] + ([(("augmentation", "max_rotation"), False, themselves)] if args.dataset == ["scenes"] else [])

    def load(self) -> Splits:
        options = self.options
        batches_from = draws_on(options, self.device)

        def fixed(seed: int, count: int, **changes) -> tuple[Items, list[str]]:
            scenes = dataclasses.replace(self.scenes, **{"negatives": 0.0, **changes})
            unseen = [("drawn", HandLayers(drawn_layers(count, seed, mesh), self.cache)) for mesh in bodies(options)]
            if options.cutouts:
                unseen.append(("cut-outs", HandLayers(Cutouts(options.cutouts, "held out", variants=1), self.cache)))
            items = (item for _, layers in unseen for item in scene_crops(layers, scenes, seed, self.device))
            return Items(items), [name for name, layers in unseen for _ in range(len(layers))]

        photos = load_photos(options.photos).to(self.device) if options.photos else None
        self.scenes = Scenes(self.image_size, self.box_fill, negatives=options.negatives, photos=photos)
        test, groups = fixed(TEST_SEED, options.test_samples)
        splits = Splits(None, None, test, groups, "source", mean_pose_of="validation")
        if self.eval_only:
            return splits
        for kind in NEGATIVES:
            splits.test_negatives[kind], _ = fixed(TEST_SEED, options.test_samples, negatives=1.0, kinds=(kind,))
        hands, shares = hands_for_scenes(options, LAYER_SIZE, self.seed, self.cache, batches_from)
        splits.train = LayerStream(hands, shares, options.train_samples, self.seed, batches_from)
        splits.validation, splits.validation_groups = fixed(VALIDATION_SEED, options.validation_samples)
        return splits

    def make_pictures(self, batch: dict, keys: Tensor) -> tuple[Tensor, Tensor]:
        return self.scenes(batch["image"], batch["keypoints"], batch["skin"], keys)

    def describe(self) -> Description:
        cutouts = bool(self.options.cutouts)
        name = " and ".join(["synthetic hands", *(["cut-out photographs"] if cutouts else [])]) + " (scenes)"
        data = f"{name[0].upper()}{name[1:]}. {self.provenance()}"
        if cutouts:
            data += " Validation and test have the same cut-out photographs, in other scenes; none was trained on."
        seen = "and cut-out photographs of few people only" if cutouts else "only"
        return Description(
            name=name,
            data=data,
            limits=f"It has seen drawn hands {seen}: expect larger errors on photographs.",
            pictures="The hands are drawn by the project" + (" or cut out of photographs." if cutouts else "."),
            private=cutouts or bool(self.options.photos),
            credits=background_credits(self.options.photos) if self.options.photos else (),
        )


def background_credits(folder: str) -> tuple[tuple[str, str, str], ...]:
    """The sources of background photographs that an `index.json` in their folder names, with their licences."""
    index = Path(folder) / "index.json"
    if not index.is_file():
        return ()
    counts, licenses = Counter(entry["source"] for entry in json.loads(index.read_text())), read_licenses(folder)
    return tuple(
        (source.replace("+", "/"), licenses.get(source, "not stated"), f"{count} backgrounds")
        for source, count in sorted(counts.items())
    )


def gpu_has_room(device: torch.device, needed: int) -> bool:
    """Whether `device` is a GPU and `needed` bytes are less than half of its free memory."""
    return device.type == "cuda" and 2 * needed < torch.cuda.mem_get_info(device)[0]
