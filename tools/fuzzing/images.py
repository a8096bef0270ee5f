"""Broken images, and images that are built to take long."""

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, features

from dataset_script.files import image_size
from modeling_handunet import HandUNetImageProcessor
from modeling_handunet.images import load_image
from tools.fuzzing import ROOT, Failure
from tools.fuzzing.mutations import mutate_bytes
from tools.load_test import jpeg_bomb

DRAWN = ROOT / "demo" / "space" / "examples"
SMALL = 16  # px, of the network


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    if "append_images" in options:
        options["append_images"] = [more.copy() for more in options["append_images"]]
    image.copy().save(file, kind, **options)  # of copies, since saving leaves settings on an image
    return file.getvalue()


def image_corpus() -> dict[str, bytes]:
    """Whole images of every format, mode and compression that is read."""
    drawn = [path.read_bytes() for path in sorted(DRAWN.glob("*.jpg"))]
    corpus = {f"drawn {index}": data for index, data in enumerate(drawn)}
    picture = Image.open(io.BytesIO(drawn[0])).convert("RGB").resize((72, 56))
    other = picture.transpose(Image.Transpose.ROTATE_180)
    clear = picture.convert("RGBA")
    clear.putalpha(picture.convert("L"))
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112], turned[0x010F], turned[0x011A] = 6, "a camera", 72.0
    modes = {mode: picture.convert(mode) for mode in ("RGB", "L", "P", "1", "CMYK", "F")}
    modes |= {"RGBA": clear, "LA": clear.convert("LA"), "I;16": deep}
    for name, options in {
        "plain": {},
        "progressive": {"progressive": True},
        "exif": {"exif": turned.tobytes()},
        "profile": {"icc_profile": bytes(300)},
        "subsampled": {"subsampling": 2, "quality": 30, "restart_marker_blocks": 3},
    }.items():
        corpus[f"JPEG {name}"] = encoded(picture, "JPEG", **options)
    corpus["JPEG grey"], corpus["JPEG CMYK"] = (encoded(modes[mode], "JPEG") for mode in ("L", "CMYK"))
    corpus["MPO"] = encoded(picture, "MPO", save_all=True, append_images=[other])
    for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "I;16"):
        corpus[f"PNG {mode}"] = encoded(modes[mode], "PNG")
    corpus["PNG transparent"] = encoded(modes["P"], "PNG", transparency=3, exif=turned.tobytes(), icc_profile=bytes(99))
    corpus["PNG animated"] = encoded(picture, "PNG", save_all=True, append_images=[other], default_image=True)
    for name, image, options in (
        ("lossy", picture, {}),
        ("lossless", clear, {"lossless": True}),
        ("lossy alpha", clear, {"exif": turned.tobytes()}),
        ("animated", picture, {"save_all": True, "append_images": [other]}),
    ):
        corpus[f"WEBP {name}"] = encoded(image, "WEBP", **options)
    corpus["GIF"] = encoded(modes["P"], "GIF", interlace=1)
    corpus["GIF animated"] = encoded(modes["P"], "GIF", save_all=True, append_images=[other], transparency=0, comment=b"c")
    for compression in ("raw", "tiff_deflate", "tiff_lzw", "packbits", "jpeg"):
        corpus[f"TIFF {compression}"] = encoded(picture, "TIFF", compression=compression)
    corpus["TIFF group4"] = encoded(modes["1"], "TIFF", compression="group4")
    for mode in ("CMYK", "I;16", "F", "RGBA", "P"):
        corpus[f"TIFF {mode}"] = encoded(modes[mode], "TIFF", **({"exif": turned} if mode == "P" else {}))
    corpus["TIFF pages"] = encoded(picture, "TIFF", save_all=True, append_images=[other])
    corpus["BMP"], corpus["BMP P"], corpus["PPM"] = (
        encoded(image, kind) for image, kind in ((picture, "BMP"), (modes["P"], "BMP"), (picture, "PPM"))
    )
    if features.check("jpg_2000"):
        corpus["JPEG2000"] = encoded(picture, "JPEG2000")
    if features.check("avif"):
        corpus["AVIF"] = encoded(picture, "AVIF")
    return corpus


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 8
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += length + 12
    return chunks


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with correct checksums."""
    pieces = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def mutate_png(draw: random.Random, data: bytes) -> bytes:
    chunks = png_chunks(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        index = draw.randrange(len(chunks))
        name, content = chunks[index]
        change = draw.randrange(5)
        if change == 0:
            chunks.insert(draw.randrange(len(chunks)), (name, content))
        elif change == 1:
            chunks[index] = draw.choice((b"tEXt", b"zTXt", b"iTXt", b"tRNS", b"PLTE", b"iCCP", b"fdAT", b"eXIf")), content
        elif change == 2 and name == b"IDAT":  # other pixels, well compressed
            chunks[index] = name, zlib.compress(mutate_bytes(draw, bytes(draw.choice((10, 12_152, 10**6)))))
        elif change == 3:
            del chunks[index]
            if not chunks:
                break
        else:
            chunks[index] = name, mutate_bytes(draw, content)
    return png(chunks)


def bomb(draw: random.Random, corpus: dict[str, bytes]) -> bytes:
    """A small file that claims to be huge, or becomes huge when it is decoded."""
    sizes = [(8000, 8000), (65535, 65535), (10**9, 10**9), (64_000_000, 1), (1, 64_000_000), (12_000, 6000)]
    width, height = draw.choice(sizes)
    kind = draw.choice(("png", "png text", "png animated", "gif", "bmp", "ppm", "tiff", "tiff strips", "jpeg", "scans", "webp"))
    if kind.startswith("png"):
        depth, colour = draw.choice(((8, 2), (16, 6), (1, 0), (8, 3), (16, 0)))
        header = struct.pack(">IIBBBBB", width % 2**31, height % 2**31, depth, colour, 0, 0, draw.randrange(2))
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(draw.choice((10, 10**6, 60_000_000)))))]
        if kind == "png text":
            packed = zlib.compress(bytes(50_000_000))
            extra = (b"zTXt", b"a\0\0" + packed), (b"iCCP", b"a\0\0" + packed), (b"iTXt", b"a\0\1\0\0\0" + packed)
            chunks[1:1] = [draw.choice(extra) for _ in range(draw.choice((1, 5)))]
        if kind == "png animated":
            chunks.insert(1, (b"acTL", struct.pack(">II", 10**9, 0)))
        return png([chunks[0], (b"PLTE", bytes(768)), *chunks[1:], (b"IEND", b"")])
    if kind == "gif":
        data = bytearray(corpus["GIF"])
        data[6:10] = struct.pack("<HH", width % 65536, height % 65536)
        place = data.index(b",", 13)
        data[place + 5 : place + 9] = data[6:10]
        return bytes(data)
    if kind == "bmp":
        data = bytearray(corpus["BMP"])
        data[18:26] = struct.pack("<ii", width % 2**31, height % 2**31)
        return bytes(data)
    if kind == "ppm":
        return f"P{draw.choice('123456')}\n{width} {height}\n{draw.choice((1, 255, 65535))}\n".encode() + bytes(1000)
    if kind.startswith("tiff"):
        count = draw.choice((10**9, 200_000, 3)) if kind == "tiff" else draw.choice((50_000, 99_999, 150_000))
        sides = (width % 2**32, height % 2**32) if kind == "tiff" else (1, count)
        tags = [(256, 4, 1, sides[0]), (257, 4, 1, sides[1]), (258, 3, 1, 8), (259, 3, 1, draw.choice((1, 5, 8, 32773)))]
        tags += [(262, 3, 1, 1), (273, 4, count, 200), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, count, 200)]
        body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
        directory = struct.pack("<H", len(tags)) + body + struct.pack("<I", draw.choice((0, 8)))
        filling = bytes(4 * count) if kind == "tiff strips" else bytes(draw.choice((1000, 10**6)))
        return (b"II*\0" + struct.pack("<I", 8) + directory).ljust(200, b"\0") + filling
    data = bytearray(corpus["JPEG plain" if kind == "jpeg" else "JPEG progressive"])
    if kind == "webp":
        data = bytearray(corpus["WEBP animated"])
        data[24:30] = (width % 2**24).to_bytes(3, "little") + (height % 2**24).to_bytes(3, "little")
        return bytes(data)
    start = data.index(b"\xff\xc0" if kind == "jpeg" else b"\xff\xc2")
    data[start + 5 : start + 9] = struct.pack(">HH", height % 65536, width % 65536)
    if kind == "scans":
        first = data.index(b"\xff\xda")
        data[-2:] = data[first:-2] * draw.choice((10, 100, 1000)) + b"\xff\xd9"
    return bytes(data)


def make_image(corpus: dict[str, bytes], draw: random.Random, folder: Path) -> bytes:
    if draw.random() < 0.03:
        data = bomb(draw, corpus)
    else:
        name, other = draw.choice(list(corpus)), draw.choice(list(corpus))
        data = corpus[name]
        mutate = mutate_png if name.startswith("PNG") and draw.random() < 0.7 else mutate_bytes
        data = mutate(draw, data, corpus[other]) if mutate is mutate_bytes else mutate(draw, data)
    (folder / "image").write_bytes(data)
    return data


def use_image(data: bytes, folder: Path) -> None:
    path = folder / "image"
    try:
        size = image_size(data)
    except ValueError:
        size = None
    try:
        image = load_image(data)
    except (OSError, ValueError) as error:
        if f"{len(data)} bytes" not in str(error):
            raise Failure(f"the error does not name the image: {error}") from error
        try:
            load_image(path)
        except (OSError, ValueError) as same:
            if str(path) not in str(same):
                raise Failure(f"the error does not name the image: {same}") from same
        else:
            raise Failure("the file can be read, its bytes cannot") from error
        if size is not None:
            raise Failure(f"the dataset accepts an image that cannot be read: {error}") from error
        raise
    if image.mode != "RGB" or (size is not None and image.size != size):
        raise Failure(f"an image of {image.mode} {image.size}, expected RGB {size}")
    pixels = HandUNetImageProcessor(size=SMALL)(image).pixel_values
    if pixels.shape != (1, 3, SMALL, SMALL) or not pixels.isfinite().all():
        raise Failure(f"pixel values {tuple(pixels.shape)}")


def make_photograph(real: dict[str, bytes], draw: random.Random, folder: Path) -> bytes:
    names = draw.sample(list(real), 2)
    data = mutate_bytes(draw, real[names[0]], real[names[1]])
    (folder / "image").write_bytes(data)
    return data


def slow_image(draw: random.Random, corpus: dict[str, bytes]) -> bytes:
    """A file that makes some decoder work for long."""
    kind = draw.choice(("scans", "scans", "ppm", "bmp", "gif", "tiles", "bomb", "bomb"))
    width, height = draw.choice(((64, 64), (1000, 1000), (3000, 3000), (5000, 5000), (65535, 300)))
    if kind == "scans":
        between = draw.choice((b"", b"\xff\x01", b"\xff\xd0", b"\xff\xff\xff", b"\xff\xfe\0\2"))
        return jpeg_bomb(min(width, 5000), draw.choice((2, 99, 101, 1000, 20_000)), between)
    if kind == "ppm":  # Pillow reads odd maxvals in Python, a value at a time
        maxval = draw.choice((1, 2, 100, 254, 256, 1000, 65534, 65535, 0, 10**9))
        text = f"P{draw.choice('12356')}\n{draw.choice(('', '# a comment' * 1000))}\n{width} {height}\n{maxval}\n".encode()
        return text + draw.choice((b"\1", b"1 ", b"")) * draw.choice((1000, width * height))
    if kind == "bmp":
        data = bytearray(corpus["BMP P"])
        data[18:26], data[30:34] = struct.pack("<ii", width, height), struct.pack("<I", draw.choice((1, 1, 2)))
        start = int.from_bytes(data[10:14], "little")
        runs = draw.choice((b"\1\5", b"\xff\5", b"\0\2\1\0", b"\0\3abc\0", b"\0\0")) * draw.choice((1000, 10**6))
        return bytes(data[:start]) + runs + b"\0\1"
    if kind == "gif":  # comments in front of the picture
        data = corpus["GIF"]
        place = 13 + 3 * 2 ** ((data[10] & 7) + 1) * (data[10] >> 7)
        comment = b"!\xfe" + draw.choice((b"\xff" + b"c" * 255, b"\1c")) * draw.choice((1, 100, 1000)) + b"\0"
        return data[:place] + comment * draw.choice((1, 100)) + data[place:]
    if kind == "tiles":  # far larger than the picture, or very many
        side = draw.choice((16, 4096, 32_768, 2**20, 2**31 - 16))
        count = draw.choice((1, 4, 10_000))
        tags = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, draw.choice((1, 5, 8, 32773))), (262, 3, 1, 1)]
        tags += [(277, 3, 1, 1), (322, 4, 1, side), (323, 4, 1, side), (324, 4, count, 200), (325, 4, count, 200)]
        body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
        head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4)
        return head.ljust(200, b"\0") + struct.pack("<I", 300) * count + bytes(draw.choice((1000, 10**6)))
    return bomb(draw, corpus)
