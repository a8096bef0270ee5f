"""Sources: which hands are drawn from where, that none of them is validated on, and what is said of them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_script import SyntheticHands
from dataset_script.augmentation import augmentation_keys
from dataset_script.cutouts import Cutouts
from dataset_script.layers import HandLayers, layers_on_device
from dataset_script.sources import SOURCES, Mixture, Source, make_source
from dataset_script.sources.scenes import LayerStream
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation
from tests.test_cutouts import write_cutouts
from training.arguments import make_arguments


def load(device: str = "cpu", **settings) -> Source:
    """The source of these settings, prepared."""
    args = make_arguments(**settings)
    source = make_source(
        args.data.dataset, args.data.shares, args.data, validate_on=args.data.validate_on, image_size=args.model.image_size,
        box_fill=args.model.box_fill, seed=args.optimisation.seed, eval_only=args.output.eval_only, device=device,
    )  # fmt: skip
    source.splits()
    return source


def save_model(folder):
    """A saved network, to be scored."""
    HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8))).save_pretrained(folder)
    return folder


def layers(seed: int) -> SyntheticHands:
    return SyntheticHands(4, seed=seed, image_size=32, difficulty="layers")


def test_sources_are_drawn_by_their_shares_and_differently_in_every_epoch(tmp_path):
    stored = HandLayers(layers(1), tmp_path)
    stream = LayerStream([stored, layers(2)], [3, 1], 200, seed=0)
    mine = {stored[index]["keypoints"].tobytes() for index in range(4)}
    epochs = []
    for epoch in range(2):
        stream.epoch = epoch
        batch = stream.__getitems__(list(range(200)))
        assert batch["index"].tolist() == list(range(200))
        from_stored = [points.numpy().tobytes() in mine for points in batch["keypoints"]]
        assert 0.6 < np.mean(from_stored) < 0.88
        epochs.append(from_stored)
    assert epochs[0] != epochs[1]
    torch.testing.assert_close(batch["image"][[3, 7]], stream.__getitems__([3, 7])["image"])


def test_streamed_hands_are_new_ones_every_time():
    stream = LayerStream([layers(2)], [1], 20, seed=0)
    seen = set()
    for epoch in range(2):
        stream.epoch = epoch
        seen |= {points.numpy().tobytes() for points in stream.__getitems__(list(range(20)))["keypoints"]}
    assert len(seen) == 40


def test_layers_in_a_devices_memory_are_those_on_disk(tmp_path):
    stored = HandLayers(layers(1), tmp_path)
    for held in (layers_on_device(stored, "cpu", batch_size=3), layers_on_device(layers(1), "cpu", batch_size=3)):
        assert len(held) == 4
        for name, values in held.rows([3, 0, 3]).items():
            torch.testing.assert_close(values, stored.rows([3, 0, 3])[name], rtol=0, atol=0)


def test_both_bodies_cut_outs_and_photographs_have_their_share(tmp_path, shared_data):
    write_cutouts(tmp_path / "cutouts")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (100, 100), (0, 255, 0)).save(tmp_path / "photos" / "green.png")
    mesh = str(shared_data / "hand_mesh" / "right.glb")
    source = load(
        dataset=["scenes"], layers=5, cutouts=str(tmp_path / "cutouts"), cutouts_share=0.2, photos=str(tmp_path / "photos"),
        hand_mesh=mesh, train_samples=4, validation_samples=1, test_samples=1, cache_dir=str(tmp_path), image_size=64,
    )  # fmt: skip
    splits = source.splits()
    first, second, cutouts = splits.train.hands
    assert (len(first), len(second), second.source.hand_mesh) == (5, 3, mesh) and isinstance(cutouts.source, Cutouts)
    np.testing.assert_allclose(np.diff(splits.train.limits, prepend=0), [0.5, 0.3, 0.2])
    assert source.scenes.photos.shape[1] == 3 and splits.test_groups == ["drawn"] * 2 + ["cut-outs"] * 40


def test_hands_that_are_validated_on_are_not_trained_on(tmp_path):
    write_cutouts(tmp_path / "cutouts")
    source = load(
        dataset=["scenes"], layers=6, cutouts=str(tmp_path / "cutouts"), train_samples=8, validation_samples=3,
        test_samples=2, cache_dir=str(tmp_path), image_size=64,
    )  # fmt: skip
    splits = source.splits()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (8, 3 + 40, 2 + 40)
    assert splits.test_groups == ["drawn"] * 2 + ["cut-outs"] * 40
    assert splits.validation_groups == ["drawn"] * 3 + ["cut-outs"] * 40
    assert [len(part) for part in splits.test_negatives.values()] == [42] * 3
    assert not any(item["visibility"].any() for part in splits.test_negatives.values() for item in part)
    item = splits.validation[4]
    assert item["image"].shape == (3, 64, 64) and item["index"] == 4 and item["visibility"].any()
    assert 0.3 * 64 < item["box_size"] < 0.6 * 64
    held_out = {row["handshape"] for row in Cutouts(tmp_path / "cutouts", "held out").rows}
    assert not {row["handshape"] for row in splits.train.hands[1].source.rows} & held_out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutouts": "x", "dataset": ["synthetic"]}, "--cutouts has no effect here: --dataset scenes has it"),
        ({"dataset": ["scenes"], "negatives": 1.5}, r"--negatives 1.5: give a share in \[0, 1\)"),
        ({"dataset": ["scenes"], "layers": 0}, "--layers 0: give 1 or more"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_arguments(**settings)


def test_photographs_are_counted_and_too_few_are_refused_by_name(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "b.png")
    points = [float(number % 21 + 5) for number in range(42)]
    keypoints = [value for x, y in zip(points[::2], points[1::2]) for value in (x, y, 2)]
    file = tmp_path / "hands.json"

    def prepare(names: str, **options):
        images = [{"id": name, "file_name": f"{name}.png"} for name in names]
        hands = [{"id": f"{name}{hand}", "image_id": name, "keypoints": keypoints} for name in names for hand in range(3)]
        file.write_text(json.dumps({"images": images, "annotations": hands}))
        return load(annotations=str(file), images=str(tmp_path), cache_dir=str(tmp_path / "cache"), **options)

    with pytest.raises(ValueError, match=f"{file.name} leaves no photograph for train"):
        prepare("a")
    source = prepare("ab", train_samples=2, test_samples=1)
    splits = source.splits()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [2, 3, 1]
    assert source.describe().name == file.name  # goes onto cards: no folder of this machine
    model = str(save_model(tmp_path / "model"))
    assert len(prepare("ab", eval_only=True, model=model, test_samples=4).splits().test) == 4


@pytest.mark.parametrize("dataset", ["synthetic", "scenes"])
def test_endless_hands_are_drawn_where_the_training_runs_unless_workers_draw_them(tmp_path, monkeypatch, dataset):
    used, draw = [], SyntheticHands.render_hands

    def render(self, indices, device="cpu"):
        used.append(str(device))
        return draw(self, indices)

    monkeypatch.setattr(SyntheticHands, "render_hands", render)
    counts = {"train_samples": 2, "validation_samples": 1, "test_samples": 1}
    for workers, expected in ((0, "cpu:0"), (1, "cpu")):
        settings = {"dataset": [dataset], "streaming": True, "workers": workers, "image_size": 32, "cache_dir": str(tmp_path)}
        train = load("cpu:0", **settings, **counts).splits().train  # which is no other device, but another name
        used.clear()
        train.__getitems__([0, 1])
        assert used == [expected]


def test_a_mixture_draws_each_sample_from_one_source_by_share(tmp_path):
    counts = {"train_samples": 200, "validation_samples": 2, "test_samples": 3, "layers": 4, "image_size": 32}
    source = load(dataset=["synthetic", "scenes"], shares=[1, 3], cache_dir=str(tmp_path), **counts)
    splits = source.splits()
    assert isinstance(source, Mixture) and (len(splits.train), len(splits.validation), len(splits.test)) == (200, 4, 6)
    assert splits.test_groups[-3:] == ["drawn"] * 3 and splits.grouped_by == "source"
    assert [item["index"] for item in splits.test] == list(range(6))
    batch = splits.train.__getitems__(list(range(200)))
    assert 0.18 < len(batch["parts"][0]["place"]) / 200 < 0.32
    places = torch.cat([part["place"] for part in batch["parts"].values()])
    assert sorted(places.tolist()) == list(range(200))
    made = source.make_inputs(batch, augmentation_keys(0, 0, batch["index"]))
    assert made.images.shape == (200, 3, 32, 32) and made.visibility.any(1).float().mean() > 0.95
    few = splits.train.__getitems__([7, 3])
    again = source.make_inputs(few, augmentation_keys(0, 0, few["index"]))
    torch.testing.assert_close(again.images, made.images[[7, 3]], rtol=0, atol=0)
    splits.train.epoch = 1
    assert splits.train.__getitems__(list(range(200)))["parts"][0]["place"].tolist() != batch["parts"][0]["place"].tolist()


def test_a_mixture_is_validated_on_the_sources_that_are_named(tmp_path):
    counts = {"train_samples": 8, "validation_samples": 2, "test_samples": 3, "layers": 4, "image_size": 32}
    source = load(dataset=["scenes", "synthetic"], validate_on=["synthetic"], cache_dir=str(tmp_path), **counts)
    splits = source.splits()
    assert (len(splits.validation), len(splits.test), splits.test_negatives) == (2, 3, {})
    assert splits.validation_groups == ["synthetic"] * 2


def test_a_mixture_has_the_terms_of_its_strictest_source():
    names = ["synthetic", "coco", "freihand"]
    options = make_arguments(dataset=names, annotations="x", data_dir="y").data
    terms = make_source(names, None, options, image_size=128, box_fill=0.45).terms()
    assert (terms.license, terms.license_name, terms.datasets) == ("other", "research-only", ("freihand",))


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_source_names_defaults_and_places_that_exist(source):
    options = {field.name for field in dataclasses.fields(make_arguments().data)} | {"epochs", "batch_size"}
    assert source.defaults.keys() <= options and set(source.places) <= options


def test_freihands_four_backgrounds_are_known_for_every_test_sample(tmp_path):
    SyntheticHands(2, seed=1).write_freihand(tmp_path / "freihand", versions=4, image_size=64)
    model = str(save_model(tmp_path / "model"))
    settings = {"data_dir": str(tmp_path / "freihand"), "cache_dir": str(tmp_path / "cache"), "split": "train"}
    settings |= {"eval_only": True, "model": model}
    splits = load(backgrounds="all", **settings).splits()
    assert splits.test_groups == [name for name in ("green_screen", "hom", "sample", "auto") for _ in range(2)]
    few = load(backgrounds="all", test_samples=3, **settings).splits()
    assert few.test_groups == ["green_screen", "green_screen", "hom"] and len(few.test) == 3
    assert load(backgrounds="raw", **settings).splits().test_groups is None


def test_a_drawn_hands_background_is_the_one_that_its_row_names(tmp_path):
    model = str(save_model(tmp_path / "model"))
    splits = load(cache_dir=str(tmp_path), difficulty="full", eval_only=True, model=model, test_samples=8).splits()
    assert splits.test_groups == [splits.test.dataset[index]["background"] for index in range(8)]
    assert len(set(splits.test_groups)) > 2
