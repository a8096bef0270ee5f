"""What the card says: every figure, every kind of data, the right terms."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from modeling_handunet import HandUNetImageProcessor
from release.card import REPORTED, fill_block, make_card, name_repository
from release.saving import save_model
from tests.small_model import save_small_model, small_network, small_report, small_run

MODEL = small_network()
FREIHAND_PAGE = "https://lmb.informatik.uni-freiburg.de/projects/freihand/"
CITATION = "@inproceedings{freihand,\n  title = {FreiHAND}\n}\n"
FREIHAND_TERMS = {
    "license": "other",
    "license_name": "research-only",
    "license_link": FREIHAND_PAGE,
    "datasets": ["freihand"],
    "citation": CITATION,
    "text": "The terms of FreiHAND prohibit commercial use.",
}
UNKNOWN_TERMS = {
    "license": "unknown",
    "license_name": None,
    "license_link": None,
    "datasets": [],
    "citation": "",
    "text": "The photographs are the trainer's own; no terms are stated.",
}


@pytest.fixture(scope="module")
def metrics():
    return small_run(MODEL)[0]


def source(**changes) -> dict:
    """A source of data that differs from the synthetic one by `changes`."""
    return small_report(MODEL, {})["source"] | changes


def card_of(metrics: dict, **changes) -> tuple[dict, str]:
    """A card's metadata and text."""
    _, metadata, text = str(make_card(small_report(MODEL, metrics, **changes))).split("---\n", 2)
    return yaml.safe_load(metadata), text


def start(folder: Path, card: str) -> dict:
    """Weights to start from, as a report names them: a folder that has nothing but a card."""
    folder.mkdir()
    (folder / "README.md").write_text(card)
    return {"name": "first/model", "path": str(folder)}


def test_the_metadata_are_what_the_hub_reads(metrics):
    metadata, text = card_of(metrics, repo_id="someone/hands")
    assert metadata["license"] == "apache-2.0" and "license_name" not in metadata
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("transformers", "keypoint-detection")
    assert "custom_code" in metadata["tags"] and "base_model" not in metadata and "datasets" not in metadata
    images = [example["src"] for example in metadata["widget"]]
    assert images[0] == "https://huggingface.co/someone/hands/resolve/main/examples/open.jpg" and len(images) == 4
    assert text.startswith("\n# hands\n") and "USER" not in text
    assert "free under the Apache License 2.0" in text and "research only" not in text
    unnamed, text = card_of(metrics, output_name="first try")
    assert unnamed["model-index"][0]["name"] == "first-try" and 'model="USER/first-try"' in text


def test_the_model_index_has_every_metric_with_its_definition(metrics):
    metadata, text = card_of(metrics)
    (model,) = metadata["model-index"]
    whole, *parts = model["results"]
    assert whole["task"]["type"] == "keypoint-detection"
    assert whole["dataset"] == {"type": "synthetic", "name": "eight hands", "split": "test"}
    found = {entry["type"]: entry for entry in whole["metrics"]}
    assert found.keys() == REPORTED.keys()
    for name, (title, definition) in REPORTED.items():
        assert found[name]["value"] == pytest.approx(metrics["test"][name], abs=1e-5)
        assert found[name]["name"] == f"{title}: {definition}"
        assert f"| {title} | {metrics['test'][name]:.3g} | {definition} |" in text
    assert {part["dataset"]["config"] for part in parts} == {
        f"background {name}" for name in ("auto", "green_screen", "hom", "sample")
    }
    first = next(part for part in parts if part["dataset"]["config"] == "background auto")
    expected = metrics["test_by_group"]["auto"]
    assert first["metrics"][0]["value"] == pytest.approx(expected["mean_error_percent"], abs=1e-5)


def test_the_card_lists_results_by_joint_and_by_group(metrics):
    _, text = card_of(metrics)
    joints = metrics["test"]["mean_error_percent_per_keypoint"]
    assert f"| wrist | {joints[0]:.3g} | | | |" in text
    assert "| index | " + " | ".join(f"{joint:.3g}" for joint in joints[5:9]) + " |" in text
    green = metrics["test_by_group"]["green_screen"]
    assert f"| green screen | 2 | {green['mean_error_percent']:.3g} | {green['pck@0.1']:.3g} | {green['auc']:.3g} |" in text
    assert "\nBy background:\n" in text and "worst background" not in text
    _, text = card_of({**metrics, "worst_over_green_screen": 1.234})
    assert "The error on the worst background is 1.23 times the error on the green screen." in text
    _, text = card_of(metrics, source=source(grouped_by="source"))
    assert "\nBy source:\n" in text and "| source | hands |" in text and "error by source](figures/" in text
    _, text = card_of({name: value for name, value in metrics.items() if name != "test_by_group"})
    assert "background" not in text.split("## Results")[1].split("## How")[0] and "group_errors" not in text


def test_the_card_says_how_the_model_was_trained(metrics):
    _, text = card_of({**metrics, "processes": 2, "steps": 1234, "best_epoch": 5})
    training = text.split("## How it was trained")[1].split("## Limits")[0]
    # A step has 2 processes * batches of 8 * 2 of them.
    assert "1234 of 32 samples each, on 2 processes. An epoch has 2200 samples." in training
    assert "IoU loss. It is one minus the overlap of two heatmaps." in training
    assert "continuous, with a sigma of 3 px" in training and "adamw with a learning rate of 0.0025, a cosine" in training
    assert "decay of 0.998. Epoch 5 was" in training and "Seed: 7." in training
    assert "mean pose of the training split" in training
    assert "```bash\naccelerate launch train.py --hidden_sizes 4 8 --seed 7\n```" in training
    other = small_report(MODEL, {})["arguments"] | {"ema_decay": 0.0, "schedule": "plateau"}
    _, text = card_of(metrics, arguments=other)
    assert "not averaged" in text and "halved on plateaus" in text and "on 1 process." in text


def test_the_card_says_what_a_score_means(metrics):
    figures = {
        "temperature": 0.8564,
        "offset": 0.2512,
        "correct_within": 0.1,
        "validation": {"expected_calibration_error": 0.0271},
        "test": {"expected_calibration_error": 0.0334},
    }
    negatives = {"no hand": 0.9961, "left hand": 0.698}
    _, text = card_of({**metrics, "calibration": figures, "auroc_of_negatives": negatives})
    confidence = " ".join(text.split("## Confidence")[1].split("## How")[0].split())
    assert "within 0.1 of the longer side" in confidence and "divided by 0.856 and raised by 0.251," in confidence
    assert "0.027 on validation and 0.033 on test" in confidence and "held-out" not in confidence
    assert "no hand 0.996, left hand 0.698." in confidence
    _, text = card_of(metrics, source=source(same_validation_and_test=True))
    assert "Here validation and test are the same held-out data" in text and "AUROC; 1 is" not in text


def test_the_card_gives_the_sentences_of_the_source(metrics):
    changes = {"data": "Hands on film.", "limits": "It knows films only.", "pictures": "The films are in colour."}
    _, text = card_of(metrics, source=source(**changes))
    assert "Hands on film. The project models, poses and draws the hands itself." in text
    assert "- It knows films only.\n" in text and "\nThe films are in colour.\n" in text


def test_data_for_research_only_makes_the_weights_research_only(metrics):
    metadata, text = card_of(metrics, source=source(type="freihand", terms=FREIHAND_TERMS))
    terms = metadata["license"], metadata["license_name"], metadata["license_link"]
    assert terms == ("other", "research-only", FREIHAND_PAGE) and metadata["datasets"] == ["freihand"]
    assert "prohibit commercial use" in text and "Apache" not in text and CITATION + "```" in text


@pytest.mark.parametrize(
    "metadata, link",
    [
        (f"license: other\nlicense_name: research-only\nlicense_link: {FREIHAND_PAGE}\n", FREIHAND_PAGE),
        ("license: other\nlicense_name: research-only\n", None),
        ("license: mit\ndatasets:\n- freihand\n", FREIHAND_PAGE),
        ("license: mit\ndatasets: freihand\n", FREIHAND_PAGE),
    ],
)
def test_weights_that_started_from_research_only_weights_are_research_only_too(metrics, tmp_path, metadata, link):
    init = start(tmp_path / "start", f"---\n{metadata}---\n# base\n```bibtex\n@software{{handunet,\n}}\n{CITATION}```\n")
    found, text = card_of(metrics, init=init)
    assert (found["license"], found["license_name"], found.get("license_link")) == ("other", "research-only", link)
    assert found.get("datasets") == (["freihand"] if "datasets" in metadata else None)
    assert "research only, not commercially" in text and "from `first/model`" in text and "free under" not in text
    assert text.count("@software") == 1 and text.endswith(f"}}\n{CITATION}```")
    found, text = card_of(metrics, init=init, source=source(terms=FREIHAND_TERMS))
    assert (found["license_name"], found["license_link"]) == ("research-only", FREIHAND_PAGE)
    assert text.count("@inproceedings") == 1 and "not commercially" not in text  # FreiHAND's own text says it


@pytest.mark.parametrize(
    "card, license, name, words",
    [
        ("---\nlicense: mit\nbase_model: someone/first\n---\n", "apache-2.0", None, "`first/model` (mit)."),
        ("---\nlicense: cc-by-nc-4.0\n---\n", "cc-by-nc-4.0", None, "whose terms also hold: cc-by-nc-4.0."),
        ("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n", "other", "own", "terms also hold: own."),
        ("---\ntags: [hands]\n---\n", "unknown", None, "states no terms"),
        ("---\nlicense: [broken\n---\n", "unknown", None, "states no terms"),
        (None, "unknown", None, "states no terms"),
    ],
)
def test_fine_tuned_weights_keep_the_terms_of_those_they_started_from(metrics, tmp_path, card, license, name, words):
    init = {"name": "first/model", "path": str(tmp_path)} if card is None else start(tmp_path / "start", card)
    found, text = card_of(metrics, init=init)
    assert (found["license"], found.get("license_name")) == (license, name) and words in text
    assert ("free under" in text) == (license == "apache-2.0")
    assert found.get("base_model") == ("someone/first" if "(mit)" in words else None)
    assert (found.get("base_model_relation") == "finetune") == ("base_model" in found)
    found, text = card_of(metrics, init=init, source=source(terms=UNKNOWN_TERMS))
    assert (found["license"], found.get("license_name")) == ("unknown", None)
    assert "no terms are stated" in text and words in text
    found, text = card_of(metrics, init=init, source=source(terms=FREIHAND_TERMS))
    assert (found["license"], found["license_name"]) == ("other", "research-only") and words in text


def test_a_saved_folder_has_every_file_that_its_card_shows(tmp_path):
    folder = save_small_model(tmp_path / "run")
    card = (folder / "README.md").read_text()
    shown = re.findall(r"!\[.*?\]\((.*?)\)", card)
    assert {"figures/failures.png", "figures/group_errors.png", "figures/predictions.png"} <= set(shown)
    for name in shown:
        with Image.open(folder / name) as image:
            assert min(image.size) > 100, name
    assert {"handler.py", "requirements.txt", "examples", "metrics.json"} <= {path.name for path in folder.iterdir()}
    assert "{{" not in card.replace("{{The HandUNet authors}}", "") and "{%" not in card
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_the_card_can_be_made_again_from_the_saved_folder_alone(metrics, tmp_path):
    init = start(tmp_path / "start", "---\nlicense: cc-by-nc-4.0\n---\n")
    folder = tmp_path / "model"
    save_model(folder, MODEL, HandUNetImageProcessor(), small_report(MODEL, metrics, init=init), [])
    (tmp_path / "start" / "README.md").unlink()
    parts = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("report", "metrics", "training_arguments")}
    again = make_card(parts["report"] | {"metrics": parts["metrics"], "arguments": parts["training_arguments"]})
    assert str(again) == (folder / "README.md").read_text() and "cc-by-nc-4.0" in str(again)
    for file in folder.glob("*.json"):
        assert str(tmp_path) not in file.read_text(), file  # places on this machine are nobody else's business


def test_renaming_a_card_leaves_no_trace_of_the_old_name(metrics):
    old = str(make_card(small_report(MODEL, metrics)))
    assert "USER/handunet" in old
    new = name_repository(old, "someone/2026")
    assert "USER" not in new and new.count("someone/2026") == old.count("USER/handunet")
    metadata = yaml.safe_load(new.split("---\n")[1])
    assert metadata["model-index"][0]["name"] == "2026" and "\n# 2026\n" in new
    assert name_repository(new, "USER/handunet").replace('"handunet"', "handunet") == old
    assert name_repository("a card of one's own", "someone/2026") == "a card of one's own"


def test_a_block_is_filled_refilled_and_emptied():
    card = "a\n<!-- x -->\n<!-- /x -->\nb\n"
    filled = fill_block(card, "x", r"\1 text")
    assert filled == "a\n<!-- x -->\n\\1 text\n<!-- /x -->\nb\n"
    assert fill_block(fill_block(filled, "x", "other"), "x", "") == card
    assert fill_block("no marks", "x", "text") == "no marks"
