"""A camera, live in a window: here a false camera and a false window."""

import json
import sys
import types

import numpy as np
import pytest

import handunet.camera
import handunet.predict
from tests.drawn_films import picture


class FalseOpenCV(types.ModuleType):
    """OpenCV with a camera of `count` frames, which is gone then, and a window where `key` is pressed at frame `press_at`."""

    error = type("error", (Exception,), {})
    COLOR_BGR2RGB, COLOR_RGB2BGR, WND_PROP_VISIBLE = 4, 4, 4

    def __init__(self, count=5, key=-1, press_at=10**9, has_screen=True):
        super().__init__("cv2")
        self.count, self.key, self.press_at, self.has_screen = count, key, press_at, has_screen
        self.asked, self.shown, self.ended, self.is_released = [], [], False, False

    def VideoCapture(self, name):
        self.asked.append(name)
        return self

    def isOpened(self):
        return self.count > 0

    def read(self):
        self.count -= 1
        return (True, np.asarray(picture())[:, :, ::-1]) if self.count >= 0 else (False, None)

    def release(self):
        self.is_released = True

    def cvtColor(self, pixels, _):
        return np.ascontiguousarray(pixels[:, :, ::-1])

    def imshow(self, title, pixels):
        if not self.has_screen:
            raise self.error("OpenCV: The function is not implemented.\nRebuild the library with GTK+ support")
        self.shown.append(pixels)

    def waitKey(self, _):
        return self.key if len(self.shown) > self.press_at else -1

    def getWindowProperty(self, *_):
        return 1.0

    def destroyAllWindows(self):
        self.ended = True


@pytest.fixture
def use(monkeypatch):
    points = [{"name": str(index), "x": 40.0 + index, "y": 30.0 + 2 * index, "score": 0.9} for index in range(21)]
    box = dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), 9.0)
    hand = {"id": 1, "label": "right hand", "score": 0.9, "hand_score": 0.8, "box": box, "keypoints": points}
    monkeypatch.setattr(handunet.predict.Run, "load", lambda run: None)
    monkeypatch.setattr(handunet.predict.Run, "tracker", lambda run: lambda photo, seconds: [hand])
    monkeypatch.setattr(handunet.camera, "LOST_SECONDS", 0.05)

    def use(**options) -> FalseOpenCV:
        opencv = FalseOpenCV(**options)
        monkeypatch.setitem(sys.modules, "cv2", opencv)
        return opencv

    return use


def run(*arguments) -> str:
    """What the command says when it stops; "" if all is well."""
    try:
        handunet.predict.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return str(stop.code)
    return ""


def test_the_picture_is_shown_with_its_hands_until_somebody_presses_q(monkeypatch, use, tmp_path):
    monkeypatch.chdir(tmp_path)
    opencv = use(count=100, key=ord("q"), press_at=3)
    assert run("--camera", "0") == ""
    assert opencv.asked == [0] and len(opencv.shown) == 4 and opencv.ended and opencv.is_released
    difference = np.abs(opencv.shown[0][:, :, ::-1].astype(int) - np.asarray(picture()))
    assert difference[:, :, 0].max() > 60 and difference[60:, 80:].max() == 0  # a hand, at its place
    assert list(tmp_path.iterdir()) == []  # nothing is written without --output


def test_a_camera_that_goes_away_ends_in_a_sentence_and_leaves_a_film(use, tmp_path, monkeypatch):
    pytest.importorskip("av")
    from handunet.films import Film

    use(count=6)
    clock = types.SimpleNamespace(monotonic=iter(np.arange(100) * 2e-4).__next__, sleep=None)  # five frames a millisecond
    monkeypatch.setattr(handunet.camera, "time", clock)
    said = run("--camera", "/dev/video7", "--output", tmp_path / "out", "--format", "jsonl")
    assert "Camera /dev/video7 went away after frame 6." in said
    answers = [json.loads(line) for line in (tmp_path / "out/keypoints.jsonl").read_text().splitlines()]
    assert [answer["frame"] for answer in answers] == list(range(6)) and answers[0]["photo"] == "camera-dev-video7"
    with Film(str(tmp_path / "out/camera-dev-video7.mp4")) as film:
        assert len(list(film.frames())) == 6


def test_a_missing_camera_a_missing_screen_and_a_missing_opencv_end_in_a_sentence(monkeypatch, use):
    use(count=0)
    assert "There is no camera 3, or another program uses it." in run("--camera", "3")
    use(has_screen=False)
    said = run("--camera", "0")
    assert "No window can be shown (Rebuild the library with GTK+ support)" in said and "handunet[camera]" in said
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "--camera needs OpenCV" in run("--camera", "0") and "pip install 'handunet[camera]'" in run("--camera", "0")
