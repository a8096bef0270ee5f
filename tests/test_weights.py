"""The weights that the repository carries: their shape, what they promise, and what they do on photographs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModelForPoseEstimation, pipeline

from handunet.export import export
from modeling_handunet import HandUNetConfig, decode_heatmaps
from modeling_handunet.heatmaps import calibrate_scores
from scripts.readme_figures import measure, read_metrics
from tests.tiny_training import forked

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("handunet", "handunet-base")
# By the protocol on real photographs, the mean over their sources: (error over box, PCK@0.1, PCK@0.2), as measured.
MEASURED = {
    name: tuple(read_metrics(ROOT / "weights" / name)["photographs"][key] for key in ("error_over_box", "pck@0.1", "pck@0.2"))
    for name in NAMES
}
# The calibration errors on validation and on test that each keeps below.  0.05 is aimed at; handunet-base misses it.
CALIBRATION = {"handunet": {"validation": 0.05, "test": 0.05}, "handunet-base": {"validation": 0.06, "test": 0.06}}
every_model = pytest.mark.parametrize("name", MEASURED)


def load(name: str):
    return AutoModelForPoseEstimation.from_pretrained(ROOT / "weights" / name, trust_remote_code=False).eval()


def test_handunet_is_the_published_network_and_handunet_base_a_larger_one_within_bounds():
    small, base = load("handunet"), load("handunet-base")
    assert tuple(small.config.hidden_sizes) == tuple(HandUNetConfig().hidden_sizes) and small.num_parameters() == 491_206
    assert small.config.image_size == base.config.image_size == 128
    assert small.num_parameters() < base.num_parameters() <= 3_500_000
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        base(torch.zeros(1, 3, 128, 128))
    assert flops.get_total_flops() <= 3e9


@every_model
def test_the_files_say_where_the_weights_come_from(name):
    folder = ROOT / "weights" / name
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md", ".png"}
    card = (folder / "README.md").read_text()
    for words in ("apache-2.0", "3d-hands-benchmark", "MediaPipe Hands", "webxr-input-profiles"):
        assert words in card
    for picture in folder.glob("figures/*.png"):
        assert f"figures/{picture.name}" in card
    settings = json.loads((folder / "training_arguments.json").read_text())
    assert "scenes" in (settings["difficulty"], *settings["dataset"])
    assert not any(str(value).startswith("/") for value in settings.values())
    metrics = json.loads((folder / "metrics.json").read_text())
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor.temperature == pytest.approx(metrics["calibration"]["temperature"], abs=1e-3) != 1.0
    assert processor.score_offset == pytest.approx(metrics["calibration"]["offset"], abs=1e-3) != 0.0
    for split, most in CALIBRATION[name].items():
        assert metrics["calibration"][split]["expected_calibration_error"] <= most


@pytest.mark.slow
@every_model
def test_the_exported_file_gives_what_torch_gives_on_photographs(name, tmp_path, shared_data):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install -e '.[onnx]'")
    model, processor = load(name), AutoImageProcessor.from_pretrained(ROOT / "weights" / name)
    export(model, processor, tmp_path / "model.onnx")
    folder = shared_data / "freihand_real" / "training" / "rgb"
    photos = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    pixel_values = processor(photos).pixel_values
    with torch.no_grad():
        outputs = model(pixel_values)
        keypoints, scores = decode_heatmaps(outputs.heatmaps)
        scores = calibrate_scores(scores, processor.temperature, processor.score_offset)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["heatmaps", "keypoints", "scores"], {"pixel_values": pixel_values.numpy()})
    np.testing.assert_allclose(found[0], outputs.heatmaps, atol=1e-4)
    np.testing.assert_allclose(found[1], keypoints, atol=0.01)
    np.testing.assert_allclose(found[2], scores, atol=1e-4)


@every_model
def test_photographs_are_read_as_well_as_was_measured(name, shared_data):
    """By the protocol by which every model is scored on photographs of several sources."""
    found = measure(ROOT / "weights" / name, shared_data.parent / "tools" / "score_hands.py", shared_data / "coco_hands")
    error, close, near = MEASURED[name]
    assert found["error_over_box"] == pytest.approx(error, abs=0.002)
    assert found["pck@0.1"] == pytest.approx(close, abs=0.01) and found["pck@0.2"] == pytest.approx(near, abs=0.01)


@pytest.mark.slow
@every_model
def test_train_py_scores_photographs_as_the_protocol_does(name, tmp_path, shared_data):
    annotations = shared_data / "coco_hands" / "annotations.json"
    data = ["--dataset", "coco", "--annotations", annotations, "--cache_dir", tmp_path / "cache"]
    status, log = forked(tmp_path, "--eval_only", "--json", "--model", ROOT / "weights" / name, *data)
    assert status == 0, log
    found = json.loads(log)["mean_over_sources"]
    figures = (found["mean_error_over_box"], found["pck@0.1"], found["pck@0.2"])
    # The protocol resizes twice, train.py once: of some 1,000 keypoints, a few lie on the other side of a limit.
    assert figures[0] == pytest.approx(MEASURED[name][0], abs=0.005)
    assert figures[1:] == pytest.approx(MEASURED[name][1:], abs=0.007)


@every_model
def test_every_page_states_the_figures_that_were_measured(name):
    shown = " | ".join(f"{value:.3f}" for value in MEASURED[name])
    pages = {page: (ROOT / page).read_text() for page in ("README.md", "docs/training.md")}
    for page, text in pages.items():
        assert any(f"`weights/{name}`" in line or f"`{name}`" in line for line in text.splitlines() if shown in line), page
    error, close, near = MEASURED[name]
    card = " ".join((ROOT / "weights" / name / "README.md").read_text().split())
    assert f"error over box {error:.3f}, PCK@0.1 {close:.3f}, PCK@0.2 {near:.3f}" in card
    metrics = json.loads((ROOT / "weights" / name / "metrics.json").read_text())
    calibration = metrics["calibration"]["validation"]["expected_calibration_error"]
    assert re.search(rf"expected calibration error is {calibration:.3f} (there|on validation)", card)


def test_a_hand_that_the_project_drew_is_found_on_its_picture():
    """The Space's example pictures carry the boxes of their hands."""
    examples = ROOT / "demo" / "space" / "examples"
    find = pipeline("keypoint-detection", model=str(ROOT / "weights" / "handunet-base"))
    for example in json.loads((examples / "examples.json").read_text()):
        (hand,) = find(str(examples / example["file"]), boxes=[example["box"]], handedness=example["handedness"])
        points = np.array([(point["x"], point["y"]) for point in hand["keypoints"]])
        x, y, width, height = example["box"]
        middle = np.array([x + width / 2, y + height / 2])
        assert (np.abs(points - middle) <= 0.75 * max(width, height)).all() and hand["score"] > 0.3
