import csv
import gc
import io
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import handunet.backends
import handunet.predict
import modeling_handunet
from handunet.answers import Answers
from handunet.backends import OWN_MODEL, OWN_MODELS, choose
from handunet.progress import shown
from handunet.sources import find, free_place, stem_of
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from tests.small_detector import write_detector

ROOT = Path(__file__).resolve().parents[1]
ANSWER = {
    "label": "right hand",
    "score": 0.9,
    "hand_score": 0.8,
    "box": {"xmin": 1.0, "ymin": 2.0, "xmax": 3.0, "ymax": 4.0},
    "keypoints": [{"name": "wrist", "x": 5.0, "y": 6.0, "score": 0.7}, {"name": "thumb_1", "x": 7.0, "y": 8.0, "score": 0.8}],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8))).save_pretrained(folder)
    HandUNetImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "hand.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def detector(tmp_path):
    pytest.importorskip("onnx")
    return write_detector(tmp_path / "detector.onnx")


@pytest.fixture
def answering(monkeypatch):
    """Let every photograph be answered at once, with `ANSWER` or the hands that the test puts into the list."""
    hands = [ANSWER]
    monkeypatch.setattr(handunet.predict.Run, "load", lambda run: setattr(run, "models", "networks"))
    monkeypatch.setattr(handunet.predict.Run, "find", lambda run, photo: list(hands))
    return hands


def run(*arguments):
    handunet.predict.main([str(argument) for argument in arguments])


def run_own_model(*arguments):
    pytest.importorskip("onnxruntime")
    run(*arguments, "--model", OWN_MODEL)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_drawings_and_keypoints_are_written(tmp_path, model, photo, backend):
    output, chosen = tmp_path / "out", model if backend == "torch" else OWN_MODEL
    boxes = ["10,20,30,40", "50,5,60,60"]
    run(photo, photo, "--model", chosen, "--backend", backend, "--output", output, "--boxes", *boxes, "--left")
    answers = json.loads((output / "keypoints.json").read_text())
    assert [answer["photo"] for answer in answers] == [str(photo)] * 2
    for answer in answers:
        assert [hand["label"] for hand in answer["hands"]] == ["left hand"] * 2
        assert answer["hands"][0]["box"] == {"xmin": 10, "ymin": 20, "xmax": 40, "ymax": 60}
        assert len(answer["hands"][1]["keypoints"]) == 21
    for name in ("hand.png", "hand-2.png"):
        drawing = np.asarray(Image.open(output / name))
        assert drawing.shape == (90, 120, 3)
        assert (drawing != np.asarray(Image.open(photo))).any()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["missing.jpg"], "no image file 'missing.jpg'"),
        (["PHOTO", "--boxes", "500,500,10,10"], "outside the image of 120x90"),
        (["PHOTO", "--boxes", "image", "1,2,3,4"], "give no other boxes"),
        (["PHOTO", "--left", "--right"], "not allowed with argument"),
        (["PHOTO", "--camera", "0"], "name photographs, films or folders, or give --camera or --dataset"),
        ([], "name photographs, films or folders, or give --camera or --dataset"),
        (["PHOTO", "--max_hands", "0"], "not a number from 1"),
        (["PHOTO", "--every", "-1"], "not a number from 0"),
        (["PHOTO", "--boxes", "1,2,3"], "not x,y,width,height"),
        (["PHOTO", "--boxes", "1,2,nan,4"], "not a box"),
        (["PHOTO", "--boxes", "1,2,0,4"], "not a box"),
        (["none*.jpg"], "No photograph and no film matches none*.jpg"),
    ],
)
def test_what_cannot_be_used_ends_in_a_sentence(capsys, tmp_path, photo, detector, arguments, sentence):
    arguments = [photo if argument == "PHOTO" else argument for argument in arguments]
    with pytest.raises(SystemExit) as stop:
        run_own_model(*arguments, "--output", tmp_path / "out", "--detector", detector)
    assert sentence in f"{stop.value} {capsys.readouterr().err}"
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_read_costs_only_itself_and_is_named_at_the_end(answering, tmp_path, photo):
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:3000])
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "cut.png", photo, tmp_path / "missing.jpg", "--output", tmp_path / "out")
    assert "2 could not be answered" in stop.value.code and stop.value.code != 0
    assert "cut.png" in stop.value.code and "missing.jpg" in stop.value.code
    assert [entry["photo"] for entry in json.loads((tmp_path / "out/keypoints.json").read_text())] == [str(photo)]
    assert (tmp_path / "out/hand.png").is_file()


def test_photographs_are_answered_one_by_one_and_leave_the_memory(monkeypatch, answering, tmp_path, photo):
    earlier, output = [], tmp_path / "out"

    def find_hands(run, image):
        gc.collect()
        assert [reference() for reference in earlier] == [None] * len(earlier)
        if earlier:
            assert len(json.loads((output / "keypoints.json").read_text())) == len(earlier)
            assert len(list(output.glob("*.png"))) == len(earlier)
        earlier.append(weakref.ref(image))
        return [ANSWER]

    monkeypatch.setattr(handunet.predict.Run, "find", find_hands)
    run(*[photo] * 4, "--output", output)
    assert len(earlier) == 4


@pytest.mark.parametrize("boxes", [["-20,8,60,60"], ["10,10,50,50", "-20,8,60,60"], ["-0.5,-1e1,60,60"]])
def test_a_box_may_begin_outside_the_photograph(tmp_path, photo, boxes):
    run_own_model(photo, "--output", tmp_path / "out", "--boxes", *boxes)
    ((*_, hand),) = [entry["hands"] for entry in json.loads((tmp_path / "out/keypoints.json").read_text())]
    assert hand["box"]["xmin"] == float(boxes[-1].split(",")[0])


def test_folders_patterns_and_names_with_brackets_are_found(tmp_path):
    names = ["a/1.jpg", "a/2.HEIC", "a/notes.txt", "a/._1.jpg", "a/b/3.png", "a/b/1.MP4", "a/[1].jpg", "a/.thumbnails/1.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()

    def found(*words, output="out"):
        problems = []
        words = [word if "://" in word else f"{tmp_path}/{word}" for word in words]
        files = [source.name for source in find(words, tmp_path / output, problems.append)]
        return [str(Path(file).relative_to(tmp_path)) if "://" not in file else file for file in files], problems

    assert found("a") == (["a/1.jpg", "a/2.HEIC", "a/[1].jpg", "a/b/1.MP4", "a/b/3.png"], [])
    assert found("a", output="a/b") == (["a/1.jpg", "a/2.HEIC", "a/[1].jpg"], [])  # drawings of an earlier run
    assert found("a/**/*.png", "a/[1].jpg") == (["a/b/3.png", "a/[1].jpg"], [])
    assert found("http://host/*.jpg", "missing.jpg") == (["http://host/*.jpg", "missing.jpg"], [])
    nothing, (folder, pattern) = found("empty", "a/*.gif")
    assert nothing == [] and "empty holds no photograph" in folder and "No photograph and no film matches" in pattern
    assert [source.is_film for source in find([f"{tmp_path}/a/b"], tmp_path, print)] == [True, False]
    (no_address,) = find(["http://[/x.mp4"], tmp_path, print)
    assert no_address.place == "photo" and not no_address.is_film


def test_each_photograph_has_a_drawing_of_its_own(tmp_path):
    photographs = ["a/hand.jpg", "b/Hand.png", "what?.jpg", "http://host/my%20h%C3%A4nd.jpg?size=2", "http://host/", "x" * 200]
    expected = ["hand", "Hand-2", "what?", "my händ", "photo", "x" * 100, "photo-2"]
    taken = set()
    assert [free_place(stem_of(name), taken) for name in [*photographs, "data:image/png;base64,aaaa"]] == expected
    for name in ("1.jpg", "1.png", "b/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [source.place for source in find([str(tmp_path)], tmp_path / "out", print)] == ["1", "1-2", "b/1"]


def test_names_come_from_standard_input_one_by_one(monkeypatch, capsys, answering, tmp_path, photo):
    names = f"{photo}\n\nmissing.jpg\r\n{photo}".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names)))
    with pytest.raises(SystemExit, match=r"1 could not be answered:\n.*missing\.jpg"):
        run("-", "--output", tmp_path / "out", "--no_drawings", "--format", "jsonl")
    answers = [json.loads(line) for line in (tmp_path / "out/keypoints.jsonl").read_text().splitlines()]
    assert [answer["photo"] for answer in answers] == [str(photo)] * 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["keypoints.jsonl"]


def test_of_many_problems_the_first_are_named_and_all_are_in_a_file(answering, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(*(f"missing{index}.jpg" for index in range(30)), "--output", tmp_path / "out")
    assert "30 could not be answered" in stop.value.code and "10 more: " in stop.value.code
    assert "missing19.jpg" in stop.value.code and "missing20.jpg" not in stop.value.code
    assert len((tmp_path / "out/problems.txt").read_text().splitlines()) == 30


def test_a_photograph_is_never_written_over(answering, tmp_path, photo):
    before = photo.read_bytes()
    with pytest.raises(SystemExit, match=f"--output {tmp_path} would write over {photo}"):
        run(photo, "--output", tmp_path)
    assert photo.read_bytes() == before
    with pytest.raises(SystemExit, match="is a file: name a folder"):
        run(photo, "--output", photo)


def test_every_format_is_whole_after_each_photograph(tmp_path):
    for format in ("json", "jsonl", "csv"):
        answers = Answers(tmp_path, format)
        for count in (1, 2, 3):
            answers.add("a\udcff.jpg", [ANSWER, ANSWER])
            text = (tmp_path / f"keypoints.{format}").read_text(encoding="utf-8", errors="surrogateescape")
            if format == "csv":
                rows = list(csv.DictReader(text.splitlines()))
                assert len(rows) == count * 2 * 2
                assert rows[-1] == {
                    "photo": "a\udcff.jpg", "frame": "", "time": "", "hand": "1", "id": "", "label": "right hand",
                    "hand_score": "0.8", "keypoints_score": "0.9", "xmin": "1.0", "ymin": "2.0", "xmax": "3.0", "ymax": "4.0",
                    "keypoint": "thumb_1", "x": "7.0", "y": "8.0", "score": "0.8",
                }  # fmt: skip
            else:
                entries = json.loads(text) if format == "json" else [json.loads(line) for line in text.splitlines()]
                assert entries == [{"photo": "a\udcff.jpg", "hands": [ANSWER, ANSWER]}] * count
        answers.close()
    assert text.count("\n") == 1 + 3 * 4
    whole = (tmp_path / "keypoints.json").read_text()
    assert whole == json.dumps(json.loads(whole), indent=2) + "\n"


def test_a_name_is_printed_on_any_terminal(tmp_path, photo):
    assert shown("händ\n\x1b[2J\udcff.png") == r"händ\n\x1b[2J\udcff.png"
    pytest.importorskip("onnxruntime")
    strange = os.fsencode(tmp_path) + b"/\xff\n\xe2\x98\x83.png"
    os.rename(photo, strange)
    command = [sys.executable, "-m", "handunet", strange, b"missing\xff.jpg", "--model", OWN_MODEL]
    command += ["--output", tmp_path / "out", "--boxes", "image"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300)
    assert result.returncode == 1 and b"Traceback" not in result.stderr
    assert rb"\udcff\n\u2603.png: no clear " in result.stdout
    assert rb"missing\udcff.jpg" in result.stderr
    (entry,) = json.loads((tmp_path / "out/keypoints.json").read_text())
    assert os.fsencode(entry["photo"]) == strange


def test_where_there_is_no_clear_hand_words_and_drawing_say_so(capsys, answering, tmp_path):
    Image.new("RGB", (120, 90)).save(tmp_path / "black.png")
    points = [{"name": str(index), "x": 40.0 + index, "y": 50.0, "score": 0.2} for index in range(21)]
    hand = {"label": "right hand", "score": 0.2, "box": {}, "keypoints": points}
    answering[:] = [hand]
    run(tmp_path / "black.png", "--output", tmp_path / "out")
    assert "black.png: no clear right hand, score only 0.20. Give the hand's box" in capsys.readouterr().out
    drawing = np.asarray(Image.open(tmp_path / "out/black.png")).astype(int)
    assert np.ptp(drawing, axis=2).max() == 0  # grey, and no finger's colour
    assert drawing[50, 40:60].max() < 120  # faint
    assert drawing[:45].max() > 200  # the label above
    answering.clear()
    run(tmp_path / "black.png", "--output", tmp_path / "out")
    assert "black.png: no hand found. Give the hand's box" in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "out/black.png")).max() == 0


def test_a_picture_of_one_pixel_and_a_folder_without_pictures_end_well(capsys, tmp_path, detector):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    run_own_model(tmp_path / "one.png", "--output", tmp_path / "out", "--detector", detector)
    assert len(json.loads((tmp_path / "out/keypoints.json").read_text())) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="The folder .*empty holds no photograph and no film"):
        run_own_model(tmp_path / "empty", "--output", tmp_path / "none", "--detector", detector)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_five_hundred_boxes_are_five_hundred_hands(tmp_path, photo):
    boxes = [f"{index % 20},{index // 20},60,50" for index in range(500)]
    run_own_model(photo, "--output", tmp_path / "out", "--no_drawings", "--right", "--boxes", *boxes)
    (answer,) = json.loads((tmp_path / "out/keypoints.json").read_text())
    assert len(answer["hands"]) == 500


def test_a_network_that_answers_nan_says_so(tmp_path, photo, model):
    network = HandUNetForPoseEstimation.from_pretrained(model)
    pipe = modeling_handunet.HandKeypointDetectionPipeline(network.eval(), image_processor=HandUNetImageProcessor())
    with torch.no_grad():
        network.head.weight[3] = torch.nan
    with pytest.raises(ValueError, match=r"answered NaN for hand 0.* load them again"):
        pipe(str(photo), boxes="image")


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, model):
    network = HandUNetForPoseEstimation.from_pretrained(model)
    with torch.no_grad():
        network.head.weight[3, 0, 0, 0] = torch.nan
        network.down[0][3].running_var[1] = torch.inf
    network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"hold NaN or infinite values in down\.0\.3\.running_var; head\.weight: load another"):
        HandUNetForPoseEstimation.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "torch_is_there, cloned, model, backend, expected",
    [
        (True, True, None, None, ("torch", "CLONE")),
        (True, False, None, None, ("onnx", "OWN")),
        (False, True, None, None, ("onnx", "OWN")),
        (True, True, None, "onnx", ("onnx", "OWN")),
        (True, False, None, "torch", "there is no model in .*: name one with --model"),
        (True, True, "user/name", None, ("torch", "user/name")),
        (False, True, "user/name", None, r"user/name needs torch: pip install 'handunet\[torch\]'"),
        (True, True, "OWN", None, ("onnx", "OWN")),
        (True, True, "user/name", "onnx", "user/name is no file: run `handunet export user/name model.onnx`"),
        (False, True, "FOLDER", None, ("onnx", "EXPORTED")),
        (True, True, "FOLDER", None, ("torch", "FOLDER")),
        (True, True, "FOLDER", "onnx", ("onnx", "EXPORTED")),
    ],
)
def test_the_model_and_what_runs_it_fit_each_other(monkeypatch, tmp_path, torch_is_there, cloned, model, backend, expected):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/model.onnx").touch()
    clone = tmp_path if cloned else tmp_path / "none"
    places = {"FOLDER": tmp_path, "EXPORTED": tmp_path / "onnx/model.onnx", "OWN": OWN_MODEL, "CLONE": clone}
    monkeypatch.setattr(handunet.backends, "CLONE_MODEL", clone)
    monkeypatch.setattr(handunet.backends, "multiplies_8_bits_fast", lambda: False)
    monkeypatch.setattr(handunet.backends.importlib.util, "find_spec", lambda name: torch_is_there or None)
    model = str(places.get(model, model)) if model else None
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            choose(model, backend)
    else:
        assert choose(model, backend) == (expected[0], str(places.get(expected[1], expected[1])))


@pytest.mark.parametrize("torch_is_there", [False, True])
@pytest.mark.parametrize("is_fast, precision, chosen", [
    (True, None, "int8"), (False, None, "float32"), (True, "float32", "float32"), (False, "int8", "int8"),
])  # fmt: skip
def test_the_own_model_is_in_8_bits_where_they_are_fast_or_asked_for(monkeypatch, torch_is_there, is_fast, precision, chosen):
    monkeypatch.setattr(handunet.backends, "multiplies_8_bits_fast", lambda: is_fast)
    monkeypatch.setattr(handunet.backends.importlib.util, "find_spec", lambda name: torch_is_there or None)
    assert choose(None, "onnx", precision) == ("onnx", str(OWN_MODELS[chosen]))
    if precision:
        assert choose(None, None, precision) == ("onnx", str(OWN_MODELS[chosen]))
        for model, backend in (("weights/handunet", None), (str(OWN_MODEL), "onnx"), *([(None, "torch")] * torch_is_there)):
            with pytest.raises(ValueError, match="--precision is of the model that comes with the package"):
                choose(model, backend, precision)


@pytest.mark.parametrize("words, is_fast", [
    ("flags : fpu avx512f avx512_vnni", True), ("Features : fp asimddp", True), ("flags : fpu avx2", False),
])  # fmt: skip
def test_linux_says_whether_8_bits_are_fast(monkeypatch, words, is_fast):
    monkeypatch.setattr(Path, "read_text", lambda path: words)
    assert handunet.backends.multiplies_8_bits_fast() is is_fast
    monkeypatch.setattr(Path, "read_text", lambda path: Path("nowhere").read_bytes())
    assert handunet.backends.multiplies_8_bits_fast() is False


@pytest.mark.slow
def test_without_docstrings_the_programs_run(tmp_path, photo):
    own = ["-m", "handunet", photo, "--model", OWN_MODEL, "--output", tmp_path / "out", "--boxes", "image"]
    for command in (["predict.py", "--help"], own, ["-m", "handunet", "export", "--help"], ["train.py", "--help"]):
        result = subprocess.run([sys.executable, "-OO", *command], cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert result.returncode == 0, result.stderr


def test_shards_of_another_threshold_are_refused(tmp_path, photo):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -e '.[data]'")
    words = [str(photo), "--backend", "onnx", "--boxes", "10,10,50,50", "--format", "parquet", "--no_drawings"]
    words += ["--output", str(tmp_path / "out")]
    handunet.predict.main(words)
    with pytest.raises(SystemExit, match="was begun with detection_threshold None, not 0.5"):
        handunet.predict.main([*words, "--detection_threshold", "0.5"])
    words[words.index("parquet")] = "jsonl"
    with pytest.raises(SystemExit, match="was begun with format 'parquet', not 'jsonl'"):
        handunet.predict.main(words)
