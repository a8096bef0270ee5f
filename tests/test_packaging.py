"""setup.cfg declares what the code imports, and pip installs whole packages."""

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
REQUIRED = SETUP["options"]["install_requires"].split("\n")
EXTRAS = "\n".join(SETUP["options.extras_require"].values()).split("\n")
INSTALLED = [name.rstrip("*") for name in SETUP["options.packages.find"]["include"].split()]

IGNORED = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
FILES = [
    path.relative_to(ROOT)
    for path in sorted(ROOT.rglob("*.py"))
    if not any(part in IGNORED or part.startswith(".") for part in path.relative_to(ROOT).parts)
]
OWN = {path.parts[0].removesuffix(".py") for path in FILES}
# What `train.py` imports. The README installs only `install_requires` for it.
OF_A_TRAINING = {"modeling_handunet", "dataset_script", "training", "release", "metrics", "train", "predict"}

DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml"}
INSTALLED_BY_THE_CODE = {"mediapipe"}  # by the benchmarks, into an environment of its own


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


def test_a_training_needs_no_extra():
    files = [path for path in FILES if path.parts[0].removesuffix(".py") in OF_A_TRAINING]
    missing = {str(path): distributions(imported(path, outside_functions)) - names(REQUIRED) for path in files}
    assert {path: packages for path, packages in missing.items() if packages} == {}


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
    assert distributions(set().union(*map(imported, files))) <= names(requirements)


def test_installed_packages_import_no_file_that_is_not_installed():
    files = [path for path in FILES if path.parts[0] in INSTALLED]
    assert {path.parts[0] for path in files} == set(INSTALLED)
    for path in files:
        assert imported(path) & OWN <= set(INSTALLED), path
        assert (ROOT / path.parent / "__init__.py").exists(), f"pip would leave out {path.parent}"
