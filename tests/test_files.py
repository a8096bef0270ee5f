"""Files from strangers: JSON, zips and images that are too large, claim to be, or are damaged."""

import contextlib
import io
import json
import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import modeling_handunet.images
from dataset_script.files import MAX_JSON_BYTES, MAX_JSON_NESTING, MAX_JSON_VALUES, FileTree, image_size, parse_json
from modeling_handunet.images import load_image


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@contextlib.contextmanager
def memory_below(limit: int):
    """Python may take less than `limit` bytes meanwhile."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, with the right checksums."""
    checked = ((name + data, len(data)) for name, data in chunks)
    pieces = (struct.pack(">I", length) + text + struct.pack(">I", zlib.crc32(text)) for text, length in checked)
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


# JSON


@pytest.mark.parametrize("brackets", ["[]", ('{"a":', "}")])
@pytest.mark.parametrize("depth", [MAX_JSON_NESTING + 2, 990, 100_000])
def test_json_that_is_nested_deeply_is_refused_by_name(brackets, depth):
    with pytest.raises(ValueError, match="hands.json is nested too deeply"):
        parse_json((brackets[0] * depth + "1" + brackets[1] * depth).encode(), "hands.json")


def test_json_of_any_other_depth_is_read():
    text = "[" * MAX_JSON_NESTING + "1" + "]" * MAX_JSON_NESTING
    assert parse_json(text.encode(), "hands.json") == json.loads(text)


@pytest.mark.parametrize("item", [b"[]", b"{}", b'{"":0}', b'"ab"'])
def test_json_of_which_python_would_keep_a_gigabyte_is_refused_unread(item):
    text = b"[" + (item + b",") * 16_000_000 + item + b"]"
    with memory_below(1 << 20), pytest.raises(ValueError, match=r"hands.json has about [\d,]+ values.* 12,000,000"):
        parse_json(text, "hands.json")


def test_the_bounds_let_freihands_own_lists_through():
    frame = json.dumps([[-0.123456789012345678] * 3] * 21).encode()
    text = b"[" + b",".join([frame] * 32560) + b"]"
    assert len(text) < MAX_JSON_BYTES
    assert sum(text.count(mark) for mark in (b",", b"[")) == 32560 * (63 + 22) < MAX_JSON_VALUES / 4


# Zips


@pytest.fixture
def path(tmp_path):
    return tmp_path / "hands.zip"


def write(path, *, method=zipfile.ZIP_DEFLATED, **files: bytes):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def claim(path, *, size: int | None = None, packed: int | None = None) -> None:
    """Overwrite what a zip of one member claims of that member's sizes, in the list of members and before its bytes."""
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, len(data) - 6)
    for value, places in ((packed, (18, start + 20)), (size, (22, start + 24))):
        for place in places:
            if value is not None:
                data[place : place + 4] = struct.pack("<I", value)
    path.write_bytes(data)


@pytest.mark.parametrize("size", [10, 10**6])
def test_a_member_that_unpacks_to_more_than_it_claims_takes_no_more_than_that(path, size):
    write(path, a=bytes(50_000_000))
    claim(path, size=size)
    assert path.stat().st_size < 64_000
    with memory_below(8 << 20), pytest.raises(ValueError, match=r"hands.zip/a is damaged inside the zip"):
        FileTree(path).read("a", 1 << 24)


@pytest.mark.parametrize("claims", [{"size": 10**9}, {"packed": 10**9}, {"size": 10**9, "packed": 10**9}])
def test_a_gigabyte_that_a_small_zip_claims_is_refused_unread(path, claims):
    write(path, a=b"[1]")
    claim(path, **claims)
    with pytest.raises(ValueError, match=r"hands.zip/a is larger than 16777216 bytes"):
        FileTree(path).read("a", 1 << 24)


def test_a_member_that_is_shorter_than_it_claims_is_damaged(path):
    write(path, a=bytes(1000))
    claim(path, size=2000)
    with pytest.raises(ValueError, match=r"hands.zip/a is damaged inside the zip \(1000 of 2000 bytes\)"):
        FileTree(path).read("a", 1 << 24)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_zipfile_unpacks_without_bounds_are_refused(path, method):
    write(path, method=method, a=bytes(1000))
    with pytest.raises(ValueError, match=rf"hands.zip/a cannot be unpacked \(compression type {method}\)"):
        FileTree(path).read("a", 1 << 24)


def test_a_gigabyte_of_members_that_a_small_zip_claims_is_refused(path):
    write(path, a=b"[1]")
    data = bytearray(path.read_bytes())
    data[-10:-2] = struct.pack("<II", 10**9, 0)  # how long the list is, and where it begins
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"hands.zip is not a whole zip file"):
        FileTree(path).find("a")


def test_files_are_found_below_the_first_folder_that_has_them(path, tmp_path):
    names = ["c/training_xyz.json", "b/training/rgb/0.jpg", "a/training/rgb/", "a/other.json", "d/training_K.json"]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    folder = tmp_path / "folder"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    for tree in (FileTree(path), FileTree(folder)):
        assert tree.find("training_xyz.json", "training/rgb").prefix == "b/"  # a/ has none, c/ comes later
        assert tree.find("training_K.json").prefix == "d/"
        assert tree.find("evaluation_K.json") is None
        assert tree.find("a/other.json").prefix == ""


def test_a_zip_of_many_folders_is_gone_through_once_and_not_for_each(path):
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(100):
            archive.writestr(f"{number}/other.json", b"")

    class Members(dict):
        passes = 0

        def __iter__(self):
            Members.passes += 1
            return super().__iter__()

    tree = FileTree(path)
    archive = tree.open_zip()
    archive.NameToInfo = Members(archive.NameToInfo)
    assert tree.find("training_xyz.json", "training/rgb") is None
    assert Members.passes == 1


def test_nothing_is_read_from_a_pipe_that_never_ends(tmp_path):
    os.mkfifo(tmp_path / "training_xyz.json")
    with pytest.raises(ValueError, match="training_xyz.json is not a file"):
        FileTree(tmp_path).read("training_xyz.json", 1000)


# Images: what the builders accept is what `load_image` reads


def both(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    return image_size(data), load_image(data).size


def refused_by_both(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_size(data)
    with pytest.raises((ValueError, OSError), match=message):
        load_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_that_of_the_image_as_it_is_read(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = (20, 30) if orientation in (6, 8) else (30, 20)
    assert both(encode(Image.new("RGB", (30, 20)), kind, exif=exif)) == (expected, expected)


def test_an_orientation_that_comes_after_the_pixels_counts_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.new("RGB", (30, 20)), "PNG", exif=exif)
    chunks, place = {}, 8
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        chunks[data[place + 4 : place + 8]] = data[place:end]
        place = end
    late = data[:8] + b"".join(chunks[name] for name in (b"IHDR", b"IDAT", b"eXIf", b"IEND"))
    assert both(late) == ((20, 30), (20, 30))


def test_a_progressive_jpeg_of_very_many_scans_is_refused_before_it_is_decoded():
    data = bytearray(encode(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), "JPEG", progressive=True))
    start = data.index(b"\xff\xc2")
    data[start + 5 : start + 9] = struct.pack(">HH", 8000, 8000)
    first = data.index(b"\xff\xda")
    data[-2:] = data[first:-2] * 50 + b"\xff\xd9"
    refused_by_both(bytes(data), r"is a progressive JPEG of \d+ scans of 8000x8000 pixels")


def test_a_tiff_of_very_many_strips_is_refused_before_it_is_decoded(monkeypatch):
    data = encode(Image.new("L", (1, 1000)), "TIFF", tiffinfo={278: 1})
    monkeypatch.setattr(modeling_handunet.images, "MAX_TIFF_STRIPS", 1000)
    assert both(data) == ((1, 1000), (1, 1000))
    monkeypatch.setattr(modeling_handunet.images, "MAX_TIFF_STRIPS", 999)
    refused_by_both(data, "has 1000 strips or tiles")


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_an_image_that_claims_billions_of_pixels_is_refused_before_it_is_decoded(kind):
    data = bytearray(encode(Image.new("P", (10, 10)), kind))
    place, form = {"GIF": (6, "<HH"), "BMP": (18, "<ii")}[kind]
    data[place : place + struct.calcsize(form)] = struct.pack(form, 65535, 65535)
    refused_by_both(bytes(data), "4294836225 pixels")


@pytest.mark.parametrize("width, height", [(8000, 8001), (2**31 - 1, 2**31 - 1), (64_000_001, 1)])
def test_a_png_bomb_is_refused_before_it_is_unpacked(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    bomb = png((b"IHDR", header), (b"IDAT", zlib.compress(bytes(50_000_000))), (b"IEND", b""))
    with memory_below(2 << 20):
        refused_by_both(bomb, "pixels")


@pytest.mark.parametrize("chunk", [b"zTXt", b"iTXt"])
def test_text_of_a_png_that_unpacks_to_much_is_refused(chunk):
    start = b"a\0\0" if chunk == b"zTXt" else b"a\0\1\0\0\0"
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    text = chunk, start + zlib.compress(bytes(50_000_000))
    bomb = png((b"IHDR", header), text, (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b""))
    with memory_below(4 << 20):
        refused_by_both(bomb, "too large|too much")


def test_a_png_without_the_palette_that_it_needs_is_refused():
    header = struct.pack(">IIBBBBB", 1, 1, 8, 3, 0, 0, 0)
    image = ((b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b""))
    assert both(png((b"IHDR", header), (b"PLTE", bytes(3)), *image)) == ((1, 1), (1, 1))
    refused_by_both(png((b"IHDR", header), *image), "it may be damaged")
