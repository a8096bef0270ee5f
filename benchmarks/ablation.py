"""What each choice of the training is worth: one change a row, every row on the same number of samples.

    python -m benchmarks.ablation --folder outputs/ablation -- --hand_mesh right.glb --cutouts cutouts --photos photos
    python -m benchmarks.ablation --folder outputs/ablation --rows base squared_error    # only these
    python -m benchmarks.ablation --folder outputs/ablation --print            # the table of what is done

Options after `--` go to train.py in every row, and are kept in the folder; rows about those not given are left out.  Each
row is a training of its own from random weights, scored on the validation scenes of `base`: drawn hands and held-out
cut-outs.  A run that was stopped goes on where it was.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks.trainings import kept_options
from modeling_handunet import HandUNetForPoseEstimation
from modeling_handunet.heatmaps import DECODING_METHODS, decode_heatmaps
from modeling_handunet.losses import HeatmapLoss

ROOT = Path(__file__).resolve().parents[1]
# A small crop with the hand nearly as large in it as in one of 128 px, for many samples in little time.
BASE = (
    "--difficulty scenes --image_size 64 --box_fill 0.8 --train_samples 10000 --epochs 2 --batch_size 16 --learning_rate 2e-3 "
    "--negatives 0 --cutouts_share 0.35 --validation_samples 200 --test_samples 200"
).split()
FIGURES = ("mean_error_over_box", "pck@0.1", "pck@0.2")


class WithSquaredError(HeatmapLoss):
    """The IoU loss and the squared error of the heatmap, over the energy of one keypoint's Gaussian."""

    def per_heatmap(self, heatmaps: Tensor, targets: Tensor) -> Tensor:
        error = (heatmaps.float() - targets).square().sum((2, 3)) / self.energy
        return super().per_heatmap(heatmaps, targets) + error


class WithCoordinates(HeatmapLoss):
    """The IoU loss and the distance between the centres of mass of heatmap and target, in tenths of the side."""

    def per_heatmap(self, heatmaps: Tensor, targets: Tensor) -> Tensor:
        distance = (centre_of_mass(heatmaps.float()) - centre_of_mass(targets)).norm(dim=-1)
        return super().per_heatmap(heatmaps, targets) + 10 * distance / heatmaps.shape[-1]


def centre_of_mass(heatmaps: Tensor) -> Tensor:
    """(B, N, 2) px, x then y, of heatmaps (B, N, S, S)."""
    return decode_heatmaps(heatmaps, "mean")[0]


LOSSES = {"squared_error": WithSquaredError, "coordinates": WithCoordinates}
PLAIN_SCENES = {"any_angle": 0.0, "rotation": 0.0, "scale": 0.0, "shift": 0.0}


@dataclass(frozen=True)
class Row:
    """One change to the base: options of train.py, another loss, or scenes that turn and scale no hand."""

    what: str
    options: str = ""
    loss: str | None = None
    plain_scenes: bool = False
    without: tuple[str, ...] = ()  # options after `--` that it does not get
    needs: tuple[str, ...] = ()  # options after `--` for which alone it makes a difference
    seeds: tuple[int, ...] = (0,)


ROWS = {
    "base": Row("base: learning rate 2e-3, cosine, batch 16, EMA 0.998, 35 % cut-outs, IoU loss, 16-32-64-128", seeds=(0, 1, 2)),
    "squared_error": Row("squared error beside the IoU loss", loss="squared_error", seeds=(0, 1, 2)),
    "coordinates": Row("centre-of-mass distance beside the IoU loss", loss="coordinates"),
    "quantized": Row("targets centred on the pixel", "--targets quantized", seeds=(0, 1, 2)),
    "lr_1e-3": Row("learning rate 1e-3", "--learning_rate 1e-3"),
    "lr_4e-3": Row("learning rate 4e-3", "--learning_rate 4e-3"),
    "batch_8": Row("batch 8", "--batch_size 8"),
    "batch_32": Row("batch 32", "--batch_size 32"),
    "constant": Row("constant learning rate without warm-up", "--schedule plateau"),  # too few epochs for a plateau
    "no_ema": Row("no averaged weights", "--ema_decay 0"),
    "cutouts_0": Row("no cut-outs", "--cutouts_share 0", needs=("--cutouts",)),
    "cutouts_70": Row("70 % cut-outs", "--cutouts_share 0.7", needs=("--cutouts",)),
    "one_body": Row("no second body", without=("--hand_mesh",)),
    "no_photos": Row("no photographs behind the hands", without=("--photos",)),
    "plain_scenes": Row("hands not turned, scaled or shifted", plain_scenes=True),
    "negatives": Row("10 % negatives from the start", "--negatives 0.1"),
    "deeper": Row("a fifth level: 16-32-64-128-256", "--hidden_sizes 16 32 64 128 256"),
    "wider": Row("wider: 24-48-96-192", "--hidden_sizes 24 48 96 192"),
    "shallower": Row("three levels: 16-32-64", "--hidden_sizes 16 32 64"),
}


def train(row: Row, seed: int, output: Path, options: list[str]) -> None:
    """Run train.py in this process with what the row changes; the drawn hands are those of seed 0 in every row."""
    import train as program
    from training import data

    if row.loss:
        HandUNetForPoseEstimation.loss_class = LOSSES[row.loss]
    make_scenes = data.Scenes
    if row.plain_scenes:
        data.Scenes = lambda *args, **more: make_scenes(*args, **{**PLAIN_SCENES, **more})
    load = data.load_splits
    program.load_splits = lambda args, *more: load(dataclasses.replace(args, seed=0), *more)
    sys.argv = ["train.py", *BASE, *options_of(row, options), "--seed", str(seed), "--output_dir", str(output)]
    if output.exists():
        sys.argv.append("--resume")
    program.main()


def options_of(row: Row, options: list[str]) -> list[str]:
    """The common options but those that the row goes without, then its own."""
    kept, skip = [], False
    for option in options:
        if option.startswith("--"):
            skip = option in row.without
        if not skip:
            kept.append(option)
    return kept + row.options.split()


def evaluate(models: dict[str, Path], options: list[str]) -> dict[str, dict]:
    """Figures of each model on the validation scenes of the base, by decoding and by source of the hands."""
    from accelerate import Accelerator

    from training.arguments import parse_arguments
    from training.data import load_splits
    from training.evaluation import load_metric, predict, score, score_by_group
    from training.run import make_loader

    args = parse_arguments([*BASE, *options])
    splits, accelerator, metric = load_splits(args), Accelerator(), load_metric()
    kinds = splits.test_groups  # of the validation scenes as well, which are as many of each source
    results = {}
    for name, folder in models.items():
        model = accelerator.prepare(HandUNetForPoseEstimation.from_pretrained(folder))
        loader = accelerator.prepare(make_loader(splits.validation, args))
        figures = {}
        for decoding in DECODING_METHODS:
            arrays = predict(accelerator, model, loader, sigma=args.sigma, quantize=False, decoding=decoding)
            whole = score(metric, arrays, args.image_size)
            figures[decoding] = {key: whole[key] for key in FIGURES}
            if kinds:
                parts = score_by_group(metric, arrays, kinds, args.image_size)
                figures[decoding]["by_source"] = {part: {key: value[key] for key in FIGURES} for part, value in parts.items()}
        results[name] = figures
    return results


def table(results: dict[str, dict]) -> str:
    """A row of Markdown for each change, the mean over its seeds; the decodings of the base's models at the end."""
    lines = ["| | seeds | error / box | PCK@0.1 | on drawn hands | on cut-outs |", "|---|---|---|---|---|---|"]

    def mean(figures: list[dict], key: str) -> str:
        return f"{statistics.mean(figure[key] for figure in figures):.3f}"

    def line(what: str, runs: list[dict]) -> str:
        errors = [run["mean_error_over_box"] for run in runs]
        spread = f" ({min(errors):.3f}-{max(errors):.3f})" if len(errors) > 1 else ""
        cells = [what, str(len(runs)), mean(runs, "mean_error_over_box") + spread, mean(runs, "pck@0.1")]
        for source in ("drawn", "cut-outs"):
            parts = [run["by_source"][source] for run in runs if source in run.get("by_source", {})]
            cells.append(mean(parts, "mean_error_over_box") if parts else "")
        return f"| {' | '.join(cells)} |"

    for name, row in ROWS.items():
        runs = [results[run] for run in results if run.rpartition("-")[0] == name]
        if runs:
            lines.append(line(row.what, [run["local"] for run in runs]))
    base = [results[run] for run in results if run.rpartition("-")[0] == "base"]
    for decoding in DECODING_METHODS:
        if base and decoding != "local":
            lines.append(line(f"the base's heatmaps read by `{decoding}`", [run[decoding] for run in base]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="holds the trainings; those that are done are read")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, help="at most so many of each row")
    parser.add_argument("--print", action="store_true", help="only the table of what is done")
    parser.add_argument("--train", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", help="further options of train.py, after --")
    args = parser.parse_args()
    if args.train:
        name, seed = args.train
        train(ROWS[name], int(seed), args.folder / f"{name}-{seed}", args.options)
        return
    args.options = kept_options(args.folder, args.options)
    file = args.folder / "ablation.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    rows = [name for name in args.rows if {*ROWS[name].needs, *ROWS[name].without} <= set(args.options)]
    wanted = [(name, seed) for name in rows for seed in ROWS[name].seeds[: args.seeds]]
    for name, seed in () if args.print else wanted:
        output = args.folder / f"{name}-{seed}"
        if not (output / "metrics.json").exists():
            command = [sys.executable, "-m", "benchmarks.ablation", "--folder", str(args.folder), "--train", name, str(seed)]
            with open(args.folder / f"{output.name}.log", "a") as log:
                subprocess.run([*command, "--", *args.options], cwd=ROOT, stdout=log, stderr=log, check=True)
            print(f"{output.name} is trained.", flush=True)
    trained = {f"{name}-{seed}": args.folder / f"{name}-{seed}" / "model" for name, row in ROWS.items() for seed in row.seeds}
    new = {name: folder for name, folder in trained.items() if name not in results and folder.exists()}
    if new and not args.print:
        results |= evaluate(new, args.options)
        file.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
