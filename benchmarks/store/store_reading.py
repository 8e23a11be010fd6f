"""Random batches from the token store compared with ``np.memmap``, ``np.load`` and h5py, with a warm and a cold page cache."""

import mmap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import interleaved, median_ratio, medians
from benchmarks.store.page_cache import cached_share, drop_pages
from benchmarks.store.token_files import COLUMN, TokenFiles
from lugpi_core.store.reader import ColumnReader

BATCH = 14
OURS, INTO = "ours, gather(rows)", "ours, gather(rows, out)"
AHEAD = "ours, batches(all)"
MEMMAP = "np.memmap, mapped[rows]"
READ_DIRECT = "h5py read_direct loop"
FANCY = {layout: f"h5py fancy, {layout}" for layout in ("contiguous", "one-row chunks", "chunks=True")}
Batches = list[NDArray[np.int64]]
Read = Callable[[Batches], NDArray[np.float16] | None]  # reads all batches, returns the last
Way = Callable[[TokenFiles], Read]
# Chunked reads take a hundred times as long: they read fewer batches; time per row is compared.
FEWER = {FANCY["one-row chunks"]: 10, FANCY["chunks=True"]: 10}


def hot(files: TokenFiles, *, batches: int, repeats: int) -> dict[str, Any]:
    """Return rows/s of each way with all pages in the cache, and how many times faster ours is."""
    picked = pick(files.rows, batches)
    reads = {name: way(files) for name, way in HOT.items()}
    parts = {name: _fewer(picked, name) for name in reads}
    seconds = interleaved({name: partial(read, parts[name]) for name, read in reads.items()}, repeats=repeats)
    return rates({name: [value / (BATCH * len(parts[name])) for value in values] for name, values in seconds.items()}, ours=OURS)


def cold(files: TokenFiles, *, batches: int, repeats: int) -> dict[str, Any]:
    """Return rows/s of each way with no page in the cache, how many times faster ours is, and rows/s of the disk read in order.

    Opening files and dropping their pages is untimed; mapping them is timed.
    """
    picked = pick(files.rows, batches)
    opened: dict[str, Read] = {}
    cached: list[float] = []

    def open_cold(name: str) -> None:
        opened.clear()  # mapped pages cannot be dropped
        opened[name] = COLD[name](files)
        paths = [files.raw, files.npy, *files.hdf5.values(), *files.shards]
        drop_pages(paths)
        cached.append(cached_share(paths))

    parts = {name: _fewer(picked, name) for name in COLD}
    ways = {name: partial(_run_opened, opened, name, parts[name]) for name in COLD}
    seconds = interleaved(ways, repeats=repeats, before=open_cold)
    in_order = [value / files.rows for value in seconds.pop(IN_ORDER)]
    figures = rates({name: [value / (BATCH * len(parts[name])) for value in values] for name, values in seconds.items()}, ours=AHEAD)
    figures["rows_per_s"][IN_ORDER] = round(1 / medians({IN_ORDER: in_order})[IN_ORDER])
    return figures | {"cached_before_at_most": round(max(cached), 4), "share_of_rows_read": round(BATCH * batches / files.rows, 4)}


def cold_epoch(files: TokenFiles, *, repeats: int) -> dict[str, Any]:
    """Return rows/s when every row is read once, in random order, from a cold cache, as in the first epoch of a training."""
    order = np.random.default_rng(1).permutation(files.rows)
    batches = [np.sort(order[start : start + BATCH]) for start in range(0, files.rows, BATCH)]
    opened: dict[str, Read] = {}

    def open_cold(name: str) -> None:
        opened.clear()
        opened[name] = COLD[name](files)
        drop_pages([files.raw, *files.shards])

    names = (AHEAD, MEMMAP)
    seconds = interleaved({name: partial(_run_opened, opened, name, batches) for name in names}, repeats=repeats, before=open_cold)
    return rates({name: [value / files.rows for value in values] for name, values in seconds.items()}, ours=AHEAD)


def pick(rows: int, batches: int) -> Batches:
    """Return batches of random rows, ascending and without repetition, because h5py accepts no others."""
    return [np.sort(np.random.default_rng(n).choice(rows, BATCH, replace=False)) for n in range(batches)]


def rates(seconds_a_row: Mapping[str, list[float]], *, ours: str) -> dict[str, Any]:
    """Return rows/s of each way, and the median over the rounds of the time of each other way divided by ours."""
    others = [name for name in seconds_a_row if name != ours]
    return {
        "rows_per_s": {name: round(1 / np.median(values)) for name, values in seconds_a_row.items()},
        "ours_against": {name: median_ratio(seconds_a_row, name, ours) for name in others},
    }


def _fewer(batches: Batches, name: str) -> Batches:
    return batches[: max(1, len(batches) // FEWER.get(name, 1))]


def _run_opened(opened: Mapping[str, Read], name: str, batches: Batches) -> None:
    opened[name](batches)  # looked up when it runs, because every round opens the files again


def _each(read: Callable[[NDArray[np.int64]], NDArray[np.float16]]) -> Read:
    def run(batches: Batches) -> NDArray[np.float16] | None:
        tokens = None
        for rows in batches:
            tokens = read(rows)
        return tokens

    return run


def _mapped(files: TokenFiles) -> "np.memmap[Any, np.dtype[np.float16]]":
    return np.memmap(files.raw, np.float16, "r", shape=(files.rows, *files.row_shape))


def _memmap(files: TokenFiles) -> Read:
    return _each(_mapped(files).__getitem__)


def _memmap_take(files: TokenFiles) -> Read:
    mapped, out = _mapped(files), _buffer(files)
    return _each(lambda rows: np.take(mapped, rows, axis=0, out=out, mode="clip"))


def _memmap_loop(files: TokenFiles) -> Read:
    rows_of, out = np.asarray(_mapped(files)), _buffer(files)

    def read(rows: NDArray[np.int64]) -> NDArray[np.float16]:
        for n, row in enumerate(rows.tolist()):
            out[n] = rows_of[row]
        return out

    return _each(read)


def _npy_mapped(files: TokenFiles) -> Read:
    return _each(np.load(files.npy, mmap_mode="r").__getitem__)


def _npy_in_memory(files: TokenFiles) -> Read:
    return _each(np.load(files.npy).__getitem__)


def _fancy(layout: str, files: TokenFiles) -> Read:
    return _each(_dataset(files.hdf5[layout]).__getitem__)


def _read_direct(files: TokenFiles) -> Read:
    tokens, out = _dataset(files.hdf5["contiguous"]), _buffer(files)

    def read(rows: NDArray[np.int64]) -> NDArray[np.float16]:
        for n, row in enumerate(rows):
            tokens.read_direct(out, np.s_[row], np.s_[n])
        return out

    return _each(read)


def _buffer(files: TokenFiles) -> NDArray[np.float16]:
    """Return a page-aligned buffer for a batch.

    Buffers of numpy start 16 bytes after a page, and copies from page-aligned rows to them run at half the rate: source and destination
    then agree in the address bits by which the processor detects a load that depends on a store in flight.
    """
    size = BATCH * files.row_bytes
    memory = np.empty(size + mmap.PAGESIZE, np.uint8)
    start = -memory.ctypes.data % mmap.PAGESIZE
    return memory[start : start + size].view(np.float16).reshape(BATCH, *files.row_shape)


def _dataset(path: Path) -> Any:
    return h5py.File(path, "r")["tokens"]


def _reader(files: TokenFiles) -> ColumnReader:
    return ColumnReader(files.store, COLUMN, check_content=False)


def _gather(files: TokenFiles) -> Read:
    return _each(_reader(files).gather)


def _gather_into(files: TokenFiles) -> Read:
    reader, out = _reader(files), _buffer(files)
    return _each(lambda rows: reader.gather(rows, out))


def _gather_ahead(files: TokenFiles) -> Read:
    reader = _reader(files)

    def run(batches: Batches) -> NDArray[np.float16] | None:
        tokens = None
        for one in reader.batches(batches):
            tokens = one
        return tokens

    return run


def _in_order(files: TokenFiles) -> Read:
    file, buffer = files.raw.open("rb", buffering=0), bytearray(4 << 20)

    def run(_: Batches) -> None:
        with file:
            while file.readinto(buffer):
                pass

    return run


IN_ORDER = "the disk, read in order"
FANCIES: dict[str, Way] = {name: partial(_fancy, layout) for layout, name in FANCY.items()}
HOT: dict[str, Way] = {
    MEMMAP: _memmap,
    OURS: _gather,
    INTO: _gather_into,
    "np.memmap, np.take into a buffer": _memmap_take,
    "np.memmap, loop into a buffer": _memmap_loop,
    "np.load, mmap_mode='r'": _npy_mapped,
    "np.load, all in memory": _npy_in_memory,
    READ_DIRECT: _read_direct,
    **FANCIES,
}
COLD: dict[str, Way] = {
    MEMMAP: _memmap,
    AHEAD: _gather_ahead,
    OURS: _gather,
    "np.load, mmap_mode='r'": _npy_mapped,
    READ_DIRECT: _read_direct,
    **FANCIES,
    IN_ORDER: _in_order,
}
