"""Decodes images: a path, URL, bytes, PIL image, array or tensor becomes an upright 8-bit RGB image.

Everything goes through [`load_image`], for training and for prediction, so that both see the same pixels.
"""

import base64
import io
import os
import re
import struct
import urllib.error
import urllib.parse
import urllib.request
import warnings
import zlib

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# Larger images are refused, so that reading one takes less than 2 GB: WebP's decoder alone takes 20 bytes a pixel.
MAX_IMAGE_PIXELS = 64_000_000
MAX_TIFF_STRIPS = 100_000
# Each scan of a progressive JPEG visits every pixel, even if the scan is tiny.  Photographs have about 10 scans.
MAX_SCANNED_PIXELS = 100 * MAX_IMAGE_PIXELS
JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
# Pixels to convert at a time, to bound memory.
STRIP_PIXELS = 1 << 20
# Pillow reads more formats, but some start other programs (EPS), are for documents, or hold images of another size than
# their header says (ICO).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")  # JPEG: MPO too
MAX_DOWNLOAD_BYTES = 256 * 1024**2
# How to turn an image upright, by its EXIF orientation.  `ImageOps.exif_transpose` also rewrites the EXIF, and fails if any
# other tag is damaged.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (UPRIGHT[5], UPRIGHT[6], UPRIGHT[7], UPRIGHT[8])  # these swap width and height
# Pillow raises these for files that are damaged, hostile or of an unknown format.
UNREADABLE_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError)
UNREADABLE_IMAGE_ERRORS += (NotImplementedError, AttributeError, ZeroDivisionError, RuntimeError, struct.error, zlib.error)
UNREADABLE_IMAGE_ERRORS += (AssertionError,)  # for example for a missing palette


def load_image(image) -> Image.Image:
    """An 8-bit RGB image, upright, from a path, `http(s)` or `data:` URL, bytes, PIL image, array or tensor.

    Raises `FileNotFoundError` for a missing file, `OSError` for a file that is not a readable image, and `ValueError` for
    an image of 0 or too many pixels or an array that is not an image.  Each error names the image.
    """
    if not isinstance(image, (str, os.PathLike, bytes)):
        return to_rgb(image)
    name = f"{len(image)} bytes" if isinstance(image, bytes) else os.fspath(image)
    if isinstance(image, bytes):
        source = io.BytesIO(image)
    elif name.startswith(("http://", "https://")):
        source = io.BytesIO(_download(name))
    elif name.startswith("data:"):
        name, _, payload = name.partition(",")
        try:
            source = io.BytesIO(base64.b64decode(payload, validate=True))
        except ValueError as error:
            raise ValueError(f"The image in the URL {name!r} is not valid base64: {error}.") from None
    elif not os.path.isfile(name):
        raise FileNotFoundError(f"There is no image file {name!r}: give a path, a URL, a PIL image or an array.")
    else:
        source = name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # this file has its own limit
        try:
            opened = Image.open(source, formats=IMAGE_FORMATS)
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name}: {error} Resize it first.") from None
        except UnidentifiedImageError:
            raise OSError(f"{name} is not an image that Pillow can read.") from None
        except UNREADABLE_IMAGE_ERRORS as error:
            raise OSError(f"{name} is not a readable image: {error}") from error
        with opened:
            check_work(opened, name)
            return to_rgb(opened, name)


def check_work(image: Image.Image, name: str) -> None:
    """Raise `ValueError` for an opened file that would take minutes to decode, because it has far more pieces than usual."""
    if image.format == "TIFF" and len(image.tile) > MAX_TIFF_STRIPS:
        raise ValueError(f"{name} has {len(image.tile)} strips or tiles, expected at most {MAX_TIFF_STRIPS}: save it again.")
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        position = image.fp.tell()
        image.fp.seek(0)
        scans = _count_scans(image.fp.read())
        image.fp.seek(position)
        if scans * image.width * image.height > MAX_SCANNED_PIXELS:
            raise ValueError(
                f"{name} is a progressive JPEG of {scans} scans of {image.width}x{image.height} pixels, expected about "
                "10 scans: save it again."
            )


def _count_scans(data: bytes) -> int:
    """Scans (SOS markers) of a JPEG's first picture; https://www.w3.org/Graphics/JPEG/itu-t81.pdf, annex B."""
    scans, position = 0, 2
    while (marker := JPEG_MARKER.search(data, position)) and marker[1] != b"\xd9":  # end of image
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            data = response.read(MAX_DOWNLOAD_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise OSError(f"Could not fetch the image {url}: {error}") from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise ValueError(f"The image {url} is larger than {MAX_DOWNLOAD_BYTES} bytes: download and resize it first.")
    return data


def to_rgb(image, name: str = "") -> Image.Image:
    """An 8-bit RGB copy of a PIL image, array or tensor, turned upright by its EXIF orientation.

    Transparent pixels are blended with black.  16-bit values are scaled to 8 bits.  Grey, palette and CMYK images are
    converted.  An animation gives its first frame.  Arrays and tensors are (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4
    channels: 8 or 16-bit integers, or floats in [0, 1].
    """
    name = name or getattr(image, "filename", "") or "The image"
    if not isinstance(image, Image.Image):
        image = _from_array(image, name)
    _check_size(*image.size, name)
    try:
        image.load()
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
        result = _convert(image if turn is None else image.transpose(turn))
        # Drop the EXIF: the processor loads the pipeline's image again, and would turn it a second time.
        result.info = {key: value for key, value in result.info.items() if key == "icc_profile"}
        return result
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error} Resize it first.") from None
    except UNREADABLE_IMAGE_ERRORS as error:
        raise OSError(f"{name} cannot be decoded, it may be damaged or truncated: {error}") from error


def _check_size(width: int, height: int, name: str) -> None:
    if not 0 < width * height <= MAX_IMAGE_PIXELS:
        raise ValueError(f"{name} has {width}x{height} pixels: expected at least 1 and at most {MAX_IMAGE_PIXELS} of them.")


def _convert(image: Image.Image) -> Image.Image:
    """An 8-bit RGB copy; an image that needs several steps is converted in strips."""
    deep = image.mode.startswith("I") or image.mode == "F"
    if not deep and not image.has_transparency_data:
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    rows = max(1, STRIP_PIXELS // image.width)
    boxes = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    if image.mode.startswith("I;16"):
        scale = 1 / 257  # from 16 bits
    elif deep:
        highest = np.max([np.asarray(image.crop(box)).max() for box in boxes])
        scale = 1 / 257 if image.mode == "I" and highest > 255 else 255 if highest <= 1 else 1
    result = Image.new("RGB", image.size)
    for box in boxes:
        strip = image.crop(box)
        if deep:
            values = np.nan_to_num(np.asarray(strip, dtype=np.float64) * scale, posinf=255.0, neginf=0.0)
            strip = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
        if strip.has_transparency_data:
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, (0, 0, 0, 255)), strip.convert("RGBA"))
        result.paste(strip.convert("RGB"), box)
    return result


def _from_array(array, name: str) -> Image.Image:
    try:
        values = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from None
    if values.ndim == 3 and values.shape[2] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = np.moveaxis(values, 0, 2)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"{name} is a {type(array).__name__} of shape {values.shape}: expected (H, W), (H, W, C) or (C, H, W) "
            "with 1, 3 or 4 channels."
        )
    if 0 in values.shape:
        raise ValueError(f"{name} has shape {values.shape}: it holds no pixel.")
    _check_size(values.shape[1], values.shape[0], name)
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ValueError(f"{name} holds floats from {values.min()} to {values.max()}: expected values in [0, 1].")
        values = np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    elif values.dtype == bool:
        values = values.astype(np.uint8) * 255
    elif values.dtype == np.uint16:
        values = np.rint(values / 257).astype(np.uint8)
    elif not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() > 255:
        raise ValueError(f"{name} has the type {values.dtype}: expected 8-bit integers or floats in [0, 1].")
    values = values.astype(np.uint8)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(values))


__all__ = ["load_image", "to_rgb"]
