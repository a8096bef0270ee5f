"""Scoring gives numbers that can be worked out by hand, and the same ones whatever the number of processes."""

import json
import types

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import DataLoader

from modeling_handunet import HandUNetImageProcessor, IoULoss, render_heatmaps
from tests.tiny_training import NoiseHands, fork_call, free_port, wait_for_end
from training.evaluation import load_metric, mean_pose_arrays, predict, score, score_by_group
from training.inputs import gaussian_targets, normalize


class Pointwise(nn.Module):
    """A stand-in for the network whose answer for one image is the same bits in every batch."""

    def __init__(self):
        super().__init__()
        self.loss = IoULoss()

    def forward(self, pixel_values):  # (B, 3, S, S)
        gains = torch.arange(1, 22).reshape(21, 1, 1) / 32
        return types.SimpleNamespace(heatmaps=(pixel_values[:, :1] * gains).clamp(0, 1), hand_logits=None)


def predict_with(samples: int, batch_size: int) -> dict[str, np.ndarray]:
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(NoiseHands(samples), batch_size))
    return predict(accelerator, Pointwise(), loader, lambda inputs: gaussian_targets(inputs, sigma=3.0))


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_crops_are_normalised_as_the_image_processor_does_it():
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    channels_last = pixels.permute(0, 2, 3, 1).numpy()
    expected = torch.from_numpy(HandUNetImageProcessor().normalize_pixels(channels_last))
    torch.testing.assert_close(normalize(pixels), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(normalize(pixels.float() / 255), expected, atol=1e-6, rtol=0)


def test_predictions_come_in_the_order_of_the_samples_with_the_loss_of_each():
    arrays = predict_with(5, batch_size=2)
    assert arrays["index"].tolist() == [0, 1, 2, 3, 4]
    assert {name: values.shape for name, values in arrays.items()} == {
        "predictions": (5, 21, 2), "keypoints": (5, 21, 2), "scores": (5, 21), "visibility": (5, 21),
        "box_size": (5,), "loss": (5,), "index": (5,),
    }  # fmt: skip
    item = NoiseHands(5)[3]
    heatmaps = Pointwise()(normalize(item["image"][None])).heatmaps
    targets = render_heatmaps(item["keypoints"][None], 128, 3.0)
    loss = IoULoss()(heatmaps, targets, item["visibility"][None])
    np.testing.assert_allclose(arrays["loss"][3], loss, rtol=1e-6)
    np.testing.assert_array_equal(arrays["keypoints"][3], item["keypoints"])


def test_the_score_is_the_metrics_and_the_mean_loss_over_hands_that_can_be_seen():
    keypoints = np.full((3, 21, 2), 50.0)
    visibility = np.ones((3, 21), bool)
    visibility[2] = False
    arrays = {
        "predictions": keypoints + np.array([3.0, 4.0]),  # 5 px off
        "keypoints": keypoints,
        "scores": np.ones((3, 21)),
        "visibility": visibility,
        "box_size": np.full(3, 60.0),
        "loss": np.array([0.25, 0.75, 100.0], np.float32),
        "index": np.arange(3),
    }
    figures = score(load_metric(), arrays)
    assert figures["loss"] == 0.5
    assert figures["mean_error_px_128"] == pytest.approx(5.0)
    assert figures["mean_error_percent"] == pytest.approx(100 * 5 / 128)
    assert figures["pck@0.05"] == 0.0 and figures["pck@0.1"] == 1.0  # 3 and 6 px of a box of 60


def test_the_mean_pose_is_that_of_the_visible_keypoints():
    class Two:
        def __len__(self):
            return 2

        def __getitems__(self, indices):
            visible = torch.ones(2, 21, dtype=torch.bool)
            visible[1, 4] = False
            return [{"keypoints": torch.full((21, 2), 10.0 + 20 * i), "visibility": visible[i]} for i in indices]

    arrays = {"predictions": np.zeros((3, 21, 2)), "scores": np.zeros((3, 21)), "index": np.arange(3)}
    mean = mean_pose_arrays(Two(), arrays)
    assert mean["predictions"].shape == (3, 21, 2)
    assert (mean["predictions"][:, 4] == 10).all()  # seen in the first hand only
    assert (np.delete(mean["predictions"], 4, axis=1) == 20).all()
    assert (mean["scores"] == 1).all() and (mean["index"] == np.arange(3)).all()


@pytest.mark.slow
@pytest.mark.parametrize("samples, batch_size", [(7, 2), (5, 4), (1, 2), (8, 2)])
def test_two_processes_give_the_figures_of_one_to_the_last_bit(tmp_path, samples, batch_size):
    metric = load_metric()

    def evaluate() -> None:
        arrays = predict_with(samples, batch_size)
        accelerator = Accelerator()
        assert accelerator.num_processes == 2
        np.savez(tmp_path / f"{accelerator.process_index}.npz", **arrays)
        accelerator.end_training()

    log, port = tmp_path / "log", free_port()
    log.touch()
    pids = [fork_call(evaluate, log=log, rank=rank, processes=2, port=port) for rank in range(2)]
    assert wait_for_end(*pids) == [0, 0], log.read_text()
    one = predict_with(samples, batch_size)
    for rank in range(2):
        two = dict(np.load(tmp_path / f"{rank}.npz"))
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(two[name], one[name], err_msg=name)
        assert json.dumps(score(metric, two)) == json.dumps(score(metric, one))


def test_groups_are_scored_apart():
    keypoints = np.tile(np.linspace(20, 100, 42).reshape(21, 2), (4, 1, 1))
    offsets = np.array([1.28, 2.56, 3.84, 1.28])  # px of 128: 1, 2, 3 and 1 %
    arrays = {
        "predictions": keypoints + np.stack([offsets, np.zeros(4)], -1)[:, None],
        "keypoints": keypoints,
        "scores": np.full((4, 21), 0.5),
        "visibility": np.ones((4, 21), bool),
        "box_size": np.full(4, 64.0),
        "loss": np.array([0.1, 0.2, 0.3, 0.4]),
        "index": np.array([0, 2, 3, 5]),
    }
    arrays["visibility"][3] = False
    results = score_by_group(load_metric(), arrays, ["a", "?", "b", "a", "?", "c"])
    assert results.keys() == {"a", "b"}  # no sample of ? was scored, and c has no keypoint
    assert results["a"]["mean_error_percent"] == pytest.approx(2.0) and results["a"]["num_hands"] == 2
    assert results["b"]["mean_error_percent"] == pytest.approx(2.0) and results["b"]["num_hands"] == 1
    assert (results["a"]["loss"], results["b"]["loss"]) == pytest.approx((0.2, 0.2))
