"""What a task is: the network that a run trains, its targets, and how its answers are judged and told.

The loop of `train.py` asks nothing else.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedConfig, PreTrainedModel

from dataset_script.sources import DetectionInputs, Inputs
from training.arguments import Arguments

Arrays = dict[str, np.ndarray]
# Keyword arguments of the network's `forward`, beside `pixel_values`.
MakeTargets = Callable[[Inputs | DetectionInputs], dict]


class Task:
    """One task.  Subclasses set the class attributes and write the methods."""

    model_class: ClassVar[type[PreTrainedModel]]
    pipeline: ClassVar[str]  # transformers' name of the task
    things: ClassVar[str]  # what is counted in a split
    selected_by: ClassVar[str]  # the figure of the validation split that chooses the weights
    higher_is_better: ClassVar[bool]
    try_it: ClassVar[str]  # how a user meets the finished network, whose folder is {model}
    # What two networks must share to share weights.
    shape: ClassVar[tuple[str, ...]]

    def __init__(self, args: Arguments):
        self.args = args

    # The network

    def make_model(self) -> PreTrainedModel:
        """The network to train, with its first weights."""
        raise NotImplementedError

    def load_model(self, name: str) -> PreTrainedModel:
        """A finished network, a folder or an id on the Hub, with this package's code."""
        raise NotImplementedError

    def shape_of(self, config: PreTrainedConfig) -> dict:
        """The `shape` of a network, as JSON holds it."""
        values = {name: getattr(config, name) for name in self.shape}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def make_targets(self, inputs: Inputs | DetectionInputs) -> dict:
        """What the network is to learn of these inputs, as keyword arguments of its `forward`."""
        raise NotImplementedError

    # Its figures

    def load_metric(self):
        """The project's metric."""
        raise NotImplementedError

    def predict(
        self, accelerator: Accelerator, model: PreTrainedModel, loader: DataLoader, make_targets: MakeTargets | None = None
    ) -> Arrays:
        """Float32 answers for all samples of a prepared `loader`, gathered on every process and ordered by sample, with the
        loss of each against `make_targets`, by default the targets that a finished network is judged by."""
        raise NotImplementedError

    def score(self, metric, arrays: Arrays) -> dict:
        """The metric's figures for what [`Task.predict`] returned, and the `loss`."""
        raise NotImplementedError

    def score_by_group(self, metric, arrays: Arrays, groups: Sequence[str]) -> dict[str, dict]:
        """[`Task.score`]'s figures for each group; `groups` has that of every sample of the split, by its index."""
        raise NotImplementedError

    def is_better(self, figures: dict, best: dict | None) -> bool:
        """Whether figures of the validation split are better than the best so far; NaN never is."""
        mine, sign = figures[self.selected_by], 1 if self.higher_is_better else -1
        return bool(np.isfinite(mine)) and (best is None or sign * mine > sign * best[self.selected_by])

    # What is told

    def in_words(self, figures: dict) -> str:
        """What a line of the log says of figures of the validation split."""
        raise NotImplementedError

    def table(self, figures: dict, parts: dict[str, dict], grouped_by: str) -> str:
        """Figures of a split, and those of its groups, for people."""
        return json.dumps(figures, indent=2)

    def logged(self, figures: dict) -> dict[str, float]:
        """The figures of the validation split for tensorboard, beside its loss."""
        raise NotImplementedError

    def final_metrics(self, run, metric, test: Arrays, validation: Arrays, negatives: dict[str, Arrays], boxed=None) -> dict:
        """All figures of a run: `metrics.json`.  `boxed` are the answers for `Splits.boxed_hands`, if there are any."""
        raise NotImplementedError

    def draw_figures(self, folder: Path, metrics: dict, arrays: Arrays, test: Dataset, loss_name: str) -> list[Path]:
        """Draw all figures of a run into `folder`; returns their files."""
        raise NotImplementedError

    def make_processor(self, metrics: dict):
        """The image processor of a finished network."""
        raise NotImplementedError

    def summary(self, metrics: dict) -> str:
        """The figures of the test split in a sentence or two."""
        raise NotImplementedError
