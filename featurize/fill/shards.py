"""Claim, fill and commit the shards of a store's columns, next to other processes that do the same."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Self

from featurize.fill.block import RunState
from featurize.fill.writer_thread import StoredRows, WriterThread
from featurize.plan.parts import WHOLE, Part
from lugpi_core.command_line import say
from lugpi_core.store.lease import ShardBusy
from lugpi_core.store.shard import ShardWriter
from lugpi_core.store.writer import ColumnWriter

POLL_S = 0.2


def open_shards(writers: Mapping[str, ColumnWriter]) -> list[int]:
    """Return the shards that are not final in every column."""
    shards = next(iter(writers.values())).spec.shards
    return [shard for shard in range(shards) if not all(writer.is_committed(shard) for writer in writers.values())]


class ShardFiller(ABC):
    """Fills the shards of some columns. Holds the claimed shards and the rows that wait to be written.

    Args:
        writers: of the columns, by name.
        state: counts what is done.

    Attributes:
        compute: what of the models is recorded with a run.
    """

    compute: Mapping[str, Any] = MappingProxyType({"attention": None})

    def __init__(self, writers: Mapping[str, ColumnWriter], state: RunState) -> None:
        self._writers, self._state = writers, state
        self._thread = WriterThread(state.times)
        self._claimed: list[ShardWriter] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *stopped_by: Any) -> None:
        try:
            self._thread.__exit__(*stopped_by)
        finally:
            for file in self._claimed:
                file.close()

    @abstractmethod
    def fill_shard(self, shard: int, files: dict[str, ShardWriter]) -> Iterator[None]:
        """Compute what a claimed shard lacks, in every column; yield after each block."""

    def faults(self) -> list[str]:
        """Return what a person should know of the rows that failed, a sentence each."""
        return []

    def fill(self, part: Part = WHOLE) -> Iterator[None]:
        """Fill every shard that is not final; yield after each block.

        Other processes may fill the same store: shards being written by another process are skipped and checked again at the end, in case
        that process died. One of several parts fills its own shards first and then, if the file system has locks, those that no other
        process has begun; it waits for those of its own that another process is writing, but not for others.
        """
        waited_for = ""
        while shards := self._shards_of(part):
            busy: ShardBusy | None = None
            for shard in shards:
                try:
                    files = self.claim(shard)
                except ShardBusy as error:
                    busy = error
                    continue
                if files:
                    yield from self.fill_shard(shard, files)
            self.finish_writing()
            if busy and self._shards_of(part) == shards:
                if not any(shard in part for shard in shards):
                    return
                if busy.owner != waited_for:
                    say(f"waiting for {busy.owner}, which is writing what is missing")
                    waited_for = busy.owner
                with self._state.times.host("wait"):
                    time.sleep(POLL_S)
                self._state.stop.check()

    def claim(self, shard: int) -> dict[str, ShardWriter]:
        """Return the shard of each column in which it is not final yet.

        Raises:
            ShardBusy: another process is writing one of them; none is claimed then.
        """
        if self._state.confirm is not None:
            self._state.confirm()
        claimed: dict[str, ShardWriter] = {}
        try:
            for name, writer in self._writers.items():
                file = writer.claim(shard)
                if file is not None:
                    claimed[name] = file
        except BaseException:
            for file in claimed.values():
                file.close()
            raise
        self._claimed += claimed.values()
        return claimed

    def drain(self) -> None:
        """Wait until every computed row is written."""
        self._thread.drain()

    def finish_writing(self) -> None:
        """Wait until every computed row is written, then read what other processes have written."""
        self.drain()
        for writer in self._writers.values():
            writer.refresh()

    def _shards_of(self, part: Part) -> list[int]:
        """Return the shards that are not final, in the order in which a part fills them: those of others from the last on, where they begin
        least early."""
        shards = open_shards(self._writers)
        others = [shard for shard in reversed(shards) if shard not in part]
        helps = all(writer.leases_reach_all for writer in self._writers.values())
        return [shard for shard in shards if shard in part] + (others if helps else [])

    def put_rows(self, name: str, file: ShardWriter, first: int, rows: StoredRows) -> None:
        """Queue rows of a column's block, to be written from local row ``first`` on; count what int8 loses of them."""
        if rows.lost_2 is not None:
            counted = self._state.int8_lost.get(name)
            self._state.int8_lost[name] = rows.lost_2 if counted is None else counted + rows.lost_2
        self._thread.put_rows(file, first, rows)

    def commit(self, shard: int, files: Mapping[str, ShardWriter]) -> None:
        """Queue the commit of a shard whose rows are all queued."""
        for name, file in files.items():
            self._thread.put(partial(self._commit, name, shard, file))

    def _commit(self, name: str, shard: int, file: ShardWriter) -> None:
        with self._state.times.host("commit"):
            self._writers[name].commit(shard, file)
        self._claimed.remove(file)
