"""The package as it travels: what its files import, and what a saved folder needs to be whole."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPoseEstimation, pipeline

import modeling_handunet
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from modeling_handunet.versions import check_transformers_version
from tests.small_model import small_detector

PACKAGE = Path(modeling_handunet.__file__).parent
FILES = sorted(PACKAGE.glob("*.py"))
# safetensors is transformers' own requirement, in whose format the weights are.
ALLOWED = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL"} | sys.stdlib_module_names
ALLOWED |= {"pillow_heif"}  # only tried, where a photograph needs it
ORDER = [
    {"versions", "keypoints", "images"},
    {"configuration_handunet"},
    {"configuration_handunet_detector"},
    {"heatmaps", "losses", "crops", "nesting", "drawing", "detection_losses", "detection_decoding"},
    {"hands", "modeling_handunet", "image_processing_handunet"},
    {"modeling_handunet_detector", "image_processing_handunet_detector"},
    {"torch_hands"},
    {"pipeline_handunet", "tracking"},
    {"registration"},
    {"__init__"},
]
# What the Hub loads, of the pose network and of the detector.
ROLES = ("configuration", "modeling", "image_processing")
# The one import against the order, inside a function, by which the pipeline's file travels with the model's.
AGAINST_ORDER = ("modeling_handunet", "pipeline_handunet")


def imports(path: Path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_imports_only_what_the_hub_can_expect(path):
    for node in imports(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.level:
            assert node.level == 1 and node.module, f"line {node.lineno}: write `from .name import thing`"
            assert "." not in node.module and (PACKAGE / f"{node.module}.py").exists()
            continue
        else:
            names = [node.module]
        assert {name.split(".")[0] for name in names} <= ALLOWED


def test_the_package_is_one_flat_folder():
    assert [path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports_point_one_way(path):
    ranks = {name: rank for rank, names in enumerate(ORDER) for name in names}
    assert ranks.keys() == {path.stem for path in FILES}
    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level and (path.stem, node.module) != AGAINST_ORDER:
            assert ranks[node.module] < ranks[path.stem], f"{path.name} imports {node.module}"


def test_an_old_transformers_is_refused_in_a_sentence():
    for version in ("4.57.3", "5.22.9", "5.9"):
        with pytest.raises(ImportError, match=rf"needs transformers 5\.23 or newer, but {version} is installed: run"):
            check_transformers_version(version)
    for version in ("5.23", "5.23.0.dev0", "5.100.1", "6.0"):
        check_transformers_version(version)


@pytest.mark.parametrize("name", [f"{role}_handunet{kind}" for role in ROLES for kind in ("", "_detector")])
def test_every_file_that_the_hub_loads_refuses_an_old_transformers_before_it_imports_anything(name):
    first = next(node for node in imports(PACKAGE / f"{name}.py") if "transformers" in ast.unparse(node).lower())
    assert ast.unparse(first) == "from .versions import MINIMUM_TRANSFORMERS"


def run(code: str, *arguments) -> None:
    """Run `code` in a fresh process to which the package is hidden."""
    code = "import sys\nsys.modules['modeling_handunet'] = None\n" + code
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # the last bits of a sum depend on it
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A saved pipeline, and `expected.pt` with its weights and answers beside it."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("saved")
    model = HandUNetForPoseEstimation(HandUNetConfig(image_size=32, hidden_sizes=(4, 8))).eval()
    processor = HandUNetImageProcessor(size=32, box_fill=0.5)
    image = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8)
    pipe = pipeline("keypoint-detection", model=model, image_processor=processor, detector=small_detector())
    pipe.save_pretrained(root / "model")
    boxes = [[5, 6, 20, 12], [20, 10, 9, 9]]
    with torch.no_grad():
        heatmaps = model(**processor(image, boxes=boxes)).heatmaps
    expected = {"image": image, "boxes": boxes, "heatmaps": heatmaps, "weights": model.state_dict()}
    found = pipe(image, detection_threshold=0.1)
    assert len(found) > 1
    torch.save({**expected, "hands": pipe(image, boxes=boxes), "found": found}, root / "expected.pt")
    return root


def test_the_saved_folder_is_whole(saved):
    code = {path.name for path in FILES if "registration" not in path.name} - {"__init__.py", "drawing.py", "tracking.py"}
    data = {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert {path.name for path in (saved / "model").iterdir()} == code | data | {"detector"}
    assert {path.name for path in (saved / "model" / "detector").iterdir()} > data | {"modeling_handunet_detector.py"}
    config = json.loads((saved / "model" / "config.json").read_text())
    (task,) = config["custom_pipelines"].items()
    assert task == (
        "keypoint-detection",
        {
            "impl": "pipeline_handunet.HandKeypointDetectionPipeline",
            "pt": ["AutoModelForPoseEstimation"],
            "type": "image",
        },
    )


def test_a_model_and_a_processor_saved_one_by_one_make_the_same_folder(saved, tmp_path):
    HandUNetForPoseEstimation.from_pretrained(saved / "model").save_pretrained(tmp_path)
    HandUNetImageProcessor.from_pretrained(saved / "model").save_pretrained(tmp_path)
    whole = {path.name: path.read_bytes() for path in (saved / "model").iterdir() if path.is_file()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_with_the_package_installed_nothing_needs_trust_remote_code(saved):
    folder = saved / "model"
    for auto_class in (AutoConfig, AutoModel, AutoModelForPoseEstimation, AutoImageProcessor):
        assert type(auto_class.from_pretrained(folder)).__module__.startswith("modeling_handunet.")
    pipe = pipeline("keypoint-detection", model=str(folder))
    assert isinstance(pipe, modeling_handunet.HandKeypointDetectionPipeline)
    expected = torch.load(saved / "expected.pt", weights_only=True)
    assert pipe(expected["image"], boxes=expected["boxes"]) == expected["hands"]
    assert pipe(expected["image"], detection_threshold=0.1) == expected["found"]


LOAD = """
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPoseEstimation, pipeline

root, folders = sys.argv[1], sys.argv[2:]
expected = torch.load(f"{root}/expected.pt", weights_only=True)
for folder in folders:
    folder = f"{root}/{folder}"
    classes = AutoConfig, AutoModel, AutoModelForPoseEstimation, AutoImageProcessor
    config, base, model, processor = (c.from_pretrained(folder, trust_remote_code=True) for c in classes)
    assert config.model_type == "handunet" and config.num_keypoints == 21
    assert type(base).__name__ == type(model).__name__ == "HandUNetForPoseEstimation"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected["weights"][name]), name
    inputs = processor(expected["image"], boxes=expected["boxes"])
    with torch.no_grad():
        assert torch.equal(model(**inputs).heatmaps, expected["heatmaps"])
        assert torch.equal(base(**inputs).heatmaps, expected["heatmaps"])
    loaded = pipeline("keypoint-detection", model=model, image_processor=processor)
    assert loaded(expected["image"], boxes=expected["boxes"]) == expected["hands"]
    pipe = pipeline("keypoint-detection", model=folder, trust_remote_code=True)
    assert pipe(expected["image"], boxes=expected["boxes"]) == expected["hands"]
    if "pipeline" in folder or folder.endswith("/model"):  # only they have a detector
        assert pipe(expected["image"], detection_threshold=0.1) == expected["found"]
        finder = pipeline("object-detection", model=f"{folder}/detector", trust_remote_code=True)
        assert finder.model.num_parameters() == pipe.hands.detector[0].num_parameters()
"""
SAVE_AGAIN = """
pipe.save_pretrained(f"{root}/pipeline_again")
for loaded, folder in ((model, f"{root}/model_again"), (base, f"{root}/base_again")):
    loaded.save_pretrained(folder)
    processor.save_pretrained(folder)
"""
WITHOUT_TRUST = """
try:
    AutoModelForPoseEstimation.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("code of the folder was run without trust")
"""
SAVED_AGAIN = ["pipeline_again", "model_again", "base_again"]


@pytest.fixture(scope="module")
def saved_again(saved) -> Path:
    run(LOAD + SAVE_AGAIN + WITHOUT_TRUST, saved, "model")
    return saved


def test_without_the_package_a_folder_loads_the_same_and_is_saved_again_whole(saved_again):
    def names(folder) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if "__pycache__" not in path.parts}

    files = names(saved_again / "model")
    for folder in SAVED_AGAIN:
        own = {name for name in files if folder == "pipeline_again" or not name.startswith("detector/")}
        assert names(saved_again / folder) == own
        for name in own:
            if name.endswith("config.json"):
                continue
            assert (saved_again / folder / name).read_bytes() == (saved_again / "model" / name).read_bytes(), name


@pytest.mark.slow
def test_without_the_package_a_folder_saved_again_loads_the_same(saved_again):
    run(LOAD, saved_again, *SAVED_AGAIN)
