"""The figures of the data, and the numbers in them."""

import json

import numpy as np
import pytest
from PIL import Image

from dataset_script.explore import STYLE, channel_statistics, explore, main, principal_components, read_hands
from tests.test_freihand import write_tree


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch):
    monkeypatch.setitem(STYLE, "savefig.dpi", 30)


def rows(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "image": Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)),
            "uv": rng.uniform(5, 59, (21, 2)),
        }
        for _ in range(count)
    ]


def test_components_of_points_on_a_line_are_that_line():
    """Along (3, 4) / 5 at -5, 0 and 5 from (1, 2): all variance, mean (1, 2), coordinates -5, 0, 5."""
    parts = principal_components([[-2, -2], [1, 2], [4, 6]])
    np.testing.assert_allclose(parts.mean, [1, 2])
    np.testing.assert_allclose(parts.directions, [[0.6, 0.8]])
    np.testing.assert_allclose(parts.coordinates, [[-5], [0], [5]], atol=1e-12)
    np.testing.assert_allclose(parts.shares, [1])


def test_components_are_those_of_the_covariance_matrix():
    samples = np.random.default_rng(0).normal(size=(50, 8)) @ np.diag([8, 7, 6, 5, 4, 3, 2, 1])
    parts = principal_components(samples)
    variances, directions = np.linalg.eigh(np.cov(samples.T))
    np.testing.assert_allclose(parts.shares, variances[::-1] / variances.sum())
    np.testing.assert_allclose(np.abs(parts.directions @ directions[:, ::-1]), np.eye(8), atol=1e-9)
    np.testing.assert_allclose(parts.mean + parts.coordinates @ parts.directions, samples)


def test_components_of_samples_that_do_not_differ_are_refused():
    with pytest.raises(ValueError, match=r"at least 2 samples.*\(1, 2\)"):
        principal_components([[1, 2]])
    with pytest.raises(ValueError, match="the 3 samples are all the same"):
        principal_components([[1, 2]] * 3)


def test_channel_statistics_are_those_of_all_pixels():
    images = np.zeros((2, 3, 1, 2), np.uint8)
    images[:, 0] = 51  # red: always 0.2
    images[0, 1] = 255  # green: half 0, half 1
    images[0, 2, 0, 0] = 255  # blue: a quarter 1, mean 0.25, variance 0.25 * 0.75
    statistics = channel_statistics(images)
    assert statistics["red"] == {"mean": pytest.approx(0.2), "std": pytest.approx(0, abs=1e-9)}
    assert statistics["green"] == {"mean": pytest.approx(0.5), "std": pytest.approx(0.5)}
    assert statistics["blue"] == {"mean": pytest.approx(0.25), "std": pytest.approx(0.1875**0.5)}


def test_keypoints_without_annotation_have_no_place():
    """COCO files give them the place (0, 0), which would distort every figure."""
    hands = rows(3)
    hands[1]["visibility"] = [False] + [True] * 20
    images, keypoints = read_hands(hands, 300)
    assert images.shape == (3, 3, 128, 128) and images.dtype == np.uint8
    assert np.isnan(keypoints[1, 0]).all() and np.isnan(keypoints).sum() == 2
    np.testing.assert_allclose(keypoints[2], hands[2]["uv"] * 2, rtol=1e-5)  # 64 to 128 pixels


def test_fewer_images_are_spread_evenly():
    hands = [{**rows(1)[0], "uv": np.full((21, 2), 1.0 + index)} for index in range(9)]
    assert read_hands(hands, 3)[1][:, 0, 0].tolist() == [2, 10, 18]


def test_too_few_hands_are_refused(tmp_path):
    hands = rows(2)
    hands[0]["visibility"] = [False] + [True] * 20
    with pytest.raises(ValueError, match="1 of 2 hands have all 21 keypoints"):
        explore(hands, tmp_path)
    with pytest.raises(ValueError, match="no rows"):
        explore([], tmp_path)


def test_the_command_draws_every_figure_of_a_freihand_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    out = tmp_path / "out"
    main(["--data_dir", str(write_tree(tmp_path / "tree", 3)), "--output_dir", str(out)])
    output = capsys.readouterr().out
    assert "red: mean 0.00" in output and "green: mean 0.47" in output  # (image, 120, 60) of 255
    figures = ["channels.png", "heatmaps.png", "pca_images.png", "pca_keypoints.png", "samples.png"]
    assert sorted(path.name for path in out.iterdir()) == ["channels.json", *figures]
    written = json.loads((out / "channels.json").read_text())
    assert written["images"] == 3 and written["channels"]["green"]["mean"] == pytest.approx(0.47, abs=0.005)
    for name in figures:
        with Image.open(out / name) as picture:
            assert picture.width > 150 and len(picture.convert("RGB").getcolors(1 << 20)) > 50


def test_the_command_explains_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit, match="Error: .*nowhere does not exist"):
        main(["--data_dir", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit):
        main(["--annotations", "a.json"])
    assert "--images" in capsys.readouterr().err
