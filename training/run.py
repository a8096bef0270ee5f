"""What a run carries from step to step, and how a checkpoint holds it and gives it back, on CPUs bit for bit."""

import hashlib
import itertools
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset, default_collate

from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation
from training.arguments import Arguments
from dataset_script.augmentation import Augmentation, augmentation_keys
from training.checkpoints import BEST, UNFINISHED, BrokenCheckpoint, Checkpoints
from training.data import EpochShuffle, LayerStream, Resident, Splits, Stream, as_it_is, resident_where_it_fits
from training.initial_weights import make_model
from training.optimisation import averaged_model, make_optimizer, make_schedule

AVERAGE = "average.safetensors"
BEST_AVERAGE = "best.safetensors"
# Samples of each split, evenly spread, by which a resumed run knows its data again.
FINGERPRINT_SAMPLES = 32
# Samples for which a GPU makes scenes at a time, at most: with 2048 it moves memory rather than wait for orders.
SCENES_AT_ONCE = 2048
# Bytes that making a scene takes, for each of its pixels: 4 MB at 128 px.
SCENE_BYTES_PER_PIXEL = 250


def make_loader(dataset: Dataset, args: Arguments, **more) -> DataLoader:
    """Batches of `dataset`, whose workers outlive a signal that asks the run to stop; one on a device needs none."""
    workers = 0 if isinstance(dataset, Resident) else args.workers
    collate = as_it_is if isinstance(dataset, Resident | LayerStream) else None
    init = outlive_interrupts if workers else None
    return DataLoader(dataset, args.batch_size, num_workers=workers, worker_init_fn=init, collate_fn=collate, **more)


def outlive_interrupts(worker: int) -> None:
    """Let a dataloader's worker go on when Ctrl-C or SIGTERM reaches the whole process group.

    The run needs its batches until the step is done; a worker that nothing else ends is gone 20 s after a SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(20) and os._exit(0))


def batches_at_once(args: Arguments, device: torch.device) -> int:
    """How many batches' scenes are made together: as many as a quarter of a GPU's free memory takes, otherwise one.

    Looking ahead tells accelerate of the last batch too early, which it heeds when it accumulates gradients.
    """
    if device.type != "cuda" or args.gradient_accumulation_steps > 1:
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    samples = min(SCENES_AT_ONCE, free // (4 * SCENE_BYTES_PER_PIXEL * args.image_size**2))
    return max(1, samples // args.batch_size)


def made_together(
    batches: Iterable[dict], make: Callable[[dict], tuple[torch.Tensor, ...]], count: int
) -> Iterator[tuple[dict, tuple[torch.Tensor, ...]]]:
    """Each of `batches` with its part of what `make` makes of `count` of them at a time."""
    batches = iter(batches)
    while group := list(itertools.islice(batches, count)):
        whole = {name: torch.cat([batch[name] for batch in group]) for name in group[0]} if len(group) > 1 else group[0]
        sizes = [len(batch["index"]) for batch in group]
        yield from zip(group, zip(*(part.split(sizes) for part in make(whole))))


class Run:
    """Model, optimizer, schedule, averaged weights, loaders and counters of one training."""

    # The loop's own state: plain numbers and lists, which JSON holds exactly.
    COUNTERS = ("epoch", "batch", "step", "bad_steps", "skipped_steps", "validations_without_improvement")
    FIGURES = ("best", "history")

    def __init__(self, args: Arguments, accelerator: Accelerator, splits: Splits):
        self.args, self.accelerator, self.splits = args, accelerator, splits
        model = make_model(args)
        self.config = model.config
        args.hidden_sizes = tuple(model.config.hidden_sizes)  # which --init may have set
        model = model.to(memory_format=torch.channels_last)  # faster on CPUs and on GPUs with tensor cores
        self.average = averaged_model(model, args.ema_decay).to(accelerator.device)
        self.sampler = EpochShuffle(len(splits.train), args.seed)
        self.model, self.optimizer, self.train_loader, self.validation_loader, self.test_loader = accelerator.prepare(
            model,
            make_optimizer(args, model),
            make_loader(resident_where_it_fits(splits.train, accelerator.device), args, sampler=self.sampler, drop_last=True),
            make_loader(splits.validation, args),
            make_loader(splits.test, args),
        )
        if len(self.train_loader) == 0:
            raise ValueError(
                f"{len(splits.train)} training samples do not fill a batch of {args.batch_size} on each of "
                f"{accelerator.num_processes} processes: lower --batch_size or raise --train_samples."
            )
        self.steps_per_epoch = math.ceil(len(self.train_loader) / args.gradient_accumulation_steps)
        self.schedule = make_schedule(args, self.optimizer.optimizer, self.steps_per_epoch * args.epochs)
        self.augment = Augmentation(rotation=args.max_rotation).scaled(args.augmentation) if args.augmentation else None
        self.batches_at_once = batches_at_once(args, accelerator.device) if splits.scenes else 1
        self.checkpoints = Checkpoints(Path(args.output_dir) / "checkpoints", args.keep_checkpoints)
        self.epoch = 0  # the epoch that runs
        self.batch = 0  # batches of it that are done, on each process
        self.step = 0  # optimizer steps since the start
        self.bad_steps = 0  # skipped for a NaN or infinite gradient, in a row
        self.skipped_steps = 0  # the same, in all
        self.validations_without_improvement = 0
        self.best: dict | None = None  # figures of the best validation
        self.best_weights: dict[str, torch.Tensor] = {}  # and its averaged weights, on the CPU
        self.history: list[dict] = []  # figures of each epoch
        self.newest_checkpoint: str | None = None
        self.loss_sum = torch.zeros(2, dtype=torch.float64)  # this process's sum of losses and their count
        named = {"training": splits.train, "validation": splits.validation, "test": splits.test}
        self.data = {name: fingerprint(split) for name, split in named.items()}

    def start_epoch(self) -> None:
        """Point sampler and stream at the current epoch."""
        self.sampler.epoch = self.epoch
        if isinstance(self.splits.train, Stream | LayerStream):
            self.splits.train.epoch = self.epoch

    def share_average(self) -> None:
        """Give every process the first one's averaged batch statistics, which are those that are saved."""
        if self.accelerator.num_processes > 1:
            for buffer in self.average.buffers():
                buffer.copy_(broadcast(buffer))

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """A copy of the averaged model's state dict, on the CPU."""
        return {name: value.cpu().contiguous().clone() for name, value in self.average.module.state_dict().items()}

    def inputs(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the network sees of a batch, made on the device.

        Returns images (B, 3, S, S) float in [0, 1], keypoints (B, 21, 2) px, NaN where it is known that there are none,
        and visibility (B, 21) bool: the keypoints that count.
        """
        keypoints, visibility = batch["keypoints"], batch["visibility"]
        keys = augmentation_keys(self.args.seed, self.epoch, batch["index"])
        if self.splits.scenes:
            images, keypoints = self.splits.scenes(batch["image"], keypoints, batch["skin"], keys)
        else:
            images = batch["image"].float() / 255
            if self.augment:
                images, keypoints = self.augment(images, keypoints, keys)
        inside = ((keypoints >= 0) & (keypoints < images.shape[-1])).all(-1)
        return images, keypoints, visibility & (inside | keypoints.isnan().all(-1))

    def with_inputs(self, batches: Iterable[dict]) -> Iterator[tuple[dict, tuple[torch.Tensor, ...]]]:
        """Each batch with what the network sees of it.

        A scene takes thousands of small operations, which a GPU does as fast for thousands of samples as for one, so
        there the inputs of several steps are made at once.
        """
        return made_together(batches, self.inputs, self.batches_at_once)

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint of this moment, once; raises `OSError` on every process when one cannot write."""
        name = f"step-{self.step:08d}-{self.epoch:05d}-{self.batch:08d}"
        if name == self.newest_checkpoint:
            return
        state = {name: getattr(self, name) for name in self.COUNTERS + self.FIGURES}
        state |= {
            "arguments": self.args.to_dict(),
            "processes": self.accelerator.num_processes,
            "model": shape_of(self.config),
            "data": self.data,
            "loss_sums": gather_object([self.loss_sum.tolist()]),
            "averaged": int(self.average.n_averaged),
            "schedule": self.schedule.state_dict(),
        }
        folder = self.checkpoints.folder / (name + UNFINISHED)

        def finish():
            save_file(self.averaged_weights(), folder / AVERAGE)
            if self.best:
                save_file(self.best_weights, folder / BEST_AVERAGE)
            self.checkpoints.finish(name, state)
            self.checkpoints.prune()

        failure = self._on_main(lambda: self.checkpoints.unfinished(name))
        failure = failure or self._on_all(lambda: self.accelerator.save_state(str(folder), safe_serialization=True))
        failure = failure or self._on_main(finish)
        if failure:
            self._on_main(lambda: self.checkpoints.discard(name))
            raise OSError(
                f"The checkpoint {name} could not be written: {failure}. Earlier checkpoints are whole: make room or "
                "mend the folder, and go on with --resume."
            )
        self.newest_checkpoint = name

    def keep_best(self) -> None:
        """Keep the averaged weights as the best of the run, which the last figures of `history` are about."""
        self.best = self.history[-1]
        self.best_weights = self.averaged_weights()
        self.save_best()

    def save_best(self) -> None:
        """Write the best weights and their figures into a folder of their own; checkpoints hold them, too."""

        def write():
            save_file(self.best_weights, self.checkpoints.unfinished(BEST) / AVERAGE)
            self.checkpoints.finish(BEST, {"best": self.best, "model": shape_of(self.config)})

        failure = self._on_main(write)
        if failure:
            self._on_main(lambda: self.checkpoints.discard(BEST))
            raise OSError(
                f"The best weights could not be written: {failure}. Earlier checkpoints are whole: make room or mend "
                "the folder, and go on with --resume."
            )

    def load_best(self) -> HandUNetForPoseEstimation:
        """A model with the best weights of the run."""
        model = HandUNetForPoseEstimation(self.config)
        model.load_state_dict(self.best_weights)
        return model

    def resume(self) -> str:
        """Go back to the newest whole checkpoint and return what happened in a sentence.

        Raises `ValueError` when the settings differ, naming them, or when there are checkpoints but none is whole.
        """
        folder, state, passed_over = self.checkpoints.newest(self._check_model)
        reasons = "".join(f"\n  passed over {name}: {reason}" for name, reason in passed_over.items())
        if folder is None:
            if passed_over:
                raise ValueError(f"No checkpoint in {self.checkpoints.folder} can be resumed:{reasons}")
            return f"No checkpoint in {self.checkpoints.folder} yet: starting from the beginning."
        differences = self.args.differences(state["arguments"])
        if state["processes"] != self.accelerator.num_processes:
            differences.append(f"the run had {state['processes']} processes and has {self.accelerator.num_processes}")
        changed = [name for name, digest in self.data.items() if state["data"][name] != digest]
        differences += [f"the {name} data is not the same" for name in changed]
        if differences:
            raise ValueError(
                f"--resume with other settings than {folder} was made with: {'; '.join(differences)}. Give the same "
                "ones, or start another run: a new --output_dir, with --init for the weights."
            )
        self.accelerator.load_state(str(folder), load_kwargs={"weights_only": True})
        for name in self.COUNTERS + self.FIGURES:
            setattr(self, name, state[name])
        self.loss_sum = torch.tensor(state["loss_sums"][self.accelerator.process_index], dtype=torch.float64)
        self.schedule.load_state_dict(state["schedule"])
        self.average.module.load_state_dict(load_file(folder / AVERAGE))
        self.average.n_averaged.fill_(state["averaged"])
        self.newest_checkpoint = folder.name
        failure = self._on_main(lambda: self.checkpoints.set_aside(passed_over))
        failure = failure or self._on_main(self.checkpoints.prune)  # the run may have died before it did
        if failure:
            raise OSError(f"{self.checkpoints.folder} could not be tidied: {failure}. Mend the folder.")
        if self.best:  # the folder of the best may be that of a validation which comes again, or have been damaged
            self.best_weights = load_file(folder / BEST_AVERAGE)
            self.save_best()
        return f"Resumed from {folder}: epoch {self.epoch + 1}, step {self.step}.{reasons}"

    def _check_model(self, state: dict) -> None:
        mine, its = shape_of(self.config), state.get("model")
        if not isinstance(its, dict):
            raise BrokenCheckpoint("does not say which model it holds")
        other = [f"{name} {its.get(name)} instead of {value}" for name, value in mine.items() if its.get(name) != value]
        if other:
            raise BrokenCheckpoint(f"holds another model, with {', '.join(other)}")

    def _on_main(self, action) -> str | None:
        return self._on_all(action if self.accelerator.is_main_process else lambda: None)

    def _on_all(self, action) -> str | None:
        """Run `action` and wait for all processes; what went wrong on any of them."""
        problem = None
        try:
            action()
        except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError is torch.save's for a full disk
            room = shutil.disk_usage(self.checkpoints.folder).free / 1e6
            problem = f"{error} ({room:.1f} MB are free there)"
        return next((problem for problem in gather_object([problem]) if problem), None)


def shape_of(config: HandUNetConfig) -> dict:
    """What two models must share to share weights."""
    return {
        "hidden_sizes": list(config.hidden_sizes),
        "num_keypoints": config.num_keypoints,
        "image_size": config.image_size,
        "num_channels": config.num_channels,
    }


def fingerprint(dataset: Dataset) -> str:
    """Hex digest of evenly spread samples of `dataset` and of its length, wherever its files lie."""
    count = min(len(dataset), FINGERPRINT_SAMPLES)
    digest = hashlib.sha256(str(len(dataset)).encode())
    batch = dataset.__getitems__([number * len(dataset) // count for number in range(count)])
    batch = batch if isinstance(batch, dict) else default_collate(batch)
    for row in range(count):
        for name in ("image", "keypoints", "visibility"):
            digest.update(batch[name][row].cpu().numpy().tobytes())
    return digest.hexdigest()


def is_better(figure: float, best: float | None) -> bool:
    """Whether an error is an improvement; NaN never is."""
    return np.isfinite(figure) and (best is None or figure < best)
