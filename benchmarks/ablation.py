"""What each choice of the training is worth: a training of its own for each row, with one change.

    python -m benchmarks.ablation --folder outputs/ablation -- --hand_mesh right.glb --cutouts cutouts --photos photos
    python -m benchmarks.ablation --folder outputs/ablation --rows base squared_error      # only these
    python -m benchmarks.ablation --folder outputs/ablation --print                        # the table of what is done
    python -m benchmarks.ablation --folder outputs/precision --rows base bf16 --base ""    # train.py's defaults, in bf16
    python -m benchmarks.ablation --folder outputs/photographs --on photographs -- --photographs photographs \
        --init weights/handunet --hand_mesh right.glb --cutouts cutouts --photos photos    # the choices for photographs
    python -m benchmarks.ablation --change squared_error -- --output_dir outputs/squared   # train.py with another loss

Options after `--` go to train.py in every row.  A training that was stopped goes on where it was.  The figures are those of
each run's metrics.json, on validation and on test.
"""

import argparse
import functools
import json
import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dataset_script import counter_rng
from dataset_script.photo_augmentation import PhotoAugmentation, radians_from_upright
from dataset_script.sources import Inputs, Source, photographs
from modeling_handunet import HandUNetForPoseEstimation
from modeling_handunet.hands import UPRIGHT
from modeling_handunet.heatmaps import decode_heatmaps
from modeling_handunet.losses import HeatmapLoss
from training import evaluation
from training.arguments import bf16_is_fast
from training.inputs import normalize
from training.tasks.pose import PoseTask

ROOT = Path(__file__).resolve().parents[1]
TEACHER = "weights/handunet-base"  # of soft targets


class SquaredErrorLoss(HeatmapLoss):
    """The IoU loss and the squared error of the heatmap, over the energy of one keypoint's Gaussian."""

    name = "IoU loss + squared error"
    sentence = "The loss is the IoU loss and the squared error of each heatmap."

    def per_heatmap(self, heatmaps: Tensor, targets: Tensor) -> Tensor:
        error = (heatmaps.float() - targets).square().sum((2, 3)) / self.energy
        return super().per_heatmap(heatmaps, targets) + error


class CoordinateLoss(HeatmapLoss):
    """The IoU loss and the distance between the centres of mass of heatmap and target, in tenths of the side."""

    name = "IoU loss + coordinates"
    sentence = "The loss is the IoU loss and the distance between the centres of mass of each heatmap and its target."

    def per_heatmap(self, heatmaps: Tensor, targets: Tensor) -> Tensor:
        centers, wanted = (decode_heatmaps(maps, "mean")[0] for maps in (heatmaps.float(), targets))  # (B, N, 2) px
        return super().per_heatmap(heatmaps, targets) + 10 * (centers - wanted).norm(dim=-1) / heatmaps.shape[-1]


def use_loss(loss: type[HeatmapLoss]) -> None:
    """Let models train on another loss."""
    HandUNetForPoseEstimation.loss_class = loss


def use_soft_targets() -> None:
    """Let training learn the mean of each Gaussian and of what `TEACHER` draws in the same crop; empty maps stay empty."""
    teacher = HandUNetForPoseEstimation.from_pretrained(TEACHER).eval()
    usual = PoseTask.make_targets

    def make_targets(task: PoseTask, inputs: Inputs) -> dict:
        targets = usual(task, inputs)
        device = inputs.images.device
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast()):
            drawn = teacher.to(device)(normalize(inputs.images)).heatmaps.float()
        is_there = ~inputs.keypoints.isnan().all(-1)[..., None, None]
        return {**targets, "labels": torch.where(is_there, (targets["labels"] + drawn) / 2, targets["labels"])}

    PoseTask.make_targets = make_targets


def turn_upright() -> None:
    """Turn every crop so that the hand points up: in training within 20 degrees, in validation and test exactly."""
    make_inputs = Source.make_inputs

    def in_training(source: Source, batch: dict, keys: Tensor) -> Inputs:
        inputs = make_inputs(source, batch, keys)
        return upright(inputs, math.radians(UPRIGHT) * (2 * counter_rng.uniform(keys, "upright").to(inputs.images) - 1))

    Source.make_inputs = in_training
    evaluation.Inputs = lambda *values: upright(Inputs(*values), values[0].new_zeros(len(values[0])))


def upright(inputs: Inputs, tilt: Tensor) -> Inputs:
    """The crops, turned about their middle until the direction from wrist to middle knuckle is `tilt` (B,) radians from up."""
    angle = radians_from_upright(inputs.keypoints).nan_to_num(0) - tilt
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # from the new crop to the old one
    grid = functional.affine_grid(functional.pad(turn, (0, 1)), inputs.images.shape, align_corners=False)
    images = functional.grid_sample(inputs.images, grid, align_corners=False)
    middle = inputs.images.shape[-1] / 2
    keypoints = (inputs.keypoints - middle) @ turn + middle
    inside = ((keypoints >= 0) & (keypoints < 2 * middle)).all(-1) | keypoints.isnan().all(-1)
    return inputs._replace(images=images, keypoints=keypoints, visibility=inputs.visibility & inside)


def leave_out(*names: str) -> None:
    """Let photographs be trained on without these parts of their augmentation."""
    photographs.PhotoAugmentation = functools.partial(PhotoAugmentation, **dict.fromkeys(names, 0.0))


LOSSES = {"squared_error": SquaredErrorLoss, "coordinates": CoordinateLoss}
# What a row changes that no option does.
CHANGES = {
    **{name: functools.partial(use_loss, loss) for name, loss in LOSSES.items()},
    "soft": use_soft_targets,
    "upright": turn_upright,
    "no_turning": functools.partial(leave_out, "any_angle"),
    "no_shape": functools.partial(leave_out, "scale", "shift", "stretch", "tilt"),
    "no_color": functools.partial(
        leave_out, "gamma", "brightness", "contrast", "saturation", "gain", "hue", "grey", "lamp", "cast"
    ),
    "no_camera": functools.partial(leave_out, "noisy", "blur", "coarse", "motion", "jpeg"),
    "no_cover": functools.partial(leave_out, "beside", "patch", "things", "framed"),
}
# Rows and figures of every study.
COMMON_ROWS = {
    "squared_error": ("squared error beside the IoU loss", ""),
    "coordinates": ("centre-of-mass distance beside the IoU loss", ""),
    "constant": ("constant learning rate without warm-up", "--schedule plateau"),  # too few epochs for a plateau
    "no_ema": ("no averaged weights", "--ema_decay 0"),
    "cutouts_0": ("no cut-outs", "--cutouts_share 0"),
}
COMMON_FIGURES = {("validation", "mean_error_over_box"): "error / box", ("validation", "pck@0.1"): "PCK@0.1"}


@dataclass(frozen=True)
class Study:
    """Rows that are trained and compared.

    base: options of train.py in every row.
    rows: by name, what the row changes, and its own options; a row of `CHANGES` trains with that change.
    figures: where a run's metrics have a figure, and the column's name.
    """

    base: str
    rows: dict[str, tuple[str, str]]
    figures: dict[tuple[str, ...], str]


# A small crop with the hand nearly as large in it as in one of 128 px, for many samples in little time.
SCENES = Study(
    "--dataset scenes --image_size 64 --box_fill 0.8 --train_samples 10000 --epochs 2 --batch_size 16 --learning_rate 2e-3 "
    "--negatives 0 --validation_samples 200 --test_samples 200",
    {
        "base": ("base: learning rate 2e-3, cosine, batch 16, EMA 0.998, 35 % cut-outs, IoU loss, 16-32-64-128", ""),
        **COMMON_ROWS,
        "quantized": ("targets centred on the pixel", "--targets quantized"),
        "lr_1e-3": ("learning rate 1e-3", "--learning_rate 1e-3"),
        "lr_4e-3": ("learning rate 4e-3", "--learning_rate 4e-3"),
        "batch_8": ("batch 8", "--batch_size 8"),
        "batch_32": ("batch 32", "--batch_size 32"),
        "cutouts_70": ("70 % cut-outs", "--cutouts_share 0.7"),
        "negatives": ("10 % negatives from the start", "--negatives 0.1"),
        "deeper": ("a fifth level: 16-32-64-128-256", "--hidden_sizes 16 32 64 128 256"),
        "wider": ("wider: 24-48-96-192", "--hidden_sizes 24 48 96 192"),
        "shallower": ("three levels: 16-32-64", "--hidden_sizes 16 32 64"),
        "argmax": ("heatmaps read by `argmax`", "--decoding argmax"),
        "mean": ("heatmaps read by `mean`", "--decoding mean"),
        "bf16": ("trained in bf16", "--mixed_precision bf16"),
    },
    {
        **COMMON_FIGURES,
        ("test_by_group", "drawn", "mean_error_over_box"): "test: drawn hands",
        ("test_by_group", "cut-outs", "mean_error_over_box"): "test: cut-outs",
        ("test", "mean_error_percent"): "test: error, % of the side",
    },
)
# Validation and test are photographs of other sources than training, and not of the same ones.
PHOTOGRAPHS = Study(
    "--photographs_share 0.7 --validate_on photographs --train_samples 3200 --epochs 2 --batch_size 32 --learning_rate 7e-4 "
    "--negatives 0 --mixed_precision bf16 --layers 6000 --validation_samples 2000 --test_samples 2000",
    {
        "base": ("base: 70 % photographs, learning rate 7e-4, cosine, batch 32, EMA 0.998, IoU loss, bf16", ""),
        "float32": ("trained in float32", "--mixed_precision no"),
        "share_0": ("no photographs", "--photographs_share 0.001"),
        "share_40": ("40 % photographs", "--photographs_share 0.4"),
        "share_95": ("95 % photographs", "--photographs_share 0.95"),
        "balanced": ("a source counts as 60 pictures at most, not as 400", "--most_per_source 60"),
        "noisy": ("hands on which the teacher's looks differ by up to 0.05, not 0.03", "--max_disagreement 0.05"),
        **COMMON_ROWS,
        "lr_3e-4": ("learning rate 3e-4", "--learning_rate 3e-4"),
        "lr_2e-3": ("learning rate 2e-3", "--learning_rate 2e-3"),
        "size_160": ("crops of 160 px", "--image_size 160"),
        "soft": ("soft targets: the mean of each Gaussian and of what `handunet-base` draws", ""),
        "no_turning": ("photographs turned by 30 degrees at most, not half of them by any angle", ""),
        "no_shape": ("photographs not scaled, shifted, stretched or tilted", ""),
        "no_color": ("photographs in their own colours and light", ""),
        "no_camera": ("photographs without blur, noise, low resolution and JPEG", ""),
        "no_cover": ("photographs without things in front or beside, and without edges", ""),
        "upright": ("crops that are turned upright by the true direction, in training, validation and test", ""),
    },
    {
        **COMMON_FIGURES,
        ("test", "mean_error_over_box"): "test: error / box",
        ("test", "pck@0.1"): "test: PCK@0.1",
    },
)
STUDIES = {"scenes": SCENES, "photographs": PHOTOGRAPHS}


def train_row(name: str, changes: str, seed: int, folder: Path, options: Sequence[str]) -> None:
    """Run a row's training, or go on with it, in a process of its own that writes to a log."""
    output = folder / f"{name}-{seed}"
    program = ["-m", "benchmarks.ablation", "--change", name, "--"] if name in CHANGES else ["train.py"]
    command = [sys.executable, *program, *options, *changes.split(), "--seed", str(seed), "--output_dir", str(output)]
    command += ["--resume"] if output.exists() else []
    with open(folder / f"{output.name}.log", "a") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)
    print(f"{output.name} is trained.", flush=True)


def table(study: Study, results: dict[str, list[dict]]) -> str:
    """A line of Markdown for each row, from its runs' metrics: the mean over seeds, for errors with the range."""
    lines = [f"| | seeds | {' | '.join(study.figures.values())} |", "|---" * (len(study.figures) + 2) + "|"]
    for name, runs in results.items():
        cells = [study.rows[name][0], str(len(runs))]
        for *path, last in study.figures:
            values = [functools.reduce(lambda part, key: part.get(key, {}), path, run).get(last) for run in runs]
            values = [value for value in values if value is not None]
            spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 and last == "mean_error_over_box" else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="holds the trainings; those that are done are read")
    parser.add_argument("--on", choices=STUDIES, default="scenes", help="what is compared (default: scenes)")
    parser.add_argument("--rows", nargs="+", help="only these (default: all of the study)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--base", help="options of train.py in every row (default: the study's)")
    parser.add_argument("--change", choices=CHANGES, help="no table: run train.py with this change and the options after --")
    parser.add_argument("--print", action="store_true", help="only the table of what is done")
    parser.add_argument("options", nargs="*", help="further options of train.py, after --")
    args = parser.parse_args()
    if args.change:
        import train

        CHANGES[args.change]()
        sys.argv = ["train.py", *args.options]
        return train.main()
    if not args.folder:
        parser.error("--folder is missing: name the folder of the trainings")
    study = STUDIES[args.on]
    if unknown := [name for name in args.rows or () if name not in study.rows]:
        parser.error(f"there is no row {', '.join(unknown)}: choose from {', '.join(study.rows)}")
    base = study.base if args.base is None else args.base
    options, file = [*shlex.split(base), *args.options], args.folder / "options.json"
    if not args.print:
        args.folder.mkdir(parents=True, exist_ok=True)
        begun_with = json.loads(file.read_text()) if file.exists() else options
        if options != begun_with:
            parser.error(f"{args.folder} was begun with {shlex.join(begun_with)}: give these options, or another --folder")
        file.write_text(json.dumps(options) + "\n")
        rows = args.rows or study.rows
        rows = [name for name in rows if "--cutouts" in options or not name.startswith("cutouts")]  # or no effect
        for name, seed in product(rows, args.seeds):
            if not (args.folder / f"{name}-{seed}" / "metrics.json").exists():
                train_row(name, study.rows[name][1], seed, args.folder, options)
    done = {name: [json.loads(path.read_text()) for path in args.folder.glob(f"{name}-*/metrics.json")] for name in study.rows}
    print(table(study, {name: runs for name, runs in done.items() if runs}))


if __name__ == "__main__":
    main()
