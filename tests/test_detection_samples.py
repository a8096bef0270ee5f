"""Training samples for the detector: photographs of people, scenes, and both mixed."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_script import SyntheticHands
from dataset_script.augmentation import augmentation_keys
from dataset_script.caches import DeviceRows
from dataset_script.detection import DetectionSamples, Looks, PeopleViews
from dataset_script.detection_scenes import DetectionScenes, cut_boxes, hide_behind_strips, look_up, paint_strip
from dataset_script.hand_tiles import HandTiles
from dataset_script.layers import HandLayers
from dataset_script.people import People, box_of_keypoints, read_people
from dataset_script.squares import Squares, background_squares, squares_on_device

SIZE = 96
PLAIN = Looks(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def write_people(folder):
    """Three photographs of 80 x 40 px: red squares on blue for hands, the third without one."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    pictures = [("by eye", [(10, 10, 20, 20), (50, 5, 8, 8)]), ("teacher", [(20, 8, 24, 24)]), ("by eye", [])]
    for number, (marked, boxes) in enumerate(pictures):
        picture = Image.new("RGB", (80, 40), (0, 0, 255))
        for x, y, width, height in boxes:
            picture.paste((255, 0, 0), (x, y, x + width, y + height))
            side = ["left", None][len(annotations) % 2]
            hand = {"image_id": number, "bbox": [x, y, width, height], "handedness": side, "ignore": False}
            if marked == "teacher":  # the wrist below, the middle knuckle in the middle
                points = np.full((21, 3), 2.0)
                points[:, 0], points[:, 1] = x + width / 2, y + height / 2
                points[0, :2], points[1, :2], points[2, :2] = (x + width / 2, y + height), (x, y), (x + width, y)
                hand["keypoints"], hand["handedness"] = points.flatten().tolist(), "right"
            annotations.append(hand)
        picture.save(folder / "images" / f"{number}.png")
        image = {"id": number, "file_name": f"{number}.png", "width": 80, "height": 40, "source": "ours"}
        images.append({**image, "split": "train", "marked": marked})
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> People:
    folder = tmp_path_factory.mktemp("people")
    return People(write_people(folder / "people"), "train", 80, folder / "cache")


@pytest.fixture(scope="module")
def photos() -> DeviceRows:
    pictures = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return DeviceRows(3, "cpu", [{"image": pictures}])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, photos) -> DetectionScenes:
    layers = HandLayers(SyntheticHands(6, seed=5, image_size=64, difficulty="layers"), tmp_path_factory.mktemp("layers"))
    return DetectionScenes(SIZE, [layers], photos)


@pytest.fixture(scope="module")
def samples(people, photos, scenes) -> DetectionSamples:
    return DetectionSamples(SIZE, PeopleViews(people, photos), scenes)


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return augmentation_keys(seed, 0, torch.arange(count))


class TestPeople:
    def test_boxes_are_shares_of_the_letterboxed_square(self, people):
        assert len(people) == 3 and people.squares.rows([0])["image"].shape == (1, 3, 80, 80)
        # The square has a side of 80; the photograph begins 20 px below its top.
        torch.testing.assert_close(people.boxes[0, 0], torch.tensor([10, 30, 30, 50]) / 80)
        torch.testing.assert_close(people.extent[0], torch.tensor([0, 0.25, 1, 0.75]))
        assert people.present.tolist() == [[True, True], [True, False], [False, False]]
        assert people.class_labels.tolist() == [[1, -1], [0, -1], [-1, -1]]

    def test_a_teachers_box_gets_the_margin_that_boxes_drawn_by_eye_have(self, people):
        margin = 0.07 * 24
        expected = torch.tensor([20 - margin, 28 - margin, 44 + margin, 52 + margin]) / 80
        torch.testing.assert_close(people.boxes[1, 0], expected)

    def test_that_box_is_the_same_wherever_the_annotations_are_read(self, tmp_path):
        (_, (by_eye, _)), (_, (by_teacher,)), _ = read_people(write_people(tmp_path / "people"), ["train"])
        margin = 0.07 * 24
        assert by_eye["bbox"] == [10, 10, 20, 20]
        assert by_teacher["bbox"] == pytest.approx([20 - margin, 8 - margin, 24 + 2 * margin, 24 + 2 * margin])

    def test_directions_are_known_where_keypoints_are(self, people):
        torch.testing.assert_close(people.directions[1, 0], torch.tensor([0.0, -1.0]))  # upwards
        assert people.directions[0].isnan().all()

    def test_half_of_the_draws_are_marked_by_eye(self, people):
        torch.testing.assert_close(people.weights, torch.tensor([0.25, 0.5, 0.25]))

    def test_an_item_is_the_fixed_picture_with_its_labels(self, people):
        item = people[0]
        assert item["image"].shape == (3, 80, 80) and item["image"][:, 40, 20].tolist() == [255, 0, 0]
        assert item["boxes"].shape == (2, 4) and item["index"] == 0

    def test_annotations_that_are_none_are_named(self, tmp_path):
        folder = write_people(tmp_path)
        with pytest.raises(ValueError, match="choose train"):
            People(folder, "all", 80, tmp_path)
        with pytest.raises(ValueError, match="no image of the part 'test'"):
            People(folder, "test", 80, tmp_path)
        (folder / "annotations.json").write_text('{"images": [{"id": 1}], "annotations": []}')
        with pytest.raises(ValueError, match="annotations.json is not a COCO file"):
            People(folder, "train", 80, tmp_path)

    def test_it_reads_the_real_photographs(self, shared_data, tmp_path, monkeypatch):
        monkeypatch.setattr(Squares, "__init__", lambda *args: None)  # their pixels are of no interest here
        test = People(shared_data / "people", "test", 80, tmp_path)
        wanted = test.present & ~test.ignore
        assert len(test) == 148 and wanted.sum() == 293 and (wanted & (test.class_labels >= 0)).sum() == 279
        known = ~test.directions.isnan().any(-1)
        torch.testing.assert_close(test.directions[known].norm(dim=-1), torch.ones(known.sum()))


class TestViews:
    @pytest.mark.parametrize("angle", [0.0, 15.0])
    def test_boxes_go_with_the_pixels(self, people, photos, angle):
        views = PeopleViews(people, photos, angle=angle, surrounded=0)
        images, labels = views(keys(40), SIZE)
        checked = 0
        for image, boxes, present, ignore in zip(images, labels["boxes"], labels["present"], labels["ignore"]):
            red = (image[0] > 0.5) & (image[2] < 0.5)
            if present.sum() != 1 or ignore.any() or not red.any():
                continue
            rows, columns = red.nonzero(as_tuple=True)
            around = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            box = boxes[present][0] * SIZE
            allowed = 2.5 + (0.07 if angle == 0 else 0.2) * (box[2:] - box[:2]).max()  # the teacher's margin, the corners
            if (box > 1).all() and (box < SIZE - 1).all():
                assert (box - around).abs().max() < allowed, (box, around)
                checked += 1
        assert checked >= 5

    def test_sides_and_directions_are_mirrored_with_the_picture(self, people, photos):
        only = dataclasses.replace(PeopleViews(people, photos), angle=0.0)
        _, labels = only(keys(60), SIZE)
        known = ~labels["directions"].isnan().any(-1)
        assert set(labels["class_labels"][known].tolist()) == {0, 1}
        torch.testing.assert_close(labels["directions"][known][:, 1], -torch.ones(known.sum()))

    def test_hands_come_in_many_sizes_and_those_hardly_inside_are_ignored(self, people, photos):
        _, labels = PeopleViews(people, photos)(keys(200), SIZE)
        wanted = labels["present"] & ~labels["ignore"]
        size = (labels["boxes"][..., 2:] - labels["boxes"][..., :2]).amax(-1)[wanted]
        assert size.min() < 0.09 and size.max() > 0.6 and labels["ignore"].any()
        assert (labels["boxes"] >= 0).all() and (labels["boxes"] <= 1).all()


class TestScenes:
    def test_what_is_in_a_scene_depends_on_its_key_alone(self, scenes):
        images, labels = scenes(keys(6))
        some = [4, 1]
        again, labels_again = scenes(keys(6)[some])
        torch.testing.assert_close(again, images[some])
        for name, values in labels.items():
            torch.testing.assert_close(labels_again[name], values[some], equal_nan=True)
        assert (scenes(keys(6, seed=1))[0] - images).abs().mean() > 0.05

    def test_hands_differ_from_the_background_where_their_boxes_are(self, scenes):
        images, labels = scenes(keys(24))
        empty, none = scenes(keys(24), hands=False)
        assert not none["present"].any()
        changed = ((images - empty).abs().amax(1) > 0.02).float()
        whole = ((labels["boxes"] > 0) & (labels["boxes"] < 1)).all(-1) & labels["present"] & ~labels["ignore"]
        for row, place in whole.nonzero().tolist():
            x, y, right, bottom = (labels["boxes"][row, place] * SIZE).round().int().tolist()
            assert changed[row, y:bottom, x:right].mean() > 0.2
        assert changed[~labels["present"].any(1)].sum() == 0

    def test_every_number_size_and_side_of_hands_occurs(self, scenes):
        _, labels = scenes(keys(150))
        assert set(labels["present"].sum(1).tolist()) >= {0, 1, 2, 3, 4}
        size = (labels["boxes"][..., 2:] - labels["boxes"][..., :2]).amax(-1)[labels["present"] & ~labels["ignore"]]
        assert size.min() < 0.06 and size.max() > 0.6
        share = (labels["class_labels"] == 1)[labels["present"]].float().mean()
        assert 0.4 < share < 0.6 and labels["ignore"].any()
        torch.testing.assert_close(labels["directions"][labels["present"]].norm(dim=-1), torch.ones(labels["present"].sum()))

    def test_a_hand_behind_an_arm_is_hidden(self):
        keypoints = torch.zeros(1, 2, 21, 2)
        keypoints[0, 0] = torch.tensor([50.0, 21.0])
        keypoints[0, 1] = torch.tensor([50.0, 40.0])
        hidden = torch.zeros(1, 2, 21, dtype=torch.bool)
        strip = (30.0, 20.0, 1.0, 0.0, 40.0, 5.0, 0.0)  # from (30, 20) 40 px to the right, 10 px wide
        hide_behind_strips(keypoints, hidden, torch.tensor([0]), torch.tensor([[1.0, *strip, 1, 1, 1]]))
        assert hidden[0, 0].all() and not hidden[0, 1].any()
        image = torch.zeros(3, 60, 100)
        paint_strip(image, *strip, [1.0, 1.0, 1.0])
        assert image[0, 20, 50] > 0.9 and image[0, 40, 50] == 0 and image[0, 20, 20] == 0 and image[0, 20, 75] == 0


class TestSamples:
    def test_a_batch_has_pictures_and_padded_labels(self, samples):
        batch = samples(keys(12))
        assert batch["image"].shape == (12, 3, SIZE, SIZE) and batch["image"].dtype == torch.uint8
        assert batch["boxes"].shape == (12, 16, 4) and batch["directions"].shape == (12, 16, 2)
        assert batch["class_labels"].dtype == torch.int64 and batch["ignore"].dtype == batch["present"].dtype == torch.bool
        assert not (batch["ignore"] & ~batch["present"]).any() and (batch["class_labels"][~batch["present"]] == -1).all()

    def test_a_sample_depends_on_its_key_alone(self, samples):
        batch, again = samples(keys(10)), samples(keys(10)[[7, 2]])
        assert (again["image"].int() - batch["image"][[7, 2]].int()).abs().max() <= 1
        for name in ("boxes", "class_labels", "directions", "ignore", "present", "kind"):
            torch.testing.assert_close(again[name], batch[name][[7, 2]], equal_nan=True)

    def test_the_kinds_come_by_their_shares(self, samples):
        kind = dataclasses.replace(samples, shares=(0.5, 0.0, 0.5, 0.0), looks=PLAIN)(keys(60))["kind"]
        assert 15 < (kind == 0).sum() < 45 and not (kind == 1).any()
        alone = dataclasses.replace(samples, people=None)(keys(20))
        assert not (alone["kind"] == 0).any()

    def test_backgrounds_have_no_hands(self, samples):
        assert not dataclasses.replace(samples, shares=(0.0, 0.0, 1.0, 0.0))(keys(8))["present"].any()

    def test_looks_change_colours_but_not_places(self, samples):
        plain = dataclasses.replace(samples, looks=PLAIN)(keys(8))
        changed = samples(keys(8))
        assert not torch.equal(plain["image"], changed["image"]) and torch.equal(plain["boxes"], changed["boxes"])
        images = torch.rand(4, 3, 32, 32)
        torch.testing.assert_close(PLAIN(images.clone(), keys(4)), images, atol=1e-5, rtol=0)


class Squares224:
    """Two hands as `Photographs` has them: red squares on blue, the second with its wrist to the right."""

    def __init__(self):
        self.points = torch.full((2, 21, 2), 112.0)
        self.points[:, 1], self.points[:, 2] = torch.tensor([72.0, 82.0]), torch.tensor([152.0, 142.0])
        self.points[0, 0], self.points[1, 0] = torch.tensor([112.0, 142.0]), torch.tensor([152.0, 112.0])
        self.images = torch.zeros(2, 3, 224, 224, dtype=torch.uint8)
        self.images[:, 2] = 255
        self.images[:, :, 82:142, 72:152] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]

    def draw(self, numbers):
        return (numbers * 2).long()

    def rows(self, numbers):
        return {"image": self.images[numbers], "keypoints": self.points[numbers]}


class TestTiles:
    @pytest.mark.parametrize("side", [1, 2, 3, 4])
    def test_boxes_sides_and_directions_go_with_the_tiles(self, photos, side):
        grids = tuple(float(number == side) for number in range(1, 5))
        images, labels = HandTiles(Squares224(), photos, grids=grids, angle=0.0, empty=0.0)(keys(8), SIZE)
        assert labels["present"].sum(1).tolist() == [side**2] * 8
        for image, boxes, sides, toward in zip(images, labels["boxes"], labels["class_labels"], labels["directions"]):
            red = (image[0] > 0.5) & (image[2] < 0.5)
            for box, left, (x, y) in list(zip(boxes, sides, toward))[: side**2]:
                low, high = (box * SIZE).view(2, 2).round().int().tolist()
                part = red[low[1] : high[1], low[0] : high[0]]
                assert part.float().mean() > 0.5  # the margin is blue
                part.zero_()
                assert (round(float(x)), round(float(y))) in ((0, -1), (1 if left else -1, 0))
            assert not red.any()
        assert set(labels["class_labels"][labels["present"]].tolist()) == {0, 1}

    def test_tiles_without_a_hand_are_parts_of_photographs(self, photos):
        images, labels = HandTiles(Squares224(), photos, grids=(0, 1), empty=1.0)(keys(4), SIZE)
        assert not labels["present"].any() and labels["directions"].isnan().all() and images.std() > 0.1

    def test_they_are_a_kind_of_sample(self, people, photos, scenes):
        tiles = HandTiles(Squares224(), photos)
        batch = DetectionSamples(SIZE, PeopleViews(people, photos), scenes, tiles, shares=(0, 0, 0, 1.0))(keys(6))
        assert (batch["kind"] == 3).all() and batch["present"].any()


def test_boxes_are_cut_to_the_picture():
    boxes, inside = cut_boxes(torch.tensor([[-0.5, 0.25, 0.5, 0.75], [0.1, 0.1, 0.2, 0.2], [1.5, 0, 2, 1]]))
    torch.testing.assert_close(boxes[0], torch.tensor([0, 0.25, 0.5, 0.75]))
    torch.testing.assert_close(inside, torch.tensor([0.5, 1.0, 0.0]))


def test_looking_up_the_whole_picture_gives_it_back():
    picture = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(look_up(picture, torch.eye(2)[None], torch.tensor([[0.5, 0.5]]), 16), picture, atol=1e-5, rtol=0)
    quarter = look_up(picture, 0.5 * torch.eye(2)[None], torch.tensor([[0.75, 0.25]]), 8)
    torch.testing.assert_close(quarter, picture[:, :, :8, 8:], atol=1e-5, rtol=0)


def test_squares_of_a_photograph_are_cut_out_once(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste((0, 0, 255), (20, 0, 40, 20))
    picture.save(folder / "a.png")
    (folder / "index.json").write_text("[]")
    squares = background_squares(folder, 20, tmp_path / "cache")
    assert len(squares) == 2
    left, right = squares.rows([0, 1])["image"]
    assert left[0].min() == 255 and right[2].min() == 255  # red, blue
    assert torch.equal(squares_on_device(squares, "cpu", 1).rows([1])["image"][0], right)
    before = squares.folder.stat().st_mtime_ns
    assert background_squares(folder, 20, tmp_path / "cache").folder.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="no photographs"):
        background_squares(tmp_path / "cache", 20, tmp_path)


def test_the_box_of_keypoints_has_a_margin():
    points = torch.zeros(21, 2)
    points[1] = torch.tensor([100.0, 50.0])
    torch.testing.assert_close(box_of_keypoints(points), torch.tensor([-7.0, -7.0, 107.0, 57.0]))
    assert math.isclose(box_of_keypoints(points)[2], 107.0, rel_tol=1e-6)
