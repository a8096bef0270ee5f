import base64
import http.server
import io
import math
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
from tests.small_model import small_detector, small_network

BOXES = [[30.0, 20.0, 60.0, 45.0], [100.5, 40.2, 33.3, 50.1]]


@pytest.fixture(scope="module")
def pipe() -> HandKeypointDetectionPipeline:
    """A network of random weights that answers with spread, sharp heatmaps."""
    torch.manual_seed(0)
    model = HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8)))
    with torch.no_grad():
        model(torch.randn(8, 3, 128, 128))
        model.head.weight *= 6
    model.eval()
    return pipeline("keypoint-detection", model=model, image_processor=HandUNetImageProcessor(), detector=small_detector())


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
        assert hand["label"] == other["label"] and hand["box"] == pytest.approx(other["box"], abs=0.01)
        assert hand["hand_score"] == pytest.approx(other["hand_score"], abs=2e-4)
        assert hand["score"] == pytest.approx(other["score"], abs=2e-4)
        side = max(hand["box"]["xmax"] - hand["box"]["xmin"], hand["box"]["ymax"] - hand["box"]["ymin"]) / 0.45
        for point, other_point in zip(hand["keypoints"], other["keypoints"], strict=True):
            assert point["name"] == other_point["name"]
            assert point["score"] == pytest.approx(other_point["score"], abs=2e-4)
            distance = np.hypot(point["x"] - other_point["x"], point["y"] - other_point["y"])
            assert distance < 0.01 * side / 128


def test_the_answer_names_and_places_the_keypoints_of_every_hand(pipe, image):
    hands = pipe(image, boxes=BOXES, handedness=["right", "left"], look_again=False)
    assert [hand["label"] for hand in hands] == ["right hand", "left hand"]
    assert hands[0]["box"] == {"xmin": 30.0, "ymin": 20.0, "xmax": 90.0, "ymax": 65.0}
    for hand in hands:
        assert set(hand) == {"label", "score", "hand_score", "box", "keypoints"} and hand["hand_score"] is None
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
    others = [str(path), path, data, f"data:image/png;base64,{base64.b64encode(data).decode()}"]
    others += [values, values.transpose(2, 0, 1), values / 255, torch.tensor(values)]
    for other in others:
        assert_same(pipe(other, boxes=BOXES), expected)
    assert_same(pipe(url, boxes=BOXES, allow_loopback=True), expected)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_answer_does_not_depend_on_the_batch(pipe, image, path, batch_size):
    inputs = [image, str(path), np.asarray(image), ImageOps.mirror(image), image, image]
    boxes = [BOXES, BOXES[:1], [], "image", [BOXES[1], BOXES[0], BOXES[1]], None]
    handedness = ["left", None, "right", "left", ["left", "right", "left"], None]
    expected = [pipe(one, boxes=some, handedness=hands) for one, some, hands in zip(inputs, boxes, handedness)]
    assert [len(hands) for hands in expected[:5]] == [2, 1, 0, 1, 3] and len(expected[5]) > 1
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


def test_an_image_can_itself_be_the_crop(pipe, image):
    (hand,) = pipe(image, boxes="image")
    assert hand["box"] == {"xmin": 0.0, "ymin": 0.0, "xmax": 200.0, "ymax": 150.0} and hand["hand_score"] is None
    # Padded to 200 x 200 px, of which a box of 0.45 * 200 = 90 px at the centre says the same.
    (boxed,) = pipe(image, boxes=[[55, 30, 90, 90]], look_again=False)
    assert pipe([image, image], boxes="image") == [[hand], [hand]]
    assert_same([{**hand, "box": boxed["box"]}], [boxed])


def test_without_boxes_the_detector_finds_the_hands(pipe, image):
    found = pipe.hands.detect(image)
    hands = pipe(image, detection_threshold=0.05)
    assert 1 < len(hands) <= len(found)  # readings that coincide are one hand
    by_box = {hand.box: hand for hand in found}
    for hand in hands:
        x, y, right, bottom = hand["box"].values()
        detection = by_box[x, y, right, bottom]
        assert hand["hand_score"] == pytest.approx(math.sqrt(detection.score * hand["score"] ** 1.5))
        # What the pipeline answers to the box that was found:
        (expected,) = pipe(image, boxes=[[x, y, right - x, bottom - y]])
        assert_same([{**hand, "hand_score": None}], [expected])
    scores = [hand["hand_score"] for hand in hands]
    assert scores == sorted(scores, reverse=True)
    assert_same(pipe(image, detection_threshold=0.05, max_hands=1), hands[:1])
    assert pipe(image, detection_threshold=1.0) == []


def test_the_side_of_a_box_is_that_of_the_surer_reading(pipe, image):
    for box, hand in zip(BOXES, pipe(image, boxes=BOXES, look_again=False)):
        right, left = (pipe(image, boxes=[box], handedness=side, look_again=False)[0] for side in ("right", "left"))
        assert_same([hand], [max(right, left, key=lambda one: one["score"])])


def test_photographs_are_read_as_their_answers_are(pipe, image):
    read = []

    def photographs():
        for index in range(9):
            read.append(index)
            yield {"image": image, "boxes": BOXES[:1]}

    answers = pipe(photographs(), batch_size=2)
    next(answers)
    assert len(read) <= 3  # transformers looks at the first
    assert len(list(answers)) == 8


def test_without_a_detector_the_error_says_how_to_get_one(image):
    pipe = pipeline("keypoint-detection", model=small_network(), image_processor=HandUNetImageProcessor())
    assert len(pipe(image, boxes=BOXES)) == 2
    with pytest.raises(OSError, match="needs a hand detector, and there is none .* boxes='image'"):
        pipe(image)


def test_a_left_hand_is_the_mirrored_right_one(pipe, image):
    box = [40.0, 50.0, 36.0, 27.0]  # a square of 80 px on whole pixels
    (left,) = pipe(image, boxes=[box], handedness="left", look_again=False)
    (right,) = pipe(ImageOps.mirror(image), boxes=[[200 - 40 - 36, 50, 36, 27]], handedness="right", look_again=False)
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


def test_files_and_buffers_are_images(pipe, path, image):
    expected, data = pipe(image, boxes=BOXES), path.read_bytes()
    with path.open("rb") as file:
        for other in (file, io.BytesIO(data), bytearray(data), memoryview(data)):
            assert_same(pipe(other, boxes=BOXES), expected)
            assert_same(pipe([other], boxes=[BOXES])[0], expected)


def test_rows_of_data_sets_are_read_as_they_are(pipe, image):
    expected = pipe(image, boxes=BOXES[:1], handedness="left")
    own = {"uv": None, "visibility": [True] * 21, "image_id": "7", "annotation_id": "8", "source": ""}
    assert_same(pipe({"image": image, "box": BOXES[0], "handedness": "left", **own}), expected)
    hub = {"image_id": 7, "width": 200, "height": 150, "handedness": "left"}
    bare = {"id": [1], "area": [2700.0], "category": [0], "bbox": BOXES[:1]}
    for objects in (bare, {**bare, "handedness": ["left"]}, [{"bbox": BOXES[0], "category": 0}]):
        assert_same(pipe({"image": image, "objects": objects, **hub}), expected)
    assert pipe({"image": image, "objects": {"bbox": []}}) == pipe({"image": image, "objects": []}) == []
    rows = datasets.Dataset.from_list([{"image": image, "objects": bare, **hub}] * 2)
    for hands in pipe(rows.cast_column("image", datasets.Image())):
        assert_same(hands, expected)
    freihand = {"image": image, "uv": None, "xyz": None, "K": None, "frame_id": 3, "background": "hom"}
    assert_same(pipe(freihand), pipe(image))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"bboxes": BOXES}, "'bboxes' is not known; image, boxes, box, objects, handedness are"),
        ({"boxes": BOXES, "hand": "left"}, "'hand' is not known"),
        ({"Handedness": "left"}, "'Handedness' is not known"),
        ({"boxes": BOXES, "box": BOXES[0]}, "a dict with boxes and box: give only one"),
        ({"objects": {"boxes": BOXES}}, r"objects is \['boxes'\]: expected a dict whose bbox"),
        ({"objects": 7}, "objects is int"),
    ],
)
def test_a_key_that_is_not_known_is_named(pipe, image, row, message):
    for inputs in ({"image": image, **row}, [{"image": image, **row}]):
        with pytest.raises(ValueError, match=message):
            pipe(inputs)


def test_a_threshold_leaves_out_whole_hands_only(pipe, image):
    scores = sorted(hand["score"] for hand in pipe(image, boxes=BOXES))
    (hand,) = pipe(image, boxes=BOXES, threshold=sum(scores) / 2)
    assert hand["score"] == pytest.approx(scores[1]) and len(hand["keypoints"]) == 21


def test_the_decoding_method_is_passed_on(pipe, image):
    (hand,) = pipe(image, boxes="image", method="argmax")
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
        (np.zeros((9, 9, 3), np.uint8), {"method": "median", "boxes": "image"}, ValueError, "'median'"),
        (np.zeros((9, 9, 3), np.uint8), {"treshold": 0.5}, TypeError, "treshold"),
        ("http://127.0.0.1:9/hand.jpg", {"allow_loopback": True}, OSError, "fetch the image http://127.0.0.1:9/hand.jpg"),
        ("http://127.0.0.1:9/hand.jpg", {}, OSError, "127.0.0.1 is this machine itself"),
        ("http://127.0.0.1:9/hand.jpg", {"allow_urls": False}, ValueError, "is a web address, which is not read here"),
    ],
)
def test_what_cannot_be_used_is_named(pipe, inputs, arguments, error, message):
    with pytest.raises(error, match=message):
        pipe(inputs, **arguments)
