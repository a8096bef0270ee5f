"""How time and memory grow with the batch, the dataset and the processes.

Each function returns points [size, value] by label.  `measure(names)` lets ways take turns.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT

BATCHES = (1, 4, 16, 64)
DATASETS = (8_000, 32_560, 130_240)  # the last two are FreiHAND's, without and with its background versions
LABELS = {
    "batch": ("batch", "s a hand"),
    "dataset": ("images", "s, an epoch of samples"),
    "processes": ("processes", "images/s"),
}


def batch(measure, folder: Path, threads: int) -> dict[str, list]:
    """Seconds a hand of the network alone, by the size of the batch."""
    points = {how: [] for how in ("reference", "float32", "onnxruntime", "bf16")}
    for size in BATCHES:
        figures = measure([f"network:{how}:{size}" for how in points])
        for how, values in points.items():
            values.append([size, figures[f"network:{how}:{size}"]["times"][1]])
    return points


def dataset(measure, folder: Path, threads: int) -> dict[str, list]:
    """Seconds of all samples, and MB of memory that are no file's, by the number of images in the crops' cache."""
    figures = [measure([f"samples:later:{count}"])[f"samples:later:{count}"] for count in DATASETS]
    seconds = [[count, figure["times"][1] * count] for count, figure in zip(DATASETS, figures)]
    return {"seconds": seconds, "mb": [[count, figure["own_mb"]] for count, figure in zip(DATASETS, figures)]}


def processes(measure, folder: Path, threads: int) -> dict[str, list]:
    """Images a second that `train.py` trains, by its processes, which share the cores; always on the wall."""
    points = []
    for count in (1, 2):
        with tempfile.TemporaryDirectory(dir=folder) as output:
            command = f"-W ignore -m accelerate.commands.launch --num_processes {count} --num_machines 1 --mixed_precision no "
            command += f"--dynamo_backend no {'--multi_gpu' if count > 1 else '--cpu'} train.py --train_samples 192 "
            command += f"--validation_samples 16 --test_samples 16 --epochs 1 --batch_size {48 // count}"
            each = str(max(1, threads // count))
            environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": each, "PYTHONPATH": str(ROOT)}
            result = subprocess.run(
                [sys.executable, *command.split(), "--output_dir", f"{output}/run", "--cache_dir", folder / "cache"],
                cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            points.append([count, float(result.stdout.split(" images/s")[0].split()[-1])])
    return {"images_per_s": points}


def draw(curve: dict[str, list], name: str, path: Path) -> None:
    """Plot the points into a small picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    for label, points in curve.items():
        x, y = zip(*points)
        if label == "mb":
            other = axes.twinx()
            other.plot(x, y, "s--", color="tab:orange")
            other.set(ylim=(0, 1.5 * max(y)), ylabel="MB of memory (dashed)")
        else:
            axes.plot(x, y, "o-", label=label)
    axes.set(xlabel=LABELS[name][0], ylabel=LABELS[name][1], ylim=(0, 1.1 * axes.dataLim.y1))
    if name == "batch":
        axes.set_xscale("log", base=2)
        axes.legend()
    if name != "dataset":
        axes.set_xticks(x, list(map(str, x)))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
