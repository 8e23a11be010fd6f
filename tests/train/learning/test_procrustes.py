"""The rotation of embeddings: against scipy, against the definition, and where texts leave directions free."""

import numpy as np
import torch
from scipy.linalg import orthogonal_procrustes

from train.learning.procrustes import align, rotation


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def test_the_rotation_is_scipys() -> None:
    one, other = draws(40, 8), draws(40, 8, seed=1)
    expected, _ = orthogonal_procrustes(one.numpy(), other.numpy())
    torch.testing.assert_close(rotation(one, other), torch.from_numpy(expected), rtol=0, atol=1e-10)


def test_turned_and_moved_embeddings_are_brought_back() -> None:
    ours, turn = draws(50, 6), torch.linalg.qr(draws(6, 6, seed=1)).Q
    theirs = (ours - 0.5) @ turn.T
    torch.testing.assert_close(align(theirs[:7], theirs[10:], ours[10:]), ours[:7].float(), rtol=0, atol=1e-5)


def test_nothing_that_is_orthogonal_fits_better() -> None:
    one, other = draws(30, 5), draws(30, 5, seed=1)
    best = (one @ rotation(one, other) - other).square().sum()
    for seed in range(20):
        nearby = torch.linalg.qr(rotation(one, other) + 0.1 * draws(5, 5, seed=seed)).Q
        assert (one @ nearby - other).square().sum() > best


def test_where_texts_say_nothing_embeddings_stay_as_they_are() -> None:
    one, other = draws(3, 8), draws(3, 8, seed=1)
    found = rotation(one, other)
    torch.testing.assert_close(found.T @ found, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-10)
    expected, _ = orthogonal_procrustes(one.numpy(), other.numpy())
    assert (one @ found - other).norm() <= (one @ torch.from_numpy(expected) - other).norm() + 1e-9
    assert found.trace() > torch.from_numpy(expected).trace(), "the nearest of the best to the identity"
    torch.testing.assert_close(rotation(one, one), torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-10)
