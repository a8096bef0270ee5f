"""Registers HandUNet with transformers: with its auto classes, and for `save_pretrained`, which copies the code."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPoseEstimation

from .configuration_handunet import HandUNetConfig
from .image_processing_handunet import HandUNetImageProcessor
from .modeling_handunet import HandUNetForPoseEstimation, register_task
from .pipeline_handunet import TASK


def register() -> None:
    """Register every class; called when the package is imported."""
    HandUNetConfig.register_for_auto_class("AutoConfig")
    HandUNetForPoseEstimation.register_for_auto_class("AutoModelForPoseEstimation")
    HandUNetImageProcessor.register_for_auto_class("AutoImageProcessor")
    AutoConfig.register(HandUNetConfig.model_type, HandUNetConfig, exist_ok=True)
    AutoModel.register(HandUNetConfig, HandUNetForPoseEstimation, exist_ok=True)
    AutoModelForPoseEstimation.register(HandUNetConfig, HandUNetForPoseEstimation, exist_ok=True)
    AutoImageProcessor.register(HandUNetConfig, HandUNetImageProcessor, exist_ok=True)
    register_task()
    HandUNetConfig.pipeline_is_registered = True


__all__ = ["TASK", "register"]
