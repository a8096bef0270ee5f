"""Kill trainings at bad moments, resume them, and compare what comes out with a run that was never touched.

    python -m tools.kill_and_resume --kills 20                  # some minutes on 2 cores
    python -m tools.kill_and_resume --kills 10 --processes 2    # the processes of a distributed run die together
    python -m tools.kill_and_resume --kills 20 --seed 4         # other moments

Each kill is a SIGKILL.  The moments are of four kinds: before the first checkpoint, inside the write of a checkpoint
(or of the best weights), in a validation, and any time.  They come from the printed seed, and are hit by construction:
the process is stopped, looked at from outside (its files, its dataloader's workers), and then killed or let go on.  A
training that has been killed a few times is then left to end, and its weights, averaged weights, optimizer, state, best
weights, metrics and finished model are compared with the untouched run's, byte by byte.  The trainings read prepared
samples, an endless stream and new scenes of kept layers in turn; dataloader workers and augmentation are on in all.
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
    "scene": ["--dataset", "scenes", "--layers", "16"],  # turned and coloured without being asked
}
FIRST, WRITE, VALIDATION, ANY = "before the first checkpoint", "in a checkpoint write", "in validation", "any time"
KILLS_PER_TRAINING = 5


def plan(kills: int, draw: random.Random) -> list[str]:
    """The kinds of moment: at 20, 1 or more before the first checkpoint, 6 in writes, 4 in validation."""
    kinds = [FIRST] * max(1, kills // 20) + [WRITE] * max(1, kills * 3 // 10) + [VALIDATION] * max(1, kills // 5)
    kinds = (kinds + [ANY] * kills)[:kills]
    draw.shuffle(kinds)
    return kinds


class Training:
    """One training, started again and again in one folder."""

    def __init__(self, output: Path, data: str, processes: int):
        self.output, self.data, self.processes = output, data, processes
        self.checkpoints = output / "checkpoints"
        self.log = output.with_suffix(".log")
        self.pids: list[int] = []  # of its processes, the first is looked at
        self.statuses: dict[int, int] = {}  # exit codes of those that are over
        self.phases, self.workers = 0, set()

    def start(self) -> None:
        """Start, or go on: the same command, with --resume whenever there is something to go on with."""
        self.log.write_text("")
        arguments = [*SETTINGS, *DATA[self.data], "--output_dir", self.output, "--resume"]
        port = free_port()
        ranks = range(self.processes)
        self.pids = [fork(*arguments, log=self.log, rank=rank, processes=self.processes, port=port) for rank in ranks]
        self.statuses, self.phases, self.workers = {}, 0, set()

    def running(self) -> list[int]:
        return [pid for pid in self.pids if pid not in self.statuses]

    def wait(self, pid: int, options: int = 0) -> None:
        """Wait for a process as `os.waitpid` does, and keep its exit code if it is over."""
        waited, status = os.waitpid(pid, options)
        if waited and not os.WIFSTOPPED(status):
            self.statuses[pid] = os.waitstatus_to_exitcode(status)

    def ended(self) -> bool:
        """Whether the first process is over; sees a new set of dataloader workers in passing."""
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
        """Halt all processes where they are, the first one first; returns False where that one came to its end before."""
        for pid in self.running():
            os.kill(pid, signal.SIGSTOP)
            self.wait(pid, os.WUNTRACED)
            if self.pids[0] in self.statuses:
                return False
        return True

    def go_on(self) -> None:
        for pid in self.running():
            os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the halted processes and their dataloader workers, as a failing machine does."""
        running = self.running()
        for pid in [*running, *(child for pid in running for child in children(pid))]:
            os.kill(pid, signal.SIGKILL)
        for pid in running:
            self.wait(pid)

    def unfinished(self) -> list[str]:
        """What a write in progress has in the folder of checkpoints."""
        if not self.checkpoints.is_dir():
            return []
        return [name for name in os.listdir(self.checkpoints) if name.endswith((".incomplete", ".old"))]

    def has_checkpoint(self) -> bool:
        return self.checkpoints.is_dir() and any(self.checkpoints.glob("step-*[0-9]"))

    def validates(self) -> bool:
        """Whether the workers that are there are a validation's: they come after those of the epoch's training."""
        epochs_told = self.log.read_text().count("\nepoch ")
        return self.phases == 2 * epochs_told + 2 and bool(children(self.pids[0]) & self.workers)


def children(pid: int) -> set[int]:
    """The processes that `pid` started and that are there."""
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except FileNotFoundError:
        return set()


def interrupt(
    training: Training, kind: str, draw: random.Random, first: float, duration: float, limit: float = 900
) -> str | None:
    """Start `training` and kill it at a moment of `kind`; returns where it was, or None if it ended before.

    An untouched training takes `first` seconds to its first checkpoint and `duration` in all.
    """
    training.start()
    started = time.monotonic()
    delay = draw.uniform(0, 0.8 * first if kind == FIRST else duration)
    skip = draw.randrange(4)  # writes that are let pass
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
            if before or not waited_for:  # a write that was let pass, or none
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
        training.go_on()
        if kind == FIRST:
            kind, delay = ANY, time.monotonic() - started + draw.uniform(0, duration)  # too late: it has a checkpoint
    return None


def where(training: Training) -> str:
    """What a halted training is doing, as far as it shows from outside."""
    if training.unfinished():
        return WRITE
    if not training.has_checkpoint():
        return FIRST
    return VALIDATION if training.validates() else ANY


def result(output: Path) -> dict[str, bytes | dict | list]:
    """Everything that must come out the same: contents of files, by what they are."""
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
    """Run the whole; returns how many kills there were of each kind, or ends with what differed."""
    parser = argparse.ArgumentParser(prog="python -m tools.kill_and_resume", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: a new one, printed)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    options = parser.parse_args(argv)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    print(f"seed {seed}, {options.kills} kills, {options.processes} process(es)", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="kill-and-resume-", dir=options.folder))
    started = time.monotonic()
    references, times = {}, {}

    def untouched(data: str) -> None:
        reference = Training(folder / f"{data}-untouched", data, options.processes)
        begin = first = time.monotonic()
        reference.start()
        while not reference.ended():
            if not reference.has_checkpoint():
                first = time.monotonic()
            time.sleep(0.01)
        times[data], references[data] = (first - begin, time.monotonic() - begin), result(reference.output)
        print(f"{data} samples, never touched: {times[data][1]:.0f} s", flush=True)

    kinds, counts, differences, trainings = plan(options.kills, draw), collections.Counter(), [], 0
    while kinds:
        data = list(DATA)[trainings % len(DATA)]
        if data not in references:
            untouched(data)
        training = Training(folder / f"{data}-{trainings}", data, options.processes)
        kills = 0
        if FIRST in kinds:  # only a training that has just begun can have one
            kinds.remove(FIRST)
            kinds.append(FIRST)
        while kinds and kills < KILLS_PER_TRAINING:
            kind = kinds.pop()
            found = interrupt(training, kind, draw, *times[data])
            if found is None:  # it ended before that moment came: another training gets it
                kinds.insert(0, kind)
                break
            kills += 1
            counts[found] += 1
            print(f"kill {counts.total()}, {data} samples: {found}", flush=True)
        if found is not None:  # it was killed, and has not come to its end
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
