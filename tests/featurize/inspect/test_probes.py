"""Neighbours and linear probes: they find a planted class, nothing in noise, and agree with scikit-learn and the formulas."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from featurize.inspect import probes
from featurize.inspect.probes import (
    Chance,
    LabelledFeatures,
    Neighbours,
    ProbeExamples,
    accuracy_interval,
    p_value,
    paired_p_value,
    predict_linear,
    probe_classes,
    standardised,
)

CLASSES = 4


def features_of(
    strength: float, *, train: int = 200, validation: int = 100, shared: int = 0, seed: int = 0, width: int = 12
) -> LabelledFeatures:
    chance = np.random.default_rng(seed)
    labels = np.arange(train + validation) % CLASSES
    rows = (chance.normal(size=(train + validation, width)) + strength * chance.normal(size=(CLASSES, width))[labels]).astype(np.float32)
    return LabelledFeatures(
        train_NF=rows[:train],
        train_N=labels[:train],
        validation_VF=rows[train:],
        validation_V=labels[train:],
        picture_V=np.arange(validation),
        is_new_V=np.arange(validation) >= shared,
        classes=CLASSES,
    )


def test_a_planted_class_is_found_by_both() -> None:
    found = probe_classes(features_of(2.0), seed=0)
    for score in (found.knn, found.probe):
        assert score.accuracy > 0.95
        assert score.p == 0.001
        assert abs(score.shuffled_mean - 1 / CLASSES) < 0.15
        assert 0 < score.shuffled_sd < 0.15


def test_where_nothing_is_planted_nothing_is_found() -> None:
    found = [probe_classes(features_of(0.0, seed=seed), seed=seed) for seed in range(6)]
    ps = [score.p for classes in found for score in (classes.knn, classes.probe)]
    assert min(ps) > 0.01
    assert np.mean(ps) > 0.25


def test_the_figures_follow_the_seed() -> None:
    data = features_of(0.3)
    first, again, other = (probe_classes(data, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.knn.shuffled_mean != other.knn.shuffled_mean
    assert first.knn.accuracy == other.knn.accuracy


def test_images_that_train_shares_are_not_scored() -> None:
    data = features_of(0.0, shared=50)
    data.validation_VF[:50], data.validation_V[:50] = data.train_NF[:50], data.train_N[:50]
    found = probe_classes(data, seed=0)
    assert found.examples == ProbeExamples(train=200, validation=50, validation_new=50, validation_shared=50)
    assert found.knn.p > 0.01
    assert found.probe.accuracy_all > found.probe.accuracy


def test_if_train_shares_all_images_all_are_scored() -> None:
    found = probe_classes(features_of(2.0, shared=100), seed=0)
    assert (found.examples.validation, found.examples.validation_new) == (100, 0)
    assert found.knn.accuracy == found.knn.accuracy_all


def test_chance_is_a_uniform_guess_and_the_largest_train_class() -> None:
    data = features_of(0.0)
    data.train_N[:120] = 3
    data.validation_V[:70] = 3
    found = probe_classes(data, seed=0)
    assert found.chance == Chance(uniform=0.25, majority=float((data.validation_V == 3).mean()))


def _p_of_all_arrangements(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    hits = (predicted == labels).sum()
    return float(np.mean([(predicted == np.array(one)).sum() >= hits for one in itertools.permutations(labels)]))


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 1]], ids=str)
def test_p_is_close_to_that_of_all_permutations(labels: list[int]) -> None:
    for predicted in ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 2, 1], [1, 1, 1, 1, 1, 1]):
        exact = _p_of_all_arrangements(np.array(predicted), np.array(labels))
        assert abs(p_value(np.array(predicted), np.array(labels), np.arange(6), np.random.default_rng(0)) - exact) < 0.05


def test_examples_that_share_an_image_do_not_shrink_p() -> None:
    """Labels are equal within an image and independent of its prediction: p must be uniform."""
    picture = np.repeat(np.arange(50), 8)
    together, apart = [], []
    for seed in range(100):
        chance = np.random.default_rng(seed)
        predicted, labels = (chance.integers(0, 2, 50)[picture] for _ in range(2))
        together.append(p_value(predicted, labels, picture, chance))
        apart.append(p_value(predicted, labels, np.arange(400), chance))
    assert np.mean(np.array(together) <= 0.05) <= 0.1
    assert np.mean(np.array(apart) <= 0.05) > 0.2, "the test can fail"


def test_the_interval_is_wilsons() -> None:
    low, high = accuracy_interval(0.3, images=100)  # Wilson 1927: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    z = 1.959964
    centre, half = (0.3 + z**2 / 200), z * (0.3 * 0.7 / 100 + z**2 / 40_000) ** 0.5
    assert (low, high) == pytest.approx(((centre - half) / (1 + z**2 / 100), (centre + half) / (1 + z**2 / 100)), abs=1e-5)
    assert accuracy_interval(1.0, images=10) == pytest.approx((1 / (1 + z**2 / 10), 1.0), abs=1e-5)


def test_examples_that_share_an_image_do_not_narrow_the_interval() -> None:
    data = features_of(0.3)
    alone = probe_classes(data, seed=0).probe
    shared = probe_classes(dataclasses.replace(data, picture_V=data.picture_V // 4), seed=0).probe
    assert shared.accuracy == alone.accuracy
    assert shared.interval == accuracy_interval(alone.accuracy, images=25)
    assert shared.interval[0] < alone.interval[0]
    assert shared.interval[1] > alone.interval[1]


def test_neighbours_are_those_of_scikit_learn() -> None:
    data = features_of(0.5)
    train, validation = standardised(data.train_NF, data.validation_VF)
    ours = Neighbours(train, validation, CLASSES)
    theirs = KNeighborsClassifier(n_neighbors=10, metric="cosine", algorithm="brute").fit(train, data.train_N)
    votes = theirs.predict_proba(validation)
    clear = np.sort(votes, axis=1)[:, -1] > np.sort(votes, axis=1)[:, -2]  # ties are resolved differently
    assert clear.sum() > 50
    assert np.array_equal(ours.predict(data.train_N)[clear], votes.argmax(axis=1)[clear])


def test_a_tie_of_votes_goes_to_the_nearer_class() -> None:
    train = np.array([[1, 0.1], [1, 0.2], [1, 0.3], [1, 0.4]], np.float32)
    neighbours = Neighbours(train, np.array([[1, 0]], np.float32), 3)
    assert neighbours.count == 4
    assert neighbours.predict(np.array([2, 1, 1, 2])).tolist() == [2]
    assert neighbours.predict(np.array([1, 2, 2, 1])).tolist() == [1]
    assert neighbours.predict(np.array([0, 1, 1, 1])).tolist() == [1]


@pytest.mark.parametrize("width", [12, 300])
def test_the_probe_minimises_the_penalised_likelihood(width: int) -> None:
    from scipy.optimize import minimize

    data = features_of(0.2, width=width)
    train, validation = (part.astype(np.float64) for part in standardised(data.train_NF, data.validation_VF))
    hot = np.eye(CLASSES)[data.train_N]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = flat[:-CLASSES].reshape(width, CLASSES), flat[-CLASSES:]
        logits = train @ weights + bias
        logits -= logits.max(axis=1, keepdims=True)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        slope = np.concatenate([(train.T @ (probabilities - hot) + width * weights).ravel(), (probabilities - hot).sum(axis=0)])
        return float(0.5 * width * (weights**2).sum() - (hot * np.log(probabilities)).sum()), slope

    best: Any = minimize(loss, np.zeros((width + 1) * CLASSES), jac=True, method="L-BFGS-B", options={"maxiter": 10**4})
    logits = validation @ best.x[:-CLASSES].reshape(width, CLASSES) + best.x[-CLASSES:]
    found = predict_linear(train.astype(np.float32), data.train_N, validation.astype(np.float32))
    assert len(np.unique(found)) == CLASSES
    assert (found == logits.argmax(axis=1)).mean() >= 0.98


def test_standardised_train_features_have_mean_zero_and_variance_one() -> None:
    chance = np.random.default_rng(0)
    train = (chance.normal(size=(300, 50)) * np.logspace(-3, 3, 50) + 5).astype(np.float32)
    train[:, 7] = 2.5  # constant
    other = train[:10] + 1
    ours, others = standardised(train, other)
    keep = np.arange(50) != 7
    np.testing.assert_allclose(ours[:, keep].std(axis=0), 1, rtol=1e-3)
    np.testing.assert_allclose(ours.mean(axis=0), 0, atol=1e-3)
    assert not ours[:, 7].any()
    assert not others[:, 7].any()
    expected = (other[:, keep] - train[:, keep].mean(axis=0)) / train[:, keep].std(axis=0)
    np.testing.assert_allclose(others[:, keep], expected, rtol=1e-2, atol=1e-2)


def test_similarities_are_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = features_of(0.5, train=500, validation=400)
    whole = Neighbours(data.train_NF, data.validation_VF, CLASSES).predict(data.train_N)
    monkeypatch.setattr(probes, "_CHUNK", 16)
    largest = 0
    sort = np.argsort

    def watched(values: NDArray[Any], *rest: Any, **how: Any) -> NDArray[np.int64]:
        nonlocal largest
        largest = max(largest, values.size)
        return sort(values, *rest, **how)

    monkeypatch.setattr(np, "argsort", watched)
    again = Neighbours(data.train_NF, data.validation_VF, CLASSES).predict(data.train_N)
    assert largest == 16 * 500
    assert np.array_equal(whole, again)


def test_the_paired_test_is_mcnemars_with_an_image_for_each_example() -> None:
    from scipy.stats import binomtest

    gains = np.array([1] * 14 + [-1] * 5 + [0] * 40)
    exact = binomtest(14, 19).pvalue
    assert paired_p_value(gains, np.arange(len(gains)), 0) == pytest.approx(exact, abs=0.02)
    assert paired_p_value(np.zeros(9, np.int64), np.arange(9), 0) == 1.0


def test_examples_that_share_an_image_are_flipped_together() -> None:
    gains = np.ones(20, np.int64)
    assert paired_p_value(gains, np.arange(20), 0) == 0.001
    assert paired_p_value(gains, np.zeros(20, np.int64), 0) == 1.0, "one image tells nothing"
