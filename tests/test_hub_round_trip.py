"""Push a HandUNet to a Hub over real HTTP, and use it in a fresh process that has no trace of the package."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.hub_server import HubServer, run_program

pytestmark = pytest.mark.slow

# What a repository must hold to work without the package; README.md is transformers' own.
CODE = {
    "configuration_handunet.py",
    "configuration_handunet_detector.py",
    "crops.py",
    "detection_decoding.py",
    "detection_losses.py",
    "hands.py",
    "heatmaps.py",
    "image_processing_handunet.py",
    "image_processing_handunet_detector.py",
    "images.py",
    "keypoints.py",
    "losses.py",
    "modeling_handunet.py",
    "modeling_handunet_detector.py",
    "nesting.py",
    "pipeline_handunet.py",
    "torch_hands.py",
    "versions.py",
}
PROCESSOR = {"heatmaps.py", "image_processing_handunet.py"}  # comes with a processor only
DETECTOR_CODE = {name for name in CODE if "detect" in name} | {"crops.py", "images.py", "versions.py"}  # at least
DATA = {"config.json", "model.safetensors", "preprocessor_config.json"}
DETECTOR = {f"detector/{name}" for name in DETECTOR_CODE | DATA}

PUSH = """
import json, sys
import httpx2
import numpy as np
import torch
from huggingface_hub import HfApi
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from tests.small_model import small_detector
from transformers import pipeline

folder = sys.argv[1]
photo, boxes, sides = f"{folder}/photo.png", [[20, 15, 40, 30], [60.5, 40, 25, 50]], ["left", "right"]
processor = HandUNetImageProcessor(size=32, box_fill=0.6)
answers, shas = {}, []

def network(seed):
    torch.manual_seed(seed)
    model = HandUNetForPoseEstimation(HandUNetConfig(image_size=32, hidden_sizes=(4, 8), sigma=1.5))
    with torch.no_grad():
        for _ in range(5):  # batch statistics of its own
            model(torch.randn(8, 3, 32, 32))
        model.head.weight *= 20
        model.eval()
        answers[f"heatmaps{seed}"] = model(**processor(photo, boxes=boxes, handedness=sides)).heatmaps.numpy()
    pipe = pipeline("keypoint-detection", model=model, image_processor=processor, detector=small_detector())
    answers[f"hands{seed}"] = pipe(photo, boxes=boxes, handedness=sides)
    answers[f"found{seed}"] = pipe(photo, detection_threshold=0.1)
    return model, pipe

model, pipe = network(1)
model.push_to_hub("tester/parts")
shas.append(processor.push_to_hub("tester/parts").oid)
pipe.push_to_hub("tester/whole")
other, _ = network(2)
shas.append(other.push_to_hub("tester/parts", commit_message="Better weights").oid)

# A later commit whose code does not even load: a pinned revision does not see it.
api = HfApi()
broken = dict(path_or_fileobj=b"raise RuntimeError('from main')", path_in_repo="modeling_handunet.py")
shas.append(api.upload_file(repo_id="tester/parts", **broken).oid)

# A push whose connection breaks during the commit, then a push over it.
model.push_to_hub("tester/flaky")
try:
    other.push_to_hub("tester/flaky")
except httpx2.TransportError:
    answers["broken"] = True
assert np.ptp(answers["heatmaps1"]) > 0.05 and np.abs(answers["heatmaps1"] - answers["heatmaps2"]).max() > 0.05
np.savez(f"{folder}/heatmaps.npz", first=answers.pop("heatmaps1"), second=answers.pop("heatmaps2"))
print(json.dumps({**answers, "shas": shas}))
"""

# What every pulling program starts with: nothing of ours can be imported, and the pushing process's answers.
PULL = """
import json, sys
import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPoseEstimation, pipeline

try:
    import modeling_handunet
    raise SystemExit("the package can be imported")
except ModuleNotFoundError:
    pass
folder, shas = sys.argv[1], sys.argv[2:]
photo, boxes, sides = f"{folder}/photo.png", [[20, 15, 40, 30], [60.5, 40, 25, 50]], ["left", "right"]
expected = np.load(f"{folder}/heatmaps.npz")

def difference(model, processor, which):
    with torch.no_grad():
        heatmaps = model(**processor(photo, boxes=boxes, handedness=sides)).heatmaps.numpy()
    return float(np.abs(heatmaps - expected[which]).max())

def hands(repo, **options):
    pipe = pipeline("keypoint-detection", model=repo, trust_remote_code=True, **options)
    return pipe, pipe(photo, boxes=boxes, handedness=sides)
"""


def assert_the_same_hands(found: list[dict], expected: list[dict]) -> None:
    """The same hands: scores within 1e-5, places within 0.01 px of the crop, here 0.02 px of the photograph."""
    assert [hand["label"] for hand in found] == [hand["label"] for hand in expected] and len(found) > 1
    for hand, other in zip(found, expected):
        assert hand["score"] == pytest.approx(other["score"], abs=1e-5)
        assert hand["box"] == pytest.approx(other["box"])
        for point, truth in zip(hand["keypoints"], other["keypoints"], strict=True):
            assert point["name"] == truth["name"]
            assert (point["x"], point["y"]) == pytest.approx((truth["x"], truth["y"]), abs=0.02)
            assert point["score"] == pytest.approx(truth["score"], abs=1e-5)


def own_files(names) -> set[str]:
    """The files of a repository without those of its detector and those that the Hub adds."""
    return {name for name in names if not name.startswith("detector/")} - {".gitattributes", "README.md"}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A Hub to which a process with the package has pushed; its answers; and the folder of the photograph."""
    folder = tmp_path_factory.mktemp("round_trip")
    x, y = np.meshgrid(np.linspace(0, 1, 120), np.linspace(0, 1, 100))
    waves = [np.sin(12 * x + 5 * y), np.cos(9 * y * y - 4 * x), np.sin(20 * x * y)]
    Image.fromarray(np.uint8(127.5 + 127.5 * np.stack(waves, -1))).save(folder / "photo.png")
    with HubServer(folder / "hub") as hub:
        with hub.breaking("POST", "/tester/flaky/commit/", after_bytes=1000, skip=1):
            answers = run_program(hub, PUSH, folder, cwd=folder, with_package=True, timeout=600)
        yield hub, folder, answers


def pull(pushed, program: str, cwd):
    hub, folder, answers = pushed
    return run_program(hub, PULL + program, folder, *answers["shas"], cwd=cwd, timeout=600)


def test_a_push_makes_a_whole_repository_in_one_commit_each(pushed):
    hub, _, answers = pushed
    first, second, third = answers["shas"]
    assert hub.commits("tester/parts")[:3] == [third, second, first]
    assert len(hub.commits("tester/parts")) == 5  # the creation, the model, the processor, two later ones
    for repo, revision in (("tester/parts", first), ("tester/parts", second), ("tester/whole", "main")):
        files = set(hub.files(repo, revision=revision))
        assert own_files(files) == CODE | DATA
        assert files >= DETECTOR if repo == "tester/whole" else not files & DETECTOR
    parts, whole = hub.files("tester/parts", revision=first), hub.files("tester/whole")
    for name in CODE | {"model.safetensors"}:
        assert parts[name] == whole[name]
    changed = {name for name in CODE | DATA if hub.files("tester/parts", revision=second)[name] != parts[name]}
    assert changed == {"model.safetensors"}
    task = json.loads(parts["config.json"])["custom_pipelines"]["keypoint-detection"]
    assert task["impl"] == "pipeline_handunet.HandKeypointDetectionPipeline"


def test_every_auto_class_and_the_pipeline_answer_as_where_they_were_pushed(pushed, tmp_path):
    program = """
result = {}
options = dict(trust_remote_code=True, revision=shas[0])
config = AutoConfig.from_pretrained("tester/parts", **options)
result["config"] = [config.model_type, list(config.hidden_sizes), config.sigma, config.id2label[20]]
processor = AutoImageProcessor.from_pretrained("tester/parts", **options)
result["processor"] = [type(processor).__name__, processor.box_fill, processor.size["height"]]
for auto_class in (AutoModelForPoseEstimation, AutoModel):
    model = auto_class.from_pretrained("tester/parts", **options)
    assert type(model).__name__ == "HandUNetForPoseEstimation"
    assert type(model).__module__.startswith("transformers_modules.")
    result[auto_class.__name__] = difference(model, processor, "first")
pipe, result["hands"] = hands("tester/parts", revision=shas[0])
result["pipeline"] = [type(pipe).__name__, type(pipe).__module__.split(".")[0]]
_, result["batched"] = hands("tester/parts", revision=shas[0], batch_size=2)
pipe, result["whole"] = hands("tester/whole")
result["found"] = pipe(photo, detection_threshold=0.1)
finder = pipe.hands.detector[0]
result["detector"] = [type(finder).__name__, type(finder).__module__.split(".")[0]]
print(json.dumps(result))
"""
    hub, _, answers = pushed
    result = pull(pushed, program, tmp_path)
    assert result["config"] == ["handunet", [4, 8], 1.5, "little_4"]
    assert result["processor"] == ["HandUNetImageProcessor", 0.6, 32]
    assert result["AutoModelForPoseEstimation"] < 1e-5 and result["AutoModel"] < 1e-5
    assert result["pipeline"] == ["HandKeypointDetectionPipeline", "transformers_modules"]
    for name in ("hands", "batched", "whole"):
        assert_the_same_hands(result[name], answers["hands1"])
    assert result["detector"] == ["HandUNetForObjectDetection", "transformers_modules"]
    assert_the_same_hands(result["found"], answers["found1"])


def test_a_revision_pins_weights_and_code(pushed, tmp_path):
    program = """
first, second, third = shas
result = {}
for name, sha in (("first", first), ("second", second)):
    options = dict(trust_remote_code=True, revision=sha)
    processor = AutoImageProcessor.from_pretrained("tester/parts", **options)
    result[name] = difference(AutoModelForPoseEstimation.from_pretrained("tester/parts", **options), processor, name)
_, result["hands"] = hands("tester/parts", revision=second)
for name, options in (
    ("main", dict(trust_remote_code=True)),
    ("distrusted", dict(trust_remote_code=False, revision=first)),
    ("absent", dict(trust_remote_code=True, revision="v9")),
):
    try:
        AutoModelForPoseEstimation.from_pretrained("tester/parts", **options)
    except Exception as error:
        result[name] = f"{type(error).__name__}: {error}"
print(json.dumps(result))
"""
    hub, _, answers = pushed
    result = pull(pushed, program, tmp_path)
    assert result["first"] < 1e-5 and result["second"] < 1e-5
    assert_the_same_hands(result["hands"], answers["hands2"])
    assert result["main"] == "RuntimeError: from main"  # the latest code, which is broken, is what main runs
    assert result["distrusted"].startswith("ValueError") and "trust_remote_code" in result["distrusted"]
    assert result["absent"].startswith("OSError") and "v9" in result["absent"]
    for sha in answers["shas"][:2]:
        assert ("HEAD", f"/tester/parts/resolve/{sha}/modeling_handunet.py") in hub.requests


def test_a_push_that_broke_off_left_the_older_model_as_it_was(pushed):
    hub, _, answers = pushed
    assert answers["broken"] is True
    assert len(hub.commits("tester/flaky")) == 2  # the creation and the push before
    before = hub.files("tester/parts", revision=answers["shas"][0])
    files = {name: content for name, content in hub.files("tester/flaky").items() if name in CODE | DATA}
    assert files == {name: before[name] for name in CODE - PROCESSOR | {"config.json", "model.safetensors"}}


def test_what_was_pulled_is_pushed_again_whole_and_needs_no_other_repository(pushed, tmp_path):
    hub, _, answers = pushed
    again = """
options = dict(trust_remote_code=True, revision=shas[0])
model = AutoModelForPoseEstimation.from_pretrained("tester/parts", **options)
processor = AutoImageProcessor.from_pretrained("tester/parts", **options)
pipe, _ = hands("tester/whole")
model.push_to_hub("tester/model_again")
processor.push_to_hub("tester/model_again")
AutoModel.from_pretrained("tester/parts", **options).push_to_hub("tester/base_again")
processor.push_to_hub("tester/base_again")
pipe.push_to_hub("tester/pipe_again")
pipe.save_pretrained("pipe_folder")
model.save_pretrained("model_folder")
processor.save_pretrained("model_folder")
print(json.dumps(None))
"""
    pull(pushed, again, tmp_path)
    repositories = ("tester/model_again", "tester/base_again", "tester/pipe_again")
    for repo in repositories:
        files = hub.files(repo)
        assert own_files(files) == CODE | DATA and (files.keys() >= DETECTOR) == (repo == "tester/pipe_again")
        for name in [name for name in files if name.endswith("config.json")]:
            assert b"tester/" not in files[name] and b"--" not in files[name]  # no code is looked for elsewhere
        for name in CODE:
            assert files[name] == hub.files("tester/whole")[name]
    for folder in ("pipe_folder", "model_folder"):
        assert {path.name for path in (tmp_path / folder).iterdir()} >= CODE | DATA
    use = f"""
result = {{}}
for repo in {[*repositories, "./pipe_folder", "./model_folder"]}:
    processor = AutoImageProcessor.from_pretrained(repo, trust_remote_code=True)
    model = AutoModelForPoseEstimation.from_pretrained(repo, trust_remote_code=True)
    AutoConfig.from_pretrained(repo, trust_remote_code=True)
    result[repo] = difference(model, processor, "first"), hands(repo)[1]
pipe = pipeline("keypoint-detection", model="tester/pipe_again", trust_remote_code=True)
result["tester/pipe_again"] += (pipe(photo, detection_threshold=0.1),)
print(json.dumps(result))
"""
    before = len(hub.requests)
    result = pull(pushed, use, tmp_path)
    assert_the_same_hands(result["tester/pipe_again"].pop(), answers["found1"])
    for repo, (difference, hands) in result.items():
        assert difference < 1e-5, repo
        assert_the_same_hands(hands, answers["hands1"])
    assert not [path for _, path in hub.requests[before:] if "tester/parts" in path or "tester/whole" in path]
