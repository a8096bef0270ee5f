"""Broken weights, exported files and checkpoints."""

import contextlib
import functools
import io
import json
import random
import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save as save_tensors

from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation
from modeling_handunet.crops import Crop
from tests.tiny_training import make_run
from tools.fuzzing import ROOT, Failure
from tools.fuzzing.images import SMALL
from tools.fuzzing.mutations import INTEGERS, mutate_bytes, mutate_json
from training.checkpoints import MANIFEST, STATE, UNFINISHED, seal
from training.resume import keep_best, resume, save_checkpoint


def make_weights(draw: random.Random, folder: Path) -> None:
    """Half of them have a mutated header of the correct length."""
    config = HandUNetConfig(image_size=SMALL, hidden_sizes=(4, 8))
    config.to_json_file(folder / "config.json")
    torch.manual_seed(0)
    tensors = HandUNetForPoseEstimation(config).state_dict()
    data = save_tensors(tensors, {"format": "pt"})
    length = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    way = draw.random()
    if way < 0.3:  # whole files of other tensors
        for _ in range(draw.choice((1, 1, 2))):
            name = draw.choice(list(tensors))
            change = draw.randrange(7)
            if change == 0:
                del tensors[name]
            elif change == 1:
                tensors[draw.choice(("head.bias", name + ".x", "", "x" * 300))] = torch.zeros(draw.choice((0, 1, 5)))
            elif change == 2:
                dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
                tensors[name] = tensors[name].to(draw.choice(dtypes))
            elif change == 3:
                tensors[name] = tensors[name].reshape(draw.choice(((-1,), (1, -1), (-1, 1, 1, 1, 1, 1))))
            elif change == 4:
                constant = torch.full_like(tensors[name], draw.choice((-1, 10**9)))
                tensors[name] = constant.div(draw.choice((0, 1))).to(tensors[name])
            elif change == 5:
                tensors[name] = tensors[draw.choice(list(tensors))].clone()
            else:
                pairs = tensors.items()
                tensors = {draw.choice((key, "model." + key)) if draw.random() < 0.1 else key: value for key, value in pairs}
        metadata = draw.choice(({"format": "pt"}, {"format": "tf"}, {"format": "\0"}, {}, None))
        (folder / "model.safetensors").write_bytes(save_tensors(tensors, metadata))
        return
    if way < 0.35:  # 10**9 elements in a small file
        name = draw.choice([name for name in header if name != "__metadata__"])
        header[name]["shape"] = draw.choice(([10**9], [10**9, 10**9, 10**9], [2**62, 4], [1000, 1000, 1000]))
        header[name]["data_offsets"] = draw.choice((header[name]["data_offsets"], [0, 4 * 10**9], [0, 2**64 - 1]))
    if way < 0.75:
        text = json.dumps(header).encode() if way < 0.35 else mutate_json(draw, header, ("F16", "dtype", "shape"))
        claimed = len(text) if draw.random() < 0.9 else draw.choice(INTEGERS)
        data = claimed.to_bytes(8, "little") + text + values
    else:
        data = mutate_bytes(draw, data)
    (folder / "model.safetensors").write_bytes(data)


def use_weights(_, folder: Path) -> None:
    model = HandUNetForPoseEstimation.from_pretrained(folder)
    heatmaps = model(torch.zeros(1, 3, SMALL, SMALL, dtype=model.dtype)).heatmaps
    if heatmaps.shape != (1, 21, SMALL, SMALL):
        raise Failure(f"heatmaps {tuple(heatmaps.shape)}")


# Exported files


@functools.cache
def whole_onnx():
    """The package's exported file, as a protobuf."""
    import onnx

    return onnx.load(ROOT / "handunet" / "models" / "float32" / "pose.onnx")


def make_onnx(draw: random.Random, folder: Path) -> Path:
    """Most have other metadata, some another graph or damaged bytes."""
    path, model = folder / "model.onnx", type(whole_onnx())()
    model.CopyFrom(whole_onnx())
    (entry,) = (entry for entry in model.metadata_props if entry.key == "handunet")
    way = draw.random()
    if way < 0.7:
        text = mutate_json(draw, json.loads(entry.value), ("image_size", "box_fill", "kind", "keypoint_names"))
        entry.value = text.decode("utf-8", "replace").replace("\0", "")
    elif way < 0.8:
        names = draw.choice((model.graph.input, model.graph.output, [entry]))
        chosen = draw.choice(list(names))
        if chosen is entry:
            entry.key = draw.choice(("", "x", "HANDUNET"))
        else:
            chosen.name = draw.choice(("x", "pixel_values", "scores"))
    data = model.SerializeToString()
    path.write_bytes(mutate_bytes(draw, data) if way >= 0.8 else data)
    return path


def use_onnx(path: Path, _) -> None:
    from handunet.backends import OnnxHands

    photo = Image.new("RGB", (40, 30), "white")
    hands = OnnxHands(str(path))
    keypoints, scores, _ = hands.read(photo, [Crop.of_image(*photo.size, hands.image_size)])
    if keypoints.shape != (1, 21, 2) or scores.shape != (1, 21):
        raise Failure(f"keypoints {keypoints.shape}, scores {scores.shape}")


# Checkpoints


@functools.cache
def whole_checkpoint():
    """A run of a small network, and its two checkpoints."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-checkpoints-"))
    run = make_run(folder)
    save_checkpoint(run)
    run.history.append({"epoch": 1, "step": 0, "train_loss": 1.0, "validation": {"loss": 1.0, "mean_error_percent": 9.0}})
    keep_best(run)
    run.step = 1
    save_checkpoint(run)
    return run, run.checkpoints.folder


def make_checkpoint(draw: random.Random, folder: Path) -> Path:
    """The newer checkpoint is damaged, or another one of the same files is sealed anew, as an older version's would be."""
    target = folder / "checkpoints"
    shutil.copytree(whole_checkpoint()[1], target)
    newest = max(target.glob("step-*"))
    if draw.random() < 0.3:
        shutil.rmtree(min(target.glob("step-*")))  # there is no older one to go back to
    name = draw.choice([STATE] * 6 + [MANIFEST] + [path.name for path in newest.iterdir()])
    data = (newest / name).read_bytes()
    sealed = name != MANIFEST and draw.random() < 0.7
    if name.endswith(".json") and draw.random() < 0.4:
        value = json.loads(data)
        del value[draw.choice(list(value))]
        data = json.dumps(value).encode()
    else:
        data = mutate_json(draw, json.loads(data)) if name.endswith(".json") else mutate_bytes(draw, data)
    (newest / name).write_bytes(data)
    if draw.random() < 0.1:
        (newest / draw.choice((name, "more.bin", "model/x"))).unlink(missing_ok=True)
    if sealed:
        (newest / MANIFEST).unlink()
        unfinished = newest.with_name(newest.name + UNFINISHED)
        newest.rename(unfinished)
        seal(unfinished, newest)
    return target


def use_checkpoint(folder: Path, _) -> None:
    """The run goes on from a whole checkpoint, or says in a sentence why it cannot."""
    run, _ = whole_checkpoint()
    run.checkpoints.folder = folder
    with contextlib.redirect_stdout(io.StringIO()):
        said = resume(run)
    if not said.startswith("Resumed from") or not isinstance(run.step, int):
        raise Failure(f"{said} at step {run.step}")
    if not all(value.isfinite().all() for value in run.model.state_dict().values()):
        raise Failure("weights that are not finite")
