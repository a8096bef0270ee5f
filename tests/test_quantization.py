"""Files in 8 bits: what is folded is exact, and the answers stay near those of the file they are made of."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[onnx]'")

from handunet.quantization import (
    LEAST_SHARE,
    Graph,
    border_map,
    calibration_inputs,
    channel_factors,
    eight_bits,
    quantize,
    session,
)

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "handunet" / "models" / "float32" / "pose.onnx"
EXAMPLES = ROOT / "demo" / "space" / "examples"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """A folder with the Space's examples, a hand in the middle of each, as a COCO file."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "images").mkdir()
    images, hands = [], []
    for index, path in enumerate(sorted(EXAMPLES.glob("*.jpg"))):
        shutil.copy(path, folder / "images")
        with Image.open(path) as image:
            width, height = image.size
        images.append({"id": index, "file_name": path.name, "width": width, "height": height})
        box = [width * 0.27, height * 0.27, width * 0.45, height * 0.45]
        hands.append({"image_id": index, "bbox": box, "handedness": ("right", "left")[index % 2]})
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": hands}))
    return folder


@pytest.fixture(scope="module")
def inputs(photographs) -> list[np.ndarray]:
    return calibration_inputs(photographs, json.loads(session(str(MODEL)).get_modelmeta().custom_metadata_map["handunet"]))


def test_the_border_lacks_what_lies_in_the_padding():
    shifts = np.arange(1.0, 10.0).reshape(1, 3, 3)  # of the taps: 1 2 3, 4 5 6, 7 8 9
    missing = border_map(shifts, 4, 5)
    assert missing.shape == (1, 1, 4, 5) and (missing[0, 0, 1:-1, 1:-1] == 0).all()
    corners = [missing[0, 0, y, x] for y in (0, -1) for x in (0, -1)]
    assert corners == [-(1 + 2 + 3 + 4 + 7), -(1 + 2 + 3 + 6 + 9), -(1 + 4 + 7 + 8 + 9), -(3 + 6 + 7 + 8 + 9)]
    assert missing[0, 0, 0, 2] == -6 and missing[0, 0, -1, 2] == -24
    assert missing[0, 0, 2, 0] == -12 and missing[0, 0, 2, -1] == -18


def test_eight_bits_hold_their_range_and_zero_exactly():
    values = eight_bits(-1.0, 4.0)
    assert values["zero_point"] == 51 and values["scale"] == pytest.approx(5 / 255)
    assert eight_bits(0.0, 1.0)["zero_point"] == 0


def test_channels_are_scaled_to_one_and_those_that_are_never_active_not_without_end():
    assert channel_factors(np.array([0.5, 2.0, 0.0])).tolist() == [2.0, 0.5, 0.5 / LEAST_SHARE]
    assert np.isfinite(channel_factors(np.zeros(3))).all()


def test_photographs_for_training_are_taken_and_others_left(photographs, tmp_path):
    settings = {"kind": "detector", "image_size": 64, "rescale_factor": 1 / 255, "image_mean": [0] * 3, "image_std": [1] * 3}
    count = len(list(EXAMPLES.glob("*.jpg")))
    assert sum(map(len, calibration_inputs(photographs, settings))) == count
    shutil.copytree(photographs, tmp_path / "split")
    coco = json.loads((photographs / "annotations.json").read_text())
    for index, image in enumerate(coco["images"]):
        image["split"] = "train" if index == 0 else "validation"
    (tmp_path / "split" / "annotations.json").write_text(json.dumps(coco))
    (batch,) = calibration_inputs(tmp_path / "split", settings)
    assert batch.shape == (1, 3, 64, 64) and 0 <= batch.min() < batch.max() <= 1
    for image in coco["images"]:
        image["split"] = "validation"
    (tmp_path / "split" / "annotations.json").write_text(json.dumps(coco))
    with pytest.raises(ValueError, match="has no photographs for training"):
        calibration_inputs(tmp_path / "split", settings)


@pytest.mark.slow
def test_folding_and_scaling_change_no_answer(inputs):
    import onnx

    graph = Graph(onnx.load(MODEL))
    expected = session(str(MODEL)).run(["heatmaps"], {"pixel_values": inputs[0]})[0]
    for step in (graph.fold, lambda: graph.equalize(inputs)):
        step()
        assert not any(node.op_type == "BatchNormalization" for node in graph.model.graph.node)
        found = session(graph.model).run(["heatmaps"], {"pixel_values": inputs[0]})[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_the_file_in_8_bits_is_smaller_and_answers_nearly_the_same(inputs, photographs, tmp_path):
    quantize(MODEL, tmp_path / "model.onnx", photographs)
    assert (tmp_path / "model.onnx").stat().st_size < 0.4 * MODEL.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    before, after = session(str(MODEL)), session(str(tmp_path / "model.onnx"))
    assert after.get_modelmeta().custom_metadata_map == before.get_modelmeta().custom_metadata_map
    for batch in (inputs[0], inputs[0][:1]):
        expected, found = (run.run(["keypoints", "scores"], {"pixel_values": batch}) for run in (before, after))
        assert found[0].shape == expected[0].shape
        clear = expected[1] >= 0.5
        assert clear.sum() >= 10
        assert np.linalg.norm(found[0] - expected[0], axis=-1)[clear].mean() <= 1.0
        np.testing.assert_allclose(found[1], expected[1], atol=0.2)
