"""Structural similarity compared with its formula in float64; planted classes with similar images or not."""

from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from featurize.inspect import class_similarity as module
from featurize.inspect.class_similarity import class_similarity, spread_over_classes, ssim


def _ssim_by_the_formula(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Wang et al. 2004, eq. 13 and 14 to 16, window by window, with loops."""
    at = np.arange(-5, 6)
    window = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(left.shape[0] - 10):
        for column in range(left.shape[1] - 10):
            x, y = (one[row : row + 11, column : column + 11] for one in (left, right))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            covariance = (window * (x - mean_x) * (y - mean_y)).sum()
            c1, c2 = 0.01**2, 0.03**2
            top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
            values.append(top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("shape", [(11, 11), (16, 13), (24, 24)], ids=str)
def test_ssim_is_the_formula_in_float64(shape: tuple[int, int]) -> None:
    chance = np.random.default_rng(0)
    left = chance.uniform(size=(4, *shape))
    right = np.stack([left[0], 1 - left[1], 0.5 * left[2] + 0.2, chance.uniform(size=shape)])
    found = ssim(torch.from_numpy(left).float(), torch.from_numpy(right).float()).numpy()
    expected = [_ssim_by_the_formula(one, other) for one, other in zip(left, right, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found[0] == pytest.approx(1, abs=1e-5)
    assert found[1] < -0.5


def _pictures(classes: int, each: int, *, alike: float) -> tuple[torch.Tensor, NDArray[np.int64]]:
    chance = np.random.default_rng(0)
    labels = np.arange(classes * each) % classes
    patterns = chance.uniform(size=(classes, 16, 16))
    pictures = alike * patterns[labels] + (1 - alike) * chance.uniform(size=(len(labels), 16, 16))
    return torch.from_numpy(pictures).float(), labels


NAMES = tuple("abcdefgh")


def test_classes_with_similar_images_are_recognised() -> None:
    alike = class_similarity(*_pictures(4, 8, alike=0.7), NAMES, seed=0)
    assert alike.within > alike.between + 0.3
    assert alike.p == 0.001
    noise = class_similarity(*_pictures(4, 8, alike=0.0), NAMES, seed=0)
    assert noise.p > 0.05


@pytest.mark.parametrize("classes", [2, 5])
def test_without_similar_classes_p_is_uniform(classes: int) -> None:
    chance = np.random.default_rng(0)
    found = []
    for seed in range(40):
        pictures = torch.from_numpy(chance.uniform(size=(6 * classes, 11, 11))).float()
        found.append(class_similarity(pictures, np.arange(6 * classes) % classes, NAMES, seed=seed).p)
    assert np.mean(np.array(found) <= 0.1) <= 0.25
    assert 0.3 < np.mean(found) < 0.7


def test_means_are_over_all_pairs() -> None:
    pictures, labels = _pictures(3, 4, alike=0.5)
    found = class_similarity(pictures, labels, NAMES, seed=0)
    by_cell: dict[tuple[int, int], list[float]] = {}
    for one in range(12):
        for other in range(one + 1, 12):
            cell = (min(labels[one], labels[other]), max(labels[one], labels[other]))
            by_cell.setdefault(cell, []).append(_ssim_by_the_formula(pictures[one].double().numpy(), pictures[other].double().numpy()))
    means = {cell: np.mean(values) for cell, values in by_cell.items()}
    assert found.pairs == 66
    assert found.within == pytest.approx(np.mean([value for (one, other), value in means.items() if one == other]), abs=1e-4)
    assert found.between == pytest.approx(np.mean([value for (one, other), value in means.items() if one != other]), abs=1e-4)
    differences = [means[c, c] - np.mean([value for cell, value in means.items() if c in cell and cell != (c, c)]) for c in range(3)]
    assert found.difference == pytest.approx(np.mean(differences), abs=1e-4)


def test_the_most_alike_classes_are_named() -> None:
    pictures, labels = _pictures(4, 6, alike=0.8)
    pictures[labels == 3] = 0.9 * pictures[labels == 1] + 0.1 * pictures[labels == 3]
    (one, other, value), *rest = class_similarity(pictures, labels, NAMES, seed=0).most_alike
    assert (one, other) == ("b", "d")
    assert all(value > less for _, _, less in rest)


def test_p_is_close_to_that_of_all_permutations() -> None:
    pictures, labels = _pictures(2, 3, alike=0.2)
    found = class_similarity(pictures, labels, NAMES, seed=0)
    every = [class_similarity(pictures, np.array(one), NAMES, seed=0).difference for one in set(permutations(labels.tolist()))]
    assert abs(found.p - np.mean(np.array(every) >= found.difference - 1e-12)) < 0.05


def test_pairs_are_compared_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = module.ssim_with_moments

    def watched(left: torch.Tensor, right: torch.Tensor, left_moments: module.Moments, right_moments: module.Moments) -> torch.Tensor:
        seen.append(len(left))
        return whole(left, right, left_moments, right_moments)

    monkeypatch.setattr(module, "ssim_with_moments", watched)
    class_similarity(*_pictures(4, 16, alike=0.4), NAMES, seed=0)
    assert sum(seen) == 64 * 63 // 2
    assert max(seen) == 256


@pytest.mark.parametrize(
    ("counts", "most", "expected"),
    [
        ([50, 60, 3, 1], 1000, {0: 40, 1: 40, 2: 3}),
        ([50, 60, 70], 30, {0: 10, 1: 10, 2: 10}),
        ([50, 60, 70], 5, None),  # two classes of two
        ([50, 1], 1000, {}),
        ([50, 50], 3, {}),
    ],
    ids=str,
)
def test_images_are_spread_evenly_over_classes(counts: list[int], most: int, expected: dict[int, int] | None) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = spread_over_classes(labels, most, seed=0)
    found = dict(zip(*(part.tolist() for part in np.unique(labels[chosen], return_counts=True)), strict=True))
    if expected is None:
        assert sorted(found.values()) == [2, 2]
    else:
        assert found == expected
    assert len(set(chosen.tolist())) == len(chosen)
    assert np.array_equal(chosen, spread_over_classes(labels, most, seed=0))


def test_of_many_classes_those_that_get_two_images_are_compared() -> None:
    labels = np.arange(3000) % 500
    chosen = spread_over_classes(labels, 280, seed=0)
    assert len(np.unique(labels[chosen])) == 140
    assert len(chosen) == 280
