"""From a batch of samples to what a step needs: pictures, and the targets that the network learns to draw.

[`gaussian_targets`] is the one place where heatmaps are made.  To train on a teacher's heatmaps or soft labels, give `Run`
another `make_targets`, whose "labels" they are.
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

# Samples for which a GPU makes pictures at a time, at most: with 2048 it moves memory rather than wait for orders.
SAMPLES_AT_ONCE = 2048
# Bytes that making a scene takes, for each of its pixels: 4 MB at 128 px.
SCENE_BYTES_PER_PIXEL = 250

# Heatmaps (B, 21, S, S) in [0, 1] from a batch's inputs.
MakeHeatmaps = Callable[[Inputs], Tensor]


def gaussian_targets(inputs: Inputs, sigma: float, quantize: bool = False) -> Tensor:
    """Heatmaps (B, 21, S, S) with a Gaussian at each keypoint, or on its pixel's centre; empty for NaN keypoints."""
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
    return (images - mean).div_(std)  # in place: half of the time is fresh memory


def with_inputs(
    batches: Iterable[dict], source: Source, seed: int, epoch: int, at_once: int = 1
) -> Iterator[tuple[dict, Inputs | DetectionInputs]]:
    """Each batch with its inputs, made for `at_once` batches at a time."""

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
    """For how many batches pictures are made together: as many as a quarter of a GPU's free memory takes; otherwise one.

    A scene takes thousands of small operations, which a GPU does as fast for thousands of samples as for one.  Prefetching
    would set `accelerator.gradient_state.end_of_dataloader` early and break gradient accumulation, so then it is one.
    """
    if device.type != "cuda" or args.optimisation.gradient_accumulation_steps > 1:
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    samples = min(SAMPLES_AT_ONCE, free // (4 * SCENE_BYTES_PER_PIXEL * args.model.image_size**2))
    return max(1, samples // args.optimisation.batch_size)


__all__ = ["Inputs", "MakeHeatmaps", "batches_at_once", "gaussian_targets", "normalize", "targets_of", "with_inputs"]
