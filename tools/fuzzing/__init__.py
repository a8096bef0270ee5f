"""How `tools.fuzz` makes its inputs, and what reads them."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Failure(Exception):
    """Something that must not happen."""


@dataclasses.dataclass
class Kind:
    """How one kind of input is made in a folder, and what reads it."""

    make: Callable[[random.Random, Path], object]
    use: Callable[[object, Path], None]
    errors: tuple[type[Exception], ...] = (ValueError, OSError)
    names_folder: bool = False  # whether every error must name a file of the folder
    prepare: Callable[[], object] = lambda: None  # runs once, before the processes that run the cases begin
    may_start: bool = False  # whether it starts programs of its own
