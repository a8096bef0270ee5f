"""The finished model as a folder that is a Hub repository, and that folder on the Hub.

[`save_model`] writes weights, configuration, processor, code, card, figures, examples and the endpoint's handler;
[`push_model`] sends such a folder, with an ONNX file, in one commit, and the Space in a repository of its own.  A commit
happens whole or not at all, so a push that breaks leaves a repository as it was.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    RepoCard,
    hf_hub_download,
)
from transformers import AutoModelForPoseEstimation, pipeline

from modeling_handunet import KEYPOINT_NAMES, HandUNetForPoseEstimation, HandUNetImageProcessor
from modeling_handunet.registration import TASK
from training.arguments import Arguments, check_repo_id

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "model_card.md"
ENDPOINT, SPACE = ROOT / "demo" / "endpoint", ROOT / "demo" / "space"
SCREENSHOT = ROOT / "docs" / "space.jpg"
# Whose repository it will be is not known before it is pushed.
OWNER = "USER"
ONNX_FILE = "onnx/model.onnx"
# What a saved folder must have to be a model's repository.
REQUIRED = ("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
# What it may have been kept without, as in `weights/`, and gets when it is published.
CODE = ("modeling_handunet.py", "image_processing_handunet.py", "pipeline_handunet.py")
# Folders on the Hub that belong to the weights: what an earlier push left there goes with the next one.
OF_THE_WEIGHTS = ("figures/", "examples/", "onnx/")
# The figures that the card lists, with their definitions.
REPORTED = {
    "mean_error_percent": ("mean error, %", "mean distance of a keypoint from the truth, % of the image side"),
    "mean_error_px_128": ("mean error, px at 128", "mean distance of a keypoint from the truth, in pixels of a 128 px crop"),
    "mean_error_px_224": ("mean error, px at 224", "mean distance of a keypoint from the truth, in pixels of a 224 px crop"),
    "mean_error_over_box": ("error over box", "mean distance of a keypoint from the truth, over the longer side of the box"),
    "pck@0.05": ("PCK@0.05", "share of keypoints within 0.05 of the longer side of the hand's box"),
    "pck@0.1": ("PCK@0.1", "share of keypoints within 0.1 of the longer side of the hand's box"),
    "pck@0.2": ("PCK@0.2", "share of keypoints within 0.2 of the longer side of the hand's box"),
    "auc": ("AUC", "area under the share of keypoints within 0 to 30 px at 224; 1 is perfect"),
    "success_rate@2_percent": ("success rate, 2 %", "share of hands whose mean error is below 2 % of the image side"),
    "success_rate@5_percent": ("success rate, 5 %", "share of hands whose mean error is below 5 % of the image side"),
    "success_rate@10_percent": ("success rate, 10 %", "share of hands whose mean error is below 10 % of the image side"),
    "score_auroc": ("score AUROC", "chance that a keypoint more than 0.1 of the box off has a lower score than another"),
}
# Those of them that the card gives for each background or source, too.
REPORTED_BY_GROUP = ("mean_error_percent", "pck@0.1", "auc")
FREIHAND = "freihand"
FREIHAND_PAGE = "https://lmb.informatik.uni-freiburg.de/projects/freihand/"
RESEARCH_ONLY = "research-only"
UNKNOWN = "unknown"
FREIHAND_TERMS = (
    f"Trained on [FreiHAND]({FREIHAND_PAGE}) (Zimmermann et al., ICCV 2019), whose terms allow research only and prohibit "
    "commercial use: that holds for these weights too."
)
FREIHAND_CITATION = """@inproceedings{freihand,
  title = {FreiHAND: A Dataset for Markerless Capture of Hand Pose and Shape from Single RGB Images},
  author = {Zimmermann, Christian and Ceylan, Duygu and Yang, Jimei and Russell, Bryan and Argus, Max and Brox, Thomas},
  booktitle = {ICCV},
  year = {2019}
}
"""
# Licences under which fine-tuned weights may be given on under the project's own.
PERMISSIVE = ("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "unlicense", "isc")


def load_any_model(name: str):
    """The HandUNet `name`, a folder or an id on the Hub, by this package's code."""
    try:
        return AutoModelForPoseEstimation.from_pretrained(name, trust_remote_code=False)
    except ValueError as error:
        if "do not fit" in str(error):
            raise
        raise ValueError(f"{name} is not a HandUNet that this version can load: {error}") from error


def load_processor(name: str) -> HandUNetImageProcessor:
    """The processor of the HandUNet `name`, or the usual one for a folder that has none.

    Raises `ValueError` where it normalises otherwise than training and scoring do ([`training.evaluation.normalize`]).
    """
    usual = HandUNetImageProcessor()
    if os.path.isdir(name) and not os.path.exists(os.path.join(name, "preprocessor_config.json")):
        return usual
    processor = HandUNetImageProcessor.from_pretrained(name)  # damaged, it is an error
    for setting in ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"):
        its, ours = (np.asarray(getattr(one, setting)).tolist() for one in (processor, usual))
        if its != ours:
            raise ValueError(
                f"{name} normalises by {setting} {its}, and train.py by {ours}: it can be used, but neither be scored "
                "nor trained on by train.py."
            )
    return processor


# Saving.


def save_model(
    folder: Path, model: HandUNetForPoseEstimation, args: Arguments, metrics: dict, splits, figures: Sequence[Path]
) -> None:
    """Write the whole repository; `folder` is there only when it is complete."""
    unfinished = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(unfinished, ignore_errors=True)
    size = {"height": model.config.image_size, "width": model.config.image_size}
    processor = HandUNetImageProcessor(
        size=size, box_fill=args.box_fill, temperature=round(metrics["calibration"]["temperature"], 4)
    )
    pipeline(TASK, model=model.cpu().eval(), image_processor=processor).save_pretrained(unfinished)
    (unfinished / "figures").mkdir()
    for figure in figures:
        shutil.copy(figure, unfinished / "figures" / figure.name)
    args.save(unfinished / "training_arguments.json", for_others=True)
    (unfinished / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    make_card(model, args, metrics, splits, repo_id=args.push_to_hub).save(unfinished / "README.md")
    add_companions(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def add_companions(folder: Path) -> None:
    """Put what goes with any model into its folder: the endpoint's handler and the example pictures."""
    for name in ("handler.py", "requirements.txt"):
        shutil.copy(ENDPOINT / name, folder / name)
    shutil.copytree(SPACE / "examples", folder / "examples", dirs_exist_ok=True)


def add_code(folder: Path) -> None:
    """Put the code of model, processor and pipeline beside weights that were kept without it."""
    model, processor = load_any_model(str(folder)), HandUNetImageProcessor.from_pretrained(folder)
    pipeline(TASK, model=model, image_processor=processor).save_pretrained(folder)


# The card.


@dataclass
class Terms:
    """Under which terms weights may be used, and the words for it."""

    license: str = "apache-2.0"
    license_name: str | None = None
    license_link: str | None = None
    datasets: list[str] = field(default_factory=list)
    base_model: str | None = None
    text: str = ""


def find_terms(args: Arguments, research_only: bool) -> Terms:
    """The terms of a run's weights: those of its data, and of the weights that it started from where they are stricter."""
    terms = Terms(datasets=[FREIHAND] if args.dataset == "freihand" else [])
    if args.dataset == "coco" or (args.foreign_data() and not args.credits):
        terms.license = UNKNOWN  # the trainer's to say, in README.md
    inherited = ""
    if args.init:
        base, start = read_card_data(args.init), args.for_others()["init"]
        terms.base_model = args.init if not os.path.isdir(args.init) else getattr(base, "base_model", None)
        known = list(getattr(base, "datasets", None) or [])
        terms.datasets = list(dict.fromkeys([*known, *terms.datasets]))
        if FREIHAND in known or getattr(base, "license_name", None) == RESEARCH_ONLY:
            research_only = True
            inherited = f"Training started from `{start}`, which was trained on data for research only."
        elif base is None or not base.license:
            terms.license = UNKNOWN
            inherited = f"Training started from `{start}`, which states no terms: ask whoever made it before you use this."
        elif base.license in PERMISSIVE:
            inherited = f"Training started from `{start}` ({base.license})."
        elif terms.license == UNKNOWN:
            inherited = f"Training started from `{start}`, whose terms hold, too: {base.license_name or base.license}."
        else:
            terms.license, terms.license_name, terms.license_link = base.license, base.license_name, base.license_link
            inherited = f"Training started from `{start}`, whose terms hold on: {base.license_name or base.license}."
    if research_only:
        terms.license, terms.license_name, terms.license_link = "other", RESEARCH_ONLY, FREIHAND_PAGE
    terms.text = inherited
    return terms


def read_card_data(name: str) -> ModelCardData | None:
    """The metadata of a model's card, a folder's or a Hub repository's; None without a card that can be read."""
    try:
        path = Path(name) / "README.md" if os.path.isdir(name) else hf_hub_download(name, "README.md")
        return ModelCard.load(path, ignore_metadata_errors=True).data
    except (OSError, ValueError, httpx2.HTTPError, yaml.YAMLError):
        return None


def make_card(model, args: Arguments, metrics: dict, splits, repo_id: str | None = None) -> ModelCard:
    """The model card, filled in with this run's figures; [`assemble`] names the repository where `repo_id` is not known."""
    test, by_group = metrics["test"], metrics.get("test_by_group", {})
    own_name = re.sub(r"[^A-Za-z0-9_.-]+|--+", "-", Path(args.output_dir).name).strip("-.") or "handunet"
    repo_id = repo_id or f"{OWNER}/{own_name}"
    terms = find_terms(args, splits.research_only)
    examples = json.loads((SPACE / "examples" / "examples.json").read_text())
    data = ModelCardData(
        license=terms.license,
        license_name=terms.license_name,
        license_link=terms.license_link,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["custom_code", "hand-pose-estimation", "pose-estimation", "keypoint-detection", "u-net"],
        datasets=terms.datasets or None,
        base_model=terms.base_model,
        base_model_relation="finetune" if terms.base_model else None,
        widget=[
            {"src": f"https://huggingface.co/{repo_id}/resolve/main/examples/{example['file']}", "example_title": example["title"]}
            for example in examples
        ],
        model_name=repo_id.split("/")[-1],
        eval_results=[
            result
            for name, figures in [(None, test), *by_group.items()]
            for result in evaluation_results(args, splits, figures, name)
        ],
    )
    parameters = model.num_parameters()
    joints = test["mean_error_percent_per_keypoint"]
    rows = [f"| wrist | {number(joints[0])} | | | |"]
    for base in range(1, len(KEYPOINT_NAMES), 4):
        finger = KEYPOINT_NAMES[base].split("_")[0]
        rows.append(f"| {finger} | " + " | ".join(number(error) for error in joints[base : base + 4]) + " |")
    example = next(example for example in examples if example["handedness"] == "left")
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_name=repo_id.split("/")[-1],
        repo_id=repo_id,
        example=example,
        parameters=f"{parameters:,}",
        size=f"{parameters * 4 / 1e6:.1f} MB",
        test_hands=test["num_hands"],
        test_source=splits.source,
        training_data=describe_data(args, splits, terms),
        results="\n".join(f"| {title} | {number(test[key])} | {text} |" for key, (title, text) in REPORTED.items()),
        joints="\n".join(rows),
        grouped_by=splits.grouped_by,
        what_groups={"background": "what lies behind the hand", "source": "where the hands are from"}[splits.grouped_by],
        by_group="\n".join(
            f"| {name.replace('_', ' ')} | {figures['num_hands']} | "
            + " | ".join(number(figures[key]) for key in REPORTED_BY_GROUP)
            + " |"
            for name, figures in by_group.items()
        ),
        command=args.command(),
        image_size=model.config.image_size,
        worst_group=describe_worst(metrics),
        training=describe_training(args, metrics, len(splits.train)),
        confidence=describe_confidence(args, metrics),
        limits=describe_limits(args),
        whose_pictures=describe_pictures(args),
        citations=FREIHAND_CITATION if FREIHAND in terms.datasets else "",
    )


def evaluation_results(args: Arguments, splits, figures: dict, group: str | None) -> list[EvalResult]:
    """The figures of the whole test split, or of one group of it, as the Hub's model-index holds them."""
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=args.dataset,
            dataset_name=splits.source,
            dataset_config=f"{splits.grouped_by} {group}" if group else None,
            dataset_split="test",
            metric_type=metric,
            metric_name=f"{title}: {definition}",
            metric_value=round(figures[metric], 5),
        )
        for metric, (title, definition) in REPORTED.items()
        if figures[metric] is not None and (group is None or metric in REPORTED_BY_GROUP)
    ]


def number(value: float | None) -> str:
    """A figure as the card shows it."""
    return "not defined" if value is None else f"{value:.3g}"


def describe_data(args: Arguments, splits, terms: Terms) -> str:
    """Where the training data comes from, and under which terms."""
    if args.dataset == "freihand":
        own = FREIHAND_TERMS
    elif args.dataset == "coco":
        terms_of_it = f". {args.credits}" if args.credits else ", whose terms are not stated."
        own = (
            f"{len(splits.train)} annotated hands of the trainer's own photographs ({splits.source}){terms_of_it} Test and "
            "validation are of the same held-out photographs, by which the weights and the temperature were chosen."
        )
    else:
        own = (
            f"{splits.source[0].upper()}{splits.source[1:]}. The synthetic hands are modelled, posed and drawn by the "
            "project itself."
        )
        if not args.foreign_data():
            own += " No photograph and no third party's data is in it."
        elif args.credits:
            own += f" {args.credits}"
        else:
            own += f" What {', '.join(args.foreign_data())} gave is the trainer's own; no terms are stated."
        if args.cutouts:
            own += " Validation and test have the same cut-out photographs, in other scenes; none was trained on."
        if terms.license == "apache-2.0":
            own += " The weights are free under the Apache License 2.0."
    if terms.license_name == RESEARCH_ONLY and args.dataset != "freihand":
        own += " **These weights may be used for research only, not commercially.**"
    return f"{own} {terms.text}".strip()


def describe_worst(metrics: dict) -> str:
    """How much harder FreiHAND's other backgrounds are, where they were tested."""
    ratio = metrics.get("worst_over_green_screen")
    return "" if ratio is None else f"The worst background has {ratio:.2f} of the error on the green screen.\n\n"


def describe_training(args: Arguments, metrics: dict, samples: int) -> str:
    """The run in a paragraph; `training_arguments.json` has every setting."""
    a_step = args.batch_size * args.gradient_accumulation_steps * metrics["processes"]
    negatives = " and squared error on the empty maps of negatives" if args.difficulty == "scenes" and args.negatives else ""
    rate = {"cosine": "cosine schedule", "plateau": "halved on plateaus"}[args.schedule]
    average = f"averaged weights (decay {args.ema_decay:g})" if args.ema_decay else "no averaging of the weights"
    return (
        f"`train.py`, recipe `{args.recipe}`, seed {args.seed}: {metrics['steps']} steps of {a_step} samples "
        f"out of {samples} an epoch, {args.optimizer} at {args.learning_rate:g} ({rate}), IoU loss on {args.targets} targets "
        f"with a sigma of {args.sigma:g} px{negatives}, {average}; the weights of epoch "
        f"{metrics['best_epoch']} were the best on validation. Always answering the {metrics['mean_pose_of']} set's mean pose makes "
        f"{metrics['mean_pose']['mean_error_percent']:.2f} %; this model makes {metrics['error_over_mean_pose']:.2f} of "
        "that error. Every setting is in `training_arguments.json`, every figure in `metrics.json`; the command, on "
        f"{metrics['processes']} process{'es' if metrics['processes'] > 1 else ''}:"
    )


def describe_confidence(args: Arguments, metrics: dict) -> str:
    """What a score is worth on this run's hands."""
    found = metrics["calibration"]
    within, errors = found["right_within"], {name: found[name]["expected_calibration_error"] for name in ("validation", "test")}
    text = (
        f"A score is the chance that its keypoint lies within {within:g} of the longer side of the hand's box: after a "
        f"temperature of {found['temperature']:.3g}, fitted on validation, the expected calibration error is "
        f"{errors['validation']:.3f} there and {errors['test']:.3f} on test"
    )
    text += ", of the same held-out photographs." if args.dataset == "coco" else "."
    text += " That holds for hands like those of the test."
    told = metrics.get("told_from_negatives")
    if told:
        chances = ", ".join(f"{name} {chance:.3f}" for name, chance in told.items())
        text += f" The chance that a right hand's mean score is higher than that of an image with: {chances}."
    return text


def describe_limits(args: Arguments) -> str:
    """What this run's data cannot teach."""
    if args.dataset == "synthetic":
        cutouts = "and cut-out photographs of few people only" if args.cutouts else "only"
        return f"It has seen drawn hands {cutouts}; expect larger errors on photographs."
    if args.dataset == "coco":
        return "It knows the photographs it was trained on; check it on others before you rely on it."
    if args.backgrounds == "all":
        return "FreiHAND's backgrounds are put in by computer: check it on photographs of your own."
    return "FreiHAND's raw photographs have a green screen: check it on your own backgrounds."


def describe_pictures(args: Arguments) -> str:
    """Whose hands the figures show."""
    return {
        "synthetic": "The hands are drawn by the project" + (" or cut out of photographs." if args.cutouts else "."),
        "freihand": "The photographs are FreiHAND's, for research only.",
        "coco": "The photographs are the trainer's own.",
    }[args.dataset]


# Sending.


def assemble(folder: Path, repo_id: str, target: Path, space: str | None = None) -> str | None:
    """Copy a saved folder to `target` as it is to stand in `repo_id`, with the ONNX file, the card naming both.

    Returns why there is no ONNX file, or None where there is one.  Raises `ValueError` for a folder that is not whole and
    for names that the Hub does not allow.
    """
    for name in filter(None, (repo_id, space)):
        check_repo_id(name)
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not a finished model, it has no {', '.join(missing)}. Give the folder model/ that train.py wrote; a "
            "model without a card (README.md) is not published, since nobody would know its terms."
        )
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__", ".*", "*.incomplete", "onnx"))
    if not all((target / name).is_file() for name in CODE):
        add_code(target)
    add_companions(target)
    problem = export_onnx(target)
    card = name_repository((target / "README.md").read_text(), repo_id)
    onnx = f"`{ONNX_FILE}` is the same network with its decoder for onnxruntime; its metadata say how to prepare an image."
    card = fill_block(card, "onnx", "" if problem else onnx)
    link = f"https://huggingface.co/spaces/{space}"
    if space and SCREENSHOT.is_file():
        (target / "figures").mkdir(exist_ok=True)
        shutil.copy(SCREENSHOT, target / "figures" / "space.jpg")
        picture = "![The Space: a photograph, a box, the skeleton, a table](figures/space.jpg)"
        text = f"Try it in the [Space]({link}):\n\n[{picture}]({link})"
    else:
        text = f"Try it in the [Space]({link})." if space else ""
    (target / "README.md").write_text(fill_block(card, "space", text))
    return problem


def export_onnx(target: Path) -> str | None:
    """Write the ONNX file into the folder of a model; why not, where the packages for it are not installed."""
    from scripts.export_onnx import export

    try:
        export(
            HandUNetForPoseEstimation.from_pretrained(target),
            HandUNetImageProcessor.from_pretrained(target),
            target / ONNX_FILE,
        )
    except ImportError as error:
        return str(error)
    return None


def name_repository(card: str, repo_id: str) -> str:
    """A card's text with `repo_id` in the place of the name under which it was written."""
    written = re.search(r'model="([^"/\s]+/[^"/\s]+)"', card)
    if written is None or written[1] == repo_id:
        return card
    old, (_, name) = written[1], repo_id.split("/")
    card = card.replace(f'"{old}"', f'"{repo_id}"').replace(f"huggingface.co/{old}/", f"huggingface.co/{repo_id}/")
    own = re.escape(old.split("/")[1])
    card = re.sub(rf"^# {own}$", f"# {name}", card, count=1, flags=re.MULTILINE)
    return re.sub(rf"^- name: ['\"]?{own}['\"]?$", f'- name: "{name}"', card, count=1, flags=re.MULTILINE)


def fill_block(card: str, name: str, text: str) -> str:
    """A card's text with `text` between the invisible marks `name`; a card without them stays as it is."""
    marks = f"<!-- {name} -->", f"<!-- /{name} -->"
    block = "\n".join([marks[0], *([text] if text else []), marks[1]])
    return re.sub(re.escape(marks[0]) + ".*?" + re.escape(marks[1]), lambda _: block, card, flags=re.DOTALL)


def assemble_space(target: Path, repo_id: str, terms: ModelCardData) -> None:
    """Write the Space for the model `repo_id` to the folder `target`: the app, the package, metadata that name the model."""
    shutil.copytree(SPACE, target, ignore=shutil.ignore_patterns("__pycache__", "draw_examples.py", ".*"))
    package = ROOT / "modeling_handunet"
    shutil.copytree(package, target / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    card = RepoCard.load(target / "README.md", ignore_metadata_errors=True)
    card.data.models = [repo_id]
    card.data.title = f"Hand keypoints: {repo_id.split('/')[-1]}"
    if terms.license_name == RESEARCH_ONLY:
        card.data.short_description = "21 keypoints of a hand; research only"
    link = f"https://huggingface.co/{repo_id}"
    card.text = f"\n# Hand keypoints\n\nA page to try [{repo_id}]({link}) on. The model's terms stand on its own page.\n"
    card.save(target / "README.md")


def push_model(
    folder: Path,
    repo_id: str,
    *,
    space: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Send a saved folder to the Hub in one commit and, if `space` names one, the Space in one to its own repository.

    `dry_run` lists what would go, with sizes, and sends nothing.  `private` holds for repositories that are made.

    Raises `ValueError` for a folder or a name that cannot be pushed and `OSError` when a push breaks or is refused, after
    which that repository is as it was.
    """
    with tempfile.TemporaryDirectory(prefix="handunet-push-") as temporary:
        model, page = Path(temporary) / "model", Path(temporary) / "space"
        problem = assemble(Path(folder), repo_id, model, space)
        if problem:
            say(f"Without an ONNX file: {problem}")
        parts = [(model, repo_id, "model")]
        if space:
            assemble_space(page, repo_id, ModelCard.load(model / "README.md", ignore_metadata_errors=True).data)
            parts.append((page, space, "space"))
        for part, name, kind in parts:
            if dry_run:
                say(describe_files(part, f"Would go to the {kind} {name}"))
            else:
                say(f"Pushed to {send(part, name, kind, private)}")


def describe_files(folder: Path, heading: str) -> str:
    """The files of a folder with their sizes, as text."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in list_files(folder)}
    lines = [f"{size:>12,}  {name}" for name, size in sizes.items()]
    return "\n".join([f"{heading}, {len(sizes)} files, {sum(sizes.values()):,} bytes:", *lines])


def list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def send(folder: Path, repo_id: str, repo_type: str, private: bool) -> str:
    """All files of a folder in one commit; what an earlier push left of other weights goes in the same one."""
    api = HfApi()
    try:
        sdk = "gradio" if repo_type == "space" else None
        url = api.create_repo(repo_id, repo_type=repo_type, private=private, space_sdk=sdk, exist_ok=True)
        repo_id = url.repo_id
        files = {path.relative_to(folder).as_posix(): path for path in list_files(folder)}
        # Not upload_folder, which may cut a push into several commits.
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        for name in api.list_repo_files(repo_id, repo_type=repo_type):
            if name not in files and name.startswith(OF_THE_WEIGHTS):
                operations.append(CommitOperationDelete(name))
        title = "Upload HandUNet" if repo_type == "model" else "Upload the page to try HandUNet on"
        return str(api.create_commit(repo_id, operations, commit_message=title, repo_type=repo_type).commit_url)
    except (httpx2.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: of the threads that upload
        raise OSError(
            f"The push to the {repo_type} {repo_id} did not come to its end: {error.__cause__ or error}\nThe repository is as it was before, and "
            "the folder on this machine is whole: `python -m scripts.publish FOLDER USER/NAME` sends it again."
        ) from error


__all__ = ["assemble", "assemble_space", "load_any_model", "make_card", "push_model", "save_model"]
