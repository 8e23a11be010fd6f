"""Near-duplicates: planted ones are found, of the right split, and without a matrix of all pairs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from featurize.inspect.near_copies import near_copies, nearest_cosines

IMAGES, FEATURES = 1300, 24


def features() -> torch.Tensor:
    return torch.randn(IMAGES, FEATURES, generator=torch.Generator().manual_seed(0)) + 3


def split(train: range, test: range) -> tuple[Any, Any]:
    numbers = np.arange(IMAGES)
    return np.isin(numbers, train), np.isin(numbers, test)


def test_the_nearest_cosine_is_that_of_the_formula() -> None:
    rows = features()
    candidates = torch.arange(IMAGES) % 3 == 0
    centred = rows.double() - rows.double().mean(dim=0)
    unit = centred / centred.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    cosines.fill_diagonal_(-1)
    found, of_candidates = nearest_cosines(rows, candidates)
    torch.testing.assert_close(found.double(), cosines.amax(dim=1), atol=1e-5, rtol=0)
    cosines[:, ~candidates] = -1
    torch.testing.assert_close(of_candidates.double(), cosines.amax(dim=1), atol=1e-5, rtol=0)


def test_copies_of_train_images_are_counted_and_others_are_not() -> None:
    rows = features()
    rows[1000:1005] = rows[0:5] + 0.01  # test, of train
    rows[1010] = rows[1011]  # within test
    rows[20] = rows[21]  # within train
    found = near_copies(rows, *split(range(800), range(900, IMAGES)), 0.98)
    assert (found.drawings, found.test_drawings, found.test_copies_of_train) == (IMAGES, 400, 5)
    assert found.test_share == 5 / 400
    assert round(found.share * IMAGES) == 14


def test_an_image_of_both_splits_is_no_copy() -> None:
    rows = features()
    train, test = split(range(800), range(700, IMAGES))
    found = near_copies(rows, train, test, 0.98)
    assert (found.test_drawings, found.test_copies_of_train, found.share) == (500, 0, 0.0)


def test_what_all_images_share_makes_no_copies() -> None:
    rows = features() + 1000
    assert near_copies(rows, *split(range(800), range(800, IMAGES)), 0.98).share == 0


def test_the_threshold_is_the_one_given() -> None:
    rows = features()
    nearest, _ = nearest_cosines(rows, torch.ones(IMAGES, dtype=torch.bool))
    for threshold in (0.5, 0.7):
        found = near_copies(rows, *split(range(800), range(800, IMAGES)), threshold)
        assert found.share == pytest.approx(float((nearest >= threshold).double().mean()))
        assert 0 < found.share < 1
        assert found.threshold == threshold


def test_the_quantiles_are_those_of_the_nearest() -> None:
    rows = features()
    nearest = nearest_cosines(rows, torch.ones(IMAGES, dtype=torch.bool))[0].numpy()
    found = near_copies(rows, *split(range(800), range(800, IMAGES)), 0.98).nearest_quantiles
    assert found == {str(q): round(float(np.quantile(nearest, q)), 4) for q in (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)}


def test_identical_images_are_compared_without_dividing_by_zero() -> None:
    assert not nearest_cosines(torch.ones(4, 3), torch.ones(4, dtype=torch.bool))[0].isnan().any()


class _Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_tensor_is_larger_than_a_chunk_of_rows() -> None:
    rows = features()
    with _Largest() as largest:
        nearest_cosines(rows, torch.ones(IMAGES, dtype=torch.bool))
    assert largest.elements == 512 * IMAGES


def test_images_that_are_all_the_same_are_near_duplicates() -> None:
    found = near_copies(torch.full((8, 6), 0.7), np.arange(8) < 4, np.arange(8) >= 4, 0.98)
    assert (found.share, found.test_copies_of_train) == (1.0, 4)
