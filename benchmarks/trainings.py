"""What the comparisons of whole trainings share."""

import json
import sys
from pathlib import Path


def kept_options(folder: Path, options: list[str]) -> list[str]:
    """The options of all trainings in `folder`: those given, or, where none are, those it was begun with.

    Ends the program when they are not those that it was begun with, so that only like is compared with like.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "options.json"
    begun_with = json.loads(file.read_text()) if file.exists() else None
    if begun_with is not None and options and options != begun_with:
        sys.exit(f"{folder} was begun with the options {' '.join(begun_with) or '(none)'}: give these, or another --folder.")
    options = options or begun_with or []
    file.write_text(json.dumps(options) + "\n")
    return options
