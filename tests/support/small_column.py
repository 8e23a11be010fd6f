"""A column of seven rows in two shards, for the tests of the writer."""

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lugpi_core.fingerprint import digest
from lugpi_core.store.lease import LOCK
from lugpi_core.store.manifest import MANIFEST, RECORDS, ColumnSpec, merge_records
from lugpi_core.store.shard import ShardWriter
from lugpi_core.store.writer import ColumnWriter

SPEC = ColumnSpec(name="clip", what="tokens", rows=7, row_shape=(2, 3), shard_rows=4, fingerprint={"seed": 0})


def token_rows() -> NDArray[np.float16]:
    """Return the tokens of all rows."""
    return np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float16)


def claimed(column: ColumnWriter, shard: int) -> ShardWriter:
    """Claim a shard that is free."""
    writer = column.claim(shard)
    assert writer is not None
    return writer


def write_all(writer: ShardWriter) -> ShardWriter:
    """Write all rows of a shard."""
    layout = writer.layout
    writer.write(0, token_rows()[layout.first_row : layout.first_row + layout.rows], np.zeros(layout.rows, np.uint8))
    return writer


def commit_shard(column: ColumnWriter, shard: int) -> None:
    """Claim, write and commit a shard."""
    column.commit(shard, write_all(claimed(column, shard)))


def filled(store: Path, spec: ColumnSpec = SPEC) -> ColumnWriter:
    """Return a column with all shards committed."""
    column = ColumnWriter(store, spec)
    for shard in range(spec.shards):
        commit_shard(column, shard)
    return column


def as_earlier_versions(folder: Path) -> None:
    """Leave a column as earlier versions of lugpi did before it was complete: records in the manifest alone, without sha256."""
    merge_records(folder)
    shutil.rmtree(folder / RECORDS)
    value = json.loads((folder / MANIFEST).read_text())
    del value["xxh3_128"]
    for record in value["shards"].values():
        del record["sha256"]
    (folder / MANIFEST).write_text(json.dumps({**value, "xxh3_128": digest(value)}))


def state_of(store: Path) -> dict[str, bytes]:
    """Return the content of every file but locks and record files, which say how long a shard took."""
    return {str(path): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file() and _is_content(path)}


def names_in(store: Path) -> list[str]:
    """Return the names of the files of the column, but for its lock and its records."""
    return sorted(path.name for path in (store / "clip").iterdir() if path.name not in (LOCK, RECORDS))


def _is_content(path: Path) -> bool:
    return path.name != LOCK and path.parent.name != RECORDS
