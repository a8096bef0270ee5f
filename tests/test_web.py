"""The page in demo/web finds and reads hands as Python does, live and in pictures, and explains every failure in a sentence."""

import base64
import contextlib
import functools
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from handunet.backends import OWN_MODELS
from tests.chromium import CHROMIUM, FLAGS, MISSING, NETWORK_ERRORS, free_port, need_node

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "demo" / "web"
DETECTOR = ROOT / "weights" / "handunet-detector"
CASES = ROOT / "tests" / "data" / "tracking_cases.json"
PATIENCE = 120  # seconds, on a busy machine
CAMERA = (640, 480)


def run(command, cwd=ROOT, **options) -> str:
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# --- Without a browser ---


def test_resizing_and_turning_are_pillows_to_the_bit(tmp_path):
    node = need_node()
    rng = np.random.default_rng(0)
    cases, expected = [], []
    for width, height, left, top, side, size in (
        (450, 450, 0.3, 0.7, 449.1, 128),  # smaller
        (449, 450, 0, 0.25, 448.5, 128),
        (224, 224, 0, 0, 224, 128),
        (60, 61, 0.5, 0.5, 59.5, 128),  # larger
        (128, 128, 0, 0, 128, 128),  # the same
        (1, 1, 0, 0, 0.5, 64),
    ):
        pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        box = (left, top, left + side, top + side)
        rgb = Image.fromarray(np.ascontiguousarray(pixels[:, :, :3]))
        expected.append(np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, box=box)))
        cases.append({"call": "resizeBilinear", "rest": [width, height, box, size]})
        pixels.tofile(tmp_path / f"{len(cases) - 1}.bin")
    for factor in (2, 3, 5):
        pixels = rng.integers(0, 256, (64, 101, 4), dtype=np.uint8)
        pixels[:, :, 3] = 255
        expected.append(np.asarray(Image.fromarray(pixels).reduce(factor)))
        cases.append({"call": "reduce", "rest": [101, 64, factor]})
        pixels.tofile(tmp_path / f"{len(cases) - 1}.bin")
    for angle in (20.0, -90.0, 137.5, 180.0):
        pixels = rng.integers(0, 256, (99, 99, 3), dtype=np.uint8)
        cos, sin = np.cos(np.radians(angle)).round(15), np.sin(np.radians(angle)).round(15)
        rows = [cos, -sin, 49.5 - 32 * (cos - sin), sin, cos, 49.5 - 32 * (sin + cos)]
        turned = Image.fromarray(pixels).transform((64, 64), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
        expected.append(np.asarray(turned))
        cases.append({"call": "turnBilinear", "rest": [99, rows, 64]})
        pixels.tofile(tmp_path / f"{len(cases) - 1}.bin")
    (tmp_path / "run.mjs").write_text(
        f"import * as resample from {(WEB / 'src' / 'resample.js').as_uri()!r};\n"
        "import { readFileSync } from 'node:fs';\n"
        f"const answers = {json.dumps(cases)}.map(({{ call, rest }}, index) =>\n"
        "  Buffer.from(resample[call](new Uint8Array(readFileSync(`${index}.bin`)), ...rest)).toString('base64'));\n"
        "console.log(JSON.stringify(answers));\n"
    )
    answers = json.loads(run([node, "run.mjs"], cwd=tmp_path))
    assert len(answers) == len(expected) == 13
    for case, answer, pixels in zip(cases, answers, expected):
        found = np.frombuffer(base64.b64decode(answer), np.uint8).reshape(pixels.shape)
        np.testing.assert_array_equal(found, pixels, err_msg=str(case))


def played() -> dict:
    """What the page's rules answer in the recorded cases."""
    return json.loads(run([need_node(), ROOT / "tests" / "tracking_cases.mjs", WEB / "src", CASES]))


def test_hands_are_found_as_in_python():
    """The recorded photographs: the same hands in the same order, from as many looks, and the same numbers."""
    answers, cases = played()["pictures"], json.loads(CASES.read_text())["photographs"]
    assert len(answers) == len(cases) > 10
    for case, found in zip(cases, answers):
        expected, name = case["expected"], case["name"]
        assert found["places"] == expected["places"], name
        assert [hand["side"] for hand in found["hands"]] == [hand["side"] for hand in expected["hands"]], name
        for hand, right in zip(found["hands"], expected["hands"]):
            assert hand["hand_score"] == pytest.approx(right["hand_score"], abs=1e-4), name
            assert hand["box"] == pytest.approx(right["box"], abs=0.01), name
            assert [hand[key] for key in ("x", "y", "size")] == pytest.approx(
                [right[key] for key in ("x", "y", "size")], abs=0.01
            )


def test_hands_are_followed_as_in_python():
    """The recorded cases: the same ids and sides, the detector in the same frames, keypoints within 0.01 px."""
    answers = played()["films"]
    cases = json.loads(CASES.read_text())["cases"]
    assert len(answers) == len(cases) > 20
    for case, frames in zip(cases, answers):
        assert len(frames) == len(case["expected"])
        for time_step, found, expected in zip(case["frames"], frames, case["expected"]):
            where = f"{case['name']}, {time_step['time']} s"
            for name in ("detector", "places"):
                assert found[name] == expected[name], where
            assert [(hand["id"], hand["side"]) for hand in found["hands"]] == [
                (hand["id"], hand["side"]) for hand in expected["hands"]
            ], where
            for hand, right in zip(found["hands"], expected["hands"]):
                assert [hand[name] for name in ("x", "y", "size")] == pytest.approx(
                    [right[name] for name in ("x", "y", "size")], abs=0.01
                ), where


# --- The page, built once, and its browser ---


@pytest.fixture(scope="module")
def playwright():
    if CHROMIUM is None:
        pytest.skip(MISSING)
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[browser]'")
    with api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list[Path]:
    """Square pictures of one right hand each, PNG: real ones where there are any, else synthetic ones."""
    folder = tmp_path_factory.mktemp("photographs")
    real = sorted((ROOT.parent / "shared" / "data" / "freihand_real" / "training" / "rgb").glob("*.jpg"))
    if real:
        images = [Image.open(path).convert("RGB") for path in real]
    else:
        import torch

        from dataset_script.synthetic import SyntheticHands

        rendered = SyntheticHands(5, seed=1, difficulty="easy").render(torch.arange(5))["images"]
        images = [Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224)) for image in rendered]
    for index, image in enumerate(images):
        image.save(folder / f"hand-{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """Trained weights with high scores on the photographs' hands: another implementation's if they are there, else our own."""
    peer = ROOT.parent / "shared" / "data" / "peer" / "model_final"
    if peer.exists():
        folder = tmp_path_factory.mktemp("converted") / "model"
        run([sys.executable, "-m", "scripts.convert_shallow_unet", peer, folder])
        return folder
    if (ROOT / "weights" / "handunet-base" / "model.safetensors").exists():
        return ROOT / "weights" / "handunet-base"
    return pytest.skip(f"there are no trained weights: neither {peer} nor weights/handunet-base")


def build(model: Path, folder: Path, detector: Path = DETECTOR) -> Path:
    """Build the page in the new `folder` from a clean copy, with both models exported into it. Returns its `dist/`."""
    need_node()
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install -e '.[onnx]'")
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("node_modules", "dist", "*.onnx"))
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    result = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=600)
    if result.returncode and any(error in result.stderr for error in NETWORK_ERRORS):
        pytest.skip(f"npm cannot reach its registry: {result.stderr[-300:]}")
    assert result.returncode == 0, result.stderr
    run([sys.executable, "-m", "scripts.export_onnx", model, "--all", folder / "public", "--detector", detector])
    run(["npm", "run", "build"], cwd=folder)
    return folder / "dist"


@contextlib.contextmanager
def previewed(dist: Path):
    """The page's address while its local server runs, on 127.0.0.1."""
    port = free_port()
    command = [need_node(), "node_modules/vite/bin/vite.js", "preview", "--port", str(port), "--strictPort"]
    server = subprocess.Popen(command, cwd=dist.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(PATIENCE * 2):
            with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(address):
                break
            assert server.poll() is None, "the local server ended"
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def dist(playwright, model_folder, tmp_path_factory) -> Path:
    if not (DETECTOR / "model.safetensors").exists():
        pytest.skip(f"there is no trained detector in {DETECTOR}")
    return build(model_folder, tmp_path_factory.mktemp("web") / "web")


@pytest.fixture(scope="module")
def url(dist):
    with previewed(dist) as address:
        yield address


@pytest.fixture(scope="module")
def browser(playwright):
    """Chromium without a camera. Its page has the permission to use one."""
    with playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--use-fake-ui-for-media-stream"]) as browser:
        yield browser


class Page:
    """The page as a person sees it: what it says, and what can be clicked."""

    def __init__(self, browser, url: str, ready: str | None = "Ready", **options):
        self.context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
        self.page = self.context.new_page()
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        if ready:
            self.says(ready)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        errors = self.errors
        self.context.close()
        assert not errors, errors

    @property
    def sentence(self) -> str:
        return self.page.inner_text("#status")

    def says(self, *parts: str) -> str:
        """Wait until the page says all of `parts` in one sentence. Returns that sentence."""
        check = "parts => parts.every(part => document.getElementById('status').textContent.includes(part))"
        try:
            self.page.wait_for_function(check, arg=list(parts), timeout=PATIENCE * 1000)
        except Exception:
            pytest.fail(f"the page says {self.sentence!r}, not {parts}")
        return self.sentence

    def open(self, path: Path, *parts: str) -> str:
        self.page.set_input_files("#file", path)
        return self.says(path.name, "pixels)", *parts)

    def hands(self) -> list[dict]:
        """The hands that 'Copy as JSON' copies."""
        if self.page.is_hidden("#details"):
            return []
        if not self.page.is_visible("#copy"):
            self.page.click("#details summary")
        self.page.click("#copy")
        return json.loads(self.page.evaluate("navigator.clipboard.readText()"))


def hand_with_box(page: Page, box, tolerance: float) -> dict:
    """The page's answer, as soon as it is one hand with about this `box`."""
    hands = []
    for _ in range(PATIENCE):
        hands = page.hands()
        if len(hands) == 1 and box_of(hands[0]) == pytest.approx(box, abs=tolerance):
            return hands[0]
        page.page.wait_for_timeout(500)
    return pytest.fail(f"the boxes are {[box_of(hand) for hand in hands]}, not {box}")


def points_of(hand: dict) -> np.ndarray:
    return np.array([[point["x"], point["y"]] for point in hand["keypoints"]])


class Python:
    """The same two models by the package."""

    def __init__(self, model: Path, detector: Path):
        from transformers import pipeline

        from modeling_handunet.torch_hands import TorchHands

        self.pipe = pipeline("keypoint-detection", model=str(model))
        self.models = TorchHands(self.pipe.model, self.pipe.image_processor, detector)

    def find(self, image) -> list[dict]:
        """The hands of a picture."""
        from modeling_handunet.hands import find_hands
        from modeling_handunet.images import load_image

        return find_hands(self.models, load_image(image))

    def read(self, image, box, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (21, 2) and scores (21,) of the hand in a box."""
        (hand,) = self.pipe(image if isinstance(image, Image.Image) else str(image), [box], side)
        return points_of(hand), np.array([point["score"] for point in hand["keypoints"]])


@pytest.fixture(scope="module")
def python(model_folder, dist) -> Python:
    return Python(model_folder, DETECTOR)


def box_of(hand: dict) -> list[float]:
    left, top, right, bottom = (hand["box"][side] for side in ("xmin", "ymin", "xmax", "ymax"))
    return [left, top, right - left, bottom - top]


def hold_to_python(python, hand: dict, image, tolerance=0.5, score_tolerance=None) -> None:
    """Keypoints within `tolerance` px of Python's where the crop is 224 px wide."""
    expected, scores = python.read(image, box_of(hand), hand["label"].split()[0])
    side = max(box_of(hand)[2:]) / 0.45
    apart = np.linalg.norm(points_of(hand) - expected, axis=1) * (224 / side)
    assert apart.max() <= tolerance, apart.round(2)
    found = [point["score"] for point in hand["keypoints"]]
    np.testing.assert_allclose(found, scores, atol=score_tolerance or 0.04 * tolerance)


def hold_all_to_python(python, page: Page, image, tolerance=0.5, box_tolerance=1e-3) -> list[dict]:
    """The hands that the page finds are those that Python finds: boxes within `box_tolerance` px."""
    hands, expected = page.hands(), python.find(image)
    assert [hand["label"] for hand in hands] == [hand["label"] for hand in expected]
    for hand, right in zip(hands, expected):
        np.testing.assert_allclose(box_of(hand), box_of(right), atol=box_tolerance)
        assert hand["hand_score"] == pytest.approx(right["hand_score"], abs=0.04 * max(tolerance, box_tolerance))
        hold_to_python(python, hand, image, tolerance)
    return hands


# --- Pictures ---


def two_hands(photograph: Path, size: tuple[int, int] = (640, 400)) -> Image.Image:
    """A right hand on the left side of a wide picture, and the same mirrored, a left hand, on its right side."""
    picture = Image.new("RGB", size, (96, 120, 96))
    hand = Image.open(photograph)
    top = (size[1] - hand.height) // 2
    picture.paste(hand, (50, top))
    picture.paste(hand.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (size[0] - 50 - hand.width, top))
    return picture


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_pictures_get_the_hands_that_python_finds(browser, url, photographs, python, tmp_path, kind):
    count = 0
    with Page(browser, url) as page:
        for path in photographs:
            file = tmp_path / f"{path.stem}.{kind}"
            Image.open(path).save(file, quality=90)
            page.open(file, "224 × 224 pixels")
            # Browsers and Pillow do not decode a JPEG to the same bit.
            count += len(hold_all_to_python(python, page, file, box_tolerance=1e-3 if kind == "png" else 1))
    assert count >= 3


@pytest.mark.slow
def test_two_hands_are_found_and_each_has_its_numbers(browser, url, photographs, python, tmp_path):
    two_hands(photographs[1]).save(tmp_path / "two.png")
    with Page(browser, url) as page:
        page.open(tmp_path / "two.png", "a ", "hand in “two.png” (640 × 400 pixels)", " and ")
        hands = hold_all_to_python(python, page, tmp_path / "two.png")
        assert sorted(hand["label"] for hand in hands) == ["left hand", "right hand"]
        buttons = page.page.locator("#hands button")
        for index, hand in enumerate(hands):
            buttons.nth(index).click()
            assert buttons.nth(index).get_attribute("aria-pressed") == "true"
            assert buttons.nth(index).inner_text() == hand["label"].split()[0].capitalize()
            wrist = page.page.inner_text("#keypoints tr:first-child td:nth-child(2)")
            assert float(wrist) == pytest.approx(hand["keypoints"][0]["x"], abs=0.06)


@pytest.mark.slow
def test_a_picture_without_a_hand_gets_a_sentence_and_no_guess(browser, url, python, tmp_path):
    Image.new("RGB", (300, 200), (90, 110, 90)).save(tmp_path / "meadow.png")
    assert python.find(tmp_path / "meadow.png") == []
    with Page(browser, url) as page:
        page.open(tmp_path / "meadow.png", "No hand found in “meadow.png” (300 × 200 pixels)", "draw a square round it")
        assert page.hands() == [] and page.page.is_hidden("#confidence")


@pytest.mark.slow
def test_hands_are_read_as_the_side_that_the_person_knows(browser, url, photographs, python, tmp_path):
    with Page(browser, url) as page:
        page.open(photographs[1])
        page.page.click("#choices summary")
        for side in ("left", "right"):
            page.page.check(f"input[value={side}]", force=True)
            page.says(photographs[1].name, f"{side} hand")
            (hand,) = page.hands()
            assert hand["label"] == f"{side} hand"
            hold_to_python(python, hand, photographs[1])


@pytest.mark.slow
def test_a_square_is_drawn_with_the_mouse_or_moved_with_keys(browser, url, photographs, python, tmp_path):
    wide = tmp_path / "wide.png"
    picture = Image.new("RGB", (640, 400), (70, 90, 80))
    picture.paste(Image.open(photographs[1]), (380, 30))
    picture.save(wide)
    with Page(browser, url, viewport={"width": 900, "height": 900}) as page:
        page.open(wide, "640 × 400")
        place = page.page.locator("#canvas").bounding_box()
        scale = place["width"] / 640
        page.page.mouse.move(place["x"] + 430 * scale, place["y"] + 90 * scale)
        page.page.mouse.down()
        page.page.mouse.move(place["x"] + 480 * scale, place["y"] + 150 * scale)
        page.page.mouse.move(place["x"] + 560 * scale, place["y"] + 190 * scale)
        page.page.mouse.up()
        drawn = hand_with_box(page, [430, 90, 130, 100], 2)
        hold_to_python(python, drawn, wide)
        page.page.focus("#canvas")
        for key in ("ArrowLeft", "ArrowDown", "+"):
            page.page.keyboard.press(key)
        left, top, width, height = box_of(drawn)
        step = 0.05 * max(width, height)
        moved_box = [left - step - width * 0.05, top + step - height * 0.05, width * 1.1, height * 1.1]
        moved = hand_with_box(page, moved_box, 0.01)
        hold_to_python(python, moved, wide)
        page.page.focus("#canvas")
        page.page.keyboard.press("Escape")
        page.page.wait_for_selector("#again", state="hidden")
        hold_all_to_python(python, page, wide)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(4000, 3000), (5000, 5000)])  # the second is reduced before it is cut
def test_large_pictures_are_answered_as_in_python(browser, url, photographs, python, tmp_path, size):
    path = tmp_path / "large.jpg"
    Image.open(photographs[1]).resize(size, Image.Resampling.BICUBIC).save(path, quality=92)
    with Page(browser, url) as page:
        page.open(path, f"{size[0]} × {size[1]} pixels")
        assert hold_all_to_python(python, page, path, box_tolerance=5)


@pytest.mark.slow
def test_pictures_stand_upright_by_their_orientation_and_on_black(browser, url, photographs, python, tmp_path):
    turned = Image.open(photographs[1]).transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    clear = Image.open(photographs[1]).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(tmp_path / "clear.png")
    with Page(browser, url) as page:
        for name in ("turned.jpg", "clear.png"):
            page.open(tmp_path / name)
            hold_all_to_python(python, page, tmp_path / name, box_tolerance=1)


@pytest.mark.slow
def test_one_thread_gives_the_same_answers_without_the_headers(browser, dist, url, photographs, python):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=dist)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with Page(browser, f"http://127.0.0.1:{server.server_port}/") as page:
                assert "1 thread." in page.page.inner_text("#runtime")
                page.open(photographs[1])
                assert hold_all_to_python(python, page, photographs[1])
        finally:
            server.shutdown()
            thread.join()
    with Page(browser, url) as page:
        assert page.page.evaluate("crossOriginIsolated")
        cores = page.page.evaluate("navigator.hardwareConcurrency")
        assert f"WebAssembly, {min(cores, 4)} thread" in page.page.inner_text("#runtime")


@pytest.mark.slow
def test_what_is_built_is_a_static_space(dist, url, tmp_path):
    from tests.hub_server import HubServer

    with HubServer(tmp_path / "hub") as hub:
        command = [Path(sys.executable).with_name("hf"), "upload", "tester/live", dist, ".", "--repo-type", "space"]
        run(command, env={**os.environ, **hub.environment()})
        files = hub.files("tester/live", "space")
        assert len(hub.commits("tester/live", "space")) == 2  # one, and the creation
    built = {path.relative_to(dist).as_posix(): path.read_bytes() for path in dist.rglob("*") if path.is_file()}
    assert {name: files[name] for name in built} == built and {"index.html", "pose.onnx", "detector.onnx"} <= built.keys()
    metadata = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert metadata["sdk"] == "static" and len(metadata["short_description"]) <= 60
    with urllib.request.urlopen(url) as answer:  # the local server sends the headers that the Hub is asked for
        assert {name: answer.headers[name] for name in metadata["custom_headers"]} == metadata["custom_headers"]


# --- Camera ---


def camera_frame(photograph: Path, shift: int = 0) -> Image.Image:
    """A photograph of a hand where the page expects one, `shift` pixels further to the right."""
    frame = Image.new("RGB", CAMERA, (96, 120, 96))
    frame.paste(Image.open(photograph).resize((448, 448), Image.Resampling.BICUBIC), (96 + shift, 16))
    return frame


@contextlib.contextmanager
def filmed(playwright, frames, path: Path):
    """Chromium whose camera shows `frames`, over and over, at 30 a second."""
    with path.open("wb") as film:
        for frame in frames:
            data = io.BytesIO()
            frame.save(data, "JPEG", quality=95)
            film.write(data.getvalue())
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    flags.append(f"--use-file-for-fake-video-capture={path}")
    with playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags]) as browser:
        yield browser


@pytest.mark.slow
def test_the_cameras_hand_gets_the_keypoints_that_python_gives(playwright, url, photographs, python, tmp_path):
    frame = camera_frame(photographs[1])
    with filmed(playwright, [frame], tmp_path / "still.mjpeg") as browser, Page(browser, url) as page:
        page.page.click("#camera")
        page.says("Following a right hand")
        page.page.wait_for_selector("#speed:visible")
        page.page.wait_for_timeout(3000)
        (hand,) = page.hands()
        # A camera's frames come compressed and with halved colours, so the pixels are not quite the same.
        hold_to_python(python, hand, frame, tolerance=4, score_tolerance=0.3)
        assert re.fullmatch(r"\d+ frames/s", page.page.inner_text("#speed"))
        label = page.page.get_attribute("#canvas", "aria-label")
        assert "skeleton of a right hand" in label
        page.page.click("#camera")
        assert page.says("The camera is off") and page.page.inner_text("#camera") == "Start camera"
        assert page.page.is_hidden("#speed") and page.page.is_visible("#welcome")
        own = {url, f"blob:{url}"}
        assert all(request.startswith(tuple(own)) for request in page.requests), page.requests


@pytest.mark.slow
def test_two_hands_are_followed(playwright, url, photographs, tmp_path):
    frame = two_hands(photographs[1], CAMERA)
    with filmed(playwright, [frame], tmp_path / "two.mjpeg") as browser, Page(browser, url) as page:
        page.page.click("#camera")
        page.says("Following a ", "right", "left", " hand.")
        page.page.wait_for_timeout(5000)
        hands = page.hands()
        assert sorted(hand["label"] for hand in hands) == ["left hand", "right hand"]
        assert page.page.locator("#hands button").all_inner_texts() == [hand["label"].split()[0].capitalize() for hand in hands]
        print("live, two hands:", page.page.inner_text("#speed"), "·", page.page.inner_text("#runtime"))


@pytest.mark.slow
def test_a_hand_is_followed_and_looked_for_when_it_is_gone(playwright, url, photographs, tmp_path):
    still = [camera_frame(photographs[1])] * 30
    moving = [camera_frame(photographs[1], shift) for shift in (*range(0, 120, 1), *[120] * 60)]
    empty = [Image.new("RGB", CAMERA, (96, 120, 96))] * 120
    with filmed(playwright, [*still, *moving, *empty], tmp_path / "moving.mjpeg") as browser, Page(browser, url) as page:
        page.page.evaluate(
            "() => { window.said = [];"
            " new MutationObserver(() => window.said.push(document.getElementById('status').textContent))"
            ".observe(document.getElementById('status'), { childList: true, characterData: true, subtree: true }); }"
        )
        page.page.click("#camera")
        page.says("Following")
        page.page.click("#details summary")
        wrists = []
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            said = page.page.evaluate("window.said")
            words = [text.split()[0] for text in said]
            lost = [i for i in range(1, len(said)) if words[i - 1 : i + 1] == ["Following", "Looking"]]
            found_again = lost and any(text.startswith("Following") for text in said[lost[0] :])
            if found_again and max(wrists, default=0) - min(wrists, default=0) > 80:
                break
            if page.page.is_visible("#keypoints"):
                wrists.append(float(page.page.inner_text("#keypoints tr:first-child td:nth-child(2)") or "nan"))
                wrists = [x for x in wrists if x == x]
            time.sleep(0.1)
        else:
            pytest.fail(f"said {said}, the wrist at {wrists}")


def hide_and_show(port: int) -> None:
    """Show another tab for three seconds and then the page again, by Chromium's own HTTP interface."""
    tabs = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
    page = next(tab["id"] for tab in tabs if tab["type"] == "page")
    new = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
    urllib.request.urlopen(new).read()
    time.sleep(3)
    urllib.request.urlopen(f"http://127.0.0.1:{port}/json/activate/{page}").read()
    time.sleep(3)


def attach(playwright, address: str, url: str):
    """Playwright's connection to a running Chromium, and the page at `url`.

    A connection that is made while the page opens may wait for ever, so that each attempt has a time limit.
    """
    from playwright.sync_api import Error

    deadline, problem = time.monotonic() + PATIENCE, None
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/json", timeout=5) as answer:
                opened = any(tab["url"] == url and tab["title"] not in ("", url) for tab in json.load(answer))
            if opened:
                attached = playwright.chromium.connect_over_cdp(address, timeout=PATIENCE * 1000 / 6)
                (page,) = [page for page in attached.contexts[0].pages if page.url == url]
                return attached, page
        except (OSError, Error) as error:
            problem = error
        time.sleep(0.5)
    pytest.fail(f"Chromium at {address} shows no {url}: {problem}")


@pytest.mark.slow
def test_a_hidden_page_pauses_and_goes_on_when_shown(playwright, url, photographs, tmp_path):
    camera_frame(photographs[1]).save(tmp_path / "still.mjpeg", "JPEG", quality=95)
    port = free_port()
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    flags += [f"--use-file-for-fake-video-capture={tmp_path / 'still.mjpeg'}", f"--remote-debugging-port={port}"]
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={tmp_path / 'profile'}", url]
    chromium = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    status = "document.getElementById('status').textContent"
    try:
        attached, page = attach(playwright, address, url)
        page.wait_for_function(f"() => {status}.includes('Ready')", timeout=PATIENCE * 1000)
        page.evaluate(
            f"() => {{ window.said = []; setInterval(() => {{ const now = document.visibilityState + ': ' + {status};"
            " if (now !== window.said.at(-1)) window.said.push(now); }, 20);"
            f" document.addEventListener('visibilitychange', () => setTimeout(() => window.said.push("
            f"document.visibilityState + ': ' + {status}), 0)); }}"
        )
        page.click("#camera")
        page.wait_for_function(f"() => {status}.includes('Following')", timeout=PATIENCE * 1000)
        attached.close()  # every tab counts as visible while Playwright is connected
        hide_and_show(port)
        attached, page = attach(playwright, address, url)
        page.wait_for_function(f"() => {status}.includes('Following')", timeout=PATIENCE * 1000)
        said = page.evaluate("window.said")
        attached.close()
    finally:
        chromium.terminate()
        chromium.wait()
    hidden = said.index("hidden: Paused while this page is hidden.")
    assert any(text == "visible: Following a right hand." for text in said[:hidden]), said
    assert not any("Following" in text for text in said if text.startswith("hidden")), said
    assert any(text == "visible: Following a right hand." for text in said[hidden:]), said


# --- Failures ---


@pytest.mark.slow
def test_without_a_camera_the_page_says_so_and_pictures_still_open(browser, url, photographs):
    with Page(browser, url) as page:
        page.page.click("#camera")
        page.says("There is no camera on this device")
        assert "error" in page.page.get_attribute("#status", "class")
        page.open(photographs[0])
        assert "error" not in page.page.get_attribute("#status", "class")


@pytest.mark.slow
def test_a_camera_that_is_refused_is_said_to_be(playwright, url, photographs):
    flags = [*FLAGS, "--use-fake-device-for-media-stream"]
    with playwright.chromium.launch(executable_path=CHROMIUM, args=flags) as browser, Page(browser, url) as page:
        page.page.click("#camera")
        page.says("The camera was not allowed")
        page.open(photographs[0])


@pytest.mark.slow
def test_a_question_for_the_camera_that_nobody_answers_holds_up_nothing(browser, url, photographs):
    with Page(browser, url) as page:
        page.page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => new Promise(() => {}); }")
        page.page.click("#camera")
        page.says("Waiting for the camera: allow it")
        page.open(photographs[0])
        page.page.click("#camera")
        page.says("Waiting for the camera")
        page.page.click("#camera")
        page.says("The camera is off")


@pytest.mark.slow
def test_files_that_are_no_pictures_get_a_sentence_each(browser, url, photographs, tmp_path):
    photograph = Image.open(photographs[0])
    data = photographs[0].read_bytes()
    (tmp_path / "broken.png").write_bytes(data[:40] + bytes(len(data) - 40))
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("a hand")
    photograph.save(tmp_path / "scan.tiff")
    photograph.resize((10, 10)).save(tmp_path / "tiny.png")
    with Page(browser, url) as page:
        for name, *parts in (
            ("broken.png", "“broken.png” cannot be decoded", "damaged"),
            ("empty.jpg", "“empty.jpg” is empty"),
            ("notes.txt", "“notes.txt” is not a picture that this browser reads", "JPEG, PNG or WebP"),
            ("scan.tiff", "“scan.tiff” is not a picture that this browser reads"),
        ):
            page.page.set_input_files("#file", tmp_path / name)
            page.says(*parts)
            assert page.page.is_visible("#welcome") and page.page.is_hidden("#confidence")
        page.open(tmp_path / "tiny.png", "10 × 10 pixels it is too small for an answer to trust")


DROP = """([one, two]) => {
  const transfer = new DataTransfer();
  for (const [name, text] of [one, two]) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
  }
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


@pytest.mark.slow
def test_of_two_pictures_at_once_one_is_answered_and_the_other_named(browser, url, photographs, python):
    first, second = photographs[:2]
    with Page(browser, url) as page:
        files = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in (first, second)]
        page.page.evaluate(DROP, files)
        page.says("You gave 2 files: this is the first.", first.name, "pixels)")
        hold_all_to_python(python, page, first)
        # And two in a row, the second before the first is answered.
        page.page.evaluate(
            f"files => {{ const drop = {DROP}; drop([files[0], files[0]]); drop([files[1], files[1]]); }}", files
        )
        page.says(f"“{first.name}” was set aside for it.", f"“{second.name}”", "pixels)")
        page.page.wait_for_timeout(1000)
        page.says(second.name)
        hold_all_to_python(python, page, second)
        page.page.evaluate(
            "document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer(), bubbles: true }))"
        )
        page.says("That was not a file")


@pytest.mark.slow
def test_a_missing_model_is_named_and_can_be_tried_again(browser, url, photographs):
    with Page(browser, url + "?model=absent.onnx", ready=None) as page:
        page.says("The model file absent.onnx is missing")
        assert page.page.is_visible("#retry")
        page.page.set_input_files("#file", photographs[0])
        page.says("The model file absent.onnx is missing")
        model = urllib.request.urlopen(url + "pose.onnx").read()
        page.page.route("**/absent.onnx", lambda route: route.fulfill(body=model, content_type="application/octet-stream"))
        page.page.click("#retry")
        page.says(photographs[0].name, "pixels)")
        assert page.page.is_hidden("#retry")
    for query, sentence in (
        ("model=icon.svg", "The model file cannot be used"),
        ("model=index.html", "is missing"),
        ("detector=absent.onnx", "The model file absent.onnx is missing"),
        ("model=detector.onnx", 'detector.onnx is of the kind "detector", but one of the kind "pose" is needed'),
        ("detector=pose.onnx", 'pose.onnx is of the kind "pose", but one of the kind "detector" is needed'),
    ):
        with Page(browser, f"{url}?{query}", ready=None) as page:
            page.says(sentence)


@pytest.mark.slow
def test_webassembly_takes_the_models_in_8_bits_where_they_are(browser, url, dist, photographs):
    shutil.copytree(OWN_MODELS["int8"].parent, dist / "int8")
    try:
        with Page(browser, url) as page:
            models = {request.removeprefix(url) for request in page.requests if request.endswith(".onnx")}
            assert models == {"int8/pose.onnx", "int8/detector.onnx"}
            page.open(photographs[1])
            assert len(page.hands()) == 1
        with Page(browser, url + "?model=pose.onnx") as page:
            assert not any("int8" in request for request in page.requests)
        (dist / "int8" / "pose.onnx").unlink()
        with Page(browser, url) as page:  # as if it was not there
            assert {url + "pose.onnx", url + "detector.onnx"} <= set(page.requests)
    finally:
        shutil.rmtree(dist / "int8")


@pytest.mark.slow
def test_a_model_cut_short_is_refused(browser, url):
    model = urllib.request.urlopen(url + "pose.onnx").read()
    with Page(browser, url + "?model=other.onnx&x", ready=None) as page:
        page.page.route("**/other.onnx", lambda route: route.fulfill(body=model[:100_000], content_type="application/x"))
        page.page.reload()
        page.says("The model file cannot be used, it ends early")


# --- For everyone ---


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_in_light_and_dark(browser, url, photographs, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme, "has_touch": True}
    with Page(browser, url, **phone) as page:
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
        page.open(photographs[1])
        assert page.hands()
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
        for control in page.page.locator("button:visible").all():
            assert control.bounding_box()["height"] >= 44, control.inner_text()
        back = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back))) > 384) == (scheme == "light")


@pytest.mark.slow
def test_every_control_is_reached_by_the_keyboard_and_has_a_name(browser, url, photographs):
    with Page(browser, url) as page:
        page.open(photographs[1])
        reached = []
        for _ in range(12):
            page.page.keyboard.press("Tab")
            reached.append(page.page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        for name in ("canvas", "camera", "open", "SUMMARY"):
            assert name in reached, reached
        assert "skeleton of a" in page.page.get_attribute("#canvas", "aria-label")
        assert page.page.get_attribute("#status", "aria-live") == "polite"
        assert "Nothing leaves this device" in page.page.inner_text("header")
        assert page.page.locator("button:visible").evaluate_all("nodes => nodes.every(node => node.innerText.trim())")
