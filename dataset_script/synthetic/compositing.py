"""Layers: hands without a background, how they are moved, and how they are put over a background."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_script import affine, counter_rng
from dataset_script.synthetic.backgrounds import backgrounds, pixel_grid, shapes
from dataset_script.synthetic.ranges import SceneRanges


@dataclass(frozen=True)
class Layer:
    """Hands without a background, drawn or cut out of photographs."""

    rgba: Tensor  # (B, 4, S, S) float32 in [0, 1], colour not multiplied by alpha
    keypoints: Tensor  # (B, 21, 2) float32 pixels of the image
    skin: Tensor  # (B, 3) float32 in [0, 1], the colour of the back of the hand


def soften(image: Tensor) -> Tensor:
    """`image` (B, C, H, W) under a 3 x 3 binomial filter, with the border repeated."""
    image = F.pad(image, (0, 0, 1, 1), mode="replicate")
    image = 0.25 * (image[:, :, :-2] + image[:, :, 2:]) + 0.5 * image[:, :, 1:-1]
    image = F.pad(image, (1, 1, 0, 0), mode="replicate")
    return 0.25 * (image[..., :-2] + image[..., 2:]) + 0.5 * image[..., 1:-1]


def move_layer(layer: Layer, matrix: Tensor, shift: Tensor, size: int) -> Layer:
    """`layer` in a new square of `size` pixels, moved by `matrix` (B, 2, 2) about its centre.

    Its centre then lies `shift` (B, 2) pixels from the new image's centre.
    """
    old = layer.rgba.shape[-1]
    keypoints = affine.apply(matrix, layer.keypoints - 0.5 * old) + 0.5 * size + shift[:, None]
    # A new pixel looks up the old one: the inverse map. `torch.linalg.inv` would round otherwise.
    (a, b), (c, d) = (row.unbind(-1) for row in matrix.unbind(-2))
    inverse = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2) / (a * d - b * c)[:, None, None]
    offset = -(inverse * (shift * (2.0 / old))[:, None, :]).sum(-1)
    solid = torch.cat([layer.rgba[:, :3] * layer.rgba[:, 3:], layer.rgba[:, 3:]], 1)
    solid = affine.sample(solid, inverse * (size / old), offset, size)
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

    Backgrounds are drawn from `keys`. `behind` replaces some of them: pictures (B, 3, S, S), used where its (B,) is true.
    `beside`, RGBA (B, 4, S, S), lies between the backgrounds and the hands.
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
        x, y = pixel_grid(size, keys.device)
        grid = torch.stack([x + reach[0], y + reach[1]], -1)
        fallen = F.grid_sample(coarse, grid, mode="bilinear", padding_mode="border", align_corners=False)
        behind = behind * (1 - (0.6 * u[:, 3] * (u[:, 0] < ranges.shadow)) * fallen)
    feather = 0.8 * u[:, 4] * (u[:, 5] < ranges.soften)
    alpha = torch.lerp(alpha, soften(alpha), feather)
    # White balance: blue to yellow, a little green to magenta. Hand and background share a part of it.
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
