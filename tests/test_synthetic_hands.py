"""Synthetic hands: the same sample whatever the batch, and keypoints that lie where they are said to lie."""

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
