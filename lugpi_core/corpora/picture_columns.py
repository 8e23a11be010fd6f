"""Columns of pictures, read cell by cell: of tables in memory, of Parquet files, of data sets of the library ``datasets``."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lugpi_core.corpora.pictures import PictureCell, from_home
from lugpi_core.corpora.tables import MISSING, Table, value_at
from lugpi_core.errors import InputError

# Rows of a Parquet file that are read at once.
_ROWS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class ListedCells:
    """Cells that are in memory."""

    where: str
    base: Path
    values: Sequence[object]

    def place(self, path: str) -> Path:
        """Return the file that a path means."""
        return self.base / from_home(path)

    def value(self, row: int) -> object:
        """Return what a cell holds."""
        return self.values[row]


class DatasetCells:
    """A column of a data set of the library ``datasets``, one row at a time; pictures are not decoded.

    Args:
        part: a ``datasets.Dataset``.
        column: of the pictures.
        where: for errors.
        base: the folder to which paths are relative; None: only those into the library's own cache are followed.
    """

    def __init__(self, part: Any, column: str, where: str, base: Path | None) -> None:
        self.where, self._base, self._column = where, base, column
        outer = [name for name in part.column_names if column == name or column.startswith(f"{name}.")]
        self._part = part.select_columns(outer).with_format("arrow")

    def place(self, path: str) -> Path | None:
        """Return the file that a path means, or None."""
        if self._base is not None:
            return self._base / from_home(path)
        from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

        place = Path(os.path.normpath(path))  # links stay: the cache is made of them
        return place if any(place.is_relative_to(os.path.normpath(cache)) for cache in (HF_HOME, HF_HUB_CACHE)) else None

    def value(self, row: int) -> object:
        """Return what a cell holds."""
        found = value_at(self._part[row : row + 1].to_pylist()[0], self._column)
        return None if found is MISSING else found


class ParquetCells:
    """A column of a Parquet file. Holds 32 rows of it; reading rows in their order reads the file once."""

    def __init__(self, path: Path, column: str) -> None:
        self.where = str(path)
        self._path, self._column = path, column
        self._first = 0
        self._rows: list[Any] = []
        self._batches: Iterator[Any] = iter(())

    def place(self, path: str) -> Path:
        """Return the file that a path means."""
        return self._path.parent / from_home(path)

    def value(self, row: int) -> object:
        """Return what a cell holds.

        Raises:
            InputError: the file is damaged.
        """
        import pyarrow

        try:
            if row < self._first or not self._rows:
                self._restart()
            while row >= self._first + len(self._rows):
                self._first += len(self._rows)
                self._rows = next(self._batches).to_pylist()
        except (pyarrow.ArrowException, OSError, StopIteration) as error:
            raise InputError(got=f"{self._path} ({error})", expected="a complete Parquet file", do="write it again") from None
        found = value_at(self._rows[row - self._first], self._column)
        return None if found is MISSING else found

    def _restart(self) -> None:
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(self._path)
        names = file.schema_arrow.names
        outer = [name for name in names if self._column == name or self._column.startswith(f"{name}.")]
        self._first, self._rows = 0, []
        self._batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=outer)


def refuse_shared_column(column: str | None, others: Iterable[tuple[str, str | None]]) -> None:
    """Raise InputError if the column of pictures is read as something else, too.

    Args:
        column: of the pictures, if there is one.
        others: what other columns are read as, and their names.
    """
    if (role := next((role for role, name in others if name is not None and name == column), None)) is not None:
        raise InputError(
            got=f"--images-from {column}, the column that is read as the {role}",
            expected="a column of pictures beside the texts",
            do="name the column with the pictures",
        )


def with_pictures(table: Table, column: str | None) -> Table:
    """Return a table whose column of pictures, if there is one, holds cells; those of a file in memory get the folder of that file."""
    values = None if column is None else table.columns.get(column)
    if column is None or values is None or all(isinstance(value, PictureCell) for value in values):
        return table
    base = Path.cwd() if table.in_memory else Path(table.where).parent
    cells = ListedCells(table.where, base, values)
    return replace(table, columns={**table.columns, column: [PictureCell(cells, row) for row in range(len(values))]})
