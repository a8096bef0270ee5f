"""setup.cfg declares what the code imports, and pip installs whole packages."""

import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
REQUIRED = SETUP["options"]["install_requires"].split("\n")
EXTRA = {name: text.split("\n") for name, text in SETUP["options.extras_require"].items()}
EXTRAS = sum(EXTRA.values(), [])
INSTALLED = [name.rstrip("*") for name in SETUP["options.packages.find"]["include"].split()]

IGNORED = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
FILES = [
    path.relative_to(ROOT)
    for path in sorted(ROOT.rglob("*.py"))
    if not any(part in IGNORED or part.startswith(".") for part in path.relative_to(ROOT).parts)
]
OWN = {path.parts[0].removesuffix(".py") for path in FILES} | {"serving", "films"}  # of demo/, which go beside the servers
# What `train.py` imports. The README installs only the extra `train` for it.
OF_A_TRAINING = {"modeling_handunet", "dataset_script", "training", "release", "metrics", "train", "predict", "handunet"}

DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml"}
INSTALLED_BY_THE_CODE = {"mediapipe"}  # by the labelling and the benchmarks, into an environment of its own
ONLY_TRIED = {"pillow-heif"}  # where a photograph needs it; without it a sentence says so


def names(requirements: list[str]) -> set[str]:
    """Names of distributions, as pip compares them."""
    return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in requirements if line.strip()}


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a file is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from outside_functions(child)


def imported(path: Path, nodes=ast.walk) -> set[str]:
    """Top-level names of the modules that a file imports, without the standard library's and its neighbours'."""
    modules = set()
    for node in nodes(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module)
    neighbours = {file.stem for file in (ROOT / path).parent.glob("*.py")} - {path.parts[0]}
    return {module.split(".")[0] for module in modules} - sys.stdlib_module_names - neighbours


def distributions(modules: set[str]) -> set[str]:
    return {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in modules - OWN - INSTALLED_BY_THE_CODE}


def test_every_imported_package_is_declared():
    missing = {str(path): distributions(imported(path)) - names(REQUIRED + EXTRAS) for path in FILES}
    assert {path: packages for path, packages in missing.items() if packages} == {}


def test_a_training_needs_its_own_extra_only():
    files = [path for path in FILES if path.parts[0].removesuffix(".py") in OF_A_TRAINING]
    declared = names(REQUIRED + EXTRA["train"]) | ONLY_TRIED
    missing = {str(path): distributions(imported(path, outside_functions)) - declared for path in files}
    assert {path: packages for path, packages in missing.items() if packages} == {}
    assert names(EXTRA["torch"]) < names(EXTRA["train"])


def test_the_package_needs_the_extra_torch_only():
    for path in FILES:
        if path.parts[0] == "modeling_handunet":
            assert distributions(imported(path)) <= names(REQUIRED + EXTRA["torch"]) | ONLY_TRIED, path


def test_predicting_by_onnxruntime_needs_nothing_but_what_pip_installs_without_extras():
    assert names(REQUIRED) == {"numpy", "pillow", "onnxruntime"}
    assert "torch" not in names(EXTRA["onnx"])
    code = """import sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "huggingface_hub", "datasets", "onnx", "matplotlib"]))
sys.argv[0] = "handunet"
from handunet.command import main
main()"""
    arguments = ["demo/space/examples/open.jpg", "--boxes", "119,82,211,268", "--output"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "error", "-c", code, *arguments, folder, "--backend", "onnx"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        ((hand,),) = [entry["hands"] for entry in json.loads(Path(folder, "keypoints.json").read_text())]
    assert hand["score"] > 0.9  # of the drawn hand in the example


def test_no_file_is_called_like_a_module_of_python():
    """Run as a program, a file beside it would be imported instead: `profile` by torch, for example."""
    assert [path for path in FILES if path.stem in sys.stdlib_module_names] == []


@pytest.mark.parametrize(("name", "weights"), [("pose.onnx", "handunet"), ("detector.onnx", "handunet-detector")])
def test_the_models_that_travel_are_the_shipped_ones_exported(name, weights):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    from handunet.backends import OWN_MODEL, open_onnx
    from handunet.export import check, load
    from handunet.graphs import graph_of, settings_of

    file = OWN_MODEL.with_name(name)
    model, processor = load(str(ROOT / "weights" / weights))
    check(graph_of(model.eval(), processor), file)
    assert open_onnx(str(file), settings_of(model, processor)["kind"])[1] == settings_of(model, processor)
    assert b".py" not in file.read_bytes()  # the exporter notes paths of the machine that it runs on


@pytest.mark.parametrize("name", ["pose.onnx", "detector.onnx"])
def test_the_models_in_8_bits_answer_as_those_in_float32(name, tmp_path):
    """On the photographs of the package's own examples; the tolerances are those of `handunet export --quantize`.  A detector
    looks once."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    from PIL import Image

    from handunet.backends import OWN_MODELS, kind_of, open_onnx
    from handunet.export import export, load
    from handunet.quantization import check, normalized
    from modeling_handunet.crops import Crop

    whole, eight = (path.with_name(name) for path in OWN_MODELS.values())
    settings = open_onnx(str(whole))[1]
    assert open_onnx(str(eight))[1] == settings and eight.stat().st_size < 0.4 * whole.stat().st_size
    photos = [Image.open(path).convert("RGB") for path in sorted((ROOT / "demo/space/examples").glob("*.jpg"))]
    pixels = [np.asarray(Crop.of_image(*photo.size, settings["image_size"]).cut(photo)) for photo in photos]
    if kind_of(settings) == "detector":
        whole = tmp_path / name
        export(*load(str(ROOT / "weights" / "handunet-detector")), whole, twice=False)
    check(whole, eight, [normalized(pixels, settings)], kind_of(settings))


@pytest.mark.slow
def test_the_wheel_finds_a_hand_in_a_fresh_environment_without_torch(tmp_path):
    """`pip install .` from this clone, into an environment that sees no other package."""

    def run(*command, **options):
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900, **options)

    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", "node_modules", "build", "outputs", "__pycache__"))
    python = tmp_path / "environment" / "bin" / "python"
    assert run(sys.executable, "-m", "venv", tmp_path / "environment").returncode == 0
    wheel = run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source)
    installed = run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *tmp_path.glob("handunet-*.whl"))
    if wheel.returncode or installed.returncode:
        said = wheel.stderr + installed.stderr
        if any(words in said for words in ("No matching distribution", "Connection", "timed out", "Temporary failure")):
            pytest.skip(f"pip reaches no index: {said[-200:]}")
        pytest.fail(said)
    assert next(tmp_path.glob("handunet-*.whl")).stat().st_size < 9e6
    listed = run(python, "-m", "pip", "list", "--format", "freeze").stdout.lower()
    assert "onnxruntime" in listed and "torch" not in listed and "transformers" not in listed
    command = python.with_name("handunet")
    photo = ROOT / "demo/space/examples/open.jpg"
    answer = run(command, photo, "--boxes", "119,82,211,268", cwd=tmp_path)
    assert answer.returncode == 0 and "open.png: right hand, score 0.9" in answer.stdout, answer.stderr
    for words, sentence in ((["train"], "needs a clone of the project"), (["export", "a", "b"], "handunet[torch,onnx]"),
                            ([photo, "--model", "user/name"], "pip install 'handunet[torch]'")):  # fmt: skip
        refused = run(command, *words, cwd=tmp_path)
        assert refused.returncode and sentence in refused.stderr and "Traceback" not in refused.stderr


def test_an_undeclared_import_is_found(tmp_path):
    file = tmp_path / "file.py"
    file.write_text("import os\nimport yaml, requests\nfrom huggingface_hub import utils\ndef f():\n    from cv2 import dnn\n")
    assert distributions(imported(file)) == {"pyyaml", "requests", "huggingface-hub", "opencv-python-headless"}
    assert distributions(imported(file, outside_functions)) == {"pyyaml", "requests", "huggingface-hub"}


def test_every_declared_package_is_pinned_for_the_tests():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert names(REQUIRED + EXTRAS) <= names(pins)


@pytest.mark.parametrize("folder", ["demo/space", "demo/endpoint"])
def test_the_demos_require_what_setup_cfg_requires_and_what_their_code_imports(folder):
    requirements = (ROOT / folder / "requirements.txt").read_text().splitlines()
    assert set(requirements) <= set(REQUIRED + EXTRAS)
    served = ROOT / folder / ("app.py" if folder == "demo/space" else "handler.py")
    files = [served.relative_to(ROOT), *(path for path in FILES if path.parts[0] == "modeling_handunet")]
    assert distributions(set().union(*map(imported, files))) <= names(requirements) | ONLY_TRIED


def test_installed_packages_import_no_file_that_is_not_installed():
    files = [path for path in FILES if path.parts[0] in INSTALLED]
    assert {path.parts[0] for path in files} == set(INSTALLED)
    for path in files:
        assert imported(path) & OWN <= set(INSTALLED), path
        assert (ROOT / path.parent / "__init__.py").exists(), f"pip would leave out {path.parent}"
