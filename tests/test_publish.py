"""Publishing over real HTTP: one commit each for the model and its Space, and the card's snippets run as printed."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

import release.hub
from release.files import ROOT
from release.hub import assemble, assemble_space, push_model
from release.terms import read_card
from tests.hub_server import HubServer, run_program
from tests.small_model import save_small_model
from tests.test_hub_round_trip import CODE, DETECTOR, own_files

DATA = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "metrics.json"}
DATA |= {"training_arguments.json", "report.json", "handler.py", "serving.py", "requirements.txt", "examples/examples.json"}
EXAMPLES = {f"examples/{name}.jpg" for name in ("left", "open", "pointing", "three")}
FIGURES = {"losses", "joint_errors", "success_rate", "predictions", "failures", "group_errors", "reliability"}
FIGURES = {f"figures/{name}.png" for name in FIGURES}
SPACE = {"app.py", "films.py", "serving.py", "crop.html", "crop.css", "crop.js", "requirements.txt", "README.md"}
SPACE |= {"examples/examples.json"}
ONNX = {"onnx/model.onnx", "onnx/detector.onnx"}
SCREENSHOT = {"figures/space.jpg"} if release.hub.SCREENSHOT.is_file() else set()

PUBLISH = """
import json, sys
from scripts.publish import main
try:
    main()
except SystemExit as end:
    print(json.dumps(str(end.code)))
else:
    print(json.dumps("done"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("publish") / "hands")


@pytest.fixture
def without_onnx(monkeypatch):
    monkeypatch.setattr(release.hub, "add_onnx", lambda folder: "onnx is not installed")


def publish(hub: HubServer, folder: Path, *arguments: str, cwd: Path, onnx: bool = True) -> str:
    """Run `scripts.publish`; "done", or its last words.  Without `onnx`, as if that were not installed."""
    program = PUBLISH if onnx else "import sys\nsys.modules['onnx'] = None\n" + PUBLISH
    return run_program(hub, program, folder, *arguments, cwd=cwd, with_package=True, timeout=600)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_without_figures_gets_its_page_too(tmp_path, folder, without_onnx):
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("figures"))
    assemble(bare, "someone/hands", tmp_path / "target", "someone/page")
    assert (tmp_path / "target" / "README.md").is_file()
    assert {path.relative_to(tmp_path / "target").as_posix() for path in (tmp_path / "target").glob("figures/*")} == SCREENSHOT


def test_a_dry_run_lists_every_file_with_its_size_and_sends_nothing(folder, without_onnx):
    said = []
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    push_model(folder, "someone/hands", space="someone/page", dry_run=True, say=said.append)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert said[0] == "Without an ONNX file: onnx is not installed"
    listed = [{name: size for size, name in re.findall(r"^ +([\d,]+)  (\S+)$", text, re.MULTILINE)} for text in said[1:]]
    assert own_files(listed[0]) | {"README.md"} == CODE | DATA | EXAMPLES | FIGURES | SCREENSHOT
    assert int(listed[0]["model.safetensors"].replace(",", "")) == (folder / "model.safetensors").stat().st_size
    assert SPACE | EXAMPLES | {"modeling_handunet/drawing.py"} <= listed[1].keys()
    assert said[1].startswith("Would go to the model someone/hands") and "space someone/page" in said[2]


def test_own_photographs_are_published_only_when_asked(tmp_path, without_onnx, monkeypatch):
    """Also from a folder whose card was saved with them, before there was a choice."""
    folder = save_small_model(tmp_path / "hands")
    report = json.loads((folder / "report.json").read_text())
    report["source"] |= {"type": "coco", "private": True, "pictures": "The photographs are the trainer's own."}
    (folder / "report.json").write_text(json.dumps(report))
    card = (folder / "README.md").read_text()
    older = re.sub(r"<!-- /?(predictions|failures|pictures) -->\n", "", card)
    assert "<!-- failures" not in older
    shown = {"figures/predictions.png", "figures/failures.png"}
    for number, text in enumerate((card, older)):
        (folder / "README.md").write_text(text)
        target = tmp_path / f"kept private {number}"
        assemble(folder, "someone/hands", target)
        pushed = (target / "README.md").read_text()
        assert own_files(names(target)) | {"README.md"} == CODE | DATA | EXAMPLES | FIGURES - shown
        assert not any(name in pushed for name in shown) and "figures/losses.png" in pushed
    said = []
    push_model(folder, "someone/hands", dry_run=True, say=said.append)
    assert said[1] == "Figures that show your photographs are left out; --publish_examples publishes them."
    seen = re.search("everybody who can open it will see: (.*)[.]$", said[2])[1].split(", ")
    assert set(seen) == EXAMPLES - {"examples/examples.json"} | FIGURES - shown
    # Saved without them, and then published with them: they come from the run's figures/.
    (folder / "README.md").write_text((tmp_path / "kept private 0" / "README.md").read_text())
    for name in shown:
        (folder / name).unlink()
    assemble(folder, "someone/hands", tmp_path / "public", publish_examples=True)
    pushed = (tmp_path / "public" / "README.md").read_text()
    assert shown <= names(tmp_path / "public") and all(name in pushed for name in shown)
    assert "The photographs are the trainer's own." in pushed


def test_weights_that_were_stored_without_code_are_published_with_it(folder, tmp_path, without_onnx):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.py"))
    assemble(bare, "someone/my-hands", tmp_path / "model")
    assert CODE | DETECTOR <= names(tmp_path / "model")
    for name in (*CODE, *DETECTOR, "model.safetensors", "config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_detector_beside_the_model_is_published_in_its_repository(folder, tmp_path, without_onnx):
    own = tmp_path / "weights" / "own"
    shutil.copytree(folder, own, ignore=shutil.ignore_patterns("detector"))
    shutil.copytree(folder / "detector", tmp_path / "weights" / "finder")
    settings = json.loads((own / "config.json").read_text())

    def assembled(detector: str) -> Path:
        (own / "config.json").write_text(json.dumps({**settings, "detector": detector}))
        assemble(own, "someone/hands", tmp_path / detector.strip("./"))
        return tmp_path / detector.strip("./")

    target = assembled("../finder")
    assert names(target) >= DETECTOR and json.loads((target / "config.json").read_text())["detector"] == "detector"
    for unchanged in ("someone/finder", "../nowhere"):  # on the Hub, and none at all
        target = assembled(unchanged)
        assert json.loads((target / "config.json").read_text())["detector"] == unchanged
        assert not names(target) & DETECTOR


def test_the_page_is_put_together_with_its_own_name_and_the_spaces(folder, tmp_path, without_onnx, monkeypatch):
    screenshot = tmp_path / "space.jpg"
    screenshot.write_bytes((folder / "figures" / "losses.png").read_bytes())
    monkeypatch.setattr(release.hub, "SCREENSHOT", screenshot)
    target = tmp_path / "model"
    assert assemble(folder, "someone/my-hands", target, "someone/page") == "onnx is not installed"
    assert own_files(names(target)) | {"README.md"} == CODE | DATA | EXAMPLES | FIGURES | {"figures/space.jpg"}
    card = (target / "README.md").read_text()
    assert 'model="someone/my-hands"' in card and "USER" not in card and "onnx/model.onnx" not in card
    assert "](figures/space.jpg)](https://huggingface.co/spaces/someone/page)" in card
    assert read_card(str(target)).data.model_name == "my-hands"
    again = tmp_path / "again"  # what was pulled is published elsewhere, without a Space
    assemble(target, "other/hands", again)
    card = (again / "README.md").read_text()
    assert "someone" not in card and "other/hands" in card and "huggingface.co/spaces" not in card


def test_the_space_names_its_model_and_carries_the_package(folder, tmp_path):
    target = tmp_path / "space"
    assemble_space(target, "someone/hands", None)
    package = {f"modeling_handunet/{path.name}" for path in ROOT.glob("modeling_handunet/*.py")}
    assert names(target) == SPACE | EXAMPLES | package
    metadata = yaml.safe_load((target / "README.md").read_text().split("---\n")[1])
    assert (metadata["models"], metadata["sdk"], metadata["app_file"]) == (["someone/hands"], "gradio", "app.py")
    assert "gradio==" + metadata["sdk_version"] in (target / "requirements.txt").read_text()
    assert "research only" not in metadata["short_description"]
    assemble_space(tmp_path / "other", "someone/hands", "research-only")
    assert "short_description: 21 keypoints of a hand; research only\n" in (tmp_path / "other" / "README.md").read_text()


def test_what_is_not_a_finished_model_or_not_a_name_is_refused(folder, tmp_path, without_onnx):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "README.md").unlink()
    with pytest.raises(ValueError, match="has no README.md.*nobody would know its terms"):
        assemble(bare, "someone/hands", tmp_path / "a")
    with pytest.raises(ValueError, match="is not a finished model"):
        assemble(tmp_path / "nowhere", "someone/hands", tmp_path / "b")
    with pytest.raises(ValueError, match="names no owner"):
        assemble(folder, "hands", tmp_path / "c")
    for name in ("some one/hands", "a/b/c", "someone/--hands"):
        with pytest.raises(ValueError):
            assemble(folder, name, tmp_path / "d")
    with pytest.raises(ValueError):
        assemble(folder, "someone/hands", tmp_path / "e", "someone/bad space")


@pytest.fixture(scope="module")
def published(folder, tmp_path_factory):
    """A Hub that holds the model and its Space, pushed by the command."""
    here = tmp_path_factory.mktemp("published")
    with HubServer(here / "hub") as hub:
        assert publish(hub, folder, "tester/hands", "--space", "tester/page", cwd=here) == "done"
        yield hub


@pytest.mark.slow
def test_the_model_and_its_space_arrive_whole_in_one_commit_each(published, folder):
    hub = published
    files, space = hub.files("tester/hands"), hub.files("tester/page", "space")
    assert len(hub.commits("tester/hands")) == len(hub.commits("tester/page", "space")) == 2  # one, and the creation
    assert own_files(files) - ONNX | {"README.md"} == CODE | DATA | EXAMPLES | FIGURES | SCREENSHOT
    for name in ("model.safetensors", "config.json", "figures/failures.png"):
        assert files[name] == (folder / name).read_bytes()
    pytest.importorskip("onnxscript")
    assert files.keys() >= ONNX and b"`onnx/model.onnx` is the same network" in files["README.md"]
    metadata = yaml.safe_load(space["README.md"].decode().split("---\n")[1])
    assert metadata["models"] == ["tester/hands"] and "modeling_handunet/drawing.py" in space


@pytest.mark.slow
def test_the_cards_snippets_run_as_printed_where_the_package_is_not(published, tmp_path):
    card = published.files("tester/hands")["README.md"].decode()
    first, second, third = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in first.splitlines() if line]) <= 10 and "box=" not in first and "boxes" not in first
    check = """
import json
assert type(detect).__module__.startswith("transformers_modules.")
once = detect(photo, boxes=[[124, 79, 225, 257]], handedness="left", look_again=False)
print(json.dumps([hands, once, poses[0][0]["keypoints"].tolist()]))
"""
    hands, once, keypoints = run_program(published, first + second + third + check, cwd=tmp_path)
    (hand,) = hands
    assert hand["label"] == "left hand" and [point["name"] for point in hand["keypoints"]][:2] == ["wrist", "thumb_1"]
    assert hand["box"] == {"xmin": 124.0, "ymin": 79.0, "xmax": 349.0, "ymax": 336.0}
    # The third snippet reads the same left hand, once.
    assert keypoints == [pytest.approx([point["x"], point["y"]], abs=0.01) for point in once[0]["keypoints"]]


@pytest.mark.slow
def test_the_handler_answers_in_a_folder_that_holds_only_the_pushed_repository(published, tmp_path):
    program = """
import json, os, sys
from huggingface_hub import snapshot_download
folder = snapshot_download("tester/hands", local_dir="repository")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, folder)
from handler import EndpointHandler
handler = EndpointHandler(folder)
print(json.dumps(handler(open(f"{folder}/examples/open.jpg", "rb").read())))
"""
    hands = run_program(published, program, cwd=tmp_path)  # as a detector of random weights finds them
    assert all(len(hand["keypoints"]) == 21 and 0 < hand["hand_score"] <= 1 for hand in hands)


@pytest.mark.slow
def test_a_push_that_breaks_leaves_the_repositories_as_they_were(tmp_path):
    first, second = (save_small_model(tmp_path / name, seed) for seed, name in enumerate(("first", "second")))
    (first / "figures" / "old.png").write_bytes((first / "figures" / "losses.png").read_bytes())
    with HubServer(tmp_path / "hub") as hub:
        assert publish(hub, first, "tester/hands", "--space", "tester/page", cwd=tmp_path, onnx=False) == "done"
        before = hub.files("tester/hands"), hub.commits("tester/hands"), hub.commits("tester/page", "space")
        assert "figures/old.png" in before[0]
        weights = hashlib.sha256((second / "model.safetensors").read_bytes()).hexdigest()
        for method, pattern in (("PUT", f"^/lfs/{weights}"), ("POST", "/models/tester/hands/commit/")):
            with hub.breaking(method, pattern, after_bytes=500, times=100) as broken:
                said = publish(hub, second, "tester/hands", "--space", "tester/page", cwd=tmp_path, onnx=False)
            assert broken.hits > 0 and said.startswith("publish.py: The push to the model tester/hands failed:")
            assert (hub.files("tester/hands"), hub.commits("tester/hands"), hub.commits("tester/page", "space")) == before
        assert publish(hub, second, "tester/hands", cwd=tmp_path, onnx=False) == "done"
        files = hub.files("tester/hands")
        assert files["model.safetensors"] == (second / "model.safetensors").read_bytes() != before[0]["model.safetensors"]
        assert "figures/old.png" not in files and "onnx/model.onnx" not in files
        assert len(hub.commits("tester/hands")) == len(before[1]) + 1


@pytest.mark.slow
def test_a_training_pushes_what_the_command_pushes(tmp_path):
    program = """
import json, runpy, sys
sys.argv = ["train.py", "--train_samples", "16", "--validation_samples", "6", "--test_samples", "6", "--epochs", "1",
            "--hidden_sizes", "4", "8", "--output_dir", "run", "--cache_dir", "cache", "--push_to_hub", "tester/trained",
            "--space", "tester/page"]
runpy.run_module("train", run_name="__main__")
print(json.dumps(None))
"""
    with HubServer(tmp_path / "hub") as hub:
        run_program(hub, program, cwd=tmp_path, with_package=True, timeout=900)
        files = hub.files("tester/trained")
        assert len(hub.commits("tester/trained")) == len(hub.commits("tester/page", "space")) == 2
        assert b"- tester/trained" in hub.files("tester/page", "space")["README.md"]
    assert own_files(files) - ONNX | {"README.md"} == CODE | DATA | EXAMPLES | FIGURES | SCREENSHOT
    assert b'model="tester/trained"' in files["README.md"]
    assert json.loads(files["metrics.json"])["test_by_group"]
