"""Data for HandUNet: FreiHAND, your own photographs and synthetic hands, and how their rows become the network's input."""

from dataset_script.coco import CocoHands
from dataset_script.freihand import FreiHAND, project_points
from dataset_script.hand_crops import HandCrops, add_heatmaps
from dataset_script.synthetic import SyntheticHands

__all__ = ["CocoHands", "FreiHAND", "HandCrops", "SyntheticHands", "add_heatmaps", "project_points"]
