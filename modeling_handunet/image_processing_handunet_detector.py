"""Photographs to the detector's input, and its maps to hands in the photograph."""

from numbers import Real
from typing import TypedDict

from .versions import MINIMUM_TRANSFORMERS  # noqa: F401  comes first, because it refuses an older transformers

# isort: split
import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling

from .configuration_handunet_detector import MAX_IMAGE_SIZE
from .crops import Crop, normalize_crops
from .detection_decoding import duplicates, peaks
from .images import load_image


class HandUNetDetectorImageProcessorKwargs(TypedDict, total=False):
    """What `preprocessor_config.json` holds; other options of image processors are refused, not ignored."""

    size: int | dict[str, int]
    default_to_square: bool
    resample: int
    rescale_factor: float
    image_mean: list[float]
    image_std: list[float]


class HandUNetDetectorImageProcessor(PilBackend):
    """Prepares photographs for [`HandUNetForObjectDetection`] and reads its answers.

    A photograph becomes the smallest centred square that holds it, black beyond its edges, is resized (PIL bilinear),
    scaled to [0, 1] and normalised as the pose network's crops are.
    """

    valid_kwargs = HandUNetDetectorImageProcessorKwargs
    model_input_names = ["pixel_values"]

    resample = PILImageResampling.BILINEAR
    size = {"height": 320, "width": 320}
    default_to_square = True
    # The pose network's, whose weights a detector may start from.
    image_mean = [0.3950, 0.4323, 0.2954]
    image_std = [0.1966, 0.1734, 0.1836]
    rescale_factor = 1 / 255

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        side, other = (self.size.get(name) for name in ("height", "width"))
        if not isinstance(side, int) or side != other or not 0 < side <= MAX_IMAGE_SIZE:
            raise ValueError(f"size={dict(self.size)}: give one height and width, from 1 to {MAX_IMAGE_SIZE}.")
        if self.resample != PILImageResampling.BILINEAR:
            raise ValueError(f"resample={self.resample!r}: photographs are resized with PIL's bilinear filter, 2.")
        if not isinstance(self.rescale_factor, Real):
            raise ValueError(f"rescale_factor={self.rescale_factor!r}: give the number that pixels are multiplied with.")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or [isinstance(value, Real) for value in values] != [True] * 3:
                raise ValueError(f"{name}={values!r}: give three numbers, one for each of red, green and blue.")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std={self.image_std!r}: give numbers above 0.")

    def preprocess(self, images, *, return_tensors="pt", **kwargs) -> BatchFeature:
        """Letterbox, resize and normalise every photograph.

        Args:
            images: one image or a list: paths, URLs, bytes, PIL images, arrays or tensors; see `images.load_image`.
            return_tensors: "pt" or "np".

        Returns:
            `pixel_values` (images, 3, size, size).

        Raises `ValueError` for an empty list and for an image that cannot be used, `TypeError` for an option, which is
        given when the processor is made or loaded, and `OSError` for a file that is not a readable image.
        """
        if kwargs:
            raise TypeError(f"HandUNetDetectorImageProcessor takes no {sorted(kwargs)} in a call: give it when it is made.")
        several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        images = list(images) if several else [images]
        if not images:
            raise ValueError("Got an empty list of images: give at least one.")
        pixels = np.stack([self.letterbox(load_image(image)) for image in images])
        normalized = normalize_crops(pixels, self.rescale_factor, self.image_mean, self.image_std)
        return BatchFeature({"pixel_values": normalized}, tensor_type=return_tensors)

    def letterbox(self, image) -> np.ndarray:
        """An RGB PIL image as the square (size, size, 3) uint8 that the network sees."""
        return np.asarray(Crop.of_image(*image.size, self.size["height"]).cut(image))

    def post_process_object_detection(
        self, outputs, threshold: float = 0.5, target_sizes=None
    ) -> list[dict[str, torch.Tensor]]:
        """Turn the detector's maps into hands in the photograph.

        Args:
            outputs: the model's output.
            threshold: detections of a lower score are left out.
            target_sizes: (height, width) of each original image, a list or a tensor (images, 2).

        Returns:
            Per image a dict of tensors on the CPU, falling by score: `scores` (N,) in [0, 1]; `labels` (N,), 0 right,
            1 left; `boxes` (N, 4), (x_min, y_min, x_max, y_max), cut to the image; `directions` (N, 2), unit vectors from
            the wrist to the middle knuckle.  Boxes are in pixels of the original image, or without target sizes shares of
            the letterboxed square.  N is 0 where no hand is found.

        Raises `ValueError` when there are more or fewer target sizes than images.
        """
        centres, boxes, directions = (outputs[name].detach().float() for name in ("centres", "boxes", "directions"))
        if target_sizes is not None and len(target_sizes) != len(centres):
            raise ValueError(f"Got target_sizes for {len(target_sizes)} images, but the outputs of {len(centres)}.")
        scores, labels, boxes, directions = peaks(centres, boxes, directions)
        found = ((scores > 0) & (scores >= threshold)).cpu()
        found &= ~duplicates(labels, boxes).cpu()
        results = []
        for index in range(len(centres)):
            maps = {"scores": scores, "labels": labels, "boxes": boxes, "directions": directions}
            hands = {name: values[index].cpu()[found[index]] for name, values in maps.items()}
            corners, limits = hands["boxes"].double().view(-1, 2, 2), (1.0, 1.0)
            if target_sizes is not None:
                height, width = (int(length) for length in target_sizes[index])
                corners, limits = Crop.of_image(width, height, 1).back(corners), (float(width), float(height))
            corners = corners.view(-1, 4).clamp_min(0).minimum(torch.tensor(limits * 2, dtype=torch.float64))
            inside = (corners[:, 2:] > corners[:, :2]).all(1)  # not those in the black beyond the image
            results.append({name: values[inside] for name, values in {**hands, "boxes": corners.float()}.items()})
        return results


__all__ = ["HandUNetDetectorImageProcessor"]
