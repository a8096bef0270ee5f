"""Training on scenes: which hands are drawn from which source, and that none of them is validated on."""

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_script import SyntheticHands
from dataset_script.cutouts import Cutouts
from dataset_script.layers import HandLayers, layers_on_device
from tests.test_cutouts import write_cutouts
from training.arguments import Arguments
from training.data import LayerStream, load_splits


def source(seed: int) -> SyntheticHands:
    return SyntheticHands(4, seed=seed, image_size=32, difficulty="layers")


def test_sources_are_drawn_by_their_shares_and_differently_in_every_epoch(tmp_path):
    kept = HandLayers(source(1), tmp_path)
    stream = LayerStream([kept, source(2)], [3, 1], 200, seed=0)
    mine = {kept[index]["keypoints"].tobytes() for index in range(4)}
    epochs = []
    for epoch in range(2):
        stream.epoch = epoch
        batch = stream.__getitems__(list(range(200)))
        assert batch["index"].tolist() == list(range(200))
        from_kept = [points.numpy().tobytes() in mine for points in batch["keypoints"]]
        assert 0.6 < np.mean(from_kept) < 0.88
        epochs.append(from_kept)
    assert epochs[0] != epochs[1]
    torch.testing.assert_close(batch["image"][[3, 7]], stream.__getitems__([3, 7])["image"])


def test_streamed_hands_are_new_ones_every_time():
    stream = LayerStream([source(2)], [1], 20, seed=0)
    seen = set()
    for epoch in range(2):
        stream.epoch = epoch
        seen |= {points.numpy().tobytes() for points in stream.__getitems__(list(range(20)))["keypoints"]}
    assert len(seen) == 40


def test_layers_in_a_devices_memory_are_those_on_disk(tmp_path):
    kept = HandLayers(source(1), tmp_path)
    for held in (layers_on_device(kept, "cpu", batch_size=3), layers_on_device(source(1), "cpu", batch_size=3)):
        assert len(held) == 4
        for name, values in held.rows([3, 0, 3]).items():
            torch.testing.assert_close(values, kept.rows([3, 0, 3])[name], rtol=0, atol=0)


def test_both_bodies_cut_outs_and_photographs_have_their_share(tmp_path, shared_data):
    write_cutouts(tmp_path / "cutouts")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (100, 100), (0, 255, 0)).save(tmp_path / "photos" / "green.png")
    mesh = str(shared_data / "hand_mesh" / "right.glb")
    args = Arguments(
        difficulty="scenes", layers=5, cutouts=str(tmp_path / "cutouts"), cutouts_share=0.2, photos=str(tmp_path / "photos"),
        hand_mesh=mesh, train_samples=4, validation_samples=1, test_samples=1, cache_dir=str(tmp_path), image_size=64,
    )  # fmt: skip
    splits = load_splits(args)
    first, second, cutouts = splits.train.sources
    assert (len(first), len(second), second.source.hand_mesh) == (5, 3, mesh) and isinstance(cutouts.source, Cutouts)
    np.testing.assert_allclose(np.diff(splits.train.limits, prepend=0), [0.5, 0.3, 0.2])
    assert splits.scenes.photos.shape[1] == 3 and splits.test_groups == ["drawn"] * 2 + ["cut-outs"] * 40


def test_hands_that_are_validated_on_are_not_trained_on(tmp_path):
    write_cutouts(tmp_path / "cutouts")
    args = Arguments(
        difficulty="scenes", layers=6, cutouts=str(tmp_path / "cutouts"), train_samples=8, validation_samples=3,
        test_samples=2, cache_dir=str(tmp_path), image_size=64,
    )  # fmt: skip
    splits = load_splits(args)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (8, 3 + 40, 2 + 40)
    assert splits.test_groups == ["drawn"] * 2 + ["cut-outs"] * 40
    assert [len(part) for part in splits.test_negatives.values()] == [42] * 3
    assert not any(item["visibility"].any() for part in splits.test_negatives.values() for item in part)
    item = splits.validation[4]
    assert item["image"].shape == (3, 64, 64) and item["index"] == 4 and item["visibility"].any()
    assert 0.3 * 64 < item["box_size"] < 0.6 * 64
    held_out = {row["handshape"] for row in Cutouts(tmp_path / "cutouts", "held out").rows}
    assert not {row["handshape"] for row in splits.train.sources[1].source.rows} & held_out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutouts": "x"}, "--cutouts has no effect here: --difficulty scenes has it"),
        ({"difficulty": "scenes", "negatives": 1.5}, r"--negatives 1.5: give a share in \[0, 1\)"),
        ({"difficulty": "scenes", "layers": 0}, "--layers 0: give 1 or more"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Arguments(**settings)
