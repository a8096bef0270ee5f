"""tools/kill_and_resume.py notices a resume that does not restore what it should, one that does nothing, and one that lies."""

import copy
import shutil

import pytest

import train
from tools import kill_and_resume
from tools.kill_and_resume import Training, check_continuation, faults_of
from training.checkpoints import STATE
from training.resume import resume

CHECKPOINT = "step-00000012-00001-00000004"
STARTED = "32 training samples of drawn hands, 32 for validation"


def log(resumed: str, *epochs: int) -> str:
    return "\n".join([resumed, STARTED, *(f"epoch {number}/4: loss 0.9" for number in epochs)])


OTHER = "step-00000009-00001-00000001"
GOES_ON = f"Resumed from outputs/a run/checkpoints/{CHECKPOINT}: epoch 2, step 12."


@pytest.mark.parametrize(
    "newest, text, count, fault",
    [
        (CHECKPOINT, log(GOES_ON, 2, 3, 4), 1, None),
        (CHECKPOINT, log(GOES_ON), 1, None),
        (CHECKPOINT, "Preparing synthetic data ...", 0, None),  # killed before it looked for a checkpoint
        (None, log("No checkpoint in checkpoints yet: starting from the beginning.", 1, 2), 0, None),
        (CHECKPOINT, log("No checkpoint in checkpoints yet: starting from the beginning."), 0, "did not resume although"),
        (CHECKPOINT, log("", 1, 2, 3, 4), 0, "did not resume although"),
        (CHECKPOINT, log(GOES_ON.replace("step 12", "step 0")), 1, "at step 0"),
        (CHECKPOINT, log(GOES_ON.replace(CHECKPOINT, OTHER).replace("step 12", "step 9")), 1, f"there was {CHECKPOINT}"),
        (CHECKPOINT, log(GOES_ON, 1, 2, 3, 4), 1, "trained the epochs 1, 2, 3, 4"),
        (CHECKPOINT, log(GOES_ON, 3, 4), 1, "trained the epochs 3, 4"),
        (None, log(GOES_ON), 0, "which was not there"),
    ],
)
def test_a_continuation_must_go_on_where_the_newest_checkpoint_is(newest, text, count, fault):
    found, faults = check_continuation(newest, text)
    assert found == count
    assert (faults == []) if fault is None else (len(faults) == 1 and fault in faults[0])


def never(run) -> str:
    return f"No checkpoint in {run.checkpoints.folder} yet: starting from the beginning."


def only_said(run) -> str:
    newest = run.checkpoints.steps()[0]
    return f"Resumed from {newest}: epoch 2, step {int(newest.name.split('-')[1])}."


def without_optimizer(run) -> str:
    before = copy.deepcopy(run.optimizer.state_dict())
    said = resume(run)
    run.optimizer.load_state_dict(before)
    return said


def without_place_in_the_epoch(run) -> str:
    said = resume(run)
    run.batch = 0
    return said


def without_sampler(run) -> str:
    said = resume(run)
    run.start_epoch = lambda: None  # its order stays that of the first epoch
    return said


def without_average(run) -> str:
    said = resume(run)
    run.average.module.load_state_dict(run.accelerator.unwrap_model(run.model).state_dict())
    return said


BREAKS = {  # and what the tool says of each
    never: "it did not resume although there was step-",
    only_said: "and then trained the epochs 1, 2",
    without_optimizer: "optimizer.bin",
    without_place_in_the_epoch: STATE.removesuffix(".json"),
    without_sampler: "model.safetensors",
    without_average: "average.safetensors",
}


@pytest.mark.slow
def test_each_way_to_break_resume_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(kill_and_resume, "SETTINGS", [*kill_and_resume.SETTINGS, "--epochs", "2"])
    undisturbed = Training(tmp_path / "undisturbed", "prepared", 1)
    undisturbed.finish()
    reference = kill_and_resume.result(undisturbed.output)
    killed = Training(tmp_path / "killed", "prepared", 1)
    killed.start()
    while not any(killed.checkpoints.glob("step-*-00001-0000000[1-9]")):  # within the second epoch
        assert not killed.ended(), killed.log.read_text()
    assert killed.stop()
    killed.kill()

    def go_on(name: str) -> Training:
        shutil.copytree(killed.output, tmp_path / name)
        training = Training(tmp_path / name, "prepared", 1)
        training.finish()
        return training

    whole = go_on("whole")
    assert (whole.continuations, faults_of(whole, reference)) == (1, [])
    for broken, fault in BREAKS.items():
        monkeypatch.setattr(train, "resume", broken)
        faults = faults_of(go_on(broken.__name__), reference)
        assert any(fault in found for found in faults), (broken.__name__, faults)
