"""Crops of hands and of what is none, and the classifier that is taught on them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_script.augmentation import augmentation_keys
from dataset_script.hand_looks import Looks, MarkedHand, what_it_is
from modeling_handunet import HandUNetForPoseEstimation
from modeling_handunet.hands import FoundHand
from modeling_handunet.losses import LEFT, NO_HAND, RIGHT, SOME_HAND, hand_loss
from modeling_handunet.modeling_handunet import HandClassifier
from tests.small_model import save_small_model
from tests.test_sources import load
from training.hand_classifier import figures, fit, of_other_sources

ROOT = Path(__file__).resolve().parents[1]
GREY, RED, GREEN = (60, 60, 60), (255, 0, 0), (0, 255, 0)


def found(*box, score=0.5) -> FoundHand:
    return FoundHand(box, "right", score, (0.0, -1.0))


def write_people(folder: Path) -> Path:
    """Photographs of 200 x 150 px with a square for a hand, red on the left half and green on the right half, as a right hand
    or mirrored as a left one; the last one is for validation."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(5):
        picture = Image.new("RGB", (200, 150), GREY)
        side, colors = ("right", (RED, GREEN)) if number % 2 == 0 else ("left", (GREEN, RED))
        for index, color in enumerate(colors):
            picture.paste(color, (80 + 20 * index, 50, 100 + 20 * index, 90))
        picture.save(folder / "images" / f"{number}.png")
        image = {"id": number, "file_name": f"{number}.png", "width": 200, "height": 150, "marked": "by eye"}
        split, source = ("validation", "b") if number == 4 else ("train", "a")
        images.append({**image, "split": split, "source": source})
        annotations.append({"image_id": number, "bbox": [80, 50, 40, 40], "handedness": side, "ignore": False})
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    return write_people(tmp_path_factory.mktemp("people") / "people")


def is_mirrored(pixels: np.ndarray) -> bool:
    """Whether the square shows green left of red."""
    red, green = (np.argwhere(pixels[..., index] > pixels[..., 1 - index] + 60.0) for index in (0, 1))
    return green[:, 1].mean() < red[:, 1].mean()


def test_what_a_detector_found_is_a_hand_none_or_doubtful():
    hands = [MarkedHand((10, 10, 60, 60), LEFT, False), MarkedHand((100, 10, 140, 50), RIGHT, True)]
    assert what_it_is(found(12, 8, 64, 58), hands) == LEFT
    assert what_it_is(found(200, 10, 240, 50), hands) == NO_HAND
    assert what_it_is(found(40, 10, 90, 60), hands) is None  # covers a part of the hand
    assert what_it_is(found(100, 10, 140, 50), hands) is None  # nothing is asked there
    assert what_it_is(found(130, 40, 300, 200), hands) is None  # and it touches it
    assert what_it_is(found(0, 0, 10, 10), []) == NO_HAND


def test_crops_show_what_they_are_said_to_also_when_they_are_mirrored(people, tmp_path):
    def detect(photo):
        return [found(81, 49, 121, 91, score=0.9), found(5, 5, 45, 45, score=0.6), found(5, 100, 45, 140, score=0.01)]

    looks = list(Looks("train", detect, people=people, cache_dir=tmp_path))
    kinds = [look.kind for look in looks]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "marked by eye": 4 * 8, "found, a hand": 4, "found, no hand": 4 * 2,
    }  # fmt: skip
    hands = [look for look in looks if look.shows != NO_HAND]
    assert {look.shows for look in hands} == {RIGHT, LEFT}
    for look in hands:
        assert look.pixels.shape == (128, 128, 3) and look.pixels.dtype == np.uint8
        assert is_mirrored(look.pixels) == (look.shows == LEFT)
    again = list(Looks("train", detect, people=people, cache_dir=tmp_path))
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(looks, again, strict=True))
    (marked, hand, nothing) = Looks("validation", detect, people=people, cache_dir=tmp_path)  # once each, as they are
    assert (marked.kind, hand.kind, nothing.kind) == ("marked by eye", "found, a hand", "found, no hand")
    assert np.argwhere(marked.pixels[..., 0] > 200).shape[0] == pytest.approx((128 * 0.45) ** 2 / 2, rel=0.1)


def test_scenes_are_looked_at_as_they_come_or_mirrored(tmp_path):
    settings = dict(dataset=["scenes"], layers=4, train_samples=6, validation_samples=1, test_samples=1, negatives=0.0)
    source = load(**settings, cache_dir=str(tmp_path), image_size=64)
    looks = list(Looks("train", None, scenes=source, cache_dir=tmp_path, size=64))
    assert {look.shows for look in looks} == {RIGHT, LEFT} and {look.kind for look in looks} == {"in a scene"}
    batch = source.splits().train.__getitems__(list(range(6)))
    images = source.make_inputs(batch, augmentation_keys(0, 0, batch["index"])).images
    for look, image in zip(looks, (images * 255).round().byte().permute(0, 2, 3, 1).numpy(), strict=True):
        assert np.array_equal(look.pixels, image[:, ::-1] if look.shows == LEFT else image)
    assert not list(Looks("validation", None, scenes=source, cache_dir=tmp_path, size=64))


def test_a_hand_of_unknown_side_may_be_either():
    logits = torch.tensor([[2.0, 0.0, -1.0]]).expand(3, 3)
    chances = logits[0].softmax(0)
    loss = hand_loss(logits, torch.tensor([LEFT, NO_HAND, SOME_HAND]))
    expected = [-chances[LEFT].log(), -chances[NO_HAND].log(), -(chances[RIGHT] + chances[LEFT]).log()]
    torch.testing.assert_close(loss, torch.stack(expected))


def test_the_classifier_learns_and_its_figures_say_so():
    torch.manual_seed(0)
    shows = torch.randint(-1, 3, (12_000,))
    side = torch.where(shows == SOME_HAND, torch.randint(0, 2, (12_000,)), shows)
    features = torch.randn(12_000, 8) + 4 * torch.nn.functional.one_hot(side, 8)
    kinds = ["found before, no hand" if shown == NO_HAND else "marked by eye" for shown in shows.tolist()]
    seen = {"features": features.half(), "shows": shows, "kind": kinds}
    classifier = HandClassifier(2, 64)
    fit(classifier, seen)
    first = [values.clone() for values in classifier.state_dict().values()]
    measured = figures(classifier, seen)
    assert measured["auroc"] > 0.9 and measured["side_accuracy"] > 0.9 and measured["crops"] == 12_000
    assert measured["by_kind"].keys() == {"marked by eye"}
    assert measured["by_kind"]["marked by eye"]["crops"] == (shows != NO_HAND).sum()
    fit(classifier, seen)  # begins anew, and the same seed gives the same
    assert all(torch.equal(one, other) for one, other in zip(first, classifier.state_dict().values()))


def test_it_is_judged_by_sources_of_which_it_was_taught_no_hand():
    taught = {"source": ["a", "b"], "kind": ["close", "found before, no hand"]}
    seen = {"features": torch.eye(3), "shows": torch.arange(3), "kind": ["close"] * 3, "source": ["a", "b", "c"]}
    left = of_other_sources(seen, taught)
    assert left["source"] == ["b", "c"] and left["kind"] == ["close"] * 2 and torch.equal(left["features"], torch.eye(3)[1:])


@pytest.mark.slow
def test_a_saved_model_gets_its_classifier_by_one_command_and_keeps_its_keypoints(people, tmp_path):
    model = HandUNetForPoseEstimation.from_pretrained(save_small_model(tmp_path)).eval()
    teach = ["model", "--detector", "finder", "--people", people, "--output", "taught", "--cache_dir", "cache"]
    teach += ["--scenes", 4, "--layers", 2]

    def run(*arguments):
        command = [sys.executable, "-m", "training.hand_classifier", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)

    result = run(*teach)
    assert result.returncode == 0, result.stderr
    taught = HandUNetForPoseEstimation.from_pretrained(tmp_path / "taught").eval()
    inputs = torch.rand(2, 3, 128, 128)
    assert torch.equal(taught(inputs).heatmaps, model(inputs).heatmaps) and taught(inputs).hand_logits.shape == (2, 3)
    assert taught.config.detector == model.config.detector
    metrics = json.loads((tmp_path / "taught" / "metrics.json").read_text())
    assert metrics["hand_classifier"]["train"] == json.loads(result.stdout)["train"]
    assert "hand classifier" in (tmp_path / "taught" / "README.md").read_text()
    missing = run(*teach[:4], "none", *teach[5:])
    assert missing.returncode == 1 and "Traceback" not in missing.stderr and "none/annotations.json" in missing.stderr
    nothing = run("model", "--detector", "finder", "--output", "x")
    assert nothing.returncode == 1 and "name --people, --photographs or --false_hands" in nothing.stderr
