"""The project's own ways; every function sets one up and returns what does it once, and how many items that makes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SIZE, KEYPOINTS = 128, 21


def photographs(folder: Path, count: int) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "freihand" / "training" / "rgb").glob("*.jpg"))[:count]]


def heatmaps(count: int = 48):
    """As the training loop renders them, with its allocator settings."""
    from modeling_handunet.heatmaps import render_heatmaps
    from training.memory import keep_freed_memory

    keep_freed_memory()
    keypoints = torch.rand(count, KEYPOINTS, 2) * SIZE
    return lambda: render_heatmaps(keypoints, SIZE, 3.0), count


def _rows(folder: Path, count: int | None = None):
    """FreiHAND's rows, `count` of them, over and over."""
    import datasets

    from dataset_script import FreiHAND

    datasets.disable_progress_bars()
    rows = FreiHAND(folder / "freihand", cache_dir=folder / "cache").build()["train"]
    return rows if count is None else rows.select([index % len(rows) for index in range(count)])


def _batches(crops, batch_size: int = 48) -> None:
    """What the network is given: pixels normalised and heatmaps rendered, batch by batch."""
    from torch.utils.data import DataLoader

    from modeling_handunet.heatmaps import render_heatmaps
    from training.evaluation import normalize

    for batch in DataLoader(crops, batch_size):
        normalize(batch["image"])
        render_heatmaps(batch["keypoints"], SIZE, 3.0)


def first_samples(count: int = 4800, *, folder: Path):
    """From jpgs to batches with the crops' cache still to be written."""
    from dataset_script import HandCrops
    from training.memory import keep_freed_memory

    keep_freed_memory()
    rows = _rows(folder, count)

    def act():
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            _batches(HandCrops(rows, cache_dir=cache))

    return act, count


def later_samples(count: int = 1920, *, folder: Path):
    """From the crops' cache to batches."""
    from dataset_script import HandCrops
    from training.memory import keep_freed_memory

    keep_freed_memory()
    crops = HandCrops(_rows(folder, count), cache_dir=folder / "cache")
    return lambda: _batches(crops), count


def _run(folder: Path, batch_size: int, precision: str):
    """A run of train.py on the photographs, in this process."""
    from accelerate import Accelerator

    from dataset_script import HandCrops
    from training.arguments import Arguments
    from training.data import Splits
    from training.memory import keep_freed_memory
    from training.run import Run

    keep_freed_memory()
    crops = HandCrops(_rows(folder), cache_dir=folder / "cache")
    output = tempfile.mkdtemp(dir=folder)
    settings = {"batch_size": batch_size, "epochs": 1000, "augmentation": 0.0, "checkpoint_every": 10**9}
    args = Arguments(output_dir=output, mixed_precision=precision, **settings)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    return Run(args, accelerator, Splits(crops, crops, crops, "photographs", research_only=False))


class Undisturbed:
    """No signal ever asks the loop to stop."""

    def on_any_process(self) -> int:
        return 0


def _precision(bf16: int) -> str:
    return "bf16" if bf16 else "no"


def epoch(batch_size: int = 48, bf16: int = 1, *, folder: Path):
    """An epoch of train.py from the crops' cache, all that it does between two validations."""
    import train

    run = _run(folder, batch_size, _precision(bf16))

    def act():
        run.epoch, run.batch = run.epoch + 1, 0
        train.train_one_epoch(run, Undisturbed())

    return act, len(run.train_loader) * batch_size


def step(batch_size: int = 48, bf16: int = 1, *, folder: Path):
    """Forward, backward and AdamW on a batch that is ready, as `train.py` would have it."""
    from modeling_handunet.heatmaps import render_heatmaps

    run = _run(folder, batch_size, _precision(bf16))
    images = torch.randn(batch_size, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    labels = render_heatmaps(torch.rand(batch_size, KEYPOINTS, 2) * SIZE, SIZE, 3.0)
    run.model.train()

    def act():
        loss = run.model(pixel_values=images, labels=labels).loss
        run.accelerator.backward(loss)
        run.optimizer.step()
        run.optimizer.zero_grad()
        loss.item()

    return act, batch_size


def predict(count: int = 1, bf16: int = 0, *, folder: Path):
    """The pipeline, from jpg bytes."""
    from transformers import pipeline

    import modeling_handunet  # noqa: F401

    dtype = torch.bfloat16 if bf16 else torch.float32
    pipe = pipeline("keypoint-detection", model=str(folder / "model"), dtype=dtype)
    files = photographs(folder, count)
    return lambda: pipe(files, batch_size=count), count


def predict_onnx(count: int = 1, *, folder: Path, threads: int):
    """onnxruntime, from jpg bytes; as `predict.py --backend onnx`, with the session open."""
    import onnxruntime

    import predict as program
    from modeling_handunet.images import load_image

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    opened = program.open_onnx(str(folder / "model.onnx"), options)
    program.open_onnx = lambda model: opened
    program.BATCH_SIZE = count
    files = photographs(folder, count)

    def act():
        program.predict_with_onnx("model.onnx", [load_image(file) for file in files], None, "right")

    return act, count


def network(batch_size: int = 1, bf16: int = 0, *, folder: Path):
    """The network alone, on inputs that are ready."""
    from modeling_handunet import HandUNetForPoseEstimation

    dtype = torch.bfloat16 if bf16 else torch.float32
    model = HandUNetForPoseEstimation.from_pretrained(folder / "model", dtype=dtype)
    images = torch.randn(batch_size, 3, SIZE, SIZE, dtype=dtype)

    def act():
        with torch.inference_mode():
            model(images)

    return act, batch_size


def network_onnx(batch_size: int = 1, *, folder: Path, threads: int):
    """The exported graph alone, its decoder left out."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    inputs = {"pixel_values": np.random.default_rng(0).normal(size=(batch_size, 3, SIZE, SIZE)).astype(np.float32)}
    return lambda: session.run(["heatmaps"], inputs), batch_size


def decoding(count: int = 32, channels_last: int = 1):
    """`decode_heatmaps` by its default, local; on what the network gives, which is channels_last."""
    from modeling_handunet.heatmaps import decode_heatmaps, render_heatmaps

    maps = render_heatmaps(torch.rand(count, KEYPOINTS, 2) * SIZE, SIZE, 3.0)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    return lambda: decode_heatmaps(maps), count


def first_prediction(onnx: int = 0, *, folder: Path, threads: int):
    """A fresh process from its start to the first answer, with files in the disk's cache."""
    photograph = sorted((folder / "freihand" / "training" / "rgb").glob("*.jpg"))[0]
    command = [sys.executable, "-W", "ignore", str(ROOT / "predict.py"), str(photograph), "--output", str(folder / "drawn")]
    command += ["--backend", "onnx", "--model", str(folder / "model.onnx")] if onnx else ["--model", str(folder / "model")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def act():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)

    return act, 1


