"""A file or a folder is written whole or not at all."""

import pytest

from release.files import written_whole


def test_a_file_and_a_folder_appear_when_they_are_whole_and_replace_older_ones(tmp_path):
    for content in ("first", "second"):
        with written_whole(tmp_path / "new" / "metrics.json") as partial:
            assert partial.parent == tmp_path / "new" and partial.suffix == ".json"
            partial.write_text(content)
        assert (tmp_path / "new" / "metrics.json").read_text() == content
        with written_whole(tmp_path / "model") as partial:
            partial.mkdir()
            (partial / content).touch()
        assert [path.name for path in (tmp_path / "model").iterdir()] == [content]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["metrics.json", "model", "new", "second"]


def test_an_error_leaves_the_older_file_and_folder_as_they_were(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(KeyError), written_whole(tmp_path / "file") as partial:
        partial.write_text("new")
        raise KeyError
    with pytest.raises(KeyError), written_whole(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "new").touch()
        raise KeyError
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "old"]


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").touch()
    with pytest.raises(OSError), written_whole(tmp_path / "model") as partial:
        partial.write_text("one file")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model", "weights"]


def test_what_a_killed_process_left_does_not_get_into_the_next_folder(tmp_path):
    with pytest.raises(KeyError), written_whole(tmp_path / "model") as left:
        raise KeyError
    left.mkdir()
    (left / "half").touch()
    with written_whole(tmp_path / "model") as partial:
        partial.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["model"]
