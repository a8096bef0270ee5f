"""The weights that a training starts from: new ones, those of `--init`, or those with fewer levels or more channels."""

import os

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForPoseEstimation

from modeling_handunet import (
    HandUNetConfig,
    HandUNetDetectorConfig,
    HandUNetForObjectDetection,
    HandUNetForPoseEstimation,
    HandUNetImageProcessor,
    start_from_pose,
)

CLASSIFIER_SIZE = 64  # hidden units of a new hand classifier


def make_model(settings, seed: int, teaches_classifier: bool = False) -> HandUNetForPoseEstimation:
    """A new model, or the one that --init names; `settings` are a run's `ModelArguments`.

    With `teaches_classifier` it has a hand classifier that learns, a new one if its shape is another.  Else one that is there
    stays as it is, and a network of another shape has none.
    """
    if not settings.init:
        torch.manual_seed(seed)
        config = HandUNetConfig(hidden_sizes=settings.hidden_sizes, sigma=settings.sigma, image_size=settings.image_size)
        model = HandUNetForPoseEstimation(config)
        return with_classifier(model, seed) if teaches_classifier else model
    model = HandUNetForPoseEstimation.from_pretrained(
        settings.init, dtype=torch.float32, image_size=settings.image_size, sigma=settings.sigma
    )
    model = model if settings.init_levels is None else without_deep_levels(model, settings.init_levels)
    if settings.init_hidden_sizes is not None:
        torch.manual_seed(seed)
        model = widened(model, tuple(settings.init_hidden_sizes))
    if teaches_classifier:
        return with_classifier(model, seed)
    if model.classifier is not None:
        model.classifier.requires_grad_(False)
    return model


def with_classifier(model: HandUNetForPoseEstimation, seed: int) -> HandUNetForPoseEstimation:
    """The model, with a new hand classifier if it has none."""
    if model.classifier is None:
        torch.manual_seed(seed)
        model.add_classifier(CLASSIFIER_SIZE)
    return model


def make_detector(settings, seed: int) -> HandUNetForObjectDetection:
    """A new detector, the one that --init names, or a new one with the levels of the pose network that --init names."""
    init, size = settings.init, settings.image_size
    config = AutoConfig.from_pretrained(init, trust_remote_code=False) if init else None
    if isinstance(config, HandUNetDetectorConfig):
        return HandUNetForObjectDetection.from_pretrained(init, dtype=torch.float32, image_size=size)
    torch.manual_seed(seed)
    detector = HandUNetForObjectDetection(
        HandUNetDetectorConfig(hidden_sizes=settings.hidden_sizes, decoder_sizes=settings.decoder_sizes, image_size=size)
    )
    if init and not start_from_pose(detector, HandUNetForPoseEstimation.from_pretrained(init, dtype=torch.float32)):
        found, own = (" ".join(map(str, sizes)) for sizes in (config.hidden_sizes, settings.hidden_sizes))
        raise ValueError(f"--init {init}: its channels, {found}, do not begin as the detector's, {own}. Give --hidden_sizes.")
    return detector


def without_deep_levels(model: HandUNetForPoseEstimation, levels: int) -> HandUNetForPoseEstimation:
    """A U-Net of the first `levels` of `model`, with their weights.

    Its first `up` block reads the lowest level's features where it read those that came up from below.  These are not the
    same, but all other weights fit, so training starts far better than from random weights.
    """
    sizes = model.config.hidden_sizes
    if not 1 <= levels <= len(sizes):
        raise ValueError(f"--init_levels {levels}: the model to start from has {len(sizes)} levels, give 1 to {len(sizes)}.")
    config = HandUNetConfig(**{**model.config.to_diff_dict(), "hidden_sizes": sizes[:levels], "classifier_size": 0})
    smaller, weights = HandUNetForPoseEstimation(config), {}
    for name in smaller.state_dict():
        part, _, rest = name.partition(".")
        if part == "up":
            number, _, rest = rest.partition(".")
            weights[name] = model.state_dict()[f"up.{int(number) + len(sizes) - levels}.{rest}"]
        else:
            weights[name] = model.state_dict()[name]
    smaller.load_state_dict(weights)
    return smaller


def widened(model: HandUNetForPoseEstimation, sizes: tuple[int, ...]) -> HandUNetForPoseEstimation:
    """A U-Net of more channels that computes what `model` computes, so that training goes on where it was.

    An added channel reads all channels with random weights.  The old channels read an added one with weights of zero, which
    training then changes.  (As in Net2Net, https://arxiv.org/abs/1511.05641, but channels are not copied.)
    """
    old = model.config.hidden_sizes
    if len(sizes) != len(old) or any(more < fewer for more, fewer in zip(sizes, old)):
        asked, found = (" ".join(map(str, channels)) for channels in (sizes, old))
        raise ValueError(
            f"--init_hidden_sizes {asked}: the model to start from has {found}. Give as many levels, none of fewer channels."
        )
    config = HandUNetConfig(**{**model.config.to_diff_dict(), "hidden_sizes": sizes, "classifier_size": 0})
    wide = HandUNetForPoseEstimation(config)
    with torch.no_grad():
        for level in range(len(sizes)):
            own, read = torch.arange(old[level]), torch.arange(old[level - 1] if level else model.config.num_channels)
            _widen_block(wide.down[level], model.down[level], read, own)
            if level < len(sizes) - 1:
                read = torch.cat([torch.arange(old[level + 1]), sizes[level + 1] + own])  # from below, then beside
                number = len(sizes) - 2 - level
                _widen_block(wide.up[number], model.up[number], read, own)
        wide.head.weight.zero_()[:, : old[0]] = model.head.weight
    return wide


def _widen_block(wide: nn.Module, block: nn.Module, read: torch.Tensor, own: torch.Tensor) -> None:
    """Copy the weights of `block` into `wide`: to its input channels `read` and its output channels `own`."""
    for mine, its, inputs in zip(wide, block, (read, read, None, own, own, None)):
        if isinstance(mine, nn.BatchNorm2d):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(mine, name)[inputs] = getattr(its, name)
        elif isinstance(mine, nn.Conv2d):
            mine.weight[own] = 0
            mine.weight[own[:, None], inputs] = its.weight


def load_any_model(name: str, auto_class=AutoModelForPoseEstimation) -> HandUNetForPoseEstimation | HandUNetForObjectDetection:
    """The HandUNet `name`, a folder or an id on the Hub, with this package's code; for a detector give its auto class."""
    try:
        return auto_class.from_pretrained(name, trust_remote_code=False)
    except ValueError as error:
        if "do not fit" in str(error):
            raise
        raise ValueError(f"{name} is not a HandUNet that this version can load: {error}") from error


def load_processor(name: str) -> HandUNetImageProcessor:
    """The processor of the HandUNet `name`, or the default one for a folder that has none.

    Raises `ValueError` if it normalises in another way than training and scoring do ([`training.inputs.normalize`]).
    """
    default = HandUNetImageProcessor()
    if os.path.isdir(name) and not os.path.exists(os.path.join(name, "preprocessor_config.json")):
        return default
    processor = HandUNetImageProcessor.from_pretrained(name)  # a damaged file is an error
    for setting in ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"):
        found, expected = (np.asarray(getattr(one, setting)).tolist() for one in (processor, default))
        if found != expected:
            raise ValueError(
                f"{name} normalises by {setting} {found}, and train.py by {expected}: it can be used, but train.py can "
                "neither score it nor train it."
            )
    return processor
