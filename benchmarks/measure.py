"""Times one way of doing something, and lets several ways take turns.

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
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MEDIAPIPE, MEDIAPIPE_VERSION = "mediapipe", "0.10.14"  # the way of this name is what a user would pick instead


def processor_seconds() -> float:
    """Processor time of this process and of its children that have ended, over all cores."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# `wall` is what a user waits.  `processor` can be compared on a machine that has other work, too.
CLOCKS = {"wall": time.perf_counter, "processor": processor_seconds}


def take_turns(names: Sequence[str], folder: Path, *, threads: int, seconds: float, turns: int, clock: str) -> dict[str, dict]:
    """Each way's `times` (quartiles, seconds an item), `peak_mb` of resident memory and `own_mb`, which is no file's; or why
    it `failed`."""
    answers, failed = {name: [] for name in names}, {}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    for _ in range(turns):
        for name in [name for name in names if name not in failed]:
            try:
                python = mediapipe_python(folder) if name == MEDIAPIPE else sys.executable
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


def mediapipe_python(folder: Path) -> Path:
    """The Python of an environment with MediaPipe, which is made if it is missing."""
    home = folder / "mediapipe"
    if not (home / "installed").exists():
        venv.create(home, with_pip=True)
        command = [home / "bin" / "python", "-m", "pip", "install", "--quiet", f"mediapipe=={MEDIAPIPE_VERSION}"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
        (home / "installed").touch()
    return home / "bin" / "python"


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


if __name__ == "__main__":
    name, folder, seconds, clock = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), CLOCKS[sys.argv[4]]
    times = mediapipe_times(folder, seconds, clock) if name == MEDIAPIPE else way_times(name, folder, seconds, clock)
    print(json.dumps({"times": times, "peak_mb": memory_mb("VmHWM"), "own_mb": memory_mb("RssAnon")}))
