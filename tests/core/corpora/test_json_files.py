"""JSON in the forms in which tables are written: by hand, by pandas, by others."""

import json
from pathlib import Path

import pandas as pd
import pytest

from lugpi_core.corpora.user_files import file_table
from lugpi_core.errors import InputError

WANTED = ("text", "label")
ROWS = [{"text": "a", "label": 1}, {"text": "b\u2028", "label": 0}]
EXPECTED = {"text": ["a", "b\u2028"], "label": [1, 0]}
ORIENTS = ("records", "columns", "index", "split", "table")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson"])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\n".join(map(json.dumps, ROWS)),
        json.dumps({"data": ROWS}),
        json.dumps({"version": "1.1", "data": ROWS}),
        json.dumps({"rows": ROWS}),
        json.dumps(EXPECTED),
        *(pd.DataFrame(ROWS).to_json(orient=orient) for orient in ORIENTS),  # type: ignore[call-overload]
    ],
    ids=["array", "indented", "lines", "data", "data and more", "one key", "lists", *(f"pandas {orient}" for orient in ORIENTS)],
)
def test_a_table_is_read_in_every_form(tmp_path: Path, content: str, suffix: str) -> None:
    (tmp_path / f"t{suffix}").write_text("\ufeff" + content, encoding="utf-8")
    table = file_table(tmp_path / f"t{suffix}", "train", WANTED)
    assert table.columns == EXPECTED
    assert set(WANTED) <= set(table.names)


def test_a_single_line_is_a_row_whatever_it_contains(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "a", "label": 1, "spans": [{"from": 0}], "meta": {"k": 1}}))
    table = file_table(tmp_path / "t.jsonl", "train", WANTED)
    assert table.columns == {"text": ["a"], "label": [1]}
    assert table.names == ("text", "label", "spans", "meta", "meta.k")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"},\n {"text" "b"}]', r"malformed JSON .* in line 2 of .*t\.json"),
        ('[{"text": "a"}, 3]', r"a int as item 1, counted from 0, of the array in .*t\.json"),
        ('{"data": [[1, 2]]}', "a list as item 0"),
        ("3", r"a int in line 1 of .*t\.json"),
        ('"text"', "a str in line 1 of"),
        ("[" * 100_000, r"malformed JSON .* in .*t\.json"),
        ('{"text": "a"},\n{"text": "b"},\n', "Extra data.* begin a new line after each object, and leave commas between objects out"),
        ('{"text": "a"}{"text": "b"}', "Extra data.* begin a new line after each object"),
        ('{\n"text": "a"\n}\n{\n"text": "b"\n}', "in line 1 .* write each object whole on a line of its own"),
        ('{"text": ["a", "b"], "label": ["x"]}', r"columns of 1 to 2 values \(text, label\) in"),
        ('{"train": [{"text": "a"}], "test": [{"text": "b"}]}', r"2 tables \(train, test\) in .*--test-file"),
        ('{"train": {"text": ["a"]}, "test": {"text": ["b"]}}', r"2 tables \(train, test\) in .*--test-file"),
        ("{'text': 'a'}\n", r"malformed JSON .*double quotes.* in line 1"),
    ],
)
def test_another_form_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(InputError, match=message):
        file_table(tmp_path / "t.json", "train", WANTED)


def test_what_pandas_writes_has_its_columns_whatever_their_names(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"body": {"0": "a", "1": "b"}, "class": {"0": "x", "1": "y"}}')
    assert file_table(tmp_path / "t.json", "train", WANTED).names == ("body", "class")
    (tmp_path / "t.json").write_text('{"0": {"body": "a"}, "1": {"body": "b"}}')
    assert file_table(tmp_path / "t.json", "train", WANTED).names == ("body",)
