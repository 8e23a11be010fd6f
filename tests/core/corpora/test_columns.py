"""Columns of texts in one buffer: they are sequences of the same texts, and equal ones are found as a dictionary finds them."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.corpora import columns
from lugpi_core.corpora.columns import ColumnBuilder, NumberedNames, TextColumn, TextColumnBuilder, equal_rows, joined, numbered

# Any letters, half a surrogate pair among them.
TEXTS = st.lists(st.text(st.characters(exclude_categories=())), max_size=12)
# Few, so that they recur.
RECURRING = st.lists(st.sampled_from(["", "a", "b", "ab", "é"]), max_size=30)


@given(TEXTS)
def test_a_column_is_a_sequence_of_its_texts(texts: list[str]) -> None:
    column = TextColumn.of(texts)
    assert list(column) == [column[place] for place in range(len(column))] == texts
    assert column == texts == list(column[:])
    assert column == TextColumn.of(iter(texts)) == pickle.loads(pickle.dumps(column))
    assert column[1:4] == texts[1:4]
    assert column[::-1] == texts[::-1]
    assert column.lengths().tolist() == [len(text.encode("utf-8", "surrogatepass")) for text in texts]
    assert column != [*texts, ""]
    with pytest.raises(IndexError):
        column[len(texts)]


@given(TEXTS, TEXTS, st.data())
def test_columns_that_share_a_buffer_stay_what_they_are_while_it_grows(first: list[str], second: list[str], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(first) - 1))) if first else []
    column = TextColumn.of(first)
    taken = column.take(rows)
    both = joined([column, NumberedNames("row/", range(2)), TextColumn.of(second), taken])
    assert both == [*first, "row/0", "row/1", *second, *(first[row] for row in rows)]
    assert (column, taken) == (first, [first[row] for row in rows])
    assert joined([column]) is column


def test_a_builder_appends_parts_of_any_letters() -> None:
    builder = TextColumnBuilder()
    builder.extend(["ab", "", "é\ud800"])
    builder.extend([])
    builder.extend(("c",))
    assert (len(builder), builder.column()) == (4, ["ab", "", "é\ud800", "c"])


@given(st.lists(st.lists(st.sampled_from(["a", "b", None, 3]))))
def test_cells_are_a_column_of_texts_as_long_as_all_are_texts(parts: list[list[object]]) -> None:
    builder = ColumnBuilder()
    for part in parts:
        builder.extend(part)
    cells = [cell for part in parts for cell in part]
    assert builder.column() == cells
    assert isinstance(builder.column(), TextColumn) == all(isinstance(cell, str) for cell in cells)


@given(st.lists(st.text(st.sampled_from("aé猫 ")), max_size=8))
def test_parts_of_texts_share_their_buffer(texts: list[str]) -> None:
    column = TextColumn.of(texts)
    parts, counts = column.parts(lambda text: [(place, min(place + 2, len(text))) for place in range(0, len(text), 2)])
    assert list(parts) == [text[place : place + 2] for text in texts for place in range(0, len(text), 2)]
    assert counts.tolist() == [(len(text) + 1) // 2 for text in texts]
    assert parts._data is column._data


def test_numbered_names_store_nothing_and_can_be_taken() -> None:
    names = NumberedNames("train/", range(5))
    assert (list(names), names[3], list(names[3:])) == ([f"train/{n}" for n in range(5)], "train/3", ["train/3", "train/4"])
    assert list(names.take([4, 0]).take([1, 1])) == ["train/0", "train/0"]


# With a hash that tells no text from another, every text is compared with every other.
HASHES: dict[str, Callable[[bytes], int]] = {"real": columns._hash, "blind": lambda _: 0}


@pytest.mark.parametrize("kind", HASHES)
@given(texts=RECURRING)
def test_distinct_texts_are_numbered_as_a_dictionary_numbers_them(kind: str, texts: list[str]) -> None:
    number: dict[str, int] = {}
    numbers = [number.setdefault(text, len(number)) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_hash", HASHES[kind])
        rows, found = numbered(TextColumn.of(texts))
    assert [texts[row] for row in rows.tolist()] == list(number)
    assert found.tolist() == numbers
    assert rows.dtype == found.dtype == np.int64


@pytest.mark.parametrize("kind", HASHES)
@given(texts=RECURRING)
def test_rows_of_equal_texts_are_found_in_their_order(kind: str, texts: list[str]) -> None:
    same: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        same.setdefault(text, []).append(row)
    column = TextColumn.of(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_hash", HASHES[kind])
        assert equal_rows(column.encoded, column.__getitem__, len(column)) == [rows for rows in same.values() if len(rows) > 1]
