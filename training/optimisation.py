"""What moves the weights: the optimizer, its schedule, and the moving average that is validated and shipped."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import get_cosine_schedule_with_warmup

from training.arguments import OptimisationArguments


def make_optimizer(settings: OptimisationArguments, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW without decay on batch normalisation, or plain SGD."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    weights = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, settings.learning_rate)


def make_schedule(settings: OptimisationArguments, optimizer: torch.optim.Optimizer, steps: int):
    """A cosine to zero over `steps` after a warm-up, stepped after each step; or "plateau", stepped after each epoch.

    "plateau" halves the learning rate if the training loss has not improved for two thirds of `patience`.  If `patience` is 2
    or more, this always comes before the run stops.
    """
    if settings.schedule == "plateau":
        patience = max(0, min(round(settings.patience * 2 / 3), settings.patience - 2))
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)
    return get_cosine_schedule_with_warmup(optimizer, int(steps * settings.warmup_share), steps)


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` that `update_parameters` moves towards it, batch statistics included.

    Move its `module` to a device, not the whole: the count of updates stays on the CPU, so that nothing waits to read it.
    After n updates the decay is (1 + n) / (10 + n), but at most `decay`.  So the first weights, which are bad, soon count
    little in short runs, too.  A `decay` of 0 copies the model.
    """

    @torch.no_grad()
    def average(averaged: list[torch.Tensor], current: list[torch.Tensor], _) -> None:
        count = int(copy.n_averaged)
        rate = 1 - min(decay, (1 + count) / (10 + count))
        if averaged[0].is_floating_point():  # all have one type
            torch._foreach_lerp_(averaged, current, rate)
        else:
            torch._foreach_copy_(averaged, current)

    copy = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    return copy
