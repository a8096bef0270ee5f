"""Augmentation of photographs of hands: from their squares to what the network reads, whole batches on the device.

What is done to a sample is a function of its key alone, as in `dataset_script/augmentation.py`.  One homography turns,
scales, stretches and tilts the hand on its way from the square to the crop.  What follows is what cameras, films and rooms
do: other light, colour, blur, low resolution, noise, JPEG, things in front, another hand beside.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_script import affine, counter_rng
from dataset_script.people import MIDDLE_KNUCKLE, WRIST
from dataset_script.photographs import FILL, SIDE, Photographs
from dataset_script.scenes import Scenes
from dataset_script.synthetic.backgrounds import backgrounds, enlarge, pixel_grid, shapes
from modeling_handunet.hands import UPRIGHT

# A row or column of a square whose brightest value is at most this lies beyond the picture's edge; WebP blurs black.
BLACK = 16
# Shares of the procedural backgrounds, in the order of `backgrounds.KINDS`: noise alone, since each kind is slow for few.
BEYOND = (0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class PhotoAugmentation:
    """Ranges of the augmentation; lengths in image sides, the last block's shares are probabilities.

    The hand's box comes to fill `fill` of a square of `size` pixels, times e ** (+- scale), `shift` off its centre.
    """

    size: int
    fill: float
    others: Photographs | None = None  # on the device of the batches; other hands and textures come from them
    photos: Tensor | None = None  # (N, 3, S, S) uint8, as `scenes.load_photos` gives them, for behind the pictures
    rotation: float = 30.0  # degrees; `any_angle` of the hands are turned by any angle
    scale: float = 0.25
    shift: float = 0.05
    stretch: float = 0.12  # longer by e ** stretch at most along some direction, and shorter as much across it
    tilt: float = 0.15  # how much nearer a side of the hand's box comes than its middle
    gamma: float = 0.4  # e ** (+- gamma)
    brightness: float = 0.2
    contrast: float = 0.25
    saturation: float = 0.4
    gain: float = 0.08  # of each channel
    hue: float = 10.0  # degrees about the grey axis
    lamp: float = 0.3  # spread of the light over the picture
    grain: float = 0.06  # largest standard deviation of the noise
    quality: tuple[float, float] = (20.0, 95.0)  # of JPEG, in the scale of libjpeg

    any_angle: float = 0.5
    upright: float = 0.0  # share that is turned until the hand points up, within what needs no second look
    extended: float = 0.5  # share of pictures that go on beyond their edge by repeating it
    replaced: float = 0.2  # share with something else beyond their edge; it is black for the rest
    framed: float = 0.15  # share that ends at upright edges inside the crop, black beyond
    beside: float = 0.1  # share with another photograph's hand at their side
    patch: float = 0.2  # share with a patch in front
    things: float = 0.12  # share with a few smaller shapes in front
    cast: float = 0.2  # share with the edge of a shadow across the picture
    noisy: float = 0.4
    blur: float = 0.15
    coarse: float = 0.3  # share of low resolution
    motion: float = 0.12  # share of motion blur
    grey: float = 0.04
    jpeg: float = 0.5

    def __call__(self, squares: Tensor, keypoints: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            squares: (B, 3, 224, 224) uint8, as `Photographs.rows` gives them.
            keypoints: (B, 21, 2), (x, y) in pixels of the squares.
            keys: (B, 2) from :func:`.augmentation.augmentation_keys`.

        Returns:
            images (B, 3, size, size) float in [0, 1] and their keypoints, which may end outside.
        """
        images, within, keypoints = self._move(squares, keypoints, keys)
        images, within = self._extend(images, within, keys)
        images = self._cover(self._put_beside(images, keys), keypoints, keys)
        images = self._effects.light(self._recolor(images, keys), keys)
        images = self._effects.degrade(self._soften(images, keys), keys)
        images = self._effects.compress_some(self._add_grain(images, keys), keys) * within
        return self._effects.frame_some(images, keypoints, keys), keypoints

    @functools.cached_property
    def _effects(self) -> Scenes:
        """What photographs and scenes have in common, with the ranges of these."""
        names = ("size", "fill", "photos", "framed", "coarse", "motion", "grey", "lamp", "cast", "jpeg", "quality")
        return Scenes(**{name: getattr(self, name) for name in names}, photo_share=0.7)

    def _move(self, squares: Tensor, keypoints: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The hands where they come to lie: images (B, 3, S, S), within (B, 1, S, S), keypoints (B, 21, 2).

        `within` is true where the picture is; beyond it `images` repeats the picture's edge.
        """
        forward = self._homography(keypoints, keys)
        moved = (F.pad(keypoints.double(), (0, 1), value=1.0)[:, :, None] * forward[:, None]).sum(-1)  # (B, 21, 3)
        moved = moved[..., :2] / moved[..., 2:]
        # Each new pixel looks up the old one.  The adjugate is the inverse but for a factor, which the division removes.
        rows = forward.unbind(1)
        inverse = torch.stack([torch.linalg.cross(rows[k - 2], rows[k - 1]) for k in range(3)], 2).float()
        line = torch.arange(self.size, device=keys.device) + 0.5
        across, down = line[None, None, :], line[None, :, None]
        x, y, w = (row[:, 0, None, None] * across + (row[:, 1, None, None] * down + row[:, 2, None, None])
                   for row in inverse.unbind(1))  # fmt: skip
        pictures, reduction = squares.float(), max(1, int(FILL * SIDE / (self.fill * self.size)))
        if reduction > 1:  # a small crop: average first
            pictures = F.avg_pool2d(pictures, reduction, ceil_mode=True, count_include_pad=False)
        first, last = picture_edges(squares, keypoints)
        within, grid = True, []
        for place, low, high in zip((x / w, y / w), first[..., None, None].unbind(1), last[..., None, None].unbind(1)):
            # Where the square ends before the picture, what lies beyond is not known and the edge is repeated.
            within = within & (place >= torch.where(low > 0, low, -math.inf))
            within = within & (place <= torch.where(high < SIDE, high, math.inf))
            grid.append(place.clamp(low + 0.5, high - 0.5) * (2 / (pictures.shape[-1] * reduction)) - 1)
        images = F.grid_sample(pictures, torch.stack(grid, -1), padding_mode="border", align_corners=False) / 255
        return images, within[:, None], moved.float()

    def _homography(self, keypoints: Tensor, keys: Tensor) -> Tensor:
        """Matrices (B, 3, 3) float64 from pixels of the squares to pixels of the crops."""
        draw = counter_rng.uniform(keys, "photograph place", (10,)).double()
        signed = draw * 2 - 1
        points = keypoints.double()
        low, high = points.amin(1), points.amax(1)
        centre, extent = (low + high) / 2, (high - low).amax(1).clamp_min(1.0)
        angle = signed[:, 1] * torch.where(draw[:, 0] < self.any_angle, math.pi, math.radians(self.rotation))
        to_upright = signed[:, 1] * math.radians(UPRIGHT) - radians_from_upright(points)
        angle = torch.where(draw[:, 9] < self.upright, to_upright, angle)
        along = affine.rotation(draw[:, 2] * math.pi)
        longer = torch.exp(signed[:, 3] * self.stretch)
        stretch = torch.stack([longer, 1 / longer], 1)
        # (A * stretch) @ A.T @ R, written out: a matrix product's last bit depends on the batch.
        stretch = ((along * stretch[:, None])[:, :, None] * along[:, None]).sum(-1)
        linear = (stretch[:, :, None] * affine.rotation(angle).mT[:, None]).sum(-1) / extent[:, None, None]  # hand's box: 1
        tilt = affine.toward(draw[:, 4] * 2 * math.pi, 2 * self.tilt * draw[:, 5])  # the box reaches to 0.5 from its middle
        far = (linear * tilt[:, :, None]).sum(1)  # tilt @ linear
        offset = -(linear * centre[:, None]).sum(-1)
        third = torch.cat([far, (1 - (far * centre).sum(1))[:, None]], 1)  # (B, 3)
        box = torch.cat([linear, offset[..., None]], 2)  # (B, 2, 3)
        seen = (points[:, :, None] * box[:, None, :, :2]).sum(-1) + offset[:, None]
        seen = seen / ((points * third[:, None, :2]).sum(-1) + third[:, None, 2])[..., None]
        low, high = seen.amin(1), seen.amax(1)
        scale = self.fill * self.size * torch.exp(signed[:, 6] * self.scale) / (high - low).amax(1)
        shift = (0.5 + signed[:, 7:9] * self.shift) * self.size - scale[:, None] * (low + high) / 2
        upper = box * scale[:, None, None] + shift[..., None] * third[:, None]
        return torch.cat([upper, third[:, None]], 1)

    def _extend(self, images: Tensor, within: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """What lies beyond the pictures' edges, and where (B, 1, S, S) images are not black in the end."""
        draw = counter_rng.uniform(keys, "beyond")
        chosen = ((draw >= self.extended) & (draw < self.extended + self.replaced)).nonzero(as_tuple=True)[0]
        if len(chosen):
            behind, _ = backgrounds(keys[chosen], self.size // 2, BEYOND, _color(images[chosen]))
            behind = enlarge(behind, self.size)  # out of focus, and faster
            found = self._effects.photographs(keys[chosen])
            if found is not None:
                behind = torch.where(found[1][:, None, None, None], found[0], behind)
            images = images.index_copy(0, chosen, torch.where(within[chosen], images[chosen], behind))
        return images, within | (draw < self.extended + self.replaced)[:, None, None, None]

    def _put_beside(self, images: Tensor, keys: Tensor) -> Tensor:
        """Another photograph's hand at the side of some, in a disc with a soft edge."""
        draw = counter_rng.uniform(keys, "beside", (6,))
        chosen = (draw[:, 0] < self.beside).nonzero(as_tuple=True)[0]
        if self.others is None or not len(chosen):
            return images
        draw = draw[chosen]
        other = self.others.rows(self.others.sample(keys[chosen], "beside"))["image"].float() / 255
        scale = self.fill / FILL * torch.exp(draw[:, 1] - 0.5)  # of the crop's side, a square's
        turned = affine.mirror_first(affine.rotation(draw[:, 2] * 2 * math.pi), draw[:, 3] < 0.5) / scale[:, None, None]
        place = affine.toward(draw[:, 4] * 2 * math.pi, (0.42 + 0.2 * draw[:, 5]))
        x, y = pixel_grid(self.size, images.device)
        from_there = torch.stack([x - 2 * place[:, :1, None], y - 2 * place[:, 1:, None]], -1)  # (B, S, S, 2)
        grid = (from_there[..., None, :] * turned[:, None, None]).sum(-1)
        disc = ((0.44 - grid.norm(dim=-1)) * 12).clamp(0, 1)[:, None]  # the hand's box reaches to 0.3
        other = F.grid_sample(other, grid, padding_mode="border", align_corners=False)
        return images.index_copy(0, chosen, torch.lerp(images[chosen], other, disc))

    def _cover(self, images: Tensor, keypoints: Tensor, keys: Tensor) -> Tensor:
        """A patch, plain or structured or of another photograph, or a few shapes, in front of some."""
        draw = counter_rng.uniform(keys, "patch", (8,))
        chosen = (draw[:, 0] < self.patch).nonzero(as_tuple=True)[0]
        if len(chosen):
            images = images.index_copy(0, chosen, self._patch(images[chosen], keypoints[chosen], keys[chosen], draw[chosen]))
        chosen = ((draw[:, 0] >= self.patch) & (draw[:, 0] < self.patch + self.things)).nonzero(as_tuple=True)[0]
        if len(chosen):
            skin = _color(images[chosen])
            front = shapes(keys[chosen], "things", self.size, 3, skin, images[chosen], scale=(0.22, 0.1), fleshy=0.3)
            images = images.index_copy(0, chosen, front)
        return images

    def _patch(self, images: Tensor, keypoints: Tensor, keys: Tensor, draw: Tensor) -> Tensor:
        """Images behind a turned rectangle or ellipse that covers at most 0.35 of the hand's box."""
        low, high = keypoints.amin(1), keypoints.amax(1)
        area = (high - low).prod(1) * (0.05 + 0.3 * draw[:, 1])
        longer = torch.exp(0.7 * draw[:, 2])
        half = torch.stack([longer, 1 / longer], 1) * (area.sqrt() / 2)[:, None]  # px
        middle = low + (high - low) * draw[:, 3:5]
        x, y = pixel_grid(self.size, images.device)
        turned = affine.rotation(draw[:, 5] * math.pi) / half[..., None]
        offset = (turned * (0.5 * self.size - middle)[:, None]).sum(-1)
        turned, offset = turned[..., None, None] * (0.5 * self.size), offset[..., None, None]
        across, along = (turned[:, k, 0] * x + (turned[:, k, 1] * y + offset[:, k]) for k in (0, 1))  # (B, S, S)
        angular = (draw[:, 6] < 0.5)[:, None, None]
        reach = torch.where(angular, torch.maximum(across.abs(), along.abs()), torch.hypot(across, along))
        alpha = ((1 - reach) * half.amin(1)[:, None, None]).clamp(0, 1)[:, None]
        color = counter_rng.uniform(keys, "patch color", (3, 1, 1))
        grid = counter_rng.uniform(keys, "patch structure", (3, 12, 12)) - 0.5
        front = (color + enlarge(grid, self.size) * (2 * draw[:, 7] - 0.8).clamp_min(0)[:, None, None, None]).clamp(0, 1)
        chosen = (counter_rng.uniform(keys, "patch photograph") < 0.4).nonzero(as_tuple=True)[0]
        if self.others is not None and len(chosen):
            other = self.others.rows(self.others.sample(keys[chosen], "patch"))["image"].float() / 255
            other = other[..., SIDE // 2 - self.size // 2 :, SIDE // 2 - self.size // 2 :]
            other = F.interpolate(other, size=(self.size,) * 2, mode="bilinear", align_corners=False)
            front = front.index_copy(0, chosen, other)
        return torch.lerp(images, front, alpha)

    def _recolor(self, images: Tensor, keys: Tensor) -> Tensor:
        """Gamma, then brightness, contrast, saturation, white balance and hue as one matrix."""
        draw = counter_rng.uniform(keys, "photograph color", (8,)).double() * 2 - 1
        images = images.clamp_min(1e-3) ** torch.exp(draw[:, 0] * self.gamma).float()[:, None, None, None]
        angle = draw[:, 1] * math.radians(self.hue)
        # Rodrigues' rotation about (1, 1, 1), and away from or towards grey.
        more = 1 + draw[:, 2] * self.saturation
        cos, sin = angle.cos() * more, angle.sin() * more / math.sqrt(3)
        own, next_, before = (1 + 2 * cos) / 3, (1 - cos) / 3 - sin, (1 - cos) / 3 + sin
        turned = torch.stack([own, next_, before, before, own, next_, next_, before, own], 1).unflatten(1, (3, 3))
        level = (1 + draw[:, 3] * self.brightness)[:, None] * (1 + draw[:, 4:7] * self.gain)  # (B, 3)
        turned = turned * level[..., None]
        contrast = (1 + draw[:, 7] * self.contrast)[:, None]
        mean = (turned * images.mean((2, 3)).double()[:, None]).sum(2).mean(1, keepdim=True)  # (B, 1)
        offset, turned = (mean * (1 - contrast)).float(), (turned * contrast[..., None]).float()
        return (turned @ images.flatten(2) + offset[..., None]).clamp(0, 1).unflatten(2, images.shape[2:])

    def _add_grain(self, images: Tensor, keys: Tensor) -> Tensor:
        draw = counter_rng.uniform(keys, "noisy", (3,))
        chosen = (draw[:, 0] < self.noisy).nonzero(as_tuple=True)[0]
        if len(chosen):
            draw, size = draw[chosen][..., None, None, None], self.size
            field = counter_rng.uniform(keys[chosen], "grain", (1, size, size)) - 0.5
            tint = torch.cat([field, field.roll((5, 11), (2, 3)), field.roll((17, 3), (2, 3))], 1)
            grain = torch.lerp(field, tint, draw[:, 1]) * (draw[:, 2] * self.grain * math.sqrt(12))
            images = images.index_copy(0, chosen, (images[chosen] + grain).clamp(0, 1))
        return images

    def _soften(self, images: Tensor, keys: Tensor) -> Tensor:
        """Some out of focus: a Gaussian of 0.4 to 2 pixels at a side of 128."""
        draw = counter_rng.uniform(keys, "focus", (2,))
        chosen = (draw[:, 0] < self.blur).nonzero(as_tuple=True)[0]
        if len(chosen):
            sigma = (0.4 + 1.6 * draw[chosen, 1]) * self.size / 128
            reach = math.ceil(5 * self.size / 128)
            steps = torch.arange(-reach, reach + 1, device=images.device)
            weights = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2)
            weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]  # (3 b, 1, taps)
            planes = F.pad(images[chosen], (reach,) * 4, mode="replicate").flatten(0, 1)[None]
            planes = F.conv2d(planes, weights[:, :, None], groups=len(weights))
            planes = F.conv2d(planes, weights[..., None], groups=len(weights))
            images = images.index_copy(0, chosen, planes[0].unflatten(0, (-1, 3)))
        return images


def radians_from_upright(keypoints: Tensor) -> Tensor:
    """The directions (B,) from the wrist to the middle knuckle of keypoints (B, 21, 2): clockwise from up, in (-pi, pi]."""
    x, y = (keypoints[:, MIDDLE_KNUCKLE] - keypoints[:, WRIST]).unbind(-1)
    return torch.atan2(x, -y)


def picture_edges(squares: Tensor, keypoints: Tensor) -> tuple[Tensor, Tensor]:
    """Where the pictures begin and end in their squares: (B, 2) each, x then y, px; 0 and 224 where they go on beyond."""
    bright = squares.amax(1)
    lit = torch.stack([bright.amax(1), bright.amax(2)], 1) > BLACK  # (B, 2, 224): columns, rows
    first, last = lit.byte().argmax(2).float(), SIDE - lit.flip(2).byte().argmax(2).float()
    # A pixel further in, where WebP has mixed black in; never into the hand, which may be dark.
    first = torch.where(first > 0, first + 1, first).minimum(keypoints.amin(1).clamp(0, SIDE))
    last = torch.where(last < SIDE, last - 1, last).maximum(keypoints.amax(1).clamp(0, SIDE))
    return first, last


def _color(images: Tensor) -> Tensor:
    """The mean colour (B, 3) about the middle of images, where the hand is."""
    size = images.shape[-1]
    middle = slice(size * 7 // 16, size * 9 // 16 + 1)
    return images[..., middle, middle].mean((2, 3))


__all__ = ["PhotoAugmentation", "picture_edges", "radians_from_upright"]
