"""Registers HandUNet with transformers: with its auto classes, and for `save_pretrained`, which copies the code."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPoseEstimation
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_handunet import HandUNetConfig
from .image_processing_handunet import HandUNetImageProcessor
from .modeling_handunet import HandUNetForPoseEstimation
from .pipeline_handunet import TASK, HandKeypointDetectionPipeline


def register() -> None:
    """Register every class; called when the package is imported."""
    HandUNetConfig.register_for_auto_class("AutoConfig")
    HandUNetForPoseEstimation.register_for_auto_class("AutoModelForPoseEstimation")
    HandUNetImageProcessor.register_for_auto_class("AutoImageProcessor")
    AutoConfig.register(HandUNetConfig.model_type, HandUNetConfig, exist_ok=True)
    AutoModel.register(HandUNetConfig, HandUNetForPoseEstimation, exist_ok=True)
    AutoModelForPoseEstimation.register(HandUNetConfig, HandUNetForPoseEstimation, exist_ok=True)
    AutoImageProcessor.register(HandUNetConfig, HandUNetImageProcessor, exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=HandKeypointDetectionPipeline, pt_model=AutoModelForPoseEstimation, type="image"
        )
    HandUNetConfig.pipeline_is_registered = True


__all__ = ["register"]
