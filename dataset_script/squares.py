"""Square parts of photographs, cut out and resized once, kept on disk and read through a memory map."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset_script.caches import DeviceRows, open_arrays, write_arrays, written_once
from dataset_script.files import digest
from modeling_handunet.crops import Crop
from modeling_handunet.images import load_image

# Raise when the same squares are cut out otherwise, so that caches on disk are made anew.
VERSION = 1
BATCH = 32


class Squares:
    """A square of each of `entries`, pairs of a path and (left, top, side) in pixels of the upright photograph, black
    where it reaches outside; None stands for the smallest centred square that holds the photograph.

    They take `len(entries) * 3 * size**2` bytes in `cache_dir`.
    """

    def __init__(self, entries: Sequence[tuple[Path, tuple | None]], size: int, cache_dir: str | os.PathLike):
        self.entries, self.size = list(entries), size
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns, square) for path, square in self.entries]
        self.fingerprint = digest(VERSION, size, stamps)
        self.folder = written_once(Path(cache_dir), f"squares-{size}-{self.fingerprint}", self._write)
        self._pixels: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_pixels": None}

    def __len__(self) -> int:
        return len(self.entries)

    def rows(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """`image` (B, 3, size, size) uint8 of several squares."""
        if self._pixels is None:
            self._pixels = open_arrays(self.folder, ("image",))["image"]
        return {"image": torch.from_numpy(np.stack([self._pixels[int(number)] for number in numbers]))}

    def _write(self, folder: Path) -> None:
        shape = (len(self), 3, self.size, self.size)
        write_arrays(folder, {"image": (shape, np.uint8)}, self._make, BATCH)

    def _make(self, numbers: range) -> dict[str, np.ndarray]:
        return {"image": np.stack([self._cut(*self.entries[number]) for number in numbers])}

    def _cut(self, path: Path, square: tuple | None) -> np.ndarray:
        image = load_image(path)
        crop = Crop.of_image(*image.size, self.size) if square is None else Crop(square, self.size)
        return np.asarray(crop.cut(image)).transpose(2, 0, 1)


def squares_on_device(squares: Squares, device: str | torch.device, batch_size: int = 256) -> DeviceRows:
    """All squares in the memory of a device."""
    return DeviceRows(len(squares), device, map(squares.rows, torch.arange(len(squares)).split(batch_size)))


def background_squares(folder: str | os.PathLike, size: int, cache_dir: str | os.PathLike) -> Squares:
    """Both ends of every photograph of a folder, as wide as its shorter side; files of other kinds are left out.

    Raises ValueError for a folder without photographs.
    """
    entries = []
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
            continue
        width, height = load_image(path).size
        side = min(width, height)
        entries += [(path, (0.0, 0.0, float(side))), (path, (float(width - side), float(height - side), float(side)))]
    if not entries:
        raise ValueError(f"{folder} has no photographs: name a folder of backgrounds without people")
    return Squares(entries, size, cache_dir)
