"""What a command line names: photographs and films, in files, folders, patterns, addresses, lists and data sets.

Sources come one after another, so that a million of them take no memory.
"""

import glob
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

SUFFIXES = frozenset(
    ".avif .bmp .gif .heic .heif .j2k .jfif .jp2 .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
FILM_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv".split()
)
URLS = ("http://", "https://", "data:")
LIST = "-"  # the word for standard input, which has a name in each line
MAX_NAME = 100  # characters of a drawing's name that come from an address


@dataclass(frozen=True)
class Source:
    """A photograph or a film.

    name: what the user knows it by: a path, an address, or a row of a data set.
    place: the path of its drawing below the output folder, without a suffix; unlike all others of the command.
    read: gives what `load_image` takes, for what is no file and no address.
    """

    name: str
    place: str
    read: Callable[[], object] | None = None

    @property
    def is_film(self) -> bool:
        """Whether its name ends as a film's."""
        path = path_of(self.name) if self.name.startswith(URLS[:2]) else self.name
        return self.read is None and not self.name.startswith("data:") and Path(path).suffix.lower() in FILM_SUFFIXES


def find(words: Iterable[str], output: Path, problem: Callable[[str], None], *, drawn: bool = True) -> Iterator[Source]:
    """The sources that words name; `problem` gets a sentence for each word that names none.

    A folder stands for the photographs and films in it and in its subfolders, by the ends of their names, but not for those
    in `output`; a pattern, such as `photos/**/*.jpg`, for the files that match.  A file that has a pattern's name is that file.
    Without `drawn` the places are not told apart, which would take memory.
    """
    taken: set[str] | None = set() if drawn else None
    for word in words:
        path = Path(word)
        if word.startswith(URLS) or path.is_file():
            yield Source(word, free_place(stem_of(word), taken))
        elif path.is_dir():
            count = 0
            for file in files_below(word, output, problem):
                count += 1
                yield Source(file, free_place(os.path.splitext(os.path.relpath(file, word))[0], taken))
            if not count:
                problem(f"The folder {word} holds no photograph and no film.")
        elif glob.has_magic(word):
            files = [file for file in sorted(glob.glob(word, recursive=True)) if is_source(file) and os.path.isfile(file)]
            for file in files:
                yield Source(file, free_place(stem_of(file), taken))
            if not files:
                problem(f"No photograph and no film matches {word}.")
        else:
            yield Source(word, free_place(stem_of(word), taken))  # reading it says what is wrong


def open_dataset(name: str, split: str, column: str):
    """A column of a data set of the Hub, of a local folder, or of one that `save_to_disk` wrote.

    Raises `ValueError`, `OSError` or `ImportError` for one that cannot be used.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"--dataset needs the package datasets ({error}): pip install datasets") from None
    try:
        if Path(name, "state.json").is_file() or Path(name, "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(name)
            loaded = loaded if isinstance(loaded, datasets.Dataset) else loaded[split]
        else:
            loaded = datasets.load_dataset(name, split=split)
    except KeyError:
        raise ValueError(f"The data set {name} has no split {split!r}: it has {', '.join(loaded)}.") from None
    if column not in loaded.column_names:
        raise ValueError(f"The data set {name} has no column {column!r}: it has {', '.join(loaded.column_names)}.")
    loaded = loaded.select_columns([column])
    if isinstance(loaded.features[column], datasets.Image):
        loaded = loaded.cast_column(column, datasets.Image(decode=False))  # so that a bad row costs only itself
    return loaded


def rows(loaded, name: str) -> Iterator[Source]:
    """The rows of a data set, which are called NAME/0 and so on."""
    (column,) = loaded.column_names
    for index in range(len(loaded)):
        yield Source(f"{name}/{index}", f"{index:08d}", lambda index=index: content(loaded[index][column]))


def content(value):
    """What `load_image` takes, of a cell of a data set."""
    if isinstance(value, dict) and {"bytes", "path"} <= value.keys():
        return value["bytes"] if value["bytes"] is not None else value["path"]
    if value is None:
        raise ValueError("the cell is empty")
    return value


def names_of(words: list[str]) -> Iterator[str]:
    """The words; "-" stands for the names in the lines of standard input, with the bytes that they have on the disk."""
    for word in words:
        if word == LIST:
            for line in sys.stdin.buffer:
                if name := os.fsdecode(line.rstrip(b"\r\n")):
                    yield name
        else:
            yield word


def files_below(folder: str, output: Path, problem: Callable[[str], None]) -> Iterator[str]:
    """The photographs and films in a folder and its subfolders, sorted in each, without those below it in `output`."""
    drawn = os.path.realpath(output)
    if not drawn.startswith(os.path.join(os.path.realpath(folder), "")):
        drawn = ""

    def failed(error: OSError) -> None:
        problem(f"The folder {error.filename} cannot be read: {error.strerror}.")

    for place, folders, names in os.walk(folder, onerror=failed):
        folders[:] = [name for name in sorted(folders) if not name.startswith(".")]
        if drawn:
            folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) != drawn]
        for name in sorted(names):
            path = os.path.join(place, name)
            if is_source(name) and os.path.isfile(path):
                yield path


def is_source(name: str) -> bool:
    """Whether a file is a photograph or a film, by its name.  Files that begin with a dot hold a system's own data."""
    path = Path(name)
    return path.suffix.lower() in SUFFIXES | FILM_SUFFIXES and not path.name.startswith(".")


def path_of(address: str) -> str:
    """The path of an address; "" of one that is none, which is said when it is read."""
    try:
        return urlsplit(address).path
    except ValueError:
        return ""


def stem_of(name: str) -> str:
    """What a drawing is called after, without a suffix."""
    if name.startswith("data:"):
        return "photo"
    if name.startswith(URLS):
        stem = re.sub(r"[^\w .()+-]", "_", Path(unquote(path_of(name))).stem)
    else:
        stem = Path(name).stem
    return stem[:MAX_NAME] or "photo"


def free_place(place: str, taken: set[str] | None) -> str:
    """`place`, or with a number if it is taken; then it is."""
    if taken is None:
        return place
    free, number = place, 1
    while free.casefold() in taken:  # some file systems do not tell capitals from small letters
        number += 1
        free = f"{place}-{number}"
    taken.add(free.casefold())
    return free
