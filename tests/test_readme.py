"""The code in the README and in docs/ runs as it is printed."""

import configparser
import contextlib
import importlib.util
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_handunet import HandUNetConfig, HandUNetDetectorImageProcessor, HandUNetForPoseEstimation, HandUNetImageProcessor
from tests.chromium import NETWORK_ERRORS, free_port, need_node
from tests.small_model import save_small_model, small_detector
from training.arguments import parse_arguments

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = README + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGES, flags=re.DOTALL)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a model at the README's path, and a photograph."""
    folder = tmp_path / "weights/handunet-base"
    HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8))).save_pretrained(folder)
    HandUNetImageProcessor().save_pretrained(folder)
    small_detector().save_pretrained(folder / "detector")
    HandUNetDetectorImageProcessor(size=small_detector().config.image_size).save_pretrained(folder / "detector")
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(snippet: str, folder: Path) -> dict:
    (folder / "snippet.py").write_text(snippet)
    return runpy.run_path(str(folder / "snippet.py"))


def test_the_snippets_for_other_code_run_as_printed(workplace, capsys):
    found = run(next(s for s in SNIPPETS if "detect = pipeline" in s), workplace)["detect"]("photo.jpg", detection_threshold=0)
    assert found[0]["keypoints"][8]["name"] == "index_4"
    poses = run(next(s for s in SNIPPETS if "post_process_pose_estimation" in s), workplace)["poses"]
    assert poses[0][0]["keypoints"].shape == (21, 2) and poses[0][0]["scores"].shape == (21,)


def test_the_freihand_snippet_runs_as_printed(workplace, shared_data):
    (workplace / "FreiHAND").symlink_to(shared_data / "freihand_real")
    splits = run(next(s for s in SNIPPETS if "add_heatmaps" in s), workplace)["splits"]
    assert len(splits["train"]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.splitlines()[0])
def test_each_snippet_runs_as_printed_in_a_fresh_process_outside_the_clone(snippet, workplace, request):
    if "FreiHAND" in snippet:
        (workplace / "FreiHAND").symlink_to(request.getfixturevalue("shared_data") / "freihand_real")
    shutil.copy(ROOT / "handunet/models/float32/pose.onnx", workplace / "model.onnx")
    shutil.copy("photo.jpg", "hand.jpg")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # as if it were installed
    if "hands/*.parquet" in snippet:  # what the command above the snippet has written
        words = "photo.jpg --boxes 120,80,200,180 --backend onnx --format parquet --no_drawings --output hands".split()
        subprocess.run([sys.executable, "-m", "handunet", *words], cwd=workplace, env=environment, check=True, timeout=500)
    if "in frames:" in snippet:  # the caller's film
        snippet = f"from PIL import Image\nframes = [(t / 30, Image.open('photo.jpg')) for t in range(3)]\n{snippet}"
    command = [sys.executable, "-c", snippet]
    result = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr


def test_every_option_that_the_documents_name_exists(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    options = capsys.readouterr().out
    for line in re.findall(r"train\.py (.*)", PAGES):
        for option in re.findall(r"--\w+", line.split("#")[0].split("`")[0]):
            assert option in options, option


def test_every_link_and_module_in_the_documents_exists():
    documents = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "tools/README.md")]
    documents += sorted((ROOT / "docs").glob("*.md"))
    for document in documents:
        text = document.read_text()
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (document.parent / link).exists(), f"{document}: {link}"
        for module in re.findall(r"python -m ([\w.]+)", text):
            assert importlib.util.find_spec(module), f"{document}: {module}"


def test_the_ci_script_finds_the_readmes_test_command():
    pattern = re.search(r"grep -m 1 -E '([^']+)'", (ROOT / ".ci/run").read_text()).group(1)
    commands = [line for line in README.splitlines() if re.search(pattern, line)]
    install = "pip install -c constraints.txt -e '.[train,test,onnx,video,browser,space,benchmarks]'"
    assert commands == [f"{install} && ruff check . && python -m pytest"]


def test_the_test_command_installs_what_the_pages_tests_import():
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    extras = dict(extras["options.extras_require"])
    gradio = next(line for line in (ROOT / "demo/space/requirements.txt").read_text().splitlines() if "gradio" in line)
    assert extras["space"].split() == [gradio, "av>=16"]
    assert {"onnx", "onnxruntime", "onnxscript"} <= set(re.findall(r"[a-z]+", extras["onnx"]))
    assert "playwright" in extras["browser"]


def printed(start: str, part: str) -> str:
    """The line of the README that begins with `start` and has `part` in it, without its comment."""
    (line,) = [line for line in README.splitlines() if line.startswith(start) and part in line]
    return line.split("  #")[0]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The files that git would clone, with untrained weights in weights/, without code beside them as in the repository."""
    folder = tmp_path_factory.mktemp("clone") / "handunet"
    ignored = shutil.ignore_patterns(".git", "node_modules", "dist", "build", "outputs", "__pycache__", "models", "weights")
    shutil.copytree(ROOT, folder, ignore=ignored)
    saved = save_small_model(tmp_path_factory.mktemp("model"))
    for name in ("handunet", "handunet-base"):
        (folder / "weights" / name).mkdir(parents=True)
        for file in ("config.json", "preprocessor_config.json", "model.safetensors", "README.md"):
            shutil.copy(saved / file, folder / "weights" / name)
        shutil.copytree(saved / "detector", folder / "weights" / name / "detector")
    return folder


@contextlib.contextmanager
def started(command: str, folder: Path):
    """Run a line of the README in `folder` by this Python, as it is printed, until the block ends."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONUNBUFFERED"] = "1"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen(["bash", "-c", command], cwd=folder, env=environment, **pipes)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


def read_until(process: subprocess.Popen, pattern: str) -> re.Match:
    """Wait until the output of a program matches `pattern`. Returns the match."""
    said = ""
    for line in process.stdout:
        said += re.sub(r"\x1b\[[\d;]*m", "", line)
        if any(error in line for error in NETWORK_ERRORS):
            pytest.skip(f"npm cannot reach its registry: {line}")
        if found := re.search(pattern, said):
            return found
    return pytest.fail(f"it ended and said {said}")


@pytest.mark.slow
def test_the_line_that_predicts_runs_as_printed_in_a_fresh_clone(clone):
    install, line = printed("pip install", "handunet demo").split(" && ")
    assert install == "pip install -c constraints.txt ."
    with started(f"python -m {line}", clone) as process:  # the command is of the clone that the tests are of
        read_until(process, "Drawings and keypoints.json are in predictions")
    assert (clone / "predictions" / "open.png").is_file() and (clone / "predictions" / "keypoints.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("what, paths", [("space", [""]), ("web", ["", "pose.onnx", "detector.onnx"]), ("endpoint", [""])])
def test_the_lines_that_serve_run_as_printed_in_a_fresh_clone(what, paths, clone):
    line = printed("python ", f"demo/{what}")
    if what == "space":
        pytest.importorskip("gradio", reason="Gradio is not installed: pip install -e '.[space]'")
    if what == "web":
        need_node()
        pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install -e '.[onnx]'")
    # On a free port: the printed one may be in use on this machine.
    with started(f"{line}{' --' * (what == 'web')} --port {free_port()}", clone) as process:
        address = read_until(process, r"http://127\.0\.0\.1:\d+")[0]
        for path in paths:
            with urllib.request.urlopen(f"{address}/{path}", timeout=60) as answer:
                assert answer.status == 200 and (path or answer.read())


@pytest.mark.slow
@pytest.mark.parametrize("program", ["demo/space/app.py", "demo/endpoint/serve.py"])
def test_without_weights_the_programs_say_what_to_do(program, clone, tmp_path):
    if "space" in program:
        pytest.importorskip("gradio", reason="Gradio is not installed: pip install -e '.[space]'")
    shutil.copytree(clone, tmp_path / "bare", ignore=shutil.ignore_patterns("weights", "node_modules"))
    with started(f"python {program} --port {free_port()}", tmp_path / "bare") as process:
        sentence = read_until(process, "there is no .*weights/handunet-base.*--model.*")[0]
        assert "accelerate launch train.py" in sentence.replace("\n", " ") or read_until(process, "train.py")
