"""``tokens.h5``: virtual datasets over all shards of all columns, so that anybody opens the cache with h5py alone."""

from pathlib import Path

import numpy as np

from lugpi_core.example_table import EXAMPLES
from lugpi_core.files import whole_file
from lugpi_core.manifest import load_manifest
from lugpi_core.shard import ROW_DTYPE
from lugpi_core.token_store import columns_of

VIEW = "tokens.h5"


def write_view(store: Path) -> None:
    """Write ``tokens.h5`` over the complete columns: ``/<column>/{tokens|latents, flags}`` and ``/examples/…`` as in ``examples.h5``.

    The shards are named relative to the file, so the folder can be moved as a whole.
    """
    import h5py

    with whole_file(store / VIEW) as partial, h5py.File(partial, "w", libver=("v110", "v110")) as file:
        for column in columns_of(store):
            spec, records = load_manifest(store / column)
            if len(records) != spec.shards:
                continue
            rows = h5py.VirtualLayout((spec.rows, *spec.row_shape), ROW_DTYPE)
            flags = h5py.VirtualLayout((spec.rows,), np.dtype("u1"))
            for record in records.values():
                part = slice(record["first_row"], record["first_row"] + record["rows"])
                shard = f"{column}/{record['file']}"
                rows[part] = h5py.VirtualSource(shard, spec.what, (record["rows"], *spec.row_shape), ROW_DTYPE)
                flags[part] = h5py.VirtualSource(shard, "flags", (record["rows"],), np.dtype("u1"))
            group = file.create_group(column)
            group.create_virtual_dataset(spec.what, rows)
            group.create_virtual_dataset("flags", flags)
        with h5py.File(store / EXAMPLES, "r", locking=False) as examples:
            for name in examples:
                examples.copy(name, file.require_group("examples"))
