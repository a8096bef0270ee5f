"""Makes transformers know both networks: its auto classes, its pipelines, and `save_pretrained`, which copies the code."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForObjectDetection,
    AutoModelForPoseEstimation,
    ObjectDetectionPipeline,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from .configuration_handunet import HandUNetConfig
from .configuration_handunet_detector import HandUNetDetectorConfig
from .image_processing_handunet import HandUNetImageProcessor
from .image_processing_handunet_detector import HandUNetDetectorImageProcessor
from .modeling_handunet import HandUNetForPoseEstimation
from .modeling_handunet_detector import HandUNetForObjectDetection
from .pipeline_handunet import TASK


def register() -> None:
    """Register every class; called when the package is imported."""
    register_model(HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor, AutoModelForPoseEstimation)
    AutoModel.register(HandUNetConfig, HandUNetForPoseEstimation, exist_ok=True)
    HandUNetForPoseEstimation.register_task()
    HandUNetConfig.pipeline_is_registered = True

    detector = HandUNetForObjectDetection
    register_model(HandUNetDetectorConfig, detector, HandUNetDetectorImageProcessor, AutoModelForObjectDetection)
    # pipeline("object-detection") looks for the class's name here, and logs an error without it.
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[HandUNetDetectorConfig.model_type] = detector.__name__
    # It also looks for a video processor, which it never uses, and would ask whether to trust code that is not there.
    ObjectDetectionPipeline._load_video_processor = False


def register_model(config: type, model: type, processor: type, auto_model: type) -> None:
    """Register a network's three classes; `auto_model` is transformers' class for its task."""
    for own, auto_class in ((config, AutoConfig), (model, auto_model), (processor, AutoImageProcessor)):
        own.register_for_auto_class(auto_class.__name__)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    auto_model.register(config, model, exist_ok=True)
    AutoImageProcessor.register(config, processor, exist_ok=True)


__all__ = ["TASK", "register"]
