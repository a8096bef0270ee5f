"""An exponential moving average of the weights: what is validated, kept as best and shipped."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


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
