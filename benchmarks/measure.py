"""Times one way of doing something, lets several ways take turns, and puts what they took into the table.

    python -m benchmarks.measure predict:bf16:32 FOLDER 2 wall

times what `ways.predict(FOLDER, "bf16", 32)` returns for two seconds and prints JSON.  Each turn is a process of its own, so
that no way's settings, memory or threads touch another's.  The ways take turns, so that noise touches all alike.

Only the standard library is imported at the top: MediaPipe's environment runs this file and has no torch, and the memory of
a program that a `start` way starts is not told from this process's own if that is larger.
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
EXAMPLE = ROOT / "demo" / "space" / "examples" / "open.jpg"  # a photograph of one hand, 448 x 448
MEDIAPIPE = "mediapipe"  # the way of this name is what a user would pick instead
# What `start:NAME` starts, by Python, with the clone's shipped models; `{folder}` takes its answers.
PROGRAMS = {
    "import": ["-c", "import modeling_handunet"],
    # What any model of transformers with an image processor and a pipeline imports.
    "packages": ["-c", "import torch; from transformers.image_processing_backends import PilBackend; "
                 "from transformers.modeling_utils import PreTrainedModel; from transformers.pipelines.base import Pipeline"],
    "torch": ["-m", "handunet", EXAMPLE, "--model", ROOT / "weights" / "handunet", "--output", "{folder}/drawn"],
    "onnx": ["-m", "handunet", EXAMPLE, "--backend", "onnx", "--output", "{folder}/drawn"],
}


def processor_seconds() -> float:
    """Processor time of this process and of its children that have ended, over all cores."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# `wall` is what a user waits.  `processor` can be compared on a machine that has other work, too.
CLOCKS = {"wall": time.perf_counter, "processor": processor_seconds}


def take_turns(
    names: Sequence[str], folder: Path, *, environment: Path, threads: int, seconds: float, turns: int, clock: str
) -> dict[str, dict]:
    """Each way's `times` (quartiles, seconds an item), `peak_mb` of resident memory and `own_mb`, which is no file's; or why
    it `failed`.  MediaPipe runs in `environment`."""
    from dataset_script.teachers import mediapipe_python

    answers, failed = {name: [] for name in names}, {}
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    for _ in range(turns):
        for name in [name for name in names if name not in failed]:
            try:
                python = mediapipe_python(environment) if name == MEDIAPIPE else sys.executable
                command = [python, "-W", "ignore", "-m", "benchmarks.measure", name, folder, str(seconds), clock]
                result = subprocess.run(command, env=settings, check=True, capture_output=True, text=True)
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


def mediapipe_times(name: str, folder: Path, seconds: float, clock: Callable[[], float]) -> list[float]:
    """Of the whole call on a decoded photograph, its own detection of the hand included."""
    import mediapipe
    import numpy as np
    from PIL import Image

    image = np.asarray(Image.open(EXAMPLE).convert("RGB"))
    hands = mediapipe.solutions.hands.Hands(static_image_mode=True)
    if not hands.process(image).multi_hand_landmarks:
        raise SystemExit("MediaPipe finds no hand")
    timer = timeit.Timer(lambda: hands.process(image), timer=clock)
    return timer.repeat(1 + round(seconds / timer.timeit(2) * 2), number=1)


def start_times(name: str, folder: Path, seconds: float, clock: Callable[[], float]) -> list[float]:
    """Of a fresh program, from its start to its end."""
    command = [sys.executable, "-W", "ignore", *(str(part).format(folder=folder) for part in PROGRAMS[name.split(":")[1]])]
    timer = timeit.Timer(lambda: subprocess.run(command, check=True, capture_output=True), timer=clock)
    return timer.repeat(1 + round(seconds / timer.timeit(1)), number=1)


def way_times(name: str, folder: Path, seconds: float, clock: Callable[[], float]) -> list[float]:
    from torch import get_num_threads
    from torch.utils.benchmark import Timer

    from benchmarks import ways

    function, how, *count = name.split(":")
    act, items = getattr(ways, function)(folder, how, *map(int, count))
    timer = Timer("act()", globals={"act": act}, timer=clock, num_threads=get_num_threads())
    return [time / items for time in timer.blocked_autorange(min_run_time=seconds).times]


def memory_mb(name: str) -> dict[str, float]:
    """`peak_mb`, the most memory that was resident in this process or in the programs that it started, and `own_mb`, memory
    that is no file's; NaN except on Linux."""
    status = Path("/proc/self/status")  # getrusage would give the peak of the parent process, if that was larger
    if not status.exists():
        return {"peak_mb": float("nan"), "own_mb": float("nan")}
    peak, own = (int(status.read_text().split(f"{what}:")[1].split()[0]) / 1024 for what in ("VmHWM", "RssAnon"))
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"peak_mb": started if name.startswith("start:") else peak, "own_mb": own}


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


# Images a second that one GPU is to reach, and the command that measures them.
GPU_TARGETS = {
    "training with augmentation": (20_000, "python -m benchmarks --gpu"),
    "inference": (80_000, "python -m benchmarks --gpu"),
    "from drawn hand to step": (8_000, "accelerate launch train.py --dataset scenes --mixed_precision bf16"),
}
# Two hands in 640 x 480: frames a second, those of `handunet` in onnxruntime over MediaPipe's.
TRACKING_TARGET = 1.5


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
    epoch, step, plain_step, plain_samples = f"epoch:{fast}", f"step:{fast}", "step:reference", "samples:reference"
    int8, one, torch_onnx = "predict:int8:1", f"predict:{fast}:1", (f"predict:{fast}:1", f"predict:{slow}:1", "predict:onnx:1")
    batch, decoding = tuple(f"predict:{how}:32" for how in ("onnx", fast, slow)), "decoding:channels_last"
    photo = "photo:onnx"
    return [
        Row("heatmaps", "heatmaps", "heatmap targets, a sample", "heatmaps:ours", "heatmaps:reference", 50),
        Row("first_samples", "samples", "samples served, first epoch", "samples:first", plain_samples, 4, clock="processor"),
        Row("later_samples", "samples", "samples served, later epochs", "samples:later", plain_samples, 15, clock="processor"),
        Row("epoch", "training", "training epoch with its data", epoch, "epoch:reference", 3.5, beside=(f"epoch:{slow}",)),
        Row("epoch_over_step", "training", "that epoch's rate over the bare step's", epoch, step, 0.9),
        Row("step", "training", "bare training step", step, plain_step, beside=(f"step:{slow}",)),
        Row("compiled_bf16", "compiled", "the step by `torch.compile`, eager over it", "step:bf16_compiled", "step:bf16"),
        Row("compiled_float32", "compiled", "the same in float32", "step:float32_compiled", "step:float32"),
        Row("plain_loop", "training", "the reference's step, a plain loop's", plain_step, "step:bare", 0.9),
        Row("one_hand", "one_hand", "one hand, jpg to keypoints", one, "predict:reference:1", 2, beside=torch_onnx[1:]),
        Row("one_hand_mediapipe", "one_hand", "one hand, MediaPipe's whole call", int8, MEDIAPIPE, 3.5, beside=torch_onnx),
        Row("photo", "one_hand", "whole photograph to keypoints, MediaPipe", "photo:int8", MEDIAPIPE, 1, beside=(photo,)),
        Row("network", "network", "the network alone, 8 bits over float32", "network:int8:1", "network:onnx:1", 2),
        Row("batch_32", "batch", "32 hands, jpg to keypoints", "predict:int8:32", "predict:reference:32", 5, beside=batch),
        Row("decoding", "decoding", "decoding (local), a hand", f"{decoding}:32", at_most=0.15e-3,
            beside=("decoding:contiguous:32", f"{decoding}:1")),
        Row("memory_train", "training", "peak memory of training, batch 48", epoch, at_most=3000, memory=True),
        Row("memory_torch", "start", "peak memory of `handunet`, one photograph", "start:torch", at_most=700, memory=True),
        Row("memory_onnx", "start", "the same, onnxruntime", "start:onnx", at_most=250, memory=True),
        Row("start_torch", "start", "`handunet`, one photograph, from start to end", "start:torch", at_most=5.0),
        Row("start_onnx", "start", "the same, onnxruntime", "start:onnx", at_most=1.0),
        Row("import", "start", "import of torch and transformers over ours", "start:import", "start:packages", 0.9),
    ]  # fmt: skip


def verdict(row: Row, figures: dict[str, dict], clock: str) -> dict:
    """What the row's ways came to: a line for `ours` and for each of `beside`, and whether the target is reached; or why they
    were not measured."""
    names = ("name", "what", "at_least", "at_most", "memory")
    result = {**{name: getattr(row, name) for name in names}, "clock": clock}
    reasons = {name: figure["failed"] for name, figure in figures.items() if "failed" in figure}
    needed = {row.ours, row.against} - {None}
    if not needed <= figures.keys() - reasons.keys():
        reasons = sorted(reasons[name] for name in needed & reasons.keys())
        return {**result, "lines": [], "verdict": ": ".join(["not measured here", *reasons])}
    lines = []
    for name in (row.ours, *row.beside):
        if name in reasons:
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
    """All rows as Markdown; times are a median and its quartiles."""
    lines = ["| what | ours | against | figure | to reach | verdict | measured by |", "|---|---|---|---|---|---|---|"]

    def add(*cells: str) -> None:
        lines.append(f"| {' | '.join(cells)} |")

    def cell(name: str, times: list[float] | None) -> str:
        return f"`{name}`" + (" {1} ({0} - {2})".format(*map(duration, times)) if times else "")

    for row in (results["rows"].get(row.name) or verdict(row, {}, "") for row in rows(True)):
        show = (lambda value: f"{value:.0f} MB") if row["memory"] else duration
        target = f"{row['at_least']:g} x" if row["at_least"] else show(row["at_most"]) if row["at_most"] else ""
        what, ends = row["what"], (target, row["verdict"], f"`python -m benchmarks --rows {row['name']}`")
        for line in row["lines"] or [None]:
            ours = against = figure = ""
            if line:
                ours = cell(line["ours"], None if row["memory"] else line["times"])
                against = cell(line["against"], line["its_times"]) if "against" in line else ""
                figure = f"{line['value']:.3g} x" if against else show(line["value"])
            add(what, ours, against, figure, *ends)
            what, ends = "", ("", "", "")
    tracked, command = results.get("tracking", {}), "`python -m benchmarks.tracking`"
    figure, found = "", f"not measured here: {command}, then `--tracking`"
    if tracked:
        ratio = tracked["ours"] / tracked["MediaPipe"]
        figure, found = f"{ratio:.3g} x", "reached" if ratio >= TRACKING_TARGET else "missed"
    ours, against = (f"{tracked[name]:.3g} frames/s" if tracked else "" for name in ("ours", "MediaPipe"))
    add("two hands followed in 640x480", ours, against, figure, f"{TRACKING_TARGET} x", found, command)
    measured = {row["what"]: row for row in results["gpu"].get("rows", [])}
    for what in dict.fromkeys((*measured, *GPU_TARGETS)):
        wanted, command = GPU_TARGETS.get(what.removesuffix(", compiled"), (None, "python -m benchmarks --gpu"))
        row = measured.get(what, {"figure": "", "verdict": "not measured here: needs a GPU"})
        target = f"{wanted:,} images/s" if wanted else ""
        add(f"one GPU, {what}", "", "", row["figure"], target, row.get("verdict", ""), f"`{command}`")
    return "\n".join(lines)


if __name__ == "__main__":
    name, folder, seconds, clock = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), CLOCKS[sys.argv[4]]
    kinds = {MEDIAPIPE: mediapipe_times, "start": start_times}
    times = kinds.get(name.split(":")[0], way_times)(name, folder, seconds, clock)
    print(json.dumps({"times": times, **memory_mb(name)}))
