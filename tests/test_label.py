"""Labelling by a teacher: here one that knows where the hands are, and finds them again by the colours of a crop."""

import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_script import CocoHands, label, teachers
from dataset_script.photographs import Photographs
from dataset_script.teachers import HandUNet, Look, MediaPipe
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from modeling_handunet.crops import Crop

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "photographs"
HAND = np.stack([np.tile(np.arange(5), 5)[:21], np.arange(21) // 5 * 1.25], 1) * 10  # (21, 2), in a box of 40 x 50 px


def photo() -> Image.Image:
    """256 x 256 px; red is x, green is y, blue is full, so that a crop's colours say which part it shows."""
    y, x = np.mgrid[:256, :256]
    return Image.fromarray(np.stack([x, y, np.full_like(x, 255)], 2).astype(np.uint8))


class Seer:
    """Sees `hands` (keypoints px of the photo, probability of a right hand), moved by `errors` of each call in turn.

    It errs by a quarter of a pixel on a turned crop, because PIL rounds colours down when it turns.
    """

    sentence, detects, crops = "one who sees", True, MediaPipe.crops
    box_crops = MediaPipe.crops

    def __init__(self, *hands, errors=()):
        self.hands, self.errors, self.calls = hands, list(errors), 0

    def __call__(self, picture: Image.Image) -> list[Look]:
        self.calls += 1
        error = self.errors.pop(0) if self.errors else 0.0
        pixels = np.asarray(picture, np.float64)
        # Not the photo's edge, where resizing has no neighbours.
        shown = (pixels[..., 2] == 255) & (np.abs(pixels[..., :2] - 127.5) < 124).all(2)
        y, x = np.nonzero(shown)
        # Pixels of the photo are a linear map of those of the picture.
        fit = np.linalg.lstsq(np.stack([x + 0.5, y + 0.5, np.ones(len(x))], 1), pixels[shown][:, :2] + 0.5, rcond=None)[0]
        mirrored = np.linalg.det(fit[:2]) < 0
        return [
            Look((points + error - fit[2]) @ np.linalg.inv(fit[:2]), 1 - right if mirrored else right)
            for points, right in self.hands
        ]


def test_the_median_disagreement_and_handedness_of_three_looks():
    looks = [Look(HAND, 0.9), Look(HAND, 0.8), Look(HAND + (3, 4), 0.1)]  # the last one is 5 px away
    found = label.consensus(looks)
    np.testing.assert_array_equal(found["keypoints"], HAND)
    assert found["disagreement"] == round(5 / 3 / 50, 4)
    assert (found["handedness"], found["handedness_agreement"], found["looks"]) == ("right", 0.6, 3)
    assert label.consensus([Look(HAND, 0.9), Look(HAND, 0.2), Look(HAND, 0.1)])["handedness"] == "left"


def test_a_look_at_a_mirrored_crop_is_mirrored_back_and_votes_for_the_other_hand():
    crop = Crop((0, 0, 200), 100, mirrored=True)
    (look,) = label.look_at(photo(), crop, lambda picture: [Look(np.array([[10.0, 20.0]]), 0.9)])
    assert look.keypoints.tolist() == [[180, 40]] and look.right == pytest.approx(0.1)


def test_hands_are_labelled_where_they_are_from_turned_and_mirrored_crops():
    places = HAND + (40, 100), HAND + (150, 90)
    hands, left_out = label.label(photo(), Seer((places[0], 0.9), (places[1], 0.2)), None, 0.05)
    assert left_out == [] and [hand["handedness"] for hand in hands] == ["right", "left"]
    for hand, place, agreement in zip(hands, places, (0.9, 0.8)):
        np.testing.assert_allclose(hand["keypoints"], place, atol=0.3)
        assert hand["looks"] == 4 and hand["disagreement"] < 0.005 and hand["handedness_agreement"] == agreement


# The calls: the whole photo, then three crops.  The box's longer side is 50 px, so another hand begins at 17.5 px.
@pytest.mark.parametrize("errors, problem", [
    ([0, 13, 0, 0], None), ([0, 12, 12, 0], "the looks disagree by 0.05 or more"),
    ([0, 13, 13, 0], "fewer than 3 looks show the hand"),
])  # fmt: skip
def test_a_look_far_from_the_box_is_at_another_hand(errors, problem):
    hands, left_out = label.label(photo(), Seer((HAND + (100, 100), 0.9), errors=errors), None, 0.05)
    assert len(hands) == (problem is None) and left_out == [problem] * (problem is not None)


# Looks of 50 px agree if they are within 5 px.
@pytest.mark.parametrize("errors, looks, error", [([0, 3, 0, 0], 4, 0.0), ([0, 4, 0, 0], 3, 0.0), ([0, 0, 7, 7, 7], 3, 7.0),
                                                  ([0, 0, 0, 7, 7, 7], None, None)])  # fmt: skip
def test_the_looks_that_agree_count_if_they_are_most(errors, looks, error):
    hand = label.consensus([Look(HAND + (100 + by, 100 + by), 0.9) for by in errors])
    assert hand["looks"] == (looks or len(errors))
    if looks:
        np.testing.assert_allclose(hand["keypoints"], HAND + 100 + error, atol=0.01)
        assert hand["disagreement"] < 0.03
    else:
        assert hand["disagreement"] > 0.05


def test_looks_that_disagree_leave_the_hand_out():
    """Two of four looks are (6, 6) px away: the median is in between, and all four are 3 sqrt(2) px from it, 0.085 of 50."""
    for most, reasons in ((0.08, ["the looks disagree by 0.08 or more"]), (0.09, [])):
        seer = Seer((HAND + (100, 100), 0.9), errors=[0, 0, 6, 6])
        hands, left_out = label.label(photo(), seer, None, most)
        assert left_out == reasons and len(hands) == 1 - len(reasons)
    assert hands[0]["disagreement"] == pytest.approx(3 * 2**0.5 / 50, abs=5e-3)


def test_a_picture_that_a_hand_fills_is_seen_from_further_away():
    class Farsighted(Seer):
        def __call__(self, picture):
            looks = super().__call__(picture)
            return [look for look in looks if np.ptp(look.keypoints, axis=0).max() < 0.7 * picture.width]

    place = HAND * 4 + (20, 20)
    (hand,), _ = label.label(photo(), Farsighted((place, 0.9)), None, 0.05)
    np.testing.assert_allclose(hand["keypoints"], place, atol=0.5)
    assert label.label(photo(), Seer(), None, 0.05) == ([], ["no hand was found"])


def test_tiles_overlap_and_cover_a_large_photograph():
    whole, *tiles = label.first_views(1000, 800)
    assert whole.size == 640 and len(tiles) == 4 + 9
    for some, side in ((tiles[:4], 600), (tiles[4:], 360)):
        assert {tile.square[2] for tile in some} == {side} and {tile.size for tile in some} == {side}
        for axis, length in enumerate((1000, 800)):
            starts = sorted({round(tile.square[axis], 6) for tile in some})
            assert starts[0] <= 0 and starts[-1] + side >= length and all(b - a < side for a, b in pairwise(starts))
    assert len(list(label.first_views(640, 480))) == 1


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.png", "b/1.png", "c/1.png", "d/1.png", "d/2.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        photo().save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "d" / "broken.jpg").write_bytes(b"no image")
    return tmp_path


def test_whole_photographs_become_a_file_that_coco_hands_reads(folder, capsys):
    place = HAND + (230, 100)  # its last two columns of x are 260 and 270: outside
    report = label.run([folder / "photos"], folder / "labelled", Seer((place, 0.1)))
    assert report["left_out"] == {"the file cannot be read": ["d/broken.jpg"]} and report["hands"] == 5
    hands = CocoHands(folder / "labelled" / "annotations.json", folder / "photos", cache_dir=folder / "cache").build()["train"]
    assert sorted(hands["source"]) == ["a", "b", "c", "d", "d"] and set(hands["handedness"]) == {"left"}
    np.testing.assert_allclose(hands[0]["uv"], place, atol=0.3)
    assert hands[0]["visibility"] == (place[:, 0] < 256).tolist()


def test_squares_are_read_by_photographs_and_whole_sources_are_held_out(folder):
    label.run([folder / "photos"], folder / "labelled", Seer((HAND + (60, 80), 0.1)), squares=True, share=0.5)
    parts = [Photographs(folder / "labelled", part) for part in ("train", "validation")]
    sources = [set(part.sources) for part in parts]
    assert sources[0] | sources[1] == set("abcd") and not sources[0] & sources[1] and len(sources[1]) == 2
    points = parts[0].keypoints[0].numpy()  # as a right hand, the longer side 0.3 of 224 px
    scale = 0.3 * 224 / 50
    np.testing.assert_allclose(points, (HAND - (20, 25)) * (-scale, scale) + 112, atol=0.5)


def test_with_few_sources_whole_photographs_are_held_out():
    names = [f"{number}.png" for number in range(10)]
    assert len(label.held_out(names, 0.3)) == 3 and len(label.held_out(names[:1], 0.3)) == 0
    hand = label.consensus([Look(HAND, 0.9)])
    records = [{"picture": name, "source": "a", "size": (100, 100), "hands": [hand, hand], "left_out": []} for name in names]
    coco = label.to_coco(records, False, 0.2, "one")
    assert len(coco["images"]) == 10 and len(coco["annotations"]) == 20
    assert sum(image["split"] == "validation" for image in coco["images"]) == 2


def test_a_stopped_run_goes_on_and_gives_the_same_file(folder):
    output, hand = folder / "labelled", (HAND + (60, 80), 0.9)
    label.run([folder / "photos"], output, Seer(hand))
    whole, log = (output / "annotations.json").read_text(), output / "looks.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]) + lines[3][:50])  # the settings, two photographs, part of the third
    seer = Seer(hand)
    label.run([folder / "photos"], output, seer)
    assert (output / "annotations.json").read_text() == whole and seer.calls == 3 * 4
    with pytest.raises(ValueError, match="was begun with"):
        label.run([folder / "photos"], output, seer, squares=True)
    label.run([folder / "photos"], folder / "given", seer, boxes={"a/1.png": []})
    with pytest.raises(ValueError, match="was begun with"):
        label.run([folder / "photos"], folder / "given", seer, boxes={"a/2.png": []})
    with pytest.raises(ValueError, match="was begun with"):
        label.run([folder / "photos" / "a"], output, seer)


def test_boxes_and_handedness_can_be_given(folder):
    image = {"id": 1, "file_name": "a/1.png", "width": 256, "height": 256, "source": "a friend's"}
    annotation = {"id": 1, "image_id": 1, "bbox": [60, 80, 40, 50], "handedness": "left"}
    path = folder / "boxes.json"
    too_small = {"id": 2, "image_id": 1, "bbox": [160, 80, 4, 5], "handedness": None, "ignore": True}
    path.write_text(json.dumps({"images": [image], "annotations": [annotation, too_small]}))
    boxes, sources = label.read_boxes(path)
    seer = Seer((HAND + (60, 80), 0.9))
    report = label.run([folder / "photos"], folder / "out", seer, boxes=boxes, sources=sources)
    left_out = {reason: len(where) for reason, where in report["left_out"].items()}
    assert report["hands"] == 1 and left_out == {"no box was given": 4, "the file cannot be read": 1}
    coco = json.loads((folder / "out" / "annotations.json").read_text())
    assert [image["source"] for image in coco["images"]] == ["a friend's"]
    (hand,) = coco["annotations"]
    assert (hand["handedness"], hand["looks"]) == ("left", 3)
    path.write_text(json.dumps({"images": [image], "annotations": [annotation | {"bbox": [300, 80, 40, 50]}]}))
    with pytest.raises(ValueError, match=re.escape("lies outside the image of 256x256 pixels")):
        label.read_boxes(path)


def test_photographs_that_are_missing_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        label.photographs_in([tmp_path / "nowhere"], tmp_path)
    with pytest.raises(FileNotFoundError, match="has no photograph"):
        label.photographs_in([tmp_path], tmp_path / "out")


def test_our_model_answers_a_mirrored_picture_with_the_mirrored_hand(tmp_path):
    HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8))).save_pretrained(tmp_path)
    HandUNetImageProcessor().save_pretrained(tmp_path)
    teacher, picture = HandUNet(str(tmp_path)), photo().resize((128, 128))
    ((points, right),) = teacher(picture)
    ((mirrored, other),) = teacher(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    np.testing.assert_allclose(mirrored, (128, 0) + points * (-1, 1), atol=1e-3)
    assert right + other == pytest.approx(1) and teacher.crops[0] == (0.45, 0.0, False)


def test_our_model_reads_a_hand_as_the_side_that_is_given(tmp_path):
    HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8))).save_pretrained(tmp_path)
    HandUNetImageProcessor().save_pretrained(tmp_path)
    teacher, picture = HandUNet(str(tmp_path)), photo().resize((128, 128))
    answers = {side: teacher(picture, side=side)[0] for side in ("right", "left")}
    ((unknown, right),) = teacher(picture)
    np.testing.assert_array_equal(unknown, answers["right" if right >= 0.5 else "left"].keypoints)
    assert answers["right"].right == 1 and answers["left"].right == 0
    for side, answer in answers.items():
        looks = label.look_round(picture, (0, 0, 128, 128), teacher, teacher.box_crops, side)
        assert {look.right for look in looks} == {answer.right}


@pytest.mark.slow
def test_mediapipe_finds_what_the_photographs_were_labelled_with():
    environment = ROOT / teachers.ENVIRONMENT
    if not importlib.util.find_spec("mediapipe") and not (environment / "installed").exists():
        pytest.skip(f"MediaPipe is not installed: `python -m dataset_script.label` installs it into {teachers.ENVIRONMENT}")
    if not PHOTOGRAPHS.exists():
        pytest.skip(f"{PHOTOGRAPHS} is missing")
    coco = json.loads((PHOTOGRAPHS / "annotations.json").read_text())
    image, stored = coco["images"][0], coco["annotations"][0]
    picture = Image.open(PHOTOGRAPHS / "images" / image["file_name"]).convert("RGB")
    teacher = MediaPipe(environment)
    (hand,), left_out = label.label(picture, teacher, None, 0.05)
    teacher.close()
    wanted = np.reshape(stored["keypoints"], (21, 3))[:, :2]
    distance = np.linalg.norm(np.array(hand["keypoints"]) - wanted, axis=1).mean() / max(stored["bbox"][2:])
    assert left_out == [] and distance < 0.05 and hand["handedness"] == stored["handedness"]


def test_the_marks_of_natural_hands_can_be_labelled_and_say_where_their_pictures_are():
    folder = ROOT / "recipes"
    boxes, sources = label.read_boxes(folder / "natural_hands.json")
    assert sum(map(len, boxes.values())) == 2694 and set(boxes) <= set(sources)
    marks, keypoints = (json.loads((folder / f"natural_{name}.json").read_text()) for name in ("hands", "keypoints"))
    for image in marks["images"]:
        assert re.fullmatch("[0-9a-f]{40}", image["commit"]) and image["path"].endswith(Path(image["file_name"]).name)
    hands = {hand["id"]: hand for hand in marks["annotations"]}
    for hand in keypoints["annotations"]:
        marked = hands[hand["id"]]
        assert [hand[name] for name in ("image_id", "bbox", "handedness")] == [
            marked[name] for name in ("image_id", "bbox", "handedness")
        ]
        points = np.array(hand["keypoints"]).reshape(21, 3)
        x, y, width, height = hand["bbox"]
        known = points[points[:, 2] > 0, :2]
        margin = max(width, height) / 4  # wrists lie at the edge of the box
        assert len(known) == hand["num_keypoints"] >= 8
        assert ((known >= [x - margin, y - margin]) & (known <= [x + width + margin, y + height + margin])).all()
