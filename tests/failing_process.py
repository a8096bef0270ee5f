"""train.py whose process 1 fails in its third step, for a test of what the others do then.

    accelerate launch --multi_gpu --num_processes 2 tests/failing_process.py ARGUMENTS
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train


def take_step(run) -> None:
    if run.accelerator.process_index == 1 and run.step == 2:
        print(f"failing at {time.time()}", flush=True)
        raise ValueError("this hand has six fingers")
    original(run)


original, train.take_step = train.take_step, take_step
if __name__ == "__main__":
    print(f"process {os.environ['RANK']} is {os.getpid()}", flush=True)
    train.main()
