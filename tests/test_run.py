import pytest
import torch

from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation
from training.arguments import Arguments
from training.run import make_model, without_deep_levels


def network(*sizes: int) -> HandUNetForPoseEstimation:
    torch.manual_seed(0)
    return HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=sizes, image_size=32, sigma=2.0))


def test_a_shallower_network_keeps_the_weights_of_the_levels_that_it_shares():
    deep = network(4, 6, 8, 10)
    shallow = without_deep_levels(deep, 2)
    assert shallow.config.hidden_sizes == (4, 6) and shallow.config.sigma == 2.0 and shallow.config.image_size == 32
    assert torch.equal(shallow.down[1][1].weight, deep.down[1][1].weight)
    assert torch.equal(shallow.up[0][1].weight, deep.up[2][1].weight)  # both from 6 + 4 channels to 4
    assert torch.equal(shallow.head.weight, deep.head.weight)
    whole = without_deep_levels(deep, 4)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(whole.eval()(images).heatmaps, deep.eval()(images).heatmaps)


def test_training_may_start_from_a_model_at_another_image_size_or_depth(tmp_path):
    network(4, 6, 8).save_pretrained(tmp_path)
    model = make_model(Arguments(init=str(tmp_path), image_size=64))
    assert model.config.image_size == 64 and model(torch.randn(1, 3, 64, 64)).heatmaps.shape == (1, 21, 64, 64)
    model = make_model(Arguments(init=str(tmp_path), image_size=64, init_levels=2))
    assert model.config.hidden_sizes == (4, 6) and model.config.image_size == 64


def test_levels_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="--init_levels 5: the model to start from has 3 levels"):
        without_deep_levels(network(4, 6, 8), 5)
    with pytest.raises(ValueError, match="--init_levels without --init"):
        Arguments(init_levels=2)
