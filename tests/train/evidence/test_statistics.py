"""Two rows compared: every statistic against a count, a formula or another library."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from train.evidence.statistics import Hits, bootstrap_interval, compare_hits, holm, interval_over_seeds, mcnemar, share_interval

Pairs = list[tuple[bool, bool]]


def binomial_p(only_first: int, only_second: int) -> float:
    """The two-sided exact binomial p, written out."""
    n = only_first + only_second
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n) if n else 1.0


def rows_of_hits(seed: int, first: float, second: float, *, seeds: int = 3, count: int = 300) -> tuple[list[Hits], list[Hits]]:
    """Hits of two rows that find the same examples hard: a model is right where an example's difficulty is below its skill."""
    generator = np.random.default_rng(seed)
    difficulty = generator.random(count)
    noise = generator.normal(0, 0.05, (2, seeds, count))
    return [difficulty + noise[0, n] < first for n in range(seeds)], [difficulty + noise[1, n] < second for n in range(seeds)]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemars_p_is_the_two_sided_binomial(pairs: Pairs) -> None:
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    found = mcnemar(first, second)
    b, c = (sum(one and not other for one, other in pairs), sum(other and not one for one, other in pairs))
    assert (found.only_first, found.only_second) == (b, c)
    assert found.p == pytest.approx(binomial_p(b, c), rel=1e-9)


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=8, max_size=8), min_size=1, max_size=5))
def test_the_pooled_test_is_that_of_the_summed_counts(seeds: list[Pairs]) -> None:
    first = [np.array([one for one, _ in pairs]) for pairs in seeds]
    second = [np.array([other for _, other in pairs]) for pairs in seeds]
    found = compare_hits(range(len(seeds)), first, second)
    counts = [(sum(one and not other for one, other in pairs), sum(other and not one for one, other in pairs)) for pairs in seeds]
    assert [(one.only_first, one.only_second) for one in found.by_seed] == counts
    assert [one.p for one in found.by_seed] == pytest.approx([binomial_p(b, c) for b, c in counts], rel=1e-9)
    b, c = (sum(side) for side in zip(*counts, strict=True))
    assert (found.pooled.only_first, found.pooled.only_second) == (b, c)
    assert found.pooled.p == pytest.approx(binomial_p(b, c), rel=1e-9)
    assert found.difference == pytest.approx((b - c) / (8 * len(seeds)))


def test_the_bootstrap_equals_that_of_resampled_examples() -> None:
    first, second = rows_of_hits(1, 0.80, 0.75)
    found = compare_hits((0, 1, 2), first, second)
    differences_N = (np.stack(first).astype(float) - np.stack(second).astype(float)).mean(axis=0)
    reference = scipy.stats.bootstrap((differences_N,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5))
    low, high = reference.confidence_interval
    # Two estimates of a quantile from 10,000 and 20,000 resamples differ by some hundredths of the interval's width.
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.04 * (high - low))
    assert found.low < found.difference < found.high


def test_the_interval_narrows_as_the_normal_one_does() -> None:
    first, second = rows_of_hits(2, 0.80, 0.75, seeds=1, count=20_000)
    found = compare_hits((0,), first, second)
    differences_N = first[0].astype(float) - second[0].astype(float)
    half = 1.96 * differences_N.std() / math.sqrt(len(differences_N))
    assert [found.low, found.high] == pytest.approx([found.difference - half, found.difference + half], abs=0.05 * half)


def test_copies_of_a_model_do_not_narrow_the_interval() -> None:
    # Three copies of a pair of models are no more evidence than the pair: the interval reflects this, the pooled p does not.
    (first, *_), (second, *_) = rows_of_hits(3, 0.80, 0.76)
    alone, copied = compare_hits((0,), [first], [second]), compare_hits((0, 1, 2), [first] * 3, [second] * 3)
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert copied.pooled.p < alone.pooled.p


def gains(generator: np.random.Generator, *, spread: float, seeds: int, count: int = 400, hard: float = 0.3) -> NDArray[np.int64]:
    """Differences of two rows that are equally good on average, with random effects of seed and text."""
    skill_S1 = generator.normal(0, spread, (seeds, 1))
    of_text_N = generator.normal(0, hard, count)
    first, second = (generator.normal(0, 0.5, (seeds, count)) + sign * (skill_S1 + of_text_N) / 2 > 0 for sign in (1, -1))
    return first.astype(np.int64) - second


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (5, 0.0), (3, 0.2), (5, 0.2), (10, 0.2)])
def test_the_interval_over_seeds_has_its_nominal_coverage(seeds: int, spread: float) -> None:
    generator = np.random.default_rng(seeds)
    intervals = [interval_over_seeds(gains(generator, spread=spread, seeds=seeds)) for _ in range(400)]
    # 95 %, and three standard errors of 400 draws; without any spread between seeds it is wider than it needs to be.
    assert 0.917 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 1.0


def test_the_bootstrap_over_texts_undercovers_where_seeds_differ() -> None:
    """The reason for ``interval_over_seeds``."""
    generator = np.random.default_rng(0)
    samples = [gains(generator, spread=0.2, seeds=5) for _ in range(100)]
    inside = [low <= 0 <= high for low, high in (bootstrap_interval(one.sum(axis=0), seeds=5, resamples=1000) for one in samples)]
    assert np.mean(inside) < 0.8


def test_the_interval_over_seeds_is_the_analysis_of_variance() -> None:
    gained = gains(np.random.default_rng(4), spread=0.4, seeds=4, count=50)
    rows, columns, mean = gained.mean(axis=1), gained.mean(axis=0), gained.mean()
    square_seeds = 50 * sum((value - mean) ** 2 for value in rows) / 3
    square_texts = 4 * sum((value - mean) ** 2 for value in columns) / 49
    square_rest = sum((gained[s, n] - rows[s] - columns[n] + mean) ** 2 for s in range(4) for n in range(50)) / (3 * 49)
    assert square_seeds > square_rest, "this seed gives rows whose seeds differ"
    variance = (square_seeds + square_texts - square_rest) / 200
    freedom = (200 * variance) ** 2 / (square_seeds**2 / 3 + square_texts**2 / 49 + square_rest**2 / 147)
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert interval_over_seeds(gained) == pytest.approx((mean - half, mean + half))


def test_with_many_texts_it_is_students_t_interval_of_the_seeds() -> None:
    gained = gains(np.random.default_rng(5), spread=1.0, seeds=6, count=20_000, hard=0.01)
    by_seed = gained.mean(axis=1)
    half = scipy.stats.t.ppf(0.975, 5) * by_seed.std(ddof=1) / math.sqrt(6)
    assert interval_over_seeds(gained) == pytest.approx((by_seed.mean() - half, by_seed.mean() + half), abs=0.02 * half)


def test_intervals_stay_within_minus_1_and_1() -> None:
    low, high = interval_over_seeds(np.array([[1, 1, 1, 1], [-1, -1, 1, 1]]))
    assert (low, high) == (-1.0, 1.0)


def test_equal_seeds_give_an_interval_of_no_width_and_one_seed_none() -> None:
    assert interval_over_seeds(np.ones((3, 5), np.int64)) == (1.0, 1.0)
    assert interval_over_seeds(np.array([[1], [1]])) == (1.0, 1.0)
    first, second = rows_of_hits(1, 0.8, 0.7, seeds=2)
    assert compare_hits((0,), first[:1], second[:1]).over_seeds is None
    two = compare_hits((0, 1), first, second)
    assert two.over_seeds == two.interval
    assert two.over_seeds is not None
    assert two.over_seeds[0] <= two.low <= two.high <= two.over_seeds[1]


def test_the_bootstrap_depends_on_its_seed_alone() -> None:
    gained_N = np.array([1, 0, -1, 2, 0, 0, 1, 3, -2, 0] * 20)
    again = [bootstrap_interval(gained_N, seeds=3) for _ in range(2)]
    assert again[0] == again[1]
    assert bootstrap_interval(gained_N, seeds=3, seed=1) != again[0]


def test_equal_models_give_an_interval_of_no_width() -> None:
    hits = np.array([True, False, True])
    found = compare_hits((0,), [hits], [hits])
    assert (found.difference, found.low, found.high, found.pooled.p) == (0.0, 0.0, 0.0, 1.0)


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(ps: list[float]) -> None:
    adjusted = holm(ps)
    for level in (0.01, 0.05, 0.2):
        rejected, order = set(), sorted(range(len(ps)), key=lambda n: ps[n])
        for rank, place in enumerate(order):
            if not (len(ps) - rank) * ps[place] <= level:
                break
            rejected.add(place)
        assert {n for n, p in enumerate(adjusted) if p <= level} == rejected


def test_a_comparison_is_recorded_as_json() -> None:
    first, second = rows_of_hits(4, 0.8, 0.7, seeds=2, count=40)
    record = compare_hits((3, 4), first, second).record()
    assert record["seeds"] == [3, 4]
    assert [one["seed"] for one in record["by_seed"]] == [3, 4]
    assert record["pooled"]["only_first"] == sum(one["only_first"] for one in record["by_seed"])
    assert record["interval"][0] <= record["difference"] <= record["interval"][1]


def differences_of(seeds: int, *, mean: float, seed: int = 0) -> np.ndarray:
    """Differences of some seeds on 300 examples, 1, 0 or -1, around a mean."""
    generator = np.random.default_rng(seed)
    return generator.choice([1.0, 0.0, -1.0], p=[0.25 + mean / 2, 0.5, 0.25 - mean / 2], size=(seeds, 300))


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_share_is_in_its_interval_as_long_as_the_rest_may_be_nothing(seeds: int) -> None:
    whole = differences_of(seeds, mean=0.3)
    part = np.where(np.random.default_rng(1).random(whole.shape) < 0.5, whole, 0.0)
    found = share_interval(whole, part)
    assert found is not None
    assert found[0] < part.mean() / whole.mean() < found[1]
    for end, step in zip(found, (-0.01, 0.01), strict=True):
        for share, is_in in ((end, True), (end + step, False)):
            rest = part - share * whole
            low, high = interval_over_seeds(rest, largest=np.inf) if seeds > 1 else bootstrap_interval(rest[0], seeds=1)
            assert (low <= 0 <= high) is is_in


def test_a_share_of_the_whole_and_of_nothing_is_known_exactly() -> None:
    whole = differences_of(3, mean=0.3)
    assert share_interval(whole, whole) == (1.0, 1.0)
    assert share_interval(whole, 0 * whole) == (0.0, 0.0)
    assert share_interval(whole, 2 * whole) == (2.0, 2.0)


def test_nothing_has_no_shares() -> None:
    assert share_interval(differences_of(3, mean=0.0), differences_of(3, mean=0.3, seed=1)) is None
