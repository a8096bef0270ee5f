"""A run's state, from its settings to its loss, and the one place where its loss and its targets are made."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import train
from dataset_script import HandCrops, SyntheticHands
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from tests.tiny_training import make_run, train_steps
from training import figures
from training.arguments import make_arguments
from training.evaluation import load_metric
from training.optimisation import make_schedule
from training.report import make_report


def network(*sizes: int) -> HandUNetForPoseEstimation:
    torch.manual_seed(0)
    return HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=sizes, image_size=32, sigma=2.0))


def test_what_is_saved_of_a_run_is_what_it_started_from_and_was_told(tmp_path):
    network(4, 6, 8).save_pretrained(tmp_path / "start")
    run = make_run(tmp_path / "run", init=str(tmp_path / "start"), hidden_sizes=None, image_size=64, sigma=1.5)
    assert run.config.hidden_sizes == (4, 6, 8) and run.args.to_dict()["hidden_sizes"] == [4, 6, 8]
    assert run.config.sigma == 1.5 and run.model.loss.energy == pytest.approx(torch.pi * 1.5**2)


def test_the_training_loss_is_that_of_all_batches_of_the_steps(tmp_path):
    """With weights that stand still, accumulating gradients over two batches changes no figure."""
    sums = []
    for batches in (1, 2):
        settings = {"batch_size": 4 // batches, "gradient_accumulation_steps": batches, "augmentation": 0.0}
        run = make_run(tmp_path / str(batches), learning_rate=1e-30, **settings)
        run.model.eval()
        run.model.train = lambda *_: None  # batch statistics stand still, too
        train_steps(run)
        total, count = run.loss_sum.tolist()
        assert count == 2
        sums.append(total)
    assert sums[0] == pytest.approx(sums[1], rel=0.02)  # the mean over batches; keypoints outside weigh a little otherwise


def test_a_model_is_scored_and_trained_on_crops_as_it_wants_them_unless_others_are_asked_for(tmp_path):
    HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8), image_size=96, sigma=2.0)).save_pretrained(tmp_path)
    HandUNetImageProcessor(size={"height": 96, "width": 96}, box_fill=0.6).save_pretrained(tmp_path)

    def crops(**settings) -> tuple:
        model = make_arguments(annotations="y", **settings).model
        return model.image_size, model.box_fill, model.sigma

    scored = {"eval_only": True, "model": str(tmp_path)}
    assert crops(**scored) == crops(init=str(tmp_path)) == (96, 0.6, 2.0)
    assert crops(**scored, image_size=64, box_fill=0.5, sigma=4.0) == (64, 0.5, 4.0)
    assert crops() == (128, 0.45, 3.0)


def test_hands_that_are_drawn_as_crops_say_how_much_of_them_a_box_takes():
    """Their model is then given hands of the size that it has learnt, wherever a box cuts them out."""
    for difficulty in ("easy", "full"):
        args = make_arguments(difficulty=difficulty).model
        sizes = [row["box_size"] for row in HandCrops(SyntheticHands(64, difficulty=difficulty), 128)]
        assert np.mean(sizes) / 128 == pytest.approx(args.box_fill, abs=0.02)


@pytest.mark.parametrize("patience, stalled", [(2, 1), (3, 2), (4, 3), (10, 8), (30, 21)])  # 30: the published training's
def test_on_a_plateau_the_learning_rate_is_halved_before_the_run_would_end(patience, stalled):
    optimizer = torch.optim.SGD(network(4).parameters(), 1.0)
    schedule = make_schedule(make_arguments(schedule="plateau", patience=patience).optimisation, optimizer, 100)
    epochs = 0
    while optimizer.param_groups[0]["lr"] == 1.0:
        schedule.step(0.5)
        epochs += 1
    assert epochs - 1 == stalled < patience


class AbsoluteError(nn.Module):
    """A loss that nobody would mistake for another."""

    name, sentence = "absolute error", "the mean absolute error of the heatmaps"

    def __init__(self, sigma: float):
        super().__init__()

    def per_heatmap(self, heatmaps, targets):
        return (heatmaps - targets).abs().mean((2, 3))

    def forward(self, heatmaps, targets, visibility=None):
        return self.per_heatmap(heatmaps, targets)[visibility].mean()


def test_another_loss_in_one_place_is_trained_on_scored_by_drawn_and_on_the_card(tmp_path, monkeypatch):
    monkeypatch.setattr(HandUNetForPoseEstimation, "loss_class", AbsoluteError)
    drawn, axes = [], figures._axes
    monkeypatch.setattr(figures, "_axes", lambda *labels: drawn.append(labels) or axes(*labels))
    run = make_run(tmp_path)
    train_steps(run)
    metric = load_metric()
    train.validate(run, metric, 1.0)
    # Untrained heatmaps are near 0.5 nearly everywhere and targets near 0: an IoU loss would be near 1.
    total, count = run.loss_sum.tolist()
    assert 0.3 < total / count < 0.6 and 0.3 < run.history[0]["validation"]["loss"] < 0.6
    report = make_report(run, run.average.module, {})
    assert report["loss"] == {"name": "absolute error", "sentence": "the mean absolute error of the heatmaps"}
    figures.draw_losses(tmp_path / "losses.png", run.history, report["loss"]["name"])
    assert drawn == [("Loss by epoch", "epoch", "absolute error")]


def test_other_targets_are_one_function_of_the_run(tmp_path):
    run, seen = make_run(tmp_path), []

    def empty(inputs):
        seen.append(inputs.images.shape)
        return {"labels": torch.zeros(len(inputs.images), 21, 128, 128), "visibility": inputs.visibility}

    run.make_targets = empty
    train_steps(run, 1)
    assert seen == [(2, 3, 128, 128)]
    # Squared error on empty maps, over the energy of one Gaussian: 128 * 128 * 0.25 / (9 pi) for maps of 0.5.
    assert run.loss_sum[0].item() == pytest.approx(128 * 128 * 0.25 / (9 * np.pi), rel=0.5)


class Reads(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU: numbers that Python reads, and results whose size depends on numbers."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "index.Tensor")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.")
        by_mask = name == "index.Tensor" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if by_mask or name.split(".")[0] in self.WAITING[:3]:
            self.seen.append(name)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("absent", [False, True])
def test_from_the_targets_to_the_optimizer_nothing_waits_for_the_device(tmp_path, monkeypatch, absent):
    """The loss and whether the gradient is finite are read together, once, by `tolist`, which is not counted here."""
    run, reads, steps = make_run(tmp_path), Reads(), []
    make_targets, take_step = run.make_targets, train.take_step

    def targets_seen(inputs):
        reads.__enter__()
        targets = make_targets(inputs)
        return targets if not absent else targets | {"labels": targets["labels"] * 0}

    def step_unseen(run):
        reads.__exit__(None, None, None)  # the optimizer's counters are on the CPU
        steps.append(list(reads.seen))
        take_step(run)

    run.make_targets = targets_seen
    monkeypatch.setattr(train, "take_step", step_unseen)
    train_steps(run)
    assert steps and not any(steps)
    with Reads() as noticed:
        assert torch.ones(2)[torch.tensor([True, False])].sum().item() == 1
    assert noticed.seen == ["index.Tensor", "_local_scalar_dense.default"]  # so they would have been noticed
