import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_script.cutouts import HELD_OUT_HANDSHAPES, Cutouts

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "cutouts"
real_cutouts = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there: it is not part of the repository")


def write_cutouts(folder, count: int = 45, **changes) -> dict:
    """A folder of red rectangles as hands, each of a handshape of its own; returns its first annotation."""
    (folder / "images").mkdir(parents=True)
    entries = []
    for number in range(count):
        pixels = np.zeros((80, 60, 4), np.uint8)
        pixels[10:, 20:40] = (200, 60, 40, 255)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        aside = 8 * np.resize([0, 1, 0, -1], 21)  # the wrist in the middle
        points = np.stack([30 + aside, np.linspace(70, 12, 21)], 1)
        entries.append({"file": f"{number}.png", "handshape": f"shape {number}", "keypoints": points.tolist()})
    entries[0] |= changes
    (folder / "annotations.json").write_text(json.dumps(entries))
    return entries[0]


def test_handshapes_are_held_out_whole_and_always_the_same_ones(tmp_path):
    write_cutouts(tmp_path / "a")
    train, held_out = (Cutouts(tmp_path / "a", part) for part in ("train", "held out"))
    shapes = [{row["handshape"] for row in part.rows} for part in (train, held_out)]
    assert len(shapes[0]) == 5 and len(shapes[1]) == HELD_OUT_HANDSHAPES and not shapes[0] & shapes[1]
    assert {row["handshape"] for row in Cutouts(tmp_path / "a", "held out").rows} == shapes[1]
    assert len(Cutouts(tmp_path / "a", "all", variants=2)) == 90


def test_the_hand_fills_its_share_of_the_square_and_keeps_its_keypoints_and_color(tmp_path):
    write_cutouts(tmp_path / "a")
    layer = Cutouts(tmp_path / "a", "all", image_size=100).layers(torch.tensor([0]))
    low, high = layer.keypoints[0].amin(0), layer.keypoints[0].amax(0)
    # The box of 16 x 58 px is scaled to 0.36 of 100 px in its longer side, and centred.
    torch.testing.assert_close(high[1] - low[1], torch.tensor(36.0), atol=1e-3, rtol=0)
    torch.testing.assert_close((low + high) / 2, torch.tensor([50.0, 50.0]), atol=1e-3, rtol=0)
    x, y = (int(value) for value in layer.keypoints[0, 10])
    torch.testing.assert_close(layer.rgba[0, :, y, x], torch.tensor([200, 60, 40, 255]) / 255, atol=0.02, rtol=0)
    torch.testing.assert_close(layer.skin[0], torch.tensor([200, 60, 40]) / 255, atol=1e-3, rtol=0)


def test_an_arm_goes_on_from_the_cut_to_the_edge(tmp_path):
    write_cutouts(tmp_path / "a")
    hands = Cutouts(tmp_path / "a", "all", image_size=100, variants=4).layers(torch.arange(0, 180, 9))
    assert (hands.rgba[:, 3, 95, 40:60].mean(1) > 0.5).all()  # below the hand
    assert (hands.rgba[:, 3, :20].amax((1, 2)) == 0).all()  # nothing above it
    bare = (hands.rgba[:, :3, 95, 50] - torch.tensor([200, 60, 40]) / 255).abs().amax(1) < 0.2
    assert 0 < bare.sum() < len(bare)  # some arms have the hand's colour, some a sleeve's


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "gone.png"}, r"entry 0 names 'gone.png', which is not in images/"),
        ({"file": "../0.png"}, r"entry 0 names '../0.png'"),
        ({"keypoints": [[0, 0]] * 20}, r"0.png needs 21 keypoints"),
        ({"keypoints": [[float("nan"), 0]] * 21}, r"0.png needs 21 keypoints"),
        ({"handshape": None}, r"0.png has no `handshape`"),
    ],
)
def test_bad_annotations_are_named(tmp_path, changes, message):
    write_cutouts(tmp_path / "a", **changes)
    with pytest.raises((ValueError, OSError), match=message):
        Cutouts(tmp_path / "a")


def test_missing_folders_broken_photographs_and_unknown_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no annotations.json"):
        Cutouts(tmp_path)
    write_cutouts(tmp_path / "a")
    (tmp_path / "a" / "images" / "0.png").write_bytes(b"no image")
    hands = Cutouts(tmp_path / "a", "all")
    with pytest.raises(ValueError, match="0.png cannot be read"):
        hands.layers(torch.tensor([0]))
    with pytest.raises(ValueError, match="part is 'test'"):
        Cutouts(tmp_path / "a", "test")


@real_cutouts
def test_the_real_cut_outs_split_into_217_and_40_handshapes():
    parts = [Cutouts(REAL, part) for part in ("train", "held out")]
    assert [len({row["handshape"] for row in part.rows}) for part in parts] == [217, 40]
    assert sum(len(part.rows) for part in parts) == 954
    layer = parts[0].layers(torch.tensor([3]))
    on_the_hand = [layer.rgba[0, 3, int(y), int(x)] for x, y in layer.keypoints[0]]
    assert sum(float(alpha) > 0.5 for alpha in on_the_hand) >= 19
