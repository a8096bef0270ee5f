import base64
import contextlib
import gc
import io
import socket
import struct
import sys
import tempfile
import threading
import time
import urllib.parse
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_handunet import images
from modeling_handunet.images import MAX_IMAGE_PIXELS, is_image, load_image, to_rgb


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
        (Image.fromarray(np.full((1, 2), 200, np.uint16)), (200, 200, 200)),  # 8 bits in 16
        (Image.fromarray(np.full((1, 2), 4095, np.uint16)), (255, 255, 255)),  # 12 bits in 16
        (Image.fromarray(np.full((1, 2), 1638, np.int32)), (102, 102, 102)),  # 0.4 of 12 bits
        (Image.fromarray(np.full((1, 2), 257 * 100, np.int32)), (100, 100, 100)),
        (Image.fromarray(np.full((1, 2), 0.4, np.float32)), (102, 102, 102)),
        (Image.fromarray(np.array([[1.004, 0.4]], np.float32)), (102, 102, 102)),
        (Image.fromarray(np.array([[258.0, 102.0]], np.float32)), (102, 102, 102)),
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


CONTENT = encode(Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)), format="PNG")
PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


class Pipe(io.RawIOBase):
    """A file that cannot seek, as a socket."""

    def __init__(self, data: bytes):
        self.data = data

    def read(self, count=-1):
        part, self.data = self.data[:count], self.data[count:]
        return part


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path,
        lambda path: str(path),
        lambda path: f"data:image/png;base64,{base64.b64encode(CONTENT).decode()}",
        lambda path: CONTENT,
        lambda path: bytearray(CONTENT),
        lambda path: memoryview(CONTENT),
        lambda path: io.BytesIO(CONTENT),
        lambda path: path.open("rb"),
        lambda path: path.open("rb", buffering=0),
        lambda path: Pipe(CONTENT),
        lambda path: tempfile.SpooledTemporaryFile(),  # noqa: SIM115
        lambda path: Image.open(path),
        lambda path: Image.open(io.BytesIO(CONTENT)),
        lambda path: PIXELS,
        lambda path: memoryview(PIXELS),
        lambda path: PIXELS.tolist(),
        lambda path: torch.tensor(PIXELS),
    ],
)
def test_whatever_can_be_an_image_is_read(make, tmp_path):
    (tmp_path / "image.png").write_bytes(CONTENT)
    image = make(tmp_path / "image.png")
    if isinstance(image, tempfile.SpooledTemporaryFile):  # what web frameworks make of an upload
        image.write(CONTENT)
    with warnings.catch_warnings(action="ignore"):  # of files that this test leaves open
        assert is_image(image) or isinstance(image, list)
        assert np.array_equal(np.asarray(load_image(image)), PIXELS)
        del image
        gc.collect()


def test_a_file_is_read_from_its_start_and_stays_where_it_was(tmp_path):
    file = io.BytesIO(CONTENT)
    for position in (0, 10, len(CONTENT)):
        file.seek(position)
        assert load_image(file).size == (7, 5)
        assert file.tell() == position and not file.closed


@pytest.mark.parametrize("stream", [iter([CONTENT]), (x for x in "ab"), {"image": CONTENT}, range(3)])
def test_a_stream_of_images_is_no_image(stream):
    assert not is_image(stream)


def test_what_is_closed_or_text_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(CONTENT)
    with path.open() as file, pytest.raises(ValueError, match=r"image\.png' is open as text: open it with mode 'rb'"):
        load_image(file)
    with pytest.raises(ValueError, match="'StringIO' is open as text"):
        load_image(io.StringIO("text"))
    with path.open("rb") as file:
        pass
    with pytest.raises(OSError, match=r"image\.png' cannot be read: .*closed"):
        load_image(file)
    with Image.open(path) as left:
        pass
    closed = Image.open(path)
    closed.load()
    closed.close()
    for image in (left, closed):
        with pytest.raises(ValueError, match=r"image\.png is a PIL image that was closed before it was read"):
            load_image(image)
    with Image.open(path) as read:
        read.load()
    assert load_image(read).size == (7, 5)  # its pixels are in memory


# 0, 0.4 and 1 of white, in several depths.
@pytest.mark.parametrize("white", [255, 1023, 4095, 65535])
def test_integers_of_any_depth_are_the_picture_that_a_person_would_see(white, tmp_path):
    grey = np.rint(np.array([[0, 0.4, 1]]) * white).astype(np.uint16)
    assert np.asarray(load_image(grey))[0, :, 0].tolist() == [0, 102, 255]
    assert np.asarray(load_image(torch.tensor(np.stack([grey] * 3, 2))))[0, :, 1].tolist() == [0, 102, 255]
    for name in ("grey.png", "grey.tiff"):
        Image.fromarray(grey).save(tmp_path / name)
        assert np.asarray(load_image(tmp_path / name))[0, :, 2].tolist() == [0, 102, 255]


def deep_png(white: int) -> bytes:
    """A PNG of 3x1 pixels of 16 bits a color, which Pillow cannot write, with the values 0, 0.4 and 1 of `white`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + np.rint(np.repeat([0, 0.4, 1], 3) * white).astype(">u2").tobytes()
    header = struct.pack(">IIBBBBB", 3, 1, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


def test_of_colors_that_pillow_would_make_black_a_sentence_says_so():
    assert np.asarray(load_image(deep_png(65535)))[0, :, 0].tolist() == [0, 102, 255]
    for white in (4095, 1023, 255):
        with pytest.raises(ValueError, match="16 bits a color but no value above 4095.* save it with 8 bits"):
            load_image(deep_png(white))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_floats_of_every_precision_may_be_rounded_past_their_range(dtype):
    values = torch.tensor([[-0.002, 0.4, 1.004]], dtype=dtype)
    assert np.asarray(load_image(values))[0, :, 0].tolist() == [0, 102, 255]
    with pytest.raises(ValueError, match=r"floats from .* to 1\..*: expected values in \[0, 1\]"):
        load_image(torch.tensor([[0, 1.1]], dtype=dtype))


def test_a_heic_photograph_is_read_with_pillow_heif_or_the_error_names_it(monkeypatch, tmp_path):
    path = tmp_path / "IMG_1.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it fails
    for image in (path, path.read_bytes()):
        with pytest.raises(OSError, match="is a HEIC photograph, .* `pip install pillow-heif`, or save it as JPEG"):
            load_image(image)
    monkeypatch.undo()
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: pip install -e '.[heic]'")
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 100, 50))).save(path, quality=-1)
    assert load_image(path).size == (64, 48)
    np.testing.assert_allclose(pixel(load_image(path.read_bytes()), 9, 9), (200, 100, 50), atol=4)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(OSError, match="HEIC is not an image that pillow-heif can read"):
        load_image(path)


def test_a_data_url_is_read():
    data = base64.b64encode(encode(Image.new("RGB", (2, 2), (9, 8, 7)), format="PNG")).decode()
    assert pixel(load_image(f"data:image/png;base64,{data}")) == (9, 8, 7)
    for payload in ("not base64!", "é", "abc"):
        with pytest.raises(ValueError, match="'data:image/png;base64' is not valid base64"):
            load_image(f"data:image/png;base64,{payload}")


def test_base64_in_lines_is_read_and_other_text_is_refused_in_a_short_sentence():
    data = encode(Image.effect_noise((20, 20), 60).convert("RGB"), format="PNG")
    expected = np.asarray(load_image(data))
    plain, lines = base64.b64encode(data).decode(), base64.encodebytes(data).decode()
    for text in (plain, lines, lines.replace("\n", "\r\n"), plain + "\n", "\t" + plain):
        assert np.array_equal(load_image(f"data:image/png;base64,{text}"), expected)
    for text in (plain * 5, f"data:{plain * 5}", f"data:image/png,{plain}", f"data:image/png;base64,{plain[:-1]}"):
        with pytest.raises((OSError, ValueError)) as refused:
            load_image(text)
        assert len(str(refused.value)) < 400


@contextlib.contextmanager
def answering(*parts: bytes, pause: float = 0.0):
    """A local server that answers each connection with `parts`, `pause` seconds apart; yields its port and what was asked."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def serve():
            while not over.is_set():
                with contextlib.suppress(OSError):  # the client may leave, or this server be closed
                    connection, _ = server.accept()
                    with connection:
                        asked.append(connection.recv(4096).split(b"\r\n")[0].decode())
                        for part in parts:
                            connection.sendall(part)
                            if over.wait(pause):
                                break

        server.settimeout(0.1)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], asked
        finally:
            over.set()
            thread.join()


def test_an_address_with_spaces_and_umlauts_is_read_and_a_wrong_one_is_an_error_that_names_it():
    data = encode(Image.new("RGB", (2, 2), (9, 8, 7)), format="PNG")
    with answering(b"HTTP/1.0 200 OK\r\n\r\n" + data) as (port, asked):
        url = f"http://127.0.0.1:{port}/my hand ü.png?size=1 2#top"
        assert pixel(load_image(url, allow_loopback=True)) == (9, 8, 7)
        assert asked == ["GET /my%20hand%20%C3%BC.png?size=1%202 HTTP/1.1"]
        load_image(f"http://127.0.0.1:{port}/a%20b,c", allow_loopback=True)
        assert asked[1:] == ["GET /a%20b,c HTTP/1.1"]  # what is quoted already stays so
    with answering(b"SSH-2.0-nothing\r\n") as (port, _):
        for url in (f"http://127.0.0.1:{port}/x.png", "http://127.0.0.1:port/x.png", "http://[x/x.png", "http://\u2100/x.png"):
            with pytest.raises(OSError, match="Could not fetch the image http") as failed:
                load_image(url, allow_loopback=True)
            assert len(str(failed.value)) < 500


def test_web_addresses_can_be_switched_off_and_this_machine_itself_is_asked_only_on_request():
    data = encode(Image.new("RGB", (2, 2), (9, 8, 7)), format="PNG")
    with pytest.raises(ValueError, match="is a web address, which is not read here"):
        load_image("https://example.org/hand.jpg", allow_urls=False)
    inline = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    assert pixel(load_image(inline, allow_urls=False)) == (9, 8, 7)
    shouted = inline.replace("data:image/png;base64", "DATA:image/png;BASE64")
    assert pixel(load_image(shouted, allow_urls=False)) == (9, 8, 7)
    with pytest.raises(ValueError, match="is a web address, which is not read here"):
        load_image("HTTPS://example.org/hand.jpg", allow_urls=False)
    with answering(b"HTTP/1.0 200 OK\r\n\r\n" + data) as (port, asked):
        hosts = "127.0.0.1", "localhost", "127.1", "0.0.0.0", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"
        hosts += ("%31%32%37.0.0.1", "local%68ost")  # as urllib reads them
        for host in hosts:
            with pytest.raises(OSError, match="is this machine itself"):
                load_image(f"http://{host}:{port}/hand.png")
        assert asked == []


def test_a_redirect_to_this_machine_itself_is_not_followed(monkeypatch):
    others = socket.getaddrinfo
    public = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]
    # A first look-up of the name says that it is elsewhere.  The connection then goes to the local server.
    names = {("outside.example", None): lambda: public}

    def look_up(host, port, *more, **options):
        host = host.decode() if isinstance(host, bytes) else host
        if (host, port) in names:
            return names[host, port]()
        return others("127.0.0.1" if host == "outside.example" else host, port, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    data = encode(Image.new("RGB", (2, 2)), format="PNG")
    with answering(b"HTTP/1.0 200 OK\r\n\r\n" + data) as (secret, asked):
        location = f"Location: http://127.0.0.1:{secret}/secret.png".encode()
        with answering(b"HTTP/1.0 302 Found\r\n" + location + b"\r\n\r\n") as (port, _):
            with pytest.raises(OSError, match="127.0.0.1 is this machine itself"):
                load_image(f"http://outside.example:{port}/hand.png")
            assert asked == []
            assert load_image(f"http://outside.example:{port}/hand.png", allow_loopback=True).size == (2, 2)


@pytest.mark.parametrize("first", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nX: "])
def test_a_server_that_sends_byte_by_byte_is_given_up_after_a_time(first, monkeypatch):
    monkeypatch.setattr(images, "MAX_DOWNLOAD_SECONDS", 0.5)
    with answering(first, *[b"x"] * 200, pause=0.05) as (port, _):
        start = time.monotonic()
        with pytest.raises(OSError, match="more than 0.5 s|is not an image"):
            load_image(f"http://127.0.0.1:{port}/hand.png", allow_loopback=True)
        assert time.monotonic() - start < 5


def test_an_address_without_ascii_letters_is_written_in_ascii():
    parts = urllib.parse.urlsplit(images._ascii_url("http://bücher.example:80/ü ä?q=ß"))
    assert parts.netloc == "xn--bcher-kva.example:80" and parts.path == "/%C3%BC%20%C3%A4" and parts.query == "q=%C3%9F"


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
