"""A checkpoint is whole or passed over with the reason, and what can go wrong with a disk loses no earlier one."""

import hashlib
import json
import os
import pickle
import subprocess
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_training import TINY, NoiseHands, fork, make_run, noise_splits, train_steps, wait_for_end
from training.checkpoints import BEST, MANIFEST, STATE, BrokenCheckpoint, Checkpoints, seal, verify
from training.resume import best_model, keep_best, resume, save_checkpoint


def write(checkpoints: Checkpoints, name: str, **state) -> Path:
    """A checkpoint of two files."""
    folder = checkpoints.unfinished(name)
    (folder / "weights").write_bytes(name.encode() * 100)
    checkpoints.finish(name, state)
    return checkpoints.folder / name


def name_of(step: int) -> str:
    return f"step-{step:08d}-00000-{step:08d}"


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a disk of so many kB."""
    mounted = []

    def make(kilobytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        result = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], capture_output=True, text=True
        )
        if result.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {result.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


# Writing


def test_a_checkpoint_has_a_manifest_with_size_and_sha256_of_every_file(checkpoints):
    folder = write(checkpoints, name_of(1), step=1)
    weights = name_of(1).encode() * 100
    assert json.loads((folder / MANIFEST).read_text()) == {
        "state.json": {"size": 12, "sha256": hashlib.sha256(b'{"step": 1}\n').hexdigest()},
        "weights": {"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
    }
    assert verify(folder) == {"step": 1}
    assert [path.name for path in checkpoints.folder.iterdir()] == [name_of(1)]


def test_every_file_and_folder_is_on_disk_before_the_checkpoint_gets_its_name(checkpoints, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def record_rename(source, target):
        events.append(f"rename to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    write(checkpoints, name_of(1))
    unfinished = f"{name_of(1)}.incomplete"
    assert events == [STATE, "weights", MANIFEST, unfinished, f"rename to {name_of(1)}", "checkpoints"]


def test_the_newest_are_kept_and_the_best(checkpoints):
    write(checkpoints, BEST)
    for step in (9, 10, 99999999, 100000000):
        write(checkpoints, name_of(step))
    checkpoints.unfinished(name_of(11))  # as an interrupted write leaves it
    checkpoints.prune()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [BEST, name_of(100000000), name_of(99999999)]


def test_checkpoints_are_ordered_by_step_then_epoch_then_batch(checkpoints):
    names = ["step-00000008-00001-00000000", "step-00000008-00000-00000009", "step-00000008-00000-00000008"]
    for name in reversed([*names, name_of(7)]):
        write(checkpoints, name)
    assert [path.name for path in checkpoints.steps()] == [*names, name_of(7)]


def test_a_crash_while_the_best_is_replaced_leaves_a_whole_one(checkpoints, monkeypatch):
    write(checkpoints, BEST, which="first")
    rename, calls = os.rename, []

    def crash_at_the_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise SystemExit("power cut")
        rename(source, target)

    monkeypatch.setattr(os, "rename", crash_at_the_second)
    with pytest.raises(SystemExit):
        write(checkpoints, BEST, which="second")
    assert not (checkpoints.folder / BEST).exists()
    assert verify(checkpoints.folder / f"{BEST}.old") == {"which": "first"}
    assert verify(checkpoints.folder / f"{BEST}.incomplete") == {"which": "second"}
    monkeypatch.setattr(os, "rename", rename)
    write(checkpoints, BEST, which="second")
    checkpoints.prune()
    assert verify(checkpoints.folder / BEST) == {"which": "second"}
    assert [path.name for path in checkpoints.folder.iterdir()] == [BEST]


# Reading


def truncate(folder: Path) -> None:
    with open(folder / "weights", "r+b") as file:
        file.truncate(1000)


def flip(folder: Path) -> None:
    data = bytearray((folder / "weights").read_bytes())
    data[1234] ^= 1
    (folder / "weights").write_bytes(data)


DAMAGE = {
    "truncated": (truncate, "weights has 1000 bytes instead of 2800"),
    "flipped byte": (flip, "weights has another SHA-256 than when it was written"),
    "missing file": (lambda folder: (folder / "weights").unlink(), "weights is missing"),
    "missing manifest": (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
    "empty manifest": (lambda folder: (folder / MANIFEST).write_text(""), "manifest.json cannot be read"),
    "deep manifest": (lambda folder: (folder / MANIFEST).write_text("[" * 100_000), "manifest.json cannot be read"),
    "manifest of zeros": (lambda folder: (folder / MANIFEST).write_bytes(bytes(100)), "manifest.json cannot be read"),
    "list as manifest": (lambda folder: (folder / MANIFEST).write_text("[]"), "manifest.json is not a JSON object"),
    "manifest without state": (lambda folder: (folder / MANIFEST).write_text("{}"), "does not list state.json"),
    "manifest without sums": (
        lambda folder: (folder / MANIFEST).write_text('{"state.json": 1}'), "gives no size and SHA-256 for state.json"
    ),
    "file it does not list": (
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b""), "does not list pytorch_model.bin"
    ),
    "folder as file": (
        lambda folder: ((folder / "weights").unlink(), (folder / "weights").mkdir()), "weights is missing"
    ),
    "empty folder": (lambda folder: [path.unlink() for path in folder.iterdir()], "manifest.json is missing"),
}  # fmt: skip


@pytest.mark.parametrize("damage, reason", DAMAGE.values(), ids=DAMAGE)
def test_a_broken_checkpoint_is_passed_over_with_the_reason(checkpoints, damage, reason):
    write(checkpoints, name_of(1), step=1)
    damage(write(checkpoints, name_of(2), step=2))
    folder, state, passed_over = checkpoints.newest()
    assert folder.name == name_of(1) and state == {"step": 1}
    assert list(passed_over) == [name_of(2)]
    assert reason in passed_over[name_of(2)]


def test_all_broken_ones_are_named(checkpoints):
    for step in (1, 2, 3):
        truncate(write(checkpoints, name_of(step)))
    folder, state, passed_over = checkpoints.newest()
    assert folder is None and state == {}
    assert list(passed_over) == [name_of(3), name_of(2), name_of(1)]


def test_one_that_was_set_aside_does_not_push_out_whole_ones(checkpoints):
    for step in (1, 3):
        write(checkpoints, name_of(step))
    truncate(checkpoints.folder / name_of(3))
    checkpoints.set_aside(checkpoints.newest()[2])
    write(checkpoints, name_of(2))
    checkpoints.prune()
    assert [path.name for path in checkpoints.steps()] == [name_of(2), name_of(1)]
    assert (checkpoints.folder / f"{name_of(3)}.broken").is_dir()


# With a run


def weights(run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def seal_again(folder: Path) -> None:
    """Give a changed checkpoint a manifest that vouches for it."""
    (folder / MANIFEST).unlink()
    unsealed = folder.with_name("unsealed")
    folder.rename(unsealed)
    seal(unsealed, folder)


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_run_goes_on_from_the_newest_whole_checkpoint_bit_for_bit(tmp_path):
    run = make_run(tmp_path)
    train_steps(run)
    final, average = weights(run), run.averaged_weights()
    whole, broken = run.checkpoints.folder / name_of(2), run.checkpoints.folder / name_of(3)
    (broken / "optimizer.bin").write_bytes(b"")
    again = make_run(tmp_path)
    said = resume(again)
    assert said.startswith(f"Resumed from {whole}: epoch 1, step 2.")
    assert f"passed over {name_of(3)}: optimizer.bin has 0 bytes instead of" in said
    train_steps(again)
    assert_same(weights(again), final)
    assert_same(again.averaged_weights(), average)
    assert verify(broken)["step"] == 3  # written anew
    assert (run.checkpoints.folder / f"{name_of(3)}.broken").is_dir()


def test_a_damaged_best_is_written_anew_from_the_checkpoint(tmp_path):
    run = make_run(tmp_path)
    train_steps(run, 2)
    run.history.append({"epoch": 1, "validation": {"mean_error_percent": 5.0}})
    keep_best(run)
    best = run.averaged_weights()
    train_steps(run, 1)
    flipped = run.checkpoints.folder / BEST / "average.safetensors"
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    again = make_run(tmp_path)
    resume(again)
    assert verify(run.checkpoints.folder / BEST)["best"] == run.history[0]
    assert_same(load_file(flipped), best)
    assert_same({name: value.cpu() for name, value in best_model(again).state_dict().items()}, best)


def test_a_run_stopped_after_the_last_step_of_an_epoch_goes_on_with_its_validation(tmp_path):
    run = make_run(tmp_path, checkpoint_every=100)
    train_steps(run)
    save_checkpoint(run)
    again = make_run(tmp_path, checkpoint_every=100)
    assert "epoch 1, step 4" in resume(again)
    train_steps(again)  # has nothing left to do
    assert (again.epoch, again.batch, again.step) == (0, 4, 4)
    assert torch.equal(again.loss_sum, run.loss_sum)
    for each in (run, again):
        each.epoch, each.batch = 1, 0
        train_steps(each)
    assert_same(weights(again), weights(run))


def test_a_checkpoint_of_another_model_is_passed_over(tmp_path):
    run = make_run(tmp_path)
    train_steps(run, 1)
    other = r"passed over .*: holds another model, with hidden_sizes \[4, 8\] instead of \[4, 16\]"
    with pytest.raises(ValueError, match=other):
        resume(make_run(tmp_path, hidden_sizes=[4, 16]))


def test_a_checkpoint_whose_state_lacks_anything_or_has_another_type_is_passed_over_by_name(tmp_path):
    run = make_run(tmp_path)
    train_steps(run, 1)
    (folder,) = run.checkpoints.steps()
    state = json.loads((folder / STATE).read_text())
    cases = [(name, None) for name in state] + [("step", "1"), ("history", {}), ("data", {}), ("arguments", [])]
    for name, value in cases:
        changed = {key: found for key, found in state.items() if key != name} | ({} if value is None else {name: value})
        (folder / STATE).write_text(json.dumps(changed))
        seal_again(folder)
        with pytest.raises(ValueError, match=rf"can be resumed:\n  passed over {folder.name}: state.json .*{name}"):
            resume(make_run(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "average.safetensors", "optimizer.bin", "state.json"])
def test_a_checkpoint_that_is_whole_and_cannot_be_loaded_ends_in_a_sentence(tmp_path, name):
    run = make_run(tmp_path)
    train_steps(run, 1)
    (folder,) = run.checkpoints.steps()
    if name == "state.json":
        state = json.loads((folder / STATE).read_text())
        (folder / STATE).write_text(json.dumps(state | {"loss_sums": []}))
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
    seal_again(folder)
    with pytest.raises(ValueError, match=f"files of .*{folder.name} are those that were written, but they cannot be loaded: "):
        resume(make_run(tmp_path))


def test_settings_that_differ_are_named(tmp_path):
    run = make_run(tmp_path)
    train_steps(run, 1)
    with pytest.raises(ValueError, match=r"--epochs was \d+ and is 5; --learning_rate was [\d.]+ and is 0.1") as error:
        resume(make_run(tmp_path, epochs=5, learning_rate=0.1, workers=2))
    assert "workers" not in str(error.value)
    other = make_run(tmp_path)
    other.accelerator = types.SimpleNamespace(num_processes=3, is_main_process=True)
    with pytest.raises(ValueError, match="the run had 1 processes and has 3"):
        resume(other)


def test_data_that_changed_is_named(tmp_path):
    run = make_run(tmp_path)
    train_steps(run, 1)
    splits = noise_splits(test_seed=3)
    splits.train = NoiseHands(8)
    splits.train.poison = {5: 7.0}  # one image
    with pytest.raises(ValueError, match="made with: the training data is not the same; the test data is not the same"):
        resume(make_run(tmp_path, splits=splits))


def test_a_moment_is_written_once(tmp_path):
    run = make_run(tmp_path)
    train_steps(run, 1)
    (folder,) = run.checkpoints.steps()
    written = folder.stat().st_ino
    save_checkpoint(run)
    again = make_run(tmp_path)
    resume(again)
    save_checkpoint(again)
    assert folder.stat().st_ino == written


def test_weights_are_safetensors_and_everything_else_is_unpickled_as_weights_only(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    train_steps(run, 1)
    (folder,) = run.checkpoints.steps()
    names = {path.name for path in folder.iterdir()}
    weights = {"model.safetensors", "average.safetensors"}
    assert names == weights | {"optimizer.bin", "random_states_0.pkl", "state.json", "manifest.json"}
    loads, load = {}, torch.load

    def record(file, *args, **options):
        loads[Path(file).name] = options.get("weights_only")
        return load(file, *args, **options)

    monkeypatch.setattr(torch, "load", record)
    monkeypatch.setattr(pickle, "load", None)
    resume(make_run(tmp_path))
    assert loads == {"optimizer.bin": True, "random_states_0.pkl": True}


class Harmful:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
def test_code_in_a_pickle_is_not_run_even_under_a_manifest_that_vouches_for_it(tmp_path, name):
    run = make_run(tmp_path / "run")
    train_steps(run, 1)
    (folder,) = run.checkpoints.steps()
    torch.save({"state": Harmful(tmp_path / "harmed")}, folder / name)
    seal_again(folder)
    again = make_run(tmp_path / "run")
    if name == "optimizer.bin":
        with pytest.raises(ValueError, match="Weights only"):
            resume(again)
    else:  # no number of a run comes from the global generators, so that Accelerate goes on without their states
        resume(again)
    assert not (tmp_path / "harmed").exists()


def test_a_full_disk_ends_in_a_sentence_and_spares_every_earlier_checkpoint(small_disk):
    run = make_run(small_disk(200) / "run")
    told = r"The checkpoint step-.* could not be written: .* MB are free.* Earlier checkpoints are"
    with pytest.raises(OSError, match=told):
        train_steps(run)
    saved = run.checkpoints.steps()
    assert saved and all(verify(folder) for folder in saved)
    assert {path.name for path in run.checkpoints.folder.iterdir()} == {folder.name for folder in saved}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos")])
def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch, error):
    run = make_run(tmp_path)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(run.accelerator, "save_state", fail)
    with pytest.raises(OSError, match="could not be written: .*(No space left|unexpected pos)"):
        save_checkpoint(run)
    assert list(run.checkpoints.folder.iterdir()) == []
    monkeypatch.undo()
    save_checkpoint(run)
    assert len(run.checkpoints.steps()) == 1


@pytest.mark.slow
def test_a_training_on_a_full_disk_goes_on_when_there_is_room(small_disk, tmp_path):
    disk = small_disk(400)
    settings = [*TINY, "--checkpoint_every", "1", "--keep_checkpoints", "20"]

    def train(output: Path, *more: str) -> tuple[int, str]:
        log = tmp_path / f"{output.name}.log"
        log.write_text("")
        (status,) = wait_for_end(fork(*settings, "--output_dir", output, *more, log=log))
        return status, log.read_text()

    status, log = train(disk / "full")
    assert status == 1
    assert "Traceback" not in log
    assert log.splitlines()[-1].startswith("train.py: The ") and "could not be written" in log.splitlines()[-1]
    saved = Checkpoints(disk / "full" / "checkpoints", 20).steps()
    assert len(saved) >= 2 and all(verify(folder) for folder in saved)
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
    status, log = train(disk / "full", "--resume")
    assert status == 0, log
    status, log = train(tmp_path / "untouched")
    assert status == 0, log
    for name in ("metrics.json", "model/model.safetensors"):
        assert (disk / "full" / name).read_bytes() == (tmp_path / "untouched" / name).read_bytes()


def test_brokencheckpoint_is_an_error_that_train_tells_in_a_sentence():
    assert issubclass(BrokenCheckpoint, OSError)
