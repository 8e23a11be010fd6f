"""Folds of train texts: shares of each class, repeated texts together, and what is refused."""

from collections import Counter

import numpy as np
import pytest

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.folds import NO_FOLD, fold_of_each
from lugpi_core.errors import InputError


def corpus(sizes: dict[str, int], *, held: int = 4) -> Corpus:
    labels = [label for label, size in sizes.items() for _ in range(size)] + [next(iter(sizes))] * held
    splits = ["train"] * sum(sizes.values()) + ["validation", "test"] * (held // 2)
    return Corpus.from_texts([f"text {n}" for n in range(len(labels))], labels, splits=splits)


def test_every_fold_has_its_share_of_each_class_and_nothing_of_other_splits() -> None:
    one = corpus({"a": 50, "b": 23, "c": 7})
    fold_N = fold_of_each(one, 5, seed=0)
    train = one.rows("train")
    assert set(fold_N[one.rows("validation") + one.rows("test")]) == {NO_FOLD}
    for k, size in enumerate((50, 23, 7)):
        counts = Counter(fold_N[[row for row in train if one.examples[row].label == k]].tolist())
        assert set(counts) == set(range(5))
        assert set(counts.values()) <= {size // 5, -(-size // 5)}
    totals = Counter(fold_N[train].tolist())
    assert max(totals.values()) - min(totals.values()) <= 1


def test_the_seed_alone_decides_the_folds() -> None:
    one = corpus({"a": 40, "b": 40})
    first, again, other = (fold_of_each(one, 4, seed=seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_rows_of_one_text_are_in_one_fold() -> None:
    texts = [f"text {n % 30}" + " " * (n // 30) for n in range(90)]
    labels = [("a", "b")[n % 2] for n in range(90)]
    with pytest.warns(UserWarning, match="repeat an earlier one"):
        one = Corpus.from_texts([*texts, "v", "t"], [*labels, "a", "b"], splits=["train"] * 90 + ["validation", "test"])
    fold_N = fold_of_each(one, 3, seed=0)
    for text in range(30):
        assert len(set(fold_N[[text, text + 30, text + 60]].tolist())) == 1
    assert Counter(fold_N[:90].tolist()) == {0: 30, 1: 30, 2: 30}


def test_of_chosen_rows_every_fold_has_its_share_and_other_rows_are_in_none() -> None:
    one = corpus({"a": 40, "b": 40})
    rows = [*range(3, 9), *range(50, 56)]
    for seed in range(5):
        fold_N = fold_of_each(one, 3, seed=seed, rows=rows)
        assert set(np.delete(fold_N, rows).tolist()) == {NO_FOLD}
        for of_class in (rows[:6], rows[6:]):
            assert Counter(fold_N[of_class].tolist()) == {0: 2, 1: 2, 2: 2}
    with pytest.raises(InputError, match="got --folds 7 for 6 different train texts"):
        fold_of_each(one, 7, seed=0, rows=rows)


@pytest.mark.parametrize("seed", range(5))
def test_no_class_of_several_labels_is_in_one_fold_alone(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = [[str(k) for k in range(6) if generator.random() < 0.4 / (k + 1)] for _ in range(150)]
    labels[:12] = [[str(k), str((k + 1) % 6)] for k in range(6)] * 2
    one = Corpus.from_texts(
        [f"text {n}" for n in range(152)], [*labels, ["0"], ["1"]], splits=["train"] * 150 + ["validation", "test"], task="multi-label"
    )
    counts = Counter(k for of_text in labels for k in of_text)
    fold_N = fold_of_each(one, folds := min(4, *counts.values()), seed=seed)
    for k, count in counts.items():
        of_class = Counter(fold_N[[n for n in range(150) if k in labels[n]]].tolist())
        assert max(of_class.values()) <= -(-count // folds) + 1, (k, of_class)
    assert max(Counter(fold_N[:150].tolist()).values()) <= 150 // folds + 2


def test_numbers_are_spread_over_the_folds() -> None:
    numbers = np.arange(100.0)
    one = Corpus.from_texts(
        [f"text {n}" for n in range(102)], [*numbers, 1.0, 2.0], splits=["train"] * 100 + ["validation", "test"], task="regression"
    )
    fold_N = fold_of_each(one, 5, seed=0)
    means = [numbers[fold_N[:100] == fold].mean() for fold in range(5)]
    assert max(means) - min(means) < 5


@pytest.mark.parametrize(
    ("folds", "sizes", "message"),
    [
        (1, {"a": 9, "b": 9}, r"got --folds 1; expected 2 or more; give for instance 5"),
        (4, {"a": 9, "b": 3}, r"got --folds 4 for 3 different train texts of class 'b' of texts; .*give --folds 3 or less"),
        (2, {"a": 9, "b": 1}, r"1 different train text of class 'b'.*leave --folds out"),
    ],
)
def test_more_folds_than_a_class_has_texts_are_refused(folds: int, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fold_of_each(corpus(sizes), folds, seed=0)


def test_copies_of_a_text_count_once_for_the_smallest_class() -> None:
    texts = ["same"] * 5 + [f"text {n}" for n in range(7)]
    with pytest.warns(UserWarning, match="repeat an earlier one"):
        one = Corpus.from_texts(texts, ["b"] * 5 + ["a"] * 7, splits=["train"] * 10 + ["validation", "test"])
    with pytest.raises(InputError, match="1 different train text of class 'b'"):
        fold_of_each(one, 2, seed=0)
