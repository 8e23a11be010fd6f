"""Which examples are inspected, and their pooled tokens: the first token, which stands for the image, and the mean of the patch tokens.

Shapes: N examples, M distinct images of the sample, T tokens, D width, F features (2 · D, or D if there are no patch tokens).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featurize.inspect.records import Record, percent
from lugpi_core.corpora.corpus import SPLITS, Corpus
from lugpi_core.corpora.splits import shares
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import ExampleTable
from lugpi_core.store.reader import ColumnReader

# At most 10,000 examples in all, so that an inspection takes seconds for any corpus.
MOST: Mapping[str, int] = {"train": 4000, "validation": 2000, "test": 4000}
_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class InspectedExamples(Record):
    """How many examples of a split were inspected, and of how many."""

    looked_at: int
    of: int


@dataclass(frozen=True, kw_only=True)
class PromptsCut(Record):
    """Texts of which a prompt was longer than the generator reads: how many, their share of those that have images, and their share in each
    split."""

    count: int
    share: float
    share_by_split: Mapping[str, float]

    def sentence(self) -> str:
        """Return the answer in one sentence."""
        return f"{percent(self.share)} of the texts had a prompt cut to the length that the generator reads"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A seeded sample of the corpus, stratified by class in each split.

    Attributes:
        rows: by split, the example rows, ascending; all have an image.
        labels: by split, their classes.
        drawings: int64 [M], store rows of their first images, ascending, each once.
        places: by split, the position of each example's image in ``drawings``.
        counts: by split, all its examples that have an image.
        without_image: by split, its examples that have none.
    """

    rows: Mapping[str, NDArray[np.int64]]
    labels: Mapping[str, NDArray[np.int64]]
    drawings: NDArray[np.int64]
    places: Mapping[str, NDArray[np.int64]]
    counts: Mapping[str, int]
    without_image: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_capped(self) -> bool:
        """Whether some examples that have an image are not in the sample."""
        return any(len(self.rows[split]) < count for split, count in self.counts.items())

    def inspected(self) -> dict[str, InspectedExamples]:
        """Return how many examples of each split, of those that have an image, are in the sample."""
        return {split: InspectedExamples(looked_at=len(self.rows[split]), of=count) for split, count in self.counts.items()}


def take_sample(corpus: Corpus, table: ExampleTable, seed: int) -> Sample:
    """Return at most 4,000 train, 2,000 validation and 4,000 test examples."""
    rng = np.random.default_rng(seed)
    label_N = np.array([example.label for example in corpus.examples], np.int64)
    of_split = {split: np.array(corpus.rows(split), np.int64) for split in SPLITS}
    with_image = {split: rows[table.has_image[rows]] for split, rows in of_split.items()}
    rows: dict[str, NDArray[np.int64]] = {split: stratified(with_image[split], label_N, MOST[split], rng) for split in SPLITS}
    drawings = np.unique(np.concatenate([table.drawing[split_rows] for split_rows in rows.values()]))
    return Sample(
        rows=rows,
        labels={split: label_N[split_rows] for split, split_rows in rows.items()},
        drawings=drawings,
        places={split: np.searchsorted(drawings, table.drawing[split_rows]) for split, split_rows in rows.items()},
        counts={split: len(rows) for split, rows in with_image.items()},
        without_image={split: len(rows) - len(with_image[split]) for split, rows in of_split.items()},
    )


def stratified(rows: NDArray[np.int64], label_N: NDArray[np.int64], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return at most ``most`` of the rows, drawn in proportion from every class, ascending."""
    if len(rows) <= most:
        return rows
    shuffled = rng.permutation(rows)
    classes, counts = np.unique(label_N[rows], return_counts=True)
    if len(classes) > most:  # too few rows for one of each class
        return np.sort(shuffled[:most])
    parts = zip(classes, shares(counts.tolist(), most), strict=True)
    return np.sort(np.concatenate([shuffled[label_N[shuffled] == label][:part] for label, part in parts]))


@dataclass(frozen=True, kw_only=True)
class PooledTokens:
    """A column's tokens, pooled for each image.

    Attributes:
        features_MF: float32, the first token, followed by the mean of the patch tokens.
        good_M: bool, whether the image's tokens are usable: not flagged, and finite.
        width: D; ``features_MF[:, :width]`` is the first token.
    """

    features_MF: NDArray[np.float32]
    good_M: NDArray[np.bool_]
    width: int


def pooled_tokens(reader: ColumnReader, drawings: NDArray[np.int64], drawings_in_all: int) -> PooledTokens:
    """Return the pooled tokens of some images. Memory: the result (82 MB for 10,000 images of width 1,024) and 32 MB of tokens.

    Args:
        reader: of the column.
        drawings: int64 [M], store rows.
        drawings_in_all: rows that a column of this corpus has.

    Raises:
        InputError: the column has another number of rows, or its rows are not tokens.
    """
    shape = reader.spec.row_shape
    if len(reader) != drawings_in_all or len(shape) != 2:
        raise InputError(
            got=f"{len(reader):,} rows of {' × '.join(map(str, shape))}",
            expected=f"tokens [T, D] of {drawings_in_all:,} images",
            do="run featurize for this corpus",
        )
    tokens, width = shape
    encoder = reader.spec.fingerprint.get("encoder")
    prefix = int(encoder.get("prefix", 1)) if isinstance(encoder, Mapping) else 1  # registers and the like are no patches
    features_MF = np.zeros((len(drawings), width * (1 + (tokens > prefix))), np.float32)
    size = max(1, _CHUNK_BYTES // (tokens * width * 2))
    chunks = [slice(start, start + size) for start in range(0, len(drawings), size)]
    for chunk, tokens_BTD in zip(chunks, reader.batches([drawings[chunk] for chunk in chunks]), strict=True):
        features_MF[chunk, :width] = tokens_BTD[:, 0]
        if tokens > prefix:
            features_MF[chunk, width:] = tokens_BTD[:, prefix:].mean(axis=1, dtype=np.float32)
    good_M = np.isfinite(features_MF).all(axis=1) & ~np.isin(drawings, list(reader.flagged))
    return PooledTokens(features_MF=features_MF, good_M=good_M, width=width)


def prompts_cut(table: ExampleTable, corpus: Corpus) -> PromptsCut:
    """Return how many texts had a prompt cut."""
    cut_N, has_image_N = table.prompt_cut, table.has_image
    by_split = {split: cut_N[rows][has_image_N[rows]] for split in SPLITS if (rows := corpus.rows(split))}
    return PromptsCut(
        count=int(cut_N[has_image_N].sum()),
        share=table.prompts_cut_share,
        share_by_split={split: float(cut.mean()) for split, cut in by_split.items() if len(cut)},
    )
