"""Train and predict for a long time, and print the memory of each process.

    python -m tools.long_run                                  # 1,000 steps and 200,000 predictions
    python -m tools.long_run --steps 200 --predictions 0      # only a short training

The training is train.py as a user starts it.  Its memory is read from outside whenever a checkpoint appears, and the size of
its logs and its output at the end.  The predictions go through one pipeline object: images of many sizes and two types,
with different numbers of hands.  If memory grows by 50 MB or more after the first tenth, the command ends with an error.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.tiny_training import ROOT, environment, start

MOST_GROWTH = 50.0  # MB
STEPS_PER_EPOCH, BATCH_SIZE = 50, 8
CALL = 100  # predictions a call, at least
PREDICTION_SIZE = 32  # px of the model's input; a leak from call to call does not depend on it
READINGS = 20


def memory(pid: int | str = "self") -> float:
    """Resident memory of a process in MB, without the files that it maps."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return (int(fields["RssAnon"].split()[0]) + int(fields["RssShmem"].split()[0])) / 1024


def growth(readings: dict[int, float]) -> float:
    """Print the readings, by steps or predictions. Returns the growth in MB after the first tenth, at its largest."""
    last = max(readings)
    base = next(count for count in sorted(readings) if count >= last / 10)
    for count, value in sorted(readings.items()):
        print(f"  {count:7d}: {value:7.1f} MB{'  <- from here' if count == base else ''}", flush=True)
    return max(value for count, value in readings.items() if count >= base) - readings[base]


def train(steps: int, folder: Path, hidden_sizes: list[str]) -> float:
    """Train for `steps`. Returns the growth in MB."""
    output, log = folder / "run", folder / "train.log"
    arguments = ["--epochs", -(-steps // STEPS_PER_EPOCH), "--train_samples", STEPS_PER_EPOCH * BATCH_SIZE]
    arguments += ["--batch_size", BATCH_SIZE, "--validation_samples", 40, "--test_samples", 40, "--augmentation", 1]
    arguments += ["--checkpoint_every", STEPS_PER_EPOCH // 2, "--patience", 10**6, "--hidden_sizes", *hidden_sizes]
    started = time.monotonic()
    process = start(*arguments, "--output_dir", output, log=log)
    readings: dict[int, float] = {}
    try:
        while process.poll() is None:
            for path in (output / "checkpoints").glob("step-*[0-9]"):
                step = int(path.name.split("-")[1])
                if step not in readings:
                    readings[step] = memory(process.pid)
            time.sleep(0.02)
    finally:
        process.kill()
    if process.wait():
        sys.exit(f"training ended with {process.returncode}:\n{log.read_text()}")
    print(f"{max(readings)} training steps, {time.monotonic() - started:.0f} s; memory by step:")
    grown = growth(readings)
    logs = sum(path.stat().st_size for path in (output / "logs").rglob("*") if path.is_file())
    print(f"logs/ has {logs / 1000:.1f} kB, the output {log.stat().st_size / 1000:.1f} kB")
    return grown


def predict(count: int, hidden_sizes: list[str]) -> float:
    """Predict `count` hands through one pipeline object. Returns the growth in MB."""
    import numpy as np
    import torch
    from PIL import Image
    from transformers import pipeline

    from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
    from modeling_handunet.registration import TASK

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = HandUNetConfig(hidden_sizes=tuple(map(int, hidden_sizes)), image_size=PREDICTION_SIZE)
    processor = HandUNetImageProcessor(size={"height": PREDICTION_SIZE, "width": PREDICTION_SIZE})
    pipe = pipeline(TASK, model=HandUNetForPoseEstimation(config).eval(), image_processor=processor)
    random = np.random.default_rng(0)
    readings, done, started = {}, 0, time.monotonic()
    while done < count:
        images, boxes = [], []
        while sum(map(len, boxes)) < CALL:
            height, width = random.integers(20, 200, 2)
            pixels = np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
            images.append(Image.fromarray(pixels) if len(images) % 2 else pixels)
            if len(images) % 4:
                hands = int(random.integers(1, 8))
                boxes.append([[0.2 * width, 0.2 * height, 0.5 * width, 0.4 * height]] * hands)
            else:
                boxes.append([[0, 0, width, height]])
        results = pipe(images, boxes=boxes, batch_size=16)
        done += sum(len(hands) for hands in results)
        if done * READINGS // count > len(readings):
            readings[done] = memory()
    print(f"{done} predictions through one pipeline object, {time.monotonic() - started:.0f} s; memory by predictions:")
    return growth(readings)


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tools.long_run", description=__doc__, formatter_class=as_written)
    parser.add_argument("--steps", type=int, default=1000, help="training steps; 0: none")
    parser.add_argument("--predictions", type=int, default=200_000, help="0: none")
    parser.add_argument("--hidden_sizes", nargs="+", default=["4", "8"], help="of the model")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    options = parser.parse_args()
    grown = {}
    if options.steps:
        with tempfile.TemporaryDirectory() as folder:
            grown["training"] = train(options.steps, Path(folder), options.hidden_sizes)
    if options.predictions and options.here:
        grown["prediction"] = predict(options.predictions, options.hidden_sizes)
    for name, value in grown.items():
        print(f"{name}: memory grew by {value:.1f} MB after the first tenth, {MOST_GROWTH:g} MB are allowed")
    if any(value >= MOST_GROWTH for value in grown.values()):
        sys.exit("memory grew too much")
    if options.predictions and not options.here:
        command = [sys.executable, "-m", "tools.long_run", "--steps", "0", "--predictions", str(options.predictions)]
        command += ["--hidden_sizes", *options.hidden_sizes, "--here"]
        sys.exit(subprocess.run(command, cwd=ROOT, env=environment()).returncode)


if __name__ == "__main__":
    main()
