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
from .configuration_handunet_detector import HandUNetDetectorConfig
from .drawing import draw_hand
from .heatmaps import decode_heatmaps, render_heatmaps
from .image_processing_handunet import HandUNetImageProcessor
from .image_processing_handunet_detector import HandUNetDetectorImageProcessor
from .keypoints import KEYPOINT_NAMES, NUM_KEYPOINTS, SKELETON
from .losses import IoULoss
from .modeling_handunet import HandUNetForPoseEstimation, HandUNetPoseEstimatorOutput
from .modeling_handunet_detector import HandUNetForObjectDetection, HandUNetObjectDetectionOutput, start_from_pose
from .pipeline_handunet import HandKeypointDetectionPipeline
from .registration import register
from .tracking import HandTracker, HandTracks

register()

__all__ = [
    "KEYPOINT_NAMES",
    "NUM_KEYPOINTS",
    "SKELETON",
    "HandKeypointDetectionPipeline",
    "HandTracker",
    "HandTracks",
    "HandUNetConfig",
    "HandUNetDetectorConfig",
    "HandUNetDetectorImageProcessor",
    "HandUNetForObjectDetection",
    "HandUNetForPoseEstimation",
    "HandUNetImageProcessor",
    "HandUNetObjectDetectionOutput",
    "HandUNetPoseEstimatorOutput",
    "IoULoss",
    "decode_heatmaps",
    "draw_hand",
    "render_heatmaps",
    "start_from_pose",
]
