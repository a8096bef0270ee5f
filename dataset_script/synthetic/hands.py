"""From random keys to posed, lit and drawn right hands, as RGBA without a background.

:class:`.ranges.SceneRanges` alone says what may happen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_script import counter_rng
from dataset_script.synthetic import poses
from dataset_script.synthetic.appearance import GAMMA, Light, Surface, dress, paint, sample_light, shade, skin_colors
from dataset_script.synthetic.backgrounds import enlarge, pixel_grid
from dataset_script.synthetic.body import HandBody
from dataset_script.synthetic.compositing import Layer, soften
from dataset_script.synthetic.objects import held_faces, held_things
from dataset_script.synthetic.poses import Shape, compose, rotate
from dataset_script.synthetic.ranges import SceneRanges
from dataset_script.synthetic.rasterizer import rasterize
from dataset_script.synthetic.views import place_camera, project, sample_view

CANDIDATES = 4
TOUCHING = 0.006  # metres of interpenetration, over all pairs, that soft flesh allows
SUPERSAMPLING = 2
FIXED_POINT = 1 << 20


@dataclass(frozen=True)
class Hands(Layer):
    """Drawn hands, with their place in the camera's frame."""

    xyz: Tensor  # (B, 21, 3) float32 metres in the camera's frame
    K: Tensor  # (B, 3, 3) float32 pixels


def sample_shape(keys: Tensor) -> Shape:
    """A hand's proportions: its size, its breadth, and the length and thickness of its fingers."""
    u = counter_rng.normal(keys, "shape", (14,)).double().clamp(-2, 2)
    size = 1.0 + 0.05 * u[:, 0]
    palm = 1.0 + torch.stack([0.05 * u[:, 1], 0.02 * u[:, 2], 0.06 * u[:, 1] + 0.04 * u[:, 3]], 1)
    length = 1.0 + 0.04 * u[:, 4:5] + 0.02 * u[:, 5:10]
    thickness = 1.0 + 0.04 * u[:, 1:2] + 0.05 * u[:, 3:4] + 0.015 * u[:, 9:14]
    return Shape(size, palm, length, thickness)


def sample_bones(keys: Tensor, body: HandBody, shape: Shape, ranges: SceneRanges) -> tuple[Tensor, Tensor]:
    """Bones, as from :func:`.poses.place_bones`, of the first of a few poses whose fingers hardly interpenetrate."""
    tries = torch.cat([keys + candidate * 0x01000193 for candidate in range(CANDIDATES)])
    shapes = Shape(*(getattr(shape, name).repeat(CANDIDATES, *[1] * (getattr(shape, name).ndim - 1))
                     for name in ("size", "palm", "finger_length", "finger_thickness")))
    pose = poses.sample_poses(tries, ranges.templates, blend=ranges.blend, mixed=ranges.mixed, noise=ranges.noise,
                              wrist=ranges.wrist)
    rotations, origins = poses.place_bones(body, pose, shapes)
    depth = poses.penetration(body, rotations, origins, shapes).view(CANDIDATES, -1)
    rank = torch.arange(CANDIDATES, device=keys.device, dtype=depth.dtype)[:, None]
    choice = (depth.clamp_min(TOUCHING) + rank * 1e-6).argmin(0)  # the first good one, or else the best
    pick = choice * len(keys) + torch.arange(len(keys), device=keys.device)
    return rotations[pick], origins[pick]


def _pose_surface(body: HandBody, rotations: Tensor, origins: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Linear blend skinning: vertices and (not unit) normals, (B, 3, V) float64 and float32, in the palm's frame."""
    device = rotations.device
    rest = torch.from_numpy(body.bone_rotations).to(device)
    rest_origins = torch.from_numpy(body.bone_origins).to(device)
    linear = compose(rotations * poses.bone_scales(shape)[:, :, None, :], rest.transpose(1, 2)[None])
    moved = origins - rotate(linear, rest_origins[None])
    matrices = torch.cat([linear, moved[..., None]], -1).flatten(2).transpose(1, 2)  # (B, 12, 17)
    blended = (matrices @ torch.from_numpy(body.weights).to(device).T).unflatten(1, (3, 4))  # (B, 3, 4, V)
    x, y, z = torch.from_numpy(body.vertices).to(device).T
    vertices = blended[:, :, 0] * x + blended[:, :, 1] * y + blended[:, :, 2] * z + blended[:, :, 3]
    nx, ny, nz = torch.from_numpy(body.normals).float().to(device).T
    blended = blended[:, :, :3].float()
    return vertices, blended[:, :, 0] * nx + blended[:, :, 1] * ny + blended[:, :, 2] * nz


def draw_hands(keys: Tensor, body: HandBody, ranges: SceneRanges, size: int) -> Hands:
    """Pose, view, light and draw the right hands of `keys` (B, 2)."""
    device = keys.device
    shape = sample_shape(keys)
    rotations, origins = sample_bones(keys, body, shape, ranges)
    view = sample_view(keys, ranges)
    keypoints = poses.place_keypoints(body, rotations, origins, shape)
    turned = rotate(view[:, None], keypoints) * shape.size[:, None, None]
    offset, K = place_camera(keys, turned, ranges, size)
    xyz = turned + offset[:, None]

    vertices, normals = _pose_surface(body, rotations, origins, shape)
    back, palm = skin_colors(keys)
    surface = dress(keys, body, back, palm, ranges)
    normals = normals * torch.rsqrt(normals.square().sum(1, keepdim=True).clamp_min(1e-12))
    vertices = vertices + (normals * surface.swell[:, None]).double()
    faces = torch.from_numpy(body.faces).to(device)
    if ranges.held > 0:
        things, outward, pattern = held_things(keys, keypoints, ranges.held)
        faces = torch.cat([faces, held_faces(device) + vertices.shape[2]])
        vertices = torch.cat([vertices, things.transpose(1, 2)], 2)
        normals = torch.cat([normals, outward.transpose(1, 2).float()], 2)
        surface = _joined(surface, paint(keys, pattern))

    view_size = view * shape.size[:, None, None]
    x, y, z = ((view_size[:, row, :, None] * vertices).sum(1) + offset[:, row, None] for row in range(3))  # (B, V)
    single = view.float()
    normals = tuple((single[:, row, :, None] * normals).sum(1) for row in range(3))
    light = sample_light(keys)
    colors = shade(surface, light, (x.float(), y.float(), z.float()), normals)

    fine_size = SUPERSAMPLING * size
    near = 1.0 / z
    pixel, corners, weights = rasterize(
        (x * near * K[:, 0, 0, None] + K[:, 0, 2, None]) * SUPERSAMPLING,
        (y * near * K[:, 1, 1, None] + K[:, 1, 2, None]) * SUPERSAMPLING, near, faces, fine_size)
    # Average the fine pixels, one plane at a time, in integers: exact, so the order of summation does not matter.
    planes = [plane.flatten() for plane in (*colors, near.float())]
    target = pixel // (fine_size * SUPERSAMPLING) * size + pixel % fine_size // SUPERSAMPLING
    small = torch.zeros(5, len(keys) * size * size, dtype=torch.int32, device=device)
    for total, plane in zip(small[:4], planes):
        value = sum(plane[corner] * weight for corner, weight in zip(corners, weights))
        total.index_add_(0, target, (value * FIXED_POINT).to(torch.int32))
    small[4].index_add_(0, target, torch.ones_like(target, dtype=torch.int32))
    alpha = small[4].view(-1, 1, size, size).float() / SUPERSAMPLING**2
    small = small[:4].view(4, -1, size, size).transpose(0, 1).float() / (FIXED_POINT * SUPERSAMPLING**2)
    whole = small / alpha.clamp_min(0.25)
    shadow = _occlusion(1.0 / whole[:, 3:].clamp_min(0.1), alpha, light, K)
    rgba = torch.cat([whole[:, :3] * shadow, alpha], 1)
    return Hands(rgba, project(xyz, K).float(), back.clamp(0, 1) ** (1 / GAMMA), xyz.float(), K.float())


def _joined(one: Surface, other: Surface) -> Surface:
    return Surface(tuple(torch.cat(pair, 1) for pair in zip(one.albedo, other.albedo)),
                   torch.cat([one.shine, other.shine], 1), torch.cat([one.swell, other.swell], 1))


def _occlusion(distance: Tensor, alpha: Tensor, light: Light, K: Tensor) -> Tensor:
    """Factors (B, 1, S, S) for gamma-encoded colour: ambient occlusion and cast shadow, both from the depth map.

    Points that lie deeper than their surroundings get less ambient light (Luft et al., "Image enhancement by unsharp
    masking the depth buffer", SIGGRAPH 2006). A point is in shadow if something lies in front of its ray to the light,
    within a few steps over the screen.
    """
    size = distance.shape[-1]
    inside = (alpha > 0.2).float()
    depth = distance * inside
    dark = torch.zeros_like(depth)
    for cells, reach in ((32, 0.010), (16, 0.022)):  # surroundings: a coarse grid, smoothed and scaled up
        coarse = soften(F.interpolate(torch.cat([depth, inside], 1), size=(cells, cells), mode="area"))
        around = enlarge(coarse, size)
        behind = depth - around[:, :1] / around[:, 1:].clamp_min(1e-3)
        dark += (behind / reach).clamp(0, 1)
    factor = 1 - 0.30 * dark.clamp(max=1.3)

    # Step towards the light: a metre on the hand is focal length / distance pixels.
    lx, ly, lz = (component[..., None] for component in light.direction)  # (B, 1, 1)
    filled = torch.where(inside > 0, depth, torch.full_like(depth, 9.0))
    middle = depth.sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp_min(1)
    scale = (K[:, 0, 0].float() / middle.clamp_min(0.1))[:, None, None] * (2.0 / size)  # grid units a metre
    x, y = pixel_grid(size, depth.device)
    hidden = torch.zeros_like(depth)
    for step in (0.008, 0.016, 0.028, 0.044):
        grid = torch.stack([x + lx * scale * step, y + ly * scale * step], -1)
        there = F.grid_sample(filled, grid, mode="nearest", padding_mode="border", align_corners=False)
        gap = depth + (lz * step)[:, None] - there  # how far in front of the ray something lies
        hidden = torch.maximum(hidden, ((gap - 0.003) / 0.008).clamp(0, 1) * (gap < 0.07))
    hidden = soften(hidden)
    amount = (light.strength / (light.strength + 1.4 * light.ambient))[..., None, None]
    return factor * (1 - 0.75 * amount * hidden)
