"""The losses against their formulas, written out in float64 with NumPy alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from train.losses import KD_PRESETS, Distillation, distillation, distillation_loss, soft_cross_entropy

Array = NDArray[np.float64]


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def equation_two(weights: Distillation, s: Array, e_s: Array, t: Array, e_t: Array, y: NDArray[np.int64]) -> float:
    """Eq. 2 of arXiv 2309.15238, term by term."""
    hard = -log_softmax(s)[np.arange(len(y)), y].mean()
    soft = -(np.exp(log_softmax(t / weights.temperature)) * log_softmax(s)).sum(axis=1).mean()
    distance = ((e_t - e_s) ** 2).mean()
    return float(weights.hard * hard + weights.alpha * soft + weights.beta * distance)


def random_batch(seed: int, examples: int, classes: int, width: int) -> tuple[Array, Array, Array, Array, NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    s, t = (generator.normal(0, 3, (examples, classes)) for _ in range(2))
    e_s, e_t = (generator.normal(0, 1, (examples, width)) for _ in range(2))
    return s, e_s, t, e_t, generator.integers(0, classes, examples)


def loss_of(weights: Distillation, batch: tuple[Array, Array, Array, Array, NDArray[np.int64]]) -> float:
    s, e_s, t, e_t = (torch.from_numpy(part).float() for part in batch[:4])
    return float(distillation_loss(weights, (s, e_s), (t, e_t), torch.from_numpy(batch[4])))


@given(seed=st.integers(0, 10_000), examples=st.integers(1, 20), classes=st.integers(2, 20), width=st.integers(1, 64))
def test_the_paper_preset_is_equation_two(seed: int, examples: int, classes: int, width: int) -> None:
    batch = random_batch(seed, examples, classes, width)
    assert loss_of(KD_PRESETS["paper"], batch) == pytest.approx(equation_two(KD_PRESETS["paper"], *batch), rel=1e-5)


def test_the_paper_preset_has_the_papers_weights() -> None:
    assert KD_PRESETS["paper"] == Distillation(hard=1.0, alpha=3.0, beta=1.0, temperature=8.0, soften_student=False)


@pytest.mark.parametrize("dropped", ["hard", "alpha", "beta"])
def test_a_weight_of_zero_leaves_its_term_out(dropped: str) -> None:
    batch = random_batch(1, 8, 5, 16)
    weights = distillation("paper", **{"hard": None, "alpha": None, "beta": None, "temperature": None, **{dropped: 0.0}})
    assert loss_of(weights, batch) == pytest.approx(equation_two(weights, *batch), rel=1e-5)
    assert loss_of(weights, batch) != pytest.approx(loss_of(KD_PRESETS["paper"], batch), rel=1e-3)


def test_a_left_out_term_may_not_even_be_finite() -> None:
    batch = random_batch(2, 4, 3, 8)
    batch[3][:] = np.nan
    assert np.isfinite(loss_of(distillation("paper", hard=None, alpha=None, beta=0.0, temperature=None), batch))


def test_hinton_softens_both_and_multiplies_by_the_square_of_the_temperature() -> None:
    s, _, t, _, _ = random_batch(3, 8, 5, 4)
    tau = 4.0
    expected = -(np.exp(log_softmax(t / tau)) * log_softmax(s / tau)).sum(axis=1).mean() * tau**2
    found = soft_cross_entropy(torch.from_numpy(s), torch.from_numpy(t), temperature=tau, soften_student=True)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_lopez_paz_softens_the_teacher_alone() -> None:
    weights = KD_PRESETS["lopez-paz"]
    batch = random_batch(4, 8, 5, 4)
    assert not weights.soften_student
    assert loss_of(weights, batch) == pytest.approx(equation_two(weights, *batch), rel=1e-5)


def test_the_teacher_gets_no_gradient_through_the_target_when_it_has_none() -> None:
    student = torch.randn(4, 3, requires_grad=True)
    embedding = torch.randn(4, 8, requires_grad=True)
    loss = distillation_loss(
        KD_PRESETS["paper"], (student, embedding), (torch.randn(4, 3), torch.randn(4, 8)), torch.zeros(4, dtype=torch.long)
    )
    torch.autograd.backward(loss)
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert embedding.grad is not None
    assert embedding.grad.abs().sum() > 0


def test_given_weights_replace_the_presets_own() -> None:
    weights = distillation("paper", hard=None, alpha=0.5, beta=None, temperature=2.0)
    assert (weights.hard, weights.alpha, weights.beta, weights.temperature) == (1.0, 0.5, 1.0, 2.0)


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(InputError, match="at least one positive weight"):
        distillation("paper", hard=0.0, alpha=0.0, beta=0.0, temperature=None)


def test_half_precision_outputs_are_scored_in_float32() -> None:
    batch = random_batch(5, 8, 5, 16)
    s, e_s, t, e_t = (torch.from_numpy(part).bfloat16() for part in batch[:4])
    loss = distillation_loss(KD_PRESETS["paper"], (s, e_s), (t, e_t), torch.from_numpy(batch[4]))
    assert loss.dtype == torch.float32
