"""What a finished run says about itself: all its figures, and the plain data from which its card is made."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedModel

from modeling_handunet import HandUNetImageProcessor
from modeling_handunet.losses import NO_HAND
from training.arguments import Arguments
from training.confidence import auroc_of_negatives, calibration, hand_figures
from training.evaluation import mean_pose_arrays, score, score_by_group, worst_over_green_screen

if TYPE_CHECKING:
    from training.run import Run

Arrays = dict[str, np.ndarray]


def final_metrics(
    run: "Run", metric, test: Arrays, validation: Arrays, negatives: dict[str, Arrays], boxed: Arrays | None = None
) -> dict:
    """All figures of a pose run: `metrics.json`.  The arrays are those of `training.evaluation.predict`."""
    splits, image_size = run.splits, run.args.model.image_size
    seen = splits.validation if splits.mean_pose_of == "validation" else splits.train
    baseline = score(metric, mean_pose_arrays(seen, test), image_size)
    figures = score(metric, test, image_size)
    metrics = {
        **run_figures(run),
        "test": figures,
        "mean_pose": baseline,
        "mean_pose_of": splits.mean_pose_of,
        # the divisor is 0 if all hands are the same
        "error_over_mean_pose": figures["mean_error_percent"] / max(baseline["mean_error_percent"], 1e-9),
        "calibration": calibration(validation, test, splits.validation_groups),
        "history": run.history,
    }
    if run.args.model.average_with:  # the figures so far are of the weights before the mean
        metrics["validation"] = score(metric, validation, image_size)
    if negatives:
        metrics["auroc_of_negatives"] = auroc_of_negatives(test, negatives, *fitted(metrics))
    if boxed and "false hand" in negatives:
        of_hands, of_none = boxed["hand_chances"], negatives["false hand"]["hand_chances"]
        shown = np.array([int(item["hand_classes"]) for item in splits.boxed_hands])[boxed["index"]]
        shown = np.concatenate([shown, np.full(len(of_none), NO_HAND)])
        metrics["hand_classifier"] = hand_figures(np.concatenate([of_hands, of_none]), shown)
    if splits.test_groups:
        metrics["grouped_by"] = splits.grouped_by
        metrics["test_by_group"] = score_by_group(metric, test, splits.test_groups, image_size)
        if (worst := worst_over_green_screen(metrics["test_by_group"])) is not None:
            metrics["worst_over_green_screen"] = worst
    return metrics


def run_figures(run: "Run") -> dict:
    """What the figures of a run of any task begin with."""
    return {
        "dataset": run.source.describe().name,
        "processes": run.accelerator.num_processes,
        "steps": run.step,
        "skipped_steps": run.skipped_steps,
        "best_epoch": run.chosen["epoch"],
        "validation": run.chosen["validation"],
    }


def make_processor(args: Arguments, metrics: dict) -> HandUNetImageProcessor:
    """The image processor of a finished model, with what calibrates its scores."""
    size = {"height": args.model.image_size, "width": args.model.image_size}
    temperature, offset = (round(value, 4) for value in fitted(metrics))
    return HandUNetImageProcessor(size=size, box_fill=args.model.box_fill, temperature=temperature, score_offset=offset)


def fitted(metrics: dict) -> tuple[float, float]:
    """The temperature and the offset of the scores."""
    return metrics["calibration"]["temperature"], metrics["calibration"]["offset"]


def make_report(run: "Run", model: PreTrainedModel, metrics: dict) -> dict:
    """A run as `release` reads it: JSON data, without paths of this machine."""
    args, source = run.args, run.source
    public = args.public()
    return {
        "repo_id": args.output.push_to_hub,
        "output_name": Path(args.output.output_dir).name,
        "task": run.task.pipeline,
        "model": {
            "num_parameters": model.num_parameters(),
            **{name: getattr(model.config, name) for name in ("image_size", "sigma") if hasattr(model.config, name)},
        },
        "arguments": public,
        "command": args.command(),
        "init": {"name": public["init"], "path": args.model.init} if args.model.init else None,
        "loss": {"name": model.loss.name, "sentence": model.loss.sentence},
        "samples_per_epoch": len(run.splits.train),
        "publish_examples": args.output.publish_examples,
        "source": {
            "type": "+".join(args.data.dataset),
            **dataclasses.asdict(source.describe()),
            "grouped_by": run.splits.grouped_by,
            "same_validation_and_test": source.same_validation_and_test,
            "terms": json.loads(json.dumps(dataclasses.asdict(source.terms()))),
        },
        "metrics": metrics,
    }
