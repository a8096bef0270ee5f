"""Training samples for the hand detector: batches of pictures with padded labels, made on the device.

    samples = DetectionSamples(320, people, scenes)
    batch = samples(augmentation_keys(seed, epoch, indices))
    batch["image"], batch["boxes"]                     # (B, 3, 320, 320) uint8, (B, 16, 4) shares of the side

Labels are padded as `modeling_handunet/detection_losses.py` describes.  What a sample is, is a function of its key alone.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_script import counter_rng
from dataset_script.affine import apply, rotation
from dataset_script.caches import DeviceRows
from dataset_script.detection_scenes import DetectionScenes, cut_boxes, halved, look_up, photo_parts
from dataset_script.hand_tiles import HandTiles
from dataset_script.jpeg import compress
from dataset_script.people import People
from dataset_script.squares import Squares
from dataset_script.synthetic.compositing import soften
from modeling_handunet.detection_losses import empty_labels

GREY = (0.299, 0.587, 0.114)
# A hand smaller than this share of the picture's side is ignored: nobody marked all of them.
LEAST_HAND = 0.028


@dataclass(frozen=True)
class PeopleViews:
    """Photographs of people, each time another part of them, nearer or farther, mirrored, a little turned."""

    people: People
    photos: Squares | DeviceRows | None  # lie around photographs that are seen from farther away
    pictures: Squares | DeviceRows | None = None  # those of `people`, where they are read from faster
    zoomed: float = 0.6  # share that is zoomed so that one hand gets a size of `hand`
    hand: tuple[float, float] = (0.045, 0.75)  # log-uniform
    zoom: tuple[float, float] = (0.3, 4.0)  # sides of the part that is seen at most, of the letterboxed photograph's
    angle: float = 30.0  # degrees, either way, for half of them
    surrounded: float = 0.7  # share of those from farther away that lie in a photograph, not in black
    least_inside: float = 0.3  # a hand of which less can be seen is ignored

    @torch.no_grad()
    def __call__(self, keys: Tensor, size: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures (B, 3, size, size) in [0, 1] and their labels for `keys` (B, 2)."""
        draw = counter_rng.uniform(keys, "view", (14,))
        limits = self.people.weights.double().cumsum(0).to(keys.device)
        numbers = torch.searchsorted(limits, draw[:, 0].double().contiguous()).clamp_max(len(self.people) - 1)
        labels = {name: values.to(keys.device) for name, values in self.people.labels(numbers.cpu()).items()}
        extent = self.people.extent[numbers.cpu()].to(keys.device)
        side, middle = self._window(labels, extent, draw)
        flip = draw[:, 7] < 0.5
        angle = torch.where(draw[:, 8] < 0.5, (draw[:, 9] * 2 - 1) * math.radians(self.angle), 0.0)
        mirror = torch.diag_embed(torch.stack([torch.where(flip, -1.0, 1.0), torch.ones_like(side)], 1))
        back = mirror @ rotation(-angle) * side[:, None, None]
        images = self._pixels(numbers, back, middle, size)
        self._surround(images, draw, extent, back, middle)
        return images, self._labels(labels, rotation(angle) @ mirror / side[:, None, None], middle, flip)

    def _window(self, labels: dict[str, Tensor], extent: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """The side (B,) and the middle (B, 2) of what is seen, in shares of the letterboxed photograph's side."""
        marked = labels["present"] & ~labels["ignore"]
        any_marked = marked.any(1)
        pick = (draw[:, 1, None] * marked.sum(1, keepdim=True)).long() + 1
        chosen = ((marked.cumsum(1) == pick) & marked).float().argmax(1)
        box = labels["boxes"].gather(1, chosen[:, None, None].expand(-1, 1, 4))[:, 0]
        box = torch.where(any_marked[:, None], box, extent)
        hand = torch.where(any_marked, (box[:, 2:] - box[:, :2]).amax(1).clamp_min(1e-3), 0.12)
        low, high = map(math.log, self.hand)
        wanted = torch.exp(low + (high - low) * draw[:, 2])
        side = torch.where(draw[:, 3] < self.zoomed, hand / wanted, 0.9 + 0.2 * draw[:, 2]).clamp(*self.zoom)
        near = (box[:, :2] + box[:, 2:]) / 2 + (draw[:, 4:6] - 0.5) * 0.7 * side[:, None]
        low, high = extent.split(2, 1)
        # Where all of the photograph's length is seen, it lies anywhere in the picture; else the picture lies in it.
        slack = (side[:, None] - (high - low)).clamp_min(0)
        inside = torch.minimum(torch.maximum(near, low + side[:, None] / 2), high - side[:, None] / 2)
        around = (low + high) / 2 + (draw[:, 4:6] - 0.5) * slack
        return side, torch.where(slack > 0, around, inside)

    def _pixels(self, numbers: Tensor, matrix: Tensor, middle: Tensor, size: int) -> Tensor:
        source = (self.pictures or self.people.squares).rows(numbers.tolist())["image"].to(matrix.device)
        images = torch.empty(len(numbers), 3, size, size, device=matrix.device)
        reduction = torch.linalg.det(matrix).abs().sqrt() * source.shape[-1] / size
        for factor, low, high in ((1, 0.0, 1.6), (2, 1.6, 3.2), (4, 3.2, math.inf)):
            chosen = ((reduction >= low) & (reduction < high)).nonzero(as_tuple=True)[0]
            if len(chosen):  # averaged first, since looking up single pixels of a larger picture would lose the others
                part = source[chosen].float()
                while factor > 1:
                    part, factor = halved(part), factor // 2
                images[chosen] = look_up(part, matrix[chosen], middle[chosen], size)
        return images.mul_(1 / 255)

    def _surround(self, images: Tensor, draw: Tensor, extent: Tensor, matrix: Tensor, middle: Tensor) -> None:
        """Lay some pictures with black around them over a photograph, in place."""
        side = torch.linalg.det(matrix).abs().sqrt()
        chosen = ((side > 1.1) & (draw[:, 10] < self.surrounded)).nonzero(as_tuple=True)[0]
        if self.photos is None or not len(chosen):
            return
        size = images.shape[-1]
        behind = photo_parts(self.photos, draw[chosen][:, [11, 12, 13, 4, 5, 6]], size)
        line = (torch.arange(size, device=images.device) + 0.5) / size - 0.5
        beyond = torch.zeros(len(chosen), size, size, device=images.device)
        for axis in (0, 1):
            a = matrix[chosen][:, axis]
            place = a[:, 0, None, None] * line[None, None] + a[:, 1, None, None] * line[None, :, None]
            place = place + middle[chosen][:, axis, None, None]
            low, high = (extent[chosen][:, axis + corner, None, None] for corner in (0, 2))
            beyond = torch.maximum(beyond, torch.maximum(low - place, place - high))
        inside = (1 - beyond * (size / side[chosen])[:, None, None]).clamp(0, 1)[:, None]
        images[chosen] = torch.lerp(behind, images[chosen], inside)

    def _labels(self, labels: dict[str, Tensor], forward: Tensor, middle: Tensor, flip: Tensor) -> dict[str, Tensor]:
        low, high = labels["boxes"].split(2, -1)
        centre = apply(forward, (low + high) / 2 - middle[:, None]) + 0.5
        half = (high - low) / 2
        # A hand fills its box about as an ellipse does, whose box does not grow so much when it is turned.
        half = (half.square() @ forward.square().mT).sqrt()
        boxes, inside = cut_boxes(torch.cat([centre - half, centre + half], -1))
        present = labels["present"] & (inside > 0.02)
        small = 2 * half.amax(-1) < LEAST_HAND
        direction = F.normalize(apply(forward, labels["directions"]), dim=-1)
        label = labels["class_labels"]
        return {
            "boxes": boxes * present[..., None],
            "class_labels": torch.where(flip[:, None] & (label >= 0), 1 - label, label),
            "directions": direction,
            "ignore": present & (labels["ignore"] | (inside < self.least_inside) | small),
            "present": present,
        }


@dataclass(frozen=True)
class Looks:
    """Light, colour, blur, grain and compression of whole pictures."""

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.4
    channel_gain: float = 0.1
    grey: float = 0.05
    coarse: float = 0.2  # share of half the resolution
    blurred: float = 0.15
    grainy: float = 0.3
    noise: float = 0.05  # largest standard deviation
    jpeg: float = 0.25
    quality: tuple[float, float] = (15.0, 90.0)

    @torch.no_grad()
    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """`images` (B, 3, S, S) in [0, 1], changed by `keys` (B, 2)."""
        draw = counter_rng.uniform(keys, "look", (14,))
        size = images.shape[-1]
        images = self._color(images, draw)
        for share, value, change in ((self.coarse, draw[:, 6], self._coarse), (self.blurred, draw[:, 7], soften)):
            chosen = (value < share).nonzero(as_tuple=True)[0]
            if len(chosen):
                images[chosen] = change(images[chosen])
        chosen = (draw[:, 8] < self.grainy).nonzero(as_tuple=True)[0]
        if len(chosen):
            grain = counter_rng.uniform(keys[chosen], "grain", (1, size // 2, size // 2)) * 3.46 - 1.73
            grain = F.interpolate(grain, size=(size, size), mode="nearest")
            images[chosen] += grain * (self.noise * draw[chosen, 9, None, None, None])
        images = images.clamp_(0, 1)
        chosen = (draw[:, 10] < self.jpeg).nonzero(as_tuple=True)[0]
        if len(chosen):
            low, high = self.quality
            images[chosen] = compress(images[chosen], low + (high - low) * draw[chosen, 11])
        return images

    def _color(self, images: Tensor, draw: Tensor) -> Tensor:
        """Brightness, contrast, saturation and the gain of each channel, as one matrix a picture."""
        signed = draw * 2 - 1
        weights = torch.tensor(GREY, device=images.device)
        saturation = torch.where(draw[:, 12] < self.grey, 0.0, 1 + signed[:, 2] * self.saturation)[:, None, None]
        matrix = saturation * torch.eye(3, device=images.device) + (1 - saturation) * weights
        contrast = 1 + signed[:, 1] * self.contrast
        gain = contrast[:, None] * (1 + signed[:, :1] * self.brightness) * (1 + signed[:, 3:6] * self.channel_gain)
        matrix = gain[:, :, None] * matrix
        middle = images.mean((1, 2, 3)) * (1 - contrast)
        return torch.baddbmm(middle[:, None, None], matrix, images.flatten(2)).view_as(images)

    @staticmethod
    def _coarse(images: Tensor) -> Tensor:
        return F.interpolate(halved(images), scale_factor=2, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class DetectionSamples:
    """Pictures of people, scenes of drawn and cut-out hands, backgrounds, and tiles of close photographs, by `shares` in this
    order; a kind without its source has none."""

    size: int
    people: PeopleViews | None
    scenes: DetectionScenes
    tiles: HandTiles | None = None
    shares: tuple[float, ...] = (0.55, 0.2, 0.05, 0.2)
    max_hands: int = 16
    looks: Looks = field(default_factory=Looks)

    @torch.no_grad()
    def __call__(self, keys: Tensor) -> dict[str, Tensor]:
        """The samples of `keys` (B, 2): `image` (B, 3, size, size) uint8, padded labels with room for `max_hands`, and
        `kind` (B,), the index in `shares`."""
        makers = (self.people, lambda keys, _: self.scenes(keys), lambda keys, _: self.scenes(keys, hands=False), self.tiles)
        shares = torch.tensor([share if maker else 0.0 for share, maker in zip(self.shares, makers)], device=keys.device)
        kind = torch.bucketize(counter_rng.uniform(keys, "kind"), shares.cumsum(0)[:-1] / shares.sum(), right=True)
        images = torch.empty(len(keys), 3, self.size, self.size, device=keys.device)
        labels = empty_labels(len(keys), self.max_hands, keys.device)
        for number, make in enumerate(makers):
            chosen = (kind == number).nonzero(as_tuple=True)[0]
            if not len(chosen):
                continue
            images[chosen], made = make(keys[chosen], self.size)
            for field_name, values in made.items():
                count = min(values.shape[1], self.max_hands)
                labels[field_name][chosen, :count] = values[:, :count].to(labels[field_name].dtype)
        images = self.looks(images, keys)
        return {"image": (images * 255 + 0.5).to(torch.uint8), **labels, "kind": kind}
