"""The endpoint's handler, called as a server calls it, and under a server with the Hub's own client."""

import base64
import contextlib
import importlib.util
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from modeling_handunet.images import IMAGE_FORMATS
from tests.hub_server import WITHOUT_THE_PACKAGE

ENDPOINT = Path(__file__).resolve().parents[1] / "demo" / "endpoint"
BOXES = [[20.0, 15.0, 40.0, 30.0], [60.5, 40.0, 25.0, 50.0]]


def picture(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = [np.sin(12 * x + 5 * y), np.cos(9 * y * y - 4 * x), np.sin(20 * x * y)]
    return Image.fromarray(np.uint8(127.5 + 127.5 * np.stack(waves, -1)))


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def empty_png(width: int, height: int) -> bytes:
    """The head of a PNG that says it has this size, and nothing of its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


PHOTO = encode(picture(120, 100))
TEXT = base64.b64encode(PHOTO).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model's folder as it is pushed, with the handler in it."""
    torch.manual_seed(1)
    model = HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8)))
    with torch.no_grad():
        for _ in range(5):  # batch statistics of its own
            model(torch.randn(8, 3, 128, 128))
        model.head.weight *= 6
    folder = tmp_path_factory.mktemp("endpoint") / "model"
    pipeline("keypoint-detection", model=model.eval(), image_processor=HandUNetImageProcessor()).save_pretrained(folder)
    for name in ("handler.py", "requirements.txt"):
        shutil.copy(ENDPOINT / name, folder)
    return folder


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("handler", ENDPOINT / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def handler(folder, module):
    return module.EndpointHandler(str(folder))


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline("keypoint-detection", model=str(folder))


def assert_same(answer, expected) -> None:
    """The same hands; numbers may differ by the order of additions in a batch."""
    assert json.loads(json.dumps(answer)) == answer  # nothing but JSON's own types
    if isinstance(expected, float):
        assert answer == pytest.approx(expected, abs=0.02)
    elif isinstance(expected, dict):
        assert answer.keys() == expected.keys()
        for key in expected:
            assert_same(answer[key], expected[key])
    elif isinstance(expected, list):
        assert len(answer) == len(expected)
        for one, other in zip(answer, expected):
            assert_same(one, other)
    else:
        assert answer == expected


@pytest.mark.parametrize("data", [PHOTO, {"inputs": PHOTO}, {"inputs": TEXT}, {"inputs": f"data:image/png;base64,{TEXT}"},
                                  {"inputs": Image.open(io.BytesIO(PHOTO)), "parameters": None}])  # fmt: skip
def test_an_image_in_any_wrapping_is_one_hand_of_the_whole_picture(handler, pipe, data):
    answer = handler(data)
    assert len(answer) == 1 and answer[0]["box"] == {"xmin": 0.0, "ymin": 0.0, "xmax": 120.0, "ymax": 100.0}
    assert [point["name"] for point in answer[0]["keypoints"]][:2] == ["wrist", "thumb_1"]
    assert_same(answer, pipe(picture(120, 100)))


def test_boxes_handedness_and_threshold_reach_the_pipeline(handler, pipe):
    parameters = {"boxes": BOXES, "handedness": ["left", "right"]}
    expected = pipe(picture(120, 100), **parameters)
    assert [hand["label"] for hand in expected] == ["left hand", "right hand"]
    assert_same(handler({"inputs": TEXT, "parameters": parameters}), expected)
    low, high = sorted(hand["score"] for hand in expected)
    assert high - low > 1e-3
    answer = handler({"inputs": TEXT, "parameters": {**parameters, "threshold": (low + high) / 2}})
    assert_same(answer, [hand for hand in expected if hand["score"] > low])
    assert handler({"inputs": TEXT, "parameters": {"boxes": []}}) == []


def test_a_list_of_images_is_answered_image_by_image(handler, pipe):
    other = picture(64, 90)
    inputs = [TEXT, base64.b64encode(encode(other)).decode(), TEXT]
    parameters = {"boxes": [BOXES, None, []], "handedness": ["left", "right", "right"]}
    answer = handler({"inputs": inputs, "parameters": parameters})
    first, second = pipe(picture(120, 100), boxes=BOXES, handedness="left"), pipe(other)
    assert_same(answer, [first, second, []])


def test_a_turned_photograph_is_answered_upright(handler):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    (hand,) = handler(encode(picture(120, 100), "JPEG", exif=exif))
    assert hand["box"] == {"xmin": 0.0, "ymin": 0.0, "xmax": 100.0, "ymax": 120.0}


def malformed(module) -> dict[str, tuple[int, object, str]]:
    """What is refused: name -> status, request, words of the sentence."""

    def boxes(value):
        return {"inputs": TEXT, "parameters": {"boxes": value}}

    return {
        "no image": (415, b"no image at all", "not an image"),
        "a program": (415, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n", "not an image"),
        "no bytes": (415, b"", "not an image"),
        "cut off": (400, encode(picture(120, 100), "JPEG")[:700], "truncated"),
        "too many pixels": (413, empty_png(5001, 5000), "5001x5000"),
        "a decompression bomb": (413, empty_png(60000, 60000), "Resize"),
        "a path": (400, {"inputs": "/etc/passwd"}, "Paths and web addresses are not read"),
        "a web address": (400, {"inputs": "http://127.0.0.1/photo.jpg"}, "Paths and web addresses are not read"),
        "a number": (400, {"inputs": 7}, "Got int as an image"),
        "no inputs": (400, {"image": TEXT}, "inputs"),
        "a list": (400, [TEXT], "inputs"),
        "no images": (400, {"inputs": []}, "Got 0 images"),
        "too many images": (413, {"inputs": [TEXT] * (module.MAX_IMAGES + 1)}, "Got 17 images"),
        "too many boxes": (413, boxes([BOXES[0]] * (module.MAX_HANDS + 1)), "Got 65 boxes"),
        "a box outside": (400, boxes([[500, 10, 20, 20]]), "outside the image of 120x100"),
        "a flat box": (400, boxes([10, 10, 20, 20]), "every box is a list"),
        "a short box": (400, boxes([[10, 10, 20]]), "four numbers"),
        "boxes in words": (400, boxes("all"), "boxes='all'"),
        "boxes of two images": (400, {"inputs": [TEXT], "parameters": {"boxes": [None, None]}}, "2 images with 1"),
        "a third hand": (400, {"inputs": TEXT, "parameters": {"handedness": "middle"}}, "'right' or 'left'"),
        "too many entries of handedness": (400, {"inputs": TEXT, "parameters": {"handedness": ["left"] * 3}}, "handedness"),
        "a threshold of 2": (400, {"inputs": TEXT, "parameters": {"threshold": 2}}, "score in [0, 1]"),
        "an unknown parameter": (400, {"inputs": TEXT, "parameters": {"thresh": 0.5}}, "thresh"),
        "parameters in a list": (400, {"inputs": TEXT, "parameters": [0.5]}, "list"),
    }  # fmt: skip


def test_what_cannot_be_answered_is_refused_with_a_status_and_a_sentence(handler, module):
    for name, (status, data, words) in malformed(module).items():
        with pytest.raises(module.RequestError) as refused:
            handler(data)
        assert (refused.value.status, words in refused.value.message) == (status, True), (name, refused.value.message)
        assert str(refused.value) == refused.value.message
    with pytest.raises(module.RequestError, match="33554433 bytes") as refused:
        handler(bytes(module.MAX_IMAGE_BYTES + 1))
    assert refused.value.status == 413


def test_the_handler_reads_no_format_that_the_model_does_not_read(module):
    assert {"JPEG", "PNG", "WEBP"} <= set(module.IMAGE_FORMATS) <= set(IMAGE_FORMATS)


def test_a_photograph_of_12_megapixels_is_answered_and_one_of_10_pixels_too(handler):
    (hand,) = handler(encode(Image.new("RGB", (4000, 3000), (90, 120, 60)), "JPEG"))
    assert hand["box"]["xmax"] == 4000.0
    (hand,) = handler(encode(Image.new("RGB", (5, 2), (90, 120, 60))))
    assert hand["box"] == {"xmin": 0.0, "ymin": 0.0, "xmax": 5.0, "ymax": 2.0}


CLIENT = """
import json, sys, threading, urllib.error, urllib.request
from concurrent.futures import ThreadPoolExecutor
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

url, folder = sys.argv[1:]
bodies = json.load(open(f"{folder}/bodies.json"))
photo = open(f"{folder}/photo.png", "rb").read()
client = InferenceClient(model=url, token="none")
answers, started = [None] * 200, threading.Barrier(8)

def hands(found):
    return [[hand.label, hand.score, hand.box.xmin, hand.box.ymax, hand.keypoints[20]["name"], hand.keypoints[20]["x"]]
            for hand in found]

def refused(image, **options):
    try:
        return hands(client.object_detection(image, **options))
    except HfHubHTTPError as error:
        return [error.response.status_code, error.response.json()["error"]]

def post(body, kind="application/json"):
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return [error.code, json.load(error)["error"]]

def work(thread):
    started.wait(60)
    for number in range(thread, 200, 8):
        if number % 5 == 0:
            answers[number] = ["raw", refused(photo)]
        elif number % 5 == 1:
            answers[number] = ["threshold", refused(photo, threshold=0.0)]
        elif number % 5 == 2:
            answers[number] = ["json", post(bodies["good"].encode())]
        elif number % 5 == 3:
            name = sorted(bodies["bad"])[number // 5 % len(bodies["bad"])]
            answers[number] = [name, post(bodies["bad"][name].encode())]
        else:
            answers[number] = ["garbage", refused(b"no image" * number)]

with ThreadPoolExecutor(8) as pool:
    list(pool.map(work, range(8)))
print(json.dumps(answers))
"""


@contextlib.contextmanager
def served(model: Path, cwd: Path):
    """The address of serve.py in a process that cannot import the package."""
    program = WITHOUT_THE_PACKAGE + "import runpy\ndel sys.argv[0]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cwd / "modules"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-P", "-c", program, str(ENDPOINT / "serve.py"), "--model", str(model), "--port", "0"]
    with open(cwd / "stderr.txt", "w") as errors:
        process = subprocess.Popen(command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=errors)
    try:
        line = process.stdout.readline()
        assert line.startswith("Listening on "), (cwd / "stderr.txt").read_text()
        yield line.split()[2].rstrip(",")
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.mark.slow
def test_the_hubs_client_gets_its_answers_from_8_threads_malformed_requests_among_them(folder, module, pipe, tmp_path):
    bad = {name: entry for name, entry in malformed(module).items() if not isinstance(entry[1], bytes)}
    bodies = {name: json.dumps(data) for name, (_, data, _) in bad.items()}
    nan = {"inputs": TEXT, "parameters": {"boxes": [[0, 0, float("nan"), 9]]}}
    bodies |= {"no JSON": "{", "deep JSON": "[" * 100_000, "a NaN box": json.dumps(nan)}
    good = json.dumps({"inputs": [TEXT, TEXT], "parameters": {"boxes": [BOXES, None]}})
    (tmp_path / "bodies.json").write_text(json.dumps({"good": good, "bad": bodies}))
    (tmp_path / "photo.png").write_bytes(PHOTO)
    with served(folder, tmp_path) as url:
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", CLIENT, url, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    whole, boxed = pipe(picture(120, 100)), pipe(picture(120, 100), boxes=BOXES)
    (hand,) = whole
    last = hand["keypoints"][20]
    expected = [["right hand", hand["score"], 0.0, 100.0, "little_4", last["x"]]]
    kinds = {}
    for kind, answer in answers:
        kinds[kind] = kinds.get(kind, 0) + 1
        if kind in ("raw", "threshold"):
            assert_same(answer, expected)
        elif kind == "json":
            assert_same(answer, [boxed, whole])
        elif kind == "garbage":
            assert answer[0] == 415 and "not an image" in answer[1]
        elif kind in bad:
            status, _, words = bad[kind]
            assert answer[0] == status and words in answer[1], (kind, answer)
        else:
            assert answer[0] == 400, (kind, answer)
    assert len(answers) == 200 and all(kinds[kind] == 40 for kind in ("raw", "threshold", "json", "garbage"))
    assert set(bodies) <= set(kinds)
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text()


@pytest.mark.slow
def test_a_body_over_the_limit_is_refused_before_it_is_stored(folder, tmp_path):
    with served(folder, tmp_path) as url:
        for size, status in ((65 * 2**20, 413), (33 * 2**20, 413)):
            request = urllib.request.Request(url, bytes(size), {"Content-Type": "image/png"})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=60)
            assert refused.value.code == status
            assert f"at most {(64 if size > 64 * 2**20 else 32) * 2**20}" in json.load(refused.value)["error"]
            refused.value.close()
        assert json.load(urllib.request.urlopen(url, timeout=60)) == {"status": "ok"}
