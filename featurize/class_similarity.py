"""Are pictures of one class more alike than pictures of two? Structural similarity, within classes against between them.

Sources: Wang, Bovik, Sheikh & Simoncelli 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13, with
their window (11 × 11, Gaussian, σ = 1.5) and constants (K1 = .01, K2 = .03); the comparison of classes is that of arXiv 2303.04854.

Shapes: B pairs, n pictures, H × W pixels.
"""

from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

WINDOW, SIGMA = 11, 1.5
MOST_PER_CLASS, MOST_CLASSES, MOST_PAIRS = 40, 200, 40_000
_C1, _C2 = 0.01**2, 0.03**2  # of pictures in [0, 1]
_CHUNK = 256
_SHOWN_PAIRS = 5
# A mean for each pair of classes; a class with itself is (c, c).
Cells = dict[tuple[int, int], float]
# Mean and variance of every window, [B, H - 10, W - 10] each.
Moments = tuple[torch.Tensor, torch.Tensor]


def ssim(left_BHW: torch.Tensor, right_BHW: torch.Tensor) -> torch.Tensor:
    """Return the structural similarity of grey pictures in [0, 1], float32 [B] in [-1, 1]: the mean of eq. 13 over all windows that lie
    inside the picture. H and W are at least 11."""
    return similarity_of(left_BHW, right_BHW, _moments(left_BHW), _moments(right_BHW))


def similarity_of(left_BHW: torch.Tensor, right_BHW: torch.Tensor, of_left: Moments, of_right: Moments) -> torch.Tensor:
    """Return ``ssim`` of pictures whose windows' means and variances are known."""
    (mean_left, variance_left), (mean_right, variance_right) = of_left, of_right
    product = mean_left * mean_right
    covariance = _windowed(left_BHW * right_BHW) - product
    luminance = (2 * product + _C1) / (mean_left * mean_left + mean_right * mean_right + _C1)
    structure = (2 * covariance + _C2) / (variance_left + variance_right + _C2)
    return (luminance * structure).mean(dim=(1, 2))


def class_similarity(pictures_nHW: torch.Tensor, labels_n: NDArray[np.int64], names: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Return the mean structural similarity of pairs within a class and of pairs between classes, and the pairs of classes that are most
    alike, as plain values.

    At most 40,000 pairs, seeded: half of them within the classes, half between, spread evenly over classes and pairs of classes. A mean is
    over classes (or pairs of classes), each of which counts alike; ``difference`` is the mean over classes of a class's own mean less that
    of its pairs with others, which cancels that some classes are all of dark pictures, with its ``standard_error`` over classes.

    Memory: the pictures three times (50 MB for 1,000 of 64 px), and some 12 maps of 256 pairs (50 MB).

    Args:
        pictures_nHW: grey, in [0, 1], on any device.
        labels_n: the class of each; at least two classes, each with two pictures or more.
        names: of the classes.
        seed: of the pairs.
    """
    chance = np.random.default_rng(seed)
    members = {label: np.flatnonzero(labels_n == label) for label in np.unique(labels_n).tolist()}
    within = {(label, label): _pairs_within(rows) for label, rows in members.items()}
    between = {(one, other): _pairs_between(members[one], members[other]) for one, other in combinations(members, 2)}
    means: dict[str, Cells] = {}
    moments = _moments(pictures_nHW)
    pairs = 0
    for kind, cells in (("within", within), ("between", between)):
        chosen = _thinned(cells, MOST_PAIRS // 2, chance)
        pairs += sum(map(len, chosen.values()))
        means[kind] = _cell_means(pictures_nHW, moments, chosen)
    mean = {kind: float(np.mean(list(cells.values()))) for kind, cells in means.items()}
    difference, error = _within_less_between(means["within"], means["between"])
    nearest = sorted(means["between"].items(), key=lambda cell: (-cell[1], cell[0]))[:_SHOWN_PAIRS]
    return {
        "pictures": len(labels_n),
        "classes": len(members),
        "pairs": pairs,
        "side_px": pictures_nHW.shape[-1],
        "within": mean["within"],
        "between": mean["between"],
        "difference": difference,
        "standard_error": error,
        "most_alike": [[names[one], names[other], value] for (one, other), value in nearest],
    }


def _within_less_between(within: Cells, between: Cells) -> tuple[float, float]:
    """Return mean and standard error over classes."""
    differences = [own - float(np.mean([value for pair, value in between.items() if label in pair])) for (label, _), own in within.items()]
    return float(np.mean(differences)), float(np.std(differences, ddof=1) / len(differences) ** 0.5)


def spread_over_classes(labels_N: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Return places of at most ``most`` examples, ascending: as many of each class, at most 40 and at least 2; where there are too many
    classes for that, or more than 200, those of a seeded choice. None where two classes cannot have two."""
    chance = np.random.default_rng(seed)
    order_N = chance.permutation(len(labels_N))
    present = [label for label, count in zip(*np.unique(labels_N, return_counts=True), strict=True) if count > 1]
    if len(present) < 2 or most < 4:
        return np.zeros(0, np.int64)
    each = min(MOST_PER_CLASS, max(2, most // len(present)))
    taken = sorted(chance.permutation(present)[: min(MOST_CLASSES, most // each)].tolist())
    chosen = [order_N[labels_N[order_N] == label][:each] for label in taken]
    return np.sort(np.concatenate(chosen))


def _moments(pictures_BHW: torch.Tensor) -> Moments:
    mean = _windowed(pictures_BHW)
    return mean, _windowed(pictures_BHW * pictures_BHW) - mean * mean


def _windowed(maps_BHW: torch.Tensor) -> torch.Tensor:
    """Return the Gaussian mean of every window that lies inside, [B, H - 10, W - 10]. The window is a product of its sides, and each a
    product with a matrix: on a CPU several times as fast as a convolution of one channel."""
    rows, columns = (_sliding(side).to(maps_BHW) for side in maps_BHW.shape[1:])
    return rows @ maps_BHW @ columns.T


def _sliding(side: int) -> torch.Tensor:
    """Return [side - 10, side], float64: in row r the window's weights from column r on."""
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(at**2) / (2 * SIGMA**2))
    sliding = torch.zeros(side - WINDOW + 1, side, dtype=torch.float64)
    for row in range(len(sliding)):
        sliding[row, row : row + WINDOW] = weights / weights.sum()
    return sliding


def _pairs_within(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    first, second = np.triu_indices(len(rows), k=1)
    return np.stack([rows[first], rows[second]], axis=1)


def _pairs_between(rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack([np.repeat(rows, len(others)), np.tile(others, len(rows))], axis=1)


def _thinned(
    cells: dict[tuple[int, int], NDArray[np.int64]], most: int, chance: np.random.Generator
) -> dict[tuple[int, int], NDArray[np.int64]]:
    each = max(1, most // len(cells))
    return {cell: pairs if len(pairs) <= each else chance.permutation(pairs)[:each] for cell, pairs in cells.items()}


def _cell_means(pictures_nHW: torch.Tensor, moments: Moments, cells: dict[tuple[int, int], NDArray[np.int64]]) -> Cells:
    pairs = torch.from_numpy(np.concatenate(list(cells.values())))
    values = torch.cat([_of_pairs(pictures_nHW, moments, some) for some in torch.split(pairs, _CHUNK)]).double().cpu().numpy()
    ends = np.cumsum([len(part) for part in cells.values()])
    return {cell: float(part.mean()) for cell, part in zip(cells, np.split(values, ends[:-1]), strict=True)}


def _of_pairs(pictures_nHW: torch.Tensor, moments: Moments, pairs_B2: torch.Tensor) -> torch.Tensor:
    (mean, variance), left, right = moments, pairs_B2[:, 0], pairs_B2[:, 1]
    return similarity_of(pictures_nHW[left], pictures_nHW[right], (mean[left], variance[left]), (mean[right], variance[right]))
