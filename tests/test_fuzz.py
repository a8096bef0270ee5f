"""A short run of the fuzzer from a fixed seed, and cases that it found in the past."""

import os
import subprocess

import pytest

from tools import fuzz

# Each failed once. The cause of each has a test beside the other tests of that code.
FOUND = (
    *("images:1:26", "images:1:68", "images:1:163"),  # an EXIF orientation that comes after the pixels
    # an error message as long as the file
    *("weights:11:8755", "weights:11:10707", "weights:11:13195", "meshes:346939:1511"),
    "freihand:1:11",  # a palette that is missing
    *("freihand:1:23", "freihand:1:236"),  # JSON that took over 2 GB
    *("meshes:1:1", "meshes:1:64"),  # JSON of other types than glTF's
    *("onnx:1:27", "onnx:1:53", "onnx:1:75"),  # metadata and graphs that do not fit each other
    "urls:1:276",  # %31 in the host, which urllib reads as 1
    *("checkpoints:1:6", "checkpoints:1:7", "checkpoints:1:15"),  # files that are sealed, and no checkpoint
)


def test_what_the_fuzzer_found_is_refused_with_documented_errors():
    fuzz.main(["--replay", *FOUND])


@pytest.mark.slow
def test_mutated_and_hostile_files_end_in_documented_errors_only():
    fuzzer = fuzz.main(["--cases", "2000", "--seed", "1"])
    for name, outcomes in fuzzer.outcomes.items():
        refused = outcomes.total() - outcomes["accepted"]
        assert outcomes["accepted"] and refused > outcomes.total() / 10, name  # neither all is accepted nor all refused


def refuse(folder):
    raise ValueError(f"{folder}/file is broken")


def refuse_without_a_name(folder):
    raise ValueError("it is broken")


def fail(folder):
    raise KeyError("x")


def hang(folder):
    while True:
        pass


def take_memory(folder):
    bytearray(b"x") * (3 << 30)


def write_beside(folder):
    (folder.parent / "outside" / "new").write_bytes(b"")


def remove_beside(folder):
    (folder.parent / "outside" / "secret.jpg").unlink()


def read_beside(folder):
    (folder.parent / "outside" / "secret.jpg").read_bytes()


def write_inside(folder):
    (folder / "new").mkdir()
    (folder / "new" / "file").write_bytes(b"")


def start_a_program(folder):
    subprocess.run(["true"])


def die(folder):
    os.abort()


DEEDS = {
    refuse: None,
    write_inside: None,
    refuse_without_a_name: "the error does not name the file",
    fail: "KeyError",
    hang: "over 0.5 s of processor time",
    take_memory: "MemoryError",
    write_beside: "open '",
    remove_beside: "os.remove '",
    read_beside: "read ",
    start_a_program: "subprocess.Popen",
    die: "the process ended with -6",
}


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_a_case_that_misbehaves_is_noticed(monkeypatch, deed):
    kind = fuzz.Kind(lambda draw, folder: None, lambda made, folder: deed(folder), (ValueError,), names_folder=True)
    monkeypatch.setattr(fuzz, "MOST_SECONDS", 0.5)
    monkeypatch.setattr(fuzz, "kinds", lambda: {"deeds": kind})
    fuzzer = fuzz.Fuzzer()
    fuzzer.run([("deeds", 0, 0), ("deeds", 0, 1)])
    assert fuzzer.outcomes["deeds"].total() == 2
    if DEEDS[deed] is None:
        assert not fuzzer.failures
    else:
        assert [DEEDS[deed] in failure for failure in fuzzer.failures.values()] == [True, True]
