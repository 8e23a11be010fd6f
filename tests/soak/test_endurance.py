"""Thousands of shards in one process: no file handle leaks, and memory does not grow with the store."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lugpi_core.store.layout import structure
from lugpi_core.store.manifest import ColumnSpec
from lugpi_core.store.writer import ColumnWriter
from tests.soak import processes
from tests.soak.worker import Log, Small, check_rows, fill_store
from tests.support.checkout import ROOT

# Opens a column, reads random batches and prints the anonymous memory of the process, in kB.
READ = """
import random, sys
from pathlib import Path
from lugpi_core.store.reader import ColumnReader
reader, chance = ColumnReader(Path(sys.argv[1]), "clip"), random.Random(0)
for _ in range(400):
    reader.gather(chance.sample(range(len(reader)), 14))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
"""
STEPS = 10  # the shards are spread over this many stores


def _handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def _anonymous_kb() -> int:
    """Return the anonymous memory of this process."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))


def _write_and_read(folder: Path, shards: int, results: Path) -> None:
    """Write, commit, reopen and read ``shards`` shards, one store at a time; record handles and memory after each."""
    rows = shards // STEPS // 2 * 4  # two columns, four rows a shard
    small, lines = Small(rows=rows, shard_rows=4, block=4), []
    for step in range(STEPS):
        store = folder / f"store-{step}"
        fill_store(store, small, Log(folder / f"log-{step}"))
        fill_store(store, small, Log(folder / f"log-{step}"))  # opened again: complete
        assert check_rows(store, small) == 2 * rows
        gc.collect()
        lines.append(f"{_handles()} {_anonymous_kb()}")
    results.write_text("\n".join(lines))


def test_thousands_of_shards_leak_neither_handles_nor_memory(
    tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    shards, results = campaign(80, 2000), tmp_path / "results"
    structure.cache_clear()
    assert processes.wait(processes.start(lambda: _write_and_read(tmp_path, shards, results)), timeout_s=1800) == processes.DONE
    handles, memory_kb = zip(*(map(int, line.split()) for line in results.read_text().splitlines()), strict=True)
    assert len(set(handles)) == 1, handles
    growth = memory_kb[-1] / memory_kb[STEPS // 2 - 1] - 1
    assert growth <= 0.02, memory_kb
    report(
        f"{shards} shards in one process: {handles[0]} handles all the time, anonymous memory {memory_kb[-1]:,} kB, "
        f"{growth:+.2%} over the second half"
    )


def _fill_wide(store: Path, shards: int) -> None:
    """Fill shards of 100 rows of 8 kB."""
    spec = ColumnSpec(name="clip", what="tokens", rows=100 * shards, row_shape=(16, 256), shard_rows=100, fingerprint={"seed": 0})
    column = ColumnWriter(store, spec)
    for shard in range(shards):
        file = column.claim(shard)
        assert file is not None
        file.write(0, np.full((100, 16, 256), shard, np.float16), np.zeros(100, np.uint8))
        column.commit(shard, file)


def test_a_reader_of_a_store_twenty_times_larger_needs_no_more_memory(tmp_path: Path, report: Callable[[str], None]) -> None:
    memory_kb = []
    for times in (1, 20):
        store = tmp_path / f"store-{times}"
        _fill_wide(store, shards=2 * times)
        # In a fresh process: next to the libraries of the models, a few MB would go unnoticed.
        done = subprocess.run([sys.executable, "-c", READ, str(store)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
        memory_kb.append(int(done.stdout))
    assert memory_kb[1] <= 1.05 * memory_kb[0], memory_kb
    report(f"a reader of 20 times the rows: anonymous memory {memory_kb[0]:,} kB and {memory_kb[1]:,} kB")
