"""Read broken and hostile files, and check that only documented errors come out.

    python -m tools.fuzz --minutes 10                                  # all kinds in turn, from a new seed, which is printed
    python -m tools.fuzz --cases 20000 --seed 3 --kinds images zips
    python -m tools.fuzz --replay coco:3:1041                          # run one case again

A case is (kind, seed, number), and these three decide its input.  A whole file of the kind is made and then mutated: as
text, as bytes, or by its structure, so that the mutation gets past checksums.  A few files are built to be hostile.

A case fails if
- another error comes out than the docstrings name, or the error does not name the file;
- it takes over 10 s of processor time or over 2 GB of memory, or ends the process;
- it writes, renames or removes anything outside the folder that it was given, or reads what lies beside that folder;
- it starts a program or opens a connection.

If any case fails, the command ends with an error.
"""

import argparse
import collections
import copy
import dataclasses
import faulthandler
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import stat
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, features
from safetensors.torch import save as save_tensors

from dataset_script import CocoHands, FreiHAND, HandCrops
from dataset_script.files import image_size
from dataset_script.synthetic.gltf import load_gltf_hand
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from modeling_handunet.images import load_image
from modeling_handunet.keypoints import KEYPOINT_NAMES

ROOT = Path(__file__).resolve().parents[1]
DRAWN = ROOT / "demo" / "space" / "examples"
PHOTOGRAPHS = ROOT.parent / "shared" / "data"  # real ones, which may not be redistributed
MOST_SECONDS, MOST_MEMORY = 10, 2 << 30  # of processor time; bytes that the process holds in all
MOST_WAIT = 300  # s without a word from a process, after which it is killed
CASES_PER_PROCESS = 400
SMALL = 16  # px, of the model


class Failure(Exception):
    """Something that must not happen."""


@dataclasses.dataclass
class Kind:
    """How one kind of input is made in a folder, and what reads it."""

    make: Callable[[random.Random, Path], object]
    use: Callable[[object, Path], None]
    errors: tuple[type[Exception], ...]
    names_folder: bool = False  # whether every error must name a file of the folder


# Mutations

INTEGERS = [0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 10**9, 2**62]


def mutate_bytes(draw: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """`data` with 1 to 8 common changes; some insert a piece of `other`."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 5, 8))):
        if not data:
            break
        # Half of the places lie in the first 200 bytes, where headers are.
        place = draw.randrange(min(len(data), 200) if draw.random() < 0.5 else len(data))
        length = draw.choice((1, 2, 4, 16, 100, 1000))
        change = draw.randrange(9)
        if change == 0:
            data[place] ^= 1 << draw.randrange(8)
        elif change == 1:
            data[place] = draw.randrange(256)
        elif change == 2:
            size = draw.choice((1, 2, 4, 8))
            value = draw.choice(INTEGERS) % 256**size
            data[place : place + size] = value.to_bytes(size, draw.choice(("little", "big")))
        elif change == 3:
            del data[place : place + length]
        elif change == 4:
            data[place:place] = data[place : place + length] * draw.choice((1, 2, 50))
        elif change == 5:
            data[place:place] = draw.randbytes(length)
        elif change == 6:
            del data[place:]
        elif change == 7:
            start = draw.randrange(len(other)) if other else 0
            data[place : place + length] = other[start : start + length]
        else:
            data[place : place + length] = bytes(len(data[place : place + length]))
    return bytes(data)


class Text(str):
    """Text that is put into the JSON file without quotes."""


def hostile_value(draw: random.Random) -> object:
    """A value that nobody expects in a JSON file."""
    return draw.choice(
        [
            *(None, True, False, 0, -1, 1, 2, 3, 0.5, -0.0, 1e-320, 1e308, 255, 2**31, 2**63, 2**64, 10**30),
            *(float("nan"), float("inf"), -float("inf"), Text("1e999"), Text("1" + 400 * "0"), Text("1" + 5000 * "0")),
            *("", "a", "0", "1", "nan", "right", "none", "float32", "int8", "cuda:7", "é\u20ac", "\ud800", "a\0b", "\n"),
            *("../outside/secret.jpg", "/etc/passwd", "..", ".", "CON", "http://127.0.0.1:9/x", "x" * 5000, "{}"),
            *([], {}, [[]], [None], [[[[]]]], [1], ["a"], [0] * 3, [1] * 5000, {"": {}}, {"a": 1}, {"0": "a"}),
            *(Text("[" * 60 + "]" * 60), Text("[" * 900 + "]" * 900), Text("[" * 100_000 + "]" * 100_000)),
            *(Text('{"a":' * 100_000 + "1" + "}" * 100_000), Text("[" * 100_000), ["a" * 10**6, *["b"] * 3000]),
        ]
    )


def mutate_json(draw: random.Random, value: object, keys: tuple[str, ...] = ()) -> bytes:
    """The JSON text of `value` with 1 to 3 changes of its structure or its bytes. Members named in `keys` may be added."""
    if draw.random() < 0.15:
        return mutate_bytes(draw, json.dumps(value).encode())
    value = [copy.deepcopy(value)]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = []  # containers with their keys or indices

        def visit(node, depth=0, places=places):
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                if isinstance(node[key], (dict, list)) and depth < 20:
                    visit(node[key], depth + 1)

        visit(value)
        node, key = draw.choice(places)
        change = draw.randrange(8)
        if change < 3:
            node[key] = hostile_value(draw)
        elif change == 3 and node is not value:
            del node[key]
        elif change == 4:
            other, its_key = draw.choice(places)
            node[key] = copy.deepcopy(other[its_key]) if len(places) < 3000 else None
        elif change == 5 and isinstance(node, dict):
            node[draw.choice(["", "x", "id", *keys])] = hostile_value(draw)
        elif change == 6 and isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]) if len(places) < 3000 else hostile_value(draw))
        elif type(node[key]) in (int, float):
            node[key] = draw.choice((-1, 10, 1e3, 1e6, 1e-6, 0.999)) * node[key] + draw.choice((0, 0, 1, -0.5))
        else:
            node[key] = [node[key]] if draw.random() < 0.5 else {"a": node[key]}
    texts: list[str] = []

    def mark(item):  # json quotes every string, so that a `Text` gets a mark, which is replaced afterwards
        if isinstance(item, Text):
            texts.append(item)
            return f"@@{len(texts) - 1}@@"
        if isinstance(item, dict):
            return {key: mark(entry) for key, entry in item.items()}
        return [mark(entry) for entry in item] if isinstance(item, list) else item

    text = json.dumps(mark(value[0]), ensure_ascii=draw.random() < 0.9)
    for index, raw in enumerate(texts):
        text = text.replace(f'"@@{index}@@"', raw)
    return text.encode("utf-8", "surrogatepass")


# Images


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


# Weights


def make_weights(draw: random.Random, folder: Path) -> None:
    """Half of them have a mutated header of the correct length."""
    config = HandUNetConfig(image_size=SMALL, hidden_sizes=(4, 8))
    config.to_json_file(folder / "config.json")
    torch.manual_seed(0)
    tensors = HandUNetForPoseEstimation(config).state_dict()
    data = save_tensors(tensors, {"format": "pt"})
    length = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    way = draw.random()
    if way < 0.3:  # whole files of other tensors
        for _ in range(draw.choice((1, 1, 2))):
            name = draw.choice(list(tensors))
            change = draw.randrange(7)
            if change == 0:
                del tensors[name]
            elif change == 1:
                tensors[draw.choice(("head.bias", name + ".x", "", "x" * 300))] = torch.zeros(draw.choice((0, 1, 5)))
            elif change == 2:
                dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
                tensors[name] = tensors[name].to(draw.choice(dtypes))
            elif change == 3:
                tensors[name] = tensors[name].reshape(draw.choice(((-1,), (1, -1), (-1, 1, 1, 1, 1, 1))))
            elif change == 4:
                constant = torch.full_like(tensors[name], draw.choice((-1, 10**9)))
                tensors[name] = constant.div(draw.choice((0, 1))).to(tensors[name])
            elif change == 5:
                tensors[name] = tensors[draw.choice(list(tensors))].clone()
            else:
                pairs = tensors.items()
                tensors = {draw.choice((key, "model." + key)) if draw.random() < 0.1 else key: value for key, value in pairs}
        metadata = draw.choice(({"format": "pt"}, {"format": "tf"}, {"format": "\0"}, {}, None))
        (folder / "model.safetensors").write_bytes(save_tensors(tensors, metadata))
        return
    if way < 0.35:  # 10**9 elements in a small file
        name = draw.choice([name for name in header if name != "__metadata__"])
        header[name]["shape"] = draw.choice(([10**9], [10**9, 10**9, 10**9], [2**62, 4], [1000, 1000, 1000]))
        header[name]["data_offsets"] = draw.choice((header[name]["data_offsets"], [0, 4 * 10**9], [0, 2**64 - 1]))
    if way < 0.75:
        text = json.dumps(header).encode() if way < 0.35 else mutate_json(draw, header, ("F16", "dtype", "shape"))
        claimed = len(text) if draw.random() < 0.9 else draw.choice(INTEGERS)
        data = claimed.to_bytes(8, "little") + text + values
    else:
        data = mutate_bytes(draw, data)
    (folder / "model.safetensors").write_bytes(data)


def use_weights(_, folder: Path) -> None:
    model = HandUNetForPoseEstimation.from_pretrained(folder)
    heatmaps = model(torch.zeros(1, 3, SMALL, SMALL, dtype=model.dtype)).heatmaps
    if heatmaps.shape != (1, 21, SMALL, SMALL):
        raise Failure(f"heatmaps {tuple(heatmaps.shape)}")


# Datasets


def read_rows(builder) -> None:
    """Build, and read every row as a training does: training can read what the builder accepts."""
    for rows in builder.build().values():
        for crop in HandCrops(rows, SMALL).__getitems__(list(range(len(rows)))):
            if crop["image"].shape != (3, SMALL, SMALL) or not (crop["keypoints"].isfinite().all() and crop["box_size"] > 0):
                raise Failure(f"a crop of {tuple(crop['image'].shape)} with a box of {crop['box_size']}")


def damaged_photograph(draw: random.Random, corpus: dict[str, bytes]) -> bytes:
    name = draw.choice([name for name in corpus if name.startswith(("JPEG", "PNG", "TIFF", "WEBP", "GIF"))])
    return mutate_png(draw, corpus[name]) if name.startswith("PNG") else mutate_bytes(draw, corpus[name])


def make_coco(corpus: dict[str, bytes], draw: random.Random, folder: Path) -> None:
    images, annotations = [], []
    (folder / "images").mkdir()
    for number, name in enumerate(("a.jpg", "b.png", "c.jpg", "c.jpg")):
        data = corpus["PNG RGB" if name == "b.png" else "JPEG exif"]
        (folder / "images" / name).write_bytes(data)
        images.append({"id": number, "file_name": name, "source": "mine"})
        if name == "b.png":
            images[-1] |= {"width": 72, "height": 56}
        points = [value for joint in range(21) for value in (5 + 2 * joint, 10 + joint, joint % 3)]
        annotations.append({"id": number, "image_id": number, "keypoints": points, "handedness": ("right", "left")[number % 2]})
        if number:
            annotations[-1]["bbox"] = [5, 10, 40, 20.5]
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "keypoints": list(KEYPOINT_NAMES)}]}
    if draw.random() < 0.3:
        (folder / "images" / "c.jpg").write_bytes(damaged_photograph(draw, corpus))
        text = json.dumps(coco).encode()
    elif draw.random() < 0.02:
        text = json_bomb(draw)
    else:
        text = mutate_json(draw, coco, ("id", "image_id", "bbox", "file_name", "handedness", "width", "height", "source"))
    (folder / "hands.json").write_bytes(text)


def json_bomb(draw: random.Random) -> bytes:
    """JSON text that takes many times its size in Python's memory."""
    item = draw.choice((b"[]", b"{}", b'{"":0}', b"1", b'"ab"', b"[[]]", b"1.5"))
    around = draw.choice(((b"[", b"]"), (b'{"images":[],"annotations":[', b"]}"), (b'{"images":[', b"]}")))
    return around[0] + (item + b",") * (draw.choice((10**6, 90 << 20)) // (len(item) + 1)) + item + around[1]


def use_coco(_, folder: Path) -> None:
    read_rows(CocoHands(folder / "hands.json", folder / "images", max_unreadable_share=0.5, cache_dir=folder / "cache"))


def freihand_files(corpus: dict[str, bytes], frames: int = 3) -> dict[str, bytes]:
    """A small folder in the official layout, its files by name."""
    hand = [[0.01 * joint, 0.005 * joint, 0.6] for joint in range(21)]
    K = [[80.0, 0.0, 30.0], [0.0, 80.0, 25.0], [0.0, 0.0, 1.0]]
    files = {f"training/rgb/{frame:08d}.jpg": corpus["JPEG plain"] for frame in range(frames)}
    files["training_xyz.json"] = json.dumps([hand] * frames).encode()
    files["training_K.json"] = json.dumps([K] * frames).encode()
    return files


def make_freihand(corpus: dict[str, bytes], draw: random.Random, folder: Path) -> Path:
    tree = folder / "freihand"
    (tree / "training" / "rgb").mkdir(parents=True)
    files = freihand_files(corpus)
    if draw.random() < 0.2:
        files["training/rgb/00000001.jpg"] = damaged_photograph(draw, corpus)
    elif draw.random() < 0.02:
        files["training_xyz.json"] = json_bomb(draw)
    else:
        name = draw.choice(("training_xyz.json", "training_K.json"))
        files[name] = mutate_json(draw, json.loads(files[name]))
    for name, data in files.items():
        (tree / name).write_bytes(data)
    return tree


def use_freihand(data_dir: Path, folder: Path) -> None:
    read_rows(FreiHAND(data_dir, max_unreadable_share=0.5, cache_dir=folder / "cache"))


def make_zip(corpus: dict[str, bytes], draw: random.Random, folder: Path) -> Path:
    path = folder / "freihand.zip"
    files = freihand_files(corpus)
    top = draw.choice(("", "FreiHAND_pub_v2/"))
    method = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    victim = draw.choice(list(files))
    way = draw.choice(("bytes", "bytes", "bytes", "directory", "directory", "names", "links", "claims", "bomb", "many"))
    if draw.random() < 0.1:
        data = files[victim]
        files[victim] = mutate_json(draw, json.loads(data)) if victim.endswith("json") else mutate_bytes(draw, data)
    if way == "bomb":
        files[victim] = draw.choice((b"[", b" ", b"0", b"\0")) * draw.choice((10**6, 30_000_000, 150_000_000))
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(top + name)
            info.compress_type = method
            if way == "names" and name == victim:
                info.filename = draw.choice(
                    ("../" + name, "/" + name, "../outside/" + name, name.upper(), name + "/", "a" * 60_000, "C:\\" + name,
                     "./" + name, name.replace("/", "\\"), "training/rgb/../../" + name, "\0" + name, "é/" + name, "")
                )  # fmt: skip
            if way == "links" and name == victim:
                info.external_attr = (draw.choice((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK, stat.S_IFDIR)) | 0o777) << 16
                data = draw.choice((b"../outside/secret.jpg", b"/etc/passwd", b"training_K.json", data))
            archive.writestr(info, data)
        if way == "names":
            archive.writestr(zipfile.ZipInfo("../outside/climbed.txt"), "out", method)  # a `ZipInfo` has no date of today
        if way == "many":
            heads = draw.choice((10, 100, 100, 1000, 1000, 20_000))
            for number in range(heads):
                name = draw.choice((f"{number}/", f"{number}/training_xyz.jso", f"training/rgb/{number}"))
                archive.writestr(zipfile.ZipInfo(name), b"", method)
    data = path.read_bytes()
    if way == "bytes":
        data = mutate_bytes(draw, data)
    elif way in ("directory", "claims"):
        data = bytearray(data)
        start = struct.unpack_from("<I", data, len(data) - 6)[0]  # of the list of members
        if way == "directory":
            place = draw.randrange(start, len(data))
            for _ in range(draw.choice((1, 2, 4))):
                data[place : place + 4] = draw.choice(INTEGERS).to_bytes(8, "little")[:4]
                place = draw.randrange(start, len(data) - 4)
        else:  # another size than the member's, in the list alone or in both places
            place = start
            for _ in range(draw.randrange(len(files))):
                lengths = struct.unpack_from("<HHH", data, place + 28)
                place += 46 + sum(lengths)
            sizes = struct.pack("<II", draw.choice((0, 10, 10**9, 2**32 - 2)), draw.choice((0, 10, 10**9, 2**32 - 2)))
            data[place + 20 : place + 28] = sizes
            if draw.random() < 0.5:
                local = struct.unpack_from("<I", data, place + 42)[0]
                data[local + 18 : local + 26] = sizes
            if draw.random() < 0.2:  # of the list itself
                data[-10:-2] = struct.pack("<II", draw.choice((10**9, 2**32 - 1, 46)), draw.choice((start, 0, 2**31)))
        data = bytes(data)
    path.write_bytes(data)
    return path


# Meshes


def make_mesh(whole: bytes, draw: random.Random, folder: Path) -> Path:
    path = folder / "hand.glb"
    length = int.from_bytes(whole[12:16], "little")
    if draw.random() < 0.7:
        text = mutate_json(draw, json.loads(whole[20 : 20 + length]), ("byteStride", "byteOffset", "count", "normalized"))
        rest = text + whole[20 + length :]
        data = whole[:8] + struct.pack("<II", 20 + len(rest), len(text)) + whole[16:20] + rest
    else:
        data = mutate_bytes(draw, whole)
    path.write_bytes(data)
    return path


def use_mesh(path: Path, _) -> None:
    hand = load_gltf_hand.__wrapped__(path)
    vertices = hand.vertices if isinstance(hand.vertices, np.ndarray) else hand.vertices.numpy()
    if not np.isfinite(vertices).all():
        raise Failure("vertices that are not finite")


# The runner


def kinds() -> dict[str, Kind]:
    """All kinds of input for which there are files."""
    corpus = image_corpus()

    def of(make):
        return lambda draw, folder: make(corpus, draw, folder)

    readable = (ValueError, OSError)
    result = {
        "images": Kind(of(make_image), use_image, readable),
        "weights": Kind(make_weights, use_weights, readable, names_folder=True),
        "coco": Kind(of(make_coco), use_coco, readable, names_folder=True),
        "freihand": Kind(of(make_freihand), use_freihand, readable, names_folder=True),
        "zips": Kind(of(make_zip), use_freihand, readable, names_folder=True),
    }
    real = {path.name: path.read_bytes() for path in sorted(PHOTOGRAPHS.glob("[cf]*/**/*.jpg"))}
    if real:
        result["photographs"] = Kind(lambda draw, folder: make_photograph(real, draw, folder), use_image, readable)
    mesh = PHOTOGRAPHS / "hand_mesh" / "right.glb"
    if mesh.is_file():
        whole = mesh.read_bytes()
        result["meshes"] = Kind(lambda draw, folder: make_mesh(whole, draw, folder), use_mesh, readable, names_folder=True)
    return result


def make_photograph(real: dict[str, bytes], draw: random.Random, folder: Path) -> bytes:
    names = draw.sample(list(real), 2)
    data = mutate_bytes(draw, real[names[0]], real[names[1]])
    (folder / "image").write_bytes(data)
    return data


# Places of an audit event's arguments: a path, then the descriptor of the folder that the path is relative to (-1: none).
WRITES = {"os.mkdir": ((0, 2),), "os.rename": ((0, 2), (1, 3)), "os.link": ((1, 3),), "os.symlink": ((1, 2),),
          "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.truncate": ((0, None),), "os.chmod": ((0, 2),),
          "os.chown": ((0, 3),), "os.utime": ((0, 3),)}  # fmt: skip
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.bind",
             "pickle.find_class", "ctypes.dlopen")  # fmt: skip


class Watch:
    """Records what a case does that is not allowed, by Python's audit events. A case may write into `folder` only."""

    def __init__(self, folder: Path, beside: Path):
        self.folder, self.beside = os.path.realpath(folder), os.path.realpath(beside)
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event}{arguments[:1]}")
        elif event in WRITES:
            for path, place in WRITES[event]:
                self._check(event, arguments[path], -1 if place is None else arguments[place])
        elif event == "open" and not isinstance(arguments[0], int) and arguments[0] is not None:
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if writes or (isinstance(mode, str) and set(mode) & set("wxa+")):
                self._check(event, path)
            elif os.path.realpath(os.fsdecode(path)).startswith(self.beside):
                self.seen.append(f"read {path!r}")

    def _check(self, event: str, path, place: int = -1) -> None:
        if isinstance(path, int):  # an open file; its opening was checked
            return
        path = os.fsdecode(path)
        path = os.path.realpath(path if place < 0 else os.path.join(f"/proc/self/fd/{place}", path))
        if not path.startswith(self.folder) and path != "/dev/null":
            self.seen.append(f"{event} {path!r}")


def memory_peak() -> int:
    """The most bytes that this process has held since it began."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def draw_of(name: str, seed: int, number: int) -> random.Random:
    return random.Random(f"{name}:{seed}:{number}")


def prepare_beside(beside: Path) -> None:
    """Make the files that hostile names point at, so that there is something to find."""
    beside.mkdir()
    Image.new("RGB", (72, 56)).save(beside / "secret.jpg")


def run_case(kind: Kind, case: tuple[str, int, int], folder: Path, watch: Watch, tell) -> tuple[str, str]:
    """Run one case in the empty `folder`. Returns its outcome ("accepted" or an error's name), and what failed."""
    made = kind.make(draw_of(*case), folder)
    before = {path.name: path.stat().st_size for path in Path(watch.beside).iterdir()}
    tell()
    watch.seen, outcome, failure = [], "accepted", ""
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)  # SIGPROF ends the process, inside C too
    watch.on = True
    try:
        kind.use(made, folder)
    except kind.errors as error:
        outcome = type(error).__name__
        if kind.names_folder and str(folder) not in str(error):
            failure = "the error does not name the file:\n" + traceback.format_exc()
        elif kind.names_folder and len(str(error)) > 5000:
            failure = f"the message has {len(str(error))} characters: {str(error)[:300]}"
    except Exception:
        outcome, failure = "FAILED", traceback.format_exc()
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    failure = failure or "\n".join(watch.seen)
    if before != {path.name: path.stat().st_size for path in Path(watch.beside).iterdir()}:
        failure = failure or "something beside the folder changed"
    if memory_peak() > MOST_MEMORY:
        failure = failure or f"{memory_peak() / 2**20:.0f} MiB of memory"
    return outcome, failure


def work(kinds: dict[str, Kind], cases: list[tuple[str, int, int]], sandbox: Path, pipe: int) -> None:
    """Run cases and write a line of JSON to `pipe` when a case begins and when it ends. Stops after a case that failed."""
    folder, beside = sandbox / "given", sandbox / "outside"
    watch = Watch(folder, beside)
    os.chdir(beside)
    faulthandler.disable()  # pytest's would print each hang and crash
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    # An attempt to hold much more ends in a MemoryError, before the machine runs out.
    used = int(dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())["VmData"].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + MOST_MEMORY, resource.RLIM_INFINITY))
    for case in cases:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        begin = lambda case=case: os.write(pipe, f"{json.dumps([case])}\n".encode())  # noqa: E731
        begin()
        outcome, failure = run_case(kinds[case[0]], case, folder, watch, begin)
        os.write(pipe, f"{json.dumps([case, outcome, failure[-3000:], memory_peak()])}\n".encode())
        if failure:
            return  # a new process has no traces of the failure


class Fuzzer:
    """Runs cases in child processes, which may die, and counts the outcomes."""

    def __init__(self):
        self.kinds = kinds()
        self.outcomes: dict[str, collections.Counter] = {name: collections.Counter() for name in self.kinds}
        self.failures: dict[str, str] = {}
        self.peak = 0

    def run(self, cases: list[tuple[str, int, int]]) -> None:
        while cases:
            sandbox = Path(tempfile.mkdtemp(prefix="fuzz-"))
            prepare_beside(sandbox / "outside")
            done = self._run_in_a_process(cases, sandbox)
            shutil.rmtree(sandbox, ignore_errors=True)
            cases = cases[done:]

    def _run_in_a_process(self, cases: list[tuple[str, int, int]], sandbox: Path) -> int:
        """Returns the number of finished cases."""
        reader, writer = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.close(reader)
                silence = os.open(os.devnull, os.O_WRONLY)
                os.dup2(silence, 1)
                os.dup2(silence, 2)
                work(self.kinds, cases, sandbox, writer)
                status = 0
            except BaseException:
                os.write(writer, (json.dumps(["broken", traceback.format_exc()[-3000:]]) + "\n").encode())
            finally:
                os._exit(status)
        os.close(writer)
        done, current, rest, waited = 0, cases[0], b"", False
        while True:
            if not select.select([reader], [], [], MOST_WAIT)[0]:
                os.kill(pid, signal.SIGKILL)
                waited = True
                break
            data = os.read(reader, 1 << 16)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in map(json.loads, lines):
                if len(line) == 1:
                    current = tuple(line[0])
                elif len(line) == 2:
                    raise RuntimeError(f"the fuzzer itself failed at {current}:\n{line[1]}")
                else:
                    done += 1
                    self._note(current, line[1], line[2])
                    self.peak = max(self.peak, line[3])
        os.close(reader)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code or waited:
            reasons = {-signal.SIGPROF: f"over {MOST_SECONDS} s of processor time"}
            reason = f"nothing for {MOST_WAIT} s" if waited else reasons.get(code, f"the process ended with {code}")
            self._note(current, "FAILED", reason)
            done += 1
        return done

    def _note(self, case: tuple[str, int, int], outcome: str, failure: str) -> None:
        self.outcomes[case[0]]["FAILED" if failure else outcome] += 1
        if failure:
            name, failure = ":".join(map(str, case)), failure.encode("ascii", "backslashreplace").decode()
            self.failures[name] = failure
            print(f"FAILED {name}\n{failure}", flush=True)

    def report(self) -> None:
        for name, counts in self.outcomes.items():
            if counts:
                print(f"{name}: {counts.total()} cases: " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))
        total = sum(counts.total() for counts in self.outcomes.values())
        print(f"{total} cases, {len(self.failures)} failures, at most {self.peak / 2**20:.0f} MiB of memory")


def main(argv: list[str] | None = None) -> Fuzzer:
    """Run as the command line says. Ends with an error if a case failed."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__, formatter_class=as_written)
    parser.add_argument("--minutes", type=float, help="run for this time")
    parser.add_argument("--cases", type=int, help="or run this number of cases (default: 1000)")
    parser.add_argument("--seed", type=int, help="of the inputs (default: a new one, printed)")
    parser.add_argument("--kinds", nargs="+", help="kinds of input (default: all)")
    parser.add_argument("--replay", nargs="+", default=[], metavar="KIND:SEED:NUMBER", help="run only these cases")
    options = parser.parse_args(argv)
    fuzzer = Fuzzer()
    names = options.kinds or list(fuzzer.kinds)
    if unknown := set(names) - fuzzer.kinds.keys():
        parser.error(f"unknown kind {', '.join(unknown)}: choose from {', '.join(fuzzer.kinds)}")
    if options.replay:
        parts = [case.split(":") for case in options.replay]
        fuzzer.run([(name, int(seed), int(number)) for name, seed, number in parts if name in fuzzer.kinds])
    else:
        seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
        print(f"seed {seed}", flush=True)
        started, number = time.monotonic(), 0
        most = options.cases or (10**9 if options.minutes else 1000)
        while number < most and (options.minutes is None or time.monotonic() - started < 60 * options.minutes):
            count = min(CASES_PER_PROCESS if options.minutes is None else 100, most - number)
            fuzzer.run([(names[index % len(names)], seed, index) for index in range(number, number + count)])
            number += count
            print(f"{number} cases, {len(fuzzer.failures)} failures, {time.monotonic() - started:.0f} s", flush=True)
    fuzzer.report()
    if fuzzer.failures:
        sys.exit("failed: " + " ".join(fuzzer.failures))
    return fuzzer


if __name__ == "__main__":
    main()
