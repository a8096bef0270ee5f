"""`pipeline("keypoint-detection")`: photographs in, named keypoints with scores out."""

from types import GeneratorType

import torch
from torch.utils.data import Dataset
from transformers.pipelines.base import ChunkPipeline

from .images import load_image
from .keypoints import describe_hand
from .nesting import boxes_by_image, handedness_by_image

TASK = "keypoint-detection"


class HandKeypointDetectionPipeline(ChunkPipeline):
    """Hand keypoints of one photograph or many.

        >>> pipe = pipeline("keypoint-detection", model="weights/handunet-base", trust_remote_code=True)
        >>> pipe("photo.jpg", boxes=[[120, 80, 200, 180]], handedness="left")
        [{"label": "left hand", "score": 0.93, "box": {"xmin": 120.0, ...}, "keypoints": [{"name": "wrist", ...}, ...]}]

    The model gets one item per hand, so `batch_size` counts hands.
    """

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, threshold=None, method=None):
        options = {"threshold": threshold, "method": method}
        return {}, {}, {key: value for key, value in options.items() if value is not None}

    def __call__(self, inputs, boxes=None, handedness=None, **kwargs):
        """Find the keypoints of every hand.

        Args:
            inputs: an image or a list of images: each a path, URL, bytes, PIL image, array or tensor, or a dict with
                `image` and optionally `boxes` and `handedness`.  Also a generator or data set of such images, which is
                read one by one while its answers are read.
            boxes: per image a list of (x, y, width, height) in pixels; for a single image the list itself.  Without
                boxes the image is itself the crop of one hand; with an empty list it has no hand.
            handedness: "right" or "left" for all, per image, or per hand; right by default.
            threshold: leave out hands with a lower score; by default none is left out.
            method: how to decode heatmaps, see `decode_heatmaps`.
            batch_size: how many hands go through the model at a time.

        Returns:
            Per image a list of hands `{"label", "score", "box": {"xmin", "ymin", "xmax", "ymax"}, "keypoints":
            [{"name", "x", "y", "score"}, ...]}` in pixels of the upright image; for a single image only its list.  A
            hand's score is the mean of its keypoints' scores.

        Raises `ValueError` or `OSError` naming what cannot be used.
        """
        if isinstance(inputs, (list, tuple)):
            if not inputs:
                raise ValueError("Got an empty list of images: give at least one.")
            if not any(isinstance(item, dict) for item in inputs):
                boxes = boxes_by_image(boxes, len(inputs))
                counts = [1 if image_boxes is None else len(image_boxes) for image_boxes in boxes]
                handedness = handedness_by_image(handedness, counts)
                return super().__call__(list(map(_item, inputs, boxes, handedness)), **kwargs)
            inputs = list(inputs)
        elif not isinstance(inputs, dict) and not _is_stream(inputs):
            return super().__call__(_item(inputs, boxes, handedness), **kwargs)
        if boxes is not None or handedness is not None:
            raise ValueError("With dicts, a generator or a data set, put boxes and handedness in dicts with the image.")
        if not isinstance(inputs, (list, dict, Dataset, GeneratorType)):
            inputs = (item for item in inputs)  # transformers streams only from these types
        return super().__call__(inputs, **kwargs)

    def get_iterator(self, inputs, num_workers, batch_size, *parameters):
        """As in transformers, but without a data loader for a single image: making one takes a sixth of the network's time."""
        if isinstance(inputs, list) and len(inputs) == 1 and batch_size == 1 and not num_workers:
            return (self.run_single(item, *parameters) for item in inputs)
        return super().get_iterator(inputs, num_workers, batch_size, *parameters)

    def get_inference_context(self):
        return torch.inference_mode

    def preprocess(self, inputs):
        item = inputs if isinstance(inputs, dict) else _item(inputs)
        if "image" not in item:
            raise ValueError(f"Got a dict with {sorted(map(str, item))}: give image, and optionally boxes and handedness.")
        image = load_image(item["image"])
        (boxes,) = boxes_by_image(item.get("boxes"), 1)
        hands = [None] if boxes is None else boxes
        (handedness,) = handedness_by_image(item.get("handedness"), [len(hands)])
        is_empty = not hands  # every image needs an item; postprocess leaves this one out
        if is_empty:
            boxes, hands, handedness = None, [None], ["right"]
        pixel_values = self.image_processor(image, boxes and [boxes], [handedness]).pixel_values  # (hands, 3, 128, 128)
        for index, (box, hand_handedness) in enumerate(zip(hands, handedness)):
            yield {
                "pixel_values": pixel_values[index : index + 1],
                "size": image.size,
                "box": box,
                "handedness": hand_handedness,
                "is_empty": is_empty,
                "is_last": index == len(hands) - 1,
            }

    def _forward(self, model_inputs):
        pixel_values = model_inputs.pop("pixel_values")
        return {"heatmaps": self.model(pixel_values=pixel_values.to(self.model.dtype)).heatmaps, **model_inputs}

    @torch.inference_mode()
    def postprocess(self, model_outputs, threshold=None, method="local"):
        hands = []
        names = self.model.config.id2label
        for output in model_outputs:
            if output["is_empty"]:
                continue
            ((pose,),) = self.image_processor.post_process_pose_estimation(
                {"heatmaps": output["heatmaps"]},
                None if output["box"] is None else [[output["box"]]],
                target_sizes=[output["size"][::-1]],
                handedness=output["handedness"],
                method=method,
            )
            hand = describe_hand(
                output["handedness"],
                pose["bbox"].tolist(),
                [names[label] for label in pose["labels"].tolist()],
                pose["keypoints"].tolist(),
                pose["scores"].tolist(),
            )
            if threshold is None or hand["score"] >= threshold:
                hands.append(hand)
        return hands


def _item(image, boxes=None, handedness=None) -> dict:
    return {"image": image, "boxes": boxes, "handedness": handedness}


def _is_stream(inputs) -> bool:
    """Whether `inputs` is a generator or data set of images, and not itself an image."""
    if isinstance(inputs, (str, bytes, dict)) or hasattr(inputs, "__array__") or hasattr(inputs, "__array_interface__"):
        return False
    return hasattr(inputs, "__iter__") or hasattr(inputs, "__getitem__")


__all__ = ["TASK", "HandKeypointDetectionPipeline"]
