"""A user's corpus: splits, labels and ids, and every fault reported with its rows."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.corpora.splits import seeded_splits
from lugpi_core.errors import InputError

Columns = Mapping[str, Sequence[object]]
TEXTS = [f"text {row}" for row in range(40)]
LABELS = ["b", "a"] * 20
GOOD: Columns = {"text": TEXTS, "label": LABELS}


def _write(path: Path, columns: Columns) -> Path:
    rows = list(zip(*columns.values(), strict=True))
    match path.suffix:
        case ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([list(columns), *rows])
        case ".jsonl":
            path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows), encoding="utf-8")
        case _:
            pd.DataFrame(columns).to_parquet(path)
    return path


def _load(path: Path, columns: Columns, **flags: Any) -> Corpus:
    return load_corpus(_write(path, columns), CorpusSettings(**flags))


def _changed(column: str, row: int, value: object) -> Columns:
    return {name: [value if (name, place) == (column, row) else old for place, old in enumerate(GOOD[name])] for name in GOOD}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_corpus(tmp_path: Path, suffix: str) -> None:
    corpus = _load(tmp_path / f"mine{suffix}", GOOD, stratify=False)
    assert [example.text for example in corpus.examples] == [example.prompt for example in corpus.examples] == TEXTS
    assert [corpus.label_names[example.label] for example in corpus.examples] == LABELS
    assert [example.split for example in corpus.examples] == seeded_splits(40, test=8, validation=3, seed=0)
    assert [example.id for example in corpus.examples] == [f"row/{row}" for row in range(40)]
    assert (corpus.name, corpus.label_names, corpus.separator, corpus.license) == ("mine", ("a", "b"), None, "not stated")


def test_columns_are_read_by_the_given_names(tmp_path: Path) -> None:
    columns = {"body": TEXTS, "class": LABELS, "scene": [f"scene {row}" for row in range(40)], "text": ["x"] * 40}
    corpus = _load(tmp_path / "t.csv", columns, text_column="body", label_column="class", prompt_column="scene")
    assert (corpus.examples[3].text, corpus.examples[3].prompt) == ("text 3", "scene 3")


def test_a_unique_id_column_names_the_examples(tmp_path: Path) -> None:
    assert _load(tmp_path / "t.jsonl", {"id": range(100, 140), **GOOD}).examples[1].id == "101"
    assert _load(tmp_path / "t.jsonl", {"id": [1, *range(1, 40)], **GOOD}).examples[1].id == "row/1"
    assert _load(tmp_path / "t.csv", {"id": ["", *range(1, 40)], **GOOD}).examples[1].id == "row/1"


def test_splits_by_files_keep_every_file_together(tmp_path: Path) -> None:
    validation = _write(tmp_path / "v.jsonl", {"text": ["v0", "v1"], "label": ["a", "b"]})
    test = _write(tmp_path / "t.parquet", {"text": ["t0", "t1"], "label": ["a", "b"]})
    corpus = _load(tmp_path / "train.csv", GOOD, validation_file=validation, test_file=test)
    assert corpus.counts() == {"train": 40, "validation": 2, "test": 2}
    assert [example.id for example in corpus.examples[-4:]] == ["validation/0", "validation/1", "test/0", "test/1"]
    assert [example.split for example in corpus.examples[-4:]] == ["validation", "validation", "test", "test"]


def test_missing_splits_are_cut_from_train(tmp_path: Path) -> None:
    other = _write(tmp_path / "v.csv", {"text": ["v0", "v1"], "label": ["a", "b"]})
    assert _load(tmp_path / "t.csv", GOOD, test_file=other).counts() == {"train": 36, "validation": 4, "test": 2}
    assert _load(tmp_path / "t.csv", GOOD, validation_file=other).counts() == {"train": 32, "validation": 2, "test": 8}


def test_a_split_column_accepts_the_usual_words(tmp_path: Path) -> None:
    words = ["train", "TRAIN ", "validation", "valid", "val", "dev", "test", "test"] * 5
    corpus = _load(tmp_path / "t.csv", {**GOOD, "part": words}, split_column="part")
    assert corpus.counts() == {"train": 10, "validation": 20, "test": 10}
    assert [example.split for example in corpus.examples[:8]] == ["train"] * 2 + ["validation"] * 4 + ["test"] * 2


@pytest.mark.parametrize(
    ("suffix", "values", "names"),
    [
        (".jsonl", [10, 9], ("9", "10")),
        (".jsonl", [True, False], ("False", "True")),
        (".jsonl", [-1, 1], ("-1", "1")),
        (".jsonl", [2.0, 10], ("2", "10")),
        (".parquet", [2.0, 10.0], ("2", "10")),
        (".parquet", [True, False], ("False", "True")),
        (".csv", [10, 9], ("9", "10")),
        (".csv", [" b", "a "], ("a", "b")),
        (".csv", ["10", "9a"], ("10", "9a")),
        (".csv", ["no", "yes"], ("no", "yes")),
    ],
)
def test_labels_of_every_kind_become_names_in_order(tmp_path: Path, suffix: str, values: list[object], names: tuple[str, ...]) -> None:
    corpus = _load(tmp_path / f"t{suffix}", {"text": TEXTS, "label": values * 20})
    assert corpus.label_names == names
    expected = [str(value).strip().removesuffix(".0") for value in values * 20]
    assert [corpus.label_names[example.label] for example in corpus.examples] == expected


@pytest.mark.parametrize(
    ("suffix", "value"),
    [
        (".csv", ""),
        (".csv", "  "),
        (".csv", "NaN"),
        (".jsonl", None),
        (".jsonl", float("nan")),
        (".jsonl", ["a"]),
        (".jsonl", 0.5),
        (".jsonl", float("inf")),
        (".parquet", None),
    ],
)
def test_a_label_that_names_no_class_is_refused_with_its_row(tmp_path: Path, suffix: str, value: object) -> None:
    with pytest.raises(InputError, match=r"1 missing or unusable label in label of .*rows, counted from 0, 7;"):
        _load(tmp_path / f"t{suffix}", _changed("label", 7, value))


def test_ids_and_labels_without_a_utf8_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 id with half a surrogate pair in id of .*rows, counted from 0, 1;"):
        _load(tmp_path / "t.jsonl", {"text": TEXTS, "label": LABELS, "id": ["a", "b\ud800", *map(str, range(len(TEXTS) - 2))]})
    with pytest.raises(InputError, match=r"1 missing or unusable label in label of .*rows, counted from 0, 7;"):
        _load(tmp_path / "u.jsonl", _changed("label", 7, "x\udfff"))


def test_float_labels_with_gaps_are_refused_with_rows_and_count(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"20 missing .* the first None: rows, counted from 0, 1, 3, 5, 7, 9 …;"):
        _load(tmp_path / "t.parquet", {"text": TEXTS, "label": [1.0, float("nan")] * 20})


@pytest.mark.parametrize(
    ("suffix", "value", "fault"),
    [
        (".csv", "", "empty text"),
        (".csv", " \n\t", "empty text"),
        (".csv", "a\0b", "text with a NUL character"),
        (".jsonl", None, "value missing or not text"),
        (".jsonl", 3, "value missing or not text"),
        (".jsonl", "a\ud800", "text with half a surrogate pair"),
        (".parquet", None, "value missing or not text"),
    ],
)
@pytest.mark.parametrize("column", ["text", "scene"])
def test_a_text_or_prompt_that_cannot_be_read_is_refused_with_its_row(
    tmp_path: Path, suffix: str, value: object, fault: str, column: str
) -> None:
    changed = _changed("text", 5, value)
    columns = changed if column == "text" else {"text": TEXTS, "scene": changed["text"], "label": LABELS}
    with pytest.raises(InputError, match=rf"1 {fault}.* in {column} of .*rows, counted from 0, 5;"):
        _load(tmp_path / f"t{suffix}", columns, prompt_column=None if column == "text" else "scene")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("text", ["x y" * 350_000, "שלום עולם مرحبا", "<b>&amp;</b> [SEP] \\n", " line\r\nbreak\u2028 ", '"', "\U0001f600"])
def test_long_texts_other_scripts_and_markup_pass_unchanged(tmp_path: Path, suffix: str, text: str) -> None:
    assert _load(tmp_path / f"t{suffix}", _changed("text", 4, text)).examples[4].text == text


def test_a_missing_column_gets_a_suggestion_and_all_names(tmp_path: Path) -> None:
    columns = {"texts": TEXTS, "class": LABELS}
    with pytest.raises(
        InputError, match=r"no column 'text' in .*columns are texts, class; .*set text_column \(--text-column\); did you mean 'texts'\?"
    ):
        _load(tmp_path / "t.csv", columns)
    with pytest.raises(InputError, match=r"no column 'label' .*set label_column \(--label-column\); choose one of class, texts"):
        _load(tmp_path / "t.csv", columns, text_column="texts")
    for flag in ("prompt", "split"):
        with pytest.raises(InputError, match=f"no column 'gone' .*--{flag}-column"):
            _load(tmp_path / "t.csv", GOOD, **{f"{flag}_column": "gone"})


@pytest.mark.parametrize(("name", "content"), [("t.csv", ""), ("t.csv", "text,label\n"), ("t.jsonl", ""), ("t.jsonl", "\n\n")])
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"no rows in .*{name}"):
        load_corpus(str(tmp_path / name))
    with pytest.raises(InputError, match=f"no rows in .*{name}"):
        _load(tmp_path / "good.csv", GOOD, test_file=tmp_path / name)


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only the label a in"):
        _load(tmp_path / "t.csv", {"text": TEXTS, "label": ["a"] * 40})


def test_a_label_that_train_lacks_is_named(tmp_path: Path) -> None:
    other = _write(tmp_path / "v.csv", {"text": ["v0", "v1", "v2"], "label": ["a", "c", "c"]})
    with pytest.raises(InputError, match=r"label 'c' on 2 test examples .* and on no train example"):
        _load(tmp_path / "t.csv", GOOD, test_file=other)


def test_an_unknown_split_value_is_named(tmp_path: Path) -> None:
    words = ["train", "test", "dev", "holdout"] * 10
    with pytest.raises(InputError, match=r"10 unknown values in part .*'holdout': rows, counted from 0, 3, 7, 11, 15, 19 …;"):
        _load(tmp_path / "t.csv", {**GOOD, "part": words}, split_column="part")


@pytest.mark.parametrize(("rows", "empty"), [(12, "validation"), (2, "validation"), (1, "validation")])
def test_a_split_that_ends_empty_is_refused(tmp_path: Path, rows: int, empty: str) -> None:
    with pytest.raises(InputError, match=f"no {empty} example in"):
        _load(tmp_path / "t.csv", {"text": TEXTS[:rows], "label": LABELS[:rows]})
    with pytest.warns(UserWarning, match=r"t\.csv has no validation example of b"):
        corpus = _load(tmp_path / "t.csv", {"text": TEXTS[:13], "label": LABELS[:13]})
    assert corpus.counts() == {"train": 9, "validation": 1, "test": 3}


def test_two_sources_of_the_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--split-column with --validation-file or --test-file"):
        _load(tmp_path / "t.csv", {**GOOD, "part": ["train"] * 40}, split_column="part", test_file=tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["t.xlsx", "folder/t"])
def test_an_unknown_kind_of_file_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match=r"a file ending in \.csv"):
        load_corpus(name)


def test_settings_without_effect_on_user_data_warn(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="^--split-by date has no effect"):
        _load(tmp_path / "t.csv", GOOD, split_by="date")
    words = ["train", "train", "dev", "test", "test"] * 8
    with pytest.warns(UserWarning, match="^--split-seed 3 has no effect .* all its splits are given"):
        _load(tmp_path / "t.csv", {**GOOD, "part": words}, split_column="part", split_seed=3)


# A double of the hub


def _hub(monkeypatch: pytest.MonkeyPatch, parts: Mapping[str, Sequence[int]]) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no", "rare"])})
    made = {
        name: Dataset.from_dict({"text": [f"{name} {row}" for row in range(len(labels))], "label": labels}, features=features)
        for name, labels in parts.items()
    }
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **flags: DatasetDict(made))


def test_a_hub_dataset_keeps_its_splits_and_its_order_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    _hub(monkeypatch, {"test": [0, 1], "train": [1, 0] * 10})
    with pytest.warns(UserWarning, match="hf:owner/name@abc has no train example of rare"):
        corpus = load_corpus("hf:owner/name@abc")
    assert corpus.counts() == {"train": 18, "validation": 2, "test": 2}
    assert (corpus.name, corpus.label_names) == ("owner--name", ("yes", "no", "rare"))
    assert [(example.id, example.label) for example in corpus.examples[-2:]] == [("test/0", 0), ("test/1", 1)]
    assert corpus.examples[0].text == "train 0"


def test_hub_examples_without_a_label_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _hub(monkeypatch, {"test": [-1, -1], "train": [1, 0] * 10})
    with pytest.raises(InputError, match=r"2 missing or unusable labels in label of hf:o/n, split test, the first -1: .* 0, 1;"):
        load_corpus("hf:o/n")


def test_files_have_no_effect_on_a_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    _hub(monkeypatch, {"train": [1, 0, 2] * 20})
    with pytest.warns(UserWarning, match=r"^--test-file t\.csv has no effect on hf:o/n"):
        load_corpus("hf:o/n", CorpusSettings(test_file=Path("t.csv")))
