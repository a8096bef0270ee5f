"""Detection: from a whole photograph to a box, a side and a direction of each of its hands."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForObjectDetection

from dataset_script.sources import DetectionInputs
from modeling_handunet import HandUNetDetectorImageProcessor, HandUNetForObjectDetection
from modeling_handunet.crops import Crop
from modeling_handunet.detection_decoding import MAX_DETECTIONS
from training import evaluation, figures, report
from training.initial_weights import load_any_model, make_detector
from training.inputs import normalize
from training.tasks.base import Arrays, Task

# Figures that need one count detections from this score on, as the processor does by default.
THRESHOLD = 0.5


class DetectionTask(Task):
    """The hands of a photograph."""

    model_class = HandUNetForObjectDetection
    pipeline = "object-detection"
    things = "photographs"
    selected_by = "ap@0.4"  # boxes that are drawn by eye differ by a finger's width
    higher_is_better = True
    try_it = 'transformers.pipeline("object-detection", model="{model}", trust_remote_code=True)("PHOTO")'
    shape = ("hidden_sizes", "decoder_sizes", "image_size", "num_channels")

    def make_model(self) -> HandUNetForObjectDetection:
        return make_detector(self.args.model, self.args.optimisation.seed)

    def load_model(self, name: str) -> HandUNetForObjectDetection:
        return load_any_model(name, AutoModelForObjectDetection)

    def make_targets(self, inputs: DetectionInputs) -> dict:
        """`labels`, padded."""
        return {"labels": {name: getattr(inputs, name) for name in inputs._fields[1:]}}

    def load_metric(self):
        return evaluation.load_metric("hand_detection")

    @torch.no_grad()
    def predict(self, accelerator, model, loader, make_targets=None) -> Arrays:
        """Arrays over the N photographs.  Detections, in pixels and with room for 100: `scores` (N, 100), 0 for none,
        `labels`, `boxes` and `directions`.  The truth: `true_boxes` (N, M, 4) as shares of the square, `class_labels`,
        `true_directions`, `ignore`, `present` and `size` (N, 2).  And `loss` (N,) and `index` (N,)."""
        model.eval()
        processor = self.make_processor({})
        parts = []
        for batch in loader:
            inputs = DetectionInputs.of_batch(batch)
            outputs = model(pixel_values=normalize(inputs.images))
            labels = (make_targets or self.make_targets)(inputs)["labels"]
            found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=batch["size"])
            part = {
                **{name: values.to(accelerator.device) for name, values in padded(found).items()},
                "true_boxes": inputs.boxes,
                "true_directions": inputs.directions,
                **{name: batch[name] for name in ("class_labels", "ignore", "present", "size", "index")},
                "loss": losses(model.loss, outputs, labels),
            }
            parts.append({name: value.cpu().numpy() for name, value in accelerator.gather_for_metrics(part).items()})
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        order = np.argsort(arrays["index"], kind="stable")
        return {name: values[order] for name, values in arrays.items()}

    def score(self, metric, arrays: Arrays) -> dict:
        predictions, references = [], []
        for row in range(len(arrays["index"])):
            found, there = arrays["scores"][row] > 0, arrays["present"][row]
            height, width = (int(length) for length in arrays["size"][row])
            corners = arrays["true_boxes"][row][there].astype(np.float64).reshape(-1, 2, 2)
            predictions.append({name: arrays[name][row][found] for name in ("boxes", "scores", "labels", "directions")})
            references.append(
                {
                    "boxes": Crop.of_image(width, height, 1).back(corners).reshape(-1, 4),
                    "labels": arrays["class_labels"][row][there],
                    "ignore": arrays["ignore"][row][there],
                    "directions": arrays["true_directions"][row][there],
                    "size": (height, width),
                }
            )
        judged = metric.compute(predictions=predictions, references=references, threshold=THRESHOLD)
        # As a training batch's loss: the sum over its pictures, divided by the number of their hands.
        hands = (arrays["present"] & ~arrays["ignore"]).sum(1)
        loss = (arrays["loss"].astype(np.float64) * np.maximum(hands, 1)).sum() / max(hands.sum(), 1)
        return {"loss": float(loss), **judged}

    def score_by_group(self, metric, arrays: Arrays, groups: Sequence[str]) -> dict[str, dict]:
        names = np.asarray(groups)[arrays["index"]]
        results = {}
        for name in sorted(set(names.tolist())):
            with contextlib.suppress(ValueError):  # no hand to find in this group
                results[name] = self.score(metric, {key: values[names == name] for key, values in arrays.items()})
        return results

    def is_better(self, figures: dict, best: dict | None) -> bool:
        """As of any task; weights that answer NaN find nothing, which is an AP of 0."""
        return bool(np.isfinite(figures["loss"])) and super().is_better(figures, best)

    def in_words(self, figures: dict) -> str:
        return (
            f"validation loss {figures['loss']:.4f}, AP@0.4 {figures['ap@0.4']:.3f}, recall at 0.1 false hands a picture "
            f"{figures['recall@0.1_false']:.3f}"
        )

    def logged(self, figures: dict) -> dict[str, float]:
        names = ("ap@0.4", "ap@0.5", "recall@0.1_false", "side_accuracy")
        return {f"validation/{name}": figures[name] for name in names if figures[name] is not None}

    def final_metrics(self, run, metric, test: Arrays, validation: Arrays, negatives: dict[str, Arrays], boxed=None) -> dict:
        averaged = {"validation": self.score(metric, validation)} if run.args.model.average_with else {}
        return {
            **report.run_figures(run),
            **averaged,  # not the figures of the weights before the mean
            "test": self.score(metric, test),
            "threshold": THRESHOLD,
            "grouped_by": run.splits.grouped_by,
            "test_by_group": self.score_by_group(metric, test, run.splits.test_groups),
            "history": run.history,
        }

    def draw_figures(self, folder: Path, metrics: dict, arrays: Arrays, test, loss_name: str) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        return [
            figures.draw_losses(folder / "losses.png", metrics["history"], loss_name),
            figures.draw_detections(folder / "detections.png", arrays, test, THRESHOLD),
        ]

    def make_processor(self, metrics: dict) -> HandUNetDetectorImageProcessor:
        size = self.args.model.image_size
        return HandUNetDetectorImageProcessor(size={"height": size, "width": size})

    def summary(self, metrics: dict) -> str:
        found = metrics["test"]
        shown = {name: "not defined" if found[name] is None else f"{found[name]:.3f}" for name in ("side_accuracy", "ap@0.4")}
        return (
            f"Test: AP@0.4 {shown['ap@0.4']}, recall at 0.1 false hands a picture {found['recall@0.1_false']:.3f}, share of "
            f"correct sides {shown['side_accuracy']}; {found['num_hands']} hands in {found['num_pictures']} photographs."
        )


def padded(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The detections of each photograph, with room for as many as there can be; a score of 0 stands for none."""
    rows = {}
    for name in found[0]:
        values = torch.zeros(len(found), MAX_DETECTIONS, *found[0][name].shape[1:], dtype=found[0][name].dtype)
        for row, hands in enumerate(found):
            values[row, : len(hands[name])] = hands[name]
        rows[name] = values
    return rows


def losses(loss_of, outputs, labels: dict[str, Tensor]) -> Tensor:
    """The loss (B,) of each photograph alone, from the network's outputs."""
    logits = outputs.centres.float().logit(eps=1e-7)
    each = [
        loss_of(logits[row : row + 1], outputs.boxes[row : row + 1], outputs.directions[row : row + 1],
                {name: values[row : row + 1] for name, values in labels.items()})
        for row in range(len(logits))
    ]  # fmt: skip
    return torch.stack(each)
