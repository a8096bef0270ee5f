"""Checkpoints: each is written whole or not at all, and is checked before it is loaded.

A checkpoint is a folder like `checkpoints/step-00001234-00002-00000034`.  The numbers count what is done: steps, epochs, and
batches of the next epoch.  The folder has Accelerate's state (weights in safetensors, optimizer, random states), the averaged
weights and the best ones so far, the loop's own state as JSON, and `manifest.json` with the size and SHA-256 of each file.

A checkpoint is written under a temporary name, every file and folder is fsynced, and then it is renamed.  So a process that
is killed leaves either a whole checkpoint or a folder with a temporary name.  `best` has the best weights of the run and is
written in the same way.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

MANIFEST = "manifest.json"
STATE = "state.json"
UNFINISHED = ".incomplete"
OLD = ".old"
BROKEN = ".broken"
BEST = "best"
NAME = re.compile(r"step-(\d+)-(\d+)-(\d+)")


class BrokenCheckpoint(OSError):
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
    """Write the manifest of the unfinished `folder`, sync all of it to disk, and rename it to `target`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1) + "\n")
    for path in [*files, folder / MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _fsync(path)
    if target.exists():  # only `best` is replaced: the old one stays whole until the new one is in its place
        old = target.with_name(target.name + OLD)
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        folder.rename(target)
        shutil.rmtree(old)
    else:
        folder.rename(target)
    _fsync(target.parent)


def verify(folder: Path) -> dict:
    """The state of the checkpoint `folder`; raises [`BrokenCheckpoint`] unless its files are those of its manifest.

    Files that the manifest does not list are refused, because loading might read them.
    """
    entries = _read_object(folder, MANIFEST)
    if STATE not in entries:
        raise BrokenCheckpoint(f"{MANIFEST} does not list {STATE}")
    for name, entry in entries.items():
        path = folder / name
        if not isinstance(entry, dict) or not {"size", "sha256"} <= entry.keys():
            raise BrokenCheckpoint(f"{MANIFEST} gives no size and SHA-256 for {name}")
        if not path.is_file():
            raise BrokenCheckpoint(f"{name} is missing")
        if path.stat().st_size != entry["size"]:
            raise BrokenCheckpoint(f"{name} has {path.stat().st_size} bytes instead of {entry['size']}")
        try:
            digest = sha256(path)
        except OSError as error:
            raise BrokenCheckpoint(f"{name} cannot be read: {error}") from None
        if digest != entry["sha256"]:
            raise BrokenCheckpoint(f"{name} has another SHA-256 than when it was written")
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    if more := sorted(present - entries.keys() - {MANIFEST}):
        raise BrokenCheckpoint(f"{MANIFEST} does not list {more[0]}, which is there")
    return _read_object(folder, STATE)


def _read_object(folder: Path, name: str) -> dict:
    try:
        value = json.loads((folder / name).read_text())
    except FileNotFoundError:
        raise BrokenCheckpoint(f"{name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"{name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise BrokenCheckpoint(f"{name} is not a JSON object")
    return value


class Checkpoints:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def steps(self) -> list[Path]:
        """Checkpoint folders, newest first, whole or not."""
        matches = [NAME.fullmatch(path.name) for path in self.folder.glob("step-*")]
        matches = sorted(filter(None, matches), key=lambda match: [int(part) for part in match.groups()], reverse=True)
        return [self.folder / match.string for match in matches]

    def unfinished(self, name: str) -> Path:
        """An empty folder to write the checkpoint `name` into, until [`finish`].  What an interrupted write left is removed."""
        folder = self.folder / (name + UNFINISHED)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def finish(self, name: str, state: dict) -> None:
        """Write the `state` of the unfinished checkpoint `name`, and rename its folder to `name`."""
        folder = self.folder / (name + UNFINISHED)
        (folder / STATE).write_text(json.dumps(state) + "\n")
        seal(folder, self.folder / name)

    def discard(self, name: str) -> None:
        """Remove the unfinished checkpoint `name`."""
        shutil.rmtree(self.folder / (name + UNFINISHED), ignore_errors=True)

    def prune(self) -> None:
        """Remove all but the newest `keep` checkpoints, and what interrupted writes left."""
        for path in [*self.steps()[self.keep :], *self.folder.glob(f"*{UNFINISHED}"), *self.folder.glob(f"*{OLD}")]:
            shutil.rmtree(path)

    def set_aside(self, names: Iterable[str]) -> None:
        """Rename checkpoints that were passed over.  They no longer count as checkpoints, and are not deleted."""
        for name in names:
            shutil.rmtree(self.folder / (name + BROKEN), ignore_errors=True)
            (self.folder / name).rename(self.folder / (name + BROKEN))

    def newest(self, check: Callable[[dict], None] = lambda state: None) -> tuple[Path | None, dict, dict[str, str]]:
        """The newest checkpoint that is whole and passes `check`, its state, and why each newer one was passed over.

        `check(state)` raises [`BrokenCheckpoint`] for a checkpoint that is whole but not this run's.
        """
        passed_over = {}
        for folder in self.steps():
            try:
                state = verify(folder)
                check(state)
                return folder, state, passed_over
            except BrokenCheckpoint as error:
                passed_over[folder.name] = str(error)
        return None, {}, passed_over


__all__ = ["BEST", "MANIFEST", "STATE", "BrokenCheckpoint", "Checkpoints", "seal", "sha256", "verify"]
