"""What the card says: of every kind of training, with every figure, and under the right terms."""

import dataclasses
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dataset_script import SyntheticHands
from tests.small_model import arguments, save_small_model, small_network, small_run
from training.arguments import Arguments, parse_arguments
from training.data import load_splits
from training.evaluation import load_metric, score_by_group
from training.figures import draw_contact_sheet, draw_failures, rank_hands
from training.publishing import FREIHAND_PAGE, REPORTED, fill_block, make_card, name_repository

MODEL = small_network()


@pytest.fixture(scope="module")
def run():
    return small_run(MODEL)


def card_of(run, folder: Path, *, research_only: bool = False, **settings) -> tuple[dict, str]:
    """A card's metadata and text."""
    metrics, splits, _ = run
    splits.research_only = research_only
    content = str(make_card(MODEL, arguments(folder, **settings), metrics, splits, settings.get("push_to_hub")))
    _, metadata, text = content.split("---\n", 2)
    return yaml.safe_load(metadata), text


def base(folder: Path, metadata: str) -> str:
    """A folder to start from that has nothing but a card."""
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{metadata}---\n# base\n")
    return str(folder)


def test_the_metadata_are_what_the_hub_reads(run, tmp_path):
    metadata, text = card_of(run, tmp_path / "first try", push_to_hub="someone/hands")
    assert metadata["license"] == "apache-2.0" and "license_name" not in metadata
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("transformers", "keypoint-detection")
    assert "custom_code" in metadata["tags"] and "base_model" not in metadata and "datasets" not in metadata
    images = [example["src"] for example in metadata["widget"]]
    assert images[0] == "https://huggingface.co/someone/hands/resolve/main/examples/open.jpg" and len(images) == 4
    assert text.startswith("\n# hands\n") and "USER" not in text
    assert "free under the Apache License 2.0" in text and "research only" not in text
    unnamed, text = card_of(run, tmp_path / "first try")
    assert unnamed["model-index"][0]["name"] == "first-try" and 'model="USER/first-try"' in text


def test_the_model_index_has_every_metric_with_its_definition(run, tmp_path):
    metrics, *_ = run
    metadata, text = card_of(run, tmp_path)
    (model,) = metadata["model-index"]
    whole, *parts = model["results"]
    assert whole["task"]["type"] == "keypoint-detection" and whole["dataset"]["split"] == "test"
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


def test_results_stand_by_joint_and_by_background(run, tmp_path):
    metrics, *_ = run
    _, text = card_of(run, tmp_path)
    joints = metrics["test"]["mean_error_percent_per_keypoint"]
    assert f"| wrist | {joints[0]:.3g} | | | |" in text
    assert "| index | " + " | ".join(f"{joint:.3g}" for joint in joints[5:9]) + " |" in text
    green = metrics["test_by_group"]["green_screen"]
    assert f"| green screen | 2 | {green['mean_error_percent']:.3g} | {green['pck@0.1']:.3g} | {green['auc']:.3g} |" in text
    del metrics["test_by_group"]
    try:
        _, text = card_of(run, tmp_path)
    finally:
        metrics["test_by_group"] = small_run(MODEL)[0]["test_by_group"]
    assert "background" not in text.split("## Results")[1].split("## How")[0]


def test_results_of_scenes_stand_by_source(run, tmp_path):
    metrics, splits, arrays = run
    _, text = card_of((metrics, dataclasses.replace(splits, grouped_by="source"), arrays), tmp_path)
    assert "By where the hands are from" in text and "| source | hands |" in text and "error by source](figures/" in text


def test_freihand_makes_the_weights_research_only(run, tmp_path):
    metadata, text = card_of(run, tmp_path, research_only=True, dataset="freihand", data_dir="FreiHAND")
    assert (metadata["license"], metadata["license_name"], metadata["license_link"]) == (
        "other",
        "research-only",
        FREIHAND_PAGE,
    )
    assert metadata["datasets"] == ["freihand"]
    assert "prohibit commercial use" in text and "Apache" not in text
    assert "@inproceedings{freihand," in text and "The photographs are FreiHAND's" in text


@pytest.mark.parametrize(
    "metadata",
    ["license: other\nlicense_name: research-only\n", "license: mit\ndatasets:\n- freihand\n"],
)
def test_weights_that_started_from_freihands_are_research_only_too(run, tmp_path, metadata):
    start = base(tmp_path / "start", metadata)
    found, text = card_of(run, tmp_path, init=start)
    assert (found["license"], found["license_name"], found["license_link"]) == ("other", "research-only", FREIHAND_PAGE)
    assert "research only, not commercially" in text and "from `start`" in text and "free under" not in text


@pytest.mark.parametrize(
    "metadata, license, name, words",
    [
        ("license: mit\nbase_model: someone/first\n", "apache-2.0", None, "(mit)"),
        ("license: cc-by-nc-4.0\n", "cc-by-nc-4.0", None, "terms hold on: cc-by-nc-4.0"),
        ("license: other\nlicense_name: own\nlicense_link: LICENSE\n", "other", "own", "terms hold on: own"),
        ("tags: [hands]\n", "unknown", None, "states no terms"),
        ("license: [broken\n", "unknown", None, "states no terms"),
        (None, "unknown", None, "states no terms"),
    ],
)
def test_fine_tuned_weights_keep_the_terms_of_those_they_started_from(run, tmp_path, metadata, license, name, words):
    start = str(tmp_path) if metadata is None else base(tmp_path / "start", metadata)
    found, text = card_of(run, tmp_path / "out", init=start)
    assert (found["license"], found.get("license_name")) == (license, name) and words in text
    found, text = card_of(run, tmp_path / "out", init=start, dataset="coco", annotations="hands.json")
    assert (found["license"], found.get("license_name")) == ("unknown", None) and "whose terms are not stated" in text
    assert words.replace("hold on", "hold, too") in text
    assert found.get("base_model") == ("someone/first" if words == "(mit)" else None)
    assert (found.get("base_model_relation") == "finetune") == ("base_model" in found)


@pytest.mark.parametrize(
    "settings, license",
    [
        ({"cutouts": "hands", "photos": "rooms"}, "unknown"),
        ({"cutouts": "hands", "photos": "rooms", "credits": "Hands of mine."}, "apache-2.0"),
    ],
)
def test_what_others_gave_is_free_only_where_its_terms_are_stated(run, tmp_path, settings, license):
    found, text = card_of(run, tmp_path, difficulty="scenes", **settings)
    assert found["license"] == license and ("free under" in text) == (license == "apache-2.0")
    assert ("Hands of mine." if "credits" in settings else "What --cutouts, --photos gave is the trainer's own") in text


def test_own_photographs_have_terms_that_only_the_trainer_knows(run, tmp_path):
    found, text = card_of(run, tmp_path, dataset="coco", annotations="hands.json")
    assert found["license"] == "unknown" and "whose terms are not stated" in text
    assert "on test, of the same held-out photographs" in text
    found, text = card_of(run, tmp_path, dataset="coco", annotations="hands.json", credits="Hands of mine.")
    assert found["license"] == "unknown" and "Hands of mine." in text and "not stated" not in text


def test_the_command_is_stated_without_the_folders_of_this_machine(run, tmp_path):
    settings = {"annotations": str(tmp_path / "me" / "hands.json"), "images": "my photos", "learning_rate": 1e-3}
    args = arguments(tmp_path / "me" / "out", init=str(tmp_path / "me" / "first" / "model"), **settings)
    command = "accelerate launch train.py --annotations hands.json --images 'my photos' --init first/model --learning_rate 0.001"
    assert args.command() == command
    assert args.for_others()["output_dir"] == "out" and args.to_dict()["output_dir"] == str(tmp_path / "me" / "out")
    again = parse_arguments(shlex.split(command)[3:])
    assert again.learning_rate == 1e-3 and again.dataset == "coco"
    _, text = card_of(run, tmp_path / "out", seed=7)
    assert "```bash\naccelerate launch train.py --hidden_sizes 4 8 --seed 7\n```" in text and str(tmp_path) not in text
    assert parse_arguments([]).command() == "accelerate launch train.py"
    scenes = ["--difficulty", "scenes", "--cutouts", "/far/away/hands", "--negatives", "0.2", "--streaming"]
    assert parse_arguments(scenes).command() == (
        "accelerate launch train.py --difficulty scenes --streaming --cutouts hands --negatives 0.2"
    )


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


def test_renaming_a_card_leaves_no_trace_of_the_old_name(run, tmp_path):
    metrics, splits, _ = run
    old = str(make_card(MODEL, arguments(tmp_path / "handunet"), metrics, splits))
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


def test_groups_are_scored_apart():
    keypoints = np.tile(np.linspace(20, 100, 42).reshape(21, 2), (4, 1, 1))
    offsets = np.array([1.28, 2.56, 3.84, 1.28])  # px of 128: 1, 2, 3 and 1 %
    arrays = {
        "predictions": keypoints + np.stack([offsets, np.zeros(4)], -1)[:, None],
        "keypoints": keypoints,
        "scores": np.full((4, 21), 0.5),
        "visibility": np.ones((4, 21), bool),
        "box_size": np.full(4, 64.0),
        "loss": np.array([0.1, 0.2, 0.3, 0.4]),
        "index": np.array([0, 2, 3, 5]),
    }
    arrays["visibility"][3] = False
    results = score_by_group(load_metric(), arrays, ["a", "?", "b", "a", "?", "c"])
    assert results.keys() == {"a", "b"}  # no sample of ? was scored, and c has no keypoint
    assert results["a"]["mean_error_percent"] == pytest.approx(2.0) and results["a"]["num_hands"] == 2
    assert results["b"]["mean_error_percent"] == pytest.approx(2.0) and results["b"]["num_hands"] == 1
    assert (results["a"]["loss"], results["b"]["loss"]) == pytest.approx((0.2, 0.2))


def test_freihands_four_backgrounds_are_known_for_every_test_sample(tmp_path):
    SyntheticHands(2, seed=1).write_freihand(tmp_path / "freihand", versions=4, image_size=64)
    settings = {"dataset": "freihand", "data_dir": str(tmp_path / "freihand"), "cache_dir": str(tmp_path / "cache")}
    settings |= {"eval_only": True, "model": "any", "split": "train"}
    splits = load_splits(Arguments(backgrounds="all", **settings))
    assert splits.test_groups == [name for name in ("green_screen", "hom", "sample", "auto") for _ in range(2)]
    few = load_splits(Arguments(backgrounds="all", test_samples=3, **settings))
    assert few.test_groups == ["green_screen", "green_screen", "hom"] and len(few.test) == 3
    assert load_splits(Arguments(backgrounds="raw", **settings)).test_groups is None


def test_a_drawn_hands_background_is_the_one_that_its_row_names(tmp_path):
    settings = {"cache_dir": str(tmp_path), "difficulty": "full", "eval_only": True, "model": "any", "test_samples": 8}
    splits = load_splits(Arguments(**settings))
    assert splits.test_groups == [splits.test.dataset[index]["background"] for index in range(8)]
    assert len(set(splits.test_groups)) > 2


def test_the_failures_are_the_worst_hands(run, tmp_path):
    _, splits, arrays = run
    ranked, errors = rank_hands(arrays)
    assert sorted(ranked) == list(range(8)) and (np.diff(errors[ranked]) >= 0).all()
    seen = arrays["visibility"][ranked[-1]]
    offsets = (arrays["predictions"] - arrays["keypoints"])[ranked[-1]][seen]
    assert errors[ranked[-1]] == pytest.approx(np.hypot(*offsets.T).mean())
    with Image.open(draw_failures(tmp_path / "failures.png", arrays, splits.test, count=3)) as picture:
        assert picture.size == (3 * 256, 2 * 256)
        worst = np.asarray(picture)[:256, 512:]
    item = splits.test[int(ranked[-1])]["image"].permute(1, 2, 0).numpy()
    large = np.asarray(Image.fromarray(item).resize((256, 256), Image.Resampling.BICUBIC))
    assert (worst == large).all(-1).mean() > 0.5  # the skeleton covers the rest


def test_a_contact_sheet_begins_with_the_largest_error_over_the_box(run, tmp_path):
    _, splits, arrays = run
    _, errors = rank_hands(arrays)
    arrays = {**arrays, "box_size": np.where(np.arange(8) == np.argmin(errors), 1e-3, arrays["box_size"])}
    sheet = draw_contact_sheet(tmp_path / "sheet.png", arrays, splits.test, columns=4)
    with Image.open(sheet) as picture:
        assert picture.size == (4 * 256, 2 * 256)
        tiles = [np.asarray(picture.crop((256 * (k % 4), 256 * (k // 4), 256 * (k % 4 + 1), 256 * (k // 4 + 1)))) for k in range(8)]
    expected = np.argsort(-errors / arrays["box_size"])
    assert expected[0] == np.argmin(errors)
    for tile, index in zip(tiles, expected):
        item = splits.test[int(index)]["image"].permute(1, 2, 0).numpy()
        large = np.asarray(Image.fromarray(item).resize((256, 256), Image.Resampling.BICUBIC))
        assert (tile == large).all(-1).mean() > 0.5
