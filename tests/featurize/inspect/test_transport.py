"""Optimal transport between classes: known distances, SciPy's in one dimension, and a test that finds classes and nothing else."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from featurize.inspect.probes import standardised
from featurize.inspect.records import LeftOut
from featurize.inspect.transport import ClassTransport, class_transport, transport_distance

NAMES = ("a", "b", "c")


def _transport(features: np.ndarray, labels: np.ndarray, names: tuple[str, ...] = NAMES) -> ClassTransport:
    found = class_transport(features.astype(np.float32), labels, names, seed=0)
    assert isinstance(found, ClassTransport)
    return found


def test_the_distance_is_that_of_the_cheapest_assignment() -> None:
    rng = np.random.default_rng(0)
    cost = rng.random((6, 6))
    assert transport_distance(cost) == pytest.approx(min(cost[range(6), list(order)].mean() for order in permutations(range(6))))
    left, right = rng.normal(size=(2, 12))
    assert transport_distance(np.abs(left[:, None] - right)) == pytest.approx(wasserstein_distance(left, right))


def test_a_cloud_and_its_copy_elsewhere_are_as_far_apart_as_it_was_moved() -> None:
    """All of class a lies in one point and all of b in another: the halves of one are 0 apart, those of two the points' distance."""
    labels = np.repeat([0, 1], 20)
    features = np.where(labels[:, None] == 0, 0.0, [3.0, 4.0, 0.0])
    found = _transport(features, labels)
    assert (found.classes, found.half, found.pictures) == (2, 10, 40)
    assert (found.within, found.between, found.difference) == pytest.approx((0.0, 5 / 6**0.5, 5 / 6**0.5), abs=1e-6)
    assert found.nearest == (("a", "b", pytest.approx(5 / 6**0.5)),)
    assert found.p == 1 / 200


def test_unrelated_images_are_one_apart_and_no_classes_are_found_in_them() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(60) % 3
    features, _ = standardised(rng.normal(size=(60, 400)).astype(np.float32), np.zeros((0, 400), np.float32))
    found = _transport(features, labels)
    assert found.between == pytest.approx(1, abs=0.05)
    assert found.within == pytest.approx(found.between, abs=0.01)
    assert found.p > 0.05
    assert "not significantly farther apart" in found.sentence()
    rare = np.mean([_transport(features[:, [n]], rng.permutation(labels)).p <= 0.1 for n in range(20)])
    assert rare <= 0.3, "the test is exact: a p of at most .1 is seen in one of ten"


def test_classes_that_differ_are_found_with_the_pair_that_is_nearest() -> None:
    rng = np.random.default_rng(2)
    labels = np.arange(90) % 3
    centres = np.array([[0.0] * 8, [0.5] * 8, [3.0] * 8])
    found = _transport(centres[labels] + rng.normal(size=(90, 8)), labels)
    assert found.p == 1 / 200
    assert found.nearest[0][:2] == ("a", "b")
    assert found.nearest[0][2] < found.nearest[1][2]
    assert "tokens of two classes are farther apart than halves of one: transport distance " in found.sentence()
    again = _transport(centres[labels] + rng.normal(size=(90, 8)) * [[1]], labels)
    assert again.within == pytest.approx(found.within, rel=0.2)


def test_rare_classes_are_left_out_and_so_is_the_question_without_two() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], [30, 9, 7])
    found = _transport(rng.normal(size=(46, 4)), labels)
    assert (found.classes, found.half) == (2, 4)
    few = class_transport(rng.normal(size=(10, 4)).astype(np.float32), np.repeat([0, 1], [8, 2]), NAMES, seed=0)
    assert few == LeftOut(left_out="fewer than two classes with 8 images each")
