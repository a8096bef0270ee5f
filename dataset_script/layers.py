"""Hands without backgrounds, stored as RGBA: training puts the same hand into a new scene each time.

Drawing a hand takes about as long as putting it into a scene, and cut-out photographs cannot be drawn again. So a hand is
made once, in the middle of a square that is somewhat larger than its later crop. Each use turns, scales and colours it and
puts it over another background (`dataset_script/scenes.py`).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dataset_script.caches import DeviceRows, open_arrays, write_arrays, written_once
from dataset_script.files import digest
from dataset_script.synthetic import SyntheticHands
from dataset_script.synthetic.compositing import Layer
from modeling_handunet.keypoints import NUM_KEYPOINTS

NAMES = ("rgba", "keypoints", "skin")
LAYERS_VERSION = 1  # raise it if HandLayers stores other layers of the same source: caches on disk are then made again
BATCH = 32


class LayerSource(Protocol):
    """A source of layers: `SyntheticHands` draws them, `Cutouts` reads them."""

    image_size: int
    fingerprint: str

    def __len__(self) -> int: ...

    def layers(self, indices: Tensor) -> Layer:
        """The hands `indices` (B,), each in a square of `image_size` pixels."""
        ...


def layer_rows(layer: Layer) -> dict[str, Tensor]:
    """A layer for storage: `rgba` (B, 4, S, S) uint8, `keypoints` (B, 21, 2), `skin` (B, 3); all stay on their device."""
    rgba = (layer.rgba.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    return {"rgba": rgba, "keypoints": layer.keypoints, "skin": layer.skin}


class HandLayers:
    """The layers of a source. They are made once and read through a memory map.

    They take `len(source) * 4 * image_size**2` bytes in `cache_dir`.
    """

    def __init__(self, source: LayerSource, cache_dir: str | os.PathLike):
        self.source = source
        name = f"layers-{source.image_size}-{digest(LAYERS_VERSION, source.fingerprint, len(source))}"
        self.folder = written_once(Path(cache_dir), name, self._write)
        self._arrays: dict[str, np.ndarray] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_arrays": None}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`rgba` (4, S, S) uint8, `keypoints` (21, 2) float32 px of it, `skin` (3,) float32 in [0, 1]."""
        if self._arrays is None:
            self._arrays = open_arrays(self.folder, NAMES)
        return {name: np.array(array[index]) for name, array in self._arrays.items()}

    def rows(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The layers `numbers` (B), as tensors (B, ...)."""
        rows = [self[int(number)] for number in numbers]
        return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in NAMES}

    def _write(self, folder: Path) -> None:
        count, size = len(self), self.source.image_size
        shapes = {
            "rgba": ((count, 4, size, size), np.uint8),
            "keypoints": ((count, NUM_KEYPOINTS, 2), np.float32),
            "skin": ((count, 3), np.float32),
        }
        write_arrays(folder, shapes, self._rows, BATCH)

    def _rows(self, numbers: range) -> dict[str, np.ndarray]:
        return {name: values.numpy() for name, values in layer_rows(self.source.layers(torch.tensor(numbers))).items()}


def layers_on_device(source: HandLayers | SyntheticHands, device: str | torch.device, batch_size: int = 1024) -> DeviceRows:
    """All layers of a source in a device's memory: read from disk, or drawn on the device."""
    numbers = torch.arange(len(source)).split(batch_size)
    if isinstance(source, HandLayers):
        return DeviceRows(len(source), device, map(source.rows, numbers))
    return DeviceRows(len(source), device, (layer_rows(source.layers(part, device)) for part in numbers))
