"""Broken data sets: annotations, FreiHAND's folder and zip, meshes."""

import json
import random
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np

from dataset_script import CocoHands, FreiHAND, HandCrops
from dataset_script.synthetic.gltf import load_gltf_hand
from modeling_handunet.keypoints import KEYPOINT_NAMES
from tools.fuzzing import Failure
from tools.fuzzing.images import SMALL, mutate_png
from tools.fuzzing.mutations import INTEGERS, json_bomb, mutate_bytes, mutate_json


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
