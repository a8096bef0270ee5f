"""Serves a HandUNet repository as a Hugging Face Inference Endpoint, which runs this file from the repository.

A request is raw image bytes, or JSON whose images are base64:

    {"inputs": "<base64>", "parameters": {"boxes": [[120, 80, 200, 180]], "handedness": "left", "threshold": 0.3}}
    {"inputs": ["<base64>", "<base64>"], "parameters": {"boxes": [[[120, 80, 200, 180]], null], "handedness": "left"}}

The answer is the pipeline's: per image a list of hands `{"label", "score", "box", "keypoints"}`; for a single image only its
list, which `InferenceClient(model=url).object_detection(image)` reads.  A string is never read as a path or a web address.
The handler needs torch, transformers, Pillow and the repository's own files, nothing else.
"""

import base64
import binascii
import io
import warnings

import torch
from PIL import Image
from transformers import pipeline

# Larger requests are refused.  A photograph of 12 megapixels passes, as JPEG or as PNG.
MAX_IMAGE_BYTES = 32 * 1024**2
MAX_IMAGE_PIXELS = 25_000_000
# Formats of photographs; some other formats of Pillow start programs.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")
MAX_IMAGES = 16
MAX_HANDS = 64
BATCH_SIZE = 16  # hands that go through the network together
PARAMETERS = ("boxes", "handedness", "threshold")


class RequestError(ValueError):
    """A request that cannot be answered because of a mistake in it.

    `status` is its HTTP status (400 malformed, 413 too large, 415 not an image), `message` a sentence for the sender.
    Hugging Face's toolkit ignores `status` and answers 400 with the sentence.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class EndpointHandler:
    """The model in the folder `path`, on a GPU if there is one.  Several threads may call it at once."""

    def __init__(self, path: str = ""):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipe = pipeline("keypoint-detection", model=path or ".", trust_remote_code=True, device=device)

    def __call__(self, data: dict | bytes) -> list:
        """Answer one request.

        Args:
            data: image bytes, or a dict with `inputs`, an image or a list of images (bytes, base64, `data:` URL or PIL
                image), and optionally `parameters`: `boxes`, for a single image a list of (x, y, width, height) in
                pixels, for several images a list of such lists, with None for an image that is itself the crop of
                one hand; `handedness`, "right" or "left" for all, per image, or per hand; `threshold`: hands with a
                lower score are left out.

        Returns:
            Per image a list of hands `{"label", "score", "box": {"xmin", "ymin", "xmax", "ymax"}, "keypoints": [{"name",
            "x", "y", "score"}, ...]}` in pixels of the upright image; for a single image only its list.

        Raises `RequestError` for anything that cannot be answered.
        """
        inputs, parameters = read_request(data)
        single = not isinstance(inputs, list)
        boxes, handedness = parameters.get("boxes"), parameters.get("handedness")
        if single:
            inputs, boxes = [inputs], None if boxes is None else [boxes]
            handedness = [handedness] if isinstance(handedness, list) else handedness
        if not 0 < len(inputs) <= MAX_IMAGES:
            raise RequestError(413 if inputs else 400, f"Got {len(inputs)} images: send 1 to {MAX_IMAGES} in a request.")
        boxes = [None] * len(inputs) if boxes is None else boxes
        if len(boxes) != len(inputs):
            raise RequestError(400, f"Got the boxes of {len(boxes)} images with {len(inputs)} images: give one list each.")
        hands = sum(1 if image_boxes is None else len(image_boxes) for image_boxes in boxes)
        if hands > MAX_HANDS:
            raise RequestError(413, f"Got {hands} boxes: send at most {MAX_HANDS} in a request.")
        images = [check_image(image) for image in inputs]
        try:
            answer = self.pipe(
                images, boxes=boxes, handedness=handedness, threshold=parameters.get("threshold"), batch_size=BATCH_SIZE
            )
        except (ValueError, OSError) as error:
            raise RequestError(400, str(error)) from None
        return answer[0] if single else answer


def read_request(data) -> tuple[object, dict]:
    """The inputs and the checked parameters of a request."""
    if isinstance(data, bytes):
        return data, {}
    if not isinstance(data, dict) or "inputs" not in data:
        raise RequestError(400, 'Send an image\'s bytes, or JSON {"inputs": base64, "parameters": {...}}.')
    parameters = data.get("parameters")
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict) or not parameters.keys() <= set(PARAMETERS):
        given = sorted(map(str, parameters)) if isinstance(parameters, dict) else type(parameters).__name__
        raise RequestError(400, f"Got the parameters {given}: expected a dict of any of {', '.join(PARAMETERS)}.")
    threshold = parameters.get("threshold")
    if threshold is not None and (type(threshold) not in (int, float) or not 0 <= threshold <= 1):
        raise RequestError(400, f"threshold={threshold!r}: give a score in [0, 1].")
    boxes = parameters.get("boxes")
    if boxes is not None and not isinstance(boxes, list):
        raise RequestError(400, f"boxes={boxes!r}: give a list of [x, y, width, height].")
    if isinstance(boxes, list) and not all(entry is None or isinstance(entry, list) for entry in boxes):
        raise RequestError(400, f"boxes={boxes!r}: every box is a list [x, y, width, height] in pixels.")
    return data["inputs"], parameters


def check_image(image) -> Image.Image | bytes:
    """One image of a request for the pipeline, not decoded yet; raises `RequestError` if it is too large."""
    if isinstance(image, Image.Image):  # Hugging Face's toolkit makes this of image bytes
        data, (width, height) = image, image.size
    else:
        data = image if isinstance(image, bytes) else _decode_base64(image)
        width, height = _size(data)
    if width * height > MAX_IMAGE_PIXELS:
        raise RequestError(
            413, f"The image has {width}x{height} pixels: send at most {MAX_IMAGE_PIXELS} of them, resize it first."
        )
    return data


def _decode_base64(text) -> bytes:
    if not isinstance(text, str):
        raise RequestError(400, f"Got {type(text).__name__} as an image: send base64 text, or the image's bytes alone.")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(400, "An image is not valid base64. Paths and web addresses are not read: send its bytes.") from None


def _size(data: bytes) -> tuple[int, int]:
    """Width and height of an image in a file's bytes."""
    if len(data) > MAX_IMAGE_BYTES:
        raise RequestError(413, f"The image has {len(data)} bytes: send at most {MAX_IMAGE_BYTES}, resize it first.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the caller checks the size
            with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                return image.size
    except Image.DecompressionBombError as error:
        raise RequestError(413, f"{error} Resize the image first.") from None
    except Exception as error:  # Pillow's decoders raise many kinds of errors
        raise RequestError(415, f"{len(data)} bytes are not an image that can be read: {error}") from None
