"""Give a finished column more rows: its own come first, under the fingerprint and in the shards of the larger one.

A column is copied, not extended in place, because a row's hash depends on the fingerprint. The copy is made beside the columns, under
``.growing``, and changes places with the column at the end; a process that is killed on the way is continued by the next.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.files import make_folder
from lugpi_core.store.layout import SCALE
from lugpi_core.store.manifest import ColumnSpec
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.shard import ShardWriter, flag_of
from lugpi_core.store.writer import ColumnWriter

_GROWING, _OUTGROWN = ".growing", ".outgrown"
_AT_ONCE_BYTES = 16 << 20


def grow_column(store: Path, spec: ColumnSpec) -> None:
    """Replace a finished column by one of ``spec``, which has its rows first; the further ones are missing. The caller holds the store's
    lock.

    Raises:
        InputError: a shard is missing or damaged, or the disk has no room for both.
    """
    growing, outgrown = store / _GROWING, store / _OUTGROWN
    shutil.rmtree(growing / spec.name, ignore_errors=True)
    reader = ColumnReader(store, spec.name)
    writer = ColumnWriter(make_folder(growing), spec)
    for shard in range(-(-len(reader) // spec.shard_rows)):
        file = writer.claim(shard)
        assert file is not None, "a new column has no final shard"
        try:
            _copy(reader, file)
            if file.valid.all():
                writer.commit(shard, file)
        finally:
            file.close()
    shutil.rmtree(outgrown / spec.name, ignore_errors=True)
    os.replace(store / spec.name, make_folder(outgrown) / spec.name)
    os.replace(growing / spec.name, store / spec.name)
    sweep_growth(store)


def sweep_growth(store: Path) -> None:
    """Put a column back whose process was killed before the larger one took its place, and remove what else is left of growing. The caller
    holds the store's lock."""
    for column in (store / _OUTGROWN).glob("*"):
        if not (store / column.name).exists():
            os.replace(column, store / column.name)
    for folder in (_GROWING, _OUTGROWN):
        shutil.rmtree(store / folder, ignore_errors=True)


def is_growing(store: Path) -> bool:
    """Whether a process is growing a column, or was killed over it."""
    return (store / _GROWING).exists() or (store / _OUTGROWN).exists()


def _copy(reader: ColumnReader, file: ShardWriter) -> None:
    """Write the reader's rows that belong to a shard of a larger column."""
    first, end = file.layout.first_row, min(file.layout.first_row + file.layout.rows, len(reader))
    at_once = max(1, _AT_ONCE_BYTES // reader.row_bytes)
    for start in range(first, end, at_once):
        rows = np.arange(start, min(start + at_once, end))
        stored: dict[str, NDArray[Any]] = reader.gather_stored(rows)
        flags = np.array([flag_of(reader.flagged[row]) if row in reader.flagged else 0 for row in rows.tolist()], np.uint8)
        file.write(start - first, stored[file.layout.what], flags, stored.get(SCALE))
