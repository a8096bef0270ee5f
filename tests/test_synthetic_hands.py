"""Synthetic hands: a sample does not depend on its batch, and keypoints lie where the hand is."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_script import counter_rng
from dataset_script.synthetic import SyntheticHands
from dataset_script.synthetic.backgrounds import KINDS
from dataset_script.synthetic.body import procedural_hand
from dataset_script.synthetic.compositing import composite
from dataset_script.synthetic.hands import draw_hands
from dataset_script.synthetic.poses import FINGER_LIMITS, TEMPLATES, THUMB_LIMITS, sample_poses
from dataset_script.synthetic.ranges import EASY, FULL
from dataset_script.synthetic.rasterizer import rasterize
from modeling_handunet.keypoints import SKELETON

DATA = Path(__file__).parents[2] / "shared/data"
needs_freihand = pytest.mark.skipif(not (DATA / "freihand_real").exists(), reason=f"{DATA}/freihand_real is absent")
TIPS, KNUCKLES = [8, 12, 16, 20], [5, 9, 13, 17]


@pytest.fixture(scope="module", params=["easy", "full"])
def hands(request):
    return SyntheticHands(1000, seed=3, difficulty=request.param)


@pytest.fixture(scope="module")
def drawn():
    """48 hands of every kind, nothing in front of them: their keys and the drawn hands."""
    keys = counter_rng.sample_keys(5, torch.arange(48))
    return keys, draw_hands(keys, procedural_hand(), dataclasses.replace(FULL, held=0.0), 128)


def handedness(xyz: np.ndarray) -> np.ndarray:
    """How far (N,) the finger tips are bent, positive if towards wrist-index x wrist-little."""
    index, little = xyz[:, 5] - xyz[:, 0], xyz[:, 17] - xyz[:, 0]
    return ((xyz[:, TIPS] - xyz[:, KNUCKLES]).mean(1) * np.cross(index, little)).sum(1) * 1e6


def reprojected(xyz, K):
    pixels = np.asarray(xyz, np.float64) @ np.asarray(K, np.float64).swapaxes(-1, -2)
    return pixels[..., :2] / pixels[..., 2:]


def test_a_sample_does_not_depend_on_its_batch(hands):
    order = [3, 5, 9, 2, 6, 7, 8]
    together = hands.render(torch.tensor(order))
    for batch in ([5], [9, 3, 5], [8, 6]):
        for name, value in hands.render(torch.tensor(batch)).items():
            assert torch.equal(value, together[name][[order.index(i) for i in batch]]), name


def test_seeds_and_indices_give_different_hands(hands):
    batch = hands.render(torch.tensor([0, 1]))["keypoints"]
    other = SyntheticHands(1000, seed=4, difficulty=hands.difficulty).render(torch.tensor([0]))["keypoints"]
    assert (batch[0] - batch[1]).abs().max() > 1 and (batch[0] - other[0]).abs().max() > 1


def test_a_row_is_the_rendered_sample_in_freihands_fields(hands):
    row, batch = hands[7], hands.render(torch.tensor([7]))
    assert row["frame_id"] == 7 and row["background"] in KINDS and row["image"].size == (128, 128)
    assert np.array_equal(np.asarray(row["image"]).transpose(2, 0, 1), batch["images"][0].numpy())
    for name, shape in (("uv", (21, 2)), ("xyz", (21, 3)), ("K", (3, 3))):
        assert row[name].shape == shape and row[name].dtype == np.float32
    assert len(hands) == 1000 and hands[-1]["frame_id"] == 999
    with pytest.raises(IndexError):
        hands[1000]


def test_xyz_and_k_project_onto_uv(hands):
    batch = hands.render(torch.arange(20, 36))
    assert np.abs(reprojected(batch["xyz"], batch["K"]) - batch["keypoints"].numpy()).max() < 1e-3
    assert batch["xyz"][..., 2].min() > 0.25 and batch["xyz"][:, 9, 2].max() < 1.0  # metres before the camera


@pytest.mark.parametrize("ranges", [EASY, FULL], ids=["easy", "full"])
def test_the_hand_is_as_large_as_its_difficulty_says_and_inside_the_image(ranges):
    placed = draw_hands(counter_rng.sample_keys(8, torch.arange(64)), procedural_hand(), ranges, 64)
    box = (placed.keypoints.amax(1) - placed.keypoints.amin(1)).amax(1) / 64
    assert ranges.fill[0] - 0.002 < box.min() and box.max() < ranges.fill[1] + 0.002
    middle = 0.5 * (placed.keypoints.amax(1) + placed.keypoints.amin(1)) / 64 - 0.5
    assert middle.abs().max() < ranges.shift + 0.01
    assert placed.keypoints.min() > 0 and placed.keypoints.max() < 64


def test_easy_hands_stand_within_45_degrees_of_upright():
    keypoints = SyntheticHands(10, seed=9, image_size=32).render(torch.arange(64))["keypoints"]
    up = keypoints[:, 0] - keypoints[:, 9]  # y points down
    lean = torch.atan2(up[:, 0].abs(), up[:, 1]).rad2deg()
    assert lean.max() < 55 and lean.mean() > 10  # the wrist's own slant adds to the image's rotation


def test_hands_are_right_hands():
    # Palm to the viewer, fingers up, a right hand's thumb is on the viewer's right: wrist-index x wrist-little comes
    # out of the palm, and fingers bend to there. So a left hand's sign is minus.
    keys = counter_rng.sample_keys(0, torch.arange(24))
    bent = dataclasses.replace(FULL, templates=("fist", "grasp bar"), noise=3.0)
    fists = draw_hands(keys, procedural_hand(), bent, 32)
    assert (handedness(fists.xyz.numpy()) > 0).all()


@needs_freihand
def test_real_freihand_samples_are_right_hands_too():
    xyz = np.array(json.loads((DATA / "freihand_real/training_xyz.json").read_text()))
    bent = np.abs(handedness(xyz)) > 100  # the sign of flat hands means nothing
    assert bent.sum() == 3 and (handedness(xyz)[bent] > 0).all()


@needs_freihand
def test_bones_have_the_proportions_of_freihands():
    def bones(xyz):
        lengths = np.stack([np.linalg.norm(xyz[:, a] - xyz[:, b], axis=1) for a, b in SKELETON], 1)
        return (lengths / lengths[:, 8:9]).mean(0)  # against wrist to middle knuckle

    real = np.array(json.loads((DATA / "freihand_real/training_xyz.json").read_text()))
    ours = SyntheticHands(10, seed=2, difficulty="full", image_size=32).render(torch.arange(64))["xyz"].numpy()
    assert np.abs(bones(ours) / bones(real) - 1).max() < 0.08


def test_joints_lie_inside_the_drawn_hand_and_tips_on_its_edge(drawn):
    _, hands = drawn
    alpha = hands.rgba[:, 3]

    def covered(points):
        x, y = points.round().long().clamp(0, 127).unbind(-1)
        return alpha[torch.arange(len(points))[:, None], y, x] > 0.5

    joints = [k for k in range(21) if k not in (4, *TIPS)]
    assert covered(hands.keypoints[:, joints]).all()
    tips, before = hands.keypoints[:, [4, *TIPS]], hands.keypoints[:, [3, 7, 11, 15, 19]]
    assert covered(tips + 0.25 * (before - tips)).all()
    # An open finger ends at its tip: a fifth of its last segment farther on, there is no hand.
    spread = draw_hands(counter_rng.sample_keys(1, torch.arange(16)), procedural_hand(),
                        dataclasses.replace(EASY, templates=("spread",), noise=2.0, pitch=3.0, yaw=5.0), 128)
    tips, before = spread.keypoints[:, TIPS], spread.keypoints[:, [7, 11, 15, 19]]
    x, y = (tips + 0.3 * (tips - before)).round().long().unbind(-1)
    assert (spread.rgba[torch.arange(16)[:, None], 3, y, x] < 0.5).all()


def test_the_hand_is_seen_in_the_picture(drawn):
    keys, hands = drawn
    ranges = dataclasses.replace(FULL, occluder=0.0, soften=0.0)
    with_hand, _ = composite(keys, hands, ranges)
    hidden = dataclasses.replace(hands, rgba=hands.rgba * torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None, None])
    without, _ = composite(keys, hidden, dataclasses.replace(ranges, shadow=1e-9))
    changed = (with_hand.int() - without.int()).abs().amax(1)
    x, y = hands.keypoints[:, [0, 5, 9, 13]].long().unbind(-1)
    assert (changed[torch.arange(len(x))[:, None], y, x] > 3).float().mean() > 0.9
    assert (changed[:, 0, 0] <= 3).float().mean() > 0.6  # most corners show no arm


def test_poses_stay_within_anatomical_limits():
    keys = counter_rng.sample_keys(0, torch.arange(500))
    pose = sample_poses(keys, tuple(TEMPLATES), blend=0.7, mixed=0.3, noise=30.0, wrist=20.0)
    for angles, limits in ((pose.thumb, THUMB_LIMITS), (pose.fingers, FINGER_LIMITS)):
        low, high = torch.tensor(limits, dtype=torch.float64).unbind(-1)
        assert (angles.rad2deg() >= low - 1e-4).all() and (angles.rad2deg() <= high + 1e-4).all()
    assert pose.fingers[..., 1].rad2deg().std() > 20


def test_the_rasteriser_covers_pixel_centres_and_shows_the_nearest_front_face():
    # Seen from outside a front face turns counter-clockwise, which with y down is a negative area.
    x = torch.tensor([[0.0, 0.0, 4.0, 0.0, 0.0, 2.0, 0.0, 6.0, 0.0]])
    y = torch.tensor([[0.0, 4.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 6.0]])
    near = torch.tensor([[1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 9.0, 9.0, 9.0]])
    faces = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8]])  # far and large, near and small, nearest but turned away
    pixel, corners, weights = rasterize(x, y, near, faces, 6)
    # x + y <= 4 at centres (i + 0.5, j + 0.5): i + j <= 3, ten pixels; the near one hides i + j <= 1, three of them.
    places = {(p % 6, p // 6): corners[0][k].item() for k, p in enumerate(pixel.tolist())}
    assert set(places) == {(i, j) for i in range(4) for j in range(4) if i + j <= 3}
    assert {place for place, corner in places.items() if corner == 3} == {(0, 0), (1, 0), (0, 1)}
    at = pixel.tolist().index(6 * 1 + 2)  # centre (2.5, 1.5): 2.5 / 4 of the way in x, 1.5 / 4 in y
    assert [round(w[at].item(), 5) for w in weights] == [0.0, 0.375, 0.625]
    empty, _, _ = rasterize(x + 100, y, near, faces, 6)
    assert len(empty) == 0


def test_written_folders_have_freihands_layout(tmp_path):
    SyntheticHands(3, seed=6, difficulty="full").write_freihand(tmp_path, versions=4, image_size=96, start=10)
    names = sorted(path.name for path in (tmp_path / "training/rgb").iterdir())
    assert names == [f"{i:08d}.jpg" for i in range(12)]
    K, xyz = (np.array(json.loads((tmp_path / f"training_{name}.json").read_text())) for name in ("K", "xyz"))
    assert K.shape == (3, 3, 3) and xyz.shape == (3, 21, 3)
    expected = SyntheticHands(1, seed=6, difficulty="full", image_size=96).render(torch.arange(10, 13))
    assert np.abs(reprojected(xyz, K) - expected["keypoints"].numpy()).max() < 1e-3
    pictures = [np.asarray(Image.open(tmp_path / f"training/rgb/{i:08d}.jpg")).astype(int) for i in range(12)]
    assert pictures[0].shape == (96, 96, 3)
    for frame in range(3):  # one hand on four backgrounds, the first of them green
        versions = [pictures[frame + 3 * v] for v in range(4)]
        green = versions[0].reshape(-1, 3)
        assert ((green[:, 1] > green[:, 0]) & (green[:, 1] > green[:, 2])).mean() > 0.3
        assert all(np.abs(versions[0] - other).mean() > 8 for other in versions[1:])
    with pytest.raises(FileExistsError, match="training_xyz.json exists"):
        SyntheticHands(3).write_freihand(tmp_path)
    with pytest.raises(ValueError, match="versions is 2"):
        SyntheticHands(3).write_freihand(tmp_path / "other", versions=2)


MESH = DATA / "hand_mesh/right.glb"
needs_mesh = pytest.mark.skipif(not MESH.exists(), reason=f"{MESH} is absent")


@needs_mesh
def test_a_rigged_glb_is_a_second_body():
    modelled, read = SyntheticHands(10, seed=1), SyntheticHands(10, seed=1, hand_mesh=MESH)
    ours, theirs = (hands.render(torch.tensor([2])) for hands in (modelled, read))
    apart = (ours["keypoints"] - theirs["keypoints"]).norm(dim=-1)
    assert 0.2 < apart.mean() < 6.0  # another hand in the same pose and view
    assert not torch.equal(ours["images"], theirs["images"])


def with_scene(data: bytes, change) -> bytes:
    """A GLB file with its JSON changed; a string becomes the JSON as it is."""
    length = int.from_bytes(data[12:16], "little")
    scene = change(json.loads(data[20 : 20 + length]))
    text = (scene if isinstance(scene, str) else json.dumps(scene)).encode()
    rest = text + data[20 + length :]
    return data[:8] + (20 + len(rest)).to_bytes(4, "little") + len(text).to_bytes(4, "little") + data[16:20] + rest


def repeat_a_vertex(scene: dict) -> dict:
    """A billion vertices of a few bytes: all of them at the same place."""
    accessor = scene["accessors"][scene["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    accessor["count"] = 10**9
    scene["bufferViews"][accessor["bufferView"]]["byteStride"] = 0
    return scene


@needs_mesh
@pytest.mark.parametrize("damage, sentence", [
    (lambda data: b"PK" + data[2:], "not a GLB"),
    (lambda data: data[:60000], "a whole file"),
    (lambda data: data.replace(b"pinky-finger-tip", b"pinky-finger-tap"), "pinky-finger-tip"),
    (lambda data: data.replace(b'"skins"', b'"skims"'), "skins"),
    (lambda data: with_scene(data, lambda scene: [scene]), "must be a JSON object"),
    (lambda data: with_scene(data, lambda scene: "[" * 100_000), "nested too deeply"),
    (lambda data: with_scene(data, repeat_a_vertex), "bytes apart"),
    (lambda data: with_scene(data, lambda scene: {**scene, "nodes": 3}), "lacks what a skinned mesh needs"),
])
def test_a_damaged_mesh_is_refused_by_name(tmp_path, damage, sentence):
    path = tmp_path / "hand.glb"
    path.write_bytes(damage(MESH.read_bytes()))
    with pytest.raises(ValueError, match=sentence) as error:
        SyntheticHands(10, hand_mesh=path)
    assert str(path) in str(error.value)


@needs_mesh
def test_a_left_hand_mesh_is_refused(tmp_path):
    """The same file mirrored: x of every joint's bind position negated."""
    data = bytearray(MESH.read_bytes())
    scene_length = int.from_bytes(data[12:16], "little")
    scene = json.loads(data[20 : 20 + scene_length])
    view = scene["bufferViews"][scene["accessors"][scene["skins"][0]["inverseBindMatrices"]]["bufferView"]]
    start = 20 + scene_length + 8 + view["byteOffset"]
    matrices = np.frombuffer(bytes(data[start : start + view["byteLength"]]), "<f4").reshape(-1, 4, 4).astype(float)
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    matrices = np.linalg.inv(np.linalg.inv(matrices.transpose(0, 2, 1)).transpose(0, 2, 1) @ mirror)
    data[start : start + view["byteLength"]] = matrices.astype("<f4").tobytes()
    (tmp_path / "left.glb").write_bytes(data)
    with pytest.raises(ValueError, match="left hand"):
        SyntheticHands(10, hand_mesh=tmp_path / "left.glb")


def test_arguments_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match="length is 0"):
        SyntheticHands(0)
    with pytest.raises(ValueError, match="choose one of easy, full"):
        SyntheticHands(1, difficulty="medium")
    with pytest.raises(ValueError, match="image_size is 8"):
        SyntheticHands(1, image_size=8)
    with pytest.raises(ValueError, match="not a GLB"):
        (tmp_path / "empty.glb").write_bytes(b"")
        SyntheticHands(1, hand_mesh=tmp_path / "empty.glb")
    with pytest.raises(ValueError, match="at least one sample"):
        SyntheticHands(1).render(torch.tensor([], dtype=torch.int64))
    with pytest.raises(OSError, match="absent.glb"):
        SyntheticHands(1, hand_mesh=tmp_path / "absent.glb")
