"""The token store compared with other formats: random batches with a warm and a cold cache, writing, and the memory of a reader."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import finish, promise
from benchmarks.store import store_reading as reading
from benchmarks.store import store_writing as writing
from benchmarks.store.token_files import random_tokens, write_everywhere
from lugpi_core.command_line import say

# By encoder: tokens × width, rows, rows of a shard, batches with a warm and with a cold cache. The system reads 8 MB around every missing
# page, so only few rows of a large file are read; otherwise most would be cached by then.
SHAPES: dict[str, tuple[tuple[int, int], int, int, int, int]] = {
    "B/32": ((50, 768), 16384, 1024, 100, 64),
    "L/14": ((257, 1024), 2048, 512, 40, 16),
}
SMOKE: dict[str, tuple[tuple[int, int], int, int, int, int]] = {
    "B/32": ((50, 768), 64, 32, 2, 2),
    "L/14": ((257, 1024), 32, 16, 2, 2),
}
# Promised for B/32 on two cores: cache, other way, minimum speed-up.
REQUIRED_READING = (
    ("hot", reading.MEMMAP, 0.95),
    ("hot", reading.READ_DIRECT, 2.0),
    ("hot", reading.FANCY["one-row chunks"], 100.0),
    ("cold", reading.MEMMAP, 4.0),
)
REQUIRED_WRITING = 0.85
REQUIRED_GROWTH = 0.05


def measure(*, smoke: bool, record: bool) -> dict[str, Any]:
    """Return rows/s and GB/s of every way, ratios within a round, and which promises hold.

    Writes some gigabytes to the temporary folder ($TMPDIR), which must be on a disk: a memory file system is never cold.
    """
    repeats = 1 if smoke else 9
    figures: dict[str, Any] = {"batch": reading.BATCH}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for encoder, sizes in (SMOKE if smoke else SHAPES).items():
            figures[encoder] = _of_shape(folder / encoder.replace("/", ""), sizes, repeats)
            say(f"store, {encoder}: {figures[encoder]}")
        rows, batches = (16, 4) if smoke else (400, 200)
        figures["memory"] = writing.memory(folder, (50, 768), rows=rows, batches=batches)
    figures["promises"] = promises(figures)
    say(f"store: {figures['memory']}; {figures['promises']}")
    return finish("store", figures, record=record)


def promises(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each promise for B/32 with the measured value."""
    ours = figures["B/32"]
    measured = [(f"{when}: ours against {other}", ours[when]["ours_against"][other], ratio) for when, other, ratio in REQUIRED_READING]
    measured.append((f"writing: ours over {writing.RAW}", ours["writing"]["ours_over"][writing.RAW], REQUIRED_WRITING))
    return [
        *(promise(what, value, at_least=limit) for what, value, limit in measured),
        promise(
            f"a store {writing.GROWTH} times as large: growth of a reader's memory", figures["memory"]["growth"], at_most=REQUIRED_GROWTH
        ),
    ]


def _of_shape(folder: Path, sizes: tuple[tuple[int, int], int, int, int, int], repeats: int) -> dict[str, Any]:
    row_shape, rows, shard_rows, hot_batches, cold_batches = sizes
    tokens = random_tokens(rows, row_shape)
    files = write_everywhere(folder, tokens, shard_rows=shard_rows)
    figures = {
        "row_shape": list(row_shape),
        "rows": rows,
        "hot": reading.hot(files, batches=hot_batches, repeats=3 * repeats),
        "cold": reading.cold(files, batches=cold_batches, repeats=repeats),
        "cold_epoch": reading.cold_epoch(files, repeats=max(1, repeats // 3)),
        "writing": writing.writing(folder, tokens[: 2 * shard_rows], shard_rows=shard_rows, repeats=repeats),
    }
    files.remove()
    return figures
