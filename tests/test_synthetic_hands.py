"""Synthetic hands: the same sample whatever the batch, and keypoints that lie where they are said to lie."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_script.synthetic import SyntheticHands


@pytest.fixture(scope="module", params=["easy", "full"])
def hands(request):
    return SyntheticHands(1000, seed=3, difficulty=request.param)


def test_a_sample_does_not_depend_on_its_batch(hands):
    together = hands.render(torch.tensor([3, 5, 9]))
    for name, value in hands.render(torch.tensor([5])).items():
        assert torch.equal(value[0], together[name][1]), name


def test_seeds_and_indices_give_different_hands(hands):
    batch = hands.render(torch.tensor([0, 1]))["keypoints"]
    other = SyntheticHands(1000, seed=4, difficulty=hands.difficulty).render(torch.tensor([0]))["keypoints"]
    assert (batch[0] - batch[1]).abs().max() > 1 and (batch[0] - other[0]).abs().max() > 1


def test_xyz_and_k_project_onto_uv(hands):
    row = hands[7]
    projected = row["xyz"].astype(np.float64) @ row["K"].astype(np.float64).T
    assert np.abs(projected[:, :2] / projected[:, 2:] - row["uv"]).max() < 1e-3


MESH = Path(__file__).parents[2] / "shared/data/hand_mesh/right.glb"
needs_mesh = pytest.mark.skipif(not MESH.exists(), reason=f"{MESH} is absent")


@needs_mesh
def test_a_rigged_glb_is_a_second_body():
    modelled, read = SyntheticHands(10, seed=1), SyntheticHands(10, seed=1, hand_mesh=MESH)
    ours, theirs = (hands.render(torch.tensor([2])) for hands in (modelled, read))
    apart = (ours["keypoints"] - theirs["keypoints"]).norm(dim=-1)
    assert 0.2 < apart.mean() < 6.0  # another hand in the same pose and view
    assert not torch.equal(ours["images"], theirs["images"])


@needs_mesh
@pytest.mark.parametrize("damage, sentence", [
    (lambda data: b"PK" + data[2:], "not a GLB"),
    (lambda data: data[:60000], "a whole file"),
    (lambda data: data.replace(b"pinky-finger-tip", b"pinky-finger-tap"), "pinky-finger-tip"),
    (lambda data: data.replace(b'"skins"', b'"skims"'), "skins"),
])
def test_a_damaged_mesh_is_refused_by_name(tmp_path, damage, sentence):
    path = tmp_path / "hand.glb"
    path.write_bytes(damage(MESH.read_bytes()))
    with pytest.raises(ValueError, match=sentence) as error:
        SyntheticHands(10, hand_mesh=path)
    assert str(path) in str(error.value)


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
    with pytest.raises(OSError, match="absent.glb"):
        SyntheticHands(1, hand_mesh=tmp_path / "absent.glb")
