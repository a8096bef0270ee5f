import base64
import http.server
import threading

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_handunet import (
    KEYPOINT_NAMES,
    HandKeypointDetectionPipeline,
    HandUNetConfig,
    HandUNetForPoseEstimation,
    HandUNetImageProcessor,
)

BOXES = [[30.0, 20.0, 60.0, 45.0], [100.5, 40.2, 33.3, 50.1]]


@pytest.fixture(scope="module")
def pipe() -> HandKeypointDetectionPipeline:
    """A network of random weights that answers with spread, sharp heatmaps."""
    torch.manual_seed(0)
    model = HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8)))
    with torch.no_grad():
        model(torch.randn(8, 3, 128, 128))
        model.head.weight *= 6
    return pipeline("keypoint-detection", model=model.eval(), image_processor=HandUNetImageProcessor())


@pytest.fixture(scope="module")
def image() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    return Image.fromarray(coarse).resize((200, 150), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def path(image, tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs") / "hands.png"
    image.save(path)
    return path


@pytest.fixture
def url(path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=path.parent)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{path.name}"
        server.shutdown()
        thread.join()


def assert_same(hands, expected):
    """The same hands, within 0.01 px of the 128 px crop."""
    assert len(hands) == len(expected)
    for hand, other in zip(hands, expected):
        assert hand["label"] == other["label"] and hand["box"] == other["box"]
        assert hand["score"] == pytest.approx(other["score"], abs=1e-5)
        side = max(hand["box"]["xmax"] - hand["box"]["xmin"], hand["box"]["ymax"] - hand["box"]["ymin"]) / 0.45
        for point, other_point in zip(hand["keypoints"], other["keypoints"], strict=True):
            assert point["name"] == other_point["name"]
            assert point["score"] == pytest.approx(other_point["score"], abs=1e-5)
            distance = np.hypot(point["x"] - other_point["x"], point["y"] - other_point["y"])
            assert distance < 0.01 * side / 128


def test_the_answer_names_and_places_the_keypoints_of_every_hand(pipe, image):
    hands = pipe(image, boxes=BOXES, handedness=["right", "left"])
    assert [hand["label"] for hand in hands] == ["right hand", "left hand"]
    assert hands[0]["box"] == {"xmin": 30.0, "ymin": 20.0, "xmax": 90.0, "ymax": 65.0}
    for hand in hands:
        assert set(hand) == {"label", "score", "box", "keypoints"}
        assert tuple(point["name"] for point in hand["keypoints"]) == KEYPOINT_NAMES
        assert all(isinstance(point[key], float) for point in hand["keypoints"] for key in ("x", "y", "score"))
        assert hand["score"] == pytest.approx(sum(point["score"] for point in hand["keypoints"]) / 21)
    # What the model and the processor answer without the pipeline:
    processor = pipe.image_processor
    with torch.no_grad():
        outputs = pipe.model(**processor(image, boxes=BOXES, handedness=["right", "left"]))
    (expected,) = processor.post_process_pose_estimation(outputs, [BOXES], handedness=["right", "left"])
    for hand, pose in zip(hands, expected):
        points = [[point["x"], point["y"]] for point in hand["keypoints"]]
        np.testing.assert_allclose(points, pose["keypoints"].numpy(), atol=1e-3)


def test_the_answer_does_not_depend_on_how_the_image_is_given(pipe, image, path, url):
    values, data = np.asarray(image), path.read_bytes()
    expected = pipe(image, boxes=BOXES)
    others = [str(path), path, data, url, f"data:image/png;base64,{base64.b64encode(data).decode()}"]
    others += [values, values.transpose(2, 0, 1), values / 255, torch.tensor(values)]
    for other in others:
        assert_same(pipe(other, boxes=BOXES), expected)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_answer_does_not_depend_on_the_batch(pipe, image, path, batch_size):
    inputs = [image, str(path), np.asarray(image), ImageOps.mirror(image), image]
    boxes = [BOXES, BOXES[:1], [], None, [BOXES[1], BOXES[0], BOXES[1]]]
    handedness = ["left", None, "right", "left", ["left", "right", "left"]]
    expected = [pipe(one, boxes=some, handedness=hands) for one, some, hands in zip(inputs, boxes, handedness)]
    assert [len(hands) for hands in expected] == [2, 1, 0, 1, 3]
    results = pipe(inputs, boxes=boxes, handedness=handedness, batch_size=batch_size)
    dicts = [{"image": i, "boxes": b, "handedness": s} for i, b, s in zip(inputs, boxes, handedness)]
    for answers in (
        results,
        pipe(dicts, batch_size=batch_size),
        pipe((one for one in dicts), batch_size=batch_size),
        pipe(iter(dicts), batch_size=batch_size),
    ):
        for hands, other in zip(answers, expected, strict=True):
            assert_same(hands, other)


def test_boxes_of_one_image_may_be_flat_or_nested(pipe, image):
    expected = pipe(image, boxes=BOXES, handedness="left")
    for boxes in (BOXES, [BOXES], np.array(BOXES), torch.tensor(BOXES, dtype=torch.float64)):
        for handedness in ("left", ["left", "left"], [["left", "left"]]):
            assert_same(pipe(image, boxes=boxes, handedness=handedness), expected)
    assert_same(pipe([image], boxes=[BOXES], handedness=[["left", "left"]])[0], expected)
    assert_same(pipe({"image": image, "boxes": BOXES, "handedness": "left"}), expected)


def test_an_image_without_hands_has_none(pipe, image):
    assert pipe(image, boxes=[]) == []
    assert pipe([image, image], boxes=[[], []], batch_size=2) == [[], []]


def test_an_image_without_boxes_is_itself_the_crop(pipe, image):
    (hand,) = pipe(image)
    assert hand["box"] == {"xmin": 0.0, "ymin": 0.0, "xmax": 200.0, "ymax": 150.0}
    # Padded to 200 x 200 px, of which a box of 0.45 * 200 = 90 px at the centre says the same.
    (boxed,) = pipe(image, boxes=[[55, 30, 90, 90]])
    assert_same([{**hand, "box": boxed["box"]}], [boxed])


def test_a_left_hand_is_the_mirrored_right_one(pipe, image):
    box = [40.0, 50.0, 36.0, 27.0]  # a square of 80 px on whole pixels
    (left,) = pipe(image, boxes=[box], handedness="left")
    (right,) = pipe(ImageOps.mirror(image), boxes=[[200 - 40 - 36, 50, 36, 27]])
    for point, other in zip(left["keypoints"], right["keypoints"]):
        if point["score"] > 0.6:  # PIL's rounding of mirrored pixels moves faint, flat peaks
            assert (200 - point["x"], point["y"]) == pytest.approx((other["x"], other["y"]), abs=0.5)
    assert sum(point["score"] > 0.6 for point in left["keypoints"]) >= 5


def test_data_sets_are_streamed(pipe, image, path):
    expected = pipe(image)
    rows = datasets.Dataset.from_dict({"image": [str(path)] * 3}).cast_column("image", datasets.Image())
    for results in (
        pipe(KeyDataset(rows, "image"), batch_size=2),
        pipe(rows, batch_size=2),
        pipe(rows.to_iterable_dataset()),
        pipe(KeyDataset(rows, "image"), num_workers=1),
    ):
        results = list(results)
        assert len(results) == 3
        for hands in results:
            assert_same(hands, expected)


def test_a_threshold_leaves_out_whole_hands_only(pipe, image):
    scores = sorted(hand["score"] for hand in pipe(image, boxes=BOXES))
    (hand,) = pipe(image, boxes=BOXES, threshold=sum(scores) / 2)
    assert hand["score"] == pytest.approx(scores[1]) and len(hand["keypoints"]) == 21


def test_the_decoding_method_is_passed_on(pipe, image):
    (hand,) = pipe(image, method="argmax")
    x = np.array([point["x"] for point in hand["keypoints"]]) * 128 / 200  # 200 px become 128
    np.testing.assert_allclose(x % 1, 0.5, atol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "arguments", "error", "message"),
    [
        ([], {}, ValueError, "empty list of images"),
        ("missing.jpg", {}, FileNotFoundError, "missing.jpg"),
        (b"no image", {}, OSError, "8 bytes is not an image"),
        (np.zeros((0, 5, 3), np.uint8), {}, ValueError, "no pixel"),
        ({"photo": None}, {}, ValueError, r"dict with \['photo'\]: give image"),
        ({"image": None}, {"boxes": BOXES}, ValueError, "put boxes and handedness in dicts"),
        (np.zeros((9, 9, 3), np.uint8), {"boxes": [[10, 10, 5, 5]]}, ValueError, "outside the image of 9x9"),
        (np.zeros((9, 9, 3), np.uint8), {"boxes": [[float("nan")] * 4]}, ValueError, "finite"),
        (np.zeros((9, 9, 3), np.uint8), {"boxes": [1, 2, 3, 4]}, ValueError, "one list of boxes"),
        (np.zeros((9, 9, 3), np.uint8), {"handedness": "up"}, ValueError, "'right' or 'left'"),
        (np.zeros((9, 9, 3), np.uint8), {"handedness": "none"}, ValueError, "'right' or 'left'"),
        (np.zeros((9, 9, 3), np.uint8), {"method": "median"}, ValueError, "'median'"),
        (np.zeros((9, 9, 3), np.uint8), {"treshold": 0.5}, TypeError, "treshold"),
        ("http://127.0.0.1:9/hand.jpg", {}, OSError, "Could not fetch the image http://127.0.0.1:9/hand.jpg"),
    ],
)
def test_what_cannot_be_used_is_named(pipe, inputs, arguments, error, message):
    with pytest.raises(error, match=message):
        pipe(inputs, **arguments)
