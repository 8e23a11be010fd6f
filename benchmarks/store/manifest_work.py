"""What the records of many shards cost: plan and missing read them, merge writes the manifest. The shards themselves are not there."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.harness import finish, promise
from lugpi_core.runtime.meters import versions
from lugpi_core.store.layout import structure
from lugpi_core.store.manifest import ColumnSpec, open_manifest, write_record

COLUMN, ROWS = "clip-vit-b32", 1024
STEPS = ("missing", "merge", "missing after the merge")
_MEASURED = """
import json, resource, sys, time
from pathlib import Path
from lugpi_core.store.manifest import merge_records
from lugpi_core.store.store_progress import store_progress
store, step = Path(sys.argv[1]), sys.argv[2]
begun_s, cpu_s = time.perf_counter(), time.process_time()
merge_records(store / sys.argv[3]) if step == "merge" else store_progress(store)
seconds, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
print(json.dumps({"seconds": round(seconds, 2), "cpu_seconds": round(cpu_s, 2), "peak_mb": round(peak_mb)}))
"""


def measure(*, smoke: bool, record: bool) -> dict[str, Any]:
    """Return seconds and memory of the manifest work of a quarter of the shards and of all."""
    sizes = (50, 200) if smoke else (25_000, 100_000)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for shards in sizes:
            store = Path(folder) / str(shards)
            write_records(store, shards)
            figures[str(shards)] = {step: _run(store, step) for step in STEPS}
    few, many = (figures[str(shards)] for shards in sizes)
    total_s = {size: sum(step["cpu_seconds"] for step in its.values()) for size, its in (("few", few), ("many", many))}
    figures["promises"] = [
        promise("CPU seconds of plan or missing, and merge", max(step["cpu_seconds"] for step in many.values()), at_most=30),
        promise("MB at the peak", max(step["peak_mb"] for step in many.values()), at_most=1000),
        promise("time of four times as many shards", round(total_s["many"] / max(total_s["few"], 1e-9), 2), at_most=5),
    ]
    return finish("manifest", figures, record=record)


def write_records(store: Path, shards: int) -> None:
    """Write the record files of a column, without waiting for the disk."""
    spec = ColumnSpec(
        name=COLUMN, what="tokens", rows=shards * ROWS, row_shape=(50, 768), shard_rows=ROWS, fingerprint={"seed": 0}, made_by={}
    )
    folder, plan, software = store / COLUMN, structure(spec.layout(0)), dict(versions())
    with patch.object(os, "fsync", lambda descriptor: None):
        open_manifest(folder, spec)
        (folder / "shard-00000.h5.partial").touch()
        for shard in range(shards):
            record = {
                "first_row": shard * ROWS,
                "rows": ROWS,
                "bytes": plan.file_bytes,
                "offsets": dict(plan.offsets),
                "fingerprint": spec.digest,
                "flagged": {},
                "xxh3_128": f"{shard:032x}",
                "sha256": f"{shard:064x}",
                "file": spec.shard_name(shard),
                "versions": software,
            }
            write_record(folder, spec, shard, record, seconds=700.0)


def _run(store: Path, step: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _MEASURED, str(store), step, COLUMN], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures
