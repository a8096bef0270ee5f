"""The pictures of a run show the hands that they promise."""

import numpy as np
import pytest
from PIL import Image

from tests.small_model import small_network, small_run
from training.figures import draw_contact_sheet, draw_failures, rank_hands


@pytest.fixture(scope="module")
def run():
    return small_run(small_network())


def test_the_failures_are_the_worst_hands(run, tmp_path):
    _, hands, arrays = run
    ranked, errors = rank_hands(arrays)
    assert sorted(ranked) == list(range(8)) and (np.diff(errors[ranked]) >= 0).all()
    seen = arrays["visibility"][ranked[-1]]
    offsets = (arrays["predictions"] - arrays["keypoints"])[ranked[-1]][seen]
    assert errors[ranked[-1]] == pytest.approx(np.hypot(*offsets.T).mean())
    with Image.open(draw_failures(tmp_path / "failures.png", arrays, hands, count=3)) as picture:
        assert picture.size == (3 * 256, 2 * 256)
        worst = np.asarray(picture)[:256, 512:]
    item = hands[int(ranked[-1])]["image"].permute(1, 2, 0).numpy()
    large = np.asarray(Image.fromarray(item).resize((256, 256), Image.Resampling.BICUBIC))
    assert (worst == large).all(-1).mean() > 0.5  # the skeleton covers the rest


def test_a_contact_sheet_begins_with_the_largest_error_over_the_box(run, tmp_path):
    _, hands, arrays = run
    _, errors = rank_hands(arrays)
    arrays = {**arrays, "box_size": np.where(np.arange(8) == np.argmin(errors), 1e-3, arrays["box_size"])}
    sheet = draw_contact_sheet(tmp_path / "sheet.png", arrays, hands, columns=4)
    with Image.open(sheet) as picture:
        assert picture.size == (4 * 256, 2 * 256)
        tiles = [
            np.asarray(picture.crop((256 * (k % 4), 256 * (k // 4), 256 * (k % 4 + 1), 256 * (k // 4 + 1)))) for k in range(8)
        ]
    expected = np.argsort(-errors / arrays["box_size"])
    assert expected[0] == np.argmin(errors)
    for tile, index in zip(tiles, expected):
        item = hands[int(index)]["image"].permute(1, 2, 0).numpy()
        large = np.asarray(Image.fromarray(item).resize((256, 256), Image.Resampling.BICUBIC))
        assert (tile == large).all(-1).mean() > 0.5
