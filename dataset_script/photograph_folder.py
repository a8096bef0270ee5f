"""Finds the photographs that an annotation file names.

Annotation tools write file names as their own server saw them: with backslashes, in URL quotes, with folders that only exist
there, or without the folders that the export has.
"""

import os
import re
import unicodedata
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an uploaded file


class PhotographFolder:
    """The photographs in a folder and in the folders below it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._by_name: dict[str, list[str]] | None = None

    def find(self, name: str) -> str | None:
        """The path of the photograph that a file calls `name`; None if there is none, or if several may be meant.

        The name itself comes first. Then other spellings of it are tried, then fewer of the folders before it, then the same
        name in folders below. The path is always inside the folder.
        """
        spellings = list(_spellings(name))
        for parts in spellings:
            for start in range(len(parts)):
                path = os.path.join(self.folder, *parts[start:])
                if os.path.isfile(path):
                    return path
        for parts in spellings:
            if found := self._find_below(parts):
                return found
        return None

    def is_exact(self, name: str, path: str) -> bool:
        """Whether `name` is the path itself, below the folder."""
        return os.path.join(self.folder, name) == path

    def _find_below(self, parts: tuple[str, ...]) -> str | None:
        """The one file below the folder whose path ends like these parts the longest."""
        if self._by_name is None:
            self._by_name = {}
            for place, _, names in os.walk(self.folder):
                for name in names:
                    self._by_name.setdefault(_plain(name), []).append(os.path.join(place, name))
        wanted = [_plain(part) for part in parts]
        best, length = [], 0
        for path in self._by_name.get(wanted[-1], ()):
            found = [_plain(part) for part in Path(path).relative_to(self.folder).parts]
            same = 0
            while same < min(len(found), len(wanted)) and found[-1 - same] == wanted[-1 - same]:
                same += 1
            if same >= length:
                best, length = [path] if same > length else [*best, path], same
        return best[0] if len(best) == 1 else None


def _plain(name: str) -> str:
    """A name as systems compare it that do not tell capitals apart or store accents on their own."""
    return unicodedata.normalize("NFC", name).casefold()


def _spellings(name: str):
    """The parts of a path, without those that lead out of a folder, in all spellings of `name`."""
    texts = [name, name.replace("\\", "/")]
    try:
        url = urlsplit(texts[1])
    except ValueError:  # "[" without "]" after "//"
        url = None
    if url is not None and url.query.startswith("d="):  # Label Studio: /data/local-files/?d=folder/photo.jpg
        texts.append(url.query[2:])
    if url is not None and url.scheme and url.netloc:
        texts.append(url.path)
    texts += [unquote(text) for text in texts]
    seen = set()
    for text in [*texts, *(_without_prefix(text) for text in texts)]:
        parts = tuple(part for part in PurePosixPath(text).parts if part not in ("/", "//", "..", ".") and "\0" not in part)
        if parts and parts not in seen:
            seen.add(parts)
            yield parts


def _without_prefix(text: str) -> str:
    folder, slash, name = text.rpartition("/")
    return folder + slash + UPLOAD_PREFIX.sub("", name)


def default_folder(annotations: Path) -> Path:
    """Where the photographs of an annotation file are if nobody says it.

    That is `images` beside the file (COCO, Label Studio), `images` beside its folder `annotations` (CVAT), or the folder of
    the file itself (Roboflow, labelme).
    """
    here = annotations if annotations.is_dir() else annotations.parent
    places = [here / "images"] + ([here.parent / "images"] if here.name == "annotations" else [])
    return next((place for place in places if place.is_dir()), here)
