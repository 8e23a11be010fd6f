"""Examples and corpora: rows, counts and a fingerprint that every deciding field moves."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.corpora.corpus import SPLITS, Corpus, Example, Split

FIRST = Example(id="a", text="one", prompt="draw one", label=0, split="train")
SECOND = Example(id="b", text="two", prompt="draw two", label=1, split="test")
CORPUS = Corpus(name="c", label_names=("x", "y"), examples=(FIRST, SECOND), license="none")


def _with_example(**changes: Any) -> Corpus:
    return dataclasses.replace(CORPUS, examples=(dataclasses.replace(FIRST, **changes), SECOND))


@given(st.lists(st.sampled_from(SPLITS), max_size=40))
def test_rows_and_counts_cover_every_example_once_and_ascend(splits: list[Split]) -> None:
    examples = tuple(Example(id=str(row), text="t", prompt="p", label=0, split=split) for row, split in enumerate(splits))
    corpus = dataclasses.replace(CORPUS, examples=examples)
    by_split = {split: corpus.rows(split) for split in SPLITS}
    assert sorted(row for rows in by_split.values() for row in rows) == list(range(len(splits)))
    assert all(rows == sorted(rows) and all(splits[row] == split for row in rows) for split, rows in by_split.items())
    assert corpus.counts() == {split: splits.count(split) for split in SPLITS}


@pytest.mark.parametrize(
    "changed",
    [
        _with_example(id="z"),
        _with_example(text="One"),
        _with_example(prompt="draw  one"),
        _with_example(label=1),
        _with_example(split="validation"),
        dataclasses.replace(CORPUS, label_names=("x", "z")),
        dataclasses.replace(CORPUS, examples=(SECOND, FIRST)),
        dataclasses.replace(CORPUS, examples=(FIRST,)),
        _with_example(text="onedraw", prompt=" one"),
    ],
    ids=["id", "text", "prompt", "label", "split", "label names", "order", "count", "border between two fields"],
)
def test_the_fingerprint_moves_with_everything_that_decides_a_run(changed: Corpus) -> None:
    assert changed.fingerprint() != CORPUS.fingerprint()


def test_the_fingerprint_does_not_move_with_name_licence_or_separator() -> None:
    renamed = dataclasses.replace(CORPUS, name="other", license="MIT", separator="[SEP]")
    assert renamed.fingerprint() == CORPUS.fingerprint()


def test_moving_a_letter_over_a_field_border_changes_the_fingerprint() -> None:
    assert _with_example(id="ab", text="c").fingerprint() != _with_example(id="a", text="bc").fingerprint()


def test_a_text_with_a_lone_surrogate_has_a_fingerprint() -> None:
    assert len(_with_example(text="broken \ud800 text").fingerprint()) == 32


@pytest.mark.parametrize(("value", "field"), [(FIRST, "label"), (CORPUS, "name")])
def test_examples_and_corpora_cannot_be_changed(value: Example | Corpus, field: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, "other")


def test_printing_a_corpus_does_not_print_its_texts() -> None:
    assert "draw one" not in repr(CORPUS)
