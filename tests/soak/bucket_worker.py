"""Fills a column of many small shards in an object store, as featurize does; ``python -m tests.soak.bucket_worker ADDRESS SCRATCH``."""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lugpi_core.errors import EXIT_BAD_INPUT, InputError
from lugpi_core.remote.run import open_run
from lugpi_core.store.lease import ShardBusy
from lugpi_core.store.manifest import ColumnSpec
from lugpi_core.store.object_store import ObjectStore, mirror_of
from lugpi_core.store.writer import ColumnWriter

SPEC = ColumnSpec(name="clip", what="tokens", rows=40, row_shape=(2, 3), shard_rows=2, fingerprint={"seed": 0})


def rows_of(shard: int) -> NDArray[np.float16]:
    """Return the rows of a shard."""
    layout = SPEC.layout(shard)
    return np.random.default_rng(shard).normal(size=(layout.rows, 2, 3)).astype(np.float16)


def fill(store: Path, mirror: ObjectStore | None) -> None:
    """Fill what is missing; other processes may do the same."""
    if mirror is not None:
        mirror.pull()
    column = ColumnWriter(store, SPEC, mirror=mirror)
    if mirror is not None:
        assert mirror.begin()
    for shard in range(SPEC.shards):
        try:
            writer = column.claim(shard)
        except ShardBusy:
            continue
        if writer is not None:
            rows = rows_of(shard)
            writer.write(0, rows, np.zeros(len(rows), np.uint8))
            column.commit(shard, writer)
    if column.finish() and mirror is not None:
        mirror.finish()


if __name__ == "__main__":
    try:
        local = open_run(Path(sys.argv[1]), Path(sys.argv[2])) / "tokens"
        fill(local, mirror_of(local))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
