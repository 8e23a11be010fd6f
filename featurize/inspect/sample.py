"""Which examples are looked at, and their tokens pooled: the class token beside the mean of the patches.

Shapes: N examples, M distinct drawings of the sample, T tokens, D width, F features (2·D, or D where there are no patches).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import SPLITS, Corpus
from lugpi_core.corpora.splits import shares
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import ExampleTable
from lugpi_core.store.reader import ColumnReader

# The most examples that are looked at: 10,000 in all, so that a look takes seconds whatever the corpus.
MOST: Mapping[str, int] = {"train": 4000, "validation": 2000, "test": 4000}
_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A seeded part of the corpus, each split stratified by class.

    Attributes:
        rows: by split, the example rows, ascending.
        labels: by split, their classes.
        drawings: int64 [M], the first drawings of all of them, ascending, each once.
        places: by split, where in ``drawings`` each example's is.
        counts: by split, how many examples there are in all.
    """

    rows: Mapping[str, NDArray[np.int64]]
    labels: Mapping[str, NDArray[np.int64]]
    drawings: NDArray[np.int64]
    places: Mapping[str, NDArray[np.int64]]
    counts: Mapping[str, int]

    @property
    def is_capped(self) -> bool:
        """Whether some examples are left out."""
        return any(len(self.rows[split]) < count for split, count in self.counts.items())

    def record(self) -> dict[str, dict[str, int]]:
        """Return, by split, how many examples are looked at, and of how many."""
        return {split: {"looked_at": len(self.rows[split]), "of": count} for split, count in self.counts.items()}


def take_sample(corpus: Corpus, table: ExampleTable, seed: int) -> Sample:
    """Return at most 4,000 train, 2,000 validation and 4,000 test examples."""
    chance = np.random.default_rng(seed)
    label_N = np.array([example.label for example in corpus.examples], np.int64)
    rows: dict[str, NDArray[np.int64]] = {
        split: stratified(np.array(corpus.rows(split), np.int64), label_N, MOST[split], chance) for split in SPLITS
    }
    drawings = np.unique(np.concatenate([table.drawing[some] for some in rows.values()]))
    return Sample(
        rows=rows,
        labels={split: label_N[some] for split, some in rows.items()},
        drawings=drawings,
        places={split: np.searchsorted(drawings, table.drawing[some]) for split, some in rows.items()},
        counts=corpus.counts(),
    )


def stratified(rows: NDArray[np.int64], label_N: NDArray[np.int64], most: int, chance: np.random.Generator) -> NDArray[np.int64]:
    """Return at most ``most`` of the rows, drawn in proportion from every class, ascending."""
    if len(rows) <= most:
        return rows
    shuffled = chance.permutation(rows)
    classes, counts = np.unique(label_N[rows], return_counts=True)
    if len(classes) > most:  # not every class can have one
        return np.sort(shuffled[:most])
    parts = zip(classes, shares(counts.tolist(), most), strict=True)
    return np.sort(np.concatenate([shuffled[label_N[shuffled] == one][:part] for one, part in parts]))


@dataclass(frozen=True, kw_only=True)
class PooledTokens:
    """What of a column's tokens is looked at.

    Attributes:
        features_MF: float32, the class token, and behind it the mean of the patches.
        good_M: bool, whether the drawing's tokens are there: not flagged, and finite.
        width: D; ``features_MF[:, :width]`` is the class token.
    """

    features_MF: NDArray[np.float32]
    good_M: NDArray[np.bool_]
    width: int


def pooled_tokens(reader: ColumnReader, drawings: NDArray[np.int64], drawings_in_all: int) -> PooledTokens:
    """Return the pooled tokens of some drawings. Memory: the result (82 MB for 10,000 drawings of width 1,024) and 32 MB of tokens.

    Raises:
        InputError: the column is of other drawings, or its rows are not tokens.
    """
    shape = reader.spec.row_shape
    if len(reader) != drawings_in_all or len(shape) != 2:
        raise InputError(
            got=f"{len(reader):,} rows of {' × '.join(map(str, shape))}",
            expected=f"tokens [T, D] of {drawings_in_all:,} drawings",
            do="run featurize for this corpus",
        )
    tokens, width = shape
    features_MF = np.zeros((len(drawings), width * min(2, tokens)), np.float32)
    size = max(1, _CHUNK_BYTES // (tokens * width * 2))
    chunks = [slice(start, start + size) for start in range(0, len(drawings), size)]
    for chunk, tokens_BTD in zip(chunks, reader.batches([drawings[chunk] for chunk in chunks]), strict=True):
        features_MF[chunk, :width] = tokens_BTD[:, 0]
        if tokens > 1:
            features_MF[chunk, width:] = tokens_BTD[:, 1:].mean(axis=1, dtype=np.float32)
    good_M = np.isfinite(features_MF).all(axis=1) & ~np.isin(drawings, list(reader.flagged))
    return PooledTokens(features_MF=features_MF, good_M=good_M, width=width)


def shown_shares(table: ExampleTable, corpus: Corpus) -> dict[str, Any]:
    """Return which share of the prompts was cut, in all and by split, as plain values."""
    by_split = {split: table.prompt_cut[corpus.rows(split)] for split in SPLITS}
    return {
        "count": int(table.prompt_cut.sum()),
        "share": float(table.prompt_cut.mean()),
        "share_by_split": {split: float(cut.mean()) for split, cut in by_split.items() if len(cut)},
    }
