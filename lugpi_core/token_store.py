"""The token store: columns of float16 rows in shards. ``ColumnWriter`` fills one column, ``ColumnReader`` reads it at memory speed.

    tokens/
      examples.h5                     example → drawing, label, split, id, prompt cut or not   (example_table.py)
      <column>/manifest.json          fingerprint, one record a committed shard                (manifest.py)
      <column>/shard-00000.h5 …       contiguous rows, row hashes, flags                       (shard.py)
      tokens.h5                       virtual datasets over all shards of all columns          (store_view.py)

Row r of every column is drawing r; ``examples.h5`` says which drawing an example has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.manifest import ColumnSpec, add_record, drop_record, load_manifest, open_manifest, shard_name
from lugpi_core.meters import versions
from lugpi_core.shard import ROW_DTYPE, ShardWriter, check_record

LATENTS = "latents"


class ColumnWriter:
    """Fills one column shard by shard; safe to kill at any moment and to continue.

    Opening it keeps what holds: committed shards whose file is there with the recorded size, and rows of ``.partial`` shards whose hash
    holds.

    Raises:
        InputError: the column exists with another fingerprint; the differing fields are named.
    """

    def __init__(self, store: Path, spec: ColumnSpec) -> None:
        self.spec = spec
        self.folder = store / spec.name
        records = open_manifest(self.folder, spec)
        for shard in [shard for shard, record in records.items() if check_record(self.folder, record, content=False)]:
            drop_record(self.folder, spec, shard)
            del records[shard]
        self.records = records

    def is_committed(self, shard: int) -> bool:
        """Whether the shard is final."""
        return shard in self.records

    def read_committed(self, shard: int) -> NDArray[np.float16]:
        """Return a copy of a final shard's rows, float16 [m, *row_shape], after comparing the file with its hash.

        Raises:
            InputError: the file is damaged.
        """
        record, layout = self.records[shard], self.spec.layout(shard)
        refuse_damaged(self.folder, record, content=True)
        return np.array(_map_rows(self.folder / record["file"], record["rows_offset"], (layout.rows, *layout.row_shape)))

    def open_shard(self, shard: int) -> ShardWriter:
        """Return a writer of the shard's ``.partial`` file, made or continued."""
        final = self.folder / shard_name(shard)
        partial = final.with_suffix(".h5.partial")
        if final.exists():
            # Renamed but not recorded (killed in between), or its record was dropped: its rows are checked one by one like any partial's.
            final.replace(partial)
        return ShardWriter(partial, self.spec.layout(shard))

    def commit(self, shard: int, writer: ShardWriter) -> None:
        """Make a full shard final: synced, read back, renamed, recorded."""
        record = writer.commit(self.folder / shard_name(shard)) | {"versions": versions()}
        add_record(self.folder, self.spec, shard, record)
        self.records[shard] = record


@dataclass(frozen=True, slots=True)
class _ShardPlace:
    path: Path
    offset: int
    first_row: int
    rows: int


class ColumnReader:
    """Random access to a complete column. Holds one memory map a shard; the pages belong to the page cache, not to the process.

    Safe under fork, spawn and threads: what is kept is path, offset, shape and dtype, never an HDF5 handle; pickling keeps only those too.

    Args:
        store: the ``tokens`` folder.
        column: such as ``clip-vit-b32``.
        check_content: read every shard once and compare it with its hash before the first row is trusted (about 7 GB/s).

    Raises:
        InputError: no such column, rows that are missing, or a shard that is damaged.
    """

    def __init__(self, store: Path, column: str, *, check_content: bool = True) -> None:
        folder = store / column
        if not folder.is_dir():
            raise _no_column(store, column)
        self.spec, records = load_manifest(folder)
        self._refuse_missing(folder, records)
        for shard in sorted(records):
            refuse_damaged(folder, records[shard], content=check_content)
        self.flagged = {int(row) + record["first_row"]: why for record in records.values() for row, why in record["flagged"].items()}
        self._places = [
            _ShardPlace(folder / record["file"], record["rows_offset"], record["first_row"], record["rows"])
            for _, record in sorted(records.items())
        ]
        self._maps = [self._map(place) for place in self._places]

    def __len__(self) -> int:
        return self.spec.rows

    def gather(self, rows: Sequence[int] | NDArray[np.int64], out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
        """Return the rows, in the order given, float16 [b, *row_shape]; into ``out`` when one is given.

        Raises:
            IndexError: a row that the column does not have; rows are not counted from the end.
        """
        if out is None:
            out = np.empty((len(rows), *self.spec.row_shape), ROW_DTYPE)
        for n, row in enumerate(rows):
            if row < 0:
                raise IndexError(f"row {row} of {len(self)}")
            shard, local = divmod(int(row), self.spec.shard_rows)
            out[n] = self._maps[shard][local]
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._maps = [self._map(place) for place in self._places]

    def _map(self, place: _ShardPlace) -> NDArray[np.float16]:
        return _map_rows(place.path, place.offset, (place.rows, *self.spec.row_shape))

    def _refuse_missing(self, folder: Path, records: dict[int, dict[str, Any]]) -> None:
        present = sum(record["rows"] for record in records.values())
        if len(records) != self.spec.shards or present != self.spec.rows:
            raise InputError(
                got=f"{folder} with {present} of {self.spec.rows} rows",
                expected="all of them",
                do="run the same featurize command again; it makes the missing ones",
            )


def refuse_damaged(folder: Path, record: Mapping[str, Any], *, content: bool) -> None:
    """Raise InputError when a committed shard is missing, has another size or, with ``content``, another hash than recorded."""
    if fault := check_record(folder, record, content=content):
        raise InputError(
            got=f"{folder / record['file']}: {fault}",
            expected="the shard as it was committed",
            do="remove this file and run the same featurize command again; only its rows are made again",
        )


def _map_rows(path: Path, offset: int, shape: tuple[int, ...]) -> NDArray[np.float16]:
    return np.memmap(path, ROW_DTYPE, "r", offset=offset, shape=shape)


def columns_of(store: Path) -> list[str]:
    """Return the names of the columns in a store, sorted; empty when there is no store."""
    return sorted(path.parent.name for path in store.glob("*/manifest.json"))


def _no_column(store: Path, column: str) -> InputError:
    found = [name for name in columns_of(store) if name != LATENTS]
    if not found:
        return InputError(got=f"no token store in {store}", expected="one that featurize made", do="run python -m featurize first")
    return InputError(
        got=f"no column {column!r} in {store}",
        expected=f"one of {', '.join(found)}",
        do=f"choose one of them, or run python -m featurize with --encoders {column}",
    )
