"""The two networks in torch, as [`HandModels`] for the rules of hands.py, and where a pose model's detector lies."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from .configuration_handunet_detector import HandUNetDetectorConfig
from .crops import Crop
from .hands import FoundHand, found_hands
from .image_processing_handunet_detector import HandUNetDetectorImageProcessor
from .modeling_handunet_detector import HandUNetForObjectDetection

BATCH_SIZE = 16  # photographs or crops that go through a network together, so that memory stays flat


class TorchHands:
    """A pose model and its image processor, with a detector that is loaded when it is first needed.

    `detector` is None for the one that the pose model names (`config.detector`), a folder, an id on the Hub, a
    [`HandUNetForObjectDetection`], or one with its image processor.
    """

    def __init__(self, model: PreTrainedModel, processor, detector=None, *, method: str = "local"):
        self.model, self.processor, self.method = model, processor, method
        self.image_size, self.box_fill = processor.size["height"], processor.box_fill
        self.keypoint_names = [model.config.id2label[index] for index in range(model.config.num_keypoints)]
        self._detector = detector

    @property
    def detector(self) -> tuple[HandUNetForObjectDetection, HandUNetDetectorImageProcessor]:
        """The detector and its image processor.  Raises `OSError` that says how to get one where there is none."""
        if not isinstance(self._detector, tuple):
            detector, processor = load_detector(self.model, self._detector)
            detector.to(self.model.device, self.model.dtype).eval()
            self._detector = detector, processor
        return self._detector

    @property
    def has_own_detector(self) -> bool:
        """Whether a folder that this model is saved to must hold the detector, since no other place names it for good."""
        if self._detector is None and is_on_hub(self.model.config.detector):
            return False
        try:
            return self.detector is not None
        except OSError:  # there is none
            return False

    def detect(self, photo: Image.Image, twice: bool = True) -> list[FoundHand]:
        """The hands of an RGB photograph, falling by score; `twice` as `HandModels.detect` says."""
        return self.detect_all([photo], twice)[0]

    def detect_all(self, photos: Sequence[Image.Image], twice: bool = True) -> list[list[FoundHand]]:
        """[`detect`] of several photographs."""
        return detect_hands(*self.detector, photos, twice)

    def read(self, photo: Image.Image, crops: Sequence[Crop]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keypoints (N, 21, 2) in pixels of the photograph, scores (N, 21) and chances (N, 2), of N crops of it."""
        return self.read_all([(photo, crop) for crop in crops])

    @torch.inference_mode()
    def read_all(self, crops: Sequence[tuple[Image.Image, Crop]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[`read`] of N crops, each given with its photograph."""
        count = len(self.keypoint_names)
        keypoints, scores, chances = [np.zeros((0, count, 2))], [np.zeros((0, count), np.float32)], [np.zeros((0, 2))]
        for first in range(0, len(crops), BATCH_SIZE):
            batch = crops[first : first + BATCH_SIZE]
            pixels = np.stack([np.asarray(crop.cut(photo)) for photo, crop in batch])  # (B, size, size, 3)
            pixel_values = torch.from_numpy(self.processor.normalize_pixels(pixels)).to(self.model.device, self.model.dtype)
            outputs = self.model(pixel_values)
            points, confidences = self.processor.decode(outputs.heatmaps, self.method)
            keypoints.append(np.stack([crop.back(own) for (_, crop), own in zip(batch, points.double().numpy())]))
            scores.append(confidences.numpy())
            logits = getattr(outputs, "hand_logits", None)
            sides = torch.full((len(batch), 2), torch.nan) if logits is None else logits.float().softmax(1)[:, :2]
            chances.append(sides.cpu().double().numpy())
        return np.concatenate(keypoints), np.concatenate(scores), np.concatenate(chances)


@torch.inference_mode()
def detect_hands(
    model: HandUNetForObjectDetection,
    processor: HandUNetDetectorImageProcessor,
    photos: Sequence[Image.Image],
    twice: bool = True,
) -> list[list[FoundHand]]:
    """What a detector finds in each of several RGB photographs, falling by score; `twice` as `HandModels.detect` says."""
    look, found = model.look_twice if twice else model, []
    for first in range(0, len(photos), BATCH_SIZE):
        batch = photos[first : first + BATCH_SIZE]
        pixel_values = processor(list(batch)).pixel_values.to(model.device, model.dtype)
        sizes = [photo.size[::-1] for photo in batch]
        found += processor.post_process_object_detection(look(pixel_values), 0.0, sizes)
    names = ("scores", "labels", "boxes", "directions")
    return [found_hands(*(hands[name].tolist() for name in names)) for hands in found]


def load_detector(
    model: PreTrainedModel, detector=None
) -> tuple[HandUNetForObjectDetection, HandUNetDetectorImageProcessor]:
    """A detector and its image processor, for a pose model: `detector` as in [`TorchHands`].

    Raises `OSError` that says how to get one where there is none.
    """
    if isinstance(detector, PreTrainedModel):
        return detector, HandUNetDetectorImageProcessor(size=detector.config.image_size)
    if isinstance(detector, tuple):
        return detector
    name, options = (os.fspath(detector), {}) if detector else detector_place(model)
    # As the auto classes do: saving then copies the code, also where it came from a repository itself.
    HandUNetDetectorConfig.register_for_auto_class("AutoConfig")
    HandUNetForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
    HandUNetDetectorImageProcessor.register_for_auto_class("AutoImageProcessor")
    try:
        return (
            HandUNetForObjectDetection.from_pretrained(name, **options),
            HandUNetDetectorImageProcessor.from_pretrained(name, **options),
        )
    except OSError as error:
        raise OSError(
            f"To find hands by itself, this needs a hand detector, and there is none at {'/'.join([name, *options.values()])}."
            " Give one: detector='weights/handunet-detector', or a folder or an id on the Hub. Or give the hands' boxes, or "
            f"boxes='image' for a photograph that is the crop of one hand. ({str(error)[:200]})"
        ) from error


def is_on_hub(detector: str) -> bool:
    """Whether `config.detector` is an id on the Hub, USER/NAME, and no folder seen from the model's own."""
    return not detector.startswith(".") and detector.count("/") == 1


def detector_place(model: PreTrainedModel) -> tuple[str, dict]:
    """The folder or the id on the Hub of the detector that a pose model names, and options to load it from there."""
    own, named = model.config.name_or_path, model.config.detector
    if is_on_hub(named):
        return named, {}
    if os.path.isdir(own) or not own:
        return os.path.join(own, named), {}
    commit = getattr(model.config, "_commit_hash", None)
    return own, {"subfolder": named, **({"revision": commit} if commit else {})}


__all__ = ["TorchHands", "load_detector"]
