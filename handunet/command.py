"""The command `handunet`.

    handunet photo.jpg                      draw the hand and write its keypoints; `handunet --help` lists the options
    handunet export MODEL OUTPUT.onnx       write a model as one file that needs no torch
    handunet train ...                      in a clone: `accelerate launch train.py ...`

`handunet predict photo.jpg` is the first, too, for a photograph that is called "train" or "export".
"""

import sys
from pathlib import Path

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


def main() -> None:
    """Run the command that the first word names; without one, predict."""
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name == "export":
        export(rest)
    elif name == "train":
        train(rest)
    else:
        from handunet.predict import main as predict

        predict(rest if name == "predict" else sys.argv[1:], "handunet")


def export(arguments: list[str]) -> None:
    """Write a model as an ONNX file."""
    try:
        from handunet.export import main as run
    except ImportError as error:
        sys.exit(f"handunet export: it needs torch and ONNX ({error}): pip install 'handunet[torch,onnx]'")
    run(arguments, "handunet export")


def train(arguments: list[str]) -> None:
    """Train by the clone's own `train.py`, with `accelerate launch`."""
    if not TRAIN.is_file():
        sys.exit(
            "handunet train: training needs a clone of the project, with its recipes and its metric. In the clone, run "
            "`pip install -c constraints.txt -e '.[train]'`, then `handunet train` or `accelerate launch train.py`."
        )
    try:
        from accelerate.commands.launch import launch_command, launch_command_parser
    except ImportError as error:
        sys.exit(f"handunet train: a package is missing ({error}): pip install -c constraints.txt -e '.[train]'")
    launch_command(launch_command_parser().parse_args([str(TRAIN), *arguments]))
