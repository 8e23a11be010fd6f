"""Seeded cuts of a corpus into splits, always by cutting off the head of a random permutation of the rows."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lugpi_core.corpora.corpus import SPLITS, Corpus, Split
from lugpi_core.errors import InputError

VALIDATION_PERCENT = 10


def share_down(count: int, percent: int) -> int:
    """Return ``floor(percent % of count)``, in integers, so that no rounding of floats matters."""
    return count * percent // 100


def share_up(count: int, percent: int) -> int:
    """Return ``ceil(percent % of count)``, in integers."""
    return -(-count * percent // 100)


def seeded_splits(count: int, *, test: int, validation: int, seed: int) -> list[Split]:
    """Return the split of each of ``count`` rows: the head of a seeded permutation is test, the next part validation, the rest train."""
    order = np.random.default_rng(seed).permutation(count)
    splits: list[Split] = ["train"] * count
    for row in order[:test]:
        splits[row] = "test"
    for row in order[test : test + validation]:
        splits[row] = "validation"
    return splits


def cut_from_train(splits: Sequence[Split], *, test: int = 0, validation: int = 0, seed: int) -> list[Split]:
    """Return ``splits`` with this many train rows turned into test and validation by the same seeded rule; other rows stay."""
    train = [row for row, split in enumerate(splits) if split == "train"]
    cut = list(splits)
    for row, split in zip(train, seeded_splits(len(train), test=test, validation=validation, seed=seed), strict=True):
        cut[row] = split
    return cut


def shares(counts: Sequence[int], total: int) -> list[int]:
    """Divide ``total`` in proportion to ``counts`` by largest remainders; each non-empty part gets at least 1 and at most its count.

    ``total`` must lie between the number of non-empty parts and the sum of the counts.
    """
    whole = sum(counts)
    assert sum(map(bool, counts)) <= total <= whole, (counts, total)
    parts = [max(min(1, count), count * total // whole) for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda part: -(counts[part] * total % whole))
    while sum(parts) < total:
        for part in by_remainder:
            if parts[part] < counts[part] and sum(parts) < total:
                parts[part] += 1
    while sum(parts) > total:
        parts[parts.index(max(parts))] -= 1
    return parts


def limited(corpus: Corpus, limit: int, *, seed: int) -> Corpus:
    """Return the corpus with ``limit`` examples, sampled with the seed from every split in proportion, in the corpus's own order."""
    rows = [corpus.rows(split) for split in SPLITS]
    if limit >= len(corpus.examples):
        return corpus
    generator = np.random.default_rng(seed)
    kept: list[int] = []
    for of_split, count in zip(rows, shares([len(of_split) for of_split in rows], limit), strict=True):
        kept.extend(of_split[place] for place in generator.permutation(len(of_split))[:count])
    return replace(corpus, examples=tuple(corpus.examples[row] for row in sorted(kept)))


def warn_of_lost_labels(part: Corpus) -> None:
    """Warn if a part of a corpus has labels in validation or test that are not in train.

    Raises:
        InputError: a single class is left to train on.
    """
    trained = {example.label for example in part.examples if example.split == "train"}
    if len(trained) < 2:
        raise InputError(got=f"--limit {len(part.examples)}, which leaves one class to train on", expected="two or more", do="raise it")
    unseen = sorted({part.label_names[example.label] for example in part.examples} - {part.label_names[label] for label in trained})
    if unseen:
        warnings.warn(f"--limit leaves no train example of {', '.join(unseen)}, which validation or test examples have", stacklevel=3)
