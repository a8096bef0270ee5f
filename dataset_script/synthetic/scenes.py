"""From a posed hand to a picture of one, in two steps, so that training can repeat the second.

:func:`draw_hands` gives hands alone, as RGBA with their keypoints; :func:`composite` puts them over backgrounds.  What
may happen is said by :class:`.ranges.SceneRanges` and by nothing else.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_script import counter_rng
from dataset_script.synthetic import poses
from dataset_script.synthetic.appearance import GAMMA, Light, Surface, dress, paint, sample_light, shade, skin_colors
from dataset_script.synthetic.backgrounds import backgrounds, enlarge, shapes
from dataset_script.synthetic.body import HandBody
from dataset_script.synthetic.objects import held_faces, held_things
from dataset_script.synthetic.poses import Shape, compose, rotate
from dataset_script.synthetic.ranges import SceneRanges
from dataset_script.synthetic.rasterizer import rasterize
from dataset_script.synthetic.views import place_camera, project, sample_view

CANDIDATES = 4
TOUCHING = 0.006  # metres of interpenetration, over all pairs, that flesh makes up for
SUPERSAMPLING = 2
FIXED_POINT = 1 << 20


@dataclass(frozen=True)
class Layer:
    """Hands alone, without a background, drawn or cut out of photographs."""

    rgba: Tensor  # (B, 4, S, S) float32 in [0, 1], colour not multiplied by alpha
    keypoints: Tensor  # (B, 21, 2) float32 pixels of the image
    skin: Tensor  # (B, 3) float32 in [0, 1], the colour of the back of the hand


@dataclass(frozen=True)
class Hands(Layer):
    """Drawn hands, whose place in the camera's frame is known."""

    xyz: Tensor  # (B, 21, 3) float32 metres in the camera's frame
    K: Tensor  # (B, 3, 3) float32 pixels


def sample_shape(keys: Tensor) -> Shape:
    """A hand's proportions: overall size, breadth, the fingers' length and thickness."""
    u = counter_rng.normal(keys, "shape", (14,)).double().clamp(-2, 2)
    size = 1.0 + 0.05 * u[:, 0]
    palm = 1.0 + torch.stack([0.05 * u[:, 1], 0.02 * u[:, 2], 0.06 * u[:, 1] + 0.04 * u[:, 3]], 1)
    length = 1.0 + 0.04 * u[:, 4:5] + 0.02 * u[:, 5:10]
    thickness = 1.0 + 0.04 * u[:, 1:2] + 0.05 * u[:, 3:4] + 0.015 * u[:, 9:14]
    return Shape(size, palm, length, thickness)


def sample_bones(keys: Tensor, body: HandBody, shape: Shape, ranges: SceneRanges) -> tuple[Tensor, Tensor]:
    """Bones of the first of a few poses whose fingers hardly interpenetrate, as :func:`.poses.place_bones` gives."""
    tries = torch.cat([keys + candidate * 0x01000193 for candidate in range(CANDIDATES)])
    shapes = Shape(*(getattr(shape, name).repeat(CANDIDATES, *[1] * (getattr(shape, name).ndim - 1))
                     for name in ("size", "palm", "finger_length", "finger_thickness")))
    pose = poses.sample_poses(tries, ranges.templates, blend=ranges.blend, mixed=ranges.mixed, noise=ranges.noise,
                              wrist=ranges.wrist)
    rotations, origins = poses.place_bones(body, pose, shapes)
    depth = poses.penetration(body, rotations, origins, shapes).view(CANDIDATES, -1)
    rank = torch.arange(CANDIDATES, device=keys.device, dtype=depth.dtype)[:, None]
    choice = (depth.clamp_min(TOUCHING) + rank * 1e-6).argmin(0)  # the first that is good enough, or the best
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
    # Average the fine pixels, one plane at a time, in whole numbers: exact, so the order of summation is no matter.
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


def soften(image: Tensor) -> Tensor:
    """`image` (B, C, H, W) under a 3 x 3 binomial filter, the border repeated."""
    image = F.pad(image, (0, 0, 1, 1), mode="replicate")
    image = 0.25 * (image[:, :, :-2] + image[:, :, 2:]) + 0.5 * image[:, :, 1:-1]
    image = F.pad(image, (1, 1, 0, 0), mode="replicate")
    return 0.25 * (image[..., :-2] + image[..., 2:]) + 0.5 * image[..., 1:-1]


def _joined(one: Surface, other: Surface) -> Surface:
    return Surface(tuple(torch.cat(pair, 1) for pair in zip(one.albedo, other.albedo)),
                   torch.cat([one.shine, other.shine], 1), torch.cat([one.swell, other.swell], 1))


def _occlusion(distance: Tensor, alpha: Tensor, light: Light, K: Tensor) -> Tensor:
    """Factors (B, 1, S, S) on gamma-encoded colour: ambient occlusion and cast shadow, both from the depth map.

    What lies deeper than its surroundings gets less light from all round (Luft et al., "Image enhancement by
    unsharp masking the depth buffer", SIGGRAPH 2006); and a point is in shadow if a few steps towards the light,
    over the screen, something lies in front of the ray.
    """
    size = distance.shape[-1]
    inside = (alpha > 0.2).float()
    depth = distance * inside
    dark = torch.zeros_like(depth)
    for cells, reach in ((32, 0.010), (16, 0.022)):  # the surroundings: a coarse grid, smoothed and scaled up
        coarse = soften(F.interpolate(torch.cat([depth, inside], 1), size=(cells, cells), mode="area"))
        around = enlarge(coarse, size)
        behind = depth - around[:, :1] / around[:, 1:].clamp_min(1e-3)
        dark += (behind / reach).clamp(0, 1)
    factor = 1 - 0.30 * dark.clamp(max=1.3)

    # March towards the light: a metre on the hand is focal length / distance pixels.
    lx, ly, lz = (component[..., None] for component in light.direction)  # (B, 1, 1)
    filled = torch.where(inside > 0, depth, torch.full_like(depth, 9.0))
    middle = depth.sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp_min(1)
    scale = (K[:, 0, 0].float() / middle.clamp_min(0.1))[:, None, None] * (2.0 / size)  # grid units a metre
    line = (torch.arange(size, device=depth.device, dtype=torch.float32) + 0.5) * (2.0 / size) - 1
    hidden = torch.zeros_like(depth)
    for step in (0.008, 0.016, 0.028, 0.044):
        grid = torch.stack(torch.broadcast_tensors(line[None, None, :] + lx * scale * step,
                                                   line[None, :, None] + ly * scale * step), -1)
        there = F.grid_sample(filled, grid, mode="nearest", padding_mode="border", align_corners=False)
        gap = depth + (lz * step)[:, None] - there  # how far in front of the ray something lies
        hidden = torch.maximum(hidden, ((gap - 0.003) / 0.008).clamp(0, 1) * (gap < 0.07))
    hidden = soften(hidden)
    amount = (light.strength / (light.strength + 1.4 * light.ambient))[..., None, None]
    return factor * (1 - 0.75 * amount * hidden)


def move_hands(hands: Hands, angle: Tensor, scale: Tensor, shift: Tensor) -> Hands:
    """`hands` turned in the image by `angle` (B,) radians clockwise, enlarged `scale` (B,) times about the image's
    centre, then moved by `shift` (B, 2) pixels.

    Turning is the camera's roll, scaling its focal length, shifting its principal point, so xyz and K go on projecting
    onto the keypoints exactly.  What leaves the image is lost, so a forearm may end where the image used to.
    """
    size = hands.rgba.shape[-1]
    turned = rotation(angle)
    moved = move_layer(hands, turned * scale[:, None, None], shift, size)
    flat = (hands.xyz[:, :, None, :2] * turned[:, None]).sum(-1)
    K = hands.K.clone()
    K[:, :2, :2] *= scale[:, None, None]
    K[:, :2, 2] += shift
    return Hands(moved.rgba, moved.keypoints, hands.skin, torch.cat([flat, hands.xyz[..., 2:]], -1), K)


def rotation(angle: Tensor) -> Tensor:
    """Matrices (B, 2, 2) that turn by `angle` (B,) radians clockwise, as the image is seen."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def move_layer(layer: Layer, matrix: Tensor, shift: Tensor, size: int) -> Layer:
    """`layer` under `matrix` (B, 2, 2) about its centre, which comes to lie `shift` (B, 2) pixels from the centre of the
    new image, a square of `size` pixels."""
    old = layer.rgba.shape[-1]
    keypoints = ((layer.keypoints - 0.5 * old)[:, :, None, :] * matrix[:, None]).sum(-1)
    keypoints = keypoints + 0.5 * size + shift[:, None]
    # Each new pixel looks up the old one: the inverse motion, in grid_sample's units of half an image.
    (a, b), (c, d) = (row.unbind(-1) for row in matrix.unbind(-2))
    inverse = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2) / (a * d - b * c)[:, None, None]
    offset = -(inverse * (shift * (2.0 / old))[:, None, :]).sum(-1, keepdim=True)
    theta = torch.cat([inverse * (size / old), offset], 2)
    grid = F.affine_grid(theta, [len(theta), 4, size, size], align_corners=False)
    solid = torch.cat([layer.rgba[:, :3] * layer.rgba[:, 3:], layer.rgba[:, 3:]], 1)
    solid = F.grid_sample(solid, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    alpha = solid[:, 3:]
    return Layer(torch.cat([solid[:, :3] / alpha.clamp_min(1e-3), alpha], 1), keypoints, layer.skin)


def composite(
    keys: Tensor,
    hands: Layer,
    ranges: SceneRanges,
    behind: tuple[Tensor, Tensor] | None = None,
    beside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Images (B, 3, S, S) uint8 of `hands` over backgrounds, and the backgrounds' kinds (B,).

    The backgrounds are drawn from `keys`; those that `behind` gives, (B, 3, S, S) where (B,) is true, take their place.
    `beside`, (B, 4, S, S) RGBA, lies between them and the hands.
    """
    size = hands.rgba.shape[-1]
    drawn, kind = backgrounds(keys, size, ranges.backgrounds, hands.skin)
    behind = drawn if behind is None else torch.where(behind[1][:, None, None, None], behind[0], drawn)
    if beside is not None:
        behind = torch.lerp(behind, beside[:, :3], beside[:, 3:])
    u = counter_rng.uniform(keys, "composite", (16,))[:, :, None, None, None]
    color, alpha = hands.rgba[:, :3], hands.rgba[:, 3:]
    if ranges.shadow > 0:  # a soft shadow on what lies behind
        coarse = soften(F.interpolate(alpha, size=(24, 24), mode="area"))
        reach = 0.25 * (u[:, 1, :, 0] - 0.5), 0.25 * (u[:, 2, :, 0] - 0.5)
        line = (torch.arange(size, device=keys.device, dtype=torch.float32) + 0.5) * (2.0 / size) - 1
        grid = torch.stack(torch.broadcast_tensors(line[None, None, :] + reach[0], line[None, :, None] + reach[1]), -1)
        fallen = F.grid_sample(coarse, grid, mode="bilinear", padding_mode="border", align_corners=False)
        behind = behind * (1 - (0.6 * u[:, 3] * (u[:, 0] < ranges.shadow)) * fallen)
    feather = 0.8 * u[:, 4] * (u[:, 5] < ranges.soften)
    alpha = torch.lerp(alpha, soften(alpha), feather)
    # White balance: blue to yellow, a little green to magenta; hand and background share some of it.
    axes = torch.tensor([[0.6, 0.0, -0.6], [-0.12, 0.25, -0.12]], device=keys.device)
    cast = 2 * counter_rng.uniform(keys, "white balance", (3, 2)) - 1
    gain = 1 + ranges.tint * ((cast[:, :1] + 0.6 * cast[:, 1:])[..., None] * axes).sum(2)  # (B, 2, 3)
    level = 1 + 1.5 * ranges.tint * (2 * counter_rng.uniform(keys, "exposure", (3, 1)) - 1)
    color = color * (gain[:, 0] * level[:, 0])[..., None, None]
    behind = behind * (gain[:, 1] * level[:, 1])[..., None, None]
    image = behind + (color - behind) * alpha
    if ranges.occluder > 0:
        chosen = (counter_rng.uniform(keys, "occluder") < ranges.occluder).nonzero(as_tuple=True)[0]
        if len(chosen):
            image[chosen] = shapes(keys[chosen], "occluder shapes", size, 2, hands.skin[chosen], image[chosen],
                                   scale=(0.45, 0.25), fleshy=0.3)
    image = torch.lerp(image, soften(image), u[:, 6] * (u[:, 7] < ranges.soften))
    contrast = 1 + 1.2 * ranges.tint * (2 * u[:, 8] - 1)
    image = (image - 0.45) * contrast + 0.45 * level[:, 2, :, None, None]
    grain = counter_rng.uniform(keys, "grain", (size, size))[:, None] - 0.5
    grain = torch.cat([grain, grain.roll((5, 11), (2, 3)), grain.roll((17, 3), (2, 3))], 1)
    image = image + (0.10 * u[:, 9] ** 2) * grain
    return (image.clamp(0, 1) * 255.0 + 0.5).to(torch.uint8), kind
