"""Arrays that are made once and stay on disk. Many processes and later runs read them through memory maps."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

MAX_WORKERS = 8  # processes that fill a cache


def default_cache() -> Path:
    """The folder of prepared images where none is named."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "handunet"


def written_once(cache_dir: Path, name: str, write: Callable[[Path], None]) -> Path:
    """The folder `name` in `cache_dir`. If it is not there, `write` fills it.

    One process writes it under a temporary name and renames it when it is complete; other processes wait for it.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    folder = cache_dir / name
    with FileLock(cache_dir / f"{name}.lock"):
        if not folder.exists():
            for left_by_a_killed_process in cache_dir.glob(f"{name}-*.incomplete"):
                shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f"{name}-", suffix=".incomplete", dir=cache_dir))
            try:
                write(unfinished)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def write_arrays(
    folder: Path,
    shapes: dict[str, tuple[tuple[int, ...], type]],
    make: Callable[[range], Mapping[str, np.ndarray]],
    batch_size: int,
) -> None:
    """Write arrays of the given shapes and dtypes to new files in `folder`. All have the same number of rows.

    `make` returns the rows of a range (up to `batch_size`) as arrays by name. If there are several cores, several
    processes share the batches, and each writes what it made. Raises `OSError` if the disk has no room for the files.
    """
    (count,) = {shape[0] for shape, _ in shapes.values()}
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
        for name, (shape, dtype) in shapes.items()
    }
    for name in shapes:
        reserve(folder / f"{name}.npy")
    batches = [range(first, min(first + batch_size, count)) for first in range(0, count, batch_size)]
    parts = _Parts(folder, tuple(shapes), make, batches)
    for _ in DataLoader(parts, batch_size=None, num_workers=worker_count() if len(batches) > 1 else 0):
        pass
    for array in arrays.values():
        array.flush()


def reserve(path: Path) -> None:
    """Reserve disk space for a whole new file, or raise `OSError`. Without space, writing to its map kills the process."""
    if hasattr(os, "posix_fallocate"):
        size = path.stat().st_size
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise OSError(
                    f"There is no room for the {size / 1e6:.1f} MB of {path}: {error}. Make room, or name another --cache_dir."
                ) from error


class _Parts(Dataset):
    """Reading an item writes that batch of rows. It is a class so that workers can receive it."""

    def __init__(self, folder: Path, names: tuple[str, ...], make: Callable, batches: list[range]):
        self.folder, self.names, self.make, self.batches = folder, names, make, batches
        self._arrays: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> int:
        if self._arrays is None:
            self._arrays = open_arrays(self.folder, self.names, "r+")
        rows = self.batches[number]
        for name, values in self.make(rows).items():
            self._arrays[name][rows.start : rows.stop] = values
        return number


def open_arrays(folder: Path, names: tuple[str, ...], mode: str = "r") -> dict[str, np.ndarray]:
    """The arrays of a folder, as memory maps."""
    return {name: np.load(folder / f"{name}.npy", mmap_mode=mode) for name in names}


class DeviceRows:
    """`count` rows of named tensors in a device's memory. `parts` gives them in order, some rows (B, ...) at a time."""

    def __init__(self, count: int, device: str | torch.device, parts: Iterable[Mapping[str, Tensor]]):
        self.count, self.tensors, first = count, {}, 0
        for part in parts:
            last = first + len(next(iter(part.values())))
            for name, values in part.items():
                if name not in self.tensors:
                    self.tensors[name] = torch.empty(count, *values.shape[1:], dtype=values.dtype, device=device)
                self.tensors[name][first:last] = values
            first = last

    def __len__(self) -> int:
        return self.count

    def rows(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The rows `numbers` (B) of all tensors, (B, ...) each, on the device."""
        return {name: values[torch.tensor(numbers, device=values.device)] for name, values in self.tensors.items()}


def worker_count() -> int:
    """How many processes fill a cache beside this one: 0 on a single core."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, MAX_WORKERS) if available > 1 else 0
