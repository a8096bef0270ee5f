"""Films: read frame by frame, and drawn with their length, sound and frame rate."""

import json
import math
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import handunet.predict
from handunet.films import Film, FilmWriter
from tests.drawn_films import picture, write_film

av = pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")
ROOT = Path(__file__).resolve().parents[1]
POINTS = [{"name": f"point {index}", "x": 40.0 + index, "y": 30.0 + 2 * index, "score": 0.9} for index in range(21)]
HAND = {"label": "right hand", "score": 0.9, "hand_score": 0.8, "box": dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), 9.0)}
HAND["keypoints"] = POINTS


@pytest.fixture
def answering(monkeypatch):
    """Every frame has the hand `HAND`."""
    monkeypatch.setattr(handunet.predict.Run, "load", lambda run: setattr(run, "models", "networks"))
    monkeypatch.setattr(handunet.predict.Run, "tracker", lambda run: lambda photo, seconds: [{"id": 1, **HAND}])
    monkeypatch.setattr(handunet.predict.Run, "find", lambda run, photo: [HAND])


def run(*arguments):
    handunet.predict.main([str(argument) for argument in arguments])


def test_frames_come_with_their_times(tmp_path):
    write_film(tmp_path / "film.mp4", 6, times=[0, 40, 80, 200, 240, 1000])
    with Film(str(tmp_path / "film.mp4")) as film:
        frames = list(film.frames())
    assert [(frame.number, frame.seconds) for frame in frames] == [(0, 0), (1, 0.04), (2, 0.08), (3, 0.2), (4, 0.24), (5, 1)]
    assert (film.notes, film.troubles) == ([], [])
    difference = np.asarray(frames[3].image).astype(int) - np.asarray(picture(number=3))
    assert frames[3].image.size == (160, 120) and np.abs(difference).mean() < 6
    with Film(str(tmp_path / "film.mp4")) as film:
        assert [frame.number for frame in film.frames(every=0.1)] == [0, 3, 5]


@pytest.mark.parametrize(
    "name, codec, rate, sound, sound_after",
    [
        ("film.mp4", "libx264", 30, "aac", "aac"),
        ("film.mov", "mpeg4", Fraction(30000, 1001), "pcm_s16le", "aac"),
        ("film.mkv", "libx264", 15, "libmp3lame", "mp3"),
        ("film.avi", "mpeg4", 25, None, None),
        ("film.webm", "libvpx", 25, None, None),
    ],
)
def test_a_drawn_film_has_the_length_the_sound_and_the_rate_of_the_first(
    capsys, answering, tmp_path, name, codec, rate, sound, sound_after
):
    write_film(tmp_path / name, 40, codec=codec, rate=rate, sound=sound)
    run(tmp_path / name, "--output", tmp_path / "out")
    assert f"{name}: 40 frames" in capsys.readouterr().out
    with av.open(str(tmp_path / name)) as before, av.open(str(tmp_path / "out/film.mp4")) as after:
        assert after.streams.video[0].codec_context.name == "h264"
        assert after.streams.video[0].average_rate == pytest.approx(rate, rel=1e-3)
        length = float(after.streams.video[0].duration * after.streams.video[0].time_base)
        assert length == pytest.approx(40 / rate, abs=0.002)
        assert after.duration / 1e6 == pytest.approx(before.duration / 1e6, abs=0.08)
        sounds = [stream.codec_context.codec.canonical_name for stream in after.streams.audio]
        assert sounds == ([sound_after] if sound else [])
        first = next(after.decode(video=0)).to_image()
        if sound:
            after.seek(0)
            heard = sum(frame.samples for frame in after.decode(audio=0)) / 44100
            assert heard == pytest.approx(40 / rate, abs=0.08)
    assert first.size == (160, 120)
    assert np.ptp(np.asarray(first.crop((38, 28, 64, 74))).astype(int), axis=2).max() > 60  # a finger's colour
    answers = json.loads((tmp_path / "out/keypoints.json").read_text())
    assert [answer["frame"] for answer in answers] == list(range(40))
    assert answers[15]["time"] == pytest.approx(15 / rate, abs=0.001) and answers[15]["hands"][0]["id"] == 1


def turned(path: Path, degrees: float) -> Path:
    """A copy of an MP4 that says that it is turned clockwise."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix stands 40 bytes after the name
    cos, sin = (round(turn(math.radians(degrees)) * 0x10000) for turn in (math.cos, math.sin))
    for place, value in enumerate((cos, sin, 0, -sin, cos, 0)):
        data[at + 4 * place : at + 4 * place + 4] = (value & 0xFFFFFFFF).to_bytes(4, "big")
    copy = path.with_name("turned.mp4")
    copy.write_bytes(data)
    return copy


@pytest.mark.parametrize("degrees", [90, 88.5])
def test_a_film_of_a_turned_phone_is_upright(tmp_path, degrees):
    turned(write_film(tmp_path / "film.mp4", 3), degrees)
    with Film(str(tmp_path / "turned.mp4")) as film:
        image = next(film.frames()).image
    expected = picture().transpose(Image.Transpose.ROTATE_270)  # PIL turns the other way
    assert image.size == (120, 160)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean() < 6


def test_a_film_that_is_turned_by_an_odd_angle_is_taken_as_it_stands(capsys, answering, tmp_path):
    path = turned(write_film(tmp_path / "film.mp4", 3), 30)
    run(path, "--output", tmp_path / "out")
    said = capsys.readouterr().out
    assert (
        re.search(r"turned.mp4 says that it is turned by -?\d+ degrees: it is taken as it stands.", said) and "3 frames" in said
    )
    with Film(str(tmp_path / "out/turned.mp4")) as film:
        assert [frame.image.size for frame in film.frames()] == [(160, 120)] * 3


@pytest.mark.parametrize("degrees, shape", [(0, Fraction(16, 15)), (90, Fraction(15, 16))])
def test_pixels_that_are_not_square_stay_so_in_the_drawn_film(answering, tmp_path, degrees, shape):
    path = turned(write_film(tmp_path / "film.mp4", 3, pixel_shape=Fraction(16, 15)), degrees)
    run(path, "--output", tmp_path / "out")
    with av.open(str(tmp_path / "out/turned.mp4")) as film:
        assert film.streams.video[0].sample_aspect_ratio == shape


def test_the_times_of_a_film_of_uneven_rate_are_kept(answering, tmp_path):
    times = [0, 40, 80, 200, 240, 1000]
    write_film(tmp_path / "film.mkv", 6, times=times, sound="aac")
    run(tmp_path / "film.mkv", "--output", tmp_path / "out")
    with Film(str(tmp_path / "out/film.mp4")) as film:
        assert [round(1000 * frame.seconds) for frame in film.frames()] == times
    assert [round(1000 * answer["time"]) for answer in json.loads((tmp_path / "out/keypoints.json").read_text())] == times


def test_a_film_of_an_address_is_answered_and_a_missing_one_named(capsys, answering, tmp_path):
    write_film(tmp_path / "film.mp4", 5)
    server = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", tmp_path]
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            address = re.search(r"http://[^ /]+/", process.stdout.readline())[0]
            said = stopped(capsys, f"{address}film.mp4", f"{address}missing.mp4", "--output", tmp_path / "out")
        finally:
            process.terminate()
    assert "missing.mp4 is no film that can be read" in said and "1 could not be answered" in said
    assert len(json.loads((tmp_path / "out/keypoints.json").read_text())) == 5
    assert list((tmp_path / "out").rglob("film.mp4"))


def test_sides_that_are_odd_and_a_film_of_one_pixel_can_be_drawn(answering, tmp_path):
    for size in ((161, 121), (1, 1)):
        frames = [(number, picture(size, number)) for number in range(5)]
        writer = FilmWriter(tmp_path / f"{size[0]}.mp4", None)
        for number, image in frames:
            writer.add(image, 40 * number)
        writer.close()
        with Film(str(tmp_path / f"{size[0]}.mp4")) as film:
            assert {frame.image.size for frame in film.frames()} == {(size[0] + size[0] % 2, size[1] + size[1] % 2)}
    run(tmp_path / "1.mp4", "--output", tmp_path / "out")
    assert len(json.loads((tmp_path / "out/keypoints.json").read_text())) == 5


def stopped(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code not in (0, None)
    return str(stop.value.code)


def test_a_film_without_frames_and_what_is_no_film_end_in_a_sentence(capsys, answering, tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        audio = out.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        out.mux(audio.encode(frame))
        out.mux(audio.encode(None))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mkv").write_text("no film at all " * 100)
    whole = write_film(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "head.mp4").write_bytes(whole[: len(whole) // 2])  # its table of contents was at the end
    said = stopped(capsys, tmp_path, tmp_path / "missing.mp4", "--output", tmp_path / "out")
    assert "sound.mp4 cannot be read: it has no picture" in said
    assert "empty.mp4 is no film that can be read" in said and "text.mkv is no film that can be read" in said
    assert "head.mp4 is no film that can be read" in said
    assert "no film" in said and "missing.mp4" in said
    assert "5 could not be answered" in said and "Traceback" not in said
    assert len(json.loads((tmp_path / "out/keypoints.json").read_text())) == 20  # of the whole one


def test_a_film_that_is_cut_off_is_answered_as_far_as_it_goes(capsys, answering, tmp_path):
    write_film(tmp_path / "film.mp4", 40, sound="aac", options={"movflags": "+faststart"})
    whole = (tmp_path / "film.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    said = stopped(capsys, tmp_path / "cut.mp4", "--output", tmp_path / "out")
    assert "cut.mp4 is cut off" in said and "1 could not be answered" in said
    count = len(json.loads((tmp_path / "out/keypoints.json").read_text()))
    assert 5 < count < 35
    with Film(str(tmp_path / "out/cut.mp4")) as film:
        assert len(list(film.frames())) == count


def test_an_unknown_codec_ends_in_a_sentence(capsys, answering, tmp_path):
    data = write_film(tmp_path / "film.mp4").read_bytes()
    (tmp_path / "strange.mp4").write_bytes(data.replace(b"avc1", b"zz99"))
    said = stopped(capsys, tmp_path / "strange.mp4", "--output", tmp_path / "out")
    assert "strange.mp4 cannot be read: its codec is not known here" in said


def test_damaged_packets_cost_only_themselves(capsys, answering, tmp_path):
    data = bytearray(write_film(tmp_path / "film.avi", 40, codec="mpeg4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = b"\0" * 400
    (tmp_path / "damaged.avi").write_bytes(data)
    try:
        run(tmp_path / "damaged.avi", "--output", tmp_path / "out")
    except SystemExit as stop:
        assert "damaged.avi" in str(stop.code)
    assert len(json.loads((tmp_path / "out/keypoints.json").read_text())) > 25


def test_a_size_that_changes_is_said_and_all_frames_are_answered(capsys, answering, tmp_path):
    parts = [write_film(tmp_path / f"{width}.ts", 10, size=(width, 120)) for width in (160, 240)]
    (tmp_path / "film.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    run(tmp_path / "film.ts", "--output", tmp_path / "out")
    assert "film.ts changes its size from 160x120 to 240x120 at frame 10." in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out/keypoints.json").read_text())) == 20
    with Film(str(tmp_path / "out/film.mp4")) as film:
        assert [frame.image.size for frame in film.frames()] == [(160, 120)] * 20


def test_a_long_film_takes_the_memory_of_a_short_one(tmp_path):
    code = """import resource, sys
from handunet.films import Film, FilmWriter
from pathlib import Path
with Film(sys.argv[1]) as film:
    writer = FilmWriter(Path(sys.argv[2]), film)
    for frame in film.frames(writer.add_sound):
        writer.add(frame.image, frame.pts)
        if frame.number in (300, 1499):
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    writer.close()"""
    write_film(tmp_path / "film.mp4", 1500, sound="aac")
    command = [sys.executable, "-c", code, tmp_path / "film.mp4", tmp_path / "out.mp4"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    early, late = map(int, result.stdout.split())
    assert late - early < 6000  # KiB


def test_a_full_disk_ends_the_film_in_a_sentence_and_keeps_what_there_is(tmp_path):
    """In a process of its own, whose files cannot grow beyond a limit."""
    write_film(tmp_path / "film.mp4", 100, size=(320, 240), sound="aac")
    code = """import resource, sys
import handunet.predict as predict, tests.test_films as test
import numpy as np
predict.Run.load = lambda run: setattr(run, "models", 1)
predict.Run.tracker = lambda run: lambda photo, seconds: [test.HAND]
from PIL import Image
random = np.random.default_rng(0)
def noisy(run, photo, hands):
    return Image.fromarray(random.integers(0, 255, (240, 320, 3), dtype=np.uint8))
predict.Run.draw = noisy
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
predict.main(sys.argv[2:])"""
    for limit, file in ((1_600_000, "film.mp4"), (60_000, "keypoints.json")):
        output = tmp_path / f"of {file}"
        command = [sys.executable, "-c", code, limit, tmp_path / "film.mp4", "--output", output]
        command += ["--no_drawings"] if file == "keypoints.json" else ["--format", "csv"]
        result = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
        assert f"{file} cannot be written: File too large" in result.stderr
        if file == "film.mp4":
            with Film(str(output / file)) as film:
                assert len(list(film.frames())) >= 10
        else:
            assert len(json.loads((output / file).read_text())) >= 5


def test_a_killed_film_can_be_played(tmp_path):
    code = """import os, sys
from pathlib import Path
from handunet.films import FilmWriter
from tests.drawn_films import picture
writer = FilmWriter(Path(sys.argv[1]), None)
for number in range(200):
    writer.add(picture(number=number % 100), 40 * number)
os.kill(os.getpid(), 9)"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "film.mp4"], cwd=ROOT, timeout=300, check=False)
    with Film(str(tmp_path / "film.mp4")) as film:
        assert len(list(film.frames())) >= 75
