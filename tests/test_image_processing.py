import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor
from transformers.utils import is_torchvision_available

from modeling_handunet import HandUNetImageProcessor, HandUNetPoseEstimatorOutput, render_heatmaps

MEAN, STD = np.array([0.3950, 0.4323, 0.2954]), np.array([0.1966, 0.1734, 0.1836])


def photograph(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def outputs_at(points, size: int = 128) -> HandUNetPoseEstimatorOutput:
    """What a perfect model answers for hands (B, 21, 2) in pixels of its input."""
    return HandUNetPoseEstimatorOutput(heatmaps=render_heatmaps(torch.as_tensor(points), size, 3.0))


def test_pixels_are_scaled_to_one_and_normalised_with_freihands_statistics():
    values = np.asarray(photograph(128, 128))
    pixel_values = HandUNetImageProcessor()(Image.fromarray(values)).pixel_values
    assert pixel_values.shape == (1, 3, 128, 128) and pixel_values.dtype == torch.float32
    expected = ((values / 255 - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(pixel_values[0].numpy(), expected, atol=1e-5)


def test_the_processor_runs_without_torchvision():
    assert not is_torchvision_available()
    assert "torchvision" not in inspect.getsource(inspect.getmodule(HandUNetImageProcessor))


def test_a_photograph_is_padded_in_black_to_a_square_and_resized():
    values = np.asarray(photograph(256, 128))
    pixel_values = HandUNetImageProcessor(do_normalize=False)(Image.fromarray(values)).pixel_values[0]
    assert pixel_values[:, :31].max() == 0 and pixel_values[:, 97:].max() == 0  # bilinear bleeds by one pixel
    padded = np.zeros((256, 256, 3), np.uint8)
    padded[64:192] = values
    expected = np.asarray(Image.fromarray(padded).resize((128, 128), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(pixel_values.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_a_box_is_cut_out_where_worked_out_by_hand():
    # Longer side 45 over 0.45 makes a square of 100 px round the centre (60.5, 70): x from 10.5, y from 20.
    image = Image.new("RGB", (300, 200))
    image.paste((255, 255, 255), (60, 70, 300, 200))  # white from (60, 70) on, so 49.5 and 50 px into the square
    crop = HandUNetImageProcessor(do_normalize=False)(image, boxes=[[40, 47.5, 41, 45]]).pixel_values[0, 0]
    assert crop[:63].max() == 0 and crop[66:, 66:].min() == 1  # 50 px of 100 are 64 of 128
    assert crop[100].sum().item() == pytest.approx(128 - 49.5 * 1.28, abs=0.05)
    assert crop[:, 100].sum().item() == pytest.approx(64, abs=0.05)


def test_a_crop_is_black_outside_the_image():
    image = Image.new("RGB", (60, 60), (255, 255, 255))
    crop = HandUNetImageProcessor(do_normalize=False)(image, boxes=[[0, 15, 45, 45]]).pixel_values[0, 0]
    # The square reaches from (-27.5, -12.5) to (72.5, 87.5).
    assert crop[:, :34].max() == 0 and crop[:15].max() == 0 and crop[:, 113:].max() == 0 and crop[94:].max() == 0
    assert crop[18:91, 38:110].min() == 1


def test_a_left_hand_is_the_right_hand_of_the_mirrored_photograph():
    image, box = photograph(200, 160), [40.0, 50.0, 36.0, 27.0]  # a square of 80 px on whole pixels
    mirrored = [200 - 40.0 - 36.0, 50.0, 36.0, 27.0]
    processor = HandUNetImageProcessor()
    left = processor(image, boxes=[box], handedness="left").pixel_values
    right = processor(ImageOps.mirror(image), boxes=[mirrored]).pixel_values
    torch.testing.assert_close(left, right, atol=0.03, rtol=0)  # one 255th, PIL's rounding
    outputs = outputs_at(torch.rand(1, 21, 2) * 96 + 16)
    (((of_left,),), ((of_right,),)) = (
        processor.post_process_pose_estimation(outputs, [[b]], handedness=handedness)
        for b, handedness in ((box, "left"), (mirrored, "right"))
    )
    torch.testing.assert_close(200 - of_left["keypoints"][:, 0], of_right["keypoints"][:, 0], atol=1e-3, rtol=0)
    torch.testing.assert_close(of_left["keypoints"][:, 1], of_right["keypoints"][:, 1])
    assert of_left["bbox"].tolist() == [40, 50, 76, 77] and of_right["bbox"].tolist() == [124, 50, 160, 77]


@pytest.mark.parametrize("handedness", ["right", "left"])
def test_post_processing_undoes_pre_processing(handedness):
    """A white dot at a known place of the photograph is found there again, through the crop and back."""
    place, box = (123.4, 87.6), [90.3, 50.7, 61.7, 40.2]
    y, x = np.mgrid[0.5:200, 0.5:300]
    dot = np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * 4.0**2))
    processor = HandUNetImageProcessor(do_normalize=False)
    heatmaps = processor(dot, boxes=[box], handedness=handedness).pixel_values[:, :1]
    ((hand,),) = processor.post_process_pose_estimation({"heatmaps": heatmaps}, [[box]], handedness=handedness)
    pixel_of_crop = 61.7 / 0.45 / 128
    assert hand["keypoints"][0].tolist() == pytest.approx(place, abs=0.02 * pixel_of_crop)


def test_keypoints_come_back_in_pixels_of_the_photograph():
    # The square of this box starts at (19, 4.5) and has 40 px: 64 px of the crop are 20 of the photograph.
    processor, box = HandUNetImageProcessor(), [30, 20, 18, 9]
    points = torch.full((1, 21, 2), 64.0)
    points[0, 1] = torch.tensor([32.0, 96.0])
    ((hand,),) = processor.post_process_pose_estimation(outputs_at(points), [[box]])
    assert hand["keypoints"].shape == (21, 2) and hand["scores"].shape == (21,)
    assert hand["labels"].tolist() == list(range(21))
    torch.testing.assert_close(hand["keypoints"][:2], torch.tensor([[39.0, 24.5], [29.0, 34.5]]), atol=0.003, rtol=0)
    assert hand["bbox"].tolist() == [30, 20, 48, 29]
    # With left hands, 32 px from the left of the crop are 96 in the photograph's.
    ((hand,),) = processor.post_process_pose_estimation(outputs_at(points), [[box]], handedness="left")
    assert hand["keypoints"][1].tolist() == pytest.approx([49.0, 34.5], abs=0.003)


def test_without_boxes_keypoints_are_those_of_the_whole_image_or_of_the_input():
    processor, outputs = HandUNetImageProcessor(), outputs_at(torch.full((2, 21, 2), 32.0))
    of_input = processor.post_process_pose_estimation(outputs)
    assert [len(hands) for hands in of_input] == [1, 1]
    assert of_input[1][0]["keypoints"][0].tolist() == pytest.approx([32, 32], abs=0.01)
    assert of_input[1][0]["bbox"].tolist() == [0, 0, 128, 128]
    # 256 x 128 px are padded by 64 above and below: (32, 32) of the input is (64, 64 - 64).
    sizes = [(128, 256), (128, 128)]
    for target_sizes in (sizes, torch.tensor(sizes), np.array(sizes)):
        of_image = processor.post_process_pose_estimation(outputs, target_sizes=target_sizes)
        assert of_image[0][0]["keypoints"][0].tolist() == pytest.approx([64, 0], abs=0.02)
        assert of_image[0][0]["bbox"].tolist() == [0, 0, 256, 128]


def test_a_threshold_marks_keypoints_and_drops_none():
    heatmaps = render_heatmaps(torch.full((1, 21, 2), 64.5), 128, 3.0)
    heatmaps[0, :5] *= 0.25
    processor = HandUNetImageProcessor()
    ((hand,),) = processor.post_process_pose_estimation({"heatmaps": heatmaps}, threshold=0.5)
    assert hand["keypoints"].shape == (21, 2)
    assert hand["visibility"].tolist() == [False] * 5 + [True] * 16
    ((hand,),) = processor.post_process_pose_estimation({"heatmaps": heatmaps})
    assert hand["visibility"].all()


def test_the_temperature_divides_the_log_odds_of_the_scores_and_moves_no_keypoint():
    outputs = outputs_at(torch.rand(1, 21, 2) * 100 + 10)
    outputs.heatmaps *= 0.9
    outputs.heatmaps[0, 3] = 0.0
    plain = HandUNetImageProcessor().post_process_pose_estimation(outputs)[0][0]
    calibrated = HandUNetImageProcessor(temperature=2.0).post_process_pose_estimation(outputs)[0][0]
    torch.testing.assert_close(calibrated["keypoints"], plain["keypoints"])
    # Odds of p / (1 - p) become their square root.
    odds = (plain["scores"] / (1 - plain["scores"])).sqrt()
    expected = odds / (1 + odds)
    expected[3] = 0.0
    torch.testing.assert_close(calibrated["scores"], expected)


def test_hands_are_counted_per_image_also_where_there_is_none():
    processor, box = HandUNetImageProcessor(), [10.0, 10.0, 20.0, 20.0]
    images = [photograph(60, 50)] * 3
    boxes = [[box, box], [], [box]]
    assert processor(images, boxes=boxes).pixel_values.shape == (3, 3, 128, 128)
    results = processor.post_process_pose_estimation(outputs_at(torch.rand(3, 21, 2) * 128), boxes)
    assert [len(hands) for hands in results] == [2, 0, 1]
    assert processor(images[:1], boxes=[[]]).pixel_values.shape == (0, 3, 128, 128)
    nothing = outputs_at(torch.zeros(0, 21, 2))
    assert processor.post_process_pose_estimation(nothing, [[]]) == [[]]
    assert processor.post_process_pose_estimation(nothing, [[]], target_sizes=[(50, 60)]) == [[]]


def test_boxes_and_handedness_may_be_flat_nested_arrays_or_tensors():
    processor, image = HandUNetImageProcessor(), photograph(60, 50)
    boxes = [[10.0, 10.0, 20.0, 20.0], [5.0, 7.0, 9.0, 30.0]]
    expected = processor([image], boxes=[boxes], handedness=[["left", "right"]]).pixel_values
    for given in (boxes, [boxes], tuple(map(tuple, boxes)), np.array(boxes), [np.array(boxes)], torch.tensor(boxes)):
        for handedness in (["left", "right"], [["left", "right"]], [("left", None)]):
            assert torch.equal(processor(image, boxes=given, handedness=handedness).pixel_values, expected)
    given = [torch.tensor(box) for box in boxes]
    assert torch.equal(processor(image, boxes=given, handedness=["left", "right"]).pixel_values, expected)
    for handedness in ("left", ["left"], ["left", "left"]):
        assert torch.equal(processor(image, boxes=boxes, handedness=handedness).pixel_values[0], expected[0])
    several = processor([image, image], boxes=[boxes[:1], boxes[1:]], handedness=["left", "right"]).pixel_values
    assert torch.equal(several, expected)


BOX = [10.0, 10.0, 20.0, 20.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": [[float("nan"), 1, 2, 3]]}, "all of it finite"),
        ({"boxes": [[100, 1, 2, 3]]}, "outside the image of 60x50 pixels"),
        ({"boxes": [[1, 2, 3]]}, "four numbers"),
        ({"boxes": BOX}, "one list of boxes"),
        ({"boxes": 5}, "one list of boxes"),
        ({"boxes": "all"}, "one list of boxes"),
        ({"boxes": [[BOX], [BOX]]}, "boxes for 2 images, but 1 images"),
        ({"boxes": [BOX], "handedness": "both"}, "handedness='both'.*'right' or 'left'"),
        ({"boxes": [BOX], "handedness": 1}, "handedness=1"),
        ({"boxes": [BOX], "handedness": [["left", "left"]]}, "Image 0 has 1 hands, but handedness for 2"),
        ({"images": []}, "empty list of images"),
        ({"images": [photograph(60, 50)] * 2, "boxes": [BOX, BOX]}, "for 2 images give one list of boxes each"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        HandUNetImageProcessor()(**{"images": photograph(60, 50), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": [[BOX]]}, "heatmaps of 2 hands, but boxes or target sizes for 1"),
        ({"target_sizes": [(50, 60)]}, "heatmaps of 2 hands, but boxes or target sizes for 1"),
        ({"boxes": [[BOX], [BOX]], "target_sizes": [(50, 60)]}, "boxes for 2 images, but 1 images"),
        ({"boxes": [[BOX], None]}, "Image 1 has no boxes: give target_sizes"),
        ({"boxes": [[BOX], [[1, 2, 3]]]}, "four numbers"),
        ({"handedness": ["left"]}, "handedness for 1 images, but 2 images"),
        ({"handedness": "up"}, "'right' or 'left'"),
        ({"method": "median"}, "method='median'"),
    ],
)
def test_answers_that_do_not_fit_are_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        HandUNetImageProcessor().post_process_pose_estimation(outputs_at(torch.rand(2, 21, 2)), **arguments)


@pytest.mark.parametrize("name", ["do_center_crop", "boxs", "device", "box_fill", "temperature", "score_offset"])
def test_options_of_a_call_that_it_does_not_take_are_named(name):
    with pytest.raises(TypeError, match=f"does not take .*'{name}'"):
        HandUNetImageProcessor()(photograph(60, 50), **{name: 0.5})


def test_the_size_may_be_changed_for_one_call():
    processor = HandUNetImageProcessor()
    for size in (64, {"height": 64, "width": 64}):
        assert processor(photograph(60, 50), size=size).pixel_values.shape == (1, 3, 64, 64)
    assert processor(photograph(60, 50), return_tensors="np").pixel_values.shape == (1, 3, 128, 128)


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"height": 128, "width": 64}},
        {"size": {"shortest_edge": 128}},
        {"box_fill": 0},
        {"box_fill": 1.01},
        {"temperature": 0},
        {"temperature": float("nan")},
        {"score_offset": 21},
        {"score_offset": float("nan")},
        {"do_resize": False},
        {"do_convert_rgb": False},
        {"resample": 3},
    ],
)
def test_options_that_cannot_be_followed_are_refused_not_ignored(options, tmp_path):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        HandUNetImageProcessor(**options)
    HandUNetImageProcessor().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))
    with pytest.raises(ValueError, match=name):
        HandUNetImageProcessor.from_pretrained(tmp_path)


def test_a_saved_processor_comes_back_the_same(tmp_path):
    processor = HandUNetImageProcessor(box_fill=0.6, size=64, image_mean=[0.1, 0.2, 0.3], temperature=1.5, score_offset=-0.5)
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["box_fill"] == 0.6 and stored["temperature"] == 1.5 and stored["score_offset"] == -0.5
    assert stored["size"] == {"height": 64, "width": 64}
    image = photograph(60, 50)
    for loaded in (HandUNetImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, HandUNetImageProcessor)
        assert loaded.to_dict() == processor.to_dict()
        expected = processor(image, boxes=[BOX]).pixel_values
        assert torch.equal(loaded(image, boxes=[BOX]).pixel_values, expected)


def test_a_folder_without_a_processor_is_refused(tmp_path):
    with pytest.raises(OSError, match="preprocessor_config.json"):
        HandUNetImageProcessor.from_pretrained(tmp_path)


def test_a_damaged_processor_file_is_named(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 128')
    with pytest.raises(OSError, match=f"{tmp_path}.*not a valid JSON"):
        HandUNetImageProcessor.from_pretrained(tmp_path)
