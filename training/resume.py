"""What a checkpoint stores of a run, and how a run goes on from it; on CPUs with the same results, bit for bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import NoneType

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from training.checkpoints import BEST, STATE, UNFINISHED, BrokenCheckpoint
from training.run import Run

AVERAGE = "average.safetensors"
BEST_AVERAGE = "best.safetensors"


def save_checkpoint(run: Run) -> None:
    """Write a checkpoint, unless the newest has the same state.  Raises `OSError` on every process if one cannot write."""
    name = f"step-{run.step:08d}-{run.epoch:05d}-{run.batch:08d}"
    if name == run.newest_checkpoint:
        return
    state = {name: getattr(run, name) for name in run.COUNTERS + run.FIGURES}
    state |= {
        "arguments": run.args.to_dict(),
        "processes": run.accelerator.num_processes,
        "model": run.task.shape_of(run.config),
        "data": run.data,
        "loss_sums": gather_object([run.loss_sum.tolist()]),
        "averaged": int(run.average.n_averaged),
        "schedule": run.schedule.state_dict(),
    }
    folder = run.checkpoints.folder / (name + UNFINISHED)

    def finish():
        save_file(run.averaged_weights(), folder / AVERAGE)
        if run.best:
            save_file(run.best_weights, folder / BEST_AVERAGE)
        run.checkpoints.finish(name, state)
        run.checkpoints.prune()

    failure = on_main(run, lambda: run.checkpoints.unfinished(name))
    failure = failure or on_all(run, lambda: run.accelerator.save_state(str(folder), safe_serialization=True))
    failure = failure or on_main(run, finish)
    if failure:
        on_main(run, lambda: run.checkpoints.discard(name))
        raise OSError(
            f"The checkpoint {name} could not be written: {failure}. Earlier checkpoints are whole: make room or "
            "mend the folder, and go on with --resume."
        )
    run.newest_checkpoint = name


def keep_best(run: Run) -> None:
    """Store the averaged weights as the best of the run.  The last entry of `history` has their figures."""
    run.best = run.history[-1]
    run.best_weights = run.averaged_weights()
    save_best(run)


def save_best(run: Run) -> None:
    """Write the best weights and their figures into the folder `best`.  Checkpoints have them, too."""

    def write():
        save_file(run.best_weights, run.checkpoints.unfinished(BEST) / AVERAGE)
        run.checkpoints.finish(BEST, {"best": run.best, "model": run.task.shape_of(run.config)})

    failure = on_main(run, write)
    if failure:
        on_main(run, lambda: run.checkpoints.discard(BEST))
        raise OSError(
            f"The best weights could not be written: {failure}. Earlier checkpoints are whole: make room or mend "
            "the folder, and go on with --resume."
        )


def best_model(run: Run) -> PreTrainedModel:
    """A model with the best weights of the run, or the last ones if asked for, or with the mean of them and of those that
    `--average_with` names."""
    model = run.task.model_class(run.config)
    model.load_state_dict(run.averaged_weights() if run.args.model.last_weights else run.best_weights)
    if name := run.args.model.average_with:
        mine, other = (one.state_dict() for one in (model, run.task.model_class.from_pretrained(name, dtype=torch.float32)))
        both = {key for key, value in mine.items() if key in other and value.is_floating_point()}  # a hand classifier may lack
        mean = {key: (value + other[key]) / 2 if key in both else value for key, value in mine.items()}
        model.load_state_dict(mean)
    return model


def resume(run: Run) -> str:
    """Go back to the newest whole checkpoint and return what happened in a sentence.

    Raises `ValueError` when the settings differ, naming them, or when there are checkpoints but none is whole.
    """
    folder, state, passed_over = run.checkpoints.newest(lambda state: check_state(run, state))
    reasons = "".join(f"\n  passed over {name}: {reason}" for name, reason in passed_over.items())
    if folder is None:
        if passed_over:
            raise ValueError(f"No checkpoint in {run.checkpoints.folder} can be resumed:{reasons}")
        return f"No checkpoint in {run.checkpoints.folder} yet: starting from the beginning."
    differences = run.args.differences(state["arguments"])
    if state["processes"] != run.accelerator.num_processes:
        differences.append(f"the run had {state['processes']} processes and has {run.accelerator.num_processes}")
    changed = [name for name, digest in run.data.items() if state["data"][name] != digest]
    differences += [f"the {name} data is not the same" for name in changed]
    if differences:
        raise ValueError(
            f"--resume with other settings than {folder} was made with: {'; '.join(differences)}. Give the same "
            "ones, or start another run: a new --output_dir, with --init for the weights."
        )
    try:
        load_checkpoint(run, folder, state)
    except Exception as error:  # each of the libraries that read its files raises many kinds
        raise ValueError(
            f"The files of {folder} are those that were written, but they cannot be loaded: {type(error).__name__}: "
            f"{str(error)[:300]}. It is of another version, or it was changed: remove it to go on from an older one."
        ) from error
    failure = on_main(run, lambda: run.checkpoints.set_aside(passed_over))
    failure = failure or on_main(run, run.checkpoints.prune)  # the run may have been killed before it removed old ones
    if failure:
        raise OSError(f"{run.checkpoints.folder} could not be tidied: {failure}. Mend the folder.")
    if run.best:  # the folder `best` may be newer than this checkpoint, or damaged
        save_best(run)
    return f"Resumed from {folder}: epoch {run.epoch + 1}, step {run.step}.{reasons}"


def load_checkpoint(run: Run, folder: Path, state: dict) -> None:
    """Set the run to what a whole checkpoint holds."""
    run.accelerator.load_state(str(folder), load_kwargs={"weights_only": True})
    for name in run.COUNTERS + run.FIGURES:
        setattr(run, name, state[name])
    run.loss_sum = torch.tensor(state["loss_sums"][run.accelerator.process_index], dtype=torch.float64)
    run.schedule.load_state_dict(state["schedule"])
    run.average.module.load_state_dict(load_file(folder / AVERAGE))
    run.average.n_averaged.fill_(state["averaged"])
    run.best_weights = load_file(folder / BEST_AVERAGE) if run.best else {}
    run.newest_checkpoint = folder.name


def check_state(run: Run, state: dict) -> None:
    """Raise [`BrokenCheckpoint`] for a checkpoint whose state is not whole, or which is of another network."""
    mine = run.task.shape_of(run.config)
    expected = dict.fromkeys(run.COUNTERS, int) | {"best": (dict, NoneType), "history": list, "arguments": dict}
    expected |= {"processes": int, "model": dict, "data": dict, "loss_sums": list, "averaged": int, "schedule": dict}
    for name, kind in expected.items():
        if not isinstance(state.get(name, ...), kind):
            found = json.dumps(state[name])[:40] if name in state else "nothing"
            raise BrokenCheckpoint(f"{STATE} says {found} under {name!r}: it was not written by this version, or changed since")
    if missing := run.data.keys() - state["data"].keys():
        raise BrokenCheckpoint(f"{STATE} does not say what the {min(missing)} data was")
    its = state["model"]
    other = [f"{name} {its.get(name)} instead of {value}" for name, value in mine.items() if its.get(name) != value]
    if other:
        raise BrokenCheckpoint(f"holds another model, with {', '.join(other)}")


def on_main(run: Run, action: Callable[[], object]) -> str | None:
    """Run `action` on the main process, wait for it, and say what went wrong."""
    return on_all(run, action if run.accelerator.is_main_process else lambda: None)


def on_all(run: Run, action: Callable[[], object]) -> str | None:
    """Run `action` on every process, wait for all, and say what went wrong on any of them."""
    problem = None
    try:
        action()
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError is torch.save's for a full disk
        room = shutil.disk_usage(run.checkpoints.folder).free / 1e6
        problem = f"{error} ({room:.1f} MB are free there)"
    return next((problem for problem in gather_object([problem]) if problem), None)
