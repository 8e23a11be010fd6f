"""Tables from a user's files: CSV and TSV, JSON, Parquet; plain text."""

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lugpi_core.corpora.columns import ColumnBuilder
from lugpi_core.corpora.corpus import Split
from lugpi_core.corpora.delimited import delimited_columns
from lugpi_core.corpora.json_files import json_rows
from lugpi_core.corpora.options import suffix_of
from lugpi_core.corpora.picture_columns import ParquetCells
from lugpi_core.corpora.pictures import PictureCell
from lugpi_core.corpora.tables import Table, class_names, columns_of, parquet_features
from lugpi_core.corpora.text_files import SAMPLE_BYTES, check_content, file_text, open_text
from lugpi_core.errors import InputError

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
_PART = re.compile(r"-\d{5}-of-(\d{5})\b")  # as datasets and Spark name the files that make up a table
_HUB_PARTS = 2  # owner/name
_ROWS_AT_ONCE = 4096
_USUAL_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def file_table(path: Path, source: Split, wanted: Sequence[str], label_column: str | None = None, pictures: str | None = None) -> Table:
    """Read some columns of a CSV, TSV, JSON, JSONL or Parquet file, gzipped or not. Holds JSON whole in memory, else these columns.

    A column ``a.b`` is the key ``b`` in the objects of column ``a``, unless a column has that name itself.

    Args:
        path: the file.
        source: which split the file is given as.
        wanted: names of columns; those that the file lacks are not in the table.
        label_column: the column whose class names are to be known, if ``datasets`` wrote them into a Parquet file.
        pictures: a wanted column that is not held in memory, if it is a Parquet file's: its cells are read one by one.

    Raises:
        InputError: the file is missing, unreadable or of another kind, or a line of it is malformed.
    """
    suffix = suffix_of(path)
    if suffix not in SUFFIXES or (suffix == ".parquet" and path.suffix.lower() == ".gz"):
        raise InputError(got=str(path), expected=f"a file ending in {', '.join(SUFFIXES)}", do=_advice(path))
    part = _PART.search(path.name)
    if part is not None and int(part[1]) > 1:
        warnings.warn(f"{path} is one of {int(part[1])} parts of a table; its folder has all of them", stacklevel=5)
    if suffix == ".parquet":
        return _parquet_table(path, source, wanted, label_column, pictures)
    if suffix in _USUAL_DELIMITERS:
        names, columns = delimited_columns(open_text(path), where=str(path), usual=_USUAL_DELIMITERS[suffix], wanted=wanted)
    else:
        names, columns = columns_of(json_rows(file_text(path), where=str(path), wanted=wanted), wanted)
    return Table(where=str(path), source=source, names=names, columns=columns)


def _advice(path: Path) -> str:
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        return "save the sheet as CSV (UTF-8)"
    if not path.suffix and not path.exists():
        return "check the path" + (f"; for the Hugging Face hub write hf:{path.as_posix()}" if len(path.parts) == _HUB_PARTS else "")
    return "unpack it" if path.suffix.lower() in (".zip", ".bz2", ".xz", ".zst", ".gz") else "convert it to one of these"


def text_table(path: Path, column: str) -> Table:
    """Read a text file as one column, one text per line; empty lines are skipped.

    Raises:
        InputError: the file is missing or is not UTF-8.
    """
    lines: list[object] = [line.removesuffix("\r") for line in file_text(path).split("\n") if line.strip()]
    return Table(where=str(path), source="train", names=(column,), columns={column: lines})


def _in_batches(batches: Iterable[Any], wanted: Sequence[str]) -> tuple[int, dict[str, None], dict[str, Sequence[object]]]:
    """Return the number of rows of Arrow's batches, all column names, and the wanted columns, as ``columns_of`` does. Holds one batch of
    rows as Python objects."""
    count, all_names = 0, dict[str, None]()
    builders: dict[str, ColumnBuilder] = {}
    for batch in batches:
        names, columns = columns_of(batch.to_pylist(), wanted)
        all_names |= dict.fromkeys(names)
        for name in columns.keys() | builders.keys():
            if name not in builders:
                builders[name] = ColumnBuilder()
                builders[name].extend([None] * count)
            builders[name].extend(columns.get(name, [None] * len(batch)))
        count += len(batch)
    return count, all_names, {name: builders[name].column() for name in wanted if name in builders}


def _parquet_table(path: Path, source: Split, wanted: Sequence[str], label_column: str | None, pictures: str | None) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            check_content(file.read(SAMPLE_BYTES), str(path))
        schema = pyarrow.parquet.read_schema(path)
        in_memory = [wish for wish in wanted if wish != pictures]
        outer = dict.fromkeys(name for wish in in_memory for name in schema.names if wish == name or wish.startswith(f"{name}."))
        with pyarrow.parquet.ParquetFile(path) as file:
            rows, names, columns = _in_batches(file.iter_batches(_ROWS_AT_ONCE, columns=list(outer)), in_memory)
    except pyarrow.ArrowException as error:
        raise InputError(got=f"{path} ({error})", expected="a complete Parquet file", do="write it again") from error
    except OSError as error:
        raise InputError(got=f"{path} ({error.strerror or error})", expected="a readable file", do="check the path") from error
    if pictures is not None and pictures.partition(".")[0] in schema.names:
        cells = ParquetCells(path, pictures)
        columns[pictures] = [PictureCell(cells, row) for row in range(rows)]
    return Table(
        where=str(path),
        source=source,
        names=tuple(dict.fromkeys([*schema.names, *names, *columns])),
        columns=columns,
        classes=None if label_column is None else class_names(parquet_features(schema.metadata), label_column),
    )
