import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import modeling_handunet
import predict
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor


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


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
    predict.main()


def test_drawings_and_keypoints_are_written(monkeypatch, tmp_path, model, photo):
    output = tmp_path / "out"
    run(monkeypatch, photo, photo, "--model", model, "--output", output, "--boxes", "10,20,30,40", "50,5,60,60", "--left")
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
        (["PHOTO", "--boxes", "1,2,3"], "not x,y,width,height"),
        (["PHOTO", "--boxes", "1,2,nan,4"], "box"),
    ],
)
def test_what_cannot_be_used_ends_in_a_sentence(monkeypatch, capsys, tmp_path, model, photo, arguments, sentence):
    arguments = [photo if argument == "PHOTO" else argument for argument in arguments]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *arguments, "--model", model, "--output", tmp_path / "out")
    assert sentence in f"{stop.value} {capsys.readouterr().err}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_photograph_is_never_written_over(monkeypatch, tmp_path, model, photo, backend):
    before = photo.read_bytes()
    arguments = ["--backend", "onnx", "--model", model / "config.json"] if backend == "onnx" else ["--model", model]
    try:
        with pytest.raises(SystemExit, match=f"--output {tmp_path} would write over {photo}"):
            run(monkeypatch, photo, *arguments, "--output", tmp_path)
    finally:
        monkeypatch.setitem(sys.modules, "modeling_handunet", modeling_handunet)  # `--backend onnx` leaves torch out
    assert photo.read_bytes() == before
    with pytest.raises(SystemExit, match="is a file: name a folder"):
        run(monkeypatch, photo, "--model", model, "--output", photo)


def test_without_a_model_named_the_repositorys_own_is_taken(monkeypatch, tmp_path, photo):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, photo, "--output", tmp_path / "out")
    ((hand,),) = [entry["hands"] for entry in json.loads((tmp_path / "out" / "keypoints.json").read_text())]
    assert len(hand["keypoints"]) == 21 and hand["score"] < 0.5  # there is none in noise


def test_a_checkout_without_weights_is_said_to_be_one(monkeypatch, capsys, tmp_path, photo):
    monkeypatch.setattr(predict, "DEFAULT_MODEL", str(tmp_path / "weights"))
    with pytest.raises(SystemExit):
        run(monkeypatch, photo)
    assert f"there is no model in {tmp_path / 'weights'}: name one with --model" in capsys.readouterr().err
