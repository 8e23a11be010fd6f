"""How far the run that fills a store is: which shards are final in which column, and how long one takes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lugpi_core.store.manifest import MANIFEST, load_manifest, record_path
from lugpi_core.store.reader import columns_of
from lugpi_core.store.run_manifest import read_run

_TIMED = 200  # shards whose times are looked at


@dataclass(frozen=True, kw_only=True)
class StoreProgress:
    """How far a store is.

    Attributes:
        shards: how many each column will have.
        missing: those that are not final in every column.
        final: number of final shards, by column.
        failed: number of failed rows in them, by column.
        seconds: that a shard took, the median of some; None if no record says.
    """

    shards: int
    missing: tuple[int, ...]
    final: dict[str, int]
    failed: dict[str, int]
    seconds: float | None

    @property
    def complete(self) -> bool:
        """Whether no shard is missing and no row failed."""
        return not self.missing and not any(self.failed.values())

    def summary(self) -> str:
        """Return how far it is, in one line."""
        columns = ", ".join(f"{name} {count:,}" for name, count in self.final.items())
        hours = f"; {len(self.missing) * self.seconds / 3600:,.1f} hours of one process left" if self.missing and self.seconds else ""
        failed = f"; {sum(self.failed.values()):,} rows FAILED" if any(self.failed.values()) else ""
        return f"{self.shards - len(self.missing):,} of {self.shards:,} shards are final ({columns}){failed}{hours}"


def store_progress(store: Path, columns: Sequence[str] | None = None, *, shards: int | None = None) -> StoreProgress | None:
    """Return how far a store is; None if nothing says how many shards it will have.

    Args:
        store: the ``tokens`` folder.
        columns: which columns count; None = those of the run that began the store, and those that it has.
        shards: how many each of them will have; None = as the store says.
    """
    run = read_run(store)
    if columns is None:
        columns = sorted({*(run["columns"] if run else ()), *columns_of(store)})
    final: dict[str, set[int]] = {}
    failed: dict[str, int] = {}
    for name in columns:
        final[name], failed[name] = set(), 0
        if (store / name / MANIFEST).is_file():
            spec, records = load_manifest(store / name)
            final[name] = set(records)
            failed[name] = sum(len(record["flagged"]) for record in records.values())
            shards = spec.shards if shards is None and run is None else shards
    shards = run["shards"] if shards is None and run is not None else shards
    if shards is None:
        return None
    missing = tuple(shard for shard in range(shards) if not all(shard in its for its in final.values()))
    seconds = [time_s for name, its in final.items() for time_s in _times_s(store / name, its)]
    counts = {name: len(its) for name, its in final.items()}
    return StoreProgress(shards=shards, missing=missing, final=counts, failed=failed, seconds=median(seconds) if seconds else None)


def _times_s(folder: Path, shards: set[int]) -> list[float]:
    times_s = []
    for shard in sorted(shards)[-_TIMED:]:
        try:
            value = json.loads(record_path(folder, shard).read_bytes())["seconds"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # recorded by an earlier version, or merged from elsewhere
        if isinstance(value, (int, float)):
            times_s.append(float(value))
    return times_s
