"""What is written: COCO for train.py and the annotation tools, and shards that many processes write and go on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import handunet.answers
import handunet.predict
import handunet.shards
from dataset_script import CocoHands
from handunet.answers import Answers, OutputError, open_answers
from handunet.shards import Shards, Share
from modeling_handunet.keypoints import KEYPOINT_NAMES
from tests.drawn_films import write_film

pytest.importorskip("pyarrow")
ROOT = Path(__file__).resolve().parents[1]


def hand(x: float = 10.0, side: str = "right", score: float = 0.9, **more) -> dict:
    """A hand whose keypoints go from (x, 20) to (x + 40, 40)."""
    points = [{"name": name, "x": x + 2 * i, "y": 20.0 + i, "score": score} for i, name in enumerate(KEYPOINT_NAMES)]
    box = {"xmin": x - 5, "ymin": 15.0, "xmax": x + 45, "ymax": 45.0}
    return {**more, "label": f"{side} hand", "score": score, "hand_score": 0.7, "box": box, "keypoints": points}


@pytest.fixture
def answering(monkeypatch):
    """Every photograph has a right hand, a left hand, and something that is no clear hand."""
    hands = [hand(), hand(50, "left"), hand(60, score=0.1)]
    monkeypatch.setattr(handunet.predict.Run, "load", lambda run: setattr(run, "models", "networks"))
    monkeypatch.setattr(handunet.predict.Run, "find", lambda run, photo: hands)
    tracked = [hand(10, id=1), hand(60, "left", id=2)]
    monkeypatch.setattr(handunet.predict.Run, "tracker", lambda run: lambda photo, seconds: tracked)


def run(*arguments):
    handunet.predict.main([str(argument) for argument in arguments])


def photographs(folder: Path, count: int) -> Path:
    """A folder with small photographs, some of them in a folder in it."""
    for index in range(count):
        path = folder / ("more" if index % 3 == 0 else "") / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (120, 90), (index % 256, 90, 90)).save(path)
    return folder


def rows(annotations, images=None, **options):
    return CocoHands(annotations, images, **options).build()["train"]


def test_coco_of_photographs_is_what_train_reads(capsys, answering, tmp_path):
    photographs(tmp_path / "photos", 4)
    turned = Image.new("RGB", (90, 120), (5, 90, 90))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "photos/turned.jpg", exif=exif)
    run(tmp_path / "photos", "--output", tmp_path / "out", "--format", "coco", "--no_drawings")
    said = capsys.readouterr().out
    annotations = tmp_path / "out/annotations.json"
    assert f"--annotations {annotations} --images {tmp_path / 'photos'}" in said
    assert "5 hands that are not clear are not in it." in said
    hands = CocoHands(annotations, tmp_path / "photos", cache_dir=tmp_path / "cache").build()
    assert "10 hands (5 left, 5 right) in 5 photographs; left out: nothing." in hands_report(annotations, tmp_path)
    (first, second) = [row for row in hands["train"] if row["image_id"] == "1"]
    np.testing.assert_allclose(first["uv"], [[10 + 2 * i, 20 + i] for i in range(21)])
    assert first["handedness"] == "right" and second["handedness"] == "left"
    assert first["box"] == [10, 20, 40, 20] and all(first["visibility"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["annotations.json"]


def hands_report(annotations: Path, tmp_path: Path) -> str:
    hands = CocoHands(annotations, tmp_path / "photos", cache_dir=tmp_path / "cache")
    hands.build()
    return hands.report().sentence()


def test_coco_of_a_film_has_its_frames_beside_it(answering, tmp_path):
    pytest.importorskip("av")
    write_film(tmp_path / "film.mp4", 20)
    run(tmp_path / "film.mp4", "--output", tmp_path / "out", "--format", "coco", "--every", "0.5", "--no_drawings")
    hands = rows(tmp_path / "out/annotations.json", cache_dir=tmp_path / "cache")
    assert len(hands) == 2 * 3  # at 0, 0.5 (frame 8 of 15 a second) and 1 seconds
    assert sorted(path.name for path in (tmp_path / "out/images").iterdir()) == [f"film-{n:07d}.jpg" for n in (0, 8, 15)]
    assert hands[0]["source"] == str(tmp_path / "film.mp4") and hands[0]["image"].size == (160, 120)
    (first, *_) = json.loads((tmp_path / "out/annotations.json").read_text())["annotations"]
    assert first["attributes"] == {"handedness": "right", "hand_id": 1}


def test_the_coco_file_is_whole_while_it_grows_and_on_a_full_disk(monkeypatch, tmp_path):
    image = Image.new("RGB", (120, 90))
    monkeypatch.setattr(handunet.answers, "COCO_SECONDS", 0.0)
    monkeypatch.setattr(handunet.answers, "COCO_SHARE", 1e9)
    answers = open_answers(tmp_path, "coco")
    for count in (1, 2, 3):
        answers.add("http://host/a.jpg", [hand()], image=image, place=f"a-{count}", file=None)
        assert len(rows(tmp_path / "annotations.json", cache_dir=tmp_path / "cache" / str(count))) == count

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"a-4\.jpg cannot be written: No space left on device"):
        answers.add("http://host/a.jpg", [hand()], image=image, place="a-4", file=None)
    answers.close()
    assert len(json.loads((tmp_path / "annotations.json").read_text())["annotations"]) == 3


def test_a_hand_outside_its_photograph_is_not_in_the_coco_file(tmp_path):
    answers = open_answers(tmp_path, "coco")
    answers.add("a.jpg", [hand(200), hand(-300), hand(100)], image=Image.new("RGB", (120, 90)), place="a", file=None)
    answers.close()
    (annotation,) = json.loads((tmp_path / "annotations.json").read_text())["annotations"]
    assert annotation["bbox"] == [100, 20, 20, 20] and annotation["num_keypoints"] == 21
    assert annotation["segmentation"] == []


@pytest.mark.parametrize("format", ["json", "jsonl", "csv"])
def test_after_a_full_disk_the_file_is_as_it_was(tmp_path, format):
    class Full:
        """A file on a disk with little room."""

        def __init__(self, file, room):
            self.file, self.room = file, room

        def write(self, data):
            data = data[: max(self.room - self.file.tell(), 0)]
            if not data:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    answers = Answers(tmp_path, format)
    for index in range(3):
        answers.add(f"{index}.jpg", [hand()])
    before = answers.path.read_bytes()
    answers.file = Full(answers.file, len(before) + 100)
    with pytest.raises(OutputError, match="No space left on device. What was done before is kept."):
        answers.add("3.jpg", [hand(), hand()])
    answers.close()
    assert answers.path.read_bytes() == before


def names_in(folder: Path) -> list[str]:
    from pyarrow import parquet

    return sorted(name for file in folder.glob("*.parquet") for name in parquet.read_table(file)["photo"].to_pylist())


def test_shards_share_the_photographs_and_hold_each_once(monkeypatch, answering, tmp_path):
    monkeypatch.chdir(tmp_path)  # a hash of the paths shares them, so these may not depend on where the test runs
    photos = photographs(Path("photos"), 30)
    monkeypatch.setattr(handunet.shards, "ANSWERS_IN_A_SHARD", 4)
    files = sorted(str(path) for path in photos.rglob("*.png"))
    counts = []
    for rank in (0, 1, 2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        run(photos, "--output", tmp_path / "out", "--format", "parquet", "--no_drawings")
        counts.append(len(names_in(tmp_path / "out")) - sum(counts))
    assert names_in(tmp_path / "out") == files and min(counts) >= 4
    assert not list((tmp_path / "out").glob("partial-*"))
    from datasets import load_dataset

    loaded = load_dataset("parquet", data_files=f"{tmp_path}/out/*.parquet", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 30 and loaded[0]["hands"][1]["label"] == "left hand"
    assert loaded[0]["hands"][0]["keypoints"][1] == {"name": "thumb_1", "x": 12, "y": 21, "score": pytest.approx(0.9)}
    # Once more: nothing is to do. A new photograph is.
    run(photos, "--output", tmp_path / "out", "--format", "parquet", "--no_drawings")
    assert names_in(tmp_path / "out") == files
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    Image.new("RGB", (120, 90)).save(photos / "new.png")
    run(photos, "--output", tmp_path / "out", "--format", "parquet", "--no_drawings")
    assert names_in(tmp_path / "out") == sorted([*files, str(photos / "new.png")])


@pytest.mark.slow
@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_after_a_kill_nothing_is_done_twice_and_nothing_is_lost(tmp_path, format):
    """Two processes are killed at some moment, and three go on, and are killed, until all is done."""
    photographs(tmp_path / "photos", 60)
    code = """import sys, time
import handunet.backends, handunet.predict as predict, handunet.shards as shards
handunet.backends.leave_out_torch()
shards.ANSWERS_IN_A_SHARD = 7
predict.Run.load = lambda run: setattr(run, "models", 1)
def find(run, photo):
    time.sleep(0.02)
    return []
predict.Run.find = find
add = shards.Shards.add
def noted(self, photo, *more, **others):
    add(self, photo, *more, **others)
    with open(sys.argv[1], "a") as file:
        file.write(photo + "\\n")
shards.Shards.add = noted
predict.main(sys.argv[2:])"""
    log, output = tmp_path / "log.txt", tmp_path / "out"
    command = [sys.executable, "-c", code, log, tmp_path / "photos", "--output", output, "--format", format, "--no_drawings"]
    for size, seconds in ((2, 0.25), (3, 0.1), (3, 0.3), (1, None)):
        begun = len(log.read_text().splitlines()) if log.exists() else 0
        environments = [os.environ | {"RANK": str(rank), "WORLD_SIZE": str(size)} for rank in range(size)]
        processes = [subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env) for env in environments]
        if seconds is None:
            assert [process.wait(timeout=120) for process in processes] == [0]
            break
        while (len(log.read_text().splitlines()) if log.exists() else 0) < begun + 4:
            time.sleep(0.01)
        time.sleep(seconds)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    files = sorted(str(path) for path in (tmp_path / "photos").rglob("*.png"))
    if format == "parquet":
        assert names_in(output) == files
    else:
        lines = [json.loads(line) for file in output.glob("*.jsonl") for line in file.read_text().splitlines()]
        assert sorted(line["photo"] for line in lines) == files
    answered = log.read_text().splitlines()
    # A process may be killed between the answer and this note of it, but not after the note.
    assert len(set(answered)) == len(answered) >= len(files) - 8


def test_a_film_that_was_not_ended_is_done_again_in_shards(tmp_path):
    settings = {"model": "a"}
    shards = Shards(tmp_path, "parquet", Share(), settings)
    shards.add("photo.jpg", [hand()])
    for frame in range(3):
        shards.add("whole.mp4", [hand(id=1)], frame, frame / 25)
    shards.end("whole.mp4", is_film=True)
    for frame in range(2):
        shards.add("half.mp4", [], frame, frame / 25)
    shards.log.close()  # as if it were killed here
    shards = Shards(tmp_path, "parquet", Share(), settings)
    assert [shards.is_done(name) for name in ("photo.jpg", "whole.mp4", "half.mp4")] == [True, True, False]
    assert names_in(tmp_path) == ["photo.jpg", *["whole.mp4"] * 3]
    assert Shards(tmp_path, "parquet", Share(), settings).is_done("whole.mp4")


def test_shards_of_other_settings_are_refused(tmp_path):
    shards = Shards(tmp_path, "parquet", Share(), {"model": "a", "boxes": None})
    shards.add("photo.jpg", [hand()])
    shards.close()
    with pytest.raises(ValueError, match=r"was begun with model 'a', not 'b': name another folder, or go on with the same"):
        Shards(tmp_path, "parquet", Share(), {"model": "b", "boxes": None})


def test_names_of_any_bytes_go_into_shards_once(tmp_path):
    shards = Shards(tmp_path, "parquet", Share(), {})
    shards.add("\udcff.jpg", [])
    shards.close()
    assert Shards(tmp_path, "parquet", Share(), {}).is_done("\udcff.jpg")


def test_several_processes_need_a_format_of_shards(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        run("photo.jpg", "--output", tmp_path / "out")
    assert "2 processes write shards: give --format parquet or jsonl" in capsys.readouterr().err


def test_a_data_set_is_answered_row_by_row(answering, tmp_path):
    import datasets

    photographs(tmp_path / "photos", 4)
    files = sorted(str(path) for path in (tmp_path / "photos").rglob("*.png"))
    bad = {"bytes": b"no image", "path": None}
    features = datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")})
    images = [{"bytes": Path(file).read_bytes(), "path": None} for file in files]
    table = datasets.Dataset.from_dict({"image": [*images, bad, None], "name": ["x"] * 6}, features=features)
    table.save_to_disk(tmp_path / "saved")
    with pytest.raises(SystemExit) as stop:
        run("--dataset", tmp_path / "saved", "--output", tmp_path / "out", "--format", "parquet")
    assert "2 could not be answered" in stop.value.code and "saved/train/4: " in stop.value.code
    assert names_in(tmp_path / "out") == [f"{tmp_path}/saved/train/{index}" for index in range(4)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [f"{index:08d}.png" for index in range(4)]
    for column, split, sentence in (("picture", "train", "no column 'picture': it has image, name"),):
        with pytest.raises(SystemExit, match=sentence):
            run("--dataset", tmp_path / "saved", "--column", column, "--split", split, "--output", tmp_path / "other")
    (tmp_path / "photos/metadata.csv").unlink(missing_ok=True)
    run("--dataset", tmp_path / "photos", "--output", tmp_path / "third", "--no_drawings")  # the imagefolder builder
    assert len(json.loads((tmp_path / "third/keypoints.json").read_text())) == 4


def test_label_studio_gives_back_the_hands_that_it_was_given(answering, tmp_path):
    from handunet.label_studio import main

    photographs(tmp_path / "photos", 3)
    run(tmp_path / "photos", "--output", tmp_path / "out", "--format", "coco", "--no_drawings")
    main([str(tmp_path / "out/annotations.json"), "--image_url", "/data/local-files/?d=photos/"])
    (tmp_path / "out/label_studio.json").rename(tmp_path / "export.json")
    one = rows(tmp_path / "out/annotations.json", tmp_path / "photos", cache_dir=tmp_path / "one")
    two = rows(tmp_path / "export.json", tmp_path / "photos", cache_dir=tmp_path / "two")
    assert [row["handedness"] for row in two] == [row["handedness"] for row in one] == ["right", "left"] * 3
    np.testing.assert_allclose(two["uv"], one["uv"], atol=1e-3)
    np.testing.assert_allclose(two["box"], one["box"], atol=1e-3)
    interface = (tmp_path / "out/label_studio.xml").read_text()
    assert interface.count("<Label ") == 2 + 21
