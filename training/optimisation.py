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
    """Cosine to zero over `steps` after a warm-up, stepped per step; or halved on a plateau, stepped per epoch.

    It is halved after two thirds of the patience that ends the run, and, from a patience of 2 on, always before that end.
    """
    if settings.schedule == "plateau":
        patience = max(0, min(round(settings.patience * 2 / 3), settings.patience - 2))
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)
    return get_cosine_schedule_with_warmup(optimizer, int(steps * settings.warmup_share), steps)


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` that `update_parameters` moves towards it, batch statistics included.

    The decay grows as (1 + n) / (10 + n) over the updates n up to `decay`, so that short runs are not held back by
    their first weights; a `decay` of 0 always copies.
    """

    @torch.no_grad()
    def average(averaged: list[torch.Tensor], current: list[torch.Tensor], count) -> None:
        rate = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for mine, new in zip(averaged, current):
            if mine.is_floating_point():
                mine.lerp_(new, rate)
            else:
                mine.copy_(new)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
