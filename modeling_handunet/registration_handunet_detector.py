"""Makes transformers know the hand detector."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, ObjectDetectionPipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from .configuration_handunet_detector import HandUNetDetectorConfig
from .image_processing_handunet_detector import HandUNetDetectorImageProcessor
from .modeling_handunet_detector import HandUNetForObjectDetection


def register_detector() -> None:
    """Register every class of the detector, once; called on import of the package."""
    HandUNetDetectorConfig.register_for_auto_class("AutoConfig")
    HandUNetForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
    HandUNetDetectorImageProcessor.register_for_auto_class("AutoImageProcessor")
    AutoConfig.register(HandUNetDetectorConfig.model_type, HandUNetDetectorConfig, exist_ok=True)
    AutoModelForObjectDetection.register(HandUNetDetectorConfig, HandUNetForObjectDetection, exist_ok=True)
    AutoImageProcessor.register(HandUNetDetectorConfig, HandUNetDetectorImageProcessor, exist_ok=True)
    # pipeline("object-detection") looks for the class's name here, and logs an error without it.
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[HandUNetDetectorConfig.model_type] = HandUNetForObjectDetection.__name__
    # It also looks for a video processor, which it never uses, and would ask whether to trust code that is not there.
    ObjectDetectionPipeline._load_video_processor = False


__all__ = ["register_detector"]
