"""``python -m featurize plan``, ``missing`` and ``merge``: for engines that hand out shards. No model is loaded."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featurize.options import MergeOptions, MissingOptions, PlanOptions
from featurize.run import plan_command
from lugpi_core.command_line import say
from lugpi_core.errors import InputError, number_of
from lugpi_core.store.manifest import MANIFEST, merge_records
from lugpi_core.store.store_progress import StoreProgress, store_progress
from lugpi_core.store.verify import row_ranges
from lugpi_core.store.virtual_view import view_is_current, write_view


def plan(options: PlanOptions) -> dict[str, Any]:
    """Return how many shards a run has, which are missing, and the hours that they take one process."""
    from featurize.plan.job import refuse_other_images

    _, job = plan_command(options)
    refuse_other_images(job)
    first = job.every_column[0]
    progress = store_progress(job.store, [spec.name for spec in job.every_column], shards=first.shards)
    assert progress is not None
    say(progress.summary())
    return {"command": "plan", "store": str(job.store), "rows": first.rows, "shard_rows": first.shard_rows, **_figures(progress)}


def missing(options: MissingOptions) -> str:
    """Return the missing shards, or the parts that lack some, in the form that was asked for."""
    progress = _progress(options.store)
    numbers: Iterable[int] = progress.missing
    if options.parts is not None:
        numbers = sorted({shard % options.parts for shard in progress.missing})
    say(f"{number_of(len(progress.missing), 'shard{s}')} of {progress.shards:,} missing")
    if options.format == "json":
        return json.dumps({"command": "missing", "store": str(options.store), "numbers": list(numbers)})
    return "\n".join(map(str, numbers)) if options.format == "lines" else row_ranges(numbers).replace(" ", "")


def merge(options: MergeOptions) -> dict[str, Any]:
    """Write the records of all shards into the manifests and, where no shard is missing, the view."""
    progress = _progress(options.store)
    for name in progress.final:
        if (options.store / name / MANIFEST).is_file():
            merge_records(options.store / name)
    if not progress.missing and not view_is_current(options.store):
        write_view(options.store)
    say(progress.summary())
    return {"command": "merge", "store": str(options.store), "complete": not progress.missing, **_figures(progress)}


def _progress(store: Path) -> StoreProgress:
    progress = store_progress(store)
    if progress is None:
        raise InputError(got=f"no token store in {store}", expected="one that featurize has begun", do="run python -m featurize first")
    return progress


def _figures(progress: StoreProgress) -> dict[str, Any]:
    hours = 0.0 if not progress.missing else None if progress.seconds is None else len(progress.missing) * progress.seconds / 3600
    return {
        "shards": progress.shards,
        "missing": len(progress.missing),
        "missing_shards": row_ranges(progress.missing).replace(" ", ""),
        "final": progress.final,
        "seconds_per_shard": progress.seconds,
        "hours": hours,
    }
