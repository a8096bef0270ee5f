import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_script import CocoHands, HandCrops
from dataset_script.counter_rng import sample_keys
from dataset_script.join import join
from dataset_script.photographs import Photographs, SourceTerms, read_terms, sampling_weights


def write_photographs(folder, count: int = 6, annotation: dict | None = None, image: dict | None = None) -> dict:
    """A folder of `count` hands, the last two of the split "validation"; odd ones are left hands.

    Hand i is a 3 px white dot at (80.5 + i, 112.5), its keypoint 0.  `annotation` and `image` change the first entries.
    """
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        pixels = np.full((224, 224, 3), 40, np.uint8)
        pixels[111:114, 79 + number : 82 + number] = 255
        Image.fromarray(pixels).save(folder / "images" / f"{number}.webp", lossless=True)
        points = np.stack([np.linspace(80.5 + number, 145.6, 21), np.linspace(112.5, 130, 21), np.full(21, 2)], 1)
        split = "validation" if number >= count - 2 else "train"
        entry = {"id": number, "file_name": f"{number}.webp", "source": f"someone+{number % 2}", "picture": "a"}
        images.append({**entry, "split": split})
        annotations.append({
            **{"id": number, "image_id": number, "keypoints": points.flatten().tolist()},
            **{"handedness": "left" if number % 2 else "right", "disagreement": 0.01 * number},
        })  # fmt: skip
    images[0] |= image or {}
    annotations[0] |= annotation or {}
    coco = {"images": images, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(coco))
    return coco


def test_left_hands_become_right_ones_with_their_keypoints(tmp_path):
    write_photographs(tmp_path / "a")
    rows = Photographs(tmp_path / "a", "train").rows([0, 1])
    assert rows["image"].dtype == torch.uint8 and rows["image"].shape == (2, 3, 224, 224)
    # The dot of the left hand lies at 81.5 from the left, so at 224 - 81.5 = 142.5 when mirrored.
    torch.testing.assert_close(rows["keypoints"][:, 0], torch.tensor([[80.5, 112.5], [142.5, 112.5]]))
    for image, (x, y) in zip(rows["image"], rows["keypoints"][:, 0]):
        assert (image[:, int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] == 255).all() and (image == 255).sum() == 27
    assert rows["visibility"].all()


def test_a_keypoint_that_is_not_annotated_lies_within_the_hands_box(tmp_path):
    """COCO has it at (0, 0), which is no place of the hand."""
    coco = write_photographs(tmp_path / "a")
    points = coco["annotations"][0]["keypoints"]
    points[6:9] = [0, 0, 0]
    (tmp_path / "a" / "annotations.json").write_text(json.dumps(coco))
    rows = Photographs(tmp_path / "a").rows([0])
    assert rows["visibility"][0].logical_not().nonzero().flatten().tolist() == [2]
    # The others span (80.5, 112.5) to (145.6, 130).
    torch.testing.assert_close(rows["keypoints"][0, 2], torch.tensor([113.05, 121.25]))


def test_a_cache_holds_the_same_squares_and_is_written_once(tmp_path):
    write_photographs(tmp_path / "a")
    in_memory = Photographs(tmp_path / "a")
    mapped = Photographs(tmp_path / "a", cache_dir=tmp_path / "cache")
    assert torch.equal(in_memory.images, mapped.images) and mapped.fingerprint == in_memory.fingerprint
    before = {path: path.stat().st_mtime_ns for path in mapped.cache.iterdir()}
    again = Photographs(tmp_path / "a", cache_dir=tmp_path / "cache")
    assert again.cache == mapped.cache and {path: path.stat().st_mtime_ns for path in before} == before
    other = Photographs(tmp_path / "a", "validation", max_disagreement=0.1, cache_dir=tmp_path / "cache")
    assert other.cache != mapped.cache
    assert torch.equal(mapped.to("cpu").rows(torch.tensor([2]))["image"], in_memory.rows([2])["image"])


def test_hands_on_which_the_teacher_disagrees_are_left_out(tmp_path):
    write_photographs(tmp_path / "a", 8)  # disagreement 0, 0.01, ... 0.05 in "train"
    assert len(Photographs(tmp_path / "a")) == 4
    assert len(Photographs(tmp_path / "a", max_disagreement=0.02)) == 3
    assert len(Photographs(tmp_path / "a", max_disagreement=0.1)) == 6
    with pytest.raises(ValueError, match="no hand of the split 'validation' with a disagreement of at most 0.03"):
        Photographs(tmp_path / "a", "validation")


def test_a_source_counts_as_its_pictures_up_to_a_bound():
    sources = ["large"] * 800 + ["small"] * 6
    pictures = [f"{number}" for number in range(800)] + ["a", "a", "a", "b", "b", "c"]
    weights = sampling_weights(sources, pictures, 400)
    np.testing.assert_allclose(weights[:800], 0.5)
    np.testing.assert_allclose(weights[800:], [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 1])
    # The same name in another source is another picture.
    np.testing.assert_allclose(sampling_weights(["a", "b"], ["1.jpg", "1.jpg"], 400), 1)


def test_a_sample_is_drawn_by_weight_and_by_its_key_alone(tmp_path):
    write_photographs(tmp_path / "a", 7)  # train: three hands of one source, two of the other, each in one picture
    hands = Photographs(tmp_path / "a", max_disagreement=1.0)
    keys = sample_keys(3, torch.arange(20000))
    drawn = hands.sample(keys)
    shares = torch.bincount(drawn, minlength=5) / 20000
    # Standard deviation of a share of 1/4 of 20000: 0.003.
    torch.testing.assert_close(shares, torch.tensor([1 / 6, 1 / 4, 1 / 6, 1 / 4, 1 / 6]), atol=0.012, rtol=0)
    assert torch.equal(hands.sample(keys[[11, 5]]), drawn[[11, 5]])
    assert not torch.equal(hands.sample(keys, "beside"), drawn)


def test_crops_are_those_of_the_coco_file(tmp_path):
    """The crop of a left hand is cut from the photograph as it was taken and then mirrored, as the image processor does."""
    write_photographs(tmp_path / "a")
    crops = HandCrops(Photographs(tmp_path / "a", "validation", max_disagreement=1.0), 64)
    coco = CocoHands(tmp_path / "a" / "annotations.json", tmp_path / "a" / "images", cache_dir=tmp_path / "cache")
    expected = HandCrops(coco.build()["train"], 64)
    for mine, theirs in zip((crops[0], crops[1]), (expected[4], expected[5])):
        assert torch.equal(mine["image"], theirs["image"]) and torch.equal(mine["visibility"], theirs["visibility"])
        torch.testing.assert_close(mine["keypoints"], theirs["keypoints"], atol=1e-4, rtol=0)
        assert mine["box_size"] == pytest.approx(0.45 * 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotation": {"keypoints": [1.0] * 60}}, r"cannot be used: 1 with 20 keypoints, not 21 \(0\)"),
        ({"annotation": {"disagreement": "low"}}, "annotation 0 has the disagreement 'low', expected a number"),
        ({"annotation": {"disagreement": float("nan")}}, "annotation 0 has the disagreement nan"),
        ({"annotation": {"handedness": "both"}}, "annotation 0 has handedness 'both'"),
        ({"image": {"file_name": "gone.webp"}}, "images are missing .*gone.webp"),
        ({"image": {"file_name": "../annotations.json/0.jpg"}}, "images are missing"),
        ({"image": {"split": "test"}}, "image 0 has the split 'test', expected train or validation"),
        ({"image": {"split": None}}, "image 0 has the split None"),
    ],
)
def test_bad_annotations_are_named(tmp_path, changes, message):
    write_photographs(tmp_path / "a", **changes)
    with pytest.raises((ValueError, OSError), match=message):
        Photographs(tmp_path / "a")


def test_missing_folders_broken_squares_and_unknown_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no annotations.json"):
        Photographs(tmp_path)
    write_photographs(tmp_path / "a")
    with pytest.raises(ValueError, match="part is 'test'; choose train or validation"):
        Photographs(tmp_path / "a", "test")
    Image.new("RGB", (200, 224)).save(tmp_path / "a" / "images" / "1.webp")
    with pytest.raises(ValueError, match="1.webp is 200 x 224 pixels, expected 224 x 224"):
        Photographs(tmp_path / "a")
    (tmp_path / "a" / "images" / "1.webp").write_bytes(b"no image")
    with pytest.raises(ValueError, match="1.webp cannot be read"):
        Photographs(tmp_path / "a")


def test_terms_come_from_the_table_of_sources(tmp_path):
    write_photographs(tmp_path / "a")
    assert [terms.license for terms in read_terms(tmp_path / "a")] == [None, None]
    table = "| source | licence | evidence |\n|---|---|---|\n| github:someone/1 @ 0a55 | CC-BY-4.0 | LICENSE |\n"
    (tmp_path / "SOURCES.md").write_text(table)
    coco = json.loads((tmp_path / "a" / "annotations.json").read_text())
    for annotation in coco["annotations"]:  # by eye, one of someone/1 and for validation
        annotation["label"] = "annotated" if annotation["id"] in (1, 5) else "teacher"
    (tmp_path / "a" / "annotations.json").write_text(json.dumps(coco))
    first, second = read_terms(tmp_path / "a")
    assert first == SourceTerms("someone/0", None, 2, 1, by_eye=0)
    assert second == SourceTerms("someone/1", "CC-BY-4.0", 2, 1, by_eye=1)


def test_every_source_of_the_real_photographs_has_its_terms(shared_data):
    terms = read_terms(shared_data / "photographs")
    assert len(terms) == 35 and all(source.license for source in terms)
    assert (sum(source.train for source in terms), sum(source.validation for source in terms)) == (8740, 1299)
    used = read_terms(shared_data / "photographs", 0.03)
    assert (sum(source.train for source in used), sum(source.validation for source in used)) == (8439, 1211)
    assert not any(source.train and source.validation for source in terms)  # whole sources are held out


@pytest.mark.slow
def test_the_real_validation_photographs_are_read(shared_data):
    hands = Photographs(shared_data / "photographs", "validation")
    assert len(hands) == 1211 and len(set(hands.sources)) == 7
    extent = (hands.keypoints.amax(1) - hands.keypoints.amin(1)).amax(1)
    torch.testing.assert_close(extent, torch.full((1211,), 0.3 * 224), atol=0.1, rtol=0)
    # A digit's source has more hands than 400; none of these has, but for the first.
    counts = Counter(hands.sources)
    totals = dict.fromkeys(counts, 0.0)
    for source, weight in zip(hands.sources, hands.weights.tolist()):
        totals[source] += weight
    assert max(totals.values()) == pytest.approx(400) and min(totals.values()) <= 6


def test_folders_are_joined_without_hands_of_which_the_teacher_was_not_sure(tmp_path):
    for name in "ab":
        write_photographs(tmp_path / name, image={"source": f"only+{name}"})  # disagreements of 0.00 to 0.05
        (tmp_path / name / "SOURCES.md").write_text(f"| source | terms |\n|---|---|\n| only/{name} | CC0 of {name} |\n")
    assert join([tmp_path / "a", tmp_path / "b"], [0.025, 0.045], tmp_path / "both") == 3 + 5
    both, alone = Photographs(tmp_path / "both", max_disagreement=0.045), Photographs(tmp_path / "b", max_disagreement=0.045)
    assert Counter(both.sources) == {"only+a": 1, "only+b": 1, "someone+0": 2, "someone+1": 3}
    assert torch.equal(both.rows(range(3, 7))["image"], alone.rows(range(4))["image"])
    terms = {row.source: row.license for row in read_terms(tmp_path / "both")}
    assert (terms["only/a"], terms["only/b"]) == ("CC0 of a", "CC0 of b")
    for folders, limits, output, problem in (
        (["a", "a"], [1, 1], "c", "two folders are called a"), (["a"], [1], "both", "both exists: name a new folder"),
        (["a", "none"], [1, 1], "c", "none has no annotations.json"),
    ):  # fmt: skip
        with pytest.raises((ValueError, OSError), match=problem):
            join([tmp_path / name for name in folders], limits, tmp_path / output)
    coco = json.loads((tmp_path / "b" / "annotations.json").read_text())
    coco["categories"] = [{"id": 1, "name": "hand", "supercategory": "person"}]
    (tmp_path / "b" / "annotations.json").write_text(json.dumps(coco))
    with pytest.raises(ValueError, match="b has other categories than .*a: give both the same"):
        join([tmp_path / "a", tmp_path / "b"], [1, 1], tmp_path / "c")
    assert not (tmp_path / "c").exists()
