"""Runs of train.py that are small enough for tests: the real command, or forked from this process to spare the imports."""

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Two levels instead of four, and so few hands that a run is over in seconds.
TINY = "--hidden_sizes 4 8 --train_samples 24 --validation_samples 6 --test_samples 6 --batch_size 4 --epochs 2".split()


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
    return subprocess.run(
        command(*arguments, processes=processes), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout
    )


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


def fork(*arguments: object, log: Path, rank: int = 0, processes: int = 1, port: int = 0) -> int:
    """Fork a process that goes on as `train.py ARGUMENTS`; returns its id.

    With `processes` it is the process `rank` of that many, as torchrun and `accelerate launch` start them.
    """
    import train

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
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        warnings.resetwarnings()
        os.environ |= {"ACCELERATE_USE_CPU": "1"}
        if processes > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ |= {name: str(value) for name, value in names.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sys.argv = ["train.py", *map(str, arguments)]
        train.main()
        status = 0
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


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
