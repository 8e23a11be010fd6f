"""All shards of a column in one range of addresses, so that a batch of rows is one ``take`` in C, whatever shards they are in.

A range is reserved, and each shard file is mapped into its own stretch of it. The length of a stretch is a whole number of pages and of
rows; so row r of shard s is ``s · rows per stretch + r`` rows after the first, and the column is one array with holes. No file stays open.
"""

import ctypes
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.files import open_file
from lugpi_core.store.layout import ShardLayout

_MAP_FIXED = 0x10  # of Linux; Python's mmap does not define it
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong)


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """Where the rows of a committed shard are: all that a reader keeps of it."""

    path: Path
    layout: ShardLayout
    offsets: Mapping[str, int]
    file_bytes: int


def _most_shards() -> int:
    """Return how many shards a process can map, each with the hole behind it; other libraries need some maps, too."""
    maps = int(Path("/proc/sys/vm/max_map_count").read_text())
    return max(1, (maps - 2000) // 2)


class ColumnMap:
    """A read-only map of shards; all but the last have the same number of rows. The pages belong to the page cache.

    Raises:
        InputError: a file has another size than when it was checked.
        OSError: a file cannot be mapped.
    """

    def __init__(self, places: Sequence[ShardPlace]) -> None:
        if len(places) > (most := _most_shards()):
            raise InputError(
                got=f"a column of {len(places):,} shards",
                expected=f"at most {most:,}: this system lets a process map so many files (vm.max_map_count)",
                do=f"have root run sysctl -w vm.max_map_count={3 * len(places)}",
            )
        self._layout = places[0].layout
        self._places = places
        self._row_bytes = {name: self._layout.bytes_of(name) for name in self._layout.stored}
        period = lcm(mmap.ALLOCATIONGRANULARITY, *self._row_bytes.values())
        largest = max(place.file_bytes for place in places)
        self._stretch_bytes = -(-largest // period) * period
        # Python owns the range and unmaps all of it once no array refers to it any more.
        self._range = mmap.mmap(-1, self._stretch_bytes * len(places), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
        start = np.frombuffer(self._range, np.uint8).ctypes.data
        for n, place in enumerate(places):
            self._map(place, start + n * self._stretch_bytes)
        self._tables = {name: self._table(name) for name in self._row_bytes}
        # Shards whose dataset has another offset than in the first shard, so that their rows are not in the table: the scales of a shorter
        # last shard, and shards written by another version of HDF5.
        self._elsewhere = {
            name: {n for n, place in enumerate(places) if place.offsets[name] != places[0].offsets[name]} for name in self._row_bytes
        }
        for name, table in self._tables.items():
            if not table.flags.aligned:  # NumPy would copy the whole range for every batch
                self._elsewhere[name] = set(range(len(places)))

    def take(self, name: str, rows: Sequence[int], out: NDArray[Any]) -> None:
        """Copy rows of a dataset, numbered across all shards, into ``out`` [b, ...]; the caller has checked the numbers."""
        shard_rows = self._layout.rows
        hole = self._stretch_bytes // self._row_bytes[name] - shard_rows
        places = np.array([row + row // shard_rows * hole for row in rows], np.intp)
        if len(self._elsewhere[name]) < len(self._places):
            self._tables[name].take(places, axis=0, out=out, mode="clip")  # any other mode copies twice
        if elsewhere := self._elsewhere[name]:
            for n, row in enumerate(rows):
                if row // shard_rows in elsewhere:
                    out[n] = self.view(name, row // shard_rows)[row % shard_rows]

    def view(self, name: str, shard: int) -> NDArray[Any]:
        """Return a shard's dataset, [m, ...], read-only, in the page cache: nothing is copied."""
        shape, dtype = self._places[shard].layout.datasets[name]
        offset = shard * self._stretch_bytes + self._places[shard].offsets[name]
        return np.ndarray(shape, dtype, buffer=self._range, offset=offset)

    def will_need(self, shard: int, row: int) -> None:
        """Ask the system to read a row into the page cache, and return immediately."""
        for name, row_bytes in self._row_bytes.items():
            start = shard * self._stretch_bytes + self._places[shard].offsets[name] + row * row_bytes
            page = start - start % mmap.PAGESIZE
            self._range.madvise(mmap.MADV_WILLNEED, page, start + row_bytes - page)

    def _map(self, place: ShardPlace, address: int) -> None:
        with open_file(place.path, os.O_RDONLY) as descriptor:
            size = os.fstat(descriptor).st_size
            if size != place.file_bytes:  # beyond the end of a shorter file the range would read as zeros
                raise InputError(
                    got=f"{place.path}: {size} bytes, {place.file_bytes} expected",
                    expected="the shard as it was checked",
                    do="run the same featurize command again, which repairs it",
                )
            got = _LIBC.mmap(address, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0)
        if got != address:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place.path))

    def _table(self, name: str) -> NDArray[Any]:
        shape, dtype = self._layout.datasets[name]
        offset = self._places[0].offsets[name]
        rows = (len(self._range) - offset) // self._row_bytes[name]
        return np.ndarray((rows, *shape[1:]), dtype, buffer=self._range, offset=offset)
