"""The files of final shards, whose names contain a piece of the column's fingerprint."""

from pathlib import Path

from lugpi_core.store.manifest import load_manifest


def shard_file(column: Path, shard: int) -> Path:
    """Return the file of a recorded shard in the folder of a column."""
    return column / str(load_manifest(column)[1][shard]["file"])
