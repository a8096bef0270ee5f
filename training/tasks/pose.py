"""Pose: from a crop of one hand to a heatmap of each of its keypoints."""

from collections.abc import Sequence
from pathlib import Path

from dataset_script.sources import Inputs
from modeling_handunet import HandUNetForPoseEstimation, HandUNetImageProcessor
from modeling_handunet.registration import TASK
from training import evaluation, figures, report
from training.initial_weights import load_any_model, make_model
from training.inputs import gaussian_targets, targets_of
from training.tasks.base import Arrays, Task


class PoseTask(Task):
    """21 keypoints of a hand."""

    model_class = HandUNetForPoseEstimation
    pipeline = TASK
    things = "hands"
    selected_by = "mean_error_percent"
    higher_is_better = False
    try_it = "python predict.py PHOTO --model {model}"
    shape = ("hidden_sizes", "num_keypoints", "image_size", "num_channels")

    def make_model(self) -> HandUNetForPoseEstimation:
        return make_model(self.args.model, self.args.optimisation.seed, self.teaches_classifier)

    @property
    def teaches_classifier(self) -> bool:
        """Whether hands with boxes teach the hand classifier."""
        return bool(self.args.data.boxed_hands)

    def load_model(self, name: str) -> HandUNetForPoseEstimation:
        return load_any_model(name)

    def make_targets(self, inputs: Inputs) -> dict:
        """`labels` (B, 21, S, S), `visibility` (B, 21) and, where the hand classifier is taught, `hand_classes` (B,)."""
        targets = {"labels": targets_of(self.args)(inputs), "visibility": inputs.visibility}
        return targets | ({"hand_classes": inputs.hand_classes} if self.teaches_classifier else {})

    def load_metric(self):
        return evaluation.load_metric()

    def predict(self, accelerator, model, loader, make_targets=None) -> Arrays:
        def heatmaps(inputs: Inputs):
            if make_targets is None:
                return gaussian_targets(inputs, self.args.model.sigma)
            return make_targets(inputs)["labels"]

        return evaluation.predict(accelerator, model, loader, heatmaps, self.args.optimisation.decoding)

    def score(self, metric, arrays: Arrays) -> dict:
        return evaluation.score(metric, arrays, self.args.model.image_size)

    def score_by_group(self, metric, arrays: Arrays, groups: Sequence[str]) -> dict[str, dict]:
        return evaluation.score_by_group(metric, arrays, groups, self.args.model.image_size)

    def in_words(self, figures: dict) -> str:
        return (
            f"validation loss {figures['loss']:.4f}, mean error {figures['mean_error_percent']:.2f} % of the side, "
            f"{figures['mean_error_over_box']:.3f} of the box"
        )

    def table(self, figures: dict, parts: dict[str, dict], grouped_by: str) -> str:
        return evaluation.table(figures, parts, grouped_by)

    def logged(self, figures: dict) -> dict[str, float]:
        return {"error/validation_percent": figures["mean_error_percent"]}

    def final_metrics(self, run, metric, test: Arrays, validation: Arrays, negatives: dict[str, Arrays], boxed=None) -> dict:
        return report.final_metrics(run, metric, test, validation, negatives, boxed)

    def draw_figures(self, folder: Path, metrics: dict, arrays: Arrays, test, loss_name: str) -> list[Path]:
        return figures.draw_figures(folder, metrics, arrays, test, loss_name)

    def make_processor(self, metrics: dict) -> HandUNetImageProcessor:
        return report.make_processor(self.args, metrics)

    def summary(self, metrics: dict) -> str:
        found, pose = metrics["test"], metrics["mean_pose"]
        return (
            f"Test: mean error {found['mean_error_percent']:.2f} % of the image side, {found['mean_error_over_box']:.3f} of "
            f"the hand's box, PCK@0.1 {found['pck@0.1']:.3f}, AUC {found['auc']:.3f}.\n"
            f"Always answering the {metrics['mean_pose_of']} set's mean pose: {pose['mean_error_percent']:.2f} %; this model "
            f"makes {metrics['error_over_mean_pose']:.2f} of that error."
        )
