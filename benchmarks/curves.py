"""How time and memory grow with the batch, the processes and the dataset; each with a plot."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, take_turns

BATCHES = (1, 4, 16, 64)
DATASETS = (8_000, 32_560, 130_240)  # the last two are FreiHAND's, without and with its background versions


def batch(folder: Path, threads: int, clock: str, bf16: bool) -> dict[str, list]:
    """Seconds a hand of the network alone, by the size of the batch."""
    names = {"reference": "reference.network:{}", "float32": "ours.network:{}:0", "onnxruntime": "ours.network_onnx:{}"}
    if bf16:
        names["bf16"] = "ours.network:{}:1"
    points = {name: [] for name in names}
    for size in BATCHES:
        ways = [name.format(size) for name in names.values()]
        figures = take_turns(ways, threads=threads, folder=folder, seconds=2, at_least=2)
        for name, way in names.items():
            points[name].append([size, figures[way.format(size)][clock][1]])
    return points


def dataset(folder: Path, threads: int, clock: str, bf16: bool) -> dict[str, list]:
    """Seconds of all samples and MB of memory that are not the crops' file, by the number of images in its cache."""
    points = {"seconds": [], "mb": []}
    for count in DATASETS:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            for name in ("freihand", "model"):
                (Path(temporary) / name).symlink_to((folder / name).resolve())
            way = f"ours.later_samples:{count}"
            figure = take_turns([way], threads=threads, folder=Path(temporary), seconds=0, at_least=2)[way]
        points["seconds"].append([count, figure[clock][1] * count])
        points["mb"].append([count, figure["own_mb"]])
    return points


def processes(folder: Path, threads: int, clock: str, bf16: bool) -> dict[str, list]:
    """Images a second that `train.py` trains, by its processes, which share the cores; always on the wall."""
    points = {"images_per_s": []}
    for count in (1, 2):
        with tempfile.TemporaryDirectory(dir=folder) as output:
            command = [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch", "--num_processes", str(count)]
            command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
            command += ["--multi_gpu"] if count > 1 else ["--cpu"]
            command += [str(ROOT / "train.py"), "--output_dir", f"{output}/run", "--cache_dir", str(folder / "cache")]
            command += "--train_samples 192 --validation_samples 16 --test_samples 16 --epochs 1 --batch_size".split()
            command += [str(48 // count)]
            each = str(max(1, threads // count))
            environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": each, "PYTHONPATH": str(ROOT)}
            result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"train.py with {count} processes: {result.stderr[-2000:]}")
            line = next(line for line in result.stdout.splitlines() if "images/s" in line)
            points["images_per_s"].append([count, float(line.split(" images/s")[0].split()[-1])])
    return points


LABELS = {
    "batch": ("batch", "ms a hand", 1e3),
    "dataset": ("images", "s, an epoch of samples", 1.0),
    "processes": ("processes", "images/s, training", 1.0),
}


def draw(curve: dict, name: str, path: Path) -> None:
    """Plot a curve of `measure`'s kind into a small picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    across, up, unit = LABELS[name]
    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    for label, points in curve["points"].items():
        x, y = zip(*points)
        if label == "mb":
            other = axes.twinx()
            other.plot(x, y, "s--", color="tab:orange")
            other.set_ylim(0, 1.5 * max(y))
            other.set_ylabel("MB of memory (dashed)")
        else:
            axes.plot(x, [unit * value for value in y], "o-", label=label)
    axes.set(xlabel=across, ylabel=up, ylim=(0, 1.1 * axes.dataLim.y1))
    if name == "processes":
        axes.set_xticks([count for count, _ in curve["points"]["images_per_s"]])
    if name == "batch":
        axes.set_xscale("log", base=2)
        axes.set_xticks(BATCHES, list(map(str, BATCHES)))
    if len(curve["points"]) > 2:
        axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
