"""Calibration, fidelity and churn: against a loop over examples, values worked out by hand, and invariants for any logits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from train.evidence.calibration import BINS, agreement, churn, nll, reliability, teachers_answers
from train.learning.task_rules import rules_of

RULES = rules_of("single-label")
FloatsNK = NDArray[np.float64]
IntsN = NDArray[np.int64]


def logits_of(confidences: list[float], answered: list[int]) -> FloatsNK:
    """Logits of two classes whose answers have these confidences."""
    rows = [[math.log(share), math.log(1 - share)] for share in confidences]
    return np.array([row[::-1] if answer else row for row, answer in zip(rows, answered, strict=True)])


def plain_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(one - top) for one in logits]
    return [weight / sum(weights) for weight in weights]


def brute_force_ece(logits_NK: FloatsNK, labels_N: IntsN, bins: int) -> float:
    """The definition: a loop over bins (low, high], in each a loop over examples."""
    total = 0.0
    for m in range(bins):
        inside = []
        for logits, label in zip(logits_NK.tolist(), labels_N.tolist(), strict=True):
            shares = plain_softmax(logits)
            if m / bins < max(shares) <= (m + 1) / bins:
                inside.append((max(shares), logits.index(max(logits)) == label))
        if inside:
            accuracy = sum(hit for _, hit in inside) / len(inside)
            confidence = sum(share for share, _ in inside) / len(inside)
            total += len(inside) / len(labels_N) * abs(accuracy - confidence)
    return total


def random_examples(seed: int, examples: int, classes: int, *, scale: float = 2.0) -> tuple[FloatsNK, IntsN]:
    generator = np.random.default_rng(seed)
    return generator.normal(scale=scale, size=(examples, classes)), generator.integers(classes, size=examples)


@st.composite
def scored_examples(draw: st.DrawFn) -> tuple[FloatsNK, IntsN]:
    examples, classes = draw(st.integers(1, 60)), draw(st.integers(2, 6))
    return random_examples(draw(st.integers(0, 10_000)), examples, classes, scale=draw(st.sampled_from([0.0, 0.1, 3.0, 1e4])))


def test_a_diagram_by_hand() -> None:
    # Of 15 bins (.6, .667] is number 9, (.867, .933] number 13. Two answers of .65, one right: |.5 - .65|; three of .9, all right:
    # |1 - .9|.
    logits = logits_of([0.65, 0.65, 0.9, 0.9, 0.9], [0, 1, 0, 0, 1])
    labels = np.array([0, 0, 0, 0, 1])
    found = reliability(logits, labels)
    assert found.counts.tolist() == [0] * 9 + [2] + [0] * 3 + [3, 0]
    assert (found.accuracy[9], found.accuracy[13]) == (0.5, 1.0)
    assert (found.confidence[9], found.confidence[13]) == (pytest.approx(0.65), pytest.approx(0.9))
    assert found.ece == pytest.approx((2 * 0.15 + 3 * 0.1) / 5)
    assert nll(logits, labels) == pytest.approx(-(math.log(0.65) + math.log(0.35) + 3 * math.log(0.9)) / 5)


@pytest.mark.parametrize("classes", [2, 3, 20])
@pytest.mark.parametrize("bins", [1, 10, BINS])
def test_ece_equals_its_definition(classes: int, bins: int) -> None:
    for seed in range(5):
        logits, labels = random_examples(seed, 200, classes)
        assert reliability(logits, labels, bins=bins).ece == pytest.approx(brute_force_ece(logits, labels, bins), abs=1e-12)


@given(scored_examples())
def test_a_diagram_counts_every_example_once(scored: tuple[FloatsNK, IntsN]) -> None:
    logits, labels = scored
    found = reliability(logits, labels)
    assert found.counts.sum() == len(labels)
    assert len(found.counts) == len(found.confidence) == len(found.accuracy) == BINS
    assert 0 <= found.ece <= 1
    assert found.accuracy @ found.counts == pytest.approx((RULES.answers(logits) == labels).sum())
    filled = found.counts > 0
    assert (found.confidence[filled] <= (np.flatnonzero(filled) + 1) / BINS + 1e-12).all()
    assert (found.confidence[filled] >= np.flatnonzero(filled) / BINS - 1e-12).all()


@given(scored_examples())
def test_one_bin_gives_the_difference_of_the_means(scored: tuple[FloatsNK, IntsN]) -> None:
    logits, labels = scored
    right, confident = float((RULES.answers(logits) == labels).mean()), float(RULES.outputs(logits).max(axis=1).mean())
    whole, parts = reliability(logits, labels, bins=1).ece, reliability(logits, labels).ece
    assert whole == pytest.approx(abs(right - confident))
    assert parts >= whole - 1e-9, "more bins never give a smaller error"


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    # Two equal logits have a confidence of exactly a half, four of a quarter.
    assert reliability(np.zeros((3, 2)), np.zeros(3, np.int64), bins=4).counts.tolist() == [0, 3, 0, 0]
    assert reliability(np.zeros((3, 4)), np.zeros(3, np.int64), bins=4).counts.tolist() == [3, 0, 0, 0]
    assert reliability(np.array([[0.0, 5000.0]]), np.ones(1, np.int64)).counts.tolist() == [0] * 14 + [1], "certainty"


def test_calibrated_answers_have_no_calibration_error() -> None:
    logits, labels = logits_of([0.75] * 400, [0] * 400), np.array([0, 0, 0, 1] * 100)
    assert reliability(logits, labels).ece == pytest.approx(0, abs=1e-12)


def test_nll_is_torchs_cross_entropy_and_always_finite() -> None:
    logits, labels = random_examples(3, 500, 7, scale=10)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    assert nll(logits, labels) == pytest.approx(expected, rel=1e-12)
    extreme = np.array([[3e38, -3e38], [-3e38, 3e38], [0, 0]])
    assert np.isfinite([nll(extreme, np.full(3, label)) for label in (0, 1)]).all()
    assert nll(extreme[2:], np.zeros(1, np.int64)) == pytest.approx(math.log(2))


@given(scored_examples(), st.floats(-50, 50))
def test_adding_a_number_to_all_logits_changes_nothing(scored: tuple[FloatsNK, IntsN], shift: float) -> None:
    logits, labels = scored
    assert nll(logits + shift, labels) == pytest.approx(nll(logits, labels), rel=1e-9, abs=1e-9)


def test_churn_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    before = np.array([0, 1, 0, 1, 0, 0, 2, 1])
    after = np.array([0, 0, 1, 1, 1, 1, 2, 1])  # kept, repaired, broken, kept, repaired, moved, kept, kept wrong
    found = churn(after, before, labels)
    assert (found.changed, found.repaired, found.broken, found.moved) == (4, 2, 1, 1)
    assert (found.share, found.improved, found.worsened) == (0.5, 0.5, 0.25)
    same = churn(before, before, labels)
    assert (same.share, same.improved, same.worsened) == (0.0, None, None)


@given(scored_examples(), st.integers(0, 1000))
def test_churn_counts_every_change_once(scored: tuple[FloatsNK, IntsN], seed: int) -> None:
    logits, labels = scored
    before = np.random.default_rng(seed).integers(logits.shape[1], size=len(labels))
    after = RULES.answers(logits)
    found = churn(after, before, labels)
    kinds = {"repaired": 0, "broken": 0, "moved": 0}
    for now, then, label in zip(after.tolist(), before.tolist(), labels.tolist(), strict=True):
        if now != then:
            kinds["repaired" if now == label else "broken" if then == label else "moved"] += 1
    assert kinds == {"repaired": found.repaired, "broken": found.broken, "moved": found.moved}
    assert (found.repaired - found.broken) / found.examples == pytest.approx((after == labels).mean() - (before == labels).mean())
    assert found.share == pytest.approx(1 - agreement(after, before))
    if logits.shape[1] == 2:
        assert found.moved == 0
    back = churn(before, after, labels)
    assert (back.repaired, back.broken) == (found.broken, found.repaired)


def test_several_teachers_answer_by_their_mean_probabilities() -> None:
    # Equal shares: (.9 + .3) / 2 = .6 for class 0. With .2 and .8: .18 + .24 = .42.
    first, second = logits_of([0.9], [0]), logits_of([0.7], [1])
    assert teachers_answers([first], [1.0]).tolist() == [0]
    assert teachers_answers([first, second], [0.5, 0.5]).tolist() == [0]
    assert teachers_answers([first, second], [0.2, 0.8]).tolist() == [1]
    nearly = np.array([[0.0, 1e-17, -800.0]])
    assert teachers_answers([nearly], [1.0]).tolist() == [1], "decided by the logits, not by rounded probabilities"


def test_agreement_counts_equal_answers_right_or_wrong() -> None:
    assert agreement(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])) == 0.75
