"""What does a safe write cost compared with a raw file, and does the memory of a reader grow with the store?"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import interleaved, median_ratio, medians
from benchmarks.store.token_files import COLUMN, Tokens, fill_hdf5, fill_raw, fill_store, random_tokens
from lugpi_core.store.reader import ColumnReader

OURS, RAW, HDF5 = "ours, checked and final", "raw file, write and fsync", "h5py contiguous, flush and fsync"
PUBLISHED = "ours, with its manifest"
FILLS: dict[str, Callable[..., None]] = {RAW: fill_raw, OURS: fill_store, HDF5: fill_hdf5, PUBLISHED: partial(fill_store, merged=True)}
GROWTH = 20


def writing(folder: Path, tokens: Tokens, *, shard_rows: int, repeats: int) -> dict[str, Any]:
    """Return GB/s of each way of writing the tokens in blocks of 16 rows, and ratios to ours.

    Ours includes allocating, hashing every row, syncing, reading back and checking the hashes, hashing the file (xxh3-128 and
    sha256), renaming and recording it. Writing the records into the manifest, once per complete column, is listed separately.
    """
    target = folder / "written"

    def remove(_: str) -> None:
        shutil.rmtree(target, ignore_errors=True)
        os.sync()  # pending writes of the last way must not count for the next

    fills = {name: partial(fill, target, tokens, shard_rows=shard_rows) for name, fill in FILLS.items()}
    seconds = interleaved(fills, repeats=repeats, before=remove)
    remove(OURS)
    return {
        "gb_per_s": {name: round(tokens.nbytes / value / 1e9, 3) for name, value in medians(seconds).items()},
        "ours_over": {name: median_ratio(seconds, name, OURS) for name in fills if name != OURS},
        "gb": round(tokens.nbytes / 1e9, 3),
        "shard_rows": shard_rows,
    }


def memory(folder: Path, row_shape: tuple[int, int], *, rows: int, batches: int) -> dict[str, Any]:
    """Return the private memory (RssAnon) of a fresh process that reads a store, and of one that reads a store 20 times as large."""
    private = {}
    for times in (1, GROWTH):
        store = folder / f"store-{times}"
        fill_store(store, random_tokens(rows * times, row_shape), shard_rows=rows)
        private[times] = _of_fresh_process(store, batches)
    return {
        "private_bytes": {f"{rows * times} rows": value for times, value in private.items()},
        "growth": round(private[GROWTH] / private[1] - 1, 4),
    }


def main(arguments: Sequence[str]) -> None:
    """Read random batches of a store and print the private memory of this process in bytes."""
    store, batches = Path(arguments[0]), int(arguments[1])
    reader = ColumnReader(store, COLUMN)
    order = np.random.default_rng(0)
    for _ in range(batches):
        reader.gather(order.integers(0, len(reader), 14))
    print(json.dumps(_private_bytes()))


def _of_fresh_process(store: Path, batches: int) -> int:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.store.store_writing", str(store), str(batches)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(json.loads(done.stdout))


def _private_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main(sys.argv[1:])
