"""Seeded cuts: a partition of given sizes, the same for the same seed, and limits in proportion."""

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.corpora.corpus import SPLITS, Corpus, Example, Split
from lugpi_core.corpora.splits import cut_from_train, limited, seeded_splits, share_down, share_up, shares, warn_of_lost_labels


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
