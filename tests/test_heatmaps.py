import math

import numpy as np
import pytest
import torch

from modeling_handunet.heatmaps import DECODING_METHODS, decode_heatmaps, render_heatmaps


def test_a_gaussian_has_the_values_of_its_formula_at_pixel_centres():
    heatmap = render_heatmaps(torch.tensor([1.5, 2.0]), (3, 4), sigma=1.0)
    assert heatmap.shape == (3, 4)
    # The centre of row 1, column 1 is (1.5, 1.5), half a pixel above the keypoint; row 2, column 3 is (3.5, 2.5).
    assert heatmap[1, 1].item() == pytest.approx(math.exp(-(0.5**2) / 2), abs=1e-6)
    assert heatmap[2, 3].item() == pytest.approx(math.exp(-(2.0**2 + 0.5**2) / 2), abs=1e-6)


def test_rendering_agrees_with_the_plain_two_dimensional_formula():
    keypoints = torch.rand(2, 5, 2, dtype=torch.float64) * torch.tensor([20.0, 16.0])
    y, x = np.mgrid[0.5:16, 0.5:20]
    for point, heatmap in zip(keypoints.flatten(0, 1), render_heatmaps(keypoints, (16, 20), 2.5).flatten(0, 1)):
        expected = np.exp(-((x - point[0].item()) ** 2 + (y - point[1].item()) ** 2) / (2 * 2.5**2))
        np.testing.assert_allclose(heatmap.numpy(), expected, atol=1e-12)


def test_quantized_heatmaps_are_a_blurred_pixel_over_its_maximum():
    expected = np.zeros((33, 33))
    expected[14, 17] = 1.0  # the pixel that contains (17.9, 14.2)
    kernel = np.exp(-(np.arange(-16, 17) ** 2) / (2 * 2.0**2))
    for axis in (0, 1):
        expected = np.apply_along_axis(lambda line: np.convolve(line, kernel, mode="same"), axis, expected)
    heatmap = render_heatmaps(torch.tensor([17.9, 14.2]), 33, 2.0, quantize=True)
    np.testing.assert_allclose(heatmap.numpy(), expected / expected.max(), atol=1e-6)
    assert heatmap[14, 17] == 1.0


def test_keypoints_outside_the_image_or_nan_give_zeros_and_the_edge_counts_as_inside():
    outside = [[-0.01, 4.0], [8.0, 4.0], [4.0, 8.0], [float("nan"), 4.0], [4.0, float("inf")]]
    assert render_heatmaps(torch.tensor(outside), 8, 1.0).abs().max() == 0
    inside = render_heatmaps(torch.tensor([[0.0, 0.0], [7.999, 7.999]]), 8, 1.0)
    assert inside.amax((1, 2)).tolist() == pytest.approx([math.exp(-0.25)] * 2, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16])
def test_keypoints_of_low_precision_still_meet_exact_pixel_centres(dtype):
    heatmap = render_heatmaps(torch.tensor([200, 131]).to(dtype), 256, 3.0)
    assert heatmap.dtype == torch.float32
    torch.testing.assert_close(heatmap, render_heatmaps(torch.tensor([200.0, 131.0]), 256, 3.0))


def test_rendering_names_what_it_cannot_use():
    with pytest.raises(ValueError, match=r"shape \(21, 3\)"):
        render_heatmaps(torch.zeros(21, 3), 8, 1.0)
    with pytest.raises(ValueError, match="sigma=0"):
        render_heatmaps(torch.zeros(21, 2), 8, 0)


def test_the_local_decoder_undoes_rendering_to_a_hundredth_of_a_pixel():
    keypoints = 12 + 104 * torch.rand(4, 21, 2)
    decoded, scores = decode_heatmaps(render_heatmaps(keypoints, 128, 3.0), "local")
    assert (decoded - keypoints).norm(dim=-1).max() < 0.01
    assert scores.min() > math.exp(-0.5 / 18) - 1e-6  # the nearest pixel is at most sqrt(0.5) away


def test_the_local_decoder_is_not_pulled_inwards_at_the_border():
    keypoints = 128 * torch.rand(400, 1, 2)
    keypoints[:, 0, 0] = 6 * torch.rand(400)  # within 6 px of the left border
    heatmaps = render_heatmaps(keypoints, 128, 3.0)
    local, argmax = (decode_heatmaps(heatmaps, method)[0] - keypoints for method in ("local", "argmax"))
    assert local[..., 0].abs().max() < 0.5 + 1e-3
    assert local[..., 0].abs().mean() < 0.6 * argmax[..., 0].abs().mean()
    assert local[..., 0].mean().abs() < 0.02


def test_argmax_answers_the_centre_of_the_highest_pixel():
    heatmaps = torch.zeros(1, 2, 4, 6)
    heatmaps[0, 0, 3, 5] = 0.25
    heatmaps[0, 1, 0, 2] = 0.5
    keypoints, scores = decode_heatmaps(heatmaps, "argmax")
    assert keypoints.tolist() == [[[5.5, 3.5], [2.5, 0.5]]]
    assert scores.tolist() == [[0.25, 0.5]]


def test_mean_answers_the_average_position():
    heatmap = torch.zeros(4, 6)
    heatmap[0, 0], heatmap[2, 4] = 1.0, 3.0
    keypoint, score = decode_heatmaps(heatmap, "mean")
    assert keypoint.tolist() == [(0.5 + 3 * 4.5) / 4, (0.5 + 3 * 2.5) / 4]
    assert score == 3.0


@pytest.mark.parametrize("method", DECODING_METHODS)
def test_every_method_answers_maps_without_a_peak_with_the_centre_and_score_zero(method):
    heatmaps = torch.zeros(3, 8, 10)
    heatmaps[1] = -1.0
    heatmaps[2, 3, 4] = float("nan")
    keypoints, scores = decode_heatmaps(heatmaps, method)
    assert keypoints.tolist() == [[5.0, 4.0]] * 3
    assert scores.tolist() == [0.0] * 3


@pytest.mark.parametrize("method", DECODING_METHODS)
def test_decoding_a_mirrored_map_mirrors_the_keypoint(method):
    heatmaps = render_heatmaps(torch.rand(2, 21, 2) * 32, 32, 2.0)
    keypoints, scores = decode_heatmaps(heatmaps, method)
    mirrored, mirrored_scores = decode_heatmaps(heatmaps.flip(-1), method)
    mirrored[..., 0] = 32 - mirrored[..., 0]
    torch.testing.assert_close(mirrored, keypoints, atol=1e-4, rtol=0)
    torch.testing.assert_close(mirrored_scores, scores)


@pytest.mark.parametrize("method", DECODING_METHODS)
def test_decoding_no_hands_answers_no_keypoints(method):
    keypoints, scores = decode_heatmaps(torch.zeros(0, 21, 8, 8), method)
    assert keypoints.shape == (0, 21, 2) and scores.shape == (0, 21)


def test_decoding_is_the_same_alone_and_in_a_batch_and_answers_float32():
    heatmaps = torch.rand(3, 21, 16, 16)
    together, _ = decode_heatmaps(heatmaps)
    alone = torch.stack([decode_heatmaps(maps)[0] for maps in heatmaps])
    assert torch.equal(together, alone)
    assert decode_heatmaps(heatmaps.bfloat16())[0].dtype == torch.float32


def test_decoding_names_what_it_cannot_use():
    with pytest.raises(ValueError, match="'local', 'argmax', 'mean'"):
        decode_heatmaps(torch.zeros(1, 8, 8), "median")
    with pytest.raises(ValueError, match=r"shape \(21, 0, 8\)"):
        decode_heatmaps(torch.zeros(21, 0, 8))


@pytest.mark.parametrize("method", DECODING_METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_answers_the_same_whichever_way_the_maps_lie_in_memory(method, dtype):
    heatmaps = (render_heatmaps(torch.rand(3, 21, 2) * 24 - 2, (20, 24), 2.0) + 0.01 * torch.rand(3, 21, 20, 24)).to(dtype)
    keypoints, scores = decode_heatmaps(heatmaps, method)
    for other in (heatmaps.contiguous(memory_format=torch.channels_last), heatmaps.mT.contiguous().mT):
        other_keypoints, other_scores = decode_heatmaps(other, method)
        if dtype == torch.float32:  # low precision has equal peaks, of which any may be taken
            torch.testing.assert_close(other_keypoints, keypoints, atol=1e-4, rtol=0)
        assert torch.equal(other_scores, scores)
