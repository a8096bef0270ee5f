"""The pictures of a run: losses, errors by joint, success rate, and images with the truth and the prediction."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from modeling_handunet import KEYPOINT_NAMES, draw_hand
from modeling_handunet.crops import Crop
from modeling_handunet.keypoints import keypoint_color

ZOOM = 2
GRID = "#dddddd"
SIDE_COLORS = ("#ff8c1a", "#3c9cff")  # of a right and of a left hand


def draw_figures(
    folder: Path, metrics: dict, arrays: dict[str, np.ndarray], test: Dataset, loss_name: str = "loss"
) -> list[Path]:
    """Draw all figures of a run into `folder`; returns their files.  `loss_name` labels the curves of the loss."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = [
        draw_losses(folder / "losses.png", metrics["history"], loss_name),
        draw_joint_errors(folder / "joint_errors.png", metrics["test"]),
        draw_success_rate(folder / "success_rate.png", metrics["test"], metrics["mean_pose"]),
        draw_predictions(folder / "predictions.png", arrays, test),
        draw_failures(folder / "failures.png", arrays, test),
    ]
    if "calibration" in metrics:
        figures.append(draw_reliability(folder / "reliability.png", metrics["calibration"]))
    if "test_by_group" in metrics:
        figures.append(draw_group_errors(folder / "group_errors.png", metrics["test_by_group"], metrics["grouped_by"]))
    return figures


def _axes(title: str, x: str, y: str):
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, path: Path) -> Path:
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path


def draw_losses(path: Path, history: list[dict], loss_name: str) -> Path:
    """Training and validation loss by epoch: the same function on both."""
    figure, axes = _axes("Loss by epoch", "epoch", loss_name)
    epochs = [entry["epoch"] for entry in history]
    axes.plot(epochs, [entry["train_loss"] for entry in history], "o-", color="#888888", label="training (augmented)")
    axes.plot(epochs, [entry["validation"]["loss"] for entry in history], "o-", color="#3c78d8", label="validation")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, 1.1 * axes.dataLim.y1)
    axes.legend(frameon=False)
    return _save(figure, path)


def draw_joint_errors(path: Path, figures: dict) -> Path:
    """Mean error of each joint on the test split."""
    errors = figures["mean_error_percent_per_keypoint"]
    figure, axes = _axes("Mean error by joint, test split", "", "% of the image side")
    colors = [tuple(channel / 255 for channel in keypoint_color(index)) for index in range(len(KEYPOINT_NAMES))]
    heights = [np.nan if error is None else error for error in errors]
    axes.bar(range(len(errors)), heights, color=colors, edgecolor="#555555", linewidth=0.5)
    names = [name.replace("_", " ") for name in KEYPOINT_NAMES]
    axes.set_xticks(range(len(errors)), names, rotation=60, ha="right", fontsize=8)
    axes.grid(visible=False, axis="x")
    axes.axhline(figures["mean_error_percent"], color="#333333", linestyle="--", linewidth=1)
    return _save(figure, path)


def draw_success_rate(path: Path, figures: dict, baseline: dict) -> Path:
    """Share of the test images whose mean error is below a threshold, for the model and for the mean pose."""
    figure, axes = _axes("Success rate, test split", "threshold on the mean error, % of the image side", "share of images")
    for result, label, color in ((figures, "model", "#3c78d8"), (baseline, "always the mean pose", "#bbbbbb")):
        thresholds = result["success_rate_thresholds_percent"]
        axes.plot(thresholds, result["success_rate"], label=label, color=color, linewidth=2)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="lower right")
    return _save(figure, path)


def draw_group_errors(path: Path, by_group: dict[str, dict], grouped_by: str) -> Path:
    """Mean error on each group of the test split, the best first, with the number of hands."""
    figure, axes = _axes(f"Mean error by {grouped_by}, test split", "% of the image side", "")
    ranked = sorted(by_group.items(), key=lambda item: item[1]["mean_error_percent"])
    names = [f"{name.replace('_', ' ')} ({figures['num_hands']})" for name, figures in ranked]
    axes.barh(names, [figures["mean_error_percent"] for _, figures in ranked], color="#3c78d8")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return _save(figure, path)


def draw_reliability(path: Path, calibration: dict) -> Path:
    """Share of correct keypoints for each score, on validation and test.  A perfectly calibrated model is on the diagonal."""
    within = calibration["correct_within"]
    figure, axes = _axes("What a score is worth", "score", f"share of keypoints within {within:g} of the hand's box")
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linestyle="--", linewidth=1)
    for split, color in (("validation", "#888888"), ("test", "#3c78d8")):
        rows, error = calibration[split]["reliability"], calibration[split]["expected_calibration_error"]
        sizes = 12 + 180 * np.sqrt([row["count"] / sum(row["count"] for row in rows) for row in rows])
        score, share = [row["score"] for row in rows], [row["share"] for row in rows]
        axes.plot(score, share, color=color, linewidth=1)
        axes.scatter(score, share, sizes, color=color, label=f"{split}, calibration error {error:.3f}", alpha=0.8)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, loc="upper left", markerscale=0.5)
    return _save(figure, path)


def rank_hands(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the hands that have a visible keypoint, the smallest mean error first, and all mean errors (N,) in px."""
    distance = np.linalg.norm(arrays["predictions"] - arrays["keypoints"], axis=2)  # (N, 21)
    seen = arrays["visibility"]
    error = np.where(seen, distance, 0).sum(1) / np.where(seen.any(1), seen.sum(1), np.nan)
    ranked = np.argsort(error)
    return ranked[np.isfinite(error[ranked])], error


def draw_predictions(path: Path, arrays: dict[str, np.ndarray], test: Dataset, count: int = 6) -> Path:
    """Test images from the best to the worst tenth: the truth above, the prediction below."""
    ranked, _ = rank_hands(arrays)
    places = np.linspace(0.05, 0.95, min(count, len(ranked))) * (len(ranked) - 1)
    return _draw_pairs(path, arrays, test, [round(place) for place in places])


def draw_failures(path: Path, arrays: dict[str, np.ndarray], test: Dataset, count: int = 6) -> Path:
    """The worst test images, the very worst last: the truth above, the prediction below."""
    ranked, _ = rank_hands(arrays)
    return _draw_pairs(path, arrays, test, list(range(len(ranked)))[-count:])


def draw_contact_sheet(path: Path, arrays: dict[str, np.ndarray], test: Dataset, most: int = 100, columns: int = 10) -> Path:
    """Predictions over the hands, each with its error over the hand's box, the largest first; truth as white dots."""
    ranked, errors = rank_hands(arrays)
    errors = errors / arrays["box_size"]
    tiles = []
    for row in sorted(ranked, key=lambda row: -errors[row])[:most]:
        image = Image.fromarray(test[int(arrays["index"][row])]["image"].permute(1, 2, 0).contiguous().numpy())
        image = image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.BICUBIC)
        tile = draw_hand(image, arrays["predictions"][row] * ZOOM, arrays["scores"][row])
        pen = ImageDraw.Draw(tile)
        for x, y in arrays["keypoints"][row][arrays["visibility"][row]] * ZOOM:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill="white", outline="black")
        text = f"{errors[row]:.3f}"
        pen.text((6, 6), text, fill="white", stroke_width=2, stroke_fill="black")
        tiles.append(np.asarray(tile))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[first : first + columns], 1) for first in range(0, len(tiles), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)
    return path


def _draw_pairs(path: Path, arrays: dict[str, np.ndarray], test: Dataset, places: list[int]) -> Path:
    """The hands at these places of the ranking, side by side: the truth above, the prediction below."""
    ranked, error = rank_hands(arrays)
    columns = []
    for place in places:
        row = int(ranked[place])
        item = test[int(arrays["index"][row])]
        image = Image.fromarray(item["image"].permute(1, 2, 0).contiguous().numpy())
        image = image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.BICUBIC)
        truth = np.where(arrays["visibility"][row][:, None], arrays["keypoints"][row], np.nan)
        pair = [draw_hand(image, truth * ZOOM), draw_hand(image, arrays["predictions"][row] * ZOOM, arrays["scores"][row])]
        caption = f"{error[row] / item['image'].shape[-1]:.1%} off, better than {1 - place / max(len(ranked) - 1, 1):.0%}"
        ImageDraw.Draw(pair[1]).text((6, pair[1].height - 18), caption, fill="white", stroke_width=2, stroke_fill="black")
        ImageDraw.Draw(pair[0]).text((6, 6), "truth", fill="white", stroke_width=2, stroke_fill="black")
        ImageDraw.Draw(pair[1]).text((6, 6), "prediction", fill="white", stroke_width=2, stroke_fill="black")
        columns.append(np.concatenate([np.asarray(picture) for picture in pair], axis=0))
    Image.fromarray(np.concatenate(columns, axis=1)).save(path)
    return path


def draw_detections(path: Path, arrays: dict[str, np.ndarray], test: Dataset, threshold: float, count: int = 12) -> Path:
    """Test photographs with the hands that were found, right ones orange and left ones blue, and a line towards the
    fingers; true boxes are white."""
    rows = np.linspace(0, len(arrays["index"]) - 1, min(count, len(arrays["index"]))).round().astype(int)
    tiles = []
    for row in rows:
        picture = Image.fromarray(test[int(arrays["index"][row])]["image"].permute(1, 2, 0).contiguous().numpy())
        height, width = (int(length) for length in arrays["size"][row])
        crop, pen = Crop.of_image(width, height, picture.width), ImageDraw.Draw(picture)
        for box in arrays["true_boxes"][row][arrays["present"][row]] * picture.width:
            pen.rectangle(tuple(box.tolist()), outline="white")
        for hand in np.flatnonzero(arrays["scores"][row] >= threshold):
            corners = crop.to(arrays["boxes"][row][hand].astype(np.float64).reshape(2, 2))
            color = SIDE_COLORS[int(arrays["labels"][row][hand])]
            pen.rectangle(tuple(corners.flatten().tolist()), outline=color, width=2)
            middle, reach = corners.mean(0), np.ptp(corners, axis=0).max() / 2
            tip = middle + reach * arrays["directions"][row][hand]
            pen.line((*middle.tolist(), *tip.tolist()), fill=color, width=2)
            pen.text((corners[0, 0] + 3, corners[0, 1] + 2), f"{arrays['scores'][row][hand]:.2f}", fill=color)
        tiles.append(np.asarray(picture))
    columns = min(4, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    lines = [np.concatenate(tiles[first : first + columns], 1) for first in range(0, len(tiles), columns)]
    Image.fromarray(np.concatenate(lines)).save(path)
    return path
