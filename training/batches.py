"""How samples become batches: the order of an epoch, the loader, and crops that a GPU holds."""

import hashlib
import os
import signal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dataset_script.caches import DeviceRows
from dataset_script.hand_crops import HandCrops
from dataset_script.sources import Stream
from dataset_script.sources.scenes import gpu_has_room

# So many samples of each split, evenly spread, are compared by a resumed run to check that the data is the same.
FINGERPRINT_SAMPLES = 32
DIGESTED = ("image", "keypoints", "visibility", "boxes", "class_labels", "directions", "ignore", "present", "hand_classes")


class EpochShuffle(Sampler[int]):
    """A random order of the samples.  It depends only on (seed, epoch); set `epoch` before you iterate."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        yield from torch.randperm(self.count, generator=generator).tolist()


class DeviceCrops(DeviceRows, Dataset):
    """All items of `dataset` in the memory of one device.  `__getitems__` makes a whole batch with one indexing."""

    def __init__(self, dataset: Dataset, device: str | torch.device, batch_size: int = 1024):
        numbers = torch.arange(len(dataset)).split(batch_size)
        super().__init__(len(dataset), device, (default_collate(dataset.__getitems__(part.tolist())) for part in numbers))

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The batch of these items, on the device."""
        return self.rows(indices)


def on_gpu_if_it_fits(dataset: Dataset, device: torch.device) -> Dataset:
    """`dataset` copied into the GPU's memory if its crops fit there; otherwise `dataset` itself."""
    if not isinstance(dataset, HandCrops) or dataset.cache is None:
        return dataset
    return DeviceCrops(dataset, device) if gpu_has_room(device, len(dataset) * 3 * dataset.image_size**2) else dataset


def make_loader(dataset: Dataset, batch_size: int, workers: int = 0, **more) -> DataLoader:
    """Batches of `dataset`.  Crops on a device get no workers.  Workers ignore the signals that stop a run."""
    workers = 0 if isinstance(dataset, DeviceCrops) else workers
    init = outlive_interrupts if workers else None
    return DataLoader(dataset, batch_size, num_workers=workers, worker_init_fn=init, collate_fn=collate, **more)


def collate(items: list[dict] | dict) -> dict:
    """A batch from items.  If the dataset's `__getitems__` returns a batch already, that batch."""
    return items if isinstance(items, dict) else default_collate(items)


def outlive_interrupts(worker: int) -> None:
    """Let a dataloader's worker go on when Ctrl-C or SIGTERM reaches the whole process group.

    The run needs its batches until the step is done.  If nobody ends the worker, it exits 20 s after a SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(20) and os._exit(0))


def set_epoch(dataset: Dataset, epoch: int) -> None:
    """Tell a stream of which epoch its samples are.  Other datasets are the same in every epoch."""
    if isinstance(dataset, Stream):
        dataset.epoch = epoch


def fingerprint(dataset: Dataset) -> str:
    """Hex digest of the length of `dataset` and of evenly spread samples.  Where its files lie does not matter."""
    count = min(len(dataset), FINGERPRINT_SAMPLES)
    digest = hashlib.sha256(str(len(dataset)).encode())
    add_to_digest(digest, collate(dataset.__getitems__([number * len(dataset) // count for number in range(count)])))
    return digest.hexdigest()


def add_to_digest(digest, batch: dict) -> None:
    """Digest the images and labels of a batch, row by row."""
    for _, part in sorted(batch.get("parts", {}).items()):
        add_to_digest(digest, part)
    for row in range(len(batch["image"]) if "image" in batch else 0):
        for name in (name for name in DIGESTED if name in batch):
            digest.update(batch[name][row].cpu().numpy().tobytes())
