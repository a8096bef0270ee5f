"""Checkpoints that are whole or not there, and that are checked before they are believed.

A checkpoint is a folder `checkpoints/step-00001234` with Accelerate's state (weights in safetensors, optimizer, schedule,
random states), the averaged weights, the loop's own state as JSON, and `manifest.json` with the size and SHA-256 of each
file.  It is written under a temporary name, every file and folder is fsynced, and then it is renamed, so that a process
killed at any moment leaves either the whole checkpoint or a folder that no one takes for one.  `best` holds the best
weights of the run in the same way.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

MANIFEST = "manifest.json"
STATE = "state.json"
UNFINISHED = ".incomplete"
BEST = "best"


class BrokenCheckpoint(Exception):
    """A checkpoint that must not be loaded; the message says why."""


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, target: Path) -> None:
    """Write the manifest of the unfinished `folder`, bring it to disk and give it its final name `target`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1) + "\n")
    for path in [*files, folder / MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _fsync(path)
    if target.exists():  # `best`, which is replaced: the old one stays whole until the new one has its place
        old = target.with_name(target.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        folder.rename(target)
        shutil.rmtree(old)
    else:
        folder.rename(target)
    _fsync(target.parent)


def verify(folder: Path) -> None:
    """Raise [`BrokenCheckpoint`] unless every file of `folder` is there and as its manifest says."""
    try:
        entries = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise BrokenCheckpoint(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"{MANIFEST} cannot be read: {error}") from None
    if not isinstance(entries, dict) or STATE not in entries:
        raise BrokenCheckpoint(f"{MANIFEST} does not list {STATE}")
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            raise BrokenCheckpoint(f"{name} is missing")
        if path.stat().st_size != entry["size"]:
            raise BrokenCheckpoint(f"{name} has {path.stat().st_size} bytes instead of {entry['size']}")
        if sha256(path) != entry["sha256"]:
            raise BrokenCheckpoint(f"{name} has another SHA-256 than when it was written")


class Checkpoints:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def steps(self) -> list[Path]:
        """Checkpoint folders, newest first, whole or not."""
        return sorted((path for path in self.folder.glob("step-*") if not path.name.endswith(UNFINISHED)), reverse=True)

    def unfinished(self, name: str) -> Path:
        """An empty folder to write `name` into, for :meth:`finish`; what an interrupted write left is removed."""
        folder = self.folder / (name + UNFINISHED)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def finish(self, name: str, state: dict) -> None:
        """Complete the unfinished checkpoint `name` with its state and give it its name, at once and for good."""
        folder = self.folder / (name + UNFINISHED)
        (folder / STATE).write_text(json.dumps(state) + "\n")
        seal(folder, self.folder / name)

    def discard(self, name: str) -> None:
        """Remove the unfinished checkpoint `name`."""
        shutil.rmtree(self.folder / (name + UNFINISHED), ignore_errors=True)

    def prune(self) -> None:
        """Remove all but the newest `keep` checkpoints, and what interrupted writes left."""
        for path in self.steps()[self.keep :]:
            shutil.rmtree(path)
        for path in self.folder.glob(f"*{UNFINISHED}"):
            shutil.rmtree(path)

    def recover_best(self) -> None:
        """Put back the old `best` when the run died between the two renames of its replacement."""
        old = self.folder / f"{BEST}.old"
        if old.exists():
            if (self.folder / BEST).exists():
                shutil.rmtree(old)
            else:
                old.rename(self.folder / BEST)

    def newest(self, check: Callable[[Path, dict], None] = lambda path, state: None) -> tuple[Path | None, dict, list[str]]:
        """The newest checkpoint that is whole and passes `check`, its state, and why each newer one was passed over.

        `check(folder, state)` raises [`BrokenCheckpoint`] for a checkpoint that is whole but not this run's.
        """
        passed_over = []
        for folder in self.steps():
            try:
                verify(folder)
                state = json.loads((folder / STATE).read_text())
                check(folder, state)
                return folder, state, passed_over
            except BrokenCheckpoint as error:
                passed_over.append(f"{folder.name}: {error}")
        return None, {}, passed_over


__all__ = ["BEST", "MANIFEST", "STATE", "BrokenCheckpoint", "Checkpoints", "seal", "sha256", "verify"]
