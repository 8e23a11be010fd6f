"""Rows of JSON files: an object a line, an array of objects, or what pandas and others write instead."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lugpi_core.corpora.corpus import SPLIT_WORDS
from lugpi_core.errors import InputError

_FORMS = 'an object per line, an array of objects, or {"data": array of objects}'

_NAMED_KEYS = 10


def json_rows(text: str, *, where: str, wanted: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the objects of a JSON file in any of the forms in which tables are written, whatever its suffix.

    Those are: an object per line; an array of objects; an object whose ``data``, or whose only key, is such an array; and the objects that
    ``DataFrame.to_json`` writes, with columns that are lists, or that are objects from row names to values, or the other way round.

    Raises:
        InputError: malformed JSON, which names the line; another form.
    """
    if not text.strip():
        return []
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            line = f"line {error.lineno} of " if isinstance(error, json.JSONDecodeError) else ""
            got = f"malformed JSON ({error}) in {line}{where}"
            raise InputError(got=got, expected=_FORMS, do="fix it there") from error
        return _lines(text, where)
    if isinstance(whole, dict):
        return _rows_of(whole, where, wanted)
    if not isinstance(whole, list):
        raise InputError(got=f"a {type(whole).__name__} in line 1 of {where}", expected=_FORMS, do="write it in one of these forms")
    return _objects(whole, where)


def _lines(text: str, where: str) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    # On "\n" only: other line separators are legal inside JSON strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            got = f"malformed JSON ({error}) in line {number} of {where}"
            do = "fix that line" if line.strip().endswith("}") else "write each object whole on a line of its own, with nothing after it"
            if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
                do = "begin a new line after each object, and leave commas between objects out"
            raise InputError(got=got, expected="one JSON object per line", do=do) from error
        if not isinstance(row, dict):
            got = f"a {type(row).__name__} in line {number} of {where}"
            raise InputError(got=got, expected="one JSON object per line", do="fix that line")
        rows.append(row)
    return rows


def _objects(rows: list[Any], where: str) -> list[Mapping[str, Any]]:
    bad = next((row for row, value in enumerate(rows) if not isinstance(value, dict)), None)
    if bad is not None:
        got = f"a {type(rows[bad]).__name__} as item {bad}, counted from 0, of the array in {where}"
        raise InputError(got=got, expected="objects only", do="fix that item")
    return list(rows)


def _rows_of(whole: dict[str, Any], where: str, wanted: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the rows of a file that is a single object."""
    match whole:
        case {"columns": [*names], "data": [*cells]}:
            return [dict(zip(names, row, strict=False)) for row in cells]
        case {"data": [*items]}:
            return _objects(items, where)
    values = list(whole.values())
    has_tables = len(values) > 1 and all(isinstance(value, list) and all(isinstance(item, dict) for item in value) for value in values)
    if has_tables or (len(values) > 1 and SPLIT_WORDS.keys() >= whole.keys()):
        do = "write each of them into a file of its own (--dataset, --validation-file, --test-file)"
        raise InputError(got=f"{len(values)} tables ({_named(whole)}) in {where}", expected=_FORMS, do=do)
    if values and all(isinstance(value, list) for value in values):
        lengths = [len(value) for value in values]
        if len(set(lengths)) > 1 and set(wanted) & whole.keys():
            got = f"columns of {min(lengths):,} to {max(lengths):,} values ({_named(whole)}) in {where}"
            raise InputError(got=got, expected="as many values in every column", do="write one object per line")
    rows: list[Mapping[str, Any]] = [whole]  # a file of one line
    if len(values) == 1 and isinstance(values[0], list) and all(isinstance(item, dict) for item in values[0]):
        rows = list(values[0])
    elif values and all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        rows = [dict(zip(whole, row, strict=True)) for row in zip(*values, strict=True)]
    elif values and all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        # Keys are names or numbers of rows.
        is_by_column = any(name in whole or name.partition(".")[0] in whole for name in wanted) or (
            all(map(str.isdecimal, values[0])) and not all(map(str.isdecimal, whole))
        )
        rows = [{name: value[row] for name, value in whole.items()} for row in values[0]] if is_by_column else values
    return rows


def _named(whole: Mapping[str, Any]) -> str:
    names = list(whole)
    return ", ".join(names[:_NAMED_KEYS]) + " …" * (len(names) > _NAMED_KEYS)
