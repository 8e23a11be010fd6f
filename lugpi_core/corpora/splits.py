"""Seeded cuts of a corpus into splits: the head of a random permutation of the rows is cut off, of all of them or of each class."""

import heapq
import math
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from lugpi_core.corpora.corpus import SPLITS, UNLABELLED, Corpus, Example, Examples, Split
from lugpi_core.errors import InputError

VALIDATION_PERCENT = 10
# Numbers are cut by tenths of their range of ranks, with at least this many in each.
_TENTHS, _SMALLEST_TENTH = 10, 10
# Strata of multi-label examples without a class, and of all those whose rarest class is theirs alone.
_NO_CLASS, _SINGLE = -1, -2


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


def strata_of(examples: Sequence[Example], rows: Sequence[int]) -> list[int]:
    """Return the part of the corpus, for each of some rows, of which every split is to have its share.

    That is a single-label example's class; the rarest of a multi-label example's classes, where those with one row, and those without a
    class, are one part each; of numbers, which tenth of them it belongs to, by rank.
    """
    columns = Examples.of(examples)
    if columns.targets is None and (labels := columns.labels[np.asarray(rows, np.int64)]).min(initial=0) != UNLABELLED:
        strata: list[int] = labels.tolist()
        return strata
    chosen = columns.take(rows)
    numbers = [target for target in chosen.targets or () if isinstance(target, float)]
    if numbers:
        tenths = max(1, min(_TENTHS, len(numbers) // _SMALLEST_TENTH))
        ranks = np.argsort(np.argsort(numbers, kind="stable"), kind="stable")
        return [int(rank) * tenths // len(numbers) for rank in ranks]
    counts = Counter(number for example in chosen for number in example.classes)
    rarest = [min(example.classes, key=lambda number: (counts[number], number), default=_NO_CLASS) for example in chosen]
    if all(example.label != UNLABELLED for example in chosen):
        return rarest
    sizes = Counter(rarest)
    return [_SINGLE if sizes[number] == 1 else number for number in rarest]


def cut_in_strata(
    strata: Sequence[int], groups: Sequence[Hashable] | None, *, test: int, validation: int, seed: int, otherwise: str
) -> list[Split]:
    """Return the split of each row, so that every split has its share of each stratum and, if there are groups, each group whole.

    Without groups the sizes are exact, except that one row of each stratum is left for train: with many strata of a single row, test and
    validation become smaller, in proportion. Within a stratum the head of a seeded permutation is test, the next part validation. With
    groups, a group belongs to its rarest stratum, and sizes are as near as its groups allow; a split that was asked for has at least one
    group as long as there is one.

    Args:
        strata: of each row.
        groups: of each row; None if any row may go anywhere.
        test: how many rows of test.
        validation: how many rows of validation.
        seed: of the permutation.
        otherwise: what else helps, for the error.

    Raises:
        InputError: too few rows without groups to leave one of each stratum in train.
    """
    if groups is None:
        return _cut_rows_in_strata(strata, test=test, validation=validation, seed=seed, otherwise=otherwise)
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    units = list(members.values())
    sizes = Counter(strata)
    remaining: dict[int, list[list[int]]] = {stratum: [] for stratum in sorted(sizes)}
    for place in np.random.default_rng(seed).permutation(len(units)):
        rarest = min((strata[row] for row in units[place]), key=lambda stratum: (sizes[stratum], stratum))
        remaining[rarest].append(units[place])
    splits: list[Split] = ["train"] * len(strata)
    sizes_of_splits: tuple[tuple[Split, int], ...] = (("test", test), ("validation", validation))
    for split, wanted in sizes_of_splits:
        units_of_split = _taken(remaining, wanted)
        if split == "test" and validation and len(units_of_split) > 1 and sum(map(len, remaining.values())) < 2:
            smallest = min(units_of_split, key=len)  # so that validation has one as well
            units_of_split.remove(smallest)
            next(iter(remaining.values())).append(smallest)
        for unit in units_of_split:
            for row in unit:
                splits[row] = split
    return splits


def _cut_rows_in_strata(strata: Sequence[int], *, test: int, validation: int, seed: int, otherwise: str) -> list[Split]:
    """Return the split of each row, any of which may go anywhere, as ``cut_in_strata`` says."""
    stratum_N = np.asarray(strata, np.int64)
    order = np.random.default_rng(seed).permutation(len(stratum_N))
    rows = order[np.argsort(stratum_N[order], kind="stable")]  # of each stratum in the order of the permutation
    counts = np.unique(stratum_N, return_counts=True)[1].tolist()
    room = len(rows) - len(counts)
    if room < test + validation:
        asked = (test > 0) + (validation > 0)
        if room < asked:
            raise InputError(
                got=f"{len(rows):,} train examples of {len(counts):,} classes, of which {room} could leave train without losing a class",
                expected=f"{asked} or more, for the splits to be cut",
                do=f"add examples, or {otherwise}",
            )
        test = min(max(min(test, 1), room * test // (test + validation)), room - (validation > 0))
        validation = room - test
    begins = np.cumsum([0, *counts[:-1]])
    splits: list[Split] = ["train"] * len(rows)
    sizes_of_splits: tuple[tuple[Split, int], ...] = (("test", test), ("validation", validation))
    for split, wanted in sizes_of_splits:
        seats = quotas(counts, [count - 1 for count in counts], wanted)
        for begin, seat in zip(begins.tolist(), seats, strict=True):
            for row in rows[begin : begin + seat].tolist():
                splits[row] = split
        begins = begins + seats
        counts = [count - seat for count, seat in zip(counts, seats, strict=True)]
    return splits


def _taken(remaining: dict[int, list[list[int]]], wanted: int) -> list[list[int]]:
    """Remove units of about ``wanted`` rows from the strata, in proportion to their rows, and return them; one of each stratum stays."""
    rows = [sum(map(len, units)) for units in remaining.values()]
    room = [count - len(units[-1]) if units else 0 for count, units in zip(rows, remaining.values(), strict=True)]
    taken: list[list[int]] = []
    missing = 0  # rows that the strata so far did not give
    for units, quota in zip(remaining.values(), quotas(rows, room, min(wanted, sum(room))), strict=True):
        missing += quota
        kept: list[list[int]] = []
        for place, unit in enumerate(units):
            is_last = not kept and place == len(units) - 1
            if 2 * missing > len(unit) and not is_last:  # nearer with it than without
                taken.append(unit)
                missing -= len(unit)
            else:
                kept.append(unit)
        units[:] = kept
    if wanted and not taken:
        several = [units for units in remaining.values() if len(units) > 1] or [units for units in remaining.values() if units]
        if sum(map(len, remaining.values())) > 1:
            smallest = min((unit for units in several for unit in units), key=len)
            next(units for units in several if smallest in units).remove(smallest)
            taken.append(smallest)
    return taken


def quotas(counts: Sequence[int], room: Sequence[int], total: int) -> list[int]:
    """Divide ``total`` seats among parts by the method of Huntington and Hill, no part getting more than its room.

    The next seat goes to the part with the largest count / sqrt(s (s + 1)), where s is the number of its seats. So every part has one
    before any has two, the largest first: a rare class is in the test split if there is a place for each class.
    """
    assert total <= sum(room), (room, total)
    seats = [0] * len(counts)
    queue = [(-math.inf, -count, part) for part, count in enumerate(counts) if room[part] > 0]
    heapq.heapify(queue)
    for _ in range(total):
        _, negative_count, part = heapq.heappop(queue)
        seats[part] += 1
        if seats[part] < room[part]:
            heapq.heappush(queue, (negative_count / math.sqrt(seats[part] * (seats[part] + 1)), negative_count, part))
    return seats


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


def classes_by_split(examples: Examples) -> dict[Split, Counter[int]]:
    """Return how many examples of each split have each class; none of those without one."""
    if examples.targets is None:
        labels = {split: examples.labels[examples.splits == number] for number, split in enumerate(SPLITS)}
        return {split: Counter(its[its != UNLABELLED].tolist()) for split, its in labels.items()}
    of_split: dict[Split, Counter[int]] = {split: Counter() for split in SPLITS}
    for split, example in zip(examples.splits.tolist(), examples, strict=True):
        of_split[SPLITS[split]].update(example.classes)
    return of_split


def limited(corpus: Corpus, limit: int, *, seed: int) -> Corpus:
    """Return the corpus with ``limit`` examples, sampled with the seed from every split in proportion, in the corpus's own order."""
    rows = [corpus.rows(split) for split in SPLITS]
    if limit >= len(corpus.examples):
        return corpus
    generator = np.random.default_rng(seed)
    kept: list[int] = []
    for of_split, count in zip(rows, shares([len(of_split) for of_split in rows], limit), strict=True):
        kept.extend(of_split[place] for place in generator.permutation(len(of_split))[:count])
    return replace(corpus, examples=corpus.columns.take(sorted(kept)))


def warn_of_lost_labels(part: Corpus) -> None:
    """Warn if a part of a corpus has labels in validation or test that are not in train.

    Raises:
        InputError: a single class is left to train on.
    """
    of_split = classes_by_split(part.columns)
    trained = of_split["train"].keys()
    if len(trained) < 2 and part.task == "single-label":
        raise InputError(got=f"--limit {len(part.examples)}, which leaves one class to train on", expected="two or more", do="raise it")
    unseen = sorted(part.label_names[number] for number in {number for counts in of_split.values() for number in counts} - trained)
    if unseen:
        warnings.warn(f"--limit leaves no train example of {', '.join(unseen)}, which validation or test examples have", stacklevel=3)
