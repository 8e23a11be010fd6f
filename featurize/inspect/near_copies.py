"""Drawings that are nearly the same although their prompts differ.

Shapes: M drawings, F features.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_CHUNK = 512
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def nearest_cosines(features_MF: torch.Tensor, candidates_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the highest cosine of each row with any other row, and with another row that is a candidate: float32 [M] twice; -1 where there
    is none.

    Features are centred by their mean over all rows, for what all pictures share is most of every token: without it all are alike. Two
    unrelated drawings have then a cosine of about 0, and squared distances are 2 · (1 - cosine): .04 at a cosine of .98, a fiftieth of
    theirs.

    Memory: the features twice, and 512 × M float32 (20 MB for 10,000 drawings); by chunks of 512 rows, never [M, M].

    Args:
        features_MF: float32, on any device.
        candidates_M: bool.
    """
    centred_MF = features_MF - features_MF.mean(dim=0)
    centred_MF /= centred_MF.norm(dim=1, keepdim=True).clamp(min=1e-12)
    any_M, candidate_M = (torch.full((len(centred_MF),), -1.0, device=features_MF.device) for _ in range(2))
    numbers_M = torch.arange(len(centred_MF), device=features_MF.device)
    for rows_B in torch.split(numbers_M, _CHUNK):
        cosines_BM = centred_MF[rows_B] @ centred_MF.T
        cosines_BM[torch.arange(len(rows_B)), rows_B] = -1.0
        any_M[rows_B] = cosines_BM.amax(dim=1).clamp(max=1.0)
        cosines_BM[:, ~candidates_M] = -1.0
        candidate_M[rows_B] = cosines_BM.amax(dim=1).clamp(max=1.0)
    return any_M, candidate_M


def near_copies(features_MF: torch.Tensor, is_train_M: NDArray[np.bool_], is_test_M: NDArray[np.bool_], threshold: float) -> dict[str, Any]:
    """Return how near the nearest other drawing is, and how many test drawings are near-copies of a train drawing, as plain values.

    Args:
        features_MF: of drawings with distinct prompts; at least two rows.
        is_train_M, is_test_M: which splits' examples show a drawing; a drawing that both show counts as train's.
        threshold: the cosine from which on two drawings are near-copies.
    """
    found = nearest_cosines(features_MF, torch.from_numpy(is_train_M).to(features_MF.device))
    nearest_M, to_train_M = (one.cpu().numpy() for one in found)
    only_test_M = is_test_M & ~is_train_M
    copied = int((to_train_M[only_test_M] >= threshold).sum())
    return {
        "drawings": len(nearest_M),
        "threshold": threshold,
        "nearest_quantiles": {str(q): round(float(np.quantile(nearest_M, q)), 4) for q in _QUANTILES},
        "share": float((nearest_M >= threshold).mean()),
        "test_drawings": int(only_test_M.sum()),
        "test_copies_of_train": copied,
        "test_share": copied / max(1, int(only_test_M.sum())),
    }
