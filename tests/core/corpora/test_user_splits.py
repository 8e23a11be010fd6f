"""Splits of a user's corpus: cut with a share of every class, with groups whole, and told of where they lack something."""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError

N = 100
# Rows that version 47b8333 cut off as validation.
EARLIER = [19, 22, 23, 44, 50, 85, 97, 98]
# Two classes of 85 and 15 rows.
GOOD: dict[str, list[Any]] = {"text": [f"text {n}" for n in range(N)], "label": ["rare" if n % 20 < 3 else "common" for n in range(N)]}


def _load(folder: Path, columns: dict[str, list[Any]], **flags: Any) -> Corpus:
    pd.DataFrame(columns).to_json(folder / "t.jsonl", orient="records", lines=True)
    return load_corpus(folder / "t.jsonl", CorpusSettings(**flags))


def _of_class(corpus: Corpus, number: int) -> dict[str, int]:
    return Counter(example.split for example in corpus.examples if number in example.classes)


def test_a_cut_gives_every_split_its_share_of_every_class(tmp_path: Path) -> None:
    corpus = _load(tmp_path, GOOD)
    assert corpus.counts() == {"train": 72, "validation": 8, "test": 20}
    assert _of_class(corpus, 1) == {"train": 11, "validation": 1, "test": 3}
    assert _load(tmp_path, GOOD) == corpus != _load(tmp_path, GOOD, split_seed=1)


def test_a_cut_at_random_is_that_of_earlier_versions(tmp_path: Path) -> None:
    corpus = _load(tmp_path, GOOD, stratify=False)
    assert [n for n, example in enumerate(corpus.examples) if example.split == "validation"] == EARLIER
    assert corpus.counts() == {"train": 72, "validation": 8, "test": 20}


def test_classes_of_one_row_stay_in_train_and_are_told_of(tmp_path: Path) -> None:
    columns = {**GOOD, "label": ["single", "pair", "pair", *GOOD["label"][3:]]}
    with pytest.warns(UserWarning, match="has no") as warned:
        corpus = _load(tmp_path, columns)
    assert [str(warning.message).split("t.jsonl ")[1] for warning in warned] == [
        "has no validation example of pair, single",
        "has no test example of single",
    ]
    assert _of_class(corpus, corpus.label_names.index("single")) == {"train": 1}
    assert _of_class(corpus, corpus.label_names.index("pair")) == {"train": 1, "test": 1}


def test_many_lacking_classes_are_one_line(tmp_path: Path) -> None:
    columns = {**GOOD, "label": [f"c{n % 10}" for n in range(N)], "split": ["dev", "test", *["train"] * (N - 2)]}
    with pytest.warns(UserWarning, match="has no") as warned:
        _load(tmp_path, columns, split_column="split")
    assert [str(warning.message).split("t.jsonl ")[1] for warning in warned] == [
        "has no validation example of c1, c2, c3, c4, c5 … (9 of 10)",
        "has no test example of c0, c2, c3, c4, c5 … (9 of 10)",
    ]


def test_rows_of_a_group_stay_in_one_split(tmp_path: Path) -> None:
    corpus = _load(tmp_path, {**GOOD, "author": [n // 4 for n in range(N)]}, group_column="author")
    splits = [example.split for example in corpus.examples]
    assert all(len(set(splits[start : start + 4])) == 1 for start in range(0, N, 4))
    assert corpus.counts() == {"train": 72, "validation": 8, "test": 20}


def test_rows_of_a_group_stay_in_one_split_of_a_random_cut(tmp_path: Path) -> None:
    corpus = _load(tmp_path, {**GOOD, "author": [n // 4 for n in range(N)]}, group_column="author", stratify=False)
    assert all(len({example.split for example in corpus.examples[start : start + 4]}) == 1 for start in range(0, N, 4))


@pytest.mark.parametrize("stratify", [True, False])
def test_a_giant_group_leaves_one_for_validation(tmp_path: Path, *, stratify: bool) -> None:
    authors = ["giant"] * 90 + ["small"] * 5 + ["other"] * 5
    corpus = _load(tmp_path, {**GOOD, "label": ["a", "b"] * 50, "author": authors}, group_column="author", stratify=stratify)
    assert corpus.counts() == {"train": 90, "validation": 5, "test": 5}


@pytest.mark.parametrize(("labels", "stratify"), [(range(N), True), ([*range(72), *range(28)], False)])
def test_many_numbers_as_classes_are_refused_with_the_task_that_fits(tmp_path: Path, labels: list[int], *, stratify: bool) -> None:
    with pytest.warns(UserWarning, match="classes in 100 rows"), pytest.raises(InputError, match="--task regression"):
        _load(tmp_path, {**GOOD, "label": list(labels)}, stratify=stratify)


def test_groups_in_memory_stay_in_one_split() -> None:
    corpus = Corpus.from_texts(GOOD["text"], GOOD["label"], groups=[n // 4 for n in range(N)])
    assert all(len({example.split for example in corpus.examples[start : start + 4]}) == 1 for start in range(0, N, 4))


@pytest.mark.parametrize("cell", [None, "", " ", float("nan")])
def test_a_missing_group_is_refused_with_its_row(tmp_path: Path, cell: object) -> None:
    with pytest.raises(InputError, match=r"1 missing group in author of .*: rows, counted from 0, 7; .* one of their own"):
        _load(tmp_path, {**GOOD, "author": [cell if n == 7 else f"a{n}" for n in range(N)]}, group_column="author")


def test_two_groups_are_too_few_for_three_splits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no (validation|test) example in .*; add groups"):
        _load(tmp_path, {**GOOD, "author": [n % 2 for n in range(N)]}, group_column="author")


def test_groups_that_given_splits_divide_are_told_of(tmp_path: Path) -> None:
    columns = {**GOOD, "author": [n // 4 for n in range(N)], "split": ["dev", "test", *["train"] * (N - 2)]}
    with pytest.warns(UserWarning, match=r"1 of 25 groups are in more than one of the given splits, '0' the first"):
        _load(tmp_path, columns, split_column="split", group_column="author")


def test_multi_label_and_regression_corpora_are_cut_by_their_labels(tmp_path: Path) -> None:
    labels = [["common"] + ["rare"] * (n % 20 < 3) for n in range(N)]
    corpus = _load(tmp_path, {**GOOD, "label": labels}, task="multi-label")
    assert _of_class(corpus, 1) == {"train": 11, "validation": 1, "test": 3}
    numbers = _load(tmp_path, {**GOOD, "label": [n / 10 for n in range(N)]}, task="regression")
    assert numbers.counts() == {"train": 72, "validation": 8, "test": 20}
    tested = [example.target for example in numbers.examples if example.split == "test"]
    assert [sum(low <= number < low + 1 for number in tested if isinstance(number, float)) for low in range(10)] == [2] * 10
    assert numbers.label_names == ("label",)


def test_one_number_for_all_is_no_regression(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one and the same number on every train example of"):
        _load(tmp_path, {**GOOD, "label": [1.5] * N}, task="regression")


def test_one_class_is_no_multi_label_task(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only the label a in"):
        _load(tmp_path, {**GOOD, "label": [["a"], []] * 50}, task="multi-label")
    with pytest.raises(InputError, match="only the label none at all in"):
        _load(tmp_path, {**GOOD, "label": [[]] * N}, task="multi-label")


# --test-split


def _files(folder: Path, **parts: tuple[list[str], list[Any]]) -> tuple[Path, CorpusSettings]:
    for name, (texts, labels) in parts.items():
        pd.DataFrame({"text": texts, "label": labels}).to_json(folder / f"{name}.jsonl", orient="records", lines=True)
    others = {f"{name}_file": folder / f"{name}.jsonl" for name in ("validation", "test") if name in parts}
    return folder / "train.jsonl", CorpusSettings(**others)


VALIDATION = ([f"v{n}" for n in range(10)], ["common", "rare"] * 5)
HIDDEN = ([f"h{n}" for n in range(10)], [None] * 10)


def test_the_validation_split_is_scored_in_place_of_a_hidden_test_split(tmp_path: Path) -> None:
    train, settings = _files(tmp_path, train=(GOOD["text"], GOOD["label"]), validation=VALIDATION, test=HIDDEN)
    with pytest.raises(InputError, match=r"10 missing or unusable labels .*; --test-split validation scores"):
        load_corpus(train, settings)
    corpus = load_corpus(train, CorpusSettings(**{**vars(settings), "test_split": "validation"}))
    assert corpus.counts() == {"train": 90, "validation": 10, "test": 10}
    assert [example.id for example in corpus.examples if example.split == "test"] == [f"validation/{n}" for n in range(10)]
    assert {example.id.split("/")[0] for example in corpus.examples if example.split == "validation"} == {"train"}


def test_a_test_split_is_cut_in_place_of_a_hidden_one(tmp_path: Path) -> None:
    train, settings = _files(tmp_path, train=(GOOD["text"], GOOD["label"]), validation=VALIDATION, test=HIDDEN)
    corpus = load_corpus(train, CorpusSettings(**{**vars(settings), "test_split": "none"}))
    assert corpus.counts() == {"train": 80, "validation": 10, "test": 20}
    assert {example.id.split("/")[0] for example in corpus.examples if example.split == "test"} == {"train"}


def test_a_split_column_is_scored_alike(tmp_path: Path) -> None:
    columns = {**GOOD, "split": ["train"] * 70 + ["dev"] * 20 + ["test"] * 10, "label": [*GOOD["label"][:90], *[None] * 10]}
    corpus = _load(tmp_path, columns, split_column="split", test_split="validation")
    assert [example.id for example in corpus.examples if example.split == "test"] == [f"row/{n}" for n in range(70, 90)]
    assert corpus.counts() == {"train": 63, "validation": 7, "test": 20}


def test_a_test_file_without_labels_names_the_flag(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a"]}).to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(InputError, match=r"no column 'label' in .*test\.csv.*--test-split validation, or none"):
        _load(tmp_path, GOOD, test_file=tmp_path / "test.csv")


def test_a_test_split_that_is_not_there_cannot_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--test-split validation, and no validation example in .*--test-split none"):
        _load(tmp_path, GOOD, test_split="validation")
    with pytest.warns(UserWarning, match=r"^--test-split none has no effect on .*: it has no test split"):
        _load(tmp_path, GOOD, test_split="none")


def test_rows_without_a_label_can_be_left_out(tmp_path: Path) -> None:
    columns = {**GOOD, "label": [None, *GOOD["label"][1:]]}
    with pytest.raises(InputError, match=r"1 missing or unusable label .*--drop-unlabelled"):
        _load(tmp_path, columns)
    with pytest.warns(UserWarning, match="--drop-unlabelled leaves out 1 row of 100"):
        corpus = _load(tmp_path, columns, drop_unlabelled=True)
    assert [example.id for example in corpus.examples] == [f"row/{n}" for n in range(1, N)]
    with pytest.raises(InputError, match="without a single label"):
        _load(tmp_path, {**GOOD, "label": [None] * N}, drop_unlabelled=True)


def test_a_fault_in_a_row_after_one_that_is_left_out_has_its_own_number(tmp_path: Path) -> None:
    columns = {"text": ["a", *GOOD["text"][1:50], "", *GOOD["text"][51:]], "label": [None, *GOOD["label"][1:]]}
    with pytest.warns(UserWarning, match="leaves out"), pytest.raises(InputError, match=r"1 empty text in text of .*, counted from 0, 50;"):
        _load(tmp_path, columns, drop_unlabelled=True)


def test_settings_without_effect_on_given_splits_are_told(tmp_path: Path) -> None:
    columns = {**GOOD, "split": ["train", "dev", "test", "train", "train"] * 20}
    with pytest.warns(UserWarning, match="^--no-stratify has no effect on .*all its splits are given"):
        _load(tmp_path, columns, split_column="split", stratify=False)
    with pytest.warns(UserWarning, match=r"^--label-separator \| has no effect on"):
        _load(tmp_path, columns, split_column="split", label_separator="|")
