import dataclasses
import shlex
from pathlib import Path

import pytest

from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from training.arguments import make_arguments, parse_arguments

ROOT = Path(__file__).resolve().parents[1]
SEED = f"@{ROOT / 'recipes' / 'seed.args'}"


@pytest.fixture(autouse=True)
def saved(tmp_path, monkeypatch):
    """Works in a folder where M is a saved model."""
    monkeypatch.chdir(tmp_path)
    HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8))).save_pretrained("M")
    HandUNetImageProcessor().save_pretrained("M")


def test_the_defaults_need_no_argument_and_describe_the_embedded_set():
    args = parse_arguments([])
    assert (args.data.dataset, args.data.difficulty) == (["synthetic"], "easy")
    assert args.data.train_samples > 0 and args.data.validation_samples > 0 and args.data.test_samples > 0


@pytest.mark.parametrize(
    "command, dataset",
    [
        ("--data_dir X", ["freihand"]),
        ("--annotations X", ["coco"]),
        ("--streaming", ["synthetic"]),
        ("--cutouts X", ["scenes"]),
        ("--photographs X", ["photographs"]),
        ("--photographs X --photographs_share 0.25", ["scenes", "photographs"]),
        ("--dataset scenes freihand --data_dir X", ["scenes", "freihand"]),
    ],
)
def test_the_dataset_follows_from_what_is_named(command, dataset):
    assert parse_arguments(command.split()).data.dataset == dataset


def test_the_share_of_photographs_is_a_mixture_with_scenes():
    args = parse_arguments("--photographs X --photographs_share 0.25".split())
    assert args.data.shares == [0.75, 0.25]


def test_options_come_from_a_file_and_later_ones_win(tmp_path):
    args = parse_arguments([SEED, "--epochs", "7"]).optimisation
    assert (args.batch_size, args.learning_rate, args.optimizer) == (48, 0.1, "sgd")
    assert (args.targets, args.decoding, args.schedule, args.epochs) == ("quantized", "mean", "plateau", 7)
    asked = "--optimizer adamw --targets continuous --decoding local --learning_rate 2.5e-3 --patience 10".split()
    args = parse_arguments([SEED, *asked]).optimisation  # some of them are defaults
    assert (args.optimizer, args.targets, args.decoding, args.learning_rate, args.patience) == (
        ("adamw", "continuous", "local", 2.5e-3, 10)
    )
    (tmp_path / "mine.args").write_text("# two words in quotes\n--seed 4  # and a comment\n--credits 'two words' --cutouts X\n")
    args = parse_arguments(["@mine.args"])
    assert (args.optimisation.seed, args.data.credits) == (4, "two words")


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.args")), ids=lambda path: path.stem)
def test_every_recipe_is_taken(recipe):
    words = shlex.split(recipe.read_text(), comments=True)
    given = ["--data_dir", "X"] if recipe.stem == "seed" else []
    for option in ("--init", "--average_with"):
        given += [option, "M"] if option in words else []  # the recipe's own start is in no clone
    args = parse_arguments([f"@{recipe}", *given])
    assert args.optimisation.learning_rate == float(words[words.index("--learning_rate") + 1])
    if recipe.stem == "handunet-detector":
        assert args.data.dataset == ["people"] and args.model.task == "detection"
    elif recipe.stem.startswith("handunet"):
        assert args.data.dataset == ["scenes", "photographs"] and args.data.shares[1] == 0.7


@pytest.mark.parametrize("name", ["handunet", "handunet-base"])
def test_the_recipe_of_shipped_weights_is_named_after_them_and_starts_from_them(name):
    recipe = (ROOT / "recipes" / f"{name}.args").read_text()
    assert (ROOT / "weights" / name).is_dir()
    assert f"--init start/weights/{name} " in recipe.replace("\n", " ")  # of its first part, which may be a comment


@pytest.mark.parametrize(
    "command",
    [
        "--dataset freihand",
        "--dataset coco",
        "--dataset nonsense",
        "--streaming --data_dir X",
        "--photos X --dataset synthetic",
        "--difficulty full --cutouts X",
        "--hand_mesh X --data_dir Y",
        "--data_dir X --annotations Y",
        "--eval_only",
        "--model M",
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
        "--augmentation 1 --dataset scenes",
        "--max_rotation 20",
        "--negatives 0.2 --difficulty full",
        "--layers 9",
        "--layers 9 --dataset scenes --streaming",
        "--cutouts_share 0.5 --dataset scenes",
        "--init_levels 2",
        "--contact_sheet X",
        "--json",
        "--validation_share 1.5 --annotations X",
        "--push_to_hub a/b --eval_only --model M",
        "--init M --eval_only --model M",
        "--resume --eval_only --model M",
        "--max_rotation 20 --dataset scenes",
        "--max_unreadable_share 0.5",
        "--warmup_share 0.1 --schedule plateau",
        "--credits me",
        "--credits me --data_dir X",
        "--hidden_sizes a",
        "--hidden_sizes 3 5 --init M",
        "--decoding best",
        "--shares 0.5 --cutouts X",
        "--shares 1 2 3 --dataset scenes synthetic",
        "--validate_on coco --dataset scenes synthetic",
        "--photographs_share 2 --photographs X",
        "--init nowhere",
        "--nonsense 3",
    ],
)
def test_arguments_that_make_no_sense_end_in_a_sentence_that_names_them(command, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(command.split())
    assert stop.value.code == 2
    name = command.split()[0].lstrip("-") if "--dataset" != command.split()[0] else command.split()[1]
    name = "nowhere" if "nowhere" in command else "dataset" if command == "--data_dir X --annotations Y" else name
    assert name in capsys.readouterr().err.rpartition("error: ")[2]  # what comes before names every option


def test_options_that_have_an_effect_are_taken():
    for command in (
        "--data_dir X --backgrounds all --box_fill 0.5 --max_rotation 20 --augmentation 0.5",
        "--dataset scenes --cutouts X --cutouts_share 0.5 --negatives 0.2 --layers 9 --box_fill 0.6 --photos Y",
        "--annotations X --images Y --validation_share 0.3 --train_samples 9",
        "--augmentation 1 --max_rotation 20 --hand_mesh X --difficulty full --streaming",
        "--eval_only --model M --data_dir Y --split evaluation --contact_sheet Z --json",
        f"{SEED} --data_dir X",
        "--annotations X --credits me",
        "--hand_mesh X --credits me",
        "--dataset scenes synthetic --shares 1 2 --validate_on scenes",
    ):
        parse_arguments(command.split())


@pytest.mark.parametrize(
    "command",
    [
        "",
        "--difficulty full",
        "--dataset scenes --init M",
        "--data_dir X --init M",
        "--annotations X --epochs 3",
        "--photographs X --photographs_share 0.5 --layers 7",
        "--dataset scenes synthetic --shares 1 2",
        f"{SEED} --data_dir X",
        f"{SEED} --data_dir X --learning_rate 2.5e-3 --patience 10 --optimizer adamw --decoding local --targets continuous",
    ],
)
def test_the_command_of_a_run_gives_its_settings_again(command):
    args = parse_arguments(command.split())
    assert parse_arguments(args.command().split()[3:]) == args


def test_settings_cannot_be_changed_after_they_are_resolved():
    args = make_arguments()
    for part, name in ((args, "data"), (args.data, "workers"), (args.model, "image_size")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, 3)


def test_published_settings_name_no_folder_of_this_machine():
    args = make_arguments(cutouts="/home/me/cutouts", photos="relative/photos", init=str(Path("M").resolve()))
    public = args.public()
    assert (public["cutouts"], public["photos"], public["init"]) == ("cutouts", "relative/photos", "M")
    assert "/home/me" not in args.command() and "--photos relative/photos" in args.command()


def test_scenes_have_defaults_of_their_own_and_negatives_only_after_a_first_training():
    args = parse_arguments(["--dataset", "scenes"])
    assert (args.optimisation.batch_size, args.optimisation.epochs, args.data.train_samples) == (16, 15, 10_000)
    assert args.data.negatives == 0.0
    assert parse_arguments(["--dataset", "scenes", "--init", "M"]).data.negatives == 0.1


def test_settings_survive_json_and_their_differences_are_named():
    args = parse_arguments(["--hidden_sizes", "4", "8", "--seed", "3"])
    assert args.differences(args.to_dict()) == []
    other = parse_arguments(["--hidden_sizes", "4", "16", "--seed", "3", "--resume", "--workers", "2"])
    assert other.differences(args.to_dict()) == ["--hidden_sizes was [4, 8] and is [4, 16]"]
    assert other.differences({}) != []


@pytest.mark.parametrize("fast, precision", [(True, "bf16"), (False, "no")])
def test_automatic_precision_is_what_the_machine_is_fast_at_and_is_saved_as_that(monkeypatch, fast, precision):
    monkeypatch.setattr("training.arguments.bf16_is_fast", lambda: fast)
    args = parse_arguments([])
    assert args.to_dict()["mixed_precision"] == precision


def test_the_command_is_stated_without_the_folders_of_this_machine(tmp_path):
    settings = {"annotations": str(tmp_path / "me" / "hands.json"), "images": "my photos", "learning_rate": 1e-3}
    settings |= {"init": str(tmp_path / "M"), "output_dir": str(tmp_path / "me" / "out"), "mixed_precision": "no"}
    args = make_arguments(**settings)
    command = "accelerate launch train.py --annotations hands.json --images 'my photos' --init M --learning_rate 0.001"
    command += " --mixed_precision no"  # always, because its default depends on the machine
    assert args.command() == command
    assert args.public()["output_dir"] == "out" and args.to_dict()["output_dir"] == str(tmp_path / "me" / "out")
    again = parse_arguments(shlex.split(command)[3:])
    assert again.optimisation.learning_rate == 1e-3 and again.data.dataset == ["coco"]
    precision = ["--mixed_precision", "bf16"]
    assert parse_arguments(precision).command() == "accelerate launch train.py --mixed_precision bf16"
    scenes = ["--cutouts", "/far/away/hands", "--negatives", "0.2", "--streaming"]
    command = "accelerate launch train.py --negatives 0.2 --streaming --cutouts hands --mixed_precision bf16"
    assert parse_arguments(scenes + precision).command() == command
