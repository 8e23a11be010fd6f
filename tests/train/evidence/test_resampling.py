"""Macro-F1 and Spearman's correlation under resampling: every value against scikit-learn, SciPy, or the definition written out."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from train.evidence.resampling import RESAMPLES, SWAPS, MacroF1, Score, Spearman, compare_scores
from train.evidence.statistics import Comparison

N = 120


def macro_f1(noise: float, *, number: int = 0, classes: int = 4) -> MacroF1:
    """Answers that differ from the labels in about so many classes; the labels are always the same."""
    labels = np.random.default_rng(7).random((N, classes)) < 0.3
    return MacroF1(labels, labels ^ (np.random.default_rng(number).random((N, classes)) < noise))


def spearman(noise: float, *, number: int = 0, decimals: int = 1) -> Spearman:
    """Numbers with some equal ones, and answers at about that distance from them."""
    labels = np.random.default_rng(7).normal(size=N).round(decimals)
    return Spearman(labels, (labels + noise * np.random.default_rng(number).normal(size=N)).round(decimals))


def reference(labels: NDArray[np.float64], answers: NDArray[np.float64]) -> float:
    return float(f1_score(labels, answers, average="macro") if labels.ndim == 2 else spearmanr(labels, answers)[0])


each_score = pytest.mark.parametrize("score", [macro_f1(0.1), macro_f1(0.3), spearman(1.0), spearman(0.4, decimals=0)])


@each_score
def test_the_score_is_that_of_the_library(score: MacroF1 | Spearman) -> None:
    assert score.value == pytest.approx(reference(score.labels, score.answers), abs=1e-12)


@each_score
def test_the_influence_of_an_example_is_what_leaving_it_out_changes(score: MacroF1 | Spearman) -> None:
    left_out = [reference(np.delete(score.labels, n, axis=0), np.delete(score.answers, n, axis=0)) for n in range(N)]
    jackknife_N = (N - 1) * (score.value - np.array(left_out))  # Efron 1982, Eq. 2.2; the derivative is its limit for large N
    assert np.corrcoef(jackknife_N, score.influence)[0, 1] > 0.9999
    assert np.std(score.influence) == pytest.approx(np.std(jackknife_N), rel=0.02)
    assert abs(score.influence.mean()) < 1e-12


@each_score
def test_a_draw_is_scored_as_the_library_scores_those_examples(score: MacroF1 | Spearman) -> None:
    places = np.random.default_rng(0).integers(N, size=(RESAMPLES, N))
    for draw in range(0, RESAMPLES, 400):
        drawn = reference(score.labels[places[draw]], score.answers[places[draw]])
        assert score.bootstrapped[draw] == pytest.approx(drawn, abs=1e-12)
    assert len(score.bootstrapped) == RESAMPLES


def test_a_draw_without_a_class_counts_zero_for_it() -> None:
    score = MacroF1(np.array([[True, False], [True, True]]), np.array([[True, False], [True, True]]))
    assert set(np.round(score.bootstrapped, 9)) == {0.5, 1.0}


def swapped_p(first: Score, second: Score, value: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """The p of all 2^N swaps of a few examples, written out."""
    n = first.parts.shape[0]
    observed = abs(first.value - second.value)
    outcomes = []
    for number in range(2**n):
        swap_N1 = np.array([number >> bit & 1 for bit in range(n)], bool)[:, None]
        one, other = np.where(swap_N1, second.parts, first.parts), np.where(swap_N1, first.parts, second.parts)
        outcomes.append(abs(value(one.sum(axis=0), other.sum(axis=0))) >= observed - 1e-9)
    return float(np.mean(outcomes))


def test_p_is_that_of_swapped_answers() -> None:
    pairs: list[tuple[Score, Score]] = [
        (MacroF1(one.labels[:10], one.answers[:10]), MacroF1(one.labels[:10], other.answers[:10]))
        for one, other in [(macro_f1(0.1), macro_f1(0.5, number=1))]
    ]
    one, other = spearman(0.5), spearman(4.0, number=1)
    pairs.append((Spearman(one.labels[:10], one.answers[:10]), Spearman(one.labels[:10], other.answers[:10])))
    for first, second in pairs:

        def difference(one: np.ndarray, other: np.ndarray, first: Score = first, second: Score = second) -> float:
            return float(first.of_sums(one) - second.of_sums(other))

        expected = swapped_p(first, second, difference)
        assert compare_scores([0], [first], [second]).pooled.p == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("better", "worse"), [(macro_f1(0.05), macro_f1(0.3, number=1)), (spearman(0.5), spearman(3.0, number=1))])
def test_a_clear_difference_is_found_and_changes_sign_with_the_rows(better: Score, worse: Score) -> None:
    found = compare_scores([0], [better], [worse])
    assert found.difference == pytest.approx(better.value - worse.value)
    assert 0 < found.low < found.difference < found.high
    assert found.pooled.p == 1 / (SWAPS + 1)
    assert found.over_seeds is None
    reverse = compare_scores([0], [worse], [better])
    assert (reverse.low, reverse.high) == pytest.approx((-found.high, -found.low))
    assert reverse.pooled.p == found.pooled.p


@pytest.mark.parametrize("score", [macro_f1(0.2), spearman(1.0)])
def test_equal_answers_do_not_differ(score: Score) -> None:
    found = compare_scores([0, 1], [score, score], [score, score])
    assert (found.difference, found.low, found.high, found.over_seeds, found.pooled.p) == (0, 0, 0, (0, 0), 1)


def test_answers_on_another_scale_have_the_same_correlation() -> None:
    score = spearman(1.0)
    found = compare_scores([0], [score], [Spearman(score.labels, np.exp(100 * score.answers / 9))])
    assert (found.difference, found.pooled.p) == (pytest.approx(0, abs=1e-12), 1)


@pytest.mark.parametrize("make", [macro_f1, spearman])
def test_seeds_that_differ_widen_the_interval(make: Callable[..., Score]) -> None:
    def compared(noises: list[float]) -> Comparison:
        rows = [make(noise, number=n) for n, noise in enumerate(noises)]
        return compare_scores(range(len(noises)), rows, [make(0.4, number=50 + n) for n in range(len(noises))])

    alike, unlike = compared([0.2, 0.2, 0.2]), compared([0.02, 0.2, 0.5])
    assert alike.over_seeds is not None
    assert unlike.over_seeds is not None
    assert unlike.over_seeds[1] - unlike.over_seeds[0] > 1.5 * (alike.over_seeds[1] - alike.over_seeds[0])
    low, high = alike.over_seeds
    assert low < alike.difference < high
    assert alike.record()["metric"] == alike.metric
    assert set(alike.record()["pooled"]) == {"p"}


def test_p_is_uniform_where_nothing_differs() -> None:
    ps = []
    for number in range(40):
        labels = np.random.default_rng(1000 + number).normal(size=60)
        first, second = (labels + np.random.default_rng(2 * number + side).normal(size=60) for side in (0, 1))
        ps.append(compare_scores([0], [Spearman(labels, first)], [Spearman(labels, 3 + 5 * second)]).pooled.p)
    assert 0.25 < np.mean(ps) < 0.75
    assert np.mean(np.array(ps) < 0.05) <= 0.15
