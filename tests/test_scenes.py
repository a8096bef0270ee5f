import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_script import SyntheticHands
from dataset_script.augmentation import Augmentation, augmentation_keys
from dataset_script.scenes import NEGATIVES, Scenes, load_photos

# Only the hand's place changes.
PLAIN = {
    **{"framed": 0, "coarse": 0, "motion": 0, "grey": 0, "other_hand": 0, "lamp": 0, "cast": 0, "jpeg": 0, "stretch": 0},
    "recolor": Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
}


@pytest.fixture(scope="module")
def hands():
    layer = SyntheticHands(1, seed=5, image_size=80, difficulty="layers").layers(torch.arange(16))
    return (layer.rgba * 255).to(torch.uint8), layer.keypoints, layer.skin, augmentation_keys(3, 0, torch.arange(16))


def scenes(**changes) -> Scenes:
    return Scenes(64, 0.45, **changes)


def test_the_box_of_the_hand_fills_its_share_and_stays_near_the_centre(hands):
    images, keypoints = scenes(scale=0.0)(*hands)
    assert images.shape == (16, 3, 64, 64) and images.min() >= 0 and images.max() <= 1
    low, high = keypoints.amin(1), keypoints.amax(1)
    torch.testing.assert_close((high - low).amax(1), torch.full((16,), 0.45 * 64), atol=1e-3, rtol=0)
    assert ((low + high) / 2 - 32).abs().max() <= 0.05 * 64 + 1e-3
    _, other = scenes(scale=0.24)(*hands)
    size = (other.amax(1) - other.amin(1)).amax(1) / 64
    assert size.max() < 0.45 * np.exp(0.24) + 1e-3 and size.min() > 0.45 * np.exp(-0.24) - 1e-3 and size.std() > 0.02


def test_scenes_depend_on_the_key_alone(hands):
    layers, keypoints, skin, keys = hands
    with_photos = scenes(photos=torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), negatives=0.3)
    images, moved = with_photos(*hands)
    some = [5, 2, 11]
    again, moved_again = with_photos(layers[some], keypoints[some], skin[some], keys[some])
    torch.testing.assert_close(again, images[some])
    torch.testing.assert_close(moved_again, moved[some], equal_nan=True)
    other, _ = with_photos(layers, keypoints, skin, augmentation_keys(4, 0, torch.arange(16)))
    assert (other - images).abs().mean() > 0.05


def test_negatives_have_no_keypoints_and_come_in_every_kind(hands):
    layers, keypoints, skin, _ = hands
    keys = augmentation_keys(3, 0, torch.arange(160))
    many = [value.repeat(10, *[1] * (value.ndim - 1)) for value in (layers, keypoints, skin)]
    _, moved = scenes(negatives=0.25)(*many, keys)
    missing = moved.isnan().all(2).all(1)
    assert 20 < missing.sum() < 60 and (missing == moved.isnan().any(2).any(1)).all()


def test_a_negative_without_a_hand_is_the_background_alone(hands):
    layers, keypoints, skin, keys = hands
    nothing = scenes(negatives=1.0, kinds=("no hand",), **{**PLAIN, "other_hand": 1.0})
    ranges = dataclasses.replace(nothing.ranges, shadow=0.0)
    with_hand, _ = dataclasses.replace(nothing, ranges=ranges)(layers, keypoints, skin, keys)
    without, _ = dataclasses.replace(nothing, ranges=ranges)(torch.zeros_like(layers), keypoints, skin, keys)
    torch.testing.assert_close(with_hand, without)


def test_a_left_hand_is_the_mirrored_right_one(hands):
    """Before a plain wall, without turning, the two pictures mirror each other's outline."""
    layers, keypoints, skin, keys = hands
    black, white = torch.zeros_like(layers), layers.clone()
    black[:, 3], white[:, :3] = layers[:, 3], 255
    still = {"any_angle": 0, "rotation": 0.0, "shift": 0.0, **PLAIN}

    def outline(**changes) -> torch.Tensor:
        maker = scenes(**still, **changes)
        maker = dataclasses.replace(maker, ranges=dataclasses.replace(maker.ranges, shadow=0.0, occluder=0.0))
        return (maker(white, keypoints, skin, keys)[0] - maker(black, keypoints, skin, keys)[0]).mean(1) > 0.1

    right, left = outline(), outline(negatives=1.0, kinds=("left hand",))
    same = (right.flip(2) == left).float().mean()
    assert right.any() and same > 0.98 and (right == left).float().mean() < same


def test_the_other_hand_lies_behind_this_one_and_off_the_centre(hands):
    layers, keypoints, skin, keys = hands
    ranges = dataclasses.replace(scenes().ranges, occluder=0.0, soften=0.0, shadow=0.0)
    plain = dataclasses.replace(scenes(**PLAIN), ranges=ranges)
    alone, points = plain(layers, keypoints, skin, keys)
    both, same_points = dataclasses.replace(plain, other_hand=1.0)(layers, keypoints, skin, keys)
    assert torch.equal(points, same_points)
    changed = (both - alone).abs().amax(1) > 0.02  # (B, S, S)
    assert (changed.flatten(1).float().mean(1) > 0.02).float().mean() > 0.8
    column, row = points.floor().long().clamp(0, 63).unbind(-1)
    at_keypoints = changed[torch.arange(16)[:, None], row, column]
    assert at_keypoints.float().mean() < 0.1  # most lie on this hand, and it is in front
    line = torch.arange(64) + 0.5 - 32
    share = changed.float() / changed.sum((1, 2), keepdim=True).clamp_min(1)
    middle = torch.stack([(share.sum(1) * line).sum(1), (share.sum(2) * line).sum(1)], 1)
    assert middle.norm(dim=1).median() > 0.2 * 64


def test_a_stretched_hand_keeps_its_keypoints_where_they_are(hands):
    """A coloured disc at a keypoint is found at the moved keypoint, whatever the stretch."""
    _, keypoints, skin, keys = hands
    y, x = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(80) + 0.5, indexing="ij")
    near = (torch.stack([x, y], -1) - keypoints[:, 12, None, None]).norm(dim=-1) < 3  # (B, 80, 80)
    layers = torch.stack([torch.full_like(near, value) for value in (1, 0, 1)] + [near], 1).to(torch.uint8) * 255
    empty = torch.zeros_like(layers)
    bare = {"occluder": 0.0, "shadow": 0.0, "soften": 0.0}
    plain = scenes(**{**PLAIN, "stretch": 0.5})
    plain = dataclasses.replace(plain, ranges=dataclasses.replace(plain.ranges, **bare))
    with_disc, points = plain(layers, keypoints, skin, keys)
    difference = (with_disc - plain(empty, keypoints, skin, keys)[0]).abs().sum(1)
    weight = difference / difference.sum((1, 2), keepdim=True)
    line = torch.arange(64) + 0.5
    centre = torch.stack([(weight.sum(1) * line).sum(1), (weight.sum(2) * line).sum(1)], 1)
    assert (centre - points[:, 12]).norm(dim=1).max() < 0.6
    _, unstretched = dataclasses.replace(plain, stretch=0.0)(layers, keypoints, skin, keys)
    assert (points - unstretched).norm(dim=-1).max() > 3


def test_photographs_become_square_tiles_and_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="has no photographs"):
        load_photos(tmp_path)
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 80:] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    tiles = load_photos(tmp_path)
    assert tiles.shape == (3, 3, 256, 256) and tiles[0].max() == 0 and tiles[2].float().mean() > 250
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(OSError, match="broken.jpg"):
        load_photos(tmp_path)


def test_the_names_of_negatives_are_checked():
    with pytest.raises(ValueError, match="'foot' is no kind of negative"):
        scenes(kinds=("foot",))
    assert scenes().kinds == NEGATIVES
