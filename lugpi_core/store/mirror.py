"""Where a column's final shards go besides the local folder, such as an object store."""

from collections.abc import Mapping
from typing import Any, Protocol


class Mirror(Protocol):
    """A remote copy of a store. A shard is final when its record is there; the local folder is then only where shards are built."""

    def records(self, column: str) -> Mapping[int, dict[str, Any]]:
        """Return the records of the column's shards that are final in the remote copy, by number."""

    def publish(self, column: str, shard: int, record: Mapping[str, Any]) -> None:
        """Copy a shard that is final locally, compare the copy with its record, then copy the record.

        Called by ``ColumnWriter.commit`` once for each shard, in the thread that commits; and by the next ``ColumnWriter`` if a process
        ended before it was done.

        Raises:
            InputError, OSError: it is not there; the shard stays final locally, and the run ends.
        """

    def begin(self) -> bool:
        """Say in the remote copy what the store is, before anything is computed; return whether that agrees with what is said there.

        If not, what another machine said first is here now, and has to be compared.

        Raises:
            InputError, OSError: the remote copy cannot be written to.
        """

    def finish(self) -> None:
        """Copy manifests and tables that have changed."""

    def withdraw(self, column: str, shard: int, record: Mapping[str, Any]) -> None:
        """Remove a remote shard: from now on it does not exist. Its rows are brought here before if they can be."""

    def fetch(self, column: str, shard: int, record: Mapping[str, Any]) -> None:
        """Put a remote shard in its local place, because its rows are to be read."""
