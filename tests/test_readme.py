"""The README's code is run as it is printed."""

import configparser
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a trained model where `train.py` puts it, and a photograph."""
    folder = tmp_path / "outputs/handunet/model"
    HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8))).save_pretrained(folder)
    HandUNetImageProcessor().save_pretrained(folder)
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(snippet: str, folder: Path) -> dict:
    (folder / "snippet.py").write_text(snippet)
    return runpy.run_path(str(folder / "snippet.py"))


def test_the_snippets_for_other_code_run_as_printed(workplace, capsys):
    hands = run(next(s for s in SNIPPETS if "detect = pipeline" in s), workplace)["hands"]
    assert hands[0]["keypoints"][8]["name"] == "index_4"
    poses = run(next(s for s in SNIPPETS if "post_process_pose_estimation" in s), workplace)["poses"]
    assert poses[0][0]["keypoints"].shape == (21, 2) and poses[0][0]["scores"].shape == (21,)


def test_the_freihand_snippet_runs_as_printed(workplace, shared_data):
    (workplace / "FreiHAND").symlink_to(shared_data / "freihand_real")
    splits = run(next(s for s in SNIPPETS if "add_heatmaps" in s), workplace)["splits"]
    assert len(splits["train"]) == 5


def test_every_file_and_option_that_the_readme_names_exists():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
    options = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    for line in re.findall(r"train\.py (.*)", README):
        for option in re.findall(r"--\w+", line.split("#")[0].split("`")[0]):
            assert option in options, option


def test_the_ci_script_finds_the_readmes_test_command():
    pattern = re.search(r"grep -m 1 -E '([^']+)'", (ROOT / ".ci/run").read_text()).group(1)
    commands = [line for line in README.splitlines() if re.search(pattern, line)]
    assert commands == ["pip install -c constraints.txt -e '.[test,onnx,browser,space]' && python -m pytest"]


def test_the_test_command_installs_what_the_pages_tests_import():
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    extras = dict(extras["options.extras_require"])
    gradio = next(line for line in (ROOT / "demo/space/requirements.txt").read_text().splitlines() if "gradio" in line)
    assert extras["space"].split() == [gradio]
    assert {"onnx", "onnxruntime", "onnxscript"} <= set(re.findall(r"[a-z]+", extras["onnx"]))
    assert "playwright" in extras["browser"]
