"""Times one way of doing something, lets several ways take turns, and puts what they took into the table.

    python -m benchmarks.measure predict:bf16:32 FOLDER 2 wall

times what `ways.predict(FOLDER, "bf16", 32)` returns for two seconds and prints JSON.  Each turn is a process of its own, so
that no way's settings, memory or threads touch another's.  The ways take turns, so that noise touches all alike.

Only the standard library is imported at the top, because MediaPipe's environment runs this file and has no torch.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MEDIAPIPE = "mediapipe"  # the way of this name is what a user would pick instead


def processor_seconds() -> float:
    """Processor time of this process and of its children that have ended, over all cores."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# `wall` is what a user waits.  `processor` can be compared on a machine that has other work, too.
CLOCKS = {"wall": time.perf_counter, "processor": processor_seconds}


def take_turns(names: Sequence[str], folder: Path, *, threads: int, seconds: float, turns: int, clock: str) -> dict[str, dict]:
    """Each way's `times` (quartiles, seconds an item), `peak_mb` of resident memory and `own_mb`, which is no file's; or why
    it `failed`."""
    from dataset_script.teachers import mediapipe_python

    answers, failed = {name: [] for name in names}, {}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    for _ in range(turns):
        for name in [name for name in names if name not in failed]:
            try:
                python = mediapipe_python(folder / "mediapipe") if name == MEDIAPIPE else sys.executable
                command = [python, "-W", "ignore", "-m", "benchmarks.measure", name, folder, str(seconds), clock]
                result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                answers[name].append(json.loads(result.stdout.splitlines()[-1]))
            except (OSError, subprocess.SubprocessError) as error:
                reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
                failed[name] = {"failed": f"{name}: {reason}"}
    return {name: failed.get(name) or summary(answer) for name, answer in answers.items()}


def summary(turns: list[dict]) -> dict:
    """Lower quartile, median and upper quartile over the blocks of all turns, and the most memory that any turn took."""
    times = [value for turn in turns for value in turn["times"]]
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"times": quartiles, **{name: max(turn[name] for turn in turns) for name in ("peak_mb", "own_mb")}}


def mediapipe_times(folder: Path, seconds: float, clock: Callable[[], float]) -> list[float]:
    """Of the whole call on a decoded image, its own detection of the hand included."""
    import mediapipe
    import numpy as np
    from PIL import Image

    image = np.asarray(Image.open(min((folder / "freihand" / "training" / "rgb").glob("*.jpg"))).convert("RGB"))
    hands = mediapipe.solutions.hands.Hands(static_image_mode=True, max_num_hands=1)
    timer = timeit.Timer(lambda: hands.process(image), timer=clock)
    return timer.repeat(1 + round(seconds / timer.timeit(2) * 2), number=1)


def way_times(name: str, folder: Path, seconds: float, clock: Callable[[], float]) -> list[float]:
    from torch import get_num_threads
    from torch.utils.benchmark import Timer

    from benchmarks import ways

    function, how, *count = name.split(":")
    act, items = getattr(ways, function)(folder, how, *map(int, count))
    timer = Timer("act()", globals={"act": act}, timer=clock, num_threads=get_num_threads())
    return [time / items for time in timer.blocked_autorange(min_run_time=seconds).times]


def memory_mb(what: str) -> float:
    """`VmHWM`, the most memory that was resident, or `RssAnon`, memory that is no file's; NaN except on Linux."""
    status = Path("/proc/self/status")  # getrusage would give the peak of the parent process, if that was larger
    return int(status.read_text().split(f"{what}:")[1].split()[0]) / 1024 if status.exists() else float("nan")


def describe_machine(threads: int) -> dict:
    """Processor, memory and versions, and the measured rates of multiplying matrices and of copying."""
    import torch
    from torch.utils.benchmark import Timer

    def rate(statement: str, items: float, **tensors: torch.Tensor) -> float:
        measured = Timer(statement, globals=tensors, num_threads=threads).blocked_autorange(min_run_time=1)
        return round(items / min(measured.times) / 1e9, 1)

    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    values = {name.strip(): value for name, _, value in (line.partition(": ") for line in information.splitlines())}
    bf16 = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in values.get("flags", "").split()]
    a, source = torch.randn(1024, 1024), torch.ones(2**26)  # 256 MiB, far beyond the caches
    return {
        "processor": " ".join([values.get("model name", platform.processor()), *bf16]),
        "cores": os.cpu_count(),
        "cores_used": len(os.sched_getaffinity(0)),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "matmul_float32_gflops": rate("a @ a", 2 * 1024**3, a=a),
        "matmul_bf16_gflops": rate("a @ a", 2 * 1024**3, a=a.bfloat16()),
        "copy_gb_per_s": rate("target.copy_(source)", 2 * source.nbytes, source=source, target=source.clone()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


# Images a second that one H200 is to reach; see benchmarks/gpu.py.
GPU_TARGETS = {"training with augmentation": 20_000, "inference": 80_000}


@dataclass(frozen=True)
class Row:
    """One line of the table; all ways of the rows of a `group` take turns with each other.

    The figure is the time of `against` over that of `ours`, if there is `against`; otherwise the time of `ours` in seconds,
    or its peak memory in MB.  `beside` are further ways that stand under the line without a target.
    """

    name: str
    group: str
    what: str
    ours: str
    against: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    beside: tuple[str, ...] = ()
    memory: bool = False
    clock: str | None = None  # whatever the table's is


def rows(bf16: bool) -> list[Row]:
    """All rows, in the order of the table; ours use bf16 if the processor is fast at it, with float32 beside it."""
    fast, slow = ("bf16", "float32") if bf16 else ("float32", "bf16")
    one, other, onnx, decoding = f"predict:{fast}:1", f"predict:{slow}:1", "predict:onnxruntime:1", "decoding:channels_last"
    epoch, step, plain_step, plain_samples = f"epoch:{fast}", f"step:{fast}", "step:reference", "samples:reference"
    batch = (f"predict:{slow}:32", "predict:onnxruntime:32")
    return [
        Row("heatmaps", "heatmaps", "heatmap targets, a sample", "heatmaps:ours", "heatmaps:reference", 50),
        Row("first_samples", "samples", "samples served, first epoch", "samples:first", plain_samples, 4, clock="processor"),
        Row("later_samples", "samples", "samples served, later epochs", "samples:later", plain_samples, 15, clock="processor"),
        Row("epoch", "training", "training epoch with its data", epoch, "epoch:reference", 3.5, beside=(f"epoch:{slow}",)),
        Row("epoch_over_step", "training", "that epoch's rate over the bare step's", epoch, step, 0.9),
        Row("step", "training", "bare training step", step, plain_step, beside=(f"step:{slow}",)),
        Row("plain_loop", "training", "the reference's step, a plain loop's", plain_step, "step:bare", 0.9),
        Row("one_hand", "one_hand", "one hand, jpg to keypoints", one, "predict:reference:1", 2, beside=(other, onnx)),
        Row("one_hand_mediapipe", "one_hand", "one hand, MediaPipe Hands", one, MEDIAPIPE, 3, beside=(other, onnx)),
        Row("batch_32", "batch", "32 hands, jpg to keypoints", f"predict:{fast}:32", "predict:reference:32", 2.5, beside=batch),
        Row("decoding", "decoding", "decoding (local), a hand", f"{decoding}:32", at_most=0.15e-3,
            beside=("decoding:contiguous:32", f"{decoding}:1")),
        Row("memory_predict", "one_hand", "peak memory of prediction", other, at_most=700, beside=(one, onnx), memory=True),
        Row("memory_train", "training", "peak memory of training, batch 48", epoch, at_most=3000, memory=True),
        Row("start", "start", "import to first prediction", "start:torch", at_most=5.0),
        Row("start_onnx", "start", "the same, onnxruntime", "start:onnx", at_most=1.0),
    ]  # fmt: skip


def verdict(row: Row, figures: dict[str, dict], clock: str) -> dict:
    """What the row's ways came to: a line for `ours` and for each of `beside`, and whether the target is reached."""
    result = {"what": row.what, "clock": clock, "at_least": row.at_least, "at_most": row.at_most, "memory": row.memory}
    failed = [figures[name]["failed"] for name in (row.ours, row.against) if name and "failed" in figures[name]]
    if failed:
        return {**result, "lines": [], "verdict": f"not measured: {'; '.join(failed)}"}
    lines = []
    for name in (row.ours, *row.beside):
        if "failed" in figures[name]:
            continue
        line = {"ours": name, "times": figures[name]["times"], "peak_mb": figures[name]["peak_mb"]}
        value = line["peak_mb"] if row.memory else line["times"][1]
        if row.against:
            line |= {"against": row.against, "its_times": figures[row.against]["times"]}
            value = line["its_times"][1] / value
        lines.append({**line, "value": value})
    value, low, high = lines[0]["value"], row.at_least or 0, row.at_most or float("inf")
    targeted = row.at_least is not None or row.at_most is not None
    return {**result, "lines": lines, "verdict": ("reached" if low <= value <= high else "missed") if targeted else ""}


def duration(seconds: float) -> str:
    """With three digits and a unit."""
    size, unit = next(((size, unit) for size, unit in ((1.0, "s"), (1e-3, "ms")) if seconds >= size), (1e-6, "us"))
    return f"{seconds / size:.3g} {unit}"


def table(results: dict) -> str:
    """The rows that were measured, as Markdown; times are a median and its quartiles."""
    lines = ["| what | ours | against | figure | target | |", "|---|---|---|---|---|---|"]

    def cell(name: str, times: list[float] | None) -> str:
        return f"`{name}`" + (" {1} ({0} - {2})".format(*map(duration, times)) if times else "")

    for row in results["rows"].values():
        show = (lambda value: f"{value:.0f} MB") if row["memory"] else duration
        target = f"{row['at_least']:g} x" if row["at_least"] else show(row["at_most"]) if row["at_most"] else ""
        labels = (row["what"], target, row["verdict"])
        for line in row["lines"] or [None]:
            ours = against = figure = ""
            if line:
                ours = cell(line["ours"], None if row["memory"] else line["times"])
                against = cell(line["against"], line["its_times"]) if "against" in line else ""
                figure = f"{line['value']:.3g} x" if against else show(line["value"])
            lines.append("| {} | {} | {} | {} | {} | {} |".format(labels[0], ours, against, figure, *labels[1:]))
            labels = ("", "", "")
    unmeasured = [
        {"what": what, "figure": "", "target": f"{wanted:,} images/s", "verdict": "not measured: `--gpu`"}
        for what, wanted in GPU_TARGETS.items()
    ]
    for row in results["gpu"].get("rows", unmeasured):
        lines.append(f"| one GPU, {row['what']} | | | {row['figure']} | {row.get('target', '')} | {row.get('verdict', '')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    name, folder, seconds, clock = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), CLOCKS[sys.argv[4]]
    times = mediapipe_times(folder, seconds, clock) if name == MEDIAPIPE else way_times(name, folder, seconds, clock)
    print(json.dumps({"times": times, "peak_mb": memory_mb("VmHWM"), "own_mb": memory_mb("RssAnon")}))
