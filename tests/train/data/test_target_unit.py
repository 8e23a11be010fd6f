"""The unit of a regression: learnt numbers and the rescaled last Linear give the numbers back."""

import numpy as np
import pytest
import torch
from torch import nn

from train.data.target_unit import TargetUnit, unit_of


@pytest.mark.parametrize(("mean", "sd"), [(3.0, 1.2), (1e5, 2e4), (-1e-4, 1e-6), (0.0, 1e8)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_rescaled_linear_gives_the_numbers_back(mean: float, sd: float, bias: bool) -> None:
    numbers = np.random.default_rng(0).normal(mean, sd, 500).astype(np.float32)
    unit = unit_of(numbers, has_bias=bias)
    learnt = unit.learnt(torch.from_numpy(numbers)).double()
    assert float((learnt**2).mean()) == pytest.approx(1, rel=1e-3)
    if bias:
        assert float(learnt.mean()) == pytest.approx(0, abs=1e-3)
    last, embeddings = nn.Linear(8, 1, bias=bias), torch.randn(20, 8)
    before = last(embeddings).detach()
    unit.undo(last)
    expected = unit.mean + unit.sd * before.double()
    torch.testing.assert_close(last(embeddings).detach().double(), expected, rtol=1e-5, atol=1e-5 * (abs(unit.mean) + unit.sd))


@pytest.mark.parametrize("number", [0.0, 1e5, -3e-7, 0.1])
@pytest.mark.parametrize("bias", [True, False])
def test_equal_numbers_have_a_finite_unit(number: float, bias: bool) -> None:
    numbers = np.full(7, number, np.float32)
    unit = unit_of(numbers, has_bias=bias)
    assert np.isfinite(unit.mean)
    assert unit.sd > 0
    assert bool(unit.learnt(torch.from_numpy(numbers)).isfinite().all())
    assert unit.sd == 1 or not bias


def test_no_unit_changes_nothing() -> None:
    last, numbers = nn.Linear(3, 1), torch.randn(4)
    before = last.weight.detach().clone()
    TargetUnit().undo(last)
    assert torch.equal(last.weight, before)
    assert TargetUnit().learnt(numbers) is numbers
