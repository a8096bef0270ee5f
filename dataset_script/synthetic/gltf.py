"""A hand from a file: any rigged, skinned glTF binary (.glb) of a right hand with WebXR's joint names.

WebXR Hand Input (https://www.w3.org/TR/webxr-hand-input-1/#skeleton-joints-section) names 25 joints. glTF 2.0
(https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html) defines the file. Only what a skinned mesh needs is read:
positions, normals, four joints and weights per vertex, indices, and the bind pose.

WebXR's joints lie where the fingers bend, its tips inside the finger, and its wrist nearer to the arm than FreiHAND's. So
the file's hand is moved, turned and scaled until its five finger bases fit the modelled hand's. Then the wrist keypoint is
the modelled hand's origin, and the other keypoints lie on the bones as FreiHAND's do (see :mod:`.body`).
"""

import functools
import reprlib
import struct
from pathlib import Path

import numpy as np

from dataset_script.files import FileTree, parse_json
from dataset_script.synthetic.body import (
    FOREARM,
    FOREARM_PIVOT,
    KEYPOINT_SHIFTS,
    NUM_BONES,
    PALM,
    PIVOTS,
    SEGMENTS,
    HandBody,
    complete_body,
    forearm_mesh,
    forearm_share,
)

FINGER_JOINTS = {
    "thumb": ("metacarpal", "phalanx-proximal", "phalanx-distal", "tip"),
    **{f"{finger}-finger": ("phalanx-proximal", "phalanx-intermediate", "phalanx-distal", "tip")
       for finger in ("index", "middle", "ring", "pinky")},
}
MAX_GLB_BYTES = 64 << 20
COMPONENTS = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


def _chunks(path: Path) -> tuple[dict, bytes]:
    """The JSON and the binary chunk of a GLB file."""
    data = FileTree(path.parent).read(path.name, MAX_GLB_BYTES)
    if len(data) < 20 or data[:4] != b"glTF":
        raise ValueError(f"{path} is not a GLB file: it does not begin with 'glTF'; export the hand as glTF binary")
    version, total = struct.unpack_from("<II", data, 4)
    if version != 2 or total > len(data):
        raise ValueError(f"{path} is glTF version {version} of {total} bytes and has {len(data)}; "
                         "a whole file of version 2 is needed")
    length, kind = struct.unpack_from("<I4s", data, 12)
    scene = parse_json(data[20 : 20 + length], f"{path}, its first chunk,")
    if kind != b"JSON" or not isinstance(scene, dict):
        raise ValueError(f"{path}: the first chunk must be a JSON object, the file is damaged")
    return scene, data[20 + length + 8 :]


def _accessor(scene: dict, binary: bytes, index: int) -> np.ndarray:
    """An accessor's values (count, width). Integers of normalised accessors become numbers in [0, 1]."""
    accessor = scene["accessors"][index]
    view = scene["bufferViews"][accessor["bufferView"]]
    kind, width, count = np.dtype(COMPONENTS[accessor["componentType"]]), WIDTHS[accessor["type"]], accessor["count"]
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    stride = view.get("byteStride", width * kind.itemsize)
    if not all(type(number) is int for number in (count, start, stride)) or count < 1 or start < 0:
        count, start, stride = map(reprlib.repr, (count, start, stride))
        raise ValueError(f"accessor {index} has {count} values from {start} on, {stride} bytes apart")
    if stride < width * kind.itemsize:  # otherwise a few bytes could hold any number of values
        raise ValueError(f"accessor {index} has values of {width * kind.itemsize} bytes that are {stride} bytes apart")
    if start + (count - 1) * stride + width * kind.itemsize > len(binary):
        raise ValueError(f"accessor {index} ends beyond the file's {len(binary)} bytes of data")
    values = np.ndarray((count, width), kind, binary, start, (stride, kind.itemsize))
    return values / float(np.iinfo(kind).max) if accessor.get("normalized") else values


def _similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, bool]:
    """Scale, rotation, shift that take `source` (N, 3) nearest to `target`, and whether a mirror would fit better.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991.
    """
    a, b = source - source.mean(0), target - target.mean(0)
    u, d, vt = np.linalg.svd(b.T @ a)
    mirrored = np.linalg.det(u @ vt) < 0
    sign = np.array([1.0, 1.0, -1.0 if mirrored else 1.0])
    rotation = (u * sign) @ vt
    scale = float((d * sign).sum() / (a * a).sum())
    return scale, rotation, target.mean(0) - scale * rotation @ source.mean(0), bool(mirrored)


def _subdivide(vertices, normals, weights, faces):
    """Split every triangle in four, and lift the new vertices onto the curved surface that the normals imply.

    Boubekeur and Alexa, "Phong tessellation", SIGGRAPH Asia 2008.
    """
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    edges, inverse = np.unique(edges, axis=0, return_inverse=True)
    ab, bc, ca = (inverse.reshape(3, -1) + len(vertices))
    a, b = edges.T
    middle = 0.5 * (vertices[a] + vertices[b])
    lift = sum(-((middle - vertices[end]) * normals[end]).sum(1, keepdims=True) * normals[end] for end in (a, b)) * 0.5
    normal = normals[a] + normals[b]
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    i, j, k = faces.T
    quarters = [(i, ab, ca), (ab, j, bc), (ca, bc, k), (ab, bc, ca)]
    return (np.concatenate([vertices, middle + 0.75 * lift]), np.concatenate([normals, normal]),
            np.concatenate([weights, 0.5 * (weights[a] + weights[b])]),
            np.concatenate([np.stack(quarter, 1) for quarter in quarters]))


def _frames(points: np.ndarray, palmar: np.ndarray) -> np.ndarray:
    """Frames (3, 3, 3) of a finger's segments from its joints and tip (4, 3): y along the segment, z close to `palmar`."""
    along = np.diff(points, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    # A finger's three segments flex in one plane: one axis for all of them.
    axis = np.cross(along.mean(0), palmar)
    axis /= np.linalg.norm(axis)
    frames = []
    for y in along:
        x = axis - y * (axis @ y)
        x /= np.linalg.norm(x)
        frames.append(np.stack([x, y, np.cross(x, y)], 1))
    return np.stack(frames)


@functools.lru_cache(maxsize=4)
def load_gltf_hand(path: str | Path) -> HandBody:
    """Read a rigged right hand from the GLB file `path`.

    Raises OSError if the file cannot be opened, and ValueError, naming the file, if it is not a glTF 2.0 binary, has no
    skinned mesh, lacks one of WebXR's joints, or is a left hand.
    """
    path = Path(path)
    scene, binary = _chunks(path)
    try:
        body = _build(scene, binary)
        if not all(np.isfinite(values).all() for values in (body.vertices, body.normals, body.weights)):
            raise ValueError("it has vertices that are not finite, or that no bone moves")
        return body
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: the glTF lacks what a skinned mesh needs ({repr(error)[:200]})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _build(scene: dict, binary: bytes) -> HandBody:
    node = next((node for node in scene.get("nodes", ()) if "skin" in node and "mesh" in node), None)
    if node is None:
        raise ValueError("there is no skinned mesh; export the hand with its skeleton and weights")
    skin = scene["skins"][node["skin"]]
    names = [scene["nodes"][joint].get("name", "") for joint in skin["joints"]]
    binds = np.linalg.inv(
        _accessor(scene, binary, skin["inverseBindMatrices"]).astype(np.float64).reshape(-1, 4, 4).transpose(0, 2, 1))
    place = dict(zip(names, binds[:, :3, 3]))
    bones_of = {"wrist": PALM}
    for finger, (base, joints) in enumerate(FINGER_JOINTS.items()):
        bones_of[f"{base}-metacarpal"] = PALM
        for segment, joint in enumerate(joints):
            bones_of[f"{base}-{joint}"] = 2 + 3 * finger + min(segment, 2)
    missing = [name for name in bones_of if name not in place]
    if missing:
        raise ValueError(f"the joint {missing[0]!r} is missing; the joints must carry WebXR's names, and are "
                         f"{', '.join(names[:5])} ...")

    # Into the modelled hand's frame: the finger bases lie where that hand has them.
    joints = np.array([[place[f"{base}-{joint}"] for joint in joints] for base, joints in FINGER_JOINTS.items()])
    scale, rotation, shift, mirrored = _similarity(joints[:, 0], PIVOTS)
    if mirrored:
        raise ValueError("this is a left hand; a right hand is needed (mirror it first)")
    joints = joints @ (scale * rotation).T + shift

    vertices, normals, weights, faces = [], [], [], []
    count = 0
    for primitive in scene["meshes"][node["mesh"]]["primitives"]:
        attributes = primitive["attributes"]
        position = _accessor(scene, binary, attributes["POSITION"]).astype(np.float64)
        own = np.zeros((len(position), NUM_BONES))
        bone_of_joint = np.array([bones_of.get(name, PALM) for name in names])
        influences = bone_of_joint[_accessor(scene, binary, attributes["JOINTS_0"]).astype(np.int64)]
        np.add.at(own, (np.arange(len(own))[:, None], influences), _accessor(scene, binary, attributes["WEIGHTS_0"]))
        vertices.append(position @ (scale * rotation).T + shift)
        normals.append(_accessor(scene, binary, attributes["NORMAL"]).astype(np.float64) @ rotation.T)
        weights.append(own / own.sum(1, keepdims=True))
        faces.append(_accessor(scene, binary, primitive["indices"]).astype(np.int64).reshape(-1, 3) + count)
        count += len(position)
    vertices, normals, weights, faces = _subdivide(*(np.concatenate(a) for a in (vertices, normals, weights, faces)))

    rotations, origins = np.tile(np.eye(3), (NUM_BONES, 1, 1)), np.zeros((NUM_BONES, 3))
    rotations[FOREARM], origins[FOREARM] = np.diag([-1.0, -1.0, 1.0]), FOREARM_PIVOT
    segments = np.zeros((5, 3))
    for finger in range(5):
        if finger == 0:  # the pulp of a resting thumb faces the other fingers, and a little the palm's side
            palmar = np.array([-0.75, 0.30, 0.60])
        else:
            palmar = np.array([0.0, 0.0, 1.0])
        bones = slice(2 + 3 * finger, 5 + 3 * finger)
        rotations[bones], origins[bones] = _frames(joints[finger], palmar), joints[finger, :3]
        segments[finger] = np.linalg.norm(np.diff(joints[finger], axis=0), axis=1)
        last = 4 + 3 * finger  # the tip's surface lies beyond the tip's joint
        tip = vertices[weights[:, last] > 0.5]
        segments[finger, 2] = ((tip - origins[last]) @ rotations[last][:, 1]).max()

    vertices, origins, segments = _lengthen(vertices, weights, rotations, origins, segments,
                                            SEGMENTS.sum(1) / segments.sum(1))
    share = forearm_share(vertices) * weights[:, PALM]
    weights[:, FOREARM] += share
    weights[:, PALM] -= share
    vertices, normals, weights, faces = _add_forearm(vertices, normals, weights, faces)
    shifts = KEYPOINT_SHIFTS * (segments.sum(1) / SEGMENTS.sum(1))[:, None]
    return complete_body(vertices, normals, faces, weights, rotations, origins, segments, shifts)


def _lengthen(vertices, weights, rotations, origins, segments, factors):
    """Fingers `factors` (5,) times as long, but as thick as before: FreiHAND's proportions to the palm."""
    moved = np.broadcast_to(vertices[None], (NUM_BONES, *vertices.shape)).copy()
    new_origins = origins.copy()
    for finger, factor in enumerate(factors):
        for segment in range(3):
            bone = 2 + 3 * finger + segment
            if segment:
                step = rotations[bone - 1][:, 1] * segments[finger, segment - 1] * factor
                new_origins[bone] = new_origins[bone - 1] + step
            axis = rotations[bone][:, 1]
            local = vertices - origins[bone]
            moved[bone] = new_origins[bone] + local + (factor - 1) * (local @ axis)[:, None] * axis
    return np.einsum("vb,bvi->vi", weights, moved), new_origins, segments * np.asarray(factors)[:, None]


def _add_forearm(vertices, normals, weights, faces):
    """Add a forearm of the same girth to a hand that ends at the wrist, and fit the hand's open end to it."""
    end = vertices[:, 1].min()
    cut = vertices[(vertices[:, 1] < end + 0.015)]
    middle = 0.5 * (cut.min(0) + cut.max(0)) * [1, 0, 1]
    radius = 0.5 * np.ptp(cut, axis=0)
    girth = (radius[0] / 0.0265, radius[2] / 0.0190)
    offset = (vertices - middle) * [1, 0, 1]
    length = np.linalg.norm(offset / [radius[0], 1.0, radius[2]], axis=1)
    near = np.clip((end + 0.035 - vertices[:, 1]) / 0.025, 0.0, 1.0)
    stretch = 1 + near * (1.01 / np.maximum(length, 0.3) - 1)
    vertices = np.where(near[:, None] > 0, offset * stretch[:, None] + vertices * [0, 1, 0] + middle, vertices)
    outward = offset / [radius[0] ** 2, 1.0, radius[2] ** 2]  # the ellipse's normals, so that light does not show the seam
    outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-9)
    normals = normals + near[:, None] * (outward - normals)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    arm, arm_normals, arm_faces = forearm_mesh(girth)
    arm = arm + middle + [0.001, end + 0.010, -0.001]
    arm_weights = np.zeros((len(arm), NUM_BONES))
    arm_weights[:, FOREARM] = forearm_share(arm)
    arm_weights[:, PALM] = 1 - arm_weights[:, FOREARM]
    return (np.concatenate([vertices, arm]), np.concatenate([normals, arm_normals]),
            np.concatenate([weights, arm_weights]), np.concatenate([faces, arm_faces + len(vertices)]))
