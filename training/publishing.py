"""The finished model as a folder that is a Hub repository: weights, configuration, processor, code, card, figures."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from transformers import AutoModelForPoseEstimation, pipeline

from modeling_handunet import KEYPOINT_NAMES, HandUNetForPoseEstimation, HandUNetImageProcessor
from modeling_handunet.registration import TASK
from training.arguments import Arguments

TEMPLATE = Path(__file__).resolve().parent.parent / "model_card.md"
# The figures that the card lists, with their definitions.
REPORTED = {
    "mean_error_percent": ("mean error, %", "mean distance of a keypoint from the truth, % of the image side"),
    "mean_error_px_128": ("mean error, px at 128", "the same in pixels of a 128 px crop"),
    "mean_error_px_224": ("mean error, px at 224", "the same in pixels of a 224 px crop"),
    "pck@0.05": ("PCK@0.05", "share of keypoints within 0.05 of the longer side of the hand's box"),
    "pck@0.1": ("PCK@0.1", "share within 0.1"),
    "pck@0.2": ("PCK@0.2", "share within 0.2"),
    "auc": ("AUC", "area under the share of keypoints within 0 to 30 px at 224; 1 is perfect"),
    "score_auroc": ("score AUROC", "chance that a keypoint more than 0.1 of the box off has a lower score than another"),
}
FREIHAND_TERMS = (
    "Trained on FreiHAND (Zimmermann et al., ICCV 2019), whose terms allow research only and prohibit commercial use: "
    "that holds for these weights too."
)


def load_any_model(name: str):
    """The HandUNet `name`, a folder or an id on the Hub, by this package's code."""
    try:
        return AutoModelForPoseEstimation.from_pretrained(name, trust_remote_code=False)
    except ValueError as error:
        if "do not fit" in str(error):
            raise
        raise ValueError(f"{name} is not a HandUNet that this version can load: {error}") from error


def save_model(
    folder: Path, model: HandUNetForPoseEstimation, args: Arguments, metrics: dict, splits, figures: Sequence[Path]
) -> None:
    """Write the whole repository; `folder` is there only when it is complete."""
    unfinished = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(unfinished, ignore_errors=True)
    size = {"height": model.config.image_size, "width": model.config.image_size}
    pipeline(TASK, model=model.cpu().eval(), image_processor=HandUNetImageProcessor(size=size)).save_pretrained(unfinished)
    (unfinished / "figures").mkdir()
    for figure in figures:
        shutil.copy(figure, unfinished / "figures" / figure.name)
    args.save(unfinished / "training_arguments.json")
    (unfinished / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    make_card(model, args, metrics, splits, repo_id=args.push_to_hub).save(unfinished / "README.md")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def make_card(model, args: Arguments, metrics: dict, splits, repo_id: str | None = None) -> ModelCard:
    """The model card, filled in with this run's figures."""
    test = metrics["test"]
    name = repo_id or Path(args.output_dir).name
    research_only = splits.research_only
    data = ModelCardData(
        license="other" if research_only else "apache-2.0",
        license_name="research-only" if research_only else None,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["custom_code", "hand-pose-estimation", "pose-estimation", "keypoint-detection", "u-net"],
        base_model=args.init if args.init and not os.path.isdir(args.init) else None,
        model_name=name.split("/")[-1],
        eval_results=[
            EvalResult(
                task_type=TASK,
                dataset_type=args.dataset,
                dataset_name=splits.source,
                dataset_split="test",
                metric_type=metric,
                metric_name=title,
                metric_value=round(test[metric], 5),
            )
            for metric, (title, _) in REPORTED.items()
            if test[metric] is not None
        ],
    )
    parameters = model.num_parameters()
    joints = test["mean_error_percent_per_keypoint"]
    rows = [f"| wrist | {number(joints[0])} | | | |"]
    for base in range(1, len(KEYPOINT_NAMES), 4):
        finger = KEYPOINT_NAMES[base].split("_")[0]
        rows.append(f"| {finger} | " + " | ".join(number(error) for error in joints[base : base + 4]) + " |")
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_name=name.split("/")[-1],
        repo_id=name if repo_id else str(Path(args.output_dir) / "model"),
        parameters=f"{parameters:,}",
        size=f"{parameters * 4 / 1e6:.1f} MB",
        has_figures=True,
        test_hands=test["num_hands"],
        training_data=describe_data(args, splits),
        results="\n".join(f"| {title} | {number(test[key])} | {text} |" for key, (title, text) in REPORTED.items()),
        joints="\n".join(rows),
        training=describe_training(args, metrics, len(splits.train)),
        limits=describe_limits(args),
    )


def number(value: float | None) -> str:
    """A figure as the card shows it."""
    return "not defined" if value is None else f"{value:.3g}"


def describe_data(args: Arguments, splits) -> str:
    """Where the training data comes from, and under which terms."""
    if args.dataset == "freihand":
        return FREIHAND_TERMS
    start = f" Training started from the weights `{args.init}`, whose terms hold on." if args.init else ""
    if args.dataset == "coco":
        return f"{len(splits.train)} annotated hands of the trainer's own photographs.{start}"
    return (
        f"{splits.source[0].upper()}{splits.source[1:]}: modelled, posed and drawn by the project itself. No photograph "
        f"and no third party's data is in it, so the weights are free under the Apache License 2.0.{start}"
    )


def describe_training(args: Arguments, metrics: dict, samples: int) -> str:
    """The run in a paragraph; `training_arguments.json` has every setting."""
    return (
        f"`train.py`, recipe `{args.recipe}`: {metrics['steps']} steps of {args.batch_size * metrics['processes']} samples "
        f"out of {samples} an epoch, {args.optimizer} at {args.learning_rate:g}, IoU loss on {args.targets} targets with a "
        f"sigma of {args.sigma:g} px, averaged weights (decay {args.ema_decay:g}); the weights of epoch "
        f"{metrics['best_epoch']} were the best on validation. Always answering the training set's mean pose makes "
        f"{metrics['mean_pose']['mean_error_percent']:.2f} %; this model makes {metrics['error_over_mean_pose']:.2f} of "
        "that error. Every setting is in `training_arguments.json`, every figure in `metrics.json`."
    )


def describe_limits(args: Arguments) -> str:
    """What this run's data cannot teach."""
    return {
        "synthetic": "It has seen drawn hands only; expect larger errors on photographs.",
        "freihand": "FreiHAND's raw photographs have a green screen: check it on your own backgrounds.",
        "coco": "It knows the photographs it was trained on; check it on others before you rely on it.",
    }[args.dataset]


def push_model(folder: Path, repo_id: str) -> str:
    """Send a saved folder to the Hub in one commit; returns its address.  A push that breaks leaves it as it was."""
    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload HandUNet").commit_url)


__all__ = ["load_any_model", "make_card", "push_model", "save_model"]
