"""Backgrounds: procedural pictures with the statistics of photographs, but not their content.

Photographs are roughly scale-invariant and show things that hide each other. A picture here is a colour gradient, fractal
noise (each octave at half the amplitude: a 1/f spectrum) and a pile of opaque shapes, largest first: the "dead leaves"
model of natural images (Lee, Mumford and Huang, IJCV 2001). Stripes and checks, rooms, desks, plain walls and FreiHAND's
green screen are special cases. Some shapes have the colour of skin, to distract.
"""

import functools
import math

import torch
from torch import Tensor

from dataset_script import counter_rng

KINDS = ("plain", "noise", "leaves", "blurred leaves", "room", "pattern", "green screen")


def cos_sin(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, computed in float64: the last bit of a vectorised float32 sine depends on the place in the batch."""
    angle = angle.double()
    return angle.cos().float(), angle.sin().float()


def pixel_grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Coordinates x, y (size, size) of the pixels' centres; the picture is [-1, 1] in both directions."""
    line = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (2.0 / size) - 1.0
    return line[None, :].expand(size, size), line[:, None].expand(size, size)


@functools.lru_cache(maxsize=32)
def _between(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For `size` pixels spread over `count` values: each pixel's two neighbouring values, and its place between them."""
    place = torch.arange(size, dtype=torch.float64) * ((count - 1) / (size - 1))
    low = place.floor().clamp(max=count - 2)
    return low.long().to(device), low.long().to(device) + 1, (place - low).float().to(device)


def enlarge(grid: Tensor, size: int) -> Tensor:
    """`grid` (B, C, H, W) scaled up bilinearly to (B, C, size, size). Its outer values lie on the outer pixels.

    On a CPU this is faster than `F.interpolate`, and unlike a matrix product it rounds the same way in every batch.
    """
    left, right, part = _between(grid.shape[3], size, grid.device)
    grid = torch.lerp(grid.index_select(3, left), grid.index_select(3, right), part)
    upper, lower, part = _between(grid.shape[2], size, grid.device)
    return torch.lerp(grid.index_select(2, upper), grid.index_select(2, lower), part[:, None])


def fractal_noise(keys: Tensor, purpose: str, size: int, channels: int, octaves: tuple[int, ...]) -> Tensor:
    """Noise (B, channels, size, size) of about unit variance: one bilinear grid per octave, coarse ones the strongest."""
    total = torch.zeros(len(keys), channels, size, size, device=keys.device)
    power = 0.0
    for octave in octaves:
        grid = counter_rng.uniform(keys, f"{purpose} {octave}", (channels, octave + 1, octave + 1)) * 3.46 - 1.73
        weight = octave ** -0.8
        power += weight**2
        total += enlarge(grid * weight, size)
    return total * (1.6 / math.sqrt(power))


def random_colors(keys: Tensor, purpose: str, count: int) -> Tensor:
    """Colours (B, count, 3) in [0, 1], mostly muted. One sample's colours have similar brightness and hue."""
    common = counter_rng.uniform(keys, f"{purpose} common", (1, 3))
    own = counter_rng.uniform(keys, f"{purpose} own", (count, 3))
    value = 0.10 + 0.85 * (0.45 * common[..., :1] + 0.55 * own[..., :1])
    hue = 2 * math.pi * (common[..., 1:2] + 0.35 * (own[..., 1:2] - 0.5))
    saturation = 0.9 * (0.5 * common[..., 2:] + 0.5 * own[..., 2:]) ** 3
    phase = torch.tensor([0.0, 2.0943951, 4.1887902], device=keys.device)
    return (value * (1 + saturation * cos_sin(hue + phase)[0])).clamp(0.0, 1.0)


def shapes(keys: Tensor, purpose: str, size: int, count: int, skin: Tensor, picture: Tensor, *,
           scale: tuple[float, float] = (1.1, 0.16), fleshy: float = 0.12) -> Tensor:
    """Draw `count` opaque shapes, from large to small (`scale`), over `picture` (B, 3, size, size), in place.

    A share `fleshy` of them has about the colour `skin` (B, 3).
    """
    x, y = pixel_grid(size, keys.device)
    u = counter_rng.uniform(keys, purpose, (count, 8))
    colors = random_colors(keys, f"{purpose} color", count)
    like_skin = (u[:, :, 7] < fleshy)[..., None]
    colors = torch.where(like_skin, (skin[:, None] * (0.7 + 0.6 * u[:, :, 6:7])).clamp(0, 1), colors)
    angle = torch.where(u[:, :, 2] < 0.5, torch.round(u[:, :, 3] * 4) * (math.pi / 2), u[:, :, 3] * 2 * math.pi)
    cos, sin = cos_sin(angle)
    for k in range(count):
        radius = scale[0] * (scale[1] / scale[0]) ** (k / max(count - 1, 1))
        wide = radius * (0.3 + 0.9 * u[:, k, 4])
        thin = torch.where(u[:, k, 6] < 0.25, wide * 0.15, radius * (0.3 + 0.9 * u[:, k, 5]))
        cx, cy = u[:, k, 0] * 2.4 - 1.2, u[:, k, 1] * 2.4 - 1.2
        dx, dy = x[None] - cx[:, None, None], y[None] - cy[:, None, None]
        c, s = cos[:, k, None, None], sin[:, k, None, None]
        across = (dx * c + dy * s) / wide[:, None, None]
        along = (dy * c - dx * s) / thin[:, None, None]
        boxy = (u[:, k, 7] * 8 % 1 < 0.5)[:, None, None]
        square = torch.maximum(across.abs(), along.abs())
        distance = torch.where(boxy, square, torch.sqrt(across * across + along * along))
        mask = ((1 - distance) * (thin[:, None, None] * (0.25 * size))).clamp_(0, 1)[:, None]
        shade = 1 + (u[:, k, 5, None, None] - 0.5) * 0.5 * across
        picture.lerp_(colors[:, k, :, None, None] * shade[:, None], mask)
    return picture


def _gradient(keys: Tensor, purpose: str, size: int) -> Tensor:
    x, y = pixel_grid(size, keys.device)
    colors = random_colors(keys, purpose, 2)[..., None, None]
    cos, sin = cos_sin(counter_rng.uniform(keys, f"{purpose} angle")[:, None, None] * 2 * math.pi)
    part = (0.5 + 0.4 * (x * cos + y * sin))[:, None]
    return colors[:, 0] + (colors[:, 1] - colors[:, 0]) * part


def _plain(keys: Tensor, size: int, skin: Tensor) -> Tensor:
    strength = 0.06 * counter_rng.uniform(keys, "plain strength")[:, None, None, None]
    return _gradient(keys, "plain", size) * (1 + strength * fractal_noise(keys, "plain", size, 1, (3, 8, 40)))


def _noise(keys: Tensor, size: int, skin: Tensor) -> Tensor:
    strength = 0.05 + 0.30 * counter_rng.uniform(keys, "noise strength", (3,))[..., None, None]
    light = fractal_noise(keys, "noise light", size, 1, (3, 6, 12, 25, 50))
    tint = fractal_noise(keys, "noise tint", size, 3, (2, 5))
    return _gradient(keys, "noise", size) * (1 + strength[:, :1] * light + 0.25 * strength[:, 1:2] * tint)


def _leaves(keys: Tensor, size: int, skin: Tensor) -> Tensor:
    picture = shapes(keys, "leaves", size, 14, skin, _gradient(keys, "leaves", size))
    strength = 0.20 * counter_rng.uniform(keys, "leaves strength")[:, None, None, None] ** 2
    return picture * (1 + strength * fractal_noise(keys, "leaves", size, 1, (6, 16, 48)))


def _blurred_leaves(keys: Tensor, size: int, skin: Tensor) -> Tensor:
    """Leaves out of focus: drawn small and scaled up."""
    return enlarge(_leaves(keys, max(size // 4, 8), skin), size)


def _room(keys: Tensor, size: int, skin: Tensor) -> Tensor:
    """A wall over a floor or desk whose planks run to a vanishing point, and a few things in front."""
    x, y = pixel_grid(size, keys.device)
    u = counter_rng.uniform(keys, "room", (6,))[..., None, None]
    colors = random_colors(keys, "room", 3)[..., None, None]
    horizon = 1.4 * u[:, 0] - 0.7 + 0.25 * (u[:, 1] - 0.5) * x
    depth = (y - horizon).clamp_min(0.02)
    planks = torch.sin((x - 1.5 * u[:, 2] + 0.75) / depth * (1 + 5 * u[:, 3]))
    floor = colors[:, 0] * (1 + 0.25 * u[:, 4] * planks.sign() * (depth > 0.1))[:, None]
    wall = colors[:, 1] * (1 - 0.25 * u[:, 5] * (x * x + y * y))[:, None]
    picture = torch.where((y > horizon)[:, None], floor, wall)
    picture = shapes(keys, "room things", size, 6, skin, picture.contiguous())
    return picture * (1 + 0.05 * fractal_noise(keys, "room", size, 1, (4, 12, 48)))


def _pattern(keys: Tensor, size: int, skin: Tensor) -> Tensor:
    """Stripes, checks, tiles and cloth."""
    x, y = pixel_grid(size, keys.device)
    u = counter_rng.uniform(keys, "pattern", (6,))[..., None, None]
    colors = random_colors(keys, "pattern", 2)[..., None, None]
    cos, sin = cos_sin(2 * math.pi * u[:, 0])
    across, along = x * cos + y * sin, y * cos - x * sin
    bend = 0.15 * u[:, 1] * torch.sin(4 * along)
    wave = torch.sin((across + bend) * (6 + 40 * u[:, 2] ** 2)) - 1.2 * (u[:, 3] - 0.5)
    other = torch.sin(along * (6 + 40 * u[:, 2] ** 2))
    wave = torch.where(u[:, 4] < 0.4, wave * other, wave)
    part = (0.5 + wave * (0.6 + 6 * u[:, 5])).clamp(0, 1)[:, None]
    contrast = 0.2 + 0.8 * u[:, 1:2]
    picture = colors[:, 0] + (colors[:, 1] - colors[:, 0]) * part * contrast
    return picture * (1 + 0.1 * fractal_noise(keys, "pattern", size, 1, (2, 5, 30)))


def _green_screen(keys: Tensor, size: int, skin: Tensor) -> Tensor:
    x, y = pixel_grid(size, keys.device)
    u = counter_rng.uniform(keys, "green", (8,))
    green = torch.stack([0.28 + 0.22 * u[:, 0], 0.42 + 0.3 * u[:, 1], 0.14 + 0.2 * u[:, 2]], 1)[..., None, None]
    cos, sin = cos_sin((2 * math.pi * u[:, 3])[:, None, None])
    fold = ((x * cos + y * sin + 1.2 * u[:, 4, None, None] - 0.6) > 0).float()[:, None]
    light = 1 + 0.25 * (fold - 0.5) + 0.10 * fractal_noise(keys, "green", size, 1, (2, 4, 9))
    picture = green * light
    return torch.where((u[:, 5] < 0.4)[:, None, None, None],
                       shapes(keys, "green things", size, 3, skin, picture.clone()), picture)


def backgrounds(keys: Tensor, size: int, shares: tuple[float, ...], skin: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, size, size) in [0, 1] for `keys`, and their kinds (B,) as indices of KINDS.

    `shares` gives each kind's probability, in the order of KINDS; `skin` (B, 3) colours the distractors.
    """
    limits = torch.tensor(shares, device=keys.device).cumsum(0)[:-1] / sum(shares)
    kind = torch.bucketize(counter_rng.uniform(keys, "background kind"), limits, right=True)
    pictures = torch.empty(len(keys), 3, size, size, device=keys.device)
    for index, draw in enumerate((_plain, _noise, _leaves, _blurred_leaves, _room, _pattern, _green_screen)):
        chosen = (kind == index).nonzero(as_tuple=True)[0]
        if len(chosen):
            pictures[chosen] = draw(keys[chosen], size, skin[chosen])
    return pictures.clamp_(0.0, 1.0), kind
