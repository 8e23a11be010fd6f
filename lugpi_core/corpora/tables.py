"""Columns of a file or of a Hugging Face dataset, as Python values that are not checked yet."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lugpi_core.corpora.columns import TextColumn, has_repeats
from lugpi_core.corpora.corpus import Split
from lugpi_core.corpora.texts import has_half_a_pair, listed
from lugpi_core.errors import InputError, number_of

ID_COLUMN = "id"
MISSING = object()  # what a row lacks a key for


@dataclass(frozen=True, kw_only=True)
class Table:
    """Some columns of one file, of one split of a dataset, or of lists in memory.

    Attributes:
        where: the file or the hub name, for errors.
        source: which of the given files or splits it is; a single file is ``train``, whatever its rows become.
        names: all column names; keys inside objects as ``outer.inner``.
        columns: the requested columns that exist, row by row.
        classes: the names of whole-number labels, if they are known.
        license: as stated by the hub, or empty.
        in_memory: whether it is of lists, so that no flag of a command can help.
        numbers: the row numbers, counted from 0, if rows have been left out; otherwise None.
    """

    where: str
    source: Split
    names: tuple[str, ...]
    columns: Mapping[str, Sequence[object]]
    classes: tuple[str, ...] | None = None
    license: str = ""
    in_memory: bool = False
    numbers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def numbers_of(self, rows: Iterable[int]) -> list[int]:
        """Return the numbers, in the file, of some rows of this table."""
        return list(rows) if self.numbers is None else [self.numbers[row] for row in rows]

    def kept(self, rows: Sequence[int]) -> "Table":
        """Return the table of some of its rows."""
        columns = {
            name: cells.take(rows) if isinstance(cells, TextColumn) else [cells[row] for row in rows]
            for name, cells in self.columns.items()
        }
        return replace(self, columns=columns, numbers=tuple(self.numbers_of(rows)))


def own_ids(tables: Sequence[Table]) -> TextColumn | None:
    """Return the cells of the column ``id``, if every row of the tables has one and all of them differ; else None.

    Raises:
        InputError: an id is no text that a file can take.
    """
    given = (value for table in tables for value in table.columns.get(ID_COLUMN, ()))
    ids = TextColumn.of(str(value) for value in given if isinstance(value, int | str) and str(value).strip())
    if bad := [row for row, name in enumerate(ids) if has_half_a_pair(name)]:
        raise InputError(
            got=f"{number_of(len(bad), 'id{s} with half a surrogate pair')} in {ID_COLUMN} of {tables[0].where}: {listed(bad)}",
            expected="text",
            do="fix or remove them",
        )
    return ids if len(ids) == sum(map(len, tables)) and not has_repeats(ids) else None


def columns_of(rows: Sequence[Mapping[str, object]], wanted: Iterable[str]) -> tuple[tuple[str, ...], dict[str, Sequence[object]]]:
    """Return all column names of rows of JSON objects, and the wanted columns; ``a.b`` is key ``b`` of the object ``a``.

    A key that is literally ``a.b`` goes before. A row without the key has None.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns: dict[str, Sequence[object]] = {}
    for name in wanted:
        if name in names:
            columns[name] = [row.get(name) for row in rows]
        elif "." in name:
            cells = [value_at(row, name) for row in rows]
            if any(cell is not MISSING for cell in cells):
                columns[name] = [None if cell is MISSING else cell for cell in cells]
    nested = [inner for name in names for inner in _names_inside(name, next((row[name] for row in rows if row.get(name)), None))]
    return tuple(dict.fromkeys([*names, *nested, *columns])), columns


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Return what stands at ``a.b`` of an object: under that key, or else under ``b`` of the object ``a``; a marker if nothing does."""
    if path in row:
        return row[path]
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        outer = row.get(".".join(parts[:cut]))
        if isinstance(outer, Mapping) and (value := value_at(outer, ".".join(parts[cut:]))) is not MISSING:
            return value
    return MISSING


def _names_inside(name: str, value: object) -> list[str]:
    if not isinstance(value, Mapping):
        return []
    return [deeper for inner, part in value.items() for deeper in (_names_inside(f"{name}.{inner}", part) or [f"{name}.{inner}"])]


def class_names(features: Mapping[str, Any], column: str) -> tuple[str, ...] | None:
    """Return the names of a column's ``ClassLabel``, or of the ``ClassLabel`` in its lists; None if it has none.

    ``features`` are those of a dataset of the library ``datasets``, as ``Features.to_dict()`` and its Parquet files have them. Lists are
    ``{"_type": "List", "feature": …}``; earlier versions wrote ``Sequence``, or a JSON list.
    """
    feature = value_at(features, column)
    for _ in range(2):
        match feature:
            case {"_type": "ClassLabel", "names": [*names]}:
                return tuple(str(name).strip() for name in names)
            case {"feature": inner} | [inner]:
                feature = inner
    return None


def parquet_features(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    """Return the features that ``datasets`` wrote into a Parquet file's schema; empty if it did not write the file."""
    try:
        match json.loads((metadata or {}).get(b"huggingface", b"{}")):
            case {"info": {"features": dict(features)}}:
                return features
    except ValueError:
        pass  # of another program
    return {}
