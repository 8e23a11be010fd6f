"""Membership inference: figures beside scikit-learn's and the formulas, a planted leak, and none."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from train.evidence.membership import (
    OWN_VARIANCE_FROM,
    Ranking,
    Sampled,
    confidence,
    estimate,
    features,
    lira,
    negative_loss,
    pooled,
    sampled,
    shadow_attack,
)

Floats = NDArray[np.float64]


def figures(members: Floats, others: Floats) -> dict[str, float]:
    of_all = Ranking(members, others).figures(np.ones((1, len(members))), np.ones((1, len(others))))
    return {name: float(values[0]) for name, values in of_all.items()}


@pytest.mark.parametrize("decimals", [1, 12])  # with many equal scores, and with none
def test_figures_are_those_of_scikit_learn(decimals: int) -> None:
    generator = np.random.default_rng(decimals)
    members, others = generator.normal(0.7, 1, 1500).round(decimals), generator.normal(0, 1, 1200).round(decimals)
    labels, scores = np.repeat([1, 0], [1500, 1200]), np.concatenate([members, others])
    false_rates, true_rates, _ = roc_curve(labels, scores, drop_intermediate=False)
    ours = figures(members, others)
    assert ours["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert ours["tpr_at_0.01"] == pytest.approx(true_rates[false_rates <= 0.01].max())
    assert ours["tpr_at_0.001"] == pytest.approx(true_rates[false_rates <= 0.001].max())


def test_a_weighted_sample_is_one_with_repeated_texts() -> None:
    generator = np.random.default_rng(0)
    members, others = generator.integers(0, 40, 60).astype(float), generator.integers(0, 30, 150).astype(float)
    weights_M, weights_O = generator.integers(0, 3, 60), generator.integers(0, 3, 150)
    weighted = Ranking(members, others).figures(weights_M[None].astype(float), weights_O[None].astype(float))
    repeated = figures(np.repeat(members, weights_M), np.repeat(others, weights_O))
    naive = np.mean([(m > o) + (m == o) / 2 for m, o in product(np.repeat(members, weights_M), np.repeat(others, weights_O))])
    assert weighted["auc"][0] == pytest.approx(repeated["auc"]) == pytest.approx(naive)
    assert weighted["tpr_at_0.01"][0] == pytest.approx(repeated["tpr_at_0.01"])


def test_a_rate_is_told_only_where_one_text_is_no_more_than_it() -> None:
    scores = np.arange(2000.0)
    assert set(figures(scores, scores[:99])) == {"auc"}
    assert set(figures(scores, scores[:999])) == {"auc", "tpr_at_0.01"}
    assert set(figures(scores, scores[:1000])) == {"auc", "tpr_at_0.01", "tpr_at_0.001"}


def test_the_best_score_of_non_members_leaves_nothing_at_a_low_rate() -> None:
    assert figures(np.zeros(50), np.ones(200))["tpr_at_0.01"] == 0
    assert figures(np.zeros(50), np.zeros(200)) == {"auc": 0.5, "tpr_at_0.01": 0}
    assert figures(np.ones(50), np.zeros(200)) == {"auc": 1, "tpr_at_0.01": 1}


def test_confidence_is_the_logit_of_the_probability_of_the_label() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (7, 4))
    labels = np.arange(7) % 4
    p = np.exp(logits)[np.arange(7), labels] / np.exp(logits).sum(axis=1)
    one = confidence("single-label", labels, logits)
    np.testing.assert_allclose(one, np.log(p / (1 - p)))
    np.testing.assert_allclose(negative_loss(one), np.log(p))
    targets = (logits + 0.5 > 0).astype(np.float32)
    each = 1 / (1 + np.exp(-logits))
    p = np.where(targets > 0, each, 1 - each).prod(axis=1)
    several = confidence("multi-label", targets, logits)
    np.testing.assert_allclose(several, np.log(p / (1 - p)))
    np.testing.assert_allclose(negative_loss(several), np.log(p))


def test_the_surest_answers_stay_finite_and_in_order() -> None:
    single = confidence("single-label", np.zeros(3, int), np.array([[40.0, 0], [80, 0], [900, 0]]))
    assert single.tolist() == [40, 80, 900]
    several = confidence("multi-label", np.ones((3, 2)), np.array([[20.0, 20], [30, 30], [900, 900]]))
    assert np.isfinite(several).all()
    assert (np.diff(several) > 0).all()
    assert np.isfinite(features("multi-label", np.ones((1, 2)), np.array([[900.0, -900]]))).all()


def test_features_do_not_depend_on_the_order_of_the_classes() -> None:
    logits, order = np.random.default_rng(0).normal(size=(5, 12)), np.random.default_rng(1).permutation(12)
    labels = np.arange(5)
    moved = features("single-label", np.argsort(order)[labels], logits[:, order])
    ours = features("single-label", labels, logits)
    assert ours.shape == (5, 10)
    np.testing.assert_allclose(ours, moved)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(ours[0, 1:], np.sort(np.delete(log_p[0], 0))[::-1][:9])


@pytest.mark.parametrize("shadows", [4, OWN_VARIANCE_FROM])
def test_lira_has_the_order_of_its_formula(shadows: int) -> None:
    generator = np.random.default_rng(0)
    unseen = generator.normal(size=(50, 1)) * 3 + generator.normal(size=(50, shadows)) * generator.uniform(0.5, 2, (50, 1))
    observed = unseen.mean(axis=1) + generator.normal(size=50)
    own = np.array([np.std(one, ddof=1) for one in unseen])
    spread = own if shadows == OWN_VARIANCE_FROM else np.sqrt((own**2).mean())
    np.testing.assert_allclose(norm.cdf(lira(observed, unseen)), 1 - norm.sf((observed - unseen.mean(axis=1)) / spread))


def answers(generator: np.random.Generator, difficulty_N: Floats, gain_N: Floats) -> Floats:
    """Logits of a model for texts of label 0: of each by its difficulty, by noise of the training, and more where it has memorised it."""
    first_N = -difficulty_N + gain_N + generator.normal(0, 0.5, len(difficulty_N))
    return np.column_stack([first_N, np.zeros_like(first_N), np.full_like(first_N, -1)])


def attacked(*, leak: float, seed: int = 0, shadows: int = 16) -> dict[str, tuple[Floats, Floats]]:
    """Scores of members and non-members by every attack: 600 texts of which the model has memorised half, shadows other halves."""
    generator = np.random.default_rng(seed)
    difficulty_N, labels_N = generator.normal(0, 2, 600), np.zeros(600, np.int64)
    is_member_N = np.arange(600) < 300
    halves = [generator.permutation(600) < 300 for _ in range(shadows // 2)]
    seen = [one for half in halves for one in (half, ~half)]
    logits = [answers(generator, difficulty_N, leak * one) for one in seen]
    observed = answers(generator, difficulty_N, leak * is_member_N)
    sure = [confidence("single-label", labels_N, one) for one in logits]
    unseen_NP = np.column_stack([np.where(seen[2 * n], sure[2 * n + 1], sure[2 * n]) for n in range(shadows // 2)])
    own_N = confidence("single-label", labels_N, observed)
    read = [(features("single-label", labels_N, one), two) for one, two in zip(logits, seen, strict=True)]
    by_attack = {"loss": negative_loss(own_N), "lira": lira(own_N, unseen_NP)}
    if leak:
        by_attack["shadow"] = shadow_attack(read, features("single-label", labels_N, observed), seed=0)
    return {name: (scores_N[is_member_N], scores_N[~is_member_N]) for name, scores_N in by_attack.items()}


def test_a_planted_leak_is_found_and_lira_finds_most() -> None:
    areas = {name: figures(*scores)["auc"] for name, scores in attacked(leak=2.0).items()}
    assert 0.6 < areas["loss"] < 0.85
    assert 0.6 < areas["shadow"] < 0.85
    assert areas["lira"] > 0.97
    assert all(figures(*scores)["auc"] > 0.99 for scores in attacked(leak=20.0).values())


def test_without_a_leak_the_interval_has_a_half() -> None:
    each = [estimate(sampled([attacked(leak=0.0, seed=seed, shadows=8)["lira"]])["auc"], texts=300) for seed in range(20)]
    assert sum(one.low <= 0.5 <= one.high for one in each) >= 15
    assert np.mean([one.value for one in each]) == pytest.approx(0.5, abs=0.015)


def test_an_interval_over_seeds_is_wider_where_seeds_differ() -> None:
    generator = np.random.default_rng(0)
    others, noise = generator.normal(0, 1, 400), generator.normal(0, 1, 400)
    same = sampled([(noise + 0.5, others)] * 3)["auc"]
    apart = sampled([(noise + shift, others) for shift in (0.2, 0.5, 0.8)])["auc"]
    equal, wide = estimate(same, texts=400), estimate(apart, texts=400)
    one = estimate(same.take([0]), texts=400)
    assert equal.high - equal.low == pytest.approx(one.high - one.low, rel=0.1)
    assert wide.high - wide.low > 2 * (equal.high - equal.low)
    assert wide.value == pytest.approx(apart.values_S.mean())


def test_the_interval_over_seeds_is_the_written_formula() -> None:
    generator = np.random.default_rng(0)
    values, drawn = np.array([0.6, 0.7, 0.65]), np.array([[0.6], [0.7], [0.65]]) + generator.normal(0, 0.01, (3, 500))
    ours = estimate(Sampled(values_S=values, drawn_SR=drawn), texts=100)
    of_texts = drawn.mean(axis=0).var()
    of_both = sum((one - drawn.mean(axis=0)).var() for one in drawn) / 6
    of_seeds = values.var(ddof=1) / 3
    variance = of_texts + of_seeds - of_both
    freedom = variance**2 / (of_texts**2 / 99 + of_seeds**2 / 2 + of_both**2 / 198)
    from scipy.stats import t

    assert ours.high - ours.value == pytest.approx(t.ppf(0.975, freedom) * variance**0.5)


def test_members_that_a_mask_leaves_out_do_not_count() -> None:
    generator = np.random.default_rng(0)
    members, others, mask = generator.normal(1, 1, 300), generator.normal(0, 1, 200), generator.random(300) < 0.5
    masked = sampled([(members, others)] * 2, [mask, ~mask])["auc"]
    assert masked.values_S.tolist() == pytest.approx([figures(members[one], others)["auc"] for one in (mask, ~mask)])
    mean = pooled(masked)
    assert mean.values_S.tolist() == pytest.approx([masked.values_S.mean()])
    whole = estimate(mean, texts=200)
    assert whole.low < whole.value < whole.high
