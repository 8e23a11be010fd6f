"""How far apart are the tokens of two classes? Optimal transport between them, compared with that between two halves of one class.

The distance of two clouds of equally many points is the mean cost of the cheapest one-to-one assignment: the Wasserstein distance of order
1 of the two samples, exactly (Kuhn 1955, "The Hungarian method for the assignment problem"). The reading is in docs/method.md.

Shapes: N images, F features, K classes, h images of half a class, n = 2 h K of them in all.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from featurize.inspect.records import LeftOut, Record, decimal

MOST_CLASSES, LEAST_HALF, MOST_HALF = 20, 4, 20
# Permutations of the labels for the p-value: 1 / 200 is the smallest it can be.
PERMUTATIONS = 199
SIGNIFICANT = 0.01
_REPORTED_PAIRS = 5


@dataclass(frozen=True, kw_only=True)
class ClassTransport(Record):
    """How far the tokens of two classes are apart, beside two halves of one class.

    Distances are in units of the root mean square distance of two unrelated images, √(2 F) for standardised features.

    Attributes:
        pictures, classes: images compared, equally many of each class, and their classes.
        half: h, the images of each cloud.
        within: mean distance of the two halves of a class, which is not 0: other images of one class are other images.
        between: mean distance of half a class and half another.
        difference: mean over classes of a class's mean distance to the others less that of its own halves.
        p: of the permutation test: the share of 200 arrangements of the labels (the observed one is one of them) with at least this
            difference.
        nearest: pairs of classes with their distance less the mean of both classes' own halves, the nearest first.
    """

    pictures: int
    classes: int
    half: int
    within: float
    between: float
    difference: float
    p: float
    nearest: tuple[tuple[str, str, float], ...]

    def sentence(self) -> str:
        """Return the answer in one sentence."""
        apart = "are farther apart than" if self.p <= SIGNIFICANT else "are not significantly farther apart than"
        pairs = "; ".join(f"{left} / {right} {distance:+.3f}" for left, right, distance in self.nearest[:3])
        return (
            f"tokens of two classes {apart} halves of one: transport distance {decimal(self.between)} and {decimal(self.within)}, "
            f"p = {decimal(self.p)}; nearest: {pairs}"
        )


def transport_distance(cost_hh: NDArray[np.float64]) -> float:
    """Return the mean cost of the cheapest assignment of the rows to the columns."""
    from scipy.optimize import linear_sum_assignment

    rows_h, columns_h = linear_sum_assignment(cost_hh)
    return float(cost_hh[rows_h, columns_h].mean())


def class_transport(
    features_NF: NDArray[np.float32], labels_N: NDArray[np.int64], names: tuple[str, ...], seed: int
) -> ClassTransport | LeftOut:
    """Compare the tokens of classes, and of halves of classes. Memory: the distances of at most 800 images (5 MB).

    Args:
        features_NF: standardised, a row for each image.
        labels_N: the class of each.
        names: of the classes.
        seed: of the choice of images and of the permutations.
    """
    rng = np.random.default_rng(seed)
    chosen_K2h = _halves(labels_N, rng)
    if chosen_K2h is None:
        return LeftOut(left_out=f"fewer than two classes with {2 * LEAST_HALF} images each")
    classes, _, half = chosen_K2h.shape
    points_nF = features_NF[chosen_K2h.reshape(-1)].astype(np.float64)
    cost_nn = _distances(points_nF) / np.sqrt(2 * points_nF.shape[1])
    places_K2h = np.arange(len(points_nF)).reshape(chosen_K2h.shape)
    distances_KK = _between_halves(cost_nn, places_K2h)
    difference = _between_less_within(distances_KK)
    as_much = sum(
        _between_less_within(_between_halves(cost_nn, rng.permutation(len(points_nF)).reshape(places_K2h.shape))) >= difference
        for _ in range(PERMUTATIONS)
    )
    within_K = distances_KK.diagonal()
    excess_KK = (distances_KK + distances_KK.T - within_K - within_K[:, None]) / 2
    pairs = sorted(combinations(range(classes), 2), key=lambda pair: (excess_KK[pair], pair))[:_REPORTED_PAIRS]
    name_K = [names[labels_N[one]] for one in chosen_K2h[:, 0, 0]]
    return ClassTransport(
        pictures=len(points_nF),
        classes=classes,
        half=half,
        within=float(within_K.mean()),
        between=float(distances_KK[~np.eye(classes, dtype=bool)].mean()),
        difference=difference,
        p=(1 + as_much) / (1 + PERMUTATIONS),
        nearest=tuple((name_K[left], name_K[right], float(excess_KK[left, right])) for left, right in pairs),
    )


def _halves(labels_N: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64] | None:
    """Return the places of equally many images of at most 20 classes, in two halves, int64 [K, 2, h]; None if there are too few."""
    present, counts = np.unique(labels_N, return_counts=True)
    large = present[counts >= 2 * LEAST_HALF]
    if len(large) < 2:
        return None
    kept = np.sort(rng.permutation(large)[:MOST_CLASSES])
    half = min(MOST_HALF, int(counts[np.isin(present, kept)].min()) // 2)
    return np.stack([rng.permutation(np.flatnonzero(labels_N == label))[: 2 * half].reshape(2, half) for label in kept])


def _distances(points_nF: NDArray[np.float64]) -> NDArray[np.float64]:
    squares_n = (points_nF**2).sum(axis=1)
    squared_nn = squares_n[:, None] + squares_n - 2 * points_nF @ points_nF.T
    return np.asarray(np.sqrt(np.maximum(squared_nn, 0.0)))


def _between_halves(cost_nn: NDArray[np.float64], places_K2h: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the distance of the first half of each class and the second of each, [K, K]."""
    return np.array(
        [[transport_distance(cost_nn[np.ix_(first_h, second_h)]) for second_h in places_K2h[:, 1]] for first_h in places_K2h[:, 0]]
    )


def _between_less_within(distances_KK: NDArray[np.float64]) -> float:
    within_K = distances_KK.diagonal()
    others = 2 * (len(distances_KK) - 1)
    between_K = (distances_KK.sum(axis=0) + distances_KK.sum(axis=1) - 2 * within_K) / others
    return float((between_K - within_K).mean())
