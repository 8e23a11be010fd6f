"""The same text in several rows: counted, told, and left out."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lugpi_core.corpora.corpus import Example, Split
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


def _same_texts(examples: Sequence[Example]) -> list[list[int]]:
    """Return the rows of each distinct text, in the order of their first rows."""
    rows: dict[tuple[str, str | None], list[int]] = {}
    for row, example in enumerate(examples):
        pair = None if example.pair is None else " ".join(example.pair.split())
        rows.setdefault((" ".join(example.text.split()), pair), []).append(row)
    return list(rows.values())


def _agree(examples: Sequence[Example], rows: Sequence[int]) -> bool:
    return len({(examples[row].label, examples[row].target) for row in rows}) == 1


def find_duplicates(examples: Sequence[Example]) -> Duplicates:
    """Count the texts that recur."""
    texts = _same_texts(examples)
    leaked: dict[Split, tuple[int, int]] = {}
    for split in ("validation", "test"):
        shared = sum(
            sum(examples[row].split == split for row in rows) for rows in texts if any(examples[row].split == "train" for row in rows)
        )
        leaked[split] = shared, sum(example.split == split for example in examples)
    return Duplicates(
        rows=len(examples),
        repeats=len(examples) - len(texts),
        leaked=leaked,
        disagreeing=sum(not _agree(examples, rows) for rows in texts),
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
    kept: list[int] = []
    for rows in _same_texts(examples):
        split = min((examples[row].split for row in rows), key=_PREFERRED.index)
        candidates = [row for row in rows if examples[row].split == split]
        if _agree(examples, candidates):
            kept.append(candidates[0])
    return sorted(kept)
