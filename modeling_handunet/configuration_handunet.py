"""What a set of HandUNet weights means: the network's shape and the heatmaps that it was trained to draw."""

from typing import ClassVar

from .versions import MINIMUM_TRANSFORMERS  # noqa: F401, I001  first, since it refuses an older transformers
import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from .keypoints import KEYPOINT_NAMES, SKELETON

# Far beyond any network of this kind, so that a hostile file is refused before it takes memory or time.
MAX_IMAGE_SIZE = 1024
MAX_LEVELS = 11
MAX_KEYPOINTS = 1024
MAX_PARAMETERS = 100_000_000
MAX_FEATURES = 2**25  # values that a block reads for one image: 128 MiB
MAX_NESTING = 50

# Settings that transformers reads of any model: attributes of the class that a file may give all the same, and types
# that it takes for granted.
TRANSFORMERS_OWN = ("model_type", "name_or_path", "num_labels", "output_attentions", "torch_dtype")
SETTING_TYPES = {
    "attn_implementation": (str, dict, type(None)),
    "experts_implementation": (str, dict, type(None)),
    "quantization_config": (dict, QuantizationConfigMixin, type(None)),
}


def check_settings(settings: object, where: object) -> None:
    """Raise `OSError` unless what was read from a JSON file is an object that is not nested deeper than any setting."""
    if not isinstance(settings, dict):
        raise OSError(f"The settings in {where} are no JSON object: save or download them again.")
    level: list = [settings]
    for _ in range(MAX_NESTING):
        containers = [value.values() if isinstance(value, dict) else value for value in level]
        level = [item for items in containers for item in items if isinstance(item, (dict, list))]
    if level:
        raise OSError(f"The settings in {where} are nested more than {MAX_NESTING} deep: save or download them again.")


@strict
class HandUNetConfig(PreTrainedConfig):
    r"""Configuration of a [`HandUNetForPoseEstimation`].

    Args:
        image_size (`int`, defaults to 128):
            Side of the square input and of the heatmaps, in pixels; a multiple of `2 ** (len(hidden_sizes) - 1)`, at
            most 1024.
        num_channels (`int`, defaults to 3):
            Channels of the input image.
        hidden_sizes (`tuple[int]`, defaults to `(16, 32, 64, 128)`):
            Channels of each level of the U-Net, from the full resolution down; each further level halves it.  At most
            11 levels, 100 million parameters, and 2**25 features for one image at any resolution.
        sigma (`float`, defaults to 3.0):
            Standard deviation of the target heatmaps' Gaussians, in pixels of the input.
        skeleton (`tuple[tuple[int, int]]`):
            Bones as pairs of keypoint indices; for drawing only.
        id2label (`dict[int, str]`):
            Keypoint names by index; their number is the number of heatmaps, at most 1024.  Defaults to the 21 of a
            hand.

    Raises `huggingface_hub.errors.StrictDataclassError` or `ValueError` when a field has the wrong type, exceeds its
    bound or does not fit another one, and `OSError` for a file that is missing or no JSON object.
    """

    model_type = "handunet"
    # Whether transformers knows the pipeline (see registration.py) and need not look for its code in a model's folder.
    pipeline_is_registered: ClassVar[bool] = False

    image_size: int = 128
    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (16, 32, 64, 128)
    sigma: float | int = 3.0
    skeleton: list[list[int]] | tuple[tuple[int, int], ...] | tuple[list[int], ...] = SKELETON

    def __post_init__(self, **kwargs):
        if self.pipeline_is_registered:
            kwargs.pop("custom_pipelines", None)
        for dtype in (self.dtype, kwargs.get("torch_dtype")):
            if not isinstance(dtype, (torch.dtype, type(None))):
                if not isinstance(getattr(torch, str(dtype), None), torch.dtype):
                    raise ValueError(f"dtype={dtype!r}: give the name of a torch type, such as 'float32'.")
        if self.id2label is not None:
            try:
                self.id2label = {int(index): str(name) for index, name in self.id2label.items()}
            except (AttributeError, TypeError, ValueError):
                raise ValueError(f"id2label={self.id2label!r}: give a dict from keypoint indices to names.") from None
            if kwargs.pop("num_labels", None) not in (None, len(self.id2label)):  # transformers would make new names
                raise ValueError(f"num_labels is another number than that of the {len(self.id2label)} names in id2label.")
        elif (count := kwargs.get("num_labels")) is not None:
            if type(count) is not int or not 0 < count <= MAX_KEYPOINTS:
                raise ValueError(f"num_labels={count!r}: give a number of keypoints from 1 to {MAX_KEYPOINTS}.")
        else:
            self.id2label = dict(enumerate(KEYPOINT_NAMES))
        if not isinstance(kwargs.get("auto_map", {}), dict):
            raise ValueError(f"auto_map={kwargs['auto_map']!r}: give a dict from auto classes to classes, or leave it out.")
        for name, value in kwargs.items():
            if value is not None and name not in TRANSFORMERS_OWN and hasattr(type(self), name):
                # transformers would put it in place of the class's own methods and settings
                raise ValueError(f"{name}={value!r}: a HandUNet has no such setting, leave it out.")
            if not isinstance(value, SETTING_TYPES.get(name, object)):
                raise ValueError(f"{name}={value!r}: give it as transformers saves it, or leave it out.")
        if self.id2label is not None:
            self.label2id = {name: index for index, name in self.id2label.items()}
        self.hidden_sizes = tuple(self.hidden_sizes)
        self.skeleton = tuple((int(parent), int(child)) for parent, child in self.skeleton)
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As transformers' own; raises `OSError` where there is no file, instead of answering the defaults."""
        settings, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not settings:
            raise OSError(f"There is no config.json, or an empty one, in {pretrained_model_name_or_path}: save the model anew.")
        return settings, kwargs

    @classmethod
    def _dict_from_json_file(cls, json_file):
        try:
            settings = super()._dict_from_json_file(json_file)
        except RecursionError:
            raise OSError(f"The settings in {json_file} are nested too deeply: save or download them again.") from None
        check_settings(settings, json_file)
        if "configuration_files" in settings:
            raise OSError(f"{json_file} names configuration_files, which a HandUNet has none of: save or download it again.")
        return settings

    @property
    def num_keypoints(self) -> int:
        """Number of keypoints, and so of heatmaps."""
        return len(self.id2label)

    def validate_architecture(self):
        """Check the rules between fields; each message says what to change."""
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes={self.hidden_sizes}: give at least one level, each of 1 channel or more.")
        if len(self.hidden_sizes) > MAX_LEVELS:
            raise ValueError(f"hidden_sizes has {len(self.hidden_sizes)} levels: give at most {MAX_LEVELS}.")
        if self.image_size > MAX_IMAGE_SIZE:
            raise ValueError(f"image_size={self.image_size}: give at most {MAX_IMAGE_SIZE} pixels.")
        stride = 2 ** (len(self.hidden_sizes) - 1)
        if self.image_size < 1 or self.image_size % stride:
            raise ValueError(
                f"image_size={self.image_size} does not fit {len(self.hidden_sizes)} hidden_sizes, which halve the "
                f"image {len(self.hidden_sizes) - 1} times: make it a multiple of {stride}, or give fewer levels."
            )
        if self.num_channels < 1:
            raise ValueError(f"num_channels={self.num_channels}: an image has at least 1 channel.")
        if not 0 < self.sigma <= self.image_size:
            raise ValueError(f"sigma={self.sigma}: give a number of pixels above 0 and at most the image_size.")
        if sorted(self.id2label) != list(range(len(self.id2label))) or not self.id2label:
            raise ValueError(f"id2label has the indices {sorted(self.id2label)}: number the keypoints from 0 on.")
        if self.num_keypoints > MAX_KEYPOINTS:
            raise ValueError(f"id2label names {self.num_keypoints} keypoints: give at most {MAX_KEYPOINTS}.")
        names = list(self.id2label.values())
        if len(set(names)) != len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"id2label repeats {repeated}: give each keypoint a name of its own.")
        for bone in self.skeleton:
            if len(bone) != 2 or not all(0 <= index < len(names) for index in bone):
                raise ValueError(
                    f"skeleton has the bone {tuple(bone)}: name two keypoints between 0 and {len(names) - 1}, or give "
                    "an empty skeleton."
                )
        self._validate_costs()

    def _validate_costs(self):
        sizes = self.hidden_sizes
        blocks = [*zip((self.num_channels, *sizes), sizes), *((size + deep, size) for size, deep in zip(sizes, sizes[1:]))]
        parameters = sum(9 * (a + b) * b + 2 * (a + b) for a, b in blocks) + 9 * sizes[0] * self.num_keypoints
        if parameters > MAX_PARAMETERS:
            raise ValueError(f"hidden_sizes={sizes} make {parameters} parameters: give at most {MAX_PARAMETERS}.")
        pixels = [(self.image_size >> level) ** 2 for level in range(len(sizes))]
        channels = [size + deep for size, deep in zip(sizes, (*sizes[1:], 0))]
        channels[0] = max(channels[0], self.num_channels, self.num_keypoints)
        features = max(count * area for count, area in zip(channels, pixels))
        if features > MAX_FEATURES:
            raise ValueError(
                f"hidden_sizes={sizes} at image_size={self.image_size} make {features} features for one image: give "
                f"fewer channels or a smaller image, for at most {MAX_FEATURES}."
            )



__all__ = ["HandUNetConfig"]
