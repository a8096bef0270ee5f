"""The hand before it is posed: its surface, its bones, and the places of the 21 keypoints on the bones.

Two bodies share one description, :class:`HandBody`. :func:`procedural_hand` models one: a signed distance field (a smooth
union of tapered capsules around the bones) becomes triangles by naive surface nets (Gibson, "Constrained elastic surface
nets", MICCAI 1998), skinned by the distance to each finger. :func:`.gltf.load_gltf_hand` reads one from a file.

Conventions. A right hand in metres, in its own frame: the origin is the wrist keypoint, x points to the thumb's side, y to
the finger tips, z out of the palm. With the palm to the viewer and fingers up, the thumb points to the viewer's right.
A bone's frame has y along the bone and z out of its palmar side, so a finger flexes by a positive turn about x.
Bones: 0 is the palm, 1 the forearm, then 2 + 3 * finger + segment, thumb first.

Keypoints lie where FreiHAND annotates them: at the joints of the MANO hand model. A finger does not bend there. MANO's
knuckles lie about 6 mm from the axis of flexion towards the finger tip, its last joints about 4 mm towards the palm, its
wrist in the middle of the carpus. So each keypoint is a point *on* a bone.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NUM_BONES = 17  # see the module's docstring
PALM, FOREARM = 0, 1
FOREARM_PIVOT = np.array([-0.002, -0.016, 0.0])
FOREARM_LENGTH = 0.30

# Neutral directions of the straight fingers, degrees from y towards x in the plane of the palm, index to little.
NEUTRAL_SPREAD = (9.0, 1.0, -7.0, -17.0)
# Direction of the thumb's first bone at rest: degrees towards x, elevation towards z, and roll of its pulp.
THUMB_REST = (42.0, 18.0, 40.0)

# Where the fingers bend (metres), thumb to little, and the length of their three segments up to the tip's surface.
PIVOTS = np.array([
    [0.0215, 0.0195, 0.0150], [0.0225, 0.0830, 0.0045], [0.0005, 0.0905, -0.0010], [-0.0225, 0.0785, 0.0000],
    [-0.0390, 0.0665, 0.0045],
])
SEGMENTS = np.array([
    [0.0412, 0.0286, 0.0305], [0.0415, 0.0250, 0.0215], [0.0407, 0.0256, 0.0227], [0.0375, 0.0270, 0.0222],
    [0.0285, 0.0215, 0.0173],
])
# Keypoints 1 and 2 on segment 0, 3 on segment 1, 4 on segment 2: distance (metres) from a segment's start, counted
# from its end for keypoints 2 and 3.
KEYPOINT_SHIFTS = np.array([
    [0.0060, 0.0040, 0.0050, 0.0], [0.0060, 0.0020, 0.0040, 0.0], [0.0060, 0.0025, 0.0040, 0.0],
    [0.0060, 0.0021, 0.0036, 0.0], [0.0050, 0.0020, 0.0033, 0.0],
])

# Radii (metres) at a finger's base, its two joints and its tip.
RADII = np.array([
    [0.0128, 0.0109, 0.0101, 0.0076], [0.0104, 0.0096, 0.0083, 0.0066], [0.0105, 0.0097, 0.0084, 0.0067],
    [0.0101, 0.0092, 0.0080, 0.0064], [0.0089, 0.0081, 0.0070, 0.0056],
])


@dataclass(frozen=True)
class HandBody:
    """A hand at rest. Arrays are float64 unless said; V vertices, F triangles, counter-clockwise seen from outside."""

    vertices: np.ndarray  # (V, 3) metres
    normals: np.ndarray  # (V, 3) unit, outward
    faces: np.ndarray  # (F, 3) int64
    weights: np.ndarray  # (V, 17), rows sum to one
    bone_rotations: np.ndarray  # (17, 3, 3), columns are a bone's axes at rest
    bone_origins: np.ndarray  # (17, 3) metres
    segments: np.ndarray  # (5, 3) metres, the lengths of the fingers' segments
    keypoint_bones: np.ndarray  # (21,) int64
    keypoint_offsets: np.ndarray  # (21, 3) metres in the bone's frame
    palmar: np.ndarray  # (V,) in [0, 1], 1 on the palm's side
    nail: np.ndarray  # (V,) in [0, 1]
    crease: np.ndarray  # (V,) in [0, 1]
    blush: np.ndarray  # (V,) in [0, 1], redder skin: finger tips and knuckles


def thumb_frame(angles: Tensor) -> Tensor:
    """Frames (..., 3, 3) of the thumb's first bone from (swing, elevation, roll) (..., 3) in radians.

    Swing turns the bone from y towards x, elevation lifts it out of the palm (z), roll turns its pulp from facing the
    other fingers (0) towards facing z.
    """
    swing, elevation, roll = angles.unbind(-1)
    sin_a, cos_a, sin_b, cos_b = swing.sin(), swing.cos(), elevation.sin(), elevation.cos()
    along = torch.stack([cos_b * sin_a, cos_b * cos_a, sin_b], -1)
    ulnar = torch.stack([-cos_a, sin_a, torch.zeros_like(sin_a)], -1)
    up = torch.stack([-sin_b * sin_a, -sin_b * cos_a, cos_b], -1)
    pulp = roll.cos()[..., None] * ulnar + roll.sin()[..., None] * up
    return torch.stack([torch.linalg.cross(along, pulp), along, pulp], -1)


def _finger_frame(spread: float) -> np.ndarray:
    along = np.array([np.sin(spread), np.cos(spread), 0.0])
    return np.stack([np.cross(along, [0.0, 0.0, 1.0]), along, [0.0, 0.0, 1.0]], -1)


def _smooth_min(distances: list[np.ndarray], radius: float) -> np.ndarray:
    """The union of distance fields, with seams rounded by about `radius`."""
    stacked = np.stack(distances)
    low = stacked.min(0)
    return low - radius * np.log(np.exp((low - stacked) / radius).sum(0))


def _capsule(points: np.ndarray, a, b, radius_a: float, radius_b: float) -> np.ndarray:
    """Distance (N,) of `points` (N, 3) to a capsule whose radius changes from `a` to `b`."""
    a, b = np.asarray(a), np.asarray(b)
    along = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0.0, 1.0)
    return np.linalg.norm(points - a - along[:, None] * (b - a), axis=1) - (radius_a + along * (radius_b - radius_a))


def _rest_bones() -> tuple[np.ndarray, np.ndarray]:
    rotations, origins = np.tile(np.eye(3), (NUM_BONES, 1, 1)), np.zeros((NUM_BONES, 3))
    rotations[FOREARM] = np.diag([-1.0, -1.0, 1.0])  # along -y
    origins[FOREARM] = FOREARM_PIVOT
    for finger in range(5):
        frame = thumb_frame(torch.from_numpy(np.radians(THUMB_REST))).numpy() if finger == 0 else _finger_frame(
            np.radians(NEUTRAL_SPREAD[finger - 1]))
        for segment in range(3):
            bone = 2 + 3 * finger + segment
            rotations[bone] = frame
            origins[bone] = PIVOTS[finger] + frame[:, 1] * SEGMENTS[finger, :segment].sum()
    return rotations, origins


def _finger_distance(points: np.ndarray, finger: int, rotations: np.ndarray, origins: np.ndarray) -> np.ndarray:
    """Distance to the three segments of a finger, which is a little fuller on its palmar side."""
    bones = [2 + 3 * finger + segment for segment in range(3)]
    frame = rotations[bones[0]]
    local = (points - origins[bones[0]]) @ frame
    radii, lengths = RADII[finger], SEGMENTS[finger]
    local[:, 2] *= np.interp(local[:, 1], [0.0, lengths[:2].sum(), lengths.sum()], [0.97, 1.02, 1.16])
    joints = np.concatenate([[0.0], np.cumsum(lengths)])
    joints[3] -= radii[3]
    parts = [
        _capsule(local, [0, joints[k], 0.0005 * (k + 1)], [0, joints[k + 1], 0.0005 * (k + 2)], radii[k], radii[k + 1])
        for k in range(3)
    ]
    for segment, fullness in ((0, 0.0020), (1, 0.0014)):  # the soft part between two joints, on the palm's side
        middle = 0.5 * (joints[segment] + joints[segment + 1])
        radius = 0.5 * (radii[segment] + radii[segment + 1]) - 0.0004
        parts.append(_capsule(local, [0, middle - 0.002, fullness], [0, middle + 0.002, fullness], radius, radius))
    return _smooth_min(parts, 0.0012)


def _palm_distance(points: np.ndarray) -> np.ndarray:
    """The palm with its pads (thenar, hypothenar, under the knuckles) and the carpus."""
    index, middle, ring, little = PIVOTS[1:]
    parts = [
        _capsule(points, [0.009, 0.012, -0.001], index + [0, -0.002, 0.0005], 0.0150, 0.0108),
        _capsule(points, [0.002, 0.012, -0.002], middle + [0, -0.003, 0.0020], 0.0150, 0.0112),
        _capsule(points, [-0.006, 0.012, -0.001], ring + [0, -0.002, 0.0010], 0.0145, 0.0106),
        _capsule(points, [-0.014, 0.012, 0.001], little + [0, -0.002, 0.0000], 0.0135, 0.0096),
        _capsule(points, index + [0.001, 0.001, 0.006], middle + [0, -0.003, 0.008], 0.0090, 0.0095),
        _capsule(points, middle + [0, -0.003, 0.008], little + [0.001, 0.001, 0.006], 0.0095, 0.0080),
        _capsule(points, [-0.029, 0.052, 0.007], [-0.020, 0.012, 0.007], 0.0110, 0.0135),  # hypothenar
        _capsule(points, [0.014, 0.012, 0.008], [0.026, 0.038, 0.015], 0.0130, 0.0115),  # thenar
        _capsule(points, [0.022, 0.055, 0.004], [0.036, 0.044, 0.012], 0.0070, 0.0065),  # web of the thumb
    ]
    return _smooth_min(parts, 0.0032)


def _web_distance(points: np.ndarray) -> np.ndarray:
    """Skin between neighbouring fingers, a little way up their first segments."""
    parts = []
    for left, right in ((1, 2), (2, 3), (3, 4)):
        a = PIVOTS[left] + _finger_frame(np.radians(NEUTRAL_SPREAD[left - 1]))[:, 1] * 0.013
        b = PIVOTS[right] + _finger_frame(np.radians(NEUTRAL_SPREAD[right - 1]))[:, 1] * 0.013
        parts.append(_capsule(points, a + [0, 0, 0.003], b + [0, 0, 0.003], 0.0068, 0.0060))
    return np.min(parts, axis=0)


def _forearm_distance(points: np.ndarray, girth: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """An elliptic tube from the carpus down, wider than thick. `girth` scales its width and height."""
    along = np.clip(-points[:, 1], -0.004, FOREARM_LENGTH)
    place = [-0.004, 0.030, 0.080, 0.180, FOREARM_LENGTH]
    width = np.interp(along, place, [0.0265, 0.0265, 0.0300, 0.0400, 0.0440]) * girth[0]
    height = np.interp(along, place, [0.0185, 0.0190, 0.0245, 0.0350, 0.0400]) * girth[1]
    offset = np.stack([(points[:, 0] + 0.001) / width, (points[:, 2] - 0.001) / height], 1)
    radius = np.linalg.norm(offset, axis=1)
    beyond = points[:, 1] + along
    side = (radius - 1.0) * np.minimum(width, height)
    return np.where(np.abs(beyond) > 0, np.hypot(np.maximum(side, 0), beyond) + np.minimum(side, 0), side)


def _surface_nets(field: np.ndarray, axes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and outward triangles of the zero level of `field` (negative inside) on a rectilinear grid."""
    inside = field < 0
    shape = np.array(field.shape) - 1
    total, count = np.zeros((*shape, 3)), np.zeros(shape)
    corners = [np.array([i, j, k]) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)

    def at(array: np.ndarray, corner: np.ndarray) -> np.ndarray:
        return array[tuple(slice(c, c + n) for c, n in zip(corner, shape))]

    for a in corners:
        for axis in range(3):
            if a[axis]:
                continue
            b = a + np.eye(3, dtype=int)[axis]
            fa, fb = at(field, a), at(field, b)
            crossing = at(inside, a) != at(inside, b)
            t = np.where(crossing, fa / np.where(crossing, fa - fb, 1.0), 0.0)[..., None]
            total += np.where(crossing[..., None], at(grid, a) * (1 - t) + at(grid, b) * t, 0.0)
            count += crossing
    cells = count > 0
    vertices = total[cells] / count[cells][:, None]
    number = np.full(shape, -1)
    number[cells] = np.arange(len(vertices))
    faces = []
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3, dtype=int)
        low = np.argwhere(np.diff(inside.astype(np.int8), axis=axis) != 0)
        low = low[(low[:, u] > 0) & (low[:, v] > 0) & (low[:, u] < shape[u]) & (low[:, v] < shape[v])]
        quad = [number[tuple((low - du * step[u] - dv * step[v]).T)] for du, dv in ((1, 1), (0, 1), (0, 0), (1, 0))]
        quad = np.stack(quad, 1)
        outward = inside[tuple(low.T)]
        quad[~outward] = quad[~outward][:, ::-1]
        faces += [quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]
    return vertices, np.concatenate(faces)


def _gradient(distance, points: np.ndarray) -> np.ndarray:
    step = 2e-4
    columns = [(distance(points + step * e) - distance(points - step * e)) / (2 * step) for e in np.eye(3)]
    gradient = np.stack(columns, 1)
    return gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-9)


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)


def forearm_share(points: np.ndarray) -> np.ndarray:
    """How much (V,) the points follow the forearm rather than the palm."""
    return 1 - _smoothstep((points[:, 1] + 0.034) / 0.036)


def _skin_weights(points: np.ndarray, rotations: np.ndarray, origins: np.ndarray) -> np.ndarray:
    """Weights (V, 17): the finger by distance, the segment by the place along the finger, blended at each joint."""
    nearness = np.stack(
        [_palm_distance(points)] + [_finger_distance(points, finger, rotations, origins) for finger in range(5)], 1)
    weights = np.zeros((len(points), NUM_BONES))
    share = np.exp(-(nearness[:, 1:] - nearness[:, 1:].min(1, keepdims=True)) / 0.0012)
    share /= share.sum(1, keepdims=True)
    for finger in range(5):
        first = 2 + 3 * finger
        local = (points - origins[first]) @ rotations[first]
        along, (one, two, _) = local[:, 1], SEGMENTS[finger]
        if finger == 0:  # the ball of the thumb moves with its first bone, the rest of the palm does not
            gap = nearness[:, 0] - nearness[:, 1]
            start = _smoothstep((along + 0.012) / 0.030) * _smoothstep((gap + 0.008) / 0.014)
            start = np.maximum(start, _smoothstep((along - 0.022) / 0.014) * _smoothstep((gap + 0.010) / 0.010))
        else:
            start = _smoothstep((along + 0.009) / 0.019)
        bends = [start, _smoothstep((along - one + 0.0075) / 0.015), _smoothstep((along - one - two + 0.006) / 0.012)]
        chain = [bends[0] * (1 - bends[1]), bends[1] * (1 - bends[2]), bends[2]]
        for segment in range(3):
            weights[:, first + segment] = share[:, finger] * chain[segment]
    weights[:, FOREARM] = forearm_share(points) * (1 - weights.sum(1))
    weights[:, PALM] = 1 - weights.sum(1)
    return weights


def _markings(points, normals, weights, rotations, origins, segments) -> dict[str, np.ndarray]:
    """Where skin is palmar, nail, creased or redder, by its place in the frame of the bone that moves it most."""
    owner = weights.argmax(1)
    local = np.einsum("vi,vij->vj", points - origins[owner], rotations[owner])
    facing = np.einsum("vi,vi->v", normals, (weights @ rotations[:, :, 2].reshape(NUM_BONES, 3)))
    palmar = _smoothstep((facing + 0.55) / 0.9)
    nail, crease, blush = (np.zeros(len(points)) for _ in range(3))
    for finger in range(5):
        for segment in range(3):
            mine = owner == 2 + 3 * finger + segment
            length, along = segments[finger, segment], local[:, 1]
            if segment == 2:
                radius = RADII[finger, 3]
                plate = _smoothstep((along - length * 0.40) / 0.003) * _smoothstep((length - 0.0015 - along) / 0.0025)
                plate *= _smoothstep((0.95 * radius - np.abs(local[:, 0])) / 0.002)
                plate *= _smoothstep((-facing - 0.25) / 0.3)
                nail = np.where(mine, plate, nail)
                blush = np.where(mine, np.maximum(blush, _smoothstep((along - 0.3 * length) / length)), blush)
            fold = np.exp(-(((along - (0.0 if segment else 0.55 * length)) / 0.0019) ** 2)) * palmar
            knuckle = np.exp(-((along / 0.005) ** 2)) * (1 - palmar)
            crease = np.where(mine, np.maximum(crease, np.maximum(fold, 0.6 * knuckle * (segment > 0))), crease)
            blush = np.where(mine, np.maximum(blush, 0.8 * knuckle), blush)
            end = np.exp(-(((length - along) / 0.0019) ** 2)) * palmar
            crease = np.where(mine & (segment < 2), np.maximum(crease, end), crease)
    # Lines of the palm as polylines (x, y): one around the ball of the thumb, two across.
    lines = ([(0.030, 0.068), (0.010, 0.058), (0.002, 0.035), (0.004, 0.008)],
             [(0.030, 0.068), (0.0, 0.058), (-0.030, 0.038)], [(-0.040, 0.056), (-0.015, 0.068), (0.008, 0.080)])
    for line in lines:
        for (ax, ay), (bx, by) in itertools.pairwise(line):
            a, b = np.array([ax, ay]), np.array([bx, by])
            t = np.clip((points[:, :2] - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
            gap = np.linalg.norm(points[:, :2] - a - t[:, None] * (b - a), axis=1)
            crease = np.maximum(crease, 0.65 * np.exp(-((gap / 0.0021) ** 2)) * palmar * (owner <= 2))
    return {"palmar": palmar, "nail": nail, "crease": crease, "blush": blush}


def _keypoints(segments: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bones, offsets = np.zeros(21, dtype=np.int64), np.zeros((21, 3))
    for finger in range(5):
        shift = shifts[finger]
        places = ((0, shift[0]), (0, segments[finger, 0] - shift[1]),
                  (1, segments[finger, 1] - shift[2]), (2, segments[finger, 2]))
        for joint, (segment, along) in enumerate(places):
            bones[1 + 4 * finger + joint] = 2 + 3 * finger + segment
            offsets[1 + 4 * finger + joint, 1] = along
    return bones, offsets


def _mesh(distance, axes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, normals and triangles of the zero level of `distance`. The vertices are moved onto the surface."""
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    vertices, faces = _surface_nets(distance(points).reshape([len(axis) for axis in axes]), axes)
    for _ in range(3):
        near = vertices[:, 1] > -FOREARM_LENGTH + 0.01
        step = np.where(near, np.clip(distance(vertices), -0.002, 0.002), 0.0)
        vertices = vertices - step[:, None] * _gradient(distance, vertices)
    return vertices, _gradient(distance, vertices), faces


def _forearm_steps() -> np.ndarray:
    """Rows of the grid below the wrist: coarser towards the elbow."""
    steps = np.concatenate([np.full(7, 0.022), np.full(6, 0.014), np.full(5, 0.010), np.full(3, 0.006)])
    return -np.cumsum(steps[::-1])[::-1] - 0.012


def forearm_mesh(girth: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A forearm alone (vertices, normals, triangles), for a body that ends at the wrist."""
    across = np.arange(-0.060, 0.061, 0.006)
    rows = np.append(_forearm_steps(), [-0.006, 0.0, 0.006])
    return _mesh(lambda points: _forearm_distance(points, girth), [across, rows, across])


@functools.lru_cache(maxsize=1)
def procedural_hand() -> HandBody:
    """The modelled hand with its forearm: about 5,000 vertices, built once in a process."""
    rotations, origins = _rest_bones()

    def distance(points: np.ndarray) -> np.ndarray:
        fingers = [_finger_distance(points, finger, rotations, origins) for finger in range(5)]
        trunk = _smooth_min([_palm_distance(points), _forearm_distance(points)], 0.005)
        thumb = _smooth_min([trunk, fingers[0]], 0.0030)
        return _smooth_min([thumb, *fingers[1:], _web_distance(points)], 0.0010)

    fine = 0.0042
    vertices, normals, faces = _mesh(distance, [
        np.arange(-0.075, 0.112, fine), np.append(_forearm_steps(), np.arange(-0.012, 0.190, fine)),
        np.arange(-0.046, 0.075, fine),
    ])
    weights = _skin_weights(vertices, rotations, origins)
    return complete_body(vertices, normals, faces, weights, rotations, origins, SEGMENTS.copy(), KEYPOINT_SHIFTS)


def complete_body(vertices: np.ndarray, normals: np.ndarray, faces: np.ndarray, weights: np.ndarray,
                  rotations: np.ndarray, origins: np.ndarray, segments: np.ndarray, shifts: np.ndarray) -> HandBody:
    """A :class:`HandBody` from its surface, weights and bones, with keypoints and the skin's markings added.

    `shifts` (5, 4) says where keypoints lie, like KEYPOINT_SHIFTS.
    """
    bones, offsets = _keypoints(segments, shifts)
    return HandBody(vertices, normals, faces, weights, rotations, origins, segments, bones, offsets,
                    **_markings(vertices, normals, weights, rotations, origins, segments))
