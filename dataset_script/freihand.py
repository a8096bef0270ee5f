"""FreiHAND (Zimmermann et al., ICCV 2019): right hands in 3D, 224 x 224 pixels, as a `datasets` builder.

    from dataset_script import FreiHAND
    splits = FreiHAND(data_dir="FreiHAND_pub_v2").build()
    splits["train"][0]      # image, uv (21, 2) px, xyz (21, 3) m, K (3, 3), frame_id, background

`data_dir` is the extracted folder, the official FreiHAND_pub_v2.zip (it is read without extracting it), or a folder with
the zips. This file owns the official layout, the splits and the projection of points into the image.
https://lmb.informatik.uni-freiburg.de/projects/freihand/ : research only, commercial use is prohibited.
"""

import json
import os
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import datasets
import numpy as np
import torch
from datasets.builder import Key
from PIL import Image

from dataset_script.builder import HandRowsBuilder
from dataset_script.files import (
    MAX_IMAGE_BYTES,
    MAX_JSON_BYTES,
    FileTree,
    UnreadableImages,
    digest,
    image_size,
    parse_json,
    shorten,
)
from dataset_script.hand_crops import IMAGE_SIZE, SIGMA
from modeling_handunet.crops import Crop
from modeling_handunet.heatmaps import render_heatmaps
from modeling_handunet.keypoints import NUM_KEYPOINTS

NUM_FRAMES = 32560
# Contiguous blocks, because neighbouring frames may look alike.
SPLITS = {"train": (0, 26000), "validation": (26000, 31000), "test": (31000, NUM_FRAMES)}
# Image number `frame + frames * v` shows the frame on background v: the green screen, or another background blended in by
# harmonisation or by colourisation with or without sample points (freihand_utils.py of github.com/lmb-freiburg/freihand).
BACKGROUNDS = ("green_screen", "hom", "sample", "auto")
EVALUATION_BACKGROUND = "real"
TRAINING_ZIP, EVALUATION_ZIP = "FreiHAND_pub_v2.zip", "FreiHAND_pub_v2_eval.zip"
FRAMES_PER_SHARD = 1000
MAX_OUTSIDE = 1.0  # how far outside the image a projected keypoint may lie, relative to the image's side
# No unit and no lens explains larger numbers: points in metres or millimetres, focal lengths in pixels.
MAX_COORDINATE, MAX_FOCAL_LENGTH, MAX_CONDITION = 1e5, 1e6, 1e9
MAX_INTEGER = 2**63
MAX_DEPTH = 10.0  # metres; hands were photographed from 0.3 to 1.5 m, so larger depths are in another unit


def project_points(xyz: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Project points of the camera frame into the image.

    Args:
        xyz: (..., 21, 3) points, z pointing away from the camera; metres, or any other unit.
        K: (..., 3, 3) intrinsics in pixels.

    Returns:
        uv (..., 21, 2), x then y in pixels, float64.

    Raises `ValueError` for values that are not finite or impossible for a camera, for points that are not in front of the
    camera and for a singular K. It names the frames if the first axis is one of frames.
    """
    xyz, K = np.asarray(xyz, np.float64), np.asarray(K, np.float64)
    if xyz.ndim < 2 or xyz.shape[-1] != 3 or K.shape[-2:] != (3, 3):
        raise ValueError(f"expected xyz (..., 21, 3) and K (..., 3, 3), got {xyz.shape} and {K.shape}")
    problem, frames = _camera_problem(xyz, K)
    if problem:
        raise ValueError(f"{problem}{f' in frames {shorten(frames)}' if xyz.ndim > 2 else ''}")
    projected = xyz @ np.swapaxes(K, -1, -2)  # (..., 21, 3)
    with np.errstate(over="ignore"):  # points that almost touch the camera
        uv = projected[..., :2] / projected[..., 2:]
    if not np.isfinite(uv).all():
        raise ValueError("xyz has points so close to the camera that they have no finite projection")
    return uv


def _camera_problem(xyz: np.ndarray, K: np.ndarray) -> tuple[str, list[int]]:
    """What is wrong with the points or intrinsics, and in which frames; ("", []) if nothing is wrong."""

    def frames(bad: np.ndarray) -> list[int]:
        return np.flatnonzero(bad.reshape(bad.shape[0], -1).any(1) if bad.ndim else bad).tolist()

    for what, values, limit in (("xyz", xyz, MAX_COORDINATE), ("K", K, MAX_FOCAL_LENGTH)):
        bad = ~np.isfinite(values).all((-1, -2))
        if bad.any():
            return f"{what} has values that are not finite", frames(bad)
        bad = (np.abs(values) > limit).any((-1, -2))
        if bad.any():
            return f"{what} has values beyond {limit:g}", frames(bad)
    bad = (xyz[..., 2] <= 0).any(-1)
    if bad.any():
        return "xyz has points that are not in front of the camera (z <= 0)", frames(bad)
    bad = ~(np.linalg.cond(K) < MAX_CONDITION)
    if bad.any():
        return "K is singular", frames(bad)
    bad = (K[..., 2, :2] != 0).any(-1) | (K[..., 2, 2] <= 0)
    if bad.any():
        return "K has another last row than (0, 0, positive)", frames(bad)
    return "", []


@dataclass
class FreiHANDConfig(datasets.BuilderConfig):
    """Options of [`FreiHAND`]. Every field changes the rows and is part of the cache's key."""

    heatmaps: bool = False
    max_unreadable_share: float = 0.001
    source_digest: str = ""


class FreiHAND(HandRowsBuilder):
    """FreiHAND's images with their keypoints.

    `FreiHAND(data_dir, name="raw", heatmaps=False, max_unreadable_share=0.001, cache_dir=None)`

    Splits by frame: train 0-25999, validation 26000-30999, test 31000-32559, and `evaluation`, the official 3,960 images,
    if their annotations are there. Splits without frames are left out. `name="raw"` has the images on the green screen,
    `name="all"` every frame on four backgrounds. All versions of a frame are in the same split.

    Rows: `image`; `uv` (21, 2) float32, x then y in pixels; `xyz` (21, 3) float32, metres in the camera frame; `K`
    (3, 3) float32; `frame_id`; `background` (one of `BACKGROUNDS`, "real" in `evaluation`). `heatmaps=True` adds
    `heatmaps` (21, 128, 128) uint8, 255 at the peak, of the image resized to 128, sigma 3 px: 344 kB a row.

    Every image is decoded once while building. Up to `max_unreadable_share` of a split's images may be unreadable (with
    `num_proc`, of each process's part): a warning names them, and they are left out. If there are more, the build stops.

    The cache's key covers the options, and the path and time of the annotations and of the folder of images (or of the
    zip). After overwriting single images, pass `download_mode="force_redownload"` to `download_and_prepare`.

    Raises `FileNotFoundError` for missing files, naming them, and `ValueError` for annotations that are malformed, not
    finite, behind the camera or far outside the image, naming the frames.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = FreiHANDConfig
    BUILDER_CONFIGS: ClassVar = [
        FreiHANDConfig(name="raw", version=VERSION, description="32,560 images on the green screen"),
        FreiHANDConfig(name="all", version=VERSION, description="130,240 images: each frame on four backgrounds"),
    ]

    def __init__(
        self,
        data_dir: str | os.PathLike,
        name: str = "raw",
        *,
        heatmaps: bool = False,
        max_unreadable_share: float = 0.001,
        cache_dir: str | os.PathLike | None = None,
        **kwargs,
    ):
        data_dir = Path(data_dir).expanduser().resolve()
        self._training, self._evaluation = find_trees(data_dir)
        stamps = [
            tree.stamp(f"{part}_xyz.json", f"{part}_K.json", f"{part}/rgb")
            for part, tree in (("training", self._training), ("evaluation", self._evaluation))
            if tree is not None
        ]
        super().__init__(
            cache_dir=cache_dir,
            config_name=name,
            data_dir=str(data_dir),
            heatmaps=heatmaps,
            max_unreadable_share=max_unreadable_share,
            source_digest=digest(stamps),
            **kwargs,
        )

    def _info(self) -> datasets.DatasetInfo:
        features = {
            "image": datasets.Image(),
            "uv": datasets.Array2D((NUM_KEYPOINTS, 2), "float32"),
            "xyz": datasets.Array2D((NUM_KEYPOINTS, 3), "float32"),
            "K": datasets.Array2D((3, 3), "float32"),
            "frame_id": datasets.Value("int32"),
            "background": datasets.Value("string"),
        }
        if self.config.heatmaps:
            features["heatmaps"] = datasets.Array3D((NUM_KEYPOINTS, IMAGE_SIZE, IMAGE_SIZE), "uint8")
        return datasets.DatasetInfo(
            description=self.config.description or "",
            features=datasets.Features(features),
            homepage="https://lmb.informatik.uni-freiburg.de/projects/freihand/",
            license="research only, no commercial use",
        )

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        self._forget_earlier_splits()
        generators = []
        if self._training is not None:
            backgrounds = BACKGROUNDS if self.config.name == "all" else BACKGROUNDS[:1]
            part = _Part.read(self._training, "training", backgrounds)
            if part.num_frames > NUM_FRAMES:
                raise ValueError(
                    f"{part.tree.where('training_xyz.json')} has {part.num_frames} entries, FreiHAND has {NUM_FRAMES}"
                )
            for split, (first, last) in SPLITS.items():
                shards = part.shards(first, last)
                if shards:
                    generators.append(datasets.SplitGenerator(split, gen_kwargs={"shards": shards, "part": part}))
        if self._evaluation is not None:
            part = _Part.read(self._evaluation, "evaluation", (EVALUATION_BACKGROUND,))
            shards = part.shards(0, part.num_frames)
            generators.append(datasets.SplitGenerator("evaluation", gen_kwargs={"shards": shards, "part": part}))
        return generators

    def _generate_examples(self, shards: list[tuple[int, int, int]], part: "_Part") -> Iterator[tuple[Key, dict]]:
        """Rows of the shards (version, first frame, last frame + 1)."""
        total = sum(last - first for _, first, last in shards)
        self.unreadable = unreadable = UnreadableImages(total, self.config.max_unreadable_share)
        for shard, (version, first, last) in enumerate(shards):
            for frame in range(first, last):
                name = part.image_name(frame, version)
                try:
                    data = part.tree.read(name, MAX_IMAGE_BYTES)
                    size = image_size(data)
                except (ValueError, OSError) as error:
                    unreadable.add(part.tree.where(name), error)
                    continue
                if size != part.image_size:
                    raise ValueError(
                        f"{part.tree.where(name)} is {size[0]} x {size[1]} pixels, others are {part.image_size[0]} x "
                        f"{part.image_size[1]}: the annotations are in pixels of the original images, restore it"
                    )
                row = {
                    "image": {"path": os.path.basename(name), "bytes": data},
                    "uv": part.uv[frame].astype(np.float32),
                    "xyz": part.xyz[frame].astype(np.float32),
                    "K": part.K[frame].astype(np.float32),
                    "frame_id": frame,
                    "background": part.backgrounds[version],
                }
                if self.config.heatmaps:
                    keypoints = Crop.of_image(*size, IMAGE_SIZE).to(part.uv[frame])
                    heatmaps = render_heatmaps(torch.from_numpy(keypoints).float(), IMAGE_SIZE, SIGMA)
                    row["heatmaps"] = (heatmaps * 255).round().to(torch.uint8).numpy()
                yield Key(shard, frame - first), row


def write_freihand(
    folder: str | os.PathLike,
    images: Iterable[tuple[int, Image.Image | bytes]],
    xyz: list,
    K: list,
    *,
    part: str = "training",
    quality: int = 95,
) -> None:
    """Write files in the official layout: `<part>/rgb/%08d.jpg`, `<part>_xyz.json` and `<part>_K.json`.

    `images` are numbers with pictures, or with the bytes of a JPEG; `xyz` (N, 21, 3) and `K` (N, 3, 3) are nested lists. The
    annotations are read and written after the images, so a folder that has them is complete. Raises FileExistsError if
    the folder has annotations already.
    """
    folder = Path(folder)
    annotations = {folder / f"{part}_xyz.json": xyz, folder / f"{part}_K.json": K}
    for path in annotations:
        if path.exists():
            raise FileExistsError(f"{path} exists; give an empty folder, or delete what is there")
    (folder / part / "rgb").mkdir(parents=True, exist_ok=True)
    for number, image in images:
        path = folder / part / "rgb" / f"{number:08d}.jpg"
        path.write_bytes(image) if isinstance(image, bytes) else image.save(path, quality=quality)
    for path, values in annotations.items():
        path.write_text(json.dumps(values))


def find_trees(data_dir: Path) -> tuple[FileTree | None, FileTree | None]:
    """The trees of the training files and of the annotated evaluation files; None for one that is missing.

    Raises FileNotFoundError if both are missing.
    """
    if not data_dir.exists():
        raise FileNotFoundError(
            f"{data_dir} does not exist: data_dir must be FreiHAND's folder or zip; download it with "
            f"python -m dataset_script.download --data_dir {data_dir}"
        )
    tree = FileTree(data_dir)
    beside = data_dir.parent if tree.is_zip else data_dir
    trees = [tree] if tree.is_zip else [tree, *_existing(beside / TRAINING_ZIP)]
    training = _find(trees, "training_xyz.json", "training_K.json", "training/rgb")
    trees += _existing(beside / Path(EVALUATION_ZIP).stem, beside / EVALUATION_ZIP)
    evaluation = _find(trees, "evaluation_xyz.json")
    if training is None and evaluation is None:
        raise FileNotFoundError(
            f"{data_dir} holds no FreiHAND: expected training/rgb/, training_K.json and training_xyz.json in it, or "
            f"{TRAINING_ZIP}; download it with python -m dataset_script.download --data_dir {data_dir}"
        )
    return training, evaluation


def _existing(*paths: Path) -> list[FileTree]:
    return [FileTree(path) for path in paths if path.exists()]


def _find(trees: list[FileTree], *names: str) -> FileTree | None:
    """The first tree that has one of `names`, at its top or in a folder at its top."""
    return next((place for tree in trees if (place := tree.find(*names)) is not None), None)


@dataclass
class _Part:
    """The training or the evaluation files: checked annotations, and the names of the images."""

    tree: FileTree
    folder: str
    xyz: np.ndarray  # (N, 21, 3) m
    K: np.ndarray  # (N, 3, 3) px
    uv: np.ndarray  # (N, 21, 2) px
    backgrounds: tuple[str, ...]
    image_size: tuple[int, int] = (0, 0)

    @property
    def num_frames(self) -> int:
        return len(self.xyz)

    def image_name(self, frame: int, version: int) -> str:
        return f"{self.folder}/{frame + self.num_frames * version:08d}.jpg"

    def shards(self, first: int, last: int) -> list[tuple[int, int, int]]:
        """(version, first frame, last frame + 1) of each shard of the frames from `first` to `last`."""
        last = min(last, self.num_frames)
        starts = range(first, last, FRAMES_PER_SHARD)
        return [
            (version, start, min(start + FRAMES_PER_SHARD, last))
            for version in range(len(self.backgrounds))
            for start in starts
        ]

    @classmethod
    def read(cls, tree: FileTree, name: str, backgrounds: tuple[str, ...]) -> "_Part":
        """Read and check `<name>_xyz.json` and `<name>_K.json`, and check that every image is there."""
        xyz = _read_array(tree, f"{name}_xyz.json", (NUM_KEYPOINTS, 3))
        K = _read_array(tree, f"{name}_K.json", (3, 3))
        if len(xyz) != len(K):
            raise ValueError(
                f"{tree.where(f'{name}_xyz.json')} has {len(xyz)} entries and {name}_K.json {len(K)}: they must "
                "describe the same frames, so copy both again"
            )
        try:
            uv = project_points(xyz, K)
        except ValueError as error:
            raise ValueError(f"{tree.where(f'{name}_xyz.json')}, {name}_K.json: {error}") from None
        bad = np.flatnonzero((xyz[..., 2] > MAX_DEPTH).any(1)).tolist()
        if bad:
            raise ValueError(
                f"{tree.where(f'{name}_xyz.json')}: hands are over {MAX_DEPTH:g} m away in {len(bad)} frames: "
                f"{shorten(bad)}. xyz must be in metres"
            )
        part = cls(tree, f"{name}/rgb", xyz, K, uv, backgrounds)
        part._check_images_exist()
        part.image_size = part._first_image_size()
        outside = uv / part.image_size - 0.5  # the image covers -0.5 to 0.5
        bad = np.flatnonzero((np.abs(outside) > 0.5 + MAX_OUTSIDE).any((1, 2))).tolist()
        if bad:
            raise ValueError(
                f"{tree.where(f'{name}_xyz.json')}: keypoints project far outside the image of "
                f"{part.image_size[0]} x {part.image_size[1]} pixels in {len(bad)} frames: {shorten(bad)}"
            )
        return part

    def _check_images_exist(self) -> None:
        there = self.tree.names(self.folder)
        names = (
            self.image_name(frame, version)
            for version in range(len(self.backgrounds))
            for frame in range(self.num_frames)
        )
        missing = [name for name in names if os.path.basename(name) not in there]
        if missing:
            total = self.num_frames * len(self.backgrounds)
            advice = "copy or unpack it again"
            if len(self.backgrounds) > 1:
                advice += ', or choose name="raw" if it has the green screen images alone'
            raise FileNotFoundError(
                f"{self.tree.where(self.folder)} is half-copied: {len(missing)} of {total} annotated images are "
                f"missing ({shorten([os.path.basename(name) for name in missing], 3)}); {advice}"
            )

    def _first_image_size(self) -> tuple[int, int]:
        for version, first, last in self.shards(0, self.num_frames):
            for frame in range(first, last):
                try:
                    return image_size(self.tree.read(self.image_name(frame, version), MAX_IMAGE_BYTES))
                except ValueError:
                    continue  # it is counted and named when the rows are written
        raise ValueError(f"{self.tree.where(self.folder)}: none of its images can be read; copy them again")


def _read_array(tree: FileTree, name: str, shape: tuple[int, int]) -> np.ndarray:
    """(N, *shape) float64 from a JSON list of frames. Raises ValueError naming the frames that have another shape."""
    if name not in tree:
        raise FileNotFoundError(f"{tree.where(name)} is missing: FreiHAND's folder is half-copied, copy it again")
    frames = parse_json(tree.read(name, MAX_JSON_BYTES), tree.where(name))
    if not isinstance(frames, list) or not frames:
        raise ValueError(f"{tree.where(name)} is not a list of frames, but {reprlib.repr(frames)}")
    bad = [index for index, frame in enumerate(frames) if not _is_array(frame, shape)]
    if bad:
        raise ValueError(
            f"{tree.where(name)}: {len(bad)} of {len(frames)} frames are not {shape[0]} lists of {shape[1]} numbers: "
            f"frames {shorten(bad)}"
        )
    return np.array(frames, np.float64)


def _is_array(rows: object, shape: tuple[int, int]) -> bool:
    """Whether `rows` are `shape[0]` lists of `shape[1]` numbers. Other values could take numpy any amount of memory."""
    return _is_list(rows, shape[0]) and all(_is_list(row, shape[1]) and all(map(_is_number, row)) for row in rows)


def _is_list(values: object, length: int) -> bool:
    return isinstance(values, list) and len(values) == length


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < MAX_INTEGER)
