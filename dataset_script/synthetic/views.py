"""How the hand is turned and which camera sees it.

As in FreiHAND, cameras look along +z, with x to the right and y down, in metres. A hand with its palm to the camera and
fingers up has its axes (x, y, z) along (x, -y, -z) of the camera.
"""

import math

import torch
from torch import Tensor

from dataset_script import counter_rng
from dataset_script.synthetic.poses import compose, turn
from dataset_script.synthetic.ranges import SceneRanges

FOCAL = (400.0 / 224, 700.0 / 224)  # relative to the image's side: the range of FreiHAND's cameras
DEPTH = (0.4, 0.9)  # metres


def project(xyz: Tensor, K: Tensor) -> Tensor:
    """Pixels (B, N, 2) of `xyz` (B, N, 3) metres seen through `K` (B, 3, 3)."""
    pixels = (K[:, None] * xyz[:, :, None, :]).sum(-1)
    return pixels[..., :2] / pixels[..., 2:]


def sample_view(keys: Tensor, ranges: SceneRanges) -> Tensor:
    """Rotations (B, 3, 3) from the palm's frame to the camera's, float64."""
    u = counter_rng.uniform(keys, "view", (3,)).double()
    tilt = counter_rng.normal(keys, "view tilt").double().clamp(-1.9, 1.9)
    side = (u[:, 0] < 0.5).double() * math.pi  # palm or back
    yaw = side + (2 * u[:, 1] - 1) * math.radians(ranges.yaw)
    roll = (2 * u[:, 2] - 1) * math.radians(ranges.roll)
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64, device=keys.device))
    turned = compose(upright.expand(len(keys), 3, 3), turn(1, yaw))
    return compose(turn(2, roll), compose(turn(0, tilt * math.radians(ranges.pitch)), turned))


def place_camera(keys: Tensor, points: Tensor, ranges: SceneRanges, size: int) -> tuple[Tensor, Tensor]:
    """The place of the hand and the camera that sees it: offset (B, 3) metres and K (B, 3, 3), float64.

    `points` (B, 21, 3) are the keypoints turned to the camera. Their box will fill `ranges.fill` of the image.
    """
    u = counter_rng.uniform(keys, "camera", (4,)).double()
    fill = ranges.fill[0] + (ranges.fill[1] - ranges.fill[0]) * u[:, 0]
    focal = FOCAL[0] * (FOCAL[1] / FOCAL[0]) ** u[:, 1]
    low, high = points.amin(1), points.amax(1)
    extent = (high - low)[:, :2].amax(1)
    depth = (focal * extent / fill).clamp(*DEPTH)
    middle = 0.5 * (low + high)
    offset = torch.stack([-middle[:, 0], -middle[:, 1], depth - middle[:, 2]], 1)
    # Perspective moves and stretches the box a little: measure it and correct focal length and offset.
    for _ in range(2):
        placed = points + offset[:, None]
        flat = placed[..., :2] / placed[..., 2:]
        low, high = flat.amin(1), flat.amax(1)
        offset[:, :2] -= 0.5 * (low + high) * depth[:, None]
    focal = fill / (high - low).amax(1)
    offset[:, :2] += (2 * u[:, 2:4] - 1) * ranges.shift * (depth / focal)[:, None]
    K = torch.zeros(len(keys), 3, 3, dtype=torch.float64, device=keys.device)
    K[:, 0, 0] = K[:, 1, 1] = focal * size  # equal: the image may be turned about its centre
    K[:, 0, 2] = K[:, 1, 2] = 0.5 * size
    K[:, 2, 2] = 1.0
    return offset, K
