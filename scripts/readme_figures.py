"""Write the README's figures from the weights that they are about, or check that they still are theirs.

    python -m scripts.readme_figures            # rewrite README.md
    python -m scripts.readme_figures --check    # only say which figures are not the weights', and end with an error then
    python -m scripts.readme_figures --measure ../shared/tools/score_hands.py ../shared/data/coco_hands

Figures on photographs that nothing was trained on stand in each `weights/*/metrics.json` as `photographs`; --measure scores
the pose models anew and writes them there.  A row of a table that links `weights/NAME` gets its cells by the heads of the
columns; cells of other columns and rows stay.  What else the README counts is in [`SENTENCES`].
"""

import argparse
import functools
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from handunet import export
from modeling_handunet import HandUNetForPoseEstimation, HandUNetImageProcessor
from modeling_handunet.keypoints import NO_CLEAR_HAND
from release.files import ROOT
from release.saving import is_detector

WEIGHTS = ROOT / "weights"


@functools.cache
def load(folder: Path) -> PreTrainedModel:
    """The model in a folder of weights."""
    return export.load(folder)[0].eval()


def read_metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def gflop(folder: Path) -> float:
    """10^9 multiplications and additions, of one crop or one photograph."""
    model = load(folder)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.zeros(1, 3, model.config.image_size, model.config.image_size))
    return flops.get_total_flops() / 1e9


def on_photographs(key: str) -> Callable[[Path], str]:
    return lambda folder: f"{read_metrics(folder)['photographs'][key]:.3f}"


# The head of a column, and what a folder of weights has there.
COLUMNS = {
    "parameters": lambda folder: f"{load(folder).num_parameters():,}",
    "MB": lambda folder: f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f}",
    "GFLOP": lambda folder: f"{gflop(folder):.2f}",
    "GFLOP a hand": lambda folder: f"{gflop(folder):.2f}",
    "error / box": on_photographs("error_over_box"),
    "PCK@0.1": on_photographs("pck@0.1"),
    "PCK@0.2": on_photographs("pck@0.2"),
    "AP@0.4": on_photographs("ap@0.4"),
    "recall at 0.1 false": on_photographs("recall@0.1_false"),
    "side right": on_photographs("side_accuracy"),
}


def labelled_photographs() -> str:
    """How many photographs of real hands `handunet-base` was trained on."""
    report = json.loads((WEIGHTS / "handunet-base" / "report.json").read_text())
    return re.search(r"([\d,]+) photographs of hands, labelled", report["source"]["data"])[1]


def judged_photographs(key: str) -> Callable[[], str]:
    return lambda: str(read_metrics(WEIGHTS / "handunet-base")["photographs"][key])


# Where the README counts something, with a group for each count, and what the counts are.  Lines may break at spaces.
SENTENCES = (
    (r"and on ([\d,]+) photographs of real hands with free terms", [labelled_photographs]),
    (
        r"errors on (\d+) photographs of real hands from (\d+) sources",
        [judged_photographs("hands"), judged_photographs("sources")],
    ),
    (r"An answer with a score below ([\d.]+) is no clear hand", [lambda: f"{NO_CLEAR_HAND:g}"]),
)  # fmt: skip


def with_figures(page: str) -> str:
    """A page's text with the weights' figures.  Raises `ValueError` for a sentence that the page does not have."""
    lines, heads = page.splitlines(keepends=True), []
    for number, line in enumerate(lines):
        cells = line.split("|")
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = [cell.strip() for cell in cells]
        elif name := re.search(r"\]\(weights/([\w-]+)/", line):
            for place, head in enumerate(heads):
                if head in COLUMNS:
                    cells[place] = f" {COLUMNS[head](WEIGHTS / name[1])} "
            lines[number] = "|".join(cells)
    page = "".join(lines)
    for sentence, values in SENTENCES:
        found = re.search(sentence.replace(" ", r"\s"), page)
        if not found:
            raise ValueError(f"The page has no sentence like {sentence!r}: change it in scripts/readme_figures.py, too.")
        for group in range(len(values), 0, -1):
            page = page[: found.start(group)] + values[group - 1]() + page[found.end(group) :]
    return page


def differences(page: str) -> list[str]:
    """The lines of a page that the weights' figures would change."""
    return [
        f"- {old}\n+ {new}" for old, new in zip(page.splitlines(), with_figures(page).splitlines()) if old != new
    ]  # fmt: skip


def measure(folder: Path, tool: Path, data: Path) -> dict:
    """The figures of a pose model on photographs by the protocol of `tool`, a mean over their sources."""
    spec = importlib.util.spec_from_file_location("score_hands", tool)
    protocol = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(protocol)
    model, processor = HandUNetForPoseEstimation.from_pretrained(folder).eval(), HandUNetImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def predict(images) -> np.ndarray:
        outputs = model(**processor(images))
        poses = processor.post_process_pose_estimation(outputs, target_sizes=[image.size[::-1] for image in images])
        return np.stack([hand["keypoints"].numpy() for (hand,) in poses])

    rows = protocol.score(data, predict)
    mean = rows.pop("mean over sources")
    return {"hands": round(sum(row["hands"] for row in rows.values())), "sources": len(rows), **mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--measure", nargs=2, type=Path, metavar=("TOOL", "DATA"), help="score pose models first")
    args = parser.parse_args()
    if args.measure:
        for folder in sorted(path.parent for path in WEIGHTS.glob("*/metrics.json") if not is_detector(path.parent)):
            metrics = read_metrics(folder) | {"photographs": measure(folder, *args.measure)}
            (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    page = ROOT / "README.md"
    found = differences(page.read_text())
    if args.check and found:
        sys.exit("README.md has other figures than the weights:\n" + "\n".join(found))
    if found:
        page.write_text(with_figures(page.read_text()))
        print("\n".join(found))


if __name__ == "__main__":
    main()
