"""Macro-F1 and Spearman's correlation of two rows compared. Unlike accuracy neither is a mean over texts, so no counts of discordant texts
can be tested: p and intervals are from resampling.

Shapes: N test examples, K classes, C sums over examples, R draws, S seeds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from train.evidence.statistics import LEVEL, Comparison, Resampled, interval_over_seeds
from train.learning.task_rules import Metric

Floats = NDArray[np.float64]
# Draws for an interval, and for a p, whose smallest value is 1 / (SWAPS + 1).
RESAMPLES, SWAPS = 2_000, 9_999
# Numbers in memory at a time.
_AT_ONCE = 4_000_000


class Score(Protocol):
    """A model's score on the test examples, as a function of them."""

    @property
    def metric(self) -> Metric:
        """Which score."""

    @property
    def largest(self) -> float:
        """The largest difference of two such scores."""

    @property
    def value(self) -> float:
        """The score."""

    @property
    def influence(self) -> Floats:
        """float64 [N], mean 0: how the score changes with the weight of each example, its derivative (Jaeckel 1972). ``value + influence``
        are the pseudo-values of the infinitesimal jackknife (Efron 1982, §6); of accuracy they would be the hits."""

    @property
    def bootstrapped(self) -> Floats:
        """float64 [R], the score of each draw of N examples; the draws are the same for every model. NaN where it is undefined."""

    @property
    def parts(self) -> Floats:
        """float64 [N, C], what each example's answer adds to the sums of which the score is a function."""

    def of_sums(self, sums_RC: Floats) -> Floats:
        """Return the scores that belong to such sums."""


@dataclass(frozen=True)
class MacroF1:
    """Mean F1 of the classes: ``1/K · Σ_k 2 t_k / n_k`` with t the texts that have the class and are given it, and n how many have it plus
    how many are given it.

    Attributes:
        labels: bool [N, K], the classes of each text.
        answers: bool [N, K], the classes that the model gives it.
    """

    labels: NDArray[np.bool_]
    answers: NDArray[np.bool_]
    metric: Metric = "macro_f1"
    largest: float = 1.0

    @cached_property
    def parts(self) -> Floats:
        """float64 [N, 2 K], the contributions to t, then to n."""
        return np.hstack([self.labels & self.answers, self.labels.astype(np.float64) + self.answers])

    def of_sums(self, sums_RC: Floats) -> Floats:
        """Return the macro-F1; 0 for a class that is neither label nor answer."""
        found_RK, named_RK = np.split(sums_RC, 2, axis=-1)
        return np.asarray((2 * found_RK / np.maximum(named_RK, 1)).mean(axis=-1))

    @cached_property
    def value(self) -> float:
        """The macro-F1."""
        return float(self.of_sums(self.parts.sum(axis=0)))

    @cached_property
    def influence(self) -> Floats:
        """``N/K · Σ_k (2 / n_k · t_ik - 2 t_k / n_k² · n_ik)`` of example i."""
        found_K, named_K = np.split(self.parts.sum(axis=0), 2)
        each_K = np.maximum(named_K, 1)
        slopes_C = np.concatenate([2 / each_K, -2 * found_K / each_K**2])
        return np.asarray(len(self.labels) / len(found_K) * (self.parts @ slopes_C))

    @cached_property
    def bootstrapped(self) -> Floats:
        """float64 [R]."""
        return np.concatenate([self.of_sums(counts_RN @ self.parts) for counts_RN in _draws(len(self.labels))])


@dataclass(frozen=True)
class Spearman:
    """Pearson's correlation of the ranks; equal numbers have their mean rank.

    Attributes:
        labels: float [N], the number of each text.
        answers: float64 [N], what the model says; neither all equal.
    """

    labels: Floats
    answers: Floats
    metric: Metric = "spearman"
    largest: float = 2.0

    @cached_property
    def _grades(self) -> tuple["_Grades", "_Grades"]:
        return _Grades(self.labels), _Grades(self.answers)

    @cached_property
    def _even(self) -> tuple[Floats, Floats]:
        """The grades in a sample with each example once."""
        once_1N = np.ones((1, len(self.labels)))
        right, said = (grades.of(once_1N)[0] for grades in self._grades)
        return right, said

    @cached_property
    def parts(self) -> Floats:
        """float64 [N, 3]: product of both grades, grade of the answer, its square, as distances from their mean, ½."""
        right_N, said_N = (grades_N - 0.5 for grades_N in self._even)
        return np.stack([right_N * said_N, said_N, said_N**2], axis=1)

    def of_sums(self, sums_RC: Floats) -> Floats:
        """Return the correlation of the labels' grades with grades that have such sums. Swapped grades are not graded anew."""
        count, right_N = len(self.labels), self._even[0] - 0.5
        product_R, first_R, second_R = np.moveaxis(sums_RC, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(product_R / np.sqrt((right_N @ right_N) * (second_R - first_R**2 / count)))

    @cached_property
    def value(self) -> float:
        """The correlation."""
        return float(self.of_sums(self.parts.sum(axis=0)))

    @cached_property
    def influence(self) -> Floats:
        """Derivative of ``cov(U, V) / √(var U · var V)``; an example changes the grades of those above it too."""
        right, said = self._grades
        right_N, said_N = self._even
        products = [
            _slopes(right, right_N, said, said_N),
            _slopes(right, right_N, right, right_N),
            _slopes(said, said_N, said, said_N),
        ]
        covariance, of_right, of_said = (float((first * second).mean()) - 0.25 for first, second in _pairs(right_N, said_N))
        scale = (of_right * of_said) ** 0.5
        change_N = products[0] / scale - covariance / scale / 2 * (products[1] / of_right + products[2] / of_said)
        return np.asarray(change_N)

    @cached_property
    def bootstrapped(self) -> Floats:
        """float64 [R], the answers and labels of each draw graded anew."""
        values = []
        for counts_RN in _draws(len(self.labels)):
            right_RN, said_RN = (grades.of(counts_RN) - 0.5 for grades in self._grades)
            product_R, square_R, said_square_R = ((counts_RN * one * two).sum(axis=1) for one, two in _pairs(right_RN, said_RN))
            with np.errstate(invalid="ignore", divide="ignore"):
                values.append(product_R / np.sqrt(square_R * said_square_R))
        return np.concatenate(values)


class _Grades:
    """The grades of numbers in weighted samples: the share of the sample that is smaller, and half of that which is equal. Their mean is
    always ½, and ranks are N times the grades plus ½."""

    def __init__(self, numbers_N: Floats) -> None:
        _, self._place_N, counts_G = np.unique(numbers_N, return_inverse=True, return_counts=True)
        self._order_N = np.argsort(self._place_N, kind="stable")
        self._starts_G = np.concatenate([[0], np.cumsum(counts_G)[:-1]])

    def of(self, counts_RN: Floats) -> Floats:
        """Return the grades, float64 [R, N], in samples with so many of each example."""
        weight_RG = self._by_group(counts_RN)
        middle_RG = np.cumsum(weight_RG, axis=1) - weight_RG / 2
        return np.asarray(middle_RG[:, self._place_N] / counts_RN.shape[1])

    def mean_above(self, values_N: Floats) -> Floats:
        """Return, for each example, ``1/N · Σ`` of the values of those with a greater number, and half of those with an equal one."""
        sum_1G = self._by_group(values_N[None])
        above_1G = sum_1G.sum() - np.cumsum(sum_1G, axis=1) + sum_1G / 2
        return np.asarray(above_1G[0, self._place_N] / len(values_N))

    def _by_group(self, values_RN: Floats) -> Floats:
        return np.asarray(np.add.reduceat(values_RN[:, self._order_N], self._starts_G, axis=1))


def _slopes(first: _Grades, first_N: Floats, second: _Grades, second_N: Floats) -> Floats:
    """Return the derivative of the mean product of two grades with the weight of each example."""
    return first_N * second_N + first.mean_above(second_N) + second.mean_above(first_N) - 3 * float((first_N * second_N).mean())


def _pairs(first: Floats, second: Floats) -> tuple[tuple[Floats, Floats], ...]:
    return (first, second), (first, first), (second, second)


def _draws(examples: int) -> Iterator[Floats]:
    """Yield how often each example is drawn, float64 [R, N] in parts of R: the same for every model."""
    generator = np.random.default_rng(0)
    step = max(1, _AT_ONCE // examples)
    for first in range(0, RESAMPLES, step):
        draws = min(step, RESAMPLES - first)
        places = generator.integers(examples, size=(draws, examples)) + examples * np.arange(draws)[:, None]
        yield np.bincount(places.ravel(), minlength=draws * examples).reshape(draws, examples).astype(np.float64)


def compare_scores(seeds: Sequence[int], first: Sequence[Score], second: Sequence[Score]) -> Comparison:
    """Compare two rows on the same examples, seed by seed and together.

    * The interval over draws of texts is that of the paired bootstrap (Efron & Tibshirani 1993, §13.3; Koehn 2004, aclanthology W04-3250).
    * The interval over draws of seeds and texts is ``interval_over_seeds`` of pseudo-values, as Dorfman, Berbaum & Metz (1992) do with
      areas under ROC curves.
    * p is that of approximate randomization (Noreen 1989; Yeh 2000, aclanthology C00-2137, who tests F1 with it): how often rows whose
      answers to each text are swapped with probability ½ differ at least as much. The answers of all seeds to a text are swapped together.

    Args:
        seeds: S of them, at least one.
        first: scores of one row's models.
        second: scores of the other's, seed by seed on the same examples.
    """
    pairs = list(zip(first, second, strict=True))
    differences_S = np.array([one.value - other.value for one, other in pairs])
    drawn_SR = np.stack([one.bootstrapped - other.bootstrapped for one, other in pairs])
    low, high = np.nanquantile(drawn_SR.mean(axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    gained_SN = np.stack([one.influence - other.influence for one, other in pairs]) + differences_S[:, None]
    by_seed, pooled = _randomized(pairs)
    return Comparison(
        seeds=tuple(seeds),
        difference=float(differences_S.mean()),
        low=float(low),
        high=float(high),
        over_seeds=interval_over_seeds(gained_SN, largest=first[0].largest) if len(seeds) > 1 else None,
        by_seed=tuple(map(Resampled, by_seed)),
        pooled=Resampled(pooled),
        metric=first[0].metric,
    )


def _randomized(pairs: Sequence[tuple[Score, Score]]) -> tuple[list[float], float]:
    """Return the p of each seed, and of all together."""
    generator = np.random.default_rng(0)
    moved = [other.parts - one.parts for one, other in pairs]
    differ_N = np.any([(moved_NC != 0).any(axis=1) for moved_NC in moved], axis=0)  # a swap of equal answers changes nothing
    counts_S, count = np.zeros(len(pairs)), 0
    step = max(1, _AT_ONCE // max(int(differ_N.sum()), 1))
    observed_S = np.array([one.value - other.value for one, other in pairs])
    for start in range(0, SWAPS, step):
        swaps_RN = generator.integers(2, size=(min(step, SWAPS - start), int(differ_N.sum()))).astype(np.float64)
        swapped_SR = np.stack(
            [
                one.of_sums(one.parts.sum(axis=0) + swaps_RN @ moved_NC[differ_N])
                - other.of_sums(other.parts.sum(axis=0) - swaps_RN @ moved_NC[differ_N])
                for (one, other), moved_NC in zip(pairs, moved, strict=True)
            ]
        )
        # Sums in another order round differently; a swap of everything gives the same difference.
        counts_S += (np.abs(swapped_SR) >= np.abs(observed_S)[:, None] - 1e-9).sum(axis=1)
        count += int((np.abs(swapped_SR.mean(axis=0)) >= abs(observed_S.mean()) - 1e-9).sum())
    return [(1 + float(one)) / (1 + SWAPS) for one in counts_S], (1 + count) / (1 + SWAPS)
