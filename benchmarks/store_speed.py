"""How fast are random batches read from the token store? Beside ``np.memmap`` (the ceiling) and the ways of h5py. Page cache warm."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import finish, interleaved, median_ratio, medians
from lugpi_core.command_line import say
from lugpi_core.manifest import ColumnSpec
from lugpi_core.token_store import ColumnReader, ColumnWriter

BATCH = 14


def measure(*, smoke: bool, record: bool) -> dict[str, Any]:
    """Return rows/s of each way of reading batches of 14 random rows of CLIP ViT-B/32 tokens (50 × 768, float16)."""
    rows, batches, repeats = (64, 4, 1) if smoke else (4096, 200, 9)
    shape = (50, 768)
    with tempfile.TemporaryDirectory() as folder:
        tokens = np.random.default_rng(0).standard_normal((rows, *shape), dtype=np.float32).astype(np.float16)
        picks = [np.sort(np.random.default_rng(n).choice(rows, BATCH, replace=False)) for n in range(batches)]
        ways = _ways(Path(folder), tokens, picks)
        seconds = interleaved(ways, repeats=repeats)
    read = BATCH * batches
    figures = {
        "rows_per_s": {name: round(read / value) for name, value in medians(seconds).items()},
        "ours_against": {name: median_ratio(seconds, name, "ours") for name in seconds if name != "ours"},
        "rows": rows,
        "row_shape": list(shape),
        "batch": BATCH,
    }
    say(f"store: {figures['rows_per_s']}")
    return finish("store", figures, record=record)


def _ways(folder: Path, tokens: NDArray[np.float16], picks: list[NDArray[np.int64]]) -> dict[str, Callable[[], object]]:
    reader = _ours(folder / "store", tokens)
    raw = folder / "raw.bin"
    tokens.tofile(raw)
    mapped = np.memmap(raw, np.float16, "r", shape=tokens.shape)
    contiguous, chunked = h5py.File(folder / "contiguous.h5", "w"), h5py.File(folder / "chunked.h5", "w")
    contiguous["tokens"] = tokens
    chunked.create_dataset("tokens", data=tokens, chunks=(1, *tokens.shape[1:]))
    out = np.empty((BATCH, *tokens.shape[1:]), np.float16)

    def read_direct(rows: NDArray[np.int64]) -> None:
        for n, row in enumerate(rows):
            contiguous["tokens"].read_direct(out, np.s_[row], np.s_[n])

    reads: dict[str, Callable[[NDArray[np.int64]], object]] = {
        "memmap": lambda rows: np.take(mapped, rows, axis=0, out=out),
        "ours": lambda rows: reader.gather(rows, out),
        "h5py fancy, contiguous": lambda rows: contiguous["tokens"][rows],
        "h5py fancy, one-row chunks": lambda rows: chunked["tokens"][rows],
        "h5py read_direct": read_direct,
    }
    return {name: partial(_each, read, picks) for name, read in reads.items()}


def _each(read: Callable[[NDArray[np.int64]], object], picks: list[NDArray[np.int64]]) -> None:
    for rows in picks:
        read(rows)


def _ours(store: Path, tokens: NDArray[np.float16]) -> ColumnReader:
    spec = ColumnSpec(name="clip", what="tokens", rows=len(tokens), row_shape=tokens.shape[1:], shard_rows=1024, fingerprint={})
    writer = ColumnWriter(store, spec)
    for shard in range(spec.shards):
        layout = spec.layout(shard)
        file = writer.open_shard(shard)
        part = tokens[layout.first_row : layout.first_row + layout.rows]
        file.write(0, part, np.zeros(layout.rows, np.uint8))
        writer.commit(shard, file)
    return ColumnReader(store, "clip")
