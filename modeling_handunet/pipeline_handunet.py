"""`pipeline("keypoint-detection")`: photographs in, named keypoints with scores out."""

import os
from collections.abc import Sized
from itertools import islice
from types import GeneratorType

import torch
from torch.utils.data import DataLoader, Dataset
from transformers.pipelines.base import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .hands import steps
from .images import is_image, load_image
from .nesting import boxes_by_image, count_hands, handedness_by_image
from .torch_hands import TorchHands

TASK = "keypoint-detection"

# Keys of a dict that the pipeline reads, one spelling of the boxes at a time.
BOX_KEYS = ("boxes", "box", "objects")
READ_KEYS = ("image", *BOX_KEYS, "handedness")
# Columns of this project's own data sets and of the Hub's that say nothing about where the hands are.
OTHER_COLUMNS = {"annotation_id", "background", "box_size", "frame_id", "height", "heatmaps", "image_id", "index", "K"}
OTHER_COLUMNS |= {"keypoints", "source", "uv", "visibility", "width", "xyz"}


class HandKeypointDetectionPipeline(Pipeline):
    """The hands of one photograph or many, with their keypoints.

        >>> pipe = pipeline("keypoint-detection", model="weights/handunet-base", trust_remote_code=True)
        >>> pipe("photo.jpg")
        [{"label": "left hand", "score": 0.93, "hand_score": 0.88, "box": {"xmin": 120.0, ...},
          "keypoints": [{"name": "wrist", "x": 171.3, "y": 248.9, "score": 0.97}, ...]}]

    `detector` is a folder, an id on the Hub, or a [`HandUNetForObjectDetection`], instead of the one that the model names.
    """

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, detector=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.hands = TorchHands(self.model, self.image_processor, detector)

    def _sanitize_parameters(
        self, threshold=None, method=None, max_hands=None, detection_threshold=None, look_again=None, allow_urls=None,
        allow_loopback=None,
    ):  # fmt: skip
        def given(**options):
            return {name: value for name, value in options.items() if value is not None}

        reading = given(
            method=method, max_hands=max_hands, detection_threshold=detection_threshold, look_again=look_again
        )
        return given(allow_urls=allow_urls, allow_loopback=allow_loopback), reading, given(threshold=threshold)

    def __call__(self, inputs, boxes=None, handedness=None, **kwargs):
        """Find the hands of each photograph and their keypoints.

        Args:
            inputs: an image or a list of images: each what `load_image` takes, or a dict with `image` and optionally
                `boxes` and `handedness`.  Also a generator or data set of such images, which is read one by one while its
                answers are read.  A row of this project's data sets (`image`, `box`, `handedness`, ...) is such a dict,
                and so is one of the Hub with `image` and `objects`, whose `bbox` lists (x, y, width, height).
            boxes: where the hands are, if that is known: per image a list of (x, y, width, height) in pixels; for a single
                image the list itself; empty if it has no hand.  "image": the image is itself the crop of one hand.
            handedness: "right" or "left" for all, per image, or per hand.  None if it is not known: the hand is then read
                both ways, and the surer reading counts.
            threshold: leave out hands whose keypoints have a lower score; by default none is left out.
            detection_threshold: leave out found hands with a lower `hand_score`; by default `HAND_THRESHOLD`.
            max_hands: at most so many, the surest of the found hands; by default all.
            look_again: False: read every hand once.  By default a hand that fills its crop badly, because its box is too
                large, too small or beside it, or that does not point up, is read again in a crop around the first answer, which
                is turned if need be, and the surer reading counts.
            method: how to decode heatmaps, see `decode_heatmaps`.
            batch_size: how many photographs go through the detector, and are held, at a time.
            allow_urls, allow_loopback: which web addresses are read, see `load_image`.  Strings are opened, as files or
                as web addresses: pass on none that a stranger sent.  `pipeline(..., allow_urls=False)` holds for all
                calls.

        Returns:
            Per image a list of hands `{"label", "score", "hand_score", "box": {"xmin", "ymin", "xmax", "ymax"},
            "keypoints": [{"name", "x", "y", "score"}, ...]}` in pixels of the upright image; for a single image only its
            list, which is empty if no hand is found.  `label` is "right hand" or "left hand", `score` the mean of the
            keypoints' scores, and `hand_score` how sure detector and network together are that there is a hand.  The list
            falls by it; it is None for boxes that were given, whose order the list has.

        Raises `ValueError` or `OSError` naming what cannot be used.
        """
        if isinstance(inputs, (list, tuple)):
            if not inputs:
                raise ValueError("Got an empty list of images: give at least one.")
            if not any(isinstance(item, dict) for item in inputs):
                boxes = boxes_by_image(boxes, len(inputs))
                handedness = handedness_by_image(handedness, list(map(count_hands, boxes)))
                return super().__call__(list(map(_item, inputs, boxes, handedness)), **kwargs)
            inputs = list(inputs)
        elif not isinstance(inputs, dict) and is_image(inputs):
            return super().__call__(_item(inputs, boxes, handedness), **kwargs)
        if boxes is not None or handedness is not None:
            raise ValueError("With dicts, a generator or a data set, put boxes and handedness in dicts with the image.")
        if not isinstance(inputs, (list, dict, Dataset, GeneratorType)):
            inputs = (item for item in inputs)  # transformers streams only from these types
        return super().__call__(inputs, **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers; the detector is saved into the folder `detector` there, unless an id on the Hub names it."""
        config, named = self.model.config, self.model.config.detector
        try:
            if self.hands.has_own_detector:
                config.detector = "detector"
                for part in self.hands.detector:
                    part.save_pretrained(os.path.join(save_directory, config.detector))
            super().save_pretrained(save_directory, **kwargs)
        finally:
            config.detector = named

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        """The hands of one photograph."""
        return next(self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params))

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        """The hands of each photograph; `batch_size` photographs are in memory at a time."""
        if num_workers:
            dataset = (PipelineDataset if isinstance(inputs, Sized) else PipelineIterator)(
                inputs, self.preprocess, preprocess_params
            )
            workers = num_workers if isinstance(inputs, Sized) else 1
            batches = iter(DataLoader(dataset, batch_size, num_workers=workers, collate_fn=list))
        else:
            rows = (inputs[index] for index in range(len(inputs))) if isinstance(inputs, Sized) else iter(inputs)
            loaded = (self.preprocess(row, **preprocess_params) for row in rows)
            batches = iter(lambda: list(islice(loaded, batch_size)), [])
        for batch in batches:
            for hands in self.forward(batch, **forward_params):
                yield self.postprocess(hands, **postprocess_params)

    def get_inference_context(self):
        return torch.inference_mode

    def preprocess(self, inputs, allow_urls=True, allow_loopback=False) -> dict:
        """A photograph, loaded, with its boxes and handedness as lists."""
        item = _read_row(inputs) if isinstance(inputs, dict) else _item(inputs)
        image = load_image(item["image"], allow_urls=allow_urls, allow_loopback=allow_loopback)
        (boxes,) = boxes_by_image(item["boxes"], 1)
        (handedness,) = handedness_by_image(item["handedness"], [count_hands(boxes)])
        return _item(image, boxes, handedness)

    def _forward(self, items: list[dict], method="local", **options) -> list[list[dict]]:
        """The hands of each photograph; what is asked of a network for several photographs goes through it together."""
        self.hands.method = method
        answers, asking = [None] * len(items), {}  # asking: by the photograph's index, its steps and what they ask for
        settings = (self.hands.image_size, self.hands.box_fill, self.hands.keypoint_names)

        def go_on(index, asker, answer):
            try:
                asking[index] = asker, asker.send(answer)
            except StopIteration as end:
                answers[index] = end.value

        for index, item in enumerate(items):
            go_on(index, steps(item["image"].size, *settings, item["boxes"], item["handedness"], **options), None)
        while asking:
            now, asking = asking, {}
            unseen = [index for index, (_, crops) in now.items() if crops is None]
            found = self.hands.detect_all([items[index]["image"] for index in unseen]) if unseen else []
            given = dict(zip(unseen, found))
            placed = [(items[index]["image"], crop) for index, (_, crops) in now.items() for crop in crops or ()]
            readings = self.hands.read_all(placed)
            first = 0
            for index, (asker, crops) in now.items():
                last = first + len(crops or ())
                go_on(index, asker, given[index] if crops is None else tuple(values[first:last] for values in readings))
                first = last
        return answers

    def postprocess(self, hands: list[dict], threshold=None) -> list[dict]:
        """The hands whose score reaches the threshold."""
        return [hand for hand in hands if threshold is None or hand["score"] >= threshold]


def _item(image, boxes=None, handedness=None) -> dict:
    return {"image": image, "boxes": boxes, "handedness": handedness}


def _read_row(row: dict) -> dict:
    """A caller's dict with the keys of [`_item`]; `ValueError` for keys that are unknown or say the same twice."""
    unknown = [str(key) for key in row if key not in READ_KEYS and key not in OTHER_COLUMNS]
    if unknown or "image" not in row:
        raise ValueError(
            f"Got a dict with {sorted(map(str, row))}: give image, and optionally boxes and handedness."
            + (f" {', '.join(map(repr, unknown))} is not known; {', '.join(READ_KEYS)} are." if unknown else "")
        )
    given = [key for key in BOX_KEYS if row.get(key) is not None]
    if len(given) > 1:
        raise ValueError(f"Got a dict with {' and '.join(given)}: give only one of them, so that they cannot contradict.")
    boxes, handedness = row.get("boxes"), row.get("handedness")
    if given == ["box"]:
        boxes = [row["box"]]
    elif given == ["objects"]:
        objects = row["objects"]
        if isinstance(objects, (list, tuple)) and all(isinstance(entry, dict) for entry in objects):  # one dict per hand
            names = {"bbox"}.union(*objects)
            objects = {name: [entry.get(name) for entry in objects] for name in names}
        if not isinstance(objects, dict) or objects.get("bbox") is None:
            got = sorted(objects) if isinstance(objects, dict) else type(objects).__name__
            raise ValueError(f"objects is {got}: expected a dict whose bbox lists a box (x, y, width, height) per hand.")
        boxes = objects["bbox"]
        handedness = objects.get("handedness", handedness)
    return _item(row["image"], boxes, handedness)


__all__ = ["TASK", "HandKeypointDetectionPipeline"]
