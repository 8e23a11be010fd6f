"""Corpora: rows, counts, texts in memory, and a fingerprint that changes with every field that matters."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.corpora.corpus import SPLITS, UNLABELLED, Corpus, Example, Split
from lugpi_core.corpora.load import load_corpus
from lugpi_core.errors import InputError

FIRST = Example(id="a", text="one", prompt="draw one", label=0, split="train")
SECOND = Example(id="b", text="two", prompt="draw two", label=1, split="test")
CORPUS = Corpus(name="c", label_names=("x", "y"), examples=(FIRST, SECOND), license="none")
FOUR_SPLITS = ["train", "train", "dev", "test"]


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
def test_the_fingerprint_changes_with_everything_that_affects_a_run(changed: Corpus) -> None:
    assert changed.fingerprint() != CORPUS.fingerprint()


def test_the_fingerprint_ignores_name_licence_and_separator() -> None:
    renamed = dataclasses.replace(CORPUS, name="other", license="MIT", separator="[SEP]")
    assert renamed.fingerprint() == CORPUS.fingerprint()


def test_moving_a_letter_between_fields_changes_the_fingerprint() -> None:
    assert _with_example(id="ab", text="c").fingerprint() != _with_example(id="a", text="bc").fingerprint()


def test_a_text_with_a_lone_surrogate_has_a_fingerprint() -> None:
    assert len(_with_example(text="broken \ud800 text").fingerprint()) == 32


@pytest.mark.parametrize(("value", "field"), [(FIRST, "label"), (CORPUS, "name")])
def test_examples_and_corpora_cannot_be_changed(value: Example | Corpus, field: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, "other")


def test_printing_a_corpus_does_not_print_its_texts() -> None:
    assert "draw one" not in repr(CORPUS)


def test_texts_in_memory_become_a_corpus_like_a_file(tmp_path: Path) -> None:
    texts, labels = [f"text {n}" for n in range(40)], ["b", "a"] * 20
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True)))
    corpus = Corpus.from_texts(texts, labels)
    assert corpus == load_corpus(path)
    assert corpus.name == "texts"
    assert corpus.label_names == ("a", "b")
    assert corpus.counts() == {"train": 29, "validation": 3, "test": 8}


def test_texts_in_memory_have_prompts_splits_and_label_numbers() -> None:
    labels = np.array([1, 0, 1, 1])
    corpus = Corpus.from_texts("abcd", labels, prompts="efgh", splits=FOUR_SPLITS, name="four", label_names=["no", "yes"])
    assert [(e.id, e.text, e.prompt, e.label, e.split) for e in corpus.examples] == [
        ("row/0", "a", "e", 1, "train"),
        ("row/1", "b", "f", 0, "train"),
        ("row/2", "c", "g", 1, "validation"),
        ("row/3", "d", "h", 1, "test"),
    ]
    assert (corpus.name, corpus.label_names, corpus.license) == ("four", ("no", "yes"), "not stated")
    assert Corpus.from_texts("abcd", [10, 9, 10, 9], splits=FOUR_SPLITS).label_names == ("9", "10")
    assert Corpus.from_texts("abcd", ["yes", "no", "no", "no"], splits=FOUR_SPLITS, label_names=["no", "yes"]).examples[0].label == 1


def test_unlabelled_texts_in_memory_are_train_examples() -> None:
    corpus = Corpus.from_texts(["a", "b"], prompts=["c", "d"])
    assert {(e.label, e.split) for e in corpus.examples} == {(UNLABELLED, "train")}
    assert [e.prompt for e in corpus.examples] == ["c", "d"]
    assert corpus.label_names == ()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"labels": ["a"]}, "got 1 labels; expected 4, one for each text"),
        ({"labels": ["a", "b", "", "b"], "splits": FOUR_SPLITS}, "1 missing or unusable labels in label of texts, the first ''"),
        ({"labels": ["a", "b", None, "b"], "splits": FOUR_SPLITS}, "1 missing or unusable labels in label of texts, the first None"),
        (
            {"labels": [0, 1, 2, 0], "splits": FOUR_SPLITS, "label_names": ["x", "y"]},
            "1 missing or unusable labels in label of texts, the first 2",
        ),
        ({"labels": ["x", "y", "z", "x"], "splits": FOUR_SPLITS, "label_names": ["x", "y"]}, "the first 'z'"),
        ({"labels": ["a", "b", "a", "b"]}, "no validation example in texts"),
        ({"labels": ["a", "b", "a", "b"], "splits": ["train", "train", "exam", "test"]}, "1 unknown values in split of texts"),
        ({"labels": ["a"] * 4, "splits": FOUR_SPLITS}, "only the label a in texts"),
        ({"prompts": ["a", " ", "c", "d"]}, "1 empty texts in prompt of texts: rows, counted from 0, 1;"),
        ({"splits": ["train"] * 4}, "splits without labels"),
    ],
)
def test_unusable_texts_in_memory_are_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Corpus.from_texts(["p", "q", "r", "s"], **columns)


def test_the_fingerprint_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.from_texts(["a", "b"])
    before = corpus.fingerprint()
    monkeypatch.setattr("lugpi_core.corpora.corpus.xxhash", None)
    assert corpus.fingerprint() == before
    assert corpus == Corpus.from_texts(["a", "b"])
