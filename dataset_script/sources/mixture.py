"""Several sources in one run: each training sample comes from one of them, drawn by share."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dataset_script import counter_rng
from dataset_script.augmentation import augmentation_keys
from dataset_script.sources.base import Description, Inputs, Items, Source, Splits, Stream, Terms


class MixedStream(Stream):
    """`count` samples an epoch, each of one of `parts`, drawn with the part's share.

    If the part is a [`Stream`], sample i is its sample i; from any other dataset a random item is drawn.  A sample depends
    only on (seed, epoch, index).

    `__getitems__` returns a batch: `index` (B,) and `parts`, a dict.  For each part that has samples in the batch, by its
    number, `parts` has the part's own batch, and in it `place`: where its samples are in the whole batch.
    """

    def __init__(self, parts: Sequence[Dataset], shares: Sequence[float], count: int, seed: int):
        super().__init__(count)
        self.parts, self.seed = list(parts), seed
        self.limits = np.cumsum(shares) / np.sum(shares)

    def __getitems__(self, indices: list[int]) -> dict:
        """The batch of these items."""
        keys = augmentation_keys(self.seed, self.epoch, torch.tensor(indices))
        draws = counter_rng.uniform(keys, "mixture", (2,)).double().numpy()
        chosen = np.searchsorted(self.limits, draws[:, 0], side="right").clip(max=len(self.parts) - 1)
        parts = {}
        for number, part in enumerate(self.parts):
            places = np.flatnonzero(chosen == number)
            if not len(places):
                continue
            if isinstance(part, Stream):
                part.epoch = self.epoch
                wanted = [indices[place] for place in places]
            else:
                wanted = [int(draws[place, 1] * len(part)) for place in places]
            rows = part.__getitems__(wanted)
            rows = rows if isinstance(rows, dict) else default_collate(rows)
            device = rows["keypoints"].device
            parts[number] = {**rows, "place": torch.from_numpy(places).to(device)}
        return {"index": torch.tensor(indices), "parts": parts}


class Mixture(Source):
    """Several sources; each gives its share of the training samples.

    Validation and test have the samples of the sources that `validate_on` names (by default of all), grouped by source.
    """

    name = "mixture"

    def __init__(self, sources: Sequence[Source], shares: Sequence[float], validate_on: Sequence[str] | None = None):
        first = next(source for source in sources if validate_on is None or source.name in validate_on)
        super().__init__(
            first.options, image_size=first.image_size, box_fill=first.box_fill, seed=first.seed,
            eval_only=first.eval_only, device=first.device,
        )  # fmt: skip
        self.sources, self.shares = list(sources), list(shares)
        self.judges = [source for source in sources if validate_on is None or source.name in validate_on]
        self.same_validation_and_test = any(source.same_validation_and_test for source in self.judges)

    def load(self) -> Splits:
        parts = [source.splits() for source in self.sources]
        judges = [source.splits() for source in self.judges]
        groups = groups_of((source.name, part.test_groups, part.test) for source, part in zip(self.judges, judges))
        splits = Splits(None, None, joined(part.test for part in judges), groups, "source", mean_pose_of="validation")
        splits.left_out = {name: reason for part in parts for name, reason in part.left_out.items()}
        if self.eval_only:
            return splits
        splits.validation = joined(part.validation for part in judges)
        splits.validation_groups = groups_of(
            (source.name, part.validation_groups, part.validation) for source, part in zip(self.judges, judges)
        )
        splits.boxed_hands = next((part.boxed_hands for part in judges if part.boxed_hands), None)
        splits.test_negatives = {kind: images for part in judges for kind, images in part.test_negatives.items()}
        count = self.options.train_samples or max(len(part.train) for part in parts)
        splits.train = MixedStream([part.train for part in parts], self.shares, count, self.seed)
        return splits

    def join(self, batches: Sequence[dict]) -> dict:
        first, parts = 0, {}
        for batch in batches:
            for number, part in batch["parts"].items():
                parts.setdefault(number, []).append({**part, "place": part["place"] + first})
            first += len(batch["index"])
        return {
            "index": torch.cat([batch["index"] for batch in batches]),
            "parts": {number: self.sources[number].join(found) for number, found in sorted(parts.items())},
        }

    def make_inputs(self, batch: dict, keys: Tensor) -> Inputs:
        made = {}
        for number, part in batch["parts"].items():
            made[number] = self.sources[number].make_inputs(part, keys[part["place"]])
        order = torch.cat([part["place"] for part in batch["parts"].values()]).argsort()
        return Inputs(*(torch.cat(pieces)[order] for pieces in zip(*made.values())))

    def summary(self) -> str:
        return "\n".join(text for source in self.sources if (text := source.summary()))

    def describe(self) -> Description:
        parts = [source.describe() for source in self.sources]
        total = sum(self.shares)
        return Description(
            name=" and ".join(part.name for part in parts),
            data=" ".join(f"{share / total:.0%} of the samples: {part.data}" for share, part in zip(self.shares, parts)),
            limits=" ".join(dict.fromkeys(source.describe().limits for source in self.judges)),
            pictures=" ".join(dict.fromkeys(source.describe().pictures for source in self.judges)),
            private=any(source.describe().private for source in self.judges),
            credits=tuple(credit for part in parts for credit in part.credits),
        )

    def terms(self) -> Terms:
        """The terms of the strictest source, with the datasets and citations of all of them."""
        found = [source.terms() for source in self.sources]
        rank = {"other": 2, "unknown": 1}  # "other": research only
        strictest = max(found, key=lambda terms: rank.get(terms.license, 0))
        return Terms(
            strictest.license, strictest.license_name, strictest.license_link,
            datasets=tuple(dict.fromkeys(name for terms in found for name in terms.datasets)),
            citation="".join(dict.fromkeys(terms.citation for terms in found)),
            text=" ".join(dict.fromkeys(terms.text for terms in found if terms.text)),
        )  # fmt: skip


def joined(parts) -> Dataset:
    """The items of several datasets as one."""
    return Items(part[index] for part in parts for index in range(len(part)))


def groups_of(parts: Iterable[tuple[str, list[str] | None, Dataset]]) -> list[str]:
    """The group of each item of several parts (name of the source, groups, items): its own, or the source's name."""
    return [group for name, groups, items in parts for group in groups or [name] * len(items)]
