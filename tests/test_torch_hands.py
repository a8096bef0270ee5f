import numpy as np
import pytest
import torch
from PIL import Image

from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from modeling_handunet.crops import Crop
from modeling_handunet.image_processing_handunet_detector import HandUNetDetectorImageProcessor
from modeling_handunet.torch_hands import TorchHands
from tests.small_model import small_detector, small_network


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    return Image.fromarray(coarse).resize((200, 150), Image.Resampling.BICUBIC)


def test_both_networks_answer_in_pixels_of_the_photograph(photo):
    pose, detector = small_network(), small_detector()
    processor = HandUNetImageProcessor(temperature=2.0)
    hands = TorchHands(pose, processor, detector)
    found = hands.detect(photo)
    outputs = detector.look_twice(HandUNetDetectorImageProcessor(size=64)(photo).pixel_values)
    (expected,) = HandUNetDetectorImageProcessor(size=64).post_process_object_detection(outputs, 0.0, [(150, 200)])
    assert len(found) == len(expected["scores"]) > 2
    np.testing.assert_allclose([hand.box for hand in found], expected["boxes"], atol=1e-3)
    np.testing.assert_allclose([hand.score for hand in found], expected["scores"], atol=1e-5)
    (once,) = HandUNetDetectorImageProcessor(size=64).post_process_object_detection(
        detector(HandUNetDetectorImageProcessor(size=64)(photo).pixel_values), 0.0, [(150, 200)]
    )
    np.testing.assert_allclose([hand.box for hand in hands.detect(photo, twice=False)], once["boxes"], atol=1e-3)
    assert [hand.side for hand in found] == [("right", "left")[label] for label in expected["labels"]]
    np.testing.assert_allclose([np.hypot(*hand.direction) for hand in found], 1, atol=1e-5)

    boxes = [[30.0, 20.0, 60.0, 45.0], [100.5, 40.2, 33.3, 50.1]]
    crops = [Crop.around_box(box, 128, 0.45, mirrored=mirrored) for box, mirrored in zip(boxes, (False, True))]
    keypoints, scores, chances = hands.read(photo, crops)
    heatmaps = pose(processor(photo, boxes, ["right", "left"]).pixel_values).heatmaps
    (expected,) = processor.post_process_pose_estimation({"heatmaps": heatmaps}, boxes, handedness=["right", "left"])
    np.testing.assert_allclose(keypoints, [pose["keypoints"] for pose in expected], atol=1e-2)
    np.testing.assert_allclose(scores, [pose["scores"] for pose in expected], atol=1e-5)
    assert np.isnan(chances).all() and chances.shape == (2, 2)
    assert [values.shape for values in hands.read(photo, [])] == [(0, 21, 2), (0, 21), (0, 2)]


def test_the_detector_lies_where_the_pose_model_says(tmp_path, photo):
    pose = small_network()
    pose.config.detector = "../finder"
    pose.save_pretrained(tmp_path / "pose")
    pose = HandUNetForPoseEstimation.from_pretrained(tmp_path / "pose")
    hands = TorchHands(pose, HandUNetImageProcessor())
    with pytest.raises(OSError, match=r"needs a hand detector, and there is none at .*/pose/../finder\. Give one: detector="):
        hands.detect(photo)
    small_detector().save_pretrained(tmp_path / "finder")
    HandUNetDetectorImageProcessor(size=64).save_pretrained(tmp_path / "finder")
    expected = TorchHands(pose, HandUNetImageProcessor(), small_detector()).detect(photo)
    assert hands.detect(photo) == expected
    assert TorchHands(small_network(), HandUNetImageProcessor(), tmp_path / "finder").detect(photo) == expected


def test_the_chances_are_those_of_the_hand_classifier(photo):
    torch.manual_seed(0)
    pose = HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=(4, 8), classifier_size=4)).eval()
    processor = HandUNetImageProcessor()
    boxes = [[30.0, 20.0, 60.0, 45.0], [100.5, 40.2, 33.3, 50.1]]
    crops = [Crop.around_box(box, 128, 0.45, mirrored=mirrored) for box, mirrored in zip(boxes, (False, True))]
    *_, chances = TorchHands(pose, processor).read(photo, crops)
    logits = pose(processor(photo, boxes, ["right", "left"]).pixel_values).hand_logits
    np.testing.assert_allclose(chances, logits.softmax(1)[:, :2].detach(), atol=1e-6)
