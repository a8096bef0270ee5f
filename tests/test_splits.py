"""The groups of a test split, for figures by background."""

from dataset_script import SyntheticHands
from training.arguments import Arguments
from training.data import load_splits


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
