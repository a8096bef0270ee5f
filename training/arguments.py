"""The command line of `train.py`: four frozen dataclasses, the only place where a run's settings live.

What the weights mean (image size, keypoints, sigma) is `HandUNetConfig`'s.  How this run goes is here, and is saved whole
beside the weights.  A field's help is its manual.  `@FILE` on the command line reads options from a file; `recipes/` has
some.
"""

import dataclasses
import json
import shlex
import types
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, HfArgumentParser

from dataset_script.sources import SOURCES, Source
from dataset_script.sources.base import option
from modeling_handunet import HandUNetConfig, HandUNetDetectorConfig, HandUNetImageProcessor
from modeling_handunet.image_processing_handunet import MIN_BOX_FILL
from training.initial_weights import load_processor

# Settings that may differ between a run and its continuation: they do not change what is computed.  The places of the
# data are among them, because a checkpoint recognises the data itself.
PLACES = frozenset(name for source in SOURCES.values() for name in source.places)
FREE_ON_RESUME = PLACES | {
    *("output_dir", "resume", "workers", "checkpoint_every", "keep_checkpoints", "max_bad_steps", "push_to_hub", "space"),
    *("private", "publish_examples", "credits", "contact_sheet", "json", "average_with", "last_weights"),
}
# Not part of the command that makes the same weights again.
NOT_IN_COMMAND = {"output_dir", "resume", "push_to_hub", "space", "private", "publish_examples", "credits", "cache_dir"}


def defaults_of(name: str) -> str:
    """What the option `name` is by default for each source, for its help."""
    return ", ".join(f"{source.name}: {source.defaults.get(name, 'all')}" for source in SOURCES.values())


@dataclass(frozen=True)
class DataArguments(*dict.fromkeys(source.Options for source in SOURCES.values())):
    """Which hands are trained on."""

    dataset: list[str] | None = option(
        None, f"one or more of {', '.join(SOURCES)} (default: the one whose options are given, else {next(iter(SOURCES))})"
    )
    shares: list[float] | None = option(None, "with several: the share of the samples that each gets (default: equal shares)")
    validate_on: list[str] | None = option(None, "with several: those that choose the weights and are tested (default: all)")
    _argument_group_name = "data"


@dataclass(frozen=True)
class ModelArguments:
    """What is trained."""

    task: Literal["pose", "detection"] = option("pose", "keypoints of a hand in a crop, or the hands in a photograph")
    init: str | None = option(None, "start from these weights, a folder or an id on the Hub")
    init_levels: int | None = option(None, "with --init: leave out the deeper levels of a deeper U-Net")
    init_hidden_sizes: list[int] | None = option(None, "with --init: widen that U-Net to these channels of each level")
    image_size: int | None = option(
        None, "side of the crops in pixels (default: 128, of photographs for detection 320; of --init and --eval_only: the "
        "model's)"
    )  # fmt: skip
    box_fill: float | None = option(
        None, "share of the crop's side that the longer side of a hand's box takes (default: 0.45, or the model's)"
    )
    hidden_sizes: list[int] | None = option(
        None, "channels of each level of the U-Net (default: 16 32 64 128, of the detector 16 32 64 128 128 128)"
    )
    decoder_sizes: list[int] | None = option(
        None, "detection: channels of each level on the way up, fewer than the levels down (default: 64 48 32 32)"
    )
    average_with: str | None = option(
        None, "in the end, take the mean of the trained weights and of these, a folder or an id on the Hub: so a fine-tuning "
        "keeps more of what its start knew (https://arxiv.org/abs/2109.01903)"
    )  # fmt: skip
    last_weights: bool = option(False, "in the end, take the last averaged weights, not those of the best validation")
    sigma: float | None = option(None, "standard deviation of the target heatmaps, pixels (default: 3.0, or the model's)")
    _argument_group_name = "model"


@dataclass(frozen=True)
class OptimisationArguments:
    """How it is trained."""

    epochs: int | None = option(None, f"passes over the training samples ({defaults_of('epochs')})")
    batch_size: int | None = option(None, f"samples a step and process ({defaults_of('batch_size')})")
    gradient_accumulation_steps: int = option(1, "batches whose gradients are averaged for one step")
    optimizer: Literal["adamw", "sgd"] = option("adamw", "AdamW, or plain SGD")
    learning_rate: float = option(2.5e-3, "peak learning rate")
    weight_decay: float = option(0.01, "the optimizer's weight decay")
    schedule: Literal["cosine", "plateau"] = option(
        "cosine", "cosine after a warm-up, or halved when the training loss stalls for two thirds of --patience"
    )
    warmup_share: float = option(0.05, "share of the steps in which the learning rate rises")
    max_grad_norm: float = option(1.0, "clip the gradient to this norm; 0: never")
    ema_decay: float = option(0.998, "decay of the averaged weights that are validated; 0: none")
    targets: Literal["continuous", "quantized"] = option("continuous", "Gaussians centred on the keypoint or on its pixel")
    patience: int = option(10, "stop after this many validations without improvement")
    decoding: Literal["local", "argmax", "mean"] = option("local", "how validation reads heatmaps")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = option(
        "auto", "of training. auto: bf16 where the machine is fast at it, which trains 1.6 times as fast there; no: float32. "
        "Models are always scored in float32, as they are loaded"
    )
    seed: int = option(0, "seed of the weights, the order, the augmentation and the synthetic hands")
    max_bad_steps: int = option(10, "stop after this many steps in a row with a NaN or infinite gradient")
    _argument_group_name = "optimisation"


@dataclass(frozen=True)
class OutputArguments:
    """Where it goes, and what else is done."""

    output_dir: str = option("outputs/handunet", "holds model/, checkpoints/, logs/, figures/, metrics.json")
    resume: bool = option(False, "go on from the newest whole checkpoint in --output_dir")
    checkpoint_every: int = option(500, "steps between checkpoints; there is one after each epoch, too")
    keep_checkpoints: int = option(2, "newest checkpoints that stay, beside the best")
    eval_only: bool = option(False, "no training: score --model on the test split (own data: on all of it)")
    model: str | None = option(None, "with --eval_only: what to score, a folder or an id on the Hub")
    contact_sheet: str | None = option(None, "with --eval_only: draw up to 100 hands into this file, the worst first")
    json: bool = option(False, "with --eval_only: print all figures as JSON, not the first ones as a table")
    push_to_hub: str | None = option(None, "send the finished model to this repository, as user/name")
    space: str | None = option(None, "with --push_to_hub: and the page to try it on to this one")
    private: bool = option(False, "with --push_to_hub: make new repositories private")
    publish_examples: bool = option(False, "put figures that show your photographs into model/, which may be published")
    _argument_group_name = "output"


PARTS = {"data": DataArguments, "model": ModelArguments, "optimisation": OptimisationArguments, "output": OutputArguments}


# Option names, the test that their values must pass, and what to do otherwise.
BOUNDS = (
    (
        ("epochs", "batch_size", "gradient_accumulation_steps", "patience", "checkpoint_every", "keep_checkpoints",
         "max_bad_steps", "layers", "train_samples", "validation_samples", "test_samples", "image_size", "init_levels",
         "most_per_source"),
        lambda value: value >= 1, "give 1 or more",
    ),
    (("learning_rate", "sigma"), lambda value: value > 0, "give a number above 0"),
    (("upright_share",), lambda value: 0 <= value <= 1, "give a share in [0, 1]"),
    (("box_fill",), lambda value: MIN_BOX_FILL <= value <= 1, f"give a share of the crop's side in [{MIN_BOX_FILL}, 1]"),
    (("weight_decay", "max_grad_norm", "augmentation", "max_rotation", "workers"), lambda value: value >= 0, "give 0 or more"),
    (
        ("ema_decay", "warmup_share", "validation_share", "max_unreadable_share", "cutouts_share", "negatives",
         "photographs_share", "boxed_share"),
        lambda value: 0 <= value < 1, "give a share in [0, 1)",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """All settings of a run, with nothing left to decide; see [`parse_arguments`]."""

    data: DataArguments
    model: ModelArguments
    optimisation: OptimisationArguments
    output: OutputArguments

    def to_dict(self) -> dict:
        """Every setting by its option's name, as JSON holds it."""
        return json.loads(json.dumps({k: v for part in PARTS for k, v in dataclasses.asdict(getattr(self, part)).items()}))

    def public(self) -> dict:
        """The settings as they are published: without folders of this machine."""
        settings = self.to_dict()
        places = [name for name in (*PLACES, "init", "model", "average_with", "output_dir") if settings[name]]
        return settings | {name: public_name(settings[name]) for name in places}

    def command(self) -> str:
        """The command line that gives these settings.  Options with their default, and where results go, are left out."""
        mine, published = self.to_dict(), self.public()
        decide = ["task", "dataset", "difficulty", "init", "eval_only", "model", "photographs_share", *(PLACES - {"cache_dir"})]
        usual = make_arguments(**{name: mine[name] for name in decide}).to_dict()
        first = option_defaults()
        words = ["accelerate launch train.py"]
        for name, value in published.items():
            as_usual = mine[name] == (first if name in decide else usual)[name] and name != "mixed_precision"  # the machine's
            if as_usual or name in NOT_IN_COMMAND or (name in ("hidden_sizes", "decoder_sizes") and self.model.init):
                continue
            if name == "dataset" and name_sources(dataclasses.replace(self.data, dataset=None), self.model.task) == value:
                continue  # follows from the others
            values = value if isinstance(value, list) else [value]
            words.append(f"--{name}" if value is True else f"--{name} {shlex.join(map(str, values))}")
        return " ".join(words)

    def differences(self, saved: dict) -> list[str]:
        """The settings that differ from those of a saved run and change what is computed, each as a sentence's part.

        An option that is newer than the saved run had its default there.  Options of sources that are not read change nothing.
        """
        mine, saved = self.to_dict(), {**option_defaults(), **saved}
        read = {field.name for name in self.data.dataset for field in dataclasses.fields(SOURCES[name].Options)}
        unread = {field.name for source in SOURCES.values() for field in dataclasses.fields(source.Options)} - read
        free = FREE_ON_RESUME | unread
        return [
            f"--{name} was {saved[name]!r} and is {mine[name]!r}"
            for name in mine
            if name not in free and saved[name] != mine[name]
        ]


def option_defaults() -> dict:
    """What each option is if the command line does not say."""
    return {field.name: field.default for part in PARTS.values() for field in dataclasses.fields(part)}


def public_name(place: str) -> str:
    """A path without this machine's folders.  For an absolute path, only the last name; `RUN/model` keeps two."""
    path = Path(place)
    if not path.is_absolute() and ".." not in path.parts:
        return place
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name == "model" else path.name


def name_sources(data: DataArguments, task: str = "pose") -> list[str]:
    """The names of the sources that the options select, of those for a task.

    Raises `ValueError` if they select several without `--dataset`.
    """
    fitting = {name: source for name, source in SOURCES.items() if source.task == task}
    if data.dataset:
        for name in data.dataset:
            if name not in fitting:
                raise ValueError(f"--dataset {name}: for --task {task} choose from {', '.join(fitting)}.")
        return list(data.dataset)
    if task == "pose" and data.photographs and data.photographs_share is not None:
        return ["scenes", "photographs"]
    named = [name for name, source in fitting.items() if source.is_named_by(data)]
    if len(named) > 1:
        raise ValueError(f"The options name several sources: write --dataset {' '.join(named)} to mix them.")
    return named or [next(iter(fitting))]


def make_arguments(**settings) -> Arguments:
    """Settings by option name, completed with the defaults; raises `ValueError` as [`parse_arguments`] does."""
    return resolve(*HfArgumentParser(list(PARTS.values())).parse_dict(settings))


def resolve(
    data: DataArguments, model: ModelArguments, optimisation: OptimisationArguments, output: OutputArguments
) -> Arguments:
    """Decide everything that the command line left open, once.

    Raises `ValueError` for settings that make no sense, and `OSError` where `--init` or `--model` cannot be read.
    """
    names = name_sources(data, model.task)
    sources = [SOURCES[name] for name in names]
    data = dataclasses.replace(data, dataset=names)
    refuse_without_effect(types.SimpleNamespace(**flat(data, model, optimisation, output)), sources)
    check(data, model, optimisation, output, sources)
    if names == ["scenes", "photographs"] and data.photographs_share is not None and data.shares is None:
        data = dataclasses.replace(data, shares=[1 - data.photographs_share, data.photographs_share])
    defaults = {name: value for source in reversed(sources) for name, value in source.defaults_for(data, model.init).items()}
    data, optimisation = filled(data, defaults), filled(optimisation, defaults)
    if optimisation.mixed_precision == "auto":  # a checkpoint stores what it came to
        optimisation = dataclasses.replace(optimisation, mixed_precision="bf16" if bf16_is_fast() else "no")
    start = output.model or model.init
    config = readable_config("model" if output.model else "init", start, model.task)
    settings = channels(model, config)
    config = config or (HandUNetDetectorConfig() if model.task == "detection" else HandUNetConfig())
    settings = {"image_size": config.image_size, "hidden_sizes": list(config.hidden_sizes), **settings}
    if model.task == "detection":
        settings = {"decoder_sizes": list(config.decoder_sizes), **settings}
    else:
        drawn_fill = None if output.eval_only else sources[0].drawn_fill(data)
        settings["sigma"] = config.sigma
        settings["box_fill"] = drawn_fill or (load_processor(start) if start else HandUNetImageProcessor()).box_fill
    other = readable_config("average_with", model.average_with, model.task)
    if other and list(other.hidden_sizes) != list(model.hidden_sizes or settings["hidden_sizes"]):
        raise ValueError(f"--average_with {model.average_with}: its channels are not those of the network that is trained.")
    return Arguments(data, filled(model, settings), optimisation, output)


def readable_config(option_: str, name: str | None, task: str) -> HandUNetConfig | HandUNetDetectorConfig | None:
    """[`read_config`] of what an option names, or an `OSError` that says that it cannot be read."""
    try:
        return read_config(name, task)
    except (OSError, ValueError) as error:
        raise OSError(f"--{option_} {name} cannot be read: {error}") from error


def read_config(start: str | None, task: str) -> HandUNetConfig | HandUNetDetectorConfig | None:
    """The configuration of the weights that a run starts from or scores.  None stands for a new network; a detector is one,
    too, if it starts from the weights of a pose network."""
    if not start:
        return None
    if task == "pose":
        return HandUNetConfig.from_pretrained(start)
    found = AutoConfig.from_pretrained(start, trust_remote_code=False)
    return found if isinstance(found, HandUNetDetectorConfig) else None


def channels(model: ModelArguments, config: HandUNetConfig | HandUNetDetectorConfig | None) -> dict[str, list[int]]:
    """The channels of the network to train, where the weights to start from, of `config`, decide them."""
    if config is None:
        return {}
    sizes = list(config.hidden_sizes)[: model.init_levels] if model.init_levels else list(config.hidden_sizes)
    found = {"hidden_sizes": model.init_hidden_sizes or sizes}
    if model.task == "detection":
        found["decoder_sizes"] = list(config.decoder_sizes)
    for name, sizes in found.items():
        if model.init and getattr(model, name) not in (None, sizes):
            asked, its = (" ".join(map(str, channels)) for channels in (getattr(model, name), sizes))
            raise ValueError(f"--{name} {asked}: --init {model.init} brings its own, {its}. Leave one of them out.")
    return found


def flat(*parts) -> dict:
    """All fields of several dataclasses."""
    return {field.name: getattr(part, field.name) for part in parts for field in dataclasses.fields(part)}


def filled(part, values: dict):
    """A copy of a dataclass, with `values` for the fields that are None."""
    return dataclasses.replace(part, **{k: v for k, v in values.items() if getattr(part, k, "") is None})


def refuse_without_effect(args: types.SimpleNamespace, sources: list[type[Source]]) -> None:
    """Refuse options that this run would read and not use: the user meant something else by them."""
    defaults = option_defaults()
    given = {name for name, value in vars(args).items() if value != defaults[name]}
    here = {field.name for source in sources for field in dataclasses.fields(source.Options)}
    owners = {}
    for source in SOURCES.values():
        way = "--dataset" if source.task == args.task else f"--task {source.task} --dataset"
        for option_ in dataclasses.fields(source.Options):
            owners.setdefault(option_.name, {}).setdefault(way, []).append(source.name)
    for name in sorted(given & owners.keys() - here):
        way = min(owners[name], key=len)  # of this task, if one of its sources has the option
        raise ValueError(f"--{name} has no effect here: {way} {' or '.join(owners[name][way])} has it.")
    by_default = any(source.defaults.get("augmentation") for source in sources)
    augmented = by_default if args.augmentation is None else args.augmentation
    rules = [rule for source in sources for rule in source.rules(args)] + [
        (("shares", "validate_on"), len(sources) > 1, "--dataset names one source"),
        (("max_rotation",), bool(augmented), "--augmentation has it"),
        (("box_fill", "sigma", "targets", "decoding", "init_levels", "init_hidden_sizes", "contact_sheet", "space"),
         args.task == "pose", "--task pose has it"),
        (("decoder_sizes",), args.task == "detection", "--task detection has it"),
        (("init_levels",), bool(args.init), "name the deeper model to start from by --init"),
        (("init_hidden_sizes",), bool(args.init), "name the narrower model to start from by --init"),
        (("credits",), args.dataset != ["freihand"], "for FreiHAND the card says it itself"),
        (("warmup_share",), args.schedule == "cosine", "--schedule cosine has it"),
        (("contact_sheet", "json"), args.eval_only, "--eval_only has it"),
        (("model",), args.eval_only, "--eval_only has it; a training starts from weights by --init"),
        (("init", "average_with", "resume", "push_to_hub", "space"), not args.eval_only, "nothing is trained with --eval_only"),
        (("publish_examples",), not args.eval_only, "nothing is saved with --eval_only"),
        (("space", "private"), bool(args.push_to_hub), "name the repository of the model, too, by --push_to_hub"),
    ]  # fmt: skip
    for names, has_effect, where in rules:
        for name in names:
            if name in given and not has_effect:
                raise ValueError(f"--{name} has no effect here: {where}.")


def check(data, model, optimisation, output, sources: list[type[Source]]) -> None:
    """Refuse values that are out of range, and what is missing."""
    values = flat(data, model, optimisation, output)

    def refuse(name: str, remedy: str):
        shown = " ".join(map(str, values[name])) if isinstance(values[name], list) else values[name]
        raise ValueError(f"--{name} {shown}: {remedy}.")

    for source in sources:
        source.check(data)
    if data.dataset == ["coco"] and not output.eval_only and not data.validation_share:
        refuse("validation_share", "a training chooses its weights by the photographs held out, hold some out")
    if data.shares and (len(data.shares) != len(sources) or not all(share > 0 for share in data.shares)):
        refuse("shares", f"give one number above 0 for each of {' '.join(data.dataset)}")
    if data.validate_on and not set(data.validate_on) <= set(data.dataset):
        refuse("validate_on", f"choose from {' '.join(data.dataset)}")
    if output.eval_only and not output.model:
        raise ValueError("--eval_only has no --model: name the folder or Hub id to score.")
    for name in ("push_to_hub", "space"):
        if values[name]:
            try:
                check_repo_id(values[name])
            except ValueError as error:
                raise ValueError(f"--{name}: {error}") from error
    for names, fits, remedy in BOUNDS:
        for name in names:
            if values[name] is not None and not fits(values[name]):
                refuse(name, remedy)


def check_repo_id(name: str) -> None:
    """Raise `ValueError` unless `name` is USER/NAME as the Hub allows it."""
    validate_repo_id(name)
    if "/" not in name:
        raise ValueError(f"The repository {name!r} names no owner: give USER/NAME.")


def bf16_is_fast() -> bool:
    """Whether the GPU, or without one the processor, computes in bf16 rather than imitating it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and shows each default but None and False."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class ArgumentParser(HfArgumentParser):
    """Reads `@FILE` as options, several a line; what follows `#` is a comment."""

    def __init__(self, **more):
        super().__init__(list(PARTS.values()), fromfile_prefix_chars="@", formatter_class=HelpFormatter, **more)

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """The options of one line of such a file."""
        return shlex.split(arg_line, comments=True)


def parse_arguments(argv: list[str] | None = None, description: str | None = None) -> Arguments:
    """Read the command line into [`Arguments`]; a wrong one ends the program with a sentence."""
    parser = ArgumentParser(description=description)
    try:
        *parts, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
        if unknown:
            parser.error(f"there is no option {' '.join(unknown)}; --help lists them")
        return resolve(*parts)
    except (ValueError, OSError) as error:
        parser.error(str(error))
