"""A short `python -m tools.long_run`: memory does not grow, and logs stay small."""

import re
import subprocess
import sys

import pytest

from tests.tiny_training import ROOT, environment


@pytest.mark.slow
def test_memory_and_logs_stay_small(tmp_path):
    command = [sys.executable, "-m", "tools.long_run", "--steps", "150", "--predictions", "2000"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    grown = re.findall(r"(training|prediction): memory grew by ([\d.-]+) MB", done.stdout)
    assert [name for name, _ in grown] == ["training", "prediction"]
    assert all(float(value) < 50 for _, value in grown)
    logs, printed = re.search(r"logs/ has ([\d.]+) kB, the output ([\d.]+) kB", done.stdout).groups()
    assert float(logs) < 20 and float(printed) < 20
