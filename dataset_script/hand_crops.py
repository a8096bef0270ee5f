"""From a row of any dataset to what the network reads: resizing, cropping, heatmaps.

A row has an `image` and `uv` (21, 2) in its pixels; where it also has a `box` (x, y, width, height) the hand is cut out
as the image processor does it, and where `handedness` is "left" it is mirrored into a right hand.  Images and their
keypoints are only ever moved together.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from dataset_script.caches import open_arrays, write_arrays, written_once
from dataset_script.files import digest
from modeling_handunet.configuration_handunet import HandUNetConfig
from modeling_handunet.crops import Crop
from modeling_handunet.heatmaps import render_heatmaps
from modeling_handunet.image_processing_handunet import HandUNetImageProcessor
from modeling_handunet.images import load_image, to_rgb
from modeling_handunet.keypoints import NUM_KEYPOINTS

IMAGE_SIZE = HandUNetConfig().image_size
SIGMA = HandUNetConfig().sigma
BOX_FILL = HandUNetImageProcessor.box_fill
# The columns that are read to crop a hand; the others (heatmaps, say) stay on disk.
COLUMNS = ("image", "uv", "visibility", "box", "handedness")
# Raise when HandCrops makes other crops of the same rows, so that caches on disk are made anew.
CROPS_VERSION = 1
# The arrays of a cache.
NAMES = ("image", "keypoints", "visibility", "box_size")
# Samples that are prepared together while a cache is written.
CACHE_BATCH = 32


def crop_hand(row: Mapping, size: int = IMAGE_SIZE, box_fill: float = BOX_FILL) -> dict:
    """Cut the hand of a row out, as a right hand in a square of `size` pixels.

    With a `box`, the square has its centre and side longer side / `box_fill`; without, it is the whole image, padded
    centrally in black to a square.

    Returns:
        `image` (PIL, RGB); `keypoints` (21, 2) float32, x then y in pixels of the crop; `visibility` (21,) bool,
        annotated and inside the crop; `box_size`, the longer side of the hand's box in pixels of the crop, which is
        the row's `box` or else that of its annotated keypoints.
    """
    image = row["image"]  # decoded, or as it is stored
    image = load_image(image["bytes"] or image["path"]) if isinstance(image, Mapping) else to_rgb(image)
    keypoints = np.asarray(row["uv"], np.float64)  # (21, 2)
    annotated = np.ones(len(keypoints), bool) if row.get("visibility") is None else np.asarray(row["visibility"], bool)
    box = row.get("box")
    mirrored = row.get("handedness") == "left"
    if box is None:
        crop = Crop.of_image(*image.size, size, mirrored=mirrored)
        box_size = float(np.ptp(crop.to(keypoints)[annotated], axis=0).max())
    else:
        crop = Crop.around_box(box, size, box_fill, mirrored=mirrored)
        box_size = max(box[2], box[3]) * size / crop.square[2]
    keypoints = crop.to(keypoints).astype(np.float32)
    inside = ((keypoints >= 0) & (keypoints < size)).all(1)
    return {"image": crop.cut(image), "keypoints": keypoints, "visibility": annotated & inside, "box_size": box_size}


def add_heatmaps(dataset, image_size: int = IMAGE_SIZE, sigma: float = SIGMA):
    """The dataset as the network is trained on it: each row becomes `pixel_values`, `keypoints` and `heatmaps`.

    Everything is made when a row is read, so nothing is stored and `dataset` (a `datasets.Dataset`, or any dataset of
    such rows) is left as it was.  A row then has `pixel_values` (3, size, size) float32, normalised as
    [`HandUNetImageProcessor`] does; `keypoints` (21, 2) float32 in pixels of that image; `heatmaps` (21, size, size)
    float32 in [0, 1], all zero for a keypoint that is not annotated or outside the image.
    """
    to_inputs = _HeatmapTransform(image_size, sigma)
    if hasattr(dataset, "set_transform"):
        return _only_crop_columns(dataset).with_transform(to_inputs)
    return _TransformedRows(dataset, to_inputs)


class _HeatmapTransform:
    """A batch of rows (a dict of lists) to a dict of tensors.  A class, so that dataloader workers can receive it."""

    def __init__(self, image_size: int, sigma: float):
        self.image_size, self.sigma = image_size, sigma
        self.processor = HandUNetImageProcessor(size={"height": image_size, "width": image_size})

    def __call__(self, batch: Mapping[str, list]) -> dict[str, torch.Tensor]:
        rows = [dict(zip(batch, values)) for values in zip(*batch.values())]
        crops = [crop_hand(row, self.image_size) for row in rows]
        keypoints = torch.from_numpy(np.stack([crop["keypoints"] for crop in crops]))  # (B, 21, 2)
        visibility = torch.from_numpy(np.stack([crop["visibility"] for crop in crops]))  # (B, 21)
        pixels = np.stack([np.asarray(crop["image"]) for crop in crops])  # (B, size, size, 3)
        return {
            "pixel_values": torch.from_numpy(self.processor.normalize_pixels(pixels)),
            "keypoints": keypoints,
            "heatmaps": render_heatmaps(keypoints, self.image_size, self.sigma) * visibility[..., None, None],
        }


class _TransformedRows(Dataset):
    def __init__(self, dataset, transform: _HeatmapTransform):
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch = self.transform({key: [value] for key, value in self.dataset[index].items()})
        return {key: values[0] for key, values in batch.items()}


def _only_crop_columns(dataset):
    """A `datasets.Dataset` with the columns that cropping reads, images as they are stored; anything else as it is.

    So images are decoded by [`load_image`] alone, which accepts whatever a builder's check accepted.
    """
    if not hasattr(dataset, "column_names"):
        return dataset
    dataset = dataset.with_format(None).select_columns([name for name in COLUMNS if name in dataset.column_names])
    return dataset.cast_column("image", datasets.Image(decode=False))


class HandCrops(Dataset):
    """The crops that training reads, of FreiHAND, CocoHands, SyntheticHands or any dataset of such rows.

    An item has `image` (3, size, size) uint8 tensor, RGB; `keypoints` (21, 2) float32, x then y in pixels of the crop;
    `visibility` (21,) bool, annotated and inside the crop; `box_size` float, the longer side of the hand's box in
    pixels of the crop; `index` int.

    With `cache_dir` all crops are decoded once, into a file of `len(dataset) * 3 * size**2` bytes that is then read
    through a memory map: by later runs too, and by all processes of one machine together.  It is named after the
    dataset's fingerprint and the options, and written under a temporary name that is renamed when it is whole.

    A dataset that draws its samples draws them on `device`; items are on the CPU in any case.
    """

    def __init__(
        self,
        dataset,
        image_size: int = IMAGE_SIZE,
        *,
        box_fill: float = BOX_FILL,
        cache_dir: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
    ):
        self.dataset = _only_crop_columns(dataset)
        self.image_size, self.box_fill, self.device = image_size, box_fill, device
        self.cache: Path | None = None
        self._arrays: dict[str, np.ndarray] | None = None
        if cache_dir is not None:
            self.cache = self._build_cache(Path(cache_dir), _fingerprint(dataset))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_arrays": None}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """The items of a batch; a dataset that draws its samples draws them together."""
        indices = [range(len(self))[index] for index in indices]
        if self.cache is not None:
            arrays = self._open_cache()
            crops = [{name: np.array(arrays[name][index]) for name in arrays} for index in indices]
        else:
            crops = self._crops(indices)
        return [
            {
                "image": torch.from_numpy(crop["image"]),
                "keypoints": torch.from_numpy(crop["keypoints"]),
                "visibility": torch.from_numpy(crop["visibility"]),
                "box_size": float(crop["box_size"]),
                "index": index,
            }
            for index, crop in zip(indices, crops)
        ]

    def _crops(self, indices: list[int]) -> list[dict]:
        if not hasattr(self.dataset, "render") or self.dataset.image_size != self.image_size:
            if not hasattr(self.dataset, "__getitems__"):
                return [self._crop(index, self.dataset[index]) for index in indices]
            return list(map(self._crop, indices, self.dataset.__getitems__(indices)))  # rows of files, read together
        batch = self.dataset.render(torch.tensor(indices), self.device)
        crops = []
        for image, points in zip(batch["images"].cpu().numpy(), batch["keypoints"].cpu().numpy()):
            visibility = ((points >= 0) & (points < self.image_size)).all(1)
            box_size = float(np.ptp(points, axis=0).max())
            crops.append({"image": image, "keypoints": points, "visibility": visibility, "box_size": box_size})
        return crops

    def _crop(self, index: int, row: Mapping) -> dict:
        try:
            crop = crop_hand(row, self.image_size, self.box_fill)
        except (OSError, ValueError) as error:
            raise type(error)(f"row {index}: {error}") from error
        image = np.ascontiguousarray(np.asarray(crop["image"]).transpose(2, 0, 1))  # (3, size, size)
        return {**crop, "image": image}

    def _open_cache(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            self._arrays = open_arrays(self.cache, NAMES)
        return self._arrays

    def _build_cache(self, cache_dir: Path, fingerprint: str) -> Path:
        key = digest(CROPS_VERSION, fingerprint, len(self), self.image_size, self.box_fill)
        return written_once(cache_dir, f"crops-{self.image_size}-{key}", self._write_cache)

    def _write_cache(self, folder: Path) -> None:
        count, size = len(self), self.image_size
        shapes = {
            "image": ((count, 3, size, size), np.uint8),
            "keypoints": ((count, NUM_KEYPOINTS, 2), np.float32),
            "visibility": ((count, NUM_KEYPOINTS), np.bool_),
            "box_size": ((count,), np.float64),
        }
        write_arrays(folder, shapes, self._rows, CACHE_BATCH)

    def _rows(self, indices: range) -> dict[str, np.ndarray]:
        crops = self._crops(list(indices))
        return {name: np.stack([crop[name] for crop in crops]) for name in NAMES}


def _fingerprint(dataset) -> str:
    """What tells this dataset's rows from any other's."""
    fingerprint = getattr(dataset, "_fingerprint", None) or getattr(dataset, "fingerprint", None)
    if fingerprint is None:
        raise ValueError(
            f"{type(dataset).__name__} has no `fingerprint` that tells its rows from another dataset's, so its crops "
            "cannot be cached: leave cache_dir out"
        )
    return str(fingerprint)
