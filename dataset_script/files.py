"""The files of a dataset: read from a folder or from a zip without extracting it, and checked as they are read.

Owns every place where `dataset_script` meets bytes that someone else wrote: names are looked up, never followed out of
the archive; sizes are checked before anything is decompressed or decoded; and whatever is wrong ends in a `ValueError`
(or an `OSError`) that names the file.
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
MAX_IMAGE_BYTES = 64 << 20
# A zip's list of members, of which Python keeps some 20 times as much; FreiHAND's takes about 15 MiB.
MAX_DIRECTORY_BYTES = 32 << 20
# What the values of a JSON text may take, estimated from its punctuation as CPython keeps them: at least so much for an
# object, a list, an object's member, and any further value.
MAX_JSON_MEMORY = 900 << 20
JSON_COSTS = {b"{": 240, b"[": 88, b":": 150, b",": 60}
MAX_JSON_NESTING = 50

IMAGE_ERRORS = (*UNREADABLE_IMAGE_ERRORS, Image.DecompressionBombError)


class _Pieces:
    """A file that zipfile reads, which refuses to be read in pieces of more than `limit` bytes.

    zipfile reads a zip's directory, and a member's bytes, in pieces as large as the zip claims them to be.
    """

    def __init__(self, path: Path, limit: int):
        self._file = open(path, "rb")  # noqa: SIM115, closed with this object
        self.seek, self.tell, self.close = self._file.seek, self._file.tell, self._file.close
        self.size, self.limit = os.path.getsize(path), limit

    def __del__(self):
        if hasattr(self, "_file"):
            self._file.close()

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self.size - self._file.tell())
        size = rest if size < 0 else min(size, rest)
        if size > self.limit:
            raise ValueError(f"it claims a list of members or a member of {size} bytes, more than {self.limit}")
        return self._file.read(size)


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
            file = _Pieces(self.path, MAX_DIRECTORY_BYTES)
            try:
                self._zip, self._zip_owner = zipfile.ZipFile(file), os.getpid()
            except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError) as error:
                raise ValueError(
                    f"{self.path} is not a whole zip file ({error}). Fetch it again: "
                    "python -m dataset_script.download --data_dir DIR"
                ) from error
            file.limit = max(MAX_JSON_BYTES, MAX_IMAGE_BYTES)
        return self._zip

    def find(self, *names: str) -> "FileTree | None":
        """The tree below "" or below a folder at the top, the first that has one of the files or filled folders `names`.

        An archive that was packed with its own folder has its files below such a prefix.
        """
        if self.is_zip:
            heads = set()
            for member in self.open_zip().NameToInfo:  # in one pass, since a zip may have very many folders
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
        too_large = f"{where} is larger than {limit} bytes, the most that is read of such a file"
        if not self.is_zip:
            path = self.path / (self.prefix + name)
            if path.exists() and not path.is_file():  # a pipe, say, from which reading never ends
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
            raise ValueError(f"{where} is a link; links in a zip are not followed, store the file itself")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile unpacks others unbounded
            raise ValueError(f"{where} cannot be unpacked (compression type {member.compress_type}); store it deflated")
        if max(member.file_size, member.compress_size) > limit:
            raise ValueError(too_large)
        try:
            with archive.open(member) as file:
                data = file.read(member.file_size + 1)  # a size, since without one a bomb is unpacked whole
            if len(data) != member.file_size:
                raise EOFError(f"{len(data)} of {member.file_size} bytes")
            return data
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError) as error:
            raise ValueError(f"{where} is damaged inside the zip ({error}); fetch the zip again") from error
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in a way zipfile does not know
            raise ValueError(f"{where} cannot be unpacked ({error}); store it unencrypted, deflated") from error

    def stamp(self, *names: str) -> list[tuple[str, int, int]]:
        """(path, size, mtime in ns) of the files and folders `names` that exist, or of the zip that holds them."""
        paths = [self.path] if self.is_zip else [self.path / (self.prefix + name) for name in names]
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists()]


def parse_json(data: bytes, where: str) -> object:
    """The value of a JSON text.

    Raises ValueError naming `where` for bad syntax, bad encoding, more than `MAX_JSON_NESTING` levels, and values that
    would take more than about `MAX_JSON_MEMORY` bytes.
    """
    memory = sum(data.count(mark) * cost for mark, cost in JSON_COSTS.items())
    if memory > MAX_JSON_MEMORY:
        raise ValueError(f"{where} has too many values to be a list of annotations: they would take {memory:,} bytes")
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
    """(width, height) of an image as it is to be shown (EXIF orientation applied), which is read as `load_image` does.

    `source` is the encoded image or its path.  Of a JPEG every byte is decoded, but only an eighth of the pixels.
    Raises ValueError, with the reason alone, for what `load_image` would refuse.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images, which are judged here, and of odd metadata
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
