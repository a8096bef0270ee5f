import numpy as np
import pytest
import torch

from dataset_script import SyntheticHands, affine
from dataset_script.layers import HandLayers
from dataset_script.synthetic.compositing import Layer, move_layer


def drawn(count: int = 3, **options) -> SyntheticHands:
    return SyntheticHands(count, seed=5, image_size=48, difficulty="layers", **options)


def test_layers_are_what_the_source_draws_and_stay_on_disk(tmp_path):
    source = drawn()
    layers = HandLayers(source, tmp_path)
    made = source.layers(torch.arange(3))
    for index in range(3):
        np.testing.assert_allclose(layers[index]["rgba"] / 255, made.rgba[index].numpy(), atol=0.5 / 255 + 1e-6)
        np.testing.assert_array_equal(layers[index]["keypoints"], made.keypoints[index].numpy())
    before = {path: path.stat().st_mtime_ns for path in layers.folder.iterdir()}
    again = HandLayers(drawn(), tmp_path)
    assert again.folder == layers.folder and {path: path.stat().st_mtime_ns for path in before} == before
    assert HandLayers(drawn(2), tmp_path).folder != layers.folder


def test_hands_in_layers_leave_room_for_their_arms_and_are_transparent_around():
    hands = drawn().layers(torch.arange(8))
    size = (hands.keypoints.amax(1) - hands.keypoints.amin(1)).amax(1) / 48
    assert (size > 0.25).all() and (size < 0.42).all()
    assert hands.rgba[:, 3].amax() == 1 and (hands.rgba[:, 3] == 0).float().mean() > 0.5


def test_a_moved_layer_carries_its_keypoints():
    """A dot drawn at a keypoint is found at the moved keypoint, in an image of another size."""
    keypoints = torch.tensor([[[20.5, 11.5]] * 21])
    rgba = torch.zeros(1, 4, 40, 40)
    rgba[:, :, 10:13, 19:22] = 1.0  # centred on (20.5, 11.5)
    matrix = affine.rotation(torch.tensor([0.5])) * 1.5
    moved = move_layer(Layer(rgba, keypoints, torch.zeros(1, 3)), matrix, torch.tensor([[3.0, -2.0]]), 64)
    alpha = moved.rgba[0, 3]
    centers = torch.arange(64) + 0.5
    found = torch.stack([(alpha.sum(0) * centers).sum(), (alpha.sum(1) * centers).sum()]) / alpha.sum()
    # (0.5, -8.5) from the centre, turned by 0.5 and enlarged 1.5 times, then to (32 + 3, 32 - 2).
    x, y = 0.5 * np.cos(0.5) + 8.5 * np.sin(0.5), 0.5 * np.sin(0.5) - 8.5 * np.cos(0.5)
    expected = torch.tensor([35 + 1.5 * x, 30 + 1.5 * y], dtype=torch.float32)
    torch.testing.assert_close(moved.keypoints[0, 0], expected)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_a_mirroring_matrix_mirrors():
    layer = drawn().layers(torch.arange(1))
    mirror = torch.tensor([[[-1.0, 0.0], [0.0, 1.0]]])
    moved = move_layer(layer, mirror, torch.zeros(1, 2), 48)
    torch.testing.assert_close(moved.rgba[:, 3], layer.rgba[:, 3].flip(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.keypoints[..., 0], 48 - layer.keypoints[..., 0])


def test_an_unknown_difficulty_is_named():
    with pytest.raises(ValueError, match="'hard'; choose one of easy, full, layers"):
        SyntheticHands(1, difficulty="hard")
