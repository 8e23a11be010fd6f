"""Near-duplicates: images that are nearly the same although their prompts differ.

Shapes: M images, F features, B images of a chunk.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.inspect.records import Record, percent
from featurize.inspect.set_size import CopiesCurve, copies_curve

_CHUNK = 512
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True, kw_only=True)
class NearCopies(Record):
    """How near the images are to each other.

    Attributes:
        drawings: images compared, M.
        threshold: the cosine from which on two images are near-duplicates.
        nearest_quantiles: quantiles of the cosine to the nearest other image.
        share: images with a near-duplicate, of all.
        test_drawings: images of test examples that no train example has.
        test_copies_of_train: how many of them are near-duplicates of a train image.
        test_share: the same as a share.
        lower_bound: whether only a sample was compared, so that near-duplicates may have been missed.
        by_size: the share in smaller sets; None in records of earlier versions.
    """

    drawings: int
    threshold: float
    nearest_quantiles: Mapping[str, float]
    share: float
    test_drawings: int
    test_copies_of_train: int
    test_share: float
    lower_bound: bool
    by_size: CopiesCurve | None = None

    def sentence(self) -> str:
        """Return the answer in one sentence."""
        at_least = "at least " if self.lower_bound else ""
        return (
            f"{at_least}{percent(self.share)} of the images are near-duplicates (cosine {self.threshold:g} or more) of another "
            f"one; near-duplicates of a train image: {at_least}{self.test_copies_of_train:,} of {self.test_drawings:,} test images"
        )


def centred_directions(features_MF: torch.Tensor) -> torch.Tensor:
    """Return features as unit vectors [M, F + 1], centred by their mean over all rows.

    What all images share makes up most of every token: without centring, all images would be alike. Unrelated images then have a cosine of
    about 0. Squared distances are 2 · (1 - cosine): .04 at a cosine of .98, a fiftieth of that of unrelated images. The last feature is a
    constant ten-thousandth of the mean's length, so that images that are all one image have a cosine of 1.
    """
    mean_F = features_MF.mean(dim=0)
    constant_M1 = (1e-4 * mean_F.norm()).expand(len(features_MF), 1)
    directions_MF = torch.cat([features_MF - mean_F, constant_M1], dim=1)
    directions_MF /= directions_MF.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return directions_MF


def nearest_cosines(features_MF: torch.Tensor, candidates_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first two of ``neighbourhoods``."""
    return neighbourhoods(features_MF, candidates_M, 1.0)[:2]


def neighbourhoods(
    features_MF: torch.Tensor, candidates_M: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the highest cosine of each row with any other row, and with any other row that is a candidate: float32 [M] each; -1 if there
    is none; and int64 [M], how many other rows have a cosine of at least the threshold. Features are centred, see ``centred_directions``.

    Memory: the features twice, and 512 × M float32 (20 MB for 10,000 images); never [M, M].

    Args:
        features_MF: float32, on any device.
        candidates_M: bool.
        threshold: of the counts.
    """
    centred_MF = centred_directions(features_MF)
    any_M, candidate_M = (torch.full((len(centred_MF),), -1.0, device=features_MF.device) for _ in range(2))
    copies_M = torch.zeros(len(centred_MF), dtype=torch.int64, device=features_MF.device)
    numbers_M = torch.arange(len(centred_MF), device=features_MF.device)
    for rows_B in torch.split(numbers_M, _CHUNK):
        cosines_BM = centred_MF[rows_B] @ centred_MF.T
        cosines_BM[torch.arange(len(rows_B)), rows_B] = -1.0
        cosines_BM.clamp_(max=1.0)
        any_M[rows_B] = cosines_BM.amax(dim=1)
        copies_M[rows_B] = (cosines_BM >= threshold).sum(dim=1)
        cosines_BM[:, ~candidates_M] = -1.0
        candidate_M[rows_B] = cosines_BM.amax(dim=1)
    return any_M, candidate_M, copies_M


def near_copies(
    features_MF: torch.Tensor,
    is_train_M: NDArray[np.bool_],
    is_test_M: NDArray[np.bool_],
    threshold: float,
    *,
    lower_bound: bool = False,
) -> NearCopies:
    """Return how near each image's nearest other image is, and how many test images are near-duplicates of a train image.

    Args:
        features_MF: of images with distinct prompts; at least two rows.
        is_train_M, is_test_M: which splits' examples have an image; an image of both counts as train's.
        threshold: the cosine from which on two images are near-duplicates.
        lower_bound: whether the images are a sample of all.
    """
    nearest = neighbourhoods(features_MF, torch.from_numpy(is_train_M).to(features_MF.device), threshold)
    to_any_M, to_train_M, copies_M = (figures.cpu().numpy() for figures in nearest)
    only_test_M = is_test_M & ~is_train_M
    test_images, copies = int(only_test_M.sum()), int((to_train_M[only_test_M] >= threshold).sum())
    return NearCopies(
        drawings=len(to_any_M),
        threshold=threshold,
        nearest_quantiles={str(q): round(float(np.quantile(to_any_M, q)), 4) for q in _QUANTILES},
        share=float((to_any_M >= threshold).mean()),
        test_drawings=test_images,
        test_copies_of_train=copies,
        test_share=copies / max(1, test_images),
        lower_bound=lower_bound,
        by_size=copies_curve(copies_M),
    )
