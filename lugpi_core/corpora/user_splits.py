"""The splits of a user's corpus: those that are missing are cut from train, and what each of them lacks is told."""

import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

from lugpi_core.corpora.advice import Advice
from lugpi_core.corpora.corpus import SPLITS, Examples, Split, numbers_of_splits
from lugpi_core.corpora.label_spelling import may_mean_none
from lugpi_core.corpora.options import CorpusSettings, Task
from lugpi_core.corpora.splits import (
    VALIDATION_PERCENT,
    classes_by_split,
    cut_from_train,
    cut_in_strata,
    share_down,
    share_up,
    strata_of,
)
from lugpi_core.errors import InputError, number_of

TEST_PERCENT = 20
_FEWEST_ROWS = 13  # of which 3 are test and 1 is validation
_NAMED_CLASSES = 5


def cut_missing_splits(
    examples: Examples, groups: Sequence[Hashable] | None, name: str, settings: CorpusSettings, advice: Advice
) -> Examples:
    """Return the examples with a validation and a test split: whichever is empty is cut from train.

    20 % of train become test, 10 % of the rest validation. By default each split gets its share of every class (``cut_in_strata``);
    with groups, each group is in one split.

    Raises:
        InputError: a split is empty all the same.
    """
    given: list[Split] = [SPLITS[number] for number in examples.splits.tolist()]
    train = [row for row, split in enumerate(given) if split == "train"]
    test = 0 if "test" in given else share_up(len(train), TEST_PERCENT)
    validation = 0 if "validation" in given else share_down(len(train) - test, VALIDATION_PERCENT)
    if not validation and "validation" not in given:
        raise _no_example("validation", name, len(given), advice, in_groups=groups is not None)
    splits = list(given)
    if not test and not validation:
        _warn_of_idle_settings(name, settings)
    elif settings.stratify or groups is not None:
        strata = strata_of(examples, train) if settings.stratify else [0] * len(train)
        of_train = None if groups is None else [groups[row] for row in train]
        cut = cut_in_strata(strata, of_train, test=test, validation=validation, seed=settings.split_seed, otherwise=advice.splits)
        for row, split in zip(train, cut, strict=True):
            splits[row] = split
    else:
        splits = cut_from_train(given, test=test, validation=validation, seed=settings.split_seed)
    for split in SPLITS:
        if split not in splits:
            raise _no_example(split, name, len(splits), advice, in_groups=groups is not None)
    if groups is not None:
        _warn_of_divided_groups(groups, splits, name)
    return replace(examples, splits=numbers_of_splits(splits))


def _no_example(split: Split, name: str, rows: int, advice: Advice, *, in_groups: bool) -> InputError:
    more = (
        "groups (every split needs one)" if in_groups and rows >= _FEWEST_ROWS else f"examples ({_FEWEST_ROWS} are enough for a random cut)"
    )
    return InputError(
        got=f"no {split} example in {name} ({rows:,} in all)",
        expected="train, validation and test examples",
        do=f"add {more}, or {advice.splits}",
    )


def _warn_of_idle_settings(name: str, settings: CorpusSettings) -> None:
    if settings.split_seed and settings.limit is None:
        warnings.warn(f"--split-seed {settings.split_seed} has no effect on {name}: all its splits are given", stacklevel=6)
    if not settings.stratify:
        warnings.warn(f"--no-stratify has no effect on {name}: all its splits are given", stacklevel=6)


def _warn_of_divided_groups(groups: Sequence[Hashable], splits: Sequence[Split], name: str) -> None:
    of_group: dict[Hashable, set[Split]] = {}
    for group, split in zip(groups, splits, strict=True):
        of_group.setdefault(group, set()).add(split)
    divided = [group for group, its in of_group.items() if len(its) > 1]
    if divided:
        count = f"{len(divided):,} of {number_of(len(of_group), 'group{s}')}"
        warnings.warn(f"{name}: {count} are in more than one of the given splits, {divided[0]!r} the first", stacklevel=5)


def check_classes(examples: Examples, classes: Sequence[str], *, where: str, task: Task, advice: Advice) -> None:
    """Warn of classes that a split lacks.

    Raises:
        InputError: there is nothing to tell apart: fewer than two classes, or one number; or a single-label class has no train example.
    """
    if task == "regression":
        train = (examples.splits == SPLITS.index("train")).tolist()
        if len({target for target, is_trained in zip(examples.targets or (), train, strict=False) if is_trained}) < 2:
            raise InputError(
                got=f"one and the same number on every train example of {where}", expected="two or more", do="check the labels"
            )
        return
    of_split = classes_by_split(examples)
    counts = Counter({(number, split): count for split, its in of_split.items() for number, count in its.items()})
    present = {number for number, _ in counts}
    if len(present) < 2:
        shown = ", ".join(classes[number] for number in present) or "none at all"
        raise InputError(got=f"only the label {shown} in {where}", expected="two classes or more", do="check the labels")
    untrained = {key: count for key, count in counts.items() if not counts[key[0], "train"]}
    if untrained and task == "single-label":
        in_order = Counter((number, example.split) for example in examples for number in example.classes)
        (number, split), count = max(((key, count) for key, count in in_order.items() if key in untrained), key=lambda item: item[1])
        do = f"move or add examples of it, or {advice.other_cut}"
        if may_mean_none(classes[number]):
            do = f"if it means no label, {advice.hidden if split == 'test' else advice.unlabelled}; else {do}"
        raise InputError(
            got=f"label {classes[number]!r} on {number_of(count, split + ' example{s}')} of {where} and on no train example",
            expected="every label among the train examples",
            do=do,
        )
    for split in SPLITS:
        # A class that no row has is said once.
        lacking = [name for number, name in enumerate(classes) if not counts[number, split] and (split == "train" or number in present)]
        if lacking:
            more = f" … ({len(lacking):,} of {len(classes):,})" if len(lacking) > _NAMED_CLASSES else ""
            warnings.warn(f"{where} has no {split} example of {', '.join(lacking[:_NAMED_CLASSES])}{more}", stacklevel=5)
