"""Tables from files and from the hub: values unchanged, and malformed input reported with its place."""

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.corpora.tables import Table
from lugpi_core.corpora.user_files import file_table
from lugpi_core.errors import InputError

WANTED = ("text", "label")
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)


def _table(path: Path, content: str | bytes) -> Table:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return file_table(path, "train", WANTED)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_any_cell_survives_a_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    table = _table(tmp_path_factory.mktemp("csv") / "t.csv", text.getvalue())
    assert list(zip(table.columns["text"], table.columns["label"], strict=True)) == rows


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), st.booleans())
def test_any_value_survives_jsonl(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], escaped: bool) -> None:
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=escaped) for text, label in rows]
    table = _table(tmp_path_factory.mktemp("jsonl") / "t.jsonl", "\n".join(lines))
    assert list(zip(table.columns["text"], table.columns["label"], strict=True)) == rows


def test_csv_cells_stay_text(tmp_path: Path) -> None:
    table = _table(tmp_path / "T.CSV", "\ufefftext,x,label\nNA,1,007\n\nnull,,1.0\n")
    assert table.columns == {"text": ["NA", "null"], "label": ["007", "1.0"]}
    assert table.names == ("text", "x", "label")
    assert len(table) == 2


def test_a_long_cell_is_read_and_the_csv_limit_is_restored(tmp_path: Path) -> None:
    csv.field_size_limit(131_072)  # the module's own default
    table = _table(tmp_path / "t.csv", f'text,label\n"{"long " * 250_000}",a\n')
    assert table.columns["text"] == ["long " * 250_000]
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,b\nc\n", r"1 cells in the row that ends at line 3 of .*t\.csv; expected 2"),
        ('text,label\n"a\nb",c,d\n', r"3 cells in the row that ends at line 3"),
        ('text,label\n"a,b\n', r"malformed CSV .* at line 2"),
        ('text,label\n"a"b,c\n', r"malformed CSV .* at line 2"),
        ("text,label,text\na,b,c\n", r"the column name text twice in "),
        ("text,label\nk,é\n".encode("latin-1"), r"byte 13 \(0xe9\) in line 2 of .*expected UTF-8; .*iconv"),
    ],
)
def test_a_malformed_csv_names_the_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _table(tmp_path / "t.csv", content)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "label"', "malformed JSON .* in line 3 of"),
        ("[1, 2]", "a list in line 3 of"),
        ("null", "a NoneType in line 3 of"),
        ("[" * 100_000, "malformed JSON .* in line 3 of"),
    ],
)
def test_a_malformed_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _table(tmp_path / "t.jsonl", '{"text": "a", "label": 1}\n\n' + line + "\n")


def test_a_key_that_a_json_line_lacks_is_none(tmp_path: Path) -> None:
    table = _table(tmp_path / "t.jsonl", '{"text": "a"}\n{"label": true, "z": {}}\n')
    assert table.columns == {"text": ["a", None], "label": [None, True]}
    assert table.names == ("text", "label", "z")


def test_parquet_keeps_types_and_reads_only_requested_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": [1.0, float("nan")], "image": [b"x", b"y"]})
    frame.to_parquet(tmp_path / "t.parquet")
    table = file_table(tmp_path / "t.parquet", "test", WANTED)
    assert table.names == ("text", "label", "image")
    assert set(table.columns) == {"text", "label"}
    assert table.columns["label"][0] == 1.0


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet PAR1"])
def test_a_damaged_parquet_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"t\.parquet .*a complete Parquet file"):
        _table(tmp_path / "t.parquet", content)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_a_missing_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} \(.*[Nn]o such file.*a readable file"):
        file_table(tmp_path / name, "train", WANTED)


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.parquet.gz"])
def test_an_unknown_extension_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"a file ending in \.csv, \.tsv, \.json, \.jsonl, \.ndjson, \.parquet"):
        _table(tmp_path / name, "text,label\na,b\n")


def test_a_part_of_a_table_is_told_to_be_one(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"train-00001-of-00004\.csv is one of 4 parts of a table; its folder has all of them"):
        _table(tmp_path / "train-00001-of-00004.csv", "text,label\na,b\n")
    assert len(_table(tmp_path / "train-00000-of-00001.csv", "text,label\na,b\n")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,a,b\n0,c,d\n", "the file seems to have no header line: write one above its rows, such as text,label"),
        ("A review of a film that is longer than a name,pos\nb,neg\n", "the file seems to have no header line"),
        ("0,1\na,b\n", "whose columns are 0, 1; .* choose one of 0, 1"),
        (",".join(f"c{n}" for n in range(99)) + "\n" + ",".join("x" * 99) + "\n", "c8, c9 …; .*; choose one of them$"),
    ],
)
def test_a_missing_column_is_told_in_true_words(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        load_corpus(tmp_path / "t.csv")


def test_the_columns_of_all_files_have_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\na,b\n")
    (tmp_path / "x.csv").write_text("body,label\na,b\n")
    with pytest.raises(
        InputError, match=r"in .*x\.csv, whose .*; give the columns of all files the names that those of the train rows have"
    ):
        load_corpus(tmp_path / "t.csv", CorpusSettings(test_file=tmp_path / "x.csv"))
