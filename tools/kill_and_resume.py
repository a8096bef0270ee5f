"""Kill trainings at bad moments, resume them, and compare the results with an undisturbed run.

    python -m tools.kill_and_resume --kills 20                  # some minutes on 2 cores
    python -m tools.kill_and_resume --kills 10 --processes 2    # a distributed run: all processes die together
    python -m tools.kill_and_resume --kills 20 --seed 4         # other moments

Each kill is a SIGKILL.  There are four kinds of moment: before the first checkpoint, while a checkpoint (or the best
weights) is written, during validation, and any time.  The seed decides the moments.  To hit one for certain, the process is
stopped, its files and its dataloader's workers are looked at from outside, and then it is killed or it continues.

After a few kills a training may finish.  Its weights, averaged weights, optimizer, state, best weights, metrics and
finished model are then compared with those of the undisturbed run, byte by byte.  The trainings take turns: prepared samples,
an endless stream, and new scenes of stored layers.  All use dataloader workers and augmentation.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.tiny_training import fork, free_port

SETTINGS = (
    "--hidden_sizes 4 8 --train_samples 32 --validation_samples 32 --test_samples 8 --batch_size 4 --epochs 4 "
    "--checkpoint_every 3 --workers 1"
).split()
DATA = {
    "prepared": ["--augmentation", "1"],
    "endless": ["--streaming", "--augmentation", "1"],
    "scene": ["--dataset", "scenes", "--layers", "16"],  # always turned and coloured
}
FIRST, WRITE, VALIDATION, ANY = "before the first checkpoint", "in a checkpoint write", "in validation", "any time"
KILLS_PER_TRAINING = 5


def plan(kills: int, draw: random.Random) -> list[str]:
    """The kinds of moment; of 20, 1 is before the first checkpoint, 6 in writes, 4 in validation and 9 any time."""
    kinds = [FIRST] * max(1, kills // 20) + [WRITE] * max(1, kills * 3 // 10) + [VALIDATION] * max(1, kills // 5)
    kinds = (kinds + [ANY] * kills)[:kills]
    draw.shuffle(kinds)
    return kinds


class Training:
    """One training, started repeatedly in one folder."""

    def __init__(self, output: Path, data: str, processes: int):
        self.output, self.data, self.processes = output, data, processes
        self.checkpoints = output / "checkpoints"
        self.log = output.with_suffix(".log")
        self.pids: list[int] = []  # of its processes; only the first is observed
        self.statuses: dict[int, int] = {}  # exit codes of those that ended
        self.phases, self.workers = 0, set()

    def start(self) -> None:
        """Start or resume: the same command for both."""
        self.log.write_text("")
        arguments = [*SETTINGS, *DATA[self.data], "--output_dir", self.output, "--resume"]
        port = free_port()
        ranks = range(self.processes)
        self.pids = [fork(*arguments, log=self.log, rank=rank, processes=self.processes, port=port) for rank in ranks]
        self.statuses, self.phases, self.workers = {}, 0, set()

    def running(self) -> list[int]:
        return [pid for pid in self.pids if pid not in self.statuses]

    def wait(self, pid: int, options: int = 0) -> None:
        """Wait for a process as `os.waitpid` does, and store its exit code if it ended."""
        waited, status = os.waitpid(pid, options)
        if waited and not os.WIFSTOPPED(status):
            self.statuses[pid] = os.waitstatus_to_exitcode(status)

    def ended(self) -> bool:
        """Whether the first process ended. Also counts the sets of dataloader workers."""
        first = self.pids[0]
        if first not in self.statuses:
            self.wait(first, os.WNOHANG)
        if first in self.statuses:
            for other in self.running():
                self.wait(other)
            if self.statuses[first]:
                raise AssertionError(f"{self.output.name} ended with {self.statuses}:\n{self.log.read_text()}")
            return True
        if new := children(first) - self.workers:
            self.workers |= new
            self.phases += 1
        return False

    def stop(self) -> bool:
        """Stop all processes where they are, the first one first. Returns False if that one had ended."""
        for pid in self.running():
            os.kill(pid, signal.SIGSTOP)
            self.wait(pid, os.WUNTRACED)
            if self.pids[0] in self.statuses:
                return False
        return True

    def proceed(self) -> None:
        for pid in self.running():
            os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the stopped processes and their dataloader workers, as when a machine fails."""
        running = self.running()
        workers = [worker for pid in running for worker in children(pid)]
        for pid in [*running, *workers]:
            os.kill(pid, signal.SIGKILL)
        for pid in running:
            self.wait(pid)

    def unfinished(self) -> list[str]:
        """Names that a write in progress has in the folder of checkpoints."""
        if not self.checkpoints.is_dir():
            return []
        return [name for name in os.listdir(self.checkpoints) if name.endswith((".incomplete", ".old"))]

    def has_checkpoint(self) -> bool:
        return self.checkpoints.is_dir() and any(self.checkpoints.glob("step-*[0-9]"))

    def validates(self) -> bool:
        """Whether the present workers are a validation's: they come after those of the epoch's training."""
        epochs = self.log.read_text().count("\nepoch ")
        return self.phases == 2 * epochs + 2 and bool(children(self.pids[0]) & self.workers)


def children(pid: int) -> set[int]:
    """The processes that `pid` started and that still run."""
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except FileNotFoundError:
        return set()


def interrupt(
    training: Training, kind: str, draw: random.Random, first: float, duration: float, limit: float = 900
) -> str | None:
    """Start `training` and kill it at a moment of `kind`. Returns the kind that was hit, or None if the training ended before.

    An undisturbed training takes `first` seconds until its first checkpoint and `duration` in all.
    """
    training.start()
    started = time.monotonic()
    delay = draw.uniform(0, 0.8 * first if kind == FIRST else duration)
    skip = draw.randrange(4)  # writes before the one that is hit
    waited_for = False
    while not training.ended():
        if time.monotonic() > started + limit:
            training.stop()
            training.kill()
            raise AssertionError(f"no moment '{kind}' in {limit} s:\n{training.log.read_text()}")
        if kind in (FIRST, ANY):
            waited_for, patience = time.monotonic() - started > delay, 0.0
        elif kind == WRITE:
            before, waited_for = waited_for, bool(training.unfinished())
            if before or not waited_for:  # the same write as before, or none
                time.sleep(0.0002)
                continue
            if skip:
                skip -= 1
                continue
            patience = draw.uniform(0, 0.02)
        else:
            waited_for, patience = training.phases % 2 == 0 and training.phases > 0, draw.uniform(0, 0.3)
        if not waited_for:
            time.sleep(0.001)
            continue
        time.sleep(patience)
        if not training.stop():
            continue
        found = where(training)
        if kind in (ANY, found):
            training.kill()
            return found
        training.proceed()
        if kind == FIRST:
            kind, delay = ANY, time.monotonic() - started + draw.uniform(0, duration)  # too late: it has a checkpoint
    return None


def where(training: Training) -> str:
    """What a stopped training is doing, as seen from outside."""
    if training.unfinished():
        return WRITE
    if not training.has_checkpoint():
        return FIRST
    return VALIDATION if training.validates() else ANY


def result(output: Path) -> dict[str, bytes | dict | list]:
    """Everything that must be identical: the contents of files, by their meaning."""
    last = max((output / "checkpoints").glob("step-*[0-9]"))
    state = json.loads((last / "state.json").read_text())
    for name in ("output_dir", "resume"):
        del state["arguments"][name]
    best = json.loads((output / "checkpoints" / "best" / "state.json").read_text())
    files = {name: (last / name).read_bytes() for name in os.listdir(last) if name.endswith((".safetensors", ".bin"))}
    return {
        "newest checkpoint": last.name,
        "state": state,
        "best": best,
        "best weights": (output / "checkpoints" / "best" / "average.safetensors").read_bytes(),
        "metrics.json": (output / "metrics.json").read_bytes(),
        "model": (output / "model" / "model.safetensors").read_bytes(),
        "model's config": (output / "model" / "config.json").read_bytes(),
        **files,
    }


def main(argv: list[str] | None = None) -> collections.Counter:
    """Run all. Returns the number of kills of each kind; ends with an error that lists the differences."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tools.kill_and_resume", description=__doc__, formatter_class=as_written)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="decides the moments (default: a new one, printed)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="put the temporary folder here")
    options = parser.parse_args(argv)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    print(f"seed {seed}, {options.kills} kills, {options.processes} process(es)", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="kill-and-resume-", dir=options.folder))
    started = time.monotonic()
    references, times = {}, {}

    def undisturbed(data: str) -> None:
        reference = Training(folder / f"{data}-undisturbed", data, options.processes)
        begin = first = time.monotonic()
        reference.start()
        while not reference.ended():
            if not reference.has_checkpoint():
                first = time.monotonic()
            time.sleep(0.01)
        times[data], references[data] = (first - begin, time.monotonic() - begin), result(reference.output)
        print(f"{data} samples, undisturbed: {times[data][1]:.0f} s", flush=True)

    kinds, counts, differences, trainings = plan(options.kills, draw), collections.Counter(), [], 0
    while kinds:
        data = list(DATA)[trainings % len(DATA)]
        if data not in references:
            undisturbed(data)
        training = Training(folder / f"{data}-{trainings}", data, options.processes)
        kills = 0
        if FIRST in kinds:  # only a training that has just begun can have one
            kinds.remove(FIRST)
            kinds.append(FIRST)
        while kinds and kills < KILLS_PER_TRAINING:
            kind = kinds.pop()
            found = interrupt(training, kind, draw, *times[data])
            if found is None:  # it ended before that moment, so the next training gets the moment
                kinds.insert(0, kind)
                break
            kills += 1
            counts[found] += 1
            print(f"kill {counts.total()}, {data} samples: {found}", flush=True)
        if found is not None:  # it was killed last, so let it finish
            training.start()
            while not training.ended():
                time.sleep(0.01)
        mine, reference = result(training.output), references[data]
        wrong = [name for name in reference.keys() | mine.keys() if mine.get(name) != reference.get(name)]
        differences += [f"{training.output.name}: {name}" for name in wrong]
        print(f"{training.output.name}: killed {kills} times, {'DIFFERS' if wrong else 'identical'}", flush=True)
        trainings += 1
    total = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    print(f"{counts.total()} kills ({total}) in {trainings} trainings: {len(differences)} differences")
    print(f"{time.monotonic() - started:.0f} s")
    if differences:
        sys.exit("these differ: " + ", ".join(differences) + f"; see {folder}")
    shutil.rmtree(folder)
    return counts


if __name__ == "__main__":
    main()
