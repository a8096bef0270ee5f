"""Skin, cloth and light: the colour of every vertex.

Vertices are a few millimetres apart, about a pixel of a 128-pixel picture. So colours are computed at the vertices and
interpolated. Arithmetic is in linear light and gamma-encoded at the end. There is one array (B, V) per component, which is
several times faster on a CPU than (B, V, 3).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dataset_script import counter_rng
from dataset_script.synthetic.body import HandBody
from dataset_script.synthetic.ranges import SceneRanges

GAMMA = 2.2


@dataclass(frozen=True)
class Light:
    """The light of a scene. Tensors are (B, 1) unless said."""

    direction: tuple[Tensor, Tensor, Tensor]  # towards the light, in the camera's frame
    strength: Tensor
    ambient: Tensor
    tint: tuple[Tensor, Tensor, Tensor]  # of the direct light
    gloss: Tensor  # how strongly skin shines
    sharpness: Tensor  # exponent of the highlight


def sample_light(keys: Tensor) -> Light:
    """Light from anywhere on the viewer's side, more often from above."""
    v = counter_rng.normal(keys, "light", (3,)) + torch.tensor([0.0, -0.8, -0.9], device=keys.device)
    v = v / v.norm(dim=1, keepdim=True).clamp_min(1e-6)
    u = counter_rng.uniform(keys, "light strength", (6,))
    warmth = 0.16 * (u[:, 2:3] - 0.5)
    return Light(v[:, :, None].unbind(1), 0.40 + 0.80 * u[:, :1], 0.36 + 0.45 * u[:, 1:2],
                 (1 + warmth, torch.ones_like(warmth), 1 - warmth), 0.12 * u[:, 3:4] ** 2, 8 + 30 * u[:, 4:5])


def skin_colors(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Linear colours (B, 3) of the back of the hand and of its palm.

    Melanin darkens exponentially, blue the most: real skin colours lie close to such a curve. Blood absorbs green and blue.
    The palm has less melanin and more blood.
    """
    u = counter_rng.uniform(keys, "skin", (5,))
    melanin = (u[:, :1].double() ** 1.7).float()
    blood = 0.25 + 0.9 * u[:, 1:2]
    light = torch.tensor([0.82, 0.60, 0.48], device=keys.device)
    absorbs_melanin = torch.tensor([1.8, 2.5, 3.0], device=keys.device)
    absorbs_blood = torch.tensor([0.05, 0.38, 0.34], device=keys.device)
    yellow = torch.tensor([0.0, 0.05, 0.35], device=keys.device) * (u[:, 2:3] - 0.4)
    back = light * torch.exp((-absorbs_melanin * melanin - absorbs_blood * blood - yellow).double()).float()
    palm_blood = blood + 0.45 * u[:, 3:4]
    palm_melanin = melanin * (0.35 + 0.5 * melanin * u[:, 4:5] + 0.15 * (1 - melanin))
    palm = light * torch.exp((-absorbs_melanin * palm_melanin - absorbs_blood * palm_blood - yellow).double()).float()
    return back, palm


@dataclass(frozen=True)
class Surface:
    """The material of the body's vertices."""

    albedo: tuple[Tensor, Tensor, Tensor]  # (B, V) linear red, green, blue
    shine: Tensor  # (B, V)
    swell: Tensor  # (B, V) metres outward: clothes stand off the skin


def dress(keys: Tensor, body: HandBody, back: Tensor, palm: Tensor, ranges: SceneRanges) -> Surface:
    """Colour the body: skin with its markings, nails, a sleeve, a bracelet or watch."""
    device = keys.device
    marks = (body.palmar, body.nail, body.crease, body.blush)
    palmar, nail, crease, blush = (torch.from_numpy(mark).float().to(device)[None] for mark in marks)
    x, y, z = torch.from_numpy(body.vertices).float().to(device).T[:, None]
    u = counter_rng.uniform(keys, "markings", (10,))[:, :, None]

    # Mottled skin: waves through the body. Coarse ones tint it, fine ones darken it.
    wave = counter_rng.normal(keys, "mottle", (4, 3))[..., None] * torch.tensor([60.0, 110.0, 220.0, 420.0],
                                                                                device=device)[:, None, None]
    phase = counter_rng.uniform(keys, "mottle phase", (4,))[..., None] * (2 * math.pi)
    waves = [torch.sin(wave[:, k, 0] * x + wave[:, k, 1] * y + wave[:, k, 2] * z + phase[:, k]) for k in range(4)]
    tone = 1 + (0.015 + 0.035 * u[:, 6]) * (waves[0] + waves[2] + waves[3])
    tone = tone * (1 - (0.15 + 0.35 * u[:, 0]) * crease)
    red = (blush * u[:, 1] + 0.25 * waves[1] * u[:, 2]) * 0.16

    sleeve = counter_rng.uniform(keys, "sleeve", (8,))[:, :, None]
    edge = -0.028 - 0.10 * sleeve[:, 4].square()
    worn = sleeve[:, 0] < ranges.sleeve
    covered = worn & (y < edge)
    folds = torch.sin(y * (150 + 250 * sleeve[:, 5]) + 6 * waves[0]) * (0.5 + 0.5 * waves[1])
    depth = (edge - y).clamp(0.0, 0.12)
    swell = covered * (0.0015 + 0.006 * sleeve[:, 6] + 0.10 * sleeve[:, 7] * depth + 0.0012 * folds)
    band = counter_rng.uniform(keys, "band", (6,))[:, :, None]
    middle = -0.030 - 0.025 * band[:, 1]
    banded = (band[:, 0] < ranges.band) & ((y - middle).abs() < 0.004 + 0.010 * band[:, 2]) & ~covered
    swell = swell + banded * 0.002
    painted = nail * (u[:, 3] < ranges.polish)

    albedo = []
    for c in range(3):
        value = back[:, c : c + 1] + (palm[:, c : c + 1] - back[:, c : c + 1]) * palmar
        value = value * tone * (1 - red * (0.0, 1.0, 0.9)[c])
        plain = 0.55 * palm[:, c : c + 1] + 0.35 * (0.62, 0.45, 0.42)[c] * (0.3 + palm[:, :1])
        value = value + (plain - value) * (0.75 * nail)
        value = value + ((0.9, 0.1, 0.15)[c] * u[:, 7 + c] - value) * painted
        cloth = sleeve[:, 1 + c].square() * (0.4 + 0.6 * sleeve[:, 6]) * (1 + 0.12 * folds)
        value = torch.where(covered, cloth, value)
        albedo.append(torch.where(banded, band[:, 3 + c] ** 2 * 0.8, value))
    shine = (1 + 1.5 * nail + 4 * painted) * (~covered) + 3 * banded
    return Surface(tuple(albedo), shine, swell)


def paint(keys: Tensor, pattern: Tensor) -> Surface:
    """Colour a held thing, with one colour or with stripes of two."""
    u = counter_rng.uniform(keys, "paint", (8,))[:, :, None]
    part = (pattern.float().sin() * 4 + 0.5).clamp(0, 1) * (u[:, 6] < 0.5)
    albedo = tuple(u[:, c].square() * (1 - part) + u[:, 3 + c].square() * part for c in range(3))
    return Surface(albedo, 6 * u[:, 7].expand_as(part), torch.zeros_like(part))


def shade(surface: Surface, light: Light, vertices: tuple[Tensor, ...], normals: tuple[Tensor, ...]) -> list[Tensor]:
    """Gamma-encoded red, green and blue (B, V) of vertices (three of (B, V)) with unit normals."""
    lx, ly, lz = light.direction
    nx, ny, nz = normals
    x, y, z = vertices
    facing = nx * lx + ny * ly + nz * lz
    sky = light.ambient * (0.78 - 0.22 * ny)
    distance = torch.rsqrt(x * x + y * y + z * z)
    hx, hy, hz = lx - x * distance, ly - y * distance, lz - z * distance
    cosine = ((nx * hx + ny * hy + nz * hz) * torch.rsqrt(hx * hx + hy * hy + hz * hz)).clamp_min(0)
    highlight = torch.exp(light.sharpness * (cosine - 1)) * (facing > 0) * surface.shine * light.gloss
    colors = []
    for albedo, tint, wrap in zip(surface.albedo, light.tint, (0.35, 0.18, 0.12)):
        # Light enters skin and leaves it elsewhere, red the farthest, so a shadow's edge is soft and red.
        direct = ((facing + wrap) * (1 / (1 + wrap))).clamp_min(0) * light.strength * tint
        color = albedo * (direct + sky) + highlight * light.strength
        colors.append(color.clamp_(0.0005, 1.0).pow_(1 / GAMMA))
    return colors
