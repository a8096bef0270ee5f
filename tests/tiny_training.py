"""Runs of train.py that are small enough for tests: the real command, or forked from here to spare the imports."""

import contextlib
import faulthandler
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch.utils.data import Dataset
from tqdm import tqdm

from dataset_script.sources import Description, Source, Splits
from training.arguments import make_arguments
from training.run import Run

ROOT = Path(__file__).resolve().parents[1]
# Two levels instead of four, and so few hands that a run is over in seconds.
TINY = "--hidden_sizes 4 8 --train_samples 24 --validation_samples 6 --test_samples 6 --batch_size 4 --epochs 2".split()
TINY += ["--mixed_precision", "bf16"]  # on every machine, whatever it is fast at

FORKED_SECONDS = 900  # what a forked process may take: it then shows where it is and ends

# By default a semaphore that forked processes share: one that is killed while it holds it would stop all that follow.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # no thread that could hold it at a fork


def environment() -> dict[str, str]:
    """For subprocesses: this one's variables (conftest has set the caches), one thread each, and no GPU."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "HF_HUB_OFFLINE": "1"}


def command(*arguments: object, processes: int = 1) -> list[str]:
    """`train.py ARGUMENTS` as a user gives it."""
    if processes == 1:
        return [sys.executable, "train.py", *map(str, arguments)]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    return [*launch, "--main_process_port", str(free_port()), "train.py", *map(str, arguments)]


def run(*arguments: object, processes: int = 1, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run it to its end; `stdout` is its text, `stderr` is in `stderr`."""
    line = command(*arguments, processes=processes)
    return subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout)


def start(*arguments: object, log: Path, processes: int = 1) -> subprocess.Popen:
    """Start it in a process group of its own, with its output in `log`."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            command(*arguments, processes=processes),
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def fork(*arguments: object, log: Path, **place) -> int:
    """Fork a process that goes on as `train.py ARGUMENTS`; returns its id.  `place` as in [`fork_call`]."""
    import train

    def main() -> None:
        sys.argv = ["train.py", *map(str, arguments)]
        train.main()

    return fork_call(main, log=log, **place)


def forked(tmp_path: Path, *arguments: object) -> tuple[int, str]:
    """A run to its end: exit code and what it printed."""
    log = tmp_path / f"log-{time.monotonic_ns()}"
    log.touch()
    (status,) = wait_for_end(fork(*arguments, log=log))
    return status, log.read_text()


def fork_call(function: Callable[[], None], *, log: Path, rank: int = 0, processes: int = 1, port: int = 0) -> int:
    """Fork a process that calls `function` and ends with the status that a program of its own would have.

    With `processes` it is the process `rank` of that many, as torchrun and `accelerate launch` start them.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number in (1, 2):
            os.dup2(descriptor, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(FORKED_SECONDS)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        warnings.resetwarnings()
        AcceleratorState._reset_state(reset_partial_state=True)  # of runs in the process that forked
        GradientState._reset_state()
        os.environ["ACCELERATE_USE_CPU"] = "1"
        if processes > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ |= {name: str(value) for name, value in names.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        function()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait_for_end(*pids: int) -> list[int]:
    """Exit codes of forked processes."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def free_port() -> int:
    """A port of this machine that no one listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(condition, process: subprocess.Popen, log: Path, timeout: float = 120):
    """Poll until `condition()` is true and return it; fails when the process ends or the time is up."""
    end = time.monotonic() + timeout
    while not (result := condition()):
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"it did not happen (exit {process.poll()}):\n{log.read_text()}")
        time.sleep(0.005)
    return result


class NoiseHands(Dataset):
    """Samples as HandCrops gives them, of noise: a function of (seed, index).

    With `poison` the images are float, and those that it lists have its value in every pixel.
    """

    def __init__(self, count: int, seed: int = 0, image_size: int = 128, poison: dict[int, float] | None = None):
        self.count, self.seed, self.image_size, self.poison = count, seed, image_size, poison or {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        shape = (3, self.image_size, self.image_size)
        image = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        if self.poison:
            image = torch.full(shape, self.poison[index]) if index in self.poison else image.float()
        return {
            "image": image,
            "keypoints": torch.rand(21, 2, generator=generator) * self.image_size,
            "visibility": torch.rand(21, generator=generator) < 0.9,
            "box_size": 60.0,
            "index": index,
        }

    def __getitems__(self, indices: list[int]) -> list[dict]:
        return [self[index] for index in indices]


def noise_splits(poison: dict[int, float] | None = None, count: int = 8, test_seed: int = 2) -> Splits:
    """Splits of noise; `poison` as in [`NoiseHands`]."""
    return Splits(NoiseHands(count, poison=poison), NoiseHands(3, seed=1), NoiseHands(3, seed=test_seed))


class NoiseSource(Source):
    """A source of noise, or of the splits that it is given."""

    def __init__(self, options, splits: Splits | None = None, **settings):
        super().__init__(options, **settings)
        self._splits = splits or noise_splits()

    def describe(self) -> Description:
        return Description("noise", "Noise.", "It has seen noise.", "There are no hands.")


def make_run(output: Path, *, splits: Splits | None = None, **settings) -> Run:
    """A `Run` of a tiny model in this process, on noise unless `splits` are given."""
    settings = {"hidden_sizes": [4, 8], "batch_size": 2, "checkpoint_every": 1, "keep_checkpoints": 10} | settings
    args = make_arguments(output_dir=str(output), **settings)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=args.optimisation.gradient_accumulation_steps)
    source = NoiseSource(args.data, splits, image_size=args.model.image_size, box_fill=args.model.box_fill)
    return Run(args, accelerator, source)


def train_steps(run: Run, steps: int | None = None) -> None:
    """Train the current epoch, or only `steps` optimizer steps of it."""
    import train

    last = math.inf if steps is None else run.step + steps

    class Enough(Exception):
        pass

    def stop_if_asked() -> None:
        if run.step >= last:
            raise Enough

    with contextlib.suppress(Enough):
        train.train_one_epoch(run, stop_if_asked)
