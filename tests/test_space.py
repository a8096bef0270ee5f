"""The Space, used as a person uses it: in a real browser, on a desktop and on a phone."""

import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard
from PIL import Image
from transformers import pipeline

from dataset_script.synthetic import SyntheticHands
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from tests.chromium import CHROMIUM, FLAGS, MISSING
from tests.small_model import small_detector

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "demo" / "space"
PATIENCE = 120_000  # ms, for a busy machine


def test_the_spaces_metadata_and_files_fit_each_other():
    data = RepoCard.load(SPACE / "README.md", ignore_metadata_errors=True).data
    assert (data.sdk, data.app_file, data.models) == ("gradio", "app.py", ["USER/handunet"])
    assert len(data.short_description) <= 60  # the Hub's limit
    requirements = (SPACE / "requirements.txt").read_text().splitlines()
    assert f"gradio=={data.sdk_version}" in requirements
    for example in json.loads((SPACE / "examples" / "examples.json").read_text()):
        path = SPACE / "examples" / example["file"]
        with Image.open(path) as image:
            x, y, width, height = example["box"]
            assert 0 <= x and x + width <= image.width and 0 <= y and y + height <= image.height
        assert path.stat().st_size < 50_000 and example["handedness"] in ("right", "left")


@pytest.fixture(scope="module")
def app():
    """The module app.py."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install -e '.[space]'")
    spec = importlib.util.spec_from_file_location("app", SPACE / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LIMITS = """
import json, runpy, sys
app = runpy.run_path(sys.argv[1])
page = app["build_app"](app["Model"]("nowhere"))
functions = {one.name: [one.concurrency_id, one.concurrency_limit, one.show_progress] for one in page.fns.values()}
print(json.dumps([page._queue.max_size, app["MAX_WAITING"], app["AT_ONCE"], functions]))
"""


def test_few_visitors_are_answered_at_once_and_the_others_wait_in_a_queue_that_ends(tmp_path):
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("Gradio is not installed: pip install -e '.[space]'")
    command = [sys.executable, "-c", LIMITS, str(SPACE / "app.py")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    waiting, most_waiting, at_once, functions = json.loads(done.stdout)
    assert waiting == most_waiting
    for name in ("open_photo", "find_keypoints"):  # they share their places
        assert functions[name][:2] == ["photographs", at_once]
        assert functions[name][2] != "hidden"  # Gradio shows the number in the queue there


def test_a_guess_is_drawn_fainter_than_a_hand_and_labelled(app):
    photo = Image.new("RGB", (640, 480), (40, 40, 40))
    points = [(300 + 10 * (index % 5), 250 + 8 * index) for index in range(21)]
    hand, guess = app.draw_hand(photo, points), app.draw_guess(photo, points, "No clear hand")
    hand, guess = (np.abs(np.asarray(image, int) - 40).max(2) for image in (hand, guess))
    assert 0 < guess[250:450].max() < 0.5 * hand[250:450].max()
    assert guess[:240].max() > 150 and hand[:240].max() == 0  # the label, above the guess
    far = app.draw_guess(photo, [(-5000.0, -5000.0)] * 21, "No clear hand")
    assert np.abs(np.asarray(far, int) - 40).max() > 150  # also for keypoints outside


@contextlib.contextmanager
def served(model: Path, folder: Path, **variables: str):
    """The address of the app in a process of its own, on `model`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-P", str(SPACE / "app.py"), "--model", str(model), "--port", str(port)]
    local = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(folder / "gradio")}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | local | variables
    log = folder / "app.txt"
    with open(log, "w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/config", timeout=30):
                break
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text()


@contextlib.contextmanager
def nobody_called():
    """The address of a proxy that fails the test if anything calls it."""
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        over = threading.Event()

        def listen():
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(5)
                        calls.append(connection.recv(200))

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            thread.join()
    assert calls == []


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A saved model with a card, whose random weights answer with spread, sharp heatmaps."""
    torch.manual_seed(0)
    network = HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8)))
    with torch.no_grad():
        network(torch.randn(8, 3, 128, 128))
        network.head.weight *= 6
    folder = tmp_path_factory.mktemp("space") / "my-model"
    pipeline("keypoint-detection", model=network.eval(), image_processor=HandUNetImageProcessor()).save_pretrained(folder)
    metadata = "license: other\nlicense_name: research-only\nlicense_link: https://example.org/terms\n"
    (folder / "README.md").write_text(f"---\n{metadata}---\n# my-model\n")
    return folder


@pytest.fixture(scope="module")
def browser():
    """A launcher of Chromium: `browser(flags)`."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[browser]'")
    if CHROMIUM is None:
        pytest.skip(MISSING)
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("Gradio is not installed: pip install -e '.[space]'")
    with sync_api.sync_playwright() as playwright, contextlib.ExitStack() as stack:

        def launch(*flags: str):
            started = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
            stack.callback(started.close)
            return started

        yield launch


@pytest.fixture(scope="module")
def url(model, browser, tmp_path_factory):
    """The app on the model; it must call nobody."""
    with nobody_called() as proxy:
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy)
        local = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        with served(model, tmp_path_factory.mktemp("served"), **proxies, **local) as address:
            yield address


@pytest.fixture(scope="module")
def chromium(browser):
    return browser("--use-fake-device-for-media-stream")


@contextlib.contextmanager
def opened(chromium, url: str, **options):
    """The page in a window of its own; it must ask no other server for anything and log no error."""
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.wait_for_selector(".examples button")
    try:
        yield page
        assert errors == []
        assert [address for address in asked if not address.startswith((url, "data:", "blob:", "ws://127.0.0.1"))] == []
    finally:
        context.close()


@pytest.fixture
def page(chromium, url):
    with opened(chromium, url) as page:
        yield page


@pytest.fixture(scope="module")
def hand() -> tuple[Image.Image, np.ndarray]:
    """A drawn hand to the right of the middle of a wide picture, and its keypoints (21, 2)."""
    row = SyntheticHands(8, seed=20260, image_size=448)[7]
    photo = Image.new("RGB", (900, 600), (70, 80, 90))
    photo.paste(row["image"], (400, 90))
    return photo, np.asarray(row["uv"], np.float64) + (400, 90)


def png(image: Image.Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def choose(page, tmp_path):
    """Give the page a file of these bytes: `choose(name, data)`."""
    numbers = itertools.count()

    def give(name: str, data: bytes) -> None:
        path = tmp_path / str(next(numbers)) / name
        path.parent.mkdir()
        path.write_bytes(data)
        page.set_input_files("#stage input[type=file]", path)

    return give


def says(page, words: str | re.Pattern) -> None:
    """Wait until the page says so."""
    try:
        page.locator("#stage .message", has_text=words).wait_for()
    except Exception:
        pytest.fail(f"the page says {page.locator('#stage .message').inner_text()!r}, not {words!r}")


def drag(page, start, end, steps: int = 8) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=steps)
    page.mouse.up()


def on_page(page, point, size) -> tuple[float, float]:
    """Where a point of the photograph is in the window."""
    area = page.locator("#stage .photo img").bounding_box()
    return area["x"] + point[0] * area["width"] / size[0], area["y"] + point[1] * area["height"] / size[1]


def box_of(page) -> list[int]:
    """The box [x, y, width, height] that the page states."""
    width, height, x, y = map(int, re.findall(r"-?\d+", page.locator("#stage output").inner_text()))
    return [x, y, width, height]


def download(page, button: str) -> bytes:
    with page.expect_download() as taken:
        page.locator(f"{button} a, a{button}, button{button}").first.click()
    return Path(taken.value.path()).read_bytes()


def rows_of(page) -> list[list[str]]:
    page.wait_for_function("document.querySelectorAll('#table [role=row][data-index]').length > 20")
    rows = page.locator("#table [role=row][data-index]").all()
    return [[cell.strip() for cell in row.locator("[role=gridcell]").all_inner_texts()] for row in rows]


@pytest.mark.slow
def test_a_photograph_is_cropped_read_and_taken_away(page, choose, model, hand, tmp_path):
    photo, uv = hand
    choose("my hand.png", png(photo))
    says(page, "Draw a box")
    low, high = uv.min(0) - 10, uv.max(0) + 10
    drag(page, on_page(page, low, photo.size), on_page(page, high, photo.size))
    drawn = box_of(page)
    assert drawn == pytest.approx([*low, *(high - low)], abs=4)
    page.get_by_role("radio", name="Left hand").check()
    page.click("#find")
    says(page, "Read: left hand")
    page.wait_for_selector("#drawing img")
    answer = json.loads(download(page, "#json"))
    (found,) = answer["hands"]
    assert (answer["photo"], answer["width"], answer["height"]) == ("my hand.png", 900, 600)
    box = [found["box"][key] for key in ("xmin", "ymin", "xmax", "ymax")]
    box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    assert box == pytest.approx(drawn, abs=1)
    (expected,) = pipeline("keypoint-detection", model=str(model))(photo, boxes=[box], handedness="left")
    assert found["label"] == expected["label"] == "left hand"
    for one, other in zip(found["keypoints"], expected["keypoints"], strict=True):
        assert one["name"] == other["name"]
        assert [one[key] for key in "xy"] == pytest.approx([other[key] for key in "xy"], abs=0.05)
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)
    rows = rows_of(page)
    assert len(rows) == 21
    for row, point in zip(rows, found["keypoints"]):
        assert row[0] == point["name"].replace("_", " ")
        assert [float(text) for text in row[1:]] == pytest.approx([point["x"], point["y"], point["score"]], abs=0.051)
    picture = Image.open(io.BytesIO(download(page, "#png")))
    assert (picture.format, picture.size) == ("PNG", photo.size)
    changed = np.argwhere((np.asarray(picture.convert("RGB")) != np.asarray(photo)).any(-1))[:, ::-1]  # x, y
    points = np.array([[point["x"], point["y"]] for point in found["keypoints"]])
    assert len(changed) > 500
    assert (changed.min(0) > points.min(0) - 15).all() and (changed.max(0) < points.max(0) + 15).all()
    page.screenshot(path=tmp_path / "desktop.png", full_page=True)


@pytest.mark.slow
def test_a_heatmap_is_shown_for_the_keypoint_that_is_asked_for(page):
    page.click(".examples button >> nth=0")
    says(page, "Draw a box")
    page.click("#find")
    says(page, "Read: right hand")
    page.click("#heatmaps button >> nth=0")
    first = page.locator("#heatmap img").get_attribute("src")
    page.locator("#keypoint input").click()
    page.get_by_role("option", name="index 4").click()
    page.wait_for_function("old => document.querySelector('#heatmap img')?.src !== old", arg=first)
    data = page.evaluate(
        """async () => { const answer = await fetch(document.querySelector('#heatmap img').src);
           return Array.from(new Uint8Array(await answer.arrayBuffer())); }"""
    )
    assert Image.open(io.BytesIO(bytes(data))).size == (512, 512)


@pytest.mark.slow
def test_an_example_of_a_left_hand_says_so_and_brings_its_box(page):
    example = json.loads((SPACE / "examples" / "examples.json").read_text())[2]
    page.click(".examples button >> nth=2")
    says(page, "Draw a box")
    page.wait_for_function("document.querySelector('#handedness input:checked').value === 'Left hand'")
    assert box_of(page) == example["box"]
    page.click("#find")
    says(page, "Read: left hand")


@pytest.fixture(scope="module")
def finding_model(model, tmp_path_factory) -> Path:
    """The model with a detector of random weights, which finds several hands in any picture."""
    folder = tmp_path_factory.mktemp("finding") / "finder"
    processor = HandUNetImageProcessor(temperature=0.05)  # sure of what it reads
    network = HandUNetForPoseEstimation.from_pretrained(model)
    pipe = pipeline("keypoint-detection", model=network, image_processor=processor, detector=small_detector())
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_hands_are_there_at_once_and_their_boxes_can_be_corrected(chromium, finding_model, hand, tmp_path):
    photo, _ = hand
    photo.save(tmp_path / "party.png")
    expected = pipeline("keypoint-detection", model=str(finding_model))(photo)[:20]
    assert len(expected) > 2
    with served(finding_model, tmp_path) as address, opened(chromium, address) as page:
        says(page, "Found ")  # an example is answered before anybody asks
        page.wait_for_selector("#drawing img")
        assert page.evaluate("window.scrollY") == 0
        page.set_input_files("#stage input[type=file]", tmp_path / "party.png")
        page.wait_for_function("document.querySelector('#stage .photo img').alt.includes('900 by 600')")
        says(page, f"Found {len(expected)} hands: ")
        hands = json.loads(download(page, "#json"))["hands"]
        assert [one["label"] for one in hands] == [one["label"] for one in expected]
        assert page.locator("#stage .hands b").count() == len(expected)
        page.get_by_text("Not a hand").click()
        says(page, "Left: ")
        assert page.locator("#stage .hands b").count() == len(expected) - 1
        drag(page, on_page(page, (410, 100), photo.size), on_page(page, (840, 530), photo.size))
        page.get_by_role("radio", name="Left hand").check()
        page.click("#find")
        page.wait_for_function(f"document.querySelectorAll('#stage .hands b').length === {len(expected)}")
        hands = json.loads(download(page, "#json"))["hands"]
        assert len(hands) == len(expected) and hands[-1]["label"] == "left hand" and hands[-1]["hand_score"] is None
        assert hands[-1]["box"]["xmin"] == pytest.approx(410, abs=4)
        for name in ("Video", "Webcam"):
            page.get_by_role("tab", name=name).click()
        page.get_by_text("Click to Access Webcam").wait_for()


def test_a_film_comes_back_with_its_hands(finding_model, app, tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[space]'")
    import films

    with av.open(str(tmp_path / "in.mp4"), "w") as out:
        stream = out.add_stream("h264", rate=10, width=640, height=480, pix_fmt="yuv420p")
        for shade in (60, 80, 100):
            picture = Image.new("RGB", (640, 480), (shade, 90, 70))
            for packet in stream.encode(av.VideoFrame.from_image(picture)):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    models = pipeline("keypoint-detection", model=str(finding_model)).hands
    said = films.draw_film(str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), models)
    assert said.startswith("3 pictures, ")
    with av.open(str(tmp_path / "out.mp4")) as film:
        frames = list(film.decode(video=0))
    assert (len(frames), frames[0].width, frames[0].height) == (3, 640, 480)
    (tmp_path / "no.mp4").write_bytes(b"no film")
    with pytest.raises(ValueError, match="The film cannot be read"):
        films.draw_film(str(tmp_path / "no.mp4"), str(tmp_path / "out.mp4"), models)
    picture, sentence = films.Webcam(models)(Image.new("RGB", (1280, 720)))
    assert picture.size == (640, 360) and sentence


@pytest.mark.slow
def test_the_page_states_the_model_and_its_terms(page):
    terms = page.locator("#terms").inner_text()
    assert "my-model" in terms and "research-only" in terms and "not commercially" in terms
    assert page.locator("#terms a").get_attribute("href") == "https://example.org/terms"


@pytest.mark.slow
def test_the_box_is_moved_and_resized_by_pointer_and_by_keyboard(page, choose, hand):
    photo, _ = hand
    choose("hand.png", png(photo))
    says(page, "Draw a box")
    assert box_of(page) == [248, 98, 405, 405]  # 0.45 of the longer side, in the middle

    def move(start, end):
        drag(page, on_page(page, start, photo.size), on_page(page, end, photo.size))

    move((653, 503), (700, 550))  # its lower right corner
    assert box_of(page) == pytest.approx([248, 98, 452, 452], abs=4)
    move((450, 300), (500, 260))  # now that it is somebody's box, it is moved
    assert box_of(page) == pytest.approx([298, 58, 452, 452], abs=4)
    move((20, 20), (5000, 5000))  # outside it a new one is drawn, which ends with the photograph
    assert box_of(page) == pytest.approx([20, 20, 880, 580], abs=3)
    page.get_by_text("Start the box again").click()
    assert box_of(page) == [248, 98, 405, 405]
    move((300, 200), (600, 450))  # nobody's box is no hindrance
    assert box_of(page) == pytest.approx([300, 200, 300, 250], abs=3)
    page.mouse.click(*on_page(page, (100, 100), photo.size))
    assert box_of(page) == pytest.approx([300, 200, 300, 250], abs=3)  # a click draws nothing
    page.locator("#stage .photo").focus()
    before = box_of(page)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowDown")
    assert box_of(page) == pytest.approx([before[0] - 9, before[1], before[2], before[3] + 9], abs=1)


@pytest.mark.slow
def test_bad_files_are_answered_with_a_sentence_and_good_ones_work_afterwards(page, choose, hand):
    page.click("#find")
    says(page, "There is no photograph yet")
    cut_off = png(Image.effect_noise((300, 300), 60).convert("RGB"), "JPEG")[:9000]
    for name, data, words in (
        ("broken.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "not a picture that can be read"),
        ("notes.txt", b"some words", "not a picture that can be read"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture that can be read"),
        ("cut.jpg", cut_off, "damaged or cut off"),
        ("empty.jpg", b"", "is empty"),
        ("large.jpg", bytes(33 * 2**20), "at most 32 MB"),
    ):
        choose(name, data)
        says(page, words)
    page.click("#find")
    says(page, "There is no photograph yet")
    choose("ten.png", png(Image.new("RGB", (5, 2), "green")))
    says(page, "only 5 x 2 pixels")
    page.click("#find")
    says(page, "Read: right hand")
    x, y = np.meshgrid(np.arange(4000) % 256, np.arange(3000) % 256)
    large = Image.fromarray(np.uint8(np.stack([x, y, x ^ y], -1)))
    choose("large.jpg", png(large, "JPEG"))
    says(page, "Draw a box")
    assert box_of(page) == [1100, 600, 1800, 1800]
    page.click("#find")
    says(page, "Read: right hand")
    choose("empty.jpg", b"")  # refused on the page itself, which keeps what it has
    says(page, "is empty")
    page.click("#find")
    says(page, "Read: right hand")
    for format in ("WEBP", "AVIF"):
        choose(f"new.{format.lower()}", png(hand[0], format))
        page.wait_for_function("document.querySelector('#stage output').textContent.startsWith('405')")
        choose("film.tiff", png(hand[0], "TIFF"))
        says(page, "choose a JPEG, PNG, WebP or AVIF")


@pytest.mark.slow
def test_a_box_without_a_clear_hand_is_answered_in_words(chromium, tmp_path):
    Image.new("RGB", (300, 300), (90, 120, 60)).save(tmp_path / "lawn.png")
    with served(ROOT / "weights" / "handunet-base", tmp_path) as address, opened(chromium, address) as page:
        page.set_input_files("#stage input[type=file]", tmp_path / "lawn.png")
        says(page, "Draw a box")
        page.click("#find")
        says(page, "No clear right hand here: only ")
        page.locator("#summary", has_text="What is drawn faintly is a guess").wait_for()
        (hand,) = json.loads(download(page, "#json"))["hands"]
        assert hand["score"] < 0.25 and hand["note"].endswith("Draw a box close round one hand.")


@pytest.mark.slow
def test_a_picture_beyond_the_limit_and_one_upload_over_another(page, choose, hand):
    wide = Image.new("L", (10_000, 5_001))
    choose("wide.png", png(wide))
    says(page, "10000 x 5001 pixels, at most 50000000 are accepted")
    photo, _ = hand
    other = photo.resize((450, 300))
    for _ in range(3):
        choose("one.png", png(photo))
        choose("other.png", png(other))
    page.wait_for_function("document.querySelector('#stage .photo img').alt.includes('450 by 300')")
    says(page, "Draw a box")
    page.click("#find")
    says(page, "Read: right hand")
    answer = json.loads(download(page, "#json"))
    assert (answer["photo"], answer["width"]) == ("other.png", 450)


@pytest.mark.slow
def test_a_path_that_was_not_sent_is_not_opened(page, tmp_path, url):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    listed = json.load(urllib.request.urlopen(f"{url}/config", timeout=60))
    number = next(entry["id"] for entry in listed["dependencies"] if entry["targets"][0][1] == "photo")
    data = [{"path": str(secret), "name": "x", "number": 1}, "wrist", None]
    body = {"data": data, "fn_index": number, "session_hash": "outsider"}
    request = urllib.request.Request(
        f"{url}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60).close()
    with urllib.request.urlopen(f"{url}/gradio_api/queue/data?session_hash=outsider", timeout=60) as stream:
        text = "".join(line.decode() for line in stream)
    assert "did not arrive" in text and "data:image" not in text


@pytest.mark.slow
def test_the_camera_gives_a_photograph_and_goes_off_when_the_page_is_hidden(chromium, url):
    with opened(chromium, url, permissions=["camera"]) as page:
        page.get_by_text("Use the camera").click()
        says(page, "Hold one hand")
        page.get_by_text("Take the picture").click()
        says(page, "Draw a box")
        page.click("#find")
        says(page, "Read: right hand")
        page.get_by_text("Use the camera").click()
        says(page, "Hold one hand")
        for hidden in ("true", "false"):
            page.evaluate(f"Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }})")
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        says(page, "switched off while the page was out of sight")
        assert page.evaluate("document.querySelector('#stage video').srcObject") is None
        page.get_by_text("Use the camera").click()
        says(page, "Hold one hand")


@pytest.mark.slow
def test_a_camera_that_is_refused_or_missing_is_answered_with_a_sentence(chromium, browser, url):
    with opened(chromium, url, permissions=[]) as page:
        page.get_by_text("Use the camera").click()
        says(page, "The camera was not allowed")
        page.click(".examples button >> nth=0")
        says(page, "Draw a box")
    with opened(browser(), url, permissions=["camera"]) as page:
        page.get_by_text("Use the camera").click()
        says(page, "There is no camera")


@pytest.mark.slow
def test_a_finger_draws_the_box_on_a_phone(chromium, url, tmp_path):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    with opened(chromium, url, **phone) as page:
        page.locator(".examples button >> nth=0").tap()
        says(page, "Draw a box")
        page.locator("#stage .photo").scroll_into_view_if_needed()
        touch = page.context.new_cdp_session(page)
        path = [on_page(page, (30 + 40 * step, 40 + 35 * step), (448, 448)) for step in range(11)]
        for kind, points in [("touchStart", path[:1]), *(("touchMove", [point]) for point in path[1:]), ("touchEnd", [])]:
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [dict(zip("xy", p)) for p in points]})
        assert box_of(page) == pytest.approx([30, 40, 400, 350], abs=4)
        for _ in range(5):  # on a busy machine a tap may last so long that it is a long press, which opens nothing
            page.locator("#find").tap()
            with contextlib.suppress(Exception):
                page.locator("#stage .message", has_text="Read:").wait_for(timeout=PATIENCE / 5)
                break
        says(page, "Read: right hand")
        page.wait_for_selector("#drawing img")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for button in page.locator("#stage button:visible").all():
            assert button.bounding_box()["height"] >= 44  # what a finger hits
        page.screenshot(path=tmp_path / "phone.png", full_page=True)


@pytest.mark.slow
def test_a_missing_model_is_said_on_the_page_and_nothing_hangs(browser, chromium, model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "model.safetensors").unlink()
    with served(broken, tmp_path) as address, opened(chromium, address) as page:
        says(page, "has no model.safetensors")
        page.click(".examples button >> nth=0")
        says(page, "could not be loaded")
        page.click("#find")
        says(page, "could not be loaded")
