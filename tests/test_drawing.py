import numpy as np
import pytest
from PIL import Image

from modeling_handunet import draw_hand
from modeling_handunet.keypoints import keypoint_color


def spread_hand(width: int, height: int) -> np.ndarray:
    """21 keypoints on a grid, so that each one's dot is seen alone."""
    columns, rows = np.meshgrid(np.linspace(0.1, 0.9, 7) * width, np.linspace(0.15, 0.85, 3) * height)
    return np.stack([columns.ravel(), rows.ravel()], 1)


def test_every_keypoint_gets_a_dot_of_its_finger_at_its_place():
    keypoints = spread_hand(400, 200)
    drawn = np.asarray(draw_hand(Image.new("RGB", (400, 200)), keypoints, skeleton=(), width=4.0))
    for index, (x, y) in enumerate(keypoints):
        assert drawn[int(y), int(x)].tolist() == pytest.approx(keypoint_color(index), abs=3)
    colored = np.argwhere(drawn.sum(2) > 0) + 0.5
    distance = np.linalg.norm(colored[:, None, ::-1] - keypoints[None], axis=2).min(1)
    assert distance.max() < 5.5  # nothing is drawn beyond the dots' radius and outline


def test_bones_join_their_keypoints_and_stay_centred_on_the_line():
    keypoints = np.full((21, 2), np.nan)
    keypoints[[0, 5]] = [[10, 20.0], [90, 20.0]]
    drawn = np.asarray(draw_hand(Image.new("RGB", (100, 40)), keypoints, width=3.0)).astype(float)
    middle = drawn[:, 50].sum(1)  # across the bone
    assert ((np.arange(40) + 0.5) * middle).sum() / middle.sum() == pytest.approx(20.0, abs=0.35)
    assert 2 <= (middle > 0).sum() <= 5


def test_the_photograph_is_left_alone_and_unsure_keypoints_are_fainter():
    image = Image.new("RGB", (400, 200), (7, 7, 7))
    keypoints = spread_hand(400, 200)
    sure, unsure = (np.asarray(draw_hand(image, keypoints, np.full(21, score))).astype(int) for score in (1.0, 0.1))
    assert np.asarray(image).max() == 7
    x, y = keypoints[3].astype(int)
    assert np.abs(sure[y, x] - 7).sum() > np.abs(unsure[y, x] - 7).sum() > 0


def test_nothing_is_drawn_of_keypoints_that_are_nan_or_outside():
    image = Image.new("RGB", (50, 40), (9, 9, 9))
    for keypoints in (np.full((21, 2), np.nan), np.full((21, 2), 1e6), np.full((21, 2), -300.0)):
        drawn = draw_hand(image, keypoints)
        assert drawn is not image and np.array_equal(np.asarray(drawn), np.asarray(image))


def test_a_small_hand_in_a_huge_photograph_is_drawn_as_in_a_small_one():
    keypoints = spread_hand(120, 80)
    small = np.asarray(draw_hand(Image.new("RGB", (120, 80)), keypoints))
    huge = Image.new("RGB", (9000, 6000))
    drawn = draw_hand(huge, keypoints + [7000, 4000], width=120 * 0.8 / 45)
    assert np.abs(np.asarray(drawn.crop((7000, 4000, 7120, 4080))).astype(int) - small).max() <= 1


@pytest.mark.parametrize("count", [1, 5, 25])
def test_a_hand_of_another_number_of_keypoints_is_drawn_with_its_own_skeleton_or_none(count):
    image, points = Image.new("RGB", (200, 100)), np.linspace((20, 50), (180, 50), count)
    dots = np.asarray(draw_hand(image, points, width=2.0))
    for index, (x, y) in enumerate(points):
        assert dots[int(y), int(x)].tolist() == pytest.approx(keypoint_color(index), abs=3)
    if count == 5:
        assert dots[50, 40].sum() == 0
        joined = np.asarray(draw_hand(image, points, skeleton=[(0, 1)], width=2.0))
        assert joined[50, 40].sum() > 0 and joined[50, 80].sum() == 0
