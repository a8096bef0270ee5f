"""The files of a dataset: read from a folder or from a zip without extracting it, and checked as they are read.

Owns every place where `dataset_script` meets bytes that someone else wrote: names are looked up, never followed out of
the archive; sizes are checked before anything is decompressed or decoded; and whatever is wrong ends in a `ValueError`
(or an `OSError`) that names the file.
"""

import hashlib
import io
import json
import logging
import lzma
import os
import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

from PIL import Image

from modeling_handunet.crops import IMAGE_FORMATS, MAX_IMAGE_PIXELS, UNREADABLE_IMAGE_ERRORS

logger = logging.getLogger(__name__)

MAX_JSON_BYTES = 96 << 20  # FreiHAND's largest list of keypoints takes about 44 MiB
MAX_IMAGE_BYTES = 64 << 20

# What Pillow and its codecs raise on broken files, beyond what it documents.
IMAGE_ERRORS = (*UNREADABLE_IMAGE_ERRORS, struct.error, zlib.error, Image.DecompressionBombError)


class FileTree:
    """The files under a folder or inside a zip, by their names below `prefix`.

    A zip is opened once per process and only its members' bytes are read: nothing is written, so a member cannot climb
    out of anything.  Instances can be pickled and forked.
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
        """The same files with their names taken below `prefix`."""
        tree = FileTree(self.path, prefix)
        tree._zip, tree._zip_owner = self._zip, self._zip_owner
        return tree

    def where(self, name: str) -> str:
        """How messages call the file `name`."""
        return str(self.path / (self.prefix + name))

    def open_zip(self) -> zipfile.ZipFile:
        """The zip's directory, read once per process.  Raises ValueError for a file that is not a whole zip."""
        if self._zip is None or self._zip_owner != os.getpid():
            try:
                self._zip, self._zip_owner = zipfile.ZipFile(self.path), os.getpid()
            except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError) as error:
                raise ValueError(
                    f"{self.path} is not a whole zip file ({error}). Fetch it again: "
                    "python -m dataset_script.download --data_dir DIR"
                ) from error
        return self._zip

    def top_prefixes(self) -> list[str]:
        """"" and every folder at the top, as "name/": where an archive packed with its own folder has its files."""
        if self.is_zip:
            heads = {name.split("/", 1)[0] + "/" for name in self.open_zip().NameToInfo if "/" in name}
        else:
            heads = {entry.name + "/" for entry in os.scandir(self.path) if entry.is_dir()}
        return ["", *sorted(heads - {"../", "./", "/"})]

    def names(self, folder: str) -> set[str]:
        """Names of the files directly in `folder` ("training/rgb"); empty where there is no such folder."""
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
            ValueError: it is larger than `limit` bytes, or a zip member that is damaged, encrypted or a link.
        """
        where = self.where(name)
        if not self.is_zip:
            with open(self.path / (self.prefix + name), "rb") as file:
                data = file.read(limit + 1)
            if len(data) > limit:
                raise ValueError(f"{where} is larger than {limit} bytes, the most that is read of such a file")
            return data
        archive = self.open_zip()
        try:
            member = archive.getinfo(self.prefix + name)
        except KeyError:
            raise FileNotFoundError(f"{where}: the zip has no such file") from None
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"{where} is a link; links in a zip are not followed, store the file itself")
        if member.file_size > limit:
            raise ValueError(f"{where} is larger than {limit} bytes, the most that is read of such a file")
        try:
            return archive.read(member)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
            raise ValueError(f"{where} is damaged inside the zip ({error}); fetch the zip again") from error
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in a way zipfile does not know
            raise ValueError(f"{where} cannot be unpacked ({error}); store it unencrypted, deflated") from error

    def stamp(self, *names: str) -> list[tuple[str, int, int]]:
        """(path, size, mtime in ns) of the files and folders `names` that exist, or of the zip that holds them."""
        paths = [self.path] if self.is_zip else [self.path / (self.prefix + name) for name in names]
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists()]


def parse_json(data: bytes, where: str) -> object:
    """The value of a JSON text.  Raises ValueError naming `where` for bad syntax, bad encoding or deep nesting."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply to be a list of annotations") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of thousands of digits
        raise ValueError(f"{where} is not valid JSON ({error}); it may be half-copied: copy it again") from error


def image_size(source: bytes | str | os.PathLike, decode: bool = True) -> tuple[int, int]:
    """(width, height) of an image as it is to be shown (EXIF orientation applied), decoded once to see that it can be.

    `source` is the encoded image or its path; with `decode=False` only the header is read.
    Raises ValueError, with the reason alone, for what cannot be read and for more than `MAX_IMAGE_PIXELS`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images, which are judged here, and of odd metadata
        try:
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                width, height = image.size
                if not 0 < width * height <= MAX_IMAGE_PIXELS:
                    raise ValueError(f"{width} x {height} pixels, where 1 to {MAX_IMAGE_PIXELS:,} pixels are read")
                rotated = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientations that swap the sides
                if decode:
                    if image.format == "JPEG":
                        image.draft(None, (width // 8, height // 8))  # all of it is read, an eighth is computed
                    image.load()
        except IMAGE_ERRORS as error:
            raise ValueError(str(error) or type(error).__name__) from error
    return (height, width) if rotated else (width, height)


class UnreadableImages:
    """Counts and names the images of a build that cannot be read; stops the build above a share of them."""

    def __init__(self, total: int, max_share: float):
        if not 0.0 <= max_share < 1.0:
            raise ValueError(f"max_unreadable_share must be at least 0 and below 1, got {max_share}")
        self.allowed = int(total * max_share)
        self.total = total
        self.reasons: dict[str, str] = {}

    def add(self, where: str, reason: object) -> None:
        """Count the image `where`.  Raises ValueError, naming all so far, when there are more than the share allows."""
        self.reasons[where] = str(reason)
        if len(self.reasons) > self.allowed:
            raise ValueError(
                f"{len(self.reasons)} of {self.total} images cannot be read, {self.allowed} may be "
                f"(max_unreadable_share): {shorten([f'{name} ({why})' for name, why in self.reasons.items()])}. "
                "Copy the files again, or raise max_unreadable_share to leave them out"
            )
        logger.warning("left out %s, which cannot be read (%s): %d so far", where, reason, len(self.reasons))


def shorten(items: list, count: int = 10) -> str:
    """`items` as a sentence's list, cut after `count`."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(str(item) for item in items[:count]) + more


def digest(*parts: object) -> str:
    """A short hexadecimal digest of the parts' representations."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
