"""Seeded cuts: a partition of given sizes, the same for the same seed, and limits in proportion."""

import dataclasses
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lugpi_core.corpora.corpus import SPLITS, UNLABELLED, Corpus, Example, Split
from lugpi_core.corpora.splits import (
    cut_from_train,
    cut_in_strata,
    limited,
    quotas,
    seeded_splits,
    share_down,
    share_up,
    shares,
    strata_of,
    warn_of_lost_labels,
)
from lugpi_core.errors import InputError


@given(st.integers(0, 10**7), st.integers(0, 100))
def test_shares_are_the_exact_floor_and_ceiling(count: int, percent: int) -> None:
    exact = Fraction(count * percent, 100)
    assert share_down(count, percent) == math.floor(exact)
    assert share_up(count, percent) == math.ceil(exact)


@given(st.integers(0, 300), st.data())
def test_a_seeded_cut_is_a_partition_of_the_asked_sizes(count: int, data: st.DataObject) -> None:
    test = data.draw(st.integers(0, count))
    validation = data.draw(st.integers(0, count - test))
    splits = seeded_splits(count, test=test, validation=validation, seed=data.draw(st.integers(0, 9)))
    assert Counter(splits) == Counter({"test": test, "validation": validation, "train": count - test - validation})


def test_only_the_seed_determines_the_cut() -> None:
    first = seeded_splits(100, test=33, validation=6, seed=1)
    assert first == seeded_splits(100, test=33, validation=6, seed=1)
    assert first != seeded_splits(100, test=33, validation=6, seed=2)


def test_a_cut_from_train_leaves_every_other_row_alone() -> None:
    given_splits: list[Split] = [*(("test", "train") * 20), "validation", "validation", "validation"]
    cut = cut_from_train(given_splits, validation=7, seed=4)
    changed = [(before, after) for before, after in zip(given_splits, cut, strict=True) if before != after]
    assert changed == [("train", "validation")] * 7


@given(st.lists(st.integers(1, 1000), min_size=3, max_size=3), st.data())
def test_a_limit_is_divided_in_proportion(counts: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(3, sum(counts)))
    parts = shares(counts, total)
    assert sum(parts) == total
    assert all(1 <= part <= count for part, count in zip(parts, counts, strict=True))
    if min(counts) * total >= sum(counts):  # no part has to be raised to one
        assert all(abs(part - count * total / sum(counts)) < 1 for part, count in zip(parts, counts, strict=True))


def _corpus(sizes: tuple[int, int, int]) -> Corpus:
    splits = seeded_splits(sum(sizes), test=sizes[2], validation=sizes[1], seed=0)
    examples = tuple(Example(id=str(row), text="t", prompt="t", label=row % 2, split=split) for row, split in enumerate(splits))
    return Corpus(name="c", label_names=("a", "b"), examples=examples, license="none")


def test_a_limited_corpus_keeps_the_order_and_the_proportions() -> None:
    corpus = limited(_corpus((800, 100, 100)), 100, seed=3)
    rows = [int(example.id) for example in corpus.examples]
    assert rows == sorted(set(rows))
    assert rows != list(range(100))
    assert corpus.counts() == {"train": 80, "validation": 10, "test": 10}


def test_the_seed_determines_what_a_limit_selects() -> None:
    corpus = _corpus((80, 10, 10))
    assert limited(corpus, 20, seed=1) == limited(corpus, 20, seed=1)
    assert limited(corpus, 20, seed=1) != limited(corpus, 20, seed=2)


def test_a_limit_of_everything_changes_nothing() -> None:
    corpus = _corpus((5, 3, 2))
    assert limited(corpus, 10, seed=0) == corpus
    assert limited(corpus, 3, seed=0).counts() == dict.fromkeys(SPLITS, 1)


def test_a_limit_without_train_examples_of_a_label_warns() -> None:
    splits: tuple[Split, ...] = ("train", "train", "train", "train", "validation", "test")
    examples = tuple(Example(id=str(n), text="t", prompt="p", label=[0, 1, 0, 1, 0, 2][n], split=split) for n, split in enumerate(splits))
    corpus = Corpus(name="c", label_names=("a", "b", "c"), examples=examples, license="none")
    with pytest.warns(UserWarning, match="no train example of c"):
        warn_of_lost_labels(limited(corpus, 5, seed=0))


# Cuts with a share of every class


def _cut(strata: list[int], *, test: int, validation: int, groups: list[int] | None = None, seed: int = 0) -> list[Split]:
    return cut_in_strata(strata, groups, test=test, validation=validation, seed=seed, otherwise="give splits")


@given(st.lists(st.integers(0, 4), min_size=14, max_size=200), st.integers(0, 9))
def test_a_stratified_cut_has_the_asked_sizes_and_leaves_every_class_in_train(strata: list[int], seed: int) -> None:
    test = share_up(len(strata), 20)
    validation = share_down(len(strata) - test, 10)
    splits = _cut(strata, test=test, validation=validation, seed=seed)
    assert Counter(splits) == Counter({"test": test, "validation": validation, "train": len(strata) - test - validation})
    assert {stratum for stratum, split in zip(strata, splits, strict=True) if split == "train"} == set(strata)
    assert splits == _cut(strata, test=test, validation=validation, seed=seed)


@given(st.lists(st.integers(10, 200), min_size=2, max_size=5), st.integers(0, 9))
def test_every_class_has_its_share_of_every_split(sizes: list[int], seed: int) -> None:
    strata = [number for number, size in enumerate(sizes) for _ in range(size)]
    test = share_up(len(strata), 20)
    splits = _cut(strata, test=test, validation=share_down(len(strata) - test, 10), seed=seed)
    for number, size in enumerate(sizes):
        of_class = Counter(split for stratum, split in zip(strata, splits, strict=True) if stratum == number)
        assert abs(of_class["test"] - size * test / len(strata)) <= 1
        assert min(of_class.values()) >= 1


@given(st.lists(st.integers(-1, 6), min_size=14, max_size=120), st.integers(0, 9))
def test_rows_are_cut_as_groups_of_one_row_are(strata: list[int], seed: int) -> None:
    test = share_up(len(strata), 20)
    sizes = {"test": test, "validation": share_down(len(strata) - test, 10)}
    assume(len(strata) - len(set(strata)) >= sum(sizes.values()))
    assert _cut(strata, seed=seed, **sizes) == _cut(strata, groups=list(range(len(strata))), seed=seed, **sizes)


def test_the_seed_determines_a_stratified_cut() -> None:
    strata = [0, 1] * 50
    assert _cut(strata, test=20, validation=8, seed=1) != _cut(strata, test=20, validation=8, seed=2)


def test_rare_classes_have_their_rows_in_train_first_and_in_test_next() -> None:
    strata = [0] * 40 + [1] + [2] * 2 + [3] * 3
    splits = _cut(strata, test=10, validation=4)
    assert [Counter(splits[40:41]), Counter(splits[41:43]), Counter(splits[43:])] == [
        Counter(train=1),
        Counter(train=1, test=1),
        Counter(train=1, test=1, validation=1),
    ]


def test_many_classes_of_one_row_make_the_other_splits_smaller() -> None:
    splits = _cut([0] * 5 + list(range(1, 21)), test=5, validation=2)
    assert Counter(splits[5:]) == Counter(train=20)
    assert Counter(splits[:5]) == Counter(train=1, test=2, validation=2)
    assert Counter(_cut([0] * 3 + list(range(1, 21)), test=5, validation=1)) == Counter(train=21, test=1, validation=1)


@pytest.mark.parametrize("strata", [list(range(20)), [0, 0, *range(1, 19)]])
def test_classes_of_one_row_alone_cannot_be_cut(strata: list[int]) -> None:
    with pytest.raises(
        InputError, match=r"20 train examples of \d+ classes, of which [01] could leave train without losing a class; expected 2"
    ):
        _cut(strata, test=4, validation=1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=14, max_size=120), st.integers(0, 9))
def test_groups_stay_together_and_no_split_is_empty(rows: list[tuple[int, int]], seed: int) -> None:
    strata, groups = [stratum for stratum, _ in rows], [group for _, group in rows]
    test = share_up(len(rows), 20)
    validation = share_down(len(rows) - test, 10)
    splits = _cut(strata, groups=groups, test=test, validation=validation, seed=seed)
    of_group = {group: {split for split, other in zip(splits, groups, strict=True) if other == group} for group in groups}
    assert all(len(its) == 1 for its in of_group.values())
    assert len(set(splits)) == min(3, len(of_group))
    assert splits == _cut(strata, groups=groups, test=test, validation=validation, seed=seed)


@given(st.lists(st.integers(1, 5), min_size=60, max_size=90), st.integers(0, 9))
def test_the_sizes_of_splits_of_groups_are_near_the_asked_ones(sizes: list[int], seed: int) -> None:
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    strata = [group % 2 for group in groups]
    test = share_up(len(groups), 20)
    splits = _cut(strata, groups=groups, test=test, validation=share_down(len(groups) - test, 10), seed=seed)
    assert abs(splits.count("test") - test) <= max(sizes)


def test_a_group_larger_than_a_split_is_not_put_into_it() -> None:
    groups = [0] * 60 + list(range(1, 41))
    splits = _cut([0] * 100, groups=groups, test=20, validation=8)
    assert set(splits[:60]) == {"train"}
    assert Counter(splits) == Counter(train=72, test=20, validation=8)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.data())
def test_quotas_fill_the_seats_and_respect_the_room(counts: list[int], data: st.DataObject) -> None:
    room = [data.draw(st.integers(0, count)) for count in counts]
    total = data.draw(st.integers(0, sum(room)))
    seats = quotas(counts, room, total)
    assert sum(seats) == total
    assert all(0 <= seat <= most for seat, most in zip(seats, room, strict=True))
    if total >= sum(map(bool, room)):
        assert all(seat >= 1 for seat, most in zip(seats, room, strict=True) if most)


def _labelled(targets: list[Any]) -> list[Example]:
    return [
        Example(
            id=str(n),
            text="t",
            prompt="p",
            label=target if isinstance(target, int) else UNLABELLED,
            split="train",
            target=None if isinstance(target, int) else target,
        )
        for n, target in enumerate(targets)
    ]


def test_strata_are_classes_rarest_classes_and_tenths_of_numbers() -> None:
    assert strata_of(_labelled([2, 0, 2]), range(3)) == [2, 0, 2]
    # Class 1 is rarer than class 0; class 5 has one row.
    assert strata_of(_labelled([(0, 1), (0,), (0,), (1,), (), (5,), (), (0, 5)][:7]), range(7)) == [1, 0, 0, 1, -1, -2, -1]
    numbers = [float(n) for n in range(100, 0, -1)]
    assert strata_of(_labelled(list(numbers)), range(100)) == [(int(number) - 1) // 10 for number in numbers]
    assert set(strata_of(_labelled([0.5] * 9), range(9))) == {0}


def test_a_limit_knows_the_classes_of_multi_label_examples() -> None:
    examples = [*_labelled([(0,), (1,), (0, 1)]), dataclasses.replace(_labelled([(2,)])[0], split="test")]
    corpus = Corpus(name="c", label_names=("a", "b", "c"), examples=tuple(examples), license="none", task="multi-label")
    with pytest.warns(UserWarning, match="no train example of c"):
        warn_of_lost_labels(corpus)
    warn_of_lost_labels(Corpus(name="c", label_names=("n",), examples=tuple(_labelled([0.5, 1.5])), license="none", task="regression"))
