import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_handunet.images import MAX_IMAGE_PIXELS, load_image, to_rgb


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, int, int]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


def encode(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return image


def transparent_palette_image() -> Image.Image:
    image = palette_image()
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (2, 1), (1, 2, 3)), (1, 2, 3)),
        (Image.new("L", (2, 1), 100), (100, 100, 100)),
        (Image.new("1", (2, 1), 1), (255, 255, 255)),
        (Image.new("LA", (2, 1), (200, 128)), (100, 100, 100)),  # 200 * 128 / 255 over black
        (Image.new("RGBA", (2, 1), (200, 100, 50, 128)), (100, 50, 25)),
        (Image.new("RGBA", (2, 1), (200, 100, 50, 0)), (0, 0, 0)),
        (palette_image(), (10, 200, 30)),
        (transparent_palette_image(), (0, 0, 0)),
        (Image.new("CMYK", (2, 1), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("CMYK", (2, 1), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("YCbCr", (2, 1), (90, 128, 128)), (90, 90, 90)),
        (Image.fromarray(np.full((1, 2), 257 * 100, np.uint16)), (100, 100, 100)),
        (Image.fromarray(np.full((1, 2), 200, np.uint16)), (1, 1, 1)),  # dark, and still 16 bits
        (Image.fromarray(np.full((1, 2), 257 * 100, np.int32)), (100, 100, 100)),
        (Image.fromarray(np.full((1, 2), 0.4, np.float32)), (102, 102, 102)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_mode_becomes_eight_bit_rgb(image, expected):
    assert pixel(to_rgb(image), 1) == expected


def test_sixteen_bit_files_are_scaled_to_eight_bits(tmp_path):
    for name in ("deep.png", "deep.tiff"):
        Image.fromarray(np.full((2, 3), 257 * 60, np.uint16)).save(tmp_path / name)
        assert pixel(load_image(tmp_path / name)) == (60, 60, 60)


@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    # Where the stored top left pixel belongs, from the EXIF standard's table of rows and columns.
    [
        (1, (3, 2), (0, 0)),
        (2, (3, 2), (2, 0)),
        (3, (3, 2), (2, 1)),
        (4, (3, 2), (0, 1)),
        (5, (2, 3), (0, 0)),
        (6, (2, 3), (1, 0)),
        (7, (2, 3), (1, 2)),
        (8, (2, 3), (0, 2)),
        (99, (3, 2), (0, 0)),
    ],
)
def test_an_image_is_turned_upright_by_its_exif_orientation(orientation, size, corner):
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(encode(image, format="PNG", exif=exif))
    assert upright.size == size
    assert pixel(upright, *corner) == (255, 0, 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_that_was_turned_upright_is_not_turned_again(format):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.linear_gradient("L").convert("RGB").crop((0, 0, 40, 30)), format=format, exif=exif)
    once = load_image(data)
    assert once.size == (30, 40) and np.array_equal(load_image(once), once)
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(load_image(opened), once)
    if format != "TIFF":  # which Pillow itself turns and untags when it loads it
        assert opened.getexif()[0x0112] == 6  # the caller's own image keeps its tags


def test_an_exif_tag_of_another_type_does_not_spoil_a_photograph():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    data = encode(Image.new("RGB", (30, 20)), format="JPEG", exif=exif)
    # The description's text under the number of a tag (photometric interpretation) that holds integers.
    damaged = data.replace(b"\x01\x0e\x00\x02", b"\x01\x06\x00\x02")
    assert damaged != data
    assert load_image(damaged).size == (20, 30)


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for options in ({"format": "GIF"}, {"format": "WEBP", "lossless": True}):
        data = encode(frames[0], save_all=True, append_images=frames[1:], duration=100, **options)
        assert pixel(load_image(data)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_files_keep_every_pixel(kind, tmp_path):
    values = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    path = tmp_path / "image"
    path.write_bytes(encode(Image.fromarray(values), format=kind, lossless=True))
    for source in (path, str(path), path.read_bytes()):
        assert np.array_equal(np.asarray(load_image(source)), values)


def test_a_data_url_is_read():
    data = base64.b64encode(encode(Image.new("RGB", (2, 2), (9, 8, 7)), format="PNG")).decode()
    assert pixel(load_image(f"data:image/png;base64,{data}")) == (9, 8, 7)
    for payload in ("not base64!", "é", "abc"):
        with pytest.raises(ValueError, match="'data:image/png;base64' is not valid base64"):
            load_image(f"data:image/png;base64,{payload}")


def test_arrays_and_tensors_of_every_layout_agree():
    values = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    for array in (
        values,
        values.astype(np.int64),
        values.astype(np.uint16) * 257,
        values / 255,
        values.transpose(2, 0, 1),
        torch.tensor(values),
        torch.tensor(values).permute(2, 0, 1) / 255,
        (torch.tensor(values) / 255).requires_grad_(),
        values.tolist(),
    ):
        assert np.array_equal(np.asarray(to_rgb(array)), values)
    assert pixel(to_rgb(np.full((4, 6), 100, np.uint8))) == (100, 100, 100)
    assert pixel(to_rgb(np.full((4, 6, 1), 100, np.uint8))) == (100, 100, 100)
    assert pixel(to_rgb(np.ones((4, 6), bool))) == (255, 255, 255)
    assert pixel(to_rgb(np.full((4, 6, 4), [200, 100, 50, 128], np.uint8))) == (100, 50, 25)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 6, 2), np.uint8), r"shape \(5, 6, 2\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((0, 6, 3), np.uint8), "holds no pixel"),
        (np.full((4, 6), 255.0), "from 255.0 to 255.0: expected values in"),
        (np.full((4, 6), np.nan), "nan"),
        (np.full((4, 6), 256), "int64: expected 8-bit"),
        (np.full((4, 6), -1), "expected 8-bit"),
        (np.full((4, 6), 1j), "complex128"),
        ([[1, 2], [3]], "cannot be read as an array"),
        (None, "NoneType"),
        (7, r"shape \(\)"),
    ],
)
def test_arrays_that_are_no_image_are_refused_in_words(array, message):
    with pytest.raises(ValueError, match=message):
        load_image(array)


def test_the_result_is_a_copy():
    image = Image.new("RGB", (2, 2))
    to_rgb(image).putpixel((0, 0), (255, 255, 255))
    assert pixel(image) == (0, 0, 0)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.jpg"):
        load_image(tmp_path / "missing.jpg")
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_image(tmp_path)
    for name, data in (("text.jpg", b"hello"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(OSError, match=f"{name} is not an image"):
            load_image(tmp_path / name)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        whole = encode(noise, format=kind)
        (tmp_path / f"cut.{kind}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(OSError, match=f"cut.{kind}"):
            load_image(tmp_path / f"cut.{kind}")


def test_images_of_no_or_too_many_pixels_are_refused_before_they_are_decoded():
    with pytest.raises(ValueError, match=f"0x5 pixels: expected at least 1 and at most {MAX_IMAGE_PIXELS}"):
        to_rgb(Image.new("RGB", (0, 5)))
    with pytest.raises(ValueError, match=r"20000x10000 pixels: expected .* at most"):
        to_rgb(Image.new("1", (20_000, 10_000)))
    with pytest.raises(ValueError, match=r"57 bytes: .*200000000 pixels.*Resize it first"):
        load_image(png_header(20_000, 10_000))


def test_a_format_that_starts_other_programs_is_refused(tmp_path):
    path = tmp_path / "photo.eps"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(OSError, match="photo.eps is not an image"):
        load_image(path)
