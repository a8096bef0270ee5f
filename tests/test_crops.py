import numpy as np
import pytest
import torch
from PIL import Image

from modeling_handunet.crops import Crop, check_box, parse_box


def test_a_box_becomes_a_square_with_its_centre():
    # Longer side 18 / 0.45 = 40; centre (39, 24.5); top left (39 - 20, 24.5 - 20).
    crop = Crop.around_box((30, 20, 18, 9), 128, 0.45)
    assert crop.square == pytest.approx((19.0, 4.5, 40.0))
    points = crop.to(np.array([[19.0, 4.5], [39.0, 24.5], [59.0, 44.5]]))
    np.testing.assert_allclose(points, [[0, 0], [64, 64], [128, 128]])


def test_an_image_without_a_box_is_padded_to_a_square_with_its_centre():
    assert Crop.of_image(100, 60, 128) == Crop((0.0, -20.0, 100.0), 128)
    assert Crop.of_image(5, 8, 64, mirrored=True) == Crop((-1.5, 0.0, 8.0), 64, mirrored=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    # The square (10, 20) to (60, 70) becomes 100 px: 2 px of the crop are 1 of the photograph, the centre is (35, 45).
    [
        ({}, [(0, 0), (100, 0), (20, 60)]),
        ({"mirrored": True}, [(100, 0), (0, 0), (80, 60)]),
        # A square turned clockwise has its top left corner where the upright one's top right corner is, so the photograph
        # appears turned anticlockwise: from the centre, (x, y) goes to (y, -x), here (-25, -25) to (-25, 25).
        ({"angle": 90}, [(0, 100), (0, 0), (60, 80)]),
        ({"angle": -90}, [(100, 0), (100, 100), (40, 20)]),
        ({"angle": 180}, [(100, 100), (0, 100), (80, 40)]),
        ({"angle": 90, "mirrored": True}, [(100, 100), (100, 0), (40, 80)]),
        # By 30 degrees, (x, y) goes to (x cos 30 + y sin 30, y cos 30 - x sin 30) with cos 30 = 0.8660254, sin 30 = 0.5:
        # (-50, -50) to (-68.30127, -18.30127), (50, -50) to (18.30127, -68.30127), (-30, 10) to (-20.980762, 23.660254).
        ({"angle": 30}, [(-18.30127, 31.69873), (68.30127, -18.30127), (29.019238, 73.660254)]),
        ({"angle": 30, "mirrored": True}, [(118.30127, 31.69873), (31.69873, -18.30127), (70.980762, 73.660254)]),
    ],
)
def test_points_go_where_worked_out_by_hand_and_come_back(options, expected):
    crop = Crop((10.0, 20.0, 50.0), 100, **options)
    points = np.array([(10.0, 20.0), (60.0, 20.0), (20.0, 50.0)])
    np.testing.assert_allclose(crop.to(points), expected, atol=1e-5)
    np.testing.assert_allclose(crop.back(crop.to(points)), points, atol=1e-12)
    as_tensor = crop.to(torch.from_numpy(points)[None])
    assert as_tensor.shape == (1, 3, 2)
    np.testing.assert_allclose(as_tensor[0].numpy(), crop.to(points), atol=1e-12)
    np.testing.assert_allclose(crop.back(as_tensor)[0].numpy(), points, atol=1e-12)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, -137.5])
@pytest.mark.parametrize("side", [25.0, 70.3, 260.0])
def test_a_dot_of_the_photograph_is_cut_out_where_its_point_goes(side, angle, mirrored):
    """Enlarged, about as large, and much reduced."""
    crop = Crop((101.2 - side / 2, 88.7 - side / 2, side), 64, mirrored, angle)
    place = np.array([101.2 + 0.21 * side, 88.7 - 0.13 * side])
    y, x = np.mgrid[0.5:200, 0.5:220]
    dot = 250 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * (0.05 * side) ** 2))
    pixels = np.asarray(crop.cut(Image.fromarray(np.uint8(dot.round())).convert("RGB")))[..., 0].astype(float)
    y, x = np.indices(pixels.shape) + 0.5
    found = np.array([(x * pixels).sum(), (y * pixels).sum()]) / pixels.sum()
    np.testing.assert_allclose(found, crop.to(place), atol=0.1)


def test_a_crop_of_the_same_size_keeps_the_pixels_and_is_black_outside():
    values = np.random.default_rng(0).integers(1, 256, (20, 30, 3), np.uint8)
    image = Image.fromarray(values)
    inside = values[3:11, 2:10]
    assert np.array_equal(np.asarray(Crop((2.0, 3.0, 8.0), 8).cut(image)), inside)
    assert np.array_equal(np.asarray(Crop((2.0, 3.0, 8.0), 8, mirrored=True).cut(image)), inside[:, ::-1])
    for angle in (90, 180, 270):  # numpy turns anticlockwise, as the photograph seems to be in a square turned clockwise
        turned = np.asarray(Crop((2.0, 3.0, 8.0), 8, angle=angle).cut(image))
        assert np.array_equal(turned, np.rot90(inside, angle // 90))
    outside = np.asarray(Crop((26.0, -4.0, 8.0), 8).cut(image))
    assert np.array_equal(outside[4:, :4], values[:4, 26:])
    assert outside[:4].max() == 0 and outside[:, 4:].max() == 0


def test_a_turned_crop_is_full_to_its_corners_inside_the_image_and_black_outside():
    image = Image.new("RGB", (200, 200), (200, 200, 200))
    assert np.asarray(Crop((70.0, 70.0, 60.0), 32, angle=45).cut(image)).min() == 200
    # The square's centre is the image's lower right corner: the image lies to its upper left, which after the turn by 45
    # degrees is the crop's left.
    crop = np.asarray(Crop((170.0, 170.0, 60.0), 32, angle=45).cut(image))
    assert crop[16, 2].min() == 200 and crop[2, 16].max() == crop[30, 16].max() == crop[16, 29].max() == 0


@pytest.mark.parametrize("angle", [0.0, 35.0, 180.0, -100.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_around_points_has_their_box_in_its_middle(angle, mirrored):
    points = np.array([[10.0, 90.0], [40.0, 20.0], [55.0, 60.0], [30.0, 85.0]])
    crop = Crop.around_points(points, 128, 0.45, mirrored=mirrored, angle=angle)
    seen = crop.to(points)
    np.testing.assert_allclose((seen.min(0) + seen.max(0)) / 2, [64, 64], atol=1e-9)
    assert np.ptp(seen, axis=0).max() == pytest.approx(0.45 * 128)


@pytest.mark.parametrize("angle", [0.0, 20.0])
def test_a_reduced_crop_averages_what_it_reduces(angle):
    # Columns of 0 and 240 in turn: every pair of columns weighs the same, whatever the filter's tails.
    values = np.zeros((128, 128, 3), np.uint8)
    values[:, 1::2] = 240
    crop = np.asarray(Crop((32.0, 32.0, 64.0), 8, angle=angle).cut(Image.fromarray(values))).astype(int)
    assert np.abs(crop[:, 1:-1] - 120).max() <= 2


@pytest.mark.parametrize("side", [5000.0, 12345.6])
@pytest.mark.parametrize("angle", [0.0, 90.0])
def test_a_huge_square_is_cut_out_in_bounded_memory_at_its_place(side, angle):
    image = Image.new("RGB", (3000, 2000))
    image.paste((255, 255, 255), (1500, 1000, 1900, 1400))
    crop = Crop((1500 - side / 2, 1000 - side / 2, side), 512, angle=angle)
    pixels = np.asarray(crop.cut(image)).astype(float).sum(2)
    y, x = np.indices(pixels.shape) + 0.5
    center = np.array([(x * pixels).sum(), (y * pixels).sum()]) / pixels.sum()
    np.testing.assert_allclose(center, crop.to(np.array([1700.0, 1200.0])), atol=0.2)  # the middle of the white patch


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((1, 2, 3), "four numbers"),
        ((1, 2, 3, "wide"), "four numbers"),
        (5, "four numbers"),
        ((float("nan"), 2, 3, 4), "all of it finite"),
        ((1, 2, float("inf"), 4), "all of it finite"),
        ((1, 2, 0, 4), "width and height must be above 0"),
        ((1, 2, 3, -4), "width and height must be above 0"),
        ((100, 2, 3, 4), "outside the image of 100x80 pixels"),
        ((-5, 2, 5, 4), "outside the image"),
        ((1, 80, 3, 4), "outside the image"),
        ((1, 2, 20_000, 4), "over 100 times as large"),
    ],
)
def test_boxes_that_cannot_be_used_are_refused_in_words(box, message):
    with pytest.raises(ValueError, match=message):
        check_box(box, 100, 80)


def test_a_box_that_reaches_outside_the_image_is_allowed():
    check_box((-5, -5, 6, 6), 100, 80)
    assert parse_box(np.array([1, 2, 3, 4])) == (1.0, 2.0, 3.0, 4.0)
