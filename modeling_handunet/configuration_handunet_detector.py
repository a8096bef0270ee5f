"""What a set of detector weights means: the network's shape and the hands that it tells apart."""

from .versions import MINIMUM_TRANSFORMERS  # noqa: F401  comes first, because it refuses an older transformers

# isort: split
from huggingface_hub.dataclasses import strict

from .configuration_handunet import SavedConfig

# Far beyond any network of this kind, so that a hostile file is refused before it takes memory or time.
MAX_IMAGE_SIZE = 2048
MAX_LEVELS = 10
MAX_CHANNELS = 1024
SIDES = ("right hand", "left hand")


@strict
class HandUNetDetectorConfig(SavedConfig):
    r"""Configuration of a [`HandUNetForObjectDetection`].

    Args:
        image_size (`int`, defaults to 320):
            Side of the square input in pixels; a multiple of `2 ** len(hidden_sizes)`.
        num_channels (`int`, defaults to 3):
            Channels of the input image.
        hidden_sizes (`tuple[int]`, defaults to `(16, 32, 64, 128, 128, 128)`):
            Channels on the way down.  The first level has half the image's resolution, each further one half of that.
        decoder_sizes (`tuple[int]`, defaults to `(64, 48, 32, 32)`):
            Channels on the way up from the deepest level.  Their number fixes the resolution of the answers: as many
            levels above the deepest one.
        centre_spread (`float`, defaults to 0.12):
            Standard deviation of a target centre's Gaussian along each axis, as a share of the box's side.
        id2label (`dict[int, str]`):
            Names of the two labels, 0 the right hand and 1 the left hand.

    Raises `huggingface_hub.errors.StrictDataclassError` or `ValueError` when a field has the wrong type, exceeds its
    bound or does not fit another one, and `OSError` for a file that is missing or no JSON object.
    """

    model_type = "handunet_detector"

    image_size: int = 320
    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (16, 32, 64, 128, 128, 128)
    decoder_sizes: list[int] | tuple[int, ...] = (64, 48, 32, 32)
    centre_spread: float = 0.12

    def __post_init__(self, **kwargs):
        if self.id2label is None:
            self.id2label = dict(enumerate(SIDES))
            self.label2id = {name: index for index, name in enumerate(SIDES)}
        self.hidden_sizes, self.decoder_sizes = tuple(self.hidden_sizes), tuple(self.decoder_sizes)
        super().__post_init__(**kwargs)

    @property
    def stride(self) -> int:
        """Pixels of the input a cell of the answers has, along each axis."""
        return 2 ** (len(self.hidden_sizes) - len(self.decoder_sizes))

    @property
    def multiple(self) -> int:
        """The side of a photograph that is read is a multiple of this."""
        return 2 ** len(self.hidden_sizes)

    def validate_architecture(self):
        """Check the rules between fields; each message says what to change."""
        for name in ("hidden_sizes", "decoder_sizes"):
            sizes = getattr(self, name)
            if not 0 < len(sizes) <= MAX_LEVELS or not 0 < min(sizes) <= max(sizes) <= MAX_CHANNELS:
                raise ValueError(f"{name}={sizes}: give 1 to {MAX_LEVELS} levels of 1 to {MAX_CHANNELS} channels.")
        if len(self.decoder_sizes) >= len(self.hidden_sizes):
            raise ValueError(
                f"decoder_sizes={self.decoder_sizes} has {len(self.decoder_sizes)} levels: give fewer than the "
                f"{len(self.hidden_sizes)} hidden_sizes."
            )
        if not 0 < self.image_size <= MAX_IMAGE_SIZE or self.image_size % self.multiple:
            raise ValueError(
                f"image_size={self.image_size}: {len(self.hidden_sizes)} hidden_sizes need a multiple of {self.multiple}, at "
                f"most {MAX_IMAGE_SIZE}."
            )
        if not 0 < self.num_channels <= MAX_CHANNELS:
            raise ValueError(f"num_channels={self.num_channels}: give 1 to {MAX_CHANNELS}.")
        if not 0 < self.centre_spread < 0.5:
            raise ValueError(f"centre_spread={self.centre_spread}: give a share of the box's side above 0 and below 0.5.")
        if sorted(self.id2label) != [0, 1]:
            raise ValueError(f"id2label={self.id2label}: give two names, 0 for right hands and 1 for left hands.")


__all__ = ["HandUNetDetectorConfig"]
