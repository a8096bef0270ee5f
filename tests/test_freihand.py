"""The FreiHAND loader: official layout, splits, projection, and what it refuses."""

import gc
import hashlib
import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node
from PIL import Image

import dataset_script.freihand
from dataset_script import FreiHAND, HandCrops, SyntheticHands, project_points
from dataset_script.freihand import write_freihand
from tests.hub_server import HubServer, run_program

REAL = Path(__file__).parents[2] / "shared" / "data" / "freihand_real"
real_freihand = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there: FreiHAND may not be redistributed")

K = [[400.0, 0.0, 112.0], [0.0, 400.0, 112.0], [0.0, 0.0, 1.0]]


# Pillow would hand this to Ghostscript.
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 224 224\n%%EndComments\nshowpage\n"


def a_hand(frame: int) -> list[list[float]]:
    """21 points half a metre away, 2 mm apart; the first projects to x = 112 + 400 * 0.001 * frame / 0.5."""
    return [[0.001 * frame + 0.002 * joint, -0.01 + 0.003 * joint, 0.5] for joint in range(21)]


def write_tree(folder: Path, frames: int, versions: int = 1, part: str = "training") -> Path:
    """FreiHAND's official layout with tiny frames, image id in the red channel."""
    images = ((number, Image.new("RGB", (224, 224), (number % 256, 120, 60))) for number in range(frames * versions))
    write_freihand(folder, images, [a_hand(frame) for frame in range(frames)], [K] * frames, part=part)
    return folder


def write_zip(path: Path, folder: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, top + file.relative_to(folder).as_posix())
    return path


def edit_json(path: Path, edit) -> None:
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "freihand", 4)


@pytest.fixture
def build(tmp_path):
    return lambda data_dir, *args, **kwargs: FreiHAND(data_dir, *args, cache_dir=tmp_path / "cache", **kwargs).build()


def no_rows_are_left(cache: Path) -> bool:
    return not [path for path in cache.rglob("*") if path.suffix in (".arrow", ".parquet") or "incomplete" in path.name]


@real_freihand
def test_the_first_keypoint_of_the_real_entry_0_projects_where_it_was_measured(build):
    splits = build(REAL)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 5}
    row = splits["train"][0]
    np.testing.assert_allclose(row["uv"][0], (131.4769, 93.5137), atol=1e-4)
    assert row["frame_id"] == 0 and row["background"] == "green_screen" and row["image"].size == (224, 224)
    assert np.shape(row["uv"]) == (21, 2) and np.shape(row["xyz"]) == (21, 3) and np.shape(row["K"]) == (3, 3)


@real_freihand
def test_rows_keep_the_official_files_bytes(build):
    rows = build(REAL)["train"].cast_column("image", datasets.Image(decode=False))
    assert rows[3]["image"]["path"] == "00000003.jpg"
    assert rows[3]["image"]["bytes"] == (REAL / "training" / "rgb" / "00000003.jpg").read_bytes()


def test_projection_divides_by_depth_and_adds_the_principal_point():
    xyz = np.tile([0.1, -0.2, 0.5], (21, 1))
    np.testing.assert_allclose(project_points(xyz, K)[0], (112 + 400 * 0.2, 112 - 400 * 0.4))
    skewed = [[400.0, 10.0, 112.0], [0.0, 300.0, 100.0], [0.0, 0.0, 1.0]]
    batch = project_points(np.stack([xyz, xyz]), np.stack([K, skewed]))
    np.testing.assert_allclose(batch[1, 20], (400 * 0.2 + 10 * -0.4 + 112, 300 * -0.4 + 100))


@pytest.mark.parametrize(
    ("what", "place", "value"),
    [
        ("xyz has values that are not finite", (1, 3, 0), np.nan),
        ("not in front of the camera", (1, 0, 2), -0.5),
        ("not in front of the camera", (1, 0, 2), 0.0),
        ("xyz has values beyond 100000", (1, 0, 0), -1e300),
    ],
)
def test_projection_refuses_points_that_have_no_image_and_names_the_frame(what, place, value):
    xyz = np.array([a_hand(0), a_hand(1)])
    xyz[place] = value
    with pytest.raises(ValueError, match=f"{what}.* in frames 1$"):
        project_points(xyz, np.array([K, K]))
    with pytest.raises(ValueError, match=what):
        project_points(xyz[1], K)


@pytest.mark.parametrize("broken", [np.zeros((3, 3)), np.diag([400.0, 0.0, 1.0]), np.full((3, 3), np.inf)])
def test_projection_refuses_a_singular_or_infinite_k(broken):
    with pytest.raises(ValueError, match=r"(singular|not finite) in frames 0$"):
        project_points(np.array([a_hand(0)]), broken[None])


@pytest.mark.parametrize("row", [[0.0, 0.0, -1.0], [0.0, 0.1, 1.0]])
def test_projection_refuses_a_k_that_mixes_depth_with_the_image(row):
    with pytest.raises(ValueError, match=r"last row than \(0, 0, positive\)"):
        project_points(a_hand(0), [*K[:2], row])


def test_projection_refuses_points_on_the_cameras_very_surface():
    with pytest.raises(ValueError, match="no finite projection"):
        project_points([[1e4, 0.0, 1e-306]] * 21, K)


def test_projection_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"\(21, 2\)"):
        project_points(np.zeros((21, 2)), K)


def test_splits_are_the_official_contiguous_blocks():
    assert dataset_script.freihand.SPLITS == {
        "train": (0, 26000), "validation": (26000, 31000), "test": (31000, 32560)
    }  # fmt: skip


def test_frames_fall_into_blocks_and_a_frames_versions_never_straddle_them(tmp_path, build, monkeypatch):
    monkeypatch.setattr(dataset_script.freihand, "SPLITS", {"train": (0, 3), "validation": (3, 5), "test": (5, 6)})
    monkeypatch.setattr(dataset_script.freihand, "FRAMES_PER_SHARD", 2)
    splits = build(write_tree(tmp_path / "tree", 6, versions=4), "all")
    frames = {name: set(rows["frame_id"]) for name, rows in splits.items()}
    assert frames == {"train": {0, 1, 2}, "validation": {3, 4}, "test": {5}}
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 12, "validation": 8, "test": 4}
    for rows in splits.values():
        for row in rows:
            version = dataset_script.freihand.BACKGROUNDS.index(row["background"])
            red = np.asarray(row["image"])[..., 0].mean()
            assert red == pytest.approx(row["frame_id"] + 6 * version, abs=2)  # image id = frame + frames * version
            assert row["uv"][0][0] == pytest.approx(112 + 0.8 * row["frame_id"], abs=1e-4)


def test_raw_has_the_green_screen_alone(tmp_path, build):
    rows = build(write_tree(tmp_path / "tree", 3, versions=4), "raw")["train"]
    assert rows["frame_id"][:] == [0, 1, 2] and set(rows["background"]) == {"green_screen"}


@pytest.fixture
def _nothing_to_free():
    """What other tests left in cycles is freed now, and never in a forked process, which lacks the threads that go with it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_nothing_to_free")
def test_two_processes_build_what_one_builds(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_script.freihand, "FRAMES_PER_SHARD", 2)
    tree = write_tree(tmp_path / "tree", 5, versions=4)
    one = FreiHAND(tree, "all", cache_dir=tmp_path / "one").build()["train"]
    two = FreiHAND(tree, "all", cache_dir=tmp_path / "two").build(num_proc=2)["train"]
    assert one.data.table.equals(two.data.table)


def test_two_processes_name_together_what_they_leave_out(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_script.freihand, "FRAMES_PER_SHARD", 3)
    tree = write_tree(tmp_path / "tree", 6)
    for frame in (1, 5):
        (tree / "training" / "rgb" / f"{frame:08d}.jpg").write_bytes(b"not an image")
    builder = FreiHAND(tree, cache_dir=tmp_path / "cache", max_unreadable_share=0.5)
    assert builder.build(num_proc=2)["train"]["frame_id"][:] == [0, 2, 3, 4]
    assert [Path(name).name for name in builder.left_out()] == ["00000001.jpg", "00000005.jpg"]


def test_a_zip_gives_the_rows_of_its_folder_with_or_without_a_top_folder(tmp_path, tree, build):
    expected = build(tree)["train"].data.table
    for top in ("", "FreiHAND_pub_v2/"):
        zipped = write_zip(tmp_path / f"zip{len(top)}.zip", tree, top)
        assert build(zipped)["train"].data.table.equals(expected)
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name not in ("freihand", "cache")]


def test_a_folder_that_holds_the_official_zips_is_enough(tmp_path, tree, build):
    evaluation = write_tree(tmp_path / "evaluation_tree", 2, part="evaluation")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    write_zip(downloads / "FreiHAND_pub_v2.zip", tree)
    assert set(build(downloads)) == {"train"}
    write_zip(downloads / "FreiHAND_pub_v2_eval.zip", evaluation)
    splits = build(downloads)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 4, "evaluation": 2}
    assert splits["evaluation"][1]["background"] == "real"
    assert set(build(downloads / "FreiHAND_pub_v2.zip")) == {"train", "evaluation"}


def test_the_evaluation_images_without_their_annotations_are_no_split(tree, build):
    """As in the official training zip, which has evaluation/rgb and evaluation_K.json alone."""
    write_tree(tree / "extra", 1, part="evaluation")
    shutil.move(tree / "extra" / "evaluation", tree)
    shutil.move(tree / "extra" / "evaluation_K.json", tree)
    shutil.rmtree(tree / "extra")
    assert set(build(tree)) == {"train"}


def test_streaming_gives_the_same_rows(tmp_path, tree):
    builder = FreiHAND(tree, cache_dir=tmp_path / "cache")
    rows = list(builder.as_streaming_dataset(split="train"))
    assert [row["frame_id"] for row in rows] == [0, 1, 2, 3]


def test_a_changed_folder_is_not_served_from_the_cache(tree, build):
    before = build(tree)["train"]
    edit_json(tree / "training_xyz.json", lambda frames: frames[0][0].__setitem__(0, 0.05))
    after = build(tree)["train"]
    assert before[0]["uv"][0][0] == pytest.approx(112.0) and after[0]["uv"][0][0] == pytest.approx(152.0)
    assert before._fingerprint != after._fingerprint


def test_a_missing_folder_is_named(tmp_path, build):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist.*dataset_script.download"):
        build(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no FreiHAND"):
        build(tmp_path / "empty")


@pytest.mark.parametrize("name", ["training_K.json", "training_xyz.json"])
def test_a_missing_annotation_file_is_named(tree, build, name):
    (tree / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        build(tree)


def test_a_half_copied_folder_is_refused_with_the_count_and_names(tree, build, tmp_path):
    (tree / "training" / "rgb" / "00000001.jpg").unlink()
    (tree / "training" / "rgb" / "00000003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 4 annotated images are missing \(00000001.jpg, 00000003.jpg\)"):
        build(tree)
    assert no_rows_are_left(tmp_path / "cache")


def test_all_versions_asked_of_a_raw_folder_are_missing_by_count(tree, build):
    with pytest.raises(FileNotFoundError, match=r'12 of 16 annotated images.*name="raw"'):
        build(tree, "all")


def test_annotations_of_different_lengths_are_refused(tree, build):
    edit_json(tree / "training_K.json", lambda frames: frames.pop())
    with pytest.raises(ValueError, match=r"4 entries and training_K.json 3"):
        build(tree)


def test_more_entries_than_freihand_has_are_refused(tree, build, monkeypatch):
    monkeypatch.setattr(dataset_script.freihand, "NUM_FRAMES", 3)
    with pytest.raises(ValueError, match=r"4 entries, FreiHAND has 3"):
        build(tree)


def set_point(frame, joint, axis, value):
    return lambda frames: frames[frame][joint].__setitem__(axis, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_point(2, 4, 1, float("nan")), r"training_xyz.json.*not finite in frames 2$"),
        (set_point(1, 4, 2, -0.5), r"not in front of the camera.*frames 1$"),
        (lambda frames: [point.__setitem__(2, 500.0) for point in frames[2]], r"10 m away in 1 frames: 2\..*metres"),
        (set_point(3, 20, 0, 0.5), r"far outside the image of 224 x 224 pixels in 1 frames: 3$"),
        (set_point(0, 7, 0, "0.1"), r"1 of 4 frames are not 21 lists of 3 numbers: frames 0$"),
        (set_point(0, 7, 0, None), r"1 of 4 frames.*frames 0$"),
        (set_point(0, 7, 0, 10**400), r"1 of 4 frames.*frames 0$"),
        (lambda frames: frames[2].pop(), r"1 of 4 frames.*frames 2$"),
        (lambda frames: frames[2][5].append(0.0), r"1 of 4 frames.*frames 2$"),
        (lambda frames: frames.__setitem__(1, {"x": 1}), r"1 of 4 frames.*frames 1$"),
        (lambda frames: frames.clear(), r"not a list of frames"),
    ],
)
def test_bad_keypoints_are_refused_at_build_time_naming_the_frames(tree, build, tmp_path, edit, message):
    edit_json(tree / "training_xyz.json", edit)
    with pytest.raises(ValueError, match=message):
        build(tree)
    assert no_rows_are_left(tmp_path / "cache")


def test_a_point_somewhat_outside_the_image_is_accepted(tree, build):
    edit_json(tree / "training_xyz.json", set_point(0, 8, 0, 0.2))  # x = 112 + 400 * 0.4 = 272 of 224
    assert build(tree)["train"][0]["uv"][8][0] == pytest.approx(272.0)


def test_a_singular_k_is_refused_naming_the_frame(tree, build):
    edit_json(tree / "training_K.json", lambda frames: frames.__setitem__(2, [[0, 0, 0]] * 3))
    with pytest.raises(ValueError, match=r"K is singular in frames 2$"):
        build(tree)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"[[[0.1, 0.2", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[" + b"1" * 5000 + b"]", "not valid JSON"),
        (b'{"a": 1}', "not a list of frames"),
    ],
)
def test_json_that_is_no_list_of_frames_is_refused_by_name(tree, build, text, message):
    (tree / "training_xyz.json").write_bytes(text)
    with pytest.raises(ValueError, match=f"training_xyz.json.*{message}"):
        build(tree)


def test_oversized_json_is_refused_unread(tree, build, monkeypatch):
    monkeypatch.setattr(dataset_script.freihand, "MAX_JSON_BYTES", 1000)
    with pytest.raises(ValueError, match=r"training_xyz.json is larger than 1000 bytes"):
        build(tree)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "a program"])
def test_an_unreadable_image_is_named_and_leaves_nothing(tree, build, tmp_path, damage):
    path = tree / "training" / "rgb" / "00000002.jpg"
    data = path.read_bytes()
    cut = data[: len(data) * 2 // 3]
    path.write_bytes({"truncated": cut, "text": b"not an image", "empty": b"", "a program": POSTSCRIPT}[damage])
    with pytest.raises(ValueError, match=r"1 of 4 images cannot be read, 0 may be.*00000002.jpg"):
        build(tree)
    assert no_rows_are_left(tmp_path / "cache")
    path.write_bytes(data)
    assert len(build(tree)["train"]) == 4


def test_unreadable_images_below_the_stated_share_are_left_out_and_named(tree, build, tmp_path, caplog):
    (tree / "training" / "rgb" / "00000002.jpg").write_bytes(b"not an image")
    rows = build(tree, max_unreadable_share=0.25)["train"]
    assert rows["frame_id"][:] == [0, 1, 3]
    assert "00000002.jpg" in caplog.text
    for _ in range(2):  # as the rows were written, and when they come from the cache
        builder = FreiHAND(tree, cache_dir=tmp_path / "cache", max_unreadable_share=0.25)
        builder.download_and_prepare()
        assert list(builder.left_out()) == [str(tree / "training" / "rgb" / "00000002.jpg")]
    (tree / "training" / "rgb" / "00000001.jpg").write_bytes(b"neither")
    (tree / "training" / "rgb").touch()
    with pytest.raises(ValueError, match=r"2 of 4 images cannot be read, 1 may be"):
        build(tree, max_unreadable_share=0.25)


def test_an_error_in_a_second_process_arrives_as_it_was_raised(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_script.freihand, "FRAMES_PER_SHARD", 2)
    (tree / "training" / "rgb" / "00000002.jpg").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"1 of 2 images cannot be read, 0 may be.*00000002.jpg"):
        FreiHAND(tree, cache_dir=tmp_path / "cache").build(num_proc=2)


def test_a_forced_rebuild_takes_up_a_repaired_image(tree, tmp_path):
    path = tree / "training" / "rgb" / "00000002.jpg"
    data = path.read_bytes()
    path.write_bytes(b"not an image")
    assert len(FreiHAND(tree, cache_dir=tmp_path / "c", max_unreadable_share=0.3).build()["train"]) == 3
    path.write_bytes(data)
    builder = FreiHAND(tree, cache_dir=tmp_path / "c", max_unreadable_share=0.3)
    builder.download_and_prepare(download_mode="force_redownload")
    assert len(builder.as_dataset()["train"]) == 4


def test_a_forced_rebuild_crops_a_photograph_that_changed_anew(tree, tmp_path):
    def middle(mode=None) -> list[int]:
        builder = FreiHAND(tree, cache_dir=tmp_path / "c")
        builder.download_and_prepare(download_mode=mode)
        return HandCrops(builder.as_dataset()["train"], cache_dir=tmp_path / "crops")[0]["image"][:, 64, 64].tolist()

    before = middle()
    Image.new("RGB", (224, 224), (0, 0, 254)).save(tree / "training" / "rgb" / "00000000.jpg", quality=95)
    assert middle("force_redownload") == pytest.approx([0, 0, 254], abs=3) and before != pytest.approx([0, 0, 254], abs=3)


def test_an_image_of_another_size_than_the_annotations_is_refused(tree, build):
    Image.new("RGB", (128, 128)).save(tree / "training" / "rgb" / "00000003.jpg")
    with pytest.raises(ValueError, match=r"00000003.jpg is 128 x 128 pixels, others are 224 x 224"):
        build(tree)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_outside_its_range_is_refused(tree, build, share):
    with pytest.raises(ValueError, match="max_unreadable_share"):
        build(tree, max_unreadable_share=share)


def test_an_unknown_configuration_is_refused(tree, build):
    with pytest.raises(ValueError, match="green"):
        build(tree, "green")


def test_a_truncated_zip_is_refused_by_name(tmp_path, tree, build):
    path = write_zip(tmp_path / "cut.zip", tree)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut.zip is not a whole zip file"):
        build(path)


def test_a_flipped_byte_inside_a_zip_is_found(tmp_path, tree, build):
    path = write_zip(tmp_path / "flipped.zip", tree)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("training/rgb/00000001.jpg").header_offset
    data = bytearray(path.read_bytes())
    data[start + 1000] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"00000001.jpg.*damaged inside the zip"):
        build(path)


def test_links_and_climbing_members_of_a_zip_are_not_followed(tmp_path, tree, build):
    secret = tmp_path / "secret.json"
    secret.write_text((tree / "training_xyz.json").read_text())
    path = tmp_path / "linked.zip"
    (tree / "training_xyz.json").unlink()
    write_zip(path, tree)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("training_xyz.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(secret))
        archive.writestr("../climbed.txt", "out")
    with pytest.raises(ValueError, match=r"training_xyz.json is a link"):
        build(path)
    assert not (tmp_path.parent / "climbed.txt").exists() and not (tmp_path / "climbed.txt").exists()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, tree, build, monkeypatch):
    monkeypatch.setattr(dataset_script.freihand, "MAX_JSON_BYTES", 1 << 20)
    path = tmp_path / "bomb.zip"
    (tree / "training_xyz.json").unlink()
    write_zip(path, tree)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("training_xyz.json", b"[" + b" " * (1 << 22) + b"]")
    assert os.path.getsize(path) < 1 << 16
    with pytest.raises(ValueError, match=r"training_xyz.json is larger than \d+ bytes"):
        build(path)


def test_a_build_that_is_killed_is_not_taken_for_whole(tree, tmp_path):
    def build_and_die():
        read = dataset_script.freihand.image_size
        calls = []

        def die_at_the_fourth(*args, **kwargs):
            calls.append(args)
            return os._exit(9) if len(calls) > 3 else read(*args, **kwargs)

        dataset_script.freihand.image_size = die_at_the_fourth
        FreiHAND(tree, cache_dir=tmp_path / "cache").build()

    process = multiprocessing.get_context("fork").Process(target=build_and_die)
    process.start()
    process.join(60)
    assert process.exitcode == 9 and list((tmp_path / "cache").rglob("*.incomplete"))
    assert FreiHAND(tree, cache_dir=tmp_path / "cache").build()["train"]["frame_id"][:] == [0, 1, 2, 3]
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_parquet_files_load_back_and_stream_to_each_node_its_share(tmp_path, build, monkeypatch):
    monkeypatch.setattr(dataset_script.freihand, "SPLITS", {"train": (0, 4), "validation": (4, 6)})
    rows = build(write_tree(tmp_path / "tree", 6))
    for shard in range(2):
        rows["train"].shard(2, shard).to_parquet(tmp_path / "published" / f"train-{shard}.parquet")
    files = {"train": str(tmp_path / "published" / "train-*.parquet")}
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "c"))
    assert loaded.features == rows["train"].features
    assert [row["uv"] for row in loaded] == [row["uv"] for row in rows["train"]]
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    nodes = [[row["frame_id"] for row in split_dataset_by_node(stream, rank, 2)] for rank in (0, 1)]
    assert nodes == [[0, 1], [2, 3]]


PUSH = """
import json, sys
from dataset_script import FreiHAND
splits = FreiHAND(sys.argv[1], "all").build()
print(json.dumps(splits.push_to_hub("tester/freihand", num_shards={"train": 4}).oid))
"""
PULL = """
import hashlib, json, sys
import datasets
from datasets.distributed import split_dataset_by_node
options = {"split": "train", "revision": sys.argv[1]}
rows = datasets.load_dataset("tester/freihand", **options)
stream = datasets.load_dataset("tester/freihand", streaming=True, **options)
nodes = [[[row["frame_id"], row["background"]] for row in split_dataset_by_node(stream, rank, 2)] for rank in (0, 1)]
encoded = rows.cast_column("image", datasets.Image(decode=False))["image"]
digests = [hashlib.sha256(image["bytes"]).hexdigest() for image in encoded]
print(json.dumps({"rows": [[row["frame_id"], row["background"]] for row in rows], "nodes": nodes, "images": digests,
                  "uv": rows["uv"][:], "size": rows[0]["image"].size}))
"""


@pytest.mark.slow
def test_a_published_copy_loads_back_whole_and_streams_to_each_node_its_share(tmp_path):
    tree = write_tree(tmp_path / "tree", 2, versions=4)
    expected = FreiHAND(tree, "all", cache_dir=tmp_path / "cache").build()["train"]
    with HubServer(tmp_path / "hub") as hub:
        commit = run_program(hub, PUSH, tree, cwd=tmp_path, with_package=True)
        assert sum(name.endswith(".parquet") for name in hub.files("tester/freihand", "dataset")) == 4
        pulled = run_program(hub, PULL, commit, cwd=tmp_path)
    names = [[row["frame_id"], row["background"]] for row in expected]
    assert pulled["rows"] == names and len(names) == 8
    assert pulled["uv"] == expected["uv"][:] and pulled["size"] == [224, 224]
    files = [tree / "training" / "rgb" / f"{image:08d}.jpg" for image in range(8)]
    assert pulled["images"] == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert sorted(pulled["nodes"][0] + pulled["nodes"][1]) == sorted(names)
    assert len(pulled["nodes"][0]) == len(pulled["nodes"][1]) == 4


def test_synthetic_hands_written_in_the_official_layout_load_as_they_were_drawn(tmp_path, build):
    hands = SyntheticHands(2, image_size=128)
    hands.write_freihand(tmp_path / "tree", versions=4, image_size=128)
    rows = build(tmp_path / "tree", "all")["train"]
    assert rows["frame_id"][:] == [0, 1] * 4
    for index, row in enumerate(rows):
        np.testing.assert_allclose(row["uv"], hands[index % 2]["uv"], atol=0.01)
        np.testing.assert_allclose(project_points(row["xyz"], row["K"]), row["uv"], atol=0.01)


@pytest.mark.slow
def test_a_tree_of_the_full_number_of_frames_builds_from_folder_and_zip_in_bounded_memory(tmp_path):
    """All 32,560 frames, on one background; `python -m tools.full_size_freihand` does the four."""
    command = [sys.executable, "-m", "tools.full_size_freihand", "--versions", "1", "--distinct", "20"]
    run = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True
    )
    folder, zipped = (json.loads(line) for line in run.stdout.splitlines() if line.startswith("{"))
    for result in (folder, zipped):
        assert result["rows"] == {"train": 26000, "validation": 5000, "test": 1560}
        assert result["peak_mb"] < 1000
