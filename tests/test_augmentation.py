"""Image and keypoints move together, and what happens to a sample depends only on (seed, epoch, sample)."""

import dataclasses
import math

import pytest
import torch

from dataset_script.augmentation import Augmentation, augmentation_keys

SIZE = 128
MOVES_ONLY = Augmentation(
    brightness=0, contrast=0, saturation=0, channel_gain=0, noise=0, blur_probability=0, erase_probability=0
)
STILL = Augmentation(**dict.fromkeys(Augmentation.__dataclass_fields__, 0.0))


def blobs(keypoints: torch.Tensor, sigma: float = 2.0) -> torch.Tensor:
    """(B, 3, S, S): a Gaussian at each image's one keypoint (B, 1, 2), whose centre of mass is the keypoint."""
    pixels = torch.arange(SIZE) + 0.5
    x, y = (torch.exp(-((pixels - keypoints[:, 0, axis, None]) ** 2) / (2 * sigma**2)) for axis in (0, 1))
    return (y[:, :, None] * x[:, None, :])[:, None].repeat(1, 3, 1, 1)


def centers_of_mass(images: torch.Tensor) -> torch.Tensor:
    """(B, 1, 2), x then y."""
    weights = images.mean(1)
    weights = weights / weights.sum((1, 2), keepdim=True)
    pixels = torch.arange(SIZE) + 0.5
    return torch.stack([(weights.sum(1) * pixels).sum(1), (weights.sum(2) * pixels).sum(1)], 1)[:, None]


def hands(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random images, keypoints and the keys of samples 100, 101, ..."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 32, 32, generator=generator)
    keypoints = torch.rand(count, 21, 2, generator=generator) * 32
    return images, keypoints, augmentation_keys(7, 3, torch.arange(100, 100 + count))


def test_a_dot_at_a_keypoint_is_found_where_the_keypoint_went():
    keypoints = torch.tensor([64.0, 64.0]) + (torch.rand(64, 1, 2) - 0.5) * 50
    keys = augmentation_keys(0, 0, torch.arange(64))
    images, moved = MOVES_ONLY(blobs(keypoints), keypoints, keys)
    assert (moved - keypoints).norm(dim=-1).mean() > 5  # px: they did move
    torch.testing.assert_close(centers_of_mass(images), moved, atol=0.05, rtol=0)


def test_colours_leave_a_dot_where_it_was():
    keypoints = torch.full((16, 1, 2), 40.0)
    colours = Augmentation(rotation=0, scale=0, shift=0, noise=0, erase_probability=0, brightness=0, contrast=0)
    images, moved = colours(blobs(keypoints) * 0.5, keypoints, augmentation_keys(0, 0, torch.arange(16)))
    assert torch.equal(moved, keypoints)
    torch.testing.assert_close(centers_of_mass(images), keypoints, atol=0.02, rtol=0)


def test_a_rotation_turns_by_at_most_its_range_about_the_centre():
    rotation = dataclasses.replace(STILL, rotation=30.0)
    keypoints = torch.tensor([[[96.0, 64.0]]]).repeat(500, 1, 1)  # 32 px right of the centre
    moved = rotation.move(torch.zeros(500, 1, SIZE, SIZE), keypoints, augmentation_keys(0, 0, torch.arange(500)))[1]
    offset = moved[:, 0] - 64
    torch.testing.assert_close(offset.norm(dim=1), torch.full((500,), 32.0), atol=1e-3, rtol=0)
    degrees = torch.atan2(offset[:, 1], offset[:, 0]) * 180 / math.pi
    assert 28 < degrees.max() <= 30.001 and -30.001 <= degrees.min() < -28
    assert abs(degrees.mean()) < 3  # 30 / sqrt(3) / sqrt(500) = 0.8


def test_a_sample_is_augmented_the_same_way_alone_and_in_any_batch():
    images, keypoints, keys = hands(6)
    together = Augmentation()(images, keypoints, keys)
    shuffle = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = Augmentation()(images[shuffle], keypoints[shuffle], keys[shuffle])
    for whole, other in zip(together, shuffled):
        torch.testing.assert_close(other, whole[shuffle], atol=1e-6, rtol=0)
    for row in range(6):
        alone = Augmentation()(images[row : row + 1], keypoints[row : row + 1], keys[row : row + 1])
        for whole, other in zip(together, alone):
            torch.testing.assert_close(other[0], whole[row], atol=2e-5, rtol=0)


def test_two_processes_together_augment_as_one_does():
    images, keypoints, keys = hands(8)
    one = Augmentation()(images, keypoints, keys)
    halves = [Augmentation()(images[rank::2], keypoints[rank::2], keys[rank::2]) for rank in range(2)]
    for part, whole in enumerate(one):
        for rank in range(2):
            torch.testing.assert_close(halves[rank][part], whole[rank::2], atol=2e-5, rtol=0)


def test_the_global_random_state_neither_matters_nor_changes():
    images, keypoints, keys = hands(3)
    torch.manual_seed(1)
    first = Augmentation()(images, keypoints, keys)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = Augmentation()(images, keypoints, keys)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("other", [(8, 3, 100), (7, 4, 100), (7, 3, 101)], ids=["seed", "epoch", "sample"])
def test_another_seed_epoch_or_sample_is_augmented_otherwise(other):
    images, keypoints, _ = hands(1)
    seed, epoch, sample = other
    first = Augmentation()(images, keypoints, augmentation_keys(7, 3, torch.tensor([100])))
    second = Augmentation()(images, keypoints, augmentation_keys(seed, epoch, torch.tensor([sample])))
    assert not torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])


def test_samples_of_an_endless_stream_keep_keys_of_their_own():
    indices = torch.tensor([0, 1, 2**39, 2**40 - 1])
    keys = torch.cat([augmentation_keys(0, epoch, indices) for epoch in range(50)])
    assert len({tuple(key) for key in keys.tolist()}) == 200


def test_strength_0_leaves_all_but_the_rotation_out():
    images, keypoints, keys = hands(4)
    still = dataclasses.replace(Augmentation().scaled(0.0), rotation=0.0)
    same_images, same_keypoints = still(images, keypoints, keys)
    torch.testing.assert_close(same_images, images, atol=1e-5, rtol=0)
    torch.testing.assert_close(same_keypoints, keypoints, atol=1e-5, rtol=0)
    assert Augmentation(rotation=11.0).scaled(0.0).rotation == 11.0


def test_strength_scales_the_ranges():
    half = Augmentation().scaled(0.5)
    assert half.shift == Augmentation().shift / 2
    assert half.erase_probability == Augmentation().erase_probability / 2
    assert half.rotation == Augmentation().rotation


def test_images_stay_in_range_and_keypoints_stay_numbers():
    images, keypoints, keys = hands(64)
    augmented, moved = Augmentation().scaled(4.0)(images, keypoints, keys)
    assert 0 <= augmented.min() and augmented.max() <= 1
    assert torch.isfinite(augmented).all() and torch.isfinite(moved).all()


def test_about_a_third_of_the_images_has_a_square_of_one_colour():
    squares = dataclasses.replace(STILL, erase_probability=0.3, erase_side=0.5)
    images = torch.linspace(0, 1, 32 * 32).reshape(1, 1, 32, 32).repeat(1000, 3, 1, 1)
    erased = squares.recolor(images, augmentation_keys(0, 0, torch.arange(1000)))
    changed = (erased - images).abs().amax(1) > 1e-4  # (B, S, S)
    share = changed.any(2).any(1).float().mean().item()
    assert 0.24 < share < 0.33  # 0.3, less those whose side rounds to nothing; 0.3 +- 3 * 0.0145
    row = int(changed.flatten(1).sum(1).argmax())
    assert erased[row][:, changed[row]].std(1).max() < 1e-6
