"""Where the project's files are, and how a JSON file is written."""

import json
from pathlib import Path

from handunet.files import remove, written_whole

ROOT = Path(__file__).resolve().parent.parent
ENDPOINT, SPACE = ROOT / "demo" / "endpoint", ROOT / "demo" / "space"
EXAMPLES = SPACE / "examples"
DETECTOR = ROOT / "weights" / "handunet-detector"  # finds hands for every pose model that names no other
SERVING = ROOT / "demo" / "serving.py"  # goes beside the handler and beside the Space's app


def write_json(path: Path, value: dict) -> None:
    """Write a JSON file that is there only when it is whole."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


__all__ = ["DETECTOR", "ENDPOINT", "EXAMPLES", "ROOT", "SPACE", "remove", "write_json", "written_whole"]
