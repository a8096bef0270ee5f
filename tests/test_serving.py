"""What the endpoint and the Space share: decoding with a budget, short errors, and doubt in words."""

import base64
import io
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_handunet import images
from modeling_handunet.keypoints import NO_CLEAR_HAND

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "demo"))

import serving  # noqa: E402
from serving import MAX_BYTES, Decoders, RequestError, clean, doubt  # noqa: E402

# Stands for the package's images.py.  What a picture costs depends on its width.
COSTLY = """
import base64, os, time
decode_base64, count_scans = base64.b64decode, lambda data: 1
def to_rgb(image, name):
    if image.width == 2:
        time.sleep(60)
    if image.width == 3:
        os._exit(1)
    if image.width == 4:
        bytearray(4 << 30)
    while image.width == 6:
        pass
    if image.width == 5:
        raise RuntimeError("/home/someone/secret.py")
    return image.convert("RGB")
"""


def picture(width: int = 40, height: int = 30, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    values = np.arange(width * height * 3).reshape(height, width, 3) % 256
    Image.fromarray(values.astype(np.uint8)).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def decoders():
    decoders = Decoders(images.__file__, 10_000, 2)
    yield decoders
    decoders.close()


@pytest.fixture
def costly(tmp_path):
    (tmp_path / "costly.py").write_text(COSTLY)
    decoders = Decoders(str(tmp_path / "costly.py"), 10_000, 4, seconds=1.0)
    yield decoders
    decoders.close()


def refusal(decoders: Decoders, data, *limits) -> tuple[int, str]:
    with pytest.raises(RequestError) as refused:
        decoders.decode(data, *limits)
    assert len(refused.value.message) <= 500
    return refused.value.status, refused.value.message


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_photograph_is_decoded_as_the_package_decodes_it(decoders, format):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = picture(format=format, exif=exif)
    text = base64.b64encode(data).decode()
    expected = np.asarray(images.load_image(data))
    assert expected.shape == (40, 30, 3)
    for form in (data, text, base64.encodebytes(data).decode(), text + "\n", f"data:image/x;base64,{text}"):
        assert np.array_equal(np.asarray(decoders.decode(form)), expected)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "BMP", "PPM", "JPEG2000", "EPS", "ICO", "TGA"])
def test_other_formats_are_refused(decoders, format):
    status, message = refusal(decoders, picture(format=format))
    assert status == 415 and "JPEG, PNG, WebP and AVIF are accepted" in message


def test_what_is_too_large_cut_off_or_no_base64_is_refused_in_a_sentence(decoders):
    assert refusal(decoders, picture(101, 100)) == (
        413, "The image has 101 x 100 pixels, at most 10000 are accepted: resize it first.",
    )  # fmt: skip
    assert "at most 1000 are accepted" in refusal(decoders, picture(), 1000)[1]
    status, message = refusal(decoders, picture(format="JPEG", quality=95)[:900])
    assert status == 400 and message.startswith("The image cannot be decoded, it may be damaged or truncated")
    for text in ("/etc/passwd", "http://127.0.0.1/photo.jpg", "é", "\ud800", "data:image/png;base64,!", "A" * 99 + "!"):
        status, message = refusal(decoders, text)
        assert status in (400, 415) and len(message) < 130
    for data in (bytes(MAX_BYTES + 1), "A" * (2 * MAX_BYTES), "A" * (MAX_BYTES // 3 * 4 + 8)):
        assert refusal(decoders, data)[0] == 413


@pytest.mark.parametrize("hidden_by", [b"", b"\xff\x01", b"\xff\xff\x01"])
def test_the_scans_of_every_jpeg_are_counted(decoders, hidden_by):
    for progressive in (False, True):
        data = picture(format="JPEG", progressive=progressive)
        first = data.index(b"\xff\xda")
        bomb = data[:first] + (data[first:-2] + hidden_by) * 101 + b"\xff\xd9"
        status, message = refusal(decoders, bomb)
        assert status == 413 and "scans, expected about 10" in message


def test_a_bomb_is_stopped_and_nobody_else_waits(costly):
    costly.decode(picture())  # a process has started
    refused = []
    bombs = [threading.Thread(target=lambda: refused.append(refusal(costly, picture(2)))) for _ in range(3)]
    start = time.monotonic()
    for bomb in bombs:
        bomb.start()
    for _ in range(5):
        assert costly.decode(picture()).size == (40, 30)
    ordinary = time.monotonic() - start
    for bomb in bombs:
        bomb.join()
    assert refused == [(413, "The image takes more than 1.0 s to decode: save it again as a plain JPEG.")] * 3
    assert ordinary < 60 and time.monotonic() - start < 120  # not the bombs' 60 s each, also on a busy machine
    for _ in range(4):  # all four places work again
        assert costly.decode(picture()).size == (40, 30)


def test_processor_time_is_what_counts(costly, monkeypatch):
    monkeypatch.setattr(serving, "PATIENCE", 60)
    assert refusal(costly, picture(6))[1] == "The image takes more than 1.0 s to decode: save it again as a plain JPEG."
    assert costly.decode(picture()).size == (40, 30)


def test_a_request_may_give_an_image_less_time(costly):
    costly.decode(picture())
    assert "takes more than 0.2 s to decode" in refusal(costly, picture(2), None, 0.2)[1]
    assert refusal(costly, picture(), None, -1.0)[0] == 413  # its request has used up its time


def test_an_image_that_ends_its_process_or_takes_its_memory_costs_only_itself(costly):
    for width, words in ((3, "takes too much memory, or is damaged"), (4, "too much memory"), (5, "RuntimeError")):
        status, message = refusal(costly, picture(width))
        assert status in (413, 415) and words in message and "someone" not in message
        assert costly.decode(picture()).size == (40, 30)


def test_a_process_that_somebody_ended_meanwhile_costs_nobody_an_answer(costly):
    costly.decode(picture())
    process = costly._idle[-1].process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert costly.decode(picture()).size == (40, 30)


def test_the_processes_end_with_their_owner():
    decoders = Decoders(images.__file__, 10_000, 2)
    decoders.decode(picture())
    (process,) = decoders._idle
    decoders.close()
    assert process.process.returncode is not None


def test_errors_name_no_place_of_this_machine_and_are_short():
    assert clean("cannot identify <_io.BytesIO object at 0x7f2a>") == "cannot identify an object"
    assert clean("no file /home/me/model/x.json, or /etc/passwd") == "no file a file, or a file"
    assert clean("read at 0x7f2a11223344") == "read at an object"
    sentence = "https://example.org/a/b, data:image/png;base64, 3/4 and and/or stay; so does /"
    assert clean(sentence) == sentence
    assert len(clean("x" * 10**7)) == 500 and clean("x" * 501).endswith("xxx...")


def test_a_low_score_is_said_in_words():
    assert doubt({"label": "left hand", "score": NO_CLEAR_HAND}, NO_CLEAR_HAND) is None
    assert doubt({"label": "left hand", "score": 0.116}, NO_CLEAR_HAND) == "No clear left hand here: only 12 % sure."


def test_the_browser_page_doubts_below_the_same_score():
    assert f"const CLEAR_SCORE = {NO_CLEAR_HAND};" in (ROOT / "demo" / "web" / "src" / "main.js").read_text()
