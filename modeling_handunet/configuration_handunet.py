"""What a set of HandUNet weights means: the network's shape and the heatmaps that it was trained to draw."""

from typing import ClassVar

from .versions import MINIMUM_TRANSFORMERS  # noqa: F401  comes first, because it refuses an older transformers

# isort: split
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .keypoints import KEYPOINT_NAMES, SKELETON


class SavedConfig(PreTrainedConfig):
    """A configuration whose file must be there."""

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers, but raises `OSError` if there is no file, instead of answering the defaults."""
        settings, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not settings:
            raise OSError(f"There is no config.json, or an empty one, in {pretrained_model_name_or_path}: save it again.")
        return settings, kwargs


@strict
class HandUNetConfig(SavedConfig):
    r"""Configuration of a [`HandUNetForPoseEstimation`].

    Args:
        image_size (`int`, defaults to 128):
            Side of the square input and of the heatmaps, in pixels; a multiple of `2 ** (len(hidden_sizes) - 1)`.
        num_channels (`int`, defaults to 3):
            Channels of the input image.
        hidden_sizes (`tuple[int]`, defaults to `(16, 32, 64, 128)`):
            Channels of each level of the U-Net, from the full resolution down; each further level halves it.
        sigma (`float`, defaults to 3.0):
            Standard deviation of the target heatmaps' Gaussians, in pixels of the input.
        skeleton (`tuple[tuple[int, int]]`):
            Bones as pairs of keypoint indices; for drawing only.
        id2label (`dict[int, str]`):
            Keypoint names by index; their number is the number of heatmaps.  Defaults to the 21 of a hand.
        classifier_size (`int`, defaults to 0):
            Hidden units of the [`HandClassifier`], which says whether a crop shows a hand and of which side; 0: there is none.
        detector (`str`, defaults to `"detector"`):
            Where the hand detector lies that finds hands for this model: a folder, seen from the model's own folder or
            repository (such as `"../handunet-detector"`), or an id on the Hub, USER/NAME.

    Raises `huggingface_hub.errors.StrictDataclassError` or `ValueError` when a field has the wrong type or does not fit
    another one.
    """

    model_type = "handunet"
    # Whether transformers knows the pipeline (see registration.py) and need not look for its code in a model's folder.
    pipeline_is_registered: ClassVar[bool] = False

    image_size: int = 128
    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (16, 32, 64, 128)
    sigma: float | int = 3.0
    skeleton: list[list[int]] | tuple[tuple[int, int], ...] | tuple[list[int], ...] = SKELETON
    classifier_size: int = 0
    detector: str = "detector"

    def __post_init__(self, **kwargs):
        if self.pipeline_is_registered:
            kwargs.pop("custom_pipelines", None)
        if self.id2label is None and kwargs.get("num_labels") is None:
            self.id2label = dict(enumerate(KEYPOINT_NAMES))
        self.hidden_sizes = tuple(self.hidden_sizes)
        self.skeleton = tuple((int(parent), int(child)) for parent, child in self.skeleton)
        super().__post_init__(**kwargs)
        self.label2id = {name: index for index, name in self.id2label.items()}

    @property
    def num_keypoints(self) -> int:
        """Number of keypoints, which is the number of heatmaps."""
        return len(self.id2label)

    def validate_architecture(self):
        """Check the rules between fields; each message says what to change."""
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes={self.hidden_sizes}: give at least one level, each of 1 channel or more.")
        stride = 2 ** (len(self.hidden_sizes) - 1)
        if self.image_size < 1 or self.image_size % stride:
            raise ValueError(
                f"image_size={self.image_size} does not fit {len(self.hidden_sizes)} hidden_sizes, which halve the "
                f"image {len(self.hidden_sizes) - 1} times: make it a multiple of {stride}, or give fewer levels."
            )
        if self.num_channels < 1:
            raise ValueError(f"num_channels={self.num_channels}: an image has at least 1 channel.")
        if self.classifier_size < 0:
            raise ValueError(f"classifier_size={self.classifier_size}: give a number of hidden units, or 0 for no classifier.")
        if not 0 < self.sigma <= self.image_size:
            raise ValueError(f"sigma={self.sigma}: give a number of pixels above 0 and at most the image_size.")
        if sorted(self.id2label) != list(range(len(self.id2label))) or not self.id2label:
            raise ValueError(f"id2label has the indices {sorted(self.id2label)}: number the keypoints from 0 on.")
        names = list(self.id2label.values())
        if len(set(names)) != len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"id2label repeats {repeated}: give each keypoint a name of its own.")
        for bone in self.skeleton:
            if not all(0 <= index < len(names) for index in bone):
                raise ValueError(
                    f"skeleton has the bone {bone}: name two keypoints between 0 and {len(names) - 1}, or give an empty "
                    "skeleton."
                )


__all__ = ["HandUNetConfig", "SavedConfig"]
