"""torch and onnxruntime are two ways to the same hands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from handunet.backends import OWN_DETECTOR, OWN_MODEL, OWN_MODELS, OnnxHands, load
from modeling_handunet import HandUNetDetectorConfig, HandUNetDetectorImageProcessor, HandUNetForObjectDetection
from modeling_handunet.crops import Crop
from modeling_handunet.hands import FoundHand, find_hands
from tests.small_detector import write_detector

ROOT = Path(__file__).resolve().parents[1]
SMALL = str(ROOT / "weights" / "handunet")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[onnx]'")


@pytest.fixture
def photo() -> Image.Image:
    return Image.open(ROOT / "demo/space/examples/open.jpg").convert("RGB")



def test_the_packages_model_in_8_bits_finds_the_hands_of_photographs_by_the_detector_in_float32():
    small, whole = OnnxHands(str(OWN_MODELS["int8"])), OnnxHands(str(OWN_MODEL))
    assert Path(small.load_detector().file) == Path(whole.load_detector(twice=False).file) == OWN_DETECTOR
    assert Path(small.load_detector(twice=False).file) == OWN_MODELS["int8"].with_name("detector.onnx")

def test_torch_and_onnxruntime_read_the_same_keypoints(photo):
    crops = [Crop.around_box((119, 82, 211, 268), 128, 0.45), Crop.around_box((100, 80, 150, 90), 128, 0.45, mirrored=True)]
    points, scores, chances = load(SMALL, "torch", finds=False).read(photo, crops)
    other_points, other_scores, other_chances = OnnxHands(str(OWN_MODEL)).read(photo, crops)
    assert np.isnan(chances).all() and np.isnan(other_chances).all()  # this model has no hand classifier
    assert points.shape == (2, 21, 2) and scores.shape == (2, 21)
    np.testing.assert_allclose(points[0], other_points[0], atol=0.05)
    np.testing.assert_allclose(scores, other_scores, atol=1e-3)
    assert [values.shape for values in OnnxHands(str(OWN_MODEL)).read(photo, [])] == [(0, 21, 2), (0, 21), (0, 2)]


def test_a_detectors_boxes_are_moved_into_the_photograph(tmp_path):
    hands = [((0.25, 0.25, 0.75, 0.75), 0, 0.9), ((0.0, 0.125, 0.5, 1.0), 1, 0.6), ((0.1, 0.0, 0.3, 0.2), 0, 0.5)]
    models = OnnxHands(str(OWN_MODEL), str(write_detector(tmp_path / "detector.onnx", hands)))
    # 200 x 100: the square is 200 wide and begins 50 px above the photograph. The third hand is above it.
    assert models.detect(Image.new("RGB", (200, 100))) == [
        FoundHand((50.0, 0.0, 150.0, 100.0), "right", pytest.approx(0.9), (0.0, -1.0)),
        FoundHand((0.0, 0.0, 100.0, 100.0), "left", pytest.approx(0.6), (0.0, -1.0)),
    ]


def test_a_hand_is_found_and_read_without_boxes(tmp_path, photo):
    # open.jpg is 448 x 448.
    box = tuple(np.array([119, 82, 330, 350]) / 448)
    models = OnnxHands(str(OWN_MODEL), str(write_detector(tmp_path / "detector.onnx", [(box, 0, 0.9)])))
    (hand,) = find_hands(models, photo)
    assert hand["label"] == "right hand" and hand["score"] > 0.8 and hand["hand_score"] > 0.8


def test_a_detector_of_torch_is_the_one_that_is_named_or_the_clones(monkeypatch, tmp_path, photo):
    torch.manual_seed(0)
    network = HandUNetForObjectDetection(HandUNetDetectorConfig(image_size=64, hidden_sizes=(4, 8, 8), decoder_sizes=(8,)))
    network.save_pretrained(tmp_path / "detector")
    HandUNetDetectorImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "detector")
    named = load(SMALL, "torch", str(tmp_path / "detector"))
    assert named.detect(photo)
    pose = tmp_path / "pose"
    shutil.copytree(SMALL, pose, ignore=shutil.ignore_patterns("figures", "*.md"))
    monkeypatch.setattr("handunet.backends.CLONE_DETECTOR", tmp_path / "detector")
    assert load(str(pose), "torch").detect(photo) == named.detect(photo)
    monkeypatch.setattr("handunet.backends.CLONE_DETECTOR", tmp_path / "none")
    with pytest.raises(OSError, match="needs a hand detector, and there is none at .*detector"):
        load(str(pose), "torch")


def test_the_detector_beside_an_exported_model_is_its_own(tmp_path, photo):
    (tmp_path / "pose.onnx").write_bytes(OWN_MODEL.read_bytes())
    write_detector(tmp_path / "detector.onnx", [((0, 0, 1, 1), 1, 0.75)])
    assert [hand.side for hand in load(str(tmp_path / "pose.onnx"), "onnx").detect(photo)] == ["left"]


def test_a_file_of_the_other_kind_and_a_missing_detector_end_in_a_sentence(monkeypatch, tmp_path, photo):
    detector = str(write_detector(tmp_path / "other.onnx"))
    with pytest.raises(OSError, match=r"other\.onnx is a detector model, and a pose model is needed here"):
        OnnxHands(detector)
    with pytest.raises(OSError, match=r"pose\.onnx is a pose model, and a detector model is needed here"):
        OnnxHands(str(OWN_MODEL), str(OWN_MODEL)).detect(photo)
    monkeypatch.setattr("handunet.backends.OWN_DETECTOR", tmp_path / "none.onnx")
    (tmp_path / "pose.onnx").write_bytes(OWN_MODEL.read_bytes())
    models = OnnxHands(str(tmp_path / "pose.onnx"))
    with pytest.raises(OSError, match=r"no hand detector at .*detector\.onnx: name a file .* --detector, or .* --boxes"):
        models.detect(photo)
    assert len(find_hands(models, photo, [(10, 10, 50, 50)])) == 1


def test_the_onnx_route_imports_neither_torch_nor_transformers(tmp_path):
    write_detector(tmp_path / "detector.onnx")
    code = f"""import sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "huggingface_hub"]))
from PIL import Image
from handunet.backends import load
models = load({str(OWN_MODEL)!r}, "onnx", {str(tmp_path / "detector.onnx")!r})
from modeling_handunet.hands import find_hands
print(len(find_hands(models, Image.new("RGB", (64, 48)), detection_threshold=0)))"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.stdout == "1\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only Unix forks")
def test_a_forked_process_that_frees_a_session_of_its_parent_ends():
    """Its threads live in the parent alone: to free it, the child would wait for them for ever."""
    script = """
import gc, os, signal, sys
from handunet.backends import OWN_MODEL, open_onnx
class Loop: pass
gc.disable()
loop = Loop()
loop.itself, (loop.session, _) = loop, open_onnx(str(OWN_MODEL))
del loop
child = os.fork()
if not child:
    signal.alarm(20)
    gc.collect()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=120).returncode == 0
