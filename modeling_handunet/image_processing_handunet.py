"""Photographs and boxes to the network's input, and its heatmaps to keypoints in the photograph."""

from typing import TypedDict

from .versions import MINIMUM_TRANSFORMERS  # noqa: F401  comes first, because it refuses an older transformers

# isort: split
import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling

from .crops import Crop, check_box, normalize_crops
from .heatmaps import calibrate_scores, decode_heatmaps
from .images import load_image
from .nesting import WHOLE_IMAGE, boxes_by_image, count_hands, handedness_by_image

MIN_BOX_FILL = 0.01
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100
MAX_OFFSET = 20  # of log-odds


class HandUNetImageProcessorKwargs(TypedDict, total=False):
    """The options in `preprocessor_config.json`."""

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
    score_offset: float


class HandUNetImageProcessor(PilBackend):
    """Prepares hands for [`HandUNetForPoseEstimation`] and reads its answers.

    Each hand's box (x, y, width, height), in pixels of the upright image, becomes a [`Crop`]: a square with the box's
    centre, in which the box's longer side takes the share `box_fill`.  An image without boxes is itself the crop of one
    hand, padded in black to a square.  The crop is resized, scaled from [0, 255] to [0, 1] and normalised.  The network
    knows right hands: a left hand is mirrored on the way in and on the way back.  The processor never searches for hands.

    A score is the heatmap's peak, its log-odds divided by `temperature` and raised by `score_offset`.  Training fits both, so
    that a score is the probability that its keypoint is correct.
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
    score_offset = 0.0

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._check_options({name: getattr(self, name) for name in self.valid_kwargs.__annotations__})

    def preprocess(self, images, boxes=None, handedness=None, *, return_tensors="pt", **kwargs) -> BatchFeature:
        """Cut out, resize and normalise every hand.

        Args:
            images: one image or a list: paths, URLs, bytes, PIL images, arrays or tensors; see `images.load_image`.
            boxes: per image a list of (x, y, width, height); for a single image the list itself.  None and "image": the
                image is itself the crop of one hand.
            handedness: "right" or "left" for all, per image, or per hand (nested like `boxes`); right by default.
            return_tensors: "pt" or "np".
            kwargs: options of this processor to change for this call; not `box_fill`, `temperature` and `score_offset`, because
                `post_process_pose_estimation` must know them.

        Returns:
            `pixel_values` (hands, 3, 128, 128): the hands of the first image, then those of the second, and so on.

        Raises `ValueError` for an empty list and for a box, a handedness or an image that cannot be used, and `OSError`
        for a file that is not a readable image.
        """
        known = self.valid_kwargs.__annotations__.keys() - {"box_fill", "temperature", "score_offset"}
        if kwargs.keys() - known:
            raise TypeError(
                f"HandUNetImageProcessor does not take {sorted(kwargs.keys() - known)} in a call: expected "
                f"{sorted(known)}, and box_fill, temperature and score_offset when it is made or loaded."
            )
        options = {name: getattr(self, name) for name in self.valid_kwargs.__annotations__} | kwargs
        options = self._standardize_kwargs(**options)
        self._check_options(options)
        several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        images = [load_image(image) for image in (images if several else [images])]
        if not images:
            raise ValueError("Got an empty list of images: give at least one.")
        boxes = _boxes_or_whole(boxes, len(images))
        for image, image_boxes in zip(images, boxes):
            for box in () if image_boxes == WHOLE_IMAGE else image_boxes:
                check_box(box, *image.size)
        size = options["size"].height
        hands = self._place_hands(boxes, [image.size for image in images], handedness, size)
        crops = [np.asarray(crop.cut(image)) for image, placed in zip(images, hands) for crop, _ in placed]
        pixels = np.stack(crops) if crops else np.zeros((0, size, size, 3), np.uint8)
        return BatchFeature({"pixel_values": self.normalize_pixels(pixels, **options)}, tensor_type=return_tensors)

    def normalize_pixels(self, pixels: np.ndarray, **options) -> np.ndarray:
        """8-bit crops (B, H, W, 3) to float32 (B, 3, H, W), as the processor's options say, or `options` instead of them."""
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        do_rescale, factor, do_normalize, mean, std = (options.get(name, getattr(self, name)) for name in names)
        if not do_normalize:
            mean, std = [0.0] * 3, [1.0] * 3
        return normalize_crops(pixels, factor if do_rescale else 1.0, mean, std)

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
            (x_min, y_min, x_max, y_max).  Coordinates are pixels of the original image if boxes or target sizes are
            given, and otherwise of the network's input.

        Raises `ValueError` when hands, boxes, target sizes and handedness do not fit each other, and for a NaN heatmap.
        """
        heatmaps = outputs["heatmaps"] if isinstance(outputs, dict) else outputs.heatmaps
        size = heatmaps.shape[-1]
        if target_sizes is not None:
            sizes = [(int(width), int(height)) for height, width in target_sizes]
        else:
            sizes = [(size, size)] * len(heatmaps) if boxes is None else None
        boxes = _boxes_or_whole(boxes, None if sizes is None else len(sizes))
        if sizes is None and WHOLE_IMAGE in boxes:
            index = boxes.index(WHOLE_IMAGE)
            raise ValueError(f"Image {index} has no boxes: give target_sizes, so that its own size is known.")
        hands = self._place_hands(boxes, sizes or [None] * len(boxes), handedness, size)
        if (count := sum(map(len, hands))) != len(heatmaps):
            raise ValueError(f"Got the heatmaps of {len(heatmaps)} hands, but boxes or target sizes for {count}.")
        keypoints, scores = self.decode(heatmaps, method)
        decoded = zip(keypoints.double(), scores)
        return [[_pose(crop, corners, *next(decoded), threshold) for crop, corners in placed] for placed in hands]

    def decode(self, heatmaps: torch.Tensor, method: str = "local") -> tuple[torch.Tensor, torch.Tensor]:
        """Keypoints (hands, 21, 2) in pixels of the crop and scores (hands, 21), on the CPU, from the network's heatmaps.

        Raises `ValueError` for a heatmap with NaN.
        """
        keypoints, scores = (values.cpu() for values in decode_heatmaps(heatmaps.detach(), method))
        if not scores.all():  # a score is 0 where a heatmap holds NaN, else hardly ever
            for hand in heatmaps.isnan().flatten(1).any(1).nonzero().flatten().tolist():
                raise ValueError(
                    f"The network answered NaN for hand {hand}, so it has no keypoints. Its weights are damaged, or its dtype "
                    "is too small for them: load them again, in float32."
                )
        return keypoints, calibrate_scores(scores, self.temperature, self.score_offset)

    def _place_hands(self, boxes, sizes, handedness, size: int) -> list[list[tuple[Crop, tuple[float, ...]]]]:
        """Per image, per hand: its crop of `size` px, and its box (or the whole image) as (x_min, y_min, x_max, y_max).

        boxes: per image a list, or "image" if it is itself the crop of one hand; `sizes` then has its (width, height).
        """
        counts = [count_hands(image_boxes) for image_boxes in boxes]
        hands = []
        for image_boxes, image_size, image_handedness in zip(boxes, sizes, handedness_by_image(handedness, counts)):
            placed = []
            for box, hand_handedness in zip([None] if image_boxes == WHOLE_IMAGE else image_boxes, image_handedness):
                mirrored = hand_handedness == "left"
                placed.append(Crop.around_hand(box, image_size, size, self.box_fill, mirrored=mirrored))
            hands.append(placed)
        return hands

    @staticmethod
    def _check_options(options: dict) -> None:
        size, fill, temperature = options["size"], options["box_fill"], options["temperature"]
        if not size.height or size.height != size.width:
            raise ValueError(f"size={dict(size)}: the network reads squares, give one height and width.")
        if not MIN_BOX_FILL <= fill <= 1:
            raise ValueError(f"box_fill={fill!r}: give the share of the square that a box takes, in [{MIN_BOX_FILL}, 1].")
        if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"temperature={temperature!r}: give a number in [{MIN_TEMPERATURE}, {MAX_TEMPERATURE}]; 1 changes no score."
            )
        if not -MAX_OFFSET <= options["score_offset"] <= MAX_OFFSET:
            raise ValueError(f"score_offset={options['score_offset']!r}: give a number in [-{MAX_OFFSET}, {MAX_OFFSET}].")
        if not options["do_convert_rgb"] or not options["do_resize"]:
            raise ValueError("do_convert_rgb and do_resize cannot be switched off: the network reads one size, in RGB.")
        if options["resample"] != PILImageResampling.BILINEAR:
            raise ValueError(f"resample={options['resample']!r}: images are resized with PIL's bilinear filter, 2.")


def _boxes_or_whole(boxes, num_images: int | None) -> list[list | str]:
    """[`boxes_by_image`], with "image" for images of which nothing is said."""
    return [WHOLE_IMAGE if image_boxes is None else image_boxes for image_boxes in boxes_by_image(boxes, num_images)]


def _pose(crop: Crop, corners, points: torch.Tensor, scores: torch.Tensor, threshold: float | None) -> dict[str, torch.Tensor]:
    """One hand as `post_process_pose_estimation` answers it, from keypoints (21, 2) in pixels of the crop."""
    return {
        "keypoints": crop.back(points).float(),
        "scores": scores,
        "labels": torch.arange(len(points)),
        "visibility": scores >= (0.0 if threshold is None else threshold),
        "bbox": torch.tensor(corners, dtype=torch.float32),
    }


__all__ = ["HandUNetImageProcessor"]
