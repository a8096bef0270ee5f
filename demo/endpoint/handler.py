"""Serves a HandUNet repository as a Hugging Face Inference Endpoint, which runs this file from the repository.

A request is raw image bytes, or JSON whose images are base64:

    {"inputs": "<base64>"}
    {"inputs": "<base64>", "parameters": {"boxes": [[120, 80, 200, 180]], "handedness": "left", "threshold": 0.3}}
    {"inputs": ["<base64>", "<base64>"], "parameters": {"boxes": [[[120, 80, 200, 180]], null], "detection_threshold": 0.5}}

The answer is the pipeline's: per image a list of hands `{"label", "score", "hand_score", "box", "keypoints"}`; for a single
image only its list, which `InferenceClient(model=url).object_detection(image)` reads.  The list is empty if no hand was
found.  A hand that is no clear one (`NO_CLEAR_HAND`) also has a `note`, a sentence that says so.  A string is never read as
a path or a web address.  The handler needs torch, transformers, Pillow and the repository's own files, nothing else.
"""

import importlib
import inspect
import math
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import pipeline

# On the Hub serving.py is beside this file; in a checkout it is one folder up.
HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE if (HERE / "serving.py").is_file() else HERE.parent))

from serving import MAX_SECONDS, Decoders, RequestError, clean, doubt  # noqa: E402

# Larger requests are refused.  A photograph of 12 megapixels passes, as JPEG or as PNG.
MAX_IMAGE_PIXELS = 25_000_000
MAX_TOTAL_PIXELS = 50_000_000  # of all images of a request
MAX_TOTAL_SECONDS = 2 * MAX_SECONDS  # to decode them
MAX_IMAGES = 16
MAX_HANDS = 64
MAX_DEPTH = 8  # of lists and dicts in each other; boxes of several images need 5
DECODERS = 8  # images that are decoded at the same time
PARAMETERS = ("boxes", "handedness", "threshold", "detection_threshold")
WHOLE_IMAGE = "image"  # instead of boxes: the image is itself the crop of one hand


class EndpointHandler:
    """The model in the folder `path`, on a GPU if there is one.  Several threads may call it at once."""

    def __init__(self, path: str = ""):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipe = pipeline("keypoint-detection", model=path or ".", trust_remote_code=True, device=device, allow_urls=False)
        package = type(self.pipe).__module__.rpartition(".")[0]  # of the repository's own files, or modeling_handunet
        images, keypoints = (importlib.import_module(f"{package}.{name}") for name in ("images", "keypoints"))
        self.clear_score = keypoints.NO_CLEAR_HAND
        self.decoders = Decoders(inspect.getfile(images), MAX_IMAGE_PIXELS, DECODERS)
        try:
            self.finds_hands = self.pipe.hands.detector is not None
        except OSError:  # a repository without a detector reads boxes only
            self.finds_hands = False

    def __call__(self, data: dict | bytes) -> list:
        """Answer one request.

        Args:
            data: image bytes, or a dict with `inputs`, an image or a list of images (bytes, base64, `data:` URL or PIL
                image), and optionally `parameters`: `boxes`, for a single image a list of (x, y, width, height) in
                pixels, for several images a list of such lists.  Without boxes, or with None for an image, the detector
                finds the hands; "image" stands for an image that is itself the crop of one hand.  `handedness`, "right"
                or "left" for all, per image, or per hand.  Hands with a lower score than `threshold`, or of which the
                detector is less sure than `detection_threshold`, are left out.

        Returns:
            Per image a list of hands `{"label", "score", "hand_score", "box": {"xmin", "ymin", "xmax", "ymax"}, "keypoints":
            [{"name", "x", "y", "score"}, ...]}` in pixels of the upright image; for a single image only its list.

        Raises `RequestError` for a request that cannot be answered, and `RuntimeError` if the network answers NaN.
        """
        inputs, parameters = read_request(data)
        single = not isinstance(inputs, list)
        boxes, handedness = parameters.get("boxes"), parameters.get("handedness")
        if single:
            inputs, boxes = [inputs], boxes if boxes in (None, WHOLE_IMAGE) else [boxes]
            handedness = [handedness] if isinstance(handedness, list) else handedness
        if not 0 < len(inputs) <= MAX_IMAGES:
            raise RequestError(413 if inputs else 400, f"Got {len(inputs)} images: send 1 to {MAX_IMAGES} in a request.")
        boxes = [boxes] * len(inputs) if boxes in (None, WHOLE_IMAGE) else boxes
        if len(boxes) != len(inputs):
            raise RequestError(400, f"Got the boxes of {len(boxes)} images with {len(inputs)} images: give one list each.")
        hands = sum(len(image_boxes) for image_boxes in boxes if isinstance(image_boxes, list))
        if hands > MAX_HANDS:
            raise RequestError(413, f"Got {hands} boxes: send at most {MAX_HANDS} in a request.")
        if None in boxes and not self.finds_hands:
            sentence = 'This model has no hand detector: send boxes, or "boxes": "image" for the crop of one hand.'
            raise RequestError(400, sentence)
        images = self.decode(inputs)
        options = {name: parameters.get(name) for name in ("threshold", "detection_threshold")}
        try:
            answer = self.pipe(images, boxes=boxes, handedness=handedness, max_hands=MAX_HANDS // len(images), **options)
        except (ValueError, OSError, OverflowError) as error:
            raise RequestError(400, clean(str(error))) from None
        for hand in (hand for hands in answer for hand in hands):
            if not math.isfinite(hand["score"]):
                raise RuntimeError("the network answers NaN: its weights are damaged")
            if sentence := doubt(hand, self.clear_score):
                hand["note"] = f"{sentence} Send a box close round one hand."
        return answer[0] if single else answer

    def decode(self, inputs: list) -> list[Image.Image]:
        """The images of a request, within its budget of pixels and seconds."""
        images, pixels, end = [], MAX_TOTAL_PIXELS, time.monotonic() + MAX_TOTAL_SECONDS
        for image in inputs:
            if isinstance(image, Image.Image) and getattr(image, "fp", None):  # the toolkit opens an image, and decodes it here
                image.fp.seek(0)
                image = image.fp.read()
            if not isinstance(image, (bytes, str, Image.Image)):
                kind = type(image).__name__
                raise RequestError(400, f"Got {kind} as an image: send base64 text, or the image's bytes alone.")
            if not isinstance(image, Image.Image):
                image = self.decoders.decode(image, min(pixels, MAX_IMAGE_PIXELS), min(MAX_SECONDS, end - time.monotonic()))
            pixels -= image.width * image.height
            if pixels < 0:
                raise RequestError(413, f"The images have more than {MAX_TOTAL_PIXELS} pixels in all: send fewer at a time.")
            images.append(image)
        return images


def read_request(data) -> tuple[object, dict]:
    """The inputs and the checked parameters of a request."""
    if isinstance(data, bytes):
        return data, {}
    if not isinstance(data, dict) or "inputs" not in data:
        raise RequestError(400, 'Send an image\'s bytes, or JSON {"inputs": base64, "parameters": {...}}.')
    if depth(data) > MAX_DEPTH:
        raise RequestError(400, f"The request nests lists or dicts deeper than {MAX_DEPTH}.")
    parameters = data.get("parameters")
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict) or not parameters.keys() <= set(PARAMETERS):
        given = sorted(map(str, parameters)) if isinstance(parameters, dict) else type(parameters).__name__
        raise RequestError(400, f"Got the parameters {given}: expected a dict of any of {', '.join(PARAMETERS)}.")
    for name in ("threshold", "detection_threshold"):
        threshold = parameters.get(name)
        if threshold is not None and (type(threshold) not in (int, float) or not 0 <= threshold <= 1):
            raise RequestError(400, f"{name}={threshold!r}: give a score in [0, 1].")
    boxes = parameters.get("boxes")
    if boxes is not None and boxes != WHOLE_IMAGE and not isinstance(boxes, list):
        raise RequestError(400, f'boxes={boxes!r}: give a list of [x, y, width, height], or "{WHOLE_IMAGE}".')
    if isinstance(boxes, list) and not all(entry in (None, WHOLE_IMAGE) or isinstance(entry, list) for entry in boxes):
        raise RequestError(400, f"boxes={boxes!r}: every box is a list [x, y, width, height] in pixels.")
    return data["inputs"], parameters


def depth(value, limit: int = MAX_DEPTH) -> int:
    """How deep lists and dicts lie in each other; beyond `limit` it is not counted further."""
    if not isinstance(value, (list, dict)) or limit < 0:
        return 0
    return 1 + max((depth(item, limit - 1) for item in (value.values() if isinstance(value, dict) else value)), default=0)
