"""Own photographs with a COCO keypoint file: rows, splits, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_script import CocoHands, HandCrops
from dataset_script.coco import _hold_out
from modeling_handunet import KEYPOINT_NAMES

REAL = Path(__file__).parents[2] / "shared" / "data" / "coco_hands"


def keypoints(x: float = 40.0, y: float = 30.0, step: float = 2.0) -> list[float]:
    """21 visible points on a line from (x, y) to (x + 20 step, y + 20 step)."""
    return [value for joint in range(21) for value in (x + step * joint, y + step * joint, 2)]


@pytest.fixture
def coco(tmp_path) -> dict:
    """Two photographs, the second with two hands; written by `build`."""
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (200, 150), (200, 100, 50)).save(tmp_path / "images" / name)
    images = [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 150, "source": "mine"}]
    images += [{"id": 8, "file_name": "b.png"}]
    annotations = [
        {"id": 1, "image_id": 7, "keypoints": keypoints(), "bbox": [40, 30, 40, 40]},
        {"id": 2, "image_id": 8, "keypoints": keypoints(10, 20, 3), "handedness": "left"},
        {"id": 3, "image_id": 8, "keypoints": keypoints(90, 50)},
    ]
    return {"images": images, "annotations": annotations}


@pytest.fixture
def build(tmp_path):
    def build(coco, **kwargs):
        (tmp_path / "hands.json").write_text(json.dumps(coco))
        arguments = {"cache_dir": tmp_path / "cache", **kwargs}
        return CocoHands(tmp_path / "hands.json", tmp_path / "images", **arguments).build()

    return build


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there: its photographs may not be redistributed")
def test_the_real_photographs_load_one_row_per_hand(tmp_path):
    hands = CocoHands(REAL / "annotations.json", REAL / "images", "test", cache_dir=tmp_path).build()["test"]
    assert len(hands) == 50 and hands["handedness"][:].count("left") == 8
    assert len(set(hands["source"])) == 8
    np.testing.assert_allclose(hands[0]["uv"][0], (75.09, 114.79))
    np.testing.assert_allclose(hands[0]["box"], (75.09, 93.65, 84.85, 46.69))
    for item in HandCrops(hands):
        assert item["box_size"] == pytest.approx(0.45 * 128, rel=1e-5)


def test_rows_hold_what_the_file_says(coco, build):
    coco["annotations"][0]["keypoints"][3 * 4 + 2] = 0
    coco["annotations"][0]["keypoints"][3 * 5 + 2] = 1
    rows = build(coco)["train"]
    assert rows["annotation_id"][:] == ["1", "2", "3"] and rows["image_id"][:] == ["7", "8", "8"]
    assert rows["handedness"][:] == ["right", "left", "right"] and rows["source"][:] == ["mine", "", ""]
    row = rows[0]
    np.testing.assert_allclose(row["uv"][20], (80, 70))
    assert row["visibility"] == [joint != 4 for joint in range(21)]
    assert row["box"] == [40, 30, 40, 40] and row["image"].size == (200, 150)


def test_a_box_that_is_not_given_is_that_of_the_visible_keypoints(coco, build):
    coco["annotations"][1]["keypoints"][0:3] = [0, 0, 0]
    assert build(coco)["train"][1]["box"] == [13, 23, 57, 57]


def test_photographs_are_split_whole_and_always_the_same_way(coco, build, tmp_path):
    for number in range(18):
        Image.new("RGB", (200, 150)).save(tmp_path / "images" / f"{number}.png")
        coco["images"].append({"id": 100 + number, "file_name": f"{number}.png"})
        coco["annotations"] += [
            {"id": 100 + 2 * number + hand, "image_id": 100 + number, "keypoints": keypoints(10 + hand)}
            for hand in (0, 1)
        ]
    splits = build(coco, split="mine", validation_share=0.25)
    images = {name: set(rows["image_id"]) for name, rows in splits.items()}
    assert len(images["validation"]) == 5 and len(images["mine"]) == 15
    assert not images["validation"] & images["mine"]
    coco["images"].reverse()
    coco["annotations"].reverse()
    again = build(coco, split="mine", validation_share=0.25)
    assert set(again["validation"]["image_id"]) == images["validation"]


def test_photographs_of_one_name_in_several_folders_are_always_split_the_same_way(coco, build, tmp_path):
    held_out = []
    for order in (1, -1):
        coco["images"], coco["annotations"] = [], []
        for number in list(range(12))[::order]:
            (tmp_path / "images" / str(number)).mkdir(exist_ok=True)
            Image.new("RGB", (200, 150)).save(tmp_path / "images" / str(number) / "hand.png")
            coco["images"].append({"id": number, "file_name": f"{number}/hand.png"})
            coco["annotations"].append({"id": number, "image_id": number, "keypoints": keypoints(10)})
        held_out.append(set(build(coco, validation_share=0.5)["validation"]["image_id"]))
    assert held_out[0] == held_out[1] and len(held_out[0]) == 6
    folder = tmp_path / "images"
    names = {str(folder / str(number) / "hand.png") for number in range(12)}
    assert held_out[0] == {Path(name).parent.name for name in _hold_out(names, folder, 0.5)}
    moved = {name.replace(str(folder), "/elsewhere") for name in names}
    assert held_out[0] == {Path(name).parent.name for name in _hold_out(moved, Path("/elsewhere"), 0.5)}


def test_several_processes_make_the_rows_that_one_makes(coco, build, tmp_path, monkeypatch):
    monkeypatch.setattr("dataset_script.coco.HANDS_PER_SHARD", 2)
    one = build(coco)["train"]
    builder = CocoHands(tmp_path / "hands.json", tmp_path / "images", cache_dir=tmp_path / "two")
    assert builder.build(num_proc=2)["train"].data.table.equals(one.data.table)


def test_a_changed_file_is_not_served_from_the_cache(coco, build):
    build(coco)
    coco["annotations"].pop()
    assert len(build(coco)["train"]) == 2


def test_a_photograph_that_exif_turns_is_annotated_as_it_is_shown(coco, build, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show: 150 x 200 stored, 200 x 150 shown
    Image.new("RGB", (150, 200)).save(tmp_path / "images" / "a.jpg", exif=exif)
    assert build(coco)["train"][0]["image"].size == (200, 150)
    coco["images"][0] |= {"width": 150, "height": 200}
    with pytest.raises(ValueError, match=r"annotation 1: .*a.jpg is 200 x 150 pixels \(its EXIF orientation is appl"):
        build(coco)


def change(annotation: int, **values):
    return lambda coco: coco["annotations"][annotation].update(values)


def remove(annotation: int, key: str):
    return lambda coco: coco["annotations"][annotation].pop(key)


def one_keypoint(value):
    return lambda coco: coco["annotations"][2]["keypoints"].__setitem__(0, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda coco: coco.pop("images"), "must have a list of objects `images`"),
        (lambda coco: coco.update(annotations=[3]), "must have a list of objects `annotations`"),
        (lambda coco: coco.update(annotations=[]), "no annotations"),
        (remove(1, "id"), "annotation number 1 has no `id`"),
        (change(1, id=[1]), "annotation number 1 has no `id`"),
        (change(1, id="\ud800"), "annotation number 1 has no `id`"),
        (change(1, id="1" * 5000), "annotation number 1 has no `id`"),
        (change(1, id=1), "annotation id 1 appears twice"),
        (lambda coco: coco["images"][1].update(id=7), "image id 7 appears twice"),
        (lambda coco: coco["images"][0].pop("file_name"), "image 7 has no `file_name`"),
        (lambda coco: coco["images"][0].update(file_name="../a.jpg"), "image 7 has the file name '../a.jpg'"),
        (lambda coco: coco["images"][0].update(file_name="/etc/passwd"), "not inside"),
        (lambda coco: coco["images"][0].update(file_name="\ud800.jpg"), "image 7 has no `file_name`"),
        (lambda coco: coco["images"][0].update(source="\ud800"), r"image 7 has the source '\\ud800', expected a short"),
        (lambda coco: coco["images"][0].update(source=["mine"]), r"image 7 has the source \['mine'\]"),
        (lambda coco: coco["images"][0].update(width="200"), r"image 7 has the width and height \('200', 150\)"),
        (lambda coco: coco["images"][0].update(width=400), r"annotation 1: .*a.jpg is 200 x 150 .*says 400 x 150"),
        (change(2, image_id=99), "annotation 3 has image_id 99, which is not the id of an image"),
        (remove(2, "image_id"), "annotation 3 has image_id None"),
        (remove(2, "keypoints"), "annotation 3 has no list of numbers as keypoints, expected 63"),
        (change(2, keypoints=keypoints()[:-3]), "annotation 3 has 60 numbers as keypoints, expected 63"),
        (one_keypoint("12"), "annotation 3 has no list of numbers"),
        (one_keypoint(True), "annotation 3 has no list of numbers"),
        (one_keypoint(float("nan")), "annotation 3 has keypoints that are not finite"),
        (one_keypoint(10**400), "annotation 3 has keypoints that are not finite"),
        (one_keypoint(500.0), r"annotation 3 has keypoints far outside .*b.png, 200 x 150"),
        (change(2, keypoints=[0] * 63), "annotation 3 has no visible keypoint"),
        (change(2, keypoints=[5, 5, 2] * 21), "annotation 3 has the box None.*keypoints that span one"),
        (change(0, bbox=[40, 30, 0, 40]), r"annotation 1 has the box \[40, 30, 0, 40\]"),
        (change(0, bbox=[40, 30, 40, -1]), "annotation 1 has the box"),
        (change(0, bbox=[40, 30, 40]), "annotation 1 has the box"),
        (change(0, bbox=[40, 30, float("nan"), 1]), "annotation 1 has the box"),
        (change(0, bbox=[201, 30, 40, 40]), r"annotation 1, .*a.jpg: The box .* lies outside the image of 200x150"),
        (change(0, bbox=[40, 30, 1e300, 40]), r"annotation 1, .*a.jpg: The box .* over 100 times"),
        (one_keypoint(-1e300), r"annotation 3 has keypoints far outside"),
        (change(0, handedness="both"), "annotation 1 has handedness 'both'"),
        (change(0, handedness=None), "annotation 1 has handedness None"),
        (
            lambda coco: coco.update(categories=[{"id": 1, "keypoints": [*reversed(KEYPOINT_NAMES)]}]),
            "another order than wrist, thumb_1",
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_refused_by_name(coco, build, tmp_path, edit, message):
    edit(coco)
    with pytest.raises(ValueError, match=f"hands.json.*{message}"):
        build(coco)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]"])
def test_what_is_no_coco_file_is_refused_by_name(coco, build, tmp_path, text):
    (tmp_path / "hands.json").write_text(text)
    with pytest.raises(ValueError, match="hands.json"):
        CocoHands(tmp_path / "hands.json", tmp_path / "images", cache_dir=tmp_path / "cache").build()


def test_missing_files_are_named(coco, build, tmp_path):
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 annotated images are missing \(.*b.png\)"):
        build(coco)
    with pytest.raises(FileNotFoundError, match="nothing.json does not exist"):
        CocoHands(tmp_path / "nothing.json", tmp_path / "images")
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        CocoHands(tmp_path / "hands.json", tmp_path / "nowhere")


def test_an_unreadable_photograph_is_named_and_its_hands_left_out_below_the_share(coco, build, tmp_path, caplog):
    (tmp_path / "images" / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 2 images cannot be read, 0 may be.*b.png"):
        build(coco)
    assert build(coco, max_unreadable_share=0.5)["train"]["annotation_id"][:] == ["1"]
    assert "b.png" in caplog.text


@pytest.mark.parametrize("options", [{"validation_share": 1.0}, {"validation_share": 0.5, "split": "validation"}])
def test_shares_and_names_that_make_no_split_are_refused(coco, build, options):
    with pytest.raises(ValueError, match="validation_share"):
        build(coco, **options)
