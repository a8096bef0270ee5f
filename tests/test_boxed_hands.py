"""Hands of which only the box and perhaps the side is known, and how they teach the hand classifier."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dataset_script import boxed_hands
from dataset_script.augmentation import augmentation_keys
from dataset_script.boxed_hands import BoxedHands
from dataset_script.false_hands import FalseHands, credits_of_squares
from dataset_script.people import read_people
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation
from modeling_handunet.losses import LEFT, NO_HAND, RIGHT, SOME_HAND, UNLABELED
from tests.test_false_hands import write_false_hands
from tests.test_photographs import write_photographs
from tests.test_sources import load
from training.initial_weights import make_model

ROOT = Path(__file__).resolve().parents[1]
RED, GREEN = (255, 0, 0), (0, 255, 0)


def write_people(folder: Path) -> Path:
    """Photographs of 200 x 150 px with a square for a hand, red on its left half and green on its right one as a right hand,
    mirrored as a left one, all red if the side is not known.  The fifth is for validation, the sixth for test; one hand is
    too small and one to be ignored."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, side in enumerate(("right", "left", None, "left", "right", "right")):
        picture = Image.new("RGB", (200, 150), (60, 60, 60))
        colors = {"right": (RED, GREEN), "left": (GREEN, RED), None: (RED, RED)}[side]
        for index, color in enumerate(colors):
            picture.paste(color, (80 + 20 * index, 50, 100 + 20 * index, 90))
        picture.save(folder / "images" / f"{number}.png")
        image = {"id": number, "file_name": f"{number}.png", "width": 200, "height": 150, "source": "someone+0"}
        split = ("train", "train", "train", "train", "validation", "test")[number]
        marked = "teacher" if number == 1 else "by eye"
        images.append({**image, "split": split, "marked": marked})
        annotations.append({"image_id": number, "bbox": [80, 50, 40, 40], "handedness": side, "ignore": False})
    annotations += [
        {"image_id": 0, "bbox": [10, 10, 4, 4], "handedness": "right", "ignore": False},
        {"image_id": 0, "bbox": [10, 50, 40, 40], "handedness": "right", "ignore": True},
    ]
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


@pytest.fixture(scope="module")
def boxed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("boxed")
    write_people(folder / "people")
    boxed_hands.main(["--people", str(folder / "people"), "--output", str(folder / "hands")])
    return folder / "hands"


def shown(image: torch.Tensor) -> int:
    """What the square (3, S, S) uint8 shows."""
    red, green = ((image[index].float() - image[1 - index].float() > 90).nonzero() for index in (0, 1))
    if not len(green):
        return SOME_HAND
    return RIGHT if red[:, 1].float().mean() < green[:, 1].float().mean() else LEFT


def test_the_command_writes_squares_of_hands_that_count(boxed, tmp_path):
    index = json.loads((boxed / "index.json").read_text())
    assert [(row["split"], row["handedness"], row["marked"]) for row in index] == [
        ("train", "right", "by eye"), ("train", "left", "teacher"), ("train", None, "by eye"), ("train", "left", "by eye"),
        ("validation", "right", "by eye"),
    ]  # fmt: skip
    hands = BoxedHands(boxed, "train", tmp_path)
    image = hands.squares.rows([0])["image"][0]
    coloured = (image.float().amax(0) - image.float().amin(0) > 90).nonzero()
    assert (coloured.amax(0) - coloured.amin(0)).float().mean() == pytest.approx(224 * 0.3, abs=3)
    assert len(BoxedHands(boxed, "validation", tmp_path)) == 1
    assert credits_of_squares(boxed, "hands with boxes") == (("someone/0", "not stated", "4 hands with boxes"),)


def test_half_are_mirrored_and_the_class_says_what_is_seen(boxed, tmp_path):
    hands = BoxedHands(boxed, "train", tmp_path)
    images, classes = hands.sample(augmentation_keys(0, 0, torch.arange(600)))
    assert [shown(image) for image in images] == classes.tolist()
    assert set(classes.tolist()) == {RIGHT, LEFT, SOME_HAND}
    of_unknown_side = (classes == SOME_HAND).float().mean()
    assert of_unknown_side == pytest.approx(boxed_hands.BY_EYE_SHARE / 3, abs=0.06)  # one of three marked by eye
    sided = classes[classes != SOME_HAND]
    assert (sided == LEFT).float().mean() == pytest.approx(0.5, abs=0.08)
    again, _ = hands.sample(augmentation_keys(0, 0, torch.tensor([5])))
    assert torch.equal(again[0], images[5])  # whatever else is in the batch


def test_photographs_bring_them_without_keypoints_and_others_with_their_class(boxed, tmp_path):
    write_photographs(tmp_path / "photographs", 12)
    write_false_hands(tmp_path / "false")
    source = load(
        dataset=["photographs"], photographs=str(tmp_path / "photographs"), max_disagreement=1.0, train_samples=400,
        cache_dir=str(tmp_path / "cache"), image_size=64, negatives=0.2, false_hands=str(tmp_path / "false"),
        boxed_hands=str(boxed), boxed_share=0.5,
    )  # fmt: skip
    batch = source.splits().train.__getitems__(list(range(400)))
    is_boxed = (batch["image"].float().amax(1) - batch["image"].float().amin(1) > 90).flatten(1).any(1)
    classes = batch["hand_classes"]
    assert is_boxed.float().mean() == pytest.approx(0.4, abs=0.08)  # half of what is no negative
    assert [shown(image) for image in batch["image"][is_boxed]] == classes[is_boxed].tolist()
    inputs = source.make_inputs(batch, augmentation_keys(0, 0, torch.arange(400)))
    assert torch.equal(inputs.hand_classes, classes)
    no_loss = is_boxed & ((classes == RIGHT) | (classes == SOME_HAND))
    assert not inputs.visibility[no_loss].any()  # their keypoints are not known
    absent = (classes == LEFT) | (classes == NO_HAND)
    assert inputs.keypoints[absent].isnan().all() and inputs.visibility[absent].all()  # empty maps
    assert not inputs.keypoints[~absent].isnan().any()
    assert inputs.visibility[~absent & ~is_boxed].any(1).all()  # ordinary hands keep theirs
    with pytest.raises(ValueError, match="--boxed_hands needs --negatives above 0"):
        load(
            dataset=["photographs"], photographs=str(tmp_path / "photographs"), cache_dir=str(tmp_path / "cache"),
            boxed_hands=str(boxed), false_hands=str(tmp_path / "false"), max_disagreement=1.0,
        ).splits()  # fmt: skip


def test_other_sources_say_that_their_hands_are_right_ones(tmp_path):
    source = load(
        dataset=["scenes"], layers=4, train_samples=60, validation_samples=1, test_samples=1, negatives=0.5, image_size=32,
        cache_dir=str(tmp_path),
    )  # fmt: skip
    batch = source.splits().train.__getitems__(list(range(60)))
    inputs = source.make_inputs(batch, augmentation_keys(0, 0, batch["index"]))
    absent = inputs.keypoints.isnan().all(-1).all(-1)
    assert (inputs.hand_classes[absent] == UNLABELED).all() and (inputs.hand_classes[~absent] == RIGHT).all()
    assert 10 < absent.sum() < 50


def test_a_new_classifier_begins_the_same_and_an_old_one_goes_on(tmp_path):
    HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8), image_size=32)).save_pretrained(tmp_path / "m")

    class Settings:
        init, image_size, sigma, init_levels, init_hidden_sizes = str(tmp_path / "m"), 32, 2.0, None, None

    first, second = (make_model(Settings, 3, teaches_classifier=True) for _ in range(2))
    assert torch.equal(first.classifier.layers[1].weight, second.classifier.layers[1].weight)
    assert all(values.requires_grad for values in first.classifier.parameters())
    first.save_pretrained(tmp_path / "taught")
    Settings.init = str(tmp_path / "taught")
    later = make_model(Settings, 4, teaches_classifier=True)
    assert torch.equal(later.classifier.layers[1].weight, first.classifier.layers[1].weight)


@pytest.mark.parametrize("change", [{"handedness": "both"}, {"marked": "by ear"}, {"marked": None}])
def test_an_index_of_another_kind_is_named(boxed, tmp_path, change):
    rows = [{**row, **change} for row in json.loads((boxed / "index.json").read_text())]
    (tmp_path / "index.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="index.json is not an index of hands with boxes: 00000.webp needs"):
        BoxedHands(tmp_path, "train", tmp_path)


def test_hands_are_not_taken_for_false_ones(boxed, tmp_path):
    with pytest.raises(ValueError, match="has hands, not false ones"):
        FalseHands(boxed, "train", tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("bbox", [1, 2, "3", 4], "annotation 0: bbox has 4 finite numbers"),
        ("bbox", [1, 2, float("nan"), 4], "annotation 0: bbox has 4 finite numbers"),
        ("handedness", "Right", "annotation 0: handedness is right, left or null"),
        ("keypoints", [1.0] * 40, "annotation 0: keypoints has 21 times 2 or 3 finite numbers"),
        ("width", 0, "image 0: width and height are numbers above 0"),
        ("marked", "By eye", "image 0: marked is one of by eye, teacher"),
        ("source", None, "image 0: source is a text"),
    ],
)
def test_photographs_of_people_that_are_marked_otherwise_are_named(tmp_path, key, value, reason):
    coco = json.loads((write_people(tmp_path / "people") / "annotations.json").read_text())
    part = "annotations" if key in ("bbox", "handedness", "keypoints") else "images"
    coco[part][0][key] = value
    (tmp_path / "people" / "annotations.json").write_text(json.dumps(coco))
    with pytest.raises(ValueError, match=f"annotations.json is not a COCO file of marked hands: {reason}"):
        read_people(tmp_path / "people", ("train",))


@pytest.mark.slow
def test_training_teaches_the_classifier_and_reports_it(boxed, tmp_path):
    write_photographs(tmp_path / "photographs", 12)
    write_false_hands(tmp_path / "false")
    HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8), image_size=32, sigma=2.0)).save_pretrained(tmp_path / "m")
    def train(output: Path, *more) -> None:
        given = [*command, "--output_dir", output, *more]
        result = subprocess.run([*map(str, given)], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    command = [
        *(sys.executable, "train.py", "--photographs", tmp_path / "photographs", "--max_disagreement", "1"),
        *("--photographs_share", "0.7", "--validate_on", "photographs", "--layers", "4", "--test_samples", "8"),
        *("--boxed_hands", boxed, "--false_hands", tmp_path / "false", "--negatives", "0.3"),
        *("--train_samples", "64", "--batch_size", "16", "--epochs", "2", "--mixed_precision", "bf16"),
        *("--init", tmp_path / "m", "--cache_dir", tmp_path / "cache", "--checkpoint_every", "3", "--keep_checkpoints", "9"),
    ]  # fmt: skip
    train(tmp_path / "out")
    model = HandUNetForPoseEstimation.from_pretrained(tmp_path / "out" / "model")
    assert model.config.classifier_size == 64
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["hand_classifier"]["crops"] == 2
    assert 0 <= metrics["hand_classifier"]["auroc"] <= 1
    assert "hand classifier" in (tmp_path / "out" / "model" / "README.md").read_text()
    shutil.copytree(tmp_path / "out", tmp_path / "again")  # as if it had been killed in the middle of the second epoch
    for folder in (tmp_path / "again" / "checkpoints").glob("step-*"):
        if not folder.name.startswith("step-00000006"):
            shutil.rmtree(folder)
    train(tmp_path / "again", "--resume")
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "out", tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)  # the classifier's dropout, too
