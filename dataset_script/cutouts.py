"""Right hands cut out of photographs, with keypoints: a second source of layers beside drawn hands.

    from dataset_script.cutouts import Cutouts
    hands = Cutouts("cutouts")                       # annotations.json and images/
    hands.layers(torch.arange(16))                   # RGBA (16, 4, 160, 160), keypoints (16, 21, 2) px

`annotations.json` is a list of objects with `file` (in `images/`, with an alpha channel), `keypoints` (21 pairs x, y in
its pixels) and `handshape`, a name that the views of one pose share. They add real skin, which drawn hands lack most.
They have no arm beyond the cut, so an arm is painted there, bare or in a sleeve.
"""

import hashlib
import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset_script import counter_rng
from dataset_script.files import IMAGE_ERRORS, MAX_JSON_BYTES, FileTree, digest, image_size, parse_json
from dataset_script.synthetic.compositing import Layer
from modeling_handunet.keypoints import NUM_KEYPOINTS

FILL = 0.36  # longer side of the hand's box, relative to the square
HELD_OUT_HANDSHAPES = 40
BAND = 0.05  # share of the photograph's height: these rows above the cut give the arm's width and colour
VERSION = 1  # raise it if the same photographs make other layers


class Cutouts:
    """The cut-out hands of a folder, each `variants` times with another arm.

    `part` is "train", "held out" or "all". Held out are all views of 40 handshapes, chosen by the hash of their names, so no
    pose is in both parts. Raises `FileNotFoundError` for a missing file and `ValueError` for annotations or images that are
    not as described above, naming them.
    """

    def __init__(self, folder: str | os.PathLike, part: str = "train", *, image_size: int = 160, variants: int = 4):
        if part not in ("train", "held out", "all"):
            raise ValueError(f"part is {part!r}; choose train, held out or all")
        self.folder, self.image_size, self.variants = Path(folder), image_size, variants
        if not (self.folder / "annotations.json").is_file():
            raise FileNotFoundError(f"{self.folder} has no annotations.json: name the folder of the cut-outs")
        tree = FileTree(self.folder)
        rows = read_cutouts(tree)
        held_out = _held_out({row["handshape"] for row in rows})
        wanted = {"train": (False,), "held out": (True,), "all": (False, True)}[part]
        self.rows = [row for row in rows if (row["handshape"] in held_out) in wanted]
        if not self.rows:
            raise ValueError(f"{self.folder} has no cut-out of the part {part!r}: it needs more than "
                             f"{HELD_OUT_HANDSHAPES} handshapes for both")  # fmt: skip
        stamp = tree.stamp("annotations.json", "images")
        self.fingerprint = digest(VERSION, [entry[1:] for entry in stamp], part, image_size, variants)

    def __len__(self) -> int:
        return len(self.rows) * self.variants

    def layers(self, indices: Tensor) -> Layer:
        """The hands `indices` (B,): RGBA (B, 4, S, S), keypoints (B, 21, 2) px, skin (B, 3)."""
        made = [self._layer(int(index)) for index in indices]
        rgba, keypoints, skin = (torch.from_numpy(np.stack(part)) for part in zip(*made))
        return Layer(rgba, keypoints, skin)

    def _layer(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row = self.rows[index % len(self.rows)]
        hand = self._read(row["file"])
        keypoints = row["keypoints"]
        skin = _mean_color(hand)
        low, high = keypoints.min(0), keypoints.max(0)
        side = float((high - low).max()) / FILL
        corner = (low + high) / 2 - side / 2
        scale = self.image_size / side
        square = (*corner, *(corner + side))
        transparent = hand.convert("RGBa")  # colours times alpha: only these may be averaged
        moved = transparent.transform((self.image_size,) * 2, Image.Transform.EXTENT, square, Image.Resampling.BICUBIC)
        moved = np.asarray(moved.convert("RGBA"), np.float32) / 255  # (S, S, 4)
        points = (keypoints - corner) * scale
        draws = counter_rng.uniform(counter_rng.sample_keys(0, torch.tensor([index])), "arm", (8,))[0].numpy()
        arm, over = _arm(np.asarray(hand, np.float32) / 255, corner, scale, points[0], self.image_size, draws)
        whole = _stack(arm, moved) if over else _stack(moved, arm)
        return whole.transpose(2, 0, 1).copy(), points.astype(np.float32), skin

    def _read(self, name: str) -> Image.Image:
        path = self.folder / "images" / name
        try:
            image_size(path)
            with Image.open(path) as image:
                return image.convert("RGBA")
        except (*IMAGE_ERRORS, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}): copy it again") from error


def read_cutouts(tree: FileTree) -> list[dict]:
    """The entries of `annotations.json`, checked: `file`, `keypoints` (21, 2) float64, `handshape`."""
    where = tree.where("annotations.json")
    entries = parse_json(tree.read("annotations.json", MAX_JSON_BYTES), where)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{where} is not a list of cut-outs: expected objects with `file`, `keypoints` and `handshape`")
    present, rows = tree.names("images"), []
    for number, entry in enumerate(entries):
        name, handshape = entry.get("file"), entry.get("handshape")
        if not isinstance(name, str) or name not in present:
            raise FileNotFoundError(f"{where}: entry {number} names {name!r}, which is not in images/")
        try:
            keypoints = np.array(entry.get("keypoints"), np.float64)
        except (TypeError, ValueError):
            keypoints = np.empty(0)
        if keypoints.shape != (NUM_KEYPOINTS, 2) or not np.isfinite(keypoints).all() or not np.ptp(keypoints) > 0:
            raise ValueError(f"{where}: {name} needs {NUM_KEYPOINTS} keypoints (x, y), finite and not all the same")
        if handshape is None or not isinstance(handshape, str):
            raise ValueError(f"{where}: {name} has no `handshape`, the name that the views of one pose share")
        rows.append({"file": name, "keypoints": keypoints, "handshape": handshape})
    return rows


def _held_out(handshapes: set[str]) -> set[str]:
    return set(sorted(handshapes, key=lambda name: hashlib.sha256(name.encode()).digest())[:HELD_OUT_HANDSHAPES])


def _mean_color(hand: Image.Image) -> np.ndarray:
    pixels = np.asarray(hand, np.float32) / 255
    return (pixels[..., :3] * pixels[..., 3:]).sum((0, 1)) / max(float(pixels[..., 3].sum()), 1e-6)


def _arm(
    pixels: np.ndarray, corner: np.ndarray, scale: float, wrist: np.ndarray, size: int, draws: np.ndarray
) -> tuple[np.ndarray, bool]:
    """An arm (S, S, 4) that begins where the photograph (H, W, 4) was cut, and whether it lies over the hand.

    It has the wrist's width and colour at the cut and is darker at its edges, like a cylinder. In half of the cases it is a
    wider sleeve of some colour, which begins at the cut or a little above.
    """
    height = len(pixels)
    band = pixels[int(height * (1 - BAND)) :]
    weight = band[..., 3]
    total = weight.sum()
    if total < 1:
        return np.zeros((size, size, 4), np.float32), False
    columns = np.arange(band.shape[1]) + 0.5
    middle = float((weight.sum(0) * columns).sum() / total)
    spread = math.sqrt(float((weight.sum(0) * (columns - middle) ** 2).sum() / total))
    color = (band[..., :3] * weight[..., None]).sum((0, 1)) / total
    cut = (np.array([middle, height * (1 - BAND / 2)]) - corner) * scale
    along = cut - wrist
    along /= max(float(np.linalg.norm(along)), 1e-6)
    if along[1] < 0.3:  # the wrist lies at the cut: the arm points down
        along = np.array([0.0, 1.0])
    half = spread * math.sqrt(3) * scale * abs(along[1])  # half the width of a strip with this spread
    dressed = draws[0] < 0.5
    start = -(draws[1] if dressed else 1.0) * 0.06 * size  # a bare arm begins well behind the hand
    if dressed:
        half *= 1.15 + 0.6 * draws[2]
        color = draws[3:6] * (0.4 + 0.6 * draws[6])
    y, x = np.mgrid[:size, :size] + 0.5
    forward = (x - cut[0]) * along[0] + (y - cut[1]) * along[1]
    aside = ((y - cut[1]) * along[0] - (x - cut[0]) * along[1]) / (half * (1 + 0.15 * forward.clip(0) / size))
    alpha = ((1 - abs(aside)) * half).clip(0, 1) * (forward - start + 1).clip(0, 1)
    shade = 1 - 0.35 * aside**2 + (draws[7] - 0.5) * 0.3 * aside
    if dressed:
        shade = shade * (1 + 0.06 * np.sin(forward * (0.3 + draws[2]) + 3 * aside))
    arm = np.concatenate([(color * shade[..., None]).clip(0, 1), alpha[..., None]], 2).astype(np.float32)
    return arm, dressed


def _stack(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """RGBA (S, S, 4) of one layer over another."""
    a, b = above[..., 3:], below[..., 3:] * (1 - above[..., 3:])
    alpha = a + b
    return np.concatenate([(above[..., :3] * a + below[..., :3] * b) / alpha.clip(1e-6), alpha], 2).astype(np.float32)
