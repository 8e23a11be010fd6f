"""Are images of one class more alike than images of two? Structural similarity within classes compared with that between classes.

Sources: Wang, Bovik, Sheikh & Simoncelli 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13, with
their window (11 × 11, Gaussian, σ = 1.5) and constants (K1 = .01, K2 = .03); the comparison of classes follows arXiv 2303.04854.

Shapes: B pairs, n images, H × W pixels, K classes.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.inspect.records import Record, decimal

WINDOW, SIGMA = 11, 1.5
MOST_PER_CLASS = 40
# Permutations of the labels for the p-value: 1 / 1,000 is the smallest it can be.
PERMUTATIONS = 999
SIGNIFICANT = 0.01
_C1, _C2 = 0.01**2, 0.03**2  # for images in [0, 1]
_CHUNK = 256
_REPORTED_PAIRS = 5
# Mean and variance of every window, [B, H - 10, W - 10] each.
Moments = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class ClassSimilarity(Record):
    """How alike the images of one class are, compared with images of two.

    Attributes:
        pictures, classes, pairs: images compared, their classes, pairs of images.
        side_px: of the images compared.
        within, between: mean structural similarity within a class and between classes. Each class, and each pair of classes, counts once.
        difference: mean over classes of a class's own mean less that of its pairs with others, so that it does not matter if a class has
            only dark images.
        p: of the permutation test: the share of 1,000 arrangements of the labels (the observed one is one of them) with at least this
            difference.
        most_alike: pairs of classes with their similarity, the most alike first.
    """

    pictures: int
    classes: int
    pairs: int
    side_px: int
    within: float
    between: float
    difference: float
    p: float
    most_alike: tuple[tuple[str, str, float], ...]

    def sentence(self) -> str:
        """Return the answer in one sentence."""
        more_alike = "more alike than" if self.p <= SIGNIFICANT else "not significantly more alike than"
        compared = f"structural similarity {decimal(self.within)} and {decimal(self.between)}, p = {decimal(self.p)}"
        threshold = "" if self.p <= SIGNIFICANT else f" (threshold {decimal(SIGNIFICANT)})"
        return f"images of one class are {more_alike} images of two: {compared}{threshold}"


def ssim(left_BHW: torch.Tensor, right_BHW: torch.Tensor) -> torch.Tensor:
    """Return the structural similarity of grey images in [0, 1], float32 [B] in [-1, 1]: the mean of eq. 13 over all windows inside the
    image. H and W are at least 11."""
    return ssim_with_moments(left_BHW, right_BHW, _moments(left_BHW), _moments(right_BHW))


def ssim_with_moments(left_BHW: torch.Tensor, right_BHW: torch.Tensor, left: Moments, right: Moments) -> torch.Tensor:
    """Return ``ssim`` of images whose windows' means and variances are known."""
    (mean_left, variance_left), (mean_right, variance_right) = left, right
    product = mean_left * mean_right
    covariance = _window_means(left_BHW * right_BHW) - product
    luminance = (2 * product + _C1) / (mean_left * mean_left + mean_right * mean_right + _C1)
    structure = (2 * covariance + _C2) / (variance_left + variance_right + _C2)
    return (luminance * structure).mean(dim=(1, 2))


def class_similarity(images_nHW: torch.Tensor, labels_n: NDArray[np.int64], names: tuple[str, ...], seed: int) -> ClassSimilarity:
    """Compare all pairs of images, within classes and between classes.

    Memory: the images three times (14 MB for 280 of 64 px), and some 12 maps of 256 pairs (50 MB).

    Args:
        images_nHW: grey, in [0, 1], on any device.
        labels_n: the class of each; at least two classes, each with two images or more.
        names: of the classes.
        seed: of the permutations.
    """
    rng = np.random.default_rng(seed)
    present, class_n = np.unique(labels_n, return_inverse=True)
    similarity_nn = _pairwise_ssim(images_nHW)
    means_KK = _class_means(similarity_nn, class_n)
    difference = _within_less_between(means_KK)
    as_much = sum(_within_less_between(_class_means(similarity_nn, rng.permutation(class_n))) >= difference for _ in range(PERMUTATIONS))
    pairs = list(combinations(range(len(present)), 2))
    most_alike = sorted(pairs, key=lambda pair: (-means_KK[pair], pair))[:_REPORTED_PAIRS]
    return ClassSimilarity(
        pictures=len(labels_n),
        classes=len(present),
        pairs=len(labels_n) * (len(labels_n) - 1) // 2,
        side_px=images_nHW.shape[-1],
        within=float(means_KK.diagonal().mean()),
        between=float(np.mean([means_KK[pair] for pair in pairs])),
        difference=difference,
        p=(1 + as_much) / (1 + PERMUTATIONS),
        most_alike=tuple((names[present[left]], names[present[right]], float(means_KK[left, right])) for left, right in most_alike),
    )


def _class_means(similarity_nn: NDArray[np.float64], class_n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean similarity of every pair of classes, and of each class with itself; ``similarity_nn`` has a zero diagonal."""
    members_Kn = (class_n == np.arange(class_n.max() + 1)[:, None]).astype(np.float64)
    counts_K = members_Kn.sum(axis=1)
    means_KK: NDArray[np.float64] = members_Kn @ similarity_nn @ members_Kn.T / (np.outer(counts_K, counts_K) - np.diag(counts_K))
    return means_KK


def _within_less_between(means_KK: NDArray[np.float64]) -> float:
    within_K = means_KK.diagonal()
    between_K = (means_KK.sum(axis=1) - within_K) / (len(means_KK) - 1)
    return float((within_K - between_K).mean())


def spread_over_classes(labels_N: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Return the positions of at most ``most`` examples, ascending: equally many of each class, 2 to 40. If there are too many classes for
    that, a seeded choice of classes. Empty if fewer than two classes can have two."""
    rng = np.random.default_rng(seed)
    order_N = rng.permutation(len(labels_N))
    present = [label for label, count in zip(*np.unique(labels_N, return_counts=True), strict=True) if count > 1]
    if len(present) < 2 or most < 4:
        return np.zeros(0, np.int64)
    each = min(MOST_PER_CLASS, max(2, most // len(present)))
    chosen_labels = sorted(rng.permutation(present)[: most // each].tolist())
    chosen = [order_N[labels_N[order_N] == label][:each] for label in chosen_labels]
    return np.sort(np.concatenate(chosen))


def _moments(images_BHW: torch.Tensor) -> Moments:
    mean = _window_means(images_BHW)
    return mean, _window_means(images_BHW * images_BHW) - mean * mean


def _window_means(maps_BHW: torch.Tensor) -> torch.Tensor:
    """Return the Gaussian mean of every window inside, [B, H - 10, W - 10]. The window is separable and each side is a matrix product:
    on a CPU several times as fast as a convolution with one channel."""
    rows, columns = (_window_matrix(side).to(maps_BHW) for side in maps_BHW.shape[1:])
    return rows @ maps_BHW @ columns.T


def _window_matrix(side: int) -> torch.Tensor:
    """Return [side - 10, side], float64: row r has the window's weights from column r on."""
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(at**2) / (2 * SIGMA**2))
    matrix = torch.zeros(side - WINDOW + 1, side, dtype=torch.float64)
    for row in range(len(matrix)):
        matrix[row, row : row + WINDOW] = weights / weights.sum()
    return matrix


def _pairwise_ssim(images_nHW: torch.Tensor) -> NDArray[np.float64]:
    """Return the similarity of every two images, [n, n], with zeros on the diagonal."""
    (mean, variance), count = _moments(images_nHW), len(images_nHW)
    first, second = np.triu_indices(count, k=1)
    pairs_P2 = torch.from_numpy(np.stack([first, second], axis=1))
    values = [
        ssim_with_moments(images_nHW[left], images_nHW[right], (mean[left], variance[left]), (mean[right], variance[right]))
        for left, right in (chunk.T for chunk in torch.split(pairs_P2, _CHUNK))
    ]
    similarity_nn = np.zeros((count, count))
    similarity_nn[first, second] = similarity_nn[second, first] = torch.cat(values).double().cpu().numpy()
    return similarity_nn
