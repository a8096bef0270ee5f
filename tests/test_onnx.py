"""The ONNX export gives what torch gives, on photographs, and runs without torch."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from handunet.export import check
from handunet.graphs import graph_of, settings_of
from modeling_handunet import (
    KEYPOINT_NAMES,
    HandUNetConfig,
    HandUNetDetectorConfig,
    HandUNetDetectorImageProcessor,
    HandUNetForObjectDetection,
    HandUNetForPoseEstimation,
    HandUNetImageProcessor,
    decode_heatmaps,
)
from modeling_handunet.crops import Crop
from modeling_handunet.images import load_image

ROOT = Path(__file__).resolve().parents[1]
USAGE = ROOT / "docs" / "usage.md"
EXAMPLES = sorted((ROOT / "demo" / "space" / "examples").glob("*.jpg"))


def run(*command, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=500)


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A folder with a small untrained model of unusual settings and its export."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install -e '.[onnx]'")
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    model = HandUNetForPoseEstimation(HandUNetConfig(image_size=64, hidden_sizes=(4, 8), skeleton=((0, 1),), classifier_size=4))
    model.save_pretrained(folder / "model")
    options = {"image_mean": [0.25, 0.5, 0.75], "box_fill": 0.6, "temperature": 2, "score_offset": 0.5}
    processor = HandUNetImageProcessor(size={"height": 64, "width": 64}, **options)
    processor.save_pretrained(folder / "model")
    small_detector().save_pretrained(folder / "detector")
    HandUNetDetectorImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "detector")
    options = ["--all", folder / "nested", "--detector", folder / "detector"]
    result = run(ROOT / "scripts" / "export_onnx.py", folder / "model", *options, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr and "torchvision" not in result.stderr
    return folder


def small_detector() -> HandUNetForObjectDetection:
    """An untrained detector that finds many hands of both sides, large ones too, so that some are double."""
    torch.manual_seed(0)
    detector = HandUNetForObjectDetection(
        HandUNetDetectorConfig(image_size=64, hidden_sizes=(4, 8, 8), decoder_sizes=(8,))
    )
    with torch.no_grad():
        detector.train()(torch.randn(8, 3, 64, 64))
        detector.head.weight *= 2
        detector.head.bias[:2] = -2  # few cells are so sure that two scores are equal
    return detector.eval()


@pytest.fixture(scope="module")
def reference(shared_data, tmp_path_factory) -> Path:
    """A folder with converted weights that were trained on photographs and their export."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install -e '.[onnx]'")
    folder = tmp_path_factory.mktemp("reference")
    for command in (
        ("scripts.convert_shallow_unet", shared_data / "peer" / "model_final", folder / "model"),
        ("scripts.export_onnx", folder / "model", folder / "model.onnx"),
    ):
        result = run("-m", *command)
        assert result.returncode == 0, result.stderr
    return folder


def hold_to_torch(folder: Path, pixel_values: np.ndarray) -> None:
    """Heatmaps within 1e-4 and keypoints within 0.01 px of the network and decoder in torch."""
    model = HandUNetForPoseEstimation.from_pretrained(folder / "model")
    with torch.inference_mode():
        expected_heatmaps = model(torch.from_numpy(pixel_values)).heatmaps
    expected_keypoints, expected_scores = decode_heatmaps(expected_heatmaps)
    names = ["heatmaps", "keypoints", "scores"]
    heatmaps, keypoints, scores = session(folder / "model.onnx").run(names, {"pixel_values": pixel_values})
    assert keypoints.shape == (len(pixel_values), 21, 2) and keypoints.dtype == np.float32
    np.testing.assert_allclose(heatmaps, expected_heatmaps, atol=1e-4, rtol=0)
    np.testing.assert_allclose(keypoints, expected_keypoints, atol=0.01, rtol=0)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_graph_says_its_shapes_and_takes_any_batch(exported):
    onnx_model = session(exported / "nested" / "pose.onnx")
    shapes = {value.name: value.shape for value in (*onnx_model.get_inputs(), *onnx_model.get_outputs())}
    assert shapes == {
        "pixel_values": ["batch", 3, 64, 64],
        "heatmaps": ["batch", 21, 64, 64],
        "keypoints": ["batch", 21, 2],
        "scores": ["batch", 21],
        "chances": ["batch", 2],
    }
    for batch in (1, 2, 5):
        outputs = onnx_model.run(None, {"pixel_values": np.zeros((batch, 3, 64, 64), np.float32)})
        assert [len(output) for output in outputs] == [batch] * 4


@pytest.mark.slow
def test_the_metadata_holds_what_the_processor_does(exported):
    entries = session(exported / "nested" / "pose.onnx").get_modelmeta().custom_metadata_map
    settings = json.loads(entries["handunet"])
    assert settings["kind"] == "pose" and settings["image_size"] == 64 and settings["box_fill"] == 0.6
    assert settings["image_mean"] == [0.25, 0.5, 0.75] and settings["image_std"] == [0.1966, 0.1734, 0.1836]
    assert settings["rescale_factor"] == pytest.approx(1 / 255)
    assert settings["keypoint_names"] == list(KEYPOINT_NAMES) and settings["skeleton"] == [[0, 1]]
    assert settings["keypoint_colors"][:2] == [[230, 230, 230], [255, 99, 72]]


@pytest.mark.slow
@pytest.mark.parametrize("skip", [False, True])
def test_onnxruntime_prepares_the_file_for_quantisation(exported, tmp_path, skip):
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(exported / "nested" / "pose.onnx"), str(tmp_path / "prepared.onnx"), skip_symbolic_shape=skip)
    inputs = {"pixel_values": np.random.default_rng(0).random((3, 3, 64, 64), np.float32)}
    files = exported / "nested" / "pose.onnx", tmp_path / "prepared.onnx"
    given, prepared = (session(file).run(None, inputs) for file in files)
    for value, expected in zip(prepared, given):
        np.testing.assert_allclose(value, expected, atol=1e-3)


@pytest.mark.slow
def test_the_file_appears_whole_or_not_at_all(exported):
    files = sorted((exported / "nested").iterdir())
    assert [path.name for path in files] == ["detector.onnx", "pose.onnx"]
    assert not any(b".py" in path.read_bytes() for path in files)  # no paths of this machine


@pytest.mark.slow
def test_a_graph_that_differs_from_torch_is_not_let_through(exported):
    model = HandUNetForPoseEstimation.from_pretrained(exported / "model")
    graph = graph_of(model, HandUNetImageProcessor(temperature=2, score_offset=0.5))
    check(graph, exported / "nested" / "pose.onnx")
    with torch.no_grad():
        model.head.weight += 0.01
    with pytest.raises(RuntimeError, match=r"heatmaps for a batch of 1, \(1, 21, 64, 64\), differ by .* from torch's"):
        check(graph, exported / "nested" / "pose.onnx")


@pytest.mark.slow
def test_the_detectors_graph_says_its_shapes_and_what_its_processor_does(exported):
    detector = session(exported / "nested" / "detector.onnx")
    shapes = {value.name: (value.type, value.shape) for value in (*detector.get_inputs(), *detector.get_outputs())}
    assert shapes == {
        "pixel_values": ("tensor(float)", ["batch", 3, 64, 64]),
        "scores": ("tensor(float)", ["batch", 100]),
        "labels": ("tensor(int64)", ["batch", 100]),
        "boxes": ("tensor(float)", ["batch", 100, 4]),
        "directions": ("tensor(float)", ["batch", 100, 2]),
    }
    assert json.loads(detector.get_modelmeta().custom_metadata_map["handunet"]) == {
        "kind": "detector",
        "image_size": 64,
        "rescale_factor": pytest.approx(1 / 255),
        "image_mean": [0.3950, 0.4323, 0.2954],
        "image_std": [0.1966, 0.1734, 0.1836],
    }


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_detectors_file_finds_the_hands_that_torch_finds(exported, batch):
    """In pixels of photographs of 640 x 400: boxes within 0.001 px."""
    rng = np.random.default_rng(batch)
    photographs = [Image.fromarray(rng.integers(0, 256, (5, 8, 3), np.uint8)).resize((640, 400)) for _ in range(batch)]
    processor = HandUNetDetectorImageProcessor.from_pretrained(exported / "detector")
    pixel_values = processor(photographs).pixel_values
    with torch.inference_mode():
        outputs = HandUNetForObjectDetection.from_pretrained(exported / "detector").look_twice(pixel_values)
    expected = processor.post_process_object_detection(outputs, 0.01, [(400, 640)] * batch)
    found = session(exported / "nested" / "detector.onnx").run(None, {"pixel_values": pixel_values.numpy()})
    singles = 0
    for scores, labels, boxes, directions, hands in zip(*found, expected):
        assert (np.diff(scores[scores > 0]) <= 0).all()
        corners = Crop.of_image(640, 400, 1).back(boxes.astype(np.float64).reshape(-1, 2, 2)).reshape(-1, 4)
        corners = corners.clip(0, [640, 400, 640, 400])
        kept = (scores >= 0.01) & (corners[:, 2:] > corners[:, :2]).all(1)
        np.testing.assert_allclose(scores[kept], hands["scores"], atol=1e-4)
        np.testing.assert_array_equal(labels[kept], hands["labels"])
        np.testing.assert_allclose(corners[kept], hands["boxes"], atol=1e-3)
        np.testing.assert_allclose(directions[kept], hands["directions"], atol=1e-3)
        assert set(labels[kept]) == {0, 1}
        singles += kept.sum()
    assert singles >= 3 * batch and (found[0] == 0).any()


@pytest.mark.slow
def test_a_detector_that_differs_from_torch_is_not_let_through(exported):
    detector = HandUNetForObjectDetection.from_pretrained(exported / "detector")
    graph = graph_of(detector, HandUNetDetectorImageProcessor.from_pretrained(exported / "detector"))
    check(graph, exported / "nested" / "detector.onnx")
    with torch.no_grad():
        detector.head.bias[2] += 0.01
    with pytest.raises(RuntimeError, match=r"map_boxes for a batch of 1, \(1, 4, 20, 20\), differ by .* from torch's"):
        check(graph, exported / "nested" / "detector.onnx")


@pytest.mark.slow
def test_real_photographs_give_the_same_as_torch(reference, shared_data):
    folder = shared_data / "coco_hands"
    annotations = json.loads((folder / "annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    photographs = sorted((shared_data / "freihand_real" / "training" / "rgb").glob("*.jpg"))
    photographs += [next(folder.rglob(Path(names[hand["image_id"]]).name)) for hand in annotations["annotations"][::4]]
    boxes = [None] * 5 + [[hand["bbox"]] for hand in annotations["annotations"][::4]]
    assert len(photographs) == len(boxes) >= 15
    processor = HandUNetImageProcessor.from_pretrained(reference / "model")
    pixel_values = processor(photographs, boxes, return_tensors="np").pixel_values
    hold_to_torch(reference, pixel_values)
    hold_to_torch(reference, pixel_values[:1])


@pytest.mark.slow
def test_synthetic_hands_give_the_same_as_torch(reference):
    from dataset_script.synthetic import SyntheticHands

    images = SyntheticHands(8, seed=0).render(torch.arange(8))["images"].permute(0, 2, 3, 1).numpy()
    processor = HandUNetImageProcessor.from_pretrained(reference / "model")
    hold_to_torch(reference, processor(list(images), return_tensors="np").pixel_values)


@pytest.mark.slow
def test_the_printed_snippet_runs_as_printed_and_without_torch(reference, shared_data, tmp_path):
    (snippet,) = [s for s in re.findall(r"```python\n(.*?)```", USAGE.read_text(), re.DOTALL) if "onnxruntime" in s]
    assert 10 <= len(snippet.strip().splitlines()) <= 15
    photograph = shared_data / "freihand_real" / "training" / "rgb" / "00000000.jpg"
    Image.open(photograph).save(tmp_path / "hand.jpg", quality=100, subsampling=0)
    (tmp_path / "model.onnx").symlink_to(reference / "model.onnx")
    (tmp_path / "snippet.py").write_text(
        "import sys\nsys.modules['torch'] = sys.modules['transformers'] = None  # importing them fails\n" + snippet
    )
    result = run("-W", "error", tmp_path / "snippet.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    printed = [eval(line, {"__builtins__": {}}) for line in result.stdout.splitlines()]
    assert [name for name, _, _ in printed] == list(KEYPOINT_NAMES)

    from transformers import pipeline

    pipe = pipeline("keypoint-detection", model=str(reference / "model"))
    # The snippet reads a right hand; without `handedness` the pipeline also reads the mirrored crop, and may prefer that.
    (hand,) = pipe(str(tmp_path / "hand.jpg"), boxes="image", handedness="right")
    expected = [(keypoint["x"], keypoint["y"]) for keypoint in hand["keypoints"]]
    np.testing.assert_allclose([point for _, point, _ in printed], expected, atol=0.06)  # printed to 0.1 px
    np.testing.assert_allclose([score for *_, score in printed], [k["score"] for k in hand["keypoints"]], atol=0.006)


PREDICT_AND_NAME_MODULES = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(sorted({"torch", "transformers", "datasets"} & sys.modules.keys()))
"""


@pytest.mark.slow
def test_predict_py_answers_the_same_by_onnxruntime_and_imports_no_torch(reference, shared_data, tmp_path):
    photographs = [shared_data / "freihand_real" / "training" / "rgb" / f"{index:08d}.jpg" for index in range(3)]
    common = [*photographs, "--boxes", "10,20,100,150", "50,5,60,60", "--left", "--output"]
    by_torch = run("predict.py", *common, tmp_path / "torch", "--model", reference / "model")
    options = ["--backend", "onnx", "--model", reference / "model.onnx"]
    by_onnx = run("-W", "error", "-c", PREDICT_AND_NAME_MODULES, "predict.py", *common, tmp_path / "onnx", *options)
    assert by_torch.returncode == by_onnx.returncode == 0, by_torch.stderr + by_onnx.stderr
    assert by_onnx.stdout.splitlines()[-1] == "[]"
    answers, expected = (json.loads((tmp_path / name / "keypoints.json").read_text()) for name in ("onnx", "torch"))
    assert [len(answer["hands"]) for answer in answers] == [2, 2, 2]
    # A second look's crop follows the first one's keypoints, and with them their last digits.
    for answer, right in zip(answers, expected):
        for hand, right_hand in zip(answer["hands"], right["hands"]):
            assert (hand["label"], hand["box"]) == (right_hand["label"], right_hand["box"])
            assert hand["score"] == pytest.approx(right_hand["score"], abs=2e-3)
            for keypoint, right_keypoint in zip(hand["keypoints"], right_hand["keypoints"]):
                assert keypoint["name"] == right_keypoint["name"]
                assert (keypoint["x"], keypoint["y"]) == pytest.approx((right_keypoint["x"], right_keypoint["y"]), abs=0.1)
                assert keypoint["score"] == pytest.approx(right_keypoint["score"], abs=5e-3)


@pytest.mark.slow
def test_predict_py_refuses_what_is_no_exported_file(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    Image.new("RGB", (20, 20)).save(tmp_path / "hand.png")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    for model, sentence in (("model.onnx", "model.onnx is no file that `handunet export` wrote"),
                            ("missing", "missing is no file: run `handunet export missing model.onnx`")):  # fmt: skip
        options = ["--backend", "onnx", "--model", model]
        result = run(ROOT / "predict.py", "hand.png", *options, cwd=tmp_path)
        assert result.returncode and sentence in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "predictions").exists()


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused_in_words(tmp_path):
    missing = run("-m", "scripts.export_onnx", tmp_path / "missing", tmp_path / "model.onnx")
    assert missing.returncode == 1 and missing.stderr.startswith("error: ") and "missing" in missing.stderr
    folder = run("-m", "scripts.export_onnx", tmp_path, tmp_path)
    assert folder.returncode == 1 and "is a folder" in folder.stderr
    neither = run("-m", "scripts.export_onnx", tmp_path)
    assert neither.returncode == 2 and "name either the file to write or --all FOLDER" in neither.stderr
    assert not any(tmp_path.iterdir())


def test_a_processor_of_another_size_is_refused():
    model = HandUNetForPoseEstimation(HandUNetConfig(image_size=64, hidden_sizes=(4, 8)))
    with pytest.raises(ValueError, match="crops of 128 pixels, but the model reads 64"):
        settings_of(model, HandUNetImageProcessor())


@pytest.mark.slow
def test_in_8_bits_a_hand_classifier_stays_in_float_and_reads_its_features_as_they_were(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    from handunet.export import export
    from handunet.quantization import quantize

    write_hands(tmp_path / "photographs")
    model, processor = (
        kind.from_pretrained(ROOT / "weights" / "handunet") for kind in (HandUNetForPoseEstimation, HandUNetImageProcessor)
    )
    torch.manual_seed(0)
    model.add_classifier(8)
    crops = [np.asarray(load_image(path).resize((128, 128))) for path in EXAMPLES]
    inputs = processor.normalize_pixels(np.stack(crops))
    export(model, processor, tmp_path / "whole.onnx")
    quantize(tmp_path / "whole.onnx", tmp_path / "eight.onnx", tmp_path / "photographs")
    expected, found = (
        session(tmp_path / name).run(["chances"], {"pixel_values": inputs})[0] for name in ("whole.onnx", "eight.onnx")
    )
    expected, found = (np.log(chances[:, 0] / chances[:, 1]) for chances in (expected, found))
    assert np.abs(found - expected).mean() < 0.4 * expected.std()  # of random weights, which amplify every rounding


def write_hands(folder: Path) -> None:
    """The Space's examples as photographs for training, a hand in the middle of each, as a COCO file."""
    (folder / "images").mkdir(parents=True)
    images, hands = [], []
    for index, path in enumerate(EXAMPLES):
        shutil.copy(path, folder / "images")
        width, height = load_image(path).size
        images.append({"id": index, "file_name": path.name, "width": width, "height": height})
        hands.append({"image_id": index, "bbox": [width / 4, height / 4, width / 2, height / 2], "handedness": "right"})
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": hands}))
