"""train.py from the outside: what a run leaves, how it stops and goes on, what it does about numbers that are not."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import types
from pathlib import Path

import pytest
import torch
from accelerate.utils import set_seed
from PIL import Image
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForPoseEstimation

from dataset_script import SyntheticHands
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation
from tests.test_checkpoints import seal_again
from tests.test_cutouts import write_cutouts
from tests.tiny_training import (
    ROOT,
    TINY,
    command,
    environment,
    fork,
    fork_call,
    forked,
    make_run,
    noise_splits,
    run,
    start,
    train_steps,
    wait_for,
    wait_for_end,
)  # fmt: skip
from tools import full_size_freihand, kill_and_resume
from training.arguments import parse_arguments
from training.resume import resume, save_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run from beginning to end: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    status, log = forked(folder, *TINY, "--output_dir", folder / "run", "--workers", "1")
    assert status == 0, log
    return types.SimpleNamespace(output=folder / "run", log=log)


def same_outcome(first: Path, second: Path) -> None:
    """Bit-identical weights, averages, optimizers, states, metrics, best checkpoints and models."""
    mine, other = kill_and_resume.result(first), kill_and_resume.result(second)
    assert [name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name)] == []


# A whole run


def test_a_run_leaves_the_whole_folder(trained):
    names = {path.name for path in trained.output.iterdir()}
    assert names == {".lock", "arguments.json", "checkpoints", "figures", "logs", "metrics.json", "model"}
    assert {path.name for path in (trained.output / "figures").iterdir()} == {
        "losses.png", "group_errors.png", "failures.png", "joint_errors.png", "success_rate.png", "predictions.png",
        "reliability.png",
    }  # fmt: skip
    metrics = json.loads((trained.output / "metrics.json").read_text())
    assert metrics["processes"] == 1 and metrics["steps"] == 12 and metrics["skipped_steps"] == 0
    assert [entry["epoch"] for entry in metrics["history"]] == [1, 2]
    assert metrics["test"]["num_hands"] == 6
    error = metrics["test"]["mean_error_percent"]
    assert metrics["error_over_mean_pose"] == error / metrics["mean_pose"]["mean_error_percent"]
    assert f"{error:.2f} %" in trained.log


def test_its_model_loads_with_the_auto_classes(trained):
    model = AutoModelForPoseEstimation.from_pretrained(trained.output / "model", trust_remote_code=False)
    processor = AutoImageProcessor.from_pretrained(trained.output / "model", trust_remote_code=False)
    assert tuple(model.config.hidden_sizes) == (4, 8)
    assert processor.size["height"] == 128
    assert model(torch.zeros(1, 3, 128, 128)).heatmaps.shape == (1, 21, 128, 128)
    card = (trained.output / "model" / "README.md").read_text()
    metrics = json.loads((trained.output / "metrics.json").read_text())
    assert f"{metrics['test']['mean_error_percent']:.3g}" in card


def test_its_newest_checkpoints_and_the_best_are_kept(trained):
    names = sorted(path.name for path in (trained.output / "checkpoints").iterdir())
    assert names == ["best", "step-00000006-00001-00000000", "step-00000012-00002-00000000"]


def test_a_log_file_is_not_flooded_by_progress_bars(trained):
    assert "\r" not in trained.log
    assert len(trained.log.splitlines()) <= 12 and len(trained.log) < 2000, trained.log
    assert sum(path.stat().st_size for path in (trained.output / "logs").rglob("*")) < 20_000


def test_a_second_run_into_the_same_folder_is_refused(trained, tmp_path):
    status, log = forked(tmp_path, *TINY, "--output_dir", trained.output)
    assert status == 1 and "is not empty. To go on with the run in it, add --resume" in log
    status, log = forked(tmp_path, *TINY, "--output_dir", trained.output / "metrics.json")
    assert status == 1 and "metrics.json is a file: name a folder" in log
    assert "Traceback" not in log


def test_resuming_a_run_that_is_over_changes_nothing(trained, tmp_path):
    before = kill_and_resume.result(trained.output)
    status, log = forked(tmp_path, *TINY, "--output_dir", trained.output, "--resume")
    assert status == 0, log
    assert "Resumed from" in log and "epoch 3, step 12" in log
    assert kill_and_resume.result(trained.output) == before


def test_eval_only_gives_the_figures_of_the_run(trained, tmp_path):
    sheet = ("--contact_sheet", tmp_path / "sheet.png")
    scoring = ["--eval_only", "--model", trained.output / "model", *TINY]
    status, log = forked(tmp_path, *scoring, *sheet, "--json")
    assert status == 0, log
    figures = json.loads(log)
    metrics = json.loads((trained.output / "metrics.json").read_text())
    assert {name: figures[name] for name in metrics["test"]} == metrics["test"]
    assert figures["by_background"].keys() == metrics["test_by_group"].keys()
    for name, part in figures["by_background"].items():
        assert part.items() <= {k: v for k, v in metrics["test_by_group"][name].items() if k in part}.items()
    errors = [part["mean_error_percent"] for part in figures["by_background"].values()]
    assert figures["mean_over_backgrounds"]["mean_error_percent"] == pytest.approx(sum(errors) / len(errors))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 10 * 256 and sheet.height % 256 == 0
    status, log = forked(tmp_path, *scoring)
    assert status == 0 and "{" not in log, log
    title, head, every, *groups, mean = log.splitlines()
    assert title == f"{trained.output / 'model'} on synthetic hands (easy): 6 hands"
    assert len({len(line) for line in (head, every, *groups, mean)}) == 1  # columns are aligned
    assert every.split()[:3] == ["all", "6", f"{metrics['test']['mean_error_over_box']:.3f}"]
    assert [line.split("  ")[0] for line in groups] == list(figures["by_background"])
    assert mean.startswith("mean over backgrounds")


# Stopping and going on


STOPPED = [*TINY, "--checkpoint_every", "2", "--workers", "2", "--augmentation", "1"]  # settings of the runs that are stopped


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> Path:
    """The folder of a run with the settings `STOPPED` that nothing stopped."""
    folder = tmp_path_factory.mktemp("untouched")
    status, log = forked(folder, *STOPPED, "--output_dir", folder / "run")
    assert status == 0, log
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("number, group", [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)])
def test_a_signal_finishes_the_step_and_resume_goes_on_bit_for_bit(tmp_path, untouched, number, group):
    output, log = tmp_path / "stopped", tmp_path / "log"
    process = start(*STOPPED, "--output_dir", output, log=log)
    wait_for(lambda: list((output / "checkpoints").glob("step-*[0-9]")), process, log)
    (os.killpg if group else os.kill)(process.pid, number)
    assert process.wait(60) == 128 + number, log.read_text()
    said = log.read_text()
    assert said.count(f"{number.name}: finishing the step and writing a checkpoint") == 1
    step = int(re.search(r"Stopped at step (\d+)\. Go on with the same command and --resume\.", said)[1])
    assert list((output / "checkpoints").glob(f"step-{step:08d}-*[0-9]"))
    assert "Traceback" not in said
    assert forked(tmp_path, *STOPPED, "--output_dir", output, "--resume")[0] == 0
    same_outcome(output, untouched)


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    many = [*TINY, "--batch_size", "24", "--train_samples", "2400", "--streaming", "--hidden_sizes", "64", "64"]
    process = start(*many, "--output_dir", output, log=log)
    wait_for(lambda: "training samples of" in log.read_text(), process, log)
    time.sleep(0.5)  # in the first steps, each of which takes seconds
    os.killpg(process.pid, signal.SIGINT)
    wait_for(lambda: "SIGINT: finishing the step" in log.read_text(), process, log)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(10) == 130
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("data", kill_and_resume.DATA)
def test_each_training_that_is_killed_has_arguments_that_are_taken(data):
    parse_arguments([*kill_and_resume.SETTINGS, *kill_and_resume.DATA[data]])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_come_out_as_if_they_had_never_been(tmp_path, processes):
    kills = 4 if processes == 1 else 3
    arguments = ["--kills", kills, "--processes", processes, "--seed", 11, "--folder", tmp_path]
    counts = kill_and_resume.main([str(argument) for argument in arguments])
    assert counts.total() == kills


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    ["--gradient_accumulation_steps 4 --checkpoint_every 1", "@recipes/seed.args --batch_size 4 --epochs 3 --patience 1"],
    ids=["accumulation", "seed recipe"],
)
def test_a_run_resumed_after_every_checkpoint_is_the_same(tmp_path, settings):
    """Killed as soon as there is a new checkpoint, again and again: at epochs' ends and within them."""
    settings = [*TINY, *settings.split(), "--output_dir"]
    assert forked(tmp_path, *settings, tmp_path / "untouched")[0] == 0
    output, log = tmp_path / "killed", tmp_path / "log"
    log.touch()

    def newest() -> list[str]:
        return sorted(path.name for path in (output / "checkpoints").glob("step-*[0-9]"))[-1:]

    for _ in range(20):
        before = newest()
        pid = fork(*settings, output, "--resume", log=log)
        while newest() == before and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        if newest() == before:  # it ended
            break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    else:
        pytest.fail(log.read_text())
    assert (output / "metrics.json").exists(), log.read_text()
    same_outcome(output, tmp_path / "untouched")


def test_a_process_that_is_killed_within_a_progress_bar_does_not_stop_those_after_it(tmp_path):
    log = tmp_path / "log"
    log.touch()

    def hold() -> None:
        with tqdm.get_lock():
            print("held")
            time.sleep(60)

    def show() -> None:
        signal.alarm(20)
        tqdm(disable=True)

    tqdm.get_lock()  # as any progress bar makes it
    pid = fork_call(hold, log=log)
    while "held" not in log.read_text():
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid, fork_call(show, log=log)) == [-signal.SIGKILL, 0]


# Several processes


@pytest.mark.slow
def test_two_processes_train_stop_and_go_on_together(tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    settings = [*TINY, "--batch_size", "2", "--checkpoint_every", "2", "--output_dir", output]
    launcher = start(*settings, log=log, processes=2)
    wait_for(lambda: list((output / "checkpoints").glob("step-*[0-9]")), launcher, log)
    os.kill(launcher.pid, signal.SIGTERM)  # as a batch system does; the launcher hands it on
    assert launcher.wait(60) != 0
    assert "Stopped at step" in log.read_text(), log.read_text()
    result = run(*settings, "--resume", processes=2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Resumed from" in result.stdout and "2 process(es) on cpu" in result.stdout
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["processes"] == 2 and metrics["steps"] == 12  # 24 samples, 2 processes, batches of 2, 2 epochs
    scores = {}
    for processes in (1, 2):  # 5 samples in batches of 2: uneven last ones
        scoring = ["--eval_only", "--model", output / "model", "--test_samples", "5", "--batch_size", "2", "--json"]
        result = run(*scoring, processes=processes)
        assert result.returncode == 0, result.stderr
        scores[processes] = json.loads(result.stdout)
    assert scores[1]["num_hands"] == scores[2]["num_hands"] == 5
    assert scores[1]["mean_error_percent"] == pytest.approx(scores[2]["mean_error_percent"], rel=1e-6)
    assert scores[1]["loss"] == pytest.approx(scores[2]["loss"], rel=1e-6)  # float32, in batches of other sizes


@pytest.mark.slow
def test_a_model_for_small_crops_is_trained_and_scored_on_them(tmp_path):
    scenes = [*TINY, "--dataset", "scenes", "--cache_dir", tmp_path / "cache"]
    small = ["--layers", "24", "--image_size", "32", "--box_fill", "0.6", "--epochs", "1", "--output_dir", tmp_path / "run"]
    status, log = forked(tmp_path, *scenes, *small)
    assert status == 0, log
    status, log = forked(tmp_path, "--eval_only", "--json", "--model", tmp_path / "run" / "model", *scenes)
    assert status == 0, log
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert json.loads(log)["mean_error_percent"] == metrics["test"]["mean_error_percent"]


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others_within_a_minute_and_its_error_is_shown(tmp_path):
    arguments = [*TINY, "--batch_size", "2", "--output_dir", tmp_path / "run"]
    line = ["tests/failing_process.py" if part == "train.py" else part for part in command(*arguments, processes=2)]
    result = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode != 0
    assert "ValueError: this hand has six fingers" in result.stderr
    assert time.time() - float(re.search(r"failing at ([\d.]+)", result.stdout)[1]) < 60
    pids = [int(pid) for pid in re.findall(r"process \d is (\d+)", result.stdout)]
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_within_a_minute(tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    launcher = start(*TINY, "--batch_size", "2", "--epochs", "500", "--output_dir", output, log=log, processes=2)
    wait_for(lambda: list((output / "checkpoints").glob("step-*[0-9]")), launcher, log)
    first, second = sorted(kill_and_resume.children(launcher.pid))
    os.kill(second, signal.SIGKILL)
    killed = time.monotonic()
    assert launcher.wait(90) != 0
    assert time.monotonic() - killed < 60
    assert not Path(f"/proc/{first}").exists()
    assert "SIGKILL" in log.read_text() or "exitcode: -9" in log.read_text().replace(" ", "")


# Numbers that are not


def everything(run) -> dict[str, torch.Tensor]:
    """Copies of the weights, the batch statistics, their averages and the optimizer's state."""
    values = {name: value.clone() for name, value in run.model.state_dict().items()}
    values |= {f"average {name}": value for name, value in run.averaged_weights().items()}
    for index, state in run.optimizer.state_dict()["state"].items():
        values |= {f"optimizer {index} {name}": torch.as_tensor(value).clone() for name, value in state.items()}
    return values


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sample_that_is_not_a_number_is_skipped_counted_and_named(tmp_path, capsys, value):
    run = make_run(tmp_path, splits=noise_splits({3: value}), augmentation=0.0)
    train_steps(run)
    assert (run.step, run.skipped_steps, run.bad_steps, run.batch) in {(3, 1, 0, 4), (3, 1, 1, 4)}
    assert all(torch.isfinite(tensor).all() for tensor in everything(run).values())
    said = capsys.readouterr().out
    assert "3" in re.search(r"Skipped .* \(1 so far, 1 in a row\): epoch 1, samples (\d), (\d)\.", said).groups()


def test_a_skipped_step_changes_nothing(tmp_path):
    run = make_run(tmp_path, splits=noise_splits(dict.fromkeys(range(8), float("nan"))), max_bad_steps=5)
    train_steps(make_run(tmp_path / "good"))
    before, schedule = everything(run), run.schedule.state_dict()
    train_steps(run)
    after = everything(run)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert run.schedule.state_dict() == schedule
    assert (run.step, run.skipped_steps, run.bad_steps) == (0, 4, 4)
    assert run.checkpoints.steps() == []


def test_too_many_in_a_row_stop_the_run_naming_the_samples_and_the_last_checkpoint_is_good(tmp_path):
    good = make_run(tmp_path, splits=noise_splits({}), checkpoint_every=4)
    train_steps(good)
    good.epoch, good.batch = 1, 0
    save_checkpoint(good)
    final = everything(good)
    run = make_run(tmp_path, splits=noise_splits({}), max_bad_steps=3)
    resume(run)
    run.splits.train.poison = dict.fromkeys(range(8), float("nan"))
    told = r"3 steps in a row had a NaN or infinite .* samples \d, \d\. They changed no weights"
    with pytest.raises(ValueError, match=told):
        train_steps(run)
    again = make_run(tmp_path, splits=noise_splits({}))
    assert "epoch 2, step 4" in resume(again)
    restored = everything(again)
    assert all(torch.equal(final[name], restored[name]) for name in final)


def test_an_infinite_loss_is_skipped_even_where_its_gradient_is_finite(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    forward, calls = run.model.loss.forward, []

    def second_is_infinite(*args):
        calls.append(1)
        return forward(*args) + (float("inf") if len(calls) == 2 else 0)

    monkeypatch.setattr(run.model.loss, "forward", second_is_infinite)
    train_steps(run)
    assert (run.step, run.skipped_steps) == (3, 1)
    assert torch.isfinite(run.loss_sum).all()


def test_a_bad_batch_spoils_the_whole_accumulated_step_and_all_its_samples_are_named(tmp_path, capsys):
    run = make_run(tmp_path, splits=noise_splits({3: float("nan")}), gradient_accumulation_steps=2, augmentation=0.0)
    train_steps(run)
    assert (run.step, run.skipped_steps) == (1, 1)
    named = re.search(r"samples ([\d, ]+)\.", capsys.readouterr().out)[1].split(", ")
    assert len(named) == 4 and "3" in named
    assert all(torch.isfinite(tensor).all() for tensor in everything(run).values())


def test_the_global_seed_does_not_matter(tmp_path):
    outcomes = []
    for seed in (1, 2):
        run = make_run(tmp_path / str(seed))
        set_seed(seed)
        train_steps(run)
        outcomes.append(everything(run))
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


@pytest.mark.slow
def test_unreadable_photographs_are_named_and_end_the_run_above_a_share(tmp_path):
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for number in range(20):
        path = tmp_path / "images" / f"{number}.jpg"
        Image.new("RGB", (120, 100), (10 * number, 100, 50)).save(path)
        images.append({"id": number, "file_name": path.name})
        points = [value for joint in range(21) for value in (20 + joint, 30 + 2 * joint, 2)]
        annotations.append({"id": number, "image_id": number, "keypoints": points})
    path.write_bytes(path.read_bytes()[:300])
    (tmp_path / "hands.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    settings = [*TINY, "--annotations", tmp_path / "hands.json", "--cache_dir", tmp_path / "cache"]
    status, log = forked(tmp_path, *settings, "--output_dir", tmp_path / "refused")
    assert status == 1
    assert re.search(r"train\.py: 1 of \d+ images cannot be read, 0 may be .*19\.jpg", log)
    status, log = forked(tmp_path, *settings, "--output_dir", tmp_path / "run", "--max_unreadable_share", "0.5")
    assert status == 0, log
    left_out = re.compile(r"^Left out 1 images that cannot be read: \S+/19\.jpg \(.+\)\.$", re.MULTILINE)
    assert left_out.search(log)
    assert log.count("Validation and test are the same photographs: ") == 1
    assert "\r" not in log  # no progress bars in a file
    scoring = ["--eval_only", "--model", tmp_path / "run" / "model", "--max_unreadable_share", "0.5"]
    for _ in range(2):  # as the rows are written, and when they come from the cache
        status, log = forked(tmp_path, *settings, *scoring)
        assert status == 0 and left_out.search(log), log
    status, log = forked(tmp_path, *settings, *scoring, "--json")
    assert status == 0 and [Path(name).name for name in json.loads(log)["left_out"]] == ["19.jpg"], log


# Starting from weights


@pytest.mark.slow
def test_training_starts_from_the_weights_that_init_names(trained, tmp_path):
    rate = ["--learning_rate", "1e-12", "--weight_decay", "0", "--ema_decay", "0", "--epochs", "1"]
    arguments = [*TINY, *rate, "--init", trained.output / "model", "--output_dir", tmp_path / "run"]
    status, log = forked(tmp_path, *arguments)
    assert status == 0, log
    best = json.loads((trained.output / "metrics.json").read_text())["validation"]
    said = f"model before the first step: validation loss {best['loss']:.4f}, mean error {best['mean_error_percent']:.2f} %"
    assert log.count("before the first step") == 1 and said in log, log
    assert "Validation and test are the same" not in log
    assert [entry["epoch"] for entry in json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]] == [1]
    status, log = forked(tmp_path, *arguments, "--resume")
    assert status == 0 and "before the first step" not in log, log
    first, second = (
        AutoModelForPoseEstimation.from_pretrained(folder / "model", trust_remote_code=False)
        for folder in (trained.output, tmp_path / "run")
    )
    for (name, mine), other in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-8, rtol=0, msg=name)


def test_the_weights_are_averaged_with_others_in_the_end_also_of_a_run_that_is_over(trained, tmp_path):
    shutil.copytree(trained.output, tmp_path / "run")
    HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8))).save_pretrained(tmp_path / "other")
    given = [*TINY, "--output_dir", tmp_path / "run", "--resume", "--average_with", tmp_path / "other"]
    status, log = forked(tmp_path, *given)
    assert status == 0, log
    best, other, mean = (load_file(folder / "model.safetensors") for folder in
                         (trained.output / "model", tmp_path / "other", tmp_path / "run" / "model"))  # fmt: skip
    for name, value in mean.items():
        assert not value.is_floating_point() or torch.allclose(value, (best[name] + other[name]) / 2), name
    assert "--average_with other" in (tmp_path / "run" / "model" / "README.md").read_text()
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (trained.output, tmp_path / "run"))
    bins = after["calibration"]["validation"]["reliability"]  # of the mean's own answers
    correct = sum(row["count"] * row["share"] for row in bins) / sum(row["count"] for row in bins)
    assert after["validation"]["pck@0.1"] == pytest.approx(correct)  # so are these figures
    assert after["validation"] != before["validation"]
    larger = ROOT / "weights" / "handunet"
    for name, error in ((tmp_path / "gone", "--average_with .* cannot be read"), (larger, "its channels are not those")):
        status, log = forked(tmp_path, *given[:-1], name)
        assert status and re.search(error, log), log


def test_the_last_weights_are_taken_if_they_are_asked_for_also_of_a_run_that_is_over(trained, tmp_path):
    shutil.copytree(trained.output, tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    average = load_file(newest / "average.safetensors")
    save_file({name: value + 1 for name, value in average.items()}, newest / "best.safetensors")  # so that the best is another
    seal_again(newest)
    for options, added in (([], 1), (["--last_weights"], 0)):
        status, log = forked(tmp_path, *TINY, "--output_dir", tmp_path / "run", "--resume", *options)
        assert status == 0, log
        weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
        assert all(torch.equal(value, average[name] + added) for name, value in weights.items())
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["best_epoch"] == len(metrics["history"])
    assert "They are those of epoch 2, the last one." in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.slow
def test_freihand_is_trained_on_from_weights(trained, tmp_path):
    """A tree of the real size and layout, whose jpgs are a few drawn hands over and over."""
    tree = full_size_freihand.write_tree(tmp_path / "freihand", full_size_freihand.NUM_FRAMES, 1, distinct=24)
    arguments = [*TINY, "--epochs", "1", "--init", trained.output / "model", "--output_dir", tmp_path / "run"]
    status, log = forked(tmp_path, *arguments, "--data_dir", tree, "--cache_dir", tmp_path / "cache")
    assert status == 0, log
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["dataset"] == "FreiHAND (raw)" and metrics["test"]["num_hands"] == 6
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "license_name: research-only" in card and "prohibit commercial use" in card


@pytest.mark.slow
@pytest.mark.parametrize("backgrounds, samples", [("raw", 16), ("all", 64)])
def test_the_documented_way_to_freihand_starts_from_the_repositorys_weights(tmp_path, monkeypatch, backgrounds, samples):
    """On 24 frames in the official layout with its four background versions, split where FreiHAND's frames are split."""
    monkeypatch.setattr("dataset_script.freihand.SPLITS", {"train": (0, 16), "validation": (16, 20), "test": (20, 24)})
    SyntheticHands(24, seed=7).write_freihand(tmp_path / "freihand", versions=4)
    data = ["--data_dir", tmp_path / "freihand", "--backgrounds", backgrounds, "--cache_dir", tmp_path / "cache"]
    start = ["--init", ROOT / "weights" / "handunet-base", "--epochs", "1", "--batch_size", "8", "--learning_rate", "1e-4"]
    status, log = forked(tmp_path, *data, *start, "--output_dir", tmp_path / "run")
    assert status == 0, log
    assert f"{samples} training samples of FreiHAND ({backgrounds})" in log and "3,289,673 parameters" in log
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"]["num_hands"] == samples // 4
    assert metrics["test"]["mean_error_percent"] < 0.8 * metrics["mean_pose"]["mean_error_percent"]  # it knows hands
    assert metrics.get("test_by_group", {}).keys() == ({"auto", "green_screen", "hom", "sample"} if samples == 64 else set())
    model = tmp_path / "run" / "model"
    card = (model / "README.md").read_text()
    assert "license_name: research-only" in card and "--init handunet-base" in card and str(tmp_path) not in card
    status, log = forked(tmp_path, *data, "--eval_only", "--json", "--model", model)
    assert status == 0, log
    figures = json.loads(log)
    assert figures["mean_error_percent"] == metrics["test"]["mean_error_percent"]
    assert ("by_background" in figures) == (backgrounds == "all")
    if backgrounds == "all":
        errors = {name: part["mean_error_percent"] for name, part in metrics["test_by_group"].items()}
        assert figures["worst_over_green_screen"] == max(errors.values()) / errors["green_screen"]
        assert "The error on the worst background is" in card


@pytest.mark.slow
def test_freihands_real_samples_are_scored(tmp_path, shared_data):
    data = ["--data_dir", shared_data / "freihand_real", "--split", "train", "--cache_dir", tmp_path / "cache"]
    errors = {}
    for name in ("handunet", "handunet-base"):
        status, log = forked(tmp_path, "--eval_only", "--json", "--model", ROOT / "weights" / name, *data)
        assert status == 0, log
        figures = json.loads(log)
        assert (figures["dataset"], figures["num_hands"], figures["left_out"]) == ("FreiHAND (raw)", 5, {})
        errors[name] = figures["mean_error_over_box"]
    assert max(errors.values()) < 0.3  # always the centre of the box: 0.325 on photographs


# Scenes


@pytest.mark.slow
def test_a_run_on_scenes_of_two_bodies_cut_outs_and_photographs_says_all_of_them(tmp_path, shared_data):
    write_cutouts(tmp_path / "cutouts")
    (tmp_path / "photos").mkdir()
    Image.effect_noise((150, 150), 90).convert("RGB").save(tmp_path / "photos" / "noise.png")
    given = ["--hand_mesh", shared_data / "hand_mesh" / "right.glb", "--cutouts", tmp_path / "cutouts"]
    given += ["--photos", tmp_path / "photos", "--layers", "5", "--negatives", "0.2", "--cache_dir", tmp_path / "cache"]
    size = ["--image_size", "64", "--epochs", "1", "--output_dir", tmp_path / "run"]
    status, log = forked(tmp_path, *TINY, "--dataset", "scenes", *given, *size)
    assert status == 0, log
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["auroc_of_negatives"].keys() == {"no hand", "left hand", "far off centre"}
    assert metrics["grouped_by"] == "source" and metrics["test_by_group"].keys() == {"drawn", "cut-outs"}
    assert metrics["test"]["num_hands"] == 2 * 6 + 40
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "in a 64x64 crop" in card and "squared error on the empty maps" in card and "license: unknown" in card
    assert "--hand_mesh right.glb --layers 5 --cutouts cutouts" in card and str(tmp_path) not in card
