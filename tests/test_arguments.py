import dataclasses
import shlex

import pytest

from training.arguments import SEED_RECIPE, Arguments, parse_arguments


def test_the_defaults_need_no_argument_and_describe_the_embedded_set():
    args = parse_arguments([])
    assert (args.dataset, args.difficulty, args.recipe) == ("synthetic", "easy", "default")
    assert args.train_samples > 0 and args.validation_samples > 0 and args.test_samples > 0


@pytest.mark.parametrize(
    "command, dataset", [("--data_dir X", "freihand"), ("--annotations X", "coco"), ("--streaming", "synthetic")]
)
def test_the_dataset_follows_from_what_is_named(command, dataset):
    assert parse_arguments(command.split()).dataset == dataset


def test_the_seed_recipe_sets_its_fields_and_lets_others_be_chosen():
    args = parse_arguments(["--recipe", "seed", "--epochs", "7"])
    assert (args.batch_size, args.learning_rate, args.optimizer) == (48, 0.1, "sgd")
    assert (args.targets, args.decoding, args.schedule, args.epochs) == ("quantized", "mean", "plateau", 7)
    asked = "--optimizer adamw --targets continuous --decoding local --learning_rate 2.5e-3 --patience 10".split()
    args = parse_arguments(["--recipe", "seed", *asked])  # some of them the default of the other recipe
    assert (args.optimizer, args.targets, args.decoding, args.learning_rate, args.patience) == (
        ("adamw", "continuous", "local", 2.5e-3, 10)
    )
    assert SEED_RECIPE.keys() <= {field.name for field in dataclasses.fields(Arguments)}


@pytest.mark.parametrize(
    "command",
    [
        "--dataset freihand",
        "--dataset coco",
        "--streaming --data_dir X",
        "--photos X",
        "--cutouts X --difficulty full",
        "--hand_mesh X --data_dir Y",
        "--eval_only",
        "--model X",
        "--space me/page",
        "--epochs 0",
        "--batch_size -1",
        "--learning_rate 0",
        "--learning_rate nan",
        "--ema_decay 1",
        "--box_fill 1.2 --data_dir X",
        "--box_fill 0.005 --data_dir X",
        "--box_fill 0.5",
        "--box_fill 0.5 --difficulty full",
        "--push_to_hub noslash",
        "--space a/b/c --push_to_hub a/b",
        "--validation_share 0 --dataset coco --annotations X",
        "--validation_share 0.3",
        "--backgrounds all",
        "--split train --data_dir X",
        "--augmentation 1 --difficulty scenes",
        "--max_rotation 20",
        "--negatives 0.2 --difficulty full",
        "--layers 9",
        "--layers 9 --difficulty scenes --streaming",
        "--cutouts_share 0.5 --difficulty scenes",
        "--init_levels 2",
        "--contact_sheet X",
        "--validation_share 1.5 --annotations X",
        "--push_to_hub a/b --eval_only --model X",
        "--init X --eval_only --model X",
        "--resume --eval_only --model X",
        "--max_rotation 20 --difficulty scenes",
        "--max_unreadable_share 0.5",
        "--warmup_share 0.1 --schedule plateau",
        "--credits me",
        "--credits me --data_dir X",
        "--hidden_sizes a",
        "--decoding best",
        "--nonsense 3",
    ],
)
def test_arguments_that_make_no_sense_end_in_a_sentence_that_names_them(command, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(command.split())
    assert stop.value.code == 2
    name = command.split()[0].lstrip("-") if "dataset" not in command else command.split()[1]
    assert name in capsys.readouterr().err.rpartition("error: ")[2]  # what comes before names every option


def test_options_that_have_an_effect_are_taken():
    for command in (
        "--data_dir X --backgrounds all --box_fill 0.5 --max_rotation 20 --augmentation 0.5",
        "--difficulty scenes --cutouts X --cutouts_share 0.5 --negatives 0.2 --layers 9 --box_fill 0.6 --photos Y",
        "--annotations X --images Y --validation_share 0.3 --train_samples 9",
        "--augmentation 1 --max_rotation 20 --hand_mesh X --difficulty full --streaming",
        "--eval_only --model X --data_dir Y --split evaluation --contact_sheet Z",
        "--recipe seed --data_dir X",
        "--annotations X --credits me",
        "--hand_mesh X --credits me",
    ):
        parse_arguments(command.split())


@pytest.mark.parametrize(
    "command",
    [
        "",
        "--difficulty full",
        "--difficulty scenes --init first/model",
        "--data_dir X --init Y",
        "--annotations X --epochs 3",
        "--recipe seed --data_dir X",
        "--recipe seed --data_dir X --learning_rate 2.5e-3 --patience 10 --optimizer adamw --decoding local --targets continuous",
    ],
)
def test_settings_can_be_made_again_from_themselves_and_from_their_command(command):
    args = parse_arguments(command.split())
    assert dataclasses.replace(args) == args
    assert parse_arguments(args.command().split()[3:]) == args


def test_scenes_have_defaults_of_their_own_and_negatives_only_after_a_first_training():
    args = parse_arguments(["--difficulty", "scenes"])
    assert (args.batch_size, args.epochs, args.train_samples, args.negatives) == (16, 15, 10_000, 0.0)
    assert parse_arguments(["--difficulty", "scenes", "--init", "X"]).negatives == 0.1


def test_settings_survive_json_and_their_differences_are_named(tmp_path):
    args = parse_arguments(["--hidden_sizes", "4", "8", "--seed", "3"])
    assert args.differences(args.to_dict()) == []
    other = parse_arguments(["--hidden_sizes", "4", "16", "--seed", "3", "--resume", "--workers", "2"])
    assert other.differences(args.to_dict()) == ["--hidden_sizes was [4, 8] and is [4, 16]"]
    assert other.differences({}) != []


@pytest.mark.parametrize("fast, precision", [(True, "bf16"), (False, "no")])
def test_automatic_precision_is_what_the_machine_is_fast_at_and_is_saved_as_that(monkeypatch, fast, precision):
    monkeypatch.setattr("training.arguments.bf16_is_fast", lambda: fast)
    args = parse_arguments(["--mixed_precision", "auto"])
    assert args.to_dict()["mixed_precision"] == precision


def test_the_command_is_stated_without_the_folders_of_this_machine(tmp_path):
    settings = {"annotations": str(tmp_path / "me" / "hands.json"), "images": "my photos", "learning_rate": 1e-3}
    settings |= {"init": str(tmp_path / "me" / "first" / "model"), "output_dir": str(tmp_path / "me" / "out")}
    args = Arguments(**settings)
    command = "accelerate launch train.py --annotations hands.json --images 'my photos' --init first/model --learning_rate 0.001"
    assert args.command() == command
    assert args.for_others()["output_dir"] == "out" and args.to_dict()["output_dir"] == str(tmp_path / "me" / "out")
    again = parse_arguments(shlex.split(command)[3:])
    assert again.learning_rate == 1e-3 and again.dataset == "coco"
    assert parse_arguments([]).command() == "accelerate launch train.py"
    scenes = ["--difficulty", "scenes", "--cutouts", "/far/away/hands", "--negatives", "0.2", "--streaming"]
    assert parse_arguments(scenes).command() == (
        "accelerate launch train.py --difficulty scenes --streaming --cutouts hands --negatives 0.2"
    )
