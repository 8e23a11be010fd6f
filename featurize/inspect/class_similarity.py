"""Are pictures of one class more alike than pictures of two? Structural similarity, within classes against between them.

Sources: Wang, Bovik, Sheikh & Simoncelli 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13, with
their window (11 × 11, Gaussian, σ = 1.5) and constants (K1 = .01, K2 = .03); the comparison of classes is that of arXiv 2303.04854.

Shapes: B pairs, n pictures, H × W pixels, K classes.
"""

from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

WINDOW, SIGMA = 11, 1.5
MOST_PER_CLASS = 40
# Arrangements of the labels for the p-value: 1 / 1,000 is the smallest it can be.
SHUFFLES = 999
_C1, _C2 = 0.01**2, 0.03**2  # of pictures in [0, 1]
_CHUNK = 256
_SHOWN_PAIRS = 5
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

    All pairs are compared. A mean is over classes (or pairs of classes), each of which counts alike; ``difference`` is the mean over
    classes of a class's own mean less that of its pairs with others, which cancels that some classes are all of dark pictures. ``p`` is
    that of the permutation test: the share of 1,000 arrangements of the labels, the one that was found among them, with at least such a
    difference.

    Memory: the pictures three times (14 MB for 280 of 64 px), and some 12 maps of 256 pairs (50 MB).

    Args:
        pictures_nHW: grey, in [0, 1], on any device.
        labels_n: the class of each; at least two classes, each with two pictures or more.
        names: of the classes.
        seed: of the arrangements.
    """
    chance = np.random.default_rng(seed)
    present, own_n = np.unique(labels_n, return_inverse=True)
    similarity_nn = _of_all_pairs(pictures_nHW)
    means_KK = _class_means(similarity_nn, own_n)
    difference = _within_less_between(means_KK)
    as_much = sum(_within_less_between(_class_means(similarity_nn, chance.permutation(own_n))) >= difference for _ in range(SHUFFLES))
    pairs = list(combinations(range(len(present)), 2))
    nearest = sorted(pairs, key=lambda pair: (-means_KK[pair], pair))[:_SHOWN_PAIRS]
    return {
        "pictures": len(labels_n),
        "classes": len(present),
        "pairs": len(labels_n) * (len(labels_n) - 1) // 2,
        "side_px": pictures_nHW.shape[-1],
        "within": float(means_KK.diagonal().mean()),
        "between": float(np.mean([means_KK[pair] for pair in pairs])),
        "difference": difference,
        "p": (1 + as_much) / (1 + SHUFFLES),
        "most_alike": [[names[present[one]], names[present[other]], float(means_KK[one, other])] for one, other in nearest],
    }


def _class_means(similarity_nn: NDArray[np.float64], own_n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean of every pair of classes, and of each class with itself; ``similarity_nn`` has noughts on its diagonal."""
    members_Kn = (own_n == np.arange(own_n.max() + 1)[:, None]).astype(np.float64)
    counts_K = members_Kn.sum(axis=1)
    means_KK: NDArray[np.float64] = members_Kn @ similarity_nn @ members_Kn.T / (np.outer(counts_K, counts_K) - np.diag(counts_K))
    return means_KK


def _within_less_between(means_KK: NDArray[np.float64]) -> float:
    within_K = means_KK.diagonal()
    between_K = (means_KK.sum(axis=1) - within_K) / (len(means_KK) - 1)
    return float((within_K - between_K).mean())


def spread_over_classes(labels_N: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Return places of at most ``most`` examples, ascending: as many of each class, at most 40 and at least 2; where there are too many
    classes for that, or more than 200, those of a seeded choice. None where two classes cannot have two."""
    chance = np.random.default_rng(seed)
    order_N = chance.permutation(len(labels_N))
    present = [label for label, count in zip(*np.unique(labels_N, return_counts=True), strict=True) if count > 1]
    if len(present) < 2 or most < 4:
        return np.zeros(0, np.int64)
    each = min(MOST_PER_CLASS, max(2, most // len(present)))
    taken = sorted(chance.permutation(present)[: most // each].tolist())
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


def _of_all_pairs(pictures_nHW: torch.Tensor) -> NDArray[np.float64]:
    """Return the similarity of every two pictures, [n, n], with noughts on the diagonal."""
    moments, count = _moments(pictures_nHW), len(pictures_nHW)
    first, second = np.triu_indices(count, k=1)
    pairs = torch.from_numpy(np.stack([first, second], axis=1))
    values = torch.cat([_of_pairs(pictures_nHW, moments, some) for some in torch.split(pairs, _CHUNK)]).double().cpu().numpy()
    similarity_nn = np.zeros((count, count))
    similarity_nn[first, second] = similarity_nn[second, first] = values
    return similarity_nn


def _of_pairs(pictures_nHW: torch.Tensor, moments: Moments, pairs_B2: torch.Tensor) -> torch.Tensor:
    (mean, variance), left, right = moments, pairs_B2[:, 0], pairs_B2[:, 1]
    return similarity_of(pictures_nHW[left], pictures_nHW[right], (mean[left], variance[left]), (mean[right], variance[right]))
