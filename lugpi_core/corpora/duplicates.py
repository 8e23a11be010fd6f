"""The same text in several rows: counted, told, and left out."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from lugpi_core.corpora.columns import equal_rows
from lugpi_core.corpora.corpus import SPLITS, Example, Examples, Split
from lugpi_core.errors import number_of

# Which row of a text is kept: the evaluation splits are left as they are given.
_PREFERRED: tuple[Split, ...] = ("test", "validation", "train")


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """How often texts recur in a corpus; two are the same if they are equal after folding white space, of pairs both.

    Attributes:
        rows: how many rows there are.
        repeats: how many of them have the text of an earlier row.
        leaked: of validation and of test, how many rows have a text that is also in train, and how many rows there are.
        disagreeing: how many texts have rows with different labels.
    """

    rows: int
    repeats: int
    leaked: Mapping[Split, tuple[int, int]]
    disagreeing: int


def same_texts(examples: Examples) -> list[list[int]]:
    """Return the rows of each text that several rows have, in the order of their first rows."""
    texts, pairs = examples.texts, examples.pairs or repeat(None)

    def keys() -> Iterator[bytes]:
        for text, pair in zip(texts, pairs, strict=False):
            folded = _fold_spaces(text) if pair is None else f"{_fold_spaces(text)}\0{_fold_spaces(pair)}"
            yield folded.encode("utf-8", "surrogatepass")

    def exact(row: int) -> tuple[str, str | None]:
        pair = None if examples.pairs is None else examples.pairs[row]
        return _fold_spaces(texts[row]), None if pair is None else _fold_spaces(pair)

    return equal_rows(keys, exact, len(examples))


def _fold_spaces(text: str) -> str:
    return " ".join(text.split())


def _agree(examples: Examples, rows: Sequence[int]) -> bool:
    targets = [None] * len(rows) if examples.targets is None else [examples.targets[row] for row in rows]
    return len(set(zip(examples.labels[rows].tolist(), targets, strict=True))) == 1


def find_duplicates(examples: Sequence[Example]) -> Duplicates:
    """Count the texts that recur."""
    columns = Examples.of(examples)
    texts, splits = same_texts(columns), columns.splits.tolist()
    leaked: dict[Split, tuple[int, int]] = {}
    train, *others = range(len(SPLITS))
    for split in others:
        shared = sum(sum(splits[row] == split for row in rows) for rows in texts if any(splits[row] == train for row in rows))
        leaked[SPLITS[split]] = shared, splits.count(split)
    return Duplicates(
        rows=len(columns),
        repeats=sum(len(rows) - 1 for rows in texts),
        leaked=leaked,
        disagreeing=sum(not _agree(columns, rows) for rows in texts),
    )


def warn_of_duplicates(found: Duplicates, where: str, *, do: str) -> None:
    """Say in one line how many texts of a corpus recur, where, with how many labels, and what to do."""
    if not found.repeats:
        return
    parts = [f"{found.repeats:,} of {found.rows:,} texts ({found.repeats / found.rows:.1%}) repeat an earlier one"]
    parts += [f"{shared:,} of {count:,} {split} texts are also in train" for split, (shared, count) in found.leaked.items() if shared]
    if found.disagreeing:
        parts.append(f"{number_of(found.disagreeing, 'text{s}')} with several labels")
    warnings.warn(f"{where}: {', '.join(parts)} (equal after folding white space); {do}", stacklevel=5)


def rows_without_duplicates(examples: Sequence[Example]) -> list[int]:
    """Return the rows that ``--dedupe`` keeps, ascending: one of each text, and none whose label is not known.

    Of the rows of a text only those in one split count: in test if there are any, else in validation, else in train, so that a given test
    split keeps its texts and train loses those that it shares with it. If their labels agree, the first is kept; if not, none.
    """
    columns = Examples.of(examples)
    splits, is_kept = columns.splits, np.ones(len(columns), np.bool_)
    for rows in same_texts(columns):
        split = next(SPLITS.index(split) for split in _PREFERRED if (splits[rows] == SPLITS.index(split)).any())
        candidates = [row for row in rows if splits[row] == split]
        is_kept[rows] = False
        is_kept[candidates[0]] = _agree(columns, candidates)
    kept: list[int] = np.flatnonzero(is_kept).tolist()
    return kept
