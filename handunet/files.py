"""How a file or a folder is written whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
