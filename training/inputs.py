"""From a batch of samples to what a step needs: pictures, and the targets that the network learns to draw.

[`gaussian_targets`] is the one place where heatmaps are made.  Change it to train on a teacher's heatmaps or soft
labels.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from dataset_script.augmentation import augmentation_keys
from dataset_script.sources import DetectionInputs, Inputs, Source
from modeling_handunet import HandUNetImageProcessor, render_heatmaps
from training.arguments import Arguments

# A GPU makes the pictures of at most so many samples at once.  With 2048 it no longer waits for the CPU's commands.
SAMPLES_AT_ONCE = 2048
# GPU memory that making a scene takes, in bytes per pixel of the scene: 4 MB at 128 px.
SCENE_BYTES_PER_PIXEL = 250

# Heatmaps (B, 21, S, S) in [0, 1] from a batch's inputs.
MakeHeatmaps = Callable[[Inputs], Tensor]


def gaussian_targets(inputs: Inputs, sigma: float, quantize: bool = False) -> Tensor:
    """Heatmaps (B, 21, S, S): a Gaussian at each keypoint, or (`quantize`) at its pixel's centre; zeros if it is NaN."""
    return render_heatmaps(inputs.keypoints, inputs.images.shape[-1], sigma, quantize=quantize)


def targets_of(args: Arguments) -> MakeHeatmaps:
    """The targets that the settings of a run ask for."""
    return functools.partial(gaussian_targets, sigma=args.model.sigma, quantize=args.optimisation.targets == "quantized")


def normalize(images: Tensor) -> Tensor:
    """8-bit or [0, 1] float crops (B, 3, S, S) to the network's input, as the image processor does."""
    if not images.is_floating_point():
        images = images.float().div_(255)
    mean = images.new_tensor(HandUNetImageProcessor.image_mean)[:, None, None]
    std = images.new_tensor(HandUNetImageProcessor.image_std)[:, None, None]
    return (images - mean).div_(std)  # in place: allocating memory would take half of the time


def with_inputs(
    batches: Iterable[dict], source: Source, seed: int, epoch: int, at_once: int = 1
) -> Iterator[tuple[dict, Inputs | DetectionInputs]]:
    """Each batch with its inputs.  The inputs of `at_once` batches are made together."""

    def make(batch: dict) -> Inputs | DetectionInputs:
        return source.make_inputs(batch, augmentation_keys(seed, epoch, batch["index"]))

    batches = iter(batches)
    while group := list(itertools.islice(batches, at_once)):
        whole = source.join(group) if len(group) > 1 else group[0]
        sizes = [len(batch["index"]) for batch in group]
        made = make(whole)
        parts = zip(*(values.split(sizes) for values in made))
        yield from zip(group, itertools.starmap(type(made), parts))


def batches_at_once(args: Arguments, device: torch.device) -> int:
    """For how many batches pictures are made together: on a GPU as many as fit into a quarter of its free memory, else one.

    A scene takes thousands of small operations.  A GPU needs as long for one sample as for thousands.  With gradient
    accumulation it is one, because reading ahead would set `accelerator.gradient_state.end_of_dataloader` too early.
    """
    if device.type != "cuda" or args.optimisation.gradient_accumulation_steps > 1:
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    samples = min(SAMPLES_AT_ONCE, free // (4 * SCENE_BYTES_PER_PIXEL * args.model.image_size**2))
    return max(1, samples // args.optimisation.batch_size)


__all__ = ["Inputs", "MakeHeatmaps", "batches_at_once", "gaussian_targets", "normalize", "targets_of", "with_inputs"]
