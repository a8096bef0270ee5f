"""`SyntheticHands`: right hands that the project models, poses and draws itself, as rows like FreiHAND's.

    from dataset_script.synthetic import SyntheticHands
    hands = SyntheticHands(10_000, seed=0, difficulty="easy")
    batch = hands.render(torch.arange(16))      # images (16, 3, 128, 128) uint8, keypoints (16, 21, 2) pixels

There is nothing to download, no licence to sign, and no limit to the samples. Sample i depends only on (seed, i), not on
its batch, the process, or what was drawn before.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dataset_script import counter_rng
from dataset_script.freihand import write_freihand
from dataset_script.synthetic.backgrounds import KINDS
from dataset_script.synthetic.body import HandBody, procedural_hand
from dataset_script.synthetic.compositing import Layer, composite
from dataset_script.synthetic.gltf import load_gltf_hand
from dataset_script.synthetic.hands import Hands, draw_hands
from dataset_script.synthetic.ranges import EASY, FULL, LAYERS, SceneRanges

DIFFICULTIES: dict[str, SceneRanges] = {"easy": EASY, "full": FULL, "layers": LAYERS}
VERSION_STEP = 0x3C6EF372  # between the keys of a frame's background versions


class SyntheticHands(Dataset):
    """A dataset of `length` drawn right hands.

    `seed` selects the stream of samples. `image_size` is the side of the square images in pixels. `difficulty` is "easy"
    (upright open hands, large and centred), "full" (all poses, views and surroundings) or "layers" (the same, but small in
    the image, to be moved into scenes). `hand_mesh` is the path of a rigged GLB hand with WebXR's joint names, which is drawn
    instead of the modelled hand. Raises ValueError for an unknown difficulty, a length below 1, a size below 16 or a file
    that is not such a hand, and OSError if the file cannot be opened.
    """

    def __init__(self, length: int, *, seed: int = 0, image_size: int = 128, difficulty: str = "easy",
                 hand_mesh: str | Path | None = None):
        if length < 1:
            raise ValueError(f"length is {length}; a dataset needs at least one sample")
        if image_size < 16:
            raise ValueError(f"image_size is {image_size}; hands are not recognisable below 16 pixels")
        if difficulty not in DIFFICULTIES:
            raise ValueError(f"difficulty is {difficulty!r}; choose one of {', '.join(DIFFICULTIES)}")
        if hand_mesh is not None:
            load_gltf_hand(hand_mesh)  # raises now rather than at the first sample
        self.length, self.seed, self.image_size, self.difficulty = length, seed, image_size, difficulty
        self.hand_mesh, self.ranges = hand_mesh, DIFFICULTIES[difficulty]

    @property
    def body(self) -> HandBody:
        """The hand at rest, built once per process."""
        return procedural_hand() if self.hand_mesh is None else load_gltf_hand(self.hand_mesh)

    @property
    def fingerprint(self) -> str:
        """A key for caches: another seed, size, difficulty, mesh or drawing code gives another fingerprint."""
        files = [Path(counter_rng.__file__), *sorted(Path(__file__).parent.glob("*.py"))]
        code = [path.read_bytes() for path in files]
        mesh = b"" if self.hand_mesh is None else Path(self.hand_mesh).read_bytes()
        options = repr((self.seed, self.image_size, self.difficulty)).encode()
        return hashlib.sha256(b"".join([*code, mesh, options])).hexdigest()[:16]

    def __len__(self) -> int:
        return self.length

    @torch.no_grad()
    def __getitem__(self, i: int) -> dict:
        """A row like FreiHAND's: image (PIL), uv (21, 2) px, xyz (21, 3) m, K (3, 3), frame_id, background."""
        i = range(self.length)[i]
        hands, keys = self.render_hands(torch.tensor([i]))
        images, kinds = composite(keys, hands, self.ranges)
        return {
            "image": _to_pil(images[0]),
            "uv": hands.keypoints[0].numpy(), "xyz": hands.xyz[0].numpy(), "K": hands.K[0].numpy(),
            "frame_id": i, "background": KINDS[kinds[0]],
        }

    @torch.no_grad()
    def render(self, indices: Tensor, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """Samples `indices` (B,) on `device`: images (B, 3, S, S) uint8, keypoints (B, 21, 2) px, xyz (B, 21, 3) m,
        K (B, 3, 3). Indices beyond `length` are allowed: the stream is endless.
        """
        hands, keys = self.render_hands(indices, device)
        images, _ = composite(keys, hands, self.ranges)
        return {"images": images, "keypoints": hands.keypoints, "xyz": hands.xyz, "K": hands.K}

    @torch.no_grad()
    def render_hands(self, indices: Tensor, device: str | torch.device = "cpu") -> tuple[Hands, Tensor]:
        """The hands of samples `indices` (B,) without backgrounds, as RGBA, and their keys (B, 2).

        :func:`.compositing.composite` puts them over backgrounds.
        """
        if indices.ndim != 1 or not len(indices):
            raise ValueError(f"indices has shape {tuple(indices.shape)}; give a list of at least one sample, (B,)")
        keys = counter_rng.sample_keys(self.seed, indices.to(device))
        return draw_hands(keys, self.body, self.ranges, self.image_size), keys

    def layers(self, indices: Tensor, device: str | torch.device = "cpu") -> Layer:
        """The hands of samples `indices` (B,) without backgrounds, for :class:`dataset_script.layers.HandLayers`."""
        return self.render_hands(indices, device)[0]

    @torch.no_grad()
    def write_freihand(self, folder: str | Path, *, split: str = "training", versions: int = 1, image_size: int = 224,
                       start: int = 0, jpeg_quality: int = 95, batch_size: int = 16) -> None:
        """Write the samples in FreiHAND's official layout, as :func:`dataset_script.freihand.write_freihand` does.

        Frames are samples `start` to `start + length`. `versions` is 1, or 4 for FreiHAND's background versions: image
        i + length * v shows the hand of frame i on version v, and version 0 is the green screen.
        """
        if versions not in (1, 4):
            raise ValueError(f"versions is {versions}; write 1, or 4 as FreiHAND has")
        screen = replace(self.ranges, backgrounds=tuple(float(kind == "green screen") for kind in KINDS))
        xyz, K = [], []  # filled while the images are drawn

        def images() -> Iterator[tuple[int, Image.Image]]:
            for frames in torch.arange(self.length).split(batch_size):
                keys = counter_rng.sample_keys(self.seed, frames + start)
                hands = draw_hands(keys, self.body, self.ranges, image_size)
                xyz.extend(hands.xyz.double().tolist())
                K.extend(hands.K.double().tolist())
                for version in range(versions):
                    ranges = screen if versions == 4 and version == 0 else self.ranges
                    pictures, _ = composite(keys + version * VERSION_STEP, hands, ranges)
                    for frame, picture in zip(frames.tolist(), pictures):
                        yield frame + self.length * version, _to_pil(picture)

        write_freihand(folder, images(), xyz, K, part=split, quality=jpeg_quality)


def _to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
