"""Photographs and boxes to the network's input, and its heatmaps to keypoints in the photograph."""

from collections.abc import Sequence
from numbers import Real
from typing import Any, TypedDict

from .versions import MINIMUM_TRANSFORMERS  # noqa: F401, I001  first, since it refuses an older transformers
import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict

from .configuration_handunet import MAX_IMAGE_SIZE, check_settings
from .crops import Crop, check_box, normalize_crops, parse_box
from .heatmaps import calibrate_scores, decode_heatmaps
from .images import load_image
from .nesting import boxes_by_image, handedness_by_image

# Beyond these, a factor or a statistic of pixels has no finite result as float32.
MAX_FACTOR, MIN_STD = 1e6, 1e-6
MIN_BOX_FILL = 0.01
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100


class HandUNetImageProcessorKwargs(TypedDict, total=False):
    """What `preprocessor_config.json` holds; other options of image processors are refused, not ignored."""

    do_convert_rgb: bool
    do_resize: bool
    size: int | dict[str, int]
    default_to_square: bool
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: list[float]
    image_std: list[float]
    box_fill: float
    temperature: float


class HandUNetImageProcessor(PilBackend):
    """Prepares hands for [`HandUNetForPoseEstimation`] and reads its answers.

    Each hand's box (x, y, width, height), in pixels of the upright image, becomes a square with its centre in which the
    box's longer side takes `box_fill`, black outside the image.  An image without boxes is itself the crop of one
    hand, padded centrally in black to a square.  The crop is resized (PIL bilinear), scaled from [0, 255] to [0, 1] and
    normalised.  The network knows right hands; a left hand is mirrored on the way in and back on the way out.  The
    processor never searches for hands.  Scores are the heatmaps' peaks, their log-odds divided by `temperature`, which
    is fitted after training so that a score is the chance that its keypoint is right.
    """

    valid_kwargs = HandUNetImageProcessorKwargs
    model_input_names = ["pixel_values"]

    resample = PILImageResampling.BILINEAR
    size = {"height": 128, "width": 128}
    default_to_square = True
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    # Channel statistics of FreiHAND's training images.
    image_mean = [0.3950, 0.4323, 0.2954]
    image_std = [0.1966, 0.1734, 0.1836]
    box_fill = 0.45
    temperature = 1.0

    def __init__(self, **kwargs):
        taken = [name for name in kwargs if hasattr(type(self), name) and name not in self.valid_kwargs.__annotations__]
        taken = [name for name in taken if kwargs[name] is not None or getattr(type(self), name) is not None]
        if taken:  # transformers would put them in place of the processor's own methods and settings
            raise ValueError(f"HandUNetImageProcessor has no options {sorted(taken)}: leave them out.")
        if not isinstance(kwargs.get("auto_map", {}), dict):
            raise ValueError(f"auto_map={kwargs['auto_map']!r}: give a dict from auto classes to classes, or leave it out.")
        super().__init__(**kwargs)
        self._check_options({name: getattr(self, name) for name in self.valid_kwargs.__annotations__})

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As transformers' own; raises `OSError` also for a file that is no UTF-8, nested too deeply or no JSON object."""
        try:
            settings, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        except RecursionError:
            raise OSError(
                f"The processor's settings in {pretrained_model_name_or_path} are nested too deeply: save or download "
                "them again."
            ) from None
        except UnicodeDecodeError as error:
            raise OSError(
                f"The processor's settings in {pretrained_model_name_or_path} are no text ({error}): save or download "
                "them again."
            ) from None
        check_settings(settings, pretrained_model_name_or_path)
        return settings, kwargs

    def preprocess(self, images, boxes=None, handedness=None, *, return_tensors="pt", **kwargs) -> BatchFeature:
        """Cut out, resize and normalise every hand.

        Args:
            images: one image or a list: paths, URLs, bytes, PIL images, arrays or tensors; see `images.load_image`.
            boxes: per image a list of (x, y, width, height); of a single image the list itself.
            handedness: "right" or "left" for all, per image, or per hand (nested like `boxes`); right by default.
            return_tensors: "pt" or "np".
            kwargs: options of this processor to change for this call; not `box_fill` and `temperature`, which
                `post_process_pose_estimation` must know.

        Returns:
            `pixel_values` (hands, 3, 128, 128): the hands of the first image, then those of the second, and so on.

        Raises `ValueError` for an empty list and for a box, a handedness or an image that cannot be used, and `OSError`
        for a file that is not a readable image.
        """
        known = self.valid_kwargs.__annotations__.keys() - {"box_fill", "temperature"}
        if kwargs.keys() - known:
            raise TypeError(
                f"HandUNetImageProcessor does not take {sorted(kwargs.keys() - known)} in a call: expected "
                f"{sorted(known)}, and box_fill and temperature when it is made or loaded."
            )
        options = self._standardize_kwargs(**{name: kwargs.get(name, getattr(self, name)) for name in known})
        self._check_options({**options, "box_fill": self.box_fill, "temperature": self.temperature})
        images = list(images) if self._is_batch(images) else [images]
        if not images:
            raise ValueError("Got an empty list of images: give at least one.")
        images = [load_image(image) for image in images]
        sizes, size = [image.size for image in images], options["size"].height
        boxes = boxes_by_image(boxes, len(images))
        for (width, height), image_boxes in zip(sizes, boxes):
            for box in image_boxes or ():
                check_box(box, width, height)
        hands = self._place_hands(boxes, sizes, handedness, size)
        crops = [np.asarray(crop.cut(image)) for image, placed in zip(images, hands) for crop, _ in placed]
        pixels = np.stack(crops) if crops else np.zeros((0, size, size, 3), np.uint8)
        return BatchFeature({"pixel_values": self.normalize_pixels(pixels, **options)}, tensor_type=return_tensors)

    def normalize_pixels(self, pixels: np.ndarray, **options) -> np.ndarray:
        """8-bit crops (B, H, W, 3) to float32 (B, 3, H, W), as the options of this processor say."""
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        option = {name: options.get(name, getattr(self, name)) for name in names}
        factor = option["rescale_factor"] if option["do_rescale"] else 1.0
        mean, std = (option["image_mean"], option["image_std"]) if option["do_normalize"] else ([0.0] * 3, [1.0] * 3)
        return normalize_crops(pixels, factor, mean, std)

    def _standardize_kwargs(self, size=None, **kwargs) -> dict[str, Any]:
        if not isinstance(size, (int, dict, SizeDict)):
            raise ValueError(f"size={size!r}: give one number of pixels, or a dict with height and width.")
        return super()._standardize_kwargs(size=size, **kwargs)

    @staticmethod
    def _check_options(options: dict[str, Any]) -> None:
        size, fill, factor = options["size"], options["box_fill"], options["rescale_factor"]
        if not isinstance(size.height, int) or size.height < 1 or size.height != size.width:
            raise ValueError(f"size={dict(size)}: the network reads squares, give one height and width.")
        if size.height > MAX_IMAGE_SIZE:
            raise ValueError(f"size={dict(size)}: give at most {MAX_IMAGE_SIZE} pixels a side.")
        if not isinstance(fill, Real) or not MIN_BOX_FILL <= fill <= 1:
            raise ValueError(f"box_fill={fill!r}: give the share of the square that a box takes, in [{MIN_BOX_FILL}, 1].")
        temperature = options["temperature"]
        if not isinstance(temperature, Real) or not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"temperature={temperature!r}: give a number in [{MIN_TEMPERATURE}, {MAX_TEMPERATURE}]; 1 leaves scores as "
                "they are."
            )
        if not options["do_convert_rgb"] or not options["do_resize"]:
            raise ValueError("do_convert_rgb and do_resize cannot be switched off: the network reads one size, in RGB.")
        if options["resample"] != PILImageResampling.BILINEAR:
            raise ValueError(f"resample={options['resample']!r}: images are resized with PIL's bilinear filter, 2.")
        if not isinstance(factor, Real) or not abs(factor) <= MAX_FACTOR:
            raise ValueError(f"rescale_factor={factor!r}: give the number that pixels are multiplied with.")
        for name in ("image_mean", "image_std"):
            values = options[name]
            if not isinstance(values, (list, tuple)) or [isinstance(value, Real) for value in values] != [True] * 3:
                raise ValueError(f"{name}={values!r}: give three numbers, one for each of red, green and blue.")
            if not all(abs(value) <= MAX_FACTOR for value in values):
                raise ValueError(f"{name}={values!r}: give finite numbers, at most {MAX_FACTOR:g}.")
        if min(options["image_std"]) < MIN_STD:
            raise ValueError(f"image_std={options['image_std']!r}: give numbers above 0, at least {MIN_STD:g}.")

    def post_process_pose_estimation(
        self,
        outputs,
        boxes=None,
        *,
        threshold: float | None = None,
        target_sizes=None,
        handedness=None,
        method: str = "local",
    ) -> list[list[dict[str, torch.Tensor]]]:
        """Turn heatmaps into keypoints in the photograph.

        Args:
            outputs: the model's output, whose `heatmaps` are (hands, keypoints, H, W).
            boxes: the boxes given to `preprocess`; without them each image has one hand.
            threshold: score from which a keypoint counts as visible; no keypoint is ever dropped.
            target_sizes: (height, width) of each original image, a list or a tensor (images, 2).
            handedness: as given to `preprocess`.
            method: how to decode, see `decode_heatmaps`.

        Returns:
            Per image a list of hands, each a dict of tensors on the CPU: `keypoints` (21, 2), (x, y); `scores` (21,) in
            [0, 1]; `labels` (21,), the keypoints' indices in `config.id2label`; `visibility` (21,), whether the score
            reaches `threshold` (True without one); `bbox` (4,), the hand's box (or the whole image) as
            (x_min, y_min, x_max, y_max).  Coordinates are pixels of the original image where boxes or target sizes
            are given, and else of the network's input.

        Raises `ValueError` when hands, boxes, target sizes and handedness do not fit each other.
        """
        heatmaps = outputs["heatmaps"] if isinstance(outputs, dict) else outputs.heatmaps
        size = heatmaps.shape[-1]
        if target_sizes is not None:
            sizes = [(int(width), int(height)) for height, width in target_sizes]
        else:
            sizes = [(size, size)] * len(heatmaps) if boxes is None else None
        boxes = boxes_by_image(boxes, None if sizes is None else len(sizes))
        if sizes is None and None in boxes:
            raise ValueError(f"Image {boxes.index(None)} has no boxes: give target_sizes, so that its own size is known.")
        hands = self._place_hands(boxes, sizes or [None] * len(boxes), handedness, size)
        if (count := sum(map(len, hands))) != len(heatmaps):
            raise ValueError(f"Got the heatmaps of {len(heatmaps)} hands, but boxes or target sizes for {count}.")
        keypoints, scores = (values.cpu() for values in decode_heatmaps(heatmaps.detach(), method))
        scores = calibrate_scores(scores, self.temperature)
        decoded = zip(keypoints.double(), scores)
        return [
            [
                {
                    "keypoints": crop.back(points).float(),
                    "scores": confidences,
                    "labels": torch.arange(heatmaps.shape[1]),
                    "visibility": confidences >= (0.0 if threshold is None else threshold),
                    "bbox": torch.tensor(corners, dtype=torch.float32),
                }
                for (crop, corners), (points, confidences) in zip(placed, decoded)
            ]
            for placed in hands
        ]

    def _place_hands(self, boxes, sizes, handedness, size: int) -> list[list[tuple[Crop, tuple]]]:
        """Per image, per hand: its crop, and its box (or the whole image) as (x_min, y_min, x_max, y_max).

        boxes: per image a list, or None where the image, whose (width, height) is then in `sizes`, is one hand's crop.
        """
        handedness = handedness_by_image(handedness, [1 if image_boxes is None else len(image_boxes) for image_boxes in boxes])
        hands = []
        for image_boxes, image_size, image_handedness in zip(boxes, sizes, handedness):
            mirrored = [hand == "left" for hand in image_handedness]
            if image_boxes is None:
                hands.append([(Crop.of_image(*image_size, size, mirrored=mirrored[0]), (0.0, 0.0, *image_size))])
                continue
            crops = [Crop.around_box(box, size, self.box_fill, mirrored=flag) for box, flag in zip(image_boxes, mirrored)]
            corners = [(x, y, x + width, y + height) for x, y, width, height in map(parse_box, image_boxes)]
            hands.append(list(zip(crops, corners)))
        return hands

    @staticmethod
    def _is_batch(images) -> bool:
        """Whether `images` are several: a list, a tuple, or an array with one dimension more than an image."""
        return isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4


__all__ = ["HandUNetImageProcessor"]
