"""``tokens.h5``: virtual datasets over all shards of all columns, so that the store can be opened with h5py alone."""

from pathlib import Path
from typing import Any

import numpy as np

from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest, hash_file
from lugpi_core.store.example_table import EXAMPLES
from lugpi_core.store.layout import FLAGS, ROW_HASH
from lugpi_core.store.manifest import ColumnSpec, Record, load_manifest, plain_shard_name
from lugpi_core.store.reader import columns_of
from lugpi_core.store.sealed_file import read_sealed, write_sealed

VIEW = "tokens.h5"
ABSENT = 255  # the flag of rows whose shard is missing


def write_view(store: Path) -> None:
    """Write ``tokens.h5`` over the complete columns: ``/<column>/{tokens|latents, flags}``, ``scale`` if the tokens are int8, and
    ``/examples/…`` as in ``examples.h5``.

    The paths of the shards are relative, so the folder can be moved as a whole.
    """
    write_sealed(store / VIEW, _content(store), lambda file: _fill(store, file))


def view_is_current(store: Path) -> bool:
    """Whether ``tokens.h5`` is undamaged and matches the current content of the store."""
    try:
        about, _ = read_sealed(store / VIEW)
    except InputError:
        return False
    return about == _content(store)


def _content(store: Path) -> dict[str, str]:
    """Return a hash of all that the view contains."""
    columns = {name: load_manifest(store / name) for name in columns_of(store)}
    shards = {name: [_shard_content(n, records[n]) for n in sorted(records)] for name, (_, records) in columns.items()}
    examples = hash_file(store / EXAMPLES) if (store / EXAMPLES).is_file() else None
    return {"content": digest([shards, examples])}


def _shard_content(shard: int, record: Record) -> str | list[str]:
    """Return what of a shard a view depends on: hash and name. Views of earlier versions depend on the hash alone."""
    content = [record["file"], record["xxh3_128"]]
    return content[1] if record["file"] == plain_shard_name(shard) else content


def _fill(store: Path, file: Any) -> None:
    for column in columns_of(store):
        spec, records = load_manifest(store / column)
        if len(records) == spec.shards:
            _add_column(file.create_group(column), column, spec, records)
    if (store / EXAMPLES).is_file():
        for name, values in read_sealed(store / EXAMPLES)[1].items():
            file.require_group("examples")[name] = values


def _add_column(group: Any, column: str, spec: ColumnSpec, records: dict[int, Record]) -> None:
    import h5py

    for name, (shape, dtype) in spec.layout(0).datasets.items():
        if name == ROW_HASH:
            continue
        whole = h5py.VirtualLayout((spec.rows, *shape[1:]), dtype)
        for shard, record in records.items():
            layout = spec.layout(shard)
            source = h5py.VirtualSource(f"{column}/{record['file']}", name, *layout.datasets[name])
            whole[layout.first_row : layout.first_row + layout.rows] = source
        whole.dcpl.set_obj_track_times(False)  # equal content gives equal bytes, at any time
        group.create_virtual_dataset(name, whole, fillvalue=_fill_value(name, dtype))


def _fill_value(name: str, dtype: "np.dtype[Any]") -> float | int:
    """Return what rows of a missing shard read as: NaN, as values or as scale of int8 values."""
    if dtype.kind == "f":
        return float("nan")
    return ABSENT if name == FLAGS else 0
