import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import numpy
for _ in range(20):
    numpy.ones(10_000_000)  # 80 MB, touched and freed: above what glibc keeps by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is tuned")
def test_freed_memory_is_reused_without_page_faults():
    faults = [
        int(subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ("default", "keep")
    ]
    assert faults[1] < faults[0] / 4
