"""One training at a time in a folder, and none in the folder of another."""

import os
import signal
import time
import types

import pytest

from tests.tiny_training import TINY, fork, fork_call, forked
from training import output_folder
from training.arguments import make_arguments

ALONE = types.SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)


def occupy(folder, resume: bool = False) -> list[str]:
    """What is in the folder when a training begins there."""
    with output_folder.output_folder(make_arguments(output_dir=str(folder), resume=resume).output, ALONE) as output:
        return sorted(path.name for path in output.iterdir())


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(output_folder, "SECONDS", 0.2)


def wait_for_text(log, text: str) -> None:
    end = time.monotonic() + 120
    while text not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.005)


def test_a_training_begins_in_an_empty_folder_only_unless_it_goes_on(tmp_path):
    begun = [".lock", "checkpoints", "figures", "logs"]
    assert occupy(tmp_path / "deep" / "new") == begun
    with pytest.raises(ValueError, match="is not empty. To go on with the run in it, add --resume"):
        occupy(tmp_path / "deep" / "new")
    assert occupy(tmp_path / "deep" / "new", resume=True) == begun
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(ValueError, match="is not empty"):
        occupy(tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    with pytest.raises(ValueError, match="a.jpg is a file: name a folder"):
        occupy(tmp_path / "photos" / "a.jpg", resume=True)


def test_the_second_of_two_is_refused_until_the_first_is_dead(tmp_path):
    log = tmp_path / "log"
    log.touch()

    def hold() -> None:
        with output_folder.output_folder(make_arguments(output_dir=str(tmp_path / "run")).output, ALONE):
            worker = os.fork()  # as a dataloader's: it may outlive a process that is killed
            if worker:
                print(f"the worker is {worker}.")
            time.sleep(60)

    pid = fork_call(hold, log=log)
    wait_for_text(log, "the worker is")
    with pytest.raises(ValueError, match=r"A training runs in .*run: wait for its end, or stop it"):
        occupy(tmp_path / "run", resume=True)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert "checkpoints" in occupy(tmp_path / "run", resume=True)
    os.kill(int(log.read_text().split()[-1].strip(".")), signal.SIGKILL)


def test_one_that_waited_for_the_lock_does_not_begin_among_the_files_of_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(output_folder, "SECONDS", 60)
    acquire = output_folder.FileLock.acquire

    def other_was_faster(lock, *args, **kwargs):
        (tmp_path / "run" / "checkpoints").mkdir()
        return acquire(lock, *args, **kwargs)

    monkeypatch.setattr(output_folder.FileLock, "acquire", other_was_faster)
    with pytest.raises(ValueError, match="is not empty"):
        occupy(tmp_path / "run")


@pytest.mark.slow
def test_a_second_resume_of_a_run_that_goes_on_is_refused_and_disturbs_nothing(tmp_path):
    log, settings = tmp_path / "log", [*TINY, "--epochs", "500", "--output_dir", tmp_path / "run", "--resume"]
    log.touch()
    pid = fork(*settings, log=log)
    try:
        wait_for_text(log, "\nepoch 1/500")
        status, second = forked(tmp_path, *settings)
        assert status == 1 and "train.py: A training runs in" in second and "Traceback" not in second, second
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        wait_for_text(log, f"\nepoch {log.read_text().count('/500: ') + 2}/500")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
