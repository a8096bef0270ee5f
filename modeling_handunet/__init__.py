"""HandUNet: 2D hand keypoints with confidences from a small U-Net, as a Hugging Face Hub model.

Importing the package registers it with transformers' auto classes and pipelines, so that saved HandUNets load without
`trust_remote_code`:

    >>> import modeling_handunet
    >>> from transformers import pipeline
    >>> pipe = pipeline("keypoint-detection", model="weights/handunet-base")

Imports point one way: keypoints <- configuration <- images, crops, heatmaps, losses <- modeling, image processing <-
pipeline.  All files are in this one folder and import each other as `from .name import thing`, because `save_pretrained`
searches for such lines to find the files that it copies to the Hub.
"""

from .configuration_handunet import HandUNetConfig
from .drawing import draw_hand
from .heatmaps import decode_heatmaps, render_heatmaps
from .image_processing_handunet import HandUNetImageProcessor
from .keypoints import KEYPOINT_NAMES, NUM_KEYPOINTS, SKELETON
from .losses import IoULoss
from .modeling_handunet import HandUNetForPoseEstimation, HandUNetPoseEstimatorOutput
from .pipeline_handunet import HandKeypointDetectionPipeline
from .registration import register

register()

__all__ = [
    "KEYPOINT_NAMES",
    "NUM_KEYPOINTS",
    "SKELETON",
    "HandKeypointDetectionPipeline",
    "HandUNetConfig",
    "HandUNetForPoseEstimation",
    "HandUNetImageProcessor",
    "HandUNetPoseEstimatorOutput",
    "IoULoss",
    "decode_heatmaps",
    "draw_hand",
    "render_heatmaps",
]
