"""What a training carries from step to step: its state, and nothing that acts on it."""

import math
import random
from pathlib import Path

import torch
from accelerate import Accelerator

from dataset_script.sources import Source
from training.arguments import Arguments
from training.batches import EpochShuffle, fingerprint, make_loader, on_gpu_if_it_fits, set_epoch
from training.checkpoints import Checkpoints
from training.inputs import batches_at_once
from training.optimisation import averaged_model, make_optimizer, make_schedule
from training.tasks import make_task


class Run:
    """Model, optimizer, schedule, averaged weights, loaders and counters of one training."""

    # Plain numbers and lists, which JSON holds exactly.
    COUNTERS = ("epoch", "batch", "step", "bad_steps", "skipped_steps", "validations_without_improvement")
    FIGURES = ("best", "history")

    def __init__(self, args: Arguments, accelerator: Accelerator, source: Source):
        self.args, self.accelerator, self.source = args, accelerator, source
        self.task = make_task(args)
        self.splits = splits = source.splits()
        settings, workers = args.optimisation, args.data.workers
        model = self.task.make_model()
        self.config = model.config
        model = model.to(memory_format=torch.channels_last)  # faster on CPUs and on GPUs with tensor cores
        self.average = averaged_model(model, settings.ema_decay)
        self.average.module.to(accelerator.device)
        self.sampler = EpochShuffle(len(splits.train), settings.seed)
        train = on_gpu_if_it_fits(splits.train, accelerator.device)
        self.model, self.optimizer, self.train_loader, self.validation_loader, self.test_loader = accelerator.prepare(
            model,
            make_optimizer(settings, model),
            make_loader(train, settings.batch_size, workers, sampler=self.sampler, drop_last=True),
            make_loader(splits.validation, settings.batch_size, workers),
            make_loader(splits.test, settings.batch_size, workers),
        )
        if len(self.train_loader) == 0:
            raise ValueError(
                f"{len(splits.train)} training samples do not fill a batch of {settings.batch_size} on each of "
                f"{accelerator.num_processes} processes: lower --batch_size or raise --train_samples."
            )
        self.steps_per_epoch = math.ceil(len(self.train_loader) / settings.gradient_accumulation_steps)
        self.schedule = make_schedule(settings, self.optimizer.optimizer, self.steps_per_epoch * settings.epochs)
        self.make_targets = self.task.make_targets
        self.batches_at_once = batches_at_once(args, accelerator.device)
        self.checkpoints = Checkpoints(Path(args.output.output_dir) / "checkpoints", args.output.keep_checkpoints)
        self.epoch = 0  # the epoch that is running
        self.batch = 0  # batches of this epoch that are done, on each process
        self.step = 0  # optimizer steps since the start
        self.bad_steps = 0  # steps in a row that were skipped for a NaN or infinite gradient
        self.skipped_steps = 0  # all steps that were skipped
        self.validations_without_improvement = 0
        self.best: dict | None = None  # figures of the best validation
        self.best_weights: dict[str, torch.Tensor] = {}  # and its averaged weights, on the CPU
        self.history: list[dict] = []  # figures of each epoch
        self.newest_checkpoint: str | None = None
        self.loss_sum = torch.zeros(2, dtype=torch.float64)  # this process's sum of losses and their count
        named = {"training": splits.train, "validation": splits.validation, "test": splits.test}
        self.data = {name: fingerprint(split) for name, split in named.items()}

    def start_epoch(self) -> None:
        """Tell the sampler and the training data the current epoch."""
        self.sampler.epoch = self.epoch
        set_epoch(self.splits.train, self.epoch)

    def seed_batch(self) -> None:
        """Let what the network draws at random, the hand classifier's dropout, depend on this batch and process alone."""
        place = (self.args.optimisation.seed, self.epoch, self.batch, self.accelerator.process_index)
        torch.manual_seed(random.Random(str(place)).getrandbits(63))

    @property
    def chosen(self) -> dict:
        """The figures of the weights that become the model."""
        return self.history[-1] if self.args.model.last_weights else self.best

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """A copy of the averaged model's state dict, on the CPU."""
        return {name: value.cpu().contiguous().clone() for name, value in self.average.module.state_dict().items()}
