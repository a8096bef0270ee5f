"""Arrays that are made once, kept on disk and read through memory maps: by later runs too, and by many processes."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

# Processes that prepare a cache's samples at most.
MAX_WORKERS = 8


def written_once(cache_dir: Path, name: str, write: Callable[[Path], None]) -> Path:
    """The folder `name` in `cache_dir`, filled by `write` if it is not there yet.

    It is written under a temporary name that is renamed when it is whole, by one process while others wait for it.
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


def new_arrays(folder: Path, shapes: dict[str, tuple[tuple[int, ...], type]]) -> dict[str, np.ndarray]:
    """Arrays of the given shapes and dtypes in new files of `folder`, to be filled."""
    return {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
        for name, (shape, dtype) in shapes.items()
    }


def open_arrays(folder: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of a folder as memory maps."""
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}


def worker_count() -> int:
    """Processes that prepare a cache's samples."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, MAX_WORKERS)
