"""Taking turns, and what a figure is: the median of the turns with their quartiles.

Each turn has two clocks: what passed on the wall, and the seconds of processor time that the process and its children
used, over all cores.  On a busy machine only the second says anything; on an idle one the first is what a user waits.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import mediapipe_hands
from benchmarks.rows import MEDIAPIPE

ROOT = Path(__file__).resolve().parents[1]
CLOCKS = ("wall", "processor")


class Way:
    """One way of doing something, in a process of its own that waits until it is asked for a turn."""

    def __init__(self, name: str, threads: int, folder: Path):
        self.name, self.turns = name, []
        if name == MEDIAPIPE:
            command = [str(mediapipe_hands.environment(folder)), "-W", "ignore", str(Path(mediapipe_hands.__file__))]
        else:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [*command, name, str(threads), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.about = self._answer()

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")

    def turn(self) -> None:
        """Do it once."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.turns.append(self._answer())

    def end(self) -> dict:
        """The figure: seconds per item by either clock, each (low, median, high); what the way said about itself."""
        self.process.stdin.close()
        self.process.wait()
        items = self.about["items"]
        clocks = {clock: quartiles([turn[clock] / items for turn in self.turns]) for clock in CLOCKS}
        memory = {name: max((turn[name] or math.nan) for turn in self.turns) for name in ("peak_mb", "own_mb")}
        return {"way": self.name, **clocks, "turns": len(self.turns), **memory, **self.about}


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def take_turns(names: Sequence[str], *, threads: int, folder: Path, seconds: float, at_least: int = 3) -> dict[str, dict]:
    """Let the ways take turns for about `seconds`, but `at_least` so many; the figure of each, or why it `failed`."""
    ways, failed = [], {}
    try:
        for name in names:
            try:
                ways.append(Way(name, threads, folder))
            except RuntimeError as error:
                failed[name] = {"failed": str(error)}
        end = time.monotonic() + seconds
        while ways and (len(ways[0].turns) < at_least or time.monotonic() < end):
            for way in ways:
                way.turn()
        return {way.name: way.end() for way in ways} | failed
    finally:
        for way in ways:
            if way.process.poll() is None:
                way.process.kill()
