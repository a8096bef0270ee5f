import dataclasses

import pytest
import torch

from dataset_script.augmentation import augmentation_keys
from dataset_script.photo_augmentation import PhotoAugmentation, picture_edges

# Nothing that is not about where the hand is.
PLAIN = {
    **{"gamma": 0, "brightness": 0, "contrast": 0, "saturation": 0, "gain": 0, "hue": 0, "lamp": 0, "noisy": 0, "blur": 0},
    **{"extended": 1, "replaced": 0, "framed": 0, "beside": 0, "patch": 0, "things": 0, "cast": 0, "coarse": 0},
    **{"motion": 0, "grey": 0, "jpeg": 0},
}
KEYS = augmentation_keys(3, 0, torch.arange(24))


class Others:
    """White squares in place of other photographs."""

    def sample(self, keys, purpose):
        return torch.zeros(len(keys), dtype=torch.int64)

    def rows(self, numbers):
        return {"image": torch.full((len(numbers), 3, 224, 224), 255, dtype=torch.uint8)}


def hands(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of noise and keypoints in a box of 0.3 of them, in the middle, the first two in its corners."""
    points = 78.4 + 67.2 * torch.rand(count, 21, 2, generator=torch.Generator().manual_seed(1))
    points[:, 0], points[:, 1] = 78.4, 145.6
    squares = torch.randint(60, 200, (count, 3, 224, 224), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return squares, points


def augment(**changes) -> PhotoAugmentation:
    return PhotoAugmentation(128, 0.45, **{**PLAIN, **changes})


@pytest.mark.parametrize("size", [128, 64])
def test_a_dot_at_a_keypoint_is_found_at_the_moved_keypoint(size):
    """Whatever the rotation, the stretch and the tilt."""
    _, points = hands()
    plain = dataclasses.replace(augment(stretch=0.3, tilt=0.3, any_angle=1.0), size=size)
    line = torch.arange(224) + 0.5
    centres = torch.arange(size) + 0.5
    for joint in (0, 1, 7, 20):
        x, y = points[:, joint, :, None, None].unbind(1)
        distance = torch.hypot(line[None, None, :] - x, line[None, :, None] - y)
        squares = (55 + 200 * (4 - distance).clamp(0, 1)).to(torch.uint8)[:, None].repeat(1, 3, 1, 1)
        images, moved = plain(squares, points, KEYS)
        weight = images.mean(1) - images.mean(1).amin((1, 2), keepdim=True)
        weight = weight / weight.sum((1, 2), keepdim=True)
        found = torch.stack([(weight.sum(1) * centres).sum(1), (weight.sum(2) * centres).sum(1)], 1)
        assert (found - moved[:, joint]).norm(dim=1).max() < 0.35


def test_the_box_fills_its_share_of_the_crop_and_stays_near_its_centre():
    images, moved = augment(scale=0.0, stretch=0.3, tilt=0.3)(*hands(), KEYS)
    assert images.shape == (24, 3, 128, 128)
    low, high = moved.amin(1), moved.amax(1)
    torch.testing.assert_close((high - low).amax(1), torch.full((24,), 0.45 * 128), atol=1e-3, rtol=0)
    assert ((low + high) / 2 - 64).abs().max() <= 0.05 * 128 + 1e-3
    _, scaled = augment(scale=0.25)(*hands(), KEYS)
    size = (scaled.amax(1) - scaled.amin(1)).amax(1) / (0.45 * 128)
    assert size.log().abs().max() <= 0.2501 and size.log().std() > 0.08


def test_half_are_turned_by_any_angle_and_the_others_by_30_degrees_at_most():
    keys = augmentation_keys(5, 0, torch.arange(400))
    squares, points = (value[:1].expand(400, *value.shape[1:]) for value in hands())
    _, moved = dataclasses.replace(augment(stretch=0.0, tilt=0.0, scale=0.0), size=8)(squares, points, keys)
    before, after = points[:, 1] - points[:, 0], moved[:, 1] - moved[:, 0]
    angle = torch.rad2deg(torch.atan2(after[:, 1], after[:, 0]) - torch.atan2(before[:, 1], before[:, 0]))
    angle = (angle + 180) % 360 - 180
    # Half of them and 60 of 360 degrees of the other half: 0.583.
    assert (angle.abs() <= 30).float().mean() == pytest.approx(0.583, abs=0.08)
    assert angle.min() < -160 and angle.max() > 160


def test_a_share_is_turned_until_the_hand_points_up():
    keys = augmentation_keys(5, 0, torch.arange(400))
    squares, points = (value[:1].expand(400, *value.shape[1:]) for value in hands())
    angles = {}
    for share in (0.0, 0.5, 1.0):
        turning = dataclasses.replace(augment(stretch=0.0, tilt=0.0, scale=0.0, upright=share), size=8)
        _, moved = turning(squares, points, keys)
        x, y = (moved[:, 9] - moved[:, 0]).unbind(1)
        angles[share] = torch.rad2deg(torch.atan2(x, -y))  # from up, clockwise
    assert angles[1.0].abs().max() <= 20.01 and angles[1.0].std() > 8
    is_turned = (angles[0.5] - angles[0.0]).abs() > 1e-3
    assert is_turned.float().mean() == pytest.approx(0.5, abs=0.08)
    assert angles[0.5][is_turned].abs().max() <= 20.01


def test_a_sample_is_a_function_of_its_key_alone():
    squares, points = hands()
    strong = PhotoAugmentation(128, 0.45, others=Others(), beside=0.4, patch=0.5, things=0.4, framed=0.5)
    images, moved = strong(squares, points, KEYS)
    assert images.min() >= 0 and images.max() <= 1
    some = [5, 2, 11]
    again, moved_again = strong(squares[some], points[some], KEYS[some])
    torch.testing.assert_close(again, images[some], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved_again, moved[some])
    other, _ = strong(squares, points, augmentation_keys(4, 0, torch.arange(24)))
    assert (other - images).abs().mean() > 0.05


def test_what_lies_beyond_the_picture_is_black_or_its_edge_or_something_else():
    squares, points = hands()
    squares[:] = 200
    squares[..., :60] = 0
    squares[..., 165:] = 0
    first, last = picture_edges(squares, points)
    assert first.tolist() == [[61, 0]] * 24 and last.tolist() == [[164, 224]] * 24
    black, _ = augment(extended=0, any_angle=0)(squares, points, KEYS)
    assert ((black == 0) | (black - 200 / 255).abs().lt(1e-3)).all() and 0.1 < (black == 0).float().mean() < 0.5
    repeated, _ = augment(any_angle=0)(squares, points, KEYS)
    torch.testing.assert_close(repeated, torch.full_like(repeated, 200 / 255), atol=1e-3, rtol=0)
    replaced, _ = augment(extended=0, replaced=1, any_angle=0)(squares, points, KEYS)
    beyond = black == 0
    torch.testing.assert_close(replaced[~beyond], black[~beyond])
    assert replaced[beyond].std() > 0.1


def test_a_dark_hand_is_no_edge():
    squares, points = hands(1)
    squares[:] = 0
    squares[..., 150:, :] = 200
    first, last = picture_edges(squares, points)
    torch.testing.assert_close(first, torch.tensor([[0.0, 78.4]]))
    assert last.tolist() == [[224, 224]]


@pytest.mark.parametrize("share", ["patch", "beside"])
def test_what_is_put_in_front_leaves_most_of_the_hand(share):
    squares, points = hands()
    squares[:] = 0
    squares[..., 100, 100] = 255  # something to be seen of the picture
    plain, moved = augment()(squares, points, KEYS)
    covered, same = augment(**{share: 1.0}, others=Others())(squares, points, KEYS)
    assert torch.equal(moved, same)
    changed = ((covered - plain).abs().amax(1) > 0.02).float()
    low, high = moved.amin(1), moved.amax(1)
    pixels = torch.arange(128) + 0.5
    within = (pixels > low[..., None]) & (pixels < high[..., None])
    box = (within[:, 1, :, None] & within[:, 0, None, :]).float()
    part = (changed * box).sum((1, 2)) / box.sum((1, 2))
    assert part.max() < 0.4 and changed.sum((1, 2)).min() > 10


def test_without_other_photographs_no_hand_is_put_beside():
    squares, points = hands()
    images, _ = augment(beside=1.0)(squares, points, KEYS)
    torch.testing.assert_close(images, augment()(squares, points, KEYS)[0])


def test_brightness_and_contrast_and_saturation_do_what_they_say():
    """On a picture of two greys, a hue and a saturation change nothing, and the mean is scaled by the brightness alone."""
    squares, points = hands()
    squares[:], squares[..., ::2] = 90, 110
    images, _ = augment(hue=30, saturation=0.5)(squares, points, KEYS)
    torch.testing.assert_close(images, augment()(squares, points, KEYS)[0], atol=1e-5, rtol=0)
    squares[:] = torch.tensor([120, 60, 60])[:, None, None]
    turned, _ = augment(hue=60)(squares, points, KEYS)
    assert (turned.mean(1) - 80 / 255).abs().max() < 1e-3 and turned[:, 1].mean((1, 2)).std() > 0.02
    brighter, _ = augment(brightness=0.2, contrast=0.3)(squares, points, KEYS)
    mean = brighter.mean((1, 2, 3)) * 255 / 80
    assert 0.8 <= mean.min() < 0.95 and 1.05 < mean.max() <= 1.2


def test_grey_noise_blur_and_compression_come_in_their_shares():
    squares, points = hands()
    squares[:] = torch.randint(60, 200, (24, 3, 8, 8), dtype=torch.uint8).repeat_interleave(28, 2).repeat_interleave(28, 3)
    plain = augment()(squares, points, KEYS)[0]
    for share in ("noisy", "blur", "jpeg", "coarse", "motion", "grey"):
        for probability, low, high in ((0.0, 0, 0), (0.5, 6, 18), (1.0, 24, 24)):
            images = augment(**{share: probability})(squares, points, KEYS)[0]
            assert low <= ((images - plain).abs().amax((1, 2, 3)) > 1e-4).sum() <= high, share


@pytest.mark.slow
def test_real_photographs_keep_their_keypoints_inside(shared_data):
    from dataset_script.photographs import Photographs

    photographs = Photographs(shared_data / "photographs", "validation")
    keys = augmentation_keys(0, 0, torch.arange(64))
    rows = photographs.rows(photographs.sample(keys))
    images, moved = PhotoAugmentation(128, 0.45, others=photographs)(rows["image"], rows["keypoints"], keys)
    assert torch.isfinite(images).all() and ((moved >= 0) & (moved < 128)).all()
