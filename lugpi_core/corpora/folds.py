"""Folds of a corpus's train texts, for teachers that are each trained without one of them."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.duplicates import same_texts
from lugpi_core.corpora.options import FEWEST_FOLDS, require_folds
from lugpi_core.corpora.splits import strata_of
from lugpi_core.errors import InputError, number_of

NO_FOLD = -1


def fold_of_each(
    corpus: Corpus, folds: int, *, seed: int, rows: Sequence[int] | None = None, has_each_class: bool = True
) -> NDArray[np.int64]:
    """Return the fold of each example, 0 … ``folds`` - 1, int64 [N]; NO_FOLD for examples that are dealt into none.

    Rows of one text (equal after folding white space, of pairs both) are in one fold. Every fold has its share of each class, or of each
    tenth of the numbers of a regression, as iterative stratification gives it (Sechidis, Tsoumakas & Vlahavas 2011, *On the stratification
    of multi-label data*): texts of the class with the fewest texts left are dealt out first, each to the fold that lacks most of the class;
    of several to the one that lacks most texts. Texts without a class follow.

    Args:
        corpus: whose train texts they are.
        folds: how many.
        seed: of the dealing.
        rows: the examples that are dealt out, ascending; None = the train split.
        has_each_class: whether a class with fewer different train texts than folds is refused; else some folds have none of it.

    Raises:
        InputError: fewer than two folds, a class with fewer different train texts than folds, or fewer texts than folds.
    """
    require_folds(folds)
    rows = corpus.rows("train") if rows is None else rows
    units = _units(corpus, rows)
    strata = _strata_of_units(corpus, rows, units)
    if has_each_class:
        _require_enough(corpus, folds, strata)
    order = np.random.default_rng([seed, 2]).permutation(len(units))  # not the permutations of splits and of shuffled images
    fold_N = np.full(len(corpus.examples), NO_FOLD, np.int64)
    for unit, fold in zip(
        order.tolist(), _dealt([strata[unit] for unit in order], [len(units[unit]) for unit in order], folds), strict=True
    ):
        fold_N[units[unit]] = fold
    return fold_N


def require_texts_for_folds(corpus: Corpus, folds: int, rows: Sequence[int]) -> None:
    """Raise InputError as ``fold_of_each`` does, without dealing."""
    require_folds(folds)
    _require_enough(corpus, folds, _strata_of_units(corpus, rows, _units(corpus, rows)))


def _units(corpus: Corpus, rows: Sequence[int]) -> list[list[int]]:
    """Return the rows of each different text, in the order of their first rows."""
    repeated = [[rows[place] for place in places] for places in same_texts(corpus.columns.take(rows))]
    several = {row for of_text in repeated for row in of_text}
    return sorted([*repeated, *([row] for row in rows if row not in several)])


def _strata_of_units(corpus: Corpus, rows: Sequence[int], units: Sequence[Sequence[int]]) -> list[frozenset[int]]:
    """Return the classes of each different text, or its tenth of the numbers."""
    if corpus.task == "multi-label":
        return [frozenset(k for row in unit for k in corpus.columns[row].classes) for unit in units]
    stratum = dict(zip(rows, strata_of(corpus.columns, rows), strict=True))
    return [frozenset(stratum[row] for row in unit) for unit in units]


def _require_enough(corpus: Corpus, folds: int, strata: Sequence[frozenset[int]]) -> None:
    counts = Counter(k for of_unit in strata for k in of_unit if corpus.task != "regression")
    fewest, number = min(((count, k) for k, count in counts.items()), default=(len(strata), None))
    if folds <= fewest:
        return
    raise InputError(
        got=f"--folds {folds} for {number_of(fewest, 'different train text{s}')} "
        + (f"of {corpus.name}" if number is None else f"of class {corpus.label_names[number]!r} of {corpus.name}"),
        expected="at least as many as folds, so that each fold has one",
        do=f"give --folds {fewest} or less" if fewest >= FEWEST_FOLDS else "leave --folds out, or the class out of the corpus",
    )


def _dealt(strata: Sequence[frozenset[int]], sizes: Sequence[int], folds: int) -> list[int]:
    """Return the fold of each text; ``sizes`` are their rows."""
    left = {k: {unit for unit, of_unit in enumerate(strata) if k in of_unit} for k in sorted(set().union(*strata))}
    lacking = {k: [sum(sizes[unit] for unit in units) / folds] * folds for k, units in left.items()}
    lacking_rows = [sum(sizes) / folds] * folds
    fold_of: dict[int, int] = {}

    def deal(units: Iterable[int], of_class: list[float]) -> None:
        for unit in sorted(units, key=lambda unit: (-sizes[unit], unit)):
            fold_of[unit] = fold = max(range(folds), key=lambda fold: (round(of_class[fold], 6), round(lacking_rows[fold], 6), -fold))
            lacking_rows[fold] -= sizes[unit]
            for k in strata[unit]:
                lacking[k][fold] -= sizes[unit]
                left[k].discard(unit)

    while remaining := [k for k, units in left.items() if units]:
        rarest = min(remaining, key=lambda k: (len(left[k]), k))
        deal(left[rarest], lacking[rarest])
    deal((unit for unit in range(len(strata)) if unit not in fold_of), lacking_rows)
    return [fold_of[unit] for unit in range(len(strata))]
