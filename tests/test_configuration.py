import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_handunet import KEYPOINT_NAMES, SKELETON, HandUNetConfig


def test_the_defaults_are_those_of_the_published_model():
    config = HandUNetConfig()
    assert config.model_type == "handunet"
    assert (config.image_size, config.num_channels, config.sigma) == (128, 3, 3.0)
    assert config.hidden_sizes == (16, 32, 64, 128)
    assert config.id2label == dict(enumerate(KEYPOINT_NAMES)) and config.num_keypoints == 21
    assert config.label2id["little_4"] == 20
    assert config.skeleton == SKELETON


def test_the_keypoints_form_one_tree_from_the_wrist():
    assert KEYPOINT_NAMES[0] == "wrist" and KEYPOINT_NAMES[8] == "index_4"
    assert sorted(child for _, child in SKELETON) == list(range(1, 21))
    assert [child for parent, child in SKELETON if parent == 0] == [1, 5, 9, 13, 17]
    assert all(child == parent + 1 for parent, child in SKELETON if parent)


def test_a_saved_configuration_comes_back_the_same(tmp_path):
    config = HandUNetConfig(
        image_size=64, hidden_sizes=[4, 8, 8], sigma=1.5, id2label={0: "a", 1: "b"}, skeleton=[[0, 1]]
    )
    config.save_pretrained(tmp_path)
    for loaded in (HandUNetConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, HandUNetConfig)
        assert loaded.hidden_sizes == (4, 8, 8) and loaded.skeleton == ((0, 1),)
        assert loaded.id2label == {0: "a", 1: "b"} and loaded.label2id == {"a": 0, "b": 1}
        assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 100}, "multiple of 8, or give fewer levels"),
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": "128"}, "expected int, got str"),
        ({"image_size": True}, "expected int, got bool"),
        ({"hidden_sizes": ()}, "at least one level"),
        ({"hidden_sizes": (16, 0)}, "each of 1 channel or more"),
        ({"hidden_sizes": (16, "32")}, "hidden_sizes"),
        ({"num_channels": 0}, "num_channels=0"),
        ({"sigma": 0.0}, "sigma=0.0"),
        ({"sigma": float("nan")}, "sigma=nan"),
        ({"sigma": 129.0}, "at most the image_size"),
        ({"skeleton": ((0, 21),)}, r"bone \(0, 21\).*between 0 and 20"),
        ({"skeleton": ((0,),)}, "skeleton"),
        ({"id2label": {0: "a", 2: "b"}, "skeleton": ()}, "number the keypoints from 0 on"),
        ({"id2label": {0: "a", 1: "a"}, "skeleton": ()}, "repeats"),
        ({"id2label": {}, "skeleton": ()}, "number the keypoints from 0 on"),
        ({"id2label": {0: "a", 1: "b"}}, "or give an empty skeleton"),
    ],
)
def test_fields_that_do_not_fit_are_refused_with_what_to_change(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=f"(?s){message}"):
        HandUNetConfig(**fields)


@pytest.mark.parametrize("text", [None, "{}"])
def test_a_folder_without_a_configuration_is_refused_where_the_defaults_might_not_be_meant(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(OSError, match=f"no config.json, or an empty one, in {tmp_path}"):
        HandUNetConfig.from_pretrained(tmp_path)


def test_a_damaged_configuration_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "handunet", "image_size": ')
    with pytest.raises(OSError, match=f"{tmp_path}.*not a valid JSON"):
        HandUNetConfig.from_pretrained(tmp_path)


def test_a_configuration_file_with_a_wrong_field_names_the_field(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "handunet", "hidden_sizes": "wide"}))
    with pytest.raises(StrictDataclassError, match="hidden_sizes"):
        HandUNetConfig.from_pretrained(tmp_path)
