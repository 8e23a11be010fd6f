"""The column ``candidates`` of a store whose images are each the best of several (``featurize --best-of C``): what each of them scored.

Shapes: M images, C candidates of each.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lugpi_core.store.layout import CANDIDATES
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import ColumnReader, columns_of

_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class CandidateFigures:
    """What the candidates of a store's images scored.

    Attributes:
        candidates: C.
        kept_share: of the images that were drawn, 1/C.
        first_is_kept: of the images that are kept, the share that is the first candidate, as without --best-of.
        mean: score of all candidates that did not fail; None if all did.
        mean_of_kept: score of the images that are kept.
    """

    candidates: int
    kept_share: float
    first_is_kept: float | None
    mean: float | None
    mean_of_kept: float | None

    def sentence(self) -> str:
        """Return the figures in one sentence."""
        if self.mean is None:
            return f"best of {self.candidates} candidates: every image failed"
        return (
            f"best of {self.candidates} candidates, {self.kept_share:.1%} of the images drawn: mean CLIP score {self.mean_of_kept:.3f}, "
            f"of all {self.mean:.3f}; {self.first_is_kept:.1%} of the images are the first candidate"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


def candidate_figures(store: Path) -> CandidateFigures | None:
    """Return what the candidates of a store scored; None if it has no such column, or that lacks a shard.

    Raises:
        InputError: the column is damaged.
    """
    if CANDIDATES not in columns_of(store):
        return None
    spec, records = load_manifest(store / CANDIDATES)
    if len(records) < spec.shards:
        return None
    reader = ColumnReader(store, CANDIDATES, check_content=False)
    good = np.setdiff1d(np.arange(len(reader)), list(reader.flagged))
    first = scored = 0
    total = total_of_kept = 0.0
    for start in range(0, len(good), _AT_ONCE):
        rows = reader.gather(good[start : start + _AT_ONCE])[:, 0].astype(np.float64)
        kept, scores = rows[:, 0].astype(np.int64), rows[:, 1:]
        first += int((kept == 0).sum())
        scored += int(np.isfinite(scores).sum())
        total += float(np.nansum(scores))
        total_of_kept += float(np.take_along_axis(scores, kept[:, None], axis=1).sum())
    candidates = spec.row_shape[1] - 1
    return CandidateFigures(
        candidates=candidates,
        kept_share=1 / candidates,
        first_is_kept=first / len(good) if len(good) else None,
        mean=total / scored if scored else None,
        mean_of_kept=total_of_kept / len(good) if len(good) else None,
    )
