"""Plausible hand poses: templates, blended, with noise inside anatomical limits; and the bones of a pose.

A pose has 23 angles. `thumb` (B, 5): swing, elevation and roll of its first bone (see :func:`.body.thumb_frame`), then the
flexion of its two joints. `fingers` (B, 4, 4), index to little: the spread from the neutral fan towards the thumb's side,
then the flexion of the three joints. `wrist` (B, 2): flexion of the hand towards the palm, and deviation towards the thumb.
Tables are in degrees, tensors in radians.

Neighbouring fingers share a part of the noise, because common muscles pull them, and the last joint follows the middle one.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dataset_script import counter_rng
from dataset_script.synthetic.body import FOREARM, NEUTRAL_SPREAD, NUM_BONES, PALM, HandBody, thumb_frame

# name: (thumb, index, middle, ring, little)
TEMPLATES: dict[str, tuple[tuple[float, ...], ...]] = {
    "open": ((48, 8, 45, 5, 5), (3, 3, 5, 3), (0, 3, 5, 3), (-2, 3, 5, 3), (-4, 3, 6, 4)),
    "flat": ((20, 8, 62, 8, 5), (-7, 2, 3, 2), (-1, 2, 3, 2), (5, 2, 3, 2), (13, 2, 4, 2)),
    "spread": ((56, 6, 45, 0, -5), (8, -4, 4, 3), (1, -4, 4, 3), (-6, -4, 4, 3), (-13, -4, 5, 3)),
    "relaxed": ((36, 22, 35, 14, 14), (0, 22, 24, 14), (0, 28, 30, 18), (0, 32, 34, 20), (0, 34, 36, 20)),
    "fist": ((20, 48, 0, 46, 56), (-16, 84, 100, 62), (-5, 86, 102, 64), (7, 86, 102, 64), (20, 84, 100, 62)),
    "thumb up": ((38, -2, 25, -5, -12), (-16, 82, 100, 62), (-5, 84, 102, 64), (7, 84, 102, 64), (20, 82, 100, 62)),
    "point": ((24, 48, 5, 40, 50), (0, 4, 6, 4), (-5, 78, 98, 60), (7, 84, 100, 62), (20, 82, 98, 62)),
    "two": ((20, 48, 0, 42, 52), (6, 3, 5, 3), (-4, 3, 5, 3), (7, 80, 98, 60), (20, 82, 98, 60)),
    "three": ((12, 50, 0, 46, 50), (6, 2, 5, 3), (0, 2, 5, 3), (-5, 4, 8, 4), (20, 78, 92, 56)),
    "four": ((8, 46, 5, 44, 48), (5, 2, 5, 3), (0, 2, 5, 3), (-3, 2, 5, 3), (-6, 3, 6, 4)),
    "thumb and two": ((52, 4, 42, 0, 0), (5, 4, 6, 4), (-2, 6, 8, 4), (7, 80, 96, 58), (20, 80, 96, 58)),
    "letter L": ((56, 6, 40, -4, -8), (3, 2, 5, 3), (-5, 80, 98, 60), (7, 82, 100, 62), (20, 80, 98, 60)),
    "horns": ((22, 48, 0, 40, 50), (2, 4, 6, 4), (-5, 80, 98, 60), (7, 82, 98, 60), (-4, 6, 8, 5)),
    "telephone": ((56, 2, 40, -6, -10), (-16, 80, 98, 60), (-5, 82, 100, 62), (7, 82, 98, 60), (-8, 6, 8, 5)),
    "OK": ((32, 46, 12, 18, 36), (-9, 52, 58, 26), (0, 16, 20, 10), (-3, 10, 14, 8), (-7, 8, 12, 8)),
    "pinch": ((30, 46, 12, 20, 30), (-9, 58, 46, 18), (-3, 56, 52, 26), (4, 60, 58, 30), (12, 60, 58, 30)),
    "all tips": ((24, 52, 10, 16, 26), (-6, 58, 38, 14), (-1, 60, 40, 14), (6, 60, 42, 16), (16, 58, 46, 18)),
    "key grip": ((20, 30, 25, 22, 22), (-10, 62, 62, 30), (-3, 70, 72, 38), (7, 76, 78, 42), (20, 78, 78, 44)),
    "hook": ((28, 16, 50, 10, 10), (-5, 8, 88, 52), (-1, 8, 92, 54), (4, 8, 92, 54), (10, 8, 88, 52)),
    "claw": ((50, 24, 35, 10, 40), (5, 10, 62, 42), (0, 10, 64, 44), (-4, 10, 64, 44), (-9, 12, 62, 42)),
    "grasp ball": ((40, 44, 10, 8, 24), (6, 36, 42, 26), (0, 38, 44, 28), (-5, 40, 44, 28), (-10, 42, 44, 28)),
    "grasp bar": ((26, 44, 10, 26, 34), (-10, 56, 66, 36), (-3, 60, 70, 38), (5, 64, 72, 40), (14, 66, 72, 40)),
    "cup": ((34, 38, 15, 8, 14), (-5, 36, 32, 18), (-1, 40, 34, 18), (4, 42, 36, 18), (11, 44, 36, 18)),
    "bent flat": ((30, 24, 30, 8, 6), (-6, 62, 8, 4), (-1, 66, 8, 4), (5, 66, 8, 4), (13, 62, 10, 4)),
    "middle down": ((40, 14, 40, 8, 8), (3, 6, 8, 4), (0, 56, 44, 22), (-1, 14, 18, 10), (-4, 6, 10, 6)),
    "pen": ((28, 44, 10, 26, 30), (-2, 48, 44, 14), (-3, 56, 58, 28), (5, 66, 70, 36), (14, 68, 70, 36)),
}
GRASPS = ("grasp ball", "grasp bar", "cup", "claw", "key grip", "pen", "pinch", "all tips")

THUMB_LIMITS = ((0, 60), (-10, 56), (-15, 75), (-15, 62), (-18, 80))
FINGER_LIMITS = ((-22, 26), (-18, 94), (-3, 112), (-8, 78))


@dataclass(frozen=True)
class Pose:
    """Angles in radians; see the module's docstring for their order."""

    thumb: Tensor  # (B, 5)
    fingers: Tensor  # (B, 4, 4)
    wrist: Tensor  # (B, 2)


@dataclass(frozen=True)
class Shape:
    """Factors by which a hand differs from the body at rest."""

    size: Tensor  # (B,)
    palm: Tensor  # (B, 3) along the palm's axes
    finger_length: Tensor  # (B, 5)
    finger_thickness: Tensor  # (B, 5)


def _template_table(names: tuple[str, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    thumb = torch.tensor([TEMPLATES[name][0] for name in names], dtype=torch.float32, device=device)
    fingers = torch.tensor([TEMPLATES[name][1:] for name in names], dtype=torch.float32, device=device)
    return thumb, fingers


def _clip_softly(angles: Tensor, limits: tuple[tuple[float, float], ...]) -> Tensor:
    low, high = torch.tensor(limits, dtype=angles.dtype, device=angles.device).unbind(-1)
    return torch.minimum(torch.maximum(angles, low), high)


def sample_poses(
    keys: Tensor, names: tuple[str, ...], *, blend: float, mixed: float, noise: float, wrist: float
) -> Pose:
    """One pose per key: a template, moved up to `blend` of the way to another, plus `noise` (degrees).

    In a share `mixed` of the poses each finger except the thumb has a template of its own. `wrist` is the standard deviation
    of the wrist's flexion in degrees; that of its deviation is half as large.
    """
    thumb_table, finger_table = _template_table(names, keys.device)
    first = counter_rng.integers(keys, "template", len(names))
    second = counter_rng.integers(keys, "second template", len(names))
    part = counter_rng.uniform(keys, "blend") ** 2 * blend
    thumb = torch.lerp(thumb_table[first], thumb_table[second], part[:, None])
    fingers = torch.lerp(finger_table[first], finger_table[second], part[:, None, None])
    if mixed > 0:
        each = counter_rng.integers(keys, "finger template", len(names), (4,))
        chosen = (counter_rng.uniform(keys, "mixed") < mixed)[:, None, None]
        fingers = torch.where(chosen, finger_table[each, torch.arange(4, device=keys.device)], fingers)

    shared = counter_rng.normal(keys, "shared flexion", (1, 3))
    own = counter_rng.normal(keys, "finger flexion", (4, 3))
    own = 0.6 * own + 0.4 * torch.cat([own[:, 1:], own[:, :1]], 1)  # each finger follows its neighbour a little
    wobble = noise * (0.7 * shared + 0.8 * own)
    wobble[:, :, 2] = 0.6 * wobble[:, :, 1] + 0.4 * wobble[:, :, 2]
    fan = counter_rng.normal(keys, "fan", (1,)) * torch.tensor([1.0, 0.2, -0.6, -1.2], device=keys.device)
    spread = 0.28 * noise * (fan + 0.5 * counter_rng.normal(keys, "spread", (4,)))
    flexed = (fingers[:, :, 1] / 90.0).clamp(0, 1)  # flexion tightens the ligaments: little spread is left
    spread = fingers[:, :, 0] + spread * (1 - 0.75 * flexed)
    fingers = _clip_softly(torch.cat([spread[..., None], fingers[:, :, 1:] + wobble], -1), FINGER_LIMITS)

    scale = torch.tensor([0.6, 0.6, 0.5, 0.8, 0.9], device=keys.device)
    thumb = _clip_softly(thumb + noise * scale * counter_rng.normal(keys, "thumb", (5,)), THUMB_LIMITS)
    bend = counter_rng.normal(keys, "wrist", (2,)).clamp(-2, 2) * torch.tensor([wrist, 0.5 * wrist], device=keys.device)
    to_radians = math.pi / 180.0
    return Pose(thumb.double() * to_radians, fingers.double() * to_radians, bend.double() * to_radians)


def turn(axis: int, angle: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) about a coordinate axis."""
    cos, sin, one, zero = angle.cos(), angle.sin(), torch.ones_like(angle), torch.zeros_like(angle)
    rows = {
        0: (one, zero, zero, zero, cos, -sin, zero, sin, cos),
        1: (cos, zero, sin, zero, one, zero, -sin, zero, cos),
        2: (cos, -sin, zero, sin, cos, zero, zero, zero, one),
    }[axis]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def compose(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product (..., 3, 3) with a fixed order of summation, so that a sample does not depend on its batch."""
    return (left[..., :, :, None] * right[..., None, :, :]).sum(-2)


def rotate(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrices (..., 3, 3) applied to vectors (..., 3)."""
    return (matrix * vector[..., None, :]).sum(-1)


def place_bones(body: HandBody, pose: Pose, shape: Shape) -> tuple[Tensor, Tensor]:
    """Rotations (B, 17, 3, 3) and origins (B, 17, 3) of the posed bones in the palm's frame, float64 metres."""
    device, count = pose.thumb.device, len(pose.thumb)
    rest_origins = torch.from_numpy(body.bone_origins).to(device)
    lengths = torch.from_numpy(body.segments).to(device) * shape.finger_length[..., None]  # (B, 5, 3)
    rotations = torch.eye(3, dtype=torch.float64, device=device).expand(count, NUM_BONES, 3, 3).clone()
    origins = torch.zeros(count, NUM_BONES, 3, dtype=torch.float64, device=device)

    forearm = compose(turn(0, -pose.wrist[:, 0]), turn(2, pose.wrist[:, 1]))
    flip = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64, device=device))
    rotations[:, FOREARM] = compose(forearm, flip.expand(count, 3, 3))
    origins[:, FOREARM] = rest_origins[FOREARM] * shape.palm

    neutral = torch.tensor(NEUTRAL_SPREAD, dtype=torch.float64, device=device) * (math.pi / 180)
    base = turn(2, -(neutral + pose.fingers[:, :, 0]))  # (B, 4, 3, 3)
    frames = torch.cat([thumb_frame(pose.thumb[:, :3])[:, None], compose(base, turn(0, pose.fingers[:, :, 1]))], 1)
    bends = torch.cat([pose.thumb[:, None, 3:], pose.fingers[:, :, 2:]], 1)  # (B, 5, 2)
    place = rest_origins[2::3] * shape.palm[:, None]  # (B, 5, 3)
    for segment in range(3):
        rotations[:, 2 + segment :: 3], origins[:, 2 + segment :: 3] = frames, place
        place = place + frames[..., :, 1] * lengths[:, :, segment, None]
        if segment < 2:
            frames = compose(frames, turn(0, bends[:, :, segment]))
    return rotations, origins


def bone_scales(shape: Shape) -> Tensor:
    """Factors (B, 17, 3) along each bone's own axes, without the hand's size."""
    scales = torch.ones(len(shape.palm), NUM_BONES, 3, dtype=torch.float64, device=shape.palm.device)
    scales[:, PALM] = shape.palm
    scales[:, FOREARM, 0], scales[:, FOREARM, 2] = shape.palm[:, 0], shape.palm[:, 2]
    for finger in range(5):
        bones = slice(2 + 3 * finger, 5 + 3 * finger)
        scales[:, bones] = shape.finger_thickness[:, finger, None, None]
        scales[:, bones, 1] = shape.finger_length[:, finger, None]
    return scales


def place_keypoints(body: HandBody, rotations: Tensor, origins: Tensor, shape: Shape) -> Tensor:
    """The 21 keypoints (B, 21, 3) in the palm's frame, float64 metres, for bones from :func:`place_bones`."""
    bones = torch.from_numpy(body.keypoint_bones).to(origins.device)
    offsets = torch.from_numpy(body.keypoint_offsets).to(origins.device) * bone_scales(shape)[:, bones]
    return origins[:, bones] + rotate(rotations[:, bones], offsets)


def penetration(body: HandBody, rotations: Tensor, origins: Tensor, shape: Shape) -> Tensor:
    """How deep the fingers penetrate each other and the palm, in metres summed over pairs: (B,) float64.

    Each segment is three spheres, the palm is a slab under its middle. Touching costs nothing, because flesh gives way.
    """
    place = torch.tensor([0.25, 0.6, 0.95], dtype=torch.float64, device=origins.device)
    lengths = torch.from_numpy(body.segments).to(origins.device) * shape.finger_length[..., None]
    axes, starts = rotations[:, 2:, :, 1], origins[:, 2:]  # (B, 15, 3)
    centres = starts[:, :, None] + axes[:, :, None] * (lengths.flatten(1)[:, :, None, None] * place[:, None])
    x, y, z = centres.flatten(1, 2).unbind(-1)  # (B, 45) each
    radii = (0.0068 * shape.finger_thickness).repeat_interleave(9, dim=1)  # flesh yields: less than the skin's radius
    finger = torch.arange(45, device=origins.device) // 9
    i, j = (finger[:, None] < finger[None]).nonzero(as_tuple=True)
    gap = ((x[:, i] - x[:, j]) ** 2 + (y[:, i] - y[:, j]) ** 2 + (z[:, i] - z[:, j]) ** 2).sqrt()
    depth = (radii[:, i] + radii[:, j] - gap).clamp_min(0)
    over_palm = ((x + 0.008).abs() < 0.042) & (y > 0.0) & (y < 0.075)
    distal = (torch.arange(45, device=origins.device) % 9 >= 3) & (finger > 0)
    sunk = (0.019 - z).clamp(0, 0.03) * (over_palm & distal)
    return depth.sum(1) + sunk.sum(1)
