"""How an answer depends on the number of images, as a curve and as an exponential: does a larger set pay, and from how few images on are
there no copies?

Sources: accuracy over subsets of a training set, arXiv 2303.04854; copies over the size of the set, Feng, Guo, Benitez-Quiroz & Martinez
2021, "When do GANs replicate? On the choice of dataset size", arXiv 2202.11765. The readings are in docs/method.md.

Shapes: S sizes, M images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurize.inspect.records import LeftOut, Record, decimal, percent

# Halving again and again, from all images on.
_MOST_SIZES = 7
# A larger share of copies than this is no longer few.
FEW = 0.01
# An exponential has this share of the way to its limit behind it where more images are said to add little.
MOST_OF_IT = 0.95
_GRID, _ROUNDS = 61, 12
_SAME = 1e-9


@dataclass(frozen=True, kw_only=True)
class ExponentialFit(Record):
    """The curve limit + (start − limit) · exp(−n / scale), nearest to some points in squares.

    Attributes:
        start: at no image.
        limit: with ever more images.
        scale: in images.
        rms: root of the mean squared distance from the points.
    """

    start: float
    limit: float
    scale: float
    rms: float

    @property
    def enough(self) -> float:
        """The number of images with which 95 % of the way from start to limit are made."""
        return -self.scale * float(np.log(1 - MOST_OF_IT))


@dataclass(frozen=True, kw_only=True)
class AccuracyCurve(Record):
    """The accuracy of a probe fitted on fewer train examples.

    Attributes:
        sizes: numbers of train examples, ascending.
        accuracies: of each, the mean over ``draws`` random subsets; the last is of all.
        draws: subsets of each size.
        fit: the exponential.
    """

    sizes: tuple[int, ...]
    accuracies: tuple[float, ...]
    draws: int
    fit: ExponentialFit | LeftOut

    def sentence(self) -> str:
        """Return the curve in one sentence."""
        points = ", ".join(f"{decimal(accuracy)} with {size:,}" for size, accuracy in zip(self.sizes, self.accuracies, strict=True))
        if isinstance(self.fit, LeftOut):
            return f"linear probe by train examples: {points}; no exponential: {self.fit.left_out}"
        fit = self.fit
        exponential = f"{decimal(fit.limit)} − {decimal(fit.limit - fit.start)} exp(−n / {fit.scale:,.0f}) (rms {decimal(fit.rms)})"
        return f"linear probe by train examples: {points}; {exponential}, 95 % of the way at {fit.enough:,.0f}"


@dataclass(frozen=True, kw_only=True)
class CopiesCurve(Record):
    """The share of images with a near-duplicate in a random set of fewer images.

    Attributes:
        sizes: numbers of images, ascending; the last is all.
        shares: the expected share in a set of each size.
        few_up_to: the largest set of which at most 1 % have a near-duplicate; 1 if already two images are near-duplicates more often.
        fit: the exponential through 0.
    """

    sizes: tuple[int, ...]
    shares: tuple[float, ...]
    few_up_to: int
    fit: ExponentialFit | LeftOut

    def sentence(self) -> str:
        """Return the curve in one sentence."""
        points = ", ".join(f"{percent(share)} of {size:,}" for size, share in zip(self.sizes, self.shares, strict=True))
        few = f"at most {percent(FEW)} in sets of up to {self.few_up_to:,}"
        if isinstance(self.fit, LeftOut):
            return f"near-duplicates by images: {points}; {few}; no exponential: {self.fit.left_out}"
        exponential = f"{percent(self.fit.limit)} (1 − exp(−n / {self.fit.scale:,.0f})), rms {percent(self.fit.rms)}"
        return f"near-duplicates by images: {points}; {few}; {exponential}"


def sizes_up_to(most: int, least: int) -> tuple[int, ...]:
    """Return ``most`` and its halves, quarters and so on, rounded up: at most seven numbers of at least ``least``, ascending."""
    sizes = {-(-most // 2**power) for power in range(_MOST_SIZES)}
    return tuple(sorted(size for size in sizes if size >= min(least, most)))


def fit_exponential(sizes: Sequence[int], values: Sequence[float], *, start: float | None = None) -> ExponentialFit | LeftOut:
    """Return the rising exponential nearest to some points in squares; left out if they do not rise, or do not level off.

    For a given scale the curve is linear in start and limit, which are solved for; the scale is searched for on finer and finer grids,
    from a fifth of the smallest size to twenty times the largest.

    Args:
        sizes: n, in ascending order.
        values: of each.
        start: the value at no image, if it is known.
    """
    free = 2 if start is not None else 3
    if len(sizes) <= free:
        return LeftOut(left_out=f"{len(sizes)} sizes, and {free} numbers to fit")
    if max(values) - min(values) < _SAME:
        return LeftOut(left_out="all sizes are alike")
    n_S, value_S = np.array(sizes, np.float64), np.array(values, np.float64)
    bounds = low, high = float(np.log(n_S[0] / 5)), float(np.log(n_S[-1] * 20))
    for _ in range(_ROUNDS):
        grid = np.linspace(low, high, _GRID)
        errors = [_at_scale(n_S, value_S, float(np.exp(one)), start)[2] for one in grid]
        best, step = float(grid[int(np.argmin(errors))]), (high - low) / (_GRID - 1)
        low, high = max(bounds[0], best - step), min(bounds[1], best + step)
    first, limit, error = _at_scale(n_S, value_S, float(np.exp(best)), start)
    if limit <= first:
        return LeftOut(left_out="more images do not raise it")
    if bounds[1] - best < _SAME:
        return LeftOut(left_out="it does not level off yet")
    if best - bounds[0] < _SAME:
        return LeftOut(left_out="it has levelled off at the smallest size")
    return ExponentialFit(start=first, limit=limit, scale=float(np.exp(best)), rms=error)


def _at_scale(n_S: NDArray[np.float64], value_S: NDArray[np.float64], scale: float, start: float | None) -> tuple[float, float, float]:
    """Return start, limit and rms distance of the nearest exponential of this scale."""
    left_S = np.exp(-n_S / scale)
    if start is None:
        (first, limit), *_ = np.linalg.lstsq(np.stack([left_S, 1 - left_S], axis=1), value_S)
    else:
        first, limit = start, float((value_S - start * left_S) @ (1 - left_S) / ((1 - left_S) @ (1 - left_S)))
    distances = value_S - (first * left_S + limit * (1 - left_S))
    return float(first), float(limit), float(np.sqrt((distances**2).mean()))


def copies_curve(copies_M: NDArray[np.int64]) -> CopiesCurve:
    """Return the expected share of images with a near-duplicate in random sets of fewer images.

    Of an image with k near-duplicates among the other M − 1, none is among n − 1 that are drawn without replacement with probability
    C(M − 1 − k, n − 1) / C(M − 1, n − 1): no set needs to be drawn.

    Args:
        copies_M: how many near-duplicates each image has; two images at least.
    """
    counts, images = np.unique(copies_M, return_counts=True)
    sizes = sizes_up_to(len(copies_M), 2)
    shares = [_share_with_copy(counts, images, size) for size in sizes]
    low, high = 1, len(copies_M) + 1  # the share grows with the size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _share_with_copy(counts, images, middle) <= FEW else (low, middle)
    return CopiesCurve(sizes=sizes, shares=tuple(shares), few_up_to=low, fit=fit_exponential(sizes, shares, start=0.0))


def _share_with_copy(counts: NDArray[np.int64], images: NDArray[np.int64], size: int) -> float:
    others, drawn = int(images.sum()) - 1, size - 1
    # The images that are not drawn must hold all copies: the k-th copy is one of the others − drawn − k + 1 of others − k + 1 left.
    k = np.arange(int(counts.max()))
    none_up_to = np.cumprod(np.append(1.0, np.maximum(others - drawn - k, 0) / np.maximum(others - k, 1)))
    return float(1 - (images * none_up_to[counts]).sum() / images.sum())
