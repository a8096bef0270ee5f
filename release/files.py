"""Where the project's files are, and how a file or a folder is written whole or not at all."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENDPOINT, SPACE = ROOT / "demo" / "endpoint", ROOT / "demo" / "space"
EXAMPLES = SPACE / "examples"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder, which gets the name `path` when the block ends.

    An existing file or folder of that name is replaced.  If the block raises an error, nothing changes.  What a killed
    process left behind is removed the next time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial.{path.name}")  # with the file's suffix, by which some libraries choose a format
    remove(partial)
    try:
        yield partial
        if partial.is_dir():
            remove(path)  # a folder with files cannot be replaced by renaming
        partial.replace(path)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    """Write a JSON file that is there only when it is whole."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")
