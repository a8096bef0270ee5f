"""Things held in the hand: balls, bars and boxes in the palm, pens and cards between the finger tips.

All are one mesh, a superellipsoid (Barr, "Superquadrics and angle-preserving transformations", IEEE CG&A 1981). Its two
exponents make an ellipsoid, a cylinder or a box, so a batch can mix them. A thing is as large as the fingers leave room
for. If they leave none, its size is 0 and nothing is drawn.
"""

import functools
import math

import torch
from torch import Tensor

from dataset_script import counter_rng
from dataset_script.synthetic.poses import compose, rotate, turn

RINGS, SEGMENTS = 10, 20
PALM_CENTRE = (-0.004, 0.052, 0.017)  # metres, on the skin of the palm
FLESH = 0.0085  # metres of finger around its bone
MAX_RADIUS = 0.045
# (exponent along, exponent around, half length over radius: low, high): ball, bar, box, bottle
PALM_SHAPES = ((1.0, 1.0, 0.8, 1.6), (0.25, 1.0, 2.0, 5.0), (0.2, 0.2, 0.8, 2.5), (0.5, 1.0, 1.5, 4.0))
# pen, cube, ball, card
TIP_SHAPES = ((0.25, 1.0, 8.0, 18.0), (0.2, 0.2, 0.9, 1.5), (1.0, 1.0, 0.9, 1.3), (0.15, 0.15, 2.0, 7.0))


@functools.lru_cache(maxsize=8)
def _sphere(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Angles along (N,) and around (N,) of a sphere's vertices, float64, and its outward triangles (F, 3)."""
    along = (torch.arange(RINGS, dtype=torch.float64) + 0.5) / RINGS * math.pi - math.pi / 2
    along[0], along[-1] = -math.pi / 2, math.pi / 2
    around = torch.arange(SEGMENTS, dtype=torch.float64) * (2 * math.pi / SEGMENTS)
    i, j = torch.meshgrid(torch.arange(RINGS - 1), torch.arange(SEGMENTS), indexing="ij")
    a, b = (i * SEGMENTS + j).flatten(), (i * SEGMENTS + (j + 1) % SEGMENTS).flatten()
    c, d = a + SEGMENTS, b + SEGMENTS
    faces = torch.cat([torch.stack([a, b, d], 1), torch.stack([a, d, c], 1)])
    angles = along.repeat_interleave(SEGMENTS), around.repeat(RINGS)
    return angles[0].to(device), angles[1].to(device), faces.to(device)


def _power(x: Tensor, exponent: Tensor) -> Tensor:
    return x.sign() * (x.abs() + 1e-9) ** exponent


def held_faces(device: torch.device) -> Tensor:
    """Triangles (F, 3) of the mesh that :func:`held_things` places."""
    return _sphere(device)[2]


def held_things(keys: Tensor, keypoints: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices (B, N, 3), outward normals (B, N, 3) in the palm's frame, float64, and pattern coordinates (B, N).

    `keypoints` (B, 21, 3) are in the palm's frame. A `share` of the samples holds something, if there is room.
    """
    u = counter_rng.uniform(keys, "held", (10,)).double()
    palm = u[:, 0] < 0.6
    which = (u[:, 1] * 4).long()
    table = torch.tensor([PALM_SHAPES, TIP_SHAPES], dtype=torch.float64, device=keys.device)
    shape = table[(~palm).long(), which]  # (B, 4)
    length = shape[:, 2] + (shape[:, 3] - shape[:, 2]) * u[:, 2]

    # A thing in the palm lies across it. A thing between the finger tips points anywhere.
    across = turn(2, math.pi / 2 + (u[:, 3] - 0.5) * 0.9)
    free = compose(turn(2, 2 * math.pi * u[:, 3]), turn(0, (u[:, 4] - 0.5) * 2.4))
    frame = torch.where(palm[:, None, None], across, free)
    axis = frame[..., :, 1]

    # Room over the palm: the largest radius that leaves the bones of fingers and thumb outside.
    centre = torch.tensor(PALM_CENTRE, dtype=torch.float64, device=keys.device)
    bones = keypoints[:, [3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19, 20]]
    bones = torch.cat([bones, 0.5 * (bones[:, 1:] + bones[:, :-1])], 1)
    best = torch.zeros(len(keys), dtype=torch.float64, device=keys.device)
    for step in range(1, 10):
        radius = step / 9 * MAX_RADIUS
        middle = centre.clone()
        middle[2] += radius
        gap = bones - middle
        # Long things block the fingers all along their axis, balls only near their centre.
        along = (gap * axis[:, None]).sum(-1)
        reach = (length * radius)[:, None]
        beyond = (along.abs() - reach).clamp_min(0)
        beside = (gap.square().sum(-1) - along.square()).clamp_min(0)
        distance = (beside + beyond.square()).sqrt().amin(1)
        best = torch.where(distance > radius + FLESH - 0.003, radius, best)
    thumb, index = keypoints[:, 4], keypoints[:, 8]
    gap = (thumb - index).norm(dim=-1)
    pinched = (0.5 * gap - 0.004).clamp(0.0025, 0.02)
    pinched = torch.where(gap < 0.05, pinched, torch.zeros_like(pinched))
    radius = torch.where(palm, torch.where(best < 0.009, torch.zeros_like(best), best), pinched)
    radius = torch.where((u[:, 0] * 7.31 % 1) < share, radius, torch.zeros_like(radius))
    middle = torch.where(palm[:, None], centre + torch.stack([0 * radius, 0 * radius, radius], 1),
                         0.5 * (thumb + index))

    long = torch.minimum(length * radius, torch.full_like(radius, 0.13))
    thick = torch.where(u[:, 5] < 0.5, radius, radius * (0.4 + 0.6 * u[:, 6]))
    half = torch.stack([radius, long, torch.where(shape[:, 1] < 0.5, thick, radius)], 1)  # (B, 3)
    along, around, _ = _sphere(keys.device)
    e1, e2 = shape[:, :1], shape[:, 1:2]
    ring, rise = torch.cos(along)[None].clamp_min(0), torch.sin(along)[None]
    cos, sin = torch.cos(around)[None], torch.sin(around)[None]
    local = torch.stack([_power(ring, e1) * _power(cos, e2), _power(rise, e1), -_power(ring, e1) * _power(sin, e2)], -1)
    slant = torch.stack([_power(ring, 2 - e1) * _power(cos, 2 - e2), _power(rise, 2 - e1),
                         -_power(ring, 2 - e1) * _power(sin, 2 - e2)], -1)
    vertices = rotate(frame[:, None], local * half[:, None]) + middle[:, None]
    normals = rotate(frame[:, None], slant / half[:, None].clamp_min(1e-4))
    pattern = along[None] * (3 * u[:, 7:8]) * 3 + around[None] * torch.round(3 * u[:, 8:9])
    return vertices, normals / normals.norm(dim=-1, keepdim=True).clamp_min(1e-12), pattern
