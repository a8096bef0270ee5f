"""Draw figures of the data before training on it.

    python -m dataset_script.explore                                  # the synthetic hands
    python -m dataset_script.explore --data_dir FreiHAND_pub_v2       # FreiHAND's training images
    python -m dataset_script.explore --annotations F --images DIR     # your own photographs

It writes to `outputs/explore`: `samples.png`, hands with their skeletons; `heatmaps.png`, one hand's 21 target heatmaps;
`pca_images.png` and `pca_keypoints.png`, the principal components of 50 images and of their keypoints; `channels.png` and
`channels.json`, the mean and standard deviation of each colour channel.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: figures go to files, with or without a display

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image

from dataset_script.coco import CocoHands
from dataset_script.freihand import FreiHAND
from dataset_script.hand_crops import IMAGE_SIZE, SIGMA, HandCrops
from dataset_script.synthetic import SyntheticHands
from modeling_handunet.drawing import draw_hand
from modeling_handunet.heatmaps import render_heatmaps
from modeling_handunet.keypoints import KEYPOINT_NAMES, SKELETON, keypoint_color

INK, PALE = "#222222", "#8a8a8a"
CHANNEL_COLORS = {"red": "#d1495b", "green": "#4a9d5b", "blue": "#3a6ea5"}
PCA_SAMPLES = 50
MAX_SHOWN = 18
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "figure.titlesize": 14,
    "figure.facecolor": "white",
    "savefig.dpi": 130,
}


@dataclass
class Components:
    """Principal components of N samples of D numbers: the directions of most variance, largest first."""

    mean: np.ndarray  # (D,)
    directions: np.ndarray  # (C, D), orthonormal
    coordinates: np.ndarray  # (N, C), of the samples
    shares: np.ndarray  # (C,), of the total variance


def principal_components(samples: np.ndarray) -> Components:
    """All components of `samples` (N, D) with any variance (at most N - 1), by singular value decomposition.

    The largest entry of a direction is positive, so that figures are comparable.
    """
    samples = np.asarray(samples, np.float64)
    if samples.ndim != 2 or len(samples) < 2:
        raise ValueError(f"principal components need at least 2 samples of some numbers, got shape {samples.shape}")
    mean = samples.mean(0)
    left, scales, directions = np.linalg.svd(samples - mean, full_matrices=False)
    if scales[0] == 0:
        raise ValueError(f"the {len(samples)} samples are all the same, so they have no principal components")
    keep = min(len(samples) - 1, int((scales > scales[0] * 1e-10).sum()))
    left, scales, directions = left[:, :keep], scales[:keep], directions[:keep]
    signs = np.sign(directions[np.arange(keep), np.abs(directions).argmax(1)])
    shares = scales**2 / (scales**2).sum()
    return Components(mean, directions * signs[:, None], left * scales * signs, shares)


def channel_statistics(images: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over all pixels of each channel, of `images` (N, 3, H, W) uint8, in [0, 1]."""
    count = images[:, 0].size
    result = {}
    for channel, name in enumerate(CHANNEL_COLORS):
        histogram = np.bincount(images[:, channel].reshape(-1), minlength=256)
        values = np.arange(256) / 255
        mean = float((histogram * values).sum() / count)
        result[name] = {"mean": mean, "std": float(np.sqrt((histogram * (values - mean) ** 2).sum() / count))}
    return result


def draw_samples(images: np.ndarray, keypoints: np.ndarray) -> plt.Figure:
    """Hands with their skeletons: `images` (N, 3, H, W) uint8, `keypoints` (N, 21, 2) in their pixels or NaN."""
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    size = (2.1 * columns, 2.1 * rows + 0.4)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, points in zip(axes.flat, images, keypoints):
        scale = 3
        picture = Image.fromarray(image.transpose(1, 2, 0))
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
        axis.imshow(draw_hand(picture, points * scale))
    figure.suptitle(f"{len(images)} hands and their 21 keypoints")
    return figure


def draw_heatmaps(image: np.ndarray, keypoints: np.ndarray) -> plt.Figure:
    """One hand's 21 target heatmaps over its image (3, H, W) uint8, with `keypoints` (21, 2) in its pixels."""
    heatmaps = render_heatmaps(torch.from_numpy(keypoints), image.shape[-2:], SIGMA).numpy()  # (21, H, W)
    grey = image.mean(0)
    figure, axes = plt.subplots(3, 7, figsize=(14, 7.1), layout="constrained")
    for axis, heatmap, name in zip(axes.flat, heatmaps, KEYPOINT_NAMES):
        axis.imshow(grey, cmap="gray", vmin=-60, vmax=255)
        glow = plt.get_cmap("magma")(0.25 + 0.75 * heatmap)
        glow[..., 3] = np.clip(heatmap * 2.5, 0, 1)
        axis.imshow(glow)
        axis.set_title(name.replace("_", " "), color=INK)
        axis.axis("off")
    figure.suptitle(f"The 21 heatmaps that the network learns to draw (Gaussians, sigma {SIGMA:g} px)")
    return figure


def draw_image_components(images: np.ndarray) -> plt.Figure:
    """The mean of `images` (N, 3, H, W) uint8, their components, and a map that places them by the first two."""
    parts = principal_components(images.reshape(len(images), -1) / 255.0)
    shape = images.shape[1:]
    figure = plt.figure(figsize=(14, 8.8), layout="constrained")
    grid = figure.add_gridspec(4, 3, width_ratios=[1, 1, 4.4])
    shown = [("mean image", parts.mean)]
    shown += [
        (f"component {index + 1}: {share:.0%}", 0.5 + 0.5 * direction / np.abs(direction).max())
        for index, (direction, share) in enumerate(zip(parts.directions[:7], parts.shares))
    ]
    for index, (title, picture) in enumerate(shown):
        axis = figure.add_subplot(grid[index // 2, index % 2])
        axis.imshow(np.clip(picture.reshape(shape).transpose(1, 2, 0), 0, 1))
        axis.set_title(title, color=INK)
        axis.axis("off")
    axis = figure.add_subplot(grid[:, 2])
    thumbnails = images.transpose(0, 2, 3, 1)
    _scatter(axis, parts, [OffsetImage(thumbnail, zoom=44 / shape[-1]) for thumbnail in thumbnails])
    axis.set_title("the images, placed by their first two components", color=INK)
    needed = int(np.searchsorted(parts.shares.cumsum(), 0.95) + 1)
    figure.suptitle(f"Principal components of {len(images)} images: {needed} explain 95 % of what differs between them")
    return figure


def draw_keypoint_components(keypoints: np.ndarray, size: int) -> plt.Figure:
    """The components of `keypoints` (N, 21, 2), in images of `size` px, as moving hands, and a map of the hands."""
    parts = principal_components(keypoints.reshape(len(keypoints), -1))
    figure = plt.figure(figsize=(14, 8.8), layout="constrained")
    grid = figure.add_gridspec(5, 5, width_ratios=[1, 1, 1, 1, 4.6])
    axis = figure.add_subplot(grid[0, 0])
    _draw_pose(axis, parts.mean.reshape(-1, 2), size)
    axis.set_title("mean hand", color=INK)
    axis = figure.add_subplot(grid[0, 1:4])
    explained = 100 * parts.shares[:12].cumsum()
    axis.bar(np.arange(len(explained)) + 1, explained, color="#3a6ea5", width=0.7)
    axis.set_title("variance explained by the first components, %", color=INK)
    axis.set(xticks=np.arange(len(explained)) + 1, yticks=[0, 50, 95], ylim=(0, 100))
    axis.tick_params(length=0)
    axis.axhline(95, color=PALE, linewidth=0.8, linestyle=":")
    for index in range(min(4, len(parts.shares))):
        deviation = parts.coordinates[:, index].std()
        for column, factor in enumerate((-2, -1, 1, 2)):
            axis = figure.add_subplot(grid[1 + index, column])
            points = (parts.mean + factor * deviation * parts.directions[index]).reshape(-1, 2)
            _draw_pose(axis, points, size)
            if index == 0:
                axis.set_title(f"{factor:+d} deviation{'s' if abs(factor) > 1 else ''}", color=INK)
            if column == 0:
                axis.set_ylabel(f"component {index + 1}: {parts.shares[index]:.0%}")
    axis = figure.add_subplot(grid[:, 4])
    _scatter(axis, parts, None)
    span = np.ptp(parts.coordinates[:, 0])
    for pose, place in zip(keypoints - keypoints.mean(1, keepdims=True), parts.coordinates):
        small = pose / size * span * 0.16
        x, y = place[0], place[1] if len(place) > 1 else 0.0
        for parent, child in SKELETON:
            color = np.array(keypoint_color(child)) / 255 * 0.85
            axis.plot(x + small[[parent, child], 0], y - small[[parent, child], 1], color=color, linewidth=1.3)
    axis.set_aspect("equal", adjustable="datalim")
    axis.set_title("the hands, placed by their first two components", color=INK)
    needed = int(np.searchsorted(parts.shares.cumsum(), 0.95) + 1)
    figure.suptitle(
        f"Principal components of {len(keypoints)} hands' keypoints: {needed} of {keypoints[0].size} numbers explain "
        "95 % of what differs"
    )
    return figure


def draw_channels(images: np.ndarray, statistics: dict[str, dict[str, float]]) -> plt.Figure:
    """The distribution of each channel of `images` (N, 3, H, W) uint8, with its mean and standard deviation."""
    figure, axes = plt.subplots(3, 1, figsize=(8, 6.6), sharex=True, layout="constrained")
    for channel, (axis, (name, color)) in enumerate(zip(axes, CHANNEL_COLORS.items())):
        mean, std = statistics[name]["mean"], statistics[name]["std"]
        share = np.bincount(images[:, channel].reshape(-1), minlength=256) / images[:, channel].size
        axis.fill_between(np.arange(256) / 255, 100 * share, color=color, alpha=0.75, linewidth=0)
        axis.axvspan(mean - std, mean + std, color=color, alpha=0.12, linewidth=0)
        axis.axvline(mean, color=INK, linewidth=1.2)
        axis.set_title(f"{name}: mean {mean:.4f}, standard deviation {std:.4f}", loc="left", color=INK)
        axis.set_ylabel("% of pixels")
        axis.set_ylim(0, 130 * max(np.quantile(share, 0.99), share.max() / 10))  # peaks at black and white may leave the figure
        axis.set_xlim(0, 1)
    axes[-1].set_xlabel("value, 0 black to 1 full (line: mean, band: one standard deviation)")
    figure.suptitle(f"Colour channels of {len(images)} images")
    return figure


def _draw_pose(axis: Axes, points: np.ndarray, size: int) -> None:
    for parent, child in SKELETON:
        color = np.array(keypoint_color(child)) / 255 * 0.85
        axis.plot(*points[[parent, child]].T, color=color, linewidth=2, solid_capstyle="round")
    axis.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color("#dddddd")


def _scatter(axis: Axes, parts: Components, thumbnails: list[OffsetImage] | None) -> None:
    x = parts.coordinates[:, 0]
    y = parts.coordinates[:, 1] if len(parts.shares) > 1 else np.zeros_like(x)
    axis.scatter(x, y, s=0)
    for place, thumbnail in zip(zip(x, y), thumbnails or []):
        axis.add_artist(AnnotationBbox(thumbnail, place, frameon=False, pad=0))
    axis.margins(0.08)
    for name, set_label in zip((0, 1), (axis.set_xlabel, axis.set_ylabel)):
        if name < len(parts.shares):
            set_label(f"component {name + 1} ({parts.shares[name]:.0%} of the variance)")
    axis.tick_params(length=0)
    axis.grid(color="#eeeeee")
    axis.set_axisbelow(True)


def read_hands(dataset, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to `num_images` crops of a dataset, evenly spaced: images (N, 3, 128, 128) uint8 and keypoints (N, 21, 2) in
    their pixels. Keypoints that are not annotated or outside the image are NaN."""
    if len(dataset) == 0:
        raise ValueError("the dataset has no rows, so there is nothing to draw")
    crops = HandCrops(dataset)
    items = [crops[int(index)] for index in _evenly(len(crops), num_images)]
    images = torch.stack([item["image"] for item in items]).numpy()
    keypoints = torch.stack([item["keypoints"] for item in items]).numpy()
    keypoints[~torch.stack([item["visibility"] for item in items]).numpy()] = np.nan
    return images, keypoints


def explore(dataset, output_dir: Path, num_images: int = 300) -> dict[str, dict[str, float]]:
    """Write all figures of a dataset to `output_dir` and return the statistics of its channels.

    They are computed from `num_images` evenly spaced images. Raises ValueError if fewer than 2 hands have all keypoints.
    """
    images, keypoints = read_hands(dataset, num_images)
    whole = np.flatnonzero(np.isfinite(keypoints).all((1, 2)))
    if len(whole) < 2:
        raise ValueError(f"{len(whole)} of {len(images)} hands have all 21 keypoints, at least 2 are needed")
    shown, some = _evenly(len(images), MAX_SHOWN), _evenly(len(images), PCA_SAMPLES)
    complete = whole[_evenly(len(whole), PCA_SAMPLES)]
    statistics = channel_statistics(images)
    output_dir.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        figures = {
            "samples": draw_samples(images[shown], keypoints[shown]),
            "heatmaps": draw_heatmaps(images[whole[0]], keypoints[whole[0]]),
            "pca_images": draw_image_components(images[some]),
            "pca_keypoints": draw_keypoint_components(keypoints[complete], IMAGE_SIZE),
            "channels": draw_channels(images, statistics),
        }
        for name, figure in figures.items():
            figure.savefig(output_dir / f"{name}.png")
            plt.close(figure)
    text = json.dumps({"images": len(images), "channels": statistics}, indent=2)
    (output_dir / "channels.json").write_text(text + "\n")
    return statistics


def _evenly(count: int, most: int) -> np.ndarray:
    """At most `most` indices, spread evenly over `count`."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m dataset_script.explore", description="Draw figures of the data.")
    parser.add_argument("--data_dir", type=Path, help="FreiHAND's folder or zip (default: the synthetic hands)")
    parser.add_argument("--annotations", type=Path, help="a COCO keypoint file, with --images")
    parser.add_argument("--images", type=Path, help="the folder of its photographs")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/explore"))
    parser.add_argument("--num_images", type=int, default=300, help="images to compute the statistics from")
    options = parser.parse_args(arguments)
    if (options.annotations is None) != (options.images is None) or (options.data_dir and options.images):
        parser.error("give --data_dir, or --annotations together with --images, or neither")
    if options.num_images < 2:
        parser.error("--num_images must be at least 2")
    try:
        if options.data_dir is not None:
            splits = FreiHAND(options.data_dir).build()
            dataset = splits["train"] if "train" in splits else next(iter(splits.values()))
        elif options.annotations is not None:
            dataset = CocoHands(options.annotations, options.images).build()["train"]
        else:
            dataset = SyntheticHands(options.num_images)
        statistics = explore(dataset, options.output_dir, options.num_images)
    except (OSError, ValueError) as error:
        raise SystemExit(f"Error: {error}") from None
    for name, values in statistics.items():
        print(f"{name:>6}: mean {values['mean']:.4f}, standard deviation {values['std']:.4f}")
    print(f"Figures: {options.output_dir}/samples.png, heatmaps.png, pca_images.png, pca_keypoints.png, channels.png")


if __name__ == "__main__":
    main()
