"""HandUNet: a small U-Net from a 128x128 crop of a hand to 21 heatmaps, one per keypoint.

It is a U-Net (Ronneberger et al., https://arxiv.org/abs/1505.04597) with padding, batch normalisation before each
convolution, bilinear upsampling and no biases.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .versions import MINIMUM_TRANSFORMERS  # noqa: F401  comes first, because it refuses an older transformers

# isort: split
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForPoseEstimation, PreTrainedModel
from transformers import initialization as init
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .configuration_handunet import HandUNetConfig
from .losses import HAND_LOSS_WEIGHT, UNLABELED, HeatmapLoss, hand_loss

logger = logging.get_logger(__name__)

# An error names this many tensors that do not fit, and counts the others.
NAMED_TENSORS = 10


def _enumerate(names: list[str]) -> str:
    more = [f"and {len(names) - NAMED_TENSORS} more"] if len(names) > NAMED_TENSORS else []
    return "; ".join(names[:NAMED_TENSORS] + more)


@dataclass
class HandUNetPoseEstimatorOutput(ModelOutput):
    """Output of [`HandUNetForPoseEstimation`].

    loss (`torch.Tensor` of shape `()`): only if `labels` are given.
    heatmaps (`torch.Tensor` of shape `(batch_size, num_keypoints, image_size, image_size)`): values in [0, 1].
    hand_logits (`torch.Tensor` of shape `(batch_size, 3)`): of the [`HandClassifier`], if there is one and it is asked.
    hidden_states (`tuple(torch.Tensor)`): only on request; the output of each `ConvBlock` in the order of the
        computation, down and up again, `(batch_size, hidden_size, height, width)` each.
    """

    loss: Tensor | None = None
    heatmaps: Tensor | None = None
    hand_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class ConvBlock(nn.Sequential):
    """Two times batch normalisation, 3x3 convolution and ReLU: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
        )


class HandClassifier(nn.Module):
    """What a crop shows: a right hand, which is the side that the network reads, a left hand, or no hand.

    It reads the network's deepest features and those one level up: their mean and their maximum, over the whole crop and over
    the middle of it, where the hand should be.  It needs no keypoints to learn, so all hands that have a box can teach it:
    `train.py --boxed_hands` in the same training as the keypoints, or `python -m training.hand_classifier` afterwards, which
    leaves the network as it is.
    """

    def __init__(self, channels: int, hidden_size: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(4 * channels, affine=False),
            nn.Linear(4 * channels, hidden_size),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden_size, 3),
        )

    def forward(self, *maps: Tensor) -> Tensor:
        """Logits (B, 3) from maps of features (B, channels of this map, height, width)."""
        return self.layers(self.pool(*maps))

    @staticmethod
    def pool(*maps: Tensor) -> Tensor:
        """What the layers read, (B, 4 * channels of all maps): logarithms, as one feature can be a thousand times another."""
        pooled = []
        for features in maps:
            border = features.shape[-1] // 4
            middle = features[..., border : features.shape[-2] - border, border : features.shape[-1] - border]
            for part in (features.flatten(2), middle.flatten(2)):
                pooled += [part.mean(2), part.amax(2)]
        return torch.cat(pooled, 1).log1p()  # none is below 0


class HandUNetPreTrainedModel(PreTrainedModel):
    """Loads, saves and initialises the network's weights."""

    config_class = HandUNetConfig
    base_model_prefix = "handunet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["ConvBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """torch's own initialisation of convolutions, which transformers would replace by N(0, 0.02)."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, ignore_mismatched_sizes=False, output_loading_info=False, **kwargs
    ):
        """As in transformers, but strict.

        Raises `ValueError` naming each tensor that is missing, unexpected or of another shape, and each that holds NaN or
        infinite values.  With `ignore_mismatched_sizes=True` those that do not fit are initialised instead, and logged.
        Raises `OSError` for a damaged file of weights, and for pickled weights unless `use_safetensors=False` asks for them.
        """
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            folder, reason = pretrained_model_name_or_path, str(error)[:500]
            raise OSError(f"The weights in {folder} are damaged, save or download them again: {reason}") from error
        problems = [f"missing: {key}" for key in sorted(info["missing_keys"])]
        problems += [f"unexpected: {key}" for key in sorted(info["unexpected_keys"])]
        problems += [
            f"{key} has shape {tuple(found)}, expected {tuple(expected)}"
            for key, found, expected in sorted(info["mismatched_keys"])
        ]
        if problems and not ignore_mismatched_sizes:
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} do not fit this {cls.__name__}: "
                f"{_enumerate(problems)}. Load another checkpoint or configuration, or pass "
                "ignore_mismatched_sizes=True to initialise what does not fit."
            )
        if problems:
            logger.warning(f"Initialised or left out, from {pretrained_model_name_or_path}: {'; '.join(problems)}.")
        tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.device.type != "meta"}
        not_finite = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if not_finite:
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} hold NaN or infinite values in {_enumerate(not_finite)}: "
                "load another checkpoint."
            )
        model.to(memory_format=torch.channels_last)  # otherwise each call would reorder the weights
        return (model, info) if output_loading_info else model


class HandUNetForPoseEstimation(HandUNetPreTrainedModel):
    """The U-Net with its heatmap head.

        >>> model = HandUNetForPoseEstimation(HandUNetConfig())
        >>> model(torch.rand(1, 3, 128, 128)).heatmaps.shape
        torch.Size([1, 21, 128, 128])

    `loss_class` makes the loss from `config.sigma`; see losses.py for how to train on another one.
    """

    loss_class: ClassVar[type[nn.Module]] = HeatmapLoss

    def __init__(self, config: HandUNetConfig):
        super().__init__(config)
        sizes = config.hidden_sizes
        self.down = nn.ModuleList(ConvBlock(a, b) for a, b in zip((config.num_channels, *sizes), sizes))
        self.up = nn.ModuleList(ConvBlock(deep + size, size) for size, deep in zip(sizes[-2::-1], sizes[:0:-1]))
        self.head = nn.Conv2d(sizes[0], config.num_keypoints, 3, padding=1, bias=False)
        self.classifier = None
        if config.classifier_size:
            self.add_classifier(config.classifier_size)
        self.loss = self.loss_class(config.sigma)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As [`HandUNetPreTrainedModel`], and `pipeline("keypoint-detection", model=model, ...)` knows the model then."""
        cls.register_task()
        return super().from_pretrained(*args, **kwargs)

    @staticmethod
    def register_task() -> None:
        """Register the pipeline with transformers, which a model needs that was loaded with its own code, without this package.

        The import is against the package's direction, because transformers copies the files that this file imports: the
        pipeline's file must travel with the weights, also when the model is saved again without the package installed.
        """
        from .pipeline_handunet import TASK, HandKeypointDetectionPipeline

        if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
            PIPELINE_REGISTRY.register_pipeline(
                TASK, pipeline_class=HandKeypointDetectionPipeline, pt_model=AutoModelForPoseEstimation, type="image"
            )

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        visibility: Tensor | None = None,
        hand_classes: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> HandUNetPoseEstimatorOutput:
        """From normalised crops to heatmaps.

        Args:
            pixel_values: (B, num_channels, image_size, image_size), as [`HandUNetImageProcessor`] makes them.
            labels: target heatmaps (B, num_keypoints, image_size, image_size) from `render_heatmaps`.
            visibility: (B, num_keypoints) bool, the keypoints that count in the loss; by default all.
            hand_classes: (B,) what each crop shows, as [`hand_loss`] says; the [`HandClassifier`] is taught by them.

        With `labels` alone, the classifier is not asked: they do not teach it.

        Raises `ValueError` when an input's shape does not fit the configuration, and for `hand_classes` that teach nothing.
        """
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != expected:
            raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch, {str(expected)[1:]}.")
        if hand_classes is not None and (labels is None or self.classifier is None):
            raise ValueError("hand_classes teach the hand classifier: give labels, too, and a model with a classifier_size.")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        skips, hidden_states = [], []
        features = pixel_values.contiguous(memory_format=torch.channels_last)  # faster convolutions
        for level, block in enumerate(self.down):
            if level:
                features = nn.functional.max_pool2d(features, 2)
            features = block(features)  # (B, hidden_sizes[level], image_size / 2**level, image_size / 2**level)
            skips.append(features)
        hidden_states.extend(skips)
        skips.pop()
        for block in self.up:
            features = nn.functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
            features = block(torch.cat([features, skips.pop()], dim=1))
            hidden_states.append(features)
        hand_logits = loss = None
        if self.classifier is not None and (labels is None or hand_classes is not None):
            hand_logits = self.classifier(*self.deepest(hidden_states))
        heatmaps = self.head(features).sigmoid()  # (B, num_keypoints, image_size, image_size)
        if labels is not None:
            loss = self.loss(heatmaps, labels, visibility)
            if hand_classes is not None:
                known = (hand_classes != UNLABELED).sum().clamp_min(1)
                loss = loss + HAND_LOSS_WEIGHT * hand_loss(hand_logits, hand_classes).sum() / known
        return HandUNetPoseEstimatorOutput(
            loss=loss,
            heatmaps=heatmaps,
            hand_logits=hand_logits,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )

    def add_classifier(self, hidden_size: int) -> None:
        """Give the model a [`HandClassifier`] that knows nothing yet, in place of an older one."""
        self.config.classifier_size = hidden_size
        self.classifier = HandClassifier(sum(self.config.hidden_sizes[-2:]), hidden_size)

    def deepest(self, hidden_states: Sequence[Tensor]) -> Sequence[Tensor]:
        """Of all hidden states those that the [`HandClassifier`] reads: the deepest level's, and the first on the way up."""
        return hidden_states[len(self.down) - 1 :][:2]

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """As in transformers; `AutoModel` and `pipeline` load the saved folder too, not only `AutoModelForPoseEstimation`."""
        if self._auto_class is not None:
            from .pipeline_handunet import TASK, HandKeypointDetectionPipeline  # against the direction, as above

            model = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
            auto_map = getattr(self.config, "auto_map", None) or {}
            self.config.auto_map = {**auto_map, "AutoModel": model, "AutoModelForPoseEstimation": model}
            implementation = f"pipeline_handunet.{HandKeypointDetectionPipeline.__name__}"
            pipeline = {"impl": implementation, "pt": ["AutoModelForPoseEstimation"], "type": "image"}
            self.config.custom_pipelines = {TASK: pipeline}
        return super().save_pretrained(save_directory, *args, **kwargs)


__all__ = ["HandClassifier", "HandUNetForPoseEstimation", "HandUNetPoseEstimatorOutput", "HandUNetPreTrainedModel"]
