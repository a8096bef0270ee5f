"""The folder that a run writes to: never two trainings in it, neither one after the other nor at the same time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from training.arguments import OutputArguments

LOCK = ".lock"  # its file; the lock is the system's, which takes it from a process that dies
SECONDS = 10  # for the workers of a run that was killed, which end a little later and may hold the lock until then


@contextlib.contextmanager
def output_folder(settings: OutputArguments, accelerator: Accelerator) -> Iterator[Path]:
    """Make the output folder of a training, and lock it as long as the training runs.

    Raises `ValueError` where another training runs in it, or has left its files and `--resume` is not given.
    """
    output = Path(settings.output_dir)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output_dir {output} is a file: name a folder.")
    refuse_files(output, settings)
    accelerator.wait_for_everyone()
    with lock(output, settings) if accelerator.is_main_process else contextlib.nullcontext():
        accelerator.wait_for_everyone()  # until the first process has looked, too, the others write nothing
        for name in ("checkpoints", "logs", "figures"):
            (output / name).mkdir(parents=True, exist_ok=True)
        yield output


@contextlib.contextmanager
def lock(output: Path, settings: OutputArguments) -> Iterator[None]:
    """Hold the lock of a training in the folder `output`."""
    output.mkdir(parents=True, exist_ok=True)
    holder = FileLock(output / LOCK)
    try:
        holder.acquire(timeout=SECONDS)
    except Timeout:
        raise ValueError(
            f"A training runs in {output}: wait for its end, or stop it and add --resume. To train another one "
            "meanwhile, name a new folder with --output_dir."
        ) from None
    try:
        refuse_files(output, settings)  # again: another training may have had the lock
        yield
    finally:
        holder.release()


def refuse_files(output: Path, settings: OutputArguments) -> None:
    """Refuse to mix two runs in one folder."""
    if not settings.resume and output.exists() and any(path.name != LOCK for path in output.iterdir()):
        raise ValueError(
            f"{output} is not empty. To go on with the run in it, add --resume; to store another beside it, name a "
            "new folder with --output_dir; to start again, remove it first."
        )
