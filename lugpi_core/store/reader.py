"""Random access to a complete column at memory speed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.store.column_map import ColumnMap, ShardPlace
from lugpi_core.store.foreign_files import refuse_structure
from lugpi_core.store.layout import BASIS, CANDIDATES, LATENTS, PROMPT_TEXT, SCALE
from lugpi_core.store.manifest import MANIFEST, Record, is_empty, load_manifest
from lugpi_core.store.object_store import bring_shards
from lugpi_core.store.quantize import dequantize_array
from lugpi_core.store.shard import check_record

PREFETCH_BYTES = 32 << 20
Rows = Sequence[int] | NDArray[np.int64]


class ColumnReader:
    """Random access to a complete column. Holds the place of each shard and a memory map of all; the pages belong to the page cache, not to
    the process, and no file stays open.

    Safe under fork, spawn and threads: it keeps paths, offsets, shapes and dtypes, never an HDF5 handle, and pickles only those.

    Args:
        store: the ``tokens`` folder.
        column: such as ``clip-vit-b32``.
        check_content: read every shard once and compare it with its hash before any row is used (about 7 GB/s).

    Attributes:
        spec: the column's description.
        flagged: the rows that failed, each with its reason.

    Raises:
        InputError: no such column, missing rows, or a file that is damaged or not a shard.
    """

    def __init__(self, store: Path, column: str, *, check_content: bool = True) -> None:
        folder = store / column
        if not (folder / MANIFEST).is_file():
            raise _no_column(store, column)
        self.spec, records = load_manifest(folder)
        _refuse_missing(folder, self.spec.rows, self.spec.shards, records)
        bring_shards(store, column, records)
        for shard in sorted(records):
            refuse_damaged(folder, records[shard], content=check_content)
        files = [(number, folder / record["file"], record) for number, record in sorted(records.items())]
        self._places = [ShardPlace(path, self.spec.layout(n), record["offsets"], record["bytes"]) for n, path, record in files]
        refuse_structure(self._places)
        self.flagged = {int(row) + record["first_row"]: why for record in records.values() for row, why in record["flagged"].items()}
        layout = self.spec.layout(0)
        self._rows = {name: (layout.datasets[name][1], layout.datasets[name][0][1:]) for name in layout.stored}
        self._map: ColumnMap | None = None

    def __len__(self) -> int:
        return self.spec.rows

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row, scales included."""
        layout = self.spec.layout(0)
        return sum(layout.bytes_of(name) for name in layout.stored)

    def gather(self, rows: Rows, out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
        """Return the rows in the given order, float16 [b, *row_shape], in ``out`` if given.

        Raises:
            IndexError: the column has no such row; negative numbers are not allowed.
        """
        what, numbers = self.spec.what, self._checked(rows)
        if out is None:
            out = np.empty((len(numbers), *self.spec.row_shape), np.float16)
        if self.spec.dtype == "float16":
            (self._map or self._mapped()).take(what, numbers, out)
            return out
        stored = self.gather_stored(numbers)
        return dequantize_array(stored[what], stored[SCALE], out)

    def gather_stored(self, rows: Rows, out: Mapping[str, NDArray[Any]] | None = None) -> dict[str, NDArray[Any]]:
        """Return the rows as they are stored: ``{what: float16}``, or ``{what: int8, "scale": float32}``, each [b, ...].

        Raises:
            IndexError: the column has no such row.
        """
        numbers = self._checked(rows)
        buffers = (
            {name: np.empty((len(numbers), *shape), dtype) for name, (dtype, shape) in self._rows.items()} if out is None else dict(out)
        )
        for name, buffer in buffers.items():
            self._mapped().take(name, numbers, buffer)
        return buffers

    def will_need(self, rows: Rows) -> None:
        """Ask the system to read rows into the page cache, and return immediately (madvise with MADV_WILLNEED)."""
        for row in self._checked(rows):
            self._mapped().will_need(*divmod(row, self.spec.shard_rows))

    def batches(self, batches: Sequence[Rows]) -> Iterator[NDArray[np.float16]]:
        """Yield ``gather`` of each batch, while the system reads the rows of the next ones, up to 32 MB, from the disk."""
        for n, _ in enumerate(self.ahead(batches)):
            yield self.gather(batches[n])

    def ahead(self, batches: Iterable[Rows]) -> Iterator[Rows]:
        """Yield the batches one by one, after asking the system for the rows of the following ones, up to 32 MB."""
        waiting: list[Rows] = []
        rows_ahead, depth = 0, max(1, PREFETCH_BYTES // self.row_bytes)
        for batch in batches:
            self.will_need(batch)
            waiting.append(batch)
            rows_ahead += len(batch)
            while rows_ahead > depth and len(waiting) > 1:
                rows_ahead -= len(waiting[0])
                yield waiting.pop(0)
        yield from waiting

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def _checked(self, rows: Rows) -> Sequence[int]:
        numbers = rows.tolist() if isinstance(rows, np.ndarray) else rows
        if len(numbers) and not 0 <= min(numbers) <= max(numbers) < self.spec.rows:
            raise IndexError(f"rows {min(numbers)} to {max(numbers)} of {self.spec.rows}")
        return numbers

    def _mapped(self) -> ColumnMap:
        if self._map is None:
            self._map = ColumnMap(self._places)
        return self._map


def refuse_damaged(folder: Path, record: Record, *, content: bool) -> None:
    """Raise InputError if a committed shard is missing, or differs from its record in size or, with ``content``, in hash."""
    if fault := check_record(folder, record, content=content):
        raise InputError(
            got=f"{folder / record['file']}: {fault}",
            expected="the shard as it was committed",
            do=f"run {_command_of(folder)} again: it regenerates the damaged rows, and only those",
        )


def columns_of(store: Path) -> list[str]:
    """Return the names of a store's columns that contain a shard, unfinished or final, sorted; empty if there is no store."""
    return sorted(path.parent.name for path in store.glob(f"*/{MANIFEST}") if not is_empty(path.parent))


def token_columns_of(store: Path) -> list[str]:
    """Return the names of the columns of tokens, sorted."""
    return [name for name in columns_of(store) if name not in (LATENTS, CANDIDATES)]


def image_columns_of(store: Path) -> list[str]:
    """Return the names of the columns of image tokens, sorted: all tokens but those of the generator's text encoder."""
    return [name for name in token_columns_of(store) if name != PROMPT_TEXT]


def _refuse_missing(folder: Path, rows: int, shards: int, records: dict[int, Record]) -> None:
    present = sum(record["rows"] for record in records.values())
    if len(records) != shards or present != rows:
        raise InputError(
            got=f"{folder} with {present} of {rows} rows",
            expected="all of them",
            do=f"run {_command_of(folder)} again; it generates the missing ones",
        )


def _command_of(folder: Path) -> str:
    """Return which command fills a column."""
    return "python -m featurize reduce" if (folder / BASIS).is_file() else "the same featurize command"


def _no_column(store: Path, column: str) -> InputError:
    if not columns_of(store):
        return InputError(got=f"no token store in {store}", expected="one that featurize wrote", do="run python -m featurize first")
    if names := token_columns_of(store):
        return InputError(
            got=f"no column {column!r} in {store}",
            expected=f"one of {', '.join(names)}",
            do=f"choose one of them, or run python -m featurize with --encoders {column}",
        )
    return InputError(got=f"{store}, which contains only latents", expected="tokens", do="run python -m featurize with an encoder")
