"""From a posed hand to a picture of one: view, camera, skin, light, and the composition over a background.

A scene is drawn in two steps so that training can repeat the second: :func:`draw_hands` gives the hand alone as RGBA
with its keypoints, :func:`composite` puts it over a background.  What may happen is in :class:`SceneRanges`, of which
`EASY` and `FULL` are the two difficulties; nothing else depends on the difficulty.

Cameras look along +z with x right and y down, in metres; a hand with palm to the camera and fingers up has its axes
(x, y, z) along (x, -y, -z) of the camera.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_script import counter_rng
from dataset_script.synthetic import poses
from dataset_script.synthetic.backgrounds import backgrounds
from dataset_script.synthetic.body import FOREARM, PALM, HandBody
from dataset_script.synthetic.poses import TEMPLATES, Shape, compose, rotate
from dataset_script.synthetic.rasterizer import rasterize


@dataclass(frozen=True)
class SceneRanges:
    """What a difficulty allows.  Angles in degrees, shares are probabilities."""

    templates: tuple[str, ...]
    blend: float  # a pose goes up to this part of the way to a second template
    noise: float  # standard deviation of the joints' angles
    wrist: float  # standard deviation of the wrist's flexion
    yaw: float  # spread about palm or back to the viewer
    pitch: float  # standard deviation of the tilt towards the viewer
    roll: float  # turned at most so far in the image, either way
    fill: tuple[float, float]  # longer side of the keypoints' box, in image sides
    shift: float  # the box's centre off the image's, at most, in image sides
    sleeve: float
    backgrounds: tuple[float, ...]  # share of each kind, in the order of backgrounds.KINDS


EASY = SceneRanges(
    templates=("open", "flat", "spread", "relaxed", "point", "two", "three", "four", "thumb and two", "letter L", "cup",
               "claw"),
    blend=0.2, noise=5.0, wrist=8.0, yaw=25.0, pitch=12.0, roll=45.0, fill=(0.52, 0.62), shift=0.04,
    sleeve=0.3, backgrounds=(0.4, 0.15, 0.15, 0.15, 0.1, 0.05),
)
FULL = SceneRanges(
    templates=tuple(TEMPLATES), blend=0.7, noise=9.0, wrist=18.0, yaw=180.0, pitch=32.0, roll=180.0, fill=(0.38, 0.58),
    shift=0.06, sleeve=0.4, backgrounds=(0.15, 0.15, 0.3, 0.2, 0.1, 0.1),
)
CANDIDATES = 4
FOCAL = (400.0 / 224, 700.0 / 224)  # in image sides, as FreiHAND's cameras
DEPTH = (0.4, 0.9)


@dataclass(frozen=True)
class Hands:
    """Hands alone, without a background."""

    rgba: Tensor  # (B, 4, S, S) float32 in [0, 1], colour not multiplied by alpha
    keypoints: Tensor  # (B, 21, 2) float32 pixels of the image
    xyz: Tensor  # (B, 21, 3) float32 metres in the camera's frame
    K: Tensor  # (B, 3, 3) float32 pixels
    skin: Tensor  # (B, 3) float32, the colour of the back of the hand


def project(xyz: Tensor, K: Tensor) -> Tensor:
    """Pixels (B, N, 2) of `xyz` (B, N, 3) metres seen through `K` (B, 3, 3)."""
    pixels = (K[:, None] * xyz[:, :, None, :]).sum(-1)
    return pixels[..., :2] / pixels[..., 2:]


def sample_shape(keys: Tensor) -> Shape:
    """A hand's proportions: overall size, breadth, the fingers' length and thickness."""
    u = counter_rng.normal(keys, "shape", (14,)).double().clamp(-2, 2)
    size = 1.0 + 0.05 * u[:, 0]
    palm = 1.0 + torch.stack([0.05 * u[:, 1], 0.02 * u[:, 2], 0.06 * u[:, 1] + 0.04 * u[:, 3]], 1)
    length = 1.0 + 0.04 * u[:, 4:5] + 0.02 * u[:, 5:10]
    thickness = 1.0 + 0.04 * u[:, 1:2] + 0.05 * u[:, 3:4] + 0.015 * u[:, 9:14]
    return Shape(size, palm, length, thickness)


def sample_pose(keys: Tensor, body: HandBody, shape: Shape, ranges: SceneRanges) -> tuple[Tensor, Tensor]:
    """Bones of the candidate pose whose fingers interpenetrate least, as :func:`.poses.place_bones` gives them."""
    best = rotations = origins = None
    for candidate in range(CANDIDATES):
        own = keys + candidate * 0x5BD1E995 % (1 << 31)
        pose = poses.sample_poses(own, ranges.templates, blend=ranges.blend, noise=ranges.noise, wrist=ranges.wrist)
        turned, placed = poses.place_bones(body, pose, shape)
        cost = poses.penetration(body, turned, placed, shape)
        if best is None:
            best, rotations, origins = cost, turned, placed
            continue
        better = cost < best - 0.004
        best = torch.where(better, cost, best)
        rotations = torch.where(better[:, None, None, None], turned, rotations)
        origins = torch.where(better[:, None, None], placed, origins)
    return rotations, origins


def sample_view(keys: Tensor, ranges: SceneRanges) -> Tensor:
    """Rotations (B, 3, 3) from the palm's frame to the camera's, float64."""
    u = counter_rng.uniform(keys, "view", (3,)).double()
    tilt = counter_rng.normal(keys, "view tilt").double().clamp(-2.2, 2.2)
    side = (u[:, 0] < 0.5).double() * math.pi  # palm or back
    yaw = side + (2 * u[:, 1] - 1) * math.radians(ranges.yaw)
    roll = (2 * u[:, 2] - 1) * math.radians(ranges.roll)
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64, device=keys.device))
    turned = compose(upright.expand(len(keys), 3, 3), poses._turn(1, yaw))
    return compose(poses._turn(2, roll), compose(poses._turn(0, tilt * math.radians(ranges.pitch)), turned))


def place_camera(keys: Tensor, points: Tensor, ranges: SceneRanges, size: int) -> tuple[Tensor, Tensor]:
    """Where the hand is put and the camera that sees it: offset (B, 3) metres and K (B, 3, 3), float64.

    `points` (B, 21, 3) are the keypoints turned to the camera; their box comes to fill `ranges.fill` of the image.
    """
    u = counter_rng.uniform(keys, "camera", (5,)).double()
    fill = ranges.fill[0] + (ranges.fill[1] - ranges.fill[0]) * u[:, 0]
    focal = FOCAL[0] * (FOCAL[1] / FOCAL[0]) ** u[:, 1]
    low, high = points.amin(1), points.amax(1)
    extent = (high - low)[:, :2].amax(1)
    depth = (focal * extent / fill).clamp(*DEPTH)
    middle = 0.5 * (low + high)
    offset = torch.stack([-middle[:, 0], -middle[:, 1], depth - middle[:, 2]], 1)
    # Perspective moves and stretches the box a little: measure it and correct focal length and offset.
    for _ in range(2):
        flat = (points + offset[:, None])[..., :2] / (points + offset[:, None])[..., 2:]
        low, high = flat.amin(1), flat.amax(1)
        offset[:, :2] -= 0.5 * (low + high) * depth[:, None]
    focal = fill / (high - low).amax(1)
    offset[:, :2] += (2 * u[:, 2:4] - 1) * ranges.shift * (depth / focal)[:, None]
    K = torch.zeros(len(keys), 3, 3, dtype=torch.float64, device=keys.device)
    K[:, 0, 0] = focal * size
    K[:, 1, 1] = focal * size * (1 + 0.002 * (u[:, 4] - 0.5))
    K[:, 0, 2] = K[:, 1, 2] = 0.5 * size
    K[:, 2, 2] = 1.0
    return offset, K


def skin_colors(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Linear colours (B, 3) of the back of the hand and of its palm.

    Melanin darkens exponentially, blue most (the skin tones from very light to very dark lie close to such a curve),
    and the palm has little of it.
    """
    u = counter_rng.uniform(keys, "skin", (5,))
    melanin = u[:, :1] ** 1.3
    blood = 0.4 + 0.9 * u[:, 1:2]
    light = torch.tensor([0.80, 0.58, 0.46], device=keys.device)
    absorbs_melanin = torch.tensor([1.9, 2.6, 3.1], device=keys.device)
    absorbs_blood = torch.tensor([0.04, 0.38, 0.34], device=keys.device)
    yellow = torch.tensor([0.0, 0.05, 0.35], device=keys.device) * (u[:, 2:3] - 0.4)
    back = light * torch.exp(-absorbs_melanin * melanin - absorbs_blood * blood - yellow)
    palm_blood = blood + 0.25 + 0.5 * u[:, 3:4]
    palm = 1.05 * light * torch.exp(-absorbs_melanin * (0.55 * melanin**1.3) - absorbs_blood * palm_blood - yellow)
    return back, palm


def _skin_matrices(body: HandBody, rotations: Tensor, origins: Tensor, shape: Shape, view: Tensor, offset: Tensor) -> Tensor:
    """Affine matrices (B, 17, 3, 4) that take the body at rest to the camera's frame, bone by bone."""
    device = rotations.device
    rest = torch.from_numpy(body.bone_rotations).to(device)
    rest_origins = torch.from_numpy(body.bone_origins).to(device)
    scaled = (rotations * poses.bone_scales(shape)[:, :, None, :])
    linear = compose(scaled, rest.transpose(1, 2).expand_as(scaled))
    moved = origins - rotate(linear, rest_origins.expand_as(origins))
    linear = compose(view[:, None], linear) * shape.size[:, None, None, None]
    moved = rotate(view[:, None], moved) * shape.size[:, None, None] + offset[:, None]
    return torch.cat([linear, moved[..., None]], -1)


def draw_hands(keys: Tensor, body: HandBody, ranges: SceneRanges, size: int) -> Hands:
    """Pose, view, light and draw the right hands of `keys` (B, 2)."""
    device = keys.device
    shape = sample_shape(keys)
    rotations, origins = sample_pose(keys, body, shape, ranges)
    view = sample_view(keys, ranges)
    keypoints = poses.place_keypoints(body, rotations, origins, shape) * shape.size[:, None, None]
    turned = rotate(view[:, None], keypoints)
    offset, K = place_camera(keys, turned, ranges, size)
    xyz = turned + offset[:, None]

    weights = torch.from_numpy(body.weights).to(device)
    rest = torch.cat([torch.from_numpy(body.vertices), torch.ones(len(body.vertices), 1, dtype=torch.float64)], 1).to(device)
    matrices = _skin_matrices(body, rotations, origins, shape, view, offset)  # (B, 17, 3, 4)
    blended = torch.einsum("vb,nbk->nvk", weights, matrices.flatten(2)).unflatten(-1, (3, 4))
    vertices = (blended * rest[:, None]).sum(-1)  # (B, V, 3)
    normals = (blended[..., :3].float() * torch.from_numpy(body.normals).to(device).float()[:, None]).sum(-1)
    normals = F.normalize(normals, dim=-1)

    back, palm = skin_colors(keys)
    colors = _shade(keys, body, vertices.float(), normals, back, palm, rest.float(), ranges)
    points = 2 * project(vertices, K)
    faces = torch.from_numpy(body.faces).to(device)
    pixel, face, barycentric = rasterize(points, 1.0 / vertices[..., 2], faces, 2 * size)
    owner = pixel // (4 * size * size)
    corners = colors.flatten(0, 1)[owner[:, None] * colors.shape[1] + faces[face]]  # (P, 3, 3)
    fine = torch.zeros(len(keys) * 4 * size * size, 4, device=device)
    fine[pixel] = torch.cat([(corners * barycentric[..., None]).sum(1), torch.ones(len(pixel), 1, device=device)], 1)
    small = fine.view(len(keys), size, 2, size, 2, 4).mean((2, 4)).permute(0, 3, 1, 2)
    alpha = small[:, 3:]
    rgba = torch.cat([small[:, :3] / alpha.clamp_min(0.25), alpha], 1)
    single = (xyz.float(), K.float())
    return Hands(rgba, project(xyz, K).float(), *single, back.clamp(0, 1) ** (1 / 2.2))


def _shade(keys: Tensor, body: HandBody, vertices: Tensor, normals: Tensor, back: Tensor, palm: Tensor, rest: Tensor,
           ranges: SceneRanges) -> Tensor:
    """Colours (B, V, 3) of the vertices, gamma-encoded."""
    device = keys.device
    marks = {name: torch.from_numpy(getattr(body, name)).float().to(device)[:, None]
             for name in ("palmar", "nail", "crease", "blush")}
    u = counter_rng.uniform(keys, "markings", (6,))[:, :, None, None]
    albedo = torch.lerp(back[:, None], palm[:, None], marks["palmar"])
    albedo = albedo * (1 - (0.25 + 0.35 * u[:, 0]) * marks["crease"])
    pale = torch.tensor([0.0, 0.16, 0.14], device=device)
    albedo = albedo * (1 - 1.2 * u[:, 1] * marks["blush"] * pale)
    nail = (0.6 * palm + 0.4 * torch.tensor([0.75, 0.55, 0.50], device=device) * (0.4 + 0.6 * palm[:, :1] / 0.6))[:, None]
    albedo = torch.lerp(albedo, nail, 0.8 * marks["nail"])
    wave = counter_rng.normal(keys, "mottle", (4, 3)) * 90.0
    phase = counter_rng.uniform(keys, "mottle phase", (4,)) * 2 * math.pi
    mottle = torch.zeros(len(keys), len(rest), device=device)
    for k in range(4):
        mottle += torch.sin((rest[None, :, :3] * wave[:, k, None]).sum(-1) + phase[:, k, None])
    albedo = albedo * (1 + 0.03 * mottle[..., None])
    sleeve = counter_rng.uniform(keys, "sleeve", (5,))
    cloth = (sleeve[:, 1:4] ** 1.5)[:, None]
    covered = (sleeve[:, 0] < ranges.sleeve)[:, None] & (rest[None, :, 1] < -0.035 - 0.08 * sleeve[:, 4:5])
    albedo = torch.where(covered[..., None], cloth, albedo)

    light = counter_rng.normal(keys, "light", (3,)) + torch.tensor([0.0, -0.8, -0.8], device=device)
    light = F.normalize(light, dim=1)[:, None]
    v = counter_rng.uniform(keys, "light strength", (8,))[:, :, None, None]
    facing = (normals * light).sum(-1, keepdim=True)
    wrap = torch.tensor([0.35, 0.18, 0.12], device=device)
    direct = ((facing + wrap) / (1 + wrap)).clamp_min(0) * (0.5 + 0.9 * v[:, 0])
    sky = 0.5 - 0.5 * normals[..., 1:2]
    ambient = (0.30 + 0.5 * v[:, 1]) * (0.55 + 0.45 * sky)
    warmth = 1 + (v[:, 2] - 0.5) * torch.tensor([0.25, 0.0, -0.25], device=device)
    eye = F.normalize(-vertices, dim=-1)
    half = F.normalize(light + eye, dim=-1)
    gloss = ((normals * half).sum(-1, keepdim=True).clamp_min(0) ** (8 + 30 * v[:, 3])) * (facing > 0)
    shine = 0.10 * v[:, 4] * (1 + 2 * marks["nail"]) * (~covered[..., None])
    return (albedo * (direct * warmth + ambient) + shine * gloss).clamp(0.0005, 1.0) ** (1 / 2.2)


def composite(keys: Tensor, hands: Hands, ranges: SceneRanges) -> tuple[Tensor, Tensor]:
    """Images (B, 3, S, S) uint8 of `hands` over backgrounds drawn from `keys`, and the backgrounds' kinds (B,)."""
    size = hands.rgba.shape[-1]
    behind, kind = backgrounds(keys, size, ranges.backgrounds, hands.skin)
    color, alpha = hands.rgba[:, :3], hands.rgba[:, 3:]
    image = behind + (color - behind) * alpha
    grain = counter_rng.uniform(keys, "grain amount")[:, None, None, None] ** 2 * 0.05
    image = image + grain * (counter_rng.uniform(keys, "grain", (3, size, size)) - 0.5)
    return (image.clamp(0, 1) * 255.0 + 0.5).to(torch.uint8), kind
