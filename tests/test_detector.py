"""The hand detector: its shape, its loss, its decoding, and what transformers asks of it."""

import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, Trainer, TrainingArguments, pipeline

from modeling_handunet import (
    HandUNetConfig,
    HandUNetDetectorConfig,
    HandUNetDetectorImageProcessor,
    HandUNetForObjectDetection,
    HandUNetForPoseEstimation,
    HandUNetObjectDetectionOutput,
    start_from_pose,
)
from modeling_handunet.detection_decoding import duplicates
from modeling_handunet.detection_losses import DetectionLoss, centre_gaussians, generalized_iou, pad_labels

CELLS = 80


def tiny_config(**fields) -> HandUNetDetectorConfig:
    return HandUNetDetectorConfig(**{"image_size": 64, "hidden_sizes": (4, 8, 8), "decoder_sizes": (8,), **fields})


@pytest.fixture
def model() -> HandUNetForObjectDetection:
    """A tiny model whose BatchNorm layers are not the identity."""
    model = HandUNetForObjectDetection(tiny_config())
    with torch.no_grad():
        for _ in range(2):
            model(2 * torch.randn(8, 3, 64, 64) + 1)
    return model.eval()


def label(*hands: tuple[float, float, float, float], sides=None, **more) -> dict[str, torch.Tensor]:
    """One picture's labels in DETR's format, of boxes (x_min, y_min, x_max, y_max)."""
    corners = torch.tensor(hands).reshape(-1, 4)
    boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    return {"boxes": boxes, "class_labels": torch.tensor(sides or [0] * len(hands)), **more}


def ideal(*hands: tuple[float, float, float, float], sides, peak: float = 1.0, cells: int = CELLS):
    """The maps that a perfect detector gives for boxes as shares of the square: (centres, boxes, directions)."""
    centres, boxes, directions = (torch.zeros(1, channels, cells, cells) for channels in (2, 4, 2))
    for hand, side in zip(hands, sides):
        gaussian = centre_gaussians(torch.tensor(hand).reshape(1, 1, 4), cells, cells, 0.12)[0, 0]
        nearer = gaussian > centres[0].amax(0)
        boxes[0, :, nearer] = torch.tensor(hand)[:, None]
        directions[0, 0, nearer] = 1.0
        centres[0, side] = torch.maximum(centres[0, side], peak * gaussian)
    return HandUNetObjectDetectionOutput(centres=centres, boxes=boxes, directions=directions)


def resized(maps: torch.Tensor, side: int) -> torch.Tensor:
    return interpolate(maps, size=(side, side), mode="bilinear")


class TestArchitecture:
    def test_the_default_keeps_to_its_bounds_of_parameters_and_arithmetic(self):
        model = HandUNetForObjectDetection(HandUNetDetectorConfig()).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, 320, 320))
        assert model.num_parameters() == 1_246_944 < 1_500_000
        assert counter.get_total_flops() == 1_446_912_000 < 1_500_000_000  # two for a multiplication and its addition

    def test_the_answers_stand_on_a_grid_of_every_fourth_pixel(self):
        model = HandUNetForObjectDetection(HandUNetDetectorConfig()).eval()
        with torch.no_grad():
            output = model(torch.randn(2, 3, 320, 320))
        assert output.centres.shape == (2, 2, 80, 80) and model.config.stride == 4
        assert output.boxes.shape == (2, 4, 80, 80) and output.directions.shape == (2, 2, 80, 80)
        torch.testing.assert_close(output.directions.norm(dim=1), torch.ones(2, 80, 80))
        assert 0 <= output.centres.min() and output.centres.max() <= 1

    def test_two_looks_are_the_mean_of_the_same_network_on_a_smaller_and_a_larger_photograph(self, model):
        smaller, larger = (HandUNetForObjectDetection(tiny_config(image_size=size)).eval() for size in (48, 80))
        pixels = 2 * torch.randn(2, 3, 64, 64) + 1
        with torch.no_grad():
            model.head.weight *= 10
            for other in (smaller, larger):
                other.load_state_dict(model.state_dict())
            twice, one, other = model.look_twice(pixels), smaller(resized(pixels, 48)), larger(resized(pixels, 80))
        assert twice.loss is None and twice.centres.shape == other.centres.shape == (2, 2, 20, 20)
        for name in ("centres", "boxes"):
            torch.testing.assert_close(twice[name], (resized(one[name], 20) + other[name]) / 2)
            assert not torch.allclose(twice[name], other[name], atol=1e-5)
        torch.testing.assert_close(twice.directions.norm(dim=1), torch.ones(2, 20, 20))

    def test_the_middle_of_the_picture_sees_all_of_it(self):
        model = HandUNetForObjectDetection(HandUNetDetectorConfig()).eval()
        pixels = torch.randn(1, 3, 320, 320, requires_grad=True)
        model(pixels).centres[0, :, 40, 40].sum().backward()
        rows = pixels.grad.abs().amax((0, 1, 3)).nonzero()
        assert rows.min() <= 16 and rows.max() >= 303

    def test_a_new_network_finds_nothing(self):
        model = HandUNetForObjectDetection(HandUNetDetectorConfig()).train()
        with torch.no_grad():
            assert model(torch.randn(2, 3, 320, 320)).centres.mean() < 0.03

    def test_it_starts_as_the_pose_network_on_the_photograph_at_half_the_size(self):
        pose = HandUNetForPoseEstimation(HandUNetConfig(image_size=64, hidden_sizes=(4, 8, 16)))
        with torch.no_grad():
            pose(2 * torch.randn(8, 3, 64, 64) + 1)
        pose.eval()
        detector = HandUNetForObjectDetection(tiny_config(image_size=128)).eval()
        assert start_from_pose(detector, pose) == [0, 1]  # the third has another shape
        pixels = torch.randn(2, 3, 128, 128)
        seen = []
        detector.down[1].register_forward_hook(lambda block, inputs, output: seen.append(output))
        with torch.no_grad():
            detector(pixels)
            half = torch.nn.functional.avg_pool2d(pixels, 2)
            expected = pose(half, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        "fields, message",
        [
            ({"image_size": 100}, "multiple of 8"),
            ({"decoder_sizes": (8, 8, 8)}, "fewer than the 3 hidden_sizes"),
            ({"hidden_sizes": ()}, "give 1 to 10 levels"),
            ({"centre_spread": 0.0}, "above 0"),
            ({"id2label": {0: "hand"}}, "two names"),
        ],
    )
    def test_a_configuration_that_does_not_fit_says_what_to_change(self, fields, message):
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            tiny_config(**fields)

    def test_pixels_of_another_size_are_refused(self, model):
        with pytest.raises(ValueError, match="expected"):
            model(torch.zeros(1, 3, 32, 64))


class TestLoss:
    def test_giou_is_that_worked_out_by_hand(self):
        first = torch.tensor([[0.0, 0.0, 2.0, 2.0]] * 3)
        second = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [3.0, 0.0, 4.0, 2.0]])
        # The same; 2 of 6 in common, the hull is their union; nothing in common, 6 of the hull's 8 filled.
        torch.testing.assert_close(generalized_iou(first, second), torch.tensor([1.0, 1 / 3, -2 / 8]))

    def test_it_is_next_to_nothing_for_a_perfect_answer(self):
        hands, sides = ((0.1, 0.1, 0.8, 0.9), (0.85, 0.05, 0.9, 0.1)), [1, 0]
        output = ideal(*hands, sides=sides)
        labels = pad_labels([label(*hands, sides=sides, directions=torch.tensor([[1.0, 0.0]] * 2))], "cpu")
        centres = torch.zeros(1, 2, CELLS, CELLS)
        centres[0, 1, 40, 36] = centres[0, 0, 6, 70] = 1  # rows, columns: the boxes' centres times 80, rounded down
        logits = torch.where(centres > 0, 20.0, -20.0)
        parts = DetectionLoss(0.12).parts(logits, output.boxes, output.directions, labels)
        assert all(0 <= value < 1e-5 for value in parts.values()), parts

    def test_a_centre_that_is_missed_costs_what_the_focal_loss_says(self):
        labels = pad_labels([label((0.1, 0.1, 0.8, 0.9))], "cpu")
        output = ideal((0.1, 0.1, 0.8, 0.9), sides=[0])
        logits = torch.full((1, 2, CELLS, CELLS), -30.0)
        logits[0, 0, 40, 36] = math.log(0.25 / 0.75)  # the chance is 0.25
        part = DetectionLoss(0.12).parts(logits, output.boxes, output.directions, labels)["centres"]
        assert part.item() == pytest.approx(-(0.75**2) * math.log(0.25), rel=1e-4)

    def test_a_hand_of_unknown_side_may_be_either_but_must_be_one(self):
        loss, box = DetectionLoss(0.12), (0.4, 0.4, 0.6, 0.6)
        output = ideal(box, sides=[0])
        values = []
        for side in (0, 1, None):
            logits = torch.full((1, 2, CELLS, CELLS), -20.0)
            if side is not None:
                logits[0, side, 40, 40] = 20.0
            unknown = pad_labels([label(box, sides=[-1])], "cpu")
            values.append(loss.parts(logits, output.boxes, output.directions, unknown)["centres"].item())
        assert values[0] < 1e-5 and values[1] < 1e-5 and values[2] > 10
        known = pad_labels([label(box, sides=[0])], "cpu")
        logits = torch.full((1, 2, CELLS, CELLS), -20.0)
        logits[0, 1, 40, 40] = 20.0
        assert loss.parts(logits, output.boxes, output.directions, known)["centres"] > 20  # missed, and a false one

    def test_nothing_is_asked_inside_an_ignored_box(self):
        logits = torch.full((1, 2, CELLS, CELLS), -20.0)
        logits[:, :, 10:20, 30:40] = 5.0
        boxes = torch.zeros(1, 4, CELLS, CELLS)
        directions = torch.zeros(1, 2, CELLS, CELLS)
        box = (30 / 80, 10 / 80, 40 / 80, 20 / 80)
        ignored = pad_labels([label(box, ignore=torch.tensor([True]))], "cpu")
        assert DetectionLoss(0.12)(logits, boxes, directions, ignored) < 1e-5
        assert DetectionLoss(0.12)(logits, boxes, directions, pad_labels([label()], "cpu")) > 100

    def test_pictures_without_hands_have_a_finite_loss_and_gradient(self, model):
        model.train()
        output = model(torch.randn(2, 3, 64, 64), labels=[label(), label()])
        output.loss.backward()
        assert output.loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

    def test_directions_count_where_they_are_known(self):
        hands = ((0.1, 0.1, 0.3, 0.3), (0.6, 0.6, 0.9, 0.9))
        output = ideal(*hands, sides=[0, 0])
        toward = torch.tensor([[0.0, 1.0], [math.nan, math.nan]])  # one at a right angle, one not known
        labels = pad_labels([label(*hands, directions=toward)], "cpu")
        part = DetectionLoss(0.12).parts(torch.zeros(1, 2, CELLS, CELLS), output.boxes, output.directions, labels)
        assert part["directions"].item() == pytest.approx(0.5, rel=1e-4)  # 1 - cos, times its weight


class TestDecoding:
    SIZE = (480, 640)  # height, width: the square is 640, the photograph begins 80 px below its top

    def found(self, output, threshold=0.5, size=SIZE):
        return HandUNetDetectorImageProcessor().post_process_object_detection(output, threshold, [size])[0]

    def shares(self, x, y, right, bottom):
        return (x / 640, (y + 80) / 640, right / 640, (bottom + 80) / 640)

    def test_boxes_come_back_in_pixels_of_the_photograph(self):
        pixels = [(10.0, 20.0, 42.0, 60.0), (100.0, 5.0, 620.0, 470.0), (13.0, 300.0, 26.0, 310.0)]
        hands = self.found(ideal(*(self.shares(*box) for box in pixels), sides=[0, 1, 1]))
        assert len(hands["scores"]) == 3
        for box, side in zip(pixels, [0, 1, 1]):
            distance = (hands["boxes"] - torch.tensor(box)).abs().amax(1)
            assert distance.min() < 0.5 and hands["labels"][distance.argmin()] == side
        torch.testing.assert_close(hands["directions"], torch.tensor([[1.0, 0.0]] * 3))

    def test_two_hands_of_different_side_that_overlap_are_two(self):
        pixels = [(100.0, 100.0, 300.0, 300.0), (150.0, 110.0, 350.0, 310.0)]  # IoU 0.55
        hands = self.found(ideal(*(self.shares(*box) for box in pixels), sides=[0, 1]))
        assert sorted(hands["labels"].tolist()) == [0, 1]

    def test_one_hand_that_is_found_twice_is_one(self):
        pixels = [(100.0, 100.0, 300.0, 300.0), (120.0, 110.0, 310.0, 310.0)]  # IoU 0.73
        for sides in ([0, 0], [0, 1]):
            output = ideal(*(self.shares(*box) for box in pixels), sides=sides)
            assert len(self.found(output)["scores"]) == 1

    def test_a_hand_of_unsure_side_is_one_surely(self):
        box = self.shares(104.0, 104.0, 304.0, 304.0)  # its centre is that of a cell
        output = ideal(box, sides=[0], peak=0.35)
        output.centres[0, 1] = 1.2 * output.centres[0, 0]
        hands = self.found(output)
        assert hands["labels"].tolist() == [1] and hands["scores"].item() == pytest.approx(0.35 + 1.2 * 0.35)

    def test_fingers_found_inside_a_hand_are_no_second_hand_but_a_small_hand_before_it_is(self):
        boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.1, 0.1, 0.7, 0.7], [0.4, 0.4, 0.6, 0.6]]])
        # Areas 1, 0.36 and 0.04: the second lies in the first, and the third is much smaller than both.
        assert duplicates(torch.tensor([[0, 0, 0]]), boxes).tolist() == [[False, True, False]]

    def test_no_hand_is_an_empty_answer(self):
        hands = self.found(ideal(sides=[]))
        assert hands["boxes"].shape == (0, 4) and hands["directions"].shape == (0, 2)
        assert len(hands["scores"]) == len(hands["labels"]) == 0

    def test_a_hand_cut_by_the_edge_ends_there_and_one_in_the_black_is_dropped(self):
        pixels = [(-40.0, 100.0, 60.0, 200.0), (200.0, -75.0, 240.0, -35.0)]
        hands = self.found(ideal(*(self.shares(*box) for box in pixels), sides=[0, 0]))
        torch.testing.assert_close(hands["boxes"], torch.tensor([[0.0, 100.0, 60.0, 200.0]]), atol=0.01, rtol=0)

    def test_another_number_of_sizes_is_refused(self):
        with pytest.raises(ValueError, match="2 images"):
            HandUNetDetectorImageProcessor().post_process_object_detection(ideal(sides=[]), 0.5, [(1, 1), (2, 2)])


class TestProcessor:
    def test_a_photograph_is_letterboxed_in_black(self):
        white = Image.new("RGB", (640, 320), "white")
        processor = HandUNetDetectorImageProcessor(image_mean=[0.0] * 3, image_std=[1.0] * 3)
        pixels = processor(white)["pixel_values"]
        assert pixels.shape == (1, 3, 320, 320)
        assert pixels[0, :, :79].max() == 0 and pixels[0, :, 82:238].min() == 1 and pixels[0, :, 241:].max() == 0

    def test_a_pixel_and_a_huge_panorama_are_photographs_too(self):
        processor = HandUNetDetectorImageProcessor(size=32)
        assert processor([Image.new("RGB", (1, 1)), Image.new("RGB", (9000, 3))])["pixel_values"].shape == (2, 3, 32, 32)

    def test_bad_settings_and_calls_are_refused(self):
        for settings in ({"size": {"height": 32, "width": 64}}, {"image_std": [0.0, 1, 1]}, {"resample": 3}):
            with pytest.raises(ValueError, match=next(iter(settings))):
                HandUNetDetectorImageProcessor(**settings)
        with pytest.raises(ValueError, match="empty list"):
            HandUNetDetectorImageProcessor()([])
        with pytest.raises(TypeError, match="boxes"):
            HandUNetDetectorImageProcessor()(np.zeros((8, 8, 3), np.uint8), boxes=[])


class TestTransformers:
    def save(self, model, folder):
        model.save_pretrained(folder)
        HandUNetDetectorImageProcessor(size=64).save_pretrained(folder)

    def test_it_comes_back_as_it_was_saved(self, model, tmp_path):
        self.save(model, tmp_path)
        again = AutoModelForObjectDetection.from_pretrained(tmp_path)
        assert type(again) is HandUNetForObjectDetection and AutoConfig.from_pretrained(tmp_path).id2label[1] == "left hand"
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is HandUNetDetectorImageProcessor
        pixels = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(again(pixels).centres, model(pixels).centres, rtol=0, atol=0)

    def test_the_saved_folder_works_without_the_package(self, model, tmp_path):
        self.save(model, tmp_path)
        remote = AutoModelForObjectDetection.from_pretrained(tmp_path, trust_remote_code=True)
        assert (tmp_path / "detection_losses.py").is_file() and "custom_pipelines" not in remote.config.to_dict()
        processor = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True)
        assert (tmp_path / "detection_decoding.py").is_file() and processor.size["height"] == 64

    def test_the_standard_pipeline_finds_hands(self, model, tmp_path, caplog, capsys):
        with torch.no_grad():
            model.head.weight.zero_()
            # One peak for every picture: a right hand of half the picture's side.
            model.head.bias.copy_(torch.tensor([1.5, -30.0, math.log(0.5), math.log(0.25), 0, 0, 1, 0]))
        self.save(model, tmp_path)
        pipe = pipeline("object-detection", model=str(tmp_path))
        answer = pipe(Image.new("RGB", (200, 100)), threshold=0.5)
        assert "not supported" not in caplog.text and "custom code" not in capsys.readouterr().out
        assert answer and answer[0]["label"] == "right hand" and set(answer[0]["box"]) == {"xmin", "ymin", "xmax", "ymax"}
        assert answer[0]["score"] == pytest.approx(1 / (1 + math.exp(-1.5)), abs=1e-5)
        assert pipe(Image.new("RGB", (200, 100)), threshold=0.9) == []
        several = pipe([Image.new("RGB", (200, 100)), Image.new("RGB", (50, 70))], batch_size=1)
        assert len(several) == 2 and several[0] == answer

    def test_transformers_trainer_trains_it(self, tmp_path):
        model = HandUNetForObjectDetection(tiny_config())
        before = {name: values.clone() for name, values in model.named_parameters()}
        rows = [
            {"pixel_values": torch.randn(3, 64, 64), "labels": label((0.1, 0.2, 0.5, 0.6), sides=[side])} for side in (0, 1)
        ]

        def collate(batch):
            return {
                "pixel_values": torch.stack([row["pixel_values"] for row in batch]),
                "labels": [row["labels"] for row in batch],
            }

        arguments = TrainingArguments(
            tmp_path, max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True, save_strategy="no",
            remove_unused_columns=False, dataloader_pin_memory=False,
        )  # fmt: skip
        result = Trainer(model, arguments, train_dataset=rows, data_collator=collate).train()
        assert math.isfinite(result.training_loss)
        assert any(not torch.equal(before[name], values) for name, values in model.named_parameters())
