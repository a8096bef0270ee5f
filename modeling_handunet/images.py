"""Decodes images: whatever can be an image becomes an upright 8-bit RGB image.

Everything goes through [`load_image`], for training and for prediction, so that both see the same pixels.  Its docstring is
the list of what can be an image; [`is_image`] tells these things from a stream of them.
"""

import base64
import http.client
import io
import ipaddress
import math
import os
import re
import socket
import struct
import threading
import time
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
# Each scan of a JPEG visits every pixel, even if the scan is tiny.  Photographs have 1 to about 10 scans.
MAX_SCANNED_PIXELS = 100 * MAX_IMAGE_PIXELS
JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # the markers that a length follows, and the last one
# Pixels to convert at a time, to bound memory.
STRIP_PIXELS = 1 << 20
# Pillow reads more formats, but some start other programs (EPS), are for documents, or hold images of another size than
# their header says (ICO).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")  # JPEG: MPO too
MAX_DOWNLOAD_BYTES = 256 * 1024**2
MAX_DOWNLOAD_SECONDS = 60  # in all; `SILENCE_SECONDS` without a byte end it earlier
SILENCE_SECONDS = 20
MAX_NAME = 200  # characters of an image's name in an error
# What phones write. Pillow reads it with the package pillow-heif. Brands: ISO/IEC 23008-12, clause 10.
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
# Integers in more than 8 bits are taken to have the smallest of these depths that holds the image's highest value, because
# cameras and `cv2.imread(..., IMREAD_UNCHANGED)` store 8, 10 or 12 bits in 16 without saying so.  14 bits are taken for 16,
# which is darker but not black, because an underexposed photograph of 16 bits has no higher values either.
DEPTHS = (8, 10, 12, 16)
# Floats may leave [0, 1] by this much: more than bfloat16 rounds by.
FLOAT_TOLERANCE = 0.01
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


def load_image(image, *, allow_urls: bool = True, allow_loopback: bool = False) -> Image.Image:
    """An 8-bit RGB image, upright.

    A string is opened: as a file of this machine, or as a web address, which this machine then asks.  So never pass on a
    string that a stranger sent.

    Args:
        image: one of
            a path (`str` or `os.PathLike`), an `http(s)` URL, a `data:` URL;
            a file's content: `bytes`, `bytearray`, `memoryview`;
            an open binary file or `io.BytesIO`, which is read from its start and then is where it was before;
            a PIL image that is open;
            an array, tensor, nested list or `memoryview` of (H, W), (H, W, C) or (C, H, W), see [`to_rgb`].
        allow_urls: with False, web addresses are refused.  `data:` URLs still work, because they ask nobody.
        allow_loopback: whether a web address may lead to this machine itself, as that of a local camera does.

    Raises `FileNotFoundError` for a missing file, `OSError` for a file that is not a readable image or an address that
    cannot be fetched, and `ValueError` for an image of 0 or too many pixels, a thing that is not an image, and a web
    address with `allow_urls=False`.  Each error names the image.
    """
    if isinstance(image, memoryview) and image.ndim != 1:
        return to_rgb(np.asarray(image))
    if isinstance(image, (bytearray, memoryview)):
        image = bytes(image)
    elif _is_file(image):
        image = _read_file(image)
    if not isinstance(image, (str, os.PathLike, bytes)):
        return to_rgb(image)
    name = f"{len(image)} bytes" if isinstance(image, bytes) else os.fspath(image)
    start = name[:8].lower()
    if isinstance(image, bytes):
        source = io.BytesIO(image)
    elif start.startswith(("http://", "https://")):
        if not allow_urls:
            raise ValueError(f"The image {_short(name)} is a web address, which is not read here: give the image's bytes.")
        source = io.BytesIO(_download(name, allow_loopback))
    elif start.startswith("data:"):
        head, comma, payload = name.partition(",")
        name = _short(head)
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError(f"The image in the URL {name!r} is not base64: expected data:image/...;base64,...")
        try:
            source = io.BytesIO(decode_base64(payload))
        except ValueError as error:
            raise ValueError(f"The image in the URL {name!r} is not valid base64: {error}.") from None
    elif not os.path.isfile(name):
        raise FileNotFoundError(f"There is no image file {_short(name)!r}: give a path, a URL, a PIL image or an array.")
    else:
        source = name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # this file has its own limit
        try:
            opened = _open(source)
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name}: {error} Resize it first.") from None
        except UnidentifiedImageError:
            if _is_heif(source) and "HEIF" not in Image.OPEN:
                raise OSError(
                    f"{name} is a HEIC photograph, which Pillow cannot read alone: `pip install pillow-heif`, or save it as "
                    "JPEG."
                ) from None
            reader = "pillow-heif" if _is_heif(source) else "Pillow"
            raise OSError(f"{name} is not an image that {reader} can read.") from None
        except UNREADABLE_IMAGE_ERRORS as error:
            raise OSError(f"{name} is not a readable image: {error}") from error
        with opened:
            check_work(opened, name)
            return to_rgb(opened, name)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}... ({len(name)} characters)"


def decode_base64(text: str | bytes) -> bytes:
    """The bytes that base64 text stands for.  White space is skipped, so that it may be in lines; `ValueError` if invalid."""
    return base64.b64decode("".join(text.split()) if isinstance(text, str) else b"".join(text.split()), validate=True)


def is_image(thing) -> bool:
    """Whether [`load_image`] takes `thing` for one image, and not for a stream of images such as a generator or a data set.

    Lists and tuples are not asked for here: the pipeline and the processor read them as several images.
    """
    if isinstance(thing, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or _is_file(thing):
        return True
    if hasattr(thing, "__array__") or hasattr(thing, "__array_interface__"):
        return True
    return not (hasattr(thing, "__iter__") or hasattr(thing, "__getitem__"))


def _is_file(thing) -> bool:
    return callable(getattr(thing, "read", None)) and not isinstance(thing, (Image.Image, os.PathLike))


def _read_file(file) -> bytes:
    """All bytes of an open file, whose position stays; a file that cannot seek is read on from where it is."""
    name = getattr(file, "name", type(file).__name__)
    try:
        seekable = hasattr(file, "seek") and (not hasattr(file, "seekable") or file.seekable())
        position = file.tell() if seekable else 0
        if seekable:
            file.seek(0)
        data = file.read(MAX_DOWNLOAD_BYTES + 1)
        if seekable:
            file.seek(position)
    except UnicodeDecodeError:
        data = ""
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise OSError(f"The file {name!r} cannot be read: {error}") from error
    if not isinstance(data, bytes):
        raise ValueError(f"The file {name!r} is open as text: open it with mode 'rb'.")
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise ValueError(f"The file {name!r} is larger than {MAX_DOWNLOAD_BYTES} bytes: resize the image first.")
    return data


def _open(source) -> Image.Image:
    """As `Image.open`, but only the formats of `IMAGE_FORMATS`, and HEIF where pillow-heif is installed."""
    try:
        return Image.open(source, formats=IMAGE_FORMATS)
    except UnidentifiedImageError:
        if not _is_heif(source):
            raise
        if "HEIF" not in Image.OPEN:
            try:
                import pillow_heif
            except ImportError:
                raise UnidentifiedImageError from None
            pillow_heif.register_heif_opener()
        return Image.open(source, formats=("HEIF",))


def _is_heif(source) -> bool:
    """Whether a path or a `BytesIO` begins as a HEIC photograph."""
    if isinstance(source, str):
        with open(source, "rb") as file:
            head = file.read(12)
    else:
        head = source.getvalue()[:12]
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS


def check_work(image: Image.Image, name: str) -> None:
    """Raise `ValueError` for an opened file that would take minutes to decode, because it has far more pieces than usual."""
    if image.format == "TIFF" and len(image.tile) > MAX_TIFF_STRIPS:
        raise ValueError(f"{name} has {len(image.tile)} strips or tiles, expected at most {MAX_TIFF_STRIPS}: save it again.")
    if image.format in ("JPEG", "MPO"):
        position = image.fp.tell()
        image.fp.seek(0)
        scans = count_scans(image.fp.read())
        image.fp.seek(position)
        if scans * image.width * image.height > MAX_SCANNED_PIXELS:
            raise ValueError(
                f"{name} is a JPEG of {scans} scans of {image.width}x{image.height} pixels, expected about "
                "10 scans: save it again."
            )


def count_scans(data: bytes) -> int:
    """Scans (SOS markers) of a JPEG's first picture; https://www.w3.org/Graphics/JPEG/itu-t81.pdf, annex B."""
    scans, position = 0, 2
    while (marker := JPEG_MARKER.search(data, position)) and marker[1] != b"\xd9":  # end of image
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _download(url: str, allow_loopback: bool) -> bytes:
    """What a web address answers, in at most `MAX_DOWNLOAD_SECONDS` from the first word to the last."""
    results = []

    def work() -> None:
        try:
            opener = urllib.request.build_opener(*([] if allow_loopback else [_NoLoopback()]))
            with opener.open(_ascii_url(url), timeout=SILENCE_SECONDS) as response:
                parts, size, end = [], 0, time.monotonic() + MAX_DOWNLOAD_SECONDS
                while size <= MAX_DOWNLOAD_BYTES and time.monotonic() < end and (part := response.read1(1 << 20)):
                    parts.append(part)
                    size += len(part)
            results.append(b"".join(parts))
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            results.append(error)

    # A thread, because no timeout of a socket covers a server that sends its headers byte by byte.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(MAX_DOWNLOAD_SECONDS)
    name = _short(url)
    if not results:
        raise OSError(f"Could not fetch the image {name}: it took more than {MAX_DOWNLOAD_SECONDS} s.")
    if isinstance(results[0], Exception):
        raise OSError(f"Could not fetch the image {name}: {_short(str(results[0]))}") from results[0]
    if len(results[0]) > MAX_DOWNLOAD_BYTES:
        raise ValueError(f"The image {name} is larger than {MAX_DOWNLOAD_BYTES} bytes: download and resize it first.")
    return results[0]


class _NoLoopback(urllib.request.BaseHandler):
    """Refuses addresses that lead to this machine itself, those of redirects too."""

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        host = urllib.parse.urlsplit(f"//{request.host}").hostname or ""  # as urllib connects to it, %31 read as 1
        try:
            addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
        except OSError:  # an unknown name, or one that only a proxy knows
            return request
        for address in addresses:
            ip = ipaddress.ip_address(address.partition("%")[0])
            ip = getattr(ip, "ipv4_mapped", None) or ip
            if ip.is_loopback or ip.is_unspecified or ip.is_link_local:
                raise ValueError(f"{host} is this machine itself; allow_loopback=True allows that")
        return request

    https_request = ftp_request = http_request


def _ascii_url(url: str) -> str:
    """A web address as it is sent, with spaces and letters outside ASCII written as %20 and the like."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (urllib.parse.quote(part, safe="%/:;=&?@+$,!*'()~[]") for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def to_rgb(image, name: str = "") -> Image.Image:
    """An 8-bit RGB copy of a PIL image, array or tensor, turned upright by its EXIF orientation.

    Transparent pixels are blended with black.  Grey, palette and CMYK images are converted.  An animation gives its first
    frame.  Arrays and tensors are (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels: bool, 8-bit integers, `uint16`,
    or floats in [0, 1].  Deeper integers are scaled to 8 bits from the smallest of `DEPTHS` that holds their highest value.
    """
    of_caller = not name  # and not opened by `load_image`
    name = name or getattr(image, "filename", "") or "The image"
    if not isinstance(image, Image.Image):
        image = _from_array(image, name)
    _check_size(*image.size, name)
    cut_to_8_bits = image.mode in ("RGB", "RGBA", "LA") and ";16" in str(getattr(image, "tile", ())[:1])
    try:
        image.load()
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
        result = _convert(image if turn is None else image.transpose(turn), name)
        # Drop the EXIF: the processor loads the pipeline's image again, and would turn it a second time.
        result.info = {key: value for key, value in result.info.items() if key == "icc_profile"}
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error} Resize it first.") from None
    except DepthError:
        raise
    except UNREADABLE_IMAGE_ERRORS as error:
        if of_caller and ("closed" in str(error) or getattr(image, "fp", True) is None):
            raise ValueError(f"{name} is a PIL image that was closed before it was read: use it inside its `with`.") from None
        raise OSError(f"{name} cannot be decoded, it may be damaged or truncated: {error}") from error
    # Of 16 bits a color, Pillow keeps the upper 8, in which there is nothing but black if 12 bits were stored.
    if cut_to_8_bits and max(high for _, high in result.getextrema()) < 2 ** (12 - 8):
        raise ValueError(
            f"{name} has 16 bits a color but no value above 4095, so that Pillow reads it as black: save it with 8 bits, or "
            "give it as a uint16 array."
        )
    return result


class DepthError(ValueError):
    """Values that are not those of an image."""


def _check_size(width: int, height: int, name: str) -> None:
    if not 0 < width * height <= MAX_IMAGE_PIXELS:
        raise ValueError(f"{name} has {width}x{height} pixels: expected at least 1 and at most {MAX_IMAGE_PIXELS} of them.")


def _convert(image: Image.Image, name: str) -> Image.Image:
    """An 8-bit RGB copy; an image that needs several steps is converted in strips."""
    deep = image.mode.startswith("I") or image.mode == "F"
    if not deep and not image.has_transparency_data:
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    rows = max(1, STRIP_PIXELS // image.width)
    boxes = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    if deep:
        highest = float(np.max([np.nanmax(np.asarray(image.crop(box)), initial=0) for box in boxes]))
        # Floats beyond 255, but not by far, are 8-bit values that a filter took too high.
        if image.mode == "F" and (highest <= 2 * 255 or math.isinf(highest)):
            scale = 255 if highest <= 1 + FLOAT_TOLERANCE else 1
        else:
            scale = 255 / _highest_of_depth(highest, name)
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


def _highest_of_depth(highest: float, name: str) -> int:
    """White of an image of deeper integers, from its highest value."""
    for depth in DEPTHS:
        if highest < 2**depth:
            return 2**depth - 1
    raise DepthError(f"{name} holds values up to {highest:g}: expected at most 65535, which is 16 bits.")


def _from_array(array, name: str) -> Image.Image:
    try:
        if hasattr(array, "detach"):
            array = array.detach().cpu()
            if array.is_floating_point() and array.element_size() < 4:
                array = array.float()  # numpy has no bfloat16
        values = np.asarray(array)
        if values.dtype.kind == "V" and "float" in values.dtype.name:  # bfloat16 and float8 of the package ml_dtypes
            values = values.astype(np.float32)
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
        low, high = values.min(), values.max()
        if not (-FLOAT_TOLERANCE <= low and high <= 1 + FLOAT_TOLERANCE):  # not so for NaN
            raise ValueError(f"{name} holds floats from {low} to {high}: expected values in [0, 1].")
        values = np.rint(np.clip(values.astype(np.float64), 0, 1) * 255)
    elif values.dtype == bool:
        values = values * np.uint8(255)
    elif values.dtype == np.uint16:
        values = np.rint(values * (255 / _highest_of_depth(values.max(), name)))
    elif not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() > 255:
        raise ValueError(
            f"{name} has the type {values.dtype}: expected 8-bit integers, uint16, bool or floats in [0, 1]."
        )
    values = values.astype(np.uint8)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(values))


__all__ = ["is_image", "load_image", "to_rgb"]
