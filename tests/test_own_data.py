"""Own data as annotation tools write it: which hand, which keypoint, which photograph, and what is left out."""

import json
import os
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from dataset_script import CocoHands, HandCrops
from dataset_script.annotation_formats import _upright
from dataset_script.hand_annotations import fit_to_photographs, read_hands
from dataset_script.hand_words import hand_in, is_other_thing, read_keypoint_names, stated_hands
from dataset_script.photograph_folder import PhotographFolder, default_folder

SIZE = (200, 150)
FINGERS = ("thumb", "index", "middle", "ring", "pinky")
OURS = [*range(21)]
MEDIAPIPE = [
    "WRIST",
    *(f"THUMB_{joint}" for joint in ("CMC", "MCP", "IP", "TIP")),
    *(f"{finger.upper()}_FINGER_{joint}" for finger in FINGERS[1:] for joint in ("MCP", "PIP", "DIP", "TIP")),
]


def keypoints(x: float = 40.0, y: float = 30.0, step: float = 2.0) -> list[float]:
    """Visible points: number j lies at (x + step j, y + step j)."""
    return [value for joint in range(21) for value in (x + step * joint, y + step * joint, 2)]


def read(folder, *annotations: dict, categories=None, images=None, place: str = "a.png"):
    """The fitted hands and the report of annotations 1, 2, ... on one photograph of 200 x 150 pixels."""
    (folder / "images" / place).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE).save(folder / "images" / place)
    entries = [{"id": number, "image_id": 1, **entry} for number, entry in enumerate(annotations, 1)]
    coco = {"images": images or [{"id": 1, "file_name": place}], "annotations": entries}
    (folder / "hands.json").write_text(json.dumps(coco | ({"categories": categories} if categories else {})))
    return fitted(folder / "hands.json", folder / "images")


def fitted(path, images):
    hands, report = read_hands(path, images)
    return fit_to_photographs(path, hands, {hand["image"]: SIZE for hand in hands}, report), report


# Which hand


@pytest.mark.parametrize(
    ("text", "hand"),
    [
        *((text, "left") for text in ("left_hand", "Left", "LEFT HAND", "leftHand", "hand-left", "lefthand")),
        *((text, "left") for text in ("hand_l", "L", "左手", "lhand")),
        *((text, "right") for text in ("right_hand", "Right", "hand.R", "rh", "Right hand (open)")),
        *((text, None) for text in ("hand", "right_or_left", "not left", "bright", "copyright", "l shoulder", "person")),
        *((text, None) for text in ("", None, 3)),
    ],
)
def test_a_name_says_left_or_right_in_these_ways(text, hand):
    assert hand_in(text) == hand


@pytest.mark.parametrize(
    ("entry", "hand"),
    [
        ({"handedness": "LEFT"}, "left"),
        ({"handedness": [{"categoryName": "Left", "score": 0.9}]}, "left"),  # MediaPipe's result
        ({"hand_type": "left"}, "left"),
        ({"hand_side": "L"}, "left"),
        ({"attributes": {"Hand side": "Left", "occluded": False}}, "left"),  # CVAT
        ({"attributes": {"is_left": True, "occluded": False}}, "left"),
        ({"attributes": {"left": False, "right": True}}, "right"),
        ({"attributes": {"left_hand": False}}, "right"),
        ({"attributes": [{"name": "handedness", "value": "left"}]}, "left"),
        ({"metadata": {"handedness": "left"}}, "left"),  # COCO-Annotator
        ({"extra": {"tags": ["Left hand"]}}, "left"),  # Roboflow
        ({"handedness": [[{"categoryName": "Left"}]]}, "left"),
        ({"handedness": {"classification": [{"index": 0, "label": "Left"}]}}, "left"),  # MediaPipe's older results
        ({"category": {"id": 1, "name": "left_hand"}}, "left"),
        ({"properties": {"handedness": "left"}}, "left"),
        ({"attributes": [{"key": "side", "values": ["left"]}]}, "left"),
        ({"attributes": ["blurred", "left"]}, "left"),
        ({"attributes": "left"}, "left"),
        ({"tags": ["right hand", "glove"]}, "right"),
        ({"tags": ["left", "right"]}, None),
        ({"is_right": 0.0}, "left"),  # of MANO's tables
        ({"handedness": "unknown"}, "unknown"),
        ({"handedness": None}, None),
        ({"handedness": float("nan")}, None),  # pandas's null
        ({"handedness": ""}, None),
        ({"attributes": {"left": False, "right": False}}, None),
        ({"attributes": {"side": "front", "hand_type": "human", "label": "FreiHAND GT"}}, None),
        ({"attributes": {"pointing": "left"}}, None),
    ],
)
def test_a_field_says_which_hand_in_these_ways(entry, hand):
    assert {found for _, found in stated_hands(entry)} == ({hand} if hand else set())


@pytest.mark.parametrize(
    "entry", [{"handedness": "both"}, {"handedness": 0}, {"hand_side": "up"}, {"hand_type": "interacting"}]
)
def test_a_field_that_must_say_which_hand_and_says_something_else_is_refused(entry, tmp_path):
    (name,) = entry
    with pytest.raises(ValueError, match=f"hands.json: annotation 2 has {name} '{entry[name]}', expected 'right' or 'left'"):
        read(tmp_path, {"keypoints": keypoints()}, {"keypoints": keypoints(), **entry})


def test_a_photograph_says_it_for_its_hands_which_say_nothing(tmp_path):
    for number, place in enumerate(({"hand": "left"}, {"attributes": {"handedness": "left"}})):
        images = [{"id": 1, "file_name": "a.png", **place}]
        entries = {"keypoints": keypoints()}, {"keypoints": keypoints(), "side": "R"}
        hands, _ = read(tmp_path / str(number), *entries, images=images)
        assert [hand["handedness"] for hand in hands] == ["left", "right"]
    hands, report = read(tmp_path, {"keypoints": keypoints()}, images=[{"id": 1, "file_name": "a.png", "side": "left"}])
    assert hands[0]["handedness"] == "right" and report.taken_as_right == 1  # a side of the room


def test_the_report_says_how_many_hands_are_left_right_or_not_stated(tmp_path):
    categories = [{"id": 1, "name": "left_hand"}, {"id": 2, "name": "hand"}]
    entries = [{"category_id": 1}, {"category_id": 2}, {"category_id": 2, "handedness": "Left"}, {"handedness": "unclear"}]
    hands, report = read(tmp_path, *({"keypoints": keypoints(), **entry} for entry in entries), categories=categories)
    assert [hand["handedness"] for hand in hands] == ["left", "right", "left"]
    assert (report.left, report.right, report.photographs, report.taken_as_right) == (2, 1, 1, 1)
    assert report.left_out == {"of an unknown hand": ["4"]}
    assert report.sentence() == (
        "hands.json: 3 hands (2 left, 1 right) in 1 photographs; 1 of them do not say which hand, so they are taken as right "
        "hands; 3 have no box, so it is that of their keypoints; left out: 1 of an unknown hand (4)."
    )


def test_a_hand_that_is_said_to_be_both_is_refused_by_name(tmp_path):
    entry = {"keypoints": keypoints(), "category_id": 1, "handedness": "right"}
    message = "annotation 1 is said to be both hands: right by handedness, left by the category 'left_hand'"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, entry, categories=[{"id": 1, "name": "left_hand"}])


# Which keypoint


def by_finger(*joints, fingers=FINGERS) -> list[str]:
    """Names along each finger."""
    return [f"{finger}{joint}" for finger in fingers for joint in joints]


WHOLE_BODY = ["wrist", *by_finger(1, 2, 3, 4, fingers=("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger"))]
TIPS_FIRST = [4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17]
KNUCKLES_FIRST = ["wrist", *(f"{finger}_{joint}" for joint in ("mcp", "pip", "dip", "tip") for finger in FINGERS)]
MANO = ["wrist", *by_finger(1, 2, 3, fingers=("index", "middle", "pinky", "ring", "thumb")), *by_finger("_tip")]
AS_TEXT = [0, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 1, 19, 20, 2, 3, 4, 5, 6, 7, 8]  # 1, 10, 11, ..., 19, 2, 20, 21, 3


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (MEDIAPIPE, OURS),
        (MEDIAPIPE[1:] + MEDIAPIPE[:1], [*range(1, 21), 0]),
        (WHOLE_BODY, OURS),
        ([*by_finger(4, 3, 2, 1), "wrist"], [*TIPS_FIRST, 0]),  # InterHand2.6M
        (["wrist", *by_finger(4, 3, 2, 1)], [0, *TIPS_FIRST]),  # RHD
        (KNUCKLES_FIRST, [0, 1, 5, 9, 13, 17, 2, 6, 10, 14, 18, 3, 7, 11, 15, 19, 4, 8, 12, 16, 20]),
        (
            ["wrist", *by_finger(0, 1, 2, 3, fingers=FINGERS[::-1])],
            [0, 17, 18, 19, 20, 13, 14, 15, 16, 9, 10, 11, 12, 5, 6, 7, 8, 1, 2, 3, 4],
        ),
        (MANO, [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20]),
        (["RightHand", *(f"RightHand{name.title()}" for name in by_finger(1, 2, 3, 4))], OURS),
        ([str(number) for number in range(21)], OURS),
        (sorted(f"kp_{number}" for number in range(1, 22)), AS_TEXT),
        ([f"new-point-{number}" for number in range(21)], OURS),  # Roboflow's, which nobody named
        ([f"LHand{number}" for number in range(21)], OURS),  # OpenPose
        (["thumb_tip", "WRIST", "index mcp"], [4, 0, 5]),  # not all of them are set
        (["index_3", "index_tip", "thumb_1"], [7, 8, 1]),
    ],
)
def test_keypoint_names_are_read_as_the_projects(names, order):
    assert read_keypoint_names(names)[0] == order


def test_keypoints_are_put_in_order_by_their_names_and_told_of(tmp_path):
    names = [*(f"l_{finger}{joint}" for finger in FINGERS for joint in (4, 3, 2, 1)), "l_wrist"]
    points = keypoints()
    points[3 * 3 + 2] = 0  # l_thumb1
    hands, report = read(tmp_path, {"keypoints": points}, categories=[{"id": 1, "name": "hand", "keypoints": names}])
    np.testing.assert_array_equal(hands[0]["uv"][[0, 1, 4, 20]], [(80, 70), (46, 36), (40, 30), (72, 62)])
    assert hands[0]["visibility"].tolist() == [joint != 1 for joint in range(21)]
    assert hands[0]["handedness"] == "left" and "1 were put into this project's order" in report.sentence()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"leg {number}" for number in range(21)], "names 'leg 0', 'leg 1', 'leg 2' are not known: known are the wrist"),
        (["palm_center", *MEDIAPIPE[1:]], "names 'palm_center' are not known"),
        (["wrist", "thumb_1"], "has 21 keypoints, but its category names 2; known are the wrist"),
        ([*MEDIAPIPE[:20], "WRIST"], "two of the keypoint names mean the same keypoint"),
        (["left_wrist", *(f"right {name}" for name in MEDIAPIPE[1:])], "those of a left and of a right hand"),
        ([*MEDIAPIPE[:20], "thumb_dip"], "do not name 21 keypoints"),
        # Bones, and the joints of longer chains: four a finger, which are not MCP, PIP, DIP and tip.
        (["wrist", *by_finger("_metacarpal", "_proximal", "_intermediate", "_distal")], "do not name 21 keypoints"),
        (["wrist", *by_finger("_metacarpal", "_proximal", "_intermediate", "_tip")], "do not name 21 keypoints"),
        (["wrist", *by_finger("_cmc", "_mcp", "_pip", "_dip")], "do not name 21 keypoints"),
    ],
)
def test_keypoint_names_that_say_something_else_are_refused(tmp_path, names, message):
    categories = [{"id": 1, "name": "hand", "keypoints": names}]
    with pytest.raises(ValueError, match=f"hands.json: annotation 1 .*{message}"):
        read(tmp_path, {"keypoints": keypoints(), "category_id": 1}, categories=categories)


def test_numbers_that_may_be_counted_from_0_or_from_1_are_refused():
    for names in (by_finger(1, 2, 3), [f"kp {number}" for number in range(1, 10)]):
        with pytest.raises(ValueError, match="do not name 21 keypoints"):
            read_keypoint_names(names)
    assert read_keypoint_names(by_finger(1, 2, 4))[0][:3] == [1, 2, 4]


def test_a_depth_in_the_place_of_the_visibility_is_refused(tmp_path):
    """MediaPipe's landmarks are x, y, z: a negative z would be a keypoint that is not labelled."""
    points = [[0.3 + 0.01 * joint, 0.4, -0.02 * joint] for joint in range(21)]
    with pytest.raises(ValueError, match="annotation 1 has -0.02 in the place of v, which is 0, 1, 2 or a confidence"):
        read(tmp_path, {"keypoints": points})
    points = [[40 + joint, 30 + joint, visibility] for joint, visibility in zip(range(21), [float("nan"), -1, 0.7] * 7)]
    assert read(tmp_path, {"keypoints": points})[0][0]["visibility"].tolist() == [False, False, True] * 7


def test_an_annotation_without_a_category_is_read_by_the_only_one_that_names_21_keypoints(tmp_path):
    orders = [["wrist"], [*by_finger(4, 3, 2, 1), "wrist"]]
    for names, wrist in zip(orders, ([40, 30], [80, 70])):
        (hand,), _ = read(tmp_path, {"keypoints": keypoints()}, categories=[{"id": 1, "name": "left_hand", "keypoints": names}])
        assert hand["uv"][0].tolist() == wrist and hand["handedness"] == "left"
    categories = [{"id": 1, "keypoints": MEDIAPIPE}, {"id": 2, "keypoints": orders[1]}]
    with pytest.raises(ValueError, match="annotation 1 has the category_id None, and the categories order their keypoints"):
        read(tmp_path, {"keypoints": keypoints()}, categories=categories)


# Where


def test_coordinates_relative_to_the_sides_are_scaled(tmp_path):
    relative = [value for joint in range(21) for value in (0.2 + 0.01 * joint, 0.4 + 0.02 * joint, 2)]
    entries = [{"keypoints": relative}, {"keypoints": relative, "bbox": [0.2, 0.4, 0.2, 0.4]}]
    entries += [{"keypoints": relative, "bbox": [40, 60, 40, 60]}, {"keypoints": keypoints(), "bbox": [0.2, 0.2, 0.2, 0.3]}]
    hands, report = read(tmp_path, *entries)
    for hand in hands[:3]:
        np.testing.assert_allclose(hand["uv"][[0, 20]], [(40, 60), (80, 120)])
        np.testing.assert_allclose(hand["box"], (40, 60, 40, 60))
    np.testing.assert_allclose(hands[3]["uv"][20], (80, 70))
    np.testing.assert_allclose(hands[3]["box"], (40, 30, 40, 45))
    assert "the coordinates of 4 are relative to the photograph's sides" in report.sentence()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([130, 100, 40, 40], r"0 of its 21 visible keypoints lie in its box \[130, 100, 40, 40\]: expected x, y, width"),
        ([30, 30, 40, 40], None),  # drawn loosely: with a margin of 4 px, 18 of 21 keypoints lie in it
        ([60, 50, 40, 40], r"13 of .* \(all would, if it is the box's centre, width, height\)"),
        ([40, 30, 80, 70], None),
        ([100, 60, 145, 105], r"seems to be two corners"),
    ],
)
def test_a_box_that_does_not_hold_its_keypoints_is_refused(tmp_path, box, message):
    entry = {"keypoints": keypoints(100, 60) if box[0] == 100 else keypoints(), "bbox": box}
    if message is None:
        assert read(tmp_path, entry)[0][0]["box"].tolist() == box
    else:
        with pytest.raises(ValueError, match=f"annotation 1, .*a.png: .*{message}"):
            read(tmp_path, entry)


def test_boxes_that_are_all_two_corners_are_refused_also_if_each_alone_might_be_a_loose_one(tmp_path):
    entries = [{"keypoints": keypoints(40 + x, 30), "bbox": [40 + x, 30, 80 + x, 70]} for x in (0, 4, 10)]
    assert len(read(tmp_path, *entries[:2])[0]) == 2
    with pytest.raises(ValueError, match="hands.json: all of its 3 boxes would hold their keypoints more tightly if they were"):
        read(tmp_path, *entries)
    assert len(read(tmp_path, *entries, {"keypoints": keypoints(), "bbox": [36, 26, 48, 48]})[0]) == 4


@pytest.mark.parametrize("place", [(0, 0), (-1, -1.0)])
def test_a_keypoint_that_a_tool_put_nowhere_is_not_labelled(tmp_path, place):
    (hand,), report = read(tmp_path, {"keypoints": [*place, 2, *place, 1, *keypoints()[6:]]})
    assert hand["visibility"].tolist() == [False] * 2 + [True] * 19
    np.testing.assert_allclose(hand["box"], (44, 34, 36, 36))
    assert "2 keypoints at (0, 0) or (-1, -1) are taken as not labelled" in report.sentence()


def test_21_pairs_without_visibility_are_read_and_14_keypoints_left_out(tmp_path):
    pairs = [value for joint in range(21) for value in (40 + 2 * joint, 30 + 2 * joint)]
    hands, report = read(tmp_path, {"keypoints": pairs}, {"keypoints": keypoints()[:42]})
    assert len(hands) == 1 and hands[0]["visibility"].all() and hands[0]["uv"][20].tolist() == [80, 70]
    assert report.left_out == {"with 14 keypoints, not 21": ["2"]}


def test_a_hand_beside_its_photograph_is_refused(tmp_path):
    with pytest.raises(ValueError, match="annotation 1, .*: all visible keypoints lie outside the photograph of 200 x 150"):
        read(tmp_path, {"keypoints": keypoints(220, 100)})  # of 0 to 1000, for example


@pytest.mark.parametrize(("count", "size", "refused"), [(5, (640, 480), True), (4, (640, 480), False), (5, (200, 150), False)])
def test_coordinates_in_percent_of_large_photographs_are_refused(tmp_path, count, size, refused):
    for number in range(count):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(count)]
    entries = [{"id": number, "image_id": number, "keypoints": keypoints(10 + 9 * number)} for number in range(count)]
    (tmp_path / "hands.json").write_text(json.dumps({"images": images, "annotations": entries}))
    hands, report = read_hands(tmp_path / "hands.json", tmp_path)
    sizes = {hand["image"]: size for hand in hands}
    if not refused:
        assert len(fit_to_photographs(tmp_path / "hands.json", hands, sizes, report)) == count
        return
    with pytest.raises(ValueError, match="hands.json: all keypoints lie within 100 px .* they seem to be percent"):
        fit_to_photographs(tmp_path / "hands.json", hands, sizes, report)


@pytest.mark.parametrize("place", [(-999.0, 5), (float("nan"), 5), (None, None), ("", ""), (1e300, 0)])
@pytest.mark.parametrize("unlabelled", [0, None])
def test_the_place_of_a_keypoint_that_is_not_labelled_is_not_judged(tmp_path, place, unlabelled):
    (hand,), _ = read(tmp_path, {"keypoints": [*place, unlabelled, *keypoints()[3:]]})
    assert hand["visibility"].tolist() == [False] + [True] * 20
    assert np.isfinite(hand["uv"].astype(np.float32)).all()
    np.testing.assert_allclose(hand["box"], (42, 32, 38, 38))


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [40, 30, 0, 40], [], None])
def test_a_box_of_no_size_is_that_of_the_keypoints(tmp_path, box):
    (hand,), report = read(tmp_path, {"keypoints": keypoints(), "bbox": box})
    assert hand["box"].tolist() == [40, 30, 40, 40] and "1 have no box" in report.sentence()


def test_everything_that_cannot_be_used_is_counted_in_one_report(tmp_path):
    categories = [{"id": 1, "name": "hand", "keypoints": MEDIAPIPE}, {"id": 2, "name": "face"}, {"id": 3, "name": "person"}]
    categories += [{"id": 4, "name": "whale", "keypoints": [f"fin {number}" for number in range(21)]}]
    entries = [
        {"category_id": 1, "keypoints": keypoints()},
        {"category_id": 2, "keypoints": keypoints()},
        {"category_id": 3, "keypoints": [5, 5, 2] * 17},
        {"category_id": 4, "keypoints": keypoints()},
        {"category_id": 1, "bbox": [1, 1, 30, 30]},
        {"category_id": 1, "keypoints": [0] * 63, "num_keypoints": 0},
        {"category_id": 1, "keypoints": [5, 5, 2] * 21},
        {"category_id": 1, "keypoints": [], "bbox": [0, 0, 0, 0], "iscrowd": False, "metadata": {}},  # COCO-Annotator
        {"category_id": 1, "keypoints": [5, 5, 2] * 17},
    ]
    hands, report = read(tmp_path, *entries, categories=categories)
    assert [hand["annotation_id"] for hand in hands] == ["1"]
    assert report.left_out == {
        "of the category 'face'": ["2"],
        "of the category 'person'": ["3"],
        "of the category 'whale', whose keypoints are not a hand's": ["4"],
        "without keypoints": ["5", "8"],
        "without a visible keypoint (v > 0)": ["6"],
        "without a box, with keypoints that span none": ["7"],
        "with 17 keypoints, not 21": ["9"],
    }


def test_all_contradictions_stand_in_one_error(tmp_path):
    entries = [{"keypoints": keypoints(), "handedness": word} for word in ("up", "left", "down")]
    with pytest.raises(ValueError, match=r"annotation 1 has handedness 'up'.*; annotation 3 has handedness 'down'"):
        read(tmp_path, *entries)
    entries = [{"keypoints": keypoints(), "bbox": [130, 100, 40, 40]}] * 7
    with pytest.raises(ValueError, match=r"annotation 1, .*; annotation 5, .*; and 2 more$"):
        read(tmp_path, *entries)


def test_a_file_without_any_usable_hand_says_why_and_what_is_known(tmp_path):
    with pytest.raises(ValueError, match=r"no hand that can be used. Left out: 2 with 17 keypoints, not 21 \(1, 2\).*known"):
        read(tmp_path, {"keypoints": [5, 5, 2] * 17}, {"keypoints": [5, 5, 2] * 17})


def test_ids_that_pandas_or_javascript_wrote_are_numbers(tmp_path):
    images = [{"id": 1.0, "file_name": "a.png", "width": 200.0, "height": 150.0}]
    hands, _ = read(tmp_path, {"keypoints": keypoints(), "image_id": "1"}, {"keypoints": keypoints()}, images=images)
    assert [hand["image_id"] for hand in hands] == ["1", "1"]


# Which photograph


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("upload\\a.png", "upload/a.png"),
        ("main%20gauche.png", "main gauche.png"),
        ("100%25.png", "100%25.png"),  # its true name comes first
        ("images/a.png", "a.png"),
        ("/home/somebody/photos/a.png", "photos/a.png"),
        ("C:\\Users\\somebody\\a.png", "a.png"),
        ("..\\..\\media\\upload\\4\\cb0618f6-a.png", "cb0618f6-a.png"),  # Label Studio 1.16
        ("/data/upload/4/cb0618f6-a.png", "a.png"),
        ("/data/local-files/?d=photos%2Fa.png", "photos/a.png"),
        ("https://example.com/media/a.png?token=3", "a.png"),
        ("a.png", "default/a.png"),  # CVAT
        ("caf\u0065\u0301.png", "caf\u00e9.png"),  # as macOS writes it
        ("A.PNG", "a.png"),
    ],
)
def test_photographs_are_found_as_tools_name_them(tmp_path, name, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).touch()
    assert PhotographFolder(tmp_path).find(name) == str(tmp_path / place)


def test_a_photograph_that_several_files_may_be_is_missing(tmp_path):
    for place in ("b/a.png", "c/a.png"):
        (tmp_path / "images" / place).parent.mkdir(parents=True)
        (tmp_path / "images" / place).touch()
    folder = PhotographFolder(tmp_path / "images")
    assert folder.find("a.png") is None and folder.find("d/a.png") is None
    assert folder.find("x/c/a.png") == str(tmp_path / "images" / "c" / "a.png")


def test_nothing_outside_the_folder_is_read(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").touch()
    folder = PhotographFolder(tmp_path / "images")
    for name in ("../secret.png", "..\\secret.png", "%2e%2e/secret.png", str(tmp_path / "secret.png"), "//[/secret.png"):
        assert folder.find(name) is None


def test_two_names_are_not_one_photograph(tmp_path):
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "other/a.png"}]
    with pytest.raises(FileNotFoundError, match=r"1 of 2 annotated images are missing \(other/a.png\)"):
        read(tmp_path, {"keypoints": keypoints()}, {"keypoints": keypoints(), "image_id": 2}, images=images)


def test_without_a_folder_the_tools_own_layouts_are_read(tmp_path):
    coco = {"images": [{"id": 0, "file_name": "a.png"}], "annotations": [{"id": 0, "image_id": 0, "keypoints": keypoints()}]}
    layouts = {
        "roboflow": ("train/_annotations.coco.json", "train/a.png"),
        "cvat": ("annotations/person_keypoints_default.json", "images/default/a.png"),
        "coco": ("hands.json", "images/a.png"),
    }
    for tool, places in layouts.items():
        path, photograph = (tmp_path / tool / place for place in places)
        path.parent.mkdir(parents=True)
        photograph.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(coco))
        Image.new("RGB", SIZE).save(photograph)
        (hand,), _ = fitted(path, default_folder(path))
        assert hand["image"] == str(photograph)
    (row,) = CocoHands(tmp_path / "roboflow" / "train", cache_dir=tmp_path / "cache").build()["train"]
    assert row["image"].size == SIZE and row["box"] == [40, 30, 40, 40]


# Other files than COCO's


def labelme(folder, shapes: list[dict], name: str = "a", **flags):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", SIZE).save(folder / f"{name}.png")
    page = {"version": "5.5.0", "flags": flags, "shapes": shapes, "imagePath": f"..\\photos\\{name}.png", "imageData": None}
    (folder / f"{name}.json").write_text(json.dumps(page | {"imageWidth": SIZE[0], "imageHeight": SIZE[1]}))


def labelme_points(group, names=MEDIAPIPE, x: float = 40.0, **more) -> list[dict]:
    return [
        {"label": name, "points": [[x + 2 * joint, 30.0 + 2 * joint]], "group_id": group, "shape_type": "point", **more}
        for joint, name in enumerate(names)
    ]


def test_labelmes_files_are_hands_by_group(tmp_path):
    box = {"label": "left_hand", "points": [[102, 72], [58, 28]], "group_id": 2, "shape_type": "rectangle", "flags": {}}
    other = {"label": "cup", "points": [[1, 1], [5, 5], [1, 5]], "group_id": None, "shape_type": "polygon", "flags": {}}
    labelme(tmp_path / "l", [*labelme_points(1, MEDIAPIPE[:20]), *labelme_points(2, x=60), box, other])
    labelme(tmp_path / "l", [*labelme_points(None), *labelme_points(None)], "b")
    hands, report = fitted(tmp_path / "l", default_folder(tmp_path / "l"))
    assert [hand["annotation_id"] for hand in hands] == ["a.json group 1", "a.json group 2"]
    assert [hand["handedness"] for hand in hands] == ["right", "left"]
    assert hands[0]["visibility"].tolist() == [True] * 20 + [False] and hands[0]["image"] == str(tmp_path / "l" / "a.png")
    np.testing.assert_allclose(hands[1]["uv"][[0, 20]], [(60, 30), (100, 70)])
    np.testing.assert_allclose(hands[1]["box"], (58, 28, 44, 44))
    assert report.left_out == {"the points of several hands in one, which no group or rectangle tells apart": ["b.json"]}


def test_labelmes_points_that_name_the_hand_need_no_group(tmp_path):
    left, right = ([f"{hand}_{name}" for name in MEDIAPIPE] for hand in ("left", "R"))
    labelme(tmp_path / "l", [*labelme_points(None, left), *labelme_points(None, right, 60)])
    hands, _ = fitted(tmp_path / "l" / "a.json", tmp_path / "l")
    assert [(hand["handedness"], hand["uv"][0].tolist()) for hand in hands] == [("left", [40, 30]), ("right", [60, 30])]


@pytest.mark.parametrize(
    ("flags", "hand"),
    [
        ({"left": True, "right": False}, "left"),
        ({"Left hand": True, "blurred": True}, "left"),
        ({"left": True, "right": True}, None),
    ],
)
def test_labelmes_flag_of_a_photograph_says_which_hand(tmp_path, flags, hand):
    labelme(tmp_path / "l", labelme_points(1.0), **flags)
    (found,), report = fitted(tmp_path / "l", tmp_path / "l")
    assert found["handedness"] == (hand or "right") and report.taken_as_right == (hand is None)
    labelme(tmp_path / "l", labelme_points(1, [f"right_{name}" for name in MEDIAPIPE]), **flags)
    assert fitted(tmp_path / "l", tmp_path / "l")[0][0]["handedness"] == "right"  # what a hand says itself counts


def region(kind: str, label: str, number: int, **value) -> dict:
    return {
        "id": f"r{number}", "type": kind, "from_name": "kp", "to_name": "img", "original_width": 200, "original_height": 150,
        "image_rotation": 0, "value": {**value, kind: [label]},
    }  # fmt: skip


def test_label_studios_percent_are_pixels_and_rectangles_hold_hands(tmp_path):
    points = [region("keypointlabels", name, 10 + j, x=20 + j, y=20 + j, width=0.5) for j, name in enumerate(MEDIAPIPE)]
    box = region("rectanglelabels", "Left hand", 1, x=18, y=18, width=25, height=30, rotation=0)
    second = [region("keypointlabels", name, 50 + j, x=60 + j, y=20 + j, width=0.5) for j, name in enumerate(MEDIAPIPE)]
    other = region("rectanglelabels", "Hand", 2, x=58, y=18, width=25, height=30, rotation=0)
    choice = {"id": "r2", "type": "choices", "from_name": "which", "value": {"choices": ["Right"]}}
    for item in second:
        item["parentID"] = "r2"
    both, turned = [box, *points, other, *second, choice], [{**points[0], "image_rotation": 90}]
    tasks = [
        {"id": 7, "data": {"image": "/data/upload/1/cb0618f6-a.png"}, "annotations": [{"result": both}]},
        {"id": 8, "data": {"image": "/data/upload/1/b.png"}, "annotations": [{"was_cancelled": True, "result": points}]},
        {"id": 9, "data": {"image": "/data/upload/1/c.png"}, "annotations": [{"result": turned}]},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    (tmp_path / "images").mkdir()
    Image.new("RGB", SIZE).save(tmp_path / "images" / "a.png")
    hands, report = fitted(tmp_path / "export.json", default_folder(tmp_path / "export.json"))
    assert [hand["handedness"] for hand in hands] == ["left", "right"] and report.taken_as_right == 0
    np.testing.assert_allclose(hands[0]["uv"][[0, 20]], [(40, 30), (80, 60)])  # 20 % of 200 and of 150; 40 % of them
    np.testing.assert_allclose(hands[0]["box"], (36, 27, 50, 45))
    np.testing.assert_allclose(hands[1]["uv"][0], (120, 30))
    assert report.left_out == {
        "no annotation that was submitted": ["task 8"],
        "photographs that were turned in Label Studio": ["task 9"],
    }


def test_label_studios_turned_rectangle_is_the_upright_box_round_it():
    for degrees, box in ((0, (36, 27, 50, 45)), (90, (-9, 27, 45, 50)), (180, (-14, -18, 50, 45)), (None, (36, 27, 50, 45))):
        np.testing.assert_allclose(_upright([36, 27, 50, 45], degrees), box, atol=1e-9)
    np.testing.assert_allclose(_upright([100, 0, 10, 10], 45), (100 - 50**0.5, 0, 200**0.5, 200**0.5))


def test_label_studios_endless_numbers_are_no_places(tmp_path):
    box = region("rectanglelabels", "Left hand", 1, x=18, y=18, width=25, height=30, rotation=10**400)
    points = [region("keypointlabels", name, 10 + j, x=20 + j, y=20 + j) for j, name in enumerate(MEDIAPIPE)]
    points[3]["value"]["x"], points[4]["original_width"] = 10**400, 10**400
    tasks = [{"data": {"image": "a.png"}, "annotations": [{"result": [box, *points]}]}]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    (hand,), _ = fitted(tmp_path / "export.json", tmp_path)
    assert hand["visibility"].sum() == 19 and hand["handedness"] == "left"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'<?xml version="1.0"?><annotations/>', "is XML, not JSON: export COCO Keypoints 1.0 in CVAT"),
        (b"PK\x03\x04...", "is a zip: unpack it"),
        (b'[{"id": 1, "image": "a.png", "kp": [{"x": 1, "keypointlabels": ["WRIST"]}]}]', "is Label Studio's JSON-MIN"),
        (b'{"a": 1}', "is not a COCO file, Label Studio's JSON or labelme's"),
        (b'{"images": [], "annotations": []}', "has no annotations"),
    ],
)
def test_exports_of_another_kind_are_refused_with_the_one_to_choose(tmp_path, data, message):
    (tmp_path / "hands.json").write_bytes(data)
    with pytest.raises(ValueError, match=f"hands.json {message}"):
        read_hands(tmp_path / "hands.json", tmp_path)


def test_things_that_are_no_hands_are_known_by_their_category():
    assert is_other_thing("Human face") and not is_other_thing("hand of a person") and not is_other_thing("open")


# What is cached


def test_the_report_is_told_again_when_the_rows_come_from_the_cache(tmp_path):
    read(tmp_path, {"keypoints": keypoints(), "handedness": "left"}, {"bbox": [1, 1, 9, 9]})
    reports = []
    for _ in range(2):
        builder = CocoHands(tmp_path / "hands.json", cache_dir=tmp_path / "cache")
        assert len(builder.build()["train"]) == 1
        reports.append(asdict(builder.report()))
    assert reports[0] == reports[1] and reports[0]["left_out"] == {"without keypoints": ["2"]} and reports[0]["left"] == 1


def test_a_photograph_that_changed_is_cropped_anew_and_others_are_not(tmp_path):
    read(tmp_path, {"keypoints": keypoints()}, place="session/a.png")
    photograph = tmp_path / "images" / "session" / "a.png"

    def crops(download_mode=None) -> HandCrops:
        builder = CocoHands(tmp_path / "hands.json", tmp_path / "images", cache_dir=tmp_path / "cache")
        builder.download_and_prepare(download_mode=download_mode)
        return HandCrops(builder.as_dataset()["train"], 32, cache_dir=tmp_path / "crops")

    first = crops()
    assert first[0]["image"][:, 16, 16].tolist() == [0, 0, 0] and crops().cache == first.cache
    Image.new("RGB", SIZE, (0, 0, 250)).save(photograph)
    os.utime(photograph, ns=(1, 1))
    second = crops()
    assert second[0]["image"][:, 16, 16].tolist() == [0, 0, 250]
    forced = crops("force_redownload")
    assert forced.cache not in (first.cache, second.cache) and crops().cache == forced.cache


def test_endless_keypoint_names_get_a_short_sentence():
    with pytest.raises(ValueError, match="are not known") as error:
        read_keypoint_names(["a" * 10**6] * 21)
    assert len(str(error.value)) < 1000
