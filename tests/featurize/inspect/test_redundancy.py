"""Fewer dimensions: importance is the formula's, planted ones are found, and the soft mask leaves the penalty as it was."""

import numpy as np
import pytest
from numpy.typing import NDArray

from featurize.inspect.probes import LabelledFeatures, predict_linear, probe_classes, standardised
from featurize.inspect.redundancy import FeatureShares, enough_of, importance, shares_of, soft_mask


def _planted(telling: int, features: int, count: int = 300) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    values = rng.normal(size=(count, features))
    values[:, :telling] += 2 * rng.normal(size=(3, telling))[labels]
    return values.astype(np.float32), labels


def test_importance_is_the_spread_of_means_over_that_within_classes() -> None:
    values, labels = _planted(2, 6, count=50)
    values[:, 5] = 1.5
    for feature, found in enumerate(importance(values, labels)):
        column = values[:, feature].astype(np.float64)
        means = np.array([column[labels == label].mean() for label in labels])
        expected = np.sqrt(np.mean((means - column.mean()) ** 2) / max(np.mean((column - means) ** 2), 1e-18))
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert feature != 5 or found == 0
    # Of two classes of equal size it is the distance of the means over the sum of the deviations, where these are equal.
    one, two = np.array([1.0, 3.0, 1.0, 3.0]), np.array([7.0, 9.0, 7.0, 9.0])
    both = np.concatenate([one, two])[:, None].astype(np.float32)
    assert importance(both, np.repeat([0, 1], 4))[0] == pytest.approx((8 - 2) / (one.std() + two.std()))


def test_the_mask_is_importance_of_mean_square_one() -> None:
    mask = soft_mask(np.array([0.0, 1.0, 3.0]))
    assert (mask**2).mean() == pytest.approx(1)
    assert mask[2] / mask[1] == pytest.approx(3)
    assert mask[0] == 0
    assert soft_mask(np.zeros(3)).tolist() == [1, 1, 1]


def test_shares_are_halves_down_to_one_of_128() -> None:
    assert shares_of(256) == (2, 4, 8, 16, 32, 64, 128, 256)
    assert shares_of(5) == (1, 2, 3, 5)


@pytest.mark.parametrize(
    ("accuracies", "guess", "enough"),
    [
        ((0.2, 0.57, 0.59, 0.6), 0.2, 4),
        ((0.585, 0.5, 0.59, 0.6), 0.2, 4),  # one that is better by chance, below others that are not
        ((0.2, 0.1, 0.2, 0.2), 0.2, None),
        ((0.3, 0.59, 0.57, 0.6), 0.2, 8),
    ],
)
def test_enough_is_95_percent_of_the_way_from_there_on(accuracies: tuple[float, ...], guess: float, enough: int | None) -> None:
    assert enough_of((1, 2, 4, 8), accuracies, guess) == enough


def test_planted_dimensions_suffice_and_the_mask_finds_them() -> None:
    values, labels = _planted(telling=4, features=128, count=360)
    train, rest = slice(0, 120), slice(120, 360)
    data = LabelledFeatures(
        train_NF=values[train],
        train_N=labels[train],
        validation_VF=values[rest],
        validation_V=labels[rest],
        picture_V=np.arange(240),
        is_new_V=np.ones(240, bool),
        classes=3,
    )
    classes = probe_classes(data, seed=0)
    found = classes.by_features
    assert isinstance(found, FeatureShares)
    assert (found.features, found.kept) == (128, (1, 2, 4, 8, 16, 32, 64, 128))
    assert found.enough is not None
    assert found.enough <= 4
    assert found.accuracies[-1] == classes.probe.accuracy
    train_NF, rest_NF = standardised(values[train], values[rest])
    order = np.argsort(-importance(train_NF, labels[train]))
    for count, accuracy in zip(found.kept[:-1], found.accuracies, strict=False):
        chosen = order[:count]
        expected = predict_linear(train_NF[:, chosen], labels[train], rest_NF[:, chosen]) == labels[rest]
        assert accuracy == float(expected.mean())
    mask = soft_mask(importance(train_NF, labels[train]))
    masked = predict_linear(train_NF * mask, labels[train], rest_NF * mask) == labels[rest]
    assert found.soft_mask == float(masked.mean())
    assert found.soft_mask > classes.probe.accuracy
    assert f"; {found.enough} ({found.enough / 1.28:.1f} %) make 95 % of the way; soft mask " in found.sentence()
