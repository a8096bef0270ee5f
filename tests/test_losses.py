import pytest
import torch

from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation
from modeling_handunet.losses import HeatmapLoss, IoULoss


def test_the_loss_is_one_minus_intersection_over_union_of_each_heatmap():
    y = torch.tensor([[[[1.0, 0.5]], [[0.0, 1.0]]]])  # (1, 2, 1, 2)
    t = torch.tensor([[[[0.5, 0.5]], [[1.0, 0.0]]]])
    # First map: I = 0.5 + 0.25 = 0.75, U = 1.25 + 0.5 - 0.75 = 1, loss 0.25.  Second: I = 0, U = 2, loss 1.
    assert IoULoss()(y, t).item() == pytest.approx((0.25 + 1.0) / 2, abs=1e-6)
    assert IoULoss(eps=1.0)(y, t).item() == pytest.approx((1 - 1.75 / 2 + 1 - 1 / 3) / 2, abs=1e-6)


def test_a_perfect_answer_costs_nothing_and_an_empty_target_almost_one():
    maps = torch.rand(2, 3, 8, 8)
    assert IoULoss()(maps, maps).item() == pytest.approx(0.0, abs=1e-6)
    assert IoULoss()(maps, torch.zeros_like(maps)).item() == pytest.approx(1.0, abs=1e-6)
    assert IoULoss()(torch.zeros_like(maps), torch.zeros_like(maps)).item() == 0.0


def test_only_visible_keypoints_count():
    y, t = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    visibility = torch.tensor([[True, False, False], [False, False, True]])
    expected = (IoULoss()(y[:1, :1], t[:1, :1]) + IoULoss()(y[1:, 2:], t[1:, 2:])) / 2
    torch.testing.assert_close(IoULoss()(y, t, visibility), expected)
    assert IoULoss()(y, t, torch.zeros(2, 3, dtype=torch.bool)) == 0.0


def test_an_invisible_keypoint_gets_no_gradient():
    y = torch.rand(1, 2, 4, 4, requires_grad=True)
    IoULoss()(y, torch.rand(1, 2, 4, 4), torch.tensor([[True, False]])).backward()
    assert y.grad[0, 0].abs().min() > 0 and y.grad[0, 1].abs().max() == 0


def test_the_loss_is_float32_under_autocast():
    y, t = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = IoULoss()(y, t)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, IoULoss()(y, t))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(1, 2, 8, 8\) but their targets \(1, 2, 4, 4\)"):
        IoULoss()(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"visibility has shape \(2,\), expected \(1, 2\)"):
        IoULoss()(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8), torch.ones(2, dtype=torch.bool))


def test_an_empty_target_is_learnt_by_squared_error_and_the_others_by_iou():
    y, t = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    t[0, 1] = 0
    loss = HeatmapLoss(sigma=2.0).per_heatmap(y, t)
    # The heatmap's energy over that of a Gaussian of standard deviation 2, pi * 2**2.
    assert loss[0, 1].item() == pytest.approx(float(y[0, 1].square().sum()) / 12.566371, rel=1e-5)
    elsewhere = torch.ones(2, 3, dtype=torch.bool).index_put((torch.tensor([0]), torch.tensor([1])), torch.tensor(False))
    torch.testing.assert_close(loss[elsewhere], IoULoss().per_heatmap(y, t)[elsewhere])


def test_absence_is_taught_by_a_gradient_that_an_iou_loss_does_not_have():
    def push(loss) -> float:
        y = torch.full((1, 1, 8, 8), 0.3, requires_grad=True)
        loss(y, torch.zeros_like(y)).backward()
        return y.grad.abs().max().item()

    assert push(HeatmapLoss(sigma=2.0)) > 0.01 and push(IoULoss()) < 1e-6


def test_one_confident_false_keypoint_costs_about_one():
    pixels = torch.arange(64) + 0.5
    bump = torch.exp(-((pixels - 32) ** 2) / (2 * 3.0**2))
    y = (bump[:, None] * bump)[None, None]
    assert HeatmapLoss(sigma=3.0)(y, torch.zeros_like(y)).item() == pytest.approx(1.0, abs=0.01)


def test_what_is_unknown_stays_without_penalty():
    y = torch.rand(1, 2, 4, 4, requires_grad=True)
    HeatmapLoss(sigma=3.0)(y, torch.zeros(1, 2, 4, 4), torch.tensor([[True, False]])).backward()
    assert y.grad[0, 0].abs().min() > 0 and y.grad[0, 1].abs().max() == 0


class MeanError(torch.nn.Module):
    """The mean absolute difference, times sigma."""

    name = "mean error"
    sentence = "The mean absolute difference of each predicted heatmap and its target."

    def __init__(self, sigma: float):
        super().__init__()
        self.sigma = sigma

    def forward(self, heatmaps, targets, visibility=None):
        return self.per_heatmap(heatmaps, targets).mean()

    def per_heatmap(self, heatmaps, targets):
        return self.sigma * (heatmaps - targets).abs().mean((2, 3))


def test_the_model_trains_on_the_loss_that_is_set_in_one_place(monkeypatch):
    config = HandUNetConfig(image_size=16, hidden_sizes=(4, 8), sigma=2.0)
    plain = HandUNetForPoseEstimation(config)
    assert isinstance(plain.loss, HeatmapLoss) and plain.loss.name == "IoU loss" and plain.loss.sentence.endswith(".")
    monkeypatch.setattr(HandUNetForPoseEstimation, "loss_class", MeanError)
    model = HandUNetForPoseEstimation(config)
    outputs = model(torch.rand(2, 3, 16, 16), labels=torch.full((2, 21, 16, 16), 0.25))
    assert outputs.loss.item() == pytest.approx(2.0 * (outputs.heatmaps - 0.25).abs().mean().item())
    assert model.loss.name == "mean error" and model.state_dict().keys() == plain.state_dict().keys()
