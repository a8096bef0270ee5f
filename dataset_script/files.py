"""Files that somebody else wrote: read from a folder or from inside a zip, and checked before they are unpacked.

A zip is never extracted: its members are looked up by name and read into memory, after their stated sizes were checked.
Whatever is wrong with a file raises a `ValueError` (or an `OSError`) that names it.
"""

import hashlib
import io
import json
import logging
import os
import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

from PIL import ExifTags, Image

from modeling_handunet.images import (
    IMAGE_FORMATS,
    MAX_IMAGE_PIXELS,
    SIDEWAYS,
    UNREADABLE_IMAGE_ERRORS,
    UPRIGHT,
    check_work,
    to_rgb,
)

logger = logging.getLogger(__name__)

MAX_JSON_BYTES = 96 << 20  # FreiHAND's largest list of keypoints takes about 44 MiB
# Python needs up to 240 bytes for a value of a few characters ("[{},{},..."), so the size alone does not bound the memory.
MAX_JSON_VALUES = 12_000_000  # FreiHAND's largest list has 2.8 million
MAX_JSON_NESTING = 50
MAX_IMAGE_BYTES = 64 << 20

IMAGE_ERRORS = (*UNREADABLE_IMAGE_ERRORS, Image.DecompressionBombError)


class FileTree:
    """The files in a folder or in a zip. Their names start below `prefix`.

    Each process opens the zip once. Instances can be pickled and forked.
    """

    def __init__(self, path: str | os.PathLike, prefix: str = ""):
        self.path = Path(path)
        self.prefix = prefix
        self.is_zip = self.path.is_file()
        self._zip: zipfile.ZipFile | None = None
        self._zip_owner = 0  # the process that opened the zip: a forked child must not share its file position

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_zip": None, "_zip_owner": 0}

    def below(self, prefix: str) -> "FileTree":
        """The same files, with names that start below `prefix`."""
        tree = FileTree(self.path, prefix)
        tree._zip, tree._zip_owner = self._zip, self._zip_owner
        return tree

    def where(self, name: str) -> str:
        """The path of the file `name`, for messages."""
        return str(self.path / (self.prefix + name))

    def open_zip(self) -> zipfile.ZipFile:
        """The opened zip. Raises ValueError for a file that is not a whole zip."""
        if self._zip is None or self._zip_owner != os.getpid():
            try:
                self._zip, self._zip_owner = zipfile.ZipFile(self.path), os.getpid()
            except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError) as error:
                raise ValueError(
                    f"{self.path} is not a whole zip file ({error}). Download it again: "
                    "python -m dataset_script.download --data_dir DIR"
                ) from error
        return self._zip

    def find(self, *names: str) -> "FileTree | None":
        """The tree that has one of `names` (files, or folders with files): this one, or else below a folder at its top.

        Some archives are packed inside a folder of their own.
        """
        if self.is_zip:
            heads = set()
            for member in self.open_zip().NameToInfo:  # one pass: a zip may have very many folders
                head = member.split("/", 1)[0] + "/"
                for prefix in ("", head):
                    rest = member.removeprefix(prefix)
                    if any(rest == name or (rest.startswith(name + "/") and rest != name + "/") for name in names):
                        heads.add(prefix)
            heads -= {"../", "./", "/"}
        else:
            heads = {"", *(entry.name + "/" for entry in os.scandir(self.path) if entry.is_dir())}
        trees = (self.below(head) for head in sorted(heads))
        return next((tree for tree in trees if any(name in tree or tree.names(name) for name in names)), None)

    def names(self, folder: str) -> set[str]:
        """Names of the files directly in `folder` ("training/rgb"); empty if there is no such folder."""
        if self.is_zip:
            start = f"{self.prefix}{folder}/"
            rest = (name[len(start) :] for name in self.open_zip().NameToInfo if name.startswith(start))
            return {name for name in rest if name and "/" not in name}
        path = self.path / (self.prefix + folder)
        return {entry.name for entry in os.scandir(path)} if path.is_dir() else set()

    def __contains__(self, name: str) -> bool:
        if self.is_zip:
            return self.prefix + name in self.open_zip().NameToInfo
        return (self.path / (self.prefix + name)).is_file()

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of file `name`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is larger than `limit` bytes, or it is a zip member that is damaged, encrypted or a link.
        """
        where = self.where(name)
        too_large = f"{where} is larger than {limit} bytes, the most that is read of such a file"
        if not self.is_zip:
            path = self.path / (self.prefix + name)
            if path.exists() and not path.is_file():  # reading from a pipe never ends
                raise ValueError(f"{where} is not a file")
            with open(path, "rb") as file:
                data = file.read(limit + 1)
            if len(data) > limit:
                raise ValueError(too_large)
            return data
        archive = self.open_zip()
        try:
            member = archive.getinfo(self.prefix + name)
        except KeyError:
            raise FileNotFoundError(f"{where}: the zip has no such file") from None
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"{where} is a link, and links in a zip are not followed: store the file itself")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # of others zipfile unpacks any amount
            raise ValueError(f"{where} cannot be unpacked (compression type {member.compress_type}): store it deflated")
        if max(member.file_size, member.compress_size) > limit:
            raise ValueError(too_large)
        try:
            with archive.open(member) as file:
                data = file.read(member.file_size + 1)  # without a size, a zip bomb would be unpacked whole
            if len(data) != member.file_size:
                raise EOFError(f"{len(data)} of {member.file_size} bytes")
            return data
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError) as error:
            raise ValueError(f"{where} is damaged inside the zip ({error}): download the zip again") from error
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in a way zipfile does not know
            raise ValueError(f"{where} cannot be unpacked ({error}): store it unencrypted, deflated") from error

    def stamp(self, *names: str) -> list[tuple[str, int, int]]:
        """(path, size, mtime in ns) of the files and folders `names` that exist, or of the zip that holds them."""
        paths = [self.path] if self.is_zip else [self.path / (self.prefix + name) for name in names]
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists()]


def parse_json(data: bytes, where: str) -> object:
    """The value of the JSON text `data`.

    Raises ValueError naming `where` for bad syntax, bad encoding, more than `MAX_JSON_NESTING` levels and more than
    `MAX_JSON_VALUES` values.
    """
    values = sum(data.count(mark) for mark in (b",", b"[", b"{"))  # about
    if values > MAX_JSON_VALUES:
        raise ValueError(f"{where} has about {values:,} values, annotations have up to {MAX_JSON_VALUES:,}: split the file")
    too_deep = f"{where} is nested too deeply to be a list of annotations"
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(too_deep) from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of thousands of digits
        raise ValueError(f"{where} is not valid JSON ({error}); it may be half-copied: copy it again") from error
    level = [value]
    for _ in range(MAX_JSON_NESTING + 1):
        nested = (entry.values() if isinstance(entry, dict) else entry for entry in level if isinstance(entry, (dict, list)))
        level = [item for items in nested for item in items if isinstance(item, (dict, list))]
    if level:
        raise ValueError(too_deep)
    return value


def image_size(source: bytes | str | os.PathLike) -> tuple[int, int]:
    """(width, height) of an upright image (its EXIF orientation applied), after decoding it once.

    `source` is the encoded image or its path. All bytes of a JPEG are decoded, but only to an eighth of its size. Raises
    ValueError with the reason, which does not name the image, for an image that `load_image` would refuse.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images (their size is checked here) and odd metadata
        try:
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                check_work(image, "it")
                width, height = image.size
                if not 0 < width * height <= MAX_IMAGE_PIXELS:
                    raise ValueError(f"{width} x {height} pixels, where 1 to {MAX_IMAGE_PIXELS:,} pixels are read")
                if image.format == "JPEG":
                    image.draft(None, (width // 8, height // 8))
                to_rgb(image, "it")
                turned = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
        except IMAGE_ERRORS as error:
            raise ValueError(str(error) or type(error).__name__) from error
    return (height, width) if turned in SIDEWAYS else (width, height)


class UnreadableImages:
    """The images of a build that cannot be read. More than a share of them stop the build."""

    def __init__(self, total: int, max_share: float):
        if not 0.0 <= max_share < 1.0:
            raise ValueError(f"max_unreadable_share must be at least 0 and below 1, got {max_share}")
        self.allowed = int(total * max_share)
        self.total = total
        self.reasons: dict[str, str] = {}

    def add(self, where: str, reason: object) -> None:
        """Count the image `where`. Raises ValueError, naming all so far, if there are more than the share allows."""
        self.reasons[where] = str(reason)
        if len(self.reasons) > self.allowed:
            raise ValueError(
                f"{len(self.reasons)} of {self.total} images cannot be read, {self.allowed} may be "
                f"(max_unreadable_share): {shorten([f'{name} ({why})' for name, why in self.reasons.items()])}. "
                "Copy the files again, or raise max_unreadable_share to leave them out"
            )
        logger.warning("left out %s, which cannot be read (%s): %d so far", where, reason, len(self.reasons))


def shorten(items: list, count: int = 10) -> str:
    """`items` separated by commas, cut after `count`."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(str(item) for item in items[:count]) + more


def digest(*parts: object) -> str:
    """A short hexadecimal digest of the parts' representations."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
