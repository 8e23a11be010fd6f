"""Two models, or two rows of models, compared: pure functions of which test examples each classified correctly. ``resampling`` compares
scores that are no shares of examples.

Shapes: N test examples, S seeds; ``hits`` are bool [N], a row's hits a sequence of S of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.learning.task_rules import Metric

Hits = NDArray[np.bool_]
Floats = NDArray[np.float64]
RESAMPLES = 10_000
LEVEL = 0.95
_DIGITS = 5e-4
_LARGEST_SHARE = 1e3


@dataclass(frozen=True, kw_only=True)
class Discordant:
    """Number of examples that only the first model got right, that only the second got right, and McNemar's two-sided p."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class Resampled:
    """The two-sided p of a test by resampling."""

    p: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row against another over the seeds that both have.

    Attributes:
        seeds: those seeds.
        difference: in the metric, first less second, mean over the seeds; a share, not percent.
        low: lower end of its 95 % interval over draws of test examples, for these models; see ``bootstrap_interval``.
        high: upper end.
        over_seeds: ends of its 95 % interval over draws of seeds too; see ``interval_over_seeds``. None with one seed.
        by_seed: the test of each seed: McNemar's, or for another metric than accuracy that of ``resampling.compare_scores``.
        pooled: McNemar's test of the counts of all seeds together; see ``pooled``. Of another metric, the test of all seeds.
        metric: the primary metric of the task.
    """

    seeds: tuple[int, ...]
    difference: float
    low: float
    high: float
    over_seeds: tuple[float, float] | None
    by_seed: tuple[Discordant | Resampled, ...]
    pooled: Discordant | Resampled
    metric: Metric = "accuracy"

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval to report: over seeds and examples where there are several seeds."""
        return self.over_seeds or (self.low, self.high)

    def record(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        by_seed = [{"seed": seed, **vars(one)} for seed, one in zip(self.seeds, self.by_seed, strict=True)]
        over_seeds = None if self.over_seeds is None else list(self.over_seeds)
        intervals = {"difference": self.difference, "interval": [self.low, self.high], "interval_over_seeds": over_seeds}
        metric = {} if self.metric == "accuracy" else {"metric": self.metric}
        return {**metric, "seeds": list(self.seeds), **intervals, "pooled": vars(self.pooled), "by_seed": by_seed}


def compare_hits(seeds: Sequence[int], first: Sequence[Hits], second: Sequence[Hits]) -> Comparison:
    """Compare two rows on the same examples, seed by seed and together.

    Args:
        seeds: S of them, at least one.
        first: hits of one row, S × bool [N].
        second: hits of the other, seed by seed on the same examples.
    """
    by_seed = tuple(mcnemar(one, other) for one, other in zip(first, second, strict=True))
    gained_SN = np.stack([one.astype(np.int64) - other for one, other in zip(first, second, strict=True)])
    low, high = bootstrap_interval(gained_SN.sum(axis=0), seeds=len(seeds))
    return Comparison(
        seeds=tuple(seeds),
        difference=float(gained_SN.mean()),
        low=low,
        high=high,
        over_seeds=interval_over_seeds(gained_SN) if len(seeds) > 1 else None,
        by_seed=by_seed,
        pooled=pooled(by_seed),
    )


def mcnemar(first: Hits, second: Hits) -> Discordant:
    """Return McNemar's exact test of two models on the same examples (McNemar 1947): the discordant counts and the two-sided binomial p."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return Discordant(only_first=only_first, only_second=only_second, p=_binomial_p(only_first, only_second))


def pooled(tests: Sequence[Discordant]) -> Discordant:
    """Return McNemar's exact test of the summed discordant counts.

    The seeds share their test texts, so the summed counts are not independent: a text on which all seeds agree counts once per seed, which
    makes this p too small; nor does it account for the variance between seeds. It must not be used alone; ``interval_over_seeds`` has
    neither fault.
    """
    only_first, only_second = sum(one.only_first for one in tests), sum(one.only_second for one in tests)
    return Discordant(only_first=only_first, only_second=only_second, p=_binomial_p(only_first, only_second))


def bootstrap_interval(gained_N: NDArray[Any], *, seeds: int, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval (Efron 1979) of a paired difference in accuracy, over draws of test examples.

    ``gained_N`` has few distinct values, so a resample of N examples is drawn as the count of each value, which is multinomial: the same
    distribution as drawing N indices, at a cost that does not grow with N. The interval is for these models on other texts and does not
    include the variance between seeds; ``interval_over_seeds`` has both.

    Args:
        gained_N: int64, for each example the number of seeds whose model of the first row was right, less that of the second row.
        seeds: S; ``gained_N / S`` is the example's difference, averaged over the seeds.
        resamples: number of resamples.
        seed: of the draws.
    """
    values, counts = np.unique(gained_N, return_counts=True)
    samples = np.random.default_rng(seed).multinomial(len(gained_N), counts / len(gained_N), size=resamples)
    differences = samples @ values / (len(gained_N) * seeds)
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def interval_over_seeds(gained_SN: NDArray[Any], *, largest: float = 1.0) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a paired difference in accuracy, or another score, over draws of seeds and of test examples.

    Both are crossed random effects, like readers and cases in studies of X-ray reading (Dorfman, Berbaum & Metz 1992): the mean of the
    S · N differences has the variance (MS_N + MS_S - MS_SN) / (S · N), and its degrees of freedom are Satterthwaite's (1946). Where seeds
    differ no more than the examples explain, MS_S is set to MS_SN. Few seeds give a wide interval because their variance is poorly known.

    Args:
        gained_SN: int64, 1 where only the first row's model was right, -1 where only the second's was, else 0; at least two seeds. Of
            another score, differences of pseudo-values.
        largest: no difference is larger.
    """
    from scipy.stats import t

    seeds, examples = gained_SN.shape
    mean, by_seed_S, by_example_N = gained_SN.mean(), gained_SN.mean(axis=1), gained_SN.mean(axis=0)
    freedom_S, freedom_N = seeds - 1, max(examples - 1, 1)
    rest_SN = gained_SN - by_seed_S[:, None] - by_example_N + mean
    square_rest = float((rest_SN**2).sum()) / (freedom_S * freedom_N)
    square_examples = seeds * float(((by_example_N - mean) ** 2).sum()) / freedom_N
    square_seeds = max(examples * float(((by_seed_S - mean) ** 2).sum()) / freedom_S, square_rest)
    square = square_examples + square_seeds - square_rest
    if square == 0:
        return float(mean), float(mean)
    parts = square_examples**2 / freedom_N + square_seeds**2 / freedom_S + square_rest**2 / (freedom_S * freedom_N)
    half = float(t.ppf((1 + LEVEL) / 2, square**2 / parts)) * (square / (seeds * examples)) ** 0.5
    return max(float(mean) - half, -largest), min(float(mean) + half, largest)


def holm(ps: Sequence[float]) -> list[float]:
    """Return each p adjusted for multiple comparisons (Holm 1979): at 0.05 the chance of any false finding is at most 0.05."""
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda n: ps[n])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted


def _binomial_p(only_first: int, only_second: int) -> float:
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def share_interval(whole_SN: Floats, part_SN: Floats) -> tuple[float, float] | None:
    """Return the ends of the 95 % interval of ``mean(part) / mean(whole)``, a share of one difference that another one is.

    It has the shares r for which 0 is in the interval of ``mean(part - r · whole)`` (Fieller 1954, *Some problems in interval estimation*),
    over draws of seeds and examples, or of examples alone where there is one seed. None where 0 is in the interval of ``mean(whole)``: then
    shares of any size are in it.

    Args:
        whole_SN: differences of S seeds on N examples, or of pseudo-values.
        part_SN: others, of the same seeds and examples.
    """

    def holds(part: float, whole: float) -> bool:
        mixed_SN = part * part_SN - whole * whole_SN
        low, high = interval_over_seeds(mixed_SN, largest=np.inf) if len(mixed_SN) > 1 else bootstrap_interval(mixed_SN[0], seeds=1)
        return low <= 0 <= high

    if holds(0.0, 1.0):
        return None
    share = float(part_SN.mean() / whole_SN.mean())
    low, high = _last_held(share, -1.0, holds), _last_held(share, 1.0, holds)
    return None if low is None or high is None else (low, high)


def _last_held(share: float, step: float, holds: Callable[[float, float], bool]) -> float | None:
    """Return the last share in the direction of ``step`` that is in the interval, to three digits; None if it is out of all reason."""
    inside, outside = share, share + step
    while holds(1.0, outside):
        inside, outside = outside, share + 2 * (outside - share)
        if abs(outside) > _LARGEST_SHARE:
            return None
    while abs(outside - inside) > _DIGITS:
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(1.0, middle) else (inside, middle)
    return inside
