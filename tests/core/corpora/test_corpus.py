"""Corpora: rows, counts, texts in memory, and a fingerprint that changes with every field that matters."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.corpora.corpus import SPLITS, UNLABELLED, Corpus, Example, Split
from lugpi_core.corpora.load import load_corpus
from lugpi_core.errors import InputError

FIRST = Example(id="a", text="one", prompt="draw one", label=0, split="train")
SECOND = Example(id="b", text="two", prompt="draw two", label=1, split="test")
CORPUS = Corpus(name="c", label_names=("x", "y"), examples=(FIRST, SECOND), license="none")
TEXTS = ["a", "b", "c", "d"]
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


LETTERS = st.text(st.characters(exclude_categories=()), max_size=4)
EXAMPLES = st.builds(
    Example,
    id=LETTERS,
    text=LETTERS,
    prompt=LETTERS,
    label=st.integers(-1, 2),
    split=st.sampled_from(SPLITS),
    pair=st.none() | LETTERS,
    target=st.none() | st.floats(allow_nan=False) | st.tuples(st.integers(0, 2)),
)


@given(st.lists(EXAMPLES, max_size=6))
def test_examples_are_what_was_given(given_examples: list[Example]) -> None:
    corpus = dataclasses.replace(CORPUS, examples=tuple(given_examples))
    assert list(corpus.examples) == [corpus.examples[row] for row in range(len(given_examples))] == given_examples
    assert corpus.examples == tuple(given_examples)
    assert corpus.examples[1:] == given_examples[1:]
    assert corpus == dataclasses.replace(CORPUS, examples=given_examples)
    assert corpus.has_pairs == any(example.pair is not None for example in given_examples)
    assert corpus.fingerprint() == _fingerprint(corpus)
    numbers = dataclasses.replace(corpus, task="regression")
    assert numbers.fingerprint() == _fingerprint(numbers)


def _fingerprint(corpus: Corpus) -> str:
    """Return the fingerprint by its definition, on which every existing store depends."""

    def framed(text: str) -> bytes:
        data = text.encode("utf-8", "surrogatepass")
        return len(data).to_bytes(8, "little") + data

    examples = list(corpus.examples)
    parts = list(corpus.label_names)
    parts += [part for one in examples for part in (one.id, one.text, one.prompt, str(one.label), one.split)]
    if corpus.task != "single-label":
        parts += [f"task {corpus.task}", *(repr(one.target) for one in examples)]
    if any(one.pair is not None for one in examples):
        parts += ["pairs", *("" if one.pair is None else f"={one.pair}" for one in examples)]
    return xxhash.xxh3_128_hexdigest(b"".join(map(framed, parts)))


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


def test_the_fingerprint_of_single_texts_with_single_labels_is_that_of_earlier_versions() -> None:
    assert CORPUS.fingerprint() == "58ad97e89dfc1c7ae0150f381f99396f"


@pytest.mark.parametrize(
    "changed",
    [
        dataclasses.replace(CORPUS, task="multi-label"),
        dataclasses.replace(CORPUS, task="regression"),
        _with_example(pair="other"),
        _with_example(pair=""),
        dataclasses.replace(_with_example(target=(0,)), task="multi-label"),
        dataclasses.replace(_with_example(target=()), task="multi-label"),
        dataclasses.replace(_with_example(target=(0, 1)), task="multi-label"),
        dataclasses.replace(_with_example(target=0.5), task="regression"),
        dataclasses.replace(_with_example(target=0.25), task="regression"),
    ],
)
def test_pairs_tasks_and_targets_are_part_of_the_fingerprint(changed: Corpus) -> None:
    other = dataclasses.replace(_with_example(pair="another"), task="regression")
    assert len({changed.fingerprint(), CORPUS.fingerprint(), other.fingerprint()}) == 3


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
    corpus = Corpus.from_texts(TEXTS, labels, prompts=("e", "f", "g", "h"), splits=FOUR_SPLITS, name="four", label_names=["no", "yes"])
    assert [(e.id, e.text, e.prompt, e.label, e.split) for e in corpus.examples] == [
        ("row/0", "a", "e", 1, "train"),
        ("row/1", "b", "f", 0, "train"),
        ("row/2", "c", "g", 1, "validation"),
        ("row/3", "d", "h", 1, "test"),
    ]
    assert (corpus.name, corpus.label_names, corpus.license) == ("four", ("no", "yes"), "not stated")
    assert Corpus.from_texts(TEXTS, [10, 9, 10, 9], splits=FOUR_SPLITS).label_names == ("9", "10")
    assert Corpus.from_texts(TEXTS, ["yes", "no", "no", "no"], splits=FOUR_SPLITS, label_names=["no", "yes"]).examples[0].label == 1


def test_unlabelled_texts_in_memory_are_train_examples() -> None:
    corpus = Corpus.from_texts(["a", "b"], prompts=["c", "d"])
    assert {(e.label, e.split) for e in corpus.examples} == {(UNLABELLED, "train")}
    assert [e.prompt for e in corpus.examples] == ["c", "d"]
    assert corpus.label_names == ()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"labels": ["a"]}, "got 1 label; expected 4, one for each text"),
        ({"labels": ["a", "b", "", "b"], "splits": FOUR_SPLITS}, "1 missing or unusable label in label of texts, the first ''"),
        ({"labels": ["a", "b", None, "b"], "splits": FOUR_SPLITS}, "1 missing or unusable label in label of texts, the first None"),
        (
            {"labels": [0, 1, 2, 0], "splits": FOUR_SPLITS, "label_names": ["x", "y"]},
            "1 missing or unusable label in label of texts, the first 2: rows, counted from 0, 2; expected one of the classes x, y",
        ),
        ({"labels": ["x", "y", "z", "x"], "splits": FOUR_SPLITS, "label_names": ["x", "y"]}, "the first 'z'"),
        ({"labels": ["a", "b", "a", "b"]}, "no validation example in texts"),
        ({"labels": ["a", "b", "a", "b"], "splits": ["train", "train", "exam", "test"]}, "1 unknown value in split of texts"),
        ({"labels": ["a"] * 4, "splits": FOUR_SPLITS}, "only the label a in texts"),
        ({"prompts": ["a", " ", "c", "d"]}, "1 empty text in prompt of texts: rows, counted from 0, 1;"),
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


@pytest.mark.parametrize("argument", ["texts", "labels", "prompts", "splits", "label_names"])
@pytest.mark.parametrize(
    "given",
    ["abcd", {*"abcd"}, dict.fromkeys("abcd"), pd.DataFrame({"a": TEXTS}), np.array([TEXTS]), np.array("a"), 4],
    ids=lambda v: type(v).__name__,
)
def test_what_is_no_list_is_refused(argument: str, given: Any) -> None:
    columns: dict[str, Any] = {"texts": TEXTS, "labels": ["x", "y", "x", "y"], "splits": FOUR_SPLITS} | {argument: given}
    with pytest.raises(InputError, match=f"^got {argument} of type {type(given).__name__}; expected a list of {argument}"):
        Corpus.from_texts(**columns)


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series, iter], ids=lambda kind: kind.__name__)
def test_lists_of_every_kind_are_texts(kind: Any) -> None:
    labels = ["x", "y", "x", "y"]
    expected = Corpus.from_texts(TEXTS, labels, splits=FOUR_SPLITS, label_names=["y", "x"])
    assert Corpus.from_texts(kind(TEXTS), kind(labels), splits=kind(FOUR_SPLITS), label_names=kind(["y", " x"])) == expected


def test_whole_numbers_that_are_floats_are_class_numbers() -> None:
    corpus = Corpus.from_texts(TEXTS, np.array([0.0, 1.0, 1.0, 0.0]), splits=FOUR_SPLITS, label_names=["no", "yes"])
    assert [example.label for example in corpus.examples] == [0, 1, 1, 0]
    with pytest.raises(InputError, match=r"1 missing or unusable label in label of texts, the first 0\.5"):
        Corpus.from_texts(TEXTS, [0.0, 0.5, 1.0, 0.0], splits=FOUR_SPLITS, label_names=["no", "yes"])


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "/a", "a/", "a\0", None, 3])
def test_a_name_that_no_folder_can_have_is_refused(name: Any) -> None:
    with pytest.raises(InputError, match="expected a plain folder name"):
        Corpus.from_texts(TEXTS, name=name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x", "x"], "got label_names x, x; expected different names"),
        (["x", ""], "got 1 empty text in label_names of texts"),
        (["x", 1, 2], "got 2 values missing or not text in label_names of texts"),
    ],
)
def test_unusable_label_names_are_refused(names: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Corpus.from_texts(TEXTS, ["x", "x", "x", "x"], splits=FOUR_SPLITS, label_names=names)


def test_a_class_without_a_train_example_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="texts has no train example of z, w"):
        corpus = Corpus.from_texts(TEXTS, ["x", "y", "x", "y"], splits=FOUR_SPLITS, label_names=["x", "z", "y", "w"])
    assert corpus.label_names == ("x", "z", "y", "w")


@pytest.mark.parametrize("word", ["val", "valid", "dev", "Validation"])
def test_a_split_may_be_named_as_in_a_file(word: str) -> None:
    corpus = Corpus.from_texts(TEXTS, ["x", "y", "x", "y"], splits=["train", "train", word, "test"])
    assert corpus.rows(word) == corpus.rows("validation") == [2]


@pytest.mark.parametrize("word", ["tset", "", None])
def test_an_unknown_split_is_refused(word: Any) -> None:
    with pytest.raises(InputError, match=f"got split {word!r}; expected one of train, validation"):
        CORPUS.rows(word)


def test_none_is_no_list_of_texts() -> None:
    texts: Any = None
    with pytest.raises(InputError, match="got texts of type NoneType; expected a list of texts"):
        Corpus.from_texts(texts)


def test_single_labels_are_the_targets_of_a_single_label_corpus() -> None:
    targets = _with_example(label=UNLABELLED).targets()
    assert targets.dtype == np.int64
    assert targets.tolist() == [-1, 1]
    assert [example.is_labelled for example in _with_example(label=UNLABELLED).examples] == [False, True]


def test_several_labels_are_rows_of_0_and_1() -> None:
    labels = [["b", "a"], [], ["c"], ["b", "b"]]
    with pytest.warns(UserWarning, match="texts has no train example of c"):
        corpus = Corpus.from_texts(TEXTS, labels, splits=FOUR_SPLITS, task="multi-label")
    assert (corpus.task, corpus.label_names) == ("multi-label", ("a", "b", "c"))
    assert [example.target for example in corpus.examples] == [(0, 1), (), (2,), (1,)]
    assert {(example.label, example.is_labelled) for example in corpus.examples} == {(UNLABELLED, True)}
    assert corpus.targets().dtype == np.float32
    assert corpus.targets().tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]]
    unlabelled = dataclasses.replace(corpus.examples[0], target=None)
    assert np.isnan(dataclasses.replace(corpus, examples=(unlabelled, *corpus.examples[1:])).targets()).sum(1).tolist() == [3, 0, 0, 0]
    assert not unlabelled.is_labelled


def test_numbers_are_the_targets_of_a_regression_corpus() -> None:
    corpus = Corpus.from_texts(TEXTS, np.array([0.5, -1, 3, 2]), splits=FOUR_SPLITS, task="regression")
    assert (corpus.task, corpus.label_names) == ("regression", ("label",))
    assert corpus.targets().dtype == np.float32
    assert corpus.targets().tolist() == [0.5, -1, 3, 2]
    unlabelled = dataclasses.replace(corpus.examples[0], target=None)
    assert np.isnan(dataclasses.replace(corpus, examples=(unlabelled, *corpus.examples[1:])).targets()).tolist() == [
        True,
        False,
        False,
        False,
    ]


def test_pairs_of_texts_are_drawn_from_both() -> None:
    corpus = Corpus.from_texts(TEXTS, ["x", "y", "x", "y"], splits=FOUR_SPLITS, pairs=["e", "f", "g", "h"])
    assert [(example.text, example.pair, example.prompt) for example in corpus.examples][:2] == [("a", "e", "a e"), ("b", "f", "b f")]
    assert corpus.has_pairs
    assert not CORPUS.has_pairs
    prompted = Corpus.from_texts(TEXTS, ["x", "y", "x", "y"], splits=FOUR_SPLITS, pairs=["e", "f", "g", "h"], prompts=["p"] * 4)
    assert {example.prompt for example in prompted.examples} == {"p"}


def test_an_unknown_column_of_texts_is_a_type_error() -> None:
    wrong: dict[str, Any] = {"promts": TEXTS}
    with pytest.raises(TypeError, match="'promts'; expected prompts, pairs, groups"):
        Corpus.from_texts(TEXTS, **wrong)
