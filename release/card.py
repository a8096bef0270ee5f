"""The model card, made from a run's report and its task's template, and the changes to it when it is published.

This file computes the figures; the sentences stand in the template.  The report is described in [`release.saving`].
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_handunet import KEYPOINT_NAMES
from modeling_handunet.registration import TASK
from release.files import EXAMPLES, ROOT
from release.terms import find_terms

# The figures that show images of the test split.  Each is a block of the card, which is empty where they are not published.
PICTURES = ("predictions", "failures", "detections")
NOT_PUBLISHED = "Figures with photographs of the test split are not published."
OWNER = "USER"  # stands for the owner of the repository until the model is pushed
DISTANCE = "mean distance between the predicted and the true keypoint"
# The figures that the card lists, with their titles and definitions.
REPORTED = {
    "mean_error_percent": ("mean error, %", f"{DISTANCE}, in % of the crop's side"),
    "mean_error_px_128": ("mean error, px at 128", f"{DISTANCE}, in pixels of a 128 px crop"),
    "mean_error_px_224": ("mean error, px at 224", f"{DISTANCE}, in pixels of a 224 px crop"),
    "mean_error_over_box": ("error over box", f"{DISTANCE}, divided by the longer side of the hand's box"),
    "pck@0.05": ("PCK@0.05", "share of keypoints with an error of at most 0.05 of the box's longer side"),
    "pck@0.1": ("PCK@0.1", "share of keypoints with an error of at most 0.1 of the box's longer side"),
    "pck@0.2": ("PCK@0.2", "share of keypoints with an error of at most 0.2 of the box's longer side"),
    "auc": ("AUC", "area under the curve of that share for allowed errors from 0 to 30 px of a 224 px crop; 1 is perfect"),
    "success_rate@2_percent": ("success rate, 2 %", "share of hands with a mean error below 2 % of the crop's side"),
    "success_rate@5_percent": ("success rate, 5 %", "share of hands with a mean error below 5 % of the crop's side"),
    "success_rate@10_percent": ("success rate, 10 %", "share of hands with a mean error below 10 % of the crop's side"),
    "score_auroc": ("score AUROC", "chance that a keypoint with an error above 0.1 of the box has a lower score than another"),
}
# Those of them that the card also gives for each background or source.
REPORTED_BY_GROUP = ("mean_error_percent", "pck@0.1", "auc")
RECALL = "share of the hands that are found at the score from which on there"
REPORTED_OF_DETECTOR = {
    "ap@0.4": ("AP@0.4", "average precision of boxes with an IoU of at least 0.4; boxes are drawn by eye"),
    "ap@0.5": ("AP@0.5", "COCO's average precision of boxes with an IoU of at least 0.5"),
    "ap@0.5:0.95": ("AP@0.5:0.95", "the mean of that for an IoU of 0.5, 0.55, ... 0.95"),
    "recall@1_false": ("recall at 1 false", f"{RECALL} is one false hand a photograph"),
    "recall@0.1_false": ("recall at 0.1 false", f"{RECALL} is one false hand in ten photographs"),
    "side_accuracy": ("side", "share of the found hands that are correctly called right or left, at a score of 0.5"),
    "direction_error_degrees": ("direction, degrees", "mean error of the direction from the wrist to the middle knuckle"),
    "quiet_without_hands": ("quiet", "share of the photographs without a hand in which none is found, at a score of 0.5"),
}


@dataclass(frozen=True)
class Kind:
    """What the cards of one task show."""

    template: Path
    tags: tuple[str, ...]
    reported: dict[str, tuple[str, str]]
    reported_by_group: tuple[str, ...]


KINDS = {
    TASK: Kind(
        ROOT / "model_card.md",
        ("hand-pose-estimation", "pose-estimation", "keypoint-detection", "u-net"),
        REPORTED, REPORTED_BY_GROUP,
    ),
    "object-detection": Kind(
        ROOT / "model_card_detector.md",
        ("hand-detection", "object-detection", "u-net"),
        REPORTED_OF_DETECTOR, ("ap@0.4", "recall@0.1_false", "side_accuracy"),
    ),
}  # fmt: skip


def kind_of(report: dict) -> Kind:
    """What the card of a report shows; reports that are older than detectors name no task."""
    return KINDS[report.get("task", TASK)]


def make_card(report: dict) -> ModelCard:
    """The card of the model that `report` describes, named `report["repo_id"]`, or USER and the output folder's name."""
    arguments, metrics, source, kind = report["arguments"], report["metrics"], report["source"], kind_of(report)
    test, by_group = metrics["test"], metrics.get("test_by_group", {})
    own_name = re.sub(r"[^A-Za-z0-9_.-]+|--+", "-", report["output_name"]).strip("-.") or "handunet"
    repo_id = report["repo_id"] or f"{OWNER}/{own_name}"
    name = repo_id.split("/")[-1]
    terms = report.get("terms") or find_terms(report)
    examples = json.loads((EXAMPLES / "examples.json").read_text())
    pictures = f"https://huggingface.co/{repo_id}/resolve/main/examples"
    data = ModelCardData(
        license=terms["license"],
        license_name=terms["license_name"],
        license_link=terms["license_link"],
        library_name="transformers",
        pipeline_tag=report.get("task", TASK),
        tags=["custom_code", *kind.tags],
        datasets=list(terms["datasets"]) or None,
        base_model=terms["base_model"],
        base_model_relation="finetune" if terms["base_model"] else None,
        widget=[{"src": f"{pictures}/{example['file']}", "example_title": example["title"]} for example in examples],
        model_name=name,
        eval_results=[
            result
            for group, figures in [(None, test), *by_group.items()]
            for result in evaluation_results(source, figures, group, kind, report.get("task", TASK))
        ],
    )
    values = {
        "name": name,
        "repository": repo_id,
        "terms": terms,
        "example": next(example for example in examples if example["handedness"] == "left"),
        "results": "\n".join(f"| {title} | {number(test[key])} | {text} |" for key, (title, text) in kind.reported.items()),
        "joints": joint_table(test.get("mean_error_percent_per_keypoint")),
        "groups": group_table(by_group, kind),
        "step_samples": arguments["batch_size"] * arguments["gradient_accumulation_steps"] * metrics["processes"],
    }
    card = ModelCard.from_template(data, template_path=str(kind.template), **{**report, **values})
    card.text = fill_pictures(card.text, report, shows_pictures(report))
    return card


def shows_pictures(report: dict) -> bool:
    """Whether the saved folder and its card have the figures in [`PICTURES`]."""
    return report.get("publish_examples", False) or not is_private(report)


def is_private(report: dict) -> bool:
    """Whether the figures in [`PICTURES`] show photographs that somebody must agree to publish."""
    source = report["source"]
    return source.get("private", "coco" in source["type"].split("+"))  # older reports do not say


def fill_pictures(card: str, report: dict, shown: bool) -> str:
    """A card's text with the figures in [`PICTURES`], or without them."""
    template = kind_of(report).template.read_text()
    for name in PICTURES:
        (text,) = re.findall(f"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", template, re.DOTALL) or [""]
        card = fill_block(card, name, text if shown else "")
        if not shown:  # also in cards without these blocks
            card = re.sub(rf"^!\[[^]]*\]\(figures/{name}\.png\)\n+", "", card, flags=re.MULTILINE)
    return fill_block(card, "pictures", report["source"]["pictures"] if shown else NOT_PUBLISHED)


def evaluation_results(source: dict, figures: dict, group: str | None, kind: Kind, task: str) -> list[EvalResult]:
    """The figures of the whole test split, or of one group of it, as the Hub's model-index holds them."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=source["type"],
            dataset_name=source["name"],
            dataset_config=f"{source['grouped_by']} {group}" if group else None,
            dataset_split="test",
            metric_type=metric,
            metric_name=f"{title}: {definition}",
            metric_value=round(figures[metric], 5),
        )
        for metric, (title, definition) in kind.reported.items()
        if figures[metric] is not None and (group is None or metric in kind.reported_by_group)
    ]


def joint_table(errors: list[float | None] | None) -> str:
    """The rows of the table of errors by joint: the wrist, then each finger from its base to its tip; empty without errors."""
    if errors is None:
        return ""
    rows = [f"| wrist | {number(errors[0])} | | | |"]
    for base in range(1, len(KEYPOINT_NAMES), 4):
        finger = KEYPOINT_NAMES[base].split("_")[0]
        rows.append(f"| {finger} | " + " | ".join(number(error) for error in errors[base : base + 4]) + " |")
    return "\n".join(rows)


def group_table(by_group: dict[str, dict], kind: Kind) -> str:
    """The rows of the table of figures by background or source; empty without groups."""
    return "\n".join(
        f"| {group.replace('_', ' ')} | {figures['num_hands']} | "
        + " | ".join(number(figures[key]) for key in kind.reported_by_group)
        + " |"
        for group, figures in by_group.items()
    )


def number(value: float | None) -> str:
    """A figure as the card shows it."""
    return "not defined" if value is None else f"{value:.3g}"


def name_repository(card: str, repo_id: str) -> str:
    """A card's text for the repository `repo_id` instead of the one that it was written for."""
    written = re.search(r'model="([^"/\s]+/[^"/\s]+)"', card)
    if written is None or written[1] == repo_id:
        return card
    old, (_, name) = written[1], repo_id.split("/")
    card = card.replace(f'"{old}"', f'"{repo_id}"').replace(f"huggingface.co/{old}/", f"huggingface.co/{repo_id}/")
    own = re.escape(old.split("/")[1])
    card = re.sub(rf"^# {own}$", f"# {name}", card, count=1, flags=re.MULTILINE)
    return re.sub(rf"^- name: ['\"]?{own}['\"]?$", f'- name: "{name}"', card, count=1, flags=re.MULTILINE)


def fill_block(card: str, name: str, text: str) -> str:
    """A card's text with `text` between the comments `<!-- name -->` and `<!-- /name -->`; unchanged if it has none."""
    marks = f"<!-- {name} -->", f"<!-- /{name} -->"
    block = "\n".join([marks[0], *([text] if text else []), marks[1]])
    return re.sub(re.escape(marks[0]) + ".*?" + re.escape(marks[1]), lambda _: block, card, flags=re.DOTALL)
