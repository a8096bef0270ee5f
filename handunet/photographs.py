"""Which photographs a command line names, what their drawings are called, and where the answers are written."""

import csv
import glob
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

SUFFIXES = frozenset(
    ".avif .bmp .gif .heic .heif .j2k .jfif .jp2 .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
URLS = ("http://", "https://", "data:")
MAX_NAME = 100  # characters of a drawing's name that come from the photograph's
FORMATS = ("json", "jsonl", "csv")


def find_photographs(words: list[str]) -> tuple[list[str], list[str]]:
    """The photographs that files, folders, patterns and URLs name, and a sentence for each word that names none.

    A folder stands for the files in it, not in its subfolders, whose names end as an image's; a pattern, such as
    `photos/**/*.jpg`, for the files that match.  A file that has a pattern's name is that file.
    """
    found, problems = [], []
    for word in words:
        path = Path(word)
        if word.startswith(URLS) or path.is_file():
            found.append(word)
        elif path.is_dir():
            files = [str(file) for file in sorted(path.iterdir()) if is_photograph(file)]
            found += files
            if not files:
                problems.append(f"The folder {shown(word)} holds no photograph; '{shown(word)}/**' searches its subfolders.")
        elif glob.has_magic(word):
            files = [file for file in sorted(glob.glob(word, recursive=True)) if is_photograph(Path(file))]
            found += files
            if not files:
                problems.append(f"No photograph matches {shown(word)}.")
        else:
            found.append(word)  # reading it says what is wrong
    return found, problems


def is_photograph(path: Path) -> bool:
    """Whether a file found in a folder is one, by its name.  Files that begin with a dot hold a system's own data."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def drawing_names(photographs: Iterable[str]) -> list[str]:
    """One file name for each photograph; photographs of the same name get a number."""
    names, taken = [], set()
    for photograph in photographs:
        if photograph.startswith("data:"):
            stem = ""
        elif photograph.startswith(URLS):
            stem = re.sub(r'[^\w .()+-]', "_", Path(unquote(urlsplit(photograph).path)).stem)
        else:
            stem = Path(photograph).stem
        stem = stem[:MAX_NAME] or "photo"
        name, number = f"{stem}.png", 1
        while name.casefold() in taken:  # some file systems do not tell capitals from small letters
            number += 1
            name = f"{stem}-{number}.png"
        taken.add(name.casefold())
        names.append(name)
    return names


def shown(text: str) -> str:
    """`text` as any terminal prints it: line breaks, control characters and undecodable bytes as escapes, shortened."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return text if len(text) <= 500 else f"{text[:480]}... ({len(text)} characters)"


class Answers:
    """A file of answers that grows by one photograph at a time and is whole after each, also if the program is killed.

    "json" is a list of `{"photo", "hands"}`, "jsonl" has such an entry in each line, and "csv" a keypoint in each line.
    """

    COLUMNS = ("photo", "hand", "label", "hand_score", "xmin", "ymin", "xmax", "ymax", "keypoint", "x", "y", "score")

    def __init__(self, folder: Path, format: str):
        self.path, self.format, self.end = folder / f"keypoints.{format}", format, 0
        # surrogateescape: a file's name is written with the bytes that it has on the disk.
        self.file = self.path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        if format == "csv":
            csv.writer(self.file, lineterminator="\n").writerow(self.COLUMNS)

    def add(self, photograph: str, hands: list[dict]) -> None:
        """Write the hands of one photograph."""
        entry = {"photo": photograph, "hands": hands}
        if self.format == "json":  # write over the list's last bracket
            self.file.seek(self.end)
            self.file.write((",\n" if self.end else "[\n") + textwrap.indent(json.dumps(entry, indent=2), "  "))
            self.end = self.file.tell()
            self.file.write("\n]\n")
        elif self.format == "jsonl":
            self.file.write(json.dumps(entry) + "\n")
        else:
            csv.writer(self.file, lineterminator="\n").writerows(self.rows(photograph, hands))
        self.file.flush()

    @staticmethod
    def rows(photograph: str, hands: list[dict]) -> Iterator[list]:
        """A row for each keypoint."""
        for index, hand in enumerate(hands):
            first = [photograph, index, hand["label"], hand["score"], *hand["box"].values()]
            for keypoint in hand["keypoints"]:
                yield [*first, *keypoint.values()]

    def close(self) -> None:
        """No more answers follow."""
        self.file.close()
