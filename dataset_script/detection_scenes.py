"""Whole pictures with drawn and cut-out hands in them: right and left, far and near, overlapping, cut by the edge.

Batches on the device, as `dataset_script/scenes.py`; what is in a picture is a function of its key alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_script import counter_rng
from dataset_script.affine import apply, rotation
from dataset_script.caches import DeviceRows
from dataset_script.layers import HandLayers
from dataset_script.people import MIDDLE_KNUCKLE, WRIST, box_of_keypoints
from dataset_script.squares import Squares
from dataset_script.synthetic.backgrounds import backgrounds as drawn_backgrounds
from dataset_script.synthetic.ranges import FULL
from modeling_handunet.detection_losses import empty_labels

# A hand is put in through a patch of the smallest of these sides that holds its layer, or through the whole picture.
PATCHES = (32, 64, 128, 192)


@dataclass(frozen=True)
class DetectionScenes:
    """Ranges of the scenes; sizes are shares of the picture's side, chances are probabilities."""

    size: int
    layers: Sequence[HandLayers | DeviceRows]  # all with squares of one size
    photos: Squares | DeviceRows | None  # without people; without photographs all backgrounds are drawn
    shares: tuple[float, ...] | None = None  # how often each of `layers` is drawn; by default equally often
    counts: tuple[float, ...] = (0.06, 0.3, 0.28, 0.16, 0.1, 0.06, 0.04)  # chance of 0, 1, 2, ... hands
    hand: tuple[float, float] = (0.04, 0.9)  # longer side of a hand's box, log-uniform; several are smaller
    paired: float = 0.3  # chance of a hand beside its neighbour, as large and of the other side
    any_angle: float = 0.5
    stretch: float = 0.12  # longer by e ** stretch at most along the layer, and shorter as much across it
    longer_arm: float = 0.75  # chance of an arm or a sleeve that goes on where the layer ends
    drawn: float = 0.12  # chance of a drawn background
    least_inside: float = 0.3  # a hand of which less can be seen is ignored

    @torch.no_grad()
    def __call__(self, keys: Tensor, hands: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures (B, 3, size, size) in [0, 1] for `keys` (B, 2), and their padded labels with room for all hands.

        Without `hands` they are backgrounds alone.
        """
        images = self._backgrounds(keys)
        most = len(self.counts) - 1
        labels = empty_labels(len(keys), most, keys.device)
        if not hands:
            return images, labels
        limits = torch.tensor(self.counts, device=keys.device).cumsum(0)[:-1] / sum(self.counts)
        count = torch.bucketize(counter_rng.uniform(keys, "hands"), limits, right=True)  # (B,)
        plan = self._plan(keys, count)
        keypoints = torch.zeros(len(keys), most, 21, 2, device=keys.device)
        hidden = torch.zeros(len(keys), most, 21, dtype=torch.bool, device=keys.device)
        for place in range(most):
            chosen = (count > place).nonzero(as_tuple=True)[0]
            if len(chosen):
                self._paste(images, keypoints, hidden, chosen, place, {name: v[chosen, place] for name, v in plan.items()})
        present = torch.arange(most, device=keys.device) < count[:, None]
        return images, {**labels, **self._labels(keypoints / self.size, hidden, plan["left"], present)}

    def _labels(self, keypoints: Tensor, hidden: Tensor, left: Tensor, present: Tensor) -> dict[str, Tensor]:
        """Labels from keypoints (B, N, 21, 2), shares of the picture's side, and which are `hidden` behind other hands."""
        whole = box_of_keypoints(keypoints)
        toward = keypoints[:, :, MIDDLE_KNUCKLE] - keypoints[:, :, WRIST]
        boxes, inside = cut_boxes(whole)
        present = present & (inside > 0.02)
        return {
            "boxes": boxes * present[..., None],
            "class_labels": torch.where(present, left.long(), -1),
            "directions": torch.where(present[..., None], F.normalize(toward, dim=-1), math.nan),
            "ignore": present & ((inside < self.least_inside) | ((~hidden).float().mean(-1) < self.least_inside)),
            "present": present,
        }

    def _plan(self, keys: Tensor, count: Tensor) -> dict[str, Tensor]:
        """Where each hand goes (B, N), the farthest, which are mostly the smallest, first."""
        most = len(self.counts) - 1
        draw = counter_rng.uniform(keys, "plan", (12, most))
        low, high = math.log(self.hand[0]), math.log(self.hand[1])
        high = torch.where(count > 2, math.log(max(0.45, self.hand[0])), high)[:, None]
        size = torch.exp(low + (high - low).clamp_min(0) * draw[:, 0])  # (B, N)
        left = draw[:, 1] < 0.5
        reach = (1.1 - 0.6 * size)[..., None]
        centre = 0.5 + (draw[:, 2:4].mT - 0.5) * reach  # (B, N, 2)
        for place in range(1, most, 2):
            near = draw[:, 4, place] < self.paired
            other = size[:, place - 1]
            direction, distance = 2 * math.pi * draw[:, 5, place], other * (0.35 + 0.8 * draw[:, 6, place])
            beside = centre[:, place - 1] + torch.stack([direction.cos(), direction.sin()], 1) * distance[:, None]
            centre[:, place] = torch.where(near[:, None], beside, centre[:, place])
            size[:, place] = torch.where(near, other * torch.exp((draw[:, 7, place] - 0.5) * 0.5), size[:, place])
            left[:, place] = torch.where(near, ~left[:, place - 1], left[:, place])
        angle = (draw[:, 8] * 2 - 1) * torch.where(draw[:, 9] < self.any_angle, math.pi, math.radians(50))
        plan = {"size": size, "left": left, "centre": centre, "angle": angle, "stretch": (draw[:, 10] * 2 - 1) * self.stretch}
        limits = torch.tensor(self.shares or [1.0] * len(self.layers), device=keys.device).cumsum(0)
        plan["source"] = torch.bucketize(counter_rng.uniform(keys, "source", (most,)), limits[:-1] / limits[-1], right=True)
        plan["row"] = counter_rng.uniform(keys, "row", (most,))
        plan["color"] = counter_rng.uniform(keys, "hand color", (most, 6))
        plan["arm"] = counter_rng.uniform(keys, "long arm", (most, 10))
        farther = torch.where(torch.arange(most, device=keys.device) < count[:, None], size, torch.inf)
        order = (farther * torch.exp((draw[:, 11] - 0.5) * 1.2)).argsort(1)
        return {name: values.gather(1, order.reshape(*order.shape, *[1] * (values.ndim - 2)).expand_as(values))
                for name, values in plan.items()}  # fmt: skip

    def _rows(self, source: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Layers (B, 4, L, L) uint8 and keypoints (B, 21, 2)."""
        parts, places = [], []
        for number, layers in enumerate(self.layers):
            mine = (source == number).nonzero(as_tuple=True)[0]
            if len(mine):
                parts.append(layers.rows((row[mine] * len(layers)).long().tolist()))
                places.append(mine)
        order = torch.cat(places).argsort()
        rgba, keypoints = (torch.cat([part[name].to(row.device) for part in parts])[order] for name in ("rgba", "keypoints"))
        return rgba, keypoints

    def _paste(self, images, keypoints, hidden, chosen: Tensor, place: int, plan: dict[str, Tensor]) -> None:
        """Put one hand into each of the pictures `chosen`, in place."""
        rgba, points = self._rows(plan["source"], plan["row"])
        old = rgba.shape[-1]
        points = points - old / 2
        stretch = torch.exp(plan["stretch"])
        mirror = torch.where(plan["left"], -1.0, 1.0)
        matrix = rotation(plan["angle"]) @ torch.diag_embed(torch.stack([stretch * mirror, 1 / stretch], 1))
        moved = apply(matrix, points)
        box = box_of_keypoints(moved)
        extent = (box[:, 2:] - box[:, :2]).amax(1).clamp_min(1e-3)
        scale = plan["size"] * self.size / extent
        matrix = matrix * scale[:, None, None]
        middle = plan["centre"] * self.size - (box[:, :2] + box[:, 2:]) / 2 * scale[:, None]  # of the layer, px
        moved = moved * scale[:, None, None] + middle[:, None]
        keypoints[chosen, place] = moved
        needed = matrix.abs().sum(2).amax(1) * old + 2  # px that the turned layer is wide
        for factor, least, most in ((4, 0.0, 0.35), (2, 0.35, 0.7), (1, 0.7, math.inf)):
            mine = ((scale >= least) & (scale < most)).nonzero(as_tuple=True)[0]
            if not len(mine):
                continue
            layer = self._reduced(rgba[mine], factor, plan["color"][mine])
            part = {name: values[mine] for name, values in plan.items()}
            rows = chosen[mine]
            arms = self._long_arms(layer, factor, matrix[mine], middle[mine], moved[mine, WRIST], part)
            hide_behind_strips(keypoints[:, :place], hidden[:, :place], rows, arms)
            for row, (use, *values) in zip(rows.tolist(), arms.tolist()):
                if use:
                    paint_strip(images[row], *values[:7], values[7:])
            limits = (0, *(side for side in PATCHES if side < self.size), math.inf)
            for above, limit in zip(limits, limits[1:]):
                fits = ((needed[mine] > above) & (needed[mine] <= limit)).nonzero(as_tuple=True)[0]
                if not len(fits):
                    continue
                side = min(limit, self.size)
                target, at = mine[fits], rows[fits]
                corner = (middle[target] - side / 2).floor() if side < self.size else torch.zeros(len(at), 2, device=at.device)
                back = torch.linalg.inv(matrix[target])
                source = 0.5 + (back @ (corner + side / 2 - middle[target])[..., None])[..., 0] / old
                patch = look_up(layer[fits], back * (side / old), source, side)
                hide_behind_layer(keypoints[:, :place], hidden[:, :place], at, patch[:, 3], corner)
                for row, (x, y), piece in zip(at.tolist(), corner.long().tolist(), patch):
                    lay_over(images[row], piece[:3], piece[3:], x, y)

    @staticmethod
    def _reduced(rgba: Tensor, factor: int, draw: Tensor) -> Tensor:
        """Layers (B, 4, L / factor, L / factor) in [0, 1] whose colour is multiplied by alpha, in another skin and light.

        Averaged first, since looking up single pixels of a much larger layer would lose the others.
        """
        layer = rgba.float().mul_(1 / 255)
        layer[:, :3] *= layer[:, 3:]
        while factor > 1:
            layer, factor = halved(layer), factor // 2
        saturation = (0.55 + 0.6 * draw[:, 0])[:, None, None]
        gain = (0.55 + 0.65 * draw[:, 1:2]) * (1 + (draw[:, 3:6] - 0.5) * 0.2)
        matrix = gain[:, :, None] * (saturation * torch.eye(3, device=draw.device) + (1 - saturation) / 3)
        color = torch.bmm(matrix, layer[:, :3].flatten(2)).view_as(layer[:, :3]).clamp_min_(0)
        layer[:, :3] = torch.minimum(color, layer[:, 3:])
        return layer

    def _long_arms(self, layer: Tensor, factor: int, matrix: Tensor, middle: Tensor, wrist: Tensor, plan) -> Tensor:
        """For each hand the arm from where its layer ends on, bare or in a sleeve of some colour, (B, 11): whether there is
        one, and what `paint_strip` takes."""
        old = layer.shape[-1] * factor
        line = (torch.arange(layer.shape[-1], device=layer.device) + 0.5) * factor
        border = torch.cat([layer[:, :, 0], layer[:, :, -1], layer[:, :, :, 0], layer[:, :, :, -1]], 2)
        first, last = torch.zeros_like(line), torch.full_like(line, old)
        where = torch.stack([torch.cat([line, line, first, last]), torch.cat([first, last, line, line])], 1)
        alpha = border[:, 3]
        total = alpha.sum(1)
        exit_point = (alpha[..., None] * where).sum(1) / total.clamp_min(1e-3)[:, None]
        skin = border[:, :3].sum(2) / total.clamp_min(1e-3)[:, None]
        wide = total * factor  # about the arm's width, px of the layer
        draw = plan["arm"]
        start = ((exit_point - old / 2)[:, None] * matrix).sum(-1) + middle
        along = F.normalize(start - wrist, dim=1)
        long = (1 + 5 * draw[:, 1]) * plan["size"] * self.size
        bare = draw[:, 2] < 0.35
        color = torch.where(bare[:, None], skin, draw[:, 3:6] * (0.3 + 0.7 * draw[:, 6:7]))
        half = wide * torch.linalg.det(matrix).abs().sqrt() * 0.5 * torch.where(bare, 1.0, 1.1 + 0.5 * draw[:, 7])
        taken = (draw[:, 0] < self.longer_arm) & (wide > 0.06 * old) & (wide < 0.6 * old)
        overlap = torch.where(bare, 2.0, 0.25 * half)  # a sleeve covers part of the arm behind the hand
        return torch.stack([taken.float(), *start.T, *along.T, long, half, overlap, *color.T], 1)

    def _backgrounds(self, keys: Tensor) -> Tensor:
        """Parts of photographs, mirrored and enlarged, and some drawn pictures."""
        draw = counter_rng.uniform(keys, "background", (8,))
        if self.photos is None:
            images, drawn = torch.empty(len(keys), 3, self.size, self.size, device=keys.device), 1.0
        else:
            images, drawn = photo_parts(self.photos, draw[:, :6], self.size), self.drawn
        chosen = (draw[:, 6] < drawn).nonzero(as_tuple=True)[0]
        if len(chosen):
            skin = torch.tensor([[0.75, 0.55, 0.45]], device=keys.device) * (0.4 + 0.8 * draw[chosen, 7:])
            images[chosen] = drawn_backgrounds(keys[chosen], self.size, FULL.backgrounds, skin)[0]
        return images


def photo_parts(photos: Squares | DeviceRows, draw: Tensor, size: int) -> Tensor:
    """A part of a photograph for each of `draw` (B, 6), (B, 3, size, size) in [0, 1]: from 40 % of its side on."""
    source = photos.rows((draw[:, 0] * len(photos)).long().tolist())["image"].to(draw.device)
    zoom = 0.4 + 0.6 * draw[:, 1]
    middle = 0.5 + (draw[:, 2:4] - 0.5) * (1 - zoom)[:, None]
    flip = torch.where(draw[:, 4] < 0.5, -1.0, 1.0)
    matrix = torch.diag_embed(torch.stack([zoom * flip, zoom], 1))
    return look_up(source, matrix, middle, size).mul_(1 / 255)


def halved(images: Tensor) -> Tensor:
    """`images` (B, C, H, W) at half the size; faster than `avg_pool2d`."""
    upper, lower = images[..., ::2, :], images[..., 1::2, :]
    return (upper[..., ::2] + upper[..., 1::2] + lower[..., ::2]).add_(lower[..., 1::2]).mul_(0.25)


def look_up(source: Tensor, matrix: Tensor, middle: Tensor, size: int) -> Tensor:
    """Squares (B, C, size, size) out of `source` (B, C, S, S), 0 outside it.

    A place of the result, from its centre in shares of its side, is `matrix` (B, 2, 2) times that from `middle` (B, 2) of
    the source, in shares of the source's side.
    """
    line = (torch.arange(size, device=source.device) + 0.5) / size - 0.5
    a = 2 * matrix
    offset = 2 * middle - 1
    x = a[:, 0, 0, None, None] * line[None, None] + a[:, 0, 1, None, None] * line[None, :, None] + offset[:, 0, None, None]
    y = a[:, 1, 0, None, None] * line[None, None] + a[:, 1, 1, None, None] * line[None, :, None] + offset[:, 1, None, None]
    grid = torch.stack([x, y], -1)
    return F.grid_sample(source.float(), grid, padding_mode="zeros", align_corners=False)


def cut_boxes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """`boxes` (..., 4) cut to the picture, [0, 1] both ways, and the shares (...) of their areas inside."""
    cut = boxes.clamp(0, 1)
    area, left = ((values[..., 2:] - values[..., :2]).clamp_min(0).prod(-1) for values in (boxes, cut))
    return cut, left / area.clamp_min(1e-9)


def lay_over(image: Tensor, color: Tensor, alpha: Tensor, x: int, y: int) -> None:
    """Lay `color` (3, h, w), multiplied by `alpha` (1, h, w), over `image` (3, H, W) with the corner at (x, y), in place;
    what lies outside is cut off."""
    height, width = image.shape[1:]
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + color.shape[2], width), min(y + color.shape[1], height)
    if left >= right or top >= bottom:
        return
    part = (slice(None), slice(top - y, bottom - y), slice(left - x, right - x))
    image[:, top:bottom, left:right].mul_(1 - alpha[part]).add_(color[part])


def hide_behind_layer(keypoints: Tensor, hidden: Tensor, rows: Tensor, alpha: Tensor, corner: Tensor) -> None:
    """Mark the keypoints (B, N, 21, 2) of earlier hands in the pictures `rows` (R,) that lie behind `alpha` (R, P, P), which
    begins at `corner` (R, 2), as `hidden` (B, N, 21), in place."""
    if not hidden.shape[1]:
        return
    side = alpha.shape[-1]
    pixel = (keypoints[rows] - corner[:, None, None]).floor().long()  # (R, N, 21, 2)
    within = ((pixel >= 0) & (pixel < side)).all(-1)
    pixel = pixel.clamp(0, side - 1)
    over = alpha.flatten(1).gather(1, (pixel[..., 1] * side + pixel[..., 0]).flatten(1)).view(within.shape)
    hidden[rows] |= within & (over > 0.5)


def hide_behind_strips(keypoints: Tensor, hidden: Tensor, rows: Tensor, strips: Tensor) -> None:
    """The same behind `strips` (R, 11), as `paint_strip` paints those whose first number is 1."""
    if not hidden.shape[1]:
        return
    use, x, y, dx, dy, long, half, overlap = (value[:, None, None] for value in strips.T[:8])
    across, down = keypoints[rows, ..., 0] - x, keypoints[rows, ..., 1] - y
    forward, aside = across * dx + down * dy, down * dx - across * dy
    hidden[rows] |= (use > 0) & (aside.abs() < half) & (forward > -overlap) & (forward < long)


def paint_strip(
    image: Tensor, x: float, y: float, dx: float, dy: float, long: float, half: float, overlap: float, color: list[float]
) -> None:
    """Paint a strip from (x, y) on towards (dx, dy), `long` and twice `half` wide, darker to its sides, in place."""
    height, width = image.shape[1:]
    ends = [(x - dx * overlap, y - dy * overlap), (x + dx * long, y + dy * long)]
    reach = 1.3 * half + 2
    left, right = (int(f(end[0] for end in ends) + sign * reach) for f, sign in ((min, -1), (max, 1)))
    top, bottom = (int(f(end[1] for end in ends) + sign * reach) for f, sign in ((min, -1), (max, 1)))
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        return
    columns = torch.arange(left, right, device=image.device) + 0.5 - x
    rows = torch.arange(top, bottom, device=image.device)[:, None] + 0.5 - y
    forward = columns * dx + rows * dy
    half = half * (1 + 0.25 * forward.clamp_min(0) / max(long, 1))
    aside = (columns * -dy + rows * dx) / half
    alpha = ((1 - aside.abs()) * half).clamp(0, 1) * (forward + overlap).clamp(0, 1) * (long - forward).clamp(0, 1)
    shade = 1 - 0.35 * aside.square()
    paint = torch.tensor(color, device=image.device)[:, None, None] * shade
    image[:, top:bottom, left:right].lerp_(paint.clamp(0, 1), alpha.expand_as(paint))
