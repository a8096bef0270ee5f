"""Training the hand detector: the same command, loop, checkpoints and card as of a pose model, at a size for tests."""

import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

import train
from dataset_script.sources import DetectionInputs, make_source
from modeling_handunet import HandUNetConfig, HandUNetForObjectDetection, HandUNetForPoseEstimation
from release.hub import assemble
from release.terms import read_card
from tests.test_package import run as run_without_package
from tests.tiny_training import forked, train_steps
from training.arguments import make_arguments, parse_arguments
from training.initial_weights import make_detector
from training.resume import save_checkpoint
from training.run import Run
from training.tasks import make_task
from training.tasks.detection import padded

RED, BLUE = (255, 0, 0), (0, 0, 255)


def write_people(folder, counts=(("train", "ours", 6), ("validation", "large", 3), ("validation", "small", 2))):
    """Photographs of 80 x 40 px: a red square on blue in each, at another place, for a right or a left hand."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for part, source, count in counts:
        for number in range(count):
            x, y, side = 8 + 7 * number, 4 + number, 20
            picture = Image.new("RGB", (80, 40), BLUE)
            picture.paste(RED, (x, y, x + side, y + side))
            name, key = f"{source}{number}.png", len(images)
            picture.save(folder / "images" / name)
            image = {"id": key, "file_name": name, "width": 80, "height": 40, "source": source, "split": part}
            images.append({**image, "marked": "by eye"})
            hand = {"image_id": key, "bbox": [x, y, side, side], "handedness": ("right", "left")[number % 2]}
            annotations.append({**hand, "ignore": False})
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people") / "people")


@pytest.fixture(scope="module")
def tiny(people) -> list[str]:
    """The options of a training that is over in seconds."""
    size = "--task detection --image_size 64 --hidden_sizes 4 8 --decoder_sizes 8 --layers 6 --train_samples 12 --batch_size 4"
    precision = ["--mixed_precision", "no"]  # as `make_run` trains
    return [*size.split(), "--epochs", "2", *precision, "--people", str(people), "--cache_dir", str(people.parent / "cache")]


def make_run(arguments: list) -> Run:
    """The run of a command line, in this process."""
    args = parse_arguments([str(argument) for argument in arguments])
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    source = make_source(
        args.data.dataset, None, args.data, image_size=args.model.image_size, box_fill=None, seed=args.optimisation.seed
    )
    return Run(args, Accelerator(cpu=True), source)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The output folder of a whole run."""
    folder = tmp_path_factory.mktemp("finished")
    status, text = forked(folder, *tiny, "--output_dir", folder / "run")
    assert status == 0, text
    assert "12 training samples of people, 3 for validation, 2 for test" in text and "Test: AP@0.4" in text
    return folder / "run"


def test_a_run_ends_with_a_model_its_figures_and_a_card(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["steps"] == 6 and metrics["test"]["num_hands"] == 2 and len(metrics["history"]) == 2
    assert {entry["validation"]["num_hands"] for entry in metrics["history"]} == {3}
    card = read_card(finished / "model")
    assert card.data.pipeline_tag == "object-detection" and card.data.license == "unknown"  # nobody stated terms
    assert {result.task_type for result in card.data.eval_results} == {"object-detection"}
    (command,) = [line for line in card.text.splitlines() if line.startswith("accelerate launch train.py")]
    assert {"--task detection", "--people people", "--decoder_sizes 8"} <= {f"--{part.strip()}" for part in command.split("--")}
    assert "focal loss" in card.text and "2 hands in 2 photographs" in card.text and str(finished) not in card.text
    assert (finished / "figures" / "detections.png").exists()  # shows photographs, so it stays here
    assert {path.name for path in (finished / "model" / "figures").iterdir()} == {"losses.png"}
    assert not (finished / "model" / "handler.py").exists()  # it serves pose models


@pytest.mark.slow
def test_the_folder_loads_in_the_standard_pipeline_without_the_package(finished):
    code = """
import json
from transformers import pipeline
pipe = pipeline("object-detection", model=sys.argv[1], trust_remote_code=True)
hands = pipe(sys.argv[2], threshold=0.0)
assert {hand["label"] for hand in hands} <= {"right hand", "left hand"}, hands
assert all(0 <= hand["box"]["xmin"] < hand["box"]["xmax"] <= 64 for hand in hands), hands
"""
    picture = finished / "picture.png"
    Image.new("RGB", (64, 48), BLUE).save(picture)
    run_without_package(code, finished / "model", picture)


def test_the_folder_of_a_detector_is_complete_for_the_hub(finished, tmp_path):
    pytest.importorskip("onnxscript")
    assert assemble(finished / "model", "user/detector", tmp_path / "repository") is None
    assert [path.name for path in (tmp_path / "repository" / "onnx").iterdir()] == ["model.onnx"]
    assert '"object-detection", model="user/detector"' in (tmp_path / "repository" / "README.md").read_text()


def test_a_run_that_was_stopped_ends_with_the_same_weights(finished, tiny, tmp_path):
    run = make_run([*tiny, "--output_dir", tmp_path / "run"])
    for name in ("checkpoints", "logs", "figures"):
        (tmp_path / "run" / name).mkdir(parents=True)
    train_steps(run, 2)
    save_checkpoint(run)
    status, text = forked(tmp_path, *tiny, "--output_dir", tmp_path / "run", "--resume")
    assert status == 0 and "epoch 1, step 2" in text, text
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["history"] == (
        json.loads((finished / "metrics.json").read_text())["history"]
    )
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (finished, tmp_path / "run")]
    assert weights[0] == weights[1]


def test_a_finished_detector_is_scored_on_the_same_photographs(finished, people, tmp_path, capsys):
    options = ["--task", "detection", "--people", people, "--cache_dir", people.parent / "cache", "--mixed_precision", "no"]
    status, text = forked(tmp_path, "--eval_only", "--model", finished / "model", *options)
    assert status == 0, text
    figures = json.loads(text[text.index("{") :])
    tested = json.loads((finished / "metrics.json").read_text())["test"]
    assert figures["num_hands"] == 2 and figures["ap@0.4"] == pytest.approx(tested["ap@0.4"])
    assert figures["loss"] == pytest.approx(tested["loss"], rel=1e-4)


def test_validation_and_test_are_other_sources_and_the_files_own_test_part_is_not_read(people, tmp_path):
    parts = [("train", "a", 2), ("validation", "b", 3), ("validation", "c", 2), ("validation", "d", 1), ("test", "e", 1)]
    folder = write_people(tmp_path / "people", parts)
    source = make_source(
        ["people"], None, make_arguments(task="detection", people=str(folder), layers=2, cache_dir=str(tmp_path)).data,
        image_size=64, box_fill=None,
    )  # fmt: skip
    splits = source.splits()
    # The largest and the third of the sources, and the second.
    assert len(splits.validation) == 4 and splits.test_groups == ["c", "c"]
    assert "2 photographs of people, 2 of them marked by eye" in source.describe().data
    with pytest.raises(ValueError, match="one source only"):
        lonely = write_people(tmp_path / "lonely", parts[:2])
        make_source(
            ["people"], None, make_arguments(task="detection", people=str(lonely), cache_dir=str(tmp_path)).data,
            image_size=64, box_fill=None,
        ).splits()  # fmt: skip


def test_a_training_sample_depends_on_seed_epoch_and_number_alone(tiny, tmp_path):
    run = make_run([*tiny, "--output_dir", tmp_path])
    stream = run.splits.train
    stream.epoch = 3
    together, alone = stream.__getitems__([4, 9, 2]), stream.__getitems__([9])
    assert torch.equal(together["image"][1], alone["image"][0]) and torch.equal(together["boxes"][1], alone["boxes"][0])
    stream.epoch = 4
    assert not torch.equal(stream.__getitems__([9])["image"], alone["image"])


def test_streamed_hands_are_drawn_when_they_are_needed(tiny, tmp_path):
    arguments = [argument for argument in tiny if argument not in ("--layers", "6")]
    run = make_run([*arguments, "--streaming", "--output_dir", tmp_path])
    batch = run.splits.train.__getitems__(list(range(4)))
    assert batch["image"].shape == (4, 3, 64, 64) and batch["present"].any()


def test_what_is_found_exactly_where_it_is_has_an_ap_of_1(tiny, tmp_path):
    """The answers are put in place of the network's; boxes are in pixels of a photograph of 80 x 40."""
    task = make_task(parse_arguments([*tiny, "--output_dir", str(tmp_path)]))
    hands = [torch.tensor([[10.0, 10, 30, 30]]), torch.tensor([[50.0, 5, 70, 25], [0.0, 0, 8, 8]])]
    found = [
        {"scores": torch.linspace(0.9, 0.2, len(boxes)), "labels": torch.zeros(len(boxes), dtype=torch.long), "boxes": boxes,
         "directions": torch.tensor([[1.0, 0.0]] * len(boxes))}
        for boxes in hands
    ]  # fmt: skip
    arrays = {name: values.numpy() for name, values in padded(found).items()}
    # The square has a side of 80 px, and the photograph begins 20 px below its top.
    arrays["true_boxes"] = np.array([[[10, 30, 30, 50], [0, 0, 0, 0]], [[50, 25, 70, 45], [0, 0, 0, 0]]]) / 80
    arrays["class_labels"] = np.array([[0, -1], [1, -1]])
    arrays["true_directions"] = np.array([[[0, 1.0], [math.nan] * 2], [[math.nan] * 2] * 2])
    arrays["ignore"], arrays["present"] = np.zeros((2, 2), dtype=bool), np.array([[True, False], [True, False]])
    arrays["size"], arrays["index"], arrays["loss"] = np.array([[40, 80]] * 2), np.arange(2), np.array([1.0, 3.0])
    figures = task.score(task.load_metric(), arrays)
    assert figures["num_hands"] == 2 and figures["ap@0.4"] == 1 and figures["recall@0.1_false"] == 1
    assert figures["side_accuracy"] == 0.5 and figures["direction_error_degrees"] == pytest.approx(90)
    assert figures["loss"] == 2  # (1 * 1 + 3 * 1) / 2 hands
    better, worse = {"loss": 2.0, "ap@0.4": 0.5}, {"loss": 1.0, "ap@0.4": 0.4}
    assert task.is_better(better, worse) and not task.is_better(worse, better) and task.is_better(worse, None)
    assert not task.is_better({"loss": math.nan, "ap@0.4": 0.6}, None)


def test_the_validation_loss_is_the_networks_own_on_each_photograph(tiny, tmp_path):
    run = make_run([*tiny, "--output_dir", tmp_path])
    arrays = run.task.predict(run.accelerator, run.average.module, run.validation_loader, run.make_targets)
    item = run.splits.validation[1]
    batch = {name: torch.as_tensor(value)[None] for name, value in item.items()}
    inputs = DetectionInputs.of_batch(batch)
    with torch.no_grad():
        pixels = train.normalize(inputs.images)
        loss = run.average.module(pixel_values=pixels, **run.make_targets(inputs)).loss
    assert arrays["loss"][1] == pytest.approx(loss.item(), rel=1e-3)


def test_a_detector_starts_from_a_detector_or_from_the_levels_of_a_pose_model(finished, people, tmp_path):
    def settings(**more):
        return make_arguments(task="detection", people=str(people), **more).model

    again = settings(init=str(finished / "model"))
    assert (again.image_size, again.hidden_sizes, again.decoder_sizes) == (64, [4, 8], [8])
    whole = HandUNetForObjectDetection.from_pretrained(finished / "model").state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in make_detector(again, seed=0).state_dict().items())
    with pytest.raises(ValueError, match="--decoder_sizes 4: --init .* brings its own, 8"):
        settings(init=str(finished / "model"), decoder_sizes=[4])

    pose = HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 6), image_size=32))
    pose.save_pretrained(tmp_path / "pose")
    mine = settings(init=str(tmp_path / "pose"), hidden_sizes=[4, 8, 8], decoder_sizes=[8], image_size=64)
    detector = make_detector(mine, seed=0)
    assert torch.equal(detector.down[0][4].weight, pose.down[0][4].weight)
    with pytest.raises(ValueError, match="do not begin as the detector's"):
        make_detector(settings(init=str(tmp_path / "pose"), hidden_sizes=[8, 8], decoder_sizes=[8]), seed=0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"task": "detection"}, "--task detection has no --people"),
        ({"task": "detection", "people": "X", "sigma": 2.0}, "--sigma has no effect here: --task pose has it"),
        ({"task": "detection", "people": "X", "dataset": ["scenes"]}, "--dataset scenes: for --task detection choose"),
        ({"task": "detection", "people": "X", "negatives": 0.2}, "--negatives has no effect here"),
        ({"people": "X"}, "--people has no effect here: --task detection --dataset people has it"),
        ({"decoder_sizes": [8]}, "--decoder_sizes has no effect here: --task detection has it"),
    ],
)
def test_options_of_another_task_are_refused_in_a_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        make_arguments(**settings)
