"""The process of one way: sets it up, warms it up, and does it once for every line that it reads.

    python -m benchmarks.worker WAY THREADS FOLDER

Prints a JSON line when it is ready and one for every turn: seconds on the wall and of processor time, children
included, and the peak of its resident memory in MB.
"""

import inspect
import json
import resource
import sys
import time
from pathlib import Path


# What is shorter is repeated within a turn, so that caches are as warm as in use and the clocks are fine enough.
TURN_SECONDS = 0.2


def processor_seconds() -> float:
    """Of this process and of the children that it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def memory_mb(what: str) -> float | None:
    """Of this process: `VmHWM`, the most it had resident, or `RssAnon`, what it has without files; None beside Linux.

    `getrusage` would give the peak of whoever started the process, if that was larger.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.split(f"{what}:")[1].split()[0]) / 1024


def serve(act, items: int, **about) -> None:
    """Answer lines from standard input with measured turns of `act()`, which does `items` things at once."""
    start = time.perf_counter()
    act()
    once = time.perf_counter() - start
    repeats = 1
    if once < TURN_SECONDS:  # the first time is slow: ask again
        start = time.perf_counter()
        act()
        repeats = max(1, round(TURN_SECONDS / (time.perf_counter() - start)))
    print(json.dumps({"items": items * repeats, **about}), flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), processor_seconds()
        for _ in range(repeats):
            act()
        turn = {"wall": time.perf_counter() - wall, "processor": processor_seconds() - processor}
        print(json.dumps({**turn, "peak_mb": memory_mb("VmHWM"), "own_mb": memory_mb("RssAnon")}), flush=True)


def main() -> None:
    from benchmarks import ours, reference

    name, threads, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    module, _, function = name.partition(".")
    function, *numbers = function.split(":")  # reference.network:32 is reference.network(..., 32)
    make = getattr({"ours": ours, "reference": reference}[module], function)
    given = {"folder": folder, "threads": threads}
    options = {key: value for key, value in given.items() if key in inspect.signature(make).parameters}
    act, items, *about = make(*map(int, numbers), **options)
    serve(act, items, **(about[0] if about else {}))


if __name__ == "__main__":
    main()
