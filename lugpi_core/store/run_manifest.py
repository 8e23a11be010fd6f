"""``run.json``: what all processes that fill one store agree on. It is written once, by whoever is first; every other run is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.files import create_whole, read_json, write_bytes
from lugpi_core.fingerprint import differences, digest
from lugpi_core.runtime.meters import versions
from lugpi_core.store.lease import locked
from lugpi_core.store.manifest import MANIFEST, ColumnSpec, is_empty

RUN = "run.json"
FORMAT, FORMAT_VERSION = "lugpi-run", 1
Run = Mapping[str, Any]
_BY_PARTS = ("images", "columns")  # what both runs state is compared
_NOT_COMPARED = (*_BY_PARTS, "models")  # models by their fingerprints, and not by where they come from


def describe_run(corpus: str, columns: tuple[ColumnSpec, ...], images: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's processes agree on.

    Args:
        corpus: the corpus's fingerprint.
        columns: that the run fills.
        images: what decides which image each row is: prompts, seeds, the generator with its revision and hash. How images are
            generated is left out if no column is of images: text vectors are the same whatever the denoiser's settings.
    """
    if not any("generation" in spec.fingerprint for spec in columns):
        images = {key: value for key, value in images.items() if key != "generation"}
    run = {
        "corpus": corpus,
        "rows": columns[0].rows,
        "shard_rows": columns[0].shard_rows,
        "shards": columns[0].shards,
        "images": images,
        "models": {spec.name: spec.license for spec in columns},
        "columns": {spec.name: {key: value for key, value in spec.fingerprint.items() if key not in images} for spec in columns},
    }
    plain: dict[str, Any] = json.loads(json.dumps(run))
    return plain


def agree_on_run(store: Path, run: Run, *, is_shared: bool) -> None:
    """Write ``run.json``, or compare with the one that is there. That of a store without any shard is replaced.

    Args:
        store: the ``tokens`` folder, which exists.
        run: what ``describe_run`` returned.
        is_shared: whether other processes fill the store at the same time. If not, a corpus with other labels or splits takes the place of
            the earlier one.

    Raises:
        InputError: another run fills or filled the store; the fields that differ are named.
    """
    value = {"format": FORMAT, "version": FORMAT_VERSION, **run, "versions": dict(versions())}
    data = _sealed(value)
    with locked(store):
        if not (store / RUN).exists() and create_whole(store / RUN, data):
            return
        found = read_run(store)
        if found is None:
            write_bytes(store / RUN, data)
            return
        if not (unlike := run_differences(found, run)):
            return
        if not has_shards(store):
            write_bytes(store / RUN, data)
            return
        if is_shared or any(not one.startswith("corpus: ") for one in unlike):
            raise InputError(
                got=f"a store in {store} that was made with other settings: {'; '.join(unlike)}",
                expected="the same settings and corpus in all processes that fill a store",
                do="repeat those settings, or give another --run-dir for a new store",
            )
        write_bytes(store / RUN, _sealed({**found, "corpus": run["corpus"]}))


def confirm_run(store: Path, run: Run) -> None:
    """Raise InputError if another run has taken the place of this one, as can happen while the store has no shard."""
    found = read_run(store)
    if found is not None and (unlike := run_differences(found, run)):
        raise InputError(
            got=f"another run in {store}, begun at the same time: {'; '.join(unlike)}",
            expected="the same settings and corpus in all processes that fill a store",
            do="start the one that is meant again",
        )


def read_run(store: Path) -> dict[str, Any] | None:
    """Return the content of ``run.json``; None if there is none, as in a store of earlier versions, or it was changed."""
    try:
        value = read_json(store / RUN)
        stated = value.pop("xxh3_128")
    except (InputError, KeyError, AttributeError, TypeError):
        return None
    if stated != digest(value) or (value.get("format"), value.get("version")) != (FORMAT, FORMAT_VERSION):
        return None
    return dict(value)


def has_shards(store: Path) -> bool:
    """Whether a store contains a shard, unfinished or final."""
    return any(not is_empty(path.parent) for path in store.glob(f"*/{MANIFEST}"))


def run_differences(found: Run, wanted: Run) -> list[str]:
    """Return the fields of two runs that differ; columns that only one of the two fills, and what decides only those, are left out,
    because a store may get more of them."""
    common = {part: sorted(set(found.get(part, {})) & set(wanted[part])) for part in _BY_PARTS}
    compared = [key for key in wanted if key not in _NOT_COMPARED]
    found_sides, wanted_sides = (
        {key: side.get(key) for key in compared}
        | {part: {name: side[part][name] for name in names} for part, names in common.items() if names}
        for side in (found, wanted)
    )
    return differences(found_sides, wanted_sides)


def _sealed(value: Mapping[str, Any]) -> bytes:
    body = {key: item for key, item in value.items() if key != "xxh3_128"}
    return (json.dumps({**body, "xxh3_128": digest(body)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
