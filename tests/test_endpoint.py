"""The endpoint's handler, called as a server calls it, and under a server with the Hub's own client."""

import base64
import contextlib
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
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
from tests.hub_server import WITHOUT_THE_PACKAGE
from tests.small_model import small_detector
from tools import load_test

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
    processor, detector = HandUNetImageProcessor(), small_detector()
    pipeline("keypoint-detection", model=model.eval(), image_processor=processor, detector=detector).save_pretrained(folder)
    for path in (ENDPOINT / "handler.py", ENDPOINT / "requirements.txt", ENDPOINT.parent / "serving.py"):
        shutil.copy(path, folder)
    return folder


def loaded(name: str):
    spec = importlib.util.spec_from_file_location(name, ENDPOINT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def module():
    return loaded("handler")


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


def without_notes(hands: list[dict]) -> list[dict]:
    return [{name: value for name, value in hand.items() if name != "note"} for hand in hands]


@pytest.mark.parametrize("data", [PHOTO, {"inputs": PHOTO}, {"inputs": TEXT}, {"inputs": f"data:image/png;base64,{TEXT}"},
                                  {"inputs": Image.open(io.BytesIO(PHOTO)), "parameters": None}])  # fmt: skip
def test_the_hands_of_an_image_in_any_wrapping_are_found(handler, pipe, data):
    answer = handler(data)
    assert len(answer) > 1 and all(0 < hand["hand_score"] <= 1 for hand in answer)
    assert [point["name"] for point in answer[0]["keypoints"]][:2] == ["wrist", "thumb_1"]
    assert_same(without_notes(answer), pipe(picture(120, 100)))


def test_an_image_may_be_the_crop_of_one_hand_or_have_none_that_is_sure_enough(handler, pipe):
    (hand,) = handler({"inputs": TEXT, "parameters": {"boxes": "image"}})
    assert hand["box"] == {"xmin": 0.0, "ymin": 0.0, "xmax": 120.0, "ymax": 100.0} and hand["hand_score"] is None
    both = handler({"inputs": [TEXT, TEXT], "parameters": {"boxes": ["image", []]}})
    assert_same(both, [[hand], []])
    assert handler({"inputs": TEXT, "parameters": {"detection_threshold": 1.0}}) == []


def test_a_model_without_a_detector_asks_for_boxes(handler, module, monkeypatch):
    monkeypatch.setattr(handler, "finds_hands", False)
    with pytest.raises(module.RequestError, match="has no hand detector: send boxes") as refused:
        handler({"inputs": [TEXT, TEXT], "parameters": {"boxes": [BOXES, None]}})
    assert refused.value.status == 400
    assert len(handler({"inputs": TEXT, "parameters": {"boxes": BOXES}})) == 2


def test_boxes_handedness_and_threshold_reach_the_pipeline(handler, pipe):
    parameters = {"boxes": BOXES, "handedness": ["left", "right"]}
    expected = pipe(picture(120, 100), **parameters)
    assert [hand["label"] for hand in expected] == ["left hand", "right hand"]
    assert_same(handler({"inputs": TEXT, "parameters": parameters}), expected)
    low, high = sorted(hand["score"] for hand in expected)
    assert high - low > 1e-5
    answer = handler({"inputs": TEXT, "parameters": {**parameters, "threshold": (low + high) / 2}})
    assert_same(answer, [hand for hand in expected if hand["score"] > low])
    assert handler({"inputs": TEXT, "parameters": {"boxes": []}}) == []


def test_a_list_of_images_is_answered_image_by_image(handler, pipe):
    other = picture(64, 90)
    inputs = [TEXT, base64.b64encode(encode(other)).decode(), TEXT]
    parameters = {"boxes": [BOXES, None, []], "handedness": ["left", "right", "right"]}
    answer = handler({"inputs": inputs, "parameters": parameters})
    first, second = pipe(picture(120, 100), boxes=BOXES, handedness="left"), pipe(other, handedness="right", max_hands=21)
    assert_same(list(map(without_notes, answer)), [first, second, []])


def test_a_turned_photograph_is_answered_upright(handler):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    (hand,) = handler({"inputs": encode(picture(120, 100), "JPEG", exif=exif), "parameters": {"boxes": "image"}})
    assert hand["box"] == {"xmin": 0.0, "ymin": 0.0, "xmax": 100.0, "ymax": 120.0}


def nested(depth: int) -> list:
    value = []
    for _ in range(depth):
        value = [value]
    return value


def malformed(module) -> dict[str, tuple[int, object, str]]:
    """What is refused: name -> status, request, words of the sentence."""

    def boxes(value):
        return {"inputs": TEXT, "parameters": {"boxes": value}}

    return {
        "no image": (415, b"no image at all", "not an image"),
        "a program": (415, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n", "not an image"),
        "no bytes": (415, b"", "not an image"),
        "cut off": (400, encode(picture(120, 100), "JPEG")[:700], "truncated"),
        "a GIF": (415, encode(picture(20, 20), "GIF"), "JPEG, PNG, WebP and AVIF"),
        "too many pixels": (413, empty_png(5001, 5000), "5001 x 5000"),
        "a decompression bomb": (413, empty_png(60000, 60000), "Resize"),
        "a path": (400, {"inputs": "/etc/passwd"}, "Paths and web addresses are not read"),
        "a web address": (400, {"inputs": "http://127.0.0.1/photo.jpg"}, "Paths and web addresses are not read"),
        "a number": (400, {"inputs": 7}, "Got int as an image"),
        "a dict": (400, {"inputs": {"url": "x"}}, "Got dict as an image"),
        "a nested list": (400, {"inputs": [[TEXT]]}, "Got list as an image"),
        "a lone surrogate": (400, {"inputs": "\ud800"}, "base64"),
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
        "endless digits": (400, boxes([[10**400, 0, 9, 9]]), "box"),
        "a long word": (400, boxes("all" * 9999), "boxes='allall"),
        "a deep box": (400, boxes(nested(900)), "nests lists or dicts deeper than 8"),
        "deep handedness": (400, {"inputs": TEXT, "parameters": {"handedness": nested(900)}}, "nests"),
        "parameters in a list": (400, {"inputs": TEXT, "parameters": [0.5]}, "list"),
    }  # fmt: skip


def test_what_cannot_be_answered_is_refused_with_a_status_and_a_sentence(handler, module):
    for name, (status, data, words) in malformed(module).items():
        with pytest.raises(module.RequestError) as refused:
            handler(data)
        assert (refused.value.status, words in refused.value.message) == (status, True), (name, refused.value.message)
        assert str(refused.value) == refused.value.message and len(refused.value.message) <= 500
    with pytest.raises(module.RequestError, match="33554433 bytes") as refused:
        handler(bytes(32 * 2**20 + 1))
    assert refused.value.status == 413


def test_the_images_of_a_request_share_a_budget(handler, module, monkeypatch):
    monkeypatch.setattr(module, "MAX_TOTAL_PIXELS", 30_000)
    assert len(handler({"inputs": [TEXT, TEXT]})) == 2  # 12,000 pixels each
    with pytest.raises(module.RequestError, match="120 x 100 pixels, at most 6000 are accepted") as refused:
        handler({"inputs": [TEXT, TEXT, TEXT]})
    assert refused.value.status == 413
    monkeypatch.setattr(module, "MAX_TOTAL_SECONDS", -1.0)
    with pytest.raises(module.RequestError, match="to decode"):
        handler(PHOTO)


def test_a_low_score_comes_with_a_sentence_and_an_answer_of_no_numbers_is_an_error(handler, monkeypatch):
    def answered(score: float):
        monkeypatch.setattr(handler, "pipe", lambda images, **_: [[{"label": "right hand", "score": score}] for _ in images])
        return handler(PHOTO)[0]

    assert answered(0.4) == {"label": "right hand", "score": 0.4}
    assert answered(0.2)["note"] == "No clear right hand here: only 20 % sure. Send a box close round one hand."
    with pytest.raises(RuntimeError, match="NaN"):
        answered(float("nan"))


def test_a_photograph_of_12_megapixels_is_answered_and_one_of_10_pixels_too(handler):
    whole = {"boxes": "image"}
    photo = encode(Image.new("RGB", (4000, 3000), (90, 120, 60)), "JPEG")
    assert isinstance(handler(photo), list)
    (hand,) = handler({"inputs": photo, "parameters": whole})
    assert hand["box"]["xmax"] == 4000.0
    (hand,) = handler({"inputs": encode(Image.new("RGB", (5, 2), (90, 120, 60))), "parameters": whole})
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
    expected = [
        [hand["label"], hand["score"], hand["box"]["xmin"], hand["box"]["ymax"], "little_4", hand["keypoints"][20]["x"]]
        for hand in whole
    ]
    kinds = {}
    for kind, answer in answers:
        kinds[kind] = kinds.get(kind, 0) + 1
        if kind in ("raw", "threshold"):
            assert_same(answer, expected)
        elif kind == "json":
            assert_same(list(map(without_notes, answer)), [boxed, whole])
        elif kind == "garbage":
            assert answer[0] == 415 and "not an image" in answer[1]
        elif kind in bad:
            status, _, words = bad[kind]
            assert answer[0] == status and words in answer[1], (kind, answer)
        else:
            assert answer[0] == (413 if kind == "deep JSON" else 400), (kind, answer)
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
        assert json.load(urllib.request.urlopen(f"{url}/health", timeout=60))["status"] == "ok"


# The server, with a handler that does what a test asks


@pytest.fixture(scope="module")
def serve():
    pytest.importorskip("fastapi", reason="FastAPI is not installed: pip install -e '.[endpoint]'")
    return loaded("serve")


@contextlib.contextmanager
def serving(serve, handler):
    """The port of a server in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = serve.make_server(handler)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


def ask(port: int, method: str = "POST", path: str = "/", body=b"", **headers: str) -> tuple[int, dict, dict]:
    """Status, JSON and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), dict(answer.getheaders())


def raw(port: int, text: bytes) -> bytes:
    """Everything that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(text)
        parts = []
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                parts.append(part)
        return b"".join(parts)


def echo(data):
    return {"got": len(data)}


def test_the_server_takes_bytes_and_json_on_any_path(serve):
    with serving(serve, echo) as port:
        assert ask(port, body=b"12345", path="/models/x")[:2] == (200, {"got": 5})
        assert ask(port, body=b'{"a": 1, "b": 2}', Content_Type="application/json; charset=utf-8")[:2] == (200, {"got": 2})
        assert ask(port, body=iter([b"123", b"45"]))[:2] == (200, {"got": 5})  # in chunks, without a length
        for path in ("/", "/docs", "/openapi.json"):
            assert ask(port, "GET", path)[1] == {"status": "ok"}


def test_an_empty_answer_comes_with_a_sentence(serve):
    with serving(serve, lambda data: [] if data == b"none" else [1]) as port:
        status, answer, headers = ask(port, body=b"none")
        assert (status, answer, headers["x-note"]) == (200, [], "No hand was found in this image.")
        assert "x-note" not in ask(port, body=b"some")[2]


def test_a_slow_sender_is_told_so_and_keeps_nobody_waiting(serve, monkeypatch):
    monkeypatch.setattr(serve, "BODY_SECONDS", 1.5)
    monkeypatch.setattr(serve, "MAX_AT_ONCE", 2)
    with serving(serve, echo) as port:
        answers = []
        text = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 900\r\n\r\nxx"
        slow = [threading.Thread(target=lambda: answers.append(raw(port, text))) for _ in range(20)]
        start = time.monotonic()
        for thread in slow:
            thread.start()
        assert ask(port, body=b"123")[0] == 200
        for thread in slow:
            thread.join()
        assert time.monotonic() - start < 30
    assert len(answers) == 20 and all(answer.startswith(b"HTTP/1.1 408") for answer in answers)
    assert b"did not arrive within 1.5 s" in answers[0]


@pytest.mark.parametrize("start", [b"", b"POST / HTTP/1.1\r\nHost", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"])
def test_a_connection_ends_after_its_time_whatever_it_waits_for(serve, monkeypatch, start):
    monkeypatch.setattr(serve, "CONNECTION_SECONDS", 0.5)
    with serving(serve, echo) as port:
        assert raw(port, start) == b""


def test_connections_beyond_the_limit_are_closed(serve, monkeypatch):
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 3)
    with serving(serve, echo) as port, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert raw(port, b"") == b""


def test_a_request_beyond_those_that_are_answered_is_told_when_to_come_again(serve, monkeypatch):
    monkeypatch.setattr(serve, "MAX_AT_ONCE", 1)
    monkeypatch.setattr(serve, "WAIT_SECONDS", 0.2)
    started, go_on = threading.Event(), threading.Event()

    def slow(data):
        started.set()
        assert go_on.wait(60)
        return []

    with serving(serve, slow) as port:
        answers = []
        first = threading.Thread(target=lambda: answers.append(ask(port, body=b"1")))
        first.start()
        assert started.wait(60)
        status, answer, headers = ask(port, body=b"2")
        go_on.set()
        first.join()
        assert (status, headers["retry-after"]) == (503, "2") and "busy" in answer["error"]
        assert answers[0][:2] == (200, [])
        assert ask(port, body=b"3")[0] == 200  # the place is free again


def test_bodies_in_memory_are_bounded_one_by_one_and_in_all(serve, monkeypatch):
    monkeypatch.setattr(serve, "MAX_BODY_BYTES", 1000)
    monkeypatch.setattr(serve, "MAX_HELD_BYTES", 2000)
    monkeypatch.setattr(serve, "BODY_SECONDS", 60)
    with serving(serve, echo) as port, contextlib.ExitStack() as stack:
        assert ask(port, body=bytes(1000))[0] == 200
        for body in (bytes(1001), iter([bytes(600), bytes(600)]), bytes(3999)):
            status, answer, _ = ask(port, body=body)
            assert status == 413 and "at most 1000" in answer["error"]
        for _ in range(2):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + bytes(990))
        for _ in range(300):  # until both have arrived
            status, _, headers = ask(port, body=bytes(100))
            if status == 503:
                break
        assert (status, headers["retry-after"]) == (503, "2")
        assert ask(port, body=bytes(10))[0] == 200
        stack.close()
        for _ in range(300):
            if ask(port, body=bytes(1000))[0] == 200:
                break
        assert ask(port, body=bytes(1000))[0] == 200  # what left has given its memory back


@pytest.mark.parametrize("length", ["abc", "-5", "1e3", "5\r\nContent-Length: 6", "9" * 40, "0x10", "", "+3"])
def test_a_content_length_of_nonsense_is_refused(serve, length):
    with serving(serve, echo) as port:
        answer = raw(port, f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n12345".encode())
        assert re.match(rb"HTTP/1.1 4\d\d ", answer) and len(answer) < 700
        assert ask(port, body=b"123")[0] == 200


def test_json_of_very_many_values_is_refused_before_it_is_parsed(serve, monkeypatch):
    def forbidden(text):
        raise AssertionError("parsed")

    with serving(serve, echo) as port:
        assert ask(port, body=b'["a' + b'","' * 9000 + b'"]', Content_Type="application/json")[:2] == (200, {"got": 9001})
        for text in (b"{", b"[" * 9000, b"1" * 9000, b"\xff\xfe", b'"\\ud8', b""):
            status, answer, _ = ask(port, body=text, Content_Type="application/json")
            assert status == 400 and answer["error"].startswith("The request is not JSON: ") and len(answer["error"]) < 200
    for text in (b"[],", b"[[", b'{"a":', b"1,", b'"",'):
        with monkeypatch.context() as patched, pytest.raises(serve.RequestError, match="values: send at most 10000") as refused:
            patched.setattr(serve.json, "loads", forbidden)
            serve.read_json(b"[" + text * 20_000)
        assert refused.value.status == 413


def test_a_failure_of_the_server_tells_nothing_of_this_machine(serve, capfd):
    class Refusal(ValueError):
        status = 415

    def failing(data):
        raise Refusal("no image in /home/me/x.png " + "x" * 5000) if data == b"1" else OSError("/home/me/secret.txt")

    with serving(serve, failing) as port:
        status, answer, _ = ask(port, body=b"1")
        assert status == 415 and answer["error"].startswith("no image in a file xxx") and len(answer["error"]) == 500
        assert ask(port, body=b"2")[:2] == (500, {"error": "The server failed; its log says why."})
        assert "/home/me/secret.txt" in capfd.readouterr().err
    with serving(serve, lambda data: [float("nan")]) as port:
        assert ask(port, body=b"1")[0] == 500
        assert "Traceback" in capfd.readouterr().err


def test_the_health_check_runs_the_model_but_not_for_everybody_who_asks(serve, handler, monkeypatch, capfd):
    calls = []
    with serving(serve, lambda data: calls.append(data) or handler(data)) as port:
        for _ in range(3):
            status, answer, _ = ask(port, "GET", "/health")
            assert status == 200 and answer["status"] == "ok" and answer["seconds"] >= 0
    assert len(calls) == 1
    monkeypatch.setattr(serve, "HEALTH_SECONDS", 0)
    working = [False, True]

    def broken(data):
        assert working.pop(0), "the weights are gone"
        return []

    with serving(serve, broken) as port:
        status, answer, headers = ask(port, "GET", "/health")
        assert status == 503 and "cannot answer" in answer["error"] and "retry-after" in headers
        assert ask(port, "GET", "/health")[0] == 200
    assert "the weights are gone" in capfd.readouterr().err


@pytest.mark.slow
def test_ordinary_visitors_are_answered_while_bombs_and_slow_clients_come(folder, capfd):
    load_test.main(["--model", str(folder), "--seconds", "6", "--visitors", "2", "--bombs", "2", "--slow", "10"])
    printed = capfd.readouterr().out
    assert re.search(r"together: \d+ requests .* median wait [\d.]+ s, worst [\d.]+ s, without an answer 0", printed)
    assert "JPEG of 5000 scans: 413" in printed
