"""Cells between commas, semicolons, tabs: what Excel, pandas and Kaggle write, and what cannot be read."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.corpora.user_files import file_table
from lugpi_core.errors import InputError

WANTED = ("text", "label")
EXPECTED = {"text": ["a, b", "c; d"], "label": ["x", "y"]}


def _columns(path: Path, content: str) -> dict[str, list[object]]:
    path.write_bytes(content.encode())
    return file_table(path, "train", WANTED).columns


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_another_delimiter_of_a_csv_is_found_by_its_header_and_told(tmp_path: Path, delimiter: str, name: str) -> None:
    pd.DataFrame(EXPECTED).to_csv(tmp_path / "t.csv", sep=delimiter, index=False)
    with pytest.warns(UserWarning, match=rf"t\.csv has {name} between its cells, and is read so"):
        assert file_table(tmp_path / "t.csv", "train", WANTED).columns == EXPECTED


def test_a_tsv_is_read_without_a_word_and_one_with_commas_with_one(tmp_path: Path) -> None:
    pd.DataFrame(EXPECTED).to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    assert file_table(tmp_path / "t.tsv", "train", WANTED).columns == EXPECTED
    pd.DataFrame(EXPECTED).to_csv(tmp_path / "t.tsv", index=False)
    with pytest.warns(UserWarning, match=r"t\.tsv has commas"):
        assert file_table(tmp_path / "t.tsv", "train", WANTED).columns == EXPECTED


def test_a_line_of_names_is_never_offered_as_one_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("review;class\na;x\n")
    with pytest.warns(UserWarning, match="semicolons"):
        assert file_table(tmp_path / "t.csv", "train", WANTED).names == ("review", "class")


def test_a_comma_file_with_semicolons_in_a_name_stays_one(tmp_path: Path) -> None:
    assert _columns(tmp_path / "t.csv", "text,label,a;b;c;d\np,x,q\n") == {"text": ["p"], "label": ["x"]}


def test_excel_may_declare_the_delimiter(tmp_path: Path) -> None:
    assert _columns(tmp_path / "t.csv", "sep=;\r\ntext;label\r\na, b;x\r\nc;y\r\n") == {"text": ["a, b", "c"], "label": ["x", "y"]}


@pytest.mark.parametrize(
    "content",
    [
        ",text,label\n0,a,x\n1,b,y\n",  # pandas with its index
        "text,label,,,\na,x,,,\nb,y,,,\n",  # empty columns at the end, as of Kaggle's spam.csv
        "text,label\na,x,,\nb,y,\n",
        "text,label\na,x\nb,y\n,\n , \n\n",  # rows that were emptied in Excel
        " text , label\na,x\nb,y\n",
        "text,label,more,more\na,x,1,2\nb,y,1,2\n",
        '"text","label"\r\n"a","x"\r\n"b","y"\r\n',
    ],
)
def test_what_spreadsheets_leave_around_the_cells_is_skipped(tmp_path: Path, content: str) -> None:
    assert _columns(tmp_path / "t.csv", content) == {"text": ["a", "b"], "label": ["x", "y"]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('text, label\n"a, b", "x"\n"c", "y"\n', ["a, b", "c"]),
        ('label, text\n"x", "a, b"\ny, "c"\n', ["a, b", "c"]),
        ('label,text\nx,a\ny, "b" and "c"\n', ["a", ' "b" and "c"']),
        ('label,text\nx,"say ""a, ""b"\ny,c\n', ['say "a, "b', "c"]),
    ],
)
def test_a_space_may_stand_before_quotation_marks(tmp_path: Path, content: str, text: list[str]) -> None:
    assert _columns(tmp_path / "t.csv", content) == {"text": text, "label": ["x", "y"]}


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_lines_may_end_as_on_old_macs(tmp_path: Path, name: str) -> None:
    delimiter = "\t" if name == "t.tsv" else ","
    content = "".join(f"{delimiter.join(cells)}\r" for cells in (("text", "label"), ("a", "x"), ("b", "y")))
    assert _columns(tmp_path / name, content) == {"text": ["a", "b"], "label": ["x", "y"]}


def test_a_name_without_spaces_goes_before_one_with(tmp_path: Path) -> None:
    assert _columns(tmp_path / "t.csv", "text, text,label\na,b,x\n")["text"] == ["a"]
    with pytest.raises(InputError, match="the column name text twice"):
        _columns(tmp_path / "t.csv", " text, text,label\na,b,x\n")


# GLUE's files have bare quotation marks; pandas quotes cells.
BARE = 'text\tlabel\n"good" he said\t1\n"an open quote\t0\nthe "end\t1\nclosed"\t0\n"all of it"\t1\n'


def test_bare_quotation_marks_of_a_tsv_are_letters(tmp_path: Path) -> None:
    texts = ['"good" he said', '"an open quote', 'the "end', 'closed"', '"all of it"']
    assert _columns(tmp_path / "t.tsv", BARE) == {"text": texts, "label": ["1", "0", "1", "0", "1"]}
    # Read as quotes, these would swallow the ends of lines without an error.
    assert _columns(tmp_path / "t.tsv", 'text\tlabel\n"a\t1\nb\t0\nc"\t1\n')["text"] == ['"a', "b", 'c"']


def test_quoted_cells_of_a_tsv_may_have_tabs_and_line_breaks(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a\tb", 'c "d"', "e\nf", "g"], "label": ["x", "y", "x", "y"]})
    frame.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    assert file_table(tmp_path / "t.tsv", "train", WANTED).columns == frame.to_dict("list")


def test_a_ragged_tsv_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 cells in the row that ends at line 3 of .*t\.tsv.*quote cells with tabs"):
        _columns(tmp_path / "t.tsv", "text\tlabel\na\tx\nb\n")


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=20).filter(str.strip)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), st.sampled_from(",;\t"))
def test_any_quoted_cell_survives_any_delimiter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], delimiter: str
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, delimiter=delimiter, lineterminator="\n").writerows([("text", "label"), *rows])
    suffix = {",": ".csv", ";": ".csv", "\t": ".tsv"}[delimiter]
    path = tmp_path_factory.mktemp("cells") / f"t{suffix}"
    path.write_bytes((f"sep={delimiter}\n" if delimiter == ";" else "").encode() + text.getvalue().encode())
    table = file_table(path, "train", WANTED)
    assert list(zip(table.columns["text"], table.columns["label"], strict=True)) == rows


CELLS = st.text(st.sampled_from('a é,;"\t\r\n'), max_size=5)


@given(
    st.lists(st.tuples(CELLS, CELLS), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_a_file_is_read_in_blocks_as_it_is_read_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], line_end: str
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator=line_end)
    writer.writerow(WANTED)
    writer.writerows(rows)
    path = tmp_path_factory.getbasetemp() / "blocks.csv"
    found = []
    for size in (1, 3, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lugpi_core.corpora.text_files._BLOCK_LETTERS", size)
            patch.setattr("lugpi_core.corpora.delimited._ROWS_AT_ONCE", size)
            found.append(_columns(path, file.getvalue()))
    assert found[0] == found[1] == found[2]
    if ', "' not in file.getvalue():  # which is read as a space before a quoted cell
        kept = [row for row in rows if any(cell.strip() for cell in row)]
        assert found[0] == {name: [row[place] for row in kept] for place, name in enumerate(WANTED)}
