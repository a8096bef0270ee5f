"""From rows to the network's input: geometry, heatmaps, and the crops that training reads."""

import multiprocessing
import os
import pickle
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dataset_script import HandCrops, SyntheticHands, add_heatmaps
from dataset_script.freihand import FreiHAND
from dataset_script.hand_crops import crop_hand
from modeling_handunet import HandUNetImageProcessor, render_heatmaps
from tests.test_freihand import REAL, real_freihand, write_tree


def gradient(width: int, height: int) -> Image.Image:
    """x in red, y in green."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x % 256, y % 256, 0 * x], -1).astype(np.uint8))


def points(*first: tuple[float, float]) -> np.ndarray:
    """21 keypoints, `first` and then (50, 60)."""
    return np.array([*first, *[(50.0, 60.0)] * (21 - len(first))])


def a_row(**extra) -> dict:
    return {"image": gradient(200, 100), "uv": points((20.0, 10.0), (180.0, 90.0)), **extra}


def a_dataset(count: int = 6) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "uv": datasets.Array2D((21, 2), "float32")})
    rows = {
        "image": [Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(count)],
        "uv": [rng.uniform(10, 214, (21, 2)).astype(np.float32) for _ in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_marked_pixel_stays_under_its_keypoint_when_resized():
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[60:68, 100:108] = 255  # centre (104, 64)
    crop = crop_hand({"image": Image.fromarray(picture), "uv": points((104.0, 64.0))}, size=128)
    weights = np.asarray(crop["image"])[..., 0].astype(float)
    y, x = np.indices(weights.shape) + 0.5
    center = (x * weights).sum() / weights.sum(), (y * weights).sum() / weights.sum()
    np.testing.assert_allclose(crop["keypoints"][0], center, atol=0.02)


def test_an_image_without_a_box_is_the_crop_padded_centrally_to_a_square():
    crop = crop_hand(a_row(), size=100)  # 200 x 100 padded to 200 x 200, then halved
    assert crop["image"].size == (100, 100)
    np.testing.assert_allclose(crop["keypoints"][:3], [(10, 30), (90, 70), (25, 55)])
    pixels = np.asarray(crop["image"])
    assert not pixels[:24].any() and not pixels[76:].any() and int(pixels[50, 50, 0]) == pytest.approx(100, abs=2)
    assert crop["box_size"] == pytest.approx(80)  # the keypoints span 160 x 80 of 200


def test_a_box_becomes_a_square_that_it_fills_by_the_stated_share():
    crop = crop_hand(a_row(box=[40, 30, 45, 20]), size=128, box_fill=0.45)  # square: centre (62.5, 40), side 100
    np.testing.assert_allclose(crop["keypoints"][2], ((50 - 12.5) * 1.28, (60 + 10) * 1.28))
    assert crop["box_size"] == pytest.approx(0.45 * 128)
    assert crop["visibility"][2] and not crop["visibility"][1]  # (180, 90) lies outside the square
    assert not np.asarray(crop["image"])[:12].any()  # above the photograph: 10 of 100 rows are black


def test_a_left_hand_is_mirrored_into_a_right_one():
    right = crop_hand(a_row(box=[40, 30, 45, 20], handedness="right"))
    left = crop_hand(a_row(box=[40, 30, 45, 20], handedness="left"))
    np.testing.assert_allclose(left["keypoints"][:, 0], 128 - right["keypoints"][:, 0], rtol=1e-6)
    np.testing.assert_allclose(left["keypoints"][:, 1], right["keypoints"][:, 1])
    assert (np.asarray(left["image"]) == np.asarray(right["image"])[:, ::-1]).all()
    assert left["box_size"] == right["box_size"]


def test_what_is_not_annotated_is_not_visible_and_does_not_widen_the_box():
    visibility = np.ones(21, bool)
    visibility[1] = False  # the far point (180, 90)
    crop = crop_hand(a_row(visibility=visibility), size=100)
    assert not crop["visibility"][1] and crop["visibility"].sum() == 20
    assert crop["box_size"] == pytest.approx(25)  # (20, 10) to (50, 60), halved


def test_the_crop_is_the_one_the_image_processor_makes():
    box = [40.3, 30.7, 45.2, 20.1]
    processor = HandUNetImageProcessor()
    theirs = processor(gradient(200, 100), boxes=[[box]], handedness="left")["pixel_values"]
    ours = np.asarray(crop_hand(a_row(box=box, handedness="left"))["image"])
    np.testing.assert_allclose(processor.normalize_pixels(ours[None]), theirs, atol=1e-6)


def test_a_row_with_heatmaps_has_the_networks_input_and_target():
    dataset = a_dataset(3)
    row = add_heatmaps(dataset)[1]
    assert {name: tuple(value.shape) for name, value in row.items()} == {
        "pixel_values": (3, 128, 128), "keypoints": (21, 2), "heatmaps": (21, 128, 128)
    }  # fmt: skip
    np.testing.assert_allclose(row["keypoints"], np.array(dataset[1]["uv"]) * 128 / 224, rtol=1e-5)
    expected = HandUNetImageProcessor()(dataset[1]["image"], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(row["pixel_values"], expected)
    peak = row["heatmaps"][5].flatten().argmax().item()
    assert (peak % 128, peak // 128) == tuple(row["keypoints"][5].floor().int().tolist())
    assert set(dataset.column_names) == {"image", "uv"} and isinstance(dataset[0]["image"], Image.Image)


def test_a_keypoint_that_is_not_visible_has_an_empty_heatmap():
    dataset = [a_row(visibility=[False] + [True] * 20, uv=points((20, 10), (300, 10)))]
    heatmaps = add_heatmaps(dataset)[0]["heatmaps"]
    assert heatmaps[0].max() == 0 and heatmaps[1].max() == 0 and heatmaps[2].max() > 0.9


def test_dataloader_workers_receive_heatmaps():
    dataset = pickle.loads(pickle.dumps(add_heatmaps(a_dataset(4))))  # as a spawned worker gets it
    loader = DataLoader(dataset, batch_size=2, num_workers=1, multiprocessing_context="fork")
    assert [tuple(batch["heatmaps"].shape) for batch in loader] == [(2, 21, 128, 128)] * 2


def heatmaps_agree(tmp_path, folder):
    stored = FreiHAND(folder, heatmaps=True, cache_dir=tmp_path).build()["train"].with_format("numpy")["heatmaps"][:]
    read = add_heatmaps(FreiHAND(folder, cache_dir=tmp_path).build()["train"])[:]
    stored = torch.from_numpy(np.asarray(stored)).float() / 255
    batch = render_heatmaps(read["keypoints"], 128, 3.0)
    assert stored.max() > 0.98
    return max((stored - read["heatmaps"]).abs().max().item(), (stored - batch).abs().max().item())


def test_heatmaps_stored_read_and_rendered_by_the_batch_agree(tmp_path):
    assert heatmaps_agree(tmp_path, write_tree(tmp_path / "tree", 3)) < 1 / 255


@real_freihand
def test_heatmaps_of_the_real_samples_agree_too(tmp_path):
    assert heatmaps_agree(tmp_path, REAL) < 1 / 255


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) if isinstance(one[name], torch.Tensor) else one[name] == other[name]
        for name in one
    )


def test_crops_have_the_stated_types():
    item = HandCrops(a_dataset())[4]
    assert item["image"].shape == (3, 128, 128) and item["image"].dtype == torch.uint8
    assert item["keypoints"].shape == (21, 2) and item["keypoints"].dtype == torch.float32
    assert item["visibility"].shape == (21,) and item["visibility"].dtype == torch.bool
    assert isinstance(item["box_size"], float) and item["index"] == 4


def test_cached_crops_are_the_uncached_ones_and_are_made_once(tmp_path, monkeypatch):
    dataset = a_dataset()
    plain, cached = HandCrops(dataset), HandCrops(dataset, cache_dir=tmp_path)
    assert all(equal(plain[index], cached[index]) for index in range(-1, 5))
    assert equal(plain[5], pickle.loads(pickle.dumps(cached))[5])
    monkeypatch.setattr(HandCrops, "_crop", lambda self, index: pytest.fail("made again"))
    assert equal(cached[3], HandCrops(dataset, cache_dir=tmp_path)[3])


def test_cached_crops_belong_to_one_dataset_and_one_size(tmp_path):
    dataset = a_dataset()
    HandCrops(dataset, cache_dir=tmp_path)
    other = HandCrops(dataset.select(range(1, 6)), cache_dir=tmp_path)
    assert equal(other[0] | {"index": 1}, HandCrops(dataset)[1])
    assert HandCrops(dataset, 64, cache_dir=tmp_path)[0]["image"].shape == (3, 64, 64)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3


def test_a_cache_that_fails_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    crop = HandCrops._crop

    def fail_at_3(self, index, row):
        if index == 3:
            raise OSError("broken")
        return crop(self, index, row)

    with monkeypatch.context() as patch:
        patch.setattr(HandCrops, "_crop", fail_at_3)
        with pytest.raises(OSError, match="broken"):
            HandCrops(a_dataset(), cache_dir=tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(HandCrops(a_dataset(), cache_dir=tmp_path)) == 6


def count_decodings(dataset, cache_dir, counter):
    crop = HandCrops._crop

    def counted(self, index, row):
        with counter.get_lock():
            counter.value += 1
        return crop(self, index, row)

    HandCrops._crop = counted
    os._exit(0 if len(HandCrops(dataset, cache_dir=cache_dir)) == 6 else 1)


def test_processes_that_start_together_share_one_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    counter = context.Value("i", 0)
    arguments = (a_dataset(), tmp_path, counter)
    processes = [context.Process(target=count_decodings, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0] and counter.value == 6


def test_what_a_killed_process_left_of_a_cache_is_cleared_away(tmp_path):
    dataset = a_dataset()
    folder = HandCrops(dataset, cache_dir=tmp_path).cache
    shutil.rmtree(folder)
    (tmp_path / f"{folder.name}-abc.incomplete").mkdir()
    HandCrops(dataset, cache_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]


def test_synthetic_hands_are_cropped_and_cached_as_any_other(tmp_path):
    hands = SyntheticHands(2, image_size=128)
    cached, plain = HandCrops(hands, cache_dir=tmp_path), HandCrops(hands)
    assert equal(cached[1], plain[1])
    np.testing.assert_allclose(plain[1]["keypoints"], hands[1]["uv"], atol=1e-4)
    assert (plain[1]["image"].permute(1, 2, 0).numpy() == np.asarray(hands[1]["image"])).all()
    other = HandCrops(SyntheticHands(2, seed=1, image_size=128), cache_dir=tmp_path)
    assert not torch.equal(other[1]["keypoints"], plain[1]["keypoints"])


def test_a_dataset_without_a_fingerprint_is_not_cached(tmp_path):
    with pytest.raises(ValueError, match="list has no `fingerprint`"):
        HandCrops([a_row()], cache_dir=tmp_path)


def test_a_row_that_cannot_be_cropped_is_named():
    with pytest.raises(ValueError, match="row 1: .*0x5"):
        HandCrops([a_row(), {"image": Image.new("RGB", (0, 5)), "uv": points()}])[1]
