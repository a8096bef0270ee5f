"""The command line of `train.py`: one dataclass, the only place where a run's settings live.

What the weights mean (image size, keypoints, sigma) is `HandUNetConfig`'s; how this run goes is here, and is saved whole
beside the weights.  A field's comment in `help` is its manual; its group is the heading it stands under in `--help`.
"""

import argparse
import dataclasses
import json
import shlex
import typing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.utils import validate_repo_id

from dataset_script.synthetic.ranges import EASY, FULL
from modeling_handunet import HandUNetConfig, HandUNetImageProcessor
from modeling_handunet.heatmaps import DECODING_METHODS
from modeling_handunet.image_processing_handunet import MIN_BOX_FILL

# Settings that may differ between a run and its continuation: they do not change what is computed.  The places of the
# data are among them, because a checkpoint knows the data itself again.
PLACES = ("data_dir", "annotations", "images", "cache_dir", "hand_mesh", "cutouts", "photos")
FREE_ON_RESUME = frozenset(
    {"output_dir", "resume", "workers", "checkpoint_every", "keep_checkpoints", "max_bad_steps", "push_to_hub", "space"}
    | {"credits", "contact_sheet", *PLACES}
)

# What a run on each dataset takes where the command line does not say; "scenes" are synthetic hands of that difficulty.
# The synthetic default is sized for minutes on two CPU cores, and its hands are drawn varied enough to be learnt from as
# they are; photographs are augmented.
DATASET_DEFAULTS = {
    "synthetic": {
        "train_samples": 2200,
        "validation_samples": 150,
        "test_samples": 300,
        "epochs": 2,
        "batch_size": 8,
        "augmentation": 0.0,
    },
    "scenes": {
        "train_samples": 10_000,
        "validation_samples": 300,
        "test_samples": 300,
        "epochs": 15,
        "batch_size": 16,
        "augmentation": 0.0,
    },
    "freihand": {"epochs": 100, "batch_size": 32, "augmentation": 1.0},
    "coco": {"epochs": 50, "batch_size": 16, "augmentation": 1.0},
}
# Longer side of a hand's box, of the crop's side, where hands are drawn as crops; elsewhere it is cut out with its box.
DRAWN_FILL = {"easy": sum(EASY.fill) / 2, "full": sum(FULL.fill) / 2}

# The training of the student project that this design comes from, for comparison; only fields that differ.
SEED_RECIPE = {
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "weight_decay": 0.0,
    "schedule": "plateau",
    "epochs": 1000,
    "batch_size": 48,
    "patience": 30,
    "ema_decay": 0.0,
    "max_grad_norm": 0.0,
    "augmentation": 0.0,
    "targets": "quantized",
    "decoding": "mean",
}


def check_repo_id(name: str) -> None:
    """Raise `ValueError` unless `name` is USER/NAME as the Hub allows it."""
    validate_repo_id(name)
    if "/" not in name:
        raise ValueError(f"The repository {name!r} names no owner: give USER/NAME.")


def name_for_others(place: str) -> str:
    """A path as it is published: a relative one as it is, of another its last part, or two where that is a run's `model`."""
    path = Path(place)
    if not path.is_absolute() and ".." not in path.parts:
        return place
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name == "model" else path.name


def bf16_is_fast() -> bool:
    """Whether the GPU, or without one the processor, computes in bf16 rather than imitating it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _option(group: str, default, text: str, **more):
    return field(default=default, metadata={"group": group, "help": text, **more})


def _by_dataset(name: str) -> str:
    """What `name` is for each dataset, for its help."""
    values = (f"{dataset}: {defaults.get(name, 'all')}" for dataset, defaults in DATASET_DEFAULTS.items())
    return ", ".join(values)


@dataclass
class Arguments:
    """Every setting of a run; see the module's docstring."""

    dataset: str | None = _option(
        "data", None, "freihand with --data_dir, coco with --annotations, else synthetic",
        choices=("synthetic", "freihand", "coco"),
    )  # fmt: skip
    data_dir: str | None = _option("data", None, "FreiHAND: the extracted folder or the official zip")
    backgrounds: str = _option(
        "data", "raw", "FreiHAND: the raw photographs, or all four background versions", choices=("raw", "all")
    )
    annotations: str | None = _option("data", None, "own data: a COCO keypoint file")
    images: str | None = _option("data", None, "own data: the folder of its images (default: images/ beside the file)")
    validation_share: float = _option("data", 0.2, "own data: share of the photographs held out for validation and test")
    difficulty: str = _option(
        "data", "easy", "synthetic hands: the stated easy set, everything, or every hand in ever new scenes",
        choices=("easy", "full", "scenes"),
    )  # fmt: skip
    streaming: bool = _option("data", False, "synthetic hands: new ones in every epoch, rendered as they are needed")
    hand_mesh: str | None = _option(
        "data", None, "synthetic hands: a rigged glTF hand with WebXR joint names, instead or (scenes) as a second body"
    )
    layers: int = _option("data", 20000, "scenes: drawn hands that are kept for new scenes; with --streaming none is")
    cutouts: str | None = _option("data", None, "scenes: a folder of cut-out photographs of hands with keypoints")
    cutouts_share: float = _option("data", 0.35, "scenes: share of the samples that are cut-outs")
    photos: str | None = _option("data", None, "scenes: a folder of photographs without hands, as backgrounds")
    negatives: float | None = _option(
        "data", None, "scenes: share with no hand, a left hand or a hand far off centre (default: 0.1 with --init; without, "
        "0, since from random weights on they end a training)"
    )  # fmt: skip
    max_unreadable_share: float = _option("data", 0.001, "photographs: share that may be unreadable and is left out")
    train_samples: int | None = _option("data", None, f"training samples an epoch: of photographs the first ones ({_by_dataset('train_samples')})")
    validation_samples: int | None = _option("data", None, f"validation samples, the first ones ({_by_dataset('validation_samples')})")
    test_samples: int | None = _option("data", None, f"test samples, the first ones ({_by_dataset('test_samples')})")
    cache_dir: str | None = _option("data", None, "where decoded images are kept (default: the datasets library's cache)")
    workers: int = _option("data", 0, "processes that prepare batches beside the training process, on the CPU")

    init: str | None = _option("model", None, "start from these weights, a folder or an id on the Hub")
    init_levels: int | None = _option("model", None, "with --init: leave out the deeper levels of a deeper U-Net")
    init_hidden_sizes: tuple[int, ...] | None = _option(
        "model", None, "with --init: widen that U-Net to these channels of each level", nargs="+"
    )
    image_size: int | None = _option("model", None, "side of the crops in pixels (default: 128; with --eval_only the model's)")
    box_fill: float | None = _option(
        "model", None, "longer side of a hand's box, of the crop's side, where hands are cut out (default: 0.45; with "
        "--eval_only the model's)"
    )  # fmt: skip
    hidden_sizes: tuple[int, ...] = _option(
        "model", (16, 32, 64, 128), "channels of each level of a new U-Net", nargs="+"
    )
    sigma: float | None = _option(
        "model", None, "standard deviation of the target heatmaps in px of the crop (default: 3; with --eval_only the model's)"
    )

    recipe: str = _option(
        "optimisation", "default", "seed: batch 48, SGD 0.1 halved on plateaus, quantized targets, mean decoding",
        choices=("default", "seed"),
    )  # fmt: skip
    epochs: int | None = _option("optimisation", None, f"passes over the training samples ({_by_dataset('epochs')})")
    batch_size: int | None = _option("optimisation", None, f"samples a step and process ({_by_dataset('batch_size')})")
    gradient_accumulation_steps: int = _option("optimisation", 1, "batches whose gradients are averaged for one step")
    optimizer: str = _option("optimisation", "adamw", "", choices=("adamw", "sgd"))
    learning_rate: float = _option("optimisation", 2.5e-3, "peak learning rate")
    weight_decay: float = _option("optimisation", 0.01, "the optimizer's weight decay")
    schedule: str = _option(
        "optimisation", "cosine", "cosine after a warm-up, or halved when the training loss stalls for two thirds of --patience",
        choices=("cosine", "plateau"),
    )  # fmt: skip
    warmup_share: float = _option("optimisation", 0.05, "share of the steps in which the learning rate rises")
    max_grad_norm: float = _option("optimisation", 1.0, "clip the gradient to this norm; 0: never")
    ema_decay: float = _option("optimisation", 0.998, "decay of the averaged weights that are validated; 0: none")
    targets: str = _option(
        "optimisation", "continuous", "Gaussians centred on the keypoint or on its pixel", choices=("continuous", "quantized")
    )
    augmentation: float | None = _option(
        "optimisation", None, f"strength of the augmentation, 0 for none ({_by_dataset('augmentation')})"
    )
    max_rotation: float = _option("optimisation", 45.0, "largest rotation of the augmentation, degrees")
    patience: int = _option("optimisation", 10, "stop after this many validations without improvement")
    decoding: str = _option("optimisation", "local", "how validation reads heatmaps", choices=DECODING_METHODS)
    mixed_precision: str = _option(
        "optimisation", "no", "auto: bf16 where the machine is fast at it, which trains 1.6 times as fast there",
        choices=("auto", "no", "bf16", "fp16"),
    )  # fmt: skip
    seed: int = _option("optimisation", 0, "seed of the weights, the order, the augmentation and the synthetic hands")
    max_bad_steps: int = _option("optimisation", 10, "stop after this many steps in a row with a NaN or infinite gradient")

    output_dir: str = _option("output", "outputs/handunet", "holds model/, checkpoints/, logs/, figures/, metrics.json")
    resume: bool = _option("output", False, "go on from the newest whole checkpoint in --output_dir")
    checkpoint_every: int = _option("output", 500, "steps between checkpoints; there is one after each epoch, too")
    keep_checkpoints: int = _option("output", 2, "newest checkpoints that are kept, beside the best")
    eval_only: bool = _option("output", False, "no training: score --model on --split (own data: on all of it)")
    model: str | None = _option("output", None, "with --eval_only: what to score, a folder or an id on the Hub")
    contact_sheet: str | None = _option("output", None, "with --eval_only: draw up to 100 hands into this file, the worst first")
    split: str = _option(
        "output", "test", "with --eval_only: FreiHAND's split", choices=("train", "validation", "test", "evaluation")
    )
    credits: str | None = _option(
        "output", None, "for the card: whose the photographs, or --hand_mesh, --cutouts and --photos, are, and their terms"
    )
    push_to_hub: str | None = _option("output", None, "send the finished model to this repository, as user/name")
    space: str | None = _option("output", None, "with --push_to_hub: and the page to try it on to this one")

    def __post_init__(self):
        if self.mixed_precision == "auto":  # a checkpoint keeps what it came to
            self.mixed_precision = "bf16" if bf16_is_fast() else "no"
        if self.dataset is None:
            self.dataset = "coco" if self.annotations else "freihand" if self.data_dir else "synthetic"
        self.hidden_sizes = tuple(self.hidden_sizes)
        self.init_hidden_sizes = self.init_hidden_sizes and tuple(self.init_hidden_sizes)
        self._refuse_what_has_no_effect()
        scenes = self.dataset == "synthetic" and self.difficulty == "scenes"
        if not self.eval_only:
            drawn = self.dataset == "synthetic" and not scenes
            fill = DRAWN_FILL[self.difficulty] if drawn else HandUNetImageProcessor.box_fill
            self.take_from_model(HandUNetConfig().image_size, fill, HandUNetConfig().sigma)
        for name, value in DATASET_DEFAULTS["scenes" if scenes else self.dataset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if scenes and self.negatives is None:
            self.negatives = 0.1 if self.init else 0.0
        self._check()

    def take_from_model(self, image_size: int, box_fill: float, sigma: float) -> None:
        """Cut hands out and draw their heatmaps as a model wants them, unless the command line says how."""
        self.image_size = image_size if self.image_size is None else self.image_size
        self.box_fill = box_fill if self.box_fill is None else self.box_fill
        self.sigma = sigma if self.sigma is None else self.sigma

    def _refuse_what_has_no_effect(self):
        """Options that this run would read and not use; the user meant something else by them."""
        scenes = self.dataset == "synthetic" and self.difficulty == "scenes"
        photographs = self.dataset in ("freihand", "coco")
        cut_out = photographs or scenes or self.box_fill == DRAWN_FILL.get(self.difficulty)  # or it is what they are drawn with
        only_with = [  # options, whether they have an effect here, and where they have one
            (("data_dir", "backgrounds"), self.dataset == "freihand", "--dataset freihand has it"),
            (("split",), self.dataset == "freihand" and self.eval_only, "--eval_only with --data_dir has it"),
            (("annotations", "images"), self.dataset == "coco", "--dataset coco has it"),
            (("validation_share",), self.dataset == "coco" and not self.eval_only, "a training on --annotations has it"),
            (("difficulty", "hand_mesh", "streaming"), self.dataset == "synthetic", "--dataset synthetic has it"),
            (("layers", "cutouts", "cutouts_share", "photos", "negatives"), scenes, "--difficulty scenes has it"),
            (("layers",), not self.streaming, "with --streaming no hand is kept"),
            (("cutouts_share",), bool(self.cutouts), "--cutouts has it"),
            (("augmentation",), not (scenes and self.augmentation), "scenes turn and colour every hand themselves"),
            (("max_rotation",), not scenes, "scenes turn every hand themselves"),
            (("max_rotation",), bool(self.augmentation) or (photographs and self.augmentation is None), "--augmentation has it"),
            (("box_fill",), cut_out, "these hands are drawn as crops, none is cut out"),
            (("init_levels",), bool(self.init), "name the deeper model to start from by --init"),
            (("init_hidden_sizes",), bool(self.init), "name the narrower model to start from by --init"),
            (("max_unreadable_share",), photographs, "hands are drawn, no photograph is read"),
            (("warmup_share",), self.schedule == "cosine", "--schedule cosine has it"),
            (("contact_sheet",), self.eval_only, "--eval_only has it"),
            (("model",), self.eval_only, "--eval_only has it; a training starts from weights by --init"),
            (("init", "resume", "push_to_hub", "space"), not self.eval_only, "nothing is trained with --eval_only"),
            (("credits",), self.dataset == "coco" or bool(self.foreign_data()), "for drawn hands and FreiHAND the card says it itself"),
            (("space",), bool(self.push_to_hub), "name the repository of the model, too, by --push_to_hub"),
        ]
        defaults = {option.name: option.default for option in dataclasses.fields(self)}
        recipe = self.of_recipe()
        for names, has_effect, where in only_with:
            for name in names:
                if not has_effect and getattr(self, name) not in (defaults[name], recipe.get(name, defaults[name])):
                    raise ValueError(f"--{name} has no effect here: {where}.")

    def _check(self):
        def refuse(problem: str, remedy: str):
            raise ValueError(f"{problem}: {remedy}.")

        if self.dataset == "freihand" and not self.data_dir:
            refuse("--dataset freihand has no --data_dir", "name the folder or zip of FreiHAND")
        if self.dataset == "coco" and not self.annotations:
            refuse("--dataset coco has no --annotations", "name the COCO keypoint file, and --images")
        if self.eval_only and not self.model:
            refuse("--eval_only has no --model", "name the folder or Hub id to score")
        for name in ("push_to_hub", "space"):
            if getattr(self, name):
                try:
                    check_repo_id(getattr(self, name))
                except ValueError as error:
                    raise ValueError(f"--{name}: {error}") from error
        for name in (
            *("epochs", "batch_size", "gradient_accumulation_steps", "patience", "checkpoint_every", "keep_checkpoints"),
            *("max_bad_steps", "layers", "train_samples", "validation_samples", "test_samples", "image_size"),
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                refuse(f"--{name} {getattr(self, name)}", "give 1 or more")
        for name in ("learning_rate", "sigma"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                refuse(f"--{name} {getattr(self, name)}", "give a number above 0")
        if self.box_fill is not None and not MIN_BOX_FILL <= self.box_fill <= 1:
            refuse(f"--box_fill {self.box_fill}", f"give a share of the crop's side in [{MIN_BOX_FILL}, 1]")
        for name in ("weight_decay", "max_grad_norm", "augmentation", "max_rotation", "workers"):
            if not getattr(self, name) >= 0:
                refuse(f"--{name} {getattr(self, name)}", "give 0 or more")
        for name in ("ema_decay", "warmup_share", "validation_share", "max_unreadable_share", "cutouts_share", "negatives"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                refuse(f"--{name} {getattr(self, name)}", "give a share in [0, 1)")
        if self.dataset == "coco" and not self.eval_only and not self.validation_share:
            refuse("--validation_share 0", "a training chooses its weights by the photographs held out, hold some out")

    def of_recipe(self) -> dict:
        """The fields that the recipe sets."""
        return SEED_RECIPE if self.recipe == "seed" else {}

    def foreign_data(self) -> list[str]:
        """The options that brought another's data into the synthetic hands of the run."""
        return [f"--{name}" for name in ("hand_mesh", "cutouts", "photos") if getattr(self, name)]

    def to_dict(self) -> dict:
        """The settings as JSON has them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def for_others(self) -> dict:
        """The settings as they are published: of places on this machine their last name alone."""
        settings = self.to_dict()
        places = [name for name in (*PLACES, "init", "model", "output_dir") if settings[name]]
        return settings | {name: name_for_others(settings[name]) for name in places}

    def command(self) -> str:
        """What gives these settings on a command line, without what the defaults give and where the results went."""
        needed = {name: getattr(self, name) for name in ("dataset", "data_dir", "annotations", "difficulty", "recipe", "init")}
        usual, settings = Arguments(**self.of_recipe() | needed).to_dict(), self.for_others()
        left_out = {"output_dir", "resume", "push_to_hub", "space", "credits", "cache_dir", "hidden_sizes" if self.init else ""}
        given = {
            option.name: settings[option.name]
            for option in dataclasses.fields(self)
            if option.name not in left_out
            and (settings[option.name] != usual[option.name] or needed.get(option.name) not in (None, option.default))
        }
        if given.get("dataset") in ("freihand", "coco", "synthetic"):
            del given["dataset"]  # follows from the others
        parts = ["accelerate launch train.py"]
        for name, value in given.items():
            values = value if isinstance(value, list) else [value]
            parts.append(f"--{name}" if value is True else f"--{name} {shlex.join(map(str, values))}")
        return " ".join(parts)

    def differences(self, saved: dict) -> list[str]:
        """The settings that differ from those of a saved run and change what is computed, each as a sentence's part."""
        mine = self.to_dict()
        return [
            f"--{name} was {saved.get(name)!r} and is {mine[name]!r}"
            for name in mine
            if name not in FREE_ON_RESUME and saved.get(name) != mine[name]
        ]

    def save(self, path: Path, for_others: bool = False) -> None:
        """Write the settings as JSON."""
        path.write_text(json.dumps(self.for_others() if for_others else self.to_dict(), indent=2) + "\n")


def parse_arguments(argv: list[str] | None = None, description: str | None = None) -> Arguments:
    """Read the command line into [`Arguments`]; a wrong one ends the program with a sentence."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    groups, hints = {}, typing.get_type_hints(Arguments)
    for option in dataclasses.fields(Arguments):
        details = dict(option.metadata)
        name = details.pop("group")
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        group = groups[name]
        default = option.default
        text = details.pop("help")
        if default not in (None, False):
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            text = f"{text} (default: {shown})".strip()
        if isinstance(default, bool):
            group.add_argument(f"--{option.name}", action="store_true", help=text)
            continue
        kind = (typing.get_args(hints[option.name]) or (hints[option.name],))[0]  # int of int | None or tuple[int, ...]
        group.add_argument(f"--{option.name}", type=kind, default=default, help=text.replace("%", "%%"), **details)
    if parser.parse_args(argv).recipe == "seed":
        parser.set_defaults(**SEED_RECIPE)  # what the command line asks for stays
    namespace = parser.parse_args(argv)
    try:
        return Arguments(**vars(namespace))
    except ValueError as error:
        parser.error(str(error))
