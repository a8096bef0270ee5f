import json

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_script import false_hands
from dataset_script.false_hands import FalseHands, find_false_hands, overlap_of_own
from modeling_handunet import HandUNetDetectorConfig, HandUNetDetectorImageProcessor, HandUNetForObjectDetection
from modeling_handunet.hands import FoundHand
from tests.test_photographs import write_photographs
from tests.test_sources import load


def write_false_hands(folder, count: int = 4) -> None:
    """Grey squares, the last one for validation; square i has the value 50 + i."""
    (folder / "images").mkdir(parents=True)
    index = []
    for number in range(count):
        Image.new("L", (224, 224), 50 + number).save(folder / "images" / f"{number}.webp", lossless=True)
        split = "validation" if number == count - 1 else "train"
        index.append({"file_name": f"{number}.webp", "source": "someone+0", "license": "MIT", "split": split})
    (folder / "index.json").write_text(json.dumps(index))


def found(*box, score=0.5) -> FoundHand:
    return FoundHand(box, "right", score, (0.0, 1.0))


def test_what_lies_on_a_hand_is_left_out_even_if_it_is_much_smaller():
    hands = np.array([[10.0, 10, 60, 60]])
    elbow, finger, tiny, doubtful = (
        found(100, 10, 140, 50),
        found(12, 12, 22, 22),
        found(90, 90, 95, 95),
        found(150, 0, 190, 40, score=0.05),
    )
    assert find_false_hands([elbow, finger, tiny, doubtful], 200, hands) == [elbow]
    assert overlap_of_own((50, 10, 70, 60), hands) == pytest.approx(0.5)
    assert overlap_of_own((50, 10, 70, 60), hands[:0]) == 0


def test_negatives_are_left_hands_and_false_hands_with_empty_targets(tmp_path):
    write_photographs(tmp_path / "photographs", 12)
    write_false_hands(tmp_path / "false")
    settings = dict(
        dataset=["photographs"], photographs=str(tmp_path / "photographs"), max_disagreement=1.0, train_samples=400,
        cache_dir=str(tmp_path / "cache"), image_size=64,
    )  # fmt: skip
    source = load(**settings, negatives=0.5, false_hands=str(tmp_path / "false"))
    batch = source.splits().train.__getitems__(list(range(400)))
    negative = batch["is_absent"]
    false = (batch["image"][:, :, :5, :5] >= 50).flatten(1).all(1)  # a photograph's ground is 40
    assert 0.4 < negative.float().mean() < 0.6 and not (false & ~negative).any()
    assert 0.55 < false.sum() / negative.sum() < 0.78
    # The dot of a photograph lies left of the middle, and at keypoint 0: also in a left hand, which is mirrored.
    left = negative & ~false
    assert (batch["keypoints"][left][:, 0, 0] > 112).float().mean() > 0.4
    for image, (x, y) in zip(batch["image"][~false], batch["keypoints"][~false][:, 0]):
        assert (image[:, int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] == 255).all()
    inputs = source.make_inputs(batch, torch.stack([torch.arange(400), torch.arange(400)], 1))
    assert torch.equal(inputs.keypoints.isnan().all(-1).all(-1), negative) and inputs.visibility[negative].all()

    tests = source.splits().test_negatives
    assert list(tests) == ["left hand", "false hand"] and len(tests["false hand"]) == 1
    assert (tests["false hand"][0]["image"] == 53).all() and not tests["left hand"][0]["visibility"].any()
    assert torch.equal(tests["left hand"][0]["image"], source.splits().test[0]["image"].flip(-1))
    assert len(source.splits().validation_groups) == len(source.splits().validation)
    without = load(**settings, negatives=0.0)
    assert not without.splits().train.__getitems__(list(range(50)))["is_absent"].any()


def test_the_command_writes_what_a_detector_finds_in_photographs(tmp_path, capsys):
    """A new detector finds something everywhere."""
    torch.manual_seed(0)
    HandUNetForObjectDetection(
        HandUNetDetectorConfig(hidden_sizes=(4, 4, 4, 4), decoder_sizes=(4,), image_size=64)
    ).save_pretrained(tmp_path / "m")
    HandUNetDetectorImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "m")
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "index.json").write_text(json.dumps([{"file_name": "a.png", "source": "someone"}]))
    false_hands.LEAST_SCORE, usual = 1e-6, false_hands.LEAST_SCORE
    try:
        false_hands.main(
            ["--photos", str(tmp_path / "photos"), "--detector", str(tmp_path / "m"), "--output", str(tmp_path / "out")]
        )
    finally:
        false_hands.LEAST_SCORE = usual
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert 1 <= len(index) <= 8 and f"{len(index)} for training" in capsys.readouterr().out
    assert {(row["source"], row["split"]) for row in index} == {("someone", "train")}
    assert len(FalseHands(tmp_path / "out", "train", tmp_path / "cache")) == len(index)


def test_a_missing_index_or_another_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="index.json"):
        FalseHands(tmp_path, "train", tmp_path)
    for text in ('[{"file_name": 1}]', '{"a": 1}', "[1]"):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match="index.json is not an index of squares"):
            FalseHands(tmp_path, "train", tmp_path)
    write_false_hands(tmp_path / "a", 1)
    with pytest.raises(ValueError, match="no square of the split 'train'"):
        FalseHands(tmp_path / "a", "train", tmp_path)
