"""The plain way: how the student project that this design comes from did it, written anew from its description.

PIL decodes, OpenCV blurs one image per keypoint, and the network runs in float32, eager and contiguous; SGD trains it.
Every function sets one way up and returns what does it once, and how many items that makes.
"""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

SIZE, SIGMA, KEYPOINTS = 128, 3.0, 21
MEAN, STD = (0.3950, 0.4323, 0.2954), (0.1966, 0.1734, 0.1836)


def conv_block(channels: int, filters: int) -> nn.Sequential:
    layers = []
    for inputs in (channels, filters):
        layers += [nn.BatchNorm2d(inputs), nn.Conv2d(inputs, filters, 3, padding=1, bias=False), nn.ReLU()]
    return nn.Sequential(*layers)


class PlainUNet(nn.Module):
    """The network of `HandUNetForPoseEstimation`'s default, under the same names, without what makes it fast."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([conv_block(3, 16), conv_block(16, 32), conv_block(32, 64), conv_block(64, 128)])
        self.up = nn.ModuleList([conv_block(192, 64), conv_block(96, 32), conv_block(48, 16)])
        self.head = nn.Conv2d(16, KEYPOINTS, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x):
        first = self.down[0](x)
        second = self.down[1](self.pool(first))
        third = self.down[2](self.pool(second))
        x = self.down[3](self.pool(third))
        x = self.up[0](torch.cat([self.enlarge(x), third], dim=1))
        x = self.up[1](torch.cat([self.enlarge(x), second], dim=1))
        x = self.up[2](torch.cat([self.enlarge(x), first], dim=1))
        return torch.sigmoid(self.head(x))


def load_network(folder: Path) -> PlainUNet:
    """The network with the weights of the model in `folder`."""
    from safetensors.torch import load_file

    network = PlainUNet()
    network.load_state_dict(load_file(folder / "model" / "model.safetensors"))
    return network.eval()


def blur_targets(keypoints: np.ndarray) -> np.ndarray:
    """Heatmaps (21, 128, 128) of keypoints (21, 2) in pixels: one pixel, blurred, over its maximum."""
    import cv2

    heatmaps = np.zeros((KEYPOINTS, SIZE, SIZE), dtype=np.float32)
    for heatmap, (x, y) in zip(heatmaps, keypoints):
        if 0 <= x < SIZE and 0 <= y < SIZE:
            heatmap[int(y), int(x)] = 1
            blurred = cv2.GaussianBlur(heatmap, (51, 51), SIGMA)
            heatmap[:] = blurred / blurred.max()
    return heatmaps


def read_image(file) -> torch.Tensor:
    """(3, 128, 128) normalised pixels of a path or a file."""
    image = Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    pixels = np.array(image, dtype=np.float32).transpose(2, 0, 1) / 255
    return torch.from_numpy((pixels - np.array(MEAN, np.float32)[:, None, None]) / np.array(STD, np.float32)[:, None, None])


class Photographs(Dataset):
    """FreiHAND's folder as it is usually read: every sample is decoded and its heatmaps blurred in every epoch."""

    def __init__(self, folder: Path):
        self.paths = sorted((folder / "training" / "rgb").glob("*.jpg"))
        xyz, K = (np.array(json.loads((folder / f"training_{name}.json").read_text())) for name in ("xyz", "K"))
        projected = np.einsum("nij,nkj->nki", K, xyz)
        self.keypoints = projected[..., :2] / projected[..., 2:] * SIZE / 224

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        keypoints = self.keypoints[index % len(self.keypoints)]
        return read_image(self.paths[index]), torch.from_numpy(blur_targets(keypoints))


def iou_loss(predictions, targets, eps=1e-6):
    intersection = (predictions * targets).sum(dim=(2, 3))
    union = (predictions**2).sum(dim=(2, 3)) + (targets**2).sum(dim=(2, 3)) - intersection
    return (1 - (intersection + eps) / (union + eps)).mean()


def mean_position(heatmaps: torch.Tensor) -> torch.Tensor:
    """Keypoints (B, 21, 2) as the average position over each heatmap."""
    weights = heatmaps / heatmaps.sum(dim=(2, 3), keepdim=True)
    centers = torch.arange(SIZE) + 0.5
    return torch.stack([(weights.sum(2) * centers).sum(2), (weights.sum(3) * centers).sum(2)], dim=2)


def heatmaps(count: int = 48):
    keypoints = np.random.default_rng(0).uniform(0, SIZE, (count, KEYPOINTS, 2))
    return lambda: np.stack([blur_targets(points) for points in keypoints]), count


def samples(batch_size: int = 48, *, folder: Path):
    photographs = Photographs(folder / "freihand")

    def act():
        for _ in DataLoader(photographs, batch_size):
            pass

    return act, len(photographs)


def _trainer():
    torch.manual_seed(0)
    network = PlainUNet().train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)

    def step(images, targets):
        optimizer.zero_grad()
        loss = iou_loss(network(images), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def step(batch_size: int = 48):
    train = _trainer()
    images, targets = torch.randn(batch_size, 3, SIZE, SIZE), torch.rand(batch_size, KEYPOINTS, SIZE, SIZE)
    return lambda: train(images, targets), batch_size


def bare_loop(batch_size: int = 48):
    """Nothing but forward, backward and SGD, which the reference's step is held against."""
    torch.manual_seed(0)
    network = PlainUNet().train()
    images = torch.randn(batch_size, 3, SIZE, SIZE)

    def act():
        network.zero_grad()
        network(images).square().mean().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.1 * parameter.grad

    return act, batch_size


def epoch(batch_size: int = 48, *, folder: Path):
    train = _trainer()
    photographs = Photographs(folder / "freihand")
    loader = DataLoader(photographs, batch_size, shuffle=True, drop_last=True)

    def act():
        for images, targets in loader:
            train(images, targets)

    return act, len(loader) * batch_size


@torch.no_grad()
def _keypoints(network, files) -> np.ndarray:
    images = torch.stack([read_image(io.BytesIO(file)) for file in files])
    return (mean_position(network(images)) * 224 / SIZE).numpy()


def predict(count: int = 1, *, folder: Path):
    network = load_network(folder)
    files = [path.read_bytes() for path in sorted((folder / "freihand" / "training" / "rgb").glob("*.jpg"))[:count]]
    return lambda: _keypoints(network, files), count


def network(batch_size: int = 1, *, folder: Path):
    plain, images = load_network(folder), torch.randn(batch_size, 3, SIZE, SIZE)

    def act():
        with torch.no_grad():
            plain(images)

    return act, batch_size


def decoding(count: int = 32):
    values = torch.rand(count, KEYPOINTS, SIZE, SIZE)
    return lambda: mean_position(values), count
