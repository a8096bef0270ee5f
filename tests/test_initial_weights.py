"""The weights that a training starts from."""

import re

import pytest
import torch

from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from training.arguments import make_arguments
from training.initial_weights import load_processor, make_model, without_deep_levels


def network(*sizes: int) -> HandUNetForPoseEstimation:
    torch.manual_seed(0)
    return HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=sizes, image_size=32, sigma=2.0))


def save(folder, *sizes: int) -> str:
    """A saved network as `--init` takes it."""
    network(*sizes).save_pretrained(folder)
    HandUNetImageProcessor().save_pretrained(folder)
    return str(folder)


def start(**settings) -> HandUNetForPoseEstimation:
    """The model that these settings start from."""
    return make_model(make_arguments(**settings).model, seed=0)


def test_a_hand_classifier_is_kept_as_it_is_and_left_out_of_networks_of_another_shape(tmp_path):
    model = HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8), image_size=32, sigma=2.0, classifier_size=3))
    model.save_pretrained(tmp_path / "model")
    HandUNetImageProcessor().save_pretrained(tmp_path / "model")
    same = start(init=str(tmp_path / "model"))
    assert torch.equal(same.classifier.layers[1].weight, model.classifier.layers[1].weight)
    assert not any(values.requires_grad for values in same.classifier.parameters())
    assert all(values.requires_grad for values in same.down.parameters())
    assert start(init=str(tmp_path / "model"), init_hidden_sizes=[6, 8]).classifier is None
    assert without_deep_levels(model, 1).classifier is None


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
    init = save(tmp_path, 4, 6, 8)
    model = start(init=init, image_size=64)
    assert model.config.image_size == 64 and model(torch.randn(1, 3, 64, 64)).heatmaps.shape == (1, 21, 64, 64)
    model = start(init=init, image_size=64, init_levels=2)
    assert model.config.hidden_sizes == (4, 6) and model.config.image_size == 64


def test_levels_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="--init_levels 5: the model to start from has 3 levels"):
        without_deep_levels(network(4, 6, 8), 5)
    with pytest.raises(ValueError, match="--init_levels has no effect here: .* by --init"):
        make_arguments(init_levels=2)


def test_a_widened_network_computes_what_the_narrow_one_does_and_learns_with_all_channels(tmp_path):
    narrow = network(4, 6, 8)
    for module in narrow.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # not what a new channel would have by itself
            ranges = ((module.running_mean, -1), (module.running_var, 0.5), (module.weight, 0.5), (module.bias, -1))
            for values, low in ranges:
                high = 1 if low < 0 else 2
                torch.nn.init.uniform_(values, low, high)
    narrow.save_pretrained(tmp_path)
    HandUNetImageProcessor().save_pretrained(tmp_path)
    init = str(tmp_path)
    wide = start(init=init, image_size=32, init_hidden_sizes=[5, 6, 11])
    assert wide.config.hidden_sizes == (5, 6, 11) and wide.config.sigma == 2.0
    torch.rand(3)
    again = start(init=init, image_size=32, init_hidden_sizes=[5, 6, 11])
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in wide.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(wide.eval()(images).heatmaps, narrow.eval()(images).heatmaps)
    torch.testing.assert_close(wide.train()(images).heatmaps, narrow.train()(images).heatmaps)
    wide(images).heatmaps.sum().backward()
    assert wide.down[2][1].weight.grad[8:].abs().sum() == 0  # their outputs have no effect yet
    assert wide.up[0][1].weight.grad[:, 8:11].abs().sum() > 0  # but it is about to be learnt
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter -= 1e-6 * (0 if parameter.grad is None else parameter.grad)
    wide.zero_grad()
    wide(images).heatmaps.sum().backward()
    assert wide.down[2][1].weight.grad[8:].abs().sum() > 0


def test_other_levels_than_those_of_the_weights_to_start_from_are_refused(tmp_path):
    init = save(tmp_path, 4, 6)
    assert start(init=init).config.hidden_sizes == (4, 6)
    with pytest.raises(ValueError, match="--hidden_sizes 4 8: --init .* brings its own, 4 6"):
        start(init=init, hidden_sizes=[4, 8])
    for sizes in ([4, 5], [4, 6, 8]):
        asked = " ".join(map(str, sizes))
        with pytest.raises(ValueError, match=f"--init_hidden_sizes {asked}: the model to start from has 4 6"):
            start(init=init, init_hidden_sizes=sizes)
    with pytest.raises(ValueError, match="--init_hidden_sizes has no effect here: .* by --init"):
        make_arguments(init_hidden_sizes=[4, 8])


@pytest.mark.parametrize(
    "setting, value",
    [
        *(("image_mean", [0.1, 0.2, 0.3]), ("image_std", [0.1, 0.2, 0.3]), ("rescale_factor", 1.0)),
        *(("do_rescale", False), ("do_normalize", False)),
    ],
)
def test_a_processor_that_normalises_otherwise_is_refused_by_name(tmp_path, setting, value):
    HandUNetImageProcessor(**{setting: value}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path.name} normalises by {setting} {value}, and train.py")):
        load_processor(str(tmp_path))
