"""How many dimensions of the tokens does a linear probe need? The most important ones alone, and all under a soft mask.

Source: Luo, Zou, Gao, Xu & Song 2023, "Less is more: on the feature redundancy of pretrained models when transferring to few-shot tasks",
arXiv 2310.03843. The reading is in docs/method.md.

Shapes: N train examples, F features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurize.inspect.records import Record, decimal, percent
from featurize.inspect.set_size import MOST_OF_IT

# The most important dimensions by halves: down to 1 / 128 of all.
_HALVINGS = 7


@dataclass(frozen=True, kw_only=True)
class FeatureShares(Record):
    """The linear probe on fewer dimensions.

    Attributes:
        features: F.
        kept: numbers of dimensions, ascending, the most important on the train examples; the last is F.
        accuracies: of each.
        enough: the fewest of ``kept`` with which, and with all larger ones, the probe makes 95 % of the way from the largest class to its
            accuracy on all; None if all dimensions are no better than the largest class.
        soft_mask: the accuracy where every dimension is multiplied by its importance.
        p: of the paired test of that and the accuracy without a mask, see ``paired_p_value``.
    """

    features: int
    kept: tuple[int, ...]
    accuracies: tuple[float, ...]
    enough: int | None
    soft_mask: float
    p: float

    def sentence(self) -> str:
        """Return the curve in one sentence."""
        points = ", ".join(f"{decimal(accuracy)} with {count:,}" for count, accuracy in zip(self.kept, self.accuracies, strict=True))
        enough = "" if self.enough is None else f"; {self.enough:,} ({percent(self.enough / self.features)}) make 95 % of the way"
        return f"linear probe by most important dimensions: {points}{enough}; soft mask {decimal(self.soft_mask)} (p = {decimal(self.p)})"


def importance(train_NF: NDArray[np.float32], labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the importance of each dimension, float64 [F]: the spread of the classes' means over the spread within classes, both standard
    deviations over examples. 0 where the means are equal, as of a constant dimension."""
    _, class_N, count_K = np.unique(labels_N, return_inverse=True, return_counts=True)
    members_KN = (class_N == np.arange(len(count_K))[:, None]).astype(np.float64)
    values_NF = train_NF.astype(np.float64)
    mean_KF = members_KN @ values_NF / count_K[:, None]
    between_F = (count_K[:, None] * (mean_KF - values_NF.mean(axis=0)) ** 2).sum(axis=0) / len(labels_N)
    within_F = ((values_NF - mean_KF[class_N]) ** 2).mean(axis=0)
    # A dimension that is constant in each class but not over them tells most; rounding must not make it infinite.
    return np.asarray(np.sqrt(between_F / np.maximum(within_F, 1e-6 * np.maximum(between_F, 1e-12))))


def soft_mask(importance_F: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return what each dimension is multiplied by, float32 [F]: its importance, scaled to a mean square of 1, so that the penalty of a
    probe weighs as much as without a mask; 1 if no dimension is important."""
    mean_square = (importance_F**2).mean()
    scaled_F = importance_F / np.sqrt(mean_square) if mean_square else np.ones_like(importance_F)
    return np.asarray(scaled_F.astype(np.float32))


def shares_of(features: int) -> tuple[int, ...]:
    """Return all dimensions, half of them, a quarter and so on to 1 / 128, rounded up, ascending."""
    return tuple(sorted({-(-features // 2**power) for power in range(_HALVINGS + 1)}))


def enough_of(kept: tuple[int, ...], accuracies: tuple[float, ...], guess: float) -> int | None:
    """Return the fewest dimensions with which, and with all larger numbers, 95 % of the way from a guess to the accuracy on all are made;
    None if that is no way up."""
    if accuracies[-1] <= guess:
        return None
    wanted = guess + MOST_OF_IT * (accuracies[-1] - guess)
    fewest = kept[-1]
    for count, accuracy in zip(reversed(kept), reversed(accuracies), strict=True):
        if accuracy < wanted:
            break
        fewest = count
    return fewest
