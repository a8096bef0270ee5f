"""What the machine is and can do."""

import os
import platform
import time

import torch


def best(act, items: float, seconds: float = 1.0) -> float:
    """The highest rate of `act()`, which does `items` things, per second."""
    act()
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 3:
        start = time.perf_counter()
        act()
        rates.append(items / (time.perf_counter() - start))
    return max(rates)


def describe(threads: int, load: float) -> dict:
    """Processor, cores, memory, versions, and measured rates of multiplying matrices and of copying.

    `load` is the load average before the benchmarks themselves made any.
    """
    torch.set_num_threads(threads)
    side = 1024
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        rates[f"matmul_{name}_gflops"] = round(best(lambda: a @ b, 2 * side**3) / 1e9, 1)
    source, target = torch.ones(64 * 2**20), torch.empty(64 * 2**20)  # 256 MiB each, far beyond the caches
    copied = 2 * source.nbytes
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "cores_used": len(os.sched_getaffinity(0)),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        **rates,
        "copy_gb_per_s": round(best(lambda: target.copy_(source), copied) / 1e9, 1),
        "load_average": round(load, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor_name() -> str:
    """As Linux tells it, with the instructions for bf16 that it has."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        return platform.processor()
    values = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    instructions = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in values.get("flags", "").split()]
    return " ".join([values.get("model name", platform.processor()), *instructions])
